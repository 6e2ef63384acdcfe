"""Fit the planner's model to steps that `link_overlap.py` measured on a link of limited rate."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from conadv.errors import PlanError
from conadv.lab.planning.hardware import Link, all_reduce_seconds, flat_link
from conadv.lab.planning.job import Dealt, Job, Method
from conadv.lab.planning.network import Network
from conadv.lab.planning.timing import Rates, step_timing

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Observation:
    """What was measured at one rate, in seconds."""

    rate: float
    """Bytes per second of the link in each direction; infinite where nothing limited it."""
    alone: float
    """An all-reduce of all gradients with nothing beside it."""
    steps: dict[str, float]
    """A step with communication, by schedule."""
    exposed: dict[str, float] = field(default_factory=dict)
    """What of it is communication: the step minus one without."""


@dataclass(frozen=True)
class LinkBenchmark:
    """A file of ``benchmarks/link_overlap.py``: two ranks, one micro-batch each."""

    observations: tuple[Observation, ...]
    batch: int
    """Images of one rank in one step."""
    bucket_bytes: float
    gradient_bytes: int
    settings: dict[str, Any]

    @property
    def job(self) -> Job:
        """What was trained."""
        size = self.batch
        return Job(2 * size, size, size, 2 * size, steps=1, bucket_bytes=self.bucket_bytes)


@dataclass(frozen=True)
class Fitted:
    """The model's free parameters: the rate of one rank, and the link but for its rate."""

    rates: Rates
    link: Link


def read_link_benchmark(path: Path) -> LinkBenchmark:
    """Read a results file.

    Raises:
        PlanError: it is none of ``benchmarks/link_overlap.py``.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        observations = tuple(
            Observation(
                rate=math.inf if row["bits_per_second"] is None else row["bits_per_second"] / 8,
                alone=row["all_reduce_seconds"],
                steps={name: times["step"]["median"] for name, times in row["schedules"].items()},
                exposed={
                    name: times["exposed"]["median"] for name, times in row["schedules"].items()
                },
            )
            for row in found["rows"]
        )
        settings = found["settings"]
        return LinkBenchmark(
            observations,
            settings["batch"],
            settings["bucket_mb"] * 2**20,
            found["gradient_bytes"],
            settings,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise PlanError(
            f"{path}: not a results file of benchmarks/link_overlap.py ({error!r}). Make one with "
            "python benchmarks/link_overlap.py --json FILE."
        ) from error


def predict_observation(
    benchmark: LinkBenchmark, network: Network, fitted: Fitted, rate: float
) -> Observation:
    """What the model says of one rate."""
    link = replace(fitted.link, inside=rate, between=rate)
    job, dealt = benchmark.job, Dealt(benchmark.batch, 1)
    schedules = {name for seen in benchmark.observations for name in seen.steps}
    size = float(network.gradient_bytes)
    timings = {
        name: step_timing(network, job, Method(name), dealt, fitted.rates, link, 2)
        for name in schedules
    }
    return Observation(
        rate=rate,
        alone=all_reduce_seconds(link, 2, size) + size / link.host,
        steps={name: timing.step for name, timing in timings.items()},
        exposed={name: timing.exposed + timing.host for name, timing in timings.items()},
    )


def fit_link(
    benchmark: LinkBenchmark, network: Network, using: Sequence[Observation] | None = None
) -> Fitted:
    """Least squares on the logarithms of measured step times and all-reduces.

    Four numbers are fitted: operations per second, the share of the link's rate that is reached,
    the latency of a message, and the bytes per second at which a rank's processor handles what
    travels. Forward's share of a step, the buckets, the cost of each schedule and what overlaps
    what are the model's own.

    Args:
        benchmark: the setting.
        network: the model that was trained, counted.
        using: the rates to fit to; None: all.

    Raises:
        PlanError: the model is not the one that was measured.
    """
    if network.gradient_bytes != benchmark.gradient_bytes:
        raise PlanError(
            f"the model has {network.gradient_bytes} bytes of gradients, the benchmark's "
            f"{benchmark.gradient_bytes}: count the model of its settings, "
            f"{benchmark.settings.get('model')}, its normalisation split."
        )
    seen = benchmark.observations if using is None else using
    size = float(network.gradient_bytes)
    fastest = min(min(o.steps.values()) for o in seen)
    shortest = min(o.alone for o in seen)
    start = [network.train * benchmark.batch / fastest, 0.9, shortest / 100, size / shortest]

    def residuals(logs: Vector) -> Vector:
        errors = []
        for o in seen:
            found = predict_observation(benchmark, network, _fitted(logs), o.rate)
            errors += [math.log(found.steps[name] / o.steps[name]) for name in sorted(o.steps)]
            errors.append(math.log(found.alone / o.alone))
        return np.array(errors)

    return _fitted(least_squares(residuals, np.log(np.array(start)), method="lm").x)


def held_out(benchmark: LinkBenchmark, network: Network) -> list[tuple[Observation, Observation]]:
    """Each rate as measured, and as predicted by a fit to the other rates alone."""
    found = []
    for seen in benchmark.observations:
        others = [other for other in benchmark.observations if other is not seen]
        fitted = fit_link(benchmark, network, others)
        found.append((seen, predict_observation(benchmark, network, fitted, seen.rate)))
    return found


def _fitted(logs: Vector) -> Fitted:
    operations, efficiency, latency, host = (float(value) for value in np.exp(logs))
    link = flat_link(math.inf, latency, name="fitted", efficiency=min(1.0, efficiency))
    return Fitted(Rates(operations), replace(link, host=host))
