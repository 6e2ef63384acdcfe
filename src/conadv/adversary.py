"""The object a user holds: mixes the batch, gives the loss, keeps what is pending."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from conadv._forward import AutocastState, BareForward
from conadv._mixing import (
    Part,
    check_labels,
    forward_joint,
    forward_separate,
    mean_loss,
    weights_of,
)
from conadv._nested import first_tensor
from conadv.attack import Attack, Criterion, Perturbed, check_images
from conadv.branches import SplitNorm, find_router
from conadv.schedules import SCHEDULES, Copies, Schedule

ATTACK_STEP_COMPUTE = 2 / 3
"""One attack step over an image, in units of one forward and backward: 2F of 3F."""


@dataclass(frozen=True)
class Diagnostics:
    """What happened in one round. Tensors stay on the device: reading them is your choice."""

    clean_loss: Tensor | None = None
    """Mean loss of the images given (and of further views), unweighted, 0-dim."""
    adversarial_loss: Tensor | None = None
    """Mean loss of the adversarial copies, unweighted, 0-dim; None where there were none."""
    zero_share: Tensor | None = None
    """Share of input-gradient values that were exactly zero or NaN, in [0, 1], 0-dim."""
    agreement: Tensor | None = None
    """Mean cosine between the copies' perturbations and fresh ones, in [-1, 1], 0-dim."""
    images: int = 0
    """Images trained on, copies included."""
    compute: float = 0.0
    """Cost in units of one forward and backward over one image."""
    outputs: Any = None
    """The model's outputs for the images given, detached: training accuracy without a pass."""


