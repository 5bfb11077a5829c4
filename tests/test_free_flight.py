"""Free flight tells a wrong clock, late or scaled velocities and wrong quaternions, and gives the true first state."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from residual_mbrl.errors import LogError
from residual_mbrl.free_flight import GRAVITY, Poses, check_quaternions, examine, first_state, rotation_between

DT = 0.0068


def flight(seed=0, rows=16, *, gravity=GRAVITY, noise=0.0):
    """A body with three equal moments of inertia in free flight, logged without error but for white noise of the poses."""
    rng = np.random.default_rng(seed)
    t = DT * np.arange(rows)[:, None]
    position, velocity, omega = rng.uniform(0.2, 0.5, 3), rng.uniform(-2, 2, 3), rng.uniform(-6, 6, 3)
    fall = np.array([0, 0, -gravity])
    turned = Rotation.random(rng=rng) * Rotation.from_rotvec(omega * t)
    turned = turned * Rotation.from_rotvec(noise * 10 * rng.standard_normal((rows, 3)))
    path = position + velocity * t + 0.5 * fall * t**2
    return Poses(name=f"toss{seed}", time=t[:, 0], position=path + noise * rng.standard_normal((rows, 3)),
                 quaternion=turned.as_quat(scalar_first=True), velocity=velocity + fall * t, omega=np.tile(omega, (rows, 1)))


def test_a_right_log_has_no_warnings():
    """Gravity, scale and lag are those of the log."""
    report = examine([flight(k) for k in range(5)])
    assert report.warnings == ()
    assert report.gravity == pytest.approx(GRAVITY, abs=1e-6)
    assert (report.velocity_scale, report.velocity_lag, report.clock_scale) == pytest.approx((1, 0, 1), abs=1e-6)
    assert report.rate_error < 1e-6


def test_a_fast_clock_is_told_and_measured():
    """Stamps 2 % too far apart make the fall 4 % too slow; the parameter that takes it up is named."""
    logs = []
    for k in range(5):
        f = flight(k)
        logs.append(replace(f, time=1.02 * f.time, velocity=f.velocity / 1.02, omega=f.omega / 1.02))
    report = examine(logs)
    assert report.clock_scale == pytest.approx(1 / 1.02, abs=1e-4)
    assert len(report.warnings) == 1
    assert "gravity.z" in report.warnings[0]
    assert "clock" in report.warnings[0]


def test_backward_differences_are_half_a_row_late():
    """Velocities that are differences of the poses, scaled as a wrong time step scales them."""
    logs = []
    for k in range(5):
        f = flight(k, 17)
        late = replace(f, velocity=1.02 * np.diff(f.position, axis=0, prepend=np.nan) / DT)
        logs.append(replace(late, time=f.time[1:], position=f.position[1:], quaternion=f.quaternion[1:], velocity=late.velocity[1:],
                            omega=f.omega[1:]))
    report = examine(logs)
    assert report.velocity_lag == pytest.approx(DT / 2, rel=0.1)  # the scale is from the horizontal, which the lag leaves alone
    assert report.velocity_scale == pytest.approx(1.02, abs=1e-6)
    assert any("1.0200" in w for w in report.warnings)
    assert any("late" in w for w in report.warnings)


def test_x_y_z_w_is_told():
    """From the angular velocity, which is right in one order alone."""
    logs = [replace(f, quaternion=np.roll(f.quaternion, -1, 1)) for f in map(flight, range(3))]
    with pytest.raises(LogError, match="x-y-z-w"):
        check_quaternions(logs)
    with pytest.raises(LogError, match="x-y-z-w"):
        examine(logs)


@pytest.mark.parametrize("factor", [2.0, 0.0, np.nan])
def test_lengths_other_than_one_are_told(factor):
    """With log, row and length; NaN too."""
    f = flight()
    f.quaternion[5] *= factor
    with pytest.raises(LogError, match="toss0: quaternion of row 5 has length"):
        examine([f])


def test_too_short_flights_are_refused():
    """Nothing can be said of gravity from a few rows."""
    with pytest.raises(LogError, match="no free flight of 8 rows in 1"):
        examine([flight(rows=7)])


def test_the_first_state_is_exact_without_noise():
    """Whatever the logged velocities say."""
    f = flight(3)
    state = first_state(replace(f, velocity=0 * f.velocity, omega=0 * f.omega), GRAVITY)
    assert np.allclose(state, np.concatenate([f.position[0], f.quaternion[0], f.velocity[0], f.omega[0]]), atol=1e-8)


def test_the_first_state_averages_noise():
    """The fit to a flight is better than differences of its first rows."""
    exact, noisy = ([flight(k, noise=n) for k in range(20)] for n in (0.0, 1e-4))
    error = [first_state(n, GRAVITY)[7:10] - e.velocity[0] for e, n in zip(exact, noisy, strict=True)]
    differences = [(n.position[1] - n.position[0]) / DT - (e.position[1] - e.position[0]) / DT for e, n in zip(exact, noisy, strict=True)]
    assert np.std(error) < 0.2 * np.std(differences)


def curved(seed, drag=0.05, swirl=0.12, rows=20):
    """A flight with an acceleration along and across its horizontal velocity."""
    f = flight(seed, rows)
    slope = f.velocity[0]
    pull = np.array([-drag * slope[0] - swirl * slope[1], swirl * slope[0] - drag * slope[1], 0.0])
    return replace(f, position=f.position + 0.5 * np.outer(f.time**2, pull), velocity=f.velocity + np.outer(f.time, pull))


def test_drag_and_swirl_are_found():
    """Both from the curvature of the horizontal path, zero where it is straight."""
    report = examine([curved(k) for k in range(8)])
    assert (report.drag, report.swirl) == pytest.approx((0.05, 0.12), abs=1e-6)
    straight = examine([flight(k) for k in range(8)])
    assert (straight.drag, straight.swirl) == pytest.approx((0, 0), abs=1e-6)


def test_first_state_leaves_out_the_release():
    """Rows in which a hand still turns the body do not count, and the flight is carried back over them."""
    f = curved(3)
    held = np.array([0.01, -0.02, 0.005]) * np.arange(5, 0, -1)[:, None] ** 2 / 25
    pushed = replace(f, position=f.position.copy(), quaternion=f.quaternion.copy())
    pushed.position[:5] += 0.1 * held
    turned = Rotation.from_quat(f.quaternion[:5], scalar_first=True) * Rotation.from_rotvec(held)
    pushed.quaternion[:5] = turned.as_quat(scalar_first=True)
    found = first_state(pushed, GRAVITY, drag=0.05, swirl=0.12, skip=5)
    assert found[:3] == pytest.approx(f.position[0], abs=1e-5)
    assert found[7:10] == pytest.approx(f.velocity[0], abs=1e-3)
    assert found[10:] == pytest.approx(f.omega[0], abs=1e-6)
    assert rotation_between(found[3:7], f.quaternion[0]) == pytest.approx(np.zeros(3), abs=1e-6)
    assert np.abs(first_state(pushed, GRAVITY)[10:] - f.omega[0]).max() > 0.01
