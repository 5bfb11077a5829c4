"""The position servo against its documented equations, integrated independently in plain numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from problems import INTEGRATORS, slopes

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.physics.servo import DUTY_PER_GAIN_RAD, GRAVITY, PARAMETERS, Servo
from residual_mbrl.rollouts import rollout

P = {**PARAMETERS.nominal(), "supply_resistance": 1.7, "angle_offset": 0.03, "load_friction_off": 0.11}
"""Values at which every term of the equations counts."""


def values(**changes: float) -> dict[str, torch.Tensor]:
    """Return parameter values as tensors."""
    return {n: torch.tensor(x, dtype=torch.float64) for n, x in {**P, **changes}.items()}


def tensor(*entries: float) -> torch.Tensor:
    """Return a vector."""
    return torch.tensor(entries, dtype=torch.float64)


def duty(u: np.ndarray, q: float) -> float:
    """The firmware's law: gain register / 256 duty counts per encoder count of error, full at 885, 4096 counts a turn."""
    return float(np.clip(u[2] / 256 * (u[0] - q) * 4096 / (2 * np.pi) / 885, -1, 1))


def simulate(x: np.ndarray, actions: np.ndarray, p: dict[str, float], h: float, substeps: int) -> np.ndarray:
    """Integrate the equations of the docstring: smooth forces first, then friction implicitly, then the angle."""
    q, w = x
    states = [(q, w)]
    for u in actions:
        for _ in range(substeps):
            d = duty(u, q)
            current = u[1] * (p["supply_voltage"] * d - p["torque_constant"] * w) / (p["resistance"] + p["supply_resistance"] * abs(d))
            motor = p["torque_constant"] * current
            load = -p["load_mass"] * GRAVITY * p["load_length"] * math.sin(q + p["angle_offset"])
            inertia = p["armature"] + p["load_mass"] * p["load_length"] ** 2
            share = p["load_friction"] if u[1] else p["load_friction_off"]
            friction = (p["coulomb"] + abs(share * load - p["motor_friction"] * motor)
                        + math.exp(-abs(w) / p["stribeck_rate"]) * p["stribeck_friction"] * abs(load))
            momentum = inertia * (w + h * (motor + load) / inertia)
            loss = h * friction
            momentum = 0.0 if abs(momentum) <= loss else momentum - math.copysign(loss, momentum)
            w = momentum / (inertia + h * p["viscous"])
            q += h * w
        states.append((q, w))
    return np.array(states)


