"""What runs a fused rollout on a device: the CPU's kernels, or on CUDA those with a world in each thread.

Models and equations are the same; see ``kernels.cuda``. On a CUDA device nothing waits for its results: a first state, an action or a
weight that is not finite makes states that are not, where the CPU raises. The CUDA kernels have been compiled for GPUs and run thread
by thread on a CPU, but not yet on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

if TYPE_CHECKING:
    from residual_mbrl.kernels import cuda_launch
    from residual_mbrl.kernels.launch import Engine, Plan

_engines: WeakKeyDictionary[Engine, dict[torch.device, cuda_launch.ThreadEngine]] = WeakKeyDictionary()


def plan_on(built: Engine, like: Tensor, horizon: int, members: int, schedule: str | None = None) -> Plan | cuda_launch.Plan:
    """Return what runs as many worlds as a tensor has rows, on its device; the schedule is the CPU's."""
    if like.device.type == "cpu":
        return built.plan(like.shape[0], horizon, torch.get_num_threads(), schedule, members=members)
    return thread_engine(built, like.device).plan(like.shape[0], horizon, members)


def thread_engine(built: Engine, device: torch.device) -> cuda_launch.ThreadEngine:
    """Return the engine of the same model with a world in each thread, for a CUDA device, or for the CPU in tests."""
    from residual_mbrl.kernels.cuda_launch import ThreadEngine  # noqa: PLC0415  # Warp takes half a second to load

    engines = _engines.setdefault(built, {})
    if device not in engines:
        engines[device] = ThreadEngine(built.system, built.networks, built._squashed, built.real, device)
    return engines[device]


def flat_of(weights: Sequence[Tensor], members: int, like: Tensor) -> Tensor:
    """Return all weights of each member in one row, in the precision of a tensor and on its device."""
    if not weights:
        return like.new_zeros(members, 1)
    return torch.cat([w.detach().reshape(members, -1) for w in weights], -1).to(like)
