"""A policy in the loop within one kernel: each step asks a network for the action, and gradients reach the policy's weights.

The networks of the policy and of a value at the end are shared by all worlds; the model's may differ by member, so that each world of an
ensemble meets a member of its own. Rows of the policy's units lie apart from the model's, whose weights learn nothing here.
"""

from __future__ import annotations

from typing import Any

from residual_mbrl.kernels.block_text import BACK
from residual_mbrl.kernels.closed_loop_text import COST, GRADIENT, LOOP, LOOP_FIELDS, WORTH, WORTHLESS, Head, head_text
from residual_mbrl.kernels.lanes import lane_count
from residual_mbrl.kernels.launch import CHUNK_BYTES, SPAN, Engine, Plan, aligned_zeros, kept_ints
from residual_mbrl.kernels.mlp import Network, Schedule, lay_out
from residual_mbrl.kernels.native import Kernel
from residual_mbrl.kernels.rollout import assemble, model_text
from residual_mbrl.kernels.system import Cost, System, cost_text

FULL = 15
"""Registers of worlds from which on half of a pair may go unused."""
KINDS = {"policy_cost": COST, "policy_gradient": GRADIENT}


def closed_loop_kernel(kind: str, system: System, policy: Head, value: Head | None, data: int, cost: Cost, schedule: Schedule) -> Kernel:
    """Return the kernel that writes each world's cost under a policy, for "policy_gradient" with gradients of ``Σ seeds · costs``."""
    sizes = data, system.nx, system.np
    heads = head_text("policy", policy, *sizes) + (head_text("value", value, *sizes) + WORTH if value else WORTHLESS)
    text = model_text(system, schedule) + BACK + cost_text(cost, system) + f"enum {{ ND = {data} }};" + heads + LOOP
    return assemble(schedule, text, KINDS[kind], LOOP_FIELDS)


class ClosedLoopPlan(Plan):
    """What one shape of a rollout under a policy needs."""

    fields = LOOP_FIELDS

    def __init__(self, engine: ClosedLoopEngine, schedule: Schedule, network: Network, **shape: int) -> None:
        super().__init__(engine, schedule, network, **shape)
        self._heads = {"policy": engine.policy, **({"value": engine.value} if engine.value else {})}
        self._networks = {name: lay_out([head.sizes], schedule) for name, head in self._heads.items()}
        self._learned, self._learned_members = self._networks["policy"], 1
        self._own = {n: aligned_zeros(max(len(net.packing), 16), dtype=self.real) for n, net in self._networks.items()}
        self._own_index = {n: kept_ints(net.packing) for n, net in self._networks.items()}
        self._packs = {n: engine.pack.table() for n in self._networks}
        self._rows = {n: (net.slots + (64 if schedule.wide else 4)) * (1 if schedule.wide else schedule.lanes)
                      for n, net in self._networks.items()}
        steps = CHUNK_BYTES * schedule.registers // ((self.row + self._rows["policy"]) * self.bytes * SPAN)
        self.chunk = self._shared["chunk"] = min(self.horizon, max(1, steps) * SPAN)
        for n, net in self._networks.items():
            given = {"layers": kept_ints(net.layers), "inputs": kept_ints(net.inputs), "outputs": kept_ints(net.outputs),
                     "weights": self._own[n]}
            self._shared |= {f"{n}_{key}": self._hold(array) for key, array in given.items()}
            self._shared |= {f"{n}_nets": len(net.layers), f"{n}_row": self._rows[n]}
        self._shared |= {"policy_flat_size": len(self._learned.gathering), "gathering": self._hold(kept_ints(self._learned.gathering))}

    def run_policy(self, kind: str, heads: dict[str, int], **given: Any) -> int:
        """Run a kernel with the flat weights of the heads at these addresses; the rest as ``run`` has it."""
        with self.lock:
            for name, flat in heads.items():
                own, net = self._own[name], self._networks[name]
                self._packs[name]([flat, self._own_index[name].ctypes.data, own.ctypes.data, own.size, len(net.gathering), 1])
            return self.run(kind, **given)

    def _scratch_size(self, kind: str, problem: Any) -> int:
        own, end = self._rows["policy"], self._rows.get("value", 0)
        if kind == "policy_cost":
            return self.row + max(own, end)
        system, lanes = self._engine.system, self.schedule.world_lanes
        numbers = self.chunk * (system.nx + system.nu) + -(-self.horizon // self.chunk) * system.nx
        return self.row * (1 + self.chunk) + own * (self.span + self.chunk) + 2 * end + numbers * lanes

    def _weights(self) -> int:
        return len(self.network.packing) + sum(len(net.packing) for net in self._networks.values())


class ClosedLoopEngine(Engine):
    """A model under a policy, ready to run at any shape.

    Args:
        model: The engine of the same model under given actions.
        policy: From states to actions.
        value: From last states to their cost-to-go; none where missing.
        data: Numbers of each step that the heads may look at besides, at least 1.
    """

    def __init__(self, model: Engine, policy: Head, value: Head | None, data: int) -> None:
        super().__init__(model.system, model.networks, model._squashed, model.real)
        self.policy, self.value, self.data = policy, value, data

    def _schedule_for(self, worlds: int, workers: int) -> str:
        """Two registers a slot where they are full, or nearly so, and every thread has blocks enough."""
        name, lanes = super()._schedule_for(worlds, workers), lane_count(self.real)
        blocks = -(-worlds // lanes)
        return "pairs" if name == "lanes" and blocks >= 2 * workers and (blocks % 2 == 0 or blocks >= FULL) else name

    def _made(self, schedule: Schedule, network: Network, **shape: int) -> Plan:
        return ClosedLoopPlan(self, schedule, network, **shape)

    def kernel(self, kind: str, schedule: Schedule, cost: Cost | None = None) -> Kernel:
        """Return a kernel, built when it is first asked for."""
        if cost is None:
            raise ValueError("a rollout under a policy has a cost")
        key = (kind, schedule.name, cost.key)
        if key not in self._kernels:
            self._kernels[key] = closed_loop_kernel(kind, self.system, self.policy, self.value, self.data, cost, schedule)
        return self._kernels[key]

