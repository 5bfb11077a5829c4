"""The kernels of a fused rollout for a CUDA device: the text of the CPU's equations with one world in each thread.

A thread block is what a vector register is on the CPU: LANES worlds, one a thread. Rows of units lie in device memory as
[group of worlds][slot][row][lane], so that the threads of a warp read neighbouring numbers, and a slot's rows and lanes together
are one side of the matrix product that gives the weights' gradients. Weights are packed as for the CPU's lanes; every thread of a
warp reads the same one at the same time, 16 bytes at once.

The text has no CUDA in it. As a Warp kernel it compiles for any device, and on a CPU Warp runs its threads one after another:
that is how it is tested against torch. It has been compiled for sm_80 and sm_90, but not yet run on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import warp as wp

from residual_mbrl.kernels.block_text import BACK, LINEAR, MODEL
from residual_mbrl.kernels.block_text import FIELDS as SHARED
from residual_mbrl.kernels.mlp import TABLE, Schedule
from residual_mbrl.kernels.native import OPTIONS, REALS
from residual_mbrl.kernels.system import Cost, System, cost_text, jacobian_text, system_text

OWN = ("flat", "reference_rows", "index", "items", "item_groups", "groups", "begin", "end", "threads_launched")
FIELDS = tuple(dict.fromkeys((*SHARED, *OWN)))
"""The table of a launch: that of the CPU's kernels, of which some entries stay empty, and who does what over which steps."""
PLACES = {name: i for i, name in enumerate(FIELDS)}
FUNCTIONS = ("sin", "cos", "tan", "tanh", "exp", "log", "sqrt", "asin", "acos", "atan")
OUTPUTS_AT_ONCE = 32
"""Sums of a layer that a thread holds in registers: a unit is read once for so many multiply-adds."""


@dataclass(frozen=True)
class Grid:
    """How worlds lie over threads.

    Args:
        real: "float" or "double".
        lanes: Threads of a block, a multiple of a warp's 32.
        rows: Steps whose units lie in memory at the same time.
    """

    real: str
    lanes: int
    rows: int

    @property
    def layout(self) -> Schedule:
        """How networks are laid out and weights packed: slots one by one, as for the CPU's lanes."""
        return Schedule("lanes", 1, self.real, 1)


class ThreadKernel:
    """A compiled text that every thread runs, with the address of a table and the thread's number.

    Args:
        text: Body of a C++ function of ``long long* a``, the table, and ``int thread``.
    """

    def __init__(self, text: str) -> None:
        @wp.func_native(f"long long* a = (long long*)table;\n{text}")
        def body(table: wp.uint64, thread: int): ...

        @wp.kernel(**OPTIONS)
        def thread_kernel(table: wp.uint64):
            body(table, wp.tid())

        self._kernel, self.text = thread_kernel, text

    def launch(self, table: int, threads: int, lanes: int, device: str, stream: wp.Stream | None = None) -> None:
        """Run so many threads in blocks of ``lanes`` with the table at this address; the first launch compiles and loads."""
        wp.launch(self._kernel, dim=threads, inputs=[table], device=device, stream=stream, block_dim=lanes)

    def compile_for(self, architecture: int, folder: str | Path) -> list[Path]:
        """Compile for a compute capability, 80 or 90 for instance, without a device; return the files."""
        module = self._kernel.module
        return [Path(p) for p in wp.compile_aot_module(module, device=None, arch=architecture, module_dir=folder, use_ptx=False)]


def forward_kernel(system: System, grid: Grid) -> ThreadKernel:
    """Return the kernel that writes states."""
    return _kernel(grid, _model_text(system, grid), _forward("", "", ""))


def cost_kernel(system: System, cost: Cost, grid: Grid) -> ThreadKernel:
    """Return the kernel that writes each world's cost, and the states where the table says where to."""
    return _kernel(grid, _model_text(system, grid) + cost_text(cost, system), _forward(
        "T r[NR], total = (T)(0), now;",
        "b.load_reference(t, NR, r); running(x, u, r, &now); total += now;",
        "b.load_reference(b.H, NR, r); terminal(x, r, &now); ((R*)a[F_costs])[b.first] = total + now;"))


