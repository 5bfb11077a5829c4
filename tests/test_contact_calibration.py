"""A calibration with a learned contact force is saved, played in the user's own loop, and says what it left out."""

from __future__ import annotations

import logging
from pathlib import Path

import mujoco
import numpy as np
import pytest
import torch
from contact_problem import CUBE, QUADRUPED, commands, near_floor, randomise

from residual_mbrl.artifact import Calibration, load, save
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.model import Model
from residual_mbrl.mujoco_plugin import MujocoPlugin
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator
from residual_mbrl.residuals import ContactForce
from residual_mbrl.rollouts import rollout
from residual_mbrl.sensors import Sensor

BODIES = {"cube": CUBE, "quadruped": QUADRUPED}


def corrected(body: str, *, most: int = 24, dt: float | None = None) -> ResidualDynamics:
    """A body with other friction and time constant, and a contact force of random weights."""
    simulator = MujocoSimulator(BODIES[body].format(cone="elliptic", dt=0.002), ["friction:floor.slide", "solref:floor.timeconst"], dt=dt)
    residual = ContactForce(most=most, friction=1.2)
    randomise(residual, 1.0, 0)
    return ResidualDynamics(simulator, [residual], {"friction:floor.slide": 0.7, "solref:floor.timeconst": 0.03})


@pytest.mark.parametrize("body", BODIES)
def test_comes_back_bit_for_bit(body: str, tmp_path: Path) -> None:
    """Rollouts through impacts, weights and the residual's arguments."""
    dynamics = corrected(body)
    sensor = Sensor(space=dynamics.baseline.space, columns=())
    identified = Model(dynamics=ResidualDynamics(dynamics.baseline, (), dynamics.values), sensor=sensor)
    save(tmp_path / "out", Calibration(model=Model(dynamics=dynamics, sensor=sensor), identified=identified))
    found = load(tmp_path / "out").model.dynamics
    state, actions = near_floor(dynamics.baseline, body, 4), commands(dynamics.baseline, 120).reshape(4, 30, -1)
    assert found.corrections[0].describe() == dynamics.corrections[0].describe()
    with torch.no_grad():
        assert torch.equal(rollout(found, state, actions), rollout(dynamics, state, actions))


@pytest.mark.parametrize(("body", "dt"), [("cube", None), ("quadruped", 0.006)])
def test_plays_in_the_users_loop(body: str, dt: float | None) -> None:
    """A plain mj_step loop with the plug-in is the rollout, from above the floor through impacts."""
    dynamics = corrected(body, dt=dt)
    state, actions = near_floor(dynamics.baseline, body, 1, seed=3)[0], 0.3 * commands(dynamics.baseline, 30)
    with torch.no_grad():
        expected = rollout(dynamics, state, actions).numpy()
    plugin = MujocoPlugin(dynamics)
    data, nq = mujoco.MjData(plugin.model), plugin.model.nq
    data.qpos[:], data.qvel[:] = state[:nq].numpy(), state[nq:].numpy()
    pushed = 0.0
    for t, action in enumerate(actions.numpy()):
        for _ in range(dynamics.baseline.substeps):
            data.ctrl[:] = action
            plugin(data)
            mujoco.mj_step(plugin.model, data)
        pushed = max(pushed, float(np.abs(plugin.force).max()))
        assert np.abs(np.concatenate([data.qpos, data.qvel]) - expected[t + 1]).max() < 1e-7
    assert pushed > 0.1


def test_contacts_left_out_are_counted_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    """By the baseline, in the log, and as a promise that does not hold; with room for all it does."""
    few, enough = corrected("cube", most=2), corrected("cube", most=8)
    state = near_floor(few.baseline, "cube", 1)
    state[:, :7] = torch.tensor([0, 0, 0.049, 1, 0.002, 0.001, 0], dtype=torch.float64)
    with caplog.at_level(logging.WARNING):
        found, fine = (d.certificates(state, commands(d.baseline, 1)) for d in (few, enough))
    left_out = next(c for c in found if c.quantity == "contacts beyond the 2 that are corrected")
    assert (left_out.worst, left_out.holds, left_out.unit) == (2.0, False, "1")
    assert few.baseline.most_missed == 2 and "2 contacts more than the 2" in caplog.text
    assert all(c.holds for c in fine) and len(fine) == len(found)
