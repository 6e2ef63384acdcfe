"""What a large batch costs and what a method gives back, in three fair comparisons.

Whatever costs more than ordinary training stands beside it at equal steps; beside the same devices
and steps spent on a larger batch; and beside the best ordinary training of at most its compute.
Differences are those of runs of the same seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from conadv.lab.evidence import Paired
from conadv.lab.report.charts.palette import MethodKey
from conadv.lab.report.study.cells import Cell, baseline

TOLERANCE = 0.005
"""Test accuracy (a fraction) that a large batch may lose and still count as keeping up."""
UNFINISHED = 0.95
"""Training accuracy below which a run counts as not finished: more steps would change it."""
LOSS = 0.01
"""Test accuracy that ordinary training must have lost before winning it back means anything."""
SAME_COMPUTE = 0.03
"""Relative difference up to which computes, or numbers of steps, count as equal."""


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
class Gain:
    """One method at one batch beside ordinary training at that batch.

    That is the study's ordinary training, or for a method with another optimizer the one with that
    optimizer, where it was run (:func:`counterpart`).

    Attributes:
        cell: The method's setting.
        multiple: Its compute as a multiple of ordinary training's.
        above: Test accuracy above ordinary training as it is.
        same_steps: The same, where both took as many steps; else None.
        same_compute: The same above the best ordinary training of at most as much compute; None
            where ordinary training was not run for so long.
        larger_batch: The same above ordinary training on a batch larger by the multiple, in as
            many steps; None where none was run.
        above_half: What it returns at equal steps beyond half of what ordinary training lost; None
            where less than :data:`LOSS` was lost.
        robust: Accuracy under attack above ordinary training as it is.
        robust_same_compute: The same at equal compute.
    """

    cell: Cell
    multiple: float | None
    above: Paired | None
    same_steps: Paired | None
    same_compute: Paired | None
    larger_batch: Paired | None
    above_half: Paired | None
    robust: Paired | None
    robust_same_compute: Paired | None


@dataclass(frozen=True)
class Gains:
    """Every method at one batch. ``lost`` is what ordinary training lost against the reference."""

    batch: int
    ordinary: Cell
    lost: Paired | None
    rows: tuple[Gain, ...]

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Ordinary training and every method."""
        return self.ordinary, *(row.cell for row in self.rows)

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
                tuple(_gain(cell, ordinary, peers, lost, cells) for cell in others),
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
) -> Paired | None:
    """A setting against the best ordinary training of at most its compute.

    The best by its mean, which favours ordinary training: a longer run that is worse than a
    shorter one is no baseline.

    Args:
        cell: The setting.
        peers: Settings at the same batch; ordinary ones with the optimizer of the cell's
            :func:`counterpart` are used.
        name: What is compared, a number of ``result.json``.

    Returns:
        None where ordinary training was never given as much compute.
    """
    usual, own = baseline(cell, peers), cell.mean("compute")
    if usual is None or not own:
        return None
    ordinary = counterpart(cell, peers, usual)
    line = [
        (compute, value, peer)
        for peer in peers
        if peer.ordinary
        and peer is not cell
        and _optimizer(peer) == _optimizer(ordinary)
        and (compute := peer.mean("compute"))
        and (value := peer.mean(name)) is not None
    ]
    within = [item for item in line if item[0] <= own * (1 + SAME_COMPUTE)]
    if not within or max(compute for compute, _, _ in line) < own * (1 - SAME_COMPUTE):
        return None
    best = max(within, key=lambda item: item[1])[2]
    return measured_difference(cell, best, name)


def on_a_larger_batch(
    cell: Cell, multiple: float | None, everything: Sequence[Cell]
) -> Paired | None:
    """A setting against ordinary training on a batch larger by its compute, in as many steps.

    That is what the same devices could have done instead.
    """
    if multiple is None or multiple <= 1 + SAME_COMPUTE or cell.batch is None:
        return None
    for other in everything:
        if other.ordinary and other.batch and _optimizer(other) == _optimizer(cell):
            if _near(other.batch, multiple * cell.batch) and _equal_steps(other, cell):
                return measured_difference(cell, other)
    return None


def _near(one: float, other: float) -> bool:
    return abs(one / other - 1) <= SAME_COMPUTE


def _equal_steps(one: Cell, other: Cell) -> bool:
    first, second = one.mean("steps"), other.mean("steps")
    return bool(first and second) and _near(first or 0.0, second or 1.0)


def _gain(
    cell: Cell,
    ordinary: Cell,
    peers: Sequence[Cell],
    lost: Paired | None,
    everything: Sequence[Cell],
) -> Gain:
    beside = counterpart(cell, peers, ordinary)
    above = measured_difference(cell, beside)
    longer = cell.ordinary and not equal_epochs(cell)
    same = above if _equal_steps(cell, beside) and not longer else None
    own, usual = cell.mean("compute"), ordinary.mean("compute")
    multiple = own / usual if own and usual else None
    half = None
    if same is not None and beside is ordinary and lost is not None and lost.value >= LOSS:
        pairs = zip(same.differences, lost.differences, strict=False)
        if len(same.differences) == len(lost.differences):
            half = Paired(tuple(gain - loss / 2 for gain, loss in pairs))
    return Gain(
        cell,
        multiple,
        above,
        same,
        None if cell.ordinary else at_equal_compute(cell, peers),
        None if cell.ordinary else on_a_larger_batch(cell, multiple, everything),
        half,
        measured_difference(cell, beside, "robust_accuracy"),
        None if cell.ordinary else at_equal_compute(cell, peers, "robust_accuracy"),
    )


def measured_difference(one: Cell, other: Cell, name: str = "test_accuracy") -> Paired | None:
    """What ``one`` has more than ``other``, by seed; None where one has not been measured.

    Runs that share no seed give the difference of their means, which has no interval.
    """
    first, second = one.by_seed(name), other.by_seed(name)
    both = [seed for seed in first if seed in second]
    if both:
        return Paired(tuple(first[seed] - second[seed] for seed in both))
    own, others = one.mean(name), other.mean(name)
    return None if own is None or others is None else Paired((own - others,))
