"""What the free flight of a tracked body says about its log: quaternion order, clock, velocities, and the true first state.

Between release and first touch nothing but gravity acts, so the poses must follow a parabola of known curvature, and their
differences must give the logged velocities. Where they do not, the log is at fault and not the contact model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from residual_mbrl.errors import LogError

Array = NDArray[np.float64]

GRAVITY = 9.81
SHORTEST = 8
"""Rows of flight from which curvature and slopes are estimated."""

NORM_TOLERANCE = 1e-3
GRAVITY_TOLERANCE = 0.01
LAG_TOLERANCE = 0.1
"""Lag of the velocities that is worth a word, in rows."""

SCALE_TOLERANCE = 0.003


@dataclass(frozen=True, kw_only=True)
class Poses:
    """Rows of one log of a free body.

    Args:
        name: Name for messages.
        time: Shape [N] [s], evenly spaced.
        position: World position [m], z up, shape [N, 3].
        quaternion: Attitude w-x-y-z, body to world, shape [N, 4].
        velocity: World velocity [m/s], shape [N, 3].
        omega: Angular velocity in the body frame [rad/s], shape [N, 3].
    """

    name: str
    time: Array
    position: Array
    quaternion: Array
    velocity: Array
    omega: Array

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.time)

    def first(self, rows: int) -> Poses:
        """Return the first rows alone."""
        return Poses(name=self.name, time=self.time[:rows], position=self.position[:rows], quaternion=self.quaternion[:rows],
                     velocity=self.velocity[:rows], omega=self.omega[:rows])


@dataclass(frozen=True, kw_only=True)
class FlightReport:
    """What free flights say about the logs they are from.

    Args:
        flights: Flights long enough to be used.
        gravity: Downward acceleration of the poses in the log's own units, median over flights [m/s²].
        gravity_error: Standard error of ``gravity`` [m/s²].
        velocity_scale: Logged horizontal velocity over the slope of the poses [1].
        velocity_lag: Time by which logged velocities are late [s], from the vertical one.
        rate_error: RMS of logged angular velocity against that of the poses [rad/s].
        drag: Deceleration along the horizontal velocity, per velocity [1/s].
        swirl: Acceleration across it, counterclockwise from above, per velocity [1/s]: no air does that, a turning frame of the
            trackers would.
        warnings: What is wrong, and the parameter that takes it up.
    """

    flights: int
    gravity: float
    gravity_error: float
    velocity_scale: float
    velocity_lag: float
    rate_error: float
    drag: float
    swirl: float
    warnings: tuple[str, ...]

    @property
    def clock_scale(self) -> float:
        """True seconds per logged second, if the lengths are right: the curvature is gravity times its square."""
        return float(np.sqrt(self.gravity / GRAVITY))


def check_quaternions(poses: Sequence[Poses]) -> None:
    """Refuse quaternions that are not of unit length, or whose differences fit the logged rates only as x-y-z-w.

    Raises:
        LogError: naming the log and row, or the RMS rate error of both orders.
    """
    for p in poses:
        norm = np.linalg.norm(p.quaternion, axis=1)
        bad = np.flatnonzero(~(np.abs(norm - 1) < NORM_TOLERANCE))
        if len(bad):
            raise LogError(f"{p.name}: quaternion of row {bad[0]} has length {norm[bad[0]]:.4g} ({len(bad)} of {len(p)} rows are not of "
                           "unit length): normalise them if they are scaled, leave the rows out if they are lost")
    w_first = _rate_error(poses, [0, 1, 2, 3])
    w_last = _rate_error(poses, [3, 0, 1, 2])
    if w_last < 0.5 * w_first:
        raise LogError(f"{poses[0].name}: quaternions are in x-y-z-w order: read so, their differences are {w_last:.3g} rad/s from the "
                       f"logged angular velocity, as w-x-y-z {w_first:.3g} rad/s; reorder the columns to w-x-y-z")


def examine(flights: Sequence[Poses]) -> FlightReport:
    """Compare free flights with gravity and with their own logged velocities.

    Args:
        flights: Rows in free flight of each log; those shorter than ``SHORTEST`` are left out.

    Raises:
        LogError: if no flight is long enough, or the quaternions are no attitudes in w-x-y-z order.
    """
    used = [f for f in flights if len(f) >= SHORTEST]
    if not used:
        raise LogError(f"no free flight of {SHORTEST} rows in {len(flights)} log(s): gravity and velocities cannot be checked")
    check_quaternions(used)
    fits = [np.polyfit(f.time - f.time[0], f.position, 2) for f in used]
    falls = np.array([-2 * fit[0, 2] for fit in fits])
    gravity = float(np.median(falls))
    error = float(1.2533 * np.std(falls) / np.sqrt(len(falls)))  # of a median of normal values
    slopes = [2 * np.outer(f.time - f.time[0], fit[0]) + fit[1] for f, fit in zip(used, fits, strict=True)]
    slope, velocity = np.concatenate(slopes), np.concatenate([f.velocity for f in used])
    flat, logged = slope[:, :2], velocity[:, :2]
    scale = float((flat * logged).sum() / (flat * flat).sum()) if (flat * flat).sum() > 0 else 1.0
    lag = float(np.median(velocity[:, 2] / scale - slope[:, 2]) / gravity)
    dt = float(np.median(np.diff(used[0].time)))
    drag, swirl = _velocity_response(fits, [len(f) for f in used])
    return FlightReport(flights=len(used), gravity=gravity, gravity_error=error, velocity_scale=scale, velocity_lag=lag,
                        rate_error=_rate_error(used, [0, 1, 2, 3]), drag=drag, swirl=swirl,
                        warnings=_warnings(gravity, error, scale, lag, dt))


def first_state(flight: Poses, gravity: float, *, drag: float = 0.0, swirl: float = 0.0, skip: int = 0) -> Array:
    """Return the state at the first row that fits the flight best: [position, quaternion, velocity, body rate], shape [13].

    Position ``p + v t + a t²/2``, attitude ``q ⊗ exp(ω t)`` with constant ω: exact for bodies with three equal moments of
    inertia. It removes the noise of a single frame, from which a rollout through impacts would magnify it.

    Args:
        flight: Rows in free flight, at least three after those skipped.
        gravity: Downward acceleration in the log's units [m/s²], as ``examine`` finds it.
        drag: Horizontal deceleration per velocity [1/s].
        swirl: Acceleration across the velocity, per velocity [1/s].
        skip: First rows that are left out, as the body still was in a hand; the fit is carried back over them.
    """
    t = flight.time - flight.time[0]
    slope = np.polyfit(t[skip:], flight.position[skip:], 1)[0]
    pull = np.array([-drag * slope[0] - swirl * slope[1], swirl * slope[0] - drag * slope[1], -gravity])
    straight = flight.position - 0.5 * np.outer(t**2, pull)
    velocity, position = np.polyfit(t[skip:], straight[skip:], 1)
    t, quaternion = t[skip:], flight.quaternion[skip:]

    def error(x: Array) -> Array:
        return _log(_product(_conjugate(_attitude(x, t)), quaternion)).ravel()

    def _attitude(x: Array, t: Array) -> Array:
        return _product(_product(quaternion[:1], _exp(x[None, :3])), _exp(np.outer(t - t0, x[3:])))

    t0 = t[0]
    start = np.concatenate([np.zeros(3), _rates(quaternion, t).mean(0)])
    x = least_squares(error, start).x
    return np.concatenate([position, _attitude(x, np.zeros(1))[0], velocity, x[3:]])


def rotation_between(one: Array, other: Array) -> Array:
    """Return the rotation vector, in the first body's frame, that turns one attitude into the other [rad], shape [..., 3].

    Args:
        one: Quaternions w-x-y-z of unit length, shape [..., 4].
        other: The same.
    """
    return _log(_product(_conjugate(one), other))


def _velocity_response(fits: Sequence[Array], rows: Sequence[int]) -> tuple[float, float]:
    """Return drag and swirl [1/s] from parabolas fitted to flights, curvature against mean velocity; long ones count more."""
    sure = np.asarray(rows, dtype=float) ** 2.5  # one over the standard deviation of a fitted curvature
    ends = [np.polyval(np.polyder(fit[:, k]), 0.0) for fit in fits for k in (0, 1)]
    x, y = np.array(ends).reshape(-1, 2).T
    ax, ay = np.array([2 * fit[0, :2] for fit in fits]).T
    one, none = np.ones_like(x), np.zeros_like(x)
    columns = np.concatenate([np.stack([-x, -y, one, none], 1), np.stack([-y, x, none, one], 1)])
    weight = np.concatenate([sure, sure])
    drag, swirl, *_ = np.linalg.lstsq(columns * weight[:, None], np.concatenate([ax, ay]) * weight, rcond=None)[0]
    return float(drag), float(swirl)


def _warnings(gravity: float, error: float, scale: float, lag: float, dt: float) -> tuple[str, ...]:
    found = []
    ratio = gravity / GRAVITY
    if abs(ratio - 1) > GRAVITY_TOLERANCE and abs(gravity - GRAVITY) > 2 * error:
        found.append(f"free flight falls with {gravity:.3f} ± {2 * error:.3f} m/s² instead of {GRAVITY}: the clock runs "
                     f"{np.sqrt(ratio):.4f} true seconds per logged second, or lengths are {ratio:.4f} of the true ones; free 'gravity.z' "
                     f"(start {-gravity:.3f}) so that no contact parameter takes it up")
    if abs(scale - 1) > SCALE_TOLERANCE:
        found.append(f"logged velocities are {scale:.4f} of the slope of the poses: divide them by it, or derive them from the poses")
    if abs(lag) > LAG_TOLERANCE * dt:
        found.append(f"logged velocities are {1e3 * lag:.2f} ms late ({lag / dt:.2f} rows; 0.5 is a backward difference): subtract gravity "
                     "times that from the vertical one")
    return tuple(found)


def _rate_error(poses: Sequence[Poses], order: Sequence[int]) -> float:
    """Return the RMS [rad/s] of logged rates, averaged over both ends of a step, against the differences of the attitudes."""
    squares = [((_rates(p.quaternion[:, order], p.time) - p.omega[1:]) ** 2).sum(1) for p in poses if len(p) > 1]
    return float(np.sqrt(np.concatenate(squares).mean()))


def _rates(quaternion: Array, time: Array) -> Array:
    """Return the body rate that turns each attitude into the next [rad/s], shape [N - 1, 3]."""
    turned = _log(_product(_conjugate(quaternion[:-1]), quaternion[1:]))
    return np.asarray(turned / np.diff(time)[:, None])


def _product(a: Array, b: Array) -> Array:
    w, u, s, x = a[..., :1], a[..., 1:], b[..., :1], b[..., 1:]
    return np.concatenate([w * s - (u * x).sum(-1, keepdims=True), w * x + s * u + np.cross(u, x)], -1)


def _conjugate(q: Array) -> Array:
    return np.asarray(q * np.array([1.0, -1.0, -1.0, -1.0]))


def _exp(rotation: Array) -> Array:
    angle = np.linalg.norm(rotation, axis=-1, keepdims=True)
    return np.concatenate([np.cos(angle / 2), 0.5 * np.sinc(angle / (2 * np.pi)) * rotation], -1)


def _log(q: Array) -> Array:
    q = np.where(q[..., :1] < 0, -q, q)
    sine = np.linalg.norm(q[..., 1:], axis=-1, keepdims=True)
    angle = 2 * np.arctan2(sine, q[..., :1])
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.where(sine > 1e-12, angle / sine, 2.0)
    return np.asarray(scale * q[..., 1:])
