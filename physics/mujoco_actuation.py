"""How the actuators of MuJoCo worlds answer to controls and activations, where gain and filter are simple."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, Protocol

import mujoco
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_DYN, _GAIN, _BIAS, _TRN = mujoco.mjtDyn, mujoco.mjtGain, mujoco.mjtBias, mujoco.mjtTrn
_NONE, _INTEGRATOR, _FILTER, _EXACT = (int(d) for d in (_DYN.mjDYN_NONE, _DYN.mjDYN_INTEGRATOR, _DYN.mjDYN_FILTER, _DYN.mjDYN_FILTEREXACT))
_MUSCLE, _AFFINE = int(_DYN.mjDYN_MUSCLE), int(_GAIN.mjGAIN_AFFINE)
_FIELDS = ("actuator_gainprm", "actuator_dynprm", "actuator_ctrlrange", "actuator_forcerange", "actuator_actrange", "jnt_actfrcrange")


def is_simple(model: mujoco.MjModel) -> bool:
    """Whether every actuator has one control, one output, a fixed or affine gain, an affine bias and at most a linear filter."""
    return bool(np.isin(model.actuator_dyntype, (_NONE, _INTEGRATOR, _FILTER, _EXACT)).all()
                and np.isin(model.actuator_gaintype, (int(_GAIN.mjGAIN_FIXED), _AFFINE)).all()
                and np.isin(model.actuator_biastype, (int(_BIAS.mjBIAS_NONE), int(_BIAS.mjBIAS_AFFINE))).all()
                and (model.actuator_ctrlnum == 1).all() and (model.actuator_outnum == 1).all()
                and (model.actuator_actnum == (model.actuator_dyntype != _NONE)).all()
                and not model.tendon_actfrclimited.any() and not model.actuator_delay.any())


def pushes_alike(model: mujoco.MjModel, fields: Collection[str]) -> bool:
    """Whether actuators have the same force wherever the model is: motors at joints of one degree of freedom.

    Args:
        model: The model.
        fields: Names of the model fields that vary between worlds.
    """
    if not (model.actuator_trntype == int(_TRN.mjTRN_JOINT)).all():
        return False
    scalar = (int(mujoco.mjtJoint.mjJNT_HINGE), int(mujoco.mjtJoint.mjJNT_SLIDE))
    return bool(np.isin(model.jnt_type[model.actuator_trnid[:, 0]], scalar).all()
                and (model.actuator_gaintype == int(_GAIN.mjGAIN_FIXED)).all() and (model.actuator_biastype == int(_BIAS.mjBIAS_NONE)).all()
                and (model.actuator_ctrlnum == 1).all() and (model.actuator_outnum == 1).all()
                and not model.jnt_actgravcomp.any() and "jnt_actgravcomp" not in fields)


def has_plain_memory(model: mujoco.MjModel) -> bool:
    """Whether every activation is integrated by Euler's rule or, of an exact filter, by that of its exponential."""
    return bool(np.isin(model.actuator_dyntype, (_NONE, _INTEGRATOR, _FILTER, _EXACT, _MUSCLE)).all())


def memory_slopes(model: mujoco.MjModel, activation: Array, rate: Array, fields: Mapping[str, Array]) -> tuple[Array, Array]:
    """Return the derivatives of the next activation by the last one and by its rate, where activations ``has_plain_memory``.

    Args:
        model: The model.
        activation: Shape [n, na].
        rate: Shape [n, na].
        fields: Model fields that vary between worlds, shape [n, ...].
    """
    h, stateful = float(model.opt.timestep), np.flatnonzero(model.actuator_actadr >= 0)
    at = model.actuator_actadr[stateful]
    tau = np.maximum(fields.get("actuator_dynprm", model.actuator_dynprm)[..., stateful, 0], mujoco.mjMINVAL)
    duration, inside = np.full(activation.shape, h), np.ones_like(activation)
    duration[:, at] = np.where(model.actuator_dyntype[stateful] == _EXACT, -tau * np.expm1(-h / tau), h)
    after = (activation + duration * rate)[:, at]
    limits = fields.get("actuator_actrange", model.actuator_actrange)[..., stateful, :]
    inside[:, at] = _inside(after, limits, model.actuator_actlimited[stateful].astype(bool))
    return inside, inside * duration


