"""C++ of a closed loop: networks that look at the state within a step, and worlds that go through a horizon under a policy."""

from __future__ import annotations

from typing import NamedTuple

from residual_mbrl.kernels.block_text import FIELDS
from residual_mbrl.kernels.system import adjoint_text, member_text
from residual_mbrl.kernels.tracing import Function


class Head(NamedTuple):
    """A perceptron between two Warp functions of one world, shared by all worlds: ``out = emit(net(features(x, d, p, c)), x, d, p, c)``.

    ``d`` is data of the step that no gradient reaches: noise, goals.
    """

    features: Function
    emit: Function
    sizes: tuple[int, ...]
    """Units of each layer, inputs first."""
    outputs: int
    """Entries of what is emitted."""
    constants: int
    key: object
    """Tells this head from others: equal keys share compiled code."""


TABLE = ("layers", "inputs", "outputs", "nets", "weights", "constants", "row")
"""What a launch knows of a head: its layer table, the slots of its inputs and outputs, layers, packed weights, constants, and its row."""
LOOP_FIELDS = (*FIELDS, *(f"policy_{n}" for n in TABLE), *(f"value_{n}" for n in TABLE), "policy_flat_size", "data", "discounts", "running",
               "acted")
"""The table of a launch under a policy: the data of each step and of the end, discounts of each step and of the end, where to put each
step's cost, and where to put actions."""


def head_text(name: str, head: Head, data: int, nx: int, parameters: int, *, to_state: bool = True) -> str:
    """Return C++ members ``name_forward`` and ``name_reverse`` of a head, and the functions that they call.

    Args:
        name: Of the head.
        head: Its functions and sizes.
        data: Entries of a step's data.
        nx: Entries of a state.
        parameters: Physical parameters.
        to_state: Whether the reverse goes on through the first layer to the state, or ends with what its weights need.
    """
    x, d, p, c, y = ("x", nx), ("d", data), ("p", parameters), ("c", head.constants), ("y", head.sizes[-1])
    nz, ny, fixed = head.sizes[0], head.sizes[-1], ("d", "p", "c")
    table = {n: f"a[F_{name}_{n}]" for n in TABLE}
    parts = [*member_text(f"{name}_features", head.features, [x, d, p, c], nz),
             *member_text(f"{name}_emit", head.emit, [y, x, d, p, c], head.outputs),
             *adjoint_text(f"{name}_features", head.features, [x, d, p, c], nz, fixed),
             *adjoint_text(f"{name}_emit", head.emit, [y, x, d, p, c], head.outputs, fixed)]
    through = f"""for (int i = 0; i < {nz}; ++i) gz[i] = get(deltas, inputs[i]);
        d_{name}_features(x, d, p, c, gz, gx);""" if to_state else ""
    return "\n".join(parts) + f"""
    static __attribute__((noinline)) void {name}_forward(const long long* a, R* row, const T* x, const T* d, const T* p, T* out) {{
        const R* c = (const R*){table["constants"]};
        T z[{nz}], y[{ny}];
        {name}_features(x, d, p, c, z);
        const int* inputs = (const int*){table["inputs"]};
        const int* outputs = (const int*){table["outputs"]};
        for (int i = 0; i < {nz}; ++i) put(row, inputs[i], z[i]);
        const int* l = (const int*){table["layers"]};
        for (int k = 0; k < {table["nets"]}; ++k, l += L_COLUMNS) layer_forward(l, (const R*){table["weights"]}, row);
        for (int i = 0; i < {ny}; ++i) y[i] = get(row, outputs[i]);
        {name}_emit(y, x, d, p, c, out);
    }}
    // leaves the deltas of all layers from g, by the output, and adds to gx what comes through
    static __attribute__((noinline)) void {name}_reverse(const long long* a, const R* row, R* deltas, const T* x, const T* d, const T* p,
                                                         const T* g, T* gx) {{
        const R* c = (const R*){table["constants"]};
        T y[{ny}], gy[{ny}] = {{}}, gz[{nz}];
        const int* inputs = (const int*){table["inputs"]};
        const int* outputs = (const int*){table["outputs"]};
        for (int i = 0; i < {ny}; ++i) y[i] = get(row, outputs[i]);
        d_{name}_emit(y, x, d, p, c, g, gy, gx);
        for (int i = 0; i < {ny}; ++i) put(deltas, outputs[i], gy[i]);
        const int* l = (const int*){table["layers"]} + ({table["nets"]} - 1) * L_COLUMNS;
        for (int k = {0 if to_state else 1}; k < {table["nets"]}; ++k, l -= L_COLUMNS)
            layer_reverse(l, (const R*){table["weights"]}, row, deltas);
        {through}
    }}
"""


