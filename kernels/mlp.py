"""Networks inside a kernel: packed weights, forward, adjoint and weight gradients, in schedules of one interface.

A network is a table of layers that the kernel reads at run time, so one compiled kernel serves every width and depth.
A *row* holds all units of one step of one block of worlds, each network's inputs, hidden units and outputs in segments; a
*slot* is the place of a unit in its row. Rows of deltas (the loss by a layer's input sum) have the same layout.

- ``lanes``: a block is as many worlds as a register has lanes, and a slot is a register. Sixteen outputs are summed at a time, so
  that sixteen multiply-adds are in flight: 238 GFLOP/s on one Zen 5 core for a 64 x 64 layer, 91 % of its peak (BLAS: 90 GFLOP/s).
- ``pairs``: a slot is two registers, for closed loops and fits with worlds or samples enough. A weight that is loaded serves both,
  so that not loads but multiply-adds are the limit.
- ``units``: a block is one world, and a register holds 16 units of a layer: no lane is wasted on a batch of one.

Weight gradients are matrix products over all rows of a chunk of time and all worlds: a tile of them stays in registers while the
rows stream by, and its lanes are summed once a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from residual_mbrl.kernels.native import REALS

TABLE = ("inputs", "outputs", "source", "target", "forward", "bias", "reverse", "gradient", "bias_gradient", "hidden", "behind_hidden")
"""Columns of the layer table: sizes, slots of both ends, places of the packed weights and of their gradients, and whether a tanh
follows the layer or stands before it."""
CHAINS = 8
"""Sums that must be under way at once to hide the latency of a multiply-add."""
PHASES = 8
"""Inputs of a wide layer are a multiple of this: so many partial sums hide the latency of an addition."""


@dataclass(frozen=True)
class Schedule:
    """How worlds and networks are laid over registers.

    Args:
        name: "lanes", "pairs", "units" or "problems".
        worlds: Worlds of a block.
        real: "float" or "double".
        lanes: Numbers of a slot.
        registers: Registers of a slot.
    """

    name: str
    worlds: int
    real: str
    lanes: int
    registers: int = 1

    @property
    def wide(self) -> bool:
        """Whether a register holds units of one world."""
        return self.name == "units"

    @property
    def pad(self) -> int:
        """Slots of a segment are a multiple of this."""
        return self.lanes if self.wide else 8

    @property
    def world_lanes(self) -> int:
        """Numbers in a register of worlds: a single world is computed as four equal ones, which costs no more."""
        return 4 if self.wide else self.lanes


def layers_text(schedule: Schedule) -> str:
    """Return ``layer_forward``, ``layer_reverse`` and ``layer_accumulate`` as C++ members, for ``lane_math`` types N and real R."""
    product, accumulate = ((_wide_product(), _wide_accumulate(schedule.lanes)) if schedule.wide else
                           (_lane_product(schedule), _lane_accumulate(schedule)))
    m_units = f"(l[N_OUT] + {schedule.lanes - 1}) / {schedule.lanes}" if schedule.wide else "l[N_OUT]"
    unit = "R" if schedule.wide else "N"
    return f"""
