"""What ``conadv plan --json`` writes, as one HTML page that loads nothing."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conadv._files import write_text
from conadv.errors import ConadvError
from conadv.lab.report.charts.palette import Colour, MethodKey, colours
from conadv.lab.report.charts.plan_svg import (
    PARTS,
    Line,
    Mark,
    bar_chart,
    line_chart,
    step_parts,
)
from conadv.lab.report.charts.svg import symbol_sample
from conadv.lab.report.template import render
from conadv.lab.report.text import joined, ratio

_TIMES = (
    (1.0, "1 s"),
    (10.0, "10 s"),
    (60.0, "1 min"),
    (600.0, "10 min"),
    (3600.0, "1 h"),
    (36e3, "10 h"),
    (345.6e3, "4 days"),
    (3456e3, "40 days"),
    (34560e3, "400 days"),
    (345600e3, "4,000 days"),
)
_WHY = {
    "compute": "it computes on fewer images",
    "attack": "it makes its copies without passes of their own",
    "exposed": "less of what it sends has to be waited for",
    "other": "it copies and updates less",
    "waiting": "it waits less for images",
}
"""Why a schedule is cheaper than another, by the part of the step that makes most of it."""
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
"""Letters of published runs, in the drawing and in the list."""
_PARTS = {
    "compute": ("#59636e", "#8b97a5"),
    "attack": ("#a0348c", "#ea93d8"),
    "exposed": ("#bf4a00", "#ff9d5c"),
    "other": ("#857000", "#ddc544"),
    "waiting": ("#0969b8", "#5ab0f7"),
}
Record = Mapping[str, Any]


def write_plan_chart(record: Record, out: Path) -> Path:
    """Draw a plan.

    Args:
        record: as ``conadv plan --json`` writes it.
        out: the HTML file; its folder is made if it is missing.

    Raises:
        ConadvError: the file cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, plan_page(record))
    except OSError as error:
        raise ConadvError(
            f"cannot write the chart {out}: {error.strerror}. Give a file you can write to."
        ) from error
    return out


def plan_page(record: Record) -> str:
    """The page as text."""
    schedules = list(dict.fromkeys(row["schedule"] for row in record["rows"]))
    palette = _palette(schedules)
    here = [row for row in record["rows"] if row["devices"] == record["devices"]]
    on = f"{record['devices']:,} × {record['device_type']}, {record['link']}"
    title = headline(here, on)
    hidden = [row["schedule"] for row in here if row["hidden"] and row["schedule"] != "vanilla"]
    lead = (
        f"{record['recipe']}: {record['model']}, {record['global_batch']:,} images per step. "
        "Predicted, not measured. "
    )
    lead += (
        f"Of {joined(hidden)} the work beyond ordinary training's hides behind the network or the "
        "loader there."
        if hidden
        else "No schedule's work beyond ordinary training's hides behind the network or the loader "
        "there."
    )
    timed = [row for row in record["published"] if row["minutes"] is not None]
    marks = [
        Mark(row["devices"], 60 * row["minutes"], letter, _published(row))
        for letter, row in zip(_LETTERS, timed, strict=False)
    ]
    panels = (
        ("Time to train", _times(record, palette, marks)),
        ("Efficiency", _efficiencies(record, palette)),
        (f"A step on {on}", bar_chart(here, {s: s for s in schedules}, _unit(here))),
    )
    named = [(f"m-{name}", colour.light, colour.dark) for name, colour in palette.items()]
    return render(
        "plan.html.jinja",
        title=title,
        lead=lead,
        panels=panels,
        parts=PARTS,
        colours=[*named, *((name, *both) for name, both in _PARTS.items())],
        samples=[(name, symbol_sample(colour.symbol)) for name, colour in palette.items()],
        published=bool(marks),
        notes=_notes(record),
    )


