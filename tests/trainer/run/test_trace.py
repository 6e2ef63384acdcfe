"""A profiler trace of a run: whole, wherever it lies, and never worth the run."""

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from support.runs import quietly, tiny

SETTINGS = ("logging.loggers=[]", "train.steps=2", "data.validation=0")


@pytest.mark.parametrize(
    "name",
    [
        "trace.json",
        "trace.json.gz",
        pytest.param(
            "f\udce4/tr\udce4ce.json",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="no such names"),
        ),
    ],
)
def test_a_trace_is_chromes_format(name: str, tmp_path: Path) -> None:
    path = tmp_path / "traces" / name
    quietly(tiny(*SETTINGS), tmp_path / "run", trace=path)
    content = path.read_bytes()
    events = json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)
    assert any("aten::" in event.get("name", "") for event in events["traceEvents"])
    assert list(path.parent.iterdir()) == [path]


def test_a_trace_that_cannot_be_written_is_told(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "trace.json").mkdir()
    result = quietly(tiny(*SETTINGS), tmp_path / "run", trace=tmp_path / "trace.json")
    assert result.status == "finished"
    assert "trace.json cannot be written (Is a directory)" in capsys.readouterr().err
