"""All plants of the learning benchmark, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from learning_arm import arm
from learning_case import Case
from learning_hopper import hopper
from learning_plants import cart_pole, double_pole, reacher

CASES: Mapping[str, Callable[[], Case]] = {"cart-pole": cart_pole, "double pendulum": double_pole, "reacher": reacher, "arm": arm,
                                           "hopper": hopper}
