"""What the fields of a recipe must be to one another. All problems are found at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from conadv._words import did_you_mean, nearest
from conadv.attack import Attack
from conadv.schedules import Recycled
from conadv.trainer.recipe.recipe import Recipe
from conadv.trainer.recipe.values import piecewise

SMALLEST_DEFAULT_MICRO_BATCH = 16
_NO_OPTIMIZERS = ("Optimizer", "LBFGS", "SparseAdam", "Muon")
"""Classes of torch.optim that cannot train a network in this loop. torch's Muon takes matrices
only; ours is called muon."""


def problems(recipe: Recipe) -> list[str]:
    """Everything that is impossible about a recipe whose fields are each valid."""
    checks: tuple[Callable[[Recipe], Iterator[str]], ...] = (
        _model,
        _batch,
        _attack_units,
        _method,
        _branches,
        _recycled,
        _optimizer,
        update_problems,
        _length,
        _parallel,
        _images,
    )
    return [problem for check in checks for problem in check(recipe)]


def _model(recipe: Recipe) -> Iterator[str]:
    from conadv.trainer.models.zoo import check_name

    yield from _message(lambda: check_name(recipe.model.name), "model.")
    if recipe.model.pretrained and recipe.model.name.startswith("cifar/"):
        yield (
            f"model.pretrained=true with model.name={recipe.model.name}: there are no weights to "
            "download for cifar/ networks. Set it to false, or take a timm/ or torchvision/ one."
        )


def _batch(recipe: Recipe) -> Iterator[str]:
    total, micro = recipe.batch.global_batch, recipe.batch.micro_batch
    if micro is None:
        micro = recipe.micro_batch
        if micro < min(total, SMALLEST_DEFAULT_MICRO_BATCH):
            yield (
                f"batch.global_batch={total}: its largest divisor up to 128 is {micro}, too few "
                f"images for a forward pass. Take a multiple of 128, such as "
                f"{max(1, round(total / 128)) * 128}, or give batch.micro_batch."
            )
            return
    elif micro > total:
        yield (
            f"batch.micro_batch={micro} is more than batch.global_batch={total}: it is a part of "
            f"it. Give a divisor of {total}, or null."
        )
        return
    elif total % micro:
        yield (
            f"batch.global_batch={total} is not a multiple of batch.micro_batch={micro}: every "
            f"forward pass takes as many images. Near {micro}, the divisors are "
            f"{_words(_near_divisors(total, micro))}."
        )
    group = recipe.batch.norm_group
    if group is not None and micro % group:
        yield (
            f"batch.norm_group={group} does not divide micro_batch={micro}: normalisation groups "
            f"are parts of a forward pass. Near {group}, the divisors are "
            f"{_words(_near_divisors(micro, group))}."
        )


def _near_divisors(total: int, near: int) -> list[int]:
    divisors = [d for d in range(1, total + 1) if total % d == 0]
    return sorted(sorted(divisors, key=lambda d: abs(d - near))[:3])


def _words(numbers: list[int]) -> str:
    return ", ".join(str(number) for number in numbers)


def _attack_units(recipe: Recipe) -> Iterator[str]:
    attack = recipe.attack
    radius = list(_message(lambda: Attack(attack.epsilon, norm=attack.norm), "attack."))
    yield from radius
    if not radius:
        least = partial(Attack, attack.epsilon, norm=attack.norm, epsilon_min=attack.epsilon_min)
        yield from _message(least, "attack.")
    yield from _message(
        lambda: Attack(0.0, norm=attack.norm, step_size=attack.step_size), "attack."
    )
    tested = recipe.evaluation.robust_epsilon
    if tested is not None:
        yield from _message(lambda: Attack(tested, norm=attack.norm), "evaluation.robust_")


def _method(recipe: Recipe) -> Iterator[str]:
    method = recipe.method
    if method.schedule != "recycled":
        for name, usual in (("budget", "extra"), ("refine", 1)):
            if getattr(method, name) != usual:
                yield (
                    f"method.{name}={getattr(method, name)} with method.schedule="
                    f"{method.schedule}: only recycled makes copies of earlier images. Set "
                    f"method.{name}={usual}, or method.schedule=recycled."
                )
    if method.schedule == "lookahead" and method.tau < 1:
        yield (
            f"method.tau={method.tau}: lookahead needs at least 1. With 0 it would be "
            "method.schedule=sequential."
        )
    if method.schedule != "lookahead" and method.tau != 1:
        yield (
            f"method.tau={method.tau} with method.schedule={method.schedule}: only lookahead has "
            "a choice of staleness. Set method.tau=1, or method.schedule=lookahead."
        )


def _branches(recipe: Recipe) -> Iterator[str]:
    """Vanilla training has nothing to send through the second branch: its model lacks one."""
    if recipe.method.schedule != "vanilla":
        return
    settings = (
        ("evaluation.branch", recipe.evaluation.branch, "clean"),
        ("attack.branch", recipe.attack.branch, "null"),
    )
    for name, branch, instead in settings:
        if branch == "adversarial":
            yield (
                f"{name}=adversarial with method.schedule=vanilla: its network has the clean "
                f"branch alone. Set {name}={instead}, or another method.schedule."
            )


def _recycled(recipe: Recipe) -> Iterator[str]:
    """The core's own refusals, asked for one setting at a time so that none hides another."""
    method, attack = recipe.method, recipe.attack
    if method.schedule != "recycled":
        return
    share = piecewise(method.share)
    weight = None if method.weight is None else piecewise(method.weight)
    make = partial(Recycled, share, weight, method.budget, method.refine)
    found = list(_message(make, "method."))
    yield from found
    if method.budget == "fixed" and not found:
        schedule = make()
        refused = list(_message(lambda: schedule.fresh_images(recipe.micro_batch), "method."))
        yield from refused
        if not refused and schedule.fresh_images(recipe.micro_batch) < 1:
            yield (
                f"method.share={method.share} leaves no fresh image in a micro-batch of "
                f"{recipe.micro_batch}: lower it, or raise batch.micro_batch."
            )
    for name in ("target", "branch", "mode", "random_start", "steps"):
        settings: dict[str, Any] = {name: getattr(attack, name)}
        resolve = partial(Recycled().resolve, Attack(0.0, **settings), "clean", "adversarial")
        yield from _message(resolve, "attack.")


