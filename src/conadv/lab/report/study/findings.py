"""The words of a study: how far each method goes, and what it gives back. All of it is computed."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from conadv.lab.evidence import Paired
from conadv.lab.report.findings import Figure, Findings
from conadv.lab.report.findings import findings as plain_findings
from conadv.lab.report.study.cells import Cell
from conadv.lab.report.study.large_batch import (
    LOSS,
    TOLERANCE,
    Gain,
    Gains,
    LargeBatch,
    Reach,
    unfinished,
)
from conadv.lab.report.study.marks import marks
from conadv.lab.report.study.runs import StudyFacts
from conadv.lab.report.study.wording import between, interval, judged_sentence
from conadv.lab.report.text import count, joined, percent, points, ratio

_TOLERANCE = f"{100 * TOLERANCE:g}"


def findings(
    everything: Sequence[Cell],
    scale: LargeBatch | None,
    gains: Sequence[Gains],
    studies: Sequence[StudyFacts] = (),
) -> Findings:
    """Put the results into words: as a study where batch sizes and methods allow it.

    The headline is what the one primary hypothesis came to. Where none was stated and decided, it
    is how far methods go with at least three batch sizes, and what the larger one lost with two.
    Two batches outside a study, or with single seeds, are compared method by method.
    """
    plain = plain_findings(everything)
    answer = _answer(studies)
    several = scale is not None and any(
        len(cell.finished) > 1 for reach in scale.reaches for cell in reach.cells.values()
    )
    if (
        scale is None
        or len(scale.reaches) < 2
        or len(scale.batches) < 2
        or (len(scale.batches) == 2 and not (several and studies))
    ):
        caveats = (*_missing(everything, studies), *plain.caveats)
        return replace(plain, headline=answer or plain.headline, caveats=caveats)
    return Findings(
        answer
        or (_headline(scale) if len(scale.batches) > 2 else _two_batches(scale, gains))
        or plain.headline,
        tuple(_figures(scale, gains)),
        tuple(sentence for at_batch in gains for sentence in _sentences(at_batch)),
        (*_missing(everything, studies), *_failed(plain), *_caveats(scale, gains)),
        tuple(sentence for at_batch in gains for sentence in _comparisons(at_batch)),
    )


def _answer(studies: Sequence[StudyFacts]) -> str:
    """What the primary hypothesis came to, if there is one and it stood before all its runs."""
    primary = [
        one
        for study in studies
        for one in study.judged
        if one["name"] == "primary"
        and not one["exploratory"]
        and one["seeds"] == one["seeds_expected"]
    ]
    return judged_sentence(primary[0]) if len(primary) == 1 else ""


def reach_text(reach: Reach) -> str:
    """The largest batch in words, with what is not known."""
    if reach.largest is None:
        return f"under {count(min(reach.cells))}"
    return count(reach.largest) + (" or more" if reach.open_ended else "")


def _headline(scale: LargeBatch) -> str:
    usual = _ordinary(scale)
    best = percent(scale.reference.mean("test_accuracy"))
    start = f"By the means, within {_TOLERANCE} points of the best small-batch accuracy ({best}): "
    if usual is None:
        furthest = max(scale.reaches, key=lambda reach: reach.largest or 0)
        return f"{start}{furthest.key.method} to batch {reach_text(furthest)}."
    first = f"{usual.key.method} to batch {reach_text(usual)}"
    others = [
        reach
        for reach in scale.reaches
        if reach is not usual and (reach.largest or 0) > (usual.largest or 0)
    ]
    said = [first]
    for chosen, how in (
        ([reach for reach in others if not _longer(reach)], ""),
        ([reach for reach in others if _longer(reach)], ", in more steps,"),
    ):
        if chosen:
            far = max(reach.largest or 0 for reach in chosen)
            names = [reach.key.method for reach in chosen if reach.largest == far]
            said.append(f"{joined(names)}{how} to {count(far)}")
    return f"{start}{'; '.join(said)}{'' if others else '; no other method further'}."


def _two_batches(scale: LargeBatch, gains: Sequence[Gains]) -> str:
    """What the larger batch lost, and what the method chosen on held-out images gave back."""
    first = next(
        (item for item in gains if item.lost is not None and item.lost.value >= LOSS), None
    )
    if first is None or first.lost is None or first.chosen is None or first.chosen.above is None:
        return ""
    chosen, lost = first.chosen, first.lost
    assert chosen.above is not None
    return (
        f"Batch {count(first.batch)} lost {_sized(lost)} against batch "
        f"{count(scale.batches[0])}; {chosen.cell.key.method} changed it by "
        f"{_signed(chosen.above)}{_steps(chosen)}{_half(chosen, lost)}."
    )


def _half(chosen: Gain, lost: Paired) -> str:
    """Whether at least half of the loss was won back: decided by the interval alone."""
    if chosen.above_half is None:
        return ""
    if lost.by_chance or chosen.above_half.by_chance:
        return "; whether half of the loss was won back is undecided"
    at_least = chosen.above_half.value > 0
    return f", {'at least' if at_least else 'less than'} half of the loss won back"


def _signed(found: Paired) -> str:
    return f"{points(found.value)} points{interval(found)}{_chance(found)}"


def _sized(lost: Paired) -> str:
    """A loss without its sign."""
    return f"{100 * lost.value:.1f} points{interval(lost)}{_chance(lost)}"


def _longer(reach: Reach) -> bool:
    return any(cell.length > 1 for cell in reach.cells.values())


def _ordinary(scale: LargeBatch) -> Reach | None:
    """Ordinary training of usual length: what is there at the reference's batch."""
    for reach in scale.reaches:
        cell = next(iter(reach.cells.values()))
        if cell.ordinary and cell.length == 1 and min(reach.cells) == scale.batches[0]:
            return reach
    return None


