"""Reduced runs on a CUDA device, side by side; kernels and their equations are in `_native.gpu_reduced`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from scalefield._memory import format_bytes
from scalefield._progress import Progress
from scalefield.errors import InsufficientMemoryError
from scalefield.simulation.cuda_engine import SETUP_BLOCKS, USABLE_MEMORY, CudaEngine
from scalefield.simulation.plan import Plan

__all__ = ["CudaReduced", "ReducedRun"]

Array = NDArray[np.float64]

logger = logging.getLogger(__name__)

# Part of the usable memory for the deviates kept between their two uses by reduced runs.
_KEPT_MEMORY = 0.25


class ReducedRun(Protocol):
    """One run in the eigenbasis of A(0) Lambda A(0)^T (theory section 8), eigenvalues decreasing."""

    @property
    def eigenvalues(self) -> Array:
        """Eigenvalues e, shape (N,)."""

    @property
    def c(self) -> Array:
        """The target c = e^{-1/2} U^T A(0) Lambda w*, shape (N,)."""

    @property
    def rest(self) -> float:
        """The part of the target outside the span of the features, sqrt(|u|^2 - |c|^2)."""


class CudaReduced(CudaEngine):
    """Runs side by side, as many at a time as fit."""

    def __init__(
        self,
        plan: Plan,
        gpu: ModuleType,
        progress: Progress | None,
        stop: NDArray[np.uint8] | None,
        reductions: Sequence[ReducedRun],
    ) -> None:
        from scalefield._native import rng
        from scalefield._native.gpu_reduced import ReducedShape

        super().__init__(plan, gpu, progress, stop)
        self.reductions = reductions
        rich = plan.model.is_rich
        usable = USABLE_MEMORY * gpu.free_memory()
        itemsize = plan.dtype.itemsize

        # Keep the deviates if that does not cost too many runs at a time.
        lean = ReducedShape(self.width, self.batch, rich, kept=False)
        kept = ReducedShape(self.width, self.batch, rich, kept=True)
        extra = itemsize * (kept.entries_per_run - lean.entries_per_run) * plan.n_runs
        self.shape = kept if self.batch and extra <= _KEPT_MEMORY * usable else lean
        bytes_per_run = itemsize * self.shape.entries_per_run + 8 * (plan.record_steps.size + 1)
        room = usable / bytes_per_run
        if room < 1.0:
            raise InsufficientMemoryError(
                f"a reduced run of width {self.width} needs about {format_bytes(bytes_per_run)} of device memory, "
                f"but only {format_bytes(int(usable))} is available"
            )
        self.at_a_time = int(min(room, plan.n_runs))
        logger.info(
            "simulating %d reduced run(s) of %d steps on the device, %d at a time with %s each",
            plan.n_runs,
            plan.n_steps,
            self.at_a_time,
            format_bytes(bytes_per_run),
        )
        self.keys = (*self.key(rng.REDUCED), *self.key(rng.REST), *self.key(rng.LABEL_NOISE))

    def train(self, first_run: int, last_run: int) -> None:
        """See `CudaEngine`."""
        from scalefield._native.gpu_reduced import TRAINING, reduced_kernel, reset_kernel

        gpu, shape, plan = self.gpu, self.shape, self.plan
        n_runs = last_run - first_run
        root, c = np.zeros((2, n_runs, shape.padded_width))
        for place, reduction in enumerate(self.reductions[first_run:last_run]):
            # Rounding can leave an eigenvalue of a singular matrix below zero.
            root[place, : self.width] = np.sqrt(np.maximum(reduction.eigenvalues, 0.0))
            c[place, : self.width] = reduction.c
        rest = [reduction.rest for reduction in self.reductions[first_run:last_run]]

        def vectors() -> Any:
            return gpu.to_device(np.zeros(n_runs * shape.padded_width), self.dtype)

        mixing = gpu.empty(n_runs * shape.mixing_size, self.dtype)
        if shape.rich:
            reset_kernel(self.dtype).launch(
                min(SETUP_BLOCKS, -(-n_runs * shape.mixing_size // shape.threads)),
                shape.threads,
                n_runs,
                self.width,
                shape.padded_width,
                mixing,
            )
        curves = gpu.to_device(np.full(n_runs * plan.record_steps.size, np.nan), "float64")
        status = gpu.to_device(np.full(n_runs, TRAINING), "int64")
        arguments = (
            *self.keys,
            self.width,
            shape.n_quads,
            self.batch,
            shape.lanes,
            self.learning_rate,
            self.gain,
            self.inverse_width,
            self.inverse_batch,
            self.label_noise,
            self.real(min(plan.model.largest_loss, np.finfo(self.real).max)),
            plan.record_steps.size,
            gpu.to_device(self.records, "int64"),
            gpu.to_device(root, self.dtype),
            gpu.to_device(c, self.dtype),
            gpu.to_device(rest, self.dtype),
            vectors(),  # w
            vectors(),  # the new w
            vectors(),  # theta
            vectors(),  # d
            vectors(),  # v_2
            gpu.empty(n_runs * self.batch, self.dtype),
            gpu.empty(n_runs * shape.batch_size, self.dtype),
            mixing,
            gpu.empty(n_runs * shape.sums_size, self.dtype),
            curves,
            status,
        )
        kernel = reduced_kernel(self.dtype, shape.threads, self.batch == 0, shape.rich, shape.kept)
        reached = 0
        diverged = np.full(n_runs, TRAINING)
        try:
            for first, last in self.chunks(self.last_step + 1):
                kernel.launch(n_runs, shape.threads, first, last, self.last_step, first_run, *arguments)
                diverged = status.copy_to_host()
                reached = last
                # Later divergences than the first are of no interest.
                if (diverged != TRAINING).any():
                    break
                self.report(first_run * plan.n_steps + n_runs * min(last, plan.n_steps))
        finally:
            gpu.synchronize()
            losses = curves.copy_to_host().reshape(n_runs, -1)
            for place in range(n_runs):
                self.keep(first_run + place, losses[place], int(diverged[place]), reached)
