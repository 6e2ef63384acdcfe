"""Pending L-inf copies at one bit per value: what comes out is what would have been kept."""

import copy
import io
import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import conadv
from conadv.schedules import packed_signs as _packed
from conadv.schedules.packed_signs import PackedSigns
from support.loops import ATTACK, MEAN, STD, batches, cross_entropy, network, sgd

SHAPES = [(1,), (7,), (8,), (3, 5), (2, 3, 4, 4), (5, 1, 3, 7), (2, 3, 1, 5, 2), (0, 3, 2, 2)]
ODD = 3 * 7 * 7
"""Values of an image of 7 x 7 pixels: a batch of them seldom fills its last byte."""


def signs(shape: tuple[int, ...], zeros: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(shape, generator=generator)
    found = torch.where(torch.rand(shape, generator=generator) < 0.5, -1.0, 1.0)
    return found * (drawn >= zeros)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal with the signs of zeros, which `torch.equal` does not look at."""
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.dtype == b.dtype and torch.equal(a.view(kind), b.view(kind))


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# -- the packing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("zeros", [0.0, 0.3, 1.0])
def test_round_trip_in_no_more_bytes_than_needed(shape: tuple[int, ...], zeros: float) -> None:
    given = signs(shape, zeros)
    packed = PackedSigns.of(given)
    assert torch.equal(packed.unpack(torch.float32), given)
    planes = 1 if bool((given != 0).all()) else 2
    assert [t.dtype for t in packed.tensors()] == [torch.uint8] * planes
    assert sum(t.nbytes for t in packed.tensors()) == planes * -(-math.prod(shape) // 8)


@pytest.mark.parametrize("shape", SHAPES)
def test_devices_without_numpy_give_the_same_bytes(shape: tuple[int, ...]) -> None:
    flags = (signs(shape, 0.0) > 0).reshape(-1)
    packed = _packed._pack_anywhere(flags)
    assert packed.dtype == torch.uint8 and torch.equal(packed, _packed._pack(flags))
    assert torch.equal(_packed._unpack_anywhere(packed, len(flags)), flags)


def test_the_first_value_is_the_highest_bit() -> None:
    """The format of `numpy.packbits`, which a state keeps: it must not change."""
    packed = PackedSigns.of(torch.tensor([1.0, -1, -1, 0, -1, -1, -1, 1, 1]))
    assert packed.bits.tolist() == [0b10000001, 0b10000000]
    assert packed.nonzero is not None
    assert packed.nonzero.tolist() == [0b11101111, 0b10000000]


@pytest.mark.parametrize("zeros", [0.0, 0.2])
def test_channels_last_stays_so(zeros: float) -> None:
    given = signs((2, 3, 4, 5), zeros).to(memory_format=torch.channels_last)
    packed = PackedSigns.of(given)
    for one in (packed, PackedSigns.from_state_dict(packed.state_dict(), torch.device("cpu"))):
        found = one.unpack(torch.float32)
        assert torch.equal(found, given)
        assert found.is_contiguous(memory_format=torch.channels_last)


def test_signs_unpack_where_the_images_are() -> None:
    """There is one device here: the meta device stands for the one that a model moved to."""
    packed = PackedSigns.of(signs((3, 5), 0.3))
    found = packed.unpack(torch.float64, torch.device("meta"))
    assert (found.device.type, found.dtype, found.shape) == ("meta", torch.float64, (3, 5))
    loaded = PackedSigns.from_state_dict(packed.state_dict(), torch.device("meta"))
    assert {t.device.type for t in loaded.tensors()} == {"meta"} and len(loaded.tensors()) == 2


class Event:
    """Stands for a CUDA event."""

    def __init__(self, arrived: bool) -> None:
        self.arrived = arrived

    def query(self) -> bool:
        return self.arrived


def as_on_a_gpu(packed: PackedSigns, arrived: bool) -> PackedSigns:
    """With both planes, and the answer whether the second is needed on its way."""
    values = math.prod(packed.shape)
    flags = torch.ones(values, dtype=torch.bool)
    everywhere = torch.tensor(packed.nonzero is None)
    packed.nonzero = _packed._pack(flags) if packed.nonzero is None else packed.nonzero
    packed.answer = (everywhere, Event(arrived))
    return packed


@pytest.mark.parametrize("zeros", [0.0, 0.3])
def test_the_second_plane_is_dropped_when_the_answer_is_there(zeros: float) -> None:
    given = signs((3, 5), zeros)
    packed = as_on_a_gpu(PackedSigns.of(given), arrived=False)
    packed.drop_unneeded()
    assert len(packed.tensors()) == 2 and packed.answer is not None
    assert torch.equal(packed.unpack(torch.float32), given), "both planes do until then"
    packed.answer[1].arrived = True
    for _ in range(2):
        packed.drop_unneeded()
        assert len(packed.tensors()) == (2 if zeros else 1) and packed.answer is None
        assert torch.equal(packed.unpack(torch.float32), given)


def test_a_state_taken_before_the_answer_loads_as_one_plane() -> None:
    given = signs((3, 5), 0.0)
    state = through_a_file(as_on_a_gpu(PackedSigns.of(given), arrived=False).state_dict())
    assert state["nonzero"] is not None
    loaded = PackedSigns.from_state_dict(state, torch.device("cpu"))
    assert len(loaded.tensors()) == 1 and torch.equal(loaded.unpack(torch.float32), given)


# -- in the schedule -----------------------------------------------------------------------------


def odd_batches(count: int, dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    """Batches of 8, 5, 3, 8, 5, ... images of 7 x 7 pixels."""
    sizes = [(8, 5, 3)[number % 3] for number in range(count)]
    pairs = zip(batches(count), sizes, strict=True)
    return [(x[:n, :, :7, :7].to(dtype), y[:n]) for (x, y), n in pairs]


class Border(nn.Module):
    """Hides the outermost pixels, so that their gradient is exactly zero."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.pad(images[..., 1:-1, 1:-1], (1, 1, 1, 1))


def entries(adversary: conadv.Adversary) -> list[dict[str, Any] | None]:
    return adversary.state_dict()["state"]["pending"]


@pytest.mark.parametrize("tau", [1, 2, 3])
@pytest.mark.parametrize("share", [1.0, 0.4])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [(torch.float32, False), (torch.float32, True), (torch.float64, False)],
    ids=["fp32", "bf16 autocast", "fp64"],
)
def test_copies_are_to_the_bit_those_of_the_attack(
    tau: int, share: float, zeros: bool, dtype: torch.dtype, autocast: bool
) -> None:
    """Oracle: the attack by hand at the weights of tau rounds ago, kept whole.

    What is pending goes through a file after every round.
    """
    model = network()
    model = (nn.Sequential(Border(), model) if zeros else model).to(dtype)
    data = odd_batches(8, dtype)
    adversary = conadv.Adversary(model, ATTACK, conadv.Lookahead(tau, share))
    by_hand = conadv.Attack(ATTACK.epsilon, MEAN, STD, branch="adversarial")
    optimizer, kept, compared = sgd(model), {}, 0

    def context() -> Any:
        return torch.autocast("cpu", dtype=torch.bfloat16) if autocast else nullcontext()

    for number, (images, labels) in enumerate(adversary.batches(data)):
        if number + tau < len(data):
            x, y = data[number + tau]
            count = round(share * len(x))
            with context():
                twin = copy.deepcopy(model)
                kept[number + tau] = by_hand(twin, x[:count], y[:count], cross_entropy)
        with context():
            loss = adversary.loss(images, labels, cross_entropy)
        if number >= tau:
            (copies,) = adversary._round.copies
            assert same_bits(copies.images, kept.pop(number))
            assert torch.equal(copies.labels, labels[: len(copies)])
            assert torch.equal(copies.origins, images[: len(copies)])
            compared += 1
        loss.backward()
        adversary.collect()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for one in filter(None, entries(adversary)):
            some = bool(
                (PackedSigns.from_state_dict(one, torch.device("cpu")).unpack(dtype) == 0).any()
            )
            assert (one["nonzero"] is not None) == some
            if not autocast or zeros:  # bf16 rounds some gradients to nothing, on some CPUs
                assert some == zeros
        adversary.load_state_dict(through_a_file(adversary.state_dict()))
    assert compared == len(data) - tau


