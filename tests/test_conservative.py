"""A learned potential stores energy and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import context, random_states, randomise, system

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.residuals import Conservative, Context
from residual_mbrl.rollouts import rollout


def _residual(nq: int, periodic: tuple[int, ...], seed: int = 0, members: int | None = None) -> Conservative:
    residual = Conservative(nq=nq, periodic=periodic, scale=2.0)
    residual.normalise(context(system("pendulum" if nq == 1 else "double_pendulum"), 50))
    return randomise(residual, seed=seed, members=members)  # type: ignore[return-value]


def _at(q: torch.Tensor) -> Context:
    baseline = system("pendulum" if q.shape[-1] == 1 else "double_pendulum")
    return Context(baseline.space, torch.cat([q, 0 * q], -1), 0 * q)


@pytest.mark.parametrize("members", [None, 3])
@pytest.mark.parametrize(("nq", "periodic"), [(1, ()), (1, (0,)), (2, ()), (2, (1,)), (2, (0, 1))])
def test_force_is_the_gradient_of_the_potential(nq, periodic, members):
    """Autograd through the potential gives the force, for plain and turning joints and for members."""
    residual = _residual(nq, periodic, members=members)
    q = (2 * torch.randn(3, 40, nq, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).requires_grad_()
    (slope,) = torch.autograd.grad(residual.potential(q).sum(), q)
    assert float(slope.abs().max()) > 0.1
    assert torch.allclose(residual(_at(q)), -slope, rtol=1e-10, atol=1e-12)


def test_force_has_no_curl():
    """The Jacobian of the force is symmetric."""
    residual = _residual(2, (1,))
    jacobian = torch.func.vmap(torch.func.jacrev(lambda q: residual(_at(q))))(random_states(system("pendulum"), 30))
    assert torch.allclose(jacobian, jacobian.mT, atol=1e-12)


def test_closed_loop_does_no_work():
    """The force integrated once round a curve in the plane of two joints is nothing."""
    residual = _residual(2, (1,))
    t = 2 * np.pi * torch.arange(400, dtype=torch.float64) / 400
    q = torch.stack([torch.cos(t) + 0.3 * torch.sin(2 * t), 1.5 * torch.sin(t)], -1)
    tangent = torch.stack([-torch.sin(t) + 0.6 * torch.cos(2 * t), 1.5 * torch.cos(t)], -1)
    power = (residual(_at(q)) * tangent).sum(-1).detach()
    assert float(power.abs().max()) > 0.5
    assert abs(float(power.mean() * 2 * np.pi)) < 1e-10


def test_turning_joint_repeats():
    """A periodic joint feels the same force a turn later."""
    residual = _residual(1, (0,))
    q = random_states(system("pendulum"), 20)[:, :1]
    assert torch.allclose(residual(_at(q)), residual(_at(q + 2 * np.pi)), atol=1e-12)


@pytest.mark.parametrize("name", ["pendulum", "double_pendulum"])
def test_total_energy_stays(name):
    """With RK4 and short steps the baseline's energy plus the potential hardly drifts, for random weights."""
    baseline = system(name, dt=0.002)
    residual = _residual(baseline.space.nq, ())
    dynamics = ResidualDynamics(baseline, [residual])
    with torch.no_grad():
        states = rollout(dynamics, random_states(baseline, 10) / 3, torch.zeros(10, 500, baseline.space.nu, dtype=torch.float64))
    total = baseline.energy(states) + residual.potential(states[..., : baseline.space.nq])
    exchanged = baseline.energy(states).amax(-1) - baseline.energy(states).amin(-1)
    # the residual's force is held over a step, so the error is of first order in it
    assert bool(((total - total[:, :1]).abs().amax(-1) < 0.02 * (1 + exchanged)).all())


def test_bound_of_the_force():
    """It never exceeds scale Σ |a| |w|."""
    residual = Conservative(nq=1, scale=2.0)
    randomise(residual, scale=5.0)
    with torch.no_grad():
        largest = 2.0 * float((residual.amplitudes.abs() * residual.directions.abs()[0]).sum())
        assert float(residual(_at(100 * random_states(system("pendulum"), 1000)[:, :1])).abs().max()) <= largest


def test_certificate_holds_and_notices_a_wrong_force():
    """The promise is kept for random weights, and broken by a force that is no gradient."""
    baseline = system("double_pendulum")
    residual = _residual(2, (0,))
    assert residual.certificate(context(baseline, 100), baseline).holds

    class Turning(Conservative):
        def forward(self, context: Context) -> torch.Tensor:
            return super().forward(context).flip(-1)

    wrong = randomise(Turning(nq=2))
    assert not wrong.certificate(context(baseline, 100), baseline).holds  # type: ignore[operator]


@pytest.mark.parametrize("options", [{"scale": 0.0}, {"units": 0}, {"periodic": (2,)}])
def test_wrong_options_are_refused(options):
    """The message says what was expected."""
    with pytest.raises(ValueError, match="Conservative: expected"):
        Conservative(nq=2, **options)
