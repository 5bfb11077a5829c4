"""Planted changes of a simulated quadrotor: are they seen as out of distribution, and how soon does a model that adapts recover?

The plant has air drag that the model does not know (quadratic, and a centre of pressure above the origin); five members learn it as a
force from flights on Lissajous paths. Windows of half a second are scored from what is known when they begin, the half second before:
how far the members part over the half second to come, how far the flight's features lie from the training flights', and how wrong
one-step predictions just were. Thresholds and ranks come from validation flights; outliers are squares flown by the same craft, a
payload of a fifth of the mass, and one propeller with four fifths of its thrust. The first second of each flight, a craft at rest that is
told to follow what already moves, belongs to no path and is left out.

Then real flights of the 45 g quadrotor, each type of trajectory by what the two others say (``outliers_flights``; data: the folder named by
RESIDUAL_MBRL_DATA, ../shared/data by default).

    python benchmarks/outliers.py --json benchmarks/results/outliers.json
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import tyro
from common import Options, Row, compare, say, show, write_rows
from numpy.typing import NDArray
from outliers_flights import detect_types, signals
from scipy.optimize import least_squares

from residual_mbrl.adaptation import OnlineAdaptation
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.fitting import FitOptions
from residual_mbrl.model import Model
from residual_mbrl.physics.quadrotor import Quadrotor
from residual_mbrl.residuals import Feature, Unstructured
from residual_mbrl.rollouts import rollout
from residual_mbrl.sensors import Column, Sensor
from residual_mbrl.simulated_flight import DT, SPREADS, fly, measured, quadrotor
from residual_mbrl.trajectories import Trajectory
from residual_mbrl.uncertainty.ensembles import Ensemble, fit_ensemble
from residual_mbrl.uncertainty.outliers import Detector, NeighbourDistance, disagreement, window_features
from residual_mbrl.uncertainty.scores import auroc
from residual_mbrl.uncertainty.tangents import spread
from residual_mbrl.windows import cut_windows

Array = NDArray[np.float64]
PLANT = {"drag_quadratic": 0.01, "pressure_z": 0.01}
HALF = 50
SETTLED = 100
"""Rows after which a simulated flight is on its path."""
CLOSE = 5
"""Rows between the training's stretches, which overlap."""
KINDS: Mapping[str, tuple[str, Mapping[str, float]]] = {
    "square path": ("square", {}), "payload, 20 % of the mass": ("lissajous", {"mass": 0.045 * 1.2}),
    "propeller at 80 % of its thrust": ("lissajous", {"thrust1": 0.8 * 0.0372})}
PARTS = ("disagreement", "feature distance", "past innovation")
CHANGED = {"mass": 0.045 * 1.2, "command_gain": 0.85}


@dataclass(frozen=True, kw_only=True)
class Outliers(Options):
    """Options of this benchmark.

    Args:
        flights: Flights of each kind, eight seconds each.
        seed: Of flights, noise and weights.
    """

    flights: int = 12
    seed: int = 0


def main(options: Outliers) -> None:
    """Learn, score, print, write."""
    torch.set_num_threads(1)
    flights = 4 if options.quick else options.flights
    rows = [*_detect(flights, options.seed), *detect_types(options.quick), *_adapt(options.seed)]
    write_rows(options.json, rows)


def _detect(flights: int, seed: int) -> list[Row]:
    train, validation, test = (_fly("lissajous", {}, flights, seed + k) for k in (1, 2, 3))
    ensemble = _learn(*train, seed)
    distance = NeighbourDistance.of(window_features(signals(*_before(*train, every=CLOSE))))
    detector = Detector.of(_parts(ensemble, distance, *validation))
    inside = _parts(ensemble, distance, *test)
    lines, rows = [], []
    for name, (path, values) in KINDS.items():
        outside = _parts(ensemble, distance, *_fly(path, values, flights, seed + 4))
        areas = [auroc(a, b) for a, b in zip(inside, outside, strict=True)]
        whole = auroc(detector.score(inside), detector.score(outside))
        lines.append([name, whole, *areas, float(detector.flags(outside).mean())])
        rows += [compare(f"auroc.{name}.{p}", a, 0.9, "1") for p, a in zip(("all", *PARTS), (whole, *areas), strict=True)]
    false = float(detector.flags(inside).mean())
    show("AUROC by window of half a second", ("", "all", *PARTS, "flagged"), lines)
    say(f"of windows on new flights of the training's kind {false:.1%} are flagged; the threshold lets 5 % of validation pass")
    return [*rows, compare("false_alarms", false, 0.05, "1")]


def _fly(path: str, values: Mapping[str, float], flights: int, seed: int) -> tuple[Array, Array]:
    states, commands = fly(8.0, {**PLANT, **values}, seed=seed, path=path, batch=flights)
    shown = measured(states, seed)
    shown[..., 13:] = states[..., 13:]  # the motors report their speeds
    return shown, commands


