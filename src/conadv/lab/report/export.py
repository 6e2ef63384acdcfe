"""The same results as Markdown and as a table for spreadsheets."""

import csv
import io
import json
from collections.abc import Sequence

from conadv.lab.report.content import Content
from conadv.lab.report.imagenet import imagenet_markdown
from conadv.lab.report.runs import Run
from conadv.lab.report.settings import differing
from conadv.lab.report.study.large_batch import UNFINISHED, Gains, LargeBatch
from conadv.lab.report.study.scale_tables import (
    gains_columns,
    gains_row,
    reach_columns,
    reach_row,
)
from conadv.lab.report.study.wording import judged_columns, judged_row
from conadv.lab.report.tables import escape, markdown_lines, markdown_table
from conadv.lab.report.text import count

_FIRST = ("run", "status", "dataset", "model", "method", "schedule", "global_batch", "seed")
_LAST = ("command", "folder")


def markdown(content: Content) -> str:
    """A page of Markdown: headline, sentences and every table of the report."""
    words, scale, analyses = content.findings, content.scale, content.analyses
    parts = [f"# {escape(words.headline)}\n", f"{escape(content.title)}\n"]
    if content.lead:
        parts.append(f"{escape(content.lead)}\n")
    if words.sentences:
        parts.append(_list((*words.sentences, *words.more)))
    if words.caveats:
        parts.append("What to keep in mind:\n\n" + _list(words.caveats))
    for study in content.studies:
        if study.judged:
            rows = [judged_row(one) for one in study.judged]
            parts.append(
                f"## What {study.name} decides\n\n" + markdown_lines(judged_columns(), rows)
            )
    if scale is not None:
        parts.append("## Accuracy against batch size\n\n" + reach_table(scale))
    for at_batch in content.gains:
        parts.append(f"## Batch {count(at_batch.batch)}\n\n" + gains_table(at_batch))
    parts.append("## Every setting\n\n" + markdown_table(content.runs))
    if analyses is not None:
        lines = [(cell.name, *texts) for cell, texts in analyses.rows]
        head = ("Setting", *analyses.columns)
        parts.append("## Sharpness, gap and corruptions\n\n" + markdown_lines(head, lines))
    if content.imagenet:
        parts.append(imagenet_markdown(content.imagenet))
    if content.tuned:
        tuned = [(t.cell, t.chosen, t.accuracy, t.edge, str(len(t.trials))) for t in content.tuned]
        names = ("Setting", "Chosen", "Validation accuracy", "At the edge", "Trials")
        parts.append("## Tuned settings\n\n" + markdown_lines(names, tuned))
    return "\n".join(parts)


def reach_table(scale: LargeBatch) -> str:
    """How far every method goes, in Markdown."""
    return markdown_lines(
        reach_columns(scale), [reach_row(scale, reach) for reach in scale.reaches]
    )


def gains_table(at_batch: Gains) -> str:
    """Every method at one batch, in Markdown."""
    rows = [gains_row(at_batch, None), *(gains_row(at_batch, row) for row in at_batch.rows)]
    return markdown_lines(gains_columns(), rows)


def table(runs: Sequence[Run]) -> str:
    """Comma-separated values: one row per run, all of its result and the settings that differ."""
    different = [dict(settings) for settings in differing(runs)]
    settings = list(dict.fromkeys(name for found in different for name in found))
    results = list(dict.fromkeys(key for run in runs for key in run.result))
    results = [key for key in results if key not in (*_FIRST, *_LAST, "name")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_FIRST, *results, "unfinished", *settings, *_LAST])
    for run, found in zip(runs, different, strict=True):
        first = (
            run.name,
            run.status,
            run.dataset,
            run.model,
            run.method,
            run.schedule,
            run.batch,
            run.result.get("seed"),
        )
        fitted = run.number("train_accuracy")
        writer.writerow(
            [
                *first,
                *(_cell(run.result.get(key)) for key in results),
                "" if fitted is None else str(fitted < UNFINISHED).lower(),
                *(found.get(name, "") for name in settings),
                run.command,
                str(run.folder),
            ]
        )
    return text.getvalue()


def _cell(value: object) -> str:
    if value is None:
        return ""
    return json.dumps(value) if isinstance(value, dict | list | bool) else str(value)


def _list(sentences: Sequence[str]) -> str:
    return "".join(f"- {escape(sentence)}\n" for sentence in sentences)
