"""Plants of the learning benchmark that are equations to all models: tasks with a reward in [0, 1], and what each seed's really is."""

from __future__ import annotations

from typing import Any

import cart_pole_plant
import gymnasium
import mujoco
import numpy as np
import torch
from gymnasium.wrappers import RescaleAction
from learning_case import DT, Array, Case, Reward, Simulated, drawn
from learning_equations import DoublePole, Reacher
from torch import Tensor

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.learning import GymnasiumPlant, Plant


def cart_pole() -> Case:
    """Return the swing-up, with the reward of the DeepMind Control Suite less its part for control."""
    def reward(x: Tensor, u: Tensor) -> Tensor:
        upright, centred = (1 - torch.cos(x[..., 1])) / 2, torch.exp(-0.576 * x[..., 0] ** 2)  # a tenth at two metres
        slow = torch.exp(-0.0921 * x[..., 3] ** 2)  # a tenth at five radians a second
        return upright * (1 + centred) / 2 * (1 + slow) / 2

    def start(generator: torch.Generator, count: int) -> Tensor:
        return torch.tensor([0.2, 0.2, 0.0, 0.0]) * (2 * torch.rand(count, 4, generator=generator) - 1)

    def anywhere(generator: torch.Generator, count: int) -> Tensor:
        x = torch.randn(count, 4, generator=generator) * torch.tensor([0.5, 1.0, 1.0, 2.0])
        x[:, 1] = torch.pi * (2 * torch.rand(count, generator=generator) - 1)
        return x

    return Case(plant=lambda seed: Simulated(cart_pole_plant.Plant(cart_pole_plant.drawn(seed)), cart_pole_plant.baseline(DT).space),
                baseline=lambda: cart_pole_plant.baseline(DT).baseline,
                true=lambda seed: cart_pole_plant.true_model(cart_pole_plant.drawn(seed), DT), reward=lambda seed: reward, start=start,
                steps=250, limit=15.0, angles=("angle",), fastest=150.0, bound=5.0, spring=2.0, noise=cart_pole_plant.NOISE, horizon=75,
                collected=125, explored=250, practice=anywhere)


DOUBLE = {"cart": 1.4, "lower": 0.6, "upper": 2.0, "viscous": 6.0, "hinge": 0.3, "dry": 15.0, "gear": 0.8}
"""Masses relative to Gymnasium's, friction of cart [N·s/m, N] and hinges [N·m·s/rad], force relative to the command."""
HIGHEST, TIP = 500.0, 0.6


def double_pole() -> Case:
    """Return Gymnasium's double pendulum: its reward, a tenth of it, which ends where it says that the poles have fallen."""
    space = DoublePole.SPACE

    def environment(seed: int) -> Any:
        env, t = gymnasium.make("InvertedDoublePendulum-v5", frame_skip=2).unwrapped, drawn(seed, DOUBLE)
        model: Any = env.model  # type: ignore[attr-defined]
        for body, name in enumerate(("cart", "lower", "upper"), 1):
            model.body_mass[body] *= t[name]
            model.body_inertia[body] *= t[name]
        model.dof_damping[:], model.dof_frictionloss[:] = [t["viscous"], t["hinge"], t["hinge"]], [t["dry"], 0.0, 0.0]
        model.actuator_gear[0, 0] *= t["gear"]
        model.jnt_limited[0] = 0  # a rail without end: no model here knows of stops
        return env

    def read(env: Any) -> Array:
        q, v = env.unwrapped.data.qpos, env.unwrapped.data.qvel
        return np.array([q[0], q[1], q[1] + q[2], v[0], v[1], v[1] + v[2]])

    def write(env: Any, x: Array) -> None:
        env.unwrapped.set_state(np.array([x[0], x[1], x[2] - x[1]]), np.array([x[3], x[4], x[5] - x[4]]))

    def plant(seed: int) -> Plant:
        env = RescaleAction(environment(seed), np.float32(-HIGHEST), np.float32(HIGHEST))
        return GymnasiumPlant(env, space=space, dt=DT, read=read, write=write)

    def true(seed: int) -> ResidualDynamics:
        model: Any = environment(seed).model
        t, m, i, c = drawn(seed, DOUBLE), model.body_mass, model.body_inertia[:, 0], 0.3
        per = {"mass": m[1] + m[2] + m[3], "moment1": m[2] * c + m[3] * TIP, "moment2": m[3] * c, "inertia1": i[2] + m[2] * c**2
               + m[3] * TIP**2, "inertia2": i[3] + m[3] * c**2, "cart_viscous": t["viscous"], "hinge1": t["hinge"], "hinge2": t["hinge"],
               "dry": t["dry"]}
        return ResidualDynamics(Geared(gear=t["gear"]), values={n: float(x) for n, x in per.items()})

    def height(x: Tensor) -> Tensor:
        return TIP * (torch.cos(x[..., 1]) + torch.cos(x[..., 2]))

    def reward(x: Tensor, u: Tensor) -> Tensor:
        tip = x[..., 0] + TIP * (torch.sin(x[..., 1]) + torch.sin(x[..., 2]))
        rates = 1e-3 * x[..., 4] ** 2 + 5e-3 * (x[..., 5] - x[..., 4]) ** 2
        standing = 1 - 0.001 * tip**2 - 0.1 * (height(x) - 2) ** 2 - 0.1 * rates
        return torch.where(height(x) > 1, standing, torch.zeros_like(tip)).clamp(0, 1)

    def start(generator: torch.Generator, count: int) -> Tensor:
        return torch.tensor([0.1, 0.25, 0.25, 0.0, 0.0, 0.0]) * (2 * torch.rand(count, 6, generator=generator) - 1)

    return Case(plant=plant, baseline=lambda: DoublePole(dt=DT), true=true, reward=lambda seed: reward, start=start, steps=250,
                limit=HIGHEST, angles=("angle1", "angle2"), fastest=600.0, bound=40.0, noise=np.array([2e-4, 4e-4, 4e-4, 2e-3, 4e-3, 4e-3]),
                horizon=25, collected=50, explored=50, episodes=5, positions=False, window=8, alone_window=5, over=lambda x: height(x) <= 1)


