"""Baselines and residuals joined: ports, sums, members."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from problems import EVERY_KIND_AND_SYSTEM, KINDS, SYSTEMS, context, random_actions, random_states, randomise, residual, system

from residual_mbrl.baselines import Baseline, Parameters, Port
from residual_mbrl.dynamics import ResidualDynamics, ensemble
from residual_mbrl.errors import ModelError
from residual_mbrl.physics.pendulum import Pendulum
from residual_mbrl.residuals import CommandActuator, DryFriction, Feature, Unstructured
from residual_mbrl.rollouts import rollout
from residual_mbrl.spaces import StateSpace


class BlackBox(Baseline):
    """A step function with neither forces nor live parameters."""

    space = StateSpace(position=("q",), velocity=("v",), action=("u",))
    parameters = Parameters()
    dt = 0.1

    def step(self, state, action, force=None, parameters=None):
        """Stay."""
        return state


class NoDamping(BlackBox):
    """Has live parameters, but not the one needed."""

    ports = frozenset(Port)
    live = frozenset({"stiffness"})


def test_missing_port_is_refused():
    """The message names the residual, the port, the baseline and the ports that it has."""
    with pytest.raises(ModelError, match=r"Unstructured enters through the force port, but BlackBox has only \['action', 'state'\]"):
        ResidualDynamics(BlackBox(), [residual("unstructured", system("pendulum"))])


def test_missing_live_parameter_is_refused():
    """The message names both sides too."""
    with pytest.raises(ModelError, match=r"Dissipative adds to the parameter 'damping', but NoDamping has live only \['stiffness'\]"):
        ResidualDynamics(NoDamping(), [residual("dissipative", system("pendulum"))])


def test_unknown_parameter_value_is_refused():
    """A typing error in a value is named."""
    with pytest.raises(ValueError, match=r"Pendulum has no parameters \['masss'\]"):
        ResidualDynamics(system("pendulum"), values={"masss": 1.0})


@pytest.mark.parametrize("name", SYSTEMS)
def test_without_residuals_it_is_the_baseline(name):
    """Nothing is added, and values replace nominal ones."""
    baseline = system(name)
    x, u, first = random_states(baseline, 9), random_actions(baseline, 9), baseline.parameters.names[0]
    value = 1.1 * baseline.parameters[first].nominal
    expected = baseline.step(x, u, parameters={first: torch.tensor(value, dtype=x.dtype)})
    assert torch.equal(ResidualDynamics(baseline, values={first: value}).step(x, u), expected)
    assert torch.equal(ResidualDynamics(baseline).with_values({first: value}).step(x, u), expected)
    assert torch.equal(ResidualDynamics(baseline)(x, u, {first: torch.tensor(value, dtype=x.dtype)}), expected)


@pytest.mark.parametrize(("kind", "name"), EVERY_KIND_AND_SYSTEM)
def test_residuals_add_up(kind, name):
    """Two residuals of a kind act as their sum on the port."""
    baseline = system(name)
    first, second = (randomise(residual(kind, baseline, seed), seed=seed, scale=0.5) for seed in (1, 2))
    x, u = random_states(baseline, 9), random_actions(baseline, 9)
    both = ResidualDynamics(baseline, [first, second])
    start = both.initial_state(x, u)
    found = both.step(start, u)[..., : baseline.space.nx]
    seen = both.contexts(start, u)
    total = first(seen[0]) + second(seen[1])
    if first.port is Port.FORCE:
        expected = baseline.step(x, u, total)
    elif first.port is Port.ACTION:
        expected = baseline.step(x, u + total)
    elif first.port is Port.STATE:
        expected = baseline.step(x, u) + baseline.dt * total
    else:
        expected = baseline.step(x, u, None, {first.live: total})
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_different_ports_work_together():
    """All kinds at once make the step that the baseline makes with everything passed by hand."""
    baseline = system("double_pendulum", friction=True)
    kinds = [randomise(residual(k, baseline), seed=i, scale=0.5) for i, k in enumerate(KINDS)]
    dynamics = ResidualDynamics(baseline, kinds)
    x, u = random_states(baseline, 9), random_actions(baseline, 9)
    start = dynamics.initial_state(x, u)
    out = {k: r(c) for k, r, c in zip(KINDS, kinds, dynamics.contexts(start, u), strict=True)}
    expected = baseline.step(x, u + out["actuator"], out["conservative"] + out["explicit_dissipative"] + out["unstructured"],
                             {"damping": out["dissipative"], "frictionloss": out["dry_friction"]}) + baseline.dt * out["state_delta"]
    assert torch.allclose(dynamics.step(start, u)[..., :4], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kind", "name"), EVERY_KIND_AND_SYSTEM)
def test_ensemble_is_its_members(kind, name):
    """A joint rollout gives each member's own, normalisers included."""
    baseline, members = system(name), []
    for m in range(3):
        member = ResidualDynamics(baseline, [randomise(residual(kind, baseline), seed=m, scale=0.5)])
        data = context(baseline, 20, seed=m)
        member.normalise(data.state, data.action)
        members.append(member)
    x, u = random_states(baseline, 3, 4) / 3, random_actions(baseline, 3, 4, 6)
    with torch.no_grad():
        together = rollout(ensemble(members), x, u)
        for m, member in enumerate(members):
            assert torch.allclose(together[m], rollout(member, x[m], u[m]), rtol=1e-10, atol=1e-10)


