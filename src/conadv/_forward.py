"""Passes through the model that leave no trace: what an attack may and may not touch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from conadv._wrappers import unwrap
from conadv.branches import route


class BareForward:
    """Calls the model without its wrappers, so that an attack costs 2F and never communicates.

    In eager mode the bare module is called and `torch.autograd.grad` skips the weight gradients.
    A compiled graph cannot skip them: AOTAutograd differentiates with respect to everything that
    requires grad. So a compiled model gets a second compiled callable, to which the parameters
    are passed detached; the first one is never recompiled for it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.module, self.compiled = unwrap(model)
        self._call: Any = torch.compile(self._functional) if self.compiled else None

    def _functional(self, parameters: dict[str, Tensor], images: Tensor) -> Any:
        return torch.func.functional_call(self.module, parameters, (images,))

    def __call__(self, images: Tensor) -> Any:
        if not self.compiled:
            return self.module(images)
        return self._call({n: p.detach() for n, p in self.module.named_parameters()}, images)

    @contextmanager
    def attacking(
        self,
        branch: str | None,
        mode: Literal["train", "eval"],
        generator: torch.Generator,
    ) -> Iterator[None]:
        """Route to `branch`, freeze the statistics, fork the random stream; undo it all after."""
        with ExitStack() as stack:
            stack.enter_context(route(self.module, branch))
            if mode == "eval":
                stack.enter_context(evaluation_mode(self.module))
            else:
                stack.enter_context(frozen_statistics(self.module))
            stack.enter_context(forked_rng(generator))
            stack.enter_context(torch.enable_grad())
            yield


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards each module has its own flag back, also a frozen layer's."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Forward passes inside use batch statistics but leave every buffer as it was.

    Batch norm skips its update when `track_running_stats` is off, in training mode only, so
    layers in eval mode keep their running statistics. Whatever other layers write to their
    buffers (spectral norm, instance norm) is put back.
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.training
        and module.track_running_stats
    ]
    guarded = {id(buffer) for norm in norms for buffer in norm.buffers(recurse=False)}
    others = [b for b in model.buffers() if id(b) not in guarded and not b.is_inference()]
    saved = [(buffer, buffer._version, buffer.detach().clone()) for buffer in others]
    try:
        for norm in norms:
            norm.track_running_stats = False
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
        with torch.no_grad():
            for buffer, version, value in saved:
                if buffer._version != version:
                    buffer.copy_(value)


@contextmanager
def forked_rng(generator: torch.Generator) -> Iterator[None]:
    """Dropout inside draws from `generator`'s seed; the caller's random streams do not move."""
    device = generator.device
    devices = [device] if device.type == "cuda" else []
    seed = torch.randint(2**62, (), generator=generator, device=device)
    with torch.random.fork_rng(devices=devices):
        if devices:
            # The seed must reach the host: one small copy, and only on the attack's own path.
            value = int(seed)
            with torch.cuda.device(device):
                torch.cuda.manual_seed(value)
            torch.default_generator.manual_seed(value)
        else:
            torch.default_generator.manual_seed(int(seed))
        yield


def scale_output_gradient(outputs: Any, images: Tensor) -> tuple[Any, float]:
    """Keep an fp16 attack from underflowing: returns outputs to use and a factor on the loss.

    The gradient of a mean over N images is 1/N of each image's own, and an fp16 value under 6e-8
    is zero; sign(0) = 0 would switch the attack off without a word. So the loss is multiplied by
    N, and on its way back the gradient at the outputs is multiplied by the power of two that
    brings its largest entry near 16: exact, the same for every image (batch norm couples them),
    and without a copy to the host. The direction of a step ignores the factor. Other precisions
    are left alone, bit for bit.
    """
    if not isinstance(outputs, Tensor) or outputs.dtype != torch.float16:
        return outputs, 1.0

    def lift(gradient: Tensor) -> Tensor:
        largest = gradient.abs().amax().float()
        exponent = torch.floor(torch.log2(16.0 / largest.clamp_min(1e-30)))
        return torch.where(largest > 0, gradient * torch.exp2(exponent), gradient).to(
            gradient.dtype
        )

    lifted = outputs.view_as(outputs)
    # Casting to float32 first keeps the criterion's own gradient out of fp16 until it is lifted.
    wide = lifted.float()
    if wide.requires_grad:
        wide.register_hook(lift)
    return wide, float(images.shape[0])


class AutocastState:
    """The autocast setting at a moment, to be entered again later.

    `collect()` runs after the backward pass, where the caller's autocast block has ended; the
    stale attack must see the same precision as the training step.
    """

    def __init__(self, device: torch.device) -> None:
        self.device_type = device.type
        self.enabled = torch.is_autocast_enabled(device.type)
        self.dtype = torch.get_autocast_dtype(device.type)

    def __call__(self) -> torch.autocast:
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=self.enabled)
