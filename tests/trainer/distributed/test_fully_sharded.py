"""Runs whose weights lie in parts on two ranks (hardware.parallel=fsdp), against whole ones."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file as load_exported
from torch import Tensor, nn

from conadv._tree import map_tensors
from conadv.errors import RecipeError
from conadv.lab.analysis.run.analyse import analyse_run
from conadv.trainer.checkpoint.file import load_file
from conadv.trainer.checkpoint.load_run import load_run
from conadv.trainer.distributed.data_parallel import repeated_blocks
from conadv.trainer.evaluation.evaluate import evaluate_run
from conadv.trainer.evaluation.export import export_run
from conadv.trainer.models.zoo import create_model
from support.launches import Case, finish, on_ranks, recipe, start
from support.runs import assert_same_state, final_state

pytestmark = pytest.mark.timeout(400)

WHOLE = ("data.order_tail=wrap", "evaluation.batch=3", "train.steps=12")
SHARDED = ("hardware.parallel=fsdp", *WHOLE)
CASES: dict[str, tuple[str, ...]] = {
    "vanilla": ("method.schedule=vanilla", "model.name=cifar/resnet20"),
    "sequential": ("method.schedule=sequential", "attack.random_start=0.5"),
    "lookahead": ("method.schedule=lookahead", "method.tau=2", "method.share=0.5"),
    "noise": ("method.schedule=noise", "train.clip_grad_norm=0.5"),
    "lars": ("method.schedule=vanilla", "optimizer.name=lars", "optimizer.lr=0.5"),
    "lamb": ("method.schedule=sequential", "optimizer.name=lamb", "optimizer.lr=0.01"),
    "pgd": ("method.schedule=vanilla", "evaluation.robust_steps=2", "train.nonfinite=skip"),
}
"""What must not depend on where the weights lie."""
RECYCLED = ("method.schedule=recycled", "optimizer.name=lars", "optimizer.lr=0.5")


def cases() -> list[Case]:
    sharded: list[Case] = [(name, (*SHARDED, *given), {}) for name, given in CASES.items()]
    stops: list[Case] = [
        (f"stopped-{name}", (*SHARDED, *given, "checkpoint.every_steps=4"), {"stop_after": 6})
        for name, given in (("lookahead", CASES["lookahead"]), ("recycled", RECYCLED))
    ]
    recycled: list[Case] = [
        ("recycled", (*SHARDED, *RECYCLED), {}),
        ("recycled-ddp", (*WHOLE, *RECYCLED), {}),
    ]
    return [*sharded, *recycled, *stops]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("sharded")
    for problems in on_ranks(2, folder / "2", cases()):
        assert set(problems) == {"stopped-lookahead", "stopped-recycled"}, problems
    alone: list[Case] = [(name, (*WHOLE, *given), {}) for name, given in CASES.items()]
    assert on_ranks(1, folder / "1", alone) == [{}]
    return {1: folder / "1", 2: folder / "2"}


def assert_close(found: Path, expected: Path) -> None:
    other = final_state(expected)["trainer"]["model"]
    for key, value in final_state(found)["trainer"]["model"].items():
        torch.testing.assert_close(value, other[key], rtol=1e-3, atol=2e-5, msg=f"{found} {key}")


def tensors(state: object) -> list[Tensor]:
    found: list[Tensor] = []
    map_tensors(found.append, state)
    return found


def last_metrics(folder: Path) -> dict[str, float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    numbers = {key: value for line in lines for key, value in line.items()}
    return {key: value for key, value in numbers.items() if isinstance(value, float)}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_same_training_as_one_process(name: str, runs: dict[int, Path]) -> None:
    found, expected = runs[2] / name, runs[1] / name
    assert_close(found, expected)
    assert last_metrics(found) == pytest.approx(last_metrics(expected), rel=2e-3, abs=1e-4)
    results = [json.loads((run / "result.json").read_text()) for run in (found, expected)]
    for key in ("test_accuracy", "train_accuracy", "val_accuracy"):
        assert results[0][key] == pytest.approx(results[1][key], abs=0.02), key
    assert (found / "pictures.npz").exists()


@pytest.mark.slow
def test_recycled_trains_as_under_ddp(runs: dict[int, Path]) -> None:
    """The same pairing of copies and steps on the same number of ranks."""
    assert_close(runs[2] / "recycled", runs[2] / "recycled-ddp")


@pytest.mark.slow
def test_each_rank_writes_its_rows_alone(runs: dict[int, Path]) -> None:
    """Nobody holds the whole weights or buffers, and together they are those of whole tensors."""
    folder = runs[2] / "lars/checkpoints"
    newest = max(folder.glob("step_????????.pt"))
    files = [load_file(newest), load_file(next(folder.glob(f"{newest.stem}.rank_1_of_2.pt")))]
    sharded, plain = (final_state(runs[n] / "lars")["trainer"] for n in (2, 1))
    shapes = [{name: value.shape for name, value in s["model"].items()} for s in (sharded, plain)]
    assert shapes[0] == shapes[1]
    buffers = [state["optimizer"]["state"] for state in (sharded, plain)]
    assert buffers[0].keys() == buffers[1].keys() and len(buffers[0]) > 10
    for number, buffer in buffers[0].items():
        for key, value in buffer.items():
            torch.testing.assert_close(value, buffers[1][number][key], rtol=2e-3, atol=1e-4)
    whole = sum(map(Tensor.numel, tensors([sharded["model"], buffers[0]])))
    statistics = sum(map(Tensor.numel, tensors(files[0]["trainer"])))
    held = [sum(value.numel() for value in file["rows"].values()) for file in files]
    assert sum(held) + statistics == whole
    assert max(held) < 0.55 * whole and statistics < 0.05 * whole
    assert "trainer" not in files[1]


@pytest.mark.slow
def test_one_process_does_with_it_what_it_does_with_any_run(runs: dict[int, Path]) -> None:
    run = runs[2] / "lars"
    results = json.loads((run / "result.json").read_text())
    assert evaluate_run(run, steps=0)["test_accuracy"] == results["test_accuracy"]
    assert load_run(run, checkpoint="best").model is not None
    exported = load_exported(export_run(run, runs[2] / "lars.safetensors"))
    assert torch.equal(exported["fc.weight"], final_state(run)["trainer"]["model"]["fc.weight"])
    assert analyse_run(run, only=["gap"])["analyses"]["gap"]["step"] == results["steps"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lookahead", "recycled"])
def test_resumes_bit_for_bit(name: str, runs: dict[int, Path], tmp_path: Path) -> None:
    given = CASES.get(name, RECYCLED)
    shutil.copytree(runs[2] / f"stopped-{name}", tmp_path / "run")
    assert on_ranks(2, tmp_path, [("run", (*SHARDED, *given), {"resume": True})]) == [{}, {}]
    whole = runs[2] / name
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    found, expected = (final_state(run)["trainer"] for run in (tmp_path / "run", whole))
    assert_same_state(found["model"], expected["model"])
    assert_same_state(found["optimizer"]["state"], expected["optimizer"]["state"])


@pytest.mark.slow
@pytest.mark.parametrize(("size", "parallel"), [(1, "fsdp"), (4, "fsdp"), (2, "ddp")])
def test_goes_on_with_other_processes(
    size: int, parallel: str, runs: dict[int, Path], tmp_path: Path
) -> None:
    shutil.copytree(runs[2] / "stopped-lookahead", tmp_path / "run")
    given = (*SHARDED, *CASES["lookahead"], f"hardware.parallel={parallel}")
    again: list[Case] = [("run", given, {"resume": True})]
    assert on_ranks(size, tmp_path, again) == [{}] * size
    assert_close(tmp_path / "run", runs[1] / "lookahead")


@pytest.mark.slow
def test_what_is_damaged_or_was_not_finished_falls_back(
    runs: dict[int, Path], tmp_path: Path
) -> None:
    """A bit of rank 1's file is flipped, or its writer was killed: step 4 is gone on from."""
    for name in ("damaged", "killed"):
        shutil.copytree(runs[2] / "stopped-recycled", tmp_path / name)
        part = max((tmp_path / name / "checkpoints").glob("step_*.rank_1_of_2.pt"))
        content = bytearray(part.read_bytes())
        content[len(content) // 2] ^= 1
        part.unlink()
        (part if name == "damaged" else part.with_name(f".{part.name}.partial")).write_bytes(
            content
        )
    cases: list[Case] = [
        (name, (*SHARDED, *RECYCLED), {"resume": True}) for name in ("damaged", "killed")
    ]
    assert on_ranks(2, tmp_path, cases) == [{}, {}]
    whole = runs[2] / "recycled"
    for name in ("damaged", "killed"):
        metrics = (tmp_path / name / "metrics.jsonl").read_bytes()
        assert metrics == (whole / "metrics.jsonl").read_bytes()
        found, expected = (final_state(run)["trainer"] for run in (tmp_path / name, whole))
        assert_same_state(found["model"], expected["model"])


@pytest.mark.slow
def test_the_real_command(tmp_path: Path) -> None:
    process = start(tmp_path / "run", *SHARDED, *RECYCLED, "train.steps=3", ranks=2)
    printed, errors = finish(process)
    assert process.returncode == 0, errors
    assert printed.count("test accuracy") == 1


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("train.ema_decay=0.9", "train.ema_decay=null"),
        ("hardware.compile=true", "hardware.compile=false"),
        ("data.order_tail=keep", "data.order_tail=wrap or drop"),
    ],
)
def test_what_a_sharded_model_cannot_have(override: str, named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        recipe(*SHARDED, override)


@pytest.mark.parametrize(
    ("name", "blocks", "kind"),
    [
        ("cifar/resnet20", 9, "BasicBlock"),
        ("timm/resnet50", 16, "Bottleneck"),
        ("timm/vit_tiny_patch16_224", 12, "Block"),
        ("timm/convnext_atto", 12, "ConvNeXtBlock"),
        ("torchvision/resnet18", 8, "BasicBlock"),
    ],
)
def test_blocks_are_what_a_model_repeats(name: str, blocks: int, kind: str) -> None:
    model = create_model(name, in_chans=3, num_classes=10, options={})
    found = repeated_blocks(model)
    assert len(found) == blocks
    assert {type(block).__name__ for block in found} == {kind}


def test_blocks_of_blocks_are_the_inner_ones() -> None:
    inner = [nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in range(2)]
    assert repeated_blocks(nn.Sequential(*inner)) == [*inner[0], *inner[1]]
    assert repeated_blocks(nn.Sequential(nn.Linear(2, 2), nn.ReLU())) == []
    assert repeated_blocks(nn.Sequential(nn.ReLU(), nn.ReLU())) == []
