"""Tables of scores on ImageNet's test sets, from the JSON that an evaluation left behind."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conadv.errors import RunFolderError
from conadv.lab.report.runs import finite
from conadv.lab.report.tables import escape, markdown_lines
from conadv.lab.report.template import render
from conadv.lab.report.text import MISSING, count, joined, percent

_KIND = "imagenet"
_SEVERITIES = ("1", "2", "3", "4", "5")


@dataclass(frozen=True)
class Table:
    """A table and what has to be said under it; the first ``labels`` columns hold words."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    labels: int = 1


def read_imagenet(path: Path | str) -> Mapping[str, Any]:
    """Read one result file; a network without a name gets that of the file.

    Raises:
        RunFolderError: The file cannot be read, or holds something else.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"{path} is damaged: {error}. Evaluate again.") from error
    if not isinstance(content, Mapping) or content.get("kind") != _KIND:
        raise RunFolderError(
            f"{path} holds no scores on ImageNet's test sets: give a file whose kind is {_KIND!r}."
        )
    return {**content, "model": content.get("model") or path.stem}


def imagenet_markdown(results: Iterable[Mapping[str, Any]]) -> str:
    """Markdown tables: one over all sets, and for ImageNet-C one per network.

    Args:
        results: Contents of result files, see `read_imagenet`. What they lack becomes a dash.

    Returns:
        The text, ending in a line break.

    Raises:
        ValueError: There are no results.
    """
    return "\n".join(map(_markdown, imagenet_tables(results)))


def imagenet_html(results: Iterable[Mapping[str, Any]]) -> str:
    """The same tables as sections of a page, in the classes of the report's style sheet.

    Args:
        results: Contents of result files, see `read_imagenet`. What they lack becomes a dash.

    Raises:
        ValueError: There are no results.
    """
    return render("imagenet.html.jinja", tables=imagenet_tables(results))


def imagenet_tables(results: Iterable[Mapping[str, Any]]) -> list[Table]:
    """What both ways of writing show.

    Raises:
        ValueError: There are no results.
    """
    results = list(results)
    if not results:
        raise ValueError("There are no results to report on: give at least one.")
    return [_sets(results), *(_corruptions(r) for r in results if _mapping(r.get("corruption")))]


def _sets(results: list[Mapping[str, Any]]) -> Table:
    several = len(results) > 1
    rows: list[tuple[str, ...]] = []
    partial: list[str] = []
    masked: list[str] = []
    for result in results:
        for title, images, published, cells, limited in _lines(result):
            rows.append(((_model(result),) if several else ()) + (title, count(images), *cells))
            if images is not None and published is not None and images != published:
                owner = f" ({_model(result)})" if several else ""
                partial.append(
                    f"{title}{owner}: {count(images)} of {count(published)} published images."
                )
            if limited and title not in masked:
                masked.append(title)
    notes = ["± is one standard error over the images of the set."]
    if masked:
        notes.append(f"On {joined(masked)} a prediction is one of the 200 classes of the set.")
    if any(_mapping(result.get("corruption")) for result in results):
        notes.append("ImageNet-C: mean over corruptions and severities; mCE in its own table.")
    return Table(
        "ImageNet test sets",
        (*(("Network",) if several else ()), "Test set", "Images", "Top-1", "Top-5"),
        tuple(rows),
        (*notes, *partial),
        labels=2 if several else 1,
    )


_Line = tuple[str, float | None, float | None, tuple[str, str], bool]
"""Title, images, published images, top-1 and top-5, whether predictions were masked."""


def _lines(result: Mapping[str, Any]) -> Iterator[_Line]:
    """One line per set; the 75 sets of ImageNet-C make one."""
    entries = [entry for entry in _list(result.get("sets")) if isinstance(entry, Mapping)]
    for entry in entries:
        if entry.get("set") == "c":
            continue
        title = str(entry.get("title") or entry.get("set") or "unknown set")
        yield _line(title, entry, entry.get("set") in ("a", "r"))
        if real := _mapping(entry.get("real")):
            yield _line(f"{title}, ReaL labels", real, False)
    cells = [entry for entry in entries if entry.get("set") == "c"]
    if corruption := _mapping(result.get("corruption")):
        error = finite(corruption.get("mean_error"))
        images = sum(finite(cell.get("images")) or 0 for cell in cells) or None
        published = sum(finite(cell.get("published_images")) or 0 for cell in cells) or None
        accuracy = percent(None if error is None else 1 - error, 2)
        yield "ImageNet-C", images, published, (accuracy, MISSING), False


def _line(title: str, entry: Mapping[str, Any], masked: bool) -> _Line:
    images, published = finite(entry.get("images")), finite(entry.get("published_images"))
    return title, images, published, (_accuracy(entry, "top1"), _accuracy(entry, "top5")), masked


def _corruptions(result: Mapping[str, Any]) -> Table:
    found = _mapping(result.get("corruption"))
    errors, means = _mapping(found.get("errors")), _mapping(found.get("mean_errors"))
    normalised = _mapping(found.get("normalised"))
    rows = [
        (
            str(name).replace("_", " "),
            *(percent(finite(_mapping(row).get(severity))) for severity in _SEVERITIES),
            percent(finite(means.get(name))),
            _per_cent(normalised.get(name)),
        )
        for name, row in errors.items()
    ]
    mean, mce = percent(finite(found.get("mean_error"))), _per_cent(found.get("mce"))
    rows.append(("All", *([""] * len(_SEVERITIES)), mean, mce))
    notes = ["Top-1 error by severity. CE: mean error in per cent of AlexNet's; mCE: their mean."]
    if withheld := found.get("withheld"):
        notes.append(str(withheld))
    columns = ("Corruption", *_SEVERITIES, "Mean error", "CE")
    return Table(f"ImageNet-C, {_model(result)}", columns, tuple(rows), tuple(notes))


def _markdown(table: Table) -> str:
    body = markdown_lines(table.columns, table.rows, table.labels)
    notes = "".join(f"- {escape(note)}\n" for note in table.notes)
    return f"### {escape(table.title)}\n\n{body}\n{notes}"


def _accuracy(entry: Mapping[str, Any], name: str) -> str:
    text, spread = (
        percent(finite(entry.get(name)), 2),
        finite(entry.get(f"{name}_standard_error")),
    )
    return text if text == MISSING or spread is None else f"{text} ± {100 * spread:.2f}"


def _per_cent(value: Any) -> str:
    number = finite(value)
    return percent(None if number is None else number / 100)


def _model(result: Mapping[str, Any]) -> str:
    return str(result.get("model") or "unnamed network")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
