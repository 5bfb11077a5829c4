"""The self-check passes on a sound installation and names what is broken in another."""

from __future__ import annotations

import pytest
import torch

from residual_mbrl import check as module
from residual_mbrl.check import CheckError, check_installation
from residual_mbrl.descriptions import BASELINES
from residual_mbrl.physics.pendulum import Pendulum
from residual_mbrl.residuals import Dissipative


def test_sound_installation_passes():
    """Every check passes here, one for each baseline among them."""
    results = check_installation()
    assert [r for r in results if not r.passed] == []
    assert {f"gradients of {n}" for n in BASELINES} <= {r.name for r in results}
    assert "µs/step" in results[-1].detail


class Detached(Pendulum):
    """A pendulum that forgets the gradient of its gravity."""

    def smooth_force(self, q, v, u, p):
        return super().smooth_force(q, v, u, {**p, "gravity_moment": p["gravity_moment"].detach()})


def test_wrong_gradient_is_found():
    """A parameter whose gradient is lost fails the check."""
    with pytest.raises(CheckError, match="relative error"):
        module.check_gradients(Detached())


def test_lost_guarantee_is_found(monkeypatch):
    """A residual that gives energy fails the check, with its power."""
    forward = Dissipative.forward
    monkeypatch.setattr(Dissipative, "forward", lambda self, context: -forward(self, context))
    with pytest.raises(CheckError, match=r"Dissipative: power .* W, expected at most 0"):
        module.check_guarantees()


def test_engine_that_disagrees_is_found(monkeypatch):
    """A pendulum of other equations than MuJoCo's fails the check."""
    monkeypatch.setattr(Pendulum, "smooth_force", lambda self, q, v, u, p: u - p["gravity_moment"] * torch.tanh(q))
    monkeypatch.setattr(Pendulum, "warp_terms", lambda self: None)
    with pytest.raises(CheckError, match="differs from ours"):
        module.check_mujoco()


def test_missing_package_is_named(monkeypatch):
    """A package that is not installed is named; a source tree without a version of its own is no failure."""
    monkeypatch.setattr(module, "package_versions", lambda: {"residual-mbrl": "missing", "torch": "2"})
    assert "torch 2" in module.check_versions()
    monkeypatch.setattr(module, "package_versions", lambda: {"mujoco": "missing"})
    with pytest.raises(CheckError, match="not installed: mujoco"):
        module.check_versions()


def test_any_failure_is_a_result(monkeypatch):
    """An exception in one check is its result, and the others still run."""
    def broken():
        raise ImportError("libmujoco.so: wrong ELF class")

    monkeypatch.setattr(module, "check_mujoco", broken)
    monkeypatch.setattr(module, "BASELINES", {"Pendulum": "pendulum", "Airship": "airship"})
    results = {r.name: r for r in check_installation()}
    assert not results["MuJoCo"].passed
    assert "wrong ELF class" in results["MuJoCo"].detail
    assert "airship" in results["gradients of Airship"].detail
    assert results["Warp"].passed
