"""Forecasts of the cube's validation tosses: particles of the stored model from starts that the first frame's noise has moved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from cube import ARTIFACT, NOISE, start
from cube_fits import load_fits
from cube_model import FRICTION, build
from numpy.typing import NDArray
from toss_rollout import rollout

from residual_mbrl.datasets import cube
from residual_mbrl.uncertainty.tangents import rotation, spread

Array = NDArray[np.float64]
STEPS, PARTICLES = 50, 24
RATE = 0.02
"""Of factors that follow the tosses."""
FRICTION_SPREAD = 0.010
"""Of the friction number between particles [1], about its interval."""
INFLATED = 3.0
"""Particles' starts are moved by so many times the first frame's noise, chosen on train tosses by the width of the bands (1, 3, 6, 10)."""


@dataclass(frozen=True, kw_only=True)
class Forecasts:
    """Errors, particles' standard deviations and naive errors on the tangent (position [m], rotation [rad]), shapes [N, H + 1, 6]."""

    error: Array
    spread: Array
    naive: Array


def forecasts(folder: Path, seed: int) -> Forecasts:
    """Forecast every validation toss from its first frame by the model that train tosses identified; test is not read."""
    simulator, fit = build(), load_fits(ARTIFACT)["all"]
    part = [log for log in cube.read(folder, ["val"]).logs["val"] if len(log.measurements) > STEPS]
    first = torch.from_numpy(start(simulator, part, fit).starts)
    generator = torch.Generator().manual_seed(seed)

    def simulate(starts: torch.Tensor, values: dict[str, float]) -> torch.Tensor:
        poses = torch.from_numpy(rollout(simulator, starts.numpy(), np.full(len(part), STEPS + 1), values))
        return torch.cat([poses, poses.new_zeros(*poses.shape[:-1], 6)], -1)  # velocities, which nothing looks at

    states = [simulate(first, fit.values)]
    for _ in range(PARTICLES):
        noise = INFLATED * torch.randn(len(part), 12, generator=generator, dtype=torch.float64) * torch.tensor(np.repeat(NOISE, 3))
        moved = {**fit.values, FRICTION: fit.values[FRICTION] + FRICTION_SPREAD * float(torch.randn(1, generator=generator))}
        states.append(simulate(simulator.space.integrate(first, noise), moved))
    truth = torch.from_numpy(np.stack([log.measurements[: STEPS + 1] for log in part]))
    mean, variance = spread(simulator.space, torch.stack(states))
    still = truth[:, :1].expand_as(truth)
    return Forecasts(error=_error(truth, mean), spread=variance[..., :6].sqrt().numpy(), naive=_error(truth, still))


def _error(truth: torch.Tensor, said: torch.Tensor) -> Array:
    turned = rotation(said[..., 3:7], truth[..., 3:7])
    return torch.cat([truth[..., :3] - said[..., :3], turned], -1).numpy()
