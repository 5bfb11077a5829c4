"""Many simulations of one MuJoCo model in native threads, as a function of state, input and parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

import mujoco
import numpy as np
from mujoco.batch import Batch, SimulationError
from numpy.typing import NDArray

from residual_mbrl.physics.mujoco_adjoint import expanded_fields
from residual_mbrl.physics.mujoco_model import STATE
from residual_mbrl.physics.mujoco_parameters import CONSTANTS, Group
from residual_mbrl.physics.mujoco_warnings import QUIET

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

_BAD = [int(w) for w in (mujoco.mjtWarning.mjWARN_BADQPOS, mujoco.mjtWarning.mjWARN_BADQVEL, mujoco.mjtWarning.mjWARN_BADQACC,
                         mujoco.mjtWarning.mjWARN_BADCTRL)]
"""Warnings after which the engine goes on from its reset state: the result is worth nothing."""
_FRICTION = [int(mujoco.mjtConstraint.mjCNSTR_FRICTION_DOF), int(mujoco.mjtConstraint.mjCNSTR_FRICTION_TENDON)]
_LARGE = float(mujoco.mjMAXVAL)


class Worlds:
    """N simulations of one model.

    The result of a step depends on its arguments alone, but for the solver's tolerance: a world that goes on from where its
    last step ended keeps the solver's warm start, any other starts the solver afresh.

    Args:
        model: The compiled model.
        count: N.
        threads: Native threads; 0 takes every core.
        groups: Parameters that ``write`` will set.

    Attributes:
        added: Model fields that hold additions now.
        failed: Worlds whose last step or rollout had no finite result; their states are NaN, shape [N].
    """

    def __init__(self, model: mujoco.MjModel, count: int, *, threads: int = 0, groups: Sequence[Group] = ()) -> None:
        self.batch = Batch(model, count, nthread=threads)
        self.groups = groups
        self.nq, self.nv = int(model.nq), int(model.nv)
        self.size = mujoco.mj_stateSize(model, STATE)
        self.has_time = mujoco.mj_stateSize(model, int(mujoco.mjtState.mjSTATE_HISTORY)) > 0
        names = ("qpos", "qvel", "act", "history", "plastic")
        views = [self.batch.bind(n) for n in names]
        self._parts = [v.reshape(count, -1) for v in views if v.size]
        self._time, self._control = self.batch.bind("time"), self.batch.bind("ctrl")
        self._force, self._warm = self.batch.bind("qfrc_applied"), self.batch.bind("qacc_warmstart")
        self._safe = np.concatenate([*(p[0] for p in self._parts), self._time[:1] if self.has_time else []])
        self._last: Array | None = None
        self._written: dict[str, Array] = {}
        self._fields: dict[str, Array] = {}
        self._differing: Mapping[str, Array] | None = None
        self._base: dict[str, Array] = {}
        self.added: tuple[str, ...] = ()
        self._applied = False
        self._warnings = self.batch.warning[..., 1].copy()
        self.failed = np.zeros(count, bool)

    def write(self, values: Mapping[str, Array], additions: Mapping[str, Array]) -> None:
        """Set what holds from the next step on; nothing is done for parameters that have not changed.

        Args:
            values: Of every parameter of ``groups``, by name, each shape [N].
            additions: To model fields, by field, each of its shape; the sum is clamped at zero.
        """
        for name in self.added:
            self._fields[name][...] = self._base[name]
        derived = False
        for group in self.groups:
            columns = np.stack([values[p.name] for p in group.parameters], -1)
            written = self._written.get(group.parameters[0].name)
            if written is None or not np.array_equal(written, columns):
                group.write({f: self.field(f) for f in group.fields}, columns)
                self._written[group.parameters[0].name] = columns
                derived = derived or not CONSTANTS.isdisjoint(group.fields)
        for name, addition in additions.items():
            field = self.field(name)
            self._base[name] = field.copy()
            np.maximum(field + addition, 0.0, out=field)
        self.added = tuple(additions)
        if derived:
            self._differing = None
            with QUIET:
                self.batch.set_const()

    def field(self, name: str) -> Array:
        """Return the values of a model field for every world, shape [N, ...]; written to, they hold from the next step on."""
        if name not in self._fields:
            self._differing = None
            self._fields[name] = self.batch.expand(name)
        return self._fields[name]

    def fields(self) -> Mapping[str, Array]:
        """Return every model field that has values of its own in each world, live, shape [N, ...]."""
        if self._differing is None:
            self._differing = expanded_fields(self.batch) if self._fields else {}
        return self._differing

    def step(self, state: Array, action: Array, force: Array | None, substeps: int) -> Array:
        """Advance every world by some steps of the engine.

        Args:
            state: Shape [N, nx].
            action: Shape [N, nu].
            force: Added to ``qfrc_applied``, shape [N, nv].
            substeps: Engine steps.

        Returns:
            States, shape [N, nx], in a new array; NaN where the engine gave up.
        """
        bad = self._place(state)
        self._control[...] = action
        self._apply(force)
        with QUIET, suppress(SimulationError):  # status tells which
            self.batch.step(nstep=substeps)
        after = self._read()
        self._last = after.copy()  # the caller may write into what it receives
        self._judge(bad)
        if self.failed.any():
            after[self.failed] = np.nan
        return after

    def rollout(self, state: Array, actions: Array, substeps: int) -> Array:
        """Advance every world with actions [N, H, nu], each held for some steps; return states [N, H + 1, nx], the first included."""
        bad = self._place(state)
        self._apply(None)
        first = self.batch.state.copy()
        held = actions if substeps == 1 else actions.repeat(substeps, 1)
        specs = [STATE, *([int(mujoco.mjtState.mjSTATE_TIME)] if self.has_time else [])]
        with QUIET, suppress(SimulationError):
            found = self.batch.rollout(held.shape[1], held if held.shape[-1] else None, record=specs)
        states = np.empty((len(state), actions.shape[1] + 1, state.shape[-1]))
        states[:, 0] = state
        states[:, 1:, : self.size] = found[STATE][:, substeps - 1 :: substeps]
        if self.has_time:
            states[:, 1:, -1:] = found[specs[1]][:, substeps - 1 :: substeps]
        stopped = (self.batch.warning[..., 1] != self._warnings).any(1) | (self.batch.status != 0)
        if stopped.any():  # the engine's rollout ends at a world's first warning, whatever it is about
            self._warnings = self.batch.warning[..., 1].copy()
            self.batch.state[stopped] = first[stopped]
            self._repeat(states, actions, substeps, np.flatnonzero(stopped))
        self.failed[...] = np.isnan(states[:, -1]).any(1)
        if bad is not None:
            self.failed |= bad
            states[bad, 1:] = np.nan
        self._last = states[:, -1].copy()
        return states

    def forward(self, state: Array, stage: int = int(mujoco.mjtStage.mjSTAGE_ACC)) -> Mask:
        """Compute the quantities of a state without stepping; bound fields then hold them. Return where they mean nothing."""
        bad = self._place(state)
        with QUIET, suppress(SimulationError):
            self.batch.forward(stage=stage)
        return self._judge(bad)

    def dissipation(self, state: Array, action: Array) -> Array:
        """Return the power of damping and of dry friction [W], shape [N]; see ``MujocoSimulator.dissipation_power``."""
        bad = self._place(state)
        self._control[...] = action
        self._apply(None)
        power = np.empty(len(state))
        model, data = self.batch.get_model(0), self.batch.get_data(0)
        with QUIET:
            for i in range(len(state)):
                if self._fields:
                    self.batch.get_model(i, model)
                self.batch.get_data(i, data)
                mujoco.mj_forward(model, data)
                rows = np.isin(data.efc_type, _FRICTION)
                ahead = (_rows_times(model, data, data.qacc) - data.efc_aref)[rows] / data.efc_KBIP[rows, 1]
                power[i] = data.qfrc_damper @ data.qvel + data.efc_force[rows] @ ahead
        self.failed[...] = False if bad is None else bad
        power[self.failed] = np.nan
        return power

    def _read(self) -> Array:
        """Return the present states, shape [N, nx], in a new array."""
        return np.concatenate([*self._parts, *([self._time[:, None]] if self.has_time else [])], 1)

    def _repeat(self, states: Array, actions: Array, substeps: int, worlds: NDArray[np.intp]) -> None:
        """Make a rollout of some worlds again, step by step, up to where each fails; write it into ``states``."""
        for t in range(actions.shape[1]):
            self._control[worlds] = actions[worlds, t]
            with QUIET, suppress(SimulationError):
                self.batch.step(worlds, nstep=substeps)
            states[worlds, t + 1] = self._read()[worlds]
            fails = self._judge(None)[worlds]
            states[worlds[fails], t + 1 :] = np.nan
            worlds = worlds[~fails]

    def _place(self, state: Array) -> Mask | None:
        """Set the states; return which cannot be simulated, None where all can. ``_last`` is unknown until a step has been made."""
        last, self._last = self._last, None
        if last is not None and np.array_equal(state, last):
            return None
        bad: Mask | None = None
        sound = (np.abs(state) < _LARGE).all(1)  # false for what is not finite too
        if not sound.all():
            bad = np.logical_not(sound)
            state = np.where(bad[:, None], self._safe, state)
        moved = slice(None) if last is None else (state != last).any(1)
        start = 0
        for part in self._parts:
            part[...] = state[:, start : start + part.shape[1]]
            start += part.shape[1]
        self._time[...] = state[:, -1] if self.has_time else 0.0
        self._warm[moved] = 0.0
        return bad

    def _apply(self, force: Array | None) -> None:
        if force is not None:
            self._force[...] = force
        elif self._applied:
            self._force[...] = 0.0
        self._applied = force is not None

    def _judge(self, bad: Mask | None) -> Mask:
        """Find the worlds that failed in the last call: those that were ``bad`` before it, and those that the engine gave up."""
        self.failed[...] = False if bad is None else bad
        warnings = self.batch.warning[..., 1]
        if not np.array_equal(warnings, self._warnings):
            self.failed |= (warnings != self._warnings)[:, _BAD].any(1)
            self._warnings = warnings.copy()
        status = self.batch.status
        if status.any():
            self.failed |= status != 0
        return self.failed


def _rows_times(model: mujoco.MjModel, data: mujoco.MjData, velocity: Array) -> Array:
    """Return the constraint Jacobian times a velocity or acceleration, shape [nefc]."""
    product = np.zeros(data.nefc)
    mujoco.mj_mulJacVec(model, data, product, velocity)
    return product
