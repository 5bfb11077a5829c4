"""Windows simulated as filtered logs show them, and the first states that are solved for."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from problems import log, slopes
from scipy.signal import savgol_filter
from torch import Tensor

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.effects import AngleHarmonic, Bias, Delay, Differentiated, Scale, Smoothing
from residual_mbrl.errors import ModelError
from residual_mbrl.observation import observe
from residual_mbrl.physics.double_pendulum import DoublePendulum
from residual_mbrl.rollouts import rollout
from residual_mbrl.sensors import Column, Sensor
from residual_mbrl.windows import Windows, cut_windows

DT, FINE = 0.01, 10
PLANT = DoublePendulum(dt=DT, substeps=4)
TRUE = {"theta1.bias": 0.02, "theta2.bias": -0.015, "theta2.cos4": 0.004, "theta2.sin4": -0.003}
"""What the instrument of the synthetic logs does to the angles."""


def sensor(window: int = 5, position: int = -1) -> Sensor:
    """Biased angles, an eccentric second disc, and rates and accelerations derived from the angles one from another."""
    derivative = (Differentiated(order=1, window=window, polynomial=2, position=position),)
    disc = (AngleHarmonic(order=4, phase="cos"), AngleHarmonic(order=4, phase="sin"))
    return Sensor(space=PLANT.space, columns=(
        Column(name="theta1", source="angle1", noise=1e-3, effects=(Bias(),)),
        Column(name="theta2", source="angle2", noise=1e-3, effects=(Bias(), *disc)),
        *(Column(name=f"omega{i}", source=f"theta{i}", noise=1e-2, effects=derivative) for i in (1, 2)),
        *(Column(name=f"alpha{i}", source=f"omega{i}", noise=1e-1, effects=derivative) for i in (1, 2))))


def values(**changes: float) -> dict[str, Tensor]:
    """Return the instrument's true values as tensors."""
    return {n: torch.tensor(x, dtype=torch.float64) for n, x in {**TRUE, **changes}.items()}


@cache
def trajectory(seed: int) -> np.ndarray:
    """States of a free swing, every 10 ms of a simulation ten times as fine, shape [81, 4]."""
    start = torch.tensor(np.random.default_rng(seed).uniform([-1, -1, -2, -2], [1, 1, 2, 2]))
    fine = ResidualDynamics(DoublePendulum(dt=DT / FINE))
    with torch.no_grad():
        return rollout(fine, start, torch.zeros(80 * FINE, 2, dtype=torch.float64))[::FINE].numpy()


def derived(x: np.ndarray, window: int, position: int) -> np.ndarray:
    """Derivative that an author's filter gives: scipy's at the centre, else the slope of numpy's own quadratic fits."""
    if position < 0:
        return savgol_filter(x, window, 2, deriv=1, delta=DT, axis=0)
    time = DT * (np.arange(window) - position)
    out = np.full_like(x, np.nan)
    for t in range(position, len(x) - (window - 1 - position)):
        out[t] = np.polyfit(time, x[t - position : t - position + window], 2)[1]
    return out


def data(window: int = 5, position: int = -1, *, horizon: int = 20) -> Windows:
    """Windows away from the logs' ends, the columns made without any of our code but the fine simulation."""
    logs = []
    for seed in range(3):
        theta = trajectory(seed)[:, :2] + [TRUE["theta1.bias"], TRUE["theta2.bias"]]
        for phase in ("cos", "sin"):
            theta[:, 1] += TRUE[f"theta2.{phase}4"] * getattr(np, phase)(4 * theta[:, 1])
        omega = derived(theta, window, position)
        columns = np.concatenate([theta, omega, derived(omega, window, position)], 1)
        names = [f"{n}{i}" for n in ("theta", "omega", "alpha") for i in (1, 2)]
        zero = np.zeros(len(theta))
        logs.append(log(dict(zip(names, columns.T, strict=True)), {"torque1": zero, "torque2": zero}, dt=DT, missing=position >= 0))
    return cut_windows(logs, DT, horizon=horizon, starts=[[20, 35]] * 3)


