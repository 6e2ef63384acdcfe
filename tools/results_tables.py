"""Write the tables of results in the documentation from the committed result files.

    python tools/results_tables.py            # rewrite the tables
    python tools/results_tables.py --check    # say whether they are up to date; nothing is written

A table stands between `<!-- results: NAME -->` and `<!-- end of results -->`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column to the left, the others to the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def read(name: str) -> Any:
    """A file of results."""
    return json.loads((ROOT / name).read_text(encoding="utf-8"))


def spread(values: dict[str, float]) -> str:
    """Median and the range from the 10th to the 90th percentile."""
    return f"{values['median']:.2f} ({values['p10']:.2f}-{values['p90']:.2f})"


def machine(environment: dict[str, Any]) -> str:
    """Where it was measured."""
    return (
        f"{environment['cpu']}, {environment['threads']} threads, torch {environment['torch']}, "
        f"Python {environment['python']}"
    )


def remade(environment: dict[str, Any]) -> str:
    """The line below a table."""
    return f"\nMeasured on {machine(environment)}; `{environment['command']}` remakes it.\n"


def steps() -> str:
    """Cost of a step of each schedule."""
    found = read("benchmarks/results/steps-cpu.json")
    rows = [
        [
            row["schedule"],
            str(row["images"]),
            f"{row['flops_ratio']:.3f}",
            spread(row["step_ratio"]),
            "" if row["memory_ratio"] is None else f"{row['memory_ratio']:.2f}",
        ]
        for row in found["rows"]
    ]
    header = ["schedule", "images per step", "operations", "step time (p10-p90)", "peak memory"]
    settings = found["settings"]
    note = (
        f"\nEverything as a multiple of vanilla: {settings['model']}, {settings['batch']} images, "
        f"{settings['dtype']}, {settings['repeats']} interleaved rounds.\n"
    )
    return table(header, rows) + note + remade(found["environment"])


def optimizers() -> str:
    """Time of a step of the optimizers against timm's."""
    found = read("benchmarks/results/optimizers-cpu.json")
    rows = [
        [
            f"{row['optimizer']} {row['implementation']}",
            spread(row["step_ratio"]),
            f"{1000 * row['step_seconds_median']:.1f} ms",
        ]
        for row in found["rows"]
    ]
    header = ["optimizer", "time over timm's (p10-p90)", "median"]
    return table(header, rows) + remade(found["environment"])


def training() -> str:
    """Images per second against timm's training script."""
    found = read("benchmarks/results/train-vs-timm-cpu.json")
    rows = [
        [
            f"{row['model']}, timm's augmentation: {row['timm_augmentation']}",
            str(row["batch"]),
            spread(row["ratio"]),
            "" if row["goal"] is None else f"{row['goal']:.1f}",
        ]
        for row in found["rows"]
    ]
    header = ["network", "batch", "images/s over timm's (p10-p90)", "goal"]
    return table(header, rows) + remade(found["environment"])


def kills() -> str:
    """Runs killed at random moments, against unbroken ones."""
    found = read("benchmarks/results/kill-resume.json")
    rows = [
        [
            row["schedule"],
            str(row["ranks"]),
            str(row["kills"]),
            str(row["in_write"]),
            row["difference"] or "identical",
        ]
        for row in found["rows"]
    ]
    header = ["schedule", "processes", "kills", "inside a checkpoint write", "finished run"]
    return table(header, rows) + remade(found["environment"])


SWEEP = "benchmarks/results/batch-sweep-cpu.json"


def sweep() -> str:
    """Peak memory and time per image over the global batch; empty until it was measured."""
    if not (ROOT / SWEEP).exists():
        return ""
    found = read(SWEEP)
    rows = [
        [
            row["schedule"],
            f"{row['global_batch']:,}",
            f"{row['memory_ratio']:.3f}",
            f"{row['peak_bytes'] / 2**20:,.0f} MiB",
            f"{row['pending_bytes'] / 2**20:.2f} MiB",
            spread(row["time_ratio"]),
        ]
        for row in found["rows"]
    ]
    header = [
        "schedule",
        "global batch",
        "peak memory over the first",
        "peak memory",
        "pending",
        "time per image over the first (p10-p90)",
    ]
    channels, height, width = found["image"]
    note = (
        f"\nResNet-8, {channels} x {height} x {width} pixels, micro-batches of "
        f"{found['micro_batch']}. Peak memory is the whole process's, the images in it.\n"
    )
    return table(header, rows) + note + remade(found["environment"])


