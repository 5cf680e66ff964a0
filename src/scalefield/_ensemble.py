"""Training runs shared out among threads: chunks of steps, divergence, interruption, checkpoints."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from scalefield._checkpoint import Checkpoint, RunState
from scalefield._memory import available_memory, format_bytes, require_memory
from scalefield._progress import Progress
from scalefield._threads import single_threaded_blas, thread_count
from scalefield.errors import DivergenceError, Interrupted

__all__ = [
    "DIVERGED",
    "OK",
    "STOPPED",
    "Engine",
    "Ensemble",
    "Recorder",
    "Worker",
    "affordable_threads",
    "chunk_steps",
]

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]
R = TypeVar("R")

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


def chunk_steps(work_per_step: float, chunk_work: float | None = None) -> int:
    """Steps of one call of a kernel, from the elementary operations of a step; a normal deviate counts as some ten."""
    work = _CHUNK_WORK if chunk_work is None else chunk_work
    return int(min(max(1.0, work / work_per_step), _CHUNK_STEPS))


def affordable_threads(n_runs: int, shared_bytes: int, bytes_per_thread: int, work: str) -> int:
    """Threads for a number of runs: no more than memory allows.

    Raises
    ------
    InsufficientMemoryError
        If there is none for a single one; `work` says for what.
    """
    require_memory(shared_bytes + bytes_per_thread, work)
    n_threads = min(thread_count(), n_runs)
    available = available_memory()
    if available is not None:
        n_threads = max(1, min(n_threads, (available - shared_bytes) // bytes_per_thread))
    logger.info("%s on %d thread(s), about %s of memory each", work, n_threads, format_bytes(bytes_per_thread))
    return n_threads


class Worker(Protocol):
    """One thread's workspace, used for one run after the other, which records what it trains."""

    @property
    def state(self) -> Mapping[str, NDArray[Any]]:
        """The arrays from which a run goes on, to be copied."""

    def start(self, run: int) -> bool:
        """Make what is random but fixed in a run, and the state before training; False if stopped."""

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take another state, of the run that was started last."""

    def observe(self, run: int, step: int) -> tuple[int, float]:
        """Record the state at a step that asks for it.

        Returns the status; and at a divergence the loss.
        """

    def advance(self, run: int, t_first: int, t_last: int) -> tuple[int, int, float]:
        """Record what steps t_first..t_last-1 begin with, and take those before the last step, n_steps.

        Returns the status; and at a divergence its step, and the loss there.
        """


class Ensemble:
    """Runs; every thread takes the next one until none is left.

    Parameters
    ----------
    n_steps : int
        Steps of a run.
    arrays : dict
        What is recorded, by name; the first axis counts runs. "finished" is added.
    worker : callable
        Makes one thread's worker, which writes into `arrays`.
    chunk : int
        Steps between two looks at a run.
    stops : ndarray of int64
        Steps at which runs are observed, increasing.
    stop : ndarray of uint8, shape (1,)
        Flag that workers obey.
    checkpoint : Checkpoint or None
        File to go on from and to write to.
    """

    def __init__(
        self,
        n_steps: int,
        arrays: dict[str, NDArray[Any]],
        worker: Callable[[], Worker],
        chunk: int,
        stops: NDArray[np.int64],
        stop: NDArray[np.uint8],
        checkpoint: Checkpoint | None,
    ) -> None:
        self.n_steps, self.chunk, self.checkpoint = n_steps, chunk, checkpoint
        self._new_worker, self._stops, self.stop = worker, stops, stop
        n_runs = len(next(iter(arrays.values())))
        self.arrays = arrays
        arrays["finished"] = np.zeros(n_runs, dtype=bool)
        # Run: step, and the loss there.
        self.divergences: dict[int, tuple[int, float]] = {}
        self._restored: dict[int, RunState] = {}
        if checkpoint is not None:
            self._restored = checkpoint.restore(arrays)
        self.finished: NDArray[np.bool_] = arrays["finished"]
        self._steps_done = np.where(self.finished, n_steps, 0)
        for run, state in self._restored.items():
            self._steps_done[run] = state.step
        # Runs need not go beyond the earliest divergence found so far.
        self._last_step = n_steps
        # Those that were under way come first: they hold states.
        waiting = [run for run in range(n_runs) if not self.finished[run]]
        self._waiting = sorted(waiting, key=lambda run: (run not in self._restored, run))[::-1]
        self._lock = threading.Lock()
        # A checkpoint raises the generation; runs that are training then leave a copy of their state.
        self._generation = 0
        # Runs and the generation in which they were begun: before the next one there is nothing to leave.
        self._training: dict[int, int] = {}
        self._published: dict[int, tuple[int, RunState]] = {}

    def run(
        self,
        n_threads: int,
        progress: Progress | None,
        result: Callable[[NDArray[np.bool_], int], R | None],
        advice: str,
        *,
        unfinished: bool = False,
    ) -> R:
        """Train all runs that are not finished, with BLAS on one thread.

        Parameters
        ----------
        n_threads : int
            Threads.
        progress : callable or None
            Called as ``progress(done, total)``, in steps summed over runs.
        result : callable
            ``result(runs, before)``: what the chosen runs have recorded at steps below `before`; None if nothing.
        advice : str
            What to say of a divergence.
        unfinished : bool
            Whether an interruption before any run is finished gives the one that came furthest, as far as it came.

        Raises
        ------
        DivergenceError
            With the earliest one, and what all runs have recorded before it.
        Interrupted
            On Ctrl-C, with the finished runs.
        """
        try:
            with single_threaded_blas():
                self.execute(n_threads, progress)
        except KeyboardInterrupt as interrupt:
            count = int(self.finished.sum())
            partial = result(self.finished, self.n_steps + 1) if count else None
            furthest = int(self._steps_done.max())
            if unfinished and not count and furthest:
                partial = result(np.arange(self.finished.size) == self._steps_done.argmax(), furthest)
            raise Interrupted(f"interrupted with {count} of {self.finished.size} runs finished", partial) from interrupt
        everything = np.ones_like(self.finished)
        if self.divergences:
            step, run, loss = min((step, run, loss) for run, (step, loss) in self.divergences.items())
            raise DivergenceError(
                f"the loss of run {run} diverged at step {step} ({loss:.3g}); {advice}", step, result(everything, step)
            )
        complete = result(everything, self.n_steps + 1)
        assert complete is not None
        return complete

    def execute(self, n_threads: int, progress: Progress | None) -> None:
        """Train all runs that are not finished; on an error or Ctrl-C the workers are stopped first."""
        total = self.finished.size * self.n_steps
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
            self.arrays | {"finished": finished}, {run: state for run, state in states.items() if not finished[run]}
        )

    def _work(self) -> None:
        worker = self._new_worker()
        while not self.stop[0]:
            with self._lock:
                if not self._waiting:
                    return
                run = self._waiting.pop()
            if not worker.start(run):
                return
            with self._lock:
                restored = self._restored.get(run)
                if restored is not None:
                    worker.restore(restored.arrays)
                    self._published[run] = (0, restored)
                    del self._restored[run]
                self._training[run] = self._generation
            self._train(run, worker, 0 if restored is None else restored.step)
            with self._lock:
                del self._training[run]

    def _train(self, run: int, worker: Worker, first: int) -> None:
        """Train one run, started, from step `first`."""
        t, answered = first, self._training[run]
        while t <= self._last_step:
            t_end = min(t + self.chunk, self._last_step + 1)
            place = int(np.searchsorted(self._stops, t))
            if place < self._stops.size and self._stops[place] == t:
                status, loss = worker.observe(run, t)
                if status != OK:
                    self._end(run, status, t, loss)
                    return
                place += 1
            if place < self._stops.size:
                t_end = min(t_end, int(self._stops[place]))
            status, step, loss = worker.advance(run, t, t_end)
            if status != OK:
                self._end(run, status, step, loss)
                return
            t = t_end
            self._steps_done[run] = min(t, self.n_steps)
            if self._generation != answered:
                answered = self._generation
                state = RunState(t, {name: array.copy() for name, array in worker.state.items()})
                with self._lock:
                    self._published[run] = (answered, state)
        with self._lock:
            self.finished[run] = t > self.n_steps
            self._published.pop(run, None)

    def _end(self, run: int, status: int, step: int, loss: float) -> None:
        """Note a run that goes no further."""
        if status == DIVERGED:
            with self._lock:
                self.divergences[run] = (step, loss)
                self._last_step = min(self._last_step, step)


class Engine(Protocol):
    """One thread's workspace, used for one run after the other, which records nothing itself."""

    @property
    def state(self) -> Mapping[str, NDArray[Any]]:
        """The arrays from which a run goes on, to be copied and written into."""

    def start(self, run: int) -> bool:
        """Make what is random but fixed in a run, and the state before training; False if stopped."""

    def advance(self, run: int, t_first: int, t_last: int, loss_out: Array) -> tuple[int, int]:
        """Record the loss at steps t_first..t_last-1 and take these steps (the last one, n_steps, is only recorded)."""

    def observe(self) -> Mapping[str, Any]:
        """What is wanted of the state beside the loss, by names of arrays."""


