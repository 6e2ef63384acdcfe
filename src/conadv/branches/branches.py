"""Branch normalisation: convert a model, route images to a branch, give the plain model back.

Clean and adversarial images have different statistics, so each kind goes through normalisation
layers of its own while all other weights are shared (Xie et al., 2020; ConAdv, section 3). The
released ConAdv run with AutoAugment has three kinds, so a branch is a name, not a flag.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from conadv.branches.split_norm import STATISTICS, Layout, Router, SplitNorm, Statistics, Ties
from conadv.branches.structure import modules_of_kind
from conadv.branches.wrappers import deep_copy, inside, is_optimized, unwrap

__all__ = ["Layout", "SplitNorm", "branch_names", "plain", "route", "split_norms"]

SampleNorms = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
"""Layers that normalise each image alone: only their affine parameters can be split."""


def split_norms(
    model: nn.Module,
    branches: Sequence[str] = ("clean", "adversarial"),
    *,
    statistics: Statistics = "separate",
    group_size: int | None = None,
    layer_norm: bool = False,
) -> nn.Module:
    """Give every batch-norm layer of `model` one branch per name, in place; returns `model`.

    Each branch starts as a copy of the layer as it is, so a pretrained model keeps its outputs.
    The first branch is the plain one: it is used whenever nothing else is said with `route`, in
    particular for evaluation.

    Args:
        model: any module with BatchNorm1d/2d/3d, SyncBatchNorm or a subclass, such as timm's
            BatchNormAct2d, whose activation is kept. Models without any stay as they are.
        branches: names, at least one, all different.
        statistics: ``"separate"``: each branch has its own statistics and affine parameters.
            ``"affine"``: one set of statistics over the mixed batch, affine parameters per branch;
            they explain most of the benefit (arXiv 2403.19150). ``"shared"``: one ordinary layer
            for all branches, statistics over the mixed batch.
        group_size: images per normalisation group: in training, statistics are computed over
            consecutive groups of this many images (the last may be smaller), so that one device
            that accumulates and many devices compute the same. None: all images of the call.
            With shared statistics each group takes its part of every branch.
        layer_norm: also split the affine parameters of LayerNorm, GroupNorm and RMSNorm. Their
            first dimension must count images (sequence-first transformers are out).

    Split before `torch.compile` and DDP wrap the model, and before the optimizer is made: both
    would miss the new parameters. `convert_sync_batchnorm` may come before or after.

    Raises:
        ValueError: bad names, an unknown `statistics`, group_size < 1, a model that is split or
            wrapped already, or whose lazy norms have not seen data yet.

    Example:
        >>> model = conadv.split_norms(torchvision.models.resnet50())
        >>> with conadv.route(model, "adversarial"):
        ...     logits = model(copies)
    """
    names = _check_names(branches)
    if statistics not in STATISTICS:
        raise ValueError(f"statistics={statistics!r}: allowed are {', '.join(STATISTICS)}.")
    if group_size is not None and (not isinstance(group_size, int) or group_size < 1):
        raise ValueError(f"group_size={group_size!r}: a whole number of images, at least 1.")
    _check_splittable(model)
    router, ties = Router(names), Ties()

    def convert(layer: nn.Module) -> nn.Module | None:
        if isinstance(layer, _BatchNorm):
            return SplitNorm(layer, router, statistics, group_size, ties)
        if layer_norm and statistics != "shared" and _is_sample_norm(layer):
            return SplitNorm(layer, router, "separate", None, ties)
        return None

    return _replace(model, convert)


def plain(model: nn.Module, branch: str | None = None) -> nn.Module:
    """A copy of `model` with ordinary layers: types, keys and outputs as before the split.

    Args:
        model: a split model, wrapped by DDP or compile or not; a model that is not split is
            copied as it is.
        branch: whose parameters and statistics the ordinary layers get; None: the first branch.

    Raises:
        ValueError: no branch of that name.
    """
    bare, _ = unwrap(model)
    names = branch_names(bare)
    if names and branch is not None and branch not in names:
        raise ValueError(f"branch={branch!r}: the model's branches are {', '.join(names)}.")

    def restore(layer: nn.Module) -> nn.Module | None:
        return layer.to_plain(branch or names[0]) if isinstance(layer, SplitNorm) else None

    return _replace(deep_copy(bare), restore)


def branch_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the branches of a split model, the plain one first; empty if it is not split."""
    routers = find_routers(model)
    return routers[0].branches if routers else ()


