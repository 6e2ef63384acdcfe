"""``conadv plan``: what a recipe would cost on devices that one may not have."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from conadv._files import write_json
from conadv._words import duration
from conadv.commands._options import Changes, Json, RecipeName
from conadv.commands._show import say, table

if TYPE_CHECKING:
    from conadv.lab.planning import Comparison, DeviceType, Job, Link, Rates

_PIXELS = 224 * 224
"""The image that a device type's half_batch is given for."""


def plan(
    recipe: RecipeName,
    overrides: Changes = None,
    devices: Annotated[int, typer.Option(min=1, help="Number of devices.")] = 1,
    device_type: Annotated[
        str, typer.Option(help="Such as h100, a100-80gb; cpu with a measured throughput.")
    ] = "h100",
    link: Annotated[
        str, typer.Option(help="Such as nvlink4-ndr, or a rate per device such as 25Gbit.")
    ] = "nvlink4-ndr",
    latency: Annotated[
        float | None, typer.Option(min=0, help="Of one message, in microseconds.")
    ] = None,
    images_per_second: Annotated[
        float | None,
        typer.Option(help="Measured ordinary training on one device, in place of a FLOP count."),
    ] = None,
    measured: Annotated[
        Path | None, typer.Option(help="The same from a file of conadv bench steps --json.")
    ] = None,
    utilisation: Annotated[
        float | None, typer.Option(help="Share of the peak rate; the table's is an assumption.")
    ] = None,
    half_batch: Annotated[
        float | None,
        typer.Option(min=0, help="Images per pass at which half of that is reached."),
    ] = None,
    activations: Annotated[
        float | None, typer.Option(help="Measured MB of activations per image; else counted.")
    ] = None,
    core_images_per_second: Annotated[
        float, typer.Option(help="Images that a core decodes (data.dataset=files).")
    ] = 280.0,
    cores_per_device: Annotated[float, typer.Option(help="Cores that decode.")] = 12.0,
    image_bytes: Annotated[float, typer.Option(help="Bytes of an encoded image.")] = 110e3,
    storage: Annotated[
        str | None, typer.Option(help="Rate at which all devices together read, as 10GB/s.")
    ] = None,
    json: Json = None,
    chart: Annotated[Path | None, typer.Option(help="Draw it: an HTML page.")] = None,
) -> None:
    """Predict step time, time to train, memory and bottleneck on N devices.

    For every schedule, and from 1 to 4,096 devices. Nothing is trained.
    """
    from conadv.trainer.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])  # before the imports that take seconds
    from conadv.commands import _plan_inputs as inputs
    from conadv.lab.planning import (
        Loader,
        Rates,
        compare,
        deal,
        device_counts,
        link_named,
        published,
    )
    from conadv.lab.planning import device_type as find_device
    from conadv.trainer.input.random_images import images_of

    device = find_device(device_type)
    joined = link_named(link, None if latency is None else latency * 1e-6)
    loader = Loader(
        _positive("--core-images-per-second", core_images_per_second),
        _positive("--cores-per-device", cores_per_device),
        _positive("--image-bytes", image_bytes),
        math.inf if storage is None else _rate("--storage", storage),
    )
    _positive("--images-per-second", images_per_second)
    _positive("--utilisation", utilisation)
    if utilisation is not None and utilisation > 1:
        raise typer.BadParameter(
            f"--utilisation {utilisation:g}: give a share of the peak rate, above 0 and at most 1."
        )
    _positive("--activations", activations)
    inputs.check_parallel(loaded)
    job = inputs.job_of(loaded, loader)
    deal(job, devices)  # says at once which numbers can
    if measured is not None:
        images_per_second = inputs.measured_images_per_second(measured, loaded)
    network = inputs.count_network(loaded)
    shape, _, _ = images_of(loaded)
    if half_batch is None:
        half_batch = device.half_batch * _PIXELS / (shape[1] * shape[2])
    rates = Rates.of(device, network, job.micro_batch, images_per_second, utilisation, half_batch)
    saved = None if activations is None else activations * 1e6
    methods = inputs.methods_of(loaded)
    counts, refused = device_counts(job, devices)
    rows = {
        n: compare(network, job, methods, rates, joined, n, device.memory, saved) for n in counts
    }
    own = inputs.own_schedule(loaded)
    notes = _assumptions(device, joined, rates, images_per_second, utilisation, job)
    record = {
        "recipe": loaded.name,
        "schedule": own,
        "global_batch": job.global_batch,
        "devices": devices,
        "device_type": device.name,
        "link": joined.name,
        "model": loaded.model.name,
        "image": list(shape),
        "forward_gmacs": network.forward / 2e9,
        "parameters": network.parameters,
        "assumptions": notes,
        "rows": [found.as_dict() for n in counts for found in rows[n]],
        "refused": refused,
        "published": published() if _is_the_papers(loaded.model.name, shape) else [],
    }
    _print(record, rows[devices], [c for n in counts for c in rows[n] if c.plan.schedule == own])
    if json is not None:
        write_json(json, record)
        say(f"written: {json}")
    if chart is not None:
        from conadv.lab.report.charts.plan_chart import write_plan_chart

        say(f"drawn: {write_plan_chart(record, chart)}")


