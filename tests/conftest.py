"""Settings that every test shares: one thread per worker, and a seed."""

import os

# Before torch is imported: OpenMP reads these once. Two pytest workers on two cores would
# otherwise fight for them, and child processes inherit the same limit.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
# Colours and widths of the terminal that happens to run the tests must not reach captured output.
os.environ["NO_COLOR"] = "1"
os.environ.pop("FORCE_COLOR", None)
os.environ.setdefault("COLUMNS", "100")

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
# Tests assert behaviour, not time: another process on the cores must not fail one.
hypothesis.settings.register_profile("timeless", deadline=None)
hypothesis.settings.load_profile("timeless")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
