"""A learned contact force keeps the laws of contact for any weights, and trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from contact_problem import BODIES, CONES, commands, make, near_floor, randomise, seen
from torch import Tensor

from residual_mbrl.contacts import Contacts
from residual_mbrl.dynamics import ResidualDynamics, ensemble
from residual_mbrl.errors import ModelError
from residual_mbrl.physics.pendulum import Pendulum
from residual_mbrl.residuals import ContactForce, Context
from residual_mbrl.rollouts import linearise, rollout

LAWS = ("adhesion", "force at a gap", "excess over the friction cone", "excess over the friction cone after the solve",
        "power of friction", "energy given by the impulse")
SIZES = (0.1, 1.0, 10.0, 1e3)
KINDS = pytest.mark.parametrize("kind", [{"cone": "total"}, {"cone": "total", "friction": 1.4}, {"cone": "own"}])


def context(body: str, residual: ContactForce, count: int, cone: str = "elliptic", seed: int = 0) -> Context:
    """Random states, those of an engine that sees pairs up to 2 cm before they touch."""
    simulator = make(body, cone)
    state, action = near_floor(simulator, body, count, seed), commands(simulator, count)

    def under(force: Tensor | None) -> Contacts:
        return simulator.contacts(state, action, most=residual.most_contacts, reach=0.02, force=force)

    return replace(seen(simulator, residual, state, action), contacts=under(None), contacts_under=under)


def single(x: Context) -> Context:
    """The same in float32."""
    assert x.contacts is not None and x.contacts_under is not None
    like, under = x.state.float(), x.contacts_under
    return replace(x, state=like, contacts=x.contacts.reshaped(like.shape[:1], like),
                   contacts_under=lambda force: under(force).reshaped(like.shape[:1], like))


def assert_lawful(residual: ContactForce, x: Context) -> None:
    """Below 1e-6 in float64, 1e-4 of the size of what takes part in float32; and the certificates hold."""
    with torch.no_grad():
        found = residual.violations(x)
    assert [quantity for quantity, _ in found] == list(LAWS)
    for (quantity, unit), (excess, scale) in found.items():
        assert bool(torch.isfinite(excess).all())
        limit = 1e-6 if excess.dtype == torch.float64 else 1e-4 * float(scale.max())
        assert float(excess.max()) <= limit, f"{quantity}: {float(excess.max())} {unit}"
    for certificate in residual.certificates(x, Pendulum()):
        assert certificate.holds, certificate
        assert certificate.samples == len(x.state)


def ascend(residual: ContactForce, x: Context, law: str, steps: int) -> None:
    """Move the weights up the gradient of what would break a law."""
    climber = torch.optim.Adam(residual.parameters(), lr=0.5)
    for _ in range(steps):
        climber.zero_grad()
        excess = {name: found for (name, _), (found, _) in residual.violations(x).items()}[law]
        (-excess.sum() - 100 * excess.max()).backward()
        climber.step()


def assert_lawful_for_any_weights(body: str, cone: str, kind: dict, count: int, steps: int) -> None:
    residual = ContactForce(most=24, **kind)
    x = context(body, residual, count, cone)
    few = context(body, residual, min(count, 100), cone)
    assert x.contacts is not None
    assert int(x.contacts.touching.sum()) > count // 10 and bool((x.contacts.gap > 0).any())
    for seed, size in enumerate(SIZES):
        randomise(residual, size, seed)
        assert_lawful(residual, x)
    assert_lawful(residual, single(x))
    for law in LAWS:
        randomise(residual, 1.0, 17)
        ascend(residual, few, law, steps)
        assert_lawful(residual, x)


@KINDS
@pytest.mark.parametrize("cone", CONES)
@pytest.mark.parametrize("body", BODIES)
def test_laws_hold_for_any_weights(body: str, cone: str, kind: dict) -> None:
    """Weights of any size, and weights moved to break each law, over 150 states: 3,600 in all."""
    assert_lawful_for_any_weights(body, cone, kind, 150, 4)


@pytest.mark.long
@KINDS
@pytest.mark.parametrize("body", BODIES)
def test_laws_hold_in_1e5_states(body: str, kind: dict) -> None:
    """The same over 25,000 states of each body, 10^5 for each kind, and after a longer climb."""
    assert_lawful_for_any_weights(body, "elliptic", kind, 25_000, 50)


def test_friction_is_taken_back_where_the_engine_leaves_no_room() -> None:
    """If the engine answered nothing, more friction would stay; the braking of the approach is the same."""
    residual = ContactForce(most=24, friction=1.4)
    randomise(residual, 10.0, 5)
    x = context("cube", residual, 300)
    with torch.no_grad():
        found, unanswered = residual.contact_forces(x), residual.contact_forces(replace(x, contacts_under=lambda _: x.contacts))
    assert torch.equal(found[..., 0], unanswered[..., 0])
    kept, whole = found[..., 1:].norm(dim=-1), unanswered[..., 1:].norm(dim=-1)
    assert bool((kept <= whole + 1e-12).all())
    assert 0.5 * float(whole.sum()) < float(kept.sum()) < 0.999 * float(whole.sum())


def test_untrained_force_is_small_and_has_a_gradient() -> None:
    """A fortieth of what would stop the contact, and every weight of the last layer is reached."""
    residual = ContactForce(most=24)
    x = context("cube", residual, 200)
    force = residual(x)
    strong = ContactForce(most=24)
    with torch.no_grad():
        strong.network.biases[-1].fill_(30.0)
    assert 0 < float(force.detach().norm()) < 0.1 * float(strong(x).detach().norm())
    force.square().sum().backward()
    assert all(bool(w.grad.abs().sum() > 0) for w in (residual.network.weights[-1], residual.network.biases[-1]))


@KINDS
def test_weight_gradient_is_that_of_differences(kind: dict) -> None:
    """By autograd and by centred differences along random directions of all weights."""
    residual = ContactForce(most=24, hidden=(4,), **kind)
    randomise(residual, 1.0, 2)
    x = context("two_link", residual, 100)
    residual.normalise(x)
    given = x.contacts
    x = replace(x, contacts_under=lambda _: given)  # what is taken back is held in gradients
    probe = torch.randn(100, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights = list(residual.parameters())
    by = torch.autograd.grad((residual(x) * probe).sum(), weights)
    generator = torch.Generator().manual_seed(4)
    for _ in range(5):
        moves = [torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in weights]
        values = []
        with torch.no_grad():
            for step in (1e-6, -2e-6):
                torch._foreach_add_(weights, moves, alpha=step)
                values.append(float((residual(x) * probe).sum()))
            torch._foreach_add_(weights, moves, alpha=1e-6)
        slope = (values[0] - values[1]) / 2e-6
        assert slope == pytest.approx(sum(float((g * m).sum()) for g, m in zip(by, moves, strict=True)), rel=1e-6, abs=1e-6)


def test_training_through_the_step_finds_a_planted_force() -> None:
    """Weights that made the data are approached by descent on the next velocity, through the engine's adjoint."""
    simulator = make("cube")
    state, action = near_floor(simulator, "cube", 200), commands(simulator, 200)
    planted, residual = ContactForce(most=8, hidden=(4,)), ContactForce(most=8, hidden=(4,), seed=1)
    with torch.no_grad():
        planted.network.biases[-1].copy_(torch.tensor([-1.0, 1.0]))
        target = ResidualDynamics(simulator, [planted])(state, action)
    dynamics = ResidualDynamics(simulator, [residual])
    dynamics.normalise(state, action)
    loss = [float("nan")]
    descent = torch.optim.Adam(residual.parameters(), lr=0.2)
    for _ in range(60):
        descent.zero_grad()
        error = (dynamics(state, action) - target).square().sum()
        error.backward()
        descent.step()
        loss.append(float(error.detach()))
    assert loss[-1] < 0.05 * loss[1]


