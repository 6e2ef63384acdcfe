"""A rate-limited link between two processes: a veth pair between two network namespaces.

The namespaces have no names: each belongs to the process that was started in it and is gone with
it, and so is the link, however that process ends. Nothing is left to clean up.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

TOOLS = ("ip", "tc", "unshare", "nsenter")
INTERFACE = "conadv0"
"""The same name at both ends: each namespace has one of its own."""
ADDRESSES = ("10.77.0.1/30", "10.77.0.2/30")
MTU = 9000
"""Jumbo frames. A limited link wakes the rank's core for every few packets, and with the usual 1500
bytes that took a third as long as the transfer itself: what the model of a link costs would count
as exposed communication."""
QUEUE = 8 * 2**20
"""Bytes that wait for the link before packets are dropped: more than TCP has under way."""


class Link(Protocol):
    """What joins the two ranks."""

    kind: str
    interface: str
    """Name of the network interface that gloo has to use."""

    def prefix(self) -> list[str]:
        """What a rank's command begins with."""

    def connect(self, pids: Sequence[int]) -> None:
        """Join the running ranks."""

    def limit(self, bits_per_second: float | None) -> bool:
        """Limit both directions; None: no limit. False: the ranks have to do it themselves."""


def why_no_namespaces() -> str | None:
    """Why two namespaces with a limited link cannot be made here, or None if they can."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} not found (Debian: apt install iproute2 util-linux)"
    # All of it once, in a namespace that ends with this command.
    trial = (
        "ip link add a0 type veth peer name a1 && "
        f"tc qdisc add dev a0 root {' '.join(token_bucket(1e7))}"
    )
    tried = subprocess.run(["unshare", "--net", "sh", "-c", trial], capture_output=True, text=True)
    if tried.returncode == 0:
        return None
    said = (tried.stderr or tried.stdout).strip().splitlines()
    return said[-1] if said else f"exit code {tried.returncode}"


def token_bucket(bits_per_second: float) -> list[str]:
    """Arguments of ``tc qdisc`` for a limit in one direction.

    The burst passes at once after a pause: 2 ms of the rate, but never less than one packet of
    64 KiB as the kernel hands them down.
    """
    burst = max(2**16, round(bits_per_second / 8 * 0.002))
    rate = f"{round(bits_per_second)}bit"
    return ["tbf", "rate", rate, "burst", str(burst), "limit", str(QUEUE + burst)]


class VethLink:
    """Two namespaces, one interface in each."""

    kind = "veth"
    interface = INTERFACE

    def __init__(self) -> None:
        self._pids: tuple[int, ...] = ()
        self._limited = False

    def prefix(self) -> list[str]:
        """Start in a namespace of its own; the process keeps its number."""
        return ["unshare", "--net"]

    def connect(self, pids: Sequence[int]) -> None:
        """Make the pair, one end in the namespace of each process.

        Raises:
            RuntimeError: a process has ended, or not entered a namespace within ten seconds.
            subprocess.CalledProcessError: the system refuses.
        """
        self._pids = tuple(pids)
        for pid in pids:
            _wait_for_namespace(pid)
        first, second = (str(pid) for pid in pids)
        ends = [INTERFACE, "netns", first, "type", "veth", "peer", "name", INTERFACE]
        _run(["ip", "link", "add", *ends, "netns", second])
        for pid, address in zip(pids, ADDRESSES, strict=True):
            _inside(pid, "ip", "address", "add", address, "dev", INTERFACE)
            _inside(pid, "ip", "link", "set", "lo", "up")
            _inside(pid, "ip", "link", "set", INTERFACE, "mtu", str(MTU), "up")

    def limit(self, bits_per_second: float | None) -> bool:
        """A token bucket at both ends, or none."""
        for pid in self._pids:
            where = ["dev", INTERFACE, "root"]
            if bits_per_second is not None:
                _inside(pid, "tc", "qdisc", "replace", *where, *token_bucket(bits_per_second))
            elif self._limited:
                _inside(pid, "tc", "qdisc", "del", *where)
        self._limited = bits_per_second is not None
        return True


class HookLink:
    """The loopback interface; the ranks' communication hook waits as long as a link would take."""

    kind = "hook"
    interface = "lo" if sys.platform == "linux" else "lo0"

    def prefix(self) -> list[str]:
        """Nothing: no namespace."""
        return []

    def connect(self, pids: Sequence[int]) -> None:
        """They are connected."""

    def limit(self, bits_per_second: float | None) -> bool:
        """The ranks are told the rate."""
        return False


def _wait_for_namespace(pid: int) -> None:
    own, deadline = Path("/proc/self/ns/net").readlink(), time.monotonic() + 10
    try:
        while Path(f"/proc/{pid}/ns/net").readlink() == own:
            if time.monotonic() > deadline:
                raise RuntimeError(f"Process {pid} did not enter a network namespace of its own.")
            time.sleep(0.01)
    except OSError as error:
        raise RuntimeError(f"Process {pid} ended at its start; its message is above.") from error


def _inside(pid: int, *command: str) -> None:
    _run(["nsenter", "--target", str(pid), "--net", *command])


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
