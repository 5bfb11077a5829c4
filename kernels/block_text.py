"""C++ that the kernels of a rollout share: a block of worlds, its step forward and back, and how blocks are shared out.

The members stand in a struct that has the types T (worlds, TM its comparisons), N (units) and R (numbers), a system's functions
(``system``) and a network's (``mlp``). ``MODEL``, ``BACK`` and ``LINEAR`` serve CUDA too, where T is one world's number.
"""

from __future__ import annotations

FIELDS = (
    # sharing out the work
    "region", "threads", "next", "entered", "blocks", "piece", "finish", "status",
    # sizes
    "batch", "horizon", "member_worlds", "member_blocks", "members", "row", "chunk", "span", "scratch_size", "packed_size", "gradient_size",
    "flat_size", "nets", "n_inputs", "n_outputs", "keep", "learn", "reference_stride", "reference_rows",
    # model
    "entries", "n_entries", "flat", "weights", "layers", "inputs", "outputs", "squashed", "spans", "constants", "parameters", "gathering",
    # in
    "initial", "actions", "states", "references", "seeds", "grad_states",
    # scratch
    "units", "scratch", "gradients",
    # out
    "costs", "grad_initial", "grad_actions", "grad_parameters", "grad_weights", "A", "B",
    # of a solve: in
    "settings", "lower", "upper", "rate", "previous", "warm_states", "warm_gains", "iterations", "clock", "clock_id", "until",
    # of a solve: out
    "new_actions", "gains", "values", "info")
"""The table of a launch: numbers, and addresses of contiguous arrays of the model's real type, worlds first."""
PLACES = {name: i for i, name in enumerate(FIELDS)}
CHANGED, BAD_STATE, BAD_ACTION = 1, 2, 4
"""Bits of the status: weights are not those packed (nothing was computed), a first state or an action is not finite."""

MEMORY = """
    // entries of WORLDS worlds that lie a stride apart; lanes without a world repeat the last one
    static inline T lanes_of(const R* from, long stride, int count) {
        T v;
        if (count == WORLDS) for (int k = 0; k < WORLDS; ++k) v[k] = from[k * stride];
        else for (int k = 0; k < WORLDS; ++k) v[k] = from[(k < count ? k : count - 1) * stride];
        return v;
    }
    static inline void load_n(int n, const R* from, long stride, int count, T* to) {
        for (int i = 0; i < n; ++i) to[i] = lanes_of(from + i, stride, count);
    }
    static inline void store_n(int n, R* to, long stride, int count, const T* from) {
        for (int i = 0; i < n; ++i)
            if (count == WORLDS) for (int k = 0; k < WORLDS; ++k) to[k * stride + i] = from[i][k];
            else for (int k = 0; k < count; ++k) to[k * stride + i] = from[i][k];
    }
    static inline void check(const T* x, int n, TM& finite) {
        for (int i = 0; i < n; ++i) finite &= abs_(x[i]) < (T)(__builtin_inf());
    }
    static inline void report(long long* a, TM finite, int bit) {
        for (int k = 0; k < WORLDS; ++k)
            if (!finite[k]) { __atomic_fetch_or(&a[F_status], bit, __ATOMIC_RELAXED); return; }
    }
    // lanes without a world get nothing, so that nothing of theirs reaches the weights
    static inline void add_n(int n, const R* from, long stride, int count, T* to) {
        for (int i = 0; i < n; ++i)
            if (count == WORLDS) to[i] += lanes_of(from + i, stride, count);
            else for (int k = 0; k < count; ++k) to[i][k] += from[k * stride + i];
    }
"""

