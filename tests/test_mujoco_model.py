"""Models from whatever the user has, and what their states are called."""

from __future__ import annotations

import json
from pathlib import Path

import mujoco
import pytest
import torch
from mujoco_problems import ARM, BODIES, BOXES, DELAYED

from residual_mbrl.errors import ModelError
from residual_mbrl.physics.mujoco_model import compile_text, element_name, joint_ranges, load_model, state_space


def test_names_and_units_of_every_kind_of_joint() -> None:
    """In the engine's order, quaternions where its velocities are rotations."""
    space = state_space(mujoco.MjModel.from_xml_string(BODIES))
    assert space.position == ("free.x", "free.y", "free.z", "free.qw", "free.qx", "free.qy", "free.qz", "ball.qw", "ball.qx", "ball.qy",
                              "ball.qz", "slide")
    assert space.velocity == ("free.vx", "free.vy", "free.vz", "free.wx", "free.wy", "free.wz", "ball.wx", "ball.wy", "ball.wz",
                              "slide.vel")
    assert (space.activation, space.action) == (("push.act",), ("push",))
    assert space.quaternions == ((3, 3), (7, 6))
    units = {"free.x": "m", "free.vz": "m/s", "free.qw": "1", "ball.wx": "rad/s", "slide": "m", "slide.vel": "m/s"}
    assert {n: space.unit(n) for n in units} == units


def test_actions_never_share_a_name_with_a_joint() -> None:
    """A motor called like its joint gets an ending."""
    assert state_space(mujoco.MjModel.from_xml_string(ARM)).action == ("shoulder.ctrl", "elbow_servo")


def test_delay_buffers_and_their_clock_are_state() -> None:
    """As many entries as the engine keeps, then the time that their stamps refer to."""
    names = state_space(mujoco.MjModel.from_xml_string(DELAYED)).activation
    assert names[-1] == "time"
    assert all(n.startswith("history[") for n in names[:-1])


def test_elements_without_a_name_get_one_of_their_own() -> None:
    """Their kind and number, also where another element is called just that."""
    model = mujoco.MjModel.from_xml_string("""
<mujoco><worldbody><body><joint axis="1 0 0"/><joint name="joint0" axis="0 1 0"/><joint axis="0 0 1"/><geom size="1"/></body></worldbody>
<actuator><motor joint="joint0"/></actuator></mujoco>""")
    assert [element_name(model, "joint", j) for j in range(3)] == ["joint0_", "joint0", "joint2"]
    assert state_space(model).action == ("actuator0",)


def test_ranges_of_limited_joints() -> None:
    """In radians, whatever the file is written in."""
    assert joint_ranges(mujoco.MjModel.from_xml_string(ARM)) == {"elbow": (pytest.approx(-torch.pi / 3), pytest.approx(torch.pi / 3))}


def test_urdf_and_binary_files(tmp_path: Path) -> None:
    """Anything that the engine compiles."""
    urdf = tmp_path / "robot.urdf"
    urdf.write_text("""
<robot name="r"><link name="base"/><link name="tip"><inertial><mass value="1"/><inertia ixx=".1" iyy=".1" izz=".1" ixy="0" ixz="0" iyz="0"/>
</inertial></link><joint name="turn" type="continuous"><parent link="base"/><child link="tip"/><axis xyz="0 0 1"/></joint></robot>""")
    file = load_model(urdf)
    assert state_space(file.model).position == ("turn",)
    mujoco.mj_saveModel(file.model, str(tmp_path / "robot.mjb"), None)
    assert state_space(load_model(str(tmp_path / "robot.mjb")).model).position == ("turn",)


@pytest.mark.parametrize("source", [ARM, mujoco.MjModel.from_xml_string(BOXES)])
def test_descriptions_are_json(source: object) -> None:
    """They survive being written to a file."""
    described = load_model(source).describe()
    again = load_model(json.loads(json.dumps(described)))
    assert again.model.nv == load_model(source).model.nv


