"""Trainings that are interrupted and gone on with, at the pace of the main thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scalefield import _ensemble as ensemble
from scalefield._checkpoint import Checkpoint
from scalefield.errors import Interrupted
from scalefield.networks import _torch_training, circle_training, linear_training


def assert_equal(found, expected) -> None:
    """The same bits in all that is recorded."""
    assert vars(found).keys() == vars(expected).keys()
    for name, value in vars(expected).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(getattr(found, name), value, err_msg=name)


class Pace:
    """Short calls, two of them for each look of the main thread: it sees runs half done on the busiest machine."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.tokens = threading.Semaphore(0)
        patch.setattr(ensemble, "_CHUNK_WORK", 4e4)
        patch.setattr(circle_training, "_CHUNK_WORK", 1e6)
        patch.setattr(ensemble, "_POLL_SECONDS", 0.002)
        patch.setattr(_torch_training, "_CHUNK_STEPS", 1)
        for worker in (linear_training._Engine, circle_training.CircleWorker, _torch_training.Worker):

            def paced(worker, *arguments, advance=worker.advance):
                while not self.tokens.acquire(timeout=0.005) and not worker.stop[0]:
                    pass
                return advance(worker, *arguments)

            patch.setattr(worker, "advance", paced)

    def interrupt_at(self, fraction: float):
        """A progress function like Ctrl-C at some part of the work."""

        def progress(done: int, total: int) -> None:
            if done >= fraction * total:
                raise KeyboardInterrupt
            while self.tokens.acquire(blocking=False):
                pass
            self.tokens.release(2)

        return progress

    def free(self) -> None:
        self.tokens.release(10**6)


def check_continuation(train: Callable[..., Any], path: Path, pace: Pace, patch: pytest.MonkeyPatch) -> None:
    """Ctrl-C at 20%, 50% and 80% of the work of three runs, on other numbers of threads each time; the same bits."""
    pace.free()
    expected = train()
    restore, under_way = Checkpoint.restore, []

    def noted(self, arrays_out):
        states = restore(self, arrays_out)
        under_way.extend(state.step for state in states.values())
        return states

    patch.setattr(Checkpoint, "restore", noted)
    for threads, fraction in (("1", 0.2), ("3", 0.5), ("2", 0.8)):
        patch.setenv("SCALEFIELD_NUM_THREADS", threads)
        with pytest.raises(Interrupted):
            train(checkpoint=path, checkpoint_every=0.001, progress=pace.interrupt_at(fraction))
    pace.free()
    done: list[int] = []
    # The seed is the file's.
    found = train(seed=None, checkpoint=path, progress=lambda now, total: done.append(now))
    assert_equal(found, expected)
    # It went on from where it was, in the middle of runs.
    assert 0.5 * done[-1] < done[0] < done[-1]
    assert sum(0 < step < done[-1] // 3 for step in under_way) >= 3
