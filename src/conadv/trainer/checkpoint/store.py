"""The checkpoints of a run: written by its ranks, each its own part, and the last ones kept."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conadv._files import link
from conadv.errors import CheckpointError
from conadv.trainer.checkpoint.file import ForbiddenError, damaged, load_file, save_file
from conadv.trainer.checkpoint.rows import join_rows
from conadv.trainer.distributed import World

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_STEP_NAME = re.compile(r"step_(\d+)\.pt")
_PART_NAME = re.compile(r"rank_\d+_of_(\d+)")


class UnfinishedError(CheckpointError):
    """A checkpoint that not all ranks have written."""


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint's shared state, its tensors whole, on a process on its own.

    Of a run whose weights lie in parts this puts them together from the files beside `path`.

    Args:
        path: The main file: what rank 0 has written, or another name of it.

    Raises:
        CheckpointError: A file is missing, damaged, unsafe, or not one of ours.
        ForbiddenError: One may not be read.
    """
    state = _Parts(path, load_file(path)).joined(None)
    return {key: value for key, value in state.items() if key not in ("rows", "attempt")}


class CheckpointStore:
    """The checkpoints of one run: ``step_*.pt`` (the newest ``keep``), ``last.pt``, ``best.pt``.

    ``last.pt`` and ``best.pt`` are further names of a step's file, so they cost no space while that
    file is kept, and outlive it when it is pruned. A run on several devices adds a file for each
    rank but the first, ``step_*.rank_R_of_N.pt``, with what is that rank's alone: what is pending,
    and its rows of weights that lie in parts, which the best checkpoint keeps under names of its
    own (``best_*.rank_R_of_N.pt``). A checkpoint counts once all its files are there, so the ranks
    need not wait for one another.

    Args:
        folder: An existing folder.
        keep: How many of the newest checkpoints to keep, at least 1.
        world: This process among those of the run.
        attempt: Tells files of this launch from those that one before has left; None, as in
            files that nobody will mix up.
    """

    def __init__(
        self, folder: Path, keep: int, world: World | None = None, attempt: str | None = None
    ) -> None:
        self.folder = folder
        self.keep = keep
        self.world = world or World()
        self.attempt = attempt
        self.last = folder / "last.pt"
        self.best = folder / "best.pt"
        self._new_best: tuple[Path, bool] | None = None
        """A step's file that is to be called the best, and whether it needs its parts."""

    def save(self, state: dict[str, Any], step: int, *, best: bool = False) -> Path:
        """Write this rank's file of the checkpoint of a step, then drop what is too old.

        Args:
            state: On rank 0 the state of the run, elsewhere what is the rank's own; ``"rows"``, if
                there are any, are those of `take_rows`.
            step: The step.
            best: Whether it is the best so far; rank 0 names it so when all have written.

        Raises:
            CheckpointError: Writing failed; all earlier checkpoints are intact.
        """
        path = self.path(step, self.world.rank, self.world.size)
        about = {"ranks": self.world.size, "attempt": self.attempt}
        sharded = bool(state.get("rows"))
        save_file(path, {**state, **about, "sharded": sharded, "best": best})
        if self.world.main:
            link(path, self.last)
            if best:
                self._new_best = path, sharded
            self.name_best()
            self._prune()
        return path

    def name_best(self, *, failed: bool = False) -> None:
        """Name the best checkpoint, if every rank has written its part of it by now.

        Args:
            failed: Whether a rank could not: the one before stays the best.
        """
        if failed:
            self._new_best = None
        if self._new_best is None:
            return
        path, needs_parts = self._new_best
        parts = self._parts(path)
        if not self._finished(parts):
            return
        # Before the name is given, so that whoever reads the best one finds all of it.
        step = path.stem.removeprefix("step_")
        for part in parts if needs_parts else []:
            link(part, part.with_name(part.name.replace("step_", "best_", 1)))
        link(path, self.best)
        for part in self.folder.glob("best_*.rank_*_of_*.pt"):
            if not part.name.startswith(f"best_{step}."):
                part.unlink(missing_ok=True)
        self._new_best = None

    def go_on(self, state: dict[str, Any] | None) -> None:
        """Make the folder what it was when a checkpoint was written, of which the run goes on.

        Parts of later ones are removed: they would be taken for parts of those still to come. Rank
        0 alone calls it, before any rank writes.
        """
        step = 0 if state is None else int(state["step"])
        for part in self.folder.glob("step_*.rank_*_of_*.pt"):
            if int(part.name.split(".")[0].removeprefix("step_")) > step:
                part.unlink(missing_ok=True)
        if state is not None and state.get("best"):  # the launch may have ended before this
            self._new_best = self.path(step), bool(state.get("sharded"))
            self.name_best()

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
        self,
        own: Callable[[int, Callable[[int], dict[str, Any]]], dict[str, Any]] | None = None,
        mesh: "DeviceMesh | None" = None,
    ) -> dict[str, Any] | None:
        """The newest checkpoint that every rank can read, or None when none was ever finished.

        Warns about each newer one that is damaged or was not finished.

        Args:
            own: ``own(ranks, read)`` puts together this rank's own state from what the ``ranks``
                of the run that wrote it had, ``read(rank)``; its outcome becomes ``state["own"]``.
            mesh: The ranks over which the weights lie in parts; None gives every rank whole ones.

        Raises:
            CheckpointError: There are finished checkpoints, and none can be read.
            ForbiddenError: One may not be read: to take an earlier one would lose what it holds.
        """
        problem: CheckpointError | None = None
        for name in self.world.first([path.name for path in self.steps()]):
            found = self._try(self.folder / name, own, mesh)
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

    def _try(
        self, path: Path, own: Any, mesh: "DeviceMesh | None"
    ) -> dict[str, Any] | CheckpointError:
        try:
            parts = _Parts(path, self._read_once(path, mesh))
            state = parts.joined(mesh)
            if own is not None:
                state["own"] = own(int(state["ranks"]), lambda rank: dict(parts.of(rank)["own"]))
        except CheckpointError as error:
            return error
        except (KeyError, TypeError, ValueError, IndexError) as error:
            return CheckpointError(damaged(path, f"{type(error).__name__}: {error}"))
        return state

    def _read_once(self, path: Path, mesh: "DeviceMesh | None") -> dict[str, Any]:
        """A checkpoint's main file, which rank 0 reads and hands to all: it may be large.

        Weights that no rank is to hold in parts are put together on the way.
        """
        found: dict[str, Any] | CheckpointError | None = None
        if self.world.main:
            try:
                found = load_file(path)
                if mesh is None:
                    found = _Parts(path, found).joined(None)
            except CheckpointError as error:
                found = error
        sent = found
        if isinstance(found, dict):
            sent = {**found, "rows": None}
            if found.get("ranks") == self.world.size:
                sent["own"] = None  # of rank 0 alone
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


