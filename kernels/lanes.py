"""SIMD lanes: a vector value in a Warp CPU thread becomes one register, so a thread can carry many worlds, or many units.

A Warp thread on the CPU is a scalar loop; ``vector(16, float32)`` compiles to one AVX-512 register. Activations are rational
polynomials on whole vectors, since a libm call a lane costs more than a 64 x 64 layer.
"""

from functools import cache
from typing import Any

import warp as wp

AVX512_LANES, AVX2_LANES = 16, 8


@cache
def lane_count() -> int:
    """Return how many float32 lanes a register of this processor holds: 16 with AVX-512, else 8."""
    try:
        from numpy._core._multiarray_umath import __cpu_features__ as features  # noqa: PLC0415  # numpy's own run-time detection
    except ImportError:
        return AVX2_LANES
    return AVX512_LANES if features.get("AVX512F") else AVX2_LANES


@cache
def vector(length: int) -> Any:
    """Return the float32 vector type of a length, always the same object, as Warp compares types by identity."""
    return wp.types.vector(length=length, dtype=wp.float32)


@cache
def tanh_of(length: int) -> Any:
    """Return tanh of a vector, relative error below 4e-7 everywhere (measured against float64).

    The rational approximation of Eigen (13th over 6th degree), exact at zero, clamped where float32 tanh is 1 to rounding. The
    clamp turns NaN into -1: a world whose state is not a number shows it in its state, not in its units.
    """
    v = vector(length)

    @wp.func
    def tanh(x: v) -> v:
        limit = v(wp.float32(7.90531))
        x = wp.min(wp.max(x, -limit), limit)
        x2 = wp.cw_mul(x, x)
        p = x2 * wp.float32(-2.76076847742355e-16) + v(wp.float32(2.00018790482477e-13))
        p = wp.cw_mul(x2, p) + v(wp.float32(-8.60467152213735e-11))
        p = wp.cw_mul(x2, p) + v(wp.float32(5.12229709037114e-08))
        p = wp.cw_mul(x2, p) + v(wp.float32(1.48572235717979e-05))
        p = wp.cw_mul(x2, p) + v(wp.float32(6.37261928875436e-04))
        p = wp.cw_mul(x2, p) + v(wp.float32(4.89352455891786e-03))
        p = wp.cw_mul(x, p)
        q = x2 * wp.float32(1.19825839466702e-06) + v(wp.float32(1.18534705686654e-04))
        q = wp.cw_mul(x2, q) + v(wp.float32(2.26843463243900e-03))
        q = wp.cw_mul(x2, q) + v(wp.float32(4.89352518554385e-03))
        return wp.cw_div(p, q)

    return tanh
