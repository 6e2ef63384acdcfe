"""A bar on a terminal, a bounded number of lines elsewhere."""

import io

import pytest
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
