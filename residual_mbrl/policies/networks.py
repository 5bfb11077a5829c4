"""Policies that are a perceptron between features of the state and an action within bounds."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from residual_mbrl.policies.base import Policy
from residual_mbrl.policies.heads import angles_turned, context, feature_map, fit_spread, perceptron, warp_features
from residual_mbrl.residuals.features import Feature
from residual_mbrl.residuals.warp_form import WarpForm, WarpFunction, constants_of, perceptron_sizes, perceptron_weights, warp_function
from residual_mbrl.spaces import StateSpace

NumpyAct = Callable[[np.ndarray, np.ndarray | None], np.ndarray]
"""From a network's outputs and noise of one world to its action."""
LOG_STD = (-5.0, 1.0)
"""Lowest and highest logarithm of a Gaussian policy's spread, before the action is squashed."""


class NetworkPolicy(Policy):
    """``u = act(net(features(x, goal)), noise)``, within bounds; untrained it gives the middle of them.

    Args:
        space: Of the plant, without residual memory.
        low: Lowest action, shape [nu] or a number.
        high: Highest action, shape [nu] or a number.
        features: What the network sees, divided by its spread in the data (``normalise``); the whole state and the goal where missing.
        hidden: Hidden tanh units of each layer.
        goal_size: Entries of a goal, which features see as "goal".
        seed: Seed of the initial weights.

    Raises:
        ValueError: if a bound does not fit, or a feature is unknown.
    """

    kind: ClassVar[str]
    low: Tensor
    high: Tensor

    def __init__(self, *, space: StateSpace, low: float | Sequence[float], high: float | Sequence[float],
                 features: Sequence[Feature] | None = None, hidden: Sequence[int] = (64, 64), goal_size: int = 0, seed: int = 0) -> None:
        super().__init__(space, noise_size=self._noise(space.nu), goal_size=goal_size)
        for name, given in (("low", low), ("high", high)):
            if np.shape(given) not in ((), (space.nu,)):
                raise ValueError(f"{type(self).__name__}: {name} must be a number or {space.nu} numbers, received {given}")
            self.register_buffer(name, torch.as_tensor(given, dtype=torch.float64).expand(space.nu).clone())
        if not bool((self.low < self.high).all()) or not bool(torch.isfinite(self.high - self.low).all()):
            raise ValueError(f"{type(self).__name__}: expected finite low < high, received {low} and {high}")
        self.hidden, self.seed = tuple(hidden), seed
        self.features = feature_map(type(self).__name__, space, features or angles_turned(space, goal_size=goal_size), goal_size)
        self.network = perceptron(self.features.outputs, hidden, self._outputs(), seed)

    def _noise(self, nu: int) -> int:
        return 0

    def _outputs(self) -> int:
        return self.space.nu

    @abstractmethod
    def act(self, y: Tensor, noise: Tensor | None) -> Tensor:
        """Return the action from the network's outputs [*batch, outputs] and noise [*batch, noise_size]."""

    @abstractmethod
    def act_numpy_form(self) -> NumpyAct:
        """Return what ``act`` does, as a function of numpy arrays."""

    @abstractmethod
    def warp_act(self, y0: int, c0: int) -> WarpFunction:
        """Return what ``act`` does as ``(y, x, d, p, c)``.

        Outputs y start at y0, low and high bounds stand among the constants c from c0 on, the noise in the data d behind the goal.
        """

    def forward(self, state: Tensor, noise: Tensor | None = None, goal: Tensor | None = None) -> Tensor:
        """Return the action; see ``Policy``."""
        if noise is not None and noise.shape[-1] != self.noise_size:
            raise ValueError(f"{type(self).__name__}: noise must have {self.noise_size} entries, received {tuple(noise.shape)}")
        y: Tensor = self.network(self.seen(state, goal))
        return self.act(y, noise if self.noise_size else None)

    def seen(self, state: Tensor, goal: Tensor | None = None) -> Tensor:
        """Return what the network sees of states [*batch, nx] and goals [*batch, goal_size], shape [*batch, features]."""
        found: Tensor = self.features(context(self.space, self.known(state, goal), goal))
        return found

    def normalise(self, state: Tensor, goal: Tensor | None = None) -> None:
        """Set the spread of every feature from states [*batch, nx] and goals [*batch, goal_size] of the data."""
        fit_spread(self.features, context(self.space, self.known(state, goal), goal))

    def warp_form(self) -> WarpForm:
        """Return the policy as Warp functions; see ``fused.closed_loop``."""
        inputs = warp_features(self.features, self.space, self.goal_size)
        n = len(inputs.constants)
        bounds = [*self.low.unbind(), *self.high.unbind()]
        return WarpForm((self.kind, self.space.nu, self.goal_size, inputs.key), constants_of([*inputs.constants, *bounds]),
                        perceptron_sizes(self.network), inputs.entries, lambda y0, c0: self.warp_act(y0, c0 + n),
                        perceptron_weights(self.network), squashed=False)

    def describe(self) -> dict[str, object]:
        """Return the constructor arguments but the space."""
        return {"low": self.low.tolist(), "high": self.high.tolist(), "features": self.features.describe(), "hidden": list(self.hidden),
                "goal_size": self.goal_size, "seed": self.seed}

    def _squash(self, y: Tensor) -> Tensor:
        low, high = self.low.to(y), self.high.to(y)
        return 0.5 * (low + high) + 0.5 * (high - low) * torch.tanh(y)

    def _squash_numpy(self) -> Callable[[np.ndarray], np.ndarray]:
        low, high = self.low.double().numpy(), self.high.double().numpy()
        middle, half = 0.5 * (low + high), 0.5 * (high - low)
        return lambda y: middle + half * np.tanh(y)


