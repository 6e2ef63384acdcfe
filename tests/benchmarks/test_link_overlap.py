"""benchmarks/link_overlap.py: its arithmetic, and two ranks on a real and on a modelled link."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _link_figures as figures
import _link_network as network
import _link_rank
import link_overlap
import pytest
from _link_processes import RANK, Ranks

from conadv.trainer.run import environment as machine
from support.tools import load_tool

TINY = {"model": "cifar/resnet8", "widths": [], "batch": 2, "image_size": 8, "bucket_mb": 0.1}
SLOW = 8e6
"""Bits per second: the gradients of `TINY`, 0.3 MB, take 0.3 s."""

# -- figures -----------------------------------------------------------------------------------


def block(*seconds: float) -> figures.Block:
    """Steps that take so long, an eighth of it in each phase but the first."""
    return [[s * 5 / 8, s / 8, s / 8, s / 8] for s in seconds]


def row(rate: float | None, sequential: float, lookahead: float, attack: float = 0.2) -> Any:
    """What `measure_rate` gives: exposed seconds of each; compute alone is 1 s."""

    def of(exposed: float) -> dict[str, Any]:
        return {
            "exposed": {"median": exposed},
            "phases": {"attack ahead": {"step": 9.0, "compute": attack}},
        }

    ratio = (1 + lookahead) / (1 + sequential)
    return {
        "bits_per_second": rate,
        "schedules": {"sequential": of(sequential), "lookahead": of(lookahead)},
        "lookahead_over_sequential": {"median": ratio},
    }


def test_each_step_counts_with_its_slower_rank() -> None:
    ranks = [[[1, 2], [5, 1]], [[2, 2], [1, 1]]]
    assert figures.slower_rank(ranks) == [[2, 2], [5, 1]]


def test_exposed_communication_is_paired_round_by_round() -> None:
    # The machine is twice as slow in the second round: unpaired medians would say something else.
    silent = [block(1.0, 1.0, 9.0), block(2.0, 2.0, 2.0), block(1.0, 1.0, 1.0)]
    talking = [block(1.3, 1.3, 1.3), block(2.3, 2.3, 2.3), block(1.3, 9.0, 1.3)]
    found = figures.of_schedule(silent, talking)
    assert found["exposed"] == pytest.approx({"median": 0.3, "p10": 0.3, "p90": 0.3})
    assert found["step"]["median"] == pytest.approx(1.3)
    assert found["compute"]["median"] == pytest.approx(1.0)
    assert list(found["phases"]) == list(figures.PHASES)
    assert found["phases"]["wait"] == pytest.approx({"step": 1.3 / 8, "compute": 1.0 / 8})


def test_two_ranks_send_the_gradients_once_each() -> None:
    # 1 MB in twice an attack of 0.1 s.
    assert figures.rate_of(2.0, 1_000_000, 0.1) == pytest.approx(40e6)


@pytest.mark.parametrize("covered", [0.0, 0.3, 0.9])
def test_the_matched_rate_is_found(covered: float) -> None:
    attack, tried = 0.2, []

    def exposed(factor: float) -> float:
        tried.append(factor)
        return max(0.0, factor * attack - covered)

    factor = figures.matched_factor(exposed, attack, start=2.0)
    assert exposed(factor) == pytest.approx(attack, rel=figures.CLOSE)
    assert tried[0] == 2.0


def test_the_search_ends_where_nothing_is_ever_exposed() -> None:
    assert figures.matched_factor(lambda factor: 0.0, 0.2, start=2.0, tries=3) == 5.0


def test_bars_are_judged_at_the_rate_nearest_to_the_attack() -> None:
    rows = [
        row(None, 0.01, 0.01),
        row(80e6, 0.04, 0.039),
        row(20e6, 0.21, 0.02),
        row(9e6, 0.7, 0.5),
    ]
    bars = figures.judge(rows)
    assert bars["missed"] == []
    assert bars["bits_per_second"] == 20e6
    assert bars["exposed_over_attack"] == pytest.approx(1.05)
    assert bars["lookahead_over_sequential_exposed"] == pytest.approx(0.02 / 0.21)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row(20e6, 0.2, 0.05)], "exposes 25% of what sequential does"),
        ([row(20e6, 0.5, 0.05)], "nearest: 2.50 of it at 20 Mbit/s"),
        ([row(20e6, 0.2, 0.02), row(None, 0.0, 0.03)], "1.030 times as long as sequential at no"),
    ],
)
def test_each_bar_can_be_missed(rows: Any, expected: str) -> None:
    (sentence,) = figures.judge(rows)["missed"]
    assert expected in sentence


@pytest.mark.parametrize(("weights", "missed"), [(0.14, 0), (0.18, 1)])
def test_copies_of_weights_expose_what_ordinary_training_does(weights: float, missed: int) -> None:
    found = row(20e6, 0.2, 0.02)
    found["schedules"]["vanilla"] = {"exposed": {"median": 0.1}}
    found["schedules"][figures.WEIGHTS] = {"exposed": {"median": weights}, "step": {"median": 1.0}}
    said = figures.judge([found])["missed"]
    assert len(said) == missed and all("80 ms more than vanilla" in text for text in said)


def test_the_documentations_tables_show_every_cell(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tables = load_tool("benchmark_tables")
    monkeypatch.setattr("table_parts.ROOT", tmp_path)
    silent, talking = [block(1.0)], [block(1.25)]
    found = {
        name: figures.of_schedule(silent, talking)
        for name in ("vanilla", "sequential", "lookahead")
    }
    rows = [
        {
            "bits_per_second": rate,
            "matched": rate is not None,
            "all_reduce_seconds": 0.5,
            "schedules": found,
            "lookahead_over_sequential": figures.over_rounds(talking, silent),
        }
        for rate in (None, 125e6)
    ]
    result = {
        "attack_seconds": 0.125,
        "gradient_bytes": 4_300_000,
        "rounds": 1,
        "rows": rows,
        "bars": figures.judge(rows),
        "settings": {**TINY, "link": "veth", "block": 1},
        "environment": machine.environment(),
    }
    (tmp_path / tables.LINK).parent.mkdir(parents=True)
    (tmp_path / tables.LINK).write_text(json.dumps(result))
    text = tables.link()
    assert "| 125 Mbit/s (matched) | lookahead | 1250 ms | 1000 ms | 250 ms (250 to 250) |" in text
    assert "| no limit | 500 ms | 1.25 (1.25-1.25) |" in text
    assert "where sequential exposes 2.00 times as much, lookahead exposes 100%" in text


# -- the link ----------------------------------------------------------------------------------


def test_the_burst_is_a_small_part_of_what_the_link_carries() -> None:
    arguments = dict(zip(*[iter(network.token_bucket(400e6)[1:])] * 2, strict=True))
    assert arguments["rate"] == "400000000bit"
    assert int(arguments["burst"]) == 100_000  # 2 ms
    assert int(arguments["limit"]) > int(arguments["burst"])
    assert "65536" in network.token_bucket(1e6)  # whole packets have to pass


def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    reason = network.why_no_namespaces()
    assert reason is not None
    assert "ip, tc, unshare, nsenter not found" in reason


def test_without_namespaces_the_hook_waits_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(link_overlap, "why_no_namespaces", lambda: "Operation not permitted")
    link, reason = link_overlap.choose_link("auto")
    assert link.kind == "hook"
    assert reason == "Operation not permitted"
    assert "Operation not permitted" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--link hook"):
        link_overlap.choose_link("veth")


def test_a_modelled_link_carries_one_bucket_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_link_rank.time, "monotonic", lambda: 100.0)
    monkeypatch.setattr(_link_rank.time, "sleep", lambda seconds: None)
    link = _link_rank.ModelledLink()
    assert link.carry(1000) is None
    link.bits_per_second = 8000.0
    arrivals = [link.carry(size).arrival for size in (1000, 500)]
    assert arrivals == [101.0, 101.5]
    monkeypatch.setattr(_link_rank.time, "monotonic", lambda: 200.0)
    assert link.carry(1000).arrival == 201.0  # nothing under way any more


@pytest.mark.parametrize("wrong", [["--steps", "0"], ["--block", "0"], ["--factors", "1", "-2"]])
def test_settings_that_measure_nothing_are_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit):
        link_overlap.parse(wrong)


# -- two ranks ---------------------------------------------------------------------------------

no_namespaces = network.why_no_namespaces() if sys.platform == "linux" else "not Linux"


@pytest.fixture(scope="module", params=["veth", "hook"])
def ranks(request: pytest.FixtureRequest) -> Iterator[Ranks]:
    if request.param == "veth" and no_namespaces is not None:
        pytest.skip(no_namespaces)
    link = network.VethLink() if request.param == "veth" else network.HookLink()
    with Ranks(link, TINY) as found:
        yield found


@pytest.mark.slow
@pytest.mark.parametrize("schedule", link_overlap.SCHEDULES)
def test_a_limited_link_delays_steps_that_communicate(ranks: Ranks, schedule: str) -> None:
    ranks.limit(SLOW)
    # No upper bounds: they would depend on the machine. A burst passes at once in the beginning.
    least = 8 * (ranks.gradient_bytes - 2**16) / SLOW * 0.9
    talking = ranks.block(schedule, 1, communicate=True)
    assert sum(talking[0]) > least
    assert len(talking[0]) == len(figures.PHASES)
    assert ranks.reduce_seconds() > least
    ranks.limit(None)
    assert len(ranks.block(schedule, 3, communicate=False)) == 3


@pytest.mark.slow
def test_lookahead_attacks_while_gradients_travel(ranks: Ranks, tmp_path: Path) -> None:
    """Seen in the trace, whose form chrome://tracing reads."""
    ranks.limit(SLOW / 8)
    command = {"do": "trace", "schedule": "lookahead", "steps": 2, "folder": str(tmp_path)}
    written = [Path(found["path"]) for found in ranks.ask(command)]
    assert [path.name for path in written] == ["lookahead-rank0.json", "lookahead-rank1.json"]
    for path in written:
        events = json.loads(path.read_text())["traceEvents"]
        spans = {
            name: [(e["ts"], e["ts"] + e["dur"]) for e in events if e["name"] == name]
            for name in (*figures.PHASES, "gloo:all_reduce")
        }
        assert all(len(spans[phase]) == 2 for phase in figures.PHASES)
        assert len(spans["gloo:all_reduce"]) >= 2
        if ranks.link.kind == "veth":  # a modelled link takes its time outside of gloo
            # An attack issued after the wait would meet none. Not more than meeting is asked: how
            # long an attack takes depends on who else computes on this machine.
            steps, attacks = spans[figures.PHASES[0]], spans["attack ahead"]
            for (begun, _), (begin, end) in zip(steps, attacks, strict=True):
                travel = [ends for ends in spans["gloo:all_reduce"] if begun < ends[0]]
                assert any(b < end and begin < e for b, e in travel)


@pytest.mark.slow
def test_ranks_end_with_their_parents_input() -> None:
    """So none outlives a parent that was killed, and its namespace goes with it."""
    process = subprocess.Popen(
        [sys.executable, str(RANK), "0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    out, _ = process.communicate(timeout=60)  # closes the input
    assert (process.returncode, out) == (0, b"")


@pytest.mark.slow
def test_a_rank_that_fails_is_an_error_and_the_other_one_is_ended(
    capfd: pytest.CaptureFixture[str],
) -> None:
    ranks = Ranks(network.HookLink(), {**TINY, "model": "cifar/unknown"})
    with pytest.raises(RuntimeError, match="message is above"), ranks:
        pass
    assert all(process.poll() is not None for process in ranks._processes)
    assert "unknown" in capfd.readouterr().err
