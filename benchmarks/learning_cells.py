"""Methods of the learning benchmark: each gives the returns of its evaluation episodes after some seconds of plant data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import say
from learning_case import Case, Seen
from learning_cases import CASES

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.files import load_json, write_json
from residual_mbrl.fitting import FitOptions
from residual_mbrl.identification import IdentifyOptions
from residual_mbrl.learning import Budget, LearnOptions, Planning, actor, learn
from residual_mbrl.learning.acting import Act
from residual_mbrl.learning.episodes import load
from residual_mbrl.learning.models import load_model
from residual_mbrl.planners import ICEMOptions
from residual_mbrl.policies import MLPPolicy, angles_turned
from residual_mbrl.policy_optimization import MBPOOptions, Trained, TrainingOptions, apg, mbpo

Points = dict[str, list[float]]
"""Returns of the episodes of an evaluation, by the seconds of plant data before it."""
MEMBERS = 5
POINTS = {"idle": (0.0,), "nominal": (0.0,), "true": (0.0,), "ours": (2.5, 5.0, 10.0), "policy": (10.0,), "MBPO": (10.0,),
          "PETS": (10.0, 20.0, 50.0, 100.0), "SAC": (10.0, 50.0, 100.0, 200.0), "PPO": (10.0, 50.0, 100.0, 200.0)}
"""Seconds of plant data at which methods are evaluated on plants that do not say otherwise."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One plant, seed and method.

    Args:
        plant: Of ``CASES``.
        seed: Which one of its kind.
        method: Of ``METHODS``.
        work: Folder of all cells.
        episodes: Of an evaluation.
        longest: Seconds of plant data at most.
    """

    plant: str
    seed: int
    method: str
    work: Path
    episodes: int
    longest: float = float("inf")

    @property
    def points(self) -> tuple[float, ...]:
        """Seconds of plant data at which it is evaluated."""
        return tuple(p for p in self.case.points.get(self.method, POINTS[self.method]) if p <= self.longest)

    @property
    def case(self) -> Case:
        """Its plant and task."""
        return CASES[self.plant]()

    def folder(self, method: str) -> Path:
        """Where a learner of this plant and seed keeps its run."""
        return self.work / "runs" / f"{self.plant} {self.seed} {method}".replace(" ", "-")

    def returns(self, make: Callable[[int], Act]) -> list[float]:
        """Return the sum of rewards of each evaluation episode, from states as they are; who acts is made anew for each."""
        case = self.case
        plant, earned, task, found = Seen(case.plant(self.seed), case.noise), case.earned(self.seed), case.task(self.seed), []
        for i in range(20_000, 20_000 + self.episodes):
            seen, act, total = plant.reset(i, task.starts(i, 1)[0].numpy()), make(i), 0.0
            for t in range(task.steps):
                action = np.clip(act(seen, t), -case.limit, case.limit)
                total += earned(plant.state, action, t)
                seen, over = plant.step(action)
                if over:
                    break
            found.append(total)
        return found

    def planned(self, model: ResidualDynamics) -> list[float]:
        """Return what MPC in a model earns."""
        return self.returns(lambda seed: actor(planning(self.case, self.seed), model, self.case.task(self.seed), seed))


def planning(case: Case, seed: int) -> Planning:
    """Return the planner of all models."""
    if case.planner is not None:
        return case.planner(seed)
    return Planning(steps=case.horizon, options=ICEMOptions(samples=100, iterations=3, elites=10),
                    opening=ICEMOptions(samples=300, iterations=8, elites=15))


def idle(cell: Cell) -> Points:
    """Do nothing: what a return is worth."""
    nu = cell.case.baseline().space.nu
    return {"0": cell.returns(lambda seed: lambda state, t: np.zeros(nu))}


def nominal(cell: Cell) -> Points:
    """Plan in what is known."""
    return {"0": cell.planned(cell.case.nominal())}


def true(cell: Cell) -> Points:
    """Plan in a model that knows the plant."""
    return {"0": cell.planned(cell.case.true(cell.seed))}


def ours(cell: Cell) -> Points:
    """Identify what is known, learn friction (and springs), and plan."""
    return _learned(cell, "ours", cell.case.learned(cell.seed), identifying(cell.case, cell.seed))


def identifying(case: Case, seed: int) -> LearnOptions:
    """Return how ours learns."""
    noise, stride = case.noise.tolist(), case.window // 2
    identify = IdentifyOptions(candidates=8, starts=1, start_std=noise)
    if case.off is not None:  # what is measured errs by less than the model does: windows begin where it says
        noise, stride, identify = case.off.tolist(), case.window, IdentifyOptions(candidates=1, starts=1, iterations=15)
    return LearnOptions(window=case.window, stride=stride, noise=noise, seed=seed, identify=identify,
                        fit=FitOptions(rounds=3, iterations=5, ridge=0.01, start_std=noise))


def pets(cell: Cell) -> Points:
    """Fit networks that know nothing, and plan."""
    return _learned(cell, "PETS", cell.case.alone(cell.seed), knowing_nothing(cell.case, cell.seed))


def knowing_nothing(case: Case, seed: int) -> LearnOptions:
    """Return how networks that know nothing learn."""
    fit = FitOptions(method="adam", rounds=1, iterations=300, ridge=1e-4, parameters=False)
    return LearnOptions(window=case.alone_window, stride=case.alone_window // 2, noise=case.noise.tolist(), seed=seed, members=MEMBERS,
                        identify=None, fit=fit)


def _learned(cell: Cell, method: str, model: ResidualDynamics, options: LearnOptions) -> Points:
    """Learn until each point, no longer, and plan in the model there; more seconds go on from the round that the last ones ended in."""
    case, out, found = cell.case, cell.folder(method), Points()
    episodes, steps = (case.episodes, case.collected) if method == "ours" else (case.alone_episodes or case.episodes, case.explored)
    for at in cell.points:
        kept = out / f"returns_{at:g}.json"
        if not kept.exists():
            budget = Budget(rounds=400, seconds=at, episodes=episodes, steps=steps)
            learned = learn(Seen(case.plant(cell.seed), case.noise), model, case.task(cell.seed), planning(case, cell.seed), budget, out,
                            options, excite=case.excite)
            write_json(kept, cell.planned(learned.dynamics))
        got: Any = load_json(kept.read_bytes())
        found[f"{at:g}"] = got
    return found


def policy(cell: Cell) -> Points:
    """Train a network by gradients through the model that ours came to; it sees no more of the plant."""
    return _trained(cell, lambda model, untrained, task, logs, seed: apg(model, untrained, task, TrainingOptions(
        horizon=100, iterations=2000, seed=seed)))


def branched(cell: Cell) -> Points:
    """Train the same network by SAC in branches of that model."""
    return _trained(cell, lambda model, untrained, task, logs, seed: mbpo(model, untrained, task, logs, MBPOOptions(
        length=25, discount=0.98, seed=seed)))


def _trained(cell: Cell, train: Callable[..., Trained]) -> Points:
    """Return what the better of two policies by the model's own account earns, trained in the model of ours after all its data."""
    case, ran = cell.case, cell.folder("ours")
    last = max(int(p.parent.name[-3:]) for p in ran.glob("round_*/round.json"))
    model = load_model(ran / f"round_{last:03d}" / "model", case.learned(cell.seed))
    space, task = case.baseline().space, case.task(cell.seed)
    logs = [load(p, p.stem).trajectory(space, case.dt) for p in sorted(ran.glob("round_*/episode_*.npz"))]
    found = []
    for seed in (2 * cell.seed, 2 * cell.seed + 1):
        untrained = MLPPolicy(space=space, low=-case.limit, high=case.limit, features=angles_turned(space, case.angles), seed=seed)
        untrained.normalise(task.draw(torch.Generator().manual_seed(0), 1000, dtype=torch.float64, practice=True))
        found.append(train(model, untrained.float(), task, logs, seed))
        say(f"{cell.plant}, seed {cell.seed}: {found[-1].cost:.4g} in the model, {found[-1].rounds[-1].seconds:.0f} s")
    best = min(found, key=lambda trained: trained.cost).policy
    return {"10": cell.returns(lambda seed: actor(best, model, task, seed))}


def model_free(cell: Cell) -> Points:
    """Train one of stable-baselines3's on the plant."""
    from learning_model_free import trained  # noqa: PLC0415  # an optional dependency

    return trained(cell, cell.points)


METHODS: Mapping[str, Callable[[Cell], Points]] = {"idle": idle, "nominal": nominal, "true": true, "ours": ours, "policy": policy,
                                                   "MBPO": branched, "PETS": pets, "SAC": model_free, "PPO": model_free}
