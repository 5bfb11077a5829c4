"""Running the kernels: what is laid out once a shape, recorded launches with new addresses, and threads over a large batch.

A Warp launch from Python costs 12-20 µs for its arguments and 3-6 µs once recorded, so each shape keeps its recorded launches
and only addresses change from call to call. CPU launches run in the calling thread and release the interpreter: a large batch
is cut into pieces that a few threads take in turn, so that a core that others use holds up one piece only.
"""

import itertools
import os
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Lock
from typing import Any

import numpy as np
import warp as wp

from residual_mbrl.kernels.lanes import lane_count
from residual_mbrl.kernels.mlp import Network, Schedule, lanes, lay_out, units_wide
from residual_mbrl.kernels.rollout import System, build, gather_gradients, pack_weights

KEPT_BYTES = 16 * 2**20
"""Units of the forward sweep are kept for the reverse one up to this size, about what the caches hold; beyond, they are computed again."""
CHUNK = 32
"""Steps whose units and deltas stay in the cache until the weight gradients take them up."""
WIDE_WORLDS = 8
"""Batches up to this size run with a layer's units in the lanes, larger ones with worlds. Measured for 5-64-64-2 over 50 steps on a Zen 5
core: 12 µs a world each way against 105 µs for 16 worlds."""
PIECES = 4
"""Pieces of a batch for each thread."""
THREAD_WORK = 100_000
"""Vector operations of a sweep below which a second thread costs more than it gives."""
SHAPES = 16
"""Shapes whose launches are remembered."""


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


class Recorded:
    """A recorded launch whose arguments change by name."""

    def __init__(self, kernel: Any, dim: int, arguments: Sequence[Any]) -> None:
        self._launch = wp.launch(kernel, dim=dim, inputs=list(arguments), device="cpu", record_cmd=True)
        self._arguments = list(arguments)  # keeps their memory
        self._values = {a.label: p for a, p in zip(kernel.adj.args, self._launch.params[1:], strict=True)}

    def point(self, **addresses: int) -> None:
        """Move array arguments to other addresses; shapes and strides stay."""
        for name, address in addresses.items():
            self._values[name].data = address

    def set(self, **values: int) -> None:
        """Change integer arguments."""
        for name, value in values.items():
            self._values[name].value = value

    def __call__(self) -> None:
        """Run in this thread."""
        self._launch.launch()


