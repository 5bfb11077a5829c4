"""A plant without physics against ballistic motion."""

from __future__ import annotations

import pytest
import torch
from problems import INTEGRATORS, system

from residual_mbrl.dynamics import ensemble
from residual_mbrl.learning import network_alone
from residual_mbrl.physics.free_body import FreeBody
from residual_mbrl.rollouts import rollout
from residual_mbrl.spaces import StateSpace

SPACE = system("double_pendulum").space


def ballistic(x: torch.Tensor, force: torch.Tensor, time: float, lag: float) -> torch.Tensor:
    """``q + v t + F t (t + lag) / 2`` and ``v + F t``; semi-implicit Euler takes the velocity of the end of each step."""
    q, v = x.split(2, -1)
    return torch.cat([q + v * time + 0.5 * force * time * (time + lag), v + force * time], -1)


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("substeps", [1, 4])
def test_constant_force_is_ballistic(integrator: str, substeps: int) -> None:
    """Exactly, for any step length, with unit mass."""
    body = FreeBody(SPACE, dt=0.05, substeps=substeps, integrator=integrator)  # type: ignore[arg-type]
    start = x = torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    force = torch.tensor([3.0, -1.0], dtype=torch.float64)
    for _ in range(20):
        x = body.step(x, torch.zeros(2, dtype=torch.float64), force)
    lag = 0.05 / substeps if integrator == "semi_implicit" else 0.0
    assert torch.allclose(x, ballistic(start, force, 1.0, lag), rtol=1e-12, atol=1e-12)


def test_commands_do_nothing() -> None:
    """Only forces move it: nothing is known of the drive."""
    body = FreeBody(SPACE, dt=0.05)
    x = torch.tensor([0.1, 0.2, 1.0, -1.0], dtype=torch.float64)
    still, driven = (body.step(x, torch.full((2,), u, dtype=torch.float64)) for u in (0.0, 100.0))
    assert torch.equal(still, driven)
    assert torch.allclose(still, torch.tensor([0.15, 0.15, 1.0, -1.0], dtype=torch.float64))


def test_energy_is_half_the_square_of_the_velocity() -> None:
    """Unit mass and no potential; nothing dissipates."""
    body = FreeBody(SPACE, dt=0.05)
    x = torch.tensor([5.0, 5.0, 3.0, 4.0], dtype=torch.float64)
    assert float(body.energy(x)) == 12.5
    assert float(body.dissipation_power(x, torch.zeros(2, dtype=torch.float64))) == 0.0


def test_positions_turn_where_the_space_has_quaternions() -> None:
    """A constant angular velocity about one axis turns by angle = rate times time."""
    space = StateSpace(position=("w", "x", "y", "z"), velocity=("rx", "ry", "rz"), action=(), quaternions=((0, 0),))
    body = FreeBody(space, dt=0.1)
    x = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0], dtype=torch.float64)
    for _ in range(10):
        x = body.step(x, torch.zeros(0, dtype=torch.float64))
    expected = torch.tensor([torch.cos(torch.tensor(1.0)), 0.0, 0.0, torch.sin(torch.tensor(1.0)), 0.0, 0.0, 2.0], dtype=torch.float64)
    assert torch.allclose(x, expected, atol=1e-7)


@pytest.mark.parametrize("members", [1, 3])
def test_a_network_alone_runs_fused(members: int) -> None:
    """States and their gradients by the weights are those of torch, an ensemble's too."""
    models = [network_alone(SPACE, dt=0.05, bound=20.0, angles=SPACE.position, hidden=(8,), seed=k) for k in range(members)]
    for m in models:
        m.corrections[0].network.weights[-1].data.normal_(generator=torch.Generator().manual_seed(1))
    model = models[0] if members == 1 else ensemble(models)
    generator = torch.Generator().manual_seed(2)
    batch = (5,) if members == 1 else (members, 5)
    x, u = (torch.randn(*batch, *n, dtype=torch.float64, generator=generator) for n in ((4,), (6, 2)))
    found = {}
    for backend in ("fused", "torch"):
        states = rollout(model, x, u, backend=backend)  # type: ignore[arg-type]
        found[backend] = [states, *torch.autograd.grad(states[..., -1, :].square().sum(), list(model.parameters()))]
    for a, b in zip(*found.values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("positions", "seen"), [(True, 6), (False, 5), (["b"], 6), ([], 5)])
def test_a_network_alone_sees_the_positions_it_is_told_to(positions: bool | list[str], seen: int) -> None:
    """One angle as sine and cosine, two velocities, one action, and where asked for the other position."""
    space = StateSpace(position=("a", "b"), velocity=("va", "vb"), action=("u",))
    model = network_alone(space, dt=0.05, bound=1.0, angles=["a"], positions=positions)
    assert model.corrections[0].features.outputs == seen
    with pytest.raises(ValueError, match="no positions"):
        network_alone(space, dt=0.05, bound=1.0, positions=["c"])
