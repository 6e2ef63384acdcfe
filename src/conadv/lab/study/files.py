"""Where studies come from, and the folder that one lives in."""

import socket
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from conadv._files import write_text
from conadv.errors import ConadvError, StudyError
from conadv.lab.study.schema import Method, Study
from conadv.trainer.recipe import dump_recipe, load_recipe, recipe_names
from conadv.trainer.recipe.yaml12 import parse_yaml

STUDY = "study.yaml"
BASE = "base.yaml"


def study_names() -> list[str]:
    """Names of the studies that come with the package, sorted."""
    folder = resources.files("conadv") / "studies"
    return sorted(
        f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")
    )


def load_study(given: str | Path) -> Study:
    """Read a study and check it; a recipe beside its file is named by its whole path then.

    Args:
        given: A name from `study_names`, the path of a YAML file, or a study folder.

    Raises:
        StudyError: There is no such study, or something in it is impossible; every problem is
            listed.
    """
    path = Path(given)
    if str(given) in study_names():
        text = (resources.files("conadv") / "studies" / f"{given}.yaml").read_text("utf-8")
        return make_study(_parsed(text, f"study {given}"), str(given), f"study {given}")
    path = path / STUDY if path.is_dir() else path
    if not path.is_file():
        raise StudyError(
            f"{given}: no such study. Give the path of a YAML file, a study folder, or one of: "
            f"{', '.join(study_names())}."
        )
    values = _parsed(path.read_text(encoding="utf-8"), str(path))
    recipe, base = values.get("recipe"), path.parent / BASE
    if isinstance(recipe, str):
        if recipe not in recipe_names():
            values["recipe"] = str(path.parent / recipe)
        elif path.name == STUDY and base.is_file() and not _is_same(recipe, base):
            values["recipe"] = str(base)  # the recipe of that name is another one by now
    return make_study(values, path.stem, str(path))


def _is_same(recipe: str, other: str | Path) -> bool:
    return load_recipe(recipe) == load_recipe(other)


def make_study(values: dict[str, Any], name: str, what: str) -> Study:
    """A checked study from nested values; raises as `load_study` does."""
    try:
        return Study.model_validate({"name": name, **values})
    except ValidationError as error:
        problems = [_sentence(detail) for detail in error.errors(include_url=False)]
        listed = "".join(f"\n  - {problem}" for problem in dict.fromkeys(problems))
        raise StudyError(f"{what}:{listed}") from None


def _parsed(text: str, what: str) -> dict[str, Any]:
    try:
        values = parse_yaml(text, what)
    except ConadvError as error:
        raise StudyError(str(error)) from error
    if not isinstance(values, dict):
        raise StudyError(f"{what} does not hold a study: names and values are needed, as YAML.")
    return values


def _sentence(detail: Any) -> str:
    place = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "value_error":
        message = str(detail["ctx"]["error"])
    elif detail["type"] == "extra_forbidden":
        message = f"no such field. Allowed: {', '.join(_siblings(detail['loc']))}."
    else:
        message = f"{detail['msg']} (given: {detail['input']!r})"
    return f"{place}: {message}" if place else message


def _siblings(loc: tuple[int | str, ...]) -> list[str]:
    """Names of the fields beside one that does not exist."""
    from conadv.lab.study.hypotheses.schema import Hypotheses, Hypothesis
    from conadv.lab.study.schema import Final, Method, Parameter, Tuning

    sections = {"tuning": Tuning, "final": Final, "methods": Method, "hypotheses": Hypothesis}
    owner: Any = sections.get(str(loc[0]), Study)
    if len(loc) == 1:
        owner = Study
    elif loc[0] == "hypotheses" and len(loc) == 2:
        owner = Hypotheses
    elif "space" in loc:
        owner = Parameter
    return list(owner.model_fields)


class StudyFolder:
    """Names the files of one study.

    Args:
        root: The folder. Nothing is touched until :meth:`prepare`.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.study = self.root / STUDY
        self.base = self.root / BASE
        self.storage = self.root / "storage.log"
        """Optuna's journal: every trial's values and outcome."""
        self.tasks = self.root / "tasks"
        """Who works at which run, and what became of it."""
        self.runs = self.root / "runs"
        self.logs = self.root / "logs"
        self.tuned = self.root / "tuned.json"
        self.summary = self.root / "summary.json"
        self.table = self.root / "summary.csv"
        self.registered = self.root / "registered.json"
        """What was to be decided, from before the first final run."""

    def log(self, number: int) -> Path:
        """Where a worker of this machine writes what it says."""
        return self.logs / f"{socket.gethostname()}-{number}.log"

    def prepare(self, study: Study) -> Study:
        """Create the folder, or see that it holds this study.

        More seeds, methods and batches may be added to a study, and hypotheses changed, which
        then are exploratory; everything else must be as it was, because some of its runs may be
        done. The folder keeps its recipe: one that comes with the package may be another when
        the study goes on.

        Returns:
            The study as the folder has it: its recipe is a name, or a file in the folder.

        Raises:
            StudyError: Another study lives here, or the folder holds something else.
        """
        own = study
        if study.recipe not in recipe_names():
            own = study.model_copy(update={"recipe": BASE})
        if self.study.exists():
            before = make_study(
                _parsed(self.study.read_text(encoding="utf-8"), str(self.study)), "", ""
            )
            own = study.model_copy(update={"recipe": before.recipe})
            self._require_same(before, own, study.recipe)
        elif self.root.is_dir() and any(self.root.iterdir()):
            raise StudyError(
                f"{self.root} exists and is no study folder: give a new folder with --out."
            )
        for folder in (self.tasks, self.runs, self.logs):
            folder.mkdir(parents=True, exist_ok=True)
        if not self.base.exists():
            write_text(self.base, dump_recipe(load_recipe(study.recipe)))
        values = yaml.safe_dump(own.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        if not self.study.exists() or self.study.read_text(encoding="utf-8") != values:
            write_text(self.study, values)
        return load_study(self.root)

    def _require_same(self, before: Study, now: Study, recipe: str) -> None:
        kept = now.model_copy(
            update={
                "methods": _methods(now, before),
                "batches": {n: b for n, b in now.batches.items() if n in before.batches},
                "final": now.final.model_copy(
                    update={"seeds": tuple(s for s in before.final.seeds if s in now.final.seeds)}
                ),
            }
        )
        before = before.model_copy(update={"methods": _methods(before, before)})
        old, new = before.model_dump(mode="json"), kept.model_dump(mode="json")
        # These change no run.
        fields = ("attempts", "stale_after", "description", "hypotheses")
        names = [name for name in old if old[name] != new[name] and name not in fields]
        # By what it holds: a recipe may have a name or be a file.
        if not _is_same(recipe, self.base if self.base.exists() else before.recipe):
            names.append("recipe")
        if names:
            raise StudyError(
                f"{self.root} holds a study in which {', '.join(names)} differ; only seeds, "
                "methods and batches may be added. Give a new folder with --out, or go on with "
                f"that study as it is: conadv study {self.root}"
            )

    def require_study(self) -> Study:
        """The study that lives here.

        Raises:
            StudyError: None does.
        """
        if not self.study.is_file():
            raise StudyError(f"{self.root} is no study folder: it has no {STUDY}.")
        return load_study(self.root)


def _methods(study: Study, before: Study) -> dict[str, Method]:
    """The methods that there were before, as they are now, with the batches of then."""
    return {
        name: method.model_copy(
            update={"batches": tuple(b for b in before.sizes_of(name) if b in study.sizes_of(name))}
        )
        for name, method in study.methods.items()
        if name in before.methods
    }
