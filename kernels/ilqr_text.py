"""C++ of a solve by iLQR: expansion of model and cost, backward pass over boxes, and rollouts under feedback.

Types and the model's own members are those of ``block_text``; what second order needs is in ``second_order``. D is double whatever the
model's precision. A block is one problem: lanes are its steps in the expansion, and its step sizes in a rollout.
"""

from __future__ import annotations

INFO = ("outcome", "iterations", "first_cost", "cost", "expected", "regularisation", "longest")
"""What a solve says of a problem, doubles."""
CONVERGED, LIMIT, STUCK, LATE, NOT_FINITE = range(5)
"""Outcomes."""
SETTINGS = ("tolerance", "least_regularisation", "most_regularisation", "smallest_step")


def sizes_text(ndx: int, nu: int, rate: bool) -> str:
    """Return the constants: tangent, what the value function is of (with the last action where rates are limited), padded rows."""
    ns = ndx + nu if rate else ndx
    return f"""
    typedef double D;
    typedef double V8 __attribute__((ext_vector_type(8)));
    enum {{ NDX = {ndx}, NU_ = {nu}, RATE = {int(rate)}, NS = {ns}, NA = {ndx + nu}, PA = {_up(ndx + nu)}, PS = {_up(ns)}, VA = PA / 8,
           VS = PS / 8 }};
    """


def workspace_bytes(ndx: int, nx: int, nu: int, rate: bool, horizon: int, lanes: int, real: int) -> int:
    """Return the bytes that a problem's arrays take, in the order of ``Workspace``."""
    ns, pa, h = ndx + nu if rate else ndx, _up(ndx + nu), horizon
    doubles = h * ndx * pa + (h + 1) * pa + (h + 1) * (ndx + nu) * pa + _up(h * nu)
    reals = _up((h + 1) * nx, 64) + 2 * _up(h * nu, 64) + _up(h * nu * ns, 64)
    return 8 * doubles + (_up((h + 1) * nx, 2) + _up(h * nu, 2)) * lanes * real + reals * real


