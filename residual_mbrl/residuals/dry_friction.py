"""A learned dry-friction limit that the step applies implicitly, so that it sticks at rest and never drives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from residual_mbrl.baselines import Baseline, Port
from residual_mbrl.residuals.base import Certificate, Context, Residual, add_live, power_certificate
from residual_mbrl.residuals.features import Feature, FeatureMap
from residual_mbrl.residuals.networks import Perceptron
from residual_mbrl.residuals.warp_form import (
    WarpForm,
    WarpFunction,
    constants_of,
    feature_form,
    perceptron_sizes,
    perceptron_weights,
    port_type,
    warp_function,
)
from residual_mbrl.spaces import StateSpace


class DryFriction(Residual):
    """Addition ``δ(features)`` to the dry-friction limit: ``F = max(F_baseline + bound tanh(net), 0)``.

    The limit may depend on state, load and command (Stribeck and load-dependent laws); the step applies it as an impulse
    that opposes motion and at most stops it, so its power is <= 0 for any weights. Law: Coulomb with a state-dependent limit;
    e.g. Duclusaud et al., ICRA 2025 (arXiv 2410.08650) for load-dependent servo gears.

    Args:
        nv: Degrees of freedom.
        features: What the limit depends on; sources of one component each unless they are whole vectors.
        sizes: Components of each feature's source.
        bound: Largest change of the limit [N or N·m].
        hidden: Hidden units; none makes the limit linear in the features (a table, with "hats").
        seed: Seed of the initial weights.
    """

    port, live = Port.PARAMETERS, "frictionloss"

    def __init__(self, *, nv: int, features: Sequence[Feature], sizes: Sequence[int] | None = None, bound: float,
                 hidden: Sequence[int] = (8,), seed: int = 0) -> None:
        super().__init__()
        if not bound > 0:
            raise ValueError(f"DryFriction: bound must be positive, received {bound}")
        self.nv, self.bound, self.hidden, self.seed = nv, bound, tuple(hidden), seed
        self.features = FeatureMap(features, sizes or [1] * len(features))
        self.network = Perceptron(self.features.outputs, hidden, nv, torch.Generator().manual_seed(seed))

    def forward(self, context: Context) -> Tensor:
        """Return the addition to the limit [N or N·m], shape [*batch, nv]."""
        return self.bound * torch.tanh(self.network(self.features(context)))

    def warp_form(self, space: StateSpace, signals: Mapping[str, tuple[int, WarpFunction]]) -> WarpForm | None:
        """Return the Warp form of the addition to the limit."""
        inputs, weights = feature_form(self.features, space, signals), perceptron_weights(self.network)
        if inputs is None:
            return None
        nv, entries = self.nv, len(inputs.constants)

        def emit(y0: int, c0: int) -> WarpFunction:
            port, bound, start = port_type(nv), c0 + entries, nv + nv * nv

            @warp_function
            def added_limit(y: Any, x: Any, u: Any, p: Any, c: Any) -> Any:
                out = port()
                for i in range(nv):
                    out[start + i] = c[bound] * y[y0 + i]
                return out

            return added_limit  # type: ignore[no-any-return]

        return WarpForm(("dry friction", nv, inputs.key), constants_of([*inputs.constants, self.bound]), perceptron_sizes(self.network),
                        inputs.entries, emit, weights, friction=True)

    def describe(self) -> dict[str, object]:
        """Return the constructor arguments."""
        return {"nv": self.nv, "features": self.features.describe(), "sizes": list(self.features.sizes), "bound": self.bound,
                "hidden": list(self.hidden), "seed": self.seed}

    def certificate(self, context: Context, baseline: Baseline) -> Certificate:
        """Worst power [W] of all dissipation in the step that this residual takes part in; see ``Baseline.dissipation_power``."""
        values = add_live(context.values, self.live, self(context))
        return power_certificate(self.name, baseline.dissipation_power(context.state, context.action, values))
