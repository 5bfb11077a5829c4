"""What all benchmarks share: their two options, the rows they write, and the tables they print."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from residual_mbrl.environment import cpu_name, describe_environment, package_versions
from residual_mbrl.files import write_json

WIDTH = 140
"""Columns of a page that is no terminal."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a benchmark.

    Args:
        json: File that the rows are written to; none where missing.
        quick: A smaller run that shows the same things less precisely.
    """

    json: Path | None = None
    quick: bool = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison.

    Args:
        name: What was measured.
        ours: This library's number, in ``unit``.
        peer: What it is compared with: another model, another program, or a planted truth.
        ratio: ``ours / peer``; None where the peer is zero.
        unit: SI unit, or "1".
        machine: Processor, system and versions that the numbers come from.
    """

    name: str
    ours: float
    peer: float
    ratio: float | None
    unit: str
    machine: str


def compare(name: str, ours: float, peer: float, unit: str) -> Row:
    """Return the row of two numbers measured here."""
    return Row(name=name, ours=ours, peer=peer, ratio=ours / peer if peer else None, unit=unit, machine=machine())


@cache
def machine() -> str:
    """Return processor, threads and versions in one line."""
    versions = ", ".join(f"{n} {v}" for n, v in package_versions().items() if n in ("torch", "mujoco", "warp-lang"))
    return f"{cpu_name()}, {describe_environment()['torch_threads']} thread(s), {platform.system()}, {versions}"


def write_rows(path: Path | None, rows: Sequence[Row]) -> None:
    """Write the rows as a JSON list, whole or not at all; nothing where no path is given."""
    if path is not None:
        write_json(path, [asdict(r) for r in rows])


def show(title: str, header: Sequence[str], lines: Sequence[Sequence[object]]) -> None:
    """Print a table: the first column to the left, numbers to four significant digits."""
    say(title)
    table = Table()
    for i, name in enumerate(header):
        table.add_column(escape(name), justify="left" if i == 0 else "right")
    for line in lines:
        table.add_row(*(f"{x:.4g}" if isinstance(x, float) else escape(str(x)) for x in line))
    console().print(table)


def say(text: str) -> None:
    """Print a paragraph."""
    console().print(escape(text), highlight=False)


def console() -> Console:
    """Return the terminal, or a page wide enough for tables where there is none."""
    found = Console()
    return found if found.is_terminal else Console(width=WIDTH)