class Plan:
    """Everything that one shape of a rollout needs: scratch, and recorded launches for each thread."""

    def __init__(self, system: System, kernels: Any, network: Network, schedule: Schedule, *, batch: int, horizon: int,
                 workers: int) -> None:
        self.batch, self.horizon, self.schedule, self.network = batch, horizon, schedule, network
        self.blocks = -(-batch // schedule.worlds)
        work = self.blocks * horizon * (200 + len(network.packing) // (2 * schedule.unit._length_))
        self.workers = max(1, min(workers, self.blocks)) if work >= THREAD_WORK else 1
        self.piece = self.blocks if self.workers == 1 else max(1, self.blocks // (self.workers * PIECES))
        self.width = network.slots // schedule.per_unit + 4  # a whole number of groups, and rows that do not share cache sets
        self.lanes = schedule.unit._length_
        self.keeps = self.blocks * horizon * self.width * 4 * self.lanes <= KEPT_BYTES
        self._version = -1
        self._pool: deque[np.ndarray] = deque()
        self._system, self._kernels, self.lock = system, kernels, Lock()
        self._packed = aligned_zeros(max(len(network.packing), schedule.per_weight))
        self._gradients = aligned_zeros(self.workers, max(network.gradients, 1), self.lanes)
        self._forward = [self._recorded_forward(w) for w in range(self.workers)]
        self._reverse: dict[bool, list[Recorded]] = {}
        n = max(len(network.packing), 1)
        self._pack = Recorded(pack_weights, n, [_floats(1), _ints(network.packing), wp.array(self._packed, dtype=float, copy=False)])
        flat = max(len(network.gathering), 1)
        self._gather = Recorded(gather_gradients, flat, [
            wp.array(self._gradients.reshape(self.workers, -1), dtype=float, copy=False), _ints(network.gathering), self.lanes_summed,
            self.workers, _floats(1)])

    @property
    def lanes_summed(self) -> int:
        """Lanes that hold parts of one gradient."""
        return self.lanes if self.schedule.per_unit == 1 else 1

    def keep(self) -> Kept:
        """Lend memory for the units of a forward sweep."""
        try:
            array = self._pool.pop()
        except IndexError:
            array = aligned_zeros(self.blocks * self.horizon, self.width, self.lanes)
        return Kept(self._pool, array)

    def forward(self, *, weights: int, version: int, constants: int, parameters: int, initial: int, actions: int, states: int,
                kept: Kept | None) -> None:
        """Run the forward sweep on arrays at these addresses: float32, contiguous, [batch, ...] with the last axis a vector.

        Weights of a ``version`` that was packed last are not packed again.
        """
        with self.lock:
            self._packed_from(weights, version)
            for launch in self._forward:
                launch.point(constants=constants, parameters=parameters, initial=initial, actions=actions,
                             states=states)
                launch.set(keep=int(kept is not None))
                self._use(launch, kept)
            self._run(self._forward)

    def reverse(self, *, weights: int, version: int, constants: int, parameters: int, states: int, actions: int, grad_states: int,
                grad_initial: int, grad_actions: int, grad_parameters: int, grad_weights: int | None, kept: Kept | None) -> None:
        """Run the reverse sweep; all gradients are written anew, those of the weights only where an address is given."""
        learn = grad_weights is not None
        with self.lock:
            if learn not in self._reverse:
                self._reverse[learn] = [self._recorded_reverse(w, learn) for w in range(self.workers)]
            self._packed_from(weights, version)
            for launch in self._reverse[learn]:
                launch.point(constants=constants, parameters=parameters, states=states, actions=actions, grad_states=grad_states,
                             grad_initial=grad_initial, grad_actions=grad_actions, grad_parameters=grad_parameters)
                launch.set(keep=int(kept is not None))
                self._use(launch, kept)
            if learn:
                self._gradients[:] = 0.0
            self._run(self._reverse[learn])
            if grad_weights is not None and len(self.network.gathering):
                self._gather.point(flat=grad_weights)
                self._gather()

    def _packed_from(self, weights: int, version: int) -> None:
        if version != self._version and len(self.network.packing):
            self._pack.point(flat=weights)
            self._pack()
            self._version = version

    def _use(self, launch: Recorded, kept: Kept | None) -> None:
        address = launch.scratch if kept is None else kept.address  # type: ignore[attr-defined]
        launch.point(units=address, scalars=address, groups=address)

    def _run(self, launches: list[Recorded]) -> None:
        if len(launches) == 1:
            launches[0]()
            return
        pieces = itertools.count(0, self.piece)
        others = [_threads().submit(_drain, launch, pieces, self.blocks) for launch in launches[1:]]
        _drain(launches[0], pieces, self.blocks)
        for other in others:
            other.result()

    def _model(self, reverse: bool) -> list[Any]:
        network, schedule, s = self.network, self.schedule, self._system
        table = network.layers if len(network.layers) else np.zeros((1, 1), np.int32)
        return [_view(self._packed, schedule.weight, (self._packed.size // schedule.per_weight,)),
                wp.array(table, dtype=int, device="cpu"), _ints(network.inputs), _ints(network.outputs),
                *([_ints(network.squashed)] if reverse else []), _dummy(s.nc, (1,)), _dummy(s.np, (self.batch,))]

    def _rows(self, rows: int) -> tuple[np.ndarray, list[Any]]:
        array = aligned_zeros(rows, self.width, self.lanes)
        scalars = (rows, self.width, self.lanes) if self.schedule.per_unit == 1 else (rows, self.width * self.lanes, 1)
        group, units = self.schedule.group, self.width * self.lanes
        groups = (rows, units // (group._shape_[0] * group._shape_[1] if len(group._shape_) > 1 else group._length_))
        return array, [_view(array, self.schedule.unit, (rows, self.width)), _view(array, wp.float32, scalars), _view(array, group, groups)]

    def _recorded_forward(self, worker: int) -> Recorded:
        s, b, h = self._system, self.batch, self.horizon
        scratch, rows = self._rows(self.workers)
        launch = Recorded(self._kernels.forward, self.piece, [
            *self._model(reverse=False), 0, b, h, 0, worker, len(self.network.layers), _dummy(s.nx, (b,)), _dummy(s.nu, (b, h)),
            _dummy(s.nx, (b, h + 1)), *rows])
        launch.scratch, launch.memory = int(scratch.ctypes.data), scratch  # type: ignore[attr-defined]
        return launch

    def _recorded_reverse(self, worker: int, learn: bool) -> Recorded:
        s, b, h = self._system, self.batch, self.horizon
        chunk = min(CHUNK, h) if learn else 1
        (scratch, rows), (deltas, delta_rows) = self._rows(self.workers * chunk), self._rows(self.workers * chunk)
        gradients = _view(self._gradients, self.schedule.unit, self._gradients.shape[:2])
        launch = Recorded(self._kernels.reverse, self.piece, [
            *self._model(reverse=True), 0, b, h, 0, worker, len(self.network.layers), chunk, int(learn), _dummy(s.nx, (b, h + 1)),
            _dummy(s.nu, (b, h)), _dummy(s.nx, (b, h + 1)), *rows, *delta_rows, _dummy(s.nx, (b,)), _dummy(s.nu, (b, h)),
            _dummy(s.np, (b,)), gradients])
        launch.scratch, launch.memory = int(scratch.ctypes.data), (scratch, deltas)  # type: ignore[attr-defined]
        return launch


class Engine:
    """A system with its networks, ready to run at any shape; plans are made once a shape and the latest ones remembered."""

    def __init__(self, system: System, networks: Sequence[Sequence[int]], squashed: Sequence[bool] = ()) -> None:
        self.system, self.networks = system, tuple(tuple(n) for n in networks)
        self._squashed = tuple(squashed)
        self.weights = sum(n * m + m for sizes in self.networks for n, m in itertools.pairwise(sizes))
        self._plans: OrderedDict[tuple[int, int, int, str], Plan] = OrderedDict()
        self._built: dict[str, tuple[Schedule, Any, Network]] = {}
        self._lock = Lock()

    def plan(self, batch: int, horizon: int, workers: int = 1, schedule: str | None = None) -> Plan:
        """Return what runs this shape, ``workers`` threads at most; the schedule ("lanes", "units") by the batch's size unless given."""
        name = schedule or ("units" if batch <= WIDE_WORLDS else "lanes")
        key = (batch, horizon, workers, name)
        with self._lock:
            if key not in self._plans:
                if name not in self._built:
                    chosen = units_wide() if name == "units" else lanes(lane_count())
                    self._built[name] = (chosen, build(self.system, chosen), _laid_out(self.networks, chosen, self._squashed))
                chosen, kernels, network = self._built[name]
                self._plans[key] = Plan(self.system, kernels, network, chosen, batch=batch, horizon=horizon, workers=workers)
                while len(self._plans) > SHAPES:
                    self._plans.popitem(last=False)
            self._plans.move_to_end(key)
            return self._plans[key]


def _laid_out(networks: Sequence[Sequence[int]], schedule: Schedule, squashed: Sequence[bool]) -> Network:
    if networks:
        return lay_out(networks, schedule, squashed)
    none = np.zeros(0, np.int32)
    return Network(np.zeros((0, 1), np.int32), none, none, none, 0, none, none, 0)


def _drain(launch: Recorded, pieces: "itertools.count[int]", blocks: int) -> None:
    for first in pieces:  # taking the next one is atomic
        if first >= blocks:
            return
        launch.set(first=first)
        launch()


def aligned_zeros(*shape: int) -> np.ndarray:
    """Return float32 zeros that start on a cache line."""
    size = int(np.prod(shape))
    memory = np.zeros(size + 16, np.float32)
    start = -memory.ctypes.data % 64 // 4
    return memory[start : start + size].reshape(shape)


def _view(array: np.ndarray, dtype: Any, shape: tuple[int, ...]) -> Any:
    return wp.array(ptr=int(array.ctypes.data), dtype=dtype, shape=shape, device="cpu")


def _dummy(length: int, shape: tuple[int, ...]) -> Any:
    """An argument whose address is given before each launch."""
    return wp.array(ptr=64, dtype=wp.types.vector(length=length, dtype=wp.float32), shape=shape, device="cpu")


def _ints(values: np.ndarray) -> Any:
    return wp.array(values, dtype=int, device="cpu") if len(values) else wp.zeros(0, dtype=int, device="cpu")


def _floats(n: int) -> Any:
    return wp.array(ptr=64, dtype=float, shape=(n,), device="cpu")


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="rollout")
