"""A model that follows its plant: parameters and last-layer weights by an extended Kalman filter with forgetting, and guarded tuning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from residual_mbrl.baselines import Parameter
from residual_mbrl.data_cost import DIVERGED
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.fitting import FitOptions, fit
from residual_mbrl.model import Model
from residual_mbrl.sensitivities import StepSensitivity
from residual_mbrl.windows import Windows

Array = NDArray[np.float64]
OUTLIER = 4.0
"""Innovations beyond so many standard deviations count as this one: a single bad row must not move the model."""
SURPRISED = 4.0
"""Mean squared innovation, in its own variance and over some ten steps, beyond which the plant is taken to have changed: the unknowns
are then forgotten faster, by as much (after Fortescue, Kershenbaum, Ydstie, Automatica 17, 1981)."""
MOST_DOUBT = 1.0
"""Forgetting never makes an unknown less certain than so many times its first variance."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What is known of a plant after some steps; returned by every update.

    Args:
        unknowns: Parameters, then last-layer weights, shape [n].
        covariance: Of the unknowns in their scales, shape [n, n].
        state: Latest state, measured where it was, shape [nx].
        slope: Derivative of its tangent by the scaled unknowns, zero where measured, shape [ndx, n].
        surprise: Mean squared innovation of the latest steps, in its own variance; about one where the noise is as stated.
        steps: Updates so far.
    """

    unknowns: Array
    covariance: Array
    state: Array
    slope: Array
    surprise: float = 1.0
    steps: int = 0


class OnlineAdaptation:
    """Recursive least squares on one-step predictions, ``P ← P / λ``; an extended Kalman filter where the step is not linear.

    What the plant shows of its state is taken as it is; entries that it does not show (rotor speeds, a residual's memory) are carried by
    the model, with their derivative by the unknowns, so that a gain acts through a lag as it should. Ljung and Söderström, "Theory and
    Practice of Recursive Identification", MIT Press 1983.

    Args:
        dynamics: The model to start from.
        parameters: Physical parameters to follow; their scale is how uncertain they are at first.
        noise: Standard deviation of the one-step error of each tangent entry of the state, shape [ndx]; infinite where it is not shown.
        weights: Follow the last layers of the networks too.
        weight_std: How uncertain a weight is at first.
        forgetting: λ; 0.998 at 100 Hz remembers five seconds.
        uncertainty: First standard deviation of the parameters, in their scales.
    """

    def __init__(self, dynamics: ResidualDynamics, parameters: Sequence[Parameter], *, noise: Sequence[float], weights: bool = False,
                 weight_std: float = 0.1, forgetting: float = 0.998, uncertainty: float = 0.5) -> None:
        space = dynamics.space
        if len(noise) != space.ndx or not all(s > 0 for s in noise) or all(math.isinf(s) for s in noise):
            raise ValueError(f"OnlineAdaptation: expected {space.ndx} positive noises, not all infinite, received {list(noise)}")
        if not 0 < forgetting <= 1:
            raise ValueError(f"OnlineAdaptation: forgetting must lie in (0, 1], received {forgetting}")
        self._shown = [i for i, s in enumerate(noise) if math.isfinite(s)]
        self._hidden = [i for i, s in enumerate(noise) if math.isinf(s)]
        turned = [i for _, v0 in space.quaternions for i in range(v0, v0 + 3)]
        if set(turned) & set(self._hidden):
            raise ValueError("OnlineAdaptation: attitudes must be shown; their noise is infinite")
        names = [p.name for p in parameters]
        self._step = StepSensitivity(dynamics, names, weights=weights, rows=[*self._shown, *self._hidden])
        self._start, self._variance = dynamics, np.square([noise[i] for i in self._shown])
        count = len(self._step.unknowns) - len(names)
        self._scale = np.array([*(uncertainty * p.scale for p in parameters), *[weight_std] * count])
        self._lower = np.array([*(p.lower for p in parameters), *[-np.inf] * count])
        self._upper = np.array([*(p.upper for p in parameters), *[np.inf] * count])
        self._forgetting, self._space = forgetting, space
        inside = {i for q0, _ in space.quaternions for i in range(q0, q0 + 4)}
        flat = [i for i in range(space.nx) if i not in inside]
        tangent = [i - sum(i > q0 for q0, _ in space.quaternions) for i in flat]
        self._place = [flat[tangent.index(i)] for i in self._hidden]

    def begin(self, state: Array, action: Array) -> Estimate:
        """Return the estimate before any data.

        Args:
            state: First state, shape [nx], memory included or not; what is not shown must be a guess of it.
            action: First command, shape [nu].
        """
        if len(state) < self._space.nx:
            full = self._start.initial_state(torch.from_numpy(np.asarray(state, dtype=float)), torch.from_numpy(np.asarray(action)))
            state = full.detach().numpy()
        n = len(self._scale)
        return Estimate(unknowns=self._step.unknowns if n else np.zeros(0), covariance=np.eye(n), state=np.array(state, dtype=float),
                        slope=np.zeros((self._space.ndx, n)))

    def update(self, estimate: Estimate, action: Array, after: Array) -> Estimate:
        """Return the estimate after a step; a row that is not finite (a lost packet) only carries the state on.

        Args:
            estimate: The estimate before.
            action: Command of the step, shape [nu].
            after: State that the plant showed after it, shape [nx] or without memory; entries that are not shown are not looked at.
        """
        self._step.set(estimate.unknowns)
        said = self._step(estimate.state, np.asarray(action, dtype=float))
        slope = said.by_state @ estimate.slope + said.by_unknowns * self._scale
        k = len(self._shown)
        carried, state = slope[k:], said.after.copy()
        seen = np.array(after, dtype=float)
        if len(seen) < len(state):
            seen = np.concatenate([seen, state[len(seen) :]])
        seen[self._place] = state[self._place]
        unknowns, covariance, surprise = estimate.unknowns, estimate.covariance, estimate.surprise
        if np.isfinite(seen).all():
            error = _difference(self._space.quaternions, seen, state)[self._shown]
            moved, covariance, now = self._filtered(covariance * max(1.0, surprise / SURPRISED), slope[:k], error)
            surprise = 0.9 * surprise + 0.1 * now
            unknowns = np.clip(unknowns + self._scale * moved, self._lower, self._upper)
            state = seen
            state[self._place] += carried @ moved
        full = np.zeros_like(estimate.slope)
        full[self._hidden] = carried
        return Estimate(unknowns=unknowns, covariance=covariance, state=state, slope=full, surprise=surprise,
                        steps=estimate.steps + 1)

    def _filtered(self, covariance: Array, slope: Array, error: Array) -> tuple[Array, Array, float]:
        """Return the change of the unknowns in their scales, their covariance, and the mean squared innovation in its variance."""
        p = covariance / self._forgetting
        doubt = np.sqrt(np.minimum(1.0, MOST_DOUBT / np.maximum(np.diag(p), 1e-300)))
        p = p * doubt[:, None] * doubt
        s = slope @ p @ slope.T + np.diag(self._variance)
        size = OUTLIER * np.sqrt(np.diag(s))
        gain = np.linalg.solve(s, slope @ p).T
        kept = np.eye(len(p)) - gain @ slope
        error = np.clip(error, -size, size)
        surprise = float(np.mean(np.square(error) / np.diag(s)))
        return gain @ error, kept @ p @ kept.T + (gain * self._variance) @ gain.T, surprise

    def model(self, estimate: Estimate) -> ResidualDynamics:
        """Return the model as estimated, a copy."""
        return self._step.model(estimate.unknowns, self._start)


def _difference(quaternions: Sequence[tuple[int, int]], x: Array, reference: Array) -> Array:
    """Return ``x ⊖ reference`` to second order in rotations, shape [ndx]; quaternions of either sign."""
    parts, start = [], 0
    for q0, _ in sorted(quaternions):
        parts.append(x[start:q0] - reference[start:q0])
        (w, a, b, c), q = reference[q0 : q0 + 4], x[q0 : q0 + 4]
        turn = np.array([[w, a, b, c], [-a, w, c, -b], [-b, -c, w, a], [-c, b, -a, w]]) @ q
        parts.append(2 * turn[1:] / turn[0])
        start = q0 + 4
    return np.concatenate([*parts, x[start:] - reference[start:]])


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Outcome of guarded tuning.

    Args:
        model: The tuned model, or the one given where that was better on validation.
        accepted: Whether it is the tuned one.
        before: Validation error of the model given, mean over samples in units of noise.
        after: That of the tuned one.
    """

    model: Model
    accepted: bool
    before: float
    after: float


def fine_tune(model: Model, train: Windows, validation: Windows, options: FitOptions | None = None, *,
              free: Sequence[Parameter] = ()) -> Tuning:
    """Tune another vehicle's model on this one's logs, and keep it only where it predicts validation logs better.

    The ridge pulls to the weights given and normalisers stay, so that few logs move the model little.

    Args:
        model: Of the other vehicle, as its artefact holds it.
        train: Windows to tune on.
        validation: Windows of other logs, that decide.
        options: How to train.
        free: Parameters tuned together with the weights.
    """
    options = replace(options or FitOptions(rounds=2, ridge=0.1), normalise=False)
    tuned = fit(model, train, validation, options, free=free).model
    before, after = validation_error(model, validation), validation_error(tuned, validation)
    accepted = after < before
    return Tuning(model=tuned if accepted else model, accepted=accepted, before=before, after=after)


def validation_error(model: Model, windows: Windows) -> float:
    """Return the mean absolute error of the recorded samples after the first, in units of their columns' noise."""
    noise = torch.tensor(model.sensor.noise, dtype=windows.measurements.dtype)
    counted = windows.recorded & torch.isfinite(noise)
    counted[:, 0] = False
    error = ((model.predict(windows).measurements - windows.measurements) / noise).abs()[counted]
    return float(error.nan_to_num(nan=DIVERGED).clamp(max=DIVERGED).mean())
