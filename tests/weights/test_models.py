"""Compiled, channels-last and checkpointed models, tied weights, and every optimizer."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from conadv.optim import LAMB, LARS, Muon, param_groups
from conadv.weights import Recycled, Sequential, WeightAdversary, WeightAttack
from support.loops import CLASSES, assert_same_state, batches, cross_entropy, network, run, sgd
from support.weights import ATTACK, DATA, SCHEDULES, train

every_schedule = pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)


@pytest.fixture
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@every_schedule
def test_it_learns(make) -> None:
    model = network()
    adversary = WeightAdversary(model, ATTACK, make())
    losses = run(adversary, sgd(model, 0.05), batches(2) * 8)
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    assert adversary.images == 8 * 16 and adversary.diagnostics.outputs.shape == (8, CLASSES)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("name", ["sequential", "recycled", "lookahead", "slot"])
def test_compiled_training_is_eager_training(name: str) -> None:
    eager, _ = train(SCHEDULES[name], DATA)
    model, counter = network(), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter)
    adversary, optimizer, graphs = WeightAdversary(compiled, ATTACK, SCHEDULES[name]()), None, []
    optimizer = sgd(model)
    run(adversary, optimizer, DATA, before_step=lambda: graphs.append(counter.frame_count))
    # Passes that move the running statistics, and passes that do not.
    assert graphs[-1] <= 2 and graphs[1] == graphs[-1]
    assert_same_state(eager, model, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.filterwarnings("ignore")  # of the compiler's own
def test_compiling_in_place() -> None:
    eager, _ = train(Recycled, DATA)
    model = network()
    model.compile(backend="aot_eager")
    train(Recycled, DATA, model=model)
    assert_same_state(eager, model, rtol=1e-4, atol=1e-5)


def test_channels_last_stays_channels_last() -> None:
    data = [(x.contiguous(memory_format=torch.channels_last), y) for x, y in DATA]
    model = network().to(memory_format=torch.channels_last)
    seen = []

    def note(module, given) -> None:
        seen.append(module.weight.is_contiguous(memory_format=torch.channels_last))

    model[3].register_forward_pre_hook(note)
    train(Recycled, data, model=model)
    assert len(seen) >= 10 and all(seen)
    plain, _ = train(Recycled, DATA)
    assert_same_state(plain, model, rtol=1e-3, atol=1e-4)


class Checkpointed(nn.Module):
    """The network, its two blocks run again in the backward."""

    def __init__(self, model: nn.Sequential, **options) -> None:
        super().__init__()
        self.stem = model[:1]  # reentrant autograd wants inputs with a gradient
        self.blocks = nn.ModuleList([model[1:3], model[3:6]])
        self.head = model[6:]
        self.options = options

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = checkpoint(block, x, **self.options) if self.options else block(x)
        return self.head(x)


@pytest.mark.parametrize("norm", [True, False])
@every_schedule
def test_checkpoints_are_run_again_at_the_weights_of_their_pass(make, norm: bool) -> None:
    plain, _ = train(make, DATA, model=Checkpointed(network(norm=norm)))
    model = Checkpointed(network(norm=norm), use_reentrant=False)
    train(make, DATA, model=model)
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["recycled", "sequential"])
def test_reentrant_checkpoints_are_refused(name: str) -> None:
    model = Checkpointed(network(), use_reentrant=True)
    images, labels = DATA[0]
    adversary = WeightAdversary(model, ATTACK, name)
    with pytest.raises(ValueError, match="use_reentrant=False"):
        adversary.loss(images, labels, cross_entropy)


@pytest.mark.parametrize("schedule", ["sequential", "recycled", "slot"])
def test_gradients_are_ready_as_the_backward_pass_goes(schedule: str) -> None:
    """So that an all-reduce can begin beside it."""
    model, order = network(), []
    for name in ("0.weight", "8.weight"):
        parameter = model.get_parameter(name)
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: order.append(name))

    def watch(module, given, output) -> None:
        if output.requires_grad:
            output.register_hook(lambda _: order.append("output of the first layer"))

    adversary = WeightAdversary(model, WeightAttack(0.05, centred=False), schedule)
    model[0].register_forward_hook(watch)
    for images, labels in DATA[:2]:
        loss = adversary.loss(images, labels, cross_entropy)
        order.clear()
        loss.backward()
        adversary.collect()
    # With recycled's two passes the first one is last.
    assert order[-3:] == ["8.weight", "output of the first layer", "0.weight"]


def test_tied_weights_move_together() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(192, 192, bias=False)
            self.second = nn.Linear(192, 192, bias=False)
            self.second.weight = self.first.weight
            self.seen: list[bool] = []

        def forward(self, x):
            self.seen.append(self.first.weight is self.second.weight)
            return self.second(self.first(x.flatten(1)).relu())[:, :CLASSES]

    torch.manual_seed(3)
    model = Tied()
    adversary = WeightAdversary(model, WeightAttack(0.05, micro_batch=4))
    run(adversary, sgd(model, 0.01), DATA)
    assert adversary._passes.space.names == ["first.weight"] and all(model.seen)


OPTIMIZERS = {
    "LARS": lambda model: LARS(param_groups(model, 1e-4), lr=1.0),
    "LAMB": lambda model: LAMB(param_groups(model, 1e-4), lr=0.01),
    "Muon": lambda model: Muon(param_groups(model), lr=0.02),
    "AdamW": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("schedule", [Sequential, Recycled])
def test_any_optimizer_with_clipping_and_an_average(make, schedule) -> None:
    model = network()
    optimizer, average = make(model), AveragedModel(model)
    adversary = WeightAdversary(model, ATTACK, schedule())
    norms = []

    def clip() -> None:
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.5).item())
        average.update_parameters(model)

    losses = run(adversary, optimizer, batches(2) * 6, before_step=clip)
    assert sum(losses[-3:]) < sum(losses[:3]) and all(norm > 0 for norm in norms)
    assert not any("parametrizations" in key for key in average.state_dict())
