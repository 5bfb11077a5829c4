"""A calibration in controller code: check that it fits the plant, predict, linearise, and be refused with a wrong rate.

Run it on any artefact of a servo: ``python examples/03_use_the_artifact.py benchmarks/artifacts/servo``.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from residual_mbrl import artifact
from residual_mbrl.errors import ArtifactError
from residual_mbrl.rollouts import linearise, rollout

HORIZON = 100


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a controller can rely on: the predicted angle [rad], and how far the linear model is from the full one [rad]."""

    angle: float
    linear_error: float
    milliseconds: float


def main(folder: Annotated[Path, tyro.conf.Positional]) -> Outcome:
    """Use the artefact of a servo.

    Args:
        folder: The artefact.
    """
    calibration = artifact.load(folder)
    calibration.require(dt=0.005, actions=("goal", "enabled", "gain"), states=("angle", "rate"), units={"angle": "rad", "goal": "rad"})
    try:
        calibration.require(dt=0.001)
    except ArtifactError as error:
        print(f"refused: {error}")

    dynamics = calibration.model.dynamics
    dynamics.requires_grad_(False)
    state = torch.tensor([0.2, 0.0], dtype=torch.float64)  # angle [rad], rate [rad/s]
    actions = torch.tensor([[0.8, 1.0, 400.0]], dtype=torch.float64).repeat(HORIZON, 1)  # goal [rad], enabled, gain [counts]
    states = rollout(dynamics, state, actions)
    begun = time.perf_counter()
    rollout(dynamics, state, actions)
    milliseconds = 1e3 * (time.perf_counter() - begun)
    print(f"commanded to 0.8 rad, the arm will be at {states[-1, 0]:.4f} rad after {HORIZON * calibration.dt:g} s")

    # a residual with memory (lag, delay) makes states longer than the plant's; rollout has filled that in, so start from states[0]
    A, B = linearise(dynamics, states, actions)
    nudge = torch.zeros_like(actions)
    nudge[:, 0] = 0.01  # move the goal by 0.01 rad
    dx = torch.zeros_like(states[0])
    for t in range(HORIZON):
        dx = A[t] @ dx + B[t] @ nudge[t]
    moved = rollout(dynamics, states[0], actions + nudge)[-1, 0] - states[-1, 0]
    error = float((moved - dx[0]).abs())
    print(f"moving the goal by 0.01 rad moves it by {moved:.5f} rad; the linear model says {dx[0]:.5f} rad")
    print(f"{HORIZON} steps of one arm take {milliseconds:.1f} ms in torch; batches cost little more: states [B, nx], actions [B, H, nu]")
    return Outcome(angle=float(states[-1, 0]), linear_error=error, milliseconds=milliseconds)


if __name__ == "__main__":
    tyro.cli(main)
