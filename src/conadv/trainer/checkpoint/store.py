"""Checkpoints: whole or absent, read without executing anything, and the last ones kept.

A checkpoint is one file in torch's zip format with a checksum of all its bytes behind it
(`conadv.trainer.checkpoint.seal`); ``weights_only=True`` refuses every pickle that is not made of
tensors and plain containers.
"""

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from conadv._files import link, write_atomic
from conadv.errors import CheckpointError
from conadv.trainer.checkpoint.seal import Sealing, sealed_well
from conadv.trainer.distributed import World

FORMAT = "conadv-checkpoint"
VERSION = 1
_STEP_NAME = re.compile(r"step_(\d+)\.pt")
_PART_NAME = re.compile(r"rank_\d+_of_(\d+)")


class UnfinishedError(CheckpointError):
    """A checkpoint that not all ranks have written."""


class ForbiddenError(CheckpointError):
    """A checkpoint that is there, and that this user may not read."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write one checkpoint atomically.

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


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read one checkpoint onto the CPU; nothing in the file can execute code.

    Args:
        path: A file written by :func:`save_checkpoint`.

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
        raise CheckpointError(_damaged(path, str(error))) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is not a checkpoint of conadv. Give the run folder, or a file from its "
            "checkpoints folder; weights from elsewhere go into a model with load_state_dict."
        )
    if state.get("sealed", False) and not sealed:
        raise CheckpointError(_damaged(path, "its checksum is missing"))
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
        """The newest checkpoint that every rank can read, or None when none was ever finished.

        Warns about each newer one that is damaged or was not finished.

        Args:
            own: ``own(ranks, read)`` puts together this rank's own state from what the ``ranks``
                of the run that wrote it had, ``read(rank)``; its outcome becomes ``state["own"]``.

        Raises:
            CheckpointError: There are finished checkpoints, and none can be read.
            ForbiddenError: One may not be read: to take an earlier one would lose what it holds.
        """
        problem: CheckpointError | None = None
        for name in self.world.first([path.name for path in self.steps()]):
            found = self._try(self.folder / name, own)
            problems = self.world.gather(found if isinstance(found, CheckpointError) else None)
            failed = [e for e in problems if e is not None]
            if not failed and isinstance(found, dict):
                return found
            for error in failed:
                if isinstance(error, ForbiddenError):
                    raise error
            lacking = [e for e in failed if isinstance(e, UnfinishedError)]
            newest = (lacking or failed)[0]
            if self.world.main:
                warnings.warn(f"{newest} Trying the checkpoint before it.", stacklevel=2)
            problem = problem or (None if lacking else newest)
        if problem is not None:
            raise problem
        return None

    def _try(self, path: Path, own: Any) -> dict[str, Any] | CheckpointError:
        try:
            state = self._read_once(path)
            if own is not None:
                ranks = int(state["ranks"])

                def read(rank: int) -> dict[str, Any]:
                    if rank == 0:
                        return dict(state["own"])
                    part = self.path(int(state["step"]), rank, ranks)
                    if not part.exists():
                        raise UnfinishedError(
                            f"{path} was not finished: the part of rank {rank} of {ranks} is "
                            "missing."
                        )
                    return dict(load_checkpoint(part)["own"])

                state["own"] = own(ranks, read)
        except CheckpointError as error:
            return error
        except (KeyError, TypeError, ValueError, IndexError) as error:
            return CheckpointError(_damaged(path, f"{type(error).__name__}: {error}"))
        return state

    def _read_once(self, path: Path) -> dict[str, Any]:
        """A checkpoint's main file, which rank 0 reads and hands to all: it may be large."""
        found: dict[str, Any] | CheckpointError | None = None
        if self.world.main:
            try:
                found = load_checkpoint(path)
            except CheckpointError as error:
                found = error
        sent = found
        if isinstance(found, dict) and found.get("ranks") == self.world.size:
            sent = {**found, "own": None}  # of rank 0 alone
        received = self.world.spread(sent)
        if isinstance(received, CheckpointError):
            raise received
        assert received is not None
        return dict(found if isinstance(found, dict) else received)

    def _prune(self) -> None:
        complete = 0
        for number, path in enumerate(self.steps()):
            parts = self._parts(path)
            finished = self._finished(parts)
            # One of which parts are missing while later ones are written was given up.
            given_up = bool(parts) and not finished and number > self.keep + 1
            if complete >= self.keep or given_up:
                path.unlink(missing_ok=True)  # first: without it the parts mean nothing
                for part in parts:
                    part.unlink(missing_ok=True)
            elif finished:
                complete += 1

    def _finished(self, parts: list[Path]) -> bool:
        """Whether every rank has written; the run may have had another number of them."""
        sizes = [int(found[1]) for part in parts if (found := _PART_NAME.search(part.name))]
        return self.world.size == 1 if not sizes else any(sizes.count(n) == n - 1 for n in sizes)

    def _parts(self, path: Path) -> list[Path]:
        return list(self.folder.glob(f"{path.stem}.rank_*_of_*.pt"))


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
                raise CheckpointError(_damaged(path, f"wrong checksum of {broken}"))
    except PermissionError as error:
        raise ForbiddenError(
            f"{path} may not be read: {error.strerror}. Correct the permissions of the file and "
            "its folder."
        ) from error
    except CheckpointError:
        raise
    except Exception as error:  # zipfile has many words for damage
        raise CheckpointError(_damaged(path, str(error))) from error
    if sealed is False:
        raise CheckpointError(_damaged(path, "wrong checksum"))
    return sealed is True


def _damaged(path: Path, detail: str) -> str:
    first = detail.splitlines()[0] if detail else "unreadable"
    return (
        f"{path} is truncated, damaged or not a checkpoint ({first}). Resuming goes on from the "
        "newest checkpoint of the run that is in order; the file can be restored from a copy."
    )
