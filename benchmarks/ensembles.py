"""What an ensemble costs: five members trained together against in turn, and worlds with members of their own against one for all.

Training is ``fit_ensemble`` as users call it, on windows of 50 steps of a simulated cart-pole with a learned force (5-32-32-2), float64;
in turn is the same trainer, member by member, and apart a training of each member on a set of windows drawn with repeats, all simulated.
Rollouts are fused, float32, 50 steps, a 5-64-64-2 network. Each comparison is interleaved, run by run, in one thread by the
processor's time, which other processes do not change; medians of the times and of the ratio of neighbours.

    python benchmarks/ensembles.py --json benchmarks/results/ensembles.json
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import tyro
from common import Options, Row, machine, show, write_rows
from rollouts import model as cartpole

from residual_mbrl.descriptions import reseeded
from residual_mbrl.dynamics import ResidualDynamics, ensemble
from residual_mbrl.fitting import FitOptions, descend, normalise
from residual_mbrl.model import Model
from residual_mbrl.physics.cartpole import CartPole
from residual_mbrl.residuals import Feature, Unstructured
from residual_mbrl.rollouts import rollout
from residual_mbrl.sensors import Column, Sensor
from residual_mbrl.simulation_error import SimulationError
from residual_mbrl.trajectories import Trajectory
from residual_mbrl.uncertainty.ensembles import bootstrap_counts, fit_ensemble
from residual_mbrl.windows import Windows, cut_windows

HORIZON, DT = 50, 0.02


@dataclass(frozen=True, kw_only=True)
class Ensembles(Options):
    """Options of this benchmark.

    Args:
        members: Members.
        windows: Windows of each training.
        worlds: Worlds of each rollout.
        repeats: Interleaved runs of each comparison.
    """

    members: int = 5
    windows: tuple[int, ...] = (16, 64, 256)
    worlds: tuple[int, ...] = (5, 20, 80, 320, 1280)
    repeats: int = 15


def training_data(count: int) -> tuple[Model, Windows]:
    """Return the model to train, and windows of a cart-pole with a heavier cart."""
    plant = ResidualDynamics(CartPole(dt=DT), values={"cart_mass": 1.3})
    generator = torch.Generator().manual_seed(0)
    x = 0.5 * torch.randn(count, 4, generator=generator, dtype=torch.float64)
    u = torch.randn(count, HORIZON, 1, generator=generator, dtype=torch.float64)
    states, space = rollout(plant, x, u).numpy(), plant.space
    clock = DT * np.arange(HORIZON + 1)
    logs = [Trajectory(name=f"log{i}", command_time=clock[:-1], commands=u[i].numpy(), command_names=space.action, measurement_time=clock,
                       measurements=states[i], measurement_names=space.state_names) for i in range(count)]
    features = [Feature(source=n) for n in (*space.state_names, *space.action)]
    force = Unstructured(nv=2, features=features, bound=1.0, hidden=(32, 32))
    sensor = Sensor(space=space, columns=tuple(Column(name=n, source=n, noise=0.01) for n in space.state_names))
    return Model(dynamics=ResidualDynamics(CartPole(dt=DT), [force]), sensor=sensor), cut_windows(logs, DT, horizon=HORIZON)


def interleaved(ours: Callable[[], object], peer: Callable[[], object], repeats: int) -> tuple[float, float, float]:
    """Return median seconds of both and the median ratio of neighbouring runs, after one of each that is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        pair = []
        for run in (ours, peer):
            begin = time.process_time()
            run()
            pair.append(time.process_time() - begin)
        seconds.append(pair)
    found = np.array(seconds[1:])
    return float(np.median(found[:, 0])), float(np.median(found[:, 1])), float(np.median(found[:, 0] / found[:, 1]))


def main(options: Ensembles) -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    training = []
    fit = FitOptions(method="adam", rounds=1, iterations=4 if options.quick else 10, parameters=False)
    for count in options.windows[:1] if options.quick else options.windows:
        together, turns = (partial(fit_ensemble, *training_data(count), members=options.members, options=fit, together=t)
                           for t in (True, False))
        ours, peer, ratio = interleaved(together, turns, 3 if options.quick else 5)
        apart = interleaved(together, partial(_apart, *training_data(count), members=options.members, options=fit),
                            3 if options.quick else 5)
        training.append([f"{count} windows", 1e3 * ours, 1e3 * peer, ratio, 1e3 * apart[1], apart[2]])
        rows.append(_row(f"training.{options.members}_members.{count}_windows", ours, peer, ratio))
        rows.append(_row(f"training.{options.members}_members.{count}_windows.drawn_sets", *apart))
    header = ["", "together", "in turn", "ratio", "apart", "ratio"]
    show(f"{options.members} members trained, {fit.iterations} steps of Adam [ms]", header, training)
    rolling = []
    for worlds in options.worlds[:2] if options.quick else options.worlds:
        ours, peer, ratio = _rollouts(worlds, options)
        rolling.append([f"{worlds} worlds", 1e3 * ours, 1e3 * peer, ratio])
        rows.append(_row(f"rollout.member_of_{options.members}_each.{worlds}_worlds", ours, peer, ratio))
    show(f"rollouts of {HORIZON} steps [ms]", ["", f"members of {options.members}", "one for all", "ratio"], rolling)
    write_rows(options.json, rows)


def _apart(model: Model, train: Windows, members: int, options: FitOptions) -> list[Model]:
    """Train each member on as many windows as there are, drawn with repeats, every one simulated."""
    out = []
    for m, counts in enumerate(bootstrap_counts(train, members)):
        dynamics = model.dynamics.with_residuals([reseeded(r, m) for r in model.dynamics.corrections])
        normalise(model, [dynamics], train)
        drawn = train.take(torch.repeat_interleave(torch.arange(len(train)), counts.long()))
        problem = SimulationError(dynamics=dynamics, sensor=model.sensor, windows=drawn, free=(), weights=True, every=options.every)
        start = torch.tensor(problem.initial()[None])
        found, _ = problem.model(descend(problem, start, start, options)[0].numpy())
        out.append(Model(dynamics=found, sensor=model.sensor))
    return out


def _rollouts(worlds: int, options: Ensembles) -> tuple[float, float, float]:
    """Worlds that are each given a member, those of one beside each other as ``sample`` lays them out, against worlds that share one."""
    one = cartpole()
    members = [cartpole() for _ in range(options.members)]
    for k, m in enumerate(members):
        with torch.no_grad():
            m.corrections[0].network.weights[-1].mul_(1 + 0.1 * k)
    joined = ensemble(members)
    generator = torch.Generator().manual_seed(0)
    x, u = 0.3 * torch.randn(worlds, 4, generator=generator), torch.randn(worlds, HORIZON, 1, generator=generator)
    m, per = options.members, worlds // options.members
    own = (x.view(m, per, 4), u.view(m, per, HORIZON, 1))

    with torch.no_grad():
        return interleaved(lambda: rollout(joined, *own), lambda: rollout(one, x, u), options.repeats * (40 if worlds < 1000 else 4))


def _row(name: str, ours: float, peer: float, ratio: float) -> Row:
    return Row(name=name, ours=ours, peer=peer, ratio=ratio, unit="s", machine=machine())


if __name__ == "__main__":
    main(tyro.cli(Ensembles))
