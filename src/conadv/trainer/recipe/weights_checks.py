"""What is impossible about how a recipe moves weights."""

from collections.abc import Iterator

from conadv.trainer.recipe.recipe import Recipe
from conadv.trainer.recipe.update_checks import refused
from conadv.trainer.recipe.updates import SHARDED, Refusal

_REFUSES = (
    Refusal("method.sam", lambda sam: sam != "none", "both move the weights", "method.sam=none"),
    Refusal(
        "method.loss",
        lambda loss: loss == "sum",
        "the passes at moved weights share a mean with the rest",
        "method.loss=mean",
    ),
    Refusal(
        "optimizer.variance_reduction",
        bool,
        "the noise of a gradient at moved weights is not what its paper measures",
        "optimizer.variance_reduction=false",
    ),
    Refusal(*SHARDED, "a part of a weight cannot be moved alone", "hardware.parallel=ddp"),
)


def weights_problems(recipe: Recipe) -> Iterator[str]:
    """Everything that is impossible about the section ``weights`` and what stands beside it."""
    weights = recipe.weights
    given = f"weights.schedule={weights.schedule}"
    for name, owner, usual in (("budget", "recycled", "extra"), ("tau", "lookahead", 1)):
        value = getattr(weights, name)
        if value != usual and weights.schedule != owner:
            yield (
                f"weights.{name}={value} with {given}: only {owner} has this setting. Set "
                f"weights.{name}={usual}, or weights.schedule={owner}."
            )
    if not weights.on:
        return
    try:
        schedule = weights.make()
        schedule.fresh_images(recipe.micro_batch)
    except ValueError as error:
        yield f"weights.{error}"
        return
    if weights.centres and schedule.ascents and not schedule.delay(1):
        yield (
            f"weights.centred=true with {given}: a step's micro-batches come one after the other, "
            "and it needs the mean of all before the first. Set weights.centred=null, or "
            "weights.schedule=recycled."
        )
    elif weights.centres and recipe.micro_steps < 2:
        yield (
            f"{given} with one micro-batch of {recipe.micro_batch} images per step: without the "
            "mean of all nothing of its gradient is left. Give batch.micro_batch, at most "
            f"{recipe.batch.global_batch // 2}, or weights.centred=false."
        )
    copies, view = recipe.method.kind.makes_copies, recipe.method.view != "none"
    whole = schedule.weight_at(0.0) == 1 and (weights.weight is not None or not copies)
    if (copies or view) and whole:
        what = f"method.schedule={recipe.method.schedule}" if copies else "method.view"
        yield (
            f"{given} with {what}: passes at moved weights have all the weight, and nothing is "
            "left for the rest. Set weights.weight=0.5, or another number below 1."
        )
    yield from refused(recipe, given, _REFUSES, "weights.schedule=none")
    if schedule.reads_ahead(1) and recipe.method.make().reads_ahead:
        yield (
            f"{given} with method.schedule={recipe.method.schedule}: only one of the two can look "
            "ahead. Set weights.schedule=recycled, or weights.schedule=none."
        )
