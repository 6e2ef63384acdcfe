"""Old gradients: those of micro-batches that wait for a later step, without what all share."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from conadv._tree import map_tensors
from conadv.weights.space import WeightSpace


@dataclass
class Kept:
    """The gradient of one micro-batch."""

    gradient: Tensor | None
    """A vector of the space; None where the micro-batch was not chosen, or it is not finite."""
    count: int
    """Images of the micro-batch; 0 where the gradient was not finite."""
    scale: Tensor | None = None
    """What it is multiplied by, 0-dim, as long as its step is not over."""
    images: Tensor | None = None
    """The micro-batch itself, where it is to be trained on again."""
    labels: Any = None
    finish: Callable[[], None] | None = None
    """Waits for the mean of its step and takes it out, as long as that is on its way."""

    def direction(self) -> Tensor:
        """The gradient, when it is needed: until then its mean has time to travel."""
        if self.finish is not None:
            self.finish()
        assert self.gradient is not None
        return self.gradient


class Pending:
    """A queue of rounds: what each kept, until its turn comes `delay` rounds later.

    With `centred` the mean over all micro-batches of a step and over all ranks is subtracted when
    the step is over. Its all-reduce is started then, and waited for when a direction is needed:
    the optimizer's step lies in between, and with recycled the next clean passes do.

    Args:
        space: of the gradients.
        rounds: rounds of a step on this rank.
        delay: rounds until the turn of what is kept.
        centred: subtract the mean.
        dtype: of what is kept.
        group: the ranks that share a step, or None for one process.
    """

    def __init__(
        self,
        space: WeightSpace,
        rounds: int,
        delay: int,
        centred: bool,
        dtype: torch.dtype,
        group: dist.ProcessGroup | None,
    ) -> None:
        self.centred = centred
        self.dtype = dtype
        self._space = space
        self._rounds = rounds
        self._group = group
        self._queue: deque[list[Kept]] = deque([[] for _ in range(delay)])
        self.step = 0
        """Steps done."""
        self._round = 0
        """Rounds done of the present one."""
        self._total: Tensor | None = None
        """Sum of the step's gradients so far; the last number counts them."""
        self._over: _Over | None = None
        """The step before, as long as nobody needed what it kept."""
        self.waiting: Callable[[], AbstractContextManager[Any]] = nullcontext
        """Entered around waits for other ranks."""

    def due(self) -> list[Kept]:
        """What was kept for the round that begins; nothing of a step that is not over."""
        if self._over is not None:
            self._over.drop()
        due = self._queue[0] if self._queue else []
        return [] if any(kept.scale is not None and kept.finish is None for kept in due) else due

    def leave_out(self) -> None:
        """The loop left out the batch that what is due was kept for: those after it move up."""
        self.finish()
        if self._queue:
            self._queue.popleft()
            self._queue.append([])

    @torch.no_grad()
    def count(self, kept: Kept) -> None:
        """Take a micro-batch's gradient into the step's mean."""
        if self.centred:
            if self._total is None:
                self._total = self._space.total()
            add_to(self._total, kept)

    def end_round(self, kept: list[Kept], *, share_mean: bool = True) -> None:
        """The round's own turn is over; what it keeps queues up.

        Args:
            kept: for `delay` rounds later.
            share_mean: whether the ranks exchange the mean of a step that ends; the same on all.
        """
        self.finish()
        if self._queue:
            self._queue.popleft()
            self._queue.append(kept)
        self._round = (self._round + 1) % self._rounds
        if self._round == 0:
            self.step += 1
            total, self._total = self._total, None
            new = [kept for entry in self._queue for kept in entry if kept.scale is not None]
            for one in new:
                one.finish = self.finish
            if self.centred and share_mean and total is None:  # all ranks have to call
                total = self._space.total()
            self._over = _Over(new, total, self._group if share_mean else None)

    @torch.no_grad()
    def finish(self) -> None:
        """Wait for the mean and subtract it; gradients that are not finite are dropped."""
        if self._over is not None:
            with self.waiting():
                self._over.wait()
            self._over.finish(self.dtype)
            self._over = None

    # -- state ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that is kept: tensors, numbers, lists and dicts."""
        self.finish()
        return {
            "pending": [[self._entry(kept) for kept in entry] for entry in self._queue],
            "step": self.step,
            "round": self._round,
            "total": None if self._total is None else self._total.clone(),
        }

    def _entry(self, kept: Kept) -> dict[str, Any]:
        # By parameter, in its shape: a state does not depend on the layout in memory.
        gradient = None if kept.gradient is None else self._space.views(kept.gradient)
        return {
            "gradient": gradient,
            "count": kept.count,
            "scale": kept.scale,
            "images": kept.images,
            "labels": kept.labels,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            ValueError: it holds another number of rounds, or gradients of other parameters.
        """
        if len(state["pending"]) != len(self._queue):
            raise ValueError(
                f"The state holds gradients of {len(state['pending'])} rounds, here "
                f"{len(self._queue)} wait at a time: continue with the `rounds` and `tau` that "
                "the run began with."
            )
        if self._over is not None:
            self._over.wait()
        self._over = None
        self._queue = deque([[self._kept(e) for e in entry] for entry in state["pending"]])
        self.step = int(state.get("step", 0))  # one without it knows no turns
        self._round = int(state["round"])
        total = state["total"]
        self._total = None if total is None else total.to(self._space.device)

    def _kept(self, entry: dict[str, Any]) -> Kept:
        device, gradient = self._space.device, entry["gradient"]
        entry = map_tensors(lambda tensor: tensor.to(device), {**entry, "gradient": None})
        if gradient is not None:
            shapes = [tuple(g.shape) for g in gradient]
            own = [tuple(p.shape) for p in self._space.parameters]
            if shapes != own:
                raise ValueError(
                    f"The state holds gradients of {len(shapes)} parameters of other shapes than "
                    f"the {len(own)} here: continue with the model and the `parameters` that the "
                    "run began with."
                )
            entry["gradient"] = self._space.vector(gradient, self.dtype)
        return Kept(**entry)


class _Over:
    """A step that is over: its mean is on its way."""

    def __init__(
        self, kept: list[Kept], total: Tensor | None, group: dist.ProcessGroup | None
    ) -> None:
        self._kept = kept
        self._total = total
        self._work: dist.Work | None = None
        if total is not None and group is not None:
            self._work = dist.all_reduce(total, group=group, async_op=True)
        self._finite: Tensor | None = None
        self._copied: torch.cuda.Event | None = None
        if kept:
            flags = torch.stack([is_finite(one) for one in kept])
            self._finite = flags.to("cpu", non_blocking=True)
            if flags.is_cuda:
                self._copied = torch.cuda.Event()
                self._copied.record()

    def wait(self) -> None:
        if self._work is not None:
            self._work.wait()

    def drop(self) -> None:
        """Drop gradients that are not finite."""
        if self._finite is None:
            return
        if self._copied is not None:
            self._copied.synchronize()  # the optimizer's step, which is queued behind it, goes on
        for kept, finite in zip(self._kept, self._finite.tolist(), strict=True):
            if not finite:
                kept.gradient, kept.images, kept.labels, kept.count = None, None, None, 0
                kept.scale = kept.finish = None
        self._finite = None

    def finish(self, dtype: torch.dtype) -> None:
        self.drop()
        mean = None if self._total is None else mean_of(self._total)
        for kept in self._kept:
            if kept.gradient is not None:
                kept.gradient = centred(kept, mean).to(dtype)
                kept.scale = kept.finish = None


def is_finite(kept: Kept) -> Tensor:
    """Whether all of a gradient is a number, 0-dim; nothing waits for the device."""
    assert kept.gradient is not None and kept.scale is not None
    norm = torch.linalg.vector_norm(kept.gradient, dtype=torch.float32)
    usable: Tensor = norm.isfinite() & kept.scale.isfinite() & (kept.scale != 0)
    return usable


def add_to(total: Tensor, kept: Kept) -> None:
    """Add a finite gradient, its scale divided out, to the sum and to the count behind it."""
    assert kept.gradient is not None
    assert kept.scale is not None
    finite = is_finite(kept)
    total[:-1] += torch.where(finite, kept.gradient.float() / kept.scale, 0.0)
    total[-1] += finite


def mean_of(total: Tensor) -> Tensor:
    """The mean; zeros if there was nothing."""
    mean: Tensor = total[:-1] / total[-1].clamp(min=1)
    return mean


def centred(kept: Kept, mean: Tensor | None) -> Tensor:
    """The direction of a micro-batch: its own part, where there is a mean."""
    assert kept.gradient is not None and kept.scale is not None
    if mean is None:
        return kept.gradient
    return kept.gradient.float() / kept.scale - mean


def own_part(kept: Kept, mean: Tensor) -> Tensor:
    """The direction of an ascent, whose scale is one, or zero where it was not finite."""
    assert kept.gradient is not None and kept.scale is not None
    return (kept.gradient - mean) * kept.scale
