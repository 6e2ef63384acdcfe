"""What is counted of a network, against closed forms and autograd's own numbers."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import conadv
from conadv.commands._plan_inputs import job_of
from conadv.lab.planning import SCHEDULES, Job, Loader, Method, Network, count, deal, memory_of
from conadv.lab.planning.job import Dealt
from conadv.trainer.models.zoo import create_model
from conadv.trainer.recipe import load_recipe


@pytest.fixture(scope="module")
def resnet50() -> Network:
    return count(create_model("timm/resnet50", 3, 1000), (3, 224, 224))


def small() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


def test_a_resnet50_has_its_known_cost(resnet50: Network) -> None:
    assert resnet50.forward / 2 == pytest.approx(4.09e9, rel=0.005)  # multiply-accumulates
    assert resnet50.parameters == 25_557_032
    assert resnet50.gradient_bytes == 4 * 25_557_032
    assert resnet50.attack == pytest.approx(2 * resnet50.forward)
    assert resnet50.recycle == pytest.approx(3 * resnet50.forward)
    stem = 2 * 7 * 7 * 3 * 64 * 112 * 112
    assert resnet50.train == resnet50.recycle - stem


@pytest.mark.parametrize(
    ("schedule", "ratio"),
    [("vanilla", 1), ("sequential", 8 / 3), ("lookahead", 8 / 3), ("recycled", 2), ("noise", 2)],
)
def test_the_ratios_of_the_method(resnet50: Network, schedule: str, ratio: float) -> None:
    method = Method(schedule)
    assert method.operations(resnet50) / resnet50.train == pytest.approx(ratio, rel=0.01)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("vanilla", conadv.Vanilla),
        ("sequential", conadv.Sequential),
        ("lookahead", conadv.Lookahead),
        ("recycled", conadv.Recycled),
        ("recycled-budget", lambda: conadv.Recycled(share=0.25, budget="fixed")),
        ("noise", conadv.Noise),
    ],
)
def test_operations_are_those_of_a_real_step(
    name: str, make: Callable[[], conadv.schedules.Schedule]
) -> None:
    """The planner's sum of passes against torch's counter around the library's own step."""
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8)
    model = conadv.split_norms(small())
    attack = conadv.Attack(4 / 255, mean=(0.5,) * 3, std=(0.25,) * 3)
    adversary = conadv.Adversary(model, attack, make())
    fresh = adversary.fresh_images(8)

    def step() -> None:
        adversary.peek(images[:fresh], labels[:fresh])
        loss = adversary.loss(images[:fresh], labels[:fresh], nn.functional.cross_entropy)
        loss.backward()
        adversary.collect()

    step()  # the first round has no copies yet
    step()
    with FlopCounterMode(display=False) as counter:
        step()
    network = count(small(), (3, 16, 16), torch.float32)
    method = Method(name, share=0.25 if name == "recycled-budget" else 1.0)
    assert counter.get_total_flops() == pytest.approx(8 * method.operations(network))


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
def test_a_fixed_budget_costs_what_vanilla_does(resnet50: Network, share: float) -> None:
    method = Method("recycled-budget", share=share)
    assert method.work.images == pytest.approx(1.0)
    assert method.operations(resnet50) / resnet50.train == pytest.approx(1.0, rel=0.011)


def test_operations_by_hand() -> None:
    network = count(small(), (3, 16, 16), torch.float32)
    first, second, head = 2 * 27 * 8 * 256, 2 * 72 * 16 * 256, 2 * 16 * 10
    assert network.forward == first + second + head
    assert network.train == 3 * network.forward - first
    assert network.recycle == 3 * network.forward
    assert network.attack == 2 * network.forward


@pytest.mark.parametrize("groups", [1, 4, 16])
def test_grouped_convolutions_by_hand(groups: int) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 1, bias=False),
        nn.Conv2d(16, 16, 3, groups=groups, padding=1, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    network = count(model, (3, 8, 8), torch.float32)
    stem, grouped = 2 * 3 * 16 * 64, 2 * 9 * 16 * 16 // groups * 64
    assert network.forward == stem + grouped
    assert network.train == 2 * stem + 3 * grouped
    assert network.attack == 2 * network.forward


def test_gradients_get_ready_in_the_order_of_the_backward_pass() -> None:
    model = small()
    network = count(model, (3, 16, 16), torch.float32)
    sizes = [size for _, size in network.ready]
    assert sizes[-1] == model[0].weight.nbytes
    assert set(sizes[:2]) == {model[6].weight.nbytes, model[6].bias.nbytes}
    shares = [share for share, _ in network.ready]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)
    assert sum(sizes) == sum(p.nbytes for p in model.parameters())


@pytest.mark.parametrize("capacity", [1.0, 1000.0, 4096.0, 1e9])
def test_buckets_hold_everything_and_fill_up(capacity: float) -> None:
    network = count(small(), (3, 8, 8), torch.float32)
    buckets = network.buckets(capacity)
    assert sum(size for _, size in buckets) == network.gradient_bytes
    assert all(size >= capacity for _, size in buckets[:-1])
    assert buckets[-1][0] == pytest.approx(1.0)


