"""The quadrotor against C MuJoCo, an independent integration of its equations, and closed forms."""

from __future__ import annotations

import math

import mujoco
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import INTEGRATORS, randomise
from quadrotor_problem import NAMES, VALUES, quadrotor, random_flight, step_by_vectors
from scipy.integrate import solve_ivp
from scipy.spatial.transform import Rotation

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.physics.quadrotor import ROTORS, SPACE, Quadrotor
from residual_mbrl.physics.quadrotor_parameters import PARAMETERS
from residual_mbrl.physics.rotations import exponential_rate, rotate, rotate_back
from residual_mbrl.residuals import CommandActuator, Feature, Unstructured
from residual_mbrl.rollouts import linearise, rollout

ROTORLESS = {**{f"thrust{i}": 0.0 for i in (1, 2, 3, 4)}, "drag_torque": 0.0, "rotor_inertia": 0.0,
             **{n: 0.0 for n in NAMES if n.startswith(("flow_moment", "translational_lift"))}}
AIRLESS = {n: 0.0 for n in NAMES if n.startswith(("drag_", "rate_drag", "flow_moment", "translational_lift", "trim"))}
HOVER = math.sqrt(0.045 * 9.81 / 4 / 0.0372)


def tensor(*entries: float) -> torch.Tensor:
    """Return a vector."""
    return torch.tensor(entries, dtype=torch.float64)


def values(**changes: float) -> dict[str, torch.Tensor]:
    """Return parameter values as tensors, those at which every term counts or others."""
    return {n: torch.tensor(x, dtype=torch.float64) for n, x in {**VALUES, **changes}.items()}


def flown(drone, x, u, steps, force=None, parameters=None):
    """State after a number of steps under one command."""
    for _ in range(steps):
        x = drone.step(x, u, force, parameters)
    return x


def body(pv: dict[str, float]) -> mujoco.MjModel:
    """The same rigid body in MuJoCo, without rotors and air."""
    full = " ".join(str(pv[f"inertia_{n}"]) for n in ("xx", "yy", "zz", "xy", "xz", "yz"))
    centre = " ".join(str(pv[f"centre_{n}"]) for n in "xyz")
    return mujoco.MjModel.from_xml_string(f"""<mujoco><compiler boundinertia="0"/><option gravity="0 0 -{pv["gravity"]}"/><worldbody><body>
        <freejoint/><inertial pos="{centre}" mass="{pv["mass"]}" fullinertia="{full}"/></body></worldbody></mujoco>""")


def derivative(y: np.ndarray, target: np.ndarray, force: np.ndarray, p: dict[str, float]) -> np.ndarray:
    """Newton's and Euler's laws about the origin, where the mass matrix couples; attitude as a rotation matrix."""
    R, v, w, speed = y[3:12].reshape(3, 3), y[12:15], y[15:18], y[18:]
    axes = lambda name: np.array([p[f"{name}_{a}"] for a in "xyz"])  # noqa: E731
    hat = lambda a: np.array([[0, -a[2], a[1]], [a[2], 0, -a[0]], [-a[1], a[0], 0]])  # noqa: E731
    J = np.array([[p["inertia_xx"], p["inertia_xy"], p["inertia_xz"]], [p["inertia_xy"], p["inertia_yy"], p["inertia_yz"]],
                  [p["inertia_xz"], p["inertia_yz"], p["inertia_zz"]]])
    m, c, z, signs = p["mass"], axes("centre"), np.array([0, 0, 1.0]), np.array(ROTORS)
    rate = (target - speed) / p["motor_lag"]
    thrust = np.array([p[f"thrust{i}"] for i in (1, 2, 3, 4)]) * speed**2
    spin_momentum, spin_rate = (1e3 * p["rotor_inertia"] * signs[:, 2] @ s for s in (speed, rate))
    at = axes("pressure")
    passing = R.T @ v + np.cross(w, at)
    drag = -(axes("drag") + p["drag_rotor"] * speed.sum() * np.array([1, 1, 0]) + p["drag_quadratic"] * np.linalg.norm(passing)) * passing
    across = R.T @ v + np.cross(w, c)
    lift = p["translational_lift"] * (across[0] ** 2 + across[1] ** 2)
    inside = (thrust.sum() + lift) * z + drag + R.T @ (force[:3] - m * p["gravity"] * z)
    torque = np.cross(at, drag) + np.cross(c, -m * p["gravity"] * R.T @ z) - axes("rate_drag") * w + axes("trim") + force[3:]
    slope = np.array([p[f"flow_moment_{a}"] + p[f"flow_moment_axial_{a}"] * across[2] for a in "xy"])
    torque = torque + [slope[0] * across[1], -slope[1] * across[0], 0]
    for (x, side, spin), push, s in zip(ROTORS, thrust, speed, strict=True):
        torque = torque + np.cross([x * p["arm_x"], side * p["arm_y"], 0], push * z) - spin * p["drag_torque"] * s**2 * z
    torque = torque - spin_rate * z - np.cross(w, spin_momentum * z)
    # in the body frame: m (a + α × c + ω × (ω × c)) = f,   J_o α + m c × a + ω × J_o ω = τ_o
    about = J + m * (c @ c * np.eye(3) - np.outer(c, c))
    mass = np.block([[m * np.eye(3), -m * hat(c)], [m * hat(c), about]])
    right = np.concatenate([inside - m * np.cross(w, np.cross(w, c)), torque - np.cross(w, about @ w)])
    solved = np.linalg.solve(mass, right)
    return np.concatenate([v, (R @ hat(w)).ravel(), R @ solved[:3], solved[3:], rate])


