"""The Warp form of the step in ``mechanical``: the same equations for one world, in scalars and small vectors.

``tests/test_warp_forms.py`` holds the two together. The functions are generic (``Any``), so that one text serves each size; matrices
are vectors by rows. Loops have constant bounds up to 16, which Warp unrolls: its reverse mode through any other loop is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

WarpFunction = Callable[..., Any]
SWEEPS = 8
UNROLLED = 16
"""Longest loop that Warp differentiates rightly."""
HELD = 1e-6
"""As in ``mechanical``: friction holds a body that it leaves less than this fraction of its velocity."""


class WarpTerms(NamedTuple):
    """The parts of ``M(q) dv/dt = f(q, v, u) - D v - F sign(v)`` as Warp functions of small vectors; p in the order of the parameters."""

    mass: WarpFunction
    """``mass(q, p)``, nv * nv entries by rows."""
    force: WarpFunction
    """``force(q, v, u, p)``, nv entries."""
    damping: WarpFunction | None = None
    """``damping(q, v, u, p)``, nv * nv entries by rows; None where the system has none."""
    friction: WarpFunction | None = None
    """``friction(q, v, u, p)``, nv entries; None where the system has none."""
    damping_parameters: tuple[str, ...] = ()
    """Parameters that damping is made of: while all are zero and none is differentiated it is left out."""
    friction_parameters: tuple[str, ...] = ()
    """The same for friction."""


class StepOptions(NamedTuple):
    """What a step must take into account."""

    dt: float
    substeps: int
    integrator: str
    damping: bool
    """Whether the system's own damping acts."""
    friction: bool
    """Whether the system's own dry friction acts."""
    live_damping: bool = False
    """Whether a residual adds damping."""
    live_friction: bool = False
    """Whether a residual adds to the friction limit."""


def warp_step(terms: WarpTerms, nv: int, options: StepOptions) -> WarpFunction | None:
    """Return ``step(x, u, port, p)`` with port = [force (nv), damping (nv * nv), friction limit (nv)]; None where there is no form.

    Args:
        terms: The system.
        nv: Degrees of freedom, 1 or 2.
        options: Integrator, and what dissipates.
    """
    if nv not in (1, 2) or options.substeps > UNROLLED:
        return None
    import warp as wp  # noqa: PLC0415  # half a second that only fused rollouts need

    parts = _parts(nv)
    positions, velocities, join, force_in, vx = parts.positions, parts.velocities, parts.join, parts.force, parts.state
    h = options.dt / options.substeps
    half, sixth, twelfth = 0.5 * h, h / 6.0, h / 12.0
    substeps, held = options.substeps, HELD
    solve = _solve(nv)
    mass_of, force_of = terms.mass, terms.force
    dissipate = _dissipation(terms, nv, h, options)

    @wp.func
    def accelerate(q: Any, v: Any, u: Any, force: Any, p: Any) -> Any:
        return solve(mass_of(q, p), force_of(q, v, u, p) + force)

    @wp.func
    def semi_implicit(x: Any, u: Any, port: Any, p: Any) -> Any:
        q = positions(x)
        v = velocities(x)
        new_v = dissipate(q, v, v + h * accelerate(q, v, u, force_in(port), p), u, port, p)
        return join(q + h * new_v, new_v)

    @wp.func
    def unheld(curvature: float, v: float, new_v: float, free_v: float) -> float:
        return float(wp.where(wp.max(wp.abs(v), wp.abs(new_v)) < held * wp.abs(free_v), 0.0, curvature))

    @wp.func
    def unheld_one(c: Any, v: Any, new_v: Any, free_v: Any) -> Any:
        return type(c)(unheld(c[0], v[0], new_v[0], free_v[0]))

    @wp.func
    def unheld_two(c: Any, v: Any, new_v: Any, free_v: Any) -> Any:
        return type(c)(unheld(c[0], v[0], new_v[0], free_v[0]), unheld(c[1], v[1], new_v[1], free_v[1]))

    @wp.func
    def as_it_is(c: Any, v: Any, new_v: Any, free_v: Any) -> Any:
        return c

    rubs = options.friction or options.live_friction
    curved = (unheld_one if nv == 1 else unheld_two) if rubs else as_it_is

    @wp.func
    def runge_kutta(x: Any, u: Any, port: Any, p: Any) -> Any:
        q = positions(x)
        v = velocities(x)
        force = force_in(port)
        k1 = accelerate(q, v, u, force, p)
        v2 = v + half * k1
        k2 = accelerate(q + half * v, v2, u, force, p)
        v3 = v + half * k2
        k3 = accelerate(q + half * v2, v3, u, force, p)
        v4 = v + h * k3
        k4 = accelerate(q + h * v3, v4, u, force, p)
        free_v = v + sixth * (k1 + 2.0 * (k2 + k3) + k4)
        new_v = dissipate(q, v, free_v, u, port, p)
        curvature = curved(twelfth * (k1 - k4), v, new_v, free_v)
        return join(q + h * (0.5 * (v + new_v) + curvature), new_v)

    substep = semi_implicit if options.integrator == "semi_implicit" else runge_kutta

    @wp.func
    def step(x: Any, u: Any, port: Any, p: Any) -> Any:
        state = vx(x)
        for _ in range(substeps):
            state = substep(state, u, port, p)
        return state

    return step


