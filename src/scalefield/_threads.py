"""Threads: how many to use, and BLAS held to one thread inside our own parallel loops."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

__all__ = ["limited_threads", "share", "single_threaded_blas", "thread_count"]


@cache
def _controller() -> Any:
    # Scanning the loaded libraries takes milliseconds, so it is done once; numpy and scipy, whose BLAS
    # are the ones called, are loaded by then.
    import scipy.linalg.cython_blas  # noqa: F401
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


class _SharedLimit:
    """One limit for all who ask for it: the first sets it, the last takes it back.

    Each with a limit of its own, the first to end would give BLAS its threads back in the middle of another's work,
    whose last digits depend on them, and the last would restore the one thread that it found.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0
        self._limit: Any = None

    def acquire(self) -> None:
        with self._lock:
            if self._holders == 0:
                _free_control()
                self._limit = _controller().limit(limits=1, user_api="blas")
            self._holders += 1

    def release(self) -> None:
        with self._lock:
            self._holders -= 1
            if self._holders == 0:
                # The last to end need not be the first to have begun.
                _free_control()
                self._limit.restore_original_limits()
                _free_control()


def _free_control() -> None:
    """Let this thread set limits: threadpoolctl 3.8 silently ignores all threads but the first to set one."""
    for library in _controller().lib_controllers:
        clear = getattr(library, "clear_controlling_thread", None)
        if clear is not None:
            clear(force=True)


_blas_limit = _SharedLimit()


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Hold every BLAS of the process to one thread until the last of the blocks that run at the same time ends."""
    _blas_limit.acquire()
    try:
        yield
    finally:
        _blas_limit.release()


_thread_limit = threading.local()


@contextmanager
def limited_threads(n_threads: int | None) -> Iterator[None]:
    """Hold `thread_count`, where this thread asks for it, to n_threads; None for no limit."""
    before = getattr(_thread_limit, "value", None)
    _thread_limit.value = n_threads
    try:
        yield
    finally:
        _thread_limit.value = before


def thread_count() -> int:
    """Threads for our own loops: SCALEFIELD_NUM_THREADS if set, else the cores this process may use.

    Fewer inside a block of `limited_threads`.
    """
    limit = getattr(_thread_limit, "value", None)
    return _available_threads() if limit is None else min(limit, _available_threads())


def _available_threads() -> int:
    setting = os.environ.get("SCALEFIELD_NUM_THREADS")
    if setting is not None:
        if not setting.isdecimal() or int(setting) < 1:
            raise ValueError(f"SCALEFIELD_NUM_THREADS must be a positive integer, got {setting!r}")
        return int(setting)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share(function: Callable[[int], None], n_items: int, n_threads: int) -> None:
    """Call function(0), ..., function(n_items - 1), on up to n_threads threads."""
    if n_threads > 1 and n_items > 1:
        with ThreadPoolExecutor(min(n_threads, n_items), thread_name_prefix="scalefield") as pool:
            list(pool.map(function, range(n_items)))
    else:
        for item in range(n_items):
            function(item)
