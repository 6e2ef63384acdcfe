"""Rows of the study's tables: how far methods go, and what they give at one batch."""

from conadv.lab.report.study.findings import reach_text
from conadv.lab.report.study.large_batch import (
    Gain,
    Gains,
    LargeBatch,
    Reach,
    unfinished,
)
from conadv.lab.report.study.marks import marks
from conadv.lab.report.study.wording import accuracy, difference
from conadv.lab.report.text import MISSING, count, percent, ratio


def reach_columns(scale: LargeBatch) -> tuple[str, ...]:
    """Heads of :func:`reach_row`."""
    return (
        "Method",
        *(f"Batch {count(batch)}" for batch in scale.batches),
        "Largest within 0.5 points",
    )


def reach_row(scale: LargeBatch, reach: Reach) -> tuple[str, ...]:
    """A method's test accuracies by batch, and the largest batch at which it keeps up."""
    cells = [reach.cells.get(batch) for batch in scale.batches]
    return (
        reach.key.method,
        *(MISSING if cell is None else accuracy(cell, "test_accuracy") for cell in cells),
        reach_text(reach),
    )


def gains_columns() -> tuple[str, ...]:
    """Heads of :func:`gains_row`."""
    return (
        "Method",
        "Test accuracy ± SD",
        "At equal steps",
        "Compute",
        "On a larger batch",
        "At equal compute",
        "Robust accuracy ± SD",
        "Training accuracy",
        "Training loss",
        "Marks",
    )


def gains_row(at_batch: Gains, row: Gain | None) -> tuple[str, ...]:
    """One method at one batch; None: ordinary training itself."""
    cell = at_batch.ordinary if row is None else row.cell
    loss = cell.mean("train_loss")
    return (
        cell.key.method,
        accuracy(cell, "test_accuracy"),
        MISSING if row is None else difference(row.same_steps),
        ratio(1.0 if row is None else row.multiple),
        MISSING if row is None else difference(row.larger_batch),
        MISSING if row is None else difference(row.same_compute),
        accuracy(cell, "robust_accuracy"),
        percent(cell.mean("train_accuracy")) + (" unfinished" if unfinished(cell) else ""),
        MISSING if loss is None else f"{loss:.3f}",
        ", ".join(marks(cell, at_batch.cells)) or MISSING,
    )
