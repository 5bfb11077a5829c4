"""Building blocks of the kernels."""

import numpy as np
import pytest
import warp as wp

from residual_mbrl.kernels.lanes import lane_count, tanh_of, vector
from residual_mbrl.kernels.mlp import lanes, lay_out, units_wide
from residual_mbrl.kernels.rollout import OPTIONS


@pytest.mark.parametrize("length", [8, 16])
def test_tanh_is_numpys(length):
    """Within 4e-7 from the smallest arguments to the largest, infinity included."""
    v, tanh = vector(length), tanh_of(length)

    @wp.kernel(**OPTIONS)
    def apply(x: wp.array(dtype=v), y: wp.array(dtype=v)):
        y[wp.tid()] = tanh(x[wp.tid()])

    x = np.concatenate([np.linspace(-12, 12, 4000), 10.0 ** np.linspace(-30, 30, 96)]).astype(np.float32).reshape(-1, length)
    x[-1, -1] = np.inf
    y = wp.zeros(len(x), dtype=v, device="cpu")
    wp.launch(apply, dim=len(x), inputs=[wp.array(x, dtype=v, device="cpu"), y], device="cpu")
    exact, found = np.tanh(x.astype(np.float64)), y.numpy()
    assert np.max(np.abs(found - exact) / np.maximum(np.abs(exact), 1e-30)) < 4e-7


def test_lanes_are_those_of_a_register():
    """Eight or sixteen."""
    assert lane_count() in (8, 16)


@pytest.mark.parametrize("schedule", [lanes(8), lanes(16), units_wide()], ids=["8 worlds", "16 worlds", "units"])
@pytest.mark.parametrize("sizes", [[(5, 64, 64, 2)], [(1, 1)], [(3, 20, 7), (9, 33, 5, 1)]])
def test_every_weight_is_packed_and_gathered(schedule, sizes):
    """Each flat weight stands in the packed ones, matrices twice (for both directions), and has a gradient entry of its own."""
    network = lay_out(sizes, schedule)
    matrices = sum(n * m for s in sizes for n, m in zip(s[:-1], s[1:], strict=True))
    biases = sum(m for s in sizes for m in s[1:])
    used = network.packing[network.packing >= 0]
    assert np.array_equal(np.unique(used), np.arange(matrices + biases))
    assert len(used) == 2 * matrices + biases
    assert len(network.packing) % schedule.per_weight == 0
    assert len(np.unique(network.gathering)) == len(network.gathering) == matrices + biases
    assert network.gathering.max() < network.gradients * (16 if schedule.name == "units" else 1)
