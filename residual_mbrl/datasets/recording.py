"""What any log file holds, in one plain form: named signals, each with its own clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from residual_mbrl.errors import LogError

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Signal:
    """One named column of a log.

    Args:
        name: Name as the file has it; an element of a vector is ``name[0]``, or ``name.element`` where the file names its elements.
        time: Time of each sample as recorded [s], shape [N]; several signals may share one array.
        values: Value of each sample in the file's own unit, shape [N]; NaN where a sample is missing.
        unit: Unit as the file states it; None where it states none.

    Raises:
        LogError: if the two arrays do not have one row each for every sample.
    """

    name: str
    time: FloatArray
    values: FloatArray
    unit: str | None = None

    def __post_init__(self) -> None:
        """Convert to float64 arrays (without a copy where they already are) and check their shapes."""
        object.__setattr__(self, "time", np.asarray(self.time, dtype=np.float64))
        object.__setattr__(self, "values", np.asarray(self.values, dtype=np.float64))
        if self.time.ndim != 1 or self.time.shape != self.values.shape:
            raise LogError(f"signal '{self.name}': expected time and values of one shape [N], received {list(self.time.shape)} "
                           f"and {list(self.values.shape)}")

    @property
    def interval(self) -> float:
        """Median time between samples [s]; NaN for fewer than two."""
        return float(np.median(np.diff(self.time))) if len(self.time) > 1 else float("nan")


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One run of a robot as a file holds it, before columns are mapped to joints.

    Args:
        name: Stem of the file, and the episode where a file holds several.
        path: The file, or the folder of a data set.
        signals: The signals by name, in the file's order.
        group: Runs that cross-validation leaves out together.
        metadata: What else the file says (rate, robot, task), and under ``skipped`` the columns that were not read and why.

    Raises:
        LogError: naming file, signal and row, if there is no signal, or a clock is not finite or goes backwards.
    """

    name: str
    path: Path
    signals: Mapping[str, Signal]
    group: str = ""
    metadata: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that there are signals and that every clock runs forwards."""
        if not self.signals:
            raise LogError(f"{self.path}: no numeric signal in '{self.name}'{_list_skipped(self.metadata)}")
        for signal in {id(s.time): s for s in reversed(list(self.signals.values()))}.values():
            _check_clock(self.path, signal)


def _check_clock(path: Path, signal: Signal) -> None:
    time = signal.time
    if len(time) == 0:
        raise LogError(f"{path}: signal '{signal.name}' has no samples")
    if not np.isfinite(time).all():
        row = int(np.flatnonzero(~np.isfinite(time))[0])
        raise LogError(f"{path}: time of '{signal.name}' is {time[row]} at row {row}; expected a finite number")
    backwards = np.flatnonzero(np.diff(time) < 0)
    if len(backwards):
        row = int(backwards[0]) + 1
        raise LogError(f"{path}: time of '{signal.name}' goes backwards at row {row}, from {time[row - 1]:.9g} s to {time[row]:.9g} s "
                       f"({len(backwards)} such rows)")


def _list_skipped(metadata: Mapping[str, object]) -> str:
    skipped = metadata.get("skipped")
    return f"; not read: {', '.join(f'{n} ({why})' for n, why in skipped.items())}" if isinstance(skipped, Mapping) and skipped else ""
