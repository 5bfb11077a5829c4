"""Logs in text tables: a header line, then numbers between commas, semicolons or tabs."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from residual_mbrl.datasets.columns import ClockOptions, Column, check_names, is_time_name, make_recording, split_units
from residual_mbrl.datasets.recording import FloatArray, Recording
from residual_mbrl.errors import LogError

DELIMITERS = (",", ";", "\t")
COMMENTS = ("#", "//")
MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "-"})
"""Cells that mean "not recorded", in lower case; they become NaN."""

_CHUNK = 4096


def read_csv(path: Path, options: ClockOptions) -> list[Recording]:
    """Read one text table as one recording; columns of text are left out and listed under ``skipped`` in the metadata.

    Units may stand in the header, ``q1 [rad]``. Lines that begin with ``#`` or ``//`` are comments, the last of which may be the
    header. Missing cells become NaN.

    Raises:
        LogError: naming file, line and column, for text among numbers, rows of another length, or no header, rows or time.
    """
    header, delimiter, start = _read_header(path)
    names = split_units(header)
    check_names(path, [n for n, _ in names if n])
    table = _Table(path, [n for n, _ in names])
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(_data_lines(file, start), delimiter=delimiter, skipinitialspace=True)
            while chunk := list(islice(rows, _CHUNK)):
                table.append(chunk, delimiter, start)
    except (UnicodeDecodeError, csv.Error) as e:
        raise LogError(f"{path}: not a readable UTF-8 text table ({e})") from e
    columns = [Column(name=n, values=v, unit=unit) for (n, unit), v in zip(names, table.finish(), strict=True) if v is not None]
    if not any(is_time_name(c.name) or c.name == options.time for c in columns):
        for name in table.skipped:
            if is_time_name(name) or name == options.time:
                raise LogError(f"{path}: time column '{name}' holds {table.skipped[name]}; expected numbers")
    return [make_recording(path, columns, options, name=path.stem, metadata={"skipped": table.skipped})]


class _Table:
    """Columns of numbers, grown chunk by chunk."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.path = path
        self.names = names
        self.rows = 0
        self.parts: list[list[FloatArray]] = [[] for _ in names]
        self.numeric = [False] * len(names)
        self.skipped = {f"column {i + 1}": "no name" for i, n in enumerate(names) if not n}

    def append(self, chunk: Sequence[Sequence[str]], delimiter: str, start: int) -> None:
        """Convert rows of cells, column by column; the first cell that is not missing decides whether a column holds numbers."""
        width = len(self.names)
        if any(len(row) != width for row in chunk):
            i = next(i for i, row in enumerate(chunk) if len(row) != width)
            line = _line_of_row(self.path, self.rows + i, delimiter, start)
            raise LogError(f"{self.path}: line {line} has {len(chunk[i])} cells, the header {width} (line cut off, or another delimiter "
                           f"than {delimiter!r}?)")
        for i, cells in enumerate(zip(*chunk, strict=True)):
            if not self.names[i] or self.names[i] in self.skipped:
                continue
            try:
                values = np.fromiter(map(float, cells), np.float64, len(cells))
                self.numeric[i] = True
            except ValueError:
                values = self._convert(i, cells, delimiter, start)
            self.parts[i].append(values)
        self.rows += len(chunk)

    def finish(self) -> list[FloatArray | None]:
        """Return the columns; None for one without numbers."""
        if self.rows == 0:
            raise LogError(f"{self.path}: no rows below the header [{', '.join(self.names)}]")
        for name, numeric in zip(self.names, self.numeric, strict=True):
            if not numeric and name:
                self.skipped.setdefault(name, "empty")
        return [np.concatenate(parts) if numeric else None for parts, numeric in zip(self.parts, self.numeric, strict=True)]

    def _convert(self, column: int, cells: Sequence[str], delimiter: str, start: int) -> FloatArray:
        values = np.full(len(cells), np.nan)
        for i, cell in enumerate(cells):
            if cell.strip().lower() in MISSING:
                continue
            try:
                values[i] = float(cell)
                self.numeric[column] = True
            except ValueError as e:
                if not self.numeric[column]:
                    self.skipped[self.names[column]] = "text"
                    break
                hint = "; decimal commas are not read" if cell.replace(",", "", 1).strip("+-").isdigit() and "," in cell else ""
                line = _line_of_row(self.path, self.rows + i, delimiter, start)
                raise LogError(f"{self.path}: line {line}, column '{self.names[column]}': expected a number, received {cell!r}"
                               f"{hint}") from e
        return values


def _read_header(path: Path) -> tuple[list[str], str, int]:
    """Return the column names, the delimiter, and the number of lines before the first row."""
    comment: str | None = None
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                if line.lstrip().startswith(COMMENTS):
                    comment = line.lstrip().lstrip("#/ \t")
                    continue
                delimiter = max(DELIMITERS, key=line.count)
                names = _split(line, delimiter)
                if not any(map(_is_number, names)):
                    return names, delimiter, number
                if comment is not None and len(_split(comment, delimiter)) == len(names):
                    return _split(comment, delimiter), delimiter, number - 1
                raise LogError(f"{path}: line {number} begins the table with numbers; expected a header line with the names of the "
                               f"{len(names)} columns")
    except (UnicodeDecodeError, csv.Error) as e:
        raise LogError(f"{path}: not a readable UTF-8 text table ({e})") from e
    raise LogError(f"{path}: no header line and no rows")


def _split(line: str, delimiter: str) -> list[str]:
    return [c.strip() for c in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _data_lines(file: Iterator[str], start: int) -> Iterator[str]:
    for line in islice(file, start, None):
        if not line.isspace() and not line.lstrip().startswith(COMMENTS):
            yield line


def _line_of_row(path: Path, row: int, delimiter: str, start: int) -> int:
    """Return the line, from 1, on which a row of cells ends; read again, because it is only wanted for a message."""
    line = start

    def count(file: Iterator[str]) -> Iterator[str]:
        nonlocal line
        for text in islice(file, start, None):
            line += 1
            if not text.isspace() and not text.lstrip().startswith(COMMENTS):
                yield text

    with path.open(newline="", encoding="utf-8-sig") as file:
        next(islice(csv.reader(count(file), delimiter=delimiter, skipinitialspace=True), row, None), None)
    return line
