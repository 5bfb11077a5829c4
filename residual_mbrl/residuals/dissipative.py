"""Learned viscous damping: a positive semi-definite matrix that can only take energy."""

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


class Dissipative(Residual):
    """Damping ``D = L Lᵀ ⪰ 0`` with L lower triangular, a bounded network of the features.

    On a baseline with the live parameter ``damping`` the step applies it implicitly, so it is passive in discrete time
    too; with ``explicit=True`` it enters the force port as ``-D v``, which is passive only while the step is short
    against mass / damping. Rayleigh dissipation, e.g. Goldstein, Classical Mechanics, section 1.5.

    Args:
        nv: Degrees of freedom.
        features: What D depends on.
        sizes: Components of each feature's source.
        bound: Largest entry of L squared [force per velocity].
        hidden: Hidden units.
        explicit: Enter through the force port.
        diagonal: Damp every degree of freedom by itself, through the live parameter ``dof_damping``, which simulators have too.
        seed: Seed of the initial weights.
    """

    entries: Tensor

    def __init__(self, *, nv: int, features: Sequence[Feature], sizes: Sequence[int] | None = None, bound: float,
                 hidden: Sequence[int] = (8,), explicit: bool = False, diagonal: bool = False, seed: int = 0) -> None:
        super().__init__()
        if not bound > 0:
            raise ValueError(f"Dissipative: bound must be positive, received {bound}")
        self.port = Port.FORCE if explicit else Port.PARAMETERS
        self.live = None if explicit else "dof_damping" if diagonal else "damping"
        self.nv, self.bound, self.hidden, self.seed = nv, bound, tuple(hidden), seed
        self.explicit, self.diagonal = explicit, diagonal
        self.features = FeatureMap(features, sizes or [1] * len(features))
        rows, columns = torch.arange(nv).expand(2, nv) if diagonal else torch.tril_indices(nv, nv)
        self.register_buffer("entries", rows * nv + columns, persistent=False)
        self.network = Perceptron(self.features.outputs, hidden, len(rows), torch.Generator().manual_seed(seed))
        with torch.no_grad():  # D grows with the square of L: at L = 0 no gradient would reach the weights
            self.network.biases[-1].fill_(0.02)

    def matrix(self, context: Context) -> Tensor:
        """Return D [force per velocity], shape [*batch, nv, nv]."""
        values: Tensor = self.bound**0.5 * torch.tanh(self.network(self.features(context)))
        if self.nv == 1:
            return (values * values).unsqueeze(-1)
        flat = values.new_zeros(*values.shape[:-1], self.nv * self.nv)
        lower = flat.index_copy(-1, self.entries, values).reshape(*values.shape[:-1], self.nv, self.nv)
        return torch.matmul(lower, lower.mT)

    def forward(self, context: Context) -> Tensor:
        """Return D, its diagonal with ``diagonal``, or with ``explicit`` the force -D v [N or N·m], shape [*batch, nv]."""
        matrix = self.matrix(context)
        if self.explicit:
            return -torch.matmul(matrix, context.v.unsqueeze(-1)).squeeze(-1)
        return torch.diagonal(matrix, dim1=-2, dim2=-1) if self.diagonal else matrix

    def warp_form(self, space: StateSpace, signals: Mapping[str, tuple[int, WarpFunction]]) -> WarpForm | None:
        """Return the Warp form of D, or of the force -D v."""
        inputs, weights = feature_form(self.features, space, signals), perceptron_weights(self.network)
        if inputs is None:
            return None
        nv, v0, explicit, diagonal, entries = self.nv, space.nq, self.explicit, self.diagonal, len(inputs.constants)

        def emit(y0: int, c0: int) -> WarpFunction:
            return _warp_damping(nv, v0, explicit=explicit, diagonal=diagonal, y0=y0, root=c0 + entries)

        return WarpForm(("damping", nv, v0, explicit, diagonal, inputs.key), constants_of([*inputs.constants, self.bound**0.5]),
                        perceptron_sizes(self.network), inputs.entries, emit, weights, damping=not explicit)

    def describe(self) -> dict[str, object]:
        """Return the constructor arguments."""
        return {"nv": self.nv, "features": self.features.describe(), "sizes": list(self.features.sizes), "bound": self.bound,
                "hidden": list(self.hidden), "explicit": self.explicit, "diagonal": self.diagonal, "seed": self.seed}

    def certificate(self, context: Context, baseline: Baseline) -> Certificate:
        """Worst power [W]: of all dissipation in the step, or of the explicit force at the present velocity."""
        if self.explicit:
            return power_certificate(self.name, (self(context) * context.v).sum(-1))
        assert self.live is not None  # noqa: S101  # only an explicit one has none
        values = add_live(context.values, self.live, self(context))
        return power_certificate(self.name, baseline.dissipation_power(context.state, context.action, values))


def _warp_damping(nv: int, v0: int, *, explicit: bool, diagonal: bool, y0: int, root: int) -> WarpFunction:
    """Return ``(y, x, u, p, c) -> port`` for outputs at y0, velocities at v0 and the root of the bound at c[root]."""
    port = port_type(nv)
    places = [(i, i) for i in range(nv)] if diagonal else [(i, j) for i in range(nv) for j in range(i + 1)]

    @warp_function
    def damping(y: Any, x: Any, u: Any, p: Any, c: Any) -> Any:
        lower = {place: c[root] * y[y0 + k] for k, place in enumerate(places)}
        out = port()
        for i in range(nv):
            for j in range(nv):
                for k in range(min(i, j) + 1):
                    if (i, k) in lower and (j, k) in lower:
                        entry = lower[i, k] * lower[j, k]
                        if explicit:
                            out[i] = out[i] - entry * x[v0 + j]
                        else:
                            out[nv + nv * i + j] = out[nv + nv * i + j] + entry
        return out

    return damping  # type: ignore[no-any-return]
