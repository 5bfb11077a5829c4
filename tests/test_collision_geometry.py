"""What a model's collision geometry leaves out or approximates is said in words."""

from __future__ import annotations

import mujoco
import pytest
from contact_problem import BODIES, make

from residual_mbrl.physics.collision_geometry import describe_collisions

CORNER = "0 0 0  .2 0 0  .2 .1 0  .1 .1 0  .1 .2 0  0 .2 0  0 0 .1  .2 0 .1  .2 .1 .1  .1 .1 .1  .1 .2 .1  0 .2 .1"
"""An L-shaped prism: three quarters of the square, seven eighths of which its hull fills."""
CORNER_FACES = ("0 2 1  0 3 2  0 4 3  0 5 4  6 7 8  6 8 9  6 9 10  6 10 11  "
                "0 1 7  0 7 6  1 2 8  1 8 7  2 3 9  2 9 8  3 4 10  3 10 9  4 5 11  4 11 10  5 0 6  5 6 11")
TETRAHEDRON = "0 0 0  .1 0 0  0 .1 0  0 0 .1"


def with_mesh(mesh: str) -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(
        f"<mujoco><asset><mesh name='part' {mesh}/></asset><worldbody><geom type='plane' size='1 1 .1'/>"
        "<body name='part'><freejoint/><geom type='mesh' mesh='part'/></body></worldbody></mujoco>")


@pytest.mark.parametrize("body", BODIES)
def test_primitives_need_no_note(body: str) -> None:
    """Boxes, spheres and capsules touch as they are."""
    assert describe_collisions(make(body).model) == ()


def test_bodies_without_collision_geometry_are_named() -> None:
    """One without any geom, one whose geom is only to be seen; what is fixed to the world does not count."""
    model = mujoco.MjModel.from_xml_string(
        "<mujoco><worldbody><geom type='plane' size='1 1 .1'/><body name='fixed'/>"
        "<body name='ghost'><freejoint/><geom size='.1' contype='0' conaffinity='0'/></body>"
        "<body name='solid'><freejoint/><geom size='.1'/></body></worldbody></mujoco>")
    assert describe_collisions(model) == ("body 'ghost' has no collision geometry: it passes through everything",)


def test_meshes_that_are_not_convex_are_named() -> None:
    """With how much their hull adds: a sixth."""
    note, = describe_collisions(with_mesh(f"vertex='{CORNER}' face='{CORNER_FACES}'"))
    assert note == "mesh 'part' is not convex: it touches as its convex hull, which holds 17 % more than the mesh does"
    assert describe_collisions(with_mesh(f"vertex='{TETRAHEDRON}'")) == ()
