"""Contacts of one's own systems of spheres, boxes and planes, against MuJoCo's of the same scene."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from residual_mbrl.contacts import Contacts
from residual_mbrl.physics.contact_shapes import (
    Plane,
    corners_on_plane,
    describe,
    free_body,
    sphere_on_plane,
    sphere_on_sphere,
)
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator
from residual_mbrl.physics.rotations import rotate

SCENE = """<mujoco><option cone="elliptic"/><worldbody><geom name="floor" type="plane" size="5 5 .1" friction=".1"/>
<body pos="0 0 1"><freejoint/><geom name="box" type="box" size=".05 .08 .11" mass=".4" friction=".6" condim="3"/></body>
<body pos="1 0 1"><freejoint/><geom name="ball" size=".1" mass=".5" friction=".5"/></body>
<body pos="2 0 1"><freejoint/><geom name="other" size=".07" mass=".2" friction=".4"/></body></worldbody></mujoco>"""
NAMES = ("floor", "box", "ball", "other")
HALF, RADII = (0.05, 0.08, 0.11), (0.1, 0.07)


def rotation_matrix(q: Tensor) -> Tensor:
    """From the body's frame to the world."""
    return rotate(q.unsqueeze(-2), torch.eye(3, dtype=q.dtype)).mT


def scene(count: int, seed: int = 0) -> tuple[MujocoSimulator, Tensor]:
    """A box and a ball near the floor, turned any way, and another ball near the first one."""
    simulator, generator = MujocoSimulator(SCENE), torch.Generator().manual_seed(seed)
    space, draw = simulator.space, lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    state = torch.zeros(count, space.nx, dtype=torch.float64)
    state[:, : space.nq] = torch.from_numpy(simulator.model.qpos0)
    state = space.integrate(state, torch.cat([0.3 * draw(count, 18), draw(count, 18)], -1))
    state[:, 0], state[:, 2] = -1.0, 0.1 + 0.04 * draw(count).abs()
    state[:, 7:9], state[:, 9] = 0.0, 0.1 + 0.01 * draw(count)
    away = draw(count, 3)
    away[:, 2] = away[:, 2].abs() + 1.0
    state[:, 14:17] = state[:, 7:10] + away / away.norm(dim=-1, keepdim=True) * (0.17 + 0.01 * draw(count, 1))
    return simulator, state


def ours(simulator: MujocoSimulator, state: Tensor, *, most: int = 8, reach: float = 0.0, half: Tensor | None = None) -> Contacts:
    """The same scene in torch; masses from the engine."""
    space = simulator.space
    q, v, _ = space.split(state)
    places = [(q[..., i : i + 3], rotation_matrix(q[..., i + 3 : i + 7])) for i in (0, 7, 14)]
    (box, turned), (ball, _), (other, _) = places
    moves = [free_body(*place, first, space.nv) for place, first in zip(places, (0, 6, 12), strict=True)]
    floor = Plane(state.new_zeros(3), state.new_tensor([0.0, 0.0, 1.0]))
    mu = [state.new_tensor([x, x, 0.005, 0.0001, 0.0001]) * state.new_tensor([1, 1, 0, 0, 0]) for x in (0.6, 0.5)]

    def made(touching, second, first, geoms, friction):
        return type(touching)(**{**vars(touching.moving(second, first)), "geoms": geoms, "friction": friction})

    half = state.new_tensor(HALF) if half is None else half
    found = [made(corners_on_plane(floor, box, turned, half), moves[0], None, (0, 1), mu[0]),
             made(sphere_on_plane(floor, ball, RADII[0]), moves[1], None, (0, 2), mu[1]),
             made(sphere_on_plane(floor, other, RADII[1]), moves[2], None, (0, 3), mu[1]),
             made(sphere_on_sphere(ball, RADII[0], other, RADII[1]), moves[2], moves[1], (2, 3), mu[1])]
    return describe(found, v, simulator.mass_matrix(q.detach(), {}), names=NAMES, most=most, reach=reach)


@pytest.mark.parametrize("reach", [0.0, 0.01])
def test_they_are_mujocos(reach: float) -> None:
    """Gap, point, frame, Jacobian, response, velocity, friction and geoms, before touch too."""
    simulator, state = scene(200)
    theirs, found = simulator.contacts(state, state[:, :0], most=8, reach=reach), ours(simulator, state, reach=reach)
    # MuJoCo keeps four of a box's corners: compare where no more are near
    few = (found.present & (found.geoms[..., 1] == 1)).sum(-1) <= 4
    assert int(few.sum()) > 100 and int(found.present[few].sum()) > 200
    assert {tuple(g) for g in found.geoms[found.present].tolist()} >= {(0, 1), (0, 2), (2, 3)}
    for name in ("present", "gap", "position", "frame", "jacobian", "response", "velocity", "friction", "geoms"):
        torch.testing.assert_close(getattr(found, name)[few], getattr(theirs, name)[few], rtol=1e-9, atol=1e-9, msg=name)
    assert found.missed[few].equal(theirs.missed[few])
    assert found.names == NAMES


def test_gap_has_the_jacobian_for_a_slope() -> None:
    """By autograd the gap's derivative along a move of the state is the normal row of J; by a box's size it is that of the corner."""
    simulator, state = scene(50)
    move = torch.zeros(simulator.space.ndx, dtype=torch.float64, requires_grad=True)
    half = torch.tensor(HALF, dtype=torch.float64, requires_grad=True)
    found = ours(simulator, simulator.space.integrate(state, move), reach=0.02, half=half)
    for i, j in found.present.nonzero()[:40].tolist():
        by_move, by_half = torch.autograd.grad(found.gap[i, j], [move, half], retain_graph=True)
        torch.testing.assert_close(by_move[: simulator.space.nv], found.jacobian[i, j, 0].detach(), rtol=0, atol=1e-9)
        assert (float(by_half.abs().max()) > 0) == (int(found.geoms[i, j, 1]) == 1)


def test_what_does_not_fit_is_counted() -> None:
    """The nearest stay."""
    simulator, state = scene(100)
    whole, one = ours(simulator, state, most=12), ours(simulator, state, most=1)
    assert one.missed.equal((whole.present.sum(-1) - 1).clamp_min(0))
    torch.testing.assert_close(one.gap, whole.gap[:, :1])


@pytest.mark.usefixtures("unchecked")
def test_bad_use_is_refused() -> None:
    """No Jacobian, no room, nothing at all."""
    x = torch.zeros(3, dtype=torch.float64)
    bare = sphere_on_plane(Plane(x, torch.tensor([0.0, 0.0, 1.0]).double()), x, 0.1)
    for touching, most in (([bare], 4), ([bare.moving(lambda p: p.new_zeros(*p.shape, 2))], 0), ([], 4)):
        with pytest.raises(ValueError, match="expected contacts with a Jacobian"):
            describe(touching, x[:2], torch.eye(2, dtype=torch.float64), names=("a", "b"), most=most)