def roll(x: Tensor, u: Tensor, lead: Tensor) -> Tensor:
    """Simulate the true plant at the logs' rate."""
    return rollout(ResidualDynamics(PLANT), x, u, lead=lead)


FILTERS = pytest.mark.parametrize(("window", "position"), [(5, -1), (9, -1), (9, 3)])


@FILTERS
def test_first_sample_is_reproduced(window: int, position: int) -> None:
    """Angles and filtered rates of each window's first sample come out as recorded, through bias, harmonics and filter."""
    logs = data(window, position)
    found = observe(roll, sensor(window, position), logs, values()).measurements[:, 0, :4]
    assert torch.allclose(found, logs.measurements[:, 0, :4], rtol=0, atol=1e-10)


@FILTERS
def test_first_state_is_the_true_one(window: int, position: int) -> None:
    """At the true parameters the state behind the first sample is that of the fine simulation, which no column shows."""
    found = observe(roll, sensor(window, position), data(window, position), values()).states[:, 0]
    truth = torch.tensor(np.concatenate([trajectory(seed)[[20, 35]] for seed in range(3)]))
    assert torch.allclose(found, truth, rtol=0, atol=1e-6)


@FILTERS
def test_every_column_is_predicted(window: int, position: int) -> None:
    """Filters are exact at both ends of a window too, for a derivative of a derivative as well."""
    logs = data(window, position)
    found = observe(roll, sensor(window, position), logs, values())
    assert found.measurements.shape == logs.measurements.shape == (6, 21, 6)
    assert found.states.shape == (6, 21, 4)
    for columns, tolerance in ((slice(0, 2), 1e-6), (slice(2, 4), 1e-5), (slice(4, 6), 1e-3)):
        assert torch.allclose(found.measurements[..., columns], logs.measurements[..., columns], rtol=0, atol=tolerance)


def test_a_wrong_sensor_finds_another_state() -> None:
    """Without the bias the same sample is shown by another angle: the columns agree, the state does not."""
    logs = data()
    right, wrong = (observe(roll, sensor(), logs, values(**changes)) for changes in ({}, {"theta1.bias": 0.0}))
    assert torch.allclose(wrong.measurements[:, 0, :4], logs.measurements[:, 0, :4], rtol=0, atol=1e-10)
    assert torch.allclose(wrong.states[:, 0, 0], right.states[:, 0, 0] + 0.02, atol=1e-6)


@pytest.mark.parametrize(("window", "position"), [(5, -1), (9, 3)])
def test_implicit_derivative_is_that_of_differences(window: int, position: int) -> None:
    """Prediction by plant and sensor parameters, the first state's own dependence on them included."""
    logs, seen = data(window, position, horizon=4).take(torch.arange(2)), sensor(window, position)
    names = ["gravity_moment1", "coupling", "inertia2"]
    start = torch.tensor([PLANT.parameters[n].nominal for n in names] + list(TRUE.values()), dtype=torch.float64)

    def predicted(z: Tensor) -> Tensor:
        plant = dict(zip(names, z[:3], strict=True))
        given = dict(zip(TRUE, z[3:], strict=True))
        return observe(lambda x, u, lead: rollout(ResidualDynamics(PLANT), x, u, plant, lead), seen, logs, given).measurements

    exact, finite = torch.autograd.functional.jacobian(predicted, start), slopes(predicted, start, 1e-5)
    assert float(exact[:, 0, :4].abs().max()) < 1e-5  # the first sample is reproduced whatever the parameters
    assert float((exact - finite).abs().max()) < 1e-4 * float(exact.abs().max())
    assert all(float(exact[..., i].abs().max()) > 1e-3 for i in range(7))


