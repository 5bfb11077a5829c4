"""Plain torch functions of short vectors as functions of symbols, so that costs written in torch run within the kernels.

The function is recorded once on vectors of the right length (``make_fx``), and its operations are replayed on arrays of symbols. What
it does must not depend on values, other than by ``torch.where``; loops and shapes are Python's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

_UNARY = {"neg": "neg", "sin": "sin", "cos": "cos", "tan": "tan", "tanh": "tanh", "exp": "exp", "log": "log", "sqrt": "sqrt", "abs": "abs",
          "sign": "sign", "sgn": "sign", "asin": "asin", "acos": "acos", "atan": "atan", "logical_not": "not"}
_BINARY = {"minimum": "min", "maximum": "max", "atan2": "atan2", "lt": "lt", "le": "le", "eq": "eq", "ne": "ne", "logical_and": "and",
           "logical_or": "or", "bitwise_and": "and", "bitwise_or": "or", "div": "div"}


class UntraceableError(ValueError):
    """A torch function that has no form on symbols."""


class Replay:
    """A recorded torch function that takes vectors of symbols and returns a list of them.

    Args:
        function: Takes tensors [*batch, n] and returns a tensor [*batch] or [*batch, m].
        sizes: n of each argument.

    Raises:
        UntraceableError: if recording fails or an operation has no form.
    """

    def __init__(self, function: Callable[..., Tensor], sizes: Sequence[int]) -> None:
        from torch.fx.experimental.proxy_tensor import make_fx  # noqa: PLC0415  # half a second that only these need

        generator = torch.Generator().manual_seed(0)
        examples = [torch.rand(n, generator=generator, dtype=torch.float64) for n in sizes]
        try:
            with torch.no_grad():
                self._module = make_fx(function)(*examples)
        except Exception as error:
            raise UntraceableError(f"a torch function cannot be recorded: {error}") from error
        for node in self._module.graph.nodes:
            if node.op == "call_function" and _name(node) not in _RULES:
                raise UntraceableError(f"{_name(node)} has no form on symbols; there are {sorted(_RULES)}")

    def __call__(self, *arguments: Any) -> list[Any]:
        """Return the results of the function on vectors of symbols, one after another."""
        known: dict[str, Any] = {}
        waiting = list(arguments)
        for node in self._module.graph.nodes:
            if node.op == "placeholder":
                vector = waiting.pop(0)
                known[node.name] = _array([vector[i] for i in range(len(vector))])
            elif node.op == "get_attr":
                known[node.name] = _constant(getattr(self._module, str(node.target)))
            elif node.op == "call_function":
                args, kwargs = (fx.node.map_arg(a, lambda n: known[n.name]) for a in (node.args, node.kwargs))
                known[node.name] = _RULES[_name(node)](*args, **kwargs)
            else:
                out = known[node.args[0].name]
                return list(out.reshape(-1))
        raise UntraceableError("a torch function without a result")


def symbolic(function: Callable[..., Tensor], *sizes: int) -> Callable[..., list[Any]]:
    """Return a torch function of vectors as a function of symbols, as ``baselines.WarpFunction``."""
    replay = Replay(function, sizes)

    def on_symbols(*arguments: Any) -> list[Any]:
        return replay(*arguments)

    return on_symbols


def _name(node: fx.Node) -> str:
    schema = getattr(node.target, "_schema", None)
    name = str(getattr(node.target, "__name__", node.target)) if schema is None else schema.name.split("::")[-1]
    return name.rstrip("_")


def _array(values: Sequence[Any]) -> Any:
    out = np.empty(len(values), dtype=object)
    for i, v in enumerate(values):
        out[i] = v
    return out


def _constant(x: Tensor) -> Any:
    return np.array(x.detach().cpu().double().numpy(), dtype=object)


def _applied(op: str, *args: Any) -> Any:
    graph = next((a.graph for a in args if hasattr(a, "graph")), None)
    if graph is None:
        from residual_mbrl.kernels.expressions import BINARY, UNARY  # noqa: PLC0415

        if op == "select":
            return args[1] if args[0] else args[2]
        return (UNARY if len(args) == 1 else BINARY)[op](*(float(a) for a in args))
    return graph.apply(op, *args)


def _each(op: str) -> Callable[..., Any]:
    def rule(*args: Any, **_: Any) -> Any:
        return _elementwise(lambda *xs: _applied(op, *xs), *args)

    return rule


def _elementwise(f: Callable[..., Any], *args: Any) -> Any:
    arrays = np.broadcast_arrays(*(np.asarray(a, dtype=object) for a in args))
    out = np.empty(arrays[0].shape, dtype=object)
    for index in np.ndindex(out.shape):
        out[index] = f(*(a[index] for a in arrays))
    return out


def _add(a: Any, b: Any, alpha: float = 1) -> Any:
    return _elementwise(lambda x, y: x + y, a, b if alpha == 1 else _elementwise(lambda y: alpha * y, b))


def _sub(a: Any, b: Any, alpha: float = 1) -> Any:
    return _elementwise(lambda x, y: x - y, a, b if alpha == 1 else _elementwise(lambda y: alpha * y, b))


def _mul(a: Any, b: Any) -> Any:
    return _elementwise(lambda x, y: x * y, a, b)


def _power(a: Any, b: Any) -> Any:
    def one(x: Any, n: Any) -> Any:
        if isinstance(n, int | float):
            if float(n).is_integer() and 0 < n <= 4:
                return x ** int(n)
            if n == 0.5:
                return _applied("sqrt", x)
            if n == -1:
                return 1.0 / x
        return _applied("pow", x, n)

    return _elementwise(one, a, b)


def _softplus(x: Any) -> Any:
    return _applied("max", x, 0.0) + _applied("log", 1.0 + _applied("exp", -_applied("abs", x)))


def _axes(x: Any, dim: Any) -> tuple[int, ...]:
    if dim is None or dim == []:
        return tuple(range(x.ndim))
    return tuple(d % max(x.ndim, 1) for d in (dim if isinstance(dim, list | tuple) else [dim]))


def _sum(x: Any, dim: Any = None, keepdim: bool = False, **_: Any) -> Any:
    axes = _axes(x, dim)
    if x.ndim == 0:
        return x
    out = np.asarray(x.sum(axis=axes, keepdims=keepdim), dtype=object)
    return out


def _mean(x: Any, dim: Any = None, keepdim: bool = False, **_: Any) -> Any:
    return _mul(_sum(x, dim, keepdim), 1.0 / max(1, math.prod(x.shape[a] for a in _axes(x, dim))))


def _norm(x: Any, p: float = 2, dim: Any = None, keepdim: bool = False, **_: Any) -> Any:
    if p != 2:
        raise UntraceableError(f"a norm of order {p} has no form on symbols")
    return _each("sqrt")(_sum(_mul(x, x), dim, keepdim))


def _slice(x: Any, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Any:
    index: list[Any] = [slice(None)] * x.ndim
    index[dim] = slice(start, None if end is None or end > x.shape[dim] else end, step)
    return x[tuple(index)]


def _split(x: Any, sizes: Any, dim: int = 0) -> list[Any]:
    n = x.shape[dim]
    lengths = [min(sizes, n - s) for s in range(0, n, sizes)] if isinstance(sizes, int) else list(sizes)
    return list(np.split(x, np.cumsum(lengths)[:-1], axis=dim))


def _index(x: Any, indices: Sequence[Any]) -> Any:
    return x[tuple(slice(None) if i is None else np.asarray(i, dtype=float).astype(int) for i in indices)]


def _clamp(x: Any, least: Any = None, most: Any = None, **named: Any) -> Any:
    least, most = named.get("min", least), named.get("max", most)
    x = x if least is None else _each("max")(x, least)
    return x if most is None else _each("min")(x, most)


def _view(x: Any, shape: Sequence[int]) -> Any:
    return x.reshape(tuple(shape))


def _expand(x: Any, shape: Sequence[int], **_: Any) -> Any:
    sizes = [x.shape[i - len(shape) + x.ndim] if s == -1 else s for i, s in enumerate(shape)]
    return np.broadcast_to(x, sizes)


def _filled(value: float) -> Callable[..., Any]:
    def rule(like: Any, *args: Any, **_: Any) -> Any:
        shape = like.shape if hasattr(like, "shape") else tuple(like)
        return np.full(shape, value, dtype=object)

    return rule


def _full(like: Any, value: float, **_: Any) -> Any:
    return np.full(like.shape if hasattr(like, "shape") else tuple(like), value, dtype=object)


def _squeeze(x: Any, dim: Any = None) -> Any:
    axes = [a for a in _axes(x, dim) if x.shape[a] == 1]
    return np.squeeze(x, axis=tuple(axes))


_RULES: dict[str, Callable[..., Any]] = {
    **{name: _each(op) for name, op in (*_UNARY.items(), *_BINARY.items())},
    "add": _add, "sub": _sub, "rsub": lambda a, b, alpha=1: _sub(b, a, alpha), "mul": _mul, "pow": _power, "square": lambda x: _mul(x, x),
    "reciprocal": lambda x: _elementwise(lambda y: 1.0 / y, x), "rsqrt": lambda x: _elementwise(lambda y: 1.0 / _applied("sqrt", y), x),
    "gt": lambda a, b: _each("lt")(b, a), "ge": lambda a, b: _each("le")(b, a), "where": _each("select"),
    "relu": lambda x: _each("max")(x, 0.0), "clamp": _clamp, "clamp_min": _clamp,
    "clamp_max": lambda x, m: _clamp(x, None, m),
    "sigmoid": lambda x: _elementwise(lambda y: 1.0 / (1.0 + _applied("exp", -y)), x),
    "softplus": lambda x, *_: _elementwise(_softplus, x), "log1p": lambda x: _elementwise(lambda y: _applied("log", 1.0 + y), x),
    "expm1": lambda x: _elementwise(lambda y: _applied("exp", y) - 1.0, x),
    "sum": _sum, "mean": _mean, "linalg_vector_norm": _norm, "norm": _norm, "slice": _slice, "split": _split, "split_with_sizes": _split,
    "select": lambda x, dim, i: np.asarray(np.take(x, i, axis=dim), dtype=object), "index": _index, "getitem": lambda x, i: x[i],
    "unbind": lambda x, dim=0: [np.asarray(np.take(x, i, axis=dim), dtype=object) for i in range(x.shape[dim])],
    "cat": lambda xs, dim=0: np.concatenate(xs, axis=dim), "stack": lambda xs, dim=0: np.stack(xs, axis=dim),
    "view": _view, "reshape": _view, "_unsafe_view": _view, "expand": _expand, "unsqueeze": np.expand_dims,
    "squeeze": _squeeze, "permute": np.transpose, "transpose": np.swapaxes,
    "t": lambda x: x.T, "mT": lambda x: np.swapaxes(x, -1, -2), "mv": lambda a, b: a.dot(b), "mm": lambda a, b: a.dot(b),
    "dot": lambda a, b: np.asarray(a.dot(b), dtype=object), "vdot": lambda a, b: np.asarray(a.dot(b), dtype=object),
    "bmm": lambda a, b: np.stack([x.dot(y) for x, y in zip(a, b, strict=True)]),
    "matmul": lambda a, b: np.asarray(np.matmul(a, b), dtype=object), "lift_fresh_copy": lambda x: x, "clone": lambda x, **_: x,
    "detach": lambda x: x, "alias": lambda x: x, "_to_copy": lambda x, **_: x, "contiguous": lambda x, **_: x,
    "zeros_like": _filled(0.0), "ones_like": _filled(1.0), "full_like": _full, "full": _full, "zeros": _filled(0.0), "ones": _filled(1.0),
    "new_zeros": lambda x, shape, **_: np.zeros(shape, dtype=object), "new_ones": lambda x, shape, **_: np.ones(shape, dtype=object),
    "scalar_tensor": lambda v, **_: np.asarray(v, dtype=object)}
"""What each operation of torch does on arrays of symbols."""
