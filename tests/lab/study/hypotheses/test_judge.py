"""What final runs say about what was stated before them, and what was not."""

from typing import Any

import pytest

from conadv.errors import StudyError
from conadv.lab.evidence import holm
from conadv.lab.study import Study, StudyFolder
from conadv.lab.study.hypotheses.judge import Judgement, judge, visible_effects
from conadv.lab.study.hypotheses.registration import Registration, register
from support.studies import study

NOISE = (0.000, 0.004, -0.003, 0.001, -0.002, 0.002)
SEEDS = tuple(range(6))
STATED: dict[str, Any] = {
    "primary": {"method": "recycled", "batch": 32},
    "secondary": {
        "half": {"claim": "won_back", "method": "recycled", "batch": 32, "small_batch": 16},
        "large": {"claim": "interaction", "method": "recycled", "batch": 32, "small_batch": 16},
        "same": {"claim": "equivalent", "method": "recycled", "batch": 16, "margin": 0.01},
        "kept": {"claim": "not_worse", "method": "recycled", "batch": 16, "margin": 0.01},
    },
    "spread": 0.005,
}


def stated(**changes: Any) -> Study:
    return study(batches=[16, 32], final__seeds=[*SEEDS], hypotheses=STATED, **changes)


def rows(accuracy: dict[tuple[str, int], float]) -> list[dict[str, Any]]:
    """Runs whose seeds move all methods alike, and a little each on its own."""
    return [
        {"method": m, "batch": b, "seed": s, "status": "finished"}
        | {"test_accuracy": a + 0.02 * s + NOISE[(s + 2 * i) % 6]}
        for i, ((m, b), a) in enumerate(accuracy.items())
        for s in SEEDS
    ]


WON = {
    ("vanilla", 16): 0.77,
    ("recycled", 16): 0.77,
    ("vanilla", 32): 0.70,
    ("recycled", 32): 0.76,
}


def registered(given: Study, **changes: Any) -> Registration:
    assert given.hypotheses is not None
    values = {
        "sha256": "",
        "time": "",
        "seeds": given.final.seeds,
        "methods": {name: given.sizes_of(name) for name in given.methods},
        "hypotheses": {
            name: one.model_dump(mode="json") for name, one in given.hypotheses.named.items()
        },
    }
    return Registration(**{**values, **changes})


def verdicts(found: list[Judgement]) -> dict[str, str]:
    return {one.name: one.verdict for one in found}


def test_words_follow_intervals() -> None:
    given = stated()
    found = judge(given, rows(WON), registered(given))
    assert verdicts(found) == {
        "primary": "better",
        "half": "won back at least 50 % of the loss",
        "large": "gains more at the large batch",
        "same": "equal within 1 point",
        "kept": "no more than 1 point lost",
    }
    assert all(one.exploratory is None for one in found)
    primary, half, large = found[:3]
    assert primary.found.value == pytest.approx(0.06)
    assert primary.found.spread is not None and primary.found.spread < 0.01, "paired by seed"
    assert half.found.value == pytest.approx(0.06 - 0.07 / 2)
    assert large.found.value == pytest.approx(0.06)


def test_the_family_is_corrected_and_the_primary_is_not() -> None:
    given = stated()
    found = {one.name: one for one in judge(given, rows(WON), registered(given))}
    plain = [
        found["half"].found.p_value(),
        found["large"].found.p_value(),
        found["same"].found.p_equivalent(0.01),
        found["kept"].found.p_value(-0.01),
    ]
    corrected = holm([p for p in plain if p is not None])
    assert [found[n].p for n in ("half", "large", "same", "kept")] == pytest.approx(corrected)
    assert found["primary"].p == found["primary"].found.p_value()


def test_small_differences_and_losses_decide_nothing() -> None:
    given = stated()
    none = dict.fromkeys(WON, 0.7)
    found = {one.name: one for one in judge(given, rows(none), registered(given))}
    assert found["primary"].verdict == found["large"].verdict == found["half"].verdict
    assert found["primary"].verdict == "undecided"
    assert 0.003 < (found["primary"].found.visible or 0) < 0.01
    gained = {**none, ("recycled", 32): 0.76}
    half = next(one for one in judge(given, rows(gained), registered(given)) if one.name == "half")
    assert half.verdict == "no loss shown, so nothing to win back"
    lost = {**none, ("recycled", 32): 0.66, ("recycled", 16): 0.66}
    found = {one.name: one for one in judge(given, rows(lost), registered(given))}
    assert found["primary"].verdict == "worse"
    assert found["kept"].verdict == "more than 1 point lost"


