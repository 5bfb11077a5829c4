"""Multi-step simulation error as a function of one vector of unknowns, with its Jacobian by batched differences.

Everything that is estimated from logs - physical parameters, sensor effects, first states, residual weights - is a
column of one vector z of scaled unknowns. All perturbed copies that a Jacobian needs are simulated in one batched rollout,
so a Jacobian costs little more than one simulation.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from residual_mbrl import robust
from residual_mbrl.baselines import Parameter
from residual_mbrl.data_cost import DataCost, bounded
from residual_mbrl.drawn_windows import DrawnWindows
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.errors import ModelError
from residual_mbrl.observation import observe
from residual_mbrl.rollouts import rollout, rollout_cost
from residual_mbrl.sensors import Sensor
from residual_mbrl.windows import Windows

Array = NDArray[np.float64]
CHANGE = 1.0
"""Standard deviations of the noise, as root mean square over the data, by which a difference step may move the simulation: more than that
says little more of the slope, and what is not linear comes in. A step that moves it less stays as large as it may be."""
SHARE = 0.1
"""The same relative to the errors where they are larger: far from the solution the slope over a part of the way counts."""
BEYOND = 5.0
"""How many times more a step may move it before the difference is taken again with a smaller one."""
SHRINKS = 3
"""Times that it is taken again at most."""
OFF_BOUND = 0.01
"""Distance from its bounds [scaled units] at which a least-squares search starts."""


class Derivatives(NamedTuple):
    """What a residual vector does near a place, and with which difference steps it is to be looked at next."""

    shared: Array
    """Derivative of all rows by parameters and weights, shape [rows, n + w]."""
    own: Array
    """Derivative of the data rows by the first state of the window that each belongs to, shape [data rows, s]."""
    steps: Array
    """Shape [n + w + s]."""


class _Simulation(nn.Module):
    """Holds the dynamics so that ``functional_call`` can exchange its weights for a whole rollout."""

    def __init__(self, dynamics: ResidualDynamics) -> None:
        super().__init__()
        self.dynamics = dynamics

    def forward(self, state: Tensor, actions: Tensor, values: Mapping[str, Tensor], lead: Tensor, cost: DataCost | None = None) -> Tensor:
        """Return the states, or with a cost that of each window."""
        if cost is not None:
            return rollout_cost(self.dynamics, state, actions, cost, values, lead)
        return rollout(self.dynamics, state, actions, values, lead)


@dataclass(frozen=True, kw_only=True)
class SimulationError:
    """The error between logs and simulation, in units of the sensors' noise.

    z = [scaled parameters, residual weights, first-state offsets]. A parameter is ``nominal + scale · z``.

    Args:
        dynamics: The model; its values are used for everything that is not free.
        sensor: From states to columns.
        windows: The data.
        free: Parameters of baseline and sensor to estimate.
        weights: Whether the residuals' weights are unknowns too.
        start_std: Standard deviation within which each state entry of a window's first state is estimated, shape [nx];
            None takes the sensor's estimate as it is.
        step: Absolute finite-difference step in scaled units at most. Large, because stiction is not smooth; smaller for an unknown
            along which it would move the simulation far beyond the noise, see ``derivatives``.
        every: Use every so many-th step of the error; neighbouring samples say nearly the same.
        chunk: Simulations (copies times windows) per batched rollout, a bound on memory.
    """

    dynamics: ResidualDynamics
    sensor: Sensor
    windows: Windows
    free: Sequence[Parameter]
    weights: bool = False
    start_std: Sequence[float] | None = None
    step: float = 0.02
    every: int = 1
    chunk: int = 4096
    _shapes: dict[str, torch.Size] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Check that everything fits together."""
        if self.weights:
            self._shapes.update({n: w.shape for n, w in _Simulation(self.dynamics).named_parameters()})
        if not self.free and not self._shapes and self.start_std is None:
            raise ModelError("nothing to estimate: no free parameters, no residual weights and no first states")
        ny = self.windows.measurements.shape[-1]
        if ny != len(self.sensor.columns):
            raise ValueError(f"SimulationError: the sensor has {len(self.sensor.columns)} columns, the logs have {ny}")
        if abs(self.windows.dt / self.dynamics.dt - 1) > 1e-6:
            raise ModelError(f"the model steps {self.dynamics.dt:g} s, the windows {self.windows.dt:g} s: build both at one rate")

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Number of parameters, weights and first-state offsets per window in z."""
        starts = 0 if self.start_std is None else len(self.start_std)
        return len(self.free), sum(s.numel() for s in self._shapes.values()), starts

    @property
    def length(self) -> int:
        """Length of z."""
        n, w, s = self.sizes
        return n + w + s * len(self.windows)

    def initial(self, sensor_values: Mapping[str, float] | None = None) -> Array:
        """Return z of the model as it stands: its own parameter values and weights, first states as measured."""
        current = {**self.sensor.parameters.nominal(), **self.dynamics.values, **(sensor_values or {})}
        z = [(current[p.name] - p.nominal) / p.scale for p in self.free]
        w = [x.detach().double().flatten() for n, x in _Simulation(self.dynamics).named_parameters() if n in self._shapes]
        return np.concatenate([np.array(z), torch.cat(w).cpu().numpy() if w else np.zeros(0), np.zeros(self.sizes[2] * len(self.windows))])

    def fingerprint(self, options: object) -> str:
        """Return a digest of model, data and options, by which a checkpoint knows its problem."""
        digest = hashlib.sha256(self.initial().tobytes())
        data = self.windows
        for x in (data.measurements, data.lead, data.actions, data.recorded, data.time, *self.dynamics.state_dict().values()):
            digest.update(x.cpu().numpy().tobytes())
        parts = [(type(x).__name__, x.describe()) for x in (self.dynamics.baseline, *self.dynamics.residuals)]
        digest.update(repr([options, list(self.free), self.sensor.describe(), self.dynamics.values, parts]).encode())
        return digest.hexdigest()

    def bounds(self) -> tuple[Array, Array]:
        """Return lower and upper bounds of z."""
        lower = np.full(self.length, -np.inf)
        upper = np.full(self.length, np.inf)
        for i, p in enumerate(self.free):
            lower[i], upper[i] = (p.lower - p.nominal) / p.scale, (p.upper - p.nominal) / p.scale
        return lower, upper

    def inside(self, z: Array) -> Array:
        """Return z moved off its bounds: from a bound itself a trust region can hardly take a step, nor the others with it."""
        lower, upper = self.bounds()
        margin = np.minimum(OFF_BOUND, 0.25 * (upper - lower))
        return np.clip(z, lower + margin, upper - margin)

    def values(self, z: Array) -> dict[str, float]:
        """Return the parameter values that z stands for."""
        return {p.name: float(np.clip(p.nominal + p.scale * z[i], p.lower, p.upper)) for i, p in enumerate(self.free)}

    def model(self, z: Array) -> tuple[ResidualDynamics, dict[str, float]]:
        """Write z into a model of the same baseline; return it and the values of the sensor's parameters."""
        values = self.values(z)
        fitted = self.dynamics.with_residuals(copy.deepcopy(list(self.dynamics.corrections)))
        fitted = fitted.with_values({n: x for n, x in values.items() if n in self.dynamics.values})
        with torch.no_grad():
            for name, w in self._split_weights(torch.tensor(z[None])).items():
                fitted.get_parameter(name.removeprefix("dynamics.")).copy_(w[0])
        return fitted, {n: x for n, x in values.items() if n not in self.dynamics.values}

    def simulate(self, z: Tensor, drawn: DrawnWindows | None = None) -> tuple[Tensor, Tensor]:
        """Simulate every copy of the unknowns; return predicted columns [M, B, T, ny] and states [M, B, T, nx].

        Args:
            z: Shape [M, length]; differentiable in torch. The simulation runs in the windows' dtype, on their device.
            drawn: The windows of each copy, of which there are K in place of B.
        """
        z = z.to(self.windows.measurements)
        values, offsets, simulation = self._values(z), self._offsets(z, drawn), self._simulation(z)

        def roll(start: Tensor, actions: Tensor, lead: Tensor) -> Tensor:
            return simulation(start, actions, lead)

        if drawn is None:
            measurements, states, _ = observe(roll, self.sensor, self.windows, values, copies=len(z), offsets=offsets)
            return measurements, states
        sensed = {p: drawn.each(x) for p, x in values.items()}
        offsets = None if offsets is None else offsets.flatten(0, 1)
        measurements, states, _ = observe(drawn.apart(roll), self.sensor, drawn.windows, sensed, offsets=offsets)
        return measurements.unflatten(0, drawn.rows.shape), states.unflatten(0, drawn.rows.shape)

    def residuals(self, z: Tensor) -> Tensor:
        """Return scaled errors of the recorded samples, then prior terms, shape [M, rows]."""
        z = z.to(self.windows.measurements)
        predicted, _ = self.simulate(z)
        noise = z.new_tensor(self.sensor.noise)
        error = ((predicted - self.windows.measurements) / noise)[:, self.fitted]
        return torch.cat([bounded(error), self._prior(z)], -1)

    def cost(self, z: Tensor, loss: robust.Loss, f_scale: float, drawn: DrawnWindows | None = None) -> Tensor:
        """Return half the sum of squares of ``residuals``, robust on the data, shape [M]; windows count as often as they are drawn."""
        return self.costs(loss, f_scale, drawn)(z)

    def costs(self, loss: robust.Loss, f_scale: float, drawn: DrawnWindows | None = None) -> Callable[[Tensor], Tensor]:
        """Return ``cost`` as a function of z alone, with whatever does not depend on z made once."""
        data = (self._direct_cost if self.sensor.is_direct else self._sensed_cost)(loss, f_scale, drawn)

        def cost(z: Tensor) -> Tensor:
            z = z.to(self.windows.measurements)
            return data(z) + 0.5 * self._prior(z).square().sum(-1)

        return cost

    def _sensed_cost(self, loss: robust.Loss, f_scale: float, drawn: DrawnWindows | None) -> Callable[[Tensor], Tensor]:
        """Return the cost of the data as a function of z."""
        windows = self.windows if drawn is None else drawn.windows
        noise = windows.measurements.new_tensor(self.sensor.noise)
        counted, weights = (self.fitted, None) if drawn is None else (None, self._weights(drawn))

        def cost(z: Tensor) -> Tensor:
            predicted, _ = self.simulate(z, drawn)
            if weights is None:
                return robust.torch_cost(bounded(((predicted - windows.measurements) / noise)[:, counted]), loss, f_scale)
            error = bounded((predicted - windows.measurements.view_as(predicted)) / noise)
            return robust.torch_cost(error.flatten(1), loss, f_scale, weights.view_as(predicted).flatten(1))

        return cost

    def _direct_cost(self, loss: robust.Loss, f_scale: float, drawn: DrawnWindows | None) -> Callable[[Tensor], Tensor]:
        """Return the same where columns are state entries as they are: rollout and cost are then one fused function."""
        windows = self.windows if drawn is None else drawn.windows
        batch, like = (len(windows),) if drawn is None else drawn.rows.shape, windows.measurements
        counts = like.new_ones(batch) if drawn is None else drawn.counts.to(like)
        scale = self._counted(windows).to(like) / like.new_tensor(self.sensor.noise)
        places = [self.sensor.space.index(self.sensor.chain(k)[0].source) for k in range(len(self.sensor.columns))]
        error = DataCost(places=places, samples=like.unflatten(0, batch), scale=scale.unflatten(0, batch), weight=counts, loss=loss,
                         f_scale=f_scale)
        first, actions, lead = (x.unflatten(0, batch) for x in (self.sensor.start(windows), windows.actions, windows.lead))

        def cost(z: Tensor) -> Tensor:
            start, offsets = first.expand(len(z), -1, -1), self._offsets(z, drawn)
            start = start if offsets is None else start + offsets
            return self._simulation(z)(start, actions, lead, error).sum(-1)

        return cost

    def _simulation(self, z: Tensor) -> Callable[..., Tensor]:
        """Return the simulation of every copy's windows, or with a cost theirs."""
        values = {n: x for n, x in self._values(z).items() if n in self.dynamics.values}
        stacked, simulation = self._split_weights(z), _Simulation(self.dynamics)

        def simulate(start: Tensor, actions: Tensor, lead: Tensor, cost: DataCost | None = None) -> Tensor:
            arguments = (start, actions, values, lead, cost)
            out: Tensor = torch.func.functional_call(simulation, stacked, arguments) if stacked else simulation(*arguments)
            return out

        return simulate

    def _values(self, z: Tensor) -> dict[str, Tensor]:
        """Return the free parameters of every copy by name, each of shape [M, 1]."""
        return {p.name: (p.nominal + p.scale * z[:, i : i + 1]) for i, p in enumerate(self.free)}

    def _offsets(self, z: Tensor, drawn: DrawnWindows | None) -> Tensor | None:
        """Return what is added to the first states, shape [M, B, nx]; of the drawn windows [M, K, nx]."""
        n, w, s = self.sizes
        if not s:
            return None
        scaled = z[:, n + w :].unflatten(-1, (len(self.windows), s)) * z.new_tensor(self.start_std)
        if drawn is not None:
            scaled = scaled.gather(1, drawn.rows.unsqueeze(-1).expand(-1, -1, s))
        return torch.nn.functional.pad(scaled, (0, self.sensor.space.nx - s))

    def _prior(self, z: Tensor) -> Tensor:
        prior = [z[:, i : i + 1] * (p.scale / p.prior_std) for i, p in enumerate(self.free) if p.prior_std is not None]
        return torch.cat([*prior, z[:, sum(self.sizes[:2]) :]], -1)

    def _weights(self, drawn: DrawnWindows) -> Tensor:
        return self._counted(drawn.windows) * drawn.counts.flatten()[:, None, None].to(drawn.windows.measurements)

    @property
    def fitted(self) -> Tensor:
        """Which samples count: recorded ones of columns with finite noise, every ``every``-th step, shape [B, H + 1, ny]."""
        return self._counted(self.windows)

    def _counted(self, windows: Windows) -> Tensor:
        recorded = windows.recorded
        steps = torch.arange(windows.horizon + 1, device=recorded.device) % self.every == 0
        return recorded & torch.tensor(np.isfinite(self.sensor.noise), device=recorded.device) & steps[:, None]

    def rows(self) -> int:
        """Return how many rows of the residual vector are data."""
        return int(self.fitted.sum())

    def __call__(self, z: Array) -> Array:
        """Return the residual vector of one z."""
        with torch.no_grad():
            return _array(self.residuals(self.windows.measurements.new_tensor(z[None]))[0])

    def batch(self, copies: Array) -> Array:
        """Return residual vectors of many copies of z, shape [M, rows], simulated in chunks."""
        size = max(1, self.chunk // len(self.windows))
        with torch.no_grad():
            parts = [self.windows.measurements.new_tensor(copies[i : i + size]) for i in range(0, len(copies), size)]
            return np.concatenate([_array(self.residuals(z)) for z in parts])

    def jacobian(self, z: Array, here: Array | None = None) -> Array:
        """Return d residuals / d z by central differences, shape [rows, length]; one-sided at a bound.

        Args:
            z: Where.
            here: The residual vector at z; differences are then one-sided, of first order in the step, for half the work.
        """
        by_shared, by_own, _ = self.derivatives(z, self(z) if here is None else here, one_sided=here is not None)
        shared, s, b = by_shared.shape[1], by_own.shape[1], len(self.windows)
        if not s:
            return by_shared
        jacobian = np.zeros((len(by_shared), self.length))
        jacobian[:, :shared] = by_shared
        owner, data = self.owner(), np.arange(len(by_own))
        for k in range(s):
            jacobian[data, shared + owner * s + k] = by_own[:, k]
        tail = jacobian.shape[0] - s * b
        jacobian[tail:, shared:] = np.eye(s * b)
        return jacobian

    def derivatives(self, z: Array, here: Array, *, one_sided: bool = False, steps: Array | None = None) -> Derivatives:
        """Return the parts of ``jacobian`` that may differ from zero and one.

        First states of different windows are perturbed together, since a window depends on its own alone. A difference whose step moves
        the simulation by far more than noise and errors are is taken again with a smaller one: what a parameter's bounds and
        nominal value say of its scale can be a hundred times what it takes to spoil a long simulation.

        Args:
            z: Where.
            here: The residual vector at z.
            one_sided: Take differences of first order, for half the work.
            steps: What to begin with for each unknown, parameters, weights, and entries of first states, shape [n + w + s].
        """
        n, w, s = self.sizes
        shared, rows = n + w, self.rows()
        steps = np.full(shared + s, self.step) if steps is None else steps.copy()
        slopes, left = np.zeros((shared + s, len(here))), np.arange(shared + s)
        allowed = max(CHANGE, SHARE * _spread(here[:rows]))
        for _ in range(SHRINKS + 1):
            directions = np.zeros((len(left), self.length))
            for row, k in zip(directions, left, strict=True):
                row[k :: s if k >= shared else self.length] = steps[k]
            slopes[left] = self._slopes(z, directions, here if one_sided else None)
            moved = _spread(slopes[left, :rows]) * steps[left]
            far = moved > BEYOND * allowed
            steps[left] = np.minimum(self.step, steps[left] * allowed / np.maximum(moved, 1e-12))
            left = left[far]
            if not len(left):
                break
        return Derivatives(np.ascontiguousarray(slopes[:shared].T), np.ascontiguousarray(slopes[shared:, :rows].T), steps)

    def owner(self) -> NDArray[np.intp]:
        """Return the window that each data row belongs to, in ascending order, shape [data rows]."""
        fitted = self.fitted.cpu().numpy()
        return np.asarray(np.broadcast_to(np.arange(len(fitted))[:, None, None], fitted.shape)[fitted])

    def _slopes(self, z: Array, directions: Array, here: Array | None) -> Array:
        """Return the derivative of the residual vector along some directions, per their length, shape [number, rows]."""
        lower, upper = self.bounds()
        if here is None:
            ahead, behind = np.minimum(z + directions, upper), np.maximum(z - directions, lower)
            values = self.batch(np.concatenate([ahead, behind]))
            change, width = values[: len(ahead)] - values[len(ahead) :], ahead - behind
        else:
            side = np.where((z + directions <= upper).all(-1, keepdims=True), 1.0, -1.0)
            moved = np.clip(z + side * directions, lower, upper)
            change, width = side * (self.batch(moved) - here), np.abs(moved - z)
        return np.asarray(change / np.maximum(width.max(-1, keepdims=True), 1e-12))

    def _split_weights(self, z: Tensor) -> dict[str, Tensor]:
        first, w, _ = self.sizes
        parts = z[:, first : first + w].split([s.numel() for s in self._shapes.values()], -1)
        return {n: part.unflatten(-1, tuple(s)) if s else part[:, 0] for (n, s), part in zip(self._shapes.items(), parts, strict=True)}


def _spread(x: Array) -> Any:
    """Return the root mean square over the last axis; zero of nothing."""
    return np.sqrt(np.square(x).mean(-1)) if x.shape[-1] else np.zeros(x.shape[:-1])


def _array(x: Tensor) -> Array:
    return np.asarray(x.double().cpu().numpy())