def _learn(states: Array, commands: Array, seed: int) -> Ensemble:
    baseline = Quadrotor(quadrotor().parameters, dt=DT, substeps=1)
    space, clock = baseline.space, DT * np.arange(states.shape[1])
    logs = [Trajectory(name=f"flight{i}", command_time=clock[:-1], commands=u, command_names=space.action, measurement_time=clock,
                       measurements=x, measurement_names=space.state_names) for i, (x, u) in enumerate(zip(states, commands, strict=True))]
    noises = dict(zip((*space.position[:3], *space.velocity), np.concatenate([SPREADS[:3], SPREADS[6:]]), strict=True))
    sensor = Sensor(space=space, columns=tuple(Column(name=n, source=n, noise=float(noises.get(n, np.inf))) for n in space.state_names))
    features = [Feature(source="body_velocity"), Feature(source="action")]
    force = Unstructured(nv=6, features=features, sizes=[3, 4], bound=0.1, hidden=(16,), seed=seed)
    model = Model(dynamics=ResidualDynamics(baseline, [force]), sensor=sensor)
    options = FitOptions(method="adam", rounds=1, iterations=60, learning_rate=0.01, ridge=1e-3, parameters=False)
    return fit_ensemble(model, cut_windows(logs, DT, horizon=20), members=5, options=options, seed=seed)


def _starts(commands: Array, every: int = HALF) -> range:
    return range(SETTLED + HALF, commands.shape[1] - HALF, every)


def _before(states: Array, commands: Array, every: int = HALF) -> tuple[Array, Array]:
    """Return the half second before each window: states [N, 51, 17] and commands [N, 50, 4]."""
    starts = _starts(commands, every)
    return (np.concatenate([states[:, s - HALF : s + 1] for s in starts]), np.concatenate([commands[:, s - HALF : s] for s in starts]))


def _parts(ensemble: Ensemble, distance: NeighbourDistance, states: Array, commands: Array) -> list[Array]:
    before, used = _before(states, commands)
    first = torch.from_numpy(before[:, -1])
    space, members = ensemble.model.sensor.space, ensemble.size
    # what is to be flown is known to a planner; here the commands of the half second before are repeated
    with torch.no_grad():
        x, u = first.expand(members, *first.shape), torch.from_numpy(used).expand(members, *used.shape)
        between = spread(space, rollout(ensemble.model.dynamics, x, u))[1].numpy()
        past = torch.from_numpy(before[:, :-1]).reshape(1, -1, 17).expand(members, -1, -1)
        said = rollout(ensemble.model.dynamics, past, torch.from_numpy(used).reshape(1, -1, 1, 4).expand(members, -1, -1, -1))[..., 1, :]
        mean = spread(space, said)[0]
        error = space.difference(torch.from_numpy(before[:, 1:]).reshape(-1, 17), mean).reshape(len(before), HALF, -1)[..., 6:12].numpy()
    innovation = np.abs(error.mean(1)) / (np.sqrt(2.0 / HALF) * SPREADS[6:])
    return [disagreement(between[..., 6:9]), distance(window_features(signals(before, used))), np.sqrt(np.square(innovation).mean(-1))]


def _adapt(seed: int) -> list[Row]:
    """Follow a craft of 20 % more mass and 15 % less motor gain for five seconds; compare with a fit of everything to the same data."""
    states, commands = fly(5.0, CHANGED, seed=seed)
    shown, u = measured(states, seed)[0], commands[0]
    dynamics = ResidualDynamics(quadrotor())
    noise = [*np.maximum(2**0.5 * SPREADS, 0.002), *[np.inf] * 4]
    tracker = OnlineAdaptation(dynamics, [dynamics.baseline.parameters[n] for n in CHANGED], noise=noise)
    start = shown[0].copy()
    start[13:] = u[0]
    estimate, seconds, course = tracker.begin(start, u[0]), [], {}
    for t in range(len(u)):
        begin = time.process_time()
        estimate = tracker.update(estimate, u[t], shown[t + 1])
        seconds.append(time.process_time() - begin)
        course[t + 1] = estimate.unknowns
    fitted = least_squares(lambda v: _open_loop(v, shown, shown, u).ravel() / 0.02, [0.045, 1.0], x_scale=[0.01, 0.1], diff_step=1e-4).x
    other, others = fly(8.0, CHANGED, seed=seed + 5)
    seen = measured(other, seed + 5)[0]
    score = {n: float(np.abs(_open_loop(v, other[0], seen, others[0])).mean())
             for n, v in (("nominal", np.array([0.045, 1.0])), ("refit", fitted), *((f"adapted, {k / 100:g} s", course[k])
                                                                                     for k in (50, 100, 200, 300, 500)))}
    show("velocity error over half a second on another flight [m/s]", ("model", "error", "over the refit's"),
         [[n, e, e / score["refit"]] for n, e in score.items()])
    ms = float(np.median(seconds[50:]) * 1e3)
    say(f"an update takes {ms:.2f} ms of the processor's time (median)")
    return [compare(f"adaptation.{n}", e, score["refit"], "m/s") for n, e in score.items()] + [compare("adaptation.update", ms, 1.0, "ms")]


def _open_loop(values: Array, truth: Array, shown: Array, commands: Array) -> Array:
    """Return velocity errors over half a second, each window from a measured state and rotors that the commands before have driven."""
    starts = range(HALF, len(commands) - HALF, HALF)
    x = np.stack([shown[s] for s in starts])
    lag = np.exp(-DT / 0.03) ** np.arange(30)
    x[:, 13:] = values[1] * np.stack([(lag[:, None] * commands[s - 30 : s][::-1]).sum(0) / lag.sum() for s in starts])
    u = np.stack([commands[s : s + HALF] for s in starts])
    p = {n: torch.tensor(v, dtype=torch.float64) for n, v in zip(CHANGED, values, strict=True)}
    with torch.no_grad():
        said = rollout(ResidualDynamics(quadrotor()), torch.from_numpy(x), torch.from_numpy(u), p).numpy()
    return (said - np.stack([truth[s : s + HALF + 1] for s in starts]))[:, 1:, 7:10]


if __name__ == "__main__":
    main(tyro.cli(Outliers))
