"""What the results say, in words: every sentence is computed, none is written beforehand."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from conadv.lab.report.study.cells import Cell, baseline, disturbed, relative
from conadv.lab.report.study.large_batch import measured_difference
from conadv.lab.report.study.wording import difference, interval
from conadv.lab.report.text import count, joined, percent, points, ratio, seconds

_UNFINISHED_TRAINING = 0.02
"""Fraction of training accuracy that a run may be behind the reference before it is said."""


_MOST_NAMED = 6
_TEST_IMAGES = {"fashion-mnist-subset": 2_000, "cifar10": 10_000}
"""Sizes of test sets, for runs whose result does not note ``test_images``."""


@dataclass(frozen=True)
class Figure:
    """One number worth a tile: the value, what it is, and the figures behind it."""

    value: str
    label: str
    detail: str


@dataclass(frozen=True)
class Findings:
    """The words of a report.

    Attributes:
        headline: One sentence.
        figures: Key figures, at most four.
        sentences: The comparison, method by method.
        caveats: What the figures do not show.
    """

    headline: str
    figures: tuple[Figure, ...]
    sentences: tuple[str, ...]
    caveats: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """The large batch against the small one, in one data set and network.

    Attributes:
        everything: All cells.
        small: Ordinary training at the smallest batch, if that is smaller than ``large``'s.
        large: Ordinary training at the largest batch.
        methods: The other methods at the largest batch, controls included.
    """

    everything: tuple[Cell, ...]
    small: Cell | None
    large: Cell
    methods: tuple[Cell, ...]

    @property
    def lost(self) -> float | None:
        """Test accuracy that ordinary training loses from the small to the large batch."""
        if self.small is None:
            return None
        return _difference(self.small, self.large, "test_accuracy")

    @property
    def best(self) -> Cell | None:
        """The adversarial method that did best on validation images: the test set has no say.

        Of methods that did as well the one of least compute.
        """
        adversarial = [cell for cell in self.methods if cell.key.family.attacks]
        measured = [cell for cell in adversarial if cell.mean("test_accuracy") is not None]

        def merit(cell: Cell) -> tuple[float, float]:
            value, cost = cell.mean("val_accuracy"), cell.mean("compute")
            return -1.0 if value is None else value, -math.inf if cost is None else -cost

        return max(measured, key=merit, default=None)

    @property
    def gained(self) -> float | None:
        """Test accuracy of :attr:`best` above ordinary training at the same batch."""
        return None if self.best is None else _difference(self.best, self.large, "test_accuracy")


def compare(everything: Sequence[Cell]) -> Comparison | None:
    """Find what can be compared: the data set and network with most cells, if any has a baseline.

    Returns:
        None if no ordinary training was measured.
    """
    vanilla = [
        cell
        for cell in everything
        if cell.ordinary
        and cell.length == 1
        and cell.batch is not None
        and cell.mean("test_accuracy") is not None
    ]
    if not vanilla:
        return None
    places = [(cell.dataset, cell.model) for cell in everything]
    place = max(
        ((cell.dataset, cell.model) for cell in vanilla), key=lambda place: places.count(place)
    )
    vanilla = [cell for cell in vanilla if (cell.dataset, cell.model) == place]
    large = max(vanilla, key=lambda cell: cell.batch or 0)
    small = min(vanilla, key=lambda cell: cell.batch or 0)
    methods = tuple(
        cell
        for cell in everything
        if (cell.dataset, cell.model, cell.batch) == (*place, large.batch)
        and cell.key.method != large.key.method
    )
    return Comparison(
        tuple(everything), small if small.batch != large.batch else None, large, methods
    )


def findings(everything: Sequence[Cell]) -> Findings:
    """Put the results into words."""
    seen = compare(everything)
    if seen is None:
        return Findings(_plain_headline(everything), (), (), tuple(_caveats(everything, None)))
    figures = [_lost_figure(seen), _gained_figure(seen), _robust_figure(seen), _cost_figure(seen)]
    sentences = [_sentence(seen, cell) for cell in seen.methods]
    return Findings(
        _headline(seen),
        tuple(figure for figure in figures if figure is not None),
        tuple(sentence for sentence in sentences if sentence),
        tuple(_caveats(everything, seen)),
    )


def uncertainty(cell: Cell, name: str = "test_accuracy") -> float | None:
    """Two standard errors of a difference of two accuracies like the cell's.

    Binomial, and so too wide where both networks saw the same images: sqrt(2 p (1 - p) / n), with
    n the number of test images, or of those attacked. None where that number is not known.
    """
    accuracy, images = cell.mean(name), test_images(cell)
    attacked = cell.setting("evaluation.robust_images")
    if name == "robust_accuracy" and isinstance(attacked, int) and images:
        images = min(images, attacked)
    if accuracy is None or not images:
        return None
    return 2 * math.sqrt(2 * accuracy * (1 - accuracy) / images)


def test_images(cell: Cell) -> float | None:
    """How many test images the cell's accuracies are over, if known."""
    return cell.mean("test_images") or _TEST_IMAGES.get(cell.dataset)


