"""Fused rollouts against the torch form in float64: values, every gradient, every schedule, and what cannot be fused."""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from unittest.mock import patch

import pytest
import torch
from fused_problem import F32, F64, assert_agrees, gradients, in_turn, model, relative
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import INTEGRATORS, MOVING, random_actions, random_states, randomise, system

from residual_mbrl.baselines import Port
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.physics.cartpole import CartPole
from residual_mbrl.physics.servo import Servo
from residual_mbrl.residuals import CommandActuator, Dissipative, Feature, Unstructured
from residual_mbrl.residuals.features import FeatureMap
from residual_mbrl.rollouts import rollout

KINDS = ("conservative", "dissipative", "explicit_dissipative", "dry_friction", "unstructured", "state_delta", "actuator")
TRANSFORMS = [Feature(source="rate", transform=t) for t in ("identity", "abs", "sign", "sin", "cos", "slow", "hats")]
DIRECTED = [Feature(source="angle", transform="hats", direction="rate"), Feature(source="torque", direction="angle")]
STEPS = [*(("double_pendulum", integrator, friction) for integrator in INTEGRATORS for friction in (False, True)),
         *((name, integrator, integrator == "rk4") for name in ("pendulum", "cartpole", "linear_drive", "servo")
           for integrator in INTEGRATORS)]
"""Every system with each integrator, with friction and without, and one with all combinations."""
RESIDUALS = [*(("double_pendulum", kind) for kind in KINDS), ("pendulum", "dissipative"), ("pendulum", "dry_friction"),
             ("cartpole", "conservative")]
"""Every kind on two degrees of freedom, those that a single one treats in its own way there, and coordinates of both kinds."""


@pytest.mark.parametrize(("name", "integrator", "friction", "batch", "dtype"), in_turn(STEPS))
def test_system_is_that_of_torch(name, integrator, friction, batch, dtype):
    """Both forms of the step, in every schedule."""
    assert_agrees(model(name, integrator=integrator, friction=friction), batch, dtype=dtype)


@pytest.mark.parametrize(("name", "kind", "batch", "dtype"), in_turn(RESIDUALS))
def test_residual_is_that_of_torch(name, kind, batch, dtype):
    """Weights, states, memory, actions and parameters all get their gradient."""
    assert_agrees(model(name, [kind]), batch, dtype=dtype)


@pytest.mark.parametrize(("batch", "dtype"), [(1, F64), (16, F32)])
def test_residuals_add_up(batch, dtype):
    """Two of one kind and one of each other in one kernel, with Runge-Kutta and two substeps."""
    assert_agrees(model("double_pendulum", [*KINDS, "unstructured"], integrator="rk4", scale=0.3, substeps=2), batch, dtype=dtype)


@pytest.mark.parametrize("features", [TRANSFORMS, DIRECTED])
def test_features_are_those_of_torch(features):
    """Every transform and a direction, with a normaliser from data."""
    baseline = system("pendulum", friction=True)
    force = randomise(Unstructured(nv=1, features=features, bound=0.7, hidden=(12,)), scale=0.5)
    dynamics = ResidualDynamics(baseline, [force])
    dynamics.normalise(random_states(baseline, 50), random_actions(baseline, 50))
    assert_agrees(dynamics, 5)


@pytest.mark.parametrize(("first", "second"), [("angle", "rate"), ("rate", "angle")])
def test_models_that_differ_in_a_place_alone_share_no_code(first, second):
    """The same functions of other entries are other kernels, on disk too."""
    baseline = system("pendulum", friction=True)
    features = [Feature(source=first), Feature(source=second, transform="sin")]
    assert_agrees(ResidualDynamics(baseline, [randomise(Unstructured(nv=1, features=features, bound=1.0, hidden=(4,)))]), 2, horizon=10)


@pytest.mark.parametrize("hidden", [(), (1,), (20, 12), (64, 64), (7, 33, 5)])
@pytest.mark.parametrize("batch", [1, 18])
def test_any_network(hidden, batch):
    """Widths that fill no register, and depths from none to three."""
    baseline = system("cartpole", integrator="semi_implicit")
    force = randomise(Unstructured(nv=2, features=MOVING, sizes=[2, 2], bound=1.0, hidden=hidden), scale=0.2)
    assert_agrees(ResidualDynamics(baseline, [force]), batch, horizon=20)


@settings(max_examples=12)
@given(batch=st.integers(1, 40), horizon=st.integers(1, 40))
def test_any_shape(batch, horizon):
    """Batches with every remainder, and horizons that are no multiple of a chunk of units computed again."""
    from residual_mbrl.fused import system as fused_system
    from residual_mbrl.kernels import launch

    with patch.object(fused_system, "_engines", OrderedDict()), patch.multiple(launch, KEPT_BYTES=0, CHUNK_BYTES=16 * 2**10):
        assert_agrees(model("pendulum", ["unstructured"]), batch, horizon=horizon, dtype=F64)


