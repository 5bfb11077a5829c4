"""What calibration is worth in closed loop: the same MPC with the data sheet's model, the calibrated one, and one that knows the plant.

Plants are simulated in MuJoCo and differ from their data sheets; for each seed the plant is another one (every property drawn about the
usual), is calibrated on 60 s of its own noisy data, and is then controlled from noisy observations. The controller is iLQR, warm started,
some iterations a tick, its delay not counted; it is the same for all three models, as are cost, horizon, limits, noise and starts.

- cart-pole: swing-up with a heavier cart and pole, dry and viscous friction, a cable that pulls back, and less force than commanded.
- arm: seven joints follow random sines with three times the payload of the data sheet, off its place, and more friction; this one
  plans on MuJoCo itself, one iteration a tick.
- pusher: a finger shoves a loaded carton over a table to where the finger cannot reach, through contact and sliding; it too plans on
  MuJoCo, one iteration a tick.
- quadrotor: a figure of eight at up to 2.5 m/s with motors three times slower than in the data sheet, drag, and 5 % less thrust.

    python benchmarks/closed_loop.py --options.json benchmarks/results/closed_loop.json --work /tmp/closed_loop
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import arm_plant
import cart_pole_plant
import numpy as np
import pusher_plant
import quadrotor_plant
import torch
import tyro
from cart_pole_plant import Calibrated
from common import Options, machine, say, show
from numpy.typing import NDArray
from scipy import stats

from residual_mbrl.costs import QuadraticCost
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.files import write_json
from residual_mbrl.planners.ilqr import ILQR, ILQROptions
from residual_mbrl.planners.limits import Limits
from residual_mbrl.planners.plan import Plan, shift
from residual_mbrl.planners.starts import best_from_starts

Array = NDArray[np.float64]
DT = 0.02
MODELS = ("nominal", "calibrated", "true")


class Simulated(Protocol):
    """A plant."""

    state: Array

    def read(self) -> Array:
        """Return what is measured."""

    def run(self, seconds: float, command: Array) -> None:
        """Advance under a command."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kind of plant and what is asked of it.

    Args:
        calibrate: Calibrates the plant of a seed.
        true: Returns the model that knows it.
        plant: Makes it, with another noise than in its logs.
        start: First state of a seed.
        goals: States asked for of a seed at ticks, shape [T, nx].
        cost: Cost over goals of a horizon.
        weights: Of state (tangent) and action in the cost that counts.
        limits: Of commands.
        steps: Horizon.
        ticks: Length of an episode.
        iterations: A tick.
        first: Action that a first plan begins from.
        opening: Iterations of the first plan.
        starts: From which the first plan is looked for.
    """

    calibrate: Callable[[int], Calibrated]
    true: Callable[[int], ResidualDynamics]
    plant: Callable[[int], Simulated]
    start: Callable[[int], Array]
    goals: Callable[[int, Array], Array]
    cost: Callable[[ResidualDynamics, Array], QuadraticCost]
    weights: tuple[Array, Array]
    limits: Limits
    steps: int
    ticks: int
    iterations: int
    first: float | Array
    opening: int = 100
    starts: int = 1


def cart_pole_cost(model: ResidualDynamics, goals: Array) -> QuadraticCost:
    """Return the cost of the upright pole in the middle of the rail."""
    f = lambda *x: torch.tensor(x)  # noqa: E731
    return QuadraticCost(space=model.space, state=f(2.0, 6.0, 0.1, 0.1), action=f(0.01), terminal=f(60.0, 200.0, 10.0, 20.0),
                         target=torch.from_numpy(goals).float(), trajectory=True)


def cart_pole() -> Case:
    """Return the swing-up."""
    def start(seed: int) -> Array:
        return np.array([0.2, 0.2, 0.0, 0.0]) * np.random.default_rng(seed).uniform(-1, 1, 4)

    upright = np.array([0.0, np.pi, 0.0, 0.0])
    drawn = cart_pole_plant.drawn
    return Case(calibrate=lambda seed: cart_pole_plant.calibrate(drawn(seed), DT, seed),
                true=lambda seed: cart_pole_plant.true_model(drawn(seed), DT),
                plant=lambda seed: cart_pole_plant.Plant(drawn(seed), 5_000 + seed), start=start,
                goals=lambda _, ticks: np.tile(upright, (len(ticks), 1)), cost=cart_pole_cost,
                weights=(np.array([2.0, 6.0, 0.1, 0.1]), np.array([0.01])), limits=Limits(action_lower=-15.0, action_upper=15.0), steps=60,
                ticks=250, iterations=3, first=0.0, starts=16)


def quadrotor() -> Case:
    """Return the figure of eight."""
    def goals(_: int, ticks: Array) -> Array:
        return quadrotor_plant.lap(DT * ticks, 1.5, 5.0, 0.0)

    drawn = quadrotor_plant.drawn
    return Case(calibrate=lambda seed: quadrotor_plant.calibrate(drawn(seed), DT, seed),
                true=lambda seed: quadrotor_plant.true_model(drawn(seed), DT),
                plant=lambda seed: quadrotor_plant.Plant(drawn(seed), 5_000 + seed),
                start=lambda seed: goals(seed, np.zeros(1))[0], goals=goals, cost=quadrotor_plant.cost_of,
                weights=(quadrotor_plant.STATE, quadrotor_plant.ACTION), limits=quadrotor_plant.LIMITS,
                steps=30, ticks=400, iterations=3, first=quadrotor_plant.HOVER)


def arm() -> Case:
    """Return the motion of random sines."""
    drawn = arm_plant.drawn

    def goals(seed: int, ticks: Array) -> Array:
        return arm_plant.goals(seed, DT * ticks)

    def true(seed: int) -> ResidualDynamics:
        return arm_plant.model_of(drawn(seed), dict(drawn(seed).truth), DT)

    return Case(calibrate=lambda seed: arm_plant.calibrate(drawn(seed), DT), true=true,
                plant=lambda seed: arm_plant.Plant(drawn(seed), 5_000 + seed), start=lambda seed: goals(seed, np.zeros(1))[0], goals=goals,
                cost=arm_plant.cost_of, weights=(arm_plant.STATE, arm_plant.ACTION), limits=arm_plant.LIMITS, steps=12, ticks=150,
                iterations=1, first=arm_plant.holding(), opening=15)


def pusher() -> Case:
    """Return the shove."""
    drawn = pusher_plant.drawn
    return Case(calibrate=lambda seed: pusher_plant.calibrate(drawn(seed), DT, seed),
                true=lambda seed: pusher_plant.true_model(drawn(seed), DT),
                plant=lambda seed: pusher_plant.Plant(drawn(seed), 5_000 + seed), start=pusher_plant.start,
                goals=lambda seed, ticks: np.tile(pusher_plant.target(seed), (len(ticks), 1)), cost=pusher_plant.cost_of,
                weights=(pusher_plant.STATE, pusher_plant.ACTION), limits=pusher_plant.LIMITS, steps=40, ticks=80, iterations=1,
                first=np.array([20.0, 0.0]), opening=50)


CASES: Mapping[str, Callable[[], Case]] = {"cart-pole": cart_pole, "quadrotor": quadrotor, "arm": arm, "pusher": pusher}


def control(case: Case, model: ResidualDynamics, seed: int) -> tuple[Array, Array]:
    """Run one episode under a model; return the states [T + 1, nx] and the cost of every tick [T]."""
    plant, every = case.plant(seed), case.goals(seed, np.arange(case.ticks + case.steps + 1, dtype=np.float64))
    plant.state = case.start(seed)
    first = case.cost(model, every[: case.steps + 1])
    action = torch.as_tensor(case.first, dtype=torch.float64)
    opening, planner = (ILQR(model, first, ILQROptions(iterations=n), steps=case.steps, limits=case.limits, initial_action=action)
                        for n in (case.opening, case.iterations))
    plan: Plan | None = None
    states, costs, (q, r), space = [plant.state], list[float](), case.weights, model.baseline.space
    for k in range(case.ticks):
        seen = torch.from_numpy(plant.read()).float()
        if plan is None:
            plan = best_from_starts(opening, seen, case.starts, seed=seed)
        else:
            plan = planner.plan(seen, shift(plan, 1), cost=case.cost(model, every[k : k + case.steps + 1]))
        command = plan.actions[0].double().numpy()
        plant.run(DT, command)
        error = space.difference(torch.from_numpy(plant.state), torch.from_numpy(every[k + 1])).numpy()
        states.append(plant.state)
        costs.append(float(q @ error**2 + r @ command**2))
    return np.stack(states), np.array(costs)


def main(options: Options, only: Literal["", "cart-pole", "quadrotor", "arm", "pusher"] = "", seeds: int = 20,
         work: Path | None = None) -> dict[str, Any]:
    """Run the benchmark.

    Args:
        options: As of all benchmarks; quick takes two seeds.
        only: One plant; all where missing.
        seeds: Plants of each kind.
        work: Folder that keeps what is done, from which a run that was stopped goes on.
    """
    torch.set_num_threads(1)
    report: dict[str, Any] = {"machine": machine(), "plants": {}}
    for name in [only] if only else CASES:
        case, rows = CASES[name](), list[dict[str, float]]()
        kept = None if work is None else work / f"{name}.jsonl"
        if kept is not None and kept.is_file():
            rows = [json.loads(line) for line in kept.read_text().splitlines()]
        for seed in range(len(rows), 2 if options.quick else seeds):
            made = case.calibrate(seed)
            models = {"nominal": made.nominal, "calibrated": made.calibrated, "true": case.true(seed)}
            rows.append({m: float(control(case, models[m], seed)[1].mean()) for m in MODELS})
            print(name, seed, rows[-1], flush=True)
            if kept is not None:
                kept.parent.mkdir(parents=True, exist_ok=True)
                with kept.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
        report["plants"][name] = summary(rows)
    show("Closed-loop cost of a tick, mean and 95 % interval of the mean over plants", ["plant", "plants", *MODELS, "calibrated / true",
         "share of nominal's excess"], [[n, r["seeds"], *(f"{r[m]['mean']:.4g} ± {r[m]['ci95']:.2g}" for m in MODELS), r["to_true"],
                                         r["excess"]] for n, r in report["plants"].items()])
    say("asked for: calibrated / true at most 1.10, share of nominal's excess below 0.5")
    if options.json is not None:
        write_json(options.json, report)
    return report


def summary(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Return means with intervals, and what is asked for."""
    table = {m: np.array([r[m] for r in rows]) for m in MODELS}
    found: dict[str, Any] = {"seeds": len(rows), "rows": rows}
    for name, x in table.items():
        half = float(stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))) if len(x) > 1 else float("nan")
        found[name] = {"mean": float(x.mean()), "ci95": half}
    means = {m: found[m]["mean"] for m in MODELS}
    found["to_true"] = means["calibrated"] / means["true"]
    found["excess"] = (means["calibrated"] - means["true"]) / (means["nominal"] - means["true"])
    return found


if __name__ == "__main__":
    tyro.cli(main)
