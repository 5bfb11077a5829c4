"""What the name of a log's column says: what kind of quantity it is, and of which joint."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

Kind = Literal["position", "velocity", "action", "effort", "other"]
Key = tuple[str, ...]

_KINDS: dict[Kind, frozenset[str]] = {
    "other": frozenset("acc accel acceleration accelerations ddq qdd qddot qacc current currents voltage temperature temp error std var "
                       "variance covariance min max reward done image images".split()),
    "action": frozenset("action actions ctrl control controls command commands commanded cmd u goal target desired des setpoint reference "
                        "ref".split()),
    "velocity": frozenset("velocity velocities vel qvel dq qd qdot speed speeds omega rate rates twist".split()),
    "effort": frozenset("effort efforts torque torques tau force forces".split()),
    "position": frozenset("position positions pos qpos q angle angles pose".split()),
}
"""Words of each kind; the first kind that a name has a word of is its kind."""

_STRUCTURE = frozenset("observation observations obs state states robot data measured meas actual measurement measurements sensor sensors "
                       "msg topic odom odometry linear joints controller controllers group info infos".split())
_PLURAL = frozenset("states positions velocities efforts torques angles commands state pos vel position velocity effort torque".split())
_ACTUATOR = frozenset("actuator act motor servo drive ctrl torque effort position velocity".split())
_TURNING = frozenset("quaternion quat orientation rotation".split())
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_ELEMENT = re.compile(r"^(?P<vector>.*?)(?:\[(?P<bracket>\d+)\]|[._ /]?(?P<plain>\d+))$")


class Words(NamedTuple):
    """A column's name, taken apart."""

    kind: Kind | None
    """What it measures; None where the name does not say."""
    key: Key
    """What remains: the joint, or nothing."""
    state: bool
    """Whether it calls itself a state."""


def read_words(name: str) -> Words:
    """Take a column's name apart."""
    words = _words(name)
    kind = next((k for k, known in _KINDS.items() if known & set(words)), None)
    angular = "angular" in words or (kind == "velocity" and "omega" in words)
    turning = bool(_TURNING & set(words))
    if "joint" in words and words[words.index("joint") + 1 :][:1] == ["states"]:
        words = words[words.index("joint") :]  # /arm/joint_states: before the topic stands its namespace
    if len(words) > 1 and words[0] == "joint" and words[1] in _PLURAL:
        words = words[1:]  # joint_states.position.elbow, but joint_1
    words = [w for before, w in zip(["", *words], words, strict=False) if not (before == "robot" and w.isdigit())]  # robot0_joint_pos
    key = [w for w in words if w not in _STRUCTURE | _TURNING | {"angular"} and not any(w in known for known in _KINDS.values())]
    if (angular or turning) and key and key[-1] in "wxyz":
        key[-1] = ("w" if angular else "q") + key[-1]
    return Words(kind or ("position" if turning else None), tuple(key), bool({"state", "states"} & set(words)))


def keys_of(name: str) -> set[Key]:
    """Return the keys under which a joint may stand in a log; a number alone is a place, not a name."""
    words = tuple(_words(name))
    kinds = frozenset().union(*_KINDS.values())
    return {k for k in (words, tuple(w for w in words if w not in _STRUCTURE | kinds)) if not _is_number(k)}


def actuator_keys(name: str) -> set[Key]:
    """Return the keys under which an actuator may stand in a log."""
    plain = tuple(w for w in _words(name) if w not in _ACTUATOR)
    return keys_of(name) | (set() if _is_number(plain) else {plain})


def element_of(name: str) -> tuple[str, int] | None:
    """Split "q[3]", "q_3", "q.3" or "q3" into vector and place; None where the name is no element of a vector."""
    match = _ELEMENT.match(name)
    if match is None or not match["vector"]:
        return None
    return match["vector"], int(match["bracket"] or match["plain"])


def _is_number(key: Key) -> bool:
    return all(w.isdigit() for w in key)


def _words(name: str) -> list[str]:
    return [w.lower() for w in _WORD.findall(name)]
