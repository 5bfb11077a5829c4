"""Training a density of the correction on the likelihood of what logs show several steps ahead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.model import Model
from residual_mbrl.rollouts import Linearisation, linearise
from residual_mbrl.uncertainty.correction import CorrectionNoise
from residual_mbrl.uncertainty.density import negative_log_density
from residual_mbrl.uncertainty.ensembles import Ensemble
from residual_mbrl.uncertainty.propagation import variances
from residual_mbrl.uncertainty.tangents import measured, spread
from residual_mbrl.windows import Windows


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a model or an ensemble says of windows on the tangent space, ready for any density; ndx is that of the sensor's space.

    Args:
        dynamics: A single model along whose path covariances are carried.
        states: Its states, memory included, shape [B, H + 1, nx].
        actions: Commands as executed, shape [B, H, nu].
        error: Tangent from the mean prediction to the log, NaN where nothing was recorded, shape [B, H + 1, ndx].
        between: Variance between the members, zero for a single model, same shape.
        along: Linearisation of the path.
    """

    dynamics: ResidualDynamics
    states: Tensor
    actions: Tensor
    error: Tensor
    between: Tensor
    along: Linearisation

    def take(self, rows: Tensor) -> Forecast:
        """Return some of the windows."""
        return Forecast(dynamics=self.dynamics, states=self.states[rows], actions=self.actions[rows], error=self.error[rows],
                        between=self.between[rows], along=Linearisation(self.along.A[rows], self.along.B[rows]))


def forecast(model: Model | Ensemble, windows: Windows, path: Model | None = None) -> Forecast:
    """Predict windows once, and linearise along the way.

    Args:
        model: A model, or an ensemble, whose mean on the tangent space is the prediction.
        windows: The log.
        path: Model along which covariances are carried; the model itself, or needed for an ensemble: one of its members.
    """
    if isinstance(model, Ensemble):
        if path is None:
            raise ValueError("forecast: an ensemble needs a single model as path, such as one of its members")
        said = model.predict(windows)
        space = model.model.sensor.space
        known = said.states[..., : space.nx]
        mean, between = spread(space, known)
        errors = measured(model.model.sensor, windows, said)
        # member errors are observed minus member; about the mean on the manifold the members' tangents average to zero
        error = errors.mean(0)
        for _, v0 in space.quaternions:
            turned = measured(model.model.sensor, windows, said._replace(states=mean, measurements=said.measurements.mean(0)))
            error[..., v0 : v0 + 3] = turned[..., v0 : v0 + 3]
    else:
        path, said = model, model.predict(windows)
        error = measured(model.sensor, windows, said)
        between = torch.zeros_like(error)
    single = path.predict(windows)
    with torch.no_grad():
        along = linearise(path.dynamics, single.states, single.actions)
    return Forecast(dynamics=path.dynamics, states=single.states, actions=single.actions, error=error, between=between, along=along)


def scales(noise: CorrectionNoise, found: Forecast) -> Float[Tensor, "batch horizon+1 ndx"]:
    """Return the scale of the predictive density of what the log shows: correction, first state, columns, and the members' spread."""
    inputs = noise.inputs(found.dynamics, found.states[:, :-1], found.actions)
    sigma = noise.scale(inputs, found.actions.shape[:-1])
    within = variances(noise, found.along, sigma, found.dynamics.dt, found.states.shape[-1] - noise.space.nx)
    return (within + found.between + noise.columns.square()).sqrt()


@dataclass(frozen=True, kw_only=True)
class LikelihoodOptions:
    """How to train a density.

    Args:
        steps: Horizons whose likelihood counts; all from one on where empty.
        iterations: Adam steps.
        learning_rate: Of Adam, with cosine decay.
        ridge: Pull of the network's weights to zero.
        fixed: Names of parameters that stay, such as "log_start".
    """

    steps: Sequence[int] = ()
    iterations: int = 200
    learning_rate: float = 0.03
    ridge: float = 1e-3
    fixed: Sequence[str] = ()


def fit_noise(noise: CorrectionNoise, found: Forecast, options: LikelihoodOptions | None = None) -> list[float]:
    """Train a density in place on the likelihood of forecasts' errors; return the mean negative log likelihood of every step.

    Each column at each horizon counts by its marginal density, a composite likelihood: horizons of one window are not independent,
    which leaves the estimate consistent and its own certainty unknown.

    Args:
        noise: The density.
        found: Forecasts of windows that the mean was not fitted on, or was fitted on with few weights.
        options: How to train.

    Raises:
        ValueError: if no error was recorded at the steps asked for, or a name in ``fixed`` is unknown.
    """
    options = options or LikelihoodOptions()
    names = [n for n, _ in noise.named_parameters()]
    unknown = [n for n in options.fixed if n not in names]
    if unknown:
        raise ValueError(f"fit_noise: no parameters {unknown}; there are {names}")
    noise.normalise(found.dynamics, found.states[:, :-1], found.actions)
    steps = torch.tensor(list(options.steps) or list(range(1, found.error.shape[1])))
    error = found.error[:, steps]
    known = torch.isfinite(error)
    if not bool(known.any()):
        raise ValueError("fit_noise: nothing was recorded at the steps asked for")
    used = found if not options.steps else _first(found, int(steps.max()))
    free = [p for n, p in noise.named_parameters() if n not in options.fixed]
    weights = [w for n, w in noise.named_parameters() if n.startswith("network.") and n not in options.fixed]
    optimiser = torch.optim.Adam(free, lr=options.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, options.iterations)
    history = []
    for _ in range(options.iterations):
        optimiser.zero_grad()
        loss = negative_log_density(error[known], scales(noise, used)[:, steps][known], noise.dof).mean()
        total = loss + options.ridge * sum((w.square().sum() for w in weights), loss.new_zeros(()))
        total.backward()
        torch.nn.utils.clip_grad_norm_(free, 1.0)
        optimiser.step()
        schedule.step()
        history.append(float(loss.detach()))
    return history


def _first(found: Forecast, horizon: int) -> Forecast:
    return Forecast(dynamics=found.dynamics, states=found.states[:, : horizon + 1], actions=found.actions[:, :horizon],
                    error=found.error[:, : horizon + 1], between=found.between[:, : horizon + 1],
                    along=Linearisation(found.along.A[:, :horizon], found.along.B[:, :horizon]))
