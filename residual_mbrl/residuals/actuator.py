"""What a drive really does with its command: delay and lag on the command, gain, saturation and sag on the effort."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from residual_mbrl.baselines import Baseline, Port
from residual_mbrl.residuals.base import Certificate, Context, Residual, bound_certificate
from residual_mbrl.residuals.features import Feature, FeatureMap
from residual_mbrl.residuals.networks import Perceptron, per_member
from residual_mbrl.residuals.warp_form import (
    WarpForm,
    WarpFunction,
    constants_of,
    feature_form,
    perceptron_sizes,
    perceptron_weights,
    port_type,
    source_entry,
    source_places,
    warp_function,
)
from residual_mbrl.spaces import StateSpace


class CommandActuator(Residual):
    """The command as the drive executes it: ``u' = clip(gain · lag(delay(u)))``.

    The transport delay is read, linearly interpolated, from the commands of the last ``max_delay`` seconds, and the lag is
    the exact zero-order-hold response of ``T dy/dt = u - y``; both live in the state's memory, so a planner sees them.

    Args:
        nu: Actions of the baseline.
        channels: Indices of the actions that are changed.
        dt: Seconds per step of the baseline.
        max_delay: Longest delay that can be learned [s].
        max_lag: Longest time constant that can be learned [s].
        limit: Largest executed command, in the action's unit; infinite where None.
        gain_bound: Gain stays within [1/(1+bound), 1+bound].
    """

    port = Port.ACTION

    def __init__(self, *, nu: int, channels: Sequence[int], dt: float, max_delay: float = 0.05, max_lag: float = 0.1,
                 limit: float | None = None, gain_bound: float = 0.5) -> None:
        super().__init__()
        if not channels or any(not 0 <= c < nu for c in channels) or max_delay < 0 or max_lag < 0:
            raise ValueError(f"CommandActuator: expected channels below {nu} and delays >= 0, received {tuple(channels)}, "
                             f"{max_delay}, {max_lag}")
        self.nu, self.channels, self.dt = nu, tuple(channels), dt
        self.max_delay, self.max_lag, self.limit, self.gain_bound = max_delay, max_lag, limit, gain_bound
        self.taps = math.ceil(max_delay / dt)
        n = len(self.channels)
        self.memory_names = (*(f"past_command{k}_{c}" for k in range(1, self.taps + 1) for c in self.channels),
                             *(f"lagged_command_{c}" for c in self.channels))
        self.raw_delay = nn.Parameter(torch.full((n,), -3.0, dtype=torch.float64))
        self.raw_lag = nn.Parameter(torch.full((n,), -3.0, dtype=torch.float64))
        self.raw_gain = nn.Parameter(torch.zeros(n, dtype=torch.float64))

    @property
    def delay(self) -> Tensor:
        """Transport delay [s] of each channel, shape [*members, channels]."""
        return self.max_delay * torch.sigmoid(self.raw_delay)

    @property
    def lag(self) -> Tensor:
        """Time constant [s] of each channel, shape [*members, channels]."""
        return self.max_lag * torch.sigmoid(self.raw_lag)

    @property
    def gain(self) -> Tensor:
        """Gain of each channel, shape [*members, channels]."""
        return torch.exp(math.log1p(self.gain_bound) * torch.tanh(self.raw_gain))

    def initial_memory(self, context: Context) -> Tensor:
        """Return the first command repeated: the drive has long been executing it."""
        return context.action[..., list(self.channels)].repeat(*(1,) * (context.action.ndim - 1), self.taps + 1)

    def _delayed(self, context: Context, command: Tensor) -> Tensor:
        if self.taps == 0 or context.memory is None:
            return command
        n = len(self.channels)
        line = torch.cat([command, context.memory[..., : self.taps * n]], -1).reshape(*command.shape[:-1], self.taps + 1, n)
        steps = per_member(self.delay.to(command.dtype), command) / self.dt
        places = torch.arange(self.taps + 1, dtype=command.dtype, device=command.device)
        weights = (1 - (steps.unsqueeze(-2) - places.unsqueeze(-1)).abs()).clamp_min(0)
        return (weights * line).sum(dim=-2)

    def _lagged(self, context: Context) -> Tensor:
        command = context.action[..., list(self.channels)]
        target = self._delayed(context, command)
        if context.memory is None:
            return target
        keep = torch.exp(-self.dt / per_member(self.lag.to(target.dtype), target).clamp_min(1e-6))
        return keep * context.memory[..., -len(self.channels) :] + (1 - keep) * target

    def forward(self, context: Context) -> Tensor:
        """Return the change of the action, executed minus sent, shape [*batch, nu]."""
        executed = per_member(self.gain.to(context.action.dtype), context.action) * self._lagged(context)
        if self.limit is not None:
            executed = executed.clamp(-self.limit, self.limit)
        change = executed - context.action[..., list(self.channels)]
        columns: list[Tensor] = [torch.zeros_like(change[..., 0])] * self.nu
        for k, c in enumerate(self.channels):
            columns[c] = change[..., k]
        return torch.stack(columns, -1)

    def next_memory(self, context: Context) -> Tensor:
        """Shift the delay line and keep the lagged command."""
        n = len(self.channels)
        past = context.memory[..., : max(self.taps - 1, 0) * n] if context.memory is not None else context.action[..., :0]
        newest = context.action[..., list(self.channels)] if self.taps else context.action[..., :0]
        lagged = self._lagged(context)
        return torch.cat([newest.expand(*lagged.shape[:-1], -1), past.expand(*lagged.shape[:-1], -1), lagged], -1)

    def warp_form(self, space: StateSpace, signals: Mapping[str, tuple[int, WarpFunction]]) -> WarpForm | None:
        """Return the Warp form of the change of the command and of the memory after the step."""
        nu, channels, taps = self.nu, self.channels, self.taps

        def scalars() -> list[Tensor]:  # what is the same in all steps and worlds is computed here, in the weights' own precision
            return [self.delay / self.dt, torch.exp(-self.dt / self.lag.clamp_min(1e-6)), self.gain]

        def drive(c0: int, p0: int, m0: int) -> tuple[WarpFunction, WarpFunction]:
            return _warp_drive(nu, channels, taps, c0=c0, p0=p0, m0=m0)

        return WarpForm(("command", nu, channels, taps), constants_of([math.inf if self.limit is None else self.limit]), drive=drive,
                        scalars=scalars)

    def describe(self) -> dict[str, object]:
        """Return the constructor arguments."""
        return {"nu": self.nu, "channels": list(self.channels), "dt": self.dt, "max_delay": self.max_delay,
                "max_lag": self.max_lag, "limit": self.limit, "gain_bound": self.gain_bound}

    def certificate(self, context: Context, baseline: Baseline) -> Certificate:
        """Worst excess of the executed command over the largest recent one times the largest gain (and over the limit)."""
        sent = context.action[..., list(self.channels)]
        executed = sent + self.forward(context)[..., list(self.channels)]
        n = len(self.channels)
        recent = sent.abs()
        if context.memory is not None:
            recent = torch.maximum(recent, context.memory.reshape(*recent.shape[:-1], self.taps + 1, n).abs().amax(-2))
        largest = (1 + self.gain_bound) * recent
        if self.limit is not None:
            largest = largest.clamp_max(self.limit)
        return bound_certificate(self.name, executed.abs() - largest - 1e-9 * (1 + largest), "excess over the bound", "1")


class EffortActuator(Residual):
    """Correction of the effort e that the baseline says its drive gives: ``force = e (exp(b tanh g) - 1) + c |e| tanh h``.

    g and h are two outputs of one small network, so gain errors, saturation, sag with current and direction asymmetry
    are all within reach, the effort keeps its sign while c < exp(-b), and no effort means no correction: a switched-off
    drive stays passive.

    Args:
        signal: Baseline signal with the effort of each degree of freedom [N or N·m], shape [*batch, nv].
        nv: Degrees of freedom.
        features: What the correction depends on (effort, current, duty, speed).
        sizes: Components of each feature's source.
        gain_bound: b, bound on the logarithm of the gain.
        bias_bound: c, bound on the part that is even in the effort, relative to |e|.
        hidden: Hidden units.
        seed: Seed of the initial weights.
    """

    port = Port.FORCE

    def __init__(self, *, signal: str, nv: int, features: Sequence[Feature], sizes: Sequence[int] | None = None,
                 gain_bound: float = 0.3, bias_bound: float = 0.1, hidden: Sequence[int] = (8,), seed: int = 0) -> None:
        super().__init__()
        if gain_bound <= 0 or not 0 <= bias_bound < 1:
            raise ValueError(f"EffortActuator: expected gain_bound > 0 and 0 <= bias_bound < 1, received {gain_bound}, {bias_bound}")
        self.signal, self.nv, self.hidden, self.seed = signal, nv, tuple(hidden), seed
        self.gain_bound, self.bias_bound = gain_bound, bias_bound
        self.features = FeatureMap(features, sizes or [1] * len(features))
        self.network = Perceptron(self.features.outputs, hidden, 2 * nv, torch.Generator().manual_seed(seed))

    def forward(self, context: Context) -> Tensor:
        """Return the force that corrects the effort [N or N·m], shape [*batch, nv]."""
        effort = context.source(self.signal)
        raw = torch.tanh(self.network(self.features(context)))
        return effort * torch.expm1(self.gain_bound * raw[..., : self.nv]) + self.bias_bound * effort.abs() * raw[..., self.nv :]

    def warp_form(self, space: StateSpace, signals: Mapping[str, tuple[int, WarpFunction]]) -> WarpForm | None:
        """Return the Warp form of the force; None where the effort or a feature is a signal that has none."""
        inputs, places = feature_form(self.features, space, signals), source_places(self.signal, space, signals)
        if inputs is None or places is None or len(places) != self.nv:
            return None
        nv, entries, efforts = self.nv, len(inputs.constants), [source_entry(place) for place in places]

        def emit(y0: int, c0: int) -> WarpFunction:
            return _warp_effort(nv, efforts, y0=y0, gain=c0 + entries, bias=c0 + entries + 1)

        return WarpForm(("effort", nv, tuple(place[:2] for place in places), inputs.key),
                        constants_of([*inputs.constants, self.gain_bound, self.bias_bound]), perceptron_sizes(self.network), inputs.entries,
                        emit, perceptron_weights(self.network))

    def describe(self) -> dict[str, object]:
        """Return the constructor arguments."""
        return {"signal": self.signal, "nv": self.nv, "features": self.features.describe(),
                "sizes": list(self.features.sizes), "gain_bound": self.gain_bound, "bias_bound": self.bias_bound,
                "hidden": list(self.hidden), "seed": self.seed}

    def certificate(self, context: Context, baseline: Baseline) -> Certificate:
        """Worst excess of the correction over its share of the effort [N or N·m]."""
        effort = context.source(self.signal).abs()
        bound = effort * (math.expm1(self.gain_bound) + self.bias_bound)
        return bound_certificate(self.name, self.forward(context).abs() - bound - 1e-9 * (1 + bound), "excess over the bound", "N·m")


def _warp_drive(nu: int, channels: Sequence[int], taps: int, *, c0: int, p0: int, m0: int) -> tuple[WarpFunction, WarpFunction]:
    """Return ``(x, u, p, c)`` of a command actuator: the change of the command, and the memory after the step.

    c[c0] is the limit; p from p0 on holds delays in steps, what a lag keeps in a step, and gains; x from m0 on the memory.
    """
    import warp as wp  # noqa: PLC0415  # only fused rollouts need it

    n, action = len(channels), wp.types.vector(length=nu, dtype=wp.float32)

    def lagged(k: int, x: Any, u: Any, p: Any) -> Any:
        line = [u[channels[k]], *(x[m0 + tap * n + k] for tap in range(taps))]
        target = line[0]
        if taps:
            target = 0.0
            for tap, command in enumerate(line):
                weight = 1.0 - wp.abs(p[p0 + k] - float(tap))
                target = target + wp.where(weight < 0.0, 0.0, weight) * command
        keep = p[p0 + n + k]
        return keep * x[m0 + taps * n + k] + (1.0 - keep) * target

    @warp_function
    def change(x: Any, u: Any, p: Any, c: Any) -> Any:
        out = action()
        for k, channel in enumerate(channels):
            executed = p[p0 + 2 * n + k] * lagged(k, x, u, p)
            out[channel] = wp.where(executed < -c[c0], -c[c0], wp.where(executed > c[c0], c[c0], executed)) - u[channel]
        return out

    @warp_function
    def remember(x: Any, u: Any, p: Any, c: Any) -> Any:
        newest = [u[channel] for channel in channels] if taps else []
        return [*newest, *x[m0 : m0 + max(taps - 1, 0) * n], *(lagged(k, x, u, p) for k in range(n))]

    return change, remember


def _warp_effort(nv: int, efforts: Sequence[WarpFunction], *, y0: int, gain: int, bias: int) -> WarpFunction:
    """Return ``(y, x, u, p, c) -> port`` of an effort actuator with outputs at y0 and its bounds at c[gain] and c[bias]."""
    import warp as wp  # noqa: PLC0415

    port = port_type(nv)

    @warp_function
    def corrected(y: Any, x: Any, u: Any, p: Any, c: Any) -> Any:
        out = port()
        for i, source in enumerate(efforts):
            effort = source(x, u, p)
            half = wp.tanh(0.5 * c[gain] * y[y0 + i])  # exp(z) - 1 = 2 t / (1 - t) with t = tanh(z / 2), exact near zero
            out[i] = effort * (2.0 * half / (1.0 - half)) + c[bias] * wp.abs(effort) * y[y0 + nv + i]
        return out

    return corrected  # type: ignore[no-any-return]
