"""How many seconds of data parameters take: excitation planned for information beside random excitation, on a cart-pole with a short rail.

The plant's five parameters differ from the nominal ones, which are all that the planned excitation knows; states are measured with noise.
Neither may leave the rail. Random levels are given what a plant's owner would find by trying: for each hold time the largest amplitude
that stays on the rail, tried on the plant itself, and the hold time of the lowest error. The error is the root mean square over the
parameters of what is relative to the truth, its median over seeds.

    python benchmarks/excitation.py --json benchmarks/results/excitation.json
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
import tyro
from common import Options as CommonOptions
from common import machine, say, show
from torch import Tensor

from residual_mbrl.costs import QuadraticCost
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.exploration import InformationOptions, information_excitation, random_excitation
from residual_mbrl.exploration.excitation import SearchOptions
from residual_mbrl.files import write_json
from residual_mbrl.identification import IdentifyOptions, identify
from residual_mbrl.learning.episodes import Episode
from residual_mbrl.physics.cartpole import CartPole
from residual_mbrl.rollouts import rollout
from residual_mbrl.sensors import state_sensor
from residual_mbrl.tasks import Task
from residual_mbrl.windows import cut_windows

DT, RAIL = 0.02, 0.5
NOMINAL = {"cart_viscous": 0.5, "pole_viscous": 0.01}
TRUE = {"cart_mass": 1.25, "pole_mass": 0.13, "length": 0.42, "cart_viscous": 0.8, "pole_viscous": 0.006}
NOISE = (1e-3, 2e-3, 1e-2, 2e-2)
AMPLITUDES = (1.0, 0.8, 0.65, 0.5, 0.4, 0.3, 0.22, 0.16, 0.12, 0.08, 0.05)


@dataclass(frozen=True, kw_only=True)
class Options(CommonOptions):
    """Options of this benchmark.

    Args:
        seconds: Lengths of the experiments.
        holds: Hold times of random levels [s].
        seeds: Experiments of each kind.
    """

    seconds: tuple[float, ...] = (1.0, 2.0, 4.0)
    holds: tuple[float, ...] = (0.06, 0.12, 0.24)
    seeds: int = 9


@dataclass(frozen=True, kw_only=True)
class Row:
    """Median error of the parameters relative to the truth, its quartiles, and experiments that left the rail."""

    excitation: str
    seconds: float
    error: float
    quartiles: tuple[float, float]
    left_rail: int
    seeds: int
    machine: str


def experiment() -> tuple[ResidualDynamics, ResidualDynamics, Task]:
    """Return the model as known, the plant, and the task that gives start and range."""
    model, plant = (ResidualDynamics(CartPole(dt=DT), values=v) for v in (NOMINAL, TRUE))
    cost = QuadraticCost(space=model.space, state=torch.ones(4), action=torch.ones(1))

    def start(generator: torch.Generator, count: int) -> Tensor:
        return torch.zeros(count, 4)

    return model, plant, Task(cost=cost, start=start, steps=100, low=torch.tensor([-10.0]), high=torch.tensor([10.0]))


def on_plant(plant: ResidualDynamics, actions: Tensor) -> Tensor:
    """Return the states of experiments, shape [*batch, H + 1, 4]."""
    with torch.no_grad():
        return rollout(plant, torch.zeros(4, dtype=torch.float64), actions)


def random_actions(plant: ResidualDynamics, task: Task, steps: int, seed: int, hold: float) -> Tensor:
    """Return random levels as large as the rail allows."""
    levels = torch.tensor(random_excitation(plant, task, steps, seed, hold=hold))
    tried = torch.stack([a * levels for a in AMPLITUDES])
    stays = (on_plant(plant, tried)[..., 0].abs() <= RAIL).all(-1)
    return tried[int(stays.int().argmax()) if bool(stays.any()) else -1]


def error_of(model: ResidualDynamics, plant: ResidualDynamics, actions: Tensor, seed: int) -> tuple[float, bool]:
    """Return the error of parameters identified from an experiment, and whether it left the rail."""
    states = on_plant(plant, actions)
    noise = np.random.default_rng(seed).standard_normal(states.shape) * np.array(NOISE)
    log = Episode(name="experiment", states=states.numpy() + noise, actions=actions.numpy()).trajectory(model.space, DT)
    found = identify(model, state_sensor(model.space, NOISE), cut_windows([log], DT, horizon=50),
                     IdentifyOptions(free=list(TRUE), candidates=8, starts=1, iterations=25, start_std=NOISE, loss="linear"))
    off = [found.dynamics.values[n] / true - 1 for n, true in TRUE.items()]
    return float(np.sqrt(np.mean(np.square(off)))), bool((states[:, 0].abs() > RAIL).any())


def row(name: str, seconds: float, found: list[tuple[float, bool]]) -> Row:
    errors = [e for e, _ in found]
    low, middle, high = np.percentile(errors, [25, 50, 75])
    return Row(excitation=name, seconds=seconds, error=float(middle), quartiles=(float(low), float(high)), seeds=len(found),
               left_rail=sum(left for _, left in found), machine=machine())


def main(options: Options) -> None:
    torch.set_num_threads(1)
    model, plant, task = experiment()
    settings = InformationOptions(free=list(TRUE), noise=NOISE, spread=0.2, draws=3, largest=[0.7 * RAIL, 1e3, 1e3, 1e3],
                                  search=SearchOptions(hold=0.12, iterations=12, candidates=48))
    seeds, rows = range(3 if options.quick else options.seeds), []
    for seconds in options.seconds:
        steps = round(seconds / DT)
        kinds = {f"random, {hold:g} s": [random_actions(plant, task, steps, s, hold) for s in seeds] for hold in options.holds}
        kinds["planned"] = [torch.tensor(information_excitation(model, task, steps, s, settings)) for s in seeds]
        rows += [row(name, seconds, [error_of(model, plant, u, s) for s, u in zip(seeds, us, strict=True)]) for name, us in kinds.items()]
        show(f"{seconds:g} s", ["excitation", "error", "quartiles", "left the rail"],
             [(r.excitation, r.error, f"{r.quartiles[0]:.3g} to {r.quartiles[1]:.3g}", f"{r.left_rail} of {r.seeds}") for r in rows
              if r.seconds == seconds])
    say("planned T beside the best random 2 T: " + ", ".join(
        f"{r.seconds:g} s {r.error:.3g} beside {min(o.error for o in rows if o.seconds == 2 * r.seconds and o.excitation != 'planned'):.3g}"
        for r in rows if r.excitation == "planned" and any(o.seconds == 2 * r.seconds for o in rows)))
    if options.json:
        write_json(options.json, [asdict(r) for r in rows])


if __name__ == "__main__":
    main(tyro.cli(Options))
