"""What one adversarial step is: pixel units, norm, projection, targets, random start."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from conadv import _forward, geometry
from conadv._nested import first_tensor

Criterion = Callable[[Any, Any], Tensor]


class Perturbed(NamedTuple):
    """Adversarial copies and how much of the gradient said nothing."""

    images: Tensor
    """Detached copies, shape and dtype of the images given."""
    zero_share: Tensor
    """Share of input-gradient values that were zero or NaN in the last step, 0-dim."""


@dataclass(frozen=True)
class Attack:
    """Projected gradient ascent on the loss within a norm ball around each image.

    One step of size epsilon is the fast gradient sign method (Goodfellow et al., 2015), several
    are PGD (Madry et al., 2018); the paper's attack is one step, towards a random wrong class,
    from a random start with probability 0.8.

    Args:
        epsilon: radius in pixel units of images on [0, 1]: 4/255 means four grey levels. For
            ``norm="l2"`` the Euclidean norm over all values of one image, in the same units.
        mean: per-channel mean that was subtracted from the [0, 1] image, or one number, or None
            if the images are not standardised.
        std: per-channel standard deviation that the image was divided by, likewise.
        norm: ``"linf"`` or ``"l2"``.
        steps: number of gradient steps.
        step_size: size of one step in pixel units; None means epsilon for one step and
            2.5 * epsilon / steps for several, as in Madry et al.
        random_start: probability, per image, of starting from a random point of the ball.
        target: None climbs the loss of the true label; ``"random"`` descends towards a random
            wrong class.
        branch: normalisation branch the attack goes through; None lets the schedule choose
            (its adversarial branch; recycled: the clean one).
        mode: ``"train"`` attacks the model as it stands in the training step (batch statistics,
            dropout), ``"eval"`` with running statistics and without dropout. None means train.
            Users of other libraries saw half a point of accuracy between the two. Neither touches
            the running statistics.
        pixel_range: the range valid pixels lie in, or None for inputs without one (embeddings).

    Raises:
        ValueError: an argument outside the values above; the message says what is allowed.

    Example:
        >>> attack = Attack(epsilon=4 / 255, mean=(0.5,), std=(0.25,))
        >>> copies = attack(model, images, labels, torch.nn.functional.cross_entropy)
    """

    epsilon: float
    mean: Sequence[float] | float | None = None
    std: Sequence[float] | float | None = None
    norm: geometry.Norm = "linf"
    steps: int = 1
    step_size: float | None = None
    random_start: float = 0.0
    target: Literal["random"] | None = None
    branch: str | None = None
    mode: Literal["train", "eval"] | None = None
    pixel_range: tuple[float, float] | None = (0.0, 1.0)

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            value = getattr(self, name)
            if isinstance(value, Tensor):
                value = value.flatten().tolist()
            if value is not None and not isinstance(value, int | float):
                value = tuple(float(v) for v in value)
            object.__setattr__(self, name, value)
        if self.norm not in geometry.NORMS:
            raise ValueError(f"norm={self.norm!r}: allowed are {', '.join(geometry.NORMS)}.")
        if not (math.isfinite(self.epsilon) and self.epsilon >= 0):
            raise ValueError(f"epsilon={self.epsilon!r}: give a finite number, 0 or more.")
        self._check_units()
        if self.steps < 1:
            raise ValueError(f"steps={self.steps!r}: an attack takes at least one step.")
        if self.step_size is not None and not self.step_size > 0:
            raise ValueError(f"step_size={self.step_size!r}: give a number above 0, or None.")
        if not 0 <= self.random_start <= 1:
            raise ValueError(f"random_start={self.random_start!r}: a probability, from 0 to 1.")
        if self.target not in (None, "random"):
            raise ValueError(f"target={self.target!r}: allowed are None and 'random'.")
        if self.mode not in (None, "train", "eval"):
            raise ValueError(f"mode={self.mode!r}: allowed are None, 'train' and 'eval'.")
        if (self.mean is None) != (self.std is None):
            raise ValueError("Give mean and std together, or neither for unstandardised images.")
        if isinstance(self.mean, tuple) and isinstance(self.std, tuple):
            if len(self.mean) != len(self.std):
                raise ValueError(
                    f"mean has {len(self.mean)} values and std {len(self.std)}: give one per "
                    "channel in both."
                )
        if self.std is not None:
            values = self.std if isinstance(self.std, tuple) else (self.std,)
            if not all(v > 0 and math.isfinite(v) for v in values):
                raise ValueError(f"std={self.std!r}: every channel's must be above 0.")

    def _check_units(self) -> None:
        if self.pixel_range is None:
            return
        low, high = self.pixel_range
        if not low < high:
            raise ValueError(f"pixel_range={self.pixel_range!r}: give (low, high), low < high.")
        for name, value in (("epsilon", self.epsilon), ("step_size", self.step_size)):
            if value is not None and self.norm == "linf" and value > high - low:
                raise ValueError(
                    f"{name}={value:g} is wider than the pixel range {low:g} to {high:g}. It is in "
                    f"pixel units, not grey levels: did you mean {name}={value:g}/255?"
                )

    @property
    def resolved_step_size(self) -> float:
        """Size of one step in pixel units, the default filled in."""
        if self.step_size is not None:
            return self.step_size
        return self.epsilon if self.steps == 1 else 2.5 * self.epsilon / self.steps

    # -- pixel units ---------------------------------------------------------------------------

    def _channel(self, name: Literal["mean", "std"], images: Tensor) -> Tensor | float:
        value = getattr(self, name)
        if value is None:
            return 0.0 if name == "mean" else 1.0
        if not isinstance(value, tuple):
            return float(value)
        if images.ndim < 2 or images.shape[1] != len(value):
            channels = images.shape[1] if images.ndim > 1 else "no"
            raise ValueError(
                f"{name} has {len(value)} values, but the images have {channels} channels "
                f"(shape {tuple(images.shape)}): give one value per channel."
            )
        return _channel_tensor(value, images.ndim, images.device)

    def _rebuild(self, origin: Tensor, delta: Tensor, dtype: torch.dtype) -> Tensor:
        """Project pixel perturbations `delta` around float32 `origin` and add them."""
        mean, std = self._channel("mean", origin), self._channel("std", origin)
        if self.pixel_range is None:
            unbounded = delta.new_tensor(math.inf)
            delta = geometry.project(delta, self.epsilon, self.norm, -unbounded, unbounded)
            return (origin + delta / std).to(dtype)
        low, high = self.pixel_range
        pixels = origin * std + mean
        # An image already outside the range by rounding (resizing, JPEG) may stay where it is.
        delta = geometry.project(
            delta,
            self.epsilon,
            self.norm,
            torch.clamp(low - pixels, max=0),
            torch.clamp(high - pixels, min=0),
        )
        # Rounding of (origin + delta / std) must not leave the range: clamp once more, in the
        # units of the result.
        floor = torch.minimum(origin, torch.as_tensor((low - mean) / std, device=origin.device))
        roof = torch.maximum(origin, torch.as_tensor((high - mean) / std, device=origin.device))
        return torch.minimum(torch.maximum(origin + delta / std, floor), roof).to(dtype)

    # -- the pieces of an attack ---------------------------------------------------------------

    def start(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """The point each image's attack starts from: itself, or a random point of its ball."""
        if self.random_start == 0:
            return images.detach()
        origin = images.detach().float()
        delta = geometry.random_point(origin, self.epsilon, self.norm, generator)
        if self.random_start < 1:
            draw = torch.rand(len(origin), generator=generator, device=origin.device)
            chosen = (draw < self.random_start).reshape(-1, *([1] * (origin.ndim - 1)))
            delta = delta * chosen
        return self._rebuild(origin, delta, images.dtype)

    def ascend(self, images: Tensor, origin: Tensor, gradient: Tensor) -> Perturbed:
        """One step along `gradient` from `images`, projected around `origin`.

        Args:
            images: current iterate, standardised, shape (N, C, ...).
            origin: the clean images, same shape.
            gradient: of the quantity to *increase* with respect to `images`; any positive factor
                on it (a loss scale, a mean over images) changes nothing.
        """
        clean = origin.detach().float()
        std = self._channel("std", clean)
        gradient = gradient.detach().float()
        zero_share = ((gradient == 0) | gradient.isnan()).float().mean()
        if self.norm == "l2":
            gradient = gradient / std  # d loss / d pixel
        delta = self.resolved_step_size * geometry.steepest(gradient, self.norm)
        if images is not origin:
            delta = delta + (images.detach().float() - clean) * std
        return Perturbed(self._rebuild(clean, delta, images.dtype), zero_share)

    def noise(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Random-sign noise (L2: a random direction) of size epsilon: the control of an attack."""
        origin = images.detach().float()
        delta = self.epsilon * geometry.random_direction(origin, self.norm, generator)
        return self._rebuild(origin, delta, images.dtype)

    def perturb(
        self,
        forward: _forward.BareForward,
        images: Tensor,
        labels: Any,
        criterion: Criterion,
        generator: torch.Generator,
        *,
        branch: str | None = None,
    ) -> Perturbed:
        """Run the whole attack and say how much of the gradient was zero. See `__call__`."""
        iterate = self.start(images, generator)
        goal = labels
        perturbed = Perturbed(iterate, torch.zeros((), device=images.device))
        with forward.attacking(self.branch or branch, self.mode or "train", generator):
            for step in range(self.steps):
                leaf = iterate.detach().requires_grad_()
                outputs = forward(leaf)
                if step == 0 and self.target == "random":
                    goal = _random_wrong_labels(labels, outputs, generator)
                scaled, restore = _forward.scale_output_gradient(outputs, images)
                loss = criterion(scaled, goal)
                (gradient,) = torch.autograd.grad(loss * restore, leaf)
                if self.target is not None:
                    gradient = -gradient
                at_origin = step == 0 and self.random_start == 0
                perturbed = self.ascend(images if at_origin else iterate, images, gradient)
                iterate = perturbed.images
        return perturbed

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Any,
        criterion: Criterion,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Adversarial copies of `images`, detached, same shape, dtype and memory format.

        Leaves running statistics, parameter gradients, train/eval flags and the global random
        stream as they were. DDP and compile wrappers are looked through: an attack neither
        communicates nor touches the reducer.

        Args:
            model: maps images (N, C, H, W) to whatever `criterion` reads.
            images: standardised float images, shape (N, C, H, W).
            labels: integer or soft labels; anything `criterion` takes.
            criterion: ``criterion(outputs, labels)`` -> scalar loss.
            generator: source of random starts and targets, on the images' device; None uses a
                fixed seed.

        Raises:
            ValueError: images are not floating point, or mean/std do not fit their channels.
        """
        check_images(images)
        if generator is None:
            generator = torch.Generator(images.device).manual_seed(0)
        forward = _forward.BareForward(model)
        return self.perturb(forward, images, labels, criterion, generator).images


def check_images(images: Tensor) -> None:
    """Raise ValueError unless `images` is a non-empty floating-point batch."""
    if not isinstance(images, Tensor) or not images.is_floating_point():
        given = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(
            f"images are {given}: give a floating-point tensor, standardised as the model sees "
            "it (uint8 images: divide by 255, subtract the mean, divide by the std)."
        )
    if images.ndim < 2 or images.shape[0] == 0:
        raise ValueError(f"images have shape {tuple(images.shape)}: give (N, ...) with N >= 1.")


@lru_cache(maxsize=64)
def _channel_tensor(values: tuple[float, ...], ndim: int, device: torch.device) -> Tensor:
    return torch.tensor(values, device=device).reshape(1, -1, *([1] * (ndim - 2)))


def _random_wrong_labels(labels: Any, outputs: Any, generator: torch.Generator) -> Tensor:
    logits = first_tensor(outputs)
    if not isinstance(labels, Tensor) or logits is None or logits.ndim < 2:
        raise ValueError(
            "target='random' needs labels as one tensor and outputs of shape (N, classes): "
            "use target=None with this criterion."
        )
    classes = logits.shape[1]
    if classes < 2:
        raise ValueError("target='random' needs at least two classes: use target=None.")
    soft = labels.is_floating_point() and labels.ndim > 1
    hard = labels.argmax(dim=1) if soft else labels
    shift = torch.randint(
        1, classes, hard.shape, generator=generator, device=hard.device, dtype=torch.int64
    )
    wrong = (hard.to(torch.int64) + shift) % classes
    if soft:
        return nn.functional.one_hot(wrong, classes).to(labels.dtype)
    return wrong.to(labels.dtype)