def integrated(x: torch.Tensor, u: torch.Tensor, force: torch.Tensor, p: dict[str, float], time: float) -> np.ndarray:
    """State after a while, by scipy's eighth-order method to rounding."""
    x = x.numpy()
    R = Rotation.from_quat(np.roll(x[3:7], -1)).as_matrix()
    target = p["command_gain"] * p["battery"] ** p["battery_exponent"] * u.numpy()
    start = np.concatenate([x[:3], R.ravel(), x[7:]])
    y = solve_ivp(lambda _, y: derivative(y, target, force.numpy(), p), (0, time), start, "DOP853", rtol=1e-12, atol=1e-13).y[:, -1]
    q = np.roll(Rotation.from_matrix(y[3:12].reshape(3, 3)).as_quat(), 1)
    return np.concatenate([y[:3], q, y[12:]])


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest entry of the tangent from b to a."""
    return float(SPACE.difference(a, b).abs().max())


@pytest.mark.parametrize("seed", range(4))
def test_every_term_is_that_of_the_equations(seed):
    """A tenth of a second agrees with an independent integration in other coordinates."""
    x, u, force, p = (t[0] for t in random_flight(1, seed))
    named = dict(zip(NAMES, p.tolist(), strict=True))
    expected = torch.tensor(integrated(x, u, force, named, 0.1))
    found = step_by_vectors(quadrotor(dt=0.1, substeps=400), x, u, force, p)
    assert distance(found, expected) < 1e-8


@pytest.mark.parametrize(("integrator", "order"), [("semi_implicit", 1), ("rk4", 4)])
def test_order(integrator, order):
    """Twice the substeps leave a half and a sixteenth of the error."""
    x, u, force, p = (t[0] for t in random_flight(1, 7))
    exact = step_by_vectors(quadrotor(dt=0.1, substeps=500), x, u, force, p)
    coarse, fine = (distance(step_by_vectors(quadrotor(dt=0.1, substeps=n, integrator=integrator), x, u, force, p), exact)
                    for n in (20, 40))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.2)


def test_euler_steps_are_mujocos():
    """A free body under a changing wrench, without an offset: a hundred steps of each agree to rounding."""
    pv = {**VALUES, "centre_x": 0.0, "centre_y": 0.0, "centre_z": 0.0, **ROTORLESS, **AIRLESS}
    model = body(pv)
    model.opt.timestep = 0.01
    data, drone = mujoco.MjData(model), quadrotor(integrator="semi_implicit")
    x = random_flight(1, 3)[0][0]
    data.qpos[:], data.qvel[:] = x[:7], x[7:13]
    for wrench in np.random.default_rng(0).normal(size=(100, 6)) * np.array([0.3] * 3 + [1e-4] * 3):
        data.qfrc_applied[:] = wrench
        mujoco.mj_step(model, data)
        x = drone.step(x, torch.zeros(4, dtype=x.dtype), torch.tensor(wrench), values(**pv))
    assert np.allclose(x[:13].numpy(), np.concatenate([data.qpos, data.qvel]), rtol=1e-10, atol=1e-10)


def test_offset_body_is_mujocos():
    """With the centre of mass away from the origin, a force at the origin turns the body as MuJoCo's does."""
    pv = {**VALUES, **ROTORLESS, **AIRLESS}
    model = body(pv)
    model.opt.timestep, model.opt.integrator = 1e-5, mujoco.mjtIntegrator.mjINT_RK4
    data, (x, u, force, _) = mujoco.MjData(model), (t[0] for t in random_flight(1, 4))
    data.qpos[:], data.qvel[:], data.qfrc_applied[:] = x[:7], x[7:13], force
    for _ in range(5000):
        mujoco.mj_step(model, data)
    found = quadrotor(dt=0.05, substeps=20).step(x, u, force, values(**pv))
    assert np.allclose(found[:13].numpy(), np.concatenate([data.qpos, data.qvel]), rtol=1e-6, atol=1e-7)


