"""Tables of the measurements in `benchmarks/results/`."""

from __future__ import annotations

import sys
from typing import Any

from table_parts import ROOT, read, remade, spread, table


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


def host() -> str:
    """Processor time of the adversary in a step."""
    found = read("benchmarks/results/host-cpu.json")
    rows = [
        [row["schedule"], f"{1000 * row['host_seconds']:.1f} ms"]
        for row in found["rows"]
        if row["host_seconds"] is not None
    ]
    return table(["schedule", "processor time a step"], rows) + remade(found["environment"])


def weights() -> str:
    """Cost of a step with copies of weights, and of the perturbation."""
    found = read("benchmarks/results/weights-cpu.json")
    rows = [
        [row["schedule"], f"{row['operations']:.2f}", *_both_times(row)]
        for row in found["rows"][1:]
    ]
    rows.append(["the perturbation", "", *_both_times(found["perturbation"], digits=3)])
    settings = found["settings"]
    note = (
        f"\nEverything as a multiple of an ordinary step: {settings['model']}, "
        f"{settings['batch']} images, {settings['dtype']}, channels last, "
        f"{found['weights'] / 1e6:.1f} million weights moved; median and range of "
        f"{settings['repeats']} turns; load {found['load'][0]:.0f}.\n"
    )
    header = ["schedule", "operations", "processor time (least-most)", "wall time (least-most)"]
    return table(header, rows) + note + remade(found["environment"])


def _both_times(row: dict[str, Any], digits: int = 2) -> list[str]:
    return [
        f"{row[kind]['median']:.{digits}f} "
        f"({row[kind]['least']:.{digits}f}-{row[kind]['most']:.{digits}f})"
        for kind in ("processor", "wall")
    ]


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
            spread(row["processor_ratio"]) if "processor_ratio" in row else "",
            "" if row["goal"] is None else f"{row['goal']:g}",
        ]
        for row in found["rows"]
    ]
    header = ["network", "batch", "images/s over timm's (p10-p90)"]
    header += ["timm's processor time over ours (p10-p90)", "goal"]
    return table(header, rows) + remade(found["environment"])


def by_hand() -> str:
    """Images per second against a loop that is written by hand."""
    found = read("benchmarks/results/by-hand-cpu.json")
    settings = f"{found['precision']}{', channels last' if found['channels_last'] else ''}"
    rows = [
        [
            f"{found['model']}, {settings}",
            str(found["batch"]),
            spread(found["over_loop"]["wall"]),
            spread(found["over_loop"]["processor"]),
            f"{found['goal']:g}",
            *(f"{found['images_per_second'][name]:,.0f}" for name in ("trainer", "loop")),
        ]
    ]
    header = ["network", "batch", "images/s over the loop's (p10-p90)"]
    header += ["the loop's processor time over ours (p10-p90)", "goal", "images/s", "the loop's"]
    note = (
        f"\nRecipe `{found['recipe']}`, {found['rounds']} interleaved rounds of {found['steps']} "
        f"steps; load {found['load']['before']:.1f} before, {found['load']['after']:.1f} after.\n"
    )
    return table(header, rows) + note + remade(found["environment"])


def parts() -> str:
    """Where the processor time of a step goes."""
    found = read("benchmarks/results/step-parts-cpu.json")
    kinds = ("network", "convolutions", "images", "update", "host")
    rows = [
        [
            f"{row['model']}, {row['precision']}",
            str(row["batch"]),
            *(f"{100 * row['share_of_step'][kind]['median']:.1f} %" for kind in kinds),
            f"{row['step_over_convolutions']:.2f}",
        ]
        for row in found["rows"]
    ]
    header = ["network", "batch", "forward and backward", "of which convolutions", "images"]
    header += ["update", "the rest", "step over its convolutions"]
    return table(header, rows) + remade(found["environment"])


def sharing() -> str:
    """Two trainings on the same cores."""
    found = read("benchmarks/results/side-by-side-cpu.json")
    columns = ["slower_alone", "slower_beside", "processor_time"]
    rows = [[row["way"], *(spread(row[name]) for name in columns)] for row in found["rows"]]
    header = ["each with", "a step alone", "a step beside another", "processor time beside another"]
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


def sweep() -> str:
    """Peak memory and time per image over the global batch."""
    found = read("benchmarks/results/batch-sweep-cpu.json")
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
    """Exposed communication at several rates."""
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
    from conadv.lab import planning as model
    from conadv.trainer.models.zoo import create_model

    sys.path.append(str(ROOT / "benchmarks"))
    import _link_model as links

    measured = links.read_link_benchmark(ROOT / LINK)
    settings, size = measured.settings, measured.settings["image_size"]
    options = {"widths": tuple(settings["widths"])} if settings["widths"] else {}
    network = create_model(settings["model"], 3, 10, options=options)
    counted = model.count(conadv.split_norms(network), (3, size, size), torch.float32)
    rates = {row["bits_per_second"]: _rate(row) for row in read(LINK)["rows"]}
    rows, worst = [], 0.0
    for seen, found in links.held_out(measured, counted):
        for name, seconds in seen.steps.items():
            error = found.steps[name] / seconds - 1
            worst = max(worst, abs(error))
            times = (seconds, found.steps[name], seen.exposed[name], found.exposed[name])
            step, predicted, *exposed = (f"{1000 * t:.0f} ms" for t in times)
            where = rates.get(8 * seen.rate, "no limit")
            rows.append([where, name, step, predicted, f"{error:+.1%}", *exposed])
    header = ["link", "schedule", "measured step", "predicted", "error"]
    header += ["measured exposed", "predicted"]
    fitted = links.fit_link(measured, counted)
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
    from conadv.lab.bench.model_checks import markdown_table, summary

    found = read("benchmarks/results/models-check.json")
    environment, rows = found["environment"], found["rows"]
    libraries = f"timm {environment['timm']}, torchvision {environment['torchvision']}"
    lead = f"{summary(rows)}, with {libraries}.\n\n"
    return lead + markdown_table(rows) + remade(environment)


def endtoend() -> str:
    """A recipe at its real global batch, from JPEG files."""
    found = read("benchmarks/results/imagenet-end-to-end-cpu.json")
    rows = [
        [
            f"`{row['recipe']}`",
            f"{row['size']} px",
            f"{row['global_batch']:,}",
            str(row["steps"]),
            f"{row['step_seconds_median']:.0f} s ({min(row['step_seconds']):.0f} to "
            f"{max(row['step_seconds']):.0f})",
            f"{row['images_per_second']:.0f}",
            f"{row['peak_bytes'] / 2**30:.1f} GiB",
            f"{row['losses'][0]:.3f} to {row['losses'][-1]:.3f}",
        ]
        for row in found["rows"]
    ]
    header = ["recipe", "images", "global batch", "steps", "median step (fastest to slowest)"]
    header += ["images/s", "peak memory", "loss"]
    return table(header, rows) + remade(found["environment"])
