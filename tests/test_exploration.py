"""Excitation: information is that of the definition, what promises more tells more, and vetoes hold what they promise."""

from __future__ import annotations

import numpy as np
import policy_problem as problem
import pytest
import torch

from residual_mbrl.dynamics import ResidualDynamics, ensemble, member
from residual_mbrl.exploration import (
    InformationOptions,
    Veto,
    disagreement_excitation,
    expected_error,
    information_excitation,
    information_gain,
    random_excitation,
)
from residual_mbrl.exploration.excitation import SearchOptions
from residual_mbrl.identification import IdentifyOptions, identify
from residual_mbrl.learning.episodes import Episode
from residual_mbrl.policies import LinearPolicy
from residual_mbrl.residuals import Feature, Unstructured
from residual_mbrl.rollouts import rollout
from residual_mbrl.sensors import state_sensor
from residual_mbrl.windows import cut_windows

FREE = ["inertia", "viscous", "gravity_moment"]


@pytest.mark.parametrize("known", [True, False])
def test_gain_is_that_of_the_fisher_information(known):
    """By automatic differentiation of the rollout, at the model's own values; of all unknowns, where the first state is one."""
    model, u = problem.dynamics(viscous=0.2), 5 * torch.randn(3, 30, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.tensor([0.3, 0.0], dtype=torch.float64)
    options = InformationOptions(free=FREE, noise=[1e-3, 2e-3], draws=1, spread=0.2, first_known=known)
    found, noise = information_gain(model, x, u, options), torch.tensor([1e-3, 2e-3], dtype=torch.float64)
    for k in range(3):
        def states(values, first, k=k):
            return rollout(model, first, u[k], dict(zip(FREE, values.unbind(), strict=True)), backend="torch")[known:] / noise

        nominal = torch.tensor([model.values[n] for n in FREE], dtype=torch.float64)
        by_value, by_first = torch.autograd.functional.jacobian(states, (nominal, x))
        slopes = torch.cat([by_value.reshape(-1, 3) * nominal, by_first.reshape(-1, 2)[:, : 0 if known else 2]], -1)
        error = torch.linalg.inv(slopes.T @ slopes)[:3, :3]
        exact = 0.5 * torch.logdet(torch.eye(3, dtype=torch.float64) + 0.04 * torch.linalg.inv(error))
        assert float(found[k]) == pytest.approx(float(exact), rel=1e-4)


def test_what_is_counted_follows_the_model():
    """A parameter's unit is its value in the model, not that of the data sheet, so that a small friction is not drawn as a large one."""
    u = torch.tensor(random_excitation(problem.dynamics(), problem.task(), 30, 0))
    for draws in (1, 6):
        options = InformationOptions(free=["viscous"], noise=1e-4, spread=0.3, draws=draws)
        low, high = (information_gain(problem.dynamics(viscous=v), torch.zeros(2).double(), u, options) for v in (0.05, 0.1))
        assert float(high - low) == pytest.approx(np.log(2), abs=0.1)


def test_searched_excitation_says_more_than_random():
    """Of all parameters together, in the model, than the best of 32; how much data that saves, the benchmark shows."""
    model, task = problem.dynamics(), problem.task()
    options = InformationOptions(free=FREE, noise=1e-2, search=SearchOptions(iterations=8))
    planned = torch.tensor(information_excitation(model, task, 30, 3, options))
    assert planned.abs().max() <= 20
    others = torch.stack([torch.tensor(random_excitation(model, task, 30, s)) for s in range(32)])
    first = task.starts(3, 1)[0]
    assert information_gain(model, first, planned, options) > information_gain(model, first, others, options).max()


def test_searched_excitation_keeps_the_limits_that_it_is_given():
    """In the model, for whichever parameters were drawn."""
    model, task = problem.dynamics(), problem.task()
    options = InformationOptions(free=FREE, noise=1e-2, largest=[20.0, 6.0], search=SearchOptions(iterations=8))
    planned = torch.tensor(information_excitation(model, task, 30, 3, options))
    assert rollout(model, task.starts(3, 1)[0], planned)[:, 1].abs().max() < 6


def members(spread):
    """An ensemble whose members part where it turns quickly."""
    made = []
    for k in range(3):
        force = Unstructured(nv=1, features=[Feature(source="velocity")], bound=5.0, hidden=(4,))
        with torch.no_grad():
            force.network.weights[-1].fill_(spread * (k - 1))
        made.append(ResidualDynamics(problem.dynamics().baseline, [force]))
    return ensemble(made)


def test_disagreement_is_sought():
    """Searched actions part the members more than random ones."""
    model, task = members(0.3), problem.task()
    first = task.starts(1, 1)[0]

    def spread(actions):
        u = torch.tensor(actions).expand(3, 1, *actions.shape)
        return float(rollout(model, first.expand(3, 1, 2), u).detach().var(0).sum(-1).mean())

    found = spread(disagreement_excitation(model, task, 30, 1, options=SearchOptions(iterations=6)))
    assert found > 1.5 * np.median([spread(random_excitation(model, task, 30, s)) for s in range(16)])
    with pytest.raises(ValueError, match="expected an ensemble"):
        disagreement_excitation(problem.dynamics(), task, 30, 1)


def test_a_member_is_the_model_that_was_joined():
    """Weights and predictions."""
    model = members(0.3)
    x, u = torch.tensor([0.3, 1.0]).double(), torch.randn(20, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    together = rollout(model, x.expand(3, 2), u.expand(3, 20, 1)).detach()
    for k in range(3):
        assert torch.allclose(rollout(member(model, k), x, u).detach(), together[k], rtol=1e-9, atol=1e-9)


def test_members_that_are_alike_are_excited_at_random(caplog):
    """There is nothing to search for before a fit, and the log says so."""
    task = problem.task()
    with caplog.at_level("INFO", logger="residual_mbrl"):
        found = disagreement_excitation(members(0.0), task, 30, 1, options=SearchOptions(iterations=2))
    assert np.array_equal(found, random_excitation(problem.dynamics(), task, 30, 1))
    assert "no actions part the members" in caplog.text


@pytest.mark.parametrize("kind", ["model", "ensemble"])
def test_vetoed_exploration_keeps_its_limits(kind):
    """Random torques throw the pendulum beyond them, vetoed ones never do, and most pass."""
    model, task = problem.dynamics(), problem.task()
    seen = members(0.05) if kind == "ensemble" else model
    target = torch.tensor([problem.UPRIGHT, 0.0], dtype=torch.float64)
    fallback = LinearPolicy.feedback(space=model.space, gain=torch.tensor([[40.0, 8.0]], dtype=torch.float64), target=target,
                                     action=torch.zeros(1, dtype=torch.float64), low=-20.0, high=20.0)
    largest, worst = np.array([problem.UPRIGHT + 0.8, 6.0]), {}
    for vetoed in (False, True):
        actions = random_excitation(model, task, 120, 5)
        act = Veto(lambda x, t: actions[t], seen, fallback, largest, horizon=20, margin=0.02)  # noqa: B023
        x, highest = target.clone(), 0.0
        for t in range(120):
            u = act(x.numpy(), t) if vetoed else actions[t]
            x = model.step(x, torch.tensor(u)).detach()
            highest = max(highest, float((x.abs() / torch.tensor(largest)).max()))
        worst[vetoed] = highest
    assert worst[True] <= 1 < worst[False]
    assert 0 < act.vetoed < 90


def test_wrong_limits_are_named():
    """With what was expected."""
    with pytest.raises(ValueError, match="expected largest"):
        Veto(lambda x, t: x, problem.dynamics(), problem.policy(), np.zeros(3))


def test_expected_error_is_that_of_the_inverse_information():
    """A large one where a parameter is hardly seen, whatever is known of the others; and it can be sought."""
    model, task = problem.dynamics(viscous=0.2), problem.task()
    options = InformationOptions(free=FREE, noise=1e-2, draws=2, spread=0.2, goal="error", search=SearchOptions(iterations=8))
    u = torch.stack([torch.tensor(random_excitation(model, task, 30, s)) for s in range(16)])
    first = task.starts(3, 1)[0]
    random = expected_error(model, first, u, options, 3)
    assert ((random > 0) & (random < options.spread)).all()
    planned = torch.tensor(information_excitation(model, task, 30, 3, options))
    assert expected_error(model, first, planned, options, 3) < random.min()
    tight = InformationOptions(free=FREE, noise=1e-2, largest=[0.1, 0.1])
    assert torch.isinf(expected_error(model, first, u, tight, 3)).all()


@pytest.mark.parametrize("known", [True, False])
def test_identified_parameters_err_as_expected(known):
    """The root mean square over experiments, within the chance of thirty of them, first states known or estimated."""
    model, task = problem.dynamics(viscous=0.2), problem.task()
    u, noise = torch.tensor(random_excitation(model, task, 40, 1)), 1e-2
    options = InformationOptions(free=FREE, noise=noise, draws=1, spread=10.0, first_known=known)
    expected = float(expected_error(model, torch.zeros(2).double(), u, options))
    states = rollout(model, torch.zeros(2).double(), u).detach().numpy()
    off = []
    for seed in range(30):
        noisy = states + noise * np.random.default_rng(seed).standard_normal(states.shape)
        if known:
            noisy[0] = states[0]
        log = Episode(name="log", states=noisy, actions=u.numpy()).trajectory(model.space, model.dt)
        found = identify(model, state_sensor(model.space, noise), cut_windows([log], model.dt),
                         IdentifyOptions(free=FREE, candidates=1, starts=1, loss="linear", start_std=None if known else [noise] * 2))
        off.append([found.dynamics.values[n] / model.values[n] - 1 for n in FREE])
    assert float(np.sqrt(np.mean(np.square(off)))) == pytest.approx(expected, rel=0.3)
