"""Pending L-inf copies at one bit per value: what comes out is what would have been kept."""

import io
import math

import pytest
import torch

import conadv
from conadv._packed import PackedSigns
from support.loops import MEAN, STD, batches, cross_entropy, network, sgd

SHAPES = [(1,), (7,), (8,), (3, 5), (2, 3, 4, 4), (5, 1, 3, 7), (0, 3, 2, 2)]


def signs(shape: tuple[int, ...], zeros: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(shape, generator=generator)
    found = torch.where(torch.rand(shape, generator=generator) < 0.5, -1.0, 1.0)
    return found * (drawn >= zeros)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("zeros", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("device", ["cpu", "other"])
def test_round_trip(
    shape: tuple[int, ...], zeros: float, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = signs(shape, zeros)
    packed = PackedSigns.of(given)
    assert torch.equal(packed.unpack(torch.float32), given)
    values = math.prod(shape)
    planes = 1 if bool((given != 0).all()) else 2
    assert [t.dtype for t in packed.tensors()] == [torch.uint8] * planes
    assert sum(t.numel() for t in packed.tensors()) == planes * -(-values // 8)
    if device == "other":  # the path of devices without numpy gives the same bytes
        from conadv import _packed

        flags = given > 0
        elsewhere = _packed._pack_anywhere(flags.reshape(-1))
        assert torch.equal(elsewhere, _packed._pack(flags))
        assert torch.equal(
            _packed._unpack_anywhere(elsewhere, values), _packed._unpack(elsewhere, values)
        )


def test_channels_last_stays_so() -> None:
    given = signs((2, 3, 4, 5), 0.2).to(memory_format=torch.channels_last)
    found = PackedSigns.of(given).unpack(torch.float32)
    assert torch.equal(found, given)
    assert found.is_contiguous(memory_format=torch.channels_last)


def unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep whole copies, as for every other attack."""
    monkeypatch.setattr(conadv.Attack, "is_one_sign_step", False)


def train(tau: int, share: float, *, zero_border: bool, stop: int | None = None) -> list[object]:
    model, data = network(), [(x.clone(), y) for x, y in batches(7)]
    if zero_border:  # values that the network does not see have a gradient of exactly zero
        model = torch.nn.Sequential(torch.nn.ZeroPad2d(-1), torch.nn.ZeroPad2d(1), model)
    attack = conadv.Attack(8 / 255, mean=MEAN, std=STD)
    adversary = conadv.Adversary(model, attack, conadv.Lookahead(tau, share))
    optimizer, seen = sgd(model), []
    for number, (images, labels) in enumerate(adversary.batches(data)):
        adversary.loss(images, labels, cross_entropy).backward()
        seen.append([part.images.clone() for part in adversary._round.parts])
        adversary.collect()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if number == stop:
            file = io.BytesIO()
            torch.save(adversary.state_dict(), file)
            file.seek(0)
            adversary.load_state_dict(torch.load(file, weights_only=True))
    return [*seen, [p.detach().clone() for p in model.parameters()]]


@pytest.mark.parametrize("tau", [1, 2, 3])
@pytest.mark.parametrize("share", [1.0, 0.4])
@pytest.mark.parametrize("zero_border", [False, True])
@pytest.mark.parametrize("stop", [None, 3])
def test_training_is_the_same_to_the_bit(
    tau: int, share: float, zero_border: bool, stop: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = train(tau, share, zero_border=zero_border, stop=stop)
    with monkeypatch.context() as patch:
        unpacked(patch)
        expected = train(tau, share, zero_border=zero_border)
    for ours, theirs in zip(found, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a, b)
    assert len(found[-2]) == 2  # copies were trained on


@pytest.mark.parametrize("options", [{"norm": "l2"}, {"steps": 2}, {"random_start": 0.5}])
def test_other_attacks_keep_their_copies(options: dict[str, object]) -> None:
    attack = conadv.Attack(8 / 255, mean=MEAN, std=STD, **options)
    adversary = conadv.Adversary(network(), attack, "lookahead")
    (images, labels), (more, later) = batches(2)
    adversary.peek(more, later)
    adversary.loss(images, labels, cross_entropy).backward()
    adversary.collect()
    (entry,) = adversary.state_dict()["state"]["pending"]
    assert entry["images"].shape == more.shape


def test_pending_takes_a_bit_per_value() -> None:
    adversary = conadv.Adversary(network(), conadv.Attack(0.01, mean=MEAN, std=STD), "lookahead")
    (images, labels), (more, later) = batches(2)
    adversary.peek(more, later)
    adversary.loss(images, labels, cross_entropy).backward()
    adversary.collect()
    (entry,) = adversary.state_dict()["state"]["pending"]
    assert entry["nonzero"] is None
    assert entry["bits"].numel() == -(-more.numel() // 8) and entry["bits"].dtype == torch.uint8


def test_another_batch_than_the_one_attacked_is_refused() -> None:
    adversary = conadv.Adversary(network(), conadv.Attack(0.01, mean=MEAN, std=STD), "lookahead")
    (images, labels), (more, later) = batches(2)
    adversary.peek(more, later)
    adversary.loss(images, labels, cross_entropy).backward()
    adversary.collect()
    with pytest.raises(RuntimeError, match="must be the very batch of tau rounds later"):
        adversary.loss(more[:3], later[:3], cross_entropy)
