"""Just enough Markdown to find code blocks, links and headings."""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,})(?P<language>[^\s`]*)[^`]*$")
NO_RUN = re.compile(r"^<!-- no-run: (?P<reason>\S.*?) -->$")


@dataclass(frozen=True)
class Block:
    """A fenced code block."""

    page: Path
    line: int
    """Line of its first line of code, from 1."""
    language: str
    code: str
    no_run: str | None
    """The reason that the comment right above it gives for not running it."""


def blocks(page: Path) -> Iterator[Block]:
    """The code blocks of a page, in order."""
    lines = page.read_text().splitlines()
    comment: str | None = None
    number = 0
    while number < len(lines):
        opening = FENCE.match(lines[number])
        if opening is None:
            text = lines[number].strip()
            if text:
                found = NO_RUN.match(text)
                comment = found["reason"] if found else None
            number += 1
            continue
        first = number + 1
        number = first
        while number < len(lines) and lines[number].strip() != opening["fence"]:
            number += 1
        if number == len(lines):
            raise ValueError(f"{page}:{first}: the code block is never closed")
        code = textwrap.dedent("\n".join(lines[first:number]))
        yield Block(page, first + 1, opening["language"], code, comment)
        comment = None
        number += 1


def prose(page: Path) -> str:
    """The page without code, so that what looks like a link in code is none."""
    kept, fence = [], None
    for line in page.read_text().splitlines():
        match = FENCE.match(line)
        if fence is None and match:
            fence = match["fence"]
        elif fence is not None and line.strip() == fence:
            fence = None
        elif fence is None:
            kept.append(line)
    return re.sub(r"`[^`\n]*`", "", "\n".join(kept))


def links(page: Path) -> list[str]:
    """Targets of all links and pictures."""
    return re.findall(r"\]\(\s*<?([^)\s>]+)", prose(page))


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings get on the usual forges."""
    found = set()
    fenced = False
    for line in page.read_text().splitlines():
        if FENCE.match(line) or line.strip().startswith("```"):
            fenced = not fenced
        elif not fenced and re.match(r"#{1,6} ", line):
            text = re.sub(r"[`*]|\[|\]\([^)]*\)", "", line.lstrip("#").strip()).lower()
            found.add(re.sub(r"[^\w\- ]", "", text).replace(" ", "-"))
    return found
