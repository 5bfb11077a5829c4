"""Delays seen in aligned logs, as effects of a sensor: where an estimate of them starts, and how far it may go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from residual_mbrl.column_map import Entry
from residual_mbrl.effects import Delay
from residual_mbrl.signal_estimates import Lag, response_lags, velocity_lag

FloatArray = NDArray[np.float64]

LONGEST_START = 0.05
"""Upper bound of an estimated delay [s], or twice what was found if that is more."""

_SMALLEST = 0.25
"""Delays of commands below this fraction of a sample are not told from none."""

_SMALLEST_OF_COLUMN = 0.75
"""The same for velocities behind positions: semi-implicit integration and backward differences are half a sample late."""

_CERTAIN = 3.0
"""Standard deviations by which a delay must exceed zero."""

_ALIKE = 0.25
"""Part of a delay by which the halves of a log may differ from the whole, where that is more than a row."""

_LEAST_VELOCITY_CORRELATION = 0.5


@dataclass(frozen=True, kw_only=True)
class Delays:
    """Delays by state or action entry.

    Args:
        effects: Those that the sensor is to have.
        found: What to show of each entry.
        warnings: What the user should look at.
    """

    effects: Mapping[str, Delay]
    found: Mapping[str, str]
    warnings: Sequence[str] = field(default_factory=list)


def command_delays(names: Sequence[str], joints: Sequence[str], path: FloatArray, velocities: FloatArray | None, commands: FloatArray,
                   dt: float, entries: Mapping[str, Entry], drives: Mapping[str, str]) -> Delays:
    """Find how late the plant answers each command.

    Args:
        names: Names of the commands.
        joints: Names of the degrees of freedom.
        path: Their travelled path, shape [T, nv]; rows between samples are NaN.
        velocities: Measured velocities, shape [T, nv]; None where some are not measured.
        commands: Shape [T, nu].
        dt: Seconds per row.
        entries: What the user states.
        drives: The joint that a command drives; others answer it by the joint that follows it best.
    """
    rows = np.flatnonzero(np.isfinite(path).all(1) & (True if velocities is None else np.isfinite(velocities).all(1)))
    stride = int(np.median(np.diff(rows))) if len(rows) > 2 else 1
    coarse = rows[0] + stride * np.arange((len(path) - rows[0]) // stride) if len(rows) else rows
    if len(coarse) < 8:
        return _judged([[] for _ in names], names, joints, dt, entries)
    step = stride * dt
    held = np.stack([commands[coarse + k] for k in range(stride)]).mean(0)
    q = path[coarse]
    slope = np.gradient(q, step, axis=0)
    v = slope if velocities is None else velocities[coarse]
    acceleration = np.full_like(q, np.nan)
    if velocities is None:
        acceleration[1:-1] = (q[2:] - 2 * q[1:-1] + q[:-2]) / step**2
    else:
        acceleration[:-1] = np.diff(v, axis=0) / step
    states, half = np.concatenate([q, v], 1), len(q) // 2
    whole, *halves = (response_lags(states[rows], acceleration[rows], held[rows], step) for rows in
                      (slice(None), slice(None, half), slice(half, None)))
    lags = [[lag if lag is not None and all(_agrees(h[i][j], lag, step) for h in halves) else None for j, lag in enumerate(row)]
            for i, row in enumerate(whole)]
    # a second difference is centred on its row, half a step before the middle of the command held from there
    shift = 0.5 * step if velocities is None else 0.0
    shifted = [[None if lag is None or drives.get(name, joint) != joint else lag._replace(seconds=lag.seconds - shift)
                for joint, lag in zip(joints, row, strict=True)] for name, row in zip(names, lags, strict=True)]
    return _judged(shifted, names, joints, step, entries)


def _agrees(part: Lag | None, whole: Lag, dt: float) -> bool:
    """Tell whether a part of a log shows the delay of the whole: slow commands go along with many things, but not twice alike."""
    return part is not None and abs(part.seconds - whole.seconds) <= max(dt, _ALIKE * abs(whole.seconds))


def _judged(lags: Sequence[Sequence[Lag | None]], names: Sequence[str], joints: Sequence[str], dt: float,
            entries: Mapping[str, Entry]) -> Delays:
    """Choose a start for every command; one that shows none, or one far off, starts where most others do."""
    best = [max(((lag.correlation, k) for k, lag in enumerate(row) if lag is not None), default=(0.0, -1))[1] for row in lags]
    seen = {n: row[k] for n, row, k in zip(names, lags, best, strict=True) if k >= 0}
    common = _common([lag.seconds for lag in seen.values() if lag is not None], len(names))
    effects: dict[str, Delay] = {}
    found: dict[str, str] = {}
    warnings: list[str] = []
    for name, k in zip(names, best, strict=True):
        lag, entry = seen.get(name), entries.get(name, Entry())
        seconds = 0.0 if lag is None else lag.seconds
        found[name] = "not seen" if lag is None else f"{1e3 * max(seconds, 0.0):.3g} ms to {joints[k]}"
        if seconds < -0.5 * dt:
            warnings.append(f"{joints[k]} moves {-1e3 * seconds:.3g} ms before its command {name}: are their clocks the same?")
        certain = lag is not None and seconds > max(_SMALLEST * dt, _CERTAIN * lag.spread)
        if common is not None and entry.delay is None and (lag is None or abs(seconds - common) > max(2 * dt, common)):
            found[name], seconds, certain = f"{1e3 * common:.3g} ms, as others ({found[name]})", common, common > _SMALLEST * dt
        effect = stated_delay(entry, seconds)
        if effect is None and entry.delay is None and certain:
            effect = started_at(seconds, dt)
        if effect is not None:
            effects[name] = effect
        if isinstance(entry.delay, float):
            found[name] = f"{1e3 * entry.delay:.3g} ms, stated" + ("" if lag is None else f" (seen: {found[name]})")
    if names and not effects and all(entries.get(n, Entry()).delay is None for n in names):
        warnings.append("no command shows a delay: none is estimated, unless the mapping bounds one, such as delay = [0.0, 0.05]")
    return Delays(effects=effects, found=found, warnings=warnings)


def _common(seconds: Sequence[float], commands: int) -> float | None:
    """Median delay where at least three commands show one, and most do: drives on one bus answer alike."""
    return float(np.median(seconds)) if len(seconds) >= 3 and 2 * len(seconds) > commands else None


def column_delays(pairs: Sequence[tuple[str, str]], path: Mapping[str, FloatArray], velocities: Mapping[str, FloatArray], dt: float,
                  entries: Mapping[str, Entry]) -> Delays:
    """Find how late each velocity column follows the derivative of its position column, or leads it.

    Args:
        pairs: Names of position (or of the first of a quaternion) and velocity entries.
        path: Travelled path by velocity entry, shape [T].
        velocities: Values by velocity entry, shape [T].
        dt: Seconds per row.
        entries: What the user states.
    """
    effects: dict[str, Delay] = {}
    found: dict[str, str] = {}
    for name in [n for pair in pairs for n in pair]:
        effect = stated_delay(entries.get(name, Entry()), 0.0)
        if effect is not None:
            effects[name] = effect
            found[name] = f"{1e3 * effect.nominal:.3g} ms, stated"
    for position, velocity in pairs:
        rows = np.flatnonzero(np.isfinite(path[velocity]) & np.isfinite(velocities[velocity]))
        stride = int(np.median(np.diff(rows))) if len(rows) > 2 else 1
        coarse = rows[0] + stride * np.arange((len(path[velocity]) - rows[0]) // stride) if len(rows) else rows
        step = stride * dt
        lag = velocity_lag(path[velocity][coarse], velocities[velocity][coarse], step) if len(coarse) > 8 else None
        if lag is None or lag.correlation < _LEAST_VELOCITY_CORRELATION or abs(lag.seconds) < _SMALLEST_OF_COLUMN * step:
            continue
        late = velocity if lag.seconds > 0 else position
        if entries.get(late, Entry()).delay is None and late not in effects:
            effects[late] = started_at(abs(lag.seconds), step)
            found[late] = f"{1e3 * abs(lag.seconds):.3g} ms behind {position if late == velocity else velocity}"
    return Delays(effects=effects, found=found)


def stated_delay(entry: Entry, seen: float) -> Delay | None:
    """Return the delay that the user states: known, or between bounds and starting at what was seen."""
    if isinstance(entry.delay, tuple):
        lower, upper = entry.delay
        start = seen if lower <= seen <= upper else 0.5 * (lower + upper)
        return Delay(nominal=start, lower=lower, upper=upper)
    if entry.delay:
        return Delay(nominal=entry.delay, lower=0.0, upper=2 * entry.delay, free=False)
    return None


def started_at(seconds: float, dt: float) -> Delay:
    """Return a delay that starts at what was seen."""
    return Delay(nominal=seconds, lower=0.0, upper=max(LONGEST_START, 2 * seconds + 2 * dt))
