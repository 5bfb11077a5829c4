"""Balance of forces and fitting over horizons: planted truths come back, and what is asked wrongly is named."""

import pytest
import torch
from problems import randomise
from quadrotor_problem import quadrotor, random_flight

from residual_mbrl.disturbance import PastContext
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.errors import ModelError
from residual_mbrl.force_balance import BalanceOptions, balance, missing_force
from residual_mbrl.horizon_fitting import HorizonOptions, StartedWindows, fit_over_horizon, grouped_errors, mean_errors
from residual_mbrl.physics.cartpole import CartPole
from residual_mbrl.physics.linear_drive import LinearDrive
from residual_mbrl.residuals import Feature, MemoryForce
from residual_mbrl.rollouts import rollout

F64 = torch.float64
GROUPS = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10, 11))


def pushed_cart(rows=60, batch=40, push=1.5):
    """Flights of a cart-pole under random forces and a constant push that its equations lack."""
    g = torch.Generator().manual_seed(0)
    cart = CartPole()
    actions = torch.randn(batch, rows, 1, generator=g, dtype=F64)
    states = [0.1 * torch.randn(batch, 4, generator=g, dtype=F64)]
    for k in range(rows):
        states.append(cart.step(states[-1], actions[:, k], torch.tensor([push, 0.0], dtype=F64)))
    return cart, torch.stack(states, 1), actions


def test_the_missing_force_is_the_one_that_was_there():
    """Of every step, in newtons."""
    cart, states, actions = pushed_cart(rows=5)
    found = missing_force(cart, states, actions)
    assert torch.allclose(found[..., 0], torch.full_like(found[..., 0], 1.5), rtol=0.05)
    assert float(found[..., 1].abs().max()) < 0.1


def test_a_balance_is_not_attenuated_by_noise_in_the_commands():
    """A planted inertia comes back though rotor speeds were read with noise that regression on them would take for a smaller gain."""
    true = quadrotor(motor_lag=1e-4)
    x, u, _, _ = random_flight(60)
    x[:, 7:13] *= 0.2
    g = torch.Generator().manual_seed(1)
    actions = (u.unsqueeze(1) + 0.2 * torch.randn(60, 20, 4, generator=g, dtype=F64)).clamp(0.5, 2.5)
    states = rollout(ResidualDynamics(true), torch.cat([x[:, :13], actions[:, 0]], -1), actions)
    read = actions + 0.05 * torch.randn(actions.shape, generator=g, dtype=F64)
    guess = quadrotor(motor_lag=1e-4, inertia_xx=4e-5, inertia_yy=4e-5)
    spans = {n: {"prior_std": 5e-6} for n in ("inertia_xx", "inertia_yy")}
    free = [guess.parameters.replaced(**spans)[n] for n in spans]
    options = BalanceOptions(scales=(1, 5), steps=120, segments=60, rate=0.1)
    rows = torch.cat([states[..., :13], torch.cat([read[:, :1], read], 1)], -1)
    found = balance(guess, rows, read, free, [0.05] * 3 + [2e-4] * 3, options)
    assert found["inertia_xx"] == pytest.approx(2.4e-5, rel=0.15)
    assert found["inertia_yy"] == pytest.approx(2.1e-5, rel=0.15)


def test_what_cannot_be_balanced_is_named():
    """No mass matrix, nothing free, segments too short."""
    drone = quadrotor()
    x, u, _, _ = random_flight(2)
    with pytest.raises(ModelError, match="no mass_matrix"):
        missing_force(NoMass(), torch.zeros(2, 2, dtype=F64), torch.zeros(1, 1, dtype=F64))
    with pytest.raises(ValueError, match="at least 50 steps"):
        balance(drone, x.unsqueeze(1).expand(-1, 3, -1), u.unsqueeze(1).expand(-1, 2, -1), [drone.parameters["mass"]], [1.0] * 6)


