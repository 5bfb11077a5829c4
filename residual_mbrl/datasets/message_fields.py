"""The numbers inside a decoded robot message, by the path of their fields."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from residual_mbrl.errors import LogError

NAME_FIELDS = ("name", "joint_names", "interface_names", "names")
"""Fields that list the names of elements: of JointState, of trajectories and controllers, of DynamicJointState."""

LONGEST = 64
"""Arrays of more elements are entered only if the message names the elements: they are scans and grids, no signals."""

STAMPS = ("stamp", "timestamp")

Names = Sequence[Sequence[str]]


@dataclass(kw_only=True)
class Numbers:
    """Numbers of one message: ``.position.elbow`` or ``.data[0]``, and the value of each."""

    names: list[str] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


def walk_fields(message: object) -> Numbers:
    """Collect every number of a message (ROS 2 as mcap_ros2 decodes it, or JSON objects), without headers, texts and covariances.

    Raises:
        LogError: if a message names its elements ambiguously, or JointState has more values than names.
    """
    numbers = Numbers()
    _walk(message, "", (), numbers)
    return numbers


def stamp_of(message: object) -> int | None:
    """Return the time at which a message was measured [ns], by its header or its own stamp; None where it has neither."""
    fields = dict(_fields(message))
    for owner in (dict(_fields(fields.get("header"))), fields):
        for name in STAMPS:
            parts = dict(_fields(owner.get(name)))
            nanoseconds = _nanoseconds(parts)
            if nanoseconds is not None:
                return int(parts["sec"]) * 10**9 + nanoseconds
    return None


def check_distinct(names: Sequence[str], place: str) -> None:
    """Refuse a list of element names in which one occurs twice.

    Raises:
        LogError: naming them.
    """
    if len(set(names)) < len(names):
        raise LogError(f"names {sorted({n for n in names if names.count(n) > 1})} occur more than once in {place}")


def _fields(node: object) -> Iterable[tuple[str, Any]]:
    if isinstance(node, Mapping):
        return node.items()
    return ((n, getattr(node, n)) for n in getattr(type(node), "__slots__", ()))


def _nanoseconds(parts: Mapping[str, Any]) -> int | None:
    if len(parts) != 2 or "sec" not in parts:
        return None
    value = parts.get("nanosec", parts.get("nsec"))
    return None if value is None else int(value)


def _walk(node: object, path: str, names: Names, numbers: Numbers) -> None:
    fields = dict(_fields(node))
    own = [fields[n] for n in NAME_FIELDS if _is_names(fields.get(n))]
    for listed in own:
        check_distinct(listed, path or "the message")
    names = [*own, *names]  # the nearest list of the right length counts
    for name, value in fields.items():
        here = f"{path}.{name}"
        if isinstance(value, bool | int | float):
            numbers.names.append(here)
            numbers.values.append(float(value))
        elif isinstance(value, list | tuple):
            if value and not name.endswith("covariance"):
                if name in {"position", "velocity", "effort"} and _is_names(fields.get("name")) and len(value) != len(fields["name"]):
                    raise LogError(f"'{name}' has {len(value)} values for {len(fields['name'])} names {fields['name']}")
                _walk_list(value, name, here, names, numbers)
        elif isinstance(value, str | bytes) or value is None or name == "header":
            continue
        else:
            parts = dict(_fields(value))
            nanoseconds = _nanoseconds(parts)
            if nanoseconds is None:
                _walk(value, here, names, numbers)
            elif name not in STAMPS:
                numbers.names.append(here)
                numbers.values.append(int(parts["sec"]) + nanoseconds * 1e-9)


def _walk_list(items: Sequence[Any], name: str, path: str, names: Names, numbers: Numbers) -> None:
    """Enter the elements of an array by name, or else by index; of records only named ones and a trajectory's single point."""
    listed = next((n for n in names if len(n) == len(items)), None)
    first = items[0]
    if isinstance(first, str | bytes | list | tuple):
        return
    if first is None or isinstance(first, bool | int | float):
        if listed is None and len(items) > LONGEST:
            return
        numbers.names += [f"{path}.{n}" for n in listed] if listed is not None else [f"{path}[{i}]" for i in range(len(items))]
        numbers.values += [math.nan if v is None else float(v) for v in items]
    elif listed is not None:
        for label, item in zip(listed, items, strict=True):
            _walk(item, f"{path}.{label}", names, numbers)
    elif name == "points" and len(items) == 1:
        _walk(first, f"{path}[0]", names, numbers)


def _is_names(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value)