def test_files_with_absolute_names_travel_too(tmp_path: Path) -> None:
    """Mesh and model, read where they no longer are."""
    mesh = tmp_path / "part.obj"
    mesh.write_text("".join(f"v {x} {y} {z}\n" for x in (0, 1) for y in (0, 1) for z in (0, 1)))
    main = tmp_path / "robot.xml"
    main.write_text(f"""<mujoco><asset><mesh name="part" file="{mesh}"/></asset><worldbody><body><freejoint/><geom type="mesh" mesh="part"/>
</body></worldbody></mujoco>""")
    described = load_model(main).describe()
    mesh.unlink()
    assert load_model(described).model.nmeshvert == 8


def test_no_name_in_a_description_leads_out_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A description may come from anyone: its files are written below a folder that is deleted, whatever they are called."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "inner" / "most"))
    (tmp_path / "inner" / "most").mkdir(parents=True)
    names = ["../../../../escaped.txt", "a/../../../escaped.txt", "../a/../../escaped.txt"]
    compile_text(BOXES, dict.fromkeys(names, b"x"))
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == ["inner", "inner/most"]


@pytest.mark.parametrize(("text", "message"), [
    ("<mujoco><worldbody><body><joint/></body></worldbody></mujoco>", "mass and inertia"),
    ("<mujoco><worldbody><geom sise='1'/></worldbody></mujoco>", "sise"),
    ("<mujoco><worldbody>", "XML"),
    ("<robt/>", "robt"),
])
def test_what_does_not_compile_is_said_by_the_engine(text: str, message: str, tmp_path: Path) -> None:
    """With the file's name where there is one."""
    with pytest.raises(ModelError, match=rf"XML text: MuJoCo .* cannot compile it: (?s:.*){message}"):
        load_model(text)
    (tmp_path / "broken.xml").write_text(text)
    with pytest.raises(ModelError, match=r"broken\.xml: MuJoCo"):
        load_model(tmp_path / "broken.xml")


def test_a_spec_that_does_not_compile() -> None:
    """Is named by its model."""
    spec = mujoco.MjSpec.from_string('<mujoco model="robot"/>')
    spec.worldbody.add_body().add_joint()
    with pytest.raises(ModelError, match=r"robot: MuJoCo .* mass and inertia"):
        load_model(spec)


def test_missing_files(tmp_path: Path) -> None:
    """The model itself, an include, a mesh: the message names them."""
    with pytest.raises(ModelError, match=r"nowhere\.xml: no such model file"):
        load_model("nowhere.xml")
    path = tmp_path / "robot.xml"
    path.write_text('<mujoco><include file="arm.xml"/></mujoco>')
    with pytest.raises(ModelError, match=r"robot\.xml: (?s:.*)arm\.xml"):
        load_model(path)
    path.write_text('<mujoco><asset><mesh name="m" file="link.stl"/></asset></mujoco>')
    with pytest.raises(ModelError, match=r"robot\.xml: (?s:.*)link\.stl"):
        load_model(path)


def test_missing_plugins_come_with_a_hint() -> None:
    """How to load one."""
    with pytest.raises(ModelError, match="mj_loadPluginLibrary"):
        load_model('<mujoco><extension><plugin plugin="acme.cable"/></extension></mujoco>')


@pytest.mark.parametrize("description", [{}, {"xml": "<mujoco/>"}, {"mjb": "?"}, {"xml": "<mujoco/>", "assets": {"a": "?"}},
                                         {"mjb": "AAAA"}])
def test_broken_descriptions(description: dict[str, object]) -> None:
    """Are refused under their name."""
    with pytest.raises(ModelError, match="^robot"):
        load_model({"name": "robot", **description})


def test_anything_else_is_refused() -> None:
    """With what it was."""
    with pytest.raises(ModelError, match="received int"):
        load_model(3)
