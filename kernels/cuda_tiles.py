"""The tiled schedule for a CUDA device: a block of threads shares the weights of its worlds, which lie in shared memory.

A thread of ``kernels.cuda`` reads every weight for its one world, and a batch of some thousand worlds fills few threads. Here a
block of THREADS threads carries fewer worlds: each world's physics in one thread, as compiled from the same text, and the network of
all of them together as products of tiles, which all threads compute. Weights stay in shared memory for the whole horizon, and
their gradients are summed there, so that no unit ever reaches device memory.

It holds one network of two hidden layers. Tile products are Warp's own code and not cuBLASDx, whose first compilation of one kernel
takes two minutes. On a CPU the same kernels run with one thread a block: so they are tested. Compiled for sm_80 and sm_90, but not
yet run on a GPU, so that nothing chooses this schedule by itself.
"""

# no postponed annotations: Warp looks up those of a kernel among its globals, where the type of a model's numbers is not
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import warp as wp

from residual_mbrl.kernels.block_text import BACK, MODEL
from residual_mbrl.kernels.cuda import Grid, inlined, struct_text
from residual_mbrl.kernels.mlp import Network
from residual_mbrl.kernels.native import OPTIONS
from residual_mbrl.kernels.system import System, system_text

THREADS = 128
"""Threads of a block."""
WORLDS = {"forward": 64, "reverse": 32}
"""Worlds of a block at most: with 64 x 64 layers 84 and 102 KiB of shared memory, of which an sm_90 multiprocessor has 228."""
REALS = {"float": wp.float32, "double": wp.float64}


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """One network of two hidden layers and where its parts lie.

    Args:
        sizes: Inputs, both hidden layers, outputs.
        squashed: Whether a tanh follows the outputs.
        first: Slot of the first input, and of the first output.
        slots: Slots of a row of units.
        real: "float" or "double".
        worlds: Worlds of a block.
    """

    sizes: tuple[int, int, int, int]
    squashed: bool
    first: tuple[int, int]
    slots: int
    real: str
    worlds: int

    @property
    def places(self) -> list[int]:
        """Where the matrix of each layer begins among the flat weights; its bias follows."""
        places = [0]
        for n, m in pairwise(self.sizes):
            places.append(places[-1] + n * m + m)
        return places


def tiles_of(network: Network, sizes: Sequence[int], squashed: bool, real: str, worlds: int) -> Tiles:
    """Return a network as it was laid out, for tiles."""
    return Tiles(sizes=tuple(sizes), squashed=squashed, first=(int(network.inputs[0]), int(network.outputs[0])), slots=network.slots,
                 real=real, worlds=worlds)


def fits(networks: Sequence[Sequence[int]]) -> bool:
    """Tell whether networks can be tiled: one, with two hidden layers."""
    return len(networks) == 1 and len(networks[0]) == 4


@wp.func_native("""
#if defined(__CUDA_ARCH__)
__syncthreads();
#endif
""")
def barrier():
    """Wait for all threads of the block; a CPU has one."""
    ...


class TileKernel:
    """A kernel of tiles.

    Args:
        kernel: The Warp kernel; its first argument is the address of a table.
    """

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel

    def launch(self, inputs: Sequence[Any], groups: int, device: str, stream: wp.Stream | None = None) -> None:
        """Run a block for each group of worlds."""
        wp.launch_tiled(self._kernel, dim=[groups], inputs=list(inputs), block_dim=THREADS, device=device, stream=stream)

    def compile_for(self, architecture: int, folder: str | Path) -> list[Path]:
        """Compile for a compute capability without a device; return the files."""
        module = self._kernel.module
        return [Path(p) for p in wp.compile_aot_module(module, device=None, arch=architecture, module_dir=folder, use_ptx=False)]