def test_gradient_is_that_of_finite_differences():
    """Along a random direction of all inputs, in float64 differences of the torch form."""
    dynamics = model("double_pendulum", ["unstructured"])
    x, u = random_states(dynamics.baseline, 4) / 3, random_actions(dynamics.baseline, 4, 30)
    dx, du = random_states(dynamics.baseline, 4, seed=5), random_actions(dynamics.baseline, 4, 30, seed=6)
    _, by = gradients(dynamics, x, u, {}, F64, "fused")

    def loss(step):
        with torch.no_grad():
            states = rollout(dynamics, x + step * dx, u + step * du, backend="torch")
        return (states * torch.randn(states.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)).sum()

    slope = (loss(1e-6) - loss(-1e-6)) / 2e-6
    along = (by["state"].double() * dx).sum() + (by["actions"].double() * du).sum()
    assert abs(along - slope) < 1e-5 * abs(slope) + 1e-5


@pytest.mark.parametrize("learn", [False, True])
def test_kept_and_recomputed_units_agree(monkeypatch, learn):
    """What does not fit the cache is computed again, by one thread or by several, and changes nothing."""
    from residual_mbrl.kernels import launch

    dynamics = model("cartpole", ["unstructured"])
    for w in dynamics.parameters():
        w.requires_grad_(learn)
    x, u = random_states(dynamics.baseline, 70) / 3, random_actions(dynamics.baseline, 70, 45)

    def found():
        xs, us = x.float().requires_grad_(), u.float().requires_grad_()
        states = rollout(dynamics, xs, us, backend="fused")
        return [states.detach(), *torch.autograd.grad(states.square().sum(), [xs, us, *(dynamics.parameters() if learn else ())])]

    kept = found()
    with monkeypatch.context() as patch:
        patch.setattr(launch, "KEPT_BYTES", 0)
        patch.setattr(launch, "THREAD_WORK", 0)
        patch.setattr(torch, "get_num_threads", lambda: 3)
        again = found()
    for a, b in zip(again, kept, strict=True):
        assert relative(a, b.double()) < 5e-6


def test_weights_are_those_of_the_call():
    """Not those packed before: whether an optimiser changed them, or somebody wrote through ``.data``."""
    dynamics = model("pendulum", ["unstructured"])
    x, u = random_states(dynamics.baseline, 2).float(), random_actions(dynamics.baseline, 2, 5).float()
    first = rollout(dynamics, x, u, backend="fused")
    x.requires_grad_()
    before = rollout(dynamics, x, u, backend="fused")
    next(dynamics.parameters()).data.mul_(3.0)
    after = rollout(dynamics, x, u, backend="fused")
    assert torch.equal(before, first)
    assert relative(after.detach(), rollout(dynamics, x.detach().double(), u.double(), backend="torch").detach()) < 1e-5
    old = torch.autograd.grad(before.sum(), x)[0]  # the graph made before the change keeps the weights it was made with
    next(dynamics.parameters()).data.div_(3.0)
    assert torch.allclose(old, torch.autograd.grad(rollout(dynamics, x, u, backend="fused").sum(), x)[0], rtol=1e-5, atol=1e-6)


def test_normaliser_and_bound_are_those_of_the_call():
    """A model that has been fused sees later changes of both, and of a limit that was not there."""
    dynamics = model("pendulum", ["actuator", "unstructured"])
    x, u = random_states(dynamics.baseline, 2), random_actions(dynamics.baseline, 2, 5)
    rollout(dynamics, x.float(), u.float(), backend="fused")
    dynamics.normalise(random_states(dynamics.baseline, 9, seed=3), random_actions(dynamics.baseline, 9))
    dynamics.corrections[0].limit, dynamics.corrections[1].bound = 0.4, 2.5
    assert relative(rollout(dynamics, x.float(), u.float(), backend="fused").detach(), rollout(dynamics, x, u).detach()) < 1e-5


def test_batches_of_any_shape_broadcast():
    """As in torch, parameters included."""
    dynamics = model("pendulum", ["unstructured"])
    x, u = random_states(dynamics.baseline), random_actions(dynamics.baseline, 4, 5)
    p = {"inertia": torch.tensor([[0.9], [1.1]], dtype=torch.float64)}
    found = rollout(dynamics, x.float(), u.float(), {n: v.float() for n, v in p.items()}, backend="fused")
    assert found.shape == (2, 4, 6, 2)
    assert relative(found.detach(), rollout(dynamics, x, u, p).detach()) < 1e-5


