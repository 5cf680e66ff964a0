"""Training on a fixed data set: both methods with samples in place of fresh batches (theory section 4)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalefield.simulation.literal import Literal, LiteralWorker, Source
from scalefield.simulation.plan import Plan
from scalefield.simulation.reduced import Reduced, ReducedWorker
from scalefield.simulation.reduction import BLOCK, LANES
from scalefield.simulation.samples import KINDS, batches_of, fill_samples, project_samples, sample_noise

__all__ = ["LiteralOffline", "ReducedOffline"]

Array = NDArray[np.float64]

# Numbers of samples drawn at a time for batches.
_BATCH_ENTRIES = 2**20


class ReducedOffline(Reduced):
    """Samples as their N features and labels: O(N P + N^2) a step, independent of M."""

    def __init__(self, plan: Plan, stop: NDArray[np.uint8]) -> None:
        super().__init__(plan, stop)
        self.n_samples = int(plan.model.n_samples)
        self.batch = self.n_samples if math.isinf(plan.model.batch_size) else int(plan.model.batch_size)

    @property
    def bytes_per_worker(self) -> int:
        """Memory of one thread's workspace, and of the reduction and projection it makes."""
        projection = 8 * self.n_samples * (4 * self.width + LANES * BLOCK)
        return super().bytes_per_worker + self.plan.dtype.itemsize * self.n_samples * self.n + projection

    @property
    def work_per_step(self) -> float:
        """Elementary operations of a step."""
        return (6.0 * self.n**2 if self.plan.model.is_rich else 4.0 * self.n) + 4.0 * self.batch * self.n + 1.0

    def worker(self) -> ReducedOfflineWorker:
        """Allocate one thread's workspace."""
        return ReducedOfflineWorker(self)


class ReducedOfflineWorker(ReducedWorker):
    """One thread's arrays, used for one run after the other."""

    shared: ReducedOffline

    def start(self, run: int) -> bool:
        """Diagonalise the covariance of the run's features, and project its data set."""
        if not super().start(run):
            return False
        assert self.reduction is not None
        shared = self.shared
        found = project_samples(shared.plan, run, self.reduction.vectors, shared.threads_per_run, shared.stop)
        if found is None:
            return False
        self.samples, self.labels = (np.ascontiguousarray(array, dtype=shared.plan.dtype) for array in found)
        return True

    def advance(self, run: int, t_first: int, t_last: int, loss_out: Array) -> tuple[int, int]:
        """Record the loss and take steps."""
        from scalefield._native.reduced_steps import advance_on_samples
        from scalefield._native.weight_steps import OK

        shared, plan = self.shared, self.shared.plan
        model = plan.model
        assert self.reduction is not None
        status, step, t = OK, t_first, t_first
        while t < t_last and status == OK:
            t_end = t_last
            if not math.isinf(model.batch_size):
                t_end = min(t_last, t + max(1, _BATCH_ENTRIES // shared.batch))
            status, step = advance_on_samples(
                t,
                t_end,
                plan.n_steps,
                model.learning_rate,
                model.gamma,
                1.0 / shared.batch,
                model.inverse_width,
                shared.threshold,
                self.reduction.rest,
                self.root,
                self.c,
                self.samples,
                self.labels,
                batches_of(plan, run, t, t_end),
                self.w,
                self.mixing,
                self.theta,
                self.d,
                self.v2,
                self.scratch,
                shared.stop,
                loss_out[t - t_first :],
            )
            t = t_end
        return status, step

    def observe(self) -> dict[str, Any]:
        """What the plan wants recorded of the state beside the loss; the train loss always."""
        residuals = self.labels.astype(np.float64) - self.samples.astype(np.float64) @ self.theta.astype(np.float64)
        return {"train_loss": float(residuals @ residuals) / residuals.size} | super().observe()


class LiteralOffline(Literal):
    """Samples as M-vectors, held whole, or made again at every full-batch step where they do not fit."""

    def worker(self) -> LiteralOfflineWorker:
        """Allocate one thread's workspace."""
        return LiteralOfflineWorker(self)


class LiteralOfflineWorker(LiteralWorker):
    """One thread's arrays, used for one run after the other."""

    shared: LiteralOffline

    def __init__(self, shared: LiteralOffline) -> None:
        super().__init__(shared)
        self.samples = np.empty(shared.sizes.samples, dtype=shared.plan.dtype)
        # theta at which the residuals of all samples were found last; nan for none.
        self.observed = np.full(shared.sizes.n, np.nan, dtype=shared.plan.dtype)

    def start(self, run: int) -> bool:
        """Draw A(0) and the data set."""
        if not super().start(run):
            return False
        self.run, self.labels_noise = run, sample_noise(self.shared.plan, run).astype(self.shared.plan.dtype)
        if self.samples.size:
            fill_samples(self.shared.plan, run, 0, self.samples)
        self.observed.fill(np.nan)
        return True

    def advance(self, run: int, t_first: int, t_last: int, loss_out: Array) -> tuple[int, int]:
        """Record the loss and take steps."""
        # A step that was observed has its first half behind it.
        known = np.array_equal(self.observed, self.theta)
        self.observed.fill(np.nan)
        source = self._source(t_first, t_last)
        return self._advance(run, source, t_first, t_last, self.shared.plan.n_steps, loss_out, errors_known=known)

    def _source(self, t_first: int, t_last: int) -> Source:
        from scalefield._native import rng

        plan = self.shared.plan
        # What a function makes is held.
        kind = KINDS[plan.features] if isinstance(plan.features, str) else rng.PROBABILITY
        return Source(rng.DATA, kind, self.samples, batches_of(plan, self.run, t_first, t_last), self.labels_noise)

    def observe(self) -> dict[str, Any]:
        """What the plan wants recorded of the state beside the loss; the train loss always."""
        from scalefield._native.weight_steps import STOPPED

        if math.isinf(self.shared.plan.model.batch_size):
            # As if this step, whichever it is, were the last one: the residuals and no more.
            status, _ = self._advance(self.run, self._source(0, 1), 0, 1, 0, np.empty(1))
            if status != STOPPED:
                self.observed[:] = self.theta
            residuals = self.residual.astype(np.float64)
        else:
            errors = np.sqrt(self.shared.eigenvalues) * (self.shared.target - self._learned())
            residuals = self.samples @ errors + self.labels_noise
        return {"train_loss": float(residuals @ residuals) / residuals.size} | super().observe()
