"""What a drive really does with its command: delay and lag on the command, gain, saturation and sag on the effort."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from residual_mbrl.baselines import Baseline, Port
from residual_mbrl.residuals.base import Certificate, Context, Residual, bound_certificate
from residual_mbrl.residuals.features import Feature, FeatureMap
from residual_mbrl.residuals.networks import Perceptron, per_member


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