class Geared(DoublePole):
    """The double pole whose drive gives a part of the force that is asked for."""

    def __init__(self, *, gear: float) -> None:
        super().__init__(dt=DT)
        self.gear = gear

    def force_of(self, ops: Any, q: Any, v: Any, u: Any, p: Any) -> list[Any]:
        """Return all forces but friction."""
        found = super().force_of(ops, q, v, u, p)
        return [found[0] + (self.gear - 1.0) * u[0], *found[1:]]


REACHER = {"payload": 40.0, "viscous1": 3.0, "viscous2": 2.0, "dry1": 8.0, "dry2": 5.0}
"""Payload at the fingertip [kg], whose joints have armatures of 1 kg·m², and friction [N·m·s/rad, N·m]."""
STRONGEST, LINK, REACH = 200.0, 0.1, 0.11


def reacher() -> Case:
    """Return Gymnasium's reacher with a payload, from poses anywhere to one target of each seed."""
    space = Reacher.SPACE

    def environment(seed: int) -> Any:
        env, t = gymnasium.make("Reacher-v5").unwrapped, drawn(seed, REACHER)
        model: Any = env.model  # type: ignore[attr-defined]
        model.body_mass[3] += t["payload"]
        model.dof_damping[:2], model.dof_frictionloss[:2] = [t["viscous1"], t["viscous2"]], [t["dry1"], t["dry2"]]
        model.jnt_limited[:2] = 0
        return env

    def read(env: Any) -> Array:
        return np.concatenate([env.unwrapped.data.qpos[:2], env.unwrapped.data.qvel[:2]])

    def write(env: Any, x: Array) -> None:
        env.unwrapped.set_state(np.concatenate([x[:2], [0.1, 0.1]]), np.concatenate([x[2:], [0.0, 0.0]]))

    def plant(seed: int) -> Plant:
        env = RescaleAction(environment(seed), np.full(2, -STRONGEST, np.float32), np.full(2, STRONGEST, np.float32))
        return GymnasiumPlant(env, space=space, dt=DT, read=read, write=write)

    def true(seed: int) -> ResidualDynamics:
        env, t = environment(seed), drawn(seed, REACHER)
        model, values = env.model, {n: x for n, x in t.items() if n != "payload"}
        mass = np.zeros((4, 4))
        for angle, sign in ((0.0, 1.0), (np.pi, -1.0)):  # M12 = link2 ± coupling, M11 = inertia1 ± 2 coupling
            write(env, np.array([0.0, angle, 0.0, 0.0]))
            full = np.zeros((model.nv, model.nv))
            mujoco.mj_fullM(model, env.data, full)
            mass += 0.5 * np.array([[full[0, 0], sign * full[0, 1], 0, 0], [full[0, 1], full[1, 1], 0, 0], [0] * 4, [0] * 4])
        found = {"inertia1": mass[0, 0], "inertia2": mass[1, 1], "link2": mass[1, 0], "coupling": mass[0, 1]}
        return ResidualDynamics(Reacher(dt=DT), values={**values, **{n: float(x) for n, x in found.items()}})

    def reward(seed: int) -> Reward:
        rng = np.random.default_rng(50_000 + seed)
        radius, angle = rng.uniform(0.08, 0.19), rng.uniform(-np.pi, np.pi)
        x0, y0 = float(radius * np.cos(angle)), float(radius * np.sin(angle))

        def near(x: Tensor, u: Tensor) -> Tensor:
            a, b = x[..., 0], x[..., 0] + x[..., 1]
            dx, dy = LINK * torch.cos(a) + REACH * torch.cos(b) - x0, LINK * torch.sin(a) + REACH * torch.sin(b) - y0
            return 1 / (1 + (dx**2 + dy**2) / 0.03**2)

        return near

    def start(generator: torch.Generator, count: int) -> Tensor:
        return torch.tensor([2.0, 2.5, 0.0, 0.0]) * (2 * torch.rand(count, 4, generator=generator) - 1)

    return Case(plant=plant, baseline=lambda: Reacher(dt=DT), true=true, reward=reward, start=start, steps=50, limit=STRONGEST,
                angles=("joint1", "joint2"), fastest=600.0, bound=30.0, noise=np.array([4e-4, 4e-4, 4e-3, 4e-3]), horizon=20, collected=50,
                explored=50, episodes=2)
