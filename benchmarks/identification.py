"""Identification alone, side by side with ``mujoco.sysid``: the same logs, free parameters, bounds, starts and sensor noise.

Two plants are simulated with planted parameters: the 7-joint arm that comes with this library (14 parameters: dry friction and
damping of its joints, mass and centre of mass of a payload), with logs of one and of two seconds, and a cart-pole (6). Logs begin
at rest in a known pose. Four comparisons are made; both programs use all cores in native threads.

- One problem: least squares on the errors of all positions and velocities, each in units of its noise, over whole logs from the
  same first states. Ours grows its horizon, once, from a fifth of every log to all of it. The peer runs with each of its
  optimisers, to a tolerance as ours, with both ways to make a model (an ``MjSpec`` that is compiled for every value; its
  ``build_model`` hook, which here writes into a copy of a compiled model); the quickest of those that reach its lowest cost stands
  for it.
- The same problem, the peer prepared by hand: it is called twice, on a fifth of every log first, as ours does by an option.
- As each is: the peer's default optimiser, residual (each signal normalised by its size) and tolerances; ours with screened
  starts, a robust loss and growing horizons.
- Short windows: ours on windows of a fifth of a second that begin at noisy samples, as ``residual-mbrl calibrate`` cuts them for
  logs of any kind, against the peer's default on whole logs.

Seconds are medians of runs that alternate in one process; accuracy is the worst and the median relative error of the parameters.

    pip install "mujoco[sysid]"
    python benchmarks/identification.py --json benchmarks/results/identification.json
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import time as clock
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import mujoco
import numpy as np
import torch
import tyro
from common import Options, Row, compare, say, show, write_rows
from numpy.typing import NDArray
from torch import Tensor

from residual_mbrl.baselines import Parameters, Values
from residual_mbrl.demo_arm import arm_xml
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.errors import ModelError
from residual_mbrl.identification import IdentifyOptions, identify
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator
from residual_mbrl.presets.simulator import HORIZON
from residual_mbrl.sensors import Column, Sensor
from residual_mbrl.sysid_parameters import to_sysid
from residual_mbrl.trajectories import Trajectory
from residual_mbrl.windows import cut_windows

Array = NDArray[np.float64]
ITERATIONS, TOLERANCE = 60, 1e-6
"""Most iterations of both, and the relative size of a step at which both end where the problem is one."""
LOWEST = 1.001
"""Costs within this factor of the lowest count as reaching it."""
PREPARED = 0.2
"""Share of each log that prepares the search on all of it."""
ROUNDS = 3

ARM_TRUTH = {**{f"frictionloss:joint{i + 1}": f for i, f in enumerate((2.1, 1.9, 1.3, 1.5, 0.55, 0.50, 0.42))},
             "damping:joint1": 2.4, "damping:joint2": 1.1, "damping:joint4": 1.4,
             "mass:payload": 1.6, "com:payload.x": 0.035, "com:payload.y": -0.025, "com:payload.z": 0.070}
CART_TRUTH = {"mass:cart": 1.4, "mass:pole": 0.3, "com:pole.z": 0.36, "damping:slider": 0.8, "damping:hinge": 0.02,
              "frictionloss:slider": 0.6}
CART_POLE = """
<mujoco model="cart-pole">
  <option timestep="0.005" integrator="implicitfast"/>
  <worldbody>
    <body name="cart">
      <joint name="slider" type="slide" axis="1 0 0" damping="0.3" frictionloss="0.2"/>
      <inertial pos="0 0 0" mass="1" diaginertia="0.01 0.01 0.01"/>
      <body name="pole">
        <joint name="hinge" axis="0 1 0" damping="0.005"/>
        <inertial pos="0 0 0.25" mass="0.2" diaginertia="0.006 0.006 0.0002"/>
      </body>
    </body>
  </worldbody>
  <actuator><motor name="force" joint="slider"/></actuator>
  <keyframe><key name="home" qpos="0 3.141592653589793"/></keyframe>
