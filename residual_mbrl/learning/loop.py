"""``learn``: collect from a plant, identify and fit a model, optimise a policy in it, evaluate, and again.

Every round lies in a folder of its own: episodes, model, policy and figures, each written under a temporary name and renamed. A run that is
killed goes on from what is there, to the same result: whatever is drawn depends on the run's seed, the round and the place alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.errors import ModelError
from residual_mbrl.exploration.excitation import Excite, random_excitation
from residual_mbrl.files import dump_json, load_json, write_json
from residual_mbrl.fitting import FitOptions, fit
from residual_mbrl.identification import IdentifyOptions, identify
from residual_mbrl.learning.episodes import Act, Episode, collect, usable
from residual_mbrl.learning.models import load_model, save_model
from residual_mbrl.learning.plants import LoggedPlant, Plant
from residual_mbrl.model import Model
from residual_mbrl.policies.networks import NetworkPolicy
from residual_mbrl.policies.numpy_form import NumpyPolicy
from residual_mbrl.policies.storage import load_policy, save_policy
from residual_mbrl.policy_optimization.short_horizon import TrainingOptions, apg, shac
from residual_mbrl.sensors import state_sensor
from residual_mbrl.tasks import Task
from residual_mbrl.trajectories import Trajectory
from residual_mbrl.windows import Windows, cut_windows

Array = NDArray[np.float64]
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a run may use.

    Args:
        rounds: At most.
        seconds: Of the plant in all that is learned from.
        episodes: Of each round.
        steps: Of an episode that is learned from; the task's where missing.
        evaluations: Episodes of each evaluation, not learned from.
    """

    rounds: int = 3
    seconds: float = float("inf")
    episodes: int = 1
    steps: int | None = None
    evaluations: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.rounds < 1 or self.episodes < 1 or self.seconds <= 0 or self.evaluations < 0 or (self.steps is not None and self.steps < 2):
            raise ValueError(f"Budget: expected rounds and episodes >= 1, seconds > 0, steps >= 2, received {self}")


