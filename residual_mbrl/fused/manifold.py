"""Steps along tangents in fused rollouts: what ``StateSpace.integrate`` does, for one world."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from residual_mbrl.spaces import StateSpace

SERIES = 0.04
"""Squared half angle below which the exponential map is its power series, to rounding in float32."""


def mover(space: StateSpace) -> Callable[[Any, Sequence[Any]], list[Any]]:
    """Return ``moved(x, tangent)``, the entries of ``x ⊞ tangent``; activations stay.

    Args:
        space: Of a baseline; x has nq + nv + na scalars, the tangent those of positions and velocities, 2 nv.
    """
    import warp as wp  # noqa: PLC0415  # only fused rollouts need it

    nq, nv, na, segments, series = space.nq, space.nv, space.na, tuple(sorted(space.quaternions)), SERIES

    def turned(q: Any, rotation: Any) -> list[Any]:
        """Return q ⊗ exp(rotation)."""
        a, b, c, d = q[0], q[1], q[2], q[3]
        x, y, z = rotation
        s = 0.25 * (x * x + y * y + z * z)
        # both branches are differentiated, so the one not taken must stay finite
        half = wp.sqrt(wp.where(s > series, s, 1.0))
        cosine = wp.where(s > series, wp.cos(half), 1.0 - s * (0.5 - s * (1.0 / 24.0 - s / 720.0)))
        k = 0.5 * wp.where(s > series, wp.sin(half) / half, 1.0 - s * (1.0 / 6.0 - s * (1.0 / 120.0 - s / 5040.0)))
        x, y, z = k * x, k * y, k * z
        return [a * cosine - b * x - c * y - d * z, a * x + b * cosine + c * z - d * y, a * y - b * z + c * cosine + d * x,
                a * z + b * y - c * x + d * cosine]

    def moved(x: Any, tangent: Sequence[Any]) -> list[Any]:
        entries, qi, vi = [], 0, 0
        for q0, v0 in segments:
            entries += [x[qi + i] + tangent[vi + i] for i in range(q0 - qi)]
            entries += turned(x[q0 : q0 + 4], tangent[v0 : v0 + 3])
            qi, vi = q0 + 4, v0 + 3
        entries += [x[qi + i] + tangent[vi + i] for i in range(nq - qi)]
        return [*entries, *(x[nq + i] + tangent[nv + i] for i in range(nv)), *(x[nq + nv + i] for i in range(na))]

    return moved
