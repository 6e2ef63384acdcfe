"""Tables on narrow terminals, and names in the order of their numbers."""

import io

import pytest
import rich.console

from conadv.commands import _show

ROWS = [
    {"recipe": "imagenet-resnet50-lars-32k", "batch": 32768, "method": "recycled, half budget"},
    {"recipe": "smoke", "batch": 64, "method": "vanilla"},
]


@pytest.mark.parametrize("width", [40, 80])
def test_a_table_fits_into_a_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    real = rich.console.Console

    def terminal(**options: object) -> rich.console.Console:
        return real(file=shown, width=width, force_terminal=True, no_color=True)

    monkeypatch.setattr("rich.console.Console", terminal)
    _show.table(ROWS, "recipes")
    lines = [
        line.rstrip() for line in rich.console.Text.from_ansi(shown.getvalue()).plain.split("\n")
    ]
    assert max(map(len, lines)) <= width
    for word in ("imagenet-resnet50-lars-32k", "recycled, half budget", "32768"):
        assert any(word in line for line in lines), "a word was cut in two"
    header = any(line.split() == ["recipe", "batch", "method"] for line in lines)
    assert header == (width == 80)


def test_numbers_in_names_are_numbers() -> None:
    names = ["lars-32k", "lars-8k", "lars-512", "lars-4k-b", "lars-4k-a", "resnet50", "resnet8"]
    assert sorted(names, key=_show.by_numbers)[:5] == [
        "lars-512",
        "lars-4k-a",
        "lars-4k-b",
        "lars-8k",
        "lars-32k",
    ]
