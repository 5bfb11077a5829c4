"""Scores and conformal factors against closed forms and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from residual_mbrl.uncertainty import density
from residual_mbrl.uncertainty.conformal import AdaptiveConformal, SplitConformal, adaptive_factors, conformal_quantile
from residual_mbrl.uncertainty.scores import auroc, crps_of_samples, interval_score, score_bands

DOFS = (math.inf, 2.5, 7.0)


def distribution(dof):
    return stats.norm if math.isinf(dof) else stats.t(dof)


@pytest.mark.parametrize("dof", DOFS)
def test_density_is_that_of_scipy(dof):
    """Also where degrees of freedom are a tensor that is learned."""
    e = np.linspace(-4, 4, 9)
    expected = -distribution(dof).logpdf(e / 0.7) + math.log(0.7)
    given = dof if math.isinf(dof) else torch.tensor(dof, dtype=torch.float64)
    assert np.allclose(density.negative_log_density(torch.from_numpy(e), torch.tensor(0.7, dtype=torch.float64), given), expected)


@pytest.mark.parametrize("dof", DOFS)
def test_crps_is_its_integral(dof):
    """The closed form is ``∫ (F(x) - [x >= y])² dx``."""
    law, scale = distribution(dof), 0.7
    for y in (-2.0, 0.0, 0.3, 3.0):
        below = integrate.quad(lambda x: law.cdf(x / scale) ** 2, -np.inf, y)[0]
        above = integrate.quad(lambda x: law.sf(x / scale) ** 2, y, np.inf)[0]
        assert density.crps(np.array(y), np.array(scale), dof) == pytest.approx(below + above, rel=1e-6)


def test_crps_of_samples_is_that_of_all_pairs():
    """Sorted sums are the double sum, with and without equal pairs."""
    x, y = np.random.default_rng(0).normal(size=(7, 3)), np.array([0.1, -2.0, 0.5])
    pairs = np.abs(x[:, None] - x[None]).sum((0, 1)) / 2
    for fair, divisor in ((True, 42), (False, 49)):
        assert np.allclose(crps_of_samples(x, y, fair=fair), np.abs(x - y).mean(0) - pairs / divisor)


def test_fair_crps_of_few_samples_averages_to_the_closed_form():
    """Over many draws of three samples, within four standard errors."""
    x = np.random.default_rng(1).normal(size=(3, 40000))
    found = crps_of_samples(x, np.full(40000, 0.4))
    assert abs(found.mean() - density.crps(np.array(0.4), np.array(1.0))) < 4 * found.std() / 200


def test_true_density_has_the_best_scores():
    """CRPS and likelihood are proper: narrower and wider bands score worse, and only the true ones cover what they say."""
    e = np.random.default_rng(2).normal(size=(4000, 2, 1))
    by = {f: score_bands(e, np.array(f), steps=(1,)) for f in (0.5, 1.0, 2.0)}
    for metric in ("crps", "nll"):
        values = {f: getattr(s, metric).value.item() for f, s in by.items()}
        assert min(values, key=values.get) == 1.0
    assert abs(by[1.0].coverage.value.item() - 0.9) < 0.02
    assert by[1.0].coverage.lower.item() < 0.9 < by[1.0].coverage.upper.item()
    assert by[1.0].width.value.item() == pytest.approx(2 * stats.norm.ppf(0.95))


def test_what_was_not_recorded_does_not_count():
    """Coverage is over recorded samples."""
    e = np.array([[[0.0]], [[5.0]], [[np.nan]], [[np.nan]]])
    found = score_bands(e, np.array(1.0), steps=(0,))
    assert found.coverage.value.item() == 0.5
    assert np.isfinite(found.nll.value.item())


def test_interval_score_is_width_inside_and_adds_misses_outside():
    """By hand at level 0.9."""
    assert np.allclose(interval_score(np.zeros(3), np.ones(3), np.array([0.5, -0.1, 1.2]), 0.9), [1.0, 3.0, 5.0])


def test_auroc_is_the_fraction_of_ordered_pairs():
    """With ties, and of two Gaussians the closed form."""
    a, b = np.array([0.0, 1.0, 1.0, 3.0]), np.array([1.0, 2.0])
    assert auroc(a, b) == pytest.approx(np.mean((b[None] > a[:, None]) + 0.5 * (b[None] == a[:, None])))
    rng = np.random.default_rng(0)
    assert auroc(rng.normal(size=20000), 1 + rng.normal(size=20000)) == pytest.approx(stats.norm.cdf(1 / math.sqrt(2)), abs=0.01)


@pytest.mark.parametrize(("n", "level"), [(19, 0.9), (9, 0.5), (50, 0.9)])
def test_split_conformal_covers_exactly_what_its_rank_says(n, level):
    """Of exchangeable continuous scores, ``⌈(n + 1) level⌉ / (n + 1)``, whatever the density."""
    rng = np.random.default_rng(0)
    repeats = 20000
    held, new = rng.exponential(size=(n, repeats, 1)) ** 2, rng.exponential(size=(repeats, 1)) ** 2
    factor = SplitConformal.of(held, np.array(1.0), level=level).factor
    exact = math.ceil((n + 1) * level - 1e-9) / (n + 1)
    assert abs((new <= factor).mean() - exact) < 4 * math.sqrt(exact * (1 - exact) / repeats)


def test_too_few_scores_give_no_bound():
    """With eight scores no finite band holds a ninth with 90 %; unrecorded ones are none."""
    scores = np.array([*range(9), *[np.nan] * 5], dtype=float)
    assert conformal_quantile(scores, 0.9) == 8.0
    assert conformal_quantile(scores[1:], 0.9) == np.inf


def test_pooled_steps_take_their_neighbours():
    """The first step, which is the first state, stays alone."""
    error = np.ones((30, 4, 1)) * np.array([9.0, 1.0, 2.0, 3.0])[:, None]
    assert SplitConformal.of(error, np.array(1.0), smooth=1).factor[:, 0].tolist() == [9.0, 2.0, 3.0, 3.0]


def test_adaptive_conformal_keeps_its_level_when_the_stream_changes():
    """The missed fraction stays within the bound that holds for any sequence; a fixed factor does not come near."""
    rng = np.random.default_rng(0)
    stream = np.abs(rng.normal(size=4000)) * np.repeat([1.0, 3.0, 0.5, 6.0], 1000)
    state = AdaptiveConformal(level=0.9, rate=0.02, memory=200, scores=np.abs(rng.normal(size=200)))
    fixed, missed = state.factor, []
    for score in stream:
        missed.append(score > state.factor)
        state = state.update(score)
    assert abs(np.mean(missed) - 0.1) <= (0.9 + 0.02) / (0.02 * len(stream))
    assert np.mean(stream > fixed) > 0.3


def test_stream_is_given_factors_from_its_past_alone():
    """A forecast of two elements ahead is not known one later; what was not recorded changes nothing; misses of a shift are made good."""
    rng = np.random.default_rng(0)
    known, stream = np.abs(rng.normal(size=300)), 3 * np.abs(rng.normal(size=600))
    found = adaptive_factors(known, stream, rate=0.05, delay=2)
    changed = stream.copy()
    changed[100] = 50.0
    other = adaptive_factors(known, changed, rate=0.05, delay=2)
    assert np.array_equal(found[:102], other[:102])
    assert found[0] == conformal_quantile(known, 0.9)
    gap = stream.copy()
    gap[0] = np.nan
    assert adaptive_factors(known, gap, delay=1)[1] == found[0]
    assert (stream > found)[100:].mean() == pytest.approx(0.1, abs=0.03)
    # steps that add up to no misses, but for rounding
    assert AdaptiveConformal(alpha=1e-17, scores=known).factor == np.inf


@pytest.mark.parametrize(("call", "message"), [
    (lambda: adaptive_factors(np.ones(3), np.ones(3), delay=0), "delay >= 1"),
    (lambda: conformal_quantile(np.zeros(3), 1.0), "level must lie in"),
    (lambda: SplitConformal.of(np.zeros(3), np.ones(3)), r"errors \[N, H \+ 1, n\]"),
    (lambda: score_bands(np.zeros((2, 3, 1)), np.ones(1), steps=(3,)), "steps within H"),
    (lambda: crps_of_samples(np.zeros((1, 2)), np.zeros(2)), "at least 2 samples"),
    (lambda: auroc(np.zeros(0), np.zeros(2)), "scores of both kinds"),
    (lambda: density.crps(np.zeros(1), np.ones(1), 1.0), "more than one degree"),
    (lambda: density.half_width(0.0), "level must lie in"),
])
def test_bad_input_is_named(call, message):
    """Before anything is computed."""
    with pytest.raises(ValueError, match=message):
        call()
