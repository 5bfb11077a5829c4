"""Forecasts of the cube's validation tosses: particles of the stored model from starts that the first frame's noise has moved."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from cube import ARTIFACT, NOISE
from cube_model import FRICTION, build
from load_friction import rollout
from numpy.typing import NDArray
from tosses import Starts

from residual_mbrl.datasets import cube
from residual_mbrl.free_flight import examine
from residual_mbrl.uncertainty.tangents import rotation, spread

Array = NDArray[np.float64]
STEPS, PARTICLES = 50, 24
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
    """Forecast every validation toss from its first frame; train tosses only say how the log's velocities err, test is not read."""
    logs = cube.read(folder, ["train", "val"]).logs
    simulator = build()
    starts = Starts.of(examine([cube.flight(log) for log in [*logs["train"], *logs["val"]]]), simulator)
    values = {n: float(x["value"]) for n, x in json.loads((ARTIFACT / "parameters.json").read_text()).items()}
    part = [log for log in logs["val"] if len(log.measurements) > STEPS]
    first = torch.from_numpy(np.stack([starts.raw(log) for log in part]))
    generator = torch.Generator().manual_seed(seed)
    states = [rollout(simulator, first, STEPS, values)]
    for _ in range(PARTICLES):
        noise = INFLATED * torch.randn(len(part), 12, generator=generator, dtype=torch.float64) * torch.tensor(np.repeat(NOISE, 3))
        moved = {**values, FRICTION: values[FRICTION] + FRICTION_SPREAD * float(torch.randn(1, generator=generator))}
        states.append(rollout(simulator, simulator.space.integrate(first, noise), STEPS, moved))
    truth = torch.from_numpy(np.stack([log.measurements[: STEPS + 1] for log in part]))
    mean, variance = spread(simulator.space, torch.stack(states))
    still = truth[:, :1].expand_as(truth)
    return Forecasts(error=_error(truth, mean), spread=variance[..., :6].sqrt().numpy(), naive=_error(truth, still))


def _error(truth: torch.Tensor, said: torch.Tensor) -> Array:
    turned = rotation(said[..., 3:7], truth[..., 3:7])
    return torch.cat([truth[..., :3] - said[..., :3], turned], -1).numpy()
