"""The Warp form of the step in ``quadrotor``: the same equations for one world.

``tests/test_quadrotor_warp.py`` holds the two together. Within a substep the state is that of the centre of mass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from residual_mbrl.physics.mechanical_warp import WarpFunction

RAD = 1000.0
"""As in ``quadrotor``: rad in a krad."""
TINY = 1e-20
SERIES = 0.04
"""Squared half angle below which the exponential map is its power series, to rounding in float32."""


def warp_substep(names: Sequence[str], rotors: Sequence[Sequence[int]], *, h: float, integrator: str) -> WarpFunction:
    """Return ``substep(x, u, force, p) -> x'`` over h seconds: 17 states, 4 commands, 6 entries of force, parameters in their order.

    Args:
        names: The parameters in order.
        rotors: Signs of x and y, and spin, of each rotor.
        h: Seconds.
        integrator: "semi_implicit" or "rk4".
    """
    import warp as wp  # noqa: PLC0415  # half a second that only fused rollouts need

    vx, v4 = (wp.types.vector(length=n, dtype=wp.float32) for n in (17, 4))
    index = list(names).index
    gain, battery, exponent = index("command_gain"), index("battery"), index("battery_exponent")
    to_centre, from_centre = _frames(_axes(index, "centre"))
    move = _substep(index, rotors, h, integrator)

    @wp.func
    def substep(x: Any, u: Any, force: Any, p: Any) -> Any:
        scale = p[gain] * wp.exp(p[exponent] * wp.log(p[battery]))
        target = scale * v4(u[0], u[1], u[2], u[3])
        return from_centre(move(to_centre(vx(x), p), target, force, p), p)

    return substep


def warp_signals(names: Sequence[str]) -> dict[str, tuple[int, WarpFunction]]:
    """Return length and Warp form ``(x, u, p) -> vector`` of each signal of a quadrotor with these parameters."""
    import warp as wp  # noqa: PLC0415

    v3, v4 = (wp.types.vector(length=n, dtype=wp.float32) for n in (3, 4))
    back, (_, attitude, velocity, _, speeds, _) = _turning().back, _layout()
    k1, k2, k3, k4 = (list(names).index(f"thrust{i}") for i in (1, 2, 3, 4))

    @wp.func
    def upright(x: Any) -> Any:
        q = attitude(x)
        return q / wp.sqrt(wp.dot(q, q))

    @wp.func
    def thrust(x: Any, u: Any, p: Any) -> Any:
        s = speeds(x)
        return v4(p[k1] * s[0] * wp.abs(s[0]), p[k2] * s[1] * wp.abs(s[1]), p[k3] * s[2] * wp.abs(s[2]), p[k4] * s[3] * wp.abs(s[3]))

    @wp.func
    def body_velocity(x: Any, u: Any, p: Any) -> Any:
        return back(upright(x), velocity(x))

    @wp.func
    def gravity_direction(x: Any, u: Any, p: Any) -> Any:
        return back(upright(x), v3(0.0, 0.0, -1.0))

    return {"thrust": (4, thrust), "body_velocity": (3, body_velocity), "gravity_direction": (3, gravity_direction)}


class _Turning(NamedTuple):
    """Rotations in Warp; quaternions are four-vectors w-x-y-z, Warp's own are x-y-z-w."""

    rotate: WarpFunction
    """``rotate(q, body vector)``."""
    back: WarpFunction
    """``back(q, world vector)``."""
    move: WarpFunction
    """``move(q, θ)``: q ⊗ exp(θ)."""
    rate: WarpFunction
    """``rate(θ, ω)``: dθ/dt, as ``rotations.exponential_rate``."""


