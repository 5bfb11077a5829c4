"""ROS 2's sensor_msgs/JointState, straight from its bytes: an arm at 1 kHz logs hundreds of thousands of them."""

from __future__ import annotations

import struct

from residual_mbrl.datasets.message_fields import check_distinct
from residual_mbrl.errors import LogError

FIELDS = ("std_msgs/Header header", "string[] name", "float64[] position", "float64[] velocity", "float64[] effort")
TYPES = ("sensor_msgs/msg/JointState", "sensor_msgs/JointState")
_ORIGIN = 4
"""Bytes of encapsulation before the message, from whose end CDR counts alignment."""


def is_joint_state(name: str, definition: str) -> bool:
    """Whether a ros2msg schema is JointState with the fields that ``JointStateReader`` expects."""
    lines = (line.partition("#")[0].split() for line in definition.partition("\n====")[0].splitlines())
    return name in TYPES and tuple(" ".join(words).replace("std_msgs/msg/", "std_msgs/") for words in lines if words) == FIELDS


class JointStateReader:
    """Decoder of one topic's messages, which remembers where the names of the previous one ended: they hardly ever change."""

    def __init__(self) -> None:
        self._head = b""
        self._joints: list[str] = []
        self._names: dict[tuple[int, ...], tuple[str, ...]] = {}

    def read(self, data: bytes) -> tuple[int, tuple[str, ...], list[float]]:
        """Return the header stamp [ns], the names of the numbers (``.position.elbow``) and the numbers.

        Raises:
            LogError: if there are more or fewer values than names, or two joints of one name.
            struct.error: if the message is cut off.
        """
        order = "<" if data[1] & 1 else ">"
        seconds, nanoseconds = struct.unpack_from(order + "iI", data, _ORIGIN)
        head, start = self._head, _ORIGIN + 8
        if not head or data[:2] != head[:2] or not data.startswith(head[2:], start):
            end = self._read_head(data, order, start)
            self._head = data[:2] + data[start:end]
        else:
            end = start + len(head) - 2
        values: list[float] = []
        lengths = []
        for _ in range(3):
            end += -(end - _ORIGIN) % 4
            (length,) = struct.unpack_from(order + "I", data, end)
            end += 4
            if length:
                end += -(end - _ORIGIN) % 8
                values += struct.unpack_from(f"{order}{length}d", data, end)
                end += 8 * length
            lengths.append(length)
        return seconds * 10**9 + nanoseconds, self._name_values(tuple(lengths)), values

    def _read_head(self, data: bytes, order: str, start: int) -> int:
        """Read frame and joint names; return where they end."""
        (size,) = struct.unpack_from(order + "I", data, start)
        end = start + 4 + int(size)
        end += -(end - _ORIGIN) % 4
        (count,) = struct.unpack_from(order + "I", data, end)
        end += 4
        self._joints, self._names = [], {}
        for _ in range(count):
            end += -(end - _ORIGIN) % 4
            (size,) = struct.unpack_from(order + "I", data, end)
            self._joints.append(data[end + 4:end + 3 + size].decode())
            end += 4 + int(size)
            if end > len(data):
                raise struct.error(f"the name of joint {len(self._joints)} ends after the message")
        check_distinct(self._joints, "the message")
        return end

    def _name_values(self, lengths: tuple[int, ...]) -> tuple[str, ...]:
        names = self._names.get(lengths)
        if names is None:
            listed: list[str] = []
            for field, length in zip(("position", "velocity", "effort"), lengths, strict=True):
                if self._joints and length not in {0, len(self._joints)}:
                    raise LogError(f"'{field}' has {length} values for {len(self._joints)} names {self._joints}")
                labels = [f".{j}" for j in self._joints] or [f"[{i}]" for i in range(length)]
                listed += [f".{field}{label}" for label in labels[:length]]
            names = self._names[lengths] = tuple(listed)
        return names
