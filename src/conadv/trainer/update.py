"""The update of the weights: what it consists of, from a recipe, and one step of it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from conadv import optim
from conadv._words import import_named
from conadv.errors import RecipeError, doing
from conadv.optim.groups import classifier_apart, with_lr_factors
from conadv.optim.sharded import is_dtensor
from conadv.trainer.checkpoint.reshard import load_weights, spread_optimizer
from conadv.trainer.recipe import Recipe
from conadv.trainer.recipe.updates import beside, optimizer_of, value
from conadv.trainer.step import Precision


def make_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer at its peak learning rate; bias and norm without decay and trust ratio.

    With Muon the classifier, which it is not meant for, goes to AdamW like them, but decayed.

    Raises:
        RecipeError: The optimizer does not take these settings.
    """
    settings, known = recipe.optimizer, optimizer_of(recipe)
    groups: Any = _groups(recipe, model)
    options: dict[str, Any] = {"lr": recipe.peak_lr}
    options |= {name: getattr(settings, name) for name in known.takes}
    given = {"betas": settings.betas, "eps": settings.eps}
    options |= {name: value for name, value in given.items() if value is not None}
    try:
        with doing(f"making the optimizer (optimizer.name={settings.name})"):
            optimizer: torch.optim.Optimizer = import_named(known.make)(
                groups, **options | settings.options
            )
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"optimizer.name={settings.name} does not take these settings: {error}. Correct "
            "optimizer.options, optimizer.betas or optimizer.eps."
        ) from error
    return optimizer


def _groups(recipe: Recipe, model: nn.Module) -> list[dict[str, Any]]:
    """Parameters by decay, adaptation and learning rate."""
    settings = recipe.optimizer
    groups = optim.param_groups(model, settings.weight_decay)
    if optimizer_of(recipe).classifier_apart:
        groups = classifier_apart(groups, model)
    if not settings.lr_factors:
        return groups
    try:
        return with_lr_factors(groups, model, settings.lr_factors, recipe.peak_lr)
    except ValueError as error:
        raise RecipeError(f"optimizer.lr_factors: {error}") from error


def _make_beside(
    recipe: Recipe, switch: str, parameters: Iterable[Tensor], **options: Any
) -> Any | None:
    """What the recipe's switch turns on, or None."""
    chosen = beside(recipe, switch)
    if chosen is None:
        return None
    settings = (value(recipe, name) for name in chosen.takes)
    return import_named(chosen.make)(parameters, *settings, **options)


def learning_rate_factor(recipe: Recipe, train_images: int) -> Callable[[int], float]:
    """Factor on the peak learning rate as a function of the steps done."""
    given = recipe.lr_schedule
    total, warmup = recipe.total_steps(train_images), recipe.warmup_steps(train_images)
    return optim.decay_factor(given.decay, total, warmup, given.power, given.end_factor)


