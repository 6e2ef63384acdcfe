"""torch.compile of a split model: one graph, one compilation per layout."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend

import conadv
from support.nets import images, perturb_norms, twin

MIXED = [("clean", 5), ("adversarial", 3)]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


def small_net():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5)
    )


@pytest.mark.parametrize(
    ("statistics", "group_size"), [("separate", 4), ("affine", None), ("affine", 4), ("shared", 4)]
)
def test_one_graph_and_the_same_step(statistics, group_size):
    layout = MIXED if group_size is None else [("clean", 4), ("adversarial", 4)]
    model = perturb_norms(
        conadv.split_norms(small_net(), statistics=statistics, group_size=group_size)
    )
    other = twin(model)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(other, fullgraph=True, backend=counter)
    x = images()
    for _ in range(2):
        with conadv.route(model, layout), conadv.route(compiled, layout):
            want, got = model(x), compiled(x)
        torch.testing.assert_close(got, want)
        want.square().sum().backward()
        got.square().sum().backward()
    assert counter.frame_count == 1
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(two.grad, one.grad, atol=1e-4, rtol=1e-4, msg=name)
    for (name, one), two in zip(model.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(two, one, msg=name)


def test_alternating_routes_compile_once_each():
    model = conadv.split_norms(small_net()).eval()
    counter = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    x = images()
    for _ in range(5):
        compiled(x)
        for layout in ("clean", "adversarial", MIXED):
            with conadv.route(compiled, layout):
                compiled(x)
    # Unrouted, clean, adversarial, mixed: the first two may or may not share one.
    assert counter.frame_count <= 4


# Of torch 2.9's own compiler.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_block_inside_the_compiled_function():
    model = perturb_norms(conadv.split_norms(small_net())).eval()
    x = images()

    def step(x):
        with conadv.route(model, "adversarial"):
            one = model(x)
        return one, model(x)

    want = step(x)
    got = torch.compile(step, backend="eager")(x)
    torch.testing.assert_close(got, want)
    assert model[1].router.layout is None
