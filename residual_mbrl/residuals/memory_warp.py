"""The Warp form of the corrections in ``memory``: the same equations for one world."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from residual_mbrl.residuals.features import FeatureMap
from residual_mbrl.residuals.networks import Perceptron
from residual_mbrl.residuals.warp_form import (
    WarpForm,
    WarpFunction,
    constants_of,
    feature_form,
    no_command,
    perceptron_sizes,
    perceptron_weights,
    port_type,
    warp_function,
)
from residual_mbrl.spaces import StateSpace


class MemoryLayout(NamedTuple):
    """Sizes and places of a correction with memory."""

    nv: int
    nu: int
    lags: tuple[int, ...]
    taps: int
    """Past commands in the memory; the traces follow."""
    fades: int
    start: int
    """Place of the first entry in the port's vector."""
    quaternion: tuple[int, int] | None
    """Places in positions and velocities of the quaternion whose body frame the three entries before it are given in."""


def warp_memory_form(layout: MemoryLayout, features: FeatureMap, network: Perceptron, constants: Sequence[Tensor | float],
                     scalars: Callable[[], list[Tensor]], space: StateSpace,
                     signals: Mapping[str, tuple[int, WarpFunction]]) -> WarpForm | None:
    """Return the Warp form; None where a feature is a signal that has none.

    Args:
        layout: Sizes and places.
        features: What the network sees of the state.
        network: The network.
        constants: Means and inverse spreads of the commands, and the scales.
        scalars: What a trace keeps in a step.
        space: Of the baseline.
        signals: As ``Residual.warp_form`` has them.
    """
    inputs = feature_form(features, space, signals)
    if inputs is None:
        return None
    own = len(inputs.constants)

    def placed(m0: int) -> tuple[Callable[[int], list[WarpFunction]], Callable[[int, int], WarpFunction]]:
        def entries(c0: int) -> list[WarpFunction]:
            commands = [_command(layout, lag, k, m0, c0 + own) for lag in layout.lags for k in range(layout.nu)]
            traces = [_entry(m0 + layout.taps * layout.nu + k) for k in range(layout.fades * layout.nv)]
            return [*inputs.entries(c0), *commands, *traces]

        def emit(y0: int, c0: int) -> WarpFunction:
            return _correction(layout, y0, m0, c0 + own + 2 * layout.nu)

        return entries, emit

    def drive(c0: int, p0: int, m0: int) -> tuple[WarpFunction, WarpFunction]:
        return no_command(layout.nu), _remember(layout, p0, m0)

    return WarpForm(("memory", layout, inputs.key), constants_of([*inputs.constants, *constants]), perceptron_sizes(network),
                    weights=perceptron_weights(network), drive=drive, scalars=scalars, placed=placed)


def _entry(i: int) -> WarpFunction:
    @warp_function
    def remembered(x: Any, u: Any, p: Any, c: Any) -> Any:
        return x[i]

    return remembered  # type: ignore[no-any-return]


def _command(layout: MemoryLayout, lag: int, k: int, m0: int, c0: int) -> WarpFunction:
    """Return command k of some steps ago, normalised."""
    i, inverse = m0 + (lag - 1) * layout.nu + k, c0 + layout.nu

    @warp_function
    def present(x: Any, u: Any, p: Any, c: Any) -> Any:
        return (u[k] - c[c0 + k]) * c[inverse + k]

    @warp_function
    def past(x: Any, u: Any, p: Any, c: Any) -> Any:
        return (x[i] - c[c0 + k]) * c[inverse + k]

    return past if lag else present  # type: ignore[no-any-return]


def _correction(layout: MemoryLayout, y0: int, m0: int, c0: int) -> WarpFunction:
    """Return ``(y, x, u, p, c) -> port`` of a network with outputs at y0 and scales at c0."""
    import warp as wp  # noqa: PLC0415  # only fused rollouts need it

    n, first, start = layout.nv, m0 + layout.taps * layout.nu, layout.start
    port, v3 = port_type(n), wp.types.vector(length=3, dtype=wp.float32)
    q0, v0 = layout.quaternion or (0, 0)

    def rotated(x: Any, vector: Any) -> Any:
        axis = v3(x[q0 + 1], x[q0 + 2], x[q0 + 3])
        once = wp.cross(axis, vector)
        squared = x[q0] * x[q0] + wp.dot(axis, axis)
        return vector + (2.0 / squared) * (x[q0] * once + wp.cross(axis, once))

    @warp_function
    def corrected(y: Any, x: Any, u: Any, p: Any, c: Any) -> Any:
        sizes = []
        for i in range(n):
            total = y[y0 + i]
            for j in range(layout.fades):
                total = total + x[first + j * n + i]
            sizes.append(c[c0 + i] * total)
        if layout.quaternion:
            turned = rotated(x, v3(sizes[v0 - 3], sizes[v0 - 2], sizes[v0 - 1]))
            sizes[v0 - 3 : v0] = [turned[0], turned[1], turned[2]]
        out = port()
        for i in range(n):
            out[start + i] = sizes[i]
        return out

    return corrected  # type: ignore[no-any-return]


def _remember(layout: MemoryLayout, p0: int, m0: int) -> WarpFunction:
    held, traces = layout.taps * layout.nu, layout.fades * layout.nv

    @warp_function
    def remember(x: Any, u: Any, p: Any, c: Any) -> Any:
        past = [*(u[k] for k in range(layout.nu)), *(x[m0 + i] for i in range(held))][:held]
        return [*past, *(p[p0 + i] * x[m0 + held + i] for i in range(traces))]

    return remember  # type: ignore[no-any-return]
