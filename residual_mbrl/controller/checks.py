"""What a chain must be for a loop to rely on it: checked when it is put together."""

from __future__ import annotations

from collections.abc import Sequence

from residual_mbrl.controller.law import Law
from residual_mbrl.controller.level import Level
from residual_mbrl.errors import ModelError
from residual_mbrl.planners.base import Planner

NAMES = ("calibrated model", "identified model")
"""Of the first two planners of a chain where they have no names of their own."""


def check_chain(chain: Sequence[Planner | Level | Law], period: float) -> tuple[list[Level], list[Law], list[str]]:
    """Return the planners of a chain as levels, the laws after them, and the names of all.

    Args:
        chain: The best first.
        period: Seconds from tick to tick.

    Raises:
        ModelError: if a planner comes after a law, there is no planner or no law at the end, a model has another rate or another
            plant, or planners disagree on states or actions.
    """
    planners = [c for c in chain if not isinstance(c, Law)]
    laws = [c for c in chain if isinstance(c, Law)]
    kinds = [type(c.planner if isinstance(c, Level) else c).__name__ for c in chain]
    if not planners or not laws or any(isinstance(c, Law) for c in chain[: len(planners)]):
        raise ModelError(f"Controller: expected a planner, further planners, then at least one law such as LQR or Hold, received {kinds}")
    levels = [c if isinstance(c, Level) else Level(planner=c, name=NAMES[i] if i < len(NAMES) else f"model {i + 1}")
              for i, c in enumerate(planners)]
    for level in levels:
        _check_rate(level, period)
        own, other = level.dynamics.baseline.space, levels[0].dynamics.baseline.space
        if (own.position, own.velocity, own.action) != (other.position, other.velocity, other.action):
            raise ModelError(f"Controller: {level.name!r} has the states {own.state_names} and actions {own.action}, "
                             f"{levels[0].name!r} {other.state_names} and {other.action}")
    names = [level.name for level in levels]
    for law in laws:
        name = type(law).__name__
        names.append(name if name not in names else f"{name} {len(names)}")
    if len(set(names)) != len(names):
        raise ModelError(f"Controller: names must be unique, received {names}")
    return levels, laws, names


def _check_rate(level: Level, period: float) -> None:
    if not period > 0:
        raise ValueError(f"Controller: period must be above zero, received {period}")
    dt = level.dynamics.dt
    if abs(dt / period - 1) > 1e-6:
        hint = "give it a model at this rate: Level(planner=..., model=...)" if level.model is None else "expected the same"
        raise ModelError(f"Controller: the model of {level.name!r} steps {dt:g} s, the controller {period:g} s; {hint}")