@dataclass(frozen=True, kw_only=True)
class LearnOptions:
    """How a run learns.

    Args:
        window: Steps over which the model is to predict.
        stride: Steps from one window to the next.
        noise: Standard deviation of each measured state entry, [nx] or a number.
        identify: How parameters are found; None leaves them.
        fit: How residuals are fitted; None leaves them.
        training: How the policy is optimised.
        method: By which algorithm.
        seed: Of the run.
    """

    window: int = 25
    stride: int = 5
    noise: float | Sequence[float] = 1e-3
    identify: IdentifyOptions | None = field(default_factory=IdentifyOptions)
    fit: FitOptions | None = field(default_factory=FitOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    method: Literal["apg", "shac"] = "apg"
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class LearnedRound:
    """What a round came to.

    Attributes:
        round: Its number, from 0.
        seconds: Of the plant that were learned from so far.
        collected: Mean cost of the round's own episodes.
        predicted: Mean cost of the task's episodes under the policy in the model.
        evaluated: Mean cost of evaluation episodes on the plant; NaN where there are none.
        values: Physical parameters.
    """

    round: int
    seconds: float
    collected: float
    predicted: float
    evaluated: float
    values: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Learned:
    """The last model, the policy that did best in evaluations (the last where there are none), and every round."""

    dynamics: ResidualDynamics
    policy: NetworkPolicy
    rounds: tuple[LearnedRound, ...]


def learn(plant: Plant | LoggedPlant, dynamics: ResidualDynamics, task: Task, policy: NetworkPolicy, budget: Budget, out: Path,
          options: LearnOptions | None = None, *, excite: Excite | None = None,
          progress: Callable[[LearnedRound], None] | None = None) -> Learned:
    """Learn to do a task on a plant from little of its time.

    In the first round ``excite`` acts, in all others the policy of the round before. A run that was stopped goes on from its folder.

    Args:
        plant: Acted on; logs of one where nothing can be.
        dynamics: What is known, with residuals for what is not; not changed.
        task: What is to be done.
        policy: Where to begin; not changed.
        budget: What may be used.
        out: Folder of the run.
        options: How.
        excite: Who acts in the first round: from model, task, steps and a seed to actions [steps, nu]; random holds where missing.
        progress: Called after each round.

    Raises:
        ValueError: if plant, model, task and policy do not fit.
        ModelError: if no round had data to learn from, or the folder belongs to another run.
    """
    options, space = options or LearnOptions(), dynamics.baseline.space
    if isinstance(plant, Plant) and (plant.space.state_names, plant.space.action) != (space.state_names, space.action):
        raise ValueError(f"learn: the plant has states {plant.space.state_names} and actions {plant.space.action}, the model "
                         f"{space.state_names} and {space.action}")
    if isinstance(plant, Plant) and abs(plant.dt - dynamics.dt) > 1e-9 * dynamics.dt:
        raise ValueError(f"learn: the plant steps {plant.dt:g} s, the model {dynamics.dt:g} s")
    out = Path(out)
    _claim(out, budget, options, dynamics, policy)
    run = _Run(plant, dynamics, task, policy, budget, out, options, excite or random_excitation)
    rounds: list[LearnedRound] = []
    for k in range(budget.rounds):
        made = run.round(k)
        if made is None:
            continue
        rounds.append(made)
        if progress is not None:
            progress(made)
        if run.seconds >= budget.seconds - 0.5 * dynamics.dt:
            break
    if not rounds:
        raise ModelError("learn: no round had data to learn from")
    judged = [r for r in rounds if np.isfinite(r.evaluated)]
    best = min(judged, key=lambda r: r.evaluated).round if judged else rounds[-1].round
    return Learned(dynamics=run.dynamics, policy=_network(run.folder(best) / "policy"), rounds=tuple(rounds))


class _Run:
    """Where a run stands: data, model and policy so far."""

    def __init__(self, plant: Plant | LoggedPlant, dynamics: ResidualDynamics, task: Task, policy: NetworkPolicy, budget: Budget, out: Path,
                 options: LearnOptions, excite: Excite) -> None:
        self.plant, self.dynamics, self.task, self.policy, self.budget = plant, dynamics, task, policy, budget
        self.out, self.options, self.excite = out, options, excite
        self.seconds, self.logs, self.acted = 0.0, list[Trajectory](), False

    def folder(self, k: int) -> Path:
        """Return the folder of a round."""
        return self.out / f"round_{k:03d}"

    def round(self, k: int) -> LearnedRound | None:
        """Return what a round came to, made where it is not there yet; None of one without data."""
        folder = self.folder(k)
        folder.mkdir(parents=True, exist_ok=True)
        logs, costs = self._collect(k, folder)
        self.seconds += sum(t.duration for t in logs)
        self.logs += logs
        if not logs:
            log.warning("round %d: nothing to learn from; skipped", k)
            return None
        if not (folder / "model").exists():
            save_model(folder / "model", self._model(cut_windows(self.logs, self.dynamics.dt, horizon=self.options.window,
                                                                  stride=self.options.stride), folder))
        self.dynamics = load_model(folder / "model", self.dynamics)
        if not (folder / "policy").exists():
            train = {"apg": apg, "shac": shac}[self.options.method]
            found = train(self.dynamics, self.policy, self.task, self.options.training, checkpoint=folder / "training.safetensors")
            save_policy(folder / "policy", found.policy, dt=self.dynamics.dt)
            write_json(folder / "predicted.json", found.cost)
        self.policy, self.acted = _network(folder / "policy"), True
        if not (folder / "round.json").exists():
            evaluated = self._evaluate(k, folder)
            predicted: Any = load_json((folder / "predicted.json").read_bytes())
            made = LearnedRound(round=k, seconds=self.seconds, collected=float(np.mean(costs)), predicted=float(predicted),
                                evaluated=evaluated, values={n: float(x) for n, x in self.dynamics.values.items()})
            write_json(folder / "round.json", asdict(made))
        entries: Any = load_json((folder / "round.json").read_bytes())
        log.info("%s", entries)
        return LearnedRound(**entries)

    def _collect(self, k: int, folder: Path) -> tuple[list[Trajectory], list[float]]:
        """Return the logs of a round and the cost of each."""
        if isinstance(self.plant, LoggedPlant):
            logs = list(self.plant.rounds[k]) if k < len(self.plant.rounds) else []
            return logs, [float("nan")] * len(logs)
        episodes: list[Episode] = []
        for i in range(self.budget.episodes):
            left = self.budget.seconds - self.seconds - sum([len(e.actions) for e in episodes]) * self.dynamics.dt
            steps = int(min(self.budget.steps or self.task.steps, left / self.dynamics.dt + 1e-6))
            if steps < self.options.window:
                break
            episodes.append(self._episode(folder / f"episode_{i:03d}.npz", f"round {k}, episode {i}", self._seed(k, i), steps, self.acted))
        kept = list(usable(episodes, self.options.window))
        return [e.trajectory(self.dynamics.baseline.space, self.dynamics.dt) for e in kept], [self._cost(e) for e in kept]

    def _episode(self, path: Path, name: str, seed: int, steps: int, acted: bool) -> Episode:
        if isinstance(self.plant, LoggedPlant):
            raise TypeError("logs cannot be acted on")
        act = self._actor(seed) if acted else _scheduled(self.excite(self.dynamics, self.task, steps, seed))
        return collect(self.plant, path, name=name, seed=seed, first=self.task.starts(seed, 1)[0].numpy(), act=act, steps=steps,
                       low=self.task.low.double().numpy(), high=self.task.high.double().numpy())

    def _actor(self, seed: int) -> Act:
        """Return who acts under the policy as it is."""
        form, rng, size = NumpyPolicy(self.policy), np.random.default_rng(seed), self.policy.noise_size
        return lambda state, t: form(state, None, rng.standard_normal(size) if size else None)

    def _model(self, windows: Windows, folder: Path) -> ResidualDynamics:
        """Return the model that all data so far say."""
        sensor, dynamics, o = state_sensor(self.dynamics.baseline.space, self.options.noise), self.dynamics, self.options
        if o.identify is not None and dynamics.baseline.parameters.free():
            found = identify(dynamics, sensor, windows, o.identify, checkpoint=folder / "identification.npz")
            dynamics = found.dynamics
        if o.fit is not None and dynamics.residuals:
            free = tuple(dynamics.baseline.parameters.free()) if o.fit.parameters and o.identify is not None else ()
            dynamics = fit(Model(dynamics=dynamics, sensor=sensor), windows, None, o.fit, free=free,
                           checkpoint=folder / "fit.npz").model.dynamics
        return dynamics

    def _evaluate(self, k: int, folder: Path) -> float:
        if isinstance(self.plant, LoggedPlant) or not self.budget.evaluations:
            return float("nan")
        costs = [self._cost(self._episode(folder / "evaluation" / f"episode_{i:03d}.npz", f"round {k}, evaluation {i}", 10_000 + i,
                                          self.task.steps, True)) for i in range(self.budget.evaluations)]
        return float(np.mean(costs))

    def _cost(self, episode: Episode) -> float:
        """Return the running costs of an episode, those of the steps that are missing counted as the worst of it."""
        if not len(episode.actions):
            return float("nan")
        x, u = torch.tensor(episode.states[:-1]), torch.tensor(episode.actions)
        references = self.task.cost.references.double()
        costs = self.task.cost.running(x, u, references[..., 0, :])
        return float(costs.sum() + (self.task.steps - len(u)) * costs.max() * (len(u) < (self.budget.steps or self.task.steps)))

    def _seed(self, k: int, i: int) -> int:
        return int(np.random.SeedSequence([self.options.seed, k, i]).generate_state(1)[0] % 2**31)


def _scheduled(actions: Array) -> Act:
    return lambda state, t: actions[t]


def _network(path: Path) -> NetworkPolicy:
    policy = load_policy(path)
    if not isinstance(policy, NetworkPolicy):
        raise ModelError(f"{path}: expected a policy")
    return policy


def _claim(out: Path, budget: Budget, options: LearnOptions, dynamics: ResidualDynamics, policy: NetworkPolicy) -> None:
    """Write what a run is, or check that it is the one whose folder this is; more rounds or seconds may be asked for."""
    described: Any = {"options": {**asdict(options), "training": {**asdict(options.training), "dtype": str(options.training.dtype)}},
                      "episodes": budget.episodes, "steps": budget.steps, "policy": policy.describe(), "values": dynamics.values,
                      "residuals": [r.name for r in dynamics.corrections]}
    path = out / "run.json"
    if path.exists():
        if load_json(dump_json(described)) != load_json(path.read_bytes()):
            raise ModelError(f"{out}: holds a run of another model, policy or options; give another folder")
        return
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, described)

