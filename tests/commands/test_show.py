"""Tables on narrow terminals, and names in the order of their numbers."""

import io

import pytest
import rich.console

from conadv.commands import _show

ROWS = [
    {"recipe": "imagenet-resnet50-lars-32k", "batch": 32768, "method": "recycled, half budget"},
    {"recipe": "smoke", "batch": 64, "method": "vanilla"},
]


WIDE = [{"devices": n, **dict.fromkeys(("one", "two", "three"), "1,234,567 MB")} for n in (1, 2)]


def shown_lines(
    rows: list[dict[str, object]], width: int, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    shown = io.StringIO()
    real = rich.console.Console

    def terminal(**options: object) -> rich.console.Console:
        return real(file=shown, width=width, force_terminal=True, no_color=True)

    monkeypatch.setattr("rich.console.Console", terminal)
    monkeypatch.setattr("sys.stdout", shown)
    _show.table(rows, "a title")
    plain = rich.console.Text.from_ansi(shown.getvalue()).plain
    return [line.rstrip() for line in plain.split("\n")]


@pytest.mark.parametrize("width", [36, 50, 80])
def test_long_text_gives_way_in_a_table(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown_lines(ROWS, width, monkeypatch)
    assert max(map(len, lines)) <= width
    words = " ".join(lines).split()
    for word in ("imagenet-resnet50-lars-32k", "recycled,", "half", "budget", "32768"):
        assert word in words, "a word was cut in two"
    head = any(line.split() == ["recipe", "batch", "method"] for line in lines)
    assert head == (width > 36)
    assert any("recycled, half budget" in line for line in lines) == (width != 50)


def test_a_wide_table_becomes_several(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown_lines(WIDE, 40, monkeypatch)
    heads = [line.split() for line in lines if "devices" in line]
    assert heads == [["devices", "one", "two"], ["devices", "three"]]
    assert sum("1,234,567 MB" in line for line in lines) == 4 and max(map(len, lines)) <= 40


def test_numbers_in_names_are_numbers() -> None:
    names = ["lars-32k", "lars-8k", "lars-512", "lars-4k-b", "lars-4k-a", "resnet50", "resnet8"]
    assert sorted(names, key=_show.by_numbers)[:5] == [
        "lars-512",
        "lars-4k-a",
        "lars-4k-b",
        "lars-8k",
        "lars-32k",
    ]
