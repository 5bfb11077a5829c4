"""The contact loss is zero for steps that keep the laws, finds what breaks them, and leads to the parameters without a simulation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from residual_mbrl.contact_loss import contact_loss, with_velocity
from residual_mbrl.contacts import Contacts

MASS = 2.0
DT = 0.01


def point(gap: float, velocity: list[float], mu: float = 0.5) -> Contacts:
    """A point mass above a floor; its frame is the world's with the normal first."""
    frame = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]], dtype=torch.float64)
    one = lambda *x: torch.tensor(x, dtype=torch.float64)[None, None]  # noqa: E731
    jacobian = frame[None, None]
    return Contacts(present=torch.ones(1, 1, dtype=torch.bool), gap=torch.full((1, 1), gap, dtype=torch.float64), position=one(0, 0, 0),
                    frame=jacobian, jacobian=jacobian, response=jacobian / MASS,
                    velocity=(jacobian @ one(*velocity)[..., None])[..., 0], force=one(0, 0, 0), torque=one(0, 0, 0),
                    friction=one(mu, mu, 0, 0, 0), geoms=torch.zeros(1, 1, 2, dtype=torch.int64), names=("floor", "point"),
                    missed=torch.zeros(1, dtype=torch.int64))


def losses(gap: float, after: list[float], change: list[float], mu: float = 0.5) -> tuple[float, float, float, float]:
    """The four terms of a step of the point mass."""
    mass = MASS * torch.eye(3, dtype=torch.float64)[None]
    found = contact_loss(point(gap, after, mu), torch.tensor([change], dtype=torch.float64), mass, DT, iterations=600)
    return tuple(x.item() for x in (found.unexplained, found.at_a_gap, found.dissipation, found.penetration))


def test_steps_that_keep_the_laws_cost_nothing():
    """Flight, a stop, sticking, and sliding with all the friction there is."""
    for gap, after, change in ((0.1, [1, 0, -1], [0, 0, 0]), (0.0, [0, 0, 0], [0, 0, 2]), (0.0, [0, 0, 0], [-0.5, 0, 2]),
                               (0.0, [1, 0, 0], [-1, 0, 2])):
        assert sum(losses(gap, after, change)) < 1e-9


def test_each_broken_law_has_its_term():
    """Adhesion is unexplained, a force over a gap works over it, sliding with too little friction falls short of dissipation."""
    unexplained, gap, short, deep = losses(0.0, [0, 0, 0], [0, 0, -1])
    assert unexplained == pytest.approx(0.5 * MASS) and gap == short == deep == 0
    unexplained, gap, _, _ = losses(0.001, [0, 0, 0], [0, 0, 2])
    assert gap > 0 and gap + unexplained <= MASS * 2 * 0.001 / DT + 1e-9  # at most what the true impulse costs
    _, _, short, _ = losses(0.0, [1e-3, 0, 0], [-0.5, 0, 2])
    assert short == pytest.approx(1e-3 * (0.5 * 4 - 1), rel=0.01)
    *_, deep = losses(-0.002, [0, 0, 0], [0, 0, 0])
    assert deep == pytest.approx(0.5 * 1e4 * 0.002**2)


def test_it_is_the_minimum_over_the_cone():
    """Against a general solver, for random steps of a body with four contacts."""
    generator = torch.Generator().manual_seed(0)
    contacts, mass = random_contacts(generator)
    change = torch.randn(1, 6, generator=generator, dtype=torch.float64)
    found = contact_loss(contacts, change, mass, DT, iterations=1500)
    j, mu, m = contacts.jacobian[0].numpy(), contacts.friction[0, :, 0].numpy(), mass[0].numpy()
    gap, u = contacts.gap[0].clamp_min(0).numpy() / DT, contacts.velocity[0, :, 1:].numpy()

    def total(x: np.ndarray) -> float:
        s = x.reshape(-1, 3)
        left = m @ change[0].numpy() - np.einsum("kin,ki->n", j, s)
        return float(0.5 * left @ np.linalg.solve(m, left) + s[:, 0] @ gap + (s[:, 1:] * u).sum() + (mu * s[:, 0]) @ np.hypot(*u.T))

    inside = [{"type": "ineq", "fun": lambda x: mu * x.reshape(-1, 3)[:, 0] - np.sqrt((x.reshape(-1, 3)[:, 1:] ** 2).sum(1) + 1e-18)}]
    best = min(minimize(total, x0, method="SLSQP", constraints=inside, options={"ftol": 1e-14, "maxiter": 300}).fun
               for x0 in (np.tile([0.1, 0, 0], 4), found.impulses[0].numpy().ravel()))
    assert (found.total - found.penetration).item() == pytest.approx(best, abs=1e-6)


def test_gradients_are_those_of_differences():
    """By friction, gap, change and velocity, though the minimisation itself has none."""
    generator = torch.Generator().manual_seed(1)
    contacts, mass = random_contacts(generator)
    change = torch.randn(1, 6, generator=generator, dtype=torch.float64)

    def loss(friction: Tensor, gap: Tensor, change: Tensor, velocity: Tensor) -> Tensor:
        return contact_loss(replace(contacts, gap=gap, velocity=velocity), change, mass, DT, friction, iterations=1500).total

    given = tuple(x.clone().requires_grad_() for x in (contacts.friction[..., 0], contacts.gap, change, contacts.velocity))
    slopes = torch.autograd.grad(loss(*given), given)
    direction = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in given]
    up, down = (loss(*(x.detach() + s * d for x, d in zip(given, direction, strict=True))) for s in (1e-5, -1e-5))
    slope = sum((g * d).sum() for g, d in zip(slopes, direction, strict=True))
    assert slope.item() == pytest.approx(((up - down) / 2e-5).item(), rel=1e-3)


def test_friction_is_found_without_a_simulation():
    """By descent on the loss of recorded slides, from far off: a warm start."""
    mu, gravity = 0.23, 9.81
    slides = [point(0.0, [v - mu * gravity * DT, 0, 0]) for v in (0.3, 0.8, 1.5)]
    change = torch.tensor([[-mu * gravity * DT, 0, gravity * DT]], dtype=torch.float64)
    mass = MASS * torch.eye(3, dtype=torch.float64)[None]
    found = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([found], lr=0.05)
    for _ in range(80):
        optimiser.zero_grad()
        sum(contact_loss(s, change, mass, DT, found.expand(1, 1), iterations=20).total for s in slides).sum().backward()
        optimiser.step()
    assert found.item() == pytest.approx(mu, abs=0.01)


def test_velocities_may_come_from_elsewhere():
    """J times other velocities, such as those of the poses."""
    contacts, _ = random_contacts(torch.Generator().manual_seed(2))
    v = torch.arange(6, dtype=torch.float64)[None]
    torch.testing.assert_close(with_velocity(contacts, v).velocity[0], contacts.jacobian[0] @ v[0])


def random_contacts(generator: torch.Generator) -> tuple[Contacts, Tensor]:
    """Four contacts of one body, some with a gap, and its mass matrix."""
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    jacobian, root, v = draw(1, 4, 3, 6), draw(1, 6, 6), draw(1, 6)
    mass = root @ root.mT + torch.eye(6, dtype=torch.float64)
    base = point(0.0, [0, 0, 0])
    contacts = replace(base, present=torch.ones(1, 4, dtype=torch.bool), gap=0.002 * draw(1, 4), jacobian=jacobian,
                       response=jacobian @ torch.linalg.inv(mass)[:, None], friction=0.2 + 0.1 * draw(1, 4, 5).abs())
    return with_velocity(contacts, v), mass
