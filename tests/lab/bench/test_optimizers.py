"""The benchmark measures what it says, on a small network."""

import json
import sys

import pytest
import torch

from conadv.errors import ConadvError
from conadv.lab.bench import optimizers
from conadv.optim import multi_tensor


def test_rows_can_be_written_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    monkeypatch.setattr(multi_tensor, "CACHED_ELEMENTS", 1000)  # pieces, as in a large network
    said: list[str] = []
    found = optimizers.run("cifar/resnet8", repeats=2, warmup=0, on_progress=said.append)
    rows = {(r["optimizer"], r["implementation"]): r for r in json.loads(json.dumps(found))["rows"]}
    assert set(rows) == set(optimizers.CONTENDERS)
    for (_, implementation), row in rows.items():
        ratio = row["step_ratio"]
        assert 0 < ratio["p10"] <= ratio["median"] <= ratio["p90"]
        assert row["step_seconds_median"] > 0 and row["first_step_seconds"] > 0
        assert row["copy_share"] > 0
        if implementation == "timm":
            assert ratio == {"median": 1.0, "p10": 1.0, "p90": 1.0} and row["memory_ratio"] == 1.0
    # timm's LARS makes a second copy of all gradients; ours makes one of a piece at a time.
    assert rows["lars", "foreach"]["memory_ratio"] < 1
    assert found["settings"]["tensors"] > 10 and found["settings"]["parameters"] > 10_000
    assert found["environment"]["torch"] == torch.__version__
    assert any("preparing lamb foreach" in line for line in said) and "round 2 of 2" in said


def test_contenders_do_the_same_work() -> None:
    pytest.importorskip("timm")
    network = torch.nn.Sequential(torch.nn.Linear(30, 20), torch.nn.BatchNorm1d(20))
    ends = {}
    for key, make in optimizers.CONTENDERS.items():
        optimizer = make(optimizers._copied_groups(network))
        optimizer.step()  # at the first step the two forms of LARS are the same
        ends[key] = [p for group in optimizer.param_groups for p in group["params"]]
    for name in ("lars", "lamb"):
        torch.testing.assert_close(ends[name, "timm"][0], ends[name, "foreach"][0])


def test_peak_of_allocations() -> None:
    def function() -> None:
        first = torch.empty(1000)
        second = torch.empty(500)
        del first
        third = torch.empty(200)
        del second, third

    assert optimizers._peak_of_allocations(function) == 4 * 1500


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConadvError, match=r"timm is not installed. Type: pip install .*\[train\]"):
        optimizers.run("cifar/resnet8")
