"""What a result was computed with: for metrics.json, reports and artefacts."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("residual-mbrl", "torch", "mujoco", "warp-lang", "numpy", "scipy", "safetensors")
"""Distributions whose versions can change a number."""


def describe_environment() -> dict[str, object]:
    """Return Python, platform, processor, package versions and torch's threads, as JSON holds them."""
    import torch  # noqa: PLC0415  seconds to import: the versions alone need none of it

    return {"python": platform.python_version(), "platform": platform.platform(), "cpu": cpu_name(), "cpus": os.cpu_count(),
            "torch_threads": torch.get_num_threads(), "cuda": torch.cuda.is_available(), "packages": package_versions()}


def package_versions() -> dict[str, str]:
    """Return the version of every package in ``PACKAGES``; "missing" where one is not installed."""
    return {name: _version(name) for name in PACKAGES}


def cpu_name() -> str:
    """Return the processor's model name as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"
