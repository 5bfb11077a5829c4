"""Flights of a 45 g quadrotor at 100 Hz (Busetto et al., Control Engineering Practice 172, 2026, arXiv 2512.14450)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.signal import butter, filtfilt

from residual_mbrl.bootstrap import interval
from residual_mbrl.datasets import flight_cleaning as cleaning
from residual_mbrl.datasets.log_set import LogSet, Part, check_lengths, open_arrays, read_split
from residual_mbrl.errors import LogError
from residual_mbrl.metrics import Metric
from residual_mbrl.trajectories import Trajectory

Array = NDArray[np.float64]
Signals = Literal["filtered", "raw"]

DT = 0.01
HORIZON = 50
TYPES = ("square", "random", "chirp")
"""Types of reference trajectory flown in training and validation; the test flights are of a fourth."""

COLUMNS = ("x", "y", "z", "qw", "qx", "qy", "qz", "vx", "vy", "vz", "wx", "wy", "wz")
MOTORS = ("rotor1", "rotor2", "rotor3", "rotor4")
UNITS = {**dict.fromkeys("xyz", "m"), **dict.fromkeys(("vx", "vy", "vz"), "m/s"), **dict.fromkeys(("wx", "wy", "wz"), "rad/s"),
         **dict.fromkeys(MOTORS, "krad/s")}

CUTOFF = 20.0
"""Of the zero-phase filter of the motor speeds [Hz]; it is applied again where spikes had rung through it."""

QUANTITIES = {"p": "m", "v": "m/s", "R": "rad", "omega": "rad/s"}
REPORTED = (1, 10, 25, 50)


def read(folder: Path, parts: Sequence[Part], signals: Signals = "filtered") -> LogSet:
    """Read the flights of some parts: motor speeds [krad/s], and position, attitude w-x-y-z, velocity, body rate; grouped by type.

    The filtered signals went through zero-phase filters, so that each row holds some of the next five; the raw ones did not.

    Raises:
        LogError: naming the file and what is wrong with it.
    """
    split = read_split(folder)
    logs: dict[Part, list[Trajectory]] = {}
    for part in parts:
        names = split.get(part)
        if not isinstance(names, list) or not names:
            raise LogError(f"{folder / 'split.json'}: no flights of part {part!r}")
        logs[part] = [read_log(folder / f"{n}.npz", signals) for n in names]
    return LogSet(logs=logs, starts={}, files=[folder / f"{log.name}.npz" for part in parts for log in logs[part]])


def read_log(path: Path, signals: Signals = "filtered") -> Trajectory:
    """Read one flight; what was repaired or looks wrong is in its metadata under "warnings".

    Raises:
        LogError: naming the file and what is wrong with it.
    """
    if signals not in ("filtered", "raw"):
        raise ValueError(f"read_log: signals must be 'filtered' or 'raw', received {signals!r}")
    suffix = "_raw" if signals == "raw" else ""
    state = [f"{n}{suffix}" for n in "pqvw"]
    d = open_arrays(path, dict.fromkeys((*state, "t", f"u{suffix}", "u_raw", "vbat_raw")))  # type: ignore[arg-type]
    d = {n: a.astype(np.float64) for n, a in d.items()}
    check_lengths(path, d)
    _check(path, d, state)
    name = path.stem
    speeds, found = _speeds(name, d[f"u{suffix}"] / 1000, d["u_raw"] / 1000, filtered=not suffix)
    p, q, v, w = (d[n] for n in state)
    attitude, battery = cleaning.continuous(name, q[:, [3, 0, 1, 2]]), cleaning.volts(name, d["vbat_raw"])
    columns = [p, attitude.values, v, w, speeds, battery.values[:, None]]
    time, filled, lost = cleaning.without_gaps(name, d["t"], columns, DT)
    filled[1] /= np.linalg.norm(filled[1], axis=1, keepdims=True)
    measured = np.concatenate(filled[:4], 1)
    repeated = cleaning.held_rows(measured[:, 10:])
    warnings = (*found, *attitude.warnings, *battery.warnings, *lost, *repeated, *cleaning.saturated(filled[4]), *_bias(measured))
    return Trajectory(name=name, command_time=time, commands=filled[4], command_names=MOTORS, measurement_time=time, measurements=measured,
                      measurement_names=COLUMNS, units=UNITS, group=name.rstrip("0123456789"),
                      metadata={"warnings": list(warnings), "signals": signals, "battery": [float(x) for x in filled[5][[0, -1], 0]]})


class Prediction(NamedTuple):
    """Predictions from every row i of a flight with i + 50 < n: entry [i, h - 1] is that of row i + h."""

    position: Array
    """[m], shape [N, 50, 3]."""
    quaternion: Array
    """w-x-y-z of any length and sign, shape [N, 50, 4]."""
    velocity: Array
    """[m/s], shape [N, 50, 3]."""
    rate: Array
    """Body rate [rad/s], shape [N, 50, 3]."""

    @classmethod
    def of_states(cls, states: Array) -> Prediction:
        """Take rollouts apart, shape [N, 51, at least 13], the first state included."""
        later = states[:, 1:]
        return cls(later[..., :3], later[..., 3:7], later[..., 7:10], later[..., 10:13])


def errors(log: Trajectory, prediction: Prediction) -> Array:
    """Return the errors of position [m], velocity [m/s], rotation [rad] and body rate [rad/s] at each horizon, shape [N, 50, 4].

    Raises:
        ValueError: if there is not one prediction for each window and horizon.
    """
    x = log.measurements
    n = len(x) - HORIZON
    rows = np.arange(n)[:, None] + np.arange(1, HORIZON + 1)
    truth = Prediction(x[:, :3][rows], x[:, 3:7][rows], x[:, 7:10][rows], x[:, 10:13][rows])
    for name, a, b in zip(Prediction._fields, prediction, truth, strict=True):
        if a.shape != b.shape:
            raise ValueError(f"{log.name}: expected a {name} of shape {b.shape}, received {a.shape}")
    a, b = (q / np.linalg.norm(q, axis=-1, keepdims=True) for q in (prediction.quaternion, truth.quaternion))
    b = np.where((a * b).sum(-1, keepdims=True) < 0, -b, b)
    angle = 4 * np.arctan2(np.linalg.norm(a - b, axis=-1), np.linalg.norm(a + b, axis=-1))
    distances = [np.linalg.norm(getattr(prediction, n) - getattr(truth, n), axis=-1) for n in ("position", "velocity", "rate")]
    return np.stack([*distances[:2], angle, distances[2]], -1)


def score(logs: Sequence[Trajectory], predictions: Mapping[str, Prediction], name: str) -> list[Metric]:
    """Score: mean over all windows of all flights at each horizon, and the sum of these means over horizons 1 to 50.

    Intervals are over flights, whose windows overlap.

    Args:
        logs: The flights.
        predictions: By the flight's name.
        name: Name of the model in the metrics.
    """
    found = [errors(log, predictions[log.name]) for log in logs]
    pooled, by_flight = np.concatenate(found).mean(0), np.stack([e.mean(0) for e in found])
    metrics = []
    for k, (quantity, unit) in enumerate(QUANTITIES.items()):
        metrics.append(Metric(model=name, metric=f"sum_{quantity}", value=float(pooled[:, k].sum()), unit=unit,
                              ci95=interval(by_flight[:, :, k].sum(1))))
        metrics += [Metric(model=name, metric=f"{quantity}_h{h}", horizon=h, value=float(pooled[h - 1, k]), unit=unit,
                           ci95=interval(by_flight[:, h - 1, k])) for h in REPORTED]
    return metrics


def naive(log: Trajectory) -> Prediction:
    """Predict that nothing changes."""
    held = np.repeat(log.measurements[: len(log.measurements) - HORIZON, None], HORIZON + 1, 1)
    return Prediction.of_states(held)


def published(log: Trajectory) -> Prediction:
    """Predict with the published physics: rigid body under its thrust, RK4, angular velocity held."""
    x, u = log.measurements, log.commands
    n = len(x) - HORIZON
    p, q, v, w = x[:n, :3], x[:n, 3:7], x[:n, 7:10], x[:n, 10:13]
    thrust = np.clip(0.0372 * (u**2).sum(1), 0.0, 2 * 0.045 * 9.81) / 0.045

    def rate(v: Array, q: Array, lift: Array) -> tuple[Array, Array, Array]:
        a, axis = q[:, :1], q[:, 1:]
        dq = 0.5 * np.concatenate([-(axis * w).sum(1, keepdims=True), a * w + np.cross(axis, w)], 1)
        up = np.stack([2 * (axis[:, 0] * axis[:, 2] + q[:, 0] * axis[:, 1]), 2 * (axis[:, 1] * axis[:, 2] - q[:, 0] * axis[:, 0]),
                       1 - 2 * (axis[:, 0] ** 2 + axis[:, 1] ** 2)], 1)
        return v, dq, lift[:, None] * up - [0.0, 0.0, 9.81]

    def moved(k: tuple[Array, Array, Array], h: float) -> tuple[Array, Array, Array]:
        turned = q + h * k[1]
        return p + h * k[0], turned / np.linalg.norm(turned, axis=1, keepdims=True), v + h * k[2]

    states = [np.concatenate([p, q, v, w], 1)]
    for h in range(HORIZON):
        lift = thrust[h : h + n]
        k1 = rate(v, q, lift)
        _, q2, v2 = moved(k1, DT / 2)
        k2 = rate(v2, q2, lift)
        _, q3, v3 = moved(k2, DT / 2)
        k3 = rate(v3, q3, lift)
        _, q4, v4 = moved(k3, DT)
        k4 = rate(v4, q4, lift)
        mean = [(a + 2 * b + 2 * c + d) / 6 for a, b, c, d in zip(k1, k2, k3, k4, strict=True)]
        p, q, v = moved((mean[0], mean[1], mean[2]), DT)
        states.append(np.concatenate([p, q, v, w], 1))
    return Prediction.of_states(np.stack(states, 1))


def _check(path: Path, d: Mapping[str, Array], state: Sequence[str]) -> None:
    widths = {**dict(zip(state, (3, 4, 3, 3), strict=True)), **{n: 4 for n in d if n[0] == "u"}}
    wrong = {n: d[n].shape for n, k in widths.items() if d[n].ndim != 2 or d[n].shape[1] != k}
    if wrong:
        raise LogError(f"{path}: expected rows of {widths}, received {wrong}")
    for n, a in d.items():
        if not np.isfinite(a).all():
            raise LogError(f"{path}: {n!r} is not finite in row {int(np.argmin(np.isfinite(a.reshape(len(a), -1)).all(1)))}")


def _speeds(name: str, speeds: Array, raw: Array, *, filtered: bool) -> tuple[Array, tuple[str, ...]]:
    """Return motor speeds [krad/s] without spikes, and what was found.

    A zero-phase filter that saw a spike has spread it: there the raw readings are cleaned and filtered again.
    """
    cleaned, bad = cleaning.without_spikes(name, raw)
    if not filtered or not bad.any():
        return (speeds if filtered else cleaned.values), cleaned.warnings
    again = filtfilt(*butter(4, CUTOFF * 2 * DT), cleaned.values, axis=0)
    rung = np.stack([cleaning.around(b, round(cleaning.RINGING / DT)) for b in bad.T], 1)
    return np.where(rung, again, speeds), cleaned.warnings


def _bias(measured: Array) -> tuple[str, ...]:
    """Name velocities that are not the rate of the positions."""
    gap = np.gradient(measured[:, :3], DT, axis=0) - measured[:, 7:10]
    rms = np.sqrt((gap**2).mean(0))
    return (f"velocity differs from the rate of position by {rms[0]:.2g}, {rms[1]:.2g}, {rms[2]:.2g} m/s rms",) if rms.max() > 0.02 else ()
