"""The run folder refuses to mix runs, and its line files never repeat a step."""

import os
from pathlib import Path

import pytest

from conadv.errors import RunFolderError
from conadv.trainer.run.folder import RunFolder
from conadv.trainer.run.lines import JsonLines, read_lines, truncate_after


def test_create_makes_the_files(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "a")
    folder.create("name: a\n", {"versions": {}})
    assert folder.recipe.read_text() == "name: a\n"
    assert folder.checkpoints.is_dir() and folder.holds_run()


def test_a_folder_that_holds_a_run_is_refused_with_the_resume_command(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.create("a: 1\n", {})
    with pytest.raises(RunFolderError, match=r"already holds a run[^$]*--resume"):
        folder.create("a: 2\n", {})
    assert folder.recipe.read_text() == "a: 1\n"


@pytest.mark.parametrize("at", ["environment.json", "recipe.yaml"])
def test_a_kill_while_it_is_made_leaves_a_free_folder(
    at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "run")
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        if target.name == at:
            raise SystemExit
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: None)  # no time to clean up
    with pytest.raises(SystemExit):
        folder.create("a: 1\n", {})
    monkeypatch.undo()
    assert list(folder.root.glob(f".{at}.*.partial")) and folder.checkpoints.is_dir()
    folder.create("a: 2\n", {})
    assert folder.recipe.read_text() == "a: 2\n"
    assert sorted(p.name for p in folder.root.iterdir()) == [
        "checkpoints",
        "environment.json",
        "recipe.yaml",
    ]


@pytest.mark.parametrize("mine", ["mine.txt", "metrics.jsonl", "checkpoints/step_00000001.pt"])
def test_what_is_not_of_a_run_that_was_being_made_stays(mine: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.checkpoints.mkdir(parents=True)
    folder.environment.write_text("{}")
    (folder.root / mine).touch()
    with pytest.raises(RunFolderError, match="already holds a run"):
        folder.require_free()
    assert (folder.root / mine).exists() and folder.environment.exists()


def test_a_folder_of_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunFolderError, match="not an empty folder"):
        RunFolder(tmp_path).create("", {})


def test_a_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="cannot create"):
        RunFolder(tmp_path / "file" / "run").create("", {})


def test_reopen_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"no recipe\.yaml"):
        RunFolder(tmp_path).reopen({})


def test_reopen_notes_the_new_start_and_clears_partial_files(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.create("", {"commit": "one"})
    (folder.checkpoints / ".step_00000001.pt.host-1-1.partial").touch()
    folder.reopen({"commit": "two"})
    assert '"one"' in folder.environment.read_text() and '"two"' in folder.environment.read_text()
    assert not list(folder.checkpoints.iterdir())


def test_the_command_to_go_on_names_the_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "a b")
    folder.create("", {"hardware": {"processes": 2}})
    alone = f"conadv train '{folder.root}' --resume"
    assert folder.resume_command() == f"{alone} --devices 2"
    folder.reopen({"hardware": {"processes": 1}})
    assert folder.resume_command() == alone
    monkeypatch.setenv("GROUP_WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    command = folder.resume_command()
    assert command.startswith("torchrun --nnodes 3 --nproc-per-node 8 ")
    assert command.endswith(f"-m {alone}")


def test_lines_after_the_checkpoint_are_dropped_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [{"kind": "train", "step": s, "loss": 1 / (s + 3)} for s in range(1, 6)]
    with JsonLines(path) as file:
        for line in lines:
            file.append(line)
    whole = path.read_text()
    with path.open("a") as raw:
        raw.write('{"kind": "train", "st')  # what a kill in the middle of a write leaves
    assert list(read_lines(path)) == lines
    truncate_after(path, 3)
    assert path.read_text() == "".join(whole.splitlines(keepends=True)[:3])


def test_truncating_a_missing_file_does_nothing(tmp_path: Path) -> None:
    truncate_after(tmp_path / "absent", 3)
    assert not list(tmp_path.iterdir())
