"""Gradients of MuJoCo steps against centred differences of the engine's own steps, solved as far as it goes."""

from __future__ import annotations

import copy

import mujoco
import numpy as np
import pytest
from mujoco.batch import Batch

from residual_mbrl.errors import ModelError
from residual_mbrl.physics.mujoco_adjoint import StepAdjoint, expanded_fields, supported
from residual_mbrl.physics.mujoco_model import state_space
from residual_mbrl.physics.numeric_step import Inputs, difference_jacobian

INTEGRATORS = ("Euler", "implicitfast", "implicit", "RK4")
AXES = ("0 0 1", "0 1 0", "1 0 0", "0 1 0")
MOTORS = "".join(f'<motor joint="j{i}" ctrlrange="-1 1"/>' for i in range(4))
SPRUNG = 'damping=".1" range="-20 20" frictionloss=".2" armature=".02" stiffness="2"'


def arm(joint='damping=".1"', *, drives=MOTORS, also="", option=""):
    """Four hinges with no contacts."""
    bodies = "".join(f'<body name="b{i}" pos="0 0 .2"><joint name="j{i}" axis="{AXES[i]}" {joint}/><geom type="capsule" size=".03" '
                     f'mass="{1 - .2 * i}" fromto="0 0 0 .02 0 .2" contype="0" conaffinity="0"/><site name="s{i}" pos=".05 0 .1"/>'
                     for i in range(4)) + "</body>" * 4
    return (f'<mujoco><option timestep="0.004" {option}/><worldbody><site name="w" pos=".3 .2 .1"/>{bodies}</worldbody>{also}'
            f"<actuator>{drives}</actuator></mujoco>")


def cube(cone="elliptic", condim=3, geom="", option=""):
    """A box on the floor."""
    surface = f'condim="{condim}" friction="1 .02 .01"'
    return (f'<mujoco><option timestep="0.004" cone="{cone}" {option}/><worldbody><geom type="plane" size="5 5 .1" {surface}/>'
            f'<body pos="0 0 .06"><freejoint/><geom type="box" size=".05 .04 .03" mass=".37" {surface} {geom}/></body></worldbody>'
            "</mujoco>")


def quadruped(cone):
    """A trunk on four legs of three joints, with position drives."""
    legs = "".join(f'<body pos="{x} {y} 0"><joint name="a{k}" axis="1 0 0" damping=".5"/><joint name="b{k}" axis="0 1 0" damping=".5"/>'
                   f'<geom type="capsule" size=".02" fromto="0 0 0 0 0 -.15" mass=".5"/><body pos="0 0 -.15"><joint name="c{k}" '
                   'axis="0 1 0" damping=".5" range="-2 0"/><geom type="capsule" size=".02" fromto="0 0 0 0 0 -.15" mass=".2"/></body>'
                   "</body>"
                   for k, (x, y) in enumerate([(.2, .1), (.2, -.1), (-.2, .1), (-.2, -.1)]))
    drives = "".join(f'<position joint="{n}{k}" kp="20"/>' for k in range(4) for n in "abc")
    return (f'<mujoco><compiler angle="radian"/><option timestep="0.004" cone="{cone}"/><worldbody><geom type="plane" size="5 5 .1"/>'
            f'<body pos="0 0 .31"><freejoint/><geom type="box" size=".2 .1 .05" mass="6"/>{legs}</body></worldbody>'
            f"<actuator>{drives}</actuator></mujoco>")


FILTERS = ('<general joint="j0" dyntype="filter" dynprm=".05" gainprm="2"/>'
           '<general joint="j1" dyntype="filterexact" dynprm=".05" gainprm="2" actlimited="true" actrange="-.1 .1"/>'
           '<general joint="j2" dyntype="integrator" gainprm="2" biastype="affine" biasprm="0 -2 -.1"/>'
           '<general joint="j3" dyntype="filterexact" dynprm=".02" actearly="true" gaintype="affine" gainprm="1 .5 0"/>')
TENDON = ('<tendon><fixed name="t" damping=".3" stiffness="3" limited="true" range="-.2 .2" frictionloss=".1"><joint joint="j0" coef="1"/>'
          '<joint joint="j2" coef="-.7"/></fixed></tendon>')
ROPE = '<tendon><spatial name="t" damping=".3" stiffness="30" armature=".1"><site site="w"/><site site="s2"/></spatial></tendon>'
BALL = ('<mujoco><option timestep="0.004"/><worldbody><body pos="0 0 1"><joint type="ball" damping=".02" range="0 10"/><geom '
        'type="capsule" size=".05" fromto="0 0 0 .05 0 .3" mass="1"/><body pos="0 0 .3"><joint name="b" type="ball" stiffness="1"/>'
        '<geom type="box" size=".1 .05 .02" pos="0 0 .1" mass=".5" contype="0" conaffinity="0"/></body></body></worldbody>'
        '<actuator><motor joint="b" gear="1 .5 .2"/></actuator></mujoco>')
