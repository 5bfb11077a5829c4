"""What every peer's script shares: the problem as arrays, the common cost, and the exchange of lines with ``control.py``.

A script is started with the path of a problem, checks that its dynamics repeat the rollout stored there, reports its versions and
settings, and then solves once for each line that it receives. NumPy only: each peer has an environment of its own.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import numpy as np

now = time.process_time if os.environ.get("CONTROL_CLOCK") == "cpu" else time.perf_counter
"""The clock of all measurements [s]."""


class Problem:
    """A problem as ``control_problems.Problem.save`` wrote it; every array is an attribute, and so is every number of its head."""

    def __init__(self, path: str) -> None:
        saved = np.load(path)
        head = json.loads(str(saved["meta"]))
        self.name, self.dt, self.horizon, self.bound, self.parameters = (head[n] for n in ("name", "dt", "horizon", "bound", "parameters"))
        self.weights = [saved[f"w{i}"] for i in range(head["layers"])]
        self.biases = [saved[f"b{i}"] for i in range(head["layers"])]
        names = ("start", "guess", "state", "action", "terminal", "goal", "limits", "check_actions", "check_states")
        (self.start, self.guess, self.state, self.action, self.terminal, self.goal, self.limits, self.check_actions,
         self.check_states) = (saved[n] for n in names)
        self.nx, self.nu = len(self.start), self.guess.shape[1]

    def error(self, step: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> float:
        """Return the largest difference of a rollout by ``step(x, u)`` from the stored one, in units of max(1, |state|)."""
        x, worst = self.start, 0.0
        for u, expected in zip(self.check_actions, self.check_states[1:], strict=True):
            x = np.asarray(step(x, u), dtype=float).reshape(-1)
            worst = max(worst, float((np.abs(x - expected) / np.maximum(1.0, np.abs(expected))).max()))
        return worst


class Lines:
    """Lines of JSON to ``control.py``; whatever else is printed here goes to standard error."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def send(self, message: object) -> None:
        """Write one line."""
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()


class Clock:
    """The history of one solve: seconds since its start, and cost."""

    def __init__(self) -> None:
        self.history: list[tuple[float, float]] = []
        self._begun = now()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return now() - self._begun

    def note(self, cost: float) -> None:
        """Add an iterate."""
        self.history.append((self.seconds, float(cost)))


Solve = Callable[[dict], dict]


def serve(lines: Lines, solvers: dict[str, Solve], about: dict, packages: tuple[str, ...]) -> None:
    """Report, then answer each request ``{"solver": name, ...}`` until the input ends."""
    lines.send({"solvers": list(solvers), "versions": versions(packages), **about})
    for line in sys.stdin:
        request = json.loads(line)
        lines.send(solvers[request["solver"]](request))


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of installed packages, and of Python."""
    found = {"python": sys.version.split()[0]}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found
