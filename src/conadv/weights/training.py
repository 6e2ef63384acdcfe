"""The training passes of a round, which add up to its loss."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from conadv._tree import map_tensors, rows
from conadv.adversary.mixing import (
    buffers_as_they_are,
    parameters_without_images,
    with_zero_gradients,
)
from conadv.attack.checks import loss_of
from conadv.branches import route
from conadv.weights.pending import Kept
from conadv.weights.round import RoundState, Term
from conadv.weights.schedule import Copy, MicroBatch
from conadv.weights.substitution import GivenGradients, refuse_reentrant, tap

Views = Mapping[str, tuple[Tensor, Any]]


def loss_of_round(current: RoundState, views: Views | None) -> Tensor:
    """Every pass of the round, and what they add up to, ready for backward.

    Where passes wait for other ranks, this one takes as many of each kind as any.

    Raises:
        ValueError: further views, and no clean pass that they could be a part of.
    """
    clean, copies = current.clean_factors(), current.copy_factors()
    given = [_has_gradients(current, batch) for batch, _ in clean]
    clean_idle, moved_idle = current.passes.in_step.missing(given.count(False), len(copies))
    for (batch, factor), is_given in zip(clean, given, strict=True):
        if is_given:
            _given_pass(current, batch, factor)
        else:
            _clean_pass(current, batch, factor, views)
    if views and not current.has_clean_pass:
        raise ValueError(
            f"views={list(views)}: further views are a part of the clean loss, which has no "
            "weight in this round. Give the schedule a weight below 1."
        )
    for _ in range(clean_idle):
        current.aside(partial(_idle_pass, current, False))
    for copy, factor in copies:
        _moved_pass(current, copy, factor)
    for _ in range(moved_idle):
        current.aside(partial(_idle_pass, current, True))
    loss = torch.stack([term.loss for term in current.terms]).sum() * current.fraction
    if not current.passes.checked:
        refuse_reentrant(loss)
    current.passes.checked = True
    return _with_zeros(current, loss) if loss.requires_grad else loss


def _has_gradients(current: RoundState, batch: MicroBatch) -> bool:
    """Whether the ascent gave the gradients of the clean loss too."""
    return current.alone and batch.number in current.ascents


def _given_pass(current: RoundState, batch: MicroBatch, factor: float) -> None:
    """A micro-batch at the weights themselves, whose gradients its ascent gave."""
    count, ascent = len(batch.images), current.ascents[batch.number]
    weights = [current.passes.trainable[name] for name in ascent.gradients]
    current.trained += count
    loss = GivenGradients.apply(ascent.loss, list(ascent.gradients.values()), *weights)
    term = Term(loss * factor, ascent.loss, count, ascent.outputs, False, batch.number)
    current.terms.append(term)


def _clean_pass(current: RoundState, batch: MicroBatch, factor: float, views: Views | None) -> None:
    """A micro-batch at the weights themselves, its own gradient apart."""
    weights = current.passes.aliases()
    if current.takes:
        _tap(current, weights, batch, factor)
    cut = None if views is None else _cut_views(views, batch, current.micro_batches)
    with _once(current):
        loss = current.passes.substitution.run(
            weights,
            lambda: current.of_images.loss(
                batch.images, batch.labels, current.criterion, views=cut
            ),
        )
    current.has_clean_pass = True
    seen, count = current.of_images.diagnostics, len(batch.images)
    current.trained += seen.images
    current.clean_compute += seen.compute
    term = Term(loss * factor, seen.clean_loss, count, seen.outputs, False, batch.number)
    current.terms.append(term)


def _moved_pass(current: RoundState, copy: Copy, factor: float) -> None:
    """A micro-batch at w + e."""
    passes, count = current.passes, len(copy.images)
    weights = passes.moved(copy.direction(), current.progress)
    number = None if copy.of is None else copy.of.number
    if current.takes and copy.of is not None and number not in current.tapped:
        _tap(current, weights, copy.of, factor)
    # A pass at the weights themselves moves the statistics, once for each image; where there is
    # none, or the branch is one that has no other, this one does.
    had_one = current.ascends or number in {t.number for t in current.terms if not t.moved}
    frozen = passes.branch == passes.clean_branch and (copy.of is None or had_one)
    where = route(passes.bare, [(passes.branch, count)])
    with _once(current), where:
        outputs = passes.substitution.run(
            weights, lambda: passes.model(copy.images.detach()), frozen=frozen
        )
    loss = loss_of(current.criterion(outputs, copy.labels))
    current.compute += count
    current.trained += count
    plain = map_tensors(lambda tensor: tensor.detach(), outputs)
    current.terms.append(Term(loss * factor, loss.detach(), count, plain, True, number))


def _idle_pass(current: RoundState, moved: bool, batch: MicroBatch) -> None:
    """A pass that weighs nothing: another rank has one more, whose layers wait for these."""
    passes, count = current.passes, len(batch.images)
    branch = passes.branch if moved else passes.clean_branch
    with _once(current), route(passes.bare, [(branch, count)]):
        outputs = passes.substitution.run(
            {}, lambda: passes.model(batch.images.detach()), frozen=True
        )
    loss = loss_of(current.criterion(outputs, batch.labels))
    current.compute += count
    current.terms.append(Term(loss * 0.0, None, 0, None, moved, None))


def _once(current: RoundState) -> AbstractContextManager[None]:
    """Enclose each pass: DDP shares rank 0's buffers before the first of a round alone."""
    first, current.began = not current.began, True
    return nullcontext() if first else buffers_as_they_are(current.passes.model)


def _tap(current: RoundState, weights: dict[str, Tensor], batch: MicroBatch, factor: float) -> None:
    space = current.passes.space
    vector = space.zeros(current.passes.attack.dtype)
    tap(weights, space.views(vector))
    scale = torch.full((), factor * current.fraction, device=space.device)
    current.tapped[batch.number] = Kept(vector, len(batch.images), scale)


def _with_zeros(current: RoundState, loss: Tensor) -> Tensor:
    """Branches that nothing went through get a gradient of zero, as in `Adversary`."""
    if current.has_clean_pass:
        return loss
    present = {current.passes.branch} if any(term.moved for term in current.terms) else set()
    if any(not term.moved for term in current.terms):
        present.add(current.passes.clean_branch)
    return with_zero_gradients(loss, parameters_without_images(current.passes.bare, present))


def _cut_views(views: Views, batch: MicroBatch, batches: list[MicroBatch]) -> Views:
    """The part of each view that goes with a micro-batch."""
    place, count = batches.index(batch), len(batches)

    def part(images: Tensor, labels: Any) -> tuple[Tensor, Any]:
        total = len(images)
        start, stop = place * total // count, (place + 1) * total // count
        return images[start:stop], rows(labels, start, stop, total)

    return {name: part(images, labels) for name, (images, labels) in views.items()}