class Adversary:
    """Concurrent adversarial learning for a training loop of your own.

    Each round trains on the images given plus adversarial copies, in one loss: a weighted mean of
    the clean and the adversarial mean loss, each through its own normalisation branch (ConAdv,
    ICLR 2022, Algorithm 1). Where the copies come from is the schedule's affair.

    Args:
        model: split with `split_norms` or without batch norm; bare, in DDP, or compiled.
        attack: what one adversarial step is.
        schedule: a name (``"vanilla"``, ``"sequential"``, ``"lookahead"``, ``"recycled"``,
            ``"noise"``) or a schedule object.
        seed: of the attack's own random stream (random starts, targets, dropout inside the
            attack). Ranks of a process group draw differently.
        forward: ``"joint"``: one forward over the mixed batch. ``"separate"``: one forward per
            branch, the same gradient for separate statistics; it saves the split layers a copy of
            their activations and suits devices that a part of the batch already keeps busy.
            ``"auto"``: separate on a CPU if the statistics are separate, otherwise joint.
        clean_branch: name of the branch for the images given; None: the model's first.
        adversarial_branch: name of the branch for the copies.
        track_agreement: measure how well stale perturbations agree with fresh ones, at the cost
            of an attack per round. An attribute: switch it on for the rounds you want.

    Raises:
        ValueError: the model has no parameters, uninitialised ones or no such branch; an unknown
            schedule; an attack that the schedule cannot serve.

    Example:
        >>> adversary = Adversary(model, Attack(4 / 255, mean=MEAN, std=STD), schedule="recycled")
        >>> for images, labels in adversary.batches(loader):
        ...     loss = adversary.loss(images, labels, criterion)
        ...     loss.backward()
        ...     adversary.collect()
        ...     optimizer.step()
        ...     optimizer.zero_grad(set_to_none=True)
    """

    def __init__(
        self,
        model: nn.Module,
        attack: Attack,
        schedule: str | Schedule = "recycled",
        *,
        seed: int = 0,
        forward: Literal["auto", "joint", "separate"] = "auto",
        clean_branch: str | None = None,
        adversarial_branch: str = "adversarial",
        track_agreement: bool = False,
    ) -> None:
        if forward not in ("auto", "joint", "separate"):
            raise ValueError(f"forward={forward!r}: allowed are 'auto', 'joint' and 'separate'.")
        self.model = model
        self._bare = BareForward(model)
        self._router = find_router(self._bare.module)
        _check_model(self._bare.module)
        self._set_branches(clean_branch, adversarial_branch)
        self.schedule = _resolve_schedule(schedule)
        self.attack = self.schedule.resolve(attack, self.clean_branch, self.adversarial_branch)
        if self._router is None and self.schedule.name != "vanilla":
            _warn_unsplit(self._bare.module)
        self.forward = forward
        self.seed = seed
        self.track_agreement = track_agreement
        self.progress = 0.0
        """Share of training done, in [0, 1]: set it each step if share or weight follow it."""
        self.compute = 0.0
        """Total cost so far, in units of one forward and backward over one image."""
        self.images = 0
        """Fresh images given so far."""
        self.diagnostics = Diagnostics()
        self.preview: tuple[Tensor | None, Tensor, Any] | None = None
        """(clean images or None, their copies, labels) of up to 16 of the last copies."""
        self._calls = 0
        self._round: _Round | None = None
        self._future: tuple[Tensor, Any] | None = None
        self._side: torch.cuda.Stream | None = None
        self._checked = False
        # A schedule keeps what is pending; two owners would train on each other's copies.
        if self.schedule.bound:
            raise ValueError("This schedule object belongs to another Adversary: make a new one.")
        self.schedule.bound = True

    def _set_branches(self, clean: str | None, adversarial: str) -> None:
        names = self._router.branches if self._router else (clean or "clean", adversarial)
        self.clean_branch = clean or names[0]
        self.adversarial_branch = adversarial
        for name in (self.clean_branch, adversarial):
            if name not in names:
                raise ValueError(
                    f"branch {name!r}: the model was split into {', '.join(names)}. Name the one "
                    "meant with clean_branch / adversarial_branch."
                )

    # -- the loop ------------------------------------------------------------------------------

    def batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        """Pass the loader's batches through; lookahead reads tau batches ahead on the way.

        Yields what the loader yields. With lookahead a batch must begin with (images, labels) as
        the model sees them: anything that is done to images inside the loop (moving to the
        device aside) has to happen before, in the loader.
        """
        ahead = self.schedule.reads_ahead
        if ahead == 0:
            yield from loader
            return
        queue: deque[Any] = deque()
        for batch in loader:
            queue.append(batch)
            if len(queue) > ahead:
                self.peek(queue[ahead][0], queue[ahead][1])
                yield queue.popleft()
        while queue:
            self._future = None
            yield queue.popleft()

    def peek(self, images: Tensor, labels: Any) -> None:
        """Show lookahead the batch of tau rounds later, where `batches` cannot wrap the loader."""
        self._future = (images, labels)

    def fresh_images(self, total: int) -> int:
        """How many images the loader should give so that a step's budget is `total` images."""
        return self.schedule.fresh_images(total)

    def loss(
        self,
        images: Tensor,
        labels: Any,
        criterion: Criterion,
        *,
        fraction: float = 1.0,
        views: Mapping[str, tuple[Tensor, Any]] | None = None,
    ) -> Tensor:
        """Loss of the images and of the adversarial copies that are due, ready for backward.

        Args:
            images: clean images, standardised, shape (N, C, H, W).
            labels: what `criterion` takes: integers, probabilities, tuples of tensors.
            criterion: ``criterion(outputs, labels)`` -> mean loss over the images it is given.
            fraction: factor on the loss. With gradient accumulation the images of this
                micro-batch over the images of the whole step, so that every image counts the
                same, also in a ragged last micro-batch.
            views: further views, {branch: (images, labels)}, each through its own branch.

        Returns:
            0-dim tensor: the weighted mean over all parts, times `fraction`.

        Raises:
            ValueError: images are not floating point, labels of another length or out of range,
                or a criterion that does not return one number.
        """
        check_images(images)
        _check_rows(images, labels)
        self._round = current = _Round(self, images, labels, criterion)
        current.copies = self.schedule.copies(current)
        parts = self._parts(current, views)
        self._calls += 1
        if self._is_joint(images):
            outputs = forward_joint(self.model, parts)
        else:
            outputs = forward_separate(self.model, parts, self._router)
        if not self._checked:
            for part, output in zip(parts, outputs, strict=True):
                check_labels(part.labels, output)
            self._checked = True
        weights = weights_of(parts, self.schedule.weight_at(self.progress))
        loss, losses = mean_loss(parts, outputs, weights, criterion)
        current.parts = parts
        current.losses = losses
        trained = sum(len(part.images) for part in parts)
        current.images_trained = trained
        current.compute += trained
        current.outputs = _detached(outputs[0])
        self._publish(current)
        return loss * fraction if fraction != 1.0 else loss

    def collect(self) -> None:
        """Take the input gradients and prepare the copies of later rounds.

        Call it after `backward` and before the optimizer's step.

        Raises:
            RuntimeError: loss() was not called, or backward has not run.
        """
        current = self._round
        if current is None:
            raise RuntimeError("collect() without a loss(): call loss(), backward(), collect().")
        self._round = None
        clean, *rest = current.parts
        if clean.wants_gradient and clean.gradient() is None:
            raise RuntimeError(
                "collect() found no input gradient: call loss.backward() before collect(), and do "
                "not restrict it with inputs=."
            )
        current.clean_gradient = clean.gradient()
        copies = [part for part in rest if part.adversarial]
        current.copy_gradients = [part.gradient() for part in copies]
        with current.autocast():
            if self.track_agreement:
                current.agreement = self._agreement(current)
            self.schedule.collect(current)
        for part in current.parts:
            part.leaf = None
        self.images += len(current.images)
        self.compute += current.compute
        self._publish(current)
        self._warn_of_zeros(current)

    def skip(self) -> None:
        """Instead of `collect`, where the round is void (NaN loss): nothing of it is kept."""
        if self._round is not None:
            self.compute += self._round.compute
            self._round = None
        self.schedule.skip()

    # -- state ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, pending copies included.

        Tensors, numbers, strings, lists and dicts only: loads with ``weights_only=True``.
        """
        return {
            "version": 1,
            "schedule": self.schedule.name,
            "state": self.schedule.state_dict(),
            "progress": self.progress,
            "compute": self.compute,
            "images": self.images,
            "calls": self._calls,
            "seed": self.seed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken; pending copies go to the model's device.

        Raises:
            ValueError: the state is of another schedule, or of another version of the library.
        """
        if state.get("version") != 1:
            raise ValueError(
                f"Adversary state of version {state.get('version')!r}: this release reads "
                "version 1."
            )
        if state["schedule"] != self.schedule.name:
            raise ValueError(
                f"The state is of schedule {state['schedule']!r}, this adversary runs "
                f"{self.schedule.name!r}: continue with the schedule that the run began with."
            )
        device = next(self._bare.module.parameters()).device
        self.schedule.load_state_dict(state["state"], device)
        self.progress = float(state["progress"])
        self.compute = float(state["compute"])
        self.images = int(state["images"])
        self._calls = int(state["calls"])
        self.seed = int(state["seed"])
        self._round = None

    # -- inside --------------------------------------------------------------------------------

    def _is_joint(self, images: Tensor) -> bool:
        separate_statistics = self._router is None or all(
            module.statistics == "separate"
            for module in self._bare.module.modules()
            if isinstance(module, SplitNorm)
        )
        if self.forward == "separate" and not separate_statistics:
            raise ValueError(
                "forward='separate' with shared statistics: statistics over the mixed batch need "
                "forward='joint'."
            )
        if self.forward == "auto":
            return not (separate_statistics and images.device.type == "cpu" and self._router)
        return self.forward == "joint"

    def _parts(
        self, current: _Round, views: Mapping[str, tuple[Tensor, Any]] | None
    ) -> list[Part]:
        wants = self.schedule.wants_gradient(self.progress)
        parts = [Part(self.clean_branch, current.images, current.labels, False, wants)]
        for branch, (images, labels) in (views or {}).items():
            check_images(images)
            _check_rows(images, labels)
            parts.append(Part(branch, images, labels, False))
        refine = self.schedule.wants_copy_gradients()
        for copies in current.copies:
            parts.append(Part(self.adversarial_branch, copies.images, copies.labels, True, refine))
        return parts

    def _agreement(self, current: _Round) -> Tensor | None:
        """Mean cosine of stale and fresh perturbations, in pixels, at the current weights."""
        cosines = []
        for copies in current.copies:
            if copies.origins is None:
                continue
            fresh = current.perturb(copies.origins, copies.labels).images
            stale = (copies.images - copies.origins).float().flatten(1)
            new = (fresh - copies.origins).float().flatten(1)
            cosines.append(nn.functional.cosine_similarity(stale, new))
        return torch.cat(cosines).mean() if cosines else None

    def _publish(self, current: _Round) -> None:
        clean = [(p, loss) for p, loss in current.pairs() if not p.adversarial]
        copies = [(p, loss) for p, loss in current.pairs() if p.adversarial]
        self.diagnostics = Diagnostics(
            clean_loss=_mean(clean),
            adversarial_loss=_mean(copies),
            zero_share=current.zero_share,
            agreement=current.agreement,
            images=current.images_trained,
            compute=current.compute,
            outputs=current.outputs,
        )
        for made in current.copies:
            origins = made.origins[:16].clone() if made.origins is not None else None
            self.preview = (origins, made.images[:16].clone(), made.labels)

    def _warn_of_zeros(self, current: _Round) -> None:
        """Now and then look at the zero share: an attack that went out must not stay unseen."""
        if current.zero_share is None or self._calls % 100 != 1:
            return
        share = float(current.zero_share)
        if share > 0.5:
            warnings.warn(
                f"{share:.0%} of the input gradient is exactly zero, and sign(0) = 0 leaves those "
                "pixels as they are. With fp16 the loss scale is too small for the gradient of "
                "single images: scale the loss as a mean over the micro-batch and divide the "
                "accumulated gradients once, or use bf16.",
                RuntimeWarning,
                stacklevel=3,
            )


