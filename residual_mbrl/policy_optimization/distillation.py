"""A slow expert, such as a planner, made into a quick policy: behaviour cloning on states that the policy itself comes to (DAgger)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.policies.base import Policy
from residual_mbrl.policies.networks import NetworkPolicy
from residual_mbrl.policy_optimization.regression import outputs, train
from residual_mbrl.policy_rollouts import policy_rollout
from residual_mbrl.rollouts import Backend
from residual_mbrl.tasks import Task, WithoutEnd


@dataclass(frozen=True, kw_only=True)
class DistillationOptions:
    """How an expert is imitated.

    Args:
        rounds: Rounds of data; in the first the expert acts, in all others the policy does and the expert says what it would have done.
        episodes: Of each round.
        every: Steps between states that are labelled.
        epochs: Times that all data so far are gone through in each round.
        samples: Of a step of Adam.
        rate: Learning rate of Adam.
        largest: Norm that gradients are cut to.
        seed: Of everything drawn.
    """

    rounds: int = 5
    episodes: int = 8
    every: int = 1
    epochs: int = 100
    samples: int = 256
    rate: float = 3e-3
    largest: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        numbers = {n: getattr(self, n) for n in ("rounds", "episodes", "every", "epochs", "samples", "rate", "largest")}
        if not all(x > 0 for x in numbers.values()):
            raise ValueError(f"DistillationOptions: expected positive numbers, received {numbers}")


@dataclass(frozen=True, kw_only=True)
class DistillationRound:
    """Mean cost of an episode of whoever acted, root mean square difference of actions after the fit, and states so far."""

    cost: float
    difference: float
    states: int


@dataclass(frozen=True, kw_only=True)
class Distilled:
    """The policy after the last round, and every round."""

    policy: NetworkPolicy
    rounds: tuple[DistillationRound, ...]


def distil(dynamics: ResidualDynamics, expert: Policy, policy: NetworkPolicy, task: Task, options: DistillationOptions | None = None, *,
           progress: Callable[[DistillationRound], None] | None = None, backend: Backend = "auto") -> Distilled:
    """Imitate an expert in a model (Ross et al. 2011).

    Args:
        dynamics: Where episodes happen.
        expert: Acts and labels; a batch of states at once.
        policy: Where to begin; not changed.
        task: Where episodes begin and how long they are.
        options: How.
        progress: Called after each round.
        backend: Of rollouts and fits.
    """
    options = options or DistillationOptions()
    policy, generator = copy.deepcopy(policy), torch.Generator().manual_seed(options.seed)
    dtype = policy.network.weights[0].dtype
    adam, window = torch.optim.Adam(policy.parameters(), options.rate, fused=True), WithoutEnd(task.cost)
    seen: list[Tensor] = []
    said: list[Tensor] = []
    rounds: list[DistillationRound] = []
    for k in range(options.rounds):
        first = task.draw(generator, options.episodes, dtype=dtype)
        with torch.no_grad():
            acted = policy_rollout(dynamics, policy if k else expert, first, window, task.steps, backend=backend)
            states = acted.states[:, : -1 : options.every, : policy.space.nx].reshape(-1, policy.space.nx)
            states = states[torch.isfinite(states).all(-1)]
            seen.append(states)
            said.append(acted.actions[:, :: options.every].reshape(-1, policy.space.nu) if not k else expert(states))
        x, u = torch.cat(seen), torch.cat(said)
        if k == 0:
            policy.normalise(x)
        _clone(policy, x, u, adam, options, generator, backend)
        off = (outputs(policy, x, backend=backend) - u).square().mean().sqrt()
        rounds.append(DistillationRound(cost=float(acted.running.sum(-1).mean()), difference=float(off), states=len(x)))
        if progress is not None:
            progress(rounds[-1])
    return Distilled(policy=policy, rounds=tuple(rounds))


def _clone(policy: NetworkPolicy, x: Tensor, u: Tensor, adam: torch.optim.Adam, options: DistillationOptions,
           generator: torch.Generator, backend: Backend) -> None:
    """Fit a policy's mean to actions, differences counted in halves of the range."""
    scale = float((policy.high - policy.low).square().mean()) / 4
    order = torch.stack([torch.randperm(len(x), generator=generator) for _ in range(options.epochs)])
    train(policy, x, u, adam, order, options.samples, largest=options.largest, unit=scale, backend=backend)
