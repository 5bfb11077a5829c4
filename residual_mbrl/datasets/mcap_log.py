"""Logs in MCAP: the numbers of ROS 2 (CDR) and JSON messages, one clock a topic."""

from __future__ import annotations

import json
import logging
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from residual_mbrl.datasets.columns import ClockOptions
from residual_mbrl.datasets.joint_states import JointStateReader, is_joint_state
from residual_mbrl.datasets.message_fields import stamp_of, walk_fields
from residual_mbrl.datasets.optional_modules import load_module
from residual_mbrl.datasets.recording import FloatArray, Recording, Signal
from residual_mbrl.errors import LogError

LOG = logging.getLogger(__name__)
NOT_SIGNALS = frozenset({
    "Image", "CompressedImage", "CompressedVideo", "PointCloud", "PointCloud2", "LaserScan", "OccupancyGrid", "CameraInfo", "Marker",
    "MarkerArray", "TFMessage", "Log", "DiagnosticArray", "ParameterEvent", "RobotDescription"})
"""Message types, without their package, that are passed over without being decoded."""

OTHER_CLOCK = 1.0
"""Difference between topics in their delay to the recorder [s] beyond which their stamps are of different clocks."""

Content = tuple[int | None, tuple[str, ...], Sequence[float]]
"""Stamp of a message [ns] or None, names of its numbers, and the numbers."""

CLOCKS = ("header.stamp", "log_time", "publish_time")


@dataclass(kw_only=True)
class _Block:
    """Messages of one topic with the same fields: values row after row, 8 bytes each."""

    rows: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))


@dataclass(kw_only=True)
class _Topic:
    """What was read of one topic; the stamps are in nanoseconds, one for each message."""

    schema: str
    read: Callable[[bytes], Content] | None
    skipped: str = ""
    stamps: dict[str, array[int]] = field(default_factory=lambda: {c: array("q") for c in CLOCKS})
    blocks: dict[tuple[str, ...], _Block] = field(default_factory=dict)

    def append(self, content: Content, log_time: int, publish_time: int) -> None:
        stamp, names, values = content
        row = len(self.stamps["log_time"])
        self.stamps["log_time"].append(log_time)
        self.stamps["publish_time"].append(publish_time)
        if stamp is not None:
            self.stamps["header.stamp"].append(stamp)
        if names:
            block = self.blocks.get(names)
            if block is None:
                block = self.blocks[names] = _Block()
            block.rows.append(row)
            block.values.extend(values)

    def clock(self) -> str:
        """The stamps inside the messages if every one is set, or else the recorder's."""
        stamps = self.stamps["header.stamp"]
        return "header.stamp" if len(stamps) == len(self.stamps["log_time"]) and 0 not in stamps else "log_time"


def read_mcap(path: Path, options: ClockOptions) -> list[Recording]:
    """Read the numeric fields of every topic as one recording, message by message.

    A signal is named as Foxglove writes message paths: ``/joint_states.position.elbow``, ``/cmd.data[0]``. Elements have names where
    the message lists them (JointState's ``name``, ``joint_names``, ``interface_names``), whatever their order in each message. Time is
    the stamp in the message's header where every message of the topic has one, else the recorder's log time, all in seconds. Where
    these are different clocks (simulated time beside the wall clock), log time is taken for all topics, and a warning logged.

    Raises:
        LogError: naming file and topic, if the file is damaged, a message does not decode, or no topic has numbers.
    """
    if options.time is not None and options.time not in CLOCKS:
        raise LogError(f"{path}: no clock '{options.time}' in MCAP; expected one of {list(CLOCKS)}, or none for the stamps in the messages")
    topics = _collect(path)
    read = {n: t for n, t in topics.items() if t.blocks}
    skipped = {n: t.skipped or "no numbers" for n, t in topics.items() if not t.blocks}
    if not read:
        told = ", ".join(f"{n} ({t.schema}: {skipped[n]})" for n, t in topics.items()) or "no messages at all"
        raise LogError(f"{path}: no topic with numeric signals, such as sensor_msgs/msg/JointState; there are {told}")
    clocks = _choose_clocks(path, read, options)
    signals: dict[str, Signal] = {}
    for name, topic in read.items():
        time = _nanoseconds(topic, clocks[name]) / 1e9
        shared: dict[bytes, FloatArray] = {}
        for column, rows, values in _columns(topic):
            full = f"{name}{column}"
            signals[full] = Signal(name=full, time=shared.setdefault(rows.tobytes(), time[rows]), values=values)
    metadata = {"clocks": clocks, "schemas": {n: t.schema for n, t in read.items()}, "skipped": skipped}
    return [Recording(name=path.stem, path=path, signals=signals, group=path.stem, metadata=metadata)]


