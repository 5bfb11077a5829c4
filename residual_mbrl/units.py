"""Units that logs state, and the factor from each to the SI unit a model computes in."""

from __future__ import annotations

import math
from difflib import get_close_matches

from residual_mbrl.errors import LogError

_TURN = 2 * math.pi
_UNITS: dict[str, dict[str, float]] = {
    "rad": {"rad": 1, "mrad": 1e-3, "deg": math.pi / 180, "rev": _TURN},
    "m": {"m": 1, "cm": 1e-2, "mm": 1e-3, "µm": 1e-6},
    "rad/s": {"rad/s": 1, "mrad/s": 1e-3, "krad/s": 1e3, "deg/s": math.pi / 180, "rev/s": _TURN, "rpm": _TURN / 60},
    "m/s": {"m/s": 1, "cm/s": 1e-2, "mm/s": 1e-3},
    "N·m": {"N·m": 1, "mN·m": 1e-3, "N·cm": 1e-2, "N·mm": 1e-3, "kN·m": 1e3, "kgf·cm": 0.0980665},
    "N": {"N": 1, "mN": 1e-3, "kN": 1e3},
    "s": {"s": 1, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9},
    "V": {"V": 1, "mV": 1e-3},
    "A": {"A": 1, "mA": 1e-3},
    "1": {"1": 1, "%": 1e-2},
}
"""For each SI unit, the units of the same dimension and their size in it."""

_ALIASES = {"": "1", "-": "1", "none": "1", "radian": "rad", "radians": "rad", "°": "deg", "degree": "deg", "degrees": "deg", "turn": "rev",
            "turns": "rev", "revolutions": "rev", "metre": "m", "meter": "m", "metres": "m", "meters": "m", "um": "µm", "us": "µs",
            "seconds": "s", "sec": "s", "rps": "rev/s", "°/s": "deg/s", "dps": "deg/s", "degrees/s": "deg/s", "radians/s": "rad/s",
            "1/min": "rpm", "rev/min": "rpm", "percent": "%", "newton": "N", "volt": "V", "ampere": "A"}


def factor(unit: str, expected: str) -> float:
    """Return the size of ``unit`` in ``expected``.

    Args:
        unit: Unit that a log or a mapping states.
        expected: Unit that the model computes in; "1" takes any unit, in SI.

    Raises:
        LogError: if the unit is unknown, or of another dimension.
    """
    stated, own = _written(unit), _written(expected)
    if stated == own:
        return 1.0
    dimension = next((d for d, sizes in _UNITS.items() if stated in sizes), None)
    if dimension is None:
        raise LogError(f"unknown unit {unit!r}{_suggested(stated, own)}; expected one of {allowed(expected)}, or \"1\" with a scale")
    if own == "1":
        return _UNITS[dimension][stated]
    if stated == "1" and own not in _UNITS["1"]:
        return 1.0  # a plain number: scale and offset already give the model's unit
    home = next((d for d, sizes in _UNITS.items() if own in sizes), None)
    if home != dimension:
        raise LogError(f"unit {unit!r} is no unit of [{expected}]; expected one of {allowed(expected)}")
    return _UNITS[dimension][stated] / _UNITS[dimension][own]


def allowed(expected: str) -> str:
    """Return the units that a column of ``expected`` may have, as text."""
    own = _written(expected)
    sizes = next((s for s in _UNITS.values() if own in s), None)
    names = [u for s in _UNITS.values() for u in s] if sizes is None or own == "1" else list(sizes)
    return ", ".join(f'"{n}"' for n in names)


def _written(unit: str) -> str:
    """Return a unit as the table writes it: "Nm", "N*m" and "N.m" are "N·m"."""
    text = unit.strip().replace(" ", "").replace("μ", "µ").replace("^-1", "").replace("*", "·").replace("⋅", "·").replace("/sec", "/s")
    known = {u.replace("·", ""): u for sizes in _UNITS.values() for u in sizes} | {
        u.replace("·", "."): u for sizes in _UNITS.values() for u in sizes}
    text = _ALIASES.get(text.lower(), text)
    return known.get(text, text)


def _suggested(unit: str, expected: str) -> str:
    own = next((list(s) for s in _UNITS.values() if expected in s), [])
    close = get_close_matches(unit, own, 1) or get_close_matches(unit, [u for sizes in _UNITS.values() for u in sizes] + list(_ALIASES), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""
