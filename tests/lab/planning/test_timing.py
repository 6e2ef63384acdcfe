"""The time of a step: limits, closed forms, and what must never get worse."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conadv.errors import PlanError
from conadv.lab.planning import (
    Job,
    Loader,
    Method,
    Network,
    Rates,
    StepPlan,
    compare,
    device_counts,
    device_type,
    flat_link,
    links,
    plan_step,
    published,
    step_timing,
)
from conadv.lab.planning.job import Dealt

FORWARD = 1e9


def network(buckets: int = 4, size: int = 2**21) -> Network:
    """Equal gradients, ready at equal distances; bytes beyond 1 MiB fill a bucket each."""
    ready = tuple(((i + 1) / buckets, size) for i in range(buckets))
    return Network(
        forward=FORWARD,
        train=3 * FORWARD,
        recycle=3 * FORWARD,
        attack=2 * FORWARD,
        parameters=buckets * size // 4,
        ready=ready,
        saved=1e6,
        saved_once=1e6,
        attack_saved=1e6,
        values=3 * 32 * 32,
    )


JOB = Job(4096, 64, 4, 50_000, epochs=10, bucket_bytes=2**21)
METHODS = [
    Method(),
    Method("sequential"),
    Method("lookahead"),
    Method("recycled"),
    Method("recycled-budget", 0.25),
]
RATES = Rates(64 * 3 * FORWARD)  # ordinary training of a micro-batch takes one second
FAST = flat_link(math.inf)


def timing(method: str, link=FAST, devices: int = 64, rates: Rates = RATES, rounds: int = 1):
    return step_timing(network(), JOB, Method(method), Dealt(64, rounds), rates, link, devices)


# -- limits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.schedule)
def test_a_perfect_link_scales_perfectly(method: Method) -> None:
    for devices in (1, 8, 1024):
        plan = plan_step(network(), JOB, method, RATES, FAST, devices)
        assert plan.timing.network == plan.timing.exposed == 0
        assert plan.efficiency == pytest.approx(1.0)
        assert plan.bottleneck == "compute"


def test_steps_without_communication() -> None:
    slow = flat_link(1.0, 1.0)
    expected = {"vanilla": 1, "sequential": 8 / 3, "lookahead": 8 / 3, "recycled": 2}
    for name, seconds in expected.items():
        alone = timing(name, slow, devices=1)
        assert alone.network == 0
        assert alone.step == pytest.approx(seconds)
        assert timing(name, slow, devices=1, rounds=5).step == pytest.approx(5 * seconds)


def test_exposed_by_hand() -> None:
    """Four buckets that get ready at the quarters of a backward pass of 2/3 s."""
    backward = 2 / 3
    quick = flat_link(2**21 / 0.01)  # 0.01 s a bucket: only the last one is left over
    assert timing("vanilla", quick, devices=2).exposed == pytest.approx(0.01)
    slow = flat_link(2**21 / 0.5)  # 0.5 s a bucket: they queue behind the first
    left = backward / 4 + 4 * 0.5 - backward
    assert timing("vanilla", slow, devices=2).exposed == pytest.approx(left)
    # Copies double the backward pass; the attack of lookahead covers 2/3 s more.
    doubled = 2 * backward / 4 + 4 * 0.5 - 2 * backward
    assert timing("sequential", slow, devices=2).exposed == pytest.approx(doubled)
    assert timing("recycled", slow, devices=2).exposed == pytest.approx(doubled)
    assert timing("lookahead", slow, devices=2).exposed == pytest.approx(doubled - 2 / 3)


def test_only_the_last_micro_batch_covers_the_network() -> None:
    slow = flat_link(2**21 / 0.5)
    for name in ("vanilla", "lookahead"):
        one, many = (timing(name, slow, devices=2, rounds=n) for n in (1, 7))
        assert many.exposed == pytest.approx(one.exposed)


def test_the_attack_is_hidden_where_the_network_is_the_bottleneck() -> None:
    """Sequential exposes as much as the attack takes: lookahead's step is shorter by just that."""
    slow = flat_link(2**21 / 0.5)
    sequential, lookahead = timing("sequential", slow, 2), timing("lookahead", slow, 2)
    assert lookahead.step == pytest.approx(sequential.step - lookahead.attack)


def test_a_second_stream_uses_what_small_passes_leave_idle() -> None:
    starved = Rates(RATES.operations, half_batch=6400.0)
    beside = replace(starved, streams=True)
    vanilla = timing("vanilla", rates=beside)
    assert vanilla.idle > 0.9 * vanilla.step
    assert timing("lookahead", rates=beside).step < 1.05 * vanilla.step
    assert timing("sequential", rates=beside).step > 1.5 * vanilla.step
    assert timing("lookahead", rates=starved).step > 1.5 * vanilla.step
    # A saturated device has nothing idle.
    full = replace(RATES, streams=True)
    assert timing("lookahead", rates=full).step == pytest.approx(8 / 3)


def test_half_batch_is_half_the_rate() -> None:
    assert timing("vanilla", rates=Rates(RATES.operations, half_batch=64.0)).step == (
        pytest.approx(2.0)
    )


def test_the_processors_share_of_the_network() -> None:
    link = replace(FAST, host=4 * 2**21 / 0.25)
    assert timing("vanilla", link).step == pytest.approx(1.25)
    assert timing("vanilla", link, devices=1).step == pytest.approx(1.0)


def test_the_optimizer_reads_and_writes() -> None:
    parameters = network().parameters
    rates = replace(RATES, bandwidth=float(parameters))
    assert timing("vanilla", rates=rates).update == pytest.approx(4 * 5)  # momentum: five passes


