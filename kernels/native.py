"""C++ for the CPU: vector registers of worlds or units, their elementary functions, and kernels that Warp compiles from text.

``ext_vector_type`` is clang's own: a value of it is one or more registers of whatever the processor has. Elementary functions are
polynomials on whole vectors, since a libm call a lane costs more than a 64 x 64 layer; those that hardly occur call libm lane by lane.
A kernel is one native function within a Warp kernel of one thread and one argument, the address of a table of numbers and
addresses. So a launch needs no argument checks, and the work within is shared out by the kernel itself.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Sequence
from functools import cache
from typing import Any

import warp as wp

OPTIONS = {"enable_backward": False, "module": "unique",
           "module_options": {"cpu_compiler_flags": "-march=native -ffp-contract=fast"}}
"""Fused multiply-adds across statements; NaN and infinity stay what they are. Without Warp's own thresholds for inlining, which are
made for its generated code: with them a kernel takes twice as long to compile and runs no faster."""

LIBM = ("tan", "log", "asin", "acos", "atan")
REALS = {"float": 4, "double": 8}
"""Bytes of a number."""


def lane_math(name: str, real: str, lanes: int) -> str:
    """Return C++ members of a struct: a vector type, its logical type (the name with an M), and elementary functions of it.

    Errors relative to exact values: tanh 4e-7 and 4e-16 (single and double precision), exp 2e-7 and 3e-16; of sin and cos 2e-7 below
    8192 rad and 2e-16 below 1e5 rad, libm beyond, relative to one. Approximations are those of Cephes; tanh in single precision is x
    P(x²) / Q(x²) of degrees 3 and 4, minimax in the relative error, with the leading one of Q free of charge.

    Args:
        name: Of the type.
        real: "float" or "double".
        lanes: Numbers in a vector.
    """
    suffix = "f" if real == "float" else ""
    text = f"""
typedef {real} {name} __attribute__((ext_vector_type({lanes})));
typedef decltype(({name})(0) < ({name})(0)) {name}M;
static inline {name} select_({name}M m, {name} a, {name} b) {{ return m ? a : b; }}
static inline {name} min_({name} a, {name} b) {{ return a <= b ? a : b; }}
static inline {name} max_({name} a, {name} b) {{ return b <= a ? a : b; }}
static inline {name} abs_({name} a) {{ return __builtin_elementwise_abs(a); }}
static inline {name} sign_({name} a) {{ {name} z = ({name})(0), o = ({name})(1); return a > z ? o : (a < z ? -o : z); }}
static inline {name}M not_({name}M a) {{ return ~a; }}
static inline {name} sqrt_({name} a) {{ return __builtin_elementwise_sqrt(a); }}
static inline {name} pow_({name} a, {name} b) {{ for (int k = 0; k < {lanes}; ++k) a[k] = ::pow{suffix}(a[k], b[k]); return a; }}
static inline {name} atan2_({name} a, {name} b) {{ for (int k = 0; k < {lanes}; ++k) a[k] = ::atan2{suffix}(a[k], b[k]); return a; }}
"""
    for f in LIBM:
        text += f"static inline {name} {f}_({name} a) {{ for (int k = 0; k < {lanes}; ++k) a[k] = ::{f}{suffix}(a[k]); return a; }}\n"
    return text + (_float_math(name, lanes) if real == "float" else _double_math(name, lanes))


def _float_math(name: str, lanes: int) -> str:
    """Return tanh, sin, cos and exp in single precision."""
    return f"""
