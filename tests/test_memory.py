"""Residuals that remember: their Warp form against torch, what fades, what is promised, and contexts that know the past alone."""

import copy
import math

import pytest
import torch
from fused_problem import F32, F64, assert_agrees_at
from problems import randomise
from quadrotor_problem import NAMES, quadrotor, random_flight

from residual_mbrl.disturbance import PastContext, innovations, past_means, starting_state
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.errors import ModelError
from residual_mbrl.physics.cartpole import CartPole
from residual_mbrl.residuals import Feature, MemoryForce, MemoryRate
from residual_mbrl.rollouts import rollout

SEEN = [Feature(source="body_velocity"), Feature(source="wx"), Feature(source="gravity_direction")]
CONTEXT = 5


def memory(kind=MemoryForce, *, seed=0, **changes):
    """A residual of a quadrotor with random weights."""
    options = {"nv": 6, "nu": 4, "features": SEEN, "sizes": [3, 1, 3], "scale": [0.1] * 3 + [1e-3] * 3, "context": CONTEXT, "dt": 0.01,
               "lags": (0, 2, 6), "fading": (0.05, 0.4), "hidden": (8,), "body_frame": True, "seed": seed}
    return randomise(kind(**{**options, **changes}), scale=0.3)


def both():
    """A quadrotor with a force and a rate that remember."""
    return ResidualDynamics(quadrotor(), [memory(), memory(MemoryRate, seed=1, lags=(0,), fading=(0.4,), scale=[0.2] * 3 + [0.1] * 3)])


def past(batch=5, seed=3):
    """Commands before a rollout and a context."""
    g = torch.Generator().manual_seed(seed)
    return 1.5 + 0.2 * torch.randn(batch, 6, 4, generator=g, dtype=F64), torch.randn(batch, CONTEXT, generator=g, dtype=F64)


@pytest.mark.parametrize("dtype", [F32, F64])
def test_the_fused_rollout_is_that_of_torch(dtype):
    """States and every gradient, of weights, times of fading and of what starts the memory, in body frames on SE(3)."""
    dynamics = both()
    x, u, _, p = random_flight(5)
    x[:, 10:13] *= 0.2
    state = starting_state(dynamics, x, *past())
    change = 0.2 * torch.randn(5, 6, 4, generator=torch.Generator().manual_seed(5), dtype=F64)
    assert_agrees_at(dynamics, state.detach(), u.unsqueeze(1) + change, dict(zip(NAMES, p.unbind(-1), strict=True)), dtype)


def test_gradients_reach_what_starts_the_traces():
    """Fused and in torch alike, encoder and linear map included."""
    x, u, _, _ = random_flight(5)
    actions, found = u.unsqueeze(1).expand(-1, 8, -1), []
    for backend in ("torch", "fused"):
        dynamics = both()
        rollout(dynamics, starting_state(dynamics, x, *past()), actions, backend=backend).square().sum().backward()
        found.append({n: w.grad for n, w in dynamics.named_parameters()})
    for name, expected in found[0].items():
        assert bool(expected.any()), name
        assert torch.allclose(found[1][name], expected, rtol=1e-7, atol=1e-9 * float(expected.abs().max())), name


def test_a_lone_trace_fades_exponentially():
    """With no network, the force of the j-th step is the first one times e^(-j dt/τ)."""
    residual = memory(fading=(0.05,), lags=(0,), body_frame=False)
    with torch.no_grad():
        for w in residual.network.parameters():
            w.zero_()
        residual.raw_fading.fill_(math.log(0.05))
    dynamics = ResidualDynamics(quadrotor(), [residual])
    x, u, _, _ = random_flight(2)
    lead, context = past(2)
    states = rollout(dynamics, starting_state(dynamics, x, lead, context), u.unsqueeze(1).expand(-1, 10, -1), backend="torch")
    traces = states[..., 17:].detach()
    expected = residual.recall(context).detach().unsqueeze(1) * torch.exp(-0.01 / 0.05 * torch.arange(11, dtype=F64))[:, None]
    assert torch.allclose(traces, expected, rtol=1e-12)
    force = dynamics.correction(states[:, 4], u).force
    assert torch.allclose(force, expected[:, 4] * torch.tensor(residual.scale, dtype=F64))


