"""What goes wrong on another rank is told by rank 0 in the next steps, not at a checkpoint."""

import json
import os
from pathlib import Path

import pytest
import torch

from support.broken_rank import train_on_rank
from support.waiting import wait_for_all


@pytest.mark.slow
def test_rank_0_tells_of_the_others(tmp_path: Path) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    context = torch.multiprocessing.spawn(train_on_rank, (str(tmp_path),), 2, join=False)
    wait_for_all(context)
    told = json.loads((tmp_path / "said-0.json").read_text())
    warnings = [(step, text) for step, text in told if text.startswith("warning")]
    (first, full), (second, damaged) = warnings
    assert "rank 1: could not write: No space left on device." in full and 4 <= first < 8
    assert damaged == "warning: rank 1: 1 of 72 images is damaged" and second == 10
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["warnings"] == ["rank 1: could not write: No space left on device."]
    names = {path.name for path in (tmp_path / "run/checkpoints").glob("step_*")}
    assert "step_00000012.rank_1_of_2.pt" in names
