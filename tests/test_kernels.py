"""Building blocks of the kernels: elementary functions on registers, and how networks are laid over them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from residual_mbrl.kernels.lanes import lane_count
from residual_mbrl.kernels.launch import lanes, pairs, units_wide
from residual_mbrl.kernels.mlp import TABLE, lay_out
from residual_mbrl.kernels.native import REALS, Kernel, lane_math

UNARY = {"sin": np.sin, "cos": np.cos, "tanh": np.tanh, "exp": np.exp, "tan": np.tan, "log": np.log, "sqrt": np.sqrt, "abs": np.abs,
         "sign": np.sign, "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan}
BINARY = {"min": np.minimum, "max": np.maximum, "pow": np.power, "atan2": np.arctan2}
WIDTHS = [("float", 4), ("float", 8), ("float", 16), ("double", 4), ("double", 8)]
NUMPY = {"float": np.float32, "double": np.float64}


def apply(real, width, x, y):
    """What every function makes of columns x and y, by name."""
    calls = [f"M::{f}_(v)" for f in UNARY] + [f"M::{f}_(v, w)" for f in BINARY]
    kernel = Kernel(f"""
    struct M {{ {lane_math("T", real, width)} }};
    const {real}* x = (const {real}*)a[0]; const {real}* y = (const {real}*)a[1]; {real}* out = ({real}*)a[2];
    for (long i = 0; i < a[3]; i += {width}) {{
        M::T v, w;
        for (int k = 0; k < {width}; ++k) {{ v[k] = x[i + k]; w[k] = y[i + k]; }}
        const M::T found[] = {{ {", ".join(calls)} }};
        for (int f = 0; f < {len(calls)}; ++f)
            for (int k = 0; k < {width}; ++k) out[f * a[3] + i + k] = found[f][k];
    }}
    """, 4)
    x, y = (np.ascontiguousarray(v, NUMPY[real]) for v in (x, y))
    out = np.zeros((len(calls), len(x)), NUMPY[real])
    kernel.table()([x.ctypes.data, y.ctypes.data, out.ctypes.data, len(x)])
    return dict(zip([*UNARY, *BINARY], out, strict=True))


@pytest.fixture(scope="module", params=WIDTHS, ids=lambda w: f"{w[1]} of {w[0]}")
def everywhere(request):
    """Every function of ordinary numbers, then of the largest, the smallest, infinity and what is no number, side by side in a register."""
    real, width = request.param
    rng = np.random.default_rng(0)
    usual = np.concatenate([np.linspace(-12, 12, 4000), np.linspace(-1, 1, 480), rng.uniform(-87, 88, 480), rng.uniform(-8000, 8000, 480),
                            10.0 ** np.linspace(-30, 4, 96)])
    odd = np.array([np.inf, -np.inf, np.nan, 0.0, 1e6, -3e30, 1e-40, -88.0, 88.7, 200.0, -200.0, 1.0, 8192.5, -1e9, 3e9, -0.5])
    x = np.concatenate([usual, odd]).astype(NUMPY[real])
    y = np.concatenate([rng.uniform(-3, 3, len(usual)), np.roll(odd, 3)]).astype(NUMPY[real])
    with np.errstate(all="ignore"):
        exact = {n: f(x.astype(np.float64)) for n, f in UNARY.items()}
        exact.update({n: f(x.astype(np.float64), y.astype(np.float64)) for n, f in BINARY.items()})
    return real, x, y, exact, apply(real, width, x, y), len(usual)


@pytest.mark.parametrize("name", [*UNARY, *BINARY])
def test_function_is_numpys(everywhere, name):
    """To rounding, over everything an ordinary model meets; a sine to rounding of one."""
    real, _, _, exact, found, usual = everywhere
    expected, ours, limits = exact[name][:usual], found[name][:usual].astype(np.float64), np.finfo(NUMPY[real])
    known = (np.abs(expected) < limits.max) & (np.abs(expected) > limits.tiny)
    size = np.ones_like(expected) if name in ("sin", "cos") else np.abs(expected)
    error = np.abs(ours[known] - expected[known]) / size[known]
    assert known.sum() > 500
    assert np.max(error) < (4e-7 if real == "float" else 1e-15)
    assert np.array_equal(np.isnan(ours), np.isnan(expected))


@pytest.mark.parametrize("name", [n for n in (*UNARY, *BINARY) if n not in ("min", "max", "sign")])
def test_function_of_the_largest_and_of_none_is_numpys(everywhere, name):
    """Infinity, what is no number, beyond a polynomial's range: each in a register with ordinary neighbours, which keep their own."""
    real, _, _, exact, found, usual = everywhere
    with np.errstate(over="ignore"):
        expected, ours = exact[name][usual:].astype(NUMPY[real]), found[name][usual:]
    tiny = np.finfo(NUMPY[real]).tiny
    assert np.allclose(ours, expected, rtol=1e-6, atol=2e-7 if name in ("sin", "cos") else tiny, equal_nan=True)


