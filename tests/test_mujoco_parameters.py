"""Named parameters of a MuJoCo model against models that were compiled, or edited, to have the same values."""

from __future__ import annotations

from collections.abc import Callable

import mujoco
import numpy as np
import pytest
import torch
from mujoco_problems import ARM, BODIES, BOXES, COUPLED, DELAYED, commands, engine_steps, start

from residual_mbrl.baselines import Parameter, Parameters
from residual_mbrl.errors import ModelError
from residual_mbrl.physics import pseudo_inertia
from residual_mbrl.physics.mujoco_parameters import available
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator

Edit = Callable[[mujoco.MjSpec, float], None]


def put(kind: str, name: str, field: str, place: int | None = None) -> Edit:
    """Return the edit of a spec that sets one number of an element."""
    def edit(spec: mujoco.MjSpec, value: float) -> None:
        element = getattr(spec, kind)(name)
        if place is None:
            setattr(element, field, value)
        else:
            getattr(element, field)[place] = value
    return edit


def option(field: str, place: int | None = None) -> Edit:
    """Return the edit of an option."""
    def edit(spec: mujoco.MjSpec, value: float) -> None:
        if place is None:
            setattr(spec.option, field, value)
        else:
            getattr(spec.option, field)[place] = value
    return edit


RECOMPILED: dict[str, tuple[str, float, Edit]] = {
    "damping:shoulder": (ARM, 0.7, put("joint", "shoulder", "damping", 0)),
    "damping:ball": (BODIES, 0.3, put("joint", "ball", "damping", 0)),
    "armature:elbow": (ARM, 0.05, put("joint", "elbow", "armature")),
    "frictionloss:shoulder": (ARM, 0.4, put("joint", "shoulder", "frictionloss")),
    "stiffness:shoulder": (ARM, 3.0, put("joint", "shoulder", "stiffness", 0)),
    "springref:shoulder": (ARM, 0.4, lambda spec, x: setattr(spec.joint("shoulder"), "springref", np.degrees(x))),
    "friction:box.slide": (BOXES, 1.8, put("geom", "box", "friction", 0)),
    "friction:ball.roll": (BOXES, 0.05, put("geom", "ball", "friction", 2)),
    "solref:floor.timeconst": (BOXES, 0.05, put("geom", "floor", "solref", 0)),
    "solimp:floor.dmin": (BOXES, 0.5, put("geom", "floor", "solimp", 0)),
    "gain:shoulder": (ARM, 1.7, put("actuator", "shoulder", "gainprm", 0)),
    "bias:elbow_servo.1": (ARM, -3.0, put("actuator", "elbow_servo", "biasprm", 1)),
    "gear:shoulder": (ARM, 1.5, put("actuator", "shoulder", "gear", 0)),
    "time_constant:push": (BODIES, 0.2, put("actuator", "push", "dynprm", 0)),
    "tendon_stiffness:cable": (COUPLED, 55.0, put("tendon", "cable", "stiffness", 0)),
    "tendon_damping:cable": (COUPLED, 2.0, put("tendon", "cable", "damping", 0)),
    "tendon_frictionloss:cable": (COUPLED, 1.0, put("tendon", "cable", "frictionloss")),
    "eq_solref:gear.timeconst": (COUPLED, 0.1, put("equality", "gear", "solref", 0)),
    "gravity.z": (ARM, -3.7, option("gravity", 2)),
    "gravity.x": (BOXES, 1.5, option("gravity", 0)),
    "opt.density": (BODIES, 300.0, option("density")),
    "opt.viscosity": (BODIES, 0.5, option("viscosity")),
    "opt.impratio": (BOXES, 5.0, option("impratio")),
    "delay:drive": (DELAYED, 0.003, put("actuator", "drive", "delay")),
}
EDITED: dict[str, tuple[str, float, str, tuple[int, ...]]] = {
    "mass:lower": (ARM, 3.0, "body_mass", (2,)),
    "com:lower.x": (ARM, 0.2, "body_ipos", (2, 0)),
    "com:free.z": (BODIES, 0.2, "body_ipos", (1, 2)),
    "geom_margin[2]": (BOXES, 0.05, "geom_margin", (2,)),
}


