"""What a residual gives to a fused rollout: its inputs and its output as Warp functions, and its weights in order."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from residual_mbrl.residuals.features import Feature, FeatureMap
from residual_mbrl.residuals.networks import Perceptron
from residual_mbrl.spaces import StateSpace

WarpFunction = Callable[..., Any]


class WarpForm(NamedTuple):
    """A residual as a perceptron between two Warp functions of one world; ``c`` are its constants, which no gradient reaches.

    The functions take states x, executed actions u, physical parameters p and the constants of all residuals, whose own start where
    the caller says; so two residuals of one kind and structure are one compiled function however they are normalised.
    """

    key: tuple[object, ...]
    """Tells this structure from others: equal keys share compiled code."""
    constants: Tensor
    """Float64, shape [*members, constants]."""
    sizes: tuple[int, ...] = ()
    """Units of each layer of the perceptron, inputs first; none where there is no perceptron."""
    entries: Callable[[int], list[WarpFunction]] = lambda c0: []
    """``entries(c0)``: for each input a function ``(x, u, p, c) -> float``."""
    emit: Callable[[int, int], WarpFunction] | None = None
    """``emit(y0, c0)``: a function ``(y, x, u, p, c) -> port`` from the perceptron's outputs at y0; see ``port_type``."""
    weights: Callable[[], list[Tensor]] = list
    """``weights()``: matrix [*members, inputs, outputs] and bias of each layer as they are now, differentiable."""
    squashed: bool = True
    """Whether a tanh follows the perceptron, before ``emit``."""
    damping: bool = False
    """Whether it adds to the damping part of the port."""
    friction: bool = False
    """Whether it adds to the friction part of the port."""
    drive: Callable[[int, int, int], tuple[WarpFunction, WarpFunction]] | None = None
    """``drive(c0, p0, m0)`` of a residual with memory: two functions ``(x, u, p, c)``, what they add to the command and the memory after
    the step. On the action port u is the command as sent, on all others as executed, and nothing is added to it. Its scalars are
    parameters from p0 on, its memory is the state from m0 on."""
    scalars: Callable[[], list[Tensor]] = list
    """``scalars()``: weights that are not a perceptron's, each of shape [*members, k], differentiable."""
    placed: Callable[[int], tuple[Callable[[int], list[WarpFunction]], Callable[[int, int], WarpFunction]]] | None = None
    """``placed(m0)``: ``entries`` and ``emit`` of a residual that looks at its own memory, the state from m0 on."""


def warp_function(function: WarpFunction) -> Any:
    """Return ``wp.func`` of a function itself, below whatever a checker of annotations has wrapped around it."""
    import warp as wp  # noqa: PLC0415

    return wp.func(inspect.unwrap(function))


def summed(vector: Any, functions: Sequence[WarpFunction]) -> WarpFunction:
    """Return a function, the sum of vector functions of the same arguments; zero of none."""
    def total(*arguments: Any) -> Any:
        out = vector()
        for function in functions:
            out = out + function(*arguments)
        return out

    return total


def port_type(nv: int) -> Any:
    """Return the Warp vector [force, damping by rows, friction limit, rate of the tangent] of a system of nv degrees of freedom."""
    import warp as wp  # noqa: PLC0415  # only fused rollouts need it

    return wp.types.vector(length=4 * nv + nv * nv, dtype=wp.float32)


def no_command(nu: int) -> WarpFunction:
    """Return ``(x, u, p, c) -> change of the command`` of a residual with memory that leaves the command as it is."""
    import warp as wp  # noqa: PLC0415

    action = wp.types.vector(length=nu, dtype=wp.float32)

    @warp_function
    def nothing(x: Any, u: Any, p: Any, c: Any) -> Any:
        return action()

    return nothing  # type: ignore[no-any-return]


class Place(NamedTuple):
    """Where a network input comes from."""

    kind: str
    """"x" or "u", or the name of a baseline signal."""
    at: int
    signal: WarpFunction | None = None
    """``signal(x, u, p)``, of which the entry is taken."""


def source_places(name: str, space: StateSpace, signals: Mapping[str, tuple[int, WarpFunction]]) -> list[Place] | None:
    """Return the place of each component of a feature's source; None where it has none here.

    Args:
        name: As in ``Context.source``.
        space: Of the baseline.
        signals: Length and Warp form of the baseline's signals.
    """
    if name in signals:
        n, signal = signals[name]
        return [Place(name, i, signal) for i in range(n)]
    whole = {"position": [Place("x", i) for i in range(space.nq)], "velocity": [Place("x", space.nq + i) for i in range(space.nv)],
             "action": [Place("u", i) for i in range(space.nu)]}
    if name in space.state_names:
        return [Place("x", space.index(name))]
    if name in space.action:
        return [Place("u", space.action.index(name))]
    return whole.get(name)


class FeatureForm(NamedTuple):
    """A feature map as Warp functions."""

    key: tuple[object, ...]
    entries: Callable[[int], list[WarpFunction]]
    constants: list[Tensor]
    """Each of shape [*members]."""