def _turning() -> _Turning:
    import warp as wp  # noqa: PLC0415

    series, (v3, v4) = SERIES, (wp.types.vector(length=n, dtype=wp.float32) for n in (3, 4))

    @wp.func
    def turned(scalar: float, axis: Any, vector: Any) -> Any:
        once = wp.cross(axis, vector)
        return vector + 2.0 * (scalar * once + wp.cross(axis, once))  # type: ignore[operator]

    @wp.func
    def rotate(q: Any, vector: Any) -> Any:
        return turned(q[0], v3(q[1], q[2], q[3]), vector)

    @wp.func
    def back(q: Any, vector: Any) -> Any:
        return turned(q[0], -v3(q[1], q[2], q[3]), vector)

    @wp.func
    def move(q: Any, rotation: Any) -> Any:
        # both branches are differentiated, so the one not taken must stay finite
        s = 0.25 * wp.dot(rotation, rotation)
        half = wp.sqrt(wp.where(s > series, s, 1.0))
        c = wp.where(s > series, wp.cos(half), 1.0 - s * (0.5 - s * (1.0 / 24.0 - s / 720.0)))
        k = 0.5 * wp.where(s > series, wp.sin(half) / half, 1.0 - s * (1.0 / 6.0 - s * (1.0 / 120.0 - s / 5040.0)))
        a = q[0]
        axis = v3(q[1], q[2], q[3])
        r = k * rotation
        turned_axis = a * r + c * axis + wp.cross(axis, r)
        return v4(a * c - wp.dot(axis, r), turned_axis[0], turned_axis[1], turned_axis[2])

    @wp.func
    def rate(rotation: Any, w: Any) -> Any:
        first = wp.cross(rotation, w)
        return w + 0.5 * first + wp.cross(rotation, first) / 12.0  # type: ignore[operator]

    return _Turning(rotate, back, move, rate)


class _Layout(NamedTuple):
    """How a state is taken apart and put together."""

    position: WarpFunction
    attitude: WarpFunction
    velocity: WarpFunction
    turning: WarpFunction
    speeds: WarpFunction
    join: WarpFunction


def _layout() -> _Layout:
    import warp as wp  # noqa: PLC0415

    vx, v3, v4 = (wp.types.vector(length=n, dtype=wp.float32) for n in (17, 3, 4))

    @wp.func
    def position(x: Any) -> Any:
        return v3(x[0], x[1], x[2])

    @wp.func
    def attitude(x: Any) -> Any:
        return v4(x[3], x[4], x[5], x[6])

    @wp.func
    def velocity(x: Any) -> Any:
        return v3(x[7], x[8], x[9])

    @wp.func
    def turning(x: Any) -> Any:
        return v3(x[10], x[11], x[12])

    @wp.func
    def speeds(x: Any) -> Any:
        return v4(x[13], x[14], x[15], x[16])

    @wp.func
    def join(r: Any, q: Any, v: Any, w: Any, s: Any) -> Any:
        return vx(r[0], r[1], r[2], q[0], q[1], q[2], q[3], v[0], v[1], v[2], w[0], w[1], w[2], s[0], s[1], s[2], s[3])

    return _Layout(position, attitude, velocity, turning, speeds, join)


def _axes(index: Any, name: str) -> tuple[int, int, int]:
    """Return the places of a parameter's three components."""
    return index(f"{name}_x"), index(f"{name}_y"), index(f"{name}_z")


def _frames(centre: tuple[int, int, int]) -> tuple[WarpFunction, WarpFunction]:
    """Return the passage from the state of the origin to that of the centre of mass, given by three parameters, and back."""
    import warp as wp  # noqa: PLC0415

    rotate, v3 = _turning().rotate, wp.types.vector(length=3, dtype=wp.float32)
    position, attitude, velocity, turning, speeds, join = _layout()

    @wp.func
    def shifted(x: Any, q: Any, offset: Any) -> Any:
        w = turning(x)
        return join(position(x) + rotate(q, offset), q, velocity(x) + rotate(q, wp.cross(w, offset)), w, speeds(x))

    @wp.func
    def to_centre(x: Any, p: Any) -> Any:
        q = attitude(x)
        return shifted(x, q / wp.sqrt(wp.dot(q, q)), v3(p[centre[0]], p[centre[1]], p[centre[2]]))

    @wp.func
    def from_centre(x: Any, p: Any) -> Any:
        return shifted(x, attitude(x), -v3(p[centre[0]], p[centre[1]], p[centre[2]]))

    return to_centre, from_centre


class _Forces(NamedTuple):
    """What moves the centre of mass and turns the body."""

    pushed: WarpFunction
    """``pushed(q, v, w, speeds, force, p)``: acceleration [m/s²]."""
    turned: WarpFunction
    """``turned(q, v, w, speeds, force, p)``: angular acceleration [rad/s²], but for what dh/dt does."""
    reaction: WarpFunction
    """``reaction(change of speeds, p)``: the change of body rate that it causes at once."""


