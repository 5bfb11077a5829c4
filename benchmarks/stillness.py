"""When a core stood still: a process beside the one that is measured, before it in priority, that does nothing but look at the clock.

A virtual computer's cores are stopped by its host now and then, for milliseconds that its kernel knows nothing of: they count as
processor time of whatever runs. Nobody on that core can keep a deadline meanwhile, so a benchmark has to know. The witness sleeps half a
millisecond, looks at the clock, and notes where it was kept from looking for much longer. As it runs before everything else on the core
(SCHED_FIFO), no program there can keep it from that, only what stops the core. Where the system does not allow such a priority there is
no witness.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

NAP, NOTED, PRIORITY = 0.0005, 0.0004, 50
"""Seconds between two looks, seconds of a pause that is noted, and the witness's real-time priority."""


class Witness:
    """Watches the core of the process that makes it, which keeps to one from then on; ``there`` is false where it may not."""

    def __init__(self) -> None:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        file, name = tempfile.mkstemp(prefix="witness_")
        self._seen, self._process = Path(name), subprocess.Popen([sys.executable, __file__], stdout=file)
        os.close(file)
        while not (said := self._seen.read_text()).endswith("\n") and self._process.poll() is None:
            time.sleep(0.01)
        self.there = said.startswith("watching")

    def still(self, begin: float, end: float) -> float:
        """Return the seconds between two times of ``time.monotonic`` in which the core stood still."""
        time.sleep(4 * NAP)  # it notes a pause when the next look comes
        lines = self._seen.read_text().splitlines()[1:]
        return overlap(((float(a), float(b)) for a, b in (line.split() for line in lines)), begin, end)

    def share(self, begin: float, end: float) -> float | None:
        """Return the share of a time in which the core stood still; None where there is no witness."""
        return self.still(begin, end) / (end - begin) if self.there else None

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()
        self._seen.unlink()


def overlap(pauses: Iterable[tuple[float, float]], begin: float, end: float) -> float:
    """Return how much of an interval the pauses cover."""
    return sum(max(0.0, min(b, end) - max(a, begin)) for a, b in pauses)


def watch() -> None:
    """Note every pause of this core, one a line, as long as there is someone to note it for."""
    gc.disable()
    parent = os.getppid()
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    except OSError as error:
        print(error, flush=True)
        return
    print("watching", flush=True)
    last = time.monotonic()
    while os.getppid() == parent:
        time.sleep(NAP)
        now = time.monotonic()
        if now - last - NAP > NOTED:
            print(last + NAP, now, flush=True)
            now = time.monotonic()
        last = now


if __name__ == "__main__":
    watch()