def test_a_branch_without_images_travels_with_its_sibling() -> None:
    model = conadv.split_norms(small())
    network = count(model, (3, 8, 8), torch.float32)
    assert network.gradient_bytes == sum(p.nbytes for p in model.parameters())
    norms = [share for share, size in network.ready if size == 8 * 4]
    assert len(norms) == 4
    assert max(norms) - min(norms) < 1e-9


def test_activations_are_what_autograd_keeps() -> None:
    """Counted without values, against the same hooks on a real pass."""
    network = count(small(), (3, 16, 16), torch.float32)
    model, images = small(), torch.randn(8, 3, 16, 16)
    own = {p.data_ptr() for p in model.state_dict(keep_vars=True).values()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(images)
        loss = nn.functional.cross_entropy(output, torch.zeros(8, dtype=torch.long))
    loss.backward()
    assert network.saved_once + 8 * network.saved == pytest.approx(sum(kept.values()), rel=0.02)


def test_lower_precision_keeps_about_half() -> None:
    full = count(small(), (3, 16, 16), torch.float32)
    half = count(small(), (3, 16, 16), torch.bfloat16)
    assert half.train == full.train
    assert half.saved < 0.65 * full.saved


def test_counting_leaves_the_model_as_it_was() -> None:
    model = small().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count(model, (3, 8, 8))
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


# -- memory ------------------------------------------------------------------------------------

JOB = Job(1024, 64, 32, 10_000, epochs=2, optimizer_states=2, averaged=True)


def test_memory_by_hand() -> None:
    network = count(small(), (3, 16, 16), torch.float32)
    weights, values = 4 * network.parameters, 3 * 16 * 16
    plain = memory_of(network, JOB, Method(), Dealt(64, 4))
    assert (plain.weights, plain.gradients, plain.optimizer) == (weights, weights, 3 * weights)
    assert plain.activations == network.saved_once + 64 * network.saved
    assert plain.pending == 0
    ahead = memory_of(network, JOB, Method("lookahead", settings={"tau": 2}), Dealt(64, 4))
    assert ahead.pending == 2 * 4 * 64 * values / 8  # a bit per value of two steps' images
    assert ahead.activations == network.saved_once + 128 * network.saved
    whole = memory_of(network, JOB, Method("lookahead", packed=False), Dealt(64, 4))
    assert whole.pending == 4 * 64 * values * 4
    recycled = memory_of(network, JOB, Method("recycled"), Dealt(64, 4))
    assert recycled.pending == 64 * values * 4  # one micro-batch, however many rounds
    budget = memory_of(network, JOB, Method("recycled-budget", 0.25), Dealt(64, 4))
    assert budget.activations == plain.activations
    assert budget.pending == 16 * values * 4
    beside = memory_of(network, JOB, Method("lookahead"), Dealt(64, 4), beside=True)
    assert beside.activations == ahead.activations + 64 * network.attack_saved
    given = memory_of(network, JOB, Method(), Dealt(64, 4), saved_per_image=1e6)
    assert given.activations == pytest.approx(network.saved_once + 64e6)


def test_steps_follow_the_fresh_images() -> None:
    assert JOB.total_steps(Method()) == round(2 * 10_000 / 1024)
    assert JOB.total_steps(Method("recycled-budget", 0.25)) == round(2 * 10_000 / 768)


@pytest.mark.parametrize(("tail", "steps"), [("wrap", 20), ("drop", 18), ("keep", 20)])
def test_steps_follow_the_end_of_an_epoch(tail: Any, steps: int) -> None:
    assert replace(JOB, order_tail=tail).total_steps(Method()) == steps
    recipe = load_recipe("smoke", ["train.epochs=2", f"data.order_tail={tail}"])
    job = job_of(recipe, Loader())
    assert job.total_steps(Method()) == recipe.total_steps(job.train_images)


@pytest.mark.parametrize("devices", [1, 2, 4, 8, 16, 32])
def test_groups_stay_whole(devices: int) -> None:
    dealt = deal(JOB, devices)
    assert dealt.micro_batch * dealt.rounds * devices == 1024
    assert dealt.micro_batch % 32 == 0 and dealt.micro_batch <= 64


def test_what_cannot_be_dealt_says_what_can() -> None:
    for devices, near in ((3, "2, 4"), (64, "16, 32")):
        with pytest.raises(ValueError, match=f"{devices} devices.*32.*{near}"):
            deal(JOB, devices)
    with pytest.raises(ValueError, match="at least 1"):
        deal(JOB, 0)


def test_refused_methods() -> None:
    with pytest.raises(ValueError, match=", ".join(SCHEDULES)):
        Method("sam")
    with pytest.raises(ValueError, match="no fresh image"):
        Method("recycled-budget")
