"""What a controller changed its mind about: one entry a switch, with the reason and the numbers behind it."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from residual_mbrl.files import write_bytes

Subject = Literal["law", "state", "plan"]
Evidence = Mapping[str, float | str]


@dataclass(frozen=True, kw_only=True)
class Switch:
    """One change of what commands come from, or of what states come from.

    Args:
        time: Loop time [s].
        subject: "law" for what computes the commands, "state" for where the state is taken from, "plan" for how often there is a new one.
        source: What was in use.
        target: What is in use from now on.
        reason: Why, in words.
        evidence: The numbers that were decided by.
    """

    time: float
    subject: Subject
    source: str
    target: str
    reason: str
    evidence: Evidence = field(default_factory=dict)

    def to_json(self) -> str:
        """Return one line of JSON; numbers that are not finite become words."""
        evidence = {n: x if isinstance(x, str) else _number(x) for n, x in self.evidence.items()}
        return json.dumps({"time": round(self.time, 9), "subject": self.subject, "from": self.source, "to": self.target,
                           "reason": self.reason, "evidence": evidence}, allow_nan=False)


class SwitchLog:
    """The switches of a run, the latest ``most`` of them."""

    def __init__(self, most: int = 100_000) -> None:
        self._entries: deque[Switch] = deque(maxlen=most)
        self.dropped = 0

    def add(self, switch: Switch) -> None:
        """Append an entry; the oldest one goes where there is no room."""
        self.dropped += len(self._entries) == self._entries.maxlen
        self._entries.append(switch)

    def __iter__(self) -> Iterator[Switch]:
        """Go through the entries in order of time."""
        return iter(self._entries)

    def __len__(self) -> int:
        """Return the number of entries kept."""
        return len(self._entries)

    def write(self, path: Path) -> None:
        """Write the entries as JSON lines, whole or not at all.

        Raises:
            OutputError: if the file cannot be written.
        """
        write_bytes(path, "".join(f"{e.to_json()}\n" for e in self._entries).encode())


def _number(x: float) -> float | str:
    value = float(x)
    return float(f"{value:.6g}") if abs(value) < float("inf") else str(value)
