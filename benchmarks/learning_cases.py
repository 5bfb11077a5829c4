"""All plants of the learning benchmark, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import learning_plants
from learning_arm import arm
from learning_plants import Case

CASES: Mapping[str, Callable[[], Case]] = {**learning_plants.CASES, "arm": arm}
