"""Gradients and curvature of costs as C++, and their way from the entries of a state to its tangent space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from residual_mbrl.kernels.expressions import Scalar, gradients, write
from residual_mbrl.kernels.system import Cost, System, _signature, _traced
from residual_mbrl.kernels.tracing import flat, trace


def second_order_text(cost: Cost, system: System, quaternions: Sequence[int]) -> str:
    """Return C++ members ``running_2`` and ``terminal_2``: gradient, Hessian and, for each quaternion, what its unit length bends.

    The Hessian is that of the cost's ``curved`` part, and of its squares without the second derivatives of what is squared
    (Gauss-Newton). Entries of the Hessian that are zero for every argument are left alone.
    """
    x, u, r = ("x", system.nx), ("u", system.nu), ("r", cost.nr)
    return "\n".join([
        *_member("running_2", cost.running, cost.squares, cost.curved, [x, u, r], ["x", "u"], system, quaternions),
        *_member("terminal_2", cost.terminal, cost.terminal_squares, cost.terminal_curved, [x, r], ["x"], system, quaternions)])


def _member(name: str, whole: Any, squares: Any, curved: Any, arguments: Sequence[tuple[str, int]], by: Sequence[str], system: System,
            quaternions: Sequence[int]) -> list[str]:
    graph, inputs, (total,) = _traced(whole, arguments, 1)
    columns = flat([v for (n, _), v in zip(arguments, inputs, strict=True) if n in by])
    one, zero = graph.constant(1.0), graph.constant(0.0)
    n, stride = len(columns), system.nx + system.nu
    slopes = gradients(graph, [total], [one], columns)
    hessian: dict[tuple[int, int], Scalar] = {}

    def add(i: int, j: int, what: Scalar) -> None:
        if what.value != 0.0:
            hessian[i, j] = hessian[i, j] + what if (i, j) in hessian else what

    if squares is not None:
        found = trace(graph, squares, *inputs)
        values, weights = found[: len(found) // 2], found[len(found) // 2 :]
        for value, weight in zip(values, weights, strict=True):
            by_column = gradients(graph, [value], [one], columns)
            for i in range(n):
                for j in range(i, n):
                    if by_column[i].value != 0.0 and by_column[j].value != 0.0:
                        add(i, j, 2.0 * weight * by_column[i] * by_column[j])
    bends = [zero] * len(quaternions)
    rest = [total] if squares is None else [] if curved is None else trace(graph, curved, *inputs)
    for part in rest:
        own = gradients(graph, [part], [one], columns)
        for i, slope in enumerate(own):
            if slope.value is None:
                for j, second in enumerate(gradients(graph, [slope], [one], columns[i:])):
                    add(i, i + j, second)
        for k, q0 in enumerate(quaternions):
            for i in range(4):
                bends[k] = bends[k] + own[q0 + i] * columns[q0 + i]
    targets = {f"g[{i}]": s for i, s in enumerate(slopes)}
    targets.update({f"bend[{k}]": b for k, b in enumerate(bends)})
    for (i, j), what in hessian.items():
        targets[f"h[{i * stride + j}]"] = what
        targets[f"h[{j * stride + i}]"] = what
    return [f"static __attribute__((noinline)) void {name}({_signature(arguments)}, T* g, T* h, T* bend) {{",
            write(targets, constants=("c",)), "}"]


def tangent_text(nx: int, quaternions: Sequence[int]) -> str:
    """Return C++ members ``lowered``: a row times ``∂(x ⊞ δ)/∂δ``, and ``lowered_after``: rows of the next state's tangent.

    The second is the pseudo-inverse of the first's matrix, four times its transpose on quaternions.
    """
    def body(factor: str) -> str:
        lines, row, column = [], 0, 0
        while row < nx:
            if row in quaternions:
                w, i, j, k = (f"x[{row + n}]" for n in range(4))
                a, b, c, d = (f"v[{row + n}]" for n in range(4))
                lines += [f"out[{column}] = (T)({factor}) * ({w} * {b} + {k} * {c} - {i} * {a} - {j} * {d});",
                          f"out[{column + 1}] = (T)({factor}) * ({w} * {c} + {i} * {d} - {j} * {a} - {k} * {b});",
                          f"out[{column + 2}] = (T)({factor}) * ({w} * {d} + {j} * {b} - {k} * {a} - {i} * {c});"]
                row, column = row + 4, column + 3
            else:
                lines.append(f"out[{column}] = v[{row}];")
                row, column = row + 1, column + 1
        return "\n".join(lines)

    return f"""
    static inline void lowered(const T* x, const T* v, T* out) {{ {body("(R)0.5")} }}
    static inline void lowered_after(const T* x, const T* v, T* out) {{ {body("(R)2")} }}
"""
