"""What a log's columns are in terms of the state, and what its commands are in terms of the plant's input.

A log is not the state: columns are biased, scaled, late, filtered, differentiated from other columns, rounded, drifting.
Each such effect is one class with at most one named parameter, identified together with the physical ones, so that
neither parameters nor residuals explain what the instrument did.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy.signal import savgol_coeffs
from torch import Tensor

from residual_mbrl.baselines import Parameter, Parameters, Values
from residual_mbrl.errors import LogError, ModelError
from residual_mbrl.spaces import StateSpace
from residual_mbrl.trajectories import Trajectory
from residual_mbrl.windows import Windows


@dataclass(frozen=True)
class Effect(ABC):
    """One thing that an instrument does to a signal on a uniform time grid.

    Args:
        nominal: Value of the effect's parameter, in ``unit``.
        lower: Smallest value allowed.
        upper: Largest value allowed.
        free: Whether identification estimates it.
        prior_std: Standard deviation of a Gaussian prior about ``nominal``; None for none.
    """

    nominal: float
    lower: float = -math.inf
    upper: float = math.inf
    free: bool = True
    prior_std: float | None = None

    kind = ""
    unit = ""

    def parameter(self, column: str) -> Parameter | None:
        """Return the effect's parameter, named ``column.kind``; None for an effect without one."""
        return Parameter(name=f"{column}.{self.kind}", nominal=self.nominal, lower=self.lower, upper=self.upper, unit=self.unit,
                         free=self.free, prior_std=self.prior_std, description=type(self).__doc__.split("\n", maxsplit=1)[0])  # type: ignore[union-attr]

    @abstractmethod
    def apply(self, signal: Tensor, value: Tensor, time: Tensor, dt: float) -> Tensor:
        """Return what the instrument gives.

        Args:
            signal: Shape [*batch, T].
            value: The parameter, shape [*batch, 1].
            time: Time since the log's zero [s], shape [*batch, T].
            dt: Seconds between samples.
        """

    @property
    def reach(self) -> tuple[int, int]:
        """Number of samples before and after a sample that the effect needs to be exact there."""
        return 0, 0

    def undo_first(self, value0: Tensor, value: Tensor) -> Tensor:
        """Undo the effect on one sample where that needs no neighbours; otherwise return it unchanged."""
        return value0


@dataclass(frozen=True)
class Bias(Effect):
    """Constant added to the signal."""

    nominal: float = 0.0
    lower: float = -1.0
    upper: float = 1.0
    kind = "bias"
    unit = "column"

    def apply(self, signal: Tensor, value: Tensor, time: Tensor, dt: float) -> Tensor:
        """Add the bias."""
        return signal + value

    def undo_first(self, value0: Tensor, value: Tensor) -> Tensor:
        """Subtract the bias."""
        return value0 - value


@dataclass(frozen=True)
class Scale(Effect):
    """Factor on the signal."""

    nominal: float = 1.0
    lower: float = 0.5
    upper: float = 2.0
    kind = "scale"
    unit = "1"

    def apply(self, signal: Tensor, value: Tensor, time: Tensor, dt: float) -> Tensor:
        """Multiply by the scale."""
        return signal * value

    def undo_first(self, value0: Tensor, value: Tensor) -> Tensor:
        """Divide by the scale."""
        return value0 / value


@dataclass(frozen=True)
class Drift(Effect):
    """Slow linear drift added to the signal, zero at the log's zero of time."""

    nominal: float = 0.0
    lower: float = -1.0
    upper: float = 1.0
    kind = "drift"
    unit = "column/s"

    def apply(self, signal: Tensor, value: Tensor, time: Tensor, dt: float) -> Tensor:
        """Add ``value * time``."""
        return signal + value * time


