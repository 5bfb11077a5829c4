"""Running the CUDA kernels on torch tensors: scratch and a program (``cuda_program``) once a shape and stream.

Inputs and outputs are torch's own tensors, nothing is copied. Everything runs on torch's current stream; each stream has plans of its
own, since two calls at a time cannot share a table.

Weight gradients are matrix products over a chunk of steps and a group of worlds, from units and deltas where the kernels left them;
groups are added up at the end, always in one order. On a CPU the same kernels run thread by thread, for tests. The launches have
not yet run on a GPU.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from threading import Lock
from typing import Literal, NamedTuple

import numpy as np
import torch
import warp as wp
from torch import Tensor

from residual_mbrl.kernels import cuda, cuda_tiles
from residual_mbrl.kernels.cuda import Grid, ThreadKernel
from residual_mbrl.kernels.cuda_program import Program
from residual_mbrl.kernels.cuda_tiles import TileKernel
from residual_mbrl.kernels.mlp import Network, lay_out
from residual_mbrl.kernels.system import Cost, System

DTYPES = {"float": torch.float32, "double": torch.float64}
WARP, WIDE = 32, 128
"""Threads of a block for a small batch, so that it reaches every multiprocessor, and for a large one."""
CHUNK = 8
"""Steps whose units and deltas wait for one matrix product."""
GROUPS = 2048
"""Blocks in flight at most, as many as a large device holds at once; each takes several groups of worlds in turn."""
SHAPES = 16
"""Shapes whose scratch and graphs are remembered."""


class Gradients(NamedTuple):
    """What a sweep back returns; the weights' part is missing unless it was asked for."""

    initial: Tensor
    """Shape [B, nx]."""
    actions: Tensor
    """Shape [B, H, nu]."""
    parameters: Tensor
    """Shape [B, np]."""
    weights: Tensor | None
    """Shape [members, weights]."""


