"""A baseline replaced by its first-order model about given points, where torch cannot differentiate the baseline itself."""

from __future__ import annotations

import torch
from torch import Tensor

from residual_mbrl.baselines import Baseline, Port, StepJacobian, Values
from residual_mbrl.dynamics import Correction, ResidualDynamics
from residual_mbrl.residuals.base import Certificate, Context, Residual


class FirstOrder(Baseline):
    """``x' = after ⊞ (J_x (x ⊖ x0) + J_u (u - u0) + J_f (f - f0) + Σ J_p (p - p0))``, all of it plain torch.

    Args:
        baseline: What it stands for.
        state: Points x0, shape [*batch, nx].
        at: Command, force and values that the baseline receives there.
        jacobian: Derivative of the step there.
    """

    def __init__(self, baseline: Baseline, state: Tensor, at: Correction, jacobian: StepJacobian) -> None:
        self.space, self.parameters, self.dt = baseline.space, baseline.parameters, baseline.dt
        self.ports, self.live = baseline.ports, baseline.live
        self._baseline, self._state, self._at, self._jacobian = baseline, state, at, jacobian
        with torch.no_grad():
            self._after = baseline.step(state, at.action, at.force, at.values)

    def step(self, state: Tensor, action: Tensor, force: Tensor | None = None, parameters: Values | None = None) -> Tensor:
        """Advance ``dt`` seconds to first order."""
        at, slopes = self._at, self._jacobian
        tangent = _product(slopes.state, self.space.difference(state, self._state)) + _product(slopes.action, action - at.action)
        if force is not None and at.force is not None and slopes.force is not None:
            tangent = tangent + _product(slopes.force, force - at.force)
        for name, slope in slopes.parameters.items():
            change = (at.values if parameters is None else parameters)[name] - at.values[name]
            tangent = tangent + (_product(slope, change) if slope.ndim == tangent.ndim + 1 else slope * change.unsqueeze(-1))
        return self.space.integrate(self._after, tangent)

    def signals(self, state: Tensor, action: Tensor, parameters: Values | None = None) -> dict[str, Tensor]:
        """Return the baseline's own signals."""
        return self._baseline.signals(state, action, parameters)


class _Held(Residual):
    """A residual that takes what it sees as given, with what it gave at the points."""

    def __init__(self, residual: Residual, context: Context) -> None:
        super().__init__()
        self.port, self.live, self._residual = residual.port, residual.live, residual
        with torch.no_grad():
            self._found: Tensor = residual(context)

    def forward(self, context: Context) -> Tensor:
        """Return what it gave at the points."""
        return self._found

    def describe(self) -> dict[str, object]:
        """Return the arguments of the residual itself."""
        return self._residual.describe()

    def certificate(self, context: Context, baseline: Baseline) -> Certificate:
        """Return the certificate of the residual itself."""
        return self._residual.certificate(context, baseline)


def make_differentiable(dynamics: ResidualDynamics, state: Tensor, action: Tensor, parameters: Values | None = None) -> ResidualDynamics:
    """Return a model with the same first derivatives at some points that torch can take in forward mode.

    By the values of the baseline's parameters only where a residual adds to them: the others are as they are.

    Args:
        dynamics: The model.
        state: Points, shape [*batch, nx].
        action: Shape [*batch, nu].
        parameters: As in ``ResidualDynamics.step``.
    """
    baseline = dynamics.baseline
    known = state[..., : baseline.space.nx]
    moved = {r.live for r in dynamics.corrections if r.port is Port.PARAMETERS and r.live is not None}
    with torch.no_grad():
        at = dynamics.correction(state, action, parameters)
        jacobian = baseline.jacobian(known, at.action, at.force, at.values, by=moved)
    if jacobian is None:
        return dynamics
    residuals = [_Held(r, c) if r.most_contacts else r for r, c in zip(dynamics.corrections, at.contexts, strict=True)]
    return ResidualDynamics(FirstOrder(baseline, known, at, jacobian), residuals, dynamics.values)


def _product(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)
