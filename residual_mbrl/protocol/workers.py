"""Cells run apart: a process each, whose crash is that cell's alone; every result is a file, and a repeated run goes on from them."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from residual_mbrl.files import load_json, write_json
from residual_mbrl.protocol.cells import Cell

log = logging.getLogger(__name__)
Run = Callable[[Cell], Mapping[str, object]]
Tell = Callable[[str, float], None]
POLL = 0.05
"""Seconds between looks at the processes."""


def run_cells(run: Run, cells: Sequence[Cell], folder: Path, *, fingerprint: str, workers: int = 2, retries: int = 1,
              timeout: float = 3600.0, tell: Tell | None = None) -> dict[str, dict[str, Any]]:
    """Run every cell once and return what each left, by its name: ``{"status": "done" | "failed", "result" | "error", ...}``.

    A cell that is done already, by the same fingerprint, is not run again; one that failed is. A process that dies (a crash of native
    code, no memory, no time) leaves the others alone, is tried again, and in the end reported with its exit code.

    Args:
        run: Computes a cell; must be picklable where there are workers.
        cells: Cells; those of one name are run once.
        folder: Where results lie.
        fingerprint: Of data and options: results of another are not used.
        workers: Processes side by side; 0 runs in this one.
        retries: Further attempts at a failed cell.
        timeout: Seconds after which a process is ended.
        tell: Called with a phrase and the fraction done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {c.name: c for c in cells}
    found = {n: r for n in wanted if (r := _read(folder / f"{n}.json", fingerprint)) is not None and r["status"] == "done"}
    todo = [(c, 1) for n, c in wanted.items() if n not in found]
    running: list[tuple[SpawnProcess, Cell, int, float]] = []
    while todo or running:
        while todo and len(running) < max(1, workers):
            cell, attempt = todo.pop(0)
            if tell is not None:
                tell(cell.label, len(found) / len(wanted))
            if workers:
                process = get_context("spawn").Process(target=_work, args=(run, cell, folder, fingerprint, attempt))
                process.start()
                running.append((process, cell, attempt, time.monotonic()))
            else:
                _work(run, cell, folder, fingerprint, attempt)
                todo += _settle(cell, attempt, 0, folder, fingerprint, retries, found)
        for entry in list(running):
            process, cell, attempt, begun = entry
            late = time.monotonic() - begun > timeout
            if late:
                process.kill()
            process.join(None if late else POLL / len(running))
            if process.exitcode is not None:
                running.remove(entry)
                todo += _settle(cell, attempt, process.exitcode, folder, fingerprint, retries, found)
                process.close()
    return found


def _work(run: Run, cell: Cell, folder: Path, fingerprint: str, attempt: int) -> None:
    begun = time.monotonic()
    told: dict[str, object] = {"cell": _told(cell), "fingerprint": fingerprint, "attempts": attempt}
    try:
        result = {**told, "status": "done", "result": dict(run(cell))}
    except Exception as error:  # whatever a cell raises is its result
        result = {**told, "status": "failed", "error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    write_json(folder / f"{cell.name}.json", {**result, "seconds": time.monotonic() - begun})


def _settle(cell: Cell, attempt: int, code: int, folder: Path, fingerprint: str, retries: int,
            found: dict[str, dict[str, Any]]) -> list[tuple[Cell, int]]:
    """Take a finished cell in; return it again where it is to be repeated."""
    path = folder / f"{cell.name}.json"
    result = _read(path, fingerprint)
    if code or result is None or result.get("attempts") != attempt:
        result = {"cell": _told(cell), "fingerprint": fingerprint, "attempts": attempt, "status": "failed", "seconds": None,
                  "error": f"the process ended with exit code {code} and left no result"}
        write_json(path, result)
    if result["status"] == "failed":
        log.warning("%s: attempt %d failed: %s", cell.label, attempt, result["error"])
        if attempt <= retries:
            return [(cell, attempt + 1)]
    found[cell.name] = result
    return []


def _told(cell: Cell) -> dict[str, object]:
    return {"variant": cell.variant, "fold": cell.fold, "seed": cell.seed, "fraction": cell.fraction, "changes": dict(cell.changes)}


def _read(path: Path, fingerprint: str) -> dict[str, Any] | None:
    try:
        found = load_json(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("fingerprint") == fingerprint else None
