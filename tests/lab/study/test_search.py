"""The search: the same for every method, and unmoved by kills."""

import math
from pathlib import Path

import pytest

from conadv.errors import StudyError
from conadv.lab.study.plan import Cell, Range, make_plan
from conadv.lab.study.search import WORST, Search
from support.studies import study

LR = Range(0.25, 4, True, 2.0)
EPSILON = Range(0.01, 0.1, True)


def cell(name: str = "vanilla", **space: Range) -> Cell:
    return Cell(name, 16, (), space or {"optimizer.lr": LR}, f"{name}-b16")


def values(search: Search, of: Cell, count: int) -> list[dict[str, float]]:
    found = []
    for number in range(count):
        found.append(search.values(of, number))
        search.tell(of, number, 1 - abs(found[-1]["optimizer.lr"] - 3))
    return found


def test_values_lie_in_their_ranges_and_relative_ones_are_scaled(tmp_path: Path) -> None:
    both = cell("recycled", **{"optimizer.lr": LR, "attack.epsilon": EPSILON})
    for found in values(Search(tmp_path / "log", study()), both, 12):
        assert 0.5 <= found["optimizer.lr"] <= 8 and 0.01 <= found["attack.epsilon"] <= 0.1


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_search_is_a_function_of_the_study(tmp_path: Path, sampler: str) -> None:
    given = study(tuning__sampler=sampler)
    whole = values(Search(tmp_path / "a", given), cell(), 8)
    parts = [values(Search(tmp_path / "b", given), cell(), n)[-1] for n in range(1, 9)]
    assert whole == parts  # a new process for every trial
    assert len({found["optimizer.lr"] for found in whole}) == 8
    other = values(
        Search(tmp_path / "c", study(tuning__seed=7, tuning__sampler=sampler)), cell(), 8
    )
    assert other != whole


def test_the_first_trials_draw_the_same_for_every_method(tmp_path: Path) -> None:
    search = Search(tmp_path / "log", study(tuning__startup=4))
    one, other = values(search, cell("a"), 4), values(search, cell("b"), 4)
    assert one == other


def test_given_points_come_first_and_the_rest_is_drawn(tmp_path: Path) -> None:
    first = [{"optimizer.lr": 1}, {"optimizer.lr": 0.5, "attack.epsilon": 0.02}]
    search = Search(tmp_path / "log", study(tuning__first=first))
    both = cell("recycled", **{"optimizer.lr": LR, "attack.epsilon": EPSILON})
    found = values(search, both, 3)
    assert [f["optimizer.lr"] for f in found[:2]] == [2.0, 1.0]  # factors on the recipe's 2
    assert found[1]["attack.epsilon"] == 0.02
    assert [f["optimizer.lr"] for f in values(search, cell(), 2)] == [2.0, 1.0]


@pytest.mark.parametrize(("best", "inside"), [(3.0, 6), (40.0, 8), (0.02, 10)])
def test_a_grid_extends_itself_until_its_best_value_is_inside(
    tmp_path: Path, best: float, inside: int
) -> None:
    given = study(
        tuning__sampler="grid",
        tuning__trials=10,
        tuning__space={"optimizer.lr": {"low": 0.25, "high": 4}},
    )
    search, tried = Search(tmp_path / "log", given), []
    for number in range(inside):
        tried.append(search.values(cell(), number)["optimizer.lr"])
        search.tell(cell(), number, 1 / (1 + abs(math.log(tried[-1] / best))))
    assert tried[:3] == [2.0, 0.5, 8.0], "middle and both ends, relative to the recipe's 2"
    chosen = search.ranked(cell())[0].values["optimizer.lr"]
    assert min(tried) < chosen < max(tried)
    assert best / 2 <= chosen <= best * 2
    assert Search(tmp_path / "log", given).values(cell(), 5)["optimizer.lr"] == tried[5]


def test_looking_at_a_search_writes_nothing(tmp_path: Path) -> None:
    search = Search(tmp_path / "log", study())
    search.values(cell(), 0)
    search.tell(cell(), 0, 0.5)
    before = (tmp_path / "log").read_bytes()
    for other in (search, Search(tmp_path / "log", study())):
        assert [trial.accuracy for trial in other.trials(cell())] == [0.5]
        assert other.ranked(cell())
    assert (tmp_path / "log").read_bytes() == before


def test_a_grid_has_one_setting() -> None:
    with pytest.raises(StudyError, match=r"recycled at batch 16.*sampler=grid tunes one setting"):
        make_plan(study(tuning__sampler="grid", tuning__trials=4))
    with pytest.raises(StudyError, match="takes 4 or more"):
        study(tuning__sampler="grid")


def test_a_trial_keeps_its_values_and_its_end(tmp_path: Path) -> None:
    search = Search(tmp_path / "log", study())
    drawn = search.values(cell(), 0)
    again = Search(tmp_path / "log", study())  # after a kill
    assert again.values(cell(), 0) == drawn
    again.tell(cell(), 0, 0.7)
    search.tell(cell(), 0, 0.1)  # too late
    assert again.values(cell(), 0) == drawn
    (trial,) = search.trials(cell())
    assert (trial.number, trial.accuracy, trial.message) == (0, 0.7, None)


def test_trials_that_finished_are_ranked_the_first_of_equal_ones_first(tmp_path: Path) -> None:
    search = Search(tmp_path / "log", study())
    ends = [(WORST, "not finite"), (0.5, None), (None, "no memory"), (0.8, None), (0.8, None)]
    assert search.ranked(cell()) == []
    for number, (accuracy, message) in enumerate(ends):
        search.values(cell(), number)
        search.tell(cell(), number, accuracy, message)
    assert [trial.number for trial in search.ranked(cell())] == [3, 4, 1]
    assert [t.message for t in search.trials(cell())] == [m for _, m in ends]


def test_no_trial_that_failed_is_ever_ranked(tmp_path: Path) -> None:
    search = Search(tmp_path / "log", study())
    for number, accuracy in enumerate([WORST, None]):
        search.values(cell(), number)
        search.tell(cell(), number, accuracy, "broken")
    assert search.ranked(cell()) == []


def test_the_sampler_learns_where_it_is_good(tmp_path: Path) -> None:
    given = study(tuning__startup=6)
    found = values(Search(tmp_path / "log", given), cell(), 30)
    late = [abs(f["optimizer.lr"] - 3) for f in found[18:]]
    chance = values(Search(tmp_path / "r", study(tuning__sampler="random")), cell(), 30)
    assert sum(late) / 12 < sum(abs(f["optimizer.lr"] - 3) for f in chance) / 30
