"""A position servo: DC motor with firmware position loop, geared friction, and a pendulum load."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from residual_mbrl.baselines import Parameter, Parameters, Values, WarpFunction
from residual_mbrl.physics.mechanical import Integrator, MechanicalBaseline, Terms
from residual_mbrl.physics.mechanical_warp import WarpTerms
from residual_mbrl.spaces import StateSpace

SPACE = StateSpace(position=("angle",), velocity=("rate",), action=("goal", "enabled", "gain"),
                   units={"angle": "rad", "rate": "rad/s", "goal": "rad", "enabled": "1", "gain": "counts"})

DUTY_PER_GAIN_RAD = 4096 / (2 * math.pi) / 256 / 885
"""Dynamixel XL330 manual: 4096 counts a turn, gain register / 256 duty counts per encoder count, 885 duty counts full duty."""

GRAVITY = 9.80665

PARAMETERS = Parameters(
    Parameter(name="supply_voltage", nominal=7.4, lower=3.0, upper=15.0, unit="V", free=False, description="at no load"),
    Parameter(name="torque_constant", nominal=0.33, lower=0.05, upper=2.0, unit="N·m/A", description="at the output; V·s/rad"),
    Parameter(name="resistance", nominal=3.5, lower=0.5, upper=30.0, unit="Ω", description="winding and bridge"),
    Parameter(name="supply_resistance", nominal=0.0, lower=0.0, upper=8.0, unit="Ω", description="acts in proportion to duty"),
    Parameter(name="load_mass", nominal=0.49, lower=0.05, upper=5.0, unit="kg", free=False),
    Parameter(name="load_length", nominal=0.1, lower=0.01, upper=1.0, unit="m", free=False, description="joint to load"),
    Parameter(name="armature", nominal=0.0016, lower=0.0, upper=0.02, unit="kg·m²", description="rotor seen behind the gears"),
    Parameter(name="angle_offset", nominal=0.0, lower=-0.1, upper=0.1, unit="rad", description="zero of the encoder from hanging"),
    Parameter(name="viscous", nominal=0.008, lower=0.0, upper=0.1, unit="N·m·s/rad"),
    Parameter(name="coulomb", nominal=0.01, lower=0.0, upper=0.1, unit="N·m", description="dry friction without load"),
    Parameter(name="motor_friction", nominal=0.05, lower=0.0, upper=1.0, unit="1", description="dry friction per motor torque"),
    Parameter(name="load_friction", nominal=0.05, lower=0.0, upper=1.0, unit="1", description="dry friction per load torque"),
    Parameter(name="load_friction_off", nominal=0.05, lower=0.0, upper=1.0, unit="1", description="the same, switched off"),
    Parameter(name="stribeck_friction", nominal=0.1, lower=0.0, upper=1.0, unit="1", description="extra at rest, per load torque"),
    Parameter(name="stribeck_rate", nominal=0.5, lower=0.02, upper=5.0, unit="rad/s", description="rate at which the extra is 1/e"),
)


class Servo(MechanicalBaseline):
    """A voltage-driven gear motor under a proportional firmware loop, swinging a pendulum; angle from hanging down.

    With the command (goal angle g, torque enabled e, gain register k) and supply voltage U:

        duty  d  = clip(k c (g - q), -1, 1)                      c = 4096 / (2π · 256 · 885)
        current i = e (U d - K ω) / (R + R_s |d|)                 torque τ_m = K i
        load  τ_l = -m g l sin(q + q_0)
        friction F = F_c + |λ_l τ_l - λ_m τ_m| + exp(-|ω| / ω_s) λ_s |τ_l|      (λ_l another value while e = 0)
        (J_a + m l²) dω/dt = τ_m + τ_l - b ω - F sign(ω)

    The loop runs inside the servo, so the duty is renewed at every substep. Load-dependent friction after Duclusaud et al.,
    "Extended friction models for the physics simulation of servo actuators", ICRA 2025 (arXiv 2410.08650), in a smaller
    form; the supply resistance makes torque fall below proportion at high duty. All torques scale with m g l: with
    ``load_mass`` free as well, the data cannot tell it from the other torques.

    Signals: ``motor_torque``, ``load_torque`` [N·m], ``duty`` [1], ``current`` [A], ``enabled`` [1].
    """

    def __init__(self, parameters: Parameters = PARAMETERS, *, dt: float = 0.005, substeps: int = 2,
                 integrator: Integrator = "semi_implicit") -> None:
        super().__init__(SPACE, parameters, dt=dt, substeps=substeps, integrator=integrator)

    def duty(self, q: Tensor, u: Tensor) -> Tensor:
        """Return the firmware's duty cycle within [-1, 1], shape [*batch]."""
        return (u[..., 2] * DUTY_PER_GAIN_RAD * (u[..., 0] - q[..., 0])).clamp(-1.0, 1.0)

    def current(self, q: Tensor, v: Tensor, u: Tensor, p: Values) -> Tensor:
        """Return the motor current [A], zero while switched off, shape [*batch]."""
        return self._current(self.duty(q, u), v, u, p)

    def _current(self, duty: Tensor, v: Tensor, u: Tensor, p: Values) -> Tensor:
        voltage = duty * p["supply_voltage"] - p["torque_constant"] * v[..., 0]
        return u[..., 1] * voltage / (p["resistance"] + p["supply_resistance"] * duty.abs())

    def load_torque(self, q: Tensor, p: Values) -> Tensor:
        """Return the load's gravity torque [N·m], shape [*batch]."""
        return -GRAVITY * p["load_mass"] * p["load_length"] * torch.sin(q[..., 0] + p["angle_offset"])

    def mass_matrix(self, q: Tensor, p: Values) -> Tensor:
        """Return J_a + m l² [kg·m²], shape [*batch, 1, 1]."""
        return (p["armature"] + p["load_mass"] * p["load_length"] ** 2).expand(q.shape[:-1])[..., None, None]

    def smooth_force(self, q: Tensor, v: Tensor, u: Tensor, p: Values) -> Tensor:
        """Return motor and load torque [N·m], shape [*batch, 1]."""
        return (p["torque_constant"] * self.current(q, v, u, p) + self.load_torque(q, p)).unsqueeze(-1)

    def potential_energy(self, q: Tensor, p: Values) -> Tensor:
        """Return m g l (1 - cos(q + q_0)) [J]."""
        return GRAVITY * p["load_mass"] * p["load_length"] * (1 - torch.cos(q[..., 0] + p["angle_offset"]))

    def damping(self, q: Tensor, v: Tensor, u: Tensor, p: Values) -> Tensor:
        """Return the viscous coefficient [N·m·s/rad], shape [*batch, 1, 1]."""
        return p["viscous"][..., None, None]

    def frictionloss(self, q: Tensor, v: Tensor, u: Tensor, p: Values) -> Tensor:
        """Return the dry-friction limit F [N·m], shape [*batch, 1]."""
        return self._frictionloss(p["torque_constant"] * self.current(q, v, u, p), self.load_torque(q, p), v, u, p)

    def _frictionloss(self, motor: Tensor, load: Tensor, v: Tensor, u: Tensor, p: Values) -> Tensor:
        share = torch.lerp(p["load_friction_off"], p["load_friction"], u[..., 1])
        extra = torch.exp(-v[..., 0].abs() / p["stribeck_rate"]) * p["stribeck_friction"] * load.abs()
        return (p["coulomb"] + (share * load - p["motor_friction"] * motor).abs() + extra).unsqueeze(-1)

    def terms(self, q: Tensor, v: Tensor, u: Tensor, p: Values) -> Terms:
        """Return the equations of motion; motor and load torque, which force and friction share, are computed once."""
        motor, load = p["torque_constant"] * self.current(q, v, u, p), self.load_torque(q, p)
        limit = self._frictionloss(motor, load, v, u, p)
        return Terms(self.mass_matrix(q, p), (motor + load).unsqueeze(-1), self.damping(q, v, u, p), limit)

    def signals(self, state: Tensor, action: Tensor, parameters: Values | None = None) -> dict[str, Tensor]:
        """Return torques, duty, current and enable, each [*batch, 1]."""
        p = self.parameters.resolve(parameters, state)
        q, v, _ = self.space.split(state)
        duty = self.duty(q, action)
        current = self._current(duty, v, action, p)
        signals = {"motor_torque": p["torque_constant"] * current, "load_torque": self.load_torque(q, p),
                   "duty": duty, "current": current, "enabled": action[..., 1]}
        return {n: x.unsqueeze(-1) for n, x in signals.items()}

    def warp_terms(self) -> WarpTerms | None:
        """Return the same terms as Warp functions; None where a subclass changes a part of the equations that is no term of its own."""
        if self._is_changed():
            return None
        import warp as wp  # noqa: PLC0415  # only fused rollouts need it

        v1 = wp.types.vector(length=1, dtype=wp.float32)
        index = self.parameters.names.index
        load_mass, length, armature = (index(n) for n in ("load_mass", "load_length", "armature"))
        viscous, coulomb, by_motor, by_load = (index(n) for n in ("viscous", "coulomb", "motor_friction", "load_friction"))
        by_load_off, stribeck, stribeck_rate = (index(n) for n in ("load_friction_off", "stribeck_friction", "stribeck_rate"))
        drive = _warp_drive(self.parameters.names)
        motor_torque, load_torque = drive.motor_torque, drive.load_torque

        @wp.func
        def mass(q: Any, p: Any) -> Any:
            return v1(p[armature] + p[load_mass] * p[length] * p[length])

        @wp.func
        def force(q: Any, v: Any, u: Any, p: Any) -> Any:
            return v1(motor_torque(q, v, u, p) + load_torque(q, v, u, p))

        @wp.func
        def damping(q: Any, v: Any, u: Any, p: Any) -> Any:
            return v1(p[viscous])

        @wp.func
        def friction(q: Any, v: Any, u: Any, p: Any) -> Any:
            load = load_torque(q, v, u, p)
            share = p[by_load_off] + u[1] * (p[by_load] - p[by_load_off])
            at_rest = wp.exp(-wp.abs(v[0]) / p[stribeck_rate]) * p[stribeck] * wp.abs(load)
            return v1(p[coulomb] + wp.abs(share * load - p[by_motor] * motor_torque(q, v, u, p)) + at_rest)

        return WarpTerms(mass, force, damping, friction, ("viscous",),
                         ("coulomb", "motor_friction", "load_friction", "load_friction_off", "stribeck_friction"))

    def warp_signals(self) -> dict[str, tuple[int, WarpFunction]]:
        """Return the signals as Warp functions; none where a subclass changes what they are made of."""
        if self._is_changed():
            return {}
        import warp as wp  # noqa: PLC0415  # only fused rollouts need it

        v1 = wp.types.vector(length=1, dtype=wp.float32)

        def signal(part: WarpFunction) -> tuple[int, WarpFunction]:
            @wp.func
            def of_state(x: Any, u: Any, p: Any) -> Any:
                return v1(part(x[0:1], x[1:2], u, p))

            return 1, of_state

        return {name: signal(part) for name, part in _warp_drive(self.parameters.names)._asdict().items()}

    def _is_changed(self) -> bool:
        parts = ("duty", "current", "_current", "load_torque", "_frictionloss")
        return any(getattr(type(self), n) is not getattr(Servo, n) for n in parts)