def headline(here: Sequence[Record], on: str) -> str:
    """Which schedule with copies is the cheapest, and by what it beats the next one.

    Args:
        here: Rows of the plan, one number of devices.
        on: The devices in words.
    """
    rows = sorted(
        (row for row in here if row["schedule"] != "vanilla"), key=lambda row: row["step_seconds"]
    )
    usual = next((row["step_seconds"] for row in here if row["schedule"] == "vanilla"), None)
    if not rows or usual is None:
        return f"The cost of a step on {on}"
    best, times = rows[0], [ratio(row["step_seconds"] / usual) for row in rows]
    text = (
        f"On {on}, {best['schedule']} is the cheapest schedule with copies: its step takes "
        f"{times[0]} the time of ordinary training's"
    )
    if len(rows) == 1:
        return f"{text}."
    own, other = step_parts(best), step_parts(rows[1])
    why = max(_WHY, key=lambda part: other[part] - own[part])
    if times[0] == times[1]:
        return f"{text}, as {rows[1]['schedule']} takes too."
    return f"{text}, because beside {rows[1]['schedule']} ({times[1]}) {_WHY[why]}."


def _palette(schedules: Sequence[str]) -> dict[str, Colour]:
    """A schedule has the colour that it has in every report."""
    keys = {}
    for name in schedules:
        plain, _, budget = name.partition("-")
        keys[name] = MethodKey(name, plain, "fixed" if budget else "extra")
    chosen = colours((key, None) for key in keys.values())
    return {name: chosen[key] for name, key in keys.items()}


def _times(record: Record, palette: Mapping[str, Colour], marks: Sequence[Mark]) -> str:
    lines = _lines(record, palette, "train_seconds", 1.0)
    values = [y for line in lines for _, y in line.points] + [mark.y for mark in marks]
    below = [i for i, (value, _) in enumerate(_TIMES) if value <= min(values)]
    above = [i for i, (value, _) in enumerate(_TIMES) if value >= max(values)]
    ticks = list(_TIMES[below[-1] if below else 0 : (above[0] if above else len(_TIMES)) + 1])
    if not below:  # quicker, or slower, than any tick
        ticks.insert(0, (min(values), ""))
    if not above:
        ticks.append((max(values), ""))
    return line_chart(lines, marks, ticks, "time to train", True)


def _efficiencies(record: Record, palette: Mapping[str, Colour]) -> str:
    ticks = [(float(value), f"{value} %") for value in range(0, 101, 20)]
    return line_chart(_lines(record, palette, "efficiency", 100.0), [], ticks, "efficiency", False)


def _lines(record: Record, palette: Mapping[str, Colour], key: str, scale: float) -> list[Line]:
    return [
        Line(
            f"m-{name}",
            name,
            colour.symbol,
            [(r["devices"], scale * r[key]) for r in record["rows"] if r["schedule"] == name],
        )
        for name, colour in palette.items()
    ]


def _unit(rows: Sequence[Record]) -> tuple[float, str]:
    longest = max(row["step_seconds"] for row in rows)
    if longest < 1e-3:
        return 1e-6, "us"
    return (1e-3, "ms") if longest < 2 else (1.0, "s") if longest < 7200 else (3600.0, "h")


def _notes(record: Record) -> list[str]:
    notes = list(record["assumptions"])
    if record["refused"]:
        numbers = ", ".join(f"{n:,}" for n in record["refused"])
        notes.append(f"cannot carry the batch, normalisation groups kept whole: {numbers} devices")
    timed = [row for row in record["published"] if row["minutes"] is not None]
    notes += [f"{a}: published, {_published(row)}" for a, row in zip(_LETTERS, timed, strict=False)]
    notes += [
        f"published, not drawn: {_published(row)}"
        for row in record["published"]
        if row not in timed[: len(_LETTERS)]
    ]
    return notes


def _published(row: Record) -> str:
    """One of the published runs, in words."""
    when = "no time known to us" if row["minutes"] is None else f"{row['minutes']:.3g} min"
    return (
        f"{row['what']}, batch {row['batch']:,}, {row['devices']:,} x {row['device']}, {when} "
        f"({row['source']})"
    )
