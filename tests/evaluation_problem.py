"""A simulated pendulum with more friction than its model knows, and the models that evaluations compare."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.evaluation import Evaluation, evaluate
from residual_mbrl.identifiability import Estimate
from residual_mbrl.identification import Identification
from residual_mbrl.model import Model
from residual_mbrl.observation import Prediction
from residual_mbrl.physics.mechanical import Integrator
from residual_mbrl.physics.pendulum import PARAMETERS, SPACE, Pendulum
from residual_mbrl.residuals import DryFriction, Feature
from residual_mbrl.rollouts import rollout
from residual_mbrl.sensors import Column, Sensor
from residual_mbrl.status import Status
from residual_mbrl.trajectories import Trajectory
from residual_mbrl.windows import Windows, cut_windows

DT, NOISE = 0.02, 0.003
TRUE = {"inertia": 1.2, "viscous": 0.25, "coulomb": 0.3}
IDENTIFIED = {"inertia": 1.15, "viscous": 0.32, "coulomb": 0.4}
SENSOR = Sensor(space=SPACE, columns=(Column(name="angle", source="angle", noise=NOISE), Column(name="rate", source="rate", noise=NOISE)))


def stribeck(height: float, seed: int | None = None) -> DryFriction:
    """Return dry friction that rises towards rest; random small weights where a seed is given."""
    residual = DryFriction(nv=1, features=[Feature(source="velocity", transform="slow", width=0.5)], bound=0.5, hidden=())
    with torch.no_grad():
        for weight in residual.network.parameters():
            if seed is None:
                weight.fill_(height)
            else:
                weight.copy_(height * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed), dtype=weight.dtype))
    return residual


def model(values: dict[str, float] | None = None, residual: DryFriction | None = None, *,
          integrator: Integrator = "semi_implicit") -> Model:
    """Return a pendulum model seen by the test's sensor."""
    dynamics = ResidualDynamics(Pendulum(dt=DT, integrator=integrator), [] if residual is None else [residual], values)
    return Model(dynamics=dynamics, sensor=SENSOR)


@dataclass(frozen=True, kw_only=True)
class Offset(Model):
    """A model whose predicted columns are the measured ones plus a constant; infinite from some step on for some windows."""

    offset: float = 0.0
    diverges: tuple[int, ...] = ()

    def predict(self, windows: Windows) -> Prediction:
        """Return measurements plus the offset, and the pendulum's states."""
        states = super().predict(windows)
        columns = windows.measurements + self.offset
        columns[list(self.diverges), 5:] = torch.inf
        return states._replace(measurements=columns)


def logs(truth: Model, *, count: int = 8, steps: int = 110, seed: int = 0) -> list[Trajectory]:
    """Simulate noisy logs of a truth; every third one is shorter."""
    rng = np.random.default_rng(seed)
    out = []
    for k in range(count):
        n = steps if (k + 1) % 3 else steps - 30
        time = DT * np.arange(n + 1)
        torque = 3 * np.sin(rng.uniform(1, 4) * time + rng.uniform(0, 6)) + np.sin(rng.uniform(4, 9) * time)
        start = torch.tensor(rng.uniform(-1, 1, 2))
        with torch.no_grad():
            states = rollout(truth.dynamics, start, torch.tensor(torque[:-1, None])).numpy()
        out.append(Trajectory(name=f"log_{k}", command_time=time, commands=torque[:, None], command_names=("torque",),
                              measurement_time=time, measurements=states + NOISE * rng.standard_normal(states.shape),
                              measurement_names=("angle", "rate")))
    return out


@cache
def _planted(count: int) -> list[Trajectory]:
    return logs(model(TRUE, stribeck(0.5)), count=count)


def windows(*, count: int = 8, horizon: int | None = None, truth: Model | None = None) -> Windows:
    """Cut the logs of the planted truth into windows."""
    return cut_windows(logs(truth, count=count) if truth else _planted(count), DT, horizon=horizon)


def evaluation(corrected: Model | None = None, **options: int | None) -> Evaluation:
    """Evaluate nominal, identified and a corrected model, the planted truth by default."""
    models = {"nominal": model(), "identified": model(IDENTIFIED), "identified+residual": corrected or model(TRUE, stribeck(0.5))}
    return evaluate(models, windows(**options), resamples=500)  # type: ignore[arg-type]


def identification() -> Identification:
    """Return a result as ``identify`` gives it, with values set by hand."""
    found = {"inertia": (1.15, 0.02, False), "viscous": (0.32, 0.03, False), "coulomb": (10.0, 0.05, True),
             "torque_offset": (0.02, np.inf, False)}
    estimates = tuple(Estimate(parameter=PARAMETERS[n], value=x, std=s, at_bound=b) for n, (x, s, b) in found.items())
    return Identification(dynamics=model(IDENTIFIED).dynamics, sensor_values={"torque_offset": 0.02}, estimates=estimates,
                          correlation=np.eye(4), unidentifiable=("only together: +0.1 kg·m² of inertia, -0.9 N·m of <gravity>",),
                          condition=42.0, cost=1.0, status=Status.CONVERGED, evaluations=1234, seconds=3.0, z=np.zeros(4))
