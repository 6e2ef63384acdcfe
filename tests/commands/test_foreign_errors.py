"""An error that is not the package's own, in every phase of every command that meets others' code.

It is told in one message that says what was being done, whose code it is, and how to see the rest.
"""

import importlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from conadv.cli import main
from conadv.commands import app
from conadv.errors import DataError, activity, doing, in_words, what_was_done
from conadv.trainer.recipe import dump_recipe, load_recipe
from support.runs import TINY

FOREIGN = """
import torch
from torch import nn

from conadv.trainer.data.synthetic import make_synthetic

WHEN = ""


class Trouble(Exception):
    pass


def meet(phase):
    if phase == WHEN:
        raise Trouble(f"not with me, in {phase}")


def images():
    meet("data")
    return make_synthetic(size=8, classes=2, train_images=56, test_images=16)


def network(in_chans, num_classes):
    meet("network")
    return Network(in_chans * 64, num_classes)


class Network(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)
        self.trained = False

    def forward(self, images):
        meet("trial")
        if self.training:
            self.trained = True
            meet("step")
        elif self.trained:
            meet("evaluation")
        return self.layer(images.flatten(1))

    def state_dict(self, *arguments, **options):
        meet("weights")
        return super().state_dict(*arguments, **options)


class Loss(nn.Module):
    def __init__(self):
        super().__init__()
        meet("loss")

    def forward(self, logits, labels):
        meet("its value")
        return nn.functional.cross_entropy(logits, labels)


class Optimizer(torch.optim.SGD):
    def __init__(self, *arguments, **options):
        meet("optimizer")
        super().__init__(*arguments, **options)

    def step(self, closure=None):
        meet("update")
        return super().step(closure)

    def state_dict(self):
        meet("checkpoint")
        return super().state_dict()

    def load_state_dict(self, state):
        meet("resumption")
        super().load_state_dict(state)


def chart(cells, palette):
    meet("chart")
"""
NAMED = (
    "model.name=foreign:network",
    "data.dataset=foreign:images",
    "train.loss=foreign:Loss",
    "optimizer.name=foreign:Optimizer",
    "method.schedule=vanilla",
)


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "foreign.py").write_text(FOREIGN)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("foreign", None)
    return importlib.import_module("foreign")


def train(out: Path, *more: str) -> list[str]:
    return ["train", "smoke", *TINY, *NAMED, *more, "--out", str(out)]