def reverse_kernel(system: System, grid: Grid) -> ThreadKernel:
    """Return the kernel that takes gradients of states back over the steps from ``begin`` to ``end``."""
    return _kernel(grid, _model_text(system, grid) + inlined(BACK), _reverse(
        "",
        "add_n(NX, (const R*)a[F_grad_states] + (b.first * (b.H + 1) + b.H) * NX, 0, 1, gx);",
        "add_n(NX, (const R*)a[F_grad_states] + (b.first * (b.H + 1) + t) * NX, 0, 1, gx);"))


def cost_gradient_kernel(system: System, cost: Cost, grid: Grid) -> ThreadKernel:
    """Return the kernel that takes ``Σ seeds · costs`` back over the steps from ``begin`` to ``end`` of stored states."""
    return _kernel(grid, _model_text(system, grid) + inlined(BACK) + cost_text(cost, system), _reverse(
        "T r[NR]; const T seed = a[F_seeds] ? ((const R*)a[F_seeds])[b.first] : (R)1;",
        """load_n(NX, (const R*)a[F_states] + (b.first * (b.H + 1) + b.H) * NX, 0, 1, x);
           b.load_reference(b.H, NR, r); d_terminal(x, r, &seed, gx);""",
        "b.load_reference(t, NR, r); d_running(x, u, r, &seed, gx, gu);"))


def linearise_kernel(system: System, grid: Grid) -> ThreadKernel:
    """Return the kernel that writes A = ∂x'/∂x and B = ∂x'/∂u of every step, one step a thread."""
    return _kernel(grid, _model_text(system, grid) + jacobian_text(system) + inlined(LINEAR), """
    static void item(long long* a, long index, R* row, R* deltas) {
        const Steps b(a, index);
        const long world = index / b.H;
        T x[NX], u[NU], p[NP], out[NX * (NX + NU)];
        load_n(NX, (const R*)a[F_states] + (index + world) * NX, 0, 1, x);
        load_n(NU, (const R*)a[F_actions] + index * NU, 0, 1, u);
        load_n(NP, (const R*)a[F_parameters] + world * NP, 0, 1, p);
        linear_step(a, b, row, deltas, x, u, p, out);
        for (int i = 0; i < NX; ++i)
            for (int j = 0; j < NX + NU; ++j)
                if (j < NX) ((R*)a[F_A])[(index * NX + i) * NX + j] = out[i * (NX + NU) + j];
                else ((R*)a[F_B])[(index * NX + i) * NU + j - NX] = out[i * (NX + NU) + j];
    }
    """)


def pack_kernel(real: str) -> ThreadKernel:
    """Return the kernel that orders the flat weights of all members as the layers want them, one a thread."""
    return ThreadKernel(f"""
    enum {{ {", ".join(f"F_{n}" for n in FIELDS)} }};
    const int at = ((const int*)a[F_index])[thread % a[F_packed_size]];
    (({real}*)a[F_weights])[thread] = at < 0 ? 0 : ((const {real}*)a[F_flat])[thread / a[F_packed_size] * a[F_flat_size] + at];
    """)


def hand_over_kernel(real: str) -> ThreadKernel:
    """Return the kernel that copies the gradients of all weights, summed where a graph knows them, to where a call wants them."""
    return ThreadKernel(f"""
    enum {{ {", ".join(f"F_{n}" for n in FIELDS)} }};
    (({real}*)a[F_grad_weights])[thread] = ((const {real}*)a[F_gradients])[thread];
    """)


def _forward(first: str, each: str, last: str) -> str:
    return f"""
    static void item(long long* a, long index, R* row, R* deltas) {{
        const Block b(a, index);
        T x[NX], u[NU], p[NP];
        {first}
        b.load_parameters(p);
        load_n(NX, (const R*)a[F_initial] + b.first * NX, 0, 1, x);
        R* states = (R*)a[F_states] + b.first * (b.H + 1) * NX;
        for (long t = 0; t < b.H; ++t) {{
            if (a[F_states]) store_n(NX, states + t * NX, 0, 1, x);
            load_n(NU, (const R*)a[F_actions] + (b.first * b.H + t) * NU, 0, 1, u);
            {each}
            step(a, b, row, x, u, p);
        }}
        if (a[F_states]) store_n(NX, states + b.H * NX, 0, 1, x);
        {last}
    }}
    """


