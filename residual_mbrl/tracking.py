"""Following a motion by inverse dynamics: what a model is worth to a controller, in radians of error on the plant."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import mujoco
import numpy as np
import torch
from numpy.typing import NDArray

from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.errors import ModelError
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator

Array = NDArray[np.float64]
Motion = Callable[[Array], Array]
"""Joint positions [rad], shape [T, nv], at times [s], shape [T]."""


class Plant(Protocol):
    """What a controller sees of an arm with one motor a joint; ``dt`` is the time from one command to the next [s]."""

    dt: float

    @property
    def position(self) -> Array:
        """Joint positions as they are [rad], shape [nv]; for scoring only."""

    def read(self) -> Array:
        """Return what the encoders show [rad], shape [nv]."""

    def send(self, torque: Array) -> None:
        """Send motor torques [N·m], shape [nv], and wait for the next sample."""


@dataclass(frozen=True, kw_only=True)
class Feedback:
    """Correction of what the feedforward leaves: ``K (q_d - q) + D d/dt (q_d - q)``.

    Args:
        stiffness: K [N·m/rad], shape [nv].
        damping: D [N·m·s/rad], shape [nv].
        smoothing: Time constant of the filter on the differentiated error [s].
    """

    stiffness: Array
    damping: Array
    smoothing: float = 0.008


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run on a plant.

    Args:
        time: Shape [T + 1].
        reference: Positions asked for [rad], shape [T + 1, nv].
        positions: Positions as they were [rad], shape [T + 1, nv].
        measured: Positions as the encoders showed them [rad], shape [T + 1, nv].
        torques: Torques sent [N·m], shape [T, nv].
    """

    time: Array
    reference: Array
    positions: Array
    measured: Array
    torques: Array

    @property
    def rms(self) -> float:
        """Root mean square of the joint errors [rad]."""
        return float(np.sqrt(np.mean((self.positions - self.reference) ** 2)))


def inverse_torques(model: mujoco.MjModel, motion: Motion, time: Array) -> Array:
    """Return the joint torques that take a model along a motion [N·m], shape [T, nv].

    The model is inverted as it is stepped, in discrete time (``invdiscrete``): velocities and accelerations are differences
    of the positions that its integrator connects, so that on the same model nothing is left for the feedback.

    Args:
        model: Hinge and slide joints only; friction and limits are inverted with the rest.
        motion: Where to be.
        time: When the torques act [s], shape [T].
    """
    discrete = copy.copy(model)
    discrete.opt.enableflags |= int(mujoco.mjtEnableBit.mjENBL_INVDISCRETE)
    data, dt = mujoco.MjData(discrete), float(discrete.opt.timestep)
    before, here, after = motion(time - dt), motion(time), motion(time + dt)
    torques = np.empty_like(here)
    for k in range(len(time)):
        data.qpos[:], data.qvel[:] = here[k], (here[k] - before[k]) / dt
        data.qacc[:] = (after[k] - 2 * here[k] + before[k]) / dt**2
        mujoco.mj_inverse(discrete, data)
        torques[k] = data.qfrc_inverse
    return torques


def calibrated_torques(dynamics: ResidualDynamics, motion: Motion, time: Array) -> Array:
    """Return the joint torques that take a calibrated model along a motion, its residual's force undone; see ``inverse_torques``.

    Args:
        dynamics: A MuJoCo model with its values and residuals on the force port.
        motion: Where to be.
        time: When the torques act [s], shape [T].

    Raises:
        ModelError: if the baseline is no MuJoCo model with hinge and slide joints, stepped without substeps.
    """
    simulator = dynamics.baseline
    if not isinstance(simulator, MujocoSimulator) or simulator.space.nq != simulator.space.nv or simulator.substeps != 1:
        raise ModelError(f"calibrated_torques: expected a MujocoSimulator of hinges and slides whose dt is the model's time step, "
                         f"received {type(simulator).__name__}")
    torques = inverse_torques(simulator.model_with(dynamics.values), motion, time)
    if not dynamics.residuals:
        return torques
    q = motion(time)
    v = (q - motion(time - simulator.dt)) / simulator.dt
    with torch.no_grad():
        added = dynamics.correction(torch.tensor(np.concatenate([q, v], 1)), torch.tensor(torques))
    return torques if added.force is None else torques - added.force.numpy()


def track(plant: Plant, motion: Motion, feedforward: Array, feedback: Feedback) -> Run:
    """Follow a motion from its zero of time, with torques that were computed before and a feedback on the encoders.

    Args:
        plant: Where it happens.
        motion: Where to be.
        feedforward: Torque to send at each sample [N·m], shape [T, nv].
        feedback: Correction of what is left.
    """
    time = plant.dt * np.arange(len(feedforward) + 1, dtype=np.float64)
    reference = motion(time)
    positions, measured, torques = np.empty_like(reference), np.empty_like(reference), np.empty_like(feedforward)
    decay = np.exp(-plant.dt / feedback.smoothing)
    error = reference[0] - plant.read()
    slope = np.zeros_like(error)
    for k in range(len(time)):
        positions[k], measured[k] = plant.position, plant.read()
        before, error = error, reference[k] - measured[k]
        slope = decay * slope + (1 - decay) * (error - before) / plant.dt
        if k < len(feedforward):
            torques[k] = feedforward[k] + feedback.stiffness * error + feedback.damping * slope
            plant.send(torques[k])
    return Run(time=time, reference=reference, positions=positions, measured=measured, torques=torques)


def advanced(torques: Array, dt: float, delays: Array) -> Array:
    """Return what to send so that torques [T, nv] act in time although each motor is late by its delay [s], shape [nv].

    The last torques are repeated at the end, as nothing comes after them.
    """
    time = dt * np.arange(len(torques))
    return np.stack([np.interp(time + late, time, torque) for torque, late in zip(torques.T, delays, strict=True)], 1)
