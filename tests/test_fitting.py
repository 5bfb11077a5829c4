"""Residuals learn planted laws from logs, leave to parameters what parameters explain, and resume where they were stopped."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from estimation_problem import TRUTH, pendulum, pendulum_logs, sensor

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.errors import ModelError
from residual_mbrl.fitting import FitOptions, fit
from residual_mbrl.model import Model
from residual_mbrl.physics.pendulum import Pendulum
from residual_mbrl.residuals import CommandActuator, Conservative, DryFriction, EffortActuator, Feature, Residual, Unstructured

DT = 0.02
RATE = torch.linspace(-4, 4, 81, dtype=torch.float64)


class Stribeck(Pendulum):
    """A pendulum whose dry friction rises at rest."""

    def frictionloss(self, q, v, u, p):
        return 0.3 + 0.6 * torch.exp(-v.abs() / 0.5) + 0 * p["coulomb"].unsqueeze(-1)


class Loaded(Pendulum):
    """A pendulum whose dry friction grows with the load on its bearing."""

    def frictionloss(self, q, v, u, p):
        return 0.2 + 0.08 * (p["gravity_moment"].unsqueeze(-1) * torch.sin(q)).abs()


class Sprung(Pendulum):
    """A pendulum with a torsion spring that stiffens."""

    def smooth_force(self, q, v, u, p):
        return super().smooth_force(q, v, u, p) - 2.0 * q - 0.8 * q**3


class Sagging(Pendulum):
    """A pendulum whose drive gives less and less of a larger torque."""

    def smooth_force(self, q, v, u, p):
        return super().smooth_force(q, v, u * (1 - 0.04 * u.abs()), p)


def planted(kind, *, count=6, steps=50, seed=0):
    """Logs of a planted pendulum with known parameters and little noise."""
    truth = kind(pendulum().parameters, dt=DT, integrator="semi_implicit")
    return pendulum_logs(baseline=truth, seen=SEEN, count=count, steps=steps, seed=seed, noise=0.1)


SEEN = sensor(noise=(0.002, 0.01))
QUICK = FitOptions(rounds=2, iterations=4, loss="linear")


def known(*residuals: Residual, **changes):
    return Model(dynamics=ResidualDynamics(pendulum(dt=DT, **changes), residuals, TRUTH), sensor=SEEN)


def error(model, windows):
    """Root mean square error of the first column."""
    return float((model.predict(windows).measurements - windows.measurements)[..., 0].square().mean().sqrt())


def limit_of(model, states):
    """The learned addition to the dry-friction limit at some states."""
    with torch.no_grad():
        context = model.dynamics.contexts(states, torch.zeros(len(states), model.dynamics.space.nu, dtype=torch.float64))[0]
        return model.dynamics.residuals[0](context)[:, 0]


def test_dry_friction_learns_a_stribeck_law():
    """The held-out error falls twentyfold, and the learned limit is the planted one over the rates that were visited."""
    features = [Feature(source="rate", transform="slow", width=w) for w in (0.25, 1.0)] + [Feature(source="rate", transform="abs")]
    start = known(DryFriction(nv=1, features=features, bound=1.5, hidden=(4,)))
    fitted = fit(start, planted(Stribeck), options=replace(QUICK, ridge=0.002, rounds=3)).model
    held = planted(Stribeck, seed=5)
    assert error(fitted, held) < error(known(), held) / 20
    assert error(fitted, held) < 0.01
    states = torch.stack([torch.zeros_like(RATE), RATE], -1)
    assert (limit_of(fitted, states) - 0.3 - 0.6 * torch.exp(-RATE.abs() / 0.5)).abs().max() < 0.12


def test_dry_friction_learns_a_load_dependent_law():
    """The held-out error falls tenfold, and the learned limit follows the load."""
    features = [Feature(source="position", transform="sin"), Feature(source="position", transform="cos")]
    start = known(DryFriction(nv=1, features=features, bound=2.0, hidden=(6,)))
    fitted = fit(start, planted(Loaded), options=replace(QUICK, ridge=0.002, rounds=3, iterations=6)).model
    held = planted(Loaded, seed=5)
    assert error(fitted, held) < error(known(), held) / 10
    angle = torch.linspace(-1, 1, 21, dtype=torch.float64)
    learned = limit_of(fitted, torch.stack([angle, torch.ones_like(angle)], -1))
    assert (learned - 0.2 - 0.08 * 9.5 * torch.sin(angle).abs()).abs().max() < 0.2


def test_a_potential_learns_a_planted_spring():
    """The held-out error falls tenfold, and over the angles that the logs visit the learned force is the spring's."""
    fitted = fit(known(Conservative(nq=1, units=6, scale=1.0)), planted(Sprung), options=replace(QUICK, rounds=8)).model
    held = planted(Sprung, seed=5)
    assert error(fitted, held) < error(known(), held) / 10
    angle = torch.linspace(-1.0, 0.6, 17, dtype=torch.float64)
    learned = limit_of(fitted, torch.stack([angle, torch.zeros_like(angle)], -1))
    assert (learned + 2.0 * angle + 0.8 * angle**3).abs().max() < 0.1


