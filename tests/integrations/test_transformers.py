"""Hugging Face's Trainer equals the plain loop, with images and with text."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import conadv
from support import transformers_loops as loops
from support.gloo import of_case, run_cases
from support.trainers import SETTINGS, SIZE, assert_same, data, outcome, plain_loop


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_vision_model_equals_the_plain_loop(setting: str, tmp_path: Path) -> None:
    options = SETTINGS[setting]
    micro_batches = data(options.get("accumulation", 1))
    plain = plain_loop(micro_batches, model=loops.resnet(), criterion=loops.criterion, **options)
    assert_same(loops.train(tmp_path, **options), outcome(*plain))


@pytest.mark.parametrize("make", [loops.bert, loops.gpt2, loops.llama])
def test_a_ragged_accumulated_step_counts_every_label_the_same(make: Any, tmp_path: Path) -> None:
    """Micro-batches of 4 and 2, each with a copy of all: as one batch of six."""
    attack = conadv.Attack(0.0, pixel_range=None)  # nothing random
    rows = loops.texts(6)
    if make is not loops.bert:  # a label for each word, of which the first is none to predict
        for row in rows:
            row["labels"] = row["input_ids"].where(row["attention_mask"] == 1, -100)

    def train(accumulation: int, size: int) -> torch.nn.Module:
        model = make()
        options = {"per_device_train_batch_size": size, "attack": attack, "schedule": "noise"}
        loops.trainer(model, rows, tmp_path, accumulation=accumulation, **options).train()
        return model

    left, right = train(2, 4).state_dict(), train(1, 6).state_dict()
    torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


def test_a_resumed_run_equals_the_unbroken_one(tmp_path: Path) -> None:
    plain = plain_loop(data(), model=loops.resnet(), criterion=loops.criterion)
    assert_same(loops.resume(tmp_path), outcome(*plain))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_text_equals_copies_of_embeddings_by_hand(norm: Any, tmp_path: Path) -> None:
    attack = replace(loops.TEXT_ATTACK, norm=norm, per="token")
    model, adversary = loops.train_text(tmp_path, attack)
    by_hand, copies = loops.plain_text(attack)
    torch.testing.assert_close(model.state_dict(), by_hand.state_dict(), rtol=1e-5, atol=1e-6)
    [pending] = adversary.schedule.state_dict()["pending"]
    assert ((pending["images"] - copies).abs() < 1e-5).float().mean() > 0.99
    inputs, mask, _ = pending["labels"]
    assert torch.equal(mask, inputs["attention_mask"])
    assert (mask == 0).any()
    assert not pending["images"][mask == 0].any()


@pytest.mark.parametrize("schedule", ["sequential", "recycled"])
def test_batches_of_text_may_differ_in_length(schedule: str, tmp_path: Path) -> None:
    ragged = loops.texts(2 * SIZE)
    for row in ragged[SIZE:]:
        row.update({key: row[key][:4] for key in ("input_ids", "attention_mask")})
    options = {"attack": loops.TEXT_ATTACK, "schedule": schedule}
    run = loops.trainer(loops.bert(), ragged, tmp_path, **options)
    run.train()
    assert run.adversary is not None
    assert run.adversary.diagnostics.images == 2 * SIZE


def test_features_of_a_vision_model_are_perturbed_where_a_layer_is_named(tmp_path: Path) -> None:
    attack = conadv.Attack(0.1, at="resnet.embedder")
    model = loops.resnet()
    run = loops.trainer(model, loops.images_of(data()), tmp_path, attack=attack)
    run.train()
    [pending] = run.adversary.schedule.state_dict()["pending"]
    assert pending["images"].shape[:2] == (SIZE, 8)


def test_what_cannot_work_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lookahead has to see the next batch"):
        loops.trainer(loops.resnet(), [], tmp_path, schedule="lookahead")
    rows = [{**row, "labels": row["input_ids"]} for row in loops.texts(SIZE)]
    options = {"attack": loops.TEXT_ATTACK, "schedule": "sequential"}
    with pytest.raises(ValueError, match="are not one row per sample: .* give criterion="):
        loops.trainer(loops.gpt2(), rows, tmp_path, **options).train()


@pytest.mark.slow
def test_two_ranks_equal_the_plain_loop_in_ddp(tmp_path_factory: pytest.TempPathFactory) -> None:
    results = run_cases("support.transformers_loops", loops.WORLD, tmp_path_factory)
    for (case,) in results[0]:
        first, second = of_case(results, case)
        for found in (first, second):
            assert_same(found["trainer"], found["plain"])
        with pytest.raises(AssertionError):  # each rank has copies of its own
            assert_same(first["trainer"], second["trainer"])
