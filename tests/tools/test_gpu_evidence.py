"""The script for a lent GPU, with tiny sizes on a CPU: it keeps to its time and goes on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from support.studies import TINY_IMAGES

SCRIPT = Path(__file__).parents[2] / "tools" / "gpu_evidence.sh"
TINY = {
    "recipe": "smoke",
    "settings": {**TINY_IMAGES, "train.steps": 2},
    "methods": {"vanilla": {"settings": {"method.schedule": "vanilla"}}, "recycled": {}},
    "batches": [16],
    "tuning": {"trials": 0},
    "final": {"seeds": [0, 1]},
    "hypotheses": {"primary": {"method": "recycled", "batch": 16}},
}


@pytest.mark.slow
def test_it_runs_the_study_and_says_what_was_found(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    done = subprocess.run(
        [SCRIPT, "out", "150", "tiny.yaml"],
        cwd=tmp_path,
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=175,
    )
    assert done.returncode == 0, done.stderr
    assert "4 of 4 runs have ended" in done.stdout
    assert "hypothesis primary: undecided" in done.stdout
    assert (tmp_path / "out" / "registered.json").is_file()
