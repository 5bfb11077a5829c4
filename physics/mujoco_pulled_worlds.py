"""Vector-Jacobian products of MuJoCo steps by Euler's method, each world in one call of a compiled function in the engine's threads."""

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

_MOVE, _CONTACT_MOVE = 1e-8, 1e-9
"""Size of a move of positions, to one side, without and with constraints: a contact's force bends within 1e-4."""


def is_pulled(plan: Plan, wanted: frozenset[str]) -> bool:
    """Whether products of one cotangent are taken here: a step of one acceleration of which nothing but positions is moved."""
    return (plan.stages == 1 and (plan.driven or not plan.stepped) and plan.exact_action and set(plan.groups) <= {"position"}
            and (plan.exact_velocity or wanted.isdisjoint(("state", "velocity"))))


class PulledWorlds:
    """Pulls one cotangent of each of n worlds back; arguments as of ``AdjointWorlds``."""

    def __init__(self, model: mujoco.MjModel, worlds: int, plan: Plan, *, varying: frozenset[str], threads: int) -> None:
        self.n, self.nv, self.na, self._plan, self._sizes = worlds, int(model.nv), int(model.na), plan, {
            name: getattr(model, name).size for name in FIELDS}
        self._looks: dict[str, NDArray[Any]] = {}
        self._template = mujoco.MjData(model)
        self._batch = make_native_batch(solving_model(model), worlds, threads)
        self._inputs, self._writer = InputWriter(self._batch), FieldWriter(self._batch)
        self._actuators = SimpleActuators(model, self, varying) if model.nu else None
        self._stateful = np.flatnonzero(model.actuator_actadr >= 0)
        self._memory = model.actuator_actadr[self._stateful]
        self._pull = compile_functions(TEXT, NAMES)["pull"]
        self._arguments = Arguments(ARGUMENTS)
        self._arguments.set(**{name: engine_function(name) for name in ENGINE}, **self._looks, damped=plan.damped or plan.driven,
                            driven=plan.driven, passive=plan.passive, rows=1, real_move=_MOVE, real_contact_move=_CONTACT_MOVE)

    def bind(self, name: str) -> NDArray[Any]:
        """Return a live array of a data field of the solved worlds, one of ``LOOKED_AT``, shape [n, ...]."""
        if name not in self._looks:
            template = np.asarray(getattr(self._template, name))
            self._looks[name] = np.zeros((self.n, *template.shape), template.dtype)
        return self._looks[name]

    def differentiate(self, state: Array, action: Array, force: Array | None, cotangent: Array | None, wanted: frozenset[str],
                      fields: Mapping[str, Array]) -> dict[str, Array]:
        """Return products of cotangents [n, 1, ndx] with a step's Jacobian; see ``AdjointWorlds.differentiate``."""
        n, nv, na = self.n, self.nv, self.na
        if cotangent is None or cotangent.shape[1] != 1:
            raise ValueError("PulledWorlds: expected one cotangent a world")
        self._writer.write(fields)
        self._inputs.write(state, action, force)
        cotangent = np.ascontiguousarray(cotangent[:, 0])
        found = {"force": np.empty((n, nv)), **{name: np.zeros((n, self._sizes[name])) for name in FIELDS if name in wanted}}
        position = np.empty((n, nv)) if "state" in wanted else None
        velocity = np.empty((n, nv)) if "state" in wanted or "velocity" in wanted else None
        self._arguments.set(cotangent=cotangent, mu=found["force"], position=position, velocity=velocity,
                            **{name: found.get(name) for name in FIELDS})
        if self._batch.apply(self._pull, self._arguments.address):
            for x in (position, velocity, *found.values()):
                if x is not None:
                    x[self._batch.given_up] = np.nan
        memory = state[:, state.shape[1] - na :]
        found["action"], memory = self._through_actuators(found["force"], cotangent[:, 2 * nv :], memory, action, wanted, fields)
        if velocity is not None:
            found["velocity"] = velocity
        if position is not None and velocity is not None:
            found["state"] = np.concatenate([position, velocity, *([memory] if na else [])], 1)
        return {name: found[name][:, None] for name in wanted}

    def _through_actuators(self, mu: Array, to_memory: Array, activation: Array, action: Array, wanted: frozenset[str],
                           fields: Mapping[str, Array]) -> tuple[Array, Array]:
        """Return products by action [n, nu] and activation [n, na]."""
        if self._actuators is None or not wanted & {"action", "state" if self.na else "action"}:
            return np.zeros_like(action), np.zeros((self.n, self.na))
        slopes, stateful, at = self._actuators.slopes(action, activation, fields), self._stateful, self._memory
        through = (mu[:, None] @ slopes.moment.transpose(0, 2, 1))[:, 0]
        by_action, by_memory = through * slopes.force_control, np.zeros((self.n, self.na))
        if self.na:
            by_action[:, stateful] += to_memory[:, at] * slopes.memory_control[:, stateful]
            by_memory[:, at] = (through * slopes.force_memory)[:, stateful] + to_memory[:, at] * slopes.memory[:, stateful]
        return by_action, by_memory
