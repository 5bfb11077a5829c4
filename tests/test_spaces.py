"""The state space against scipy's rotations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from residual_mbrl.spaces import StateSpace

ANGULAR = st.lists(st.floats(-1.7, 1.7), min_size=3, max_size=3)
BODY = StateSpace(position=("rail", "qw", "qx", "qy", "qz", "hinge"), velocity=("vrail", "wx", "wy", "wz", "vhinge"),
                  action=("u",), activation=("a",), units={"rail": "m"}, quaternions=((1, 1),))


def _unit(*batch: int, seed: int = 0) -> torch.Tensor:
    q = torch.randn(*batch, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return q / q.norm(dim=-1, keepdim=True)


def _state(*batch: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(*batch, BODY.nx, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 10))
    x[..., 1:5] = _unit(*batch, seed=seed)
    return x


def _scipy(q: torch.Tensor) -> Rotation:
    return Rotation.from_quat(q.numpy()[..., [1, 2, 3, 0]])


def test_sizes():
    """A quaternion takes four positions and three velocities."""
    assert (BODY.nq, BODY.nv, BODY.na, BODY.nu, BODY.nx, BODY.ndx) == (6, 5, 1, 1, 12, 11)
    assert (BODY.unit("rail"), BODY.unit("hinge"), BODY.index("vrail")) == ("m", "1", 6)


def test_exponential_is_scipys():
    """Integrating a rotation vector multiplies by scipy's rotation on the body side."""
    x = _state(50)
    tangent = torch.randn(50, BODY.ndx, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    moved = BODY.integrate(x, tangent)[..., 1:5]
    expected = _scipy(x[..., 1:5]) * Rotation.from_rotvec(tangent[:, 1:4].numpy())
    assert np.allclose((_scipy(moved).inv() * expected).magnitude(), 0, atol=1e-12)


def test_logarithm_is_scipys():
    """The difference of two quaternions is scipy's rotation vector in the body frame of the reference."""
    a, b = _state(50, seed=1), _state(50, seed=2)
    expected = (_scipy(b[..., 1:5]).inv() * _scipy(a[..., 1:5])).as_rotvec()
    assert np.allclose(BODY.difference(a, b)[..., 1:4].numpy(), expected, atol=1e-10)


@given(ANGULAR, st.integers(0, 1000))
def test_difference_undoes_integrate(rotation, seed):
    """(x ⊞ d) ⊖ x = d for rotations below half a turn."""
    x = _state(seed=seed)
    d = torch.randn(BODY.ndx, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    d[1:4] = torch.tensor(rotation, dtype=torch.float64)
    assert torch.allclose(BODY.difference(BODY.integrate(x, d), x), d, atol=1e-9)


@given(st.integers(0, 10_000))
def test_integrate_undoes_difference(seed):
    """Y ⊞ (x ⊖ y) is x up to the sign of its quaternion."""
    x, y = _state(seed=seed), _state(seed=seed + 1)
    back = BODY.integrate(y, BODY.difference(x, y))
    back[1:5] *= torch.sign((back[1:5] * x[1:5]).sum())
    assert torch.allclose(back, x, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_at_identity(dtype):
    """No NaN arises where two states are equal or a step is zero, and the Jacobian there is the identity."""
    x = _state().to(dtype)
    zero = torch.zeros(BODY.ndx, dtype=dtype)
    moved = torch.func.jacrev(lambda d: BODY.difference(BODY.integrate(x, d), x))(zero)
    assert moved.dtype == dtype
    assert torch.allclose(moved, torch.eye(BODY.ndx, dtype=dtype), atol=1e-6)


def test_quaternions_stay_of_unit_length():
    """Ten thousand steps leave the norm at one to rounding."""
    q, step = _state()[: BODY.nq], torch.full((BODY.nv,), 0.01, dtype=torch.float64)
    for _ in range(10_000):
        q = BODY.integrate_position(q, step)
    assert float(q[1:5].norm()) == pytest.approx(1.0, abs=1e-11)


def test_plain_space_subtracts():
    """Without quaternions the manifold is flat."""
    space = StateSpace(position=("q",), velocity=("v",), action=("u",))
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.0])
    assert torch.equal(space.difference(a, b), a - b)
    assert torch.equal(space.integrate(a, b), a + b)


def test_memory_is_appended():
    """Further activations come last."""
    assert BODY.with_memory(("m",)).state_names[-2:] == ("a", "m")


@pytest.mark.parametrize("segments", [((3, 3),), ((1, 2),), ((0, 0), (2, -1)), ((-1, 0),)])
def test_misplaced_quaternions_are_refused(segments):
    """A segment that leaves q, overlaps another or has its velocity elsewhere names itself."""
    nv = 6 - len(segments)
    with pytest.raises(ValueError, match="quaternion segment"):
        StateSpace(position=tuple("abcdef"), velocity=tuple("uvwxyz"[:nv]), action=("f!",), quaternions=segments)


def test_wrong_sizes_and_names_are_refused():
    """Messages say what was received."""
    with pytest.raises(ValueError, match="unique"):
        StateSpace(position=("q",), velocity=("q",), action=())
    with pytest.raises(ValueError, match="nq - number of quaternions must equal nv"):
        StateSpace(position=("q", "p"), velocity=("v",), action=())
    with pytest.raises(ValueError, match="no state entry named 'speed'"):
        BODY.index("speed")
