"""What a residual gives to a fused rollout: its inputs and its output as Warp functions, and its weights in order."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from residual_mbrl.residuals.features import Feature, FeatureMap
from residual_mbrl.residuals.networks import Perceptron
from residual_mbrl.spaces import StateSpace

WarpFunction = Callable[..., Any]


class WarpForm(NamedTuple):
    """A residual as a perceptron between two Warp functions of one world; ``c`` are its constants, which no gradient reaches.

    The functions take states x, actions u and the constants of all residuals, whose own start where the caller says; so two
    residuals of one kind and structure are one compiled function however they are normalised.
    """

    key: tuple[object, ...]
    """Tells this structure from others: equal keys share compiled code."""
    sizes: tuple[int, ...]
    """Units of each layer of the perceptron, inputs first."""
    entries: Callable[[int], list[WarpFunction]]
    """``entries(c0)``: for each input a function ``(x, u, c) -> float``."""
    emit: Callable[[int, int], WarpFunction]
    """``emit(y0, c0)``: a function ``(y, x, u, c) -> port`` from the perceptron's outputs at y0; see ``physics.mechanical_warp``."""
    constants: Tensor
    """Float64, shape [constants]."""
    weights: Callable[[], list[Tensor]]
    """``weights()``: matrix [inputs, outputs] and bias of each layer as they are now, differentiable."""
    squashed: bool = True
    """Whether a tanh follows the perceptron, before ``emit``."""
    damping: bool = False
    """Whether it adds to the damping part of the port."""
    friction: bool = False
    """Whether it adds to the friction part of the port."""


def warp_function(function: WarpFunction) -> Any:
    """Return ``wp.func`` of a function itself, below whatever a checker of annotations has wrapped around it."""
    import warp as wp  # noqa: PLC0415

    return wp.func(inspect.unwrap(function))


def collected(vector: Any, entries: Sequence[WarpFunction]) -> WarpFunction:
    """Return ``(x, u, c) -> vector`` of scalar functions.

    Functions are joined in pairs, by closures: ``wp.static(functions[i])`` in a generic function is left out of the hash by which
    Warp (1.19) finds compiled code again, and another model's kernel would be run.
    """
    @warp_function
    def nothing(x: Any, u: Any, c: Any) -> Any:
        return vector()

    def with_entry(before: WarpFunction, k: int, entry: WarpFunction) -> WarpFunction:
        @warp_function
        def one_more(x: Any, u: Any, c: Any) -> Any:
            z = vector()
            z[k] = entry(x, u, c)
            return before(x, u, c) + z

        return one_more  # type: ignore[no-any-return]

    joined: WarpFunction = nothing
    for k, entry in enumerate(entries):
        joined = with_entry(joined, k, entry)
    return joined


def summed(vector: Any, functions: Sequence[WarpFunction]) -> WarpFunction:
    """Return ``(y, x, u, c) -> vector``, the sum of functions of that kind; zero of none. Joined as in ``collected``."""
    @warp_function
    def zero(y: Any, x: Any, u: Any, c: Any) -> Any:
        return vector()

    def both(f: WarpFunction, g: WarpFunction) -> WarpFunction:
        @warp_function
        def sum_of_two(y: Any, x: Any, u: Any, c: Any) -> Any:
            return f(y, x, u, c) + g(y, x, u, c)

        return sum_of_two  # type: ignore[no-any-return]

    if not functions:
        return zero  # type: ignore[no-any-return]
    joined = functions[0]
    for function in functions[1:]:
        joined = both(joined, function)
    return joined


def port_type(nv: int) -> Any:
    """Return the Warp vector [force, damping, friction limit] of a system of nv degrees of freedom."""
    import warp as wp  # noqa: PLC0415  # only fused rollouts need it

    return wp.types.vector(length=2 * nv + nv * nv, dtype=wp.float32)


def source_places(name: str, space: StateSpace) -> list[tuple[bool, int]] | None:
    """Return for each component of a feature's source whether it is an action, and its place; None for a baseline signal."""
    whole = {"position": [(False, i) for i in range(space.nq)], "velocity": [(False, space.nq + i) for i in range(space.nv)],
             "action": [(True, i) for i in range(space.nu)]}
    if name in space.state_names:
        return [(False, space.index(name))]
    if name in space.action:
        return [(True, space.action.index(name))]
    return whole.get(name)


class FeatureForm(NamedTuple):
    """A feature map as Warp functions."""

    key: tuple[object, ...]
    entries: Callable[[int], list[WarpFunction]]
    constants: list[float]