def _up(n: int, to: int = 8) -> int:
    return -(-n // to) * to


WORKSPACE = """
    static inline long up(long n, long to) { return (n + to - 1) / to * to; }
    struct Workspace {
        T *trial_x, *trial_u;   // [H + 1][NX], [H][NU]: of every step size
        D *AB, *G, *C, *k;      // [H][NDX][PA], [H + 1][PA], [H + 1][NA][PA], [H][NU]
        R *x, *u, *kr, *K;      // [H + 1][NX], [H][NU], [H][NU], [H][NU][NS]
        Workspace(R* at, long H) {
            trial_x = (T*)at; trial_u = trial_x + up((H + 1) * NX, 2);
            AB = (D*)(trial_u + up(H * NU_, 2)); G = AB + H * NDX * PA; C = G + (H + 1) * PA; k = C + (H + 1) * NA * PA;
            x = (R*)(k + up(H * NU_, 8)); u = x + up((H + 1) * NX, 64); kr = u + up(H * NU_, 64); K = kr + up(H * NU_, 64);
        }
    };
"""

EXPANSION = """
    // curvature h of a cost by the entries of x and u to that by the tangent: rows first, then columns
    static inline void curved_down(const T* x, const T* h, const T* bend, int nz, T* out) {
        T half[(NX + NU_) * NA];
        for (int i = 0; i < nz; ++i) {
            lowered(x, h + i * (NX + NU_), half + i * NA);
            for (int j = 0; j < nz - NX; ++j) half[i * NA + NDX + j] = h[i * (NX + NU_) + NX + j];
        }
        const int na = nz - NX + NDX;
        for (int j = 0; j < na; ++j) {
            T column[NX], low[NDX];
            for (int i = 0; i < NX; ++i) column[i] = half[i * NA + j];
            lowered(x, column, low);
            for (int i = 0; i < NDX; ++i) out[i * NA + j] = low[i];
            for (int i = 0; i < nz - NX; ++i) out[(NDX + i) * NA + j] = half[(NX + i) * NA + j];
        }
        for (int q = 0; q < QUATERNIONS; ++q)
            for (int i = 0; i < 3; ++i) { const int at = quaternion_at(q) + i; out[at * NA + at] -= (T)(R)0.25 * bend[q]; }
    }
    // A, B, gradient and curvature of every step
    static __attribute__((noinline)) void expand(const long long* a, const Block& b, R* row, R* deltas, Workspace& w, const T* p) {
        const Steps steps(b.c, b.W);
        const long H = b.H, stride = a[F_reference_rows] == 2 ? 0 : NR;
        const R* references = (const R*)a[F_references] + b.first * a[F_reference_stride];
        T h[(NX + NU_) * (NX + NU_)] = {}, g[NX + NU_], low[NA * NA], bend[QUATERNIONS + 1];
        for (long first = 0; first < H; first += WORLDS) {
            const int count = H - first < WORLDS ? H - first : WORLDS;
            T x[NX], after[NX], u[NU_], r[NR], slopes[NX * (NX + NU_)], half[NX * NA];
            for (int n = 0; n < WORLDS; ++n) {
                const long t = first + (n < count ? n : count - 1);
                for (int i = 0; i < NX; ++i) { x[i][n] = w.x[t * NX + i]; after[i][n] = w.x[(t + 1) * NX + i]; }
                for (int i = 0; i < NU_; ++i) u[i][n] = w.u[t * NU_ + i];
                for (int i = 0; i < NR; ++i) r[i][n] = references[t * stride + i];
            }
            linear_step(a, steps, row, deltas, x, u, p, slopes);
            for (int i = 0; i < NX; ++i) {
                lowered(x, slopes + i * (NX + NU_), half + i * NA);
                for (int j = 0; j < NU_; ++j) half[i * NA + NDX + j] = slopes[i * (NX + NU_) + NX + j];
            }
            for (int j = 0; j < NA; ++j) {
                T column[NX], out[NDX];
                for (int i = 0; i < NX; ++i) column[i] = half[i * NA + j];
                lowered_after(after, column, out);
                for (int i = 0; i < NDX; ++i)
                    for (int n = 0; n < count; ++n) w.AB[((first + n) * NDX + i) * PA + j] = out[i][n];
            }
            running_2(x, u, r, g, h, bend);
            T gt[NA];
            lowered(x, g, gt);
            for (int i = 0; i < NU_; ++i) gt[NDX + i] = g[NX + i];
            curved_down(x, h, bend, NX + NU_, low);
            for (int i = 0; i < NA; ++i) {
                for (int n = 0; n < count; ++n) w.G[(first + n) * PA + i] = gt[i][n];
                for (int j = 0; j < NA; ++j)
                    for (int n = 0; n < count; ++n) w.C[((first + n) * NA + i) * PA + j] = low[i * NA + j][n];
            }
        }
        T x[NX], r[NR], gt[NDX];
        for (int i = 0; i < NX; ++i) x[i] = (T)(w.x[H * NX + i]);
        b.load_reference(H, NR, r);
        T h_end[(NX + NU_) * (NX + NU_)] = {};
        terminal_2(x, r, g, h_end, bend);
        lowered(x, g, gt);
        curved_down(x, h_end, bend, NX, low);
        for (int i = 0; i < NDX; ++i) {
            w.G[H * PA + i] = gt[i][0];
            for (int j = 0; j < NDX; ++j) w.C[(H * NA + i) * PA + j] = low[i * NA + j][0];
        }
    }
"""

BACKWARD = """
    // L L' = H on the free entries, one elsewhere; false where H is not positive definite on them
    static inline bool cholesky(const D* H, const bool* fixed, D* L) {
        for (int i = 0; i < NU_; ++i)
            for (int j = 0; j <= i; ++j) {
                D sum = fixed[i] || fixed[j] ? (i == j ? 1.0 : 0.0) : H[i * NU_ + j];
                const D start = sum;
                for (int k = 0; k < j; ++k) sum -= L[i * NU_ + k] * L[j * NU_ + k];
                if (i == j) {
                    if (!(sum > 1e-13 * start) || !(sum < __builtin_inf())) return false;
                    L[i * NU_ + i] = __builtin_sqrt(sum);
                } else L[i * NU_ + j] = sum / L[j * NU_ + j];
            }
        return true;
    }
    static inline void solve_lower(const D* L, D* x) {
        for (int i = 0; i < NU_; ++i) {
            for (int j = 0; j < i; ++j) x[i] -= L[i * NU_ + j] * x[j];
            x[i] /= L[i * NU_ + i];
        }
        for (int i = NU_ - 1; i >= 0; --i) {
            for (int j = i + 1; j < NU_; ++j) x[i] -= L[j * NU_ + i] * x[j];
            x[i] /= L[i * NU_ + i];
        }
    }
    // min 1/2 x'Hx + g'x within lo <= x <= hi by projected Newton steps; fixed: where x is held by a bound
    static inline bool box_minimum(const D* H, const D* g, const D* lo, const D* hi, D* x, bool* fixed, D* L) {
        bool before[NU_], known = false;
        for (int i = 0; i < NU_; ++i) x[i] = x[i] < lo[i] ? lo[i] : x[i] > hi[i] ? hi[i] : x[i];
        for (int round = 0; round < 40; ++round) {
            D slope[NU_], step[NU_], value = 0, along = 0, size = 0;
            bool same = known;
            for (int i = 0; i < NU_; ++i) {
                D sum = 0;
                for (int j = 0; j < NU_; ++j) sum += H[i * NU_ + j] * x[j];
                slope[i] = g[i] + sum;
                value += x[i] * (g[i] + 0.5 * sum);
                fixed[i] = (x[i] <= lo[i] && slope[i] > 0) || (x[i] >= hi[i] && slope[i] < 0) || lo[i] >= hi[i];
                same = same && fixed[i] == before[i];
            }
            if (!same) {
                if (!cholesky(H, fixed, L)) return false;
                for (int i = 0; i < NU_; ++i) before[i] = fixed[i];
                known = true;
            }
            for (int i = 0; i < NU_; ++i) { step[i] = fixed[i] ? 0 : -slope[i]; }
            solve_lower(L, step);
            for (int i = 0; i < NU_; ++i) if (fixed[i]) step[i] = 0;
            for (int i = 0; i < NU_; ++i) { along += slope[i] * step[i]; size += __builtin_fabs(g[i] * step[i]); }
            if (!(-along > 1e-14 * size)) return true;
            D length = 1;
            bool found = false;
            for (int cut = 0; cut < 30 && !found; ++cut, length *= 0.6) {
                D trial[NU_], now = 0;
                bool whole = length == 1;
                for (int i = 0; i < NU_; ++i) {
                    trial[i] = x[i] + length * step[i];
                    if (trial[i] < lo[i]) { trial[i] = lo[i]; whole = false; }
                    if (trial[i] > hi[i]) { trial[i] = hi[i]; whole = false; }
                }
                if (whole) {  // Newton's point is within: the minimum on these bounds, and of all if no held entry wants to leave
                    for (int i = 0; i < NU_; ++i) x[i] = trial[i];
                    found = true;
                    break;
                }
                for (int i = 0; i < NU_; ++i) {
                    D sum = 0;
                    for (int j = 0; j < NU_; ++j) sum += H[i * NU_ + j] * trial[j];
                    now += trial[i] * (g[i] + 0.5 * sum);
                }
                if (value - now > 0) {
                    for (int i = 0; i < NU_; ++i) x[i] = trial[i];
                    found = true;
                }
            }
            if (!found) return true;
        }
        return true;
    }
    struct Sweep { D linear, quadratic, largest; };  // expected change of the cost at step size s: s linear + s^2 quadratic
    // feedback k, K of every step, last to first; false where regularisation mu leaves a step without a minimum
    static __attribute__((noinline)) bool backward(Workspace& w, long H, D mu, const R* lower, const R* upper, const R* rate,
                                                   const R* previous, Sweep& sweep) {
        V8 P[NS][VS] = {};
        D p[PS] = {};
        for (int i = 0; i < NDX; ++i) {
            p[i] = w.G[H * PA + i];
            for (int j = 0; j < NDX; ++j) ((D*)P[i])[j] = 0.5 * (w.C[(H * NA + i) * PA + j] + w.C[(H * NA + j) * PA + i]);
        }
        sweep.linear = sweep.quadratic = sweep.largest = 0;
        for (long t = H - 1; t >= 0; --t) {
            const V8* AB = (const V8*)(w.AB + t * NDX * PA);
            const D* ab = w.AB + t * NDX * PA;
            V8 PM[NS][VA], Q[NA][VA], q[VA];
            for (int i = 0; i < NS; ++i) {
                for (int v = 0; v < VA; ++v) PM[i][v] = (V8)(0.0);
                for (int k = 0; k < NDX; ++k) {
                    const D s = ((const D*)P[i])[k];
                    for (int v = 0; v < VA; ++v) PM[i][v] += s * AB[k * VA + v];
                }
                if (RATE) for (int j = 0; j < NU_; ++j) ((D*)PM[i])[NDX + j] += ((const D*)P[i])[NDX + j];
            }
            for (int v = 0; v < VA; ++v) q[v] = ((const V8*)(w.G + t * PA))[v];
            for (int k = 0; k < NDX; ++k) for (int v = 0; v < VA; ++v) q[v] += p[k] * AB[k * VA + v];
            for (int i = 0; i < NA; ++i) {
                for (int v = 0; v < VA; ++v) Q[i][v] = ((const V8*)(w.C + (t * NA + i) * PA))[v];
                for (int k = 0; k < NDX; ++k) {
                    const D s = ab[k * PA + i];
                    for (int v = 0; v < VA; ++v) Q[i][v] += s * PM[k][v];
                }
            }
            if (RATE)
                for (int j = 0; j < NU_; ++j) {
                    ((D*)q)[NDX + j] += p[NDX + j];
                    for (int v = 0; v < VA; ++v) Q[NDX + j][v] += PM[NDX + j][v];
                }
            // regularised curvature by u, and by u and s
            D Quu[NU_ * NU_], regular[NU_ * NU_], qu[NU_];
            V8 K[NU_][VS], Qus[NU_][VS];
            for (int i = 0; i < NU_; ++i) {
                qu[i] = ((const D*)q)[NDX + i];
                for (int v = 0; v < VS; ++v) K[i][v] = Qus[i][v] = (V8)(0.0);
                for (int j = 0; j < NDX; ++j) ((D*)Qus[i])[j] = ((const D*)Q[NDX + i])[j];
                for (int j = 0; j < NDX; ++j) ((D*)K[i])[j] = -((const D*)Q[NDX + i])[j];
                for (int j = 0; j < NU_; ++j)
                    regular[i * NU_ + j] = Quu[i * NU_ + j] = 0.5 * (((const D*)Q[NDX + i])[NDX + j] + ((const D*)Q[NDX + j])[NDX + i]);
                sweep.largest = Quu[i * NU_ + i] > sweep.largest ? Quu[i * NU_ + i] : sweep.largest;
            }
            if (mu > 0)
                for (int i = 0; i < NU_; ++i) {
                    regular[i * NU_ + i] += mu;
                    for (int k = 0; k < NDX; ++k) {
                        const D s = mu * ab[k * PA + NDX + i];
                        for (int j = 0; j < NU_; ++j) regular[i * NU_ + j] += s * ab[k * PA + NDX + j];
                        for (int j = 0; j < NDX; ++j) ((D*)K[i])[j] -= s * ab[k * PA + j];
                    }
                }
            D lo[NU_], hi[NU_], du[NU_], L[NU_ * NU_];
            bool fixed[NU_], low_rate[NU_], high_rate[NU_];
            const R* u = w.u + t * NU_;
            const R* last = t ? u - NU_ : previous;
            for (int i = 0; i < NU_; ++i) {
                lo[i] = (D)lower[i] - u[i]; hi[i] = (D)upper[i] - u[i];
                low_rate[i] = high_rate[i] = false;
                if (RATE && last) {
                    const D down = (D)last[i] - rate[i] - u[i], above = (D)last[i] + rate[i] - u[i];
                    if (down > lo[i]) { lo[i] = down; low_rate[i] = true; }
                    if (above < hi[i]) { hi[i] = above; high_rate[i] = true; }
                }
                if (lo[i] > 0) lo[i] = 0;  // rounding only: the trajectory is within its limits
                if (hi[i] < 0) hi[i] = 0;
                du[i] = w.k[t * NU_ + i];
            }
            if (!box_minimum(regular, qu, lo, hi, du, fixed, L)) return false;
            for (int i = 0; i < NU_; ++i)
                if (fixed[i]) {
                    for (int v = 0; v < VS; ++v) K[i][v] = (V8)(0.0);
                    const bool at_low = du[i] <= lo[i];
                    if (RATE && (at_low ? low_rate[i] : high_rate[i])) ((D*)K[i])[NDX + i] = 1;
                }
            if (RATE)
                for (int i = 0; i < NU_; ++i)
                    for (int j = 0; j < NU_; ++j)
                        if (!fixed[i] && fixed[j]) for (int v = 0; v < VS; ++v) K[i][v] -= regular[i * NU_ + j] * K[j][v];
            // L is the identity on held entries, whose rows stay
            for (int i = 0; i < NU_; ++i) {
                for (int j = 0; j < i; ++j) if (L[i * NU_ + j] != 0) for (int v = 0; v < VS; ++v) K[i][v] -= L[i * NU_ + j] * K[j][v];
                for (int v = 0; v < VS; ++v) K[i][v] /= L[i * NU_ + i];
            }
            for (int i = NU_ - 1; i >= 0; --i) {
                for (int j = i + 1; j < NU_; ++j) if (L[j * NU_ + i] != 0) for (int v = 0; v < VS; ++v) K[i][v] -= L[j * NU_ + i] * K[j][v];
                for (int v = 0; v < VS; ++v) K[i][v] /= L[i * NU_ + i];
            }
            V8 by[NU_][VS];
            D hk[NU_];
            for (int i = 0; i < NU_; ++i) {
                hk[i] = qu[i];
                for (int v = 0; v < VS; ++v) by[i][v] = Qus[i][v];
                for (int j = 0; j < NU_; ++j) {
                    hk[i] += Quu[i * NU_ + j] * du[j];
                    for (int v = 0; v < VS; ++v) by[i][v] += Quu[i * NU_ + j] * K[j][v];
                }
                sweep.linear += du[i] * qu[i];
                sweep.quadratic += 0.5 * du[i] * (hk[i] - qu[i]);
            }
            for (int i = 0; i < NS; ++i) {
                for (int v = 0; v < VS; ++v) P[i][v] = (V8)(0.0);
                p[i] = i < NDX ? ((const D*)q)[i] : 0;
                if (i < NDX) for (int j = 0; j < NDX; ++j) ((D*)P[i])[j] = ((const D*)Q[i])[j];
                for (int k = 0; k < NU_; ++k) {
                    const D s = ((const D*)K[k])[i], e = ((const D*)Qus[k])[i];
                    p[i] += s * hk[k] + e * du[k];
                    for (int v = 0; v < VS; ++v) P[i][v] += s * by[k][v] + e * K[k][v];
                }
            }
            for (int i = 0; i < NS; ++i)
                for (int j = 0; j < i; ++j) {
                    const D mean = 0.5 * (((const D*)P[i])[j] + ((const D*)P[j])[i]);
                    ((D*)P[i])[j] = ((D*)P[j])[i] = mean;
                }
            for (int i = 0; i < NU_; ++i) {
                w.k[t * NU_ + i] = du[i];
                w.kr[t * NU_ + i] = (R)du[i];
                for (int j = 0; j < NS; ++j) w.K[(t * NU_ + i) * NS + j] = (R)((const D*)K[i])[j];
            }
        }
        return sweep.linear == sweep.linear && sweep.quadratic == sweep.quadratic;
    }
"""

FEEDBACK = """
    // u = u_ref + size k + gain K (x - x_ref) within its limits, of every step size at once; the cost of each
    static __attribute__((noinline)) T feedback(const long long* a, const Block& b, R* row, Workspace& w, T size, T gain, const R* x_ref,
                                                const R* u_ref, const R* k, const R* K, int columns, const T* p) {
        const R* initial = (const R*)a[F_initial] + b.first * NX;
        const R* lower = (const R*)a[F_lower];
        const R* upper = (const R*)a[F_upper];
        const R* rate = (const R*)a[F_rate];
        const R* previous = a[F_previous] ? (const R*)a[F_previous] + b.first * NU_ : (const R*)0;
        T x[NX], u[NU_], last[NU_] = {}, r[NR], dx[NDX], total = (T)(0), now;
        for (int i = 0; i < NX; ++i) x[i] = (T)(initial[i]);
        if (previous) for (int i = 0; i < NU_; ++i) last[i] = (T)(previous[i]);
        for (long t = 0; t < b.H; ++t) {
            if (K) {
                T ref[NX];
                for (int i = 0; i < NX; ++i) ref[i] = (T)(x_ref[t * NX + i]);
                difference(x, ref, dx);
            }
            for (int i = 0; i < NU_; ++i) {
                T sum = (T)(u_ref[t * NU_ + i]);
                if (k) sum += size * (T)(k[t * NU_ + i]);
                if (K) {
                    const R* by = K + (t * NU_ + i) * columns;
                    T back = (T)(0);
                    for (int j = 0; j < NDX; ++j) back += (T)(by[j]) * dx[j];
                    if (RATE && columns > NDX) for (int j = 0; j < NU_; ++j)
                        if (by[NDX + j] != 0 && t) back += (T)(by[NDX + j]) * (last[j] - (T)(u_ref[(t - 1) * NU_ + j]));
                    sum += gain * back;
                }
                T lo = (T)(lower[i]), hi = (T)(upper[i]);
                if (RATE && (t || previous)) { lo = max_(lo, last[i] - (T)(rate[i])); hi = min_(hi, last[i] + (T)(rate[i])); }
                u[i] = min_(max_(sum, lo), hi);
            }
            for (int i = 0; i < NU_; ++i) { last[i] = u[i]; w.trial_u[t * NU_ + i] = u[i]; }
            for (int i = 0; i < NX; ++i) w.trial_x[t * NX + i] = x[i];
            b.load_reference(t, NR, r);
            running(x, u, r, &now);
            total += now;
            step(a, b, row, x, u, p);
        }
        for (int i = 0; i < NX; ++i) w.trial_x[b.H * NX + i] = x[i];
        b.load_reference(b.H, NR, r);
        terminal(x, r, &now);
        return total + now;
    }
    static inline int least(T total) {
        int best = -1;
        for (int n = 0; n < WORLDS; ++n)
            if (total[n] < (R)__builtin_inf() && total[n] > -(R)__builtin_inf() && (best < 0 || total[n] < total[best])) best = n;
        return best;
    }
    static inline void take(Workspace& w, long H, int lane) {
        for (long i = 0; i < (H + 1) * NX; ++i) w.x[i] = w.trial_x[i][lane];
        for (long i = 0; i < H * NU_; ++i) w.u[i] = w.trial_u[i][lane];
    }
"""

SOLVE = """
    struct Time { long seconds, nanoseconds; };
    typedef unsigned (*Clock)(unsigned, Time*);  // a macro of Warp's takes "int" before a bracket
    static inline long long nanoseconds(const long long* a) {
        if (!a[F_clock]) return 0;
        Time now;
        ((Clock)a[F_clock])((unsigned)a[F_clock_id], &now);
        return now.seconds * 1000000000LL + now.nanoseconds;
    }
    static void block(long long* a, long index, R* scratch, long piece) {
        Block b(a, index);
        const long H = b.H;
        const D* settings = (const D*)a[F_settings];
        const D tolerance = settings[S_tolerance], most = settings[S_most_regularisation];
        R* row = scratch;
        R* deltas = row + a[F_row];
        Workspace w(deltas + a[F_row], H);
        const R* lower = (const R*)a[F_lower];
        const R* upper = (const R*)a[F_upper];
        const R* rate = (const R*)a[F_rate];
        const R* previous = a[F_previous] ? (const R*)a[F_previous] + b.first * NU_ : (const R*)0;
        T p[NP], sizes, gains;
        b.load_parameters(p);
        D* info = (D*)a[F_info] + b.first * I_COUNT;
        // 1, then smaller and smaller; the last lane is the smallest step
        const D fall = -__builtin_log(settings[S_smallest_step]);
        for (int n = 0; n < WORLDS; ++n) {
            const D part = WORLDS > 1 ? (D)n / (WORLDS - 1) : 0;
            sizes[n] = (R)::exp(-fall * part * part);
            gains[n] = (R)part;
        }
        const R* first_u = (const R*)a[F_actions] + b.first * H * NU_;
        {
            TM ok = (T)(0) == (T)(0);
            T x[NX];
            for (int i = 0; i < NX; ++i) x[i] = (T)(((const R*)a[F_initial])[b.first * NX + i]);
            check(x, NX, ok);
            report(a, ok, STATUS_STATE);
            ok = (T)(0) == (T)(0);
            for (long i = 0; i < H * NU_; ++i) { const T one = (T)(first_u[i]); check(&one, 1, ok); }
            report(a, ok, STATUS_ACTION);
        }
        for (long i = 0; i < H * NU_; ++i) w.k[i] = 0;
        for (long i = 0; i < H * NU_ * NS; ++i) w.K[i] = 0;
        // feedback about a warm plan's own states, in parts of its gains
        const R* warm_x = a[F_warm_gains] ? (const R*)a[F_warm_states] + b.first * (H + 1) * NX : (const R*)0;
        const R* warm_K = a[F_warm_gains] ? (const R*)a[F_warm_gains] + b.first * H * NU_ * NDX : (const R*)0;
        T total = feedback(a, b, row, w, (T)(0), gains, warm_x, first_u, (const R*)0, warm_K, NDX, p);
        int lane = least(total);
        long iteration = 0;
        int outcome = LIMIT;
        D cost = __builtin_inf(), mu = 0, expected = 0;
        long long longest = 0;
        const long long usual = (long long)(info[I_longest] * 1e9);  // in: seconds that an iteration is known to take
        const D first_cost = total[0];
        if (lane < 0) {
            outcome = NOT_FINITE;
            lane = 0;
            take(w, H, lane);
        } else {
            take(w, H, lane);
            cost = total[lane];
            bool expanded = false;
            while (iteration < a[F_iterations]) {
                const long long begin = nanoseconds(a);
                if (a[F_until] && begin + (longest > usual ? longest : usual) >= a[F_until]) { outcome = LATE; break; }
                if (!expanded) { expand(a, b, row, deltas, w, p); expanded = true; }
                Sweep sweep;
                bool minimum = backward(w, H, mu, lower, upper, rate, previous, sweep);
                while (!minimum && mu < most) {
                    const D least_mu = settings[S_least_regularisation] * (sweep.largest > 0 ? sweep.largest : 1);
                    mu = mu * 10 > least_mu ? mu * 10 : least_mu;
                    for (long i = 0; i < H * NU_; ++i) w.k[i] = 0;
                    minimum = backward(w, H, mu, lower, upper, rate, previous, sweep);
                }
                if (!minimum) { outcome = STUCK; break; }
                ++iteration;
                const D least_mu = settings[S_least_regularisation] * sweep.largest, size = __builtin_fabs(cost);
                expected = -(sweep.linear + sweep.quadratic);
                if (expected <= tolerance * size && mu <= 1e3 * least_mu) { outcome = CONVERGED; break; }
                total = feedback(a, b, row, w, sizes, (T)(1), w.x, w.u, w.kr, w.K, NS, p);
                lane = least(total);
                const D fallen = lane < 0 ? -1 : cost - (D)total[lane];
                if (fallen > 0) {
                    const D taken = sizes[lane];
                    take(w, H, lane);
                    cost = total[lane];
                    expanded = false;
                    if (taken > 0.3) mu = mu * 0.1 > least_mu ? mu * 0.1 : 0;
                    else if (taken < 0.03) mu = mu * 10 > least_mu ? mu * 10 : least_mu;
                    if (fallen <= tolerance * size && taken > 0.3 && mu <= 1e3 * least_mu) { outcome = CONVERGED; break; }
                } else if (expected <= noise() * size) { outcome = CONVERGED; break;  // what is left is below the cost's own rounding
                } else {
                    if (mu >= most) { outcome = STUCK; break; }
                    mu = mu * 10 > least_mu ? mu * 10 : least_mu;
                }
                const long long took = nanoseconds(a) - begin;
                longest = took > longest ? took : longest;
            }
        }
        for (long i = 0; i < (H + 1) * NX; ++i) ((R*)a[F_states])[b.first * (H + 1) * NX + i] = w.x[i];
        for (long i = 0; i < H * NU_; ++i) ((R*)a[F_new_actions])[b.first * H * NU_ + i] = w.u[i];
        for (long i = 0; i < H * NU_; ++i)
            for (int j = 0; j < NDX; ++j) ((R*)a[F_gains])[(b.first * H * NU_ + i) * NDX + j] = w.K[i * NS + j];
        ((R*)a[F_costs])[b.first] = (R)cost;
        info[I_outcome] = outcome; info[I_iterations] = iteration; info[I_first_cost] = first_cost; info[I_cost] = cost;
        info[I_expected] = expected; info[I_regularisation] = mu; info[I_longest] = longest * 1e-9;
    }
    static void conclude(long long* a) {}
"""
