"""Costs written as two plain torch functions."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import torch
from torch import Tensor

from residual_mbrl.costs import Cost, WarpCost
from residual_mbrl.fused.torch_functions import UntraceableError, symbolic
from residual_mbrl.spaces import StateSpace

_numbers = count()
Running = Callable[[Tensor, Tensor, Tensor], Tensor]
Terminal = Callable[[Tensor, Tensor], Tensor]


class FunctionCost(Cost):
    """``Σ_t running(x_t, u_t, r_t) + terminal(x_H, r_H)`` of two torch functions, which run in the kernels where they can.

    What they do must be torch operations on the last axis, the same whatever the values (``torch.where`` chooses): they are recorded once.
    A function that cannot be recorded runs in torch as it stands; ``refusal`` says why.

    Args:
        space: Of the model, residual memory included.
        running: ``running(state [*batch, nx], action [*batch, nu], reference [*batch, nr]) -> [*batch]``.
        terminal: ``terminal(state [*batch, nx], reference [*batch, nr]) -> [*batch]``.
        reference: What changes from tick to tick or step to step, [*#batch, nr] for all steps, or with ``trajectory`` [*#batch, H + 1, nr];
            one zero where missing.
        trajectory: Whether the reference changes from step to step.
        like: A cost of the same functions, whose compiled code is shared: the way to a new reference.
    """

    def __init__(self, *, space: StateSpace, running: Running, terminal: Terminal, reference: Tensor | None = None,
                 trajectory: bool = False, like: FunctionCost | None = None) -> None:
        self.space, self._running, self._terminal = space, running, terminal
        r = torch.zeros(1, dtype=torch.float64) if reference is None else reference
        if r.ndim < (2 if trajectory else 1):
            raise ValueError(f"FunctionCost: reference must have shape {'[..., H + 1, nr]' if trajectory else '[..., nr]'}, "
                             f"received {tuple(r.shape)}")
        self._references = r if trajectory else r.unsqueeze(-2).expand(*r.shape[:-1], 2, r.shape[-1])
        self.refusal: str | None = None
        self._form: WarpCost | None = None
        if like is not None and like._references.shape[-1] == r.shape[-1] and like._running is running and like._terminal is terminal:
            self._form, self.refusal = like._form, like.refusal
            return
        nx, nu, nr = space.nx, space.nu, r.shape[-1]
        try:
            self._form = WarpCost(("functions", next(_numbers)), _single(symbolic(running, nx, nu, nr)),
                                  _single(symbolic(terminal, nx, nr)))
        except UntraceableError as error:
            self.refusal = str(error)

    @property
    def references(self) -> Tensor:
        """References of every step and of the end, shape [*#batch, 2 or H + 1, nr]."""
        return self._references

    def with_reference(self, reference: Tensor, *, trajectory: bool = False) -> FunctionCost:
        """Return the same cost about another reference, with the code that is compiled already."""
        return FunctionCost(space=self.space, running=self._running, terminal=self._terminal, reference=reference, trajectory=trajectory,
                            like=self)

    def running(self, state: Tensor, action: Tensor, reference: Tensor) -> Tensor:
        """Return the running function's value."""
        return self._running(state, action, reference)

    def terminal(self, state: Tensor, reference: Tensor) -> Tensor:
        """Return the terminal function's value."""
        return self._terminal(state, reference)

    def warp_form(self) -> WarpCost | None:
        """Return the functions on symbols; None where they cannot be recorded."""
        return self._form


def _single(function: Callable[..., list[Any]]) -> Callable[..., Any]:
    def one(*arguments: Any) -> Any:
        found = function(*arguments)
        if len(found) != 1:
            raise UntraceableError(f"a cost must return one number for each element of a batch, here {len(found)}")
        return found[0]

    return one
