"""A MuJoCo model from whatever the user has - a file, XML text, an MjSpec, an MjModel - and what its state is called."""

from __future__ import annotations

import base64
import binascii
import logging
import os
import posixpath
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import mujoco
import numpy as np

from residual_mbrl.errors import ModelError
from residual_mbrl.physics.mujoco_warnings import heard
from residual_mbrl.spaces import StateSpace

log = logging.getLogger(__name__)

Source = Any
"""A path, XML text, an ``MjSpec`` or an ``MjModel``; or what ``ModelFile.describe`` returned."""

STATE = int(mujoco.mjtState.mjSTATE_PHYSICS)
"""Positions, velocities, activations, delay buffers and plastic rest shapes, in the engine's order."""

_OBJECTS = {kind: int(getattr(mujoco.mjtObj, f"mjOBJ_{kind.upper()}"))
            for kind in ("joint", "body", "geom", "actuator", "tendon", "equality")}
_TURN = ("w", "x", "y", "z")


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A compiled model and the source that makes it again.

    Args:
        model: The compiled model.
        xml: MJCF text as it was written; empty where a spec or a compiled model was given.
        assets: Content of the files that the text names (includes, meshes, textures, height fields).
        name: File or model name, for messages.
        spec: The spec, where one was given.
    """

    model: mujoco.MjModel
    xml: str = ""
    assets: Mapping[str, bytes] = field(default_factory=dict)
    name: str = "model"
    spec: mujoco.MjSpec | None = None

    def describe(self) -> dict[str, object]:
        """Return the source as JSON holds it; without text the compiled model, which only this version of MuJoCo reads.

        MuJoCo's own writer of MJCF rounds numbers to six digits, so a spec is kept in its compiled form.
        """
        if not self.xml:
            buffer = np.zeros((mujoco.mj_sizeModel(self.model), 1), np.uint8)
            mujoco.mj_saveModel(self.model, None, buffer)
            return {"name": self.name, "mjb": base64.b64encode(buffer.tobytes()).decode()}
        packed = {n: base64.b64encode(x).decode() for n, x in self.assets.items()}
        return {"name": self.name, "xml": self.xml, "assets": packed}

    def with_free_inertias(self, bodies: Sequence[int]) -> ModelFile:
        """Return this model compiled so that the centres of mass and principal axes of some bodies may change.

        The engine takes short cuts for bodies whose inertial frame is their own.

        Raises:
            ModelError: if such a short cut is compiled in and there is neither text nor a spec to compile again.
        """
        fixed = [b for b in dict.fromkeys(bodies) if self.model.body_simple[b]]
        if not fixed:
            return self
        if not self.xml and self.spec is None:
            names = [element_name(self.model, "body", b) for b in fixed]
            raise ModelError(f"{self.name}: is compiled so that the inertias of {names} cannot change: give its MJCF, or set simple=False "
                             "on these bodies")
        with _unpacked(self.xml, self.assets) as path:
            spec = self.spec.copy() if self.spec is not None else mujoco.MjSpec.from_file(path, assets=_absolute(self.assets))
            for b in fixed:
                spec.bodies[b].simple = False
            return replace(self, model=_compiled(spec.compile, self.name))

    def __getstate__(self) -> dict[str, Any]:
        """Leave the spec behind: the compiled model goes on without it."""
        return {**self.__dict__, "spec": None}


def load_model(source: Source) -> ModelFile:
    """Compile a model.

    Args:
        source: Path of an MJCF, URDF or MJB file, XML text, an ``MjSpec``, an ``MjModel``, or a description.

    Raises:
        ModelError: with the engine's message and the file, if it does not exist, does not compile or needs an absent plug-in.
    """
    if isinstance(source, ModelFile):
        return source
    if isinstance(source, mujoco.MjModel):
        return ModelFile(model=source, name=bytes(source.names).split(b"\0", 1)[0].decode() or "MjModel")
    if isinstance(source, mujoco.MjSpec):
        name = source.modelname or "MjSpec"
        return ModelFile(model=_compiled(source.compile, name), name=name, spec=source)
    if isinstance(source, Mapping):
        return _from_description(source)
    if isinstance(source, str | Path):
        return compile_text(source) if isinstance(source, str) and source.lstrip().startswith("<") else _from_path(Path(source))
    raise ModelError(f"expected an MJCF file, XML text, an MjSpec or an MjModel, received {type(source).__name__}")


def compile_text(text: str, assets: Mapping[str, bytes] | None = None, name: str = "XML text") -> ModelFile:
    """Compile MJCF text with the files that it names; arguments and errors as in ``ModelFile`` and ``load_model``."""
    if not assets:
        return ModelFile(model=_compiled(lambda: mujoco.MjModel.from_xml_string(text), name), xml=text, name=name)
    with _unpacked(text, assets) as path:
        return ModelFile(model=_compiled(lambda: mujoco.MjModel.from_xml_path(path, _absolute(assets)), name), xml=text, assets=assets,
                         name=name)


def state_space(model: mujoco.MjModel) -> StateSpace:
    """Name every state and action entry of a model.

    A hinge or slide joint ``j`` gives ``j`` [rad or m] and ``j.vel``; a ball ``j.qw`` ... and ``j.wx`` ...; a free joint
    ``j.x``, ``j.y``, ``j.z``, ``j.qw`` ... and ``j.vx`` ..., ``j.wx`` .... An actuator gives its name, with ``.ctrl`` after it
    where a joint is called the same.
    """
    position: list[str] = []
    velocity: list[str] = []
    units: dict[str, str] = {}
    quaternions: list[tuple[int, int]] = []
    for j in range(model.njnt):
        name, kind = element_name(model, "joint", j), int(model.jnt_type[j])
        linear = [f"{name}.{a}" for a in "xyz"] if kind == int(mujoco.mjtJoint.mjJNT_FREE) else []
        if kind in (int(mujoco.mjtJoint.mjJNT_FREE), int(mujoco.mjtJoint.mjJNT_BALL)):
            quaternions.append((len(position) + len(linear), len(velocity) + len(linear)))
            fast, turning = ([f"{name}.v{a}" for a in "xyz"] if linear else []), [f"{name}.w{a}" for a in "xyz"]
            position += [*linear, *(f"{name}.q{a}" for a in _TURN)]
            velocity += [*fast, *turning]
            units |= {**dict.fromkeys(linear, "m"), **dict.fromkeys(fast, "m/s"), **dict.fromkeys(turning, "rad/s")}
        else:
            unit = "m" if kind == int(mujoco.mjtJoint.mjJNT_SLIDE) else "rad"
            position.append(name)
            velocity.append(f"{name}.vel")
            units |= {name: unit, f"{name}.vel": f"{unit}/s"}
    memory = list(_activations(model))
    taken = {*position, *velocity, *memory}
    action = [f"{n}.ctrl" if n in taken else n for n in _controls(model)]
    return StateSpace(position=tuple(position), velocity=tuple(velocity), activation=tuple(memory), action=tuple(action), units=units,
                      quaternions=tuple(quaternions))


def element_name(model: mujoco.MjModel, kind: str, i: int) -> str:
    """Return the name of a joint, body, geom, actuator, tendon or equality; its kind and number where it has none."""
    name = str(getattr(model, kind)(i).name)
    if name:
        return name
    name = f"{kind}{i}"
    while mujoco.mj_name2id(model, _OBJECTS[kind], name) >= 0:
        name += "_"
    return name


def joint_ranges(model: mujoco.MjModel) -> dict[str, tuple[float, float]]:
    """Return the range of every limited hinge and slide joint [rad or m], by position name."""
    scalar = (int(mujoco.mjtJoint.mjJNT_HINGE), int(mujoco.mjtJoint.mjJNT_SLIDE))
    return {element_name(model, "joint", j): (float(model.jnt_range[j, 0]), float(model.jnt_range[j, 1]))
            for j in range(model.njnt) if model.jnt_limited[j] and int(model.jnt_type[j]) in scalar}


def _controls(model: mujoco.MjModel) -> Iterator[str]:
    for i in range(model.nu):
        name, size = element_name(model, "actuator", i), int(model.actuator_ctrlnum[i])
        yield from [name] if size == 1 else [f"{name}[{k}]" for k in range(size)]


def _activations(model: mujoco.MjModel) -> Iterator[str]:
    """Name activations, then the delay buffers and rest shapes that the engine's state holds after them."""
    for i in range(model.nu):
        n = int(model.actuator_actnum[i])
        yield from [f"{element_name(model, 'actuator', i)}.act" + (f"[{k}]" if n > 1 else "") for k in range(n)]
    for kind in ("HISTORY", "PLASTIC"):
        size = mujoco.mj_stateSize(model, int(getattr(mujoco.mjtState, f"mjSTATE_{kind}")))
        yield from [f"{kind.lower()}[{k}]" for k in range(size)]
    if mujoco.mj_stateSize(model, int(mujoco.mjtState.mjSTATE_HISTORY)):
        yield "time"  # delay buffers hold time stamps


