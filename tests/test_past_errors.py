"""Scales from a log's past: what they know and when, that they follow any unit of error, and bands of a stream that changes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import lfilter

from residual_mbrl.uncertainty.conformal import conformal_quantile
from residual_mbrl.uncertainty.past_errors import PastScale, Stream

Array = np.ndarray


def stream(size: float = 1.0, count: int = 400, seed: int = 0, stride: int = 5) -> Stream:
    """Errors that grow over ten steps, as large as a feature says that wanders, with a scatter of its own."""
    rng = np.random.default_rng(seed)
    feature = np.exp(lfilter([0.3], [1, -0.95], rng.standard_normal(count)))
    error = size * feature[:, None, None] ** 0.7 * np.arange(11)[:, None] * np.abs(rng.standard_normal((count, 11, 2)))
    return Stream(error=error, features=feature[:, None], stride=stride)


def fitted(**options: float) -> PastScale:
    return PastScale.of([[stream(1.0, seed=1), stream(1.0, seed=2)], [stream(0.2, seed=3)]], **options)  # type: ignore[arg-type]


def test_a_feature_counts_as_it_does_in_the_errors():
    """Slopes are found whatever the level of each group; without a scatter they are exact."""
    assert abs(fitted(length=20, ridge=0.0).slope[1:].mean() - 0.7) < 0.1
    features = (stream().features, stream(seed=1).features)
    exact = [Stream(error=f[:, :, None] ** 0.7 * np.ones((400, 3, 1)), features=f, stride=5) for f in features]
    found = PastScale.of([exact], ridge=0.0)
    assert np.allclose(found.slope, 0.7, atol=1e-3)
    assert np.allclose(found(exact[0])[5:], exact[0].error[5:], rtol=1e-3)


def test_only_outcomes_that_are_known_count():
    """An error at step h of forecast j is known to forecast j + ⌈h / stride⌉, and to none before."""
    scale, known = fitted(), stream()
    error = known.error.copy()
    error[100, 10] *= 50
    changed = ~np.isclose(scale(Stream(error=error, features=known.features, stride=5)), scale(known), rtol=1e-9)
    assert not changed[:, :10].any()
    assert not changed[:102, 10].any()
    assert changed[102 : 102 + scale.length, 10].all()
    assert not changed[102 + scale.length :, 10].any()


def test_scales_are_in_the_unit_of_the_errors():
    """A log whose errors are a thousand times as large has scales a thousand times as large once its start is forgotten."""
    scale = fitted(length=50)
    small, large = (scale(stream(size)) for size in (1.0, 1000.0))
    assert np.allclose(large[100:, 1:], 1000 * small[100:, 1:], rtol=0.2)


def test_bands_hold_on_a_kind_that_nobody_has_seen():
    """Errors thirty times as large as any: fixed factors of the past's scale cover them, those of no scale do not."""
    groups, new = [[stream(1.0, seed=1)], [stream(0.2, seed=3)]], stream(30.0, seed=7, count=2000)
    scale = PastScale.of(groups)
    factor = conformal_quantile(np.concatenate([s.error / scale(s) for g in groups for s in g]), 0.9)
    covered = (new.error <= factor * scale(new))[:, 1:].mean(0)
    assert abs(covered.mean() - 0.9) < 0.03
    assert (abs(covered - 0.9) < 0.1).all()
    constant = conformal_quantile(np.concatenate([s.error for g in groups for s in g]), 0.9)
    assert (new.error <= constant)[:, 1:].mean() < 0.5


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Stream(error=np.ones((3, 2)), features=np.ones((3, 1)), stride=1), "errors \\[N, H \\+ 1, n\\]"),
    (lambda: Stream(error=np.ones((3, 2, 1)), features=np.ones((3, 1)), stride=0), "stride >= 1"),
    (lambda: Stream(error=np.full((3, 2, 1), np.nan), features=np.ones((3, 1)), stride=1), "not negative"),
    (lambda: Stream(error=np.ones((3, 2, 1)), features=np.zeros((3, 1)), stride=1), "positive"),
    (lambda: PastScale.of([]), "groups of streams"),
    (lambda: fitted(length=0), "length >= 1"),
    (lambda: fitted()(Stream(error=np.ones((3, 2, 1)), features=np.ones((3, 1)), stride=1)), "expected errors \\[N, 11, 2\\]"),
])
def test_bad_input_is_refused(make, message):
    """With what was expected and what was received."""
    with pytest.raises(ValueError, match=message):
        make()
