"""A small task for policies: a pendulum that is to stand up, within a torque that lifts it."""

from __future__ import annotations

import torch

from residual_mbrl.costs import QuadraticCost
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.physics.pendulum import Pendulum
from residual_mbrl.policies import GaussianPolicy, MLPPolicy, angles_turned
from residual_mbrl.tasks import Task

UPRIGHT = 3.141592653589793


def dynamics(**values):
    return ResidualDynamics(Pendulum(dt=0.05), values=values)


def task(steps=40):
    space = Pendulum().space
    cost = QuadraticCost(space=space, state=torch.tensor([1.0, 0.1]), action=torch.tensor([1e-3]), target=torch.tensor([UPRIGHT, 0.0]))

    def start(generator, count):
        return torch.tensor([UPRIGHT, 0.0]) + torch.randn(count, 2, generator=generator)

    return Task(cost=cost, start=start, steps=steps, low=torch.tensor([-20.0]), high=torch.tensor([20.0]))


def policy(kind=MLPPolicy, seed=0):
    space = Pendulum().space
    made = kind(space=space, low=-20.0, high=20.0, features=angles_turned(space, space.position), hidden=(16, 16), seed=seed)
    made.normalise(torch.randn(100, 2, generator=torch.Generator().manual_seed(0)) * 3)
    return made.float()


def gaussian(seed=0):
    return policy(GaussianPolicy, seed)
