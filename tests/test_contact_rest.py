"""Bodies at rest stay at rest under a learned contact force with any weights."""

from __future__ import annotations

import mujoco
import pytest
import torch
from contact_problem import BODIES, commands, make, randomise
from torch import Tensor

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator
from residual_mbrl.residuals import ContactForce


def tilted(body: str, slope: float) -> MujocoSimulator:
    """Gravity leans by ``slope``, as on a ramp: the engine's friction is soft, and bodies creep."""
    simulator = make(body)
    simulator.model.opt.gravity[:] = [9.81 * slope, 0.0, -9.81]
    return simulator


def settled(simulator: MujocoSimulator, steps: int = 4000) -> Tensor:
    """What the engine's first state comes to, without commands."""
    data = mujoco.MjData(simulator.model)
    mujoco.mj_step(simulator.model, data, steps)
    return torch.cat([torch.from_numpy(data.qpos.copy()), torch.from_numpy(data.qvel.copy())])[None]


def run(dynamics: ResidualDynamics, state: Tensor, steps: int) -> Tensor:
    action, states = 0 * commands(dynamics.baseline, 1), [state]
    with torch.no_grad():
        for _ in range(steps):
            states.append(dynamics.step(states[-1], action))
    return torch.cat(states)


def assert_at_rest(simulator: MujocoSimulator, residual: ContactForce, steps: int) -> None:
    """No creep, no jitter and no energy beyond what the engine alone shows."""
    start, space = settled(simulator), simulator.space
    alone, ours = run(ResidualDynamics(simulator), start, steps), run(ResidualDynamics(simulator, [residual]), start, steps)
    creep = [space.difference(x[-1:], start)[0, : space.nv].abs().max().item() for x in (alone, ours)]
    assert creep[1] <= 1.001 * creep[0] + 1e-7, creep
    speed = [space.split(x)[1].abs().max().item() for x in (alone, ours)]
    assert speed[1] <= 1.001 * speed[0] + 1e-7, speed
    energy = [simulator.energy(x) for x in (alone, ours)]
    gained = [(e.max() - e[0]).item() for e in energy]
    assert gained[1] <= gained[0] + 1e-9, gained


def residuals(most: int) -> list[ContactForce]:
    """Random weights, and outputs at their largest."""
    found = [ContactForce(most=most, friction=1.5) for _ in range(2)]
    randomise(found[0], 3.0, 0)
    with torch.no_grad():
        found[1].network.biases[-1].fill_(30.0)
    return found


@pytest.mark.parametrize("slope", [0.0, 0.15])
def test_cube_stays_where_it_is(slope: float) -> None:
    """500 steps, on the level and on a ramp."""
    for residual in residuals(8):
        assert_at_rest(tilted("cube", slope), residual, 500)


@pytest.mark.long
@pytest.mark.parametrize("slope", [0.0, 0.15])
@pytest.mark.parametrize("body", BODIES)
def test_bodies_stay_where_they_are(body: str, slope: float) -> None:
    """10,000 steps of every body that comes to rest there; a capsule would roll down a ramp."""
    if body == "capsule" and slope:
        pytest.skip("a capsule rolls down a ramp")
    for residual in residuals(16):
        assert_at_rest(tilted(body, slope), residual, 10_000)
