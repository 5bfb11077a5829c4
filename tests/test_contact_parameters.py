"""Learned contact parameters stay in their bounds, leave the laws to the engine, and load as they were saved."""

from __future__ import annotations

import pytest
import torch
from contact_problem import BODIES, near_floor
from torch import Tensor

from residual_mbrl import artifact
from residual_mbrl.dynamics import ResidualDynamics, ensemble
from residual_mbrl.errors import ModelError
from residual_mbrl.model import Model
from residual_mbrl.models import CUBE
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator
from residual_mbrl.residuals import ContactForce, ContactParameters
from residual_mbrl.sensors import Column, Sensor

LIVE = "friction:floor.slide"
SIZES = (0.1, 1.0, 10.0, 1e3)


def simulator(*names: str) -> MujocoSimulator:
    """The shipped cube, whose floor has priority in contacts."""
    return MujocoSimulator(CUBE, names or (LIVE,))


def randomise(residual: ContactParameters, size: float, seed: int = 0) -> None:
    """Draw every weight from a normal distribution of this size."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in residual.parameters():
            p.copy_(size * torch.randn(p.shape, generator=generator, dtype=p.dtype))


def states(count: int = 60) -> Tensor:
    """Cubes in and near contact with the floor."""
    drawn = near_floor(MujocoSimulator(BODIES["cube"].format(cone="elliptic", dt=0.002)), "cube", count)
    return drawn


def actions(state: Tensor) -> Tensor:
    """No command."""
    return state.new_zeros(len(state), 0)


def test_untrained_it_changes_nothing():
    """Its step is the engine's, bit for bit."""
    plant, x = simulator(), states()
    dynamics = ResidualDynamics(plant, [ContactParameters(live=LIVE, lower=0.05, upper=0.5)])
    assert torch.equal(dynamics.step(x, actions(x)), plant.step(x, actions(x)))


@pytest.mark.parametrize("size", SIZES)
def test_value_stays_in_its_bounds(size):
    """Whatever the weights; and it moves where something touches, nowhere else."""
    residual, x = ContactParameters(live=LIVE, lower=0.05, upper=0.5), states()
    dynamics = ResidualDynamics(simulator(), [residual])
    dynamics.normalise(x, actions(x))
    randomise(residual, size)
    (certificate,) = dynamics.certificates(x, actions(x))
    assert certificate.holds
    context = dynamics.contexts(x, actions(x))[0]
    moved = residual(context) != 0
    near = (context.contacts.present & (context.contacts.gap < -context.dt * context.contacts.velocity[..., 0].clamp(max=0))).any(-1)
    assert bool((moved == near).all())
    assert 0 < int(moved.sum()) < len(x)


def test_it_acts_before_a_touch_within_the_step():
    """A corner four millimetres up is seen by a body of many geoms, and counts where it falls fast enough to touch."""
    residual = ContactParameters(live=LIVE, lower=0.05, upper=0.5)
    randomise(residual, 1.0)
    x = torch.zeros(2, 13, dtype=torch.float64)
    x[:, 2], x[:, 3] = 0.0524 + 0.004, 1.0
    x[1, 9] = -1.0
    context = ResidualDynamics(MujocoSimulator(CUBE, (LIVE,), dt=0.0068), [residual]).contexts(x, actions(x))[0]
    assert context.contacts.present.sum(-1).tolist() == [4, 4]
    assert [float(v) != 0 for v in residual(context).detach()] == [False, True]


def test_gradients_are_those_of_differences():
    """By every weight, in double precision, of the value."""
    residual, x = ContactParameters(live=LIVE, lower=0.05, upper=0.5, hidden=(3,)), states(12)
    randomise(residual, 0.5)
    context = ResidualDynamics(simulator(), [residual]).contexts(x, actions(x))[0]
    names = [n for n, _ in residual.named_parameters()]

    def total(*weights: Tensor) -> Tensor:
        return torch.func.functional_call(residual, dict(zip(names, weights, strict=True)), (context,))

    assert torch.autograd.gradcheck(total, tuple(p.detach().clone().requires_grad_() for p in residual.parameters()))