MODEL = """
    struct Block {
        long long* a; long H, first; int count; const R* c; const R* W;
        Block(long long* a, long index) : a(a), H(a[F_horizon]) {
            const long member = index / a[F_member_blocks], start = index % a[F_member_blocks] * BLOCK, left = a[F_member_worlds] - start;
            first = member * a[F_member_worlds] + start;
            count = left < BLOCK ? left : BLOCK;
            c = (const R*)a[F_constants] + member * NC;
            W = (const R*)a[F_weights] + member * a[F_packed_size];
        }
        void load_parameters(T* p) const { load_n(NP, (const R*)a[F_parameters] + first * NP, NP, count, p); }
        // two rows are one for all steps and one for the end
        void load_reference(long t, int n, T* r) const {
            const long row = a[F_reference_rows] == 2 ? t == H : t, stride = a[F_reference_stride];
            const R* from = (const R*)a[F_references] + first * stride + row * n;
            if (stride) load_n(n, from, stride, count, r);
            else for (int i = 0; i < n; ++i) r[i] = (T)(from[i]);
        }
    };
    static __attribute__((noinline)) void see(const long long* a, const R* W, const R* c, R* row, const T* x, const T* u, const T* p) {
        if (!a[F_nets]) return;
        T z[NZ];
        features(x, u, p, c, z);
        const int* slots = (const int*)a[F_inputs];
        for (int i = 0; i < a[F_n_inputs]; ++i) put(row, slots[i], z[i]);
        const int* l = (const int*)a[F_layers];
        for (int k = 0; k < a[F_nets]; ++k, l += L_COLUMNS) layer_forward(l, W, row);
    }
    static inline void network_outputs(const long long* a, const R* row, T* y) {
        const int* slots = (const int*)a[F_outputs];
        for (int i = 0; i < NY; ++i) y[i] = i < a[F_n_outputs] ? get(row, slots[i]) : (T)(0);
    }
    static __attribute__((noinline)) void step(const long long* a, const Block& b, R* row, T* x, const T* u, const T* p) {
        T y[NY], h[NH], k[NK], next[NK];
        see(a, b.W, b.c, row, x, u, p);
        network_outputs(a, row, y);
        hold(y, x, u, p, b.c, h);
        for (int i = 0; i < NK; ++i) k[i] = x[i];
        for (int s = 0; s < SUBSTEPS; ++s) {
            substep(k, h, p, next);
            for (int i = 0; i < NK; ++i) k[i] = next[i];
        }
        finish(k, h, x);
    }
"""

BACK = """
    // gx: by the next state, then by this one
    static inline void step_back(const long long* a, const Block& b, const R* row, R* deltas, const T* x, const T* u, const T* p,
                                 T* gx, T* gu, T* gp) {
        T y[NY], h[NH], gy[NY] = {}, gh[NH] = {}, states[SUBSTEPS + 1][NK], gk[NK] = {}, by[NK];
        network_outputs(a, row, y);
        hold(y, x, u, p, b.c, h);
        for (int i = 0; i < NK; ++i) states[0][i] = x[i];
        for (int s = 0; s < SUBSTEPS; ++s) substep(states[s], h, p, states[s + 1]);
        d_finish(states[SUBSTEPS], h, gx, gk, gh);
        for (int s = SUBSTEPS - 1; s >= 0; --s) {
            for (int i = 0; i < NK; ++i) { by[i] = gk[i]; gk[i] = (T)(0); }
            d_substep(states[s], h, p, by, gk, gh, gp);
        }
        for (int i = 0; i < NX; ++i) gx[i] = i < NK ? gk[i] : (T)(0);
        d_hold(y, x, u, p, b.c, gh, gy, gx, gu, gp);
        if (!a[F_nets]) return;
        const int* slots = (const int*)a[F_outputs];
        const int* squashed = (const int*)a[F_squashed];
        for (int i = 0; i < a[F_n_outputs]; ++i) put(deltas, slots[i], squashed[i] ? gy[i] - gy[i] * (y[i] * y[i]) : gy[i]);
        const int* l = (const int*)a[F_layers] + (a[F_nets] - 1) * L_COLUMNS;
        for (int k = 0; k < a[F_nets]; ++k, l -= L_COLUMNS) layer_reverse(l, b.W, row, deltas);
        T gz[NZ] = {};
        const int* inputs = (const int*)a[F_inputs];
        for (int i = 0; i < a[F_n_inputs]; ++i) gz[i] = get(deltas, inputs[i]);
        d_features(x, u, p, b.c, gz, gx, gu, gp);
    }
    // takes a span's deltas up when its first step is reached; step counts from the start of the rows
    static __attribute__((noinline)) void learn(const long long* a, const Block& b, const R* rows, const R* deltas, long step, long steps,
                                                long piece) {
        if (!a[F_learn] || step % a[F_span]) return;
        const long count = steps - step < a[F_span] ? steps - step : a[F_span];
        R* gradients = (R*)a[F_gradients] + (piece * a[F_members] + b.first / a[F_member_worlds]) * a[F_gradient_size];
        const int* l = (const int*)a[F_layers];
        for (int k = 0; k < a[F_nets]; ++k, l += L_COLUMNS)
            layer_accumulate(l, rows + step * a[F_row], deltas, a[F_row], count, gradients);
    }
    static void gather(const long long* a) {
        if (!a[F_learn]) return;
        const int* index = (const int*)a[F_gathering];
        for (long m = 0; m < a[F_members]; ++m)
            for (long i = 0; i < a[F_flat_size]; ++i) {
                R sum = 0;
                for (long w = 0; w * a[F_piece] < a[F_blocks]; ++w)
                    sum += ((const R*)a[F_gradients])[(w * a[F_members] + m) * a[F_gradient_size] + index[i]];
                ((R*)a[F_grad_weights])[m * a[F_flat_size] + i] = sum;
            }
    }
"""

