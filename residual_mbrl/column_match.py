"""Which column of a recording is which state or action entry: as stated, or found by its name, but never guessed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase

from residual_mbrl.column_map import ColumnMap, Entry
from residual_mbrl.column_words import actuator_keys, element_of, keys_of, read_words
from residual_mbrl.datasets.recording import Recording
from residual_mbrl.errors import LogError
from residual_mbrl.spaces import StateSpace
from residual_mbrl.state_layout import Section, entry_groups, names_of, quaternion_names, velocity_of

_PLAIN = (("joint",), ("motor",), ("actuator",))
"""Words that say no more than that a vector has an element for each."""

_SHOWN = 12
"""Column names that a message lists at most."""

FOUND: tuple[Section, ...] = ("position", "velocity", "action")
"""Sections whose columns are found by name; activations are hardly ever logged and only mapped where stated."""


@dataclass(frozen=True, kw_only=True)
class Match:
    """Where the values of one state or action entry come from.

    Args:
        name: The entry.
        section: Its section.
        signal: Signal of the recording; None for a constant.
        entry: What is stated about it.
        stated: Whether the mapping names the column; otherwise its name was recognised.
    """

    name: str
    section: Section
    signal: str | None
    entry: Entry
    stated: bool


@dataclass(frozen=True, kw_only=True)
class Matches:
    """All columns of one recording.

    Args:
        entries: By state or action entry; velocities and activations without a column are absent.
        unused: Signals that serve nothing.
    """

    entries: Mapping[str, Match]
    unused: Sequence[str]


def match_columns(recording: Recording, space: StateSpace, mapping: ColumnMap, drives: Mapping[str, str] | None = None) -> Matches:
    """Find the column of every position, velocity and action.

    A column is recognised by the entry's own name; by its name in other letters, separators and surroundings
    (``observation.state.Elbow.pos``, ``/joint_states.velocity.elbow``); or as an element of a vector that is as long as the
    model has joints (``q[k]``, ``qvel_3``, ``action[k]``). Velocities may be absent.

    Args:
        recording: The log.
        space: State space of the model.
        mapping: What the user has stated, which comes first.
        drives: For an actuator, the joint that it drives, where a log may name its command by the joint.

    Raises:
        LogError: if a position or action has no column or several, a column fits several entries, or a column that looks like a
            position, velocity or action fits none; with the columns that could be meant.
    """
    search = _Search(recording, space, mapping, drives or {})
    stated = {n: m for n, m in search.stated()}
    taken = {m.signal for m in stated.values() if m.signal is not None}
    search.pool = [s for s in recording.signals if s not in taken and not any(fnmatchcase(s, p) for p in mapping.ignore)]
    found = search.found([n for section in FOUND for n in names_of(space, section) if n not in stated])
    entries = {**stated, **found}
    used = {m.signal for m in entries.values()}
    unused = [s for s in recording.signals if s not in used]
    search.check_complete(entries, [s for s in search.pool if s not in used])
    order = [*space.state_names, *space.action]
    return Matches(entries={n: entries[n] for n in order if n in entries}, unused=unused)


@dataclass(kw_only=False)
class _Search:
    recording: Recording
    space: StateSpace
    mapping: ColumnMap
    drives: Mapping[str, str]
    pool: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def where(self) -> str:
        return f"{self.recording.path}" + ("" if self.recording.name in str(self.recording.path) else f" ({self.recording.name})")

    def section(self, name: str) -> Section:
        sections: tuple[Section, ...] = ("position", "velocity", "activation", "action")
        return next(s for s in sections if name in names_of(self.space, s))

    def stated(self) -> Iterator[tuple[str, Match]]:
        """Yield the entries whose column or constant the mapping states."""
        users: dict[str, str] = {}
        for name, entry in self.mapping.entries.items():
            section = self.section(name)
            if entry.constant is not None:
                yield name, Match(name=name, section=section, signal=None, entry=entry, stated=True)
            if entry.column is None:
                continue
            signal = self._signal(name, entry)
            if signal in users:
                raise LogError(f"{self.mapping.source}: column {signal!r} is mapped to both {users[signal]!r} and {name!r}")
            users[signal] = name
            yield name, Match(name=name, section=section, signal=signal, entry=entry, stated=True)

    def _signal(self, name: str, entry: Entry) -> str:
        signals, column = self.recording.signals, entry.column or ""
        if entry.place is None:
            if column in signals:
                return column
            elements = self._elements(column)
            hint = f": it is a vector of {len(elements)}; name one element, such as {elements[0]!r}" if elements else self._close(column)
            raise LogError(f"{self.where}: no column {column!r}, which {self.mapping.source} maps to {name!r}{hint}")
        elements = self._elements(column)
        if len(elements) != entry.length:
            raise LogError(f"{self.where}: {self.mapping.source} maps {column!r} to {entry.length} entries ({name!r} among them); expected "
                           f"{entry.length} columns {column}[0] ... or {column}.name, found {len(elements)}"
                           f"{'' if elements else self._close(column)}")
        return elements[entry.place]

    def _elements(self, vector: str) -> list[str]:
        """Signals of a vector in their order; ``q[2:5]`` takes elements 2, 3 and 4."""
        stem, slash, part = vector.removesuffix("]").rpartition("[")
        start, colon, stop = part.partition(":")
        if slash and colon and all(not p or p.isdigit() for p in (start, stop)):
            return self._elements(stem)[slice(int(start) if start else None, int(stop) if stop else None)]
        numbered = {p[1]: s for s in self.recording.signals if (p := element_of(s)) is not None and p[0] == vector}
        if numbered:
            return [numbered[k] for k in sorted(numbered)]
        return [s for s in self.recording.signals if s.startswith((f"{vector}.", f"{vector}["))]

    def found(self, wanted: Sequence[str]) -> dict[str, Match]:
        """Return the entries among those wanted whose column is recognised."""
        candidates: dict[str, list[str]] = {n: [n] for n in wanted if n in self.pool}
        self.pool = [s for s in self.pool if s not in candidates]
        by_name = {n: self._by_name(n) for n in wanted if n not in candidates}
        named = {s for names in by_name.values() for s in names}
        by_vector = self._by_vector([n for n in wanted if n not in candidates], [s for s in self.pool if s not in named])
        candidates |= {n: list(dict.fromkeys([*columns, *by_vector.get(n, ())])) for n, columns in by_name.items()}
        candidates = {n: self._commands_before_efforts(columns) for n, columns in candidates.items()}
        users: dict[str, str] = {}
        for name, columns in candidates.items():
            if len(columns) > 1:
                raise LogError(f"{self.where}: {len(columns)} columns fit {self.section(name)} {name!r}: {_listed(columns)}; say which in "
                               f'a mapping, [{self.section(name)}] "{name}" = "{columns[0]}"')
            for column in columns:
                if column in users:
                    raise LogError(f"{self.where}: column {column!r} fits both {users[column]!r} and {name!r}; say which in a mapping, "
                                   f'[{self.section(name)}] "{name}" = "..."')
                users[column] = name
        return {n: Match(name=n, section=self.section(n), signal=c[0], entry=self.mapping.entries.get(n, Entry()), stated=False)
                for n, c in candidates.items() if c}

    def _by_name(self, name: str) -> list[str]:
        """Columns that name this entry in other words."""
        section = self.section(name)
        keys = actuator_keys(name) if section == "action" else keys_of(name)
        if section == "velocity":
            keys |= {k for q, v in velocity_of(self.space).items() if v == name for k in keys_of(q)}
        if section == "action" and name in self.drives:
            keys |= keys_of(self.drives[name])
        kinds = {"position": ("position", None), "velocity": ("velocity",), "action": ("action", "effort")}[section]
        # q[1] is the second element of q whatever its words, and no name of a joint1
        return [s for s in self.pool if not s.endswith("]") and (w := read_words(s)).kind in kinds and w.key in keys]

    def _by_vector(self, wanted: Sequence[str], pool: Sequence[str]) -> dict[str, list[str]]:
        """Columns that are elements of a vector as long as a group of entries."""
        vectors: dict[str, dict[int, str]] = {}
        for s in pool:
            place = element_of(s)
            if place is not None:
                vectors.setdefault(place[0], {})[place[1]] = s
        found: dict[str, list[str]] = {}
        for vector, elements in vectors.items():
            names = self._group(vector, len(elements))
            first = min(elements)
            if names is None or first > 1 or set(elements) != set(range(first, first + len(elements))):
                continue
            for name, k in zip(names, sorted(elements), strict=True):
                if name in wanted:
                    found.setdefault(name, []).append(elements[k])
        return found

    def _group(self, vector: str, length: int) -> Sequence[str] | None:
        """Entries that a vector of this name and length holds; None where it holds none."""
        words, space = read_words(vector), self.space
        key = () if words.key in _PLAIN else words.key
        if not key and words.kind is None and words.state and not space.quaternions and length == space.nq + space.nv:
            return space.position + space.velocity
        section = {"position": "position", "velocity": "velocity", "action": "action", "effort": "action", None: "position"}.get(words.kind)
        if section is None or (words.kind is None and not words.state):
            return None
        groups = entry_groups(space, section)  # type: ignore[arg-type]
        names = names_of(space, section)  # type: ignore[arg-type]
        turning = {n for q in quaternion_names(space) for n in q}
        sets = [names, *([groups["joints"]] if "joints" in groups else [])] if not key else [
            members for g, members in groups.items() if any(key in keys_of(n) for n in (g, g.rpartition(".")[0]))]
        for members in sets:
            if len(members) == length:
                if turning & set(members) and not vector.lower().endswith("qpos"):  # MuJoCo's own order is w-x-y-z
                    self.notes.append(f"the order of the quaternion in {vector!r} is not known: state it in a mapping, "
                                      f'[position] {"base" if not key else key[0]} = {{ column = "{vector}", order = "xyzw" }}')
                    return None
                return members
        if words.kind != "effort" and sets:
            sizes = " or ".join(map(str, sorted({len(m) for m in sets})))
            self.notes.append(f"{vector!r} has {length} elements, the model has {sizes} of that kind: {_listed(names)}")
        return None

    def _commands_before_efforts(self, columns: Sequence[str]) -> list[str]:
        """Measured efforts stand in for commands only where no command is logged."""
        commands = [c for c in columns if read_words(c).kind != "effort"]
        return commands or list(columns)

    def check_complete(self, entries: Mapping[str, Match], left: Sequence[str]) -> None:
        """Refuse a recording in which something needed is missing, or something recognised fits nothing."""
        notes = f"; {'; '.join(dict.fromkeys(self.notes))}" if self.notes else ""
        for section in ("position", "action"):
            names = names_of(self.space, section)
            missing = [n for n in names if n not in entries]
            if missing:
                kinds = ("position", None) if section == "position" else ("action", "effort", None)
                near = [s for s in left if read_words(s).kind in kinds] or list(self.recording.signals)
                absent = ' (a constant, such as 0.0, stands for a command that was never given)' if section == "action" else ""
                raise LogError(f"{self.where}: no column for {section} {_listed(missing)}{notes}; columns that could be meant: "
                               f'{_listed(near)}; say which in a mapping, [{section}] "{missing[0]}" = "..."{absent}')
        sections = {m.section for m in entries.values() if not m.stated} | ({"velocity"} if not any(
            m.section == "velocity" and m.stated for m in entries.values()) else set())
        for s in left:
            kind = read_words(s).kind
            if kind in sections and kind in ("position", "velocity", "action"):
                names = names_of(self.space, kind)
                raise LogError(f"{self.where}: column {s!r} looks like {'an' if kind == 'action' else 'a'} {kind} and fits none of the "
                               f"model's, {_listed(names) if names else 'which has none'}{notes}; map it, or leave it out with "
                               f'ignore = ["{s}"] in a mapping')

    def _close(self, column: str) -> str:
        names = list(self.recording.signals)
        close = get_close_matches(column, names, 1)
        return f"{f' (did you mean {close[0]!r}?)' if close else ''}; there are {_listed(names)}"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:_SHOWN]))
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
