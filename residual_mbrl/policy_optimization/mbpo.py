"""A model-free learner in a model, from states that the plant was in: model-based policy optimisation (MBPO, Janner et al. 2019).

stable-baselines3's SAC sees branches: they begin in states of the plant's logs and go on in the model for a few steps, in which its errors
have no time to grow. Of each of its batches a share are transitions of the plant itself.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.policies.networks import MLPPolicy, NetworkPolicy
from residual_mbrl.policy_optimization.short_horizon import Progress, Trained, TrainingRound, mean_cost
from residual_mbrl.tasks import Task
from residual_mbrl.trajectories import Trajectory
from residual_mbrl.windows import cut_windows

Array = NDArray[np.float64]
RANDOM = 10
"""Steps of all branches in which actions are drawn from the whole range, before the first gradient step."""
SPREADS = 5.0
"""Standard deviations of the logs' costs in a unit of reward: values come to some tens, which a critic learns quickly."""
ENTROPY = "auto_0.02"
"""Weight of the entropy at the start, in units of reward; SAC goes on from there."""


@dataclass(frozen=True, kw_only=True)
class MBPOOptions:
    """How SAC is trained in a model.

    Args:
        worlds: Branches at once.
        length: Steps of a branch: as far as the model is to be trusted.
        iterations: Steps of all branches.
        updates: Gradient steps after each of them.
        batch: Transitions of a gradient step.
        real: Share of them that are the plant's.
        kept: Latest transitions of the model that are drawn from.
        hidden: Units of each layer of SAC's two values.
        rate: Learning rate of Adam.
        discount: Of each step.
        evaluate_every: Iterations from one evaluation to the next; the best policy found is the result.
        evaluated: Episodes of an evaluation.
        seed: Of everything drawn.
        dtype: Of the worlds and the policy.
    """

    worlds: int = 32
    length: int = 10
    iterations: int = 4000
    updates: int = 5
    batch: int = 128
    real: float = 0.05
    kept: int = 100_000
    hidden: Sequence[int] = (128, 128)
    rate: float = 1e-3
    discount: float = 0.99
    evaluate_every: int = 50
    evaluated: int = 64
    seed: int = 0
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        """Check the numbers."""
        names = ("worlds", "length", "iterations", "updates", "batch", "rate", "evaluate_every", "evaluated")
        positive = {n: getattr(self, n) for n in names}
        if not all(x > 0 for x in positive.values()) or not 0 < self.discount < 1 or not 0 <= self.real < 1 or self.kept < self.worlds:
            raise ValueError(f"MBPOOptions: expected positive {positive}, discount in (0, 1), real in [0, 1) and kept >= worlds, received "
                             f"{self.discount}, {self.real} and {self.kept}")


@dataclass(frozen=True, kw_only=True)
class Transitions:
    """Steps of a plant: states and next ones [N, nx], actions [N, nu], running costs [N], and whether the task was over after it [N]."""

    states: Array
    actions: Array
    following: Array
    costs: Array
    over: NDArray[np.bool_]


def transitions(dynamics: ResidualDynamics, task: Task, logs: Sequence[Trajectory]) -> Transitions:
    """Return the steps in logs that hold the state, but those from where the task is over.

    Raises:
        ValueError: if their columns are not the state's, no such step was recorded whole, or the cost of one is not finite.
    """
    names = dynamics.baseline.space.state_names
    strange = next((t for t in logs if t.measurement_names != names), None)
    if strange is not None:
        raise ValueError(f"mbpo: {strange.name}: expected logs of the state {names}, received columns {strange.measurement_names}")
    steps = cut_windows(logs, dynamics.dt, horizon=1, stride=1, around=0.0)
    whole = steps.recorded.all(-1).all(-1) & ~torch.from_numpy(_over(task, steps.measurements[:, 0]))
    if not bool(whole.any()):
        raise ValueError("mbpo: no step of the logs was recorded whole, from where the task goes on")
    states, following = steps.measurements[whole].unbind(1)
    actions = steps.actions[whole, 0].clamp(task.low.double(), task.high.double())
    return Transitions(states=states.numpy(), actions=actions.numpy(), following=following.numpy(),
                       costs=task.recorded(states, actions, "mbpo").numpy(), over=_over(task, following))


