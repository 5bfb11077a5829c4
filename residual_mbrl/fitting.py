"""Training residuals on multi-step simulation error, without letting them absorb what parameters explain."""

from __future__ import annotations

import copy
import logging
import time as clock
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import least_squares
from torch import Tensor

from residual_mbrl import checkpoints, robust
from residual_mbrl.baselines import Parameter
from residual_mbrl.checkpoints import Round, Training
from residual_mbrl.drawn_windows import DrawnWindows
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.errors import ModelError
from residual_mbrl.first_states import Eliminated
from residual_mbrl.model import Model
from residual_mbrl.simulation_error import SimulationError
from residual_mbrl.windows import Windows

Array = NDArray[np.float64]
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How to train.

    Args:
        horizons: Horizons [steps] that training grows through; the last one is followed by the whole windows.
        rounds: Most rounds at each horizon; after each, validation is scored and the state is saved.
        iterations: Gauss-Newton iterations, or Adam steps, of one round.
        method: "gauss_newton" suits some hundred unknowns, "adam" more; "auto" goes by ``largest_gauss_newton``.
        largest_gauss_newton: Most unknowns that "auto" solves by Gauss-Newton.
        learning_rate: Of Adam, with cosine decay within a round.
        ridge: Pull of every weight to its start: ``ridge · sqrt(rows)`` noise standard deviations per unit of weight, so
            that 0.1 lets a weight move by one where that takes 0.01 from the mean squared error.
        explained: Penalty, relative to the data, on the part of the residual's effect along directions that parameters
            explain; small values only settle ties, in favour of parameters.
        parameters: Whether physical and sensor parameters are refined together with the weights.
        patience: Rounds without a better validation score after which a horizon ends.
        loss: Robust loss, see ``robust``.
        f_scale: Noise standard deviations beyond which the loss is linear.
        every: Use every so many-th step of the error.
        start_std: Standard deviation of each first-state entry, which is then estimated; None keeps the measured first state.
        normalise: Set the residuals' normalisers from the training windows; a model that was trained before keeps its own without.
    """

    horizons: Sequence[int] = ()
    rounds: int = 6
    iterations: int = 5
    method: Literal["auto", "gauss_newton", "adam"] = "auto"
    largest_gauss_newton: int = 400
    learning_rate: float = 1e-2
    ridge: float = 0.02
    explained: float = 0.01
    parameters: bool = True
    patience: int = 2
    loss: robust.Loss = "soft_l1"
    f_scale: float = 1.0
    every: int = 1
    start_std: Sequence[float] | None = None
    normalise: bool = True


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Result of ``fit``: the model of the best validation round, every round, and the wall time [s]."""

    model: Model
    history: tuple[Round, ...]
    seconds: float


def fit(model: Model, train: Windows, validation: Windows | None = None, options: FitOptions | None = None, *,
        free: Sequence[Parameter] = (), checkpoint: Path | None = None, progress: Callable[[str, float], None] | None = None) -> Fit:
    """Train the residuals of a model, and with them refine its free parameters, on growing horizons.

    Args:
        model: Identified dynamics with residuals, and its sensor.
        train: Windows to train on.
        validation: Windows for early stopping; without them the training cost is used.
        options: How to train.
        free: Parameters refined together with the weights.
        checkpoint: File that keeps the state after every round; training resumes from it where it exists.
        progress: Called with a phrase and the fraction done.

    Raises:
        ModelError: if there is nothing to train, or the checkpoint belongs to another problem.
    """
    options = options or FitOptions()
    begun = clock.monotonic()
    if not any(w.numel() for w in model.dynamics.parameters()):
        raise ModelError("nothing to fit: the dynamics have no residuals with weights")
    dynamics = copy.deepcopy(model.dynamics)
    if options.normalise:
        normalise(model, [dynamics], train)
    problem = SimulationError(dynamics=dynamics, sensor=model.sensor.with_nominal(model.sensor_values), windows=train,
                              free=free if options.parameters else (), weights=True, every=options.every, start_std=options.start_std)
    stages = [h for h in options.horizons if h < train.horizon] + [train.horizon]
    start = problem.initial(model.sensor_values)
    fingerprint = problem.fingerprint([options, start.tolist()])
    state = (checkpoints.load(checkpoint, fingerprint) if checkpoint is not None else None) or Training(z=start, best=start)
    while state.stage < len(stages):
        horizon = stages[state.stage]
        if progress is not None:
            progress(f"fitting over {horizon} steps, round {state.round + 1}", (state.stage + state.round / options.rounds) / len(stages))
        tick = clock.monotonic()
        stage = replace(problem, windows=train.first(horizon))
        z = _round(stage, state.z, start, options)
        score = _score(stage, z, options) if validation is None else _score(replace(problem, windows=validation, start_std=None),
                                                                             z[: sum(problem.sizes[:2])], options)
        entry = Round(horizon=horizon, train=_score(stage, z, options), validation=score, seconds=clock.monotonic() - tick)
        log.info("%s", entry)
        state = state.advance(z, entry, rounds=options.rounds, patience=options.patience)
        if checkpoint is not None:
            checkpoints.save(checkpoint, state, fingerprint)
    fitted, sensor_values = problem.model(state.best)
    return Fit(model=Model(dynamics=fitted, sensor=model.sensor, sensor_values={**model.sensor_values, **sensor_values}),
               history=state.history, seconds=clock.monotonic() - begun)


