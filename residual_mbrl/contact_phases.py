"""Errors of predicted contact by phase of the motion: before, at and after the first impact, sliding, at rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

PHASES = ("before", "impact", "tumbling", "sliding", "rest")


@dataclass(frozen=True, kw_only=True)
class PhaseLimits:
    """Where one phase ends and the next begins.

    Args:
        gap: Gap [m] below which the body touches.
        impact_rows: Rows from the first touch that count as the first impact.
        rate: Body rate [rad/s] above which a body that has touched tumbles.
        speed: Speed [m/s] above which one that does not tumble slides; below it rests.
    """

    gap: float = 0.0
    impact_rows: int = 3
    rate: float = 1.0
    speed: float = 0.02


def phases(gap: Array, speed: Array, rate: Array, limits: PhaseLimits | None = None) -> NDArray[np.int64]:
    """Return the phase of every row of one log, as a place in ``PHASES``, shape [N].

    Args:
        gap: Smallest gap [m], shape [N].
        speed: Of the body's centre [m/s], shape [N].
        rate: Of its rotation [rad/s], shape [N].
        limits: Between phases.
    """
    if not gap.shape == speed.shape == rate.shape or gap.ndim != 1:
        raise ValueError(f"phases: expected gap, speed and rate of one shape [N], received {gap.shape}, {speed.shape}, {rate.shape}")
    at = limits or PhaseLimits()
    low = gap < at.gap
    touch = int(np.argmax(low)) if low.any() else len(gap)
    found = np.where(rate > at.rate, 2, np.where(speed > at.speed, 3, 4))
    found[:touch], found[touch : touch + at.impact_rows] = 0, 1
    return found


def growth(errors: Sequence[Array], places: Sequence[NDArray[np.int64]]) -> Mapping[str, float]:
    """Return by how much the error of a log grows in each phase, mean over logs; their sum is the mean error of the last row.

    Args:
        errors: Error of every row of each log, the first one zero or counted as before, shape [N].
        places: Phase of every row of each log, as ``phases`` gives them.
    """
    steps = [(np.diff(e, prepend=0.0), p) for e, p in zip(errors, places, strict=True)]
    return {name: float(np.mean([d[p == k].sum() for d, p in steps])) for k, name in enumerate(PHASES)}


def chaos_floor(simulate: Callable[[Array], Array], starts: Array, moves: Array, integrate: Callable[[Array, Array], Array],
                distance: Callable[[Array, Array], Array]) -> Array:
    """Return how far rollouts part from their own, the starts of which something small has moved, shape [worlds, ...].

    No model, however right, can be expected to err less on logs of which the starts are known only so well.

    Args:
        simulate: From starts [worlds, nx] to rollouts [worlds, rows, ...].
        starts: First states, shape [worlds, nx].
        moves: Tangent vectors by which to move them: noise of one frame, or other differences seen, shape [worlds, ndx].
        integrate: ``state ⊞ tangent``.
        distance: From two sets of rollouts to the distance of each pair, shape [worlds, ...].
    """
    if len(moves) != len(starts):
        raise ValueError(f"chaos_floor: expected one move for each of {len(starts)} starts, received {len(moves)}")
    return distance(simulate(integrate(starts, moves)), simulate(starts))
