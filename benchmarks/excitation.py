"""How many seconds of data parameters take: excitation planned for information beside random excitation, on cart-poles with a short rail.

The plant's five parameters differ from the nominal ones by up to 60 %, states are measured with noise, and no experiment may leave the
rail. How large it may be is found in one of two ways, the same for all kinds. "Tried": the largest amplitude that stays on the rail, tried
on the plant itself; the trials are not counted. "Known": the largest that stays on the rail in the model, for 32 values of its parameters
drawn about the nominal ones. Planned excitation is planned in the nominal model alone; of random levels and sines there are several, among
them sines about the frequency at which the first plant swings. The error is the root mean square over the parameters of what is relative
to the truth.

Errors are those of identified parameters: their median over seeds on one plant, and over plants drawn within 60 % of the nominal one.
From them come the seconds that an error takes, by interpolation of logarithms. Beside them stands what an unbiased identification cannot
undercut (Cramér-Rao). "Planned in the plant" is no method: its planner knows the parameters that are sought, and says what can be hoped
for.

    python benchmarks/excitation.py --json benchmarks/results/excitation.json
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
import tyro
from common import Options as CommonOptions
from common import machine, say, show
from torch import Tensor

from residual_mbrl.costs import QuadraticCost
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.exploration import InformationOptions, expected_error, information_excitation, random_excitation
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
OFF = 0.6
"""Most that a parameter differs from the nominal one, relative to it."""
AMPLITUDES = tuple(float(a) for a in np.geomspace(2.0, 0.02, 35))
Make = Callable[[ResidualDynamics, int], Tensor]
"""From a plant and a seed to the actions of an experiment."""
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
        seeds: Experiments of each kind on the one plant.
        plants: Drawn, with an experiment of each kind.
        first: Seed of the first of them.
        plans: Searches of each kind; later seeds take turns with them.
        workers: Processes.
    """

    seconds: tuple[float, ...] = (0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6)
    holds: tuple[float, ...] = (0.06, 0.12, 0.24)
    bands: tuple[tuple[float, float], ...] = ((0.2, 2.0), (0.5, 4.0), (0.8, 1.2))
    seeds: int = 12
    plants: int = 32
    first: int = 0
    plans: int = 4
    workers: int = 2


@dataclass(frozen=True, kw_only=True)
class Row:
    """Median error of the parameters relative to the truth, its quartiles, the bound's median, and experiments that left the rail."""

    plants: str
    excitation: str
    seconds: float
    error: float
    quartiles: tuple[float, float]
    bound: float
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


def drawn(model: ResidualDynamics, seed: int) -> ResidualDynamics:
    """Return a plant whose parameters lie within 60 % of the nominal ones."""
    factors = np.random.default_rng(seed).uniform(1 - OFF, 1 + OFF, len(TRUE))
    return ResidualDynamics(CartPole(dt=DT), values={n: model.values[n] * float(f) for n, f in zip(TRUE, factors, strict=True)})


def information(**changes: object) -> InformationOptions:
    """Return what the planner is told; the spread is half of what parameters differ at most, which it draws within two of."""
    options = InformationOptions(free=list(TRUE), noise=NOISE, spread=0.5 * OFF, draws=1, checked=32,
                                 largest=[RAIL, 1e3, 1e3, 1e3], goal="error", search=SearchOptions(hold=0.12, iterations=40, candidates=96))
    return replace(options, **changes)


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


