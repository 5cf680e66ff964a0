"""Runs shared out among threads: chunks of steps, records, divergence, interruption, checkpoints."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from scalefield._progress import Progress
from scalefield.simulation.checkpoint import Checkpoint, RunState
from scalefield.simulation.plan import Plan

__all__ = ["DIVERGED", "OK", "STOPPED", "Ensemble", "Method", "Worker"]

Array = NDArray[np.float64]

# Status of a kernel, as in `_native`.
OK, DIVERGED, STOPPED = 0, 1, 2

# Elementary operations in one call of a kernel, some tens of milliseconds: how often progress is noted.
_CHUNK_WORK = 5e7
# Steps in one call at most: the losses of a call are held until those that are recorded are picked.
_CHUNK_STEPS = 65_536
# Seconds between looks at the workers; Ctrl-C acts within this time and the kernels' reaction to `stop`.
_POLL_SECONDS = 0.1
# How long a checkpoint waits for runs in the middle of a call.
_PATIENCE_SECONDS = 5.0


class Worker(Protocol):
    """One thread's workspace, used for one run after the other."""

    @property
    def state(self) -> Mapping[str, NDArray[Any]]:
        """The arrays from which a run goes on, to be copied and written into."""

    def start(self, run: int) -> bool:
        """Make what is random but fixed in a run, and the state before training; False if stopped."""

    def advance(self, run: int, t_first: int, t_last: int, loss_out: Array) -> tuple[int, int]:
        """Record the loss at steps t_first..t_last-1 and take these steps (the last one, n_steps, is only recorded)."""

    def observe(self) -> dict[str, Any]:
        """What the plan wants recorded of the state beside the loss; "mode_errors" for its modes."""


class Method(Protocol):
    """What the workers of a method share."""

    @property
    def work_per_step(self) -> float:
        """Elementary operations of a step; a normal deviate counts as some ten."""

    def worker(self) -> Worker:
        """Allocate one thread's workspace."""