def _forces(index: Any, rotors: Sequence[Sequence[int]]) -> _Forces:
    import warp as wp  # noqa: PLC0415

    v3, v4 = (wp.types.vector(length=n, dtype=wp.float32) for n in (3, 4))
    rad, tiny, back, rotate = RAD, TINY, _turning().back, _turning().rotate
    mass, gravity, arm_x, arm_y = (index(n) for n in ("mass", "gravity", "arm_x", "arm_y"))
    k1, k2, k3, k4 = (index(f"thrust{i}") for i in (1, 2, 3, 4))
    drag_torque, rotor_inertia, by_rotors, quadratic = (index(n) for n in ("drag_torque", "rotor_inertia", "drag_rotor", "drag_quadratic"))
    centre, drag, pressure, rate_drag, trim = (_axes(index, n) for n in ("centre", "drag", "pressure", "rate_drag", "trim"))
    mx, my, axial_x, axial_y = (index(n) for n in ("flow_moment_x", "flow_moment_y", "flow_moment_axial_x", "flow_moment_axial_y"))
    gained = index("translational_lift")
    xx, yy, zz, xy, xz, yz = (index(f"inertia_{n}") for n in ("xx", "yy", "zz", "xy", "xz", "yz"))
    (x1, y1, s1), (x2, y2, s2), (x3, y3, s3), (x4, y4, s4) = [[float(sign) for sign in r] for r in rotors]

    @wp.func
    def squares(s: Any) -> Any:
        return v4(s[0] * wp.abs(s[0]), s[1] * wp.abs(s[1]), s[2] * wp.abs(s[2]), s[3] * wp.abs(s[3]))

    @wp.func
    def thrusts(s: Any, p: Any) -> Any:
        return wp.cw_mul(v4(p[k1], p[k2], p[k3], p[k4]), squares(s))

    @wp.func
    def along(p: Any, axes: tuple[int, int, int]) -> Any:
        return v3(p[axes[0]], p[axes[1]], p[axes[2]])

    @wp.func
    def spun(s: Any) -> float:
        return float(s1 * s[0] + s2 * s[1] + s3 * s[2] + s4 * s[3])

    @wp.func
    def lifting(t: Any, passing: Any, p: Any) -> Any:
        return v3(0.0, 0.0, t[0] + t[1] + t[2] + t[3] + p[gained] * (passing[0] * passing[0] + passing[1] * passing[1]))

    @wp.func
    def flow_torque(passing: Any, p: Any) -> Any:
        return v3((p[mx] + p[axial_x] * passing[2]) * passing[1], -(p[my] + p[axial_y] * passing[2]) * passing[0], 0.0)

    @wp.func
    def dragging(q: Any, v: Any, w: Any, s: Any, p: Any) -> Any:
        passing = back(q, v) + wp.cross(w, along(p, pressure) - along(p, centre))
        steady = p[quadratic] * wp.sqrt(wp.dot(passing, passing) + tiny)
        level = steady + p[by_rotors] * (wp.abs(s[0]) + wp.abs(s[1]) + wp.abs(s[2]) + wp.abs(s[3]))
        return -wp.cw_mul(along(p, drag) + v3(level, level, steady), passing)

    @wp.func
    def times_inertia(w: Any, p: Any) -> Any:
        return v3(p[xx] * w[0] + p[xy] * w[1] + p[xz] * w[2], p[xy] * w[0] + p[yy] * w[1] + p[yz] * w[2],
                       p[xz] * w[0] + p[yz] * w[1] + p[zz] * w[2])

    @wp.func
    def over_inertia(b: Any, p: Any) -> Any:
        # by factors L D Lᵀ: the determinant of so small an inertia would be far from one
        l21 = p[xy] / p[xx]
        l31 = p[xz] / p[xx]
        d2 = p[yy] - l21 * p[xy]
        l32 = (p[yz] - l21 * p[xz]) / d2
        d3 = p[zz] - l31 * p[xz] - l32 * l32 * d2
        b2 = b[1] - l21 * b[0]
        w3 = (b[2] - l31 * b[0] - l32 * b2) / d3
        w2 = b2 / d2 - l32 * w3
        return v3(b[0] / p[xx] - l21 * w2 - l31 * w3, w2, w3)

    @wp.func
    def pushed(q: Any, v: Any, w: Any, s: Any, force: Any, p: Any) -> Any:
        inside = lifting(thrusts(s, p), back(q, v), p) + dragging(q, v, w, s, p)
        outside = v3(force[0], force[1], force[2])
        return (rotate(q, inside) + outside) / p[mass] - v3(0.0, 0.0, p[gravity])

    @wp.func
    def turned(q: Any, v: Any, w: Any, s: Any, force: Any, p: Any) -> Any:
        t = thrusts(s, p)
        roll = p[arm_y] * (y1 * t[0] + y2 * t[1] + y3 * t[2] + y4 * t[3])
        pitch = -p[arm_x] * (x1 * t[0] + x2 * t[1] + x3 * t[2] + x4 * t[3])
        from_rotors = v3(roll, pitch, -p[drag_torque] * spun(squares(s)))
        passing = back(q, v)
        at_origin = lifting(t, passing, p) + back(q, v3(force[0], force[1], force[2]))
        shifted = wp.cross(along(p, pressure) - along(p, centre), dragging(q, v, w, s, p)) - wp.cross(along(p, centre), at_origin)  # type: ignore[operator]
        momentum = times_inertia(w, p) + v3(0.0, 0.0, rad * p[rotor_inertia] * spun(s))
        own = flow_torque(passing, p) + along(p, trim) - wp.cw_mul(along(p, rate_drag), w) + v3(force[3], force[4], force[5])
        return over_inertia(from_rotors + shifted + own - wp.cross(w, momentum), p)

    @wp.func
    def reaction(change: Any, p: Any) -> Any:
        return over_inertia(v3(0.0, 0.0, -rad * p[rotor_inertia] * spun(change)), p)

    return _Forces(pushed, turned, reaction)


