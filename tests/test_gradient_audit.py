"""The gradient audit finds planted defects where they are, and none where there are none."""

from __future__ import annotations

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from planted_defects import (
    Ball,
    BetweenSlopes,
    DeadContact,
    DeadMujocoContact,
    DeadWeight,
    LongRolloutDrops,
    NotFiniteWeightBelow,
    Overflow,
    Push,
    SquareRootDrag,
    WrongSign,
    WrongWeightBelow,
)
from problems import KINDS, random_actions, random_states, randomise, residual, system

import residual_mbrl
from residual_mbrl import gradient_audit
from residual_mbrl.audit import AuditOptions
from residual_mbrl.audit_result import FindingKind
from residual_mbrl.dynamics import ResidualDynamics, ensemble
from residual_mbrl.physics.black_box import BlackBox
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator
from residual_mbrl.rollouts import rollout
from residual_mbrl.spaces import StateSpace

FALL = torch.tensor([[0.1, 0.0], [0.5, -0.2], [2.0, 1.0]], dtype=torch.float64)
"""Three balls; the first two reach the floor within 20 steps of 20 ms, the third does not."""
THRUST = torch.zeros(20, 1, dtype=torch.float64)


def audit(baseline, residuals=(), state=FALL, actions=THRUST, **options):
    return gradient_audit(ResidualDynamics(baseline, residuals), state, actions, AuditOptions(**options))


def first_below(world: int) -> int:
    """The first step that starts below the floor, from the states themselves."""
    state, step = FALL[world], 0
    while state[0] >= 0:
        state, step = Ball().step(state, THRUST[0]), step + 1
    return step


def test_sound_ball_passes():
    """Free flight, impact and rest on the floor."""
    found = audit(Ball())
    assert found.ok, str(found)
    assert found.worst_error < 1e-4
    assert found.horizon_cut == 20
    assert found.growth.shape == (3, 20)


def test_dead_contact_is_found_by_world_step_and_contact():
    """Only in the worlds and from the steps in which there is contact."""
    found = audit(DeadContact())
    assert not found.ok
    assert {(f.kind, f.world, f.step, f.input, f.output) for f in found.findings} == {
        (FindingKind.DEAD, (w,), first_below(w), "height", "speed") for w in (0, 1)}
    finding = found.findings[0]
    assert finding.contacts == ("floor/ball",)
    assert finding.expected == pytest.approx(-0.02 * 400.0, rel=1e-4)
    assert finding.received == 0.0
    assert "dead: world 0, step" in str(found)
    assert "floor/ball" in str(found)


def test_not_a_number_is_found_at_its_step():
    """The ball starts at rest, where the root has no slope."""
    found = audit(SquareRootDrag(), state=FALL[0])
    assert [(f.kind, f.world, f.step, f.input) for f in found.findings] == [(FindingKind.NOT_FINITE, (), 0, "speed")]


def test_wrong_sign_is_found_in_the_action():
    """At every step, minus what it should be."""
    found = audit(WrongSign())
    assert {(f.kind, f.world, f.step, f.input) for f in found.findings} == {(FindingKind.WRONG, (w,), 0, "thrust") for w in range(3)}
    finding = found.findings[0]
    assert finding.steps == tuple(range(20))
    assert finding.received == pytest.approx(-finding.expected, rel=1e-6)


def test_stiff_blow_up_is_found_with_a_horizon():
    """A floor too stiff for the step: changes grow about a hundredfold each step that starts below it."""
    baseline = Ball(nominal={"stiffness": 2e5})
    found = audit(baseline, state=torch.tensor([-0.001, 0.0], dtype=torch.float64), actions=THRUST[:5], explosion=1e2)
    kinds = {f.kind for f in found.findings}
    assert kinds == {FindingKind.EXPLODING}
    (finding,) = found.findings
    assert found.horizon_cut == finding.step < 5
    assert finding.received > finding.expected
    assert f"suggested horizon: {finding.step} of 5 steps" in str(found)


def test_explicit_euler_of_a_stiff_spring_explodes():
    """A linear system whose growth is known: the horizon is where its power passes the threshold."""
    space = StateSpace(position=("x",), velocity=("v",), action=("u",))
    black = BlackBox(lambda x, u: x * 3.0 + u, space, 0.01)
    found = gradient_audit(ResidualDynamics(black), torch.ones(2, dtype=torch.float64), torch.zeros(30, 1, dtype=torch.float64))
    assert [f.kind for f in found.findings] == [FindingKind.EXPLODING]
    assert 3.0**found.horizon_cut <= 3e4 < 3.0 ** (found.horizon_cut + 1)
    assert found.rate == pytest.approx(3.0, rel=1e-6)


