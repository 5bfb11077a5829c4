"""How far off a model's one-step predictions usually are: the calibrated interval that trust is measured by."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.rollouts import rollout

Array = NDArray[np.float64]


class Interval:
    """Half widths that a share ``coverage`` of one-step errors stays within, entry by entry of the tangent space.

    Without widths they are learned: the largest of the first errors, then each a little wider after an error beyond it and narrower
    after one within it, such that the shares balance (Robbins and Monro, Annals of Mathematical Statistics 22(3), 1951).

    Args:
        widths: Half widths, shape [ndx]; None to learn them.
        coverage: Share of errors within.
        first: Errors seen before the widths count.
        rate: Relative change of a learned width by an error beyond it.
        floor: Least half width of any entry.

    Raises:
        ValueError: if a width is not above zero, or the coverage not between 0 and 1.
    """

    def __init__(self, widths: Array | None = None, *, coverage: float = 0.99, first: int = 50, rate: float = 0.05,
                 floor: float = 1e-9) -> None:
        if not 0 < coverage < 1:
            raise ValueError(f"Interval: coverage must be between 0 and 1, received {coverage}")
        if widths is not None and not bool(np.all(np.asarray(widths) > 0)):
            raise ValueError(f"Interval: widths must be above zero, received {np.asarray(widths).tolist()}")
        self.coverage, self.floor, self._rate, self._first = coverage, floor, rate, first
        self.learned, self._seen = widths is None, 0
        self.widths: Array | None = None if widths is None else np.asarray(widths, dtype=np.float64)

    @property
    def known(self) -> bool:
        """Whether the widths count yet."""
        return not self.learned or self._seen >= self._first

    def copy(self) -> Interval:
        """Return an interval of its own with the same widths and options."""
        other = Interval(coverage=self.coverage, first=self._first, rate=self._rate, floor=self.floor)
        other.learned, other._seen = self.learned, self._seen
        other.widths = None if self.widths is None else self.widths.copy()
        return other

    def ratio(self, error: Array) -> Array:
        """Return the size of an error in half widths, shape [ndx]; zero while nothing is known."""
        if self.widths is None or not self.known:
            return np.zeros_like(error)
        return np.abs(error) / self.widths

    def learn(self, error: Array) -> None:
        """Take an error of a plant that behaves into account."""
        if not self.learned:
            return
        size = np.maximum(np.abs(error), self.floor)
        self._seen += 1
        if self.widths is None:
            self.widths = size
        elif self._seen <= self._first:
            self.widths = np.maximum(self.widths, size)
        else:
            beyond = (size > self.widths) - (1 - self.coverage)
            self.widths = np.maximum(self.widths * np.exp(self._rate * beyond), self.floor)


def calibrate_interval(dynamics: ResidualDynamics, states: Array, actions: Array, coverage: float = 0.99,
                       floor: float = 1e-9) -> Interval:
    """Return the interval of a model from recorded states that training has not seen (split conformal prediction).

    Args:
        dynamics: The model.
        states: As they were measured, one log or several, shape [*logs, T + 1, nx] of the baseline.
        actions: In between, shape [*logs, T, nu].
        coverage: Share of errors within, see ``Interval``.
        floor: Least half width.
    """
    errors = one_step_errors(dynamics, states, actions).reshape(-1, dynamics.baseline.space.ndx)
    rank = min(1.0, coverage * (1 + 1 / len(errors)))
    return Interval(np.maximum(np.quantile(np.abs(errors), rank, axis=0, method="higher"), floor), coverage=coverage)


def one_step_errors(dynamics: ResidualDynamics, states: Array, actions: Array) -> Array:
    """Return measured next states ⊖ predicted ones, shape [*logs, T, ndx]; memory runs through each log from its start."""
    space, known = dynamics.baseline.space, torch.from_numpy(np.ascontiguousarray(states, np.float64))
    commands, nx = torch.from_numpy(np.ascontiguousarray(actions, np.float64)), dynamics.baseline.space.nx
    with torch.no_grad():
        if dynamics.space.nx == nx:
            predicted = rollout(dynamics, known[..., :-1, :], commands.unsqueeze(-2))[..., 1, :]
        else:
            rows, memory = [], dynamics.initial_state(known[..., 0, :], commands[..., 0, :])[..., nx:]
            for t in range(commands.shape[-2]):
                after = rollout(dynamics, torch.cat([known[..., t, :], memory], -1), commands[..., t : t + 1, :])[..., 1, :]
                rows.append(after[..., :nx])
                memory = after[..., nx:]
            predicted = torch.stack(rows, -2)
        return np.asarray(space.difference(known[..., 1:, :], predicted).numpy())