@dataclass(frozen=True)
class Delay(Effect):
    """Transport delay of the signal, linearly interpolated; before the first sample the first value holds."""

    nominal: float = 0.0
    lower: float = 0.0
    upper: float = 0.05
    kind = "delay"
    unit = "s"

    def apply(self, signal: Tensor, value: Tensor, time: Tensor, dt: float) -> Tensor:
        """Read the signal ``value`` seconds earlier."""
        return _read(signal, torch.arange(signal.shape[-1], dtype=signal.dtype, device=signal.device) - value / dt)


@dataclass(frozen=True)
class ClockScale(Effect):
    """True seconds per second of the log's clock."""

    nominal: float = 1.0
    lower: float = 0.9
    upper: float = 1.1
    kind = "clock"
    unit = "1"

    def apply(self, signal: Tensor, value: Tensor, time: Tensor, dt: float) -> Tensor:
        """Read the signal at ``value`` times the elapsed time; the last sample holds beyond the end."""
        return _read(signal, torch.arange(signal.shape[-1], dtype=signal.dtype, device=signal.device) * value)


@dataclass(frozen=True)
class LowPass(Effect):
    """Time constant of a causal first-order low-pass filter, in steady state at the start."""

    nominal: float = 0.01
    lower: float = 1e-4
    upper: float = 0.1
    kind = "lowpass"
    unit = "s"

    def apply(self, signal: Tensor, value: Tensor, time: Tensor, dt: float) -> Tensor:
        """Filter by ``y[t] = a y[t-1] + (1 - a) x[t]``, a = exp(-dt / value)."""
        decay = torch.exp(-dt / value.clamp_min(1e-9))
        change = (signal - signal[..., :1]) * (1 - decay)
        shift = 1
        while shift < signal.shape[-1]:  # doubling: after k passes each sample holds the response to its last 2^k
            change = change + decay**shift * torch.nn.functional.pad(change[..., :-shift], (shift, 0))
            shift *= 2
        return signal[..., :1] + change


@dataclass(frozen=True)
class Smoothing(Effect):
    """Half the variance of a symmetric (zero-phase) smoothing kernel: ``y = x + value x''``.

    To second order every symmetric filter does this: a Gaussian of width s has s²/2, a Savitzky-Golay derivative of positions
    over 2 m + 1 samples has about h² Σj⁴ / (6 Σj²), 5.67e-5 s² for five samples at 10 ms.
    """

    nominal: float = 0.0
    lower: float = 0.0
    upper: float = 1e-3
    kind = "smoothing"
    unit = "s²"

    @property
    def reach(self) -> tuple[int, int]:
        """Return one neighbour on either side."""
        return 1, 1

    def apply(self, signal: Tensor, value: Tensor, time: Tensor, dt: float) -> Tensor:
        """Add ``value`` times the second difference; the ends take that of their neighbour."""
        curvature = (signal[..., 2:] - 2 * signal[..., 1:-1] + signal[..., :-2]) / dt**2
        curvature = torch.cat([curvature[..., :1], curvature, curvature[..., -1:]], -1)
        return signal + value * curvature


@dataclass(frozen=True)
class AngleHarmonic(Effect):
    """Error that repeats with the angle itself, such as an eccentric disc's: ``value · cos or sin(order · angle)``.

    Args:
        order: Periods per turn.
        phase: "cos" or "sin"; one effect of each gives any phase.
    """

    nominal: float = 0.0
    lower: float = -0.01
    upper: float = 0.01
    order: int = 1
    phase: Literal["cos", "sin"] = "cos"
    unit = "rad"

    @property
    def kind(self) -> str:  # type: ignore[override]
        """Return such as "cos4"."""
        return f"{self.phase}{self.order}"

    def apply(self, signal: Tensor, value: Tensor, time: Tensor, dt: float) -> Tensor:
        """Add the harmonic of the signal."""
        return signal + value * (torch.cos if self.phase == "cos" else torch.sin)(self.order * signal)

    def undo_first(self, value0: Tensor, value: Tensor) -> Tensor:
        """Subtract the harmonic of the sample; exact to first order in the value."""
        return value0 - value * (torch.cos if self.phase == "cos" else torch.sin)(self.order * value0)