class MLPPolicy(NetworkPolicy):
    """``u = middle + half · tanh(net(features))``: deterministic."""

    kind = "mlp"

    def act(self, y: Tensor, noise: Tensor | None) -> Tensor:
        """Squash."""
        return self._squash(y)

    def act_numpy_form(self) -> NumpyAct:
        """Squash."""
        squash = self._squash_numpy()
        return lambda y, noise: squash(y)

    def warp_act(self, y0: int, c0: int) -> WarpFunction:
        """Squash."""
        import warp as wp  # noqa: PLC0415  # only fused rollouts need it

        nu = self.space.nu
        vector = wp.types.vector(length=nu, dtype=wp.float32)

        @warp_function
        def act(y: Any, x: Any, d: Any, p: Any, c: Any) -> Any:
            u = vector()
            for i in range(nu):
                low, high = c[c0 + i], c[c0 + nu + i]
                u[i] = 0.5 * (low + high) + 0.5 * (high - low) * wp.tanh(y[y0 + i])
            return u

        return act  # type: ignore[no-any-return]


class GaussianPolicy(NetworkPolicy):
    """``u = middle + half · tanh(m + exp(s) ε)`` with mean m and spread s of the network, ε standard normal (Haarnoja et al. 2018).

    Without noise it gives its mean's action. The spread s lies between ``LOG_STD`` smoothly.

    Args:
        std: Spread at the start, before the action is squashed.
        options: As of ``NetworkPolicy``.
    """

    kind = "gaussian"

    def __init__(self, *, std: float = 0.3, **options: Any) -> None:
        super().__init__(**options)
        low, high = LOG_STD
        place = (2 * np.log(std) - low - high) / (high - low)
        if not -1 < place < 1:
            raise ValueError(f"GaussianPolicy: std must lie between {np.exp(low):.3g} and {np.exp(high):.3g}, received {std}")
        self.std = std
        with torch.no_grad():
            self.network.biases[-1][self.space.nu :] = float(np.arctanh(place))

    def _noise(self, nu: int) -> int:
        return nu

    def _outputs(self) -> int:
        return 2 * self.space.nu

    def describe(self) -> dict[str, object]:
        """Return the constructor arguments but the space."""
        return {**super().describe(), "std": self.std}

    def log_std(self, y: Tensor) -> Tensor:
        """Return the logarithm of the spread from the network's outputs, shape [*batch, nu]."""
        low, high = LOG_STD
        return 0.5 * (low + high) + 0.5 * (high - low) * torch.tanh(y[..., self.space.nu :])

    def act(self, y: Tensor, noise: Tensor | None) -> Tensor:
        """Move the mean by the noise and squash."""
        mean = y[..., : self.space.nu]
        return self._squash(mean if noise is None else mean + torch.exp(self.log_std(y)) * noise)

    def act_numpy_form(self) -> NumpyAct:
        """Move the mean by the noise and squash."""
        squash, nu, (low, high) = self._squash_numpy(), self.space.nu, LOG_STD

        def act(y: np.ndarray, noise: np.ndarray | None) -> np.ndarray:
            if noise is None:
                return squash(y[:nu])
            return squash(y[:nu] + np.exp(0.5 * (low + high) + 0.5 * (high - low) * np.tanh(y[nu:])) * noise)

        return act

    def warp_act(self, y0: int, c0: int) -> WarpFunction:
        """Move the mean by the noise and squash."""
        import warp as wp  # noqa: PLC0415

        nu, first, middle, half = self.space.nu, self.goal_size, 0.5 * sum(LOG_STD), 0.5 * (LOG_STD[1] - LOG_STD[0])
        vector = wp.types.vector(length=nu, dtype=wp.float32)

        @warp_function
        def act(y: Any, x: Any, d: Any, p: Any, c: Any) -> Any:
            u = vector()
            for i in range(nu):
                low, high = c[c0 + i], c[c0 + nu + i]
                moved = y[y0 + i] + wp.exp(middle + half * wp.tanh(y[y0 + nu + i])) * d[first + i]
                u[i] = 0.5 * (low + high) + 0.5 * (high - low) * wp.tanh(moved)
            return u

        return act  # type: ignore[no-any-return]


