"""The cost of log samples that kernels sum up, against the error through a sensor and against differences."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from uncertainty_problem import NOISE, model, windows

from residual_mbrl.data_cost import DIVERGED, DataCost
from residual_mbrl.drawn_windows import DrawnWindows
from residual_mbrl.effects import Bias
from residual_mbrl.rollouts import rollout_cost
from residual_mbrl.sensors import Column
from residual_mbrl.simulation_error import SimulationError
from residual_mbrl.windows import Windows

COUNTS = torch.tensor([[2.0, 0, 1, 0, 1, 0], [0, 3, 0, 0, 1, 1]])


def gappy() -> Windows:
    """Six windows with missing samples."""
    data = windows().take(torch.arange(6))
    measurements, recorded = data.measurements.clone(), data.recorded.clone()
    measurements[1, 4, 0] = measurements[4, 6:, 1] = torch.nan
    recorded[1, 4, 0] = recorded[4, 6:, 1] = False
    return replace(data, measurements=measurements, recorded=recorded)


def problem(*, direct: bool, every: int = 1) -> SimulationError:
    """A pendulum's weights, friction and first states; a bias of zero is all that sets the sensors apart."""
    start = model()
    columns = [replace(c, effects=() if direct else (Bias(),)) for c in start.sensor.columns]
    columns.append(Column(name="unused", source=columns[0].name, noise=float("inf")))
    data = gappy()
    both = (torch.cat([x, x[..., :1]], -1) for x in (data.measurements, data.recorded))
    measurements, recorded = both
    free = start.dynamics.baseline.parameters.free(["viscous"])
    return SimulationError(dynamics=start.dynamics, sensor=replace(start.sensor, columns=tuple(columns)), free=free, weights=True,
                           windows=replace(data, measurements=measurements, recorded=recorded), every=every, start_std=NOISE)


@pytest.mark.parametrize("loss", ["linear", "soft_l1", "cauchy"])
@pytest.mark.parametrize("drawn", [True, False])
@pytest.mark.parametrize("every", [1, 3])
def test_fused_error_is_that_through_the_sensor(loss, drawn, every):
    """Values, and gradients by weights, parameters and first states, of two copies."""
    found = []
    for direct in (True, False):
        error = problem(direct=direct, every=every)
        assert error.sensor.is_direct == direct
        generator = torch.Generator().manual_seed(3)
        z = (torch.tensor(error.initial()) + 0.2 * torch.randn(2, error.length, generator=generator, dtype=torch.float64)).requires_grad_()
        cost = error.costs(loss, 1.5, DrawnWindows.of(error.windows, COUNTS) if drawn else None)(z)
        found.append((cost.detach(), *torch.autograd.grad(cost.sum(), [z])))
    (a, by_a), (b, by_b) = found
    assert torch.allclose(a, b, rtol=1e-11)
    assert (by_a - by_b).abs().max() < 1e-10 * by_b.abs().max()


def test_gradient_is_that_of_differences():
    """Along a random direction of all unknowns."""
    error = problem(direct=True)
    cost = error.costs("soft_l1", 1.0, DrawnWindows.of(error.windows, COUNTS))
    z = torch.tensor(error.initial()).repeat(2, 1).requires_grad_()
    along = torch.randn(z.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(cost(z).sum(), [z])
    with torch.no_grad():
        slope = (cost(z + 1e-6 * along) - cost(z - 1e-6 * along)).sum() / 2e-6
    assert float((gradient * along).sum()) == pytest.approx(float(slope), rel=1e-6)


@pytest.mark.parametrize("backend", ["torch", "fused"])
def test_simulation_that_is_not_finite_counts_as_diverged(backend):
    """A state without a bound costs what an error of so many standard deviations costs, where a sample counts."""
    dynamics = model().dynamics.with_residuals([])
    x, u = torch.tensor([[0.3, 1e200]], dtype=torch.float64), torch.zeros(1, 2, 1, dtype=torch.float64)
    scale = torch.tensor([[[1.0, 0.0], [0.0, 0.0], [0.0, 2.0]]], dtype=torch.float64)
    cost = DataCost(places=(0, 1), samples=torch.full((1, 3, 2), torch.nan, dtype=torch.float64).masked_fill(scale > 0, 0.0), scale=scale,
                    weight=torch.tensor([3.0], dtype=torch.float64), loss="linear", f_scale=1.0)
    found = rollout_cost(dynamics, x, u, cost, backend=backend)
    assert float(found) == pytest.approx(3 * 0.5 * (0.3**2 + DIVERGED**2))