def told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says of an error that it meets; the last lines on stderr."""
    capsys.readouterr()
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    message = said[said.index("error: ") :]
    assert message.startswith("error: Trouble: not with me, in ")
    assert "foreign.py, line " in message and "CONADV_TRACEBACK=1" in message
    return message


@pytest.mark.parametrize(
    ("phase", "while_"),
    [
        ("data", "reading the images (data.dataset=foreign:images)"),
        ("network", "building the network foreign:network"),
        ("trial", "trying the network out (model.name=foreign:network)"),
        ("loss", "making the loss (train.loss=foreign:Loss)"),
        ("optimizer", "making the optimizer (optimizer.name=foreign:Optimizer)"),
        ("step", "taking step 1"),
        ("its value", "taking step 1"),
        ("update", "taking step 1"),
        ("evaluation", "evaluating after step 2"),
        ("checkpoint", "collecting the checkpoint of step 2"),
    ],
)
def test_while_training(
    phase: str,
    while_: str,
    foreign: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    foreign.WHEN = phase
    assert f"(while {while_})" in told(train(tmp_path / "run"), capsys)


def test_at_the_end(
    foreign: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign.WHEN = "evaluation"
    arguments = train(tmp_path / "run", "data.validation=0")
    assert "(while measuring what has been trained)" in told(arguments, capsys)


def test_with_a_run(
    foreign: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = str(tmp_path / "run")
    save = "conadv.trainer.evaluation.export.save"
    monkeypatch.setattr(save, lambda *_: foreign.meet("file"))
    assert main(train(tmp_path / "run")) == 0
    for phase, arguments, while_ in (
        ("network", ["evaluate", run], "building the network foreign:network"),
        ("data", ["evaluate", run], "reading the images (data.dataset=foreign:images)"),
        ("trial", ["evaluate", run], f"evaluating {run}"),
        ("trial", ["analyse", run, "--only", "gap"], f"analysing the gap of {run}"),
        ("weights", ["export", run], f"reading the weights of {run}"),
        ("file", ["export", run], f"exporting {run}"),
        ("chart", ["report", run, "--chart", "foreign:chart"], "drawing the chart foreign:chart"),
    ):
        foreign.WHEN = phase
        assert f"(while {while_}" in told(arguments, capsys), phase


def test_going_on(foreign: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign.WHEN = "evaluation"
    more = ("checkpoint.every_steps=1",)
    told(train(tmp_path / "run", *more), capsys)
    foreign.WHEN = "resumption"
    message = told([*train(tmp_path / "run", *more), "--resume"], capsys)
    assert "(while going on from the checkpoint of step " in message


@pytest.mark.parametrize(
    ("phase", "command", "while_"),
    [
        ("step", ["lr-find", "smoke"], "taking step 1 of the range test"),
        ("step", ["train", "smoke", "--dry-run"], "taking a step on made-up images"),
        ("network", ["plan", "smoke"], "building the network foreign:network"),
        ("trial", ["plan", "smoke"], "counting what a pass of model.name=foreign:network costs"),
    ],
)
def test_before_a_run(
    phase: str,
    command: list[str],
    while_: str,
    foreign: ModuleType,
    capsys: pytest.CaptureFixture[str],
) -> None:
    foreign.WHEN = phase
    settings = [s for s in (*TINY, *NAMED) if phase == "step" or "dataset" not in s]
    assert f"(while {while_}" in told([*command, *settings], capsys)


COMMANDS = {
    "quickstart": ("conadv.lab.quickstart.run", ""),
    "train": ("conadv.trainer.start.train", "smoke"),
    "evaluate": ("conadv.trainer.evaluation.evaluate.evaluate_run", "RUN"),
    "analyse": ("conadv.lab.analysis.run.analyse.analyse_run", "RUN"),
    "export": ("conadv.trainer.evaluation.export.export_run", "RUN"),
    "study": ("conadv.lab.study.load_study", "smoke"),
    "report": ("conadv.lab.report.gather", "RUN"),
    "lr-find": ("conadv.trainer.probe.lr_find.lr_find", "smoke"),
    "plan": ("conadv.lab.planning.link_named", "smoke"),
    "recipes list": ("conadv.trainer.recipe.load_recipe", ""),
    "recipes show": ("conadv.trainer.recipe.load_recipe", "smoke"),
    "data list": ("conadv.commands.data.table", ""),
    "data fetch": ("conadv.trainer.data.load_dataset", "cifar10"),
    "data shard": ("conadv.trainer.data.sources.open_source", "photos shards"),
    "models list": ("conadv.trainer.models.names.model_names", ""),
    "models check": ("conadv.lab.bench.model_checks.targets", "cifar/resnet8"),
    "bench steps": ("conadv.lab.bench.steps.run", ""),
    "bench optimizers": ("conadv.lab.bench.optimizers.run", "--model cifar/resnet8"),
}
"""Every command: what does its work, and what else is typed."""


def leaves(command: Any, words: str = "") -> Iterator[str]:
    """The commands that do something, as they are typed."""
    if not hasattr(command, "commands"):
        yield words
    for name, inner in getattr(command, "commands", {}).items():
        yield from leaves(inner, f"{words} {name}".strip())


def test_no_command_is_missing_here() -> None:
    assert set(leaves(typer.main.get_command(app))) == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_in_the_work_of_every_command(
    command: str,
    foreign: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With nothing but the command itself to say what was being done, unless it knows better."""
    (tmp_path / "RUN").mkdir()
    (tmp_path / "RUN/recipe.yaml").write_text(dump_recipe(load_recipe("smoke")))
    monkeypatch.chdir(tmp_path)
    work, more = COMMANDS[command]
    monkeypatch.setattr(work, lambda *_, **__: foreign.meet("work"))
    foreign.WHEN = "work"
    typed = f"{command} {more}".strip()
    message = told(typed.split(), capsys)
    assert (
        f" (while {'reporting on RUN' if command == 'report' else f'running conadv {typed}'})"
        in message
    )
    monkeypatch.setenv("CONADV_TRACEBACK", "1")
    with pytest.raises(foreign.Trouble):
        main(typed.split())


def test_errors_of_the_system_say_what_was_being_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr("conadv.trainer.data.load_dataset", refuse)
    assert main(["data", "fetch", "cifar10"]) == 2
    said = capsys.readouterr().err
    assert said == "error: Connection refused (while running conadv data fetch cifar10)\n"


def test_own_errors_are_left_as_they_are() -> None:
    with pytest.raises(DataError) as own, doing("anything"):
        raise DataError("no data.")
    assert what_was_done(own.value) == ""
    with pytest.raises(KeyError) as nested, doing("the whole"), doing("a part"):
        raise KeyError("x")
    with pytest.raises(KeyError), doing("something later"):
        raise nested.value
    assert in_words(nested.value) == "KeyError: 'x' (while a part, the whole)"


def test_what_is_being_done_is_known_by_thread() -> None:
    here = threading.get_ident()
    seen: list[str] = []

    def look() -> None:
        with doing("another thing"):
            seen.extend([activity(here), activity(threading.get_ident())])

    with doing("the whole"), doing("a part"):
        other = threading.Thread(target=look)
        other.start()
        other.join()
    assert seen == ["a part, the whole", "another thing"] and activity(here) == ""


def test_a_bug_within_shows_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is known what was being done."""
    monkeypatch.setattr("conadv.trainer.input.load.split", None)
    with pytest.raises(TypeError) as bug:
        main(["train", "smoke", *TINY, "--out", str(tmp_path / "run")])
    assert what_was_done(bug.value).startswith("reading the images")