</mujoco>"""


class Simulator(MujocoSimulator):
    """The simulator; counts the seconds of motion that it simulates."""

    simulated = 0.0

    def rollout(self, state: Tensor, actions: Tensor, parameters: Values | None = None) -> Tensor:
        """Advance H steps."""
        self.simulated += state.shape[:-1].numel() * actions.shape[-2] * self.dt
        return super().rollout(state, actions, parameters)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A plant whose parameters are known, and its logs.

    Args:
        name: Name in the tables.
        xml: The nominal model.
        truth: Planted values of the free parameters.
        noise: Standard deviation of the noise on positions and velocities.
        stiffness: Of the feedback that follows the exciting motion; nominal inertia times this [1/s²].
        amplitude: Of the exciting motion about the home pose, shape [nv].
        logs: How many.
        seconds: Length of each log.
    """

    name: str
    xml: str
    truth: Mapping[str, float]
    noise: tuple[float, float]
    stiffness: float
    amplitude: Sequence[float]
    logs: int
    seconds: float

    @cached_property
    def parameters(self) -> Parameters:
        """The free parameters with nominal values and bounds of the model, in the order in which they were planted."""
        offered = MujocoSimulator(self.xml, list(self.truth)).parameters
        return Parameters(*(offered[n] for n in self.truth))

    def simulator(self) -> Simulator:
        """Make the nominal model."""
        return Simulator(self.xml, self.parameters)

    @cached_property
    def trajectories(self) -> list[Trajectory]:
        """The logs: the plant is held at rest, then follows sums of sines; what its motors were sent is logged."""
        return [self._log(i) for i in range(self.logs)]

    def _log(self, seed: int) -> Trajectory:
        simulator = self.simulator()
        plant = simulator.model_with(self.truth)
        data, rng = mujoco.MjData(plant), np.random.default_rng(seed)
        mujoco.mj_resetDataKeyframe(plant, data, 0)
        time: Array = simulator.dt * np.arange(round(self.seconds / simulator.dt) + 1, dtype=np.float64)
        home, nv = data.qpos.copy(), plant.nv
        rate, phase = 2 * np.pi * rng.uniform(0.3, 1.3, (3, nv)), rng.uniform(0, 2 * np.pi, (3, nv))
        waves = np.sin(rate * time[:, None, None] + phase) - np.sin(phase)
        goals = home + np.asarray(self.amplitude) * rng.uniform(0.5, 1.0, nv) * waves.mean(1)
        inertia = plant.dof_M0
        driven = plant.actuator_trnid[:, 0]
        states, commands = [np.concatenate([data.qpos, data.qvel])], []
        for goal in goals[1:]:
            pull = inertia * (self.stiffness * (goal - data.qpos) - 1.4 * np.sqrt(self.stiffness) * data.qvel)
            mujoco.mj_forward(plant, data)
            data.ctrl[:] = (pull + data.qfrc_bias)[driven]
            commands.append(data.ctrl.copy())
            mujoco.mj_step(plant, data)
            states.append(np.concatenate([data.qpos, data.qvel]))
        measured = np.stack(states)
        measured[1:] += np.repeat(self.noise, nv) * rng.standard_normal(measured[1:].shape)
        space = simulator.space
        return Trajectory(name=f"log {seed}", command_time=time, commands=np.stack([*commands, commands[-1]]), command_names=space.action,
                          measurement_time=time, measurements=measured, measurement_names=space.state_names)

    def errors(self, values: Mapping[str, float]) -> Array:
        """Return the relative error of every parameter."""
        return np.array([abs(values[n] / x - 1) for n, x in self.truth.items()])


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one run found.

    Args:
        values: By parameter.
        seconds: Wall time.
        simulated: Seconds of motion simulated.
        cost: At the solution, half the sum of squared errors in units of the noise where that is what was minimised.
    """

    values: Mapping[str, float]
    seconds: float
    simulated: float
    cost: float


Solver = Callable[[], Result]


def ours(case: Case, options: IdentifyOptions, horizon: float | None) -> Solver:
    """Return our identification, from logs in memory to values with their intervals."""

    def solve() -> Result:
        begun = clock.perf_counter()
        simulator = case.simulator()
        space, (position, velocity) = simulator.space, case.noise
        sensor = Sensor(space=space, columns=tuple(Column(name=n, source=n, noise=position if n in space.position else velocity)
                                                   for n in space.state_names))
        windows = cut_windows(case.trajectories, simulator.dt, horizon=None if horizon is None else round(horizon / simulator.dt))
        found = identify(ResidualDynamics(simulator), sensor, windows, options)
        return Result(values=found.dynamics.values, seconds=clock.perf_counter() - begun, simulated=simulator.simulated, cost=found.cost)

    return solve


def peer(case: Case, *, identical: bool, hook: bool = False, prepared: bool = False, **optimizer: Any) -> Solver:
    """Return ``mujoco.sysid`` on the same logs.

    Args:
        case: The case.
        identical: Whether errors are in units of the noise, as ours; the peer's own normalisation otherwise.
        hook: Make models by the ``build_model`` hook in place of compiling a spec.
        prepared: Search on the first part of the logs first.
        optimizer: Arguments of its ``optimize``.
    """
    from mujoco import sysid  # noqa: PLC0415  # an extra of MuJoCo

    def solve() -> Result:
        begun, simulated = clock.perf_counter(), 0.0
        spec = mujoco.MjSpec.from_string(case.xml)
        model = spec.compile()
        for body in {n.partition(":")[2].split(".")[0] for n in case.truth if n.startswith(("mass", "com"))}:
            _state_inertia(spec.body(body), model.body(body))
        model = spec.compile()
        names = [model.joint(i).name for i in range(model.njnt)]
        signals = [*((f"{n}_qpos", sysid.SignalType.MjStateQPos) for n in names),
                   *((f"{n}_qvel", sysid.SignalType.MjStateQVel) for n in names)]
        weight = 1 / np.repeat(case.noise, model.nv)

        def in_noise(_: object, __: object, measured: Any, *___: object, state: Array) -> tuple[Array, Any, Any]:
            return (state[:, 1:] - measured.data[1:]) * weight, measured, measured

        settings: dict[str, Any] = {"modify_residual": in_noise, "resample_true": False} if identical else {}
        if hook:
            settings["build_model"] = lambda parameters, _: _written(model, parameters)

        def residual(rows: slice) -> Callable[[Array, Any], Any]:
            logs = case.trajectories
            sequences = sysid.ModelSequences(
                case.name, spec, [t.name for t in logs],
                [sysid.create_initial_state(model, *np.split(t.measurements[0], [model.nq])) for t in logs],
                [sysid.TimeSeries(t.command_time[rows], t.commands[rows]) for t in logs],
                [sysid.TimeSeries.from_names(t.measurement_time[rows], t.measurements[rows], model, signals) for t in logs],
                allow_missing_sensors=True)
            function = sysid.build_residual_fn(models_sequences=[sequences], **settings)

            def counted(x: Array, parameters: Any) -> Any:
                nonlocal simulated
                copies = x.shape[1] if x.ndim > 1 else 1
                simulated += copies * sum(np.ptp(t.command_time[rows]) for t in logs)
                return function(x, parameters)

            return counted

        found = to_sysid(case.parameters, write=_write)
        whole = residual(slice(None))
        stages = [residual(slice(round(PREPARED * len(case.trajectories[0].commands)) + 1))] if prepared else []
        with contextlib.redirect_stdout(io.StringIO()):  # it prints every iteration, whatever it is told
            for stage in [*stages, whole]:
                found, _ = sysid.optimize(found, stage, verbose=False, **optimizer)
        seconds, spent = clock.perf_counter() - begun, simulated
        errors = np.concatenate(whole(found.as_vector(), found)[0])
        return Result(values={n: float(p.value[0]) for n, p in found.items()}, seconds=seconds, simulated=spent,
                      cost=0.5 * float(errors @ errors))

    return solve


def peers(case: Case) -> dict[str, Solver]:
    """Return every way in which the peer can solve the same problem as ours."""
    scaled, ends = {"x_scale": "jac"}, {"xtol": TOLERANCE, "max_iters": ITERATIONS}
    optimizers: dict[str, dict[str, Any]] = {
        "mujoco": {"optimizer": "mujoco", **ends},
        "scipy_parallel_fd": {"optimizer": "scipy_parallel_fd", "ftol": 0.1 * TOLERANCE, **scaled, **ends},
        "scipy": {"optimizer": "scipy", "ftol": 0.1 * TOLERANCE, **scaled, **ends}}
    return {f"{name}{', model hook' if hook else ''}{', prepared' if prepared else ''}":
            peer(case, identical=True, hook=hook, prepared=prepared, **arguments)
            for name, arguments in optimizers.items() for hook in (False, True) for prepared in (False, True)
            if name != "scipy" or not (hook or prepared)}  # one simulation at a time: the slowest in any case


def _state_inertia(body: mujoco.MjsBody, compiled: Any) -> None:
    """State a body's inertia that is inferred from its geoms, so that its mass can be written without a compilation before."""
    body.explicitinertial = True
    body.fullinertia = np.full((6, 1), np.nan)
    body.mass, body.inertia, body.ipos, body.iquat = compiled.mass[0], compiled.inertia, compiled.ipos, compiled.iquat


