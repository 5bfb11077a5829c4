"""A solve by iLQR in one kernel launch; see ``kernels.ilqr``."""

from __future__ import annotations

import ctypes
import time
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from residual_mbrl.baselines import Values
from residual_mbrl.costs import Cost
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.fused.call import Call
from residual_mbrl.fused.costs import cost_form
from residual_mbrl.fused.model import Refusal, prepare
from residual_mbrl.physics.tangent_warp import difference_form

if TYPE_CHECKING:
    from residual_mbrl.kernels import ilqr


class Box(NamedTuple):
    """Limits of actions."""

    lower: Tensor
    """Shape [nu]."""
    upper: Tensor
    """Shape [nu]."""
    rate: Tensor | None
    """Greatest change from step to step, shape [nu]."""
    previous: Tensor | None
    """Action before the first, shape [*batch, nu]."""


class Solution(NamedTuple):
    """What a solve found."""

    actions: Tensor
    """Shape [*batch, H, nu]."""
    states: Tensor
    """Shape [*batch, H + 1, nx]."""
    gains: Tensor
    """Shape [*batch, H, nu, ndx]."""
    costs: Tensor
    """Shape [*batch]."""
    info: Tensor
    """Columns of ``kernels.ilqr_text.INFO``, float64, shape [*batch, 7]."""


def fused_solve(dynamics: ResidualDynamics, state: Tensor, actions: Tensor, cost: Cost, references: Tensor, parameters: Values, box: Box, *,
                iterations: int, settings: tuple[float, float, float, float], until: float = float("inf"),
                warm: tuple[Tensor, Tensor] | None = None, pace: float = 0.0) -> Solution | Refusal:
    """Minimise the cost over the actions of every problem of a batch, or say why it cannot be done in one launch.

    Args:
        dynamics: The model.
        state: Shape [*batch, nx].
        actions: Where to begin, within the limits, shape [*batch, H, nu].
        cost: Running and terminal cost.
        references: Shape [*#batch, H + 1, nr] or [*#batch, 2, nr].
        parameters: Values by name, each broadcastable to [*batch].
        box: Limits.
        iterations: At most.
        settings: As ``kernels.ilqr_text.SETTINGS``.
        until: Time of ``perf_counter`` after which no iteration begins that would end later.
        warm: States [*batch, H + 1, nx] and gains [*batch, H, nu, ndx] of a plan whose feedback is tried first.
        pace: Seconds that an iteration is known to take.
    """
    model = prepare(dynamics, state, actions, parameters)
    if isinstance(model, Refusal):
        return model
    if state.device.type != "cpu":
        return Refusal("a solve in one launch is for the CPU")
    form = cost_form(cost, references.shape[-1])
    if form is None:
        return Refusal(f"{type(cost).__name__} has no Warp form")
    problem = _problem(dynamics, form, box.rate is not None)
    call = Call(dynamics, model, state, actions, parameters, "problems")
    n, (horizon, nu), ndx = call.state.shape[0], actions.shape[-2:], dynamics.space.ndx
    refs = _flat(references.detach(), call.batch, 2) if references.ndim > 2 else references.detach().contiguous()
    held = [x.contiguous() for x in (box.lower, box.upper)]
    rate = None if box.rate is None else box.rate.contiguous()
    previous = None if box.previous is None else _flat(box.previous, call.batch, 1)
    found = Solution(torch.empty_like(call.actions), call.state.new_empty(n, horizon + 1, state.shape[-1]),
                     call.state.new_empty(n, horizon, nu, ndx), call.state.new_empty(n), torch.full((n, 7), pace, dtype=torch.float64))
    numbers = np.array(settings, np.float64)
    clock, which = _clock()
    addresses = {
        "references": refs.data_ptr(), "reference_rows": refs.shape[-2], "reference_stride": refs[0].numel() if refs.ndim > 2 else 0,
        "lower": held[0].data_ptr(), "upper": held[1].data_ptr(), "rate": 0 if rate is None else rate.data_ptr(),
        "previous": 0 if previous is None else previous.data_ptr(), "iterations": iterations, "settings": numbers.ctypes.data,
        "clock": clock, "clock_id": which, "until": 0 if until == float("inf") else max(1, int(until * 1e9)),
        "new_actions": found.actions.data_ptr(),
        "states": found.states.data_ptr(), "gains": found.gains.data_ptr(), "costs": found.costs.data_ptr(), "info": found.info.data_ptr()}
    if warm is not None:
        warm_states, warm_gains = _flat(warm[0].to(state), call.batch, 2), _flat(warm[1].to(state), call.batch, 3)
        addresses.update(warm_states=warm_states.data_ptr(), warm_gains=warm_gains.data_ptr())
    call.launch("solve", addresses, (problem.key, problem))
    if len(call.batch) == 1:
        return found
    return Solution(*(x.reshape(*call.batch, *x.shape[1:]) for x in found))


_problems: WeakKeyDictionary[ResidualDynamics, dict[tuple[object, bool], ilqr.Problem]] = WeakKeyDictionary()


def _problem(dynamics: ResidualDynamics, form: tuple[object, Any], rate: bool) -> ilqr.Problem:
    from residual_mbrl.kernels.ilqr import Problem  # noqa: PLC0415  # half a second that only fused solves need

    known = _problems.setdefault(dynamics, {})
    if (form[0], rate) not in known:
        space = dynamics.space
        known[form[0], rate] = Problem(cost=form[1], difference=difference_form(space), rate=rate,
                                       quaternions=tuple(sorted(q for q, _ in space.quaternions)),
                                       key=("solve", form[0], rate, space.quaternions, space.nx))
    return known[form[0], rate]


def _flat(x: Tensor, batch: torch.Size, own: int) -> Tensor:
    """Return [n, ...] of something whose last ``own`` dimensions are its own."""
    rest = x.shape[x.ndim - own :]
    return x.expand(*batch, *rest).reshape(-1, *rest).contiguous()


def minds_time() -> bool:
    """Tell whether a solve can look at the clock of ``perf_counter`` itself."""
    return _clock()[0] != 0


@cache
def _clock() -> tuple[int, int]:
    """Return the address of the function that ``perf_counter`` reads, and which clock it is; zeros where it is another."""
    try:
        if "clock_gettime(CLOCK_MONOTONIC)" not in time.get_clock_info("perf_counter").implementation:
            return 0, 0
        return ctypes.cast(ctypes.CDLL(None).clock_gettime, ctypes.c_void_p).value or 0, int(time.CLOCK_MONOTONIC)
    except (AttributeError, OSError, TypeError):
        return 0, 0