LINEAR = """
    struct Steps {
        long H, first, total; int count; const R* c; const R* W;
        Steps(const long long* a, long index) : H(a[F_horizon]) {
            const long member = index / a[F_member_blocks], start = index % a[F_member_blocks] * BLOCK;
            const long left = a[F_member_worlds] * H - start;
            first = member * a[F_member_worlds] * H + start;
            count = left < BLOCK ? left : BLOCK;
            c = (const R*)a[F_constants] + member * NC;
            W = (const R*)a[F_weights] + member * a[F_packed_size];
        }
        Steps(const R* constants, const R* weights) : H(0), first(0), total(0), count(0), c(constants), W(weights) {}
        long step_of(int lane) const { return first + (lane < count ? lane : count - 1); }
    };
    static inline T chained(const T* by_both, const T* k_by, const T* h_by) {
        T sum = (T)(0);
        for (int i = 0; i < NK; ++i) sum += by_both[i] * k_by[i * (NX + NU)];
        for (int i = 0; i < NH; ++i) sum += by_both[NK + i] * h_by[i * (NX + NU)];
        return sum;
    }
    static inline void networks_by_inputs(const long long* a, const Steps& b, const R* row, R* deltas, const T* y, T* out) {
        const int* outputs = (const int*)a[F_outputs];
        const int* inputs = (const int*)a[F_inputs];
        const int* squashed = (const int*)a[F_squashed];
        const int* spans = (const int*)a[F_spans];
        for (int i = 0; i < a[F_n_outputs]; ++i) {
            for (int k = 0; k < a[F_n_outputs]; ++k)
                put(deltas, outputs[k], k == i ? (squashed[k] ? (T)(1) - y[k] * y[k] : (T)(1)) : (T)(0));
            for (int k = spans[2 * i + 1] - 1; k >= spans[2 * i]; --k)
                layer_reverse((const int*)a[F_layers] + k * L_COLUMNS, b.W, row, deltas);
            const int* l = (const int*)a[F_layers] + spans[2 * i] * L_COLUMNS;
            for (int k = 0; k < a[F_n_inputs]; ++k) {
                const int slot = inputs[k] - l[L_source];
                if (slot >= 0 && slot < l[N_IN]) out[i * NZ + k] = get(deltas, inputs[k]);
            }
        }
    }
    // the next state by (x, u), rows of NX + NU
    static inline void linear_step(const long long* a, const Steps& b, R* row, R* deltas, const T* x, const T* u, const T* p, T* out) {
        T z_by[NZ * (NX + NU)], y_by_z[NY * NZ] = {}, y_by[NY * (NX + NU)] = {}, h_by_all[NH * (NY + NX + NU)];
        see(a, b.W, b.c, row, x, u, p);
        T y[NY], h[NH];
        network_outputs(a, row, y);
        hold(y, x, u, p, b.c, h);
        j_features(x, u, p, b.c, z_by);
        j_hold(y, x, u, p, b.c, h_by_all);
        networks_by_inputs(a, b, row, deltas, y, y_by_z);
        for (int i = 0; i < NY; ++i)
            for (int k = 0; k < NZ; ++k)
                for (int j = 0; j < NX + NU; ++j) y_by[i * (NX + NU) + j] += y_by_z[i * NZ + k] * z_by[k * (NX + NU) + j];
        T h_by[NH * (NX + NU)];
        for (int i = 0; i < NH; ++i)
            for (int j = 0; j < NX + NU; ++j) {
                T sum = h_by_all[i * (NY + NX + NU) + NY + j];
                for (int k = 0; k < NY; ++k) sum += h_by_all[i * (NY + NX + NU) + k] * y_by[k * (NX + NU) + j];
                h_by[i * (NX + NU) + j] = sum;
            }
        // S: the state within the step by (x, u)
        T S[NK * (NX + NU)] = {}, next[NK * (NX + NU)], J[NK * (NK + NH)], k[NK], moved[NK];
        for (int i = 0; i < NK; ++i) { S[i * (NX + NU) + i] = (T)(1); k[i] = x[i]; }
        for (int s = 0; s < SUBSTEPS; ++s) {
            j_substep(k, h, p, J);
            for (int i = 0; i < NK; ++i)
                for (int j = 0; j < NX + NU; ++j) next[i * (NX + NU) + j] = chained(J + i * (NK + NH), S + j, h_by + j);
            for (int i = 0; i < NK * (NX + NU); ++i) S[i] = next[i];
            substep(k, h, p, moved);
            for (int i = 0; i < NK; ++i) k[i] = moved[i];
        }
        T F[NX * (NK + NH)];
        j_finish(k, h, F);
        for (int i = 0; i < NX; ++i)
            for (int j = 0; j < NX + NU; ++j) out[i * (NX + NU) + j] = chained(F + i * (NK + NH), S + j, h_by + j);
    }
"""

