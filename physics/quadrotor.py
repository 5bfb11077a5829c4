"""A quadrotor: a rigid body on SE(3) under four rotors that follow their commands with a lag."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from residual_mbrl.baselines import Baseline, Parameters, Port, Values, WarpFunction, WarpStep
from residual_mbrl.physics.mechanical import Integrator
from residual_mbrl.physics.quadrotor_forces import Body, acceleration, air_drag, alike, body_of, lagged, reaction, times
from residual_mbrl.physics.quadrotor_parameters import PARAMETERS
from residual_mbrl.physics.quadrotor_warp import warp_signals, warp_substep
from residual_mbrl.physics.rotations import cross, exponential_rate, rotate, rotate_back
from residual_mbrl.spaces import StateSpace

POSE = StateSpace(position=("x", "y", "z", "qw", "qx", "qy", "qz"), velocity=("vx", "vy", "vz", "wx", "wy", "wz"), action=(),
                  quaternions=((3, 3),))
SPACE = StateSpace(
    position=POSE.position, velocity=POSE.velocity, quaternions=POSE.quaternions,
    activation=tuple(f"rotor{i}" for i in (1, 2, 3, 4)), action=tuple(f"command{i}" for i in (1, 2, 3, 4)),
    units={**dict.fromkeys("xyz", "m"), **dict.fromkeys(("vx", "vy", "vz"), "m/s"), **dict.fromkeys(("wx", "wy", "wz"), "rad/s"),
           **{f"{n}{i}": "krad/s" for n in ("rotor", "command") for i in (1, 2, 3, 4)}})

ROTORS = ((1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1))
"""Of a Crazyflie: front right, back right, back left, front left; the spins are those of the published model."""


class Quadrotor(Baseline):
    """A quadrotor, x forward, y left, z up; thrust acts along body +z.

    State: position [m] and velocity [m/s] of the body's origin in the world frame, attitude as quaternion w-x-y-z (body to
    world, taken as its direction: any length stands for the same attitude), angular velocity [rad/s] in the body frame, rotor
    speeds [krad/s]. Action: commanded rotor speeds [krad/s]. Force: world force [N] at the origin and body torque [N·m], what
    MuJoCo calls ``qfrc_applied`` of a free joint, held over the step.

    With centre of mass c, its velocity v_c, inertia J about it, rotors at r_i = (x_i arm_x, y_i arm_y, 0) with spin s_i, thrust
    T_i = k_i Ω_i |Ω_i|, rotors' momentum h = J_r Σ s_i Ω_i about z, and drag at the point r_p that moves with v_p:

        dΩ_i/dt = (g_u b^e u_i - Ω_i) / τ                 b battery, e its exponent, g_u command gain
        f_d = -(D + d_r Σ|Ω_i| diag(1, 1, 0) + d_q |v_p|) v_p
        l = k_l |v_b × z|²                                lift gained across the rotors, with v_b = Rᵀ v_c
        m dv_c/dt = R ((Σ T_i + l) z + f_d) - m g z + force
        J dω/dt = Σ (r_i - c) × T_i z - c × l z - k_m Σ s_i Ω_i |Ω_i| z - (M + M_a v_b,z) (z × v_b) + (r_p - c) × f_d - K ω + trim
                  - c × Rᵀ force + torque - ω × (J ω + h z) - dh/dt z

    Speeds are exact for a held command. Semi-implicit Euler takes the speeds, then the velocities, then the pose at the end
    of each substep; RK4 is of fourth order in the exponential chart (Munthe-Kaas), and as h is taken as a change of momentum,
    both stay right for a lag far below a substep. Gradients by torch autograd.

    Sources: Mahony, Kumar, Corke, "Multirotor aerial vehicles", IEEE Robotics & Automation Magazine 19(3), 2012; rotor drag
    after Faessler, Franchi, Scaramuzza, IEEE RA-L 3(2), 2018.

    Signals: ``thrust`` [N] of each rotor, ``body_velocity`` [m/s], ``gravity_direction`` [1] in the body frame.

    Args:
        parameters: Named parameters; nominal ones are those of a Crazyflie 2.1 Brushless.
        dt: Seconds per step.
        substeps: Substeps per step.
        integrator: "semi_implicit" or "rk4".
        rotors: For each rotor the signs of its x and y, and its spin about +z (1 or -1).
    """

    ports = frozenset(Port)

    def __init__(self, parameters: Parameters = PARAMETERS, *, dt: float = 0.01, substeps: int = 2, integrator: Integrator = "rk4",
                 rotors: Sequence[Sequence[int]] = ROTORS) -> None:
        if not dt > 0 or substeps < 1:
            raise ValueError(f"Quadrotor: expected dt > 0 and substeps >= 1, received {dt}, {substeps}")
        if integrator not in ("semi_implicit", "rk4"):
            raise ValueError(f"Quadrotor: integrator must be semi_implicit or rk4, received {integrator!r}")
        if [len(r) for r in rotors] != [3] * 4 or any(abs(r[2]) != 1 or abs(r[0]) > 1 or abs(r[1]) > 1 for r in rotors):
            raise ValueError(f"Quadrotor: rotors must be four triples (x sign, y sign, spin 1 or -1), received {rotors!r}")
        self.space, self.parameters, self.dt = SPACE, parameters, dt
        self.substeps, self.integrator = substeps, integrator
        self.rotors = tuple(tuple(r) for r in rotors)
        self.live = frozenset(parameters.names)

    def step(self, state: Tensor, action: Tensor, force: Tensor | None = None, parameters: Values | None = None) -> Tensor:
        """Advance ``dt`` seconds; gradients by torch autograd through every substep."""
        p = self.parameters.resolve(parameters, state)
        body, h = body_of(p, self.rotors), self.dt / self.substeps
        q, v, speed = self.space.split(state)
        pose, twist = _moved(_upright(q), v, body.centre)
        target = self.steady_speed(action, p)
        substep = self._semi_implicit if self.integrator == "semi_implicit" else self._runge_kutta
        for _ in range(self.substeps):
            pose, twist, speed = substep(pose, twist, speed, target, force, body, h)
        return torch.cat(alike(*_moved(pose, twist, -body.centre), speed), -1)

    def steady_speed(self, action: Tensor, p: Values) -> Tensor:
        """Return the rotor speeds [krad/s] that commands settle at, shape [*batch, 4]."""
        gain = p["command_gain"] * torch.exp(p["battery_exponent"] * torch.log(p["battery"]))
        return gain.unsqueeze(-1) * action

    def mass_matrix(self, q: Tensor, p: Values) -> Tensor:
        """Return M about the origin, of world velocity and body rate, shape [*batch, 6, 6]; symmetric positive definite."""
        body, attitude = body_of(p, self.rotors), _upright(q)[..., 3:]
        inertia, mass = body.inertia, body.mass[..., None, None]
        eye = torch.eye(3, dtype=q.dtype, device=q.device)
        # columns of the cross product matrix: [c]× e_k = c × e_k
        skew = cross(body.centre.unsqueeze(-2), eye).mT
        coupling = -mass * torch.stack([rotate(attitude, column) for column in skew.unbind(-1)], -1)
        corner = inertia + mass * skew.mT @ skew
        blocks = alike(mass * eye, coupling, coupling.mT, corner, last=2)
        return torch.cat([torch.cat(blocks[:2], -1), torch.cat(blocks[2:], -1)], -2)

    def energy(self, state: Tensor, parameters: Values | None = None) -> Tensor:
        """Return kinetic plus potential energy [J] of the body, without the rotors' spin, shape [*batch]."""
        p = self.parameters.resolve(parameters, state)
        body = body_of(p, self.rotors)
        q, v, _ = self.space.split(state)
        pose, twist = _moved(_upright(q), v, body.centre)
        w = twist[..., 3:]
        kinetic = 0.5 * (body.mass * twist[..., :3].square().sum(-1) + (w * times(body.inertia, w)).sum(-1))
        return kinetic + body.weight * pose[..., 2]

    def dissipation_power(self, state: Tensor, action: Tensor, parameters: Values | None = None) -> Tensor:
        """Return the power of air drag [W] at the start of the step, never positive, shape [*batch].

        What air does by way of turning rotors, ``flow_moment`` and ``translational_lift``, is paid by the motors and not part of it.
        """
        p = self.parameters.resolve(parameters, state)
        body = body_of(p, self.rotors)
        q, v, speed = self.space.split(state)
        pose, twist = _moved(_upright(q), v, body.centre)
        w = twist[..., 3:]
        passing, force = air_drag(rotate_back(pose[..., 3:], twist[..., :3]), w, speed, body)
        return (force * passing).sum(-1) - (body.rate_drag * w.square()).sum(-1)

    def signals(self, state: Tensor, action: Tensor, parameters: Values | None = None) -> dict[str, Tensor]:
        """Return thrusts [*batch, 4], velocity of the origin and direction of gravity in the body frame [*batch, 3]."""
        p = self.parameters.resolve(parameters, state)
        q, v, speed = self.space.split(state)
        attitude = _upright(q)[..., 3:]
        down = torch.tensor([0.0, 0.0, -1.0], dtype=state.dtype, device=state.device)
        return {"thrust": body_of(p, self.rotors).thrust * speed * speed.abs(), "body_velocity": rotate_back(attitude, v[..., :3]),
                "gravity_direction": rotate_back(attitude, down)}

    def describe(self) -> dict[str, object]:
        """Return the constructor arguments."""
        return {"dt": self.dt, "substeps": self.substeps, "integrator": self.integrator, "rotors": [list(r) for r in self.rotors]}

    def warp_step(self) -> WarpStep | None:
        """Return the same step as a Warp function of one world; None where a subclass changes the equations."""
        if any(getattr(type(self), n) is not getattr(Quadrotor, n) for n in EQUATIONS):
            return None
        h = self.dt / self.substeps
        return WarpStep(warp_substep(self.parameters.names, self.rotors, h=h, integrator=self.integrator), self.substeps)

    def warp_signals(self) -> dict[str, tuple[int, WarpFunction]]:
        """Return the signals as Warp functions; none where a subclass changes what they are made of."""
        return {} if type(self).signals is not Quadrotor.signals else warp_signals(self.parameters.names)

    def _semi_implicit(self, pose: Tensor, twist: Tensor, speed: Tensor, target: Tensor, force: Tensor | None, body: Body,
                       h: float) -> tuple[Tensor, Tensor, Tensor]:
        """Advance pose and twist of the centre of mass, and the rotors, by h seconds."""
        after = lagged(speed, target, h, body)
        twist = twist + h * acceleration(pose, twist, after, force, body) + reaction(after - speed, body)
        return POSE.integrate_position(pose, h * twist), twist, after

    def _runge_kutta(self, pose: Tensor, twist: Tensor, speed: Tensor, target: Tensor, force: Tensor | None, body: Body,
                     h: float) -> tuple[Tensor, Tensor, Tensor]:
        """The same to fourth order, in the exponential chart at the attitude of the start."""
        middle, after = lagged(speed, target, 0.5 * h, body), lagged(speed, target, h, body)
        jump, whole_jump = reaction(middle - speed, body), reaction(after - speed, body)
        move = POSE.integrate_position
        k1 = acceleration(pose, twist, speed, force, body)
        twist2, chart2 = twist + 0.5 * h * k1 + jump, 0.5 * h * twist
        k2, rate2 = acceleration(move(pose, chart2), twist2, middle, force, body), _chart_rate(chart2, twist2)
        twist3, chart3 = twist + 0.5 * h * k2 + jump, 0.5 * h * rate2
        k3, rate3 = acceleration(move(pose, chart3), twist3, middle, force, body), _chart_rate(chart3, twist3)
        twist4, chart4 = twist + h * k3 + whole_jump, h * rate3
        k4, rate4 = acceleration(move(pose, chart4), twist4, after, force, body), _chart_rate(chart4, twist4)
        pose = move(pose, h / 6 * (twist + 2 * (rate2 + rate3) + rate4))
        return pose, twist + h / 6 * (k1 + 2 * (k2 + k3) + k4) + whole_jump, after


EQUATIONS = ("step", "steady_speed", "_semi_implicit", "_runge_kutta")
"""Methods that a Warp step speaks for."""


def _chart_rate(chart: Tensor, twist: Tensor) -> Tensor:
    turning = exponential_rate(chart[..., 3:], twist[..., 3:])
    return torch.cat(alike(twist[..., :3], turning), -1)


def _upright(q: Tensor) -> Tensor:
    """Return a pose with its quaternion at unit length."""
    attitude = q[..., 3:]
    return torch.cat([q[..., :3], attitude / attitude.square().sum(-1, keepdim=True).sqrt()], -1)


def _moved(pose: Tensor, twist: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Return pose and twist of the point of the body that lies an offset [m] from theirs, in the body frame."""
    attitude, w = pose[..., 3:], twist[..., 3:]
    at, velocity = pose[..., :3] + rotate(attitude, offset), twist[..., :3] + rotate(attitude, cross(w, offset))
    return torch.cat(alike(at, attitude), -1), torch.cat(alike(velocity, w), -1)
