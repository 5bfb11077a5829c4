"""Velocities of a tracked body from its poses, for logs the own velocities of which are late, scaled or coarse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from residual_mbrl.errors import LogError
from residual_mbrl.free_flight import Poses, rotation_between

Array = NDArray[np.float64]


def rederive_velocities(poses: Poses, *, side: int = 1) -> Poses:
    """Return poses with velocities that are slopes of lines through the rows around each, none of them late.

    ``v_k = Σ j (p_{k+j} - p_k) / (Σ j² dt)`` over ``|j| <= side``, and the same of the rotation vectors from row k for the body rate: the
    first-order Savitzky-Golay derivative. At the ends as many rows on each side as there are; the first and last row take the slope
    to their neighbour, which is late or early by half a row. Across an impact the slope is that of neither side.

    Args:
        poses: A log, evenly sampled.
        side: Rows on each side: more are smoother, and slower.

    Raises:
        LogError: if there are fewer than two rows, or they are not evenly spaced.
        ValueError: if side is below 1.
    """
    if side < 1:
        raise ValueError(f"rederive_velocities: expected side >= 1, received {side}")
    n = len(poses)
    steps = np.diff(poses.time)
    if n < 2 or not np.allclose(steps, steps[0], rtol=1e-3) or not steps[0] > 0:
        raise LogError(f"{poses.name}: expected two rows or more, evenly spaced in time, received {n} with steps from "
                       f"{steps.min(initial=np.inf):.4g} to {steps.max(initial=-np.inf):.4g} s")
    velocity, omega = np.empty((n, 3)), np.empty((n, 3))
    for k in range(n):
        reach = min(side, k, n - 1 - k)
        near = np.arange(-reach, reach + 1) if reach else np.array([0, 1] if k == 0 else [-1, 0])
        t = near * steps[0]
        moved = poses.position[k + near] - poses.position[k]
        turned = rotation_between(np.repeat(poses.quaternion[k : k + 1], len(near), 0), poses.quaternion[k + near])
        velocity[k], omega[k] = (t @ x / (t @ t) for x in (moved, turned))
    return replace(poses, velocity=velocity, omega=omega)
