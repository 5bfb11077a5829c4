"""State of a search or a training that survives being stopped: a small file, written whole after every round."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from residual_mbrl.errors import ModelError
from residual_mbrl.files import write_bytes

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Round:
    """One line of the training history: horizon [steps], cost per row on training and validation data, seconds."""

    horizon: int
    train: float
    validation: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Training:
    """Where a training stands.

    Args:
        z: Unknowns after the last round.
        best: Unknowns of the best validation score at the present horizon.
        best_score: That score.
        stage: Place of the present horizon, or start of a search.
        round: Rounds made at it.
        stale: Rounds since the best.
        history: Every round so far.
        converged: Whether the best ended by a tolerance rather than a limit.
    """

    z: Array
    best: Array
    best_score: float = float("inf")
    stage: int = 0
    round: int = 0
    stale: int = 0
    history: tuple[Round, ...] = ()
    converged: bool = False

    def next_start(self, z: Array, entry: Round, *, converged: bool) -> Training:
        """Return the state of a multi-start search after one more start."""
        after = replace(self, z=z, history=(*self.history, entry), stage=self.stage + 1)
        if entry.validation < self.best_score:
            return replace(after, best=z, best_score=entry.validation, converged=converged)
        return after

    def advance(self, z: Array, entry: Round, *, rounds: int, patience: int) -> Training:
        """Return the state after one more round; a horizon ends after ``rounds`` or ``patience`` without a better score."""
        better = entry.validation < self.best_score
        after = replace(self, z=z, history=(*self.history, entry), round=self.round + 1, stale=0 if better else self.stale + 1,
                        best=z if better else self.best, best_score=min(entry.validation, self.best_score))
        if after.round >= rounds or after.stale >= patience:
            return replace(after, z=after.best, best_score=float("inf"), stage=self.stage + 1, round=0, stale=0)
        return after


def save(path: Path, training: Training, fingerprint: str) -> None:
    """Write a training's state.

    Args:
        path: File to write, whole or not at all.
        training: The state.
        fingerprint: Identifies the problem it belongs to.

    Raises:
        OutputError: if it cannot be written.
    """
    meta = {"fingerprint": fingerprint, "best_score": training.best_score, "stage": training.stage, "round": training.round,
            "stale": training.stale, "converged": training.converged, "history": [asdict(r) for r in training.history]}
    buffer = io.BytesIO()
    np.savez(buffer, z=training.z, best=training.best, meta=np.array(json.dumps(meta)))
    write_bytes(path, buffer.getvalue())


def load(path: Path, fingerprint: str) -> Training | None:
    """Read a training's state; None where there is none.

    Raises:
        ModelError: if the file is damaged or belongs to another problem.
    """
    if not path.exists():
        return None
    try:
        # through memory: numpy leaves the file open where it turns out to be no archive
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            meta, z, best = json.loads(str(file["meta"])), file["z"], file["best"]
        owner, history = meta.pop("fingerprint"), tuple(Round(**r) for r in meta.pop("history"))
        training = Training(z=z, best=best, history=history, **meta)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as e:
        raise ModelError(f"{path}: not a training checkpoint ({e}); delete it to start anew") from e
    if owner != fingerprint:
        raise ModelError(f"{path}: checkpoint of another model, data or options; delete it to start anew")
    return training
