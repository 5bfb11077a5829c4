"""Writing parameter values into MJCF text: the user's own file, changed where a value changed and nowhere else.

MuJoCo's own writer flattens the file and rounds every number to six digits, so the text itself is edited and then compiled to
see that it gives the model that was meant, number for number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import mujoco
import numpy as np

from residual_mbrl.errors import ModelError
from residual_mbrl.physics.mujoco_model import ModelFile, compile_text, element_name

JOINTS = {"damping": "dof_damping", "armature": "dof_armature", "frictionloss": "dof_frictionloss"}
INERTIAL = ("mass", "com", "pseudo_inertia")
GEOMS = {"friction": "geom_friction", "solref": "geom_solref", "solimp": "geom_solimp"}
TENDONS = {"tendon_stiffness": "stiffness", "tendon_damping": "damping", "tendon_frictionloss": "frictionloss"}
ACTUATORS = ("gain", "bias", "gear", "time_constant", "delay")
COMPUTED = ("settotalmass", "boundmass", "boundinertia", "balanceinertia")
"""Compiler options that would change the masses that are written."""
_TAGS = {"joint": ("joint", "freejoint"), "body": ("body",), "geom": ("geom",)}


def write_values(file: ModelFile, model: mujoco.MjModel, names: Sequence[str]) -> str:
    """Return the MJCF text of a model with changed parameters.

    Args:
        file: The model as it was loaded, with its text.
        model: The model as it shall be, with the same elements.
        names: Parameters that changed, named as in ``mujoco_parameters``.

    Raises:
        ModelError: if there is no text, a parameter has no place in it, or the text would not compile to ``model``.
    """
    if not file.xml:
        raise ModelError(f"{file.name}: was given compiled, without MJCF text to write into")
    parser = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))  # noqa: S314  # the engine parsed it before
    root = ElementTree.fromstring(file.xml, parser)  # noqa: S314
    _include(root, file.assets)
    text = _Text(root, model)
    for name in names:
        text.write(name)
    text.write_inertials(names)
    ElementTree.indent(root)
    written = ElementTree.tostring(root, encoding="unicode") + "\n"
    _compare(written, file, model)
    return written


class _Text:
    """The tree of an MJCF file and the model whose values go into it."""

    def __init__(self, root: Element, model: mujoco.MjModel) -> None:
        self.root, self.model = root, model

    def write(self, name: str) -> None:
        """Write one parameter where it stands in the text."""
        kind, _, rest = name.partition(":")
        if kind.partition(".")[0] in ("gravity", "wind", "opt"):
            option = name.split(".")[0 if kind.partition(".")[0] != "opt" else 1]
            _option(self.root, "option").set(option, _numbers(getattr(self.model.opt, option)))
        elif kind in JOINTS or kind in ("stiffness", "springref"):
            self._joint(kind, rest)
        elif kind in GEOMS:
            i = self._index("geom", rest.rsplit(".", 1)[0])
            self._element("geom", i).set(kind, _numbers(getattr(self.model, GEOMS[kind])[i]))
        elif kind in ("size", "pos"):
            i = self._index("geom", rest.rsplit(".", 1)[0])
            self._element("geom", i).set(kind, _numbers(getattr(self.model, f"geom_{kind}")[i]))
        elif kind in TENDONS:
            i = self._index("tendon", rest)
            self._nth("tendon", i, "tendon").set(TENDONS[kind], _numbers(getattr(self.model, kind)[i]))
        elif kind == "eq_solref":
            i = self._index("equality", rest.rsplit(".", 1)[0])
            self._nth("equality", i, "equality").set("solref", _numbers(self.model.eq_solref[i]))
        elif kind in ACTUATORS:
            self._actuator(self._index("actuator", rest.rsplit(".", 1)[0] if kind == "bias" else rest))
        elif kind not in INERTIAL:
            raise ModelError(f"parameter {name!r} has no place in MJCF text")

    def write_inertials(self, names: Sequence[str]) -> None:
        """Write mass, centre of mass and inertia of every body, where any of them changed or would follow a changed or moved geom."""
        if not any(n.split(":")[0] in (*INERTIAL, "size", "pos") for n in names):
            return
        compiler = _option(self.root, "compiler")
        compiler.set("inertiafromgeom", "auto")
        for option in COMPUTED:
            for c in self.root.findall("compiler"):
                c.attrib.pop(option, None)
        m = self.model
        for b in range(1, m.nbody):
            body = self._element("body", b)
            for old in body.findall("inertial"):
                body.remove(old)
            if m.body_mass[b] > 0:
                body.insert(0, Element("inertial", pos=_numbers(m.body_ipos[b]), quat=_numbers(m.body_iquat[b]),
                                       mass=_numbers(m.body_mass[b]), diaginertia=_numbers(m.body_inertia[b])))

    def _joint(self, kind: str, name: str) -> None:
        j = self._index("joint", name)
        element = self._element("joint", j)
        if element.tag == "freejoint":  # which may have no damping
            element.tag = "joint"
            element.set("type", "free")
            element.attrib.pop("align", None)
        first = int(self.model.jnt_dofadr[j])
        if kind in JOINTS:
            element.set(kind, _numbers(getattr(self.model, JOINTS[kind])[first]))
        elif kind == "stiffness":
            element.set(kind, _numbers(self.model.jnt_stiffness[j]))
        else:
            angle = float(self.model.qpos_spring[self.model.jnt_qposadr[j]])
            turning = int(self.model.jnt_type[j]) == int(mujoco.mjtJoint.mjJNT_HINGE)
            degrees = all(c.get("angle", "degree") == "degree" for c in self.root.findall("compiler"))
            element.set(kind, _numbers(np.rad2deg(angle) if turning and degrees else angle))

    def _actuator(self, i: int) -> None:
        """Write an actuator as a general one: the shortcuts fix what a calibration has found."""
        m, element = self.model, self._nth("actuator", i, "actuator")
        if element.tag == "motor" and int(m.actuator_biastype[i]) == int(mujoco.mjtBias.mjBIAS_NONE) and m.actuator_gainprm[i, 0] == 1:
            element.set("gear", _numbers(m.actuator_gear[i]))
        else:
            element.tag = "general"
            for shortcut in ("kp", "kv", "dampratio", "timeconst", "inheritrange"):
                element.attrib.pop(shortcut, None)
            kinds = {"gaintype": (m.actuator_gaintype, mujoco.mjtGain), "biastype": (m.actuator_biastype, mujoco.mjtBias),
                     "dyntype": (m.actuator_dyntype, mujoco.mjtDyn)}
            for attribute, (field, enum) in kinds.items():
                element.set(attribute, enum(int(field[i])).name.rsplit("_", 1)[1].lower())
            for attribute, field in (("gainprm", m.actuator_gainprm), ("biasprm", m.actuator_biasprm), ("dynprm", m.actuator_dynprm),
                                     ("gear", m.actuator_gear)):
                element.set(attribute, _numbers(field[i]))
        if m.actuator_delay[i] > 0:
            element.set("delay", _numbers(m.actuator_delay[i]))

    def _names(self, kind: str) -> list[str]:
        count = {"joint": self.model.njnt, "body": self.model.nbody, "geom": self.model.ngeom, "actuator": self.model.nu,
                 "tendon": self.model.ntendon, "equality": self.model.neq}[kind]
        return [element_name(self.model, kind, i) for i in range(count)]

    def _index(self, kind: str, name: str) -> int:
        return self._names(kind).index(name)

    def _element(self, kind: str, i: int) -> Element:
        """Find an element of the kinematic tree by its name, or by its place where no other can be meant."""
        bodies = [b for w in self.root.findall("worldbody") for b in (w, *(e for e in _below(w) if e.tag == "body"))]
        found = bodies[1:] if kind == "body" else [e for b in bodies for e in _own(b) if e.tag in _TAGS[kind]]
        name = getattr(self.model, kind)(i).name
        named = [e for e in found if name and e.get("name") == name]
        if len(named) == 1:
            return named[0]
        places = self._names(kind)
        offset = 1 if kind == "body" else 0  # the world is body 0
        if len(found) + offset == len(places) and not name:
            return found[i - offset]
        raise ModelError(f"{kind} {places[i]!r} does not stand in the MJCF text by that name: name it, or write replicated and attached "
                         "elements out")

    def _nth(self, section: str, i: int, kind: str) -> Element:
        found = [e for s in self.root.findall(section) for e in s if isinstance(e.tag, str)]
        name = getattr(self.model, kind)(i).name
        named = [e for e in found if name and e.get("name") == name]
        if len(named) != 1 and (len(found) != len(self._names(kind))):
            raise ModelError(f"{kind} {element_name(self.model, kind, i)!r} does not stand in the MJCF text by that name")
        return named[0] if len(named) == 1 else found[i]


def _below(element: Element) -> Iterator[Element]:
    for child in element:
        if isinstance(child.tag, str):
            yield child
            yield from _below(child)


def _own(body: Element) -> Iterator[Element]:
    """Yield what belongs to a body itself, in frames or not."""
    for child in body:
        if isinstance(child.tag, str) and child.tag != "body":
            yield child
            yield from _own(child)


def _include(element: Element, assets: Mapping[str, bytes]) -> None:
    """Put the content of included files in the place of their include."""
    for k, child in reversed(list(enumerate(element))):
        if child.tag == "include":
            content = ElementTree.fromstring(assets[child.get("file", "")].decode())  # noqa: S314
            element.remove(child)
            for part in reversed(list(content)):
                element.insert(k, part)
            _include(element, assets)
            return
        _include(child, assets)


def _option(root: Element, tag: str) -> Element:
    """Return the last element of a section that may be repeated, which has the last word; make it where there is none."""
    found = root.findall(tag)
    if found:
        return found[-1]
    made = Element(tag)
    root.insert(0, made)
    return made


def _numbers(values: object) -> str:
    """Write numbers so that they read back bit for bit."""
    return " ".join(repr(float(x)) for x in np.atleast_1d(np.asarray(values, dtype=np.float64)))


def _compare(text: str, file: ModelFile, model: mujoco.MjModel) -> None:
    """Compile the text and compare every number that a parameter may have changed.

    Raises:
        ModelError: naming the first field that differs.
    """
    again = compile_text(text, file.assets, f"{file.name}, with the identified values").model
    fields: list[tuple[str, Callable[[mujoco.MjModel], object]]] = [
        (n, lambda m, n=n: getattr(m, n)) for n in (  # type: ignore[misc]
            "body_mass", "body_ipos", "body_inertia", "dof_damping", "dof_armature", "dof_frictionloss", "jnt_stiffness", "qpos_spring",
            "geom_friction", "geom_solref", "geom_solimp", "geom_size", "actuator_gainprm", "actuator_biasprm", "actuator_dynprm",
            "actuator_gear", "actuator_delay", "tendon_stiffness", "tendon_damping", "tendon_frictionloss", "eq_solref")]
    fields += [(f"opt.{n}", lambda m, n=n: getattr(m.opt, n)) for n in ("gravity", "wind", "density", "viscosity", "impratio")]  # type: ignore[misc]
    for name, get in fields:
        a, b = np.asarray(get(again), np.float64), np.asarray(get(model), np.float64)
        if a.shape != b.shape or not np.allclose(a, b, rtol=1e-12, atol=1e-14):
            raise ModelError(f"{file.name}: the text with the identified values would not give the identified model: {name} differs")
