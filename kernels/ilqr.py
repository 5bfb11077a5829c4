"""A whole solve by iLQR in one launch: batched over problems, its step sizes and steps in the lanes of a register.

Differential dynamic programming within control limits (Tassa, Mansard, Todorov, Control-limited differential dynamic programming, ICRA
2014) on the first derivatives of the model. Limits of rates add the last action to what the value function is of: where a rate limit holds
an action, its feedback is that of the bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from residual_mbrl.kernels import ilqr_text as text
from residual_mbrl.kernels.block_text import LINEAR
from residual_mbrl.kernels.mlp import Schedule
from residual_mbrl.kernels.native import REALS, Kernel
from residual_mbrl.kernels.rollout import assemble, model_text
from residual_mbrl.kernels.second_order import second_order_text, tangent_text
from residual_mbrl.kernels.system import Cost, System, cost_text, jacobian_text, member_text


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a solve is of besides the model.

    Args:
        cost: Running and terminal.
        difference: ``difference(x, reference)``, the entries of the tangent.
        quaternions: First entries of unit quaternions in a state.
        rate: Whether changes of actions are limited.
        key: Tells this problem from others.
    """

    cost: Cost
    difference: Any
    quaternions: tuple[int, ...]
    rate: bool
    key: object


def solve_kernel(system: System, problem: Problem, schedule: Schedule) -> Kernel:
    """Return the kernel of a solve; one world a block in the schedule, whose lanes are step sizes."""
    ndx = system.nx - len(problem.quaternions)
    at = [q0 - k for k, q0 in enumerate(problem.quaternions)]
    places = "".join(f"if (q == {k}) return {place};" for k, place in enumerate(at))
    constants = f"""
    enum {{ {", ".join(f"S_{n}" for n in text.SETTINGS)} }};
    enum {{ {", ".join(f"I_{n}" for n in text.INFO)}, I_COUNT }};
    enum {{ CONVERGED = {text.CONVERGED}, LIMIT = {text.LIMIT}, STUCK = {text.STUCK}, LATE = {text.LATE} }};
    enum {{ NOT_FINITE = {text.NOT_FINITE} }};
    enum {{ QUATERNIONS = {len(problem.quaternions)} }};
    static inline double noise() {{ return {2e-6 if schedule.real == "float" else 1e-13}; }}
    static inline int quaternion_at(int q) {{ {places} return 0; }}
    {text.sizes_text(ndx, system.nu, problem.rate)}
    """
    difference = "\n".join(member_text("difference", problem.difference, [("x", system.nx), ("y", system.nx)], ndx))
    members = [model_text(system, schedule), jacobian_text(system), LINEAR, cost_text(problem.cost, system),
               second_order_text(problem.cost, system, problem.quaternions), tangent_text(system.nx, problem.quaternions), difference,
               constants, text.WORKSPACE, text.EXPANSION, text.BACKWARD, text.FEEDBACK]
    return assemble(schedule, "".join(members), text.SOLVE)


def scratch_reals(system: System, problem: Problem, schedule: Schedule, row: int, horizon: int) -> int:
    """Return the numbers of scratch that a thread needs, two rows of units included."""
    real = REALS[schedule.real]
    ndx = system.nx - len(problem.quaternions)
    return 2 * row + -(-text.workspace_bytes(ndx, system.nx, system.nu, problem.rate, horizon, schedule.lanes, real) // real)


BACKWARD_FIELDS = ("count", "horizon", "AB", "G", "C", "k", "K", "u", "lower", "upper", "rate", "previous", "mu", "out")


def backward_kernel(ndx: int, nu: int, rate: bool) -> Kernel:
    """Return the backward pass alone, in double precision, for expansions that were made elsewhere; arrays as ``BACKWARD_FIELDS``.

    AB [count, H, ndx, padded], G [count, H + 1, padded], C [count, H + 1, ndx + nu, padded] with ndx + nu padded to a multiple of 8;
    k [count, H, nu] in and out, K [count, H, nu, ndx or ndx + nu]; limits [nu]; out [count, 4]: whether there is a minimum, expected change
    linear and quadratic in the step size, greatest curvature.
    """
    return Kernel(f"""
struct K {{
    typedef double R;
    enum {{ {", ".join(f"F_{n}" for n in BACKWARD_FIELDS)} }};
    {text.sizes_text(ndx, nu, rate)}
    struct Workspace {{ D *AB, *G, *C, *k, *u, *kr, *K; }};
    {text.BACKWARD}
    static void run(long long* a) {{
        const long H = a[F_horizon];
        for (long n = 0; n < a[F_count]; ++n) {{
            D* own = (D*)a[F_k] + n * H * NU_;
            Workspace w;
            w.AB = (D*)a[F_AB] + n * H * NDX * PA; w.G = (D*)a[F_G] + n * (H + 1) * PA; w.C = (D*)a[F_C] + n * (H + 1) * NA * PA;
            w.k = own; w.kr = own; w.u = (D*)a[F_u] + n * H * NU_; w.K = (D*)a[F_K] + n * H * NU_ * NS;
            const D* previous = a[F_previous] ? (const D*)a[F_previous] + n * NU_ : (const D*)0;
            Sweep sweep;
            D* out = (D*)a[F_out] + 4 * n;
            const D mu = ((const D*)a[F_mu])[n];
            out[0] = backward(w, H, mu, (const D*)a[F_lower], (const D*)a[F_upper], (const D*)a[F_rate], previous, sweep);
            out[1] = sweep.linear; out[2] = sweep.quadratic; out[3] = sweep.largest;
        }}
    }}
}};
K::run(a);
""", len(BACKWARD_FIELDS))