def _optimizer(recipe: Recipe) -> Iterator[str]:
    optimizer = recipe.optimizer
    names = optimizer_names()
    if optimizer.name not in names:
        yield (
            f"optimizer.name={optimizer.name!r}: no such optimizer."
            + did_you_mean(nearest(optimizer.name, names))
            + " Allowed: lars, lamb, sgd, adamw, muon, or a class of torch.optim: "
            + ", ".join(n for n in names if n[0].isupper())
            + "."
        )
    if optimizer.nesterov and optimizer.momentum == 0:
        yield "optimizer.nesterov=true with optimizer.momentum=0: give a momentum above 0."


def optimizer_names() -> list[str]:
    """Every name that ``optimizer.name`` takes."""
    import torch

    base = torch.optim.Optimizer
    classes = [
        name
        for name, thing in vars(torch.optim).items()
        if isinstance(thing, type) and issubclass(thing, base) and name not in _NO_OPTIMIZERS
    ]
    return ["lars", "lamb", "sgd", "adamw", "muon", *sorted(classes)]


def _length(recipe: Recipe) -> Iterator[str]:
    epochs, steps = recipe.train.epochs, recipe.train.steps
    if (epochs is None) == (steps is None):
        yield (
            f"train.epochs={_null(epochs)} and train.steps={_null(steps)}: give exactly one of the "
            "two, and null for the other."
        )
    warmup = recipe.lr_schedule.warmup_epochs
    if epochs is not None and warmup > epochs:
        yield (
            f"lr_schedule.warmup_epochs={warmup:g} is longer than train.epochs={epochs:g}: the "
            "learning rate would never reach its peak. Give at most as many."
        )


def _parallel(recipe: Recipe) -> Iterator[str]:
    """What a model cannot have whose weights lie in parts on the processes."""
    if recipe.hardware.parallel != "fsdp":
        return
    refused: tuple[tuple[str, object, str, str], ...] = (
        ("train.ema_decay", recipe.train.ema_decay, "null", "the average of the weights is whole"),
        ("hardware.compile", recipe.hardware.compile, "false", "it was never tried together"),
        (
            "method.track_agreement",
            recipe.method.track_agreement,
            "false",
            "a process without copies would not take the passes that the others take",
        ),
        (
            "data.order_tail",
            recipe.data.order_tail == "keep",
            "wrap or drop",
            "in a short step processes would make different numbers of passes, and wait for ever",
        ),
    )
    for name, given, instead, why in refused:
        if given:
            yield (
                f"{name} with hardware.parallel=fsdp: {why}. Set {name}={instead}, or "
                "hardware.parallel=ddp."
            )


