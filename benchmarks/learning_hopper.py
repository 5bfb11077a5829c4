"""Gymnasium's planar hopper: what is known of it, what each seed's really is, and how well it goes forward."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import gymnasium.envs.mujoco
import mujoco
import numpy as np
import torch
from learning_case import Array, Case, drawn
from torch import Tensor

from residual_mbrl.baselines import Parameters
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.learning import GymnasiumPlant, Planning, Plant
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator
from residual_mbrl.planners import ICEMOptions

DT, ENGINE = 0.04, 0.008
"""Of a step, and of the engine in models [s]; that of the plant is Gymnasium's, 2 ms of Runge-Kutta."""
HOPPER = {"torso": 1.6, "thigh": 1.3, "leg": 1.3, "foot": 0.7, "viscous": 5.0, "dry": 15.0, "gear": 0.75, "ahead": 0.04, "grip": 0.4}
"""Masses, damping and torques relative to Gymnasium's, dry friction of the joints [N·m], the torso's centre of mass ahead of its axis
[m], friction of the ground relative to Gymnasium's."""
FREE = ["mass:torso", "mass:thigh", "mass:leg", "mass:foot", "com:torso.x", "damping:*_joint", "frictionloss:*_joint", "gear:*",
        "friction:foot_geom.slide"]
"""What the plant is identified by: of dry friction it is known that it may be there."""
MOST = 40.0
"""Largest dry friction that may be identified [N·m]."""
LOWEST, FARTHEST, FASTEST = 0.7, 1.0, 1.0
"""Height of the torso [m] and its pitch [rad] beyond which it has fallen; speed for which the reward is full [m/s]."""
OFF = np.array([2e-3, 3e-3, 1e-2, 1e-2, 1e-2, 1e-2, 0.05, 0.1, 0.1, 0.1, 0.2, 0.5])
"""What an engine that is four times as coarse is off by after a step, on plants for choosing: what a fit must not take for the plant."""


def altered(model: Any, t: dict[str, float]) -> None:
    """Make a model of Gymnasium's hopper that of a plant."""
    for body, name in enumerate(("torso", "thigh", "leg", "foot"), 1):
        model.body_mass[body] *= t[name]
        model.body_inertia[body] *= t[name]
    model.body_ipos[1, 0] += t["ahead"]
    model.dof_damping[3:] *= t["viscous"]
    model.dof_frictionloss[3:] = t["dry"]
    model.actuator_gear[:, 0] *= t["gear"]
    model.geom_friction[:, 0] *= t["grip"]


def engine(t: dict[str, float] | None = None) -> mujoco.MjModel:
    """Return the model that is planned in, of Gymnasium's hopper or of a plant.

    The foot's friction is that with the ground, which is the larger of the two: the ground's own is made small.
    """
    spec = mujoco.MjSpec.from_file(str(Path(gymnasium.envs.mujoco.__file__).parent / "assets" / "hopper.xml"))
    spec.option.timestep, spec.option.integrator = ENGINE, mujoco.mjtIntegrator.mjINT_EULER
    model: Any = spec.compile()
    if t is not None:
        altered(model, t)
    model.geom_friction[0, 0] = 0.1
    return model


def known() -> MujocoSimulator:
    """Return what is known, with parameters that may be identified; dry friction may take a fifth of the strongest torque."""
    found = MujocoSimulator(engine(), FREE, dt=DT).parameters
    wider = Parameters(*(replace(p, upper=MOST) if p.name.startswith("frictionloss") else p for p in found))
    return MujocoSimulator(engine(), wider, dt=DT, threads=1)


def hopper() -> Case:
    """Return the hopper that is to go forward upright; an episode is over where it has fallen."""
    space = MujocoSimulator(engine()).space

    def plant(seed: int) -> Plant:
        env = gymnasium.make("Hopper-v5", frame_skip=round(DT / 0.002), healthy_z_range=(LOWEST, np.inf),
                             healthy_angle_range=(-FARTHEST, FARTHEST), healthy_state_range=(-np.inf, np.inf)).unwrapped
        altered(env.model, drawn(seed, HOPPER))  # type: ignore[attr-defined]
        return GymnasiumPlant(env, space=space, dt=DT, read=read, write=write)

    def read(env: Any) -> Array:
        return np.concatenate([env.data.qpos, env.data.qvel])

    def write(env: Any, x: Array) -> None:
        env.set_state(x[:6], x[6:])

    def fallen(x: Tensor) -> Tensor:
        return (x[..., 1] <= LOWEST) | (x[..., 2].abs() >= FARTHEST)

    def standing(x: Tensor) -> Tensor:
        return ((x[..., 1] - LOWEST) / 0.3).clamp(0, 1) * (1 - (x[..., 2] / FARTHEST) ** 2).clamp(0, 1)

    def reward(x: Tensor, u: Tensor) -> Tensor:
        return standing(x) * (1 + 4 * (x[..., 6] / FASTEST).clamp(0, 1)) / 5

    def start(generator: torch.Generator, count: int) -> Tensor:
        x = 0.05 * (2 * torch.rand(count, 12, generator=generator) - 1)
        x[:, 1] = 1.25
        return x

    planner = ICEMOptions(samples=60, iterations=3, elites=8, knots=7)
    return Case(plant=plant, baseline=known,
                true=lambda seed: ResidualDynamics(MujocoSimulator(engine(drawn(seed, HOPPER)), dt=DT, threads=1)),
                reward=lambda seed: reward, start=start, steps=50, limit=1.0,
                angles=space.position[2:], positions=space.position[1:2], fastest=500.0, bound=0.0, over=fallen, dt=DT,
                noise=np.array([5e-4] * 2 + [1e-3] * 4 + [5e-3] * 2 + [1e-2] * 4), off=OFF, horizon=20, collected=50, explored=50,
                episodes=3, alone_episodes=8, window=2, end=lambda x: 10 * (1 - standing(x)),
                planner=lambda seed: Planning(steps=20, options=planner, opening=replace(planner, samples=120, iterations=5, elites=15)),
                points={"ours": (15.0, 30.0, 60.0), "PETS": (60.0, 120.0, 300.0, 600.0), "SAC": (60.0, 300.0, 600.0, 1200.0),
                        "PPO": (60.0, 300.0, 600.0, 1200.0)})