static inline {name} tanh_({name} x) {{
    // clamped where float32 tanh is 1 to rounding; NaN stays NaN, since both comparisons with it are false
    x = x < ({name})(-7.76f) ? ({name})(-7.76f) : x;
    x = x > ({name})(7.76f) ? ({name})(7.76f) : x;
    {name} x2 = x * x;
    {name} p = x2 * 46.0317879f + 11742.3623f;
    p = x2 * p + 511668.594f;
    p = x2 * p + 3953088.5f;
    {name} q = x2 + 954.46405f;
    q = x2 * q + 94456.2188f;
    q = x2 * q + 1829361.25f;
    q = x2 * q + 3953088.75f;
    return x * p / q;
}}
static inline {name} exp_({name} x) {{
    {name}M over = x > ({name})(88.7228f), under = x < ({name})(-87.3365f);
    {name} n = __builtin_elementwise_floor(x * 1.44269504f + 0.5f);
    {name} safe = over | under ? ({name})(0.0f) : n;
    {name} r = x - safe * 0.693359375f + safe * 2.12194440e-4f;
    {name} y = r * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * (r * r) + r + 1.0f;
    // 2^n in two halves, since n may be 128
    {name}M i = __builtin_convertvector(safe == safe ? safe : ({name})(0.0f), {name}M), h = i >> 1;
    {name}M bits = (h + 127) << 23, rest = (i - h + 127) << 23;
    y = y * *({name}*)&bits * *({name}*)&rest;
    return over ? ({name})(__builtin_inff()) : (under ? ({name})(0.0f) : y);
}}
// not inlined: compilers would call libm for every lane, needed or not
static __attribute__((noinline)) {name} turn_far_({name} x, {name} y, int quarter) {{
    for (int k = 0; k < {lanes}; ++k)
        if (__builtin_fabsf(x[k]) > 8192.0f) y[k] = quarter ? ::cosf(x[k]) : ::sinf(x[k]);
    return y;
}}
static inline {name} turn_({name} x, int quarter) {{
    {name} n = __builtin_elementwise_floor(x * 0.636619772f + 0.5f);
    {name} r = x - n * 1.5703125f;
    r = r - n * 4.837512969970703125e-4f;
    r = r - n * 7.549789948768648e-8f;
    {name}M i = __builtin_convertvector(abs_(n) < ({name})(1e9f) ? n : ({name})(0.0f), {name}M) + quarter;
    {name} r2 = r * r;
    {name} s = ((r2 * -1.9515295891e-4f + 8.3321608736e-3f) * r2 + -1.6666654611e-1f) * r2 * r + r;
    {name} c = ((r2 * 2.443315711809948e-5f + -1.388731625493765e-3f) * r2 + 4.166664568298827e-2f) * r2 * r2 - 0.5f * r2 + 1.0f;
    {name} y = (i & 1) != 0 ? c : s;
    y = (i & 2) != 0 ? -y : y;
    return __builtin_expect(__builtin_reduce_max(abs_(x)) > 8192.0f, 0) ? turn_far_(x, y, quarter) : y;
}}
static inline {name} sin_({name} x) {{ return turn_(x, 0); }}
static inline {name} cos_({name} x) {{ return turn_(x, 1); }}
"""


def _double_math(name: str, lanes: int) -> str:
    """Return tanh, sin, cos and exp in double precision."""
    return f"""
