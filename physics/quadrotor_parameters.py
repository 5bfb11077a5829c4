"""The named parameters of a quadrotor, with the values published for a Crazyflie 2.1 Brushless.

Source of the nominal values: Busetto et al., Control Engineering Practice 172, 2026, 106871 (arXiv 2512.14450), whose model has mass,
diagonal inertia, thrust, drag torque and arm only. Its inertia about z, below that about x, is kept as published. Everything else is
zero or one, except the motor lag: their commands are measured speeds.
"""

from __future__ import annotations

from residual_mbrl.baselines import Parameter, Parameters

THRUST_UNIT, TORQUE_UNIT = "N·s²/krad²", "N·m·s²/krad²"


def _thrust(rotor: int) -> Parameter:
    return Parameter(name=f"thrust{rotor}", nominal=0.0372, lower=0.005, upper=0.2, unit=THRUST_UNIT, description="per squared speed")


def _products() -> list[Parameter]:
    return [Parameter(name=f"inertia_{n}", nominal=0.0, lower=-2e-6, upper=2e-6, unit="kg·m²", free=False, description="product of inertia")
            for n in ("xy", "xz", "yz")]


def _along_axes(name: str, bound: float, unit: str, description: str, *, signed: bool, free: bool) -> list[Parameter]:
    return [Parameter(name=f"{name}_{axis}", nominal=0.0, lower=-bound if signed else 0.0, upper=bound, unit=unit, free=free,
                      description=description) for axis in "xyz"]


def _across(name: str, bound: float, unit: str, description: str) -> list[Parameter]:
    return [Parameter(name=f"{name}_{axis}", nominal=0.0, lower=-bound, upper=bound, unit=unit, free=False, description=description)
            for axis in "xy"]


PARAMETERS = Parameters(
    Parameter(name="mass", nominal=0.045, lower=0.02, upper=0.2, unit="kg", free=False),
    Parameter(name="gravity", nominal=9.81, lower=0.0, upper=30.0, unit="m/s²", free=False),
    Parameter(name="inertia_xx", nominal=2.3951e-5, lower=5e-6, upper=2e-4, unit="kg·m²", description="about the centre of mass"),
    Parameter(name="inertia_yy", nominal=2.3951e-5, lower=5e-6, upper=2e-4, unit="kg·m²", description="about the centre of mass"),
    Parameter(name="inertia_zz", nominal=3.2347e-6, lower=1e-6, upper=4e-4, unit="kg·m²", description="about the centre of mass"),
    *_products(),
    *_along_axes("centre", 0.02, "m", "centre of mass in the body frame", signed=True, free=False),
    Parameter(name="arm_x", nominal=0.0353, lower=0.01, upper=0.2, unit="m", free=False, description="origin to rotors along body x"),
    Parameter(name="arm_y", nominal=0.0353, lower=0.01, upper=0.2, unit="m", free=False, description="origin to rotors along body y"),
    *(_thrust(rotor) for rotor in (1, 2, 3, 4)),
    Parameter(name="drag_torque", nominal=7.74e-6, lower=-2e-3, upper=2e-3, unit=TORQUE_UNIT,
              description="about the shaft, per squared speed; negative: rotors turn against the stated spin"),
    Parameter(name="rotor_inertia", nominal=0.0, lower=-1e-7, upper=1e-7, unit="kg·m²",
              description="of each rotor about its shaft; negative: rotors turn against the stated spin"),
    Parameter(name="motor_lag", nominal=0.005, lower=1e-4, upper=0.5, unit="s", description="of rotor speed behind its command"),
    Parameter(name="command_gain", nominal=1.0, lower=0.2, upper=5.0, unit="1", free=False, description="steady speed per command"),
    Parameter(name="battery", nominal=1.0, lower=0.5, upper=1.5, unit="1", free=False, description="voltage over nominal voltage"),
    Parameter(name="battery_exponent", nominal=0.0, lower=0.0, upper=2.0, unit="1", free=False,
              description="of steady speed with battery: 0 for governed speeds, 1 for duty cycles"),
    *_along_axes("drag", 0.1, "N·s/m", "air drag, body frame", signed=False, free=True),
    Parameter(name="drag_rotor", nominal=0.0, lower=0.0, upper=0.05, unit="N·s²/(m·krad)", description="the same along x and y, "
              "per sum of rotor speeds"),
    Parameter(name="drag_quadratic", nominal=0.0, lower=0.0, upper=0.05, unit="N·s²/m²", description="air drag per squared speed"),
    *_along_axes("pressure", 0.1, "m", "point at which air drag acts, body frame", signed=True, free=False),
    *_along_axes("rate_drag", 1e-3, "N·m·s/rad", "air drag of turning", signed=False, free=False),
    *_across("flow_moment", 5e-3, "N·m·s/m", "torque about this axis of air that passes the rotors from the side, per speed"),
    *_across("flow_moment_axial", 2e-3, "N·m·s²/m²", "the same per speed and speed along body z"),
    Parameter(name="translational_lift", nominal=0.0, lower=-0.05, upper=0.05, unit="N·s²/m²", free=False,
              description="thrust gained per squared speed across the rotors"),
    *_along_axes("trim", 2e-3, "N·m", "constant torque, body frame", signed=True, free=True),
)