def test_ensemble_leaves_its_members_alone():
    """Joining copies, and keeps which weights are fixed."""
    members = [ResidualDynamics(system("pendulum"), [residual("unstructured", system("pendulum"), s)]) for s in range(2)]
    for m in members:
        m.requires_grad_(False)
    before = copy.deepcopy(members[0].state_dict())
    joined = ensemble(members)
    assert not any(w.requires_grad for w in joined.parameters())
    assert all(torch.equal(w, before[n]) for n, w in members[0].state_dict().items())


def test_wrong_ensembles_are_refused():
    """There must be members, and of one structure."""
    with pytest.raises(ValueError, match="at least one model"):
        ensemble([])
    with pytest.raises(ValueError, match="one structure"):
        plain = ResidualDynamics(system("pendulum"))
        ensemble([plain, plain.with_residuals([residual("unstructured", system("pendulum"))])])


def test_residual_force_is_the_force_added():
    """For a force held over a short step it is that force."""
    baseline = system("double_pendulum", dt=1e-5)
    free = randomise(residual("unstructured", baseline))
    x, u = random_states(baseline, 9), random_actions(baseline, 9)
    found = ResidualDynamics(baseline, [free]).residual_force(x, u)
    assert torch.allclose(found, free(context(baseline, 9)), rtol=1e-3, atol=1e-3)


def test_certificates_come_from_every_residual():
    """One each, in order, and all hold for random weights."""
    baseline = system("double_pendulum")
    kinds = [k for k in KINDS if k != "actuator"]
    dynamics = ResidualDynamics(baseline, [randomise(residual(k, baseline)) for k in kinds])  # type: ignore[misc]
    found = dynamics.certificates(random_states(baseline, 50), random_actions(baseline, 50))
    assert [c.residual for c in found] == [type(r).__name__ for r in dynamics.residuals]
    assert all(c.holds and c.samples > 0 for c in found)


def test_state_dict_holds_normalisers():
    """A model loaded from its state dict predicts the same."""
    baseline = system("pendulum")
    make = lambda: ResidualDynamics(baseline, [residual("dissipative", baseline), residual("conservative", baseline)])  # noqa: E731
    first, second = make(), make()
    data = context(baseline, 50)
    first.normalise(data.state, data.action)
    randomise(first)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.step(data.state, data.action), second.step(data.state, data.action))


@pytest.mark.parametrize(("kind", "name"), EVERY_KIND_AND_SYSTEM)
def test_float32_stays_float32(kind, name, device):
    """On every device, and near the float64 result."""
    baseline = system(name)
    dynamics = ResidualDynamics(baseline, [randomise(residual(kind, baseline), scale=0.5)])
    x, u = random_states(baseline, 5) / 3, random_actions(baseline, 5)
    expected = dynamics.step(dynamics.initial_state(x, u), u).detach()
    moved = dynamics.to(device)
    x32, u32 = x.float().to(device), u.float().to(device)
    found = moved.step(moved.initial_state(x32, u32), u32).detach()
    assert (found.dtype, found.device.type) == (torch.float32, device.type)
    assert torch.allclose(found.double().cpu(), expected, rtol=1e-3, atol=1e-3)


def test_description_rebuilds_every_kind():
    """What an artefact keeps makes the same residual again, initial weights included."""
    baseline = system("double_pendulum")
    for kind in KINDS:
        built = residual(kind, baseline)
        told = built.describe()
        if "features" in told:
            told["features"] = [Feature(**f) for f in told["features"]]  # type: ignore[attr-defined]
        again = type(built)(**told)
        assert again.describe() == built.describe()
        weights, drawn = built.state_dict(), again.state_dict()
        assert weights.keys() == drawn.keys()
        assert all(torch.equal(weights[n], drawn[n]) for n in weights)


class Drive(Pendulum):
    """A pendulum that tells the torque it was given, and the gravity torque at its present parameters."""

    def signals(self, state, action, parameters=None):
        """Return both."""
        p = self.parameters.resolve(parameters, state)
        return {"given": action, "gravity": (p["gravity_moment"] * torch.sin(state[..., 0])).unsqueeze(-1)}


class Halved(CommandActuator):
    """Executes half of what is sent, one step late."""

    def __init__(self):
        super().__init__(nu=1, channels=(0,), dt=0.01, max_delay=0.01)
        self.seen = []

    def forward(self, context):
        """Return minus half of the command of the step before, and keep what was seen."""
        self.seen.append((context.action, dict(context.signals)))
        return 0.5 * context.memory[..., :1] - context.action


