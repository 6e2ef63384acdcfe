"""torch.compile: the same training, and a number of graphs that does not grow with the steps."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import conadv
from support.loops import ATTACK, SCHEDULES, assert_same_state, batches, network, run, sgd


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


GRAPHS = {
    # clean images, copies, and the attack's own graph with its detached parameters
    "vanilla": 1,
    "sequential": 3,
    "lookahead": 3,
    "lookahead, tau 2": 3,
    "recycled": 2,
    "recycled, fixed": 2,
    "recycled, refine": 4,
    "noise": 2,
}
"""With one forward per branch. The pipeline fills over its first rounds: batches of 4, then 8."""


@pytest.mark.parametrize("name", SCHEDULES)
def test_compiled_training_is_eager_training(name: str) -> None:
    data = batches(6)
    eager = network()
    run(conadv.Adversary(eager, ATTACK, SCHEDULES[name]()), sgd(eager), data)
    model, counter = network(), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter)
    adversary = conadv.Adversary(compiled, ATTACK, SCHEDULES[name]())
    optimizer, graphs = sgd(model), []
    loop = run_counting(adversary, optimizer, data, counter, graphs)
    assert len(loop) == 6
    assert graphs[-1] <= GRAPHS[name]
    assert graphs[3] == graphs[-1], "nothing is compiled once every kind of round was seen"
    assert_same_state(eager, model, rtol=1e-4, atol=1e-5)


def run_counting(adversary, optimizer, data, counter, graphs):
    return run(adversary, optimizer, data, before_step=lambda: graphs.append(counter.frame_count))


def test_joint_forwards_compile_the_first_round_and_the_others() -> None:
    eager, model, counter = network(), network(), CompileCounterWithBackend("aot_eager")
    run(conadv.Adversary(eager, ATTACK, "recycled", forward="joint"), sgd(eager), batches(6))
    compiled = torch.compile(model, backend=counter)
    adversary = conadv.Adversary(compiled, ATTACK, "recycled", forward="joint")
    run(adversary, sgd(model), batches(6))
    assert counter.frame_count <= 2
    assert_same_state(eager, model, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # of the compiler's own
def test_compiling_in_place() -> None:
    eager, model = network(), network()
    run(conadv.Adversary(eager, ATTACK, "recycled"), sgd(eager), batches(4))
    model.compile(backend="aot_eager")
    run(conadv.Adversary(model, ATTACK, "recycled"), sgd(model), batches(4))
    assert_same_state(eager, model, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler's own
def test_inductor() -> None:
    """Both callables: the training pass with its input gradient, and the attack."""

    def small():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5)]
        return conadv.split_norms(nn.Sequential(*layers))

    agreements, models = [], [small(), small()]
    for model in models:
        called = torch.compile(model) if model is models[1] else model
        adversary = conadv.Adversary(called, ATTACK, "recycled", track_agreement=True)
        run(adversary, sgd(model, 0.01), batches(3))
        agreements.append(adversary.diagnostics.agreement.item())
    # A gradient that is zero but for rounding may change its sign: not bit for bit.
    assert_same_state(*models, rtol=1e-2, atol=1e-2)
    assert agreements[0] == pytest.approx(agreements[1], abs=0.01)