def forward_kernel(system: System, tiles: Tiles) -> TileKernel:
    """Return the kernel that writes states."""
    real, text = REALS[tiles.real], _text(system, tiles)
    N0, N1, N2, N3 = tiles.sizes
    S1, S2, S3 = N0 * N1, N1 * N2, N2 * N3
    P1, P2, P3, _ = tiles.places
    Q1, Q2, Q3 = P1 + S1, P2 + S2, P3 + S3
    IN, OUT = tiles.first
    ROWS, W, SQUASHED = 2 * tiles.slots, tiles.worlds, tiles.squashed

    @wp.func_native(f"{text}\nK::see_all((long long*)table, block, lane, threads, t);")
    def see(table: wp.uint64, block: int, lane: int, threads: int, t: int): ...

    @wp.func_native(f"{text}\nK::advance_all((long long*)table, block, lane, threads, t);")
    def advance(table: wp.uint64, block: int, lane: int, threads: int, t: int): ...

    @wp.kernel(**_options())
    def tiled_forward(table: wp.uint64, weights: wp.array2d(dtype=real), rows: wp.array2d(dtype=real), horizon: int, member_groups: int):
        block, lane = wp.tid()
        threads = wp.block_dim()
        w = weights[block // member_groups]
        W1 = wp.tile_reshape(wp.tile_load(w, shape=S1, offset=P1, storage="shared"), (N0, N1))
        W2 = wp.tile_reshape(wp.tile_load(w, shape=S2, offset=P2, storage="shared"), (N1, N2))
        W3 = wp.tile_reshape(wp.tile_load(w, shape=S3, offset=P3, storage="shared"), (N2, N3))
        b1 = wp.tile_reshape(wp.tile_load(w, shape=N1, offset=Q1, storage="shared"), (N1, 1))
        b2 = wp.tile_reshape(wp.tile_load(w, shape=N2, offset=Q2, storage="shared"), (N2, 1))
        b3 = wp.tile_reshape(wp.tile_load(w, shape=N3, offset=Q3, storage="shared"), (N3, 1))
        for t in range(horizon):
            see(table, block, lane, threads, t)
            barrier()
            Z = wp.tile_load(rows, shape=(N0, W), offset=(block * ROWS + IN, 0), storage="shared")
            H1 = wp.tile_map(wp.tanh, wp.tile_matmul(wp.tile_transpose(W1), Z) + wp.tile_broadcast(b1, shape=(N1, W)))
            H2 = wp.tile_map(wp.tanh, wp.tile_matmul(wp.tile_transpose(W2), H1) + wp.tile_broadcast(b2, shape=(N2, W)))
            Y = wp.tile_matmul(wp.tile_transpose(W3), H2) + wp.tile_broadcast(b3, shape=(N3, W))
            if wp.static(SQUASHED):
                Y = wp.tile_map(wp.tanh, Y)
            wp.tile_store(rows, Y, offset=(block * ROWS + OUT, 0))
            barrier()
            advance(table, block, lane, threads, t)

    return TileKernel(tiled_forward)


def reverse_kernel(system: System, tiles: Tiles) -> TileKernel:
    """Return the kernel that takes gradients of states back to everything; those of the weights are summed a group of worlds."""
    real, text = REALS[tiles.real], _text(system, tiles)
    N0, N1, N2, N3 = tiles.sizes
    S1, S2, S3 = N0 * N1, N1 * N2, N2 * N3
    P1, P2, P3, _ = tiles.places
    Q1, Q2, Q3 = P1 + S1, P2 + S2, P3 + S3
    IN, OUT = tiles.first
    SLOTS, ROWS, W, SQUASHED = tiles.slots, 2 * tiles.slots, tiles.worlds, tiles.squashed

    @wp.func_native(f"{text}\nK::see_all((long long*)table, block, lane, threads, t);")
    def see(table: wp.uint64, block: int, lane: int, threads: int, t: int): ...

    @wp.func_native(f"{text}\nK::back_to_outputs((long long*)table, block, lane, threads, t);")
    def back_to_outputs(table: wp.uint64, block: int, lane: int, threads: int, t: int): ...

    @wp.func_native(f"{text}\nK::back_to_states((long long*)table, block, lane, threads, t);")
    def back_to_states(table: wp.uint64, block: int, lane: int, threads: int, t: int): ...

    @wp.func
    def through_tanh(g: real, h: real):
        return g - g * (h * h)

    @wp.kernel(**_options())
    def tiled_reverse(table: wp.uint64, weights: wp.array2d(dtype=real), rows: wp.array2d(dtype=real), horizon: int, member_groups: int,
                      gradients: wp.array2d(dtype=real)):
        block, lane = wp.tid()
        threads = wp.block_dim()
        w = weights[block // member_groups]
        W1 = wp.tile_reshape(wp.tile_load(w, shape=S1, offset=P1, storage="shared"), (N0, N1))
        W2 = wp.tile_reshape(wp.tile_load(w, shape=S2, offset=P2, storage="shared"), (N1, N2))
        W3 = wp.tile_reshape(wp.tile_load(w, shape=S3, offset=P3, storage="shared"), (N2, N3))
        b1 = wp.tile_reshape(wp.tile_load(w, shape=N1, offset=Q1, storage="shared"), (N1, 1))
        b2 = wp.tile_reshape(wp.tile_load(w, shape=N2, offset=Q2, storage="shared"), (N2, 1))
        b3 = wp.tile_reshape(wp.tile_load(w, shape=N3, offset=Q3, storage="shared"), (N3, 1))
        G1 = wp.tile_zeros(shape=(N0, N1), dtype=real, storage="shared")
        G2 = wp.tile_zeros(shape=(N1, N2), dtype=real, storage="shared")
        G3 = wp.tile_zeros(shape=(N2, N3), dtype=real, storage="shared")
        g1 = wp.tile_zeros(shape=N1, dtype=real, storage="shared")
        g2 = wp.tile_zeros(shape=N2, dtype=real, storage="shared")
        g3 = wp.tile_zeros(shape=N3, dtype=real, storage="shared")
        for s in range(horizon):
            t = horizon - 1 - s
            see(table, block, lane, threads, t)
            barrier()
            Z = wp.tile_load(rows, shape=(N0, W), offset=(block * ROWS + IN, 0), storage="shared")
            H1 = wp.tile_map(wp.tanh, wp.tile_matmul(wp.tile_transpose(W1), Z) + wp.tile_broadcast(b1, shape=(N1, W)))
            H2 = wp.tile_map(wp.tanh, wp.tile_matmul(wp.tile_transpose(W2), H1) + wp.tile_broadcast(b2, shape=(N2, W)))
            Y = wp.tile_matmul(wp.tile_transpose(W3), H2) + wp.tile_broadcast(b3, shape=(N3, W))
            if wp.static(SQUASHED):
                Y = wp.tile_map(wp.tanh, Y)
            wp.tile_store(rows, Y, offset=(block * ROWS + OUT, 0))
            barrier()
            back_to_outputs(table, block, lane, threads, t)
            barrier()
            D3 = wp.tile_load(rows, shape=(N3, W), offset=(block * ROWS + SLOTS + OUT, 0), storage="shared")
            D2 = wp.tile_map(through_tanh, wp.tile_matmul(W3, D3), H2)
            D1 = wp.tile_map(through_tanh, wp.tile_matmul(W2, D2), H1)
            wp.tile_store(rows, wp.tile_matmul(W1, D1), offset=(block * ROWS + SLOTS + IN, 0))
            wp.tile_matmul(Z, wp.tile_transpose(D1), G1)
            wp.tile_matmul(H1, wp.tile_transpose(D2), G2)
            wp.tile_matmul(H2, wp.tile_transpose(D3), G3)
            g1 += wp.tile_sum(D1, axis=1)
            g2 += wp.tile_sum(D2, axis=1)
            g3 += wp.tile_sum(D3, axis=1)
            barrier()
            back_to_states(table, block, lane, threads, t)
        g = gradients[block]
        wp.tile_store(g, wp.tile_reshape(G1, (S1,)), offset=P1)
        wp.tile_store(g, wp.tile_reshape(G2, (S2,)), offset=P2)
        wp.tile_store(g, wp.tile_reshape(G3, (S3,)), offset=P3)
        wp.tile_store(g, g1, offset=Q1)
        wp.tile_store(g, g2, offset=Q2)
        wp.tile_store(g, g3, offset=Q3)

    return TileKernel(tiled_reverse)


def _options() -> dict[str, Any]:
    return {**OPTIONS, "module_options": {**OPTIONS["module_options"], "block_dim": THREADS, "enable_mathdx_gemm": False}}


def _text(system: System, tiles: Tiles) -> str:
    """Return the physics of a block's worlds, each thread's in turn; the layers between are the tiles' work."""
    layers = """
    static inline void layer_forward(const int*, const R*, R*) {}
    static inline void layer_reverse(const int*, const R*, const R*, R*) {}"""
    return struct_text(Grid(tiles.real, tiles.worlds, 1), layers, system_text(system), inlined(MODEL), inlined(BACK), _WORLDS)


_WORLDS = """
    // one world of a block at a time: where its numbers lie, and its inputs at a step
    struct World {
        const Block b; R* row; R* deltas; T x[NX], u[NU], p[NP];
        World(long long* a, int block, long index, int lane, long t, bool first)
            : b(a, index), row((R*)a[F_scratch] + block * a[F_scratch_size] + lane), deltas(row + a[F_row] * STRIDE) {
            b.load_parameters(p);
            load_n(NX, first ? (const R*)a[F_initial] + b.first * NX : (const R*)a[F_states] + (b.first * (b.H + 1) + t) * NX, 0, 1, x);
            load_n(NU, (const R*)a[F_actions] + (b.first * b.H + t) * NU, 0, 1, u);
        }
    };
    static inline long world_of(const long long* a, int block, int lane) {
        const long start = block % a[F_item_groups] * LANES + lane;
        return start < a[F_items] ? block / a[F_item_groups] * a[F_items] + start : -1;
    }
    static void see_all(long long* a, int block, int lane, int threads, long t) {
        for (; lane < LANES; lane += threads) {
            const long index = world_of(a, block, lane);
            if (index < 0) return;
            World w(a, block, index, lane, t, t == 0 && a[F_initial]);
            if (t == 0 && a[F_initial]) store_n(NX, (R*)a[F_states] + w.b.first * (w.b.H + 1) * NX, 0, 1, w.x);
            see(a, w.b.W, w.b.c, w.row, w.x, w.u, w.p);
        }
    }
    static void advance_all(long long* a, int block, int lane, int threads, long t) {
        for (; lane < LANES; lane += threads) {
            const long index = world_of(a, block, lane);
            if (index < 0) return;
            World w(a, block, index, lane, t, false);
            step(a, w.b, w.row, w.x, w.u, w.p);
            store_n(NX, (R*)a[F_states] + (w.b.first * (w.b.H + 1) + t + 1) * NX, 0, 1, w.x);
        }
    }
    static inline void start_back(const long long* a, const World& w, long t, T* gx, T* gp) {
        for (int i = 0; i < NP; ++i) gp[i] = 0;
        if (t == w.b.H - 1) load_n(NX, (const R*)a[F_grad_states] + (w.b.first * (w.b.H + 1) + w.b.H) * NX, 0, 1, gx);
        else {
            load_n(NX, (const R*)a[F_grad_initial] + w.b.first * NX, 0, 1, gx);
            load_n(NP, (const R*)a[F_grad_parameters] + w.b.first * NP, 0, 1, gp);
        }
    }
    // the first time for the deltas of the outputs alone, the second with those of the inputs that the tiles have made of them
    static void back_to_outputs(long long* a, int block, int lane, int threads, long t) {
        for (; lane < LANES; lane += threads) {
            const long index = world_of(a, block, lane);
            if (index < 0) return;
            World w(a, block, index, lane, t, false);
            T gx[NX], gu[NU] = {}, gp[NP];
            start_back(a, w, t, gx, gp);
            step_back(a, w.b, w.row, w.deltas, w.x, w.u, w.p, gx, gu, gp);
        }
    }
    static void back_to_states(long long* a, int block, int lane, int threads, long t) {
        for (; lane < LANES; lane += threads) {
            const long index = world_of(a, block, lane);
            if (index < 0) return;
            World w(a, block, index, lane, t, false);
            T gx[NX], gu[NU] = {}, gp[NP];
            start_back(a, w, t, gx, gp);
            step_back(a, w.b, w.row, w.deltas, w.x, w.u, w.p, gx, gu, gp);
            add_n(NX, (const R*)a[F_grad_states] + (w.b.first * (w.b.H + 1) + t) * NX, 0, 1, gx);
            store_n(NX, (R*)a[F_grad_initial] + w.b.first * NX, 0, 1, gx);
            store_n(NP, (R*)a[F_grad_parameters] + w.b.first * NP, 0, 1, gp);
            store_n(NU, (R*)a[F_grad_actions] + (w.b.first * w.b.H + t) * NU, 0, 1, gu);
        }
    }
"""
