"""Batches of windows cut from logs: what identification, fitting and evaluation work on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from residual_mbrl.errors import LogError
from residual_mbrl.trajectories import Trajectory, on_grid

AROUND = 0.5
"""Seconds before and after a window whose commands it keeps: ten of the longest delays, five of the longest time constants."""


@dataclass(frozen=True, kw_only=True)
class Windows:
    """B windows of H steps, padded at the end where a log is shorter.

    A window that starts amid motion needs the commands before it, which delays and filters still hold, and one whose columns
    were filtered those after it. Both are held constant beyond the log's own ends.

    Args:
        actions: Commands, shape [B, H, nu].
        lead: Commands of the L steps before, the latest last, shape [B, L, nu].
        trail: Commands of the A steps after, shape [B, A, nu].
        measurements: Shape [B, H + 1, ny]; zero where not recorded.
        recorded: Whether each measurement was recorded, shape [B, H + 1, ny].
        time: Time since the log's own zero [s], shape [B, H + 1].
        log: Place of the log each window comes from, shape [B].
        start: Row of the log's grid that each window starts at, shape [B].
        names: Log names.
        groups: Log groups.
        dt: Seconds per step.
    """

    actions: Tensor
    lead: Tensor
    trail: Tensor
    measurements: Tensor
    recorded: Tensor
    time: Tensor
    log: Tensor
    start: Tensor
    names: tuple[str, ...]
    groups: tuple[str, ...]
    dt: float

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.actions)

    @property
    def horizon(self) -> int:
        """Number of steps H."""
        return self.actions.shape[1]

    def take(self, rows: Tensor) -> Windows:
        """Return some of the windows; ``rows`` holds indices or booleans, shape [B]."""
        return replace(self, **{f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name in _ROWS})

    def first(self, horizon: int) -> Windows:
        """Return the windows cut to their first ``horizon`` steps."""
        return self.cut(0, min(horizon, self.horizon))

    def cut(self, start: int, horizon: int) -> Windows:
        """Return ``horizon`` steps of each window, from its row ``start``; commands around them are those that the window knows."""
        before, after, stop = self.lead.shape[1], self.trail.shape[1], start + horizon
        known = torch.cat([self.lead, self.actions, self.trail], 1)
        samples = slice(start, stop + 1)
        return replace(self, lead=known[:, start : start + before], actions=self.actions[:, start:stop],
                       trail=known[:, before + stop : before + stop + after], measurements=self.measurements[:, samples],
                       recorded=self.recorded[:, samples], time=self.time[:, samples], start=self.start + start)

    def of_groups(self, groups: Sequence[str]) -> Windows:
        """Return the windows whose log belongs to one of these groups."""
        chosen = torch.tensor([self.groups[i] in groups for i in self.log.tolist()])
        return self.take(chosen)


_ROWS = ("actions", "lead", "trail", "measurements", "recorded", "time", "log", "start")


def cut_windows(trajectories: Sequence[Trajectory], dt: float, *, horizon: int | None = None, stride: int | None = None,
                starts: Sequence[Sequence[int]] | None = None, around: float = AROUND, resample: bool = False,
                dtype: torch.dtype = torch.float64) -> Windows:
    """Cut logs into windows.

    Args:
        trajectories: The logs; all with the same columns.
        dt: Seconds per model step.
        horizon: Steps per window; None takes every log whole.
        stride: Steps between the starts of windows; ``horizon`` where None.
        starts: Rows to start at, for each log, in place of ``stride``.
        around: Seconds before and after each window whose commands it keeps.
        resample: Interpolate logs recorded at another rate.
        dtype: Of the tensors.

    Raises:
        LogError: if there is no log, columns differ between logs, no log is long enough, or a start lies outside its log.
        ValueError: if horizon or stride is below one, or ``around`` below zero.
    """
    if min(1 if horizon is None else horizon, 1 if stride is None else stride) < 1 or around < 0:
        raise ValueError(f"cut_windows: expected horizon >= 1, stride >= 1 and around >= 0 s, received {horizon}, {stride}, {around}")
    if starts is not None and len(starts) != len(trajectories):
        raise ValueError(f"cut_windows: expected starts for each of {len(trajectories)} logs, received {len(starts)}")
    if not trajectories:
        raise LogError("no logs: the folder or the split is empty")
    first = trajectories[0]
    for t in trajectories[1:]:
        if (t.measurement_names, t.command_names) != (first.measurement_names, first.command_names):
            raise LogError(f"{t.name}: columns {t.measurement_names + t.command_names} differ from those of {first.name}, "
                           f"{first.measurement_names + first.command_names}")
    grids = [on_grid(t, dt, resample=resample) for t in trajectories]
    longest = max(len(g.actions) for g in grids)
    steps = longest if horizon is None else horizon
    rows: list[tuple[int, int]] = []
    for i, g in enumerate(grids):
        if starts is not None:
            rows += [(i, s) for s in starts[i]]
            outside = [s for s in starts[i] if not 0 <= s <= len(g.actions)]
            if outside:
                raise LogError(f"{g.trajectory.name}: start {outside[0]} lies outside its {len(g.actions)} steps")
        elif horizon is None:
            rows.append((i, 0))
        else:
            rows += [(i, s) for s in range(0, len(g.actions) - horizon + 1, stride or horizon)]
    rows = [(i, s) for i, s in rows if np.isfinite(grids[i].measurements[s]).any()]
    if not rows:
        raise LogError(f"no log holds a window of {steps} steps ({steps * dt:g} s); the longest has {longest} steps")
    ny, nu = first.measurements.shape[1], first.commands.shape[1]
    beyond = round(around / dt)
    commands = np.zeros((len(rows), steps + 2 * beyond, nu))
    values = np.full((len(rows), steps + 1, ny), np.nan)
    time = np.zeros((len(rows), steps + 1))
    for k, (i, s) in enumerate(rows):
        g = grids[i]
        n = min(steps, len(g.actions) - s)
        commands[k] = g.actions[np.clip(np.arange(s - beyond, s + steps + beyond), 0, len(g.actions) - 1)]
        values[k, : n + 1] = g.measurements[s : s + n + 1]
        time[k] = g.time[s] + dt * np.arange(steps + 1)
    recorded = np.isfinite(values)
    lead, actions, trail = torch.tensor(commands, dtype=dtype).split([beyond, steps, beyond], 1)
    return Windows(actions=actions, lead=lead, trail=trail, measurements=torch.tensor(np.nan_to_num(values), dtype=dtype),
                   recorded=torch.tensor(recorded), time=torch.tensor(time, dtype=dtype),
                   log=torch.tensor([i for i, _ in rows]), start=torch.tensor([s for _, s in rows]),
                   names=tuple(t.name for t in trajectories), groups=tuple(t.group for t in trajectories), dt=dt)


def joined(parts: Sequence[Windows]) -> Windows:
    """Concatenate windows cut from the same logs; horizons and the commands around are cut to the shortest."""
    horizon, before, after = (min(x.shape[1] for x in xs) for xs in zip(*((w.actions, w.lead, w.trail) for w in parts), strict=True))
    cut = [replace(w, lead=w.lead[:, w.lead.shape[1] - before :], trail=w.trail[:, :after]) for w in (w.first(horizon) for w in parts)]
    names = list(dict.fromkeys(n for w in cut for n in w.names))
    groups = {n: g for w in cut for n, g in zip(w.names, w.groups, strict=True)}
    place = torch.cat([torch.tensor([names.index(w.names[i]) for i in w.log.tolist()]) for w in cut])
    rows = {field: torch.cat([getattr(w, field) for w in cut]) for field in _ROWS if field != "log"}
    return Windows(**rows, log=place, names=tuple(names), groups=tuple(groups[n] for n in names), dt=cut[0].dt)
