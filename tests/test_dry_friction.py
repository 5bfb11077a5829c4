"""A learned dry-friction limit; its passivity is tested together with that of damping."""

from __future__ import annotations

import math

import pytest
import torch
from problems import INTEGRATORS, MOVING, context, randomise, system

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.residuals import DryFriction, Feature
from residual_mbrl.rollouts import rollout


def _constant(limit: float, bound: float = 5.0) -> DryFriction:
    """A residual whose limit is the same everywhere."""
    residual = DryFriction(nv=1, features=(Feature(source="rate"),), bound=bound)
    with torch.no_grad():
        residual.network.biases[-1].fill_(math.atanh(limit / bound))
    return residual


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_it_acts_as_the_same_parameter(integrator):
    """A constant limit moves a pendulum as its own dry friction does."""
    x, u = torch.tensor([[1.5, 2.0], [0.1, 0.0]], dtype=torch.float64), torch.zeros(2, 300, 1, dtype=torch.float64)
    baseline = system("pendulum", integrator=integrator)
    known = rollout(ResidualDynamics(baseline, values={"coulomb": 1.25}), x, u)
    assert torch.allclose(rollout(ResidualDynamics(baseline, [_constant(1.25)]), x, u), known, atol=1e-12)


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_it_sticks_at_rest(integrator):
    """Gravity below the limit moves nothing in a thousand steps."""
    x = torch.tensor([0.3, 0.0], dtype=torch.float64)
    with torch.no_grad():
        dynamics = ResidualDynamics(system("pendulum", integrator=integrator), [_constant(3.0)])
        states = rollout(dynamics, x, torch.zeros(1000, 1, dtype=x.dtype))
    assert torch.allclose(states, x.expand_as(states), rtol=0, atol=1e-12)


def test_it_can_lower_the_baselines_friction():
    """A negative addition takes friction away, down to none."""
    x, u = torch.tensor([1.5, 2.0], dtype=torch.float64), torch.zeros(100, 1, dtype=torch.float64)
    rough = ResidualDynamics(system("pendulum"), [_constant(-2.0)], {"coulomb": 1.0})
    assert torch.allclose(rollout(rough, x, u), rollout(ResidualDynamics(system("pendulum")), x, u))


def test_bound():
    """Huge weights do not leave it."""
    baseline = system("double_pendulum")
    residual = randomise(DryFriction(nv=2, features=MOVING, sizes=[2, 2], bound=0.7), scale=100.0)
    assert float(residual(context(baseline, 1000)).detach().abs().max()) <= 0.7


def test_stribeck_law_is_within_reach():
    """With "slow" as input and no hidden units, least squares on the weights finds extra friction at rest."""
    residual = DryFriction(nv=1, features=(Feature(source="rate", transform="slow", width=0.2),), bound=10.0, hidden=())
    baseline = system("pendulum")
    seen = context(baseline, 500)
    truth = 0.3 + 0.4 * torch.exp(-seen.v.abs() / 0.2)
    optimiser = torch.optim.LBFGS(residual.parameters(), max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = (residual(seen) - truth).square().mean()
        loss.backward()
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    assert float((residual(seen) - truth).detach().abs().max()) < 5e-3


def test_untrained_friction_is_none():
    """It starts at zero."""
    residual = DryFriction(nv=2, features=MOVING, sizes=[2, 2], bound=1.0)
    assert float(residual(context(system("double_pendulum"), 9)).detach().abs().max()) == 0.0
