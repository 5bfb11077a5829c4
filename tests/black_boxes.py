"""Simulators in numpy, well-behaved and not. No torch is imported: worker processes start faster without it."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

DT = 0.01
NOMINAL = {"inertia": 1.0, "gravity_moment": 9.81, "torque_offset": 0.0}


def pendulum(state: np.ndarray, action: np.ndarray, *, force: np.ndarray | None = None,
             parameters: Mapping[str, Any] | None = None) -> np.ndarray:
    """A pendulum of one world or many: the equations and the RK4 of ``residual_mbrl.physics.pendulum``, without friction."""
    p = {n: np.asarray(x) for n, x in {**NOMINAL, **(parameters or {})}.items()}
    push = action[..., 0] + p["torque_offset"] + (0.0 if force is None else force[..., 0])

    def acceleration(q: np.ndarray) -> np.ndarray:
        return (push - p["gravity_moment"] * np.sin(q)) / p["inertia"]

    q, v = state[..., 0], state[..., 1]
    k1 = acceleration(q)
    k2 = acceleration(q + DT / 2 * v)
    k3 = acceleration(q + DT / 2 * (v + DT / 2 * k1))
    k4 = acceleration(q + DT * (v + DT / 2 * k2))
    state[..., 0] = q + DT * (v + DT / 6 * (k1 + k2 + k3))
    state[..., 1] = v + DT / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return state  # written into, as many simulators do


def misbehaves(state: np.ndarray, action: np.ndarray) -> np.ndarray:
    """Fail in the way that the action names."""
    kind = int(action.reshape(-1)[0])
    if kind == 1:
        raise ArithmeticError("the solver gave up")
    if kind == 2:
        return np.array([np.nan, 0.0])
    if kind == 3:
        return np.zeros(5)
    if kind == 4:
        os._exit(7)
    if kind == 5:
        ctypes.string_at(0)
    if kind == 6:
        time.sleep(60)
    if kind == 7:
        sys.exit("leaving")
    return state + 1.0


def misbehaving_batch(state: np.ndarray, action: np.ndarray) -> np.ndarray:
    """Fail as a whole where one world does."""
    return np.stack([misbehaves(s, a) for s, a in zip(state, action, strict=True)])


def cannot_be_made() -> Callable[..., np.ndarray]:
    raise OSError("no licence for this simulator")


def exits() -> Callable[..., np.ndarray]:
    os._exit(3)


def names_its_thread() -> Callable[..., np.ndarray]:
    """A simulator with a buffer of its own, which says where it was made and runs."""
    buffer = np.zeros(2)

    def step(state: np.ndarray, action: np.ndarray) -> np.ndarray:
        buffer[:] = os.getpid(), threading.get_ident() % 10**6
        time.sleep(0.02)
        return buffer

    return step


def has_torch() -> Callable[..., np.ndarray]:
    """A simulator that tells whether torch is imported where it runs."""
    return lambda state, action: np.full(2, float("torch" in sys.modules))
