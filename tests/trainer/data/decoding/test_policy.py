"""What is done to an image: a function of (seed, step, place, view), with every policy."""

import io
import pickle
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from conadv.trainer.data.decoding import CentreCrop, DecodeError, Pipeline, decode_centre
from conadv.trainer.data.decoding.policy import TORCHVISION, _posterize, build_policy

TIMM = [
    "v0",
    "original-mstd0.5",
    "3a",
    "rand-m9-n2-mstd0.5",
    "rand-m9-mstd0.5-inc1",
    "augmix-m5-w4-d2",
]
PLAIN = Pipeline(32)


@pytest.fixture(scope="module")
def data(picture, encode) -> bytes:
    return encode(Image.fromarray(picture(80, 100)))


# -- numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [None, *TORCHVISION, *TIMM])
def test_an_image_is_a_function_of_its_key(data, policy) -> None:
    pipeline = Pipeline(32, policy=policy, erasing=0.5)
    first = [pipeline(data, 3, 5, place, 1) for place in range(12)]
    assert {(p.shape, p.dtype, p.is_contiguous()) for p in first} == {
        (torch.Size([32, 32, 3]), torch.uint8, True)
    }
    random.seed(8), np.random.seed(8), torch.manual_seed(8)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    copy = pickle.loads(pickle.dumps(pipeline))
    build_policy.cache_clear()
    again = [copy(data, 3, 5, place, 1) for place in reversed(range(12))][::-1]
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))
    # Whoever else draws from the global generators does not notice.
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.get_rng_state().equal(states[2])


def test_seed_step_place_and_view_all_count(data) -> None:
    keys = [(3, 5, 7, 1), (4, 5, 7, 1), (3, 6, 7, 1), (3, 5, 8, 1), (3, 5, 7, 2)]
    made = [PLAIN(data, *key) for key in keys]
    assert all(not made[0].equal(other) for other in made[1:])


@pytest.mark.parametrize("policy", [*TORCHVISION, *TIMM])
def test_a_policy_does_something_to_the_same_crop(data, policy) -> None:
    pipeline = replace(PLAIN, policy=policy)
    changed = sum(not pipeline(data, 0, 0, p).equal(PLAIN(data, 0, 0, p)) for p in range(20))
    assert changed >= 8


def test_magnitude_and_layers_count(data) -> None:
    def made(**options) -> torch.Tensor:
        pipeline = Pipeline(32, policy="randaugment", **options)
        return torch.stack([pipeline(data, 0, 0, place) for place in range(12)])

    assert made().equal(made(magnitude=9, layers=2))
    assert not made().equal(made(magnitude=20))
    assert not made().equal(made(layers=1))


def test_one_thing_switched_off_leaves_the_others(data) -> None:
    straight = replace(PLAIN, flip=False)
    flips = 0
    for place in range(60):
        a, b = PLAIN(data, 0, 0, place), straight(data, 0, 0, place)
        flips += not a.equal(b)
        assert a.equal(b) or a.equal(b.flip(1))
    assert 15 <= flips <= 45


def test_random_interpolation_is_one_of_the_two(data) -> None:
    kinds = [replace(PLAIN, interpolation=i) for i in ("random", "bilinear", "bicubic")]
    counts = [0, 0]
    for place in range(40):
        chosen, bilinear, bicubic = (kind(data, 0, 0, place) for kind in kinds)
        counts[0] += chosen.equal(bilinear)
        counts[1] += chosen.equal(bicubic)
    assert min(counts) >= 8 and sum(counts) >= 40


# -- erasing ---------------------------------------------------------------------------------------