def test_state_that_is_lost_is_found():
    """The step after which a state is infinite; the audit goes on with the steps before it and the other worlds."""
    found = audit(Overflow(), state=torch.where(torch.arange(3)[:, None] == 2, torch.tensor([2.0, 4.0]), FALL))
    lost = [f for f in found.findings if f.note == "the state itself"]
    assert [(f.kind, f.world, f.output) for f in lost] == [(FindingKind.NOT_FINITE, (w,), "height") for w in (0, 1)]
    assert {f.world for f in found.findings} == {(0,), (1,)}
    assert found.horizon.tolist() == [lost[0].step, lost[1].step, 20]
    assert len(found.findings) == 2


def test_rollout_that_drops_a_gradient_is_found():
    """By itself each step is right; the chain of steps tells which action lost its gradient."""
    found = audit(LongRolloutDrops())
    assert {(f.kind, f.world, f.step, f.input) for f in found.findings} == {(FindingKind.DEAD, (w,), 3, "thrust") for w in range(3)}
    assert "by itself every step is right" in str(found)


def test_dead_weight_is_found():
    """By the name of its tensor; the other weight is right."""
    assert audit(Ball(), [Push()]).ok
    found = audit(Ball(), [DeadWeight()])
    assert [(f.kind, f.input) for f in found.findings] == [(FindingKind.DEAD, "residuals.0.weight")]


@pytest.mark.parametrize(("kind", "verdict"), [(WrongWeightBelow, FindingKind.WRONG), (NotFiniteWeightBelow, FindingKind.NOT_FINITE)])
def test_wrong_weight_is_found_by_world_and_step(kind, verdict):
    """Where the first ball is below the floor."""
    found = audit(Ball(), [kind()])
    (finding,) = [f for f in found.findings if f.input == "residuals.0.weight"]
    assert (finding.kind, finding.world, finding.step, finding.contacts) == (verdict, (0,), first_below(0), ("floor/ball",))


def test_rollout_that_drops_weights_is_found(monkeypatch):
    """By itself each step is right, so only the whole rollout shows it; the tensor is named."""
    def lossy(dynamics, state, actions, parameters, *, backend):
        weight = dynamics.residuals[0].weight
        weight.requires_grad_(actions.shape[-2] == 1)
        try:
            return rollout(dynamics, state, actions, parameters, backend=backend)
        finally:
            weight.requires_grad_(True)

    monkeypatch.setattr("residual_mbrl.audit_inputs.rollout", lossy)
    found = audit(Ball(), [Push()], state=FALL[2], directions=2)
    assert [(f.kind, f.world, f.input) for f in found.findings] == [(FindingKind.DEAD, (), "residuals.0.weight")]
    assert "in the rollout to step 9 alone" in str(found)


CART = """
<mujoco><option timestep="0.01"/><worldbody>
  <body name="cart"><joint name="slide" type="slide" axis="1 0 0"/><geom name="cart" type="box" size=".1 .1 .05" mass="1"/>
    <body name="pole"><joint name="hinge" axis="0 1 0" damping=".01"/>
      <geom name="pole" type="capsule" size=".02" fromto="0 0 0 0 0 -.5" mass=".1"/></body></body>
</worldbody><actuator><motor name="push" joint="slide"/></actuator></mujoco>"""
BOX = """
<mujoco><option timestep="0.005" cone="elliptic"/><worldbody>
  <geom name="floor" type="plane" size="5 5 .1"/>
  <body name="box" pos="0 0 .1"><freejoint name="box"/><geom name="box" type="box" size=".1 .1 .1"/></body>
</worldbody></mujoco>"""


def test_mujoco_cart_pole_passes():
    """Exact adjoint by state and action, differences by a mass."""
    found = audit(MujocoSimulator(CART, ["mass:pole"]), state=torch.tensor([[0.0, 0.5, 0.1, -0.3]], dtype=torch.float64),
                  actions=torch.ones(1, 15, 1, dtype=torch.float64))
    assert found.ok, str(found)
    assert found.undecided == 0


def box_state() -> torch.Tensor:
    """A box that slides and tips on an edge of its bottom: a quaternion, in contact."""
    space = MujocoSimulator(BOX).space
    state = torch.tensor([0, 0, 0.099, 1, 0, 0, 0, 0.4, 0.1, 0, 0, 0, 0.2], dtype=torch.float64)
    return space.integrate(state, torch.tensor([0, 0, 0, 0.003, 0.002, 0.3, *[0.0] * 6], dtype=torch.float64))


