"""Words of judgement in the documentation hold for the committed results, one predicate each.

Figures within sentences are written by tools/figures.py, tables by tools/results_tables.py; what
is said about them in words stands here beside what would make it false.
"""

import re
import statistics
from collections.abc import Callable, Iterator

import pytest
from scipy import stats

from conadv.lab.evidence import Paired
from conadv.lab.report.runs import Run
from conadv.lab.report.study.cells import Cell
from conadv.lab.report.study.large_batch import (
    Gain,
    Gains,
    at_equal_compute,
    gains,
    measured_difference,
    unfinished,
)
from conadv.trainer.models.zoo import create_model
from support.scripts import load_script
from support.tools import ROOT, load_tool

results_tables = load_tool("results_tables")
tables = load_tool("study_tables")
figures = load_tool("figures")
train_vs_timm = load_script("benchmarks/train_vs_timm.py")
Claim = tuple[str, str, Callable[[], bool]]


def cell(study: str, name: str, batch: int) -> Cell:
    (found,) = (c for c in tables.page(study).cells if (c.key.method, c.batch) == (name, batch))
    return found


def gains_at(study: str, batch: int) -> Gains:
    (found,) = (at for at in tables.page(study).gains if at.batch == batch)
    return found


def above(study: str, batch: int, one: str, other: str, measure: str = "test_accuracy") -> Paired:
    found = measured_difference(cell(study, one, batch), cell(study, other, batch), measure)
    assert found is not None
    return found


def lost(study: str, small: int, batch: int) -> Paired:
    found = measured_difference(cell(study, "vanilla", small), cell(study, "vanilla", batch))
    assert found is not None
    return found


def answers(study: str) -> Iterator[tuple[int, str, object]]:
    """Batch, form and verdict of the two forms of `recycled`."""
    for one in tables.answers():
        if one.place.startswith(tables.STUDIES[study]):
            yield one.row.cell.batch, one.row.cell.key.method, one


def undecided_under_attack() -> set[tuple[str, int, str]]:
    return {
        (study, batch, form)
        for study in tables.STUDIES
        for batch, form, one in answers(study)
        if one.row.robust_same_compute.by_chance
    }


def fashion_rows(*batches: int) -> Iterator[tuple[int, Gain]]:
    for batch in batches:
        for row in gains_at("fashion-cpu", batch).rows:
            if not row.cell.ordinary:
                yield batch, row


def comparisons() -> list[tuple[int, str, Paired]]:
    """On clean images at 512 and 1,000: at equal steps and at equal compute."""
    return [
        (batch, row.cell.key.method, found)
        for batch, row in fashion_rows(512, 1000)
        for found in (row.same_steps, row.same_compute)
        if found is not None
    ]


def best_at_equal_steps(study: str, batch: int) -> Paired:
    """The largest gain of adversarial copies on clean images."""
    return max(
        (
            row.same_steps
            for row in gains_at(study, batch).rows
            if row.cell.adversarial and row.same_steps
        ),
        key=lambda found: found.value,
    )


def sharpness(batch: int) -> dict[str, float]:
    return figures.eigenvalues("fashion-cpu", batch)


def corner_differences() -> list[Paired]:
    return [one.above for one in tables.corner_runs() if one.above is not None]


def quickstart() -> dict[tuple[str, int], Cell]:
    return {(c.key.method, c.batch or 0): c for c in tables.quickstart_cells()}


def quickstart_above(name: str, batch: int, measure: str = "test_accuracy") -> Paired:
    found = measured_difference(quickstart()[name, batch], quickstart()["vanilla", 500], measure)
    assert found is not None
    return found


def tried(study: str, name: str, parameter: str) -> list[float]:
    trials = figures.read(f"results/{study}/tuned.json")["cells"][name]["trials"]
    return [trial["values"][parameter] for trial in trials]


def rates_matter_more() -> bool:
    """Held-out accuracies of one method's rates lie further apart than the means of methods."""
    for batch in (512, 1000):
        trials = figures.read("results/fashion-cpu/tuned.json")["cells"][f"vanilla-b{batch}"]
        rates = [trial["accuracy"] for trial in trials["trials"]]
        at = gains_at("fashion-cpu", batch)
        means = [c.mean("test_accuracy") for c in at.cells if c.length == 1]
        if max(rates) - min(rates) <= max(means) - min(means):
            return False
    return True


def first_seeds(name: str) -> tuple[Paired, Paired]:
    """What a method won on the first three seeds, and on all."""
    own, other = (cell("cifar10-cpu", n, 1250).by_seed("test_accuracy") for n in (name, "vanilla"))
    return tuple(
        Paired(tuple(own[seed] - other[seed] for seed in seeds)) for seeds in (range(3), range(6))
    )