static inline {name} exp_({name} x) {{
    {name}M over = x > ({name})(709.782712893384), under = x < ({name})(-708.396418532264);
    {name} n = __builtin_elementwise_floor(x * 1.4426950408889634073599 + 0.5);
    n = (over | under | (x != x)) ? ({name})(0.0) : n;
    {name} r = x - n * 6.93145751953125e-1 - n * 1.42860682030941723212e-6, r2 = r * r;
    {name} p = r * ((r2 * 1.26177193074810590878e-4 + 3.02994407707441961300e-2) * r2 + 9.99999999999999999910e-1);
    {name} q = ((r2 * 3.00198505138664455042e-6 + 2.52448340349684104192e-3) * r2 + 2.27265548208155028766e-1) * r2 + 2.0;
    {name} y = p / (q - p) * 2.0 + 1.0;
    // 2^n in two halves, since n may be 1024
    {name}M i = __builtin_convertvector(n, {name}M), h = i >> 1;
    {name}M bits = (h + 1023) << 52, rest = (i - h + 1023) << 52;
    y = y * *({name}*)&bits * *({name}*)&rest;
    return over ? ({name})(__builtin_inf()) : (under ? ({name})(0.0) : y);
}}
static inline {name} tanh_({name} x) {{
    // e = exp(2 |x|) - 1 without a difference of near numbers, then e / (e + 2): one division; 1 to rounding from 20 on, NaN stays NaN
    {name} far = abs_(x);
    far = far > ({name})(20.0) ? ({name})(20.0) : far;
    // n = 2 far / log(2) to the nearest integer, which the shift leaves in the lowest bits
    {name} shifted = far * 2.8853900817779268147 + 6755399441055744.0, n = shifted - 6755399441055744.0;
    {name} r = (far + far) - n * 6.93147180369123816490e-1 - n * 1.90821492927058770002e-10, r2 = r * r, r4 = r2 * r2;
    {name} low = (r * 1.6666666666666666e-1 + 0.5) + r2 * (r * 8.3333333333333333e-3 + 4.1666666666666664e-2);
    {name} high = (r * 1.9841269841269841e-4 + 1.3888888888888889e-3) + r2 * (r * 2.7557319223985893e-6 + 2.4801587301587302e-5);
    {name} last = (r * 2.5052108385441720e-8 + 2.7557319223985888e-7) + r2 * (r * 1.6059043836821613e-10 + 2.0876756987868100e-9);
    {name} p = r + r2 * (low + r4 * (high + r4 * last));
    {name}M bits = (*({name}M*)&shifted << 52) + ((long long)1023 << 52);
    {name} power = *({name}*)&bits;
    {name} e = power * p + (power - 1.0), y = e / (e + 2.0);
    return x < ({name})(0.0) ? -y : y;
}}
// not inlined, see above
static __attribute__((noinline)) {name} turn_far_({name} x, {name} y, int quarter) {{
    for (int k = 0; k < {lanes}; ++k)
        if (__builtin_fabs(x[k]) > 1e5) y[k] = quarter ? ::cos(x[k]) : ::sin(x[k]);
    return y;
}}
static inline {name} turn_({name} x, int quarter) {{
    {name} n = __builtin_elementwise_floor(x * 6.36619772367581343076e-1 + 0.5);
    {name} r = x - n * 1.57079625129699707031;
    r = r - n * 7.54978941586159635335e-8;
    r = r - n * 5.39030285815811905290e-15;
    {name}M i = __builtin_convertvector(abs_(n) < ({name})(1e9) ? n : ({name})(0.0), {name}M) + quarter;
    {name} z = r * r;
    {name} s = ((((z * 1.58962301576546568060e-10 + -2.50507477628578072866e-8) * z + 2.75573136213857245213e-6) * z
        + -1.98412698295895385996e-4) * z + 8.33333333332211858878e-3) * z + -1.66666666666666307295e-1;
    {name} c = ((((z * -1.13585365213876817300e-11 + 2.08757008419747316778e-9) * z + -2.75573141792967388112e-7) * z
        + 2.48015872888517045348e-5) * z + -1.38888888888730564116e-3) * z + 4.16666666666665929218e-2;
    s = r + r * z * s;
    c = 1.0 - 0.5 * z + z * z * c;
    {name} y = (i & 1) != 0 ? c : s;
    y = (i & 2) != 0 ? -y : y;
    return __builtin_expect(__builtin_reduce_max(abs_(x)) > 1e5, 0) ? turn_far_(x, y, quarter) : y;
}}
static inline {name} sin_({name} x) {{ return turn_(x, 0); }}
static inline {name} cos_({name} x) {{ return turn_(x, 1); }}
"""


class Kernel:
    """A compiled text that is called with a table of numbers and addresses.

    Args:
        text: Body of a C++ function of ``long long* a``, the table.
        fields: Number of entries of the table.
    """

    def __init__(self, text: str, fields: int) -> None:
        @wp.func_native(f"long long* a = (long long*)table;\n{text}")
        def body(table: wp.uint64): ...

        @wp.kernel(**OPTIONS)
        def native_kernel(table: wp.uint64):
            body(table)

        self._kernel, self.fields = native_kernel, fields

    def table(self) -> Call:
        """Return a table to fill and launch again and again."""
        return Call(self._kernel, self.fields)


class Call:
    """A table of arguments with its recorded launch.

    Attributes:
        table: The arguments, which a kernel may answer in.
    """

    def __init__(self, kernel: Any, fields: int) -> None:
        self.table = (ctypes.c_longlong * fields)()
        with wp.ScopedLogLevel(wp.LOG_ERROR):  # no banner, and no line for each kernel, in the output of whoever rolls out
            self._launch = wp.launch(kernel, dim=1, inputs=[ctypes.addressof(self.table)], device="cpu", record_cmd=True)

    def __call__(self, values: Sequence[int]) -> None:
        """Run with these numbers and addresses; releases the interpreter while it runs."""
        self.table[:] = values
        self._launch.launch()

    def fill(self, values: Sequence[int]) -> None:
        """Set numbers and addresses for ``launch``."""
        self.table[:] = values

    def launch(self) -> None:
        """Run with what the table holds."""
        self._launch.launch()


@cache
def parallel_region() -> int:
    """Return the address of ``GOMP_parallel``, through which torch's own threads run, 0 where torch uses another library.

    A second set of threads would compete with torch's, which go on spinning for milliseconds after each operation of theirs: a
    rollout of 256 worlds on two cores took twice as long.
    """
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value or 0
    except (AttributeError, OSError, TypeError):
        return 0
