"""Literal runs on a CUDA device, one after the other; kernels and their equations are in `_native.gpu_literal`."""

from __future__ import annotations

import logging
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalefield._memory import format_bytes
from scalefield._progress import Progress
from scalefield._projection import ENTRY_BYTES
from scalefield.errors import InsufficientMemoryError
from scalefield.simulation.cuda_engine import SETUP_BLOCKS, USABLE_MEMORY, CudaEngine
from scalefield.simulation.plan import Plan

__all__ = ["CudaLiteral"]

logger = logging.getLogger(__name__)


class CudaLiteral(CudaEngine):
    """Runs one after the other; all arrays are made once."""

    def __init__(
        self, plan: Plan, gpu: ModuleType, progress: Progress | None, stop: NDArray[np.uint8] | None
    ) -> None:
        from scalefield._native import rng
        from scalefield._native.gpu_literal import Shape, literal_kernels

        super().__init__(plan, gpu, progress, stop)
        model = plan.model
        n_modes = model.spectrum.n_modes
        if n_modes is None:
            raise ValueError("model.spectrum must have finitely many modes, got infinitely many")
        self.shape = shape = Shape(n_modes, self.width, self.batch, model.is_rich, self.dtype)
        itemsize = plan.dtype.itemsize
        usable = USABLE_MEMORY * gpu.free_memory()
        others = itemsize * shape.others_size
        if others > usable:
            raise InsufficientMemoryError(
                f"a literal run with {n_modes} modes and width {self.width} needs about {format_bytes(others)} of "
                f"device memory besides A(0), but only {format_bytes(int(usable))} is available"
            )
        self.stored = others + ENTRY_BYTES * shape.projection_size <= usable
        logger.info(
            "simulating %d literal run(s) of %d steps on the device, A(0) of %s %s",
            plan.n_runs,
            plan.n_steps,
            format_bytes(ENTRY_BYTES * shape.projection_size),
            "in its memory" if self.stored else "made on the fly",
        )
        self.kernels = literal_kernels(self.dtype, shape.threads, self.stored)
        self.projection_key = self.key(rng.PROJECTION)
        self.feature_key = self.key(rng.FEATURES)
        self.noise_key = self.key(rng.LABEL_NOISE)

        eigenvalues, target = model.spectrum.modes(0, n_modes)
        self.root = self.device_vector(np.sqrt(eigenvalues), shape.padded_modes)
        self.target = self.device_vector(target, shape.padded_modes)
        # v_1 of the population gradient takes the place of u.
        self.u = self.device_vector((), shape.padded_modes)
        self.v1 = self.device_vector((), shape.padded_modes) if self.batch else self.u
        self.residual = self.device_vector((), shape.padded_batch)
        self.losses = gpu.empty(shape.n_mode_chunks, self.dtype)
        self.partials = gpu.empty(shape.partials_size, self.dtype)
        self.projection = gpu.empty(shape.projection_size if self.stored else 0, "float32")
        self.mixing = gpu.empty(shape.mixing_size, self.dtype)

    def device_vector(self, values: Any, size: int) -> Any:
        """Return the values on the device, zeros after them."""
        padded = np.zeros(size)
        padded[: len(values)] = values
        return self.gpu.to_device(padded, self.dtype)

    def begin(self, run: int) -> None:
        """Queue the state of a run before training: A(0), w = 0, G = 1, and an empty record."""
        gpu, shape, kernels = self.gpu, self.shape, self.kernels
        self.run = np.uint32(run)
        if self.stored:
            kernels.fill_projection.launch(
                min(SETUP_BLOCKS, shape.blocks(shape.projection_size // 4)),
                shape.threads,
                *self.projection_key,
                self.run,
                shape.padded_modes,
                shape.n_quads,
                self.projection,
            )
        if shape.rich:
            kernels.reset_mixing.launch(
                min(SETUP_BLOCKS, shape.blocks(shape.mixing_size)),
                shape.threads,
                self.width,
                shape.padded_rows,
                shape.n_quads,
                self.mixing,
            )
        # Rows of G are padded further than columns, and w and v_2 go with both.
        self.theta, self.v2, self.w, self.moved = (self.device_vector((), shape.padded_rows) for _ in range(4))
        self.curve = gpu.to_device(np.full(self.plan.record_steps.size, np.nan), "float64")
        self.diverged = gpu.to_device([-1], "int64")

    def train(self, first_run: int, last_run: int) -> None:
        """See `CudaEngine`."""
        run = first_run
        self.begin(run)
        reached, diverged = 0, -1
        try:
            for first, last in self.chunks(self.last_step + 1):
                for t in range(first, last):
                    self.step(t)
                diverged = int(self.diverged.copy_to_host()[0])
                reached = last
                if diverged >= 0:
                    break
                self.report(run * self.plan.n_steps + min(last, self.plan.n_steps))
        finally:
            # After Ctrl-C as well: the chunks noted by then are whole.
            self.gpu.synchronize()
            self.keep(run, self.curve.copy_to_host(), diverged, reached)

    def step(self, t: int) -> None:
        """Queue the loss of step t and, unless it is the last, the step itself."""
        shape = self.shape
        if shape.single_pass:
            self.queue_descend()
        else:
            self.queue_project()
        self.kernels.sum_loss.launch(
            1,
            shape.threads,
            self.losses,
            shape.n_mode_chunks,
            t,
            int(self.records[t]),
            self.plan.model.largest_loss,
            self.curve,
            self.diverged,
        )
        if t >= self.last_step:
            return
        if self.batch:
            self.queue_gradient(np.uint32(t))
        if not shape.single_pass:
            self.queue_back_project()
        self.queue_sum(shape.n_mode_chunks, shape.padded_width, self.width, 1.0, self.v2)
        self.queue_update()

    @property
    def projection_arguments(self) -> tuple[Any, ...]:
        """What all kernels that read A(0) begin with."""
        shape = self.shape
        return (
            self.projection,
            *self.projection_key,
            self.run,
            shape.n_modes,
            shape.n_quads,
            shape.mode_chunk,
        )

    def queue_project(self) -> None:
        """First pass over A(0): losses, and u or the population's v_1."""
        self.kernels.project.launch(
            self.shape.n_mode_chunks,
            self.shape.threads,
            *self.projection_arguments,
            0 if self.batch else 1,
            self.theta,
            self.target,
            self.root,
            self.u,
            self.losses,
        )

    def queue_back_project(self) -> None:
        """Second pass over A(0): the parts of v_2."""
        self.kernels.back_project.launch(
            (self.shape.n_mode_chunks, self.shape.column_groups),
            self.shape.threads,
            *self.projection_arguments,
            self.v1,
            self.partials,
        )

    def queue_descend(self) -> None:
        """The only pass over A(0) at B = inf: losses and the parts of v_2."""
        from scalefield._native.gpu_literal import descend_kernel

        threads = self.shape.wide_threads
        descend_kernel(self.dtype, threads, self.stored).launch(
            self.shape.n_mode_chunks,
            threads,
            *self.projection_arguments,
            self.theta,
            self.target,
            self.root,
            self.partials,
            self.losses,
        )

    def queue_update(self) -> None:
        """Queue w, G and theta from v_2."""
        shape, kernels = self.shape, self.kernels
        threads = shape.threads
        if not shape.rich:
            kernels.move.launch(
                shape.blocks(self.width),
                threads,
                self.width,
                self.learning_rate,
                self.inverse_width,
                self.v2,
                self.w,
                self.theta,
            )
            return
        kernels.mix.launch(
            shape.row_blocks,
            threads,
            self.mixing,
            self.width,
            shape.n_quads,
            self.learning_rate,
            self.v2,
            self.w,
            self.moved,
        )
        kernels.turn.launch(
            (shape.n_row_chunks, shape.column_groups),
            threads,
            self.width,
            shape.n_quads,
            shape.row_chunk,
            self.gain,
            self.w,
            self.moved,
            self.v2,
            self.mixing,
            self.partials,
        )
        self.queue_sum(shape.n_row_chunks, shape.padded_width, self.width, self.inverse_width, self.theta)
        self.w, self.moved = self.moved, self.w

    def queue_gradient(self, step: np.uint32) -> None:
        """Queue the two uses of the batch: e from u, v_1 from e."""
        shape, kernels = self.shape, self.kernels
        kernels.residuals.launch(
            (shape.n_sample_chunks, shape.sample_groups),
            shape.threads,
            *self.feature_key,
            step,
            self.run,
            shape.padded_modes // 4,
            shape.sample_chunk,
            self.batch,
            shape.sample_lanes,
            self.u,
            self.partials,
        )
        self.queue_sum(shape.n_sample_chunks, self.batch, self.batch, 1.0, self.residual)
        if self.label_noise > 0.0:
            kernels.add_noise.launch(
                shape.blocks(shape.padded_batch // 4),
                shape.threads,
                *self.noise_key,
                step,
                self.run,
                self.batch,
                self.label_noise,
                self.residual,
            )
        kernels.gradient.launch(
            shape.blocks(shape.padded_modes // 4),
            shape.threads,
            *self.feature_key,
            step,
            self.run,
            shape.padded_modes // 4,
            self.batch,
            self.inverse_batch,
            self.residual,
            self.root,
            self.v1,
        )

    def queue_sum(self, n_rows: int, pitch: int, n_columns: int, factor: float, out: Any) -> None:
        """Queue out = factor times the sum of the rows of `partials`."""
        self.kernels.sum_rows.launch(
            self.shape.sum_blocks(n_columns),
            self.shape.threads,
            self.partials,
            n_rows,
            pitch,
            n_columns,
            self.real(factor),
            out,
        )