def _difference(one: Cell, other: Cell, name: str) -> float | None:
    first, second = one.mean(name), other.mean(name)
    return None if first is None or second is None else first - second


def _headline(seen: Comparison) -> str:
    batch, best = count(seen.large.batch), seen.best
    if _single_seed(seen):
        found = f"ordinary training {percent(seen.large.mean('test_accuracy'))}"
        if best is not None:
            found += f", {best.key.method} {percent(best.mean('test_accuracy'))}"
        found += f" at batch {batch}"
        if seen.small is not None:
            accuracy = percent(seen.small.mean("test_accuracy"))
            found += f"; {accuracy} at batch {count(seen.small.batch)}"
        noise = uncertainty(seen.large)
        chance = "" if noise is None else f" (under about {_unsigned(noise)} points is chance)"
        return f"One seed each, no verdict: {found}{chance}."
    parts = []
    if seen.small is not None:
        parts.append(
            f"batch {batch} changed ordinary training by {_measured(seen.large, seen.small)} "
            f"against batch {count(seen.small.batch)}"
        )
    if best is not None:
        gained = _measured(best, seen.large)
        parts.append(f"{best.key.method} changed test accuracy at batch {batch} by {gained}")
    accuracy = percent(seen.large.mean("test_accuracy"))
    text = "; ".join(parts) or f"batch {batch}: {accuracy} test accuracy"
    return f"{text[0].upper()}{text[1:]}."


def _measured(one: Cell, other: Cell) -> str:
    """A difference in points, with what is known of its uncertainty."""
    found = measured_difference(one, other)
    known = found is not None and found.interval is not None
    return f"{difference(found)} points{'' if known else ' (no two seeds in common)'}"


def _headline_of_held_out(everything: Sequence[Cell]) -> str:
    """Runs that were told to leave the test images alone have only these."""
    judged = [(cell.mean("val_accuracy"), cell) for cell in everything]
    known = [(accuracy, cell) for accuracy, cell in judged if accuracy is not None]
    if not known:
        return "No run has finished yet."
    accuracy, best = max(known, key=lambda one: one[0])
    return (
        f"{best.key.method} at batch {count(best.batch)} reached {percent(accuracy)} on held-out "
        "images; the test images were left alone."
    )


def _plain_headline(everything: Sequence[Cell]) -> str:
    measured = [cell for cell in everything if cell.mean("test_accuracy") is not None]
    if not measured:
        return _headline_of_held_out(everything)
    if len(measured) == 1:
        only = measured[0]
        accuracy = percent(only.mean("test_accuracy"))
        return f"{only.key.method} at batch {count(only.batch)} reached {accuracy} test accuracy."
    return f"{len(measured)} settings, none of them ordinary training to compare with."


def _lost_figure(seen: Comparison) -> Figure | None:
    if seen.lost is None or seen.small is None:
        return None
    return Figure(
        points(-seen.lost) + _give_or_take(seen, seen.large, "test_accuracy", seen.small),
        f"points of test accuracy, batch {count(seen.large.batch)} against "
        f"{count(seen.small.batch)}, ordinary training",
        f"{percent(seen.small.mean('test_accuracy'))} at {count(seen.small.batch)}, "
        f"{percent(seen.large.mean('test_accuracy'))} at {count(seen.large.batch)}",
    )


def _gained_figure(seen: Comparison) -> Figure | None:
    if seen.gained is None or seen.best is None:
        return None
    return Figure(
        points(seen.gained) + _give_or_take(seen, seen.best, "test_accuracy"),
        f"points from {seen.best.key.method} at batch {count(seen.large.batch)}",
        f"{percent(seen.best.mean('test_accuracy'))} against "
        f"{percent(seen.large.mean('test_accuracy'))} test accuracy",
    )