def make_update(
    recipe: Recipe, model: nn.Module, precision: Precision, train_images: int, ranks: int
) -> "Update":
    """The update that a recipe asks for.

    Raises:
        RecipeError: The optimizer does not take these settings.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    return Update(
        model,
        make_optimizer(recipe, model),
        learning_rate_factor(recipe, train_images),
        precision.grad_scaler(),
        clip_grad_norm=recipe.train.clip_grad_norm,
        skip_nonfinite=recipe.train.nonfinite == "skip",
        ema_decay=recipe.train.ema_decay,
        sam=_make_beside(recipe, "method.sam", trained),
        variance_reduction=_make_beside(
            recipe,
            "optimizer.variance_reduction",
            trained,
            all_reduce=dist.all_reduce if ranks > 1 else None,
        ),
    )


@dataclass(eq=False)
class Update:
    """Changes the weights of a model, once per step, by the gradients of its micro-batches.

    In a step: :meth:`begin`; with SAM a gradient to climb along; within :meth:`perturbed` the
    backward passes, each within :meth:`group`; :meth:`finish_gradients`; and :meth:`apply`, or
    :meth:`discard` where the step is void.
    """

    model: nn.Module
    """The bare model."""
    optimizer: torch.optim.Optimizer
    """Optimizer of the model's parameters; each group's ``lr`` is its peak learning rate."""
    factor: Callable[[int], float]
    """Factor of a step on the peak learning rate."""
    scaler: GradScaler = field(default_factory=partial(GradScaler, "cpu", enabled=False))
    """Scaler of the losses; by default they are not scaled."""
    clip_grad_norm: float | None = None
    """Largest allowed norm of the gradient that is applied."""
    skip_nonfinite: bool = False
    """Whether a step may turn out void without being the run's last."""
    ema_decay: float | None = None
    """Decay of the average of the weights and buffers; None keeps no average."""
    sam: optim.SAM | None = None
    """Perturbs the weights that a step's gradient is taken at."""
    variance_reduction: optim.VarianceReduction | None = None
    """Scales gradients by their signal-to-noise ratio over micro-batches."""

    def __post_init__(self) -> None:
        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])  # where torch's schedulers keep it
        self._before: tuple[Callable[[], None], dict[str, Any]] | None = None
        self.ema: AveragedModel | None = None
        if self.ema_decay is not None:
            average = get_ema_multi_avg_fn(self.ema_decay)
            self.ema = AveragedModel(self.model, multi_avg_fn=average, use_buffers=True)

    @property
    def evaluated_model(self) -> nn.Module:
        """The averaged model where there is one, otherwise the model itself."""
        return self.model if self.ema is None else self.ema.module

    def begin(self, step: int) -> float:
        """Set the learning rate of a step, and remember what a void one has to leave behind.

        Returns:
            The learning rate, the largest of all groups.
        """
        if self.skip_nonfinite:
            self._before = remember_buffers(self.model), self._method_state()
        factor, groups = self.factor(step), self.optimizer.param_groups
        for group in groups:
            group["lr"] = group["initial_lr"] * factor
        return float(max(group["lr"] for group in groups))

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """Enclose passes at weights uphill along the gradient that is there; nothing without SAM.

        The running statistics stay those of the passes at the weights themselves.
        """
        if self.sam is None:
            yield
            return
        self.sam.take_gradient()
        restore_buffers = remember_buffers(self.model)
        with self.sam.perturbed():
            yield
        restore_buffers()

    def group(self, fraction: float) -> AbstractContextManager[None]:
        """Enclose a backward pass whose gradient is compared with those of other micro-batches."""
        if self.variance_reduction is None or not fraction:
            return nullcontext()
        return self.variance_reduction.group(fraction)

    def finish_gradients(self, divisor: float) -> Tensor:
        """Turn sums of micro-batch means into the gradient that is applied.

        Each micro-batch's loss is scaled as a mean over that micro-batch, not over the whole step:
        in fp16 the gradient of one image in a mean over 98,304 would underflow to zero. The
        division happens here, once, in the gradients' own precision.

        Args:
            divisor: How many full micro-batches the step stands for.

        Returns:
            Norm of the mean gradient, before variance reduction and clipping, 0-dim.
        """
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if divisor != 1.0:
            torch._foreach_mul_(gradients, 1.0 / divisor)
        norm = nn.utils.get_total_norm(gradients)
        if self.variance_reduction is not None:
            self.variance_reduction.scale_gradients()
        if self.clip_grad_norm is not None:
            applied = nn.utils.get_total_norm(gradients) if self.variance_reduction else norm
            nn.utils.clip_grads_with_norm_(parameters, self.clip_grad_norm, applied)
        return norm.full_tensor() if is_dtensor(norm) else norm

    def apply(self) -> None:
        """Update the weights and their average."""
        self.scaler.step(self.optimizer)
        self._end()
        if self.ema is not None:
            self.ema.update_parameters(self.model)

    def discard(self) -> None:
        """Leave the weights alone; what `begin` remembered is as it was."""
        if self._before is not None:
            restore_buffers, state = self._before
            restore_buffers()
            self._load_method_state(state)
        self._end()

    def _end(self) -> None:
        self._before = None
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """What the next step depends on besides the model, between two steps."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "scaler": self.scaler.state_dict(),
            **self._method_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        peaks = [group["initial_lr"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(spread_optimizer(state["optimizer"], self.optimizer))
        for group, peak in zip(self.optimizer.param_groups, peaks, strict=True):
            group["initial_lr"] = peak  # checkpoints of before this was kept do not have it
        if self.ema is not None:
            load_weights(self.ema, state["ema"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self._load_method_state(state)

    @property
    def _parts(self) -> dict[str, optim.SAM | optim.VarianceReduction | None]:
        return {"sam": self.sam, "variance_reduction": self.variance_reduction}

    def _method_state(self) -> dict[str, Any]:
        """What SAM and variance reduction keep from step to step: references, no copies."""
        return {
            name: None if part is None else part.state_dict() for name, part in self._parts.items()
        }

    def _load_method_state(self, state: Mapping[str, Any]) -> None:
        for name, part in self._parts.items():
            if part is not None:
                part.load_state_dict(state[name])


@torch.no_grad()
def remember_buffers(model: nn.Module) -> Callable[[], None]:
    """Copy a model's buffers, such as running statistics; the function returned puts them back."""
    buffers = list(model.buffers())
    saved = [torch.empty_like(buffer) for buffer in buffers]
    _copy(saved, buffers)
    return lambda: _copy(buffers, saved)


@torch.no_grad()
def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(targets, sources)
