"""From an MJCF and three seconds of the robot to a controller: a reacher that carries what its model does not know.

The robot here is Gymnasium's Reacher-v5 with a payload at its fingertip, more damping and dry friction; a driver of your own is a class
with ``reset`` and ``step``. ``learn`` moves it at random for a second, identifies the MJCF's parameters, plans with them by iCEM for a
second, and so on. Killed at any moment, it goes on where it was: run it with ``--out run``, stop it, and run it again.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import gymnasium.envs.mujoco
import mujoco
import numpy as np
import torch
import tyro
from torch import Tensor

from residual_mbrl.baselines import Parameters
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.function_cost import FunctionCost
from residual_mbrl.identification import IdentifyOptions
from residual_mbrl.learning import Budget, GymnasiumPlant, LearnOptions, Planning, actor, learn, shown
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator
from residual_mbrl.planners import ICEMOptions
from residual_mbrl.tasks import Task

DT, LINK, REACH, TARGET = 0.02, 0.1, 0.11, (0.12, 0.12)
FREE = ["mass:fingertip", "damping:*", "frictionloss:*"]
LARGEST = {"mass": 100.0, "damping": 10.0, "frictionloss": 30.0}
"""Where the search ends [kg, N·m·s/rad, N·m]: by itself it stays near values that are known, and of friction the MJCF has none."""


def known() -> MujocoSimulator:
    """Return the MJCF as it is, with parameters that may be identified, and how large they may become."""
    spec = mujoco.MjSpec.from_file(str(Path(gymnasium.envs.mujoco.__file__).parent / "assets" / "reacher.xml"))
    spec.delete(spec.body("target"))  # a thing to look at, in the model one to move
    model: Any = spec.compile()
    found = MujocoSimulator(model, FREE, dt=DT).parameters
    return MujocoSimulator(model, Parameters(*(replace(p, upper=LARGEST[p.name.split(":")[0]]) for p in found)), dt=DT, threads=1)


def robot(space: Any) -> GymnasiumPlant:
    """Return the robot, which shows the angles and speeds of its joints."""
    env: Any = gymnasium.make("Reacher-v5").unwrapped
    env.model.body_mass[3] += 40.0
    env.model.dof_damping[:2], env.model.dof_frictionloss[:2] = [3.0, 2.0], [8.0, 5.0]

    def begin(env: Any, x: np.ndarray) -> None:
        env.set_state(np.concatenate([x[:2], [0.1, 0.1]]), np.concatenate([x[2:], [0.0, 0.0]]))

    return GymnasiumPlant(env, space=space, dt=DT, read=lambda e: np.concatenate([e.data.qpos[:2], e.data.qvel[:2]]), write=begin)


def distance(x: Tensor) -> Tensor:
    """Return how far the fingertip is from its target [m]."""
    a, b = x[..., 0], x[..., 0] + x[..., 1]
    dx, dy = LINK * torch.cos(a) + REACH * torch.cos(b) - TARGET[0], LINK * torch.sin(a) + REACH * torch.sin(b) - TARGET[1]
    return (dx**2 + dy**2).sqrt()


def main(out: Path | None = None) -> dict[str, float]:
    """Learn, and compare with the MJCF as it was.

    Args:
        out: Folder of the run, to stop it and go on; a temporary one where missing.
    """
    torch.set_num_threads(1)
    dynamics = ResidualDynamics(known())
    plant, space = robot(dynamics.baseline.space), dynamics.baseline.space
    cost = FunctionCost(space=space, running=lambda x, u, r: 1 - 1 / (1 + (distance(x) / 0.03) ** 2), terminal=lambda x, r: 0 * x[..., 0])
    task = Task(cost=cost, start=lambda g, n: torch.tensor([2.0, 2.5, 0.0, 0.0]) * (2 * torch.rand(n, 4, generator=g) - 1), steps=50,
                low=torch.tensor([-1.0, -1.0]), high=torch.tensor([1.0, 1.0]))
    planner = Planning(steps=20, options=ICEMOptions(samples=60, iterations=3, elites=8))
    options = LearnOptions(window=10, noise=1e-3, identify=IdentifyOptions(candidates=8, starts=1))

    with shown() as told:
        learned = learn(plant, dynamics, task, planner, Budget(rounds=3), out or Path(tempfile.mkdtemp()) / "run", options, **told)

    def missed(model: ResidualDynamics) -> float:
        """Return the mean distance from the target in the second half of an episode [mm]."""
        found = []
        for seed in range(1000, 1003):
            act, states = actor(planner, model, task, seed), [plant.reset(seed, task.starts(seed, 1)[0].numpy())]
            for t in range(task.steps):
                states.append(plant.step(act(states[-1], t))[0])
            found.append(1e3 * float(distance(torch.tensor(np.array(states[task.steps // 2 :]))).mean()))
        return float(np.mean(found))

    for name, value in learned.rounds[-1].values.items():
        print(f"{name:20} {dynamics.values[name]:8.3f} as known, {value:8.3f} as identified")
    off = {"as known": missed(dynamics), "learned": missed(learned.dynamics)}
    print(f"from half a second on the fingertip is {off['as known']:.1f} mm from its target with the MJCF as known, "
          f"{off['learned']:.1f} mm after {learned.rounds[-1].seconds:.0f} s of the robot")
    return {**off, "payload": learned.rounds[-1].values["mass:fingertip"]}


if __name__ == "__main__":
    tyro.cli(main)
