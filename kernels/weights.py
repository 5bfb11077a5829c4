"""Weights read from where a model keeps them, whatever their precision."""

from __future__ import annotations

from functools import cache

from residual_mbrl.kernels.native import Call, Kernel


def read_weights(entries: int, n_entries: int, flat: int, flat_size: int, members: int, real: str) -> bool:
    """Copy weights into one vector a member; return whether all are finite.

    Args:
        entries: Address of a table (address, numbers of a member, bytes of a number) of the tensors [members, numbers].
        n_entries: Rows of the table.
        flat: Address of the vectors [members, flat_size].
        flat_size: Numbers of a member in all tensors.
        members: Members.
        real: Of the vectors, "float" or "double".
    """
    call = _reader(real)
    call([entries, n_entries, flat, flat_size, members, 0])
    return not call.table[5]


@cache
def _reader(real: str) -> Call:
    return Kernel(f"""
    const long long* entry = (const long long*)a[0];
    {real}* flat = ({real}*)a[2];
    for (long n = 0; n < a[1]; ++n, entry += 3) {{
        for (long m = 0; m < a[4]; ++m)
            for (long i = 0; i < entry[1]; ++i) {{
                const long k = m * entry[1] + i;
                const {real} w = entry[2] == 8 ? ({real})((const double*)entry[0])[k] : ({real})((const float*)entry[0])[k];
                if (!(__builtin_fabs(w) < __builtin_inf())) a[5] = 1;
                flat[m * a[3] + i] = w;
            }}
        flat += entry[1];
    }}
    """, 6).table()
