"""Corrections that remember: commands of the last steps, and what samples before a rollout said, fading as the rollout goes on."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from residual_mbrl.baselines import Baseline, Port
from residual_mbrl.errors import ModelError
from residual_mbrl.physics.rotations import rotate
from residual_mbrl.residuals.base import Certificate, Context, Residual, bound_certificate
from residual_mbrl.residuals.features import Feature, FeatureMap
from residual_mbrl.residuals.memory_warp import MemoryLayout, warp_memory_form
from residual_mbrl.residuals.networks import Perceptron, per_member
from residual_mbrl.residuals.warp_form import WarpForm, WarpFunction
from residual_mbrl.spaces import StateSpace


class Remembering(Residual):
    """``scale ⊙ (tanh net(features, commands at lags, traces) + Σ_j trace_j)``, with traces that fade: ``trace_j' = e^(-dt/τ_j) trace_j``.

    The traces start from an encoder's view of a *context*, numbers computed from samples before the rollout
    (``disturbance.past_context``): ``trace(0) = tanh(A c + encoder(c))``. A rollout without a context starts them at zero. The τ_j are
    learned with the rest. Past commands are kept in the state, so that a planner sees them.

    Args:
        nv: Degrees of freedom.
        nu: Actions.
        features: What the network sees of the present state; none of it is centred.
        sizes: Components of each feature's source.
        scale: Size of each output entry, in the port's unit; the correction stays below ``(1 + len(fading)) scale``. Zero leaves an
            entry to another residual.
        context: How many numbers of the context it looks at, from the first on; 0 for none.
        lags: Steps back of the commands that the network sees; 0 is the present one.
        fading: First guess of each τ_j [s].
        dt: Seconds per step of the baseline.
        hidden: Hidden units of the network.
        encoder: Hidden units of the encoder.
        body_frame: Whether the three entries before the space's first quaternion (a free body's linear ones) are given in the body frame.
        seed: Seed of the initial weights.
    """

    command_mean: Tensor
    command_spread: Tensor
    context_spread: Tensor

    def __init__(self, *, nv: int, nu: int, features: Sequence[Feature], sizes: Sequence[int] | None = None, scale: Sequence[float],
                 context: int, dt: float, lags: Sequence[int] = (0,), fading: Sequence[float] = (0.1, 1.0),
                 hidden: Sequence[int] = (64, 64), encoder: Sequence[int] = (32,), body_frame: bool = False, seed: int = 0) -> None:
        super().__init__()
        if len(scale) != nv or min(scale) < 0 or max(scale) <= 0:
            raise ValueError(f"{type(self).__name__}: expected {nv} scales, none negative and not all zero, received {tuple(scale)}")
        if any(k < 0 for k in lags) or context < 0 or any(not t > 0 for t in fading) or (context > 0) != bool(fading):
            raise ValueError(f"{type(self).__name__}: expected lags >= 0, and positive times of fading where there is a context, received "
                             f"{tuple(lags)}, {tuple(fading)}, context {context}")
        self.nv, self.nu, self.scale, self.dt, self.seed = nv, nu, tuple(scale), dt, seed
        self.context, self.lags, self.fading, self.body_frame = context, tuple(lags), tuple(fading), body_frame
        self.hidden, self.encoder_units = tuple(hidden), tuple(encoder)
        self.taps, self.traces = max(self.lags, default=0), len(self.fading) * nv
        self.memory_names = (*(f"past_command{k}_{c}" for k in range(1, self.taps + 1) for c in range(nu)),
                             *(f"trace{j}_{i}" for j in range(len(self.fading)) for i in range(nv)))
        generator = torch.Generator().manual_seed(seed)
        self.features = FeatureMap(features, sizes or [1] * len(features))
        self.network = Perceptron(self.features.outputs + nu * len(self.lags) + self.traces, hidden, nv, generator)
        if context:
            self.linear, self.encoder = Perceptron(context, (), self.traces), Perceptron(context, encoder, self.traces, generator)
            self.raw_fading = nn.Parameter(torch.tensor(self.fading, dtype=torch.float64).log())
        self.register_buffer("command_mean", torch.zeros(nu, dtype=torch.float64))
        self.register_buffer("command_spread", torch.ones(nu, dtype=torch.float64))
        self.register_buffer("context_spread", torch.ones(context, dtype=torch.float64))

    @property
    def keeps(self) -> Tensor:
        """What a trace keeps in a step, e^(-dt/τ), shape [*members, traces]; τ between a tenth of a step and 1000 s."""
        tau = self.raw_fading.clamp(math.log(0.1 * self.dt), math.log(1000.0)).exp()
        return torch.exp(-self.dt / tau).repeat_interleave(self.nv, -1)

    def recall(self, context: Tensor) -> Tensor:
        """Return the traces that a context starts, in units of the scale, shape [*batch, traces].

        Args:
            context: Shape [*batch, context].

        Raises:
            ValueError: if it has another size.
        """
        if not self.context or context.shape[-1] != self.context:
            raise ValueError(f"{self.name}.recall: expected a context [*batch, {self.context}], received {tuple(context.shape)}")
        c = (context / per_member(self.context_spread.to(context.dtype), context)).clamp(-10.0, 10.0)
        return torch.tanh(self.linear(c) + self.encoder(c))

    def starting_memory(self, lead: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the memory before a rollout, shape [*batch, memory].

        Args:
            lead: Commands of the steps before, the latest last, shape [*batch, L, nu] with L at least the longest lag.
            context: Shape [*batch, context or more]; None starts the traces at zero.
        """
        if lead.shape[-2] < self.taps:
            raise ValueError(f"{self.name}: the longest lag is {self.taps} steps, received a lead of {lead.shape[-2]}")
        past = lead[..., lead.shape[-2] - self.taps :, :].flip(-2).flatten(-2)
        if context is None or not self.context:
            return torch.cat([past, past.new_zeros(*past.shape[:-1], self.traces)], -1)
        return torch.cat([past, self.recall(context[..., : self.context])], -1)

    def initial_memory(self, context: Context) -> Tensor:
        """Return the first command repeated, and no traces."""
        past = context.action.repeat(*(1,) * (context.action.ndim - 1), self.taps)
        return torch.cat([past, past.new_zeros(*past.shape[:-1], self.traces)], -1)

    def next_memory(self, context: Context) -> Tensor:
        """Shift the commands and let the traces fade."""
        memory = self._memory(context)
        held = self.taps * self.nu
        past = torch.cat([context.action, memory[..., :held]], -1)[..., :held]
        traces = memory[..., held:]
        if self.context:
            traces = traces * per_member(self.keeps.to(traces.dtype), traces)
        return torch.cat([past, traces], -1)

    def forward(self, context: Context) -> Tensor:
        """Return the correction on the port."""
        return self._placed(self._correction(context), context)

    @abstractmethod
    def _placed(self, correction: Tensor, context: Context) -> Tensor:
        """Return the port's vector from the corrected entries, shape [*batch, nv]."""

    def _correction(self, context: Context) -> Tensor:
        memory = self._memory(context)
        held = self.taps * self.nu
        line = [context.action, *memory[..., :held].split(self.nu, -1)] if held else [context.action]
        mean, spread = (per_member(b.to(memory.dtype), context.action) for b in (self.command_mean, self.command_spread))
        commands = [(line[k] - mean) / spread for k in self.lags]
        traces = memory[..., held:]
        seen = [self.features(context), *commands, traces]
        batch = torch.broadcast_shapes(*(x.shape[:-1] for x in seen))
        out = torch.tanh(self.network(torch.cat([x.expand(*batch, x.shape[-1]) for x in seen], -1)))
        if self.context:
            out = out + traces.unflatten(-1, (len(self.fading), self.nv)).sum(-2)
        out = out * out.new_tensor(self.scale)
        if not self.body_frame:
            return out
        q0, v0 = sorted(context.space.quaternions)[0]
        attitude = context.state[..., q0 : q0 + 4]
        attitude = attitude / attitude.square().sum(-1, keepdim=True).sqrt()
        return torch.cat([out[..., : v0 - 3], rotate(attitude, out[..., v0 - 3 : v0]), out[..., v0:]], -1)

    def _memory(self, context: Context) -> Tensor:
        return self.initial_memory(context) if context.memory is None else context.memory

    def check(self, baseline: Baseline) -> None:
        """Check the port, and for ``body_frame`` that the baseline has a free body.

        Raises:
            ModelError: naming both sides where they do not fit.
        """
        super().check(baseline)
        if (self.nv, self.nu) != (baseline.space.nv, baseline.space.nu):
            raise ModelError(f"{self.name} has nv {self.nv} and nu {self.nu}, {type(baseline).__name__} {baseline.space.nv} and "
                             f"{baseline.space.nu}")
        if self.body_frame and not any(v0 >= 3 and q0 >= 3 for q0, v0 in sorted(baseline.space.quaternions)[:1]):
            raise ModelError(f"{self.name} speaks in the body frame, but {type(baseline).__name__} has no free body first in its state")

    def normalise(self, context: Context) -> None:
        """Set the normalisers of features and commands from states and actions of the data."""
        super().normalise(context)
        u = context.action.reshape(-1, self.nu).double()
        self.command_mean.copy_(u.mean(0))
        self.command_spread.copy_(u.std(0, correction=0).clamp_min(1e-6))

    def normalise_context(self, context: Tensor) -> None:
        """Set the normaliser of the context, the root mean square of each entry over the data, shape [*batch, context]."""
        self.context_spread.copy_(context.reshape(-1, self.context).double().square().mean(0).sqrt().clamp_min(1e-9))

    def _warp_form(self, space: StateSpace, signals: Mapping[str, tuple[int, WarpFunction]], start: int) -> WarpForm | None:
        """Return the Warp form of a correction that begins at a place of the port's vector."""
        quaternion = sorted(space.quaternions)[0] if self.body_frame else None
        layout = MemoryLayout(nv=self.nv, nu=self.nu, lags=self.lags, taps=self.taps, fades=len(self.fading), start=start,
                              quaternion=quaternion)
        constants: list[Tensor | float] = [*self.command_mean.unbind(-1), *(1 / self.command_spread).unbind(-1), *self.scale]
        scalars = (lambda: [self.keeps]) if self.context else list
        return warp_memory_form(layout, self.features, self.network, constants, scalars, space, signals)

    def describe(self) -> dict[str, object]:
        """Return the constructor arguments."""
        return {"nv": self.nv, "nu": self.nu, "features": self.features.describe(), "sizes": list(self.features.sizes),
                "scale": list(self.scale), "context": self.context, "lags": list(self.lags), "fading": list(self.fading), "dt": self.dt,
                "hidden": list(self.hidden), "encoder": list(self.encoder_units), "body_frame": self.body_frame, "seed": self.seed}

    def certificate(self, context: Context, baseline: Baseline) -> Certificate:
        """Worst excess over the bound of the correction's size, in units of the scale's norm."""
        scale = torch.tensor(self.scale, dtype=context.state.dtype, device=context.state.device)
        bound = (1 + len(self.fading)) * scale.norm()
        return bound_certificate(self.name, self._correction(context).norm(dim=-1) / bound - 1, "excess over the bound", "1")


class MemoryForce(Remembering):
    """A free force with memory: see ``Remembering``; scale in N or N·m."""

    port = Port.FORCE

    def _placed(self, correction: Tensor, context: Context) -> Tensor:
        return correction

    def warp_form(self, space: StateSpace, signals: Mapping[str, tuple[int, WarpFunction]]) -> WarpForm | None:
        """Return the Warp form of the correction and of the memory after the step."""
        return self._warp_form(space, signals, 0)


class MemoryRate(Remembering):
    """How positions move besides their velocities, with memory: see ``Remembering``; scale in m/s or rad/s.

    For logs whose velocities are not the rate of their positions, as those of an estimator with a slow bias.
    """

    port = Port.STATE

    def _placed(self, correction: Tensor, context: Context) -> Tensor:
        rest = context.space.ndx - self.nv
        return torch.cat([correction, correction.new_zeros(*correction.shape[:-1], rest)], -1)

    def warp_form(self, space: StateSpace, signals: Mapping[str, tuple[int, WarpFunction]]) -> WarpForm | None:
        """Return the Warp form of the correction and of the memory after the step."""
        return self._warp_form(space, signals, 2 * self.nv + self.nv**2)