class _WarpDrive(NamedTuple):
    """What the drive does, as Warp functions ``(q, v, u, p) -> float`` by the names of the signals."""

    motor_torque: WarpFunction
    load_torque: WarpFunction
    duty: WarpFunction
    current: WarpFunction
    enabled: WarpFunction


def _warp_drive(names: Sequence[str]) -> _WarpDrive:
    """Return the drive's Warp functions for parameters of these names, in order."""
    import warp as wp  # noqa: PLC0415  # only fused rollouts need it

    index = list(names).index
    supply, constant, resistance, sag = (index(n) for n in ("supply_voltage", "torque_constant", "resistance", "supply_resistance"))
    load_mass, length, zero = (index(n) for n in ("load_mass", "load_length", "angle_offset"))
    duty_per_gain, gravity = DUTY_PER_GAIN_RAD, GRAVITY

    @wp.func
    def duty(q: Any, v: Any, u: Any, p: Any) -> Any:
        asked = u[2] * duty_per_gain * (u[0] - q[0])
        return wp.where(asked < -1.0, -1.0, wp.where(asked > 1.0, 1.0, asked))

    @wp.func
    def current(q: Any, v: Any, u: Any, p: Any) -> Any:
        share = duty(q, v, u, p)
        return u[1] * (share * p[supply] - p[constant] * v[0]) / (p[resistance] + p[sag] * wp.abs(share))

    @wp.func
    def motor_torque(q: Any, v: Any, u: Any, p: Any) -> Any:
        return p[constant] * current(q, v, u, p)

    @wp.func
    def load_torque(q: Any, v: Any, u: Any, p: Any) -> Any:
        return -gravity * p[load_mass] * p[length] * wp.sin(q[0] + p[zero])

    @wp.func
    def enabled(q: Any, v: Any, u: Any, p: Any) -> Any:
        return u[1]

    return _WarpDrive(motor_torque, load_torque, duty, current, enabled)