class Given(Unstructured):
    """The force that the drive says it was given, and nothing learned."""

    def __init__(self):
        super().__init__(nv=1, features=[Feature(source="given")], bound=1.0)

    def forward(self, context):
        """Return signal and command, which must be the same."""
        assert torch.equal(context.action, context.source("given"))
        return context.source("given")


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_residuals_see_the_command_as_executed(order):
    """Signals and command of a force residual are those after the drive, wherever it stands in the list."""
    pair = [Halved(), Given()]
    dynamics = ResidualDynamics(Drive(), [pair[i] for i in order])
    x = torch.tensor([0.3, -0.2], dtype=torch.float64)
    u = torch.tensor([[2.0], [4.0], [8.0]], dtype=torch.float64)
    found = rollout(dynamics, x, u)[:, :2]
    for t, executed in enumerate([1.0, 1.0, 2.0]):
        assert torch.allclose(found[t + 1], Drive().step(found[t], torch.tensor([executed], dtype=x.dtype), torch.tensor([executed])))


def test_the_drive_sees_the_command_as_sent():
    """Its memory holds what was sent, and it has no signals, which would follow from what it decides."""
    drive = Halved()
    dynamics = ResidualDynamics(Drive(), [Given(), drive])
    x, u = torch.zeros(2, dtype=torch.float64), torch.tensor([3.0], dtype=torch.float64)
    start = dynamics.initial_state(x, torch.tensor([5.0], dtype=torch.float64))
    after = dynamics.step(start, u)
    assert torch.equal(drive.seen[-1][0], u) and not drive.seen[-1][1]
    assert after[2] == 3.0
    assert [c.action.item() for c in dynamics.contexts(start, u)] == [2.5, 3.0]
    assert dynamics.correction(start, u).action.item() == 2.5


def test_drives_add_up_from_the_command_sent():
    """Two on the action port do not see each other."""
    first, second = Halved(), Halved()
    dynamics = ResidualDynamics(Drive(), [first, second])
    x, u = torch.zeros(2, dtype=torch.float64), torch.tensor([3.0], dtype=torch.float64)
    dynamics.step(dynamics.initial_state(x, u), u)
    assert torch.equal(first.seen[-1][0], u) and torch.equal(second.seen[-1][0], u)


def test_contexts_hold_the_models_values():
    """Those of the model, replaced by those of the call; signals follow from the same."""
    dynamics = ResidualDynamics(Drive(), [Given()], {"gravity_moment": 3.0})
    x, u = torch.tensor([0.5, 0.0], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    own, = dynamics.contexts(x, u)
    other, = dynamics.contexts(x, u, {"inertia": torch.tensor(7.0)})
    assert (float(own.values["gravity_moment"]), float(own.values["inertia"])) == (3.0, 1.0)
    assert float(other.values["inertia"]) == 7.0
    assert float(own.source("gravity")) == pytest.approx(3.0 * math.sin(0.5))


@pytest.mark.parametrize("kind", ["dry_friction", "dissipative"])
def test_certificates_are_at_the_models_values(kind):
    """The power is that of the model as it steps, not that of the nominal baseline."""
    baseline = system("pendulum", friction=True)
    learned = randomise(residual(kind, baseline))
    values = {"inertia": 3.0, "viscous": 0.1, "coulomb": 0.05}
    x, u = random_states(baseline, 30), random_actions(baseline, 30)
    found, = ResidualDynamics(baseline, [learned], values).certificates(x, u)
    p = {n: torch.tensor(value, dtype=x.dtype) for n, value in values.items()}
    expected = baseline.dissipation_power(x, u, {**p, learned.live: learned(context(baseline, 30))})
    assert found.worst == pytest.approx(float(expected.detach().max()), rel=1e-12)
    nominal = ResidualDynamics(baseline, [learned]).certificates(x, u)[0]
    assert found.worst != pytest.approx(nominal.worst, rel=1e-3)


def test_a_named_parameter_may_be_live():
    """A residual's addition comes on top of the model's own value, in the step and in the certificate."""
    class Softening(DryFriction):
        live = "viscous"

    baseline = system("pendulum")
    learned = randomise(Softening(nv=1, features=[Feature(source="velocity")], bound=0.2))
    learned.forward = lambda context: DryFriction.forward(learned, context)[..., 0]
    dynamics = ResidualDynamics(baseline, [learned], {"viscous": 0.5})
    x, u = random_states(baseline, 30), random_actions(baseline, 30)
    total = {"viscous": 0.5 + learned(context(baseline, 30))}
    assert torch.allclose(dynamics.step(x, u), baseline.step(x, u, None, total))
    assert dynamics.certificates(x, u)[0].worst == pytest.approx(float(baseline.dissipation_power(x, u, total).detach().max()))


def test_normaliser_does_not_depend_on_weights():
    """Features of a command that an actuator has changed are scaled by numbers, which carry no gradient."""
    baseline = system("pendulum")
    force = Unstructured(nv=1, features=[Feature(source="action")], bound=1.0)
    dynamics = ResidualDynamics(baseline, [residual("actuator", baseline), force])
    dynamics.normalise(random_states(baseline, 9), random_actions(baseline, 9))
    assert not any(b.requires_grad for b in dynamics.buffers())