def _reverse(first: str, last: str, each: str) -> str:
    """Put the sweep together: ``last`` adds what the last state gives to gx, ``each`` what state and action t give to gx and gu."""
    return f"""
    static void item(long long* a, long index, R* rows, R* deltas) {{
        const Block b(a, index);
        T x[NX], u[NU], p[NP], gx[NX], gu[NU], gp[NP];
        {first}
        b.load_parameters(p);
        for (int i = 0; i < NX; ++i) gx[i] = 0;
        for (int i = 0; i < NP; ++i) gp[i] = 0;
        if (a[F_end] == b.H) {{ {last} }}
        else {{  // what a launch over later steps left
            load_n(NX, (const R*)a[F_grad_initial] + b.first * NX, 0, 1, gx);
            load_n(NP, (const R*)a[F_grad_parameters] + b.first * NP, 0, 1, gp);
        }}
        for (long t = a[F_end] - 1; t >= a[F_begin]; --t) {{
            const long at = (t - a[F_begin]) % ROWS * LANES;
            load_n(NX, (const R*)a[F_states] + (b.first * (b.H + 1) + t) * NX, 0, 1, x);
            load_n(NU, (const R*)a[F_actions] + (b.first * b.H + t) * NU, 0, 1, u);
            for (int i = 0; i < NU; ++i) gu[i] = 0;
            see(a, b.W, b.c, rows + at, x, u, p);
            step_back(a, b, rows + at, deltas + at, x, u, p, gx, gu, gp);
            {each}
            store_n(NU, (R*)a[F_grad_actions] + (b.first * b.H + t) * NU, 0, 1, gu);
        }}
        store_n(NX, (R*)a[F_grad_initial] + b.first * NX, 0, 1, gx);
        store_n(NP, (R*)a[F_grad_parameters] + b.first * NP, 0, 1, gp);
    }}
    """


def struct_text(grid: Grid, *members: str) -> str:
    """Return a struct K with the types, the memory and the members of one world a thread."""
    return f"""
struct K {{
    typedef {grid.real} R;
    enum {{ {", ".join(f"F_{n}" for n in FIELDS)} }};
    enum {{ {", ".join(f"L_{n}" for n in TABLE)}, L_COLUMNS, N_IN = L_inputs, N_OUT = L_outputs }};
    enum {{ WORLDS = 1, BLOCK = 1, LANES = {grid.lanes}, ROWS = {grid.rows}, STRIDE = LANES * ROWS }};
    {_scalar_math(grid.real)}{_MEMORY}{" ".join(members)}
}};
"""


def _kernel(grid: Grid, members: str, item: str) -> ThreadKernel:
    """Put a kernel together: types and functions, what a thread does for a world or step, and which ones it takes."""
    return ThreadKernel(f"{struct_text(grid, members, item, _THREAD)}K::run(a, thread);")


def _model_text(system: System, grid: Grid) -> str:
    return layers_text(grid) + system_text(system) + inlined(MODEL)


def inlined(text: str) -> str:
    """Return a text of the CPU whose functions may be inlined: arrays that are passed to a call leave a GPU's registers."""
    return text.replace("static __attribute__((noinline))", "static inline")


def _scalar_math(real: str) -> str:
    """Return the types and elementary functions that ``expressions.write`` needs, of one number."""
    suffix = "f" if real == "float" else ""
    functions = "".join(f"static inline T {f}_(T a) {{ return ::{f}{suffix}(a); }}\n" for f in FUNCTIONS)
    return f"""
    typedef R T;
    typedef bool TM;
    static inline T select_(TM m, T a, T b) {{ return m ? a : b; }}
    static inline T min_(T a, T b) {{ return a <= b ? a : b; }}
    static inline T max_(T a, T b) {{ return b <= a ? a : b; }}
    static inline T abs_(T a) {{ return ::fabs{suffix}(a); }}
    static inline T sign_(T a) {{ return a > (T)(0) ? (T)(1) : (a < (T)(0) ? (T)(-1) : (T)(0)); }}
    static inline TM not_(TM a) {{ return !a; }}
    static inline T pow_(T a, T b) {{ return ::pow{suffix}(a, b); }}
    static inline T atan2_(T a, T b) {{ return ::atan2{suffix}(a, b); }}
    {functions}"""