def check(name: str, model: mujoco.MjModel, simulator: MujocoSimulator, values: list[float]) -> None:
    """Compare the last of three worlds of different values with the engine; the first has the nominal value."""
    x, u = start(simulator, 1, spread=0.03).expand(3, -1), commands(simulator, 1, 60).expand(3, -1, -1)
    states = simulator.rollout(x, u, {name: torch.tensor(values, dtype=torch.float64)})
    assert torch.allclose(states[2], engine_steps(model, x[2], u[2]), rtol=0, atol=1e-12)
    assert torch.allclose(states[0], engine_steps(simulator.model, x[0], u[0]), rtol=0, atol=1e-12)
    assert float((states[2] - states[0]).abs().max()) > 1e-9
    assert not torch.equal(states[1], states[2])


@pytest.mark.parametrize("name", RECOMPILED)
def test_parameters_are_those_of_a_recompiled_model(name: str) -> None:
    """Each world has a value of its own; derived constants follow."""
    xml, value, edit = RECOMPILED[name]
    spec = mujoco.MjSpec.from_string(xml)
    edit(spec, value)
    simulator = MujocoSimulator(xml, [name])
    nominal = simulator.parameters[name].nominal
    check(name, spec.compile(), simulator, [nominal, 0.5 * (nominal + value), value])


@pytest.mark.parametrize("name", EDITED)
def test_parameters_are_those_of_an_edited_model(name: str) -> None:
    """Of a model whose constants were computed again."""
    xml, value, field, place = EDITED[name]
    simulator = MujocoSimulator(xml, [name])
    spec = mujoco.MjSpec.from_string(xml)
    for body in spec.bodies[1:]:
        body.simple = False
    model = spec.compile()
    getattr(model, field)[place] = value
    mujoco.mj_setConst(model, mujoco.MjData(model))
    nominal = simulator.parameters[name].nominal
    check(name, model, simulator, [nominal, 0.5 * (nominal + value), value])


def test_a_larger_geom_collides_where_it_is() -> None:
    """The bounds that the engine sorts contacts by grow with the geom."""
    xml = """<mujoco><worldbody><geom type="box" size="1 1 .1" pos="0 0 -.1"/>
      <body pos="0 0 .5"><freejoint/><geom name="ball" size=".1" mass="1"/></body></worldbody></mujoco>"""
    spec = mujoco.MjSpec.from_string(xml)
    spec.geom("ball").size[0] = 0.45
    model = spec.compile()
    simulator = MujocoSimulator(xml, ["size:ball.0"])
    model.body_inertia[:], model.body_mass[:] = simulator.model.body_inertia, simulator.model.body_mass
    mujoco.mj_setConst(model, mujoco.MjData(model))
    x, u = torch.from_numpy(simulator.model.qpos0.copy()), torch.zeros(300, 0, dtype=torch.float64)
    x = torch.cat([x, torch.zeros(6, dtype=torch.float64)])
    states = simulator.rollout(x, u, {"size:ball.0": torch.tensor(0.45, dtype=torch.float64)})
    assert torch.allclose(states, engine_steps(model, x, u), rtol=0, atol=1e-12)
    assert float(states[-1, 2]) == pytest.approx(0.45, abs=0.01)


def test_a_geom_compiled_at_its_body_s_origin_may_move() -> None:
    """The engine does not read the place of such a geom: it must be told to."""
    xml = """<mujoco><worldbody><geom name="floor" type="plane" size="1 1 1"/>
      <body pos="0 0 .5"><freejoint/><geom name="ball" size=".1" mass="1"/></body></worldbody></mujoco>"""
    simulator = MujocoSimulator(xml, ["pos:floor.z"])
    x = torch.cat([torch.from_numpy(simulator.model.qpos0.copy()), torch.zeros(6, dtype=torch.float64)])
    states = simulator.rollout(x, torch.zeros(600, 0, dtype=torch.float64), {"pos:floor.z": torch.tensor(0.2, dtype=torch.float64)})
    assert float(states[-1, 2]) == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("body", ["upper", "lower"])
