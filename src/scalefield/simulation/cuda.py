"""Simulation on a CUDA device: the front door of `cuda_literal` and `cuda_reduced`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from scalefield._progress import Progress
from scalefield.errors import BackendUnavailableError, Interrupted
from scalefield.simulation.cuda_engine import CudaEngine, CudaRuns
from scalefield.simulation.cuda_literal import CudaLiteral
from scalefield.simulation.cuda_reduced import CudaReduced, ReducedRun
from scalefield.simulation.plan import Plan

__all__ = ["CudaRuns", "require_cuda", "simulate_on_cuda"]


def require_cuda() -> ModuleType:
    """Return `_native.gpu` if kernels can run on this machine.

    Raises
    ------
    BackendUnavailableError
        If a package, the driver or a device is missing; the message says which.
    """
    try:
        from scalefield._native import gpu
    except ImportError as error:
        raise BackendUnavailableError(
            f"device 'cuda' cannot be used: the package numba-cuda is missing ({error}); pip install 'scalefield[cuda]'"
        ) from error
    reason = gpu.missing()
    if reason is not None:
        raise BackendUnavailableError(f"device 'cuda' cannot be used: {reason}")
    return gpu


def simulate_on_cuda(
    plan: Plan,
    reductions: Sequence[ReducedRun] | None = None,
    progress: Progress | None = None,
    stop: NDArray[np.uint8] | None = None,
) -> CudaRuns:
    """Simulate the runs of a plan on the current CUDA device.

    Parameters
    ----------
    plan : Plan
        With Gaussian features and finite width. In float64 losses are those of the CPU to rounding; in float32
        A(0), features and weights carry 24 bits and losses of a stable run are good to about 1e-6 of themselves.
    reductions : sequence of ReducedRun, one a run
        For the reduced method.
    progress : callable, optional
        Called between chunks of work, in steps summed over runs.
    stop : ndarray of uint8, shape (1,), optional
        Set from another thread to end after the current chunk.

    Returns
    -------
    CudaRuns
        Losses, and which runs finished or diverged.

    Raises
    ------
    BackendUnavailableError
        If there is no device.
    ValueError
        If the plan asks for what this device does not do.
    InsufficientMemoryError
        If not even a single run without A(0) fits into the device's free memory.
    Interrupted
        On Ctrl-C; `partial` is the `CudaRuns` so far.

    Notes
    -----
    Literal: memory 4 or 8 bytes times N M for A(0), N^2 for G at gamma > 0, and a few vectors. If A(0) does not fit
    its entries are made anew twice a step, which changes no number. Reduced: N^2 (gamma > 0) plus some vectors and,
    while there is room, B N a run; runs that do not fit at once are done in turns.
    """
    gpu = require_cuda()
    if plan.features != "gaussian":
        raise ValueError(f"features must be 'gaussian' on device 'cuda', got {plan.features!r}")
    if math.isinf(plan.model.width):
        raise ValueError("model.width must be finite on device 'cuda', got inf")
    if plan.dtype not in (np.dtype(np.float64), np.dtype(np.float32)):
        raise ValueError(f"dtype must be float64 or float32, got {plan.dtype}")
    if plan.method == "reduced" and (reductions is None or len(reductions) != plan.n_runs):
        count = "none" if reductions is None else len(reductions)
        raise ValueError(f"reductions must have one entry for each of {plan.n_runs} runs, got {count}")

    engine: CudaEngine
    if plan.method == "literal":
        engine = CudaLiteral(plan, gpu, progress, stop)
    elif plan.method == "reduced":
        engine = CudaReduced(plan, gpu, progress, stop, reductions or ())
    else:
        raise ValueError(f"method must be 'literal' or 'reduced', got {plan.method!r}")
    try:
        engine.execute()
    except KeyboardInterrupt as interrupt:
        # What is queued still runs into memory that is about to be freed.
        gpu.synchronize()
        count = int(engine.runs.finished.sum())
        message = f"interrupted with {count} of {plan.n_runs} runs finished"
        raise Interrupted(message, engine.runs) from interrupt
    return engine.runs
