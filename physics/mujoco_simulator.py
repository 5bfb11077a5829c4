"""Any MuJoCo model as a baseline: batched in native threads, parameters live for each world, gradients for everything."""

from __future__ import annotations

import copy
import logging
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import mujoco
import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from residual_mbrl.baselines import Baseline, Parameters, Port, StepJacobian, Values
from residual_mbrl.contacts import Contacts
from residual_mbrl.errors import ModelError
from residual_mbrl.physics.contact import ContactProbe
from residual_mbrl.physics.gradient_smoothing import SmoothedAdjoint, Smoothing
from residual_mbrl.physics.mujoco_adjoint import StepAdjoint, contact_fields, supported
from residual_mbrl.physics.mujoco_contacts import name_contacts
from residual_mbrl.physics.mujoco_engine import Worlds
from residual_mbrl.physics.mujoco_fields import read_field, write_field
from residual_mbrl.physics.mujoco_model import Source, element_name, joint_ranges, load_model, state_space
from residual_mbrl.physics.mujoco_parameters import Group, choose
from residual_mbrl.physics.numeric_step import (
    Gradients,
    Inputs,
    difference_jacobian,
    pull_back_by_differences,
    to_inputs,
    torch_jacobian,
    torch_step,
)

Array = NDArray[np.float64]
log = logging.getLogger(__name__)

ADDITIONS = {"frictionloss": "dof_frictionloss", "dof_damping": "dof_damping"}
"""Live parameters that a residual adds to, and the model field of each, one entry a degree of freedom."""
_HISTORY_FLAGS = int(mujoco.mjtEnableBit.mjENBL_SLEEP) | int(mujoco.mjtEnableBit.mjENBL_IPC)
EXACT = frozenset({"state", "action", "force"})
"""Inputs with exact gradients."""
KEPT = 4
"""Batch sizes whose simulations are kept for the next call."""


