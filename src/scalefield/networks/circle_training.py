"""Training of multilayer perceptrons on the circle: runs shared out among threads, records, checkpoints."""

from __future__ import annotations

import logging
import math
import os
import threading
import warnings
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import gamma as gamma_function

from scalefield._files import read_archive, write_archive
from scalefield._progress import Progress
from scalefield.errors import CheckpointWarning, ScalefieldError
from scalefield.networks.circle_results import MultilayerTraining
from scalefield.networks.circle_task import CircleTask, native_kernels

__all__ = ["Checkpoint", "Plan", "Runs", "Worker"]

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]

# Equally spaced angles at which F_0 is held, for interpolation; where gamma N is smaller than this, its error of about
# 1e-4/(gamma N) is too large and F_0 is computed at every sample.
_TABLE, _TABULATED = 2**14, 100.0
# Samples of one product where networks are evaluated on a grid.
_COLUMNS = 256
# A batch's loss above this many times the target's power is a divergence.
_THRESHOLD = 1e12
# Steps of one call of the kernel at most: how often a finished part is noted.
_CHUNK_STEPS = 1000
_POLL_SECONDS = 0.1
# Raised when the meaning of a checkpoint's arrays changes.
_FORMAT = 1


def equal_angles(n: int) -> Array:
    """Return n equally spaced angles from 0."""
    angles: Array = 2.0 * math.pi / n * np.arange(n, dtype=np.float64)
    return angles


@dataclass(frozen=True)
class Plan:
    """A call of `train_multilayer`, checked."""

    task: CircleTask
    depth: int
    width: int
    activation_power: float
    gamma: float
    learning_rate: float
    batch_size: int
    n_steps: int
    n_seeds: int
    seed: int
    n_test: int
    dtype: str
    kernel_points: int
    steps: NDArray[np.int64]
    kernel_steps: NDArray[np.int64]

    @property
    def constant(self) -> float:
        """c with c^2 E relu(z)^{2q} = 1, E relu^{2q} = 2^{q-1} Gamma(q + 1/2)/sqrt(pi)."""
        q = self.activation_power
        return float((2.0 ** (q - 1.0) * gamma_function(q + 0.5) / math.sqrt(math.pi)) ** -0.5)

    @property
    def is_tabulated(self) -> bool:
        """Whether F_0 is interpolated."""
        return self.gamma * self.width >= _TABULATED

    @property
    def bytes_per_run(self) -> int:
        """Memory of one thread."""
        size = 4 if self.dtype == "float32" else 8
        columns = self.batch_size + _COLUMNS
        weights = (1 if self.is_tabulated else 2) * (self.depth - 1) * self.width**2
        kernel = 6 * 8 * self.kernel_points * (self.width + self.kernel_points) * self.depth
        return size * (weights + (2 * self.depth + 1) * self.width * columns) + 8 * (_TABLE + self.n_test) + kernel

    @property
    def shared_bytes(self) -> int:
        """Memory of the records and the target."""
        kernels = self.kernel_steps.size * self.kernel_points**2
        return self.n_seeds * (8 * self.n_steps + 8 * (self.steps.size + kernels)) + 64 * self.task.n_modes

    def describe(self) -> dict[str, Any]:
        """What a checkpoint must agree with."""
        described: dict[str, Any] = {"task": self.task.describe()}
        for field in fields(self):
            if field.name != "task":
                value = getattr(self, field.name)
                described[field.name] = value.tolist() if isinstance(value, np.ndarray) else value
        return described


