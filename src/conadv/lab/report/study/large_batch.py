"""What a large batch costs and what a method gives back, at equal epochs and at equal compute."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from conadv.lab.report.charts.palette import MethodKey
from conadv.lab.report.study.cells import Cell, baseline

TOLERANCE = 0.005
"""Test accuracy (a fraction) that a large batch may lose and still count as keeping up."""
UNFINISHED = 0.95
"""Training accuracy below which a run counts as not finished: more steps would change it."""
LOSS = 0.01
"""Test accuracy that ordinary training must have lost before winning it back means anything."""
SAME_COMPUTE = 0.03
"""Relative difference of compute up to which two settings count as equal."""


@dataclass(frozen=True)
class Reach:
    """How far one method goes.

    Attributes:
        key: Which method.
        cells: Its settings, by batch.
        largest: The largest batch at which its mean test accuracy is within :data:`TOLERANCE` of
            the reference; None if there is none.
    """

    key: MethodKey
    cells: dict[int, Cell]
    largest: int | None

    @property
    def open_ended(self) -> bool:
        """Whether it still kept up at the largest batch it was run at."""
        return self.largest is not None and self.largest == max(self.cells)


@dataclass(frozen=True)
class LargeBatch:
    """One data set and network over batch sizes.

    Attributes:
        reference: Setting with the best mean test accuracy at the smallest batch.
        batches: Every batch size, rising.
        reaches: One for each method, in the order of the report.
    """

    reference: Cell
    batches: tuple[int, ...]
    reaches: tuple[Reach, ...]

    @property
    def target(self) -> float:
        """The test accuracy that counts as keeping up."""
        return (self.reference.mean("test_accuracy") or 0.0) - TOLERANCE


@dataclass(frozen=True)
class Difference:
    """A difference of two mean test accuracies and its standard error, None with single seeds."""

    value: float
    error: float | None

    @property
    def by_chance(self) -> bool:
        """Whether it is within two standard errors of nothing."""
        return self.error is not None and abs(self.value) < 2 * self.error


@dataclass(frozen=True)
class Gain:
    """One method at one batch beside ordinary training at that batch.

    That is the study's ordinary training, or for a method with another optimizer the one with that
    optimizer, where it was run (:func:`counterpart`).

    Attributes:
        cell: The method's setting.
        multiple: Its compute as a multiple of ordinary training's.
        above: Test accuracy above ordinary training as it is.
        same_compute: The same above ordinary training that went on for as much compute; None where
            none of about that compute was run.
        won_back: Share of what ordinary training has lost at this batch that the method returns;
            None where less than :data:`LOSS` was lost.
        robust: Accuracy under attack above ordinary training as it is.
        robust_same_compute: The same at equal compute.
    """

    cell: Cell
    multiple: float | None
    above: Difference | None
    same_compute: Difference | None
    won_back: float | None
    robust: Difference | None
    robust_same_compute: Difference | None

    @property
    def same_epochs(self) -> Difference | None:
        """Test accuracy above ordinary training that saw every image as often."""
        return self.above if equal_epochs(self.cell) else None


@dataclass(frozen=True)
class Gains:
    """Every method at one batch. ``lost`` is what ordinary training lost against the reference."""

    batch: int
    ordinary: Cell
    lost: Difference | None
    rows: tuple[Gain, ...]

    @property
    def chosen(self) -> Gain | None:
        """The adversarial method that did best on held-out images: the test set has no say."""
        known = [
            row
            for row in self.rows
            if row.cell.adversarial
            and row.above is not None
            and _optimizer(row.cell) == _optimizer(self.ordinary)
        ]
        merits = {id(row): row.cell.merit for row in known}
        if any(merit is None for merit in merits.values()):
            return None
        return max(known, key=lambda row: merits[id(row)] or 0.0, default=None)


def place(everything: Sequence[Cell]) -> list[Cell]:
    """The cells of the data set and network that has most of them."""
    places = [(cell.dataset, cell.model) for cell in everything]
    most = max(dict.fromkeys(places), key=places.count)
    return [cell for cell in everything if (cell.dataset, cell.model) == most]


def large_batch(everything: Sequence[Cell]) -> LargeBatch | None:
    """How far every method goes, for the data set and network with most settings.

    Returns:
        None if test accuracies are not known at two batch sizes, or there is no ordinary training
        at the smallest.
    """
    if not everything:
        return None
    known = [
        cell
        for cell in place(everything)
        if cell.batch is not None and cell.mean("test_accuracy") is not None
    ]
    batches = sorted({cell.batch for cell in known if cell.batch is not None})
    if len(batches) < 2:
        return None
    smallest = [cell for cell in known if cell.batch == batches[0]]
    if not any(cell.ordinary for cell in smallest):
        return None
    reference = max(smallest, key=lambda cell: cell.mean("test_accuracy") or 0.0)
    target = (reference.mean("test_accuracy") or 0.0) - TOLERANCE
    methods: dict[MethodKey, dict[int, Cell]] = {}
    for cell in known:
        if cell.batch is not None:
            methods.setdefault(cell.key, {})[cell.batch] = cell
    reaches = []
    for key, cells in methods.items():
        reached = [b for b, cell in cells.items() if (cell.mean("test_accuracy") or 0) >= target]
        reaches.append(Reach(key, dict(sorted(cells.items())), max(reached, default=None)))
    return LargeBatch(reference, tuple(batches), tuple(reaches))


def gains(everything: Sequence[Cell]) -> list[Gains]:
    """Every batch size at which a method stands beside ordinary training, rising."""
    if not everything:
        return []
    cells = place(everything)
    scale = large_batch(cells)
    found = []
    for ordinary in cells:
        if ordinary.batch is None or baseline(ordinary, cells) is not ordinary:
            continue
        peers = [cell for cell in cells if baseline(cell, cells) is ordinary]
        others = [
            cell
            for cell in peers
            if cell is not ordinary and cell.mean("test_accuracy") is not None
        ]
        if not others or ordinary.mean("test_accuracy") is None:
            continue
        reference = scale.reference if scale and scale.reference is not ordinary else None
        lost = (
            None if reference is None else measured_difference(reference, ordinary, "test_accuracy")
        )
        found.append(
            Gains(
                ordinary.batch,
                ordinary,
                lost,
                tuple(_gain(cell, ordinary, peers, lost) for cell in others),
            )
        )
    return sorted(found, key=lambda item: item.batch)


def unfinished(cell: Cell) -> bool:
    """Whether a setting's training accuracy is below :data:`UNFINISHED`."""
    fitted = cell.mean("train_accuracy")
    return fitted is not None and fitted < UNFINISHED


