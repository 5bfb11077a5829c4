"""A cart-pole loop on simulated time: a plant that is the model, a linear quadratic planner, and no clock but the one that is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from residual_mbrl.controller import LQR, Controller, Hold, Interval, Law, Level
from residual_mbrl.controller.rehearsal import SimulatedTime, SimulatedWorker
from residual_mbrl.costs import QuadraticCost
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.physics.cartpole import CartPole
from residual_mbrl.planners.base import Iterate, Planner, Problem
from residual_mbrl.planners.limits import Limits
from residual_mbrl.planners.plan import Plan
from residual_mbrl.residuals import Feature, Unstructured
from residual_mbrl.rollouts import linearise, rollout

Array = NDArray[np.float64]

PERIOD = 0.01
UP = np.array([0.0, np.pi, 0.0, 0.0])
LIMITS = Limits(action_lower=-10.0, action_upper=10.0, action_rate=400.0)
WIDTHS = np.array([1e-3, 1e-3, 2e-2, 2e-2])


class Regulated(Planner):
    """Plans by linear quadratic feedback on the linearised model, once."""

    def __init__(self, dynamics: ResidualDynamics, cost: QuadraticCost, **common: object) -> None:
        super().__init__(dynamics, cost, **common)
        self.law = LQR(dynamics, cost)
        x, u = self.law.state, self.law.action
        a, b = (m[0] for m in linearise(dynamics, x.expand(2, -1), u.expand(1, -1), backend="torch"))
        self.moves = (a - b @ torch.from_numpy(self.law.gain)).detach()

    iterations = 1

    def plan(self, *args: object, deadline: float | None = None, **options: object) -> Plan:
        """Plan without a look at the wall clock, which tests do not know."""
        return super().plan(*args, **options)

    def _start(self, problem: Problem, actions: Tensor, warm: Plan | None) -> Iterate:
        return Iterate(actions, actions.new_full(problem.batch, float("inf")))

    def _advance(self, problem: Problem, iterate: Iterate) -> Iterate:
        apart = [self.dynamics.space.difference(problem.state, self.law.state)]
        for _ in range(self.steps - 1):
            apart.append(self.moves @ apart[-1])
        gain = -torch.from_numpy(self.law.gain)
        actions = problem.project(self.law.action + torch.stack(apart) @ gain.mT)
        states = rollout(self.dynamics, problem.state, actions)
        return Iterate(actions, states.square().sum(), states=states, gains=gain.expand(self.steps, -1, -1), iterations=1)


def cost(like: ResidualDynamics) -> QuadraticCost:
    """Upright and in the middle."""
    weights = torch.tensor([10.0, 10.0, 1.0, 1.0], dtype=torch.float64)
    return QuadraticCost(space=like.space, state=weights, action=torch.tensor([0.1], dtype=torch.float64), target=torch.from_numpy(UP))


def baseline(*, dt: float = PERIOD, **values: float) -> ResidualDynamics:
    """Return a cart-pole."""
    return ResidualDynamics(CartPole(dt=dt), values=values)


def corrected(force: float = 2.0) -> ResidualDynamics:
    """Return a cart-pole whose residual pushes it, by a force that grows with its place."""
    learned = Unstructured(nv=2, features=[Feature(source="cart")], bound=8.0, hidden=(4,))
    with torch.no_grad():
        for w in learned.network.parameters():
            w.zero_()
        learned.network.weights[0][..., 0, 0] = 1.0
        learned.network.weights[-1][..., 0, 0] = force / 8.0
    return ResidualDynamics(CartPole(dt=PERIOD), [learned])


def level(dynamics: ResidualDynamics, name: str, **options: object) -> Level:
    """Return a level of ten steps with the usual interval."""
    return Level(planner=Regulated(dynamics, cost(dynamics), steps=10, limits=LIMITS), name=name, interval=Interval(WIDTHS), **options)


class Loop:
    """A controller and a plant that is a model; whatever is done to either is done from outside.

    Args:
        levels: Of the chain.
        plant: What the plant is.
        laws: After the levels.
        seconds: What a plan is said to take.
    """

    def __init__(self, levels: Sequence[Level], plant: ResidualDynamics, laws: Sequence[Law] | None = None, seconds: float = 0.002,
                 **options: object) -> None:
        self.clock = SimulatedTime(lambda: 0.0)
        self.worker = SimulatedWorker(self.clock, seconds=seconds)
        laws = [LQR(levels[-1].dynamics, cost(levels[-1].dynamics)), Hold([0.0])] if laws is None else laws
        self.controller = Controller(levels[0], fallback=[*levels[1:], *laws], period=PERIOD, deadline=0.008, worker=self.worker,
                                     clock=self.clock, **options)
        self.plant, self.state, self.time = plant, torch.from_numpy(UP + [0.1, 0.05, 0.0, 0.0]), 0.0
        self.rng = np.random.default_rng(0)
        self.commands, self.late, self.laws, self.states = [], [], [], []

    def run(self, ticks: int, see: Callable[[Array, int], object] = lambda x, k: x) -> list:
        """Go on for some ticks; return the new entries of the log."""
        known, before = len(self.controller.log), self.commands[-1] if self.commands else np.zeros(1)
        for k in range(ticks):
            self.clock.set(self.time)
            seen = self.state.numpy() + 2e-4 * self.rng.standard_normal(4)
            given = see(seen, k)
            command = self.controller.act(*given) if isinstance(given, tuple) else self.controller.act(given, self.time)
            late = self.clock() - self.time
            mean = (late * before + (PERIOD - late) * command) / PERIOD
            with torch.no_grad():
                self.state = self.plant.step(self.state, torch.from_numpy(mean))
            before = command
            self.time += PERIOD
            self.commands.append(command)
            self.late.append(late)
            self.laws.append(self.controller.last.law)
            self.states.append(self.state.numpy())
        return list(self.controller.log)[known:]