class Bound(Protocol):
    """Worlds with results."""

    def bind(self, name: str) -> NDArray[Any]:
        """Return the live array of a data field, shape [n, ...]."""


class ActuatorSlopes(NamedTuple):
    """Derivatives of joint forces and next activations, for n worlds; entry i of a row belongs to actuator i."""

    moment: Array
    """d joint force / d actuator force, joint limits of it included, shape [n or 1, nu, nv]."""
    force_control: Array
    """d actuator force / d control, shape [n, nu]."""
    force_memory: Array
    """d actuator force / d activation, shape [n, nu]."""
    memory_control: Array
    """d next activation / d control, shape [n, nu]."""
    memory: Array
    """d next activation / d activation, shape [n, nu]."""


class SimpleActuators:
    """Derivatives of the actuators of a model that ``is_simple``.

    Args:
        model: The model.
        batch: Its worlds.
        varying: Names of the model fields that vary between worlds.
        copies: Worlds in a row that share their model fields.
    """

    def __init__(self, model: mujoco.MjModel, batch: Bound, varying: frozenset[str], copies: int = 1) -> None:
        self._copies = copies
        flags, disable = int(model.opt.disableflags), mujoco.mjtDisableBit
        self.h, self.na, self.nv = float(model.opt.timestep), int(model.na), int(model.nv)
        self._fields = {name: getattr(model, name).copy() for name in _FIELDS}
        self._affine = (model.actuator_gaintype == _AFFINE).astype(float)
        self._kind, self._early = model.actuator_dyntype.copy(), model.actuator_actearly.astype(bool)
        self._stateful, self._address = model.actuator_actadr >= 0, np.maximum(model.actuator_actadr, 0)
        self._frozen = bool(flags & int(disable.mjDSBL_ACTUATION))
        group = model.actuator_group
        idle = (group >= 0) & (group < 31) & ((int(model.opt.disableactuator) >> np.clip(group, 0, 30)) & 1 == 1)
        self._on = np.where(idle | self._frozen, 0.0, 1.0)
        clamped = model.actuator_ctrllimited.astype(bool)
        self._clamped = np.zeros_like(clamped) if flags & int(disable.mjDSBL_CLAMPCTRL) else clamped
        self._force_limited, self._memory_limited = model.actuator_forcelimited.astype(bool), model.actuator_actlimited.astype(bool)
        scalar = np.isin(model.jnt_type, (int(mujoco.mjtJoint.mjJNT_HINGE), int(mujoco.mjtJoint.mjJNT_SLIDE)))
        self._held = np.flatnonzero(scalar & model.jnt_actfrclimited.astype(bool))
        self._held_dofs = model.jnt_dofadr[self._held]
        joint = np.isin(model.actuator_trntype, (int(_TRN.mjTRN_JOINT), int(_TRN.mjTRN_JOINTINPARENT)))
        self._gears: Array | None = None
        if joint.all() and scalar[model.actuator_trnid[:, 0]].all() and "actuator_gear" not in varying:
            self._gears = np.zeros((1, int(model.nu), self.nv))  # such an actuator's only moment arm is its gear
            self._gears[0, np.arange(int(model.nu)), model.jnt_dofadr[model.actuator_trnid[:, 0]]] = model.actuator_gear[:, 0]
        names = ["actuator_length", "actuator_velocity"] if self._affine.any() else []
        names += ["actuator_force"] if self._force_limited.any() else []
        names += ["qfrc_actuator"] if len(self._held) else []
        names += ["actuator_moment", "moment_colind", "moment_rowadr", "moment_rownnz"] if self._gears is None else []
        self._bound = {name: batch.bind(name) for name in names}
        self._constant = not (names or self._clamped.any() or self.na or varying.intersection(_FIELDS))
        self._slopes: ActuatorSlopes | None = None

    def slopes(self, control: Array, activation: Array, fields: Mapping[str, Array]) -> ActuatorSlopes:
        """Return the derivatives at the batch's last step.

        Args:
            control: Shape [n, nu].
            activation: Before the step, shape [n, na].
            fields: Model fields that vary between worlds, shape [n / copies, ...].
        """
        if self._constant and self._slopes is not None:
            return self._slopes
        field = self._fields
        if fields:
            field = {name: np.repeat(fields[name], self._copies, 0) if name in fields else x for name, x in field.items()}
        bound, parameter = self._bound, field["actuator_gainprm"]
        gain = parameter[..., 0] * self._on
        if self._affine.any():
            gain = gain + self._on * self._affine * (parameter[..., 1] * bound["actuator_length"]
                                                     + parameter[..., 2] * bound["actuator_velocity"])
        if self._force_limited.any():
            gain = gain * _inside(bound["actuator_force"], field["actuator_forcerange"], self._force_limited)
        free = _inside(control, field["actuator_ctrlrange"], self._clamped)
        moment = self._moment(field["jnt_actfrcrange"])
        if not self.na:
            none = np.zeros_like(free)
            self._slopes = ActuatorSlopes(moment, gain * free, none, none, none)
            return self._slopes
        rate, decay = self._filter(field["actuator_dynprm"][..., 0])
        limits = field["actuator_ctrlrange"]
        bounded = np.where(self._clamped, np.clip(control, limits[..., 0], limits[..., 1]), control)
        before = activation[:, self._address]
        inside = _inside(before + rate * bounded - decay * before, field["actuator_actrange"], self._memory_limited) * self._stateful
        memory_control, memory = rate * free * inside, (1 - decay) * inside
        force_memory = gain * np.where(self._early, memory, self._stateful)
        force_control = gain * np.where(self._stateful, np.where(self._early, memory_control, 0.0), free)
        if self._frozen:
            memory_control, memory = np.zeros_like(memory), np.ones_like(memory)
        return ActuatorSlopes(moment, force_control, force_memory, memory_control, memory)

    def _filter(self, tau: Array) -> tuple[Array, Array]:
        """Return r, d of the next activation ``act + r ctrl - d act``."""
        ratio = self.h / np.maximum(tau, mujoco.mjMINVAL)
        decay = np.where(self._kind == _EXACT, -np.expm1(-ratio), np.where(self._kind == _FILTER, ratio, 0.0)) * self._on
        return np.where(self._kind == _INTEGRATOR, self.h * self._on, decay), decay

    def _moment(self, limits: Array) -> Array:
        """Return moment arms without those that a joint's limit on its actuators' force takes away, shape [n or 1, nu, nv]."""
        moment = self._arms() if self._gears is None else self._gears
        if not len(self._held):
            return moment
        force = self._bound["qfrc_actuator"]
        through = np.ones((len(force), 1, self.nv))
        through[:, 0, self._held_dofs] = _inside(force[:, self._held_dofs], limits[..., self._held, :], np.ones(len(self._held), bool))
        return moment * through

    def _arms(self) -> Array:
        """Return the engine's moment arms, dense, shape [n, nu, nv]."""
        values, first, count, column = (self._bound[n] for n in ("actuator_moment", "moment_rowadr", "moment_rownnz", "moment_colind"))
        moment = np.zeros((*first.shape, self.nv))
        for j in range(int(count.max(initial=0))):  # as many passes as an actuator has moment arms
            world, row = np.nonzero(count > j)
            at = first[world, row] + j
            moment[world, row, column[world, at]] = values[world, at]
        return moment


def _inside(x: Array, limits: Array, limited: NDArray[np.bool_]) -> Array:
    """Return 1 where a clamp lets x through, 0 where it does not."""
    if not limited.any():
        return np.ones_like(x)
    return np.where(limited, (x > limits[..., 0]) & (x < limits[..., 1]), 1.0)
