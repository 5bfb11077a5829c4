"""Learned damping takes energy, whatever its weights."""

from __future__ import annotations

import pytest
import torch
from problems import MOVING, context, random_states, randomise, system
from torch import Tensor

from residual_mbrl.baselines import Port
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.physics.mechanical import MechanicalBaseline
from residual_mbrl.residuals import Context, Dissipative, DryFriction, Residual
from residual_mbrl.rollouts import rollout

LAWS = {"dissipative": Dissipative, "dry_friction": DryFriction}
MEMBERS = 1000


def _residual(kind: type[Dissipative | DryFriction], baseline: MechanicalBaseline, bound: float = 5.0) -> Residual:
    return kind(nv=baseline.space.nv, features=MOVING, sizes=[baseline.space.nq, baseline.space.nv], bound=bound)


class Driving(Dissipative):
    """Damping of the wrong sign, which the checks below must notice."""

    def forward(self, context: Context) -> Tensor:
        """Return a negative damping."""
        return -0.1 * super().forward(context)


def _climb(residual: Residual, baseline: MechanicalBaseline, steps: int = 60) -> tuple[Context, float]:
    """Change weights and states by gradient ascent on the power, relative to the kinetic energy; return the worst power seen."""
    data = context(baseline, MEMBERS, 10, seed=3)
    state = data.state.clone().requires_grad_()
    optimiser = torch.optim.Adam([state, *residual.parameters()], lr=0.1)
    worst = -float("inf")
    for _ in range(steps):
        seen = Context(baseline.space, state, data.action, {}, None, baseline.dt)
        power = baseline.dissipation_power(state, data.action, {residual.live: residual(seen)})  # type: ignore[dict-item]
        worst = max(worst, float(power.detach().max()))
        optimiser.zero_grad()
        (-(power / (1 + state.square().sum(-1))).sum()).backward()
        optimiser.step()
    return Context(baseline.space, state.detach(), data.action, {}, None, baseline.dt), worst


@pytest.mark.parametrize("friction", [False, True])
@pytest.mark.parametrize("name", ["pendulum", "double_pendulum"])
@pytest.mark.parametrize("kind", LAWS)
def test_no_positive_power_over_a_million_samples(kind, name, friction):
    """A thousand draws of weights, small to huge, at a thousand states each: friction never drives."""
    baseline = system(name, friction=friction)
    residual = randomise(_residual(LAWS[kind], baseline), members=MEMBERS)
    with torch.no_grad():
        sizes = torch.logspace(-2, 3, MEMBERS, dtype=torch.float64)
        for weight in residual.parameters():
            weight.mul_(sizes.reshape(-1, *(1,) * (weight.ndim - 1)))
        found = residual.certificate(context(baseline, MEMBERS, 1000), baseline)  # type: ignore[operator]
    assert (found.samples, found.limit, found.unit) == (10**6, 0.0, "W")
    assert found.worst <= 1e-9


@pytest.mark.parametrize("name", ["pendulum", "double_pendulum"])
@pytest.mark.parametrize("kind", LAWS)
def test_no_positive_power_under_attack(kind, name):
    """Gradient ascent over weights and states finds no positive power either."""
    baseline = system(name)
    residual = randomise(_residual(LAWS[kind], baseline), members=MEMBERS)
    seen, worst = _climb(residual, baseline)  # type: ignore[arg-type]
    assert worst <= 1e-9
    assert residual.certificate(seen, baseline).worst <= 1e-9  # type: ignore[operator]


def test_attack_finds_a_driving_residual():
    """The checks above are real: damping of the wrong sign is found at once, and its certificate fails."""
    baseline = system("double_pendulum")
    residual = randomise(_residual(Driving, baseline), members=MEMBERS)
    seen, worst = _climb(residual, baseline, steps=3)  # type: ignore[arg-type]
    assert worst > 1.0
    assert not residual.certificate(seen, baseline).holds  # type: ignore[operator]


