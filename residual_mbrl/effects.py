"""What instruments do to signals: bias, scale, delay, filters, differentiation, rounding, drift; one effect a class.

Each effect has at most one named parameter, which is identified together with the physical ones.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.signal import savgol_coeffs
from torch import Tensor

from residual_mbrl.baselines import Parameter
from residual_mbrl.errors import ModelError


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
    def apply(self, signal: Tensor, value: Tensor, time: Tensor, dt: float, lead: int = 0) -> Tensor:
        """Return what the instrument gives.

        Args:
            signal: Shape [*batch, T].
            value: The parameter, shape [*batch, 1].
            time: Time since the log's zero [s], shape [*batch, T].
            dt: Seconds between samples.
            lead: Samples before the window's first one, which lead in to it.
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

    def apply(self, signal: Tensor, value: Tensor, time: Tensor, dt: float, lead: int = 0) -> Tensor:
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

    def apply(self, signal: Tensor, value: Tensor, time: Tensor, dt: float, lead: int = 0) -> Tensor:
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

    def apply(self, signal: Tensor, value: Tensor, time: Tensor, dt: float, lead: int = 0) -> Tensor:
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

    def apply(self, signal: Tensor, value: Tensor, time: Tensor, dt: float, lead: int = 0) -> Tensor:
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

    def apply(self, signal: Tensor, value: Tensor, time: Tensor, dt: float, lead: int = 0) -> Tensor:
        """Read the signal at ``value`` times the time since the window's first sample; the ends hold."""
        return _read(signal, lead + torch.arange(-lead, signal.shape[-1] - lead, dtype=signal.dtype, device=signal.device) * value)


@dataclass(frozen=True)
class LowPass(Effect):
    """Time constant of a causal first-order low-pass filter, in steady state at the start."""

    nominal: float = 0.01
    lower: float = 1e-4
    upper: float = 0.1
    kind = "lowpass"
    unit = "s"

    def apply(self, signal: Tensor, value: Tensor, time: Tensor, dt: float, lead: int = 0) -> Tensor:
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

    def apply(self, signal: Tensor, value: Tensor, time: Tensor, dt: float, lead: int = 0) -> Tensor:
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

    def apply(self, signal: Tensor, value: Tensor, time: Tensor, dt: float, lead: int = 0) -> Tensor:
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

    def apply(self, signal: Tensor, value: Tensor, time: Tensor, dt: float, lead: int = 0) -> Tensor:
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

    def apply(self, signal: Tensor, value: Tensor, time: Tensor, dt: float, lead: int = 0) -> Tensor:
        """Return the signal unrounded: rounding has no useful gradient and its error is noise."""
        return signal

    def round(self, signal: Tensor) -> Tensor:
        """Return the signal rounded to the step."""
        return torch.round(signal / self.step) * self.step


EFFECTS: dict[str, type[Effect]] = {c.__name__: c for c in (Bias, Scale, Drift, Delay, ClockScale, LowPass, Smoothing, AngleHarmonic,
                                                            Differentiated, Quantisation)}


def _read(signal: Tensor, place: Tensor) -> Tensor:
    """Read [*batch, T] at fractional places [*batch or 1, T], linearly; the ends hold."""
    place = place.clamp(0, signal.shape[-1] - 1)
    before = place.detach().floor().clamp_max(signal.shape[-1] - 2)
    shape = torch.broadcast_shapes(signal.shape, place.shape)
    signal, index = signal.expand(shape), before.long().expand(shape)
    left, right = signal.gather(-1, index), signal.gather(-1, index + 1)
    return left + (place - before) * (right - left)
