"""Keeping the input gradient of an fp16 attack from underflowing."""

from typing import Any

import torch
from torch import Tensor

from conadv._tree import map_tensors


def lift_output_gradient(outputs: Any, images: Tensor) -> tuple[Any, float]:
    """Outputs to hand to the criterion instead, and a factor for the loss.

    The gradient of a mean over N images is 1/N of each image's own, and an fp16 value under 6e-8
    is zero; sign(0) = 0 would switch the attack off without a word. So the loss is multiplied by
    N, and on its way back the gradient at the outputs is multiplied by the power of two that
    brings its largest entry near 16: exact, the same for every image (batch norm couples them)
    and every output, and without a copy to the host. The direction of a step ignores the factor.

    Only where the network computes in fp16: its outputs or images are, or autocast says so (then
    a last layer may give float32 although everything before it underflows). Other precisions are
    left alone, bit for bit.
    """
    floating: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point() and tensor.requires_grad:
            floating.append(tensor)
        return tensor

    map_tensors(note, outputs)
    if not is_half(images, *floating) or not floating:
        return outputs, 1.0
    lifted = {id(old): new for old, new in zip(floating, _Lift.apply(*floating), strict=True)}
    return map_tensors(lambda tensor: lifted.get(id(tensor), tensor), outputs), float(len(images))


def is_half(images: Tensor, *outputs: Tensor) -> bool:
    """Whether a pass computes in fp16: its images or outputs are, or autocast says so."""
    device = images.device.type
    if any(tensor.dtype == torch.float16 for tensor in (images, *outputs)):
        return True
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16


def power_of_two(largest: Tensor) -> Tensor:
    """The power of two, as float32, that brings `largest` into [8, 16); 1 if it is 0 or NaN."""
    _, exponent = torch.frexp(largest.float())
    # Written as the bits of a float32: exp2 may be off by a rounding on some devices.
    bits = ((4 - exponent).clamp(-126, 127) + 127).to(torch.int32) << 23
    usable = (largest > 0) & largest.isfinite()
    return torch.where(usable, bits.view(torch.float32), 1.0)


class _Lift(torch.autograd.Function):
    """Identity in float32 whose backward multiplies all gradients by one power of two."""

    @staticmethod
    def forward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, ...]:
        ctx.dtypes = [output.dtype for output in outputs]
        ctx.set_materialize_grads(False)
        # In float32, so that the criterion's own gradient is not fp16 before it is lifted.
        wide = torch.promote_types
        return tuple(o.to(wide(o.dtype, torch.float32), copy=True) for o in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        given = [gradient for gradient in gradients if gradient is not None]
        if not given:
            return gradients
        largest = torch.stack([g.detach().abs().amax().float() for g in given]).amax()
        factor = power_of_two(largest)
        return tuple(
            None if gradient is None else (gradient * factor).to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        )
