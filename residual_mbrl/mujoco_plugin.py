"""A calibrated model inside the user's own MuJoCo loop: what was learned goes in as ``qfrc_applied``, and nothing else changes."""

from __future__ import annotations

import mujoco
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from residual_mbrl.artifact import Calibration
from residual_mbrl.baselines import Port
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.errors import ModelError
from residual_mbrl.physics.mujoco_model import STATE
from residual_mbrl.physics.mujoco_simulator import ADDITIONS, MujocoSimulator

Array = NDArray[np.float64]


class MujocoPlugin:
    """Corrects one simulation: ``plugin(data)`` before each ``mujoco.mj_step(plugin.model, data)``.

    ``model`` is the user's model with the identified parameters. Each call evaluates the residuals at the present state
    (once every ``dt`` of the calibration, and holds them in between), adds their force to ``qfrc_applied``, puts the
    command as executed into ``ctrl``, and their friction and damping into the model. Forces and commands that the user wrote
    since the last call are kept: what the plug-in added is taken out again first. The loop then reproduces ``rollout`` of
    the calibrated dynamics to rounding.

    Args:
        calibration: A calibration of a MuJoCo model, or its dynamics.

    Attributes:
        model: Step this one; it is a copy, and the user's stays as it is.
        force: Generalised force that is being added [N or N·m], shape [nv].

    Raises:
        ModelError: if the baseline is no MuJoCo model, or a residual corrects the state after the step.
    """

    def __init__(self, calibration: Calibration | ResidualDynamics) -> None:
        dynamics = calibration.model.dynamics if isinstance(calibration, Calibration) else calibration
        baseline = dynamics.baseline
        if not isinstance(baseline, MujocoSimulator):
            raise ModelError(f"MujocoPlugin: expected a calibration of a MuJoCo model, received one of {type(baseline).__name__}")
        late = [r.name for r in dynamics.corrections if r.port is Port.STATE]
        live = [r.name for r in dynamics.corrections if r.port is Port.PARAMETERS and r.live not in ADDITIONS]
        if late or live:
            raise ModelError(f"MujocoPlugin: {[*late, *live]} cannot act inside mj_step: only forces, commands, and additions to "
                             f"{sorted(ADDITIONS)} can")
        self.model = baseline.model_with(dynamics.values)
        self.force: Array = np.zeros(self.model.nv)
        self._dynamics, self._substeps = dynamics, baseline.substeps
        self._values = dynamics.resolve(None, torch.zeros(1, dtype=torch.float64))
        self._own = {name: getattr(self.model, name).copy() for name in ADDITIONS.values()}
        self._memory: Tensor | None = None
        self._sent: Array = np.zeros(self.model.nu)
        self._executed: Array = self._sent
        self._held = 0

    def reset(self) -> None:
        """Forget delays, lags and the force held: the next call starts a new simulation."""
        self._memory, self._held = None, 0
        self.force = np.zeros_like(self.force)
        self._sent = self._executed = np.zeros_like(self._sent)

    def __call__(self, data: mujoco.MjData) -> None:
        """Correct the step that comes next.

        Args:
            data: The simulation, before ``mj_step``; ``ctrl`` holds the command, ``qfrc_applied`` any force of the user's.
        """
        if np.array_equal(data.ctrl, self._executed):
            data.ctrl[:] = self._sent  # the user wrote no new command
        added, self._sent = self.force, data.ctrl.copy()
        if self._held == 0:
            self._evaluate(data)
        self._held = (self._held + 1) % self._substeps
        data.qfrc_applied += self.force - added
        data.ctrl[:] = self._executed

    def _evaluate(self, data: mujoco.MjData) -> None:
        """Find force, executed command and live parameters at the present state, and what the residuals remember of it."""
        dynamics = self._dynamics
        known = torch.from_numpy(self._state(data))
        action = torch.from_numpy(self._sent)
        with torch.no_grad():
            if self._memory is None:
                state = dynamics.initial_state(known, action)
            else:
                state = torch.cat([known, self._memory])
            correction = dynamics.correction(state, action, self._values)
            self._memory = dynamics.remember(known, correction.contexts)[known.shape[-1] :]
        self.force = np.zeros(self.model.nv) if correction.force is None else correction.force.numpy()
        self._executed = correction.action.numpy()
        for name, field in ADDITIONS.items():
            if name in correction.values:
                getattr(self.model, field)[:] = np.maximum(self._own[field] + correction.values[name].numpy(), 0.0)

    def _state(self, data: mujoco.MjData) -> Array:
        state = np.empty(mujoco.mj_stateSize(self.model, STATE))
        mujoco.mj_getState(self.model, data, state, STATE)
        return state if len(state) == self._dynamics.baseline.space.nx else np.append(state, data.time)
