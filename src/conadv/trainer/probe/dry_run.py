"""A recipe tried out without its data: one real step, the schedule, memory and time."""

import math
from dataclasses import dataclass, replace

import torch

import conadv
from conadv.errors import RecipeError
from conadv.trainer.distributed import World
from conadv.trainer.input.random_images import images_of
from conadv.trainer.probe.memory import Memory, bytes_of
from conadv.trainer.probe.trial_step import FEWEST_IMAGES, MeasuredStep, measure_if_memory
from conadv.trainer.recipe import Recipe, piecewise
from conadv.trainer.run.device import choose_precision, resolve_device
from conadv.trainer.run.environment import processor_name
from conadv.trainer.update import learning_rate_factor
from conadv.weights.space import WeightSpace

CPU_IMAGES = 8
"""Images of the step on a CPU: enough for batch norm at the end of a network, and soon done."""


@dataclass(frozen=True)
class Point:
    """A moment of the schedule."""

    what: str
    step: int
    """Updates done before it."""
    epoch: float
    """Passes over the fresh images before it."""
    learning_rate: float


@dataclass(frozen=True)
class DryRun:
    """What a recipe comes to."""

    recipe: Recipe
    parameters: int
    image: tuple[int, int, int]
    train_images: int
    classes: int
    devices: int
    micro_steps: int
    """Forward passes per step and device."""
    trained_per_step: int
    """Images of all branches that one step's passes go over."""
    steps: int
    warmup_steps: int
    epochs: float
    compute_factor: float
    """Compute of a step, over ordinary training on as many images."""
    schedule: tuple[Point, ...]
    loss: float
    """Loss of that step: of untrained weights on random images."""
    step_seconds: float
    """Estimated, of a full step."""
    device: str
    precision: str
    memory: Memory
    notes: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Estimated, of all steps."""
        return self.steps * self.step_seconds

    @property
    def seconds_per_image(self) -> float:
        """Seconds of one forward and backward pass, an attack step counting as 2/3 of one."""
        return self.step_seconds / (self.recipe.batch.global_batch * self.compute_factor)


def dry_run(recipe: Recipe, devices: int = 1, images: int | None = None) -> DryRun:
    """Build a recipe's network, take one real step on random images, and add up.

    Nothing is read, downloaded or written: the data set counts with its published size
    (``data.files.train_images``). A step is measured on this machine and scaled to the whole
    micro-batch, to all of them and to ``devices``, without communication; `conadv plan` models
    other machines.

    Args:
        recipe: Any.
        devices: Among which the micro-batches of a step are dealt out.
        images: Of the measured micro-batch; None: all of them on an accelerator, at most
            `CPU_IMAGES` on a CPU. Fewer are taken where memory does not suffice.

    Raises:
        RecipeError: The recipe does not fit its data's size or its network, or there is not even
            memory for `FEWEST_IMAGES`.
        DistributedError: The step cannot be dealt out to so many devices.
    """
    own_steps = len(World(size=devices).slots(recipe.micro_steps))
    device = resolve_device(recipe.hardware.device)
    _, _, count = images_of(recipe)
    recipe.steps_per_epoch(count)  # says so if there are too few
    if images is not None and images < FEWEST_IMAGES:
        raise RecipeError(f"images={images}: give at least {FEWEST_IMAGES}, for batch norm.")
    wanted = images or (CPU_IMAGES if device.type == "cpu" else recipe.micro_batch)
    threads = torch.get_num_threads()
    try:
        if recipe.hardware.threads is not None:
            torch.set_num_threads(recipe.hardware.threads)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            found, short = measure_if_memory(recipe, device, min(wanted, recipe.micro_batch))
        report = _report(recipe, found, devices, own_steps)
    finally:
        torch.set_num_threads(threads)
    if found.images == recipe.micro_batch:
        return report
    why = "memory was short" if short else "as asked" if images else "a CPU is slow"
    reduced = (
        f"the step was measured with {found.images} of the {recipe.micro_batch} images of a "
        f"micro-batch ({why}); time and activations are scaled up"
    )
    return replace(report, notes=(reduced, *report.notes))


def _report(recipe: Recipe, found: MeasuredStep, devices: int, own_steps: int) -> DryRun:
    shape, classes, count = images_of(recipe)
    steps = recipe.total_steps(count)
    scale = recipe.micro_batch / found.images
    model, device = found.built.trainer.model, found.built.device
    return DryRun(
        recipe=recipe,
        parameters=sum(p.numel() for p in model.parameters()),
        image=shape,
        train_images=count,
        classes=classes,
        devices=devices,
        micro_steps=own_steps,
        trained_per_step=round(found.trained * recipe.batch.global_batch),
        steps=steps,
        warmup_steps=recipe.warmup_steps(count),
        epochs=steps / recipe.steps_per_epoch(count),
        compute_factor=found.compute,
        schedule=_schedule(recipe, count),
        loss=found.loss,
        step_seconds=found.passes * scale * own_steps + found.update,
        device=_device_name(device),
        precision=choose_precision(recipe.hardware.precision, device).name,
        memory=_memory(recipe, found, devices, own_steps),
        notes=tuple(_notes(recipe, devices)),
    )


def _memory(recipe: Recipe, found: MeasuredStep, devices: int, own_steps: int) -> Memory:
    trainer, scale = found.built.trainer, recipe.micro_batch / found.images
    gradients = bytes_of([p for p in trainer.model.parameters() if p.requires_grad])
    parts = devices if recipe.hardware.parallel == "fsdp" else 1
    rounds = own_steps if recipe.method.make().reads_ahead else 1
    return Memory(
        weights=bytes_of([*trainer.model.parameters(), *trainer.model.buffers()]) / parts,
        gradients=gradients / parts,
        optimizer=bytes_of(trainer.update.state_dict()) / parts,
        activations=found.saved.of_images * scale + found.saved.of_weights,
        pending=found.pending * scale * rounds + _kept_gradients(recipe, found, own_steps),
    )


def _kept_gradients(recipe: Recipe, found: MeasuredStep, own_steps: int) -> float:
    """Bytes that copies of weights keep for later steps."""
    if not isinstance(found.built.adversary, conadv.WeightAdversary):
        return 0.0
    adversary = found.built.adversary
    return adversary.schedule.kept_bytes(
        WeightSpace(found.built.trainer.model, adversary.attack.parameters).size,
        own_steps,
        images=4 * math.prod(images_of(recipe)[0]) * recipe.fresh_per_micro_batch,
        dtype=adversary.attack.dtype,
    )


def _schedule(recipe: Recipe, count: int) -> tuple[Point, ...]:
    total, warmup = recipe.total_steps(count), recipe.warmup_steps(count)
    factor, per_epoch = learning_rate_factor(recipe, count), recipe.steps_per_epoch(count)
    moments = {0: "first step", total // 4: "1/4", total // 2: "1/2", 3 * total // 4: "3/4"}
    if 0 < warmup < total:
        moments |= {warmup // 2: "half of warm-up", warmup: "end of warm-up"}
    moments[total - 1] = "last step"
    return tuple(
        Point(what, step, step / per_epoch, recipe.peak_lr * factor(step))
        for step, what in sorted(moments.items())
    )


def _notes(recipe: Recipe, devices: int) -> list[str]:
    notes = []
    if recipe.data.dataset == "files":
        given = recipe.data.train_images
        field = "data.files.train_images" if given is None else "data.train_images"
        notes.append(
            f"the data was not opened: its size is that of {field} and data.files.classes "
            "(by default ImageNet's, as published)"
        )
    elif recipe.data.dataset == "cifar10":
        notes.append("the data was not opened: CIFAR-10 counts with its published size")
    shares = (recipe.method.share, recipe.weights.share)
    if (
        any(callable(piecewise(share)) for share in shares)
        or recipe.method.weight is not None
        or recipe.weights.every > 1
    ):
        notes.append("copies, compute and time are those of the steps with the most copies")
    if devices > 1:
        notes.append("time is without communication between the devices (see conadv plan)")
    notes.append("time is without loading data and evaluating; memory without workspaces")
    return notes


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return (
        f"{processor_name()}, {torch.get_num_threads()} threads" if device.type == "cpu" else "MPS"
    )
