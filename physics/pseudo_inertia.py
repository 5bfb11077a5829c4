"""Inertial parameters of a rigid body in coordinates of which every value is physically consistent.

The pseudo-inertia ``J = [[Σ, h], [hᵀ, m]]`` of a body with mass m, first moment h = m c and second moment Σ = ½ tr(I) 1 - I (I about the
body frame's origin) is positive definite exactly if some mass distribution has it. It is held as J = U Uᵀ with

    U = e^α [[e^d1, s12, s13, t1], [0, e^d2, s23, t2], [0, 0, e^d3, t3], [0, 0, 0, 1]].

Rucker and Wensing, "Smooth parameterization of rigid-body inertia", IEEE RA-L 7(2), 2022.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NAMES = ("alpha", "d1", "d2", "d3", "s12", "s23", "s13", "t1", "t2", "t3")
UNITS = ("1", "1", "1", "1", "m", "m", "m", "m", "m", "m")


def coordinates(mass: float, com: Array, inertia: Array, quaternion: Array) -> Array:
    """Return the ten coordinates of a body.

    Args:
        mass: [kg].
        com: Centre of mass in the body frame [m], shape [3].
        inertia: Principal moments about the centre of mass [kg·m²], shape [3].
        quaternion: Of the principal axes in the body frame, w-x-y-z, shape [4].

    Raises:
        ValueError: if no mass distribution has this inertia.
    """
    turn = _rotation(np.asarray(quaternion)[None])[0]
    second = (0.5 * inertia.sum() * np.eye(3) - turn @ np.diag(inertia) @ turn.T) / mass
    second += 1e-9 * np.trace(second) * np.eye(3)  # flat bodies lie on the boundary
    try:
        # U Uᵀ with U upper triangular is a Cholesky factorisation with rows and columns reversed
        u = np.linalg.cholesky(second[::-1, ::-1])[::-1, ::-1]
    except np.linalg.LinAlgError as error:
        raise ValueError(f"no body has mass {mass:g} kg and principal moments {inertia} kg·m²: the largest exceeds the sum of the "
                         "others") from error
    return np.array([0.5 * np.log(mass), *np.log(np.diag(u)), u[0, 1], u[1, 2], u[0, 2], *com])


def body(values: Array) -> tuple[Array, Array, Array, Array]:
    """Return mass [N], centre of mass [N, 3], principal moments [N, 3] and their axes' quaternion [N, 4] of coordinates [N, 10]."""
    u = np.zeros((len(values), 3, 3))
    u[:, [0, 1, 2], [0, 1, 2]] = np.exp(values[:, 1:4])
    u[:, [0, 1, 0], [1, 2, 2]] = values[:, 4:7]
    mass, com = np.exp(2 * values[:, 0]), values[:, 7:].copy()
    second = mass[:, None, None] * (u @ u.swapaxes(1, 2))  # about the centre of mass: t is c, and leaves J with it
    inertia = np.trace(second, axis1=1, axis2=2)[:, None, None] * np.eye(3) - second
    moments, axes = np.linalg.eigh(inertia)
    axes[np.linalg.det(axes) < 0, :, 0] *= -1
    return mass, com, moments, _quaternion(axes)


def _rotation(q: Array) -> Array:
    w, x, y, z = (q / np.linalg.norm(q, axis=-1, keepdims=True)).T
    return np.moveaxis(np.array([[1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                                 [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                                 [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]]), -1, 0)


def _quaternion(turn: Array) -> Array:
    """Return unit quaternions of rotation matrices [N, 3, 3], by the largest component (Shepperd 1978)."""
    trace = np.trace(turn, axis1=1, axis2=2)
    diagonal = np.diagonal(turn, axis1=1, axis2=2)
    squares = np.concatenate([1 + trace[:, None], 1 - trace[:, None] + 2 * diagonal], 1)
    a, b, c = turn[:, 2, 1], turn[:, 0, 2], turn[:, 1, 0]
    d, e, f = turn[:, 1, 2], turn[:, 2, 0], turn[:, 0, 1]
    w2, x2, y2, z2 = squares.T
    rows = np.stack([np.stack([w2, a - d, b - e, c - f], 1), np.stack([a - d, x2, c + f, b + e], 1),
                     np.stack([b - e, c + f, y2, a + d], 1), np.stack([c - f, b + e, a + d, z2], 1)], 1)
    q = rows[np.arange(len(turn)), squares.argmax(1)]
    unit: Array = q / np.linalg.norm(q, axis=1, keepdims=True)
    return unit