class Plan:
    """Everything that one shape of a rollout needs on one stream: layout, scratch, packed weights, and its programs.

    It is called as the CPU's plan is (``launch.Plan``).
    """

    compares: Literal[False] = False
    keeps: Literal[False] = False
    """Weights are packed at each launch and inputs are not looked at, either of which would wait for the device; units are not kept."""

    def __init__(self, engine: ThreadEngine, *, batch: int, horizon: int, members: int, schedule: str) -> None:
        self.engine, self.batch, self.horizon, self.members, self.schedule = engine, batch, horizon, members, schedule
        self.device, self.dtype = engine.device, DTYPES[engine.real]
        self.lock = Lock()
        self.lanes = WIDE if batch // members >= WIDE * _multiprocessors(self.device) else WARP
        self.network = lay_out(engine.networks, self.grid(1).layout, engine.squashed)
        self._programs: dict[tuple[str, object, bool], Program] = {}
        self._packed = self._zeros(members, max(len(self.network.packing), 16))
        self._memory: list[Tensor] = []
        self._shared = {
            "batch": batch, "horizon": horizon, "members": members, "member_worlds": batch // members, "row": self.network.slots,
            "packed_size": len(self.network.packing), "flat_size": engine.weights, "nets": len(self.network.layers),
            "n_inputs": len(self.network.inputs), "n_outputs": len(self.network.outputs), "weights": self._packed.data_ptr()}
        n = self.network
        for name, values in (("layers", n.layers), ("inputs", n.inputs), ("outputs", n.outputs), ("squashed", n.squashed),
                             ("spans", n.spans), ("index", n.packing)):
            ints = torch.from_numpy(np.ascontiguousarray(values if values.size else np.zeros(1), np.int32)).to(self.device)
            self._memory.append(ints)
            self._shared[name] = ints.data_ptr()

    @property
    def replays(self) -> set[str]:
        """Kinds of which a captured graph is there."""
        return {key[0] for key, program in self._programs.items() if program.captured}

    def grid(self, rows: int) -> Grid:
        """Return how worlds lie over threads, with so many rows of units in memory."""
        return Grid(self.engine.real, self.lanes, rows)

    def run(self, kind: str, *, weights: int, version: int = 0, cost: Cost | None = None, learn: bool = False, **addresses: int) -> int:
        """Run on arrays at these addresses; return 0.

        Args:
            kind: "forward", "reverse", "cost", "cost_gradient" or "linearise".
            weights: Address of the flat weights of all members, ordered as ``mlp.lay_out`` says.
            version: Of the weights; not used.
            cost: For the kinds that have one.
            learn: Whether gradients of the weights are wanted, at the address ``grad_weights``.
            addresses: Addresses and numbers by the names of ``cuda.FIELDS``.
        """
        learn = learn and self.engine.weights > 0
        key = kind, None if cost is None else cost.key, learn
        with self.lock:
            if key not in self._programs:
                tiled = self.schedule == "tiles" and kind in ("forward", "reverse")
                self._programs[key] = self._tiled_program(kind, learn) if tiled else self._program(kind, cost, learn)
            self._programs[key].run(flat=weights, **addresses)
        return 0

    def _program(self, kind: str, cost: Cost | None, learn: bool) -> Program:
        """Put together: weights are packed, states go forward, gradients come back a chunk at a time."""
        back, there = kind in ("reverse", "cost_gradient"), kind != "reverse"
        rows = CHUNK if learn else 1
        first = self.horizon - 1
        starts = ([*range(first // rows * rows, -1, -rows)] if learn else [0]) if back else []
        grids = {"there": self.grid(1), "back": self.grid(rows)}
        shares = {"there": self._shares(kind == "linearise", grids["there"]), "back": self._shares(False, grids["back"])}
        sets = {"there": 2 if kind == "linearise" else 1, "back": 2}
        scratch = {}
        if there:
            scratch["there"] = self._scratch(shares["there"], sets["there"], grids["there"])
        if back:
            scratch["back"] = self._scratch(shares["back"], sets["back"], grids["back"])
        own = {}  # where a call has no place for them
        if back:
            own["grad_parameters"] = self._zeros(self.batch, self.engine.system.np)
        if kind == "cost_gradient":
            own["states"] = self._zeros(self.batch, self.horizon + 1, self.engine.system.nx)
        products = _Products(self, scratch["back"]) if learn else None
        if products is not None:
            own["gradients"] = products.weights
        given = {name: {**self._shared, **shares[name], "scratch": memory.data_ptr(), "scratch_size": memory[0].numel()}
                 for name, memory in scratch.items()}
        for name, memory in own.items():
            for row in given.values():
                row[name] = memory.data_ptr()
        table = [given["there"]] if there else []
        table += [{**given["back"], "begin": t, "end": min(t + rows, self.horizon) if learn else self.horizon} for t in starts]
        program = Program(self.device, table)
        self._memory += [*scratch.values(), *own.values()]
        if self.engine.weights:
            program.launch(self.engine.kernel("pack", self.grid(1)), 0, self._packed.numel(), WIDE)
        if there:
            forward = {"cost_gradient": "cost"}.get(kind, kind)
            program.launch(self.engine.kernel(forward, grids["there"], cost), 0, shares["there"]["threads_launched"], self.lanes)
        if back:
            if products is not None:
                program.issue.append(products.start)
            for k, t in enumerate(starts):
                program.launch(self.engine.kernel(kind, grids["back"], cost), k + there, shares["back"]["threads_launched"], self.lanes)
                if products is not None:
                    program.issue.append(partial(products.add, min(rows, self.horizon - t)))
            if products is not None:
                program.issue.append(products.finish)
                program.launch(self.engine.kernel("hand_over", self.grid(1)), len(table) - 1, products.weights.numel(), WIDE)
        return program

    def _tiled_program(self, kind: str, learn: bool) -> Program:
        """Put together: weights are copied to where the graph knows them, then one kernel of tiles goes there or back."""
        worlds = min(self.lanes, cuda_tiles.WORLDS[kind])
        grid = Grid(self.engine.real, worlds, 1)
        shares = self._shares(False, grid)
        groups = shares["groups"]
        flat = self._zeros(self.members, self.engine.weights)
        rows = self._zeros(groups * 2 * self.network.slots, worlds)
        order = torch.arange(self.engine.weights, dtype=torch.int32, device=self.device)
        by_parameters, by_group = self._zeros(self.batch, self.engine.system.np), self._zeros(groups, self.engine.weights)
        by_weights = self._zeros(self.members, self.engine.weights)
        self._memory += [flat, rows, order, by_parameters, by_group, by_weights]
        program = Program(self.device, [{
            **self._shared, **shares, "scratch": rows.data_ptr(), "scratch_size": rows.numel() // groups, "weights": flat.data_ptr(),
            "packed_size": self.engine.weights, "index": order.data_ptr(), "grad_parameters": by_parameters.data_ptr(),
            "gradients": by_weights.data_ptr()}])
        program.launch(self.engine.kernel("pack", grid), 0, flat.numel(), WIDE)
        kernel = self.engine.tile_kernel(kind, self.network, worlds)
        inputs = [flat, rows, self.horizon, shares["item_groups"]]
        program.launch_tiles(kernel, [*inputs, by_group] if kind == "reverse" else inputs, groups)
        if learn:
            program.issue.append(lambda: torch.sum(by_group.reshape(self.members, -1, self.engine.weights), 1, out=by_weights))
            program.launch(self.engine.kernel("hand_over", grid), 0, by_weights.numel(), WIDE)
        return program

    def _shares(self, by_step: bool, grid: Grid) -> dict[str, int]:
        items = self.batch // self.members * (self.horizon if by_step else 1)
        item_groups = -(-items // grid.lanes)
        groups = self.members * item_groups
        launched = groups if grid.rows > 1 else min(groups, GROUPS)  # kept rows are each group's own
        return {"items": items, "member_blocks": items, "item_groups": item_groups, "groups": groups,
                "threads_launched": launched * grid.lanes}

    def _scratch(self, shares: dict[str, int], sets: int, grid: Grid) -> Tensor:
        """Return memory [groups, slots of units and of deltas, rows and lanes]; lanes without a world stay zero."""
        return self._zeros(shares["threads_launched"] // grid.lanes, sets * max(self.network.slots, 1), grid.rows * grid.lanes)

    def _zeros(self, *shape: int) -> Tensor:
        try:
            return torch.zeros(shape, dtype=self.dtype, device=self.device)
        except torch.OutOfMemoryError as error:
            size = float(np.prod(shape)) * self.dtype.itemsize / 2**30
            raise MemoryError(f"a fused rollout of {self.batch} worlds over {self.horizon} steps needs {size:.2f} GiB of scratch more on "
                              f"{self.device}; roll out in smaller batches") from error


class _Products:
    """Weight gradients of a chunk after the other, for each group of worlds by itself."""

    def __init__(self, plan: Plan, scratch: Tensor) -> None:
        self._plan, self._layers = plan, []
        groups, slots, lanes = scratch.shape[0], plan.network.slots, plan.lanes
        self.weights = plan._zeros(plan.members, plan.engine.weights)
        self._lanes, place = lanes, 0
        for n, m, source, target in plan.network.layers[:, :4].tolist():
            units, deltas = scratch[:, source : source + n], scratch[:, slots + target : slots + target + m]
            self._layers.append((units, deltas, plan._zeros(groups, n, m), plan._zeros(groups, m), place))
            place += n * m + m

    def start(self) -> None:
        for _, _, matrix, bias, _ in self._layers:
            matrix.zero_()
            bias.zero_()

    def add(self, steps: int) -> None:
        for units, deltas, matrix, bias, _ in self._layers:
            x, d = units[..., : steps * self._lanes], deltas[..., : steps * self._lanes]
            matrix.baddbmm_(x, d.transpose(1, 2))
            bias.add_(d.sum(-1))

    def finish(self) -> None:
        members = self._plan.members
        for _, _, matrix, bias, place in self._layers:
            size = matrix[0].numel()
            self.weights[:, place : place + size] = matrix.reshape(members, -1, size).sum(1)
            self.weights[:, place + size : place + size + bias.shape[1]] = bias.reshape(members, -1, bias.shape[1]).sum(1)


class ThreadEngine:
    """A system with its networks on one device, ready to run at any shape.

    Tensors are contiguous, on the device and of the engine's real type; worlds of one member follow each other.

    Args:
        system: The model.
        networks: Sizes of each network, inputs first.
        squashed: For each whether a tanh follows its outputs.
        real: "float" or "double".
        device: A CUDA device, or the CPU for tests.
        schedule: "threads", or "tiles" for sweeps of one network with two hidden layers.

    Raises:
        ValueError: if the schedule does not fit the networks.
    """

    def __init__(self, system: System, networks: Sequence[Sequence[int]], squashed: Sequence[bool] = (), real: str = "float",
                 device: torch.device | str = "cuda", schedule: str = "threads") -> None:
        if schedule not in ("threads", "tiles") or (schedule == "tiles" and not cuda_tiles.fits(networks)):
            raise ValueError(f"schedule must be 'threads', or 'tiles' for one network with two hidden layers, received {schedule!r} for "
                             f"networks of sizes {list(networks)}")
        wp.init()  # streams and tensors of torch can be converted only then
        self.schedule = schedule
        self.system, self.networks, self.squashed, self.real = system, tuple(tuple(n) for n in networks), tuple(squashed), real
        self.device = torch.device(device)
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.weights = sum(n * m + m for sizes in self.networks for n, m in pairwise(sizes))
        self._plans: OrderedDict[tuple[int, ...], Plan] = OrderedDict()
        self._kernels: dict[tuple[str, Grid, object], ThreadKernel] = {}
        self._tile_kernels: dict[tuple[str, int], TileKernel] = {}
        self._lock = Lock()

    def plan(self, batch: int, horizon: int, members: int = 1) -> Plan:
        """Return what runs this shape on torch's current stream."""
        stream = torch.cuda.current_stream(self.device).cuda_stream if self.device.type == "cuda" else 0
        key = (batch, horizon, members, stream)
        with self._lock:
            if key not in self._plans:
                self._plans[key] = Plan(self, batch=batch, horizon=horizon, members=members, schedule=self.schedule)
                while len(self._plans) > SHAPES:
                    self._plans.popitem(last=False)
            self._plans.move_to_end(key)
            return self._plans[key]

    def kernel(self, kind: str, grid: Grid, cost: Cost | None = None) -> ThreadKernel:
        """Return a kernel, built when it is first asked for."""
        key = (kind, grid, None if cost is None else cost.key)
        if key not in self._kernels:
            for_all = {"pack": cuda.pack_kernel, "hand_over": cuda.hand_over_kernel}
            makers = {"forward": cuda.forward_kernel, "reverse": cuda.reverse_kernel, "linearise": cuda.linearise_kernel}
            with_cost = {"cost": cuda.cost_kernel, "cost_gradient": cuda.cost_gradient_kernel}
            self._kernels[key] = (for_all[kind](self.real) if kind in for_all else with_cost[kind](self.system, cost, grid)
                                  if kind in with_cost else makers[kind](self.system, grid))
        return self._kernels[key]

    def tile_kernel(self, kind: str, network: Network, worlds: int) -> TileKernel:
        """Return a kernel of tiles, built when it is first asked for."""
        if (kind, worlds) not in self._tile_kernels:
            tiles = cuda_tiles.tiles_of(network, self.networks[0], any(self.squashed), self.real, worlds)
            maker = {"forward": cuda_tiles.forward_kernel, "reverse": cuda_tiles.reverse_kernel}[kind]
            self._tile_kernels[kind, worlds] = maker(self.system, tiles)
        return self._tile_kernels[kind, worlds]

    def forward(self, weights: Tensor, constants: Tensor, parameters: Tensor, initial: Tensor, actions: Tensor) -> Tensor:
        """Return the states, shape [B, H + 1, nx].

        Args:
            weights: As ``mlp.lay_out`` orders them, shape [members, weights].
            constants: Shape [members, nc].
            parameters: Shape [B, np].
            initial: Shape [B, nx].
            actions: Shape [B, H, nu].
        """
        states = initial.new_empty(initial.shape[0], actions.shape[1] + 1, initial.shape[1])
        self._plan_of(actions, weights).run("forward", **_at(weights=weights, constants=constants, parameters=parameters, initial=initial,
                                                             actions=actions, states=states))
        return states

    def reverse(self, weights: Tensor, constants: Tensor, parameters: Tensor, actions: Tensor, states: Tensor, grad_states: Tensor, *,
                learn: bool) -> Gradients:
        """Take gradients of the states, shape [B, H + 1, nx], back to everything."""
        found = Gradients(torch.empty_like(states[:, 0]), torch.empty_like(actions), torch.empty_like(parameters),
                          torch.empty_like(weights) if learn else None)
        self._plan_of(actions, weights).run("reverse", learn=learn, **_at(
            weights=weights, constants=constants, parameters=parameters, actions=actions, states=states, grad_states=grad_states),
            **_at_gradients(found))
        return found

    def cost(self, cost: Cost, weights: Tensor, constants: Tensor, parameters: Tensor, initial: Tensor, actions: Tensor,
             references: Tensor) -> Tensor:
        """Return each world's cost, shape [B]; references have shape [B, H + 1, nr], or [H + 1, nr] for all worlds."""
        costs = initial.new_empty(initial.shape[0])
        self._plan_of(actions, weights).run("cost", cost=cost, **_of(references), **_at(
            weights=weights, constants=constants, parameters=parameters, initial=initial, actions=actions, costs=costs))
        return costs

    def cost_gradient(self, cost: Cost, weights: Tensor, constants: Tensor, parameters: Tensor, initial: Tensor, actions: Tensor,
                      references: Tensor, seeds: Tensor | None = None, *, learn: bool = False) -> tuple[Tensor, Gradients]:
        """Return each world's cost, and the gradients of ``Σ seeds · costs``; seeds are one unless given, shape [B]."""
        costs = initial.new_empty(initial.shape[0])
        found = Gradients(torch.empty_like(initial), torch.empty_like(actions), torch.empty_like(parameters),
                          torch.empty_like(weights) if learn else None)
        self._plan_of(actions, weights).run("cost_gradient", cost=cost, learn=learn, **_of(references), **_at(
            weights=weights, constants=constants, parameters=parameters, initial=initial, actions=actions, costs=costs),
            **({} if seeds is None else _at(seeds=seeds)), **_at_gradients(found))
        return costs, found

    def linearise(self, weights: Tensor, constants: Tensor, parameters: Tensor, states: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return A, shape [B, H, nx, nx], and B, shape [B, H, nx, nu], along states [B, H + 1, nx]."""
        batch, horizon, nu = actions.shape
        nx = states.shape[-1]
        A, B = states.new_empty(batch, horizon, nx, nx), states.new_empty(batch, horizon, nx, nu)
        self._plan_of(actions, weights).run("linearise", **_at(weights=weights, constants=constants, parameters=parameters, states=states,
                                                               actions=actions, A=A, B=B))
        return A, B

    def _plan_of(self, actions: Tensor, weights: Tensor) -> Plan:
        return self.plan(actions.shape[0], actions.shape[1], weights.shape[0])


def _at(**tensors: Tensor) -> dict[str, int]:
    """Return addresses; a kernel takes numbers to follow each other as the shape says."""
    for name, tensor in tensors.items():
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous, received strides {tensor.stride()} of shape {tuple(tensor.shape)}")
    return {name: tensor.data_ptr() for name, tensor in tensors.items()}


def _at_gradients(found: Gradients) -> dict[str, int]:
    return _at(**{f"grad_{n}": x for n, x in found._asdict().items() if x is not None})


def _of(references: Tensor) -> dict[str, int]:
    return {**_at(references=references), "reference_stride": 0 if references.ndim == 2 else references.stride(0),
            "reference_rows": references.shape[-2]}


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
