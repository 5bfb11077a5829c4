"""What is built from the tree holds the whole package, nothing beside it, and runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {"residual_mbrl": ROOT / "residual_mbrl", "residual_mbrl/physics": ROOT / "physics", "residual_mbrl/kernels": ROOT / "kernels"}
EXTRAS = {"gymnasium", "stable_baselines3", "h5py", "mcap", "pyarrow", "mujoco_warp", "ray", "onnx", "onnxscript"}

IMPORT_ALL = f"""
import importlib, pkgutil, sys, residual_mbrl
for module in pkgutil.walk_packages(residual_mbrl.__path__, "residual_mbrl."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        if error.name.split(".")[0] not in {EXTRAS!r}:
            raise
sys.stdout.write(residual_mbrl.__file__)
"""

RUN = """
import sys
from importlib.metadata import entry_points
(script,) = entry_points(group="console_scripts", name="residual-mbrl")
sys.argv = ["residual-mbrl", *sys.argv[1:]]
sys.exit(script.load()())
"""


def tree() -> set[str]:
    """Every file of the package, by its path when installed; links are not followed, their targets are listed themselves."""
    return {f"{prefix}/{path.relative_to(folder).as_posix()}" for prefix, folder in SOURCES.items() for path in folder.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a source distribution that was built from a copy of the tree, so that nothing is left behind in it."""
    copy, dist = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for entry in ROOT.iterdir():
        if entry.is_file():
            shutil.copy(entry, copy)
    for folder in ("residual_mbrl", "physics", "kernels", "tests"):
        shutil.copytree(ROOT / folder, copy / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    run("-m", "build", "--no-isolation", "--outdir", str(dist), str(copy))
    (built,) = dist.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the unpacked wheel."""
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def run(*arguments: str, path: Path | None = None) -> str:
    """Run Python in another folder than the checkout, with ``path`` before all that is installed, and return what it writes."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | ({"PYTHONPATH": str(path)} if path else {})
    done = subprocess.run([sys.executable, *arguments], env=environment, cwd=path or ROOT.anchor, capture_output=True, text=True,
                          check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wheel_holds_every_file(wheel: Path) -> None:
    """A package or data file that pyproject.toml forgets would be missing here."""
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if name.startswith("residual_mbrl/")} == tree()


def test_wheel_takes_no_other_name(wheel: Path) -> None:
    """Neither physics nor kernels nor tests becomes a package of its own."""
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"residual_mbrl"}


def test_every_module_imports_from_the_wheel(installed: Path) -> None:
    """All modules import with the core dependencies; only an extra may be missing."""
    assert Path(run("-c", IMPORT_ALL, path=installed)).is_relative_to(installed)


def test_command_runs_from_the_wheel(installed: Path) -> None:
    """The self-check of an installation passes."""
    assert run("-c", RUN, "check", path=installed)
