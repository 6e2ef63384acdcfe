"""Names of losses."""

from conadv._words import import_named, is_path

LOSS_NAMES = ("cross_entropy", "bce", "focal")
"""What ``train.loss`` takes, besides ``module:attribute``."""


def check_loss(name: str) -> None:
    """Raise unless there is such a loss.

    Raises:
        ValueError: There is none; the message says which there are.
    """
    if name in LOSS_NAMES:
        return
    if not is_path(name):
        raise ValueError(f"no such loss. Allowed: {', '.join(LOSS_NAMES)}, or module:attribute")
    if not callable(import_named(name)):
        raise ValueError("it cannot be called")
