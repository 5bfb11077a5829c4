"""Gradients of MuJoCo steps by what contacts are made of, and next to their switches, against centred differences."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest
import torch
from contact_problem import BODIES, commands, near_floor
from mujoco_problems import BOXES, start
from test_mujoco_adjoint import compiled, quadruped, stepper, visited

from residual_mbrl.physics.mujoco_adjoint import StepAdjoint, contact_fields
from residual_mbrl.physics.mujoco_model import state_space
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator
from residual_mbrl.physics.numeric_step import Inputs, difference_jacobian

CONES = ("pyramidal", "elliptic")
_BOX = """<mujoco><option timestep="0.004" cone="{cone}" impratio="3"/><worldbody>
<geom name="floor" type="plane" size="5 5 .1" condim="{dim}" friction=".4 .02 .01" solimp=".8 .95 .002 .4 3" {floor}/>
<body pos="0 0 .06"><freejoint/><geom name="box" type="box" size=".05 .04 .03" mass=".37" condim="{dim}" friction=".5 .01 .02"
 solref="{solref}" solmix="2" margin=".0005" {box}/></body></worldbody>{more}</mujoco>"""


def box(cone, dim=6, *, floor="", solref=".03 .8", box="", more=""):
    return _BOX.format(cone=cone, dim=dim, floor=floor, solref=solref, box=box, more=more)


_PAIR = ('<contact><pair geom1="floor" geom2="box" condim="6" friction=".4 .6 .02 .01 .03" solref=".03 .8" solimp=".8 .95 .002 .4 3" '
         'solreffriction=".05 1.2"/></contact>')
MODELS = {
    **{f"{dim} dimensions": lambda cone, dim=dim: box(cone, dim) for dim in (1, 3, 4, 6)},
    "stiffness and damping": lambda cone: box(cone, solref="-900 -40"),
    "a higher priority": lambda cone: box(cone, floor='priority="1"'),
    "an explicit pair": lambda cone: box(cone, more=_PAIR),
    "adhesion": lambda cone: box(cone, box='adhesion="3"'),
    "quadruped": quadruped,
}
CASES = [(name, cone, "Euler") for name in MODELS for cone in CONES] + [("4 dimensions", c, i) for c in CONES for i in ("RK4", "implicit")]


def by_fields(model: mujoco.MjModel, inputs: Inputs, names: list[str]) -> dict[str, np.ndarray]:
    """Centred differences of steps by every number of some model fields."""
    space, count, found = state_space(model), len(inputs.state), {}
    for name in names:
        base = getattr(model, name)
        columns = []
        for k in range(base.size):
            h = 1e-6 * max(abs(base.flat[k]), 1e-2)
            after = []
            for side in (h, -h):
                values = np.tile(base, (count, *[1] * base.ndim))
                values.reshape(count, -1)[:, k] += side
                after.append(torch.from_numpy(stepper(model, {name: values})(inputs)))
            columns.append(space.difference(*after).numpy() / (2 * h))
        found[name] = np.stack(columns, -1)
    return found


@pytest.mark.parametrize(("name", "cone", "integrator"), CASES)
def test_contact_parameters(name, cone, integrator):
    """Jacobian and product by friction, solref, solimp and margin of geoms or pairs are those of differences."""
    model = compiled(MODELS[name](cone), integrator)
    inputs, adjoint = visited(model, count=4), StepAdjoint(model)
    names = sorted(n for n in contact_fields(model) if n.startswith("pair" if model.npair else "geom"))
    expected = by_fields(model, inputs, names)
    found = adjoint.jacobian(inputs, names)
    cotangent = np.random.default_rng(1).normal(size=(4, 2 * model.nv))
    product = adjoint.pull_back(inputs, cotangent, names)
    for n in names:
        size = max(np.abs(expected[n]).max(), 1e-4)
        tolerance = 1e-5 if integrator != "RK4" else 1e-4  # a row may switch within one of its stages' moves
        assert np.abs(found[n] - expected[n]).max() < tolerance * size, n
        own = np.einsum("nik,ni->nk", expected[n], cotangent)
        assert np.abs(product.values[n].reshape(4, -1) - own).max() < 10 * tolerance * size, n
    assert any(np.abs(x).max() > 0.1 for x in expected.values())


@pytest.mark.parametrize("cone", CONES)
@pytest.mark.parametrize("body", BODIES)
def test_random_contact_states(body, cone):
    """The product by state and force agrees to 1e-3 wherever differences of two step sizes agree to a fifth of that: 60 states."""
    simulator = MujocoSimulator(BODIES[body].format(cone=cone, dt=0.002))
    model, space = simulator.model, simulator.space
    inputs = Inputs(state=near_floor(simulator, body, 60).numpy(), action=commands(simulator, 60).numpy(), force=np.zeros((60, model.nv)))
    cotangent = np.random.default_rng(1).normal(size=(60, space.ndx))
    wanted = ("state", "force")
    found = StepAdjoint(model).pull_back(inputs, cotangent, wanted)
    coarse, fine = (difference_jacobian(stepper(model), space, inputs, wanted, step=h) for h in (1e-7, 2.5e-8))
    switch, wrong = np.zeros(60, bool), np.zeros(60, bool)
    for name, received in (("state", found.state), ("force", found.force)):
        one, other = (np.einsum("nik,ni->nk", j[name], cotangent) for j in (coarse, fine))
        size = np.linalg.norm(other, axis=1)
        switch |= np.linalg.norm(one - other, axis=1) > 2e-4 * size
        wrong |= np.linalg.norm(received - other, axis=1) > 1e-3 * size
    assert switch.sum() < 6
    assert not (wrong & ~switch).any()


def closest(model: mujoco.MjModel, state: np.ndarray, push: np.ndarray) -> tuple[float, int]:
    """Acceleration by which the row nearest to acting is away from it, and how many act."""
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:], data.qfrc_applied[:] = state[: model.nq], state[model.nq :], push
    mujoco.mj_forward(model, data)
    jar = data.efc_J.reshape(data.nefc, model.nv) @ data.qacc - data.efc_aref
    return float(np.abs(jar).min()), int((jar < 0).sum())


def test_a_row_that_all_but_switches():
    """1e-7 m/s² from its kink a row is held as it acts: the gradient is that further off on the same side."""
    model = compiled(box("pyramidal", 3))
    model.opt.tolerance, model.opt.iterations = 1e-16, 100
    state = visited(model, count=1).state[0]
    push = np.array([0.0, 0.0, 6.0, 0.3, 0.2, 0.0])
    low, high = 0.0, 1.0
    acting = closest(model, state, 0 * push)[1]
    assert closest(model, state, push)[1] != acting
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if closest(model, state, middle * push)[1] == acting else (low, middle)
    near, far = low - 1e-9, low - 1e-4
    assert closest(model, state, near * push)[0] < 1e-6
    inputs = Inputs(state=np.stack([state] * 2), action=np.zeros((2, 0)), force=np.stack([near * push, far * push]))
    found = StepAdjoint(model).jacobian(inputs, {"state", "force"})
    for x in found.values():
        assert np.linalg.norm(x[0] - x[1]) < 1e-3 * np.linalg.norm(x[1])


def test_velocity_alone_is_that_part_of_the_state():
    """Where it is exact, and where it is moved."""
    for drag in ("", ' density="1000" viscosity=".1"'):
        model = compiled(quadruped("pyramidal").replace('timestep="0.004"', f'timestep="0.004"{drag}'))
        inputs, adjoint, nv = visited(model, count=3), StepAdjoint(model), model.nv
        cotangent = np.random.default_rng(1).normal(size=(3, 2 * nv))
        whole = adjoint.pull_back(inputs, cotangent, {"state"}).state[:, nv:]
        alone = adjoint.pull_back(inputs, cotangent, {"velocity", "force"}).values["velocity"]
        np.testing.assert_allclose(alone, whole, rtol=0, atol=1e-8 * np.abs(whole).max())


NAMES = ("friction:box.slide", "friction:ball.roll", "solref:floor.timeconst", "solimp:box.dmin", "geom_margin[1]", "mass:box")


def test_parameter_port():
    """Named numbers of contacts have exact gradients, others differences; step and Jacobian say the same."""
    simulator = MujocoSimulator(BOXES, NAMES)
    assert [simulator.gradient_method(n) for n in NAMES] == ["exact adjoint"] * 5 + ["centred differences"]
    x, u = start(simulator, 4, spread=0.03), torch.zeros(4, 0, dtype=torch.float64)
    x[:, 2] -= 0.005
    given = {n: torch.full((4,), simulator.parameters[n].nominal * 1.1 + 1e-3, dtype=torch.float64, requires_grad=True) for n in NAMES}
    weights = torch.randn(simulator.space.ndx, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    loss = (simulator.space.difference(simulator.step(x, u, None, given), x) @ weights).sum()
    by_port = dict(zip(NAMES, torch.autograd.grad(loss, list(given.values())), strict=True))
    jacobian = simulator.jacobian(x, u, None, {n: v.detach() for n, v in given.items()}).parameters
    for name, value in given.items():
        after = [simulator.step(x, u, None, {**given, name: value + h}) for h in (1e-6, -1e-6)]
        slope = simulator.space.difference(*after).detach() / 2e-6
        torch.testing.assert_close(jacobian[name], slope, rtol=1e-4, atol=1e-4 * float(slope.abs().max()) + 1e-7)
        torch.testing.assert_close(by_port[name], slope @ weights, rtol=1e-3, atol=1e-3 * float(slope.abs().max()) + 1e-6)


@pytest.mark.parametrize("flag", ["override", "diagexact"])
def test_what_hides_contact_parameters(flag):
    """Where the engine takes other numbers, or other inertias, these are differences again."""
    simulator = MujocoSimulator(BOXES.replace("<worldbody>", f'<option><flag {flag}="enable"/></option><worldbody>', 1), NAMES[:1])
    assert simulator.gradient_method(NAMES[0]) == "centred differences"
    assert simulator.gradient_method("state") == "exact adjoint"
