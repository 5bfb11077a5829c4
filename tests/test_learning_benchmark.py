"""The learning benchmark: its equations are those of its plants, and its scores are what they say."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium", reason="gymnasium is not installed")
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def plants():
    """All plants by name."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import learning_cases
    finally:
        sys.path.remove(str(BENCHMARKS))
    return learning_cases.CASES


def followed(case, seed, steps, share):
    """Return states of the plant under random actions, and the actions."""
    plant, rng = case.plant(seed), np.random.default_rng(0)
    first = case.task(seed).starts(1, 1)[0]
    actions = share * case.limit * rng.uniform(-1, 1, (steps, case.baseline().space.nu))
    states = [plant.reset(seed, first.numpy()), *(plant.step(u)[0] for u in actions)]
    return torch.tensor(np.array(states)), torch.tensor(actions)


@pytest.mark.parametrize(("name", "share"), [("cart-pole", 0.5), ("double pendulum", 0.05), ("reacher", 0.6), ("arm", 0.3)])
def test_the_true_model_is_the_plant(plants, name, share):
    """To a twentieth of how far each entry moves; what is known is not."""
    from residual_mbrl.rollouts import rollout

    case = plants[name]()
    states, actions = followed(case, 3, 15, share)
    moved = (states - states[0]).abs().amax(0).clamp_min(0.02)
    off = {m: float(((rollout(dynamics, states[0], actions, backend="torch").detach() - states).abs() / moved).max())
           for m, dynamics in (("true", case.true(3)), ("nominal", case.nominal()))}
    assert off["true"] < 0.05
    assert off["nominal"] > 3 * off["true"]


def test_the_true_hopper_is_the_plant_to_its_coarser_engine(plants):
    """Step by step, through the ground's contact: off by what is said of it, and what is known by three times that."""
    case = plants["hopper"]()
    states, actions = followed(case, 3, 15, 0.3)
    off = {m: ((dynamics.step(states[:-1], actions) - states[1:]).detach() / torch.tensor(case.off)).square().mean().sqrt()
           for m, dynamics in (("true", case.true(3)), ("nominal", case.nominal()))}
    assert off["true"] < 1.5
    assert off["nominal"] > 3 * off["true"]


@pytest.mark.parametrize("name", [pytest.param("double pendulum", marks=pytest.mark.slow), "reacher"])
def test_equations_are_the_same_in_torch_and_in_kernels(plants, name):
    """Values and gradients by the actions, with every kind of friction."""
    from residual_mbrl.rollouts import rollout

    case = plants[name]()
    model, generator = case.true(0), torch.Generator().manual_seed(0)
    x = torch.randn(8, model.space.nx, generator=generator, dtype=torch.float64)
    u = torch.randn(8, 4, model.space.nu, generator=generator, dtype=torch.float64).requires_grad_()
    found = {}
    for backend in ("fused", "torch"):
        states = rollout(model, x, u, backend=backend)
        found[backend] = (states, *torch.autograd.grad(states[..., -1, :].square().sum(), u))
    for a, b in zip(*found.values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["cart-pole", "double pendulum", "reacher", "arm", "hopper"])
def test_rewards_lie_between_zero_and_one(plants, name):
    """Anywhere; so do their differences to one, which are what planners minimise."""
    case = plants[name]()
    space = case.baseline().space
    x, u = 5 * torch.randn(1000, space.nx), torch.randn(1000, space.nu)
    r = torch.zeros(1) if case.followed is None else torch.randn(1000, space.nx)
    reward = case.reward(0)(x, u) if case.followed is None else case.reward(0)(x, u, r)
    assert reward.min() >= 0
    assert reward.max() <= 1
    cost = case.task(0).cost
    assert torch.allclose(cost.running(x, u, r), 1 - reward)
    assert cost.refusal is None


def test_what_is_followed_is_shown_and_paid_for(plants):
    """A model-free learner of the arm sees the way to where it should be, and is paid by the distance to where it should be now."""
    pytest.importorskip("stable_baselines3", reason="stable-baselines3 is not installed")
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from learning_model_free import AHEAD, PlantEnv
    finally:
        sys.path.remove(str(BENCHMARKS))
    case, seed = plants["arm"](), 3
    env, motion = PlantEnv(case, seed), case.followed(seed)
    seen, _ = env.reset()
    for t in range(4):
        state, ways = seen[:14], seen[14:].reshape(len(AHEAD), 14)
        assert np.allclose(ways, motion[[t + k for k in AHEAD]] - state, atol=1e-6)
        error = np.sqrt(np.mean((env.plant.state[:7] - motion[t, :7]) ** 2))
        seen, paid, *_ = env.step(env.action_space.sample())
        assert paid == pytest.approx(1 / (1 + (error / 0.01) ** 2))


def test_seconds_for_an_error_are_found_between_experiments(plants):
    """On a line of logarithms; after the last experiment that errs more."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from excitation import Row, seconds_for
        from learning import interquartile
    finally:
        sys.path.remove(str(BENCHMARKS))
    rows = [Row(plants="", excitation="", seconds=s, error=e, quartiles=(0, 0), bound=0.0, left_rail=0, seeds=1, machine="")
            for s, e in ((1.0, 0.04), (2.0, 0.02), (4.0, 0.025), (8.0, 0.005))]
    assert seconds_for(0.05, rows) == 1.0
    assert seconds_for(0.001, rows) is None
    assert seconds_for(0.025 / 5**0.5, rows) == pytest.approx(4 * 2**0.5)
    value, low, high = interquartile([0.2, 0.9, 1.0, 1.1, 5.0])
    assert value == pytest.approx(1.0)
    assert low < 1 < high


def test_prediction_errors_are_relative_to_the_motion(plants):
    """One where nothing moves, little in the true model, and for members that agree that of one of them."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from exploration import Recorded, error
    finally:
        sys.path.remove(str(BENCHMARKS))
    from residual_mbrl.dynamics import ResidualDynamics, ensemble
    from residual_mbrl.physics.free_body import FreeBody

    case = plants["cart-pole"]()
    states, actions = followed(case, 3, 60, 0.5)
    held = Recorded.of([(states.numpy(), actions.numpy())])
    assert held.first.shape == held.last.shape == (11, 4)
    still = Recorded(first=held.last, actions=0 * held.actions, last=held.last + (held.last - held.first))
    assert error(ResidualDynamics(FreeBody(case.baseline().space, dt=1e-9)), still) == pytest.approx(1)
    assert error(case.true(3), held) < 0.05
    assert error(ensemble([case.alone(3)] * 2), held) == pytest.approx(error(case.alone(3), held))
