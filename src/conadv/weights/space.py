"""The weights that are perturbed, as one vector."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from conadv.branches.wrappers import unwrap
from conadv.weights.attack import Choice, Radius


class WeightSpace:
    """The chosen parameters of a model, and vectors with one number for each of their elements.

    Gradients lie in one flat vector per micro-batch: one tensor to keep, to reduce and to save.

    Args:
        model: bare or wrapped; `names` are as it has them.
        choice: which parameters, by their names in the bare model; see `WeightAttack`.

    Raises:
        ValueError: no parameter is chosen, or they lie on several devices.
    """

    def __init__(self, model: nn.Module, choice: Choice) -> None:
        norms = {
            id(p)
            for module in model.modules()
            if "norm" in type(module).__name__.lower()
            for p in module._parameters.values()
        }
        bare = {id(p): name for name, p in unwrap(model)[0].named_parameters()}
        chosen = {
            name: p
            for name, p in model.named_parameters()
            if p.requires_grad and _is_chosen(choice, bare[id(p)], p, id(p) in norms)
        }
        if not chosen:
            raise ValueError(
                f"parameters={choice!r} chooses none of the model's trainable parameters: there "
                "is nothing to perturb."
            )
        self.names = list(chosen)
        self.parameters: list[Tensor] = list(chosen.values())
        self._sizes = [p.numel() for p in self.parameters]
        self.size = sum(self._sizes)
        """Numbers in a vector."""
        if len({p.device for p in self.parameters}) > 1:
            raise ValueError(
                "The chosen parameters lie on several devices: choose those of one of them with "
                "WeightAttack(parameters=lambda name, p: p.device == ...)."
            )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.parameters[0].device

    def zeros(self, dtype: torch.dtype) -> Tensor:
        """A vector of zeros."""
        return torch.zeros(self.size, dtype=dtype, device=self.device)

    def total(self) -> Tensor:
        """A sum of vectors, and how many they are: one number more."""
        return torch.zeros(self.size + 1, device=self.device)

    def views(self, vector: Tensor) -> list[Tensor]:
        """The parts of a vector that belong to each parameter, in its shape."""
        parts = vector.split(self._sizes)
        return [part.view(p.shape) for part, p in zip(parts, self.parameters, strict=True)]

    def vector(self, tensors: Sequence[Tensor | None], dtype: torch.dtype) -> Tensor:
        """One vector of what belongs to each parameter; None is zero."""
        made = self.zeros(dtype)
        pairs = [(v, t) for v, t in zip(self.views(made), tensors, strict=True) if t is not None]
        torch._foreach_copy_([view for view, _ in pairs], [tensor for _, tensor in pairs])
        return made

    @torch.no_grad()
    def step(self, direction: Tensor, rho: float, radius: Radius) -> list[Tensor]:
        """The perturbation e of each parameter; where the direction is zero, nothing moves.

        Args:
            direction: c, a vector; of any length, and not changed.
            rho: the radius, relative to each layer's norm or that of the whole.
            radius: ``"layer"`` or ``"global"``.
        """
        moved = direction.to(torch.float32, copy=True)
        views = self.views(moved)
        lengths = torch.stack(torch._foreach_norm(views))
        if radius == "layer":
            goals = torch.stack(torch._foreach_norm(self.parameters, 2, dtype=torch.float32)) * rho
        else:
            lengths = torch.linalg.vector_norm(lengths).expand(len(views))
            goals = torch.full_like(lengths, rho)
        factors = torch.where(lengths > 0, goals / lengths, 0.0)
        torch._foreach_mul_(views, factors.unbind())
        return [view.to(p.dtype) for view, p in zip(views, self.parameters, strict=True)]


def _is_chosen(choice: Choice, name: str, parameter: Tensor, of_norm: bool) -> bool:
    if callable(choice):
        return bool(choice(name, parameter))
    return choice == "all" or (of_norm if choice == "norm" else parameter.ndim >= 2)