def test_nothing_is_simulated_before_a_window_where_no_filter_needs_it() -> None:
    """One simulation, of the windows as they are, from the state that the columns show."""
    plain = Sensor(space=PLANT.space, columns=(
        *(Column(name=f"theta{i}", source=f"angle{i}", noise=1e-3, effects=(Bias(0.01), Delay(0.003))) for i in (1, 2)),
        *(Column(name=f"omega{i}", source=f"rate{i}", noise=1e-2) for i in (1, 2)),
        *(Column(name=f"alpha{i}", source=f"rate{i}", noise=1e-1, effects=(Scale(),)) for i in (1, 2))))
    logs, calls = data(), []

    def counted(x: Tensor, u: Tensor, lead: Tensor) -> Tensor:
        calls.append((x, u, lead))
        return roll(x, u, lead)

    found = observe(counted, plain, logs, {})
    assert plain.reach == (0, 0) and len(calls) == 1
    assert all(torch.equal(a, b) for a, b in zip(calls[0], (plain.start(logs), logs.actions, logs.lead), strict=True))
    assert torch.equal(found.states[:, 0], plain.start(logs))


def _sent(logs: Windows) -> tuple[list[float], list[float]]:
    """First torque of the first window as the simulation gets it, before and from the state that it begins in."""
    seen = []

    def kept(x: Tensor, u: Tensor, lead: Tensor) -> Tensor:
        seen.append((lead[0, :, 0].tolist(), u[0, :, 0].tolist()))
        return roll(x, u, lead)

    observe(kept, sensor(), logs, values())
    assert all(before == seen[0][0] for before, _ in seen)
    return seen[-1]


def _counting(around: float) -> Windows:
    """Windows of three steps from row 20, the commands of which are their rows."""
    rows = np.arange(41.0)
    columns = {n: np.zeros(41) for n in ("theta1", "theta2", "omega1", "omega2", "alpha1", "alpha2")}
    return cut_windows([log(columns, {"torque1": rows, "torque2": rows}, dt=DT)], DT, horizon=3, starts=[[20]], around=around)


def test_the_simulation_gets_the_commands_around_a_window() -> None:
    """Those as far as the filters reach are simulated, earlier ones lead in."""
    assert _sent(_counting(7 * DT)) == ([13.0, 14.0, 15.0], [float(k) for k in range(16, 27)])


def test_unknown_commands_around_a_window_are_held() -> None:
    """The earliest and the last known one stand for those that the filters need beyond."""
    assert _sent(_counting(DT)) == ([], [19.0] * 4 + [20.0, 21.0, 22.0, 23.0] + [23.0] * 3)


def test_copies_are_each_their_own() -> None:
    """Parameters of several candidates at once give what each gives alone."""
    logs, biases = data(), [0.02, 0.0, -0.3]
    together = observe(roll, sensor(), logs, values() | {"theta1.bias": torch.tensor(biases, dtype=torch.float64)[:, None]}, copies=3)
    assert together.measurements.shape == (3, 6, 21, 6)
    for k, b in enumerate(biases):
        alone = observe(roll, sensor(), logs, values(**{"theta1.bias": b}))
        assert torch.allclose(together.measurements[k], alone.measurements, rtol=0, atol=1e-9)


def test_offsets_move_the_first_state() -> None:
    """They are added where the simulation begins: ``before`` steps ahead of the window."""
    logs, offsets = data(), torch.zeros(6, 4, dtype=torch.float64)
    offsets[2, 1] = 0.1
    moved, still = (observe(roll, sensor(), logs, values(), offsets=x).measurements for x in (offsets, None))
    changed = (moved - still).abs().amax((1, 2))
    assert float(changed[2]) > 0.05 and float(changed[[0, 1, 3, 4, 5]].max()) == 0.0


@pytest.mark.parametrize("absurd", [{"gravity_moment1": 1e9}, {"inertia1": 1e-6}, {"coupling": 50.0}, {"gravity_moment2": float("nan")},
                                    {"viscous1": 1e12}])
