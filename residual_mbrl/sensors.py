"""What a log's columns are in terms of the state, and what its commands are in terms of the plant's input.

A log is not the state: columns are biased, scaled, late, filtered, differentiated from other columns, rounded, drifting. What
the instrument did is identified together with the plant, so that neither parameters nor residuals explain it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from residual_mbrl.baselines import Parameters, Values
from residual_mbrl.effects import Differentiated, Effect
from residual_mbrl.errors import ModelError
from residual_mbrl.spaces import StateSpace
from residual_mbrl.windows import Windows

_SLOPE_SAMPLES = 7
"""Samples at the start of a window from which a velocity without a column is estimated."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One measured column.

    Args:
        name: Name in the log.
        source: State entry that it shows, or the name of an earlier column that it was computed from.
        noise: Standard deviation of its noise, in its unit; scales the error in every fit. Infinite: the column only serves
            first states.
        effects: What the instrument does, in order.
        largest: Largest magnitude that is plausible, in SI units; beyond it the unit is taken to be wrong.
    """

    name: str
    source: str
    noise: float
    effects: tuple[Effect, ...] = ()
    largest: float = math.inf

    def __post_init__(self) -> None:
        """Check the noise."""
        if not self.noise > 0:
            raise ValueError(f"Column {self.name!r}: noise must be positive, received {self.noise}")


@dataclass(frozen=True, kw_only=True)
class Sensor:
    """How a plant's state shows in a log, and how the log's commands reach the plant.

    Args:
        space: State space of the baseline.
        columns: Measured columns, in the order of the log's measurements.
        commands: Effects on a command column, by its name (a drifting offset, a scale, a delay); others pass unchanged.
    """

    space: StateSpace
    columns: tuple[Column, ...]
    commands: Mapping[str, Sequence[Effect]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that every column and command exists in the space."""
        for k, column in enumerate(self.columns):
            if column.source not in [c.name for c in self.columns[:k]]:
                self.space.index(column.source)
        for name in self.commands:
            if name not in self.space.action:
                raise ModelError(f"Sensor: no command {name!r}; there are {list(self.space.action)}")

    @property
    def parameters(self) -> Parameters:
        """Parameters of all effects, named ``column.effect``."""
        named = [(c.name, e) for c in self.columns for e in c.effects] + [(n, e) for n, es in self.commands.items() for e in es]
        return Parameters(*(p for p in (e.parameter(n) for n, e in named) if p is not None))

    def with_nominal(self, values: Mapping[str, float]) -> Sensor:
        """Return this sensor with other nominal values of its effects, by ``column.effect``."""
        def changed(name: str, effects: Sequence[Effect]) -> tuple[Effect, ...]:
            return tuple(replace(e, nominal=values.get(f"{name}.{e.kind}", e.nominal)) for e in effects)

        return replace(self, columns=tuple(replace(c, effects=changed(c.name, c.effects)) for c in self.columns),
                       commands={n: changed(n, es) for n, es in self.commands.items()})

    @property
    def reach(self) -> tuple[int, int]:
        """Steps before and after a sample that the columns need to be exact there."""
        chains = [self.chain(k) for k in range(len(self.columns))]
        before, after = zip(*([sum(e.reach[i] for c in chain for e in c.effects) for i in (0, 1)] for chain in chains), strict=True)
        return max(before), max(after)

    @property
    def is_direct(self) -> bool:
        """Whether columns are state entries as they are, and commands reach the plant as they were logged."""
        return not any(c.effects for c in self.columns) and not any(self.commands.values())

    def chain(self, k: int) -> list[Column]:
        """Return column k and the columns it was computed from, the first one showing a state entry."""
        names = [c.name for c in self.columns[:k]]
        column = self.columns[k]
        earlier = self.chain(names.index(column.source)) if column.source in names else []
        return [*earlier, column]

    def shown(self, k: int) -> str | None:
        """Return the state entry that column k stands for: its source, or the velocity of a position differentiated once."""
        chain = self.chain(k)
        name, order = chain[0].source, self._order(k)
        if order == 1 and name in self.space.position and self.space.nq == self.space.nv:
            return self.space.velocity[self.space.position.index(name)]
        return name if order == 0 else None

    def unit(self, k: int) -> str:
        """Return the unit of column k."""
        order = self._order(k)
        name = self.space.unit(self.shown(k) or self.chain(k)[0].source)
        return name if self.shown(k) is not None else f"{name}/s{'²' if order == 2 else f'^{order}' if order > 2 else ''}"

    def _order(self, k: int) -> int:
        return sum(e.order for c in self.chain(k) for e in c.effects if isinstance(e, Differentiated))

    @property
    def noise(self) -> list[float]:
        """Noise of every column, in its unit."""
        return [c.noise for c in self.columns]

    def measure(self, states: Float[Tensor, "*#batch time nx"], time: Float[Tensor, "*#batch time"], dt: float,
                values: Values | None = None, *, lead: int = 0) -> Float[Tensor, "... time ny"]:
        """Return what a log of these states would hold.

        Args:
            states: Shape [*batch, T, nx].
            time: Time since the log's zero [s], shape [*batch, T].
            dt: Seconds between states.
            values: Effect parameters by name, each broadcastable to [*batch]; nominal where missing.
            lead: How many of the states come before the window's first one.
        """
        p = self.parameters.resolve(values, states)
        out: dict[str, Tensor] = {}
        for c in self.columns:
            source = out[c.source] if c.source in out else states[..., self.space.index(c.source)]
            out[c.name] = self._apply(c.name, c.effects, source, time, dt, p, lead)
        return torch.stack(torch.broadcast_tensors(*out.values()), -1)

    def command(self, actions: Float[Tensor, "*#batch time nu"], time: Float[Tensor, "*#batch time"], dt: float,
                values: Values | None = None, *, lead: int = 0) -> Tensor:
        """Return what reaches the plant when a log holds these commands, shape [*batch, H, nu].

        Delays and filters take what came before the first command to be the first command: hand them the commands before a
        window too.

        Args:
            actions: Commands as logged, shape [*batch, H, nu].
            time: Time since the log's zero [s], shape [*batch, H].
            dt: Seconds between commands.
            values: Effect parameters by name, each broadcastable to [*batch]; nominal where missing.
            lead: How many of the commands come before the window's first one.
        """
        if not self.commands:
            return actions
        p = self.parameters.resolve(values, actions)
        out = [self._apply(n, self.commands.get(n, ()), actions[..., i], time, dt, p, lead) for i, n in enumerate(self.space.action)]
        return torch.stack(torch.broadcast_tensors(*out), -1)

    def start(self, windows: Windows, values: Values | None = None) -> Tensor:
        """Estimate each window's first state from its first samples, shape [*batch, B, nx].

        A state entry with a column of its own takes the column's first recorded sample, bias and scale undone. A velocity
        without one takes the slope at the start of a quadratic through the first samples of its position.

        Args:
            windows: The windows.
            values: Effect parameters by name, each broadcastable to [*batch, B].

        Raises:
            ModelError: if a state entry shows in no column.
        """
        p = self.parameters.resolve(values, windows.measurements)
        entries = []
        for i, name in enumerate(self.space.state_names):
            own = self.place(name)
            if own is not None:
                first = windows.recorded[:, :, own].to(torch.int8).argmax(1, keepdim=True)
                x = self._undo(own, windows.measurements[:, :, own].gather(1, first), p).squeeze(-1)
            else:
                x = self._slope(windows, i, name, p)
            entries.append(x)
        return torch.stack(torch.broadcast_tensors(*entries), -1)

    def place(self, name: str) -> int | None:
        """Return the place of the first column that stands for a state entry; None if there is none."""
        return next((k for k in range(len(self.columns)) if self.shown(k) == name), None)

    def _undo(self, k: int, x: Tensor, p: Values) -> Tensor:
        """Undo what can be undone sample by sample on samples [B, n] of column k; shape [*batch, B, n]."""
        for effect in reversed(self.columns[k].effects):
            key = f"{self.columns[k].name}.{effect.kind}"
            x = effect.undo_first(x, p[key].unsqueeze(-1)) if key in p else x
        return x

    def _slope(self, windows: Windows, i: int, name: str, p: Values) -> Tensor:
        nq, nv = self.space.nq, self.space.nv
        own = self.place(self.space.position[i - nq]) if nq <= i < nq + nv and nq == nv else None
        if own is None:
            raise ModelError(f"Sensor: state entry {name!r} shows in no column and is no velocity of one that does")
        n = min(_SLOPE_SAMPLES, windows.horizon + 1)
        x = self._undo(own, windows.measurements[:, :n, own], p)
        weight = windows.recorded[:, :n, own].to(x)
        powers = torch.arange(n, dtype=x.dtype, device=x.device)[:, None] ** torch.arange(min(3, n), device=x.device)
        slope: Tensor = torch.linalg.pinv(weight.unsqueeze(-1) * powers)[:, 1] / windows.dt
        return (slope * weight * x).sum(-1)

    def _apply(self, name: str, effects: Sequence[Effect], signal: Tensor, time: Tensor, dt: float, p: Values, lead: int) -> Tensor:
        for effect in effects:
            value = p.get(f"{name}.{effect.kind}")
            value = signal.new_zeros(1) if value is None else value.unsqueeze(-1)
            signal = effect.apply(signal, value, time, dt, lead)
        return signal

    def describe(self) -> dict[str, object]:
        """Return the sensor as JSON holds it, without the space."""
        return {"columns": [{"name": c.name, "source": c.source, "noise": c.noise, "largest": c.largest,
                             "effects": _described(c.effects)} for c in self.columns],
                "commands": {n: _described(es) for n, es in self.commands.items()}}


def _described(effects: Sequence[Effect]) -> list[dict[str, object]]:
    return [{"type": type(e).__name__, **asdict(e)} for e in effects]


def state_sensor(space: StateSpace, noise: float | Sequence[float]) -> Sensor:
    """Return the sensor of a log that holds the state itself, each entry with white noise of this standard deviation.

    Args:
        space: Of the baseline.
        noise: One number, or one for each state entry.

    Raises:
        ValueError: if the number of entries does not fit.
    """
    each = [noise] * space.nx if isinstance(noise, int | float) else list(noise)
    if len(each) != space.nx:
        raise ValueError(f"state_sensor: expected one noise or {space.nx}, received {len(each)}")
    columns = tuple(Column(name=n, source=n, noise=float(x)) for n, x in zip(space.state_names, each, strict=True))
    return Sensor(space=space, columns=columns)
