"""The linear axis against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from problems import INTEGRATORS

from residual_mbrl.physics.linear_drive import LinearDrive

P = {"mass": 100.0, "viscous_forward": 200.0, "viscous_backward": 300.0, "coulomb_forward": 20.0, "coulomb_backward": 30.0,
     "force_offset": -3.0}


def tensor(*entries: float) -> torch.Tensor:
    """Return a vector."""
    return torch.tensor(entries, dtype=torch.float64)


def run(force: float, steps: int, start: tuple[float, float] = (0.0, 0.0), *, integrator: str = "semi_implicit",
        **changes: float) -> torch.Tensor:
    """Simulate under a constant force."""
    drive, x = LinearDrive(integrator=integrator), tensor(*start)  # type: ignore[arg-type]
    p = {n: tensor(value)[0] for n, value in {**P, **changes}.items()}
    for _ in range(steps):
        x = drive.step(x, tensor(force), None, p)
    return x


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize(("force", "dry"), [(120.0, 20.0), (-130.0, -30.0)])
def test_constant_force_accelerates_evenly(force: float, dry: float, integrator: str) -> None:
    """Without viscous friction v = (F - o - F±) t / M, and the distance is its integral to a step's length."""
    x = run(force, 500, integrator=integrator, viscous_forward=0.0, viscous_backward=0.0)
    acceleration = (force + 3.0 - dry) / 100.0
    assert float(x[1]) == pytest.approx(acceleration * 0.5, rel=1e-10)
    assert float(x[0]) == pytest.approx(acceleration * 0.125, rel=3e-3 if integrator == "semi_implicit" else 1e-9)


@pytest.mark.parametrize(("force", "dry", "viscous"), [(120.0, 20.0, 200.0), (-130.0, -30.0, 300.0)])
def test_terminal_speed(force: float, dry: float, viscous: float) -> None:
    """It is (F - o - F±) / c±, of the direction of travel, and approached as exp(-c t / M)."""
    speed = (force + 3.0 - dry) / viscous
    assert float(run(force, 10_000)[1]) == pytest.approx(speed, rel=1e-6)
    assert float(run(force, 500)[1]) == pytest.approx(speed * (1 - math.exp(-viscous * 0.5 / 100.0)), rel=2e-3)


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize(("force", "moves"), [(16.9, 0), (17.1, 1), (-32.9, 0), (-33.1, -1), (0.0, 0)])
def test_it_sticks_until_the_limit_of_the_direction_pushed_to(force: float, moves: int, integrator: str) -> None:
    """The net force F - o must exceed F+ forwards and F- backwards; below it nothing moves at all."""
    x = run(force, 200, integrator=integrator)
    assert (float(x[0]) > 0) - (float(x[0]) < 0) == moves
    assert (float(x[1]) > 0) - (float(x[1]) < 0) == moves


@pytest.mark.parametrize(("speed", "dry"), [(0.3, 20.0), (-0.3, 30.0)])
def test_coasting_stops_after_a_finite_time(speed: float, dry: float) -> None:
    """With dry friction alone after M |v| / F±, and then for good."""
    still = {"viscous_forward": 0.0, "viscous_backward": 0.0}
    stop = 100.0 * abs(speed) / dry
    before, after = (run(-3.0, round(t / 0.001), (0.0, speed), **still) for t in (stop - 0.002, stop + 0.002))
    assert abs(float(before[1])) > 0
    assert float(after[1]) == 0.0
    assert float(after[0]) == pytest.approx(0.5 * speed * stop, rel=3e-3)


def test_a_level_axis_stores_only_kinetic_energy() -> None:
    """1/2 M v² wherever it is."""
    drive = LinearDrive()
    assert float(drive.energy(tensor(5.0, 2.0), {"mass": tensor(100.0)[0]})) == pytest.approx(200.0)


def test_dissipation_is_that_of_the_direction() -> None:
    """Power is -(c± v² + F± |v|), to the length of a step."""
    drive = LinearDrive(dt=1e-6)
    p = {n: tensor(value)[0] for n, value in P.items()}
    x = torch.tensor([[0.0, 0.2], [0.0, -0.2]], dtype=torch.float64)
    expected = -tensor(200.0 * 0.04 + 20.0 * 0.2, 300.0 * 0.04 + 30.0 * 0.2)
    assert torch.allclose(drive.dissipation_power(x, tensor(0.0), p), expected, rtol=1e-4)
