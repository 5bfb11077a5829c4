"""Rollouts and their linearisation."""

from __future__ import annotations

import pytest
import torch
from problems import EVERY_KIND_AND_SYSTEM, INTEGRATORS, SYSTEMS, random_actions, random_states, randomise, residual, system

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.rollouts import linearise, rollout


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("name", SYSTEMS)
def test_rollout_is_repeated_steps(name, integrator):
    """The first state comes first and every next one is a step: in torch to the last bit, fused to rounding."""
    baseline = system(name, friction=True, integrator=integrator)
    dynamics = ResidualDynamics(baseline)
    x, u = random_states(baseline, 2, 3), random_actions(baseline, 2, 3, 5)
    states, fused = rollout(dynamics, x, u, backend="torch"), rollout(dynamics, x, u)
    assert states.shape == fused.shape == (2, 3, 6, baseline.space.nx)
    assert torch.allclose(fused, states, rtol=1e-12, atol=1e-12)
    for t in range(5):
        x = dynamics.step(x, u[..., t, :])
        assert torch.equal(states[..., t + 1, :], x)


def test_batches_broadcast():
    """One first state meets many action sequences, and parameters bring their own batch."""
    baseline = system("pendulum")
    dynamics = ResidualDynamics(baseline)
    x, u = random_states(baseline), random_actions(baseline, 4, 5)
    mass = torch.tensor([[0.9], [1.1]], dtype=torch.float64)
    found = rollout(dynamics, x, u, {"inertia": mass})
    assert found.shape == (2, 4, 6, 2)
    assert torch.allclose(found[1, 2], rollout(dynamics, x, u[2], {"inertia": mass[1, 0]}))


def test_gradient_through_a_rollout():
    """By first state, actions and a parameter it is that of finite differences."""
    baseline = system("double_pendulum", friction=True)
    dynamics = ResidualDynamics(baseline, [randomise(residual("unstructured", baseline))])
    inputs = (random_states(baseline), random_actions(baseline, 4), torch.tensor(0.33, dtype=torch.float64))
    inputs = tuple(x.requires_grad_() for x in inputs)
    assert torch.autograd.gradcheck(lambda x, u, c: rollout(dynamics, x, u, {"coupling": c}), inputs, atol=1e-5)


@pytest.mark.parametrize(("kind", "name"), EVERY_KIND_AND_SYSTEM)
def test_linearisation_is_autograds(kind, name):
    """A and B of every step are reverse-mode Jacobians, memory included."""
    baseline = system(name, friction=True)
    dynamics = ResidualDynamics(baseline, [randomise(residual(kind, baseline), scale=0.5)])
    u = random_actions(baseline, 2, 3)
    with torch.no_grad():
        states = rollout(dynamics, random_states(baseline, 2) / 3, u)
    a, b = linearise(dynamics, states, u)
    assert (a.shape, b.shape) == ((2, 3, dynamics.space.ndx, dynamics.space.ndx), (2, 3, dynamics.space.ndx, baseline.space.nu))
    for t in range(3):
        wrt_x, wrt_u = torch.func.jacrev(dynamics.step, argnums=(0, 1))(states[1, t], u[1, t])
        assert torch.allclose(a[1, t], wrt_x, rtol=1e-9, atol=1e-9)
        assert torch.allclose(b[1, t], wrt_u, rtol=1e-9, atol=1e-9)


def test_linearisation_predicts_small_changes():
    """Chained along a trajectory it moves the last state as finite differences do."""
    baseline = system("cartpole")
    dynamics = ResidualDynamics(baseline)
    x, u = random_states(baseline) / 3, random_actions(baseline, 8)
    dx, du = 1e-6 * random_states(baseline, seed=8), 1e-6 * random_actions(baseline, 8, seed=9)
    states = rollout(dynamics, x, u)
    a, b = linearise(dynamics, states, u)
    change = dx
    for t in range(8):
        change = a[t] @ change + b[t] @ du[t]
    finite = (rollout(dynamics, x + dx, u + du)[-1] - rollout(dynamics, x - dx, u - du)[-1]) / 2
    assert torch.allclose(change, finite, rtol=1e-6, atol=1e-12)


