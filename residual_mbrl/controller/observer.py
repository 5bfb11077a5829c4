"""The force that a model lacks on the plant it meets, estimated from the errors of its one-step predictions."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.residuals.held_force import HeldForce

Array = NDArray[np.float64]

PROBE, SINGULAR = 0.01, 1e-3
"""Force of a probe as a share of the bound, and singular values of the response, relative to the largest, that count as none."""


class Observer:
    """Keeps the memory m of a model's ``HeldForce``: ``m ← m + (1 - e^(-t/settling)) clip(R⁺ Δv)``, R the response of velocities to it.

    The response is that of the model over the same t seconds, from probes that are predicted beside the state, so that any baseline
    and integrator will do. Forces are clipped at the bound, so that a blow is not taken for a pull. Without such a residual nothing is
    kept.

    Args:
        dynamics: The model.
        settling: Time constant of the estimate [s].
    """

    def __init__(self, dynamics: ResidualDynamics, settling: float) -> None:
        held = [(r, m) for r, m in zip(dynamics.corrections, dynamics.memory, strict=True) if isinstance(r, HeldForce)]
        self._held, self._settling, self._nv = held[:1], settling, dynamics.baseline.space.nv

    def probes(self, state: Tensor) -> Tensor:
        """Return the state and the probes from it, shape [1 + nv, nx]; [1, nx] without anything to find."""
        for residual, place in self._held:
            probes = state.repeat(1 + self._nv, 1)
            probes[1:, place] += PROBE * torch.diag(probes.new_tensor(residual.bound))
            return probes
        return state.unsqueeze(0)

    def response(self, apart: Tensor) -> Array:
        """Return the response of positions and velocities to the memory, shape [2 nv, nv].

        Args:
            apart: Predictions of the probes ⊖ that of the state, shape [nv, ndx]; [0, ndx] without anything to find.
        """
        steps = [PROBE * np.asarray(r.bound) for r, _ in self._held]
        return np.asarray(apart[:, : 2 * self._nv].numpy().T / steps[0]) if steps else np.zeros((2 * self._nv, 0))

    def update(self, state: Tensor, error: Array, response: Array, seconds: float) -> Tensor:
        """Return a state with the estimate after a prediction.

        Args:
            state: As predicted, shape [nx] with memory.
            error: Of the prediction, see ``Belief.error``.
            response: See ``response``.
            seconds: Predicted over; nothing is learned where it is zero.
        """
        for residual, place in self._held if seconds > 0 else ():
            bound, nv = np.asarray(residual.bound), self._nv
            missed = np.linalg.lstsq(response[nv:] * bound, error[nv : 2 * nv], rcond=SINGULAR)[0] * bound
            found = state[place].numpy() - math.expm1(-seconds / self._settling) * np.clip(missed, -bound, bound)
            state = state.clone()
            state[place] = torch.from_numpy(np.clip(found, -bound, bound)).to(state)
        return state

    def forget(self, state: Tensor) -> Tensor:
        """Return a state without an estimate."""
        for _, place in self._held:
            state = state.clone()
            state[place] = 0.0
        return state

    def without(self, error: Array, state: Tensor, response: Array) -> Array:
        """Return the error that the same model would have made without its held force, to first order.

        Args:
            error: Of the prediction with it.
            state: That the prediction ended in.
            response: See ``response``.
        """
        for residual, place in self._held:
            before = state[place].numpy() / residual.keep
            error = error.copy()
            error[: 2 * self._nv] += response @ before
        return error
