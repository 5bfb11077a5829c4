"""Running the kernels: what is laid out once a shape, and how work is shared out.

Each shape keeps its scratch and its recorded launches, of which a call fills in the addresses. Blocks of worlds are taken in turn by
torch's own threads, so that a core that others use holds up little; see ``native.parallel_region``.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from threading import Lock, RLock
from time import perf_counter
from typing import Any

import numpy as np

from residual_mbrl.kernels import ilqr, rollout
from residual_mbrl.kernels.block_text import FIELDS, PLACES
from residual_mbrl.kernels.lanes import lane_count
from residual_mbrl.kernels.mlp import Network, Schedule, lay_out
from residual_mbrl.kernels.native import REALS, Call, Kernel, parallel_region
from residual_mbrl.kernels.system import Cost, System

KEPT_BYTES = 16 * 2**20
"""Units of the forward sweep are kept for the reverse one up to this size, about what caches hold; beyond, they are computed again."""
CHUNK_BYTES = 640 * 2**10
"""Units of so many steps stay in the second cache until the reverse sweep has used them."""
SPAN = 32
"""Steps whose deltas the weight gradients take up at once."""
WIDE_WORLDS = 4
"""Batches up to this size run with a layer's units in the lanes, larger ones with worlds."""
PIECES = 2
"""Pieces of a batch for each thread. Each has weight gradients of its own, which are summed in order: the result does not depend on
which thread took which piece, and is repeatable to the last bit."""
PATIENCE = 1.2
"""Threads must finish within this fraction of a single one's time, or the next launches of that kind go without them for a while."""
LONGEST_PAUSE = 256
"""Launches at most until threads are tried again."""
THREAD_WORK = 60e-6
"""Estimated seconds of a sweep below which a second thread costs more than it gives."""
SHAPES = 32
"""Shapes whose launches are remembered."""
LEARNING = ("reverse", "cost_gradient", "policy_gradient")
"""Kernels that may sum up gradients of weights."""
MULTIPLY_ADDS = 5e10
"""A core's multiply-adds a second, about, for the estimate."""


FLAT, STATUS, THREADS, REGION, FINISH = (PLACES[n] for n in ("flat", "status", "threads", "region", "finish"))


class Kept:
    """Units of a forward sweep, on loan from their plan until this object goes."""

    def __init__(self, pool: deque[np.ndarray], array: np.ndarray) -> None:
        self.array, self._pool = array, pool

    @property
    def address(self) -> int:
        """Where the units are."""
        return int(self.array.ctypes.data)

    def __del__(self) -> None:
        """Give the memory back for the next call of this shape."""
        self._pool.append(self.array)


