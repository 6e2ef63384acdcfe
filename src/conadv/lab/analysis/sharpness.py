"""Sharpness of a minimum: top Hessian eigenvalues by Lanczos, and the trace.

All of it is about the mean loss of the given images as a function of all weights, in eval mode:
batch norm uses its running statistics, so the function does not depend on the micro-batches.
"""

import importlib
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from conadv.attack import Criterion
from conadv.attack.checks import loss_of
from conadv.errors import ConadvError, install_command
from conadv.lab.analysis.passes import (
    Batches,
    Progress,
    check_repeatable,
    count_images,
    evaluated,
    silent,
)


@dataclass(frozen=True)
class HessianSummary:
    """What is known of the Hessian of a mean loss."""

    eigenvalues: tuple[float, ...]
    """The largest, in falling order; fewer than asked for where Lanczos did not converge."""
    residuals: tuple[float, ...]
    """|H v - lambda v| of each, with |v| = 1: an eigenvalue of H lies no further away than that."""
    trace: float
    """Sum of all eigenvalues, estimated."""
    trace_error: float | None
    """Standard error of the estimate: None with a single probe, 0 where the trace is exact."""
    converged: bool
    """Whether all eigenvalues asked for were found, to the tolerance."""
    products: int
    """Hessian-vector products that were taken."""
    parameters: int
    images: int


def hessian_summary(
    model: nn.Module,
    batches: Batches,
    criterion: Criterion = cross_entropy,
    *,
    branch: str | None = None,
    eigenvalues: int = 5,
    trace_probes: int = 10,
    tolerance: float = 1e-2,
    max_restarts: int = 30,
    seed: int = 0,
    progress: Progress = silent,
) -> HessianSummary:
    """The largest eigenvalues by Lanczos, and the trace.

    Hessian-vector products are those of curvlinops; the Lanczos iteration is ARPACK's implicitly
    restarted one (`scipy.sparse.linalg.eigsh`). The trace is exact in the span of the eigenvectors
    V that were found, and Hutchinson's estimate outside of it, as in Hutch++ (Meyer et al., 2021)
    with Lanczos vectors as the sketch: tr H = tr V'HV + E[z'Hz], z = (I - VV')g, g random signs.
    Networks of at most twenty weights or so are done exactly.

    Args:
        model: Left as it was. float32 is enough for three digits.
        batches: (images, labels) on the model's device; gone through for every product. Memory
            is that of the largest batch.
        criterion: ``criterion(outputs, labels)``, the mean over the images it is given.
        branch: Normalisation branch; None takes the model's first.
        eigenvalues: How many, at least 1.
        trace_probes: Random vectors for the trace, at least 1.
        tolerance: Largest residual of an eigenvector, relative to its eigenvalue. The eigenvalue's
            own error is about its square, where the next one is not close.
        max_restarts: Of the Lanczos iteration; what has not converged by then is left out.
        seed: Of the start vector and the random signs.
        progress: Told of each product.

    Raises:
        ConadvError: curvlinops is not installed.
        ValueError: No images, no such branch, a count below 1, or batches that is an iterator.
    """
    check_repeatable(batches)
    for name, given in (("eigenvalues", eigenvalues), ("trace_probes", trace_probes)):
        if given < 1:
            raise ValueError(f"{name}={given}: give at least 1.")
    frozen = evaluated(model, branch)
    images = count_images(batches)
    product = _Products(frozen, batches, criterion, images, progress)
    generator = torch.Generator().manual_seed(seed)
    krylov = max(2 * eigenvalues + 1, 20)
    if product.size <= krylov:
        values, vectors = _dense(product)
        # All weights are spanned: nothing is left to estimate.
        trace, error, converged = float(values.sum()), 0.0, True
        values, vectors = values[:eigenvalues], vectors[:eigenvalues]
        products_of = [product(v) for v in vectors]
    else:
        values, vectors = _lanczos(product, eigenvalues, krylov, tolerance, max_restarts, generator)
        converged = len(values) == eigenvalues
        products_of = [product(v) for v in vectors]
        inside = sum(float(v @ h) for v, h in zip(vectors, products_of, strict=True))
        outside = _hutchinson(product, vectors, trace_probes, generator)
        trace = inside + float(outside.mean())
        error = float(outside.std()) / math.sqrt(trace_probes) if trace_probes > 1 else math.nan
    residuals = [
        float((h - value * v).norm())
        for h, value, v in zip(products_of, values, vectors, strict=True)
    ]
    return HessianSummary(
        eigenvalues=tuple(values.tolist()),
        residuals=tuple(residuals),
        trace=trace,
        trace_error=None if math.isnan(error) else error,
        converged=converged,
        products=product.count,
        parameters=product.size,
        images=images,
    )


