"""A perceptron over named features of the plant's state: what network policies and values share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from residual_mbrl.residuals.base import Context
from residual_mbrl.residuals.features import Feature, FeatureMap, feature_sizes
from residual_mbrl.residuals.networks import Perceptron
from residual_mbrl.residuals.warp_form import FeatureForm, feature_form, warp_function
from residual_mbrl.spaces import StateSpace

TRANSFORMS = ("identity", "abs", "sign", "sin", "cos", "slow")
"""Transforms of features that have a numpy form."""
GOAL = "goal"
"""Source of a feature: the goal, all of it."""
SMALLEST = 1e-6
"""A smaller spread says that the data do not move a feature, not how far it moves."""


def angles_turned(space: StateSpace, angles: Sequence[str] = (), goal_size: int = 0) -> tuple[Feature, ...]:
    """Return features that show a whole state, and the goal: sine and cosine of angles, all else as it is.

    Args:
        space: Of the plant.
        angles: Positions that repeat after a turn.
        goal_size: Entries of the goal.
    """
    unknown = set(angles) - set(space.position)
    if unknown:
        raise ValueError(f"angles_turned: there are no positions {sorted(unknown)}; there are {list(space.position)}")
    plain = [Feature(source=n) for n in space.state_names if n not in angles]
    turned = [Feature(source=n, transform=f) for n in angles for f in ("sin", "cos")]
    return (*turned, *plain, *([Feature(source=GOAL)] if goal_size else []))


def feature_map(owner: str, space: StateSpace, features: Sequence[Feature], goal_size: int) -> FeatureMap:
    """Return a map of features of states and goals.

    Raises:
        ValueError: if a feature looks at anything else, or has no numpy form.
    """
    known = {*space.state_names, "position", "velocity", *([GOAL] if goal_size else [])}
    for f in features:
        if f.source not in known:
            raise ValueError(f"{owner}: no state or goal named {f.source!r}; there are {sorted(known)}")
        if f.transform not in TRANSFORMS or f.direction:
            raise ValueError(f"{owner}: features of a policy have transforms {TRANSFORMS} and no direction, received {f}")
    return FeatureMap(features, feature_sizes(features, {"position": space.nq, "velocity": space.nv, GOAL: goal_size}))


def context(space: StateSpace, known: Tensor, goal: Tensor | None) -> Context:
    """Return what the features of a head look at."""
    return Context(space, known, known, {} if goal is None else {GOAL: goal})


def fit_spread(features: FeatureMap, seen: Context) -> None:
    """Set the spread of every feature from data; one that never moves there counts as it is."""
    features.fit(seen)
    features.spread[features.spread < SMALLEST] = 1.0


def warp_features(features: FeatureMap, space: StateSpace, goal_size: int) -> FeatureForm:
    """Return the Warp form of the features of a head, which finds the goal first in the data of a step."""
    @warp_function
    def goal(x: Any, u: Any, p: Any) -> Any:
        return u[0:goal_size]

    form = feature_form(features, space, {GOAL: (goal_size, goal)} if goal_size else {})
    if form is None:
        raise ValueError("the features of a policy have no Warp form")
    return form


def perceptron(inputs: int, hidden: Sequence[int], outputs: int, seed: int) -> Perceptron:
    """Return the network of a head; its last layer starts at zero."""
    return Perceptron(inputs, hidden, outputs, torch.Generator().manual_seed(seed))
