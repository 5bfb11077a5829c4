"""What planners by sampling share: a population of action sequences around a mean, and their costs in one launch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from residual_mbrl.costs import Cost
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.planners.base import Common, Iterate, Planner, Problem
from residual_mbrl.planners.noise import colouring, interpolation
from residual_mbrl.planners.plan import Plan


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Options of planners by sampling.

    Args:
        samples: Sequences of an iteration, the mean among them.
        iterations: Iterations at most.
        std: Standard deviation of the noise in the action's unit, one number or [nu]; a quarter of the limits' range where missing.
        colour: Exponent of the noise's spectrum along the horizon, 0 for white.
        knots: Numbers that an action sequence is interpolated from; a number for each step where missing.
        seed: Of the planner's own random numbers.
    """

    samples: int = 256
    iterations: int = 1
    std: float | Sequence[float] | None = None
    colour: float = 0.0
    knots: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """See that numbers are in range."""
        for name, least in (("samples", 2), ("iterations", 1), ("colour", 0)):
            if not getattr(self, name) >= least:
                raise ValueError(f"{type(self).__name__}: {name} must be at least {least}, received {getattr(self, name)}")


class Sampling(Planner):
    """A planner that looks at samples of action sequences.

    Args:
        dynamics: The model.
        cost: What is minimised.
        options: Of the planner.
        common: See ``Planner``.
    """

    def __init__(self, dynamics: ResidualDynamics, cost: Cost, options: SamplingOptions, **common: Unpack[Common]) -> None:
        super().__init__(dynamics, cost, **common)
        self._options = options
        nu = dynamics.space.nu
        std = 0.25 * (self._upper - self._lower) if options.std is None else torch.as_tensor(options.std, dtype=torch.float64)
        if std.ndim > 1 or std.shape not in ((), (1,), (nu,)) or not bool(((std > 0) & torch.isfinite(std)).all()):
            raise ValueError(f"{self.name}: std must be above zero, one number or [{nu}], and is needed where an action has no limits; "
                             f"received {std.tolist()}")
        knots = None if options.knots is None else interpolation(self.steps, options.knots)
        colour = colouring(options.knots or self.steps, options.colour)
        self._std, self._knots = std.expand(nu), knots
        self._colour = None if options.colour == 0 else colour
        self._generator = torch.Generator().manual_seed(options.seed)
        self._tables: dict[torch.dtype, tuple[Tensor, Tensor | None, Tensor | None]] = {}

    @property
    def iterations(self) -> int:
        """Iterations at most."""
        return self._options.iterations

    def _start(self, problem: Problem, actions: Tensor, warm: Plan | None) -> Iterate:
        return Iterate(actions, self.costs(problem, actions))

    def noise(self, problem: Problem, count: int, std: Tensor | None = None) -> Tensor:
        """Return noise of so many samples, shape [count, *batch, H, nu].

        Args:
            problem: What is asked for.
            count: Samples.
            std: Shape [*batch, H or knots, nu]; that of the options where missing.
        """
        own, colour, knots = self._table(problem)
        nu, rows = len(own), self._options.knots or self.steps
        columns = rows if colour is None else colour.shape[0]
        white = torch.randn(count, *problem.batch, nu, columns, generator=self._generator, dtype=problem.state.dtype)
        coloured = (white if colour is None else white @ colour).mT
        scaled = coloured * (own if std is None else std)
        return scaled if knots is None else knots @ scaled

    def _table(self, problem: Problem) -> tuple[Tensor, Tensor | None, Tensor | None]:
        dtype = problem.state.dtype
        if dtype not in self._tables:
            self._tables[dtype] = tuple(None if x is None else x.to(dtype) for x in (self._std, self._colour, self._knots))  # type: ignore[assignment]
        return self._tables[dtype]


def best_of(costs: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least cost and its actions: costs [n, *batch], samples [n, *batch, H, nu]."""
    least, which = costs.min(0)
    index = which[None, ..., None, None].expand(1, *samples.shape[1:])
    return least, samples.gather(0, index).squeeze(0)
