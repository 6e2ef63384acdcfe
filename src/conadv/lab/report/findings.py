"""What the results say, in words: every sentence is computed, none is written beforehand."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from conadv.lab.evidence import Paired
from conadv.lab.report.comparison import (
    Comparison,
    compare,
    mean_difference,
    step_time,
    test_images,
    uncertainty,
    unsigned,
)
from conadv.lab.report.study.cells import Cell, baseline, disturbed, relative
from conadv.lab.report.study.large_batch import measured_difference
from conadv.lab.report.study.wording import between, difference
from conadv.lab.report.text import count, joined, percent, points, ratio

_UNFINISHED_TRAINING = 0.02
"""Fraction of training accuracy that a run may be behind the reference before it is said."""


_MOST_NAMED = 6
_MEASURES = (
    ("accuracy under attack", "robust_accuracy"),
    ("test accuracy", "test_accuracy"),
)
"""What a headline compares, the surest effect first."""


@dataclass(frozen=True)
class Figure:
    """One number worth a tile.

    Attributes:
        value: The number.
        interval: How far chance may have moved it, or why that is no question.
        label: What it is.
        detail: The figures behind it.
    """

    value: str
    interval: str
    label: str
    detail: str


@dataclass(frozen=True)
class Findings:
    """The words of a report.

    Attributes:
        headline: One sentence.
        figures: Key figures, at most four.
        sentences: The comparison, the few that matter.
        caveats: What the figures do not show, the most important first.
        more: Further sentences, for those who want all of it.
    """

    headline: str
    figures: tuple[Figure, ...]
    sentences: tuple[str, ...]
    caveats: tuple[str, ...]
    more: tuple[str, ...] = ()


def findings(everything: Sequence[Cell]) -> Findings:
    """Put the results into words."""
    seen = compare(everything)
    if seen is None:
        return Findings(_plain_headline(everything), (), (), tuple(_caveats(everything, None)))
    best = "" if seen.best is None else seen.best.key.method
    attack = "" if seen.best is None else attack_note(seen.best)
    at = f"points from {best} at batch {count(seen.large.batch)}"
    under = f"points of accuracy under attack from {best}"
    figures = [
        _lost_figure(seen),
        _gain_figure(seen, "test_accuracy", at, " test accuracy"),
        _gain_figure(seen, "robust_accuracy", under, attack),
        _cost_figure(seen),
    ]
    sentences = [_sentence(seen, cell) for cell in seen.methods]
    return Findings(
        _headline(seen),
        tuple(figure for figure in figures if figure is not None),
        tuple(sentence for sentence in sentences if sentence),
        tuple(_caveats(everything, seen)),
    )


def _headline(seen: Comparison) -> str:
    batch, best = count(seen.large.batch), seen.best
    if seen.single_seed:
        found = f"ordinary training {percent(seen.large.mean('test_accuracy'))}"
        if best is not None:
            found += f", {best.key.method} {percent(best.mean('test_accuracy'))}"
        found += f" at batch {batch}"
        if seen.small is not None:
            accuracy = percent(seen.small.mean("test_accuracy"))
            found += f"; {accuracy} at batch {count(seen.small.batch)}"
        noise = uncertainty(seen.large)
        chance = "" if noise is None else f" (under about {unsigned(noise)} points is chance)"
        return f"One seed each, no verdict: {found}{chance}."
    parts = []
    if best is not None:
        changed = [
            f"{words} by {_measured(best, seen.large, name)}"
            for words, name in _MEASURES
            if measured_difference(best, seen.large, name) is not None
        ]
        compute = relative(best, seen.everything, "compute")
        cost = "" if compute is None else f", for {ratio(compute)} the compute"
        parts.append(f"at batch {batch} {best.key.method} changed {joined(changed)}{cost}")
    if seen.small is not None:
        parts.append(
            f"batch {batch} itself changed ordinary training by "
            f"{_measured(seen.large, seen.small)} against batch {count(seen.small.batch)}"
        )
    text = "; ".join(parts)
    if not parts:
        alone = Paired(tuple(seen.large.values("test_accuracy")))
        text = f"batch {batch}: {percent(alone.value)}{_between(alone)} test accuracy"
    return f"{text[0].upper()}{text[1:]}."


def _between(found: Paired) -> str:
    """An interval of an accuracy in per cent; empty for a single seed."""
    ends = found.interval
    return "" if ends is None else f" ({percent(ends[0])} to {percent(ends[1])})"


def _measured(one: Cell, other: Cell, name: str = "test_accuracy") -> str:
    """A difference in points, with what is known of its uncertainty."""
    found = measured_difference(one, other, name)
    if found is None or found.interval is None:
        return f"{difference(found)} points (no two seeds in common)"
    chance = ", within chance" if found.by_chance else ""
    return f"{points(found.value)} points ({between(found.interval)}{chance})"


def _headline_of_held_out(everything: Sequence[Cell]) -> str:
    """Headline of runs that were told to leave the test images alone."""
    judged = [(cell.mean("val_accuracy"), cell) for cell in everything]
    known = [(accuracy, cell) for accuracy, cell in judged if accuracy is not None]
    if not known:
        return "No run has finished yet."
    accuracy, best = max(known, key=lambda one: one[0])
    ends = _between(Paired(tuple(best.values("val_accuracy"))))
    return (
        f"{best.key.method} at batch {count(best.batch)} reached {percent(accuracy)}{ends} on "
        "held-out images; the test images were left alone."
    )


def _plain_headline(everything: Sequence[Cell]) -> str:
    measured = [cell for cell in everything if cell.mean("test_accuracy") is not None]
    if not measured:
        return _headline_of_held_out(everything)
    if len(measured) == 1:
        only = measured[0]
        found = Paired(tuple(only.values("test_accuracy")))
        noise = uncertainty(only) if found.interval is None else None
        chance = "" if noise is None else f" ± {unsigned(noise / math.sqrt(2))}"
        return (
            f"{only.key.method} at batch {count(only.batch)} reached {percent(found.value)}"
            f"{chance or _between(found)} test accuracy."
        )
    return f"{len(measured)} settings, none of them ordinary training to compare with."


def _lost_figure(seen: Comparison) -> Figure | None:
    if seen.lost is None or seen.small is None:
        return None
    return Figure(
        points(-seen.lost),
        _interval(seen, seen.large, "test_accuracy", seen.small),
        f"points of test accuracy, batch {count(seen.large.batch)} against "
        f"{count(seen.small.batch)}, ordinary training",
        f"{percent(seen.small.mean('test_accuracy'))} at {count(seen.small.batch)}, "
        f"{percent(seen.large.mean('test_accuracy'))} at {count(seen.large.batch)}",
    )


def _gain_figure(seen: Comparison, name: str, label: str, detail: str) -> Figure | None:
    """What the best adversarial method has more than ordinary training at its batch."""
    best, large = seen.best, seen.large
    gained = None if best is None else mean_difference(best, large, name)
    if best is None or gained is None:
        return None
    accuracies = f"{percent(best.mean(name))} against {percent(large.mean(name))}"
    return Figure(points(gained), _interval(seen, best, name), label, accuracies + detail)


def _cost_figure(seen: Comparison) -> Figure | None:
    if seen.best is None:
        return None
    compute = relative(seen.best, seen.everything, "compute")
    if compute is None:
        return None
    time = step_time(seen.best, seen.everything)
    measured = f"a step took {time} the time" if time else "step times say nothing"
    label = f"the compute, for {seen.best.key.method}"
    return Figure(ratio(compute), "counted, not measured", label, measured)


def attack_note(cell: Cell) -> str:
    """Which attack the robust accuracy is under, as far as the recipe says: ``, FGSM 4/255``."""
    run = cell.runs[0]
    epsilon = run.setting("evaluation.robust_epsilon") or run.setting("attack.epsilon")
    steps = run.setting("evaluation.robust_steps")
    if isinstance(epsilon, int | float) and not isinstance(epsilon, bool):
        epsilon = f"{255 * epsilon:.3g}/255"
    if not isinstance(epsilon, str) or not isinstance(steps, int):
        return ""
    return f", {'FGSM' if steps <= 1 else f'PGD-{steps}'} {epsilon}"


def _sentence(seen: Comparison, cell: Cell) -> str:
    """What one method changed against ordinary training at its batch, and what that cost."""
    changes = []
    for words, name in reversed(_MEASURES):
        change = mean_difference(cell, seen.large, name)
        if change is not None:
            changes.append(f"{points(change)}{seen.give_or_take(cell, name)} points of {words}")
    if not changes:
        return ""
    compute = relative(cell, seen.everything, "compute")
    cost = [f"{ratio(compute)} the compute"] if compute is not None else []
    time = step_time(cell, seen.everything)
    if time:
        cost.append(f"{time} the time per step")
    paid = f", for {joined(cost)}" if cost else ""
    return f"{cell.key.method}: {' and '.join(changes)}{paid}."


def _interval(seen: Comparison, cell: Cell, name: str, than: Cell | None = None) -> str:
    """What chance may do to a tile's figure, on a line of its own."""
    return seen.give_or_take(cell, name, than).strip(" ()") or "not known: no two seeds"