def commands(steps: int, seed: int) -> np.ndarray:
    """Goals that move, with the torque off now and then."""
    rng = np.random.default_rng(seed)
    time = 0.005 * np.arange(steps)
    return np.stack([rng.normal() * np.sin(6 * time + rng.uniform(0, 6)), (np.arange(steps) // 40) % 3 > 0,
                     np.full(steps, rng.choice([100.0, 400.0, 1600.0]))], -1)


@pytest.mark.parametrize("seed", range(6))
def test_one_second_is_that_of_the_equations(seed: int) -> None:
    """Two independent implementations agree to 1e-10, stops, saturation and switching included."""
    actions, start = commands(200, seed), np.random.default_rng(100 + seed).normal(size=2)
    expected = simulate(start, actions, P, 0.0025, 2)
    found = rollout(ResidualDynamics(Servo(), (), P), torch.tensor(start), torch.tensor(actions)).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
    assert np.ptp(found[:, 0]) > 0.1


def test_terms_are_the_separate_methods() -> None:
    """What a step computes together is what each method returns alone."""
    servo, p = Servo(), values()
    q, v = torch.randn(2, 50, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u = torch.tensor(commands(50, 1))
    terms = servo.terms(q, v, u, p)
    for found, expected in zip(terms, (servo.mass_matrix(q, p), servo.smooth_force(q, v, u, p), servo.damping(q, v, u, p),
                                       servo.frictionloss(q, v, u, p)), strict=True):
        assert torch.equal(found, expected)


def test_duty_is_proportional_until_it_saturates() -> None:
    """One encoder count at gain 256 is one of 885 duty counts; 885 of them is full duty."""
    count = 2 * math.pi / 4096
    servo, q = Servo(), tensor(0.2)
    for counts, gain, expected in [(1, 256, 1 / 885), (-10, 512, -20 / 885), (885, 256, 1.0), (2000, 400, 1.0), (-2000, 400, -1.0)]:
        assert float(servo.duty(q, tensor(0.2 + counts * count, 1.0, gain))) == pytest.approx(expected, rel=1e-12)
    assert pytest.approx(1 / 885 / count / 256) == DUTY_PER_GAIN_RAD


def test_torque_off_gives_no_current_and_other_friction() -> None:
    """The bridge is open; load friction takes its switched-off value."""
    servo, p = Servo(), values(stribeck_friction=0.0)
    q, v = tensor(0.7), tensor(3.0)
    for enabled, share in ((0.0, P["load_friction_off"]), (1.0, P["load_friction"])):
        u = tensor(q.item(), enabled, 400.0)
        motor = p["torque_constant"] * servo.current(q, v, u, p)
        assert bool(motor == 0) == (enabled == 0.0)
        limit = P["coulomb"] + (share * servo.load_torque(q, p) - P["motor_friction"] * motor).abs()
        assert torch.allclose(servo.frictionloss(q, v, u, p)[..., 0], limit)


def test_supply_resistance_at_standstill_and_full_duty() -> None:
    """At full duty it is in series with the winding, i = U / (R + R_s); at half duty it counts half."""
    servo, p, q, v = Servo(), values(), tensor(0.0), tensor(0.0)
    full = servo.current(q, v, tensor(10.0, 1.0, 400.0), p)
    assert float(full) == pytest.approx(7.4 / (3.5 + 1.7))
    half = servo.current(q, v, tensor(0.5 / DUTY_PER_GAIN_RAD / 400, 1.0, 400.0), p)
    assert float(half) == pytest.approx(0.5 * 7.4 / (3.5 + 0.85))


def test_back_emf_bounds_the_rate() -> None:
    """Without load or friction, full duty ends at U / K."""
    frictionless = dict.fromkeys(("viscous", "coulomb", "motor_friction", "load_friction", "stribeck_friction"), 0.0)
    free = {**P, **frictionless, "load_mass": 1e-6}
    servo, p = Servo(), values(**free)
    x = torch.zeros(2, dtype=torch.float64)
    for _ in range(400):
        x = servo.step(x, tensor(1e6, 1.0, 800.0), None, p)
    assert float(x[1]) == pytest.approx(7.4 / 0.33, rel=1e-3)


def test_switched_off_it_only_loses_energy() -> None:
    """From anywhere; where friction stops it within a step, to the energy ``(h τ)² / 2J`` that gravity's impulse in a step carries."""
    servo, p = Servo(dt=0.001, substeps=1, integrator="rk4"), values()
    x = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * tensor(2.0, 5.0)
    off, first = tensor(1.0, 0.0, 400.0), servo.energy(x, p)
    impulse = 0.001 * GRAVITY * P["load_mass"] * P["load_length"]
    rounding = impulse**2 / (2 * (P["armature"] + P["load_mass"] * P["load_length"] ** 2))
    energy = first
    for _ in range(1500):
        x = servo.step(x, off, None, p)
        after = servo.energy(x, p)
        assert float((after - energy).max()) < rounding < 2e-5
        energy = after
    assert bool((energy < first).all())


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_friction_holds_a_small_load(integrator: str) -> None:
    """Within the friction cone the arm stays where it is to rounding; beyond it, it falls."""
    servo, p = Servo(integrator=integrator), values(stribeck_friction=0.0, angle_offset=0.0, coulomb=0.05)  # type: ignore[arg-type]
    off = tensor(0.0, 0.0, 400.0)
    moment = GRAVITY * P["load_mass"] * P["load_length"]
    edge = math.asin(0.05 / moment / (1 - P["load_friction_off"]))
    for angle, holds in ((0.98 * edge, True), (1.02 * edge, False)):
        x = tensor(angle, 0.0)
        for _ in range(200):
            x = servo.step(x, off, None, p)
        assert (abs(float(x[0]) - angle) < 1e-12) == holds


def test_gradients_are_finite_differences() -> None:
    """By state, command and every parameter, away from the kinks of friction and saturation."""
    servo, names = Servo(), list(P)

    def last(z: torch.Tensor) -> torch.Tensor:
        p = dict(zip(names, z[5:], strict=True))
        x = z[:2]
        for _ in range(5):
            x = servo.step(x, torch.stack([z[2], z[3], z[4]]), None, p)
        return x

    z = torch.cat([tensor(0.4, 1.5, 1.0, 1.0, 300.0), torch.stack(list(values().values()))])
    exact = torch.func.jacrev(last)(z)
    assert torch.allclose(exact, slopes(last, z), rtol=1e-5, atol=1e-7)
    used = [n for n, column in zip(names, exact[:, 5:].T, strict=True) if column.abs().max() > 1e-8]
    assert set(names) - set(used) == {"load_friction_off"}


def test_signals_belong_together() -> None:
    """Motor torque is K times current, which follows from duty; units of one column each."""
    servo, p = Servo(), values()
    x, u = torch.stack([tensor(0.3, 2.0), tensor(0.1, -1.0)]), torch.stack([tensor(0.5, 1.0, 400.0), tensor(0.0, 0.0, 400.0)])
    signals = servo.signals(x, u, p)
    assert {s.shape for s in signals.values()} == {(2, 1)}
    assert torch.allclose(signals["motor_torque"], P["torque_constant"] * signals["current"])
    assert torch.equal(signals["current"][1], torch.zeros(1, dtype=torch.float64))
    total = signals["motor_torque"] + signals["load_torque"]
    assert torch.allclose(servo.smooth_force(x[:, :1], x[:, 1:], u, p), total)