def rearranged(x: Context, change: Callable[[Contacts], Contacts]) -> Context:
    """The same contacts in another form."""
    assert x.contacts is not None and x.contacts_under is not None
    under = x.contacts_under
    return replace(x, contacts=change(x.contacts), contacts_under=lambda force: change(under(force)))


@KINDS
def test_friction_does_not_turn_with_the_contact_frame(kind: dict) -> None:
    """Tangents turned about the normal give the same force; the room left at the limit is the root of rounding."""
    residual = ContactForce(most=24, **kind)
    randomise(residual, 1.0, 3)
    x = context("quadruped", residual, 200)
    turn = torch.eye(3, dtype=torch.float64)
    turn[1:, 1:] = torch.tensor([[0.6, 0.8], [-0.8, 0.6]])

    def turned(c: Contacts) -> Contacts:
        return replace(c, jacobian=turn @ c.jacobian, response=turn @ c.response, velocity=c.velocity @ turn.T, force=c.force @ turn.T)

    given = x.contacts
    x = replace(x, contacts_under=lambda _: given)
    force = residual(x)
    torch.testing.assert_close(residual(rearranged(x, turned)), force, rtol=1e-6, atol=1e-7 * float(force.detach().abs().max()))


def test_weights_are_shared_over_contacts_and_bodies() -> None:
    """Weights of a residual on one body load into one for another; the order of contacts does not matter."""
    first, second = ContactForce(most=8), ContactForce(most=24)
    randomise(first, 1.0, 0)
    second.load_state_dict(first.state_dict())
    x = context("quadruped", second, 50)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))

    def mixed(c: Contacts) -> Contacts:
        return replace(c, **{n: v[:, order] for n, v in vars(c).items() if isinstance(v, Tensor) and v.ndim > 1})

    force = second(x)
    torch.testing.assert_close(second(rearranged(x, mixed)), force, rtol=1e-9, atol=1e-9 * float(force.detach().abs().max()))