def _caveats(everything: Sequence[Cell], seen: Comparison | None) -> list[str]:
    notes = []
    if seen is not None:
        if seen.single_seed:
            noise = uncertainty(seen.large)
            size = ""
            if noise is not None:
                images = count(test_images(seen.large))
                size = f": with {images} test images, differences under about "
                size += f"{unsigned(noise)} points are within chance"
            notes.append(f"One seed per setting{size}. Look at directions, not at decimals.")
        notes += _training_note(seen)
        if baseline(seen.large, everything) is not None and len(seen.methods) > 0:
            steps = {cell.mean("steps") for cell in (seen.large, *seen.methods)}
            alike = "in as many updates" if len(steps) == 1 else "at equal passes over the images"
            notes.append(f"Runs of one batch are compared {alike}, not at equal compute.")
    busy = [cell.key.method for cell in everything if disturbed(cell, everything)]
    if busy:
        notes.append(
            f"Step times are not to be believed, and left out: those of {joined(busy)}, beside "
            "ordinary training's, are not what the counted operations explain. Other work on the "
            "cores does that."
        )
    for status in ("interrupted", "diverged", "failed", "unfinished"):
        names = [run.name for cell in everything for run in cell.runs if run.status == status]
        if names:
            verb = "is" if len(names) == 1 else "are"
            if len(names) > _MOST_NAMED:
                names = [*names[:_MOST_NAMED], f"{len(names) - _MOST_NAMED} more"]
            notes.append(f"{joined(names)} {verb} {status} and left out of every comparison.")
    return notes


def _training_note(seen: Comparison) -> list[str]:
    if seen.small is None:
        return []
    behind = mean_difference(seen.small, seen.large, "train_accuracy")
    if behind is None or behind < _UNFINISHED_TRAINING:
        return []
    return [
        f"Ordinary training at batch {count(seen.large.batch)} also fits its own training images "
        f"less well ({percent(seen.large.mean('train_accuracy'))} against "
        f"{percent(seen.small.mean('train_accuracy'))}): part of its loss is training that is not "
        "finished, not worse generalisation."
    ]
