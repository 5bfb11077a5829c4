"""Planted truth: what calibration recovers of plants that are known, because they are simulated.

Each plant differs from its model in physical parameters (a load 30 % heavier, friction, a command delay), in a spring that
the model does not have, and in sensor noise. It is integrated with finer steps than the model. Parameters are identified
alone, then fitted jointly with a potential as the residual; rollouts on logs that no fit has seen are compared. The same
pipeline on a plant without the spring must find that no residual is needed.

    python benchmarks/planted_truth.py --json benchmarks/results/planted_truth.json
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from common import Options, Row, compare, say, show, write_rows
from numpy.typing import NDArray
from torch import Tensor

from residual_mbrl.baselines import Parameter, Parameters, Values
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.effects import Delay, Differentiated
from residual_mbrl.evaluation import Evaluation, evaluate
from residual_mbrl.fitting import FitOptions
from residual_mbrl.fold_fits import Fold, Recipe, fit_fold
from residual_mbrl.identifiability import Identifiability, assess
from residual_mbrl.identification import IdentifyOptions, free_parameters
from residual_mbrl.model import Model
from residual_mbrl.physics import double_pendulum, servo
from residual_mbrl.physics.double_pendulum import DoublePendulum
from residual_mbrl.physics.mechanical import MechanicalBaseline
from residual_mbrl.physics.servo import Servo
from residual_mbrl.residuals import Conservative
from residual_mbrl.rollouts import rollout
from residual_mbrl.sensors import Column, Sensor
from residual_mbrl.simulation_error import SimulationError
from residual_mbrl.trajectories import Trajectory
from residual_mbrl.verdict import Verdict, is_residual_worth_it
from residual_mbrl.windows import Windows, cut_windows

Array = NDArray[np.float64]
HORIZONS = (10, 100, 1000)
HELD_HORIZON = 1000
DELAY = 0.008
"""True delay of every command [s]: 1.6 steps of the servo, 2 of the double pendulum."""
CORRECTED = "identified+residual"
"""Name of the model with both."""

HOLD = (17, 40)
"""Least and most steps for which a command is held."""


@dataclass(frozen=True, kw_only=True)
class Plant:
    """A simulated plant and the model of it that is calibrated.

    Args:
        name: Name in the tables.
        truth: The plant.
        planted: Its parameter values, those of its sensor included; all of them are free in the model.
        model: The nominal model.
        sensor: From states to logs; the same for plant and model up to its free values.
        noise: Standard deviation of the white noise on each state entry before it is logged, shape [nx].
        commands: Draws the commands of one log from a generator and the time [s] of each step, shape [H, nu].
        residual: Makes the residual of the model.
        horizon: Steps of the training windows.
        fit: Options of the joint fit.
        sprung: Whether the plant has the spring that the model lacks.
    """

    name: str
    truth: MechanicalBaseline
    planted: Mapping[str, float]
    model: MechanicalBaseline
    sensor: Sensor
    noise: Sequence[float]
    commands: Callable[[np.random.Generator, Array], Array]
    residual: Callable[[], Conservative]
    horizon: int
    fit: FitOptions
    sprung: bool = True

    def logs(self, count: int, steps: int, seed: int, part: str) -> list[Trajectory]:
        """Simulate logs that start at rest."""
        rng = np.random.default_rng(seed)
        time = self.model.dt * np.arange(steps + 1)
        commands = np.stack([self.commands(rng, time) for _ in range(count)])
        values = {n: torch.tensor(x, dtype=torch.float64) for n, x in self.planted.items()}
        clock = torch.tensor(time).expand(count, -1)
        executed = self.sensor.command(torch.tensor(commands), clock, self.model.dt, values)
        plant = ResidualDynamics(self.truth, values={n: x for n, x in self.planted.items() if n in self.truth.parameters})
        with torch.no_grad():
            states = rollout(plant, torch.zeros(count, self.truth.space.nx, dtype=torch.float64), executed[:, :-1])
            noisy = states + torch.tensor(self.noise) * torch.tensor(rng.standard_normal(tuple(states.shape)))
            columns = self.sensor.measure(noisy, clock, self.model.dt, values).numpy()
        space = self.model.space
        return [Trajectory(name=f"{part}_{i}", group=part, command_time=time, commands=commands[i], command_names=space.action,
                           measurement_time=time, measurements=columns[i], measurement_names=tuple(c.name for c in self.sensor.columns))
                for i in range(count)]

    def windows(self, logs: Sequence[Trajectory], horizon: int, stride: int) -> Windows:
        """Cut windows, wherever in the motion they start; a log's first rates, which are differentiated at its end, begin none."""
        reach = self.sensor.reach[0]
        starts = [range(reach, len(log.commands) - horizon, stride) for log in logs]
        return cut_windows(logs, self.model.dt, horizon=horizon, starts=starts)

    def fold(self, *, train: int, held: int) -> Fold:
        """Cut windows from logs to learn from, and longer, overlapping ones from logs that are held out."""
        learn = self.windows(self.logs(train, 4 * self.horizon + 40, 1, "train"), self.horizon, self.horizon)
        hold = self.windows(self.logs(held, HELD_HORIZON + 300, 2, "held"), HELD_HORIZON, 120)
        return Fold(name=self.name, train=learn, held=hold)

    def recipe(self) -> Recipe:
        """Return what is fitted."""
        search = IdentifyOptions(free=list(self.planted), candidates=32, starts=1, horizons=self.fit.horizons, every=self.fit.every)
        return Recipe(dynamics=ResidualDynamics(self.model), sensor=self.sensor, disturbed=self.sensor,
                      candidates={CORRECTED: [self.residual()]}, identify=search, fit=self.fit)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What calibration made of a plant.

    Args:
        plant: The plant.
        models: "nominal", "identified", "identified+residual" and "network".
        train: Windows that they learned from.
        evaluation: All of them on held-out windows.
        verdict: Whether the residual is worth it.
    """

    plant: Plant
    models: Mapping[str, Model]
    train: Windows
    evaluation: Evaluation
    verdict: Verdict

    def values(self, model: str) -> dict[str, float]:
        """Return the planted parameters as a model has them; nominal where it does not say."""
        m = self.models[model]
        return {**m.sensor.parameters.nominal(), **m.dynamics.values, **m.sensor_values}

    def known(self, model: str, also: Sequence[str] = ()) -> Identifiability:
        """Return what the training windows say about the planted parameters (and others) beside a model's residual weights."""
        m, patterns = self.models[model], [*self.plant.planted, *also]
        sensor = m.sensor.with_nominal(m.sensor_values)
        free = free_parameters(m.dynamics, m.sensor, patterns)
        problem = SimulationError(dynamics=m.dynamics, sensor=sensor, windows=self.train, free=free, every=self.plant.fit.every,
                                  weights=bool(m.dynamics.residuals))
        return assess(problem, problem.initial(m.sensor_values))

    def error(self, model: str, horizon: int, column: int) -> float:
        """Return the mean error at a horizon [steps] on held-out windows, in the column's unit."""
        step = int(np.searchsorted(self.evaluation.steps, horizon))
        return float(self.evaluation.scores[model].over_horizon.value[step, column])

    @property
    def share(self) -> float:
        """Share of the residual in the force that moves the plant."""
        return self.evaluation.scores[CORRECTED].examination.force_share


