"""TensorBoard, W&B and MLflow themselves, offline: what they keep of a run that was resumed."""

import importlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from conadv.errors import Interrupted
from conadv.trainer.recipe import change_recipe
from support.runs import StopAfter, tiny, train

STEPS = [1, 2, 3, 4, 5, 6]


def logged(folder: Path, name: str) -> list[dict[str, Any]]:
    """Train, stopped after three steps and resumed; the training lines of ``metrics.jsonl``."""
    recipe, shown = tiny(f"logging.loggers=[{name}]"), io.StringIO()
    with pytest.raises(Interrupted):
        train(recipe, folder, stop=StopAfter(3), console=Console(file=shown))
    train(recipe, folder, resume=True, console=Console(file=shown))
    assert "warning" not in shown.getvalue()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "train"]


def read_events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def losses_of(events: Any) -> list[tuple[int, float]]:
    """Step and loss; one process may write two files in one second, which are then in any order."""
    return sorted((event.step, event.value) for event in events.Scalars("train/loss"))


def test_tensorboard(tmp_path: Path) -> None:
    lines = logged(tmp_path / "run", "tensorboard")
    events = read_events(tmp_path / "run/events")
    assert losses_of(events) == [(line["step"], pytest.approx(line["loss"])) for line in lines]
    assert [line["step"] for line in lines] == STEPS
    assert len(events.Scalars("result/test_accuracy")) == 1
    assert {"pictures/clean", "pictures/adversarial"} <= set(events.Tags()["images"])


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_tensorboard_in_a_folder_whose_name_is_not_utf8(tmp_path: Path) -> None:
    folder = tmp_path / "l\udce4uf"
    logged(folder, "tensorboard")
    events = read_events((folder / "events").rename(tmp_path / "events"))
    assert [step for step, _ in losses_of(events)] == STEPS


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of libraries that wandb brings
def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="extra wandb")
    for name, value in {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    folder = tmp_path / ("l\udce4uf" if sys.platform == "linux" else "run")
    lines = logged(folder, "wandb")
    wandb.teardown()  # ends W&B's own process, which writes the files
    files = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2 and len({file.name for file in files}) == 1, "resumed under its id"
    history = [row for file in files for row in read_wandb(file)]
    losses = {row["step"]: row["train/loss"] for row in history if "train/loss" in row}
    assert losses == {line["step"]: pytest.approx(line["loss"]) for line in lines}
    assert any("result/test_accuracy" in row for row in history)
    assert any("pictures/adversarial.count" in row for row in history)


def read_wandb(file: Path) -> list[dict[str, Any]]:
    """History rows of W&B's own file: LevelDB's log format behind a head of 7 bytes."""
    internal = importlib.import_module("wandb.proto.wandb_internal_pb2")
    data, place, block = file.read_bytes(), 7, 32_768
    rows, content = [], b""
    while place + 7 <= len(data):
        if block - place % block < 7:  # too little for a head: filled up with zeros
            place += block - place % block
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        content += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record, content = internal.Record.FromString(content), b""
            items = record.history.item
            rows.append({i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items})
    return rows


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of libraries that mlflow brings
def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="extra mlflow")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    lines = logged(tmp_path / "run", "mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'run/mlflow.db'}")
    [run] = client.search_runs([client.get_experiment_by_name("conadv").experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["optimizer.lr"] == "0.05"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [point.step for point in history] == STEPS
    assert [point.value for point in history] == pytest.approx([line["loss"] for line in lines])
    assert "result/test_accuracy" in run.data.metrics
    [strips] = (tmp_path / "run/mlflow").glob("*/artifacts/pictures")
    assert {path.name for path in strips.iterdir()} == {"clean.png", "adversarial.png"}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of libraries that mlflow brings
def test_mlflow_says_where_else_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="extra mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shown, folder = io.StringIO(), tmp_path / "l\udce4uf"
    recipe = tiny("logging.loggers=[mlflow]", "train.steps=1")
    train(recipe, folder, console=Console(file=shown, width=1000))
    assert "give it another place, logging.options.mlflow.tracking_uri=" in shown.getvalue()
    elsewhere = f"logging.options.mlflow.tracking_uri=sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.chdir(tmp_path)  # where its artifacts go
    shown = io.StringIO()
    train(change_recipe(recipe, [elsewhere]), tmp_path / "r\udce4n", console=Console(file=shown))
    assert "warning" not in shown.getvalue() and (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_missing_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.delitem(sys.modules, f"conadv.trainer.run.loggers.{name}", raising=False)
    monkeypatch.setitem(sys.modules, name, None)
    train(tiny(f"logging.loggers=[{name}]", "train.steps=1"), tmp_path, console=Console(width=400))
    shown = capsys.readouterr().out
    assert f"[{name}]" in shown and "is not installed; type pip install" in shown
