"""The learning rate of step t: a scaling rule, linear warm-up, polynomial or cosine decay.

It is ``scaled_lr(...) * decay_factor(...)(t)``. The factors on the peak learning rate are pure
functions of the step, so a resumed run needs no scheduler state; the classes put them behind
torch's scheduler interface.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


def scaled_lr(
    base_lr: float, rule: Literal["none", "linear", "sqrt"], base_batch: int, batch: int
) -> float:
    """Peak learning rate of a batch size, by `linear_lr`, `sqrt_lr` or no rule.

    Args:
        base_lr: the learning rate that is right at ``base_batch``.
        rule: how it grows with the batch; ``"none"``: not at all.
        base_batch: images per step it was tuned with.
        batch: images per step it is wanted for.

    Raises:
        ValueError: a batch below 1 or a negative learning rate.
    """
    if rule == "none":
        return base_lr
    return (linear_lr if rule == "linear" else sqrt_lr)(base_lr, base_batch, batch)


def decay_factor(
    decay: Literal["poly", "cosine", "constant"],
    total: float,
    warmup: float = 0.0,
    power: float = 2.0,
    end: float = 0.0,
) -> Callable[[float], float]:
    """Factor on the peak learning rate as a function of the updates done so far.

    Args:
        decay: `warmup_poly`, `warmup_cosine`, or the peak after the warm-up.
        total: updates of the whole run.
        warmup: updates of the warm-up, a part of ``total``.
        power: of the polynomial decay.
        end: factor at the end of a decay.
    """
    if decay == "cosine":
        return lambda step: warmup_cosine(step, total, warmup, end)
    if decay == "constant":
        power, end = 1.0, 1.0
    return lambda step: warmup_poly(step, total, warmup, power, end)


def warmup_poly(
    step: float, total: float, warmup: float = 0.0, power: float = 2.0, end: float = 0.0
) -> float:
    """Factor on the peak learning rate: linear warm-up, then polynomial decay.

    With s the step, W the warm-up and T the total:

        s < W:   (s + 1) / W, at most 1
        s >= W:  end + (1 - end) * (1 - (s - W) / (T - W)) ** power

    So step 0 already moves the weights, step W has the peak, and steps from T on have ``end``.
    The decay is that of the LARS recipes (You et al., arXiv 1708.03888, with power 2).

    Args:
        step: updates done so far, 0 for the first one.
        total: updates of the whole run.
        warmup: updates of the warm-up, a part of ``total``. In a run that is cut short to less
            than its warm-up, the warm-up goes on to the end.
        power: 1 falls linearly; larger falls sooner.
        end: factor at the end; 1 keeps the peak.

    Raises:
        ValueError: a value out of its range.
    """
    if not (power > 0 and math.isfinite(power)):
        raise ValueError(f"power={power}: give a number above 0 (1 is linear).")
    return _factor(step, total, warmup, end, lambda done: (1.0 - done) ** power)


def warmup_cosine(step: float, total: float, warmup: float = 0.0, end: float = 0.0) -> float:
    """Factor on the peak learning rate: linear warm-up, then half a cosine.

    As `warmup_poly`, but after the warm-up, with p the share of the decay that is done:

        end + (1 - end) * (1 + cos(pi * p)) / 2

    Loshchilov and Hutter, arXiv 1608.03983, without restarts. Arguments and errors are those of
    `warmup_poly`.
    """
    return _factor(step, total, warmup, end, lambda done: 0.5 * (1.0 + math.cos(math.pi * done)))


def _factor(
    step: float, total: float, warmup: float, end: float, left: Callable[[float], float]
) -> float:
    """Linear warm-up, then ``left`` of the share of the decay that is done, from 1 to 0."""
    if not step >= 0:
        raise ValueError(f"step={step}: steps are counted from 0.")
    if not (total > 0 and math.isfinite(total)):
        raise ValueError(f"total={total}: give the number of updates of the run, above 0.")
    if not (warmup >= 0 and math.isfinite(warmup)):
        raise ValueError(f"warmup={warmup}: give a number of updates of at least 0.")
    if not 0 <= end <= 1:
        raise ValueError(f"end={end}: give a factor on the peak learning rate between 0 and 1.")
    if step < warmup:
        return min(1.0, (step + 1.0) / warmup)
    done = 1.0 if step >= total else (step - warmup) / (total - warmup)
    return end + (1.0 - end) * left(done)


class WarmupPolynomial(LRScheduler):
    """`warmup_poly` as a scheduler; call ``step()`` after every weight update.

    Further arguments and errors are those of `warmup_poly`.

    Args:
        optimizer: its learning rates are the peaks.
        last_epoch: updates already done, minus one (torch's convention).
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total: float,
        warmup: float = 0.0,
        power: float = 2.0,
        end: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        warmup_poly(0, total, warmup, power, end)  # refuse bad values before anything is changed
        self.total, self.warmup, self.power, self.end = total, warmup, power, end
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """Learning rate of each parameter group."""
        factor = warmup_poly(self.last_epoch, self.total, self.warmup, self.power, self.end)
        return [base * factor for base in self.base_lrs]


class WarmupCosine(LRScheduler):
    """`warmup_cosine` as a scheduler; otherwise as `WarmupPolynomial`."""

    def __init__(
        self,
        optimizer: Optimizer,
        total: float,
        warmup: float = 0.0,
        end: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        warmup_cosine(0, total, warmup, end)  # refuse bad values before anything is changed
        self.total, self.warmup, self.end = total, warmup, end
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """Learning rate of each parameter group."""
        factor = warmup_cosine(self.last_epoch, self.total, self.warmup, self.end)
        return [base * factor for base in self.base_lrs]


def linear_lr(base_lr: float, base_batch: int, batch: int) -> float:
    """Learning rate in proportion to the batch: ``base_lr * batch / base_batch``.

    Goyal et al., *Accurate, Large Minibatch SGD*, arXiv 1706.02677.

    Args:
        base_lr: the learning rate that is right at ``base_batch``.
        base_batch: images per step it was tuned with.
        batch: images per step it is wanted for.

    Raises:
        ValueError: a batch below 1 or a negative learning rate.
    """
    _check_scaling(base_lr, base_batch, batch)
    return base_lr * batch / base_batch


def sqrt_lr(base_lr: float, base_batch: int, batch: int) -> float:
    """Learning rate with the square root of the batch: ``base_lr * sqrt(batch / base_batch)``.

    It keeps the variance of an SGD update: Krizhevsky, arXiv 1404.5997, section 5; the rule that
    LAMB was tuned with (You et al., arXiv 1904.00962). Arguments and errors are those of
    `linear_lr`.
    """
    _check_scaling(base_lr, base_batch, batch)
    return base_lr * math.sqrt(batch / base_batch)


def _check_scaling(base_lr: float, base_batch: int, batch: int) -> None:
    if not base_lr >= 0 or math.isinf(base_lr):
        raise ValueError(f"base_lr={base_lr}: give a learning rate of at least 0.")
    for name, value in (("base_batch", base_batch), ("batch", batch)):
        if value < 1:
            raise ValueError(f"{name}={value}: a batch has at least 1 image.")