enum {{ {", ".join(f"L_{n}" for n in TABLE)}, L_COLUMNS, N_IN = L_inputs, N_OUT = L_outputs }};
{product}{accumulate}
static void layer_forward(const int* l, const R* weights, R* row) {{
    {unit}* units = ({unit}*)row;
    product(weights + l[L_forward], weights + l[L_bias], l[N_IN], l[N_OUT], units + l[L_source], units + l[L_target], 0);
    if (l[L_hidden]) {{
        N* h = (N*)(units + l[L_target]);
        for (int k = 0; k < {m_units}; ++k) h[k] = tanh_(h[k]);
    }}
}}
static void layer_reverse(const int* l, const R* weights, const R* row, R* deltas) {{
    const {unit}* units = (const {unit}*)row;
    {unit}* d = ({unit}*)deltas;
    product(weights + l[L_reverse], (const R*)0, l[N_OUT], l[N_IN], d + l[L_target], d + l[L_source],
            l[L_behind_hidden] ? units + l[L_source] : 0);
}}
static void layer_accumulate(const int* l, const R* rows, const R* deltas, long stride, int count, R* gradients) {{
    const {unit}* units = (const {unit}*)rows;
    const {unit}* d = (const {unit}*)deltas;
    accumulate(l[N_IN], l[N_OUT], units + l[L_source], d + l[L_target], stride / (long)(sizeof({unit}) / sizeof(R)), count,
               gradients + l[L_gradient], gradients + l[L_bias_gradient]);
}}
"""


def _lane_product(schedule: Schedule) -> str:
    """Return ``product``: a layer of packed weights [outputs / 8, inputs, 8], one world a lane.

    Eight outputs at once, sixteen where a slot is a register of 64 bytes, of which a processor has many; what is left over, such as
    the one output of a value, without its padding and in as many partial sums as hide the latency of an addition. Given the units H
    behind a tanh, outputs are multiplied by its slope.
    """
    def block(outputs: int) -> str:
        phases = max(1, CHAINS // (outputs * schedule.registers))
        names = [[f"a{k}_{q}" for q in range(phases)] for k in range(outputs)]
        first = "".join(f"N {name} = " + (f"bias ? (N)(bias[j + {k}]) : (N)(0);" if q == 0 else "(N)(0);")
                        for k, row in enumerate(names) for q, name in enumerate(row))
        weight = "w{0}[8 * (i + {1}) + {2}]"
        sums = ["".join(f"{names[k][q]} += {weight.format(k // 8, q, k % 8)} * x;" for k in range(outputs)) for q in range(phases)]
        last = "".join(f"{row[0]} = {' + '.join(row)};" for row in names if phases > 1)
        slopes = "".join(f"const N h{k} = H[j + {k}]; {row[0]} -= {row[0]} * (h{k} * h{k});" for k, row in enumerate(names))
        last += f"if (H) {{ {slopes} }}"
        last += "".join(f"Y[j + {k}] = {row[0]};" for k, row in enumerate(names))
        more = "const R* w1 = w0 + 8L * n;" if outputs == 16 else ""
        whole = "".join(f"{{ const N x = X[i + {q}]; {part} }}" for q, part in enumerate(sums))
        rest = f"for (; i < n; ++i) {{ const N x = X[i]; {sums[0]} }}" if phases > 1 else ""
        return f"""{{
        const R* w0 = W + (long)j * n; {more} {first}
        int i = 0;
        for (; i + {phases - 1} < n; i += {phases}) {{ {whole} }}
        {rest}
        {last}
    }}"""

    by_sixteen = f"for (; j + 14 < m; j += 16) {block(16)}" if schedule.lanes * REALS[schedule.real] == 64 else ""
    few = " else ".join(f"if (m - j <= {k}) {block(k)}" for k in (1, 2, 4, 6))
    return f"""
static __attribute__((noinline)) void product(const R* W, const R* bias, int n, int m, const N* X, N* Y, const N* H) {{
    int j = 0;
    {by_sixteen}
    for (; j + 6 < m; j += 8) {block(8)}
    if (j >= m) return;
    {few}
}}
"""


def _lane_accumulate(schedule: Schedule) -> str:
    """Return ``accumulate``: gradients in tiles of 4 x 4, the lanes of sixteen sums folded together, a slot's registers one by one."""
    lanes, registers = schedule.lanes // schedule.registers, schedule.registers
    evens, odds = (", ".join(str(k) for k in range(first, 2 * lanes, 2)) for first in (0, 1))
    folds, width = [], 16
    while width > 16 // lanes:
        width //= 2
        folds.append("".join(f"s[{k}] = pair(s[{2 * k}], s[{2 * k + 1}]);" for k in range(width)))

    def tile(first: bool) -> str:
        """Return the sums of a tile, on the way through the first inputs those of the deltas themselves too."""
        sums = "".join(f"s[{4 * i + j}] += x{i} * d{j};" for i in range(4) for j in range(4))
        sums += "".join(f"b{j} += d{j};" for j in range(4)) if first else ""
        loads = ["".join(f"const V x{k} = x[{k * registers + q}], d{k} = d[{k * registers + q}];" for k in range(4))
                 for q in range(registers)]
        return f"""
            V s[16] = {{}};
            const V* x = (const V*)(X + 4 * i);
            const V* d = (const V*)(D + 4 * j);
            for (int r = 0; r < rows; ++r, x += stride, d += stride) {{ {"".join(f"{{ {load} {sums} }}" for load in loads)} }}
            fold(s, G + 16L * (i * tiles + j));"""

    biases = "".join(f"b[4 * (j % 4) + {k}] = b{k};" for k in range(4))
    return f"""
typedef R V __attribute__((ext_vector_type({lanes})));
static inline V pair(V a, V b) {{ return __builtin_shufflevector(a, b, {evens}) + __builtin_shufflevector(a, b, {odds}); }}
static inline void fold(V* s, R* to) {{
    {" ".join(folds)}
    V* g = (V*)to;
    for (int k = 0; k < {16 // lanes}; ++k) g[k] += s[k];
}}
static __attribute__((noinline)) void accumulate(int n, int m, const N* X, const N* D, long stride, int rows, R* G, R* Gb) {{
    const int tiles = (m + 3) / 4;
    stride *= {registers};
    V b[16];
    for (int j = 0, i = 0; j < tiles; ++j) {{
        V {", ".join(f"b{k} = (V)(0)" for k in range(4))};
        {tile(True)}
        {biases}
        if (j % 4 < 3 && j + 1 < tiles) continue;
        for (int k = 4 * (j % 4) + 4; k < 16; ++k) b[k] = (V)(0);
        fold(b, Gb + j / 4 * 16);
    }}
    for (int i = 1; i < (n + 3) / 4; ++i)
        for (int j = 0; j < tiles; ++j) {{ {tile(False)} }}
}}
"""


