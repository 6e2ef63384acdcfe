"""Intervals, families and power: against closed forms, SciPy and simulated studies."""

import numpy as np
import pytest
from scipy import stats

from conadv.lab.evidence import Paired, holm, smallest_effect

DIFFERENCES = (0.012, 0.004, 0.009, -0.002, 0.006)


def test_the_interval_and_the_test_are_students() -> None:
    found = Paired(DIFFERENCES)
    mean, error = np.mean(DIFFERENCES), np.std(DIFFERENCES, ddof=1) / 5**0.5
    assert found.interval == pytest.approx((mean - 2.776445 * error, mean + 2.776445 * error))
    two_samples = stats.ttest_rel(np.array(DIFFERENCES) + 0.7, [0.7] * 5)
    assert found.p_value() == pytest.approx(two_samples.pvalue)
    assert found.by_chance == (two_samples.pvalue > 0.05)


def test_equivalence_is_two_one_sided_tests() -> None:
    found = Paired(DIFFERENCES)
    below = stats.ttest_1samp(DIFFERENCES, 0.02, alternative="less").pvalue
    above = stats.ttest_1samp(DIFFERENCES, -0.02, alternative="greater").pvalue
    assert found.p_equivalent(0.02) == pytest.approx(max(below, above))
    assert found.p_equivalent(0.02) < 0.05 < found.p_equivalent(0.006)  # type: ignore[operator]


def test_one_seed_shows_nothing_and_equal_differences_everything() -> None:
    one, same = Paired((0.3,)), Paired((0.5, 0.5))
    assert (one.interval, one.bootstrap, one.p_value(), one.visible) == (None,) * 4
    assert one.by_chance
    assert same.interval == (0.5, 0.5) and not same.by_chance and same.p_value() == 0
    assert same.p_equivalent(0.4) == 1 and same.p_equivalent(0.6) == 0


def test_holm_multiplies_the_smallest_by_all() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    draws = np.random.default_rng(1).normal(0.01, 0.005, (500, 6))
    held = [low <= 0.01 <= high for low, high in (Paired(tuple(d)).interval for d in draws)]  # type: ignore[misc]
    assert np.mean(held) == pytest.approx(0.95, abs=0.03)


def test_a_family_without_effects_is_seldom_wrong() -> None:
    """Eight comparisons with nothing in them: one in twenty families claims anything."""
    draws = np.random.default_rng(2).normal(0, 0.005, (1000, 8, 6))
    smallest = stats.ttest_1samp(draws, 0, axis=2).pvalue.min(axis=1)
    for family, least in zip(draws[:3], smallest, strict=False):
        p_values = [Paired(tuple(one)).p_value() for one in family]
        corrected = holm([p for p in p_values if p is not None])
        assert min(corrected) == pytest.approx(min(1, 8 * least))
    assert np.mean(8 * smallest < 0.05) < 0.07
    assert np.mean(smallest < 0.05) > 0.25, "without the correction"


def test_the_smallest_effect_is_found_four_times_in_five() -> None:
    effect = smallest_effect(8, 0.005)
    assert effect == pytest.approx(1.156 * 0.005, rel=1e-3)
    draws = np.random.default_rng(3).normal(effect, 0.005, (2000, 8))
    found = stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05
    assert np.mean(found) == pytest.approx(0.8, abs=0.03)
    assert smallest_effect(1, 0.005) is None


def test_resampling_agrees_where_there_are_many_seeds() -> None:
    many = Paired(tuple(np.random.default_rng(4).normal(0.01, 0.005, 200)))
    assert many.bootstrap == pytest.approx(many.interval, abs=2e-4)
