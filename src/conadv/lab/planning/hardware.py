"""Devices and links: the tables that come with the package, and what a user gives instead."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from conadv._words import did_you_mean, nearest
from conadv.errors import PlanError

Pattern = Literal["ring", "tree", "torus"]


@dataclass(frozen=True)
class DeviceType:
    """One accelerator. Vendor figures come from `source`; the others are assumptions."""

    name: str
    peak: float | None
    """Dense bf16 operations per second; None: a measured throughput has to be given."""
    memory: float | None
    """Bytes; None: not known, nothing is said on whether a step fits."""
    bandwidth: float | None
    """Bytes per second of its memory; None: the optimizer's update counts as free."""
    utilisation: float | None
    """Share of the peak that a large batch reaches. An assumption."""
    half_batch: float
    """Images in one pass at which half of that is reached. An assumption."""
    streams: bool
    """Whether an attack on a second stream uses what a small batch leaves idle."""
    source: str


@dataclass(frozen=True)
class Link:
    """How devices are joined; rates in bytes per second, latencies in seconds."""

    name: str
    devices_per_node: int
    inside: float
    """What a device has to the others of its node, in one direction."""
    between: float
    """What a node has to other nodes, in one direction, all its devices together."""
    inside_latency: float
    between_latency: float
    efficiency: float
    """Share of the rates that an all-reduce reaches. An assumption, or fitted."""
    pattern: Pattern
    """Between nodes."""
    source: str
    host: float = math.inf
    """Bytes per second at which the device's own processor copies and adds what travels, in time
    that it cannot compute; infinite where a GPU's copy engines do it."""


def parse_rate(text: str) -> float | None:
    """Bytes per second of a rate such as ``25Gbit``, ``100Mbit/s`` or ``12.5GB/s``; else None."""
    found = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([kMGT]?)(bit|B)(?:/s)?", text.strip())
    if found is None:
        return None
    number, prefix, unit = found.groups()
    scale = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[prefix]
    return float(number) * scale / (8 if unit == "bit" else 1)


def flat_link(
    rate: float, latency: float = 0.0, *, name: str = "given", efficiency: float = 1.0
) -> Link:
    """Every device on its own port: a ring over all of them.

    Args:
        rate: bytes per second in each direction; may be infinite.
        latency: seconds of one message.
        name: what the tables call it.
        efficiency: share of the rate that an all-reduce reaches.
    """
    if not rate > 0 or latency < 0 or not 0 < efficiency <= 1:
        raise PlanError(
            f"link of {rate:g} bytes/s, {latency:g} s, efficiency {efficiency:g}: give a rate "
            "above 0, a latency of 0 or more and an efficiency in (0, 1]."
        )
    return Link(name, 1, rate, rate, latency, latency, efficiency, "ring", "given")


def device_types() -> dict[str, DeviceType]:
    """The device types that come with the package, by name."""
    return {name: DeviceType(name=name, **row) for name, row in read_table("devices").items()}


def links() -> dict[str, Link]:
    """The links that come with the package, by name."""
    return {name: Link(name=name, **row) for name, row in read_table("links").items()}


def device_type(name: str) -> DeviceType:
    """A device type by its name.

    Raises:
        PlanError: there is none of that name; the message has the nearest.
    """
    known = device_types()
    if name not in known:
        raise _unknown("--device-type", name, known, "")
    return known[name]


def link_named(text: str, latency: float | None = None) -> Link:
    """A link by its name, or a flat one of a rate such as ``25Gbit``.

    Args:
        text: name or rate.
        latency: seconds of one message; None: the table's, with a rate 10 microseconds.

    Raises:
        PlanError: neither a name nor a rate; the message has the nearest name.
    """
    rate = parse_rate(text)
    if rate is not None:
        return flat_link(rate, 10e-6 if latency is None else latency, name=text)
    known = links()
    if text not in known:
        raise _unknown("--link", text, known, " Or a rate per device, such as 25Gbit or 12.5GB/s.")
    link = known[text]
    if latency is None:
        return link
    return Link(**{**vars(link), "inside_latency": latency, "between_latency": latency})


def _unknown(option: str, name: str, known: Iterable[str], more: str) -> PlanError:
    names = list(known)
    bare = {n.replace("-", ""): n for n in names}
    hint = did_you_mean(bare[near] for near in nearest(name.replace("-", ""), bare, 1, 0.4))
    return PlanError(f"{option} {name}: not known.{hint} Allowed: {', '.join(names)}.{more}")


@cache
def read_table(name: str) -> Any:
    """A YAML file of this package."""
    import yaml  # of the extra `train`, like every recipe

    text = files("conadv.lab.planning").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


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