def _wide_product() -> str:
    """Return ``product``: packed weights [outputs / lanes, inputs, lanes], units of one world in the lanes."""
    def block(groups: int, phases: int) -> str:
        names = [[f"a{g}_{q}" for q in range(phases)] for g in range(groups)]
        first = "".join(f"N {names[g][q]} = " + (f"bias ? *(const N*)(bias + j + {g} * LANES) : (N)(0);" if q == 0 else "(N)(0);")
                        for g in range(groups) for q in range(phases))
        sums = "".join(f"{{ const R x = X[i + {q}]; " + "".join(f"{names[g][q]} += x * w[({g} * padded + i + {q})];" for g in range(groups))
                       + "}" for q in range(phases))
        last = ""
        for g in range(groups):
            row = names[g]
            while len(row) > 1:
                row = [f"({row[k]} + {row[k + 1]})" for k in range(0, len(row), 2)]
            last += f"*(N*)(Y + j + {g} * LANES) = {row[0]};"
        return f"""
        const N* w = (const N*)(W + (long)j * padded); {first}
        for (int i = 0; i < padded; i += {phases}) {{ {sums} }}
        {last}"""

    return f"""
enum {{ LANES = sizeof(N) / sizeof(R) }};
static __attribute__((noinline)) void product(const R* W, const R* bias, int n, int m, const R* X, R* Y, const R* H) {{
    const int padded = (n + {PHASES - 1}) / {PHASES} * {PHASES};
    int j = 0;
    for (; j + 3 * LANES < m; j += 4 * LANES) {{ {block(4, 4)} }}
    for (; j + LANES < m; j += 2 * LANES) {{ {block(2, 8)} }}
    for (; j < m; j += LANES) {{ {block(1, 8)} }}
    if (!H) return;
    N* g = (N*)Y;
    const N* h = (const N*)H;
    for (int k = 0; k < (m + LANES - 1) / LANES; ++k) g[k] = g[k] - g[k] * (h[k] * h[k]);
}}
"""


def _wide_accumulate(lanes: int) -> str:
    """Return ``accumulate``: gradients [inputs, outputs padded to registers], eight inputs at a time."""
    sums = "".join(f"a{k} += x[{k}] * e;" for k in range(8))
    adds = "".join(f"g[{k} * blocks] += a{k};" for k in range(8))
    return f"""
static __attribute__((noinline)) void accumulate(int n, int m, const R* X, const R* D, long stride, int rows, R* G, R* Gb) {{
    const int blocks = (m + {lanes - 1}) / {lanes};
    for (int j = 0; j < blocks; ++j) {{
        for (int i = 0; i < (n + 7) / 8; ++i) {{
            N {", ".join(f"a{k} = (N)(0)" for k in range(8))};
            const R* x = X + 8 * i;
            const R* d = D + {lanes} * j;
            for (int r = 0; r < rows; ++r, x += stride, d += stride) {{ const N e = *(const N*)d; {sums} }}
            N* g = (N*)G + (8L * i * blocks + j);
            {adds}
        }}
        N b = (N)(0);
        for (int r = 0; r < rows; ++r) b += *(const N*)(D + r * stride + {lanes} * j);
        ((N*)Gb)[j] += b;
    }}
}}
"""


class Network(NamedTuple):
    """One or more perceptrons laid out for a schedule; all index arrays are int32."""

    layers: np.ndarray
    """Layer table, shape [layers, columns]."""
    inputs: np.ndarray
    """Slot of each input, shape [inputs]."""
    outputs: np.ndarray
    """Slot of each output, shape [outputs]."""
    squashed: np.ndarray
    """Whether a tanh follows each output, shape [outputs]."""
    spans: np.ndarray
    """First layer of each output's network, and the one behind its last, shape [outputs, 2]."""
    slots: int
    """Slots of a row."""
    packing: np.ndarray
    """For every entry of the packed weights the entry of the flat ones, -1 for padding."""
    gathering: np.ndarray
    """For every flat weight the entry of the gradient array."""
    gradients: int
    """Numbers of a gradient array."""


