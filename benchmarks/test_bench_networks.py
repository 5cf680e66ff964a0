"""Linear networks against plain NumPy: a step of SGD, and the law of a long training.

Groups compare the definition (A, w and samples as they stand, BLAS on one thread), the same in compiled code, and the
reduced run: the triangular factor of [A, w], and batches by their law.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.integrate import solve_ivp

import scalefield as sf
from reference_linear_networks import closed_descent
from scalefield._threads import single_threaded_blas
from scalefield.networks import solve_linear_network_flow, train_linear_network

# Width, modes, batch size: narrow, wide, and wider than the inputs are many.
SIZES = [(64, 1024, 32), (512, 512, 32), (4096, 512, 32), (512, 512, 1024)]
N_STEPS = 50


def in_numpy(task: sf.PowerLawSpectrum, width: int, batch_size: int, n_steps: int) -> float:
    """Definitions, with NumPy's own random numbers."""
    eigenvalues, target = task.modes(0, task.n_modes)
    rng, root = np.random.default_rng(0), np.sqrt(eigenvalues)
    a, w = rng.standard_normal((width, target.size)), rng.standard_normal(width)
    # In place: no more memory is moved than has to be.
    scale, rate = 1.0 / width, 0.05
    offset = scale * (w @ a)
    with single_threaded_blas():
        for _ in range(n_steps):
            error = target - (scale * (w @ a) - offset)
            x = rng.standard_normal((batch_size, target.size)) * root
            v = (x @ error) @ x / batch_size
            step = a @ v
            a += np.outer(rate * w, v)
            w += rate * step
    return float(eigenvalues @ (target - (scale * (w @ a) - offset)) ** 2)


@pytest.mark.parametrize("engine", ["numpy", "literal", "reduced"])
@pytest.mark.parametrize(("width", "n_modes", "batch_size"), SIZES)
def test_steps_of_sgd(benchmark, width, n_modes, batch_size, engine):
    """50 steps and the random weights before them; the reduction of wide networks is a part."""
    task = sf.PowerLawSpectrum(2.0, 0.5, n_modes=n_modes)

    def package(method: str) -> float:
        runs = train_linear_network(task, width, 1.0, 0.05, batch_size, N_STEPS, 1, 0, method, record=[N_STEPS])
        return float(runs.loss[0, 0])

    def solve() -> float:
        return in_numpy(task, width, batch_size, N_STEPS) if engine == "numpy" else package(engine)

    benchmark.group = f"linear network, N {width}, M {n_modes}, B {batch_size}, {N_STEPS} steps"
    loss = benchmark.pedantic(solve, rounds=3, warmup_rounds=1)
    # Other random numbers: the same loss within the scatter of runs.
    assert loss == pytest.approx(package("literal"), rel=0.5)


@pytest.mark.parametrize("engine", ["numpy", "package"])
def test_long_training(benchmark, engine):
    """2,000 steps, N 64, M 256, B 32."""
    task, n_steps = sf.PowerLawSpectrum(2.0, 0.5, n_modes=256), 2_000

    def package() -> float:
        return float(train_linear_network(task, 64, 1.0, 0.05, 32, n_steps, seed=0, record=[n_steps]).loss[0, 0])

    benchmark.group = f"linear network, N 64, M 256, B 32, {n_steps} steps"
    loss = benchmark.pedantic(
        (lambda: in_numpy(task, 64, 32, n_steps)) if engine == "numpy" else package, rounds=3, warmup_rounds=1
    )
    assert loss == pytest.approx(package(), rel=0.5)


@pytest.mark.parametrize("engine", ["numpy", "package"])
def test_population_descent(benchmark, engine):
    """Infinite width, M = 256, 1,000 steps; NumPy on (A^T w/N, |w|^2/N, A^T A/N)."""
    task = sf.PowerLawSpectrum(2.0, 0.5, n_modes=256)
    eigenvalues, target = task.modes(0, 256)

    def package() -> float:
        return float(train_linear_network(task, math.inf, 1.0, 0.05, math.inf, 1000, record=[1000]).loss[0, 0])

    def reference() -> float:
        with single_threaded_blas():
            return next(itertools.islice(closed_descent(eigenvalues, target, 1.0, 0.05, 1000), 1000, None))[3]

    benchmark.group = "linear network, infinite width and batch, M 256, 1,000 steps"
    loss = benchmark.pedantic(reference if engine == "numpy" else package, rounds=3, warmup_rounds=1)
    assert loss == pytest.approx(package(), rel=1e-9)


@pytest.mark.parametrize("engine", ["scipy", "package"])
def test_flow(benchmark, engine):
    """Gradient flow to tau = 1e6, 256 modes: SciPy in beta alone, given the spike, with its Jacobian by differences."""
    task, times = sf.PowerLawSpectrum(2.0, 0.5, n_modes=256), np.geomspace(1e-2, 1e6, 50)
    eigenvalues, target = task.modes(0, 256)

    def slope(log_tau: float, beta: np.ndarray) -> np.ndarray:
        v = eigenvalues * (target - beta)
        scale = 1.0 + math.sqrt(1.0 + beta @ beta)
        return math.exp(log_tau) * (scale * v + (beta @ v) / scale * beta)

    def by_scipy() -> np.ndarray:
        start = math.log(1e-6)
        beta = 2e-6 * eigenvalues * target
        path = solve_ivp(slope, (start, math.log(1e6)), beta, "LSODA", np.log(times), rtol=1e-8, atol=1e-11)
        return (target - path.y.T) ** 2 @ eigenvalues

    def package() -> np.ndarray:
        return solve_linear_network_flow(task, 1.0, times).loss

    benchmark.group = "linear network, gradient flow over 8 decades, M 256"
    loss = benchmark.pedantic(by_scipy if engine == "scipy" else package, rounds=3, warmup_rounds=1)
    kept = package() > 1e-8
    np.testing.assert_allclose(loss[kept], package()[kept], rtol=1e-5)


@pytest.mark.parametrize("threads", ["1", "2"])
@pytest.mark.parametrize("kind", ["cnn", "transformer"])
def test_runs_at_once(benchmark, monkeypatch, kind, threads):
    """Two runs with PyTorch, one after the other or at once."""
    pytest.importorskip("torch")
    monkeypatch.setenv("SCALEFIELD_NUM_THREADS", threads)
    call = {"n_runs": 2, "seed": 0, "dtype": "float32", "n_test": 64, "record": [0]}

    def train() -> float:
        if kind == "cnn":
            runs = sf.networks.train_vision_network(width=32, batch_size=64, n_steps=100, **call)
        else:
            runs = sf.networks.train_language_model(width=64, n_steps=40, **call)
        return float(runs.loss[1, 0])

    benchmark.group = f"two runs of a {kind}"
    assert benchmark.pedantic(train, rounds=3, warmup_rounds=1) > 0.0
