"""Counting floating-point operations: torch's counter, with one of its formulas put right."""

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count


def operation_counter() -> FlopCounterMode:
    """A context that counts matrix products and convolutions (``get_total_flops()``).

    An addition and a multiplication are two operations.
    """
    mapping = {torch.ops.aten.convolution_backward: _convolution_backward}
    return FlopCounterMode(display=False, custom_mapping=mapping)


def _convolution_backward(
    gradient: list[int], images: list[int], weight: list[int], *rest: Any, **named: Any
) -> int:
    """Each of the two gradients costs what the forward pass does, whatever the groups.

    torch's own count takes the gradient of a depthwise convolution's weights for that of a dense
    one. Arguments are those of ``aten::convolution_backward`` with shapes in place of tensors.
    """
    _bias, _stride, _padding, _dilation, transposed, _output_padding, _groups, wanted = rest[:8]
    once: int = conv_flop_count(images, weight, gradient, transposed=transposed)
    return once * (int(wanted[0]) + int(wanted[1]))
