"""Physical and sensor parameters from logs: robust multi-step least squares, with intervals and an identifiability verdict."""

from __future__ import annotations

import logging
import time as clock
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import OptimizeResult, least_squares
from scipy.stats import qmc

from residual_mbrl import checkpoints, robust
from residual_mbrl.baselines import Parameter, Parameters
from residual_mbrl.checkpoints import Round, Training
from residual_mbrl.data_cost import DIVERGED
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.errors import ModelError
from residual_mbrl.first_states import Eliminated
from residual_mbrl.identifiability import Estimate, assess
from residual_mbrl.sensors import Sensor
from residual_mbrl.simulation_error import SimulationError
from residual_mbrl.status import Status
from residual_mbrl.windows import Windows

Array = NDArray[np.float64]
log = logging.getLogger(__name__)

FALLING = 0.99
"""Share of the cost at the last Jacobian below which the cost falls fast enough for one-sided differences to do."""

ROUGH = 1e-3
"""Relative fall of the cost at which a search ends that only prepares the next one, over a longer horizon."""

MOST = 0.9
"""Share of the errors that a preparing search sees as quadratic: a robust loss that most samples see as linear takes many small steps."""
FAR = 3.0
"""Scales of the robust loss beyond which that share has to lie for a search to be prepared so."""


@dataclass(frozen=True, kw_only=True)
class IdentifyOptions:
    """How to search.

    Args:
        free: Glob patterns of the parameters to estimate (baseline and sensor); None takes those marked free.
        candidates: Random starts screened by one batched simulation; the nominal start is always among them.
        starts: Best candidates that are refined.
        spread: Half width of the random starts about nominal, in scaled units.
        iterations: Most least-squares iterations of one refinement.
        horizons: Horizons [steps] of successive refinements; the last one is followed by the whole windows.
        longest: Steps of a window that are used at most; None takes windows whole. What a model lacks adds up over a window, so
            identification without the residual may want shorter ones than the fit with it.
        loss: Robust loss, see ``robust``; "soft_l1" is quadratic within ``f_scale`` noise standard deviations, linear beyond.
        f_scale: Where the loss turns linear.
        every: Use every so many-th step of the error.
        start_std: Standard deviation of each first-state entry; None keeps the measured first state.
        seed: Seed of the candidates.
    """

    free: Sequence[str] | None = None
    candidates: int = 64
    starts: int = 2
    spread: float = 0.5
    iterations: int = 30
    horizons: Sequence[int] = ()
    longest: int | None = None
    loss: robust.Loss = "soft_l1"
    f_scale: float = 1.0
    every: int = 1
    start_std: Sequence[float] | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Identification:
    """Result of ``identify``.

    Args:
        dynamics: Model with the identified values.
        sensor_values: Identified effect parameters by name.
        estimates: Every estimated parameter.
        correlation: Correlation of the estimates, shape [n, n].
        unidentifiable: Combinations of parameters that the data cannot tell apart, in words.
        condition: Ratio of the largest to the smallest singular value of the scaled Jacobian.
        cost: Robust cost at the solution.
        status: Why the search stopped.
        evaluations: Batched simulations made, since the last resume.
        seconds: Wall time.
        z: Solution in scaled unknowns.
    """

    dynamics: ResidualDynamics
    sensor_values: dict[str, float]
    estimates: tuple[Estimate, ...]
    correlation: Array
    unidentifiable: tuple[str, ...]
    condition: float
    cost: float
    status: Status
    evaluations: int
    seconds: float
    z: Array


def free_parameters(dynamics: ResidualDynamics, sensor: Sensor, patterns: Sequence[str] | None = None) -> list[Parameter]:
    """Return the parameters of baseline and sensor to estimate.

    Raises:
        ModelError: if a pattern matches nothing in either, or nothing is free.
    """
    chosen = Parameters(*dynamics.baseline.parameters, *sensor.parameters).free(patterns)
    if not chosen:
        raise ModelError("nothing to identify: no parameter of the baseline or the sensor is free; name some with free=[...]")
    return chosen