class NoMass(LinearDrive):
    """A plant whose mass matrix nobody knows."""

    def __getattribute__(self, name):
        if name == "mass_matrix":
            raise AttributeError(name)
        return super().__getattribute__(name)


def test_groups_are_distances_and_angles():
    """Of a free body: metres, radians whichever the sign of the quaternion, metres and radians a second."""
    space = quadrotor().space
    x = random_flight(3)[0]
    moved = space.integrate(x, torch.tensor([3.0, 4, 0, 0, 0.3, 0, 0, 0, 2, 1, 2, 2, 0, 0, 0, 0], dtype=F64))
    truth = torch.cat([moved[:, :3], -moved[:, 3:7], moved[:, 7:13]], -1)
    assert torch.allclose(grouped_errors(space, x, truth, GROUPS), torch.tensor([5.0, 0.3, 2.0, 3.0], dtype=F64).expand(3, -1), atol=1e-6)


def cart_windows(context, **cut):
    """Windows of the pushed cart with contexts from past innovations."""
    cart, states, actions = pushed_cart()
    plain = ResidualDynamics(cart)
    commands = torch.cat([actions, actions[:, -1:]], 1)
    unit = torch.tensor([0.01, 0.01])
    parts = [StartedWindows.cut(x, u, context.of_log(plain, x, u), unit, known=4, horizon=10, lead=2, stride=5, **cut)
             for x, u in zip(states, commands, strict=True)]
    return plain, StartedWindows.joined(parts)


def remembering(context):
    """A force that depends on nothing but what the past said."""
    return MemoryForce(nv=2, nu=1, features=[Feature(source="velocity")], sizes=[2], scale=[3.0, 0.3], context=context, fading=(2.0,),
                       dt=0.02, hidden=(), encoder=())


def test_a_push_that_the_past_shows_is_expected_to_go_on():
    """Starts from a context err a fraction of what they do without the residual."""
    plain, windows = cart_windows(PastContext(lengths=(4,)), skip=10)
    options = HorizonOptions(stages=((10, 1.0),), steps=120, batch=128, rate=0.02, ridge=1e-4, ridge_recall=1e-4)
    fitted = fit_over_horizon(plain.with_residuals([remembering(windows.context.shape[-1])]), windows, ((0,), (2,)), options=options)
    before, after = (mean_errors(d, windows, ((0,), (2,)))[-1] for d in (plain, fitted))
    assert bool((after < 0.3 * before).all())
    assert float(after[0]) > 0


def test_parameters_alone_are_fitted_within_their_bounds():
    """A parameter that a wrong start hides comes back, and the model given stays as it was."""
    cart, states, actions = pushed_cart(push=0.0)
    heavy = ResidualDynamics(cart, (), {"cart_mass": 2 * cart.parameters["cart_mass"].nominal})
    commands = torch.cat([actions, actions[:, -1:]], 1)
    windows = StartedWindows.joined([StartedWindows.cut(x, u, x[:, :0], torch.tensor([0.01, 0.01]), known=4, horizon=10, lead=0, stride=10)
                                     for x, u in zip(states, commands, strict=True)])
    free = [cart.parameters["cart_mass"]]
    options = HorizonOptions(stages=((10, 1.0),), steps=200, batch=128, rate=0.01)
    fitted = fit_over_horizon(heavy, windows, ((0,), (2,)), free, options)
    assert fitted.values["cart_mass"] == pytest.approx(free[0].nominal, rel=0.05)
    assert heavy.values["cart_mass"] == 2 * free[0].nominal


def test_stages_must_fit_the_windows():
    """And there must be something to fit."""
    plain, windows = cart_windows(PastContext(lengths=(4,)))
    with pytest.raises(ValueError, match="stages within 10 steps"):
        fit_over_horizon(plain, windows, ((0,),), [plain.baseline.parameters["cart_mass"]])
    with pytest.raises(ValueError, match="something to fit"):
        fit_over_horizon(plain, windows, ((0,),), (), HorizonOptions(stages=((5, 1.0),)))
    assert randomise(remembering(3)).context == 3