def lay_out(networks: Sequence[Sequence[int]], schedule: Schedule, squashed: Sequence[bool] = ()) -> Network:
    """Lay networks out for a schedule.

    Flat weights are, network by network and layer by layer, the matrix [inputs, outputs] by rows and then the bias. Inputs and
    outputs of all networks follow each other in the order of the networks.

    Args:
        networks: Sizes of each network, inputs first: (5, 64, 64, 2).
        schedule: How units lie in registers.
        squashed: For each network whether a tanh follows its outputs too; none does where missing.
    """
    if not networks:
        none = np.zeros(0, np.int32)
        return Network(np.zeros((0, len(TABLE)), np.int32), none, none, none, none.reshape(0, 2), 0, none, none, 0)
    squashed = tuple(squashed) or (False,) * len(networks)
    places, table, spans, packing, gathering = _Places(schedule), [], [], [], []
    inputs: list[int] = []
    outputs: list[int] = []
    for sizes, squash in zip(networks, squashed, strict=True):
        starts = [places.segment(size) for size in sizes]
        inputs += range(starts[0], starts[0] + sizes[0])
        outputs += range(starts[-1], starts[-1] + sizes[-1])
        spans += [(len(table), len(table) + len(sizes) - 1)] * sizes[-1]
        for k, (n, m) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
            packed, (g, gb), gathered = places.layer(n, m)
            packing += [p for p, _ in packed]
            gathering += gathered
            table.append([n, m, starts[k], starts[k + 1], *(at for _, at in packed), g, gb, int(squash or k < len(sizes) - 2), int(k > 0)])
    return Network(np.array(table, np.int32), np.array(inputs, np.int32), np.array(outputs, np.int32),
                   np.repeat(np.array(squashed, np.int32), [sizes[-1] for sizes in networks]), np.array(spans, np.int32), places.slots,
                   np.concatenate(packing).astype(np.int32), np.concatenate(gathering).astype(np.int32), places.gradients)


class _Places:
    """Hands out places in rows, flat weights, packed weights and gradients."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.slots = self.flat = self.packed = self.gradients = 0

    def segment(self, size: int) -> int:
        """Return the first slot of so many units."""
        start, self.slots = self.slots, self.slots + _up(size, self.schedule.pad)
        return start

    def layer(self, n: int, m: int) -> tuple[list[tuple[np.ndarray, int]], tuple[int, int], list[np.ndarray]]:
        """Return packed matrix, bias and transposed matrix with their places, places of the gradients, and where each is gathered."""
        index = self.flat + np.arange(n * m).reshape(n, m)
        bias = self.flat + n * m + np.arange(m)
        self.flat += n * m + m
        wide, lanes = self.schedule.wide, self.schedule.lanes
        row = lanes if wide else 8
        parts = []
        for part in (_packed(index, _up(n, PHASES) if wide else n, _up(m, row), row),
                     np.concatenate([bias, np.full(_up(m, row) - m, -1)]),
                     _packed(index.T, _up(m, PHASES) if wide else m, _up(n, row), row)):
            parts.append((part, self.packed))
            self.packed += part.size
            extra = -self.packed % 16  # every part starts on a cache line
            parts[-1] = (np.concatenate([part, np.full(extra, -1)]), parts[-1][1])
            self.packed += extra
        g = self.gradients
        i, j = np.meshgrid(np.arange(n), np.arange(m), indexing="ij")
        if wide:
            columns = _up(m, lanes)
            at, size = g + i * columns + j, _up(n, 8) * columns
        else:
            tiles = -(-m // 4)
            at, size = g + 16 * (i // 4 * tiles + j // 4) + 4 * (i % 4) + j % 4, 16 * -(-n // 4) * tiles
        self.gradients = g + size + _up(m, 16)
        return parts, (g, g + size), [at.ravel(), g + size + np.arange(m)]


def _up(n: int, to: int) -> int:
    return -(-n // to) * to


def _packed(index: np.ndarray, n: int, m: int, row: int) -> np.ndarray:
    """Order the entries of a matrix [inputs, outputs] as [outputs / row, inputs, row], padded with -1 to n inputs, m outputs."""
    padded = np.full((n, m), -1)
    padded[: index.shape[0], : index.shape[1]] = index
    return padded.reshape(n, m // row, row).transpose(1, 0, 2).ravel()
