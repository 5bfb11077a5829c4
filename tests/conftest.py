"""Fixtures and settings of every test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Before torch is imported: each worker is a process, and a thread a core in each of them only makes them wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch
from hypothesis import settings
from jaxtyping import config, install_import_hook

CHECKED = [f"residual_mbrl.{name}" for name in ("spaces", "baselines", "residuals", "dynamics", "rollouts", "sensors", "windows")]
"""Modules whose annotated shapes beartype checks at each call; never kernels, whose annotations are Warp's."""

install_import_hook(CHECKED, "beartype.beartype")
torch.set_num_threads(1)

# The same samples in every run, and no time limit on one: a busy machine must not fail a test.
settings.register_profile("residual_mbrl", derandomize=True, deadline=None)
settings.load_profile("residual_mbrl")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests that take many minutes unless markers are asked for."""
    if not config.option.markexpr:
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="takes many minutes: pytest -m long"))


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device that a test should pass on; absent ones are skipped."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    return torch.device(request.param)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real logs that RESIDUAL_MBRL_DATA names; the test is skipped where there is none."""
    root = Path(os.environ.get("RESIDUAL_MBRL_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not root.is_dir():
        pytest.skip(f"no real logs: {root} is not a folder (set RESIDUAL_MBRL_DATA)")
    return root


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Turn the checks of annotated shapes off, for a test of the error that a user sees without them."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
