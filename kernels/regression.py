"""A head fitted to targets: its outputs at many inputs, and the gradient of their squared errors, in one kernel."""

from __future__ import annotations

from collections import defaultdict
from threading import Lock

import numpy as np

from residual_mbrl.kernels.closed_loop_text import LOOP_FIELDS, Head, head_text
from residual_mbrl.kernels.launch import MULTIPLY_ADDS, PIECES, SPAN, THREAD_WORK, Pace, aligned_zeros, kept_ints, pairs
from residual_mbrl.kernels.mlp import lay_out, layers_text
from residual_mbrl.kernels.native import Call, parallel_region
from residual_mbrl.kernels.rollout import assemble, pack_kernel

FIELDS = (*LOOP_FIELDS, "order", "samples", "rounds", "mean", "square", "adam", "index", "packed_length", "pieces", "taken",
          "count")
"""The table of a launch; those at the end are of ``TRAIN``: the order in which samples are taken, samples of a step, how often all of them
are, moments of Adam, its settings, how weights are packed, pieces that a step is shared out in, and of the step that is made now its
samples and how many they are."""
PLACES = {name: i for i, name in enumerate(FIELDS)}
SETTINGS = ("step", "rate", "beta1", "beta2", "epsilon", "largest", "unit")
"""Steps of Adam made so far, its numbers, the norm that gradients are cut to, and the unit that errors are counted in."""

SUM_UP = """
    // gradients of the weights from those of the pieces, in order
    static void sum_up(long long* a, R scale) {
        const int* index = (const int*)a[F_gathering];
        const long pieces = (a[F_blocks] + a[F_piece] - 1) / a[F_piece];
        for (long i = 0; i < a[F_policy_flat_size]; ++i) {
            R sum = 0;
            for (long w = 0; w < pieces; ++w) sum += ((const R*)a[F_gradients])[w * a[F_gradient_size] + index[i]];
            ((R*)a[F_grad_weights])[i] = sum * scale;
        }
    }
"""

ONE_STEP = """
    // a block is a span of rows, each a register of samples wide; scratch: rows and deltas of a span
    static void block(long long* a, long index, R* scratch, long piece) {
        const long own = a[F_policy_row], span = a[F_span], N = a[F_batch];
        T x[NX], d[ND] = {}, p[1] = {}, out[NO], g[NO], target[NO], gx[NX] = {}, loss;
        long rows = 0;
        for (; rows < span; ++rows) {
            const long first = (index * span + rows) * WORLDS;
            if (first >= N) break;
            const int count = N - first < WORLDS ? N - first : WORLDS;
            R* row = scratch + rows * own;
            load_n(NX, (const R*)a[F_initial] + first * NX, NX, count, x);
            if (a[F_data]) load_n(ND, (const R*)a[F_data] + first * ND, ND, count, d);
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
            layer_accumulate(l, scratch, scratch + span * own, own, rows, (R*)a[F_gradients] + piece * a[F_gradient_size]);
    }
    static void conclude(long long* a) { if (a[F_learn]) sum_up(a, 1); }
"""