class _Round:
    """One loss() and its collect(); what a schedule sees. See `schedules.Round`."""

    def __init__(
        self, adversary: Adversary, images: Tensor, labels: Any, criterion: Criterion
    ) -> None:
        self._adversary = adversary
        self.images = images
        self.labels = labels
        self.criterion = criterion
        self.progress = adversary.progress
        self.keep_origins = adversary.track_agreement
        self.future = adversary._future
        self.autocast = AutocastState(images.device)
        self.copies: list[Copies] = []
        self.parts: list[Part] = []
        self.losses: list[Tensor] = []
        self.clean_gradient: Tensor | None = None
        self.copy_gradients: list[Tensor | None] = []
        self.zero_share: Tensor | None = None
        self.agreement: Tensor | None = None
        self.images_trained = 0
        self.compute = 0.0
        self.outputs: Any = None
        self._draws = 0

    @property
    def attack(self) -> Attack:
        return self._adversary.attack

    def pairs(self) -> list[tuple[Part, Tensor]]:
        return list(zip(self.parts, self.losses, strict=True))

    def _generator(self) -> torch.Generator:
        """A stream that is a function of (seed, rank, round, draw): nothing to save but counts."""
        adversary = self._adversary
        rank = 0
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank = torch.distributed.get_rank()
        self._draws += 1
        key = (adversary.seed, rank, adversary._calls, self._draws)
        mixed = 0
        for number in key:  # splitmix64: close keys give unrelated streams
            mixed = (mixed + number + 0x9E3779B97F4A7C15) & (2**64 - 1)
            mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
            mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
            mixed ^= mixed >> 31
        return torch.Generator(self.images.device).manual_seed(mixed >> 1)

    def perturb(self, images: Tensor, labels: Any) -> Perturbed:
        adversary = self._adversary
        self.compute += ATTACK_STEP_COMPUTE * self.attack.steps * len(images)
        return self.attack.perturb(
            adversary._bare, images, labels, self.criterion, self._generator()
        )

    def noise(self, images: Tensor) -> Tensor:
        return self.attack.noise(images, self._generator())

    def side_stream(self) -> torch.cuda.Stream | None:
        adversary = self._adversary
        if self.images.device.type != "cuda":
            return None
        if adversary._side is None:
            adversary._side = torch.cuda.Stream(self.images.device)
        return adversary._side

    def report_zero_share(self, share: Tensor) -> None:
        self.zero_share = share


