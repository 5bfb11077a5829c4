"""Every sensor effect against numpy or scipy, and logs whose columns cannot be what they are said to be."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from problems import log, slopes
from scipy.ndimage import gaussian_filter1d
from scipy.signal import lfilter, savgol_filter

from residual_mbrl.effects import EFFECTS, Bias, ClockScale, Delay, Differentiated, Drift, LowPass, Quantisation, Scale, Smoothing
from residual_mbrl.errors import LogError, ModelError
from residual_mbrl.log_checks import check_units
from residual_mbrl.physics.pendulum import SPACE
from residual_mbrl.sensors import Column, Sensor
from residual_mbrl.trajectories import Trajectory
from residual_mbrl.windows import cut_windows

DT, N = 0.01, 60
TIME = 0.5 + DT * np.arange(N)
SIGNAL = np.sin(9 * TIME) + 0.3 * np.cos(31 * TIME) + TIME
Q, DQ = Column(name="q", source="angle", noise=1e-3), Column(name="dq", source="rate", noise=0.05)

CASES = {
    "bias": (Bias(), 0.3, lambda x, v: x + v),
    "scale": (Scale(), 1.2, lambda x, v: x * v),
    "drift": (Drift(), 0.4, lambda x, v: x + v * TIME),
    "delay": (Delay(), 0.0234, lambda x, v: np.interp(TIME - v, TIME, x)),
    "clock": (ClockScale(), 0.963, lambda x, v: np.interp(DT * np.arange(N) * v, DT * np.arange(N), x)),
    "fast clock": (ClockScale(), 1.0371, lambda x, v: np.interp(DT * np.arange(N) * v, DT * np.arange(N), x)),
    "lowpass": (LowPass(), 0.037, lambda x, v: lfilter([1 - np.exp(-DT / v)], [1, -np.exp(-DT / v)], x, zi=[np.exp(-DT / v) * x[0]])[0]),
}


def _apply(effect, x: np.ndarray, value: float | torch.Tensor = 0.0) -> torch.Tensor:
    value = torch.as_tensor(value, dtype=torch.float64)
    return effect.apply(torch.tensor(x), value.unsqueeze(-1), torch.tensor(TIME), DT)


@pytest.mark.parametrize("case", CASES)
def test_effect_is_the_oracles(case):
    """Each effect does what numpy or scipy does."""
    effect, value, oracle = CASES[case]
    assert np.allclose(_apply(effect, SIGNAL, value).numpy(), oracle(SIGNAL, value), rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_gradient_by_the_value(case):
    """The derivative by the effect's parameter, and by the signal, are those of finite differences."""
    effect, value, _ = CASES[case]
    z = torch.cat([torch.tensor([value], dtype=torch.float64), torch.tensor(SIGNAL)])

    def apply(z: torch.Tensor) -> torch.Tensor:
        return effect.apply(z[1:], z[:1], torch.tensor(TIME), DT)

    assert torch.allclose(torch.func.jacrev(apply)(z), slopes(apply, z), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("case", CASES)
def test_batch_of_values(case):
    """A batch of parameter values gives each its own signal."""
    effect, value, oracle = CASES[case]
    values = torch.tensor([value, 0.99 * value, 0.9 * value], dtype=torch.float64)
    found = _apply(effect, np.stack([SIGNAL] * 3), values)
    assert np.allclose(found.numpy(), np.stack([oracle(SIGNAL, float(v)) for v in values]), atol=1e-12)


@pytest.mark.parametrize(("effect", "neutral"), [(Bias(), 0.0), (Scale(), 1.0), (Drift(), 0.0), (Delay(), 0.0), (ClockScale(), 1.0),
                                                 (LowPass(), 1e-9), (Smoothing(), 0.0)])
def test_neutral_value_changes_nothing(effect, neutral):
    """Every effect has a value at which the instrument is perfect."""
    assert np.allclose(_apply(effect, SIGNAL, neutral).numpy(), SIGNAL, rtol=0, atol=1e-12)


def test_smoothing_is_a_gaussian_to_second_order():
    """Half the variance of a narrow Gaussian filter has its effect to fourth order in the width."""
    time = 0.001 * np.arange(2000)
    x, width = np.sin(9 * time), 5.0
    value = torch.tensor([0.5 * (0.001 * width) ** 2], dtype=torch.float64)
    found = Smoothing().apply(torch.tensor(x), value, torch.tensor(time), 0.001).numpy()
    change = gaussian_filter1d(x, width) - x
    inside = slice(50, -50)
    assert np.abs(change[inside]).max() > 5e-4
    assert np.abs(found - x - change)[inside].max() < 2e-3 * np.abs(change[inside]).max()


@pytest.mark.parametrize(("order", "window", "polynomial"), [(1, 5, 2), (2, 7, 3), (0, 9, 2), (1, 11, 4)])
def test_differentiated_is_savgol(order, window, polynomial):
    """The derivative is scipy's, ends included."""
    expected = savgol_filter(SIGNAL, window, polynomial, deriv=order, delta=DT, mode="interp")
    found = _apply(Differentiated(order=order, window=window, polynomial=polynomial), SIGNAL)
    assert np.allclose(found.numpy(), expected, rtol=1e-9, atol=1e-7)


def test_differentiated_needs_its_window():
    """A signal shorter than the window is named."""
    with pytest.raises(ModelError, match="a window of 5 samples does not fit a signal of 4"):
        Differentiated().apply(torch.zeros(4), torch.zeros(1), torch.zeros(4), DT)


def test_quantisation_rounds_only_when_asked():
    """It lets gradients pass in a fit and rounds in a simulated log."""
    x = torch.tensor([0.1234, -0.1236])
    effect = Quantisation(step=0.01)
    assert torch.equal(effect.apply(x, torch.zeros(1), x, DT), x)
    assert torch.allclose(effect.round(x), torch.tensor([0.12, -0.12]))


def test_parameters_are_named_by_column_and_effect():
    """Names tell what a value belongs to; known windows have none."""
    sensor = Sensor(space=SPACE, columns=(Column(name="q", source="angle", noise=1e-3, effects=(Bias(0.1), Delay())),
                                          Column(name="dq", source="angle", noise=0.1, effects=(Differentiated(),))),
                    commands={"torque": (Scale(), Drift())})
    assert sensor.parameters.names == ["q.bias", "q.delay", "torque.scale", "torque.drift"]
    assert sensor.parameters["q.bias"].nominal == 0.1
    assert sensor.noise == [1e-3, 0.1]


def test_measure_applies_effects_in_order():
    """Columns come out in the order of the log, each with its own effects and the values given."""
    sensor = Sensor(space=SPACE, columns=(DQ, Column(name="q", source="angle", noise=1.0, effects=(Bias(), Scale()))))
    states = torch.randn(4, 3, 10, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = {"q.bias": torch.tensor([[0.1], [0.2], [0.3], [0.4]], dtype=torch.float64), "q.scale": torch.tensor(2.0, dtype=torch.float64)}
    found = sensor.measure(states, torch.zeros(3, 10, dtype=torch.float64), DT, values)
    expected = torch.stack([states[..., 1], (states[..., 0] + values["q.bias"].unsqueeze(-1)) * 2], -1)
    assert torch.allclose(found, expected)


def test_command_changes_only_its_column():
    """Effects on a command leave the others as they are."""
    sensor = Sensor(space=SPACE, columns=(Q,), commands={"torque": (Drift(0.5),)})
    actions, time = torch.ones(2, 5, 1, dtype=torch.float64), torch.arange(5, dtype=torch.float64).expand(2, 5)
    assert torch.allclose(sensor.command(actions, time, 1.0)[..., 0], 1 + 0.5 * time)
    assert Sensor(space=SPACE, columns=(Q,)).command(actions, time, 1.0) is actions


@pytest.mark.parametrize("effects", [(Bias(), Scale()), (Scale(), Bias())])
def test_start_undoes_bias_and_scale(effects):
    """The first state is found again from what the sensor made of it, position and slope alike."""
    sensor = Sensor(space=SPACE, columns=(Column(name="q", source="angle", noise=1e-3, effects=effects),))
    values = {"q.bias": torch.tensor([[0.3], [0.1]], dtype=torch.float64), "q.scale": torch.tensor([[1.5], [0.8]], dtype=torch.float64)}
    t = DT * np.arange(20)
    states = torch.tensor(np.stack([0.2 + 0.5 * t - t**2, 0.5 - 2 * t], -1)).expand(2, 1, 20, 2)
    logs = sensor.measure(states, torch.zeros(1, 20, dtype=torch.float64), DT, values)
    for k in range(2):
        windows = cut_windows([log({"q": logs[k, 0, :, 0].numpy()})], DT)
        assert torch.allclose(sensor.start(windows, values)[k, 0], torch.tensor([0.2, 0.5], dtype=torch.float64), atol=1e-10)


def test_start_takes_a_velocity_column_where_there_is_one():
    """A measured velocity is preferred to the slope."""
    windows = cut_windows([log({"q": np.zeros(9), "dq": np.full(9, 3.0)})], DT)
    assert Sensor(space=SPACE, columns=(Q, DQ)).start(windows).tolist() == [[0.0, 3.0]]


def test_start_does_not_take_a_derivative_for_a_position():
    """A differentiated column shows the derivative of its source, whatever the order of columns."""
    q = np.sin(DT * np.arange(20)) + 2
    dq = savgol_filter(q, 5, 2, deriv=1, delta=DT)
    derived = Column(name="dq", source="angle", noise=0.1, effects=(Differentiated(),))
    windows = cut_windows([log({"dq": dq, "q": q})], DT)
    start = Sensor(space=SPACE, columns=(derived, Q)).start(windows)[0]
    assert torch.allclose(start, torch.tensor([2.0, 1.0], dtype=torch.float64), atol=1e-3)


def test_start_uses_only_what_was_recorded():
    """Samples that are missing count neither as first value nor in the slope."""
    t = DT * np.arange(20)
    q, other = 1 + 2 * t, np.zeros(20)
    q[[0, 3, 4]] = np.nan
    columns = (Q, Column(name="other", source="angle", noise=1.0))
    windows = cut_windows([log({"q": q, "other": other}, missing=True)], DT)
    start = Sensor(space=SPACE, columns=columns).start(windows)[0]
    assert torch.allclose(start, torch.tensor([1.02, 2.0], dtype=torch.float64), atol=1e-10)


def test_state_that_shows_nowhere_is_refused():
    """Without a column or a derivative there is no first state."""
    with pytest.raises(ModelError, match="'angle' shows in no column"):
        Sensor(space=SPACE, columns=(DQ,)).start(cut_windows([log({"dq": np.zeros(9)})], DT))


def test_wrong_names_are_refused():
    """Columns and commands must exist in the space."""
    with pytest.raises(ValueError, match="no state entry named 'position'"):
        Sensor(space=SPACE, columns=(Column(name="q", source="position", noise=1.0),))
    with pytest.raises(ModelError, match=r"no command 'voltage'; there are \['torque'\]"):
        Sensor(space=SPACE, columns=(Q,), commands={"voltage": (Bias(),)})
    with pytest.raises(ValueError, match="'q': noise must be positive, received 0"):
        Column(name="q", source="angle", noise=0.0)


def test_description_rebuilds_the_sensor():
    """What JSON holds makes the same effects again."""
    effects = (Delay(0.01, free=False), Differentiated(order=2, window=7))
    sensor = Sensor(space=SPACE, columns=(Column(name="q", source="angle", noise=1e-3, effects=effects),))
    told = json.loads(json.dumps(sensor.describe()))["columns"][0]["effects"]
    assert tuple(EFFECTS[e.pop("type")](**e) for e in told) == sensor.columns[0].effects


def _swing(n: int = 600) -> tuple[np.ndarray, np.ndarray]:
    t = DT * np.arange(n)
    q, rng = np.sin(3 * t) * np.exp(-0.2 * t), np.random.default_rng(0)
    return q + rng.normal(0, 1e-3, n), np.gradient(q, t) + rng.normal(0, 0.05, n)


def _checked(noise: float, rate_noise: float) -> Sensor:
    """A sensor that knows how large its columns may be."""
    return Sensor(space=SPACE, columns=(Column(name="q", source="angle", noise=noise, largest=7.0),
                                        Column(name="dq", source="rate", noise=rate_noise, largest=60.0)))


CHECKED = _checked(1e-3, 0.05)


def test_plausible_log_passes():
    """A clean log, one with a late velocity, one with a coarse velocity and one that hardly moves are let through."""
    q, dq = _swing()
    late, coarse = np.interp(np.arange(600) - 5, np.arange(600), dq), np.round(dq / 0.3) * 0.3
    for velocity in (dq, late, coarse):
        check_units(log({"q": q, "dq": velocity}), CHECKED)
    rng = np.random.default_rng(1)
    check_units(log({"q": rng.normal(0, 1e-3, 600), "dq": rng.normal(0, 0.05, 600)}), CHECKED)


def test_degrees_are_noticed():
    """The message names column, value and row, and asks whether degrees were meant."""
    q, dq = _swing()
    with pytest.raises(LogError, match=r"log: column 'q' is 5\d\.\d+ at row \d+, beyond the largest plausible 7 rad; degrees"):
        check_units(log({"q": np.rad2deg(q), "dq": dq}), CHECKED)


def test_swapped_columns_are_noticed():
    """Velocity in the place of position, and the other way round."""
    q, dq = _swing()
    with pytest.raises(LogError, match="column 'dq' does not move as the derivative of 'q' .*swapped or wrong columns"):
        check_units(log({"q": dq, "dq": q}), CHECKED)


def test_velocity_of_the_wrong_sign_is_noticed():
    """A velocity that runs backwards is a wrong column too."""
    q, dq = _swing()
    with pytest.raises(LogError, match=r"correlation -1\.00|correlation -0\.9"):
        check_units(log({"q": q, "dq": -dq}), CHECKED)


def test_missing_column_is_named():
    """A log without a column of the sensor is refused."""
    with pytest.raises(LogError, match="no column 'dq'"):
        check_units(log({"q": _swing()[0]}), CHECKED)


def test_missing_samples_are_no_evidence():
    """NaN is passed over, and a column of nothing else accuses nobody."""
    q, dq = _swing()
    q[5:9] = np.nan
    check_units(log({"q": q, "dq": dq}, missing=True), CHECKED)
    check_units(log({"q": np.full(600, np.nan), "dq": dq}, missing=True), CHECKED)


def test_real_servo_logs_pass(data_root):
    """Their velocity is coarse and 20 ms late, which is no error; swapped, three in four or more are refused."""
    files = sorted((data_root / "bam_xl330").glob("*.npz"))
    if not files:
        pytest.skip("no servo logs")
    refused = 0
    for path in files:
        with np.load(path, allow_pickle=False) as data:
            t, q, dq = data["t"], data["q"], data["dq"]
        sensor = _checked(3e-3, 0.3)
        dt = float(np.median(np.diff(t)))
        check_units(log({"q": q, "dq": dq}, dt=dt, name=path.stem), sensor)
        try:
            check_units(log({"q": dq, "dq": q}, dt=dt, name=path.stem), sensor)
        except LogError:
            refused += 1
    assert refused >= 0.75 * len(files)


def test_a_log_that_states_another_unit_is_refused() -> None:
    """A column that says it is in degrees is refused by name, whatever its values are."""
    sensor = Sensor(space=SPACE, columns=(Column(name="q", source="angle", noise=0.01),))
    time = np.arange(20) * 0.01
    log = Trajectory(name="a", command_time=time, commands=np.zeros((20, 1)), command_names=("torque",), measurement_time=time,
                     measurements=0.1 * np.sin(time)[:, None], measurement_names=("q",), units={"q": "deg"})
    with pytest.raises(LogError, match="'q' is in deg, expected rad"):
        check_units(log, sensor)