MODELS = {
    "arm with limits, dry friction, armature and springs": arm(SPRUNG),
    "light wrist on a heavy arm": arm('damping=".001" frictionloss=".01"', drives=MOTORS.replace("motor", 'motor gear=".01"')).replace(
        'mass="1.0"', 'mass="20"').replace(f'mass="{1 - .2 * 3}"', 'mass=".003"'),
    "arm without damping": arm("frictionloss='.2'"),
    "joint limits of actuator forces": arm('damping=".1" actuatorfrcrange="-.3 .3"', drives=MOTORS.replace("motor", 'motor gear=".5"')),
    "actuator limits": arm(drives="".join(f'<position joint="j{i}" kp="1" kv=".2" forcerange="-.6 .6"/>' for i in range(4))),
    "filters": arm(drives=FILTERS),
    "filters beside a free box": arm(drives=FILTERS).replace(
        "</worldbody>", '<body pos="2 0 1"><freejoint/><geom type="box" size=".1 .05 .02"/></body></worldbody>'),
    "gains that depend on velocity": arm(drives='<general joint="j1" gaintype="affine" gainprm="1 .5 .3"/>' + MOTORS),
    "joint equality": arm(also='<equality><joint joint1="j0" joint2="j2" polycoef=".1 .5 .3 0 0"/></equality>'),
    "connect": arm(also='<equality><connect body1="b3" anchor="0 0 .2"/></equality>'),
    "weld": arm(also='<equality><weld body1="b3" solref=".1 1"/></equality>'),
    "tendon": arm(also=TENDON, drives='<motor tendon="t" gear="2"/>' + MOTORS),
    "spatial tendon": arm(also=ROPE, drives='<position tendon="t" kp="5"/>' + MOTORS),
    "site force": arm(drives='<motor site="s3" gear="1 0 0 0 1 0"/>' + MOTORS),
    "muscles": arm('damping=".1" range="-90 90"', drives="".join(f'<muscle joint="j{i}" lengthrange="-2 2"/>' for i in range(4))),
    "damping of higher order": arm('damping=".1 .05 .02"'),
    "damping by actuators": arm(drives=MOTORS.replace("motor", 'general damping=".2"')),
    "drag": arm(option='density="1000" viscosity=".1"'),
    "ball joints": BALL,
    "cube, pyramidal": cube("pyramidal"),
    "cube, elliptic": cube("elliptic"),
    "cube, frictionless": cube(condim=1),
    "cube, torsion and rolling": cube(condim=6),
    "cube, adhesion": cube(geom='adhesion="3" margin=".01"'),
    "cube, another solver": cube(option='solver="PGS"'),
    "quadruped, pyramidal": quadruped("pyramidal"),
    "quadruped, elliptic": quadruped("elliptic"),
}


def compiled(xml, integrator="Euler"):
    model = mujoco.MjModel.from_xml_string(xml)
    model.opt.integrator = getattr(mujoco.mjtIntegrator, f"mjINT_{integrator.upper()}")
    return model


def visited(model, count=5, seed=0):
    """Inputs that the model comes to in its own motion from random ones."""
    rng, data, rows = np.random.default_rng(seed), mujoco.MjData(model), []
    for _ in range(count):
        mujoco.mj_resetData(model, data)
        mujoco.mj_integratePos(model, data.qpos, (0.4 if model.nq == model.nv else 0.12) * rng.normal(size=model.nv), 1.0)
        free = int(model.jnt_type[0]) == int(mujoco.mjtJoint.mjJNT_FREE)
        if free:
            data.qpos[2] = model.qpos0[2] - 0.02  # low and slow enough for contacts
        data.qvel[:] = (0.1 if free else 0.7) * rng.normal(size=model.nv)
        data.act[:] = 0.15 * rng.random(size=model.na)
        for _ in range(40 if model.nv == 18 else 10):
            data.ctrl[:] = 0.3 * rng.normal(size=model.nu)
            mujoco.mj_step(model, data)
        rows.append((np.concatenate([data.qpos, data.qvel, data.act]), 0.6 * rng.normal(size=model.nu), 0.1 * rng.normal(size=model.nv)))
    state, action, force = (np.array(x) for x in zip(*rows, strict=True))
    return Inputs(state=state, action=action, force=force)


