"""The CUDA target: whether a device is there, how kernels are compiled, loaded from and launched.

The only module that imports `numba.cuda`, which the package numba-cuda provides. With NUMBA_ENABLE_CUDASIM=1 in the
environment before Numba is first imported, kernels run in the simulator that comes with Numba: the same Python,
thread by thread, for tests without a device.

Kernels are kept as a Python function with its signature and compiled at their first launch; `Kernel.ptx` compiles
them for any architecture without a device.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

import numba
import numba.core.config
import numpy as np
from numba import cuda as _target

__all__ = [
    "SIMULATED",
    "Kernel",
    "array_of",
    "clz",
    "cuda",
    "device",
    "empty",
    "free_memory",
    "int64",
    "load4",
    "missing",
    "scalar_type",
    "store4",
    "synchronize",
    "to_device",
    "uint32",
]

Function = TypeVar("Function", bound=Callable[..., object])

# Numba is typed in part, differently from version to version.
cuda: Any = _target
_types: Any = numba.types
_config: Any = numba.core.config

# Whether Numba's simulator stands in for the device.
SIMULATED = bool(_config.ENABLE_CUDASIM)

int64 = _types.int64
uint32 = _types.uint32


def scalar_type(dtype: str) -> Any:
    """Return the Numba type of a NumPy scalar type's name, such as "float32"."""
    return getattr(_types, dtype)


def array_of(dtype: str) -> Any:
    """Return the type of a contiguous one-dimensional device array."""
    return scalar_type(dtype)[::1]


def missing() -> str | None:
    """Say what keeps kernels from running on this machine; None if nothing does."""
    if SIMULATED:
        return None
    if importlib.util.find_spec("numba_cuda") is None:
        return "the package numba-cuda is not installed; pip install 'scalefield[cuda]'"
    try:
        error = cuda.cuda_error()
        if error is not None:
            return f"no CUDA driver ({' '.join(str(error).split())})"
        if len(cuda.gpus) == 0:
            return "the CUDA driver finds no device"
        if not cuda.is_available():
            return "the CUDA compiler (NVVM) is not installed; pip install 'scalefield[cuda]'"
    # The driver's errors have several unrelated classes.
    except Exception as error:
        return f"the CUDA driver does not answer ({type(error).__name__}: {' '.join(str(error).split())})"
    return None


def free_memory() -> float:
    """Bytes that can be allocated on the current device; inf in the simulator."""
    return float(cuda.current_context().get_memory_info().free)


class Kernel:
    """A kernel of one signature, compiled at its first launch.

    Parameters
    ----------
    function : callable
        Plain Python that uses `cuda` of this module.
    *arguments : Numba types
        Of the function's arguments; it returns nothing.
    bounds : (int, int), optional
        Threads of a block, and blocks that shall fit on a multiprocessor at the same time: how many registers a
        thread may use.
    """

    def __init__(
        self, function: Callable[..., None], *arguments: Any, bounds: tuple[int, int] | None = None
    ) -> None:
        self.function = function
        self.bounds = bounds
        self.signature = _types.void(*arguments)
        self._launchers: dict[tuple[int | tuple[int, int], int], Any] = {}

    @property
    def name(self) -> str:
        """Name of the function."""
        return self.function.__name__

    @cached_property
    def _compiled(self) -> Any:
        if SIMULATED:
            return cuda.jit(self.function)
        return cuda.jit(self.signature, launch_bounds=self.bounds)(self.function)

    def launch(self, blocks: int | tuple[int, int], threads: int, *arguments: Any) -> None:
        """Queue the kernel on the default stream; returns without waiting for it."""
        # The simulator's launchers are one object that remembers its last configuration.
        launcher = None if SIMULATED else self._launchers.get((blocks, threads))
        if launcher is None:
            with warnings.catch_warnings():
                # Numba warns of small grids; the small ones here have little to do.
                warnings.simplefilter("ignore")
                launcher = self._launchers[blocks, threads] = self._compiled[blocks, threads]
        launcher(*arguments)

    def ptx(self, compute_capability: tuple[int, int]) -> str:
        """Return the kernel in PTX; needs the compiler, not a device."""
        text, _ = cuda.compile_ptx(
            self.function, self.signature, cc=compute_capability, launch_bounds=self.bounds
        )
        return str(text)