def calibrate(plant: Plant, *, train: int, held: int) -> Outcome:
    """Fit every model of a plant on some logs and evaluate it on others.

    Args:
        plant: The plant.
        train: Number of logs to learn from.
        held: Number of logs held out.
    """
    fold = plant.fold(train=train, held=held)
    with tempfile.TemporaryDirectory() as work:
        models = fit_fold(plant.recipe(), fold, Path(work), "fold")
    evaluation = evaluate(models, fold.held, horizons=HORIZONS, split="held-out", resamples=500)
    return Outcome(plant=plant, models=models, train=fold.train, evaluation=evaluation, verdict=is_residual_worth_it(evaluation))


class SprungServo(Servo):
    """The servo with a spring on its joint, ``-k (q - q_s)``."""

    stiffness, rest = 0.06, 0.4

    def smooth_force(self, q: Tensor, v: Tensor, u: Tensor, p: Values) -> Tensor:
        """Add the spring's torque."""
        return super().smooth_force(q, v, u, p) - self.stiffness * (q - self.rest)


SERVO = {"load_mass": 1.3 * 0.49, "viscous": 0.012, "coulomb": 0.04, "motor_friction": 0.08, "load_friction": 0.12, "goal.delay": DELAY}


def servo_plant(*, sprung: bool = True) -> Plant:
    """Make a servo whose motor is known: then nothing scales with the torques, and all of the rest can be identified."""
    known = ("torque_constant", "resistance", "supply_resistance", "armature", "angle_offset", "load_friction_off", "stribeck_rate")
    parameters = servo.PARAMETERS.replaced(**{n: {"free": False} for n in known}, supply_voltage={"nominal": 11.1},  # type: ignore[arg-type]
                                           stribeck_friction={"nominal": 0.0, "free": False})
    model = Servo(parameters, integrator="rk4", substeps=1)
    sensor = Sensor(space=model.space, commands={"goal": [Delay()]},
                    columns=(Column(name="angle", source="angle", noise=2e-3), Column(name="rate", source="rate", noise=0.05)))
    truth = SprungServo(parameters, integrator="rk4", substeps=5) if sprung else model
    return Plant(name="servo" if sprung else "servo without spring", sprung=sprung, truth=truth, planted=SERVO, model=model,
                 sensor=sensor, noise=(1e-3, 0.02), commands=servo_commands,
                 residual=lambda: Conservative(nq=1, units=6, scale=0.1), horizon=200,
                 fit=FitOptions(horizons=(50,), rounds=4, iterations=6, ridge=0.005, explained=0.0, every=2))


