"""Differences on the manifold of a state space as a Warp form, the same as ``StateSpace.difference``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from residual_mbrl.spaces import StateSpace

TINY = 1e-12
"""As in ``spaces``: below this norm a rotation vector is twice the quaternion's vector part to rounding."""


def difference_form(space: StateSpace) -> Callable[..., list[Any]]:
    """Return ``difference(x, reference)``, a list of the ndx entries of ``x ⊖ reference``."""
    import warp as wp  # noqa: PLC0415  # only fused rollouts need it

    starts, nx = {q0 for q0, _ in space.quaternions}, space.nx

    def rotation(a: Any, b: Any) -> list[Any]:
        # the logarithm of conj(b) a, the shorter way round
        w = b[0] * a[0] + b[1] * a[1] + b[2] * a[2] + b[3] * a[3]
        x = b[0] * a[1] - b[1] * a[0] - b[2] * a[3] + b[3] * a[2]
        y = b[0] * a[2] + b[1] * a[3] - b[2] * a[0] - b[3] * a[1]
        z = b[0] * a[3] - b[1] * a[2] + b[2] * a[1] - b[3] * a[0]
        side = wp.where(w < 0.0, -1.0, 1.0)
        norm = wp.sqrt(wp.max(x * x + y * y + z * z, 1e-30))
        factor = side * wp.where(norm > TINY, 2.0 * wp.atan2(norm, side * w) / norm, 2.0)
        return [factor * x, factor * y, factor * z]

    def difference(x: Any, reference: Any) -> list[Any]:
        out: list[Any] = []
        i = 0
        while i < nx:
            if i in starts:
                out += rotation(x[i : i + 4], reference[i : i + 4])
                i += 4
            else:
                out.append(x[i] - reference[i])
                i += 1
        return out

    return difference
