"""Copy what others may want of a study into the repository, and make its report there.

    python tools/publish_study.py runs/fashion-cpu results/fashion-cpu
    python tools/publish_study.py runs/cifar10-cpu results/cifar10-cpu --no-pictures

Taken are the definition, the tables, the tuned settings, and of every final run its result, recipe
and analysis; the machine once. Recipes go without their comments, which are most of their size.
Left out are checkpoints, curves, trials' folders, and everything about the machine's folders.

Of a study that is not finished, the outcomes of its runs and the search's journal are taken too:
`conadv study` on a copy of the published folder goes on with it.

The page is made here of the whole study, with its curves, and with pictures where the licence of
the data allows that. It is not committed: `make pages` makes it again from what is.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from contextlib import chdir
from pathlib import Path
from typing import Any

from conadv.lab.report.content import content
from conadv.lab.report.page import write_content
from conadv.lab.report.study.runs import gather, is_study
from conadv.lab.study import StudyFolder
from conadv.lab.study.outcomes import outcome_path, read_outcomes
from conadv.lab.study.plan import make_plan

STUDY = ("study.yaml", "base.yaml", "registered.json", "tuned.json", "summary.json", "summary.csv")
COMMENT = re.compile(r"^\s*(?:#.*)?\n", re.MULTILINE)
RUN = ("result.json", "recipe.yaml", "analysis.json")


def publish(study: Path, out: Path, *, pictures: bool = True) -> int:
    """Write ``out`` anew.

    Args:
        study: Folder of the study; its name stands in the table of the runs.
        out: What is committed; what is there is replaced.
        pictures: Whether the page shows images of the data.

    Returns:
        How many final runs were copied.

    Raises:
        SystemExit: ``study`` is none, or ``out`` holds something that is no published study.
    """
    if not is_study(study):
        sys.exit(f"{study} is no study folder: it lacks study.yaml or summary.json.")
    if out.exists() and not is_study(out):
        sys.exit(f"{out} holds something else: give a new folder, or remove it.")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for name in STUDY:
        if (study / name).is_file():
            shutil.copyfile(study / name, out / name)
    if (out / "base.yaml").is_file():
        without_comments(out / "base.yaml")
    carry_on(study, out)
    rows = json.loads((study / "summary.json").read_text(encoding="utf-8"))["runs"]
    machines: dict[str, dict[str, Any]] = {}
    for row in rows:
        place = Path(row["folder"])
        (out / place).mkdir(parents=True)
        for name in RUN:
            if (study / place / name).is_file():
                shutil.copyfile(study / place / name, out / place / name)
        if (out / place / "recipe.yaml").is_file():
            without_comments(out / place / "recipe.yaml")
        if (study / place / "environment.json").is_file():
            found = machine(study / place / "environment.json")
            machines.setdefault(json.dumps(found, sort_keys=True), found | {"runs": []})
            machines[json.dumps(found, sort_keys=True)]["runs"].append(str(place))
    environments = json.dumps(list(machines.values()), indent=2) + "\n"
    (out / "environments.json").write_text(environments, encoding="utf-8")
    if rows:
        out = out.resolve()
        with chdir(study.parent):  # so that tables name the runs without this machine's folders
            write_content(
                content(gather([Path(study.name)]), pictures=pictures),
                out / "report.html",
                markdown_out=out / "report.md",
                table_out=out / "runs.csv",
            )
    return len(rows)


def without_comments(recipe: Path) -> None:
    """Write a recipe anew, with its values alone."""
    recipe.write_text(COMMENT.sub("", recipe.read_text("utf-8")), encoding="utf-8")


def carry_on(study: Path, out: Path) -> None:
    """Copy what an unfinished study needs to go on without the folders of its finished runs."""
    folder = StudyFolder(study)
    if not folder.storage.is_file():
        return
    plan = make_plan(folder.require_study(), study)
    found = read_outcomes(folder.tasks, [task.name for task in plan.tasks])
    if len(found) == len(plan.tasks):
        return
    shutil.copyfile(folder.storage, out / folder.storage.name)
    for name in found:
        path = outcome_path(folder.tasks, name)
        copy = out / path.relative_to(study)
        copy.parent.mkdir(parents=True)
        shutil.copyfile(path, copy)


def machine(path: Path) -> dict[str, Any]:
    """Versions and hardware: not when, and not by which command, which the summary has."""
    environment = json.loads(path.read_text(encoding="utf-8"))
    return {name: environment.get(name) for name in ("versions", "hardware", "commit")}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--no-pictures", action="store_true")
    given = parser.parse_args(arguments)
    runs = publish(given.study, given.out, pictures=not given.no_pictures)
    size = sum(path.stat().st_size for path in given.out.rglob("*") if path.is_file())
    print(f"{given.out}: {runs} final runs, {size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