class _Parts:
    """The files of one checkpoint, of which the last one read stays in memory.

    Args:
        path: The main file.
        state: What it holds, perhaps without what is rank 0's alone.
    """

    def __init__(self, path: Path, state: dict[str, Any]) -> None:
        self.path, self.state = path, state
        self._last: tuple[int, dict[str, Any]] | None = None

    def joined(self, mesh: "DeviceMesh | None") -> dict[str, Any]:
        """The state, with the tensors that lie in parts as this rank is to have them.

        Raises:
            CheckpointError: A part is missing or damaged.
        """
        try:
            ranks = int(self.state.get("ranks", 1))
            trainer = join_rows(
                self.state.get("trainer"), ranks, lambda rank: self.of(rank, "rows")["rows"], mesh
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise CheckpointError(damaged(self.path, f"{type(error).__name__}: {error}")) from error
        return {**self.state, "trainer": trainer} if "trainer" in self.state else self.state

    def of(self, rank: int, needed: str = "own") -> dict[str, Any]:
        """A rank's file.

        Raises:
            UnfinishedError: It has not been written.
            CheckpointError: It is damaged.
        """
        if rank == 0 and self.state.get(needed) is not None:
            return self.state
        if self._last is None or self._last[0] != rank:
            self._last = rank, load_file(self.path) if rank == 0 else self._load(rank)
        return self._last[1]

    def _load(self, rank: int) -> dict[str, Any]:
        step, ranks = int(self.state["step"]), int(self.state["ranks"])
        for name in ("step", "best"):
            part = self.path.with_name(f"{name}_{step:08d}.rank_{rank}_of_{ranks}.pt")
            if part.exists():
                state = load_file(part)
                if state.get("attempt") == self.state.get("attempt"):
                    return state
        raise UnfinishedError(
            f"{self.path} was not finished: the part of rank {rank} of {ranks} is missing."
        )
