"""Every preset fits together: baseline, sensor, candidate residuals and options."""

from __future__ import annotations

import math

import pytest
import torch

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.presets import PRESETS
from residual_mbrl.rollouts import rollout

every = pytest.mark.parametrize("preset", PRESETS.values(), ids=list(PRESETS))


@every
def test_candidates_fit_the_baseline(preset):
    """Each candidate joins the baseline, steps finitely from rest, and repeats by seed."""
    baseline = preset.baseline()
    first, again = preset.candidates(baseline, 3), preset.candidates(baseline, 3)
    assert len(first) >= 2
    for name, residuals in first.items():
        dynamics, twin = ResidualDynamics(baseline, residuals), ResidualDynamics(baseline, again[name])
        rest, still = torch.zeros(baseline.space.nx, dtype=torch.float64), torch.zeros(baseline.space.nu, dtype=torch.float64)
        state = dynamics.initial_state(rest, still)
        with torch.no_grad():
            states = rollout(dynamics, state, torch.zeros(5, baseline.space.nu, dtype=torch.float64))
        assert torch.isfinite(states).all()
        assert all(torch.equal(a, b) for a, b in zip(dynamics.parameters(), twin.parameters(), strict=True))


@every
def test_the_sensor_shows_every_state(preset):
    """Every state entry has a column for its start, and some column has finite noise to fit."""
    baseline = preset.baseline()
    sensor = preset.sensor(baseline)
    assert all(sensor.place(n) is not None for n in baseline.space.state_names)
    assert any(math.isfinite(x) for x in sensor.noise)


@every
def test_something_is_free(preset):
    """There is something to identify, within bounds."""
    free = [p for p in preset.baseline().parameters if p.free]
    assert free
    assert all(p.lower <= p.nominal <= p.upper for p in free)


@every
def test_disturbances_act_on_commands(preset):
    """What is estimated with the residual names commands of the plant."""
    assert set(preset.disturbance) <= set(preset.baseline().space.action)


def test_presets_are_filed_under_their_names():
    """The command line looks them up by name."""
    assert all(name == preset.name for name, preset in PRESETS.items())
    assert {"servo", "drive", "pendulum", "double_pendulum"} <= set(PRESETS)
