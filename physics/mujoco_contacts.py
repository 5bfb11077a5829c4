"""What touches what in a state of a MuJoCo model, in words."""

from __future__ import annotations

import mujoco
import numpy as np
from numpy.typing import NDArray

from residual_mbrl.physics.mujoco_model import STATE, element_name


def name_contacts(model: mujoco.MjModel, state: NDArray[np.float64]) -> tuple[str, ...]:
    """Return the pairs of geoms that are close enough for a contact force, "floor/box", and the joints at a limit.

    Args:
        model: The model.
        state: Shape [nx]; time after the engine's own state entries does not count.
    """
    data = mujoco.MjData(model)
    mujoco.mj_setState(model, data, state[: mujoco.mj_stateSize(model, STATE)], STATE)
    mujoco.mj_fwdPosition(model, data)
    pairs = [tuple(int(g) for g in data.contact.geom[i]) for i in range(data.ncon) if data.contact.efc_address[i] >= 0]
    touching = [f"{element_name(model, 'geom', a)}/{element_name(model, 'geom', b)}" for a, b in pairs]
    at_limit = data.efc_id[data.efc_type == int(mujoco.mjtConstraint.mjCNSTR_LIMIT_JOINT)]
    return tuple(dict.fromkeys([*touching, *(f"limit of {element_name(model, 'joint', int(j))}" for j in at_limit)]))
