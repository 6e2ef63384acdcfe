"""A recipe's settings arrive where they belong."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import conadv
from conadv.errors import DataError, RecipeError
from conadv.trainer.build import build, make_attack, make_test_attack
from conadv.trainer.checkpoint.store import CheckpointStore
from conadv.trainer.input.load import load_splits
from conadv.trainer.update import learning_rate_factor
from support.runs import quietly, tiny

CPU = torch.device("cpu")


def test_lookahead_counts_updates() -> None:
    recipe = tiny("method.schedule=lookahead", "method.tau=3", "batch.micro_batch=4")
    schedule = build(recipe).trainer.adversary.schedule
    assert isinstance(schedule, conadv.Lookahead) and schedule.tau == 3 * 4


def test_share_and_weight_may_follow_training() -> None:
    recipe = tiny("method.share=[[0, 1.0], [1, 0.0]]", "method.weight=[[0, 0.5], [0.6, 0.0]]")
    schedule = recipe.method.make()
    assert schedule.share_at(0.25) == 0.75
    assert schedule.weight_at(0.3) == 0.25


def test_vanilla_is_an_ordinary_network() -> None:
    built = build(tiny("method.schedule=vanilla"))
    assert conadv.branch_names(built.trainer.model) == ()
    grouped = build(tiny("method.schedule=vanilla", "batch.norm_group=4")).trainer.model
    assert conadv.branch_names(grouped) == ("clean",)


def test_norm_groups_are_a_setting_of_their_own() -> None:
    model = build(tiny("batch.norm_group=4", "norm.statistics=affine")).trainer.model
    splits = [m for m in model.modules() if isinstance(m, conadv.branches.branches.SplitNorm)]
    assert splits and all(m.group_size == 4 and m.statistics == "affine" for m in splits)


@pytest.mark.parametrize("name", ["lars", "lamb", "sgd", "adamw", "RMSprop"])
def test_bias_and_norm_get_no_decay(name: str) -> None:
    trainer = build(tiny(f"optimizer.name={name}", "optimizer.weight_decay=0.25")).trainer
    decay = {
        id(p): group["weight_decay"]
        for group in trainer.update.optimizer.param_groups
        for p in group["params"]
    }
    for parameter in trainer.model.parameters():
        assert decay[id(parameter)] == (0.25 if parameter.ndim > 1 else 0)
    trainer.update.begin(step=2)  # after the warm-up
    assert [group["lr"] for group in trainer.update.optimizer.param_groups] == [0.05, 0.05]


def test_learning_rate_rule_and_schedule() -> None:
    recipe = tiny(
        "optimizer.lr_rule=linear",
        "optimizer.lr_base_batch=8",
        "lr_schedule.warmup_epochs=1",
        "lr_schedule.decay=poly",
        "lr_schedule.power=1",
        "lr_schedule.end_factor=0.2",
        "train.steps=9",
    )
    assert recipe.peak_lr == pytest.approx(0.1)
    factor = learning_rate_factor(recipe, 48)
    assert [round(factor(s), 6) for s in (0, 1, 2, 3, 6, 9)] == [
        round(1 / 3, 6),
        round(2 / 3, 6),
        1.0,
        1.0,
        0.6,
        0.2,
    ]


def test_optimizer_that_does_not_take_the_options() -> None:
    with pytest.raises(RecipeError, match=r"optimizer\.name=sgd does not take"):
        build(tiny("optimizer.betas=[0.9, 0.99]"))


def test_branch_that_vanilla_does_not_have() -> None:
    with pytest.raises(RecipeError, match=r"evaluation\.branch=adversarial"):
        build(tiny("method.schedule=vanilla", "evaluation.branch=adversarial"))


def test_global_batch_larger_than_the_data() -> None:
    with pytest.raises((RecipeError, DataError), match="64"):
        build(tiny("batch.global_batch=64", "batch.micro_batch=8"))


def test_same_seed_same_weights() -> None:
    a, b = (build(tiny()).trainer.model.state_dict() for _ in range(2))
    c = build(tiny("seed=1")).trainer.model.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)


def test_attack_of_training_has_every_setting_of_the_recipe() -> None:
    given = {
        "epsilon": 8 / 255,
        "norm": "l2",
        "steps": 3,
        "step_size": 2 / 255,
        "random_start": 0.5,
        "target": "random",
        "branch": "adversarial",
        "mode": "eval",
        "epsilon_min": 1 / 255,
        "block_size": 4,
    }
    usual = dict(tiny().attack)
    assert given.keys() == usual.keys() and all(given[name] != usual[name] for name in given)
    recipe = tiny("method.schedule=sequential", *(f"attack.{n}={v}" for n, v in given.items()))
    facts = load_splits(recipe, CPU).facts
    attack = make_attack(recipe, facts)
    assert {name: getattr(attack, name) for name in given} == given
    assert (attack.mean, attack.std) == (facts.mean, facts.std)
    tested = make_test_attack(recipe, facts)
    assert (tested.epsilon_min, tested.block_size, tested.target) == (None, 1, None)


def test_attack_of_the_test_set() -> None:
    recipe = tiny("evaluation.robust_steps=7", "evaluation.robust_epsilon=8/255")
    attack = make_test_attack(recipe, load_splits(recipe, CPU).facts)
    assert (attack.steps, attack.random_start, attack.epsilon) == (7, 1.0, 8 / 255)
    fgsm = make_test_attack(tiny("evaluation.robust_steps=0"), load_splits(recipe, CPU).facts)
    assert (fgsm.steps, fgsm.random_start, fgsm.epsilon) == (1, 0.0, 4 / 255)


def test_checkpoints_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import conadv.trainer.checkpoint.saver as module

    saved: list[int] = []
    original = CheckpointStore.save

    def spy(self: CheckpointStore, state: Any, step: int, *, best: bool = False) -> Path:
        saved.append(step)
        return original(self, state, step, best=best)

    seconds = iter(range(0, 100_000, 20))  # each look at the clock is 20 seconds later
    clock = SimpleNamespace(monotonic=lambda: next(seconds))
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(CheckpointStore, "save", spy)
    quietly(tiny("data.validation=0", "checkpoint.every_minutes=0.9"), tmp_path / "a")
    assert saved == [3, 6]
