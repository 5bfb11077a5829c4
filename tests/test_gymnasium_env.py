"""Gymnasium environments as baselines: the physics of their own step from any state, bitwise, and a refusal where that cannot be had."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from residual_mbrl.baselines import Parameter, Parameters
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.errors import ModelError
from residual_mbrl.physics.gymnasium_env import GymnasiumEnv
from residual_mbrl.physics.mujoco_simulator import MujocoSimulator
from residual_mbrl.rollouts import rollout
from residual_mbrl.spaces import StateSpace
from residual_mbrl.status import StepStatus

gymnasium = pytest.importorskip("gymnasium")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:gymnasium", "ignore:.*(out of date|deprecated).*:UserWarning")
CLASSIC = ("CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0")
MUJOCO = [pytest.param(n, marks=pytest.mark.skipif(find_spec("imageio") is None, reason="needs gymnasium[mujoco]"))
          for n in ("HalfCheetah-v5", "Hopper-v5", "Ant-v5", "Humanoid-v5", "InvertedDoublePendulum-v5")]
ORDERS = {"CartPole-v1": [0, 2, 1, 3]}
SPACE = StateSpace(position=("q",), velocity=("v",), action=("u",))


class Oscillator(gymnasium.Env[Any, Any]):
    """A spring and a mass whose step depends on what a test lets it depend on."""

    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    dt = 0.05

    def __init__(self, noise: float = 0.0, memory: float = 0.0, fails: bool = False) -> None:
        self.x, self.stiffness = np.zeros(2), 4.0
        self.noise, self.memory, self.fails, self.steps = noise, memory, fails, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x = self.np_random.normal(size=2)
        return self.x[:1].astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        if self.fails and action[0] > 5:
            raise ArithmeticError("the spring broke")
        v = self.x[1] + self.dt * (action[0] - self.stiffness * self.x[0] + self.noise * self.np_random.normal() + self.memory * self.steps)
        self.x = np.array([self.x[0] + self.dt * v, v])
        return self.x[:1].astype(np.float32), 0.0, abs(self.x[0]) > 0.1, False, {}


class Levers(Oscillator):
    action_space = gymnasium.spaces.MultiDiscrete([2, 3])


class Timeless(Oscillator):
    dt = property(lambda self: None)  # type: ignore[assignment]

    def step(self, action: Any) -> Any:
        self.x = 0.9 * self.x
        return self.x[:1].astype(np.float32), 0.0, False, False, {}


def get(env: Any) -> np.ndarray:
    return env.unwrapped.x


def put(env: Any, state: np.ndarray) -> None:
    env.unwrapped.x = state


oscillator = partial(GymnasiumEnv, space=SPACE, get_state=get, set_state=put)


def actions_of(env: Any, count: int) -> torch.Tensor:
    env.action_space.seed(0)
    return torch.from_numpy(np.stack([np.asarray(env.action_space.sample(), dtype=np.float64).reshape(-1) for _ in range(count)]))


@pytest.mark.parametrize("name", CLASSIC)
def test_classic_control_is_stepped_as_it_steps_itself(name: str) -> None:
    """Along the environment's own trajectory, every step from its state gives its next state, bitwise or to its float32."""
    box, env = GymnasiumEnv(name), gymnasium.make(name).unwrapped
    env.reset(seed=1)
    order = ORDERS.get(name, list(range(box.space.nx)))
    for action in actions_of(env, 12):
        before = torch.from_numpy(np.asarray(env.state, dtype=np.float64)[order])
        env.step(action.numpy() if isinstance(env.action_space, gymnasium.spaces.Box) else int(action))
        single = np.asarray(env.state).dtype == np.float32
        np.testing.assert_allclose(box.step(before, action), np.asarray(env.state)[order], rtol=1e-6 if single else 0, atol=0)


