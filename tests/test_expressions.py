"""Expressions and their derivatives against torch and finite differences, and what running a Warp function on symbols makes of it."""

from __future__ import annotations

import math

import pytest
import torch
import warp as wp
from hypothesis import given, settings
from hypothesis import strategies as st

from residual_mbrl.kernels.expressions import BINARY, LOGICAL, UNARY, Graph, Scalar, Vector, gradients, write
from residual_mbrl.kernels.tracing import TraceError, symbols, trace

WITHIN = {"asin": 0.9, "acos": 0.9}
"""Largest argument of functions that have one."""
POSITIVE = ("log", "sqrt", "pow")


def value(graph, scalar, inputs):
    """Evaluate with inputs by name."""
    node = graph.nodes[scalar.place]
    if node[0] == "constant":
        return node[1]
    if node[0] == "input":
        return inputs[node[1]][node[2]]
    arguments = [value(graph, Scalar(graph, place), inputs) for place in node[1:]]
    if node[0] == "select":
        return arguments[1] if arguments[0] else arguments[2]
    return {**UNARY, **BINARY}[node[0]](*arguments)


def operation(name, x):
    """An operation of the graph on one or two inputs."""
    return x[0].graph.apply(name, *(x[:1] if name in UNARY else x[:2]).entries)


@pytest.mark.parametrize("name", [n for n in (*UNARY, *BINARY) if n not in LOGICAL])
@given(a=st.floats(0.05, 2.0), b=st.floats(0.05, 2.0), signs=st.tuples(st.sampled_from([-1, 1]), st.sampled_from([-1, 1])))
def test_derivative_is_that_of_finite_differences(name, a, b, signs):
    """Of every operation, away from its kinks."""
    if name not in POSITIVE:
        a, b = signs[0] * min(a, WITHIN.get(name, a)), signs[1] * b
    if name in ("min", "max") and abs(a - b) < 1e-4:
        b += 1e-3
    graph = Graph()
    x, g = graph.inputs("x", 2), graph.inputs("g", 1)
    slopes = gradients(graph, [operation(name, x)], [g[0]], x.entries)
    h = 1e-6
    for i, slope in enumerate(slopes):
        step = (h if i == 0 else 0.0, h if i == 1 else 0.0)
        ends = [value(graph, operation(name, x), {"x": (a + s * step[0], b + s * step[1])}) for s in (1, -1)]
        found = value(graph, slope, {"x": (a, b), "g": (1.7,)})
        assert found == pytest.approx(1.7 * (ends[0] - ends[1]) / (2 * h), rel=1e-5, abs=1e-6)


SMOOTH = {"sin": torch.sin, "cos": torch.cos, "tanh": torch.tanh, "atan": torch.atan, "neg": torch.neg, "abs": torch.abs}
PAIRS = {"add": torch.add, "sub": torch.sub, "mul": torch.mul, "min": torch.minimum, "max": torch.maximum}
TREES = st.recursive(
    st.one_of(st.integers(0, 2), st.floats(-2, 2)),
    lambda inner: st.one_of(st.tuples(st.sampled_from(sorted(SMOOTH)), inner), st.tuples(st.sampled_from(sorted(PAIRS)), inner, inner),
                            st.tuples(st.just("select"), inner, inner, inner)), max_leaves=12)


def built(tree, graph, x):
    if isinstance(tree, tuple):
        parts = [built(t, graph, x) for t in tree[1:]]
        return graph.apply("select", parts[0] < 0.25, *parts[1:]) if tree[0] == "select" else graph.apply(tree[0], *parts)
    return x[tree] if isinstance(tree, int) else graph.constant(tree)


def in_torch(tree, x):
    if isinstance(tree, tuple):
        parts = [in_torch(t, x) for t in tree[1:]]
        return torch.where(parts[0] < 0.25, *parts[1:]) if tree[0] == "select" else {**SMOOTH, **PAIRS}[tree[0]](*parts)
    return x[tree] if isinstance(tree, int) else torch.tensor(tree, dtype=torch.float64)


@settings(max_examples=300)
@given(tree=TREES, point=st.tuples(*[st.floats(-2, 2)] * 3))
def test_expression_is_that_of_torch(tree, point):
    """Value and gradient of any composition, folded constants and choices included."""
    x = torch.tensor(point, dtype=torch.float64, requires_grad=True)
    graph = Graph()
    inputs = graph.inputs("x", 3)
    ours = built(tree, graph, inputs)
    exact = in_torch(tree, x)
    assert value(graph, ours, {"x": point}) == pytest.approx(exact.item(), rel=1e-9, abs=1e-9)
    if not exact.requires_grad or _ties(tree, x.detach()):
        return  # torch divides the slope of a tie between both sides
    expected = torch.autograd.grad(exact, x, allow_unused=True)[0]
    slopes = [value(graph, s, {"x": point}) for s in gradients(graph, [ours], [graph.constant(1.0)], inputs.entries)]
    assert slopes == pytest.approx((torch.zeros(3) if expected is None else expected).tolist(), rel=1e-9, abs=1e-9)


def _ties(tree, x):
    if not isinstance(tree, tuple):
        return False
    equal = tree[0] in ("min", "max") and in_torch(tree[1], x).item() == in_torch(tree[2], x).item()
    return equal or any(_ties(t, x) for t in tree[1:])


