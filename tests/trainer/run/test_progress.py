"""A bar on a terminal, a bounded number of lines elsewhere."""

import io
import re
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from conadv.trainer.run.progress import PLAIN_LINES, make_watcher


@pytest.mark.parametrize("total", [3, 100, 1301])
def test_plain_lines_are_few_and_end_with_the_last_step(total: int) -> None:
    out = io.StringIO()
    watcher = make_watcher(Console(file=out), "run", 0, total)
    for step in range(1, total + 1):
        watcher.update(step, step / 10, 1.5, 0.25, 1234.0)
    watcher.close()
    lines = out.getvalue().splitlines()
    assert len(lines) <= PLAIN_LINES + 2
    assert lines[-1].startswith(f"run {total}/{total} epoch")
    assert "accuracy 25.0%" in lines[-1] and "1,234 images/s" in lines[-1]
    assert lines[-1].endswith("left 0 s")


def test_bar_on_a_terminal_shows_the_numbers() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=140)
    watcher = make_watcher(console, "run", 5, 10)
    watcher.update(6, 0.6, 2.25, 0.5, 99.0)
    watcher.say("[eval] saved")
    watcher.close()
    text = out.getvalue()
    assert "6/10" in text and "loss 2.250" in text and "99 images/s" in text
    assert "[eval] saved" in text


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("colour", [{"color_system": "truecolor"}, {"no_color": True}])
@pytest.mark.parametrize("name", ["run", "cifar10-5k-resnet9-2500-weights-recycled-budget"])
def test_nothing_on_a_terminal_is_cut_or_beyond_its_width(
    width: int, colour: dict[str, Any], name: str
) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, **colour)
    watcher = make_watcher(console, name, 0, 12_000)
    watcher.update(11_999, 119.99, 2.25, 0.5, 123_456.0)
    watcher.say("warning: " + "a long message that goes on " * 5)
    watcher.close()
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", out.getvalue())
    assert "\x1b[" in out.getvalue() and "…" not in text
    assert "no_color" not in colour or not re.search(r"\x1b\[[\d;]*3\d", out.getvalue())
    lines = re.split(r"[\r\n]+", text)
    assert max(map(cell_len, lines)) <= width
    assert any("11999/12000 loss 2.250" in line for line in lines) or "accuracy 50.0%" in text
    assert "that goes on" in " ".join(text.split())


def test_a_pipe_and_a_notebook_get_whole_lines_without_codes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(
        "rich.jupyter.display", lambda segments, text: shown.append(text), raising=True
    )
    piped = io.StringIO()
    for console in (Console(file=piped, width=40), Console(force_jupyter=True)):
        watcher = make_watcher(console, "run", 0, 10)
        watcher.update(10, 1.0, 2.25, 0.5, 99.0)
        watcher.say("a message that is longer than forty columns of a terminal")
        watcher.close()
    for text in (piped.getvalue(), "".join(shown)):
        assert "\x1b" not in text
        assert "run 10/10 epoch 1.00 loss 2.250 accuracy 50.0% 99 images/s left 0 s" in text
        assert "a message that is longer than forty columns of a terminal" in text