def test_erasing_fills_a_rectangle_with_the_mean(data) -> None:
    colour = torch.tensor([124, 116, 104], dtype=torch.uint8)
    erasing = replace(PLAIN, erasing=1.0)
    for place in range(30):
        pixels, before = erasing(data, 0, 0, place), PLAIN(data, 0, 0, place)
        changed = (pixels != before).any(2)
        assert (pixels[changed] == colour).all()
        filled = (pixels == colour).all(2)
        rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
        top, bottom, left, right = rows.min(), rows.max(), columns.min(), columns.max()
        assert filled[top : bottom + 1, left : right + 1].all()
        assert 0.01 <= float(changed.float().mean()) <= 0.36
    # After the usual standardisation it is zero, within half a grey level.
    mean = torch.tensor([0.485, 0.456, 0.406])
    assert ((colour / 255 - mean).abs() <= 0.5 / 255).all()


def test_erasing_happens_as_often_as_asked(data) -> None:
    erasing = replace(PLAIN, erasing=0.25)
    count = sum(not erasing(data, 0, 0, p).equal(PLAIN(data, 0, 0, p)) for p in range(200))
    assert 25 <= count <= 75


# -- arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 0}, "size=0"),
        ({"scale": (0.0, 1.0)}, "scale="),
        ({"scale": (0.5, 0.1)}, "scale="),
        ({"scale": (0.5, 1.1)}, "scale="),
        ({"ratio": (2.0, 1.0)}, "ratio="),
        ({"erasing": 1.1}, "erasing=1.1"),
        ({"erasing_fill": (1, 2, 256)}, "erasing_fill="),
        ({"interpolation": "nearest"}, "allowed are bilinear, bicubic, random"),
        ({"policy": "autoaugmnt"}, "allowed are randaugment, autoaugment"),
        ({"policy": "rand-q3"}, "allowed are"),
        ({"policy": "v0-m9"}, "allowed are"),
        ({"policy": "autoaugment", "magnitude": 3}, "magnitude=3"),
        ({"policy": "rand-m9", "layers": 3}, "rand-m9-n2"),
        ({"layers": 2}, "layers=2"),
        ({"policy": "randaugment", "magnitude": 31}, "magnitude=31: give 0 to 30"),
        ({"policy": "augmix", "magnitude": 0}, "magnitude=0: give 1 to 10"),
        ({"policy": "randaugment", "layers": 0}, "layers=0"),
    ],
)
def test_what_is_out_of_range(options, words) -> None:
    with pytest.raises(ValueError, match=words):
        Pipeline(**options)


def test_evaluation_is_the_centre_whatever_the_numbers(data) -> None:
    crop = CentreCrop(32, 40)
    expected = decode_centre(data, 32, 40)
    assert crop(data).equal(expected) and crop(data, 1, 2, 3, 4).equal(expected)
    for options, words in (
        ({"size": 50, "resize": 40}, "resize=40"),
        ({"size": 0}, "size=0"),
        ({"interpolation": "random"}, "allowed are bilinear, bicubic"),
    ):
        with pytest.raises(ValueError, match=words):
            CentreCrop(**options)


def test_damage_is_told() -> None:
    for prepare in (PLAIN, CentreCrop(32, 40)):
        with pytest.raises(DecodeError, match="cannot identify"):
            prepare(io.BytesIO(b"no image").getvalue(), 0, 0, 0)


@pytest.mark.parametrize(("bits", "left"), [(0, 0b0), (1, 0b10000000), (4, 0b11110000), (8, 255)])
def test_posterize_keeps_so_many_bits(bits, left) -> None:
    """Also none, which Pillow itself refuses and timm's policies ask for at low levels."""
    grey = Image.new("L", (256, 1))
    grey.putdata(range(256))
    image = Image.merge("RGB", [grey] * 3)
    found = np.asarray(_posterize(image, bits))
    assert found.tolist() == (np.asarray(image) & left).tolist()


def test_every_operation_of_a_timm_policy_runs() -> None:
    policy = build_policy("v0", None, None, 32, "bilinear")
    image = Image.new("RGB", (32, 32), (200, 100, 50))
    for group in policy.policy:
        for operation in group:
            operation.prob = 1.0
            assert operation(image).size == (32, 32)
    build_policy.cache_clear()  # those probabilities were this test's
