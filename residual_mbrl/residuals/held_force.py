"""A force that no model explains, held over a rollout: what a controller's observer finds missing while it runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from residual_mbrl.baselines import Baseline, Port
from residual_mbrl.errors import ModelError
from residual_mbrl.residuals.base import Certificate, Context, Residual, bound_certificate
from residual_mbrl.residuals.warp_form import WarpForm, WarpFunction, constants_of, no_command, port_type, warp_function
from residual_mbrl.spaces import StateSpace


class HeldForce(Residual):
    """Generalised force ``bound ⊙ tanh(m / bound)`` with m kept in the state: ``m' = e^(-dt/fading) m``.

    It has nothing to train. A rollout starts it at zero; ``controller.Controller`` estimates m from the errors of its one-step
    predictions, so that a constant pull that no model holds does not leave the plant standing off its reference. Source: Pannocchia and
    Rawlings, Disturbance models for offset-free model-predictive control, AIChE Journal 49(2), 2003.

    Args:
        bound: Largest force of each degree of freedom [N or N·m].
        dt: Seconds per step of the baseline.
        fading: Time constant with which it fades over a rollout [s]; None holds it.
    """

    port = Port.FORCE

    def __init__(self, *, bound: Sequence[float], dt: float, fading: float | None = None) -> None:
        super().__init__()
        if not (len(bound) and min(bound) > 0 and dt > 0 and (fading is None or fading > 0)):
            raise ValueError(f"HeldForce: bound, dt and fading must be positive, received {tuple(bound)}, {dt}, {fading}")
        self.bound, self.dt, self.fading = tuple(bound), dt, fading
        self.keep = 1.0 if fading is None else math.exp(-dt / fading)
        self.memory_names = tuple(f"missing_force_{i}" for i in range(len(bound)))

    def forward(self, context: Context) -> Tensor:
        """Return the force [N or N·m], shape [*batch, nv]."""
        memory = self._memory(context)
        bound = memory.new_tensor(self.bound)
        return bound * torch.tanh(memory / bound)

    def initial_memory(self, context: Context) -> Tensor:
        """Return zero: nothing is known to be missing."""
        return context.state.new_zeros(*context.state.shape[:-1], len(self.bound))

    def next_memory(self, context: Context) -> Tensor:
        """Return the memory, a little faded where it fades."""
        return self.keep * self._memory(context)

    def _memory(self, context: Context) -> Tensor:
        return self.initial_memory(context) if context.memory is None else context.memory

    def check(self, baseline: Baseline) -> None:
        """Check the port, the degrees of freedom and the step.

        Raises:
            ModelError: naming both sides where they do not fit.
        """
        super().check(baseline)
        if len(self.bound) != baseline.space.nv or abs(self.dt - baseline.dt) > 1e-9 * self.dt:
            raise ModelError(f"{self.name} has {len(self.bound)} bounds and dt {self.dt:g} s, {type(baseline).__name__} nv "
                             f"{baseline.space.nv} and dt {baseline.dt:g} s")

    def warp_form(self, space: StateSpace, signals: Mapping[str, tuple[int, WarpFunction]]) -> WarpForm | None:
        """Return the Warp form of the force and of the memory after the step."""
        nv, nu = space.nv, space.nu

        def placed(m0: int) -> tuple[Any, Any]:
            return (lambda c0: []), lambda y0, c0: _force(nv, m0, c0)

        def drive(c0: int, p0: int, m0: int) -> tuple[WarpFunction, WarpFunction]:
            return no_command(nu), _remembering(nv, m0, c0)

        return WarpForm(("held force", nv, nu), constants_of([self.keep, *self.bound]), drive=drive, placed=placed)

    def describe(self) -> dict[str, object]:
        """Return the constructor arguments."""
        return {"bound": list(self.bound), "dt": self.dt, "fading": self.fading}

    def certificate(self, context: Context, baseline: Baseline) -> Certificate:
        """Worst excess over the bound."""
        force = self.forward(context)
        return bound_certificate(self.name, force.abs() - force.new_tensor(self.bound), "excess over the bound", "N·m")


def _force(nv: int, m0: int, c0: int) -> WarpFunction:
    """Return ``(y, x, u, p, c) -> port``."""
    import warp as wp  # noqa: PLC0415  # only fused rollouts need it

    port = port_type(nv)

    @warp_function
    def held(y: Any, x: Any, u: Any, p: Any, c: Any) -> Any:
        out = port()
        for i in range(nv):
            bound = c[c0 + 1 + i]
            out[i] = bound * wp.tanh(x[m0 + i] / bound)
        return out

    return held  # type: ignore[no-any-return]


def _remembering(nv: int, m0: int, c0: int) -> WarpFunction:
    """Return ``(x, u, p, c) -> memory after the step``."""
    @warp_function
    def remember(x: Any, u: Any, p: Any, c: Any) -> Any:
        return [c[c0] * x[m0 + i] for i in range(nv)]

    return remember  # type: ignore[no-any-return]
