"""Communication that a step has to wait for, on a link of limited rate between two processes.

    python benchmarks/link_overlap.py --json benchmarks/results/link-overlap.json

Two gloo ranks, one thread and one core each, train with DistributedDataParallel through
`DeferredAllReduce` in the loop of docs/loop.md. They live in two network namespaces that a veth
pair joins; ``tc ... tbf`` limits both directions (Linux, root). Where that cannot be made, or with
``--link hook``, the communication hook waits as long as the link would have taken.

Exposed communication is the time of a step minus that of the same step, on the same ranks in the
same process, with the all-reduce switched off. Blocks of both and of all schedules alternate.
The rates follow from the machine: the gradients take so many times the attack's time on the link.
One more rate is looked for, at which sequential exposes about the attack's time.

Goals: there lookahead exposes at most 20 % of what sequential does, at no rate is lookahead slower
than sequential, and recycled copies of weights expose what ordinary training does, give or take 5 %
of their step. ``--trace DIR`` also writes a trace of each schedule at that rate for
chrome://tracing or Perfetto. Exit code 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import _link_figures as figures
import torch
from _link_network import HookLink, Link, VethLink, why_no_namespaces
from _link_processes import Ranks

from conadv.trainer.run import environment as machine

SCHEDULES = ("vanilla", "sequential", "lookahead", figures.WEIGHTS)
WARMUP = 3
"""Steps of each schedule before anything is measured."""
SEARCH = 7
"""Steps that say how long the attack takes, and how long sequential waits at a rate."""
TRACED = 3
"""Steps in a trace."""


def phase_seconds(block: figures.Block, phase: str) -> float:
    """Median time of a phase in a block."""
    return statistics.median(step[figures.PHASES.index(phase)] for step in block)


def find_matched(ranks: Ranks, attack: float, steps: int, say: Callable[[str], None]) -> float:
    """The factor at which sequential exposes about the attack's time.

    Looked for by the time that sequential waits for the link, which a short block tells better
    than a difference between two.
    """

    def exposed(factor: float) -> float:
        rate = figures.rate_of(factor, ranks.gradient_bytes, attack)
        ranks.limit(rate)
        found = phase_seconds(ranks.block("sequential", steps, communicate=True), "wait")
        say(
            f"looking for the rate: at {figures.rate_text(rate)} sequential waits "
            f"{1000 * found:.0f} ms, the attack takes {1000 * attack:.0f} ms"
        )
        return found

    return figures.matched_factor(exposed, attack, start=2.0)


def measure_rate(
    ranks: Ranks, factor: float | None, attack: float, rounds: int, steps: int
) -> dict[str, Any]:
    """All schedules at one rate, in turn, with the all-reduce on and off."""
    rate = None if factor is None else figures.rate_of(factor, ranks.gradient_bytes, attack)
    ranks.limit(rate)
    alone = ranks.reduce_seconds()
    cells = [(schedule, on) for schedule in SCHEDULES for on in (False, True)]
    blocks: dict[tuple[str, bool], list[figures.Block]] = {cell: [] for cell in cells}
    for turn in range(rounds):
        for cell in cells if turn % 2 == 0 else reversed(cells):
            blocks[cell].append(ranks.block(cell[0], steps, cell[1]))
    return {
        "bits_per_second": rate,
        "factor": factor,
        "all_reduce_seconds": alone,
        "schedules": {
            name: figures.of_schedule(blocks[name, False], blocks[name, True]) for name in SCHEDULES
        },
        "lookahead_over_sequential": figures.over_rounds(
            blocks["lookahead", True], blocks["sequential", True]
        ),
    }


def show(row: dict[str, Any]) -> None:
    """One rate's figures."""
    alone = 1000 * row["all_reduce_seconds"]
    print(f"{figures.rate_text(row['bits_per_second'])}, all-reduce alone {alone:.0f} ms")
    for name, found in row["schedules"].items():
        step, compute, exposed = (
            {key: 1000 * seconds for key, seconds in found[what].items()}
            for what in ("step", "compute", "exposed")
        )
        print(
            f"  {name:16} step {step['median']:5.0f} ms   compute only {compute['median']:5.0f} ms"
            f"   exposed {exposed['median']:4.0f} ({exposed['p10']:.0f} to {exposed['p90']:.0f})"
        )
    ratio = row["lookahead_over_sequential"]
    print(
        f"  lookahead over sequential {ratio['median']:.3f} "
        f"({ratio['p10']:.3f} to {ratio['p90']:.3f})",
        flush=True,
    )


