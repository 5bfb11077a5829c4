"""Bootstrap ensembles: M models of one structure trained in one batch, each on windows drawn anew."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from residual_mbrl.baselines import Parameter
from residual_mbrl.descriptions import reseeded
from residual_mbrl.drawn_windows import DrawnWindows
from residual_mbrl.dynamics import ResidualDynamics, ensemble
from residual_mbrl.errors import ModelError
from residual_mbrl.fitting import FitOptions, descend, normalise
from residual_mbrl.model import Model
from residual_mbrl.observation import Prediction, observe
from residual_mbrl.rollouts import rollout
from residual_mbrl.simulation_error import SimulationError
from residual_mbrl.windows import Windows


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """M models that run as one; the weights of ``model`` carry a leading member dimension.

    Args:
        model: The dynamics of all members, and the sensor.
        size: Number of members M.
        values: Physical and sensor values that differ between members, each of shape [M, 1].
    """

    model: Model
    size: int
    values: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, members: Sequence[Model]) -> Ensemble:
        """Join models of one structure."""
        if not members:
            raise ValueError("Ensemble: expected at least one model")
        found = [{**m.dynamics.values, **m.sensor_values} for m in members]
        differing = [n for n in found[0] if len({f[n] for f in found}) > 1]
        values = {n: torch.tensor([[f[n]] for f in found], dtype=torch.float64) for n in differing}
        return cls(model=replace(members[0], dynamics=ensemble([m.dynamics for m in members])), size=len(members), values=values)

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Physical values that differ between members, for ``rollout``, each of shape [M, 1]."""
        return {n: v for n, v in self.values.items() if n in self.model.dynamics.values}

    def predict(self, windows: Windows) -> Prediction:
        """Simulate every window by every member, without gradients; shapes [M, B, ...]."""
        like = windows.measurements
        own = {n: v.to(like) for n, v in self.parameters.items()}
        sensed = {**self.model.values(like), **{n: v.to(like) for n, v in self.values.items() if n not in own}}

        def roll(state: Tensor, actions: Tensor, lead: Tensor) -> Tensor:
            return rollout(self.model.dynamics, state, actions, own, lead)

        with torch.no_grad():
            return observe(roll, self.model.sensor, windows, sensed, copies=self.size)


def bootstrap_counts(windows: Windows, members: int, *, seed: int = 0, by_log: bool = False) -> Tensor:
    """Return how often each window counts for each member, shape [M, B]: as many are drawn, with replacement, as there are.

    Args:
        windows: The windows.
        members: Members M.
        seed: Of the draws.
        by_log: Draw whole logs, whose windows are not independent; else windows.
    """
    units = windows.log.numpy() if by_log else np.arange(len(windows))
    names, place = np.unique(units, return_inverse=True)
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=members)
    return torch.from_numpy(drawn[:, place].astype(float))


def fit_ensemble(model: Model, train: Windows, *, members: int = 5, options: FitOptions | None = None, free: Sequence[Parameter] = (),
                 seed: int = 0, fresh: bool = True, by_log: bool = False, together: bool = True) -> Ensemble:
    """Train M models on bootstrap draws of the windows, through growing horizons, with Adam.

    Trained together all members are one batch of every rollout, and none sees the others: the result is that of training in turn.

    Args:
        model: Identified dynamics with residuals, and its sensor.
        train: The windows.
        members: Members M.
        options: How to train; ``rounds`` rounds of ``iterations`` steps at each horizon.
        free: Parameters that are refined together with the weights, each member's on its own.
        seed: Of the draws and of the first weights.
        fresh: Draw each member's first weights anew; else all start from the model's own.
        by_log: Draw whole logs instead of windows.
        together: In one batch; else one member after another.

    Raises:
        ModelError: if the model has no residuals with weights.
        ValueError: if there is no member.
    """
    options = options or FitOptions(method="adam", rounds=1, iterations=200)
    if members < 1:
        raise ValueError(f"fit_ensemble: expected members >= 1, received {members}")
    if not any(w.numel() for w in model.dynamics.parameters()):
        raise ModelError("fit_ensemble: the dynamics have no residuals with weights")
    starts = [_first(model.dynamics, seed * 1000 + m) if fresh else copy.deepcopy(model.dynamics) for m in range(members)]
    if fresh:
        normalise(model, starts, train)
    counts = bootstrap_counts(train, members, seed=seed, by_log=by_log)
    parts = [slice(0, members)] if together else [slice(m, m + 1) for m in range(members)]
    trained = [x for part in parts for x in _trained(model, starts[part], train, counts[part], options, free)]
    return Ensemble.of(trained)


def _first(dynamics: ResidualDynamics, seed: int) -> ResidualDynamics:
    """Return the dynamics with weights drawn anew."""
    return dynamics.with_residuals([reseeded(r, seed) for r in dynamics.corrections])


def _trained(model: Model, starts: Sequence[ResidualDynamics], train: Windows, counts: Tensor, options: FitOptions,
             free: Sequence[Parameter]) -> list[Model]:
    sensor = model.sensor.with_nominal(model.sensor_values)
    problem = SimulationError(dynamics=starts[0], sensor=sensor, windows=train, free=free if options.parameters else (), weights=True,
                              every=options.every, start_std=options.start_std)
    start = torch.tensor(np.stack([replace(problem, dynamics=s).initial(model.sensor_values) for s in starts]))
    z = start
    for horizon in [*(h for h in options.horizons if h < train.horizon), train.horizon]:
        stage = replace(problem, windows=train.first(horizon))
        drawn = DrawnWindows.of(stage.windows, counts)
        for _ in range(options.rounds):
            z = descend(stage, z, start, options, drawn)
    found = [replace(problem, dynamics=s).model(x) for s, x in zip(starts, z.numpy(), strict=True)]
    return [replace(model, dynamics=dynamics, sensor_values={**model.sensor_values, **values}) for dynamics, values in found]
