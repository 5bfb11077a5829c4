"""What model-free learners of stable-baselines3 need in a model: ``ModelEnv`` as their vector environment, and transitions of the plant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from residual_mbrl.model_env import ModelEnv

try:
    from stable_baselines3 import SAC
    from stable_baselines3.common.buffers import ReplayBuffer
    from stable_baselines3.common.type_aliases import ReplayBufferSamples
    from stable_baselines3.common.vec_env import VecEnv
    from stable_baselines3.sac.policies import Actor, SACPolicy
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("learners of stable-baselines3 need: pip install residual-mbrl[rl]", name="stable_baselines3") from error

__all__ = ["SAC", "BaselinesEnv", "MixedReplay", "TanhActorPolicy"]


class BaselinesEnv(VecEnv):
    """A ``ModelEnv`` whose episodes begin anew in the step in which they end, as stable-baselines3 wants it.

    Args:
        env: The worlds.
    """

    def __init__(self, env: ModelEnv) -> None:
        self.env, self._actions, self._seed = env, np.zeros(0), None
        self.render_mode = None
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> Any:
        """Begin an episode in each world."""
        self.reset_infos = [{} for _ in range(self.num_envs)]
        seed = self._seeds[0]
        self._reset_seeds()
        return self.env.reset(seed=None if seed is None else int(seed))[0]

    def step_async(self, actions: Any) -> None:
        """Take the actions of the next step."""
        self._actions = np.asarray(actions)

    def step_wait(self) -> Any:
        """Advance all worlds; those that end begin anew, and their last observation stands in ``infos``."""
        shown, reward, terminated, truncated, _ = self.env.step(self._actions)
        over = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if over.any():
            last = shown
            shown = self.env.reset(options={"reset_mask": over})[0]
            for k in np.flatnonzero(over):
                infos[k] = {"terminal_observation": last[k], "TimeLimit.truncated": bool(truncated[k])}
        return shown, reward.astype(np.float32), over, infos

    def close(self) -> None:
        """Do nothing: there is nothing to close."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return an attribute once for each world."""
        return [getattr(self.env, attr_name, None) for _ in self._indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refuse: all worlds are one object."""
        raise NotImplementedError("worlds of a model have no attributes of their own")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Refuse: all worlds are one object."""
        raise NotImplementedError("worlds of a model have no methods of their own")

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Return False for each world."""
        return [False for _ in self._indices(indices)]

    def _indices(self, indices: Any) -> Sequence[int]:
        found: Sequence[int] = list(self._get_indices(indices))
        return found


class TanhActorPolicy(SACPolicy):
    """SAC's networks with tanh units in the actor, as policies have them; its values have rectified ones."""

    def make_actor(self, features_extractor: Any = None) -> Actor:
        """Return an actor."""
        self.actor_kwargs["activation_fn"] = nn.Tanh
        return super().make_actor(features_extractor)


class MixedReplay(ReplayBuffer):
    """Transitions of a learner's environment, and in every batch a share of given ones, such as those of the plant.

    Args:
        sizes: As of ``ReplayBuffer``.
        given: Observations [N, k], actions [N, nu] in [-1, 1], next observations [N, k], whether the task was over [N] and rewards [N].
        share: Of a batch, in [0, 1).
        options: As of ``ReplayBuffer``.
    """

    def __init__(self, *sizes: Any, given: Sequence[ArrayLike], share: float, **options: Any) -> None:
        super().__init__(*sizes, **options)
        columns = [torch.as_tensor(np.asarray(x, np.float32), device=self.device) for x in given]
        self._given = [x if x.ndim > 1 else x[:, None] for x in columns]
        self._share = share

    def sample(self, batch_size: int, env: Any = None) -> ReplayBufferSamples:
        """Draw a batch: the given ones stand at its end."""
        count = round(self._share * batch_size)
        own = super().sample(batch_size - count, env)
        rows = np.random.randint(len(self._given[0]), size=count)  # the generator that the others are drawn by
        return ReplayBufferSamples(*(torch.cat([x, y[rows]]) for x, y in zip(own[:5], self._given, strict=True)))
