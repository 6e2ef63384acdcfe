"""One round of an adversary: a loss() and its collect()."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from conadv._numbers import mixed_seed
from conadv.adversary.mixing import Part
from conadv.attack import Attack, Criterion, Perturbed
from conadv.attack.forward import AutocastState, BareForward
from conadv.attack.layer import Beside, Layer
from conadv.branches.buffers import writes_buffers
from conadv.branches.routing import Layout, Router
from conadv.schedules import Copies
from conadv.schedules.facts import ATTACK_STEP_COMPUTE


@dataclass(frozen=True)
class Diagnostics:
    """What happened in one round. Tensors stay on the device: reading them is your choice."""

    clean_loss: Tensor | None = None
    """Mean loss of the images given (and of further views), unweighted, 0-dim."""
    adversarial_loss: Tensor | None = None
    """Mean loss of the adversarial copies, unweighted, 0-dim; None where there were none."""
    zero_share: Tensor | None = None
    """Share of input-gradient values that were exactly zero or NaN, in [0, 1], 0-dim."""
    nan_share: Tensor | None = None
    """Share of them that were NaN, in [0, 1], 0-dim."""
    agreement: Tensor | None = None
    """Mean cosine between the copies' perturbations and fresh ones, in [-1, 1], 0-dim."""
    images: int = 0
    """Images trained on, copies included."""
    compute: float = 0.0
    """Cost in units of one forward and backward over one image."""
    outputs: Any = None
    """The model's outputs for the images given, detached: training accuracy without a pass."""
    perturbed_loss: Tensor | None = None
    """Mean loss at moved weights (`conadv.WeightAdversary`), unweighted, 0-dim; None: no such."""


class Mixed(NamedTuple):
    """A batch to train on: images and their adversarial copies."""

    images: Any
    """The images given, further views, then the copies, shape (N, C, H, W); with
    ``Attack(at=...)`` the inputs of all rows, in the form given."""
    labels: Any
    """Labels of all rows, in the form of the labels given."""
    clean_rows: int
    """How many of the first rows are the images given."""


@dataclass(frozen=True)
class Again:
    """How to take back a round that was collected by itself."""

    given: Any
    """The images of the round, the very tensor or structure."""
    steps: int
    """How many optimizer steps had been finished."""
    schedule: dict[str, Any]
    rounds: int
    images: int
    ahead: Any


class Streams:
    """Where a round's random numbers come from and where its side work runs.

    Args:
        seed: of the random numbers.
        beside: whether work may run beside the training pass.
    """

    def __init__(self, seed: int, *, beside: bool = True) -> None:
        self.seed = seed
        self._beside = beside
        self._side: torch.cuda.Stream | None = None

    def generator(
        self, round_number: int, draw: int, device: torch.device, *, of_rank: bool
    ) -> torch.Generator:
        """A stream that is a function of (seed, rank, round, draw): nothing to save but counts.

        Args:
            round_number: the round.
            draw: how often the round has drawn before.
            device: of the generator.
            of_rank: ranks draw differently; False: the same on all.
        """
        rank = 0
        if of_rank and torch.distributed.is_available() and torch.distributed.is_initialized():
            rank = torch.distributed.get_rank()
        seed = mixed_seed(self.seed, rank, round_number, draw)
        return torch.Generator(device).manual_seed(seed)

    def side(self, device: torch.device) -> torch.cuda.Stream | None:
        """A CUDA stream beside the current one, always the same; None where there is none."""
        if device.type != "cuda" or not self._beside:
            return None
        if self._side is None or self._side.device != device:
            self._side = torch.cuda.Stream(device)
        return self._side

    def is_beside(self, device: torch.device) -> bool:
        """Whether work is being issued to the side stream now."""
        return self._side is not None and self._side == torch.cuda.current_stream(device)