def feature_form(features: FeatureMap, space: StateSpace, signals: Mapping[str, tuple[int, WarpFunction]]) -> FeatureForm | None:
    """Return the Warp form of a feature map; None where it looks at a signal that has none."""
    plan: list[tuple[Feature, Place, Place | None, int, int]] = []
    constants: list[Tensor] = []
    column = 0
    for k, f in enumerate(features.features):
        places = source_places(f.source, space, signals)
        direction = source_places(f.direction, space, signals) if f.direction else None
        if places is None or (f.direction and (direction is None or len(direction) != 1)):
            return None
        for place in places:
            numbers = _constants(f, features, column)
            if f.direction:
                numbers.append(20.0 / features.pace[..., k])
            for knot in range(f.knots if f.transform == "hats" else 1):
                plan.append((f, place, direction[0] if direction else None, len(constants), knot))
            constants += numbers
            column += 1
    key = tuple((f.transform, place[:2], direction and direction[:2], at, knot, f.knots) for f, place, direction, at, knot in plan)

    def entries(c0: int) -> list[WarpFunction]:
        return [_entry(f, place, direction, c0 + at, knot) for f, place, direction, at, knot in plan]

    return FeatureForm(key, entries, constants)


def constants_of(numbers: Sequence[Tensor | float]) -> Tensor:
    """Join numbers, each of shape [*members], to [*members, n]."""
    tensors = [torch.as_tensor(x, dtype=torch.float64) for x in numbers]
    return torch.stack(torch.broadcast_tensors(*tensors), -1) if tensors else torch.zeros(0, dtype=torch.float64)


def perceptron_weights(network: Perceptron) -> Callable[[], list[Tensor]]:
    """Return what lists matrices and biases in order."""
    weights, biases = network.weights._parameters, network.biases._parameters  # twice as quick as the lists' own iteration
    return lambda: [x for pair in zip(weights.values(), biases.values(), strict=True) for x in pair if x is not None]


def perceptron_sizes(network: Perceptron) -> tuple[int, ...]:
    """Return the units of each layer, inputs first."""
    return (network.weights[0].shape[-2], *(w.shape[-1] for w in network.weights))


def _constants(f: Feature, features: FeatureMap, column: int) -> list[Tensor]:
    spread, lower, upper = (x[..., column] for x in (features.spread, features.lower, features.upper))
    if f.transform in ("sin", "cos"):
        return []
    if f.transform == "slow":
        return [torch.full_like(spread, 1.0 / f.width)]
    if f.transform == "hats":
        return [lower, 1.0 / (upper - lower)]
    return [(20.0 if f.transform == "sign" else 1.0) / spread]


def source_entry(place: Place) -> WarpFunction:
    """Return ``(x, u, p) -> float``, the entry at a place."""
    i, signal = place.at, place.signal

    @warp_function
    def action_entry(x: Any, u: Any, p: Any) -> Any:
        return u[i]

    @warp_function
    def state_entry(x: Any, u: Any, p: Any) -> Any:
        return x[i]

    @warp_function
    def signal_entry(x: Any, u: Any, p: Any) -> Any:
        return signal(x, u, p)[i]  # type: ignore[misc]

    forms = {"x": state_entry, "u": action_entry}
    return signal_entry if signal is not None else forms[place.kind]  # type: ignore[no-any-return]


def _entry(f: Feature, place: Place, direction: Place | None, at: int, knot: int) -> WarpFunction:
    """Return one network input as ``(x, u, p, c) -> float``."""
    import warp as wp  # noqa: PLC0415

    source, last = source_entry(place), float(f.knots - 1)
    centre = float(knot)

    @warp_function
    def entry_identity(x: Any, u: Any, p: Any, c: Any) -> Any:
        return source(x, u, p) * c[at]

    @warp_function
    def entry_abs(x: Any, u: Any, p: Any, c: Any) -> Any:
        return wp.abs(source(x, u, p)) * c[at]

    @warp_function
    def entry_sign(x: Any, u: Any, p: Any, c: Any) -> Any:
        return wp.tanh(source(x, u, p) * c[at])

    @warp_function
    def entry_sin(x: Any, u: Any, p: Any, c: Any) -> Any:
        return wp.sin(source(x, u, p))

    @warp_function
    def entry_cos(x: Any, u: Any, p: Any, c: Any) -> Any:
        return wp.cos(source(x, u, p))

    @warp_function
    def entry_slow(x: Any, u: Any, p: Any, c: Any) -> Any:
        return wp.exp(-(wp.abs(source(x, u, p)) * c[at]))

    @warp_function
    def entry_hats(x: Any, u: Any, p: Any, c: Any) -> Any:
        place = wp.min(wp.max((source(x, u, p) - c[at]) * c[at + 1], 0.0), 1.0) * last
        return wp.max(1.0 - wp.abs(place - centre), 0.0)

    kinds = {"identity": entry_identity, "abs": entry_abs, "sign": entry_sign, "sin": entry_sin, "cos": entry_cos,
             "slow": entry_slow, "hats": entry_hats}
    plain = kinds[f.transform]
    if direction is None:
        return plain  # type: ignore[no-any-return]
    along, pace = source_entry(direction), at + len(_numbers(f))

    @warp_function
    def entry_directed(x: Any, u: Any, p: Any, c: Any) -> Any:
        return plain(x, u, p, c) * wp.tanh(along(x, u, p) * c[pace])

    return entry_directed  # type: ignore[no-any-return]


def _numbers(f: Feature) -> Sequence[str]:
    """Names of the constants that a transform keeps."""
    return {"sin": (), "cos": (), "hats": ("lower", "slope")}.get(f.transform, ("scale",))

