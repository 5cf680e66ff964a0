"""Training of multilayer perceptrons on the circle: runs shared out among threads, records, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import gamma as gamma_function

from scalefield._checkpoint import Checkpoint, CheckpointFile
from scalefield._ensemble import DIVERGED, OK, STOPPED, Ensemble, affordable_threads, chunk_steps
from scalefield.networks.circle_results import MultilayerTraining
from scalefield.networks.circle_task import CircleTask, native_kernels

__all__ = ["CircleWorker", "Plan", "Training"]

Array = NDArray[np.float64]

# Equally spaced angles at which F_0 is held, for interpolation; where gamma N is smaller than this, its error of about
# 1e-4/(gamma N) is too large and F_0 is computed at every sample.
_TABLE, _TABULATED = 2**14, 100.0
# Samples of one product where networks are evaluated on a grid.
_COLUMNS = 256
# A batch's loss above this many times the target's power is a divergence.
_THRESHOLD = 1e12
# Operations in one call of the kernel, a tenth of a second of BLAS.
_CHUNK_WORK = 5e9


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
    def chunk(self) -> int:
        """Steps of one call of the kernel."""
        return chunk_steps(6.0 * self.batch_size * self.width * (self.width * (self.depth - 1) + 50.0), _CHUNK_WORK)

    @property
    def shared_bytes(self) -> int:
        """Memory of the records and the target."""
        kernels = self.kernel_steps.size * self.kernel_points**2
        return self.n_seeds * (8 * self.n_steps + 8 * (self.steps.size + kernels)) + 64 * self.task.n_modes

    def describe(self) -> dict[str, Any]:
        """What a checkpoint must agree with: all but the number of runs."""
        described = {field.name: getattr(self, field.name) for field in fields(self)}
        del described["n_seeds"]
        described["task"], described["record"] = self.task.describe(), described.pop("steps")
        return described


class CircleWorker:
    """One thread's network and workspace, used for one run after the other."""

    def __init__(
        self, plan: Plan, target: Array, rest: float, arrays: Mapping[str, NDArray[Any]], stop: NDArray[np.uint8]
    ) -> None:
        from scalefield._native import rng

        self.plan, self.target, self.rest, self.arrays, self.stop = plan, target, rest, arrays, stop
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
        self.buffers = np.empty(plan.chunk), np.empty(plan.chunk)

    @property
    def state(self) -> Mapping[str, NDArray[Any]]:
        """All weights; F_0 is made anew."""
        return {"first": self.first, "hidden": self.hidden, "readout": self.readout}

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

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take the weights of another state of the run."""
        for name, array in self.state.items():
            array[...] = state[name]

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

    def observe(self, run: int, step: int) -> tuple[int, float]:
        """Record the test loss and the kernel, whichever is wanted at a step: status, and nothing more."""
        plan = self.plan
        place = int(np.searchsorted(plan.steps, step))
        if place < plan.steps.size and plan.steps[place] == step:
            loss = self.test_loss()
            if loss is None:
                return STOPPED, math.nan
            self.arrays["loss"][run, place] = loss
        place = int(np.searchsorted(plan.kernel_steps, step))
        if place < plan.kernel_steps.size and plan.kernel_steps[place] == step:
            self.arrays["kernels"][run, place] = self.kernel()
        return OK, math.nan

    def advance(self, run: int, t_first: int, t_last: int) -> tuple[int, int, float]:
        """Take steps t_first..t_last-1, those before the last step: status, step, and the loss at a divergence."""
        plan = self.plan
        losses, typical = self.buffers
        status, step = self.native.advance(
            t_first, min(t_last, plan.n_steps), run, *self.angles_key, plan.learning_rate, plan.gamma,
            plan.activation_power, plan.constant, _THRESHOLD * plan.task.mean_square, plan.task.spread_coefficients,
            self.initial, self.first_initial, self.hidden_initial, self.readout_initial, self.first, self.hidden,
            self.readout, *self.batch, self.stop, losses, typical,
        )  # fmt: skip
        self.arrays["batch_loss"][run, t_first:step] = losses[: step - t_first]
        self.arrays["typical_batch_loss"][run, t_first:step] = typical[: step - t_first]
        return int(status), int(step), float(losses[step - t_first]) if status == DIVERGED else math.nan


class Training:
    """Runs of one plan: arrays for what is recorded, and the threads' workers."""

    def __init__(self, plan: Plan, file: CheckpointFile | None) -> None:
        self.plan = plan
        self.n_threads = affordable_threads(
            plan.n_seeds,
            plan.shared_bytes,
            plan.bytes_per_run,
            f"training {plan.n_seeds} network(s) of width {plan.width} for {plan.n_steps} steps",
        )
        n = plan.kernel_points
        arrays: dict[str, NDArray[Any]] = {
            "loss": np.full((plan.n_seeds, plan.steps.size), np.nan),
            "batch_loss": np.full((plan.n_seeds, plan.n_steps), np.nan, dtype=np.float32),
            "typical_batch_loss": np.full((plan.n_seeds, plan.n_steps), np.nan, dtype=np.float32),
            "kernels": np.full((plan.n_seeds, plan.kernel_steps.size, n, n), np.nan),
        }
        self._target, self._rest = plan.task.on_grid(plan.n_test)
        # Made here, not by several threads.
        _ = plan.task.spread_coefficients
        self.stop = np.zeros(1, dtype=np.uint8)
        store = None if file is None else Checkpoint(file, "training on the circle", plan.describe())
        stops = np.union1d(plan.steps, plan.kernel_steps)
        self.ensemble = Ensemble(plan.n_steps, arrays, self._worker, plan.chunk, stops, self.stop, store)

    def _worker(self) -> CircleWorker:
        return CircleWorker(self.plan, self._target, self._rest, self.ensemble.arrays, self.stop)

    def result(self, runs: NDArray[np.bool_], before: int) -> MultilayerTraining | None:
        """What some runs have recorded at steps below `before`; None if nothing."""
        plan, arrays = self.plan, self.ensemble.arrays
        steps = plan.steps[plan.steps < before]
        if not steps.size:
            return None
        kernels: Array | None = None
        kernel_steps: NDArray[np.int64] | None = None
        if plan.kernel_points:
            kernel_steps = plan.kernel_steps[plan.kernel_steps < before]
            kernels = arrays["kernels"][runs, : kernel_steps.size]
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
            steps,
            np.ascontiguousarray(arrays["loss"][runs, : steps.size]),
            np.ascontiguousarray(arrays["batch_loss"][runs, :before]),
            np.ascontiguousarray(arrays["typical_batch_loss"][runs, :before]),
            kernel_steps,
            kernels,
        )