def one_round(
    attack: conadv.Attack = ATTACK,
    schedule: conadv.Lookahead | None = None,
    model: nn.Module | None = None,
    size: int = 5,
) -> tuple[conadv.Adversary, tuple[Tensor, Tensor]]:
    """An adversary with something pending, and the batch it is for."""
    adversary = conadv.Adversary(model or network(), attack, schedule or conadv.Lookahead())
    now, later = odd_batches(2)
    later = (later[0][:size], later[1][:size])
    adversary.peek(*later)
    adversary.loss(*now, cross_entropy).backward()
    adversary.collect()
    return adversary, later


def bytes_of(state: Any) -> int:
    if isinstance(state, Tensor):
        return state.nbytes
    if isinstance(state, dict):
        state = list(state.values())
    return sum(map(bytes_of, state)) if isinstance(state, list) else 0


@pytest.mark.parametrize(("share", "count"), [(1.0, 5), (0.6, 3)])
@pytest.mark.parametrize("zeros", [False, True])
def test_pending_takes_a_bit_per_value(share: float, count: int, zeros: bool) -> None:
    model = nn.Sequential(Border(), network()) if zeros else network()
    adversary, _ = one_round(schedule=conadv.Lookahead(1, share), model=model)
    plane = -(-count * ODD // 8)
    assert bytes_of(entries(adversary)) == (2 * plane if zeros else plane)


@pytest.mark.parametrize("options", [{"norm": "l2"}, {"steps": 2}])
def test_other_attacks_keep_their_copies(options: dict[str, Any]) -> None:
    adversary, (images, labels) = one_round(conadv.Attack(8 / 255, MEAN, STD, **options))
    (entry,) = entries(adversary)
    assert entry is not None
    assert entry["images"].shape == images.shape and torch.equal(entry["labels"], labels)


@pytest.mark.parametrize(
    "options",
    [
        {"target": "random"},
        {"mode": "eval"},
        {"step_size": 2 / 255},
        {"epsilon": 0.0},
        {"random_start": 0.5},
        {"epsilon_min": 1 / 255},
        {"block_size": 2},
    ],
)
def test_one_sign_step_of_any_kind_is_packed(options: dict[str, Any]) -> None:
    attack = conadv.Attack(**{"epsilon": 8 / 255, "mean": MEAN, "std": STD, **options})
    adversary, _ = one_round(attack)
    (entry,) = entries(adversary)
    assert entry is not None and "bits" in entry


@pytest.mark.parametrize(
    "drawn",
    [
        {"random_start": 1.0},
        {"random_start": 0.6},
        {"epsilon_min": 1 / 255},
        {"random_start": 0.6, "epsilon_min": 1 / 255, "block_size": 2},
    ],
    ids=["starts", "some starts", "radii", "both, in blocks"],
)
@pytest.mark.parametrize("target", [None, "random"])
@pytest.mark.parametrize("share", [1.0, 0.6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_random_starts_and_radii_are_drawn_again(
    drawn: dict[str, Any], target: Any, share: float, dtype: torch.dtype, monkeypatch: Any
) -> None:
    """To the bit the copies that would have been kept whole, through a file."""
    attack = conadv.Attack(8 / 255, MEAN, STD, step_size=5 / 255, target=target, **drawn)
    found = []
    for packs in (True, False):
        with monkeypatch.context() as patch:
            if not packs:
                patch.setattr(conadv.Attack, "is_one_sign_step", property(lambda self: False))
            adversary = conadv.Adversary(network().to(dtype), attack, conadv.Lookahead(1, share))
            (x, y), (later, later_labels) = odd_batches(2, dtype)
            adversary.peek(later, later_labels)
            adversary.loss(x, y, cross_entropy).backward()
            adversary.collect()
            (entry,) = entries(adversary)
            assert entry is not None and ("bits" in entry) == packs
            adversary.load_state_dict(through_a_file(adversary.state_dict()))
            adversary.loss(later, later_labels, cross_entropy)
            (copies,) = adversary._round.copies
            found.append(copies)
    whole = found[1].images
    assert torch.equal(found[0].images, whole) and torch.equal(found[0].labels, found[1].labels)
    deviation = (whole - later[: len(whole)]).abs()
    assert len(deviation[deviation > 0].unique()) > 8, "starts differ, not the signs alone"


@pytest.mark.parametrize("share", [1.0, 0.4])
@pytest.mark.parametrize(
    "rows", [lambda t: t[:1], lambda t: torch.cat([t, t]), lambda t: t[..., :-1]]
)
def test_another_batch_than_the_one_attacked_is_refused(share: float, rows: Any) -> None:
    """Fewer images, more of them, others."""
    adversary, (images, labels) = one_round(schedule=conadv.Lookahead(1, share))
    wrong = rows(images)
    with pytest.raises(RuntimeError, match="must be the very batch of tau rounds later"):
        adversary.loss(wrong, torch.cat([labels, labels])[: len(wrong)], cross_entropy)
    adversary.loss(images, labels, cross_entropy)  # the right one may still come


def test_states_with_whole_copies_still_load() -> None:
    adversary, (images, labels) = one_round()
    state = adversary.state_dict()
    whole = {"images": images + 1, "labels": labels.flip(0), "origins": None, "age": 0}
    state["state"] = {"pending": [whole]}
    adversary.load_state_dict(through_a_file(state))
    adversary.loss(images, labels, cross_entropy)
    (copies,) = adversary._round.copies
    assert torch.equal(copies.images, images + 1)
    assert torch.equal(copies.labels, labels.flip(0))


def test_lookahead_frees_second_planes_as_answers_arrive() -> None:
    """What a GPU leaves pending, with stand-ins for the events."""
    adversary = conadv.Adversary(network(), ATTACK, conadv.Lookahead(3))
    data = adversary.batches(odd_batches(9))

    def planes_after_a_round() -> list[int]:
        images, labels = next(data)
        adversary.loss(images, labels, cross_entropy).backward()
        adversary.collect()
        found = [len(e.signs.tensors()) for e in adversary.schedule._pending if e is not None]
        as_on_a_gpu(adversary.schedule._pending[-1].signs, arrived=False)
        return found

    def arrive(index: int) -> None:
        adversary.schedule._pending[index].signs.answer[1].arrived = True

    assert [planes_after_a_round() for _ in range(3)] == [[1], [2, 1], [2, 2, 1]]
    arrive(0)
    arrive(1)
    assert planes_after_a_round() == [1, 2, 1], "the newest of then is undecided"
    arrive(1)
    arrive(2)
    assert [e is not None and e["nonzero"] is None for e in entries(adversary)] == [True] * 3
    assert planes_after_a_round() == [1, 1, 1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("stream", [False, True])
def test_nothing_waits_for_the_gpu(stream: bool) -> None:
    """And what is kept has the bytes that a CPU makes of the same signs."""
    model = network().cuda()
    data = [(x.cuda(), y.cuda()) for x, y in odd_batches(6)]
    adversary = conadv.Adversary(model, ATTACK, conadv.Lookahead(2, stream=stream))
    optimizer = sgd(model)
    for number, (images, labels) in enumerate(adversary.batches(data)):
        loss = adversary.loss(images, labels, cross_entropy)
        loss.backward()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if number > 1 else "default")
        try:
            adversary.collect()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for one in filter(None, adversary.schedule._pending):
            bits = one.signs.unpack(torch.float32)
            assert torch.equal(PackedSigns.of(bits.cpu()).bits, one.signs.bits.cpu())