def _robust_figure(seen: Comparison) -> Figure | None:
    if seen.best is None:
        return None
    gained = _difference(seen.best, seen.large, "robust_accuracy")
    if gained is None:
        return None
    return Figure(
        points(gained) + _give_or_take(seen, seen.best, "robust_accuracy"),
        f"points of accuracy under attack from {seen.best.key.method}",
        f"{percent(seen.best.mean('robust_accuracy'))} against "
        f"{percent(seen.large.mean('robust_accuracy'))}{attack_note(seen.best)}",
    )


def _cost_figure(seen: Comparison) -> Figure | None:
    if seen.best is None:
        return None
    compute = relative(seen.best, seen.everything, "compute")
    time = relative(seen.best, seen.everything, "step_seconds_median")
    if compute is None:
        return None
    measured = (
        f"a step took {ratio(time)} the time" if time is not None else "step times say nothing"
    )
    return Figure(ratio(compute), f"the compute, for {seen.best.key.method}", measured)


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
    accuracy = cell.mean("test_accuracy")
    if accuracy is None:
        return ""
    parts = [f"{percent(accuracy)} test accuracy"]
    change = _difference(cell, seen.large, "test_accuracy")
    if change is not None:
        parts[0] += f" ({points(change)}{_give_or_take(seen, cell, 'test_accuracy')} points)"
    robust = _difference(cell, seen.large, "robust_accuracy")
    if robust is not None:
        parts.append(
            f"{percent(cell.mean('robust_accuracy'))} under attack "
            f"({points(robust)}{_give_or_take(seen, cell, 'robust_accuracy')} points)"
        )
    compute = relative(cell, seen.everything, "compute")
    time = relative(cell, seen.everything, "step_seconds_median")
    cost = [f"{ratio(compute)} the compute"] if compute is not None else []
    if time is not None:
        cost.append(
            f"{ratio(time)} the time per step ({seconds(cell.mean('step_seconds_median'))})"
        )
    if cost:
        parts.append("for " + " and ".join(cost))
    return f"{cell.key.method}: {', '.join(parts)}."


def _give_or_take(seen: Comparison, cell: Cell, name: str, than: Cell | None = None) -> str:
    """What chance may do to a difference from ordinary training, or from another cell."""
    if _single_seed(seen):
        noise = uncertainty(cell, name)
        return "" if noise is None else f" ± {_unsigned(noise)}"
    paired = measured_difference(cell, than or seen.large, name)
    return "" if paired is None else interval(paired)


def _caveats(everything: Sequence[Cell], seen: Comparison | None) -> list[str]:
    notes = []
    if seen is not None:
        if _single_seed(seen):
            noise = uncertainty(seen.large)
            size = ""
            if noise is not None:
                images = count(test_images(seen.large))
                size = f": with {images} test images, differences under about "
                size += f"{_unsigned(noise)} points are within chance"
            notes.append(f"One seed per setting{size}. Look at directions, not at decimals.")
        notes += _training_note(seen)
        if baseline(seen.large, everything) is not None and len(seen.methods) > 0:
            notes.append(
                "Runs are compared at equal passes over the training images, not at equal compute."
            )
    busy = [cell.key.method for cell in everything if disturbed(cell, everything)]
    if busy:
        notes.append(
            f"Step times are not to be believed, and left out: those of {joined(busy)} are more "
            "than twice off what the counted operations explain, as on cores shared with others."
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
    behind = _difference(seen.small, seen.large, "train_accuracy")
    if behind is None or behind < _UNFINISHED_TRAINING:
        return []
    return [
        f"Ordinary training at batch {count(seen.large.batch)} also fits its own training images "
        f"less well ({percent(seen.large.mean('train_accuracy'))} against "
        f"{percent(seen.small.mean('train_accuracy'))}): part of its loss is training that is not "
        "finished, not worse generalisation."
    ]


def _single_seed(seen: Comparison) -> bool:
    return all(len(cell.finished) < 2 for cell in (seen.large, *seen.methods))


def _unsigned(fraction: float) -> str:
    return f"{100 * abs(fraction):.1f}"
