"""What data are worth that were collected at random, on policy, by ensemble disagreement or by information, for two models of a cart-pole.

The plants are those of the learning benchmark (``learning_cases``), another for each seed, and so are the models: what is known, with
parameters to be identified and friction and springs to be learned, and five networks that know nothing. ``learn`` collects episodes of
2.5 s, from the same starts, and fits after each; all but information and the longer levels begin with the same random one. Then

- random: levels of the full force, as ``random_excitation`` makes them, or held for 0.4 s, the best of 0.1, 0.2 and 0.4 s for what is
  learned of the task;
- on policy: MPC in the model so far does the task;
- disagreement: ``disagreement_excitation`` on five members;
- information: ``information_excitation`` for the physical parameters, from the first episode on (the model that has them).

What is known is fitted as one model from the data of each way; five members of it only say where they part. Each model is judged by its
prediction error 10 steps ahead, from true states, on recordings without noise that nothing was fitted to: of random levels, and of MPC in
the model that knows the plant, which does the task. The error of an entry is relative to how far it moves in those steps, both as root
mean square, and so is their mean over entries: 1 is what "nothing moves" comes to. And by what MPC in it earns on the plant, as a share of
MPC in the model that knows it. Shown are interquartile means over seeds with their 95 % bootstrap intervals; ways are compared by the
ratio of their errors (or of shares), seed by seed, in logarithms. Settings were chosen on plants 100 and 101.

    python benchmarks/exploration.py --options.json benchmarks/results/exploration.json --work /tmp/exploration
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from common import Options, machine, say, show
from learning import interquartile
from learning_case import Array, Seen
from learning_cells import MEMBERS, Cell, identifying, knowing_nothing, planning

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.exploration import Excite, InformationOptions, disagreement_excitation, information_excitation, random_excitation
from residual_mbrl.files import load_json, write_json
from residual_mbrl.fitting import FitOptions
from residual_mbrl.learning import Budget, LearnOptions, LoggedPlant, actor, learn
from residual_mbrl.learning.episodes import load
from residual_mbrl.rollouts import rollout

PLANT, STEPS, AHEAD = "cart-pole", 125, 10
HELD = 30_000
"""First seed of the recordings that models are judged on."""
ALL = 400
"""Rounds, more than there are."""
INFORMATION = InformationOptions(free=["cart_mass", "pole_mass", "length"], spread=0.3, goal="error")
"""What is sought; that there is no viscous friction is all that is known of it, so how well is not."""
MEASURES = ("random", "task", "share")
POINTS: Mapping[str, tuple[float, ...]] = {"known": (2.5, 5.0, 10.0), "networks": (5.0, 10.0, 20.0)}
"""Seconds of plant data at which each model is judged."""
WAYS: Mapping[str, tuple[str, ...]] = {"known": ("random", "random, 0.4 s", "on policy", "disagreement", "information"),
                                       "networks": ("random", "random, 0.4 s", "on policy", "disagreement")}


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """Pieces of the plant's motion: first states [B, nx], actions [B, AHEAD, nu], and last states [B, nx]."""

    first: torch.Tensor
    actions: torch.Tensor
    last: torch.Tensor

    @classmethod
    def of(cls, episodes: list[tuple[Array, Array]]) -> Recorded:
        """Cut states [H + 1, nx] and actions [H, nu]."""
        pieces = [(x[t], u[t : t + AHEAD], x[t + AHEAD]) for x, u in episodes for t in range(0, len(u) - AHEAD + 1, AHEAD // 2)]
        first, actions, last = (torch.from_numpy(np.stack([p[i] for p in pieces])) for i in range(3))
        return cls(first=first, actions=actions, last=last)


def recorded(cell: Cell, seed: int, steps: int, make: Callable[[int], Callable[[Array, int], Array]]) -> tuple[Array, Array]:
    """Return the plant's states and the actions, without noise."""
    case = cell.case
    plant, act = case.plant(cell.seed), make(seed)
    states, actions = [plant.reset(seed, case.task(cell.seed).starts(seed, 1)[0].numpy()).copy()], list[Array]()
    for t in range(steps):
        actions.append(np.clip(act(states[-1], t), -case.limit, case.limit))
        states.append(plant.step(actions[-1])[0].copy())
    return np.array(states), np.array(actions)


def held_out(cell: Cell) -> dict[str, Recorded]:
    """Return what models are judged on: four episodes of random levels, and two of the task."""
    case, true, task = cell.case, cell.case.true(cell.seed), cell.case.task(cell.seed)

    def at_random(seed: int) -> Callable[[Array, int], Array]:
        actions = random_excitation(true, task, STEPS, seed)
        return lambda x, t: actions[t]

    return {"random": Recorded.of([recorded(cell, HELD + i, STEPS, at_random) for i in range(4)]),
            "task": Recorded.of([recorded(cell, HELD + i, task.steps, lambda s: actor(planning(case, cell.seed), true, task, s))
                                 for i in range(2)])}


def error(model: ResidualDynamics, held: Recorded) -> float:
    """Return the error of predictions relative to the motion; an ensemble predicts the mean of its members."""
    space, count = model.baseline.space, model.members
    x, u = (a.expand(count, *a.shape) if count else a for a in (held.first, held.actions))
    with torch.no_grad():
        found = rollout(model, x, u)[..., -1, : space.nx]
    off = space.difference(held.last, found.mean(0) if count else found).square().mean(0)
    return float((off / space.difference(held.first, held.last).square().mean(0)).mean().sqrt())


def excitation(way: str, noise: Array) -> Excite:
    """Return who acts; differences of states are counted in standard deviations of their noise."""
    if way == "disagreement":
        return partial(disagreement_excitation, scale=torch.from_numpy(noise))
    if way == "information":
        return partial(information_excitation, options=replace(INFORMATION, noise=noise.tolist()))
    return partial(random_excitation, hold=0.4) if way == "random, 0.4 s" else random_excitation


def folder(cell: Cell, model: str, way: str) -> Path:
    """Return where a run lies."""
    return cell.work / f"{model} {way} {cell.seed}".replace(" ", "-")


def visited(run: Path) -> dict[str, float]:
    """Return how far the cart has been [m], and the part of the time in which the pole was within 60° of upright."""
    states = np.concatenate([load(p, "visited").states for p in sorted(run.glob("round_*/episode_000.npz"))])
    return {"furthest": float(np.abs(states[:, 0]).max()), "upright": float((np.cos(states[:, 1]) < -0.5).mean())}


def learned(cell: Cell, model: str, way: str, seconds: float) -> ResidualDynamics:
    """Return the model after some seconds of the plant; more of them go on from where fewer ended."""
    case, seed, out = cell.case, cell.seed, folder(cell, model, way)
    task, planner = case.task(seed), planning(case, seed)
    start, options = (case.learned(seed), identifying(case, seed)) if model == "known" else (case.alone(seed), knowing_nothing(case, seed))
    single = model == "known" and way == "disagreement"
    budget = Budget(rounds=ALL, seconds=seconds, steps=STEPS, excited=1 if way == "on policy" else ALL)
    found = learn(Seen(case.plant(seed), case.noise), start, task, planner, budget, out, parting(options) if single else options,
                  excite=excitation(way, case.noise))
    if not single:
        return found.dynamics
    logs = [[load(out / f"round_{r.round:03d}" / "episode_000.npz", f"round {r.round}").trajectory(start.baseline.space, case.dt)]
            for r in found.rounds]
    return learn(LoggedPlant(logs), start, task, planner, Budget(rounds=len(logs)), out / "single", options).dynamics


def parting(options: LearnOptions) -> LearnOptions:
    """Return how an ensemble of what is known is fitted: parameters are identified for all, friction and springs by member."""
    return replace(options, members=MEMBERS, fit=FitOptions(method="adam", rounds=1, iterations=60, learning_rate=2e-2, parameters=False))


def judged(cell: Cell, model: str, way: str, held: Mapping[str, Recorded], whole: float) -> dict[str, dict[str, float]]:
    """Return the measures of a model by the seconds of plant data."""
    kept, found = cell.work / f"{folder(cell, model, way).name}.json", dict[str, dict[str, float]]()
    if kept.exists():
        there: Any = load_json(kept.read_bytes())
        return there  # type: ignore[no-any-return]
    for seconds in POINTS[model]:
        dynamics = learned(cell, model, way, seconds)
        share = float(np.mean(cell.planned(dynamics))) / whole
        found[f"{seconds:g}"] = {**{n: error(dynamics, h) for n, h in held.items()}, "share": share}
    write_json(kept, found)
    say(f"{model}, {way}, seed {cell.seed}: {({s: {n: round(x, 3) for n, x in m.items()} for s, m in found.items()})}")
    return found


def rows(found: Mapping[tuple[str, str, int], Mapping[str, Mapping[str, float]]], seeds: range) -> list[dict[str, Any]]:
    """Return what each model is worth after each way and amount of data, and its ratio to that after another way."""
    made = []
    for model, ways in WAYS.items():
        for seconds in (f"{s:g}" for s in POINTS[model]):
            for way in ways:
                each = {m: [found[model, way, s][seconds][m] for s in seeds] for m in MEASURES}
                row: dict[str, Any] = {"model": model, "seconds": float(seconds), "way": way, "seeds": each}
                for m, values in each.items():
                    value, *ci95 = interquartile(values)
                    row[m] = {"value": value, "ci95": ci95}
                    for other in ways[: min(3, ways.index(way))]:
                        ratios = np.log(values) - np.log([found[model, other, s][seconds][m] for s in seeds])
                        value, *ci95 = np.exp(interquartile(list(ratios))).tolist()
                        row[m][f"to {other}"] = {"value": value, "ci95": ci95}
                made.append(row)
    return made


def main(options: Options, work: Path, seeds: int = 5, first: int = 0, episodes: int = 2) -> None:
    """Run the benchmark.

    Args:
        options: As of all benchmarks; quick takes one seed.
        work: Folder that keeps what is done.
        seeds: Plants.
        first: Seed of the first of them.
        episodes: Of an evaluation of MPC.
    """
    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    found: dict[tuple[str, str, int], dict[str, dict[str, float]]] = {}
    seen: dict[tuple[str, str], list[dict[str, float]]] = {}
    every = range(first, first + (1 if options.quick else seeds))
    for seed in every:
        cell = Cell(plant=PLANT, seed=seed, method="true", work=work, episodes=episodes)
        held, whole = held_out(cell), float(np.mean(cell.planned(cell.case.true(seed))))
        for model, ways in WAYS.items():
            for way in ways:
                found[model, way, seed] = judged(cell, model, way, held, whole)
                seen.setdefault((model, way), []).append(visited(folder(cell, model, way)))
    made = rows(found, every)
    for model, ways in WAYS.items():
        mine = [r for r in made if r["model"] == model]
        show(f"{model}: prediction error on random levels and on the task, share of true-model MPC", ["data [s]", "way", *MEASURES],
             [(r["seconds"], r["way"], *(told(r[m]) for m in MEASURES)) for r in mine])
        show(f"{model}: ratios", ["data [s]", "way", "to", *MEASURES],
             [(r["seconds"], r["way"], other, *(told(r[m][f"to {other}"]) for m in MEASURES)) for r in mine for other in ways[:3]
              if f"to {other}" in r["task"]])
    went = [{"model": model, "way": way, **{n: float(np.median([v[n] for v in each])) for n in each[0]}}
            for (model, way), each in seen.items()]
    show("Where the data lie: furthest cart [m], time within 60° of upright, medians over seeds", ["model", "way", "furthest", "upright"],
         [tuple(w.values()) for w in went])
    if options.json:
        write_json(options.json, {"machine": machine(), "first": first, "episodes": episodes, "rows": made, "visited": went})


def told(measure: Mapping[str, Any]) -> str:
    """Return a value with its interval."""
    low, high = measure["ci95"]
    return f"{measure['value']:.3g} ({low:.3g} to {high:.3g})"


if __name__ == "__main__":
    tyro.cli(main)
