"""Windows that start amid motion, against the simulation of the whole log: what delays, lags and filters held is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import log

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.effects import ClockScale, Delay, Differentiated, Effect, LowPass
from residual_mbrl.model import Model
from residual_mbrl.physics.double_pendulum import DoublePendulum
from residual_mbrl.residuals import CommandActuator, Residual
from residual_mbrl.rollouts import rollout
from residual_mbrl.sensors import Column, Sensor
from residual_mbrl.simulation_error import SimulationError
from residual_mbrl.trajectories import Trajectory
from residual_mbrl.windows import Windows, cut_windows

DT, STEPS, HORIZON = 0.01, 80, 8
PLANT = DoublePendulum(dt=DT)
COMMANDS = 3 * np.random.default_rng(0).standard_normal((STEPS + 1, 2))
STARTS = [[0, 1, 5, 37, 70]]


def actuator(delay: float, lag: float) -> CommandActuator:
    """Make a drive with a delay [s] and a time constant [s] in both channels."""
    drive = CommandActuator(nu=2, channels=(0, 1), dt=DT, max_delay=0.05, max_lag=0.1)
    with torch.no_grad():
        for raw, share in ((drive.raw_delay, delay / 0.05), (drive.raw_lag, lag / 0.1)):
            raw.fill_(math.log(share) - math.log1p(-share) if share else -80.0)
    return drive


def model(*effects: Effect, residuals: tuple[Residual, ...] = (), filtered: bool = False) -> Model:
    """Make a double pendulum that shows angles and rates, the latter derived from the angles where ``filtered``."""
    derivative = (Differentiated(order=1, window=5, polynomial=2),)
    rates = [Column(name=f"omega{i}", source=f"theta{i}" if filtered else f"rate{i}", noise=0.1, effects=derivative if filtered else ())
             for i in (1, 2)]
    angles = [Column(name=f"theta{i}", source=f"angle{i}", noise=0.01) for i in (1, 2)]
    return Model(dynamics=ResidualDynamics(PLANT, residuals),
                 sensor=Sensor(space=PLANT.space, columns=(*angles, *rates), commands={"torque1": effects, "torque2": effects}))


def recorded(truth: Model) -> Trajectory:
    """Simulate the whole log at once, from rest and from a delay line that holds the first command."""
    sent, time = torch.tensor(COMMANDS), DT * torch.arange(STEPS + 1, dtype=torch.float64)
    with torch.no_grad():
        executed = truth.sensor.command(sent, time, DT)
        states = rollout(truth.dynamics, torch.zeros(4, dtype=torch.float64), executed[:-1])[..., :4]
        columns = truth.sensor.measure(states, time, DT).numpy()
    names = [c.name for c in truth.sensor.columns]
    return log(dict(zip(names, columns.T, strict=True)), {"torque1": COMMANDS[:, 0], "torque2": COMMANDS[:, 1]}, dt=DT)


def error(seen: Model, windows: Windows) -> float:
    """Return the largest difference between a prediction and the log."""
    return float((seen.predict(windows).measurements - windows.measurements).abs().max())


MODELS = {
    "delayed command": lambda: model(Delay(0.0237)),
    "filtered command": lambda: model(LowPass(0.02)),
    "delayed drive": lambda: model(residuals=(actuator(0.0237, 0.0),)),
    "lagging drive": lambda: model(residuals=(actuator(0.0, 0.015),)),
    "delayed and lagging drive": lambda: model(residuals=(actuator(0.034, 0.01),)),
    "delayed command and drive": lambda: model(Delay(0.012), residuals=(actuator(0.021, 0.02),)),
}


@pytest.mark.parametrize("name", MODELS)
def test_windows_predict_what_the_whole_log_shows(name: str) -> None:
    """Wherever they start, their predictions are the simulation from the log's own beginning."""
    seen = MODELS[name]()
    logs = [recorded(seen)]
    assert error(seen, cut_windows(logs, DT, horizon=HORIZON, starts=STARTS)) < 1e-9
    assert error(seen, cut_windows(logs, DT, horizon=HORIZON, starts=STARTS, around=0.0)) > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_windows_with_filtered_columns_do_too(name: str) -> None:
    """The simulation begins before the window, under the commands there, and ends behind it under those."""
    plain = MODELS[name]()
    seen = Model(dynamics=plain.dynamics, sensor=Sensor(space=PLANT.space, columns=model(filtered=True).sensor.columns,
                                                        commands=plain.sensor.commands))
    logs, starts = [recorded(seen)], [[3, 8, 37, 68]]
    assert error(seen, cut_windows(logs, DT, horizon=HORIZON, starts=starts)) < 1e-8
    assert error(seen, cut_windows(logs, DT, horizon=HORIZON, starts=starts, around=0.0)) > 1e-3


@settings(max_examples=5)
@given(start=st.integers(0, STEPS - HORIZON), delay=st.floats(0.0, 0.05), drive=st.floats(1e-6, 0.0499))
def test_any_delay_and_any_start(start: int, delay: float, drive: float) -> None:
    """Delays of any length, whole steps or not, in the log's command and in the drive."""
    seen = model(Delay(delay), residuals=(actuator(drive, 0.0),))
    assert error(seen, cut_windows([recorded(seen)], DT, horizon=HORIZON, starts=[[start]])) < 1e-9


