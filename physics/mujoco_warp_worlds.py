"""Worlds of MuJoCo Warp: copies of one model on one device, stepped by a captured graph that torch writes into and reads from."""

# mypy sees none of what Warp does to the functions that it compiles
# mypy: disable-error-code="attr-defined, index, no-any-return, no-untyped-call, untyped-decorator"

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

import mujoco
import mujoco_warp
import numpy as np
import torch
import warp as wp
from numpy.typing import NDArray
from torch import Tensor

from residual_mbrl.errors import ModelError
from residual_mbrl.physics.mujoco_model import STATE

Array = NDArray[np.float64]

LARGE = wp.constant(float(mujoco.mjMAXVAL))
INPUT, DIVERGED = wp.constant(1 << 28), wp.constant(1 << 29)
"""Bits of a world's status beside those of ``mujoco_warp.OverflowType``."""
ROWS = int(mujoco_warp.OverflowType.NEFC | mujoco_warp.OverflowType.NJMAX_NNZ | mujoco_warp.OverflowType.NVMAX)
CONTACTS = int(mujoco_warp.OverflowType.BROADPHASE | mujoco_warp.OverflowType.NARROWPHASE | mujoco_warp.OverflowType.CCD)
OVERFLOWS = wp.constant(ROWS | CONTACTS)
"""Capacities without which a step leaves constraints out; the engine's other bits tell of less exact ones."""

MOST_CONTACTS = 8
"""Contacts of two geoms, unless one is a height field or given by a distance function."""
_RENAMED = {"opt.impratio": "opt.impratio_invsqrt"}


class Engine:
    """A model on a device, from which worlds are made; large arrays (meshes, height fields) are held once for all of them.

    Args:
        model: The compiled model.
        name: What it is called in messages.
        device: Where it is simulated.
        live: Model fields that differ between worlds, by C MuJoCo's names.
        nconmax: Contacts that a world has room for on average; None takes the engine's guess, or fewer where all geoms make fewer.
        njmax: Constraint rows that a world has room for; None takes what that many contacts and everything else can need.

    Raises:
        ModelError: if MuJoCo Warp cannot simulate the model, or holds a live field in common for all worlds.
    """

    def __init__(self, model: mujoco.MjModel, name: str, *, device: torch.device, live: Collection[str] = (),
                 nconmax: int | None = None, njmax: int | None = None) -> None:
        alike = sorted(f for f in live if _RENAMED.get(f, f) not in _PER_WORLD)
        if alike:
            raise ModelError(f"{name}: MuJoCo Warp {mujoco_warp.__version__} has one {', '.join(alike)} for all worlds; "
                             f"no parameter can stand for it")
        self.source, self.live, self.torch_device = model, frozenset(live), device
        wp.init()
        self.device = wp.device_from_torch(device)
        with wp.ScopedDevice(self.device):
            try:
                self.model = mujoco_warp.put_model(model)
                guess = mujoco_warp.make_data(model, nconmax=nconmax)
            except (NotImplementedError, ValueError) as error:
                raise ModelError(f"{name}: MuJoCo Warp {mujoco_warp.__version__} cannot simulate it: {error} "
                                 f"MujocoSimulator can") from error
        self.model.opt.warn_overflow = 0  # told by the worlds' status, not on the standard output
        rigid = not (model.nflex or model.nhfield or (model.geom_type == int(mujoco.mjtGeom.mjGEOM_SDF)).any())
        pairs = len(self.model.nxn_geom_pair_filtered)
        self.nconmax = nconmax or (max(1, min(guess.naconmax, MOST_CONTACTS * pairs)) if rigid else guess.naconmax)
        rows = _most_rows(model, self.nconmax)
        self.njmax = njmax or (rows if rigid else max(rows, guess.njmax))

    def own_model(self, count: int) -> Any:
        """Return the model with a row for each world in every live field."""
        model = copy.copy(self.model)
        model.opt = copy.copy(self.model.opt)
        for name in (_RENAMED.get(f, f) for f in self.live):
            owner, attribute = _owner(model, name)
            shared = getattr(owner, attribute)
            setattr(owner, attribute, wp.array(np.repeat(shared.numpy(), count, 0), dtype=shared.dtype))
        return model


