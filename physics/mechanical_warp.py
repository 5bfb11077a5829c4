"""The Warp form of the step in ``mechanical``: the same equations for one world, run on symbols.

``tests/test_fused_rollouts.py`` holds the two together. The functions here are Python around a system's Warp functions: fused
rollouts run them once, and what they do to the symbols becomes a kernel (``kernels/tracing``). So loops unroll, and what depends on a
value is chosen by ``wp.where``. Matrices are vectors by rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

WarpFunction = Callable[..., Any]
SWEEPS = 8
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


def warp_substep(terms: WarpTerms, nv: int, options: StepOptions) -> WarpFunction:
    """Return ``substep(x, u, port, p)`` with port = [force (nv), damping (nv * nv) by rows, friction limit (nv), ...].

    Args:
        terms: The system.
        nv: Degrees of freedom.
        options: Integrator, and what dissipates.
    """
    import warp as wp  # noqa: PLC0415  # half a second that only fused rollouts need

    vector = wp.types.vector(length=nv, dtype=wp.float32)
    state = wp.types.vector(length=2 * nv, dtype=wp.float32)
    h = options.dt / options.substeps
    mass_of, force_of = terms.mass, terms.force
    dissipate = _dissipation(terms, nv, h, options)
    rubs = options.friction or options.live_friction

    def accelerate(q: Any, v: Any, u: Any, port: Any, p: Any) -> Any:
        return vector(*solve(mass_of(q, p), force_of(q, v, u, p) + vector(*port[0:nv])))

    def semi_implicit(x: Any, u: Any, port: Any, p: Any) -> Any:
        q, v = vector(*x[0:nv]), vector(*x[nv : 2 * nv])
        new_v = dissipate(q, v, v + h * accelerate(q, v, u, port, p), u, port, p)
        return state(*(q + h * new_v), *new_v)

    def runge_kutta(x: Any, u: Any, port: Any, p: Any) -> Any:
        q, v = vector(*x[0:nv]), vector(*x[nv : 2 * nv])
        k1 = accelerate(q, v, u, port, p)
        v2 = v + 0.5 * h * k1
        k2 = accelerate(q + 0.5 * h * v, v2, u, port, p)
        v3 = v + 0.5 * h * k2
        k3 = accelerate(q + 0.5 * h * v2, v3, u, port, p)
        v4 = v + h * k3
        k4 = accelerate(q + h * v3, v4, u, port, p)
        free_v = v + h / 6.0 * (k1 + 2.0 * (k2 + k3) + k4)
        new_v = dissipate(q, v, free_v, u, port, p)
        curvature = h / 12.0 * (k1 - k4)
        if rubs:
            curvature = vector(*[wp.where(wp.max(wp.abs(v[i]), wp.abs(new_v[i])) < HELD * wp.abs(free_v[i]), 0.0, curvature[i])
                                 for i in range(nv)])
        return state(*(q + h * (0.5 * (v + new_v) + curvature)), *new_v)

    return semi_implicit if options.integrator == "semi_implicit" else runge_kutta


def solve(m: Any, b: Any) -> list[Any]:
    """Solve a symmetric positive definite system: closed form for one and two unknowns, by Cholesky's factors beyond."""
    n = len(b)
    if n == 1:
        return [b[0] / m[0]]
    if n == 2:
        det = m[0] * m[3] - m[1] * m[1]
        return [(m[3] * b[0] - m[1] * b[1]) / det, (m[0] * b[1] - m[1] * b[0]) / det]
    lower: list[list[Any]] = []
    pivots: list[Any] = []  # L D Lᵀ, which takes no roots
    for i in range(n):
        row: list[Any] = []
        for j in range(i):
            row.append(m[i * n + j] - _sum([row[k] * lower[j][k] for k in range(j)]))
        scaled = [row[k] / pivots[k] for k in range(i)]
        pivots.append(m[i * n + i] - _sum([row[k] * scaled[k] for k in range(i)]))
        lower.append(scaled)
    y: list[Any] = []
    for i in range(n):
        y.append(b[i] - _sum([lower[i][k] * y[k] for k in range(i)]))
    x = [y[i] / pivots[i] for i in range(n)]
    for i in reversed(range(n)):
        x[i] = x[i] - _sum([lower[k][i] * x[k] for k in range(i + 1, n)])
    return x


def _sum(terms: Sequence[Any]) -> Any:
    total: Any = 0.0
    for term in terms:
        total = term + total
    return total


def _times(m: Any, x: Any) -> list[Any]:
    n = len(x)
    return [_sum([m[i * n + j] * x[j] for j in range(n)]) for i in range(n)]


def _dissipation(terms: WarpTerms, nv: int, h: float, options: StepOptions) -> WarpFunction:
    """Return ``dissipate(q, v, free, u, port, p)``: ``free`` after damping and dry friction, both taken at (q, v), over h seconds."""
    import warp as wp  # noqa: PLC0415

    vector, square = (wp.types.vector(length=n, dtype=wp.float32) for n in (nv, nv * nv))
    mass_of, damping_of, friction_of = terms.mass, terms.damping, terms.friction
    damps, rubs = options.damping and damping_of is not None, options.friction and friction_of is not None
    live_damping, live_friction = options.live_damping, options.live_friction

    def dissipate(q: Any, v: Any, free: Any, u: Any, port: Any, p: Any) -> Any:
        mass = mass_of(q, p)
        if damps or live_damping:
            damping = damping_of(q, v, u, p) if damps else square()  # type: ignore[misc]
            if live_damping:
                damping = damping + square(*port[nv : nv + nv * nv])
            whole = mass + h * damping
            free = vector(*solve(whole, _times(mass, free)))
            mass = whole
        if not (rubs or live_friction):
            return free
        limit = friction_of(q, v, u, p) if rubs else vector()  # type: ignore[misc]
        if live_friction:
            start = nv + nv * nv
            limit = limit + vector(*port[start : start + nv])
            # as in torch, zero itself lets a gradient through: an untrained limit can grow
            limit = vector(*[wp.where(limit[i] < 0.0, 0.0, limit[i]) for i in range(nv)])
        return vector(*rub(mass, free, [h * limit[i] for i in range(nv)]))

    def clip(x: Any, bound: Any) -> Any:
        return wp.where(x < -bound, -bound, wp.where(x > bound, bound, x))

    def rub(mass: Any, v: Any, bounds: Any) -> Any:
        if nv == 1:
            return [v[0] - clip(v[0], bounds[0] / mass[0])]
        stop = [-s for s in _times(mass, v)]
        excess = wp.abs(stop[0]) - bounds[0]
        for i in range(1, nv):
            excess = wp.max(excess, wp.abs(stop[i]) - bounds[i])
        columns = [solve(mass, vector(*[1.0 if i == j else 0.0 for i in range(nv)])) for j in range(nv)]
        impulse = [wp.where(excess <= 0.0, s, 0.0) for s in stop]
        moving = [wp.where(excess <= 0.0, 0.0, v[i]) for i in range(nv)]
        for _ in range(SWEEPS):
            for i in range(nv):
                new = clip(impulse[i] - moving[i] / columns[i][i], bounds[i])
                change = new - impulse[i]
                moving = [moving[j] + columns[i][j] * change for j in range(nv)]
                impulse[i] = new
        return moving

    return dissipate
