"""Checkpoints: whole or absent, read without executing anything, and the last ones kept.

A checkpoint is one file in torch's zip format. Its CRC sums find truncation and flipped bits;
``weights_only=True`` refuses every pickle that is not made of tensors and plain containers.
"""

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from conadv._files import link, write_atomic
from conadv.errors import CheckpointError
from conadv.trainer.distributed import World

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
    file is kept, and outlive it when it is pruned. A run on several devices adds a small file for
    each rank but the first, ``step_*.rank_R_of_N.pt``, with what is that rank's alone. A checkpoint
    counts once all its files are there, so the ranks need not wait for one another.

    Args:
        folder: An existing folder.
        keep: How many of the newest checkpoints to keep, at least 1.
        world: This process among those of the run.
    """

    def __init__(self, folder: Path, keep: int, world: World | None = None) -> None:
        self.folder = folder
        self.keep = keep
        self.world = world or World()
        self.last = folder / "last.pt"
        self.best = folder / "best.pt"

    def save(self, state: dict[str, Any], step: int, *, best: bool = False) -> Path:
        """Write this rank's file of the checkpoint of a step, then drop what is too old.

        Args:
            state: On rank 0 the state of the run, elsewhere what is the rank's own.
            step: The step.
            best: Whether it is the best so far; rank 0 names it so.

        Raises:
            CheckpointError: Writing failed; all earlier checkpoints are intact.
        """
        path = self.path(step, self.world.rank, self.world.size)
        save_checkpoint(path, {**state, "ranks": self.world.size})
        if self.world.main:
            link(path, self.last)
            if best:
                link(path, self.best)
            self._prune()
        return path

    def path(self, step: int, rank: int = 0, ranks: int = 1) -> Path:
        """Where a rank's part of a checkpoint is."""
        part = f".rank_{rank}_of_{ranks}" if rank else ""
        return self.folder / f"step_{step:08d}{part}.pt"

    def steps(self) -> list[Path]:
        """The step files, newest first."""
        found = [
            (m, p) for p in self.folder.glob("step_*.pt") if (m := _STEP_NAME.fullmatch(p.name))
        ]
        return [p for _, p in sorted(found, key=lambda pair: int(pair[0].group(1)), reverse=True)]

    def load_newest(
        self, own: Callable[[int, Callable[[int], dict[str, Any]]], dict[str, Any]] | None = None
    ) -> dict[str, Any] | None:
        """The newest checkpoint that every rank can read, or None when there never was one.

        Warns about each newer one that is damaged or was not finished.

        Args:
            own: ``own(ranks, read)`` puts together this rank's own state from what the ``ranks``
                of the run that wrote it had, ``read(rank)``; its outcome becomes ``state["own"]``.

        Raises:
            CheckpointError: There are checkpoints, and none can be read.
        """
        problem: CheckpointError | None = None
        for name in self.world.first([path.name for path in self.steps()]):
            found = self._try(self.folder / name, own)
            failed = [e for e in self.world.gather(_error_of(found)) if e is not None]
            if not failed and isinstance(found, dict):
                return found
            problem = failed[0]
            if self.world.main:
                warnings.warn(f"{problem} Trying the checkpoint before it.", stacklevel=2)
        if problem is not None:
            raise problem
        return None

    def _try(self, path: Path, own: Any) -> dict[str, Any] | CheckpointError:
        try:
            state = load_checkpoint(path)
            if own is not None:
                ranks = int(state["ranks"])

                def read(rank: int) -> dict[str, Any]:
                    if rank == 0:
                        return dict(state["own"])
                    step = int(state["step"])
                    return dict(load_checkpoint(self.path(step, rank, ranks))["own"])

                state["own"] = own(ranks, read)
        except CheckpointError as error:
            return error
        return state

    def _prune(self) -> None:
        complete = 0
        for path in self.steps():
            if complete >= self.keep:
                path.unlink(missing_ok=True)  # first: without it the parts mean nothing
                for part in self._parts(path):
                    part.unlink(missing_ok=True)
            elif len(self._parts(path)) == self.world.size - 1:
                complete += 1

    def _parts(self, path: Path) -> list[Path]:
        return list(self.folder.glob(f"{path.stem}.rank_*_of_*.pt"))


def _error_of(found: dict[str, Any] | CheckpointError) -> CheckpointError | None:
    return found if isinstance(found, CheckpointError) else None


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
