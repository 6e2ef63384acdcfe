"""The normalisation layer with several branches, and the routing its instances share."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

Statistics = Literal["separate", "affine", "shared"]
STATISTICS: tuple[str, ...] = get_args(Statistics)

Layout = tuple[tuple[str, int], ...]
"""((branch, images), ...) in the order of the rows of a batch; -1 images: all of them."""


class Router:
    """Where the rows of the batch in flight go. One instance is shared by all split layers."""

    def __init__(self, branches: tuple[str, ...]) -> None:
        self.branches = branches
        self.layout: Layout | None = None
        self.last: Layout | None = None
        self.ambiguous = False

    def parse(self, layout: str | Sequence[tuple[str, int]] | None) -> Layout:
        """Check a layout and drop its empty parts."""
        if layout is None:
            layout = self.branches[0]
        parts = [(layout, -1)] if isinstance(layout, str) else list(layout)
        for name, count in parts:
            if name not in self.branches:
                raise ValueError(
                    f"branch {name!r}: the model's branches are {', '.join(self.branches)}."
                )
            if count < 0 and not isinstance(layout, str):
                raise ValueError(f"branch {name!r} was given {count} images: give 0 or more.")
        parsed = tuple((name, count) for name, count in parts if count)
        if not parsed:
            raise ValueError("The layout has no images: give at least one branch with some.")
        return parsed

    def current(self) -> Layout:
        """The layout in force; without one, the plain branch takes everything.

        Activation checkpointing runs the forward again *during the backward*, when the routing
        block has ended: there the layout of the last block still holds.
        """
        if self.layout is not None:
            return self.layout
        if (
            self.last is not None
            and not torch.compiler.is_compiling()
            and torch._C._current_graph_task_id() != -1
        ):
            if self.ambiguous:
                raise RuntimeError(
                    "Activation checkpointing runs the forward again during the backward, where "
                    "it cannot be told which of two separate forwards is meant: use "
                    "Adversary(..., forward='joint')."
                )
            return self.last
        return ((self.branches[0], -1),)


class Affine(nn.Module):
    """The affine parameters of one branch beside shared statistics."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        for name in ("weight", "bias"):
            value = getattr(norm, name, None)
            clone = None if value is None else nn.Parameter(value.detach().clone())
            if clone is not None:
                clone.requires_grad_(value.requires_grad)
            self.register_parameter(name, clone)