def test_a_comparison_with_no_number_takes_the_second(everywhere):
    """As C++ does it; where torch would spread a NaN through min and max, the state it came from still holds it."""
    _, x, y, _, found, usual = everywhere
    nan = np.isnan(x[usual:])
    assert np.array_equal(found["min"][usual:][nan], y[usual:][nan])
    assert np.array_equal(found["max"][usual:][nan], y[usual:][nan])
    assert np.array_equal(found["sign"][usual:][nan], [0.0])


def test_lanes_are_those_of_a_register():
    """32 or 64 bytes."""
    assert lane_count() in (8, 16)
    assert lane_count("double") == lane_count() // 2


SCHEDULES = [lanes("float", 8), lanes("float", 16), lanes("double", 4), pairs("float"), units_wide("float"), units_wide("double")]
SIZES = st.lists(st.lists(st.integers(1, 40), min_size=2, max_size=4), min_size=1, max_size=3)


def flat_weights(sizes):
    """Numbers of weights, and the weights as their own places: matrices and biases, network by network."""
    place, layers = 0, []
    for network in sizes:
        for n, m in zip(network[:-1], network[1:], strict=True):
            layers.append((place + np.arange(n * m).reshape(n, m), place + n * m + np.arange(m)))
            place += n * m + m
    return place, layers


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s.name} {s.lanes} {s.real}")
@settings(max_examples=25)
@given(sizes=SIZES)
def test_every_weight_is_packed_and_gathered(schedule, sizes):
    """Each flat weight stands where a product looks for it, in both directions, and has a gradient entry of its own."""
    network, (count, layers) = lay_out(sizes, schedule), flat_weights(sizes)
    row, columns = schedule.lanes if schedule.wide else 8, {name: network.layers[:, i] for i, name in enumerate(TABLE)}
    for k, (matrix, bias) in enumerate(layers):
        for part, of, inputs in (("forward", matrix, matrix.shape[0]), ("reverse", matrix.T, matrix.shape[1])):
            padded = -(-inputs // 8) * 8 if schedule.wide else inputs
            i, j = np.meshgrid(np.arange(of.shape[0]), np.arange(of.shape[1]), indexing="ij")
            at = columns[part][k] + j // row * padded * row + i * row + j % row
            assert np.array_equal(network.packing[at], of)
        assert np.array_equal(network.packing[columns["bias"][k] + np.arange(len(bias))], bias)
    matrices = sum(matrix.size for matrix, _ in layers)
    assert (network.packing >= 0).sum() == count + matrices
    assert len(np.unique(network.gathering)) == len(network.gathering) == count
    assert network.gathering.max() < network.gradients


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s.name} {s.lanes} {s.real}")
@settings(max_examples=25)
@given(sizes=SIZES)
def test_nothing_overlaps(schedule, sizes):
    """Layers have slots of their own, on whole registers; packed parts start on cache lines, which vector loads need."""
    network = lay_out(sizes, schedule)
    starts = [(start, size) for row in network.layers for start, size in ((row[2], row[0]), (row[3], row[1]))]
    segments = sorted(set(starts))
    assert all(a + n <= b for (a, n), (b, _) in zip(segments[:-1], segments[1:], strict=True))
    assert all(start % schedule.pad == 0 for start, _ in segments)
    assert segments[-1][0] + segments[-1][1] <= network.slots
    packed = network.layers[:, [TABLE.index(n) for n in ("forward", "bias", "reverse")]]
    assert not (packed * REALS[schedule.real] % 64).any()
    assert len(network.inputs) == sum(s[0] for s in sizes)
    assert len(network.outputs) == len(network.squashed) == len(network.spans) == sum(s[-1] for s in sizes)
