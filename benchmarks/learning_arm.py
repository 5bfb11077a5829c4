"""The 7-joint arm of the learning benchmark: it follows a motion with a payload and friction that its data sheet does not tell of."""

from __future__ import annotations

import arm_plant
import numpy as np
import torch
from learning_case import DT, Array, Case, Simulated
from torch import Tensor

from residual_mbrl.baselines import Baseline
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.exploration.excitation import random_excitation
from residual_mbrl.learning import Planning
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator
from residual_mbrl.planners import ILQROptions
from residual_mbrl.tasks import Task

HORIZON, STEPS = 8, 125
SCALE = 0.01
"""Error of the joints, root mean square, for which the reward is a half [rad]."""
AWAY = 0.02
"""Farthest that an episode begins from the motion [rad]."""
SHARE = 0.1
"""Of the range, by which the first torques differ from those that hold the data sheet's arm at home."""
TORQUES = arm_plant.NOMINAL.actuator_ctrlrange[:, 1].copy()


def baseline() -> Baseline:
    """Return the data sheet's arm, with friction, damping and payload free."""
    return MujocoSimulator(arm_plant.arm_xml(), arm_plant.drawn(0).parameters, dt=DT, threads=1)


def motion(seed: int) -> Array:
    """Return what is followed, beyond the end of an episode by a horizon."""
    return arm_plant.goals(seed, DT * np.arange(STEPS + HORIZON + 1))


def reward(x: Tensor, u: Tensor, r: Tensor) -> Tensor:
    """Return ``1 / (1 + e² / scale²)`` of the joints' root mean square error e."""
    error = 0.0 * x[..., 0]
    for i in range(7):
        error = error + (x[..., i] - r[..., i]) ** 2 / 7
    return 1 / (1 + error / SCALE**2)


def start(generator: torch.Generator, count: int) -> Tensor:
    """Return first states relative to that of the motion."""
    return torch.tensor([AWAY] * 7 + [0.0] * 7) * (2 * torch.rand(count, 14, generator=generator) - 1)


def excite(dynamics: ResidualDynamics, task: Task, steps: int, seed: int) -> Array:
    """Return torques that jump about those which hold the data sheet's arm."""
    return arm_plant.holding() + SHARE * random_excitation(dynamics, task, steps, seed)


def planner(seed: int) -> Planning:
    """Return iLQR, one iteration a step, with the cost of ``closed_loop.py``."""
    cost = arm_plant.cost_of(ResidualDynamics(baseline()), motion(seed))
    return Planning(steps=HORIZON, options=ILQROptions(iterations=1), opening=ILQROptions(iterations=15), cost=cost)


def arm() -> Case:
    """Return the arm that follows random sines, another motion for each seed."""
    def true(seed: int) -> ResidualDynamics:
        return ResidualDynamics(baseline(), values=dict(arm_plant.drawn(seed).truth))

    return Case(plant=lambda seed: Simulated(arm_plant.Plant(arm_plant.drawn(seed), 0), baseline().space), baseline=baseline,
                true=true, reward=lambda seed: reward, start=start, followed=motion, planner=planner, excite=excite,
                steps=STEPS, limit=TORQUES, angles=(), fastest=400.0, bound=0.0, noise=np.repeat(arm_plant.NOISE, 7),
                horizon=HORIZON, collected=STEPS, explored=STEPS, episodes=1)