def layers_text(grid: Grid) -> str:
    """Return ``layer_forward`` and ``layer_reverse`` of one world, units STRIDE numbers apart, weights packed by eight outputs."""
    def block(outputs: int) -> str:
        groups = range(outputs // 8)
        weights = "".join(f"const Four* w{g} = (const Four*)(W + (long)(j + {8 * g}) * n);" for g in groups)
        first = "".join(f"T a{k} = bias ? bias[j + {k}] : (R)0;" for k in range(outputs))
        loads = "".join(f"const Four w{g}{h} = w{g}[2 * i + {h}];" for g in groups for h in range(2))
        sums = "".join(f"a{k} += w{k // 8}{k % 8 // 4}.{'abcd'[k % 4]} * x;" for k in range(outputs))
        last = "".join(f"Y[(j + {k}) * STRIDE] = a{k};" for k in range(outputs))
        return f"{{ {weights} {first} for (int i = 0; i < n; ++i) {{ const T x = X[i * STRIDE]; {loads} {sums} }} {last} }}"

    return f"""
    struct alignas({4 * REALS[grid.real]}) Four {{ R a, b, c, d; }};  // one load
    // segments are padded to eight slots
    static void product(const R* W, const R* bias, int n, int m, const R* X, R* Y) {{
        int j = 0;
        for (; j + {OUTPUTS_AT_ONCE - 8} < m; j += {OUTPUTS_AT_ONCE}) {block(OUTPUTS_AT_ONCE)}
        for (; j < m; j += 8) {block(8)}
    }}
    static void layer_forward(const int* l, const R* weights, R* row) {{
        product(weights + l[L_forward], weights + l[L_bias], l[N_IN], l[N_OUT], row + l[L_source] * STRIDE, row + l[L_target] * STRIDE);
        if (l[L_hidden])
            for (int k = 0; k < l[N_OUT]; ++k) put(row, l[L_target] + k, tanh_(get(row, l[L_target] + k)));
    }}
    static void layer_reverse(const int* l, const R* weights, const R* row, R* deltas) {{
        product(weights + l[L_reverse], (const R*)0, l[N_OUT], l[N_IN], deltas + l[L_target] * STRIDE, deltas + l[L_source] * STRIDE);
        if (l[L_behind_hidden])
            for (int k = 0; k < l[N_IN]; ++k) {{
                const T h = get(row, l[L_source] + k), g = get(deltas, l[L_source] + k);
                put(deltas, l[L_source] + k, g - g * (h * h));
            }}
    }}
    """


_MEMORY = """
    static inline void put(R* row, int slot, T value) { row[slot * STRIDE] = value; }
    static inline T get(const R* row, int slot) { return row[slot * STRIDE]; }
    // weights' gradients are matrix products outside
    static inline void layer_accumulate(const int*, const R*, const R*, long, int, R*) {}
    static inline void load_n(int n, const R* from, long, int, T* to) { for (int i = 0; i < n; ++i) to[i] = from[i]; }
    static inline void store_n(int n, R* to, long, int, const T* from) { for (int i = 0; i < n; ++i) to[i] = from[i]; }
    static inline void add_n(int n, const R* from, long, int, T* to) { for (int i = 0; i < n; ++i) to[i] += from[i]; }
"""

_THREAD = """
    // groups of LANES worlds or steps of one member; scratch is a launched group's own, or with kept rows the group's
    static void run(long long* a, int thread) {
        const long lane = thread % LANES, launched = a[F_threads_launched] / LANES;
        R* row = (R*)a[F_scratch] + thread / LANES * a[F_scratch_size] + lane;
        for (long g = thread / LANES; g < a[F_groups]; g += launched) {
            const long member = g / a[F_item_groups], start = g % a[F_item_groups] * LANES + lane;
            if (start < a[F_items]) item(a, member * a[F_items] + start, row, row + a[F_row] * STRIDE);
        }
    }
"""
