"""The friction curve is read off the model, and absent where there is none to read."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest
from estimation_problem import pendulum, pendulum_logs, sensor, servo, servo_logs

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.friction_figure import learned_friction
from residual_mbrl.model import Model
from residual_mbrl.physics.double_pendulum import DoublePendulum
from residual_mbrl.physics.free_body import FreeBody
from residual_mbrl.residuals import DryFriction, Feature
from residual_mbrl.sensors import Column, Sensor


@pytest.mark.parametrize("corrected", [False, True])
def test_a_plant_with_dry_friction_has_a_curve(corrected):
    """One figure with a caption, for a constant limit as for one that depends on the load."""
    residual = [DryFriction(nv=1, features=[Feature(source="rate", transform="abs")], bound=0.1)] if corrected else []
    baseline = servo("viscous")
    seen, windows = servo_logs(baseline, count=1, steps=20)
    loaded = learned_friction(Model(dynamics=ResidualDynamics(baseline, residual), sensor=seen), windows)
    constant = learned_friction(Model(dynamics=ResidualDynamics(pendulum(coulomb=0.3), residual), sensor=sensor()), pendulum_logs(count=1))
    for figures in (loaded, constant):
        assert list(figures) == ["friction"]
        figure, caption = figures["friction"]
        assert "Dry-friction limit over velocity" in caption
        assert figure.axes
        assert any(len(line.get_xdata()) > 10 for line in figure.axes[0].get_lines())
        plt.close(figure)


def test_other_plants_have_none():
    """A free body has no friction, and two joints have no one curve."""
    windows = pendulum_logs(count=1, steps=5)
    free = FreeBody(pendulum().space, dt=pendulum().dt)
    assert learned_friction(Model(dynamics=ResidualDynamics(free), sensor=sensor()), windows) == {}
    double = DoublePendulum()
    seen = Sensor(space=double.space, columns=tuple(Column(name=n, source=n, noise=1.0) for n in double.space.state_names))
    assert learned_friction(Model(dynamics=ResidualDynamics(double), sensor=seen), windows) == {}
