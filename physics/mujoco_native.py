"""MuJoCo's own batches from its C interface, and compiled functions that run on each of their worlds in its threads.

``mujoco.batch.Batch`` shows what has a size of its own; rows of constraints and contacts have none. A C function sees them: it is compiled
from text against the headers that MuJoCo ships, so that the layout of ``mjModel`` and ``mjData`` is the installed version's.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import warp as wp
from numpy.typing import NDArray

Array = NDArray[np.float64]

_HEADERS = ("mjtype.h", "mjmodel.h", "mjdata.h")
_OPTIONS: dict[str, Any] = {"enable_backward": False, "module": "unique",
                            "module_options": {"cpu_compiler_flags": "-march=native -ffp-contract=fast"}}
_STATE = {"time": mujoco.mjtState.mjSTATE_TIME, "qpos": mujoco.mjtState.mjSTATE_QPOS, "qvel": mujoco.mjtState.mjSTATE_QVEL,
          "act": mujoco.mjtState.mjSTATE_ACT, "ctrl": mujoco.mjtState.mjSTATE_CTRL,
          "qacc_warmstart": mujoco.mjtState.mjSTATE_WARMSTART, "qfrc_applied": mujoco.mjtState.mjSTATE_QFRC_APPLIED}
_Address, _Int = ctypes.c_void_p, ctypes.c_int


class _Config(ctypes.Structure):
    _fields_ = (("threads", _Int), ("persistent", ctypes.c_bool))


@cache
def library() -> ctypes.CDLL:
    """Return MuJoCo's library, the one that the Python package has loaded."""
    path = next(p for p in sorted(Path(mujoco.__file__).parent.iterdir()) if re.match(r"(lib)?mujoco\.(.*\.)?(so|dylib|dll)", p.name))
    found = ctypes.CDLL(str(path))
    numbers = ctypes.POINTER(_Int)
    for name, result, arguments in (
            ("mjb_makeBatch", _Address, [_Address, _Int, ctypes.POINTER(_Config), ctypes.c_char_p, _Int]),
            ("mjb_deleteBatch", None, [_Address]), ("mjb_nstate", _Int, [_Address]), ("mjb_state", _Address, [_Address]),
            ("mjb_stateComponent", _Address, [_Address, _Int, numbers]), ("mjb_error", ctypes.c_char_p, [_Address, _Int]),
            ("mjb_step", _Int, [_Address, _Address, _Int, _Int, _Int]), ("mjb_getData", None, [_Address, _Int, _Address]),
            ("mjb_output", _Address, [_Address, ctypes.c_char_p, numbers, numbers]),
            ("mjb_expand", _Address, [_Address, ctypes.c_char_p, numbers, numbers]), ("mjb_status", _Address, [_Address]),
            ("mjb_apply", _Int, [_Address, _Address, _Int, _Address, _Address, _Int])):
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    return found


