"""Recordings of a simulated two-joint arm under torque, in the forms that logs come in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from residual_mbrl.datasets.recording import Recording, Signal
from residual_mbrl.spaces import StateSpace

DT = 0.002
JOINTS = ("shoulder", "elbow")
SPACE = StateSpace(position=JOINTS, velocity=tuple(f"{j}.vel" for j in JOINTS), action=("shoulder_motor", "elbow_motor"),
                   units={**dict.fromkeys(JOINTS, "rad"), **{f"{j}.vel": "rad/s" for j in JOINTS}})
RANGES = {"shoulder": (-2.0, 2.0), "elbow": (-2.5, 2.5)}
DRIVES = {"shoulder_motor": "shoulder", "elbow_motor": "elbow"}


def simulate(*, seconds: float = 4.0, delay: float = 0.0, seed: int = 0, noise: float = 1e-4) -> dict[str, np.ndarray]:
    """Two damped pendulums driven by steps of torque that arrive ``delay`` late: t [T], q, v and u [T, 2]."""
    rng = np.random.default_rng(seed)
    n, fine = round(seconds / DT), 5
    u = np.stack([np.repeat(rng.normal(size=n // 40 + 1), 40)[:n] * s for s in (2.0, 3.0)], 1)
    q, v = np.zeros((n, 2)), np.zeros((n, 2))
    for k in range(n - 1):
        x, w = q[k], v[k]
        for s in range(fine):
            late = max(int(np.floor(k + s / fine - delay / DT + 1e-9)), 0)
            w = w + DT / fine * (-20.0 * np.sin(x) - 1.5 * w + 6.0 * u[late])
            x = x + DT / fine * w
        q[k + 1], v[k + 1] = x, w
    return {"t": DT * np.arange(n), "q": q + noise * rng.normal(size=q.shape), "v": v + 20 * noise * rng.normal(size=v.shape), "u": u}


def record(columns: Mapping[str, np.ndarray], t: np.ndarray | Mapping[str, np.ndarray], *, units: Mapping[str, str] | None = None,
           name: str = "run") -> Recording:
    """A recording of named columns on one clock, or each on its own."""
    clocks = t if isinstance(t, Mapping) else dict.fromkeys(columns, t)
    signals = {n: Signal(name=n, time=clocks[n], values=x, unit=(units or {}).get(n)) for n, x in columns.items()}
    return Recording(name=name, path=Path(f"{name}.npz"), signals=signals, group=name)


def vectors(d: Mapping[str, np.ndarray], names: Mapping[str, str] | None = None) -> dict[str, np.ndarray]:
    """Columns q[0], q[1], dq[0], ... of a simulation."""
    named = names or {"q": "q", "v": "dq", "u": "tau"}
    return {f"{name}[{k}]": d[key][:, k] for key, name in named.items() for k in range(d[key].shape[1])}
