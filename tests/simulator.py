"""Numba's CUDA simulator, mended for the tests.

A shared array is made by the first thread of a block that finds none. The simulator looks and makes without a lock, so
two threads can each make one and then do not share it: once in some hundred runs of the tests, and in every fourth
block where a delay of 2 ms stands between the two.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np

from scalefield._native import gpu

__all__ = ["mend_simulator"]


def mend_simulator() -> None:
    """Do nothing on a device; to be called before the first kernel."""
    if not gpu.SIMULATED:
        return
    from numba import types
    from numba.cuda.simulator import kernelapi
    from numba.np import numpy_support

    # The simulator polls its threads and would hold the interpreter for 5 ms each time.
    sys.setswitchinterval(1e-4)
    lock = threading.Lock()
    original = kernelapi.FakeCUDAShared.array

    def array(self: Any, shape: Any, dtype: Any) -> np.ndarray:
        if shape == 0:
            return original(self, shape, dtype)
        if isinstance(dtype, types.Type):
            dtype = numpy_support.as_dtype(dtype)
        # As in the original, one array a line of the kernel.
        caller = sys._getframe(1)
        with lock:
            place = (caller.f_code.co_filename, caller.f_lineno)
            if place not in self._allocations:
                self._allocations[place] = np.empty(shape, dtype)
            return self._allocations[place]

    kernelapi.FakeCUDAShared.array = array
