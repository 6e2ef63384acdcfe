"""A network as an ONNX file, checked against the network itself."""

from collections.abc import Mapping

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from conadv.errors import ExportError

TOLERANCE = 1e-4
"""Largest difference of logits, as a share of the largest logit (at least 1)."""


class _Standardised(nn.Module):
    """A network that takes images on [0, 1].

    Args:
        model: Takes standardised images.
        mean: Of each channel.
        std: Of each channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.model((images - self.mean) / self.std)  # type: ignore[no-any-return]


def onnx_of(
    model: nn.Module,
    shape: tuple[int, int, int],
    mean: list[float],
    std: list[float],
    metadata: Mapping[str, str],
) -> bytes:
    """The content of an ONNX file that maps ``images`` on [0, 1] to ``logits``, any number at once.

    Args:
        model: On the CPU, in eval mode.
        shape: (C, H, W) of an image.
        mean: Of each channel; subtracting it becomes a part of the file's network.
        std: Of each channel, likewise.
        metadata: What the file says about itself.

    Raises:
        ExportError: The network has operations that ONNX has not, or onnxruntime finds other
            logits than the network.
    """
    whole = _Standardised(model, mean, std).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, *shape, generator=generator)
    try:
        program = torch.onnx.export(
            whole,
            (images,),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: "batch"},),
        )
        assert program is not None
        file = program.model_proto
    except Exception as error:  # of torch.export, of the converter, of the network's own code
        raise ExportError(
            f"the network cannot be written as ONNX: {_first_line(error)}. A file name that ends "
            "in .safetensors keeps its weights, for PyTorch."
        ) from error
    for key, value in metadata.items():
        file.metadata_props.add(key=key, value=value)
    content: bytes = file.SerializeToString()
    for some in (images, images[:1]):
        _compare(content, whole, some)
    return content


@torch.no_grad()
def _compare(content: bytes, model: nn.Module, images: Tensor) -> None:
    try:
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        found = session.run(None, {"images": images.numpy()})[0]
    except Exception as error:
        raise ExportError(f"onnxruntime cannot run the network: {_first_line(error)}.") from error
    logits = model(images).numpy()
    difference = float(np.abs(found - logits).max())
    if not difference <= TOLERANCE * max(1.0, float(np.abs(logits).max())):
        raise ExportError(
            f"onnxruntime finds other logits than the network, by {difference:.3g}; nothing is "
            "written. A file name that ends in .safetensors keeps its weights, for PyTorch."
        )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
