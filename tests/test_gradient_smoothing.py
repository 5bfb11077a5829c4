"""Gradients that are means across the switches of contacts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mujoco_problems import ARM, DELAYED

from residual_mbrl import gradient_audit
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.errors import ModelError
from residual_mbrl.physics.gradient_smoothing import SmoothedAdjoint, Smoothing
from residual_mbrl.physics.mujoco_adjoint import StepAdjoint
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator
from residual_mbrl.physics.numeric_step import Inputs

BALL = """<mujoco><option timestep="0.002" tolerance="0" iterations="100"/><worldbody><geom name="floor" type="plane" size="5 5 .1"/>
<body pos="0 0 .1"><joint name="height" type="slide" axis="0 0 1"/><geom name="ball" size=".1" mass="1"/></body></worldbody></mujoco>"""
SMOOTHING = Smoothing(position=1e-3, velocity=0.0, samples=400)


def heights(*values: float) -> torch.Tensor:
    """States of the ball at rest, by its distance from the floor."""
    return torch.tensor([[x, 0.0] for x in values], dtype=torch.float64)


def test_a_world_far_from_switches_keeps_its_gradient() -> None:
    """Bit for bit, deep in the floor and high above it; the one next to it does not."""
    plain, smooth = MujocoSimulator(BALL), MujocoSimulator(BALL, smoothing=SMOOTHING)
    state, none = heights(-0.02, 0.02, 1e-4), torch.zeros(3, 0, dtype=torch.float64)
    one, other = (s.jacobian(state, none).state for s in (plain, smooth))
    assert smooth.smoothed(state, none).tolist() == [False, False, True]
    assert not plain.smoothed(state, none).any()
    assert torch.equal(one[:2], other[:2]) and not torch.equal(one[2], other[2])


def test_it_is_the_slope_of_the_mean() -> None:
    """At the floor, where the force jumps, the mean next velocity over moved heights has this slope, to the error of 400 samples."""
    smooth, none = MujocoSimulator(BALL, smoothing=SMOOTHING), torch.zeros(20_000, 0, dtype=torch.float64)
    rng = np.random.default_rng(3)
    moves = torch.from_numpy(1e-3 * rng.standard_normal(20_000))
    means = [smooth.step(torch.stack([x + moves, 0 * moves], 1), none)[:, 1].mean() for x in (2e-4, -2e-4)]
    slope = float(means[0] - means[1]) / 4e-4
    found = smooth.jacobian(heights(0.0), none[:1]).state[0, 1, 0]
    assert float(found) == pytest.approx(slope, rel=0.15)
    assert abs(slope) > 1.0


def test_product_is_that_of_the_jacobian() -> None:
    """In reverse mode as in the Jacobian, with gradients by parameters of contacts."""
    smooth = MujocoSimulator(BALL, ["solref:floor.timeconst", "mass:body1"], smoothing=SMOOTHING)
    state, none = heights(1e-4, -0.01).requires_grad_(), torch.zeros(2, 0, dtype=torch.float64)
    values = {n: torch.full((2,), smooth.parameters[n].nominal, dtype=torch.float64, requires_grad=True) for n in smooth.parameters.names}
    by = torch.autograd.grad(smooth.step(state, none, None, values)[:, 1].sum(), [state, *values.values()])
    jacobian = smooth.jacobian(state.detach(), none, None, {n: v.detach() for n, v in values.items()})
    torch.testing.assert_close(by[0], jacobian.state[:, 1])
    for found, name in zip(by[1:], values, strict=True):
        torch.testing.assert_close(found, jacobian.parameters[name][:, 1])


def test_audit_says_where() -> None:
    """A ball that falls onto the floor: a few steps are smoothed, and the audit names the first; what it judges is right."""
    dynamics = ResidualDynamics(MujocoSimulator(BALL, smoothing=Smoothing(position=1e-3)))
    audit = gradient_audit(dynamics, heights(0.01)[0], torch.zeros(60, 0, dtype=torch.float64))
    steps = audit.smoothed.nonzero().flatten().tolist()
    states = dynamics.baseline.rollout(heights(0.01)[0], torch.zeros(60, 0, dtype=torch.float64))
    assert audit.ok and 0 < len(steps) < 30
    assert abs(float(states[steps[0], 0])) < 0.005
    assert f"gradient smoothed across a switch in {len(steps)} of 60 steps, first in step {steps[0]}" in str(audit)
    assert dynamics.baseline.gradient_method("state") == "exact adjoint, smoothed at switches"
    assert not gradient_audit(ResidualDynamics(MujocoSimulator(BALL)), heights(0.01)[0], torch.zeros(5, 0).double()).smoothed.any()


def test_substeps_count() -> None:
    """A switch in any of the engine's steps is one."""
    simulator = MujocoSimulator(BALL, dt=0.01, smoothing=Smoothing(position=1e-4, velocity=0.0))
    state = torch.tensor([[0.00624, -1.0], [0.05, -1.0]], dtype=torch.float64)
    assert simulator.smoothed(state, torch.zeros(2, 0, dtype=torch.float64)).tolist() == [True, False]


@pytest.mark.usefixtures("unchecked")
def test_bad_use_is_refused() -> None:
    """Numbers that mean nothing, and models without exact gradients or a look at rows."""
    for wrong in ({"samples": 3}, {"position": -1.0}, {"samples": 0}):
        with pytest.raises(ValueError, match="even number of samples"):
            Smoothing(**wrong)
    with pytest.raises(ModelError, match="delays"):
        MujocoSimulator(DELAYED, smoothing=Smoothing())
    with pytest.raises(ModelError, match="expected Euler, or implicitfast"):
        MujocoSimulator(ARM.replace('timestep="0.002"', 'timestep="0.002" integrator="RK4"'), smoothing=Smoothing())
    model = MujocoSimulator(BALL).model
    adjoint = SmoothedAdjoint(StepAdjoint(model), MujocoSimulator(BALL).advance, MujocoSimulator(BALL).space, Smoothing())
    assert len(adjoint.find(Inputs(state=np.full((1, 2), np.nan), action=np.zeros((1, 0))))) == 0