def _substep(index: Any, rotors: Sequence[Sequence[int]], h: float, integrator: str) -> WarpFunction:
    """Return ``substep(x, target, force, p)`` of the centre of mass, over h seconds."""
    import warp as wp  # noqa: PLC0415

    position, attitude, velocity, turning, speeds, join = _layout()
    pushed, turned, reaction = _forces(index, rotors)
    move, rate = _turning().move, _turning().rate
    half, sixth, lag = 0.5 * h, h / 6.0, index("motor_lag")

    @wp.func
    def lagged(s: Any, target: Any, time: float, p: Any) -> Any:
        return target + wp.exp(-time / p[lag]) * (s - target)

    @wp.func
    def semi_implicit(x: Any, target: Any, force: Any, p: Any) -> Any:
        q = attitude(x)
        v = velocity(x)
        w = turning(x)
        s = lagged(speeds(x), target, h, p)
        new_v = v + h * pushed(q, v, w, s, force, p)
        new_w = w + h * turned(q, v, w, s, force, p) + reaction(s - speeds(x), p)
        return join(position(x) + h * new_v, move(q, h * new_w), new_v, new_w, s)

    @wp.func
    def runge_kutta(x: Any, target: Any, force: Any, p: Any) -> Any:
        q = attitude(x)
        v = velocity(x)
        w = turning(x)
        s = speeds(x)
        middle = lagged(s, target, half, p)
        after = lagged(s, target, h, p)
        jump = reaction(middle - s, p)
        whole_jump = reaction(after - s, p)
        a1 = pushed(q, v, w, s, force, p)
        b1 = turned(q, v, w, s, force, p)
        v2 = v + half * a1
        w2 = w + half * b1 + jump
        c2 = half * w
        q2 = move(q, c2)
        a2 = pushed(q2, v2, w2, middle, force, p)
        b2 = turned(q2, v2, w2, middle, force, p)
        r2 = rate(c2, w2)
        v3 = v + half * a2
        w3 = w + half * b2 + jump
        c3 = half * r2
        q3 = move(q, c3)
        a3 = pushed(q3, v3, w3, middle, force, p)
        b3 = turned(q3, v3, w3, middle, force, p)
        r3 = rate(c3, w3)
        v4 = v + h * a3
        w4 = w + h * b3 + whole_jump
        c4 = h * r3
        q4 = move(q, c4)
        a4 = pushed(q4, v4, w4, after, force, p)
        b4 = turned(q4, v4, w4, after, force, p)
        r4 = rate(c4, w4)
        new_q = move(q, sixth * (w + 2.0 * (r2 + r3) + r4))
        new_w = w + sixth * (b1 + 2.0 * (b2 + b3) + b4) + whole_jump
        moved = position(x) + sixth * (v + 2.0 * (v2 + v3) + v4)
        return join(moved, new_q, v + sixth * (a1 + 2.0 * (a2 + a3) + a4), new_w, after)

    return semi_implicit if integrator == "semi_implicit" else runge_kutta
