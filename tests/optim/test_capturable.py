"""A step reads nothing back from the device, so a CUDA graph can capture it."""

from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from support import optimizers as support

CASES = [(c, i) for c in support.OPTIONS for i in ("reference", "foreach")]
cases = pytest.mark.parametrize("case", CASES, ids="-".join)


class NothingIsReadBack(TorchDispatchMode):
    """Refuses the operations by which Python learns the value of a tensor."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        names = ("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero")
        assert func._schema.name.removeprefix("aten::") not in names, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


@cases
def test_no_value_is_read_back(case: tuple[str, str]) -> None:
    params, watched = support.parameters(), support.parameters()
    lr = torch.tensor(support.OPTIONS[case[0]][1]["lr"], dtype=torch.float64)
    options: dict[str, Any] = {"lr": lr, "capturable": True}
    plain = support.make(*case, params, **options)
    optimizer = support.make(*case, watched, **options)
    for step in range(3):
        support.set_gradients(params, step)
        support.set_gradients(watched, step)
        plain.step()
        with NothingIsReadBack():
            optimizer.step()
        lr.fill_(0.3)  # in place: what a captured graph would see
    assert all(torch.equal(a, b) for a, b in zip(params, watched, strict=True))


def test_the_watch_sees_a_value_that_is_read_back() -> None:
    params = support.parameters()
    optimizer = support.make("lamb", "foreach", params)  # not capturable: reads its step count
    support.set_gradients(params, 0)
    with NothingIsReadBack(), pytest.raises(AssertionError, match="waits for the device"):
        optimizer.step()


@cases
def test_steps_need_no_values_at_all(case: tuple[str, str]) -> None:
    with FakeTensorMode():
        params = [nn.Parameter(torch.empty(shape)) for shape in support.SHAPES]
        optimizer = support.make(*case, params, capturable=True, lr=torch.empty(()))
        for p in params:
            p.grad = torch.empty_like(p)
        optimizer.step()
        optimizer.step()


@pytest.mark.parametrize("name", ["lars-nesterov", "lamb"])
def test_a_whole_step_can_be_traced_by_the_user(name: str) -> None:
    params, traced = support.parameters(), support.parameters()
    optimizer = support.make(name, "foreach", params, capturable=True)
    other = support.make(name, "foreach", traced, capturable=True, lr=torch.tensor(0.0))
    compiled = torch.compile(other.step, backend="eager", fullgraph=True)
    for step in range(2):
        support.set_gradients(params, step)
        support.set_gradients(traced, step)
        for group, own in zip(optimizer.param_groups, other.param_groups, strict=True):
            own["lr"].fill_(group["lr"])
        optimizer.step()
        compiled()
    torch.testing.assert_close(params, traced, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("moved", [True, False])
def test_step_count_follows_the_setting(moved: bool) -> None:
    params = support.parameters()
    optimizer = support.make("lamb", "foreach", params, capturable=not moved)
    support.run(optimizer, params, range(2))
    for group in optimizer.param_groups:
        group["capturable"] = moved
    support.run(optimizer, params, range(2, 3))
    assert all(state["step"].item() == 3 for state in optimizer.state.values())


def test_capture_without_capturable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    params = support.parameters()
    optimizer = support.make("lars", "foreach", params)
    support.set_gradients(params, 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="capturable=True, and lr as a tensor"):
        optimizer.step()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@cases
def test_cuda_graph_replays_steps(case: tuple[str, str]) -> None:
    def on_device() -> list[nn.Parameter]:
        return [nn.Parameter(p.detach().cuda()) for p in support.parameters(torch.float32)]

    params, captured = on_device(), on_device()
    rates = [torch.tensor(0.5, device="cuda") for _ in range(2)]
    plain = support.make(*case, params, capturable=True, lr=rates[0])
    optimizer = support.make(*case, captured, capturable=True, lr=rates[1])
    for own in (params, captured):
        support.set_gradients([p for p in own], 0)
        for p in own:
            p.grad = p.grad.cuda()
    for o in (plain, optimizer):
        o.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    for lr in (0.3, 0.1):
        for rate in rates:
            rate.fill_(lr)
        graph.replay()
        plain.step()
    torch.testing.assert_close(params, captured)
