"""SAM and asynchronous SAM: their equations in numpy, and what they promise to leave alone."""

import copy
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.device_mesh
import torch.distributed.tensor
from torch import nn

from conadv.optim import LARS, SAM, AsyncSAM, Muon, VarianceReduction

RHO, LR = 0.3, 0.05


def problem(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A quartic bowl: the loss is sum(a (w - c)^4) over two vectors in one."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=5), rng.normal(size=5), rng.uniform(0.5, 2, size=5)


def loss_of(w: torch.Tensor, c: np.ndarray, a: np.ndarray) -> torch.Tensor:
    return (torch.from_numpy(a) * (w - torch.from_numpy(c)) ** 4).sum()


def gradient(w: np.ndarray, c: np.ndarray, a: np.ndarray) -> np.ndarray:
    return 4 * a * (w - c) ** 3


def parts(w: np.ndarray) -> list[nn.Parameter]:
    """The same weights as two parameters: the norm is that of both together."""
    return [
        nn.Parameter(torch.from_numpy(w[:2].copy())),
        nn.Parameter(torch.from_numpy(w[2:].copy())),
    ]


def train(sam: SAM, params: list[nn.Parameter], steps: range) -> None:
    optimizer = torch.optim.SGD(params, lr=LR)
    _, c, a = problem()
    for step in steps:
        shifted = c + 0.1 * step  # another batch in each step
        loss_of(torch.cat(params), shifted, a).backward()
        sam.take_gradient()
        with sam.perturbed():
            loss_of(torch.cat(params), shifted, a).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def test_sam_is_equation_2_of_the_paper() -> None:
    w, c, a = problem()
    params = parts(w)
    train(SAM(params, RHO), params, range(4))
    for step in range(4):
        batch = c + 0.1 * step
        g = gradient(w, batch, a)
        epsilon = RHO * g / np.sqrt((g**2).sum())
        w = w - LR * gradient(w + epsilon, batch, a)
    np.testing.assert_allclose(torch.cat(params).detach().numpy(), w, rtol=1e-12)


def test_asynchronous_sam_climbs_along_the_gradient_of_the_step_before() -> None:
    w, c, a = problem()
    params = parts(w)
    train(AsyncSAM(params, RHO), params, range(5))
    stale = None
    for step in range(5):
        batch = c + 0.1 * step
        fresh = gradient(w, batch, a)  # at the unperturbed weights
        epsilon = 0.0 if stale is None else RHO * stale / np.linalg.norm(stale)
        w = w - LR * gradient(w + epsilon, batch, a)
        stale = fresh
    np.testing.assert_allclose(torch.cat(params).detach().numpy(), w, rtol=1e-12)


def test_the_perturbation_is_the_worst_one_of_a_linear_loss() -> None:
    """In closed form: max of s.(w + eps) over |eps| <= rho is s.w + rho |s|."""
    slope = torch.tensor([3.0, -4.0], dtype=torch.float64)
    w = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    sam = SAM([w], 0.5)
    (w * slope).sum().backward()
    sam.take_gradient()
    with sam.perturbed():
        assert float((w.detach() * slope).sum()) == pytest.approx(-5.0 + 0.5 * 5.0, abs=1e-12)
    assert w.tolist() == [1.0, 2.0]


KINDS: list[Callable[..., SAM]] = [SAM, AsyncSAM]


def twice(sam: SAM, params: list[nn.Parameter]) -> None:
    """So that the asynchronous one has something to climb along as well."""
    for _ in range(2):
        for p in params:
            p.grad = torch.full_like(p, 0.7)
        sam.take_gradient()


@pytest.mark.parametrize("kind", KINDS)
def test_weights_come_back_bit_for_bit_also_after_an_exception(kind: Callable[..., SAM]) -> None:
    params = [nn.Parameter(torch.randn(50)), nn.Parameter(torch.randn(7).bfloat16())]
    before = [p.detach().clone() for p in params]
    sam = kind(params, 1e-3)
    twice(sam, params)
    with pytest.raises(ZeroDivisionError), sam.perturbed():
        assert not torch.equal(params[0], before[0])
        raise ZeroDivisionError
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_of_the_gradient_does_not_matter(kind: Callable[..., SAM]) -> None:
    found = []
    for factor in (1.0, 1024.0):
        params = [nn.Parameter(torch.ones(4))]
        sam = kind(params, 0.1)
        for _ in range(2):
            params[0].grad = factor * torch.tensor([1.0, 2.0, 3.0, 4.0])
            sam.take_gradient()
        with sam.perturbed():
            found.append(params[0].detach().clone())
    torch.testing.assert_close(found[0], found[1])
    assert float((found[0] - 1).norm()) == pytest.approx(0.1, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_and_a_zero_gradient_move_nothing(kind: Callable[..., SAM]) -> None:
    params = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))]
    sam = kind(params, 0.1)
    for _ in range(2):
        params[0].grad = torch.zeros(3)
        sam.take_gradient()
    with sam.perturbed():
        assert all(torch.equal(p, torch.ones_like(p)) for p in params)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_that_is_not_finite_shows_in_the_loss(kind: Callable[..., SAM]) -> None:
    params = [nn.Parameter(torch.ones(3))]
    sam = kind(params, 0.1)
    for _ in range(2):
        params[0].grad = torch.tensor([1.0, torch.inf, 1.0])
        sam.take_gradient()
    with sam.perturbed():
        assert not torch.isfinite(params[0].sum())
    assert torch.equal(params[0], torch.ones(3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lars", [False, True])
def test_a_radius_of_0_is_ordinary_training(kind: Callable[..., SAM], lars: bool) -> None:
    w, c, a = problem()
    ours, plain = parts(w), parts(w)
    sam = kind(ours, 0.0)
    made = [LARS(p, lr=1.0) if lars else torch.optim.SGD(p, lr=LR) for p in (ours, plain)]
    for _ in range(3):
        for params, optimizer in zip((ours, plain), made, strict=True):
            loss_of(torch.cat(params), c, a).backward()
            if params is ours:
                sam.take_gradient()
                with sam.perturbed():
                    loss_of(torch.cat(params), c, a).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert all(torch.equal(p, q) for p, q in zip(ours, plain, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_state_goes_on_bit_for_bit_through_a_safe_file(kind: Callable[..., SAM]) -> None:
    w, *_ = problem()
    params = parts(w)
    sam = kind(params, RHO)
    train(sam, params, range(3))
    file = io.BytesIO()
    torch.save({"params": [p.detach() for p in params], "sam": sam.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = [nn.Parameter(p) for p in saved["params"]]
    other = kind(resumed, RHO)
    other.load_state_dict(saved["sam"])
    train(sam, params, range(3, 6))
    train(other, resumed, range(3, 6))
    assert all(torch.equal(p, q) for p, q in zip(params, resumed, strict=True))


def test_a_step_can_be_undone() -> None:
    """The state taken before a void step, loaded after it, is as if the step had not been."""
    w, *_ = problem()
    params = parts(w)
    sam = AsyncSAM(params, RHO)
    train(sam, params, range(2))
    state, weights = sam.state_dict(), copy.deepcopy(params)
    train(sam, params, range(9, 10))
    with torch.no_grad():
        for p, q in zip(params, weights, strict=True):
            p.copy_(q)
    sam.load_state_dict(state)
    train(sam, params, range(2, 4))
    other = parts(w)
    train(AsyncSAM(other, RHO), other, range(4))
    assert all(torch.equal(p, q) for p, q in zip(params, other, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_misuse_is_named(kind: Callable[..., SAM]) -> None:
    with pytest.raises(ValueError, match="rho=-1"):
        kind([nn.Parameter(torch.ones(2))], -1)
    with pytest.raises(ValueError, match="no parameters"):
        kind([])
    sam = kind([nn.Parameter(torch.ones(2))])
    with pytest.raises(RuntimeError, match=r"take_gradient\(\) first"), sam.perturbed():
        pass


def test_parameters_of_several_dtypes_have_one_norm() -> None:
    params = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(4, dtype=torch.float64))]
    sam = SAM(params, 1.0)
    for p in params:
        p.grad = torch.full_like(p, 2.0)
    sam.take_gradient()
    with sam.perturbed():
        for p in params:
            torch.testing.assert_close(p.detach(), torch.full_like(p, 7**-0.5).detach())


def test_sharded_parameters_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By everything that would need whole gradients or whole matrices."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    meeting = f"file://{tmp_path}/meeting"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        tensor = torch.distributed.tensor
        w = nn.Parameter(tensor.distribute_tensor(torch.ones(4, 2), mesh, [tensor.Shard(0)]))
        for kind in (SAM, AsyncSAM, VarianceReduction, Muon):
            with pytest.raises(ValueError, match=rf"^{kind.__name__}.*sharded"):
                kind([w])
    finally:
        torch.distributed.destroy_process_group()


def test_the_state_of_another_model_is_refused() -> None:
    sam = AsyncSAM([nn.Parameter(torch.ones(2))])
    with pytest.raises(ValueError, match="of 1 parameters of other shapes"):
        sam.load_state_dict({"gradient": [torch.ones(3)]})
