"""Bootstrap intervals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from residual_mbrl.bootstrap import band, draw, fraction_better, mean_band, per_unit, ratio


def test_resamples_are_as_large_as_the_data() -> None:
    """Every resample draws as many units as there are."""
    assert (draw(7, resamples=50).sum(1) == 7).all()


def test_the_ratio_weighs_units_by_their_samples() -> None:
    """Drawing every unit once gives the mean over all samples, not the mean of means."""
    value = ratio(np.array([[6.0], [1.0]]), np.array([[3.0], [1.0]]), np.ones((1, 2)))
    assert value[0, 0] == pytest.approx(7 / 4)


def test_interval_agrees_with_scipy() -> None:
    """For units of equal size the percentile interval is scipy's, to the bootstrap's own noise."""
    x = np.random.default_rng(3).gamma(2.0, size=40)
    ours = mean_band(x[:, None], np.ones((40, 1)), draw(40, resamples=20000))
    theirs = stats.bootstrap((x,), np.mean, n_resamples=20000, method="percentile", rng=0).confidence_interval
    assert (ours.lower[0], ours.upper[0]) == pytest.approx((theirs.low, theirs.high), abs=0.03)


def test_interval_covers_the_true_mean_about_95_times_in_100() -> None:
    """Over many data sets of 30 logs the interval of the mean holds the true mean nearly as often as it says."""
    rng = np.random.default_rng(0)
    data = rng.normal(1.0, 0.5, (30, 600))  # one column a data set
    found = mean_band(data, np.ones_like(data), draw(30))
    assert 0.91 < ((found.lower <= 1.0) & (found.upper >= 1.0)).mean() < 0.97


def test_a_diverged_unit_makes_only_the_resamples_infinite_that_hold_it() -> None:
    """Infinite error stays infinite in the value and the upper bound, and the lower bound is that of the finite units."""
    sums = np.array([[1.0], [2.0], [np.inf]])
    found = mean_band(sums, np.ones((3, 1)), draw(3))
    assert np.isinf(found.value[0]) and np.isinf(found.upper[0]) and np.isfinite(found.lower[0])


def test_a_single_unit_has_no_interval() -> None:
    """One log in one window says nothing of the spread."""
    found = mean_band(np.array([[2.0]]), np.array([[4.0]]), draw(1))
    assert found.value[0] == 0.5 and np.isnan(found.lower[0]) and np.isnan(found.upper[0])


def test_no_data_gives_no_number() -> None:
    """A horizon that no log reaches has neither value nor interval."""
    found = mean_band(np.zeros((3, 1)), np.zeros((3, 1)), draw(3))
    assert np.isnan(found.value[0]) and np.isnan(found.lower[0])


def test_band_ignores_resamples_without_data() -> None:
    """NaN resamples are left out of the quantiles."""
    samples = np.concatenate([np.full((50, 1), np.nan), np.linspace(0, 1, 1001)[:, None]])
    assert band(np.array([0.5]), samples).upper[0] == pytest.approx(0.975, abs=2e-3)


def test_sums_per_unit_skip_what_is_not_known() -> None:
    """NaN counts neither in the sum nor in the number."""
    sums, counts = per_unit(np.array([[1.0], [np.nan], [5.0]]), np.array([0, 0, 1]), 2)
    assert sums.tolist() == [[1.0], [5.0]] and counts.tolist() == [[1.0], [1.0]]


def test_fraction_better_counts_units_with_data_only() -> None:
    """Units that one of the models has no number for do not count."""
    assert fraction_better(np.array([[2.0], [2.0], [np.nan]]), np.array([[1.0], [3.0], [1.0]]))[0] == 0.5


@pytest.mark.parametrize(("units", "resamples"), [(0, 10), (3, 0)])
def test_nothing_to_draw_is_an_error(units: int, resamples: int) -> None:
    """The message says what was received."""
    with pytest.raises(ValueError, match="units >= 1"):
        draw(units, resamples=resamples)
