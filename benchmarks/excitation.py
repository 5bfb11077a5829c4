"""How many seconds of data parameters take: excitation planned for information beside random excitation, on a cart-pole with a short rail.

The plant's five parameters differ from the nominal ones by up to 60 %, and the nominal ones are all that the planned excitation knows;
states are measured with noise. Neither may leave the rail. Random excitation is given what a plant's owner would find by trying: the
largest amplitude that stays on the rail, tried on the plant itself, and of levels the best hold time. Random sines come in two broad bands
and in one about the frequency at which this plant swings. The error is the root mean square over the parameters of what is relative to the
truth, its median over seeds; from it come the seconds that an error takes, by interpolation of logarithms.

    python benchmarks/excitation.py --json benchmarks/results/excitation.json
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
import tyro
from common import Options as CommonOptions
from common import machine, show
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
AMPLITUDES = tuple(float(a) for a in np.geomspace(1.0, 0.02, 30))
WAVES = 8
"""Sines of a random sum."""
ERRORS = (0.02, 0.01, 0.005)
"""Whose seconds of data are asked for."""


@dataclass(frozen=True, kw_only=True)
class Options(CommonOptions):
    """Options of this benchmark.

    Args:
        seconds: Lengths of the experiments.
        holds: Hold times of random levels [s].
        bands: Of random sines [Hz].
        seeds: Experiments of each kind.
    """

    seconds: tuple[float, ...] = (1.0, 1.4, 2.0, 2.8, 4.0, 5.6)
    holds: tuple[float, ...] = (0.06, 0.12, 0.24)
    bands: tuple[tuple[float, float], ...] = ((0.2, 2.0), (0.5, 4.0), (0.8, 1.2))
    seeds: int = 12


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


def sines(task: Task, steps: int, seed: int, band: tuple[float, float]) -> Tensor:
    """Return a sum of sines of random frequencies and phases, clipped to the range, shape [steps, 1]."""
    rng, time = np.random.default_rng(seed), DT * np.arange(steps)
    frequency, phase = rng.uniform(*band, WAVES), rng.uniform(0, 2 * np.pi, WAVES)
    total = torch.tensor(np.sin(2 * np.pi * frequency * time[:, None] + phase).sum(1) * np.sqrt(2 / WAVES))
    return (task.high.double() * total.unsqueeze(-1)).clamp(task.low.double(), task.high.double())


def as_large_as_allowed(plant: ResidualDynamics, actions: Tensor) -> Tensor:
    """Return the actions with the largest amplitude that keeps the plant on its rail."""
    tried = torch.stack([a * actions for a in AMPLITUDES])
    stays = (on_plant(plant, tried)[..., 0].abs() <= RAIL).all(-1)
    return tried[int(stays.int().argmax()) if bool(stays.any()) else -1]


def error_of(model: ResidualDynamics, plant: ResidualDynamics, actions: Tensor, seed: int) -> tuple[float, bool]:
    """Return the error of parameters identified from an experiment, and whether it left the rail."""
    states = on_plant(plant, actions)
    noise = np.random.default_rng(seed).standard_normal(states.shape) * np.array(NOISE)
    log = Episode(name="experiment", states=states.numpy() + noise, actions=actions.numpy()).trajectory(model.space, DT)
    found = identify(model, state_sensor(model.space, NOISE), cut_windows([log], DT),
                     IdentifyOptions(free=list(TRUE), candidates=1, starts=1, iterations=40, horizons=[25, 50], start_std=NOISE,
                                     loss="linear"))
    off = [found.dynamics.values[n] / true - 1 for n, true in TRUE.items()]
    return float(np.sqrt(np.mean(np.square(off)))), bool((states[:, 0].abs() > RAIL).any())


def row(name: str, seconds: float, found: list[tuple[float, bool]]) -> Row:
    errors = [e for e, _ in found]
    low, middle, high = np.percentile(errors, [25, 50, 75])
    return Row(excitation=name, seconds=seconds, error=float(middle), quartiles=(float(low), float(high)), seeds=len(found),
               left_rail=sum(left for _, left in found), machine=machine())


def seconds_for(error: float, rows: list[Row]) -> float | None:
    """Return the seconds after which the median error stays at most this; None where the longest experiment does not do."""
    time, log = np.log([r.seconds for r in rows]), np.log([r.error for r in rows])
    above = np.flatnonzero(log > np.log(error))
    if not len(above):
        return rows[0].seconds
    if (k := above[-1]) == len(rows) - 1:
        return None
    share = (log[k] - np.log(error)) / (log[k] - log[k + 1])
    return float(np.exp(time[k] + share * (time[k + 1] - time[k])))


def kinds(options: Options, model: ResidualDynamics, plant: ResidualDynamics, task: Task, seconds: float) -> dict[str, list[Tensor]]:
    """Return the actions of every experiment of one length."""
    steps, seeds = round(seconds / DT), range(3 if options.quick else options.seeds)

    def planned(goal: Literal["gain", "error"], seed: int) -> Tensor:
        settings = InformationOptions(free=list(TRUE), noise=NOISE, spread=0.2, draws=3, largest=[0.7 * RAIL, 1e3, 1e3, 1e3], goal=goal,
                                      search=SearchOptions(hold=0.12, iterations=40, candidates=128))
        return torch.tensor(information_excitation(model, task, steps, seed, settings))

    found = {f"levels, {h:g} s": [as_large_as_allowed(plant, torch.tensor(random_excitation(plant, task, steps, s, hold=h))) for s in seeds]
             for h in options.holds}
    found |= {f"sines, {low:g} to {high:g} Hz": [as_large_as_allowed(plant, sines(task, steps, s, (low, high))) for s in seeds]
              for low, high in options.bands}
    return {**found, "planned for gain": [planned("gain", s) for s in seeds], "planned for error": [planned("error", s) for s in seeds]}


def main(options: Options) -> None:
    torch.set_num_threads(1)
    model, plant, task = experiment()
    rows: list[Row] = []
    for seconds in options.seconds[:3] if options.quick else options.seconds:
        for name, us in kinds(options, model, plant, task, seconds).items():
            rows.append(row(name, seconds, [error_of(model, plant, u, s) for s, u in enumerate(us)]))
        show(f"{seconds:g} s", ["excitation", "error", "quartiles", "left the rail"],
             [(r.excitation, r.error, f"{r.quartiles[0]:.3g} to {r.quartiles[1]:.3g}", f"{r.left_rail} of {r.seeds}") for r in rows
              if r.seconds == seconds])
    needed = {name: {f"{e:g}": seconds_for(e, [r for r in rows if r.excitation == name]) for e in ERRORS}
              for name in dict.fromkeys(r.excitation for r in rows)}
    show("Seconds of data for an error", ["excitation", *(f"{e:g}" for e in ERRORS)],
         [(name, *("more" if s is None else s for s in found.values())) for name, found in needed.items()])
    if options.json:
        write_json(options.json, {"rows": [asdict(r) for r in rows], "seconds_for_error": needed})


if __name__ == "__main__":
    main(tyro.cli(Options))