class Worker:
    """One thread's network and workspace, used for one run after the other."""

    def __init__(self, plan: Plan, target: Array, rest: float, stop: NDArray[np.uint8]) -> None:
        from scalefield._native import rng

        self.plan, self.target, self.rest, self.stop = plan, target, rest, stop
        self.native, self.rng = native_kernels(), rng
        self.angles_key = rng.stream_key(plan.seed, rng.ANGLES)
        depth, n, size, dtype = plan.depth, plan.width, plan.batch_size, np.dtype(plan.dtype)
        self.first = np.empty((n, 2), dtype)
        self.hidden = np.empty((depth - 1, n, n), dtype)
        self.readout = np.empty(n, dtype)
        self.initial = np.zeros(_TABLE if plan.is_tabulated else 0)
        self.first_initial = np.empty((0, 2), dtype)
        self.hidden_initial = np.empty((0, 0, 0), dtype)
        self.readout_initial = np.empty(0, dtype)
        self.initial_test = np.zeros(plan.n_test)
        self.batch = (
            *(np.empty(size) for _ in range(2)),
            *(np.empty(size, dtype) for _ in range(3)),
            *(np.empty((depth, n, size), dtype) for _ in range(2)),
            # Also for products of matrices and vectors, of n entries.
            np.empty((n, max(size, 1)), dtype),
            np.empty((min(n, 64), n), dtype),
        )
        self.grid = (
            *(np.empty(_COLUMNS, dtype) for _ in range(2)),
            *(np.empty((depth, n, _COLUMNS), dtype) for _ in range(2)),
            np.empty(_COLUMNS, dtype),
        )
        self.test_angles = equal_angles(plan.n_test)

    def start(self, run: int) -> bool:
        """Draw the weights and make F_0; False if stopped."""
        rng = self.rng
        key = rng.stream_key(self.plan.seed, rng.NETWORK)
        word, zero = np.uint64(run), np.uint64(0)
        layers = [self.first, *self.hidden, self.readout[None, :]]
        for layer, weights in enumerate(layers):
            for unit, row in enumerate(weights):
                rng.fill_normals(*key, np.uint64(unit), word, np.uint64(layer), zero, row)
        if not self.evaluate(self.test_angles, self.initial_test):
            return False
        if self.plan.is_tabulated:
            return self.evaluate(equal_angles(_TABLE), self.initial)
        weights = self.first, self.hidden, self.readout
        self.first_initial, self.hidden_initial, self.readout_initial = (array.copy() for array in weights)
        return True

    def evaluate(self, theta: Array, values_out: Array) -> bool:
        """F, without F_0; False if stopped."""
        plan = self.plan
        status = self.native.evaluate_network(
            theta, plan.gamma, plan.activation_power, plan.constant, self.first, self.hidden, self.readout, *self.grid,
            self.stop, values_out,
        )  # fmt: skip
        return bool(status == self.native.OK)

    def test_loss(self) -> float | None:
        """Mean of (y - f)^2 over the circle; None if stopped."""
        values = np.empty(self.plan.n_test)
        if not self.evaluate(self.test_angles, values):
            return None
        # A run that diverges has no finite loss; that is told where its next batch is seen.
        with np.errstate(over="ignore", invalid="ignore"):
            error = self.target - (values - self.initial_test)
            return float(error @ error) / error.size + self.rest

    def kernel(self) -> Array:
        r"""gamma^2 N sum_p df df at the plan's angles.

        Each layer adds the product of two matrices of scalar products: of activities below, and of
        d(gamma N f)/dh above.
        """
        plan = self.plan
        n, width = plan.kernel_points, plan.width
        theta = equal_angles(n)
        shape = (plan.depth, width, n)
        phi, slope = np.empty(shape), np.empty(shape)
        hidden, readout = self.hidden.astype(np.float64), self.readout.astype(np.float64)
        self.native.forward(
            np.cos(theta), np.sin(theta), self.first.astype(np.float64), hidden, plan.activation_power, plan.constant,
            phi, slope,
        )  # fmt: skip
        kernel: Array = phi[-1].T @ phi[-1] / width
        delta = readout[:, None] * slope[-1]
        for layer in range(plan.depth - 1, 0, -1):
            kernel += (delta.T @ delta) * (phi[layer - 1].T @ phi[layer - 1]) / width**2
            delta = slope[layer - 1] * (hidden[layer - 1].T @ delta) / math.sqrt(width)
        kernel += (delta.T @ delta) * np.cos(theta[:, None] - theta) / width
        # Products of BLAS need not be exactly symmetric.
        return np.asarray(0.5 * (kernel + kernel.T))

    def advance(self, run: int, t_first: int, t_last: int, loss_out: Array, typical_out: Array) -> tuple[int, int]:
        """Take steps t_first..t_last-1: status and step."""
        plan = self.plan
        status, step = self.native.advance(
            t_first, t_last, run, *self.angles_key, plan.learning_rate, plan.gamma, plan.activation_power,
            plan.constant, _THRESHOLD * plan.task.mean_square, plan.task.spread_coefficients, self.initial,
            self.first_initial, self.hidden_initial, self.readout_initial, self.first, self.hidden, self.readout,
            *self.batch, self.stop, loss_out, typical_out,
        )  # fmt: skip
        return int(status), int(step)