class Recorder:
    """A `Worker` whose engine's losses, and what it observes, are recorded at some steps.

    Parameters
    ----------
    engine : Engine
        What trains.
    steps : ndarray of int64, shape (T,)
        Steps that are recorded, increasing.
    arrays : mapping
        "loss" of shape (n_runs, T), and what the engine observes.
    chunk : int
        Steps of one call at most.
    """

    def __init__(
        self, engine: Engine, steps: NDArray[np.int64], arrays: Mapping[str, NDArray[Any]], chunk: int
    ) -> None:
        self.engine, self._steps, self._arrays = engine, steps, arrays
        self._buffer = np.empty(chunk)

    @property
    def state(self) -> Mapping[str, NDArray[Any]]:
        """See `Worker`."""
        return self.engine.state

    def start(self, run: int) -> bool:
        """See `Worker`."""
        return self.engine.start(run)

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """See `Worker`."""
        for name, array in self.state.items():
            array[...] = state[name]

    def observe(self, run: int, step: int) -> tuple[int, float]:
        """See `Worker`."""
        place = int(np.searchsorted(self._steps, step))
        for name, value in self.engine.observe().items():
            self._arrays[name][run, place] = value
        return OK, math.nan

    def advance(self, run: int, t_first: int, t_last: int) -> tuple[int, int, float]:
        """See `Worker`."""
        status, step = self.engine.advance(run, t_first, t_last, self._buffer)
        if status == STOPPED:
            return status, step, math.nan
        last = step if status == DIVERGED else t_last
        inside = slice(int(np.searchsorted(self._steps, t_first)), int(np.searchsorted(self._steps, last)))
        self._arrays["loss"][run, inside] = self._buffer[self._steps[inside] - t_first]
        return status, step, float(self._buffer[step - t_first]) if status == DIVERGED else math.nan