LINK = "benchmarks/results/link-overlap.json"


def link() -> str:
    """Exposed communication at several rates; empty until it was measured."""
    if not (ROOT / LINK).exists():
        return ""
    found = read(LINK)
    rows = [
        [_rate(row), schedule, *_link_times(times)]
        for row in found["rows"]
        for schedule, times in row["schedules"].items()
    ]
    header = ["link", "schedule", "step", "compute only", "exposed communication (p10-p90)"]
    compared = [
        [
            _rate(row),
            f"{1000 * row['all_reduce_seconds']:.0f} ms",
            spread(row["lookahead_over_sequential"]),
        ]
        for row in found["rows"]
    ]
    second = ["link", "all-reduce alone", "lookahead's step over sequential's (p10-p90)"]
    settings, bars = found["settings"], found["bars"]
    how = "a link limited by tc" if settings["link"] == "veth" else "a link modelled in the hook"
    note = (
        f"\n{settings['model']} of widths {settings['widths']}, {settings['batch']} images per "
        f"rank, {found['gradient_bytes'] / 1e6:.1f} MB of gradients, {how}, {found['rounds']} "
        f"interleaved rounds of {settings['block']} steps. The attack takes "
        f"{1000 * found['attack_seconds']:.0f} ms. At {bars['bits_per_second'] / 1e6:.0f} Mbit/s, "
        f"where sequential exposes {bars['exposed_over_attack']:.2f} times as much, lookahead "
        f"exposes {bars['lookahead_over_sequential_exposed']:.0%} of what sequential does.\n"
    )
    return (
        table(header, rows) + "\n" + table(second, compared) + note + remade(found["environment"])
    )


def _rate(row: dict[str, Any]) -> str:
    if row["bits_per_second"] is None:
        return "no limit"
    return f"{row['bits_per_second'] / 1e6:.0f} Mbit/s" + " (matched)" * row["matched"]


def _link_times(times: dict[str, Any]) -> list[str]:
    exposed = {key: 1000 * seconds for key, seconds in times["exposed"].items()}
    return [
        f"{1000 * times['step']['median']:.0f} ms",
        f"{1000 * times['compute']['median']:.0f} ms",
        f"{exposed['median']:.0f} ms ({exposed['p10']:.0f} to {exposed['p90']:.0f})",
    ]


def decode() -> str:
    """Images decoded per second on one core, against timm's transform."""
    found = read("benchmarks/results/decode-cpu.json")
    rows = [
        [
            f"{row['images']}, {row['number']} of {row['mean_kilobytes']:.0f} kB",
            row["what"],
            spread(row["ratio"]),
            "" if row["goal"] is None else f"{row['goal']:.1f}",
            f"{row['conadv_images_per_second']['median']:.0f}",
        ]
        for row in found["rows"]
    ]
    header = ["JPEGs", "interpolation", "images/s over timm's (p10-p90)", "goal", "images/s"]
    note = (
        f"\nTo 224 pixels on one core, {found['rounds']} interleaved rounds, Pillow "
        f"{found['environment']['pillow']}, timm {found['environment']['timm']}.\n"
    )
    return table(header, rows) + note + remade(found["environment"])


def planning() -> str:
    """The planner's model against the steps measured on a limited link."""
    import torch

    import conadv
    from conadv import planning as model
    from conadv.training.models import create_model

    measured = model.read_link_benchmark(ROOT / LINK)
    settings, size = measured.settings, measured.settings["image_size"]
    options = {"widths": tuple(settings["widths"])} if settings["widths"] else {}
    network = create_model(settings["model"], 3, 10, options=options)
    counted = model.count(conadv.split_norms(network), (3, size, size), torch.float32)
    rates = {row["bits_per_second"]: _rate(row) for row in read(LINK)["rows"]}
    rows, worst = [], 0.0
    for seen, found in model.held_out(measured, counted):
        for name, seconds in seen.steps.items():
            error = found.steps[name] / seconds - 1
            worst = max(worst, abs(error))
            times = (seconds, found.steps[name], seen.exposed[name], found.exposed[name])
            step, predicted, *exposed = (f"{1000 * t:.0f} ms" for t in times)
            where = rates.get(8 * seen.rate, "no limit")
            rows.append([where, name, step, predicted, f"{error:+.1%}", *exposed])
    header = ["link", "schedule", "measured step", "predicted", "error"]
    header += ["measured exposed", "predicted"]
    fitted = model.fit_link(measured, counted)
    note = (
        f"\nEvery rate is predicted by a fit to the other {len(measured.observations) - 1}; the "
        f"largest error is {worst:.1%}. A fit to all of them finds "
        f"{fitted.rates.operations / 1e9:.0f}e9 operations per second, {fitted.link.efficiency:.0%}"
        f" of the link's rate, {1000 * fitted.link.inside_latency:.1f} ms for a message and "
        f"{fitted.link.host / 1e6:.0f} MB/s at which the processor handles what travels.\n"
    )
    return table(header, rows) + note