def test_runs_that_did_not_finish_take_their_seed_along() -> None:
    given = stated()
    runs = rows(WON)
    for run in runs:
        if run["method"] == "vanilla" and run["batch"] == 32 and run["seed"] < 2:
            run["status"] = "diverged"
    primary = judge(given, runs, registered(given))[0].as_dict()
    assert (primary["seeds"], primary["seeds_expected"]) == (4, 6)


def test_what_comes_after_a_look_is_exploratory() -> None:
    given = stated()
    assert given.hypotheses is not None
    nothing = judge(given, rows(WON), None)
    assert {one.exploratory for one in nothing} == {"nothing was stated before the final runs"}
    fewer = judge(given, rows(WON), registered(given, seeds=(0, 1, 2)))
    first, again = fewer[0], fewer[5]
    assert (first.name, first.seeds, first.exploratory) == ("primary", 3, None)
    assert (again.name, again.seeds) == ("primary", 6)
    assert again.exploratory == "with seeds added after the first final run"
    before = registered(given).hypotheses
    other = {**before, "primary": {**before["primary"], "batch": 16}}
    changed = judge(given, rows(WON), registered(given, hypotheses=other))
    assert changed[0].exploratory == "stated after the first final run"
    assert changed[1].exploratory is None
    late = registered(given, methods={"vanilla": (16, 32), "recycled": (16,)})
    assert judge(given, rows(WON), late)[0].exploratory is not None
    gone = registered(given, seeds=(0, 1, 99))
    assert "taken away" in str(judge(given, rows(WON), gone)[0].exploratory)


def test_the_first_final_run_writes_it_down_and_later_ones_do_not(tmp_path: Any) -> None:
    folder = StudyFolder(tmp_path / "study")
    given = folder.prepare(stated())
    assert Registration.read(folder.registered) is None
    register(folder, given)
    first = Registration.read(folder.registered)
    assert first is not None and first.objection(given, "primary") is None
    assert len(first.sha256) == 64
    stated_later = {**STATED, "secondary": {}}
    more = folder.prepare(
        study(batches=[16, 32], final__seeds=[*SEEDS, 7], hypotheses=stated_later)
    )
    register(folder, more)
    assert Registration.read(folder.registered) == first
    assert first.objection(more, "primary") is None
    folder.registered.write_text("{")
    with pytest.raises(StudyError, match="is damaged"):
        Registration.read(folder.registered)


def test_a_dry_run_says_what_could_be_seen() -> None:
    effects = visible_effects(stated())
    # Six seeds: 1.435 standard deviations at 5 %.
    assert effects["primary"] == pytest.approx(1.435 * 0.005, rel=1e-2)
    # Four accuracies instead of two, and a family of four.
    assert effects["large"] > 2**0.5 * effects["primary"]
    assert visible_effects(study()) == {}
    fewer = stated(methods={"vanilla": None, "recycled": {"seeds": [0, 1, 2]}})
    assert visible_effects(fewer)["primary"] > effects["primary"]
    judged = judge(fewer, [run for run in rows(WON) if run["seed"] < 3], registered(fewer))
    assert judged[0].as_dict()["seeds_expected"] == 3


@pytest.mark.parametrize(
    ("hypothesis", "said"),
    [
        ({"method": "recycled", "batch": 64}, "recycled is not run at batch 64"),
        ({"method": "other", "batch": 16}, "other is not run"),
        ({"method": "recycled", "batch": 16, "claim": "equivalent"}, "give a margin"),
        ({"method": "recycled", "batch": 16, "small_batch": 16}, "give the small batch for"),
        ({"method": "recycled", "batch": 16, "clam": "better"}, "no such field. Allowed: claim"),
    ],
)
def test_a_hypothesis_must_be_about_runs_of_the_study(
    hypothesis: dict[str, Any], said: str
) -> None:
    with pytest.raises(StudyError, match=said):
        study(hypotheses={"primary": hypothesis})
