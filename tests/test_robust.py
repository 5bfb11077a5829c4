"""The robust losses are the same in numpy, scipy and torch, and their derivatives are those of their values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares

from residual_mbrl import robust

LOSSES = ("linear", "soft_l1", "cauchy")
ERRORS = np.array([[-30.0, -1.0, -0.01, 0.0, 0.3, 2.0, 1e3], [0.5, 0.25, 4.0, -7.0, 1e-8, 0.0, 1.0]])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("f_scale", [0.5, 1.0, 3.0])
def test_numpy_and_torch_costs_agree(loss, f_scale):
    """The cost that Adam follows is the one that Gauss-Newton minimises and validation reports."""
    found = robust.torch_cost(torch.tensor(ERRORS), loss, f_scale).numpy()
    np.testing.assert_allclose(found, robust.cost(ERRORS, loss, f_scale), rtol=1e-13)


@pytest.mark.parametrize("loss", LOSSES)
def test_scipys_cost_is_ours(loss):
    """least_squares reports the same cost for the same errors, with rows beyond the data counted as plain squares."""
    f_scale, data = 2.0, 4
    errors = ERRORS[0]
    solved = least_squares(lambda x: errors + 0 * x[0], [0.0], loss=robust.scipy_loss(loss, data), f_scale=f_scale, max_nfev=1)
    expected = robust.cost(errors[:data], loss, f_scale) + 0.5 * (errors[data:] ** 2).sum()
    assert solved.cost == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_derivatives_are_those_of_the_value(loss):
    """ρ' and ρ'' agree with central differences of ρ and ρ'."""
    s, h = np.array([1e-3, 0.2, 1.0, 7.0, 300.0]), 1e-5
    plus, minus = robust.rho(s + h, loss), robust.rho(s - h, loss)
    np.testing.assert_allclose(robust.rho(s, loss)[1:], (plus[:2] - minus[:2]) / (2 * h), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
def test_torch_gradient_is_rho_prime(loss):
    """The slope of the cost is e ρ'((e/f)²), finite at zero."""
    e, f_scale = torch.tensor(ERRORS[0], requires_grad=True), 1.7
    robust.torch_cost(e, loss, f_scale).backward()
    np.testing.assert_allclose(e.grad.numpy(), ERRORS[0] * robust.rho((ERRORS[0] / f_scale) ** 2, loss)[1], rtol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_small_errors_are_squares(loss):
    """Within the scale every loss is half the square; the robust ones grow slower beyond."""
    assert float(robust.cost(np.array([1e-3]), loss, 1.0)) == pytest.approx(0.5e-6, rel=1e-5)
    far = float(robust.cost(np.array([100.0]), loss, 1.0))
    assert far == pytest.approx({"linear": 5000.0, "soft_l1": np.sqrt(10001) - 1, "cauchy": 0.5 * np.log(10001)}[loss])


def test_unknown_loss_is_refused():
    """The message lists what there is."""
    with pytest.raises(ValueError, match=r"linear, soft_l1 or cauchy, received 'huber'"):
        robust.rho(np.ones(2), "huber")  # type: ignore[arg-type]
