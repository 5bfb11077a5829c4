"""A pendulum whose friction the model does not know, with logs of it: small problems for ensembles and bands."""

from __future__ import annotations

import math

import numpy as np
import torch

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.model import Model
from residual_mbrl.physics.pendulum import PARAMETERS, Pendulum
from residual_mbrl.residuals import Feature, Unstructured
from residual_mbrl.rollouts import rollout
from residual_mbrl.sensors import Column, Sensor
from residual_mbrl.trajectories import Trajectory
from residual_mbrl.windows import Windows, cut_windows

DT = 0.02
NOISE = (0.002, 0.01)


def force(hidden: tuple[int, ...] = (8,), seed: int = 0) -> Unstructured:
    """A learned torque of angle and rate."""
    features = [Feature(source="position", transform="sin"), Feature(source="velocity")]
    return Unstructured(nv=1, features=features, bound=2.0, hidden=hidden, seed=seed)


def model(**values: float) -> Model:
    """The model without friction, with a residual that could learn it."""
    baseline = Pendulum(PARAMETERS.replaced(**{n: {"nominal": x} for n, x in values.items()}), dt=DT)
    names = baseline.space.position + baseline.space.velocity
    columns = tuple(Column(name=f"{n}.log", source=n, noise=s) for n, s in zip(names, NOISE, strict=True))
    return Model(dynamics=ResidualDynamics(baseline, [force()]), sensor=Sensor(space=baseline.space, columns=columns))


def logs(count: int = 4, steps: int = 100, *, push: float = 0.0, noise: tuple[float, float] = NOISE, seed: int = 0) -> list[Trajectory]:
    """Swings of a pendulum with friction; ``push`` is the standard deviation of a white acceleration, held over each step."""
    plant = ResidualDynamics(Pendulum(PARAMETERS.replaced(viscous={"nominal": 0.3}, coulomb={"nominal": 0.1}), dt=DT))
    g = torch.Generator().manual_seed(seed)
    x = torch.stack([math.pi * torch.rand(count, generator=g), torch.randn(count, generator=g)], -1).double()
    u = 0.5 * torch.randn(count, steps, plant.space.nu, generator=g, dtype=torch.float64)
    states = [x]
    for t in range(steps):
        x = rollout(plant, x, u[:, t : t + 1])[:, 1]
        x = x + DT * push * torch.stack([torch.zeros(count), torch.randn(count, generator=g)], -1)
        states.append(x)
    shown = torch.stack(states, 1)
    shown = shown + torch.tensor(noise) * torch.randn(shown.shape, generator=g, dtype=torch.float64)
    time = DT * np.arange(steps + 1)
    space = plant.space
    return [Trajectory(name=f"swing{i}", command_time=time[:-1], commands=u[i].numpy(), command_names=space.action, measurement_time=time,
                       measurements=shown[i].numpy(), measurement_names=tuple(f"{n}.log" for n in space.position + space.velocity),
                       group=f"g{i % 2}") for i in range(count)]


def windows(horizon: int = 10, **options: float) -> Windows:
    """Windows of these logs."""
    return cut_windows(logs(**options), DT, horizon=horizon)  # type: ignore[arg-type]
