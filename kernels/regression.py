"""A head fitted to targets: its outputs at many inputs, and the gradient of their squared errors, in one kernel."""

from __future__ import annotations

from threading import Lock

import numpy as np

from residual_mbrl.kernels.closed_loop_text import LOOP_FIELDS, Head, head_text
from residual_mbrl.kernels.lanes import lane_count
from residual_mbrl.kernels.launch import SPAN, aligned_zeros, kept_ints, lanes
from residual_mbrl.kernels.mlp import lay_out, layers_text
from residual_mbrl.kernels.rollout import assemble, pack_kernel

PLACES = {name: i for i, name in enumerate(LOOP_FIELDS)}

MAIN = """
    // a block is a span of rows, each a register of samples wide; scratch: rows and deltas of a span
    static void block(long long* a, long index, R* scratch, long piece) {
        const long own = a[F_policy_row], span = a[F_span], N = a[F_batch];
        T x[NX], d[ND], p[1] = {}, out[NO], g[NO], target[NO], gx[NX] = {}, loss;
        long rows = 0;
        for (; rows < span; ++rows) {
            const long first = (index * span + rows) * WORLDS;
            if (first >= N) break;
            const int count = N - first < WORLDS ? N - first : WORLDS;
            R* row = scratch + rows * own;
            load_n(NX, (const R*)a[F_initial] + first * NX, NX, count, x);
            load_n(ND, (const R*)a[F_data] + first * ND, ND, count, d);
            policy_forward(a, row, x, d, p, out);
            if (a[F_states]) store_n(NO, (R*)a[F_states] + first * NO, NO, count, out);
            if (!a[F_learn]) continue;
            load_n(NO, (const R*)a[F_references] + first * NO, NO, count, target);
            loss = (T)(0);
            for (int i = 0; i < NO; ++i) {
                g[i] = out[i] - target[i];
                loss += g[i] * g[i];
                for (int k = count; k < WORLDS; ++k) g[i][k] = 0;
            }
            store_n(1, (R*)a[F_costs] + first, 1, count, &loss);
            policy_reverse(a, row, scratch + (span + rows) * own, x, d, p, g, gx);
        }
        if (!a[F_learn]) return;
        const int* l = (const int*)a[F_policy_layers];
        for (int k = 0; k < a[F_policy_nets]; ++k, l += L_COLUMNS)
            layer_accumulate(l, scratch, scratch + span * own, own, rows, (R*)a[F_gradients]);
    }
    static void conclude(long long* a) {
        if (!a[F_learn]) return;
        const int* index = (const int*)a[F_gathering];
        for (long i = 0; i < a[F_policy_flat_size]; ++i) ((R*)a[F_grad_weights])[i] = ((const R*)a[F_gradients])[index[i]];
    }
"""


class Regression:
    """A head ready to be fitted, on the calling thread.

    Args:
        head: From states and data to outputs.
        nx: Entries of a state.
        data: Entries of a sample's data, at least 1.
        real: "float" or "double".
    """

    def __init__(self, head: Head, nx: int, data: int, real: str) -> None:
        self._schedule = lanes(real, lane_count(real))
        self._net = net = lay_out([head.sizes], self._schedule)
        text = f"""
    static inline void put(R* row, int slot, T value) {{ ((T*)row)[slot] = value; }}
    static inline T get(const R* row, int slot) {{ return ((const T*)row)[slot]; }}
    enum {{ NX = {nx}, ND = {data}, NO = {head.outputs} }};
    {layers_text(self._schedule)}{head_text("policy", head, data, nx, 1)}"""
        self._call = assemble(self._schedule, text, MAIN, LOOP_FIELDS).table()
        self._pack = pack_kernel(real).table()
        dtype = np.float32 if real == "float" else np.float64
        self._packed, self._gradients = (aligned_zeros(max(n, 16), dtype=dtype) for n in (len(net.packing), net.gradients))
        row = (net.slots + 4) * self._schedule.lanes
        self._memory = [kept_ints(x) for x in (net.packing, net.layers, net.inputs, net.outputs, net.gathering)]
        self._scratch = aligned_zeros(2 * SPAN * row, dtype=dtype)
        index, layers, inputs, outputs, gathering = (x.ctypes.data for x in self._memory)
        self._index = index
        given = {"threads": 1, "finish": 1, "span": SPAN, "policy_row": row, "policy_nets": len(net.layers), "policy_layers": layers,
                 "policy_inputs": inputs, "policy_outputs": outputs, "gathering": gathering, "policy_flat_size": len(net.gathering),
                 "policy_weights": self._packed.ctypes.data, "scratch": self._scratch.ctypes.data, "scratch_size": self._scratch.size,
                 "gradients": self._gradients.ctypes.data}
        self._template = [given.get(n, 0) for n in LOOP_FIELDS]
        self._lock = Lock()

    def run(self, samples: int, weights: int, **addresses: int) -> None:
        """Write outputs, and with "learn" squared errors of each sample and the gradient of half their sum.

        Args:
            samples: How many.
            weights: Address of the flat weights.
            addresses: "initial" (states), "data", "policy_constants", and "states" (outputs) or none; with "learn" also "references"
                (targets), "costs" (squared errors) and "grad_weights".
        """
        with self._lock:
            self._pack([weights, self._index, self._packed.ctypes.data, self._packed.size, len(self._net.gathering), 1])
            self._gradients[:] = 0.0
            values = self._template.copy()
            blocks = -(-samples // (SPAN * self._schedule.lanes))
            for name, value in {"batch": samples, "blocks": blocks, "piece": blocks, **addresses}.items():
                values[PLACES[name]] = value
            self._call(values)


