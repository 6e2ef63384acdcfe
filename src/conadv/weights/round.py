"""One round: a loss() and its collect()."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from conadv._tree import first_tensor, joined
from conadv.adversary.round import Streams
from conadv.attack import Criterion
from conadv.attack.forward import AutocastState, forked_rng
from conadv.branches import route
from conadv.weights.ascent import Ascent, gradients_of, silent
from conadv.weights.attack import WeightAttack
from conadv.weights.pending import Kept, add_to, centred, is_finite, mean_of
from conadv.weights.schedules import Copy, MicroBatch
from conadv.weights.space import WeightSpace
from conadv.weights.substitution import Substitution, refuse_reentrant


@dataclass
class Passes:
    """A model and what it takes to run it at other weights."""

    model: nn.Module
    bare: nn.Module
    attack: WeightAttack
    clean_branch: str
    branch: str
    """Branch of passes at moved weights."""
    streams: Streams
    group: dist.ProcessGroup | None

    def __post_init__(self) -> None:
        self.substitution = Substitution(self.model)
        self.space = WeightSpace(self.model, self.attack.parameters)
        self.trainable = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.silent = silent(self.model)
        self.checked = False
        """Whether a pass has shown that the model can be run again."""

    def aliases(self) -> dict[str, Tensor]:
        """The weights themselves, as tensors whose gradients are of one pass alone."""
        pairs = zip(self.space.names, self.space.parameters, strict=True)
        return {name: p.view_as(p) for name, p in pairs}

    def moved(self, direction: Tensor, progress: float) -> dict[str, Tensor]:
        """The weights w + e."""
        step = self.space.step(direction, self.attack.rho_at(progress), self.attack.radius)
        moved = torch._foreach_add(self.space.parameters, step)
        return dict(zip(self.space.names, moved, strict=True))

    def ascend(
        self, batch: MicroBatch, criterion: Criterion, names: list[str], *, frozen: bool
    ) -> Ascent:
        """The gradients of a micro-batch with respect to the weights of these names."""
        weights = {name: self.trainable[name].view_as(self.trainable[name]) for name in names}
        layout = [(self.clean_branch, len(batch.images))]
        with torch.enable_grad(), route(self.bare, layout):
            outputs = self.substitution.run(
                weights, lambda: self.silent(batch.images), frozen=frozen
            )
        if not self.checked:
            refuse_reentrant(first_tensor(outputs))
        return gradients_of(outputs, batch.images, batch.labels, criterion, weights)


@dataclass
class Term:
    """One part of a round's loss."""

    loss: Tensor
    """With its weight."""
    seen: Tensor | None
    """Detached, without; of the images alone where there are copies of them."""
    images: int
    outputs: Any
    moved: bool
    number: int | None
    """Number of the micro-batch, where it is one of the round's."""


