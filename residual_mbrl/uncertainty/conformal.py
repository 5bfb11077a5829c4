"""Conformal correction of bands: a factor by horizon from held-out errors, and one that follows a stream.

Split conformal prediction (Vovk, Gammerman, Shafer 2005; Lei et al., JASA 113, 2018): where held-out and new errors are exchangeable,
bands hold the new value with probability at least ``level``, whatever the model. Windows of one log are not independent, and logs of
another gain or another day are not exchangeable: coverage has to be looked at on logs that had no part in anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
NEVER = 1e-9
"""A miss rate below this is zero but for rounding."""


def conformal_quantile(scores: Array, level: float) -> Array:
    """Return the ``⌈(N + 1) level⌉``-th smallest score along the first axis, infinite where there are too few; NaN is left out.

    Args:
        scores: Held-out nonconformity scores, shape [N, ...].
        level: Wanted coverage.
    """
    if not 0 < level < 1:
        raise ValueError(f"conformal_quantile: level must lie in (0, 1), received {level}")
    ordered = np.sort(scores, axis=0)  # NaN comes last
    known = (~np.isnan(scores)).sum(0)
    rank = np.ceil((known + 1) * level - 1e-9).astype(int)
    padded = np.concatenate([ordered, np.full((1, *scores.shape[1:]), np.inf)], 0)
    found = np.take_along_axis(padded, np.minimum(rank - 1, len(scores))[None], 0)[0]
    return np.asarray(np.where(rank > known, np.inf, found))


@dataclass(frozen=True, kw_only=True)
class SplitConformal:
    """Half widths in scales, by step and quantity.

    Args:
        level: Coverage that they are for.
        factor: Shape [H + 1, n].
    """

    level: float
    factor: Array

    @classmethod
    def of(cls, error: Array, scale: Array, *, level: float = 0.9, smooth: int = 0) -> SplitConformal:
        """Find the factors from held-out errors.

        Args:
            error: Observed minus predicted mean, shape [N, H + 1, n]; NaN where not recorded.
            scale: Of the prediction, broadcastable to it.
            level: Wanted coverage.
            smooth: Pool scores of so many steps on either side: neighbouring horizons say nearly the same.
        """
        if error.ndim != 3:
            raise ValueError(f"SplitConformal: expected errors [N, H + 1, n], received {error.shape}")
        scores = np.abs(error) / np.broadcast_to(scale, error.shape)
        steps = error.shape[1]
        if not smooth:
            return cls(level=level, factor=conformal_quantile(scores, level))
        near = [scores[:, max(1, h - smooth) : h + smooth + 1] if h else scores[:, :1] for h in range(steps)]
        pooled = [conformal_quantile(s.reshape(-1, error.shape[2]), level) for s in near]
        return cls(level=level, factor=np.stack(pooled))


def adaptive_factors(known: Array, stream: Array, *, level: float = 0.9, rate: float = 0.02, delay: int = 1, memory: int = 500) -> Array:
    """Return the half width in scales that each element of a stream of scores was given, from earlier ones alone, shape [N].

    Args:
        known: Held-out scores to begin with, shape [M].
        stream: Scores in the order in which they are seen, shape [N]; NaN was not recorded.
        level: Wanted coverage.
        rate: Of the adaptation.
        delay: How many elements later a score is known: a forecast of H steps started every S steps knows its own after ``⌈H / S⌉``.
        memory: Latest scores kept.
    """
    if delay < 1:
        raise ValueError(f"adaptive_factors: expected delay >= 1, received {delay}")
    state = AdaptiveConformal(level=level, rate=rate, memory=memory, scores=known[~np.isnan(known)][-memory:])
    factors: list[float] = []
    for i in range(len(stream)):
        if i >= delay and not np.isnan(stream[i - delay]):
            state = state.update(float(stream[i - delay]), given=factors[i - delay])
        factors.append(state.factor)
    return np.array(factors)


@dataclass(frozen=True, kw_only=True)
class AdaptiveConformal:
    """Adaptive conformal inference: the level asked for moves with what was missed (Gibbs and Candès, NeurIPS 2021).

    ``α' = α + γ (1 - level - miss)``; over T steps the missed fraction is within ``(max(α_1, 1 - α_1) + γ) / (γ T)`` of what was
    asked, for any sequence. State is passed and returned: ``update`` gives the next one.

    Args:
        level: Wanted coverage.
        rate: Step γ.
        memory: Latest scores kept.
        alpha: Miss rate asked for now; ``1 - level`` where None.
        scores: Latest nonconformity scores, the oldest first, shape [memory at most].
    """

    level: float = 0.9
    rate: float = 0.02
    memory: int = 500
    alpha: float | None = None
    scores: Array

    @property
    def asked(self) -> float:
        """Miss rate asked for now."""
        return 1 - self.level if self.alpha is None else self.alpha

    @property
    def factor(self) -> float:
        """Half width in scales for the next value: all where less than no misses are asked for, none where more than all."""
        if self.asked <= NEVER:
            return math.inf
        return 0.0 if self.asked >= 1 - NEVER else float(conformal_quantile(self.scores, 1 - self.asked))

    def update(self, score: float, given: float | None = None) -> AdaptiveConformal:
        """Return the state after a value with this score ``|error| / scale``; ``given`` is the factor it had, where not the present one."""
        missed = float(score > (self.factor if given is None else given))
        return replace(self, alpha=self.asked + self.rate * (1 - self.level - missed),
                       scores=np.append(self.scores, score)[-self.memory :])
