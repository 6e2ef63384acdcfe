"""Lightning's Trainer and Fabric equal the plain loop, bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning")

from lightning.pytorch import LightningModule

from support import lightning_loops
from support.gloo import of_case, run_cases
from support.trainers import SETTINGS, assert_same, data, outcome, plain_loop


def micro_batches(options: dict[str, Any]) -> list[Any]:
    return data(options.get("accumulation", 1))


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_trainer_equals_the_plain_loop(setting: str) -> None:
    options = SETTINGS[setting]
    found = lightning_loops.train(micro_batches(options), **options)
    assert_same(found, outcome(*plain_loop(micro_batches(options), **options)))


@pytest.mark.parametrize("setting", ["fp32", "accumulation"])
def test_manual_optimisation_equals_the_plain_loop(setting: str) -> None:
    options = SETTINGS[setting]
    found = lightning_loops.train_by_hand(micro_batches(options), **options)
    assert_same(found, outcome(*plain_loop(micro_batches(options), **options)))


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_step_with_a_loss_of_its_own_equals_the_plain_loop(setting: str) -> None:
    options = SETTINGS[setting]
    found = lightning_loops.train_mixed(micro_batches(options), **options)
    assert_same(found, outcome(*plain_loop(micro_batches(options), **options)))


def test_a_step_with_a_loss_of_its_own_under_manual_optimisation() -> None:
    found = lightning_loops.train_mixed(data(2), accumulate_by_hand=2)
    assert_same(found, outcome(*plain_loop(data(2), accumulation=2)))


def test_batches_may_be_dicts_of_which_one_entry_is_images() -> None:
    named = [{"pixels": images, "labels": labels} for images, labels in data()]
    assert_same(
        lightning_loops.train_mixed(named, mix="pixels"), lightning_loops.train_mixed(data())
    )
    for mix, batches in ((True, named), ("labels of", named), ("pixels", data())):
        with pytest.raises(ValueError, match=r"takes \(images, labels\), ConAdv\(mix='key'\)"):
            lightning_loops.train_mixed(batches, mix=mix)


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_module_gets_its_own_step_back(interrupted: bool) -> None:
    module = lightning_loops.OwnLoss()
    if interrupted:
        with pytest.raises(ValueError, match="the batch is a Tensor"):
            lightning_loops.fit(module, [torch.zeros(4)], mix=True)
    else:
        lightning_loops.fit(module, data(), mix=True)
    assert module.training_step.__func__ is lightning_loops.OwnLoss.training_step


@pytest.mark.parametrize("setting", [*SETTINGS, "lookahead"])
def test_fabric_equals_the_plain_loop(setting: str) -> None:
    options = SETTINGS.get(setting, {"schedule": setting})
    found = lightning_loops.fabric_train(micro_batches(options), **options)
    assert_same(found, outcome(*plain_loop(micro_batches(options), **options)))


def test_resumed_runs_equal_the_unbroken_ones(tmp_path: Path) -> None:
    twice = outcome(*plain_loop(data() + data()))
    assert_same(lightning_loops.resume(data(), tmp_path), twice)
    assert_same(lightning_loops.resume(data(), tmp_path, lightning_loops.OwnLoss, mix=True), twice)
    once = outcome(*plain_loop(data()))
    assert_same(lightning_loops.fabric_resume(data(), tmp_path), once)


def test_a_checkpoint_without_the_callback_is_told() -> None:
    module = lightning_loops.Module()
    with pytest.warns(UserWarning, match="written without the callback ConAdv"):
        lightning_loops.ConAdv().on_load_checkpoint(None, module, {})


def test_what_cannot_work_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="lookahead has to see the next batch"):
        lightning_loops.train(data(), schedule="lookahead")

    with pytest.raises(ValueError, match="or are they of mix.., whose batch is for the model"):
        lightning_loops.fit(lightning_loops.Module(), data(), mix=True)
    with pytest.raises(RuntimeError, match="collect.. without a loss"):
        lightning_loops.fit(lightning_loops.OwnLoss(), data())

    class Forgotten(LightningModule):
        def training_step(self, batch: Any) -> torch.Tensor:
            return batch[0].sum()

    with pytest.raises(ValueError, match=r"Forgotten\.adversary is no Adversary"):
        lightning_loops.ConAdv().setup(None, Forgotten(), "fit")


@pytest.mark.slow
def test_two_ranks_equal_the_plain_loop_in_ddp(tmp_path_factory: pytest.TempPathFactory) -> None:
    results = run_cases("support.lightning_loops", lightning_loops.WORLD, tmp_path_factory)
    for (case,) in results[0]:
        first, second = of_case(results, case)
        for found in (first, second):
            assert_same(found["trainer"], found["plain"])
        with pytest.raises(AssertionError):  # each rank has copies of its own
            assert_same(first["trainer"], second["trainer"])
