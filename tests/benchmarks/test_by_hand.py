"""The trainer's step beside a loop written by hand, at a tiny size."""

import json
from pathlib import Path

import by_hand
import pytest
import torch

from conadv.trainer.build import build
from conadv.trainer.input.resident_splits import ResidentSplits
from conadv.trainer.recipe import load_recipe

TINY = [
    *("data.dataset=synthetic", "data.synthetic.size=16", "data.synthetic.train_images=64"),
    *("data.train_images=64", "data.validation=0", "data.test_unused=false"),
    *("batch.global_batch=8", "batch.micro_batch=8", "batch.norm_group=8"),
    *("hardware.precision=fp32", "hardware.device=cpu", "model.name=cifar/resnet8"),
]


@pytest.fixture
def both() -> tuple[by_hand.ByHand, torch.nn.Module, ResidentSplits]:
    recipe = load_recipe("cifar10-5k-resnet9-125", TINY)
    built = build(recipe)
    assert isinstance(built.splits, ResidentSplits)
    loop = by_hand.ByHand(recipe, built.splits.dataset, built.splits.train_indices)
    return loop, built.trainer.model, built.splits


def test_both_begin_with_the_same_network_and_the_loop_trains(both) -> None:
    loop, model, _ = both
    for own, other in zip(loop.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(own, other)
    losses = [float(loop.step()) for _ in range(120)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    assert loop.optimizer.param_groups[0]["lr"] < loop.peak


def test_the_loop_crops_flips_and_standardises(both) -> None:
    loop, _, splits = both
    image = splits.dataset.train_images[splits.train_indices[5]].float()
    made = loop.augmented(torch.full((200,), 5)) * loop.std[:, None, None]
    pixels = (made + loop.mean[:, None, None]).round()
    assert made.shape == (200, 3, 16, 16)
    assert made.is_contiguous(memory_format=torch.channels_last)
    padded = torch.nn.functional.pad(image, (4,) * 4)
    crops = padded.unfold(1, 16, 1).unfold(2, 16, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    either = torch.stack([crops, crops.flip(-1)])
    seen = (pixels[:, None, None] == either).flatten(3).all(-1).nonzero()
    assert seen[:, 0].unique().tolist() == list(range(200))  # each is one of them
    assert seen[:, 1].unique().numel() == 2 and seen[:, 2].unique().numel() > 60


def test_it_measures_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "found.json"
    missed = by_hand.main(["--rounds", "3", "--steps", "2", "--json", str(path), *TINY])
    found = json.loads(path.read_text())
    assert found["batch"] == 8 and found["precision"] == "float32" and found["goal"] == 0.95
    for measured in found["over_loop"].values():
        assert 0 < measured["least"] <= measured["median"] <= measured["most"]
    assert all(rate > 0 for rate in found["images_per_second"].values())
    assert missed == (found["over_loop"]["wall"]["median"] < 0.95)
    assert ("MISSED" in capsys.readouterr().out) == bool(missed)
