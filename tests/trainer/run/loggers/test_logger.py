"""Loggers: what reaches them, and that none of them can stop or hold up a run."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from conadv.errors import Interrupted, RecipeError
from conadv.trainer.recipe import change_recipe
from conadv.trainer.recipe.sections import LOGGER_NAMES
from conadv.trainer.run.loggers import logger as loggers
from conadv.trainer.run.loggers.logger import Background, LoggedRun
from support.runs import StopAfter, quietly, tiny, train

GREY = np.zeros((2, 4, 4, 1), np.uint8)


class Kept:
    """A logger that keeps what it is given; ``full`` says at which message its disk is full."""

    def __init__(self, full: int = 1000) -> None:
        self.full = full
        self.seen: list[Any] = []
        self.threads: set[int] = set()

    def _take(self, *message: Any) -> None:
        self.threads.add(threading.get_ident())
        self.seen.append(message)
        if len(self.seen) == self.full:
            raise OSError(28, "No space left on device")

    def scalars(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        self._take(kind, step, dict(values))

    def pictures(self, step: int, clean: np.ndarray, adversarial: np.ndarray) -> None:
        self._take("pictures", step, clean.shape, adversarial.shape)

    def close(self) -> None:
        self._take("close")


def test_numbers_arrive_in_order_in_a_thread_of_their_own() -> None:
    said: list[str] = []
    kept = Kept()
    background = Background("mine", lambda: kept, said.append)
    background.scalars("train", 1, {"step": 1, "kind": "train", "loss": 0.5, "void": None})
    background.scalars("train", 2, {"loss": 1, "skipped": True})
    background.pictures(2, GREY, GREY)
    background.close()
    assert kept.seen == [
        ("train", 1, {"loss": 0.5}),
        ("train", 2, {"loss": 1.0}),
        ("pictures", 2, GREY.shape, GREY.shape),
        ("close",),
    ]
    assert said == [] and threading.get_ident() not in kept.threads


def broken() -> Kept:
    raise SystemExit("no key")


@pytest.mark.parametrize(
    ("open_", "reason"),
    [
        (lambda: Kept(full=2), "No space left on device"),
        (lambda: Kept(full=4), "No space left on device"),  # while it is closed
        (broken, "SystemExit: no key"),
    ],
)
def test_a_failure_is_said_once(open_: Any, reason: str) -> None:
    said: list[str] = []
    background = Background("wandb", open_, said.append)
    for step in range(3):
        background.scalars("train", step, {"loss": 0.5})
    background.close()
    background.scalars("train", 4, {"loss": 0.5})
    assert len(said) == 1
    assert "wandb" in said[0] and reason in said[0] and "metrics.jsonl" in said[0]


def test_a_logger_that_hangs_is_left_behind() -> None:
    said: list[str] = []
    free = threading.Event()

    def hang() -> Kept:
        free.wait(60)
        return Kept()

    background = Background("mine", hang, said.append, patience=0.01)
    background.scalars("train", 1, {"loss": 0.5})
    background.close()
    free.set()
    assert len(said) == 1 and "has not answered" in said[0]


# -- in a run ----------------------------------------------------------------------------------

OPENED: list[tuple[LoggedRun, Kept]] = []


def open_kept(run: LoggedRun, full: int = 1000) -> Kept:
    """What a recipe of these tests names."""
    OPENED.append((run, Kept(full)))
    return OPENED[-1][1]


@pytest.fixture(autouse=True)
def _none_opened() -> None:
    OPENED.clear()


def test_an_object_logs_a_run_and_its_continuation(tmp_path: Path) -> None:
    recipe = tiny("logging.loggers=[]")
    with pytest.raises(Interrupted):
        quietly(recipe, tmp_path / "run", logger=open_kept, stop=StopAfter(3))
    result = quietly(recipe, tmp_path / "run", resume=True, logger=open_kept)
    (first, before), (second, after) = OPENED
    assert (first.name, first.folder, first.step) == ("tiny", tmp_path / "run", 0)
    assert second.step == 3 and second.settings["optimizer.lr"] == 0.05
    steps = [m[1] for kept in (before, after) for m in kept.seen if m[0] == "train"]
    assert steps == [1, 2, 3, 4, 5, 6]
    kinds = [message[0] for message in after.seen]
    assert kinds[-3:] == ["pictures", "result", "close"] and "eval" in kinds
    assert after.seen[-2][2]["test_accuracy"] == result.test_accuracy
    assert not (tmp_path / "run/events").exists()


def test_no_logger_changes_or_stops_a_run(tmp_path: Path, capsys: Any) -> None:
    mine = f"{__name__}:open_kept"
    logging = (
        f"logging.loggers=[{mine}, no_such_module:logger]",
        f"logging.options={{{mine!r}: {{full: 2}}}}",
    )
    logged = tmp_path / "logged"
    train(tiny(*logging), logged, console=Console(width=400))
    quietly(tiny("logging.loggers=[]"), tmp_path / "plain")
    assert (logged / "metrics.jsonl").read_bytes() == (
        tmp_path / "plain/metrics.jsonl"
    ).read_bytes()
    shown = capsys.readouterr().out
    assert shown.count("No space left on device") == 1
    assert shown.count("No module named 'no_such_module'") == 1


def test_every_name_is_a_file(tmp_path: Path) -> None:
    folder = Path(loggers.__file__).parent
    assert {path.stem for path in folder.glob("*.py")} == {"__init__", "logger", *LOGGER_NAMES}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("logging.loggers=[tensorbord]", "no such logger. Did you mean tensorboard"),
        ("logging.options.wandb.mode=online", "wandb is not among loggers"),
    ],
)
def test_impossible_loggers_are_refused(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        change_recipe(tiny(), [override])
