"""What a result was computed with is told in plain data."""

from __future__ import annotations

import importlib.metadata

import torch

from residual_mbrl import environment, files


def test_environment_is_json():
    """The description survives JSON and names Python, processor and threads."""
    described = environment.describe_environment()
    assert files.load_json(files.dump_json(described)) == described
    assert described["torch_threads"] == torch.get_num_threads()
    assert described["cpu"]
    assert described["cpus"] >= 1


def test_versions_are_those_installed():
    """Versions are those of the installed distributions, and one that is not installed is said to be missing."""
    versions = environment.package_versions()
    assert versions["numpy"] == importlib.metadata.version("numpy")
    assert environment._version("no-such-distribution") == "missing"
