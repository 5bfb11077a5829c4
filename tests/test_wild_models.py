"""MJCFs that nobody here wrote: Gymnasium's, as its wheel has them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NAMES = ("ant", "half_cheetah", "hopper", "humanoid", "humanoidstandup", "inverted_double_pendulum", "inverted_pendulum", "pusher_v5",
         "reacher", "swimmer", "walker2d_v5")
"""All but point.xml, whose ball touches its floor at a distance of zero, so that rounding decides whether there is a contact."""


@pytest.fixture(scope="module")
def checks() -> Iterator[ModuleType]:
    """Import what the benchmark of models checks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("wild_checks")


@pytest.mark.parametrize("name", NAMES)
def test_models_from_elsewhere(name: str, checks: ModuleType) -> None:
    """They step as in the engine, their gradients are those of differences, and planted parameters are found from short logs."""
    gymnasium = find_spec("gymnasium")
    if gymnasium is None or gymnasium.origin is None:
        pytest.skip("gymnasium is not installed: its wheel has the models")
    path = Path(gymnasium.origin).parent / "envs" / "mujoco" / "assets" / f"{name}.xml"
    assert checks.failures(checks.examine(path)) == []
