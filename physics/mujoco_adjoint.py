"""Gradients of MuJoCo steps without differences through the constraint solver.

The engine's acceleration a solves ``g = M a - r = 0``, where r is smooth plus constraint force and the constraint force depends
on a. With H = M + Jᵀ s″ J (``mujoco_contact_hessian``) the solution moves by ``δa = -H⁻¹ δg``, δg the change of g with a held. The
integrator inverts its own inertia M̂ (M, plus h times the damping that it treats implicitly), so with a held the next velocity
is ``v + h M̂⁻¹ r``, and

    w = h M̂⁻ᵀ λ,   mu = H⁻¹ M w,   λᵀ δv' = λᵀ δv'|a + (w - mu)ᵀ δg,   λᵀ δv'/δforce = muᵀ.

Euler without damping integrates a itself: ``λᵀ δv' = λᵀ δv - muᵀ δg``, mu = h H⁻¹ λ. Then ``q' = q ⊞ h v'``. Runge and Kutta's method
has four such accelerations (``mujoco_runge_kutta``).

Where M̂ is M plus a constant, v' needs no integration of what is moved. With r = M a, and c = M̂⁻¹ r the change of velocity over h,

    λᵀ δv' = λᵀ δv + muᵀ δr + (w - mu)ᵀ δM a - wᵀ δM c.

Steps of one acceleration are differentiated by a compiled function that runs on each world in the engine's threads
(``mujoco_pulled_worlds``): Euler's, and implicitfast's where drives act at joints. A world is solved, its Hessian factorised, and
everything that needs no move follows from that; products and whole Jacobians alike. Other models, and Runge and Kutta's method, go by
numpy. What it costs beside a step of the engine and beside differences: ``benchmarks/contact_gradients.py``.

 - Force: exact.
 - Action and activation: exact for linear filters and affine gains (``mujoco_actuation``); by differences with a held for others.
 - Friction, solref, solimp and margin of contacts: exact (``mujoco_adjoint_text``).
 - Velocity: exact from the engine's own derivative of the smooth forces and the damping of the constraint rows, where nothing in
   the integrator's inertia depends on velocity; by differences with a held elsewhere.
 - Position: differences with a held. Kinematics and collision have no other derivative here, and this takes 2 nv cheap evaluations where
   differences of everything take 2 (3 nv + nu) full steps. No solver tolerance enters, so that the moves can be small: 3e-6 to both
   sides, 3e-7 with limits or contacts. Each row of constraints is held in the zone in which it acts (idle, linear, sliding, at its
   friction loss), and a side on which the moved world has other rows is left out where the other side has the same. In numpy the
   moves are 3e-7 to both sides, or 1e-8 to one where no world has constraints, and rows within about 1e-3 m/s² of a switch may cross
   it.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping

import mujoco
import numpy as np
from mujoco.batch import MODEL_FIELDS, Batch
from numpy.typing import NDArray

from residual_mbrl.errors import ModelError
from residual_mbrl.physics.mujoco_adjoint_plan import CONTACT_FIELDS, Plan, contact_fields, make_plan, supported
from residual_mbrl.physics.mujoco_adjoint_worlds import AdjointWorlds
from residual_mbrl.physics.mujoco_probes import FieldWriter, InputWriter, engine_model, make_batch
from residual_mbrl.physics.mujoco_pulled_worlds import PulledWorlds, is_pulled
from residual_mbrl.physics.mujoco_runge_kutta import RungeKuttaWorlds
from residual_mbrl.physics.numeric_step import Gradients, Inputs

__all__ = ["StepAdjoint", "contact_fields", "expanded_fields", "supported"]

Array = NDArray[np.float64]

_Worlds = AdjointWorlds | RungeKuttaWorlds | PulledWorlds
_LARGE = float(mujoco.mjMAXVAL)
"""Where the engine gives a state up."""
_NUMBERS = 1 << 22
"""Most numbers of a result at once."""
_MOVED, _SOLVED = 1 << 11, 1 << 8
"""Most worlds moved, and solved, at once: what they leave behind should fit a processor's cache, and each solved one keeps its data."""


def expanded_fields(batch: Batch) -> dict[str, Array]:
    """Return the model fields that have values of their own in each world of a batch, live, shape [N, ...].

    This asks for every field there is (0.3 ms): do so only after ``expand`` and ``set_const``, which may add some.
    """
    found = {name: batch.expanded(name) for name in MODEL_FIELDS}
    return {name: values for name, values in found.items() if values is not None}


