"""Episodes on disk: every step is written as it is made, and an episode whole when it ends."""

from __future__ import annotations

import io
import json
import logging
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from residual_mbrl.errors import ModelError
from residual_mbrl.files import write_bytes
from residual_mbrl.learning.acting import Act
from residual_mbrl.learning.plants import Plant
from residual_mbrl.spaces import StateSpace
from residual_mbrl.trajectories import Trajectory

Array = NDArray[np.float64]
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Episode:
    """States as measured, shape [H + 1, nx], and actions, shape [H, nu]."""

    name: str
    states: Array
    actions: Array

    def trajectory(self, space: StateSpace, dt: float) -> Trajectory:
        """Return it as a log, for identification and fits."""
        time: Array = np.asarray(dt * np.arange(len(self.states)), np.float64)
        return Trajectory(name=self.name, command_time=time[:-1], commands=self.actions, command_names=space.action,
                          measurement_time=time, measurements=self.states, measurement_names=space.state_names, units=dict(space.units))


def collect(plant: Plant, path: Path, *, name: str, seed: int, first: Array, act: Act, steps: int, low: Array, high: Array) -> Episode:
    """Return an episode, from disk if it is there; every step stands in a journal beside it until it is whole.

    A plant repeats an episode from its seed: one that was cut off is collected anew, and its journal stays beside the new one.

    Args:
        plant: Acted on.
        path: File of the episode, ``.npz``.
        name: Of the episode.
        seed: Of its noise.
        first: Where it should begin, shape [nx].
        act: Who acts; actions are cut to their range.
        steps: At most.
        low: Lowest action, shape [nu].
        high: Highest action, shape [nu].

    Raises:
        ValueError: if an action has the wrong shape or is not finite.
    """
    if path.exists():
        return load(path, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    states: list[Array] = [plant.reset(seed, first)]
    actions: list[Array] = []
    with _journal(path).open("x", encoding="utf-8") as file:
        file.write(json.dumps({"seed": seed, "state": states[0].tolist()}) + "\n")
        for t in range(steps):
            if not np.isfinite(states[-1]).all():
                log.warning("%s: the state is not finite after %d steps; the episode ends before", name, t)
                states.pop()
                actions = actions[: len(states) - 1]
                break
            action = np.asarray(act(states[-1], t), np.float64)
            if action.shape != low.shape or not np.isfinite(action).all():
                raise ValueError(f"{name}: expected finite actions of shape {low.shape}, received {action}")
            action = np.clip(action, low, high)
            state, over = plant.step(action)
            states.append(state)
            actions.append(action)
            file.write(json.dumps({"action": action.tolist(), "state": state.tolist()}) + "\n")
            file.flush()
            if over:
                break
    if states and not np.isfinite(states[-1]).all():
        states.pop()
        actions = actions[: max(0, len(states) - 1)]
    episode = Episode(name=name, states=np.array(states).reshape(-1, plant.space.nx), actions=np.array(actions).reshape(-1, plant.space.nu))
    buffer = io.BytesIO()
    np.savez(buffer, states=episode.states, actions=episode.actions)
    write_bytes(path, buffer.getvalue())
    return episode


def load(path: Path, name: str) -> Episode:
    """Read an episode.

    Raises:
        ModelError: if the file is damaged.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            return Episode(name=name, states=file["states"], actions=file["actions"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path}: not an episode ({error})") from error


def usable(episodes: Sequence[Episode], shortest: int) -> Iterator[Episode]:
    """Yield the episodes that are long enough to learn from, and log the others."""
    for episode in episodes:
        if len(episode.actions) >= shortest:
            yield episode
        else:
            log.warning("%s: %d steps are too few to learn from (%d are needed); skipped", episode.name, len(episode.actions), shortest)


def _journal(path: Path) -> Path:
    """Return a name for the journal that no earlier, unfinished one has."""
    count = len(list(path.parent.glob(f"{path.stem}.steps*")))
    return path.with_name(f"{path.stem}.steps{count}.jsonl")