@dataclass(frozen=True)
class Differentiated(Effect):
    """Savitzky-Golay derivative over ``window`` samples, as the log's author computed it from positions.

    Args:
        order: 1 for velocities, 2 for accelerations, 0 for smoothing alone.
        window: Number of samples.
        polynomial: Degree of the local polynomial.
        position: Place within the window at which the polynomial is evaluated; -1 for the centre.
    """

    nominal: float = 0.0
    order: int = 1
    window: int = 5
    polynomial: int = 2
    position: int = -1

    @property
    def reach(self) -> tuple[int, int]:
        """Return the window's samples before and after the place of evaluation."""
        before = self.window // 2 if self.position < 0 else self.position
        return before, self.window - 1 - before

    def parameter(self, column: str) -> None:
        """Return None: window and degree are known, not estimated."""

    def apply(self, signal: Tensor, value: Tensor, time: Tensor, dt: float) -> Tensor:
        """Differentiate; the ends use the polynomial of the first and last whole window."""
        (before, after), n = self.reach, self.window
        if signal.shape[-1] < n:
            raise ModelError(f"Differentiated: a window of {n} samples does not fit a signal of {signal.shape[-1]}; use longer windows")
        rows = [savgol_coeffs(n, self.polynomial, deriv=self.order, delta=dt, pos=k, use="dot") for k in range(n)]
        weights = torch.tensor(np.array(rows), dtype=signal.dtype, device=signal.device)
        inner = torch.matmul(signal.unfold(-1, n, 1), weights[before])
        head = torch.matmul(signal[..., :n], weights[:before].mT)
        tail = torch.matmul(signal[..., -n:], weights[n - after :].mT)
        return torch.cat([head, inner, tail], -1)


@dataclass(frozen=True)
class Quantisation(Effect):
    """Rounding to a step; used when logs are simulated, and as noise of step/√12 when they are fitted."""

    nominal: float = 0.0
    step: float = 1e-3

    def parameter(self, column: str) -> None:
        """Return None: the step is known."""

    def apply(self, signal: Tensor, value: Tensor, time: Tensor, dt: float) -> Tensor:
        """Return the signal unrounded: rounding has no useful gradient and its error is noise."""
        return signal

    def round(self, signal: Tensor) -> Tensor:
        """Return the signal rounded to the step."""
        return torch.round(signal / self.step) * self.step


EFFECTS: dict[str, type[Effect]] = {c.__name__: c for c in (Bias, Scale, Drift, Delay, ClockScale, LowPass, Smoothing, AngleHarmonic,
                                                            Differentiated, Quantisation)}


@dataclass(frozen=True, kw_only=True)
class Column:
    """One measured column.

    Args:
        name: Name in the log.
        source: State entry that it shows, or the name of an earlier column that it was computed from.
        noise: Standard deviation of its noise, in its unit; scales the error in every fit. Infinite: the column only serves
            first states.
        effects: What the instrument does, in order.
        largest: Largest magnitude that is plausible, in SI units; beyond it the unit is taken to be wrong.
    """

    name: str
    source: str
    noise: float
    effects: tuple[Effect, ...] = ()
    largest: float = math.inf

    def __post_init__(self) -> None:
        """Check the noise."""
        if not self.noise > 0:
            raise ValueError(f"Column {self.name!r}: noise must be positive, received {self.noise}")


