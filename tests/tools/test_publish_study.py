"""What is published of a study can be reported on again, without folders of the machine."""

import importlib.util
import json
import shlex
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from conadv.errors import Interrupted
from conadv.lab.report import gather
from conadv.lab.report.content import content
from conadv.lab.study import StudyFolder
from conadv.lab.study.outcomes import read_outcomes
from conadv.lab.study.search import Search
from conadv.lab.study.tables import write_tables
from conadv.trainer.recipe import Recipe, load_recipe
from conadv.trainer.run.result import Result
from lab.report.conftest import MakeStudy, make_run, make_study
from support.studies import FakeTraining, prepared, worker

__all__ = ["make_run", "make_study"]  # fixtures

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"


@pytest.fixture
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("publish", ROOT / "tools/publish_study.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_published_study_says_what_the_whole_one_says(
    tool: ModuleType, make_study: MakeStudy, tmp_path: Path
) -> None:
    study, out = make_study(failed=("sam-b1000/seed-2",)), tmp_path / "results" / "s"
    for path in study.rglob("environment.json"):
        environment = json.loads(path.read_text()) | {"command": "conadv /home/me/s --parent 1"}
        path.write_text(json.dumps(environment))
    assert tool.publish(study, out) == 39
    assert tool.publish(study, out) == 39  # anew
    whole, published = (content(gather([folder])) for folder in (study, out))
    assert published.findings == whole.findings
    assert published.scale is not None and whole.scale is not None
    assert [r.largest for r in published.scale.reaches] == [r.largest for r in whole.scale.reaches]
    assert published.tuned == whole.tuned
    assert {"report.html", "report.md", "runs.csv", "environments.json"} <= {
        path.name for path in out.iterdir()
    }
    assert not any(str(tmp_path) in p.read_text() for p in out.rglob("*.*") if p.is_file())
    recipes = {p: p.read_text() for p in out.rglob("recipe.yaml")}
    assert len(recipes) == 38 and not any(
        "\n#" in text or "\n\n" in text for text in recipes.values()
    )
    (environment,) = json.loads((out / "environments.json").read_text())
    assert environment["hardware"]["processor"] == "Abacus 9000"
    assert len(environment["runs"]) == 38
    for path in out.rglob("*"):
        assert path.is_dir() or "/home/me" not in path.read_text(encoding="utf-8"), path
    assert not list(out.rglob("metrics.jsonl"))


def test_an_unfinished_study_goes_on_from_what_is_published(
    tool: ModuleType, tmp_path: Path
) -> None:
    folder, plan = prepared(tmp_path)
    make = FakeTraining()

    def stopping(recipe: Recipe, out: Path, **options: Any) -> Result:
        if len(make.recipes) == 5:
            raise Interrupted("enough for today")
        return make(recipe, out, **options)

    with pytest.raises(Interrupted):
        worker(folder, stopping).work()
    write_tables(folder, plan, Search(folder.storage, plan.study))
    tool.publish(folder.root, tmp_path / "results")
    copy = shutil.copytree(tmp_path / "results", tmp_path / "again")
    worker(StudyFolder(copy), make).work()
    assert len(make.recipes) == len(plan.tasks) == 8
    again = read_outcomes(StudyFolder(copy).tasks, [task.name for task in plan.tasks])
    assert {outcome.status for outcome in again.values()} == {"finished"} and len(again) == 8


def test_nothing_else_is_overwritten(
    tool: ModuleType, make_study: MakeStudy, tmp_path: Path
) -> None:
    other = tmp_path / "precious"
    other.mkdir()
    (other / "file").touch()
    with pytest.raises(SystemExit, match="holds something else"):
        tool.publish(make_study(), other)
    with pytest.raises(SystemExit, match="is no study folder"):
        tool.publish(other, tmp_path / "out")
    assert (other / "file").exists()


@pytest.mark.parametrize("study", sorted(p.parent.name for p in RESULTS.glob("*/summary.json")))
def test_the_commands_of_published_runs_remake_them(study: str) -> None:
    rows = json.loads((RESULTS / study / "summary.json").read_text(encoding="utf-8"))["runs"]
    for row in {row["cell"]: row for row in rows}.values():  # one run of each setting
        _, _, recipe, *overrides, option, _ = shlex.split(row["command"])
        assert option == "--out"
        kept = load_recipe(RESULTS / study / row["folder"] / "recipe.yaml")
        assert load_recipe(recipe, overrides) == kept, (
            f"{row['command']} makes another run than the one published: the recipe or a default "
            "has changed"
        )