def _collect(path: Path) -> dict[str, _Topic]:
    """Stream the messages into blocks of numbers; decoded messages are not kept."""
    exceptions = load_module("mcap.exceptions", path)
    reader = load_module("mcap.reader", path)
    ros = load_module("mcap_ros2.decoder", path).DecoderFactory()
    topics: dict[str, _Topic] = {}
    count, name = 0, ""
    try:
        with path.open("rb") as file:
            for schema, channel, message in reader.make_reader(file, validate_crcs=True).iter_messages(log_time_order=False):
                name = channel.topic
                topic = topics.get(name)
                if topic is None:
                    topic = topics[name] = _open_topic(ros, schema, channel)
                count += 1
                if topic.read is not None:
                    topic.append(topic.read(message.data), message.log_time, message.publish_time)
    except LogError as e:
        raise LogError(f"{path}: topic '{name}', message {len(topics[name].stamps['log_time'])}: {e}") from e
    except (exceptions.EndOfFile, exceptions.InvalidMagic, exceptions.RecordLengthLimitExceeded) as e:
        raise LogError(f"{path}: cut off or damaged after {count} messages ({type(e).__name__}); `mcap recover` may save what is "
                       "whole") from e
    except Exception as e:  # the decoders and decompressors raise whatever a wrong byte leads to
        place = f" of topic '{name}'" if name else ""
        raise LogError(f"{path}: not readable after {count} messages{place} ({type(e).__name__}: {e})") from e
    return topics


def _open_topic(ros: Any, schema: Any, channel: Any) -> _Topic:
    kind = schema.name if schema is not None else "no schema"
    if kind.rpartition("/")[2].rpartition(".")[2] in NOT_SIGNALS:
        return _Topic(schema=kind, read=None, skipped="no signal by its type")
    if channel.message_encoding == "json":
        return _Topic(schema=kind, read=lambda data: _read_any(json.loads(data)))
    if channel.message_encoding == "cdr" and schema is not None and is_joint_state(kind, schema.data.decode("utf-8", "replace")):
        return _Topic(schema=kind, read=JointStateReader().read)
    decode = ros.decoder_for(channel.message_encoding, schema)
    encoding = f"{channel.message_encoding} with {schema.encoding if schema is not None else 'no'} schema"
    if decode is None:
        return _Topic(schema=kind, read=None, skipped=f"encoding {encoding}; expected cdr with ros2msg schema, or json")
    return _Topic(schema=kind, read=lambda data: _read_any(decode(data)))


def _read_any(message: object) -> Content:
    numbers = walk_fields(message)
    return stamp_of(message), tuple(numbers.names), numbers.values


def _choose_clocks(path: Path, topics: Mapping[str, _Topic], options: ClockOptions) -> dict[str, str]:
    clocks = {n: t.clock() for n, t in topics.items()}
    if options.time in {"log_time", "publish_time"}:
        return dict.fromkeys(topics, options.time)
    # how far each topic's clock is behind the recorder's: latency, unless it is another clock altogether
    behind = [float(np.median(_nanoseconds(t, "log_time") - _nanoseconds(t, clocks[n]))) / 1e9 for n, t in topics.items()]
    if options.time is None and max(behind) - min(behind) > OTHER_CLOCK:
        LOG.warning("%s: the stamps of its topics are up to %.3g s apart from one another, so they are of different clocks; the recorder's "
                    "log time is taken for all", path, max(behind) - min(behind))
        return dict.fromkeys(topics, "log_time")
    return clocks


def _nanoseconds(topic: _Topic, clock: str) -> NDArray[np.int64]:
    return np.asarray(topic.stamps[clock], dtype=np.int64)


def _columns(topic: _Topic) -> Iterator[tuple[str, NDArray[np.int64], FloatArray]]:
    """Yield name, message numbers and values of each field, in the order in which the messages were logged."""
    tables = {names: np.asarray(b.values).reshape(-1, len(names)) for names, b in topic.blocks.items()}
    rows = {names: np.asarray(b.rows, dtype=np.int64) for names, b in topic.blocks.items()}
    log_time = _nanoseconds(topic, "log_time")
    place = np.empty(len(log_time), dtype=np.int64)
    place[np.argsort(log_time, kind="stable")] = np.arange(len(log_time))
    for name in dict.fromkeys(n for names in tables for n in names):
        holders = [names for names in tables if name in names]
        row = np.concatenate([rows[names] for names in holders])
        values = np.concatenate([tables[names][:, names.index(name)] for names in holders])
        order = np.argsort(place[row], kind="stable")
        yield name, row[order], values[order]
