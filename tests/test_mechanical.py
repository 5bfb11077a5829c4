"""Implicit dissipation: exact, passive, and sticking."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import INTEGRATORS, system
from scipy.optimize import minimize

from residual_mbrl.physics.double_pendulum import PARAMETERS as DOUBLE
from residual_mbrl.physics.double_pendulum import DoublePendulum
from residual_mbrl.physics.mechanical import dissipate, solve
from residual_mbrl.physics.pendulum import PARAMETERS as SINGLE
from residual_mbrl.physics.pendulum import Pendulum


def _random(n: int, seed: int, batch: int = 20) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mass, damping, limit and velocity over several orders of magnitude."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(batch, *shape, dtype=torch.float64, generator=g)  # noqa: E731
    size = lambda *shape: torch.exp(2 * draw(*shape))  # noqa: E731
    a, b = draw(n, n), draw(n, n)
    return a @ a.mT + 0.05 * torch.eye(n, dtype=a.dtype), size(1, 1) * (b @ b.mT), size(n), size(1) * draw(n)


def _kinetic(mass: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return 0.5 * torch.einsum("bi,bij,bj->b", v, mass, v)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_solve_is_linalgs(n):
    """The closed forms solve the system."""
    mass, _, _, v = _random(n, 0)
    assert torch.allclose(solve(mass, v), torch.linalg.solve(mass, v), rtol=1e-8)


def test_one_degree_of_freedom_is_exact():
    """The result minimises 1/2 m (v' - v)² + h/2 d v'² + h F |v'|, by comparison with a fine search."""
    mass, damping, limit, v = _random(1, 1)
    h = 0.3
    found = dissipate(mass, v, damping, limit, h)[:, 0].numpy()
    for i, (m, d, f, v0) in enumerate(zip(mass.ravel(), damping.ravel(), limit.ravel(), v.ravel(), strict=True)):
        grid = torch.linspace(-abs(v0), abs(v0), 200_001, dtype=torch.float64)
        cost = 0.5 * m * (grid - v0) ** 2 + 0.5 * h * d * grid**2 + h * f * grid.abs()
        assert abs(float(grid[cost.argmin()]) - found[i]) <= 2e-5 * float(abs(v0))


def test_many_sweeps_solve_the_optimality_conditions():
    """Several degrees of freedom converge to scipy's minimum of the same convex cost."""
    mass, damping, limit, v = _random(2, 2, batch=8)
    h = 0.1
    found = dissipate(mass, v, damping, limit, h, sweeps=2000)
    for m, d, f, v0, x in zip(mass.numpy(), damping.numpy(), limit.numpy(), v.numpy(), found.numpy(), strict=True):
        def cost(y: np.ndarray, m=m, d=d, f=f, v0=v0) -> float:
            return float(0.5 * (y - v0) @ m @ (y - v0) + 0.5 * h * y @ d @ y + h * f @ np.abs(y))

        options = {"xatol": 1e-10, "fatol": 1e-14, "maxiter": 4000}
        best = min(minimize(cost, y0, method="Nelder-Mead", options=options).fun for y0 in (v0, np.zeros(2)))
        assert cost(x) <= best + 1e-9 * (1 + best)


@given(n=st.integers(1, 4), sweeps=st.integers(0, 10), seed=st.integers(0, 10**6), h=st.floats(1e-5, 10.0))
def test_dissipation_is_passive(n, sweeps, seed, h):
    """Kinetic energy never rises, for any mass, damping, limit, velocity, step and number of sweeps."""
    mass, damping, limit, v = _random(n, seed)
    start = _kinetic(mass, v)
    for d, f in ((damping, limit), (damping, None), (None, limit)):
        assert bool((_kinetic(mass, dissipate(mass, v, d, f, h, sweeps=sweeps)) <= start * (1 + 1e-9)).all())


def test_more_sweeps_take_more_energy():
    """Each sweep lowers the kinetic energy further."""
    mass, _, limit, v = _random(3, 5)
    energies = torch.stack([_kinetic(mass, dissipate(mass, v, None, limit, 0.1, sweeps=k)) for k in range(6)])
    assert bool((energies.diff(dim=0) <= 1e-12 * energies[:1]).all())


@pytest.mark.parametrize("n", [1, 2, 4])
def test_enough_friction_stops_exactly(n):
    """Where the limits can take all momentum in a step, the velocity after it is zero to the last bit."""
    mass, _, _, v = _random(n, 6)
    momentum = (mass @ v.unsqueeze(-1)).squeeze(-1).abs()
    stopped = dissipate(mass, v, None, 1.001 * momentum / 0.01, 0.01)
    assert torch.equal(stopped, torch.zeros_like(v))


def test_no_dissipation_changes_nothing():
    """Neither damping nor friction leaves the velocity."""
    mass, _, _, v = _random(2, 7)
    assert dissipate(mass, v, None, None, 0.1) is v
    assert torch.allclose(dissipate(mass, v, None, torch.zeros_like(v), 0.1), v)


@pytest.mark.parametrize("substeps", [1, 4])
@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_pendulum_sticks_off_centre(integrator, substeps):
    """Gravity below the limit moves it by nothing but rounding in a thousand steps."""
    pendulum = Pendulum(SINGLE.replaced(coulomb={"nominal": 3.0}), integrator=integrator, substeps=substeps)
    start = torch.tensor([0.3, 0.0], dtype=torch.float64)
    x = start
    for _ in range(1000):
        x = pendulum.step(x, torch.zeros(1, dtype=x.dtype))
    assert torch.allclose(x, start, rtol=0, atol=1e-12)


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_double_pendulum_sticks_off_centre(integrator):
    """Two coupled joints stick too, without creep."""
    pendulum = DoublePendulum(DOUBLE.replaced(coulomb1={"nominal": 10.0}, coulomb2={"nominal": 10.0}), integrator=integrator)
    start = torch.tensor([0.1, -0.2, 0.0, 0.0], dtype=torch.float64)
    x = start
    for _ in range(1000):
        x = pendulum.step(x, torch.zeros(2, dtype=x.dtype))
    assert torch.allclose(x, start, rtol=0, atol=1e-12)


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_time_and_way_to_stop(integrator):
    """Dry friction alone decelerates by F/J: it stops after J v/F, having turned J v²/2F, and stays."""
    values = {"gravity_moment": 0.0, "coulomb": 2.0, "inertia": 0.5}
    pendulum = Pendulum(SINGLE.replaced(**{n: {"nominal": x} for n, x in values.items()}), dt=0.001, integrator=integrator)
    x, path = torch.tensor([0.0, 3.0], dtype=torch.float64), []
    for _ in range(1000):
        x = pendulum.step(x, torch.zeros(1, dtype=x.dtype))
        path.append(x)
    states = torch.stack(path)
    moving = states[:, 1] != 0
    assert int(moving.sum()) == pytest.approx(750, abs=1)
    assert float(states[-1, 0]) == pytest.approx(0.5 * 9 / 4, abs=2e-3)
    assert torch.allclose(states[:700, 1], 3.0 - 4.0 * 0.001 * torch.arange(1, 701, dtype=x.dtype))


def test_breaks_away_above_the_limit():
    """A force beyond the limit accelerates by the difference."""
    pendulum = Pendulum(SINGLE.replaced(coulomb={"nominal": 1.0}, gravity_moment={"nominal": 0.0}), dt=0.01)
    x = torch.zeros(2, dtype=torch.float64)
    for _ in range(100):
        x = pendulum.step(x, torch.tensor([1.5], dtype=x.dtype))
    assert float(x[1]) == pytest.approx(0.5)


def test_viscous_decay_converges_to_the_exponential():
    """Implicit damping is of first order in the step."""
    errors = []
    for substeps in (4, 8):
        pendulum = Pendulum(SINGLE.replaced(viscous={"nominal": 2.0}, gravity_moment={"nominal": 0.0}), dt=0.5, substeps=substeps)
        after = pendulum.step(torch.tensor([0.0, 1.0], dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
        errors.append(abs(float(after[1]) - np.exp(-1)))
    assert errors[1] < 0.6 * errors[0]


def test_dissipation_power_is_the_loss_of_kinetic_energy():
    """At constant inertia the certificate's power is what a substep without other forces loses."""
    pendulum = Pendulum(SINGLE.replaced(viscous={"nominal": 0.3}, coulomb={"nominal": 0.5}, gravity_moment={"nominal": 0.0}))
    x = torch.tensor([[0.0, 2.0], [1.0, -3.0], [0.0, 0.0]], dtype=torch.float64)
    u = torch.zeros(3, 1, dtype=torch.float64)
    lost = (pendulum.energy(pendulum.step(x, u)) - pendulum.energy(x)) / pendulum.dt
    assert torch.allclose(pendulum.dissipation_power(x, u), lost)


def test_live_dissipation_adds_to_the_systems_own():
    """Damping and friction given live act as the same named parameters do."""
    x, u = torch.tensor([0.4, 2.0], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    named = system("pendulum", friction=True).step(x, u)
    live = {"damping": torch.tensor([[0.2]], dtype=x.dtype), "frictionloss": torch.tensor([0.3], dtype=x.dtype)}
    weaker = {"viscous": torch.tensor(0.1, dtype=x.dtype), "coulomb": torch.tensor(0.1, dtype=x.dtype)}
    assert torch.allclose(system("pendulum", friction=True).step(x, u, parameters={**weaker, **live}), named)


def test_negative_total_friction_is_none():
    """A live addition that outweighs the limit cannot drive."""
    x, u = torch.tensor([0.4, 2.0], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    negative = {"frictionloss": torch.tensor([-5.0], dtype=x.dtype)}
    assert torch.equal(system("pendulum").step(x, u, parameters=negative), system("pendulum").step(x, u))


@pytest.mark.parametrize("options", [{"dt": 0.0}, {"dt": float("nan")}, {"substeps": 0}, {"integrator": "euler"}])
def test_wrong_options_are_refused(options):
    """The message names the system and what it expected."""
    with pytest.raises(ValueError, match="Pendulum: .*received"):
        Pendulum(**options)