@pytest.mark.parametrize("batch", [2, 40])
def test_a_world_that_diverges_leaves_the_others_alone(batch):
    """Its own states and gradients are not finite, the others' are what they were."""
    dynamics = model("cartpole", ["unstructured"])
    x, u = (random_states(dynamics.baseline, batch) / 3).float(), random_actions(dynamics.baseline, batch, 10).float()
    calm = rollout(dynamics, x, u, backend="fused").detach()
    u[1] = 3e38
    u.requires_grad_()
    states = rollout(dynamics, x, u, backend="fused")
    by = torch.autograd.grad(states.sum(), u)[0]
    others = torch.arange(batch) != 1
    assert not torch.isfinite(states[1]).all()
    assert torch.equal(states[others], calm[others])
    assert torch.isfinite(by[others]).all()


@pytest.mark.parametrize("batch", [2, 40])
def test_a_parameter_that_is_not_a_number_is_one_worlds_own(batch):
    """That world's states say so, in both forms; the others are what they were, and so are their gradients."""
    dynamics = model("cartpole", ["unstructured"])
    x, u = random_states(dynamics.baseline, batch) / 3, random_actions(dynamics.baseline, batch, 10)
    p = {"pole_mass": torch.full((batch,), 0.2, dtype=F64)}
    calm, by_calm = gradients(dynamics, x, u, p, F32, "fused")
    p["pole_mass"][1] = torch.nan
    others = torch.arange(batch) != 1
    for dtype, backend in ((F32, "fused"), (F64, "torch")):
        states, by = gradients(dynamics, x, u, p, dtype, backend)
        assert torch.isnan(states[1, 1:]).any(-1).all()
        assert torch.allclose(states[others].float(), calm[others], rtol=1e-4, atol=1e-4)
        assert torch.allclose(by["actions"][others].float(), by_calm["actions"][others], rtol=1e-3, atol=1e-3)


def test_rest_with_friction_sticks():
    """A body that friction holds stays exactly where it is."""
    dynamics = model("double_pendulum", integrator="rk4")
    states = rollout(dynamics, torch.zeros(3, 4), torch.full((3, 20, 2), 0.05), backend="fused")
    assert not states.any()


class Heavier(CartPole):
    """A user's change of the torch form alone."""

    def smooth_force(self, q, v, u, p):
        return 2 * super().smooth_force(q, v, u, p)


class Softer(Servo):
    """A user's change of what the terms of the torch form share."""

    def duty(self, q, u):
        return 0.5 * super().duty(q, u)


class Louder(Unstructured):
    """A user's change of a residual's torch form alone."""

    def forward(self, context):
        return 2 * super().forward(context)


class Slower(CommandActuator):
    """A user's change of a part of a residual's torch form."""

    def _lagged(self, context):
        return 0.5 * super()._lagged(context)


class Firmer(Dissipative):
    """The same of another."""

    def matrix(self, context):
        return 2 * super().matrix(context)


class Commanding(Unstructured):
    """A user's residual on another port."""

    port = Port.ACTION


class Remembering(Unstructured):
    """A user's residual with a memory, of which its Warp form knows nothing."""

    memory_names = ("last",)

    def initial_memory(self, context):
        return context.action

    def next_memory(self, context):
        return context.action

    def warp_form(self, space, signals):
        return super().warp_form(space, signals)


class Squared(FeatureMap):
    """Features of a user's own."""

    def _transform(self, f, x, columns):
        return super()._transform(f, x, columns).square()


class Turned(Servo):
    """A user's change of what residuals look at, which the step itself never does."""

    def signals(self, state, action, parameters=None):
        return {n: -x for n, x in super().signals(state, action, parameters).items()}


class Filtered(CartPole):
    """A user's signal that stands before what has its name, without a Warp form."""

    def signals(self, state, action, parameters=None):
        return {"velocity": 0.5 * state[..., 2:]}


class Damped(ResidualDynamics):
    """A user's change of how residuals are joined."""

    def correction(self, state, action, parameters=None):
        return super().correction(state, action, parameters)._replace(force=None)


def moved(kind=Unstructured, features=MOVING, **options):
    return kind(nv=2, features=features, sizes=[2, 2], bound=1.0, **options)


def squaring():
    residual = moved()
    residual.features = Squared(MOVING, [2, 2])
    return residual


EFFORT = Unstructured(nv=1, features=[Feature(source="motor_torque")], bound=1.0)