LOOP = """
    static inline void load_data(const long long* a, const Block& b, long t, T* d) {
        load_n(ND, (const R*)a[F_data] + (b.first * (b.H + 1) + t) * ND, (b.H + 1) * ND, b.count, d);
    }
    static inline T discount(const long long* a, long t) { return (T)(a[F_discounts] ? ((const R*)a[F_discounts])[t] : (R)1); }
    static inline void note(long long* a, const Block& b, long t, const T* x, const T* u, const T* cost) {
        if (a[F_states]) store_n(NX, (R*)a[F_states] + (b.first * (b.H + 1) + t) * NX, (b.H + 1) * NX, b.count, x);
        if (t == b.H) return;
        if (a[F_acted]) store_n(NU, (R*)a[F_acted] + (b.first * b.H + t) * NU, b.H * NU, b.count, u);
        if (a[F_running]) store_n(1, (R*)a[F_running] + b.first * b.H + t, b.H, b.count, cost);
    }
    static void conclude_policy(const long long* a) {
        if (!a[F_learn]) return;
        const int* index = (const int*)a[F_gathering];
        for (long i = 0; i < a[F_policy_flat_size]; ++i) {
            R sum = 0;
            for (long w = 0; w * a[F_piece] < a[F_blocks]; ++w) sum += ((const R*)a[F_gradients])[w * a[F_gradient_size] + index[i]];
            ((R*)a[F_grad_weights])[i] = sum;
        }
    }
"""

COST = """
    static void block(long long* a, long index, R* scratch, long piece) {
        Block b(a, index);
        R* own = scratch + a[F_row];
        T x[NX], u[NU], p[NP], r[NR], d[ND], total = (T)(0), now;
        b.load_parameters(p);
        load_n(NX, (const R*)a[F_initial] + b.first * NX, NX, b.count, x);
        TM state_is_finite = (T)(0) == (T)(0), data_are_finite = state_is_finite;
        check(x, NX, state_is_finite);
        for (long t = 0; t < b.H; ++t) {
            load_data(a, b, t, d);
            check(d, ND, data_are_finite);
            policy_forward(a, own, x, d, p, u);
            b.load_reference(t, NR, r);
            running(x, u, r, &now);
            note(a, b, t, x, u, &now);
            total += discount(a, t) * now;
            step(a, b, scratch, x, u, p);
        }
        note(a, b, b.H, x, u, &now);
        b.load_reference(b.H, NR, r);
        load_data(a, b, b.H, d);
        terminal(x, r, &now);
        total += discount(a, b.H) * (now + worth(a, own, x, d, p));
        store_n(1, (R*)a[F_costs] + b.first, 1, b.count, &total);
        report(a, state_is_finite, STATUS_STATE);
        report(a, data_are_finite, STATUS_ACTION);
    }
    static void conclude(long long* a) {}
"""

