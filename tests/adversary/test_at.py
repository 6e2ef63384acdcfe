"""Copies of what a layer gives: embeddings of text, features of images."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import conadv
from support.nets import conv_net, images
from support.text import ATTACK, CLASSES, LENGTH, WIDTH, WORDS, batches, pending, text, train

SCHEDULES = ("sequential", "recycled", "noise")


# -- the oracle: what comes after the layer, given what the layer gives ------------------------


def token_net() -> nn.Sequential:
    torch.manual_seed(0)
    rest = [nn.Flatten(), nn.Linear(LENGTH * WIDTH, 8), nn.Tanh(), nn.Linear(8, CLASSES)]
    return nn.Sequential(nn.Embedding(WORDS, WIDTH), nn.Sequential(*rest))


def image_net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = list(conv_net())
    return nn.Sequential(nn.Sequential(*layers[:1], *layers[2:4]), nn.Sequential(*layers[5:]))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    "settings",
    [{}, {"norm": "l2"}, {"norm": "l2", "per": "token"}, {"random_start": 0.7, "steps": 2}],
    ids=["linf", "l2", "token", "start"],
)
def test_embeddings_equal_the_rest_of_the_model_on_them(schedule: str, settings: dict) -> None:
    if schedule == "recycled" and "steps" in settings:
        schedule_, settings = conadv.Recycled(refine=2), {}
        other = conadv.Recycled(refine=2)
    else:
        schedule_, other = schedule, schedule
    whole, parts = token_net(), token_net()
    for model in (whole, parts):
        model[0].requires_grad_(False)
    data = [(inputs["tokens"], labels) for inputs, labels in batches()]
    attack = conadv.Attack(0.1, pixel_range=None, **settings)
    ours = train(whole, data, schedule_, replace(attack, at="0"), forward="joint")
    embedded = [(parts[0](tokens), labels) for tokens, labels in data]
    theirs = train(parts[1], embedded, other, attack, forward="joint")
    torch.testing.assert_close(whole.state_dict(), parts.state_dict(), rtol=1e-5, atol=1e-6)
    assert ours.preview is not None
    assert theirs.preview is not None
    assert ours.preview[1].abs().max() > 0.01
    if schedule != "recycled":
        direct = theirs.preview[1] - embedded[-1][0]
        torch.testing.assert_close(ours.preview[1], direct, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_features_equal_the_rest_of_the_model_on_them(schedule: str) -> None:
    whole, parts = image_net(), image_net()
    for model in (whole, parts):
        model[0].requires_grad_(False)
        conadv.split_norms(model[1], statistics="shared")
    data = [(images(4), torch.randint(CLASSES, (4,))) for _ in range(3)]
    attack = conadv.Attack(0.1, pixel_range=None)
    train(whole, data, schedule, replace(attack, at="0"))
    train(parts[1], [(parts[0](x), y) for x, y in data], schedule, attack)
    torch.testing.assert_close(whole.state_dict(), parts.state_dict(), rtol=1e-5, atol=1e-6)


# -- masks, lengths, units ---------------------------------------------------------------------


def test_masked_tokens_get_nothing_and_the_table_trains() -> None:
    model = text()
    before = model.table.weight.detach().clone()
    adversary = train(model, batches(), "recycled")
    found = pending(adversary)
    inputs, mask, _ = found["labels"]
    assert torch.equal(mask, inputs["attention_mask"])
    assert (found["images"][mask == 1].abs() == 0.1).all()
    assert not found["images"][mask == 0].any()
    assert (model.table.weight != before).any()


@pytest.mark.parametrize("schedule", ["sequential", "noise"])
def test_a_mask_argument_keeps_random_perturbations_away_too(schedule: str) -> None:
    seen: list[Tensor] = []
    model = text()
    [(inputs, labels)] = batches((LENGTH,))
    tokens, mask = inputs["tokens"], inputs["attention_mask"]
    attack = replace(ATTACK, random_start=0.0 if schedule == "noise" else 1.0)
    adversary = conadv.Adversary(model, attack, schedule)
    model.inner.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    adversary.loss(tokens, labels, cross_entropy, mask=mask)
    delta = seen[-1][len(tokens) :] - model.table.weight[tokens]
    assert delta[mask == 1].all()
    assert not delta[mask == 0].any()


def test_a_ball_for_each_token_or_one_for_each_sample() -> None:
    [(inputs, labels)] = batches((LENGTH,))
    for per, dims in (("token", (2,)), ("sample", (1, 2))):
        attack = conadv.Attack(0.1, at="table", norm="l2", per=per)
        norms = attack(text(), inputs, labels, cross_entropy).square().sum(dims).sqrt()
        if per == "token":
            norms = norms[inputs["attention_mask"] == 1]
        torch.testing.assert_close(norms, torch.full_like(norms, 0.1))


@pytest.mark.parametrize("schedule", [conadv.Recycled, lambda: conadv.Recycled(refine=2)])
def test_ragged_batches_equal_those_padded_by_hand(schedule: Any) -> None:
    lengths = (4, 7, 5, 4)
    ragged = batches(lengths)
    padded = [
        ({k: nn.functional.pad(v, (0, 7 - v.shape[1])) for k, v in inputs.items()}, labels)
        for inputs, labels in ragged
    ]
    one, other = text(), text()
    train(one, ragged, schedule())
    train(other, padded, schedule())
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=1e-5, atol=1e-6)


def test_labels_of_tokens_are_padded_as_ignored() -> None:
    model = nn.Sequential(nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, CLASSES))
    adversary = conadv.Adversary(model, replace(ATTACK, at="0"), "recycled")
    seen = []

    def criterion(outputs: Tensor, labels: Tensor) -> Tensor:
        seen.append(labels)
        return cross_entropy(outputs.flatten(0, 1), labels.flatten())

    for length in (2, 3):
        tokens = torch.ones(2, length, dtype=torch.int64)
        adversary.loss(tokens, tokens, criterion, mask=torch.ones(2, length)).backward()
        adversary.collect()
    assert seen[-1].tolist() == [[1, 1, -100]] * 2


# -- in other loops ----------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["sequential", "recycled"])
def test_by_itself_checkpointed_and_mixed_are_the_same(schedule: str) -> None:
    plain, collected, recomputed, mixed = text(), text(), text(checkpointed=True), text()
    train(plain, batches(), schedule)
    train(collected, batches(), schedule, auto_collect=True)
    train(recomputed, batches(), schedule)
    adversary = conadv.Adversary(mixed, ATTACK, schedule)
    optimizer = torch.optim.SGD(mixed.parameters(), lr=0.1)
    for inputs, labels in batches():
        given, targets, _ = adversary.mix(inputs, labels, cross_entropy)
        cross_entropy(mixed(**given), targets).backward()
        adversary.collect()
        optimizer.step()
        optimizer.zero_grad()
    for model in (collected, recomputed, mixed):
        torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-6)
        assert not model.table._forward_hooks


@pytest.mark.parametrize("schedule", ["sequential", "recycled"])
def test_fp16_with_a_scaler_perturbs_as_fp32_does(schedule: str) -> None:
    made = []
    for dtype in (None, torch.float16):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=dtype is not None)
        adversary = train(text(), batches(), schedule, dtype=dtype, scaler=scaler)
        assert adversary.preview is not None
        made.append(adversary.preview[1])
    assert made[1].dtype == torch.float32
    assert (made[0] == made[1]).float().mean() > 0.95


def test_a_resumed_run_equals_the_unbroken_one(tmp_path: Path) -> None:
    data = batches((4, 6, 5))
    whole = text()
    train(whole, data, "recycled")
    half = text()
    torch.save(train(half, data[:1], "recycled").state_dict(), tmp_path / "state.pt")
    adversary = conadv.Adversary(half, ATTACK, "recycled")
    adversary.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    optimizer = torch.optim.SGD(half.parameters(), lr=0.1)
    for inputs, labels in data[1:]:
        adversary.loss(inputs, labels, cross_entropy).backward()
        adversary.collect()
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(whole.state_dict(), half.state_dict(), rtol=0, atol=0)


def test_a_round_may_begin_anew_and_agreement_be_measured() -> None:
    model = text()
    adversary = conadv.Adversary(model, ATTACK, "sequential", track_agreement=True)
    for length in (3, 4):  # the first is given up before its backward
        [(inputs, labels)] = batches((length,))
        loss = adversary.loss(inputs, labels, cross_entropy)
    loss.backward()
    adversary.collect()
    assert adversary.diagnostics.agreement == pytest.approx(1.0)
    assert not model.table._forward_hooks


def test_the_shape_is_found_without_a_trace() -> None:
    torch.manual_seed(0)
    model = conadv.split_norms(conv_net())
    batch = images(4)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    delta = conadv.Attack(0.1, at="4")(model, batch, torch.arange(4), cross_entropy)
    assert delta.shape == (4, 4, 4, 4)
    assert torch.equal(torch.get_rng_state(), random)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_what_cannot_work_is_refused() -> None:
    [(inputs, labels)] = batches((LENGTH,))
    with pytest.raises(ValueError, match="no such layer. There are table, inner, head"):
        conadv.Adversary(text(), conadv.Attack(0.1, at="embedding"))
    with pytest.raises(ValueError, match="not with lookahead"):
        conadv.Adversary(text(), ATTACK, "lookahead")
    with pytest.raises(ValueError, match="one forward over the whole batch"):
        conadv.Adversary(text(), ATTACK, forward="separate")
    with pytest.raises(ValueError, match="give the model uncompiled"):
        conadv.Adversary(torch.compile(text()), ATTACK)
    with pytest.raises(ValueError, match="leave them out"):
        conadv.Attack(0.1, at="table", mean=0.5, std=0.5)
    with pytest.raises(ValueError, match="per='token' is for inputs without pixels"):
        conadv.Attack(0.1, per="token")
    with pytest.raises(ValueError, match="mask has shape"):
        adversary = conadv.Adversary(text(), ATTACK)
        adversary.loss(inputs, labels, cross_entropy, mask=torch.ones(3))
    with pytest.raises(ValueError, match="cannot be one batch without an attention_mask"):
        train(
            text(), [(torch.ones(2, n, dtype=torch.int64), labels[:2]) for n in (3, 4)], "recycled"
        )
    adversary = conadv.Adversary(text(), ATTACK)
    adversary.loss(inputs, labels, cross_entropy)
    with pytest.raises(ValueError, match="between loss.. and collect.. the model is for"):
        adversary.model(inputs["tokens"][:1])
