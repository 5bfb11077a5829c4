"""Minimisation without gradients, for errors that are smooth in the mean only: rollouts through impacts.

CMA-ES: candidates are drawn from a normal distribution whose mean, step and covariance follow the better half of them.
Hansen, "The CMA Evolution Strategy: A Tutorial", arXiv 1604.00772.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Evolution:
    """One search: ``ask`` for candidates, ``tell`` their errors, and ``mean`` moves.

    Args:
        start: First mean, scaled so that one unit is a typical change, shape [n].
        step: First standard deviation.
        candidates: Candidates a generation; None takes ``4 + 3 ln n``.
        seed: Of the draws.

    Attributes:
        mean: Where the search is, shape [n]: better than its best candidate where errors are noisy.
        step: Standard deviation of the candidates along a typical direction.
        generation: Generations told so far.
    """

    def __init__(self, start: Array, *, step: float = 0.3, candidates: int | None = None, seed: int = 0) -> None:
        n = len(start)
        self.mean, self.step, self.generation = np.array(start, dtype=float), step, 0
        self.candidates = 4 + int(3 * np.log(n)) if candidates is None else candidates
        if self.candidates < 4:
            raise ValueError(f"Evolution: expected at least 4 candidates, received {self.candidates}")
        weights = np.log(self.candidates // 2 + 0.5) - np.log(np.arange(1, self.candidates // 2 + 1))
        self._weights = weights / weights.sum()
        effective = self._effective = 1 / float((self._weights**2).sum())
        # the tutorial's default rates (its table 1)
        self._c_path = (4 + effective / n) / (n + 4 + 2 * effective / n)
        self._c_step = (effective + 2) / (n + effective + 5)
        self._c_one = 2 / ((n + 1.3) ** 2 + effective)
        self._c_mu = min(1 - self._c_one, 2 * (effective - 2 + 1 / effective) / ((n + 2) ** 2 + effective))
        self._damping = 1 + 2 * max(0.0, np.sqrt((effective - 1) / (n + 1)) - 1) + self._c_step
        self._expected = np.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n**2))
        self._covariance, self._path, self._step_path = np.eye(n), np.zeros(n), np.zeros(n)
        self._rng = np.random.default_rng(seed)
        self._drawn = np.zeros((self.candidates, n))

    def ask(self) -> Array:
        """Return the next candidates, shape [candidates, n]."""
        values, self._axes = np.linalg.eigh(self._covariance)
        self._lengths = np.sqrt(np.maximum(values, 1e-20))
        self._drawn = (self._rng.standard_normal(self._drawn.shape) * self._lengths) @ self._axes.T
        return np.asarray(self.mean + self.step * self._drawn)

    def tell(self, errors: Array) -> None:
        """Move towards the better half of the last candidates.

        Args:
            errors: Error of each, shape [candidates]; infinite where it could not be simulated.
        """
        best = self._drawn[np.argsort(errors)[: len(self._weights)]]
        shift = self._weights @ best
        self.mean = self.mean + self.step * shift
        self.generation += 1
        c, n = self._c_step, len(self.mean)
        white = self._axes @ (self._axes.T @ shift / self._lengths)
        self._step_path = (1 - c) * self._step_path + np.sqrt(c * (2 - c) * self._effective) * white
        length = float(np.linalg.norm(self._step_path))
        steady = length / np.sqrt(1 - (1 - c) ** (2 * self.generation)) < (1.4 + 2 / (n + 1)) * self._expected
        p = self._c_path
        self._path = (1 - p) * self._path + steady * np.sqrt(p * (2 - p) * self._effective) * shift
        lost = 0.0 if steady else p * (2 - p)
        self._covariance = ((1 - self._c_one * (1 - lost) - self._c_mu) * self._covariance + self._c_one * np.outer(self._path, self._path)
                            + self._c_mu * (best.T * self._weights) @ best)
        self.step *= float(np.exp(c / self._damping * (length / self._expected - 1)))
