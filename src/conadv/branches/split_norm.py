"""The normalisation layer with several branches."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from conadv.branches.buffers import forward_of, unchanged_buffers
from conadv.branches.routing import Layout, Router, rows_per_image
from conadv.branches.wrappers import deep_copy

__all__ = ["STATISTICS", "Affine", "Layout", "Router", "SplitNorm", "Statistics"]

Statistics = Literal["separate", "affine", "shared"]
STATISTICS: tuple[str, ...] = get_args(Statistics)


Ties = dict[tuple[str, int], nn.Parameter]
"""(branch, id of a parameter of the model as it was) -> what it became in that branch."""


class Affine(nn.Module):
    """The affine parameters of one branch beside shared statistics."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        for name in ("weight", "bias"):
            value = getattr(norm, name, None)
            clone = None
            if value is not None:
                clone = nn.Parameter(value.detach().clone(), requires_grad=value.requires_grad)
            self.register_parameter(name, clone)


class SplitNorm(nn.Module):
    """One normalisation layer with a branch per name.

    `norms` holds the original layer as the first branch and, with separate statistics, a copy of
    it per further branch: real layers, so that converters (`convert_sync_batchnorm`), optimizers'
    parameter groups and `modules()` see what they know. With shared statistics there is the one
    layer, and `affines` holds the other branches' parameters.
    """

    def __init__(
        self,
        norm: nn.Module,
        router: Router,
        statistics: Statistics,
        group_size: int | None,
        ties: Ties | None = None,
    ) -> None:
        super().__init__()
        self.router = router
        self.statistics = statistics
        self.group_size = group_size
        self.fused = bool(norm._modules) and type(norm) is not nn.SyncBatchNorm
        first, *others = router.branches
        self.norms = nn.ModuleDict({first: norm})
        self.affines = nn.ModuleDict()
        for name in others:
            if statistics == "separate":
                self.norms[name] = deep_copy(norm)
            elif statistics == "affine":
                self.affines[name] = Affine(norm)
            else:
                continue
            _tie(norm, self.norms[name] if name in self.norms else self.affines[name], name, ties)
        self.training = norm.training

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
        """Text that print(model) shows."""
        return f"{', '.join(self.router.branches)}; {self.statistics}, group={self.group_size}"

    def trainable(self) -> dict[str, list[nn.Parameter]]:
        """Each branch's own parameters that require grad; empty where branches have none."""
        if self.statistics == "shared":
            return {}
        first = self.router.branches[0]
        branches: dict[str, nn.Module] = {first: self.norms[first], **self.norms, **self.affines}
        return {n: [p for p in b.parameters() if p.requires_grad] for n, b in branches.items()}

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
        if self.fused and type(self.norms[self.router.branches[0]]) is nn.SyncBatchNorm:
            raise RuntimeError(
                "This layer had an activation inside (timm's BatchNormAct2d) and lost it in a "
                "conversion: torch's convert_sync_batchnorm does not know it, use timm's."
            )
        if len(layout) == 1:
            (branch, count) = layout[0]
            return self._in_groups(branch, x, rows_per_image(len(x), layout) if count > 0 else 1)
        factor = rows_per_image(len(x), layout)
        sizes = [count * factor for _, count in layout]
        if self.statistics == "separate":
            parts = [
                self._in_groups(branch, part, factor)
                for (branch, _), part in zip(layout, x.split(sizes), strict=True)
            ]
            return torch.cat(parts)
        return self._mixed(x, layout, sizes, factor)

    def _group_rows(self, x: Tensor, factor: int) -> int | None:
        """Rows per normalisation group, or None where one group takes all."""
        if self.group_size is None or not self.training:
            return None
        rows = self.group_size * factor
        return rows if rows < len(x) else None

    def _in_groups(self, branch: str, x: Tensor, factor: int) -> Tensor:
        rows = self._group_rows(x, factor)
        if rows is None:
            return self._apply_branch(branch, x)
        return torch.cat([self._apply_branch(branch, group) for group in x.split(rows)])

    def _apply_branch(self, branch: str, x: Tensor) -> Tensor:
        """All rows through one branch: always one call of the real layer, so bit-exact."""
        if branch in self.norms:
            return self.norms[branch](x)  # type: ignore[no-any-return]
        norm: Any = self.norms[self.router.branches[0]]
        if branch not in self.affines:
            return norm(x)  # type: ignore[no-any-return]
        own: dict[str, Tensor] = dict(self.affines[branch].named_parameters())
        return torch.func.functional_call(norm, own, (x,))  # type: ignore[no-any-return]

    # -- statistics over a mixed batch ---------------------------------------------------------

    def _mixed(self, x: Tensor, layout: Layout, sizes: list[int], factor: int) -> Tensor:
        rows = self._group_rows(x, factor)
        if rows is None:
            return self._mixed_group(x, layout, sizes)
        groups = len(x) // rows
        if len(x) % rows or any(size % groups for size in sizes):
            parts = ", ".join(f"{count} {branch}" for branch, count in layout)
            raise ValueError(
                f"Statistics over the mixed batch, in groups of {self.group_size} images: a batch "
                f"of {parts} cannot be cut into groups with the same part of every branch. Give "
                "each branch a multiple of the number of groups."
            )
        chunks = [part.chunk(groups) for part in x.split(sizes)]
        part_sizes = [size // groups for size in sizes]
        done = [
            self._mixed_group(torch.cat(group), layout, part_sizes).split(part_sizes)
            for group in zip(*chunks, strict=True)
        ]
        return torch.cat([group[i] for i in range(len(sizes)) for group in done])

    def _mixed_group(self, x: Tensor, layout: Layout, sizes: list[int]) -> Tensor:
        norm: Any = self.norms[self.router.branches[0]]
        if self.statistics == "shared" or norm.weight is None:
            return norm(x)  # type: ignore[no-any-return]
        forward = forward_of(norm)
        after: list[nn.Module] = []
        if forward == ("torch.nn.modules.batchnorm", "SyncBatchNorm.forward"):
            neutral = {n: torch.full_like(p, n == "weight") for n, p in norm.named_parameters()}
            y = torch.func.functional_call(norm, neutral, (x,))
        elif forward == ("torch.nn.modules.batchnorm", "_BatchNorm.forward"):
            y = _normalise(norm, x)
        elif forward == ("timm.layers.norm_act", "BatchNormAct2d.forward"):
            y, after = _normalise(norm, x), [norm.drop, norm.act]
        else:
            return self._select_rows(x, layout, sizes)
        shape = [-1, norm.weight.shape[0], *([1] * (x.ndim - 2))]
        y = y * self._per_row("weight", layout, sizes).view(shape).to(y.dtype)
        if norm.bias is not None:
            y = y + self._per_row("bias", layout, sizes).view(shape).to(y.dtype)
        for module in after:
            y = module(y)
        return y  # type: ignore[no-any-return]

    def _per_row(self, name: str, layout: Layout, sizes: list[int]) -> Tensor:
        norm: Any = self.norms[self.router.branches[0]]
        values = []
        for (branch, _), size in zip(layout, sizes, strict=True):
            source = self.affines[branch] if branch in self.affines else norm
            values.append(getattr(source, name).expand(size, -1))
        return torch.cat(values)

    def _select_rows(self, x: Tensor, layout: Layout, sizes: list[int]) -> Tensor:
        """Send the whole batch through every branch it needs: the layer's inside is unknown."""
        norm: Any = self.norms[self.router.branches[0]]
        outputs: dict[str, Tensor] = {}
        for branch, _ in layout:
            if not outputs:
                outputs[branch] = self._apply_branch(branch, x)
            elif branch not in outputs:
                with unchanged_buffers(norm.modules()):  # one batch, one update
                    outputs[branch] = self._apply_branch(branch, x)
        parts = [outputs[branch].split(sizes)[i] for i, (branch, _) in enumerate(layout)]
        return torch.cat(parts)


def _tie(norm: nn.Module, branch: nn.Module, name: str, ties: Ties | None) -> None:
    """Parameters that layers share stay shared, in every branch."""
    if ties is None:
        return
    for own, parameter in norm._parameters.items():
        if parameter is not None and own in branch._parameters:
            new = branch._parameters[own]
            assert new is not None
            branch._parameters[own] = ties.setdefault((name, id(parameter)), new)


def _normalise(norm: Any, x: Tensor) -> Tensor:
    """`_BatchNorm.forward` without the affine: normalise, and update the running statistics."""
    norm._check_input_dim(x)
    average_factor = norm.momentum or 0.0
    tracked = norm.running_mean is not None
    if norm.training and norm.track_running_stats and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:  # a cumulative average
            average_factor = 1.0 / float(norm.num_batches_tracked)
    use_running = tracked and (not norm.training or bool(norm.track_running_stats))
    return nn.functional.batch_norm(
        x,
        norm.running_mean if use_running else None,
        norm.running_var if use_running else None,
        training=norm.training or not tracked,
        momentum=average_factor,
        eps=norm.eps,
    )
