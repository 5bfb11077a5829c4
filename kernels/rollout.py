"""The kernels of a fused rollout, as C++ around a system's own functions: one launch over the whole horizon and batch.

Everything that is particular to a model is in its ``System``; the kernels know networks and time only. A block of worlds goes
through all its steps in one thread, its state in registers:

- ``forward`` writes the states, and keeps the units of the networks where a reverse sweep may come and they are few;
- ``reverse`` takes gradients of the states back to first states, actions, parameters and weights. Units that were not kept are
  computed again from the stored states, a chunk of steps at a time;
- ``cost`` accumulates a cost and writes nothing else; ``cost_gradient`` goes there and back in one launch, with checkpoints of the
  state at every chunk where the horizon is longer than one, so that memory does not grow with the horizon's units;
- ``linearise`` takes steps of a trajectory, all at once, to their Jacobians: networks by as many adjoints as they have outputs.

Weight gradients are matrix products over a chunk's steps and worlds, summed once a chunk (``mlp``).
"""

from __future__ import annotations

from collections.abc import Sequence

from residual_mbrl.kernels.block_text import BACK, BAD_ACTION, BAD_STATE, CHANGED, FIELDS, LINEAR, MEMORY, MODEL, WORK
from residual_mbrl.kernels.mlp import Schedule, layers_text
from residual_mbrl.kernels.native import Kernel, lane_math
from residual_mbrl.kernels.system import Cost, System, cost_text, jacobian_text, system_text


def forward_kernel(system: System, schedule: Schedule) -> Kernel:
    """Return the kernel that writes states."""
    return assemble(schedule, model_text(system, schedule), """
    static void block(long long* a, long index, R* scratch, long piece) {
        Block b(a, index);
        T x[NX], u[NU], p[NP];
        b.load_parameters(p);
        load_n(NX, (const R*)a[F_initial] + b.first * NX, NX, b.count, x);
        TM state_is_finite = (T)(0) == (T)(0), actions_are_finite = state_is_finite;
        check(x, NX, state_is_finite);
        for (long t = 0; t < b.H; ++t) {
            store_n(NX, (R*)a[F_states] + (b.first * (b.H + 1) + t) * NX, (b.H + 1) * NX, b.count, x);
            load_n(NU, (const R*)a[F_actions] + (b.first * b.H + t) * NU, b.H * NU, b.count, u);
            check(u, NU, actions_are_finite);
            R* row = a[F_keep] ? (R*)a[F_units] + (index * b.H + t) * a[F_row] : scratch;
            step(a, b, row, x, u, p);
        }
        store_n(NX, (R*)a[F_states] + (b.first * (b.H + 1) + b.H) * NX, (b.H + 1) * NX, b.count, x);
        report(a, state_is_finite, STATUS_STATE);
        report(a, actions_are_finite, STATUS_ACTION);
    }
    static void conclude(long long* a) {}
    """)


def reverse_kernel(system: System, schedule: Schedule) -> Kernel:
    """Return the kernel that takes gradients back."""
    return assemble(schedule, model_text(system, schedule) + BACK, """
    static void block(long long* a, long index, R* scratch, long piece) {
        Block b(a, index);
        const long chunk = a[F_chunk], size = a[F_row];
        R* deltas = scratch;
        R* own_rows = scratch + a[F_span] * size;
        T x[NX], u[NU], p[NP], gx[NX] = {}, gu[NU], gp[NP] = {};
        b.load_parameters(p);
        for (long end = b.H; end > 0;) {
            const long begin = (end - 1) / chunk * chunk;
            R* rows = a[F_keep] ? (R*)a[F_units] + (index * b.H + begin) * size : own_rows;
            if (!a[F_keep] && a[F_nets])
                for (long t = begin; t < end; ++t) {
                    load_n(NX, (const R*)a[F_states] + (b.first * (b.H + 1) + t) * NX, (b.H + 1) * NX, b.count, x);
                    load_n(NU, (const R*)a[F_actions] + (b.first * b.H + t) * NU, b.H * NU, b.count, u);
                    see(a, b.W, b.c, rows + (t - begin) * size, x, u, p);
                }
            for (long t = end - 1; t >= begin; --t) {
                load_n(NX, (const R*)a[F_states] + (b.first * (b.H + 1) + t) * NX, (b.H + 1) * NX, b.count, x);
                load_n(NU, (const R*)a[F_actions] + (b.first * b.H + t) * NU, b.H * NU, b.count, u);
                add_n(NX, (const R*)a[F_grad_states] + (b.first * (b.H + 1) + t + 1) * NX, (b.H + 1) * NX, b.count, gx);
                for (int i = 0; i < NU; ++i) gu[i] = (T)(0);
                step_back(a, b, rows + (t - begin) * size, deltas + (t - begin) % a[F_span] * size, x, u, p, gx, gu, gp);
                store_n(NU, (R*)a[F_grad_actions] + (b.first * b.H + t) * NU, b.H * NU, b.count, gu);
                learn(a, b, rows, deltas, t - begin, end - begin, piece);
            }
            end = begin;
        }
        add_n(NX, (const R*)a[F_grad_states] + b.first * (b.H + 1) * NX, (b.H + 1) * NX, b.count, gx);
        store_n(NX, (R*)a[F_grad_initial] + b.first * NX, NX, b.count, gx);
        if (a[F_grad_parameters]) store_n(NP, (R*)a[F_grad_parameters] + b.first * NP, NP, b.count, gp);
    }
    static void conclude(long long* a) { gather(a); }
    """)


