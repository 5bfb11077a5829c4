"""Running a Warp function on symbols: what it does to them is the straight list of operations that the kernels are made of.

A Warp function is Python text with a meaning of its own. Here it runs as Python, with everything it refers to exchanged: the
``wp`` module for functions of symbols, vector types for ``Vector``, and other Warp functions for their traced forms. Loops with a
fixed count unroll by running. What depends on a value must be chosen with ``wp.where``, as worlds run in step.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Sequence
from typing import Any

import warp as wp

from residual_mbrl.kernels.expressions import BINARY, UNARY, Graph, Scalar, Vector

Function = Callable[..., Any]


class TraceError(ValueError):
    """A Warp function that cannot be traced."""


class _Warp:
    """Stands for the ``wp`` module within traced functions."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        for name in ("sin", "cos", "tan", "tanh", "exp", "log", "sqrt", "sign", "asin", "acos", "atan", "atan2", "pow", "abs", "min",
                     "max"):
            setattr(self, name, self._elementwise(name))
        self.float32 = self.float64 = self.float16 = _same
        for n in (2, 3, 4):
            for suffix in ("", "f", "d"):
                setattr(self, f"vec{n}{suffix}", _constructor(graph, n))

    def __getattr__(self, name: str) -> Any:
        raise TraceError(f"wp.{name} has no form here; there are {sorted(n for n in dir(self) if not n.startswith('_'))}")

    def _elementwise(self, op: str) -> Function:
        def apply(*args: Any) -> Any:
            if not any(isinstance(a, Scalar | Vector) for a in args):  # plain numbers, as of a loop
                return {**UNARY, **BINARY}[op](*args)
            if isinstance(args[0], Vector):
                return Vector(self._graph.apply(op, *entries) for entries in zip(*(a.entries for a in args), strict=True))
            return self._graph.apply(op, *args)

        return apply

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        if isinstance(a, Vector):
            return Vector(self._graph.apply("select", condition, x, y) for x, y in zip(a.entries, b.entries, strict=True))
        return self._graph.apply("select", condition, a, b)

    def clamp(self, x: Any, lower: Any, upper: Any) -> Any:
        return self._graph.apply("min", self._graph.apply("max", x, lower), upper)

    def cw_mul(self, a: Vector, b: Vector) -> Vector:
        return a._with(b, lambda x, y: x * y)

    def cw_div(self, a: Vector, b: Vector) -> Vector:
        return a._with(b, lambda x, y: x / y)

    def dot(self, a: Vector, b: Vector) -> Any:
        products = [x * y for x, y in zip(a.entries, b.entries, strict=True)]
        total = products[0]
        for product in products[1:]:
            total = total + product
        return total

    def cross(self, a: Vector, b: Vector) -> Vector:
        return Vector([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])

    def length_sq(self, a: Vector) -> Any:
        return self.dot(a, a)

    def length(self, a: Vector) -> Any:
        return self._graph.apply("sqrt", self.dot(a, a))

    def normalize(self, a: Vector) -> Vector:
        return a / self.length(a)

    def static(self, x: Any) -> Any:
        return x


def _same(x: Any) -> Any:
    return x


def _constructor(graph: Graph, n: int) -> Function:
    def construct(*entries: Any) -> Vector:
        if not entries:
            entries = (0.0,)
        if len(entries) == 1 and isinstance(entries[0], Vector):
            return Vector(entries[0].entries)
        if len(entries) == 1:
            entries = entries * n
        if len(entries) != n:
            raise TraceError(f"a vector of {n} entries was made of {len(entries)}")
        return Vector(e if isinstance(e, Scalar) else graph.constant(e) for e in entries)

    return construct


def trace(graph: Graph, function: Any, *arguments: Any) -> list[Scalar]:
    """Return what a Warp function makes of vectors of symbols, as a list of scalars.

    Args:
        graph: Where the operations go.
        function: A ``wp.func``, or a Python function of the same kind.
        arguments: ``Vector`` or ``Scalar`` each.

    Raises:
        TraceError: if the function branches on a value, or uses what has no form here.
    """
    try:
        out = _traced(graph, function, {})(*arguments)
    except (AttributeError, IndexError, TypeError) as error:
        raise TraceError(f"{_name(function)}: {error}") from error
    entries = out.entries if isinstance(out, Vector) else out if isinstance(out, list) else [out]
    return [e if isinstance(e, Scalar) else graph.constant(e) for e in entries]


def _name(function: Any) -> str:
    return str(getattr(function, "key", getattr(function, "__name__", function)))


def _traced(graph: Graph, function: Any, seen: dict[int, Any]) -> Function:
    """Return a function with all that it refers to exchanged."""
    plain: types.FunctionType = inspect.unwrap(getattr(function, "func", function))
    if id(plain) in seen:
        return seen[id(plain)]  # type: ignore[no-any-return]
    names: dict[str, Any] = {n: _exchanged(graph, plain.__globals__[n], seen) for n in _names(plain.__code__) if n in plain.__globals__}
    warp = _Warp(graph)
    names.update(__builtins__=__builtins__, float=_same, abs=warp.abs, min=warp.min, max=warp.max, type=_type_of(graph))  # type: ignore[attr-defined]
    cells = tuple(types.CellType(_exchanged(graph, c.cell_contents, seen)) for c in plain.__closure__ or ())
    made = types.FunctionType(plain.__code__, names, plain.__name__, plain.__defaults__, cells)

    def call(*arguments: Any) -> Any:  # a Warp function gets copies of its vectors
        return made(*(Vector(a.entries) if isinstance(a, Vector) else a for a in arguments))

    seen[id(plain)] = call
    return call


def _names(code: types.CodeType) -> set[str]:
    """Return the names that a function refers to, its comprehensions and inner functions included."""
    return {*code.co_names, *(n for inner in code.co_consts if isinstance(inner, types.CodeType) for n in _names(inner))}


def _type_of(graph: Graph) -> Function:
    def type_of(x: Any) -> Any:
        return _constructor(graph, len(x)) if isinstance(x, Vector) else _same

    return type_of


def _exchanged(graph: Graph, thing: Any, seen: dict[int, Any]) -> Any:
    if thing is wp:
        return _Warp(graph)
    if isinstance(thing, wp.Function) and thing.func is None:  # one of Warp's own, referred to by itself
        return getattr(_Warp(graph), thing.key)
    if isinstance(thing, wp.Function | types.FunctionType):
        return _traced(graph, thing, seen)
    if isinstance(thing, list | tuple) and type(thing) in (list, tuple):
        return type(thing)(_exchanged(graph, t, seen) for t in thing)
    if isinstance(thing, type) and hasattr(thing, "_wp_scalar_type_") and len(getattr(thing, "_shape_", ())) == 1:
        return _constructor(graph, thing._length_)
    return thing


def symbols(graph: Graph, **lengths: int) -> list[Vector]:
    """Return a vector of inputs for each name, in order."""
    return [graph.inputs(name, n) for name, n in lengths.items()]


def flat(vectors: Sequence[Vector]) -> list[Scalar]:
    """Return the entries of vectors one after another."""
    return [e for v in vectors for e in v.entries]
