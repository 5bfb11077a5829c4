"""Setting and reading the physical state of a Gymnasium environment; no torch here, since worker processes import this."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from residual_mbrl.errors import ModelError

Array = NDArray[np.float64]
Env = Any
"""A ``gymnasium.Env``; typed loosely, since gymnasium is an optional dependency."""

MOVES = {"RepeatAction", "StickyAction", "MaxAndSkipObservation", "AtariPreprocessing", "ArrayConversion"}
"""Wrappers of Gymnasium's own that change what a step does beyond mapping its action; all others of its own only look on."""


class Access(Protocol):
    """How to set and read the state of one kind of environment."""

    def read(self, env: Env) -> Array:
        """Return the state, shape [nx]."""

    def write(self, env: Env, state: Array) -> None:
        """Set the state, shape [nx]."""


class MujocoAccess:
    """Positions, velocities, activations (and delay buffers) of an environment with ``model`` and ``data``."""

    def read(self, env: Env) -> Array:
        """Return the engine's physical state.

        Raises:
            ArithmeticError: if the engine has rejected the state since it was set, upon which it starts from its reference pose.
        """
        import mujoco  # noqa: PLC0415  # other environments need none of it

        base = env.unwrapped
        for kind in _rejections(mujoco):
            if base.data.warning[kind].number:
                raise ArithmeticError(f"MuJoCo: {mujoco.mju_warningText(int(kind), int(base.data.warning[kind].lastinfo))}")
        state = np.empty(mujoco.mj_stateSize(base.model, mujoco.mjtState.mjSTATE_PHYSICS))
        mujoco.mj_getState(base.model, base.data, state, mujoco.mjtState.mjSTATE_PHYSICS)
        return state

    def write(self, env: Env, state: Array) -> None:
        """Set the physical state, and bring everything that follows from it up to date, as the environments themselves do."""
        import mujoco  # noqa: PLC0415

        base = env.unwrapped
        mujoco.mj_setState(base.model, base.data, state, mujoco.mjtState.mjSTATE_PHYSICS)
        for kind in _rejections(mujoco):
            base.data.warning[kind].number = 0
        base.data.qacc_warmstart[:] = 0.0  # or the last digits of a step would depend on the one before
        mujoco.mj_forward(base.model, base.data)


def _rejections(mujoco: Any) -> Sequence[Any]:
    """Return the engine's warnings of a state that is not finite or too large."""
    return mujoco.mjtWarning.mjWARN_BADQPOS, mujoco.mjtWarning.mjWARN_BADQVEL, mujoco.mjtWarning.mjWARN_BADQACC


@dataclass(frozen=True)
class AttributeAccess:
    """The attribute ``state`` of an environment, set in float64 even where a step leaves float32.

    Args:
        order: Place in the attribute of each entry of [q, v].
        cleared: Attributes that remember earlier steps, set to None.
    """

    order: tuple[int, ...]
    cleared: tuple[str, ...] = ()

    def read(self, env: Env) -> Array:
        """Return the attribute, positions first."""
        return np.asarray(env.unwrapped.state, dtype=np.float64)[list(self.order)]

    def write(self, env: Env, state: Array) -> None:
        """Set the attribute."""
        own = np.empty(len(self.order))
        own[list(self.order)] = state
        env.unwrapped.state = own
        for name in self.cleared:
            setattr(env.unwrapped, name, None)


@dataclass(frozen=True)
class GivenAccess:
    """Functions of the user's.

    Args:
        get: From an environment, wrapped as it was given, to its state.
        put: Sets the state of an environment.
    """

    get: Callable[[Env], Any]
    put: Callable[[Env, Array], object]

    def read(self, env: Env) -> Array:
        """Return what the user's function returns."""
        return np.asarray(self.get(env), dtype=np.float64)

    def write(self, env: Env, state: Array) -> None:
        """Call the user's function."""
        self.put(env, state)


@dataclass(frozen=True, kw_only=True)
class Known:
    """A classic-control environment.

    Args:
        position: Names of q.
        velocity: Names of v.
        units: Of both, in this order.
        action: Name and unit of the action.
        access: How to get at them.
        clock: Attribute with the seconds per step; empty for environments that know no time, which take 1.
    """

    position: tuple[str, ...]
    velocity: tuple[str, ...]
    units: tuple[str, ...]
    action: tuple[str, str]
    access: AttributeAccess
    clock: str = ""


KNOWN = {
    "CartPoleEnv": Known(position=("cart", "pole"), velocity=("cart.vel", "pole.vel"), units=("m", "rad", "m/s", "rad/s"),
                         action=("push", "1"), access=AttributeAccess((0, 2, 1, 3), ("steps_beyond_terminated",)), clock="tau"),
    "PendulumEnv": Known(position=("angle",), velocity=("angle.vel",), units=("rad", "rad/s"), action=("torque", "N·m"),
                         access=AttributeAccess((0, 1)), clock="dt"),
    "AcrobotEnv": Known(position=("shoulder", "elbow"), velocity=("shoulder.vel", "elbow.vel"), units=("rad", "rad", "rad/s", "rad/s"),
                        action=("torque", "1"), access=AttributeAccess((0, 1, 2, 3)), clock="dt"),
    "MountainCarEnv": Known(position=("position",), velocity=("position.vel",), units=("m", "m/s"), action=("push", "1"),
                            access=AttributeAccess((0, 1))),
    "Continuous_MountainCarEnv": Known(position=("position",), velocity=("position.vel",), units=("m", "m/s"), action=("push", "1"),
                                       access=AttributeAccess((0, 1))),
}
"""Gymnasium's classic control by class; a subclass counts as its parent."""