def cost_kernel(system: System, cost: Cost, schedule: Schedule) -> Kernel:
    """Return the kernel that writes each world's cost."""
    return assemble(schedule, model_text(system, schedule) + cost_text(cost, system), """
    static void block(long long* a, long index, R* scratch, long piece) {
        Block b(a, index);
        T x[NX], u[NU], p[NP], r[NR], total = (T)(0), now;
        b.load_parameters(p);
        load_n(NX, (const R*)a[F_initial] + b.first * NX, NX, b.count, x);
        TM state_is_finite = (T)(0) == (T)(0), actions_are_finite = state_is_finite;
        check(x, NX, state_is_finite);
        for (long t = 0; t < b.H; ++t) {
            load_n(NU, (const R*)a[F_actions] + (b.first * b.H + t) * NU, b.H * NU, b.count, u);
            check(u, NU, actions_are_finite);
            b.load_reference(t, NR, r);
            running(x, u, r, &now);
            total += now;
            step(a, b, scratch, x, u, p);
        }
        b.load_reference(b.H, NR, r);
        terminal(x, r, &now);
        total += now;
        store_n(1, (R*)a[F_costs] + b.first, 1, b.count, &total);
        report(a, state_is_finite, STATUS_STATE);
        report(a, actions_are_finite, STATUS_ACTION);
    }
    static void conclude(long long* a) {}
    """)


def cost_gradient_kernel(system: System, cost: Cost, schedule: Schedule) -> Kernel:
    """Return the kernel that writes each world's cost and the gradients of ``Σ seeds · costs``."""
    return assemble(schedule, model_text(system, schedule) + BACK + cost_text(cost, system), """
    // scratch: deltas of a span, rows and states of a chunk, and a checkpoint at the start of every chunk
    static void block(long long* a, long index, R* scratch, long piece) {
        Block b(a, index);
        const long chunk = a[F_chunk], size = a[F_row];
        R* deltas = scratch;
        R* rows = deltas + a[F_span] * size;
        T* states = (T*)(rows + chunk * size);
        T* checkpoints = states + chunk * NX;
        T x[NX], u[NU], p[NP], r[NR], gx[NX] = {}, gu[NU], gp[NP] = {}, total = (T)(0), now, seed = (T)(1);
        b.load_parameters(p);
        load_n(NX, (const R*)a[F_initial] + b.first * NX, NX, b.count, x);
        TM state_is_finite = (T)(0) == (T)(0), actions_are_finite = state_is_finite;
        check(x, NX, state_is_finite);
        if (a[F_seeds]) load_n(1, (const R*)a[F_seeds] + b.first, 1, b.count, &seed);
        for (int k = b.count; k < WORLDS; ++k) seed[k] = 0;  // lanes without a world must not reach the weights
        const long last = (b.H - 1) / chunk * chunk;
        for (long t = 0; t < b.H; ++t) {
            if (t % chunk == 0)
                for (int i = 0; i < NX; ++i) checkpoints[t / chunk * NX + i] = x[i];
            for (int i = 0; i < NX; ++i) states[t % chunk * NX + i] = x[i];
            load_n(NU, (const R*)a[F_actions] + (b.first * b.H + t) * NU, b.H * NU, b.count, u);
            check(u, NU, actions_are_finite);
            b.load_reference(t, NR, r);
            running(x, u, r, &now);
            total += now;
            step(a, b, rows + t % chunk * size, x, u, p);
        }
        b.load_reference(b.H, NR, r);
        terminal(x, r, &now);
        total += now;
        store_n(1, (R*)a[F_costs] + b.first, 1, b.count, &total);
        report(a, state_is_finite, STATUS_STATE);
        report(a, actions_are_finite, STATUS_ACTION);
        d_terminal(x, r, &seed, gx);
        for (long begin = last; begin >= 0; begin -= chunk) {
            const long end = begin + chunk < b.H ? begin + chunk : b.H;
            if (begin != last) {
                for (int i = 0; i < NX; ++i) x[i] = checkpoints[begin / chunk * NX + i];
                for (long t = begin; t < end; ++t) {
                    for (int i = 0; i < NX; ++i) states[(t - begin) * NX + i] = x[i];
                    load_n(NU, (const R*)a[F_actions] + (b.first * b.H + t) * NU, b.H * NU, b.count, u);
                    step(a, b, rows + (t - begin) * size, x, u, p);
                }
            }
            for (long t = end - 1; t >= begin; --t) {
                const T* at = states + (t - begin) * NX;
                load_n(NU, (const R*)a[F_actions] + (b.first * b.H + t) * NU, b.H * NU, b.count, u);
                for (int i = 0; i < NU; ++i) gu[i] = (T)(0);
                step_back(a, b, rows + (t - begin) * size, deltas + (t - begin) % a[F_span] * size, at, u, p, gx, gu, gp);
                b.load_reference(t, NR, r);
                d_running(at, u, r, &seed, gx, gu);
                store_n(NU, (R*)a[F_grad_actions] + (b.first * b.H + t) * NU, b.H * NU, b.count, gu);
                learn(a, b, rows, deltas, t - begin, end - begin, piece);
            }
        }
        store_n(NX, (R*)a[F_grad_initial] + b.first * NX, NX, b.count, gx);
        if (a[F_grad_parameters]) store_n(NP, (R*)a[F_grad_parameters] + b.first * NP, NP, b.count, gp);
    }
    static void conclude(long long* a) { gather(a); }
    """)