class Worlds:
    """N worlds, their input and output buffers, and the graph that takes one to the other.

    As in C, a step depends on its input alone but for the solver's tolerance: a world that goes on from where its last step
    ended keeps the solver's warm start.

    Args:
        engine: The model on its device.
        count: N.
        substeps: Engine steps of a step.

    Attributes:
        state: Input and output, float32, shape [N, nx]; NaN for worlds that failed.
        control: Input, the engine's own array, shape [N, nu].
        force: Input, the engine's own array, shape [N, nv].
        status: What went wrong since it was last set to zero, bits, shape [N].
    """

    def __init__(self, engine: Engine, count: int, substeps: int) -> None:
        source = engine.source
        self._engine, self._substeps = engine, substeps
        self.has_time = mujoco.mj_stateSize(source, int(mujoco.mjtState.mjSTATE_HISTORY)) > 0
        with wp.ScopedDevice(engine.device):
            self.model = engine.own_model(count)
            self.data = mujoco_warp.make_data(source, nworld=count, nconmax=engine.nconmax, njmax=engine.njmax)
            safe = _first_state(source, has_time=self.has_time)
            self._safe: Any = wp.array(safe, dtype=float)
            self._state: Any = wp.array(np.tile(safe, (count, 1)), dtype=float)
            self._status: Any = wp.zeros(count, dtype=int)
            self._advance()  # loads every kernel: none can be compiled while a graph is captured
            with wp.ScopedCapture() as capture:
                self._advance()
            self._graph = capture.graph
            wp.synchronize_device()  # torch goes on in a stream of its own
        with torch.inference_mode(mode=False):  # else they could not be written to outside of it
            self.state: Tensor = wp.to_torch(self._state)
            self.status: Tensor = wp.to_torch(self._status)
            self.control: Tensor = wp.to_torch(self.data.ctrl)
            self.force: Tensor = wp.to_torch(self.data.qfrc_applied)
            self.fields: dict[str, Tensor] = {f: wp.to_torch(getattr(*_owner(self.model, _RENAMED.get(f, f)))) for f in engine.live}
            self._base = {f: x.clone() for f, x in self.fields.items()}
        self._added: frozenset[str] = frozenset()

    def launch(self) -> None:
        """Take ``state`` to the next state in place, on torch's current stream."""
        wp.capture_launch(self._graph, wp.stream_from_torch(self._engine.torch_device) if self._engine.device.is_cuda else None)

    def write(self, name: str, values: Tensor) -> None:
        """Set a live field, shape [N, ...] as C MuJoCo has it."""
        for view in (self.fields[name], self._base[name]):
            view.copy_((values.rsqrt() if name == "opt.impratio" else values).reshape(view.shape))

    def add(self, additions: Mapping[str, Tensor]) -> None:
        """Add to live fields for the next step, shape [N, ...]; the sum is clamped at zero."""
        for name in self._added - additions.keys():
            self.fields[name].copy_(self._base[name])
        for name, addition in additions.items():
            self.fields[name].copy_((self._base[name] + addition.to(self._base[name])).clamp_min(0.0))
        self._added = frozenset(additions)

    def _advance(self) -> None:
        d, count = self.data, len(self._status)
        parts = [d.qpos, d.qvel, d.act, d.history, d.plastic]
        wp.launch(_place, dim=count, inputs=[self._safe, int(self.has_time)],
                  outputs=[*parts, d.time, d.ctrl, d.qfrc_applied, d.qacc_warmstart, d.overflow, self._status, self._state])
        for _ in range(self._substeps):
            mujoco_warp.step(self.model, d)
        wp.launch(_judge, dim=count, inputs=[*parts, d.time, d.qacc, d.overflow, int(self.has_time)], outputs=[self._status, self._state])


@wp.func
def _set(row: wp.array[float], state: wp.array[float], start: int) -> bool:
    """Write one part of a state; tell whether that changed it."""
    changed = bool(False)  # noqa: UP018  # a literal is a constant to Warp
    for i in range(row.shape[0]):
        if row[i] != state[start + i]:
            changed = True
        row[i] = state[start + i]
    return changed


@wp.func
def _is_sound(row: wp.array[float]) -> bool:
    """Tell whether every entry is finite and within the engine's bound; comparisons with NaN are false."""
    sound = bool(True)  # noqa: UP018
    for i in range(row.shape[0]):
        if not (wp.abs(row[i]) < LARGE):
            sound = False
    return sound


@wp.func
def _get(row: wp.array[float], state: wp.array[float], start: int) -> int:
    """Read one part of a state; return where the next one starts."""
    for i in range(row.shape[0]):
        state[start + i] = row[i]
    return start + row.shape[0]