def find_routers(model: nn.Module) -> list[Router]:
    """The routers of `model`: one, or one per part where parts were split on their own."""
    return list(dict.fromkeys(layer.router for layer in modules_of_kind(model, SplitNorm)))


@contextmanager
def route(
    model: nn.Module, layout: str | Sequence[tuple[str, int]] | None = None
) -> Iterator[None]:
    """Send images through the named branches inside the block.

    Args:
        model: a split model; with any other the block does nothing.
        layout: one branch for all images, or [(branch, number of images), ...] in the order of
            the rows of the batch. None: the first branch.

    The routing that was in force before comes back at the end, also after an exception. Blocks
    nest. Routing is per model and not per thread: do not run one split model from two threads.
    DDP demands a gradient of every parameter: in steps that leave a branch out, wrap the model
    with ``find_unused_parameters=True`` (`Adversary` sees to it itself).

    Raises:
        ValueError: an unknown branch or a negative number of images; a batch whose rows do not
            match the layout raises in the forward pass.
    """
    routers = find_routers(model)
    parsed = [router.parse(layout) for router in routers]
    blocks = [router.enter(one) for router, one in zip(routers, parsed, strict=True)]
    try:
        yield
    finally:
        for router, block in zip(routers, blocks, strict=True):
            router.leave(block)


def _check_names(branches: Sequence[str]) -> tuple[str, ...]:
    names = () if isinstance(branches, str) else tuple(branches)
    if (
        not names
        or len(set(names)) != len(names)
        or not all(isinstance(name, str) and name.isidentifier() for name in names)
    ):
        raise ValueError(
            f"branches={branches!r}: give a list of at least one name, all different, made of "
            "letters, digits and underscores."
        )
    for name in names:
        if hasattr(nn.ModuleDict, name) or name == "training":
            raise ValueError(f"branch {name!r}: torch modules use that name; take another.")
    return names


def _check_splittable(model: nn.Module) -> None:
    if inside(model) is not None or is_optimized(model):
        raise ValueError(
            f"The model is wrapped in {type(model).__name__}, which would not see the new "
            "parameters: call split_norms first, then wrap."
        )
    for name, module in model.named_modules():
        if isinstance(module, SplitNorm):
            raise ValueError("The model is split already: use plain(model) first to split it anew.")
        if isinstance(module, _BatchNorm) and any(
            value is not None and nn.parameter.is_lazy(value)
            for value in (*module._parameters.values(), *module._buffers.values())
        ):
            raise ValueError(
                f"{name or 'The model'} is a {type(module).__name__} that has not seen data yet: "
                "run one batch through the model first."
            )


def _is_sample_norm(layer: nn.Module) -> bool:
    """LayerNorm, GroupNorm, RMSNorm, or a class of that name of somebody else's."""
    if isinstance(layer, SampleNorms):
        return True
    named = any("rmsnorm" in cls.__name__.lower() for cls in type(layer).__mro__)
    return named and isinstance(getattr(layer, "weight", None), nn.Parameter)


def _replace(model: nn.Module, convert: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """Replace layers for which `convert` returns one; a layer used in two places stays one."""
    done: dict[int, nn.Module] = {}

    def visit(module: nn.Module) -> nn.Module:
        if id(module) in done:
            return done[id(module)]
        done[id(module)] = module
        new = convert(module)
        if new is not None:
            done[id(module)] = done[id(new)] = new
            return new
        # Not named_children(): that skips a layer registered under a second name.
        for name, child in list(module._modules.items()):
            replaced = child if child is None else visit(child)
            if replaced is not child:
                setattr(module, name, replaced)
        return module

    with torch.no_grad():
        return visit(model)
