"""Colours: the same per method everywhere, told apart by everybody, legible on both backgrounds."""

import re
from importlib.resources import files
from itertools import combinations

import numpy as np
import pytest

from conadv.lab.report.charts.palette import (
    _OTHERS,
    FAMILIES,
    MethodKey,
    colours,
    dashes,
)
from conadv.lab.report.charts.svg import SYMBOLS
from conadv.schedules import SCHEDULES

OWN = {name: family.colour for name, family in FAMILIES.items() if family.colour is not None}
VANILLA, SEQUENTIAL = MethodKey("vanilla", "vanilla"), MethodKey("sequential", "sequential")
RECYCLED = MethodKey("recycled", "recycled")
FIXED = MethodKey("recycled, fixed budget", "recycled", "fixed")


def linear(colour: str) -> np.ndarray:
    srgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """WCAG 2.2 contrast ratio."""
    low, high = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (one, other))
    return (high + 0.05) / (low + 0.05)


def cards() -> list[str]:
    css = (files("conadv.lab.report") / "templates" / "report.css").read_text()
    return re.findall(r"--card: (#\w{6})", css)


def test_every_colour_stands_out_from_its_background() -> None:
    light, dark = cards()
    for colour in (*OWN.values(), *_OTHERS):
        assert contrast(colour.light, light) >= 4
        assert contrast(colour.dark, dark) >= 4


# Machado, Oliveira and Fernandes, 2009, severity 1, on linear RGB.
BLIND = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
               [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
               [-0.011820, 0.042940, 0.968881]],
}  # fmt: skip


def lab(rgb: np.ndarray) -> np.ndarray:
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.array(to_xyz) @ np.clip(rgb, 0, 1) / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("kind", BLIND)
def test_the_methods_of_the_quickstart_differ_for_colour_blind_readers(
    kind: str, theme: str
) -> None:
    seen = [
        lab(np.array(BLIND[kind]) @ linear(getattr(OWN[name], theme)))
        for name in ("vanilla", "sequential", "recycled")
    ]
    for one, other in combinations(seen, 2):
        assert np.linalg.norm(one - other) > 20  # ten times a just noticeable difference


def test_a_method_has_its_colour_whatever_stands_beside_it() -> None:
    alone = colours([(RECYCLED, 1)])
    together = colours([(FIXED, 1), (VANILLA, 1), (SEQUENTIAL, 1), (RECYCLED, 1), (VANILLA, 9)])
    assert alone[RECYCLED] == together[RECYCLED]
    assert len(set(together.values())) == 4


def test_one_schedule_at_other_batches_shares_a_colour_and_differs_in_line_style() -> None:
    small = MethodKey("small batch", "vanilla")
    chosen = colours([(small, 100), (VANILLA, 1000)])
    assert chosen[small] == chosen[VANILLA]
    assert dashes([100, 1000]) == {1000: "solid", 100: "dash"}


def test_methods_that_meet_at_a_batch_never_share_a_colour() -> None:
    lamb = MethodKey("LAMB", "vanilla")
    strange = [(MethodKey(f"own {i}", f"own {i}"), 1) for i in range(5)]
    chosen = colours([(VANILLA, 1), (lamb, 1), *strange])
    assert chosen[VANILLA] == OWN["vanilla"]
    assert len(set(chosen.values())) == 7


def test_many_methods_are_all_told_apart() -> None:
    count = 2 * (len(OWN) + len(_OTHERS))
    chosen = colours((MethodKey(f"vanilla {i}", "vanilla"), 1) for i in range(count))
    assert len(set(chosen.values())) == count
    for colour in chosen.values():
        assert colour.symbol.removesuffix("-open") in SYMBOLS


def test_a_report_knows_of_schedules_what_they_say_of_themselves() -> None:
    for name, schedule in SCHEDULES.items():
        family = MethodKey(name, name).family
        assert family.colour is not None
        assert family.copies == schedule.makes_copies
        assert family.attacks == (schedule.makes_copies and not schedule.control)
