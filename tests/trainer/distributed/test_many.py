"""What a process connects to and reads, as the processes of a launch become more."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parents[2]


def launch(folder: Path, size: int, mesh: int) -> list[dict[str, Any]]:
    """What each process leaves; see `support.many`."""
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "support.many", str(folder), str(size), str(mesh)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{size}-{rank}.json").read_text()) for rank in range(size)]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts sockets in /proc")
def test_connections_grow_as_the_logarithm(tmp_path: Path) -> None:
    """Every process of 4 and of 16, where gloo connects on demand, and where it does not."""
    most: dict[tuple[int, int], int] = {}
    for size, mesh in ((4, 1), (16, 1), (16, 64)):
        found = launch(tmp_path, size, mesh)
        # Rank 0 has the launch's store besides, which torchrun keeps in a process of its own.
        most[size, mesh] = max(one["sockets"] for one in found[1:])
        # One reader of the large file; each rank but the first reads its own small one besides.
        reads = [one["read"] for one in found]
        assert reads[0] == ["step_00000004.pt"]
        assert reads[1:] == [[f"step_00000004.rank_{r}_of_{size}.pt"] for r in range(1, size)]
    # Two links in a ring, and one per level of a tree.
    assert most[16, 1] - most[4, 1] <= 2 * (math.log2(16) - math.log2(4))
    assert most[16, 64] - most[4, 1] >= 16 - 4 - 1
