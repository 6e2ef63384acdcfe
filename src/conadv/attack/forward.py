"""Passes through the model that leave no trace: what an attack may and may not touch."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from types import FunctionType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from conadv._numbers import mixed_seed
from conadv.attack.layer import Beside, Layer
from conadv.branches import route
from conadv.branches.branches import find_routers
from conadv.branches.buffers import frozen_statistics
from conadv.branches.split_norm import Router, SplitNorm
from conadv.branches.structure import modules_of, modules_of_kind
from conadv.branches.wrappers import unwrap


class BareForward:
    """Calls the model without its wrappers, so that an attack costs 2F and never communicates.

    In eager mode the bare module is called and `torch.autograd.grad` skips the weight gradients.
    A compiled graph cannot skip them: AOTAutograd differentiates with respect to everything that
    requires grad. So a compiled model gets a second compiled callable, to which the parameters
    are passed detached; the first one is never recompiled for it.

    Args:
        model: with its wrappers.
        at: of `Attack`.

    Raises:
        ValueError: there is no layer of that name, or the model is compiled, which would not see
            what is added to a layer.
    """

    def __init__(self, model: nn.Module, at: str | None = None) -> None:
        self.module, compiler = unwrap(model)
        self.layer = None if at is None else Layer(self.module, at)
        if at is not None and compiler is not None:
            raise ValueError(f"at={at!r} with a compiled model: give the model uncompiled.")
        # Fabric's wrapper says in which precision the model runs; nobody's autocast block does.
        self._precision: Any = getattr(model, "_precision", None)
        if not hasattr(self._precision, "forward_context"):
            self._precision = None
        self.compiled = compiler is not None
        self._call: Any = None
        if compiler is not None:
            # The compiler counts recompilations per code object and gives up after eight: each
            # model gets one of its own.
            code = _functional.__code__.replace()
            self._call = compiler(FunctionType(code, _functional.__globals__))

    def __call__(self, images: Tensor, given: Beside | None = None) -> Any:
        """Logits of the images; with `given` those of its inputs, inside `adding`."""
        if self._precision is None:
            return self._forward(images, given)
        with self._precision.forward_context():
            images = self._precision.convert_input(images)
            outputs = self._forward(images, given)
        return self._precision.convert_output(outputs)

    def _forward(self, images: Tensor, given: Beside | None) -> Any:
        if given is not None:
            assert self.layer is not None
            return self.layer.call(self.module, given)
        if not self.compiled:
            # A view: tools that hook module inputs (the FLOP counter) refuse leaves in
            # autograd.grad. A compiler in turn warns of inputs that are no leaves.
            return self.module(images.view_as(images))
        parameters = {n: p.detach() for n, p in self.module.named_parameters()}
        return self._call(self.module, parameters, images)

    def adding(self, point: Tensor, given: Beside | None) -> AbstractContextManager[None]:
        """A block for a forward and its gradient, `point` added to what the layer gives."""
        if given is None or self.layer is None:
            return nullcontext()
        return self.layer.adding(point, given.mask)

    def no_perturbation(self, given: Beside) -> Tensor:
        """Zeros in the shape of what the layer gives for these inputs, float32."""
        assert self.layer is not None
        device = next(self.module.parameters()).device
        return self.layer.zeros(
            self.module,
            given,
            lambda: self.attacking(
                None, "train", torch.Generator(device).manual_seed(0), images=given.samples
            ),
        )

    @contextmanager
    def attacking(
        self,
        branch: str | None,
        mode: Literal["train", "eval"],
        generator: torch.Generator,
        *,
        images: int,
    ) -> Iterator[None]:
        """Route to `branch`, freeze the statistics, fork the random stream; undo it all after."""
        routers = find_routers(self.module)
        layout: str | Sequence[tuple[str, int]] | None = branch
        if any(layer.group_size is not None for layer in modules_of_kind(self.module, SplitNorm)):
            layout = [(branch or routers[0].branches[0], images)]
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(_same_last_layout(routers))
            stack.enter_context(route(self.module, layout))
            if mode == "eval":
                stack.enter_context(evaluation_mode(self.module))
            stack.enter_context(frozen_statistics(self.module))
            stack.enter_context(forked_rng(generator))
            stack.enter_context(torch.enable_grad())
            yield


def _functional(module: nn.Module, parameters: dict[str, Tensor], images: Tensor) -> Any:
    return torch.func.functional_call(module, parameters, (images,))


@contextmanager
def _same_last_layout(routers: list[Router]) -> Iterator[None]:
    """An attack between a forward and its backward must not change what is recomputed there."""
    last = [(router.last, set(router.seen)) for router in routers]
    try:
        yield
    finally:
        for router, (layout, seen) in zip(routers, last, strict=True):
            router.last, router.seen = layout, seen


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards each module has its own flag back, also a frozen layer's."""
    training = [module for module in modules_of(model) if module.training]
    try:
        # Not model.eval(): a class of the user's may do more there than set the flag.
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def training_mode(model: nn.Module) -> Iterator[None]:
    """Training mode inside; afterwards each module has its own flag back."""
    flags = [(module, module.training) for module in model.modules()]
    model.train()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def forked_rng(generator: torch.Generator) -> Iterator[None]:
    """Dropout inside draws from `generator`'s seed; the caller's random streams do not move."""
    device = generator.device
    devices = [device] if device.type == "cuda" else []
    value = seed_from(generator)
    with torch.random.fork_rng(devices=devices):
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(value)
        torch.default_generator.manual_seed(value)
        yield


def seed_from(generator: torch.Generator) -> int:
    """A seed that the generator's next numbers decide; it moves on.

    Elsewhere a number is drawn. From a GPU a drawn number would have to be waited for, but its
    generator is a counter, which the host knows: seed and offset, at the end of its state.
    """
    device = generator.device
    if device.type != "cuda":
        return int(torch.randint(2**62, (), generator=generator, device=device))
    place = generator.get_state()
    torch.rand((), generator=generator, device=device)
    return mixed_seed(*(int(number) for number in place.view(torch.int64)[-2:]))


class AutocastState:
    """The autocast setting at a moment, to be entered again later.

    `collect()` runs after the backward pass, where the caller's autocast block has ended; the
    stale attack must see the same precision as the training step.
    """

    def __init__(self, device: torch.device) -> None:
        self.device_type = device.type
        self.enabled = torch.is_autocast_enabled(device.type)
        self.dtype = torch.get_autocast_dtype(device.type)

    def __call__(self, cache: bool | None = None) -> torch.autocast:
        """The block to enter; `cache`: whether it keeps cast weights, None: as torch does."""
        return torch.autocast(
            self.device_type, dtype=self.dtype, enabled=self.enabled, cache_enabled=cache
        )
