"""Any MuJoCo model as a baseline: the engine's own numbers, one world's failure kept from the others, exact gradients."""

from __future__ import annotations

import copy
import ctypes
import os
import pickle
from pathlib import Path

import mujoco
import numpy as np
import pytest
import torch
from mujoco_problems import ARM, BODIES, BOXES, COUPLED, DELAYED, MODELS, commands, engine_steps, start
from torch import Tensor

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.errors import ModelError
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator
from residual_mbrl.residuals import Conservative, DryFriction, Feature
from residual_mbrl.rollouts import rollout

NAN = float("nan")


def saved(model: mujoco.MjModel) -> bytes:
    """Every number of a model."""
    buffer = np.zeros((mujoco.mj_sizeModel(model), 1), np.uint8)
    mujoco.mj_saveModel(model, None, buffer)
    return buffer.tobytes()


def stepped(simulator: MujocoSimulator, state: Tensor, actions: Tensor) -> Tensor:
    """States of single steps, shape [*batch, H + 1, nx]."""
    states = [state]
    for action in actions.unbind(-2):
        states.append(simulator.step(states[-1], action))
    return torch.stack(states, -2)


@pytest.mark.parametrize("substeps", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_steps_are_the_engines(name: str, substeps: int) -> None:
    """Bit for bit those of mj_step in a loop, for every world."""
    model = mujoco.MjModel.from_xml_string(MODELS[name])
    simulator = MujocoSimulator(model, dt=substeps * model.opt.timestep)
    x, u = start(simulator, 3), commands(simulator, 3, 25)
    found = stepped(simulator, x, u)
    for i in range(3):
        assert torch.equal(found[i], engine_steps(model, x[i], u[i], substeps=substeps))


@pytest.mark.parametrize("substeps", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_rollouts_are_steps(name: str, substeps: int) -> None:
    """Bit for bit, in one call of the engine, and when the rollout is cut in two."""
    simulator = MujocoSimulator(MODELS[name], dt=substeps * mujoco.MjModel.from_xml_string(MODELS[name]).opt.timestep)
    x, u = start(simulator, 2, 2), commands(simulator, 2, 2, 16)
    expected = stepped(MujocoSimulator(MODELS[name], dt=simulator.dt), x, u)
    assert torch.equal(simulator.rollout(x, u), expected)
    half = simulator.rollout(x, u[..., :7, :])
    assert torch.equal(simulator.rollout(half[..., -1, :], u[..., 7:, :]), expected[..., 7:, :])
    assert torch.equal(rollout(ResidualDynamics(simulator), x, u), expected)


@pytest.mark.parametrize("name", MODELS)
def test_forces_are_qfrc_applied(name: str) -> None:
    """The force port is the engine's, for as long as a force is given."""
    simulator = MujocoSimulator(MODELS[name])
    x, u = start(simulator, 1), commands(simulator, 1, 10)
    f = torch.randn(1, 10, simulator.space.nv, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    f[:, 5:] = 0.0
    expected = engine_steps(simulator.model, x[0], u[0], f[0])
    for t in range(10):
        x = simulator.step(x, u[:, t], f[:, t] if t < 5 else None)
        assert torch.equal(x[0], expected[t + 1])


def test_results_depend_on_the_arguments_alone() -> None:
    """Whatever was simulated before, and whatever the caller does to states that were returned."""
    simulator = MujocoSimulator(BOXES)
    x, u = start(simulator, 2), commands(simulator, 2, 5)
    first = simulator.step(x, u[:, 0])
    expected = MujocoSimulator(BOXES).step(first, u[:, 1])
    simulator.rollout(start(simulator, 2, seed=5), u)
    assert torch.equal(simulator.step(first, u[:, 1]), expected)
    after = simulator.step(x, u[:, 0])
    after[:, 2] += 0.5
    assert torch.equal(simulator.step(after, u[:, 1]), MujocoSimulator(BOXES).step(after, u[:, 1]))
    with pytest.raises(ValueError, match="entries"):
        simulator.step(x, torch.zeros(2, 3, dtype=torch.float64))
    assert torch.equal(simulator.step(first, u[:, 1]), expected)


def test_the_users_model_stays_as_it_is() -> None:
    """Parameters, energies and live additions change copies; keyframes are kept and do nothing."""
    model = mujoco.MjModel.from_xml_string(ARM)
    before = saved(model)
    simulator = MujocoSimulator(model, ["damping:*", "mass:lower", "gravity.z"])
    x, u = start(simulator, 2), commands(simulator, 2)
    values = {n: torch.tensor([0.7, 1.3], dtype=torch.float64) for n in simulator.parameters.names}
    simulator.step(x, u, None, {**values, "frictionloss": torch.ones(2, 2, dtype=torch.float64)})
    simulator.energy(x, values)
    assert saved(model) == before
    assert simulator.model.nkey == 1


def test_additions_are_the_fields_of_an_edited_model() -> None:
    """State-dependent friction and damping of each world are added, clamped at zero, and gone in the next step."""
    simulator = MujocoSimulator(ARM)
    x, u = start(simulator, 3, spread=1.0), commands(simulator, 3)
    added = {"frictionloss": torch.tensor([[0.5, 0.2], [-0.03, 0.0], [-9.0, 1.0]], dtype=torch.float64),
             "dof_damping": torch.tensor([[0.3, 0.0], [-5.0, 0.2], [0.0, 0.0]], dtype=torch.float64)}
    found, plain = simulator.step(x, u, None, added), simulator.step(x, u)
    for i in range(3):
        model = mujoco.MjModel.from_xml_string(ARM)
        assert torch.equal(plain[i], engine_steps(model, x[i], u[i : i + 1])[1])
        model.dof_frictionloss[:] = np.maximum(model.dof_frictionloss + added["frictionloss"][i].numpy(), 0)
        model.dof_damping[:] = np.maximum(model.dof_damping + added["dof_damping"][i].numpy(), 0)
        assert torch.equal(found[i], engine_steps(model, x[i], u[i : i + 1])[1])


def test_additions_hold_through_a_rollout() -> None:
    """A rollout with them is steps with them."""
    simulator = MujocoSimulator(ARM, ["frictionloss:*"])
    x, u = start(simulator, 2), commands(simulator, 2, 6)
    values = {"frictionloss": torch.full((2, 2), 0.2, dtype=torch.float64), "frictionloss:elbow": torch.tensor(0.1, dtype=torch.float64)}
    y = x
    for t in range(6):
        y = simulator.step(y, u[:, t], None, values)
    assert torch.equal(simulator.rollout(x, u, values)[:, -1], y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [(), (1,), (2, 3)])
def test_batches_and_types_follow_the_state(batch: tuple[int, ...], dtype: torch.dtype) -> None:
    """Of steps, rollouts, energies, mass matrices; shapes broadcast."""
    simulator = MujocoSimulator(BODIES, ["damping:*"])
    x, u = start(simulator, *batch).to(dtype), commands(simulator, *batch, 4).to(dtype)
    after, states = simulator.step(x, u[..., 0, :]), simulator.rollout(x, u)
    assert (after.shape, after.dtype) == (x.shape, dtype)
    assert (states.shape, states.dtype) == ((*batch, 5, simulator.space.nx), dtype)
    assert torch.allclose(states[..., 1, :], after)
    nv = simulator.space.nv
    assert simulator.energy(x).shape == batch
    assert simulator.mass_matrix(x[..., : simulator.space.nq], {}).shape == (*batch, nv, nv)
    wide = simulator.step(x, u[..., 0, :], None, {"damping:slide": torch.ones(4, *(1,) * len(batch), dtype=dtype)})
    assert wide.shape == (4, *batch, simulator.space.nx)


@pytest.mark.parametrize("name", ["arm", "bodies", "coupled", "boxes"])
def test_jacobians_are_the_engines(name: str) -> None:
    """State and action parts are those of mjd_transitionFD."""
    simulator = MujocoSimulator(MODELS[name])
    model, space = simulator.model, simulator.space
    x, u = start(simulator, 4), commands(simulator, 4)
    found = simulator.jacobian(x, u)
    for i in range(4):
        data = mujoco.MjData(model)
        mujoco.mj_setState(model, data, x[i].numpy(), int(mujoco.mjtState.mjSTATE_PHYSICS))
        data.ctrl[:] = u[i].numpy()
        a, b = np.zeros((space.ndx, space.ndx)), np.zeros((space.ndx, space.nu))
        mujoco.mjd_transitionFD(model, data, 1e-6, True, a, b if space.nu else None, None, None)
        assert close(found.state[i], torch.from_numpy(a))
        assert close(found.action[i], torch.from_numpy(b))


@pytest.mark.parametrize("name", ["arm", "bodies", "coupled", "boxes"])
def test_gradients_are_those_of_differences(name: str) -> None:
    """By state, action, force, parameters and additions, through the public step, along random directions."""
    simulator = MujocoSimulator(MODELS[name], ["mass:*", "gravity.z"])
    space, n = simulator.space, 3
    x, u = start(simulator, n), commands(simulator, n)
    draw = torch.Generator().manual_seed(7)
    values = {p.name: torch.full((n,), p.nominal, dtype=torch.float64) for p in simulator.parameters}
    values["dof_damping"] = torch.full((n, space.nv), 0.1, dtype=torch.float64)
    force = torch.randn(n, space.nv, generator=draw, dtype=torch.float64)
    inputs = {"action": u, "force": force, **values}
    tracked = {k: v.clone().requires_grad_() for k, v in inputs.items()}
    origin = torch.zeros(n, space.ndx, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(n, space.nx, generator=draw, dtype=torch.float64)

    def loss(moved: Tensor, given: dict[str, Tensor]) -> Tensor:
        rest = {k: v for k, v in given.items() if k not in ("action", "force")}
        return (weights * simulator.step(space.integrate(x, moved), given["action"], given["force"], rest)).sum(-1)

    gradients = dict(zip(["state", *tracked], torch.autograd.grad(loss(origin, tracked).sum(), [origin, *tracked.values()],
                                                                  materialize_grads=True), strict=True))
    for k, gradient in gradients.items():
        size = inputs.get(k, origin)
        direction = torch.randn(size.shape, generator=draw, dtype=torch.float64)

        def at(h: float, k: str = k, direction: Tensor = direction) -> Tensor:
            if k == "state":
                return loss(origin.detach() + h * direction, inputs)
            return loss(origin.detach(), {**inputs, k: inputs[k] + h * direction})

        with torch.no_grad():
            expected = (at(1e-6) - at(-1e-6)) / 2e-6
        product = (gradient * direction).reshape(n, -1).sum(-1)
        scale = (gradient.abs() * direction.abs()).reshape(n, -1).sum(-1) + 1e-6
        assert bool(((product - expected).abs() <= 1e-5 * scale + 1e-8).all()), (k, product, expected)


def test_gradients_of_ambient_quaternions() -> None:
    """A gradient with respect to the state's entries themselves is that of the normalised quaternion."""
    simulator = MujocoSimulator(BODIES)
    x, u = start(simulator), commands(simulator)
    tracked = x.clone().requires_grad_()
    weights = torch.randn(len(x), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gradient = torch.autograd.grad((weights * simulator.step(tracked, u)).sum(), tracked)[0]
    for q0, _ in simulator.space.quaternions:
        assert abs(float(gradient[q0 : q0 + 4] @ x[q0 : q0 + 4])) < 1e-9
    zero = torch.zeros(simulator.space.ndx, dtype=torch.float64, requires_grad=True)
    along = torch.autograd.grad(simulator.space.integrate(x, zero) @ gradient, zero)[0]
    jacobian = simulator.jacobian(x, u)
    after = simulator.step(x, u)
    moved = torch.autograd.grad(simulator.space.integrate(after, zero) @ weights, zero)[0]
    assert torch.allclose(along, jacobian.state.T @ moved, rtol=1e-5, atol=1e-7)


def test_single_precision_has_the_same_gradients() -> None:
    """Computed in double precision and rounded."""
    simulator = MujocoSimulator(ARM)
    x, u = start(simulator, 4).float(), commands(simulator, 4).float().requires_grad_()
    double = u.detach().double().requires_grad_()
    single = torch.autograd.grad(simulator.step(x, u).sum(), u)[0]
    assert single.dtype == torch.float32
    assert torch.allclose(single, torch.autograd.grad(simulator.step(x.double(), double).sum(), double)[0].float(), rtol=1e-5)


def test_gradients_leave_the_status_of_the_step() -> None:
    """``failed`` is that of the last step or rollout, one entry a world, and keeps its value."""
    simulator = MujocoSimulator(ARM)
    x, u = start(simulator, 3), commands(simulator, 3).requires_grad_()
    after = simulator.step(x, u)
    failed = simulator.failed
    after.sum().backward()
    assert simulator.failed.shape == (3,)
    simulator.step(torch.full_like(x, NAN), u.detach())
    assert not failed.any()
    assert simulator.failed.all()


@pytest.mark.parametrize("what", ["state", "large state", "control", "force", "parameter", "acceleration"])
def test_a_failing_world_leaves_the_others_alone(what: str) -> None:
    """It becomes NaN and is marked; the others go on bit for bit as without it, in the next steps too."""
    simulator = MujocoSimulator(ARM, ["mass:lower"])
    x, u = start(simulator, 3), commands(simulator, 3, 6)
    f, mass = torch.zeros(3, 2, dtype=torch.float64), torch.full((3,), simulator.parameters["mass:lower"].nominal, dtype=torch.float64)
    expected = [stepped(MujocoSimulator(ARM), x[i : i + 1], u[i : i + 1])[0] for i in range(3)]
    bad_x, bad_u, bad_f, bad_mass = x.clone(), u.clone(), f.clone(), mass.clone()
    places = {"state": bad_x, "large state": bad_x, "control": bad_u[:, 2], "force": bad_f, "acceleration": bad_f, "parameter": bad_mass}
    places[what][1] = {"large state": 1e12, "acceleration": 1e14}.get(what, NAN)
    states = [bad_x]
    for t in range(6):
        at = 0 if what in ("state", "large state") else 2
        states.append(simulator.step(states[-1], bad_u[:, t], bad_f if t == 2 else f, {"mass:lower": bad_mass if t == 2 else mass}))
        assert simulator.failed.tolist() == [False, t >= at, False]
        assert torch.equal(states[-1][0], expected[0][t + 1])
        assert torch.equal(states[-1][2], expected[2][t + 1])
        assert bool(states[-1][1].isnan().all()) == (t >= at)


def test_a_failing_world_of_a_rollout_is_nan_from_where_it_fails() -> None:
    """As in steps; the others are not touched."""
    simulator = MujocoSimulator(BODIES, dt=0.008)
    x, u = start(simulator, 3), commands(simulator, 3, 6)
    u[1, 3] = NAN
    states = simulator.rollout(x, u)
    assert simulator.failed.tolist() == [False, True, False]
    assert torch.equal(states.nan_to_num(), stepped(MujocoSimulator(BODIES, dt=0.008), x, u).nan_to_num())
    assert states[1].isnan().any(-1).tolist() == [False] * 4 + [True] * 3
    after = simulator.rollout(x, u.nan_to_num())
    assert not simulator.failed.any()
    assert bool(after.isfinite().all())


def test_a_warning_that_is_no_failure_does_not_end_a_rollout() -> None:
    """The engine's own rollout stops at any warning, such as an inertia near zero; ours goes on, as steps do."""
    model = mujoco.MjModel.from_xml_string(BODIES)
    model.body("cart").mass[0] = 0.0
    model.body("cart").inertia[:] = 0.0
    simulator = MujocoSimulator(model)
    x, u = start(simulator, 2), torch.zeros(2, 5, 1, dtype=torch.float64)
    x[:, simulator.space.index("slide.vel")] = 0.0
    states = simulator.rollout(x, u)
    assert not simulator.failed.any()
    assert torch.equal(states, stepped(MujocoSimulator(model), x, u))
    assert not torch.equal(states[:, 1], states[:, 2])


def test_warnings_neither_print_nor_write_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
                                                 caplog: pytest.LogCaptureFixture) -> None:
    """Status tells of failing worlds; what the compiler says goes to the log."""
    monkeypatch.chdir(tmp_path)
    simulator = MujocoSimulator(ARM.replace("<option", '<compiler settotalmass="3"/><option'))
    simulator.step(start(simulator, 2), torch.full((2, 2), NAN, dtype=torch.float64))
    simulator.rollout(start(simulator, 2), torch.full((2, 3, 2), NAN, dtype=torch.float64))
    assert os.listdir(tmp_path) == []
    assert capfd.readouterr() == ("", "")
    assert "settotalmass" in caplog.text
    assert mujoco.get_mju_user_warning() is None


def test_a_handler_of_the_users_own_hears_everything() -> None:
    """It is neither replaced nor removed."""
    heard: list[bytes] = []
    handler = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(heard.append)
    mujoco.set_mju_user_warning(handler)
    try:
        simulator = MujocoSimulator(ARM, threads=1)
        simulator.step(start(simulator), torch.full((2,), NAN, dtype=torch.float64))
        assert mujoco.get_mju_user_warning() is not None
    finally:
        mujoco.set_mju_user_warning(None)
    assert any(b"CTRL" in message for message in heard)


def test_copies_step_alike() -> None:
    """Pickled and deep-copied, running or not, with their own parameters."""
    simulator = MujocoSimulator(BODIES, ["damping:slide"], dt=0.008)
    x, u = start(simulator, 2), commands(simulator, 2)
    values = {"damping:slide": torch.tensor([0.1, 3.0], dtype=torch.float64)}
    expected = simulator.step(x, u, None, values)
    for other in (pickle.loads(pickle.dumps(simulator)), copy.deepcopy(simulator)):
        assert torch.equal(other.step(x, u, None, values), expected)
        assert other.parameters.names == simulator.parameters.names


def test_energy_and_mass_matrix_are_the_engines() -> None:
    """d.energy and mj_fullM, per world and parameter; without a finite state there is no energy."""
    simulator = MujocoSimulator(COUPLED, ["mass:c", "tendon_stiffness:cable"])
    x = start(simulator, 2)
    values = {"mass:c": torch.tensor([0.5, 2.0], dtype=torch.float64), "tendon_stiffness:cable": torch.tensor(7.0, dtype=torch.float64)}
    energy, mass = simulator.energy(x, values), simulator.mass_matrix(x[:, :3], values)
    for i in range(2):
        model = mujoco.MjModel.from_xml_string(COUPLED)
        model.body("c").mass[0], model.tendon_stiffness[0] = float(values["mass:c"][i]), 7.0
        model.opt.enableflags |= int(mujoco.mjtEnableBit.mjENBL_ENERGY)
        data = mujoco.MjData(model)
        mujoco.mj_setConst(model, data)
        mujoco.mj_setState(model, data, x[i].numpy(), int(mujoco.mjtState.mjSTATE_PHYSICS))
        mujoco.mj_forward(model, data)
        full = np.zeros((3, 3))
        mujoco.mj_fullM(model, data, full)
        assert float(energy[i]) == data.energy.sum()
        assert np.array_equal(mass[i].numpy(), full)
    assert bool(simulator.energy(torch.full_like(x, NAN)).isnan().all())


@pytest.mark.parametrize("name", ["arm", "bodies", "coupled"])
def test_dissipation_takes_energy(name: str) -> None:
    """Damping and dry friction, live additions included, have no positive power; without them there is none."""
    simulator = MujocoSimulator(MODELS[name])
    x, u = start(simulator, 40, spread=1.0), 5 * commands(simulator, 40)
    added = {"frictionloss": torch.rand(40, simulator.space.nv, dtype=torch.float64, generator=torch.Generator().manual_seed(0))}
    plain, more = simulator.dissipation_power(x, u), simulator.dissipation_power(x, u, added)
    assert float(plain.max()) < 0
    assert float(more.max()) < 0
    assert not torch.equal(plain, more)
    assert simulator.dissipation_power(x[0], u[0]).shape == ()


def test_dissipation_power_is_that_of_the_dampers() -> None:
    """``-d v²`` of a cart with nothing but a damper."""
    simulator = MujocoSimulator(BODIES)
    x = start(simulator, 3)
    x[:, simulator.space.index("ball.wx") : simulator.space.index("ball.wz") + 1] = 0.0
    speed = x[:, simulator.space.index("slide.vel")]
    assert torch.allclose(simulator.dissipation_power(x, commands(simulator, 3)), -0.5 * speed**2)


def test_certificates_of_residuals() -> None:
    """Dry friction proves its claim on the engine; a potential does on the arm."""
    simulator = MujocoSimulator(ARM)
    friction = DryFriction(nv=2, features=[Feature(source="velocity")], sizes=[2], bound=0.5)
    dynamics = ResidualDynamics(simulator, [friction, Conservative(nq=2)])
    for certificate in dynamics.certificates(start(simulator, 10), commands(simulator, 10)):
        assert certificate.worst <= certificate.limit


@pytest.mark.parametrize("source", ["path", "text", "spec", "model"])
def test_a_description_steps_alike(source: str, tmp_path: Path) -> None:
    """Bit for bit, from includes in other folders, meshes of one name in two folders, a spec or a compiled model."""
    path = write_scene(tmp_path / "models")
    made = {"path": path, "text": ARM, "spec": mujoco.MjSpec.from_file(str(path)), "model": mujoco.MjModel.from_xml_path(str(path))}
    simulator = MujocoSimulator(made[source], dt=0.004)
    x, u = start(simulator, 2), commands(simulator, 2, 10)
    expected = simulator.rollout(x, u)
    described = simulator.describe()
    for file in (tmp_path / "models").rglob("*.*"):
        file.unlink()
    again = MujocoSimulator(**described)
    assert torch.equal(again.rollout(x, u), expected)
    assert again.describe() == described


def write_scene(folder: Path) -> Path:
    """Write a model with an include in another folder and two meshes that differ but for their folder; return the main file."""
    for place, size in (("a", 0.1), ("b", 0.2)):
        (folder / "meshes" / place).mkdir(parents=True)
        corners = [(x * size, y * size, z * size) for x in (0, 1) for y in (0, 1) for z in (0, 1)]
        (folder / "meshes" / place / "part.obj").write_text("".join(f"v {x} {y} {z}\n" for x, y, z in corners))
    (folder / "robots").mkdir()
    (folder / "scene").mkdir()
    (folder / "scene" / "drive.xml").write_text('<mujoco><actuator><motor joint="hinge"/></actuator></mujoco>')
    main = folder / "robots" / "robot.xml"
    main.write_text("""
<mujoco><compiler meshdir="../meshes"/><include file="../scene/drive.xml"/>
  <asset><mesh name="one" file="a/part.obj"/><mesh name="two" file="b/part.obj"/></asset>
  <worldbody><body><joint name="hinge" axis="0 1 0"/>
    <geom type="mesh" mesh="one"/><geom type="mesh" mesh="two" pos=".5 0 0"/></body></worldbody>
</mujoco>""")
    return main


def test_a_step_must_be_a_multiple_of_the_engines() -> None:
    """Anything else is refused, with both numbers."""
    for dt in (0.003, 0.001, 0.0, -0.002):
        with pytest.raises(ValueError, match=r"multiple .* 0.002 s, received"):
            MujocoSimulator(ARM, dt=dt)
    assert MujocoSimulator(ARM, dt=0.02).dt == pytest.approx(0.02)


@pytest.mark.parametrize(("state", "action", "force"), [(5, 2, 2), (3, 2, 2), (4, 1, 2), (4, 3, 2), (4, 2, 1)])
def test_wrong_sizes_are_refused(state: int, action: int, force: int, unchecked: None) -> None:
    """Also a single number, which numpy would spread over all joints."""
    simulator = MujocoSimulator(ARM)
    with pytest.raises(ValueError, match=r"\(4, 2, 2\) entries, received"):
        simulator.step(torch.zeros(2, state), torch.zeros(2, action), torch.zeros(2, force))
    with pytest.raises(ValueError, match="frictionloss must have 2 entries, received 1"):
        simulator.step(torch.zeros(2, 4), torch.zeros(2, 2), None, {"frictionloss": torch.zeros(2, 1)})


def test_wrong_names_in_a_step_are_refused() -> None:
    """The error lists those there are."""
    simulator = MujocoSimulator(ARM, ["damping:elbow"])
    with pytest.raises(ValueError, match=r"damping:wrist.*damping:elbow"):
        simulator.step(torch.zeros(4), torch.zeros(2), None, {"damping:wrist": torch.tensor(1.0)})


def test_models_that_remember_more_than_their_state_are_refused() -> None:
    """Sleeping bodies wake by what lies outside the state."""
    with pytest.raises(ModelError, match="sleep"):
        MujocoSimulator(BOXES.replace('cone="elliptic" tolerance="0" iterations="100"/>', '><flag sleep="enable"/></option>'))


def test_delays_start_anywhere() -> None:
    """A state with its delay buffer and time goes on as if it had never been stopped."""
    simulator = MujocoSimulator(DELAYED)
    x, u = start(simulator, 1), commands(simulator, 1, 20)
    states = simulator.rollout(x, u)
    assert torch.equal(MujocoSimulator(DELAYED).rollout(states[:, 8], u[:, 8:]), states[:, 8:])


def close(found: Tensor, expected: Tensor) -> bool:
    """Whether two Jacobians agree to 1e-5 of their largest entry."""
    return not found.numel() or float((found - expected).abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max()))