GRADIENT = """
    // scratch: a row of deltas of the model and of the value, of the policy those of a span; rows of a chunk, states and actions of a
    // chunk, and a checkpoint at the start of every chunk
    static void block(long long* a, long index, R* scratch, long piece) {
        Block b(a, index);
        const long chunk = a[F_chunk], size = a[F_row], own = a[F_policy_row], last = (b.H - 1) / chunk * chunk;
        R* deltas = scratch;
        R* end_row = deltas + size;
        R* own_deltas = end_row + 2 * a[F_value_row];
        R* rows = own_deltas + a[F_span] * own;
        R* own_rows = rows + chunk * size;
        T* states = (T*)(own_rows + chunk * own);
        T* actions = states + chunk * NX;
        T* checkpoints = actions + chunk * NU;
        T x[NX], u[NU], p[NP], r[NR], d[ND], gx[NX] = {}, gu[NU], gp[NP] = {}, total = (T)(0), now, seed = (T)(1);
        b.load_parameters(p);
        load_n(NX, (const R*)a[F_initial] + b.first * NX, NX, b.count, x);
        TM state_is_finite = (T)(0) == (T)(0), data_are_finite = state_is_finite;
        check(x, NX, state_is_finite);
        if (a[F_seeds]) load_n(1, (const R*)a[F_seeds] + b.first, 1, b.count, &seed);
        for (int k = b.count; k < WORLDS; ++k) seed[k] = 0;  // lanes without a world must not reach the weights
        for (long t = 0; t < b.H; ++t) {
            const long at = t % chunk;
            if (at == 0)
                for (int i = 0; i < NX; ++i) checkpoints[t / chunk * NX + i] = x[i];
            for (int i = 0; i < NX; ++i) states[at * NX + i] = x[i];
            load_data(a, b, t, d);
            check(d, ND, data_are_finite);
            policy_forward(a, own_rows + at * own, x, d, p, u);
            for (int i = 0; i < NU; ++i) actions[at * NU + i] = u[i];
            b.load_reference(t, NR, r);
            running(x, u, r, &now);
            note(a, b, t, x, u, &now);
            total += discount(a, t) * now;
            step(a, b, rows + at * size, x, u, p);
        }
        note(a, b, b.H, x, u, &now);
        b.load_reference(b.H, NR, r);
        load_data(a, b, b.H, d);
        terminal(x, r, &now);
        total += discount(a, b.H) * (now + worth(a, end_row, x, d, p));
        store_n(1, (R*)a[F_costs] + b.first, 1, b.count, &total);
        report(a, state_is_finite, STATUS_STATE);
        report(a, data_are_finite, STATUS_ACTION);
        T weight = seed * discount(a, b.H);
        d_terminal(x, r, &weight, gx);
        worth_back(a, end_row, end_row + a[F_value_row], x, d, p, &weight, gx);
        for (long begin = last; begin >= 0; begin -= chunk) {
            const long end = begin + chunk < b.H ? begin + chunk : b.H;
            if (begin != last) {
                for (int i = 0; i < NX; ++i) x[i] = checkpoints[begin / chunk * NX + i];
                for (long t = begin; t < end; ++t) {
                    const long at = t - begin;
                    for (int i = 0; i < NX; ++i) states[at * NX + i] = x[i];
                    load_data(a, b, t, d);
                    policy_forward(a, own_rows + at * own, x, d, p, u);
                    for (int i = 0; i < NU; ++i) actions[at * NU + i] = u[i];
                    step(a, b, rows + at * size, x, u, p);
                }
            }
            for (long t = end - 1; t >= begin; --t) {
                const long at = t - begin;
                const T* then = states + at * NX;
                const T* did = actions + at * NU;
                R* step_deltas = own_deltas + at % a[F_span] * own;
                for (int i = 0; i < NU; ++i) gu[i] = (T)(0);
                step_back(a, b, rows + at * size, deltas, then, did, p, gx, gu, gp);
                b.load_reference(t, NR, r);
                weight = seed * discount(a, t);
                d_running(then, did, r, &weight, gx, gu);
                load_data(a, b, t, d);
                policy_reverse(a, own_rows + at * own, step_deltas, then, d, p, gu, gx);
                if (!a[F_learn] || at % a[F_span]) continue;
                const long count = end - t < a[F_span] ? end - t : a[F_span];
                const int* l = (const int*)a[F_policy_layers];
                for (int k = 0; k < a[F_policy_nets]; ++k, l += L_COLUMNS)
                    layer_accumulate(l, own_rows + at * own, own_deltas, own, count, (R*)a[F_gradients] + piece * a[F_gradient_size]);
            }
        }
        store_n(NX, (R*)a[F_grad_initial] + b.first * NX, NX, b.count, gx);
    }
    static void conclude(long long* a) { conclude_policy(a); }
"""

WORTH = """
    static inline T worth(const long long* a, R* row, const T* x, const T* d, const T* p) {
        T v;
        value_forward(a, row, x, d, p, &v);
        return v;
    }
    static inline void worth_back(const long long* a, const R* row, R* deltas, const T* x, const T* d, const T* p, const T* g, T* gx) {
        value_reverse(a, row, deltas, x, d, p, g, gx);
    }
"""

WORTHLESS = """
    static inline T worth(const long long* a, R* row, const T* x, const T* d, const T* p) { return (T)(0); }
    static inline void worth_back(const long long* a, const R* row, R* deltas, const T* x, const T* d, const T* p, const T* g, T* gx) {}
"""