def servo_commands(rng: np.random.Generator, time: Array) -> Array:
    """Draw goals, in some logs over nearly the whole turn, and one gain for the log."""
    goal = _waves(rng, time, [0.3, 0.8, 2.0, 4.0], [1.4, 1.0, 0.5, 0.3])
    goal = rng.choice([0.2, 1.0]) * 2.6 * np.tanh(goal / 2.0)
    gain = rng.choice([300.0, 600.0, 1200.0])
    return np.stack([goal, np.ones_like(time), np.full_like(time, gain)], 1)


def _waves(rng: np.random.Generator, time: Array, frequencies: Sequence[float], amplitudes: Sequence[float]) -> Array:
    """Sum sines near some frequencies [Hz], with random phases, sampled and held at random moments; zero at the start."""
    total = np.zeros_like(time)
    for f, a in zip(frequencies, amplitudes, strict=True):
        turn = 2 * np.pi * f * rng.uniform(0.7, 1.4)
        phase = rng.uniform(0, 2 * np.pi)
        total += a * (np.sin(turn * time + phase) - np.sin(phase))
    changes = np.cumsum(rng.integers(*HOLD, len(time)))
    last = np.concatenate([[0], changes])[np.searchsorted(changes, np.arange(len(time)), side="right")]
    return total[last]


LENGTHS = (0.3, 0.25)
"""Joint to joint, and joint 2 to the load [m]."""

BARE = {"inertia1": 0.03, "inertia2": 0.004, "coupling": 0.006, "gravity_moment1": 1.2, "gravity_moment2": 0.2}
"""The links without the load."""


