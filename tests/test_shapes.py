"""The annotated shapes are checked while the tests run."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import TypeCheckError

from residual_mbrl.physics.pendulum import Pendulum
from residual_mbrl.spaces import StateSpace


def test_wrong_shape_is_refused() -> None:
    """Two axes of one name must agree."""
    space = StateSpace(position=("q",), velocity=("v",), action=("u",))
    with pytest.raises(TypeCheckError):
        space.difference(torch.zeros(3, 2), torch.zeros(3, 1))


def test_wrong_dtype_is_refused() -> None:
    """Integers are no state."""
    space = StateSpace(position=("q",), velocity=("v",), action=("u",))
    with pytest.raises(TypeCheckError):
        space.split(torch.zeros(2, dtype=torch.int64))


@pytest.mark.usefixtures("unchecked")
def test_checks_can_be_turned_off() -> None:
    """A test of the package's own error reaches the code behind the annotation."""
    space = StateSpace(position=("q",), velocity=("v",), action=("u",))
    assert space.difference(torch.ones(3, 2), torch.ones(2)).shape == (3, 2)


def test_right_shape_passes(device: torch.device) -> None:
    """A baseline steps with the checks on."""
    baseline = Pendulum()
    x = torch.zeros(3, baseline.space.nx, device=device)
    assert baseline.step(x, torch.zeros(3, baseline.space.nu, device=device)).shape == x.shape