def _resolve_schedule(schedule: str | Schedule) -> Schedule:
    if isinstance(schedule, Schedule):
        return schedule
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r}: allowed are {', '.join(SCHEDULES)}.")
    return SCHEDULES[schedule]()


def _check_model(model: nn.Module) -> None:
    parameters = list(model.parameters())
    if not parameters:
        raise ValueError(
            f"{type(model).__name__} has no parameters: there is nothing to train. Give the "
            "network itself, not a loss or a container of functions."
        )
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in parameters):
        raise ValueError(
            f"{type(model).__name__} has lazy modules that have not seen data yet: run one batch "
            "through it (model(images)) before split_norms and Adversary."
        )


def _warn_unsplit(model: nn.Module) -> None:
    count = sum(isinstance(module, _BatchNorm) for module in model.modules())
    if count:
        warnings.warn(
            f"The model has {count} batch-norm layers that clean and adversarial images share: "
            "accuracy suffers. Call conadv.split_norms(model) first, or say that it is meant with "
            "split_norms(model, statistics='shared').",
            UserWarning,
            stacklevel=3,
        )


def _check_rows(images: Tensor, labels: Any) -> None:
    first = first_tensor(labels)
    if first is not None and (first.ndim == 0 or first.shape[0] != images.shape[0]):
        raise ValueError(
            f"{images.shape[0]} images but labels of shape {tuple(first.shape)}: give one label "
            "per image."
        )


def _mean(pairs: list[tuple[Part, Tensor]]) -> Tensor | None:
    if not pairs:
        return None
    total = sum(len(part.images) for part, _ in pairs)
    weighted = [loss * (len(part.images) / total) for part, loss in pairs]
    return cast(Tensor, sum(weighted[1:], start=weighted[0]))


def _detached(outputs: Any) -> Any:
    from conadv._nested import map_tensors

    return map_tensors(lambda tensor: tensor.detach(), outputs)
