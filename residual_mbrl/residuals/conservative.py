"""A learned potential: the force is its exact gradient, so a stored energy exists for any weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from residual_mbrl.baselines import Baseline, Port
from residual_mbrl.residuals.base import Certificate, Context, Residual
from residual_mbrl.residuals.networks import per_member
from residual_mbrl.residuals.warp_form import WarpForm, WarpFunction, constants_of, port_type, summed, warp_function
from residual_mbrl.spaces import StateSpace


class Conservative(Residual):
    """Force ``-∂V/∂q`` of a ridge potential ``V(q) = scale Σ_k a_k log cosh(w_k·z + b_k)``.

    z holds q, or (cos q, sin q) for joints in ``periodic``. The force is ``-scale ∂z/∂qᵀ Wᵀ (a ⊙ tanh(W z + b))``, exact and
    bounded by ``scale Σ|a_k| |w_k|``. Potentials and energy conservation: Greydanus et al., NeurIPS 2019 learn the whole
    Hamiltonian; here only the difference from the baseline's.

    Args:
        nq: Positions (no quaternions).
        periodic: Indices of joints whose potential repeats every 2π.
        units: Ridge functions.
        scale: Typical force [N or N·m].
        seed: Seed of the initial weights.
    """

    port = Port.FORCE
    center: Tensor
    spread: Tensor

    def __init__(self, *, nq: int, periodic: Sequence[int] = (), units: int = 8, scale: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        if not scale > 0 or units < 1 or any(not 0 <= i < nq for i in periodic):
            raise ValueError(f"Conservative: expected scale > 0, units >= 1 and periodic joints below {nq}, received {scale}, "
                             f"{units}, {tuple(periodic)}")
        self.nq, self.periodic, self.units, self.scale, self.seed = nq, tuple(periodic), units, scale, seed
        self.plain = tuple(i for i in range(nq) if i not in self.periodic)
        generator = torch.Generator().manual_seed(seed)
        inputs = len(self.plain) + 2 * len(self.periodic)
        self.directions = nn.Parameter(torch.randn(inputs, units, generator=generator).double() / math.sqrt(inputs))
        self.offsets = nn.Parameter(torch.randn(units, generator=generator).double())
        self.amplitudes = nn.Parameter(torch.zeros(units, dtype=torch.float64))
        self.register_buffer("center", torch.zeros(len(self.plain), dtype=torch.float64))
        self.register_buffer("spread", torch.ones(len(self.plain), dtype=torch.float64))

    def normalise(self, context: Context) -> None:
        """Centre and scale the plain coordinates by the data."""
        if self.plain:
            q = context.q[..., list(self.plain)].reshape(-1, len(self.plain)).double()
            self.center.copy_(q.mean(0))
            self.spread.copy_(q.std(0).clamp_min(1e-9))

    def _inputs(self, q: Tensor) -> Tensor:
        plain = q[..., list(self.plain)]
        plain = (plain - per_member(self.center.to(q.dtype), plain)) / per_member(self.spread.to(q.dtype), plain)
        turning = q[..., list(self.periodic)]
        return torch.cat([plain, torch.cos(turning), torch.sin(turning)], -1)

    def _ridge(self, q: Tensor) -> Tensor:
        z = self._inputs(q)
        w = self.directions.to(q.dtype)
        return self._linear(z, w) + per_member(self.offsets.to(q.dtype), z)

    @staticmethod
    def _linear(z: Tensor, w: Tensor) -> Tensor:
        """Apply [*members, n, m] to [*members, *batch, n]."""
        if w.ndim == 2:
            return z @ w
        return (z.unsqueeze(-2) @ per_member(w, z.unsqueeze(-2), 2)).squeeze(-2)

    def potential(self, q: Tensor) -> Tensor:
        """Return V [J], shape [*batch]."""
        r = self._ridge(q)
        logcosh = r.abs() + torch.nn.functional.softplus(-2 * r.abs()) - math.log(2.0)
        return self.scale * (per_member(self.amplitudes.to(q.dtype), r) * logcosh).sum(-1)

    def forward(self, context: Context) -> Tensor:
        """Return the force -∂V/∂q [N or N·m], shape [*batch, nv]."""
        q = context.q
        r = self._ridge(q)
        slope = self._linear(per_member(self.amplitudes.to(q.dtype), r) * torch.tanh(r), self.directions.to(q.dtype).mT)
        n, m = len(self.plain), len(self.periodic)
        force: list[Tensor] = [torch.empty(0)] * self.nq
        for k, i in enumerate(self.plain):
            force[i] = slope[..., k] / per_member(self.spread[..., k].to(q.dtype), slope[..., k], 0)
        for k, i in enumerate(self.periodic):
            force[i] = torch.cos(q[..., i]) * slope[..., n + m + k] - torch.sin(q[..., i]) * slope[..., n + k]
        return -self.scale * torch.stack(force, -1)

    def warp_form(self, space: StateSpace, signals: Mapping[str, tuple[int, WarpFunction]]) -> WarpForm | None:
        """Return the Warp form of the force: a perceptron whose second matrix is ``diag(a) Wᵀ``, between z(q) and ∂z/∂qᵀ."""
        if space.quaternions:
            return None
        plain, periodic, nq = self.plain, self.periodic, self.nq
        numbers = [x for c, s in zip(self.center.unbind(-1), self.spread.unbind(-1), strict=True) for x in (c, 1.0 / s)]

        def weights() -> list[Tensor]:
            second = self.amplitudes.unsqueeze(-1) * self.directions.mT
            return [self.directions, self.offsets, second, second.new_zeros(*second.shape[:-2], second.shape[-1])]

        def entries(c0: int) -> list[WarpFunction]:
            return _warp_inputs(plain, periodic, c0)

        def emit(y0: int, c0: int) -> WarpFunction:
            return _warp_force(nq, plain, periodic, y0, c0)

        inputs = len(plain) + 2 * len(periodic)
        return WarpForm(("potential", nq, plain, periodic), constants_of([*numbers, self.scale]), (inputs, self.units, inputs), entries,
                        emit, weights, squashed=False)

    def describe(self) -> dict[str, object]:
        """Return the constructor arguments."""
        return {"nq": self.nq, "periodic": list(self.periodic), "units": self.units, "scale": self.scale, "seed": self.seed}

    def certificate(self, context: Context, baseline: Baseline) -> Certificate:
        """Worst mismatch between the force and the numerical gradient of its potential [N or N·m]."""
        q, h = context.q.detach(), 1e-6
        force = self.forward(context).detach()
        worst = 0.0
        for i in range(self.nq):
            step = torch.zeros_like(q)
            step[..., i] = h
            slope = (self.potential(q + step) - self.potential(q - step)) / (2 * h)
            size = 1e-6 * (1 + force[..., i].abs().max())
            worst = max(worst, float(((slope.detach() + force[..., i]).abs() - size).max()) if q.dtype == torch.float64 else 0.0)
        return Certificate(residual=self.name, quantity="force that no potential explains", worst=max(worst, 0.0), limit=0.0,
                           unit="N·m", samples=int(force[..., 0].numel()))


def _warp_inputs(plain: tuple[int, ...], periodic: tuple[int, ...], c0: int) -> list[WarpFunction]:
    """Return z(q), entry by entry: centred and scaled coordinates, then cosines, then sines."""
    import warp as wp  # noqa: PLC0415  # only fused rollouts need it

    def scaled(i: int, at: int) -> WarpFunction:
        @warp_function
        def centred(x: Any, u: Any, p: Any, c: Any) -> Any:
            return (x[i] - c[at]) * c[at + 1]

        return centred  # type: ignore[no-any-return]

    def cosine(i: int) -> WarpFunction:
        @warp_function
        def cosine_of(x: Any, u: Any, p: Any, c: Any) -> Any:
            return wp.cos(x[i])

        return cosine_of  # type: ignore[no-any-return]

    def sine(i: int) -> WarpFunction:
        @warp_function
        def sine_of(x: Any, u: Any, p: Any, c: Any) -> Any:
            return wp.sin(x[i])

        return sine_of  # type: ignore[no-any-return]

    return [*(scaled(i, c0 + 2 * k) for k, i in enumerate(plain)), *map(cosine, periodic), *map(sine, periodic)]


def _warp_force(nq: int, plain: tuple[int, ...], periodic: tuple[int, ...], y0: int, c0: int) -> WarpFunction:
    """Return ``(y, x, u, p, c) -> port`` with the force ``-scale ∂z/∂qᵀ y``."""
    import warp as wp  # noqa: PLC0415  # only fused rollouts need it

    port, scale, n, m = port_type(nq), c0 + 2 * len(plain), len(plain), len(periodic)

    def plain_force(i: int, k: int) -> WarpFunction:
        @warp_function
        def along_coordinate(y: Any, x: Any, u: Any, p: Any, c: Any) -> Any:
            out = port()
            out[i] = -c[scale] * y[y0 + k] * c[c0 + 2 * k + 1]
            return out

        return along_coordinate  # type: ignore[no-any-return]

    def periodic_force(i: int, k: int) -> WarpFunction:
        @warp_function
        def along_turn(y: Any, x: Any, u: Any, p: Any, c: Any) -> Any:
            out = port()
            out[i] = -c[scale] * (wp.cos(x[i]) * y[y0 + n + m + k] - wp.sin(x[i]) * y[y0 + n + k])
            return out

        return along_turn  # type: ignore[no-any-return]

    return summed(port, [*(plain_force(i, k) for k, i in enumerate(plain)), *(periodic_force(i, k) for k, i in enumerate(periodic))])
