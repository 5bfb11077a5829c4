"""A Gymnasium environment as a baseline: its physics, from any state, without its task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

from residual_mbrl.baselines import Parameters
from residual_mbrl.errors import ModelError
from residual_mbrl.physics.black_box import BlackBox
from residual_mbrl.physics.env_state import (
    Access,
    Array,
    Env,
    EnvStep,
    GivenAccess,
    MujocoAccess,
    action_maps,
    find_access,
    is_mujoco,
    known,
    make_env,
    name_of,
    put_attributes,
    sample_action,
)
from residual_mbrl.physics.mujoco_model import state_space
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator
from residual_mbrl.physics.numeric_step import STEP
from residual_mbrl.spaces import StateSpace

COARSE = 1e-3
"""Perturbation of differences for an environment that keeps its state in float32."""


class GymnasiumEnv(BlackBox):
    """The physics of an environment: ``x' = step(x, u)`` with x its state, not its observation.

    MuJoCo environments and Gymnasium's classic control are known: nothing but the environment is needed. For others, say how to
    get and set the state, and what it is called. Before each step the state is set, so that resets, time limits and the order
    of calls do not matter; at construction it is checked that a step follows from its state and action alone.

    Actions are as the outermost wrapper takes them. They go through every wrapper that maps them and then to the environment's
    own ``step``, which clips them or not; other wrappers are left out, or refused where they change the physics. A discrete action
    is one number, rounded. Everything else (isolation, workers, gradients by differences, ports) is that of ``BlackBox``.

    A MuJoCo environment whose step is ``mj_step`` alone is better stepped by ``as_mujoco()``: natively, in parallel and with
    exact gradients.

    Args:
        env: Identifier for ``gymnasium.make``, a function that makes an environment, or an environment, which then is not to
            be used for anything else and steps in the caller's thread alone.
        options: Keyword arguments of ``gymnasium.make``.
        space: Names, units and sizes of state and action, for environments that are not known.
        get_state: From an environment to its state [nx], float64.
        set_state: Sets the state [nx] of an environment.
        dt: Seconds per step; the environment's own ``dt`` where None.
        parameters: Named parameters of the environment.
        set_parameters: Sets them, ``set_parameters(env, {name: value})``; where None they are attributes of the unwrapped
            environment. Beware of attributes from which it computes others only once.
        workers: Threads or processes; see ``BlackBox``.
        mode: "threads" or "processes".
        timeout: Most seconds for one step, processes only.
        gradients: "differences" or None.
        perturbation: Of the differences; None for 1e-6, or 1e-3 where the environment keeps its state in float32.

    Raises:
        ModelError: if gymnasium is missing, the environment cannot be made, its state cannot be set, or a step follows from more
            than state and action.
    """

    def __init__(self, env: str | Callable[[], Env] | Env, *, options: Mapping[str, Any] | None = None, space: StateSpace | None = None,
                 get_state: Callable[[Env], Any] | None = None, set_state: Callable[[Env, Array], object] | None = None,
                 dt: float | None = None, parameters: Parameters | None = None,
                 set_parameters: Callable[[Env, Mapping[str, float]], object] | None = None, workers: int = 0,
                 mode: Literal["threads", "processes"] = "threads", timeout: float | None = None,
                 gradients: Literal["differences"] | None = "differences", perturbation: float | None = None) -> None:
        make, alone = _maker(env, options or {})
        if alone and (workers > 1 or mode == "processes"):
            raise ValueError("GymnasiumEnv: one environment steps in the caller's thread; expected its identifier, or a function that "
                             "makes it, for workers")
        if (get_state is None) != (set_state is None):
            raise ValueError("GymnasiumEnv: expected get_state and set_state together")
        probe = make()
        if get_state is not None and set_state is not None:
            self._access: Access = GivenAccess(get_state, set_state)
        else:
            self._access = find_access(probe, None if space is None else space.nx)
        space = space or _space(probe)
        absent = [p.name for p in parameters or () if set_parameters is None and not hasattr(probe.unwrapped, p.name)]
        if absent:
            raise ModelError(f"GymnasiumEnv: {name_of(probe)} has no attributes {absent}; expected set_parameters to set them")
        step = EnvStep(lambda: probe, self._access, set_parameters or put_attributes)
        try:
            _check(step, space, None if parameters is None else parameters.nominal())
        except ModelError:
            raise
        except Exception as error:  # of functions that the user gave, or of the environment
            raise ModelError(f"GymnasiumEnv: {name_of(probe)} cannot be set, stepped and read: {type(error).__name__}: {error}") from error
        if perturbation is None:
            single = np.asarray(getattr(probe.unwrapped, "state", 0.0)).dtype == np.float32
            perturbation = COARSE if single else STEP
        super().__init__(None, space, _seconds(probe) if dt is None else dt, parameters=parameters, workers=workers, mode=mode,
                         factory=partial(EnvStep, make, self._access, set_parameters or put_attributes), timeout=timeout,
                         gradients=gradients, perturbation=perturbation)
        self._make, self._probe, self._source, self._options = make, probe, env, dict(options or {})

    def initial_state(self, seed: int | None = None) -> torch.Tensor:
        """Return a state that the environment resets to, shape [nx], float64."""
        self._probe.reset(seed=seed)
        return torch.from_numpy(self._access.read(self._probe).copy())

    def as_mujoco(self, parameters: Sequence[str] | Parameters = (), *, threads: int = 0) -> MujocoSimulator:
        """Return the same physics without Python in the step.

        Args:
            parameters: Of the model, as ``MujocoSimulator`` takes them. Those that change where a body's mass lies may need the MJCF
                itself: ``MujocoSimulator(env.unwrapped.fullpath, parameters, dt=env.unwrapped.dt)``.
            threads: Native threads.

        Raises:
            ModelError: if the environment has no MuJoCo model, or its step does more than ``mj_step``.
        """
        if not isinstance(self._access, MujocoAccess):
            raise ModelError(f"GymnasiumEnv: {name_of(self._probe)} steps no MuJoCo model")
        native = MujocoSimulator(self._probe.unwrapped.model, parameters, dt=self.dt, threads=threads)
        if (native.space.nx, native.space.nu) == (self.space.nx, self.space.nu):
            actions = torch.from_numpy(np.stack([sample_action(self._probe, seed) for seed in range(3)]))
            states = self.initial_state(seed=0).expand(len(actions), -1)
            with torch.no_grad():
                if torch.allclose(self.step(states, actions), native.step(states, actions), rtol=1e-6, atol=1e-9):
                    return native
        raise ModelError(f"GymnasiumEnv: the step of {name_of(self._probe)} does more than mj_step of its model; expected it to be "
                         f"stepped as it is")

    def describe(self) -> dict[str, object]:
        """Return the constructor arguments that an artefact keeps; an environment that was given by its identifier is made again."""
        return {"env": self._source, "options": self._options} if isinstance(self._source, str) else {"dt": self.dt}

    def __getstate__(self) -> dict[str, Any]:
        """Leave the environment of this process behind."""
        return {n: x for n, x in super().__getstate__().items() if n != "_probe"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make the environment anew."""
        super().__setstate__(state)
        self._probe = self._make()