def _print(record: dict[str, Any], here: list[Comparison], own: list[Comparison]) -> None:
    say(
        f"{record['recipe']}: {record['model']}, {record['forward_gmacs']:.3g} GMACs forward, "
        f"{record['parameters'] / 1e6:.3g} M parameters, {record['global_batch']:,} images per "
        f"step. Predicted, not measured.\n"
    )
    title = f"{record['devices']:,} x {record['device_type']}, {record['link']}"
    table([_schedule_row(found) for found in here], title)
    hidden = [found.plan.schedule for found in here if found.hidden]
    say(f"extra cost hidden here: {', '.join(hidden) or 'of none'}\n")
    table([_devices_row(found) for found in own], f"{record['schedule']}, by number of devices")
    if record["refused"]:
        say(
            f"cannot carry the batch, normalisation groups kept whole: "
            f"{', '.join(f'{n:,}' for n in record['refused'])} devices"
        )
    if record["published"]:
        say("\npublished by others, for orientation:")
    for row in record["published"]:
        minutes = row["minutes"]
        when = "no time known to us" if minutes is None else f"{minutes:g} min"
        say(
            f"- {row['what']}: batch {row['batch']:,}, {row['devices']:,} x {row['device']}, "
            f"{when} ({row['source']})"
        )
    say("\nassumptions:")
    for note in record["assumptions"]:
        say(f"- {note}")


def _is_the_papers(model: str, shape: tuple[int, int, int]) -> bool:
    """Whether the published runs, all of ResNet-50 on ImageNet, are of this network."""
    return model.rpartition("/")[2].startswith("resnet50") and shape[1] >= 128


def _row(found: Comparison, what: dict[str, str], parts: tuple[str, ...]) -> dict[str, Any]:
    plan, timing = found.plan, found.plan.timing
    return {
        **what,
        "step": duration(timing.step),
        "over vanilla": f"{found.over_vanilla:.2f}",
        **{part: duration(getattr(timing, part)) for part in parts},
        "images/s": f"{plan.images_per_second:,.0f}",
        "efficiency": f"{plan.efficiency:.0%}",
        "to train": duration(plan.seconds),
        "memory": _memory(found),
        "bottleneck": plan.bottleneck,
    }


def _schedule_row(found: Comparison) -> dict[str, Any]:
    what = {"schedule": found.plan.schedule}
    return _row(found, what, ("attack", "network", "exposed", "loader"))


def _devices_row(found: Comparison) -> dict[str, Any]:
    plan = found.plan
    cut = f"{plan.dealt.rounds:,} x {plan.dealt.micro_batch}"
    return _row(found, {"devices": f"{plan.devices:,}", "micro-batches": cut}, ("exposed",))


def _memory(found: Comparison) -> str:
    total = f"{found.plan.memory.total / 1e9:.2f} GB"
    return total + (" (does not fit)" if found.plan.fits is False else "")


def _assumptions(
    device: DeviceType,
    link: Link,
    rates: Rates,
    images_per_second: float | None,
    utilisation: float | None,
    job: Job,
) -> list[str]:
    """Where each figure of the hardware comes from."""
    notes = []
    if images_per_second is not None:
        notes.append(f"measured: {images_per_second:.4g} images/s of ordinary training per device")
    else:
        used, whose = utilisation, "given"
        if used is None:
            used, whose = device.utilisation, "an assumption"
        notes.append(
            f"{device.name}: {device.peak or 0:.4g} operations/s ({device.source}), of which "
            f"{used or 0:.0%} are used ({whose})"
        )
    notes.append(
        f"a pass costs as much as {rates.half_batch:.3g} images more than it has (an assumption)"
    )
    notes.append(
        f"{link.name}: {link.source}; {link.efficiency:.0%} of the rate and latencies of "
        f"{link.inside_latency * 1e6:.3g} and {link.between_latency * 1e6:.3g} us are assumptions"
    )
    loader = job.loader
    if math.isfinite(loader.images_per_core_second):
        storage = "" if math.isinf(loader.storage) else f", storage {loader.storage:.3g} bytes/s"
        notes.append(
            f"loader: {loader.cores_per_device:g} cores per device, "
            f"{loader.images_per_core_second:g} images/s each{storage} (assumptions)"
        )
    notes.append("not counted: evaluations, checkpoints, start-up, slow devices")
    return notes


def _positive(option: str, value: float | None) -> Any:
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise typer.BadParameter(f"{option} {value:g}: give a number above 0.")
    return value


def _rate(option: str, text: str) -> float:
    from conadv.lab.planning import parse_rate

    rate = parse_rate(text)
    if not rate:
        raise typer.BadParameter(f"{option} {text}: give a rate such as 10GB/s or 100Gbit.")
    return rate