def feature_form(features: FeatureMap, space: StateSpace) -> FeatureForm | None:
    """Return the Warp form of a feature map; None where it looks at a signal of the baseline or at an ensemble's normaliser."""
    if features.spread.ndim > 1:
        return None
    plan: list[tuple[Feature, tuple[bool, int], tuple[bool, int] | None, int, int]] = []
    constants: list[float] = []
    column = 0
    for k, f in enumerate(features.features):
        places = source_places(f.source, space)
        direction = source_places(f.direction, space) if f.direction else None
        if places is None or (f.direction and (direction is None or len(direction) != 1)):
            return None
        for place in places:
            numbers = _constants(f, features, column)
            if f.direction:
                numbers.append(20.0 / float(features.pace[k]))
            for knot in range(f.knots if f.transform == "hats" else 1):
                plan.append((f, place, direction[0] if direction else None, len(constants), knot))
            constants += numbers
            column += 1
    key = tuple((f.transform, place, direction, at, knot, f.knots) for f, place, direction, at, knot in plan)

    def entries(c0: int) -> list[WarpFunction]:
        return [_entry(f, place, direction, c0 + at, knot) for f, place, direction, at, knot in plan]

    return FeatureForm(key, entries, constants)


def perceptron_weights(network: Perceptron) -> Callable[[], list[Tensor]] | None:
    """Return what lists matrices and biases in order; None for an ensemble's."""
    if network.weights[0].ndim > 2:
        return None
    weights, biases = network.weights._parameters, network.biases._parameters  # twice as quick as the lists' own iteration
    return lambda: [x for pair in zip(weights.values(), biases.values(), strict=True) for x in pair if x is not None]


def perceptron_sizes(network: Perceptron) -> tuple[int, ...]:
    """Return the units of each layer, inputs first."""
    return (network.weights[0].shape[-2], *(w.shape[-1] for w in network.weights))


def _constants(f: Feature, features: FeatureMap, column: int) -> list[float]:
    if f.transform in ("sin", "cos"):
        return []
    if f.transform == "slow":
        return [1.0 / f.width]
    if f.transform == "hats":
        lower, upper = float(features.lower[column]), float(features.upper[column])
        return [lower, 1.0 / (upper - lower)]
    return [(20.0 if f.transform == "sign" else 1.0) / float(features.spread[column])]


def _source(place: tuple[bool, int]) -> WarpFunction:
    is_action, i = place

    @warp_function
    def action_entry(x: Any, u: Any) -> float:
        return float(u[i])

    @warp_function
    def state_entry(x: Any, u: Any) -> float:
        return float(x[i])

    return action_entry if is_action else state_entry  # type: ignore[no-any-return]


def _entry(f: Feature, place: tuple[bool, int], direction: tuple[bool, int] | None, at: int, knot: int) -> WarpFunction:
    """Return one network input as ``(x, u, c) -> float``."""
    import warp as wp  # noqa: PLC0415

    source, last = _source(place), float(f.knots - 1)
    centre = float(knot)

    @warp_function
    def magnitude(x: float) -> float:
        # wp.abs has slope 1 at zero, torch has 0, and a log starts at rest
        return float(x * wp.where(x > 0.0, 1.0, wp.where(x < 0.0, -1.0, 0.0)))

    @warp_function
    def entry_identity(x: Any, u: Any, c: Any) -> float:
        return float(source(x, u) * c[at])

    @warp_function
    def entry_abs(x: Any, u: Any, c: Any) -> float:
        return float(magnitude(source(x, u)) * c[at])

    @warp_function
    def entry_sign(x: Any, u: Any, c: Any) -> float:
        return float(wp.tanh(source(x, u) * c[at]))

    @warp_function
    def entry_sin(x: Any, u: Any, c: Any) -> float:
        return float(wp.sin(source(x, u)))

    @warp_function
    def entry_cos(x: Any, u: Any, c: Any) -> float:
        return float(wp.cos(source(x, u)))

    @warp_function
    def entry_slow(x: Any, u: Any, c: Any) -> float:
        return float(wp.exp(-magnitude(source(x, u)) * c[at]))

    @warp_function
    def entry_hats(x: Any, u: Any, c: Any) -> float:
        place = wp.min(wp.max((source(x, u) - c[at]) * c[at + 1], 0.0), 1.0) * last
        return float(wp.max(1.0 - magnitude(place - centre), 0.0))

    kinds = {"identity": entry_identity, "abs": entry_abs, "sign": entry_sign, "sin": entry_sin, "cos": entry_cos,
             "slow": entry_slow, "hats": entry_hats}
    plain = kinds[f.transform]
    if direction is None:
        return plain  # type: ignore[no-any-return]
    along, pace = _source(direction), at + len(_numbers(f))

    @warp_function
    def entry_directed(x: Any, u: Any, c: Any) -> float:
        return float(plain(x, u, c) * wp.tanh(along(x, u) * c[pace]))

    return entry_directed  # type: ignore[no-any-return]


def _numbers(f: Feature) -> Sequence[str]:
    """Names of the constants that a transform keeps."""
    return {"sin": (), "cos": (), "hats": ("lower", "slope")}.get(f.transform, ("scale",))