def test_mujoco_box_in_contact_passes():
    """On the tangent space of a free joint, sliding on the floor."""
    simulator = MujocoSimulator(BOX)
    found = audit(simulator, state=box_state(), actions=torch.zeros(10, 0, dtype=torch.float64))
    assert found.ok, str(found)
    assert simulator.describe_contacts(box_state()) == ("floor/box",)


def test_dead_mujoco_contact_names_the_geoms():
    """And how the gradient was taken."""
    found = audit(DeadMujocoContact(BOX), state=box_state(), actions=torch.zeros(10, 0, dtype=torch.float64))
    (finding,) = found.findings
    assert (finding.kind, finding.step, finding.input) == (FindingKind.DEAD, 0, "box.z")
    assert finding.contacts == ("floor/box",)
    assert finding.method == "exact adjoint"


def test_dead_rotation_is_named_on_the_tangent_space():
    """A quaternion's derivative is that of a rotation about a body axis."""
    simulator = DeadMujocoContact(BOX)
    simulator.dead = 4
    found = audit(simulator, state=box_state(), actions=torch.zeros(4, 0, dtype=torch.float64))
    assert [(f.kind, f.step, f.input) for f in found.findings] == [(FindingKind.DEAD, 0, "box.qy (rotation)")]


@pytest.mark.parametrize(("kind", "dtype"), [*((k, torch.float64) for k in KINDS), ("dry_friction", torch.float32),
                                             ("conservative", torch.float32)])
def test_cart_pole_with_every_residual_passes(kind, dtype):
    """With friction, random weights, and memory where a residual has it."""
    baseline = system("cartpole", friction=True)
    found = audit(baseline, [randomise(residual(kind, baseline), scale=0.5)], random_states(baseline, 2, dtype=dtype) / 3,
                  random_actions(baseline, 2, 12, dtype=dtype), directions=2)
    assert found.ok, str(found)
    assert found.undecided < 0.02 * found.checks


@pytest.mark.parametrize("torque", [0.0, 0.2, 0.4, 0.6])
def test_dry_friction_passes(torque):
    """A pendulum that sticks, at its break-away torque of 0.4 N·m itself, and slips."""
    found = audit(system("pendulum", friction=True), state=torch.zeros(2, dtype=torch.float64),
                  actions=torch.full((10, 1), torque, dtype=torch.float64))
    assert found.ok, str(found)


def test_switch_is_no_defect():
    """A gradient between the slopes of a kink, where differences disagree among themselves, is told apart from a defect."""
    found = audit(BetweenSlopes(), state=torch.zeros(2, dtype=torch.float64), actions=THRUST[:1])
    assert found.ok, str(found)
    assert [(f.kind, f.input, f.step) for f in found.switches] == [(FindingKind.SWITCH, "height", 0)]
    assert found.undecided > 0


def float32_box(perturbation: float) -> BlackBox:
    """A spring that a simulator computes in float32."""
    def step(x, u):
        x, u = x.astype("float32"), u.astype("float32")
        v = x[1:] + (0.1 * (u - 4 * x[:1] ** 3)).astype("float32")
        return np.concatenate([x[:1] + (0.1 * v).astype("float32"), v]).astype(float)

    return BlackBox(step, StateSpace(position=("q",), velocity=("v",), action=("u",)), 0.1, perturbation=perturbation)


def test_float32_simulator_is_seen():
    """Differences are then larger by themselves: one with a fit perturbation passes, one with too small a perturbation does not."""
    x, u = torch.tensor([0.5, 0.2], dtype=torch.float64), torch.zeros(10, 1, dtype=torch.float64)
    fit, small = (audit(float32_box(h), state=x, actions=u) for h in (1e-2, 1e-7))
    assert fit.ok, str(fit)
    assert not small.ok


def test_black_box_passes():
    """Its gradients are differences themselves, but with another step."""
    space = StateSpace(position=("q",), velocity=("v",), action=("u",))
    box = BlackBox(lambda x, u: [x[0] + 0.1 * x[1], x[1] + 0.1 * (u[0] - 4 * x[0] ** 3)], space, 0.1)
    found = audit(box, state=torch.tensor([0.5, 0.2], dtype=torch.float64), actions=torch.zeros(10, 1, dtype=torch.float64))
    assert found.ok, str(found)


def test_ensemble_passes():
    """Members are the first dimension of weights and states."""
    baseline = system("pendulum", friction=True)
    members = [ResidualDynamics(baseline, [randomise(residual("unstructured", baseline), seed=i)]) for i in range(3)]
    found = gradient_audit(ensemble(members), random_states(baseline, 3, 2), random_actions(baseline, 3, 2, 6))
    assert found.ok, str(found)
    assert found.growth.shape == (3, 2, 6)


