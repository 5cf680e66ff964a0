"""Threads: how many to use, and BLAS held to one thread inside our own parallel loops."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

__all__ = ["share", "single_threaded_blas", "thread_count"]


@cache
def _controller() -> Any:
    # Scanning the loaded libraries takes milliseconds, so it is done once; numpy and scipy, whose BLAS
    # are the ones called, are loaded by then.
    import scipy.linalg.cython_blas  # noqa: F401
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Hold every BLAS of the process to one thread for the duration of the block."""
    with _controller().limit(limits=1, user_api="blas"):
        yield


def thread_count() -> int:
    """Threads for our own loops: SCALEFIELD_NUM_THREADS if set, else the cores this process may use."""
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