# -- what must never get worse -----------------------------------------------------------------

bandwidths = st.floats(1e5, 1e13)
latencies = st.floats(0.0, 0.1)
devices_of = st.sampled_from([1, 2, 4, 16, 64, 256, 1024])


@given(bandwidths, bandwidths, latencies, latencies, devices_of, st.sampled_from(METHODS))
def test_a_better_link_never_costs(
    a: float, b: float, c: float, d: float, devices: int, method: Method
) -> None:
    (slow, fast), (early, late) = sorted((a, b)), sorted((c, d))
    args = (network(), JOB, method, RATES)
    worst = plan_step(*args, flat_link(slow, late), devices).timing.step
    assert plan_step(*args, flat_link(fast, late), devices).timing.step <= worst + 1e-9
    assert plan_step(*args, flat_link(slow, early), devices).timing.step <= worst + 1e-9


@given(bandwidths, latencies, devices_of, st.floats(0.0, 100.0), st.booleans())
def test_order_of_the_schedules(
    bandwidth: float, latency: float, devices: int, half: float, streams: bool
) -> None:
    rates = Rates(RATES.operations, half, streams=streams)
    link = flat_link(bandwidth, latency)
    found = {c.plan.schedule: c for c in compare(network(), JOB, METHODS, rates, link, devices)}
    step = {name: c.plan.timing.step for name, c in found.items()}
    slack = 1 + 1e-9
    assert step["vanilla"] <= step["recycled"] * slack
    assert step["recycled"] <= step["lookahead"] * slack
    assert step["lookahead"] <= step["sequential"] * slack
    assert step["recycled-budget"] == pytest.approx(step["vanilla"])
    assert found["vanilla"].hidden is None
    assert found["recycled-budget"].hidden
    for name, c in found.items():
        timing = c.plan.timing
        assert 0 <= timing.exposed <= timing.network
        assert c.plan.efficiency <= slack
        assert c.over_vanilla == pytest.approx(step[name] / step["vanilla"])


@given(st.floats(1.0, 1e5), st.floats(1e3, 1e12), devices_of)
def test_the_loader_bounds_the_step(speed: float, storage: float, devices: int) -> None:
    loader = Loader(speed, 4.0, 1e5, storage)
    job = replace(JOB, loader=loader)
    plan = plan_step(network(), job, Method(), RATES, FAST, devices)
    assert plan.timing.step >= plan.timing.loader
    decode = 4096 / devices / (speed * 4)
    assert plan.timing.loader == pytest.approx(max(decode, 4096 * 1e5 / storage))
    assert (plan.bottleneck == "loader") == (plan.timing.loader >= plan.timing.device)
    ahead = plan_step(network(), job, Method("lookahead"), RATES, FAST, devices)
    assert ahead.timing.loader == pytest.approx(2 * plan.timing.loader)  # read once more


# -- rates and plans ---------------------------------------------------------------------------


def test_a_measured_throughput_is_given_back() -> None:
    device = device_type("h100")
    for size in (8, 256):
        rates = Rates.of(device, network(), size, images_per_second=1000.0)
        found = step_timing(network(), JOB, Method(), Dealt(size, 1), rates, FAST, 1)
        assert found.step == pytest.approx(size / 1000)


def test_a_peak_and_its_use() -> None:
    device = device_type("a100-80gb")
    rates = Rates.of(device, network(), 64, utilisation=0.5, half_batch=0)
    assert rates.operations == device.peak * 0.5
    with pytest.raises(PlanError, match="--images-per-second"):
        Rates.of(device_type("cpu"), network(), 64)


def plan(**changes: object) -> StepPlan:
    given = {"capacity": None} | changes
    return plan_step(network(), JOB, Method(), RATES, FAST, 8, **given)  # type: ignore[arg-type]


def test_memory_that_is_not_enough() -> None:
    assert plan().fits is None
    assert plan(capacity=1e12).fits is True
    short = plan(capacity=1e6)
    assert short.fits is False
    assert short.bottleneck == "memory"


def test_the_network_as_bottleneck() -> None:
    found = plan_step(network(), JOB, Method(), RATES, flat_link(1e5), 1024)
    assert found.bottleneck == "network"
    assert found.efficiency < 0.1
    assert found.images_per_second == pytest.approx(4096 / found.timing.step)
    assert found.seconds == pytest.approx(round(10 * 50_000 / 4096) * found.timing.step)


def test_numbers_of_devices() -> None:
    carry, refused = device_counts(JOB, also=3)
    assert carry == [2**k for k in range(11)]
    assert refused == [3, 2048, 4096]
    assert device_counts(JOB, also=512, most=4) == ([1, 2, 4, 512], [])


def test_views_are_on_both_sides_of_the_ratio() -> None:
    methods = [Method(views=1), Method("recycled", views=1)]
    vanilla, recycled = compare(network(), JOB, methods, RATES, FAST, 8)
    assert vanilla.over_vanilla == 1.0
    assert recycled.over_vanilla == pytest.approx(1.5)  # three views over two


def test_published_points_say_where_from() -> None:
    rows = published()
    assert {"what", "batch", "devices", "device", "minutes", "source"} <= set(rows[0])
    assert any(row["batch"] == 98304 and row["devices"] == 1024 for row in rows)
    assert all(row["source"].startswith("arXiv ") for row in rows)


def test_every_link_of_the_table_gives_a_plan() -> None:
    for link in links().values():
        found = plan_step(network(), JOB, Method("lookahead"), RATES, link, 64)
        assert math.isfinite(found.seconds)
