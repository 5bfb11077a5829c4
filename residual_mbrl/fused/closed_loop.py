"""Rollouts under a policy, their costs, and the gradients of these by the policy's weights, in one kernel launch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from residual_mbrl.baselines import Values
from residual_mbrl.costs import Cost
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.fused.call import BAD_STATE, CHANGED, parts_of
from residual_mbrl.fused.costs import References, cost_form
from residual_mbrl.fused.inputs import constants_on, parameter_rows, read_weights, weight_entries
from residual_mbrl.fused.model import REALS, Refusal, prepare
from residual_mbrl.fused.system import engine
from residual_mbrl.residuals.warp_form import WarpForm

if TYPE_CHECKING:
    from residual_mbrl.kernels.closed_loop import ClosedLoopEngine
    from residual_mbrl.kernels.closed_loop_text import Head


class Outputs(NamedTuple):
    """What a launch wrote; None for what was not asked for. Worlds in one row each."""

    costs: Tensor
    states: Tensor | None
    actions: Tensor | None
    running: Tensor | None
    initial: Tensor | None
    weights: list[Tensor] | None
    """Gradients by the policy's weights in their order."""


@dataclass(frozen=True, kw_only=True)
class LoopInputs:
    """What a closed loop runs on, checked and expanded.

    Args:
        state: Shape [*batch, nx].
        data: Noise and goals of each step and of the end, shape [*batch, H + 1, data], at least one entry.
        cost: Running and terminal cost.
        references: Of the cost, shape [*#batch, H + 1 or 2, nr].
        discounts: Of each step and of the end, shape [H + 1]; one where missing.
        parameters: Those the caller gave.
    """

    state: Tensor
    data: Tensor
    cost: Cost
    references: Tensor
    discounts: Tensor | None = None
    parameters: Values = field(default_factory=dict)


class HeadState:
    """A policy or a value ready for kernels; made again when a normaliser or a bound has changed."""

    def __init__(self, module: nn.Module, form: WarpForm, outputs: int) -> None:
        self.form, self.head = form, _head(form, outputs)
        self.buffers = [(m._buffers, n, b, b._version) for m in module.modules() for n, b in m._buffers.items() if b is not None]
        self.constants = {d: torch.cat([form.constants, form.constants.new_zeros(1)]).to(d) for d in REALS}
        self.shapes = [w.shape for w in form.weights()]

    def is_current(self) -> bool:
        """Tell whether it still speaks for the module."""
        return (all(d.get(n) is b and b._version == v for d, n, b, v in self.buffers)
                and [w.shape for w in self.form.weights()] == self.shapes)

    def flat(self, dtype: torch.dtype) -> Tensor | None:
        """Return all weights as they are now in one row; None where some are not finite."""
        from residual_mbrl.kernels.weights import read_weights as read  # noqa: PLC0415  # half a second that only fused rollouts need

        weights = [w if w.is_contiguous() else w.contiguous() for w in self.form.weights()]
        size = sum(w.numel() for w in weights)
        values, entries = torch.empty(1, size, dtype=dtype), weight_entries(weights, 1)
        return values if read(entries.address, len(weights), values.data_ptr(), size, 1, REALS[dtype]) else None


_heads: WeakKeyDictionary[nn.Module, HeadState] = WeakKeyDictionary()
_engines: WeakKeyDictionary[Any, dict[tuple[object, ...], ClosedLoopEngine]] = WeakKeyDictionary()


