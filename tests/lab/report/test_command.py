"""``conadv report``: what it prints, writes and refuses."""

import json
from pathlib import Path

import pytest

from conadv.cli import main
from lab.report.conftest import MakeRun, MakeStudy
from lab.report.test_imagenet_tables import corruption, result


def test_it_writes_into_the_first_folder(
    make_study: MakeStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_study()
    assert main(["report", str(folder)]) == 0
    told = capsys.readouterr().out
    assert told.startswith("By the means, within 0.5 points of the best small-batch accuracy")
    assert f"{folder}/report.html  " in told
    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_all_three_files(
    four_runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new"
    command = ["report", *map(str, four_runs), "--out", f"{out}/a.html", "--title", "Four runs"]
    assert main([*command, "--markdown", f"{out}/a.md", "--csv", f"{out}/a.csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert "Four runs" in (out / "a.html").read_text(encoding="utf-8")
    assert (out / "a.md").read_text(encoding="utf-8").count("\n| ") > 4
    assert len((out / "a.csv").read_text(encoding="utf-8").splitlines()) == 5


def test_images_that_may_not_be_passed_on_are_left_out(
    four_runs: list[Path], tmp_path: Path
) -> None:
    page = tmp_path / "a.html"
    command = ["report", *map(str, four_runs), "--out", str(page)]
    assert main(command) == 0
    assert ' id="pictures"' in (shown := page.read_text("utf-8"))
    assert '<img src="data:image/png' in shown
    assert main([*command, "--no-pictures"]) == 0
    assert ' id="pictures"' not in (hidden := page.read_text("utf-8"))
    assert '<img src="data:image/png' not in hidden


def test_scores_on_imagenet_sets(make_run: MakeRun, tmp_path: Path) -> None:
    scores = result(model="a-resnet", corruption=corruption())
    folder = make_run("a")
    (folder / "imagenet.json").write_text(json.dumps(scores))
    other = tmp_path / "other.json"
    other.write_text(json.dumps(scores | {"model": "another"}))
    assert main(["report", str(folder), str(other), "--markdown", f"{tmp_path}/a.md"]) == 0
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "a-resnet" in page and "another" in page and "76.1" in page
    assert "gaussian_noise" in page.replace(" ", "_").lower()
    assert "a-resnet" in (tmp_path / "a.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("given", "said"),
    [("none", "does not exist"), ("empty", "nor holds any"), ("bad.json", "is damaged")],
)
def test_what_cannot_be_reported_on(
    given: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.json").write_text("{")
    assert main(["report", str(tmp_path / given)]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