@wp.kernel(enable_backward=False)
def _place(
    # In:
    safe_in: wp.array[float], has_time: int,
    # Data out:
    qpos_out: wp.array2d[float], qvel_out: wp.array2d[float], act_out: wp.array2d[float], history_out: wp.array2d[float],
    plastic_out: wp.array2d[float], time_out: wp.array[float], ctrl_out: wp.array2d[float], qfrc_applied_out: wp.array2d[float],
    qacc_warmstart_out: wp.array2d[float], overflow_out: wp.array[int],
    # Out:
    status_out: wp.array[int], state_out: wp.array2d[float],
) -> None:
    """Set a world's state; one that cannot be simulated gets a safe state and no input, and its status says so."""
    world = wp.tid()
    state = state_out[world]
    if not (_is_sound(state) and _is_sound(ctrl_out[world]) and _is_sound(qfrc_applied_out[world])):
        status_out[world] = status_out[world] | INPUT
        for i in range(state.shape[0]):
            state[i] = safe_in[i]
        for i in range(ctrl_out.shape[1]):
            ctrl_out[world, i] = 0.0
        for i in range(qfrc_applied_out.shape[1]):
            qfrc_applied_out[world, i] = 0.0
    moved = _set(qpos_out[world], state, 0)
    start = qpos_out.shape[1]
    moved = _set(qvel_out[world], state, start) or moved
    start += qvel_out.shape[1]
    moved = _set(act_out[world], state, start) or moved
    start += act_out.shape[1]
    moved = _set(history_out[world], state, start) or moved
    start += history_out.shape[1]
    moved = _set(plastic_out[world], state, start) or moved
    time_out[world] = 0.0
    if has_time == 1:
        time_out[world] = state[state.shape[0] - 1]
    if moved:
        for i in range(qacc_warmstart_out.shape[1]):
            qacc_warmstart_out[world, i] = 0.0
    overflow_out[world] = 0


@wp.kernel(enable_backward=False)
def _judge(
    # Data in:
    qpos_in: wp.array2d[float], qvel_in: wp.array2d[float], act_in: wp.array2d[float], history_in: wp.array2d[float],
    plastic_in: wp.array2d[float], time_in: wp.array[float], qacc_in: wp.array2d[float], overflow_in: wp.array[int],
    # In:
    has_time: int,
    # Out:
    status_out: wp.array[int], state_out: wp.array2d[float],
) -> None:
    """Read a world's state; NaN if it failed."""
    world = wp.tid()
    state = state_out[world]
    start = _get(qpos_in[world], state, 0)
    start = _get(qvel_in[world], state, start)
    start = _get(act_in[world], state, start)
    start = _get(history_in[world], state, start)
    start = _get(plastic_in[world], state, start)
    if has_time == 1:
        state[start] = time_in[world]
    status = status_out[world] | (overflow_in[world] & OVERFLOWS)
    if not (_is_sound(state) and _is_sound(qacc_in[world])):
        status = status | DIVERGED
    status_out[world] = status
    if status != 0:
        for i in range(state.shape[0]):
            state[i] = wp.nan


def _owner(model: Any, name: str) -> tuple[Any, str]:
    """Return what holds a field, and the field's name there."""
    return (model.opt, name[4:]) if name.startswith("opt.") else (model, name)


def _first_state(model: mujoco.MjModel, *, has_time: bool) -> Array:
    data = mujoco.MjData(model)
    state = np.empty(mujoco.mj_stateSize(model, STATE))
    mujoco.mj_getState(model, data, state, STATE)
    return np.append(state, data.time) if has_time else state


def _most_rows(model: mujoco.MjModel, contacts: int) -> int:
    """Return a bound on a world's constraint rows with this many contacts."""
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    size = max([1, *model.geom_condim, *model.pair_dim, *model.flex_condim])
    pyramid = model.opt.cone == int(mujoco.mjtCone.mjCONE_PYRAMIDAL)
    each = 2 * (size - 1) if pyramid and size > 1 else size
    return int(data.ne + model.nv + 3 * model.ntendon + 2 * model.jnt_limited.sum() + contacts * each)


def _per_world() -> frozenset[str]:
    """Return the fields that MuJoCo Warp can hold for each world."""
    found = [(prefix, f) for prefix, owner in (("", mujoco_warp.Model), ("opt.", mujoco_warp.Option)) for f in fields(owner)]
    return frozenset(prefix + f.name for prefix, f in found if (getattr(f.type, "shape", None) or ("",))[0] == "*")


_PER_WORLD = _per_world()
