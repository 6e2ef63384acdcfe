"""How long an all-reduce takes, against closed forms."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conadv.errors import PlanError
from conadv.lab.planning import (
    all_reduce_seconds,
    device_type,
    device_types,
    flat_link,
    link_named,
    links,
    parse_rate,
    ring_seconds,
)
from conadv.lab.planning.hardware import Link

sizes = st.floats(1.0, 1e10)
rates = st.floats(1e3, 1e13)
delays = st.floats(0.0, 1e-2)
counts = st.integers(1, 5000)


def test_a_ring_by_hand() -> None:
    # Four devices: six messages of a quarter of 8 MB at 1 MB/s, and six times the latency.
    assert ring_seconds(4, 8e6, 1e6, 0.5) == pytest.approx(6 * 2 + 6 * 0.5)
    assert ring_seconds(2, 8e6, 1e6, 0.0) == pytest.approx(8.0)


def test_a_simulated_ring_takes_as_long() -> None:
    """Round by round: in each, every device sends one part of the buffer to its neighbour."""
    devices, size, bandwidth, latency = 6, 1e6, 1e8, 3e-5
    clock = [0.0] * devices
    for _ in range(2 * (devices - 1)):
        arrival = [at + latency + size / devices / bandwidth for at in clock]
        clock = [max(clock[i], arrival[i - 1]) for i in range(devices)]
    assert ring_seconds(devices, size, bandwidth, latency) == pytest.approx(max(clock))


@given(counts, sizes, rates, delays)
def test_limits_of_a_ring(devices: int, size: float, bandwidth: float, latency: float) -> None:
    assert ring_seconds(1, size, bandwidth, latency) == 0.0
    only_latency = ring_seconds(devices, size, math.inf, latency)
    assert only_latency == pytest.approx(2 * (devices - 1) * latency)
    no_latency = ring_seconds(devices, size, bandwidth, 0.0)
    assert no_latency <= 2 * size / bandwidth
    assert ring_seconds(devices, size, bandwidth, latency) == pytest.approx(
        only_latency + no_latency
    )


@given(counts, counts, sizes, sizes, st.sampled_from(sorted(links())))
def test_more_devices_and_bytes_never_take_less(
    few: int, many: int, small: float, large: float, name: str
) -> None:
    link = links()[name]
    few, many = sorted((few, many))
    small, large = sorted((small, large))
    least = all_reduce_seconds(link, few, small)
    assert all_reduce_seconds(link, many, small) >= least * (1 - 1e-12)
    assert all_reduce_seconds(link, few, large) >= least


def test_a_flat_link_is_one_ring() -> None:
    link = flat_link(1e9, 1e-5)
    for devices in (1, 2, 7, 64):
        assert all_reduce_seconds(link, devices, 1e8) == ring_seconds(devices, 1e8, 1e9, 1e-5)


def node_link(**changes: object) -> Link:
    values = {
        "name": "x",
        "devices_per_node": 8,
        "inside": 100e9,
        "between": 10e9,
        "inside_latency": 1e-6,
        "between_latency": 1e-5,
        "efficiency": 1.0,
        "pattern": "ring",
        "source": "made up",
    }
    return Link(**(values | changes))  # type: ignore[arg-type]


def test_nodes_are_reduced_inside_then_between() -> None:
    link, size = node_link(), 1e9
    inside = ring_seconds(8, size, 100e9, 1e-6)
    assert all_reduce_seconds(link, 8, size) == inside
    assert all_reduce_seconds(link, 4, size) == ring_seconds(4, size, 100e9, 1e-6)
    expected = inside + ring_seconds(4, size, 10e9, 1e-5)
    assert all_reduce_seconds(link, 32, size) == pytest.approx(expected)
    halved = node_link(efficiency=0.5, inside_latency=0.0, between_latency=0.0)
    whole = node_link(inside_latency=0.0, between_latency=0.0)
    assert all_reduce_seconds(halved, 32, size) == pytest.approx(
        2 * all_reduce_seconds(whole, 32, size)
    )


@pytest.mark.parametrize(("pattern", "messages"), [("ring", 126), ("tree", 12), ("torus", 28)])
def test_latencies_between_nodes(pattern: str, messages: int) -> None:
    link = node_link(pattern=pattern, inside=math.inf, between=math.inf, inside_latency=0.0)
    assert all_reduce_seconds(link, 64 * 8, 1.0) == pytest.approx(messages * 1e-5)


# -- tables ------------------------------------------------------------------------------------


def test_every_table_row_is_sane_and_sourced() -> None:
    for name, device in device_types().items():
        assert device.source, name
        if device.peak is not None:
            assert 1e13 < device.peak < 1e16, name
            assert device.memory is not None and 1e9 < device.memory < 1e12, name
            assert device.bandwidth is not None and 1e11 < device.bandwidth < 1e13, name
            assert device.utilisation is not None and 0 < device.utilisation < 1, name
    for name, link in links().items():
        assert link.source, name
        assert link.devices_per_node >= 1 and 0 < link.efficiency <= 1, name
        assert link.inside >= link.between / link.devices_per_node, name


@pytest.mark.parametrize(
    ("text", "rate"),
    [("8bit", 1.0), ("25Gbit", 25e9 / 8), ("100Mbit/s", 12.5e6), ("12.5GB/s", 12.5e9), ("x", None)],
)
def test_rates(text: str, rate: float | None) -> None:
    assert parse_rate(text) == rate


def test_a_link_by_name_or_rate() -> None:
    assert link_named("nvlink4-ndr") == links()["nvlink4-ndr"]
    assert link_named("nvlink4-ndr", 1e-3).between_latency == 1e-3
    assert link_named("8Gbit").inside == 1e9


def test_names_nearby_are_suggested() -> None:
    with pytest.raises(PlanError, match="Did you mean h200"):
        device_type("H-200")
    with pytest.raises(PlanError, match="Did you mean nvlink4-ndr.*25Gbit"):
        link_named("nvlink4ndr")
    with pytest.raises(PlanError, match="above 0"):
        link_named("0Gbit")
