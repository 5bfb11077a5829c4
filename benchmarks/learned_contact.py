"""Contact of the cube with learned parameters: friction, time constant and damping of the floor as functions of how it is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from cube_model import FRICTION, expand
from numpy.typing import NDArray
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from toss_rollout import Corners, Law, load_friction

from residual_mbrl import artifact
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.model import Model
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator
from residual_mbrl.residuals import ContactParameters
from residual_mbrl.sensors import Column, Sensor

Array = NDArray[np.float64]

BOUNDS = {FRICTION: (0.05, 0.5), "solref:floor.timeconst": (0.005, 0.05), "solref:floor.dampratio": (0.1, 3.0)}
NUMBERS = ("friction", "timeconst", "dampratio")
SPREAD = (0.7, 0.7, 0.002)
"""Typical approach speed [m/s], slip speed [m/s] and depth [m]."""

WEIGHT = 0.3
"""Typical change of a weight of the networks."""


def make(values: Mapping[str, float], *, seed: int = 0, hidden: Sequence[int] = (3,), steps: int = 2000) -> list[ContactParameters]:
    """Return networks that start as the model that is identified: with its law of friction, and constant otherwise.

    Args:
        values: Identified values.
        seed: Of the first weights.
        hidden: Hidden units.
        steps: Of the fit to the law.
    """
    residuals = [ContactParameters(live=live, lower=low, upper=high, hidden=hidden, seed=seed + k)
                 for k, (live, (low, high)) in enumerate(BOUNDS.items())]
    for r in residuals:
        r.spread.copy_(torch.tensor(SPREAD))
    rng = np.random.default_rng(seed)
    n = 4000
    seen = rng.uniform(0, 1, (n, 3)) ** 2 * (1.8, 2.5, 0.006)
    one = Corners(-seen[:, 2:], seen[:, :1], seen[:, 1:2], np.ones((n, 1), bool))
    wanted = torch.from_numpy(load_friction(one, values))
    x, weight = torch.from_numpy(seen)[:, None], torch.ones(n, 1, dtype=torch.float64)
    own = torch.tensor(values[FRICTION], dtype=torch.float64)
    optimiser = torch.optim.Adam(residuals[0].parameters(), lr=0.02)
    for _ in range(steps):
        optimiser.zero_grad()
        loss = ((residuals[0].value(own, x, weight) - wanted) ** 2).mean()
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not say
        optimiser.step()
    return residuals


def law_of(residuals: Sequence[ContactParameters], dt: float) -> Law:
    """Return the law that networks make, for ``toss_rollout``."""

    def law(corners: Corners, own: Mapping[str, Array]) -> Mapping[str, Array]:
        depth = np.maximum(-corners.gap, 0)
        seen = torch.from_numpy(np.stack([corners.falling, corners.slip, depth], -1))
        weight = torch.from_numpy(np.where(corners.near, corners.falling + depth / dt, 0.0))
        with torch.no_grad():
            return {n: r.value(torch.from_numpy(own[n]), seen, weight).numpy() for n, r in zip(NUMBERS, residuals, strict=True)}

    return law


def weights(residuals: Sequence[ContactParameters]) -> Array:
    """Return all weights in one vector."""
    return np.concatenate([parameters_to_vector(r.parameters()).detach().numpy() for r in residuals])


def set_weights(residuals: Sequence[ContactParameters], vector: Array) -> None:
    """Set all weights from one vector."""
    start = 0
    for r in residuals:
        n = sum(p.numel() for p in r.parameters())
        vector_to_parameters(torch.from_numpy(vector[start : start + n]), r.parameters())
        start += n


def dynamics(simulator: MujocoSimulator, values: Mapping[str, float], residuals: Sequence[ContactParameters]) -> ResidualDynamics:
    """Return the model with the values and the networks, as the library rolls it out; without what the log says of the flight."""
    return ResidualDynamics(simulator, residuals, expand(simulator, values))


def save_networks(folder: Path, simulator: MujocoSimulator, values: Mapping[str, float], residuals: Sequence[ContactParameters]) -> None:
    """Save the model as a calibration, beside the benchmark's own files."""
    sensor = Sensor(space=simulator.space, columns=tuple(Column(name=n, source=n, noise=1.0) for n in simulator.space.state_names))
    model = Model(dynamics=dynamics(simulator, values, residuals), sensor=sensor)
    identified = Model(dynamics=ResidualDynamics(simulator, (), expand(simulator, values)), sensor=sensor)
    folder.mkdir(parents=True, exist_ok=True)
    artifact.write(folder, artifact.Calibration(model=model, identified=identified))


def load_networks(folder: Path) -> list[ContactParameters] | None:
    """Return the networks of a stored calibration; None where there is none."""
    if not (folder / artifact.CALIBRATION).exists():
        return None
    return [r for r in artifact.load(folder).model.dynamics.corrections if isinstance(r, ContactParameters)]
