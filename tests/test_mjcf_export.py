"""Identified values written into MJCF text give the identified model again."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest
import torch
from mujoco_problems import ARM, BODIES, BOXES, COUPLED, commands, start

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.errors import ModelError
from residual_mbrl.mjcf_export import export_mjcf
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator
from residual_mbrl.physics.pendulum import Pendulum
from residual_mbrl.rollouts import rollout

CASES = [
    (ARM, ["damping:*", "armature:*", "frictionloss:*", "stiffness:*", "springref:*"]), (ARM, ["mass:*", "com:*"]),
    (ARM, ["gain:*", "bias:*", "gear:*"]), (ARM, ["gravity.z", "opt.viscosity"]), (BODIES, ["pseudo_inertia:*"]),
    (BODIES, ["time_constant:*", "damping:*"]), (COUPLED, ["tendon_*", "eq_solref:*"]),
    (BOXES, ["friction:*", "solref:*", "solimp:*", "size:box.*"]), (BOXES, ["pos:box.*"])]


def moved(simulator):
    """Values away from nominal."""
    rng = np.random.default_rng(0)
    return {p.name: float(np.clip(p.nominal + 0.05 * p.scale * rng.uniform(0.5, 1), p.lower, p.upper)) for p in simulator.parameters}


@pytest.mark.parametrize(("model", "names"), CASES, ids=[" ".join(n) for _, n in CASES])
def test_reproduces_the_identified_model(tmp_path, model, names):
    """The written file loads and moves as the identified model does."""
    simulator = MujocoSimulator(model, names)
    identified = ResidualDynamics(simulator, values=moved(simulator))
    written = export_mjcf(identified, tmp_path / "robot.xml")
    assert set(written) == set(simulator.parameters.names)
    again = MujocoSimulator(tmp_path / "robot.xml")
    state, actions = start(simulator), commands(simulator, 50)
    assert torch.allclose(rollout(ResidualDynamics(again), state, actions), rollout(identified, state, actions), rtol=0, atol=1e-11)


def test_touches_nothing_else(tmp_path):
    """Comments and everything that was not identified stand as they stood."""
    text = ARM.replace("<worldbody>", "<!-- the rig --><worldbody>")
    export_mjcf(ResidualDynamics(MujocoSimulator(text, ["damping:elbow"]), values={"damping:elbow": 0.123456789012345}), tmp_path / "a.xml")
    written = (tmp_path / "a.xml").read_text()
    assert "<!-- the rig -->" in written
    assert 'damping="0.123456789012345"' in written
    assert 'fromto="0 0 0 .1 0 -.3"' in written
    assert "inertial" not in written


def test_included_and_named_files(tmp_path):
    """Includes are written out in place, meshes beside the file where it names them."""
    (tmp_path / "in" / "meshes").mkdir(parents=True)
    (tmp_path / "in" / "meshes" / "t.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n")
    (tmp_path / "in" / "parts.xml").write_text('<mujoco><asset><mesh name="t" file="t.obj"/></asset></mujoco>')
    (tmp_path / "in" / "robot.xml").write_text(
        '<mujoco><compiler meshdir="meshes"/><include file="parts.xml"/><worldbody><body name="b"><joint name="j"/>'
        '<geom type="mesh" mesh="t"/></body></worldbody></mujoco>')
    simulator = MujocoSimulator(tmp_path / "in" / "robot.xml", ["damping:j", "mass:b"])
    export_mjcf(ResidualDynamics(simulator, values=moved(simulator)), tmp_path / "out" / "robot.xml")
    again = mujoco.MjModel.from_xml_path(str(tmp_path / "out" / "robot.xml"))
    assert again.body_mass[1] == moved(simulator)["mass:b"]


def test_unnamed_elements_by_their_place(tmp_path):
    """Where names are missing, the joint that the text has at that place is meant."""
    inner = "<body pos='0 0 1'><joint/><geom size='.1'/></body>"
    text = f"<mujoco><worldbody><body><joint axis='0 1 0'/><geom size='.1'/>{inner}</body></worldbody></mujoco>"
    export_mjcf(ResidualDynamics(MujocoSimulator(text, ["damping:joint1"]), values={"damping:joint1": 2.0}), tmp_path / "a.xml")
    assert mujoco.MjModel.from_xml_path(str(tmp_path / "a.xml")).dof_damping.tolist() == [0.0, 2.0]


@pytest.mark.parametrize(("make", "said"), [
    (lambda: ResidualDynamics(Pendulum(dt=0.01)), "received one of Pendulum"),
    (lambda: ResidualDynamics(MujocoSimulator(mujoco.MjModel.from_xml_string(ARM), ["damping:elbow"]), values={"damping:elbow": 1.0}),
     "without MJCF text"),
    (lambda: ResidualDynamics(MujocoSimulator(ARM, ["geom_margin[0]"]), values={"geom_margin[0]": 0.01}), "no place in MJCF")])
def test_refuses(tmp_path, make, said):
    """What cannot be written is said, and nothing is written."""
    with pytest.raises(ModelError, match=said):
        export_mjcf(make(), tmp_path / "a.xml")
    assert not (tmp_path / "a.xml").exists()