def device(function: Function) -> Function:
    """Make a function callable from kernels.

    In the simulator it stays what it is: the kernels that call it have put their threads' `cuda` in its place.
    """
    if SIMULATED:
        return function
    compiled: Function = cuda.jit(device=True)(function)
    return compiled


def _vector_access() -> tuple[Any, Any]:
    """Return `load4` and `store4` in the form that the compiler takes."""
    from llvmlite import ir

    extending: Any
    try:
        from numba.cuda import extending
    except ImportError:
        from numba import extending

    def vector_pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
        data = context.make_array(array_type)(context, builder, array).data
        kind = ir.VectorType(context.get_data_type(array_type.dtype), 4)
        return kind, builder.bitcast(builder.gep(data, [index]), kind.as_pointer())

    def position(j: int) -> Any:
        return ir.Constant(ir.IntType(32), j)

    def load4(typing: Any, array: Any, index: Any) -> Any:
        signature = _types.UniTuple(array.dtype, 4)(array, int64)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _, pointer = vector_pointer(context, builder, signature.args[0], *arguments)
            loaded = builder.load(pointer, align=16)
            lanes = [builder.extract_element(loaded, position(j)) for j in range(4)]
            return context.make_tuple(builder, signature.return_type, lanes)

        return signature, generate

    def store4(typing: Any, array: Any, index: Any, x0: Any, x1: Any, x2: Any, x3: Any) -> Any:
        signature = _types.void(array, int64, *[array.dtype] * 4)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            kind, pointer = vector_pointer(context, builder, signature.args[0], *arguments[:2])
            packed = ir.Constant(kind, ir.Undefined)
            for j in range(4):
                packed = builder.insert_element(packed, arguments[2 + j], position(j))
            builder.store(packed, pointer, align=16)
            return context.get_dummy_value()

        return signature, generate

    return extending.intrinsic(load4), extending.intrinsic(store4)


def _plain_access() -> tuple[Any, Any]:
    """Return `load4` and `store4` for the simulator."""

    def load4(array: Any, index: int) -> Any:
        if index % 4:
            raise ValueError(f"index must be a multiple of 4, got {index}")
        return array[index], array[index + 1], array[index + 2], array[index + 3]

    def store4(array: Any, index: int, x0: Any, x1: Any, x2: Any, x3: Any) -> None:
        if index % 4:
            raise ValueError(f"index must be a multiple of 4, got {index}")
        array[index] = x0
        array[index + 1] = x1
        array[index + 2] = x2
        array[index + 3] = x3

    return load4, store4


# load4(array, index): array[index:index+4] in one access of 16 bytes (two for float64); index is a multiple of 4 and
# device arrays begin at multiples of 256 bytes. store4(array, index, x0, x1, x2, x3) is its inverse.
load4, store4 = _plain_access() if SIMULATED else _vector_access()


def _clz(word: Any) -> Any:
    """Return the number of zero bits above the highest set bit of a uint32."""
    return cuda.clz(word)


def _clz_simulated(word: Any) -> int:
    return 32 - int(word).bit_length()


clz = _clz_simulated if SIMULATED else device(_clz)


def to_device(values: Any, dtype: str) -> Any:
    """Return a copy of an array on the device, flat and in the given type."""
    flat = np.array(values, dtype=dtype, order="C").reshape(-1)
    return cuda.to_device(flat if flat.size else np.zeros(1, dtype=dtype))


def synchronize() -> None:
    """Wait for everything queued."""
    cuda.synchronize()


def empty(size: int, dtype: str) -> Any:
    """Return a flat device array with arbitrary content; at least one entry, since none cannot be passed on."""
    return cuda.device_array(max(1, size), dtype=dtype)
