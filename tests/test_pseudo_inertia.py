"""Coordinates of a body's inertia of which every value is a body."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from residual_mbrl.physics import pseudo_inertia

MODEL = """
<mujoco><worldbody>
  <body name="box"><freejoint/><geom type="box" size=".1 .2 .3" pos="1 0 0" euler="10 20 30"/></body>
  <body name="rod"><freejoint/><geom type="capsule" size=".02" fromto="0 0 0 0 0 1"/><geom size=".1" pos=".3 .2 .1"/></body>
  <body name="plate"><freejoint/><inertial mass="2" pos="0 3 0" diaginertia="0.1 0.2 0.3"/></body>
  <body name="ball"><freejoint/><geom size=".1" pos="0 .5 0"/></body>
</worldbody></mujoco>"""
COORDINATES = st.tuples(st.floats(-6, 6), *[st.floats(-5, 2)] * 3, *[st.floats(-2, 2)] * 6).map(np.array)


def tensor(moments: np.ndarray, quaternion: np.ndarray) -> np.ndarray:
    """Inertia about the centre of mass in the body frame, by the engine's own rotation."""
    turn = np.zeros(9)
    mujoco.mju_quat2Mat(turn, quaternion)
    return turn.reshape(3, 3) @ np.diag(moments) @ turn.reshape(3, 3).T


@given(COORDINATES)
def test_every_value_is_a_body(values: np.ndarray) -> None:
    """Mass and moments are positive, and no moment exceeds the sum of the others."""
    mass, com, moments, quaternion = (x[0] for x in pseudo_inertia.body(values[None]))
    assert mass > 0
    assert np.array_equal(com, values[7:])
    assert (moments > 0).all()
    assert 2 * moments.max() <= moments.sum() * (1 + 1e-9)
    assert np.linalg.norm(quaternion) == pytest.approx(1)


@given(COORDINATES)
def test_coordinates_are_those_of_the_pseudo_inertia(values: np.ndarray) -> None:
    """U Uᵀ of the 4 x 4 matrix in the paper is [[Σ, h], [hᵀ, m]] of the body."""
    alpha, d1, d2, d3, s12, s23, s13, t1, t2, t3 = values
    u = np.exp(alpha) * np.array([[np.exp(d1), s12, s13, t1], [0, np.exp(d2), s23, t2], [0, 0, np.exp(d3), t3], [0, 0, 0, 1]])
    mass, com, moments, quaternion = (x[0] for x in pseudo_inertia.body(values[None]))
    about_com = tensor(moments, quaternion)
    second = 0.5 * np.trace(about_com) * np.eye(3) - about_com + mass * np.outer(com, com)
    j = np.block([[second, mass * com[:, None]], [mass * com[None], np.array([[mass]])]])
    assert np.allclose(u @ u.T, j, rtol=1e-9, atol=1e-9 * np.abs(j).max())


@pytest.mark.parametrize("name", ["box", "rod", "plate", "ball"])
def test_nominal_bodies_come_back(name: str) -> None:
    """Mass, centre and inertia of a compiled body; of flat ones too, whose moments are on the boundary."""
    model = mujoco.MjModel.from_xml_string(MODEL)
    i = model.body(name).id
    given_inertia = (float(model.body_mass[i]), model.body_ipos[i], model.body_inertia[i], model.body_iquat[i])
    mass, com, moments, quaternion = (x[0] for x in pseudo_inertia.body(pseudo_inertia.coordinates(*given_inertia)[None]))
    expected = tensor(given_inertia[2], given_inertia[3])
    assert mass == pytest.approx(given_inertia[0], rel=1e-12)
    assert np.allclose(com, given_inertia[1], rtol=0, atol=1e-15)
    assert np.allclose(tensor(moments, quaternion), expected, rtol=0, atol=1e-8 * np.abs(expected).max())


def test_impossible_inertias_are_refused() -> None:
    """One moment above the sum of the others belongs to no body."""
    with pytest.raises(ValueError, match="exceeds the sum"):
        pseudo_inertia.coordinates(1.0, np.zeros(3), np.array([1.0, 1.0, 3.0]), np.array([1.0, 0, 0, 0]))