def make_env(name: str, options: Mapping[str, Any]) -> Env:
    """Make an environment by its identifier.

    Raises:
        ModelError: if there is none, or something that it needs is missing, with Gymnasium's message.
    """
    import gymnasium  # noqa: PLC0415  # optional

    try:
        return gymnasium.make(name, **options)
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        raise ModelError(f"environment {name!r} cannot be made: {error}") from error


def find_access(env: Env, nx: int | None) -> Access:
    """Return how to get at the state of an environment.

    Args:
        env: The environment.
        nx: Size of its state, where the caller knows it.

    Raises:
        ModelError: if nobody knows.
    """
    if is_mujoco(env):
        return MujocoAccess()
    classic = known(env)
    if classic is not None:
        return classic.access
    if nx is not None and np.shape(getattr(env.unwrapped, "state", ())) == (nx,):
        return AttributeAccess(tuple(range(nx)))
    raise ModelError(f"the state of {name_of(env)} cannot be set without help: expected get_state and set_state with a space that names "
                     f"what they take, or a space that names the entries [q, v, a] of an attribute `state`")


def name_of(env: Env) -> str:
    """Return what to call an environment in a message."""
    return str(env.spec.id) if getattr(env, "spec", None) is not None else type(env.unwrapped).__name__


def sample_action(env: Env, seed: int) -> Array:
    """Return a random action, shape [nu], without touching the random numbers of the environment."""
    space = copy.deepcopy(env.action_space)
    space.seed(seed)
    return np.asarray(space.sample(), dtype=np.float64).reshape(-1)


def known(env: Env) -> Known | None:
    """Return what is known of a classic-control environment, None of any other."""
    return next((KNOWN[c.__name__] for c in type(env.unwrapped).__mro__ if c.__name__ in KNOWN), None)


def is_mujoco(env: Env) -> bool:
    """Tell whether an environment steps a MuJoCo model of its own."""
    base = env.unwrapped
    return type(getattr(base, "model", None)).__name__ == "MjModel" and type(getattr(base, "data", None)).__name__ == "MjData"


class EnvStep:
    """A step of an environment as a function of its state.

    The environment's own ``step`` is called, below its wrappers: actions go through those that map them (rescaled, clipped,
    made discrete), while time limits, checks and resets, which know nothing of a state that is set, are left out.

    Args:
        make: Makes the environment.
        access: How to set and read its state.
        put_parameters: Sets parameters of the environment by name.

    Raises:
        ModelError: if the environment cannot be made, or a wrapper does more to a step than it may.
    """

    def __init__(self, make: Callable[[], Env], access: Access,
                 put_parameters: Callable[[Env, Mapping[str, float]], object] | None = None) -> None:
        self.env, self.access, self.put_parameters = make(), access, put_parameters
        self.maps = action_maps(self.env)
        self.env.reset(seed=0)
        space = self.env.action_space
        if type(space).__name__ not in ("Box", "Discrete"):
            raise ModelError(f"{name_of(self.env)}: expected one vector or one number as action, its action space is {space}")
        self.discrete = type(space).__name__ == "Discrete"
        self.shape = () if self.discrete else tuple(space.shape)

    def __call__(self, state: Array, action: Array, parameters: Mapping[str, float] | None = None) -> Array:
        """Set the state, step, and return the next state."""
        if parameters and self.put_parameters is not None:
            self.put_parameters(self.env, parameters)
        self.access.write(self.env, state)
        command: Any = round(float(action[0])) if self.discrete else action.reshape(self.shape)
        for translate in self.maps:
            command = translate(command)
        self.env.unwrapped.step(command)
        return self.access.read(self.env)


def put_attributes(env: Env, values: Mapping[str, float]) -> None:
    """Set parameters that are attributes of the unwrapped environment."""
    for name, value in values.items():
        setattr(env.unwrapped, name, value)


def action_maps(env: Env) -> Sequence[Callable[[Any], Any]]:
    """Return what an action goes through before it reaches the environment itself, in order.

    Raises:
        ModelError: if a wrapper does more to a step than map its action.
    """
    import gymnasium  # noqa: PLC0415  # optional

    maps = []
    while env is not env.unwrapped:
        kind = type(env)
        if isinstance(env, gymnasium.ActionWrapper) and kind.__name__ not in MOVES:
            maps.append(env.action)
        elif any(c.__name__ in MOVES for c in kind.__mro__) or not _looks_on(env, gymnasium):
            raise ModelError(f"{kind.__name__} may change more of a step than its action, which setting the state cannot follow: give the "
                             f"environment without it, or wrap a step function of your own in a BlackBox")
        env = env.env
    return maps


def _looks_on(env: Env, gymnasium: Any) -> bool:
    kind = type(env)
    return (isinstance(env, gymnasium.ObservationWrapper | gymnasium.RewardWrapper) or kind.step is gymnasium.Wrapper.step
            or kind.__module__.startswith("gymnasium.wrappers."))
