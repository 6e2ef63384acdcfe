"""How the peak learning rate follows the batch size."""

import math


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
    _check(base_lr, base_batch, batch)
    return base_lr * batch / base_batch


def sqrt_lr(base_lr: float, base_batch: int, batch: int) -> float:
    """Learning rate with the square root of the batch: ``base_lr * sqrt(batch / base_batch)``.

    It keeps the variance of an SGD update: Krizhevsky, arXiv 1404.5997, section 5; the rule that
    LAMB was tuned with (You et al., arXiv 1904.00962).

    Args:
        base_lr: the learning rate that is right at ``base_batch``.
        base_batch: images per step it was tuned with.
        batch: images per step it is wanted for.

    Raises:
        ValueError: a batch below 1 or a negative learning rate.
    """
    _check(base_lr, base_batch, batch)
    return base_lr * math.sqrt(batch / base_batch)


def _check(base_lr: float, base_batch: int, batch: int) -> None:
    if not base_lr >= 0 or math.isinf(base_lr):
        raise ValueError(f"base_lr={base_lr}: give a learning rate of at least 0.")
    for name, value in (("base_batch", base_batch), ("batch", batch)):
        if value < 1:
            raise ValueError(f"{name}={value}: a batch has at least 1 image.")