def gains_of(study: str) -> list[Gains]:
    return gains(tables.page(study).cells)


def weights_of(study: str) -> int:
    """Parameters of a study's network."""
    recipe = tables.page(study).cells[0].runs[0]
    options = recipe.setting("model.options") or {}
    channels = 1 if study.startswith("fashion") else 3
    network = create_model(recipe.setting("model.name"), channels, 10, options=options)
    return sum(parameter.numel() for parameter in network.parameters())


def corner_recipe(name: str) -> Run:
    runs = tables.page("fashion-corners").runs
    return next(run for run in runs if run.result["name"] == f"{name}-b1000")


def is_gentle(run: Run) -> bool:
    share = [tuple(point) for point in run.setting("method.share")]
    return (
        run.setting("method.weight") == 0.2
        and run.setting("attack.epsilon") == pytest.approx(1 / 255)
        and share == [(0, 1), (0.6, 1), (0.6, 0), (1, 0)]
    )


def longer(study: str) -> list[Cell]:
    return [c for c in tables.page(study).cells if c.length > 1]


def best_decay(batch: int) -> dict[str, float]:
    runs = figures.read("results/decay-search.json")["runs"]
    return max((r for r in runs if r["batch"] == batch), key=lambda r: r["val_accuracy"])


def host_seconds(schedule: str) -> float:
    rows = figures.read("benchmarks/results/host-cpu.json")["rows"]
    return next(row["host_seconds"] for row in rows if row["schedule"] == schedule)


