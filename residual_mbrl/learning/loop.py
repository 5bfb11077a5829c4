"""``learn``: collect from a plant, identify and fit a model, optimise a policy or plan in it, evaluate, and again.

Every round lies in a folder of its own: episodes, model, policy and figures, each written under a temporary name and renamed. A run that is
killed goes on from what is there, to the same result: whatever is drawn depends on the run's seed, the round and the place alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from residual_mbrl.dynamics import ResidualDynamics, ensemble
from residual_mbrl.errors import ModelError
from residual_mbrl.exploration.excitation import Excite, random_excitation
from residual_mbrl.files import dump_json, held, load_json, write_json
from residual_mbrl.fitting import fit
from residual_mbrl.identification import identify
from residual_mbrl.learning.acting import Act, Array, Guard, Planning, PolicyOrPlanning, actor
from residual_mbrl.learning.episodes import Episode, collect, usable
from residual_mbrl.learning.models import load_model, save_model
from residual_mbrl.learning.plants import LoggedPlant, Plant
from residual_mbrl.learning.settings import Budget, Learned, LearnedRound, LearnOptions
from residual_mbrl.model import Model
from residual_mbrl.policies.networks import NetworkPolicy
from residual_mbrl.policies.storage import load_policy, save_policy
from residual_mbrl.policy_optimization.mbpo import MBPOOptions, check_mbpo, mbpo
from residual_mbrl.policy_optimization.short_horizon import Trained, apg, shac
from residual_mbrl.sensors import state_sensor
from residual_mbrl.tasks import Task
from residual_mbrl.trajectories import Trajectory
from residual_mbrl.uncertainty.ensembles import fit_ensemble
from residual_mbrl.windows import Windows, cut_windows

log = logging.getLogger(__name__)
Tell = Callable[[str, float], None]
"""Called with a phrase and the fraction of it that is done."""


def learn(plant: Plant | LoggedPlant, dynamics: ResidualDynamics, task: Task, policy: PolicyOrPlanning, budget: Budget, out: Path,
          options: LearnOptions | None = None, *, excite: Excite | None = None, guard: Guard | None = None,
          progress: Callable[[LearnedRound], None] | None = None, tell: Tell | None = None) -> Learned:
    """Learn to do a task on a plant from little of its time.

    In the first round ``excite`` acts, in all others the policy of the round before, or the planner in its model. A run that was stopped
    goes on from its folder.

    Args:
        plant: Acted on; logs of one where nothing can be.
        dynamics: What is known, with residuals for what is not, or ``network_alone`` where nothing is; not changed.
        task: What is to be done.
        policy: Where to begin, not changed; or how to plan.
        budget: What may be used.
        out: Folder of the run.
        options: How.
        excite: Who acts in the first round: from model, task, steps and a seed to actions [steps, nu]; random holds where missing. With
            ``LearnOptions(members=...)`` the model is an ensemble, whose members are alike before the first fit.
        guard: From who would act on the plant, and the model as it is known, to who may, such as one with a ``Veto``.
        progress: Called after each round.
        tell: Called with what is being done, and the fraction of it that is.

    Raises:
        ModuleNotFoundError: if what trains the policy is not installed.
        ValueError: if plant, model, task and policy do not fit, or the cost of a step is not finite; episodes so far stay on disk.
        ModelError: if no round had data to learn from, or the folder belongs to another run, or one that goes on there now.
    """
    options, space = options or LearnOptions(), dynamics.baseline.space
    if isinstance(plant, Plant) and (plant.space.state_names, plant.space.action) != (space.state_names, space.action):
        raise ValueError(f"learn: the plant has states {plant.space.state_names} and actions {plant.space.action}, the model "
                         f"{space.state_names} and {space.action}")
    if isinstance(plant, Plant) and abs(plant.dt - dynamics.dt) > 1e-9 * dynamics.dt:
        raise ValueError(f"learn: the plant steps {plant.dt:g} s, the model {dynamics.dt:g} s")
    if options.method == "mbpo":
        check_mbpo(policy, task)
    task.recorded(task.starts(0, 1), 0.5 * (task.low + task.high).double()[None], "learn")
    run = _Run(plant, dynamics, task, policy, budget, Path(out), options, excite or random_excitation, guard, tell)
    with ExitStack() as stack:
        try:
            stack.enter_context(held(run.out))
        except BlockingIOError as error:
            raise ModelError(f"learn: {out}: another run goes on in this folder; wait for it or give another one") from error
        return run.whole(progress)


class _Run:
    """Where a run stands: data, model and policy so far."""

    def __init__(self, plant: Plant | LoggedPlant, dynamics: ResidualDynamics, task: Task, policy: PolicyOrPlanning, budget: Budget,
                 out: Path, options: LearnOptions, excite: Excite, guard: Guard | None, tell: Tell | None) -> None:
        self.plant, self.dynamics, self.task, self.policy, self.budget = plant, dynamics, task, policy, budget
        self.out, self.options, self.excite, self.guard, self.tell = out, options, excite, guard, tell
        self.start = dynamics  # what each ensemble is fitted from, anew
        self.seconds, self.logs, self.acted = 0.0, list[Trajectory](), False

    def folder(self, k: int) -> Path:
        """Return the folder of a round."""
        return self.out / f"round_{k:03d}"

    def whole(self, progress: Callable[[LearnedRound], None] | None) -> Learned:
        """Return what all rounds came to, each told of when it is done."""
        budget, policy, rounds = self.budget, self.policy, list[LearnedRound]()
        _claim(self.out, budget, self.options, self.dynamics, policy)
        for k in range(budget.rounds):
            made = self.round(k)
            if made is not None:
                rounds.append(made)
                if progress is not None:
                    progress(made)
            if budget.seconds - self.seconds < (self.options.window - 0.5) * self.dynamics.dt:
                break
        if not rounds:
            raise ModelError("learn: no round had data to learn from")
        judged = [r for r in rounds if np.isfinite(r.evaluated)]
        best = min(judged, key=lambda r: r.evaluated).round if judged else rounds[-1].round
        chosen = policy if isinstance(policy, Planning) else _network(self.folder(best) / "policy")
        return Learned(dynamics=self.dynamics, policy=chosen, rounds=tuple(rounds))

    def round(self, k: int) -> LearnedRound | None:
        """Return what a round came to, made where it is not there yet; None of one without data."""
        folder = self.folder(k)
        folder.mkdir(parents=True, exist_ok=True)
        logs, costs = self._collect(k, folder)
        self.logs += logs
        if not logs:
            log.warning("round %d: nothing to learn from; skipped", k)
            return None
        if not (folder / "model").exists():
            save_model(folder / "model", self._model(k, cut_windows(self.logs, self.dynamics.dt, horizon=self.options.window,
                                                                     stride=self.options.stride), folder))
        count = self.options.members
        self.dynamics = load_model(folder / "model", self.start if count == 1 else ensemble([self.start] * count))
        predicted, self.acted = self._optimised(k, folder), True
        if not (folder / "round.json").exists():
            evaluated = self._evaluate(k, folder)
            made = LearnedRound(round=k, seconds=self.seconds, collected=float(np.mean(costs)), predicted=predicted,
                                evaluated=evaluated, values={n: float(x) for n, x in self.dynamics.values.items()})
            write_json(folder / "round.json", asdict(made))
        entries: Any = load_json((folder / "round.json").read_bytes())
        log.info("%s", entries)
        return LearnedRound(**entries)

    def _say(self, k: int, phrase: str) -> Tell | None:
        """Return who is told what a part of a round does."""
        tell = self.tell
        return None if tell is None else lambda what, done: tell(f"round {k}: {phrase} {what}".rstrip(), done)

    def _optimised(self, k: int, folder: Path) -> float:
        """Take the policy that is best in the model, trained where it is not there yet; return its cost there, NaN of a planner."""
        if isinstance(self.policy, Planning):
            return float("nan")
        if not (folder / "policy").exists():
            found = self._trained(self.policy, folder / "training.safetensors", self._say(k, "training"))
            save_policy(folder / "policy", found.policy, dt=self.dynamics.dt)
            write_json(folder / "predicted.json", found.cost)
        self.policy = _network(folder / "policy")
        predicted: Any = load_json((folder / "predicted.json").read_bytes())
        return float(predicted)

    def _trained(self, policy: NetworkPolicy, checkpoint: Path, say: Tell | None) -> Trained:
        """Return the policy trained in the model as it is."""
        options = self.options.training
        told = None if say is None else lambda r: say(f"cost {r.cost:.4g}", r.iteration / options.iterations)
        if isinstance(options, MBPOOptions):
            return mbpo(self.dynamics, policy, self.task, self.logs, options, progress=told)
        train = {"apg": apg, "shac": shac}[self.options.method]
        return train(self.dynamics, policy, self.task, options, checkpoint=checkpoint, progress=told)

    def _collect(self, k: int, folder: Path) -> tuple[list[Trajectory], list[float]]:
        """Return the logs of a round and the cost of each."""
        if isinstance(self.plant, LoggedPlant):
            logs = list(self.plant.rounds[k]) if k < len(self.plant.rounds) else []
            self.seconds += sum(t.duration for t in logs)
            return logs, [float("nan")] * len(logs)
        episodes: list[Episode] = []
        for i in range(self.budget.episodes):
            left = self.budget.seconds - self.seconds
            steps = int(min(self.budget.steps or self.task.steps, left / self.dynamics.dt + 1e-6))
            if steps < self.options.window:
                break
            episodes.append(self._episode(folder / f"episode_{i:03d}.npz", f"round {k}, episode {i}", self._seed(k, i), steps,
                                          self.acted and k >= self.budget.excited))
            self.seconds += len(episodes[-1].actions) * self.dynamics.dt
        kept = list(usable(episodes, self.options.window))
        return [e.trajectory(self.dynamics.baseline.space, self.dynamics.dt) for e in kept], [self._cost(e) for e in kept]

    def _episode(self, path: Path, name: str, seed: int, steps: int, acted: bool) -> Episode:
        if isinstance(self.plant, LoggedPlant):
            raise TypeError("logs cannot be acted on")
        dynamics, task = self.dynamics, self.task
        act = actor(self.policy, dynamics, task, seed) if acted else _scheduled(self.excite(self._known(), task, steps, seed))
        if self.guard is not None:
            act = self.guard(act, self.dynamics)
        if self.tell is not None:
            act = _told(act, name, steps, self.tell)
        return collect(self.plant, path, name=name, seed=seed, first=self.task.starts(seed, 1)[0].numpy(), act=act, steps=steps,
                       low=self.task.low.double().numpy(), high=self.task.high.double().numpy())

    def _known(self) -> ResidualDynamics:
        """Return the model that an excitation sees: of several members from the first round on, alike until they are fitted."""
        count = self.options.members
        return ensemble([self.start] * count) if count > 1 and self.dynamics is self.start else self.dynamics

    def _model(self, k: int, windows: Windows, folder: Path) -> ResidualDynamics:
        """Return the model that all data so far say: the last one's parameters and residuals go on, an ensemble is fitted anew."""
        sensor, o = state_sensor(self.dynamics.baseline.space, self.options.noise), self.options
        dynamics = self.dynamics if o.members == 1 else self.start.with_values(self.dynamics.values)
        if o.identify is not None and dynamics.baseline.parameters.free():
            found = identify(dynamics, sensor, windows, o.identify, checkpoint=folder / "identification.npz",
                             progress=self._say(k, "identifying"))
            dynamics = found.dynamics
        if o.fit is not None and dynamics.residuals:
            model = Model(dynamics=dynamics, sensor=sensor)
            if o.members > 1:
                if self.tell is not None:
                    self.tell(f"round {k}: fitting {o.members} members", 0.0)
                return fit_ensemble(model, windows, members=o.members, options=replace(o.fit, parameters=False),
                                    seed=self._seed(k, 0)).model.dynamics
            free = tuple(dynamics.baseline.parameters.free()) if o.fit.parameters and o.identify is not None else ()
            dynamics = fit(model, windows, None, o.fit, free=free, checkpoint=folder / "fit.npz",
                           progress=self._say(k, "")).model.dynamics
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
        costs = self.task.recorded(x, u, episode.name)
        return float(costs.sum() + (self.task.steps - len(u)) * costs.max() * (len(u) < (self.budget.steps or self.task.steps)))

    def _seed(self, k: int, i: int) -> int:
        return int(np.random.SeedSequence([self.options.seed, k, i]).generate_state(1)[0] % 2**31)