def test_ensemble_is_its_members() -> None:
    """Members at once are members one by one, each with its own normaliser."""
    simulator = make("cube")
    state, action = near_floor(simulator, "cube", 20), commands(simulator, 20)
    members = []
    for seed in range(2):
        members.append(ResidualDynamics(simulator, [ContactForce(most=8, seed=seed)]))
        members[-1].normalise(state[10 * seed :], action[10 * seed :])
        randomise(members[-1].corrections[0], 1.0, seed)
    both = ensemble(members)(state.expand(2, *state.shape), action.expand(2, *action.shape))
    for found, member in zip(both, members, strict=True):
        torch.testing.assert_close(found, member(state, action))


def test_rollout_and_linearisation() -> None:
    """Both run through the contacts; the residual is held in the linearisation."""
    simulator = make("quadruped")
    residual = ContactForce(most=16)
    randomise(residual, 1.0, 0)
    dynamics = ResidualDynamics(simulator, [residual])
    state, actions = near_floor(simulator, "quadruped", 3), commands(simulator, 30).reshape(3, 10, 8)
    states = rollout(dynamics, state, actions)
    states.square().sum().backward()
    assert bool(torch.isfinite(states).all()) and all(w.grad is not None for w in residual.parameters())
    assert not torch.equal(states.detach(), rollout(ResidualDynamics(simulator), state, actions))
    model = linearise(dynamics, states.detach(), actions)
    assert model.A.shape == (3, 10, 28, 28) and bool(torch.isfinite(model.A).all())


def test_nothing_is_looked_at_unless_a_residual_asks() -> None:
    """Without a residual on contacts the baseline is asked for none."""
    simulator = make("cube")
    state, action = near_floor(simulator, "cube", 2), commands(simulator, 2)
    context, = ResidualDynamics(simulator, [ContactForce(most=4)]).contexts(state, action)
    assert context.contacts is not None and context.contacts.present.shape == (2, 4)
    bare = ContactForce(most=4)
    bare.most_contacts = 0
    assert ResidualDynamics(simulator, [bare]).contexts(state, action)[0].contacts is None


@pytest.mark.usefixtures("unchecked")
def test_bad_use_is_refused() -> None:
    """A baseline without contacts, a context without them, arguments that mean nothing."""
    with pytest.raises(ModelError, match="looks at contacts, but Pendulum knows of none"):
        ResidualDynamics(Pendulum(), [ContactForce()])
    x = torch.zeros(2, dtype=torch.float64)
    with pytest.raises(ModelError, match="holds no contacts"):
        ContactForce()(Context(Pendulum().space, x, x[:1]))
    for wrong in ({"most": 0}, {"friction": 0.9}, {"depth": -1.0}, {"cone": "none"}):
        with pytest.raises(ValueError, match="expected most >= 1"):
            ContactForce(**wrong)


def test_described_and_rebuilt() -> None:
    """The constructor arguments rebuild it."""
    residual = ContactForce(most=3, friction=1.2, cone="own", depth=2e-3, hidden=(5,), seed=3)
    other = ContactForce(**residual.describe())
    other.load_state_dict(residual.state_dict())
    assert other.describe() == residual.describe()
