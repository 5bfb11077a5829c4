"""The Warp form of the quadrotor's step against the torch form in float64: values and every gradient, through rollouts."""

import pytest
import torch
from fused_problem import F32, F64, assert_agrees_at, gradients, relative
from problems import randomise
from quadrotor_problem import NAMES, quadrotor, random_flight

from residual_mbrl.baselines import Parameters
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.physics.quadrotor import ROTORS, Quadrotor
from residual_mbrl.residuals import CommandActuator, Feature, Unstructured
from residual_mbrl.rollouts import rollout

SPUN = tuple((x, y, -spin) for x, y, spin in ROTORS)
SEEN = [Feature(source="velocity"), Feature(source="action"), Feature(source="qw")]


def pushed(drone, bound=0.05):
    """A drone with a learned force and torque, which see the executed command."""
    force = Unstructured(nv=6, features=SEEN, sizes=[6, 4, 1], bound=bound, hidden=(8,))
    drive = CommandActuator(nu=4, channels=(0, 3), dt=drone.dt, max_delay=1.5 * drone.dt)
    return ResidualDynamics(drone, [randomise(drive, scale=0.5), randomise(force, scale=0.3)])


def flight(dynamics, batch, horizon):
    """First states with memory, commands and parameter values of random flights."""
    x, u, _, p = random_flight(batch)
    memory = 1.5 + 0.3 * torch.randn(batch, dynamics.space.nx - 17, generator=torch.Generator().manual_seed(4), dtype=F64)
    change = 0.2 * torch.randn(batch, horizon, 4, generator=torch.Generator().manual_seed(5), dtype=F64)
    return torch.cat([x, memory], -1), u.unsqueeze(1) + change, dict(zip(NAMES, p.unbind(-1), strict=True))


@pytest.mark.parametrize(("integrator", "substeps", "batch", "dtype"), [
    ("rk4", 2, 3, F64), ("rk4", 2, 20, F32), ("semi_implicit", 1, 20, F64), ("semi_implicit", 16, 3, F32)])
def test_it_is_that_of_torch(integrator, substeps, batch, dtype):
    """At random attitudes and fast turning, with every term of the equations at work, under a drive and a learned force."""
    dynamics = pushed(quadrotor(integrator=integrator, substeps=substeps))
    assert_agrees_at(dynamics, *flight(dynamics, batch, 5), dtype)  # tumbling is chaotic: float32 is lost in longer flights


def test_rest_has_the_slopes_of_torch():
    """Standing still, turning not at all, rotors off: no slope is a NaN."""
    dynamics = pushed(quadrotor(integrator="rk4", substeps=2), bound=1e-9)
    x, u, p = flight(dynamics, 3, 2)
    x[:, 7:] = u[:] = 0.0
    for name in ("trim_x", "trim_y", "trim_z", "gravity"):
        p[name] = torch.zeros(3, dtype=F64)
    exact, by_exact = gradients(dynamics, x, u, p, F64, "torch")
    found, by_found = gradients(dynamics, x, u, p, F64, "fused")
    assert relative(found, exact) < 1e-10
    for name, expected in by_exact.items():
        assert bool(torch.isfinite(by_found[name]).all()), name
        assert bool(((by_found[name] - expected).norm() <= 1e-9 * expected.norm() + 1e-9).all()), name


def test_what_differs_in_the_step_alone_shares_no_code():
    """Each drone has its own rotors, rate and order of parameters, on disk too."""
    drones = [quadrotor(integrator="semi_implicit"), quadrotor(integrator="semi_implicit", dt=0.02),
              Quadrotor(quadrotor().parameters, substeps=1, integrator="semi_implicit", rotors=SPUN),
              Quadrotor(Parameters(*reversed(quadrotor().parameters)), dt=0.01, substeps=1, integrator="semi_implicit")]
    found = []
    for drone in drones:
        dynamics = ResidualDynamics(drone)
        x, u, _ = flight(dynamics, 2, 3)
        found.append(rollout(dynamics, x, u, backend="fused"))
        assert relative(found[-1], rollout(dynamics, x, u)) < 1e-12
    assert relative(found[3], found[0]) < 1e-12
    assert min(relative(found[i], found[0]) for i in (1, 2)) > 1e-4


class Stronger(Quadrotor):
    """A user's change of the torch form alone."""

    def steady_speed(self, action, p):
        return 2 * super().steady_speed(action, p)


class Louder(Quadrotor):
    """A user's change of the signals alone."""

    def signals(self, state, action, parameters=None):
        return {n: 2 * x for n, x in super().signals(state, action, parameters).items()}


@pytest.mark.parametrize("signal", ["thrust", "body_velocity", "gravity_direction"])
def test_a_force_sees_the_signals_of_torch(signal):
    """Each signal has a Warp form that follows the torch form, parameters included."""
    size = {"thrust": 4}.get(signal, 3)
    force = Unstructured(nv=6, features=[Feature(source=signal)], sizes=[size], bound=0.05, hidden=(8,))
    dynamics = ResidualDynamics(quadrotor(), [randomise(force, scale=0.3)])
    assert_agrees_at(dynamics, *flight(dynamics, 3, 3), F64)


@pytest.mark.parametrize(("dynamics", "reason"), [
    (ResidualDynamics(Stronger()), "Stronger has no Warp form of its equations"),
    (ResidualDynamics(Louder(), [Unstructured(nv=6, features=[Feature(source="thrust")], sizes=[4], bound=1.0)]),
     "residual Unstructured has no Warp form"),
])
def test_it_is_refused_where_it_would_be_wrong(dynamics, reason):
    """A changed equation has no Warp form, nor has a force that looks at a signal without one."""
    x, u, _ = flight(dynamics, 2, 3)
    with pytest.raises(ValueError, match=f"rollout: cannot be fused: .*{reason}"):
        rollout(dynamics, x, u, backend="fused")
