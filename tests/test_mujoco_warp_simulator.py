"""MuJoCo Warp as a baseline: it agrees with C MuJoCo, and whatever cannot be computed is said."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("mujoco_warp")

import warp as wp

from residual_mbrl.errors import ModelError
from residual_mbrl.physics.mujoco_simulator import KEPT, MujocoSimulator
from residual_mbrl.physics.mujoco_warp_simulator import MujocoWarpSimulator

# One worker runs them all (with --dist=loadgroup): each that runs some compiles the engine's kernels, for half a minute without a cache.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("mujoco_warp")]

MODEL = """
<mujoco model="two"><option timestep="0.005" integrator="implicitfast"/>
  <worldbody>
    <geom name="floor" type="plane" size="5 5 .1"/>
    <body name="box" pos="0 2 .12"><freejoint name="free"/><geom name="box" type="box" size=".1 .08 .06" mass="1"/></body>
    <body name="cart" pos="0 0 1"><joint name="slide" type="slide" axis="1 0 0" damping=".1" range="-1 1" limited="true"/>
      <geom name="cart" size=".1" contype="0" conaffinity="0" mass="1"/>
      <body name="pole"><joint name="hinge" axis="0 1 0" damping=".01"/>
        <geom name="pole" type="capsule" fromto="0 0 0 0 0 .5" size=".02" contype="0" conaffinity="0" mass=".2"/></body></body>
  </worldbody>
  <actuator><general name="motor" joint="slide" dyntype="filter" dynprm=".02" gainprm="10"/></actuator>
