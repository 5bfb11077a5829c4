"""The contacts of a MuJoCo model in many states: gaps before touch too, frames, Jacobians, and the engine's forces."""

from __future__ import annotations

from collections.abc import Mapping

import mujoco
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from residual_mbrl.contacts import Contacts
from residual_mbrl.errors import ModelError
from residual_mbrl.physics.collision_geometry import check_collisions
from residual_mbrl.physics.mujoco_fields import read_field, write_field
from residual_mbrl.physics.mujoco_model import STATE, element_name
from residual_mbrl.physics.mujoco_probes import engine_model
from residual_mbrl.physics.mujoco_warnings import QUIET

Array = NDArray[np.float64]

GAPS = ("geom_gap", "pair_gap")
"""Distances beyond which the engine forgets a pair; they put no force on it (MuJoCo, Computation, margin and gap)."""


class ContactProbe:
    """Looks at the contacts of one world after another, on one core.

    Args:
        model: The model; it is copied.
        most: Rows of the result.
        reach: Distance [m] up to which pairs without a touch are seen. The engine's own margin and gap come on top.

    Raises:
        ModelError: if nothing can touch, or a reach is asked of a model with adhesion, which the engine shares by what is in the gap.
    """

    def __init__(self, model: mujoco.MjModel, most: int, reach: float) -> None:
        check_collisions(model)
        if most < 1 or reach < 0:
            raise ValueError(f"contacts: expected most >= 1 and reach >= 0, received {most}, {reach}")
        self._model, self._most, self._reach = engine_model(model), most, reach
        if reach:
            if (model.actuator_trntype == int(mujoco.mjtTrn.mjTRN_BODY)).any() or model.geom_adhesion.any() or model.pair_adhesion.any():
                raise ModelError("contacts: the engine shares adhesion among all contacts in the gap, so that a reach would change it; "
                                 "expected reach=0 for a model with adhesion")
            for name in GAPS:
                getattr(self._model, name)[...] += reach
            self._model.body_margin[...] += reach  # the compiler's largest of a body's geoms; pairs of bodies beyond it are passed over
        self._data = mujoco.MjData(self._model)
        self._size = mujoco.mj_stateSize(model, STATE)
        self._names = tuple(element_name(model, "geom", g) for g in range(int(model.ngeom)))

    def look(self, state: Array, action: Array, force: Array | None, fields: Mapping[str, Array]) -> Contacts:
        """Return the contacts of N worlds; none in worlds whose state is not finite.

        Args:
            state: Shape [N, nx].
            action: Shape [N, nu].
            force: Generalised force beside the engine's own, shape [N, nv].
            fields: Model fields that vary between worlds, shape [N, ...].
        """
        n, k, nv = len(state), self._most, int(self._model.nv)
        found = {"present": np.zeros((n, k), bool), "gap": np.zeros((n, k)), "position": np.zeros((n, k, 3)),
                 "frame": np.zeros((n, k, 3, 3)), "jacobian": np.zeros((n, k, 3, nv)), "response": np.zeros((n, k, 3, nv)),
                 "velocity": np.zeros((n, k, 3)), "force": np.zeros((n, k, 3)), "torque": np.zeros((n, k, 3)),
                 "friction": np.zeros((n, k, 5)), "geoms": np.zeros((n, k, 2), np.int64), "missed": np.zeros(n, np.int64)}
        nominal = {name: read_field(self._model, name) for name in fields}
        with QUIET:
            for i in np.flatnonzero(np.isfinite(state).all(1)):
                for name, values in fields.items():
                    write_field(self._model, name, values[i] + self._reach if name in GAPS else values[i])
                self._forward(state[i], action[i], 0.0 if force is None else force[i])
                self._read({name: array[i : i + 1] for name, array in found.items()})
        for name, value in nominal.items():
            write_field(self._model, name, value)
        tensors: dict[str, Tensor] = {name: torch.from_numpy(array) for name, array in found.items()}
        return Contacts(**tensors, names=self._names)

    def _forward(self, state: Array, action: Array, force: Array | float) -> None:
        model, data = self._model, self._data
        mujoco.mj_setState(model, data, state[: self._size], STATE)
        data.time = state[-1] if len(state) > self._size else 0.0
        data.ctrl[:], data.qfrc_applied[:], data.qacc_warmstart[:] = action, force, 0.0
        mujoco.mj_forward(model, data)

    def _read(self, out: Mapping[str, NDArray[np.generic]]) -> None:
        """Write the contacts of the world just computed, each array of shape [1, ...]."""
        model, data, contact = self._model, self._data, self._data.contact
        rows = np.argsort(contact.dist, kind="stable")[: self._most]
        m = len(rows)
        out["missed"][:] = len(contact.dist) - m
        if not m:
            return
        out["present"][0, :m], out["gap"][0, :m], out["position"][0, :m] = True, contact.dist[rows], contact.pos[rows]
        out["frame"][0, :m], out["geoms"][0, :m] = contact.frame[rows].reshape(m, 3, 3), contact.geom[rows]
        dims = contact.dim[rows, None]
        out["friction"][0, :m] = np.where(np.arange(5) < dims - 1, contact.friction[rows], 0.0)
        jacobian, first, second, wrench = np.empty((m, 3, int(model.nv))), *(np.zeros((3, int(model.nv))) for _ in range(2)), np.zeros(6)
        for j, row in enumerate(rows.tolist()):
            bodies = model.geom_bodyid[contact.geom[row]]
            mujoco.mj_jac(model, data, first, None, contact.pos[row], bodies[0])
            mujoco.mj_jac(model, data, second, None, contact.pos[row], bodies[1])
            jacobian[j] = contact.frame[row].reshape(3, 3) @ (second - first)
            mujoco.mj_contactForce(model, data, row, wrench)
            out["force"][0, j], out["torque"][0, j] = wrench[:3], wrench[3:]
        flat = jacobian.reshape(3 * m, -1)
        response = np.empty_like(flat)
        mujoco.mj_solveM(model, data, response, flat)
        out["jacobian"][0, :m], out["response"][0, :m] = jacobian, response.reshape(m, 3, -1)
        out["velocity"][0, :m] = jacobian @ data.qvel