def test_mass_matrix_is_mujocos():
    """About the origin, at any attitude."""
    model = body(VALUES)
    data, drone = mujoco.MjData(model), quadrotor()
    states = random_flight(10)[0]
    found = drone.mass_matrix(states[:, :7], drone.parameters.resolve(None, states))
    for x, mass in zip(states, found, strict=True):
        data.qpos[:] = x[:7]
        mujoco.mj_forward(model, data)
        full = np.zeros((6, 6))
        mujoco.mj_fullM(model, data, full)
        assert np.allclose(mass.numpy(), full, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_hover(integrator):
    """With the rotors of the published drone at √(m g / 4 k) nothing moves."""
    x = tensor(1, 2, 3, *Rotation.from_euler("z", 1.0).as_quat()[[3, 0, 1, 2]], *[0] * 6, *[HOVER] * 4)
    after = flown(Quadrotor(integrator=integrator), x, tensor(*[HOVER] * 4), 100)
    assert torch.allclose(after, x, rtol=0, atol=1e-12)


def test_offset_hover():
    """An offset centre of mass is carried by thrusts in the ratio of the levers."""
    x, y, arm = 0.003, -0.002, 0.0353
    lift = [(1 + sx * x / arm + sy * y / arm) / 4 * 0.045 * 9.81 / 0.0372 for sx, sy, _ in ROTORS]
    speeds = tensor(*(math.sqrt(s) for s in lift))
    start = torch.cat([tensor(0, 0, 0, 1, *[0] * 9), speeds])
    p = {n: tensor(value)[0] for n, value in {"centre_x": x, "centre_y": y, "centre_z": 0.01, "drag_torque": 0.0}.items()}
    after = flown(Quadrotor(), start, speeds, 100, None, p)
    assert torch.allclose(after, start, rtol=0, atol=1e-9)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_free_fall_with_spin_about_a_principal_axis(axis):
    """The centre of mass falls by g t² / 2, the attitude turns evenly."""
    p = {n: tensor(x)[0] for n, x in ROTORLESS.items()}
    rate = np.eye(3)[axis] * 20.0
    x = tensor(0, 0, 0, 1, 0, 0, 0, 0.5, 0, 1, *rate, *[0] * 4)
    found = flown(Quadrotor(), x, tensor(*[0] * 4), 50, None, p)
    expected = tensor(0.25, 0, 0.5 - 9.81 / 8, *Rotation.from_rotvec(rate / 2).as_quat()[[3, 0, 1, 2]], 0.5, 0, 1 - 9.81 / 2, *rate,
                      *[0] * 4)
    assert distance(found, expected) < 1e-12


def test_free_precession_keeps_momentum_and_energy():
    """Through a second of tumbling with rotors that change speed: only their own momentum is exchanged."""
    silent = {**VALUES, **AIRLESS, "gravity": 0.0, "drag_torque": 0.0, **{f"thrust{i}": 0.0 for i in (1, 2, 3, 4)}}
    drone, p = quadrotor(substeps=16), values(**silent)
    x, u, *_ = (t[0] for t in random_flight(1, 5))

    def momentum(x: torch.Tensor) -> torch.Tensor:
        c = tensor(*(silent[f"centre_{a}"] for a in "xyz"))
        inertia = drone.mass_matrix(x[:7], values(**{**silent, "centre_x": 0.0, "centre_y": 0.0, "centre_z": 0.0}))[3:, 3:]
        own = 1e3 * silent["rotor_inertia"] * (tensor(*(s for *_, s in ROTORS)) * x[13:]).sum()
        spin = rotate(x[3:7], inertia @ x[10:13] + tensor(0, 0, 1) * own)
        velocity = x[7:10] + rotate(x[3:7], torch.linalg.cross(x[10:13], c))
        return torch.cat([spin, silent["mass"] * velocity])

    after = flown(drone, x, u, 100, None, p)
    assert torch.allclose(momentum(after), momentum(x), rtol=1e-7, atol=1e-12)
    quiet = values(**{**silent, "rotor_inertia": 0.0})
    assert float(drone.energy(flown(drone, x, u, 100, None, quiet), quiet)) == pytest.approx(float(drone.energy(x, quiet)), rel=1e-7)


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("substeps", [1, 5])
def test_rotors_follow_with_a_lag(integrator, substeps):
    """As 1 - exp(-t / τ) from rest, whatever the substeps; a governed speed does not know the battery."""
    drone = Quadrotor(integrator=integrator, substeps=substeps)
    x = tensor(0, 0, 0, 1, *[0] * 13)
    p = {"motor_lag": tensor(0.03)[0], "battery": tensor(0.8)[0], "command_gain": tensor(1.5)[0]}
    expected = 1.5 * 1.8 * (1 - math.exp(-0.1 / 0.03))
    assert torch.allclose(flown(drone, x, tensor(*[1.8] * 4), 10, None, p)[13:], tensor(*[expected] * 4), rtol=1e-12)
    sagging = flown(drone, x, tensor(*[1.8] * 4), 10, None, {**p, "battery_exponent": tensor(1.0)[0]})
    assert torch.allclose(sagging[13:], tensor(*[0.8 * expected] * 4), rtol=1e-12)


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_a_change_of_speed_turns_the_body_the_other_way(integrator):
    """By J_r ΔΩ / J_zz, all of it at once where the lag is far below a step."""
    p = {n: tensor(x)[0] for n, x in {**ROTORLESS, "rotor_inertia": 3e-9, "motor_lag": 1e-4}.items()}
    x = tensor(0, 0, 0, 1, *[0] * 13)
    after = Quadrotor(integrator=integrator).step(x, tensor(0, 1.2, 0, 0), None, p)
    assert float(after[12]) == pytest.approx(-3e-9 * 1200.0 / 3.2347e-6, rel=1e-9)


def test_thrusts_and_torques_are_those_published():
    """Accelerations from rest at given speeds, by the formulae and numbers of the paper."""
    drone = Quadrotor(integrator="semi_implicit", dt=1e-6, substeps=1)
    x = torch.cat([tensor(0, 0, 0, 1, *[0] * 9), tensor(1.5, 1.7, 1.8, 1.4)])
    change = (drone.step(x, x[13:]) - x)[7:13] / drone.dt
    s1, s2, s3, s4 = (1e3 * x[13:]) ** 2
    kt, kc, arm = 3.72e-8, 7.74e-12, 0.0353
    expected = tensor(0, 0, kt * (s1 + s2 + s3 + s4) / 0.045 - 9.81, kt * arm * (s3 + s4 - s1 - s2) / 2.3951e-5,
                      kt * arm * (s2 + s3 - s1 - s4) / 2.3951e-5, kc * (s1 + s3 - s2 - s4) / 3.2347e-6)
    assert torch.allclose(change, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("raised", "moves", "sign"), [((2, 3), 10, 1), ((0, 1), 10, -1), ((1, 2), 11, 1), ((0, 3), 11, -1),
                                                       ((0, 2), 12, 1), ((1, 3), 12, -1)])
def test_pairs_of_rotors_turn_about_one_axis(raised, moves, sign):
    """Left up rolls right, back up pitches forward, and the other axes rest."""
    speed = tensor(*(HOVER + 0.05 * (i in raised) for i in range(4)))
    after = Quadrotor().step(torch.cat([tensor(0, 0, 0, 1, *[0] * 9), speed]), speed)
    rates = after[10:13]
    assert sign * float(after[moves]) > 0
    assert float(rates.abs().sum()) == pytest.approx(float(after[moves].abs()), rel=1e-9)


@given(seed=st.integers(0, 10**6))
def test_air_never_drives(seed):
    """Power of drag is never positive, at any state, wherever it acts."""
    x, u, _, p = random_flight(20, seed)
    power = quadrotor().dissipation_power(x, u, dict(zip(NAMES, p.unbind(-1), strict=True)))
    assert float(power.max()) <= 0


def test_energy_falls_by_what_air_takes():
    """Rotors off and no trim: dE/dt is the power of drag."""
    pv = {**VALUES, **ROTORLESS, "trim_x": 0.0, "trim_y": 0.0, "trim_z": 0.0, "motor_lag": 0.5}
    drone, p = quadrotor(dt=1e-5), values(**pv)
    x = random_flight(30, 2)[0]
    u = x[:, 13:]
    found = (drone.energy(drone.step(x, u, None, p), p) - drone.energy(x, p)) / drone.dt
    assert torch.allclose(found, drone.dissipation_power(x, u, p), rtol=1e-2, atol=1e-7)


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("at_rest", [False, True])
def test_gradients_are_finite_differences(integrator, at_rest):
    """On the tangent space, by command, force and every parameter, also where nothing turns or moves."""
    drone, (x, u, force, p) = quadrotor(integrator=integrator, substeps=2), (t[0] for t in random_flight(1, 6))
    if at_rest:
        x[7:13] = 0.0
    scale = tensor(*(parameter.scale for parameter in PARAMETERS))

    def moved(dx: torch.Tensor, du: torch.Tensor, df: torch.Tensor, dp: torch.Tensor) -> torch.Tensor:
        after = step_by_vectors(drone, SPACE.integrate(x, dx), u + du, force + 1e-2 * df, p + 0.1 * scale * dp)
        return SPACE.difference(after, x)

    zeros = [torch.zeros(n, dtype=torch.float64, requires_grad=True) for n in (16, 4, 6, len(NAMES))]
    assert torch.autograd.gradcheck(moved, zeros, eps=1e-6, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_everything_off_has_finite_slopes(integrator):
    """No rotation, no velocity, no rotor speed."""
    x = tensor(0, 0, 0, 1, *[0] * 13).requires_grad_()
    p = {n: v.requires_grad_() for n, v in values().items()}
    after = quadrotor(integrator=integrator).step(x, tensor(*[0] * 4), None, p)
    assert all(bool(torch.isfinite(g).all()) for g in torch.autograd.grad(after.sum(), [x, *p.values()]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_attitude_stays_of_unit_length(dtype):
    """Through a thousand tumbling steps, in either precision; a start of any length is taken as its direction."""
    x, u, *_ = (t[0].to(dtype) for t in random_flight(1, 8))
    drone = quadrotor(rotor_inertia=0.0)
    assert torch.allclose(drone.step(torch.cat([x[:3], 3 * x[3:7], x[7:]]), u), drone.step(x, u), rtol=1e-5)
    after = flown(drone, x, u, 1000)
    assert after.dtype is dtype
    assert abs(float(after[3:7].norm()) - 1) < 4 * torch.finfo(dtype).eps


def test_batches_broadcast():
    """A state, commands of many, parameters of many and one force make one batch."""
    drone, (x, u, force, _) = quadrotor(), random_flight(5)
    mass = torch.linspace(0.04, 0.05, 3, dtype=torch.float64).unsqueeze(-1)
    found = drone.step(x[0], u, force[0], {"mass": mass})
    assert found.shape == (3, 5, 17)
    assert torch.allclose(found[2, 4], drone.step(x[0], u[4], force[0], {"mass": mass[2, 0]}))


def test_linearisation_is_autograds():
    """Along a rollout, in forward mode."""
    drone = quadrotor()
    x, u, *_ = random_flight(3, 2)
    actions = u.unsqueeze(-2).expand(3, 4, 4)
    dynamics = ResidualDynamics(drone)
    states = rollout(dynamics, x, actions)
    found = linearise(dynamics, states, actions)
    at, after = states[1, 2], states[1, 3]
    expected = torch.func.jacrev(lambda d: SPACE.difference(drone.step(SPACE.integrate(at, d), actions[1, 2]), after))(
        torch.zeros(16, dtype=torch.float64))
    assert torch.allclose(found.A[1, 2], expected, rtol=1e-6, atol=1e-9)


def test_signals():
    """Thrusts carry the drone in hover; gravity points down along the body when it is level."""
    x = tensor(0, 0, 0, 1, 0, 0, 0, 1, 2, 3, *[0] * 3, *[HOVER] * 4)
    signals = Quadrotor().signals(x, x[13:])
    assert float(signals["thrust"].sum()) == pytest.approx(0.045 * 9.81)
    assert torch.equal(signals["body_velocity"], tensor(1, 2, 3))
    assert torch.equal(signals["gravity_direction"], tensor(0, 0, -1))


@pytest.mark.parametrize(("options", "message"), [
    ({"dt": 0.0}, "dt > 0"), ({"substeps": 0}, "substeps >= 1"), ({"integrator": "euler"}, "semi_implicit or rk4, received 'euler'"),
    ({"rotors": ROTORS[:3]}, "four triples"), ({"rotors": ((1, 1, 0),) * 4}, "spin 1 or -1")])
def test_wrong_arguments_are_named(options, message):
    """With what was expected."""
    with pytest.raises(ValueError, match=f"Quadrotor: .*{message}"):
        Quadrotor(**options)


def test_rotations_are_scipys():
    """Body to world and back."""
    q = torch.randn(20, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q = q / q.norm(dim=-1, keepdim=True)
    v = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = Rotation.from_quat(q.numpy()[:, [1, 2, 3, 0]]).apply(v.numpy())
    assert np.allclose(rotate(q, v).numpy(), expected)
    assert torch.allclose(rotate_back(q, rotate(q, v)), v)


def test_exponential_rate_is_that_of_small_turns():
    """exp(θ) turned a little further by ω is exp of θ and a little of the rate."""
    theta, w, h = tensor(0.1, -0.05, 0.08), tensor(1.0, 2.0, -0.5), 1e-7
    further = Rotation.from_rotvec(theta.numpy()) * Rotation.from_rotvec(h * w.numpy())
    assert np.allclose((further.as_rotvec() - theta.numpy()) / h, exponential_rate(theta, w).numpy(), atol=1e-6)


def test_residuals_enter_by_command_and_force():
    """A command that lags and a wrench from the drone's own signals, with their gradients, in one rollout."""
    drone = quadrotor()
    features = [Feature(source="body_velocity"), Feature(source="gravity_direction"), Feature(source="thrust")]
    residuals = [CommandActuator(nu=4, channels=range(4), dt=drone.dt, max_delay=0.03),
                 Unstructured(nv=6, features=features, sizes=[3, 3, 4], bound=0.01, hidden=(4,))]
    dynamics = ResidualDynamics(drone, [randomise(r, scale=0.3, seed=i) for i, r in enumerate(residuals)])
    x, u, *_ = random_flight(3)
    states = rollout(dynamics, x, u.unsqueeze(-2).expand(3, 5, 4))
    gradients = torch.autograd.grad(states.square().sum(), list(dynamics.parameters()), allow_unused=True)
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in gradients)
    assert torch.allclose(states[..., 3:7].norm(dim=-1), torch.ones(3, 6, dtype=torch.float64), atol=1e-12)
    assert dynamics.residual_force(states[:, 0], u).shape == (3, 6)
