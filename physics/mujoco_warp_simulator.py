"""Any MuJoCo model as a baseline on MuJoCo Warp: thousands of worlds on a GPU, in a captured graph; on a CPU for tests."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import mujoco
import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import forward_ad

from residual_mbrl.baselines import Baseline, Parameters, Port, StepJacobian, Values
from residual_mbrl.errors import ModelError
from residual_mbrl.physics.mujoco_model import Source
from residual_mbrl.physics.mujoco_parameters import CONSTANTS, Group, choose
from residual_mbrl.physics.mujoco_simulator import ADDITIONS, KEPT, MujocoSimulator
from residual_mbrl.physics.numeric_step import Gradients, Inputs, difference_jacobian, pull_back_by_differences, torch_jacobian, torch_step

if TYPE_CHECKING:
    from residual_mbrl.physics.mujoco_warp_worlds import Engine, Worlds

Array = NDArray[np.float64]

STEP = 1e-3
"""Relative step of differences in float32, where rounding and the solver's tolerance of 1e-6 weigh as much as curvature."""
WORLDS = 1 << 13
"""Most worlds that differences step at once."""
DERIVED = ("body_subtreemass", "body_invweight0", "dof_invweight0", "tendon_length0", "tendon_lengthspring", "tendon_invweight0",
           "actuator_acc0", "eq_data", "geom_rbound", "geom_aabb")
"""Fields that the engine derives from others and that MuJoCo Warp reads in a step."""
_PLACES = {"body_pos": "body", "body_quat": "body", "geom_pos": "geom", "geom_quat": "geom"}
_SMALL = 1e-6