WORK = """
    static void work(void* table) {
        long long* a = (long long*)table;
        const int worker = __atomic_fetch_add(&a[F_entered], 1, __ATOMIC_RELAXED);
        R* scratch = (R*)a[F_scratch] + worker * a[F_scratch_size];
        for (;;) {
            const long first = __atomic_fetch_add(&a[F_next], a[F_piece], __ATOMIC_RELAXED);
            if (first >= a[F_blocks]) return;
            const long end = first + a[F_piece] < a[F_blocks] ? first + a[F_piece] : a[F_blocks];
            for (long i = first; i < end; ++i) block(a, i, scratch, first / a[F_piece]);
        }
    }
    // whether the weights as they are now, entries (address, numbers of a member, bytes of a number), are those that were packed
    static bool unchanged(const long long* a) {
        const long long* entry = (const long long*)a[F_entries];
        const R* flat = (const R*)a[F_flat];
        for (long n = 0; n < a[F_n_entries]; ++n, entry += 3)
            for (long m = 0; m < a[F_members]; ++m) {
                bool same = true;
                const R* known = flat + m * a[F_flat_size];
                if (entry[2] == 8) for (long i = 0; i < entry[1]; ++i) same &= (R)((const double*)entry[0])[m * entry[1] + i] == known[i];
                else for (long i = 0; i < entry[1]; ++i) same &= (R)((const float*)entry[0])[m * entry[1] + i] == known[i];
                if (!same) return false;
                if (m + 1 == a[F_members]) flat += entry[1];
            }
        return true;
    }
    // all blocks, among the threads that there are
    static void share(long long* a) {
        typedef void (*Region)(void (*)(void*), void*, unsigned, unsigned);
        if (a[F_region] && a[F_threads] > 1) ((Region)a[F_region])(work, a, a[F_threads], 0);
        else work(a);
    }
    static void run(long long* a) {
        if (a[F_entries] && !unchanged(a)) { a[F_status] = STATUS_CHANGED; return; }
        share(a);
        if (a[F_finish]) conclude(a);
    }
"""