def as_large_as_allowed(task: Task, actions: Tensor, stays: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the actions with the largest amplitude that stays on the rail."""
    tried = torch.stack([(a * actions).clamp(task.low.double(), task.high.double()) for a in AMPLITUDES])
    allowed = stays(tried)
    return tried[int(allowed.int().argmax()) if bool(allowed.any()) else -1]


def stays_on(plant: ResidualDynamics, tried: Tensor) -> Tensor:
    """Return which experiments leave the plant on its rail."""
    return (on_plant(plant, tried)[..., 0].abs() <= RAIL).all(-1)


def stays_known(model: ResidualDynamics, seed: int, tried: Tensor) -> Tensor:
    """Return which do so in the model, for the values that the planner checks."""
    return torch.isfinite(expected_error(model, torch.zeros(4).double(), tried, information(), seed))


def error_of(model: ResidualDynamics, plant: ResidualDynamics, actions: Tensor, seed: int) -> tuple[float, float, bool]:
    """Return the error of parameters identified from an experiment, its bound, and whether the experiment left the rail."""
    states = on_plant(plant, actions)
    noise = np.random.default_rng(seed).standard_normal(states.shape) * np.array(NOISE)
    log = Episode(name="experiment", states=states.numpy() + noise, actions=actions.numpy()).trajectory(model.space, DT)
    found = identify(model, state_sensor(model.space, NOISE), cut_windows([log], DT),
                     IdentifyOptions(free=list(TRUE), candidates=1, starts=1, iterations=40, horizons=[25, 50], start_std=NOISE,
                                     loss="linear"))
    off = [found.dynamics.values[n] / plant.values[n] - 1 for n in TRUE]
    bound = expected_error(plant, torch.zeros(4).double(), actions, information(spread=1e3, largest=None))
    return float(np.sqrt(np.mean(np.square(off)))), float(bound), not bool(stays_on(plant, actions))


def row(plants: str, name: str, seconds: float, found: list[tuple[float, float, bool]]) -> Row:
    errors = [e for e, _, _ in found]
    low, middle, high = np.percentile(errors, [25, 50, 75])
    return Row(plants=plants, excitation=name, seconds=seconds, error=float(middle), quartiles=(float(low), float(high)), seeds=len(found),
               bound=float(np.median([b for _, b, _ in found])), left_rail=sum(left for _, _, left in found), machine=machine())


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


def kinds(options: Options, model: ResidualDynamics, task: Task, seconds: float) -> dict[str, Make]:
    """Return how every experiment of one length is made."""
    steps = round(seconds / DT)

    def planned(known: ResidualDynamics, seed: int, **changes: object) -> Tensor:
        return torch.tensor(information_excitation(known, task, steps, seed, information(**changes)))

    goals: tuple[Literal["gain", "error"], ...] = ("gain", "error")
    plans = {(goal, checked): [planned(model, s, goal=goal, checked=checked) for s in range(options.plans)]
             for goal in goals for checked in (1, 32)}
    shapes: dict[str, Callable[[int], Tensor]] = {
        f"levels, {h:g} s": lambda s, h=h: torch.tensor(random_excitation(model, task, steps, s, hold=h)) for h in options.holds}
    shapes |= {f"sines, {b[0]:g} to {b[1]:g} Hz": lambda s, b=b: sines(task, steps, s, b) for b in options.bands}
    made: dict[str, Make] = {}
    for name, shape in [*shapes.items(), *((f"planned for {g}", lambda s, g=g: plans[g, 1][s % options.plans]) for g in goals)]:
        made[f"{name}; tried"] = lambda plant, s, shape=shape: as_large_as_allowed(task, shape(s), partial(stays_on, plant))
    for name, shape in shapes.items():
        made[f"{name}; known"] = lambda plant, s, shape=shape: as_large_as_allowed(task, shape(s), partial(stays_known, model, s))
    for g in goals:
        made[f"planned for {g}; known"] = lambda plant, s, g=g: plans[g, 32][s % options.plans]
    return {**made, "planned in the plant": lambda plant, s: planned(plant, s, checked=1)}


def rows_of(options: Options, seconds: float) -> list[Row]:
    """Return what every kind of experiment of one length comes to."""
    torch.set_num_threads(1)
    model, plant, task = experiment()
    seeds, plants = (3, 6) if options.quick else (options.seeds, options.plants)
    drawn_plants = [(s, drawn(model, s)) for s in range(options.first, options.first + plants)]
    rows: list[Row] = []
    for kind, make in kinds(options, model, task, seconds).items():
        for name, each in {"one": [(s, plant) for s in range(seeds)], "drawn": drawn_plants}.items():
            count = len(each) // 4 if kind == "planned in the plant" else len(each)  # a search for each
            rows.append(row(name, kind, seconds, [error_of(model, p, make(p, s), s) for s, p in each[: max(1, count)]]))
    say(f"{seconds:g} s: done")
    return rows


def main(options: Options) -> None:
    lengths = options.seconds[1:4] if options.quick else options.seconds
    with ProcessPoolExecutor(options.workers) as pool:
        rows = sorted((r for found in pool.map(partial(rows_of, options), lengths[::-1]) for r in found), key=lambda r: r.seconds)
    needed: dict[str, dict[str, dict[str, float | None]]] = {}
    for plants in ("one", "drawn"):
        for seconds in lengths:
            show(f"{plants}: {seconds:g} s", ["excitation", "error", "quartiles", "bound", "left the rail"],
                 [(r.excitation, r.error, f"{r.quartiles[0]:.3g} to {r.quartiles[1]:.3g}", r.bound, f"{r.left_rail} of {r.seeds}")
                  for r in rows if r.seconds == seconds and r.plants == plants])
        each = [r for r in rows if r.plants == plants]
        needed[plants] = {name: {f"{e:g}": seconds_for(e, [r for r in each if r.excitation == name]) for e in ERRORS}
                          for name in dict.fromkeys(r.excitation for r in each)}
        show(f"{plants}: seconds of data for an error", ["excitation", *(f"{e:g}" for e in ERRORS)],
             [(name, *("more" if s is None else s for s in found.values())) for name, found in needed[plants].items()])
    if options.json:
        write_json(options.json, {"rows": [asdict(r) for r in rows], "seconds_for_error": needed})


if __name__ == "__main__":
    main(tyro.cli(Options))
