"""Reading run folders, whole ones and what is left of others."""

import os
from pathlib import Path

import numpy as np
import pytest

from conadv.errors import RunFolderError
from conadv.lab.report import find_runs, read_run
from lab.report.conftest import MakeRun


def test_a_whole_folder(make_run: MakeRun) -> None:
    run = read_run(make_run("a", schedule="recycled", batch=300, pictures=True))
    assert (run.name, run.method, run.schedule, run.batch) == ("a", "recycled", "recycled", 300)
    assert (run.dataset, run.model, run.status) == ("toy-images", "toy-net", "finished")
    assert run.number("test_accuracy") == 0.8
    assert run.setting("attack.epsilon") == "4/255"
    assert run.setting("attack.epsilon.more") is None
    assert [line["step"] for line in run.evaluations] == [5, 10, 15, 20]
    assert len(run.train) == len(run.timing) == 20
    assert run.pictures is not None and run.pictures.labels == ("class 0", "class 1", "class 2")
    assert "# A comment that the page keeps." in run.recipe_text
    assert run.notes == ()


def test_a_run_without_a_result_is_known_by_its_recipe(make_run: MakeRun) -> None:
    folder = make_run("a", schedule="sequential", batch=300)
    (folder / "result.json").unlink()
    run = read_run(folder)
    assert (run.status, run.method, run.batch) == ("unfinished", "sequential", 300)
    assert run.number("test_accuracy") is None
    assert run.notes == ("result.json is missing.",)


def test_a_result_alone_is_enough(make_run: MakeRun) -> None:
    folder = make_run("a")
    for path in folder.iterdir():
        if path.name != "result.json":
            path.unlink()
    run = read_run(folder)
    assert run.number("test_accuracy") == 0.8
    assert {note.split()[0] for note in run.notes} == {
        "recipe.yaml",
        "environment.json",
        "metrics.jsonl",
        "timing.jsonl",
    }


@pytest.mark.parametrize("damage", ["{", "[1, 2]", "\x00\xff", "nul", "[" * 100_000])
def test_damaged_files_become_notes(make_run: MakeRun, damage: str) -> None:
    folder = make_run("a")
    for name in ("recipe.yaml", "environment.json", "result.json"):
        (folder / name).write_text(damage, encoding="latin-1")
    run = read_run(folder)
    assert run.result == run.environment == run.recipe == {}
    assert [note.split()[0] for note in run.notes] == [
        "result.json",
        "recipe.yaml",
        "environment.json",
    ]


def test_a_line_cut_short_is_left_out(make_run: MakeRun) -> None:
    folder = make_run("a")
    with (folder / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"kind": "train", "step": 2')
    run = read_run(folder)
    assert len(run.train) == 20
    assert run.notes == ("1 damaged line(s) of metrics.jsonl were left out.",)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "0.8", None, True])
def test_what_is_not_a_finite_number_is_none(make_run: MakeRun, value: object) -> None:
    assert read_run(make_run("a", test_accuracy=value)).number("test_accuracy") is None


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("bang",)


def test_pickled_pictures_are_refused_and_nothing_runs(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = make_run("a")
    np.savez(folder / "pictures.npz", clean=np.array([_Bomb()], dtype=object))
    run = read_run(folder)
    assert run.pictures is None
    assert "pictures.npz was left out" in run.notes[0]
    assert not (tmp_path / "bang").exists()


def test_yaml_tags_do_not_run(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("a")
    (folder / "recipe.yaml").write_text(f"!!python/object/apply:os.mkdir [{tmp_path}/bang]")
    assert read_run(folder).recipe == {}
    assert not (tmp_path / "bang").exists()


def test_find_runs_looks_one_folder_deep_and_counts_each_once(make_run: MakeRun) -> None:
    b, a = make_run("b"), make_run("a")
    (a.parent / "notes").mkdir()
    assert [run.name for run in find_runs([a.parent])] == ["a", "b"]
    assert [run.name for run in find_runs([b, a.parent, a])] == ["b", "a"]


def test_what_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="is not a run folder"):
        read_run(tmp_path)
    with pytest.raises(RunFolderError, match="neither is a run folder nor holds any"):
        find_runs([tmp_path])
    with pytest.raises(RunFolderError, match="does not exist"):
        find_runs([tmp_path / "none"])


def test_the_folder_that_training_leaves_has_what_is_read_here() -> None:
    """The contract from the other side: names the trainer writes are the names read here."""
    from dataclasses import fields

    from conadv.trainer.run.folder import RunFolder
    from conadv.trainer.run.result import Result

    folder = RunFolder("x")
    files = (folder.recipe, folder.environment, folder.metrics, folder.timing, folder.result)
    assert [path.name for path in (*files, folder.pictures)] == [
        "recipe.yaml",
        "environment.json",
        "metrics.jsonl",
        "timing.jsonl",
        "result.json",
        "pictures.npz",
    ]
    used = {"method", "schedule", "dataset", "model", "global_batch", "status", "compute"}
    used |= {"test_accuracy", "robust_accuracy", "val_accuracy", "step_seconds_median"}
    assert used <= {field.name for field in fields(Result)}