def mbpo(dynamics: ResidualDynamics, policy: NetworkPolicy, task: Task, logs: Sequence[Trajectory], options: MBPOOptions | None = None, *,
         progress: Progress | None = None) -> Trained:
    """Train a policy by SAC in branches of a model from states of logs.

    Rewards are by how much running costs are below their mean in the logs. Where the task is over before its time, all later steps
    count as the most costly one of the logs. Residuals' memory begins with the first command of a branch. The same arguments give the
    same policy.

    Args:
        dynamics: The model; of an ensemble each step of a branch is of a member drawn anew.
        policy: Where SAC's mean begins, and what it sees; not changed.
        task: What is to be done, at a cost that is the same at every step.
        logs: Of the plant, with the columns of the state.
        options: How.
        progress: Called at each evaluation.

    Raises:
        ValueError: if policy, task, logs and model do not fit.
        ModuleNotFoundError: if stable-baselines3 is not installed.
    """
    from residual_mbrl.policy_optimization.model_free import SAC, MixedReplay, TanhActorPolicy  # noqa: PLC0415  # an optional dependency

    check_mbpo(policy, task)
    o = options or MBPOOptions()
    best, current = copy.deepcopy(policy).to(o.dtype), copy.deepcopy(policy).to(o.dtype)
    branches = Branches(dynamics, current, task, transitions(dynamics, task, logs), o)
    begin, cost, rounds = perf_counter(), float("inf"), list[TrainingRound]()

    def judged(local: dict[str, Any], _: dict[str, Any]) -> bool:
        nonlocal cost, best
        iteration = local["self"].num_timesteps // o.worlds
        if iteration % o.evaluate_every and iteration != o.iterations:
            return True
        for theirs, own in _paired(learner.actor, current):
            own.copy_(theirs)
        found = mean_cost(dynamics, current, task, count=o.evaluated, seed=o.seed + 1, dtype=o.dtype)
        if found < cost:
            cost, best = found, copy.deepcopy(current)
        rounds.append(TrainingRound(iteration=iteration, cost=found, horizon=o.length, gradient=float("nan"), value_error=float("nan"),
                                    seconds=perf_counter() - begin))
        if progress is not None:
            progress(rounds[-1])
        return True

    with _own_random_numbers():
        learner = SAC(TanhActorPolicy, branches.env(), learning_rate=o.rate, buffer_size=o.kept, learning_starts=RANDOM * o.worlds,
                      batch_size=o.batch, gamma=o.discount, gradient_steps=o.updates, ent_coef=ENTROPY, seed=o.seed, device="cpu",
                      replay_buffer_class=MixedReplay, replay_buffer_kwargs={"given": branches.given(), "share": o.real},
                      policy_kwargs={"net_arch": {"pi": list(policy.hidden), "qf": list(o.hidden)}})
        for theirs, own in _paired(learner.actor, current):
            theirs.copy_(own)
        learner.learn(o.worlds * o.iterations, callback=judged)
    return Trained(policy=best, value=None, cost=cost, rounds=tuple(rounds), skipped=0, steps=o.worlds * o.iterations)


def check_mbpo(policy: object, task: Task) -> None:
    """Look whether ``mbpo`` can train a policy for a task.

    Raises:
        ValueError: if it cannot.
        ModuleNotFoundError: if stable-baselines3 is not installed.
    """
    import residual_mbrl.policy_optimization.model_free  # noqa: F401, PLC0415  # says what is to be installed

    if not isinstance(policy, MLPPolicy) or policy.goal_size:
        raise ValueError(f"mbpo: expected an MLPPolicy without goals, as the mean of SAC's own noise, received {type(policy).__name__}")
    if task.cost.references.shape[-2] > 2:
        raise ValueError("mbpo: the references of the cost change from step to step, and the policy does not see the time")


class Branches:
    """What SAC is shown: rewards and observations of the plant's transitions, and of branches that begin in their states.

    Args:
        dynamics: The model.
        policy: Says what is observed.
        task: Gives cost and end.
        real: The plant's transitions.
        options: How.
    """

    def __init__(self, dynamics: ResidualDynamics, policy: NetworkPolicy, task: Task, real: Transitions, options: MBPOOptions) -> None:
        self.dynamics, self.policy, self.task, self.real, self.options = dynamics, policy, task, real, options
        self._starts = np.concatenate([real.states, real.following[~real.over]])
        self._low, self._high = policy.low.double().numpy(), policy.high.double().numpy()
        self._usual, self._unit = float(real.costs.mean()), SPREADS * float(real.costs.std()) or 1.0
        self._lost = (float(real.costs.max()) - self._usual) * options.discount / (1 - options.discount)

    def env(self) -> Any:
        """Return branches in the model as an environment of stable-baselines3."""
        from residual_mbrl.model_env import ModelEnv  # noqa: PLC0415  # optional dependencies
        from residual_mbrl.policy_optimization.model_free import BaselinesEnv  # noqa: PLC0415

        def reward(x: Array, u: Array, y: Array) -> Array:
            return self._rewards(self.task.running(torch.from_numpy(x), torch.from_numpy(u)).numpy(), _over(self.task, torch.from_numpy(y)))

        return BaselinesEnv(ModelEnv(
            self.dynamics, count=self.options.worlds, start=lambda rng, n: self._starts[rng.integers(len(self._starts), size=n)],
            horizon=self.options.length, observe=self._seen, reward=reward, ends=lambda y: _over(self.task, torch.from_numpy(y)),
            action_range=(self._low, self._high), dtype=self.options.dtype))

    def given(self) -> tuple[Array, ...]:
        """Return the plant's transitions as ``MixedReplay`` takes them."""
        real = self.real
        return (self._seen(real.states), 2 * (real.actions - self._low) / (self._high - self._low) - 1, self._seen(real.following),
                real.over.astype(np.float64), self._rewards(real.costs, real.over))

    def _rewards(self, costs: Array, over: NDArray[np.bool_]) -> Array:
        return (self._usual - costs - self._lost * over) / self._unit

    def _seen(self, states: Array) -> Array:
        with torch.no_grad():
            found: Array = self.policy.seen(torch.from_numpy(states)).numpy()
        return np.nan_to_num(found, posinf=0.0, neginf=0.0)  # of a world that has failed, whose value does not count


def _over(task: Task, states: Tensor) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = np.zeros(len(states), bool) if task.over is None else task.over(states).numpy()
    return found


def _paired(actor: Any, policy: NetworkPolicy) -> list[tuple[Tensor, Tensor]]:
    """Return each weight of the mean of SAC's actor with that of the policy, as data that may be written into."""
    layers = [m for m in (*actor.latent_pi, actor.mu) if isinstance(m, nn.Linear)]
    own = zip(policy.network.weights, policy.network.biases, strict=True)
    return [pair for layer, (weight, bias) in zip(layers, own, strict=True)
            for pair in ((layer.weight.data, weight.data.T), (layer.bias.data, bias.data))]


@contextmanager
def _own_random_numbers() -> Iterator[None]:
    """Give the global generators, which stable-baselines3 seeds, back as they were."""
    before = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
