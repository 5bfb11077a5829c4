"""Corrections without a law behind them: a bounded free force, and a state correction for black boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from residual_mbrl.baselines import Baseline, Port
from residual_mbrl.residuals.base import Certificate, Context, Residual, bound_certificate
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


class Unstructured(Residual):
    """A free force ``bound ⊙ tanh(net(features))``: fits anything, promises only its bound. No preset turns it on.

    Args:
        nv: Degrees of freedom.
        features: What the force depends on.
        sizes: Components of each feature's source.
        bound: Largest force per degree of freedom [N or N·m].
        hidden: Hidden units.
        seed: Seed of the initial weights.
    """

    port = Port.FORCE
    unit = "N·m"

    def __init__(self, *, nv: int, features: Sequence[Feature], sizes: Sequence[int] | None = None, bound: float,
                 hidden: Sequence[int] = (32, 32), seed: int = 0) -> None:
        super().__init__()
        if not bound > 0:
            raise ValueError(f"{type(self).__name__}: bound must be positive, received {bound}")
        self.nv, self.bound, self.hidden, self.seed = nv, bound, tuple(hidden), seed
        self.features = FeatureMap(features, sizes or [1] * len(features))
        self.network = Perceptron(self.features.outputs, hidden, self._outputs(), torch.Generator().manual_seed(seed))

    def _outputs(self) -> int:
        return self.nv

    def forward(self, context: Context) -> Tensor:
        """Return the correction, shape [*batch, nv]."""
        return self.bound * torch.tanh(self.network(self.features(context)))

    def warp_form(self, space: StateSpace, signals: Mapping[str, tuple[int, WarpFunction]]) -> WarpForm | None:
        """Return the Warp form of the correction."""
        inputs, weights = feature_form(self.features, space, signals), perceptron_weights(self.network)
        if inputs is None:
            return None
        nv, entries, n = self.nv, len(inputs.constants), self._outputs()
        start = 0 if self.port is Port.FORCE else 2 * nv + nv * nv

        def emit(y0: int, c0: int) -> WarpFunction:
            port, bound = port_type(nv), c0 + entries

            @warp_function
            def bounded(y: Any, x: Any, u: Any, p: Any, c: Any) -> Any:
                out = port()
                for i in range(n):
                    out[start + i] = c[bound] * y[y0 + i]
                return out

            return bounded  # type: ignore[no-any-return]

        return WarpForm(("bounded", nv, start, inputs.key), constants_of([*inputs.constants, self.bound]), perceptron_sizes(self.network),
                        inputs.entries, emit, weights)

    def describe(self) -> dict[str, object]:
        """Return the constructor arguments."""
        return {"nv": self.nv, "features": self.features.describe(), "sizes": list(self.features.sizes), "bound": self.bound,
                "hidden": list(self.hidden), "seed": self.seed}

    def certificate(self, context: Context, baseline: Baseline) -> Certificate:
        """Worst excess over the bound."""
        return bound_certificate(self.name, self.forward(context).abs() - self.bound, "excess over the bound", self.unit)


class StateDelta(Unstructured):
    """A correction of the next state, ``x' = step(x, u) ⊞ dt bound tanh(net)``, for baselines that have no other port.

    Args are those of ``Unstructured``; the correction has 2 nv + na entries per second, and ``na`` is zero here.
    """

    port = Port.STATE
    unit = "1/s"

    def _outputs(self) -> int:
        return 2 * self.nv

    def warp_form(self, space: StateSpace, signals: Mapping[str, tuple[int, WarpFunction]]) -> WarpForm | None:
        """Return the Warp form of the correction; None for spaces with quaternions or activations."""
        return None if space.quaternions or space.na else super().warp_form(space, signals)