RESULTS = "docs/results.md"
FORMS = ("recycled", "recycled, fixed budget")
CLAIMS: list[Claim] = [
    (
        RESULTS,
        "two steps an epoch for 120 epochs",
        lambda: (
            all(c.mean("steps") == 240 for c in tables.page("evidence-weights").cells)
            and all(c.setting("train.epochs") == 120 for c in tables.page("evidence-weights").cells)
        ),
    ),
    (
        RESULTS,
        "a ResNet-9 on patches (0.5 million parameters)",
        lambda: round(weights_of("evidence-weights") / 1e6, 1) == 0.5,
    ),
    (
        RESULTS,
        "tested on the 50,000 images that no run trains on",
        lambda: (
            {
                run["test_images"]
                for run in figures.read("results/evidence-weights/summary.json")["runs"]
            }
            == {50_000}
        ),
    ),
    (
        RESULTS,
        "its weight decay, 5e-5, is too small for either batch",
        lambda: all(best_decay(batch)["weight_decay"] > 5e-5 for batch in (125, 2500)),
    ),
    (
        RESULTS,
        "Copies take the rate and the decay that are best for ordinary training",
        lambda: all(
            c.setting("optimizer.lr") == best_decay(2500)["lr"]
            and c.setting("optimizer.weight_decay") == best_decay(2500)["weight_decay"]
            for c in tables.page("evidence-decay").cells
        ),
    ),
    (
        RESULTS,
        "ordinary training for twice as many steps, is in the study and has not ended",
        lambda: all(len(c.finished) < 6 for c in longer("evidence-decay")),
    ),
    (
        RESULTS,
        "2.00 times the operations of a step",
        lambda: round(gains_of("evidence-weights")[0].rows[0].multiple, 2) == 2,
    ),
    (
        RESULTS,
        "(75,000 parameters)",
        lambda: round(weights_of("fashion-cpu"), -3) == 75_000,
    ),
    (
        RESULTS,
        "(weight 0.2, epsilon 1/255, none in the last two fifths of training)",
        lambda: is_gentle(corner_recipe("gentle")),
    ),
    (
        "docs/benchmarks.md",
        "The goal, recycled at most 0.5 ms above vanilla, is met here",
        lambda: 0 < host_seconds("recycled") - host_seconds("vanilla") <= 0.5e-3,
    ),
    (
        "docs/benchmarks.md",
        "Both goals are missed",
        lambda: all(
            row["ratio"]["median"] < train_vs_timm.BARS[row["model"]]
            for row in figures.read("benchmarks/results/train-vs-timm-cpu.json")["rows"]
            if row["goal"] is not None
        ),
    ),
    (
        "docs/benchmarks.md",
        "on two cores the networks' own convolutions take most of a step",
        lambda: all(
            row["share_of_step"]["convolutions"]["median"] > 0.5
            for row in figures.read("benchmarks/results/step-parts-cpu.json")["rows"]
        ),
    ),
    (
        RESULTS,
        "the arms that decide that, ordinary training for twice as many steps and on twice the "
        "batch, are in the study and have not been run",
        lambda: (
            {c.key.method for c in tables.page("evidence-weights").cells}
            == {"vanilla", "recycled weights"}
        ),
    ),
    (
        RESULTS,
        "the arms at batch 125 have not been run either",
        lambda: {c.batch for c in tables.page("evidence-weights").cells} == {2500},
    ),
    (
        RESULTS,
        "copies of weights, whose longer ordinary training has not been run",
        lambda: not any(row.same_compute for at in gains_of("evidence-weights") for row in at.rows),
    ),
    (
        RESULTS,
        "On Fashion-MNIST at 2,500, where training is far from finished, more steps give more",
        lambda: (
            cell("fashion-cpu", "vanilla", 2500).mean("train_accuracy") < 0.9
            and best_at_equal_steps("fashion-cpu", 2500).value
            < above("fashion-cpu", 2500, "vanilla, 2x steps", "vanilla").interval[0]
        ),
    ),
    (
        RESULTS,
        "the best of their gains in as many steps is +1.3",
        lambda: (
            best_at_equal_steps("cifar10-cpu", 1250)
            == above("cifar10-cpu", 1250, "recycled", "vanilla")
            and all(
                best_at_equal_steps("fashion-cpu", batch).value
                < best_at_equal_steps("cifar10-cpu", 1250).value
                for batch in (512, 1000, 2500)
            )
        ),
    ),
    (
        RESULTS,
        "Nowhere is it shown that half of a loss is won back",
        lambda: all(one.won_back != "at least half" for one in tables.answers()),
    ),
    (
        RESULTS,
        "nowhere shown to return half of what a large batch loses on clean images",
        lambda: all(one.won_back != "at least half" for one in tables.answers()),
    ),
    (
        RESULTS,
        "On Fashion-MNIST ordinary training loses nothing at 512",
        lambda: lost("fashion-cpu", 128, 512).by_chance,
    ),
    (
        RESULTS,
        "at 2,500, where 96 steps do not finish the training, less than half comes back",
        lambda: (
            cell("fashion-cpu", "vanilla", 2500).mean("steps") == 96
            and unfinished(cell("fashion-cpu", "vanilla", 2500))
            and [one.won_back for batch, _, one in answers("fashion-cpu") if batch == 2500]
            == ["less than half"] * 2
        ),
    ),
    (
        RESULTS,
        "whether that is half of the loss",
        lambda: dict((f, one) for _, f, one in answers("cifar10-cpu"))[
            "recycled"
        ].won_back.startswith("undecided"),
    ),
    (
        RESULTS,
        "the share of copies was the largest or smallest value tried",
        lambda: (
            "share at the edge"
            in dict((f, one) for _, f, one in answers("cifar10-cpu"))["recycled"].marks
        ),
    ),
    (
        RESULTS,
        "The small batch was not trained with copies",
        lambda: (
            [c.key.method for c in tables.page("cifar10-cpu").cells if c.batch == 125]
            == ["vanilla"]
        ),
    ),
    (
        RESULTS,
        "ordinary training of twice the steps, which is *worse* than that of usual length",
        lambda: above("cifar10-cpu", 1250, "vanilla, 2x steps", "vanilla").interval[1] < 0,
    ),
    (
        RESULTS,
        "except at 1,000 for recycled and at 2,500 for the fixed budget, where that is undecided",
        lambda: (
            undecided_under_attack()
            == {("fashion-cpu", 1000, FORMS[0]), ("fashion-cpu", 2500, FORMS[1])}
            and all(
                one.row.robust_same_compute.by_chance or one.row.robust_same_compute.value > 0
                for one in tables.answers()
            )
        ),
    ),
    (RESULTS, "The learning rate matters more than the method", rates_matter_more),
    (
        RESULTS,
        "Ten ways of training at batches from 512, ordinary training alone at 128",
        lambda: (
            [len(gains_at("fashion-cpu", b).cells) for b in (512, 1000, 2500)] == [10] * 3
            and [c.key.method for c in tables.page("fashion-cpu").cells if c.batch == 128]
            == ["vanilla"]
        ),
    ),
    (
        RESULTS,
        "Of the twenty-eight comparisons there, in as many steps and at equal compute, those of "
        "gentle copies at 512 alone",
        lambda: (
            len(comparisons()) == 28
            and {(batch, name) for batch, name, found in comparisons() if not found.by_chance}
            == {(512, "recycled, gentle")}
        ),
    ),
    (
        RESULTS,
        "Copies with random signs do as well on clean images as adversarial ones at 1,000",
        lambda: (
            cell("fashion-cpu", "noise", 1000).mean("test_accuracy")
            >= max(
                row.cell.mean("test_accuracy")
                for _, row in fashion_rows(1000)
                if row.cell.adversarial
            )
        ),
    ),
    (
        RESULTS,
        "Under attack they gain nothing over ordinary training of the same length, and most "
        "adversarial copies do",
        lambda: (
            all(
                row.robust.by_chance
                for _, row in fashion_rows(512, 1000, 2500)
                if row.cell.key.method == "noise"
            )
            and statistics.fmean(
                row.robust.interval[0] > 0
                for _, row in fashion_rows(512, 1000, 2500)
                if row.cell.adversarial
            )
            > 0.5
        ),
    ),
    (
        RESULTS,
        "twice the steps do not bring the point back",
        lambda: above("fashion-cpu", 1000, "vanilla, 2x steps", "vanilla").by_chance,
    ),
    (
        RESULTS,
        "more steps bring back most of it",
        lambda: (
            unfinished(cell("fashion-cpu", "vanilla", 2500))
            and above("fashion-cpu", 2500, "vanilla, 2x steps", "vanilla").interval[0]
            > lost("fashion-cpu", 128, 2500).value / 2
        ),
    ),
    (
        RESULTS,
        "**Lookahead and sequential** cannot be told apart on clean images by six seeds",
        lambda: all(
            above("fashion-cpu", batch, "lookahead", "sequential").by_chance
            for batch in (512, 1000, 2500)
        ),
    ),
    (
        RESULTS,
        "smallest for the longest training, without a relation to test accuracy",
        lambda: all(
            min(sharpness(batch), key=sharpness(batch).get) == "vanilla, 2.67x steps"
            and stats.spearmanr(
                [*sharpness(batch).values()],
                [cell("fashion-cpu", n, batch).mean("test_accuracy") for n in sharpness(batch)],
            ).pvalue
            > 0.05
            for batch in (512, 1000)
        ),
    ),
    (
        RESULTS,
        "beside the best ordinary training of at most their compute, which is that of usual length",
        lambda: all(
            at_equal_compute(row.cell, gains_at("cifar10-cpu", 1250).cells) == row.same_steps
            for row in gains_at("cifar10-cpu", 1250).rows
            if row.cell.key.method in ("recycled", "recycled, gentle")
        ),
    ),
    (
        RESULTS,
        "Neither training is finished, and ordinary training and recycled took the same learning "
        "rate",
        lambda: (
            all(unfinished(cell("cifar10-cpu", n, 1250)) for n in ("vanilla", "recycled"))
            and len(
                {
                    cell("cifar10-cpu", n, 1250).setting("optimizer.lr")
                    for n in ("vanilla", "recycled")
                }
            )
            == 1
        ),
    ),
    (
        RESULTS,
        "on which recycled and the fixed budget won more than they did in the end, both beyond "
        "chance",
        lambda: all(
            not first.by_chance and first.value > every.value
            for first, every in map(first_seeds, FORMS)
        ),
    ),
    (
        RESULTS,
        "The small batch's seeds differed by four points",
        lambda: (
            3.5
            < 100
            * (
                max(three := cell("cifar10-cpu", "vanilla", 125).values("test_accuracy")[:3])
                - min(three)
            )
            < 4.5
        ),
    ),
    (
        RESULTS,
        "**Robustness doubles**",
        lambda: (
            cell("cifar10-cpu", "recycled", 1250).mean("robust_accuracy")
            > 1.9 * cell("cifar10-cpu", "vanilla", 1250).mean("robust_accuracy")
        ),
    ),
    (
        RESULTS,
        "at 1,250, largest for twice the steps, which are the least accurate",
        lambda: (
            max(found := figures.eigenvalues("cifar10-cpu", 1250), key=found.get)
            == min(found, key=lambda name: cell("cifar10-cpu", name, 1250).mean("test_accuracy"))
            == "vanilla, 2x steps"
        ),
    ),
    (
        RESULTS,
        "Every interval holds zero",
        lambda: all(found.by_chance for found in corner_differences()),
    ),
    (
        RESULTS,
        "three seeds, which tell apart one to three points",
        lambda: all((found.visible or 0) >= 0.01 for found in corner_differences()),
    ),
    (
        RESULTS,
        "Six seeds and 2,000 test images tell apart about half a point",
        lambda: (
            0.004 < statistics.median(found.visible or 0.0 for _, _, found in comparisons()) < 0.012
        ),
    ),
    (
        "README.md",
        "copies make networks harder to mislead in most of our settings, at no extra compute too",
        lambda: all(
            statistics.fmean(
                one.row.robust_same_compute.interval[0] > 0
                for one in tables.answers()
                if one.row.cell.key.method == form
            )
            > 0.5
            for form in FORMS
        ),
    ),
    (
        "README.md",
        "That copies of images win back what a large batch loses is shown nowhere",
        lambda: all(one.won_back != "at least half" for one in tables.answers()),
    ),
    (
        "README.md",
        "mostly in the table below, clean accuracy changes within chance",
        lambda: (
            statistics.fmean(one.row.same_compute.by_chance for one in tables.answers()) > 0.5
            and all(quickstart_above(name, 500).by_chance for name in FORMS)
        ),
    ),
    (
        "README.md",
        "docs/results.md) has ten methods",
        lambda: len(gains_at("fashion-cpu", 512).cells) == 10,
    ),
    (
        "docs/quickstart.md",
        "by more than chance in both forms; the fixed budget has nearly all of it for no extra "
        "compute",
        lambda: (
            all(quickstart_above(n, 500, "robust_accuracy").interval[0] > 0 for n in FORMS)
            and quickstart_above(FORMS[1], 500, "robust_accuracy").value
            > 0.8 * quickstart_above(FORMS[0], 500, "robust_accuracy").value
        ),
    ),
    (
        "docs/quickstart.md",
        "everything, the loss to the large batch too, is within chance of three seeds",
        lambda: all(
            quickstart_above(name, batch).by_chance
            for name, batch in (("vanilla", 50), *((form, 500) for form in FORMS))
        ),
    ),
    (
        "docs/quickstart.md",
        "ordinary training fits its images, and with copies nearly all of them",
        lambda: (
            all(quickstart()["vanilla", batch].mean("train_accuracy") > 0.99 for batch in (50, 500))
            and all(not unfinished(quickstart()[form, 500]) for form in FORMS)
        ),
    ),
]