def _from_path(path: Path) -> ModelFile:
    if not path.is_file():
        raise ModelError(f"{path}: no such model file")
    if path.suffix == ".mjb":
        return ModelFile(model=_compiled(lambda: mujoco.MjModel.from_binary_path(str(path)), str(path)), name=path.name)
    model = _compiled(lambda: mujoco.MjModel.from_xml_path(str(path)), str(path))
    text = path.read_text()
    return ModelFile(model=model, xml=text, assets=dict(_files(text, path.parent)), name=path.name)


def _files(text: str, folder: Path, bases: Sequence[str] = ("",)) -> Iterator[tuple[str, bytes]]:
    """Yield the files that MJCF text may mean, under the names by which it names them; the engine has found them all before.

    Args:
        text: MJCF text.
        folder: Of the outermost file.
        bases: What names may be relative to, besides the folders that the text itself gives.
    """
    root = ElementTree.fromstring(text)  # noqa: S314  # the engine has parsed the same text
    given = {d.rstrip("/") for c in root.findall("compiler") for a in ("assetdir", "meshdir", "texturedir") if (d := c.get(a))}
    bases = [*bases, *(f"{b}{d}/" for d in sorted(given) for b in bases)]
    for element in root.iter():
        for name in (n for a, n in element.items() if a.startswith("file")):
            for full in dict.fromkeys(f"{b}{n}" for b in bases for n in (name, posixpath.basename(name))):
                if not (folder / full).is_file():
                    continue
                yield full, (folder / full).read_bytes()
                if element.tag in ("include", "model"):
                    yield from _files((folder / full).read_text(), folder, [*bases, f"{posixpath.dirname(full)}/"])


