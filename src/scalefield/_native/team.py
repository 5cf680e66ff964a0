"""A barrier at which the threads of a compiled loop meet.

Threads that share the passes of a step meet several times in it. Handing each pass to a pool of Python threads costs
some 60 microseconds a pass, a barrier in compiled code one.
"""

from __future__ import annotations

import os
from typing import Any

import numba
import numba.extending
import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numpy.typing import NDArray

from scalefield._native.jit import byte_vector, int64, int_vector, jit

__all__ = ["BARRIER_SIZE", "wait_for_team"]

# Entries of the barrier's array, all 0 at first: threads that have arrived, and how often all have. Far apart, since a
# write takes the whole cache line from the threads that read it.
BARRIER_SIZE = 32
_ARRIVED, _GENERATION = 0, 16
# Looks at the barrier before a thread sleeps, some 0.1 ms: longer than it takes to wake, or two threads would go on
# waking too late for each other. Where others want the cores sleeping is better than sched_yield, which gives away a
# whole turn (measured: up to twice as many steps a second).
_SPINS = 200_000

# Numba is typed in part, differently from version to version.
_types: Any = numba.types
_intrinsic: Any = numba.extending.intrinsic
_gep: Any = cgutils.gep


def _pointer(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return _gep(builder, data, index)


def _make_fetch_add(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """array[index] += value in one indivisible step, seen by all threads in one order; returns the value before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _pointer(context, builder, signature.args[0], arguments[0], arguments[1])
        return builder.atomic_rmw("add", place, arguments[2], "seq_cst")

    return _types.int64(array, _types.int64, _types.int64), generate


def _make_load(typing: Any, array: Any, index: Any) -> Any:
    """array[index] as it is now; what other threads wrote before is seen after."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _pointer(context, builder, signature.args[0], *arguments)
        return builder.load_atomic(place, ordering="seq_cst", align=8, typ=ir.IntType(64))

    return _types.int64(array, _types.int64), generate


_fetch_add: Any = _intrinsic(_make_fetch_add)
_load: Any = _intrinsic(_make_load)


@jit(int64(int64))
def _stay_awake(microseconds: int) -> int:
    return 0


# Of the C library.
_sleep = _types.ExternalFunction("usleep", _types.int32(_types.uint32)) if os.name == "posix" else _stay_awake


@jit(int64(int64, int_vector, byte_vector))
def wait_for_team(n_threads: int, barrier: NDArray[np.int64], stop: NDArray[np.uint8]) -> int:
    """Return 0 when all n_threads have called this, or 1 if stop was set before."""
    if n_threads == 1:
        return 0
    generation = _load(barrier, _GENERATION)
    if _fetch_add(barrier, _ARRIVED, 1) + 1 == n_threads:
        _fetch_add(barrier, _ARRIVED, -n_threads)
        _fetch_add(barrier, _GENERATION, 1)
        return 0
    spins = 0
    while _load(barrier, _GENERATION) == generation:
        if stop[0] != 0:
            return 1
        spins += 1
        if spins > _SPINS:
            _sleep(1)
    return 0