</mujoco>"""
"""A box that falls on a plane beside a cart-pole with a filtered drive: one model, so that kernels are compiled once."""

NAMES = ("damping:hinge", "frictionloss:slide", "mass:pole", "friction:box.slide", "size:box.2", "gain:motor", "time_constant:motor",
         "gravity.z", "opt.viscosity", "opt.impratio")
WORLDS = 4
# float32 forgets the eighth digit of an acceleration of 1000 m/s² at impact
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module", autouse=True)
def quick_compilation() -> Iterator[None]:
    """Compile without optimisation, in half the time."""
    level, wp.config.optimization_level = wp.config.optimization_level, 0
    yield
    wp.config.optimization_level = level


@cache
def simulator(device: torch.device, *names: str, **options: Any) -> MujocoWarpSimulator:
    return MujocoWarpSimulator(MODEL, names, device=device, **options)


@cache
def oracle(*names: str) -> MujocoSimulator:
    return MujocoSimulator(MODEL, names)


def states(device: torch.device) -> Tensor:
    """Boxes in contact and in the air, cart-poles anywhere, everything moving."""
    space, generator = oracle().space, torch.Generator().manual_seed(0)
    state = torch.zeros(WORLDS, space.nx, dtype=torch.float64)
    state[:, :7] = torch.tensor([0, 2, 0.0595, 1, 0, 0, 0])
    state[1, 2] = 0.3
    state[:, 7:9] = torch.randn(WORLDS, 2, generator=generator, dtype=torch.float64) * 0.4
    state[:, space.nq :] = torch.randn(WORLDS, space.nv + 1, generator=generator, dtype=torch.float64) * 0.4
    return state.to(device)


def actions(device: torch.device, horizon: int = 20) -> Tensor:
    return torch.randn(WORLDS, horizon, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(device)


def forces(device: torch.device) -> Tensor:
    return torch.randn(WORLDS, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(device)


def equal(found: Tensor, expected: Tensor, **tolerance: float) -> None:
    torch.testing.assert_close(found.cpu(), expected.cpu(), **(tolerance or CLOSE))


def test_rollout_is_that_of_c_mujoco_through_contacts(device: torch.device) -> None:
    """A rollout with sliding, impact and a filtered drive."""
    x, u = states(device), actions(device)
    equal(simulator(device).rollout(x, u), oracle().rollout(x.cpu(), u.cpu()), rtol=1e-4, atol=1e-4)


def test_rollout_is_the_loop_over_steps(device: torch.device) -> None:
    """Both give the same numbers, and substeps are steps."""
    x, u, warp = states(device), actions(device, 4), simulator(device)
    rolled = warp.rollout(x, u)
    for t in range(4):
        equal(warp.step(rolled[:, t], u[:, t]), rolled[:, t + 1], rtol=0, atol=1e-6)
    held = u[:, :1].expand(-1, 4, -1)
    equal(simulator(device, dt=0.02).step(x, u[:, 0]), warp.rollout(x, held)[:, -1], rtol=0, atol=1e-6)


def test_result_takes_dtype_and_batch_of_its_input(device: torch.device) -> None:
    """Float32 or float64, no batch or a broadcast one."""
    x, u, warp = states(device), actions(device)[:, 0], simulator(device)
    full = warp.step(x, u)
    assert full.dtype == torch.float64 and full.device.type == device.type
    single = warp.step(x[0].float(), u[0].float())
    assert single.dtype == torch.float32 and single.shape == (warp.space.nx,)
    kept = single.clone()
    equal(warp.step(x[1].float(), u[1].float()).double(), full[1], rtol=0, atol=1e-6)
    assert torch.equal(single, kept)  # a result is no view of the engine's memory
    equal(single.double(), full[0], rtol=0, atol=1e-6)
    equal(warp.step(x[:2, None], u[:2])[1, 0], warp.step(x[1], u[0]), rtol=0, atol=1e-6)
    assert warp.rollout(x[0], actions(device)[:2]).shape == (2, 21, warp.space.nx)


def test_force_enters_before_the_solver(device: torch.device) -> None:
    """The force port is qfrc_applied, and lasts one step."""
    x, u, f, warp = states(device), actions(device)[:, 0], forces(device), simulator(device)
    free = warp.step(x, u)
    pushed = warp.step(x, u, f)
    equal(pushed, oracle().step(x.cpu(), u.cpu(), f.cpu()))
    assert (pushed - free).abs().max() > 1e-2
    equal(warp.step(x, u), free, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_differ_between_worlds(device: torch.device, name: str) -> None:
    """Every world has its own value, the nominal one returns, and what the engine derives from it follows."""
    x, u, warp, c = states(device), actions(device)[:, 0], simulator(device, *NAMES), oracle(*NAMES)
    nominal = c.parameters[name].nominal
    values = torch.linspace(0.8, 1.2, WORLDS, dtype=torch.float64) * (nominal or 0.1)
    found = warp.step(x, u, None, {name: values.to(device)})
    equal(found, c.step(x.cpu(), u.cpu(), None, {name: values}))
    assert (found - warp.step(x, u)).abs().max() > 1e-6
    equal(warp.step(x, u), c.step(x.cpu(), u.cpu()))


def test_inertia_is_written_whole(device: torch.device) -> None:
    """A pseudo-inertia changes mass, centre of mass and inertia of a body."""
    names = ("pseudo_inertia:box.*",)
    x, u, warp, c = states(device), actions(device)[:, 0], simulator(device, *names), oracle(*names)
    values = {p.name: p.nominal + torch.linspace(-0.1, 0.1, WORLDS, dtype=torch.float64) for p in c.parameters}
    expected = c.step(x.cpu(), u.cpu(), None, values)
    equal(warp.step(x, u, None, {n: v.to(device) for n, v in values.items()}), expected)
    assert (c.step(x.cpu(), u.cpu()) - expected).abs().max() > 1e-3


def test_residuals_add_friction_and_damping(device: torch.device) -> None:
    """Additions hold for one step, on top of the joints' own, and never below zero."""
    x, u, warp = states(device), actions(device)[:, 0], simulator(device)
    added = {n: torch.rand(WORLDS, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64) - 0.3
             for n in ("frictionloss", "dof_damping")}
    found = warp.step(x, u, None, {n: v.to(device) for n, v in added.items()})
    equal(found, oracle().step(x.cpu(), u.cpu(), None, added))
    equal(warp.step(x, u), oracle().step(x.cpu(), u.cpu()))