class MujocoWarpSimulator(Baseline):
    """``x' = mujoco_warp.step(x, u, qfrc_applied)``: the model, state, ports and parameters of ``MujocoSimulator``, many worlds at once.

    Computed in float32 whatever the input, and returned in the input's dtype: to 1e-5 or so what C MuJoCo gives in smooth
    motion. State, action and force are copied once, into the engine's own memory, on torch's current stream; nothing waits for
    the device but ``failed`` and, once a call, the question whether named parameters have changed. Worlds that fail (input or
    result not finite or beyond 1e10, more contacts or constraint rows than there is room for) become NaN, in a rollout from that
    step on; ``failed`` tells which and ``explain_failures`` why.

    MuJoCo Warp itself has no gradients: taping its step gives zeros. ``gradients`` chooses where they come from:

    - "mujoco": C MuJoCo on the CPU, in float64, at the same inputs: as exact as those of ``MujocoSimulator``.
    - "differences": centred differences of this step, all perturbed worlds in one batch on the device; in float32 right to
      1e-4 or 1e-3 of the largest entry in smooth motion, worse where contacts open and close.
    - None: none; a step that should be differentiated raises ModelError.

    Args:
        model: As in ``MujocoSimulator``.
        parameters: As there; only fields that MuJoCo Warp holds for each world.
        dt: As there.
        device: Where worlds live; None takes the GPU where torch sees one, else the CPU.
        gradients: As above.
        nconmax: Contacts there is room for, in the mean over all worlds, which share it and fail together; None takes the engine's
            guess, or fewer where all geoms together make fewer.
        njmax: Constraint rows there is room for in each world; None takes what ``nconmax`` contacts and all else can need.

    Raises:
        ModelError: if mujoco_warp or the device is missing, or MuJoCo Warp cannot simulate the model; with its message.
    """

    ports = frozenset(Port)

    def __init__(self, model: Source, parameters: Sequence[str] | Parameters = (), *, dt: float | None = None,
                 device: torch.device | str | None = None, gradients: Literal["mujoco", "differences"] | None = "mujoco",
                 nconmax: int | None = None, njmax: int | None = None) -> None:
        if gradients not in ("mujoco", "differences", None):
            raise ValueError(f"MujocoWarpSimulator: gradients must be 'mujoco', 'differences' or None, received {gradients!r}")
        for name, room in (("nconmax", nconmax), ("njmax", njmax)):
            if room is not None and room < 1:
                raise ValueError(f"MujocoWarpSimulator: {name} must be at least 1, received {room}")
        self.twin = MujocoSimulator(model, parameters, dt=dt)
        self.file, self.model, self.space = self.twin.file, self.twin.model, self.twin.space
        self.dt, self.substeps = self.twin.dt, self.twin.substeps
        self.parameters, self.live = self.twin.parameters, self.twin.live
        self.ranges, self.drives = self.twin.ranges, self.twin.drives
        self.device, self.gradients, self.nconmax, self.njmax = _checked(device), gradients, nconmax, njmax
        self._worlds: OrderedDict[int, Worlds] = OrderedDict()
        self._written: dict[int, Tensor] = {}
        self._latest: tuple[Tensor, int, int] | None = None
        self._groups = choose(self.model, self.parameters)[1]
        self._engine: Engine | None = self._start()

    @property
    def failed(self) -> NDArray[np.bool_]:
        """Worlds whose last step or rollout had no finite result, shape [N]; waits for the device."""
        return np.zeros(0, bool) if self._latest is None else self._latest[0].cpu().numpy() != 0

    def explain_failures(self) -> list[str]:
        """Return why worlds failed in the last step or rollout, a line for each cause; waits for the device."""
        if self._latest is None:
            return []
        from residual_mbrl.physics.mujoco_warp_worlds import CONTACTS, DIVERGED, INPUT, ROWS  # noqa: PLC0415  # an extra

        status, (_, nconmax, njmax) = self._latest[0].cpu().numpy(), self._latest
        causes = {"had more constraint rows than there is room for": (ROWS, f"raise njmax above {njmax}"),
                  "found no room for a contact": (CONTACTS, f"raise nconmax above {nconmax}"),
                  "diverged": (DIVERGED, "a smaller time step may help"),
                  "started from a state, action or force that is not finite": (INPUT, "or that lies beyond 1e10")}
        lines, explained = [], np.zeros(len(status), bool)
        for what, (bits, hint) in causes.items():
            found = (status & int(bits) != 0) & ~explained
            explained |= found
            if found.any():
                lines.append(f"{found.sum()} of {len(status)} worlds {what}: {hint}")
        return lines

    def step(self, state: Float[Tensor, "*#batch nx"], action: Float[Tensor, "*#batch nu"], force: Tensor | None = None,
             parameters: Values | None = None) -> Float[Tensor, "... nx"]:
        """Advance ``dt`` seconds in float32; gradients in reverse mode as ``gradients`` says, through the CPU."""
        values = parameters or {}
        self._check(state, action, force, values)
        if self._is_tracked(state, action, force, *values.values()) or forward_ad._current_level >= 0:
            return torch_step(self, self.space, state, action, force, values, vectors=ADDITIONS)
        batch = _common(state, action, force, values)
        rows = {n: _rows(x, batch) if n in ADDITIONS else x.expand(batch).reshape(-1) for n, x in values.items()}
        after = self._step(_rows(state, batch), _rows(action, batch), None if force is None else _rows(force, batch), rows)
        return after.to(state, copy=True).reshape(*batch, self.space.nx)

    def rollout(self, state: Float[Tensor, "*batch nx"], actions: Float[Tensor, "*batch horizon nu"],
                parameters: Values | None = None) -> Float[Tensor, "*batch horizon_1 nx"]:
        """Advance H steps on the device, a graph a step; step by step where something needs a gradient."""
        values = parameters or {}
        self._check(state, actions, None, values)
        if self._is_tracked(state, actions, *values.values()) or not ADDITIONS.keys().isdisjoint(values):
            return super().rollout(state, actions, parameters)
        batch = _common(state, actions.flatten(-2), None, values)
        start, held = _rows(state, batch), _rows(actions.flatten(-2), batch).unflatten(-1, actions.shape[-2:])
        worlds = self._place(start, None, {n: x.expand(batch).reshape(-1) for n, x in values.items()})
        states = torch.empty(len(start), held.shape[1] + 1, self.space.nx, dtype=state.dtype, device=self.device)
        states[:, 0] = start
        held = held.to(self.device, torch.float32)
        for t in range(held.shape[1]):
            worlds.control.copy_(held[:, t])
            worlds.launch()
            states[:, t + 1].copy_(worlds.state)
        return states.to(state.device).reshape(*batch, *states.shape[1:])

    def advance(self, inputs: Inputs) -> Array:
        """Return the next states, shape [N, nx], float32 in float64; NaN for worlds that failed."""
        force = None if inputs.force is None else torch.from_numpy(inputs.force)
        after = self._step(torch.from_numpy(inputs.state), torch.from_numpy(inputs.action), force,
                           {n: torch.from_numpy(x) for n, x in inputs.values.items()})
        return after.to("cpu", torch.float64).numpy()

    def pull_back(self, inputs: Inputs, cotangent: Array, wanted: frozenset[str]) -> Gradients:
        """Return the vector-Jacobian product as ``gradients`` says.

        Raises:
            ModelError: where ``gradients`` is None.
        """
        self._require_gradients()
        if self.gradients == "mujoco":
            return self.twin.pull_back(inputs, cotangent, wanted)
        latest = self._latest
        product = pull_back_by_differences(self.advance, self.space, inputs, cotangent, wanted, step=STEP, scales=self._scales(),
                                           worlds=WORLDS)
        self._latest = latest  # ``failed`` is about the user's step
        return product

    def jacobian(self, state: Float[Tensor, "*batch nx"], action: Float[Tensor, "*batch nu"], force: Tensor | None = None,
                 parameters: Values | None = None, *, by: Collection[str] | None = None) -> StepJacobian:
        """Return the derivative of a step on the tangent space as ``gradients`` says.

        Raises:
            ModelError: where ``gradients`` is None.
        """
        self._require_gradients()
        if self.gradients == "mujoco":
            return self.twin.jacobian(state, action, force, parameters, by=by)

        def differentiate(inputs: Inputs, names: Sequence[str]) -> Mapping[str, Array]:
            return difference_jacobian(self.advance, self.space, inputs, names, step=STEP, scales=self._scales(), worlds=WORLDS)

        if force is None:
            force = state.new_zeros(*state.shape[:-1], self.space.nv)
        latest = self._latest
        jacobian = torch_jacobian(differentiate, state, action, force, parameters, vectors=ADDITIONS, by=by)
        self._latest = latest
        return jacobian

    def typical_forces(self) -> Array:
        """Return the force that each degree of freedom typically needs [N or N·m], shape [nv]."""
        return self.twin.typical_forces()

    def energy(self, state: Float[Tensor, "*batch nx"], parameters: Values | None = None) -> Float[Tensor, "..."]:
        """Return potential plus kinetic energy [J], shape [*batch]; by C MuJoCo, without gradients."""
        return self.twin.energy(state, parameters)

    def dissipation_power(self, state: Float[Tensor, "*#batch nx"], action: Float[Tensor, "*#batch nu"],
                          parameters: Values | None = None) -> Float[Tensor, "..."]:
        """Return the power [W] of damping and dry friction, shape [*batch]; by C MuJoCo, without gradients."""
        return self.twin.dissipation_power(state, action, parameters)

    def mass_matrix(self, q: Tensor, p: Values) -> Tensor:
        """Return M(q), shape [*batch, nv, nv]; by C MuJoCo, without gradients."""
        return self.twin.mass_matrix(q, p)

    def describe(self) -> dict[str, object]:
        """Return the constructor arguments that belong to the model; the device does not."""
        return {**self.twin.describe(), "gradients": self.gradients, "nconmax": self.nconmax, "njmax": self.njmax}

    def __getstate__(self) -> dict[str, Any]:
        """Leave everything on the device behind: it is made again where it is needed."""
        return {**self.__dict__, "_worlds": OrderedDict(), "_written": {}, "_latest": None, "_engine": None, "_groups": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Find the parameters' places in the model again."""
        self.__dict__.update(state)
        self._groups = choose(self.model, self.parameters)[1]

    def __deepcopy__(self, memo: dict[int, Any]) -> MujocoWarpSimulator:
        """Return this simulator: it holds nothing that a copy could change."""
        return self

    def _step(self, state: Tensor, action: Tensor, force: Tensor | None, values: Values) -> Tensor:
        """Advance flat inputs; the result is the worlds' own memory."""
        worlds = self._place(state, force, values)
        worlds.control.copy_(action)
        worlds.launch()
        return worlds.state

    def _place(self, state: Tensor, force: Tensor | None, values: Values) -> Worlds:
        """Return as many worlds as there are states, with state, force and parameters set."""
        count = len(state)
        worlds = self._worlds.get(count)
        if self._engine is None:
            self._engine = self._start()
        if worlds is None:
            from residual_mbrl.physics.mujoco_warp_worlds import Worlds  # noqa: PLC0415  # an extra

            worlds = self._worlds[count] = Worlds(self._engine, count, self.substeps)
            if len(self._worlds) > KEPT:
                self._written.pop(self._worlds.popitem(last=False)[0], None)
        self._worlds.move_to_end(count)
        self._write(worlds, values, count)
        worlds.state.copy_(state)
        if force is None:
            worlds.force.zero_()
        else:
            worlds.force.copy_(force)
        worlds.status.zero_()
        self._latest = (worlds.status, self._engine.nconmax, self._engine.njmax)
        return worlds

    def _write(self, worlds: Worlds, values: Values, count: int) -> None:
        """Set parameters, where they have changed, and additions."""
        if self._groups:
            columns = torch.stack([values[p.name].to(self.device, torch.float64) if p.name in values else
                                   torch.full((count,), p.nominal, dtype=torch.float64, device=self.device) for p in self.parameters], -1)
            if count not in self._written or not torch.equal(self._written[count], columns):
                self._written[count] = columns
                for name, field in model_fields(self.model, self._groups, columns.cpu().numpy()).items():
                    worlds.write(name, torch.from_numpy(field))
        worlds.add({field: values[n] for n, field in ADDITIONS.items() if n in values})

    def _start(self) -> Engine:
        try:
            from residual_mbrl.physics.mujoco_warp_worlds import Engine  # noqa: PLC0415  # an extra
        except ModuleNotFoundError as error:
            if error.name is None or error.name.split(".")[0] != "mujoco_warp":
                raise
            raise ModelError("MujocoWarpSimulator needs the package 'mujoco_warp': pip install 'residual-mbrl[gpu]'") from error
        live = {f for g in self._groups for f in g.fields}
        _refuse_fixed_places(self.model, self._groups, self.file.name)
        if not CONSTANTS.isdisjoint(live):
            live |= {f for f in DERIVED if _field(self.model, f).size}
        # what has no effect in the model that is put on the device is left out there for good
        effective = self.twin.model_with({p.name: p.nominal or _SMALL for p in self.parameters})
        return Engine(effective, self.file.name, device=self.device, live=live | {*ADDITIONS.values()},
                      nconmax=self.nconmax, njmax=self.njmax)

    def _check(self, state: Tensor, action: Tensor, force: Tensor | None, values: Values) -> None:
        """Raise where a name is unknown or a last dimension not the model's: one number would be spread over many."""
        unknown = [n for n in values if n not in self.live]
        if unknown:
            raise ValueError(f"MujocoWarpSimulator: no parameters {unknown}; there are {sorted(self.live)}")
        space = self.space
        given = [("state", state, space.nx), ("action", action, space.nu), *(() if force is None else [("force", force, space.nv)]),
                 *((n, values[n], space.nv) for n in ADDITIONS if n in values)]
        for name, x, size in given:
            if x.shape[-1:] != (size,):
                raise ValueError(f"MujocoWarpSimulator: {name} must have {size} entries, received shape {tuple(x.shape)}")

    def _is_tracked(self, *inputs: Tensor | None) -> bool:
        tracked = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
        if tracked:
            self._require_gradients()
        return tracked

    def _require_gradients(self) -> None:
        if self.gradients is None:
            raise ModelError("MujocoWarpSimulator: MuJoCo Warp's step has no gradients; step under torch.no_grad(), or choose "
                             "gradients='mujoco' or 'differences'")

    def _scales(self) -> dict[str, float]:
        return {p.name: max(p.scale, 1e-6) for p in self.parameters}


def model_fields(model: mujoco.MjModel, groups: Sequence[Group], values: Array) -> dict[str, Array]:
    """Return the model fields that parameters change, and those that C MuJoCo derives from them, for each world.

    Args:
        model: The compiled model, which stays as it is.
        groups: The parameters.
        values: Of all of them in order, shape [N, number of parameters]; worlds of equal values are computed once.

    Returns:
        By name, each [N, ...] as C MuJoCo has it.
    """
    rows, world = np.unique(values, axis=0, return_inverse=True)
    changed = {f: np.repeat(_field(model, f)[None], len(rows), 0) for g in groups for f in g.fields}
    start = 0
    for group in groups:
        group.write(changed, rows[:, start : start + len(group.parameters)])
        start += len(group.parameters)
    if not CONSTANTS.isdisjoint(changed):
        scratch = copy.copy(model)
        data = mujoco.MjData(scratch)
        derived = {f: np.repeat(_field(model, f)[None], len(rows), 0) for f in DERIVED if _field(model, f).size}
        for i in range(len(rows)):
            for name, field in changed.items():
                _set_field(scratch, name, field[i])
            mujoco.mj_setConst(scratch, data)
            for name, field in derived.items():
                field[i] = _field(scratch, name)
        changed = {**derived, **changed}
    return {name: field[world.reshape(-1)] for name, field in changed.items()}


def _field(model: mujoco.MjModel, name: str) -> Array:
    """Return a field of a model or of its options; a view unless it is a single number."""
    return np.asarray(getattr(model.opt, name[4:]) if name.startswith("opt.") else getattr(model, name), np.float64)


def _set_field(model: mujoco.MjModel, name: str, value: Array) -> None:
    if name.startswith("opt.") and not value.ndim:
        setattr(model.opt, name[4:], float(value))
    else:
        _field(model, name)[...] = value


def _written(model: mujoco.MjModel, group: Group, values: Array) -> dict[str, Array]:
    """Return the fields of a group in a single world with these values."""
    fields = {f: _field(model, f)[None].copy() for f in group.fields}
    group.write(fields, values[None])
    return {f: x[0] for f, x in fields.items()}


def _refuse_fixed_places(model: mujoco.MjModel, groups: Sequence[Group], name: str) -> None:
    """Raise where a parameter moves what cannot move: MuJoCo Warp places such bodies and geoms once.

    Raises:
        ModelError: naming the parameters.
    """
    for group in (g for g in groups if not _PLACES.keys().isdisjoint(g.fields)):
        nominal = np.array([p.nominal for p in group.parameters])
        before, after = _written(model, group, nominal), _written(model, group, nominal + 1.0)
        for field, kind in ((f, _PLACES[f]) for f in group.fields if f in _PLACES):
            moved = np.flatnonzero((before[field] != after[field]).any(-1))
            bodies = moved if kind == "body" else model.geom_bodyid[moved]
            if (model.body_weldid[bodies] == 0).any():
                raise ModelError(f"{name}: MuJoCo Warp places what is fixed to the world once; {[p.name for p in group.parameters]} cannot "
                                 f"be parameters")


def _checked(device: torch.device | str | None) -> torch.device:
    found = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
    if found.type not in ("cpu", "cuda"):
        raise ModelError(f"MujocoWarpSimulator: device must be 'cpu' or a 'cuda' device, received {str(device)!r}")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ModelError(f"MujocoWarpSimulator: torch sees {torch.cuda.device_count()} CUDA devices, received {str(device)!r}")
    return torch.device("cuda", torch.cuda.current_device()) if found.type == "cuda" and found.index is None else found


def _common(state: Tensor, action: Tensor, force: Tensor | None, values: Values) -> torch.Size:
    """Return the common batch shape."""
    shapes = [state.shape[:-1], action.shape[:-1], *(() if force is None else (force.shape[:-1],)),
              *(x.shape[:-1] if n in ADDITIONS else x.shape for n, x in values.items())]
    try:
        return torch.Size(torch.broadcast_shapes(*shapes))
    except RuntimeError as error:
        raise ValueError(f"step: state, action, force and parameters must broadcast, received batch shapes "
                         f"{[tuple(s) for s in shapes]}") from error


def _rows(x: Tensor, batch: torch.Size) -> Tensor:
    """Return a [*batch, k] tensor as [N, k]."""
    return x.expand(*batch, x.shape[-1]).reshape(batch.numel(), x.shape[-1])
