"""A step computed in numpy as a differentiable torch function; gradients come from the solver itself or from centred differences."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

from residual_mbrl.baselines import StepJacobian, Values
from residual_mbrl.errors import ModelError
from residual_mbrl.spaces import StateSpace

Array = NDArray[np.float64]

STEP = 1e-6
"""Relative step of the centred differences: their error, of order STEP², stays below the rounding it lets in, of order 1e-16 / STEP."""

WORLDS = 1 << 15
"""Most worlds in one call of ``advance``, a bound on the memory that differences take."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What one step of N worlds starts from; arrays may be views of the caller's and are not to be written to.

    Args:
        state: Shape [N, nx].
        action: Shape [N, nu].
        force: Generalised force [N or N·m], shape [N, nv]; None adds nothing.
        values: Of parameters, by name, each [N] or [N, k].
    """

    state: Array
    action: Array
    force: Array | None = None
    values: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Gradients:
    """Gradient of a scalar with respect to each of the inputs that was wanted; None or missing for the others.

    Args:
        state: On the tangent space, shape [N, ndx].
        action: Shape [N, nu].
        force: Shape [N, nv].
        values: By name, each of its value's shape.
    """

    state: Array | None = None
    action: Array | None = None
    force: Array | None = None
    values: Mapping[str, Array] = field(default_factory=dict)


class NumericStep(Protocol):
    """A batched step in numpy."""

    def advance(self, inputs: Inputs) -> Array:
        """Return the next states in a new array, shape [N, nx]."""

    def pull_back(self, inputs: Inputs, cotangent: Array, wanted: frozenset[str]) -> Gradients:
        """Return the vector-Jacobian product of a step.

        Args:
            inputs: As ``advance`` received them.
            cotangent: Of the next state, on the tangent space, shape [N, ndx].
            wanted: Any of "state", "action", "force" and the names of values.

        Raises:
            ModelError: if there is no gradient with respect to something wanted.
        """


def difference_jacobian(advance: Callable[[Inputs], Array], space: StateSpace, inputs: Inputs, wanted: Collection[str], *,
                        step: float = STEP, scales: Mapping[str, float | Array] | None = None, worlds: int = WORLDS) -> dict[str, Array]:
    """Return the Jacobian of a step by centred differences, ``(f(x ⊞ h e) ⊖ f(x ⊞ -h e)) / 2h`` for each direction e.

    All perturbed copies of all samples are stacked into one call of ``advance``, or as few as ``worlds`` allows.

    Args:
        advance: The step.
        space: Manifold of the state.
        inputs: Where to differentiate, N worlds.
        wanted: Any of "state", "action", "force" and the names of values.
        step: Size of a perturbation relative to its scale.
        scales: Typical size of a change of an input by name, a number or one per entry; 1 where missing.
        worlds: Most worlds in one call of ``advance``; at least those of one direction are always stepped together.

    Returns:
        By name, shape [N, ndx, k] with k the tangent's size for "state", the number of entries for all others.
    """
    n = len(inputs.state)
    directions = [(name, entry, h) for name in wanted for entry, h in enumerate(_steps(space, inputs, name, step, scales or {}))]
    slopes = np.empty((n, space.ndx, len(directions)))
    at_once = max(1, worlds // max(2 * n, 1))
    for start in range(0, len(directions), at_once):
        chunk = directions[start : start + at_once]
        after = advance(_perturbed(space, inputs, chunk)).reshape(2, len(chunk), n, space.nx)
        widths = 2 * np.array([h for _, _, h in chunk])
        slopes[:, :, start : start + len(chunk)] = np.moveaxis(_difference(space, after[0], after[1]) / widths[:, None, None], 0, -1)
    places: dict[str, list[int]] = {name: [] for name in wanted}
    for i, (name, _, _) in enumerate(directions):
        places[name].append(i)
    return {name: slopes[:, :, columns] for name, columns in places.items()}


def pull_back_by_differences(advance: Callable[[Inputs], Array], space: StateSpace, inputs: Inputs, cotangent: Array,
                             wanted: Collection[str], *, step: float = STEP, scales: Mapping[str, float | Array] | None = None,
                             worlds: int = WORLDS) -> Gradients:
    """Return the vector-Jacobian product through ``difference_jacobian``; arguments as there and in ``NumericStep.pull_back``."""
    jacobian = difference_jacobian(advance, space, inputs, wanted, step=step, scales=scales, worlds=worlds)
    product = {name: np.einsum("nik,ni->nk", j, cotangent) for name, j in jacobian.items()}
    values = {name: product[name].reshape(x.shape) for name, x in inputs.values.items() if name in product}
    return Gradients(state=product.get("state"), action=product.get("action"), force=product.get("force"), values=values)


def torch_step(solver: NumericStep, space: StateSpace, state: Tensor, action: Tensor, force: Tensor | None = None,
               values: Values | None = None, *, vectors: Collection[str] = ()) -> Tensor:
    """Advance one step in numpy; differentiable once, in reverse mode, by the solver's ``pull_back``.

    Computed in float64, returned in the dtype and on the device of the state. Batch shapes broadcast.

    Args:
        solver: The step.
        space: Manifold of the state; gradients of quaternions are those of rotations, without a part along the quaternion.
        state: Shape [*batch, nx].
        action: Shape [*batch, nu].
        force: Shape [*batch, nv], or None.
        values: By name, each [*batch], those in ``vectors`` [*batch, k].
        vectors: Names of values that have several entries a world.

    Returns:
        Next states, shape [*batch, nx].

    Raises:
        ModelError: in forward mode.
        ValueError: if batch shapes do not broadcast.
    """
    values = values or {}
    if forward_ad._current_level >= 0:
        _refuse_tangents(state, action, force, *values.values())
    if torch.is_grad_enabled() and (state.requires_grad or action.requires_grad or (force is not None and force.requires_grad)
                                    or any(v.requires_grad for v in values.values())):
        return _Step.apply(solver, space, tuple(values), vectors, state, action, force, *values.values())  # type: ignore[no-any-return, no-untyped-call]
    return _advance(solver, state, action, force, values, vectors)


def torch_jacobian(differentiate: Callable[[Inputs, Sequence[str]], Mapping[str, Array]], state: Tensor, action: Tensor,
                   force: Tensor | None = None, values: Values | None = None, *, vectors: Collection[str] = (),
                   by: Collection[str] | None = None) -> StepJacobian:
    """Return a step's Jacobian in torch from one in numpy; arguments as in ``torch_step``.

    Args:
        differentiate: From inputs and names to Jacobians [N, ndx, k], such as ``difference_jacobian`` of a step.
        state: Shape [*batch, nx].
        action: Shape [*batch, nu].
        force: Shape [*batch, nv], or None.
        values: By name.
        vectors: Names of values that have several entries a world.
        by: Names of the values to differentiate by; all where None.
    """
    values = values or {}
    inputs, batch = to_inputs(state, action, force, values, vectors)
    wanted = [n for n in values if by is None or n in by]
    names = ["state", "action", *([] if force is None else ["force"]), *wanted]
    blocks = {name: torch.from_numpy(np.ascontiguousarray(j)).to(state).unflatten(0, batch) if batch else
              torch.from_numpy(np.ascontiguousarray(j[0])).to(state) for name, j in differentiate(inputs, names).items()}
    parameters = {name: blocks[name] if name in vectors else blocks[name].squeeze(-1) for name in wanted}
    return StepJacobian(blocks["state"], blocks["action"], blocks.get("force"), parameters)


def to_inputs(state: Tensor, action: Tensor, force: Tensor | None, values: Values,
              vectors: Collection[str] = ()) -> tuple[Inputs, torch.Size]:
    """Return what ``advance`` takes, float64 and one row a world, and the common batch shape; arguments as in ``torch_step``.

    Raises:
        ValueError: if batch shapes do not broadcast.
    """
    batch = state.shape[:-1]
    shapes = [action.shape[:-1], *(() if force is None else (force.shape[:-1],)),
              *(v.shape[:-1] if n in vectors else v.shape for n, v in values.items() if v.ndim)]
    if any(s != batch for s in shapes):  # broadcast_shapes takes longer than all else here
        try:
            batch = torch.Size(torch.broadcast_shapes(batch, *shapes))
        except RuntimeError as error:
            raise ValueError(f"step: state, action, force and parameters must broadcast, received batch shapes "
                             f"{[tuple(s) for s in (batch, *shapes)]}") from error
    arrays = {n: _rows(v, batch) if n in vectors else _scalars(v, batch) for n, v in values.items()}
    return Inputs(state=_rows(state, batch), action=_rows(action, batch), force=None if force is None else _rows(force, batch),
                  values=arrays), batch


class _Step(torch.autograd.Function):
    """``torch_step`` where something requires a gradient."""

    @staticmethod
    def forward(solver: NumericStep, space: StateSpace, names: tuple[str, ...], vectors: Collection[str], state: Tensor,
                action: Tensor, force: Tensor | None, *values: Tensor) -> Tensor:
        return _advance(solver, state, action, force, dict(zip(names, values, strict=True)), vectors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.solver, ctx.space, ctx.names, ctx.vectors, *tensors = inputs
        ctx.save_for_backward(output, *tensors)  # never the arrays: they may be views of tensors that change in place

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        after, *tensors = ctx.saved_tensors
        state, action, force, *values = tensors
        inputs, batch = to_inputs(state, action, force, dict(zip(ctx.names, values, strict=True)), ctx.vectors)
        names = ("state", "action", "force", *ctx.names)
        wanted = frozenset(n for n, needed in zip(names, ctx.needs_input_grad[4:], strict=True) if needed)
        gradients = ctx.solver.pull_back(inputs, _to_tangent(ctx.space, _rows(after, batch), _rows(cotangent, batch)), wanted)
        found = {"state": gradients.state, "action": gradients.action, "force": gradients.force, **gradients.values}
        missing = sorted(n for n in wanted if found.get(n) is None)
        if missing:
            raise ModelError(f"{type(ctx.solver).__name__} gives no gradient with respect to {missing}")
        if "state" in wanted:
            found["state"] = _to_ambient(ctx.space, inputs.state, found["state"])
        return None, None, None, None, *(_like(found[n], t, batch, vector=n not in ctx.names or n in ctx.vectors) if n in wanted else None
                                         for n, t in zip(names, tensors, strict=True))


def _advance(solver: NumericStep, state: Tensor, action: Tensor, force: Tensor | None, values: Values, vectors: Collection[str]) -> Tensor:
    inputs, batch = to_inputs(state, action, force, values, vectors)
    after = torch.from_numpy(solver.advance(inputs))
    if after.dtype != state.dtype or after.device != state.device:
        after = after.to(state)
    return after if len(batch) == 1 else after.reshape(*batch, after.shape[-1])


def _refuse_tangents(*tensors: Tensor | None) -> None:
    """Raise where numpy would drop a tangent without a word."""
    if any(x is not None and forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        raise ModelError("a step computed in numpy has no forward mode (torch.func.jvp): take its jacobian(), or gradients in reverse mode")


def _rows(x: Tensor, batch: torch.Size) -> Array:
    """Return a [*batch, k] tensor as [N, k], a view where it can be one."""
    if x.shape[:-1] != batch:
        x = x.expand(*batch, x.shape[-1])
    if x.ndim != 2:
        x = x.reshape(batch.numel(), x.shape[-1])
    return _numpy(x)


def _scalars(x: Tensor, batch: torch.Size) -> Array:
    """Return a [*batch] tensor as [N], a view where it can be one."""
    if not x.ndim:
        return np.full(batch.numel(), x.item())
    return _numpy((x if x.shape == batch else x.expand(batch)).reshape(-1))


def _numpy(x: Tensor) -> Array:
    if x.dtype != torch.float64 or x.device.type != "cpu":
        x = x.detach().to("cpu", torch.float64)
    elif x.requires_grad:
        x = x.detach()
    return x.numpy()


def _like(gradient: Array, x: Tensor, batch: torch.Size, *, vector: bool) -> Tensor:
    """Return a gradient of N worlds in shape, dtype and device of the tensor that was broadcast to them."""
    rows = torch.from_numpy(gradient).reshape((*batch, *(gradient.shape[1:] if vector else ())))
    return rows.sum_to_size(x.shape).to(x)


def _to_tangent(space: StateSpace, state: Array, cotangent: Array) -> Array:
    """Return ``(d (x ⊞ d) / d d)ᵀ g`` at d = 0, shape [N, ndx]: for a quaternion q half of the vector part of q* ⊗ g."""
    if not space.quaternions:
        return cotangent
    kept, tangent, turning = _places(space)
    gradient = np.empty((len(state), space.ndx))
    gradient[:, tangent] = cotangent[:, kept]
    for q0, v0 in turning:
        w, x, y, z = state[:, q0 : q0 + 4].T
        a, b, c, d = 0.5 * cotangent[:, q0 : q0 + 4].T
        gradient[:, v0 : v0 + 3] = np.stack([w * b - x * a - y * d + z * c, w * c + x * d - y * a - z * b,
                                             w * d - x * c + y * b - z * a], 1)
    return gradient


def _to_ambient(space: StateSpace, state: Array, gradient: Array) -> Array:
    """Return ``(d (x ⊖ x0) / d x)ᵀ μ`` at x = x0, shape [N, nx]: for a unit quaternion q twice q ⊗ (0, μ)."""
    if not space.quaternions:
        return gradient
    kept, tangent, turning = _places(space)
    ambient = np.empty((len(state), space.nx))
    ambient[:, kept] = gradient[:, tangent]
    for q0, v0 in turning:
        w, x, y, z = state[:, q0 : q0 + 4].T
        a, b, c = 2.0 * gradient[:, v0 : v0 + 3].T
        ambient[:, q0 : q0 + 4] = np.stack([-x * a - y * b - z * c, w * a + y * c - z * b, w * b + z * a - x * c, w * c + x * b - y * a], 1)
    return ambient


@cache
def _layout(nq: int, nv: int, na: int, quaternions: tuple[tuple[int, int], ...]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the places, in state and tangent, of all entries that are no quaternion's, one for one."""
    turned_q = {i for q0, _ in quaternions for i in range(q0, q0 + 4)}
    turned_v = {i for _, v0 in quaternions for i in range(v0, v0 + 3)}
    rest = nv + na
    kept = [*(i for i in range(nq) if i not in turned_q), *range(nq, nq + rest)]
    tangent = [*(i for i in range(nv) if i not in turned_v), *range(nv, nv + rest)]
    return np.array(kept), np.array(tangent)