class _Products:
    """Hessian-vector products, counted. Vectors are float64 on the CPU, as ARPACK has them."""

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        criterion: Criterion,
        images: int,
        progress: Progress,
    ) -> None:
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.size = sum(weight.numel() for weight in weights)
        self.count = 0
        self._progress = progress
        self._like = weights[0]
        self._model, self._weights, self._criterion = model, weights, criterion
        self._batches, self._images = batches, images
        self._reverse_only = False
        self._operator: Any = _operator_class()(
            model,
            _MeanLoss(criterion),
            weights,
            batches,
            check_deterministic=False,  # two more passes; eval mode is
            num_data=images,
        )

    def __call__(self, vector: Tensor) -> Tensor:
        given = vector.to(self._like.device, self._like.dtype)
        found = self._reverse_twice(given) if self._reverse_only else self._forward(given)
        self.count += 1
        self._progress(self.count, None)
        return found.detach().cpu().double()

    def _forward(self, given: Tensor) -> Tensor:
        """Forward over reverse mode, curvlinops' way."""
        try:
            # Attention's fused kernels have no forward-mode derivative.
            with _known_warnings_off(), sdpa_kernel(SDPBackend.MATH):
                found: Tensor = self._operator @ given
        except NotImplementedError:  # nor have some layers, such as SiLU
            self._reverse_only = True
            return self._reverse_twice(given)
        return found

    def _reverse_twice(self, given: Tensor) -> Tensor:
        """The gradient of g'v, where forward mode does not go."""
        total = torch.zeros_like(given)
        for images, labels in self._batches:
            with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
                loss = self._criterion(self._model(images), labels)
                gradient = torch.autograd.grad(loss, self._weights, create_graph=True)
                along = torch.cat([g.flatten() for g in gradient]) @ given
                found = torch.autograd.grad(along, self._weights, materialize_grads=True)
            total += torch.cat([f.flatten() for f in found]) * (len(images) / self._images)
        return total


class _MeanLoss(nn.Module):
    """A criterion as curvlinops wants it: a module that says how it reduces."""

    reduction = "mean"

    def __init__(self, criterion: Criterion) -> None:
        super().__init__()
        self._criterion = criterion

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return loss_of(self._criterion(outputs, labels))


def _operator_class() -> Any:
    try:
        with _known_warnings_off():
            from curvlinops import HessianLinearOperator
    except ModuleNotFoundError as error:
        raise ConadvError(
            f"{error.name} is not installed, and Hessian eigenvalues need it. "
            f"Type: {install_command('sharpness')}"
        ) from error
    return HessianLinearOperator


@contextmanager
def _known_warnings_off() -> Iterator[None]:
    """Silence warnings that a user can do nothing about.

    Forward-mode autograd and a dependency of curvlinops script functions when first used; and one
    layout of memory goes through vmap the slow way, which for a single vector costs nothing.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=".*batching rule", category=UserWarning)
        yield


def _lanczos(
    product: _Products,
    wanted: int,
    krylov: int,
    tolerance: float,
    max_restarts: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Eigenvalues in falling order, and their vectors as rows."""
    linalg: Any = importlib.import_module("scipy.sparse.linalg")

    def matvec(vector: Any) -> Any:
        return product(torch.as_tensor(vector).reshape(-1)).numpy()

    operator = linalg.LinearOperator((product.size, product.size), matvec=matvec, dtype="float64")
    start = torch.randn(product.size, generator=generator, dtype=torch.float64).numpy()
    try:
        values, vectors = linalg.eigsh(
            operator,
            wanted,
            which="LA",
            v0=start,
            ncv=krylov,
            tol=tolerance,
            maxiter=max_restarts,
        )
    except linalg.ArpackNoConvergence as error:
        values, vectors = error.eigenvalues, error.eigenvectors
    found = torch.as_tensor(values.copy(), dtype=torch.float64)
    order = found.argsort(descending=True)
    return found[order], torch.as_tensor(vectors.T.copy(), dtype=torch.float64)[order]


def _dense(product: _Products) -> tuple[Tensor, Tensor]:
    """All eigenvalues in falling order, and their vectors as rows."""
    rows = torch.eye(product.size, dtype=torch.float64)
    matrix = torch.stack([product(row) for row in rows])
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return values.flip(0), vectors.T.flip(0)


def _hutchinson(
    product: _Products, known: Tensor, probes: int, generator: torch.Generator
) -> Tensor:
    """One estimate per probe of the trace outside of the span of the rows of `known`."""
    found = []
    for _ in range(probes):
        signs = torch.randint(0, 2, (product.size,), generator=generator).double() * 2 - 1
        outside = signs - known.T @ (known @ signs)
        found.append(outside @ product(outside))
    return torch.stack(found)
