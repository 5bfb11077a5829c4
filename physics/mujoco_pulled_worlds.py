"""Derivatives of MuJoCo steps of one acceleration, each world in one call of a compiled function in the engine's threads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from residual_mbrl.physics.mujoco_actuation import SimpleActuators
from residual_mbrl.physics.mujoco_adjoint_plan import Plan
from residual_mbrl.physics.mujoco_adjoint_text import ARGUMENTS, ENGINE, FIELDS, NAMES, TEXT
from residual_mbrl.physics.mujoco_native import Arguments, compile_functions, engine_function
from residual_mbrl.physics.mujoco_probes import FieldWriter, InputWriter, make_native_batch, solving_model

Array = NDArray[np.float64]

_MOVE, _BENT_MOVE = 3e-6, 3e-7
"""Size of moves of positions, to both sides: of what is smooth, and with constraints other than dry friction, as the force of a contact
bends within 1e-4. Smaller moves, or moves to one side, are lost in rounding where a wrist is light and an arm heavy."""
_MOST = 150
"""Degrees of freedom whose matrices fit a thread's stack."""


def is_pulled(model: mujoco.MjModel, plan: Plan, wanted: frozenset[str]) -> bool:
    """Whether derivatives are taken here: those of a step of one acceleration, for which nothing but positions is moved."""
    exact = plan.exact_action and (plan.exact_velocity or wanted.isdisjoint(("state", "velocity")))
    return int(model.nv) <= _MOST and plan.stages == 1 and (plan.driven or not plan.stepped) and exact and set(plan.groups) <= {"position"}


class PulledWorlds:
    """Differentiates n worlds at once; arguments as of ``AdjointWorlds``.

    Attributes:
        signature: A number of which rows of constraints each world had and how they acted, shape [n].
    """

    def __init__(self, model: mujoco.MjModel, worlds: int, plan: Plan, *, varying: frozenset[str], threads: int) -> None:
        self.n, self.nv, self.na, self._damped = worlds, int(model.nv), int(model.na), plan.damped or plan.driven
        self._sizes = {name: getattr(model, name).size for name in FIELDS}
        self.signature = np.zeros(worlds, np.uint64)
        self._looks: dict[str, NDArray[Any]] = {}
        self._template = mujoco.MjData(model)
        self._batch = make_native_batch(solving_model(model), worlds, threads)
        self._inputs, self._writer = InputWriter(self._batch), FieldWriter(self._batch)
        self._actuators = SimpleActuators(model, self, varying) if model.nu else None
        self._stateful = np.flatnonzero(model.actuator_actadr >= 0)
        self._memory = model.actuator_actadr[self._stateful]
        self._pull = compile_functions(TEXT, NAMES)["pull"]
        self._arguments = Arguments(ARGUMENTS)
        self._arguments.set(**{name: engine_function(name) for name in ENGINE}, **self._looks, damped=self._damped,
                            driven=plan.driven, passive=plan.passive, real_move=_MOVE, real_bent_move=_BENT_MOVE)

    def bind(self, name: str) -> NDArray[Any]:
        """Return a live array of a data field of the solved worlds, one of ``LOOKED_AT``, shape [n, ...]."""
        if name not in self._looks:
            template = np.asarray(getattr(self._template, name))
            self._looks[name] = np.zeros((self.n, *template.shape), template.dtype)
        return self._looks[name]

    def differentiate(self, state: Array, action: Array, force: Array | None, cotangent: Array | None, wanted: frozenset[str],
                      fields: Mapping[str, Array]) -> dict[str, Array]:
        """Return products of cotangents with a step's Jacobian, each shape [n, m, k]; see ``AdjointWorlds.differentiate``."""
        n, nv, na = self.n, self.nv, self.na
        self._writer.write(fields)
        self._inputs.write(state, action, force)
        if cotangent is None:
            cotangent = np.broadcast_to(np.eye(2 * nv + na), (n, 2 * nv + na, 2 * nv + na))
        cotangent, m = np.ascontiguousarray(cotangent), cotangent.shape[1]
        found = {"force": np.empty((n, m, nv)), **{name: np.zeros((n, m, self._sizes[name])) for name in FIELDS if name in wanted}}
        if "state" in wanted or "velocity" in wanted:
            found["velocity"] = np.empty((n, m, nv))
        position = np.empty((n, m, nv)) if "state" in wanted else None
        self._arguments.set(signature=self.signature, cotangent=cotangent, rows=m, mu=found["force"], position=position,
                            w=np.empty((n, m, nv)) if self._damped else None, velocity=found.get("velocity"),
                            **{name: found.get(name) for name in FIELDS})
        if self._batch.apply(self._pull, self._arguments.address):
            for x in (position, *found.values()):
                if x is not None:
                    x[self._batch.given_up] = np.nan
        memory = state[:, state.shape[1] - na :]
        found["action"], memory = self._through_actuators(found["force"], cotangent[:, :, 2 * nv :], memory, action, wanted, fields)
        if position is not None:
            found["state"] = np.concatenate([position, found["velocity"], *([memory] if na else [])], 2)
        return {name: found[name] for name in wanted}

    def _through_actuators(self, mu: Array, to_memory: Array, activation: Array, action: Array, wanted: frozenset[str],
                           fields: Mapping[str, Array]) -> tuple[Array, Array]:
        """Return products by action [n, m, nu] and activation [n, m, na]."""
        by_memory = np.zeros((*mu.shape[:2], self.na))
        if self._actuators is None or not wanted & {"action", "state" if self.na else "action"}:
            return np.zeros((*mu.shape[:2], action.shape[1])), by_memory
        slopes, stateful, at = self._actuators.slopes(action, activation, fields), self._stateful, self._memory
        through = mu @ slopes.moment.transpose(0, 2, 1)
        by_action = through * slopes.force_control[:, None]
        if self.na:
            by_action[:, :, stateful] += to_memory[:, :, at] * slopes.memory_control[:, None, stateful]
            by_memory[:, :, at] = ((through * slopes.force_memory[:, None])[:, :, stateful]
                                   + to_memory[:, :, at] * slopes.memory[:, None, stateful])
        return by_action, by_memory
