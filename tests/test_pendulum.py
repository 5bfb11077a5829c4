"""The pendulum against closed forms and C MuJoCo."""

from __future__ import annotations

import math

import mujoco
import numpy as np
import pytest
import torch
from scipy.special import ellipk

from residual_mbrl.baselines import Parameters
from residual_mbrl.physics.pendulum import PARAMETERS, Pendulum

MJCF = """<mujoco><option gravity="0 0 -9.81" timestep="0.01" integrator="RK4"><flag contact="disable"/></option>
<worldbody><body><joint name="j" type="hinge" axis="0 1 0" damping="{damping}"/>
<inertial pos="0 0 -0.7" mass="1.3" diaginertia="0.2 0.2 0.2"/></body></worldbody>
<actuator><motor joint="j"/></actuator></mujoco>"""


def _period(pendulum: Pendulum, amplitude: float) -> float:
    """Period from the upward zero crossings of the angle."""
    x, u = torch.tensor([amplitude, 0.0], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    angles = [float(x[0])]
    for _ in range(1500):
        x = pendulum.step(x, u)
        angles.append(float(x[0]))
    a = np.array(angles)
    k = np.flatnonzero((a[:-1] < 0) & (a[1:] >= 0))
    zeros = pendulum.dt * (k - a[k] / (a[k + 1] - a[k]))
    return float(np.diff(zeros).mean())


def _values(damping: float) -> Parameters:
    return PARAMETERS.replaced(inertia={"nominal": 0.2 + 1.3 * 0.7**2}, gravity_moment={"nominal": 1.3 * 9.81 * 0.7},
                               viscous={"nominal": damping})


@pytest.mark.parametrize("amplitude", [0.01, 1.0, 2.5])
def test_period(amplitude):
    """It is 4 K(sin² a/2) √(J/G), and 2π √(J/G) for small amplitudes."""
    expected = 4 * ellipk(math.sin(amplitude / 2) ** 2) / math.sqrt(9.81)
    assert _period(Pendulum(), amplitude) == pytest.approx(expected, rel=1e-4)


def test_acceleration_is_mujocos():
    """The same joint in MJCF accelerates alike at random states and torques."""
    model = mujoco.MjModel.from_xml_string(MJCF.format(damping=0))
    data, rng = mujoco.MjData(model), np.random.default_rng(0)
    pendulum = Pendulum(_values(0.0))
    for q, v, u in rng.normal(0, 3, (50, 3)):
        data.qpos[:], data.qvel[:], data.ctrl[:] = q, v, u
        mujoco.mj_forward(model, data)
        x = torch.tensor([q, v], dtype=torch.float64)
        p = pendulum.parameters.resolve(None, x)
        force = pendulum.smooth_force(x[:1], x[1:], torch.tensor([u], dtype=torch.float64), p)
        assert float(force / p["inertia"]) == pytest.approx(float(data.qacc[0]), abs=1e-10)


def test_rollout_is_mujocos():
    """A hundred RK4 steps agree to rounding."""
    model = mujoco.MjModel.from_xml_string(MJCF.format(damping=0))
    data, pendulum = mujoco.MjData(model), Pendulum(_values(0.0))
    data.qpos[0], data.qvel[0] = 2.0, -1.0
    x = torch.tensor([2.0, -1.0], dtype=torch.float64)
    for u in np.random.default_rng(1).normal(0, 3, 100):
        data.ctrl[0] = u
        mujoco.mj_step(model, data)
        x = pendulum.step(x, torch.tensor([u], dtype=torch.float64))
        assert np.allclose(x.numpy(), [data.qpos[0], data.qvel[0]], rtol=0, atol=1e-10)


def test_damped_rollout_converges_to_mujocos():
    """Damping, explicit there and implicit here, agrees as steps get short."""
    model = mujoco.MjModel.from_xml_string(MJCF.format(damping=0.5))
    data, errors = mujoco.MjData(model), []
    data.qpos[0] = 2.0
    for _ in range(100):
        mujoco.mj_step(model, data)
    for substeps in (10, 20):
        pendulum, x = Pendulum(_values(0.5), substeps=substeps), torch.tensor([2.0, 0.0], dtype=torch.float64)
        for _ in range(100):
            x = pendulum.step(x, torch.zeros(1, dtype=torch.float64))
        errors.append(abs(float(x[0]) - data.qpos[0]))
    assert errors[0] < 2e-3
    assert errors[1] < 0.6 * errors[0]


def test_torque_offset_holds_the_pendulum_off_centre():
    """At rest, G sin θ is the offset."""
    pendulum = Pendulum(PARAMETERS.replaced(torque_offset={"nominal": 2.0}))
    x = torch.tensor([math.asin(2.0 / 9.81), 0.0], dtype=torch.float64)
    assert torch.allclose(pendulum.step(x, torch.zeros(1, dtype=torch.float64)), x, atol=1e-12)