class Plan:
    """Everything that one shape of a rollout needs: layout, scratch, packed weights, and the table of arguments of each kernel."""

    fields = FIELDS
    """The entries of a kernel's table."""
    compares = True
    """A launch sees whether weights have changed since they were packed, and whether first states and actions are finite."""

    def __init__(self, engine: Engine, schedule: Schedule, network: Network, *, batch: int, horizon: int, members: int,
                 workers: int) -> None:
        self.schedule, self.network, self.batch, self.horizon, self.members = schedule, network, batch, horizon, members
        self.real = np.float32 if schedule.real == "float" else np.float64
        self.bytes = REALS[schedule.real]
        self.lock = RLock()
        self._learned, self._learned_members = network, members
        self._engine, self._workers, self._version = engine, workers, -1
        self._tables: dict[object, Any] = {}
        self._places = {name: i for i, name in enumerate(self.fields)}
        self._paces: defaultdict[object, Pace] = defaultdict(Pace)
        self._templates: dict[object, list[int]] = {}
        self._memory: list[np.ndarray] = []
        self._pool: deque[np.ndarray] = deque()
        self.row = (network.slots + (64 if schedule.wide else 4)) * (1 if schedule.wide else schedule.lanes)
        self.chunk = min(horizon, max(1, CHUNK_BYTES // (self.row * self.bytes * SPAN)) * SPAN)
        self.span = min(SPAN // schedule.registers, horizon)
        self.blocks = members * -(-(batch // members) // schedule.worlds)
        self.keeps = self.blocks * horizon * self.row * self.bytes <= KEPT_BYTES
        self._packed = aligned_zeros(members, max(len(network.packing), 16), dtype=self.real)
        self._pack = engine.pack.table()
        self._index = kept_ints(network.packing)
        self._shared = {
            "batch": batch, "horizon": horizon, "members": members, "member_worlds": batch // members, "row": self.row,
            "chunk": self.chunk, "span": self.span, "packed_size": self._packed.shape[1],
            "flat_size": len(network.gathering), "nets": len(network.layers), "n_inputs": len(network.inputs),
            "n_outputs": len(network.outputs), "weights": _address(self._packed), "finish": 1}
        for name, values in (("layers", network.layers), ("inputs", network.inputs), ("outputs", network.outputs),
                             ("squashed", network.squashed), ("spans", network.spans), ("gathering", network.gathering)):
            self._shared[name] = self._hold(kept_ints(values))

    def keep(self) -> Kept:
        """Lend memory for the units of a forward sweep."""
        try:
            array = self._pool.pop()
        except IndexError:
            array = aligned_zeros(self.blocks * self.horizon, self.row, dtype=self.real)
        return Kept(self._pool, array)

    def run(self, kind: str, *, weights: int, version: int, cost: Cost | ilqr.Problem | None = None, learn: bool = False,
            **addresses: int) -> int:
        """Run a kernel on arrays at these addresses; return its status, see ``block_text.CHANGED``.

        Args:
            kind: "forward", "reverse", "cost", "cost_gradient", "linearise" or "solve".
            weights: Address of the flat weights of all members.
            version: Of the weights; those packed last are not packed again.
            cost: For the kinds that have one; the problem of a solve.
            learn: Whether gradients of the weights are wanted.
            addresses: Addresses and numbers by the names of ``block_text.FIELDS``.
        """
        key = None if cost is None else cost.key
        with self.lock:
            if (kind, key) not in self._tables:
                self._prepare(kind, key, self._engine.kernel(kind, self.schedule, cost), cost)
            if version != self._version:
                self._packed_from(weights, version)
            values = self._templates[kind, key].copy()
            values[FLAT] = weights
            for name, value in addresses.items():
                values[self._places[name]] = value
            if learn and len(self._learned.gathering):
                values[PLACES["learn"]] = 1
                self._gradients[:] = 0.0
                values[PLACES["gradients"]] = _address(self._gradients)
            call = self._tables[kind, key]
            if values[THREADS] == 1:
                call(values)
            else:
                self._paces[kind, key].launch(call, values)
            return call.table[STATUS]  # type: ignore[no-any-return]

    def _prepare(self, kind: str, key: object, kernel: Kernel, problem: Any) -> None:
        threads, blocks, member_blocks = self._shares(kind)
        size = -(-self._scratch_size(kind, problem) // 16) * 16
        scratch = aligned_zeros(threads, size, dtype=self.real)
        given = {**self._shared, "threads": threads, "blocks": blocks, "member_blocks": member_blocks, "scratch_size": size,
                 "piece": -(-blocks // (threads * PIECES)) if threads > 1 else blocks, "scratch": self._hold(scratch),
                 "gradient_size": self._gradients.shape[-1] if kind in LEARNING else 0,
                 "region": parallel_region()}
        self._templates[kind, key] = [given.get(n, 0) for n in self.fields]
        self._tables[kind, key] = kernel.table()

    def _scratch_size(self, kind: str, problem: Any) -> int:
        """Return the numbers that a thread keeps for itself."""
        if kind == "solve":
            return ilqr.scratch_reals(self._engine.system, problem, self.schedule, self.row, self.horizon)
        chunk = self.chunk
        rows = {"reverse": chunk + self.span, "cost_gradient": chunk + self.span, "linearise": 2}.get(kind, 1)
        states = chunk + -(-self.horizon // chunk) if kind == "cost_gradient" else 0
        return rows * self.row + states * self._engine.system.nx * self.schedule.world_lanes

    def _shares(self, kind: str) -> tuple[int, int, int]:
        """Return threads, blocks, and blocks of a member."""
        worlds = self.batch // self.members * (self.horizon if kind == "linearise" else 1)
        member_blocks = -(-worlds // self.schedule.worlds)
        blocks, steps = self.members * member_blocks, 1 if kind == "linearise" else self.horizon
        vectors = 100 + self._weights() // 2 // (self.schedule.lanes if self.schedule.wide else 1)
        seconds = blocks * steps * vectors * self.schedule.lanes / 16 / (MULTIPLY_ADDS / 16) * (1 if kind in ("forward", "cost") else 2)
        return (max(1, min(self._workers, blocks)) if seconds >= THREAD_WORK else 1), blocks, member_blocks

    def _weights(self) -> int:
        """Return the numbers of all packed weights."""
        return len(self.network.packing)

    @property
    def _gradients(self) -> np.ndarray:
        if not hasattr(self, "_gradient_memory"):
            threads = self._shares("reverse")[0]
            pieces = threads * PIECES if threads > 1 else 1
            self._gradient_memory = aligned_zeros(pieces, self._learned_members, max(self._learned.gradients, 16), dtype=self.real)
        return self._gradient_memory

    def _packed_from(self, weights: int, version: int) -> None:
        if len(self.network.packing):
            self._pack([weights, _address(self._index), _address(self._packed), self._packed.shape[1], len(self.network.gathering),
                        self.members])
        self._version = version

    def _hold(self, array: np.ndarray) -> int:
        self._memory.append(array)
        return _address(array)


class Engine:
    """A system with its networks, ready to run at any shape; plans are made once a shape and the latest ones remembered.

    Args:
        system: The model.
        networks: Sizes of each network, inputs first.
        squashed: For each whether a tanh follows its outputs.
        real: "float" or "double".
    """

    def __init__(self, system: System, networks: Sequence[Sequence[int]], squashed: Sequence[bool] = (), real: str = "float") -> None:
        self.system, self.networks, self.real = system, tuple(tuple(n) for n in networks), real
        self._squashed = tuple(squashed)
        self.weights = sum(n * m + m for sizes in self.networks for n, m in pairwise(sizes))
        self.pack = rollout.pack_kernel(real)
        self._plans: OrderedDict[tuple[int, int, int, int, str], Plan] = OrderedDict()
        self._networks: dict[str, tuple[Schedule, Network]] = {}
        self._kernels: dict[tuple[str, str, object], Kernel] = {}
        self._lock = Lock()

    def plan(self, batch: int, horizon: int, workers: int = 1, schedule: str | None = None, members: int = 1) -> Plan:
        """Return what runs this shape.

        Args:
            batch: Worlds, those of one member after another.
            horizon: Steps.
            workers: Threads at most.
            schedule: "lanes", "pairs", "units" or, for solves, "problems"; by the batch's size unless given.
            members: Sets of weights.
        """
        name = schedule or self._schedule_for(batch // members, workers)
        key = (batch, horizon, members, workers, name)
        plan = self._plans.get(key)
        if plan is not None:
            return plan
        with self._lock:
            if name not in self._networks:
                makers = {"units": units_wide, "problems": problems, "pairs": pairs}
                chosen = makers[name](self.real) if name in makers else lanes(self.real, lane_count(self.real))
                self._networks[name] = chosen, lay_out(self.networks, chosen, self._squashed)
            chosen, network = self._networks[name]
            plan = self._plans[key] = self._made(chosen, network, batch=batch, horizon=horizon, members=members, workers=workers)
            while len(self._plans) > SHAPES:
                self._plans.popitem(last=False)
            return plan

    def _schedule_for(self, worlds: int, workers: int) -> str:
        """Return how so many worlds of a member are laid over registers."""
        return "units" if worlds <= WIDE_WORLDS else "lanes"

    def _made(self, schedule: Schedule, network: Network, **shape: int) -> Plan:
        return Plan(self, schedule, network, **shape)

    def kernel(self, kind: str, schedule: Schedule, cost: Cost | ilqr.Problem | None = None) -> Kernel:
        """Return a kernel, built when it is first asked for."""
        key = (kind, schedule.name, None if cost is None else cost.key)
        if key not in self._kernels:
            makers = {"forward": rollout.forward_kernel, "reverse": rollout.reverse_kernel, "linearise": rollout.linearise_kernel}
            with_cost = {"cost": rollout.cost_kernel, "cost_gradient": rollout.cost_gradient_kernel, "solve": ilqr.solve_kernel}
            self._kernels[key] = makers[kind](self.system, schedule) if cost is None else with_cost[kind](self.system, cost, schedule)
        return self._kernels[key]


@cache
def lanes(real: str, count: int) -> Schedule:
    """Return the schedule with one world a lane."""
    return Schedule("lanes", count, real, count)


@cache
def pairs(real: str) -> Schedule:
    """Return the schedule with two registers of worlds a slot: each weight that is loaded serves both.

    Where registers are short there are too few of them for eight outputs of two, and a slot stays one.
    """
    registers = 2 if lane_count(real) * REALS[real] == 64 else 1
    count = registers * lane_count(real)
    return Schedule("pairs", count, real, count, registers)


@cache
def units_wide(real: str) -> Schedule:
    """Return the schedule with one world a block and a layer's units in the lanes."""
    return Schedule("units", 1, real, 64 // REALS[real])


@cache
def problems(real: str) -> Schedule:
    """Return the schedule with one problem a block, whose steps or step sizes are in the lanes."""
    return Schedule("problems", 1, real, lane_count(real))


class Pace:
    """Decides launch by launch whether threads pay.

    On idle cores they do. Where other processes want the cores too, a parallel region waits for a scheduler's turn, milliseconds for
    a launch that takes one thread less than one; then a launch goes on in the calling thread alone, and threads are tried again later.
    """

    def __init__(self) -> None:
        self._pause = 0
        self._seconds = float("inf")
        self._left = 2  # the first launch of all is slow for other reasons

    def launch(self, call: Call, values: list[int]) -> None:
        """Run a kernel with these numbers and addresses, by threads or alone."""
        threads = values[THREADS]
        begin = perf_counter()
        if self._left:
            self._left -= 1
            values[REGION] = 0
            call(values)
            self._seconds = min(self._seconds, perf_counter() - begin)
            return
        if values[REGION]:
            call(values)
        else:
            _launch_in_own_threads(call, values, threads)
        if perf_counter() - begin > PATIENCE * self._seconds:
            self._pause = self._left = min(2 * self._pause + 4, LONGEST_PAUSE)
        else:
            self._pause = 0


def _launch_in_own_threads(call: Call, values: list[int], threads: int) -> None:
    """Run a kernel where torch has no threads that it could lend."""
    values[FINISH] = 0
    call.fill(values)
    for other in [_threads().submit(call.launch) for _ in range(threads)]:
        other.result()
    values[FINISH], values[PLACES["next"]], values[STATUS] = 1, values[PLACES["blocks"]], call.table[STATUS]
    call(values)


def aligned_zeros(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    """Return zeros that start on a cache line."""
    size, bytes_ = int(np.prod(shape)), np.dtype(dtype).itemsize
    try:
        memory = np.zeros(size + 64 // bytes_, dtype)
    except MemoryError as error:
        raise MemoryError(f"rollout: {size * bytes_ / 2**20:.0f} MiB were needed for an array of shape {shape}; "
                          "roll out fewer worlds or steps at a time") from error
    start = -memory.ctypes.data % 64 // bytes_
    return memory[start : start + size].reshape(shape)


def _address(array: np.ndarray) -> int:
    return int(array.ctypes.data)


def kept_ints(values: np.ndarray) -> np.ndarray:
    """Return an index array as kernels read it, never empty."""
    return np.ascontiguousarray(values if values.size else np.zeros(1), np.int32)


@cache
def _threads() -> ThreadPoolExecutor:
    import os  # noqa: PLC0415

    return ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="rollout")