def _write(spec: mujoco.MjSpec, values: Mapping[str, float]) -> None:
    """Write values into a spec."""
    for kind, element, axis, value in _places(values):
        if kind == "frictionloss":
            spec.joint(element).frictionloss = value
        elif kind == "damping":
            spec.joint(element).damping[0] = value
        elif kind == "mass":
            spec.body(element).mass = value
        else:
            spec.body(element).ipos["xyz".index(axis)] = value


def _written(model: mujoco.MjModel, parameters: Any) -> mujoco.MjModel:
    """Return a copy of a compiled model with values written into it."""
    model = copy.copy(model)
    for kind, element, axis, value in _places({n: p.value[0] for n, p in parameters.items()}):
        if kind in ("frictionloss", "damping"):
            setattr(model.joint(element), kind, value)
        elif kind == "mass":
            model.body(element).mass = value
        else:
            model.body(element).ipos["xyz".index(axis)] = value
    mujoco.mj_setConst(model, mujoco.MjData(model))
    return model


def _places(values: Mapping[str, float]) -> Iterator[tuple[str, str, str, float]]:
    for name, value in values.items():
        kind, _, rest = name.partition(":")
        element, _, axis = rest.partition(".")
        yield kind, element, axis, value


def alternate(solvers: Mapping[str, Solver], rounds: int) -> dict[str, Result]:
    """Run solvers in turns; return what each found, with the median of its seconds."""
    runs = [{n: solve() for n, solve in solvers.items()} for _ in range(rounds)]
    return {n: replace(runs[-1][n], seconds=float(np.median([r[n].seconds for r in runs]))) for n in solvers}


