"""Hessians that are known: linear regression, logistic regression, a small network by brute force.

curvlinops is optional; without it these tests are skipped, and one says what is missing.
"""

import importlib.util
import math
import sys
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

import conadv
from conadv.errors import ConadvError
from conadv.lab.analysis import hessian_summary
from support.nets import perturb_norms
from support.ragged import ragged

needs_curvlinops = pytest.mark.skipif(
    importlib.util.find_spec("curvlinops") is None, reason="curvlinops (extra sharpness)"
)


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return mse_loss(outputs, targets, reduction="sum") / (2 * len(outputs))


def small_split_network() -> nn.Module:
    layers = [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Flatten()]
    return perturb_norms(conadv.split_norms(nn.Sequential(*layers, nn.Linear(8, 3))))


def regression() -> tuple[nn.Module, list[tuple[Tensor, Tensor]], Tensor]:
    """y = x w with 60 weights: the Hessian of the mean of (y - t)^2 / 2 is X'X / n."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.logspace(0.5, -2, 60, dtype=torch.float64)
    inputs = torch.randn(200, 60, generator=generator, dtype=torch.float64) * spread
    targets = torch.randn(200, 1, generator=generator, dtype=torch.float64)
    model = nn.Linear(60, 1, bias=False, dtype=torch.float64)
    return model, ragged(inputs, targets), inputs.T @ inputs / 200


@needs_curvlinops
def test_linear_regression() -> None:
    model, batches, hessian = regression()
    exact = torch.linalg.eigvalsh(hessian).flip(0)
    found = hessian_summary(
        model, batches, half_square, eigenvalues=4, tolerance=1e-8, trace_probes=20
    )
    assert found.converged and (found.parameters, found.images) == (60, 200)
    torch.testing.assert_close(
        torch.tensor(found.eigenvalues, dtype=torch.float64), exact[:4], rtol=1e-9, atol=0
    )
    assert max(found.residuals) < 1e-6
    assert found.trace_error is not None and found.trace_error > 0
    assert abs(found.trace - exact.sum()) < 4 * found.trace_error


@needs_curvlinops
def test_the_default_tolerance_gives_three_digits_and_residuals_keep_their_promise() -> None:
    values = torch.logspace(0, -1, 200, dtype=torch.float64)
    inputs = torch.diag(values.sqrt()) * math.sqrt(200)
    model = nn.Linear(200, 1, bias=False, dtype=torch.float64)
    batches = [(inputs, torch.zeros(200, 1, dtype=torch.float64))]
    loose, tight = (
        hessian_summary(model, batches, half_square, eigenvalues=3, trace_probes=1, **options)
        for options in ({}, {"tolerance": 1e-10})
    )
    assert loose.converged and loose.products < tight.products
    assert loose.eigenvalues == pytest.approx(values[:3].tolist(), rel=1e-3)
    assert tight.eigenvalues == pytest.approx(values[:3].tolist(), rel=1e-9)
    for value, residual in zip(loose.eigenvalues, loose.residuals, strict=True):
        assert 1e-6 < residual < 1e-2
        assert (values - value).abs().min() <= residual


@needs_curvlinops
def test_the_trace_is_better_for_the_eigenvectors() -> None:
    """Hutchinson's error comes from the off-diagonal part, which V takes away."""
    model, batches, hessian = regression()
    few = hessian_summary(model, batches, half_square, eigenvalues=1, trace_probes=40)
    many = hessian_summary(model, batches, half_square, eigenvalues=20, trace_probes=40)
    assert few.trace_error is not None and many.trace_error is not None
    assert many.trace_error < few.trace_error / 3
    assert abs(many.trace - hessian.trace()) < 0.02 * hessian.trace()


@needs_curvlinops
def test_the_trace_agrees_with_curvlinops_own_estimator() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from curvlinops import HessianLinearOperator, hutchpp_trace
    model, batches, hessian = regression()

    class Loss(nn.Module):
        reduction = "mean"

        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return half_square(outputs, targets)

    operator = HessianLinearOperator(model, Loss(), list(model.parameters()), batches)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = float(hutchpp_trace(operator, 57))
    ours = hessian_summary(model, batches, half_square, eigenvalues=19, trace_probes=19)
    assert theirs == pytest.approx(float(hessian.trace()), rel=0.02)
    assert ours.trace == pytest.approx(theirs, rel=0.03)


