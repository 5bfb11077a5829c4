"""How the constraint forces of MuJoCo worlds answer to an acceleration and to a velocity, read off one solved step.

The engine finds qacc as the minimum of ``1/2 (a - a0)ᵀ M (a - a0) + s(J a - aref)``. With S = s″ at the minimum, the constraint
force ``Jᵀ f``, f = -s′, changes by ``-Jᵀ S J δa`` with the acceleration and by ``-Jᵀ S B J δv`` with the velocity, for
``aref = -B J v - ...``. S per row or contact, with jar = J a - aref and D = 1/R:

    equality                           D
    friction loss F                    D where |jar| < R F, else 0
    limit, frictionless, pyramidal     D where jar < 0, else 0
    elliptic contact, mu = contact.mu, fri = contact.friction, U = (jar0 mu, jar_t fri), N = U0, T = |U_t|
      N >= mu T                        0
      mu N + T <= 0                    diag(D)
      between                          P C P, P = diag(mu, fri), t = U_t / T, C = D0 / (mu² (1 + mu²)) ·
                                       [[1, -mu tᵀ], [-mu t, mu² t tᵀ - mu (N - mu T) / T (I - t tᵀ)]]

What the engine calls the state of a row lags behind its acceleration, so S is found from jar.
"""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np
from numpy.typing import NDArray

from residual_mbrl.physics.mujoco_native import NativeBatch

Array = NDArray[np.float64]

_EQUALITY = int(mujoco.mjtConstraint.mjCNSTR_EQUALITY)
_LOSSES = (int(mujoco.mjtConstraint.mjCNSTR_FRICTION_DOF), int(mujoco.mjtConstraint.mjCNSTR_FRICTION_TENDON))
_ELLIPTIC = int(mujoco.mjtConstraint.mjCNSTR_CONTACT_ELLIPTIC)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Constraint rows of n worlds, filled up with zeros to the same number r."""

    jacobian: Array
    """J, shape [n, r, nv]."""
    stiffness: Array
    """D, shape [n, r]."""
    damping: Array
    """B, shape [n, r]."""
    reference: Array
    """aref, shape [n, r]."""
    loss: Array
    """Friction loss, shape [n, r]."""
    kind: NDArray[np.int64]
    """``mjtConstraint``, -1 beyond a world's last row, shape [n, r]."""
    cones: list[tuple[int, int, float, Array]]
    """Elliptic contacts: place in the batch, first row, mu, friction [dim - 1]."""


def read_rows(batch: NativeBatch, data: mujoco.MjData, worlds: NDArray[np.int64], counts: NDArray[np.int64], nv: int) -> Rows:
    """Read the rows of some worlds of a persistent batch whose model keeps its Jacobian dense.

    Args:
        batch: The worlds, just stepped.
        data: Scratch.
        worlds: Which ones, shape [n].
        counts: Their number of rows, shape [n].
        nv: Degrees of freedom.
    """
    n, r = len(worlds), int(counts.max())
    jacobian = np.zeros((n, r, nv))
    columns = np.zeros((4, n, r))
    kind = np.full((n, r), -1)
    cones: list[tuple[int, int, float, Array]] = []
    for i, (world, k) in enumerate(zip(worlds.tolist(), counts.tolist(), strict=True)):
        batch.get_data(world, data)
        jacobian[i, :k] = data.efc_J.reshape(k, nv)
        columns[0, i, :k] = data.efc_D
        columns[1, i, :k] = data.efc_KBIP[:, 1]
        columns[2, i, :k] = data.efc_aref
        columns[3, i, :k] = data.efc_frictionloss
        kind[i, :k] = data.efc_type
        if kind[i, k - 1] == _ELLIPTIC or (kind[i] == _ELLIPTIC).any():
            contact = data.contact
            friction, mus, sizes = contact.friction, contact.mu, contact.dim.tolist()
            cones += [(i, first, float(mus[j]), friction[j, : sizes[j] - 1].copy())
                      for j, first in enumerate(contact.efc_address.tolist()) if first >= 0 and kind[i, first] == _ELLIPTIC]
    return Rows(jacobian=jacobian, stiffness=columns[0], damping=columns[1], reference=columns[2], loss=columns[3], kind=kind, cones=cones)


def constraint_slopes(rows: Rows, acceleration: Array) -> tuple[Array, Array]:
    """Return ``Jᵀ S J`` and ``Jᵀ S B J``, each shape [n, nv, nv], at accelerations of shape [n, nv]."""
    J, D, kind = rows.jacobian, rows.stiffness, rows.kind
    jar = (J @ acceleration[..., None])[..., 0] - rows.reference
    active = (jar < 0) & (kind > _LOSSES[1]) & (kind != _ELLIPTIC) | (kind == _EQUALITY)
    lossy = (kind == _LOSSES[0]) | (kind == _LOSSES[1])
    active |= lossy & (np.abs(jar) * D < rows.loss)
    SJ = np.where(active, D, 0.0)[..., None] * J
    for dim in {len(c[3]) for c in rows.cones}:
        _add_cones([c for c in rows.cones if len(c[3]) == dim], rows, jar, SJ)
    left = SJ.transpose(0, 2, 1)
    return left @ J, left @ (rows.damping[..., None] * J)


def _add_cones(cones: list[tuple[int, int, float, Array]], rows: Rows, jar: Array, SJ: Array) -> None:
    """Write S J of elliptic contacts that all have the same number of rows."""
    mu = np.array([c[2] for c in cones])
    friction = np.array([c[3] for c in cones])
    dim = friction.shape[1] + 1
    places = np.array([c[0] for c in cones])[:, None], np.array([c[1] for c in cones])[:, None] + np.arange(dim)
    scale = np.concatenate([mu[:, None], friction], 1)
    U = jar[places] * scale
    D = rows.stiffness[places]
    N, T = U[:, 0], np.linalg.norm(U[:, 1:], axis=1)
    t = U[:, 1:] / np.maximum(T, mujoco.mjMINVAL)[:, None]
    along = t[:, :, None] * t[:, None, :]
    C = np.empty((len(cones), dim, dim))
    C[:, 0, 0] = 1.0
    C[:, 0, 1:] = C[:, 1:, 0] = -mu[:, None] * t
    across = (mu * (N - mu * T) / np.maximum(T, mujoco.mjMINVAL))[:, None, None]
    C[:, 1:, 1:] = (mu * mu)[:, None, None] * along - across * (np.eye(dim - 1) - along)
    C *= (D[:, 0] / (mu * mu * (1 + mu * mu)))[:, None, None] * scale[:, :, None] * scale[:, None, :]
    C[N >= mu * T] = 0.0
    stuck = mu * N + T <= 0
    C[stuck] = D[stuck][:, :, None] * np.eye(dim)
    SJ[places] = C @ rows.jacobian[places]
