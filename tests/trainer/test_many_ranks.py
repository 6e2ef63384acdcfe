"""One training on any number of devices: 1, 2 and 4 gloo ranks, short steps included."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from support.launches import Case, on_ranks
from support.runs import final_state

RANDOM = ("attack.random_start=0.5", "attack.target=random", "attack.epsilon_min=1/255")
WHOLE_STEPS = ("data.order_tail=wrap", "optimizer.gsnr_momentum=0.5")
IN_GROUPS = ("data.order_tail=wrap", "batch.norm_group=4")
WEIGHTS = ("method.schedule=vanilla", "weights.rho=0.05")
EQUAL: dict[str, tuple[str, ...]] = {
    "vanilla": ("method.schedule=vanilla",),
    "sequential": ("method.schedule=sequential", *RANDOM),
    "noise": ("method.schedule=noise", "attack.epsilon_min=0", "attack.block_size=2"),
    "lookahead": ("method.schedule=lookahead", "method.tau=1"),
    "lookahead3": ("method.schedule=lookahead", "method.tau=3", "method.share=0.5", *RANDOM),
    "affine": ("method.schedule=sequential", "norm.statistics=affine", *IN_GROUPS),
    "shared": ("method.schedule=noise", "norm.statistics=shared", *IN_GROUPS),
    "lars": ("method.schedule=vanilla", "optimizer.name=lars", "optimizer.lr=0.5"),
    "sam": ("method.schedule=vanilla", "method.sam=sam", "method.rho=0.2"),
    "async-sam": ("method.schedule=vanilla", "method.sam=async", "method.rho=0.2"),
    "vr-sgd": ("method.schedule=vanilla", "optimizer.variance_reduction=true", *WHOLE_STEPS),
    "weights-sequential": (*WEIGHTS, "weights.schedule=sequential", "weights.weight=0.5"),
    "weights-recycled": (*WEIGHTS, "weights.schedule=recycled", "weights.share=0.5"),
    "both": ("method.schedule=sequential", *WEIGHTS[1:], "weights.schedule=recycled"),
    "weights-seldom": (*WEIGHTS, "weights.schedule=recycled", "weights.every=2"),
    "ema": ("method.schedule=vanilla", "train.ema_decay=0.9", "train.clip_grad_norm=0.5"),
}
"""What must not depend on the number of ranks."""
RECYCLED = ("method.schedule=recycled",)
LATER = {"resume": True}
STOPS: list[Case] = [
    ("stopped-lookahead", EQUAL["lookahead3"], {"stop_after": 10}),
    ("stopped-weights", EQUAL["weights-seldom"], {"stop_after": 9}),
    ("stopped-recycled", RECYCLED, {"stop_after": 10}),
]
SIZES = (1, 2, 4)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def cases() -> list[Case]:
    found: list[Case] = [(name, overrides, {}) for name, overrides in EQUAL.items()]
    return [*found, ("recycled", RECYCLED, {}), *STOPS]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Every case on every number of ranks. Of several pytest workers, one does it."""
    base = tmp_path_factory.getbasetemp()
    number = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    folder = base.parent / f"many-{number}" if number else base / "many"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        for size in SIZES:
            if (folder / f"done-{size}").exists():
                continue
            for problems in on_ranks(size, folder / str(size), cases()):
                assert set(problems) == {name for name, _, _ in STOPS}, problems
            (folder / f"done-{size}").touch()
    return {size: folder / str(size) for size in SIZES}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return final_state(folder)["trainer"]["model"]


def assert_close(found: Path, expected: Path) -> None:
    """Within the rounding of another order of summation, over the length of the run."""
    other = weights(expected)
    for key, value in weights(found).items():
        torch.testing.assert_close(value, other[key], rtol=1e-3, atol=2e-5, msg=f"{found} {key}")


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", EQUAL)
@pytest.mark.parametrize("size", SIZES[1:])
def test_same_weights_and_statistics_as_one_device(
    name: str, size: int, runs: dict[int, Path]
) -> None:
    assert_close(runs[size] / name, runs[1] / name)


@pytest.mark.parametrize("name", EQUAL)
@pytest.mark.parametrize("size", SIZES[1:])
def test_same_metrics_as_one_device(name: str, size: int, runs: dict[int, Path]) -> None:
    alone, many = metrics(runs[1] / name), metrics(runs[size] / name)
    assert [line["kind"] for line in many] == [line["kind"] for line in alone]
    for line, expected in zip(many, alone, strict=True):
        for key, value in expected.items():
            if value is None or key == "kind":
                assert line[key] == value
            elif key == "compute":  # a short step: a rank without images stands in
                assert line[key] == pytest.approx(value, rel=0.2)
            else:
                assert line[key] == pytest.approx(value, rel=2e-3, abs=1e-4), (key, line["step"])


def test_the_numbers_are_those_of_all_ranks(runs: dict[int, Path]) -> None:
    for size in SIZES:
        result = json.loads((runs[size] / "recycled/result.json").read_text())
        assert result["images_seen"] == 6 * 85 + 64  # 20 steps: 6 epochs of 3, and two full ones
        assert result["steps"] == 20


def test_one_rank_writes(runs: dict[int, Path]) -> None:
    steps = [line["step"] for line in metrics(runs[4] / "vanilla") if line["kind"] == "train"]
    assert steps == list(range(1, 21))
    parts = sorted(p.name for p in (runs[4] / "vanilla/checkpoints").glob("step_00000020*"))
    ranks = [f"step_00000020.rank_{rank}_of_4.pt" for rank in (1, 2, 3)]
    assert parts == ["step_00000020.pt", *ranks]


CHANGES = [(1, 2), (2, 2), (2, 4), (4, 1), (4, 2), (4, 4)]


@pytest.mark.parametrize(
    ("before", "after", "stopped", "name"),
    [
        *((*change, "stopped-lookahead", "lookahead3") for change in CHANGES),
        *((*change, "stopped-weights", "weights-seldom") for change in CHANGES[1:4]),
    ],
)
def test_what_is_kept_by_micro_batch_goes_on_with_any_number_of_ranks(
    before: int, after: int, stopped: str, name: str, runs: dict[int, Path], tmp_path: Path
) -> None:
    """Pending copies and gradients move with their micro-batches: not one is lost or changed."""
    shutil.copytree(runs[before] / stopped, tmp_path / "run")
    problems = on_ranks(after, tmp_path, [("run", EQUAL[name], LATER)])
    assert problems == [{}] * after
    assert_close(tmp_path / "run", runs[1] / name)
    if before == after:
        same = runs[before] / name
        assert (tmp_path / "run/metrics.jsonl").read_bytes() == (
            same / "metrics.jsonl"
        ).read_bytes()
        for key, value in weights(same).items():
            assert torch.equal(value, weights(tmp_path / "run")[key])


def test_recycled_on_two_ranks_resumes_bit_for_bit(runs: dict[int, Path], tmp_path: Path) -> None:
    shutil.copytree(runs[2] / "stopped-recycled", tmp_path / "run")
    assert on_ranks(2, tmp_path, [("run", RECYCLED, LATER)]) == [{}, {}]
    for key, value in weights(runs[2] / "recycled").items():
        assert torch.equal(value, weights(tmp_path / "run")[key])


def test_a_number_that_cannot_carry_the_recipe(tmp_path: Path) -> None:
    for problems in on_ranks(3, tmp_path, [("run", EQUAL["vanilla"], {})]):
        assert "cannot be dealt out to 3 processes" in problems["run"]
        assert "Possible numbers of processes are 1, 2, 4" in problems["run"]
