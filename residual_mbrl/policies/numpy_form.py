"""A network policy in numpy alone: what a controller runs, some ten microseconds a step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from residual_mbrl.policies.heads import GOAL
from residual_mbrl.policies.networks import NetworkPolicy
from residual_mbrl.residuals.features import Feature

Array = NDArray[np.float64]
Transform = Callable[[Array], Array]


class NumpyPolicy:
    """``policy(state, goal=None, noise=None) -> action`` of one world, float64, with the weights of the moment it was made.

    Args:
        policy: The policy.
    """

    def __init__(self, policy: NetworkPolicy) -> None:
        self.name, self._nx, self._goals, self._noise = type(policy).__name__, policy.space.nx, policy.goal_size, policy.noise_size
        self._act = policy.act_numpy_form()
        places, scales, transforms = _columns(policy)
        self._places, self._scales = np.array(places), np.array(scales)
        self._direct = self._places.tolist() == list(range(self._nx + self._goals))
        names = sorted({t for t in transforms if t != "identity"})
        self._turned = [(np.array([i for i, t in enumerate(transforms) if t == n]), _FUNCTIONS[n]) for n in names]
        layers = zip(policy.network.weights, policy.network.biases, strict=True)
        self._layers = [(np.ascontiguousarray(w.detach().double().numpy()), b.detach().double().numpy().copy()) for w, b in layers]

    def __call__(self, state: ArrayLike, goal: ArrayLike | None = None, noise: ArrayLike | None = None) -> Array:
        """Return the action, shape [nu].

        Args:
            state: Of the plant, shape [nx].
            goal: Shape [goal_size].
            noise: Standard normal, shape [noise_size]; the mean action without.

        Raises:
            ValueError: if a shape does not fit.
        """
        raw = np.asarray(state, np.float64)
        if raw.shape != (self._nx,):
            raise ValueError(f"{self.name}: state must have shape ({self._nx},), received {raw.shape}")
        if self._goals:
            wanted = np.asarray(goal, np.float64)
            if wanted.shape != (self._goals,):
                raise ValueError(f"{self.name}: goal must have shape ({self._goals},), received {wanted.shape}")
            raw = np.concatenate([raw, wanted])
        x = (raw if self._direct else raw[self._places]) * self._scales
        for at, function in self._turned:
            x[at] = function(x[at])
        for w, b in self._layers[:-1]:
            x = x @ w
            x += b
            np.tanh(x, x)
        w, b = self._layers[-1]
        return self._act(x @ w + b, None if noise is None or not self._noise else np.asarray(noise, np.float64))


_FUNCTIONS: dict[str, Transform] = {"sin": np.sin, "cos": np.cos, "abs": np.abs, "sign": np.tanh, "slow": lambda x: np.exp(-np.abs(x))}


def _columns(policy: NetworkPolicy) -> tuple[list[int], list[float], list[str]]:
    """Return of every input its place in state and goal, the factor before its transform, and the transform."""
    space, places, scales, column = policy.space, [], [], 0
    transforms: list[str] = []
    for f in policy.features.features:
        for place in _places(policy, f):
            spread = float(policy.features.spread[column])
            factors = {"identity": 1 / spread, "abs": 1 / spread, "sign": 20 / spread, "slow": 1 / f.width, "sin": 1.0, "cos": 1.0}
            places.append(place)
            scales.append(factors[f.transform])
            transforms.append(f.transform)
            column += 1
    if any(p >= space.nx + policy.goal_size for p in places):
        raise ValueError(f"{type(policy).__name__}: a feature lies outside state and goal")
    return places, scales, transforms


def _places(policy: NetworkPolicy, f: Feature) -> range:
    space = policy.space
    whole = {"position": range(space.nq), "velocity": range(space.nq, space.nq + space.nv),
             GOAL: range(space.nx, space.nx + policy.goal_size)}
    return range(space.index(f.source), space.index(f.source) + 1) if f.source in space.state_names else whole[f.source]