TRAIN = """
    static inline void gather_n(int n, const R* from, const long long* rows, int count, T* to) {
        for (int i = 0; i < n; ++i)
            for (int k = 0; k < WORLDS; ++k) to[i][k] = from[rows[k < count ? k : count - 1] * n + i];
    }
    static inline void fetch_n(int n, const R* from, const long long* rows, long count) {
        for (long k = 0; k < count && k < WORLDS; ++k) __builtin_prefetch(from + rows[k] * n);
    }
    static inline T read(const R* from, long count) {
        T v = (T)(0);
        if (count >= WORLDS) __builtin_memcpy(&v, from, sizeof(T));
        else for (long k = 0; k < count; ++k) v[k] = from[k];
        return v;
    }
    static inline void write(T v, R* to, long count) {
        if (count >= WORLDS) __builtin_memcpy(to, &v, sizeof(T));
        else for (long k = 0; k < count; ++k) to[k] = v[k];
    }
    static void pack(long long* a, const R* flat) {
        const int* index = (const int*)a[F_index];
        R* packed = (R*)a[F_policy_weights];
        for (long i = 0; i < a[F_packed_length]; ++i) packed[i] = index[i] < 0 ? 0 : flat[index[i]];
    }
    // a block is a span of rows of this step's samples; adds the gradient of half their squared errors, and these, to its piece's
    static void block(long long* a, long index, R* scratch, long piece) {
        const long own = a[F_policy_row], span = a[F_span], begin = index * span * WORLDS;
        const long long* rows = (const long long*)a[F_taken] + begin;
        const R *states = (const R*)a[F_initial], *data = (const R*)a[F_data], *targets = (const R*)a[F_references];
        R* gradients = (R*)a[F_gradients] + piece * a[F_gradient_size];
        T x[NX], d[ND] = {}, p[1] = {}, out[NO], g[NO], target[NO], gx[NX] = {}, loss = (T)(0);
        long used = 0, left = a[F_count] - begin;
        for (; used < span && left > 0; ++used, rows += WORLDS, left -= WORLDS) {
            const int count = left < WORLDS ? left : WORLDS;
            R* row = scratch + used * own;
            gather_n(NX, states, rows, count, x);
            if (data) gather_n(ND, data, rows, count, d);
            gather_n(NO, targets, rows, count, target);
            fetch_n(NX, states, rows + WORLDS, left - WORLDS);  // the next ones, which lie anywhere
            fetch_n(NO, targets, rows + WORLDS, left - WORLDS);
            policy_forward(a, row, x, d, p, out);
            for (int i = 0; i < NO; ++i) {
                g[i] = out[i] - target[i];
                for (int k = count; k < WORLDS; ++k) g[i][k] = 0;
                loss += g[i] * g[i];
            }
            policy_reverse(a, row, scratch + (span + used) * own, x, d, p, g, gx);
        }
        const int* l = (const int*)a[F_policy_layers];
        for (int k = 0; k < a[F_policy_nets]; ++k, l += L_COLUMNS)
            layer_accumulate(l, scratch, scratch + span * own, own, used, gradients);
        for (int k = 0; k < WORLDS; ++k) gradients[a[F_gradient_size] - 1] += loss[k];
    }
    // the samples of one step, shared out; returns the sum of their squared errors
    static R gradient_of(long long* a, const long long* rows, long n, R scale) {
        a[F_taken] = (long long)rows;
        a[F_count] = n;
        a[F_blocks] = (n + a[F_span] * WORLDS - 1) / (a[F_span] * WORLDS);
        a[F_piece] = (a[F_blocks] + a[F_pieces] - 1) / a[F_pieces];
        a[F_next] = a[F_entered] = 0;
        for (long i = 0; i < a[F_gradient_size] * a[F_pieces]; ++i) ((R*)a[F_gradients])[i] = 0;
        share(a);
        sum_up(a, scale);
        R sum = 0;
        for (long w = 0; w < a[F_pieces]; ++w) sum += ((const R*)a[F_gradients])[(w + 1) * a[F_gradient_size] - 1];
        return sum;
    }
    static void train(long long* a) {
        const double* s = (const double*)a[F_adam];
        const double rate = s[1], beta1 = s[2], beta2 = s[3], epsilon = s[4], largest = s[5], unit = s[6];
        const long N = a[F_batch], size = a[F_samples], flat_size = a[F_policy_flat_size];
        R *flat = (R*)a[F_flat], *mean = (R*)a[F_mean], *square = (R*)a[F_square], *by = (R*)a[F_grad_weights], *errors = (R*)a[F_costs];
        double step = s[0];
        for (long round = 0; round < a[F_rounds]; ++round)
            for (long begin = 0; begin < N; begin += size) {
                const long n = N - begin < size ? N - begin : size;
                pack(a, flat);
                *errors++ = gradient_of(a, (const long long*)a[F_order] + round * N + begin, n, 2 / (n * unit)) / n;
                double parts[8] = {}, norm = 0;
                for (long i = 0; i < flat_size; ++i) parts[i % 8] += (double)by[i] * by[i];
                for (int k = 0; k < 8; ++k) norm += parts[k];
                norm = __builtin_sqrt(norm);
                if (!(norm < __builtin_inf())) continue;
                const double cut = largest / (norm + 1e-6);
                const R share = cut < 1 ? cut : 1;
                step += 1;
                const R pace = rate / (1 - ::pow(beta1, step)), root = 1 / __builtin_sqrt(1 - ::pow(beta2, step));
                const R keep1 = beta1, keep2 = beta2, new1 = 1 - beta1, new2 = 1 - beta2, least = epsilon;
                for (long i = 0; i < flat_size; i += WORLDS) {
                    const long left = flat_size - i;
                    const T g = read(by + i, left) * share;
                    const T m = read(mean + i, left) * keep1 + g * new1, v = read(square + i, left) * keep2 + g * g * new2;
                    write(m, mean + i, left);
                    write(v, square + i, left);
                    write(read(flat + i, left) - pace * m / (sqrt_(v) * root + least), flat + i, left);
                }
            }
        ((double*)a[F_adam])[0] = step;
    }
    static void conclude(long long* a) {}
"""


