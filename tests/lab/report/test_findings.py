"""The words follow from the results, whichever way these went."""

from pathlib import Path
from typing import Any

import pytest

from conadv.lab.report import find_runs
from conadv.lab.report.comparison import uncertainty
from conadv.lab.report.findings import Findings, findings
from conadv.lab.report.study.cells import cells
from lab.report.conftest import MakeRun


def say(*folders: Path) -> Findings:
    return findings(cells(find_runs(folders)))


@pytest.fixture
def three(make_run: MakeRun) -> Any:
    """Small batch at 88 %, large at 82 %, recycled at the accuracy given."""

    def make(recycled: float, large: float = 0.82, **more: Any) -> Findings:
        return say(
            make_run("small", batch=100, test_accuracy=0.88),
            make_run("large", batch=1000, test_accuracy=large, **more),
            make_run("recycled", schedule="recycled", batch=1000, test_accuracy=recycled, **more),
        )

    return make


def test_one_seed_gives_no_verdict(three: Any) -> None:
    found = three(0.84, test_images=500)
    assert found.headline.replace("\N{NARROW NO-BREAK SPACE}", " ") == (
        "One seed each, no verdict: ordinary training 82.0 %, recycled 84.0 % at batch 1,000; "
        "88.0 % at batch 100 (under about 4.9 points is chance)."
    )
    [recycled] = found.sentences
    assert "+2.0 ± 4.6 points of test accuracy" in recycled
    assert [(figure.value, figure.interval) for figure in found.figures] == [
        ("\N{MINUS SIGN}6.0", "± 4.9"),
        ("+2.0", "± 4.6"),
        ("0.0", "± 5.1"),
        ("2.00×", "counted, not measured"),
    ]


def test_several_seeds_give_an_interval(make_run: MakeRun) -> None:
    runs = []
    for seed, gained in enumerate((0.01, 0.02, 0.03)):
        runs += [
            make_run(f"v{seed}", batch=1000, seed=seed, test_accuracy=0.8),
            make_run(
                f"r{seed}", schedule="recycled", batch=1000, seed=seed, test_accuracy=0.8 + gained
            ),
        ]
    low, high = 2 - 2.484, 2 + 2.484  # Student's t with two degrees of freedom, 4.303 / sqrt(3)
    found = say(*runs)
    assert found.headline == (
        "At batch 1,000 recycled changed accuracy under attack by 0.0 points (0.0 to 0.0, within "
        f"chance) and test accuracy by +2.0 points ({low:.1f} to {high:+.1f}, within chance), for "
        "2.00× the compute."
    ).replace("-", "\N{MINUS SIGN}")
    assert found.figures[0].interval == f"{low:.1f} to {high:+.1f}".replace("-", "\N{MINUS SIGN}")
    assert "2.00× (2.00× to 2.00×) the time per step" in found.sentences[0]


def test_runs_that_are_not_finished_change_no_headline(make_run: MakeRun) -> None:
    runs = [
        make_run(f"{name}{seed}", schedule=name, batch=1000, seed=seed, test_accuracy=0.8)
        for name in ("vanilla", "recycled")
        for seed in (0, 1, 2)
    ]
    before = say(*runs).headline
    more = make_run("r3", schedule="recycled", batch=1000, seed=3, status="interrupted")
    late = make_run("late", schedule="sequential", batch=1000, status="diverged", val_accuracy=1.0)
    assert say(*runs, more, late).headline == before


def test_of_equals_the_cheapest_speaks(make_run: MakeRun) -> None:
    found = say(
        make_run("v", batch=1000, compute=100.0),
        make_run("s", schedule="sequential", batch=1000, compute=267.0, val_accuracy=0.8),
        make_run("r", schedule="recycled", batch=1000, compute=200.0, val_accuracy=0.8),
    )
    assert "recycled" in found.headline and "sequential" not in found.headline


@pytest.mark.parametrize(
    ("device", "seconds", "believed"),
    [
        ("cuda", 0.3, True),
        ("cuda", 0.11, True),  # a GPU that was idle in between
        ("cuda", 3.473, False),
        ("cuda", 0.02, False),
        ("cpu", 0.2, True),
        ("cpu", 0.26, True),
        ("cpu", 0.3, False),
        ("cpu", 0.107, False),  # of 2.00 times the operations
    ],
)
def test_step_times_that_operations_do_not_explain_are_left_out(
    make_run: MakeRun, device: str, seconds: float, believed: bool
) -> None:
    settings = {"hardware": {"device": device}}
    found = say(
        make_run("v", batch=1000, settings=settings, compute=100.0, step_seconds_median=0.1),
        make_run(
            "r",
            schedule="recycled",
            batch=1000,
            settings=settings,
            compute=200.0,
            step_seconds_median=seconds,
        ),
    )
    said = any("Step times are not to be believed" in caveat for caveat in found.caveats)
    assert said != believed
    assert any("the time per step" in sentence for sentence in found.sentences) == believed