def identify(dynamics: ResidualDynamics, sensor: Sensor, windows: Windows, options: IdentifyOptions | None = None,
             *, checkpoint: Path | None = None, progress: Callable[[str, float], None] | None = None) -> Identification:
    """Estimate named parameters by robust nonlinear least squares on multi-step simulation error.

    Random starts are screened in one batched simulation; the best are refined with ``scipy.optimize.least_squares`` on
    growing horizons. Method: output-error identification, e.g. Ljung, System Identification (1999), ch. 7.

    Args:
        dynamics: Baseline (with or without residuals; their weights are kept as they are).
        sensor: From states to columns; its free effects are estimated with the rest.
        windows: The data.
        options: How to search.
        checkpoint: File that keeps the state after every start; the search resumes from it where it exists.
        progress: Called with a phrase and the fraction done.

    Raises:
        ModelError: if nothing is free, or the model's rate differs from the data's.
    """
    options = options or IdentifyOptions()
    begun = clock.monotonic()
    free = free_parameters(dynamics, sensor, options.free)
    windows = windows if options.longest is None else windows.first(options.longest)
    problem = SimulationError(dynamics=dynamics, sensor=sensor, windows=windows, free=free, start_std=options.start_std,
                              every=options.every)
    stages = [replace(problem, windows=windows.first(h)) for h in options.horizons if h < windows.horizon] + [problem]
    if progress is not None:
        progress("screening starts", 0.0)
    fingerprint = problem.fingerprint(options)
    starts = _screen(stages[0], options)
    state = (checkpoints.load(checkpoint, fingerprint) if checkpoint is not None else None) or Training(z=starts[0], best=starts[0])
    evaluations = options.candidates
    while state.stage < len(starts):
        z, tick = starts[state.stage], clock.monotonic()
        for j, stage in enumerate(stages):
            if progress is not None:
                progress(f"refining start {state.stage + 1} of {len(starts)}", (state.stage + j / len(stages)) / len(starts))
            for f_scale in _scales(stage, z, options, final=stage is problem):
                solved = refine(stage, z, replace(options, f_scale=f_scale), final=stage is problem and f_scale == options.f_scale)
                z, evaluations = solved.x, evaluations + solved.nfev + solved.njev
        entry = Round(horizon=windows.horizon, train=solved.cost, validation=solved.cost, seconds=clock.monotonic() - tick)
        log.info("start %d: cost %.6g after %d evaluations", state.stage, solved.cost, solved.nfev)
        state = state.next_start(z, entry, converged=solved.status > 0)
        if checkpoint is not None:
            checkpoints.save(checkpoint, state, fingerprint)
    fitted, sensor_values = problem.model(state.best)
    residuals = problem(state.best)
    diverged = np.abs(residuals[: problem.rows()]).max() >= DIVERGED
    status = Status.DIVERGED if diverged else Status.CONVERGED if state.converged else Status.ITERATION_LIMIT
    known = assess(problem, state.best, residuals)
    return Identification(dynamics=fitted, sensor_values=sensor_values, estimates=known.estimates, correlation=known.correlation,
                          unidentifiable=known.unidentifiable, condition=known.condition, cost=state.best_score, status=status,
                          evaluations=int(evaluations), seconds=clock.monotonic() - begun, z=state.best)


def refine(problem: SimulationError, z: Array, options: IdentifyOptions, *, final: bool = True) -> OptimizeResult:
    """Run scipy's trust-region least squares from z; return its result (x, cost, jac, status, nfev).

    Args:
        problem: What to minimise.
        z: Start.
        options: How to search.
        final: Whether the result counts; a search that only prepares the next one ends earlier.
    """
    ftol = 1e-7 if final else ROUGH
    search = _Search(problem, z, options, ftol)
    start = problem.inside(z)[: sum(problem.sizes[:2])]
    solved = least_squares(search, start, jac=search.jacobian, bounds=search.unknown.bounds(), loss=search.loss, f_scale=options.f_scale,
                           x_scale=1.0, max_nfev=options.iterations, ftol=ftol, xtol=1e-6, gtol=1e-8)
    solved.x = search.unknown.complete(solved.x)
    return solved


class _Search:
    """A problem as a search sees it: over what all windows share.

    While the cost falls fast, and in a search that only prepares another, one-sided differences point well enough, for half the work;
    central ones finish.
    """

    def __init__(self, problem: SimulationError, z: Array, options: IdentifyOptions, ftol: float) -> None:
        self._f_scale, self._ftol = options.f_scale, ftol
        self._falling = FALLING if ftol < ROUGH else np.inf
        self.loss = robust.scipy_loss(options.loss, problem.rows())
        self.unknown = Eliminated(problem, problem.inside(z), self.loss, options.f_scale)
        self._cost: float | None = None
        self._at, self._errors, self._last, self._last_at = (np.empty(0),) * 4
        self._last_central = False

    def __call__(self, p: Array) -> Array:
        self._at, self._errors = p.copy(), self.unknown(p)
        return self._errors

    def jacobian(self, p: Array) -> Array:
        """Return the Jacobian at p, where the search looked last."""
        before, self._cost = self._cost, float(self.loss((self._errors / self._f_scale) ** 2)[0].sum())
        if before is not None and 0 <= before - self._cost < self._ftol * before:
            return self._last  # the search ends here, but asks first
        finishing = before is not None and self._cost >= self._falling * before
        central = finishing or not np.array_equal(p, self._at)
        # within a step of the differences slopes change by less than such a step was allowed to hide
        if before is not None and (self._last_central or not central) and (np.abs(p - self._last_at) < self.unknown.steps).all():
            return self._last
        self._last, self._last_at, self._last_central = self.unknown.jacobian(p, one_sided=not central), p.copy(), central
        return self._last


def _scales(problem: SimulationError, z: Array, options: IdentifyOptions, *, final: bool) -> list[float]:
    """Return the scales of a robust loss with which to search one after the other from z; finally that of the options."""
    if options.loss == "linear":
        return [options.f_scale]
    wide = float(np.quantile(np.abs(problem(z)[: problem.rows()]), MOST))
    if wide <= FAR * options.f_scale:
        return [options.f_scale]
    return [wide, options.f_scale] if final else [wide]


def _screen(problem: SimulationError, options: IdentifyOptions) -> list[Array]:
    lower, upper = problem.bounds()
    n = len(problem.free)
    first = problem.initial()
    copies = np.tile(first, (max(options.candidates, 1), 1))
    if options.candidates > 1 and n:
        unit = qmc.LatinHypercube(n, seed=options.seed).random(options.candidates - 1)
        copies[1:, :n] = np.clip(first[:n] + options.spread * (2 * unit - 1), lower[:n], upper[:n])
    cost = robust.cost(problem.batch(copies), options.loss, options.f_scale)
    return [copies[i] for i in np.argsort(cost, kind="stable")[: max(options.starts, 1)]]