class LinearPolicy(NetworkPolicy):
    """``u = clip(W features + b)``: no hidden units, cut off at the bounds."""

    kind = "linear"

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "hidden": ()})

    @classmethod
    def feedback(cls, *, space: StateSpace, gain: Tensor, target: Tensor, action: Tensor, low: float | Sequence[float],
                 high: float | Sequence[float]) -> LinearPolicy:
        """Return ``u = clip(action - gain (x - target))``, as of an LQR.

        Args:
            space: Of the plant.
            gain: Shape [nu, nx].
            target: State held, shape [nx].
            action: Action that holds it, shape [nu].
            low: Lowest action.
            high: Highest action.
        """
        if gain.shape != (space.nu, space.nx) or target.shape != (space.nx,) or action.shape != (space.nu,):
            raise ValueError(f"LinearPolicy.feedback: expected a gain [{space.nu}, {space.nx}], a target [{space.nx}] and an action "
                             f"[{space.nu}], received {tuple(gain.shape)}, {tuple(target.shape)}, {tuple(action.shape)}")
        made = cls(space=space, low=low, high=high)
        with torch.no_grad():
            made.network.weights[0].copy_(-gain.T)
            made.network.biases[0].copy_(action + gain @ target)
        return made

    def act(self, y: Tensor, noise: Tensor | None) -> Tensor:
        """Cut off."""
        return torch.minimum(torch.maximum(y, self.low.to(y)), self.high.to(y))

    def act_numpy_form(self) -> NumpyAct:
        """Cut off."""
        low, high = self.low.double().numpy().copy(), self.high.double().numpy().copy()
        return lambda y, noise: np.minimum(np.maximum(y, low), high)

    def warp_act(self, y0: int, c0: int) -> WarpFunction:
        """Cut off."""
        import warp as wp  # noqa: PLC0415

        nu = self.space.nu
        vector = wp.types.vector(length=nu, dtype=wp.float32)

        @warp_function
        def act(y: Any, x: Any, d: Any, p: Any, c: Any) -> Any:
            u = vector()
            for i in range(nu):
                u[i] = wp.min(wp.max(y[y0 + i], c[c0 + i]), c[c0 + nu + i])
            return u

        return act  # type: ignore[no-any-return]
