"""Contacts of a MuJoCo baseline as tensors, against the engine in C."""

from __future__ import annotations

import logging

import mujoco
import numpy as np
import pytest
import torch
from contact_problem import BODIES, CONES, CUBE, commands, engine, make, near_floor

from residual_mbrl.errors import ModelError
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator
from residual_mbrl.physics.pendulum import Pendulum

EACH = pytest.mark.parametrize("cone", CONES), pytest.mark.parametrize("body", BODIES)


def each(test):
    for mark in EACH:
        test = mark(test)
    return test


@each
def test_contacts_are_the_engines(body: str, cone: str) -> None:
    """Distance, point, frame, friction and geoms as in d.contact; forces as mj_contactForce gives them."""
    simulator, count, touched = make(body, cone), 40, 0
    state, action = near_floor(simulator, body, count), commands(simulator, count)
    found = simulator.contacts(state, action, most=24)
    for i in range(count):
        data = engine(simulator, state[i], action[i])
        rows = np.argsort(data.contact.dist, kind="stable")
        touched += len(rows)
        n = len(rows)
        assert int(found.present[i].sum()) == n and not found.present[i, n:].any()
        for name, theirs in (("gap", data.contact.dist), ("position", data.contact.pos), ("frame", data.contact.frame.reshape(-1, 3, 3)),
                             ("geoms", data.contact.geom)):
            np.testing.assert_array_equal(getattr(found, name)[i, :n].numpy(), theirs[rows])
        wrench = np.zeros(6)
        for j, row in enumerate(rows.tolist()):
            mujoco.mj_contactForce(simulator.model, data, row, wrench)
            np.testing.assert_allclose(found.force[i, j], wrench[:3], rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(found.torque[i, j], wrench[3:], rtol=1e-9, atol=1e-9)
            used = int(data.contact.dim[row]) - 1
            np.testing.assert_array_equal(found.friction[i, j, :used], data.contact.friction[row, :used])
            assert not found.friction[i, j, used:].any()
    assert touched > 20


@each
def test_forces_through_the_jacobian_are_the_engines(body: str, cone: str) -> None:
    """Σ Jᵀ f of all contacts, with spin and rolling, is what the engine's contact rows put on the joints."""
    simulator, count, checked = make(body, cone), 60, 0
    state, action = near_floor(simulator, body, count), commands(simulator, count)
    found = simulator.contacts(state, action, most=24)
    ours = found.generalised(found.force).numpy()
    model, nv = simulator.model, simulator.space.nv
    for i in range(count):
        data = engine(simulator, state[i], action[i])
        if not data.nefc:
            continue
        on_contact = data.efc_type >= int(mujoco.mjtConstraint.mjCNSTR_CONTACT_FRICTIONLESS)
        theirs = data.efc_J.reshape(data.nefc, nv)[on_contact].T @ data.efc_force[on_contact]
        for j in range(data.ncon):  # torques are no part of λ: their share is taken off
            slot, rotation = np.flatnonzero(np.argsort(data.contact.dist, kind="stable") == j)[0], np.zeros((2, 3, nv))
            for side in (0, 1):
                mujoco.mj_jac(model, data, None, rotation[side], data.contact.pos[j], model.geom_bodyid[data.contact.geom[j, side]])
            theirs = theirs - (found.frame[i, slot].numpy() @ (rotation[1] - rotation[0])).T @ found.torque[i, slot].numpy()
        np.testing.assert_allclose(ours[i], theirs, rtol=1e-8, atol=1e-8 * (1 + np.abs(theirs).max()))
        checked += 1
    assert checked > 20


@pytest.mark.parametrize("body", BODIES)
def test_normal_row_is_the_slope_of_the_gap(body: str) -> None:
    """Moved a little along any direction, the gap changes by the normal row of J, before touch too."""
    simulator, step, checked = make(body), 1e-6, 0
    state, action = near_floor(simulator, body, 60), commands(simulator, 60)
    reach, space = 0.02, simulator.space
    at = simulator.contacts(state, action, most=24, reach=reach)
    generator = torch.Generator().manual_seed(3)
    move = torch.zeros(60, space.ndx, dtype=torch.float64)
    move[:, : space.nv] = torch.randn(60, space.nv, generator=generator, dtype=torch.float64)
    ahead, behind = (simulator.contacts(space.integrate(state, s * step * move), action, most=24, reach=reach) for s in (1, -1))
    predicted = torch.einsum("nkv,nv->nk", at.jacobian[:, :, 0], move[:, : space.nv])
    assert (at.gap[at.present] > 0).any() and (at.gap[at.present] < 0).any()
    for i in range(60):
        for j in range(24):
            place = at.position[i, j]
            # the same contact in both: same geoms, nearest point; corners that come or go in between are none
            near = [torch.where(c.present[i] & (c.geoms[i] == at.geoms[i, j]).all(-1), (c.position[i] - place).norm(dim=-1), torch.inf)
                    for c in (ahead, behind)]
            if not at.present[i, j] or max(float(x.min()) for x in near) > 1e-4:
                continue
            slope = (ahead.gap[i, near[0].argmin()] - behind.gap[i, near[1].argmin()]) / (2 * step)
            if at.frame[i, j, 0, 2].abs() > 0.999:  # on the floor: the normal does not turn
                assert abs(float(slope - predicted[i, j])) < 1e-4
                checked += 1
    assert checked > 40


@pytest.mark.parametrize("body", BODIES)
def test_velocity_and_response(body: str) -> None:
    """The rows are J v and J M⁻¹."""
    simulator = make(body)
    state, action = near_floor(simulator, body, 30), commands(simulator, 30)
    found = simulator.contacts(state, action, most=24)
    q, v, _ = simulator.space.split(state)
    torch.testing.assert_close(found.velocity, torch.einsum("nkiv,nv->nki", found.jacobian, v), rtol=0, atol=1e-12)
    product = found.response @ simulator.mass_matrix(q, {})[:, None]
    torch.testing.assert_close(product, found.jacobian, rtol=0, atol=1e-9)
    answers = found.answers()
    torch.testing.assert_close(answers, answers.mT, rtol=0, atol=1e-9 * float(answers.abs().max()))


def test_reach_changes_no_force() -> None:
    """Pairs that are seen before they touch carry no force, and those that touch the same."""
    simulator = make("quadruped")
    state, action = near_floor(simulator, "quadruped", 50), commands(simulator, 50)
    far, near = simulator.contacts(state, action, most=32, reach=0.05), simulator.contacts(state, action, most=32)
    assert int(far.present.sum()) > int(near.present.sum())
    assert not far.force[far.gap > 0].any()
    torch.testing.assert_close(far.generalised(far.force), near.generalised(near.force), rtol=0, atol=1e-9)


def test_contacts_beyond_the_maximum_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    """The deepest stay, the others are counted and logged once for each new worst."""
    simulator = make("cube")
    state = near_floor(simulator, "cube", 1)
    state[:, :7] = torch.tensor([0, 0, 0.049, 1, 0.002, 0.001, 0], dtype=torch.float64)
    action = commands(simulator, 1)
    whole = simulator.contacts(state, action, most=8)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            some = simulator.contacts(state, action, most=3)
    assert whole.missed.tolist() == [0] and some.missed.tolist() == [1] and simulator.most_missed == 1
    torch.testing.assert_close(some.gap, whole.gap[:, :3])
    assert len(caplog.records) == 1 and "1 contacts more than the 3" in caplog.text


def test_parameters_and_force_of_each_world() -> None:
    """Each world has its own friction; a force on the port changes the contact forces as in the engine."""
    simulator = MujocoSimulator(CUBE.format(cone="elliptic", dt=0.002), ["friction:*.slide"])
    state = near_floor(simulator, "cube", 2, speed=0.0)
    state[:, :7] = torch.tensor([0, 0, 0.0495, 1, 0, 0, 0], dtype=torch.float64)
    action = commands(simulator, 2)
    mu = {"friction:cube.slide": torch.tensor([0.2, 1.7], dtype=torch.float64), "friction:floor.slide": torch.tensor(0.1).double()}
    found = simulator.contacts(state, action, mu, most=8)
    torch.testing.assert_close(found.friction[:, 0, 0], mu["friction:cube.slide"])
    nominal = simulator.contacts(state, action, most=8)
    assert float(nominal.friction[0, 0, 0]) == 1.0  # the larger of the two geoms'
    push = torch.zeros(2, 6, dtype=torch.float64)
    push[:, 2] = -5.0
    pushed = simulator.contacts(state, action, most=8, force=push)
    assert (pushed.force[..., 0].sum(-1) > nominal.force[..., 0].sum(-1) + 1).all()


def test_additions_of_one_call_do_not_stay() -> None:
    """A look with added damping leaves the next one as it was."""
    simulator = make("two_link")
    state, action = near_floor(simulator, "two_link", 4), commands(simulator, 4)
    before = simulator.contacts(state, action, most=8).force
    simulator.contacts(state[:3], action[:3], {"dof_damping": torch.ones(3, 7, dtype=torch.float64)}, most=8)
    torch.testing.assert_close(simulator.contacts(state, action, most=8).force, before)


def test_looking_leaves_steps_alone() -> None:
    """A step gives the same with and without a look before it, to the last bit."""
    simulator, other = make("quadruped"), make("quadruped")
    state, action = near_floor(simulator, "quadruped", 4), commands(simulator, 4)
    x, y = state, state
    for _ in range(5):
        simulator.contacts(x, action, most=8)
        x, y = simulator.step(x, action), other.step(y, action)
    assert torch.equal(x, y)


def test_shapes_and_dtype_follow_the_state() -> None:
    """Any batch shape, float32 where the state is; a world that is not finite has no contacts."""
    simulator = make("cube")
    state = near_floor(simulator, "cube", 6).reshape(2, 3, -1)
    state[1, 2] = torch.nan
    found = simulator.contacts(state.float(), commands(simulator, 1)[0].float(), most=5)
    assert found.jacobian.shape == (2, 3, 5, 3, 6) and found.jacobian.dtype == torch.float32
    assert found.missed.shape == (2, 3) and not found.present[1, 2].any()
    assert found.pair(0, 0, 0) == "floor/floor" or found.pair(0, 0, 0) == "floor/cube"


@pytest.mark.parametrize(("xml", "words"), [
    ("<body><freejoint/><geom size='.1' contype='0' conaffinity='0'/></body>", "can touch anything"),
    ("<flexcomp type='grid' count='3 3 1' spacing='.1 .1 .1' dim='2' name='f'/>", "flexes"),
])
def test_models_without_describable_contacts_are_refused(xml: str, words: str) -> None:
    """Nothing that collides, or what touches by vertices."""
    simulator = MujocoSimulator(f"<mujoco><worldbody>{xml}</worldbody></mujoco>")
    state = torch.zeros(simulator.space.nx, dtype=torch.float64)
    with pytest.raises(ModelError, match=words):
        simulator.contacts(state, state[:0], most=4)


def test_adhesion_forbids_a_reach() -> None:
    """The engine shares an adhesion actuator's force by the contacts in the gap."""
    pull = "<actuator><adhesion body='cube' ctrlrange='0 1'/></actuator></mujoco>"
    simulator = MujocoSimulator(CUBE.format(cone="elliptic", dt=0.002).replace("</mujoco>", pull))
    state, action = near_floor(simulator, "cube", 2), torch.ones(2, 1, dtype=torch.float64)
    simulator.contacts(state, action, most=4)
    with pytest.raises(ModelError, match="adhesion"):
        simulator.contacts(state, action, most=4, reach=0.01)


def test_baselines_without_contacts_say_so() -> None:
    """Equations of one's own know of none."""
    x = torch.zeros(2, dtype=torch.float64)
    with pytest.raises(ModelError, match="does not know its contacts"):
        Pendulum().contacts(x, x[:1], most=1)
    with pytest.raises(ValueError, match="most >= 1"):
        make("cube").contacts(near_floor(make("cube"), "cube", 1), commands(make("cube"), 1), most=0)