def _figures(scale: LargeBatch, gains: Sequence[Gains]) -> list[Figure]:
    """Figures of the smallest batch that lost something: what was lost, and what was given back."""
    first = next((item for item in gains if _lossy(item)), None)
    if first is None or first.lost is None:
        return []
    found = [
        Figure(
            points(-first.lost.value),
            _ends(Paired(tuple(-lost for lost in first.lost.differences))),
            f"points of test accuracy, {first.ordinary.key.method} at batch {count(first.batch)}",
            f"{percent(first.ordinary.mean('test_accuracy'))} against "
            f"{percent(scale.reference.mean('test_accuracy'))} at batch {count(scale.batches[0])}",
        )
    ]
    chosen = first.chosen
    if chosen is None:
        return found
    name, multiple = chosen.cell.key.method, ratio(chosen.multiple)
    for measured, label, detail in (
        (
            chosen.above,
            f"points from {name} there{_steps(chosen)}",
            "the adversarial method best on held-out images",
        ),
        (
            chosen.same_compute,
            "points, the same at equal compute",
            f"against the best ordinary training of at most {multiple} the compute",
        ),
        (
            chosen.robust_same_compute or chosen.robust,
            f"points under attack from {name}",
            "at equal compute" if chosen.robust_same_compute else f"for {multiple} the compute",
        ),
    ):
        if measured is not None:
            found.append(Figure(points(measured.value), _ends(measured), label, detail))
    return found


def _ends(found: Paired) -> str:
    return between(found.interval) if found.interval else "one seed: not known"


def _lossy(at_batch: Gains) -> bool:
    return at_batch.lost is not None and at_batch.lost.value >= LOSS


def _sentences(at_batch: Gains) -> list[str]:
    """The goal of the study at one batch, and what was gained under attack."""
    batch, name = count(at_batch.batch), at_batch.ordinary.key.method
    lost, chosen = at_batch.lost, at_batch.chosen
    if lost is None:
        return []
    if not _lossy(at_batch):
        changed = Paired(tuple(-value for value in lost.differences))
        said = f"{name} changed by {_signed(changed)}, too little to win back."
    else:
        said = f"{name} lost {_sized(lost)}."
        if chosen is not None and chosen.above is not None:
            said = f"{said[:-1]}; {_goal(chosen, lost)}"
    found = [f"Batch {batch}: {said}"]
    robust = None if chosen is None else chosen.robust_same_compute or chosen.robust
    if chosen is not None and robust is not None:
        cost = (
            "the best ordinary training of at most its compute"
            if chosen.robust_same_compute
            else f"{name}, for {ratio(chosen.multiple)} the compute"
        )
        found.append(
            f"Batch {batch}, under attack: {chosen.cell.key.method} is {_signed(robust)} from "
            f"{cost}."
        )
    return found


def _comparisons(at_batch: Gains) -> list[str]:
    """Sentences on who does better than ordinary training at all."""
    batch, name = count(at_batch.batch), at_batch.ordinary.key.method
    if at_batch.lost is None:
        return []
    said = [
        _other_ordinary(batch, at_batch.ordinary, row, row.above)
        for row in at_batch.rows
        if row.cell.ordinary and row.cell.length == 1 and row.above is not None
    ]
    measures: tuple[tuple[str, Callable[[Gain], Paired | None]], ...] = (
        (f"than {name} at equal steps", lambda row: row.same_steps),
        ("than ordinary training on a larger batch", lambda row: row.larger_batch),
        ("than ordinary training at equal compute", lambda row: row.same_compute),
        (f"than {name} under attack", lambda row: row.robust),
        (
            "than ordinary training under attack at equal compute",
            lambda row: row.robust_same_compute,
        ),
    )
    for words, measure in measures:
        if all(measure(row) is None for row in at_batch.rows):
            continue
        better = [
            f"{row.cell.key.method} {points(found.value)}{interval(found)}"
            for row in at_batch.rows
            if not row.cell.ordinary
            and (found := measure(row)) is not None
            and found.value > 0
            and not found.by_chance
        ]
        said.append(
            f"Batch {batch}, better {words} by more than chance: {joined(better) or 'no method'}."
        )
    return said