class Regression:
    """A head ready to be fitted.

    Args:
        head: From states and data to outputs.
        nx: Entries of a state.
        data: Entries of a sample's data, at least 1.
        real: "float" or "double".
    """

    def __init__(self, head: Head, nx: int, data: int, real: str) -> None:
        self._schedule = pairs(real)
        self._net = net = lay_out([head.sizes], self._schedule)
        text = f"""
    static inline void put(R* row, int slot, T value) {{ ((T*)row)[slot] = value; }}
    static inline T get(const R* row, int slot) {{ return ((const T*)row)[slot]; }}
    enum {{ NX = {nx}, ND = {data}, NO = {head.outputs} }};
    {layers_text(self._schedule)}{head_text("policy", head, data, nx, 1, to_state=False)}{SUM_UP}"""
        self._one_step = assemble(self._schedule, text, ONE_STEP, FIELDS).table()
        self._train = assemble(self._schedule, text, TRAIN, FIELDS, "train").table()
        self._pack = pack_kernel(real).table()
        self._paces: defaultdict[object, Pace] = defaultdict(Pace)
        self._real = np.float32 if real == "float" else np.float64
        self._packed = aligned_zeros(max(len(net.packing), 16), dtype=self._real)
        self._row = (net.slots + 4) * self._schedule.lanes
        self._span = SPAN // self._schedule.registers
        self._memory = [kept_ints(x) for x in (net.packing, net.layers, net.inputs, net.outputs, net.gathering)]
        self._work: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        index, layers, inputs, outputs, gathering = (x.ctypes.data for x in self._memory)
        self._index = index
        given = {"finish": 1, "policy_row": self._row, "policy_nets": len(net.layers), "policy_layers": layers, "policy_inputs": inputs,
                 "policy_outputs": outputs, "gathering": gathering, "policy_flat_size": len(net.gathering),
                 "policy_weights": self._packed.ctypes.data, "scratch_size": 2 * self._span * self._row,
                 "gradient_size": net.gradients + 16, "index": index, "packed_length": len(net.packing), "region": parallel_region()}
        self._template = [given.get(n, 0) for n in FIELDS]
        self._lock = Lock()

    def run(self, samples: int, weights: int, workers: int = 1, **addresses: int) -> None:
        """Write outputs, and with "learn" squared errors of each sample and the gradient of half their sum.

        Args:
            samples: How many.
            weights: Address of the flat weights.
            workers: Threads at most.
            addresses: "initial" (states), "data" or none for zeros, "policy_constants", and "states" (outputs) or none; with "learn"
                also "references" (targets), "costs" (squared errors) and "grad_weights".
        """
        with self._lock:
            self._pack([weights, self._index, self._packed.ctypes.data, self._packed.size, len(self._net.gathering), 1])
            shared = self._shared(samples, workers)
            blocks = -(-samples // (shared["span"] * self._schedule.lanes))
            self._work[shared["pieces"]][1][:] = 0.0
            self._launch(self._one_step, "run", {"batch": samples, "blocks": blocks, "piece": -(-blocks // shared["pieces"]), **shared,
                                                 **addresses})

    def train(self, samples: int, size: int, rounds: int, workers: int = 1, **addresses: int) -> None:
        """Take steps of Adam, ``size`` samples each, and write the mean squared error before each step.

        Args:
            samples: How many there are.
            size: Samples of a step.
            rounds: How often all are taken.
            workers: Threads at most.
            addresses: "flat" (weights, changed in place), "initial" (states), "data" or none for zeros, "references" (targets),
                "policy_constants", "order" (int64 [rounds, samples]), "mean" and "square" (moments of Adam, changed in place), "adam"
                (float64, as ``SETTINGS``; the step is changed in place), "grad_weights" (scratch of the weights' size) and "costs"
                (errors).
        """
        with self._lock:
            self._launch(self._train, "train", {"batch": samples, "samples": size, "rounds": rounds,
                                                **self._shared(min(size, samples), workers), **addresses})

    def _shared(self, samples: int, workers: int) -> dict[str, int]:
        """Return how so many samples are shared out: threads, pieces, rows of a block, and memory for them."""
        rows = -(-samples // self._schedule.lanes)
        seconds = 3 * samples * len(self._net.gathering) / MULTIPLY_ADDS
        threads = min(workers, rows) if parallel_region() and seconds >= THREAD_WORK else 1
        pieces = threads * PIECES if threads > 1 else 1
        if pieces not in self._work:
            self._work[pieces] = (aligned_zeros(threads, 2 * self._span * self._row, dtype=self._real),
                                  aligned_zeros(pieces, self._net.gradients + 16, dtype=self._real))
        scratch, gradients = (x.ctypes.data for x in self._work[pieces])
        return {"threads": threads, "pieces": pieces, "span": min(self._span, -(-rows // pieces)), "scratch": scratch,
                "gradients": gradients}

    def _launch(self, call: Call, kind: str, given: dict[str, int]) -> None:
        values = self._template.copy()
        for name, value in given.items():
            values[PLACES[name]] = value
        if given["threads"] == 1:
            call(values)
        else:
            self._paces[kind, given["batch"], given.get("samples")].launch(call, values)