def test_contact_that_carries_more_counts_more():
    """The value of two contacts lies between those of each alone, nearer that of the faster one."""
    residual = ContactParameters(live=LIVE, lower=0.05, upper=0.5)
    randomise(residual, 1.0)
    own, seen = torch.tensor(0.15, dtype=torch.float64), torch.tensor([[1.0, 0.2, 0.0], [0.1, 0.9, 0.0]], dtype=torch.float64)

    def value(*weight: float) -> float:
        return residual.value(own, seen, torch.tensor(weight, dtype=torch.float64)).item()

    one, other, both = value(1, 0), value(0, 1), value(1, 0.1)
    assert min(one, other) < both < max(one, other)
    assert abs(both - one) < abs(both - other)


def test_material_of_the_other_geom_counts():
    """Two materials with the same contact have values of their own."""
    residual, x = ContactParameters(live=LIVE, lower=0.05, upper=0.5, materials=[["corner[0-3]"], ["corner[4-7]"]]), states()
    randomise(residual, 1.0)
    context = ResidualDynamics(simulator(), [residual]).contexts(x, actions(x))[0]
    before = residual(context)
    with torch.no_grad():
        residual.network.weights[0][-1] += 1.0
    after = residual(context)
    geoms, on = context.contacts.geoms.amax(-1), residual._seen(context)[1] > 0
    names = context.contacts.names
    second = torch.tensor([n in ("corner4", "corner5", "corner6", "corner7") for n in names])[geoms]
    assert bool(((before != after) == (on & second).any(-1)).all())


def test_members_are_evaluated_at_once():
    """An ensemble gives each member's own step."""
    made = []
    for seed in (0, 1):
        residual = ContactParameters(live=LIVE, lower=0.05, upper=0.5)
        randomise(residual, 1.0, seed)
        made.append(ResidualDynamics(simulator(), [residual]))
    x = states(20)
    both = ensemble(made).step(torch.stack([x, x]), actions(x).expand(2, -1, -1))
    for k, dynamics in enumerate(made):
        torch.testing.assert_close(both[k], dynamics.step(x, actions(x)), rtol=1e-12, atol=1e-12)


def test_it_adds_to_a_contact_force_beside_it():
    """Both see the same contacts, one of them also those with a gap."""
    x = states(20)
    parameters, force = ContactParameters(live=LIVE, lower=0.05, upper=0.5), ContactForce(most=8, friction=1.3)
    randomise(parameters, 1.0)
    dynamics = ResidualDynamics(simulator(), [parameters, force])
    assert all(c.holds for c in dynamics.certificates(x, actions(x)))
    assert bool(torch.isfinite(dynamics.step(x, actions(x))).all())


def test_it_loads_as_it_was_saved(tmp_path):
    """Weights, bounds and the scale of the inputs."""
    residual, x = ContactParameters(live=LIVE, lower=0.05, upper=0.5, materials=[["corner*"]], reach=0.03), states(20)
    plant = simulator()
    dynamics = ResidualDynamics(plant, [residual])
    dynamics.normalise(x, actions(x))
    randomise(residual, 1.0)
    sensor = Sensor(space=plant.space, columns=tuple(Column(name=n, source=n, noise=1.0) for n in plant.space.state_names))
    artifact.save(tmp_path / "cube", artifact.Calibration(model=Model(dynamics=dynamics, sensor=sensor),
                                                          identified=Model(dynamics=ResidualDynamics(plant), sensor=sensor)))
    again = artifact.load(tmp_path / "cube").model.dynamics
    assert torch.equal(again.step(x, actions(x)), dynamics.step(x, actions(x)))


@pytest.mark.parametrize("wrong", [{"lower": 0.5, "upper": 0.5}, {"lower": float("nan"), "upper": 1.0}, {"most": 0}, {"reach": -1.0},
                                   {"live": "damping:free"}, {"live": "friction"}])
def test_arguments_that_make_no_sense_are_refused(wrong):
    """With what was expected and what was received."""
    with pytest.raises(ValueError, match="ContactParameters: expected .* received"):
        ContactParameters(**{"live": LIVE, "lower": 0.05, "upper": 0.5, **wrong})


def test_bounds_that_do_not_fit_the_model_are_refused():
    """The model's own value outside them, or a parameter that the model does not offer."""
    with pytest.raises(ModelError, match="lower <= 0.15 <= upper"):
        ResidualDynamics(simulator(), [ContactParameters(live=LIVE, lower=0.2, upper=0.5)])
    with pytest.raises(ModelError, match="solref:floor.timeconst"):
        ResidualDynamics(simulator(), [ContactParameters(live="solref:floor.timeconst", lower=0.005, upper=0.1)])
