"""Parts of an outlier score: what a stretch of a log looks like, distance to the nearest, and how parts are joined."""

from __future__ import annotations

import numpy as np
import pytest

from residual_mbrl.uncertainty.outliers import Detector, FeatureDistance, NeighbourDistance, window_features
from residual_mbrl.uncertainty.scores import auroc


def test_features_are_means_and_spreads():
    """Of a wave about a level, whatever its phase and where the stretch begins within it."""
    t = np.arange(50) / 50
    waves = np.stack([3 + 2 * np.sin(2 * np.pi * (2 * t + phase)) for phase in (0.0, 0.3)])[..., None]
    found = window_features(waves, floor=1e-6)
    assert np.allclose(found, [3.0, np.log(2 / 2**0.5)], atol=1e-5)


def test_what_lies_between_two_kinds_is_neither():
    """Which one mean and covariance of both would call the most ordinary of all."""
    rng = np.random.default_rng(0)
    kinds = np.concatenate([[-5, 0] + rng.normal(size=(400, 2)), [5, 0] + rng.normal(size=(400, 2))])
    inside, between = kinds[::2], rng.normal(size=(100, 2))
    assert auroc(NeighbourDistance.of(kinds[1::2])(inside), NeighbourDistance.of(kinds[1::2])(between)) > 0.95
    assert auroc(FeatureDistance.of(kinds[1::2])(inside), FeatureDistance.of(kinds[1::2])(between)) < 0.5


def test_nearest_distances_are_those_of_all_pairs():
    """In the metric of the training data."""
    rng = np.random.default_rng(1)
    train, new = rng.normal(size=(30, 3)) * [1, 10, 0.1], rng.normal(size=(4, 5, 3))
    distance = NeighbourDistance.of(train, neighbours=3)
    a, b = distance.metric.whitened(new), distance.metric.whitened(train)
    every = np.sort(np.linalg.norm(a[..., None, :] - b, axis=-1), -1)[..., :3].mean(-1) / 3**0.5
    assert np.allclose(distance(new), every)


def test_a_part_that_sees_it_is_enough():
    """However ordinary the outlier looks to two others."""
    rng = np.random.default_rng(2)
    validation, inside, outside = (list(rng.exponential(size=(3, 500))) for _ in range(3))
    outside[1] = outside[1] + 6
    outside[0], outside[2] = 0.1 * outside[0], 0.1 * outside[2]
    detector = Detector.of(validation)
    assert auroc(detector.score(inside), detector.score(outside)) > 0.95
    assert detector.flags(inside).mean() == pytest.approx(0.05, abs=0.03)
    assert detector.flags(outside).mean() > 0.6


@pytest.mark.parametrize(("call", "message"), [
    (lambda: window_features(np.zeros((3, 1, 2))), "T >= 2"),
    (lambda: window_features(np.zeros((3, 4, 2)), floor=0.0), "floor > 0"),
    (lambda: NeighbourDistance.of(np.zeros((3, 2)), neighbours=4), "N >= neighbours"),
    (lambda: NeighbourDistance.of(np.zeros(3)), "N >= neighbours"),
])
def test_bad_input_is_refused(call, message):
    """With what was expected and what was received."""
    with pytest.raises(ValueError, match=message):
        call()
