"""Windows of which every copy of a model has some of its own, as bootstrap draws give them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from residual_mbrl.windows import Windows

Roll = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class DrawnWindows:
    """The windows that count for each of M copies: those that do not are never simulated. A draw with replacement leaves out a third.

    Args:
        rows: Places among all windows, shape [M, K]; K is the most that count for one copy, and fewer are filled up with others.
        counts: How often each counts, zero for those filled up, shape [M, K].
        windows: They themselves, all of one copy after those of another, M · K.
    """

    rows: Tensor
    counts: Tensor
    windows: Windows

    @classmethod
    def of(cls, windows: Windows, counts: Tensor) -> DrawnWindows:
        """Choose the windows with a count, shape [M, B]."""
        if counts.ndim != 2 or counts.shape[1] != len(windows) or not bool((counts > 0).any()):
            raise ValueError(f"DrawnWindows: expected counts [M, {len(windows)}] that are not all zero, received {tuple(counts.shape)}")
        most = int((counts > 0).sum(1).max())
        rows = (counts > 0).to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
        return cls(rows=rows, counts=counts.gather(1, rows), windows=windows.take(rows.flatten()))

    def apart(self, roll: Roll) -> Roll:
        """Return a simulation of all windows one after another from one whose copies have a dimension of their own.

        Several sets of all windows may follow each other, as in the search for first states.
        """
        m, k = self.rows.shape

        def copies(x: Tensor) -> Tensor:
            out: Tensor = x.unflatten(0, (-1, m, k)).transpose(0, 1).flatten(1, 2)
            return out

        def rolled(state: Tensor, actions: Tensor, lead: Tensor) -> Tensor:
            states = roll(copies(state), copies(actions), copies(lead))
            out: Tensor = states.unflatten(1, (-1, k)).transpose(0, 1).flatten(0, 2)
            return out

        return rolled

    def each(self, value: Tensor) -> Tensor:
        """Return a value of each copy, shape [M, 1], for each of its windows, shape [M · K]."""
        return value.expand(self.rows.shape).flatten()
