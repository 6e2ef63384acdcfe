"""Checkpoints: whole or absent, read without executing anything, and the last ones kept.

A checkpoint is one file in torch's zip format. Its CRC sums find truncation and flipped bits;
``weights_only=True`` refuses every pickle that is not made of tensors and plain containers.
"""

import os
import pickle
import re
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from conadv.errors import CheckpointError
from conadv.training.files import write_atomic

FORMAT = "conadv-checkpoint"
VERSION = 1
_STEP_NAME = re.compile(r"step_(\d+)\.pt")


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write one checkpoint atomically.

    Args:
        path: The file to create or replace.
        state: Tensors, numbers, strings, None, and lists and dicts of them.

    Raises:
        CheckpointError: The disk is full or not writable. What ``path`` held before is intact.
    """
    whole = {"format": FORMAT, "version": VERSION, **state}
    try:
        write_atomic(path, lambda file: _torch_save(whole, file))
    except OSError as error:
        raise CheckpointError(
            f"could not write {path}: {error.strerror or error}. Earlier checkpoints are "
            "untouched. Free some space or correct the permissions, then resume the run."
        ) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read one checkpoint onto the CPU; nothing in the file can execute code.

    Args:
        path: A file written by :func:`save_checkpoint`.

    Raises:
        CheckpointError: The file is missing, truncated, damaged, unsafe, or not one of ours.
    """
    _check_archive(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} asks to run code or to build objects that are not tensors, which a "
            "checkpoint of conadv never does. It was refused and nothing was run. "
            "Do not load it elsewhere unless you trust where it comes from."
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
        raise CheckpointError(_damaged(path, str(error))) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is not a checkpoint of conadv. Give the run folder, or a file from its "
            "checkpoints folder; weights from elsewhere go into a model with load_state_dict."
        )
    if state.get("version") != VERSION:
        raise CheckpointError(
            f"{path} has checkpoint version {state.get('version')}; this conadv reads version "
            f"{VERSION}. Use the version of conadv named in the run's environment.json."
        )
    return state


class CheckpointStore:
    """The checkpoints of one run: ``step_*.pt`` (the newest ``keep``), ``last.pt``, ``best.pt``.

    ``last.pt`` and ``best.pt`` are further names of a step's file, so they cost no space while that
    file is kept, and outlive it when it is pruned.

    Args:
        folder: An existing folder.
        keep: How many of the newest step files to keep, at least 1.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep
        self.last = folder / "last.pt"
        self.best = folder / "best.pt"

    def save(self, state: dict[str, Any], step: int, *, best: bool = False) -> Path:
        """Write the checkpoint of a step, then drop the ones that are too old.

        Raises:
            CheckpointError: Writing failed; all earlier checkpoints are intact.
        """
        path = self.folder / f"step_{step:08d}.pt"
        save_checkpoint(path, state)
        _also_named(path, self.last)
        if best:
            _also_named(path, self.best)
        for old in self.steps()[self.keep :]:
            old.unlink(missing_ok=True)
        return path

    def steps(self) -> list[Path]:
        """The step files, newest first."""
        found = [
            (m, p) for p in self.folder.glob("step_*.pt") if (m := _STEP_NAME.fullmatch(p.name))
        ]
        return [p for _, p in sorted(found, key=lambda pair: int(pair[0].group(1)), reverse=True)]

    def load_newest(self) -> dict[str, Any] | None:
        """The newest checkpoint that can be read, or None when there never was one.

        Warns about each newer one that is damaged.

        Raises:
            CheckpointError: There are checkpoints, and none can be read.
        """
        problem: CheckpointError | None = None
        for path in self.steps():
            try:
                return load_checkpoint(path)
            except CheckpointError as error:
                problem = error
                warnings.warn(f"{error} Trying the checkpoint before it.", stacklevel=2)
        if problem is not None:
            raise problem
        return None


def _torch_save(state: dict[str, Any], file: BinaryIO) -> None:
    try:
        torch.save(state, file)
    except RuntimeError as error:
        # torch's zip writer reports a failed write of the file object as a RuntimeError.
        raise OSError(
            f"the file could not be written whole ({str(error).splitlines()[0]})"
        ) from error


def _check_archive(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(
            f"there is no checkpoint {path}. Give the folder of a run that has one."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(_damaged(path, str(error))) from error
    if broken is not None:
        raise CheckpointError(_damaged(path, f"wrong checksum of {broken}"))


def _damaged(path: Path, detail: str) -> str:
    first = detail.splitlines()[0] if detail else "unreadable"
    return (
        f"{path} is truncated, damaged or not a checkpoint ({first}). Delete it and resume: "
        "the run then continues from the checkpoint before it."
    )


def _also_named(path: Path, name: Path) -> None:
    temporary = name.with_name(name.name + ".partial")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, temporary)
    os.replace(temporary, name)