def test_linearisation_takes_parameters_of_a_batch():
    """Each element is linearised at its own values."""
    dynamics = ResidualDynamics(system("pendulum"))
    states, u = torch.zeros(2, 4, 2, dtype=torch.float64), torch.zeros(2, 3, 1, dtype=torch.float64)
    values = torch.tensor([5.0, 20.0], dtype=torch.float64)
    a, _ = linearise(dynamics, states, u, {"gravity_moment": values})
    one, _ = linearise(dynamics, states[1], u[1], {"gravity_moment": values[1]})
    assert torch.allclose(a[1], one)
    assert not torch.allclose(a[0], one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_follows_the_state(dtype, device):
    """Nothing is promoted, on any device."""
    baseline = system("pendulum")
    x, u = random_states(baseline, 3, dtype=dtype).to(device), random_actions(baseline, 3, 4, dtype=dtype).to(device)
    dynamics = ResidualDynamics(baseline, [residual("actuator", baseline), residual("dry_friction", baseline)]).to(device)
    states = rollout(dynamics, x, u)
    linear = linearise(dynamics, states.detach(), u)
    assert {states.dtype, linear.A.dtype, linear.B.dtype} == {dtype}
    assert states.device.type == device.type


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("state", "actions", "message"), [
    (torch.zeros(3), torch.zeros(4, 1), r"state must have shape \[\*batch, 2\].*received \(3,\)"),
    (torch.zeros(2), torch.zeros(4, 2), r"actions must have shape \[\*batch, H, 1\] with H >= 1, received \(4, 2\)"),
    (torch.zeros(2), torch.zeros(0, 1), r"H >= 1, received \(0, 1\)"),
    (torch.zeros(2), torch.zeros(1), r"actions must have shape"),
    (torch.zeros(2), torch.zeros(4, 1).double(), "torch.float32 on cpu and torch.float64 on cpu"),
    (torch.tensor([0.0, float("nan")]), torch.zeros(4, 1), "state holds values that are not finite"),
    (torch.zeros(2), torch.full((4, 1), float("inf")), "actions holds values that are not finite"),
])
def test_wrong_input_is_refused(state, actions, message):
    """The message names the argument, what was received and what was expected."""
    with pytest.raises(ValueError, match=f"rollout: .*{message}"):
        rollout(ResidualDynamics(system("pendulum")), state, actions)


def test_unknown_parameters_are_named():
    """A typing error is not passed over; the message holds what there is."""
    x, u = torch.zeros(2), torch.zeros(4, 1)
    with pytest.raises(ValueError, match=r"rollout: Pendulum has no parameters \['inertai'\]; there are \[.*'inertia'.*\]"):
        rollout(ResidualDynamics(system("pendulum")), x, u, {"inertai": torch.tensor(1.0), "inertia": torch.tensor(1.0)})


@pytest.mark.parametrize(("batch", "value"), [((3,), (2,)), ((2, 3), (2, 1, 2))])
def test_parameters_that_do_not_fit_the_batch_are_named(batch, value):
    """With both shapes."""
    x, u = torch.zeros(2), torch.zeros(*batch, 4, 1)
    with pytest.raises(ValueError, match=rf"parameter 'inertia' must broadcast, received batch \({batch[0]},.*\({value[0]},"):
        rollout(ResidualDynamics(system("pendulum")), x, u, {"inertia": torch.ones(value)})


@pytest.mark.usefixtures("unchecked")
def test_state_and_actions_that_do_not_fit_are_named():
    """Three first states cannot take two sequences of actions."""
    with pytest.raises(ValueError, match=r"state and actions must broadcast, received batch \(3,\) and \(2,\)"):
        rollout(ResidualDynamics(system("pendulum")), torch.zeros(3, 2), torch.zeros(2, 4, 1))


@pytest.mark.parametrize("batch", [(), (5,)])
def test_live_additions_may_be_given(batch):
    """A damping matrix and a friction limit are no batches: they add to the baseline's own."""
    baseline = system("double_pendulum")
    x, u = random_states(baseline, *batch), random_actions(baseline, *batch, 6)
    damping = torch.tensor([[0.5, -0.2], [-0.2, 0.2]], dtype=torch.float64)
    found = rollout(ResidualDynamics(baseline), x, u, {"damping": damping, "frictionloss": torch.zeros(2, dtype=torch.float64)})
    joints = {"viscous1": torch.tensor(0.3, dtype=torch.float64), "viscous2": torch.tensor(0.2, dtype=torch.float64)}
    assert found.shape == (*batch, 7, 4)
    assert torch.allclose(found, rollout(ResidualDynamics(baseline), x, u, joints))