class _Parts(NamedTuple):
    """How state and port vectors are taken apart; written out by size, since Warp mistrusts entries assigned in a loop."""

    state: Any
    positions: WarpFunction
    velocities: WarpFunction
    join: WarpFunction
    force: WarpFunction
    damping: WarpFunction
    limit: WarpFunction
    times: WarpFunction


def _parts(nv: int) -> _Parts:
    import warp as wp  # noqa: PLC0415

    vq, vm, vx = (wp.types.vector(length=n, dtype=wp.float32) for n in (nv, nv * nv, 2 * nv))

    @wp.func
    def head_one(x: Any) -> Any:
        return vq(x[0])

    @wp.func
    def head_two(x: Any) -> Any:
        return vq(x[0], x[1])

    @wp.func
    def tail_one(x: Any) -> Any:
        return vq(x[1])

    @wp.func
    def tail_two(x: Any) -> Any:
        return vq(x[2], x[3])

    @wp.func
    def join_one(q: Any, v: Any) -> Any:
        return vx(q[0], v[0])

    @wp.func
    def join_two(q: Any, v: Any) -> Any:
        return vx(q[0], q[1], v[0], v[1])

    @wp.func
    def damping_one(port: Any) -> Any:
        return vm(port[1])

    @wp.func
    def damping_two(port: Any) -> Any:
        return vm(port[2], port[3], port[4], port[5])

    @wp.func
    def limit_one(port: Any) -> Any:
        return vq(port[2])

    @wp.func
    def limit_two(port: Any) -> Any:
        return vq(port[6], port[7])

    @wp.func
    def times_one(m: Any, x: Any) -> Any:
        return vq(m[0] * x[0])

    @wp.func
    def times_two(m: Any, x: Any) -> Any:
        return vq(m[0] * x[0] + m[1] * x[1], m[2] * x[0] + m[3] * x[1])

    if nv == 1:
        return _Parts(vx, head_one, tail_one, join_one, head_one, damping_one, limit_one, times_one)
    return _Parts(vx, head_two, tail_two, join_two, head_two, damping_two, limit_two, times_two)


def _solve(nv: int) -> WarpFunction:
    """Solve a symmetric system of one or two unknowns."""
    import warp as wp  # noqa: PLC0415

    v1, v2 = (wp.types.vector(length=n, dtype=wp.float32) for n in (1, 2))

    @wp.func
    def solve_one(m: Any, b: Any) -> Any:
        return v1(b[0] / m[0])

    @wp.func
    def solve_two(m: Any, b: Any) -> Any:
        det = m[0] * m[3] - m[1] * m[1]
        return v2((m[3] * b[0] - m[1] * b[1]) / det, (m[0] * b[1] - m[1] * b[0]) / det)

    return solve_one if nv == 1 else solve_two


