"""Many architectures one after the other: each in a process that may die, the rows on disk."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import yaml

from conadv._files import write_json
from conadv.errors import ConadvError
from conadv.lab.bench.model_check import CheckedModel, check_model
from conadv.trainer.models.names import check_library
from conadv.trainer.models.zoo import import_library

LIST = "checked_models.yaml"
SAME = ("torch", "torchvision", "timm", "conadv", "cpu")
"""What must be as in a file of results for it to be continued."""

Check = Callable[..., CheckedModel]


@dataclass(frozen=True)
class Target:
    """An architecture to check, with the smallest images it takes."""

    name: str
    image_size: int = 64
    options: dict[str, Any] = field(default_factory=dict)


def listed() -> list[Target]:
    """The architectures that come with the package, in the order of their names."""
    content = yaml.safe_load(files("conadv.lab.bench").joinpath(LIST).read_text(encoding="utf-8"))
    return [_target(name, value) for name, value in sorted(content.items())]


def targets(names: Sequence[str]) -> list[Target]:
    """Targets of these names: as in the list, otherwise at the size they were made for.

    Raises:
        RecipeError: a name without library, or one of no library.
    """
    known = {target.name: target for target in listed()}
    found = []
    for name in names:
        check_library(name)
        found.append(known.get(name) or Target(name, _usual_size(name)))
    return found


def _target(name: str, value: int | Mapping[str, Any]) -> Target:
    """``NAME: 64`` or ``NAME: {size: 64, options: {img_size: 64}}``."""
    if isinstance(value, int):
        return Target(name, value)
    return Target(name, value["size"], dict(value.get("options", {})))


def _usual_size(name: str) -> int:
    library, _, short = name.partition("/")
    if library == "cifar":
        return 32
    if library == "timm":
        timm = import_library("timm")
        known = timm.get_pretrained_cfg(short) if timm.is_model(short.partition(".")[0]) else None
        if known is not None:
            return int(known.input_size[-1])
    return 224


def check_models(
    wanted: Iterable[Target], *, time_limit: float = 120.0, check: Check = check_model
) -> Iterator[CheckedModel]:
    """Check one after the other; a model that hangs, or kills its process, is a row as well.

    Args:
        wanted: what to check.
        time_limit: seconds per model; a process over it is ended, and the next model gets a new
            one.
        check: called in the other process with name, image size and options; importable there.
    """
    worker: _Worker | None = None
    try:
        for target in wanted:
            worker = worker or _Worker(check)
            row = worker.ask(target, time_limit)
            if row is None:
                reason, worker = worker.end(time_limit), None
                row = CheckedModel(
                    target.name, False, reason, target.image_size, dict(target.options)
                )
            yield row
    finally:
        if worker is not None:
            worker.stop()


class _Worker:
    """The other process. Started anew rather than forked: a fork would copy torch's threads."""

    def __init__(self, check: Check) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, check), daemon=True)
        self._process.start()
        theirs.close()
        # Importing torch, timm and torchvision is not the model's time.
        self._ready = self._pipe.poll(600) and self._received() is True

    def ask(self, target: Target, time_limit: float) -> CheckedModel | None:
        """The row, or None if there came none: too late, or the process is gone."""
        try:
            self._pipe.send(target)
        except OSError:
            return None
        if not self._ready or not self._pipe.poll(time_limit):
            return None
        row = self._received()
        return row if isinstance(row, CheckedModel) else None

    def end(self, time_limit: float) -> str:
        """Why there was no row; the process is gone afterwards."""
        self._process.join(1)
        code = self._process.exitcode
        self.stop()
        if code is None:
            return f"over the time limit of {time_limit:g} s"
        signal = f"signal {-code}" if code < 0 else f"exit status {code}"
        return f"its process ended with {signal}" + (", out of memory?" if code == -9 else "")

    def stop(self) -> None:
        """End the process, at once."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _received(self) -> Any:
        try:
            return self._pipe.recv()
        except (EOFError, OSError):
            return None


def _work(pipe: Connection, check: Check) -> None:
    """Answer until the pipe closes; runs in the other process."""
    if check is check_model:
        with suppress(ConadvError):  # every row will say so
            import_library("torchvision")
            import_library("timm")
    pipe.send(True)
    while True:
        try:
            target = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            pipe.send(check(target.name, target.image_size, target.options))
        except KeyboardInterrupt:
            return


class Results:
    """The rows so far and, if a path is given, their file, whole after every row.

    Args:
        environment: hardware, versions and command, see `environment`.
        path: a JSON file, continued if it exists; it keeps the environment it began with.

    Raises:
        ConadvError: the file is none of these results, or is of other versions or another machine.
    """

    def __init__(self, environment: Mapping[str, Any], path: Path | None = None) -> None:
        self.environment = dict(environment)
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}
        if path is not None and path.exists():
            self._continue(path)

    def _continue(self, path: Path) -> None:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            before, rows = content["environment"], content["rows"]
            self.rows = {row["name"]: row for row in rows}
        except (ValueError, KeyError, TypeError) as error:
            raise ConadvError(
                f"{path} exists and is no result of `conadv models check`: name another file."
            ) from error
        for name in SAME:
            if before.get(name) != self.environment.get(name):
                raise ConadvError(
                    f"{path} was made with {name} {before.get(name)}, and here is "
                    f"{self.environment.get(name)}: rows of both would not be one result. Name "
                    "another file, or remove that one."
                )
        self.environment = before

    def missing(self, wanted: Sequence[Target], *, failed_too: bool = False) -> list[Target]:
        """Those without a row of the same size and options; `failed_too`: or with a failed one."""
        return [t for t in wanted if not self._done(t, failed_too)]

    def _done(self, target: Target, failed_too: bool) -> bool:
        row = self.rows.get(target.name)
        if row is None or (failed_too and not row["works"]):
            return False
        return bool(row["image_size"] == target.image_size and row["options"] == target.options)

    def add(self, row: CheckedModel) -> None:
        """Keep a row, and write the file."""
        self.rows[row.name] = asdict(row)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            ordered = [self.rows[name] for name in sorted(self.rows)]
            write_json(self.path, {"environment": self.environment, "rows": ordered})


Row = Mapping[str, Any]


def summary(rows: Sequence[Row]) -> str:
    """How many work, in one line."""
    works = sum(row["works"] for row in rows)
    share = works / len(rows) if rows else 0.0
    return f"{works} of {len(rows)} networks work ({share:.1%})"


def markdown_table(rows: Sequence[Row]) -> str:
    """A Markdown table of all rows, those of one library together, by name."""
    lines = [
        "| network | normalisation | layers split | pixels | options | result |",
        "|---|---|---:|---:|---|---|",
    ]
    for row in sorted(rows, key=lambda row: row["name"]):
        options = ", ".join(f"{key}={value}" for key, value in row["options"].items())
        split = f"{row['split_layers']} {row['split']}".strip() if row["split_layers"] else "none"
        cells = (
            row["name"],
            row["normalisation"] or "none",
            split,
            str(row["image_size"]),
            options,
            "works" if row["works"] else row["reason"],
        )
        escaped = (cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
        lines.append(f"| {' | '.join(escaped)} |")
    return "\n".join(lines) + "\n"