def _other_ordinary(batch: str, usual: Cell, row: Gain, above: Paired) -> str:
    """Ordinary training with other settings, or with another optimizer."""
    name, optimizer = row.cell.key.method, row.cell.setting("optimizer.name")
    apart = f"is {_signed(above)} from {{}}"
    if optimizer != usual.setting("optimizer.name"):
        return (
            f"Batch {batch}: {name}, ordinary training with {optimizer}, "
            f"{apart.format(usual.key.method)}. Methods with that optimizer are compared with it."
        )
    return (
        f"Batch {batch}: {name}, which is {usual.key.method} with other settings, "
        f"{apart.format('it')}: so much of another method's gain may be owed to settings."
    )


def _goal(chosen: Gain, lost: Paired) -> str:
    assert chosen.above is not None
    text = (
        f"chosen on held-out images among the adversarial methods, {chosen.cell.key.method} "
        f"changed that by {_signed(chosen.above)}{_steps(chosen)}{_half(chosen, lost)}"
    )
    if chosen.same_compute is None:
        return text + "; ordinary training of as much compute was not run."
    return (
        f"{text}; it is {_signed(chosen.same_compute)} from the best ordinary training of at most "
        "its compute."
    )


def _steps(row: Gain) -> str:
    if row.same_steps is not None:
        return " at equal steps"
    return f" with {ratio(row.cell.length)} the steps"


def _chance(difference: Paired) -> str:
    return " (within chance)" if difference.by_chance else ""


def _caveats(scale: LargeBatch, gains: Sequence[Gains]) -> list[str]:
    notes = []
    cells = [cell for reach in scale.reaches for cell in reach.cells.values()]
    seeds = sorted({len(cell.finished) for cell in cells})
    tuned = any(run.tuned_accuracy is not None for cell in cells for run in cell.runs)
    how = "settings tuned once" if tuned else "settings as they were given"
    numbers = f"{seeds[0]}" if seeds[0] == seeds[-1] else f"{seeds[0]} to {seeds[-1]}"
    notes.append(
        f"{numbers} seed{'' if seeds[-1] == 1 else 's'} per setting, {how}. “More "
        "than chance” is an interval of 95 % (paired by seed, Student's t) without zero; many "
        "comparisons are made, so that some of them pass by chance all the same."
    )
    tested = sorted({cell.mean("test_images") or 0 for cell in cells if cell.tests_unused})
    if tested:
        notes.append(
            f"Test accuracies are over {joined([count(images) for images in tested])} images: the "
            "test images, and the training images that a run neither trains on nor holds out."
        )
    notes += _marked(gains)
    names = [item.ordinary.name for item in gains if unfinished(item.ordinary)]
    if names:
        notes.append(
            f"Not finished (training accuracy under 95 %): {joined(names)}. There, part of the "
            "loss is training that has not ended, not worse generalisation; what helps may be "
            "faster training."
        )
    return notes


def _marked(gains: Sequence[Gains]) -> list[str]:
    """Every setting whose figures need a remark, by the remark."""
    names: dict[str, list[str]] = {}
    for at_batch in gains:
        for cell in at_batch.cells:
            for mark in marks(cell, at_batch.cells):
                names.setdefault(mark, []).append(cell.name)
    return [f"Marked “{mark}”: {joined(cells)}." for mark, cells in names.items()]


def _failed(plain: Findings) -> list[str]:
    return [note for note in plain.caveats if "left out of every comparison" in note]


def _missing(everything: Sequence[Cell], studies: Sequence[StudyFacts]) -> list[str]:
    """Studies that have not come to their end, or had stated nothing before their final runs."""
    notes = []
    for study in studies:
        if not study.judged:
            notes.append(
                f"{study.name} stated no hypothesis before its final runs: all of it is "
                "exploratory."
            )
        inside = study.folder.resolve()
        there = sum(
            inside in run.folder.resolve().parents for cell in everything for run in cell.runs
        )
        if study.expected is not None and there < study.expected:
            notes.append(f"{study.name} goes on: {there} of {study.expected} final runs are there.")
    return notes