def _dissipation(terms: WarpTerms, nv: int, h: float, options: StepOptions) -> WarpFunction:
    """Return ``dissipate(q, v, free, u, port, p)``: ``free`` after damping and dry friction, both taken at (q, v), over h seconds."""
    import warp as wp  # noqa: PLC0415

    parts = _parts(nv)
    damping_in, limit_in, times = parts.damping, parts.limit, parts.times
    solve, rub = _solve(nv), _friction_one(h) if nv == 1 else _friction_two(h)
    mass_of, damping_of, friction_of = terms.mass, terms.damping, terms.friction

    @wp.func
    def both_dampings(q: Any, v: Any, u: Any, port: Any, p: Any) -> Any:
        return damping_of(q, v, u, p) + damping_in(port)  # type: ignore[misc]

    @wp.func
    def own_damping(q: Any, v: Any, u: Any, port: Any, p: Any) -> Any:
        return damping_of(q, v, u, p)  # type: ignore[misc]

    @wp.func
    def live_damping(q: Any, v: Any, u: Any, port: Any, p: Any) -> Any:
        return damping_in(port)

    @wp.func
    def own_limit(q: Any, v: Any, u: Any, port: Any, p: Any) -> Any:
        return friction_of(q, v, u, p)  # type: ignore[misc]

    @wp.func
    def positive(x: float) -> float:
        return float(wp.where(x < 0.0, 0.0, x))  # as in torch, zero itself lets a gradient through: an untrained limit can grow

    @wp.func
    def both_limits(q: Any, v: Any, u: Any, port: Any, p: Any) -> Any:
        return clamped(friction_of(q, v, u, p) + limit_in(port))  # type: ignore[misc]

    @wp.func
    def live_limit(q: Any, v: Any, u: Any, port: Any, p: Any) -> Any:
        return clamped(limit_in(port))

    @wp.func
    def clamped_one(x: Any) -> Any:
        return type(x)(positive(x[0]))

    @wp.func
    def clamped_two(x: Any) -> Any:
        return type(x)(positive(x[0]), positive(x[1]))

    clamped = clamped_one if nv == 1 else clamped_two
    damps, rubs = options.damping and damping_of is not None, options.friction and friction_of is not None
    damping = (both_dampings if options.live_damping else own_damping) if damps else live_damping
    limit = (both_limits if options.live_friction else own_limit) if rubs else live_limit

    @wp.func
    def free_motion(q: Any, v: Any, free: Any, u: Any, port: Any, p: Any) -> Any:
        return free

    @wp.func
    def damped(q: Any, v: Any, free: Any, u: Any, port: Any, p: Any) -> Any:
        mass = mass_of(q, p)
        return solve(mass + h * damping(q, v, u, port, p), times(mass, free))

    @wp.func
    def rubbed(q: Any, v: Any, free: Any, u: Any, port: Any, p: Any) -> Any:
        return rub(mass_of(q, p), free, limit(q, v, u, port, p))

    @wp.func
    def damped_and_rubbed(q: Any, v: Any, free: Any, u: Any, port: Any, p: Any) -> Any:
        mass = mass_of(q, p)
        whole = mass + h * damping(q, v, u, port, p)
        return rub(whole, solve(whole, times(mass, free)), limit(q, v, u, port, p))

    if damps or options.live_damping:
        return damped_and_rubbed if rubs or options.live_friction else damped
    return rubbed if rubs or options.live_friction else free_motion


def _clip() -> WarpFunction:
    """Return the Warp form of ``mechanical.clip``."""
    import warp as wp  # noqa: PLC0415

    @wp.func
    def clip(x: float, bound: float) -> float:
        return float(wp.where(x < -bound, -bound, wp.where(x > bound, bound, x)))

    return clip


def _friction_one(h: float) -> WarpFunction:
    """One degree of freedom, exact: friction takes at most what there is."""
    import warp as wp  # noqa: PLC0415

    v1, clip = wp.types.vector(length=1, dtype=wp.float32), _clip()

    @wp.func
    def rub_one(mass: Any, v: Any, limit: Any) -> Any:
        bound = h * limit[0] / mass[0]
        return v1(v[0] - clip(v[0], bound))

    return rub_one


def _friction_two(h: float) -> WarpFunction:
    """Two degrees of freedom: exact sticking of both, else projected Gauss-Seidel on the friction impulses."""
    import warp as wp  # noqa: PLC0415

    v2, v4 = (wp.types.vector(length=n, dtype=wp.float32) for n in (2, 4))
    sweeps, clip = SWEEPS, _clip()

    @wp.func
    def sweep(s: Any, i00: float, i01: float, i11: float, b0: float, b1: float) -> Any:
        # s holds velocities and impulses; the inverse mass matrix has columns (i00, i01) and (i01, i11)
        p0 = clip(s[2] - s[0] / i00, b0)
        d0 = p0 - s[2]
        v0 = s[0] + i00 * d0
        v1 = s[1] + i01 * d0
        p1 = clip(s[3] - v1 / i11, b1)
        d1 = p1 - s[3]
        return v4(v0 + i01 * d1, v1 + i11 * d1, p0, p1)

    @wp.func
    def rub_two(m: Any, v: Any, limit: Any) -> Any:
        b0 = h * limit[0]
        b1 = h * limit[1]
        stop0 = -(m[0] * v[0] + m[1] * v[1])
        stop1 = -(m[2] * v[0] + m[3] * v[1])
        s = v4(v[0], v[1], 0.0, 0.0)
        if wp.abs(stop0) <= b0 and wp.abs(stop1) <= b1:
            s = v4(0.0, 0.0, stop0, stop1)
        det = m[0] * m[3] - m[1] * m[2]
        i00 = m[3] / det
        i01 = -m[1] / det
        i11 = m[0] / det
        for _ in range(sweeps):
            s = sweep(s, i00, i01, i11, b0, b1)
        return v2(s[0], s[1])

    return rub_two
