"""Whether the ranks of a run were started alike."""

import json
import zlib
from pathlib import Path

import torch

from conadv.trainer.build import Built
from conadv.trainer.distributed import World
from conadv.trainer.distributed.agreement import (
    check_agreement,
    code_checksum,
    weights_checksum,
)
from conadv.trainer.recipe import Recipe


def check_alike(recipe: Recipe, built: Built, root: Path, world: World) -> None:
    """Raise on every rank if one has another recipe, program, data set, step or other weights."""
    if world.size == 1:
        return
    text = json.dumps(recipe.model_dump(mode="json"), sort_keys=True)
    facts = {
        "the recipe": f"{zlib.crc32(text.encode()):08x}",
        "conadv's code": code_checksum(),
        "torch": torch.__version__,
        "the data set": built.splits.facts.fingerprint[:12],
        "the number of training images": built.splits.train_count,
        "the step": built.trainer.step,
        "the weights": weights_checksum(built.trainer.model),
    }
    check_agreement(
        facts,
        world,
        "Start every process with the same command, the same installation and the same data; "
        f"{root} must be the same folder for all of them.",
    )