@given(seed=st.integers(0, 10**6))
@hypothesis_settings(max_examples=6)
def test_no_false_alarm(seed):
    """Whatever the first state, the thrusts and the directions are; the dead contact is found exactly where there is contact."""
    generator = torch.Generator().manual_seed(seed)
    state = 0.3 * torch.randn(4, 2, generator=generator, dtype=torch.float64)
    actions = 20 * torch.randn(4, 8, 1, generator=generator, dtype=torch.float64)
    assert audit(Ball(), [Push()], state, actions, seed=seed, directions=1).ok
    dead = audit(DeadContact(), (), state, actions, seed=seed, directions=1)
    states = [state]
    for action in actions.unbind(-2):
        states.append(Ball().step(states[-1], action))
    below = torch.stack(states, -2)[:, :-1, 0] < 0
    assert {(f.world[0], *f.steps) for f in dead.findings if f.kind is FindingKind.DEAD} == {
        (w, *below[w].nonzero().flatten().tolist()) for w in range(4) if below[w].any()}


@pytest.mark.parametrize("kind", [DeadWeight, Push])
def test_model_is_left_as_it_is(kind):
    """Weights, their gradients, dtype and requires_grad, also without grad mode and of a float32 model."""
    dynamics = ResidualDynamics(Ball(), [kind()]).float()
    dynamics.residuals[0].bias.requires_grad_(False)
    before = copy.deepcopy(dynamics.state_dict())
    with torch.no_grad():
        gradient_audit(dynamics, FALL.float(), THRUST.float(), AuditOptions(directions=2))
    after = dynamics.state_dict()
    assert all(torch.equal(before[n], after[n]) and before[n].dtype == after[n].dtype == torch.float32 for n in before)
    assert [w.requires_grad for w in dynamics.parameters()] == [True, False]
    assert all(w.grad is None for w in dynamics.parameters())


def test_same_seed_same_audit():
    """And another seed the same verdict by other directions."""
    first, again, other = (audit(Ball(), [Push()], seed=s, directions=1) for s in (3, 3, 4))
    assert str(first) == str(again)
    assert first.worst_error == again.worst_error
    assert other.ok


def test_global_generator_is_left_alone():
    """Random numbers of the caller stay what they would be."""
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    audit(Ball(), [Push()], directions=1)
    assert torch.equal(torch.rand(3), expected)


def test_fused_gradient_is_audited_in_float32():
    """The kernel's gradient against float64 torch."""
    baseline = system("pendulum", friction=True)
    found = audit(baseline, (), random_states(baseline, 2, dtype=torch.float32), random_actions(baseline, 2, 20, dtype=torch.float32),
                  backend="fused")
    assert found.ok, str(found)
    assert "fused backend in float32" in str(found)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("state", "actions", "message"), [
    (torch.zeros(3), torch.zeros(4, 1), r"state must have shape \[\*batch, 2\].*received \(3,\)"),
    (torch.zeros(2), torch.zeros(4, 2), r"actions must have shape \[\*batch, H, 1\].*received \(4, 2\)"),
    (torch.zeros(2).half(), torch.zeros(4, 1).half(), "state must be float64 or float32, received torch.float16"),
    (torch.zeros(2), torch.zeros(4, 1).double(), "torch.float32 on cpu and torch.float64 on cpu"),
])
def test_wrong_input_is_refused(state, actions, message):
    """The message names the argument, what was received and what was expected."""
    with pytest.raises(ValueError, match=message):
        gradient_audit(ResidualDynamics(Ball()), state, actions)


@pytest.mark.usefixtures("unchecked")
def test_wrong_options_are_refused():
    """Numbers that are not positive are named."""
    with pytest.raises(ValueError, match=r"AuditOptions: expected positive numbers, received .*'step': 0"):
        AuditOptions(step=0.0)
    with pytest.raises(ValueError, match="backend must be one of"):
        audit(Ball(), backend="jax")
    with pytest.raises(ValueError, match="cannot be fused"):
        audit(Ball(), state=FALL.float(), actions=THRUST.float(), backend="fused")


def test_package_offers_it_by_name():
    """And nothing else; importing the package alone imports nothing heavy."""
    command = "import sys, residual_mbrl; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0
    assert residual_mbrl.gradient_audit is gradient_audit
    with pytest.raises(AttributeError, match="no attribute 'gradient_audti'"):
        _ = residual_mbrl.gradient_audti
