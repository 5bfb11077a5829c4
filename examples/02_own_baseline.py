"""Your own model and your own logs: a motor-driven arm, and a cable that pulls it back from 0.3 rad on and is in no model.

A model is one class: names and units, parameters with bounds, forces. A log is arrays with names. What the cable does is left to a
learned potential, which can store energy but never make it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from residual_mbrl.baselines import Parameter, Parameters, Values
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.evaluation import evaluate
from residual_mbrl.fitting import FitOptions, fit
from residual_mbrl.identification import IdentifyOptions, identify
from residual_mbrl.model import Model
from residual_mbrl.physics.mechanical import MechanicalBaseline
from residual_mbrl.residuals import Conservative
from residual_mbrl.sensors import Column, Sensor
from residual_mbrl.spaces import StateSpace
from residual_mbrl.trajectories import Trajectory
from residual_mbrl.verdict import is_residual_worth_it
from residual_mbrl.windows import cut_windows

SPACE = StateSpace(position=("angle",), velocity=("rate",), action=("current",), units={"angle": "rad", "rate": "rad/s", "current": "A"})
PARAMETERS = Parameters(
    Parameter(name="motor_constant", nominal=0.12, lower=0.05, upper=0.5, unit="N·m/A", free=False),  # the data sheet is trusted
    Parameter(name="inertia", nominal=0.010, lower=0.001, upper=0.1, unit="kg·m²"),
    Parameter(name="gravity_moment", nominal=0.30, lower=0.0, upper=2.0, unit="N·m"),
    Parameter(name="viscous", nominal=0.010, lower=0.0, upper=0.2, unit="N·m·s/rad"),
    Parameter(name="coulomb", nominal=0.005, lower=0.0, upper=0.2, unit="N·m"))


class Arm(MechanicalBaseline):
    """``J dω/dt = K i - G sin θ - b ω - F sign ω``; the base class steps it and applies friction implicitly."""

    def __init__(self, parameters: Parameters = PARAMETERS, *, dt: float = 0.01) -> None:
        super().__init__(SPACE, parameters, dt=dt, integrator="rk4")

    def mass_matrix(self, q: Tensor, p: Values) -> Tensor:
        return p["inertia"].expand(q.shape[:-1])[..., None, None]

    def smooth_force(self, q: Tensor, v: Tensor, u: Tensor, p: Values) -> Tensor:
        return p["motor_constant"].unsqueeze(-1) * u - p["gravity_moment"].unsqueeze(-1) * torch.sin(q)

    def potential_energy(self, q: Tensor, p: Values) -> Tensor:
        return p["gravity_moment"] * (1 - torch.cos(q[..., 0]))

    def damping(self, q: Tensor, v: Tensor, u: Tensor, p: Values) -> Tensor:
        return p["viscous"][..., None, None]

    def frictionloss(self, q: Tensor, v: Tensor, u: Tensor, p: Values) -> Tensor:
        return p["coulomb"].unsqueeze(-1)

    def describe(self) -> dict[str, object]:
        return {"dt": self.dt}  # an artefact keeps this; load it again with artifact.load(folder, baselines=[Arm])


def record(log: int) -> Trajectory:
    """Stand in for a CSV file of the real arm: columns t [s], current [A], angle [rad] of a 12-bit encoder; 4 s at 100 Hz."""
    t = np.arange(401) * 0.01
    current = 1.8 * np.sin((1.0 + 0.3 * log) * t) + 0.8 * np.sin((6.0 - 0.4 * log) * t + log)
    angle, q, v, h = np.zeros_like(t), 0.1 * log, 0.0, 5e-4
    for k, i in enumerate(current):
        angle[k] = q
        for _ in range(20):
            cable = -0.35 * max(q - 0.3, 0.0)
            v += h / 0.012 * (0.12 * i - 0.36 * np.sin(q) + cable - 0.015 * v - 0.02 * np.tanh(v / 0.01))
            q += h * v
    angle = np.round(angle / (2 * np.pi / 4096)) * (2 * np.pi / 4096)
    return Trajectory(name=f"run{log}", command_time=t, commands=current[:, None], command_names=("current",),
                      measurement_time=t, measurements=angle[:, None], measurement_names=("angle",))


def main() -> dict[str, float]:
    arm, logs = Arm(), [record(i) for i in range(8)]
    sensor = Sensor(space=SPACE, columns=(Column(name="angle", source="angle", noise=0.02, largest=6.3),))
    train, held = cut_windows(logs[:5], arm.dt, horizon=100), cut_windows(logs[5:], arm.dt, horizon=100)
    nominal = ResidualDynamics(arm)
    found = identify(nominal, sensor, train, IdentifyOptions(candidates=16, starts=1, every=2))
    start = Model(dynamics=found.dynamics.with_residuals([Conservative(nq=1, units=6, scale=0.2)]), sensor=sensor)
    corrected = fit(start, train, options=FitOptions(rounds=3, iterations=8, every=4), free=[e.parameter for e in found.estimates]).model

    models = {"nominal": Model(dynamics=nominal, sensor=sensor), "identified": Model(dynamics=found.dynamics, sensor=sensor),
              "identified+residual": corrected}
    evaluation = evaluate(models, held, split="held-out")
    errors = {n: float(s.mae.value[0]) for n, s in evaluation.scores.items()}
    still, off = torch.tensor([[0.8, 0.0]], dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    with torch.no_grad():
        gravity = corrected.dynamics.values["gravity_moment"] * np.sin(0.8)
        held_at = float(corrected.dynamics.residual_force(still, off)) - gravity
    print(is_residual_worth_it(evaluation).text)
    print("error over 1 s on held-out logs [rad]: " + ", ".join(f"{n} {e:.4f}" for n, e in errors.items()))
    print(f"torque of gravity and cable at 0.8 rad: {held_at:.3f} N·m, really {-0.36 * np.sin(0.8) - 0.35 * 0.5:.3f} N·m")
    return errors


if __name__ == "__main__":
    main()
