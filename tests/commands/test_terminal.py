"""What `conadv train` and its neighbours print, as a whole: on terminals and in pipes."""

import io
import re
import shlex
import sys
from pathlib import Path

import pytest

from conadv._words import fitted
from conadv.cli import main
from support.terminal import Terminal, screen

WIDTHS = [40, 80, 200]
STEP = re.compile(r"smoke \d+/14 epoch")
"""A line of progress: its times differ from run to run."""


def piped(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", out)
    main(arguments)
    return out.getvalue()


def typed(arguments: list[str], width: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """Everything that a terminal gets, standard error included."""
    terminal = Terminal(width)
    monkeypatch.setattr(sys, "stdout", terminal.stream)
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm-256color")
    try:
        main(arguments)
    finally:
        text = terminal.close()
    return text


def whole(lines: list[str]) -> str:
    """Lines put together again: a backslash at the end of one makes a shell do so."""
    return " ".join(" ".join(lines).replace(" \\ ", " ").split())


@pytest.mark.slow
def test_training_reads_well_at_every_width(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started, refused, and resumed when it has ended."""
    ways = [["train", "smoke", "--out", "a"], ["train", "smoke", "--out", "a"]]
    ways.append(["train", "smoke", "--out", "a", "--resume"])
    (tmp_path / "pipe").mkdir()
    monkeypatch.chdir(tmp_path / "pipe")
    expected = [piped(way, monkeypatch) for way in ways]
    assert "\x1b" not in "".join(expected) and "\r" not in "".join(expected)
    steps = [line for line in expected[0].splitlines() if STEP.match(line)]
    assert len(steps) == 14
    assert all(re.search(r" [\d,]+ images/s left [\d.]+ m?(s|min)$", line) for line in steps)
    # Nothing is said twice, and the figures of the end are those of the result.
    for text in expected:
        lines = [line for line in text.splitlines() if line]
        assert len(set(lines)) == len(lines)
    # Once on either stream, so that a file of one of them has the result.
    assert expected[0].count("test accuracy") == expected[2].count("test accuracy") == 2
    for width in WIDTHS:
        monkeypatch.setenv("NO_COLOR", "1" if width == 80 else "")
        (tmp_path / str(width)).mkdir()
        monkeypatch.chdir(tmp_path / str(width))
        for way, text in zip(ways, expected, strict=True):
            raw = typed(way, width, monkeypatch)
            lines = screen(raw)
            assert max(map(len, lines)) <= width, lines
            assert bool(re.search(r"\x1b\[[\d;]*3\d", raw)) == (width != 80 and way is ways[0])
            shown = whole(lines)
            for line in text.splitlines():
                assert STEP.match(line) or " ".join(line.split()) in shown, (width, line)
            if way is ways[0]:
                assert re.search(r"14/14 .*loss \d\.\d{3} .*0:00", shown)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    "arguments",
    [
        ["recipes", "list"],
        ["recipes", "show", "smoke"],
        ["train", "smoke", "train.epoch=3"],
    ],
)
def test_no_word_is_cut_and_no_line_is_longer_than_the_terminal(
    arguments: list[str], width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = set(piped(arguments, monkeypatch).split())
    lines = screen(typed(arguments, width, monkeypatch))
    longest = max(map(len, known))
    assert max(map(len, lines)) <= max(width, longest + 4)
    # A comment is marked on each of its lines; a table is cut into two with the same first column,
    # or read row by row, each name with a colon.
    known |= {f"{word}:" for word in known} | {"-", "#"}
    assert set(" ".join(lines).split()) <= known


def test_commands_stay_whole_for_a_shell() -> None:
    command = "  conadv train cifar10-resnet18-10k-recycled optimizer.lr=1 --out 'a folder/b'"
    assert fitted(command, None) == command
    for width in (30, 40, 60):
        shown = fitted(f"To go on, type this, which continues the run:\n{command}", width)
        first, *_ = shown.partition("\n  conadv")
        assert max(map(len, first.split("\n"))) <= width
        assert shlex.split(shown[len(first) :].replace("\\\n", "")) == shlex.split(command)


def test_lists_stay_indented_and_are_no_commands() -> None:
    shown = fitted("two problems:\n  - optimizer.lr=-1: give a number above 0, such as 0.1", 30)
    assert shown.split("\n") == [
        "two problems:",
        "  - optimizer.lr=-1: give a",
        "    number above 0, such as",
        "    0.1",
    ]
    assert fitted(" " * 50, 30).strip() == ""
