"""A density on the correction: what the residual says is its mean, and how far it may be off depends on state and action."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.residuals.base import Context
from residual_mbrl.residuals.features import Feature, FeatureMap
from residual_mbrl.residuals.networks import Perceptron
from residual_mbrl.spaces import StateSpace


class CorrectionNoise(nn.Module):
    """Noise of the acceleration, beside noise of the first state and of the columns; the density is Gaussian or Student-t.

    ``x' = step(x, u) ⊞ dt (0, σ(x, u) ξ)`` with ``σ = exp(level + span tanh(net))`` per degree of freedom and a unit noise ξ that
    lasts: ``ξ' = ρ ξ + sqrt(1 - ρ²) ε``. Model error is not white, a wrong friction is as wrong in the next step, so ρ is learned too.
    For Student-t each path has one scale ``sqrt(ν / χ²_ν)`` of its own, so that every horizon's density is Student's t.

    Args:
        space: Of the baseline.
        features: What σ depends on; none makes it constant.
        sizes: Components of each feature's source; one each where None.
        level: First σ of each degree of freedom [unit of the velocity per second], shape [nv].
        start: First standard deviation of each tangent entry of a window's first state, shape [ndx].
        columns: First standard deviation of what the log shows of each tangent entry, shape [ndx].
        span: Most that the network changes log σ.
        hidden: Hidden units.
        dof: First degrees of freedom, then learned; infinite keeps the Gaussian.
        persistence: First ρ, within [0, 1).
        seed: Seed of the first weights.
    """

    def __init__(self, *, space: StateSpace, features: Sequence[Feature] = (), sizes: Sequence[int] | None = None, level: Sequence[float],
                 start: Sequence[float], columns: Sequence[float], span: float = 3.0, hidden: Sequence[int] = (16,), dof: float = math.inf,
                 persistence: float = 0.5, seed: int = 0) -> None:
        super().__init__()
        wrong = {n: list(x) for n, x, k in (("level", level, space.nv), ("start", start, space.ndx), ("columns", columns, space.ndx))
                 if len(x) != k or not all(v > 0 for v in x)}
        if wrong:
            raise ValueError(f"CorrectionNoise: expected positive level [{space.nv}], start and columns [{space.ndx}], received {wrong}")
        if not 0 <= persistence < 1 or not dof > 2:
            raise ValueError(f"CorrectionNoise: expected 0 <= persistence < 1 and dof > 2, received {persistence}, {dof}")
        self.space, self.span = space, span
        self.log_level = nn.Parameter(torch.tensor(level, dtype=torch.float64).log())
        self.log_start = nn.Parameter(torch.tensor(start, dtype=torch.float64).log())
        self.log_columns = nn.Parameter(torch.tensor(columns, dtype=torch.float64).log())
        self.raw_persistence = nn.Parameter(torch.logit(torch.tensor(max(persistence, 1e-4), dtype=torch.float64)))
        self.raw_dof = None if math.isinf(dof) else nn.Parameter(torch.tensor(dof - 2, dtype=torch.float64).log())
        self.features = FeatureMap(features, sizes or [1] * len(features)) if features else None
        self.network = (Perceptron(self.features.outputs, hidden, space.nv, torch.Generator().manual_seed(seed))
                        if self.features is not None else None)

    @property
    def persistence(self) -> Tensor:
        """Correlation ρ of the noise from step to step."""
        return torch.sigmoid(self.raw_persistence)

    @property
    def dof(self) -> Tensor | float:
        """Degrees of freedom ν > 2; infinite for the Gaussian."""
        return math.inf if self.raw_dof is None else 2 + self.raw_dof.exp()

    @property
    def start(self) -> Tensor:
        """Standard deviation of the first state, shape [ndx]."""
        return self.log_start.exp()

    @property
    def columns(self) -> Tensor:
        """Standard deviation of what the log shows, shape [ndx]."""
        return self.log_columns.exp()

    def context(self, dynamics: ResidualDynamics, state: Tensor, action: Tensor) -> Context:
        """Return what σ may look at; state may hold residual memory."""
        known, p = state[..., : self.space.nx], dynamics.resolve(None, state)
        return Context(self.space, known, action, dynamics.baseline.signals(known, action, p), None, dynamics.dt, p)

    def normalise(self, dynamics: ResidualDynamics, state: Tensor, action: Tensor) -> None:
        """Set the normaliser from states [*batch, nx] and actions [*batch, nu] of the data."""
        if self.features is not None:
            with torch.no_grad():
                self.features.fit(self.context(dynamics, state, action))

    def inputs(self, dynamics: ResidualDynamics, state: Tensor, action: Tensor) -> Tensor | None:
        """Return the features, shape [*batch, features], which do not depend on weights; None for a constant σ."""
        return None if self.features is None else self.features(self.context(dynamics, state, action))

    def scale(self, inputs: Tensor | None, batch: Sequence[int] = ()) -> Tensor:
        """Return σ [velocity unit / s] from features, shape [*batch, nv]."""
        if self.network is None or inputs is None:
            return self.log_level.exp().expand(*batch, -1)
        return torch.exp(self.log_level.to(inputs.dtype) + self.span * torch.tanh(self.network(inputs)))
