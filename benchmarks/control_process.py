"""A peer in a process and an environment of its own, asked to solve by lines of JSON."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import say

now = time.process_time if os.environ.get("CONTROL_CLOCK") == "cpu" else time.perf_counter
"""The clock of all measurements [s]."""
SCRIPTS = Path(__file__).parent / "control_peers"
ONE_THREAD = {n: "1" for n in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}


class Peer:
    """A running script of ``control_peers``; idle but while it solves.

    Args:
        folder: Of the environments that ``control_peers/make.sh`` makes.
        environment: Of the peer, there.
        script: Its script, or its program in the folder where the environment is empty.
        arguments: Of the script.
    """

    def __init__(self, folder: Path, environment: str, script: str, arguments: Sequence[object]) -> None:
        program = [str(folder / environment / "bin" / "python"), str(SCRIPTS / script)] if environment else [str(folder / script)]
        if not Path(program[0]).exists():
            raise FileNotFoundError(f"{program[0]} is missing: run benchmarks/control_peers/make.sh {folder}")
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen([*program, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                         stderr=self._errors, env={**kept, **ONE_THREAD})
        self.about = self._read()
        self.solvers: list[str] = self.about["solvers"]

    def solve(self, solver: str, **request: object) -> dict[str, Any]:
        """Return what one solve reports."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"solver": solver, **request}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()
        self._errors.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait(60)
            self._errors.seek(0)
            raise RuntimeError(f"{self._process.args} ended: {self._errors.read()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def opened(folder: Path, environment: str, script: str, arguments: Sequence[object]) -> Peer | None:
    """Start a peer; None, and a word about it, where its environment is missing."""
    try:
        return Peer(folder, environment, script, arguments)
    except FileNotFoundError as error:
        say(str(error))
        return None