def _scheduled(actions: Array) -> Act:
    return lambda state, t: actions[t]


def _told(act: Act, name: str, steps: int, tell: Tell) -> Act:
    """Return who acts the same and says how far the episode is."""
    def acting(state: Array, t: int) -> Array:
        tell(name, t / steps)
        return act(state, t)

    return acting


def _network(path: Path) -> NetworkPolicy:
    policy = load_policy(path)
    if not isinstance(policy, NetworkPolicy):
        raise ModelError(f"{path}: expected a policy")
    return policy


def _claim(out: Path, budget: Budget, options: LearnOptions, dynamics: ResidualDynamics, policy: PolicyOrPlanning) -> None:
    """Write what a run is, or check that it is the one whose folder this is; more rounds or seconds may be asked for."""
    described: Any = {"options": {**asdict(options), "training": {**asdict(options.training), "dtype": str(options.training.dtype)}},
                      "episodes": budget.episodes, "steps": budget.steps, "excited": budget.excited, "policy": policy.describe(),
                      "values": dynamics.values, "residuals": [r.name for r in dynamics.corrections]}
    path = out / "run.json"
    if path.exists():
        if load_json(dump_json(described)) != load_json(path.read_bytes()):
            raise ModelError(f"{out}: holds a run of another model, policy or options; give another folder")
        return
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, described)

