"""Muon for whole networks: against its equations, torch's Muon and torch's AdamW."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn

from conadv.optim import Muon, WarmupPolynomial, param_groups
from conadv.optim.muon import torch_adjusts_by
from support import optimizers as support


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(24, 5, bias=False)
    )


def groups(model: nn.Module) -> list[dict[str, object]]:
    return param_groups(model, 0.1, exclude=["3.*"])


def gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator).to(p)


def newton_schulz(g: np.ndarray, steps: int = 5) -> np.ndarray:
    """The quintic iteration of Jordan et al., in float64."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g / max(np.linalg.norm(g), 1e-7)
    x = x.T if g.shape[0] > g.shape[1] else x
    for _ in range(steps):
        s = x @ x.T
        x = a * x + (b * s + c * s @ s) @ x
    return x.T if g.shape[0] > g.shape[1] else x


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("adjust", ["match_rms_adamw", "original", "spectral_unclamped"])
def test_a_convolution_is_the_equations_on_its_matrix(nesterov: bool, adjust: str) -> None:
    if not torch_adjusts_by(adjust):
        with pytest.raises(ValueError, match=f"{adjust}' is not known to torch .*, which has orig"):
            Muon([nn.Parameter(torch.randn(6, 3))], adjust_lr_fn=adjust)
        return
    lr, m, decay = 0.02, 0.9, 0.1
    torch.manual_seed(1)
    w = nn.Parameter(torch.randn(6, 3, 3, 3))
    optimizer = Muon(
        [w], lr=lr, momentum=m, weight_decay=decay, nesterov=nesterov, adjust_lr_fn=adjust
    )
    x = w.detach().double().numpy().reshape(6, 27)
    v = np.zeros_like(x)
    scale = {
        "match_rms_adamw": 0.2 * 27**0.5,
        "original": 1.0,
        "spectral_unclamped": (6 / 27) ** 0.5,
    }
    for step in range(3):
        torch.manual_seed(step)
        w.grad = torch.randn_like(w)
        g = w.grad.double().numpy().reshape(6, 27)
        v = m * v + (1 - m) * g
        u = newton_schulz((1 - m) * g + m * v if nesterov else v)
        x = (1 - lr * decay) * x - lr * scale[adjust] * u
        optimizer.step()
    # The iteration runs in bfloat16: its values near 0.2 are right to a few thousandths.
    np.testing.assert_allclose(
        w.detach().numpy().reshape(6, 27), x, atol=3 * lr * scale[adjust] * 0.01
    )
    assert np.abs(lr * scale[adjust] * u).max() > 0.1 * lr * scale[adjust]


def test_it_is_torchs_muon_and_adamw_bit_for_bit() -> None:
    ours, theirs = network(), network()
    optimizer = Muon(groups(ours), lr=0.01)
    conv, rest = theirs[0].weight, [theirs[0].bias, *theirs[1].parameters(), theirs[3].weight]
    matrix = nn.Parameter(conv.detach().flatten(1))  # shares the convolution's memory
    muon = torch.optim.Muon(
        [matrix], lr=0.01, momentum=0.95, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(rest, lr=0.01, weight_decay=0.0)
    for step in range(4):
        gradients(ours, step)
        gradients(theirs, step)
        matrix.grad = conv.grad.flatten(1)
        for o in (optimizer, muon, adamw):
            o.step()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_channels_last_weights_are_updated_alike() -> None:
    plain = network()
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    made = [Muon(groups(m), lr=0.01) for m in (plain, last)]
    for step in range(3):
        for model, optimizer in zip((plain, last), made, strict=True):
            gradients(model, step)
            optimizer.step()
    assert last[0].weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last[0].weight, plain[0].weight, rtol=0, atol=1e-3)
    moved = (plain[0].weight - network()[0].weight).abs().mean()
    assert moved > 3e-3  # on average more than the rounding allowed for above


def test_weights_that_cannot_be_flattened_in_place_are_updated_too() -> None:
    """Some values of a larger tensor: no strides make a matrix of them."""
    big = torch.zeros(4, 3, 7)
    w = nn.Parameter(big[:, :, :6:2])
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        w.view(4, 9)
    same = nn.Parameter(torch.zeros(4, 3, 3))
    a, b = Muon([w], lr=0.1), Muon([same], lr=0.1)
    for step in range(2):
        torch.manual_seed(step)
        w.grad = torch.randn(4, 3, 3)
        same.grad = w.grad.clone()
        a.step()
        b.step()
    assert torch.equal(w, same) and big.count_nonzero() == 36


