"""One file of a checkpoint: whole or absent, and read without executing anything.

It is in torch's zip format with a checksum of all its bytes behind it
(`conadv.trainer.checkpoint.seal`); ``weights_only=True`` refuses every pickle that is not made of
tensors and plain containers.
"""

import pickle
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from conadv._files import write_atomic
from conadv.errors import CheckpointError
from conadv.trainer.checkpoint.seal import Sealing, sealed_well

FORMAT = "conadv-checkpoint"
VERSION = 1


class ForbiddenError(CheckpointError):
    """A checkpoint that is there, and that this user may not read."""


def save_file(path: Path, state: dict[str, Any]) -> None:
    """Write one file atomically.

    Args:
        path: The file to create or replace.
        state: Tensors, numbers, strings, None, and lists and dicts of them.

    Raises:
        CheckpointError: The disk is full or not writable. What ``path`` held before is intact.
    """
    whole = {"format": FORMAT, "version": VERSION, "sealed": True, **state}
    try:
        write_atomic(path, lambda file: _torch_save(whole, file))
    except OSError as error:
        raise CheckpointError(
            f"could not write {path}: {error.strerror or error}. Earlier checkpoints are "
            "untouched. Free some space or correct the permissions, then resume the run."
        ) from error


def load_file(path: Path) -> dict[str, Any]:
    """Read one file onto the CPU; nothing in the file can execute code.

    Args:
        path: A file written by :func:`save_file`.

    Raises:
        CheckpointError: The file is missing, truncated, damaged, unsafe, or not one of ours.
        ForbiddenError: It is there and may not be read.
    """
    sealed = _check_bytes(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} asks to run code or to build objects that are not tensors, which a "
            "checkpoint of conadv never does. It was refused and nothing was run. "
            "Do not load it elsewhere unless you trust where it comes from."
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # torch and zlib have many words for damage
        raise CheckpointError(damaged(path, str(error))) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is not a checkpoint of conadv. Give the run folder, or a file from its "
            "checkpoints folder; weights from elsewhere go into a model with load_state_dict."
        )
    if state.get("sealed", False) and not sealed:
        raise CheckpointError(damaged(path, "its checksum is missing"))
    if state.get("version") != VERSION:
        raise CheckpointError(
            f"{path} has checkpoint version {state.get('version')}; this conadv reads version "
            f"{VERSION}. Use the version of conadv named in the run's environment.json."
        )
    return state


def _torch_save(state: dict[str, Any], file: BinaryIO) -> None:
    try:
        sealing = Sealing(file)
        torch.save(state, cast(BinaryIO, sealing))
        sealing.finish()
    except RuntimeError as error:
        # torch's zip writer reports a failed write of the file object as a RuntimeError.
        raise OSError(
            f"the file could not be written whole ({str(error).splitlines()[0]})"
        ) from error


def _check_bytes(path: Path) -> bool:
    """Look for damage; whether the file has a checksum, which those of earlier versions lack."""
    if not path.is_file():
        raise CheckpointError(
            f"there is no checkpoint {path}. Give the folder of a run that has one."
        )
    try:
        sealed = sealed_well(path)
        if sealed is None:
            with zipfile.ZipFile(path) as archive:
                broken = archive.testzip()
            if broken is not None:
                raise CheckpointError(damaged(path, f"wrong checksum of {broken}"))
    except PermissionError as error:
        raise ForbiddenError(
            f"{path} may not be read: {error.strerror}. Correct the permissions of the file and "
            "its folder."
        ) from error
    except CheckpointError:
        raise
    except Exception as error:  # zipfile has many words for damage
        raise CheckpointError(damaged(path, str(error))) from error
    if sealed is False:
        raise CheckpointError(damaged(path, "wrong checksum"))
    return sealed is True


def damaged(path: Path, detail: str) -> str:
    """What to say of a file of which something is not as it was written."""
    first = detail.splitlines()[0] if detail else "unreadable"
    return (
        f"{path} is truncated, damaged or not a checkpoint ({first}). Resuming goes on from the "
        "newest checkpoint of the run that is in order; the file can be restored from a copy."
    )
