"""What one adversarial step is: pixel units, norm, projection, targets, random start."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from conadv._tree import map_tensors
from conadv.attack import forward as _forward
from conadv.attack import geometry
from conadv.attack.checks import check_images, doubt_units, loss_of
from conadv.attack.fp16 import lift_output_gradient
from conadv.attack.layer import Beside, beside, masked
from conadv.attack.pixels import channel_tensor, ordinary, towards, wide
from conadv.attack.settings import AttackSettings
from conadv.attack.targets import random_wrong_labels

__all__ = ["Attack", "Criterion", "Perturbed", "check_images"]

Criterion = Callable[[Any, Any], Any]
"""(outputs, labels) -> mean loss, by itself, as (loss, logs) or in a dict as "loss"."""


class Perturbed(NamedTuple):
    """Adversarial copies and how much of the gradient said nothing."""

    images: Tensor
    """Detached copies, shape and dtype of the images given."""
    zero_share: Tensor
    """Share of input-gradient values that were zero or NaN in the last step, 0-dim."""
    direction: Tensor | None = None
    """Direction of the last step, of unit norm: for L-inf the signs, -1, 0 or 1."""
    nan_share: Tensor | None = None
    """Share of input-gradient values that were NaN in the last step, 0-dim."""
    seed: int | None = None
    """Seed of the random numbers, if nothing else was drawn from that stream before."""


@dataclass(frozen=True)
class Attack(AttackSettings):
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
        branch: normalisation branch the attack goes through, whatever `route` says around it.
            None lets the schedule choose (its adversarial branch; recycled: the clean one);
            without a schedule it is the model's first branch.
        mode: ``"train"`` attacks the model as it stands: in a training step with batch statistics
            and dropout (a layer in eval mode stays in eval mode). ``"eval"`` attacks it with
            running statistics and without dropout. None means train. Users of other libraries
            saw half a point of accuracy between the two. Neither touches the running statistics.
        pixel_range: the range valid pixels lie in, or None for inputs without one (embeddings).
        epsilon_min: each copy's radius is drawn uniformly between this and epsilon, and its steps
            shrink in proportion. None: epsilon for all.
        block_size: perturbations are constant on squares of so many pixels a side, which makes
            them of low frequency, as the coarse levels of pyramid adversarial training are
            (Herrmann et al., CVPR 2022). Only black or white pixels, which cannot go one way, may
            differ from their block.
        at: name of a layer, as in ``model.named_modules()``: the perturbation is of that layer's
            output (the embeddings of text, or any features), in its own units, and there is no
            pixel range. The inputs may be a tensor, a tuple or a dict; where a mask is 0 (their
            ``attention_mask``, or ``mask=``) nothing is perturbed.
        per: ``"sample"``: one ball for each sample. ``"token"``: one for each vector along the
            last dimension, for inputs without a pixel range. It makes no difference to L-inf,
            but for a random start, which is then drawn for each token.

    Raises:
        ValueError: an argument outside the values above; the message says what is allowed.

    Example:
        >>> attack = Attack(epsilon=4 / 255, mean=(0.5,), std=(0.25,))
        >>> copies = attack(model, images, labels, torch.nn.functional.cross_entropy)
    """

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
        return channel_tensor(value, images.ndim, images.device, images.dtype)

    def _radius(self, origin: Tensor, scales: Tensor | None) -> geometry.Radius:
        """Epsilon, or where images have radii of their own, (N, 1, ..., 1)."""
        if scales is None:
            return self.epsilon
        return geometry.per_sample(self.epsilon * scales, origin).to(origin.dtype)

    def _rebuild(
        self, origin: Tensor, delta: Tensor, dtype: torch.dtype, scales: Tensor | None
    ) -> Tensor:
        """Project pixel perturbations `delta` around the wide `origin` and add them."""
        mean, std = self._channel("mean", origin), self._channel("std", origin)
        radius = self._radius(origin, scales)
        if self.pixel_range is None:
            delta = geometry.project(delta, radius, self.norm)
            return towards(origin + delta / std, origin, dtype)
        low, high = self.pixel_range
        pixels = (origin * std).add_(mean)
        # An image already outside the range by rounding (resizing, JPEG) may stay where it is.
        delta = geometry.project(
            delta,
            radius,
            self.norm,
            (low - pixels).clamp_(max=0),
            (high - pixels).clamp_(min=0),
        )
        # Rounding of (origin + delta / std) must not leave the range: clamp once more, in the
        # units of the result.
        floor, roof = (low - mean) / std, (high - mean) / std
        bounded = origin + delta / std  # in the memory format of the first
        bounded.clamp_(origin.clamp(max=floor), origin.clamp(min=roof))
        return towards(bounded, origin, dtype)

    def _balls(self, values: Tensor) -> Tensor:
        """One row for each norm ball."""
        return values.flatten(0, -2) if self.per == "token" else values

    def check_images(self, images: Tensor) -> None:
        """Raise ValueError unless `images` are floating point and have what the attack needs."""
        check_images(images)
        self._channel("mean", images)
        self._channel("std", images)
        if self.block_size > 1 and images.ndim != 4:
            raise ValueError(
                f"block_size={self.block_size} with inputs of shape {tuple(images.shape)}: only "
                "images (N, C, H, W) have blocks of pixels. Use block_size=1."
            )

    def why_not_pixels(self, images: Tensor) -> str | None:
        """What is wrong with the units of `images`, or None. Waits for the device."""
        if self.pixel_range is None or self.epsilon == 0:
            return None
        origin = wide(images)
        pixels = origin * self._channel("std", origin) + self._channel("mean", origin)
        return doubt_units(origin, pixels, self.mean is not None, self.pixel_range)

    # -- the pieces of an attack ---------------------------------------------------------------

    def draw_scales(
        self, count: int, generator: torch.Generator, device: torch.device
    ) -> Tensor | None:
        """Each image's radius as a share of epsilon, shape (count,), in (0, 1]; None: all 1."""
        if self.epsilon_min is None or self.epsilon == 0:
            return None
        least = self.epsilon_min / self.epsilon
        # From 1 downwards: a radius of exactly 0 has no direction.
        return 1 - (1 - least) * torch.rand(count, generator=generator, device=device)

    def start(
        self, images: Tensor, generator: torch.Generator, scales: Tensor | None = None
    ) -> Tensor:
        """The point each image's attack starts from: itself, or a random point of its ball."""
        if self.random_start == 0:
            return images.detach()
        origin = self._balls(wide(images))
        radius = self._radius(origin, scales)
        delta = geometry.random_point(origin, radius, self.norm, generator, self.block_size)
        if self.random_start < 1:
            draw = torch.rand(len(origin), generator=generator, device=origin.device)
            chosen = (draw < self.random_start).reshape(-1, *([1] * (origin.ndim - 1)))
            delta = delta * chosen
        return self._rebuild(origin, delta, images.dtype, scales).view(images.shape)

    def ascend(
        self, images: Tensor, origin: Tensor, gradient: Tensor, scales: Tensor | None = None
    ) -> Perturbed:
        """One step along `gradient` from `images`, projected around `origin`.

        Args:
            images: current iterate, standardised, shape (N, C, ...).
            origin: the clean images, same shape.
            gradient: of the quantity to *increase* with respect to `images`; any positive factor
                on it (a loss scale, a mean over images) changes nothing.
            scales: of `draw_scales`, where images have radii of their own.
        """
        clean = self._balls(wide(origin))
        std = self._channel("std", clean)
        gradient = self._balls(wide(gradient))
        # Counted, not averaged: a mean of booleans is first a tensor of numbers. NaN is not zero.
        count, nans = gradient.numel(), torch.count_nonzero(gradient.isnan())
        zero_share = (count - torch.count_nonzero(gradient) + nans) / count
        nan_share = nans / count
        if self.norm == "l2":
            gradient = gradient / std  # d loss / d pixel
        direction = geometry.steepest(gradient, self.norm, self.block_size)
        delta = self.resolved_step_size * direction
        if scales is not None:
            delta = delta * geometry.per_sample(scales, delta).to(delta.dtype)
        if images is not origin:
            delta = delta + (self._balls(wide(images)) - clean) * std
        copies = self._rebuild(clean, delta, images.dtype, scales)
        if self.per == "token":
            copies, direction = copies.view(images.shape), direction.view(images.shape)
        return Perturbed(copies, zero_share, direction, nan_share)

    @property
    def is_one_sign_step(self) -> bool:
        """Whether its copies are a function of the images, their starts and a sign per value."""
        return self.norm == "linf" and self.steps == 1

    @property
    def draws_copies(self) -> bool:
        """Whether a copy depends on random numbers beside the gradient's."""
        return self.random_start > 0 or self.epsilon_min is not None

    def noise(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Random-sign noise (L2: a random direction) of size epsilon: the control of an attack."""
        self.check_images(images)
        origin = self._balls(wide(images))
        scales = self.draw_scales(len(images), generator, images.device)
        direction = geometry.random_direction(origin, self.norm, generator, self.block_size)
        delta = self._radius(origin, scales) * direction
        return self._rebuild(origin, delta, images.dtype, scales).view(images.shape)

    def perturb(
        self,
        forward: _forward.BareForward,
        images: Tensor,
        labels: Any,
        criterion: Criterion,
        generator: torch.Generator,
        *,
        branch: str | None = None,
        given: Beside | None = None,
    ) -> Perturbed:
        """Run the whole attack and say how much of the gradient was zero. See `__call__`.

        With `given`, `images` are perturbations of the layer's output for those inputs.
        """
        self.check_images(images)
        images, labels = map_tensors(ordinary, (images, labels))
        scales = self.draw_scales(len(images), generator, images.device)
        iterate = self.start(images, generator, scales)
        if given is not None:
            iterate = masked(iterate, given.mask)
        goal = labels
        perturbed = Perturbed(iterate, torch.zeros((), device=images.device))
        with forward.attacking(
            self.branch or branch, self.mode or "train", generator, images=len(images)
        ):
            for step in range(self.steps):
                leaf = iterate.detach().requires_grad_()
                with forward.adding(leaf, given):
                    outputs = forward(leaf, given)
                    if step == 0 and self.target == "random":
                        goal = random_wrong_labels(labels, outputs, generator)
                    lifted, factor = lift_output_gradient(outputs, images)
                    loss = loss_of(criterion(lifted, goal))
                    (gradient,) = torch.autograd.grad(loss * factor, leaf)
                if self.target is not None:
                    gradient = -gradient
                at_origin = step == 0 and self.random_start == 0
                point = images if at_origin else iterate
                perturbed = self.ascend(point, images, gradient, scales)
                iterate = perturbed.images
        return perturbed

    def __call__(
        self,
        model: nn.Module,
        images: Any,
        labels: Any,
        criterion: Criterion,
        *,
        generator: torch.Generator | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Adversarial copies of `images`, detached, same shape, dtype and memory format.

        With ``at=`` instead the perturbation of that layer's output, float32.

        Leaves running statistics, parameter gradients, train/eval flags and the global random
        stream as they were. DDP and compile wrappers are looked through: an attack neither
        communicates nor touches the reducer.

        Args:
            model: maps images (N, C, H, W) to whatever `criterion` reads.
            images: standardised float images, shape (N, C, H, W); with ``at=`` the model's inputs.
            labels: integer or soft labels; anything `criterion` takes.
            criterion: ``criterion(outputs, labels)`` -> scalar loss, ``(loss, logs)``, or a dict
                with ``"loss"``.
            generator: source of random starts and targets, on the images' device; None uses a
                fixed seed.
            mask: with ``at=``: 1 where the output may be perturbed, shape (N, length); None:
                the inputs' ``attention_mask``, if they have one.

        Raises:
            ValueError: images are not floating point, or mean/std do not fit their channels.
        """
        forward = _forward.BareForward(model, self.at)
        given = None
        if self.at is not None:
            given = beside(images, mask, labels)
            images = forward.no_perturbation(given)
        self.check_images(images)
        if generator is None:
            generator = torch.Generator(images.device).manual_seed(0)
        return self.perturb(forward, images, labels, criterion, generator, given=given).images
