"""Hugging Face's Trainer equals the plain loop, with images and with text."""

from pathlib import Path

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


def test_a_ragged_accumulated_step_counts_every_image_the_same(tmp_path: Path) -> None:
    """Micro-batches of 4 and 2, each with a copy of all: as one batch of six."""
    attack = conadv.Attack(0.0, pixel_range=None)  # nothing random

    def train(accumulation: int, size: int) -> torch.nn.Module:
        model = loops.bert()
        options = {"per_device_train_batch_size": size, "attack": attack}
        run = loops.trainer(
            model, loops.texts(6), tmp_path, accumulation=accumulation, **options, schedule="noise"
        )
        run.train()
        return model

    left, right = train(2, 4).state_dict(), train(1, 6).state_dict()
    torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


def test_a_resumed_run_equals_the_unbroken_one(tmp_path: Path) -> None:
    plain = plain_loop(data(), model=loops.resnet(), criterion=loops.criterion)
    assert_same(loops.resume(tmp_path), outcome(*plain))


def test_text_equals_copies_of_embeddings_by_hand(tmp_path: Path) -> None:
    model, adversary = loops.train_text(tmp_path)
    by_hand, copies = loops.plain_text()
    torch.testing.assert_close(model.state_dict(), by_hand.state_dict(), rtol=1e-5, atol=1e-6)
    [pending] = adversary.schedule.state_dict()["pending"]
    assert (pending["images"] == copies).float().mean() > 0.99
    masked = pending["labels"]["attention_mask"] == 0
    assert masked.any() and not pending["images"][masked].any()


def test_what_cannot_work_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lookahead has to see the next batch"):
        loops.trainer(loops.resnet(), [], tmp_path, schedule="lookahead")
    text = {"attack": loops.TEXT_ATTACK, "schedule": "sequential"}
    with pytest.raises(ValueError, match="sequential attacks images only"):
        loops.trainer(loops.bert(), loops.texts(SIZE), tmp_path, **text).train()
    ragged = loops.texts(2 * SIZE)
    for row in ragged[SIZE:]:
        row.update({key: row[key][:4] for key in ("input_ids", "attention_mask")})
    with pytest.raises(ValueError, match="4 tokens after one of 6: pad all to one length"):
        loops.trainer(loops.bert(), ragged, tmp_path, attack=loops.TEXT_ATTACK).train()


@pytest.mark.slow
def test_two_ranks_equal_the_plain_loop_in_ddp(tmp_path_factory: pytest.TempPathFactory) -> None:
    results = run_cases("support.transformers_loops", loops.WORLD, tmp_path_factory)
    for (case,) in results[0]:
        first, second = of_case(results, case)
        for found in (first, second):
            assert_same(found["trainer"], found["plain"])
        with pytest.raises(AssertionError):  # each rank has copies of its own
            assert_same(first["trainer"], second["trainer"])
