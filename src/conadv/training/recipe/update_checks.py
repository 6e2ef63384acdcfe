"""What sharpness-aware, variance-reduced and orthogonalised updates cannot be combined with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conadv.training.recipe.schema import Recipe


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
