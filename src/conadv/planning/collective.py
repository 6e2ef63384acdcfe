"""How long an all-reduce takes: latency and bandwidth (the alpha-beta model)."""

from __future__ import annotations

import math

from conadv.planning.hardware import Link, Pattern


def ring_seconds(devices: int, size: float, bandwidth: float, latency: float) -> float:
    """A ring all-reduce, with nothing else on the link.

    2 (p - 1) messages of size / p, one after the other: 2 (p - 1) (alpha + size / (p B)); see
    Thakur, Rabenseifner and Gropp, 2005 (Rabenseifner's algorithm, ring form).

    Args:
        devices: p, those that take part.
        size: bytes to be reduced on each.
        bandwidth: B, bytes per second in each direction; may be infinite.
        latency: alpha, seconds per message.
    """
    if devices <= 1:
        return 0.0
    return _messages("ring", devices) * latency + 2 * (devices - 1) / devices * size / bandwidth


def all_reduce_seconds(link: Link, devices: int, size: float) -> float:
    """An all-reduce over devices in nodes: scattered inside, reduced between, gathered inside.

    Args:
        link: of the devices; nodes are filled one after the other.
        devices: those that take part.
        size: bytes to be reduced on each.

    Returns:
        Seconds on the link, without the processor's share (`Link.host`).
    """
    if devices <= 1:
        return 0.0
    local = min(devices, link.devices_per_node)
    nodes = math.ceil(devices / link.devices_per_node)
    inside = link.inside * link.efficiency
    seconds = ring_seconds(local, size, inside, link.inside_latency)
    if nodes > 1:
        # Each of a node's devices reduces its part with its counterparts; together they send
        # 2 (n - 1) / n of the bytes through the node's ports.
        seconds += _messages(link.pattern, nodes) * link.between_latency
        seconds += 2 * (nodes - 1) / nodes * size / (link.between * link.efficiency)
    return seconds


def _messages(pattern: Pattern, members: int) -> int:
    """Messages that an all-reduce sends one after the other."""
    if pattern == "ring":
        return 2 * (members - 1)
    if pattern == "tree":
        return 2 * math.ceil(math.log2(members))
    return 4 * (math.ceil(math.sqrt(members)) - 1)  # rings along both sides of a square