def _excess(residuals: list[Residual], baseline: MechanicalBaseline, steps: int, draws: int = 4) -> float:
    """Largest energy over initial energy plus work of the drive, relative to both, in a rollout with random weights."""
    for k, residual in enumerate(residuals):
        randomise(residual, scale=2.0, seed=k, members=draws)
    start = random_states(baseline, draws, 2, seed=7) / 3
    time = baseline.dt * torch.arange(steps, dtype=torch.float64)[:, None]
    actions = (torch.sin(time * torch.tensor([1.3, 2.1], dtype=torch.float64)[: baseline.space.nu])).expand(draws, 2, -1, -1)
    with torch.no_grad():
        states = rollout(ResidualDynamics(baseline, residuals), start, actions)
    assert bool(torch.isfinite(states).all())
    energy, joint = baseline.energy(states), states[..., : baseline.space.nq]
    if baseline.space.nu > 1:  # the second torque acts between the links
        joint = torch.stack([joint[..., 0], joint[..., 1] - joint[..., 0]], -1)
    work = (actions * joint.diff(dim=-2)).sum(-1).cumsum(-1)
    scale = energy[..., :1] + (actions * joint.diff(dim=-2)).abs().sum(-1).cumsum(-1)
    return float(((energy[..., 1:] - energy[..., :1] - work) / scale).max())


def test_ten_thousand_steps_of_a_pendulum_stay_bounded():
    """The energy never exceeds what was there and what the drive put in."""
    baseline = system("pendulum")
    assert _excess([_residual(Dissipative, baseline, 0.1), _residual(DryFriction, baseline, 0.2)], baseline, 10_000) < 1e-2


def test_ten_thousand_steps_of_a_double_pendulum_stay_bounded():
    """The same with two joints, whose free motion is chaotic."""
    baseline = system("double_pendulum", integrator="semi_implicit", dt=0.002)
    assert _excess([_residual(Dissipative, baseline, 0.1), _residual(DryFriction, baseline, 0.2)], baseline, 10_000) < 1e-2


def test_bound_on_energy_is_broken_by_a_driving_residual():
    """The rollout check is real too: it fails for damping of the wrong sign."""
    baseline = system("pendulum")
    assert _excess([_residual(Driving, baseline, 1.0)], baseline, 1000) > 0.1


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("name", ["pendulum", "double_pendulum"])
def test_matrix_is_positive_semidefinite_and_bounded(name, explicit):
    """No eigenvalue is negative and no entry of L squared leaves its bound, for huge weights."""
    baseline = system(name)
    nq, nv = baseline.space.nq, baseline.space.nv
    residual = Dissipative(nv=nv, features=MOVING, sizes=[nq, nv], bound=3.0, explicit=explicit)
    seen = context(baseline, 2000)
    matrix = randomise(residual, scale=100.0).matrix(seen)  # type: ignore[operator]
    matrix = matrix.detach()
    assert float(torch.linalg.eigvalsh(matrix).min()) >= -1e-12
    assert float(matrix.abs().max()) <= 3.0 * baseline.space.nv + 1e-12


def test_explicit_force_is_minus_d_v():
    """On the force port it is the matrix times the velocity, and takes power."""
    baseline = system("double_pendulum")
    residual = Dissipative(nv=2, features=MOVING, sizes=[2, 2], bound=3.0, explicit=True)
    randomise(residual)
    seen = context(baseline, 100)
    assert residual.port is Port.FORCE
    assert torch.allclose(residual(seen), -torch.einsum("bij,bj->bi", residual.matrix(seen), seen.v))
    assert residual.certificate(seen, baseline).holds


def test_untrained_damping_is_small_but_has_a_gradient():
    """It starts near zero, where the gradient of L Lᵀ is not yet nothing."""
    baseline = system("double_pendulum")
    residual = _residual(Dissipative, baseline, bound=1.0)
    out = residual(context(baseline, 10))
    out.sum().backward()
    assert 0 < float(out.detach().abs().max()) < 1e-2
    assert float(residual.network.biases[-1].grad.abs().max()) > 1e-3  # type: ignore[union-attr]


def test_wrong_bound_is_refused():
    """A bound is positive."""
    with pytest.raises(ValueError, match="Dissipative: bound must be positive, received 0"):
        Dissipative(nv=1, features=MOVING, bound=0.0)
