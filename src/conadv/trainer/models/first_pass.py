"""Whether a network takes the images, before anything is written for its sake."""

import torch
from torch import Tensor, nn

from conadv.attack.forward import evaluation_mode
from conadv.errors import RecipeError


@torch.no_grad()
def try_model(name: str, model: nn.Module, shape: tuple[int, ...], classes: int) -> None:
    """See that the network takes the images and tells the classes apart; it is not changed.

    Args:
        name: Of the network, for messages.
        model: On its device.
        shape: (C, H, W) of an image.
        classes: Of the data.

    Raises:
        RecipeError: It does not.
    """
    device = next(model.parameters()).device
    images = torch.zeros(2, *shape, device=device)
    streams = [device] if device.type == "cuda" else []
    channels, height, width = shape
    try:
        with torch.random.fork_rng(devices=streams), evaluation_mode(model):
            logits = model(images)
    except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        option = "image_size" if name.startswith("torchvision/") else "img_size"
        size = f"{height}" if height == width else f"[{height},{width}]"
        raise RecipeError(
            f"model.name={name} does not take images of {height} x {width} pixels in {channels} "
            f"channels: {str(error).splitlines()[0] if str(error) else type(error).__name__}. If "
            f"it is made for one size, give model.options.{option}={size}; otherwise take larger "
            "images, or another network."
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < classes:
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise RecipeError(
            f"model.name={name} gives {given} for two images: a tensor (2, {classes}) is needed, "
            "one logit per class."
        )