def test_failed_worlds_leave_the_others_alone(device: torch.device) -> None:
    """A state or action that is not finite, or a step that diverges, gives NaN in its own world, and in no other or later one."""
    x, u, warp = states(device), actions(device), simulator(device)
    good = warp.rollout(x, u)
    assert not warp.failed.any() and not warp.explain_failures()
    x[0, 3], x[2, -2] = torch.nan, 9e9
    u[3, 5] = torch.inf
    found = warp.rollout(x, u)
    assert warp.failed.tolist() == [True, False, True, True]
    assert found[3, 1:6].isfinite().all() and found[3, 6:].isnan().all() and found[0, 1:].isnan().all() and found[2, 1:].isnan().all()
    equal(found[1], good[1], rtol=0, atol=1e-6)
    said = " ".join(warp.explain_failures())
    assert "1 of 4 worlds diverged" in said and "2 of 4 worlds started from" in said
    equal(warp.rollout(states(device), actions(device)), good, rtol=0, atol=1e-6)


@pytest.mark.parametrize("room", ["njmax", "nconmax"])
def test_worlds_without_room_for_their_contacts_fail(device: torch.device, room: str) -> None:
    """A step that leaves constraints out is no result; the explanation names the option to raise."""
    warp = MujocoWarpSimulator(MODEL, device=device, **{room: 1})
    after = warp.step(states(device), actions(device)[:, 0])
    assert warp.failed[0] and after[0].isnan().all()
    assert f"raise {room} above 1" in " ".join(warp.explain_failures())


