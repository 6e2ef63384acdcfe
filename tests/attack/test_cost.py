"""What an attack costs, through which wrappers it looks, and that a compiled one is the same."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.utils.flop_counter import FlopCounterMode

import conadv
from conadv import Attack
from conadv.attack.forward import BareForward


def flops(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def convolutions():
    """Stride 1 and one width, so that one pass costs the same in every direction."""
    return nn.Sequential(
        *(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)) for _ in range(3)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def batch(n=4, channels=8):
    return torch.rand(n, channels, 8, 8), torch.arange(n) % channels


@pytest.mark.parametrize("steps", [1, 3])
def test_a_step_costs_two_forwards_and_not_three(steps):
    model = convolutions()
    images, labels = batch()
    forward = flops(lambda: model(images))
    attack = Attack(0.1, steps=steps)
    assert flops(lambda: attack(model, images, labels, F.cross_entropy)) == 2 * steps * forward
    # The measure can tell: a training step with the images' gradient is 3F, without it 3F - stem.
    leaf = images.clone().requires_grad_()
    assert flops(lambda: F.cross_entropy(model(leaf), labels).backward()) == 3 * forward


def test_ddp_is_looked_through():
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = conadv.split_norms(convolutions())
        images, labels = batch()
        want = Attack(0.1, branch="adversarial")(model, images, labels, F.cross_entropy)
        wrapped = nn.parallel.DistributedDataParallel(model)

        def never(*args, **kwargs):
            raise AssertionError("the attack went through the wrapper")

        wrapped.forward, forward = never, wrapped.forward
        attack = Attack(0.1, branch="adversarial")
        assert torch.equal(attack(wrapped, images, labels, F.cross_entropy), want)
        wrapped.forward = forward
        assert all(p.grad is None for p in model.parameters())
        # The reducer is in order: forward, attack, backward; then the next step.
        for _ in range(2):
            with conadv.route(wrapped, [("clean", 2), ("adversarial", 2)]):
                loss = F.cross_entropy(wrapped(images), labels)
            attack(wrapped, images, labels, F.cross_entropy)
            loss.backward()
        assert all(p.grad is not None for p in model.parameters())
    finally:
        dist.destroy_process_group()


class CountingBackend:
    """aot_eager, and every graph's forward and backward written down."""

    def __init__(self):
        self.backward_outputs = []
        self.forwards = 0

    def __call__(self, graph, example_inputs):
        from functorch.compile import make_boxed_func
        from torch._dynamo.backends.common import aot_autograd

        def forward(graph, inputs):
            self.forwards += 1
            return make_boxed_func(graph.forward)

        def backward(graph, inputs):
            (output,) = graph.graph.find_nodes(op="output")
            self.backward_outputs.append(sum(out is not None for out in output.args[0]))
            return make_boxed_func(graph.forward)

        return aot_autograd(fw_compiler=forward, bw_compiler=backward)(graph, example_inputs)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_compiled_model_gives_the_same_copies_and_no_weight_gradients(mode):
    torch._dynamo.reset()
    backend = CountingBackend()
    model = conadv.split_norms(convolutions())
    images, labels = batch()
    attack = Attack(0.1, branch="adversarial", mode=mode, steps=2)
    want = attack(model, images, labels, F.cross_entropy)
    statistics = {n: b.clone() for n, b in model.named_buffers()}

    compiled = torch.compile(model, backend=backend)
    forward = BareForward(compiled)

    def run():
        generator = torch.Generator().manual_seed(0)
        return attack.perturb(forward, images, labels, F.cross_entropy, generator).images

    copies = run()
    torch.testing.assert_close(copies, want, atol=1e-6, rtol=0)
    # Compiled by the user's backend; one backward graph, with the images' gradient alone.
    assert backend.backward_outputs == [1]
    assert all(torch.equal(b, statistics[n]) for n, b in model.named_buffers())
    # Training in between recompiles neither.
    with conadv.route(compiled, [("clean", 2), ("adversarial", 2)]):
        F.cross_entropy(compiled(images), labels).backward()
    graphs = backend.forwards
    assert backend.backward_outputs[-1] > 1
    for _ in range(3):
        run()
        with conadv.route(compiled, [("clean", 2), ("adversarial", 2)]):
            F.cross_entropy(compiled(images), labels).backward()
    assert backend.forwards == graphs


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_in_place():
    """By Module.compile(): the class stays, and the attack finds the user's backend."""
    torch._dynamo.reset()
    backend = CountingBackend()
    model = convolutions().eval()
    images, labels = batch()
    want = Attack(0.1)(model, images, labels, F.cross_entropy)
    model.compile(backend=backend)
    got = Attack(0.1)(model, images, labels, F.cross_entropy)
    torch.testing.assert_close(got, want, atol=1e-6, rtol=0)
    assert backend.backward_outputs == [1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_many_models_in_one_process_are_all_compiled():
    """The compiler counts recompilations per function: the models must not share one."""
    torch._dynamo.reset()
    backend = CompileCounter()
    images, labels = torch.rand(4, 4), torch.tensor([0, 1, 2, 0])
    with torch._dynamo.config.patch(recompile_limit=2):
        for width in range(4):
            model = nn.Sequential(nn.Linear(4, 3 + width), nn.Tanh(), nn.Linear(3 + width, 3))
            Attack(0.1)(torch.compile(model, backend=backend), images, labels, F.cross_entropy)
    assert backend.frame_count == 4