class LoadedDoublePendulum(DoublePendulum):
    """A double pendulum of known links with a load at its end.

    A load m adds ``m l1²`` and ``m l2²`` to the inertias, ``m l1 l2`` to the coupling, ``m g l1`` and ``m g l2`` to the
    moments of gravity. Its gravity alone could as well be a potential; its inertia could not.
    """

    def loaded(self, p: Values) -> Values:
        """Return the parameters of links with load."""
        m, (l1, l2) = p["load_mass"], LENGTHS
        added = {"inertia1": l1**2, "inertia2": l2**2, "coupling": l1 * l2, "gravity_moment1": servo.GRAVITY * l1,
                 "gravity_moment2": servo.GRAVITY * l2}
        return {**p, **{n: p[n] + m * x for n, x in added.items()}}

    def mass_matrix(self, q: Tensor, p: Values) -> Tensor:
        """Return M(q) [kg·m²], shape [*batch, 2, 2]."""
        return super().mass_matrix(q, self.loaded(p))

    def smooth_force(self, q: Tensor, v: Tensor, u: Tensor, p: Values) -> Tensor:
        """Return Coriolis, gravity and joint torques [N·m], shape [*batch, 2]."""
        return super().smooth_force(q, v, u, self.loaded(p))

    def potential_energy(self, q: Tensor, p: Values) -> Tensor:
        """Return the gravity potential [J]."""
        return super().potential_energy(q, self.loaded(p))


class SprungDoublePendulum(LoadedDoublePendulum):
    """The same with a torsion spring between the links, ``∓k (θ2 - θ1 - φ)``."""

    stiffness, rest = 0.06, 0.2

    def smooth_force(self, q: Tensor, v: Tensor, u: Tensor, p: Values) -> Tensor:
        """Add the spring's torque, which pulls the links together."""
        torque = self.stiffness * (q[..., 1] - q[..., 0] - self.rest)
        return super().smooth_force(q, v, u, p) + torch.stack([torque, -torque], -1)


PENDULUM = {"load_mass": 1.3 * 0.2, "viscous1": 0.06, "viscous2": 0.02, "torque1.delay": DELAY, "torque2.delay": DELAY}


def pendulum_plant() -> Plant:
    """Make a double pendulum driven in both joints, of which a camera sees the angles; rates are differentiated from them.

    Its damping takes velocity from the light outer link at 8 per second. The implicit steps of the model, which are of first
    order in it, lag by half a substep, and a delay found beside them is that much too short where damping rules: some 7 % of
    this one at one substep of 4 ms, 3 % at two. The plant takes substeps of half a millisecond.
    """
    bare = {n: {"nominal": x, "lower": 0.0, "free": False} for n, x in BARE.items()}
    friction = {"viscous1": 0.03, "viscous2": 0.01}
    changed = double_pendulum.PARAMETERS.replaced(**bare, **{n: {"nominal": x, "upper": 1.0} for n, x in friction.items()})  # type: ignore[arg-type]
    parameters = Parameters(*changed, Parameter(name="load_mass", nominal=0.2, lower=0.01, upper=2.0, unit="kg"))
    model = LoadedDoublePendulum(parameters, dt=0.004, substeps=2)
    derivative = (Differentiated(order=1, window=15, polynomial=2),)
    sensor = Sensor(space=model.space, commands={"torque1": [Delay()], "torque2": [Delay()]}, columns=(
        Column(name="theta1", source="angle1", noise=2e-3), Column(name="theta2", source="angle2", noise=2e-3),
        Column(name="omega1", source="theta1", noise=math.inf, effects=derivative),
        Column(name="omega2", source="theta2", noise=math.inf, effects=derivative)))
    return Plant(name="double pendulum", truth=SprungDoublePendulum(parameters, dt=0.004, substeps=8), planted=PENDULUM, model=model,
                 sensor=sensor, noise=(5e-4, 5e-4, 0.0, 0.0), commands=pendulum_commands,
                 residual=lambda: Conservative(nq=2, units=6, scale=0.1), horizon=200,
                 fit=FitOptions(horizons=(50,), rounds=3, iterations=16, ridge=0.005, explained=0.0, every=3))


