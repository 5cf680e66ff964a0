"""The one Numba decorator of the package, and the array types its kernels are compiled for.

Kernels are compiled for explicit signatures, so importing a kernel module compiles it (or loads it from the
cache). Such modules are therefore imported by the functions that need them, not with the package. A cached
kernel is renewed when its own file changes, not when a file it calls does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numba

__all__ = [
    "boolean",
    "byte_vector",
    "complex_matrix",
    "complex_vector",
    "float64",
    "float64_pair",
    "four_words",
    "int64",
    "int_matrix",
    "int_vector",
    "jit",
    "matrix",
    "matrix32",
    "precisions",
    "status_and_step",
    "three_counts",
    "tuple_of",
    "uint64",
    "vector",
    "vector32",
    "void",
]

logger = logging.getLogger(__name__)

Function = TypeVar("Function", bound=Callable[..., object])

# Numba is typed in part, differently from version to version.
_njit: Any = numba.njit
_types: Any = numba.types

# Scalars.
boolean = _types.boolean
int64 = _types.int64
uint64 = _types.uint64
float64 = _types.float64
void = _types.void
# C-contiguous arrays that kernels may write.
vector = _types.float64[::1]
matrix = _types.float64[:, ::1]
# The same in single precision, and both: (vector, matrix) to compile a kernel for either.
vector32 = _types.float32[::1]
matrix32 = _types.float32[:, ::1]
precisions = ((vector, matrix), (vector32, matrix32))
complex_vector = _types.complex128[::1]
complex_matrix = _types.complex128[:, ::1]
int_vector = _types.int64[::1]
int_matrix = _types.int64[:, ::1]
byte_vector = _types.uint8[::1]
# Tuples: (status, step), three counts, two deviates, the words of a Philox block.
status_and_step = _types.UniTuple(int64, 2)
three_counts = _types.UniTuple(int64, 3)
float64_pair = _types.UniTuple(float64, 2)
four_words = _types.UniTuple(uint64, 4)


def tuple_of(*members: object) -> Any:
    """Type of a tuple of arguments that go together.

    A plain one: the names of classes would go into the cache's index, which cannot be read any more when they change.
    """
    return _types.Tuple(members)


def jit(
    signature: object, *, fastmath: Iterable[str] = (), inline: bool = False
) -> Callable[[Function], Function]:
    """Compile for the given signatures: GIL released, IEEE arithmetic, division by zero gives inf, result cached.

    Parameters
    ----------
    signature : numba signature, or list of them
        Built from the types of this module.
    fastmath : iterable of str
        Relaxations of IEEE arithmetic, named one by one; none by default.
    inline : bool
        Whether LLVM is told to inline the function wherever it is called.
    """
    options = {"nogil": True, "error_model": "numpy", "fastmath": set(fastmath), "forceinline": inline}

    def decorate(function: Function) -> Function:
        compiled: Function
        try:
            compiled = _njit(signature, cache=True, **options)(function)
        except RuntimeError as error:
            # No writable folder for the cache (a read-only installation and no home): compile every time.
            if "cannot cache" not in str(error):
                raise
            logger.info("compiled kernels are not cached: %s", error)
            compiled = _njit(signature, cache=False, **options)(function)
        return compiled

    return decorate
