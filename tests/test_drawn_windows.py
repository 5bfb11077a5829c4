"""Windows of each copy's own: what is left out counts nowhere, and what is drawn counts as it does among all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from uncertainty_problem import model, windows

from residual_mbrl import robust
from residual_mbrl.drawn_windows import DrawnWindows
from residual_mbrl.effects import Smoothing
from residual_mbrl.sensors import Column, Sensor
from residual_mbrl.simulation_error import SimulationError
from residual_mbrl.uncertainty.ensembles import bootstrap_counts


@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("starts", [False, True])
def test_cost_is_that_of_all_windows_by_their_counts(filtered: bool, starts: bool) -> None:
    """And so is its gradient by parameters, weights and first states; columns that need samples before a window look for their start."""
    known, data = model(), windows()
    sensor = known.sensor
    if filtered:
        columns = [Column(name=c.name, source=c.source, noise=c.noise, effects=(Smoothing(2e-5),)) for c in sensor.columns]
        sensor = Sensor(space=sensor.space, columns=tuple(columns))
    recorded = data.recorded & (data.time[..., None] < 1.5)
    error = SimulationError(dynamics=known.dynamics, sensor=sensor, windows=replace(data, recorded=recorded),
                            free=known.dynamics.baseline.parameters.free(["viscous"]), weights=True,
                            start_std=[0.02, 0.2] if starts else None)
    counts = bootstrap_counts(data, 3, seed=1)
    moved = 0.1 * np.random.default_rng(0).standard_normal((3, error.length))
    z = torch.tensor(error.initial() + moved, requires_grad=True)
    drawn = DrawnWindows.of(error.windows, counts)
    assert drawn.rows.shape[1] < len(data)
    rows, every = error.rows(), error.residuals(z)
    expected = robust.torch_cost(every[:, :rows], "soft_l1", 1.0, counts[:, torch.from_numpy(error.owner())])
    expected = expected + 0.5 * every[:, rows:].square().sum(-1)
    found = error.cost(z, "soft_l1", 1.0, drawn)
    assert torch.allclose(found, expected, rtol=1e-9)
    by = [torch.autograd.grad(c.sum(), z, retain_graph=True)[0] for c in (found, expected)]
    assert torch.allclose(*by, rtol=1e-6, atol=1e-6 * float(by[1].abs().max()))


def test_counts_of_other_windows_are_refused() -> None:
    """One count a window and copy, and something to train on."""
    with pytest.raises(ValueError, match="expected counts"):
        DrawnWindows.of(windows(), torch.ones(2, 3))
    with pytest.raises(ValueError, match="not all zero"):
        DrawnWindows.of(windows(), torch.zeros(2, len(windows())))
