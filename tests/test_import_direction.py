"""Imports point one way: what is known of a plant never depends on what is learned, and no layer on a later one."""

from __future__ import annotations

import ast
from collections import defaultdict
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "residual_mbrl"
FOLDERS = {PACKAGE: ROOT / PACKAGE, f"{PACKAGE}.physics": ROOT / "physics", f"{PACKAGE}.kernels": ROOT / "kernels"}

ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "status": set(),
    "spaces": {"errors"},
    "trajectories": {"errors", "spaces"},
    "windows": {"errors", "spaces", "trajectories"},
    "contacts": set(),
    "baselines": {"contacts", "errors", "spaces"},
    "physics": {"baselines", "contacts", "errors", "spaces", "status"},
    "kernels": set(),
    "residuals": {"baselines", "contacts", "errors", "physics", "spaces"},
    "dynamics": {"baselines", "contacts", "errors", "residuals", "spaces"},
    "first_order": {"baselines", "dynamics", "residuals"},
    "costs": {"baselines", "physics", "spaces"},
    "fused": {"baselines", "costs", "dynamics", "errors", "kernels", "physics", "residuals", "spaces"},
    "rollouts": {"baselines", "costs", "dynamics", "errors", "first_order", "fused", "residuals", "spaces"},
    "planners": {"baselines", "costs", "dynamics", "errors", "fused", "kernels", "rollouts", "spaces", "status"},
    "policies": {"baselines", "errors", "files", "residuals", "spaces"},
    "policy_rollouts": {"baselines", "costs", "dynamics", "fused", "policies", "rollouts", "spaces"},
    "effects": {"baselines", "errors"},
    "sensors": {"baselines", "effects", "errors", "spaces", "windows"},
    "log_checks": {"errors", "sensors", "trajectories"},
}
"""What each early layer may import of this package besides itself; later layers must only be free of cycles."""


def layer(module: str) -> str:
    """The file or folder directly below the package that a dotted name belongs to; the package itself is its own layer."""
    return module.split(".")[1] if "." in module else module


def imported(tree: ast.AST, package: str) -> set[str]:
    """Dotted names of this package that a syntax tree imports, wherever the statement stands."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names} if base == PACKAGE else {base}
    return {name for name in names if name.split(".")[0] == PACKAGE}


@cache
def graph() -> dict[str, set[str]]:
    """Each layer of the package with the other layers that it imports."""
    edges: defaultdict[str, set[str]] = defaultdict(set)
    for prefix, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            if prefix == PACKAGE and {"physics", "kernels"} & set(path.relative_to(folder).parts):
                continue  # seen through a link
            parts = (prefix, *path.relative_to(folder).with_suffix("").parts)
            package, module = ".".join(parts[:-1]), ".".join(parts).removesuffix(".__init__")
            names = imported(ast.parse(path.read_text(encoding="utf-8")), package)
            edges[layer(module)] |= {layer(name) for name in names} - {layer(module)}
    return edges


@pytest.mark.parametrize("name", ALLOWED)
def test_layer_imports_only_earlier_ones(name: str) -> None:
    """An early layer imports nothing of this package but what the table names."""
    assert graph()[name] <= ALLOWED[name]


def test_layers_have_no_cycle() -> None:
    """Over the whole package the layers can be put in an order."""
    TopologicalSorter(graph()).prepare()


@pytest.mark.parametrize(("source", "found"), [
    ("import residual_mbrl.fitting as f", {"residual_mbrl.fitting"}),
    ("from residual_mbrl import fitting", {"residual_mbrl.fitting"}),
    ("from . import pendulum", {"residual_mbrl.physics"}),
    ("from ..fitting import fit", {"residual_mbrl.fitting"}),
    ("from .. import fitting", {"residual_mbrl.fitting"}),
    ("def f():\n    from residual_mbrl.fitting import fit", {"residual_mbrl.fitting"}),
    ("import torch, residual_mbrlx", set()),
])
def test_every_form_of_import_is_seen(source: str, found: set[str]) -> None:
    """Absolute, relative and local imports all count."""
    assert imported(ast.parse(source), "residual_mbrl.physics") == found
