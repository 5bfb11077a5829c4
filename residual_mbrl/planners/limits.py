"""Limits of actions, their rates and states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from residual_mbrl.spaces import StateSpace

Bound = Tensor | Sequence[float] | float | None


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a plan must keep: limits of actions and their rates always and exactly, those of states as far as the planner can.

    Args:
        action_lower: Least action, one number or [nu]; none where missing.
        action_upper: Greatest action, one number or [nu].
        action_rate: Greatest change of an action per second [unit/s], one number or [nu], above zero.
        state_lower: Least state, shape [nx] or [H + 1, nx], -inf where there is none.
        state_upper: Greatest state, shape [nx] or [H + 1, nx], inf where there is none.
    """

    action_lower: Bound = None
    action_upper: Bound = None
    action_rate: Bound = None
    state_lower: Bound = None
    state_upper: Bound = None

    def check(self, space: StateSpace, steps: int) -> None:
        """See that limits fit a model and can be kept.

        Raises:
            ValueError: naming the limit, if a shape does not fit, a bound is NaN, a lower bound is above its upper one, or a rate is
                not above zero.
        """
        lower, upper = self.action(space.nu)
        _check_order("action", lower, upper, space.action)
        rate = as_vector("action_rate", self.action_rate, (space.nu,), float("inf"))
        if not bool((rate > 0).all()):
            raise ValueError(f"Limits: action_rate must be above zero, received {rate.tolist()}")
        below, above = self.state(space.nx, steps)
        if below is not None and above is not None:
            _check_order("state", below, above, space.state_names)

    def action(self, nu: int) -> tuple[Tensor, Tensor]:
        """Return lower and upper limits of the action, shape [nu], float64."""
        return (as_vector("action_lower", self.action_lower, (nu,), -float("inf")),
                as_vector("action_upper", self.action_upper, (nu,), float("inf")))

    def rate(self, nu: int, dt: float) -> Tensor | None:
        """Return the greatest change of the action from step to step, shape [nu], float64; None where it is free."""
        return None if self.action_rate is None else dt * as_vector("action_rate", self.action_rate, (nu,), float("inf"))

    def state(self, nx: int, steps: int) -> tuple[Tensor | None, Tensor | None]:
        """Return lower and upper limits of the states, shape [H + 1, nx], float64; None for both where there are none."""
        if self.state_lower is None and self.state_upper is None:
            return None, None
        return (as_vector("state_lower", self.state_lower, (steps + 1, nx), -float("inf")),
                as_vector("state_upper", self.state_upper, (steps + 1, nx), float("inf")))

    def tightened(self, spread: Float[Tensor, "*horizon_1 nx"]) -> Limits:
        """Return limits whose states keep a distance to the bounds, such as the half width of a predictive interval.

        Args:
            spread: At least zero, shape [nx] or [H + 1, nx].
        """
        if bool((spread < 0).any()) or bool(spread.isnan().any()):
            raise ValueError("Limits: spread must be at least zero")
        wide = spread.to(torch.float64)
        lower, upper = self.state_lower, self.state_upper
        return replace(self, state_lower=None if lower is None else torch.as_tensor(lower, dtype=torch.float64) + wide,
                       state_upper=None if upper is None else torch.as_tensor(upper, dtype=torch.float64) - wide)


def project(actions: Float[Tensor, "*batch horizon nu"], lower: Tensor, upper: Tensor, rate: Tensor | None = None,
            previous: Float[Tensor, "*#batch nu"] | None = None) -> Float[Tensor, "*batch horizon nu"]:
    """Return the actions within limits: clipped to the box, then each to what can be reached from the one before.

    Args:
        actions: Shape [*batch, H, nu].
        lower: Shape [nu].
        upper: Shape [nu].
        rate: Greatest change from step to step, shape [nu].
        previous: Action before the first, shape [*batch, nu]; the first is free where missing.
    """
    clipped = torch.clamp(actions, lower, upper)
    if rate is None:
        return clipped
    rows = list(clipped.unbind(-2))
    if previous is not None:
        start = torch.clamp(previous, lower, upper)
        rows[0] = torch.clamp(rows[0], start - rate, start + rate)
    for t in range(1, len(rows)):
        rows[t] = torch.clamp(rows[t], rows[t - 1] - rate, rows[t - 1] + rate)
    return torch.stack(rows, -2)


def as_vector(name: str, value: Bound, shape: tuple[int, ...], missing: float) -> Tensor:
    """Return a bound in its whole shape, float64.

    Raises:
        ValueError: if it does not broadcast to the shape, or holds NaN.
    """
    found = torch.as_tensor(missing if value is None else value, dtype=torch.float64).detach().cpu()
    if bool(found.isnan().any()):
        raise ValueError(f"Limits: {name} holds NaN")
    try:
        return found.expand(shape)
    except RuntimeError as error:
        raise ValueError(f"Limits: {name} must have shape {list(shape)}, received {list(found.shape)}") from error


def _check_order(what: str, lower: Tensor, upper: Tensor, names: Sequence[str]) -> None:
    wrong = (lower > upper).reshape(-1, len(names)).any(0)
    if bool(wrong.any()):
        i = int(wrong.nonzero()[0])
        raise ValueError(f"Limits: {what}_lower must be at most {what}_upper, received {lower[..., i].max().item():g} above "
                         f"{upper[..., i].min().item():g} for {names[i]!r}")
