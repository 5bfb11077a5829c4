"""First states eliminated from a simulation error: a search over what all windows share, which first states follow."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from residual_mbrl.simulation_error import SimulationError

Array = NDArray[np.float64]
Loss = Callable[[Array], Array]
"""ρ, ρ' and ρ'' of squared scaled errors, shape [3, rows]."""

MOVES = 3
"""Most steps of first states in one evaluation: each is a simulation, if a cheap one beside a Jacobian."""
SETTLED = 1e-3
"""Relative fall of the cost at which first states count as found."""


class Eliminated:
    """A simulation error over shared unknowns p (parameters, weights) alone; each window's first state s is solved for.

    ``r(p) = r(p, s(p))``, where s minimises the robust cost with its standard normal prior. With weights W of the data rows,
    Gauss-Newton steps ``s - H⁻¹ (J_sᵀ W r + s)``, ``H = J_sᵀ W J_s + I``, find it, window by window, as a first state acts on its
    own window alone; J_s is that of the last linearisation, so that a step costs one simulation. The derivative by p is
    ``J_p + J_s S`` with ``S = -H⁻¹ J_sᵀ W J_p``. A search over p thus takes the steps of one over all unknowns, at the size of
    p: variable projection (Golub and Pereyra 1973, Kaufman 1975). Without first states to estimate everything passes through.

    Args:
        problem: The error.
        z: Where the search begins, all unknowns.
        loss: Robust loss of the squared scaled errors.
        f_scale: Scale of the errors in the loss.
    """

    def __init__(self, problem: SimulationError, z: Array, loss: Loss, f_scale: float = 1.0) -> None:
        self._problem, self._loss, self._f_scale = problem, loss, f_scale
        self._size, self._shape = sum(problem.sizes[:2]), (len(problem.windows), problem.sizes[2])
        self._rows, self._owner = problem.rows(), problem.owner()
        edges = np.searchsorted(self._owner, np.arange(self._shape[0] + 1))
        self._windows = [slice(*ends) for ends in itertools.pairwise(edges)]
        self._p0, self._s0 = z[: self._size], z[self._size :].reshape(self._shape)
        self._slope: Array = np.zeros((*self._shape, self._size))
        self._by_own: Array = np.zeros((self._rows, self._shape[1]))
        self._inverse: Array = np.zeros((*self._shape, self._shape[1]))
        self._at, self._s, self._errors = np.empty(0), self._s0, np.empty(0)
        self._steps = np.full(self._size + self._shape[1], problem.step)

    @property
    def steps(self) -> Array:
        """Difference steps of p."""
        return self._steps[: self._size]

    def bounds(self) -> tuple[Array, Array]:
        """Return lower and upper bounds of p."""
        lower, upper = self._problem.bounds()
        return lower[: self._size], upper[: self._size]

    def complete(self, p: Array) -> Array:
        """Return all unknowns: p with its first states."""
        return np.concatenate([p, self._first_states(p).ravel()])

    def __call__(self, p: Array) -> Array:
        """Return the residual vector at p, first states solved for."""
        s = self._s0 + self._slope @ (p - self._p0)
        self._at, (self._s, self._errors) = p.copy(), self._settle(p, s, self._problem(np.concatenate([p, s.ravel()])))
        return self._errors

    def jacobian(self, p: Array, *, one_sided: bool = False) -> Array:
        """Linearise at p, and return the total derivative of the residual vector by p, shape [rows, length of p].

        Args:
            p: Where.
            one_sided: Take differences of first order, for half the work.
        """
        errors = self._errors if np.array_equal(p, self._at) else self(p)
        by_shared, by_own, self._steps = self._problem.derivatives(self.complete(p), errors, one_sided=one_sided, steps=self._steps)
        if not self._shape[1]:
            return by_shared
        weighed = self._weights(errors) * by_own
        hessian = np.eye(self._shape[1]) + np.stack([weighed[own].T @ by_own[own] for own in self._windows])
        self._by_own, self._inverse = by_own, np.asarray(np.linalg.inv(hessian), dtype=np.float64)
        pull = np.stack([weighed[own].T @ by_shared[own] for own in self._windows])
        self._p0, self._slope = p.copy(), np.asarray(-self._inverse @ pull)
        self._s, self._errors = self._settle(p, self._s, errors.copy())
        self._s0 = self._s
        total = by_shared.copy()
        for own, slope in zip(self._windows, self._slope, strict=True):
            total[own] += by_own[own] @ slope
        total[len(total) - self._s.size :] = self._slope.reshape(-1, self._size)
        return total

    def _first_states(self, p: Array) -> Array:
        return self._s if np.array_equal(p, self._at) else self._s0 + self._slope @ (p - self._p0)

    def _settle(self, p: Array, s: Array, errors: Array) -> tuple[Array, Array]:
        """Return first states, and the residual vector with them: steps from s, in each window as far as its cost falls.

        ``errors`` is the residual vector at s; it is written into.
        """
        if not self._by_own.any():
            return s, errors
        cost, share = self._costs(errors, s), np.ones((len(s), 1))
        for _ in range(MOVES):
            weighed = self._weights(errors) * errors[: self._rows, None]
            pull = s + np.stack([self._by_own[own].T @ weighed[own, 0] for own in self._windows])
            moved = s - share * (self._inverse @ pull[..., None])[..., 0]
            after = self._problem(np.concatenate([p, moved.ravel()]))
            before, changed = cost, self._costs(after, moved)
            better = changed < before
            s, cost, share = np.where(better[:, None], moved, s), np.where(better, changed, before), np.where(better[:, None], 1, share / 4)
            errors[: self._rows] = np.where(better[self._owner], after[: self._rows], errors[: self._rows])
            errors[len(errors) - s.size :] = s.ravel()
            if cost.sum() > (1 - SETTLED) * before.sum():
                break
        return s, errors

    def _weights(self, errors: Array) -> Array:
        """Return the weight of each data row in the robust cost, shape [data rows, 1]."""
        return np.asarray(self._loss((errors / self._f_scale) ** 2)[1][: self._rows, None])

    def _costs(self, errors: Array, s: Array) -> Array:
        """Return what each window has in twice the robust cost, shape [windows]."""
        each = self._f_scale**2 * self._loss((errors / self._f_scale) ** 2)[0]
        return np.asarray([each[own].sum() for own in self._windows] + (s**2).sum(1))
