"""Policies and values fitted to targets in one kernel launch."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from residual_mbrl.fused.call import parts_of
from residual_mbrl.fused.closed_loop import HeadState, head_state
from residual_mbrl.fused.model import REALS
from residual_mbrl.residuals.warp_form import WarpForm

if TYPE_CHECKING:
    from residual_mbrl.kernels.regression import Regression


class Fit(NamedTuple):
    """Outputs of a head, how far they are from targets, and where to go."""

    outputs: Tensor
    """Shape [N, outputs]."""
    errors: Tensor
    """Squared error of each sample, shape [N]."""
    weights: list[Tensor]
    """Gradients of the mean of the errors by matrix and bias of each layer."""


def fused_outputs(module: nn.Module, form: WarpForm | None, outputs: int, state: Tensor, data: Tensor | None) -> Tensor:
    """Return what a head gives, shape [N, outputs].

    Args:
        module: The policy or value.
        form: Its Warp form as ``warp_form_of`` says.
        outputs: Entries of what it gives.
        state: Shape [N, nx].
        data: Shape [N, data], at least one entry; zeros where missing.
    """
    head = head_state(module, form, outputs)
    found, x, d = state.new_empty(state.shape[0], outputs), state.contiguous(), _data(data)
    flat = _flat(head, x.dtype)
    _regression(head, x, d).run(x.shape[0], flat.data_ptr(), torch.get_num_threads(), initial=x.data_ptr(), data=_address(d),
                                states=found.data_ptr(), policy_constants=head.constants[x.dtype].data_ptr())
    return found


def fused_fit(module: nn.Module, form: WarpForm | None, state: Tensor, data: Tensor | None, target: Tensor) -> Fit:
    """Return outputs, errors against targets [N, outputs], and the gradient of their mean; arguments as of ``fused_outputs``."""
    head, x, d, wanted = head_state(module, form, target.shape[-1]), state.contiguous(), _data(data), target.contiguous()
    flat, found, errors = _flat(head, x.dtype), torch.empty_like(wanted), x.new_empty(x.shape[0])
    by = torch.empty_like(flat)
    _regression(head, x, d).run(x.shape[0], flat.data_ptr(), torch.get_num_threads(), initial=x.data_ptr(), data=_address(d),
                                states=found.data_ptr(), policy_constants=head.constants[x.dtype].data_ptr(),
                                references=wanted.data_ptr(), learn=1, costs=errors.data_ptr(), grad_weights=by.data_ptr())
    parts = parts_of(by.mul_(2.0 / x.shape[0]), [(w.shape, w.dtype) for w in head.form.weights()])
    return Fit(found, errors, [p for p in parts if p is not None])


class Moments(NamedTuple):
    """What Adam remembers of a head's weights, each shape [weights], and its numbers; see ``kernels.regression.SETTINGS``."""

    mean: Tensor
    square: Tensor
    settings: list[float]


def fused_training(module: nn.Module, form: WarpForm | None, state: Tensor, data: Tensor | None, target: Tensor, order: Tensor, size: int,
                   moments: Moments) -> tuple[Tensor, Tensor, int]:
    """Take steps of Adam on the mean squared error; return the weights [weights], the error before each step, and steps made so far.

    Args:
        module: The policy or value, which is not changed.
        form: Its Warp form as ``warp_form_of`` says.
        state: Shape [N, nx].
        data: Shape [N, data], at least one entry; zeros where missing.
        target: Shape [N, outputs].
        order: Of samples, int64, shape [rounds, N].
        size: Samples of a step.
        moments: Changed in place, in the states' precision.
    """
    head, x, d, wanted = head_state(module, form, target.shape[-1]), state.contiguous(), _data(data), target.contiguous()
    flat, rows, settings = _flat(head, x.dtype), order.contiguous(), torch.tensor(moments.settings, dtype=torch.float64)
    errors, by = x.new_empty(order.shape[0] * -(-x.shape[0] // size)), torch.empty_like(flat)
    _regression(head, x, d).train(
        x.shape[0], size, order.shape[0], torch.get_num_threads(), flat=flat.data_ptr(), initial=x.data_ptr(), data=_address(d),
        references=wanted.data_ptr(), policy_constants=head.constants[x.dtype].data_ptr(), order=rows.data_ptr(),
        mean=moments.mean.data_ptr(), square=moments.square.data_ptr(), adam=settings.data_ptr(), grad_weights=by.data_ptr(),
        costs=errors.data_ptr())
    return flat[0], errors, int(settings[0])


def _data(data: Tensor | None) -> Tensor | None:
    return None if data is None else data.contiguous()


def _address(data: Tensor | None) -> int:
    return 0 if data is None else data.data_ptr()


def _flat(head: HeadState, dtype: torch.dtype) -> Tensor:
    flat = head.flat(dtype)
    if flat is None:
        raise ValueError(f"regression: weights are not finite in {str(dtype).removeprefix('torch.')}")
    return flat


_compiled: dict[tuple[object, ...], Regression] = {}


def _regression(head: HeadState, state: Tensor, data: Tensor | None) -> Regression:
    from residual_mbrl.kernels.regression import Regression  # noqa: PLC0415  # half a second that only kernels need

    width = 1 if data is None else data.shape[-1]
    key = (head.head.key, state.shape[-1], width, state.dtype)
    if key not in _compiled:
        _compiled[key] = Regression(head.head, state.shape[-1], width, REALS[state.dtype])
    return _compiled[key]
