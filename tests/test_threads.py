"""BLAS held to one thread, also by several calls at a time."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import scalefield as sf
from scalefield._threads import single_threaded_blas


def blas_threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


@pytest.fixture(autouse=True)
def _two_threads():
    """Whatever the machine has and other tests have left."""
    with threadpool_limits(2, user_api="blas"):
        assert blas_threads() == {2}
        yield


def test_blocks_may_be_nested():
    with single_threaded_blas():
        with single_threaded_blas():
            assert blas_threads() == {1}
        assert blas_threads() == {1}
    assert blas_threads() == {2}


def test_errors_give_the_threads_back():
    with pytest.raises(RuntimeError), single_threaded_blas():
        raise RuntimeError
    assert blas_threads() == {2}


def test_other_threads_may_hold_it():
    """Though the main thread has set a limit of its own."""
    seen: list[set[int]] = []

    def hold() -> None:
        with single_threaded_blas():
            seen.append(blas_threads())

    for _ in range(2):
        thread = threading.Thread(target=hold)
        thread.start()
        thread.join()
        assert blas_threads() == {2}
    assert seen == [{1}, {1}]


def test_blocks_that_overlap():
    """The first one ends within the second: one thread until both have."""
    began, may_end = threading.Event(), threading.Event()

    def first() -> None:
        with single_threaded_blas():
            began.set()
            may_end.wait()

    thread = threading.Thread(target=first)
    thread.start()
    began.wait()
    with single_threaded_blas():
        may_end.set()
        thread.join()
        assert blas_threads() == {1}
    assert blas_threads() == {2}


def test_reduced_runs_at_the_same_time_have_their_own_numbers():
    """Calls of different length end while others diagonalise, whose products two threads would round otherwise."""
    model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5, 3000), width=300, gamma=1.0, batch_size=8)
    lengths = (2, 5, 30, 80)
    expected = {n: sf.simulate(model, n, seed=1, method="reduced").loss for n in lengths}
    found: list[tuple[int, np.ndarray]] = []

    def call(n: int) -> None:
        for _ in range(3):
            found.append((n, sf.simulate(model, n, seed=1, method="reduced").loss))

    threads = [threading.Thread(target=call, args=(n,)) for n in lengths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 12
    for n, loss in found:
        np.testing.assert_array_equal(loss, expected[n])
    assert blas_threads() == {2}