def linearise_kernel(system: System, schedule: Schedule) -> Kernel:
    """Return the kernel that writes A = ∂x'/∂x and B = ∂x'/∂u of every step; a block is some steps that follow each other."""
    return assemble(schedule, model_text(system, schedule) + jacobian_text(system) + LINEAR, """
    static void block(long long* a, long index, R* scratch, long piece) {
        Steps b(a, index);
        T x[NX], u[NU], p[NP];
        for (int k = 0; k < WORLDS; ++k) {
            const long n = b.step_of(k), world = n / b.H;
            for (int i = 0; i < NX; ++i) x[i][k] = ((const R*)a[F_states])[(n + world) * NX + i];
            for (int i = 0; i < NU; ++i) u[i][k] = ((const R*)a[F_actions])[n * NU + i];
            for (int i = 0; i < NP; ++i) p[i][k] = ((const R*)a[F_parameters])[world * NP + i];
        }
        T slopes[NX * (NX + NU)];
        linear_step(a, b, scratch, scratch + a[F_row], x, u, p, slopes);
        for (int i = 0; i < NX; ++i)
            for (int j = 0; j < NX + NU; ++j) {
                const T slope = slopes[i * (NX + NU) + j];
                for (int n = 0; n < b.count; ++n) {
                    if (j < NX) ((R*)a[F_A])[(b.first + n) * NX * NX + i * NX + j] = slope[n];
                    else ((R*)a[F_B])[(b.first + n) * NX * NU + i * NU + j - NX] = slope[n];
                }
            }
    }
    static void conclude(long long* a) {}
    """)


def pack_kernel(real: str) -> Kernel:
    """Return the kernel that orders the flat weights of all members as a schedule wants them: (flat, index, packed, sizes, members)."""
    return Kernel(f"""
    const {real}* flat = (const {real}*)a[0]; const int* index = (const int*)a[1]; {real}* packed = ({real}*)a[2];
    for (long m = 0; m < a[5]; ++m)
        for (long i = 0; i < a[3]; ++i) packed[m * a[3] + i] = index[i] < 0 ? 0 : flat[m * a[4] + index[i]];
    """, 6)


def assemble(schedule: Schedule, members: str, main: str, fields: Sequence[str] = FIELDS, entry: str = "run") -> Kernel:
    """Put a kernel together: types and functions, the block of work, how blocks are shared out, and the member that is called."""
    places = ", ".join(f"F_{n}" for n in fields)
    types = lane_math("T", schedule.real, schedule.world_lanes) + (
        lane_math("N", schedule.real, schedule.lanes) if schedule.wide else "typedef T N;")
    return Kernel(f"""
struct K {{
    typedef {schedule.real} R;
    enum {{ {places} }};
    enum {{ STATUS_CHANGED = {CHANGED}, STATUS_STATE = {BAD_STATE}, STATUS_ACTION = {BAD_ACTION} }};
    enum {{ WORLDS = {schedule.world_lanes}, BLOCK = {schedule.worlds} }};
    {types}{MEMORY}{members}{main}{WORK}
}};
K::{entry}(a);
""", len(fields))


def model_text(system: System, schedule: Schedule) -> str:
    """Return the step of a model forward: layers, the system's functions, and what joins them."""
    unit = "((R*)row)[slot] = value[0];" if schedule.wide else "((T*)row)[slot] = value;"
    read = "(T)(((const R*)row)[slot])" if schedule.wide else "((const T*)row)[slot]"
    return f"""
    static inline void put(R* row, int slot, T value) {{ {unit} }}
    static inline T get(const R* row, int slot) {{ return {read}; }}
    {layers_text(schedule)}{system_text(system)}{MODEL}"""
