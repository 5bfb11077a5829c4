"""Plans that can be differentiated: by the references of the cost, the first state, the model's weights and parameters."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from residual_mbrl.baselines import Values
from residual_mbrl.costs import Cost
from residual_mbrl.planners.base import Planner
from residual_mbrl.planners.plan import Plan
from residual_mbrl.rollouts import cost_gradient, rollout

POLISH = 8
"""Newton steps at most that bring a solution to where its gradient vanishes."""
STEP = 1e-5
"""Step of the difference quotients of exact gradients, in float64, relative to the greatest action."""


class _Solved(NamedTuple):
    planner: Planner
    cost: Cost
    previous: Tensor | None


def differentiable_actions(planner: Planner, state: Tensor, cost: Cost | None = None, *, warm: Plan | None = None,
                           parameters: Values | None = None, previous: Tensor | None = None) -> tuple[Tensor, Plan]:
    """Return planned actions that know how they depend on the problem, and their plan.

    By the implicit function theorem at a minimum u* of J within limits that hold it by rows E: ``du* = -[J_uu Eᵀ; E 0]⁻¹ [dJ_u; 0]``, with
    J_uu the exact Hessian of the whole rollout (difference quotients of its exact gradient, all columns in one launch). A solution is first
    polished by Newton steps, as an error in u* would be one in the derivative. Source of the idea: Amos et al., Differentiable MPC for
    end-to-end planning and control, NeurIPS 2018, who take the derivative of the last LQR instead.

    Args:
        planner: Without state limits, inequalities or an objective.
        state: Shape [nx] or [batch, nx].
        cost: With references that require gradients, such as a ``QuadraticCost`` of weights that do; the planner's own where missing.
        warm: Where to begin.
        parameters: Physical values by name.
        previous: Action applied before.

    Returns:
        Actions [*batch, H, nu] in float64 with a graph to ``cost.references``, ``state``, the model's weights and ``parameters``, and the
        plan that they come from.

    Raises:
        ValueError: if the planner has constraints or an objective.
    """
    if planner.constraints is not None or planner.objective is not None:
        raise ValueError("differentiable_actions: expected a planner without state limits, inequalities and an objective")
    if state.ndim > 2:
        raise ValueError(f"differentiable_actions: state must have shape [nx] or [batch, nx], received {tuple(state.shape)}")
    cost = cost or planner.cost
    plan = planner.plan(state.detach().double(), warm, cost=cost, parameters=None if parameters is None else
                        {n: v.detach() for n, v in parameters.items()}, previous=previous)
    named = parameters or {}
    weights = dict(planner.dynamics.named_parameters())
    inputs = (cost.references, state, *named.values(), *weights.values())
    actions: Tensor = _Implicit.apply(_Solved(planner, cost, previous), plan, tuple(named), *inputs)  # type: ignore[no-untyped-call]
    return actions, plan


class _Implicit(torch.autograd.Function):
    """A solution as a function of what defines its problem."""

    @staticmethod
    def forward(ctx: Any, solved: _Solved, plan: Plan, names: tuple[str, ...], references: Tensor, state: Tensor, *rest: Tensor) -> Tensor:
        """Polish the plan's actions."""
        parameters = dict(zip(names, rest, strict=False))
        x = _full(solved.planner, state.detach().double())
        actions = plan.actions.detach().double().reshape(-1, *plan.actions.shape[-2:])
        found = [_polished(solved, x[i], actions[i], i, parameters) for i in range(len(x))]
        ctx.solved, ctx.names = solved, names
        ctx.hessians, ctx.rows = [f[1] for f in found], [f[2] for f in found]
        out = torch.stack([f[0] for f in found])
        ctx.save_for_backward(references, state, out, *rest)
        return out.reshape(plan.actions.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Solve with the Hessian, and take the mixed derivative along the solution."""
        references, state, actions, *rest = ctx.saved_tensors
        planner: Planner = ctx.solved.planner
        along = torch.stack([_kkt_solve(h, e, g.reshape(-1)) for h, e, g in
                             zip(ctx.hessians, ctx.rows, grad.double().reshape(len(actions), -1), strict=True)]).reshape(actions.shape)
        wanted = ctx.needs_input_grad[3:]
        with torch.enable_grad():
            refs = references.detach().requires_grad_(wanted[0])
            x = state.detach().requires_grad_(wanted[1])
            named = {n: v.detach().requires_grad_(w) for n, v, w in zip(ctx.names, rest, wanted[2:], strict=False)}
            first = _full(planner, x.double())
            size = STEP * max(1.0, float(actions.abs().max())) / max(float(along.abs().max()), 1e-300)
            p = {n: v.double() for n, v in named.items()}
            total = first.new_zeros(())
            for sign in (1.0, -1.0):
                u = actions + sign * size * along
                states = rollout(planner.dynamics, first, u, p)
                cast = refs.double() if refs.ndim < 3 or state.ndim > 1 else refs.double().reshape(-1, *refs.shape[-2:])
                total = total - sign / (2 * size) * ctx.solved.cost.total(states, u, cast).sum()
            learned = list(planner.dynamics.parameters())
            sources = [refs, x, *named.values(), *learned]
            asked = [s for s, w in zip(sources, wanted, strict=True) if w]
            found = iter(torch.autograd.grad(total, asked, allow_unused=True) if asked else ())
        grads = [next(found) if w else None for w in wanted]
        return (None, None, None, *grads)


def _full(planner: Planner, state: Tensor) -> Tensor:
    """Return states with the residuals' memory, shape [n, nx]."""
    x = state.reshape(-1, state.shape[-1])
    if x.shape[-1] < planner.dynamics.space.nx:
        x = planner.dynamics.initial_state(x, planner.initial.to(x).expand(len(x), -1))
    return x


def _polished(solved: _Solved, x: Tensor, u: Tensor, i: int, parameters: Values) -> tuple[Tensor, Tensor, Tensor]:
    """Return actions [H, nu] at which the gradient vanishes but along rows that hold, the Hessian [n, n] and the rows [m, n]."""
    planner = solved.planner
    lower, upper = planner._lower.to(u), planner._upper.to(u)
    rate = None if planner._rate is None else planner._rate.to(u)
    p = {n: (v if v.ndim == 0 else v[i]).detach().double() for n, v in parameters.items()}
    cost = _Single(solved.cost, i)
    before = None if solved.previous is None else solved.previous.double().reshape(-1, u.shape[-1])
    previous = None if before is None else before[min(i, len(before) - 1)]
    n = u.numel()
    for attempt in range(POLISH + 1):
        size = STEP * max(1.0, float(u.abs().max()))
        moves = size * torch.eye(n, dtype=u.dtype).reshape(n, *u.shape)
        worlds = torch.cat([u.unsqueeze(0), u + moves, u - moves])
        found = cost_gradient(planner.dynamics, x.expand(len(worlds), -1), worlds, cost, p)
        g = found.actions[0].reshape(-1)
        columns = (found.actions[1 : n + 1] - found.actions[n + 1 :]).reshape(n, n) / (2 * size)
        hessian = 0.5 * (columns + columns.mT)
        rows = _held(u, g.reshape(u.shape), lower, upper, rate, previous)
        step = _kkt_solve(hessian, rows, -g).reshape(u.shape)
        if attempt == POLISH or float(step.abs().max()) < 1e-9 * max(1.0, float(u.abs().max())):
            return u, hessian, rows
        moved = torch.clamp(u + step, lower, upper)
        after = cost_gradient(planner.dynamics, x.unsqueeze(0), moved.unsqueeze(0), cost, p)
        if not float(after.costs[0]) <= float(found.costs[0]) + 1e-12 * abs(float(found.costs[0])):
            return u, hessian, rows
        u = moved
    return u, hessian, rows


class _Single(Cost):
    """A cost with the references of one element of a batch."""

    def __init__(self, cost: Cost, i: int) -> None:
        self._cost = cost
        own = cost.references.detach().double()
        self._references = own if own.ndim < 3 else own.reshape(-1, *own.shape[-2:])[min(i, own[..., 0, 0].numel() - 1)]

    @property
    def references(self) -> Tensor:
        """Of the element, float64."""
        return self._references

    def running(self, state: Tensor, action: Tensor, reference: Tensor) -> Tensor:
        """Return that of the cost."""
        return self._cost.running(state, action, reference)

    def terminal(self, state: Tensor, reference: Tensor) -> Tensor:
        """Return that of the cost."""
        return self._cost.terminal(state, reference)

    def warp_form(self) -> Any:
        """Return that of the cost."""
        return self._cost.warp_form()


def _held(u: Tensor, g: Tensor, lower: Tensor, upper: Tensor, rate: Tensor | None, previous: Tensor | None) -> Tensor:
    """Return one row for each action or change of actions that a limit holds, shape [m, n]."""
    horizon, nu = u.shape
    tiny = 1e-9 * (1 + u.abs())
    at = ((u <= lower + tiny) & (g > 0)) | ((u >= upper - tiny) & (g < 0))
    eye = torch.eye(u.numel(), dtype=u.dtype)
    rows = [eye[at.reshape(-1)]]
    if rate is not None:
        before = torch.cat([u[:1] if previous is None else previous.reshape(1, nu), u[:-1]])
        still = ((u - before).abs() >= rate - tiny) & ~at
        if previous is None:
            still[0] = False
        changes = eye.clone()
        changes[nu:] -= eye[:-nu]
        rows.append(changes[still.reshape(-1)])
    return torch.cat(rows)


def _kkt_solve(hessian: Tensor, rows: Tensor, right: Tensor) -> Tensor:
    """Return w with ``H w + Eᵀ λ = right`` and ``E w = 0``."""
    if not len(rows):
        whole: Tensor = torch.linalg.solve(hessian, right)
        return whole
    # w = N z with N a basis of what the rows leave free
    _, singular, vh = torch.linalg.svd(rows, full_matrices=True)
    rank = int((singular > 1e-10).sum())
    free = vh[rank:].mT
    found: Tensor = free @ torch.linalg.solve(free.mT @ hessian @ free, free.mT @ right)
    return found
