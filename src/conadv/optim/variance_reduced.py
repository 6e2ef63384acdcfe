"""Variance-reduced gradients: each value is scaled by its signal-to-noise ratio over groups."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from conadv.optim.sharded import is_dtensor


class VarianceReduction:
    r"""Scales gradients by their signal-to-noise ratio before an optimizer sees them.

    VR-SGD and VR-LARS are this, followed by SGD or LARS. With g_1, ..., g_k the gradients of k
    groups of the batch's images, element by element, and layer by layer in the third line:

        g = mean of g_i
        r = g ** 2 / (mean of g_i ** 2 - g ** 2)
        r = r / mean of r                         over the parameter tensor
        r = min(max(r, gamma), 1)
        g = r * g

    So no value's step differs from another's by more than a factor of 1 / gamma on account of r.
    With ``momentum`` an average takes the place of r in the last line, as in the paper's VR-Adam:

        p = momentum * p + (1 - momentum) * r
        g = p / (1 - momentum ** step) * g

    The paper's groups are the devices. Here a group is a micro-batch, wherever it is computed: a
    device that accumulates eight and eight devices with one each train the same.

    Where all groups agree the variance is 0 up to rounding, and the ratio would be infinite: it is
    bounded by the precision of the dtype before the mean is taken.

    Args:
        parameters: those the optimizer updates.
        gamma: lower bound of the scale, in (0, 1].
        momentum: of the ratio, in [0, 1).
        all_reduce: sums a tensor over the ranks in place (``torch.distributed.all_reduce``), where
            there are several; called once in a step, with as many values as the model has.

    Raises:
        ValueError: a setting out of its range, no parameters, or sharded ones (``fully_shard``).

    Example:
        >>> import torch
        >>> from conadv.optim import LARS, VarianceReduction
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = LARS(model.parameters(), lr=0.1)
        >>> variance_reduction = VarianceReduction(model.parameters())
        >>> for images in torch.randn(4, 3, 4):
        ...     loss = model(images).square().mean() / 4
        ...     with variance_reduction.group(weight=1 / 4):
        ...         loss.backward()
        >>> variance_reduction.scale_gradients()
        >>> optimizer.step()

    References:
        Jiang et al., *Accelerating Large Batch Training via Gradient Signal to Noise Ratio
        (GSNR)*, arXiv 2309.13681.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        gamma: float = 0.1,
        momentum: float = 0.0,
        all_reduce: Callable[[Tensor], object] | None = None,
    ) -> None:
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma={gamma}: give a lower bound above 0 and at most 1.")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum}: give a number of at least 0 and below 1.")
        self.gamma, self.momentum = gamma, momentum
        self.parameters = [p for p in parameters if p.requires_grad]
        if not self.parameters:
            raise ValueError("VarianceReduction was given no parameters to train.")
        if any(is_dtensor(p) for p in self.parameters):
            raise ValueError(
                "VarianceReduction: the parameters are sharded (fully_shard). Give those of an "
                "ordinary model or of one in DistributedDataParallel."
            )
        self._all_reduce = all_reduce
        self._squares: dict[int, Tensor] = {}
        self._weight = 0.0
        self._groups = 0
        self._averages: dict[int, Tensor] = {}
        self._steps = 0

    @contextmanager
    def group(self, weight: float = 1.0) -> Iterator[None]:
        """Enclose one group's backward pass, and nothing else that has one.

        Args:
            weight: the factor that the group's mean loss was multiplied with, above 0. Groups of
                different sizes count by it.

        Raises:
            ValueError: a weight of 0 or less.
        """
        if not weight > 0:
            raise ValueError(f"weight={weight}: give the factor on the group's loss, above 0.")
        with ExitStack() as stack:
            for index, p in enumerate(self.parameters):
                # Before the gradient is added to p.grad, and before DDP reduces it.
                handle = p.register_hook(lambda g, index=index: self._observe(index, g, weight))
                stack.callback(handle.remove)
            yield
        self._weight += weight
        self._groups += 1

    @torch.no_grad()
    def scale_gradients(self) -> None:
        """Scale ``.grad`` in place. It has to be the mean over the groups by their weights.

        So after the all-reduce of DistributedDataParallel, and after any division that turns a sum
        of micro-batches into their mean. Every rank has to call it.

        Raises:
            RuntimeError: fewer than two groups on all ranks together: they have no variance.
        """
        squares, weight, groups = self._joined()
        self.forget()
        if groups < 2:
            raise RuntimeError(
                f"variance reduction saw {groups} group{'' if groups == 1 else 's'} in this step: "
                "the noise of the gradient is measured between at least 2. Use more micro-batches, "
                "each within `group()`."
            )
        self._steps += 1
        for index, p in enumerate(self.parameters):
            if p.grad is None or index not in squares:
                continue
            second = squares[index] / weight
            ratio = signal_to_noise(p.grad.to(second.dtype), second, self.gamma)
            if self.momentum:
                before = self._averages.get(index)
                fresh = (1.0 - self.momentum) * ratio
                ratio = fresh if before is None else self.momentum * before + fresh
                self._averages[index] = ratio
                ratio = ratio / (1.0 - self.momentum**self._steps)
            p.grad.mul_(ratio.to(p.grad.dtype))

    def forget(self) -> None:
        """Drop the groups of a step that is void."""
        self._squares, self._weight, self._groups = {}, 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        """The averages of the ratio, between two steps; loads with ``weights_only=True``."""
        return {"steps": self._steps, "averages": dict(self._averages)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken; the groups of a step under way are dropped."""
        self.forget()
        self._steps = int(state["steps"])
        self._averages = {
            int(index): value.to(self.parameters[int(index)].device)
            for index, value in state["averages"].items()
        }

    def _observe(self, index: int, gradient: Tensor, weight: float) -> None:
        # The pass gave weight * g_i; what is summed is weight * g_i ** 2.
        own = gradient.detach()
        own = own.float() if own.dtype in (torch.float16, torch.bfloat16) else own
        square = own.square() / weight
        if index in self._squares:
            self._squares[index] += square
        else:
            self._squares[index] = square

    def _joined(self) -> tuple[dict[int, Tensor], float, int]:
        """Sums over all groups of all ranks: squares by parameter, weights, number of groups."""
        if self._all_reduce is None:
            return self._squares, self._weight, self._groups
        # In float32: a parameter that no pass reached on this rank counts as zeros here.
        parts = [
            self._squares[i].float().flatten()
            if i in self._squares
            else p.new_zeros(p.numel()).float()
            for i, p in enumerate(self.parameters)
        ]
        counts = parts[0].new_tensor([self._weight, float(self._groups)])
        flat = torch.cat([*parts, counts])
        self._all_reduce(flat)
        *joined, counts = flat.split([len(part) for part in (*parts, counts)])
        weight, groups = counts.tolist()
        squares = {
            i: part.view(p.shape)
            for i, (p, part) in enumerate(zip(self.parameters, joined, strict=True))
        }
        return squares, weight, round(groups)


def signal_to_noise(gradient: Tensor, second_moment: Tensor, gamma: float) -> Tensor:
    """The scale of one parameter tensor's gradient; see `VarianceReduction`.

    Args:
        gradient: mean over the groups, any shape.
        second_moment: mean over the groups of the squared gradient, the same shape.
        gamma: lower bound.

    Returns:
        Values in [gamma, 1], the same shape.
    """
    signal = gradient.square()
    rounding = torch.finfo(second_moment.dtype).eps * second_moment
    noise = torch.maximum(second_moment - signal, rounding)
    ratio = torch.where(signal > 0, signal / noise, torch.zeros_like(signal))
    mean = ratio.mean()
    ratio = torch.where(mean > 0, ratio / mean, ratio)
    return ratio.clamp(gamma, 1.0)