def _images(recipe: Recipe) -> Iterator[str]:
    """Augmentation that this kind of data set does not have."""
    data, method, train = recipe.data, recipe.method, recipe.train
    if data.test_unused and (data.dataset == "files" or data.train_images is None):
        yield (
            f"data.test_unused=true with data.dataset={data.dataset}, data.train_images="
            f"{_null(data.train_images)}: it is for data sets in memory of which part is used. "
            "Give data.train_images, and another data.dataset than files, or set it to false."
        )
    if data.dataset == "files":
        for name, given in (("crop_padding", data.crop_padding), ("cutout", data.cutout)):
            if given:
                yield (
                    f"data.{name}={given} with data.dataset=files: its images are cropped out of "
                    f"larger ones (data.files.area). Set data.{name}=0; data.files.erasing blanks "
                    "out rectangles."
                )
    elif method.view not in ("none", "plain"):
        yield (
            f"method.view={method.view} with data.dataset={data.dataset}: policies are for "
            "data.dataset=files. Set method.view=plain or none."
        )
    if method.view != "none" and (train.mixup or train.cutmix):
        yield (
            f"method.view={method.view} with train.mixup={train.mixup:g}, train.cutmix="
            f"{train.cutmix:g}: a second view has the labels of its own image. Set both to 0, or "
            "method.view=none."
        )


def _null(value: float | None) -> str:
    return "null" if value is None else f"{value:g}"


def _message(attempt: Callable[[], object], prefix: str) -> Iterator[str]:
    """What the core says against something, its setting named as in a recipe."""
    try:
        attempt()
    except ValueError as error:
        yield prefix + str(error)


def update_problems(recipe: Recipe) -> Iterator[str]:
    """Everything that is impossible about how a recipe updates its weights."""
    yield from _sam(recipe)
    yield from _variance_reduction(recipe)
    if recipe.optimizer.name == "muon" and recipe.hardware.parallel == "fsdp":
        yield (
            "optimizer.name=muon with hardware.parallel=fsdp: Muon needs whole matrices, and each "
            "process has a part of them. Set hardware.parallel=ddp, or another optimizer.name."
        )


def _sam(recipe: Recipe) -> Iterator[str]:
    method = recipe.method
    if method.sam == "none":
        if method.rho != 0.05:
            yield (
                f"method.rho={method.rho:g} with method.sam=none: no weight is perturbed. Set "
                "method.sam=sam or async, or leave method.rho at 0.05."
            )
        return
    given = f"method.sam={method.sam}"
    if method.schedule != "vanilla":
        yield (
            f"{given} with method.schedule={method.schedule}: the pass that finds the perturbation "
            "of the weights would use up the adversarial copies of the one that trains. Set "
            "method.schedule=vanilla, or method.sam=none."
        )
    if recipe.optimizer.variance_reduction:
        yield (
            f"{given} with optimizer.variance_reduction=true: the noise of a gradient at perturbed "
            "weights is not what its paper measures. Set one of the two off."
        )
    yield from _refused(recipe, given, "method.sam=none")


def _variance_reduction(recipe: Recipe) -> Iterator[str]:
    optimizer = recipe.optimizer
    if not optimizer.variance_reduction:
        for name, usual in (("gsnr_gamma", 0.1), ("gsnr_momentum", 0.0)):
            if getattr(optimizer, name) != usual:
                yield (
                    f"optimizer.{name}={getattr(optimizer, name):g} with "
                    "optimizer.variance_reduction=false: no gradient is scaled. Set "
                    f"optimizer.variance_reduction=true, or leave optimizer.{name} at {usual:g}."
                )
        return
    given = "optimizer.variance_reduction=true"
    if optimizer.name not in ("lars", "sgd"):
        yield (
            f"{given} with optimizer.name={optimizer.name}: there is VR-LARS and VR-SGD here. Set "
            "optimizer.name=lars or sgd, or optimizer.variance_reduction=false."
        )
    total, micro = recipe.batch.global_batch, recipe.micro_batch
    if micro <= total and total // micro < 2:
        yield (
            f"{given} with one micro-batch of {micro} images per step: the noise is measured "
            "between the gradients of at least two. Give batch.micro_batch, at most "
            f"{total // 2}."
        )
    if recipe.data.order_tail == "keep":
        yield (
            f"{given} with data.order_tail=keep: a short step may have one micro-batch, whose "
            "gradient has nothing to be compared with. Set data.order_tail=wrap or drop."
        )
    yield from _refused(recipe, given, "optimizer.variance_reduction=false")


def _refused(recipe: Recipe, given: str, off: str) -> Iterator[str]:
    """What neither SAM nor variance reduction goes with."""
    if recipe.hardware.parallel == "fsdp":
        yield (
            f"{given} with hardware.parallel=fsdp: it needs the whole gradient on each process. "
            f"Set hardware.parallel=ddp, or {off}."
        )
    if recipe.hardware.precision == "fp16":
        yield (
            f"{given} with hardware.precision=fp16: it reads gradients before the loss scale is "
            f"taken out of them. Set hardware.precision=bf16 or fp32, or {off}."
        )