class Ensemble:
    """Runs of a plan; every thread takes the next run until none is left."""

    def __init__(self, plan: Plan, method: Method, stop: NDArray[np.uint8], checkpoint: Checkpoint | None) -> None:
        self.plan, self.method, self.checkpoint = plan, method, checkpoint
        self.stop = stop
        self.chunk = int(min(max(1.0, _CHUNK_WORK / method.work_per_step), _CHUNK_STEPS))
        shape = (plan.n_runs, plan.record_steps.size)
        self.loss = np.full(shape, np.nan)
        self.records = {name: np.full(shape, np.nan) for name in plan.statistics}
        if plan.model.is_offline:
            self.records["train_loss"] = np.full(shape, np.nan)
        if plan.modes is not None:
            self.records["mode_errors"] = np.full((*shape, plan.modes.size), np.nan)
        # What methods say of the modes that they do not take one by one.
        self.tails = np.zeros(plan.n_runs)
        self.finished = np.zeros(plan.n_runs, dtype=bool)
        # Run: step, and the loss there.
        self.divergences: dict[int, tuple[int, float]] = {}
        self._restored: dict[int, RunState] = {}
        if checkpoint is not None:
            self._restored = checkpoint.restore(self.loss, self._kept, self.finished)
        self._steps_done = np.where(self.finished, plan.n_steps, 0)
        for run, state in self._restored.items():
            self._steps_done[run] = state.step
        # Runs need not go beyond the earliest divergence found so far.
        self._last_step = plan.n_steps
        # Those that were under way come first: they hold states.
        waiting = [run for run in range(plan.n_runs) if not self.finished[run]]
        self._waiting = sorted(waiting, key=lambda run: (run not in self._restored, run))[::-1]
        self._lock = threading.Lock()
        # A checkpoint raises the generation; runs that are training then leave a copy of their state.
        self._generation = 0
        # Runs and the generation in which they were begun: before the next one there is nothing to leave.
        self._training: dict[int, int] = {}
        self._published: dict[int, tuple[int, RunState]] = {}

    def execute(self, n_threads: int, progress: Progress | None) -> None:
        """Train all runs that are not finished; on an error or Ctrl-C the workers are stopped first."""
        total = self.plan.n_runs * self.plan.n_steps
        if progress is not None:
            progress(int(self._steps_done.sum()), total)
        if not self._waiting:
            return
        with ThreadPoolExecutor(n_threads, thread_name_prefix="scalefield") as pool:
            try:
                pending = {pool.submit(self._work) for _ in range(n_threads)}
                due, asked = time.monotonic() + self._seconds, 0.0
                while pending:
                    finished, pending = wait(pending, _POLL_SECONDS, return_when=FIRST_EXCEPTION)
                    for future in finished:
                        future.result()
                    if progress is not None:
                        progress(int(self._steps_done.sum()), total)
                    now = time.monotonic()
                    if now >= due:
                        self._generation += 1
                        due = math.inf
                        asked = now
                    elif (
                        self.checkpoint is not None
                        and math.isinf(due)
                        # Runs in the middle of a long call are kept as they were before.
                        and (self._all_published() or now - asked > _PATIENCE_SECONDS)
                    ):
                        self._write(self.checkpoint)
                        due = time.monotonic() + self._seconds
            except BaseException:
                # Leaving the pool waits for its threads, which see the flag soon.
                self.stop[0] = 1
                raise
            finally:
                pool.shutdown()
                if self.checkpoint is not None:
                    self._write(self.checkpoint)

    @property
    def _kept(self) -> dict[str, Array]:
        """What a checkpoint keeps beside the losses."""
        return self.records | {"tail": self.tails}

    @property
    def _seconds(self) -> float:
        return math.inf if self.checkpoint is None else self.checkpoint.seconds

    def _all_published(self) -> bool:
        with self._lock:
            return all(
                begun == self._generation or self._published.get(run, (begun, None))[0] == self._generation
                for run, begun in self._training.items()
            )

    def _write(self, checkpoint: Checkpoint) -> None:
        with self._lock:
            # Runs that have not been taken up again are kept as they were restored.
            states = self._restored | {run: state for run, (_, state) in self._published.items()}
            finished = self.finished.copy()
        # Rows may hold more than their state has reached: going on from it gives the same numbers again.
        checkpoint.write(
            self.loss, self._kept, finished, {run: state for run, state in states.items() if not finished[run]}
        )

    def _work(self) -> None:
        worker = self.method.worker()
        while not self.stop[0]:
            with self._lock:
                if not self._waiting:
                    return
                run = self._waiting.pop()
            if not worker.start(run):
                return
            self.tails[run] = getattr(worker, "tail", 0.0)
            with self._lock:
                restored = self._restored.get(run)
                if restored is not None:
                    for name, array in worker.state.items():
                        array[...] = restored.arrays[name]
                    self._published[run] = (0, restored)
                    del self._restored[run]
                self._training[run] = self._generation
            self.train(run, worker, 0 if restored is None else restored.step)
            with self._lock:
                del self._training[run]

    def train(self, run: int, worker: Worker, first: int = 0) -> None:
        """Train one run, started, from step `first`."""
        steps = self.plan.record_steps
        buffer = np.empty(self.chunk)
        t, answered = first, self._training.get(run, self._generation)
        while t <= self._last_step:
            t_end = min(t + self.chunk, self._last_step + 1)
            if self.plan.records_state:
                t_end = self._observe(run, worker, t, t_end)
            status, step = worker.advance(run, t, t_end, buffer)
            if status == STOPPED:
                return
            last = step if status == DIVERGED else t_end
            inside = slice(int(np.searchsorted(steps, t)), int(np.searchsorted(steps, last)))
            self.loss[run, inside] = buffer[steps[inside] - t]
            if status == DIVERGED:
                with self._lock:
                    self.divergences[run] = (step, float(buffer[step - t]))
                    self._last_step = min(self._last_step, step)
                return
            t = t_end
            self._steps_done[run] = min(t, self.plan.n_steps)
            if self._generation != answered:
                answered = self._generation
                state = RunState(t, {name: array.copy() for name, array in worker.state.items()})
                with self._lock:
                    self._published[run] = (answered, state)
        with self._lock:
            self.finished[run] = t > self.plan.n_steps
            self._published.pop(run, None)

    def _observe(self, run: int, worker: Worker, t: int, t_end: int) -> int:
        """Record the state if step t wants it; returns where to stop for the next step that does."""
        steps = self.plan.record_steps
        place = int(np.searchsorted(steps, t))
        if place < steps.size and steps[place] == t:
            for name, value in worker.observe().items():
                self.records[name][run, place] = value
            place += 1
        return min(t_end, int(steps[place])) if place < steps.size else t_end
