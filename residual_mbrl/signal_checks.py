"""Whether columns can be what their names say: degrees for radians, wrong signs, swapped columns, broken quaternions.

A unit that the log or the mapping states is believed, and only doubted aloud. A unit that nobody states is taken to be the
model's, unless ranges or rates speak against it; then the user is asked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from residual_mbrl.errors import LogError
from residual_mbrl.spaces import StateSpace
from residual_mbrl.state_layout import Section

FloatArray = NDArray[np.float64]

DEGREE = math.pi / 180
TURNS = 4 * math.pi
"""Angle [rad] beyond which a joint without a range is asked for its unit: two turns."""

FASTEST = 100.0
"""Speed [rad/s] beyond which a velocity column is asked for its unit."""

LEAST_AGREEMENT = 0.5
"""Correlation of displacement and integrated velocity below which columns are taken not to belong together."""

RATIOS = (0.5, 2.0)
"""Displacement over integrated velocity beyond which one of the two is in another unit."""

_MARGIN = 0.1
_SPANS = (4, 16, 64, 256)
_ABOVE_NOISE = 5.0
_QUATERNION_LENGTH = 0.02
_DEGREE_RATIO = 0.25


@dataclass(frozen=True, kw_only=True)
class Checked:
    """One column as the checks see it.

    Args:
        name: State or action entry.
        column: The log's column.
        section: Section of the entry.
        unit: Unit of the model.
        unit_stated: Whether log or mapping state the column's unit.
        noise: Standard deviation, in the model's unit.
    """

    name: str
    column: str
    section: Section
    unit: str
    unit_stated: bool
    noise: float


def check_range(where: str, column: Checked, values: FloatArray, limits: tuple[float, float] | None) -> list[str]:
    """Compare a column with its joint's range.

    Args:
        where: What messages call the log.
        column: The column.
        values: In the model's unit (or so it is believed), shape [N].
        limits: Range of the joint or command; None where it has none.

    Returns:
        What to tell the user.

    Raises:
        LogError: asking for the unit, if none is stated and the values cannot well be in the model's.
    """
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, [0.5, 99.5])
    extent = max(abs(low), abs(high))
    key = f'[{column.section}] "{column.name}" = {{ column = "{column.column}", unit = '
    what = f"{where}: column {column.column!r} ({column.name}) goes from {low:.4g} to {high:.4g}"
    if limits is None:
        largest = {"rad": TURNS, "rad/s": FASTEST}.get(column.unit, math.inf)
        if column.unit_stated or extent <= largest:
            return []
        units = ('"deg"', '"rad"') if column.unit == "rad" else ('"deg/s"', '"rpm"', '"rad/s"')
        turns = f"{extent / (2 * math.pi):.3g} turns{'/s' if '/s' in column.unit else ''}"
        raise LogError(f"{what} and states no unit: in {column.unit} that is {turns}; degrees? State it in a mapping: "
                       f"{key}{' or '.join(units)} }}, or for all in [units] {column.section} = {units[0]}")
    margin = _MARGIN * (limits[1] - limits[0])
    if limits[0] - margin <= low and high <= limits[1] + margin:
        return []
    beyond = f"{what} {column.unit}, the model's range is {limits[0]:.4g} to {limits[1]:.4g} {column.unit}"
    if column.unit_stated or extent <= 2 * max(abs(limits[0]), abs(limits[1])):
        return [f"{beyond}: outside it"]
    fits = column.unit in ("rad", "1") and limits[0] - margin <= low * DEGREE and high * DEGREE <= limits[1] + margin
    hint = "degrees? " if fits and column.unit == "rad" else ""
    example = '"deg" or "rad"' if column.unit == "rad" else f'"{column.unit}" or another'
    raise LogError(f"{beyond}, and no unit is stated: {hint}State it in a mapping: {key}{example} }}, or for all in [units] "
                   f'{column.section} = "{"deg" if hint else column.unit}"')


def check_quaternion(where: str, names: Sequence[str], values: FloatArray) -> FloatArray:
    """Return quaternions [N, 4] with unit length and without jumps of sign.

    Raises:
        LogError: if they are not of unit length.
    """
    length = np.linalg.norm(values, axis=1)
    off = np.flatnonzero(np.abs(length - 1) > _QUATERNION_LENGTH)
    if len(off):
        raise LogError(f"{where}: {', '.join(names)} have length {length[off[0]]:.4g} at row {off[0]}, expected a unit quaternion: "
                       "wrong columns, or another order?")
    unit: FloatArray = values / length[:, None]
    known = np.flatnonzero(np.isfinite(length))
    flips = np.sign(np.einsum("ij,ij->i", unit[known][1:], unit[known][:-1]))
    unit[known[1:]] *= np.cumprod(np.where(flips < 0, -1.0, 1.0))[:, None]
    return unit


def travelled(space: StateSpace, positions: FloatArray) -> FloatArray:
    """Return the path of every degree of freedom since the first row, shape [T, nv]; NaN rows stay out.

    Coordinates outside quaternions give their change; a quaternion its integrated angular velocity in the body frame.
    """
    path = np.full((len(positions), space.nv), np.nan)
    rows = np.flatnonzero(np.isfinite(positions).all(1))
    state = torch.zeros(len(rows), space.nx, dtype=torch.float64)
    state[:, : space.nq] = torch.from_numpy(positions[rows])
    steps = space.difference(state[1:], state[:-1])[:, : space.nv].numpy()
    path[rows] = np.concatenate([np.zeros((1, space.nv)), np.cumsum(steps, 0)])
    return path


def check_motion(where: str, time: FloatArray, path: FloatArray, pairs: Sequence[tuple[int, Checked, Checked]],
                 velocities: Mapping[str, FloatArray]) -> list[str]:
    """Compare velocity columns with the motion of their joints.

    Displacements over windows of several lengths are compared with the integrated velocity, which delays and coarse
    differentiation hardly hurt; windows in which a joint moves no further than its noise do not count.

    Args:
        where: What messages call the log.
        time: Shape [T].
        path: Travelled path of every degree of freedom, shape [T, nv].
        pairs: Degree of freedom, position column and velocity column.
        velocities: Values of the velocity columns by entry, shape [T].

    Returns:
        What to tell the user.

    Raises:
        LogError: asking for the sign or the unit, or naming the columns that seem swapped.
    """
    notes: list[str] = []
    for dof, position, velocity in pairs:
        found = _compare(time, path[:, dof], velocities[velocity.name], position.noise, velocity.noise)
        if found is None:
            notes.append(f"{where}: {position.name} hardly moves: neither sign nor unit of {velocity.column!r} could be checked")
            continue
        correlation, ratio = found
        both = f"{where}: {velocity.column!r} ({velocity.name}) and the derivative of {position.column!r} ({position.name})"
        if correlation < -LEAST_AGREEMENT:
            raise LogError(f"{both} have opposite signs (correlation {correlation:.2f}): state sign = -1 for one of them in a mapping, "
                           f'such as [velocity] "{velocity.name}" = {{ column = "{velocity.column}", sign = -1 }}')
        if correlation < LEAST_AGREEMENT:
            others = {p.column: _compare(time, path[:, d], velocities[velocity.name], p.noise, velocity.noise)
                      for d, p, _ in pairs if d != dof}
            best = max(((abs(c[0]), n) for n, c in others.items() if c is not None), default=(0.0, ""))
            other = f"it moves as the derivative of {best[1]!r} (correlation {best[0]:.2f}): swapped columns?"
            raise LogError(f"{both} do not move alike (correlation {correlation:.2f}, expected at least {LEAST_AGREEMENT}); "
                           f"{other if best[0] > 0.9 else 'swapped or wrong columns?'} Map them, or leave the velocity out with ignore: "
                           "it is then estimated from positions")
        if not RATIOS[0] < ratio < RATIOS[1]:
            raise LogError(f"{both} differ by a factor of {max(ratio, 1 / ratio):.4g}{_unit_hint(ratio, position, velocity)}")
    return notes


def _unit_hint(ratio: float, position: Checked, velocity: Checked) -> str:
    """What a factor between displacement and integrated velocity may mean, as a question."""
    if abs(ratio * DEGREE - 1) < _DEGREE_RATIO:
        return (f": {position.column!r} seems to be in degrees and {velocity.column!r} in rad/s; state both in a mapping, "
                f'[position] "{position.name}" = {{ column = "{position.column}", unit = "deg" }}')
    if abs(ratio / DEGREE - 1) < _DEGREE_RATIO:
        return (f": {velocity.column!r} seems to be in degrees per second and {position.column!r} in rad; state both in a mapping, "
                f'[velocity] "{velocity.name}" = {{ column = "{velocity.column}", unit = "deg/s" }}')
    return (f": state the unit or the scale of one of them in a mapping, such as [velocity] \"{velocity.name}\" = "
            f'{{ column = "{velocity.column}", unit = "rpm" }}')


def _compare(time: FloatArray, path: FloatArray, velocity: FloatArray, position_noise: float,
             velocity_noise: float) -> tuple[float, float] | None:
    """Best correlation of displacement with integrated velocity, and their ratio; None where there is too little motion."""
    good = np.isfinite(path) & np.isfinite(velocity)
    t, q, v = time[good], path[good], velocity[good]
    if len(t) < 4 * _SPANS[0]:
        return None
    integral = np.concatenate([[0.0], np.cumsum(0.5 * (v[1:] + v[:-1]) * np.diff(t))])
    found: list[tuple[float, float]] = []
    noise = velocity_noise if math.isfinite(velocity_noise) else 0.0
    for span in _SPANS:
        if len(t) < 4 * span:
            break
        moved, through = q[span:] - q[:-span], integral[span:] - integral[:-span]
        mean_noise = noise * float(np.median(t[span:] - t[:-span])) / math.sqrt(span)
        if np.std(moved) > _ABOVE_NOISE * position_noise and np.std(through) > _ABOVE_NOISE * mean_noise:
            found.append((float(np.corrcoef(moved, through)[0, 1]), float(np.std(moved) / np.std(through))))
    return max(found, key=lambda f: abs(f[0])) if found else None
