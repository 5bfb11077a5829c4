"""What data say about estimated parameters: standard errors, correlation, and combinations that they cannot tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from residual_mbrl.baselines import Parameter
from residual_mbrl.simulation_error import SimulationError

Array = NDArray[np.float64]

UNIDENTIFIABLE = 0.5
"""Standard error, in scaled units, beyond which a combination of parameters counts as unidentifiable."""

BOUND_TOLERANCE = 1e-3
"""Distance from a bound, in scaled units, below which an estimate counts as stopped there."""

SMALL_STEP = 1e-5
"""Differences for the statistics: the search's large steps cross stick-slip switches, which passes for information."""

ROUNDING = 1e-13
"""Singular values below this share of the largest are zero but for rounding: what lies along them is unknown."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One identified parameter.

    Args:
        parameter: What it is.
        value: Estimate, in the parameter's unit.
        std: Standard error, corrected for correlation of the errors in time; infinite if the data say nothing.
        at_bound: Whether the estimate stopped at a bound.
    """

    parameter: Parameter
    value: float
    std: float
    at_bound: bool

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval."""
        return self.value - 1.96 * self.std, self.value + 1.96 * self.std


@dataclass(frozen=True, kw_only=True)
class Identifiability:
    """What the Jacobian of the data says at a solution.

    Args:
        estimates: Every free parameter.
        correlation: Correlation of the estimates, shape [n, n].
        unidentifiable: Combinations of parameters that the data cannot tell apart, in words.
        condition: Ratio of the largest to the smallest singular value.
    """

    estimates: tuple[Estimate, ...]
    correlation: Array
    unidentifiable: tuple[str, ...]
    condition: float


def assess(problem: SimulationError, z: Array, residuals: Array | None = None) -> Identifiability:
    """Return what the data rows of a problem say about the parameters at z.

    The covariance is ``σ² τ (JᵀJ)⁻¹`` with σ² the mean squared error and τ the integrated autocorrelation of the errors:
    simulation errors are smooth in time, and counting every sample as independent would promise far too narrow intervals.
    A direction of the scaled parameters is unidentifiable when its standard error exceeds half a scaled unit.

    Args:
        problem: The error.
        z: Where.
        residuals: The residual vector at z, where it is known.
    """
    n, rows = len(problem.free), problem.rows()
    residuals = problem(z) if residuals is None else residuals
    errors = residuals[:rows]
    error = float(np.sqrt(np.mean(errors**2) * _correlation_time(problem, errors)))
    jacobian = replace(problem, step=SMALL_STEP).jacobian(z, residuals)[:rows]
    fewer = max(0, problem.length - rows)  # than unknowns: rows of zeros, so that what no row sees has its direction too
    s, vt = np.linalg.svd(np.pad(jacobian, ((0, fewer), (0, 0))), full_matrices=False)[1:]
    silence = max(s[0] * ROUNDING, 1e-100)
    uncertain = max(error, 1e-12) / np.maximum(s, silence)
    covariance = (vt.T * uncertain**2) @ vt
    spread = np.sqrt(np.diag(covariance))[:n]
    unseen = (vt[s <= silence, :n] ** 2).sum(0) > 1e-6
    std = np.where(unseen, np.inf, spread)
    lower, upper = problem.bounds()
    values = problem.values(z)
    estimates = tuple(Estimate(parameter=p, value=values[p.name], std=float(std[i] * p.scale),
                               at_bound=bool(min(z[i] - lower[i], upper[i] - z[i]) < BOUND_TOLERANCE))
                      for i, p in enumerate(problem.free))
    # a null space of several parameters has no directions of its own: what shows nothing alone is named alone
    alone = [i for i in range(n) if error > UNIDENTIFIABLE * np.linalg.norm(jacobian[:, i])]
    told = [free for i, free in enumerate(problem.free) if i not in alone]
    combinations = _combinations(np.delete(jacobian, alone, 1), told, error) if told else []
    return Identifiability(estimates=estimates, correlation=np.clip(covariance[:n, :n] / np.outer(spread, spread), -1, 1),
                           unidentifiable=(*(f"{problem.free[i].name}: the data do not determine it" for i in alone), *combinations),
                           condition=float(s[0] / s[-1]) if s[-1] > silence else float("inf"))


def _combinations(jacobian: Array, free: Sequence[Parameter], error: float) -> list[str]:
    """Name the combinations of parameters that a Jacobian [rows, n + others] with errors of a size leaves open."""
    rows, columns = jacobian.shape
    s, vt = np.linalg.svd(np.pad(jacobian, ((0, max(0, columns - rows)), (0, 0))), full_matrices=False)[1:]
    uncertain, n = max(error, 1e-12) / np.maximum(s, max(s[0] * ROUNDING, 1e-100)), len(free)
    return [_in_words(vt[k, :n], free) for k in range(len(s)) if uncertain[k] > UNIDENTIFIABLE and (vt[k, :n] ** 2).sum() > 0.5]


def _correlation_time(problem: SimulationError, errors: Array) -> float:
    """How many samples share one independent error: integrated autocorrelation of the errors, at least 1."""
    full = torch.zeros(problem.fitted.shape, dtype=torch.float64)
    full[problem.fitted] = torch.tensor(errors)
    x = full[:, :: problem.every].numpy()
    x = x - x.mean((0, 1))
    spectrum = np.abs(np.fft.rfft(x, 2 * x.shape[1], axis=1)) ** 2
    correlation = np.fft.irfft(spectrum, axis=1)[:, : x.shape[1]].sum((0, 2))
    correlation = correlation / max(correlation[0], 1e-300)
    first_negative = int(np.argmax(correlation <= 0)) or len(correlation)
    return float(max(1.0, 1 + 2 * correlation[1:first_negative].sum()))


def _in_words(direction: Array, free: Sequence[Parameter]) -> str:
    """Name a direction of parameter space: the relative changes that leave every prediction as it was."""
    order = [i for i in np.argsort(-np.abs(direction)) if abs(direction[i]) > 0.3 * np.abs(direction).max()]
    if len(order) == 1:
        return f"{free[order[0]].name}: the data do not determine it"
    parts = [f"{'+' if direction[i] > 0 else '-'}{abs(direction[i]) * free[i].scale:.3g} {free[i].unit} of {free[i].name}" for i in order]
    return "only together: " + ", ".join(parts)
