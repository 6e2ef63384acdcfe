"""SAM, asynchronous SAM, VR-LARS, Muon and longer training, in the trainer."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import conadv
from conadv import optim
from conadv.optim import LARS, SAM, AsyncSAM, Muon, VarianceReduction
from conadv.trainer.distributed.data_parallel import Exchange
from conadv.trainer.step import Precision, StepReport
from conadv.trainer.trainer import Trainer
from conadv.trainer.update import Update
from support import loops
from support.runs import StopAfter, assert_same_state, final_state, quietly, tiny

STEPS = 6
CPU = torch.device("cpu")


class RandomFeed:
    """Each step's micro-batches are drawn from a seed of the step; some steps can be NaN."""

    def __init__(
        self, sizes: list[int], bad: tuple[int, ...] = (), dtype: torch.dtype = torch.float32
    ) -> None:
        self._sizes, self.bad, self.total_steps, self._dtype = sizes, bad, STEPS, dtype
        self.micro_steps = len(sizes)

    def sizes(self, step: int) -> list[int]:
        return self._sizes

    def whole(self, step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(step)
        total = sum(self._sizes)
        images = torch.randn(total, 3, 6, 6, generator=generator).to(self._dtype)
        if step in self.bad:
            images[0] = float("nan")
        return images, torch.randint(0, 4, (total,), generator=generator)

    def micro_batch(self, step: int, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.whole(step)
        return images.split(self._sizes)[index], labels.split(self._sizes)[index]

    def views(self, step: int, index: int) -> dict[str, tuple[Tensor, Tensor]]:
        return {}

    def images(self, step: int) -> int:
        return step * sum(self._sizes)

    def sample_ids(self, step: int) -> list[int]:
        return list(range(sum(self._sizes)))

    def epoch(self, step: int) -> float:
        return step / self.total_steps


def network(norm: bool = True, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(3)
    middle: list[nn.Module] = [nn.BatchNorm2d(6)] if norm else []
    head = [nn.ReLU(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(6 * 16, 4)]
    return nn.Sequential(nn.Conv2d(3, 6, 3), *middle, *head)


MakeUpdate = Callable[[list[Tensor]], dict[str, Any]]
UPDATES: dict[str, MakeUpdate] = {
    "sam": lambda p: {"sam": SAM(p, 0.2)},
    "async": lambda p: {"sam": AsyncSAM(p, 0.2)},
    "reduction": lambda p: {"variance_reduction": VarianceReduction(p, momentum=0.5)},
}


def make(
    feed: RandomFeed, method: str | None, model: nn.Module, optimizer: Any = None, **update: Any
) -> Trainer:
    attack = conadv.Attack(0.1, pixel_range=None)
    parameters = list(model.parameters())
    optimizer = optimizer or LARS(parameters, lr=0.5, trust_coefficient=0.05)
    update |= {} if method is None else UPDATES[method](parameters)
    return Trainer(
        model,
        conadv.Adversary(model, attack, "vanilla", seed=5),
        Update(model, optimizer, lambda step: 1 - step / STEPS, **update),
        nn.CrossEntropyLoss(),
        feed,  # type: ignore[arg-type]
        Exchange(model),
        Precision(CPU),
    )


def run(trainer: Trainer, until: int = STEPS) -> list[StepReport]:
    return [trainer.train_step() for _ in range(until - trainer.step)]


def assert_same(a: nn.Module, b: nn.Module) -> None:
    other = b.state_dict()
    for key, value in a.state_dict().items():
        assert torch.equal(value, other[key]), key


# -- SAM -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sam", "async"])
def test_a_step_is_the_loop_that_a_library_user_writes(kind: str) -> None:
    feed = RandomFeed([8])
    trainer, by_hand = make(feed, kind, network()), network()
    reports = run(trainer, 4)
    optimizer = LARS(by_hand.parameters(), lr=0.5, trust_coefficient=0.05)
    sam = UPDATES[kind](list(by_hand.parameters()))["sam"]
    norm, losses = by_hand[1], []
    for step in range(4):
        optimizer.param_groups[0]["lr"] = 0.5 * (1 - step / STEPS)
        images, labels = feed.whole(step)
        nn.functional.cross_entropy(by_hand(images), labels).backward()
        sam.take_gradient()
        statistics = copy.deepcopy(norm.state_dict())
        with sam.perturbed():
            loss = nn.functional.cross_entropy(by_hand(images), labels)
            loss.backward()
        for key in ("running_mean", "running_var", "num_batches_tracked"):
            norm.state_dict()[key].copy_(statistics[key])  # those of the weights themselves
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    assert_same(trainer.model, by_hand)
    assert int(norm.num_batches_tracked) == 4
    assert [r.loss for r in reports] == losses


@pytest.mark.parametrize("kind", ["sam", "async"])
@pytest.mark.parametrize("sizes", [[4, 4, 4], [5, 5, 2]], ids=["even", "ragged"])
def test_the_perturbation_is_that_of_the_whole_step(kind: str, sizes: list[int]) -> None:
    """Without batch statistics the cut into micro-batches must not matter."""
    whole = make(RandomFeed([12]), kind, network(norm=False))
    cut = make(RandomFeed(sizes), kind, network(norm=False))
    for a, b in zip(run(whole), run(cut), strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-5)
        assert a.gradient_norm == pytest.approx(b.gradient_norm, rel=1e-4)
    other = cut.model.state_dict()
    for key, value in whole.model.state_dict().items():
        torch.testing.assert_close(value, other[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["sam", "async"])
def test_it_costs_two_gradients_of_the_same_images(kind: str) -> None:
    plain = run(make(RandomFeed([4, 4]), None, network()))[-1]
    trainer = make(RandomFeed([4, 4]), kind, network())
    found = run(trainer)[-1]
    assert found.compute == 2 * plain.compute == 2 * 8 * STEPS
    assert found.images == plain.images == trainer.adversary.images
    assert found.loss != plain.loss


def test_dropout_is_the_same_in_both_passes() -> None:
    """With a radius of 0 the two passes give the same gradient, so training is ordinary."""
    feed = RandomFeed([4, 4])
    sam = make(feed, "sam", network(dropout=0.5))
    assert sam.update.sam is not None
    sam.update.sam.rho = 0.0
    plain = make(feed, None, network(dropout=0.5))
    assert [r.loss for r in run(sam)] == [r.loss for r in run(plain)]
    assert_same(sam.model, plain.model)


@pytest.mark.parametrize("update", UPDATES)
def test_a_void_step_leaves_no_trace(update: str) -> None:
    """The steps around it are those of a run in which it was never taken."""
    bad = make(RandomFeed([4, 4], bad=(2,)), update, network(), skip_nonfinite=True)
    reports = run(bad)
    assert [r.skipped for r in reports] == [step == 2 for step in range(STEPS)]
    without = make(RandomFeed([4, 4]), update, network(), skip_nonfinite=True)
    run(without, 2)
    without.step = 3
    run(without)
    assert_same(bad.model, without.model)


@pytest.mark.parametrize("update", UPDATES)
def test_clipping_bounds_the_update_all_the_same(update: str) -> None:
    """To the length that is allowed: it is the gradient that is applied whose norm counts."""
    model = network()
    sgd = torch.optim.SGD(model.parameters(), lr=0.5)
    trainer = make(RandomFeed([4, 4]), update, model, sgd, clip_grad_norm=1e-3)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    report = run(trainer, 1)[0]
    assert report.gradient_norm > 0.1
    moved = [p.detach() - b for p, b in zip(trainer.model.parameters(), before, strict=True)]
    size = torch.cat([m.flatten() for m in moved]).norm().item()
    assert size == pytest.approx(0.5e-3, rel=1e-2)


# -- variance reduction --------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[4, 4, 4], [5, 5, 2]], ids=["even", "ragged"])
def test_groups_are_the_micro_batches(sizes: list[int]) -> None:
    """The update is LARS on r g, r from the gradients that autograd gives for each of them.

    In double: r divides by a difference of numbers that may be nearly equal.
    """
    feed = RandomFeed(sizes, dtype=torch.float64)
    by_hand = network(norm=False).double()
    trainer = make(feed, "reduction", copy.deepcopy(by_hand))
    report = run(trainer, 1)[0]
    own: list[list[Tensor]] = []
    for index in range(len(sizes)):
        images, labels = feed.micro_batch(0, index)
        loss = nn.functional.cross_entropy(by_hand(images), labels)
        own.append(list(torch.autograd.grad(loss, list(by_hand.parameters()))))
    share = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
    means = []
    for index, p in enumerate(by_hand.parameters()):
        groups = torch.stack([gradients[index] for gradients in own])
        weight = share.view(-1, *[1] * p.ndim)
        mean = (weight * groups).sum(0)
        ratio = mean**2 / ((weight * groups**2).sum(0) - mean**2)
        means.append(mean)
        p.grad = (ratio / ratio.mean()).clamp(0.1, 1.0) * mean
    LARS(by_hand.parameters(), lr=0.5, trust_coefficient=0.05).step()
    for p, q in zip(trainer.model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9)
    whole = torch.cat([m.flatten() for m in means]).norm()  # as it was before it was scaled
    assert report.gradient_norm == pytest.approx(float(whole), rel=1e-5)


# -- whole runs ----------------------------------------------------------------------------------

RUNS: dict[str, tuple[str, ...]] = {
    "sam": ("method.sam=sam", "method.rho=0.2"),
    "async": ("method.sam=async", "method.rho=0.2"),
    "vr-lars": ("optimizer.variance_reduction=true", "optimizer.name=lars", "optimizer.lr=2"),
    "vr-sgd": ("optimizer.variance_reduction=true", "optimizer.gsnr_momentum=0.9"),
    "muon": ("optimizer.name=muon", "optimizer.lr=0.01"),
    "muon-sam": ("optimizer.name=muon", "optimizer.lr=0.01", "method.sam=sam"),
}
WITH_COPIES: dict[str, tuple[str, ...]] = {
    "muon-recycled": (*RUNS["muon"], "method.schedule=recycled"),
    "vr-recycled": (*RUNS["vr-lars"], "method.schedule=recycled"),
    "muon-view": (*RUNS["muon"], "method.view=plain"),
    "sam-view": (*RUNS["sam"], "method.view=plain"),
}
VANILLA = "method.schedule=vanilla"


def of(name: str) -> tuple[str, ...]:
    if name in RUNS:
        return (VANILLA, *RUNS[name])
    given = WITH_COPIES[name]
    return given if "method.schedule=recycled" in given else (VANILLA, *given)


@pytest.mark.parametrize("name", [*RUNS, *WITH_COPIES])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_is_the_unbroken_one(name: str, precision: str, tmp_path: Path) -> None:
    recipe = tiny(*of(name), f"hardware.precision={precision}", "model.name=cifar/resnet8")
    quietly(recipe, tmp_path / "whole")
    with pytest.raises(conadv.errors.Interrupted):
        quietly(recipe, tmp_path / "broken", stop=StopAfter(3))
    quietly(recipe, tmp_path / "broken", resume=True)
    states = [final_state(tmp_path / run)["trainer"] for run in ("broken", "whole")]
    for state in states:  # torch notes a key of its own in loaded groups
        state["optimizer"] = state["optimizer"]["state"]
    assert_same_state(*states)
    lines = [(tmp_path / run / "metrics.jsonl").read_text() for run in ("broken", "whole")]
    assert lines[0] == lines[1]


def test_the_stale_gradient_is_in_the_checkpoint(tmp_path: Path) -> None:
    quietly(tiny(*of("async")), tmp_path)
    state = final_state(tmp_path)["trainer"]
    gradients = state["sam"]["gradient"]
    assert sum(float(g.abs().sum()) for g in gradients) > 0


def test_result_json_tells_the_method_and_its_compute(tmp_path: Path) -> None:
    names = {"sam": ("SAM", 2.0), "async": ("async SAM", 2.0), "vr-lars": ("VR-LARS", 1.0)}
    for name, (label, compute) in names.items():
        quietly(tiny(*of(name)), tmp_path / name)
        result = json.loads((tmp_path / name / "result.json").read_text())
        assert result["method"] == label and result["schedule"] == "vanilla"
        assert result["compute"] / result["images_seen"] == pytest.approx(compute)


@pytest.mark.parametrize("tau", [1, 2, 4, 8])
def test_lookahead_of_every_staleness(tau: int, tmp_path: Path) -> None:
    given = ("method.schedule=lookahead", f"method.tau={tau}", "train.steps=10")
    result = quietly(tiny(*given), tmp_path)
    assert result.method == ("lookahead" if tau == 1 else f"lookahead, tau {tau}")
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    trained = [x["step"] for x in lines if x.get("adversarial_loss") is not None]
    assert trained == list(range(tau + 1, 11))  # the first tau steps have no copies


def test_longer_training_stretches_the_schedule(tmp_path: Path) -> None:
    once = tiny(VANILLA, "lr_schedule.warmup_epochs=1")
    twice = tiny(VANILLA, "lr_schedule.warmup_epochs=1", "train.steps_factor=2")
    assert twice.total_steps(48) == 2 * once.total_steps(48) == 12
    assert twice.warmup_steps(48) == 2 * once.warmup_steps(48) == 6
    epochs = tiny(VANILLA, "train.steps=null", "train.epochs=3", "train.steps_factor=2.6667")
    assert epochs.total_steps(48) == 24
    result = quietly(twice, tmp_path)
    assert (result.method, result.steps) == ("vanilla, 2x steps", 12)


# -- every schedule with every optimizer ---------------------------------------------------------

OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "lars": lambda m: LARS(optim.param_groups(m, 1e-4), lr=1.0),
    "lamb": lambda m: optim.LAMB(optim.param_groups(m, 1e-4), lr=0.01),
    "muon": lambda m: Muon(optim.param_groups(m, 1e-4), lr=0.01),
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01),
    "adafactor": lambda m: torch.optim.Adafactor(m.parameters(), lr=0.01),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("schedule", loops.SCHEDULES)
def test_every_schedule_lowers_the_loss_with_every_optimizer(schedule: str, optimizer: str) -> None:
    model = loops.network()
    adversary = conadv.Adversary(model, loops.ATTACK, loops.SCHEDULES[schedule](), seed=1)
    losses = loops.run(adversary, OPTIMIZERS[optimizer](model), loops.batches(1) * 12)
    assert losses[-1] < losses[0]