@contextmanager
def _unpacked(text: str, assets: Mapping[str, bytes]) -> Iterator[str]:
    """Write a model and its files into a temporary folder: in memory, MuJoCo tells files apart by the last part of their names."""
    relative = {n: x for n, x in assets.items() if n not in _absolute(assets)}
    depth = max((posixpath.normpath(n).split("/").count("..") for n in relative), default=0)
    with tempfile.TemporaryDirectory(prefix="model-") as root:
        folder = posixpath.join(root, *["in"] * depth)  # so deep that no name leads out
        for name, content in {**relative, "model.xml": text.encode()}.items():
            place = posixpath.join(folder, name)
            os.makedirs(posixpath.dirname(place), exist_ok=True)
            Path(place).write_bytes(content)
        yield posixpath.join(folder, "model.xml")


def _absolute(assets: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the files that have absolute names, which no folder of ours can hold."""
    return {n: x for n, x in assets.items() if posixpath.isabs(n)}


def _from_description(description: Mapping[str, Any]) -> ModelFile:
    name = str(description.get("name", "model"))
    try:
        if "mjb" in description:
            packed = base64.b64decode(description["mjb"], validate=True)
            return ModelFile(model=_compiled(lambda: mujoco.MjModel.from_binary_path("m.mjb", {"m.mjb": packed}), name), name=name)
        assets = {n: base64.b64decode(x, validate=True) for n, x in description["assets"].items()}
        xml = str(description["xml"])
    except (KeyError, binascii.Error) as error:
        raise ModelError(f"{name}: the description of the model is incomplete: {error}") from error
    return compile_text(xml, assets, name)


def _compiled(make: Callable[[], mujoco.MjModel], name: str) -> mujoco.MjModel:
    try:
        with heard() as said:
            model = make()
    except (ValueError, OSError, mujoco.FatalError) as error:
        message = str(error).strip()
        hint = ": load the plug-in first, with mujoco.mj_loadPluginLibrary" if "plugin" in message.lower() else ""
        raise ModelError(f"{name}: MuJoCo {mujoco.__version__} cannot compile it: {message}{hint}") from error
    for warning in said:
        log.warning("%s: %s", name, warning)
    return model