def test_absurd_candidates_do_not_hurt_the_others(absurd: dict[str, float]) -> None:
    """A candidate without a solution gets some finite first state, and the one beside it the right one."""
    logs, begun = data(), []
    (name, value), = absurd.items()
    plant = {name: torch.tensor([[PLANT.parameters[name].nominal], [value]], dtype=torch.float64)}

    def candidates(x: Tensor, u: Tensor, lead: Tensor) -> Tensor:
        begun.append(x)
        return rollout(ResidualDynamics(PLANT), x, u, plant, lead)

    found = observe(candidates, sensor(), logs, values(), copies=2)
    assert all(bool(torch.isfinite(x).all()) for x in begun)
    assert torch.allclose(found.measurements[0], observe(roll, sensor(), logs, values()).measurements, rtol=0, atol=1e-9)


def test_a_state_without_a_column_is_refused() -> None:
    """There must be as many equations as unknowns."""
    only = Sensor(space=PLANT.space, columns=sensor().columns[:3])
    logs = data()
    with pytest.raises(ModelError, match="a column for every state entry"):
        observe(roll, only, logs, values())


CHAINED = sensor(9, 3)


def test_reach_adds_up_along_a_chain() -> None:
    """A derivative of a derivative reaches twice as far; the sensor as far as its farthest column."""
    assert CHAINED.reach == (6, 10)
    assert Sensor(space=PLANT.space, columns=CHAINED.columns[:4]).reach == (3, 5)
    assert Sensor(space=PLANT.space, columns=CHAINED.columns[:2]).reach == (0, 0)
    smooth = Column(name="smooth", source="omega1", noise=1.0, effects=(Smoothing(),))
    assert Sensor(space=PLANT.space, columns=(*CHAINED.columns[:4], smooth)).reach == (4, 6)


def test_chain_lists_the_columns_it_was_computed_from() -> None:
    """From the one that shows a state entry to the column itself."""
    assert [c.name for c in CHAINED.chain(4)] == ["theta1", "omega1", "alpha1"]
    assert [c.name for c in CHAINED.chain(1)] == ["theta2"]


@pytest.mark.parametrize(("column", "entry", "unit"), [(0, "angle1", "rad"), (3, "rate2", "rad/s"), (4, None, "rad/s²")])
def test_column_stands_for(column: int, entry: str | None, unit: str) -> None:
    """The source, the velocity of a position differentiated once, or nothing; units follow."""
    assert (CHAINED.shown(column), CHAINED.unit(column)) == (entry, unit)


def test_a_third_derivative_has_its_unit() -> None:
    """Of whatever it was computed from."""
    jerk = Column(name="jerk", source="alpha1", noise=1.0, effects=CHAINED.columns[2].effects)
    seen = Sensor(space=PLANT.space, columns=(*CHAINED.columns, jerk))
    assert (seen.unit(6), seen.shown(6), seen.reach) == ("rad/s^3", None, (9, 15))


def test_a_column_is_computed_from_another_as_the_log_holds_it() -> None:
    """Its source's bias and harmonics are in it: differentiating what the instrument shows, not the state."""
    states, time = torch.tensor(trajectory(0)), DT * torch.arange(81, dtype=torch.float64)
    found = sensor().measure(states, time, DT, values()).numpy()
    assert np.allclose(found[:, 3], savgol_filter(found[:, 1], 5, 2, deriv=1, delta=DT, mode="interp"), rtol=0, atol=1e-9)
    assert np.abs(found[:, 3] - savgol_filter(trajectory(0)[:, 1], 5, 2, deriv=1, delta=DT, mode="interp")).max() > 1e-3


def test_a_column_may_not_be_computed_from_a_later_one() -> None:
    """Order is that of computation."""
    with pytest.raises(ValueError, match="no state entry named 'theta2'"):
        Sensor(space=PLANT.space, columns=CHAINED.columns[::-1][2:])