def test_an_actuator_learns_a_planted_sag():
    """The held-out error falls tenfold, and the learned effort is short by what the plant's is."""
    residual = EffortActuator(signal="torque", nv=1, features=[Feature(source="torque", transform="abs")], gain_bound=0.5, hidden=(4,))
    fitted = fit(known(residual), planted(Sagging), options=replace(QUICK, ridge=0.002)).model
    held = planted(Sagging, seed=5)
    assert error(fitted, held) < error(known(), held) / 10
    torque = torch.linspace(-6, 6, 13, dtype=torch.float64).unsqueeze(-1)
    with torch.no_grad():
        force = fitted.dynamics.residuals[0](fitted.dynamics.contexts(torch.zeros(13, 2, dtype=torch.float64), torque)[0])
    assert (force + 0.04 * torque * torque.abs()).abs().max() < 0.15


@pytest.mark.parametrize("delay", [0.03, 0.05])
def test_an_actuator_learns_a_planted_delay(delay):
    """A transport delay of the command, a fraction of steps included, is learned within ten per cent."""
    def drive():
        return CommandActuator(nu=1, channels=[0], dt=DT, max_delay=0.1, max_lag=0.0)

    plant = drive()
    with torch.no_grad():
        plant.raw_delay.fill_(np.log(delay / (0.1 - delay)))
    windows = pendulum_logs(baseline=pendulum(dt=DT), seen=SEEN, residuals=[plant], steps=40, count=3, noise=0.1)
    fitted = fit(known(drive()), windows, options=replace(QUICK, ridge=0.0, rounds=3)).model
    learned = fitted.dynamics.residuals[0]
    assert learned.delay.detach().item() == pytest.approx(delay, rel=0.1)
    assert learned.gain.detach().item() == pytest.approx(1.0, abs=0.02)


def mimicry(explained, ridge=0.0005):
    """Fit a potential that can be the gravity moment, wrong by a fifth at the start, together with it."""
    truth = pendulum_logs(baseline=pendulum(dt=DT), seen=SEEN, steps=40, count=2, noise=0.3)
    start = Model(dynamics=ResidualDynamics(pendulum(dt=DT), [Conservative(nq=1, periodic=(0,), units=3, scale=4.0)],
                                            {**TRUTH, "gravity_moment": 7.6}), sensor=SEEN)
    free = [start.dynamics.baseline.parameters["gravity_moment"]]
    options = replace(QUICK, explained=explained, ridge=ridge)
    return fit(start, truth, options=options, free=free).model


def test_what_parameters_explain_stays_theirs():
    """A residual that could be the parameter leaves it within five per cent of the truth; unpunished, it takes over more."""
    kept, taken = mimicry(explained=10.0), mimicry(explained=0.0)
    assert kept.dynamics.values["gravity_moment"] == pytest.approx(9.5, rel=0.05)
    assert limit_of(kept, torch.tensor([[0.8, 0.0]], dtype=torch.float64)).abs() < 0.05 * 9.5
    assert abs(taken.dynamics.values["gravity_moment"] - 9.5) > 2 * abs(kept.dynamics.values["gravity_moment"] - 9.5)


