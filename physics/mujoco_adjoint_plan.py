"""What of a MuJoCo step's derivative is exact for a model, what is left to differences with the acceleration held, and what to nothing."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import mujoco
import numpy as np
from numpy.typing import NDArray

from residual_mbrl.physics.mujoco_actuation import has_plain_memory, is_simple, pushes_alike
from residual_mbrl.physics.mujoco_adjoint_text import FIELDS

CONTACT_FIELDS = frozenset(FIELDS)
"""Model fields of contacts by which steps may be differentiated: friction, solref, solimp and margin of geoms and explicit pairs."""
_INTEGRATOR, _ENABLE, _DISABLE = mujoco.mjtIntegrator, mujoco.mjtEnableBit, mujoco.mjtDisableBit
_EULER, _FAST, _IMPLICIT, _RK4 = (int(i) for i in (_INTEGRATOR.mjINT_EULER, _INTEGRATOR.mjINT_IMPLICITFAST, _INTEGRATOR.mjINT_IMPLICIT,
                                                   _INTEGRATOR.mjINT_RK4))
_FLAGS = {_ENABLE.mjENBL_SLEEP: "sleeping bodies: they wake by thresholds",
          _ENABLE.mjENBL_IPC: "the ipc flag: its contacts have another law",
          _ENABLE.mjENBL_SPECULATIVE: "speculative contacts: they depend on velocity"}
_FIXED = frozenset({"opt.timestep", "opt.integrator", "opt.disableflags", "opt.enableflags", "opt.noslip_iterations"})
_BENT = ("dof_dampingpoly", "tendon_dampingpoly", "actuator_dampingpoly", "actuator_damping")


def supported(model: mujoco.MjModel, fields: Collection[str] = ()) -> str | None:
    """Return what stands against exact gradients of a model's step, None if nothing does.

    Args:
        model: The model.
        fields: Names of the model fields that vary between worlds.
    """
    option, integrator = model.opt, int(model.opt.integrator)
    history = mujoco.mj_stateSize(model, int(mujoco.mjtState.mjSTATE_PHYSICS)) != model.nq + model.nv + model.na
    varying = sorted(_FIXED.intersection(fields))
    reasons = {
        f"integrator {_INTEGRATOR(integrator).name[6:]}: its step is not made of accelerations":
            integrator not in (_EULER, _FAST, _IMPLICIT, _RK4),
        "RK4 with actuators that integrate their activation by a law of their own": integrator == _RK4 and not has_plain_memory(model),
        **{reason: int(option.enableflags) & int(flag) for flag, reason in _FLAGS.items()},
        "noslip iterations: their result is no minimum": option.noslip_iterations,
        "plug-ins: what they depend on is not known": model.nplugin,
        "flexible bodies: their elasticity has an inertia of its own": model.nflex,
        "delays, histories or plastic tendons: the state holds more than positions, velocities and activations": history,
        f"options that vary between worlds: {varying}": varying,
    }
    return next((reason for reason, stands in reasons.items() if stands), None)


def contact_fields(model: mujoco.MjModel) -> frozenset[str]:
    """Return the model fields of contacts by which the steps of a model that is ``supported`` have exact gradients."""
    flags = int(model.opt.enableflags)
    return frozenset() if flags & (int(_ENABLE.mjENBL_OVERRIDE) | int(_ENABLE.mjENBL_DIAGEXACT)) else CONTACT_FIELDS


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How the derivative of a step is put together.

    Args:
        groups: What is moved for differences, of "position", "velocity", "activation", "action".
        rows: Steps with the acceleration held that one world takes at most.
        stages: Accelerations that a step is made of.
        implicit: Whether the integrator inverts an inertia of its own, rather than integrating the solved acceleration.
        damped: Whether that is the inertia plus h times the joints' damping.
        factored: Whether it has to be read off the engine's factor of it.
        stepped: Whether worlds that are moved are integrated too: the inertia that the integrator inverts moves as well, or activations do.
        passive: Whether moves leave the actuators' forces as they are.
        exact_velocity: Whether velocities are not moved.
        exact_action: Whether controls and activations are not moved.
        driven: Whether the integrator's inertia is M plus a diagonal that joints' damping and drives make up.
        lone: Velocity entries of free bodies without jointed descendants where the integrator treats their gyroscopic force implicitly.
    """

    groups: tuple[str, ...]
    rows: int
    stages: int
    implicit: bool
    damped: bool
    factored: bool
    stepped: bool
    passive: bool
    exact_velocity: bool
    exact_action: bool
    driven: bool
    lone: tuple[NDArray[np.int64], ...]