@pytest.mark.parametrize(
    ("page", "words", "holds"), CLAIMS, ids=[f"{c[0]}: {c[1][:40]}" for c in CLAIMS]
)
def test_what_is_said_holds(page: str, words: str, holds: Callable[[], bool]) -> None:
    assert words in said(page), "the page says something else now: so must this test"
    assert holds()


def said(page: str) -> str:
    return re.sub(r"<!--.*?-->", "", (ROOT / page).read_text(encoding="utf-8"))


NOT_FROM_HERE = {
    "**The level**": "a pilot outside this repository",
    "**What an earlier study found was chance.**": "a study that was withdrawn",
    "**Step times** in the reports": "no result",
}
"""Points of docs/results.md that nothing in results/ could say."""


def test_every_point_of_the_results_has_something_that_says_so() -> None:
    text = (ROOT / RESULTS).read_text(encoding="utf-8").partition("## What is not answered")[0]
    for line in (line for line in text.splitlines() if line.startswith("- ")):
        known = covered(RESULTS, line) or any(words in line for words in NOT_FROM_HERE)
        assert known, f"what says so? {line}"


# -- Nothing stands on its own -------------------------------------------------------------------

MEASURED = re.compile(r"[+−]?\d+(?:\.\d+)? ?(?:%|points)|[+−]\d+\.\d|\d+\.\d+ points|± \d")
JUDGED = re.compile(r"\b(?:ahead|behind|within chance|wins? back|won back)\b")


@pytest.mark.parametrize("page", ["README.md", RESULTS, "docs/quickstart.md", "docs/weights.md"])
def test_no_figure_or_judgement_stands_on_its_own(page: str) -> None:
    text = results_tables.BLOCK.sub("", (ROOT / page).read_text(encoding="utf-8"))
    for line in re.sub(r"```.*?```", "", text, flags=re.DOTALL).splitlines():
        bare = figures.FIGURE.sub("", line).replace("intervals of 95 %", "")
        assert not MEASURED.search(bare), f"{page}: give this its source (tools/figures.py): {line}"
        if JUDGED.search(bare):
            assert covered(page, line) or "table" in line, f"{page}: what says so? {line}"


def covered(page: str, line: str) -> bool:
    """Whether a figure stands in a line, or a claim about it above."""
    bare = re.sub(r"<!--.*?-->", "", line)
    claimed = any(words in bare for where, words, _ in CLAIMS if where == page)
    return bool(claimed or figures.FIGURE.search(line))