def test_parameters_can_be_kept():
    """With ``parameters`` off the physical values stay as identified."""
    start = known(Conservative(nq=1, units=3), gravity_moment={"nominal": 9.0})
    out = fit(start, planted(Sprung, count=2, steps=20), options=replace(QUICK, rounds=1, parameters=False),
              free=[start.dynamics.baseline.parameters["inertia"]])
    assert out.model.dynamics.values == start.dynamics.values


def test_ridge_pulls_weights_to_their_start():
    """A larger ridge leaves smaller weights and a larger error; a huge one leaves the weights as they were."""
    sizes, errors = [], []
    train = planted(Sprung, count=2, steps=40)
    start = known(Conservative(nq=1, units=3, scale=3.0))
    first = torch.cat([w.detach().flatten() for w in start.dynamics.parameters()])
    for ridge in (0.001, 30.0, 1e5):
        model = fit(start, train, options=replace(QUICK, rounds=1, ridge=ridge)).model
        sizes.append(float((torch.cat([w.detach().flatten() for w in model.dynamics.parameters()]) - first).norm()))
        errors.append(error(model, train))
    assert sizes[0] > 1.2 * sizes[1] > 3 * sizes[2]
    assert errors[0] < errors[1] < errors[2]
    assert sizes[2] < 1e-4


def test_adam_and_gauss_newton_agree():
    """On a problem with one minimum (a friction table, linear in its weights) the two methods end at the same cost."""
    features = [Feature(source="rate", transform="hats", knots=3)]
    start, train = known(DryFriction(nv=1, features=features, bound=1.0, hidden=())), planted(Stribeck, count=2, steps=20)
    options = replace(QUICK, ridge=0.05, rounds=2)
    newton = fit(start, train, options=replace(options, method="gauss_newton"))
    adam = fit(start, train, options=replace(options, method="adam", iterations=50, learning_rate=0.1))
    states = torch.stack([torch.zeros_like(RATE), RATE], -1)[20:61]
    assert min(r.train for r in adam.history) == pytest.approx(min(r.train for r in newton.history), rel=0.05)
    assert (limit_of(newton.model, states) - limit_of(adam.model, states)).abs().max() < 0.03


