"""Commands on their way, and the state that a plant will have when the next one arrives."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.rollouts import rollout

Array = NDArray[np.float64]
Timed = tuple[float, Array]

WHOLE = 1e-3
"""Part of a step below which time stamps are taken to agree."""


class CommandLine:
    """The commands sent, each in effect from its time of sending plus the latency until the next one is.

    Args:
        first: What the plant executes until the first command, shape [nu].
        latency: Transport delay from sending to the plant [s], as far as the model does not hold it.
        kept: Commands remembered.
    """

    def __init__(self, first: Array, latency: float = 0.0, kept: int = 256) -> None:
        self.latency = latency
        self._line: deque[Timed] = deque([(-np.inf, first)], maxlen=kept)

    @property
    def last(self) -> Array:
        """The command sent last, shape [nu]."""
        return self._line[-1][1]

    def send(self, time: float, command: Array) -> None:
        """Note a command that is sent at a time [s], not before the last one."""
        self._line.append((time + self.latency, command))

    def mean(self, start: float, end: float, planned: Sequence[Timed] = ()) -> Array:
        """Return the mean command in effect between two times [s], shape [nu].

        Args:
            start: From when.
            end: Until when, after ``start``.
            planned: Further commands with the times at which they will take effect, after those sent.
        """
        recent = [entry for entry in reversed(planned) if entry[0] < end]
        for entry in reversed(self._line):
            if entry[0] < end:
                recent.append(entry)
                if entry[0] <= start:
                    break
        if not recent:  # sent for later, all of them, and older ones forgotten
            return self._line[0][1]
        if len(recent) == 1:
            return recent[0][1]
        total, until = np.zeros_like(recent[0][1]), end
        for begin, command in recent:  # from the latest to what is in effect at the start
            total += (until - max(begin, start)) * command
            until = max(begin, start)
        return np.asarray((total + (until - start) * recent[-1][1]) / (end - start))

    def steps(self, start: float, end: float, dt: float, planned: Sequence[Timed] = ()) -> Array:
        """Return the mean commands of each step of ``dt`` seconds from start until end is reached, shape [n, nu]."""
        count = int(np.ceil((end - start) / dt - WHOLE))
        return np.stack([self.mean(start + i * dt, start + (i + 1) * dt, planned) for i in range(count)])


class Delay:
    """How long solves take: the longest of the last few, as a plan that comes early can wait and one that comes late is late.

    Args:
        first: Guess [s].
        few: How many.
    """

    def __init__(self, first: float, few: int = 3) -> None:
        self._last = deque([first], maxlen=few)

    @property
    def expected(self) -> float:
        """How long the next one is taken to be [s]."""
        return max(self._last)

    def measured(self, seconds: float) -> None:
        """Take a measurement into account."""
        self._last.append(seconds)


def advance(dynamics: ResidualDynamics, state: Tensor, line: CommandLine, start: float, end: float,
            planned: Sequence[Timed] = ()) -> Tensor:
    """Return the state a time later under the commands in effect, shape [*batch, nx]; the last part of a step by its share.

    Args:
        dynamics: The model.
        state: At ``start``, with the residuals' memory, shape [*batch, nx].
        line: The commands sent.
        start: [s].
        end: [s]; nothing happens where it is not after ``start``.
        planned: Commands to come, see ``CommandLine.mean``.

    Raises:
        ValueError: if the state, a command or a weight is not finite.
    """
    dt = dynamics.dt
    if end - start <= WHOLE * dt:
        return state
    commands = line.steps(start, end, dt, planned)
    states = rollout(dynamics, state, torch.from_numpy(commands).to(state).expand(*state.shape[:-1], *commands.shape))
    share = (end - start) / dt - (len(commands) - 1)
    if share > 1 - WHOLE:
        return states[..., -1, :]
    before = states[..., -2, :]
    return dynamics.space.integrate(before, share * dynamics.space.difference(states[..., -1, :], before))
