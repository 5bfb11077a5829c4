"""What a plant of the learning benchmark is: what is known of it, what each seed's really is, and what is asked of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from residual_mbrl.baselines import Baseline
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.exploration.excitation import Excite
from residual_mbrl.function_cost import FunctionCost
from residual_mbrl.learning import Planning, Plant, network_alone
from residual_mbrl.residuals import DryFriction, Feature, JointSprings
from residual_mbrl.spaces import StateSpace
from residual_mbrl.tasks import Task

Array = NDArray[np.float64]
Reward = Callable[..., Tensor]
"""From states [*batch, nx] and actions [*batch, nu], and where something is followed the step's state of it, to rewards in [0, 1],
shape [*batch]."""
DT = 0.02


class Seen(Plant):
    """A plant whose measurements are noisy, and whose states are kept for the score.

    Args:
        plant: Shows its state as it is.
        noise: Standard deviation of each measured entry, shape [nx].
    """

    def __init__(self, plant: Plant, noise: Array) -> None:
        self.plant, self.noise, self.space, self.dt = plant, noise, plant.space, plant.dt
        self.state: Array = np.zeros(plant.space.nx)
        self._rng = np.random.default_rng(0)

    def reset(self, seed: int, first: Array) -> Array:
        """Begin where the task says."""
        self._rng = np.random.default_rng(seed)
        self.state = self.plant.reset(seed, first)
        return self._read()

    def step(self, action: Array) -> tuple[Array, bool]:
        """Act."""
        self.state, over = self.plant.step(action)
        return self._read(), over

    def _read(self) -> Array:
        return self.state + self.noise * self._rng.standard_normal(len(self.noise))


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kind of plant and what is asked of it.

    Args:
        plant: Makes the one of a seed.
        baseline: What is known.
        true: Model of a seed that knows everything.
        reward: Of a seed.
        start: First states, from a generator and a count; where something is followed, relative to its first state.
        steps: Of an episode.
        limit: Largest action, one for all or [nu].
        over: From states to where an episode is over; nowhere where missing.
        angles: Positions that repeat after a turn.
        fastest: Largest acceleration that a network alone may give.
        bound: Largest dry friction that may be learned, zero for none [N or N·m].
        noise: Standard deviation of each measured state entry.
        horizon: Steps of a plan.
        positions: Whether the plant differs along positions that are not angles, or along which of them.
        collected: Steps of an episode that is learned from.
        explored: The same of networks that know nothing, which are given more and fitted less often.
        episodes: Of a round.
        alone_episodes: The same of networks that know nothing; as many where missing.
        spring: Typical force of learned springs, zero for none [N or N·m].
        window: Steps that our model is to predict.
        alone_window: Steps that networks that know nothing are to predict.
        practice: First states of policies in training; the task's where missing.
        dt: Seconds of a step.
        off: What a model that is as good as it can be is off by after some steps, shape [nx]; the noise where missing.
        end: Cost of a plan's last state; nothing where missing.
        followed: States that are to be followed, of a seed, shape [T, nx]; nothing where missing.
        planner: Of a seed; iCEM with one minus the reward where missing.
        excite: Who acts first; random actions of the whole range where missing.
        points: Seconds of plant data at which methods are evaluated, where they are not those of the other plants.
    """

    plant: Callable[[int], Plant]
    baseline: Callable[[], Baseline]
    true: Callable[[int], ResidualDynamics]
    reward: Callable[[int], Reward]
    start: Callable[[torch.Generator, int], Tensor]
    steps: int
    limit: float | Array
    angles: tuple[str, ...]
    fastest: float
    bound: float
    noise: Array
    horizon: int
    collected: int
    explored: int
    episodes: int = 1
    alone_episodes: int | None = None
    practice: Callable[[torch.Generator, int], Tensor] | None = None
    positions: bool | Sequence[str] = True
    over: Callable[[Tensor], Tensor] | None = None
    spring: float = 0.0
    window: int = 20
    alone_window: int = 2
    dt: float = DT
    off: Array | None = None
    end: Callable[[Tensor], Tensor] | None = None
    followed: Callable[[int], Array] | None = None
    planner: Callable[[int], Planning] | None = None
    excite: Excite | None = None
    points: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def task(self, seed: int) -> Task:
        """Return the task: one minus the reward is the cost of a step."""
        reward, end, space, start = self.reward(seed), self.end or (lambda x: 0 * x[..., 0]), self.baseline().space, self.start
        bound = torch.as_tensor(np.broadcast_to(self.limit, (space.nu,)).copy()).float()
        if self.followed is None:
            cost = FunctionCost(space=space, running=lambda x, u, r: 1 - reward(x, u), terminal=lambda x, r: end(x))
        else:
            states = torch.from_numpy(self.followed(seed)).float()
            cost = FunctionCost(space=space, running=lambda x, u, r: 1 - reward(x, u, r), terminal=lambda x, r: end(x), reference=states,
                                trajectory=True)
            start = lambda generator, count: states[0] + self.start(generator, count)  # noqa: E731
        return Task(cost=cost, start=start, practice=self.practice, steps=self.steps, low=-bound, high=bound, over=self.over)

    def earned(self, seed: int) -> Callable[[Array, Array, int], float]:
        """Return the reward of a state [nx] and an action [nu] at a step."""
        reward, states = self.reward(seed), None if self.followed is None else torch.from_numpy(self.followed(seed))

        def at(state: Array, action: Array, t: int) -> float:
            return float(reward(torch.from_numpy(state), torch.from_numpy(action), *([] if states is None else [states[t]])))

        return at

    def nominal(self) -> ResidualDynamics:
        """Return what is known."""
        return ResidualDynamics(self.baseline())

    def learned(self, seed: int) -> ResidualDynamics:
        """Return what is known with dry friction of every joint, and springs, where the case says so, to be learned."""
        base = self.baseline()
        friction = [DryFriction(nv=base.space.nv, features=[Feature(source="velocity", transform="abs")], sizes=[base.space.nv],
                                bound=self.bound, hidden=(), seed=seed)] if self.bound else []
        springs = [JointSprings(nq=base.space.nq, units=2, scale=self.spring)] if self.spring else []
        return ResidualDynamics(base, [*friction, *springs])

    def alone(self, seed: int) -> ResidualDynamics:
        """Return a network that knows nothing."""
        return network_alone(self.baseline().space, dt=self.dt, bound=self.fastest, angles=self.angles, positions=self.positions,
                             hidden=(64, 64), seed=seed)


class Simulated(Plant):
    """A plant of the other benchmarks.

    Args:
        plant: Has a state, and runs for a time under an action.
        space: Of its states.
    """

    def __init__(self, plant: Any, space: StateSpace) -> None:
        self.plant, self.space, self.dt = plant, space, DT

    def reset(self, seed: int, first: Array) -> Array:
        """Begin where the task says."""
        self.plant.state = first
        return self._state()

    def step(self, action: Array) -> tuple[Array, bool]:
        """Act."""
        self.plant.run(DT, action)
        return self._state(), False

    def _state(self) -> Array:
        found: Array = self.plant.state
        return found


def drawn(seed: int, usual: Mapping[str, float]) -> dict[str, float]:
    """Return the properties of a seed's plant, each within fifteen hundredths of the usual one."""
    rng = np.random.default_rng(40_000 + seed)
    return {n: x * float(rng.uniform(0.85, 1.15)) for n, x in usual.items()}
