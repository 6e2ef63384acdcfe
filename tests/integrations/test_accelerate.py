"""A loop that Accelerate drives equals the plain one, bit for bit."""

from pathlib import Path

import pytest

pytest.importorskip("accelerate")

from support import accelerate_loops
from support.gloo import of_case, run_cases
from support.trainers import SETTINGS, assert_same, data, outcome, plain_loop


@pytest.mark.parametrize("setting", [*SETTINGS, "lookahead"])
def test_it_equals_the_plain_loop(setting: str) -> None:
    options = SETTINGS.get(setting, {"schedule": setting})
    plain = plain_loop(data(options.get("accumulation", 1)), **options)
    assert_same(accelerate_loops.train(**options), outcome(*plain))


def test_a_resumed_run_equals_the_unbroken_one(tmp_path: Path) -> None:
    assert_same(accelerate_loops.resume(tmp_path), outcome(*plain_loop(data())))


def test_lookahead_with_accumulation_is_refused() -> None:
    with pytest.raises(ValueError, match="lookahead with gradient accumulation"):
        accelerate_loops.train(schedule="lookahead", accumulation=2)


def test_a_checkpoint_without_copies_is_refused(tmp_path: Path) -> None:
    run = accelerate_loops.begin(data())
    run[0].save_state(str(tmp_path))
    for file in tmp_path.glob("conadv-*.pt"):
        file.rename(tmp_path / "conadv-00000-of-00004.pt")
    with pytest.raises(ValueError, match="copies of 4 processes, and this run has 1"):
        run[0].load_state(str(tmp_path))
    (tmp_path / "conadv-00000-of-00004.pt").unlink()
    with pytest.raises(ValueError, match="written without conadv"):
        run[0].load_state(str(tmp_path))


@pytest.mark.slow
def test_two_ranks_equal_the_plain_loop_in_ddp(tmp_path_factory: pytest.TempPathFactory) -> None:
    results = run_cases("support.accelerate_loops", accelerate_loops.WORLD, tmp_path_factory)
    for (case,) in results[0]:
        first, second = of_case(results, case)
        for found in (first, second):
            assert_same(found["trainer"], found["plain"])
        with pytest.raises(AssertionError):  # each rank has copies of its own
            assert_same(first["trainer"], second["trainer"])
