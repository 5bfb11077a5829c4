"""Whether a log's columns can be what the sensor says they are: units, ranges, and velocities that fit their positions."""

from __future__ import annotations

import math

import numpy as np

from residual_mbrl.errors import LogError
from residual_mbrl.sensors import Column, Sensor
from residual_mbrl.trajectories import Trajectory

LEAST_AGREEMENT = 0.5
"""Correlation of a velocity column with the motion of its position column below which the columns are taken to be wrong."""

_ABOVE_NOISE = 5.0
_SPANS = (4, 16, 64)


def check_units(trajectory: Trajectory, sensor: Sensor) -> None:
    """Refuse a log whose columns cannot be what the sensor says they are.

    Three things are checked: that the units which the log states are the sensor's, that no column goes beyond its
    ``largest``, and that a velocity column moves as its position column does. For the last, displacements over windows of
    several lengths are correlated with the integrated velocity, which a lag or coarse differentiation hardly hurts; lengths
    over which the motion is not well above the noise do not count.

    Args:
        trajectory: The log; must have every column of the sensor.
        sensor: What the columns should be.

    Raises:
        LogError: naming log, column and the value found.
    """
    stated = {c.name: sensor.unit(k) for k, c in enumerate(sensor.columns)} | {n: sensor.space.unit(n) for n in sensor.space.action}
    for name, expected in stated.items():
        if trajectory.units.get(name, expected) != expected:
            raise LogError(f"{trajectory.name}: column {name!r} is in {trajectory.units[name]}, expected {expected}: convert it first")
    for column in sensor.columns:
        values = trajectory.column(column.name)
        row = int(np.nanargmax(np.abs(values))) if np.isfinite(values).any() else 0
        if abs(values[row]) > column.largest:
            unit = sensor.unit(sensor.columns.index(column))
            hint = "; degrees instead of radians?" if unit.startswith("rad") else "; another unit?"
            raise LogError(f"{trajectory.name}: column {column.name!r} is {values[row]:.6g} at row {row}, beyond the largest plausible "
                           f"{column.largest:g} {unit}{hint}")
    for position, velocity in _pairs(sensor):
        agreement = _agreement(trajectory, position, velocity)
        if agreement is not None and agreement < LEAST_AGREEMENT:
            raise LogError(f"{trajectory.name}: column {velocity.name!r} does not move as the derivative of {position.name!r} "
                           f"(correlation {agreement:.2f}, expected at least {LEAST_AGREEMENT}): swapped or wrong columns?")


def _pairs(sensor: Sensor) -> list[tuple[Column, Column]]:
    """Position and velocity columns that belong together."""
    space, pairs = sensor.space, []
    if space.nq != space.nv:  # with quaternions no velocity is the derivative of one position entry
        return []
    for i, name in enumerate(space.velocity):
        place, rate = sensor.place(space.position[i]), sensor.place(name)
        if place is not None and rate is not None:
            pairs.append((sensor.columns[place], sensor.columns[rate]))
    return pairs


def _agreement(trajectory: Trajectory, position: Column, velocity: Column) -> float | None:
    """Best correlation of displacement with integrated velocity over several spans; None where the log hardly moves."""
    q, v = trajectory.column(position.name), trajectory.column(velocity.name)
    good = np.isfinite(q) & np.isfinite(v)
    time, q, v = trajectory.measurement_time[good], q[good], v[good]
    travelled = np.concatenate([[0.0], np.cumsum(0.5 * (v[1:] + v[:-1]) * np.diff(time))])
    found = []
    for span in _SPANS:
        if len(q) < 4 * span:
            break
        moved, integrated = q[span:] - q[:-span], travelled[span:] - travelled[:-span]
        # a column of infinite noise is not fitted, but must still be what it is called
        noise = velocity.noise if math.isfinite(velocity.noise) else 0.0
        mean_noise = noise * float(np.median(time[span:] - time[:-span])) / math.sqrt(span)
        if np.std(moved) > _ABOVE_NOISE * position.noise and np.std(integrated) > _ABOVE_NOISE * mean_noise:
            found.append(float(np.corrcoef(moved, integrated)[0, 1]))
    return max(found) if found else None
