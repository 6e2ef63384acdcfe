"""conadv in a loop that Accelerate drives: one more thing to prepare."""

from typing import Any

from torch import nn, optim

from conadv.adversary import Adversary
from conadv.attack import Attack
from conadv.integrations._extra import extra
from conadv.integrations._ranks import load_rank, save_rank
from conadv.schedules import Schedule, resolve_schedule

with extra("accelerate"):
    from accelerate import Accelerator


def prepare(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: optim.Optimizer,
    loader: Any,
    attack: Attack,
    schedule: str | Schedule = "recycled",
    **options: Any,
) -> tuple[nn.Module, Any, Any, Adversary]:
    """`accelerator.prepare` for the three, and the adversary that goes with them.

    ``accelerator.save_state(folder)`` writes what is pending beside the rest, a file per rank, and
    ``load_state`` reads it. `accelerator.backward` divides by the accumulation steps, so `loss`
    needs no fraction.

    Args:
        accelerator: of the run.
        model: split with `split_norms`, not yet prepared.
        optimizer: of the split model.
        loader: gives (images, labels).
        attack: what one adversarial step is.
        schedule: a name or a schedule object.
        **options: more for `Adversary`.

    Returns:
        The prepared model, optimizer and loader, and the adversary. Iterate over
        ``adversary.batches(loader)``.

    Raises:
        ValueError: lookahead with gradient accumulation, whose steps Accelerate counts by the
            batches that were read, and lookahead reads ahead.

    Example:
        >>> prepared = prepare(accelerator, model, optimizer, loader, attack)
        >>> model, optimizer, loader, adversary = prepared
        >>> for images, labels in adversary.batches(loader):
        ...     with accelerator.accumulate(model):
        ...         accelerator.backward(adversary.loss(images, labels, criterion))
        ...         adversary.collect()
        ...         optimizer.step()
        ...         optimizer.zero_grad()
    """
    schedule = resolve_schedule(schedule)
    if schedule.reads_ahead and accelerator.gradient_accumulation_steps > 1:
        raise ValueError(
            "lookahead with gradient accumulation under Accelerate: it ends a step where the "
            "loader ends, and lookahead has read that far before. Use schedule='recycled'."
        )
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    adversary = Adversary(model, attack, schedule, **options)

    def save(models: list[nn.Module], weights: list[Any], folder: str) -> None:
        save_rank(adversary, folder)

    def load(models: list[nn.Module], folder: str) -> None:
        load_rank(adversary, folder)

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)
    return model, optimizer, loader, adversary