class Checkpoint:
    """A file with the finished runs; refused if it belongs to another call."""

    def __init__(self, path: str | os.PathLike[str], plan: Plan) -> None:
        from scalefield import __version__

        self.path = Path(path)
        self.settings: dict[str, Any] = {
            "class": "MultilayerCheckpoint",
            "format": _FORMAT,
            "version": __version__,
            **plan.describe(),
        }

    def restore(self, arrays_out: dict[str, NDArray[Any]]) -> None:
        """Fill in what the file has, if there is one."""
        for left in self.path.parent.glob(f".{self.path.name}.*.part"):
            with suppress(OSError):
                left.unlink()
        if not self.path.exists():
            # A folder that cannot be written to is told before any work.
            self._write(arrays_out)
            return
        settings, arrays = read_archive(self.path)
        for name, value in self.settings.items():
            if settings.get(name) != value:
                raise ScalefieldError(
                    f"{self.path}: checkpoint of another training, with {name} {settings.get(name)!r:.80} instead of "
                    f"{value!r:.80}; give another path, or remove the file to start anew"
                )
        try:
            for name, array in arrays_out.items():
                array[...] = arrays[name]
        except (KeyError, ValueError) as error:
            raise ScalefieldError(f"{self.path}: not a checkpoint of this version of scalefield ({error})") from error

    def write(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Replace the file; if that fails the old one stays and training goes on."""
        try:
            self._write(arrays)
        except OSError as error:
            logger.warning("checkpoint %s not written: %s", self.path, error)
            warnings.warn(f"checkpoint {self.path} not written: {error}", CheckpointWarning, stacklevel=2)

    def _write(self, arrays: dict[str, NDArray[Any]]) -> None:
        write_archive(self.path, self.settings, arrays, compressed=False)


class Runs:
    """Runs shared out among threads; every thread takes the next run until none is left."""

    def __init__(self, plan: Plan, checkpoint: Checkpoint | None) -> None:
        self.plan, self.checkpoint = plan, checkpoint
        self.stop = np.zeros(1, dtype=np.uint8)
        n = plan.kernel_points
        self.arrays: dict[str, NDArray[Any]] = {
            "loss": np.full((plan.n_seeds, plan.steps.size), np.nan),
            "batch_loss": np.full((plan.n_seeds, plan.n_steps), np.nan, dtype=np.float32),
            "typical_batch_loss": np.full((plan.n_seeds, plan.n_steps), np.nan, dtype=np.float32),
            "kernels": np.full((plan.n_seeds, plan.kernel_steps.size, n, n), np.nan),
            "finished": np.zeros(plan.n_seeds, dtype=bool),
        }
        if checkpoint is not None:
            checkpoint.restore(self.arrays)
        self.finished = self.arrays["finished"]
        # Run: step, and the loss there.
        self.divergences: dict[int, tuple[int, float]] = {}
        self._last_step = plan.n_steps
        self._steps_done = np.where(self.finished, plan.n_steps, 0)
        self._waiting = [run for run in range(plan.n_seeds) if not self.finished[run]][::-1]
        self._lock = threading.Lock()
        self._target, self._rest = plan.task.on_grid(plan.n_test)
        # Made here, not by several threads.
        _ = plan.task.spread_coefficients
        halts = np.concatenate((plan.steps, plan.kernel_steps, np.arange(0, plan.n_steps, _CHUNK_STEPS)))
        self._halts = np.unique(np.append(halts, plan.n_steps))

    def execute(self, n_threads: int, progress: Progress | None) -> None:
        """Train all runs that are not finished; on an error or Ctrl-C the workers are stopped first."""
        total = self.plan.n_seeds * self.plan.n_steps
        written = int(self.finished.sum())
        if progress is not None:
            progress(int(self._steps_done.sum()), total)
        with ThreadPoolExecutor(n_threads, thread_name_prefix="scalefield") as pool:
            try:
                pending = {pool.submit(self._work) for _ in range(n_threads)}
                while pending:
                    done, pending = wait(pending, _POLL_SECONDS, return_when=FIRST_EXCEPTION)
                    for future in done:
                        future.result()
                    if progress is not None:
                        progress(int(self._steps_done.sum()), total)
                    if int(self.finished.sum()) > written:
                        written = int(self.finished.sum())
                        self._write()
            except BaseException:
                # Leaving the pool waits for its threads, which see the flag within a step.
                self.stop[0] = 1
                raise
            finally:
                pool.shutdown()
                if int(self.finished.sum()) > written:
                    self._write()

    def _write(self) -> None:
        if self.checkpoint is not None:
            with self._lock:
                finished = self.finished.copy()
            arrays = {name: array.copy() for name, array in self.arrays.items()}
            # Other runs go on meanwhile, and begin anew.
            arrays["finished"] = finished
            self.checkpoint.write(arrays)

    def _work(self) -> None:
        worker = Worker(self.plan, self._target, self._rest, self.stop)
        while not self.stop[0]:
            with self._lock:
                if not self._waiting:
                    return
                run = self._waiting.pop()
            if worker.start(run):
                self._train(run, worker)

    def _train(self, run: int, worker: Worker) -> None:
        plan, native = self.plan, worker.native
        buffer, typical = np.empty(_CHUNK_STEPS), np.empty(_CHUNK_STEPS)
        t = 0
        while t <= self._last_step:
            place = int(np.searchsorted(plan.steps, t))
            if place < plan.steps.size and plan.steps[place] == t:
                loss = worker.test_loss()
                if loss is None:
                    return
                self.arrays["loss"][run, place] = loss
            place = int(np.searchsorted(plan.kernel_steps, t))
            if place < plan.kernel_steps.size and plan.kernel_steps[place] == t:
                self.arrays["kernels"][run, place] = worker.kernel()
            if t == plan.n_steps:
                break
            t_end = int(self._halts[np.searchsorted(self._halts, t, side="right")])
            status, step = worker.advance(run, t, t_end, buffer, typical)
            if status == native.STOPPED:
                return
            self.arrays["batch_loss"][run, t:step] = buffer[: step - t]
            self.arrays["typical_batch_loss"][run, t:step] = typical[: step - t]
            if status == native.DIVERGED:
                with self._lock:
                    self.divergences[run] = (step, float(buffer[step - t]))
                    self._last_step = min(self._last_step, step)
                return
            t = t_end
            self._steps_done[run] = t
        with self._lock:
            self.finished[run] = t == plan.n_steps

    def result(self, runs: NDArray[np.bool_], n_steps: int) -> MultilayerTraining | None:
        """Some runs, up to a step; None if nothing was recorded."""
        plan = self.plan
        kept = plan.steps <= n_steps
        if not kept.any() or not runs.any():
            return None
        kernels: Array | None = None
        kernel_steps: NDArray[np.int64] | None = None
        if plan.kernel_points:
            kernel_steps = plan.kernel_steps[plan.kernel_steps <= n_steps]
            kernels = self.arrays["kernels"][runs, : kernel_steps.size]
        return MultilayerTraining(
            plan.task,
            plan.depth,
            plan.width,
            plan.activation_power,
            plan.gamma,
            plan.learning_rate,
            plan.batch_size,
            plan.seed,
            plan.n_test,
            plan.dtype,
            plan.steps[kept],
            np.ascontiguousarray(self.arrays["loss"][runs][:, kept]),
            np.ascontiguousarray(self.arrays["batch_loss"][runs, :n_steps]),
            np.ascontiguousarray(self.arrays["typical_batch_loss"][runs, :n_steps]),
            kernel_steps,
            kernels,
        )