def test_updates_of_matrices_are_nearly_orthogonal() -> None:
    w = nn.Parameter(torch.zeros(8, 20))
    optimizer = Muon([w], lr=1.0, weight_decay=0.0, adjust_lr_fn="original")
    torch.manual_seed(0)
    w.grad = torch.randn(8, 20) * torch.logspace(-2, 2, 8).unsqueeze(1)
    optimizer.step()
    values = torch.linalg.svdvals(w.detach())
    assert values.max() < 1.3 and (values > 0.4).sum() >= 6


# -- the contract of every optimizer of ours -----------------------------------------------------


def made(params: list[nn.Parameter], **more: object) -> Muon:
    weights = [p for p in params if p.ndim > 1]
    rest = [p for p in params if p.ndim <= 1]
    own = [{"params": weights}, {"params": rest, "adapt": False, "weight_decay": 0.0}]
    return Muon(own, **{"lr": 0.02, **more})


def test_state_goes_on_bit_for_bit_through_a_safe_file() -> None:
    unbroken = support.parameters()
    optimizer = made(unbroken)
    support.run(optimizer, unbroken, range(3))
    file = io.BytesIO()
    torch.save({"params": support.values(unbroken), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = [nn.Parameter(value) for value in saved["params"]]
    other = made(resumed, lr=9.0)
    other.load_state_dict(saved["optimizer"])
    support.run(optimizer, unbroken, range(3, 6))
    support.run(other, resumed, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(unbroken, resumed, strict=True))


def test_copies_go_on_alike() -> None:
    params = support.parameters()
    optimizer = made(params)
    support.run(optimizer, params, range(2))
    other, copied = copy.deepcopy((optimizer, params))
    support.run(optimizer, params, range(2, 4))
    support.run(other, copied, range(2, 4))
    assert all(torch.equal(a, b) for a, b in zip(params, copied, strict=True))


def test_closure() -> None:
    params = support.parameters()
    optimizer = made(params)

    def closure() -> float:
        optimizer.zero_grad()
        loss = sum(((p - 1.0) ** 2).sum() for p in params)
        loss.backward()
        return loss.item()

    first = optimizer.step(closure)
    last = [optimizer.step(closure) for _ in range(4)][-1]
    assert first is not None and last is not None and last < first


def test_parameters_without_gradient_are_left_alone() -> None:
    params = support.parameters()
    optimizer = made(params)
    before = support.values(params)
    optimizer.step()
    support.set_gradients(params, 0)
    params[0].grad = params[1].grad = None
    optimizer.step()
    for index in (0, 1):
        assert torch.equal(params[index], before[index])
        assert params[index] not in optimizer.state
    assert not torch.equal(params[2], before[2]) and not torch.equal(params[3], before[3])


def test_schedulers_and_tensors_as_learning_rate() -> None:
    params, plain, steady = (support.parameters() for _ in range(3))
    optimizers = [made(params, lr=torch.tensor([0.02])), made(plain), made(steady)]
    schedulers = [WarmupPolynomial(o, total=6, warmup=2) for o in optimizers[:2]]
    for step in range(4):
        for own, o in zip((params, plain, steady), optimizers, strict=True):
            support.set_gradients(own, step)
            o.step()
        for scheduler in schedulers:
            scheduler.step()
    torch.testing.assert_close(params, plain, rtol=1e-6, atol=1e-8)
    assert not torch.equal(plain[0], steady[0])


def test_gradient_scaler() -> None:
    params, plain = (support.parameters(torch.float32) for _ in range(2))
    optimizer, other = made(params), made(plain)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.zeros(()))
    for step in range(3):
        support.set_gradients(params, step)
        support.set_gradients(plain, step)
        for p in params:
            p.grad.mul_(scaler.get_scale())
        if step == 1:
            params[1].grad[0] = torch.inf
        before = support.values(params)
        scaler.step(optimizer)
        scaler.update()
        if step == 1:
            assert all(torch.equal(a, b) for a, b in zip(params, before, strict=True))
        else:
            other.step()
    torch.testing.assert_close(params, plain)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\]=1.0"),
        ({"adjust_lr_fn": "none"}, "allowed are original, match_rms_adamw"),
        ({"ns_steps": 0}, "from 1 to 99"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
    ],
)
def test_settings_out_of_range(setting: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Muon([torch.zeros(2, 2)], **setting)
    optimizer = Muon([torch.zeros(2, 2)])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [torch.zeros(3)], **setting})
    assert len(optimizer.param_groups) == 1


def test_complex_and_sparse_are_refused() -> None:
    with pytest.raises(ValueError, match=r"parameter 1.*is complex"):
        Muon([torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.complex64)])
    embedding = nn.Embedding(4, 2, sparse=True)
    optimizer = Muon(embedding.parameters())
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match=r"sparse gradients.*\(4, 2\).*sparse=False"):
        optimizer.step()
