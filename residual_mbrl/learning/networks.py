"""The ablation without a baseline: a network alone."""

from __future__ import annotations

from collections.abc import Sequence

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.physics.free_body import FreeBody
from residual_mbrl.residuals import Feature, Unstructured
from residual_mbrl.spaces import StateSpace


def network_alone(space: StateSpace, *, dt: float, bound: float, angles: Sequence[str] = (), positions: bool | Sequence[str] = True,
                  hidden: Sequence[int] = (64, 64), seed: int = 0) -> ResidualDynamics:
    """Return a model of which nothing is known but that positions are the integrals of velocities: accelerations are a network's.

    It goes where a model with a baseline goes; with ``LearnOptions(members=5)`` and ``Planning`` by iCEM ``learn`` is then PETS.

    Args:
        space: Of the plant.
        dt: Seconds of a step.
        bound: Largest acceleration of each degree of freedom.
        angles: Positions that repeat after a turn, which the network sees as sine and cosine.
        positions: Whether it sees the other positions, or which of them: not those along which the plant is the same everywhere.
        hidden: Hidden tanh units of each layer.
        seed: Of the initial weights.

    Raises:
        ValueError: if a name is no position.
    """
    shown = space.position if positions is True else positions or ()
    unknown = {*angles, *shown} - set(space.position)
    if unknown:
        raise ValueError(f"network_alone: there are no positions {sorted(unknown)}; there are {list(space.position)}")
    turned = [Feature(source=n, transform=f) for n in angles for f in ("sin", "cos")]
    plain = [Feature(source=n) for n in shown if n not in angles]
    seen = [*turned, *plain, *(Feature(source=n) for n in (*space.velocity, *space.action))]
    return ResidualDynamics(FreeBody(space, dt=dt), [Unstructured(nv=space.nv, features=seen, bound=bound, hidden=hidden, seed=seed)])
