"""Pictures by rays agree with the geometry that they show."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from residual_mbrl.ray_picture import Camera, cast_picture

BALL = """<mujoco><statistic extent="2"/><worldbody>
<geom name="floor" type="plane" size="5 5 .1" rgba="1 1 1 1"/>
<geom name="ball" type="sphere" size="0.2" pos="0 0 1" rgba="1 0 0 1"/></worldbody></mujoco>"""
CAMERA = Camera(position=(0.0, -3.0, 1.0), target=(0.0, 0.0, 1.0), width=120, height=100, angle=0.4, light=(0.0, 0.0, 4.0))


@pytest.fixture(scope="module")
def image():
    model = mujoco.MjModel.from_xml_string(BALL)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return cast_picture(model, data, CAMERA, samples=2)


def test_a_ball_covers_its_disc(image):
    """The silhouette is the circle that the cone of rays touching the ball cuts out of the picture."""
    red = (image[..., 0] - image[..., 2]).clip(0) > 0.15
    radius = CAMERA.focal * np.tan(np.arcsin(0.2 / 3.0))
    assert red.sum() == pytest.approx(np.pi * radius**2, rel=0.05)
    rows, columns = np.nonzero(red)
    assert (columns.mean() + 0.5, rows.mean() + 0.5) == pytest.approx((60, 50), abs=1)


def test_points_project_to_where_rays_see_them():
    """A point to the right and above lies right and up in the picture, by the ratio of its distances."""
    pixel = CAMERA.project(np.array([0.3, 0.0, 1.1]))
    assert pixel == pytest.approx([60 + 0.1 * CAMERA.focal, 50 - 0.1 / 3 * CAMERA.focal])


def test_the_top_of_the_ball_is_lit(image):
    """The side towards the lamp is brighter than the one away from it, and colours lie within 0 and 1."""
    assert image[45, 60, 0] > image[57, 60, 0] + 0.1
    assert image.min() >= 0.0 and image.max() <= 1.0


def test_the_ball_throws_a_shadow():
    """The floor is darker below the ball than beside its shadow."""
    model = mujoco.MjModel.from_xml_string(BALL)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    camera = Camera(position=(0.0, -1.5, 2.5), target=(0.0, 0.0, 0.0), width=60, height=60, light=(0.0, 0.0, 4.0))
    seen = cast_picture(model, data, camera)

    def brightness(point):
        column, row = camera.project(np.array(point)).astype(int)
        return seen[row, column].mean()

    assert brightness((0.0, -0.2, 0.0)) < brightness((0.4, -0.2, 0.0)) - 0.1
