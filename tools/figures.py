"""Figures and words of judgement within sentences of the documentation, from the result files.

`<!-- = STUDY CELL [- CELL] MEASURE FORM -->text<!-- / -->` holds what the final runs of a
published study say: a mean over seeds, or a difference of two cells paired by seed. `STUDY runs`
counts its runs with those that tuned it, `STUDY hours SPEED` is what those it lacks take at so many
images/s, `STUDY sharpness BATCH` is the range over its methods.
`results_tables.py` writes it anew, as it does the tables; a test refuses bare figures and
judgements.

    <!-- = cifar10-cpu recycled-b1250 - vanilla-b1250 test full -->+1.3 (+0.5 to +2.1)<!-- / -->
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache

from table_parts import ROOT, read

from conadv.lab.evidence import Paired
from conadv.lab.report.study.wording import difference
from conadv.lab.report.text import points

FIGURE = re.compile(r"(<!-- = ([^>]+?) -->)(.*?)(<!-- / -->)", re.DOTALL)
MEASURES = {
    "test": "test_accuracy",
    "robust": "robust_accuracy",
    "train": "train_accuracy",
}


def figure(key: str) -> str:
    """What stands for ``STUDY CELL [- CELL] MEASURE FORM``.

    Raises:
        ValueError: The key has another form, or no run is meant by it.
    """
    match key.split():
        case [study, cell, measure, form]:
            values = [*_by_seed(study, cell, MEASURES[measure]).values()]
        case [study, cell, "-", other, measure, form]:
            one, two = (_by_seed(study, name, MEASURES[measure]) for name in (cell, other))
            values = [one[seed] - two[seed] for seed in one if seed in two]
        case [study, "runs"]:
            return f"{_count(study):,}"
        case [study, "hours", speed]:
            return f"{_hours_left(study, float(speed)):.0f}"
        case [study, "sharpness", batch]:
            found = sorted(eigenvalues(study, int(batch)).values())
            return " to ".join(f"{value:,.0f}" for value in dict.fromkeys((found[0], found[-1])))
        case _:
            raise ValueError(f"figure {key!r}: give STUDY CELL [- CELL] MEASURE FORM")
    if not values or form not in FORMS:
        raise ValueError(f"figure {key!r}: no such runs, or a form other than {', '.join(FORMS)}")
    return FORMS[form](Paired(tuple(values)))


@cache
def _by_seed(study: str, cell: str, name: str) -> dict[int, float]:
    runs = read(f"results/{study}/summary.json")["runs"]
    return {
        int(run["seed"]): float(run[name])
        for run in runs
        if run["cell"] == cell and run["status"] == "finished" and run[name] is not None
    }


def eigenvalues(study: str, batch: int) -> dict[str, float]:
    """The largest eigenvalue of the Hessian of one run of each method."""
    found = {}
    for path in sorted((ROOT / "results" / study / "runs").glob(f"*-b{batch}/*/analysis.json")):
        result = json.loads(path.read_text(encoding="utf-8"))["analyses"]["sharpness"]["result"]
        method = json.loads((path.parent / "result.json").read_text(encoding="utf-8"))["method"]
        found[method] = float(result["hessian"]["eigenvalues"][0])
    return found


def _count(study: str) -> int:
    """Final runs, trials and their confirmations; a trial is the first of its confirmations."""
    cells = read(f"results/{study}/tuned.json")["cells"].values()
    trials = sum(len(cell.get("trials", ())) for cell in cells)
    again = sum(len(one["accuracies"]) - 1 for cell in cells for one in cell.get("confirmed", ()))
    return len(read(f"results/{study}/summary.json")["runs"]) + trials + again


def _hours_left(study: str, images_per_second: float) -> float:
    """What one worker needs for the runs that a published study lacks."""
    from conadv.lab.study.cost import estimate
    from conadv.lab.study.files import load_study
    from conadv.lab.study.outcomes import read_outcomes
    from conadv.lab.study.plan import make_plan

    folder = ROOT / "results" / study
    plan = make_plan(load_study(folder / "study.yaml"), folder)
    ended = read_outcomes(folder / "tasks", [task.name for task in plan.tasks])
    costs = {cost.cell: cost for cost in estimate(plan, images_per_second)}
    left = [(costs[t.cell.name], t.kind) for t in plan.tasks if t.name not in ended]
    return sum(c.final_seconds if kind == "final" else c.trial_seconds for c, kind in left) / 3600


def _verdict(found: Paired) -> str:
    if found.by_chance:
        return "within chance"
    return "ahead" if found.value > 0 else "behind"


FORMS: dict[str, Callable[[Paired], str]] = {
    "points": lambda found: f"{abs(100 * found.value):.1f}",
    "signed": lambda found: points(found.value),
    "full": difference,
    "percent": lambda found: f"{100 * found.value:.0f} %",
    "spread": lambda found: f"± {100 * (found.spread or 0.0):.1f}",
    "verdict": _verdict,
}


def write_figures(text: str) -> str:
    """The page with every figure within its sentences written anew."""
    return FIGURE.sub(lambda m: m[1] + figure(m[2]) + m[4], text)
