"""What was understood of a set of logs, joint by joint, shown before any work starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from residual_mbrl.log_alignment import Clock
from residual_mbrl.state_layout import Section

FIRST_ROWS = 3

_SHOWN = 16
"""Logs and names that are listed; the rest is counted."""

_NUMBERS = ("noise", "rate [Hz]", "jitter [ms]", "gaps")
_SHOWN_JITTER = 1e-3
"""Jitter as a fraction of the interval below which it is not worth a word."""


@dataclass(frozen=True, kw_only=True)
class ColumnReport:
    """What was understood of one state or action entry.

    Args:
        name: The entry.
        section: Its section.
        column: The log's column, or what stands for it.
        conversion: How the column becomes the entry, "deg → rad, sign -1".
        unit: Unit of the entry; of everything below.
        low: Smallest value in all logs.
        high: Largest value in all logs.
        limits: Range of the joint or command in the model; None where it has none.
        noise: Standard deviation of the noise; None for commands.
        clock: Rate, jitter, gaps and repeats in the first log; None where there is no column.
        delay: What was found or stated of its delay; empty where there is none.
        first: Its first three values in the first log.
    """

    name: str
    section: Section
    column: str
    conversion: str
    unit: str
    low: float
    high: float
    limits: tuple[float, float] | None
    noise: float | None
    clock: Clock | None
    delay: str
    first: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class LogReport:
    """One log.

    Args:
        name: Its name.
        group: Group that cross-validation leaves out together.
        seconds: Duration on the grid.
        rows: Rows on the grid.
        missing: Fraction of measurements that the grid has no sample for.
    """

    name: str
    group: str
    seconds: float
    rows: int
    missing: float


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """Everything that was understood of the logs.

    Args:
        columns: Every state and action entry, in the model's order.
        logs: The logs, as they were cut.
        dt: Seconds per step of the grid.
        unused: Columns that serve nothing.
        estimated: What is estimated from the logs: velocities without a column, delays.
        warnings: What the user should look at.
    """

    columns: Sequence[ColumnReport]
    logs: Sequence[LogReport]
    dt: float
    unused: Sequence[str]
    estimated: Sequence[str]
    warnings: Sequence[str]

    @property
    def seconds(self) -> float:
        """Duration of all logs [s]."""
        return sum(log.seconds for log in self.logs)

    def render(self) -> Group:
        """Return tables of the columns, the first rows and the logs, and the warnings."""
        parts: list[RenderableType] = [_columns("measured", [c for c in self.columns if c.section != "action"]),
                                       _columns("commands", [c for c in self.columns if c.section == "action"]), _first_rows(self.columns)]
        groups = len({log.group for log in self.logs})
        rows = sum(log.rows for log in self.logs)
        parts.append(Text(f"{len(self.logs)} log(s) in {groups} group(s), {self.seconds:.4g} s, {rows} rows of {1e3 * self.dt:g} ms"))
        parts += [Text(f"  {log.name}: {log.seconds:.4g} s" + (f", {log.missing:.1%} not measured" if log.missing else ""), "dim")
                  for log in self.logs[:_SHOWN]]
        parts += [Text(f"  and {len(self.logs) - _SHOWN} more", "dim")] if len(self.logs) > _SHOWN else []
        parts += [Text(f"estimated: {_listed(self.estimated)}")] if self.estimated else []
        parts += [Text(f"not used: {_listed(self.unused)}", "dim")] if self.unused else []
        parts += [Text(f"warning: {w}", "yellow") for w in self.warnings]
        return Group(*parts)


def _columns(title: str, columns: Sequence[ColumnReport]) -> RenderableType:
    """Table of entries; headings under which there is nothing to say are left out."""
    if not columns:
        return Text(f"no {title}")
    rows = [_row(c) for c in columns]
    shown = [heading for heading in rows[0] if any(row[heading].plain for row in rows)]
    table = Table(title=title, title_justify="left")
    for heading in shown:
        table.add_column(heading, overflow="fold", justify="right" if heading in _NUMBERS else "left")
    for row in rows:
        table.add_row(*(row[heading] for heading in shown))
    return table


def _row(c: ColumnReport) -> dict[str, Text]:
    outside = c.limits is not None and not c.limits[0] <= c.low <= c.high <= c.limits[1]
    jittery = c.clock is not None and c.clock.jitter > _SHOWN_JITTER * c.clock.interval
    return {"entry": Text(c.name), "column": Text(c.column), "conversion": Text(c.conversion), "unit": Text(c.unit),
            "range": Text(f"{_number(c.low)} to {_number(c.high)}" if math.isfinite(c.low) else ""),
            "model's range": Text("" if c.limits is None else f"{c.limits[0]:.4g} to {c.limits[1]:.4g}", "yellow" if outside else ""),
            "noise": Text("" if c.noise is None else f"{c.noise:.2g}"), "rate [Hz]": Text("" if c.clock is None else f"{c.clock.rate:.5g}"),
            "jitter [ms]": Text(f"{1e3 * c.clock.jitter:.2g}" if c.clock is not None and jittery else ""),
            "gaps": Text(str(c.clock.gaps) if c.clock is not None and c.clock.gaps else ""), "delay": Text(c.delay)}


def _first_rows(columns: Sequence[ColumnReport]) -> RenderableType:
    table = Table(title="first rows", title_justify="left")
    for name in ("entry", *(f"row {k}" for k in range(FIRST_ROWS)), "unit"):
        table.add_column(name, justify="right" if name.startswith("row") else "left")
    for c in columns:
        if c.first:
            table.add_row(Text(c.name), *[_number(x) for x in c.first], *[""] * (FIRST_ROWS - len(c.first)), Text(c.unit))
    return table


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.5g}"
