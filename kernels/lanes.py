"""How many numbers a register of this processor holds."""

from __future__ import annotations

from functools import cache

from residual_mbrl.kernels.native import REALS

WIDEST, NARROWER = 64, 32
"""Bytes of a register with AVX-512, and with AVX2."""


@cache
def lane_count(real: str = "float") -> int:
    """Return how many numbers a register of this processor holds."""
    try:
        from numpy._core._multiarray_umath import __cpu_features__ as features  # noqa: PLC0415  # numpy's own run-time detection
    except ImportError:
        features = {}
    return (WIDEST if features.get("AVX512F") else NARROWER) // REALS[real]