class SplitNorm(nn.Module):
    """One normalisation layer with a branch per name.

    `norms` holds the original layer as the first branch and, with separate statistics, a copy of
    it per further branch: real layers, so that converters (`convert_sync_batchnorm`), optimizers'
    parameter groups and `modules()` see what they know. With shared statistics there is the one
    layer, and `affines` holds the other branches' parameters.
    """

    def __init__(
        self, norm: nn.Module, router: Router, statistics: Statistics, group_size: int | None
    ) -> None:
        super().__init__()
        self.router = router
        self.statistics = statistics
        self.group_size = group_size
        first, *others = router.branches
        self.norms = nn.ModuleDict({first: norm})
        self.affines = nn.ModuleDict()
        for name in others:
            if statistics == "separate":
                self.norms[name] = copy.deepcopy(norm)
            elif statistics == "affine":
                self.affines[name] = Affine(norm)
        self.train(norm.training)

    def __getattr__(self, name: str) -> Any:
        # Code that knows the layer by its attributes (num_features, weight, eps) finds the
        # first branch's.
        try:
            return super().__getattr__(name)
        except AttributeError:
            modules = self.__dict__.get("_modules", {})
            if name.startswith("_") or "norms" not in modules or "router" not in self.__dict__:
                raise
            return getattr(modules["norms"][self.router.branches[0]], name)

    def extra_repr(self) -> str:
        """Shown in print(model)."""
        return f"{', '.join(self.router.branches)}; {self.statistics}, group={self.group_size}"

    def to_plain(self, branch: str) -> nn.Module:
        """The ordinary layer with one branch's parameters and statistics."""
        if branch in self.norms:
            return self.norms[branch]
        norm = self.norms[self.router.branches[0]]
        if branch in self.affines:
            for name in ("weight", "bias"):
                setattr(norm, name, getattr(self.affines[branch], name))
        return norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalise rows by branch; shapes are the wrapped layer's."""
        layout = self.router.current()
        if len(layout) == 1:
            (branch, count) = layout[0]
            factor = 1 if count < 0 else _rows_per_image(x, count, layout)
            return self._in_groups(branch, x, factor if count > 0 else None)
        factor = _rows_per_image(x, sum(count for _, count in layout), layout)
        sizes = [count * factor for _, count in layout]
        if self.statistics == "separate":
            parts = [
                self._in_groups(branch, part, factor)
                for (branch, _), part in zip(layout, x.split(sizes), strict=True)
            ]
            return torch.cat(parts)
        return self._shared(x, layout, sizes, factor)

    # -- separate statistics -------------------------------------------------------------------

    def _group_rows(self, x: Tensor, factor: int | None) -> int | None:
        """Rows per normalisation group, or None where one group takes all."""
        if self.group_size is None or not self.training:
            return None
        rows = self.group_size * (factor or 1)
        return rows if rows < x.shape[0] else None

    def _in_groups(self, branch: str, x: Tensor, factor: int | None) -> Tensor:
        rows = self._group_rows(x, factor)
        if rows is None:
            return self._apply_branch(branch, x)
        return torch.cat([self._apply_branch(branch, group) for group in x.split(rows)])

    def _apply_branch(self, branch: str, x: Tensor) -> Tensor:
        """All rows through one branch: always one call of the real layer, so bit-exact."""
        if branch in self.norms:
            return self.norms[branch](x)  # type: ignore[no-any-return]
        norm = self.norms[self.router.branches[0]]
        if branch not in self.affines:
            return norm(x)  # type: ignore[no-any-return]
        own = {k: v for k, v in self.affines[branch].named_parameters()}
        return torch.func.functional_call(norm, own, (x,))  # type: ignore[no-any-return]

    # -- shared statistics ---------------------------------------------------------------------

    def _shared(self, x: Tensor, layout: Layout, sizes: list[int], factor: int) -> Tensor:
        rows = self._group_rows(x, factor)
        if rows is None:
            return self._shared_group(x, layout, sizes)
        groups = x.shape[0] // rows
        if x.shape[0] % rows or any(size % groups for size in sizes):
            raise ValueError(
                f"Shared statistics over groups of {self.group_size} images: a batch of "
                f"{dict(layout)} cannot be cut into groups with the same part of every branch. "
                "Give each branch a multiple of the number of groups."
            )
        parts = [part.chunk(groups) for part in x.split(sizes)]
        part_sizes = [size // groups for size in sizes]
        done = [
            self._shared_group(torch.cat(group), layout, part_sizes).split(part_sizes)
            for group in zip(*parts, strict=True)
        ]
        return torch.cat([group[i] for i in range(len(sizes)) for group in done])

    def _shared_group(self, x: Tensor, layout: Layout, sizes: list[int]) -> Tensor:
        norm = self.norms[self.router.branches[0]]
        weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
        if self.statistics == "shared" or weight is None:
            return norm(x)  # type: ignore[no-any-return]
        # The layer normalises with a neutral affine, then each row gets its own branch's. What
        # comes after the affine inside fused layers (timm: drop, act) must come after it here.
        after = [getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)]
        neutral = {"weight": torch.ones_like(weight)}
        if bias is not None:
            neutral["bias"] = torch.zeros_like(bias)
        with _without(norm, ("drop", "act")):
            y = torch.func.functional_call(norm, neutral, (x,))
        shape = [-1, weight.shape[0], *([1] * (x.ndim - 2))]
        y = y * self._per_row("weight", layout, sizes).view(shape).to(y.dtype)
        if bias is not None:
            y = y + self._per_row("bias", layout, sizes).view(shape).to(y.dtype)
        for module in after:
            y = module(y)
        return y  # type: ignore[no-any-return]

    def _per_row(self, name: str, layout: Layout, sizes: list[int]) -> Tensor:
        norm = self.norms[self.router.branches[0]]
        values = []
        for (branch, _), size in zip(layout, sizes, strict=True):
            source = self.affines[branch] if branch in self.affines else norm
            values.append(getattr(source, name).expand(size, -1))
        return torch.cat(values)


class _without:
    """Replace children of a layer by the identity inside a block."""

    def __init__(self, layer: nn.Module, names: tuple[str, ...]) -> None:
        self.layer = layer
        self.saved = {n: getattr(layer, n) for n in names if n in layer._modules}

    def __enter__(self) -> None:
        for name in self.saved:
            setattr(self.layer, name, nn.Identity())

    def __exit__(self, *_: object) -> None:
        for name, module in self.saved.items():
            setattr(self.layer, name, module)


def _rows_per_image(x: Tensor, images: int, layout: Layout) -> int:
    """How many rows of `x` belong to one image: windowed attention folds several into one."""
    if x.shape[0] % images:
        raise ValueError(
            f"The batch has {x.shape[0]} rows, but it was routed as {dict(layout)}, "
            f"{images} images in all: route exactly the images that the model is given."
        )
    return x.shape[0] // images