@pytest.mark.parametrize("method", ["gauss_newton", "adam"])
@pytest.mark.parametrize("moment", [1, 2, 4])
def test_resumed_training_equals_an_uninterrupted_one(tmp_path, method, moment):
    """Stopped by Ctrl-C at any round, training goes on to the same weights to the last bit."""
    start, train, held = known(Conservative(nq=1, units=2)), planted(Sprung, count=2, steps=20), planted(Sprung, count=1, steps=20, seed=3)
    options = FitOptions(horizons=(8,), rounds=2, iterations=2, method=method)
    arguments = {"free": [start.dynamics.baseline.parameters["viscous"]], "options": options}
    whole, calls = fit(start, train, held, **arguments), []

    def interrupt(phrase, done):
        calls.append(done)
        if len(calls) == moment:
            raise KeyboardInterrupt

    path = tmp_path / "training.npz"
    with pytest.raises(KeyboardInterrupt):
        fit(start, train, held, checkpoint=path, progress=interrupt, **arguments)
    assert path.exists() == (moment > 1)
    resumed = fit(start, train, held, checkpoint=path, **arguments)
    for (name, a), b in zip(whole.model.dynamics.state_dict().items(), resumed.model.dynamics.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert resumed.model.dynamics.values == whole.model.dynamics.values
    assert [(r.horizon, r.train, r.validation) for r in resumed.history] == [(r.horizon, r.train, r.validation) for r in whole.history]
    assert [r.horizon for r in whole.history] == [8, 8, 20, 20]
    assert calls == sorted(calls)


def test_seeds_repeat():
    """The same seed gives the same weights to the last bit, another seed others."""
    train = planted(Sprung, count=1, steps=20)

    def weights(seed):
        model = fit(known(Conservative(nq=1, units=3, seed=seed)), train, options=replace(QUICK, rounds=1)).model
        return torch.cat([w.detach().flatten() for w in model.dynamics.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_the_caller_keeps_its_model():
    """Training works on a copy: weights and normaliser of what was handed in stay as they were."""
    start = known(DryFriction(nv=1, features=[Feature(source="rate", transform="abs")], bound=1.0))
    before = {n: x.clone() for n, x in start.dynamics.state_dict().items()}
    out = fit(start, planted(Stribeck, count=1, steps=20), options=replace(QUICK, rounds=1))
    assert all(torch.equal(x, before[n]) for n, x in start.dynamics.state_dict().items())
    assert not torch.equal(out.model.dynamics.residuals[0].features.spread, start.dynamics.residuals[0].features.spread)


def test_validation_stops_an_overfit():
    """A large free network on one short log stops at the round that predicts the validation log best."""
    start = known(Unstructured(nv=1, features=[Feature(source="position"), Feature(source="velocity")], bound=5.0, hidden=(8,)))
    train, held = planted(Stribeck, count=1, steps=15), planted(Stribeck, count=3, steps=40, seed=7)
    out = fit(start, train, held, options=FitOptions(rounds=8, iterations=2, ridge=0.0, patience=2, loss="linear"))
    scores = [r.validation for r in out.history]
    best = int(np.argmin(scores))
    assert len(scores) == min(8, best + 3)
    found = (out.model.predict(held).measurements - held.measurements) / torch.tensor(SEEN.noise)
    assert float(0.5 * found.square().mean()) == pytest.approx(scores[best], rel=1e-6)


def test_without_residuals_there_is_nothing_to_fit():
    """A model without weights says so."""
    with pytest.raises(ModelError, match="nothing to fit: the dynamics have no residuals with weights"):
        fit(known(), planted(Stribeck, count=1, steps=5))


def test_a_checkpoint_of_another_problem_is_refused(tmp_path):
    """A checkpoint of the same shape but another residual, or other data, is refused."""
    train, path = planted(Stribeck, count=1, steps=12), tmp_path / "training.npz"

    def friction(bound):
        return known(DryFriction(nv=1, features=[Feature(source="rate", transform="abs")], bound=bound, hidden=()))

    options = replace(QUICK, rounds=1, iterations=1)
    fit(friction(1.0), train, options=options, checkpoint=path)
    fit(friction(1.0), train, options=options, checkpoint=path)
    for model, windows in ((friction(2.0), train), (friction(1.0), planted(Stribeck, count=1, steps=12, seed=1))):
        with pytest.raises(ModelError, match=r"training\.npz: checkpoint of another model, data or options"):
            fit(model, windows, options=options, checkpoint=path)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    """A truncated checkpoint is named, with what to do."""
    path, model, train = tmp_path / "training.npz", known(Conservative(nq=1, units=2)), planted(Sprung, count=1, steps=8)
    options = replace(QUICK, rounds=1, iterations=1)
    fit(model, train, options=options, checkpoint=path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ModelError, match=r"training\.npz: not a training checkpoint .*delete it to start anew"):
        fit(model, train, options=options, checkpoint=path)


def test_another_rate_is_refused():
    """Windows at another rate than the model's are refused."""
    with pytest.raises(ModelError, match=r"the model steps 0\.02 s, the windows 0\.05 s"):
        fit(known(Conservative(nq=1)), pendulum_logs(count=1, steps=5), options=QUICK)


def test_logs_move_the_pendulum_enough():
    """The logs of these tests visit the angles and rates over which learned laws are compared."""
    windows = planted(Stribeck)
    assert windows.measurements[..., 0].abs().max() > 0.9
    assert windows.measurements[..., 1].abs().max() > 2.5
