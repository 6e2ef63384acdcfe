"""mCE against AlexNet's own answers, for which it is 100 by definition."""

import json
from typing import Any

import pytest

from conadv.trainer.evaluation.imagenet import ALEXNET_ERRORS, corruption_errors

# AlexNet's top-1 error in units of 1/50,000 images, severities 1 to 5 (github.com/hendrycks/
# robustness, issue 10).
ALEXNET = {
    "gaussian_noise": (34764, 41271, 46777, 49069, 49726),
    "shot_noise": (35612, 42554, 46787, 49091, 49573),
    "impulse_noise": (39187, 44904, 47435, 49360, 49774),
    "defocus_blur": (32812, 36601, 42518, 45682, 47357),
    "glass_blur": (32154, 37527, 44403, 45811, 46672),
    "motion_blur": (29215, 35024, 41054, 44875, 46319),
    "zoom_blur": (35004, 38496, 40392, 42099, 43599),
    "snow": (35863, 44196, 43234, 45935, 47476),
    "frost": (30695, 39867, 44395, 44971, 46715),
    "fog": (33737, 38025, 42189, 43630, 47250),
    "brightness": (22570, 24251, 27024, 31083, 36220),
    "contrast": (32274, 38075, 44437, 48880, 49635),
    "elastic_transform": (26298, 35058, 27843, 32038, 40277),
    "pixelate": (26109, 27310, 36864, 43546, 45631),
    "jpeg_compression": (25501, 27359, 28647, 32729, 37389),
}
# Table 1 of the paper, in whole per cent.
PRINTED = (89, 89, 92, 82, 83, 79, 80, 87, 83, 82, 56, 85, 65, 72, 61)

Cells = dict[tuple[str, int], tuple[int, int]]


def alexnet_cells() -> Cells:
    return {
        (name, severity): (wrong, 50_000)
        for name, row in ALEXNET.items()
        for severity, wrong in enumerate(row, start=1)
    }


def test_alexnet_has_an_mce_of_exactly_100() -> None:
    found = corruption_errors(alexnet_cells())
    assert found.mean_errors == ALEXNET_ERRORS
    assert set(found.normalised.values()) == {100.0}
    assert found.mce == 100.0
    assert found.mean_error == pytest.approx(11.834896 / 15, abs=1e-12)
    assert (found.missing, found.withheld) == ((), None)


def test_the_constants_round_to_those_of_the_paper() -> None:
    for error, printed in zip(ALEXNET_ERRORS.values(), PRINTED, strict=True):
        assert abs(100 * error - printed) <= 0.5


def test_ce_is_normalised_per_corruption_before_the_mean() -> None:
    # Half of AlexNet's error on one corruption, all wrong elsewhere.
    cells: Cells = {cell: (100, 100) for cell in alexnet_cells()}
    cells |= {("fog", s): (409_662, 1_000_000) for s in (1, 2, 3, 4, 5)}
    found = corruption_errors(cells)
    assert found.normalised["fog"] == pytest.approx(50.0)
    others = sum(100 / error for name, error in ALEXNET_ERRORS.items() if name != "fog")
    assert found.mce == pytest.approx((others + 50) / 15)
    assert found.mean_error == pytest.approx((14 + 0.409662) / 15)
    assert found.mce != pytest.approx(100 * 15 * found.mean_error / sum(ALEXNET_ERRORS.values()))


def test_severities_weigh_alike_whatever_their_number_of_images() -> None:
    cells: Cells = {("fog", s): (0, 10) for s in (1, 2, 3, 4)}
    found = corruption_errors({**cells, ("fog", 5): (1000, 1000)})
    assert found.mean_errors == {"fog": 0.2}


def test_what_is_missing_is_named_and_the_mean_withheld() -> None:
    cells = {
        cell: value
        for cell, value in alexnet_cells().items()
        if cell[0] != "frost" and cell not in (("snow", 3), ("snow", 5))
    }
    found = corruption_errors(cells)
    assert (found.mce, found.mean_error) == (None, None)
    assert found.missing == ("snow/3", "snow/5", "frost")
    assert found.withheld is not None
    assert "13 are complete, and these are missing: snow/3, snow/5, frost." in found.withheld
    assert found.mean_errors == {
        n: e for n, e in ALEXNET_ERRORS.items() if n not in ("snow", "frost")
    }
    assert found.errors["snow"] == {1: 0.71726, 2: 0.88392, 4: 0.9187}
    assert "frost" not in found.errors


def test_json() -> None:
    written: dict[str, Any] = json.loads(json.dumps(corruption_errors(alexnet_cells()).to_json()))
    assert written["mce"] == 100.0
    assert written["errors"]["fog"]["2"] == 0.7605
    assert list(written["errors"]) == list(ALEXNET_ERRORS)


@pytest.mark.parametrize(
    ("cell", "counts", "message"),
    [
        (("speckle_noise", 1), (1, 2), "no speckle_noise of severity 1: there are gaussian_noise"),
        (("fog", 0), (1, 2), "no fog of severity 0"),
        (("fog", 1), (3, 2), "3 wrong answers of 2 images"),
        (("fog", 1), (0, 0), "0 wrong answers of 0 images"),
    ],
)
def test_impossible_cells(cell: tuple[str, int], counts: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        corruption_errors({cell: counts})