def test_nominal_pseudo_inertia_changes_nothing(body: str) -> None:
    """To rounding, and to what keeps flat bodies off the boundary."""
    simulator = MujocoSimulator(ARM, [f"pseudo_inertia:{body}.*"])
    x, u = start(simulator), commands(simulator, 30)
    assert len(simulator.parameters) == 10
    assert torch.allclose(simulator.rollout(x, u), MujocoSimulator(ARM).rollout(x, u), rtol=0, atol=1e-6)


def test_pseudo_inertia_is_that_of_an_edited_model() -> None:
    """Mass, centre of mass and inertia together, a value for each world."""
    simulator = MujocoSimulator(BODIES, ["pseudo_inertia:free.alpha"])
    names = simulator.parameters.names
    values = torch.tensor([[p.nominal for p in simulator.parameters]] * 2, dtype=torch.float64)
    values[1] += 0.2 * torch.randn(10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x, u = start(simulator, 2), commands(simulator, 2, 10)
    states = simulator.rollout(x, u, dict(zip(names, values.T, strict=True)))
    model = simulator.model_with(dict(zip(names, values[1].tolist(), strict=True)))
    mass, com, moments, _ = pseudo_inertia.body(values.numpy())
    assert model.body("free").mass[0] == mass[1]
    assert np.array_equal(model.body("free").ipos, com[1])
    assert np.array_equal(model.body("free").inertia, moments[1])
    assert torch.allclose(states[1], engine_steps(model, x[1], u[1]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("xml", [ARM, BODIES, COUPLED, BOXES, DELAYED])
def test_every_parameter_may_be_asked_for(xml: str) -> None:
    """All at once, at their nominal values, they leave the model as it is."""
    simulator = MujocoSimulator(xml, ["*"])
    x, u = start(simulator), commands(simulator, 5)
    assert set(simulator.parameters.names) == {p.name for g in available(simulator.model) for p in g.parameters}
    assert torch.allclose(simulator.rollout(x, u), MujocoSimulator(xml).rollout(x, u), rtol=0, atol=1e-6)


def test_values_hold_for_one_step() -> None:
    """The next step without them is nominal again, and changes back and forth leave nothing behind."""
    simulator = MujocoSimulator(ARM, ["mass:lower", "damping:*"])
    x, u = start(simulator, 2), commands(simulator, 2)
    plain = MujocoSimulator(ARM).step(x, u)
    for mass in (0.1, 5.0, 0.1):
        changed = simulator.step(x, u, None, {"mass:lower": torch.tensor(mass, dtype=torch.float64)})
        assert torch.equal(simulator.step(x, u), plain)
    assert not torch.equal(changed, plain)


def test_patterns_choose_and_bounds_may_be_given() -> None:
    """Globs by kind or element; parameters of one's own keep their nominal values and bounds."""
    assert MujocoSimulator(ARM, ["damping:*", "*:elbow"]).parameters.names == [
        "damping:shoulder", "damping:elbow", "armature:elbow", "frictionloss:elbow", "stiffness:elbow", "springref:elbow"]
    mine = Parameters(Parameter(name="damping:elbow", nominal=0.3, lower=0.2, upper=0.4, unit="N·m·s/rad"))
    simulator = MujocoSimulator(ARM, mine)
    assert simulator.parameters["damping:elbow"].upper == 0.4
    model = mujoco.MjModel.from_xml_string(ARM)
    model.joint("elbow").damping[:] = 0.3
    x, u = start(simulator), commands(simulator, 3)
    assert torch.allclose(simulator.rollout(x, u), engine_steps(model, x, u), rtol=0, atol=1e-12)


@pytest.mark.parametrize("pattern", ["damping:wrist", "dampng:*", "geom_margin[77]", "nq[0]"])
def test_unknown_parameters_list_what_there_is(pattern: str) -> None:
    """Kinds and elements, in one line."""
    with pytest.raises(ModelError, match=r"fits no parameter.*damping:\{shoulder, elbow\}.*gravity"):
        MujocoSimulator(ARM, [pattern])


def test_inertias_of_a_compiled_model_may_be_fixed() -> None:
    """The engine's short cuts for simple bodies cannot be undone without the source: said, not ignored."""
    with pytest.raises(ModelError, match=r"\['box'\] cannot change"):
        MujocoSimulator(mujoco.MjModel.from_xml_string(BOXES), ["com:box.*"])
