"""Weights to begin a run with, out of a file or another run's folder."""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import conadv
from conadv.errors import CheckpointError
from conadv.trainer.checkpoint.file import FORMAT
from conadv.trainer.checkpoint.load_run import load_run
from conadv.trainer.recipe import Recipe

WRAPPERS = ("state_dict", "model", "model_state_dict", "state_dict_ema")
"""Keys under which training scripts keep a model's state."""


def starting_weights(recipe: Recipe) -> dict[str, Tensor] | None:
    """The plain weights that ``model.weights`` names, or None.

    Of a run they are those that it evaluates. Nothing in a file can execute code.

    Raises:
        CheckpointError: There is no such file, or it holds no weights.
        RunFolderError: A folder without a run.
    """
    if recipe.model.weights is None:
        return None
    path = Path(recipe.model.weights).expanduser()
    if path.is_dir():
        saved = load_run(path, device="cpu")
        branch = saved.recipe.evaluation.branch if len(saved.branches) > 1 else None
        return dict(conadv.plain(saved.model, branch).state_dict())
    return _read(path)


def _read(path: Path) -> dict[str, Tensor]:
    field = f"model.weights={path}"
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load

            return load(path.read_bytes())
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{field}: {error.strerror or error}.") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{field}: it holds more than tensors, which could run code when read. Save the "
            "model's state_dict() alone."
        ) from error
    except Exception as error:  # of many kinds, by what is damaged
        raise CheckpointError(f"{field}: it cannot be read ({error}).") from error
    if isinstance(found, dict) and found.get("format") == FORMAT:
        raise CheckpointError(f"{field}: a checkpoint of a run. Give the run's folder instead.")
    for key in WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found:
        raise CheckpointError(f"{field}: it holds no state dict. Save the model's state_dict().")
    wrong = [name for name, value in found.items() if not isinstance(value, Tensor)]
    if wrong:
        raise CheckpointError(
            f"{field}: {wrong[0]} is no tensor. Save the model's state_dict() alone."
        )
    prefix = "module."  # of DataParallel and averaged models
    return {str(name).removeprefix(prefix): value for name, value in found.items()}