def models() -> str:
    """Which architectures go through conadv whole."""
    from conadv.training.model_table import markdown_table, summary

    found = read("benchmarks/results/models-check.json")
    environment, rows = found["environment"], found["rows"]
    libraries = f"timm {environment['timm']}, torchvision {environment['torchvision']}"
    lead = f"{summary(rows)}, with {libraries}.\n\n"
    return lead + markdown_table(rows) + remade(environment)


def quickstart() -> str:
    """What `make quickstart` measured."""
    names = ("small-batch", "vanilla", "sequential", "recycled")
    found = {name: read(f"results/quickstart/{name}/result.json") for name in names}
    base = found["vanilla"]
    rows = [
        [
            r["method"],
            f"{r['global_batch']:,}",
            f"{r['test_accuracy']:.1%}",
            f"{r['robust_accuracy']:.1%}",
            f"{r['compute'] / base['compute']:.2f}",
            "" if name == "small-batch" else _step(r, base),
        ]
        for name, r in found.items()
    ]
    header = ["method", "batch", "test accuracy", "under attack", "compute", "step time"]
    return table(header, rows)


def campaign(name: str) -> str:
    """The tables of a published study; empty until there is one."""
    folder = ROOT / "results" / name
    if not (folder / "summary.json").exists():
        return ""
    from conadv.report.content import content
    from conadv.report.export import gains_table, reach_table
    from conadv.report.study import gather

    found = content(gather([folder]))
    parts = [f"**{found.findings.headline}**\n"]
    if found.scale is not None:
        parts.append(reach_table(found.scale))
    for at_batch in found.gains:
        parts.append(f"At batch {at_batch.batch:,}:\n")
        parts.append(gains_table(at_batch))
    (environment,) = read(f"results/{name}/environments.json")[:1]
    hardware, versions = environment["hardware"], environment["versions"]
    parts.append(
        f"{len(found.runs)} final runs on {hardware['processor']}, {hardware['threads']} thread "
        f"each, torch {versions['torch']}; `conadv study {name} --workers 2` remakes them, "
        f"[results/{name}](results/{name}/report.md) has all of it.\n"
    )
    return "\n".join(parts)


def overhead() -> str:
    """What a study adds to its runs, and what a report takes."""
    study = read("benchmarks/results/study-overhead-cpu.json")
    report = read("benchmarks/results/report-speed-cpu.json")
    rows = [
        [
            f"a study of {study['runs']} runs, over their time",
            f"{study['overhead']:.1%}",
            f"{study['bar']:.0%}",
        ],
        [
            f"the report of {report['runs']} runs",
            f"{report['seconds']['median']:.1f} s",
            f"{report['seconds']['bar']} s",
        ],
        ["its page", f"{report['megabytes']['page']} MB", f"{report['megabytes']['bar']} MB"],
    ]
    text = table(["what", "measured", "bar"], rows)
    return text + remade(study["environment"]) + remade(report["environment"])


def _step(result: dict[str, Any], base: dict[str, Any]) -> str:
    return f"{result['step_seconds_median'] / base['step_seconds_median']:.2f}"


TABLES: dict[str, Callable[[], str]] = {
    "steps": steps,
    "optimizers": optimizers,
    "training": training,
    "kills": kills,
    "sweep": sweep,
    "link": link,
    "planning": planning,
    "decode": decode,
    "models": models,
    "quickstart": quickstart,
    "overhead": overhead,
    "fashion": partial(campaign, "fashion-cpu"),
}


def render(text: str) -> str:
    """The page with every table written anew."""
    return BLOCK.sub(lambda m: m[1] + TABLES[m[2]]() + m[3], text)


def main() -> int:
    """Rewrite, or check."""
    stale = []
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        after = render(before)
        if after != before:
            stale.append(str(page.relative_to(ROOT)))
            if "--check" not in sys.argv:
                page.write_text(after, encoding="utf-8")
    verb = "out of date" if "--check" in sys.argv else "rewritten"
    print(f"{verb}: {', '.join(stale)}" if stale else "all tables are up to date")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
