"""The cart-pole against C MuJoCo and closed forms."""

from __future__ import annotations

import math

import mujoco
import numpy as np
import pytest
import torch

from residual_mbrl.physics.cartpole import PARAMETERS, CartPole

CART, POLE, LENGTH, INERTIA = 1.1, 0.3, 0.6, 0.02
MJCF = f"""<mujoco><option gravity="0 0 -9.81" timestep="0.01" integrator="RK4"><flag contact="disable"/></option>
<worldbody><body><joint name="rail" type="slide" axis="1 0 0"/><inertial pos="0 0 0" mass="{CART}" diaginertia="1 1 1"/>
<body><joint name="hinge" type="hinge" axis="0 -1 0"/>
<inertial pos="0 0 -{LENGTH}" mass="{POLE}" diaginertia="{INERTIA} {INERTIA} {INERTIA}"/></body></body></worldbody>
<actuator><motor joint="rail"/></actuator></mujoco>"""


def _cartpole() -> CartPole:
    values = {"cart_mass": CART, "pole_mass": POLE, "length": LENGTH, "pole_inertia": INERTIA}
    return CartPole(PARAMETERS.replaced(**{n: {"nominal": x} for n, x in values.items()}), dt=0.01, integrator="rk4")


def test_acceleration_is_mujocos():
    """The same cart in MJCF accelerates alike at random states and forces."""
    model = mujoco.MjModel.from_xml_string(MJCF)
    data, cartpole = mujoco.MjData(model), _cartpole()
    for values in np.random.default_rng(0).normal(0, 3, (50, 5)):
        data.qpos[:], data.qvel[:], data.ctrl[:] = values[:2], values[2:4], values[4:]
        mujoco.mj_forward(model, data)
        x, u = torch.tensor(values[:4]), torch.tensor(values[4:])
        p = cartpole.parameters.resolve(None, x)
        found = torch.linalg.solve(cartpole.mass_matrix(x[:2], p), cartpole.smooth_force(x[:2], x[2:], u, p))
        assert np.allclose(found.numpy(), data.qacc, rtol=1e-9, atol=1e-9)


def test_rollout_is_mujocos():
    """A hundred RK4 steps under random forces agree to rounding."""
    model = mujoco.MjModel.from_xml_string(MJCF)
    data, cartpole = mujoco.MjData(model), _cartpole()
    data.qpos[:] = (0.1, 2.0)
    x = torch.tensor([0.1, 2.0, 0.0, 0.0], dtype=torch.float64)
    for u in np.random.default_rng(1).normal(0, 5, 100):
        data.ctrl[0] = u
        mujoco.mj_step(model, data)
        x = cartpole.step(x, torch.tensor([u], dtype=torch.float64))
    assert np.allclose(x.numpy(), np.concatenate([data.qpos, data.qvel]), rtol=0, atol=1e-9)


def test_momentum_is_conserved_along_the_rail():
    """Without drive and friction the horizontal momentum stays."""
    cartpole = _cartpole()
    x = torch.tensor([0.0, 1.5, 0.3, 2.0], dtype=torch.float64)

    def momentum(x: torch.Tensor) -> float:
        return float((CART + POLE) * x[2] + POLE * LENGTH * torch.cos(x[1]) * x[3])

    start = momentum(x)
    for _ in range(200):
        x = cartpole.step(x, torch.zeros(1, dtype=torch.float64))
    assert momentum(x) == pytest.approx(start, abs=1e-6)


def test_small_swing_has_the_closed_form_frequency():
    """About hanging, ω² = (m_c + m_p) m_p g l / det M."""
    cartpole = _cartpole()
    step = torch.func.jacrev(lambda x: cartpole.step(x, torch.zeros(1, dtype=x.dtype)))(torch.zeros(4, dtype=torch.float64))
    found = np.abs(np.angle(np.linalg.eigvals(step.numpy()))).max() / cartpole.dt
    corner = INERTIA + POLE * LENGTH**2
    expected = math.sqrt((CART + POLE) * POLE * 9.81 * LENGTH / ((CART + POLE) * corner - (POLE * LENGTH) ** 2))
    assert found == pytest.approx(expected, rel=1e-5)


def test_viscous_friction_stops_the_cart_exponentially():
    """A cart whose pole weighs almost nothing slows with time constant m/c."""
    cartpole = CartPole(PARAMETERS.replaced(cart_viscous={"nominal": 2.0}, pole_mass={"nominal": 0.001}), dt=0.001)
    x = torch.tensor([0.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    for _ in range(500):
        x = cartpole.step(x, torch.zeros(1, dtype=torch.float64))
    assert float(x[2]) == pytest.approx(math.exp(-1.0), rel=5e-3)