@dataclass(eq=False)
class RoundState:
    """What a schedule sees of a round (`schedules.Round`), and what its diagnostics are made of."""

    _forward: BareForward
    attack: Attack
    _streams: Streams
    _number: int
    _of_rank: bool
    images: Tensor
    labels: Any
    criterion: Criterion
    progress: float
    keep_origins: bool
    future: tuple[Tensor, Any] | None
    given: Any
    """The very tensor or structure that the loop handed over."""
    copies: list[Copies] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    clean_gradient: Tensor | None = None
    copy_gradients: list[Tensor | None] = field(default_factory=list)
    zero_share: Tensor | None = None
    nan_share: Tensor | None = None
    compute: float = 0.0
    outputs: Any = None
    unused: list[nn.Parameter] = field(default_factory=list)
    """Those that DDP knows to be unused: a gradient in the backward would be one too many."""
    backward_ran: bool = False
    _perturbed: Layer | None = None
    _routed: list[tuple[Router, list[Layout]]] = field(default_factory=list)
    _draws: int = 0

    def __post_init__(self) -> None:
        self.autocast = AutocastState(self.images.device)

    # -- for the schedule ----------------------------------------------------------------------

    def perturb(self, images: Tensor, labels: Any) -> Perturbed:
        """Run the attack at the current weights."""
        self.compute += ATTACK_STEP_COMPUTE * self.attack.steps * len(images)
        generator = self._generator(images.device)
        # Weights that are cast on another stream are not for the training pass to find.
        cache = False if self._streams.is_beside(images.device) else None
        given = None
        if self._forward.layer is not None:
            given = Beside(*labels)
            labels = given.labels
        with self.autocast(cache):
            found = self.attack.perturb(
                self._forward, images, labels, self.criterion, generator, given=given
            )
        self.nan_share = found.nan_share
        return found._replace(seed=generator.initial_seed())

    def noise(self, images: Tensor) -> Tensor:
        """Random noise of the attack's size."""
        return self.attack.noise(images, self._generator(images.device))

    def draw_scales(self, count: int) -> Tensor | None:
        """Radii of so many new copies, as shares of epsilon, where each has its own."""
        if self.attack.epsilon_min is None:
            return None
        device = self.images.device
        return self.attack.draw_scales(count, self._generator(device), device)

    def side_stream(self) -> torch.cuda.Stream | None:
        """The stream for work beside the training pass, or None on a CPU.

        None too for an attack that reads running statistics, or puts buffers back: the training
        pass writes to them at the same time.
        """
        if self.attack.mode == "eval" or writes_buffers(self._forward.module):
            return None
        return self._streams.side(self.images.device)

    def report_zero_share(self, share: Tensor, nans: Tensor | None = None) -> None:
        """Keep a zero-gradient share for the diagnostics."""
        self.zero_share = share
        self.nan_share = self.nan_share if nans is None else nans

    def _generator(self, device: torch.device) -> torch.Generator:
        self._draws += 1
        return self._streams.generator(self._number, self._draws, device, of_rank=self._of_rank)

    # -- for the adversary ---------------------------------------------------------------------

    @property
    def images_trained(self) -> int:
        """Images of all parts, copies included."""
        return sum(len(part.images) for part in self.parts)

    def began(self) -> None:
        """A backward pass through the loss has started."""
        self.backward_ran = True

    @property
    def has_gradients(self) -> bool:
        """Whether the backward left every input gradient that is wanted."""
        return all(p.gradient() is not None for p in self.parts if p.wants_gradient)

    def route(self, routers: Sequence[Router], layout: Sequence[tuple[str, int]]) -> None:
        """Send rows through their branches until `unroute`."""
        self._routed = [(router, router.enter(router.parse(layout))) for router in routers]

    def keep_adding(self, layer: Layer, point: Tensor, mask: Tensor | None) -> None:
        """Perturb the layer until `unroute`: checkpointed parts are computed again in backward."""
        self._perturbed = layer
        layer.enter(point, mask)

    def unroute(self) -> None:
        """End what `route` and `keep_adding` began."""
        perturbed, self._perturbed = self._perturbed, None
        if perturbed is not None:
            perturbed.leave(None)
        routed, self._routed = self._routed, []
        for router, block in routed:
            router.leave(block)

    def take_gradients(self) -> None:
        """Read the input gradients that the backward left, and let go of the leaves.

        Raises:
            RuntimeError: the backward has not run.
        """
        clean, *rest = self.parts
        self.clean_gradient = clean.gradient()
        if clean.wants_gradient and self.clean_gradient is None:
            raise RuntimeError(
                "collect() found no input gradient: call loss.backward() before collect(), and do "
                "not restrict it with inputs=."
            )
        self.copy_gradients = [part.gradient() for part in rest if part.adversarial]
        for part in self.parts:
            part.leaf = None
        for parameter in self.unused:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def count_nans(self) -> None:
        """Count them in the images' own gradient, where whoever used it has told nothing."""
        if self.nan_share is None and self.clean_gradient is not None:
            self.nan_share = self.clean_gradient.isnan().mean(dtype=torch.float32)

    def diagnostics(self) -> Diagnostics:
        """What is known of it before the backward pass."""
        return Diagnostics(
            clean_loss=self.mean_loss(adversarial=False),
            adversarial_loss=self.mean_loss(adversarial=True),
            zero_share=self.zero_share,
            images=self.images_trained,
            compute=self.compute,
            outputs=self.outputs,
        )

    def mean_loss(self, adversarial: bool) -> Tensor | None:
        """Mean loss over the images of one kind, or None where there are none, or no losses."""
        pairs = [
            (len(part.images), loss)
            for part, loss in zip(self.parts, self.losses, strict=bool(self.losses))
            if part.adversarial == adversarial
        ]
        if len(pairs) < 2:
            return pairs[0][1] if pairs else None
        total = sum(count for count, _ in pairs)
        weighted = [loss * (count / total) for count, loss in pairs]
        return sum(weighted[1:], start=weighted[0])

    def agreement(self) -> Tensor | None:
        """Mean cosine, in pixels, of the copies' perturbations and fresh ones at these weights.

        The fresh ones take the round's first random numbers again, so that measuring changes no
        run, and what was made in this very round agrees with itself.
        """
        cosines = []
        draws, self._draws = self._draws, 0
        for copies in self.copies:
            if copies.origins is None:
                continue
            fresh = self.perturb(copies.origins, copies.labels).images
            origins = copies.origins.float()
            pixels = self.attack._channel("std", origins)
            stale, new = (
                ((images.float() - origins) * pixels).flatten(1)
                for images in (copies.images, fresh)
            )
            cosines.append(nn.functional.cosine_similarity(stale, new))
        self._draws = draws
        return torch.cat(cosines).mean() if cosines else None
