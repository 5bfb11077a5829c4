"""The cost that is still to come from a state on, learned: what ends a short horizon."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from residual_mbrl.policies.heads import angles_turned, context, feature_map, fit_spread, perceptron, warp_features
from residual_mbrl.residuals.features import Feature
from residual_mbrl.residuals.warp_form import WarpForm, WarpFunction, constants_of, perceptron_sizes, perceptron_weights, warp_function
from residual_mbrl.spaces import StateSpace


class Value(nn.Module):
    """``V(x, goal) = scale · net(features)``: expected discounted cost from a state on; zero untrained.

    Args:
        space: Of the plant, without residual memory.
        features: What the network sees; the whole state and the goal where missing.
        hidden: Hidden tanh units of each layer.
        goal_size: Entries of a goal.
        seed: Seed of the initial weights.
    """

    scale: Tensor

    def __init__(self, *, space: StateSpace, features: Sequence[Feature] | None = None, hidden: Sequence[int] = (64, 64),
                 goal_size: int = 0, seed: int = 0) -> None:
        super().__init__()
        self.space, self.goal_size, self.hidden, self.seed = space, goal_size, tuple(hidden), seed
        self.features = feature_map(type(self).__name__, space, features or angles_turned(space, goal_size=goal_size), goal_size)
        self.network = perceptron(self.features.outputs, hidden, 1, seed)
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))

    def forward(self, state: Tensor, goal: Tensor | None = None) -> Tensor:
        """Return the cost to come, shape [*batch].

        Args:
            state: Shape [*batch, nx] or longer; what residuals remember is not looked at.
            goal: Shape [*batch, goal_size].
        """
        y: Tensor = self.network(self.features(context(self.space, state[..., : self.space.nx], goal)))
        return self.scale.to(y) * y[..., 0]

    def normalise(self, state: Tensor, goal: Tensor | None = None) -> None:
        """Set the spread of every feature from states [*batch, nx] and goals [*batch, goal_size]."""
        fit_spread(self.features, context(self.space, state[..., : self.space.nx], goal))

    def warp_form(self) -> WarpForm:
        """Return the value as Warp functions; see ``fused.closed_loop``."""
        inputs = warp_features(self.features, self.space, self.goal_size)
        n = len(inputs.constants)

        def emit(y0: int, c0: int) -> WarpFunction:
            @warp_function
            def scaled(y: Any, x: Any, d: Any, p: Any, c: Any) -> Any:
                return y[y0] * c[c0 + n]

            return scaled  # type: ignore[no-any-return]

        return WarpForm(("value", inputs.key), constants_of([*inputs.constants, self.scale]), perceptron_sizes(self.network),
                        inputs.entries, emit, perceptron_weights(self.network), squashed=False)

    def describe(self) -> dict[str, object]:
        """Return the constructor arguments but the space."""
        return {"features": self.features.describe(), "hidden": list(self.hidden), "goal_size": self.goal_size, "seed": self.seed}
