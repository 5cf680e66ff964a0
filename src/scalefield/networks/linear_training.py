"""Training of linear networks: runs on threads, and what is recorded of their weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalefield._checkpoint import Checkpoint, CheckpointFile
from scalefield._ensemble import Ensemble, Recorder, affordable_threads, chunk_steps
from scalefield._projection import projection_rows
from scalefield.model import Model
from scalefield.networks.linear_results import LinearNetworkRuns

__all__ = ["STATISTICS", "Plan", "Training"]

Array = NDArray[np.float64]

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

    def describe(self) -> dict[str, Any]:
        """What a checkpoint must agree with: all but the number of runs."""
        return {
            "network": self.setting.describe(),
            "n_steps": self.n_steps,
            "seed": self.seed,
            "method": "literal" if self.literal else "reduced",
            "record": self.steps,
            "statistics": list(self.statistics),
            "centred": self.centred,
        }

    def widths(self) -> dict[str, int]:
        """Numbers recorded at a step, by statistic."""
        return {name: self.n_singular_values if name == "singular_values" else 1 for name in self.statistics}


class Training:
    """Runs of one plan: arrays for what is recorded, and the threads' workers."""

    def __init__(self, plan: Plan, file: CheckpointFile | None) -> None:
        self.plan = plan
        setting = plan.setting
        rows, n_modes = plan.shape
        batch = 0 if math.isinf(setting.batch_size) else int(setting.batch_size)
        observed = 2 * rows * n_modes + 4 * rows**2 if plan.statistics else 0
        made = 2 * (_ROWS + n_modes + 1) * (n_modes + 1) if plan.is_reduced else rows * n_modes
        self.n_threads = affordable_threads(
            plan.n_runs,
            8 * plan.n_runs * plan.steps.size * (1 + sum(plan.widths().values())),
            8 * (rows * n_modes + max(observed, made) + 12 * plan.n_modes + 2 * batch),
            f"training {plan.n_runs} linear network(s) of width {setting.width:g} with {plan.n_modes} modes for "
            f"{plan.n_steps} steps",
        )
        samples = batch * plan.n_modes if plan.literal else batch + plan.n_modes
        self.chunk = chunk_steps(8.0 * rows * n_modes + 15.0 * samples + 8.0 * plan.n_modes)
        shape = (plan.n_runs, plan.steps.size)
        arrays: dict[str, NDArray[Any]] = {"loss": np.full(shape, np.nan)}
        for name, size in plan.widths().items():
            arrays[name] = np.full((*shape, size) if name == "singular_values" else shape, np.nan)
        self.stop = np.zeros(1, dtype=np.uint8)
        stops = plan.steps if plan.statistics else plan.steps[:0]
        store = None if file is None else Checkpoint(file, "training of linear networks", plan.describe())
        self.ensemble = Ensemble(plan.n_steps, arrays, self._worker, self.chunk, stops, self.stop, store)

    def _worker(self) -> Recorder:
        engine = _Engine(self.plan, self.chunk, self.stop)
        return Recorder(engine, self.plan.steps, self.ensemble.arrays, self.chunk)

    def result(self, runs: NDArray[np.bool_], before: int) -> LinearNetworkRuns | None:
        """What some runs have recorded at steps below `before`; None if nothing."""
        setting, steps = self.plan.setting, self.plan.steps
        kept = steps[steps < before].copy()
        if not kept.size:
            return None
        arrays = self.ensemble.arrays
        records = {name: np.ascontiguousarray(arrays[name][runs, : kept.size]) for name in self.plan.statistics}
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
            steps=kept,
            loss=np.ascontiguousarray(arrays["loss"][runs, : kept.size]),
            **records,
        )


