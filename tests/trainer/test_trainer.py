"""One step of the trainer: what it computes, what it survives, and exact continuation."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import conadv
from conadv.errors import NonFiniteError
from conadv.schedules import Schedule
from conadv.trainer.distributed.data_parallel import Exchange
from conadv.trainer.step import Precision, StepReport
from conadv.trainer.trainer import MAX_SKIPS_IN_A_ROW, Trainer
from conadv.trainer.update import Update

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
CPU = torch.device("cpu")
STEPS = 6


class RandomFeed:
    """Each step's micro-batches are drawn from a seed of the step; one step can be made NaN."""

    def __init__(self, sizes: list[int], bad: tuple[int, ...] = (), steps: int = STEPS) -> None:
        self._sizes = sizes
        self.bad = bad
        self.total_steps, self.micro_steps = steps, len(sizes)

    def sizes(self, step: int) -> list[int]:
        return self._sizes

    def whole(self, step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(step)
        total = sum(self._sizes)
        images = torch.rand(total, 3, 8, 8, generator=generator)
        shape = (1, 3, 1, 1)
        images = (images - torch.tensor(MEAN).view(shape)) / torch.tensor(STD).view(shape)
        if step in self.bad:
            images[0] = float("nan")
        return images, torch.randint(0, 4, (total,), generator=generator)

    def micro_batch(self, step: int, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.whole(step)
        return images.split(self._sizes)[index], labels.split(self._sizes)[index]

    def sample_ids(self, step: int) -> list[int]:
        return [1000 * step + i for i in range(sum(self._sizes))]

    def images(self, step: int) -> int:
        return step * sum(self._sizes)

    def views(self, step: int, index: int) -> dict[str, tuple[Tensor, Tensor]]:
        return {}

    def epoch(self, step: int) -> float:
        return step / self.total_steps


def network(norm: bool = True, dropout: float = 0.3) -> nn.Module:
    torch.manual_seed(3)
    layers: list[nn.Module] = [nn.Conv2d(3, 6, 3)]
    if norm:
        layers.append(nn.BatchNorm2d(6))
    layers += [nn.ReLU(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(6 * 36, 4)]
    return nn.Sequential(*layers)


def make(
    feed: RandomFeed,
    schedule: str | Schedule = "recycled",
    model: nn.Module | None = None,
    lr: float = 0.05,
    dtype: torch.dtype | None = None,
    **update: Any,
) -> Trainer:
    model = conadv.split_norms(model or network())
    attack = conadv.Attack(8 / 255, mean=MEAN, std=STD)
    adversary = conadv.Adversary(model, attack, schedule, seed=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    precision = Precision(CPU, dtype)
    return Trainer(
        model,
        adversary,
        Update(model, optimizer, lambda step: 1 - step / STEPS, precision.grad_scaler(), **update),
        nn.CrossEntropyLoss(),
        feed,
        Exchange(model),
        precision,
    )


def run(trainer: Trainer, until: int = STEPS) -> list[StepReport]:
    reports = []
    while trainer.step < until:
        reports.append(trainer.train_step())
    return reports


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return trainer.model.state_dict()


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert torch.equal(value, b[key]), key


def test_it_is_the_loop_that_a_library_user_writes() -> None:
    feed = RandomFeed([8])
    trainer = make(feed, model=network(dropout=0.0))
    by_hand = make(feed, model=network(dropout=0.0))
    reports = run(trainer)
    adversary, optimizer = by_hand.adversary, by_hand.update.optimizer
    losses = []
    for step in range(STEPS):
        images, labels = feed.whole(step)
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / STEPS)
        adversary.progress = step / STEPS
        loss = adversary.loss(images, labels, by_hand.criterion)
        loss.backward()
        adversary.collect()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    assert_same(weights(trainer), weights(by_hand))
    assert [r.loss for r in reports] == losses
    assert reports[-1].step == STEPS and reports[-1].images == 8 * STEPS


@pytest.mark.parametrize("sizes", [[4, 4, 4], [5, 5, 2]], ids=["even", "ragged"])
def test_accumulation_equals_the_big_batch(sizes: list[int]) -> None:
    """Without batch statistics and dropout, the cut into micro-batches must not matter."""
    whole = make(RandomFeed([12]), "vanilla", network(norm=False, dropout=0.0))
    cut = make(RandomFeed(sizes), "vanilla", network(norm=False, dropout=0.0))
    for a, b in zip(run(whole), run(cut), strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-5)
        assert a.gradient_norm == pytest.approx(b.gradient_norm, rel=1e-4)
        assert a.accuracy == b.accuracy
    for key, value in weights(whole).items():
        torch.testing.assert_close(value, weights(cut)[key], rtol=1e-4, atol=1e-6)


def test_micro_batch_losses_are_not_scaled_down_by_the_global_batch() -> None:
    """The gradient that the attack sees is that of a micro-batch's mean: fp16 survives it."""
    seen: list[float] = []
    trainer = make(RandomFeed([4] * 8, steps=1), "vanilla", network(dropout=0.0))
    original = trainer.adversary.loss

    def spy(*args: Any, **kwargs: Any) -> Tensor:
        seen.append(kwargs["fraction"])
        return original(*args, **kwargs)

    trainer.adversary.loss = spy  # type: ignore[method-assign]
    run(trainer, 1)
    assert seen == [1.0] * 8


def test_clipping_bounds_the_update() -> None:
    free = make(RandomFeed([8]))
    clipped = make(RandomFeed([8]), clip_grad_norm=0.01)
    before = copy.deepcopy(weights(clipped))
    norm = run(free, 1)[0].gradient_norm
    report = run(clipped, 1)[0]
    assert norm > 0.1
    assert report.gradient_norm > 0.1  # reported before clipping
    parameters = [name for name, _ in clipped.model.named_parameters()]
    moved = sum(float((weights(clipped)[n] - before[n]).square().sum()) for n in parameters) ** 0.5
    assert moved == pytest.approx(0.05 * 0.01, rel=1e-3)


SCHEDULES: dict[str, Any] = {
    "vanilla": lambda: "vanilla",
    "sequential": lambda: "sequential",
    "lookahead": lambda: conadv.Lookahead(tau=2),
    "lookahead2": lambda: conadv.Lookahead(tau=4),
    "recycled": lambda: "recycled",
    "fixed": lambda: conadv.Recycled(share=0.25, budget="fixed"),
    "refine": lambda: conadv.Recycled(share=0.5, refine=2),
    "noise": lambda: "noise",
}


@pytest.mark.parametrize(
    ("schedule", "dtype"),
    [(s, d) for s in SCHEDULES for d in (None, torch.bfloat16)] + [("recycled", torch.float16)],
)
def test_continuing_from_a_state_is_exact(schedule: str, dtype: torch.dtype | None) -> None:
    make_schedule = SCHEDULES[schedule]
    feed = RandomFeed([4, 4])
    options: dict[str, Any] = {"dtype": dtype, "ema_decay": 0.5}
    unbroken = make(feed, make_schedule(), **options)
    torch.manual_seed(11)
    reports = run(unbroken)

    first = make(feed, make_schedule(), **options)
    torch.manual_seed(11)
    early = run(first, 3)
    file = io.BytesIO()
    torch.save([first.state_dict(), first.rank_state_dict()], file)
    file.seek(0)
    second = make(feed, make_schedule(), **options)
    torch.manual_seed(99)
    second.load_state_dict(*torch.load(file, weights_only=True))
    late = run(second)
    assert [*early, *late] == reports
    assert_same(weights(second), weights(unbroken))
    assert second.update.ema is not None and unbroken.update.ema is not None
    assert_same(second.update.ema.state_dict(), unbroken.update.ema.state_dict())


def test_fp16_scales_its_loss_and_keeps_the_attack_alive() -> None:
    trainer = make(RandomFeed([8, 8]), "recycled", dtype=torch.float16)
    fresh = make(RandomFeed([8, 8]))
    reports = run(trainer)
    assert trainer.update.scaler.is_enabled()
    assert all(r.zero_share is not None and r.zero_share < 0.05 for r in reports)
    assert any(not torch.equal(v, weights(fresh)[k]) for k, v in weights(trainer).items())


def test_ema_averages_weights_and_statistics() -> None:
    trainer = make(RandomFeed([8]), ema_decay=0.9)
    run(trainer, 1)
    assert trainer.update.ema is not None
    first = copy.deepcopy(weights(trainer))
    assert_same(trainer.update.evaluated_model.state_dict(), first)
    run(trainer, 2)
    for key, value in trainer.update.evaluated_model.state_dict().items():
        if value.is_floating_point():
            expected = first[key] * 0.9 + weights(trainer)[key] * 0.1
            torch.testing.assert_close(value, expected)


VOID_GRADIENT = pytest.mark.filterwarnings("ignore:.*input gradient is (exactly zero|NaN)")


# -- NaN ----------------------------------------------------------------------------------------


def test_nan_stops_with_step_rate_and_samples_and_leaves_the_weights() -> None:
    trainer = make(RandomFeed([4, 4], bad=(2,)))
    run(trainer, 2)
    before = {n: p.clone() for n, p in trainer.model.named_parameters()}
    with pytest.raises(NonFiniteError) as raised:
        run(trainer)
    message = str(raised.value)
    assert "step 3: the loss is nan" in message
    assert f"learning rate {0.05 * (1 - 2 / STEPS):g}" in message
    assert "2000, 2001, 2002, 2003, 2004, 2005, 2006, 2007" in message
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name])


@VOID_GRADIENT
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_nan_skipped_leaves_no_trace(schedule: str) -> None:
    feed = RandomFeed([4, 4], bad=(2,))
    trainer = make(feed, SCHEDULES[schedule](), skip_nonfinite=True, ema_decay=0.5)
    for _ in range(2):
        trainer.train_step()
    before = copy.deepcopy(weights(trainer))
    momentum = copy.deepcopy(trainer.update.optimizer.state_dict()["state"])
    report = trainer.train_step()
    assert report.skipped and report.step == 3 and report.images == 24
    assert_same(weights(trainer), before)
    for key, state in trainer.update.optimizer.state_dict()["state"].items():
        assert torch.equal(state["momentum_buffer"], momentum[key]["momentum_buffer"])
    for _ in range(STEPS - 3):
        later = trainer.train_step()
        assert not later.skipped
        assert later.loss == later.loss
    assert all(v.isfinite().all() for v in weights(trainer).values())
    assert all(v.isfinite().all() for v in trainer.update.evaluated_model.state_dict().values())


def test_infinite_gradient_under_a_finite_loss_counts_as_void() -> None:
    trainer = make(RandomFeed([8]), "vanilla")
    parameter = next(trainer.model.parameters())
    parameter.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteError, match=r"gradient's norm (inf|nan)"):
        run(trainer)


@VOID_GRADIENT
def test_skipping_for_ever_is_refused() -> None:
    steps = MAX_SKIPS_IN_A_ROW + 5
    feed = RandomFeed([4], bad=tuple(range(steps)), steps=steps)
    trainer = make(feed, skip_nonfinite=True)
    with pytest.raises(NonFiniteError, match="steps in a row were void"):
        run(trainer, steps)
    assert trainer.step == MAX_SKIPS_IN_A_ROW