def stepper(model, fields=None, substeps=1):
    """The engine's own steps, solved to rounding and from nothing."""
    exact = copy.copy(model)
    exact.opt.tolerance, exact.opt.iterations, exact.opt.ls_iterations = 1e-16, 100, 50
    exact.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON

    def advance(inputs):
        batch = Batch(exact, len(inputs.state))
        for name, values in (fields or {}).items():
            batch.expand(name)[...] = np.tile(values, (len(inputs.state) // len(values), *[1] * (values.ndim - 1)))
        places = np.cumsum([model.nq, model.nv])
        for name, x in zip(("qpos", "qvel", "act"), np.split(inputs.state, places, 1), strict=True):
            if x.size:
                batch.bind(name)[...] = x
        if model.nu:
            batch.ctrl[...] = inputs.action
        batch.qfrc_applied[...] = inputs.force
        batch.step(nstep=substeps)
        return np.concatenate([batch.qpos, batch.qvel, batch.bind("act").reshape(len(inputs.state), -1)], 1)

    return advance


def worst(found, expected):
    """Largest error of a world's Jacobian relative to that Jacobian."""
    size = np.linalg.norm(expected, axis=(1, 2))
    return (np.linalg.norm(found - expected, axis=(1, 2)) / np.maximum(size, 1e-6)).max()


def names(model):
    return ("state", "action", "force") if model.nu else ("state", "force")


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("name", MODELS)
def test_jacobian_is_that_of_differences(name, integrator):
    """With respect to state, action and force, to 1e-5 of each block."""
    model = compiled(MODELS[name], integrator)
    inputs = visited(model)
    expected = difference_jacobian(stepper(model), state_space(model), inputs, names(model))
    found = StepAdjoint(model).jacobian(inputs, names(model))
    assert {n: x.shape for n, x in found.items()} == {n: x.shape for n, x in expected.items()}
    assert {n: worst(found[n], expected[n]) for n in found if not worst(found[n], expected[n]) < 1e-5} == {}


@pytest.mark.parametrize("integrator", ["Euler", "RK4"])
@pytest.mark.parametrize("name", ["filters", "filters beside a free box", "muscles", "quadruped, elliptic", "arm without damping"])
def test_pull_back_is_the_jacobians_transpose(name, integrator):
    """For each of the inputs alone as well as for all together, however many worlds there are."""
    model = compiled(MODELS[name], integrator)
    inputs, adjoint = visited(model, count=3), StepAdjoint(model)
    inputs = Inputs(**{n: np.tile(getattr(inputs, n), (100, 1)) for n in ("state", "action", "force")})
    cotangent = np.random.default_rng(1).normal(size=(300, 2 * model.nv + model.na))
    jacobian = adjoint.jacobian(inputs, names(model))
    together = adjoint.pull_back(inputs, cotangent, names(model))
    for n in names(model):
        expected = np.einsum("nik,ni->nk", jacobian[n], cotangent)
        for found in (getattr(together, n), getattr(adjoint.pull_back(inputs, cotangent, {n}), n)):
            np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-7 * np.abs(expected).max())


def test_moves_of_positions_are_not_lost_in_rounding():
    """The arm's weight beside the wrist's inertia: moves of 1e-9 to one side are 2e-6 off here, and 5e-4 on a UR5e."""
    model = compiled(MODELS["light wrist on a heavy arm"])
    inputs = visited(model)
    expected = difference_jacobian(stepper(model), state_space(model), inputs, ("state",))
    assert worst(StepAdjoint(model).jacobian(inputs, ("state",))["state"], expected["state"]) < 3e-7


def test_agrees_with_the_engines_own_differences():
    """mjd_transitionFD, centred, on the quadruped in contact."""
    model = compiled(quadruped("pyramidal"))
    model.opt.tolerance, model.opt.iterations = 1e-14, 100
    inputs = visited(model, count=3)
    found = StepAdjoint(model).jacobian(inputs, ("state", "action"))
    for k in range(3):
        data, a, b = mujoco.MjData(model), np.zeros((36, 36)), np.zeros((36, 12))
        data.qpos[:], data.qvel[:] = np.split(inputs.state[k], [model.nq])
        data.ctrl[:], data.qfrc_applied[:] = inputs.action[k], inputs.force[k]
        mujoco.mjd_transitionFD(model, data, 1e-6, True, a, b, None, None)
        assert worst(found["state"][k : k + 1], a[None]) < 1e-5
        assert worst(found["action"][k : k + 1], b[None]) < 1e-5


@pytest.mark.parametrize("integrator", ["Euler", "RK4"])
@pytest.mark.parametrize("name", ["filters", "quadruped, pyramidal"])
def test_substeps_are_chained(name, integrator):
    """The Jacobian and its transpose of four steps, the action and force of which are held."""
    model = compiled(MODELS[name], integrator)
    inputs, adjoint = visited(model), StepAdjoint(model)
    expected = difference_jacobian(stepper(model, substeps=4), state_space(model), inputs, names(model))
    found = adjoint.jacobian(inputs, names(model), substeps=4)
    cotangent = np.random.default_rng(1).normal(size=(5, 2 * model.nv + model.na))
    product = adjoint.pull_back(inputs, cotangent, {"action"}, substeps=4)
    assert max(worst(found[n], expected[n]) for n in found) < 1e-5
    assert product.state is None
    np.testing.assert_allclose(product.action, np.einsum("nik,ni->nk", found["action"], cotangent), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["ball joints", "filters beside a free box"])
def test_fast_rotations(name):
    """A rotation of order one in a single step of Runge and Kutta's: its stages' rotation vectors do not commute."""
    model = compiled(MODELS[name], "RK4")
    model.opt.timestep = 0.05
    inputs, space = visited(model), state_space(model)
    state, fast = inputs.state.copy(), space.nq + np.arange(space.nv - 3, space.nv)
    state[:, fast] += np.random.default_rng(2).normal(0.0, 8.0, (5, 3))
    inputs = Inputs(state=state, action=inputs.action, force=inputs.force)
    expected = difference_jacobian(stepper(model), space, inputs, names(model))
    assert max(worst(x, expected[n]) for n, x in StepAdjoint(model).jacobian(inputs, names(model)).items()) < 1e-5


@pytest.mark.parametrize("integrator", ["Euler", "RK4"])
@pytest.mark.parametrize("joint", ["", 'damping=".1"'])
def test_fields_that_vary_between_worlds(joint, integrator):
    """Each world has its own damping, none in some, mass, friction and gains; the derived constants follow."""
    model = compiled(arm(joint), integrator)
    inputs, rng = visited(model), np.random.default_rng(0)
    batch = Batch(model, 5)
    batch.expand("dof_damping")[...] = np.array([0.0, 0.1, 0.5, 0.0, 1.0])[:, None]
    batch.expand("body_mass")[...] *= rng.uniform(0.5, 2.0, (5, 1))
    batch.expand("dof_frictionloss")[...] = rng.uniform(0.0, 0.3, (5, 4))
    batch.expand("actuator_gainprm")[...] *= rng.uniform(0.5, 2.0, (5, 1, 1))
    batch.set_const()
    fields = expanded_fields(batch)
    assert {"dof_damping", "body_mass", "dof_invweight0"} <= set(fields)
    expected = difference_jacobian(stepper(model, fields), state_space(model), inputs, names(model))
    adjoint = StepAdjoint(model)
    assert max(worst(x, expected[n]) for n, x in adjoint.jacobian(inputs, names(model), fields=fields).items()) < 1e-5
    batch.expand("body_mass")[...] *= 1.5
    batch.set_const()  # what expanded_fields returned is live
    expected = difference_jacobian(stepper(model, fields), state_space(model), inputs, names(model))
    assert max(worst(x, expected[n]) for n, x in adjoint.jacobian(inputs, names(model), fields=fields).items()) < 1e-5
    plain = difference_jacobian(stepper(model), state_space(model), inputs, names(model))
    assert max(worst(x, plain[n]) for n, x in adjoint.jacobian(inputs, names(model)).items()) < 1e-5


@pytest.mark.parametrize("integrator", ["Euler", "RK4"])
def test_a_world_that_is_not_finite_hurts_no_other(integrator):
    """It has NaN for a gradient."""
    model = compiled(MODELS["quadruped, pyramidal"], integrator)
    inputs, adjoint = visited(model), StepAdjoint(model)
    state = inputs.state.copy()
    state[2, 3] = np.nan
    broken = Inputs(state=state, action=inputs.action, force=inputs.force)
    expected, found = (adjoint.jacobian(i, ("state", "force")) for i in (inputs, broken))
    others = [0, 1, 3, 4]
    assert all(np.isnan(x[2]).all() and np.array_equal(x[others], expected[n][others]) for n, x in found.items())


@pytest.mark.parametrize(("xml", "reason"), [
    (arm(drives='<general joint="j0" dyntype="user" actdim="1"/>', option='integrator="RK4"'), "RK4"),
    (arm(option='integrator="discrete"'), "DISCRETE"),
    (cube(option='noslip_iterations="3"'), "noslip"),
    (cube().replace('elliptic" ', 'elliptic"><flag sleep="enable"/></option><option '), "sleeping"),
    (arm(drives='<motor joint="j0" delay=".01" nsample="5"/>'), "delays"),
])
def test_what_stands_against_it_is_named(xml, reason):
    """By ``supported``, and by the error of the constructor."""
    model = mujoco.MjModel.from_xml_string(xml)
    assert reason in (supported(model) or "")
    with pytest.raises(ModelError, match=reason):
        StepAdjoint(model)