def measure(ranks: Ranks, options: argparse.Namespace) -> dict[str, Any]:
    """Find the rates, measure all of them, write traces if asked."""
    say = partial(print, flush=True)
    for name in SCHEDULES:
        ranks.block(name, WARMUP, communicate=True)
    attack = phase_seconds(ranks.block("lookahead", SEARCH, communicate=False), "attack ahead")
    say(
        f"attack {1000 * attack:.0f} ms, gradients {ranks.gradient_bytes / 2**20:.1f} MiB, "
        f"link: {ranks.link.kind}"
    )
    rounds = max(1, round(options.steps / options.block))
    matched = find_matched(ranks, attack, SEARCH, say)
    rows = []
    for factor in [None, *sorted({*options.factors, matched})]:
        row = measure_rate(ranks, factor, attack, rounds, options.block)
        row["matched"] = factor == matched
        rows.append(row)
        show(row)
    if options.trace:
        options.trace.mkdir(parents=True, exist_ok=True)
        ranks.limit(figures.rate_of(matched, ranks.gradient_bytes, attack))
        folder = str(options.trace.resolve())
        for name in SCHEDULES:
            ranks.ask({"do": "trace", "schedule": name, "steps": TRACED, "folder": folder})
        say(f"traces of {TRACED} steps of each schedule and rank: {options.trace}")
    return {
        "attack_seconds": attack,
        "gradient_bytes": ranks.gradient_bytes,
        "pinned": bool(ranks.cores),
        "rounds": rounds,
        "rows": rows,
        "bars": figures.judge(rows),
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--link", choices=("auto", "veth", "hook"), default="auto")
    parser.add_argument("--steps", type=int, default=30, help="of each kind at each rate")
    parser.add_argument("--block", type=int, default=3, help="steps before the next kind's turn")
    parser.add_argument(
        "--factors",
        type=float,
        nargs="*",
        default=[0.5, 1.0, 2.0],
        help="rates: the gradients take so many times the attack's time on the link",
    )
    parser.add_argument("--model", default="cifar/resnet20")
    parser.add_argument(
        "--widths", type=int, nargs="*", default=[32, 64, 128], help="channels of its stages"
    )
    parser.add_argument("--batch", type=int, default=24, help="images of one rank in one step")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument(
        "--bucket-mb",
        type=float,
        default=1.0,
        help="DDP's bucket_cap_mb; its default of 25 is more than the network has",
    )
    parser.add_argument("--trace", type=Path, metavar="DIR", help="write a trace of each schedule")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.steps < 1 or options.block < 1 or any(factor <= 0 for factor in options.factors):
        parser.error("--steps and --block take 1 or more, --factors numbers above 0")
    return options


def choose_link(wanted: str) -> tuple[Link, str | None]:
    """The link, and why it is not a real one if that was not asked for.

    Raises:
        SystemExit: a real one was asked for and cannot be made.
    """
    reason = None if wanted == "hook" else why_no_namespaces()
    if reason is None:
        return (HookLink() if wanted == "hook" else VethLink()), None
    message = f"Network namespaces with a limited link cannot be made here: {reason}."
    if wanted == "veth":
        sys.exit(f"{message} Try as root, or --link hook.")
    print(f"{message} The communication hook waits instead (--link hook).", flush=True)
    return HookLink(), reason


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write, judge."""
    options = parse(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # ends the ranks too
    torch.set_num_threads(1)  # as the ranks: the results file says so
    link, reason = choose_link(options.link)
    names = ("model", "widths", "batch", "image_size", "bucket_mb")
    settings = {name: getattr(options, name) for name in names}
    with Ranks(link, settings) as ranks:
        found = measure(ranks, options)
    bars = found["bars"]
    print(
        f"at {figures.rate_text(bars['bits_per_second'])} sequential exposes "
        f"{bars['exposed_over_attack']:.2f} times the attack, lookahead "
        f"{bars['lookahead_over_sequential_exposed']:.0%} of that"
    )
    print("goals MISSED: " + "; ".join(bars["missed"]) if bars["missed"] else "goals met")
    if options.json:
        how = {"link": link.kind, "no_namespaces": reason, "block": options.block}
        found |= {"settings": settings | how, "environment": machine.environment()}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return int(bool(bars["missed"]))


if __name__ == "__main__":
    sys.exit(main())