class _Engine:
    """One thread's network and workspace, used for one run after the other."""

    def __init__(self, plan: Plan, chunk: int, stop: NDArray[np.uint8]) -> None:
        self.plan, self.stop = plan, stop
        setting = plan.setting
        self.eigenvalues, target = setting.spectrum.modes(0, plan.n_modes)
        self.target = np.ascontiguousarray(target).copy()
        self.root = np.sqrt(self.eigenvalues)
        rows, n_modes = plan.shape
        # In a multiple of four rows, the last of which stay zero. At infinite width and gamma = 0 there are none:
        # the one entry of the readout is its scale.
        rows = -(-rows // 4) * 4
        self.weights, self.readout = np.zeros((rows, n_modes)), np.zeros(max(rows, 1))
        self.learned = np.zeros(plan.n_modes)
        self.batch = batch = 0 if math.isinf(setting.batch_size) else int(setting.batch_size)
        self.s, self.gain = (np.empty(self.readout.size) for _ in range(2))
        self.u, self.v, self.sums = (np.empty(plan.n_modes) for _ in range(3))
        # Blocks of four samples are taken together.
        self.errors, self.noise = np.empty(max(4, batch) if plan.literal else batch), np.empty(batch)
        self.features = np.empty((4, plan.n_modes) if plan.literal else (0, 0))
        self.observer: _Observer | None = None

    @property
    def state(self) -> Mapping[str, Array]:
        """A, or its triangular factor, w and beta."""
        return {"weights": self.weights, "readout": self.readout, "learned": self.learned}

    def start(self, run: int) -> bool:
        """A and w, or their triangular factor, before training; and beta."""
        plan = self.plan
        n_modes, width = plan.n_modes, plan.setting.width
        rows = plan.shape[0]
        self.weights.fill(0.0)
        self.readout.fill(0.0)
        self.learned.fill(0.0)
        if plan.is_regression:
            self.readout[0] = 1.0
        elif math.isinf(width):
            np.fill_diagonal(self.weights, 1.0)
            self.readout[n_modes] = 1.0
        elif plan.is_reduced:
            factor = np.zeros((0, n_modes + 1))
            for first in range(0, int(width), _ROWS):
                if self.stop[0]:
                    return False
                block = np.empty((min(_ROWS, int(width) - first), n_modes + 1))
                self._draw(run, first, block[:, :-1], block[:, -1])
                factor = np.asarray(np.linalg.qr(np.concatenate([factor, block]), mode="r"))
            self.weights[:rows], self.readout[:rows] = factor[:, :-1], factor[:, -1]
        else:
            self._draw(run, 0, self.weights[:rows], self.readout[:rows])
        if not plan.centred:
            scale = 1.0 if math.isinf(width) else width
            self.learned[:] = self.weights.T @ self.readout / (scale * plan.setting.gamma)
        if plan.statistics:
            self.observer = _Observer(self)
        return True

    def _draw(self, run: int, first: int, weights_out: Array, readout_out: Array) -> None:
        """Rows `first`... of A(0) and w(0)."""
        from scalefield._native import rng

        n_rows, n_modes = weights_out.shape
        weights_out[...] = projection_rows(self.plan.seed, run, 0, n_modes, n_rows, first).T
        readout = np.empty(readout_out.size)
        key = rng.stream_key(self.plan.seed, rng.READOUT)
        rng.fill_normals(*key, np.uint64(0), np.uint64(run), np.uint64(0), np.uint64(first // 4), readout)
        readout_out[...] = readout

    def advance(self, run: int, t_first: int, t_last: int, loss_out: Array) -> tuple[int, int]:
        """Record the loss at steps t_first..t_last-1 and take these steps: status and step."""
        from scalefield._native import linear_network, rng

        plan, setting = self.plan, self.plan.setting
        status, step = linear_network.advance(
            t_first, t_last, plan.n_steps, run, int(plan.literal),
            *rng.stream_key(plan.seed, rng.FEATURES if plan.literal else rng.GRADIENT),
            *rng.stream_key(plan.seed, rng.LABEL_NOISE), setting.learning_rate, setting.gamma, setting.label_noise,
            setting.inverse_batch_size, 1.0 if math.isinf(setting.width) else setting.inverse_width,
            setting.largest_loss, self.batch, self.target, self.root, self.weights, self.readout, self.learned,
            self.s, self.gain, self.u, self.v, self.sums, self.errors, self.noise, self.features, self.stop, loss_out,
        )  # fmt: skip
        return int(status), int(step)

    def observe(self) -> Mapping[str, Any]:
        """The statistics that are asked for."""
        assert self.observer is not None
        return self.observer.observe(self.weights, self.readout, self.learned)


class _Observer:
    """Statistics of a run's state, some relative to its first one.

    All depend on A and w through products that an orthogonal matrix on their rows leaves alone, so the triangular
    factor gives those of the network.
    """

    def __init__(self, engine: _Engine) -> None:
        plan, weights, readout = engine.plan, engine.weights, engine.readout
        self.names, self.n_singular_values = plan.statistics, plan.n_singular_values
        self.scale = 1.0 if math.isinf(plan.setting.width) else plan.setting.inverse_width
        self.eigenvalues = engine.eigenvalues
        self.task = engine.root * engine.target
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