def test_pieces_of_windows_know_the_commands_before_them() -> None:
    """Windows cut from windows are those cut from the log."""
    seen = MODELS["delayed command and drive"]()
    logs = [recorded(seen)]
    whole = cut_windows(logs, DT, horizon=50, starts=[[20]])
    piece, direct = whole.cut(30, HORIZON), cut_windows(logs, DT, horizon=HORIZON, starts=[[50]])
    for field in ("actions", "lead", "measurements", "recorded", "start"):
        assert torch.equal(getattr(piece, field), getattr(direct, field))
    assert torch.equal(seen.predict(piece).measurements, seen.predict(direct).measurements)


def test_commands_around_change_nothing_without_memory() -> None:
    """Where commands reach the plant at once, predictions are the same to the last bit."""
    seen = model()
    logs = [recorded(seen)]
    known, unknown = (cut_windows(logs, DT, horizon=HORIZON, starts=STARTS, around=s) for s in (0.5, 0.0))
    assert torch.equal(seen.predict(known).measurements, seen.predict(unknown).measurements)


def test_a_windows_clock_starts_at_its_first_sample() -> None:
    """A clock that runs fast on the commands counts from the window, not from what leads in to it."""
    seen = model(ClockScale(1.04))
    place = 37 + 1.04 * np.arange(HORIZON)
    expected = np.stack([np.interp(place, np.arange(STEPS), c) for c in COMMANDS[:STEPS].T], 1)
    windows = cut_windows([recorded(model())], DT, horizon=HORIZON + 5, starts=[[37]])
    assert np.allclose(seen.predict(windows).actions[0, :HORIZON].numpy(), expected, rtol=0, atol=1e-12)


def test_a_delay_is_identified_from_the_gradient() -> None:
    """At the true delay the error has no slope by it, windows starting amid motion."""
    seen = MODELS["delayed command"]()
    windows = cut_windows([recorded(seen)], DT, horizon=HORIZON, starts=STARTS)
    free = [seen.sensor.parameters[f"torque{i}.delay"] for i in (1, 2)]
    problem = SimulationError(dynamics=seen.dynamics, sensor=seen.sensor, windows=windows, free=free)
    z = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(problem.residuals(z).square().sum(), z)
    assert float(slope.abs().max()) < 1e-6


def test_a_fit_knows_its_data_by_the_commands_around() -> None:
    """Other commands before a window are another problem for a checkpoint."""
    seen = MODELS["delayed command"]()
    free = [seen.sensor.parameters["torque1.delay"]]
    marks = [SimulationError(dynamics=seen.dynamics, sensor=seen.sensor, free=free,
                             windows=cut_windows([recorded(seen)], DT, horizon=HORIZON, around=s)).fingerprint(None) for s in (0.1, 0.2)]
    assert marks[0] != marks[1]


@pytest.mark.parametrize("batch", [(), (3,)])
def test_memory_runs_through_the_lead(batch: tuple[int, ...]) -> None:
    """A rollout that is told the commands before it goes on as the whole one does, memory included."""
    drive = ResidualDynamics(PLANT, [actuator(0.034, 0.02)])
    sent = torch.tensor(COMMANDS[:20])
    with torch.no_grad():
        whole = rollout(drive, torch.zeros(4, dtype=sent.dtype), sent)
        found = rollout(drive, whole[12, :4].expand(*batch, 4), sent[12:], lead=sent[:12].expand(*batch, 12, 2))
    assert found.shape == (*batch, 9, drive.space.nx)
    assert torch.allclose(found, whole[12:].expand_as(found), rtol=1e-12, atol=1e-12)


def test_a_lead_of_no_steps_is_none() -> None:
    """Then the first command has long been there."""
    drive = ResidualDynamics(PLANT, [actuator(0.034, 0.02)])
    sent = torch.tensor(COMMANDS[:6])
    first = torch.ones(4, dtype=sent.dtype)
    with torch.no_grad():
        assert torch.equal(rollout(drive, first, sent, lead=sent[:0]), rollout(drive, first, sent))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("lead", "state", "message"), [
    (torch.zeros(3, 1), 4, r"lead must have shape \[\*batch, L, 2\] in torch.float32 on cpu, received \(3, 1\)"),
    (torch.zeros(2), 4, "lead must have shape"),
    (torch.zeros(3, 2).double(), 4, r"lead must have shape .* received \(3, 2\) in torch.float64"),
    (torch.full((3, 2), math.nan), 4, "lead holds values that are not finite"),
    (torch.zeros(5, 3, 2), 4, r"lead must broadcast, received batch \(2,\) and \(5,\)"),
    (torch.zeros(3, 2), 16, "a state of 16 entries holds the residuals' memory already"),
])
def test_a_wrong_lead_is_refused(lead: torch.Tensor, state: int, message: str) -> None:
    """The message says what was received and what was expected."""
    drive = ResidualDynamics(PLANT, [actuator(0.01, 0.01)])
    with pytest.raises(ValueError, match=f"rollout: {message}"):
        rollout(drive, torch.zeros(2, state), torch.zeros(2, 4, 2), lead=lead)
