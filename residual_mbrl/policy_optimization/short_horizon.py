"""Policies trained by gradients through short windows of many parallel worlds.

``apg`` follows the gradient of a window's cost alone (analytic policy gradients, truncated); ``shac`` ends each window with a learned
value (Xu et al. 2022, Accelerated policy learning with parallel differentiable simulation). In both worlds go on from window to window
until their episode ends, and the horizon is cut where the closed loop's gradients explode.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.files import dump_json
from residual_mbrl.policies.networks import NetworkPolicy
from residual_mbrl.policies.value import Value
from residual_mbrl.policy_optimization.critic import CriticOptions, fit_value
from residual_mbrl.policy_optimization.horizon import usable_horizon
from residual_mbrl.policy_optimization.regression import apply
from residual_mbrl.policy_optimization.saved_state import load_tensors, optimizer_tensors, restore, save_tensors
from residual_mbrl.policy_rollouts import Loop, PolicyRollout, policy_gradient, policy_rollout
from residual_mbrl.rollouts import Backend
from residual_mbrl.tasks import Task, WithoutEnd

log = logging.getLogger(__name__)
AUDITED = 16
"""Worlds that the horizon is judged by."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How a policy is trained.

    Args:
        worlds: Parallel worlds, for each member of an ensemble.
        horizon: Steps of a window at most.
        iterations: Windows of all worlds, each followed by a step of Adam.
        rate: Learning rate of Adam at the start; it falls linearly to a twentieth.
        discount: Of each step.
        largest: Norm that gradients are cut to.
        penalty: Standard deviations of a window's cost over the members of an ensemble that are added to its mean.
        audit_every: Iterations from one judgement of the horizon to the next; 0 for never.
        explosion: Growth of small changes from which on the horizon is cut.
        evaluate_every: Iterations from one evaluation to the next; the best policy found is the result.
        evaluated: Episodes of an evaluation.
        seed: Of everything drawn.
        critic: How the value is fitted.
        dtype: Of the worlds.
    """

    worlds: int = 64
    horizon: int = 32
    iterations: int = 500
    rate: float = 1e-2
    discount: float = 0.99
    largest: float = 1.0
    penalty: float = 0.0
    audit_every: int = 50
    explosion: float = 1e4
    evaluate_every: int = 25
    evaluated: int = 64
    seed: int = 0
    critic: CriticOptions = field(default_factory=CriticOptions)
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        """Check the numbers."""
        positive = {n: getattr(self, n) for n in ("worlds", "horizon", "iterations", "rate", "largest", "evaluate_every", "evaluated")}
        if not all(x > 0 for x in positive.values()) or not 0 < self.discount <= 1 or self.penalty < 0 or self.audit_every < 0:
            raise ValueError(f"TrainingOptions: expected positive {positive}, discount in (0, 1] and penalty >= 0, received "
                             f"{self.discount} and {self.penalty}")


@dataclass(frozen=True, kw_only=True)
class TrainingRound:
    """One evaluation: iteration, mean cost of an episode [cost], horizon in use [steps], gradient norm, error of the value, seconds."""

    iteration: int
    cost: float
    horizon: int
    gradient: float
    value_error: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training found.

    Attributes:
        policy: The best by the mean cost of its episodes in the model.
        value: The last; None of ``apg``.
        cost: That mean cost.
        rounds: Every evaluation.
        skipped: Iterations whose gradient was not finite, without effect.
        steps: Steps of worlds simulated for gradients.
    """

    policy: NetworkPolicy
    value: Value | None
    cost: float
    rounds: tuple[TrainingRound, ...]
    skipped: int
    steps: int


Progress = Callable[[TrainingRound], None]


def apg(dynamics: ResidualDynamics, policy: NetworkPolicy, task: Task, options: TrainingOptions | None = None, *,
        checkpoint: Path | None = None, progress: Progress | None = None, backend: Backend = "auto") -> Trained:
    """Train a policy by the gradient of each window's cost; see ``shac`` for the arguments."""
    return _train(dynamics, policy, None, task, options or TrainingOptions(), checkpoint, progress, backend)


def shac(dynamics: ResidualDynamics, policy: NetworkPolicy, task: Task, options: TrainingOptions | None = None, *,
         value: Value | None = None, checkpoint: Path | None = None, progress: Progress | None = None,
         backend: Backend = "auto") -> Trained:
    """Train a policy by the gradient of each window's cost and of the value of its last state.

    Args:
        dynamics: The model; of an ensemble every member moves worlds of its own.
        policy: Where to begin; not changed.
        task: What is to be done.
        options: How.
        value: Where to begin; one that looks as the policy does where missing.
        checkpoint: File from which a run that was stopped goes on, to the same result; it stays there.
        progress: Called at each evaluation.
        backend: Of rollouts and fits.

    Raises:
        ValueError: if task, policy and model do not fit.
        ModelError: if the checkpoint belongs to another problem.
    """
    options = options or TrainingOptions()
    value = value or Value(space=policy.space, features=policy.features.features, hidden=policy.hidden or (64, 64), seed=options.seed)
    return _train(dynamics, policy, value, task, options, checkpoint, progress, backend)


