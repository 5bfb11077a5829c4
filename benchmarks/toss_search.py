"""Robust least squares over rollouts of growing length: of the first impact alone, of some more, of whole tosses.

A rollout through impacts is chaotic in its parameters, its first impact is not. Each toss counts with the size of its error, not the
square, so that tosses which end on another face do not decide; that is Gauss-Newton with reweighted rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tosses import Tosses

from residual_mbrl.free_flight import rotation_between

Array = NDArray[np.float64]

STEP = 0.3
"""Of the differences, in spreads: rollouts are rough on any smaller scale."""
SMALL = 0.02
"""Error, in units of what is required, below which a toss counts with the square."""
LARGEST = 3.0
"""Of a step, in spreads."""
ENOUGH = 1e-3
"""Relative gain of a step after which a horizon is done."""


class Horizon(NamedTuple):
    """A stage of the search."""

    rows: int
    """Rows after the first touch that are compared."""
    steps: int
    """Largest number of steps."""
    most: int
    """Tosses drawn anew for each step; all where there are no more."""


IMPACTS = (Horizon(10, 8, 220), Horizon(30, 4, 220))
WHOLE = (Horizon(1000, 9, 150),)
SCORED = (Horizon(1000, 5, 150),)

Simulate = Callable[[Array, Tosses, NDArray[np.int64]], Array]
"""From a point of the search, tosses and rows to simulate of each to poses [tosses, rows, 7]."""


def search(tosses: Tosses, simulate: Simulate, size: int, *, scale: tuple[float, float], horizons: Sequence[Horizon],
           prior: float = 2e-4, minutes: float = 20.0, seed: int = 0, tell: Callable[[str], None] = lambda _: None) -> Array:
    """Return the point that errs least, shape [size]; it starts at zero, and one unit is a typical change.

    Args:
        tosses: The data.
        simulate: The model.
        size: Numbers that are searched.
        scale: Errors [m, rad] that count as one.
        horizons: Stages, in order.
        prior: Weight of ``z²`` beside the mean error of a toss.
        minutes: After which it ends in any case.
        seed: Of the draws of tosses.
        tell: Receives a line a step.
    """
    z, end, rng = np.zeros(size), time.monotonic() + 60 * minutes, np.random.default_rng(seed)
    for horizon in horizons:
        damping, idle, visited = 1.0, 0, [z]
        for step in range(horizon.steps):
            drawn = tosses.draw(rng, horizon.most)

            def errors(z: Array, horizon: Horizon = horizon, drawn: Tosses = drawn) -> list[Array]:
                return _differences(drawn, simulate, z, horizon, scale)

            start = errors(z)
            weights, loss = _weigh(start)
            flat = _flatten(start, weights)
            columns = []
            for k in range(size):
                moved = z + STEP * np.eye(size)[k]
                columns.append((_flatten(errors(moved), weights) - flat) / STEP)
                if time.monotonic() > end:
                    return z
            jacobian = np.stack(columns, 1)
            most = np.percentile(np.abs(jacobian), 99.5)
            jacobian = jacobian.clip(-most, most)  # a toss that falls on another face tells nothing of the slope
            pull, hessian = prior * len(drawn.logs), jacobian.T @ jacobian
            before, after = loss + 0.5 * prior * z @ z, np.inf
            for _ in range(4):
                matrix = hessian + pull * np.eye(size) + damping * np.diag(np.diag(hessian))
                new = z - np.linalg.solve(matrix, jacobian.T @ flat + pull * z).clip(-LARGEST, LARGEST)
                after = _weigh(errors(new))[1] + 0.5 * prior * new @ new
                if after < before:
                    z, damping = new, max(damping / 3, 0.01)
                    break
                damping *= 4
            tell(f"{horizon.rows} rows after touch, step {step}: {before:.4f} -> {after:.4f}")
            idle = 0 if after < before * (1 - ENOUGH) else idle + 1
            visited.append(z)
            if idle == 2 or (idle and len(drawn.logs) == len(tosses.logs)):
                break
        if len(drawn.logs) < len(tosses.logs):  # each step is as good as the tosses drawn for it
            z = np.mean(visited[-(len(visited) // 2) :], 0)
    return z


def _differences(tosses: Tosses, simulate: Simulate, z: Array, horizon: Horizon, scale: tuple[float, float]) -> list[Array]:
    """Return scaled differences of position and attitude of each toss, shape [compared rows, 6], their squares averaged over rows."""
    rows = np.minimum(tosses.rows, tosses.touch + horizon.rows)
    poses, found = simulate(z, tosses, rows), []
    every = 2 if horizon.rows <= 10 else 4
    for log, x, first, n in zip(tosses.logs, poses, tosses.touch, rows, strict=True):
        k = np.arange(min(first + 2, n - 1), n, every)
        true = log.measurements[k]
        turned = rotation_between(x[k, 3:], true[:, 3:7])
        apart = np.concatenate([(x[k, :3] - true[:, :3]) / scale[0], turned / scale[1]], 1) / np.sqrt(len(k))
        found.append(np.where(np.isfinite(apart), apart, LARGEST))
    return found


def _weigh(errors: Sequence[Array]) -> tuple[list[Array], float]:
    """Return weights of the six columns of each toss, and the mean over tosses of both errors' sizes."""
    sizes = np.array([np.sqrt((e**2).reshape(-1, 2, 3).sum((0, 2)) + SMALL**2) for e in errors])
    return [np.repeat(s**-0.5, 3) for s in sizes], float(sizes.sum(1).mean())


def _flatten(errors: Sequence[Array], weights: Sequence[Array]) -> Array:
    return np.concatenate([(e * w).ravel() for e, w in zip(errors, weights, strict=True)])