def pendulum_commands(rng: np.random.Generator, time: Array) -> Array:
    """Draw torques that keep both links well below upright."""
    return np.stack([_waves(rng, time, [0.3, 0.8, 1.6, 3.0], [0.4, 0.3, 0.3, 0.2]),
                     _waves(rng, time, [0.3, 0.8, 1.6, 3.0], [0.12, 0.1, 0.1, 0.1])], 1)


def parameter_rows(outcome: Outcome) -> list[Row]:
    """Print recovered against planted parameters; return the comparison with the truth, with and without the residual."""
    plant, rows, lines = outcome.plant, [], []
    parameters = Parameters(*plant.model.parameters, *plant.sensor.parameters)
    nominal, identified, corrected = (outcome.values(m) for m in ("nominal", "identified", CORRECTED))
    known = outcome.known(CORRECTED)
    for e in known.estimates:
        name, unit = e.parameter.name, parameters[e.parameter.name].unit
        true = plant.planted[name]
        errors = [100 * (x[name] / true - 1) for x in (identified, corrected)]
        lines.append([f"{name} [{unit}]", true, nominal[name], identified[name], f"{errors[0]:+.1f}", corrected[name], f"{errors[1]:+.1f}",
                      f"{196 * e.std / true:.1f}"])
        rows += [compare(f"{plant.name}: {name}, identified alone, against the truth", identified[name], true, unit),
                 compare(f"{plant.name}: {name}, with the residual, against the truth", corrected[name], true, unit)]
    show(f"{plant.name}: parameters", ["", "true", "nominal", "identified", "error %", "with residual", "error %", "± 95 % (%)"], lines)
    return rows


def rollout_rows(outcome: Outcome) -> list[Row]:
    """Print errors over horizon; return those of the corrected model against the others'."""
    evaluation, rows = outcome.evaluation, []
    for c, (column, unit) in enumerate(zip(evaluation.columns, evaluation.units, strict=True)):
        lines = [[m, *(outcome.error(m, h, c) for h in HORIZONS)] for m in evaluation.models]
        title = f"{outcome.plant.name}: mean error of {column} [{unit}] on held-out logs after"
        show(title, ["", *(f"{h} steps" for h in HORIZONS)], lines)
        rows += [compare(f"{outcome.plant.name}: {column} after {h} steps, {CORRECTED} against {m}", outcome.error(CORRECTED, h, c),
                         outcome.error(m, h, c), unit) for h in HORIZONS for m in evaluation.models if m != CORRECTED]
    return rows


def verdict_rows(outcome: Outcome) -> list[Row]:
    """Print the verdict; return it, and the residual's share of force against the 1 % below which none is needed."""
    say(f"{outcome.plant.name}: {outcome.verdict.text}\n")
    return [compare(f"{outcome.plant.name}: share of the residual in the force, against 1 %", outcome.share, 0.01, "1"),
            compare(f"{outcome.plant.name}: residual called worth it", float(outcome.verdict.worth), float(outcome.plant.sprung), "1")]


def main(options: Options) -> None:
    """Run all three studies."""
    train, held = (4, 4) if options.quick else (8, 8)
    rows: list[Row] = []
    for plant in (servo_plant(), servo_plant(sprung=False), *([] if options.quick else [pendulum_plant()])):
        outcome = calibrate(plant, train=train, held=held)
        rows += [*parameter_rows(outcome), *rollout_rows(outcome), *verdict_rows(outcome)]
    write_rows(options.json, rows)


if __name__ == "__main__":
    torch.set_num_threads(1)  # batches of this size gain nothing from threads
    main(tyro.cli(Options, description=__doc__))