def normalise(model: Model, members: Sequence[ResidualDynamics], windows: Windows) -> None:
    """Set the normalisers of every member from the states that ``model`` without residuals visits on these windows."""
    plain = replace(model, dynamics=model.dynamics.with_residuals([]))
    _, states, actions = plain.predict(windows)
    recorded = windows.recorded[:, 1:].any(-1) & torch.isfinite(states[:, 1:]).all(-1)
    visited, commands = states[:, :-1][recorded], actions[recorded]
    with torch.no_grad():
        for dynamics in members:
            dynamics.normalise(dynamics.initial_state(visited, commands), commands)


def _score(problem: SimulationError, z: Array, options: FitOptions) -> float:
    return float(robust.cost(problem(z)[: problem.rows()], options.loss, options.f_scale)) / problem.rows()


def _round(problem: SimulationError, z: Array, start: Array, options: FitOptions) -> Array:
    gauss_newton = options.method == "gauss_newton" or (
        options.method == "auto" and sum(problem.sizes[:2]) <= options.largest_gauss_newton)
    return _gauss_newton(problem, z, start, options) if gauss_newton else _adam(problem, z, start, options)


def _gauss_newton(problem: SimulationError, z: Array, start: Array, options: FitOptions) -> Array:
    """Run some iterations of scipy's robust least squares on data, ridge and explained-direction rows.

    The explained rows are ``sqrt(explained) Qᵀ J_w (w - w_start)``: what the weights do to the predictions, linearised here,
    projected on an orthonormal basis Q of what the parameters can do.
    """
    n, w, _ = problem.sizes
    rows, loss = problem.rows(), robust.scipy_loss(options.loss, problem.rows())
    unknown, at = Eliminated(problem, z, loss, options.f_scale), z[: n + w]
    here = unknown.jacobian(at)
    ridge = np.zeros((w, n + w))
    ridge[np.arange(w), n + np.arange(w)] = options.ridge * np.sqrt(rows)
    explained = np.zeros((n, n + w))
    if n:
        basis = np.linalg.qr(here[:rows, :n])[0]
        explained[:, n:] = np.sqrt(options.explained) * basis.T @ here[:rows, n:]
    penalty = np.concatenate([ridge, explained])
    memo, looks = {at.tobytes(): here}, 0

    def errors(x: Array) -> Array:
        nonlocal looks
        looks += 1
        return np.concatenate([unknown(x), penalty @ (x - start[: n + w])])

    def jacobian(x: Array) -> Array:
        known = memo.pop(x.tobytes(), None)
        if known is None and looks >= options.iterations > 1:
            known = here  # the search ends here, but asks first
        return np.concatenate([unknown.jacobian(x) if known is None else known, penalty])

    solved = least_squares(errors, problem.inside(z)[: n + w], jac=jacobian, bounds=unknown.bounds(), loss=loss,
                           f_scale=options.f_scale, x_scale=1.0, max_nfev=options.iterations, ftol=1e-6, xtol=1e-6, gtol=1e-9)
    return unknown.complete(np.asarray(solved.x))


def _adam(problem: SimulationError, z: Array, start: Array, options: FitOptions) -> Array:
    """Run some steps of Adam on one model."""
    return np.asarray(descend(problem, torch.tensor(z[None]), torch.tensor(start[None]), options)[0].numpy())


def descend(problem: SimulationError, z: Tensor, start: Tensor, options: FitOptions, drawn: DrawnWindows | None = None,
            change: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Run some steps of Adam on M models at once, back-propagating through one rollout of all; none sees the others.

    The ridge is that of ``FitOptions``; there are no explained rows, which need a Jacobian.

    Args:
        problem: The error.
        z: Unknowns of each model, shape [M, length].
        start: Where each model's ridge pulls to, shape [M, length].
        options: How to train.
        drawn: The windows of each model; all count once where None.
        change: What is simulated in place of the unknowns at every step, [M, length] to [copies, length]; the cost is the copies' mean.
    """
    n, w, _ = problem.sizes
    rows, learned = problem.rows(), slice(n, n + w)
    lower, upper = (torch.tensor(b) for b in problem.bounds())
    x, costs = z.clone().requires_grad_(), problem.costs(options.loss, options.f_scale, drawn)
    optimiser = torch.optim.Adam([x], lr=options.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, options.iterations)
    for _ in range(options.iterations):
        optimiser.zero_grad()
        cost = costs(x if change is None else change(x)) / rows
        pull = 0.5 * options.ridge**2 * (x[:, learned] - start[:, learned]).square().sum()
        (x.grad,) = torch.autograd.grad(cost.sum() * (len(x) / len(cost)) + pull, [x])
        with torch.no_grad():
            x.grad *= (10.0 / (x.grad.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1.0)  # each model by its own norm
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            x.clamp_(lower, upper)
    return x.detach()
