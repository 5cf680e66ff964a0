"""Sweeps: measured rich exponents over (alpha, beta), and what a point costs besides its function.

The exponent is the local one of gradient flow at infinite width, gamma = 1 and tau = 1e10; the plain entry calls the
same function in a loop. The bar: 64 x 64 points in 60 s on 2 cores.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest

import scalefield as sf

xarray = pytest.importorskip("xarray")

TAU = 1e10


def rich_exponent(model: sf.Model) -> float:
    """-d log L/d log tau at TAU."""
    return float(sf.solve_gradient_flow(model, [TAU], rtol=1e-6).local_exponent[0])


def diagram_grid(n: int) -> dict[str, np.ndarray]:
    """Trace-class kernels, hard and easy tasks."""
    return {"alpha": np.linspace(1.1, 4.0, n), "beta": np.linspace(0.1, 2.5, n)}


def predicted(beta: xarray.DataArray) -> xarray.DataArray:
    """beta max(1, 2/(1 + beta)), arXiv:2409.17858, Eq. 10."""
    return beta * np.maximum(1.0, 2.0 / (1.0 + beta))


def measure(n: int, folder) -> xarray.Dataset:
    """The diagram by two fresh processes, their start included, every point stored."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as processes:
        return sf.sweep(rich_exponent, diagram_grid(n), processes, settings={"gamma": 1.0}, store=folder / str(n))


def check(diagram: xarray.Dataset, n: int) -> None:
    assert (diagram.status == "finished").all()
    assert diagram.value.shape == (n, n)
    # Finite time: far from beta = 1, where the crossover takes ever longer, 1e10 is late enough.
    error = np.abs(diagram.value - predicted(diagram.beta))
    far = np.abs(diagram.beta - 1.0) > 0.3
    assert float(error.where(far).max()) < 0.02


def test_exponent_diagram_small(benchmark, tmp_path):
    """6 x 6 points."""
    benchmark.group = "exponent diagram, 6 x 6"
    check(benchmark.pedantic(measure, (6, tmp_path), rounds=1), 6)


def test_exponent_diagram_of_four_thousand_points(benchmark, tmp_path):
    """64 x 64 points; the bar: 60 s."""
    benchmark.group = "exponent diagram, 64 x 64"
    check(benchmark.pedantic(measure, (64, tmp_path), rounds=1), 64)


def nothing(x: int) -> float:
    return 0.5 * x


@pytest.mark.parametrize("how", ["loop", "sweep", "threads", "stored"])
def test_cost_of_a_point(benchmark, how, tmp_path):
    """400 points of a function that does nothing."""
    grid = {"x": range(400)}
    folders = iter(range(1_000))

    def by_threads():
        with ThreadPoolExecutor(2) as threads:
            return sf.sweep(nothing, grid, threads)

    run = {
        "loop": lambda: [nothing(x) for x in grid["x"]],
        "sweep": lambda: sf.sweep(nothing, grid),
        "threads": by_threads,
        "stored": lambda: sf.sweep(nothing, grid, store=tmp_path / str(next(folders))),
    }[how]
    benchmark.group = "400 points that cost nothing"
    found = benchmark.pedantic(run, rounds=5, warmup_rounds=1)
    values = found if how == "loop" else found.value.values
    np.testing.assert_array_equal(values, 0.5 * np.arange(400))
