"""Simulated logs of known plants, on which estimation is tested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.effects import Effect
from residual_mbrl.observation import observe
from residual_mbrl.physics.mechanical import MechanicalBaseline
from residual_mbrl.physics.pendulum import PARAMETERS, SPACE, Pendulum
from residual_mbrl.physics.servo import PARAMETERS as SERVO_PARAMETERS
from residual_mbrl.physics.servo import Servo
from residual_mbrl.residuals import Residual
from residual_mbrl.rollouts import rollout
from residual_mbrl.sensors import Column, Sensor
from residual_mbrl.windows import Windows

DT = 0.05
NOISE = (0.01, 0.03)
"""Standard deviation of the angle's and the rate's noise [rad, rad/s]."""

TRUTH = {"inertia": 1.2, "gravity_moment": 9.5, "viscous": 0.4}
"""What the simulated pendulum really is; the model starts from 1.0, 9.0 and 0.2."""


def pendulum(*, dt: float = DT, coulomb: float = 0.0, **changes: Mapping[str, object]) -> Pendulum:
    """Return the nominal pendulum: inertia, gravity moment and viscous friction are free."""
    parameters = PARAMETERS.replaced(inertia={"lower": 0.2, "upper": 4.0}, gravity_moment={"nominal": 9.0, "lower": 4.0, "upper": 20.0},
                                     viscous={"nominal": 0.2, "upper": 2.0}, coulomb={"nominal": coulomb, "free": False},
                                     torque_offset={"free": False})
    return Pendulum(parameters.replaced(**changes), dt=dt, integrator="semi_implicit")


def sensor(angle: Sequence[Effect] = (), rate: Sequence[Effect] = (), torque: Sequence[Effect] = (),
           noise: tuple[float, float] = NOISE) -> Sensor:
    """Return a sensor of angle and rate, with effects on either and on the command."""
    columns = (Column(name="q", source="angle", noise=noise[0], effects=tuple(angle)),
               Column(name="dq", source="rate", noise=noise[1], effects=tuple(rate)))
    return Sensor(space=SPACE, columns=columns, commands={"torque": tuple(torque)} if torque else {})


def torques(rng: np.random.Generator, count: int, steps: int, dt: float) -> np.ndarray:
    """Return sums of sines [N·m], shape [count, steps, 1]."""
    time = dt * np.arange(steps)
    slow, fast, phase = rng.uniform(1, 3, (count, 1)), rng.uniform(4, 8, (count, 1)), rng.uniform(0, 6, (count, 2, 1))
    return (4 * np.sin(slow * time + phase[:, 0]) + 3 * np.sin(fast * time + phase[:, 1]))[..., None]


def goals(rng: np.random.Generator, count: int, steps: int, dt: float) -> np.ndarray:
    """Return servo commands: moving goals [rad], switched on, gains 200 or 400; shape [count, steps, 3]."""
    time = dt * np.arange(steps)
    rate, phase = rng.uniform(2, 6, (count, 1)), rng.uniform(0, 6, (count, 1))
    goal = 1.2 * np.sin(rate * time + phase) + 0.4 * np.sign(np.sin(0.7 * rate * time))
    gain = np.broadcast_to(np.where(np.arange(count) % 2, 400.0, 200.0)[:, None], goal.shape)
    return np.stack([goal, np.ones_like(goal), gain], -1)


def logs(dynamics: ResidualDynamics, seen: Sensor, actions: np.ndarray, *, seed: int = 0, noise: float = 1.0,
         values: Mapping[str, float] | None = None, reach: float = 1.0) -> Windows:
    """Simulate logs of a truth.

    Args:
        dynamics: The truth.
        seen: The true sensor; its nominal values hold unless ``values`` says otherwise.
        actions: Commands as logged, shape [B, H, nu].
        seed: Of first states and noise.
        noise: Factor on the sensor's noise.
        values: True values of the sensor's effects.
        reach: Largest first angle [rad] and rate [rad/s].
    """
    rng = np.random.default_rng(seed)
    b, h, ny = len(actions), actions.shape[1], len(seen.columns)
    first = rng.uniform(-reach, reach, (b, ny))
    time = dynamics.dt * torch.arange(h + 1, dtype=torch.float64).expand(b, -1)
    sent = torch.tensor(actions)
    blank = Windows(actions=sent, lead=sent[:, :0], trail=sent[:, :0], measurements=torch.tensor(first)[:, None].repeat(1, h + 1, 1),
                    recorded=torch.ones(b, h + 1, ny, dtype=torch.bool), time=time, log=torch.arange(b),
                    start=torch.zeros(b, dtype=torch.long), names=tuple(f"log_{k}" for k in range(b)),
                    groups=tuple(f"day_{k % 2}" for k in range(b)), dt=dynamics.dt)
    true = {n: torch.tensor(x, dtype=torch.float64) for n, x in {**seen.parameters.nominal(), **(values or {})}.items()}
    with torch.no_grad():
        exact = observe(lambda x, u, lead: rollout(dynamics, x, u, lead=lead), seen, blank, true).measurements
    scale = np.where(np.isfinite(seen.noise), seen.noise, 0.0)
    return renewed(blank, exact + noise * torch.tensor(scale * rng.standard_normal(exact.shape)))


def renewed(windows: Windows, measurements: torch.Tensor) -> Windows:
    """Return windows with other measurements."""
    return replace(windows, measurements=measurements)


def pendulum_logs(*, count: int = 4, steps: int = 40, seed: int = 0, noise: float = 1.0, truth: Mapping[str, float] | None = None,
                  seen: Sensor | None = None, values: Mapping[str, float] | None = None, residuals: Sequence[Residual] = (),
                  baseline: MechanicalBaseline | None = None) -> Windows:
    """Return logs of the true pendulum; see ``logs``."""
    baseline = baseline or pendulum()
    dynamics = ResidualDynamics(baseline, residuals, {**TRUTH, **(truth or {})})
    actions = torques(np.random.default_rng(1000 + seed), count, steps, baseline.dt)
    return logs(dynamics, seen or sensor(), actions, seed=seed, noise=noise, values=values)


SERVO_TRUTH = {"resistance": 3.0, "armature": 0.002, "viscous": 0.012, "coulomb": 0.02, "load_friction": 0.1}


def servo(*free: str, dt: float = 0.01) -> Servo:
    """Return a servo model of which only the named parameters are free."""
    return Servo(SERVO_PARAMETERS.replaced(**{p.name: {"free": p.name in free} for p in SERVO_PARAMETERS}), dt=dt, substeps=1)


def servo_logs(baseline: Servo, *, count: int = 4, steps: int = 120, seed: int = 0) -> tuple[Sensor, Windows]:
    """Return closed-loop logs of the true servo, and the sensor that they were seen through."""
    seen = Sensor(space=baseline.space, columns=(Column(name="q", source="angle", noise=0.002),
                                                 Column(name="dq", source="rate", noise=0.05)))
    actions = goals(np.random.default_rng(2000 + seed), count, steps, baseline.dt)
    return seen, logs(ResidualDynamics(baseline, values=SERVO_TRUTH), seen, actions, seed=seed)
