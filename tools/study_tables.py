"""Tables of the runs and studies in `results/`, and of what studying costs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from table_parts import ROOT, read, remade, table

if TYPE_CHECKING:
    from conadv.lab.evidence import Paired
    from conadv.lab.report.content import Content
    from conadv.lab.report.study.cells import Cell
    from conadv.lab.report.study.large_batch import Gain


@cache
def page(name: str) -> Content:
    """What the report of a published study says."""
    from conadv.lab.report.content import content
    from conadv.lab.report.study.runs import gather

    return content(gather([ROOT / "results" / name]))


@cache
def quickstart_cells() -> list[Cell]:
    """The runs of `make quickstart`, by method and batch."""
    from conadv.lab.report.runs import read_run
    from conadv.lab.report.study.cells import cells

    folders = sorted(path.parent for path in (ROOT / "results/quickstart").glob("*/result.json"))
    return cells(map(read_run, folders))


def quickstart() -> str:
    """What `make quickstart` measured: means, and differences from ordinary training there."""
    from conadv.lab.report.comparison import step_time
    from conadv.lab.report.study.cells import baseline, relative
    from conadv.lab.report.study.large_batch import measured_difference
    from conadv.lab.report.study.wording import difference

    found = quickstart_cells()
    large = next(c for c in found if c.ordinary and c.batch == max(c.batch or 0 for c in found))
    rows = []
    for cell in sorted(found, key=lambda c: (c.batch or 0, c.mean("compute") or 0)):
        row = [cell.key.method, f"{cell.batch:,}"]
        for name in ("test_accuracy", "robust_accuracy"):
            row.append(f"{cell.mean(name):.1%}")
            row.append("" if cell is large else difference(measured_difference(cell, large, name)))
        compute = relative(cell, found, "compute")
        time = "" if cell is baseline(cell, found) else step_time(cell, found)
        row += ["" if compute is None else f"{compute:.2f}", time]
        rows.append([*row, f"{cell.mean('train_accuracy'):.1%}"])
    header = ["method", "batch", "test accuracy", "against vanilla at 500", "under attack"]
    header += ["against vanilla at 500", "compute", "step time", "training accuracy"]
    return table(header, rows)


def learning_rates(name: str) -> str:
    """Every trial of the cells of a study that tunes learning rates, and what was chosen."""
    rows = []
    for cell, found in read(f"results/{name}/tuned.json")["cells"].items():
        method, _, batch = cell.rpartition("-b")
        trials = {
            trial["values"]["optimizer.lr"]: trial["accuracy"]
            for trial in found["trials"]
            if trial["accuracy"] is not None
        }
        if not trials:
            continue
        tried = ", ".join(f"{rate:.3g}: {trials[rate]:.1%}" for rate in sorted(trials))
        chosen = ["not yet", ""]
        if found["chosen"] is not None:
            edge = ", at the edge" if found["at_the_edge"] else ""
            chosen = [
                f"{found['chosen']['optimizer.lr']:.3g}{edge}",
                f"{found['val_accuracy']:.1%}",
            ]
        rows.append([method, batch, tried, *chosen])
    header = ["method", "batch", "rate: held-out accuracy of the trial", "chosen", "over two seeds"]
    return table(header, rows)


def decay_search() -> str:
    """Weight decays and learning rates of ordinary training, by held-out images."""
    found = read("results/decay-search.json")
    rows = [
        [
            f"{run['batch']:,}",
            *(f"{run[name]:g}" for name in ("lr", "weight_decay")),
            *(f"{run[name]:.1%}" for name in ("val_accuracy", "train_accuracy")),
        ]
        for run in found["runs"]
    ]
    header = ["batch", "rate", "weight decay", "held-out accuracy", "training accuracy"]
    seeds = ", ".join(str(seed) for seed in sorted({run["seed"] for run in found["runs"]}))
    note = (
        f"\nOne run each, seed {seeds}; the test images were left alone. Each is remade by its "
        "command in [results/decay-search.json](results/decay-search.json).\n"
    )
    return table(header, rows) + note


def study_command(name: str) -> str:
    """What remakes a published study: its name while the shipped definition is still the same."""
    from conadv.lab.study.files import load_study

    published = f"results/{name}/study.yaml"
    same = load_study(name) == load_study(ROOT / published)
    return f"`conadv study {name if same else published} --workers 2`"


def campaign(name: str) -> str:
    """The tables of a published study; empty until there is one."""
    folder = ROOT / "results" / name
    if not (folder / "summary.json").exists():
        return ""
    from conadv.lab.report.export import gains_table, reach_table

    found = page(name)
    parts = [f"**{found.findings.headline}**\n"]
    if found.scale is not None:
        parts.append(reach_table(found.scale))
    for at_batch in found.gains:
        parts.append(f"At batch {at_batch.batch:,}:\n")
        parts.append(gains_table(at_batch))
    (environment,) = read(f"results/{name}/environments.json")[:1]
    hardware, versions = environment["hardware"], environment["versions"]
    parts.append(
        f"{len(found.runs)} final runs on {hardware['processor']}, {hardware['threads']} thread "
        f"each, torch {versions['torch']}; {study_command(name)} remakes them, "
        f"[results/{name}](results/{name}/report.md) has all of it.\n"
    )
    return "\n".join(parts)


STUDIES = {"cifar10-cpu": "CIFAR-10, 5,000 images", "fashion-cpu": "Fashion-MNIST, 10,000 images"}
FORMS = ("recycled", "recycled, fixed budget")


@dataclass(frozen=True)
class Answer:
    """One of the two forms of `recycled` at one batch, beside the best ordinary training there.

    That has the usual length and the same optimizer.
    """

    place: str
    seeds: int
    row: Gain
    marks: str
    lost: Paired
    above: Paired

    @property
    def won_back(self) -> str:
        """Whether at least half of what the batch has cost is won back, by the intervals alone."""
        from conadv.lab.evidence import Paired
        from conadv.lab.report.study.large_batch import LOSS

        if self.lost.by_chance or self.lost.value < LOSS:
            return "no loss shown"
        pairs = zip(self.above.differences, self.lost.differences, strict=True)
        half = Paired(tuple(gain - loss / 2 for gain, loss in pairs))
        if not half.by_chance:
            return "at least half" if half.value > 0 else "less than half"
        sees = "" if half.visible is None else f", sees {100 * half.visible:.1f} points"
        return f"undecided{sees}"


def answers() -> list[Answer]:
    """The schedule `recycled` at full strength and on a fixed budget, at every batch."""
    from conadv.lab.report.study.large_batch import measured_difference
    from conadv.lab.report.study.marks import marks

    found = []
    for name, data in STUDIES.items():
        scale = page(name).scale
        assert scale is not None
        for at_batch in page(name).gains:
            usual = [
                at_batch.ordinary,
                *(r.cell for r in at_batch.rows if r.cell.ordinary and r.cell.length == 1),
            ]
            best = max(usual, key=lambda cell: cell.mean("test_accuracy") or 0.0)
            lost = measured_difference(scale.reference, best)
            if lost is None:
                continue
            for row in at_batch.rows:
                if row.cell.key.method in FORMS:
                    above = measured_difference(row.cell, best)
                    assert above is not None
                    found.append(
                        Answer(
                            f"{data}, batch {at_batch.batch:,}",
                            len(scale.reference.finished),
                            row,
                            ", ".join(marks(row.cell, at_batch.cells)),
                            lost,
                            above,
                        )
                    )
    return found


def goal() -> str:
    """Whether at least half of what a batch has cost is won back, by the intervals alone."""
    from conadv.lab.report.study.wording import difference

    found = answers()
    rows = [
        [
            one.place,
            difference(one.lost),
            one.row.cell.key.method,
            f"{one.row.multiple:.2f}×",
            difference(one.above),
            difference(one.row.same_compute),
            difference(one.row.robust_same_compute),
            one.won_back,
            one.marks or "–",
        ]
        for one in found
    ]
    seeds = dict.fromkeys(f"{one.seeds} on {one.place.split(',')[0]}" for one in found)
    header = ["data", "lost", "method", "compute", "at equal steps", "at equal compute"]
    header += ["under attack, at equal compute", "won back", "marks"]
    commands = " and ".join(study_command(name) for name in STUDIES)
    note = (
        "\nPoints of accuracy, paired by seed, with intervals of 95 %. At equal compute: above the "
        "best ordinary training of at most as much. Nothing was stated before the final runs: all "
        f"of it is exploratory. Seeds: {', '.join(seeds)}. {commands} remake it.\n"
    )
    return table(header, rows) + note


def front() -> str:
    """The table of the front page: what a batch has cost, what copies add at equal compute."""
    from conadv.lab.report.study.wording import difference

    found = answers()
    rows = []
    for place in dict.fromkeys(one.place for one in found):
        by_form = {one.row.cell.key.method: one for one in found if one.place == place}
        row = [place.replace(" images", ""), difference(next(iter(by_form.values())).lost)]
        for form in FORMS:
            row += [
                difference(by_form[form].row.same_compute),
                difference(by_form[form].row.robust_same_compute),
            ]
        rows.append(row)
    header = ["training images, batch", "lost to the batch", "recycled", "recycled, under attack"]
    header += ["fixed budget", "fixed budget, under attack"]
    runs = sum(len(read(f"results/{name}/summary.json")["runs"]) for name in STUDIES)
    (seeds,) = {one.seeds for one in found}
    note = (
        f"\nPoints of test accuracy with intervals of 95 % over {seeds} seeds. Lost: by ordinary "
        "training, against the small batch. The rest: above the best ordinary training of at most "
        f"the same compute. {runs:,} final runs, exploratory.\n"
    )
    return table(header, rows) + note


def confirmatory(name: str) -> str:
    """What a study with hypotheses has decided, what it tuned, and how far it has come."""
    from conadv.lab.report.study.wording import judged_columns, judged_row
    from conadv.lab.study.files import load_study
    from conadv.lab.study.plan import make_plan

    folder = ROOT / "results" / name
    plan = make_plan(load_study(folder / "study.yaml"))
    summary = read(f"results/{name}/summary.json")
    stated = plan.study.hypotheses
    assert stated is not None
    finals = [task for task in plan.tasks if task.kind == "final"]
    ended = len(summary["runs"])
    rows = [[*judged_row(one)] for one in summary["hypotheses"]]
    seen = {one["name"] for one in summary["hypotheses"]}
    waiting = ", ".join(one for one in stated.named if one not in seen)
    text = table([*judged_columns()], rows) if rows else ""
    text += f"\n{ended} of {len(finals)} final runs have ended."
    text += f" No pair of runs yet for: {waiting}.\n" if waiting else "\n"
    if plan.study.tuning.trials:
        text += f"\n{learning_rates(name)}"
    return text + f"\n{study_command(name)} makes it.\n"


@dataclass(frozen=True)
class Corner:
    """A single change to recycled, beside ordinary training of the same seeds."""

    name: str
    accuracies: tuple[float, ...]
    above: Paired | None
    compute: float
    train: float


def corner_runs() -> list[Corner]:
    """Single changes to recycled, by held-out images.

    A larger network and longer training have ordinary training of their own to stand beside.
    """
    import statistics

    from conadv.lab.evidence import Paired

    of_method: dict[str, dict[int, dict[str, Any]]] = {}
    for run in page("fashion-corners").runs:
        name, _, _ = str(run.result["name"]).rpartition("-b")
        of_method.setdefault(name, {})[int(run.result["seed"])] = dict(run.result)
    found = []
    for name, runs in of_method.items():
        own = f"vanilla-{name.rpartition('-')[2]}"
        beside = of_method.get(own if name != own else "vanilla", of_method["vanilla"])
        above = [run["val_accuracy"] - beside[seed]["val_accuracy"] for seed, run in runs.items()]
        found.append(
            Corner(
                name,
                tuple(run["val_accuracy"] for run in runs.values()),
                None if name == "vanilla" else Paired(tuple(above)),
                statistics.fmean(run["compute"] / beside[n]["compute"] for n, run in runs.items()),
                statistics.fmean(run["train_accuracy"] for run in runs.values()),
            )
        )
    return found


def corners() -> str:
    """The table of `corner_runs`."""
    import statistics

    from conadv.lab.report.study.wording import difference

    found = corner_runs()
    rows = [
        [
            one.name,
            f"{100 * statistics.fmean(one.accuracies):.1f} % ± "
            f"{100 * statistics.stdev(one.accuracies):.1f}",
            difference(one.above),
            f"{one.compute:.2f}×",
            f"{one.train:.1%}".replace("%", " %"),
        ]
        for one in found
    ]
    header = ["change", "held-out accuracy", "above ordinary training, same seed", "compute"]
    header.append("training accuracy")
    seeds = max(len(one.accuracies) for one in found)
    note = (
        "\nAccuracies ± standard deviation over seeds; differences with intervals of 95 %, paired "
        f"by seed. {study_command('fashion-corners')} remakes it, {seeds} seeds of each.\n"
    )
    return table(header, rows) + note


def overhead() -> str:
    """What a study adds to its runs, and what a report takes."""
    study = read("benchmarks/results/study-overhead-cpu.json")
    report = read("benchmarks/results/report-speed-cpu.json")
    rows = [
        [
            f"a study of {study['runs']} runs, over their time",
            f"{study['overhead']:.1%}",
            f"{study['bar']:.0%}",
        ],
        [
            f"the report of {report['runs']} runs",
            f"{report['seconds']['median']:.1f} s",
            f"{report['seconds']['bar']} s",
        ],
        ["its page", f"{report['megabytes']['page']} MB", f"{report['megabytes']['bar']} MB"],
    ]
    text = table(["what", "measured", "bar"], rows)
    return text + remade(study["environment"]) + remade(report["environment"])


def _step(result: dict[str, Any], base: dict[str, Any]) -> str:
    return f"{result['step_seconds_median'] / base['step_seconds_median']:.2f}"