class Run:
    """The state of a training."""

    def __init__(self, dynamics: ResidualDynamics, policy: NetworkPolicy, value: Value | None, task: Task,
                 options: TrainingOptions) -> None:
        self.dynamics, self.task, self.options, self.window = dynamics, task, options, WithoutEnd(task.cost)
        self.policy, self.value = copy.deepcopy(policy).to(options.dtype), copy.deepcopy(value)
        if self.value is not None:
            self.value.to(options.dtype)
        self.slow, self.best = copy.deepcopy(self.value), copy.deepcopy(self.policy)
        self.generator = torch.Generator().manual_seed(options.seed)
        self.members = (dynamics.members,) if dynamics.members else ()
        self.state = self._fresh(options.worlds)
        # episodes end at different times, so that windows see all of them
        self.age = torch.randint(task.steps, (options.worlds,), generator=self.generator)
        self.age[: max(1, options.worlds // 4)] = 0
        self.adam = torch.optim.Adam(self.policy.parameters(), options.rate, betas=(0.7, 0.95), fused=True)
        self.critic_adam = None if self.value is None else torch.optim.Adam(self.value.parameters(), options.critic.rate,
                                                                            betas=(0.7, 0.95), fused=True)
        self.meta: dict[str, Any] = {"iteration": 0, "horizon": options.horizon, "best": float("inf"), "skipped": 0, "steps": 0,
                                     "seconds": 0.0, "rounds": []}

    def _fresh(self, count: int) -> Tensor:
        first = self.task.draw(self.generator, count, dtype=self.options.dtype, practice=True)
        if first.shape[-1] != self.dynamics.baseline.space.nx:
            raise ValueError(f"training: the task begins in states of {first.shape[-1]} entries, the model has "
                             f"{self.dynamics.baseline.space.nx}")
        if len(self.dynamics.space.state_names) > first.shape[-1]:
            with torch.no_grad():
                first = self.dynamics.initial_state(first, self.policy(first))
        return first.expand(*self.members, *first.shape).clone()

    def tensors(self) -> dict[str, Tensor]:
        """Return all that changes, by name."""
        found = {"state": self.state, "age": self.age, "generator": self.generator.get_state(),
                 **optimizer_tensors("policy", self.policy, self.adam), **{f"best.{n}": t for n, t in self.best.state_dict().items()}}
        if self.value is not None and self.slow is not None and self.critic_adam is not None:
            found |= {**optimizer_tensors("value", self.value, self.critic_adam),
                      **{f"slow.{n}": t for n, t in self.slow.state_dict().items()}}
        return found

    def set(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Go on from what ``tensors`` returned."""
        self.state, self.age, self.meta = tensors["state"], tensors["age"], meta
        self.generator.set_state(tensors["generator"])
        restore("policy", self.policy, self.adam, tensors)
        restore("best", self.best, None, tensors)
        if self.value is not None and self.slow is not None:
            restore("value", self.value, self.critic_adam, tensors)
            restore("slow", self.slow, None, tensors)

    def iterate(self, backend: Backend) -> tuple[float, float]:
        """Make one step of the policy and of the value; return the gradient's norm and the value's error."""
        o, horizon, meta = self.options, self.meta["horizon"], self.meta
        shape = (*self.state.shape[:-1], horizon, self.policy.noise_size)
        noise = torch.randn(shape, generator=self.generator, dtype=o.dtype) if self.policy.noise_size else None
        loop = Loop(noise=noise, value=self.slow, discount=o.discount)
        found = policy_gradient(self.dynamics, self.policy, self.state, self.window, horizon, loop, rollout=True, backend=backend,
                                weighting=self._weighting if self.members and o.penalty else None)
        rollout = found.rollout
        if rollout is None:
            raise RuntimeError("training: no rollout")
        for group in self.adam.param_groups:
            group["lr"] = o.rate * max(0.05, 1 - meta["iteration"] / o.iterations)
        meta["steps"] += self.state[..., 0].numel() * horizon
        slopes = torch._foreach_div(list(found.weights.values()), found.costs.numel())
        norm, error = apply(self.policy, dict(zip(found.weights, slopes, strict=True)), self.adam, o.largest), float("nan")
        if not math.isfinite(norm):
            norm, meta["skipped"] = float("nan"), meta["skipped"] + 1
        elif self.value is not None and self.slow is not None and self.critic_adam is not None:
            error = fit_value(self.value, self.slow, self.critic_adam, rollout.states, rollout.running, o.discount, o.critic,
                              self.generator, backend)
        self._go_on(rollout, horizon)
        if o.audit_every and meta["iteration"] % o.audit_every == 0:
            self._judge_horizon(backend)
        meta["iteration"] += 1
        return norm, error

    def _judge_horizon(self, backend: Backend) -> None:
        """Set the horizon to what gradients bear from where worlds are, whatever it was."""
        o, few = self.options, self.state[..., :AUDITED, :]
        seen = policy_rollout(self.dynamics, self.policy, few, self.window, o.horizon, backend=backend)
        usable = usable_horizon(self.dynamics, self.policy, seen.states, seen.actions, threshold=o.explosion)
        if usable < self.meta["horizon"]:
            log.info("training: gradients explode after %d of %d steps, the horizon is cut", usable, o.horizon)
        self.meta["horizon"] = min(o.horizon, usable)

    def _weighting(self, costs: Tensor) -> Tensor:
        """Return the gradient of the sum over worlds of ``penalty`` deviations over members beside each cost."""
        off = costs - costs.mean(0)
        return (1 + self.options.penalty * off / off.square().mean(0).sqrt().clamp_min(1e-12))

    def _go_on(self, rollout: PolicyRollout, horizon: int) -> None:
        """Take the last states as the next first ones; all members of a world go on from one of theirs."""
        last = rollout.states[..., -1, :].clone()
        if self.members:
            chosen = torch.randint(self.members[0], (last.shape[1],), generator=self.generator)
            last = last[chosen, torch.arange(last.shape[1])].expand_as(last).clone()
        self.age = self.age + horizon
        over = (self.age >= self.task.steps) | ~torch.isfinite(last).all(-1).reshape(-1, last.shape[-2]).all(0)
        if self.task.over is not None:
            over |= self.task.over(last).reshape(-1, last.shape[-2]).any(0)
        fresh = self._fresh(self.options.worlds)
        self.state = torch.where(over[:, None], fresh, last)
        self.age[over] = 0

    def evaluate(self, backend: Backend) -> float:
        """Return the mean cost of episodes of the policy so far; see ``mean_cost``."""
        o = self.options
        return mean_cost(self.dynamics, self.policy, self.task, count=o.evaluated, seed=o.seed + 1, dtype=o.dtype, backend=backend)


def mean_cost(dynamics: ResidualDynamics, policy: NetworkPolicy, task: Task, *, count: int, seed: int, dtype: torch.dtype,
              backend: Backend = "auto") -> float:
    """Return the mean cost of episodes of the mean policy in a model, over all members of an ensemble; infinite where one is not finite.

    Steps that are missing where the task is over before its time count as the most costly one before, as ``learn`` counts them.

    Args:
        dynamics: The model.
        policy: Without goals.
        task: Gives first states, steps and cost.
        count: Episodes.
        seed: Of the first states.
        dtype: Of the worlds.
        backend: Of the rollout.
    """
    x = task.starts(seed, count, dtype=dtype)
    if dynamics.members:
        x = x.expand(dynamics.members, *x.shape)
    found = policy_rollout(dynamics, policy, x, task.cost, task.steps, backend=backend)
    running = found.running
    if task.over is not None:
        ended = task.over(found.states[..., 1:-1, :]).int().cummax(-1).values.bool()  # before the steps from the second on
        missing = torch.cat([torch.zeros_like(ended[..., :1]), ended], -1)
        running = torch.where(missing, running.masked_fill(missing, float("-inf")).amax(-1, keepdim=True), running)
    return float(running.sum(-1).mean().nan_to_num(float("inf")))


def _train(dynamics: ResidualDynamics, policy: NetworkPolicy, value: Value | None, task: Task, options: TrainingOptions,
           checkpoint: Path | None, progress: Progress | None, backend: Backend) -> Trained:
    if policy.goal_size:
        raise ValueError("training: policies with goals are not trained here")
    run, mark = Run(dynamics, policy, value, task, options), ""
    if checkpoint is not None:
        mark = dump_json({"options": {**asdict(options), "dtype": str(options.dtype)}, "policy": policy.describe(), "steps": task.steps,
                          "values": dynamics.values, "value": None if value is None else value.describe()}, indent=None)
        saved = load_tensors(checkpoint, mark)
        if saved is not None:
            run.set(*saved)
    while run.meta["iteration"] < options.iterations:
        begin = perf_counter()
        norm, error = run.iterate(backend)
        due = run.meta["iteration"] % options.evaluate_every == 0 or run.meta["iteration"] == options.iterations
        cost = run.evaluate(backend) if due else float("inf")
        run.meta["seconds"] += perf_counter() - begin
        if not due:
            continue
        if cost < run.meta["best"]:
            run.meta["best"] = cost
            run.best.load_state_dict(run.policy.state_dict())
        entry = TrainingRound(iteration=run.meta["iteration"], cost=cost, horizon=run.meta["horizon"], gradient=norm, value_error=error,
                              seconds=run.meta["seconds"])
        run.meta["rounds"].append(asdict(entry))
        if checkpoint is not None:
            save_tensors(checkpoint, run.tensors(), run.meta, mark)
        if progress is not None:
            progress(entry)
    rounds = tuple(TrainingRound(**r) for r in run.meta["rounds"])
    return Trained(policy=run.best, value=run.value, cost=run.meta["best"], rounds=rounds, skipped=run.meta["skipped"],
                   steps=run.meta["steps"])
