"""Logs in Parquet tables: numbers, lists of numbers (vectors) and nested records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residual_mbrl.datasets.columns import ClockOptions, Column, check_names, columns_of, make_recording, split_units
from residual_mbrl.datasets.optional_modules import load_module
from residual_mbrl.datasets.recording import Recording
from residual_mbrl.errors import LogError


@dataclass(frozen=True, kw_only=True)
class Table:
    """The numbers of a Parquet file.

    Args:
        arrays: Each column, shape [N] or [N, k]; nested ones by their dotted names.
        units: Units that fields state in their metadata.
        skipped: Columns that are not read, and why.
    """

    arrays: Mapping[str, NDArray[Any]]
    units: Mapping[str, str]
    skipped: Mapping[str, str]


def read_parquet(path: Path, options: ClockOptions) -> list[Recording]:
    """Read a plain Parquet table as one recording; a column of a time type is the clock, whatever its name.

    Raises:
        LogError: naming file and column, if it is unreadable, ragged, or there is no time.
    """
    table = load_table(path)
    skipped = dict(table.skipped)
    columns: list[Column] = []
    for whole, (name, unit) in zip(table.arrays, split_units(list(table.arrays)), strict=True):
        found = columns_of(name, table.arrays[whole], unit=table.units.get(whole) or unit)
        if isinstance(found, str):
            skipped[name] = found
        else:
            columns += found
    return [make_recording(path, columns, options, name=path.stem, metadata={"skipped": skipped})]


def load_table(path: Path) -> Table:
    """Load the numeric columns of a Parquet file; pictures, texts and other bytes are never read from the disk.

    Raises:
        LogError: naming file and column, if it is unreadable or a vector changes its length.
    """
    arrow, parquet = load_module("pyarrow", path), load_module("pyarrow.parquet", path)
    arrays: dict[str, NDArray[Any]] = {}
    units: dict[str, str] = {}
    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            check_names(path, schema.names)
            skipped = {f.name: str(f.type) for f in schema if not _holds_numbers(arrow, f.type)}
            table = file.read(columns=[n for n in schema.names if n not in skipped])
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as e:
        raise LogError(f"{path}: not a readable Parquet file, cut off or damaged ({e})") from e
    if table.num_rows == 0:
        raise LogError(f"{path}: no rows in the table [{', '.join(schema.names)}]")
    while any(arrow.types.is_struct(f.type) for f in table.schema):
        table = table.flatten()
    for field, column in zip(table.schema, table.columns, strict=True):
        array = _to_array(path, field.name, column.combine_chunks()) if _holds_numbers(arrow, field.type) else str(field.type)
        if isinstance(array, str):
            skipped[field.name] = array
            continue
        arrays[field.name] = array
        unit = (field.metadata or {}).get(b"unit") or (field.metadata or {}).get(b"units")
        if unit:
            units[field.name] = unit.decode()
    return Table(arrays=arrays, units=units, skipped=skipped)


def _holds_numbers(arrow: Any, kind: Any) -> bool:
    types = arrow.types
    if types.is_struct(kind):
        return any(_holds_numbers(arrow, f.type) for f in kind)
    if _is_list(types, kind):
        return _is_number(types, kind.value_type)
    return _is_number(types, kind) or bool(types.is_timestamp(kind) or types.is_duration(kind))


def _is_list(types: Any, kind: Any) -> bool:
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _is_number(types: Any, kind: Any) -> bool:
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_decimal(kind))


def _to_array(path: Path, name: str, column: Any) -> NDArray[Any] | str:
    """Return shape [N] or [N, k], NaN where a value or a whole vector is null; or why there is none."""
    arrow, compute = load_module("pyarrow", path), load_module("pyarrow.compute", path)
    types = arrow.types
    if types.is_timestamp(column.type) or types.is_duration(column.type):
        # pyarrow gives datetime64 in the column's own unit and time zone UTC, NaT where null
        return np.asarray(column.to_numpy(zero_copy_only=False))
    if not _is_list(types, column.type):
        return _to_floats(arrow, column)
    present = np.asarray(column.is_valid().to_numpy(zero_copy_only=False), dtype=bool)
    lengths = np.asarray(compute.list_value_length(column.drop_null()).to_numpy(zero_copy_only=False))
    if len(lengths) == 0:
        return "empty"
    if lengths.min() != lengths.max():
        other = int(np.flatnonzero(lengths != lengths[0])[0])
        raise LogError(f"{path}: column '{name}' has {lengths[other]} elements at row {np.flatnonzero(present)[other]}, {lengths[0]} "
                       "before; expected vectors of one length")
    array = np.full((len(column), int(lengths[0])), np.nan)
    array[present] = _to_floats(arrow, column.drop_null().flatten()).reshape(-1, int(lengths[0]))
    return array if array.shape[1] else "empty"


def _to_floats(arrow: Any, column: Any) -> NDArray[np.float64]:
    # a safe cast would refuse integers beyond 2^53, of which stamps in nanoseconds are the common case
    return np.asarray(column.cast(arrow.float64(), safe=False).to_numpy(zero_copy_only=False), dtype=np.float64)