class StepAdjoint:
    """Vector-Jacobian products and Jacobians of steps of a MuJoCo model.

    Worlds are independent, each with its own state, input and, where given, model fields. The solver's optimum is differentiated:
    solved to rounding with Newton's method, whatever solver the model steps with.

    Args:
        model: The model; later changes of it have no effect.
        threads: Native threads; 0 takes every core.

    Raises:
        ModelError: if ``supported`` names a reason.
    """

    def __init__(self, model: mujoco.MjModel, *, threads: int = 0) -> None:
        _require(supported(model))
        self.model, self._threads = copy.copy(model), threads
        self._plans: dict[tuple[frozenset[str], frozenset[str]], Plan] = {}
        self._worlds: dict[tuple[int, type, frozenset[str], frozenset[str]], _Worlds] = {}
        self._rolled: dict[int, tuple[Batch, InputWriter, FieldWriter]] = {}

    def pull_back(self, inputs: Inputs, cotangent: Array, wanted: Collection[str], *, substeps: int = 1,
                  fields: Mapping[str, Array] | None = None) -> Gradients:
        """Return the vector-Jacobian product of a step.

        Args:
            inputs: State [N, nx], action [N, nu] and force [N, nv]; values are not looked at.
            cotangent: Of the next state, on the tangent space, shape [N, 2 nv + na].
            wanted: Any of "state", "action", "force"; "velocity", which is that part of the state alone, at a fraction of the cost;
                and ``contact_fields``. The last two come as values.
            substeps: Steps of the engine with the same action and force.
            fields: Model fields by world, derived ones included (``expanded_fields``), shape [N, ...].

        Returns:
            Gradients; NaN for worlds whose state is not finite.
        """
        fields, wanted = fields or {}, frozenset(wanted)
        if substeps == 1:
            found = self._differentiate(inputs.state, inputs, cotangent[:, None], wanted, fields)
            return self._gradients({name: x[:, 0] for name, x in found.items()})
        states = self._substates(inputs, substeps, fields)
        total: dict[str, Array] = {}
        for k in reversed(range(substeps)):
            found = self._differentiate(states[k], inputs, cotangent[:, None], wanted | {"state"} if k else wanted, fields)
            total = {name: x + total[name] if name in total and name != "state" else x for name, x in found.items()} if total else found
            cotangent = found["state"][:, 0] if k else cotangent
        return self._gradients({name: total[name][:, 0] for name in wanted})

    def jacobian(self, inputs: Inputs, wanted: Collection[str], *, substeps: int = 1,
                 fields: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """Return Jacobians by name, each shape [N, 2 nv + na, k]; arguments as in ``pull_back``."""
        fields, names = fields or {}, frozenset(wanted) | {"state"} if substeps > 1 else frozenset(wanted)
        states = self._substates(inputs, substeps, fields)
        total: dict[str, Array] = {}
        for k in range(substeps):
            found = self._differentiate(states[k], inputs, None, names, fields)
            if not total:
                total = found
                continue
            total = {name: found["state"] @ total[name] + (0 if name == "state" else x) for name, x in found.items()}
        return {name: total[name] for name in wanted}

    def signatures(self, inputs: Inputs, *, substeps: int = 1, fields: Mapping[str, Array] | None = None) -> NDArray[np.uint64]:
        """Return a number for each world that tells which constraints there are and how they act, in every substep, shape [N].

        Raises:
            ModelError: if derivatives of this model are taken without a look at single rows.
        """
        fields, wanted = fields or {}, frozenset({"force"})
        n, size = len(inputs.state), 2 * int(self.model.nv) + int(self.model.na)
        total, cotangent = np.zeros(n, np.uint64), np.zeros((n, 1, size))
        for state in self._substates(inputs, substeps, fields):
            self._differentiate(state, inputs, cotangent, wanted, fields)
            worlds = self._worlds.get((n, PulledWorlds, wanted, frozenset(fields)))
            if not isinstance(worlds, PulledWorlds):
                raise ModelError("no signatures of contacts: expected Euler, or implicitfast with drives at joints alone")
            total = total * np.uint64(1099511628211) + worlds.signature
        return total

    def _gradients(self, rows: Mapping[str, Array]) -> Gradients:
        values = {name: x.reshape(-1, *getattr(self.model, name).shape) for name, x in rows.items() if name in CONTACT_FIELDS}
        if "velocity" in rows:
            values["velocity"] = rows["velocity"]
        return Gradients(state=rows.get("state"), action=rows.get("action"), force=rows.get("force"), values=values)

    def _substates(self, inputs: Inputs, substeps: int, fields: Mapping[str, Array]) -> list[Array]:
        """Return the states that the substeps start from."""
        if substeps == 1:
            return [inputs.state]
        count, physics = len(inputs.state), int(mujoco.mjtState.mjSTATE_PHYSICS)
        if count not in self._rolled:
            batch = make_batch(engine_model(self.model), count, self._threads)
            self._rolled = {count: (batch, InputWriter(batch), FieldWriter(batch))}
        batch, entry, writer = self._rolled[count]
        writer.write(fields)
        entry.write(inputs.state, inputs.action, inputs.force)
        states = batch.rollout(substeps - 1, record=[physics])[physics]
        return [inputs.state, *np.moveaxis(states, 1, 0)]

    def _differentiate(self, state: Array, inputs: Inputs, cotangent: Array | None, wanted: frozenset[str],
                       fields: Mapping[str, Array]) -> dict[str, Array]:
        """Differentiate a step from some states; cotangent [N, m, ndx], None for all unit ones."""
        flat = state.ravel()
        if flat.dot(flat) < _LARGE:  # which a NaN is not either; quicker than a look at each entry
            return self._chunked(state, inputs.action, inputs.force, cotangent, wanted, fields)
        sound = np.abs(state) < _LARGE
        if sound.all():
            return self._chunked(state, inputs.action, inputs.force, cotangent, wanted, fields)
        bad = np.logical_not(sound.all(axis=1))
        rest = np.concatenate([self.model.qpos0, np.zeros(int(self.model.nv) + int(self.model.na))])
        found = self._chunked(np.where(bad[:, None], rest, state), inputs.action, inputs.force, cotangent, wanted, fields)
        for x in found.values():
            x[bad] = np.nan
        return found

    def _chunked(self, state: Array, action: Array, force: Array | None, cotangent: Array | None, wanted: frozenset[str],
                 fields: Mapping[str, Array]) -> dict[str, Array]:
        """Differentiate as many worlds at once as memory should hold."""
        count, kind = len(state), (wanted, frozenset(fields))
        if kind not in self._plans:
            _require(supported(self.model, fields))
            self._plans[kind] = make_plan(self.model, *kind)
        plan = self._plans[kind]
        pulled = is_pulled(self.model, plan, wanted)
        if "velocity" in wanted and not pulled:
            found = self._chunked(state, action, force, cotangent, wanted - {"velocity"} | {"state"}, fields)
            nv = int(self.model.nv)
            return {name: x for name, x in found.items() if name in wanted} | {"velocity": found["state"][:, :, nv : 2 * nv]}
        if pulled:
            rows = 2 * int(self.model.nv) + int(self.model.na) if cotangent is None else cotangent.shape[1]
            most = min(count, max(1, _NUMBERS // max(rows * int(self.model.nv), 1)))
        else:
            most = min(count, _SOLVED // plan.stages, max(1, _MOVED // max(plan.rows, 1)))
        at_once = -(-count // -(-count // most))  # chunks of one size
        worlds = self._kept(at_once, kind, plan, PulledWorlds if pulled else RungeKuttaWorlds if plan.stages > 1 else AdjointWorlds)
        if at_once == count:
            return worlds.differentiate(state, action, force, cotangent, wanted, fields)
        parts = []
        for start in range(0, count, at_once):
            first = min(start, count - at_once)  # the last chunk is filled up with worlds of the one before
            s = slice(first, first + at_once)
            found = worlds.differentiate(state[s], action[s], None if force is None else force[s],
                                         None if cotangent is None else cotangent[s], wanted, {n: x[s] for n, x in fields.items()})
            parts.append({name: x[start - first :] for name, x in found.items()})
        return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}

    def _kept(self, count: int, kind: tuple[frozenset[str], frozenset[str]], plan: Plan,
              made: type[AdjointWorlds] | type[RungeKuttaWorlds] | type[PulledWorlds]) -> _Worlds:
        """Return worlds of a kind, those of an earlier call where there are any."""
        key = (count, made, *kind)
        if key not in self._worlds:
            if len(self._worlds) > 4:  # batch sizes that come and go must not fill the memory
                self._worlds.clear()
            self._worlds[key] = made(self.model, count, plan, varying=kind[1], threads=self._threads)
        return self._worlds[key]


def _require(reason: str | None) -> None:
    if reason:
        raise ModelError(f"no exact gradients of a MuJoCo step: {reason}")
