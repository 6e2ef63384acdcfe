"""SIGTERM in a step that lasts longer than the launcher waits, and in one that does not."""

import os
import signal
import time
from pathlib import Path

import pytest

from conadv.trainer.run.result import Result
from support.launches import finish, start, wait_for_step

SLOW = """
import time
from pathlib import Path

FOLDER = Path(__file__).parent


def augment(image, generator):
    if (FOLDER / "slow").exists():
        (FOLDER / "inside").touch()
        time.sleep(2)  # 24 images to a rank in a step
    return image
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("window", "survives"), [(3, False), (600, True)])
def test_a_step_that_outlasts_the_window(
    window: int, survives: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(window))
    (tmp_path / "slow_images.py").write_text(SLOW)
    out = tmp_path / "run"
    settings = ("data.augment=slow_images:augment", "checkpoint.every_steps=4", "train.steps=9")
    process = start(out, *settings, ranks=2, path=tmp_path)
    wait_for_step(process, out, 6)
    (tmp_path / "slow").touch()
    deadline = time.monotonic() + 200
    while not (tmp_path / "inside").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    before = newest(out)
    os.kill(process.pid, signal.SIGTERM)
    if survives:
        (tmp_path / "slow").unlink()  # the step at hand may end
    _, errors = finish(process)
    assert process.returncode not in (0, 1), errors
    assert "SIGTERM: a checkpoint follows when the step at hand has ended" in errors
    assert f"conadv train {out} --resume --devices 2" in errors
    assert ("stopped by SIGTERM after step" in errors) == survives
    assert (newest(out) != before) == survives

    (tmp_path / "slow").unlink(missing_ok=True)
    process = start(out, *settings, ranks=2, path=tmp_path, more=["--resume"])
    _, errors = finish(process)
    assert process.returncode == 0, errors
    assert Result.read(out / "result.json").steps == 9


def newest(out: Path) -> str:
    """The newest checkpoint's name."""
    return max(path.name for path in (out / "checkpoints").glob("step_????????.pt"))
