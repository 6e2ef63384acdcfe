"""Which images a run trains on, holds out and tests on."""

import pytest
import torch

from conadv.errors import RecipeError
from conadv.trainer.data import load_dataset
from conadv.trainer.input.load import load_splits
from conadv.trainer.recipe import Recipe, load_recipe

CPU = torch.device("cpu")
PART = ("data.train_images=64", "data.validation=0.25", "data.test_unused=true")


def smoke(*overrides: str) -> Recipe:
    return load_recipe("smoke", list(overrides))


def test_unused_training_images_join_the_test_images() -> None:
    recipe = smoke(*PART)
    splits = load_splits(recipe, CPU)
    whole = load_dataset("synthetic", **recipe.data.synthetic.model_dump())
    validation = splits.validation()
    assert validation is not None
    assert (splits.train_count, len(validation)) == (48, 16)
    tested = splits.test().resident().images
    own = len(whole.test_images)
    assert torch.equal(tested[:own], whole.test_images)
    used = torch.cat([splits.train().resident().images, validation.resident().images])
    everything = torch.cat([used, tested[own:]]).flatten(1)
    assert len(tested) == own + len(whole.train_images) - 64
    assert sorted(everything.tolist()) == sorted(whole.train_images.flatten(1).tolist())


def test_runs_of_one_split_seed_share_their_images() -> None:
    shared = [load_splits(smoke(*PART, "data.split_seed=3", f"seed={s}"), CPU) for s in (0, 1)]
    own = [load_splits(smoke(*PART, f"seed={s}"), CPU) for s in (0, 3)]
    first, second = (splits.test().resident().images for splits in shared)
    assert torch.equal(first, second)
    assert torch.equal(own[1].test().resident().images, first), "null: the seed of the run"
    assert not torch.equal(own[0].test().resident().images, first)


def test_there_must_be_unused_images() -> None:
    for overrides in (["data.train_images=null"], ["data.dataset=files", "data.root=there"]):
        with pytest.raises(RecipeError, match="data.test_unused=true with data.dataset="):
            smoke(*PART, *overrides)
