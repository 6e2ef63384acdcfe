"""Learning-rate range test: where it ends, what it suggests, and that it leaves nothing behind."""

import csv
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conadv.cli import main
from conadv.errors import RecipeError
from conadv.trainer.probe.lr_find import RangePoint, RangeTest, lr_find
from support.runs import StopAfter, quietly, tiny


def made_up(losses: list[float], scale: float = 1.0) -> RangeTest:
    """A test of exact losses, at the rates 1e-9, 1e-8, ..."""
    points = (RangePoint(i + 1, 10.0 ** (i - 9), loss, loss) for i, loss in enumerate(losses))
    return RangeTest(tuple(points), 1, scale, stopped=False)


def test_the_suggestion_is_where_the_loss_falls_fastest() -> None:
    logistic = [3 - 2 / (1 + math.exp(4 - i)) for i in range(9)]
    found = made_up([*logistic, 1.5, 4.0], scale=5.0)
    assert found.steepest == pytest.approx(1e-5)  # the logistic's middle
    assert found.lowest == pytest.approx(1e-1)
    assert found.suggested_lr == pytest.approx(2e-6)  # before the scaling rule


@pytest.mark.parametrize("losses", [[], [1.0], [1.0, 2.0, 4.0, 9.0], [1.0] * 12])
def test_a_loss_that_falls_nowhere_suggests_nothing(losses: list[float]) -> None:
    assert made_up(losses).suggested_lr is None


def test_rates_rise_geometrically_until_the_loss_explodes() -> None:
    recipe = tiny("optimizer.lr_rule=linear", "optimizer.lr_base_batch=4", "optimizer.lr=0.01")
    state = torch.get_rng_state()
    found = lr_find(recipe, 1e-3, 1e6, steps=40)
    assert torch.equal(torch.get_rng_state(), state)
    assert found.lr_scale == pytest.approx(4.0) and not found.stopped
    rates = [point.learning_rate for point in found.points]
    assert rates[0] == 1e-3 and rates[1] / rates[0] == pytest.approx(10 ** (9 / 39))
    assert len(rates) < 40, "it ends where the loss explodes"
    losses = [point.loss for point in found.points]
    assert found.points[5].smoothed == pytest.approx(sum(losses[3:8]) / 5)
    again = lr_find(recipe, 1e-3, 1e6, steps=40)
    assert again == found


def test_the_first_step_is_that_of_a_run(tmp_path: Path) -> None:
    quietly(tiny(), tmp_path / "run")
    line = (tmp_path / "run/metrics.jsonl").read_text().splitlines()[0]
    assert f'"loss": {lr_find(tiny(), steps=10).points[0].loss!r},' in line


def test_it_can_be_stopped() -> None:
    found = lr_find(tiny(), steps=40, stop=StopAfter(4))
    assert found.stopped and len(found.points) == 4


@pytest.mark.parametrize("rates", [(1.0, 0.1), (0.0, 1.0), (1.0, math.inf)])
def test_rates_have_to_rise(rates: tuple[float, float]) -> None:
    with pytest.raises(RecipeError, match="have to rise"):
        lr_find(tiny(), *rates)


def test_the_command_writes_two_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["lr-find", "smoke", "hardware.device=cpu", "--steps", "12", "--highest", "1e3"]
    assert main([*arguments, "--out", "mine.v1"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"mine.v1.csv", "mine.v1.svg"}
    rows = list(csv.DictReader(Path("mine.v1.csv").read_text().splitlines()))
    assert rows[0].keys() == {"step", "learning_rate", "loss", "smoothed"}
    assert float(rows[-1]["learning_rate"]) <= 1e3 * (1 + 1e-9)
    shown = capsys.readouterr().out
    assert "written: mine.v1.csv" in shown
    assert "suggested: conadv train smoke optimizer.lr=" in shown or "fell nowhere" in shown


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_found(tmp_path: Path) -> None:
    # The signal comes from a step of the test itself: an augmentation of one's own.
    (tmp_path / "interrupts.py").write_text(
        "import os, signal\n"
        "seen = []\n"
        "def augment(image, generator):\n"
        "    seen.append(1)\n"
        "    if len(seen) == 200:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return image\n"
    )
    words = ["lr-find", "smoke", "hardware.device=cpu", "data.augment=interrupts:augment"]
    done = subprocess.run(
        [sys.executable, "-m", "conadv", *words, "--steps", "5000"],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 128 + signal.SIGINT, done.stderr
    assert "was stopped at" in done.stdout
    rows = list(csv.DictReader((tmp_path / "smoke-lr.csv").read_text().splitlines()))
    assert 0 < len(rows) < 100
