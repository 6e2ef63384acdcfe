"""The model against steps that were measured: two ranks on a link of limited rate."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from _link_model import (
    Fitted,
    LinkBenchmark,
    fit_link,
    held_out,
    predict_observation,
    read_link_benchmark,
)

import conadv
from conadv.errors import PlanError
from conadv.lab.planning import Network, Rates, count, flat_link
from conadv.trainer.models.zoo import create_model

ROOT = Path(__file__).resolve().parents[2]
MEASURED = ROOT / "benchmarks" / "results" / "link-overlap.json"
BAR = 0.15
"""Predicted over measured step time, at most so far from 1."""


@pytest.fixture(scope="module")
def benchmark() -> LinkBenchmark:
    return read_link_benchmark(MEASURED)


@pytest.fixture(scope="module")
def network(benchmark: LinkBenchmark) -> Network:
    return measured_network(benchmark)


def measured_network(benchmark: LinkBenchmark) -> Network:
    settings, size = benchmark.settings, benchmark.settings["image_size"]
    options = {"widths": tuple(settings["widths"])} if settings["widths"] else {}
    model = create_model(settings["model"], 3, 10, options=options)
    return count(conadv.split_norms(model), (3, size, size), torch.float32)


def errors(benchmark: LinkBenchmark, network: Network, fitted: Fitted, rates: set[float]):
    """(rate, schedule, predicted over measured - 1) at these rates."""
    return [
        (
            seen.rate,
            name,
            predict_observation(benchmark, network, fitted, seen.rate).steps[name] / seconds - 1,
        )
        for seen in benchmark.observations
        if seen.rate in rates
        for name, seconds in seen.steps.items()
    ]


def test_the_counted_model_is_the_measured_one(benchmark: LinkBenchmark, network: Network) -> None:
    assert network.gradient_bytes == benchmark.gradient_bytes
    assert len(benchmark.observations) >= 4
    assert {"vanilla", "sequential", "lookahead"} <= set(benchmark.observations[0].steps)


def test_each_rate_is_predicted_from_the_others(benchmark: LinkBenchmark, network: Network) -> None:
    """Leave one rate out, fit to the others: within 15 % for every schedule."""
    checked = 0
    for seen, found in held_out(benchmark, network):
        for name, seconds in seen.steps.items():
            error = found.steps[name] / seconds - 1
            rate = 8 * seen.rate / 1e6
            assert abs(error) <= BAR, f"{name} at {rate:.0f} Mbit/s: {error:+.1%}"
            checked += 1
    assert checked == 3 * len(benchmark.observations)


def test_exposed_communication_is_predicted_where_there_is_much(
    benchmark: LinkBenchmark, network: Network
) -> None:
    """Steps are mostly computing: the part that a link adds is checked on its own."""
    pairs = [
        (seen.exposed[name], found.exposed[name])
        for seen, found in held_out(benchmark, network)
        for name in seen.steps
    ]
    much = [(seen, found) for seen, found in pairs if seen > 0.08]
    little = [(seen, found) for seen, found in pairs if seen <= 0.08]
    assert len(much) >= 3
    for seen, found in much:
        assert found == pytest.approx(seen, rel=0.25)
    assert all(abs(found - seen) < 0.05 for seen, found in little)


def test_slow_links_are_predicted_from_fast_ones(
    benchmark: LinkBenchmark, network: Network
) -> None:
    """Extrapolation: the two slowest rates, where most of the all-reduce is exposed."""
    ordered = sorted(benchmark.observations, key=lambda seen: -seen.rate)
    fitted = fit_link(benchmark, network, ordered[:-2])
    slowest = {seen.rate for seen in ordered[-2:]}
    assert all(abs(e) <= BAR for *_, e in errors(benchmark, network, fitted, slowest))


def test_schedules_are_predicted_from_vanilla(benchmark: LinkBenchmark, network: Network) -> None:
    """Fitted to ordinary training alone: what an attack costs and hides is the model's own."""
    seen = [replace(o, steps={"vanilla": o.steps["vanilla"]}) for o in benchmark.observations]
    fitted = fit_link(benchmark, network, seen)
    every = {o.rate for o in benchmark.observations}
    assert all(abs(e) <= BAR for *_, e in errors(benchmark, network, fitted, every))


def test_a_model_without_overlap_misses_the_bar(benchmark: LinkBenchmark, network: Network) -> None:
    """The bar can be missed: with all gradients ready only at the end it is."""
    late = replace(network, ready=((1.0, network.gradient_bytes),))
    fitted = fit_link(benchmark, late)
    every = {o.rate for o in benchmark.observations}
    assert max(abs(e) for *_, e in errors(benchmark, late, fitted, every)) > BAR


def test_known_parameters_are_found_again(benchmark: LinkBenchmark, network: Network) -> None:
    link = replace(flat_link(math.inf, 2e-3, efficiency=0.8), host=5e8)
    truth = Fitted(Rates(5e10), link)
    made = tuple(
        predict_observation(benchmark, network, truth, seen.rate) for seen in benchmark.observations
    )
    found = fit_link(replace(benchmark, observations=made), network)
    assert found.rates.operations == pytest.approx(5e10, rel=1e-3)
    assert found.link.efficiency == pytest.approx(0.8, rel=1e-2)
    assert found.link.inside_latency == pytest.approx(2e-3, rel=5e-2)
    assert found.link.host == pytest.approx(5e8, rel=5e-2)


def test_another_model_is_refused(benchmark: LinkBenchmark, network: Network) -> None:
    with pytest.raises(PlanError, match=benchmark.settings["model"]):
        fit_link(benchmark, replace(network, ready=((1.0, 4),)))


def test_other_files_are_refused(tmp_path: Path) -> None:
    for text in ("nothing", json.dumps({"rows": [{}]}), "[]"):
        path = tmp_path / "x.json"
        path.write_text(text)
        with pytest.raises(PlanError, match="benchmarks/link_overlap.py"):
            read_link_benchmark(path)