def test_uncertainty_in_closed_form(make_run: MakeRun) -> None:
    (cell,) = cells(find_runs([make_run(test_accuracy=0.5, test_images=800)]))
    assert uncertainty(cell) == pytest.approx(0.05)  # 2 sqrt(2 * 0.25 / 800)


def test_the_best_method_is_chosen_on_validation_images(make_run: MakeRun) -> None:
    found = say(
        make_run("v", batch=1000),
        make_run("s", schedule="sequential", batch=1000, val_accuracy=0.9, test_accuracy=0.7),
        make_run("r", schedule="recycled", batch=1000, val_accuracy=0.8, test_accuracy=0.9),
    )
    assert "sequential 70.0" in found.headline
    assert any(sentence.startswith("recycled: +10.0") for sentence in found.sentences)


def test_the_control_is_never_the_best(make_run: MakeRun) -> None:
    found = say(make_run("v"), make_run("n", schedule="noise", val_accuracy=1.0))
    assert "noise" not in found.headline
    assert any(sentence.startswith("noise:") for sentence in found.sentences)


def test_costs_are_against_ordinary_training_at_the_same_batch(four_runs: list[Path]) -> None:
    found = say(*four_runs)
    assert found.figures[-1].value == "2.00×"
    sequential = next(s for s in found.sentences if s.startswith("sequential"))
    assert "2.67× the compute" in sequential and "2.67× (measured once) the time" in sequential
    assert sequential.startswith("sequential: \N{MINUS SIGN}1.0 points of test accuracy")


def test_unfinished_training_is_not_sold_as_worse_generalisation(make_run: MakeRun) -> None:
    small = make_run("small", batch=100, train_accuracy=0.95, test_accuracy=0.9)
    late = make_run("late", batch=1000, train_accuracy=0.8, test_accuracy=0.79)
    level = make_run("level", batch=2000, train_accuracy=0.945, test_accuracy=0.85)
    assert any("not worse generalisation" in caveat for caveat in say(small, late).caveats)
    assert not any("not worse generalisation" in caveat for caveat in say(small, level).caveats)


def test_seeds_are_averaged_and_the_warning_goes(make_run: MakeRun) -> None:
    one = [
        make_run(f"v{i}", seed=i, test_accuracy=accuracy) for i, accuracy in enumerate((0.8, 0.9))
    ]
    found = say(*one, make_run("small", batch=10, test_accuracy=0.9))
    assert "by \N{MINUS SIGN}10.0 points (no two seeds in common)" in found.headline
    assert not any("One seed" in caveat for caveat in found.caveats)


@pytest.mark.parametrize("status", ["interrupted", "diverged"])
def test_runs_that_did_not_finish_are_named_and_left_out(make_run: MakeRun, status: str) -> None:
    found = say(make_run("v"), make_run("r", schedule="recycled", status=status, test_accuracy=0.1))
    assert found.sentences == ()
    assert f"r is {status} and left out of every comparison." in found.caveats


def test_without_ordinary_training_nothing_is_compared(make_run: MakeRun) -> None:
    alone = say(make_run("r", schedule="recycled", batch=1000))
    assert alone.headline.startswith("recycled at batch 1,000 reached 80.0")
    assert alone.figures == ()


def test_nothing_finished(make_run: MakeRun) -> None:
    folder = make_run("v")
    (folder / "result.json").unlink()
    assert say(folder).headline == "No run has finished yet."


def test_without_a_look_at_the_test_images_those_held_out_count(make_run: MakeRun) -> None:
    unseen = {"test_accuracy": None, "robust_accuracy": None}
    found = say(
        make_run("v", val_accuracy=0.7, **unseen),
        make_run("r", schedule="recycled", val_accuracy=0.75, **unseen),
    )
    assert found.headline.startswith("recycled at batch 100 reached 75.0")
    assert found.headline.endswith("on held-out images; the test images were left alone.")
