"""The synthetic-truth self-check finds what it planted, and says so when the data cannot tell."""

import pytest
import torch

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.effects import Quantisation
from residual_mbrl.identification import IdentifyOptions, identify
from residual_mbrl.model import Model
from residual_mbrl.physics.pendulum import PARAMETERS, Pendulum
from residual_mbrl.rollouts import rollout
from residual_mbrl.self_check import recover, synthetic_windows
from residual_mbrl.sensors import Column, Sensor
from residual_mbrl.windows import Windows

OPTIONS = IdentifyOptions(candidates=8, starts=1, iterations=50)


def make_windows(sensor: Sensor, plant: ResidualDynamics, seed: int = 0) -> Windows:
    """Simulate four driven windows of 150 steps."""
    generator = torch.Generator().manual_seed(seed)
    actions = 4 * torch.randn(4, 150, 1, dtype=torch.float64, generator=generator)
    start = torch.tensor([[0.5, 0.0], [-1.0, 0.3], [1.5, 0.0], [0.0, 1.0]], dtype=torch.float64)
    states = rollout(plant, start, actions)
    time = (torch.arange(151, dtype=torch.float64) * plant.dt).expand(4, -1)
    return Windows(actions=actions, lead=actions[:, :0], trail=actions[:, :0], measurements=sensor.measure(states, time, plant.dt),
                   recorded=torch.ones(4, 151, 2, dtype=torch.bool), time=time, log=torch.arange(4),
                   start=torch.zeros(4, dtype=torch.long), names=tuple("abcd"), groups=tuple("abcd"), dt=plant.dt)


def make_sensor(baseline: Pendulum, step: float = 0.0) -> Sensor:
    """Make a sensor of angle and rate, the angle rounded where a step is given."""
    effects = (Quantisation(step=step),) if step else ()
    return Sensor(space=baseline.space, columns=(Column(name="q", source="angle", noise=2e-3, effects=effects),
                                                 Column(name="v", source="rate", noise=1e-2)))


@pytest.fixture
def baseline() -> Pendulum:
    """Return a pendulum with four free parameters."""
    return Pendulum(PARAMETERS.replaced(inertia={"free": False}, viscous={"upper": 2.0}, coulomb={"upper": 2.0}))


def test_recovers_what_was_identified(baseline: Pendulum) -> None:
    """Every parameter of an identifiable problem is found again within two hundredths of its scale."""
    plant = ResidualDynamics(baseline, values={"gravity_moment": 11.0, "viscous": 0.3, "coulomb": 0.2, "torque_offset": 0.1})
    sensor = make_sensor(baseline)
    windows = make_windows(sensor, plant)
    found = identify(ResidualDynamics(baseline), sensor, windows, OPTIONS)
    recovered = recover(found, sensor, windows, OPTIONS)
    assert {r.name for r in recovered} == {"gravity_moment", "viscous", "coulomb", "torque_offset"}
    assert max(r.error for r in recovered) < 0.02


def test_shows_what_the_data_cannot_tell(baseline: Pendulum) -> None:
    """Undriven windows leave a common factor of inertia, moment and friction open, and the check does not find it again."""
    free = Pendulum(baseline.parameters.replaced(inertia={"free": True, "lower": 0.2, "upper": 5.0}))
    plant = ResidualDynamics(free, values={"inertia": 2.0, "gravity_moment": 22.0, "viscous": 0.6, "coulomb": 0.4})
    sensor = make_sensor(free)
    windows = make_windows(sensor, plant)
    still = Windows(**{**windows.__dict__, "actions": torch.zeros_like(windows.actions)})
    truth = Model(dynamics=plant, sensor=sensor)
    still = synthetic_windows(truth, still)
    found = identify(ResidualDynamics(free), sensor, still, OPTIONS)
    assert found.unidentifiable


def test_synthetic_windows_have_the_sensors_noise_and_rounding(baseline: Pendulum) -> None:
    """Measurements scatter about the prediction by the noise, and a rounded column lies on its steps."""
    plant = ResidualDynamics(baseline)
    windows = make_windows(make_sensor(baseline), plant)
    model = Model(dynamics=plant, sensor=make_sensor(baseline))
    scatter = (synthetic_windows(model, windows).measurements - model.predict(windows).measurements)[:, 1:]
    assert scatter[..., 0].std().item() == pytest.approx(2e-3, rel=0.1)
    assert scatter[..., 1].std().item() == pytest.approx(1e-2, rel=0.1)
    rounded = synthetic_windows(Model(dynamics=plant, sensor=make_sensor(baseline, step=0.01)), windows).measurements[..., 0]
    assert (rounded / 0.01 - (rounded / 0.01).round()).abs().max().item() < 1e-9