class RoundState:
    """What a schedule sees of a round (`schedules.Round`), and what its loss is made of.

    Args:
        passes: of the model.
        micro_batches: at least one.
        criterion: of the training loss.
        progress: share of training done.
        fraction: factor on the round's loss.
        due: what was kept for this round.
        centred: whether directions are a micro-batch's own part.
        weight: of passes at moved weights; None: by the number of images.
        share: of the micro-batches.
        beside: the copies are earlier images, beside the round's own.
        of_rank: ranks draw their own random numbers.
        only_ascents: passes at the weights themselves are the schedule's ascents: they move the
            running statistics, and give the gradient of the clean loss where it has a weight.
    """

    def __init__(
        self,
        passes: Passes,
        micro_batches: list[MicroBatch],
        criterion: Criterion,
        progress: float,
        fraction: float,
        due: list[Kept],
        centred: bool,
        weight: float | None,
        share: float,
        beside: bool,
        of_rank: bool,
        only_ascents: bool,
    ) -> None:
        self.micro_batches = micro_batches
        self.criterion = criterion
        self.progress = progress
        self.fraction = fraction
        self.due = due
        self.centred = centred
        self.weight = weight
        self.share = share
        self.beside = beside
        self.future: list[MicroBatch] = []
        self.copies: list[Copy] = []
        self.terms: list[Term] = []
        self.tapped: dict[int, Kept] = {}
        """Kept gradients by the number of their micro-batch."""
        self.ascents: dict[int, Ascent] = {}
        """Likewise."""
        self.autocast = AutocastState(micro_batches[0].images.device)
        self.factor: Tensor | None = None
        """What the backward began with, 0-dim: the scale of a GradScaler, say."""
        self.began = False
        """Whether the model has been called, as it is wrapped."""
        self.has_clean_pass = False
        self.compute = 0.0
        """Beside that of the clean passes."""
        self.clean_compute = 0.0
        self.trained = 0
        """Images, copies included."""
        self._passes = passes
        self._of_rank = of_rank
        self._only_ascents = only_ascents

    # -- for the schedule ----------------------------------------------------------------------

    @property
    def taken(self) -> list[Kept]:
        """The own gradient of each micro-batch."""
        return [self.tapped[batch.number] for batch in self.micro_batches]

    def ascend(self, batches: list[MicroBatch]) -> list[Kept]:
        """Gradients of these micro-batches at the present weights."""
        passes, space = self._passes, self._passes.space
        later = self.factor is not None  # after the backward: of images that come later
        mixes = self._only_ascents and not later and self.weight != 1
        names = list(passes.trainable) if mixes else space.names
        found = []
        for batch in batches:
            # The caller's random stream is not to know of passes that are none of its own.
            with self._stream(batch, 2) if later else nullcontext():
                frozen = not self._only_ascents
                ascent = passes.ascend(batch, self.criterion, names, frozen=frozen)
            self.compute += len(batch.images)
            vector = space.vector(
                [ascent.gradients[name] for name in space.names],
                passes.attack.dtype if later else torch.float32,
            )
            kept = Kept(vector, len(batch.images), torch.ones((), device=space.device))
            if not later:
                self.ascents[batch.number] = ascent
                # An overflow is no direction.
                kept.gradient = torch.where(is_finite(kept), vector, 0.0)
            found.append(kept)
        return found

    def own_parts(self) -> list[Kept]:
        """The gradients of all micro-batches, without their mean over all ranks."""
        found, total = self.ascend(self.micro_batches), self._passes.space.total()
        if self.fraction:
            for kept in found:
                add_to(total, kept)
        if self._passes.group is not None:
            dist.all_reduce(total, group=self._passes.group)
        mean = mean_of(total)
        return [Kept(centred(kept, mean), kept.count) for kept in found]

    def noise(self, batch: MicroBatch) -> Tensor:
        """A normal random vector: its direction in every layer is uniform."""
        space = self._passes.space
        return torch.randn(space.size, generator=self._generator(batch, 1), device=space.device)

    def _generator(self, batch: MicroBatch, draw: int) -> torch.Generator:
        device, of_rank = self._passes.space.device, self._of_rank
        return self._passes.streams.generator(batch.number, draw, device, of_rank=of_rank)

    def _stream(self, batch: MicroBatch, draw: int) -> Any:
        return forked_rng(self._generator(batch, draw))

    # -- for the adversary ---------------------------------------------------------------------

    def clean_factors(self) -> list[tuple[MicroBatch, float]]:
        """The clean part of the loss: its micro-batches and their weight in the total."""
        with_copy = {copy.of.number for copy in self.copies if copy.of is not None}
        total = sum(len(batch.images) for batch in self.micro_batches)
        factors = []
        for batch in self.micro_batches:
            rest = 1.0
            if self.beside:
                rest -= self._weight_beside()
            elif batch.number in with_copy:
                rest -= self._weight_of_its_own()
            factors.append((batch, rest * len(batch.images) / total))
        return [(batch, factor) for batch, factor in factors if factor > 0]

    def copy_factors(self) -> list[tuple[Copy, float]]:
        """The passes at moved weights and their weight in the total."""
        if self.beside:
            # Over the step the chosen ones have their weight together; which of them fall into
            # this round must not matter.
            factor = self._weight_beside() / self.share / sum(kept.count for kept in self.due)
        else:
            total = sum(len(batch.images) for batch in self.micro_batches)
            factor = self._weight_of_its_own() / total
        return [(copy, factor * len(copy.images)) for copy in self.copies]

    def _weight_of_its_own(self) -> float:
        return 1.0 if self.weight is None else self.weight

    def _weight_beside(self) -> float:
        """Weight of copies that are other images than the round's; by their number if None."""
        return self.share / (1 + self.share) if self.weight is None else self.weight

    def take_gradients(self) -> None:
        """The backward has run: what it left in the taps has a known scale now.

        Raises:
            RuntimeError: it has not.
        """
        if self.factor is None:
            raise RuntimeError(
                "collect() found no gradient: call loss.backward() before collect()."
            )
        for kept in self.tapped.values():
            assert kept.scale is not None
            kept.scale = kept.scale * self.factor

    def mean_loss(self, *, moved: bool) -> Tensor | None:
        """Mean loss over the images of one kind, or None where there are none."""
        pairs = [(term.images, term.seen) for term in self.terms if term.moved == moved]
        if not moved and not pairs:
            batches = [b for b in self.micro_batches if b.number in self.ascents]
            pairs = [(len(b.images), self.ascents[b.number].loss) for b in batches]
        total = sum(count for count, _ in pairs)
        weighted = [loss * (count / total) for count, loss in pairs if loss is not None]
        return torch.stack(weighted).sum() if weighted else None

    def outputs(self) -> Any:
        """Those for the images given: of the clean passes, or the next best ones."""
        seen: dict[int, Any] = {number: ascent.outputs for number, ascent in self.ascents.items()}
        for term in self.terms:
            if term.number is not None:
                seen.setdefault(term.number, term.outputs)
        parts = [seen[batch.number] for batch in self.micro_batches]
        return joined(parts, [len(batch.images) for batch in self.micro_batches])
