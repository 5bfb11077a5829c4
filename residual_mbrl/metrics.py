"""One number of an evaluation, as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric of one model.

    Args:
        model: "nominal", "identified", "residual", "identified+residual", "network", ...
        metric: Name, such as "mae_rad".
        horizon: Steps ahead; None for a whole log or window.
        value: The number, in ``unit``.
        unit: SI unit, or "1".
        ci95: 95 % bootstrap interval; None where it was not computed.
    """

    model: str
    metric: str
    value: float
    unit: str
    horizon: int | None = None
    ci95: tuple[float, float] | None = None
