"""A run is one thing, however often it is stopped: files and weights are the same to the bit."""

import errno
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from conadv import _files as files
from conadv.errors import (
    CheckpointError,
    Interrupted,
    NonFiniteError,
    RecipeError,
    RunFolderError,
    RunHeldError,
)
from conadv.trainer.checkpoint.store import CheckpointStore
from conadv.trainer.loop import Run
from conadv.trainer.run import lines as run_lines
from conadv.trainer.run.result import Result
from conadv.trainer.trainer import Trainer
from support.runs import StopAfter, assert_same_state, final_state, quietly, tiny, train

METHODS: dict[str, list[str]] = {
    "vanilla": ["method.schedule=vanilla"],
    "sequential": ["method.schedule=sequential", "attack.random_start=0.8"],
    "lookahead": ["method.schedule=lookahead", "attack.random_start=0.8"],
    "lookahead-2": ["method.schedule=lookahead", "method.tau=2", "attack.target=random"],
    "recycled": ["method.schedule=recycled"],
    "recycled-fixed": ["method.budget=fixed", "method.share=0.25"],
    "recycled-refine": ["method.refine=2", "attack.step_size=2/255"],
    "noise": ["method.schedule=noise"],
}


def lines(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    quietly(tiny("checkpoint.every_steps=2"), folder)
    return folder


# -- what a run leaves ---------------------------------------------------------------------------


def test_run_folder_holds_everything(unbroken: Path) -> None:
    names = {p.name for p in unbroken.iterdir()}
    assert names == {
        "recipe.yaml",
        "environment.json",
        "metrics.jsonl",
        "timing.jsonl",
        "lock",
        "result.json",
        "pictures.npz",
        "checkpoints",
        "events",
    }
    result = Result.read(unbroken / "result.json")
    assert result.status == "finished" and result.name == "tiny"
    assert result.steps == 6 and result.images_seen == 96
    # 8 images in the first round have no copies; every other one of 12 rounds has 8 and 8.
    assert result.compute == pytest.approx(96 * 2 - 8)
    assert result.step_seconds_median is not None and result.step_seconds_median > 0
    for value in (result.train_accuracy, result.val_accuracy, result.test_accuracy):
        assert value is not None and 0 <= value <= 1
    assert result.robust_accuracy is not None and result.test_accuracy is not None


def test_metrics_have_every_step_and_no_clock(unbroken: Path) -> None:
    train = [line for line in lines(unbroken) if line["kind"] == "train"]
    assert [line["step"] for line in train] == [1, 2, 3, 4, 5, 6]
    wanted = {"epoch", "loss", "clean_loss", "adversarial_loss", "accuracy", "learning_rate"}
    assert all(wanted | {"zero_share", "images", "compute"} <= line.keys() for line in train)
    assert not any("second" in key or "time" in key for line in train for key in line)
    evaluations = [line for line in lines(unbroken) if line["kind"] == "eval"]
    assert [line["step"] for line in evaluations] == [2, 4, 6]
    assert len(lines(unbroken, "timing.jsonl")) == 6


def test_agreement_is_logged_when_asked_for_and_changes_nothing(tmp_path: Path) -> None:
    settings = ("method.schedule=lookahead", "method.tau=2", "train.steps=5")
    for name, more in (("with", "true"), ("without", "false")):
        quietly(tiny(*settings, f"method.track_agreement={more}"), tmp_path / name, log_every=1)
    found, other = (
        [line for line in lines(tmp_path / name) if line["kind"] == "train"]
        for name in ("with", "without")
    )
    assert [line["agreement"] is None for line in found] == [True, True, False, False, False]
    assert all(-1 <= line["agreement"] < 1 for line in found[2:]), "stale, so not the same"
    assert {line["agreement"] for line in other} == {None}
    assert [line["loss"] for line in found] == [line["loss"] for line in other]


def test_pictures_show_a_perturbation_within_epsilon(unbroken: Path) -> None:
    with np.load(unbroken / "pictures.npz") as pictures:
        clean, adversarial = pictures["clean"], pictures["adversarial"]
        difference = adversarial.astype(int) - clean.astype(int)
        assert clean.shape == (8, 8, 8, 3) and clean.dtype == np.uint8
        assert (pictures["perturbation"] == difference).all()
        assert np.abs(difference).max() == 4  # 4/255, in grey levels
        assert pictures["labels"].shape == (8,)
        assert [str(name) for name in pictures["classes"]] == ["class 0", "class 1"]


def test_same_recipe_same_run(unbroken: Path, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    quietly(tiny("checkpoint.every_steps=5"), tmp_path / "again", log_every=1)
    assert (tmp_path / "again/metrics.jsonl").read_bytes() == (
        unbroken / "metrics.jsonl"
    ).read_bytes()
    assert torch.equal(torch.get_rng_state(), state)  # the caller's stream is left alone


def test_log_every(tmp_path: Path) -> None:
    quietly(tiny("data.validation=0", "method.schedule=vanilla"), tmp_path / "a", log_every=4)
    assert [line["step"] for line in lines(tmp_path / "a")] == [4, 6]
    assert Result.read(tmp_path / "a/result.json").val_accuracy is None


# -- resume --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_interrupted_and_resumed_equals_unbroken(method: str, tmp_path: Path) -> None:
    recipe = tiny(*METHODS[method], "train.ema_decay=0.9")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    expected = quietly(recipe, whole)
    with pytest.raises(Interrupted, match=r"(?s)after step 1 of 6.*--resume"):
        quietly(recipe, broken, stop=StopAfter(1))
    assert Result.read(broken / "result.json").status == "interrupted"
    with pytest.raises(Interrupted, match="after step 3 of 6"):
        quietly(recipe, broken, stop=StopAfter(2), resume=True)
    found = quietly(recipe, broken, resume=True)
    assert (broken / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert_same_state(final_state(broken), final_state(whole))
    assert {**vars(found), "step_seconds_median": 0} == {
        **vars(expected),
        "step_seconds_median": 0,
    }


@pytest.mark.parametrize("died_at", [1, 3, 5])
def test_crash_between_checkpoints_repeats_the_lost_steps(
    unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, died_at: int
) -> None:
    """No warning, no signal: the process is gone in the middle of a step."""
    original = Trainer.train_step

    def dying(self: Trainer, requests: Any) -> Any:
        if self.step == died_at:
            raise RuntimeError("power cut")
        return original(self, requests)

    recipe = tiny("checkpoint.every_steps=2")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", dying)
        with pytest.raises(RuntimeError, match="power cut"):
            quietly(recipe, tmp_path / "a")
    with (tmp_path / "a/metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    quietly(recipe, tmp_path / "a", resume=True)
    assert (tmp_path / "a/metrics.jsonl").read_bytes() == (unbroken / "metrics.jsonl").read_bytes()
    assert_same_state(final_state(tmp_path / "a"), final_state(unbroken))


def test_a_damaged_newest_checkpoint_costs_only_its_steps(unbroken: Path, tmp_path: Path) -> None:
    recipe = tiny("checkpoint.every_steps=2")
    with pytest.raises(Interrupted):
        quietly(recipe, tmp_path / "a", stop=StopAfter(5))
    newest = CheckpointStore(tmp_path / "a/checkpoints", 9).steps()[0]
    assert newest.name == "step_00000005.pt"
    os.truncate(newest, newest.stat().st_size // 2)
    with pytest.warns(UserWarning, match="truncated, damaged"):
        quietly(recipe, tmp_path / "a", resume=True)
    assert (tmp_path / "a/metrics.jsonl").read_bytes() == (unbroken / "metrics.jsonl").read_bytes()
    assert_same_state(final_state(tmp_path / "a"), final_state(unbroken))


def test_resume_with_another_recipe_names_the_fields(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        quietly(tiny(), tmp_path / "a", stop=StopAfter(1))
    with pytest.raises(RecipeError) as raised:
        quietly(tiny("optimizer.lr=0.5", "seed=3"), tmp_path / "a", resume=True)
    assert "optimizer.lr" in str(raised.value) and "seed" in str(raised.value)
    assert "optimizer.momentum" not in str(raised.value)
    assert "model" not in str(raised.value)


def test_a_folder_with_a_run_is_refused_without_resume(unbroken: Path) -> None:
    before = (unbroken / "metrics.jsonl").read_bytes()
    with pytest.raises(RunFolderError, match=r"conadv train \S+ --resume"):
        quietly(tiny(), unbroken)
    assert (unbroken / "metrics.jsonl").read_bytes() == before


def test_resuming_a_finished_run_returns_its_result(unbroken: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in unbroken.rglob("*")}
    result = quietly(tiny("checkpoint.every_steps=2"), unbroken, resume=True)
    assert result == Result.read(unbroken / "result.json")
    assert {p: p.stat().st_mtime_ns for p in unbroken.rglob("*")} == before


def test_resume_in_a_new_folder_starts(tmp_path: Path) -> None:
    recipe = tiny("train.steps=1", "method.schedule=vanilla")
    assert quietly(recipe, tmp_path / "a", resume=True).steps == 1


def test_data_that_changed_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Interrupted):
        quietly(tiny(), tmp_path / "a", stop=StopAfter(1))
    original = Run._restore

    def other_data(self: Run) -> None:
        object.__setattr__(self.built.splits.dataset, "fingerprint", "0" * 64)
        original(self)

    monkeypatch.setattr(Run, "_restore", other_data)
    with pytest.raises(CheckpointError, match="fingerprint differs"):
        quietly(tiny(), tmp_path / "a", resume=True)


# -- bad days ------------------------------------------------------------------------------------


def test_full_disk_during_training_does_not_end_it(
    unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, attempts = os.replace, []

    def full(source: Any, target: Any) -> None:
        if str(target).endswith("step_00000002.pt"):
            attempts.append(target)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(source, target)

    monkeypatch.setattr(files.os, "replace", full)
    result = quietly(tiny("checkpoint.every_steps=2"), tmp_path / "a")
    assert attempts and result.status == "finished"
    assert_same_state(final_state(tmp_path / "a"), final_state(unbroken))


def test_a_log_on_a_full_disk_loses_no_line(
    unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def full(file: int, data: bytes) -> int:
        calls.append(data)
        if len(calls) < 9:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data)

    write = os.write
    monkeypatch.setattr(run_lines.os, "write", full)
    said = io.StringIO()
    result = train(tiny("checkpoint.every_steps=2"), tmp_path / "a", console=Console(file=said))
    assert result.status == "finished" and len(calls) > 9
    assert (tmp_path / "a/metrics.jsonl").read_bytes() == (unbroken / "metrics.jsonl").read_bytes()
    assert said.getvalue().count("cannot be written (No space left on device)") == 2
    assert said.getvalue().count("no line is missing") == 2


def test_a_result_that_cannot_be_written_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(result: Result, path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    said = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(Result, "write", full)
        found = train(tiny(), tmp_path / "a", console=Console(file=said, width=10_000))
    shown = next(line for line in said.getvalue().splitlines() if line.startswith("{"))
    assert json.loads(shown)["test_accuracy"] == found.test_accuracy
    assert f"conadv train {tmp_path / 'a'} --resume" in said.getvalue()
    assert quietly(tiny(), tmp_path / "a", resume=True) == found


# -- one run in a folder -------------------------------------------------------------------------


def test_a_second_start_and_a_second_resume_are_refused(tmp_path: Path) -> None:
    inner: list[str] = []

    class Second(StopAfter):
        """Starts the same once more while the first is at step 3."""

        @property
        def requested(self) -> bool:
            if not inner and (tmp_path / "a/metrics.jsonl").exists():
                for resume in (False, True):
                    with pytest.raises(RunHeldError) as refused:
                        quietly(tiny(), tmp_path / "a", resume=resume)
                    inner.append(str(refused.value))
            return super().requested

    assert quietly(tiny(), tmp_path / "a", stop=Second(100)).status == "finished"
    assert len(inner) == 2
    assert all(f"process {os.getpid()} on" in text and "since" in text for text in inner)


def test_a_run_that_was_taken_over_stops_and_writes_nothing(tmp_path: Path) -> None:
    class Taken(StopAfter):
        @property
        def requested(self) -> bool:
            lock = tmp_path / "a/lock/claim-0.json"
            if not lock.with_name("claim-1.json").exists() and lines_so_far(tmp_path / "a") > 2:
                lock.with_name("claim-1.json").write_text('{"pid": 7, "host": "far", "time": 0}')
            return super().requested

    with pytest.raises(RunHeldError, match="took this process for dead"):
        run = tiny("train.steps=100", "checkpoint.every_steps=9", "evaluation.every_epochs=90")
        quietly(run, tmp_path / "a", stop=Taken(10**6))
    assert not (tmp_path / "a/result.json").exists()
    assert not list((tmp_path / "a/checkpoints").glob("step*"))


def lines_so_far(folder: Path) -> int:
    metrics = folder / "metrics.jsonl"
    return len(metrics.read_bytes().splitlines()) if metrics.exists() else 0


def test_a_log_that_is_behind_its_checkpoint_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        quietly(tiny(), tmp_path / "a", stop=StopAfter(4))
    timing = tmp_path / "a/timing.jsonl"
    timing.write_text("".join(timing.read_text().splitlines(keepends=True)[:2]))
    said = io.StringIO()
    train(tiny(), tmp_path / "a", resume=True, console=Console(file=said))
    text = said.getvalue()
    assert "the checkpoint is of step 4" in text and "ends at step 2" in text


def _poison(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Make the images of one step NaN."""
    from conadv.trainer.input.feed import ResidentFeed

    original = ResidentFeed.micro_batch

    def poisoned(self: ResidentFeed, at: int, index: int) -> Any:
        images, labels = original(self, at, index)
        return (images * float("nan") if at == step else images), labels

    monkeypatch.setattr(ResidentFeed, "micro_batch", poisoned)


def test_nan_stops_with_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _poison(monkeypatch, 3)
    with pytest.raises(NonFiniteError) as raised:
        quietly(tiny("method.schedule=vanilla", "checkpoint.every_steps=2"), tmp_path / "a")
    message = str(raised.value)
    assert "step 4: the loss is nan" in message and "learning rate" in message
    assert message.partition("Sample ids of the batch: ")[2].count(",") == 15
    assert Result.read(tmp_path / "a/result.json").status == "diverged"
    kept = final_state(tmp_path / "a")["trainer"]["model"]
    assert all(v.isfinite().all() for v in kept.values())


def test_nan_skipped_and_resumed_equals_unbroken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _poison(monkeypatch, 2)
    recipe = tiny("train.nonfinite=skip")
    quietly(recipe, tmp_path / "whole")
    with pytest.raises(Interrupted):
        quietly(recipe, tmp_path / "broken", stop=StopAfter(3))
    quietly(recipe, tmp_path / "broken", resume=True)
    found = lines(tmp_path / "whole")
    assert [x["step"] for x in found if x.get("skipped")] == [3]
    assert [x["loss"] for x in found if x.get("skipped")] == [None]
    assert (tmp_path / "broken/metrics.jsonl").read_bytes() == (
        tmp_path / "whole/metrics.jsonl"
    ).read_bytes()
    assert_same_state(final_state(tmp_path / "broken"), final_state(tmp_path / "whole"))
