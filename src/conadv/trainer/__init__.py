"""The trainer: one command, any number of devices. `train` runs a recipe."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conadv.trainer.start import train

__all__ = ["train"]


def __getattr__(name: str) -> Any:
    """`train`, imported on demand: recipes alone are read without torch."""
    if name == "train":
        from conadv.trainer.start import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