def engine_function(name: str) -> int:
    """Return the address of one of the engine's functions; of those that stand in no header, 0 but in the version that was looked into."""
    if name.startswith("mjd_") and (mujoco.mj_version() // 1_000_000 != 4 or not hasattr(library(), name)):
        return 0
    return ctypes.cast(getattr(library(), name), _Address).value or 0


@cache
def compile_functions(text: str, names: tuple[str, ...]) -> dict[str, int]:
    """Return addresses of functions ``void (const mjModel* m, mjData* d, int world, void* arguments)``; kept on disk between runs.

    Args:
        text: C++ with a ``struct Functions`` that has them as static members; it may not include anything.
        names: Of the members.
    """
    listed = "\n".join(f"table[{i}] = (long long)&Functions::{name};" for i, name in enumerate(names))

    def tell(place: wp.uint64) -> None: ...

    function = wp.func_native(_text(text, f"long long* table = (long long*)place;\n{listed}"))(tell)

    def native_functions(place: wp.uint64) -> None:
        function(place)

    kernel = wp.kernel(native_functions, **_OPTIONS)
    table = (ctypes.c_longlong * len(names))()
    with wp.ScopedLogLevel(wp.LOG_ERROR):
        wp.launch(kernel, dim=1, inputs=[ctypes.addressof(table)], device="cpu")
    _KEPT.append(kernel)  # unloaded with its module otherwise
    return dict(zip(names, table, strict=True))


_KEPT: list[Any] = []


def _text(functions: str, last: str) -> str:
    """Return the body of a function with the engine's types in it. Warp's own macros of the names of types are put aside."""
    folder = Path(mujoco.__file__).parent / "include" / "mujoco"
    types = "\n".join((folder / name).read_text() for name in _HEADERS)
    types = re.sub(r"#include[^\n]*|//[^\n]*", "", types)
    types = re.sub(r"#ifdef __cplusplus\s+(extern \"C\" \{|\})\s+#endif", "", types)
    hidden = ("int", "float", "double", "bool")
    aside = "\n".join(f'#pragma push_macro("{n}")\n#undef {n}' for n in hidden)
    back = "\n".join(f'#pragma pop_macro("{n}")' for n in hidden)
    return f"{aside}\ntypedef unsigned long long uintptr_t;\n{types}\n{functions}\n{last}\n{back}\n"


class NativeBatch:
    """Many worlds of one model in the engine's threads; as ``mujoco.batch.Batch``, and with compiled functions.

    Args:
        model: The model; it is copied.
        worlds: Their number.
        threads: Native threads; 0 takes every core.
        persistent: Whether each world keeps its data from call to call, rather than each thread.
    """

    def __init__(self, model: mujoco.MjModel, worlds: int, threads: int = 0, *, persistent: bool = False) -> None:
        message = ctypes.create_string_buffer(500)
        config = _Config(threads, persistent)
        self._batch = library().mjb_makeBatch(model._address, worlds, ctypes.byref(config), message, len(message))
        if not self._batch:
            raise MemoryError(f"MuJoCo cannot make {worlds} worlds: {message.value.decode()}")
        self.model, self.worlds = model, worlds
        self._rows = _array(library().mjb_state(self._batch), (worlds, library().mjb_nstate(self._batch)), np.float64)
        self._template: mujoco.MjData | None = None
        self._bound: dict[str, NDArray[Any]] = {}
        self._expanded: dict[str, Array] = {}

    def __del__(self) -> None:
        """Free the worlds."""
        if getattr(self, "_batch", None):
            library().mjb_deleteBatch(self._batch)
            self._batch = None

    def bind(self, name: str) -> NDArray[Any]:
        """Return a live array of a data field, shape [worlds, ...]: state and inputs to be written, results to be read."""
        if name not in self._bound:
            self._bound[name] = self._input(name) if name in _STATE else self._output(name)
        return self._bound[name]

    def expand(self, name: str) -> Array:
        """Return the live values of a model field for each world, shape [worlds, ...]."""
        if name not in self._expanded:
            owner, last = (self.model.opt, name.removeprefix("opt.")) if name.startswith("opt.") else (self.model, name)
            template, size = np.asarray(getattr(owner, last)), _Int()
            place = library().mjb_expand(self._batch, name.encode(), ctypes.byref(size), None)
            shape = template.shape if size.value == template.size else (size.value // template[0].size, *template.shape[1:])
            self._expanded[name] = _array(place, (self.worlds, *shape), template.dtype)
        return self._expanded[name]

    def step(self, ids: NDArray[np.int32] | None = None) -> None:
        """Step worlds once; all where ``ids`` is None. What the engine gives up keeps its state."""
        library().mjb_step(self._batch, None if ids is None else ids.ctypes.data, self.worlds if ids is None else len(ids), 1, 0)

    def apply(self, function: int, arguments: int, ids: NDArray[np.int32] | None = None) -> int:
        """Run a compiled function on worlds, from their states, which it cannot change; return how many the engine gave up."""
        count = self.worlds if ids is None else len(ids)
        return int(library().mjb_apply(self._batch, None if ids is None else ids.ctypes.data, count, function, arguments, 0))

    def get_data(self, world: int, data: mujoco.MjData) -> None:
        """Copy the data of a world of a persistent batch."""
        library().mjb_getData(self._batch, world, data._address)

    @property
    def given_up(self) -> NDArray[np.bool_]:
        """Worlds whose last call ended in an error of the engine, shape [worlds]."""
        return np.asarray(_array(library().mjb_status(self._batch), (self.worlds,), np.int32) != 0)

    def _input(self, name: str) -> Array:
        size = _Int()
        first = library().mjb_stateComponent(self._batch, int(_STATE[name]), ctypes.byref(size))
        start = 0 if not first else (first - self._rows.ctypes.data) // self._rows.itemsize
        view = self._rows[:, start : start + size.value]
        return view[:, 0] if name == "time" else view

    def _output(self, name: str) -> NDArray[Any]:
        self._template = self._template or mujoco.MjData(self.model)
        template = np.asarray(getattr(self._template, name))
        place = library().mjb_output(self._batch, name.encode(), None, None)
        return _array(place, (self.worlds, *template.shape), np.int32 if template.dtype == np.int64 else template.dtype)


class Arguments:
    """A C structure of 8-byte entries, addresses and numbers, by name.

    Args:
        names: Of its entries, in order; those that begin with ``real_`` are numbers with a fraction.
    """

    def __init__(self, names: Sequence[str]) -> None:
        kinds = [(n, ctypes.c_double if n.startswith("real_") else ctypes.c_longlong) for n in names]
        self._values = type("Values", (ctypes.Structure,), {"_fields_": kinds})()
        self._held: dict[str, NDArray[Any]] = {}

    @staticmethod
    def text(names: Sequence[str]) -> str:
        """Return the same structure in C++."""
        return "struct Arguments { " + " ".join(f"{'double' if n.startswith('real_') else 'long long'} {n};" for n in names) + " };"

    @property
    def address(self) -> int:
        """Where it is."""
        return ctypes.addressof(self._values)

    def set(self, **values: NDArray[Any] | float | None) -> None:
        """Set entries: arrays, which are kept alive and must be contiguous, numbers, and None for no address."""
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                if not value.flags.c_contiguous:
                    raise ValueError(f"{name}: expected a contiguous array, received strides {value.strides}")
                self._held[name] = value
                setattr(self._values, name, value.ctypes.data)
            else:
                setattr(self._values, name, 0 if value is None else value)


def _array(place: int | None, shape: tuple[int, ...], kind: Any) -> NDArray[Any]:
    """Return the numbers at an address, without a copy."""
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    if not size or not place:
        return np.zeros(shape, kind)
    return np.frombuffer((ctypes.c_char * size).from_address(place), kind).reshape(shape)
