"""Is this what the model was trained on? Disagreement of members, distance in feature space, and what was just seen to be wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from residual_mbrl.uncertainty.conformal import conformal_quantile

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class FeatureDistance:
    """Mahalanobis distance to the training data in feature space, ``sqrt((f - m)ᵀ C⁻¹ (f - m) / n)``: about one where it belongs.

    Args:
        mean: Shape [n].
        whitening: Inverse of the Cholesky factor of the shrunk covariance, shape [n, n].
    """

    mean: Array
    whitening: Array

    @classmethod
    def of(cls, features: Array, shrinkage: float = 0.01) -> FeatureDistance:
        """Fit to training features, shape [N, n]; ``shrinkage`` of the mean variance is added to each (Ledoit and Wolf 2004)."""
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(f"FeatureDistance: expected features [N >= 2, n], received {features.shape}")
        spread = features.std(0)
        spread = np.where(spread > 0, spread, 1.0)
        covariance = np.cov((features / spread).T).reshape(features.shape[1], -1)
        shrunk = (1 - shrinkage) * covariance + shrinkage * np.eye(len(covariance))
        return cls(mean=features.mean(0), whitening=np.linalg.inv(np.linalg.cholesky(shrunk)) / spread)

    def __call__(self, features: Array) -> Array:
        """Return the distance of features [..., n], shape [...]."""
        return np.asarray(np.sqrt(np.square(self.whitened(features)).mean(-1)))

    def whitened(self, features: Array) -> Array:
        """Return features of unit covariance and no mean where the training data are, shape [..., n]."""
        return np.asarray((features - self.mean) @ self.whitening.T)


@dataclass(frozen=True, kw_only=True)
class NeighbourDistance:
    """Mean distance to the nearest training data in feature space, in its Mahalanobis metric.

    Training data of several kinds lie apart, and what is between them is not one of them: a mean and covariance would say it is.

    Args:
        metric: Of the training data.
        neighbours: How many.
        tree: Of the whitened training data.
    """

    metric: FeatureDistance
    neighbours: int
    tree: KDTree

    @classmethod
    def of(cls, features: Array, *, neighbours: int = 5, shrinkage: float = 0.05) -> NeighbourDistance:
        """Fit to training features, shape [N, n], of at least ``neighbours`` rows."""
        if features.ndim != 2 or not 1 <= neighbours <= len(features):
            raise ValueError(f"NeighbourDistance: expected features [N, n] with N >= neighbours >= 1, received {features.shape} and "
                             f"{neighbours}")
        metric = FeatureDistance.of(features, shrinkage)
        return cls(metric=metric, neighbours=neighbours, tree=KDTree(metric.whitened(features)))

    def __call__(self, features: Array) -> Array:
        """Return the distance of features [..., n], shape [...]."""
        far = self.tree.query(self.metric.whitened(features), list(range(1, self.neighbours + 1)))[0]
        return np.asarray(far.mean(-1) / np.sqrt(features.shape[-1]))


def window_features(signals: Array, floor: float = 0.01) -> Array:
    """Return what a stretch of a log looks like: of each signal its mean and the logarithm of its spread, shape [N, 2 k].

    A plant that is flown or loaded in another way moves otherwise, even where no single state is new: the spread of a command tells a
    corner from a curve, its mean against an acceleration a heavy craft from a light one. Give rates, accelerations and commands rather
    than positions, which tell a place.

    Args:
        signals: Shape [N, T, k].
        floor: Added to the spreads, in the units of the signals.
    """
    if signals.ndim != 3 or signals.shape[1] < 2 or floor <= 0:
        raise ValueError(f"window_features: expected signals [N, T >= 2, k] and floor > 0, received {signals.shape} and {floor}")
    return np.concatenate([signals.mean(1), np.log(signals.std(1) + floor)], -1)


@dataclass(frozen=True, kw_only=True)
class Detector:
    """A score that is high where the model has not been, and the threshold that it passes on validation.

    Each part (disagreement, feature distance, past innovation, ...) counts in its own ranks on validation data: its tail probability
    there. The score is the largest ``-log`` of these (Tippett 1931), since an outlier need not show in more than one, and parts that see
    nothing must not hide it; beyond all of validation a part goes on by its ratio.

    Args:
        reference: Sorted validation values of each part, shapes [N].
        threshold: Score above which something is called an outlier.
        level: Fraction of validation that passes.
    """

    reference: tuple[Array, ...]
    threshold: float
    level: float

    @classmethod
    def of(cls, parts: Sequence[Array], level: float = 0.95) -> Detector:
        """Set ranks and threshold from validation values of each part, shapes [N]."""
        if not parts or any(len(p) != len(parts[0]) or len(p) < 2 for p in parts):
            raise ValueError(f"Detector: expected parts of one length of at least 2, received {[len(p) for p in parts]}")
        made = cls(reference=tuple(np.sort(p) for p in parts), threshold=np.inf, level=level)
        return cls(reference=made.reference, threshold=float(conformal_quantile(made.score(parts), level)), level=level)

    def score(self, parts: Sequence[Array]) -> Array:
        """Return the score of values of each part, shapes [M]."""
        if len(parts) != len(self.reference):
            raise ValueError(f"Detector: expected {len(self.reference)} parts, received {len(parts)}")
        found = []
        for own, values in zip(self.reference, parts, strict=True):
            tail = (len(own) - np.searchsorted(own, values, side="left") + 1) / (len(own) + 1)
            beyond = np.log(np.maximum(values, own[-1]) / own[-1]) if own[-1] > 0 else 0.0
            found.append(-np.log(np.minimum(tail, 1.0)) + beyond)
        return np.asarray(np.max(found, 0))

    def flags(self, parts: Sequence[Array]) -> NDArray[np.bool_]:
        """Tell which values are called outliers, shape [M]."""
        return np.asarray(self.score(parts) > self.threshold)


def disagreement(between: Array, scale: Array | None = None) -> Array:
    """Return how far members part, root mean square over horizon and quantities, shape [B].

    Args:
        between: Variance between members, shape [B, H + 1, n].
        scale: Typical error of each quantity at each step, which it is measured in, shape [H + 1, n]; one where None.
    """
    part = between if scale is None else between / np.square(np.maximum(scale, 1e-300))
    return np.asarray(np.sqrt(part[:, 1:].mean((1, 2))))
