"""What every optimizer of ours promises, whatever its options and however it is computed."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

from conadv.optim import WarmupPolynomial
from support import optimizers as support

Case = tuple[str, str]


COMPUTED = [(c, i) for c in support.OPTIONS for i in ("reference", "foreach")]


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", COMPUTED, indirect=True, ids="-".join)


def test_equals_the_reference(case: Case) -> None:
    name, implementation = case
    ours, theirs = support.parameters(), support.parameters()
    optimizer = support.make(name, implementation, ours)
    reference = support.make(name, "reference", theirs)
    for step in range(4):
        for params in (ours, theirs):
            support.set_gradients(params, step)
            if step == 1:
                params[0].grad = None
            if step == 2:
                params[3].grad.zero_()
        for o in (optimizer, reference):
            o.param_groups[0]["lr"] = 0.1 * (step + 1)
            o.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    for a, b in zip(ours, theirs, strict=True):
        for key, value in reference.state[b].items():
            torch.testing.assert_close(optimizer.state[a][key], value, rtol=1e-12, atol=1e-14)


def test_state_goes_on_bit_for_bit_through_a_safe_file(case: Case) -> None:
    unbroken = support.parameters()
    optimizer = support.make(*case, unbroken)
    support.run(optimizer, unbroken, range(3))
    file = io.BytesIO()
    torch.save({"params": support.values(unbroken), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = [nn.Parameter(value) for value in saved["params"]]
    other = support.make(*case, resumed, lr=123.0)
    other.load_state_dict(saved["optimizer"])
    support.run(optimizer, unbroken, range(3, 6))
    support.run(other, resumed, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(unbroken, resumed, strict=True))


@pytest.mark.parametrize("through", ["deepcopy", "pickle"])
def test_copies_go_on_alike(case: Case, through: str) -> None:
    params = support.parameters()
    optimizer = support.make(*case, params)
    support.run(optimizer, params, range(2))
    both = (optimizer, params)
    other, copied = (
        copy.deepcopy(both) if through == "deepcopy" else pickle.loads(pickle.dumps(both))
    )
    support.run(optimizer, params, range(2, 4))
    support.run(other, copied, range(2, 4))
    assert all(torch.equal(a, b) for a, b in zip(params, copied, strict=True))


def test_closure(case: Case) -> None:
    params = support.parameters()
    optimizer = support.make(*case, params)

    def closure() -> float:
        optimizer.zero_grad()
        loss = sum(((p - 1.0) ** 2).sum() for p in params)
        loss.backward()  # needs gradients to be enabled again
        return loss.item()

    first = optimizer.step(closure)
    last = [optimizer.step(closure) for _ in range(4)][-1]
    assert first is not None and last is not None
    assert last > first if optimizer.defaults["maximize"] else last < first


def test_maximize_is_descent_of_the_negative(case: Case) -> None:
    up, down = support.parameters(), support.parameters()
    flag = not support.OPTIONS[case[0]][1].get("maximize", False)
    climbing = support.make(*case, up, maximize=flag)
    falling = support.make(*case, down, maximize=not flag)
    for step in range(3):
        support.set_gradients(up, step)
        support.set_gradients(down, step)
        for p in down:
            p.grad.neg_()
        climbing.step()
        falling.step()
    torch.testing.assert_close(up, down, rtol=1e-12, atol=1e-14)


def test_groups_have_settings_of_their_own(case: Case) -> None:
    name, implementation = case
    kind, options = support.OPTIONS[name]
    how = support.IMPLEMENTATIONS[implementation]
    params, first, second = (support.parameters() for _ in range(3))
    together = kind(
        [
            {"params": params[:3], "lr": 0.3, "weight_decay": 0.2},
            {"params": []},
            *[{"params": params[3:], "adapt": False}],
        ],
        **options,
        **how,
    )
    alone = kind(first[:3], **{**options, "lr": 0.3, "weight_decay": 0.2}, **how)
    other = kind([{"params": second[3:], "adapt": False}], **options, **how)
    support.run(together, params, range(3))
    for optimizer, own in ((alone, first), (other, second)):
        support.run(optimizer, own, range(3))
    torch.testing.assert_close(params, first[:3] + second[3:], rtol=1e-12, atol=1e-14)


def test_parameters_without_gradient_are_left_alone(case: Case) -> None:
    params = support.parameters()
    optimizer = support.make(*case, params)
    before = support.values(params)
    optimizer.step()  # nothing has a gradient
    support.set_gradients(params, 0)
    params[0].grad = params[2].grad = None
    optimizer.step()
    for index in (0, 2):
        assert torch.equal(params[index], before[index])
        assert params[index] not in optimizer.state
    assert not torch.equal(params[1], before[1]) and not torch.equal(params[3], before[3])


def test_zero_gradients_and_zero_weights_stay_finite(case: Case) -> None:
    params = support.parameters()
    with torch.no_grad():
        params[0].zero_()
    optimizer = support.make(*case, params)
    for step in range(3):
        support.set_gradients(params, step)
        params[3].grad.zero_()
        optimizer.step()
    assert all(p.isfinite().all() for p in params)
    assert params[0].count_nonzero() > 0  # a ratio of 0 would keep a weight at 0 for ever


def test_gradients_stay_and_changed_weights_are_noticed(case: Case) -> None:
    params = support.parameters()
    optimizer = support.make(*case, params)
    support.set_gradients(params, 0)
    gradients = [p.grad.clone() for p in params]
    versions = [p._version for p in params]
    optimizer.step()
    assert all(torch.equal(p.grad, g) for p, g in zip(params, gradients, strict=True))
    assert all(p._version > version for p, version in zip(params, versions, strict=True))


def test_scheduler_changes_the_learning_rate(case: Case) -> None:
    params, steady = support.parameters(), support.parameters()
    optimizer, other = support.make(*case, params), support.make(*case, steady)
    scheduler = StepLR(optimizer, step_size=2, gamma=0.5)
    for step in range(4):
        support.set_gradients(params, step)
        support.set_gradients(steady, step)
        if step == 2:
            for group in other.param_groups:
                group["lr"] = group["lr"] * 0.5
        optimizer.step()
        other.step()
        scheduler.step()
    assert all(torch.equal(a, b) for a, b in zip(params, steady, strict=True))


def test_learning_rate_as_a_tensor(case: Case) -> None:
    params, plain = support.parameters(), support.parameters()
    lr = support.OPTIONS[case[0]][1]["lr"]
    tensor = torch.tensor([lr], dtype=torch.float64)
    optimizer = support.make(*case, params, lr=tensor)
    other = support.make(*case, plain)
    schedulers = [WarmupPolynomial(o, total=6, warmup=2) for o in (optimizer, other)]
    for step in range(4):
        for own in (params, plain):
            support.set_gradients(own, step)
        for o, scheduler in zip((optimizer, other), schedulers, strict=True):
            o.step()
            scheduler.step()
    torch.testing.assert_close(params, plain, rtol=1e-12, atol=1e-14)


def test_how_it_is_computed_is_not_loaded(case: Case) -> None:
    name, implementation = case
    params = support.parameters()
    optimizer = support.make(name, "reference", params, capturable=True)
    support.run(optimizer, params, range(2))
    loaded = [nn.Parameter(p) for p in support.values(params)]
    other = support.make(name, implementation, loaded, capturable=False, lr=9.0, maximize=True)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    own = other.param_groups[0]
    assert own["lr"] == optimizer.param_groups[0]["lr"]
    assert own["maximize"] == optimizer.param_groups[0]["maximize"]
    assert own["foreach"] is support.IMPLEMENTATIONS[implementation]["foreach"]
    assert own["capturable"] is False
    support.run(optimizer, params, range(2, 4))
    support.run(other, loaded, range(2, 4))
    torch.testing.assert_close(params, loaded, rtol=1e-6, atol=1e-7)


def test_gradient_scaler(case: Case) -> None:
    params, plain = (support.parameters(torch.float32) for _ in range(2))
    optimizer, other = support.make(*case, params), support.make(*case, plain)
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


def test_half_precision_and_mixed_dtypes(case: Case) -> None:
    exact = support.parameters(torch.float32)
    with torch.no_grad():
        for p in exact:
            p.copy_(p.bfloat16())
    mixed = [
        nn.Parameter(p.detach().to(torch.bfloat16 if i % 2 else torch.float32, copy=True))
        for i, p in enumerate(exact)
    ]
    optimizer, other = support.make(*case, mixed), support.make(case[0], "reference", exact)
    for step in range(2):
        for own in (mixed, exact):
            support.set_gradients(own, step)
            for p in own:
                p.grad = p.grad.bfloat16().to(p.dtype)
        optimizer.step()
        other.step()
    for p, q in zip(mixed, exact, strict=True):
        low = p.dtype == torch.bfloat16
        torch.testing.assert_close(
            p, q, rtol=2**-6 if low else 1e-5, atol=2**-9 if low else 1e-6, check_dtype=False
        )
        for key, value in other.state[q].items():
            own = optimizer.state[p][key]
            assert key == "step" or own.dtype == p.dtype
            largest = float(value.abs().amax()) if value.numel() else 0.0
            close = (0.02 if low else 1e-5) * largest
            torch.testing.assert_close(own, value, rtol=1e-5, atol=close, check_dtype=False)


def test_sparse_gradients_are_refused(case: Case) -> None:
    embedding = nn.Embedding(4, 2, sparse=True)
    kind, options = support.OPTIONS[case[0]]
    how = support.IMPLEMENTATIONS[case[1]]
    optimizer = kind(embedding.parameters(), **options, **how)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match=r"sparse gradients.*\(4, 2\).*sparse=False"):
        optimizer.step()


def test_complex_parameters_are_refused(case: Case) -> None:
    kind, options = support.OPTIONS[case[0]]
    how = support.IMPLEMENTATIONS[case[1]]
    with pytest.raises(ValueError, match=r"parameter 1.*complex64.*view_as_real"):
        kind([torch.zeros(2), torch.zeros(2, dtype=torch.complex64)], **options, **how)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"lr": torch.zeros(2)}, r"tensor of shape \(2,\)"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
        ({"eps": -1e-8}, "eps=-1e-08"),
        ({"trust_clip": 0.0}, "trust_clip=0.0"),
    ],
)
@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_settings_out_of_range(name: str, setting: dict[str, object], message: str) -> None:
    kind, options = support.OPTIONS[name]
    with pytest.raises(ValueError, match=message):
        kind([torch.zeros(2)], **{**options, **setting})
    optimizer = kind([torch.zeros(2)], **options)
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [torch.zeros(3)], **setting})
    assert len(optimizer.param_groups) == 1
