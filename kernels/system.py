"""A model of one world as Warp functions, and the C++ of its parts and their derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from residual_mbrl.kernels.expressions import Graph, Scalar, Vector, gradients, write
from residual_mbrl.kernels.tracing import Function, flat, symbols, trace


@dataclass(frozen=True, kw_only=True)
class System:
    """One step of one world, written once in scalars and small vectors.

        z  = features(x, u, p, c)           what the networks see
        h  = hold(y, x, u, p, c)            what is held over the step, given the networks' outputs y = net(z)
        k  = substep(k, h, p)               as many times as there are substeps, from the first nk entries of x on
        x' = finish(k, h)

    with states x, actions u, physical parameters p (differentiated) and constants c (normalisers and the like, not differentiated).
    Behind the first nk entries a state may hold memory, which ``finish`` takes from what is held.

    Args:
        features: Warp function; any of this signature where there is no network.
        hold: Warp function.
        substep: Warp function.
        finish: Warp function.
        substeps: Substeps of a step.
        nx: Entries of a state.
        nk: Entries of it that the substeps move.
        nu: Entries of an action.
        nz: Inputs of all networks together.
        ny: Outputs of all networks together.
        nh: Entries of what is held.
        np: Physical parameters.
        nc: Constants.
    """

    features: Function
    hold: Function
    substep: Function
    finish: Function
    substeps: int
    nx: int
    nk: int
    nu: int
    nz: int
    ny: int
    nh: int
    np: int
    nc: int


@dataclass(frozen=True, kw_only=True)
class Cost:
    """A cost of one world as Warp functions of state x, action u and a reference vector r that may change from step to step.

    Args:
        running: ``running(x, u, r) -> float``.
        terminal: ``terminal(x, r) -> float``.
        nr: Entries of r, at least 1.
        key: Tells this cost from others: equal keys share compiled code.
        squares: ``squares(x, u, r) -> (d, w)``, one after another, such that ``Σ w d²`` is the cost, or with ``curved`` a part of it, and
            second derivatives of d may be left out.
        curved: ``curved(x, u, r) -> float``, the part of the cost besides the squares.
        terminal_squares: The same of the last state, ``(x, r)``.
        terminal_curved: The same of the last state.
    """

    running: Function
    terminal: Function
    nr: int
    key: object
    squares: Function | None = None
    curved: Function | None = None
    terminal_squares: Function | None = None
    terminal_curved: Function | None = None


def system_text(system: System) -> str:
    """Return C++ members ``features``, ``hold``, ``substep``, ``finish``, and with ``d_`` before the names their adjoints."""
    s = system
    x, k, u, p, c, y, h = (("x", s.nx), ("k", s.nk), ("u", s.nu), ("p", s.np), ("c", s.nc), ("y", s.ny), ("h", s.nh))
    return "\n".join([
        f"enum {{ NX = {s.nx}, NK = {s.nk}, NU = {s.nu}, NZ = {s.nz}, NY = {s.ny}, NH = {s.nh}, NP = {s.np}, NC = {s.nc},",
        f"SUBSTEPS = {s.substeps} }};",
        *member_text("features", s.features, [x, u, p, c], s.nz),
        *member_text("hold", s.hold, [y, x, u, p, c], s.nh),
        *member_text("substep", s.substep, [k, h, p], s.nk),
        *member_text("finish", s.finish, [k, h], s.nx),
        *adjoint_text("features", s.features, [x, u, p, c], s.nz),
        *adjoint_text("hold", s.hold, [y, x, u, p, c], s.nh),
        *adjoint_text("substep", s.substep, [k, h, p], s.nk),
        *adjoint_text("finish", s.finish, [k, h], s.nx)])


def jacobian_text(system: System) -> str:
    """Return C++ members ``j_features`` by (x, u), ``j_hold`` by (y, x, u), ``j_substep`` and ``j_finish`` by (k, h): Jacobians by rows."""
    s = system
    x, k, u, p, c, y, h = (("x", s.nx), ("k", s.nk), ("u", s.nu), ("p", s.np), ("c", s.nc), ("y", s.ny), ("h", s.nh))
    return "\n".join([
        *_jacobian("features", s.features, [x, u, p, c], ["x", "u"]),
        *_jacobian("hold", s.hold, [y, x, u, p, c], ["y", "x", "u"]),
        *_jacobian("substep", s.substep, [k, h, p], ["k", "h"]),
        *_jacobian("finish", s.finish, [k, h], ["k", "h"])])


def cost_text(cost: Cost, system: System) -> str:
    """Return C++ members ``running``, ``terminal`` and their gradients, weighted by g."""
    x, u, r = ("x", system.nx), ("u", system.nu), ("r", cost.nr)
    return "\n".join([
        f"enum {{ NR = {cost.nr} }};",
        *member_text("running", cost.running, [x, u, r], 1), *adjoint_text("running", cost.running, [x, u, r], 1, fixed=("r",)),
        *member_text("terminal", cost.terminal, [x, r], 1), *adjoint_text("terminal", cost.terminal, [x, r], 1, fixed=("r",))])


def _signature(arguments: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"const {'R' if name == 'c' else 'T'}* {name}" for name, _ in arguments)


def _traced(function: Any, arguments: Sequence[tuple[str, int]], outputs: int) -> tuple[Graph, list[Vector], list[Scalar]]:
    graph = Graph()
    inputs = symbols(graph, **dict(arguments))
    found = trace(graph, function, *inputs)
    if len(found) != outputs:
        raise ValueError(f"{getattr(function, 'key', function)}: expected {outputs} outputs, received {len(found)}")
    return graph, inputs, found


def member_text(name: str, function: Any, arguments: Sequence[tuple[str, int]], outputs: int) -> list[str]:
    """Return a C++ member function of the arguments that writes ``out``."""
    _, _, found = _traced(function, arguments, outputs)
    return [f"static inline void {name}({_signature(arguments)}, T* out) {{",
            write({f"out[{i}]": o for i, o in enumerate(found)}, constants=("c",)), "}"]


def adjoint_text(name: str, function: Any, arguments: Sequence[tuple[str, int]], outputs: int, fixed: Sequence[str] = ("c",)) -> list[str]:
    """Return the C++ member ``d_name`` that adds ``Σ g[k] ∂out[k]/∂argument`` to ``g_argument`` of each argument that is not fixed."""
    graph, inputs, found = _traced(function, arguments, outputs)
    weights = graph.inputs("g", outputs)
    moving = [(n, v) for (n, _), v in zip(arguments, inputs, strict=True) if n not in fixed]
    slopes = gradients(graph, found, weights.entries, flat([v for _, v in moving]))
    targets: dict[str, Scalar] = {}
    for (n, i), slope in zip(((n, i) for n, v in moving for i in range(len(v))), slopes, strict=True):
        if slope.value != 0.0:
            targets[f"g_{n}[{i}]"] = graph.inputs(f"g_{n}", i + 1)[i] + slope
    adjoints = ", ".join(f"T* g_{n}" for n, _ in moving)
    return [f"static inline void d_{name}({_signature(arguments)}, const T* g, {adjoints}) {{", write(targets, constants=("c",)), "}"]


def _jacobian(name: str, function: Any, arguments: Sequence[tuple[str, int]], by: Sequence[str]) -> list[str]:
    """Write ``out[k * columns + j]``: the derivative of output k by entry j of the arguments in ``by``, joined."""
    graph = Graph()
    inputs = symbols(graph, **dict(arguments))
    found = trace(graph, function, *inputs)
    columns = flat([v for (n, _), v in zip(arguments, inputs, strict=True) if n in by])
    one = graph.constant(1.0)
    targets = {f"out[{k * len(columns) + j}]": slope for k, o in enumerate(found)
               for j, slope in enumerate(gradients(graph, [o], [one], columns))}
    return [f"static inline void j_{name}({_signature(arguments)}, T* out) {{", write(targets, constants=("c",)), "}"]