def _maker(env: str | Callable[[], Env] | Env, options: Mapping[str, Any]) -> tuple[Callable[[], Env], bool]:
    """Return a function that makes the environment, and whether it is always the same one."""
    try:
        import gymnasium  # noqa: PLC0415  # optional
    except ImportError as error:
        raise ModelError("GymnasiumEnv needs gymnasium: pip install residual-mbrl[gym]") from error
    if isinstance(env, str):
        return partial(make_env, env, dict(options)), False
    if options:
        raise ValueError("GymnasiumEnv: options are those of gymnasium.make; expected an identifier with them")
    if isinstance(env, gymnasium.Env):
        return (lambda: env), True
    if not callable(env):
        raise ValueError(f"GymnasiumEnv: expected an identifier, an environment or a function that makes one, received {env!r}")
    return env, False


def _space(env: Env) -> StateSpace:
    """Name state and action of an environment that is known."""
    size = len(sample_action(env, 0))
    if is_mujoco(env):
        space = state_space(env.unwrapped.model)
        mapped = bool(action_maps(env)) or size != space.nu  # then an action is no longer in the actuators' units
        action = space.action if size == space.nu else tuple(f"action{i}" for i in range(size))
        units = {n: u for n, u in space.units.items() if not (mapped and n in space.action)}
        return replace(space, action=action, units=units)
    classic = known(env)
    if classic is None:
        raise ModelError(f"GymnasiumEnv: expected a space that names state and action of {name_of(env)}")
    units = dict(zip((*classic.position, *classic.velocity, classic.action[0]), (*classic.units, classic.action[1]), strict=True))
    return StateSpace(position=classic.position, velocity=classic.velocity, action=(classic.action[0],), units=units)


def _seconds(env: Env) -> float:
    """Return the seconds per step of an environment."""
    base, classic = env.unwrapped, known(env)
    if classic is not None:
        return float(getattr(base, classic.clock)) if classic.clock else 1.0
    if not isinstance(getattr(base, "dt", None), float | int):
        raise ModelError(f"GymnasiumEnv: {name_of(env)} has no dt; expected dt, the seconds per step")
    return float(base.dt)


def _check(step: EnvStep, space: StateSpace, parameters: Mapping[str, float] | None) -> None:
    """See that a step follows from what it is given alone.

    Raises:
        ModelError: if it does not, or sizes differ from those of the space.
    """
    name, state = name_of(step.env), step.access.read(step.env)
    actions = [sample_action(step.env, seed) for seed in range(2)]
    if state.shape != (space.nx,) or actions[0].shape != (space.nu,):
        raise ModelError(f"GymnasiumEnv: the state of {name} has shape {state.shape} and its action {actions[0].shape}; expected as "
                         f"many as the space names, {space.nx} and {space.nu}")
    first = step(state, actions[0], parameters)
    for moved in (state, first):
        step.access.write(step.env, moved)
        back = step.access.read(step.env)
        if not np.allclose(back, moved, rtol=1e-6, atol=1e-9):
            raise ModelError(f"GymnasiumEnv: the state of {name} was set to {moved} and read as {back}")
    step(first, actions[1], parameters)
    again = step(state, actions[0], parameters)
    other = [n for n, a, b in zip(space.state_names, first, again, strict=True) if not np.isclose(a, b, rtol=1e-9, atol=1e-12)]
    if other:
        raise ModelError(f"GymnasiumEnv: two steps of {name} from one state with one action differ in {other}: it keeps something else "
                         f"from step to step, or is random. Expected get_state and set_state that hold all of it")
