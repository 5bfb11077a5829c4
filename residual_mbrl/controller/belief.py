"""What each model of a chain believes the state to be: predicted from tick to tick, corrected by what is seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from residual_mbrl.controller.delay import CommandLine, Timed, advance
from residual_mbrl.controller.observer import Observer
from residual_mbrl.dynamics import ResidualDynamics

Array = NDArray[np.float64]


class Prediction(NamedTuple):
    """What a model expects to see."""

    state: Tensor
    """Shape [nx]."""
    response: Array
    """See ``Observer.response``."""


class Belief:
    """The state of one model, its residuals' memory included.

    Args:
        dynamics: The model, at the controller's rate.
        size: Entries of the state that are observed, the first ones.
        unseen: The others at the start, shape [nx - size] of the baseline.
        settling: Time constant with which a ``HeldForce`` of the model is estimated [s].
    """

    def __init__(self, dynamics: ResidualDynamics, size: int, unseen: Array, settling: float = 0.2) -> None:
        self.dynamics, self.observer = dynamics, Observer(dynamics, settling)
        self.state: Tensor | None = None
        self._space, self._size = dynamics.baseline.space, size
        self._unseen = torch.from_numpy(unseen)

    def start(self, seen: Array, command: Array) -> None:
        """Begin where the plant is seen, after a command has long been in effect."""
        known = torch.cat([torch.from_numpy(seen), self._unseen])
        try:
            found = self.dynamics.initial_state(known, torch.from_numpy(command))
        except ValueError:
            return
        self.state = found if bool(torch.isfinite(found).all()) else None

    def predict(self, line: CommandLine, start: float, end: float, planned: Sequence[Timed] = ()) -> Tensor | None:
        """Return the state after the commands in effect, shape [nx]; None where it is not finite."""
        if self.state is None:
            return None
        try:
            found = advance(self.dynamics, self.state, line, start, end, planned)
        except ValueError:
            return None
        return found if bool(torch.isfinite(found).all()) else None

    def look_ahead(self, line: CommandLine, start: float, end: float) -> Prediction | None:
        """Return what is expected at a time, and how it depends on the force that may be missing; None where it is not finite."""
        if self.state is None:
            return None
        try:
            found = advance(self.dynamics, self.observer.probes(self.state), line, start, end)
        except ValueError:
            return None
        if not bool(torch.isfinite(found).all()):
            return None
        known = found[..., : self._space.nx]
        return Prediction(found[0], self.observer.response(self._space.difference(known[1:], known[:1])))

    def error(self, seen: Array, predicted: Tensor) -> Array:
        """Return what is seen ⊖ what is predicted, of the observed entries, shape [2 nv] or [ndx]."""
        known = predicted[: self._space.nx]
        measured = torch.cat([torch.from_numpy(seen), known[self._size :]])
        return np.asarray(self._space.difference(measured, known)[: self.entries].numpy())

    @property
    def entries(self) -> int:
        """Number of entries of the tangent space that are observed."""
        return self._space.ndx if self._size == self._space.nx else 2 * self._space.nv

    def correct(self, predicted: Prediction, seen: Array | None, seconds: float, *, doubted: bool = False) -> None:
        """Take over a prediction, the observed entries as they are seen where they are; see ``Observer`` for what is learned from it.

        Args:
            predicted: What was expected now.
            seen: Observed entries; None where nothing is seen.
            seconds: Predicted over, from a state that was itself seen; zero where it was not.
            doubted: Whether the model is; what it seemed to lack is forgotten then.
        """
        self.state = self.observer.forget(predicted.state) if doubted else predicted.state
        if seen is not None:
            found = self.observer.update(self.state, self.error(seen, predicted.state), predicted.response,
                                         0.0 if doubted else seconds)
            self.state = torch.cat([torch.from_numpy(seen), found[len(seen) :]])