def test_past_commands_are_those_of_the_lead_and_then_of_the_rollout():
    """A command of six steps ago is what the network sees six steps later."""
    residual = memory(lags=(6,), context=0, fading=())
    dynamics = ResidualDynamics(quadrotor(), [residual])
    x, u, _, _ = random_flight(2)
    lead, _ = past(2)
    actions = torch.arange(10, dtype=F64)[None, :, None].expand(2, 10, 4) / 10 + 1
    states = rollout(dynamics, starting_state(dynamics, x, lead), actions, backend="torch")
    oldest = states[..., 17 + 20 : 17 + 24]
    assert torch.equal(oldest[:, :6], lead) and torch.equal(oldest[:, 6:10], actions[:, :4])
    assert torch.equal(rollout(dynamics, x, actions, lead=lead, backend="torch"), states)


@pytest.mark.parametrize("kind", [MemoryForce, MemoryRate])
@pytest.mark.parametrize("size", [1.0, 1e3])
def test_the_bound_holds_for_any_weights(kind, size):
    """Random and huge weights keep the certificate."""
    residual = randomise(memory(kind), scale=size)
    dynamics = ResidualDynamics(quadrotor(), [residual])
    x, u, _, _ = random_flight(20)
    lead, context = past(20)
    assert all(c.holds for c in dynamics.certificates(starting_state(dynamics, x, lead, 1e3 * context), u))


def test_a_residual_may_look_at_the_first_numbers_of_a_context():
    """Those that follow leave its traces as they are."""
    residual = memory(context=2)
    lead, context = past()
    assert torch.equal(residual.starting_memory(lead, context), residual.starting_memory(lead, context[:, :2]))


def test_it_rebuilds_from_its_description():
    """Constructor arguments and weights say everything."""
    one = memory()
    plain = {k: v for k, v in one.describe().items() if k != "features"}
    other = MemoryForce(features=SEEN, **plain)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    lead, context = past()
    assert torch.equal(one.starting_memory(lead, context), other.starting_memory(lead, context))


def test_bad_arguments_are_named():
    """Each complaint says what was expected."""
    with pytest.raises(ValueError, match="6 scales, none negative"):
        memory(scale=[0.1])
    with pytest.raises(ValueError, match="positive times of fading"):
        memory(fading=())
    with pytest.raises(ValueError, match="longest lag is 6"):
        memory().starting_memory(past()[0][:, :3])
    with pytest.raises(ValueError, match="expected a context"):
        memory().recall(torch.zeros(2, 3))
    with pytest.raises(ModelError, match="no free body"):
        ResidualDynamics(CartPole(), [MemoryForce(nv=2, nu=1, features=[Feature(source="velocity")], sizes=[2], scale=[1.0, 1.0], context=0,
                                                  fading=(), dt=0.02, body_frame=True)])


def test_innovations_of_the_true_model_are_zero_and_show_a_force():
    """What a rollout did is what one step predicts; a held force shows as its acceleration, a moved frame as a velocity."""
    dynamics = ResidualDynamics(quadrotor())
    x, u, _, _ = random_flight(3)
    actions = u.unsqueeze(1).expand(-1, 6, -1)
    states = rollout(dynamics, x, actions)
    assert float(innovations(dynamics, states, actions).abs().max()) < 1e-9
    states[..., :3] += 0.01 * torch.arange(7, dtype=F64)[:, None] * 0.5
    found = innovations(dynamics, states, actions)
    assert torch.allclose(found[..., :3], torch.full_like(found[..., :3], 0.5), atol=1e-9)


def test_past_means_know_rows_below_alone():
    """Entry i is the sum of the L rows before i over L."""
    values = torch.arange(1.0, 7.0, dtype=F64)[:, None]
    found = past_means(values, (1, 3))
    assert found[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert torch.allclose(found[:, 1], torch.tensor([0, 1, 3, 6, 9, 12, 15], dtype=F64) / 3)
    with pytest.raises(ValueError, match="at least one row"):
        past_means(values, (0,))


def test_a_context_does_not_know_the_future():
    """Rows after i, and commands after it, leave the context of row i as it is."""
    dynamics = ResidualDynamics(quadrotor())
    x, u, _, _ = random_flight(40, seed=8)
    context = PastContext(lengths=(4, 10), signals=("body_velocity",), velocities=("wx",), change=2, body_frame=True)
    whole = context.of_log(dynamics, x, u)
    x2, u2 = x.clone(), u.clone()
    x2[21:] += 1.0
    u2[21:] += 1.0
    assert torch.equal(context.of_log(dynamics, x2, u2)[:21], whole[:21])
    assert not torch.equal(context.of_log(dynamics, x2, u2)[21], whole[21])
