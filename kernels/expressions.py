"""Scalar expressions: a graph of operations with exact derivatives, written out as C++.

A Warp function of small vectors is run once on symbols (see ``tracing``) and leaves a straight list of operations. From the list
come the function itself and its derivatives, for any number of worlds at a time: the same text serves a vector register of
worlds on a CPU and one world of a CUDA thread. Equal operations are one node, so nothing is computed twice.

Derivatives follow torch where a function has a kink: ``abs`` has slope zero at zero, and ``where`` passes to the side that it took.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

UNARY: dict[str, Callable[[float], float]] = {
    "neg": lambda a: -a, "sin": math.sin, "cos": math.cos, "tan": math.tan, "tanh": math.tanh, "exp": math.exp, "log": math.log,
    "sqrt": math.sqrt, "abs": abs, "sign": lambda a: float((a > 0) - (a < 0)), "asin": math.asin, "acos": math.acos, "atan": math.atan,
    "not": lambda a: float(not a)}
BINARY: dict[str, Callable[[float, float], float]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "div": lambda a, b: a / b, "min": min, "max": max,
    "atan2": math.atan2, "pow": math.pow, "lt": lambda a, b: float(a < b), "le": lambda a, b: float(a <= b),
    "eq": lambda a, b: float(a == b), "ne": lambda a, b: float(a != b), "and": lambda a, b: float(bool(a) and bool(b)),
    "or": lambda a, b: float(bool(a) or bool(b))}
INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "lt": "<", "le": "<=", "eq": "==", "ne": "!=", "and": "&", "or": "|"}
LOGICAL = ("lt", "le", "eq", "ne", "and", "or", "not")


class Graph:
    """Operations in the order in which they were made; an operation is its name and the places of its arguments."""

    def __init__(self) -> None:
        self.nodes: list[tuple[Any, ...]] = []
        self._places: dict[tuple[Any, ...], int] = {}

    def _place(self, node: tuple[Any, ...]) -> Scalar:
        place = self._places.get(node)
        if place is None:
            place = self._places[node] = len(self.nodes)
            self.nodes.append(node)
        return Scalar(self, place)

    def constant(self, value: float) -> Scalar:
        """Return a number."""
        return self._place(("constant", float(value)))

    def inputs(self, name: str, n: int) -> Vector:
        """Return n inputs, in C++ ``name[0]`` and so on."""
        return Vector([self._place(("input", name, i)) for i in range(n)])

    def apply(self, op: str, *arguments: Any) -> Scalar:
        """Return an operation on scalars or numbers, folded where it is known."""
        args = [a if isinstance(a, Scalar) else self.constant(a) for a in arguments]
        known = [a.value for a in args]
        if op == "select":
            if known[0] is not None:
                return args[1] if known[0] else args[2]
            return args[1] if args[1].place == args[2].place else self._place((op, *(a.place for a in args)))
        folded = _identity(op, args, known)
        if folded is not None:
            return folded
        if all(k is not None for k in known):
            table: Mapping[str, Callable[..., float]] = UNARY if len(args) == 1 else BINARY
            try:
                return self.constant(table[op](*known))
            except (ArithmeticError, ValueError):
                pass  # left to the run, which gives what the engine gives
        return self._place((op, *(a.place for a in args)))


def _identity(op: str, args: Sequence[Scalar], known: Sequence[float | None]) -> Scalar | None:
    """Return an argument that the operation leaves as it is, or zero; None where there is something to do."""
    zero, one = [k == 0.0 for k in known], [k == 1.0 for k in known]
    first = {"add": zero[-1], "sub": zero[-1], "mul": zero[0] or one[-1], "div": one[-1] or (zero[0] and not zero[-1])}
    second = {"add": zero[0], "mul": zero[-1] or one[0]}
    if first.get(op, False):
        return args[0]
    return args[1] if second.get(op, False) else None


class Scalar:
    """A number that is known when the kernel runs."""

    __slots__ = ("graph", "place")

    def __init__(self, graph: Graph, place: int) -> None:
        self.graph, self.place = graph, place

    @property
    def value(self) -> float | None:
        """The number where it is known already."""
        node = self.graph.nodes[self.place]
        return node[1] if node[0] == "constant" else None  # type: ignore[no-any-return]

    def __bool__(self) -> bool:
        """Refuse: a kernel runs many worlds in step, so that no world can go a way of its own."""
        if self.value is not None:
            return bool(self.value)
        raise TypeError("a branch depends on a value: choose with wp.where(condition, a, b) instead of if, and, or, not")

    def __add__(self, o: Any) -> Any:  # noqa: D105
        return NotImplemented if isinstance(o, Vector) else self.graph.apply("add", self, o)

    def __radd__(self, o: Any) -> Any:  # noqa: D105
        return self.graph.apply("add", o, self)

    def __sub__(self, o: Any) -> Any:  # noqa: D105
        return self.graph.apply("sub", self, o)

    def __rsub__(self, o: Any) -> Any:  # noqa: D105
        return self.graph.apply("sub", o, self)

    def __mul__(self, o: Any) -> Any:  # noqa: D105
        return NotImplemented if isinstance(o, Vector) else self.graph.apply("mul", self, o)

    def __rmul__(self, o: Any) -> Any:  # noqa: D105
        return self.graph.apply("mul", o, self)

    def __truediv__(self, o: Any) -> Any:  # noqa: D105
        return self.graph.apply("div", self, o)

    def __rtruediv__(self, o: Any) -> Any:  # noqa: D105
        return self.graph.apply("div", o, self)

    def __neg__(self) -> Any:  # noqa: D105
        return self.graph.apply("neg", self)

    def __pos__(self) -> Any:  # noqa: D105
        return self

    def __pow__(self, o: Any) -> Any:  # noqa: D105
        if isinstance(o, int) and 0 < o <= 4:
            out = self
            for _ in range(o - 1):
                out = out * self
            return out
        return self.graph.apply("pow", self, o)

    def __lt__(self, o: Any) -> Any:  # noqa: D105
        return self.graph.apply("lt", self, o)

    def __le__(self, o: Any) -> Any:  # noqa: D105
        return self.graph.apply("le", self, o)

    def __gt__(self, o: Any) -> Any:  # noqa: D105
        return self.graph.apply("lt", o, self)

    def __ge__(self, o: Any) -> Any:  # noqa: D105
        return self.graph.apply("le", o, self)

    def __eq__(self, o: object) -> Any:  # noqa: D105
        return self.graph.apply("eq", self, o)

    def __ne__(self, o: object) -> Any:  # noqa: D105
        return self.graph.apply("ne", self, o)

    __hash__ = None  # type: ignore[assignment]  # equality is an operation of the graph


class Vector:
    """A short vector of scalars with the operators of a Warp vector."""

    def __init__(self, entries: Iterable[Any]) -> None:
        self.entries = list(entries)

    def __len__(self) -> int:  # noqa: D105
        return len(self.entries)

    def __getitem__(self, i: Any) -> Any:  # noqa: D105
        return Vector(self.entries[i]) if isinstance(i, slice) else self.entries[i]

    def __setitem__(self, i: int, value: Any) -> None:  # noqa: D105
        self.entries[i] = value

    def _with(self, o: Any, f: Callable[[Any, Any], Any]) -> Vector:
        if not isinstance(o, Vector) or len(o) != len(self):
            raise TypeError(f"expected a vector of {len(self)} entries, received {o!r}")
        return Vector(f(a, b) for a, b in zip(self.entries, o.entries, strict=True))

    def __add__(self, o: Any) -> Vector:  # noqa: D105
        return self._with(o, lambda a, b: a + b)

    def __sub__(self, o: Any) -> Vector:  # noqa: D105
        return self._with(o, lambda a, b: a - b)

    def __mul__(self, o: Any) -> Vector:  # noqa: D105
        if isinstance(o, Vector):
            raise TypeError("a vector times a vector: use wp.cw_mul or wp.dot")
        return Vector(a * o for a in self.entries)

    def __rmul__(self, o: Any) -> Vector:  # noqa: D105
        return self * o

    def __truediv__(self, o: Any) -> Vector:  # noqa: D105
        return Vector(a / o for a in self.entries)

    def __neg__(self) -> Vector:  # noqa: D105
        return Vector(-a for a in self.entries)


def gradients(graph: Graph, outputs: Sequence[Scalar], weights: Sequence[Scalar], inputs: Sequence[Scalar]) -> list[Scalar]:
    """Return the derivatives of ``Σ weights[k] outputs[k]`` by the inputs, by the chain rule from the last operation to the first."""
    by: dict[int, Scalar] = {}

    def give(place: int, what: Scalar) -> None:
        by[place] = by[place] + what if place in by else what

    for out, weight in zip(outputs, weights, strict=True):
        give(out.place, weight)
    for place in range(max((o.place for o in outputs), default=-1), -1, -1):
        node = graph.nodes[place]
        if place in by and node[0] not in ("constant", "input") and by[place].value != 0.0:
            for argument, what in _derivatives(graph, node, place, by[place]):
                give(argument, what)
    zero = graph.constant(0.0)
    return [by.get(i.place, zero) for i in inputs]


def _derivatives(graph: Graph, node: tuple[Any, ...], place: int, g: Scalar) -> list[tuple[int, Scalar]]:
    """Return what each argument of an operation gets when its result gets g."""
    op, places = node[0], node[1:]
    a, b = Scalar(graph, places[0]), Scalar(graph, places[min(1, len(places) - 1)])
    out = Scalar(graph, place)
    where, zero = lambda *args: graph.apply("select", *args), graph.constant(0.0)
    if op in LOGICAL or op == "sign":
        return []
    if op == "select":
        return [(places[1], where(a, g, zero)), (places[2], where(a, zero, g))]
    if op in ("min", "max"):
        first = (a <= b) if op == "min" else (b <= a)
        return [(places[0], where(first, g, zero)), (places[1], where(first, zero, g))]
    rules: dict[str, Callable[[], list[Any]]] = {
        "add": lambda: [g, g], "sub": lambda: [g, -g], "mul": lambda: [g * b, g * a], "div": lambda: [g / b, -(g / b) * out],
        "neg": lambda: [-g], "sin": lambda: [g * graph.apply("cos", a)], "cos": lambda: [-(g * graph.apply("sin", a))],
        "tan": lambda: [g + g * out * out], "tanh": lambda: [g - g * out * out], "exp": lambda: [g * out], "log": lambda: [g / a],
        "sqrt": lambda: [0.5 * g / out], "abs": lambda: [g * graph.apply("sign", a)],
        "asin": lambda: [g / graph.apply("sqrt", 1.0 - a * a)], "acos": lambda: [-(g / graph.apply("sqrt", 1.0 - a * a))],
        "atan": lambda: [g / (1.0 + a * a)], "atan2": lambda: [g * b / (a * a + b * b), -(g * a / (a * a + b * b))],
        "pow": lambda: [g * b * graph.apply("pow", a, b - 1.0), g * out * graph.apply("log", a)]}
    parts = rules[op]()
    if op == "pow" and b.value is not None:
        parts = parts[:1]
    return list(zip(places, parts, strict=False))


def write(outputs: Mapping[str, Scalar], *, constants: Sequence[str] = ()) -> str:
    """Return C++ statements that assign each output, ``name = value;``, in terms of vectors T and logical vectors TM.

    Args:
        outputs: Left-hand sides and what they become.
        constants: Inputs that are one number for all worlds.
    """
    if not outputs:
        return ""
    graph = next(iter(outputs.values())).graph
    needed, waiting = set(), [o.place for o in outputs.values()]
    while waiting:
        place = waiting.pop()
        if place not in needed:
            needed.add(place)
            node = graph.nodes[place]
            waiting += node[1:] if node[0] not in ("constant", "input") else ()
    lines = [_statement(graph.nodes[place], place, constants) for place in sorted(needed)]
    return "\n".join([*lines, *(f"{name} = t{out.place};" for name, out in outputs.items())])


def _statement(node: tuple[Any, ...], place: int, constants: Sequence[str]) -> str:
    op, args = node[0], node[1:]
    if op == "constant":
        return f"const T t{place} = (T)(R)({args[0]!r});" if math.isfinite(args[0]) else f"const T t{place} = (T)(R)({_special(args[0])});"
    if op == "input":
        return f"const T t{place} = (T)({args[0]}[{args[1]}]);" if args[0] in constants else f"const T t{place} = {args[0]}[{args[1]}];"
    names = [f"t{a}" for a in args]
    kind = "TM" if op in LOGICAL else "T"
    if op in INFIX:
        return f"const {kind} t{place} = {names[0]} {INFIX[op]} {names[1]};"
    if op == "neg":
        return f"const T t{place} = -{names[0]};"
    return f"const {kind} t{place} = {op}_({', '.join(names)});"


def _special(x: float) -> str:
    return "__builtin_nan(\"\")" if x != x else "__builtin_inf()" if x > 0 else "-__builtin_inf()"  # noqa: PLR0124
