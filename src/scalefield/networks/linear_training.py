"""Training of linear networks: runs on threads, and what is recorded of their weights."""

from __future__ import annotations

import logging
import math
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalefield._memory import available_memory, format_bytes, require_memory
from scalefield._progress import Progress
from scalefield._projection import projection_rows
from scalefield._threads import thread_count
from scalefield.model import Model
from scalefield.networks.linear_results import LinearNetworkRuns

__all__ = ["STATISTICS", "Plan", "Training"]

Array = NDArray[np.float64]

logger = logging.getLogger(__name__)

STATISTICS = (
    "readout_norm",
    "singular_values",
    "readout_overlap",
    "learned_overlap",
    "imbalance",
    "kernel_distance",
    "alignment",
)
# Largest singular values that are kept.
_N_SINGULAR_VALUES = 8
# Rows of A(0) made and triangularised at a time.
_ROWS = 2048
# Elementary operations and steps in one call of the kernel; see `simulation.ensemble`.
_CHUNK_WORK, _CHUNK_STEPS = 5e7, 65_536
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Plan:
    """What is to be trained, checked. Spectrum, width, ... are held by a `Model`, whose dynamics play no part."""

    setting: Model
    n_modes: int
    n_steps: int
    n_runs: int
    seed: int
    literal: bool
    steps: NDArray[np.int64]
    statistics: tuple[str, ...]
    centred: bool

    @property
    def is_reduced(self) -> bool:
        """Whether [A, w] is replaced by its triangular factor."""
        return not self.literal and self.setting.width > self.n_modes + 1

    @property
    def is_regression(self) -> bool:
        """Whether the kernel is 2 I for ever, and nothing is asked about it."""
        return math.isinf(self.setting.width) and not self.setting.is_rich and not self.statistics

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of A, or of what replaces it."""
        if self.is_regression:
            return 0, 0
        return (self.n_modes + 1 if self.is_reduced else int(self.setting.width)), self.n_modes

    @property
    def n_singular_values(self) -> int:
        """How many are recorded."""
        return int(min(_N_SINGULAR_VALUES, self.setting.width, self.n_modes))

    def widths(self) -> dict[str, int]:
        """Numbers recorded at a step, by statistic."""
        return {name: self.n_singular_values if name == "singular_values" else 1 for name in self.statistics}


class Training:
    """Runs shared out among threads; every thread takes the next run until none is left."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        setting = plan.setting
        rows, n_modes = plan.shape
        batch = 0 if math.isinf(setting.batch_size) else int(setting.batch_size)
        observed = 2 * rows * n_modes + 4 * rows**2 if plan.statistics else 0
        made = 2 * (_ROWS + n_modes + 1) * (n_modes + 1) if plan.is_reduced else rows * n_modes
        bytes_per_worker = 8 * (rows * n_modes + max(observed, made) + 12 * plan.n_modes + 2 * batch)
        curves = 8 * plan.n_runs * plan.steps.size * (1 + sum(plan.widths().values()))
        require_memory(
            curves + bytes_per_worker,
            f"training {plan.n_runs} linear network(s) of width {setting.width:g} with {plan.n_modes} modes",
        )
        available = available_memory()
        self.n_threads = min(thread_count(), plan.n_runs)
        if available is not None:
            self.n_threads = max(1, min(self.n_threads, (available - curves) // bytes_per_worker))
        logger.info(
            "training %d linear network(s) for %d steps on %d thread(s), about %s of memory each",
            plan.n_runs,
            plan.n_steps,
            self.n_threads,
            format_bytes(bytes_per_worker),
        )
        samples = batch * plan.n_modes if plan.literal else batch + plan.n_modes
        work = 8.0 * rows * n_modes + 15.0 * samples + 8.0 * plan.n_modes
        self.chunk = int(min(max(1.0, _CHUNK_WORK / work), _CHUNK_STEPS))
        self.eigenvalues, self.target = setting.spectrum.modes(0, plan.n_modes)
        self.target = np.ascontiguousarray(self.target).copy()
        self.root = np.sqrt(self.eigenvalues)
        self.batch = batch
        shape = (plan.n_runs, plan.steps.size)
        self.loss = np.full(shape, np.nan)
        self.records = {name: np.full((*shape, size), np.nan) for name, size in plan.widths().items()}
        self.finished = np.zeros(plan.n_runs, dtype=bool)
        self.divergences: dict[int, int] = {}
        self._steps_done = np.zeros(plan.n_runs, dtype=np.int64)
        self.stop = np.zeros(1, dtype=np.uint8)

    def execute(self, progress: Progress | None) -> None:
        """Train all runs; on an error or Ctrl-C the workers are stopped first."""
        total = self.plan.n_runs * self.plan.n_steps
        if progress is not None:
            progress(0, total)
        with ThreadPoolExecutor(self.n_threads, thread_name_prefix="scalefield") as pool:
            try:
                pending = {pool.submit(self._train, run) for run in range(self.plan.n_runs)}
                last = time.monotonic()
                while pending:
                    finished, pending = wait(pending, _POLL_SECONDS, return_when=FIRST_EXCEPTION)
                    for future in finished:
                        future.result()
                    if progress is not None and (not pending or time.monotonic() - last >= _POLL_SECONDS):
                        last = time.monotonic()
                        progress(int(self._steps_done.sum()), total)
            except BaseException:
                # Leaving the pool waits for its threads, which see the flag soon.
                self.stop[0] = 1
                pool.shutdown(cancel_futures=True)
                raise

    def _train(self, run: int) -> None:
        from scalefield._native import linear_network, rng

        plan, setting = self.plan, self.plan.setting
        if self.stop[0]:
            return
        weights, readout, learned = self._start(run)
        observer = _Observer(self, weights, readout) if plan.statistics else None
        keys = (
            *rng.stream_key(plan.seed, rng.FEATURES if plan.literal else rng.GRADIENT),
            *rng.stream_key(plan.seed, rng.LABEL_NOISE),
        )
        s, gain = (np.empty(readout.size) for _ in range(2))
        u, v, sums = (np.empty(plan.n_modes) for _ in range(3))
        # Blocks of four samples are taken together.
        errors, noise = np.empty(max(4, self.batch) if plan.literal else self.batch), np.empty(self.batch)
        features = np.empty((4, plan.n_modes) if plan.literal else (0, 0))
        inverse_width = 1.0 if math.isinf(setting.width) else setting.inverse_width
        buffer = np.empty(self.chunk)
        t = 0
        while t <= plan.n_steps:
            t_end = min(t + self.chunk, plan.n_steps + 1)
            if observer is not None:
                t_end = self._observe(run, t, t_end, observer, weights, readout, learned)
            status, step = linear_network.advance(
                t, t_end, plan.n_steps, run, int(plan.literal), *keys, setting.learning_rate, setting.gamma,
                setting.label_noise, setting.inverse_batch_size, inverse_width, setting.largest_loss, self.batch,
                self.target, self.root, weights, readout, learned, s, gain, u, v, sums, errors, noise, features,
                self.stop, buffer,
            )  # fmt: skip
            if status == linear_network.STOPPED:
                return
            last = step if status == linear_network.DIVERGED else t_end
            inside = slice(int(np.searchsorted(plan.steps, t)), int(np.searchsorted(plan.steps, last)))
            self.loss[run, inside] = buffer[plan.steps[inside] - t]
            if status == linear_network.DIVERGED:
                self.divergences[run] = step
                return
            t = t_end
            self._steps_done[run] = min(t, plan.n_steps)
        self.finished[run] = True

    def _start(self, run: int) -> tuple[Array, Array, Array]:
        """A and w, or their triangular factor, in a multiple of four rows; and beta."""
        plan = self.plan
        n_modes, width = plan.n_modes, plan.setting.width
        if plan.is_regression:
            return np.zeros((0, 0)), np.ones(1), np.zeros(n_modes)
        rows = plan.shape[0]
        # The last rows stay zero.
        weights, readout = np.zeros((-(-rows // 4) * 4, n_modes)), np.zeros(-(-rows // 4) * 4)
        if math.isinf(width):
            np.fill_diagonal(weights, 1.0)
            readout[n_modes] = 1.0
        elif plan.is_reduced:
            factor = np.zeros((0, n_modes + 1))
            for first in range(0, int(width), _ROWS):
                block = np.empty((min(_ROWS, int(width) - first), n_modes + 1))
                self._draw(run, first, block[:, :-1], block[:, -1])
                factor = np.asarray(np.linalg.qr(np.concatenate([factor, block]), mode="r"))
            weights[:rows], readout[:rows] = factor[:, :-1], factor[:, -1]
        else:
            self._draw(run, 0, weights[:rows], readout[:rows])
        learned = np.zeros(n_modes)
        if not plan.centred:
            scale = 1.0 if math.isinf(width) else width
            learned = weights.T @ readout / (scale * plan.setting.gamma)
        return weights, readout, learned

    def _draw(self, run: int, first: int, weights_out: Array, readout_out: Array) -> None:
        """Rows `first`... of A(0) and w(0)."""
        from scalefield._native import rng

        n_rows, n_modes = weights_out.shape
        weights_out[...] = projection_rows(self.plan.seed, run, 0, n_modes, n_rows, first).T
        readout = np.empty(readout_out.size)
        key = rng.stream_key(self.plan.seed, rng.READOUT)
        rng.fill_normals(*key, np.uint64(0), np.uint64(run), np.uint64(0), np.uint64(first // 4), readout)
        readout_out[...] = readout

    def _observe(
        self, run: int, t: int, t_end: int, observer: _Observer, weights: Array, readout: Array, learned: Array
    ) -> int:
        """Record the state if step t wants it; returns where to stop for the next step that does."""
        steps = self.plan.steps
        place = int(np.searchsorted(steps, t))
        if place < steps.size and steps[place] == t:
            for name, value in observer.observe(weights, readout, learned).items():
                self.records[name][run, place] = value
            place += 1
        return min(t_end, int(steps[place])) if place < steps.size else t_end

    def result(self, runs: NDArray[np.bool_], n_records: int) -> LinearNetworkRuns:
        """The result of some runs, up to some record."""
        setting = self.plan.setting
        records: dict[str, Any] = {}
        for name, array in self.records.items():
            kept = array[runs, :n_records]
            records[name] = np.ascontiguousarray(kept if name == "singular_values" else kept[:, :, 0])
        return LinearNetworkRuns(
            spectrum=setting.spectrum,
            width=setting.width,
            gamma=setting.gamma,
            learning_rate=setting.learning_rate,
            batch_size=setting.batch_size,
            label_noise=setting.label_noise,
            centred=self.plan.centred,
            seed=self.plan.seed,
            method="literal" if self.plan.literal else "reduced",
            steps=self.plan.steps[:n_records].copy(),
            loss=np.ascontiguousarray(self.loss[runs, :n_records]),
            **records,
        )


class _Observer:
    """Statistics of a run's state, some relative to its first one.

    All depend on A and w through products that an orthogonal matrix on their rows leaves alone, so the triangular
    factor gives those of the network.
    """

    def __init__(self, training: Training, weights: Array, readout: Array) -> None:
        plan = training.plan
        self.names, self.n_singular_values = plan.statistics, plan.n_singular_values
        self.scale = 1.0 if math.isinf(plan.setting.width) else plan.setting.inverse_width
        self.eigenvalues = training.eigenvalues
        self.task = training.root * training.target
        self.first = (weights.copy(), readout.copy()) if "kernel_distance" in self.names else None
        self.balance = self._balance(weights, readout) if "imbalance" in self.names else np.zeros(0)
        self.first_kernel = self._kernel(weights, readout) if self.first is not None else (0.0, 0.0, np.zeros(0))

    def observe(self, weights: Array, readout: Array, learned: Array) -> dict[str, Any]:
        found: dict[str, Any] = {}
        norm = self.scale * float(readout @ readout)
        if "readout_norm" in self.names:
            found["readout_norm"] = norm
        if {"singular_values", "readout_overlap", "learned_overlap"} & set(self.names):
            gram = self.scale * (weights @ weights.T)
            # Whole: LAPACK finds fewer than asked of many equal ones, which A^T A = N has at infinite width.
            values, vectors = np.linalg.eigh(gram)
            found["singular_values"] = np.sqrt(np.maximum(values[::-1][: self.n_singular_values], 0.0))
            left = vectors[:, -1]
            found["readout_overlap"] = self.scale * float(left @ readout) ** 2 / norm
            right, square = left @ weights, float(learned @ learned)
            overlap = float(right @ learned) ** 2 / float(right @ right)
            found["learned_overlap"] = overlap / square if square > 0.0 else math.nan
        if "imbalance" in self.names:
            found["imbalance"] = float(np.linalg.norm(self._balance(weights, readout) - self.balance))
        if {"kernel_distance", "alignment"} & set(self.names):
            found |= self._kernel_statistics(weights, readout)
        return {name: found[name] for name in self.names}

    def _balance(self, weights: Array, readout: Array) -> Array:
        balance: Array = self.scale * (weights @ weights.T - np.outer(readout, readout))
        return balance

    def _kernel(self, weights: Array, readout: Array) -> tuple[float, float, Array]:
        """q, |K|^2 and the diagonal of A^T A/N, of K = Lambda^{1/2} (A^T A/N + q) Lambda^{1/2}."""
        q = self.scale * float(readout @ readout)
        diagonal: Array = self.scale * np.einsum("ij,ij->j", weights, weights)
        square = self._inner(weights, weights)
        power = self.eigenvalues**2
        return q, square + 2.0 * q * float(power @ diagonal) + q * q * float(power.sum()), diagonal

    def _inner(self, weights: Array, others: Array) -> float:
        """Frobenius product of the two A^T A/N between Lambda^{1/2}: |A Lambda A'^T|^2/N^2."""
        product = (weights * self.eigenvalues) @ others.T
        return self.scale**2 * float(np.vdot(product, product))

    def _kernel_statistics(self, weights: Array, readout: Array) -> dict[str, float]:
        q, square, diagonal = self._kernel(weights, readout)
        found = {}
        if self.first is not None:
            first_weights, _ = self.first
            first_q, first_square, first_diagonal = self.first_kernel
            power = self.eigenvalues**2
            inner = self._inner(weights, first_weights) + float(power @ (first_q * diagonal + q * first_diagonal))
            inner += q * first_q * float(power.sum())
            found["kernel_distance"] = max(0.0, 1.0 - inner / math.sqrt(square * first_square))
        along = weights @ (np.sqrt(self.eigenvalues) * self.task)
        total = float(self.task @ self.task)
        image = self.scale * float(along @ along) + q * float(self.eigenvalues @ self.task**2)
        found["alignment"] = image / (math.sqrt(square) * total) if total > 0.0 else math.nan
        return found