def test_gradients_of_c_mujoco_are_taken_at_the_same_point(device: torch.device) -> None:
    """By default reverse mode gives what MujocoSimulator's gives for everything at once."""
    warp, c = simulator(device, "damping:hinge"), oracle("damping:hinge")
    x, u, f = states(device), actions(device)[:, 0], forces(device)
    d = torch.full((WORLDS,), 0.02, dtype=torch.float64)
    weights = torch.randn(WORLDS, warp.space.nx, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

    def gradient(model: Any, where: str | torch.device) -> tuple[Tensor, ...]:
        inputs = [v.to(where).requires_grad_() for v in (x, u, f, d)]
        after = model.step(*inputs[:3], {"damping:hinge": inputs[3]})
        return torch.autograd.grad(after, inputs, weights.to(where))

    for found, expected in zip(gradient(warp, device), gradient(c, "cpu"), strict=True):
        equal(found, expected, rtol=1e-5, atol=1e-5)
        assert expected.abs().max() > 1e-5
    for found, expected in zip(warp.jacobian(x, u, f), c.jacobian(x.cpu(), u.cpu(), f.cpu()), strict=True):
        if isinstance(expected, Tensor):
            equal(found, expected)


def test_differences_on_the_device_are_right_to_three_digits(device: torch.device) -> None:
    """Of smooth motion; ``failed`` stays that of the step that was taken."""
    warp, c = simulator(device, "mass:pole", gradients="differences"), oracle("mass:pole")
    x, u, f = states(device), actions(device)[:, 0], forces(device)
    x[:, 2] = 0.5
    m = torch.full((WORLDS,), 0.25, dtype=torch.float64)
    warp.step(x, u, f)
    found = warp.jacobian(x, u, f, {"mass:pole": m.to(device)})
    expected = c.jacobian(x.cpu(), u.cpu(), f.cpu(), {"mass:pole": m})
    pairs = [(found.state, expected.state), (found.action, expected.action), (found.force, expected.force),
             (found.parameters["mass:pole"], expected.parameters["mass:pole"])]
    for a, b in pairs:
        assert a is not None and b is not None
        assert (a.cpu() - b).abs().max() < 2e-3 * b.abs().max()
    assert warp.failed.shape == (WORLDS,)
    u.requires_grad_()
    after = warp.step(x, u, f)
    (slope,) = torch.autograd.grad(after.sum(), u)
    equal(slope, c.jacobian(x.cpu(), u.detach().cpu(), f.cpu()).action.sum(-2), rtol=2e-3, atol=2e-4)


def test_no_gradient_is_silently_zero(device: torch.device) -> None:
    """Where there is none, asking for it is an error; in forward mode always."""
    warp, x, u = simulator(device, gradients=None), states(device), actions(device)[:, 0]
    with pytest.raises(ModelError, match="no gradients"):
        warp.step(x.requires_grad_(), u)
    with pytest.raises(ModelError, match="no gradients"):
        warp.jacobian(x, u)
    with torch.no_grad():
        assert warp.step(x, u).isfinite().all()
    with pytest.raises(ModelError, match="forward mode"):
        torch.func.jvp(lambda a: simulator(device).step(x.detach(), a), (u,), (u,))


def test_pickled_simulator_gives_the_same(device: torch.device) -> None:
    """Graphs and device memory stay behind and are made again; so they are after many batch sizes, and outside inference mode."""
    warp, x, u = simulator(device, "mass:pole"), states(device), actions(device)[:, 0]
    values = {"mass:pole": torch.full((WORLDS,), 0.3, dtype=torch.float64, device=device)}
    expected = warp.step(x, u, None, values)
    other = pickle.loads(pickle.dumps(warp))
    assert other.describe() == warp.describe() and other.failed.shape == (0,)
    with torch.inference_mode():
        equal(other.step(x, u, None, values), expected, rtol=0, atol=1e-6)
    equal(other.step(x, u, None, values), expected, rtol=0, atol=1e-6)
    for n in range(1, KEPT + 2):
        other.step(x[0].expand(n + WORLDS, -1), u[0])
    equal(other.step(x, u, None, values), expected, rtol=0, atol=1e-6)


def test_energy_and_inertia_are_those_of_c_mujoco(device: torch.device) -> None:
    """What the engine is not needed for comes from C."""
    warp, x, u = simulator(device), states(device), actions(device)[:, 0]
    equal(warp.energy(x), oracle().energy(x.cpu()))
    equal(warp.mass_matrix(x[:, : warp.space.nq], {}), oracle().mass_matrix(x[:, : warp.space.nq].cpu(), {}))
    equal(warp.dissipation_power(x, u), oracle().dissipation_power(x.cpu(), u.cpu()))
    assert (warp.typical_forces() == oracle().typical_forces()).all()


def test_described_simulator_is_built_again() -> None:
    """The description names no device."""
    warp = MujocoWarpSimulator(MODEL, device="cpu", dt=0.01, gradients="differences", njmax=80)
    other = MujocoWarpSimulator(**warp.describe(), device="cpu")
    assert other.describe() == warp.describe() and other.substeps == 2 and "device" not in warp.describe()


def test_unsupported_model_is_refused_at_construction() -> None:
    """The engine's message tells what it cannot do."""
    with pytest.raises(ModelError, match=r"FWDINV is unsupported.*MujocoSimulator can"):
        MujocoWarpSimulator(MODEL.replace("<worldbody>", '<option><flag fwdinv="enable"/></option><worldbody>'), device="cpu")
    with pytest.raises(ModelError, match="fixed to the world once"):
        MujocoWarpSimulator(MODEL, ("geom_pos[0, 2]",), device="cpu")
    with pytest.raises(ModelError, match="one geom_fluid for all worlds"):
        MujocoWarpSimulator(MODEL, ("geom_fluid[1, 0]",), device="cpu")


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without mujoco_warp the error says what to install."""
    monkeypatch.delitem(sys.modules, "residual_mbrl.physics.mujoco_warp_worlds", raising=False)
    monkeypatch.setitem(sys.modules, "mujoco_warp", None)
    with pytest.raises(ModelError, match=r"pip install 'residual-mbrl\[gpu\]'"):
        MujocoWarpSimulator(MODEL, device="cpu")


def test_wrong_arguments_are_named() -> None:
    """Sizes, names, options and devices."""
    warp, x, u = simulator(torch.device("cpu")), states(torch.device("cpu")), actions(torch.device("cpu"))[:, 0]
    with pytest.raises(ValueError, match="action must have 1 entries"):
        warp.step(x, x)
    with pytest.raises(ValueError, match="force must have 8 entries"):
        warp.step(x, u, u)
    with pytest.raises(ValueError, match="must broadcast"):
        warp.step(x, u[:3])
    with pytest.raises(ValueError, match="no parameters"):
        warp.step(x, u, None, {"mass:pole": torch.ones(WORLDS)})
    with pytest.raises(ValueError, match="gradients must be"):
        MujocoWarpSimulator(MODEL, gradients="adjoint")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="njmax must be at least 1"):
        MujocoWarpSimulator(MODEL, njmax=0)
    with pytest.raises(ModelError, match="device must be"):
        MujocoWarpSimulator(MODEL, device="meta")
    with pytest.raises(ModelError, match="CUDA devices"):
        MujocoWarpSimulator(MODEL, device="cuda:99")