def make_plan(model: mujoco.MjModel, wanted: Collection[str], fields: Collection[str]) -> Plan:
    """Decide how to differentiate.

    Args:
        model: A model that is ``supported``.
        wanted: Of "state", "action", "force".
        fields: Names of the model fields that vary between worlds.
    """
    integrator = int(model.opt.integrator)
    off = int(model.opt.disableflags) & (int(_DISABLE.mjDSBL_EULERDAMP) | int(_DISABLE.mjDSBL_DAMPER))
    bent = any(getattr(model, name).any() or name in fields for name in _BENT)
    damps = not off and (bent or bool(model.dof_damping.any()) or "dof_damping" in fields)
    lone = _lone_bodies(model) if integrator == _FAST else ()
    gain_bends = bool(model.nu and model.actuator_gainprm[:, 2].any()) or "actuator_gainprm" in fields
    simple = is_simple(model)
    runge_kutta, na = integrator == _RK4, int(model.na)
    exact_action = simple and (integrator == _EULER or not gain_bends) if not runge_kutta else simple and not na
    exact_velocity = (simple and integrator != _IMPLICIT and not lone and _smooth_slope_is_whole(model, fields)
                      and _references_are_linear(model))
    by_state = runge_kutta or "state" in wanted  # what a stage depends on moves the next one's state
    sizes = {"position": int(model.nv) if by_state else 0,
             "velocity": int(model.nv) if by_state and not exact_velocity else 0,
             "activation": na if by_state and not exact_action else 0,
             "action": int(model.nu) if "action" in wanted and not exact_action else 0}
    implicit = integrator in (_FAST, _IMPLICIT) or (integrator == _EULER and damps)
    damped = integrator == _EULER and damps and not bent
    factored = integrator == _FAST or (integrator == _EULER and damps and bent)
    stages = 4 if runge_kutta else 1
    return Plan(groups=tuple(g for g, size in sizes.items() if size), rows=stages * (2 * sum(sizes.values()) + factored), stages=stages,
                implicit=implicit, damped=damped, factored=factored,
                stepped=not runge_kutta and ((implicit and not damped) or (na > 0 and not exact_action)),
                passive=not na and pushes_alike(model, fields) and not (sizes["velocity"] or sizes["action"]),
                exact_velocity=exact_velocity, exact_action=exact_action,
                driven=integrator == _FAST and not off and not lone and exact_action and _is_driven_at_joints(model, fields), lone=lone)


def _is_driven_at_joints(model: mujoco.MjModel, fields: Collection[str]) -> bool:
    """Whether velocity acts on forces, but for inertia's own, joint by joint and linearly."""
    passive = int(model.opt.disableflags) & (int(_DISABLE.mjDSBL_ACTUATION) | int(_DISABLE.mjDSBL_CLAMPCTRL))
    scalar = (int(mujoco.mjtJoint.mjJNT_HINGE), int(mujoco.mjtJoint.mjJNT_SLIDE))
    return (not passive and _smooth_slope_is_whole(model, fields) and not model.jnt_actfrclimited.any()
            and bool(np.isin(model.jnt_type[model.actuator_trnid[:, 0]], scalar).all()) and int(model.opt.disableactuator) == 0)


def _smooth_slope_is_whole(model: mujoco.MjModel, fields: Collection[str]) -> bool:
    """Whether the engine's derivative of smooth forces by velocity has no gaps, and depends on velocity itself no more than they say.

    Its gaps are moment arms across branches of the tree; drag and higher orders of damping make the integrator's inertia depend on it.
    """
    names = ("tendon_damping", "tendon_armature", "opt.density", "opt.viscosity", *_BENT)
    drag = np.array([model.opt.density, model.opt.viscosity])
    values = (model.tendon_damping, model.tendon_armature, drag, *(getattr(model, n) for n in _BENT))
    joints = (int(mujoco.mjtTrn.mjTRN_JOINT), int(mujoco.mjtTrn.mjTRN_JOINTINPARENT))
    return (not any(x.any() for x in values) and set(names).isdisjoint(fields) and bool(np.isin(model.actuator_trntype, joints).all()))


def _references_are_linear(model: mujoco.MjModel) -> bool:
    """Whether every constraint's reference acceleration is linear in velocity: that of a connect or weld is quadratic."""
    kinds = (int(mujoco.mjtEq.mjEQ_JOINT), int(mujoco.mjtEq.mjEQ_TENDON))
    return bool(np.isin(model.eq_type, kinds).all())


def _lone_bodies(model: mujoco.MjModel) -> tuple[NDArray[np.int64], ...]:
    free = model.jnt_type == int(mujoco.mjtJoint.mjJNT_FREE)
    return tuple(np.arange(a, a + 6) for a in model.jnt_dofadr[free].tolist() if (model.dof_treeid == model.dof_treeid[a]).sum() == 6)
