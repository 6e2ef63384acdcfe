"""A terminal or pipe that is gone, a log on a full disk: nothing that is printed stops a run."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from conadv.trainer.run.output import Steady, steady
from support.runs import TINY, tiny, train

full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")


class Moody(io.StringIO):
    """A stream that fails when told to."""

    error: OSError | ValueError | None = None

    def write(self, text: str) -> int:
        if self.error is not None:
            raise self.error
        return super().write(text)


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(5, "EIO"), ValueError("closed")])
def test_it_says_so_once_it_can(error: OSError | ValueError) -> None:
    stream = Moody()
    console = steady(Console(file=stream))
    assert steady(console).file is console.file
    console.print("one")
    stream.error = error
    for _ in range(3):
        console.print("lost")
    stream.error = None
    console.print("two")
    one, note, two = stream.getvalue().splitlines()
    assert (one, two) == ("one", "two") and "3 pieces of output could not be written" in note


def test_everything_else_is_the_streams_own() -> None:
    stream = Moody()
    assert Steady(stream).getvalue() == "" and not Steady(stream).isatty()


def closed_pipe() -> int:
    read, write = os.pipe()
    os.close(read)
    return write


@full
def test_a_run_outlives_its_terminal(tmp_path: Path) -> None:
    for name, file in (("full", os.open("/dev/full", os.O_WRONLY)), ("pipe", closed_pipe())):
        with open(file, "w") as stream:
            result = train(tiny("train.steps=2"), tmp_path / name, console=Console(file=stream))
            assert result.status == "finished"
            os.dup2(os.open(os.devnull, os.O_WRONLY), file)  # closing writes what it still holds


@full
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_command_ends_well_without_anybody_to_read_it(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "conadv",
        "train",
        "smoke",
        *TINY,
        "--out",
        str(tmp_path / "a"),
    ]
    pipe = closed_pipe()
    with open("/dev/full", "w") as disk:
        assert subprocess.run(command, stdout=pipe, stderr=disk, check=False).returncode == 0
    os.close(pipe)
    assert (tmp_path / "a" / "result.json").exists()