@pytest.mark.parametrize(("dynamics", "reason"), [
    (ResidualDynamics(Heavier()), "Heavier has no Warp form of its equations"),
    (ResidualDynamics(Softer()), "Softer has no Warp form of its equations"),
    (ResidualDynamics(CartPole(), [moved(Louder)]), "residual Louder has no Warp form"),
    (ResidualDynamics(CartPole(), [moved(Firmer)]), "residual Firmer has no Warp form"),
    (ResidualDynamics(CartPole(), [Slower(nu=1, channels=[0], dt=0.01)]), "residual Slower has no Warp form"),
    (ResidualDynamics(CartPole(), [Commanding(nv=1, features=MOVING, sizes=[2, 2], bound=1.0)]), "residual Commanding has no Warp form"),
    (ResidualDynamics(CartPole(), [moved(Remembering)]), "Warp form of Remembering does not say what it remembers"),
    (ResidualDynamics(CartPole(), [squaring()]), "residual Unstructured has no Warp form"),
    (ResidualDynamics(Turned(), [EFFORT]), r"signals \['enabled'\] of Turned stand before"),
    (ResidualDynamics(Filtered(), [moved()]), r"signals \['velocity'\] of Filtered stand before entries of the same name"),
    (Damped(CartPole(), [moved()]), "Damped has a step of its own"),
])
def test_what_cannot_be_fused_runs_in_torch(dynamics, reason, caplog):
    """And says why, at debug level; asked for by name it is refused."""
    x, u = random_states(dynamics.baseline, 2).float(), random_actions(dynamics.baseline, 2, 3).float()
    with caplog.at_level(logging.DEBUG, "residual_mbrl.rollouts"):
        assert torch.equal(rollout(dynamics, x, u, backend="auto"), rollout(dynamics, x, u))
    assert re.search(reason, caplog.text)
    with pytest.raises(ValueError, match=f"rollout: cannot be fused: .*{reason}"):
        rollout(dynamics, x, u, backend="fused")


def test_half_precision_runs_in_torch():
    """Kernels are made in float32 and float64."""
    dynamics = model("pendulum")
    with pytest.raises(ValueError, match=r"fused rollouts are float32 or float64 on a CPU or a CUDA device, not torch.bfloat16 on cpu"):
        rollout(dynamics, torch.zeros(2, dtype=torch.bfloat16), torch.zeros(3, 1, dtype=torch.bfloat16), backend="fused")


def test_live_additions_run_in_torch():
    """A damping matrix given from outside has no place in the kernel."""
    x, u = torch.zeros(4), torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"live additions \['damping'\] are given"):
        rollout(model("double_pendulum"), x, u, {"damping": torch.eye(2)}, backend="fused")


def test_transforms_of_torch_run_in_torch():
    """torch.func and forward mode see a rollout as ever."""
    dynamics = model("pendulum")
    x, u = random_states(dynamics.baseline).float(), random_actions(dynamics.baseline, 3).float()

    def last(x):
        return rollout(dynamics, x, u, backend="auto")[-1]

    assert torch.allclose(torch.func.jacrev(last)(x), torch.func.jacfwd(last)(x), rtol=1e-4, atol=1e-5)


def test_exchanged_weights_of_many_copies_run_in_torch():
    """``functional_call`` puts weights with a leading dimension under a model that was fused before: no copy may get another's."""
    dynamics = model("pendulum", ["unstructured"])
    x, u = random_states(dynamics.baseline, 3).float(), random_actions(dynamics.baseline, 3, 5).float()
    rollout(dynamics, x, u, backend="fused")
    stacked = {n: w.detach() * torch.tensor([0.5, 1.0, 2.0]).reshape(3, *(1,) * w.ndim) for n, w in dynamics.named_parameters()}
    calls = {}
    for backend in ("auto", "torch"):
        with patch.object(ResidualDynamics, "forward", lambda self, x, u, backend=backend: rollout(self, x, u, backend=backend)):
            calls[backend] = torch.func.functional_call(dynamics, stacked, (x, u))
    assert torch.equal(calls["auto"], calls["torch"])
    assert not torch.allclose(calls["torch"][0], rollout(dynamics, x, u)[0])


def test_second_derivatives_are_refused():
    """Rather than wrong."""
    dynamics = model("pendulum")
    x, u = random_states(dynamics.baseline).float().requires_grad_(), random_actions(dynamics.baseline, 3).float()
    by = torch.autograd.grad(rollout(dynamics, x, u.requires_grad_(), backend="fused").square().sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        by.sum().backward()


def test_weights_beyond_float32_are_named():
    """1e300 is a float64 but no float32."""
    dynamics = model("pendulum", ["dissipative", "unstructured"])
    with torch.no_grad():
        dynamics.corrections[1].network.weights[0][0, 0] = 1e300
    with pytest.raises(ValueError, match=r"rollout: weights of Unstructured are not finite in float32"):
        rollout(dynamics, torch.zeros(2), torch.zeros(3, 1), backend="fused")


@pytest.mark.usefixtures("unchecked")
def test_unknown_backend_is_refused():
    """With the backends there are."""
    with pytest.raises(ValueError, match=r"backend must be one of \('auto', 'torch', 'fused'\), received 'jax'"):
        rollout(model("pendulum"), torch.zeros(2), torch.zeros(3, 1), backend="jax")