def test_what_is_known_is_folded():
    """Nothing is left to the kernel that is known before it, and equal operations are one."""
    graph = Graph()
    x, y = graph.inputs("x", 2)
    for found in (x + 0.0, 0.0 + x, x - 0.0, x * 1.0, 1.0 * x, x / 1.0, +x, x**1):
        assert found.place == x.place
    for found, known in ((x * 0.0, 0.0), (0.0 / x, 0.0), (graph.constant(2.0) * 3.0, 6.0), (graph.apply("sin", 0.5), math.sin(0.5)),
                         (graph.apply("lt", 1.0, 2.0), 1.0)):
        assert found.value == known
    assert (x * y + x * y).place == (x * y + x * y).place
    assert graph.apply("select", 1.0, x, y).place == graph.apply("select", x < y, x, x).place == x.place
    assert len(graph.nodes) == len({*graph.nodes})


def test_what_has_no_value_is_left_to_the_run():
    """A division by zero is no error of the build: it is infinite where it is computed."""
    graph = Graph()
    for found in (graph.constant(1.0) / 0.0, graph.constant(0.0) / 0.0, graph.apply("log", -1.0), graph.apply("exp", 1e4)):
        assert found.value is None
        assert f"t{found.place}" in write({"out": found})


def test_kinks_have_the_slopes_of_torch():
    """An absolute value has none at zero; a minimum of equals passes to its first."""
    graph = Graph()
    x = graph.inputs("x", 2)
    one = graph.constant(1.0)
    at_zero = gradients(graph, [graph.apply("abs", x[0])], [one], x.entries)
    tie = gradients(graph, [graph.apply("min", x[0], x[1])], [one], x.entries)
    assert [value(graph, s, {"x": (0.0, 0.0)}) for s in at_zero] == [0.0, 0.0]
    assert [value(graph, s, {"x": (2.0, 2.0)}) for s in tie] == [1.0, 0.0]


def test_text_holds_what_is_needed():
    """Operations that no output depends on are not written; constants of all worlds are read as one number."""
    graph = Graph()
    x, c = graph.inputs("x", 1), graph.inputs("c", 1)
    _ = graph.apply("sin", x[0])
    text = write({"out[0]": x[0] * c[0]}, constants=("c",))
    assert "sin" not in text
    assert "(T)(c[0])" in text
    assert text.splitlines()[-1].startswith("out[0] = t")


V2 = wp.types.vector(length=2, dtype=wp.float32)


@wp.func
def inner(x: V2, scale: float) -> float:
    return wp.dot(x, x) * scale


@wp.func
def joined(x: V2, y: V2) -> V2:
    total = V2(0.0, 0.0)
    for i in range(2):
        total[i] = inner(x, float(i + 1)) + wp.where(y[i] > 0.0, wp.abs(y[i]), wp.length_sq(x + y))
    return wp.cw_mul(total, -x) / 2.0


def test_a_warp_function_runs_on_symbols():
    """With functions it calls, vectors it fills, loops of a fixed count and choices."""
    graph = Graph()
    x, y = symbols(graph, x=2, y=2)
    found = [value(graph, s, {"x": (1.0, -2.0), "y": (0.5, -3.0)}) for s in trace(graph, joined, x, y)]
    assert found == pytest.approx([-(5.0 + 0.5) / 2, (10.0 + 2.25 + 25.0)])


def test_arguments_are_copies():
    """As in Warp, what a function writes into an argument stays within."""
    def writes(x):
        x[0] = 5.0
        return x

    def calls(x):
        return writes(x) + x

    graph = Graph()
    x = graph.inputs("x", 2)
    assert [value(graph, s, {"x": (1.0, 2.0)}) for s in trace(graph, calls, x)] == [6.0, 4.0]


def branching(x):
    return x[0] if x[0] > 0.0 else -x[0]


def both(x):
    return wp.where(x[0] > 0.0 and x[1] > 0.0, x[0], 0.0)


@pytest.mark.parametrize(("function", "message"), [
    (branching, r"branching: a branch depends on a value: choose with wp.where\(condition, a, b\)"),
    (both, r"both: a branch depends on a value"),
    (lambda x: wp.erf(x[0]), r"wp.erf has no form here; there are \['abs', 'acos'"),
    (lambda x: math.sin(x[0]), "must be real number, not Scalar"),
    (lambda x: x * x, "a vector times a vector: use wp.cw_mul or wp.dot"),
    (lambda x: x + x[0:1], "expected a vector of 2 entries"),
    (lambda x: V2(x[0], x[0], x[1]), "a vector of 2 entries was made of 3"),
    (lambda x: x[2], "list index out of range"),
    (lambda x: x.y, "'Vector' object has no attribute 'y'"),
    (lambda x, y: x, "missing 1 required positional argument: 'y'"),
])
def test_what_cannot_be_traced_says_why(function, message):
    """Naming the function, and what to do instead where there is something."""
    graph = Graph()
    with pytest.raises(TraceError, match=message):
        trace(graph, function, graph.inputs("x", 2))


def test_a_function_of_another_size_is_named():
    """With both sizes."""
    from residual_mbrl.kernels.system import _traced

    with pytest.raises(ValueError, match="joined: expected 3 outputs, received 2"):
        _traced(joined, [("x", 2), ("y", 2)], 3)


def test_vectors_know_their_operators():
    """A vector of symbols adds, scales and negates entry by entry."""
    graph = Graph()
    x = graph.inputs("x", 2)
    combined = -(2.0 * x - x / 4.0)
    assert isinstance(combined, Vector)
    assert [value(graph, s, {"x": (4.0, 8.0)}) for s in combined.entries] == [-7.0, -14.0]