@dataclass(frozen=True, kw_only=True)
class Sensor:
    """How a plant's state shows in a log, and how the log's commands reach the plant.

    Args:
        space: State space of the baseline.
        columns: Measured columns, in the order of the log's measurements.
        commands: Effects on a command column, by its name (a drifting offset, a scale, a delay); others pass unchanged.
    """

    space: StateSpace
    columns: tuple[Column, ...]
    commands: Mapping[str, Sequence[Effect]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that every column and command exists in the space."""
        for k, column in enumerate(self.columns):
            if column.source not in [c.name for c in self.columns[:k]]:
                self.space.index(column.source)
        for name in self.commands:
            if name not in self.space.action:
                raise ModelError(f"Sensor: no command {name!r}; there are {list(self.space.action)}")

    @property
    def parameters(self) -> Parameters:
        """Parameters of all effects, named ``column.effect``."""
        named = [(c.name, e) for c in self.columns for e in c.effects] + [(n, e) for n, es in self.commands.items() for e in es]
        return Parameters(*(p for p in (e.parameter(n) for n, e in named) if p is not None))

    def with_nominal(self, values: Mapping[str, float]) -> Sensor:
        """Return this sensor with other nominal values of its effects, by ``column.effect``."""
        def changed(name: str, effects: Sequence[Effect]) -> tuple[Effect, ...]:
            return tuple(replace(e, nominal=values.get(f"{name}.{e.kind}", e.nominal)) for e in effects)

        return replace(self, columns=tuple(replace(c, effects=changed(c.name, c.effects)) for c in self.columns),
                       commands={n: changed(n, es) for n, es in self.commands.items()})

    @property
    def reach(self) -> tuple[int, int]:
        """Steps before and after a sample that the columns need to be exact there."""
        chains = [self.chain(k) for k in range(len(self.columns))]
        before, after = zip(*([sum(e.reach[i] for c in chain for e in c.effects) for i in (0, 1)] for chain in chains), strict=True)
        return max(before), max(after)

    def chain(self, k: int) -> list[Column]:
        """Return column k and the columns it was computed from, the first one showing a state entry."""
        names = [c.name for c in self.columns[:k]]
        column = self.columns[k]
        earlier = self.chain(names.index(column.source)) if column.source in names else []
        return [*earlier, column]

    def shown(self, k: int) -> str | None:
        """Return the state entry that column k stands for: its source, or the velocity of a position differentiated once."""
        chain = self.chain(k)
        name, order = chain[0].source, self._order(k)
        if order == 1 and name in self.space.position and self.space.nq == self.space.nv:
            return self.space.velocity[self.space.position.index(name)]
        return name if order == 0 else None

    def unit(self, k: int) -> str:
        """Return the unit of column k."""
        order = self._order(k)
        name = self.space.unit(self.shown(k) or self.chain(k)[0].source)
        return name if self.shown(k) is not None else f"{name}/s{'²' if order == 2 else f'^{order}' if order > 2 else ''}"

    def _order(self, k: int) -> int:
        return sum(e.order for c in self.chain(k) for e in c.effects if isinstance(e, Differentiated))

    @property
    def noise(self) -> list[float]:
        """Noise of every column, in its unit."""
        return [c.noise for c in self.columns]

    def measure(self, states: Float[Tensor, "*#batch time nx"], time: Float[Tensor, "*#batch time"], dt: float,
                values: Values | None = None) -> Float[Tensor, "... time ny"]:
        """Return what a log of these states would hold.

        Args:
            states: Shape [*batch, T, nx].
            time: Time since the log's zero [s], shape [*batch, T].
            dt: Seconds between states.
            values: Effect parameters by name, each broadcastable to [*batch]; nominal where missing.
        """
        p = self.parameters.resolve(values, states)
        out: dict[str, Tensor] = {}
        for c in self.columns:
            source = out[c.source] if c.source in out else states[..., self.space.index(c.source)]
            out[c.name] = self._apply(c.name, c.effects, source, time, dt, p)
        return torch.stack(torch.broadcast_tensors(*out.values()), -1)

    def command(self, actions: Float[Tensor, "*#batch time nu"], time: Float[Tensor, "*#batch time"], dt: float,
                values: Values | None = None) -> Tensor:
        """Return what reaches the plant when a log holds these commands, shape [*batch, H, nu]."""
        if not self.commands:
            return actions
        p = self.parameters.resolve(values, actions)
        out = [self._apply(n, self.commands.get(n, ()), actions[..., i], time, dt, p) for i, n in enumerate(self.space.action)]
        return torch.stack(torch.broadcast_tensors(*out), -1)

    def start(self, windows: Windows, values: Values | None = None) -> Tensor:
        """Estimate each window's first state from its first samples, shape [*batch, B, nx].

        A state entry with a column of its own takes the column's first recorded sample, bias and scale undone. A velocity
        without one takes the slope at the start of a quadratic through the first samples of its position.

        Args:
            windows: The windows.
            values: Effect parameters by name, each broadcastable to [*batch, B].

        Raises:
            ModelError: if a state entry shows in no column.
        """
        p = self.parameters.resolve(values, windows.measurements)
        entries = []
        for i, name in enumerate(self.space.state_names):
            own = self.place(name)
            if own is not None:
                first = windows.recorded[:, :, own].to(torch.int8).argmax(1, keepdim=True)
                x = self._undo(own, windows.measurements[:, :, own].gather(1, first), p).squeeze(-1)
            else:
                x = self._slope(windows, i, name, p)
            entries.append(x)
        return torch.stack(torch.broadcast_tensors(*entries), -1)

    def place(self, name: str) -> int | None:
        """Return the place of the first column that stands for a state entry; None if there is none."""
        return next((k for k in range(len(self.columns)) if self.shown(k) == name), None)

    def _undo(self, k: int, x: Tensor, p: Values) -> Tensor:
        """Undo what can be undone sample by sample on samples [B, n] of column k; shape [*batch, B, n]."""
        for effect in reversed(self.columns[k].effects):
            key = f"{self.columns[k].name}.{effect.kind}"
            x = effect.undo_first(x, p[key].unsqueeze(-1)) if key in p else x
        return x

    def _slope(self, windows: Windows, i: int, name: str, p: Values) -> Tensor:
        nq, nv = self.space.nq, self.space.nv
        own = self.place(self.space.position[i - nq]) if nq <= i < nq + nv and nq == nv else None
        if own is None:
            raise ModelError(f"Sensor: state entry {name!r} shows in no column and is no velocity of one that does")
        n = min(_SLOPE_SAMPLES, windows.horizon + 1)
        x = self._undo(own, windows.measurements[:, :n, own], p)
        weight = windows.recorded[:, :n, own].to(x)
        powers = torch.arange(n, dtype=x.dtype, device=x.device)[:, None] ** torch.arange(min(3, n), device=x.device)
        slope: Tensor = torch.linalg.pinv(weight.unsqueeze(-1) * powers)[:, 1] / windows.dt
        return (slope * weight * x).sum(-1)

    def _apply(self, name: str, effects: Sequence[Effect], signal: Tensor, time: Tensor, dt: float, p: Values) -> Tensor:
        for effect in effects:
            value = p.get(f"{name}.{effect.kind}")
            value = signal.new_zeros(1) if value is None else value.unsqueeze(-1)
            signal = effect.apply(signal, value, time, dt)
        return signal

    def describe(self) -> dict[str, object]:
        """Return the sensor as JSON holds it, without the space."""
        return {"columns": [{"name": c.name, "source": c.source, "noise": c.noise, "largest": c.largest,
                             "effects": _described(c.effects)} for c in self.columns],
                "commands": {n: _described(es) for n, es in self.commands.items()}}


def check_units(trajectory: Trajectory, sensor: Sensor) -> None:
    """Refuse a log whose columns cannot be what the sensor says they are.

    Three things are checked: that the units which the log states are the sensor's, that no column goes beyond its
    ``largest``, and that a velocity column moves as its position column does. For the last, displacements over windows of
    several lengths are correlated with the integrated velocity, which a lag or coarse differentiation hardly hurts; lengths
    over which the motion is not well above the noise do not count.

    Args:
        trajectory: The log; must have every column of the sensor.
        sensor: What the columns should be.

    Raises:
        LogError: naming log, column and the value found.
    """
    stated = {c.name: sensor.unit(k) for k, c in enumerate(sensor.columns)} | {n: sensor.space.unit(n) for n in sensor.space.action}
    for name, expected in stated.items():
        if trajectory.units.get(name, expected) != expected:
            raise LogError(f"{trajectory.name}: column {name!r} is in {trajectory.units[name]}, expected {expected}: convert it first")
    for column in sensor.columns:
        values = trajectory.column(column.name)
        row = int(np.nanargmax(np.abs(values))) if np.isfinite(values).any() else 0
        if abs(values[row]) > column.largest:
            unit = sensor.unit(sensor.columns.index(column))
            hint = "; degrees instead of radians?" if unit.startswith("rad") else "; another unit?"
            raise LogError(f"{trajectory.name}: column {column.name!r} is {values[row]:.6g} at row {row}, beyond the largest plausible "
                           f"{column.largest:g} {unit}{hint}")
    for position, velocity in _pairs(sensor):
        agreement = _agreement(trajectory, position, velocity)
        if agreement is not None and agreement < LEAST_AGREEMENT:
            raise LogError(f"{trajectory.name}: column {velocity.name!r} does not move as the derivative of {position.name!r} "
                           f"(correlation {agreement:.2f}, expected at least {LEAST_AGREEMENT}): swapped or wrong columns?")


LEAST_AGREEMENT = 0.5
"""Correlation of a velocity column with the motion of its position column below which the columns are taken to be wrong."""
_ABOVE_NOISE = 5.0
_SPANS = (4, 16, 64)
_SLOPE_SAMPLES = 7


def _pairs(sensor: Sensor) -> list[tuple[Column, Column]]:
    """Position and velocity columns that belong together."""
    space, pairs = sensor.space, []
    if space.nq != space.nv:  # with quaternions no velocity is the derivative of one position entry
        return []
    for i, name in enumerate(space.velocity):
        place, rate = sensor.place(space.position[i]), sensor.place(name)
        if place is not None and rate is not None:
            pairs.append((sensor.columns[place], sensor.columns[rate]))
    return pairs


def _agreement(trajectory: Trajectory, position: Column, velocity: Column) -> float | None:
    """Best correlation of displacement with integrated velocity over several spans; None where the log hardly moves."""
    q, v = trajectory.column(position.name), trajectory.column(velocity.name)
    good = np.isfinite(q) & np.isfinite(v)
    time, q, v = trajectory.measurement_time[good], q[good], v[good]
    travelled = np.concatenate([[0.0], np.cumsum(0.5 * (v[1:] + v[:-1]) * np.diff(time))])
    found = []
    for span in _SPANS:
        if len(q) < 4 * span:
            break
        moved, integrated = q[span:] - q[:-span], travelled[span:] - travelled[:-span]
        mean_noise = velocity.noise * float(np.median(time[span:] - time[:-span])) / math.sqrt(span)
        if np.std(moved) > _ABOVE_NOISE * position.noise and np.std(integrated) > _ABOVE_NOISE * mean_noise:
            found.append(float(np.corrcoef(moved, integrated)[0, 1]))
    return max(found) if found else None


def _described(effects: Sequence[Effect]) -> list[dict[str, object]]:
    return [{"type": type(e).__name__, **asdict(e)} for e in effects]


def _read(signal: Tensor, place: Tensor) -> Tensor:
    """Read [*batch, T] at fractional places [*batch or 1, T], linearly; the ends hold."""
    place = place.clamp(0, signal.shape[-1] - 1)
    before = place.detach().floor().clamp_max(signal.shape[-1] - 2)
    shape = torch.broadcast_shapes(signal.shape, place.shape)
    signal, index = signal.expand(shape), before.long().expand(shape)
    left, right = signal.gather(-1, index), signal.gather(-1, index + 1)
    return left + (place - before) * (right - left)