@pytest.mark.parametrize("name", MUJOCO)
def test_mujoco_environments_are_stepped_as_they_step_themselves(name: str) -> None:
    """From the same state, its warm start included, bitwise what env.step makes; quaternions, sizes and dt are found out."""
    import mujoco

    box, env = GymnasiumEnv(name), gymnasium.make(name).unwrapped
    env.reset(seed=1)
    assert (box.dt, box.space.nq, box.space.nv) == (pytest.approx(env.dt), env.model.nq, env.model.nv)
    for action in actions_of(env, 5):
        before = np.concatenate([env.data.qpos, env.data.qvel, env.data.act])
        found = box.step(torch.from_numpy(before), action).numpy()
        env.data.qacc_warmstart[:] = 0.0
        mujoco.mj_forward(env.model, env.data)
        env.step(action.numpy())
        assert found.tolist() == [*env.data.qpos, *env.data.qvel, *env.data.act]


@pytest.mark.parametrize("name", MUJOCO)
def test_the_same_physics_without_python(name: str) -> None:
    """as_mujoco steps the environment's model natively to the same states."""
    box = GymnasiumEnv(name)
    native = box.as_mujoco()
    assert isinstance(native, MujocoSimulator)
    states, actions = box.initial_state(0).expand(4, -1), actions_of(gymnasium.make(name), 4)
    torch.testing.assert_close(native.step(states, actions), box.step(states, actions), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", MUJOCO[:2])
def test_a_state_that_the_engine_rejects(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where MuJoCo would start from its reference pose without a word, the world fails; the next step is not affected."""
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its log there
    box = GymnasiumEnv(name)
    state = box.initial_state(0).repeat(2, 1)
    state[1, -1] = 1e11
    action = torch.zeros(2, box.space.nu, dtype=torch.float64)
    after = box.step(state, action)
    assert box.status == [StepStatus.OK, StepStatus.RAISED]
    assert "QVEL" in box.failures[0].message
    assert after[1].isnan().all()
    assert torch.equal(box.step(state[0], action[0]), after[0])


@pytest.mark.parametrize("name", MUJOCO[:1])
def test_as_mujoco_refuses_what_it_would_lose(name: str) -> None:
    """An environment that scales its actions, or has no MuJoCo model, is not replaced by its model alone."""
    scaled = GymnasiumEnv(lambda: gymnasium.wrappers.RescaleAction(gymnasium.make(name), np.float32(-0.5), np.float32(0.5)))
    with pytest.raises(ModelError, match="does more than mj_step"):
        scaled.as_mujoco()
    with pytest.raises(ModelError, match="steps no MuJoCo model"):
        GymnasiumEnv("Pendulum-v1").as_mujoco()


def test_gradients_on_the_manifold() -> None:
    """Pendulum: differences against the derivative of its equations, g = 10, m = l = 1."""
    box = GymnasiumEnv("Pendulum-v1")
    state, action = torch.tensor([0.4, -0.3], dtype=torch.float64), torch.tensor([0.7], dtype=torch.float64)
    found = box.jacobian(state, action)
    slope, dt = 15.0 * np.cos(0.4), 0.05
    np.testing.assert_allclose(found.state, [[1 + dt**2 * slope, dt], [dt * slope, 1]], rtol=1e-7)
    np.testing.assert_allclose(found.action, [[3 * dt**2], [3 * dt]], rtol=1e-7)


def test_a_state_in_float32_is_perturbed_more() -> None:
    """An environment that rounds its state gets differences that the rounding does not drown."""
    box = GymnasiumEnv("MountainCarContinuous-v0")
    state, action = torch.tensor([-0.5, 0.01], dtype=torch.float64), torch.tensor([0.2], dtype=torch.float64)
    found = box.jacobian(state, action)
    slope = 3 * 0.0025 * np.sin(3 * -0.5)
    np.testing.assert_allclose(found.state, [[1 + slope, 1], [slope, 1]], atol=1e-3)


def test_past_the_end_of_an_episode() -> None:
    """Termination and time limits belong to the task: the physics goes on."""
    box = GymnasiumEnv("CartPole-v1")
    states = rollout(ResidualDynamics(box), box.initial_state(0), torch.ones(600, 1, dtype=torch.float64))
    assert torch.isfinite(states).all()
    assert states[-1, 0] > 10


@pytest.mark.parametrize("workers", [0, 2])
def test_parameters_are_attributes_or_what_is_set(workers: int) -> None:
    """A mass per world, set before each step; through a function of the user's where attributes do not do."""
    mass = Parameter(name="m", nominal=1.0, lower=0.1, upper=5.0, unit="kg")
    box = GymnasiumEnv("Pendulum-v1", parameters=Parameters(mass), workers=workers)
    state, action = torch.zeros(2, 2, dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64)
    speeds = box.step(state, action, None, {"m": torch.tensor([1.0, 2.0], dtype=torch.float64)})[:, 1]
    torch.testing.assert_close(speeds, torch.tensor([0.15, 0.075], dtype=torch.float64))

    def soften(env: Any, values: Mapping[str, float]) -> None:
        env.unwrapped.stiffness = values["softness"] ** -1

    soft = oscillator(Oscillator, parameters=Parameters(Parameter(name="softness", nominal=0.25, lower=0.1, upper=1.0)),
                      set_parameters=soften)
    speed = soft.step(torch.tensor([1.0, 0.0]).double(), torch.zeros(1).double(), None, {"softness": torch.tensor(0.5).double()})[1]
    assert float(speed) == pytest.approx(-0.05 * 2.0)
    with pytest.raises(ModelError, match=r"no attributes \['softness'\]; expected set_parameters"):
        oscillator(Oscillator, parameters=soft.parameters)


@pytest.mark.parametrize(("mode", "make"), [("threads", "Pendulum-v1"), ("processes", "Pendulum-v1"),
                                            ("threads", lambda: gymnasium.make("Pendulum-v1"))])
def test_workers_have_environments_of_their_own(mode: Any, make: Any) -> None:
    """Side by side in threads and processes: the states that one environment makes."""
    state = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    action = 0.1 * state[:, :1]
    with GymnasiumEnv(make, workers=2, mode=mode) as box:
        assert torch.equal(box.step(state, action), GymnasiumEnv("Pendulum-v1").step(state, action))


WRAPPERS: dict[str, tuple[Callable[[Any], Any], float]] = {
    "clipped": (gymnasium.wrappers.ClipAction, 1.0),
    "rescaled": (lambda e: gymnasium.wrappers.RescaleAction(e, np.float32(-10), np.float32(10)), 0.3),
    "limited": (lambda e: gymnasium.wrappers.TimeLimit(e, 2), 3.0),
    "reset": (gymnasium.wrappers.Autoreset, 3.0),
    "stacked": (lambda e: gymnasium.wrappers.TransformReward(gymnasium.wrappers.FrameStackObservation(e, 3), lambda r: r), 3.0),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_map_actions_and_nothing_else(name: str) -> None:
    """Actions are clipped or rescaled as the wrapper does; limits, resets and observations leave the physics alone."""
    wrap, force = WRAPPERS[name]
    box = oscillator(lambda: wrap(Oscillator()))
    for _ in range(4):
        after = box.step(torch.tensor([1.0, 0.0]).double(), torch.tensor([3.0]).double())
        assert float(after[1]) == pytest.approx(0.05 * (force - 4.0))


class Slowed(gymnasium.Wrapper[Any, Any, Any, Any]):
    def step(self, action: Any) -> Any:
        self.env.step(action)
        return self.env.step(action)


@pytest.mark.parametrize("wrap", [Slowed, lambda e: gymnasium.wrappers.StickyAction(e, 0.5),
                                  lambda e: gymnasium.wrappers.RepeatAction(e, 2), gymnasium.wrappers.MaxAndSkipObservation])
def test_wrappers_that_change_the_physics_are_refused(wrap: Callable[[Any], Any]) -> None:
    """A wrapper that repeats or keeps actions is named."""
    with pytest.raises(ModelError, match="may change more of a step than its action"):
        oscillator(lambda: wrap(Oscillator()))


def test_an_environment_as_it_is() -> None:
    """One environment, with a state attribute that the space names."""

    class Plain(Oscillator):
        @property
        def state(self) -> np.ndarray:
            return self.x

        @state.setter
        def state(self, state: np.ndarray) -> None:
            self.x = state

    box = GymnasiumEnv(Plain(), space=SPACE, dt=0.1)
    assert box.dt == 0.1
    torch.testing.assert_close(box.step(torch.zeros(2).double(), torch.ones(1).double()), torch.tensor([0.0025, 0.05]).double())
    with pytest.raises(ValueError, match="expected its identifier, or a function that makes it"):
        GymnasiumEnv(Plain(), space=SPACE, workers=2)


def test_an_exception_is_isolated() -> None:
    """One world's environment raises: its row is NaN, the traceback is kept, the others go on."""
    box = oscillator(partial(Oscillator, fails=True))
    after = box.step(torch.zeros(3, 2).double(), torch.tensor([[0.0], [9.0], [1.0]]).double())
    assert after[:, 0].isnan().tolist() == [False, True, False]
    assert box.status == [StepStatus.OK, StepStatus.RAISED, StepStatus.OK]
    assert "the spring broke" in box.failures[0].traceback


@pytest.mark.parametrize(("build", "message"), [
    (lambda: GymnasiumEnv("NoSuchEnvironment-v0"), "'NoSuchEnvironment-v0' cannot be made"),
    (lambda: GymnasiumEnv("Pendulum-v1", options={"lenght": 3}), "'Pendulum-v1' cannot be made.*lenght"),
    (lambda: GymnasiumEnv(Oscillator), "state of Oscillator cannot be set without help"),
    (lambda: GymnasiumEnv(Oscillator, space=SPACE), "state of Oscillator cannot be set without help"),
    (lambda: GymnasiumEnv(Oscillator, get_state=get, set_state=put), "expected a space that names state and action of Oscillator"),
    (lambda: oscillator(partial(Oscillator, noise=1.0)), r"differ in \['q', 'v'\]: it keeps something else"),
    (lambda: oscillator(partial(Oscillator, memory=1.0)), r"differ in \['q', 'v'\]: it keeps something else"),
    (lambda: GymnasiumEnv(Oscillator, space=SPACE, get_state=get, set_state=lambda e, s: None), "was set to .* and read as"),
    (lambda: oscillator(Oscillator, space=StateSpace(position=("q",), velocity=("v",), action=("u", "w"))), r"expected as many .* 2 and 2"),
    (lambda: oscillator(lambda: gymnasium.make("Blackjack-v1")), "Blackjack-v1 cannot be set, stepped and read: AttributeError"),
    (lambda: oscillator(lambda: gymnasium.make("Pendulum-v1", disable_env_checker=True)), "Pendulum-v1 cannot be set.*no attribute 'x'"),
    (lambda: oscillator(Timeless), "Timeless has no dt; expected dt"),
    (lambda: oscillator(Levers), r"expected one vector or one number as action, its action space is MultiDiscrete"),
])
def test_what_cannot_be_wrapped(build: Callable[[], GymnasiumEnv], message: str) -> None:
    """Unknown, unsettable, random and remembering environments are refused with what is expected."""
    with pytest.raises(ModelError, match=message):
        build()


@pytest.mark.parametrize(("build", "message"), [
    (lambda: GymnasiumEnv(3), "received 3"),
    (lambda: GymnasiumEnv(Oscillator, space=SPACE, get_state=get), "get_state and set_state together"),
    (lambda: GymnasiumEnv(Oscillator, options={"noise": 1}), "expected an identifier with them"),
])
def test_wrong_arguments(build: Callable[[], GymnasiumEnv], message: str) -> None:
    """A wrong argument is named."""
    with pytest.raises(ValueError, match=message):
        build()


def test_gymnasium_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says which extra to install."""
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ModelError, match=r"pip install residual-mbrl\[gym\]"):
        GymnasiumEnv("Pendulum-v1")


def test_description_builds_it_again() -> None:
    """What an artefact keeps is enough where an identifier was given."""
    box = GymnasiumEnv("Pendulum-v1", options={"g": 5.0})
    again = GymnasiumEnv(parameters=Parameters(), **box.describe())
    state, action = torch.tensor([1.0, 0.0]).double(), torch.zeros(1).double()
    assert torch.equal(again.step(state, action), box.step(state, action))


def test_a_pickled_copy_makes_its_own_environment() -> None:
    """What goes to another process, to fit a fold there, steps and resets as the original does."""
    box = GymnasiumEnv("Pendulum-v1", options={"g": 5.0})
    copy = pickle.loads(pickle.dumps(box))
    assert torch.equal(copy.initial_state(3), box.initial_state(3))
    action = torch.ones(1).double()
    assert torch.equal(copy.step(box.initial_state(3), action), box.step(box.initial_state(3), action))