class MujocoSimulator(Baseline):
    """``x' = mj_step(x, u, qfrc_applied)`` of any model, unchanged: x = [qpos, qvel, act, delay buffers].

    Force port: ``qfrc_applied``. Parameters port: the named fields that were asked for (names as in ``mujoco_parameters``),
    and the additions ``frictionloss`` and ``dof_damping`` [*batch, nv] to the joints' own, the total clamped at zero; the
    engine's solver then keeps its own laws. Worlds whose acceleration or state the engine rejects become NaN and the
    batch goes on; ``failed`` tells which.

    Args:
        model: Path of an MJCF, URDF or MJB file, XML text, an ``MjSpec``, an ``MjModel``, or ``describe()["model"]``.
        parameters: Names or glob patterns of what shall be a parameter; or ``Parameters`` with bounds of your own.
        dt: Seconds per step, a multiple of the model's time step, which is taken where None.
        threads: Native threads; 0 takes every core.
        smoothing: How to smooth gradients next to switches of contacts; None takes those of the state itself everywhere.

    Attributes:
        failed: Worlds of the last step or rollout that the engine gave up, shape [N].
        most_missed: Largest number of contacts of a world that ``contacts`` has had to leave out so far.
        inexact: Why gradients by state, action and force are centred differences; None where they are exact.

    Raises:
        ModelError: if the model does not compile, or a name fits nothing in it.
        ValueError: if dt is no multiple of the model's time step.
    """

    ports = frozenset(Port)
    has_contacts = True

    def __init__(self, model: Source, parameters: Sequence[str] | Parameters = (), *, dt: float | None = None, threads: int = 0,
                 smoothing: Smoothing | None = None) -> None:
        file = load_model(model)
        self.parameters, self._groups = choose(file.model, parameters)
        self.file = file.with_free_inertias([b for g in self._groups for b in g.bodies])
        self.model = _with_free_places(self.file.model, [i for g in self._groups for i in g.geoms])
        if int(self.model.opt.enableflags) & _HISTORY_FLAGS:
            raise ModelError(f"{self.file.name}: sleep and IPC keep more than the state from step to step: disable them with <flag>")
        own = float(self.model.opt.timestep)
        self.substeps = 1 if dt is None else round(dt / own)
        if self.substeps < 1 or (dt is not None and abs(self.substeps * own / dt - 1) > 1e-6):
            raise ValueError(f"MujocoSimulator: dt must be a multiple of the model's time step of {own:g} s, received {dt}")
        self.dt, self._threads = self.substeps * own, threads
        self.space = state_space(self.model)
        self._sizes = (self.space.nx, self.space.nu, self.space.nv)
        self.live = frozenset({*self.parameters.names, *ADDITIONS})
        self.inexact = supported(self.model)
        self._places = _contact_places(self.model, self._groups)
        self.smoothing = smoothing
        self._adjoint: StepAdjoint | SmoothedAdjoint | None = None
        if smoothing is not None:
            if self.inexact is not None:
                raise ModelError(f"{self.file.name}: smoothing takes means of exact gradients, but there are none: {self.inexact}")
            rest = np.concatenate([self.model.qpos0, np.zeros(self.space.nx - self.space.nq)])[None]
            StepAdjoint(self.model).signatures(Inputs(state=rest, action=np.zeros((1, self.space.nu))))  # raises where it cannot be
        self._worlds: OrderedDict[tuple[int, bool], Worlds] = OrderedDict()
        self._probes: dict[tuple[int, float], ContactProbe] = {}
        self.most_missed = 0
        self.failed: NDArray[np.bool_] = np.zeros(0, bool)

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """Range of every limited joint [rad or m], by position name."""
        return joint_ranges(self.model)

    @property
    def drives(self) -> dict[str, str]:
        """The joint that an actuator turns or moves directly, by action name."""
        joint = (int(mujoco.mjtTrn.mjTRN_JOINT), int(mujoco.mjtTrn.mjTRN_JOINTINPARENT))
        m = self.model
        return {self.space.action[int(m.actuator_ctrladr[i])]: element_name(m, "joint", int(m.actuator_trnid[i, 0]))
                for i in range(m.nu) if int(m.actuator_trntype[i]) in joint}

    @property
    def velocity_lag(self) -> float:
        """Time [s] by which velocities are behind the slope of positions: Euler's are half an engine step, Runge-Kutta's are not."""
        return 0.0 if int(self.model.opt.integrator) == int(mujoco.mjtIntegrator.mjINT_RK4) else 0.5 * float(self.model.opt.timestep)

    def typical_forces(self) -> Array:
        """Return the force that each degree of freedom typically needs [N or N·m], shape [nv].

        It is what holds the reference pose against gravity, or what accelerates it with 10 rad/s² (1 m/s² for slides), whichever
        is more: a scale for learned corrections.
        """
        data = mujoco.MjData(self.model)
        mujoco.mj_forward(self.model, data)
        linear = self.model.jnt_type[self.model.dof_jntid] == int(mujoco.mjtJoint.mjJNT_SLIDE)
        forces: Array = np.maximum(np.abs(data.qfrc_bias), self.model.dof_M0 * np.where(linear, 1.0, 10.0))
        return forces

    def step(self, state: Float[Tensor, "*#batch nx"], action: Float[Tensor, "*#batch nu"], force: Tensor | None = None,
             parameters: Values | None = None) -> Float[Tensor, "... nx"]:
        """Advance ``dt`` seconds in C, in float64; gradients in reverse mode, see ``pull_back``."""
        self._check(state, action, force)
        return torch_step(self, self.space, state, action, force, parameters, vectors=ADDITIONS)

    def rollout(self, state: Float[Tensor, "*batch nx"], actions: Float[Tensor, "*batch horizon nu"],
                parameters: Values | None = None) -> Float[Tensor, "*batch horizon_1 nx"]:
        """Advance H steps in one call of the engine; step by step where something needs a gradient."""
        self._check(state, actions, None)
        values = parameters or {}
        tracked = torch.is_grad_enabled() and any(x.requires_grad for x in (state, actions, *values.values()))
        if tracked or not ADDITIONS.keys().isdisjoint(values):
            return super().rollout(state, actions, parameters)
        inputs, batch = to_inputs(state, actions.flatten(-2), None, values)
        worlds = self._place(inputs)
        states = worlds.rollout(inputs.state, inputs.action.reshape(len(inputs.state), *actions.shape[-2:]), self.substeps)
        self.failed = worlds.failed.copy()
        return torch.from_numpy(states).to(state).reshape(*batch, *states.shape[1:])

    def advance(self, inputs: Inputs) -> Array:
        """Return the next states, shape [N, nx]; NaN for worlds that the engine gave up."""
        worlds = self._place(inputs)
        after = worlds.step(inputs.state, inputs.action, inputs.force, self.substeps)
        self.failed = worlds.failed.copy()
        return after

    def _perturbed(self, inputs: Inputs) -> Array:
        """Return the next states as ``advance`` does, for differences: they say nothing of the worlds that the caller steps."""
        return self._place(inputs).step(inputs.state, inputs.action, inputs.force, self.substeps)

    def pull_back(self, inputs: Inputs, cotangent: Array, wanted: frozenset[str]) -> Gradients:
        """Return the vector-Jacobian product of a step.

        By state, action, force and the parameters of contacts (friction, solref, solimp, margin) it is that of ``mujoco_adjoint``, exact
        through the solver, unless ``inexact`` says why not; by other parameters it is taken by centred differences, all perturbed
        worlds in one batch.
        """
        exact = wanted & (EXACT | self._places.keys()) if self.inexact is None else frozenset[str]()
        rest, own = wanted - exact, None
        if exact:
            found = self._exact().pull_back(inputs, cotangent, self._fields_of(exact), substeps=self.substeps,
                                            fields=self._place(inputs).fields())
            own = replace(found, values={n: np.moveaxis(found.values[f], 0, -1)[place] for n, (f, place) in self._places.items()
                                         if n in exact})
            if not rest:
                return own
        by = pull_back_by_differences(self._perturbed, self.space, inputs, cotangent, rest, scales=self._scales())
        return by if own is None else replace(own, values={**own.values, **by.values})

    def jacobian(self, state: Float[Tensor, "*batch nx"], action: Float[Tensor, "*batch nu"], force: Tensor | None = None,
                 parameters: Values | None = None, *, by: Collection[str] | None = None) -> StepJacobian:
        """Return the derivative of a step on the tangent space; by which method as in ``pull_back``."""
        def differentiate(inputs: Inputs, names: Sequence[str]) -> Mapping[str, Array]:
            exact = [n for n in names if (n in EXACT or n in self._places) and self.inexact is None]
            rest = [n for n in names if n not in exact]
            found = difference_jacobian(self._perturbed, self.space, inputs, rest, scales=self._scales()) if rest else {}
            if not exact:
                return found
            blocks = self._exact().jacobian(inputs, self._fields_of(exact), substeps=self.substeps, fields=self._place(inputs).fields())
            for n in exact:
                field, place = self._places.get(n, (n, ()))
                shape = () if n in EXACT else getattr(self.model, field).shape
                found[n] = blocks[n] if n in EXACT else blocks[field][:, :, np.ravel_multi_index(place, shape), None]
            return found

        if force is None:
            force = state.new_zeros(*state.shape[:-1], self.space.nv)
        return torch_jacobian(differentiate, state, action, force, parameters, vectors=ADDITIONS, by=by)

    def gradient_method(self, name: str) -> str:
        """Return in words how a step is differentiated by "state", "action", "force" or a parameter."""
        if name not in EXACT and name not in self._places:
            return "centred differences"
        if self.inexact is not None:
            return f"centred differences ({self.inexact})"
        return "exact adjoint" if self.smoothing is None else "exact adjoint, smoothed at switches"

    def smoothed(self, state: Float[Tensor, "*#batch nx"], action: Float[Tensor, "*#batch nu"],
                 parameters: Values | None = None) -> Bool[Tensor, "..."]:
        """Return where the gradient of a step is a mean over moved states, shape [*batch]."""
        inputs, batch = to_inputs(state, action, None, parameters or {}, ADDITIONS)
        adjoint = self._exact() if self.smoothing is not None else None
        found = np.zeros(len(inputs.state), bool)
        if isinstance(adjoint, SmoothedAdjoint):
            found[adjoint.find(inputs, substeps=self.substeps, fields=self._place(inputs).fields())] = True
        return torch.from_numpy(found).reshape(batch)

    def unsmoothed(self) -> MujocoSimulator:
        """Return the same model without smoothing of gradients."""
        if self.smoothing is None:
            return self
        other = copy.copy(self)
        other.smoothing = None
        return other

    def solved_to_rounding(self) -> MujocoSimulator:
        """Return the same model with the constraint solver's tolerance at zero: what the exact adjoint is the derivative of."""
        other = copy.copy(self.unsmoothed())
        other.model = copy.copy(self.model)
        option = other.model.opt
        option.tolerance, option.iterations, option.ls_iterations = 0.0, max(100, option.iterations), max(50, option.ls_iterations)
        return other

    def describe_contacts(self, state: Float[Tensor, " nx"]) -> tuple[str, ...]:
        """Return the pairs of geoms in contact, "floor/box", and the joints at a limit, in the model as it is without parameters."""
        return name_contacts(self.model, state.detach().cpu().double().numpy())

    def contacts(self, state: Float[Tensor, "*#batch nx"], action: Float[Tensor, "*#batch nu"], parameters: Values | None = None, *,
                 most: int, reach: float = 0.0, force: Tensor | None = None) -> Contacts:
        """Return the contacts at the start of a step with the engine's forces on them; arguments as in ``Baseline.contacts``.

        The forces are those of an engine that has not been stepped from there: with substeps, of the first one. Contacts beyond
        ``most`` are counted in the result, and logged whenever there are more of them than ever before.

        Raises:
            ModelError: if nothing in the model can touch, or it has flexes; if it has adhesion and a reach is asked for.
        """
        self._check(state, action, force)
        inputs, batch = to_inputs(state, action, force, parameters or {}, ADDITIONS)
        if (most, reach) not in self._probes:
            self._probes[most, reach] = ContactProbe(self.model, most, reach, threads=self._threads)
        found = self._probes[most, reach].look(inputs.state, inputs.action, inputs.force, self._place(inputs).fields())
        missed = int(found.missed.max()) if found.missed.numel() else 0
        if missed > self.most_missed:
            self.most_missed = missed
            log.warning("%s: a world has %d contacts more than the %d that are looked at: raise the maximum", self.file.name, missed, most)
        return found.reshaped(batch, state)

    def energy(self, state: Float[Tensor, "*batch nx"], parameters: Values | None = None) -> Float[Tensor, "..."]:
        """Return potential plus kinetic energy as the engine has it [J], shape [*batch]; without gradients."""
        inputs, batch = to_inputs(state, state[..., :0], None, self._named(parameters, state))
        worlds = self._place(inputs, energy=True)
        energy = worlds.batch.bind("energy")
        failed = worlds.forward(inputs.state)
        return torch.from_numpy(np.where(failed, np.nan, energy.sum(-1))).to(state).reshape(batch)

    def dissipation_power(self, state: Float[Tensor, "*#batch nx"], action: Float[Tensor, "*#batch nu"],
                          parameters: Values | None = None) -> Float[Tensor, "..."]:
        """Return the power [W] of damping and dry friction at the start of a step, shape [*batch]; without gradients.

        ``-vᵀ D v + Σ f (J v + J dv/dt / b)``. Dry friction f is a soft constraint in MuJoCo, of damping b (``solreffriction``): it
        opposes not the velocity but where the velocity will be 1/b seconds ahead, which is what its power is taken at.
        """
        self._check(state, action, None)
        inputs, batch = to_inputs(state, action, None, parameters or {}, ADDITIONS)
        return torch.from_numpy(self._place(inputs).dissipation(inputs.state, inputs.action)).to(state).reshape(batch)

    def mass_matrix(self, q: Tensor, p: Values) -> Tensor:
        """Return M(q), shape [*batch, nv, nv]; without gradients."""
        space = self.space
        rest = q.new_zeros(*q.shape[:-1], space.nx - space.nq)
        inputs, batch = to_inputs(torch.cat([q, rest], -1), rest[..., :0], None, self._named(p, q))
        worlds = self._place(inputs)
        sparse = worlds.batch.bind("M")
        worlds.forward(inputs.state, int(mujoco.mjtStage.mjSTAGE_POS))
        dense = np.zeros((len(inputs.state), space.nv, space.nv))
        rows = np.repeat(np.arange(space.nv), self.model.M_rownnz)
        dense[:, rows, self.model.M_colind] = dense[:, self.model.M_colind, rows] = sparse
        return torch.from_numpy(dense).to(q).reshape(*batch, space.nv, space.nv)

    def model_with(self, values: Mapping[str, float]) -> mujoco.MjModel:
        """Return a copy of the model that has these values of its parameters for good, by name; nominal ones where missing."""
        model = copy.copy(self.model)
        for group in self._groups:
            fields = {f: read_field(model, f)[None] for f in group.fields}
            group.write(fields, np.array([[values.get(p.name, p.nominal) for p in group.parameters]]))
            for name, field in fields.items():
                write_field(model, name, field[0])
        mujoco.mj_setConst(model, mujoco.MjData(model))
        return model

    def describe(self) -> dict[str, object]:
        """Return the constructor arguments; the model with every file that it needs."""
        return {"model": self.file.describe(), "dt": self.dt}

    def __getstate__(self) -> dict[str, Any]:
        """Leave the running simulations behind: they are made again where they are needed."""
        return {**self.__dict__, "_worlds": OrderedDict(), "_probes": {}, "_groups": None, "_adjoint": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Find the parameters' places in the model again."""
        self.__dict__.update(state)
        self._groups = choose(self.model, self.parameters)[1]

    def __deepcopy__(self, memo: dict[int, Any]) -> MujocoSimulator:
        """Return this simulator: it holds nothing that a copy could change."""
        return self

    def _check(self, state: Tensor, action: Tensor, force: Tensor | None) -> None:
        """Raise where a last dimension is not what the model has; numpy would spread one number over many."""
        given = (state.shape[-1], action.shape[-1], self._sizes[2] if force is None else force.shape[-1])
        if given != self._sizes:
            raise ValueError(f"MujocoSimulator: state, action and force must have {self._sizes} entries, received {given}")

    def _place(self, inputs: Inputs, *, energy: bool = False) -> Worlds:
        """Return as many worlds as there are inputs, with their parameters; with ``energy`` such as compute it."""
        count = len(inputs.state)
        worlds = self._worlds.get((count, energy))
        if worlds is None:
            model = self.model
            if energy:
                model = copy.copy(model)
                model.opt.enableflags |= int(mujoco.mjtEnableBit.mjENBL_ENERGY)
            worlds = self._worlds[count, energy] = Worlds(model, count, threads=self._threads, groups=self._groups)
            if len(self._worlds) > KEPT:
                self._worlds.popitem(last=False)
        elif len(self._worlds) > 1:
            self._worlds.move_to_end((count, energy))
        if inputs.values or self._groups or worlds.added:
            self._write(worlds, inputs.values, count)
        return worlds

    def _write(self, worlds: Worlds, values: Mapping[str, Array], count: int) -> None:
        unknown = [n for n in values if n not in self.live]
        if unknown:
            raise ValueError(f"MujocoSimulator: no parameters {unknown}; there are {sorted(self.live)}")
        for n in ADDITIONS.keys() & values.keys():
            if values[n].shape != (count, self.space.nv):
                raise ValueError(f"MujocoSimulator: {n} must have {self.space.nv} entries, received {values[n].shape[-1]}")
        named = {p.name: values[p.name] if p.name in values else np.full(count, p.nominal) for p in self.parameters}
        worlds.write(named, {field: values[n] for n, field in ADDITIONS.items() if n in values})

    def _named(self, values: Values | None, like: Tensor) -> Values:
        """Return the values of the named parameters alone."""
        return {n: x for n, x in (values or {}).items() if n in self.parameters.names}

    def _fields_of(self, names: Collection[str]) -> frozenset[str]:
        """Return what the adjoint is asked for inputs and parameters of these names."""
        return frozenset(self._places[n][0] if n in self._places else n for n in names)

    def _exact(self) -> StepAdjoint | SmoothedAdjoint:
        if self._adjoint is None:
            adjoint = StepAdjoint(self.model, threads=self._threads)
            self._adjoint = adjoint if self.smoothing is None else SmoothedAdjoint(
                adjoint, self._perturbed, self.space, self.smoothing)
        return self._adjoint

    def _scales(self) -> dict[str, float]:
        return {p.name: max(p.scale, 1e-6) for p in self.parameters}


def _contact_places(model: mujoco.MjModel, groups: Sequence[Group]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return field and place of the parameters by which the adjoint differentiates, by name."""
    exact = contact_fields(model)
    return {g.parameters[0].name: (g.fields[0], tuple(int(i) for i in g.place if isinstance(i, int)))
            for g in groups if g.place is not None and g.fields[0] in exact}


def _with_free_places(model: mujoco.MjModel, geoms: Sequence[int]) -> mujoco.MjModel:
    """Return a model in which some geoms may move in their bodies: the engine does not read the place of one compiled at the origin."""
    fixed = [i for i in geoms if model.geom_sameframe[i]]
    if not fixed:
        return model
    freed = copy.copy(model)
    freed.geom_sameframe[fixed] = int(mujoco.mjtSameFrame.mjSAMEFRAME_NONE)
    return freed
