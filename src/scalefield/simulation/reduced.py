"""Gaussian data in the eigenbasis of the features: O(N^2 + B N) a step at any number of modes (theory section 8)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalefield._projection import modes_kept
from scalefield._threads import thread_count
from scalefield.simulation.plan import Plan
from scalefield.simulation.reduction import Reduction, reduce_projection, reduction_bytes
from scalefield.simulation.statistics import KernelStatistics, observation_bytes

__all__ = ["Reduced"]

Array = NDArray[np.float64]


class Reduced:
    """What the runs of a plan share."""

    def __init__(self, plan: Plan, stop: NDArray[np.uint8]) -> None:
        model = plan.model
        assert math.isfinite(model.width)
        self.plan, self.stop = plan, stop
        self.width = int(model.width)
        self.n = self.width if model.spectrum.n_modes is None else min(self.width, model.spectrum.n_modes)
        self.batch = 0 if math.isinf(model.batch_size) else int(model.batch_size)
        # Samples that are held at a time.
        self.held = min(4, self.batch)
        self.threshold = model.largest_loss
        # Threads that a single run leaves idle help to stream its modes.
        self.threads_per_run = max(1, thread_count() // plan.n_runs)
        self.modes = np.zeros(0, dtype=np.int64) if plan.modes is None else plan.modes

    def allocate(self) -> None:
        """Make the shared arrays: the target of the modes that are recorded."""
        spectrum = self.plan.model.spectrum
        self.mode_target = np.array([spectrum.modes(int(k), int(k) + 1)[1][0] for k in self.modes])

    @property
    def bytes_per_worker(self) -> int:
        """Memory of one thread's workspace, and of the reduction it makes."""
        itemsize, n = self.plan.dtype.itemsize, self.n
        mixing = n * n if self.plan.model.is_rich else 0
        state = itemsize * (mixing + n * (self.held + 7) + 2 * self.batch)
        state += observation_bytes(self.plan, n, 0)
        return state + reduction_bytes(self.width, modes_kept(self.plan.model.spectrum), self.threads_per_run)

    @property
    def shared_bytes(self) -> int:
        """Memory of what all threads share."""
        return 8 * self.modes.size

    @property
    def work_per_step(self) -> float:
        """Elementary operations of a step."""
        return (6.0 * self.n**2 if self.plan.model.is_rich else 4.0 * self.n) + 15.0 * self.batch * self.n + 1.0

    def worker(self) -> ReducedWorker:
        """Allocate one thread's workspace."""
        return ReducedWorker(self)


class ReducedWorker:
    """One thread's arrays, used for one run after the other."""

    def __init__(self, shared: Reduced) -> None:
        self.shared, n, dtype = shared, shared.n, shared.plan.dtype
        size = n if shared.plan.model.is_rich else 0
        self.mixing = np.zeros((size, size), dtype=dtype)
        self.w, self.theta, self.d, self.v2, self.scratch, self.root, self.c = (
            np.zeros(n, dtype=dtype) for _ in range(7)
        )
        self.residual, self.noise = (np.zeros(shared.batch, dtype=dtype) for _ in range(2))
        self.z = np.zeros((shared.held, n), dtype=dtype)
        self.reduction: Reduction | None = None

    @property
    def tail(self) -> float:
        """Random part of the far modes drawn by their law over the smallest eigenvalue."""
        return 0.0 if self.reduction is None else self.reduction.tail

    @property
    def state(self) -> Mapping[str, NDArray[Any]]:
        """The arrays from which a run goes on."""
        return {"w": self.w, "theta": self.theta, "mixing": self.mixing}

    def start(self, run: int) -> bool:
        """Diagonalise the covariance of the run's features; w = 0, G = 1."""
        shared, plan = self.shared, self.shared.plan
        self.reduction = reduce_projection(
            plan.model.spectrum, shared.width, plan.seed, run, shared.threads_per_run, shared.modes, shared.stop
        )
        if self.reduction is None:
            return False
        self.root[:] = np.sqrt(self.reduction.eigenvalues)
        self.c[:] = self.reduction.c
        self.w.fill(0.0)
        self.theta.fill(0.0)
        self.mixing.fill(0.0)
        np.fill_diagonal(self.mixing, 1.0)
        return True

    def advance(self, run: int, t_first: int, t_last: int, loss_out: Array) -> tuple[int, int]:
        """Record the loss and take steps."""
        from scalefield._native import reduced_steps, rng

        shared, plan = self.shared, self.shared.plan
        model = plan.model
        assert self.reduction is not None
        status, step = reduced_steps.advance(
            t_first,
            t_last,
            plan.n_steps,
            run,
            *rng.stream_key(plan.seed, rng.REDUCED),
            *rng.stream_key(plan.seed, rng.REST),
            *rng.stream_key(plan.seed, rng.LABEL_NOISE),
            model.learning_rate,
            model.gamma,
            model.label_noise,
            model.inverse_batch_size,
            model.inverse_width,
            shared.batch,
            shared.threshold,
            self.reduction.rest,
            self.root,
            self.c,
            self.w,
            self.mixing,
            self.theta,
            self.d,
            self.v2,
            self.scratch,
            self.residual,
            self.noise,
            self.z,
            shared.stop,
            loss_out,
        )
        return status, step

    def observe(self) -> dict[str, Any]:
        """What the plan wants recorded of the state beside the loss."""
        assert self.reduction is not None
        plan, e = self.shared.plan, self.reduction.eigenvalues
        theta = self.theta.astype(np.float64)
        found: dict[str, Any] = {}
        if plan.modes is not None:
            # v0_k = w*_k - A(0)_k . theta
            found["mode_errors"] = self.shared.mode_target - self.reduction.modes @ theta
        if plan.statistics:
            kernel = KernelStatistics(plan.model, e, np.sqrt(e) * self.reduction.c)
            found |= kernel.observe(plan.statistics, self.w.astype(np.float64), self.mixing, float(e @ theta**2))
        return found