def quickest(results: Mapping[str, Result]) -> str:
    """Return the name of the quickest of those that reach the lowest cost."""
    lowest = min(r.cost for r in results.values())
    return min((n for n, r in results.items() if r.cost <= LOWEST * lowest), key=lambda n: results[n].seconds)


def rows(case: Case, rounds: int) -> list[Row]:
    """Print every solver's numbers; return ours against the peer's."""
    steps = len(case.trajectories[0].commands) - 1
    one = IdentifyOptions(candidates=1, starts=1, loss="linear", iterations=ITERATIONS, horizons=[round(PREPARED * steps)])
    own = IdentifyOptions(candidates=8, starts=1, iterations=ITERATIONS, horizons=[round(PREPARED * steps)])
    solvers = peers(case)
    tried = alternate(solvers, 1)
    best, helped = (quickest({n: r for n, r in tried.items() if ("prepared" in n) == x}) for x in (False, True))
    final = alternate({"ours, one problem": ours(case, one, None), f"peer, one problem ({best})": solvers[best],
                       f"peer, one problem ({helped})": solvers[helped], "ours, as it is": ours(case, own, None),
                       "peer, as it is": peer(case, identical=False),
                       "ours, short windows": ours(case, IdentifyOptions(candidates=8, starts=1, iterations=20), HORIZON)}, rounds)
    runs = {"one problem": ("ours, one problem", f"peer, one problem ({best})"),
            "one problem, the peer prepared by hand": ("ours, one problem", f"peer, one problem ({helped})"),
            "as each is": ("ours, as it is", "peer, as it is"), "short windows": ("ours, short windows", "peer, as it is")}
    lines = [(n, 100 * case.errors(r.values).max(), 100 * float(np.median(case.errors(r.values))), r.seconds, r.simulated, r.cost)
             for n, r in [*final.items(), *((f"peer, tried once: {n}", r) for n, r in tried.items())]]
    show(f"{case.name}: {len(case.truth)} parameters from {case.logs} logs of {case.seconds:g} s",
         ["", "worst error %", "median error %", "seconds", "simulated s", "cost"], lines)
    out = []
    for name, (a, b) in runs.items():
        x, y = final[a], final[b]
        for what, take, unit in (("worst relative error", lambda r: float(case.errors(r.values).max()), "1"),
                                 ("median relative error", lambda r: float(np.median(case.errors(r.values))), "1"),
                                 ("time", lambda r: r.seconds, "s"), ("motion simulated", lambda r: r.simulated, "s")):
            out.append(compare(f"{case.name}: {name}: {what}, against mujoco.sysid", take(x), take(y), unit))
    return out


def main(options: Options) -> None:
    """Compare on both plants."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # the peer warns of models without sensors; it is given states
    try:
        to_sysid(Parameters())
    except ModelError as e:
        say(f"Nothing to compare with: {e}")
        return
    logs, share, rounds = (2, 0.5, 1) if options.quick else (4, 1.0, ROUNDS)
    arms = [Case(name=f"arm, {seconds:g} s", xml=arm_xml(), truth=ARM_TRUTH, noise=(1e-3, 1e-2), stiffness=100.0, amplitude=[0.9] * 7,
                 logs=logs, seconds=seconds) for seconds in (share, 2 * share)]
    cart = Case(name="cart-pole", xml=CART_POLE, truth=CART_TRUTH, noise=(2e-3, 2e-2), stiffness=40.0, amplitude=[0.8, 0.0], logs=logs,
                seconds=share * 2.0)
    write_rows(options.json, [row for case in (*arms, cart) for row in rows(case, rounds)])


if __name__ == "__main__":
    torch.set_num_threads(1)  # the engine has the threads
    main(tyro.cli(Options, description=__doc__))