def equal_epochs(cell: Cell) -> bool:
    """Whether a setting passes over the training images as often as its recipe says."""
    return cell.length == 1


def counterpart(cell: Cell, peers: Sequence[Cell], ordinary: Cell) -> Cell:
    """Ordinary training of usual length with a method's own optimizer; else ``ordinary``.

    What an optimizer gains is not what the copies gain.
    """
    own = _optimizer(cell)
    if cell.ordinary or own == _optimizer(ordinary):
        return ordinary
    alike = (p for p in peers if p.ordinary and equal_epochs(p) and _optimizer(p) == own)
    return next(alike, ordinary)


def _optimizer(cell: Cell) -> object:
    return cell.setting("optimizer.name")


def at_equal_compute(
    cell: Cell, peers: Sequence[Cell], name: str = "test_accuracy"
) -> Difference | None:
    """A setting against ordinary training of the same compute.

    Ordinary training was run for a few lengths; between two of them its accuracy is interpolated,
    linearly in the logarithm of compute. Outside of them only :data:`SAME_COMPUTE` is allowed. Of
    several of one length (other settings, say) the best one counts, which favours ordinary
    training.

    Args:
        cell: The setting.
        peers: Settings at the same batch; ordinary ones with the optimizer of the cell's
            :func:`counterpart` are used.
        name: What is compared, a number of ``result.json``.
    """
    usual = baseline(cell, peers)
    own, accuracy = cell.mean("compute"), cell.mean(name)
    if usual is None or not own or accuracy is None:
        return None
    ordinary = counterpart(cell, peers, usual)
    line = sorted(
        (compute, value, peer)
        for peer in peers
        if peer.ordinary
        and peer is not cell
        and _optimizer(peer) == _optimizer(ordinary)
        and (compute := peer.mean("compute"))
        and (value := peer.mean(name)) is not None
    )
    line = _best_of_each(line)
    if not line:
        return None
    if own <= line[0][0] or own >= line[-1][0]:
        end = line[0] if own <= line[0][0] else line[-1]
        near = abs(own / end[0] - 1) <= SAME_COMPUTE
        return measured_difference(cell, end[2], name) if near else None
    after = next(i for i, (compute, _, _) in enumerate(line) if compute >= own)
    (c0, a0, low), (c1, a1, high) = line[after - 1], line[after]
    weight = math.log(own / c0) / math.log(c1 / c0)
    errors = [item.error(name) for item in (cell, low, high)]
    error = None
    if all(value is not None for value in errors):
        mine, first, second = (value or 0.0 for value in errors)
        error = math.hypot(mine, (1 - weight) * first, weight * second)
    return Difference(accuracy - (a0 + weight * (a1 - a0)), error)


def _best_of_each(line: list[tuple[float, float, Cell]]) -> list[tuple[float, float, Cell]]:
    """Of settings of one compute, rising, the most accurate."""
    kept: list[tuple[float, float, Cell]] = []
    for item in line:
        if kept and item[0] / kept[-1][0] - 1 <= SAME_COMPUTE:
            kept[-1] = max(kept[-1], item, key=lambda known: known[1])
        else:
            kept.append(item)
    return kept


def _gain(cell: Cell, ordinary: Cell, peers: Sequence[Cell], lost: Difference | None) -> Gain:
    beside = counterpart(cell, peers, ordinary)
    same = measured_difference(cell, beside, "test_accuracy")
    own, usual = cell.mean("compute"), ordinary.mean("compute")
    back = None
    if beside is ordinary and same is not None and lost is not None and lost.value >= LOSS:
        back = same.value / lost.value
    return Gain(
        cell,
        own / usual if own and usual else None,
        same,
        None if cell.ordinary else at_equal_compute(cell, peers),
        back,
        measured_difference(cell, beside, "robust_accuracy"),
        None if cell.ordinary else at_equal_compute(cell, peers, "robust_accuracy"),
    )


def measured_difference(one: Cell, other: Cell, name: str = "test_accuracy") -> Difference | None:
    """What ``one`` has more than ``other``; None where one of them has not been measured."""
    first, second = one.mean(name), other.mean(name)
    if first is None or second is None:
        return None
    errors = one.error(name), other.error(name)
    error = None if None in errors else math.hypot(errors[0] or 0.0, errors[1] or 0.0)
    return Difference(first - second, error)
