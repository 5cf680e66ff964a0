"""Simulation on a CUDA device: literal runs one after the other, reduced runs side by side.

Kernels and their equations are in `_native.gpu_literal` and `_native.gpu_reduced`. The host queues steps in chunks of
a fraction of a second and looks at the results between them; nothing depends on where the chunks end.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from scalefield._memory import format_bytes
from scalefield._progress import Progress
from scalefield._projection import ENTRY_BYTES
from scalefield.errors import BackendUnavailableError, InsufficientMemoryError, Interrupted
from scalefield.simulation.plan import Plan

__all__ = ["CudaRuns", "ReducedRun", "require_cuda", "simulate_on_cuda"]

Array = NDArray[np.float64]

logger = logging.getLogger(__name__)

# Seconds of work queued at a time: Ctrl-C acts and progress is told within this time.
_CHUNK_SECONDS = 0.2
# Part of the device's free memory that may be used; the rest is for the compiled kernels and what they need.
_USABLE_MEMORY = 0.95
# Part of the usable memory for the deviates kept between their two uses by reduced runs.
_KEPT_MEMORY = 0.25
# Blocks of kernels that set up memory; they loop over the rest.
_SETUP_BLOCKS = 4096


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


@dataclass
class CudaRuns:
    """What was simulated.

    Parameters
    ----------
    losses : ndarray, shape (n_runs, len(record_steps))
        Test loss of each run at the recorded steps; nan where a run did not get.
    finished : ndarray of bool, shape (n_runs,)
        Which runs have all their losses.
    divergences : dict
        Run: first step whose loss is not finite or beyond `Model.largest_loss`. Runs after a diverged one go no
        further than its step.
    """

    losses: Array
    finished: NDArray[np.bool_]
    divergences: dict[int, int] = field(default_factory=dict)


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

    engine: _Engine
    if plan.method == "literal":
        engine = _Literal(plan, gpu, progress, stop)
    elif plan.method == "reduced":
        engine = _Reduced(plan, gpu, progress, stop, reductions or ())
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


class _Engine:
    """What both methods share: constants of the plan, the record, and the rhythm of the host."""

    def __init__(
        self, plan: Plan, gpu: ModuleType, progress: Progress | None, stop: NDArray[np.uint8] | None
    ) -> None:
        model = plan.model
        self.plan, self.gpu, self.progress, self.stop = plan, gpu, progress, stop
        self.dtype = plan.dtype.name
        self.real = plan.dtype.type
        self.width = int(model.width)
        self.batch = 0 if math.isinf(model.batch_size) else int(model.batch_size)
        # Numba takes scalars in the precision of the kernels.
        self.learning_rate = self.real(model.learning_rate)
        self.gain = self.real(model.learning_rate * model.gamma * model.inverse_width)
        self.inverse_width = self.real(model.inverse_width)
        self.inverse_batch = self.real(model.inverse_batch_size)
        self.label_noise = self.real(model.label_noise)
        n_records = plan.record_steps.size
        self.records = np.full(plan.n_steps + 1, -1, dtype=np.int64)
        self.records[plan.record_steps] = np.arange(n_records)
        self.last_step = int(plan.record_steps[-1])
        self.runs = CudaRuns(np.full((plan.n_runs, n_records), np.nan), np.zeros(plan.n_runs, dtype=bool))

    def execute(self) -> None:
        raise NotImplementedError

    def key(self, stream: int) -> tuple[np.uint32, np.uint32]:
        from scalefield._native import rng

        key0, key1 = rng.stream_key(self.plan.seed, stream)
        return np.uint32(key0), np.uint32(key1)

    def report(self, done: int) -> None:
        if self.progress is not None:
            self.progress(done, self.plan.n_runs * self.plan.n_steps)

    def chunks(self, end: int) -> Iterator[tuple[int, int]]:
        """Ranges of steps from 0 to end, as long as the time they take allows; none after `stop`."""
        first, size = 0, 1
        while first < end and not (self.stop is not None and self.stop[0]):
            started = time.perf_counter()
            last = min(first + size, end)
            yield first, last
            seconds = time.perf_counter() - started
            size = max(1, int(size * min(2.0, _CHUNK_SECONDS / max(seconds, 1e-6))))
            first = last

    def keep(self, run: int, curve: Array, diverged: int, reached: int) -> None:
        """Note the losses of a run that has got to step `reached`, or diverged (diverged >= 0)."""
        end = self.last_step + 1 if diverged < 0 else diverged + 1
        seen = self.plan.record_steps < min(reached, end)
        self.runs.losses[run, seen] = curve[seen]
        if diverged >= 0:
            self.runs.divergences[run] = diverged
            self.last_step = min(self.last_step, diverged)
        else:
            self.runs.finished[run] = reached > int(self.plan.record_steps[-1])


class _Literal(_Engine):
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
        usable = _USABLE_MEMORY * gpu.free_memory()
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

    def execute(self) -> None:
        for run in range(self.plan.n_runs):
            self.report(run * self.plan.n_steps)
            if self.stop is not None and self.stop[0]:
                return
            self.train(run)
        self.report(self.plan.n_runs * self.plan.n_steps)

    def begin(self, run: int) -> None:
        """Queue the state of a run before training: A(0), w = 0, G = 1, and an empty record."""
        gpu, shape, kernels = self.gpu, self.shape, self.kernels
        self.run = np.uint32(run)
        if self.stored:
            kernels.fill_projection.launch(
                min(_SETUP_BLOCKS, shape.blocks(shape.projection_size // 4)),
                shape.threads,
                *self.projection_key,
                self.run,
                shape.padded_modes,
                shape.n_quads,
                self.projection,
            )
        if shape.rich:
            kernels.reset_mixing.launch(
                min(_SETUP_BLOCKS, shape.blocks(shape.mixing_size)),
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

    def train(self, run: int) -> None:
        """One run from the start."""
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


class _Reduced(_Engine):
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
        usable = _USABLE_MEMORY * gpu.free_memory()
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

    def execute(self) -> None:
        for first in range(0, self.plan.n_runs, self.at_a_time):
            self.report(first * self.plan.n_steps)
            if self.stop is not None and self.stop[0]:
                return
            self.train(first, min(first + self.at_a_time, self.plan.n_runs))
        self.report(self.plan.n_runs * self.plan.n_steps)

    def train(self, first_run: int, last_run: int) -> None:
        """Runs first_run..last_run-1 from the start."""
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
                min(_SETUP_BLOCKS, -(-n_runs * shape.mixing_size // shape.threads)),
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
