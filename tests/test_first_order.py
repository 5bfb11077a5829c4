"""Linearisation of a simulator with residuals, of which torch can differentiate only the latter in forward mode."""

from __future__ import annotations

import pytest
import torch
from mujoco_problems import MODELS, commands, start
from problems import random_actions, random_states, randomise, residual, system
from torch import Tensor

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.first_order import make_differentiable
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator
from residual_mbrl.residuals import CommandActuator, Conservative, DryFriction, Feature, Residual, Unstructured
from residual_mbrl.rollouts import linearise, rollout

BALL = """
<mujoco><option timestep="0.004"/><worldbody><body><joint name="ball" type="ball" damping=".02"/>
  <geom type="capsule" size=".05" fromto="0 0 0 .1 .1 -.4"/></body></worldbody>
  <actuator><general name="turn" joint="ball" gear="1 0 0" dyntype="filter" dynprm=".05"/></actuator></mujoco>"""
"""A ball joint with a filtered drive: a quaternion and an activation."""
XML = {"arm": MODELS["arm"], "ball": BALL, "coupled": MODELS["coupled"]}
SLOW = Feature(source="velocity")


def corrections(kind: str, simulator: MujocoSimulator) -> list[Residual]:
    """Residuals of a kind that enter the port it is named after."""
    space = simulator.space
    made: dict[str, list[Residual]] = {"nothing": []}
    made["force"] = [Unstructured(nv=space.nv, features=[SLOW], sizes=[space.nv], bound=0.5, hidden=(8,))]
    made["friction"] = [DryFriction(nv=space.nv, features=[SLOW], sizes=[space.nv], bound=0.3)]
    if space.nu:
        made["action"] = [CommandActuator(nu=space.nu, channels=range(space.nu), dt=simulator.dt, max_delay=3.4 * simulator.dt)]
    if not space.quaternions:
        made["potential"] = [Conservative(nq=space.nq)]
    made["all"] = [r for residuals in made.values() for r in residuals]
    for seed, part in enumerate(made["all"]):
        randomise(part, 0.5, seed)
    return made[kind]


CASES = [(name, kind) for name in XML for kind in ("nothing", "force", "friction", "action", "potential", "all")
         if (name, kind) != ("ball", "potential")]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_linearisation_is_that_of_reverse_mode(name: str, kind: str) -> None:
    """Of every step on the tangent space, memory of residuals included."""
    simulator = MujocoSimulator(XML[name])
    dynamics = ResidualDynamics(simulator, corrections(kind, simulator))
    u = commands(simulator, 2, 3)
    with torch.no_grad():
        states = rollout(dynamics, start(simulator, 2), u)
    a, b = linearise(dynamics, states, u)
    space = dynamics.space
    assert (a.shape, b.shape) == ((2, 3, space.ndx, space.ndx), (2, 3, space.ndx, space.nu))
    for t in range(3):
        x, action = states[1, t], u[1, t]
        after = dynamics.step(x, action).detach()

        def moved(dx: Tensor, du: Tensor, x: Tensor = x, action: Tensor = action, after: Tensor = after) -> Tensor:
            return space.difference(dynamics.step(space.integrate(x, dx), action + du), after)

        zero = (torch.zeros(space.ndx, dtype=torch.float64), torch.zeros(space.nu, dtype=torch.float64))
        by_x, by_u = torch.autograd.functional.jacobian(moved, zero)
        for found, expected in ((a[1, t], by_x), (b[1, t], by_u)):
            assert float((found - expected).detach().abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max()))


def test_parameters_count_where_residuals_add_to_them() -> None:
    """A live addition reaches the linearisation, and so do values that are not nominal."""
    simulator = MujocoSimulator(MODELS["arm"], ["damping:*"])
    dynamics = ResidualDynamics(simulator, corrections("friction", simulator))
    x, u = start(simulator, 1, 2), commands(simulator, 1, 1)
    values = {"damping:elbow": torch.tensor(3.0, dtype=torch.float64)}
    damped, plain = linearise(dynamics, x, u, values).A, linearise(dynamics, x, u).A
    assert not torch.allclose(damped, plain)
    after = dynamics.step(x[0, 0], u[0, 0], values)
    h = 1e-6 * torch.eye(4, dtype=torch.float64)
    columns = (dynamics.step(x[0, 0] + h, u[0, 0].expand(4, -1), values) - dynamics.step(x[0, 0] - h, u[0, 0].expand(4, -1), values)) / 2e-6
    assert after.shape == (4,)
    assert torch.allclose(damped[0, 0], columns.T, rtol=1e-5, atol=1e-5)


def test_single_precision_and_broadcast_values() -> None:
    """Follow the state."""
    simulator = MujocoSimulator(BALL, ["damping:ball"])
    dynamics = ResidualDynamics(simulator, corrections("force", simulator))
    u = commands(simulator, 2, 3).float()
    states = rollout(dynamics, start(simulator, 2).float(), u)
    a, _ = linearise(dynamics, states, u, {"damping:ball": torch.tensor([0.5, 2.0])})
    assert a.dtype == torch.float32
    double = linearise(dynamics, states.double(), u.double(), {"damping:ball": torch.tensor([0.5, 2.0], dtype=torch.float64)}).A
    assert torch.allclose(a.double(), double, rtol=1e-4, atol=1e-4)


def test_baselines_that_torch_differentiates_stay_as_they_are() -> None:
    """No first-order model stands for them."""
    baseline = system("pendulum")
    dynamics = ResidualDynamics(baseline, [residual("conservative", baseline)])
    assert make_differentiable(dynamics, random_states(baseline, 2), random_actions(baseline, 2)) is dynamics


def test_the_first_order_model_is_exact_at_its_points() -> None:
    """Value and signals are the simulator's own."""
    simulator = MujocoSimulator(BALL)
    dynamics = ResidualDynamics(simulator, corrections("all", simulator))
    x, u = dynamics.initial_state(start(simulator, 3), commands(simulator, 3)), commands(simulator, 3, seed=4)
    model = make_differentiable(dynamics, x, u)
    assert torch.allclose(model.step(x, u), dynamics.step(x, u), rtol=0, atol=1e-12)
    assert model.baseline.signals(x, u) == simulator.signals(x, u)


@pytest.mark.parametrize("name", list(XML))
def test_a_simulator_alone_is_linearised_by_its_own_jacobian(name: str) -> None:
    """Where no graph is asked for; the same as in torch's forward mode, also with values of a batch's own."""
    simulator = MujocoSimulator(XML[name], ["damping:*"])
    dynamics, u = ResidualDynamics(simulator), commands(simulator, 2, 3)
    states = rollout(dynamics, start(simulator, 2), u)
    values = {n: torch.tensor([0.1, 0.4], dtype=torch.float64) for n in simulator.parameters.names[:1]}
    with torch.no_grad():
        alone = linearise(dynamics, states, u, values)
    for found, expected in zip(alone, linearise(dynamics, states, u, values), strict=True):
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_jacobian_by_the_parameters_that_are_asked_for() -> None:
    """By all of them unless named."""
    simulator = MujocoSimulator(MODELS["arm"], ["damping:*"])
    x, u = start(simulator, 1)[0], commands(simulator, 1, 1)[0, 0]
    values = {n: torch.tensor(0.3, dtype=torch.float64) for n in simulator.parameters.names}
    chosen = simulator.parameters.names[0]
    every, one = (simulator.jacobian(x, u, None, values, by=by).parameters for by in (None, [chosen]))
    assert set(every) == set(values) and set(one) == {chosen}
    assert torch.equal(one[chosen], every[chosen])
