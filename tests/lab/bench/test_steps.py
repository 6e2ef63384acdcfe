"""`conadv bench steps` on a tiny network: its rows, and the bars that do not depend on a clock."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

import conadv
from conadv.errors import ConadvError
from conadv.lab import planning
from conadv.lab.bench import host, steps
from conadv.lab.bench.memory import peak_bytes
from conadv.lab.bench.stepper import SCHEDULES, Settings
from conadv.trainer.models.zoo import create_model

SETTINGS = {"model": "cifar/resnet8", "batch": 16, "image_size": 16, "dtype": "float32"}


@pytest.fixture(scope="module")
def result() -> dict:
    lines: list[str] = []
    found = steps.run(**SETTINGS, repeats=2, warmup=1, memory=False, on_progress=lines.append)
    assert len(lines) == len(SCHEDULES) + 3  # counting operations, then rounds
    return found


def test_rows_have_what_a_reader_needs(result: dict) -> None:
    rows = {row["schedule"]: row for row in result["rows"]}
    assert set(rows) == set(SCHEDULES)
    for row in rows.values():
        assert row["step_ratio"]["p10"] <= row["step_ratio"]["median"] <= row["step_ratio"]["p90"]
        assert row["step_seconds_median"] > 0
        assert row["memory_ratio"] is None
        assert (row["host_seconds"] is None) == row["schedule"].endswith("weights")
    assert rows["vanilla"]["flops_ratio"] == 1
    assert rows["vanilla"]["step_ratio"] == {"median": 1, "p10": 1, "p90": 1}
    assert {"torch", "cpu", "cores", "threads", "command"} <= set(result["environment"])


def test_host_time_leaves_the_passes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that only forwards, `autograd.grad`, loss() and collect() move."""
    clock = 0.0

    def costs(seconds: float, function: Callable) -> Callable:
        def slower(*arguments: object, **options: object) -> object:
            nonlocal clock
            clock += seconds
            return function(*arguments, **options)

        return slower

    monkeypatch.setattr(host.time, "thread_time", lambda: clock)
    monkeypatch.setattr(torch.autograd, "grad", costs(100, torch.autograd.grad))
    monkeypatch.setattr(nn.Linear, "forward", costs(1000, nn.Linear.forward))
    monkeypatch.setattr(conadv.Adversary, "loss", costs(1, conadv.Adversary.loss))
    monkeypatch.setattr(conadv.Adversary, "collect", costs(2, conadv.Adversary.collect))
    found = host.host_seconds(Settings(**SETTINGS), conadv.Sequential(), repeats=3)
    assert found == 3
    assert clock > 6 * 2000  # two forwards and a gradient in each of the steps


def test_images_per_step(result: dict) -> None:
    images = {row["schedule"]: row["images"] for row in result["rows"]}
    assert images["vanilla"] == images["recycled-budget"] == 16
    assert images["recycled weights"] == 32 and images["recycled-budget weights"] == 16
    assert images["sequential"] == images["lookahead"] == images["recycled"] == 32


def test_operations_are_those_of_the_schedules(result: dict) -> None:
    ratio = {row["schedule"]: row["flops_ratio"] for row in result["rows"]}
    # The gradient with respect to the images is one input gradient of the stem: a larger part of
    # this tiny network than of a ResNet-18, where the bars are 2.02 and 1.02.
    assert 2.0 < ratio["recycled"] < 2.04
    assert 1.0 < ratio["recycled-budget"] < 1.04
    assert 2.6 < ratio["sequential"] == ratio["lookahead"] < 2.72
    assert ratio["noise"] == pytest.approx(2.0)
    for name in ("sequential", "recycled", "lookahead"):
        assert ratio[f"{name} weights"] == pytest.approx(2.0, abs=0.02)
    assert ratio["recycled-budget weights"] == pytest.approx(1.0, abs=0.02)


def test_operations_of_depthwise_convolutions_are_those_of_the_planner() -> None:
    """torch's own counter takes their backward pass for that of dense ones: ten times as much."""
    settings = Settings("timm/mobilenetv3_small_050", 2, 32, dtype="float32")
    model = create_model(settings.model, 3, settings.classes)
    counted = planning.count(model, (3, 32, 32), torch.float32)
    assert steps.count_flops(settings, conadv.Vanilla()) == pytest.approx(2 * counted.train)
    # Two gradients for one forward pass, but for the stem's images.
    assert 2.8 * counted.forward < counted.train < 3 * counted.forward


def test_memory_is_measured_in_a_process_of_its_own() -> None:
    settings = Settings("cifar/resnet8", 64, 16, dtype="float32")
    small, large = peak_bytes(settings, "vanilla"), peak_bytes(settings, "recycled")
    assert small is not None
    assert large is not None
    assert 0 < small < large


def test_memory_that_cannot_be_measured_is_told_in_a_line() -> None:
    with pytest.raises(ConadvError) as found:
        peak_bytes(Settings(**SETTINGS | {"device": "nowhere"}), "vanilla")
    message = str(found.value)
    assert message.startswith("measuring the memory of vanilla failed: RuntimeError: ")
    assert "\n" not in message and "Traceback" in found.value.__notes__[0]
