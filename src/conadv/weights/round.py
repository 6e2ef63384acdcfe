"""One round, a loss() and its collect(): what its schedule sees, and what its loss is made of."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from conadv._tree import joined
from conadv.adversary import Adversary
from conadv.attack import Criterion
from conadv.attack.forward import AutocastState, forked_rng
from conadv.branches.buffers import writes_buffers
from conadv.weights.passes import Ascent, Passes
from conadv.weights.pending import Kept, add_to, is_finite, mean_of, own_part
from conadv.weights.schedule import Copy, MicroBatch


@dataclass
class Term:
    """One part of a round's loss."""

    loss: Tensor
    """The loss with its weight."""
    seen: Tensor | None
    """The loss detached, without its weight; of the images alone where there are copies of them."""
    images: int
    outputs: Any
    moved: bool
    number: int | None
    """Number of the micro-batch, where it is one of the round's."""


@dataclass(eq=False)
class RoundState:
    """What a schedule sees of a round (`schedule.Round`), and what its loss is made of."""

    passes: Passes
    of_images: Adversary
    """Makes the clean part of the loss."""
    alone: bool
    """Whether that makes no copies of images."""
    micro_batches: list[MicroBatch]
    """All of the round, at least one."""
    criterion: Criterion
    """Of the training loss."""
    step: int
    """How many steps of the optimizer came before."""
    progress: float
    fraction: float
    """Factor on the round's loss."""
    due: list[Kept]
    """What was kept for this round."""
    future: list[MicroBatch]
    """Of the round that lookahead was shown."""
    centred: bool
    """Whether directions are a micro-batch's own part."""
    weight: float | None
    """Of passes at moved weights; None: by the number of images."""
    share: float
    """Of the micro-batches."""
    beside: bool
    """Whether the copies are earlier images, beside the round's own."""
    takes: bool
    """Whether the training passes give each micro-batch's own gradient."""
    ascends: bool
    """Whether the images' directions come from ascents."""
    only_ascents: bool
    """Whether passes at the weights themselves are the ascents: they move the running statistics,
    and give the gradient of the clean loss where it has a weight."""
    of_rank: bool
    """Whether ranks draw their own random numbers."""
    copies: list[Copy] = field(default_factory=list)
    terms: list[Term] = field(default_factory=list)
    tapped: dict[int, Kept] = field(default_factory=dict)
    """Kept gradients by the number of their micro-batch."""
    ascents: dict[int, Ascent] = field(default_factory=dict)
    """Ascents by the number of their micro-batch."""
    factor: Tensor | None = None
    """What the backward began with, 0-dim: the scale of a GradScaler, say."""
    began: bool = False
    """Whether the model has been called, as it is wrapped."""
    has_clean_pass: bool = False
    compute: float = 0.0
    """Beside that of the clean passes."""
    clean_compute: float = 0.0
    trained: int = 0
    """Images, copies included."""

    def __post_init__(self) -> None:
        """Remember under which autocast setting the round trains."""
        self.autocast = AutocastState(self.micro_batches[0].images.device)

    # -- for the schedule ----------------------------------------------------------------------

    @property
    def taken(self) -> list[Kept]:
        """The own gradient of each micro-batch."""
        return [self.tapped[batch.number] for batch in self.micro_batches]

    def ascend(self, batches: list[MicroBatch], *, later: bool = False) -> list[Kept]:
        """Gradients of these micro-batches, or those of a later round, at the present weights."""
        mixes = self.only_ascents and not later and self.weight != 1
        names = list(self.passes.trainable) if mixes else self.passes.space.names
        [idle] = self.passes.in_step.missing(len(batches))
        # Weights that are cast on another stream are not for the training pass to find.
        cache = False if self.passes.streams.is_beside(self.passes.space.device) else None
        with self.autocast(cache) if later else nullcontext():
            found = [self._ascend(batch, names, later) for batch in batches]
            for _ in range(idle):
                self.aside(lambda batch: self._pass(batch, names, frozen=True))
        return found

    def _ascend(self, batch: MicroBatch, names: list[str], later: bool) -> Kept:
        space = self.passes.space
        # The caller's random stream is not to know of passes that are none of its own.
        with self._stream(batch, 2) if later else nullcontext():
            ascent = self._pass(batch, names, frozen=not self.only_ascents)
        vector = space.vector(
            [ascent.gradients[name] for name in space.names],
            self.passes.attack.dtype if later else torch.float32,
        )
        kept = Kept(vector, len(batch.images), torch.ones((), device=space.device))
        if not later:
            self.ascents[batch.number] = ascent
            finite = is_finite(kept)  # an overflow is no direction, and in no mean
            kept.gradient, kept.scale = torch.where(finite, vector, 0.0), finite.float()
        return kept

    def _pass(self, batch: MicroBatch, names: list[str], *, frozen: bool) -> Ascent:
        self.compute += len(batch.images)
        return self.passes.ascend(batch.images, batch.labels, self.criterion, names, frozen=frozen)

    def own_parts(self) -> list[Kept]:
        """The gradients of all micro-batches, without their mean over all ranks."""
        found, total = self.ascend(self.micro_batches), self.passes.space.total()
        if self.fraction:
            for kept in found:
                add_to(total, kept)
        if self.passes.group is not None:
            dist.all_reduce(total, group=self.passes.group)
        mean = mean_of(total)
        return [Kept(own_part(kept, mean), kept.count) for kept in found]

    def noise(self, batch: MicroBatch) -> Tensor:
        """A normal random vector: its direction in every layer is uniform."""
        space = self.passes.space
        return torch.randn(space.size, generator=self._generator(batch, 1), device=space.device)

    def side_stream(self) -> torch.cuda.Stream | None:
        """The stream for ascents beside the training pass, or None on a CPU.

        None too where both passes would write to buffers, or wait for other ranks.
        """
        passes = self.passes
        moves = self.only_ascents and next(passes.bare.buffers(), None) is not None
        if moves or writes_buffers(passes.bare) or passes.in_step.needed:
            return None
        return passes.streams.side(passes.space.device)

    def _generator(self, batch: MicroBatch, draw: int) -> torch.Generator:
        device, of_rank = self.passes.space.device, self.of_rank
        return self.passes.streams.generator(batch.number, draw, device, of_rank=of_rank)

    def _stream(self, batch: MicroBatch, draw: int) -> AbstractContextManager[None]:
        return forked_rng(self._generator(batch, draw))

    # -- for the adversary ---------------------------------------------------------------------

    def aside(self, run: Callable[[MicroBatch], object]) -> None:
        """Run a pass over the first micro-batch that only other ranks are to know of."""
        with self._stream(self.micro_batches[0], 3):
            run(self.micro_batches[0])

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
