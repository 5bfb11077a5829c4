"""The parts of a state space that logs name together: sections, vectors of joints, poses of free bodies."""

from __future__ import annotations

from typing import Literal

from residual_mbrl.spaces import StateSpace

Section = Literal["position", "velocity", "activation", "action"]


def names_of(space: StateSpace, section: Section) -> tuple[str, ...]:
    """Return the names of one section in order."""
    names: tuple[str, ...] = getattr(space, section)
    return names


def quaternion_names(space: StateSpace) -> list[tuple[str, ...]]:
    """Return the four names of every quaternion, w-x-y-z."""
    return [space.position[q : q + 4] for q, _ in sorted(space.quaternions)]


def velocity_of(space: StateSpace) -> dict[str, str]:
    """Return, for every position entry outside quaternions, the velocity that is its derivative."""
    quaternions = quaternion_names(space)
    plain_q = [n for n in space.position if not any(n in q for q in quaternions)]
    turning = {n for _, v in space.quaternions for n in space.velocity[v : v + 3]}
    return dict(zip(plain_q, (n for n in space.velocity if n not in turning), strict=True))


def entry_groups(space: StateSpace, section: Section) -> dict[str, tuple[str, ...]]:
    """Return the groups of entries that a log may hold as one vector.

    "joints" are all joints but free and ball ones, "actuators" all actions. A free joint named base has "base", "base.xyz" and
    "base.quaternion" among the positions, "base", "base.linear" and "base.angular" among the velocities.
    """
    names = names_of(space, section)
    if section in ("activation", "action"):
        return {"actuators": names} if section == "action" and names else {}
    groups: dict[str, tuple[str, ...]] = {}
    taken: set[str] = set()
    for q, v in sorted(space.quaternions):
        prefix = space.position[q].rpartition(".")[0]
        before = space.position[max(q - 3, 0) : q]
        free = len(before) == 3 and all(n.rpartition(".")[0] == prefix for n in before)
        at, length = (q, 4) if section == "position" else (v, 3)
        plain, turning = names[at - 3 * free : at], names[at : at + length]
        linear, angular = ("xyz", "quaternion") if section == "position" else ("linear", "angular")
        dot = f"{prefix}." if prefix else ""
        groups |= {f"{dot}{angular}": turning, prefix or "base": plain + turning}
        groups |= {f"{dot}{linear}": plain} if free else {}
        taken |= {*plain, *turning}
    joints = tuple(n for n in names if n not in taken)
    return {**({"joints": joints} if joints else {}), **groups}


def degrees_of_freedom(space: StateSpace) -> list[tuple[int, str, str]]:
    """Return every degree of freedom with its position entry (the first of a quaternion) and its velocity entry."""
    owner = {v: q for q, v in velocity_of(space).items()}
    for q, v in space.quaternions:
        owner |= dict.fromkeys(space.velocity[v : v + 3], space.position[q])
    return [(k, owner[v], v) for k, v in enumerate(space.velocity)]