def fused_policy(dynamics: ResidualDynamics, policy: nn.Module, form: WarpForm | None, value: nn.Module | None,
                 value_form: WarpForm | None, inputs: LoopInputs, *, gradient: bool, seeds: Tensor | None = None,
                 wanted: tuple[str, ...] = ()) -> Outputs | Refusal:
    """Return costs and what else is wanted, or why there are none.

    Args:
        dynamics: The model.
        policy: Whose weights are learned.
        form: Its Warp form when it is first seen, as ``warp_forms`` says.
        value: Of the last states; none where missing.
        value_form: Its Warp form when it is first seen.
        inputs: What the loop runs on.
        gradient: Whether gradients of ``Σ seeds · costs`` are wanted.
        seeds: Shape [*batch]; one where missing.
        wanted: Any of "states", "actions", "running".
    """
    state = inputs.state
    horizon, nu = inputs.data.shape[-2] - 1, dynamics.space.nu
    if state.device.type != "cpu":
        return Refusal("rollouts under a policy are fused on a CPU")
    model = prepare(dynamics, state, inputs.data, inputs.parameters)
    if isinstance(model, Refusal):
        return model
    heads = {"policy": head_state(policy, form, nu), **({} if value is None else {"value": head_state(value, value_form, 1)})}
    found = cost_form(inputs.cost, inputs.references.shape[-1])
    if found is None:
        return Refusal(f"{type(inputs.cost).__name__} has no Warp form")
    batch, x = state.shape[:-1], state.detach().reshape(-1, state.shape[-1]).contiguous()
    data = inputs.data.detach().reshape(-1, horizon + 1, inputs.data.shape[-1]).contiguous()
    parameters = parameter_rows(dynamics, model, x, batch, inputs.parameters).detach().contiguous()
    members = model.members[0] if model.members else 1
    base = engine(dynamics, model, inputs.parameters, x.dtype)
    plan: Any = _engine(base, heads, data.shape[-1]).plan(x.shape[0], horizon, torch.get_num_threads(), members=members)
    constants, refs = constants_on(model, x), References.over(batch, inputs.references)
    weights = [w if w.is_contiguous() else w.contiguous() for f in model.forms for w in f.weights()]
    flat = model.flat.get(x.dtype) or read_weights(dynamics, model, weights, x.dtype)
    flats = {n: s.flat(x.dtype) for n, s in heads.items()}
    for n, row in flats.items():
        if row is None:
            raise ValueError(f"policy rollout: weights of the {n} are not finite in {str(x.dtype).removeprefix('torch.')}")
    shapes = {"states": (horizon + 1, x.shape[-1]), "actions": (horizon, nu), "running": (horizon,)}
    extra = {n: x.new_empty(x.shape[0], *shapes[n]) if n in wanted else None for n in shapes}
    costs = x.new_empty(x.shape[0])
    by_state, by_weights = (torch.empty_like(x), torch.empty_like(_present(flats["policy"]))) if gradient else (None, None)
    given = {"costs": costs, "states": extra["states"], "acted": extra["actions"], "running": extra["running"], "grad_initial": by_state,
             "grad_weights": by_weights, "seeds": None if seeds is None else seeds.detach().to(x).reshape(-1).contiguous(),
             "discounts": None if inputs.discounts is None else inputs.discounts.to(x).contiguous(), "initial": x, "data": data,
             "parameters": parameters, "constants": constants, **{f"{n}_constants": s.constants[x.dtype] for n, s in heads.items()}}
    addresses = {n: 0 if t is None else t.data_ptr() for n, t in given.items()}
    entries = weight_entries(weights, members)
    for _ in range(2):
        status = plan.run_policy(
            "policy_gradient" if gradient else "policy_cost", {n: _present(row).data_ptr() for n, row in flats.items()}, cost=found[1],
            learn=gradient, weights=flat.values.data_ptr(), version=flat.version, entries=entries.address, n_entries=len(weights),
            **addresses, **refs.addresses)
        if status != CHANGED:
            break
        flat = read_weights(dynamics, model, weights, x.dtype)
    if status:
        raise ValueError(f"policy rollout: {'state' if status & BAD_STATE else 'noise or goals'} holds values that are not finite")
    likes = [(w.shape, w.dtype) for w in heads["policy"].form.weights()]
    parts = None if by_weights is None else [_present(g) for g in parts_of(by_weights, likes)]
    return Outputs(costs, extra["states"], extra["actions"], extra["running"], by_state, parts)


def warp_form_of(module: nn.Module | None, make: Any) -> WarpForm | None:
    """Return the Warp form of a policy or value if kernels need it anew, None if they know it."""
    if module is None:
        return None
    known = _heads.get(module)
    return None if known is not None and known.is_current() else make()


def head_state(module: nn.Module, form: WarpForm | None, outputs: int) -> HeadState:
    """Return a policy or value as kernels know it, made anew where there is a form.

    Args:
        module: The policy or value.
        form: As ``warp_form_of`` says.
        outputs: Entries of what it gives.
    """
    if form is not None:
        _heads[module] = HeadState(module, form, outputs)
    return _heads[module]


def _head(form: WarpForm, outputs: int) -> Head:
    from residual_mbrl.kernels.closed_loop_text import Head  # noqa: PLC0415
    from residual_mbrl.kernels.expressions import Vector  # noqa: PLC0415

    entries, emit = form.entries(0), form.emit
    if emit is None:
        raise ValueError("the Warp form of a policy emits an action")
    whole = emit(0, 0)

    def features(x: Any, d: Any, p: Any, c: Any) -> Any:
        return Vector([entry(x, d, p, c) for entry in entries])

    return Head(features, whole, form.sizes, outputs, form.constants.shape[-1] + 1, (form.key, form.sizes))


def _engine(base: Any, heads: Mapping[str, HeadState], data: int) -> ClosedLoopEngine:
    """Return what runs a model under a policy, compiled when the structure is first seen."""
    from residual_mbrl.kernels.closed_loop import ClosedLoopEngine  # noqa: PLC0415

    engines = _engines.setdefault(base, {})
    value = heads["value"].head if "value" in heads else None
    key = (heads["policy"].head.key, value and value.key, data)
    if key not in engines:
        engines[key] = ClosedLoopEngine(base, heads["policy"].head, value, data)
    return engines[key]


def _present(x: Tensor | None) -> Tensor:
    if x is None:
        raise RuntimeError("a tensor is missing that was asked for")
    return x
