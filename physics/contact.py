"""The contacts of a MuJoCo model in many states: gaps before touch too, frames, Jacobians, and the engine's forces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mujoco
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from residual_mbrl.contacts import Contacts
from residual_mbrl.errors import ModelError
from residual_mbrl.physics.collision_geometry import check_collisions
from residual_mbrl.physics.contact_text import ARGUMENTS, ENGINE, ROWS, TEXT
from residual_mbrl.physics.mujoco_model import STATE, element_name
from residual_mbrl.physics.mujoco_native import Arguments, compile_functions, engine_function
from residual_mbrl.physics.mujoco_probes import FieldWriter, InputWriter, engine_model, make_native_batch
from residual_mbrl.physics.mujoco_warnings import QUIET

Array = NDArray[np.float64]

GAPS = ("geom_gap", "pair_gap")
"""Distances beyond which the engine forgets a pair; they put no force on it (MuJoCo, Computation, margin and gap)."""


class ContactProbe:
    """Looks at the contacts of many worlds at once, in native threads.

    Args:
        model: The model; it is copied.
        most: Rows of the result.
        reach: Distance [m] up to which pairs without a touch are seen. The engine's own margin and gap come on top.
        threads: Native threads; 0 takes every core.

    Raises:
        ModelError: if nothing can touch, or a reach is asked of a model with adhesion, which the engine shares by what is in the gap.
    """

    def __init__(self, model: mujoco.MjModel, most: int, reach: float, *, threads: int = 0) -> None:
        check_collisions(model)
        if most < 1 or reach < 0:
            raise ValueError(f"contacts: expected most >= 1 and reach >= 0, received {most}, {reach}")
        self._model, self._most, self._reach, self._threads = engine_model(model), most, reach, threads
        if reach:
            if (model.actuator_trntype == int(mujoco.mjtTrn.mjTRN_BODY)).any() or model.geom_adhesion.any() or model.pair_adhesion.any():
                raise ModelError("contacts: the engine shares adhesion among all contacts in the gap, so that a reach would change it; "
                                 "expected reach=0 for a model with adhesion")
            for name in GAPS:
                getattr(self._model, name)[...] += reach
        self._size = mujoco.mj_stateSize(model, STATE)
        self._names = tuple(element_name(model, "geom", g) for g in range(int(model.ngeom)))
        self._worlds: dict[tuple[int, frozenset[str]], _Worlds] = {}

    def look(self, state: Array, action: Array, force: Array | None, fields: Mapping[str, Array]) -> Contacts:
        """Return the contacts of N worlds; none in worlds whose state is not finite.

        Args:
            state: Shape [N, nx].
            action: Shape [N, nu].
            force: Generalised force beside the engine's own, shape [N, nv].
            fields: Model fields that vary between worlds, shape [N, ...].
        """
        kind = len(state), frozenset(fields)
        if kind not in self._worlds:
            if len(self._worlds) > 4:  # batch sizes that come and go must not fill the memory
                self._worlds.clear()
            self._worlds[kind] = _Worlds(self._model, len(state), self._most, self._threads)
        sound = np.isfinite(state).all(1) & (np.abs(state) < mujoco.mjMAXVAL).all(1)
        rest = np.concatenate([self._model.qpos0, np.zeros(state.shape[1] - len(self._model.qpos0))])
        placed = state if sound.all() else np.where(sound[:, None], state, rest)
        moved = {name: values + self._reach if name in GAPS else values for name, values in fields.items()}
        found = self._worlds[kind].look(placed[:, : self._size], action, force, moved)
        if not sound.all():
            for x in found.values():
                x[~sound] = 0
        tensors: dict[str, Tensor] = {name: torch.from_numpy(array) for name, array in found.items()}
        return Contacts(**tensors, names=self._names)


class _Worlds:
    """N worlds at which contacts are looked, in the engine's threads."""

    def __init__(self, model: mujoco.MjModel, count: int, most: int, threads: int) -> None:
        self._batch = make_native_batch(model, count, threads)
        self._inputs, self._writer = InputWriter(self._batch), FieldWriter(self._batch)
        self._look = compile_functions(TEXT, ("look",))["look"]
        self._arguments = Arguments(ARGUMENTS)
        self._arguments.set(**{name: engine_function(name) for name in ENGINE}, most=most)
        sizes = {"nv": int(model.nv)}
        self._shapes = {name: ((count, most, *(sizes[n] if isinstance(n, str) else n for n in shape)), kind)
                        for name, (kind, shape) in ROWS.items()}

    def look(self, state: Array, action: Array, force: Array | None, fields: Mapping[str, Array]) -> dict[str, NDArray[Any]]:
        """Return the entries of ``Contacts``; arguments as of ``ContactProbe.look``."""
        self._writer.write(fields)
        self._inputs.write(state, action, force)
        found: dict[str, NDArray[Any]] = {name: np.zeros(shape, kind) for name, (shape, kind) in self._shapes.items()}
        found["missed"] = np.zeros(len(state), np.int64)
        self._arguments.set(**found)
        with QUIET:
            self._batch.apply(self._look, self._arguments.address)
        return found