def _places(space: StateSpace) -> tuple[NDArray[np.intp], NDArray[np.intp], tuple[tuple[int, int], ...]]:
    return *_layout(space.nq, space.nv, space.na, space.quaternions), space.quaternions


def _difference(space: StateSpace, state: Array, reference: Array) -> Array:
    if not space.quaternions:
        return state - reference
    return _numpy(space.difference(torch.from_numpy(state), torch.from_numpy(reference)))


def _steps(space: StateSpace, inputs: Inputs, name: str, step: float, scales: Mapping[str, float | Array]) -> Array:
    """Return the size of each perturbation of one input, shape [k]."""
    if name == "force" and inputs.force is None:
        raise ModelError("no force was given to differentiate with respect to")
    sizes = {"state": space.ndx, "action": inputs.action.shape[1], "force": space.nv}
    if name not in sizes and name not in inputs.values:
        raise ModelError(f"no input {name!r} to differentiate with respect to; there are {[*sizes, *inputs.values]}")
    k = sizes[name] if name in sizes else int(np.prod(inputs.values[name].shape[1:]))
    return np.broadcast_to(step * np.asarray(scales.get(name, 1.0)), (k,))


def _perturbed(space: StateSpace, inputs: Inputs, directions: Sequence[tuple[str, int, float]]) -> Inputs:
    """Return all worlds moved forth, then back, along each direction: 2 · directions · N worlds, in this order."""
    n, count, names = len(inputs.state), len(directions), {name for name, _, _ in directions}

    def copies(x: Array, name: str) -> Array:
        """Repeat an input and add to it what the directions along it say."""
        repeated = np.broadcast_to(x, (2, count, *x.shape)).copy()
        if name in names:
            entries = repeated.reshape(2, count, n, int(np.prod(x.shape[1:])))
            for i, (along, entry, h) in enumerate(directions):
                if along == name:
                    entries[0, i, :, entry] += h
                    entries[1, i, :, entry] -= h
        return repeated.reshape(2 * count * n, *x.shape[1:])

    state = copies(inputs.state, "state" if not space.quaternions else "")
    if space.quaternions and "state" in names:
        tangent = copies(np.zeros((n, space.ndx)), "state")
        state = _numpy(space.integrate(torch.from_numpy(state), torch.from_numpy(tangent)))
    force = None if inputs.force is None else copies(inputs.force, "force")
    values = {name: copies(x, name) for name, x in inputs.values.items()}
    return Inputs(state=state, action=copies(inputs.action, "action"), force=force, values=values)
