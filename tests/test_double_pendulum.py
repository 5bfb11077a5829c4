"""The double pendulum against Lagrange's equations, solved by hand, and C MuJoCo."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest
import torch
from problems import random_states

from residual_mbrl.physics.double_pendulum import PARAMETERS, DoublePendulum

M1, M2, L1, C1, C2, I1, I2, G = 1.2, 0.8, 0.9, 0.4, 0.5, 0.05, 0.03, 9.81
VALUES = {"inertia1": I1 + M1 * C1**2 + M2 * L1**2, "inertia2": I2 + M2 * C2**2, "coupling": M2 * L1 * C2,
          "gravity_moment1": (M1 * C1 + M2 * L1) * G, "gravity_moment2": M2 * C2 * G}
MJCF = f"""<mujoco><option gravity="0 0 -{G}" timestep="0.005" integrator="RK4"><flag contact="disable"/></option>
<worldbody><body><joint name="j1" type="hinge" axis="0 1 0"/>
<inertial pos="0 0 -{C1}" mass="{M1}" diaginertia="{I1} {I1} {I1}"/>
<body pos="0 0 -{L1}"><joint name="j2" type="hinge" axis="0 1 0"/>
<inertial pos="0 0 -{C2}" mass="{M2}" diaginertia="{I2} {I2} {I2}"/></body></body></worldbody>
<actuator><motor joint="j1"/><motor joint="j2"/></actuator></mujoco>"""


def _pendulum(**options: object) -> DoublePendulum:
    return DoublePendulum(PARAMETERS.replaced(**{n: {"nominal": x} for n, x in VALUES.items()}), dt=0.005, **options)  # type: ignore[arg-type]


def _by_hand(state: np.ndarray) -> np.ndarray:
    """Accelerations by Cramer's rule on Lagrange's equations of two rods."""
    t1, t2, w1, w2 = np.moveaxis(state, -1, 0)
    j1, j2, h, g1, g2 = VALUES.values()
    s, c = np.sin(t1 - t2), np.cos(t1 - t2)
    f1, f2 = -h * s * w2**2 - g1 * np.sin(t1), h * s * w1**2 - g2 * np.sin(t2)
    det = j1 * j2 - (h * c) ** 2
    return np.stack([(j2 * f1 - h * c * f2) / det, (j1 * f2 - h * c * f1) / det], -1)


def _acceleration(pendulum: DoublePendulum, x: torch.Tensor, u: torch.Tensor) -> np.ndarray:
    p = pendulum.parameters.resolve(None, x)
    q, v, _ = pendulum.space.split(x)
    return torch.linalg.solve(pendulum.mass_matrix(q, p), pendulum.smooth_force(q, v, u, p)).numpy()


def test_acceleration_is_that_of_lagrange():
    """The 2x2 system has the closed-form solution."""
    pendulum = _pendulum()
    x = random_states(pendulum, 1000)
    found = _acceleration(pendulum, x, torch.zeros(1000, 2, dtype=x.dtype))
    assert np.allclose(found, _by_hand(x.numpy()), rtol=1e-10, atol=1e-10)


def test_acceleration_is_mujocos():
    """Two bodies in MJCF accelerate alike, joint torques included (relative angles there)."""
    model = mujoco.MjModel.from_xml_string(MJCF)
    data, rng, pendulum = mujoco.MjData(model), np.random.default_rng(0), _pendulum()
    for t1, t2, w1, w2, u1, u2 in rng.normal(0, 2, (50, 6)):
        data.qpos[:], data.qvel[:], data.ctrl[:] = (t1, t2 - t1), (w1, w2 - w1), (u1, u2)
        mujoco.mj_forward(model, data)
        found = _acceleration(pendulum, torch.tensor([t1, t2, w1, w2], dtype=torch.float64), torch.tensor([u1, u2], dtype=torch.float64))
        assert np.allclose(found, np.cumsum(data.qacc), rtol=1e-8, atol=1e-8)


def test_rollout_is_mujocos():
    """A hundred RK4 steps agree to rounding: the coordinates are a linear map of each other."""
    model = mujoco.MjModel.from_xml_string(MJCF)
    data, pendulum = mujoco.MjData(model), _pendulum()
    data.qpos[:] = (2.0, -1.0)
    x, u = torch.tensor([2.0, 1.0, 0.0, 0.0], dtype=torch.float64), torch.tensor([0.5, -0.2], dtype=torch.float64)
    data.ctrl[:] = u.numpy()
    for _ in range(100):
        mujoco.mj_step(model, data)
        x = pendulum.step(x, u)
    assert np.allclose(x.numpy(), np.concatenate([np.cumsum(data.qpos), np.cumsum(data.qvel)]), rtol=0, atol=1e-9)


def test_small_oscillations_have_the_closed_form_frequencies():
    """Linearised at rest, ω² are the generalised eigenvalues of stiffness and mass."""
    pendulum = _pendulum()
    j1, j2, h, g1, g2 = VALUES.values()
    a, b, c = j1 * j2 - h * h, -(j1 * g2 + j2 * g1), g1 * g2
    expected = np.sqrt([(-b - np.sqrt(b * b - 4 * a * c)) / (2 * a), (-b + np.sqrt(b * b - 4 * a * c)) / (2 * a)])
    step = torch.func.jacrev(lambda x: pendulum.step(x, torch.zeros(2, dtype=x.dtype)))(torch.zeros(4, dtype=torch.float64))
    found = np.sort(np.abs(np.angle(np.linalg.eigvals(step.numpy()))) / pendulum.dt)[::2]
    assert np.allclose(found, expected, rtol=1e-5)


def test_joint_damping_acts_on_relative_rates():
    """Links that turn together feel no friction in the joint between them."""
    pendulum = DoublePendulum(PARAMETERS.replaced(viscous2={"nominal": 1.0}))
    together, apart = torch.tensor([0.3, 0.1, 2.0, 2.0]), torch.tensor([0.3, 0.1, 2.0, -2.0])
    p = pendulum.parameters.resolve(None, together)
    matrix = pendulum.damping(together[:2], together[2:], torch.zeros(2), p)
    assert torch.equal(matrix @ together[2:], torch.zeros(2))
    assert float(apart[2:] @ matrix @ apart[2:]) == pytest.approx(16.0)