@needs_curvlinops
@pytest.mark.parametrize("features", [5, 30], ids=["dense", "lanczos"])
def test_logistic_regression(features: int) -> None:
    """Two classes, one weight vector: H = X' S X / n with S = p (1 - p)."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(90, features, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 2, (90, 1), generator=generator).double()
    model = nn.Linear(features, 1, bias=False, dtype=torch.float64)
    chance = torch.sigmoid(model(inputs)).detach()
    exact = torch.linalg.eigvalsh(inputs.T @ (chance * (1 - chance) * inputs) / 90).flip(0)
    found = hessian_summary(
        model,
        ragged(inputs, labels),
        nn.functional.binary_cross_entropy_with_logits,
        eigenvalues=3,
        tolerance=1e-8,
    )
    assert found.eigenvalues == pytest.approx(exact[:3].tolist(), rel=1e-8)
    if features == 5:
        assert found.trace == pytest.approx(float(exact.sum()), rel=1e-10)
        assert found.trace_error == 0


@needs_curvlinops
def test_a_network_with_branches_against_the_whole_hessian() -> None:
    """Every entry by autograd, through the branch that was asked for, running statistics."""
    torch.manual_seed(2)
    model = small_split_network().double()
    inputs = torch.randn(20, 1, 4, 4, dtype=torch.float64)
    labels = torch.randint(0, 3, (20,))
    exact = {}
    for branch in ("clean", "adversarial"):
        plain = conadv.plain(model, branch).eval()
        names = [name for name, _ in plain.named_parameters()]
        shapes = [p.shape for p in plain.parameters()]
        flat = torch.cat([p.detach().flatten() for p in plain.parameters()])

        def loss(flat: Tensor, plain: nn.Module = plain, names=names, shapes=shapes) -> Tensor:
            parts = flat.split([s.numel() for s in shapes])
            named = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
            return cross_entropy(torch.func.functional_call(plain, named, (inputs,)), labels)

        exact[branch] = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat)).flip(0)
    assert not torch.allclose(exact["clean"], exact["adversarial"], rtol=1e-2)
    for branch, values in exact.items():
        found = hessian_summary(
            model, ragged(inputs, labels), branch=branch, eigenvalues=4, tolerance=1e-9
        )
        assert found.eigenvalues == pytest.approx(values[:4].tolist(), rel=1e-7)
        assert found.trace_error is not None
        assert abs(found.trace - float(values.sum())) < 5 * found.trace_error


@needs_curvlinops
def test_the_same_seed_gives_the_same_figures_and_nothing_is_left_behind() -> None:
    torch.manual_seed(0)
    model = small_split_network()
    batches = [(torch.randn(12, 1, 4, 4), torch.randint(0, 3, (12,)))]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    stream = torch.get_rng_state()
    counts: list[int] = []
    first = hessian_summary(model, batches, eigenvalues=2, progress=lambda n, _: counts.append(n))
    assert first == hessian_summary(model, batches, eigenvalues=2)
    assert counts == list(range(1, first.products + 1))
    assert torch.equal(torch.get_rng_state(), stream)
    assert model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    other = hessian_summary(model, batches, eigenvalues=2, seed=1)
    assert other.eigenvalues == pytest.approx(first.eigenvalues, rel=5e-3)
    assert other.trace != first.trace


@needs_curvlinops
def test_what_has_not_converged_is_left_out() -> None:
    """Three hundred eigenvalues between 1 and 1.2: one restart tells few of them apart."""
    values = torch.linspace(1, 1.2, 300, dtype=torch.float64)
    inputs = torch.diag(values.sqrt()) * math.sqrt(300)
    model = nn.Linear(300, 1, bias=False, dtype=torch.float64)
    batches = [(inputs, torch.zeros(300, 1, dtype=torch.float64))]
    found = hessian_summary(
        model, batches, half_square, eigenvalues=3, tolerance=1e-10, max_restarts=1
    )
    assert not found.converged and len(found.eigenvalues) < 3
    # A diagonal matrix has no off-diagonal part: any probe gives the trace.
    assert found.trace == pytest.approx(float(values.sum()), rel=1e-9)


@needs_curvlinops
def test_attention_has_a_hessian_too() -> None:
    """Its fused kernels have no forward-mode derivative: the plain formula is taken."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=3, img_size=32)
    batches = [(torch.randn(4, 3, 32, 32), torch.randint(0, 3, (4,)))]
    found = hessian_summary(model, batches, eigenvalues=1, trace_probes=1, max_restarts=1)
    assert math.isfinite(found.trace) and found.trace_error is None


@needs_curvlinops
def test_a_layer_without_forward_mode() -> None:
    """SiLU's backward has no forward-mode derivative: reverse mode twice gives the same Hessian."""
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(4, 5), nn.SiLU(), nn.Linear(5, 3)).double()
    inputs, labels = torch.randn(20, 4, dtype=torch.float64), torch.randint(0, 3, (20,))
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([s.numel() for s in shapes])
        named = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        return cross_entropy(torch.func.functional_call(model, named, (inputs,)), labels)

    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    exact = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat)).flip(0)
    found = hessian_summary(model, ragged(inputs, labels), eigenvalues=3, tolerance=1e-9)
    assert found.eigenvalues == pytest.approx(exact[:3].tolist(), rel=1e-7)
    assert found.trace_error is not None
    assert abs(found.trace - float(exact.sum())) < 5 * found.trace_error


def test_bad_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches, _ = regression()
    with pytest.raises(ValueError, match="once only"):
        hessian_summary(model, iter(batches), half_square)
    with pytest.raises(ValueError, match="eigenvalues=0"):
        hessian_summary(model, batches, half_square, eigenvalues=0)
    with pytest.raises(ValueError, match="no images"):
        hessian_summary(model, [], half_square)
    monkeypatch.setitem(sys.modules, "curvlinops", None)
    with pytest.raises(ConadvError, match=r"Type: pip install .*\[sharpness\]"):
        hessian_summary(model, batches, half_square)
