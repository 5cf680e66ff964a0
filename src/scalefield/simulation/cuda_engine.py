"""What literal and reduced runs on a CUDA device share.

The host queues steps in chunks of a fraction of a second and looks at the results between them; nothing depends on
where the chunks end.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from scalefield._progress import Progress
from scalefield.simulation.plan import Plan

__all__ = ["SETUP_BLOCKS", "USABLE_MEMORY", "CudaEngine", "CudaRuns"]

Array = NDArray[np.float64]

# Part of the device's free memory that may be used; the rest is for the compiled kernels and what they need.
USABLE_MEMORY = 0.95
# Blocks of kernels that set up memory; they loop over the rest.
SETUP_BLOCKS = 4096
# Seconds of work queued at a time: Ctrl-C acts and progress is told within this time.
_CHUNK_SECONDS = 0.2


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


class CudaEngine(ABC):
    """What both methods share: constants of the plan, the record, and the rhythm of the host."""

    # Runs that are trained side by side.
    at_a_time = 1

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
        """Train all runs, unless stopped."""
        plan = self.plan
        for first in range(0, plan.n_runs, self.at_a_time):
            self.report(first * plan.n_steps)
            if self.stop is not None and self.stop[0]:
                return
            self.train(first, min(first + self.at_a_time, plan.n_runs))
        self.report(plan.n_runs * plan.n_steps)

    @abstractmethod
    def train(self, first_run: int, last_run: int) -> None:
        """Runs first_run..last_run-1, at most `at_a_time`, from the start; their losses are noted by `keep`."""

    def key(self, stream: int) -> tuple[np.uint32, np.uint32]:
        """Words of a stream's key, as kernels take them."""
        from scalefield._native import rng

        key0, key1 = rng.stream_key(self.plan.seed, stream)
        return np.uint32(key0), np.uint32(key1)

    def report(self, done: int) -> None:
        """Tell the progress, in steps summed over runs."""
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
