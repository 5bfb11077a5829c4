"""State limits and inequalities as a part of the cost: a penalty, or an augmented Lagrangian whose multipliers are data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from residual_mbrl.baselines import WarpFunction
from residual_mbrl.costs import Cost, CostParts, WarpCost
from residual_mbrl.fused.torch_functions import UntraceableError, symbolic
from residual_mbrl.planners.limits import Limits
from residual_mbrl.spaces import StateSpace

_numbers = count()


@dataclass(frozen=True, kw_only=True, eq=False)
class Inequalities:
    """``g(x_t, u_t) + margin ≤ 0`` at every step, and ``g_H(x_H) + margin ≤ 0`` at the end, as plain torch functions.

    Args:
        running: ``running(state [*batch, nx], action [*batch, nu]) -> [*batch, m]``; see ``FunctionCost`` for what it may do.
        terminal: ``terminal(state [*batch, nx]) -> [*batch, m]``; none where missing.
        margin: At least 0, such as the half width of an interval of g: one number, [m], or [H + 1, m] with the end last.
    """

    running: Callable[[Tensor, Tensor], Tensor]
    terminal: Callable[[Tensor], Tensor] | None = None
    margin: Tensor | float = 0.0


class Constraints:
    """State limits and inequalities of a planner: c ≤ 0, in the order lower limits, upper limits, inequalities.

    Args:
        space: Of the model.
        limits: Whose state limits count.
        inequalities: None where there are none.
        steps: H.

    Raises:
        ValueError: if an inequality does not take states and actions of the model, or returns what is no [*batch, m].
    """

    def __init__(self, space: StateSpace, limits: Limits, inequalities: Inequalities | None, steps: int) -> None:
        self.space, self.inequalities, self.steps = space, inequalities, steps
        lower, upper = limits.state(space.nx, steps)
        infinite = torch.full((steps + 1, space.nx), float("inf"), dtype=torch.float64)
        lower, upper = -infinite if lower is None else lower, infinite if upper is None else upper
        self.below = [i for i in range(space.nx) if bool((lower[:, i] > -float("inf")).any())]
        self.above = [i for i in range(space.nx) if bool((upper[:, i] < float("inf")).any())]
        n = _width(inequalities, space)
        self.limited = len(self.below) + len(self.above)
        self.number, self._nu = self.limited + n, space.nu
        margin = torch.as_tensor(0.0 if inequalities is None else inequalities.margin, dtype=torch.float64)
        try:
            margin = margin.expand(steps + 1, n)
        except RuntimeError as error:
            raise ValueError(f"Inequalities: margin must have shape [{n}] or [{steps + 1}, {n}], received {list(margin.shape)}") from error
        bounds = torch.cat([lower[:, self.below], upper[:, self.above], margin], -1)
        # nothing can be done about the first state
        bounds[0, : len(self.below)], bounds[0, len(self.below) : self.limited] = -float("inf"), float("inf")
        self.bounds = bounds
        self.key = next(_numbers)
        self._on_symbols: tuple[WarpFunction | None, WarpFunction | None] | None = None

    @staticmethod
    def of(space: StateSpace, limits: Limits, inequalities: Inequalities | None, steps: int) -> Constraints | None:
        """Return the constraints; None where there are none."""
        found = Constraints(space, limits, inequalities, steps)
        return found if found.number else None

    def running(self, state: Tensor, action: Tensor, bounds: Tensor) -> Tensor:
        """Return c of a step, shape [*batch, number]."""
        parts = self._limits(state, bounds)
        if self.inequalities is not None:
            parts.append(self.inequalities.running(state, action) + bounds[..., self.limited :])
        return torch.cat(parts, -1)

    def terminal(self, state: Tensor, bounds: Tensor) -> Tensor:
        """Return c of the last state, shape [*batch, number]; -1 for inequalities that have no end."""
        parts = self._limits(state, bounds)
        if self.inequalities is not None:
            margin = bounds[..., self.limited :]
            end = self.inequalities.terminal
            parts.append(torch.full_like(margin, -1.0).expand(*state.shape[:-1], -1) if end is None else end(state) + margin)
        return torch.cat(parts, -1)

    def along(self, states: Float[Tensor, "*batch horizon_1 nx"], actions: Float[Tensor, "*batch horizon nu"]) -> Tensor:
        """Return c at every step and the end, shape [*batch, H + 1, number]."""
        bounds = self.bounds.to(states)
        steps = self.running(states[..., :-1, :], actions, bounds[:-1])
        return torch.cat([steps, self.terminal(states[..., -1, :], bounds[-1]).unsqueeze(-2)], -2)

    def _limits(self, state: Tensor, bounds: Tensor) -> list[Tensor]:
        n = len(self.below)
        return [bounds[..., :n] - state[..., self.below], state[..., self.above] - bounds[..., n : self.limited]]

    def on_symbols(self) -> tuple[WarpFunction | None, WarpFunction | None]:
        """Return the inequalities of a step and of the end on symbols.

        Raises:
            UntraceableError: if they cannot be recorded.
        """
        if self._on_symbols is None:
            g = self.inequalities
            running = None if g is None else symbolic(g.running, self.space.nx, self.space.nu)
            terminal = None if g is None or g.terminal is None else symbolic(g.terminal, self.space.nx)
            self._on_symbols = running, terminal
        return self._on_symbols


class ConstrainedCost(Cost):
    """``cost + ρ Σ_i max(0, c_i + y_i)² - ρ y_i²`` at every step, with y multipliers over 2 ρ: a penalty where y is zero.

    Args:
        cost: What the constraints are added to.
        constraints: c.
        multipliers: y, shape [*#batch, H + 1, number]; zero where missing.
        weight: ρ, one number or [*#batch].
    """

    def __init__(self, cost: Cost, constraints: Constraints, *, multipliers: Tensor | None = None, weight: Tensor | float) -> None:
        self.cost, self.constraints = cost, constraints
        own = cost.references.detach()
        rows = constraints.steps + 1
        if own.shape[-2] != rows:
            own = torch.cat([own[..., :1, :].expand(*own.shape[:-2], rows - 1, -1), own[..., 1:, :]], -2)
        like = own if multipliers is None else multipliers
        y = like.new_zeros(rows, constraints.number) if multipliers is None else multipliers
        rho = torch.as_tensor(weight, dtype=like.dtype, device=like.device)[..., None, None]
        batch = torch.broadcast_shapes(own.shape[:-2], y.shape[:-2], rho.shape[:-2])
        parts = (own.to(like), constraints.bounds.to(like), y, rho.expand(*rho.shape[:-2], rows, 1))
        self.nr = own.shape[-1]
        self._references = torch.cat([p.expand(*batch, *p.shape[-2:]) for p in parts], -1)

    @property
    def references(self) -> Tensor:
        """Of the cost, then bounds, multipliers and weight, shape [*#batch, H + 1, nr + 2 number + 1]."""
        return self._references

    def running(self, state: Tensor, action: Tensor, reference: Tensor) -> Tensor:
        """Return the cost of a step with its penalty, shape [*batch]."""
        own, bounds, y, rho = self._parts(reference)
        return self.cost.running(state, action, own) + _penalty(self.constraints.running(state, action, bounds), y, rho)

    def terminal(self, state: Tensor, reference: Tensor) -> Tensor:
        """Return the cost of the last state with its penalty, shape [*batch]."""
        own, bounds, y, rho = self._parts(reference)
        return self.cost.terminal(state, own) + _penalty(self.constraints.terminal(state, bounds), y, rho)

    def parts(self, state: Tensor, action: Tensor | None, reference: Tensor) -> CostParts:
        """Return the cost's own parts, and the penalty as squares; what is constant is left out."""
        own, bounds, y, rho = self._parts(reference)
        found = self.cost.parts(state, action, own)
        c = self.constraints.terminal(state, bounds) if action is None else self.constraints.running(state, action, bounds)
        d = (c + y).clamp_min(0)
        weights = rho.expand_as(d)
        if found.values is None or found.weights is None:
            return CostParts(d, weights, found.rest)
        return CostParts(torch.cat([found.values, d], -1), torch.cat([found.weights, weights], -1), found.rest)

    def _parts(self, reference: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        n = self.constraints.number
        own, bounds, y, rho = reference.split([self.nr, n, n, 1], -1)
        return own, bounds, y, rho

    def warp_form(self) -> WarpCost | None:
        """Return the same on symbols; None where the cost or an inequality has no such form."""
        own = self.cost.warp_form()
        if own is None:
            return None
        try:
            running, terminal = self.constraints.on_symbols()
        except UntraceableError:
            return None
        import warp as wp  # noqa: PLC0415  # only fused rollouts need it

        nr, n, limited = self.nr, self.constraints.number, self.constraints.limited
        below, above, rho = self.constraints.below, self.constraints.above, nr + 2 * n

        def limits(x: Any, r: Any) -> Any:
            return [*(r[nr + k] - x[i] for k, i in enumerate(below)), *(x[i] - r[nr + len(below) + k] for k, i in enumerate(above))]

        def pressed(c: Any, r: Any) -> Any:
            return [wp.max(value + r[nr + n + k], 0.0) for k, value in enumerate(c)]

        def at_step(x: Any, u: Any, r: Any) -> Any:
            found = [] if running is None else running(x, u)
            return pressed([*limits(x, r), *(g + r[nr + limited + k] for k, g in enumerate(found))], r)

        def at_end(x: Any, r: Any) -> Any:
            found = [] if terminal is None else terminal(x)
            return pressed([*limits(x, r), *(g + r[nr + limited + k] for k, g in enumerate(found))], r)

        def total(value: Any, d: Any, r: Any) -> Any:
            for k, one in enumerate(d):
                value = value + r[rho] * (one * one - r[nr + n + k] * r[nr + n + k])
            return value

        def whole(x: Any, u: Any, r: Any) -> Any:
            return total(own.running(x, u, r[0:nr]), at_step(x, u, r), r)

        def whole_end(x: Any, r: Any) -> Any:
            return total(own.terminal(x, r[0:nr]), at_end(x, r), r)

        def squares(x: Any, u: Any, r: Any) -> Any:
            first, d = [] if own.squares is None else own.squares(x, u, r[0:nr]), at_step(x, u, r)
            half = len(first) // 2
            return [*first[:half], *d, *first[half:], *(r[rho] for _ in d)]

        def end_squares(x: Any, r: Any) -> Any:
            first, d = [] if own.terminal_squares is None else own.terminal_squares(x, r[0:nr]), at_end(x, r)
            half = len(first) // 2
            return [*first[:half], *d, *first[half:], *(r[rho] for _ in d)]

        def curved(x: Any, u: Any, r: Any) -> Any:
            return own.running(x, u, r[0:nr]) if own.curved is None else own.curved(x, u, r[0:nr])

        def end_curved(x: Any, r: Any) -> Any:
            return own.terminal(x, r[0:nr]) if own.terminal_curved is None else own.terminal_curved(x, r[0:nr])

        return WarpCost(("constrained", own.key, self.constraints.key), whole, whole_end, squares,
                        None if own.squares is not None and own.curved is None else curved, end_squares,
                        None if own.terminal_squares is not None and own.terminal_curved is None else end_curved)


def _penalty(c: Tensor, y: Tensor, rho: Tensor) -> Tensor:
    total: Tensor = (rho * ((c + y).clamp_min(0).square() - y.square())).sum(-1)
    return total


def _width(inequalities: Inequalities | None, space: StateSpace) -> int:
    """Return m of the inequalities, which are tried on three states."""
    if inequalities is None:
        return 0
    x, u = torch.zeros(3, space.nx, dtype=torch.float64), torch.zeros(3, space.nu, dtype=torch.float64)
    for q0, _ in space.quaternions:
        x[:, q0] = 1.0
    widths = []
    for name, call in (("running", lambda: inequalities.running(x, u)),
                       ("terminal", lambda: None if inequalities.terminal is None else inequalities.terminal(x))):
        try:
            found = call()  # type: ignore[no-untyped-call]
        except (RuntimeError, IndexError, TypeError) as error:
            raise ValueError(f"Inequalities: {name} does not take states [*batch, {space.nx}] and actions [*batch, {space.nu}]: "
                             f"{error}") from error
        if found is None:
            continue
        if not isinstance(found, Tensor) or found.ndim != 2 or found.shape[0] != 3:
            raise ValueError(f"Inequalities: {name} must return shape [*batch, m], here (3, m), received "
                             f"{tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__}")
        widths.append(found.shape[-1])
    if len(set(widths)) > 1:
        raise ValueError(f"Inequalities: running and terminal must return as many values, received {widths[0]} and {widths[1]}")
    return widths[0]
