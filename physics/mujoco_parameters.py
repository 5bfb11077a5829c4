"""Named physical parameters of a MuJoCo model: which there are, and how their values are written into many worlds.

A name is ``kind:element``, with ``.component`` where the field has several: ``damping:joint3``, ``com:link7.x``,
``friction:floor.slide``, ``gravity.z``. Any other number of the model has the name of its field and place, ``geom_margin[3]``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import mujoco
import numpy as np
from mujoco.batch import MODEL_FIELDS
from numpy.typing import NDArray

from residual_mbrl.baselines import Parameter, Parameters
from residual_mbrl.errors import ModelError
from residual_mbrl.physics import pseudo_inertia
from residual_mbrl.physics.mujoco_model import element_name

Array = NDArray[np.float64]
Fields = Mapping[str, Array]
"""Model fields by name, each [N, ...], as ``mujoco.batch.Batch.expand`` gives them."""

CONSTANTS = frozenset({*mujoco.MjModel._setconst_inputs, "opt.gravity"})
"""Fields from which the engine derives others; they are derived again after a change."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Parameters that are written together.

    Args:
        parameters: As they are offered, nominal values from the model.
        fields: Model fields that ``write`` changes.
        write: Writes values, shape [N, number of parameters], into the fields.
        bodies: Bodies whose centre of mass or principal axes change.
        geoms: Geoms whose place in their body changes.
        place: Which number of the field it is, of a group of one parameter and one field.
    """

    parameters: tuple[Parameter, ...]
    fields: tuple[str, ...]
    write: Callable[[Fields, Array], None]
    bodies: tuple[int, ...] = ()
    geoms: tuple[int, ...] = ()
    place: tuple[int | slice, ...] | None = None


@dataclass(frozen=True)
class _Kind:
    """A kind of parameter: one number of one field for each element.

    Args:
        name: First half of the name.
        element: What it belongs to.
        field: Model field.
        unit: SI unit.
        components: Names of the numbers, where there are several.
        lower: Smallest value.
        upper: Largest value as a multiple of the nominal one.
        at_least: Largest value at least; for joints times the inertia that the joint moves.
    """

    name: str
    element: str
    field: str
    unit: str
    components: tuple[str, ...] = ()
    lower: float = 0.0
    upper: float = 10.0
    at_least: float = 1.0


_SOLREF, _SOLIMP = ("timeconst", "dampratio"), ("dmin", "dmax", "width", "midpoint", "power")
_AXES = ("x", "y", "z")
KINDS = (
    _Kind("damping", "dof", "dof_damping", "N·m·s/rad", at_least=5.0),
    _Kind("armature", "dof", "dof_armature", "kg·m²", at_least=1.0),
    _Kind("frictionloss", "dof", "dof_frictionloss", "N·m", at_least=5.0),
    _Kind("stiffness", "joint", "jnt_stiffness", "N·m/rad", at_least=50.0),
    _Kind("springref", "qpos", "qpos_spring", "rad", lower=-np.inf, at_least=3.2),
    _Kind("mass", "body", "body_mass", "kg", lower=1e-4),
    _Kind("com", "body", "body_ipos", "m", _AXES, lower=-np.inf, at_least=0.2),
    _Kind("friction", "geom", "geom_friction", "1", ("slide", "spin", "roll"), at_least=2.0),
    _Kind("solref", "geom", "geom_solref", "1", _SOLREF, at_least=0.1),
    _Kind("solimp", "geom", "geom_solimp", "1", _SOLIMP, at_least=1.0),
    _Kind("pos", "geom", "geom_pos", "m", _AXES, lower=-np.inf, at_least=0.2),
    _Kind("size", "geom", "geom_size", "m", ("0", "1", "2"), lower=1e-4, upper=3.0, at_least=1e-3),
    _Kind("gain", "actuator", "actuator_gainprm", "1", lower=-np.inf),
    _Kind("bias", "actuator", "actuator_biasprm", "1", ("0", "1", "2"), lower=-np.inf),
    _Kind("gear", "actuator", "actuator_gear", "1", lower=-np.inf),
    _Kind("time_constant", "actuator", "actuator_dynprm", "s", lower=1e-4, at_least=0.2),
    _Kind("delay", "actuator", "actuator_delay", "s", at_least=0.1),
    _Kind("tendon_stiffness", "tendon", "tendon_stiffness", "N/m", at_least=100.0),
    _Kind("tendon_damping", "tendon", "tendon_damping", "N·s/m", at_least=10.0),
    _Kind("tendon_frictionloss", "tendon", "tendon_frictionloss", "N", at_least=10.0),
    _Kind("eq_solref", "equality", "eq_solref", "1", _SOLREF, at_least=0.1),
)
_OPTIONS = {"density": ("kg/m³", 2000.0), "viscosity": ("Pa·s", 1.0), "impratio": ("1", 10.0)}


def available(model: mujoco.MjModel) -> list[Group]:
    """Return every named parameter of a model, in groups that are written together."""
    groups = [g for kind in KINDS for g in _numbers(model, kind)]
    groups += [_inertia(model, b) for b in range(1, model.nbody) if _is_consistent(model.body_mass[b], model.body_inertia[b])]
    for k, a in enumerate(_AXES):
        for name, unit in (("gravity", "m/s²"), ("wind", "m/s")):
            value = float(getattr(model.opt, name)[k])
            reach = max(30.0, 3 * abs(value))  # some models are in centimetres
            groups.append(_number(f"{name}.{a}", f"opt.{name}", (k,), value, unit, (-reach, reach)))
    for name, (unit, most) in _OPTIONS.items():
        value = float(getattr(model.opt, name))
        groups.append(_number(f"opt.{name}", f"opt.{name}", (), value, unit, (0.0, max(most, 10 * value))))
    return groups


def choose(model: mujoco.MjModel, wanted: Sequence[str] | Parameters) -> tuple[Parameters, list[Group]]:
    """Return the parameters asked for and the groups that write them; a group comes whole.

    Args:
        model: The compiled model.
        wanted: Names or glob patterns; or parameters, whose nominal values and bounds replace those of the model.

    Raises:
        ModelError: if a name or pattern fits nothing; lists what there is.
    """
    groups = available(model)
    given = {p.name: p for p in wanted} if isinstance(wanted, Parameters) else {}
    chosen: list[Group] = []
    for pattern in given or wanted:
        found = [g for g in groups if any(p.name == pattern or fnmatchcase(p.name, str(pattern)) for p in g.parameters)]
        if not found and (number := _by_place(model, str(pattern))) is not None:
            found = [number]
        if not found:
            raise ModelError(f"{pattern!r} fits no parameter of this model; there are {summarise(groups)}, and any number of a field "
                             f"by its place, such as 'geom_margin[0]'")
        chosen += [g for g in found if g not in chosen]
    return Parameters(*(given.get(p.name, p) for g in chosen for p in g.parameters)), chosen


def summarise(groups: Sequence[Group]) -> str:
    """Return the kinds of parameter and their elements in one line."""
    kinds: dict[str, list[str]] = {}
    for name in (p.name for g in groups for p in g.parameters):
        kind, _, element = name.partition(":")
        kinds.setdefault(kind, []).append(element.split(".")[0])
    return ", ".join(f"{k}:{{{', '.join(dict.fromkeys(es))}}}" if es[0] else k for k, es in kinds.items())


def _numbers(model: mujoco.MjModel, kind: _Kind) -> Iterator[Group]:
    field = getattr(model, kind.field)
    for row, name, unit, inertia in _elements(model, kind):
        for k, component in enumerate(kind.components or ("",)):
            place = (row, k) if field.ndim == 2 else (row,)
            value = float(np.ravel(field[place])[0])
            size = kind.at_least * (inertia if kind.element in ("dof", "joint") else 1.0)
            most = max(kind.upper * abs(value), size)
            bounds = (min(kind.lower, value) if np.isfinite(kind.lower) else -most, most)
            yield _number(f"{kind.name}:{name}" + (f".{component}" if component else ""), kind.field, place, value, unit, bounds)


def _elements(model: mujoco.MjModel, kind: _Kind) -> Iterator[tuple[int | slice, str, str, float]]:
    """Yield row (rows, of a ball or free joint), name, unit and moved inertia of every element that has such a parameter."""
    if kind.element in ("dof", "joint", "qpos"):
        for j in range(model.njnt):
            name, first, last = element_name(model, "joint", j), int(model.jnt_dofadr[j]), _next_dof(model, j)
            linear = int(model.jnt_type[j]) == int(mujoco.mjtJoint.mjJNT_SLIDE)
            unit = kind.unit if not linear else {"N·m·s/rad": "N·s/m", "kg·m²": "kg", "N·m": "N", "N·m/rad": "N/m", "rad": "m"}[kind.unit]
            inertia = float(model.dof_M0[first:last].max())
            if kind.element == "dof":
                yield slice(first, last), name, unit, inertia
            elif last == first + 1:
                yield (j if kind.element == "joint" else int(model.jnt_qposadr[j])), name, unit, inertia
        return
    count = {"body": model.nbody, "geom": model.ngeom, "actuator": model.nu, "tendon": model.ntendon, "equality": model.neq}
    dynamic = (int(mujoco.mjtDyn.mjDYN_FILTER), int(mujoco.mjtDyn.mjDYN_FILTEREXACT))
    for i in range(count[kind.element]):
        fixed = (kind.element == "body" and model.body_mass[i] <= 0
                 or kind.name == "time_constant" and int(model.actuator_dyntype[i]) not in dynamic
                 or kind.name == "delay" and model.actuator_delay[i] <= 0
                 or kind.name == "size" and int(model.geom_type[i]) in (int(mujoco.mjtGeom.mjGEOM_PLANE), int(mujoco.mjtGeom.mjGEOM_MESH)))
        if not fixed:
            yield i, element_name(model, kind.element, i), kind.unit, 1.0


def _next_dof(model: mujoco.MjModel, j: int) -> int:
    return int(model.jnt_dofadr[j + 1]) if j + 1 < model.njnt else int(model.nv)


def _number(name: str, field: str, place: tuple[int | slice, ...], value: float, unit: str, bounds: tuple[float, float]) -> Group:
    """Make the group of a single number of a field."""
    index: Any = (slice(None), *place)

    def write(fields: Fields, values: Array) -> None:
        target = fields[field]
        target[index] = values[:, 0].reshape(-1, *(1,) * (target[index].ndim - 1))

    lower, upper = bounds
    parameter = Parameter(name=name, nominal=value, lower=lower, upper=upper, unit=unit)
    row = tuple(i for i in place[:1] if isinstance(i, int))
    return Group(parameters=(parameter,), fields=(field,), write=write, bodies=row if field == "body_ipos" else (),
                 geoms=row if field in ("geom_pos", "geom_quat") else (), place=place)


def _by_place(model: mujoco.MjModel, name: str) -> Group | None:
    """Return the number of a field that ``field[i, j]`` names; None if there is none."""
    match = re.fullmatch(r"(\w+)\[(\d+(?:, ?\d+)*)\]", name)
    if match is None or match[1] not in MODEL_FIELDS:
        return None
    place = tuple(int(x) for x in match[2].split(","))
    array = np.asarray(getattr(model, match[1]))
    if array.dtype != np.float64 or len(place) != array.ndim or any(i >= n for i, n in zip(place, array.shape, strict=True)):
        return None
    value = float(array[place])
    reach = 10 * abs(value) or 1.0
    return _number(name, match[1], place, value, "1", (value - reach, value + reach))


def _is_consistent(mass: float, inertia: Array) -> bool:
    """Tell whether some mass distribution has these principal moments."""
    return bool(mass > 0 and (inertia > 0).all() and 2 * inertia.max() <= inertia.sum() * (1 + 1e-12))


def _inertia(model: mujoco.MjModel, b: int) -> Group:
    """Ten coordinates of a body's mass, centre of mass and inertia, every value of which is physically consistent."""
    name = element_name(model, "body", b)
    nominal = pseudo_inertia.coordinates(model.body_mass[b], model.body_ipos[b], model.body_inertia[b], model.body_iquat[b])
    reach = (*[1.5] * 4, *[0.5] * 6)

    def write(fields: Fields, values: Array) -> None:
        mass, ipos, inertia, iquat = pseudo_inertia.body(values)
        fields["body_mass"][:, b], fields["body_ipos"][:, b] = mass, ipos
        fields["body_inertia"][:, b], fields["body_iquat"][:, b] = inertia, iquat

    parameters = tuple(Parameter(name=f"pseudo_inertia:{name}.{n}", nominal=float(x), lower=float(x - r), upper=float(x + r), unit=u)
                       for n, u, x, r in zip(pseudo_inertia.NAMES, pseudo_inertia.UNITS, nominal, reach, strict=True))
    return Group(parameters=parameters, fields=("body_mass", "body_ipos", "body_inertia", "body_iquat"), write=write, bodies=(b,))
