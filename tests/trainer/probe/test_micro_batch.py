"""Batch sizes that follow from others: --batch, --micro-batch, auto."""

import json
from pathlib import Path
from typing import Any

import pytest

from conadv.errors import RecipeError
from conadv.trainer.distributed import World
from conadv.trainer.probe import micro_batch as module
from conadv.trainer.probe.micro_batch import candidates, fit, with_micro_batch
from conadv.trainer.recipe import load_recipe
from conadv.trainer.recipe.load import resized
from conadv.trainer.run.folder import RunFolder
from support.runs import quietly, tiny

GIB = 2**30


def big(*overrides: str) -> Any:
    sizes = ["batch.global_batch=98304", "batch.micro_batch=null"]
    return tiny(*sizes, *overrides)


def test_another_batch_keeps_what_divides_it() -> None:
    recipe = load_recipe("fashion-resnet8-recycled")  # 500 = 5 x 100
    sizes = resized(recipe, 8000).batch
    assert (sizes.global_batch, sizes.micro_batch, sizes.norm_group) == (8000, 100, 100)
    sizes = resized(recipe, 98304).batch
    assert (sizes.global_batch, sizes.micro_batch, sizes.norm_group) == (98304, 96, 96)
    sizes = resized(recipe, 1000, 250).batch
    assert (sizes.global_batch, sizes.micro_batch, sizes.norm_group) == (1000, 250, 50)
    assert resized(recipe, None) == with_micro_batch(recipe, 100, 100)


@pytest.mark.parametrize(("total", "micro"), [(0, None), (-5, None), (100, 0)])
def test_sizes_below_one(total: int, micro: int | None) -> None:
    with pytest.raises(RecipeError, match="from 1"):
        resized(tiny(), total, micro)


def test_a_micro_batch_that_does_not_divide() -> None:
    with pytest.raises(RecipeError, match="not a multiple"):
        resized(tiny(), 100, 33)


def test_candidates_are_whole_groups_of_a_rank() -> None:
    recipe = tiny("batch.global_batch=48", "batch.micro_batch=8", "batch.norm_group=4")
    assert candidates(recipe, 1) == [4, 8, 12, 16, 24, 48]
    assert candidates(recipe, 2) == [4, 8, 12, 24]
    with pytest.raises(RecipeError, match="multiple of 20"):
        candidates(recipe, 5)


def measured(monkeypatch: pytest.MonkeyPatch, free: int, base: int, per_image: int) -> list[int]:
    tried: list[int] = []

    def measure(recipe: Any, size: int, device: Any) -> int:
        tried.append(size)
        return base + per_image * size

    monkeypatch.setattr(module, "_measure", measure)
    monkeypatch.setattr(module, "_available", lambda device, world: free)
    return tried


def test_the_largest_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = measured(monkeypatch, 10 * GIB, GIB, GIB // 512)
    found = fit(big(), World())
    # 0.8 * 10 GiB - 1 GiB at 1/512 GiB per image: 3,584 images; the largest divisor below it
    assert found.micro_batch == 3072 and found.norm_group == 128
    assert found.predicted == GIB + 6 * GIB
    assert tried == [128, 256]
    assert "micro-batch 3,072, in normalisation groups of 128: about 7.00 GiB" in str(found)


def test_nothing_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, GIB, GIB, GIB // 512)
    with pytest.raises(RecipeError, match=r"micro-batch of 128 images takes about .* lower"):
        fit(big(), World())


@pytest.mark.slow
def test_auto_is_measured_trained_with_and_kept(tmp_path: Path) -> None:
    recipe = tiny("batch.global_batch=32", "batch.norm_group=4", "train.steps=2")
    quietly(recipe, tmp_path / "run", fit_micro_batch=True)
    batch = load_recipe(RunFolder(tmp_path / "run").recipe).batch
    assert (batch.micro_batch, batch.norm_group) == (32, 4)  # this much fits everywhere
    result = quietly(recipe, tmp_path / "run", fit_micro_batch=True, resume=True)
    assert result.status == "finished"


def test_a_trial_that_fails_says_why() -> None:
    with pytest.raises(RecipeError, match="trying a micro-batch of 64 images failed: .*fresh"):
        module._measure(tiny(), 64, module.torch.device("cpu"))


@pytest.mark.slow
def test_a_trace_of_a_few_steps(tmp_path: Path) -> None:
    path = tmp_path / "traces/trace.json"
    quietly(tiny("train.steps=9"), tmp_path / "run", trace=path)
    events = json.loads(path.read_text())["traceEvents"]
    names = [event.get("name", "") for event in events]
    assert sum(name.startswith("ProfilerStep") for name in names) >= 3
    assert any("convolution" in name for name in names)
