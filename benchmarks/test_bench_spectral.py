"""The spectral engine against plain NumPy and SciPy on the same nodes, and the bars it has to meet.

Every group compares what a user would write from the theory with the call, on the same measure. Numbers in brackets are
the ratios; groups of one entry only time a call.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import solve_ivp

import scalefield as sf
from reference_closure import closure_reference, population_reference
from scalefield import quadrature, resolvent
from scalefield._measures import spectral_measure

TASK = sf.PowerLawSpectrum(1.5, 0.5)
MODEL = sf.Model(TASK, width=256, gamma=1.0, learning_rate=0.1, batch_size=32)
TIMES = np.geomspace(1e-2, 1e12, 100)


def flow_by_scipy(s: np.ndarray, mass: np.ndarray, atom: float, gamma: float, times: np.ndarray) -> np.ndarray:
    """dy/dtau = a s (1 - y) + b y in x = 1 - y over log tau, by LSODA with its Jacobian."""

    def scales(x: np.ndarray) -> tuple[float, float, float, np.ndarray]:
        y = 1.0 - x
        n = mass @ (y * y / s)
        root = math.sqrt(1.0 + 4.0 * gamma * n)
        return 0.5 * (1.0 + root), 2.0 * gamma / (1.0 + root), root, y

    def slope(log_tau: float, x: np.ndarray) -> np.ndarray:
        a, ratio, _, y = scales(x)
        b = ratio * (mass @ (y * x))
        return math.exp(log_tau) * (-a * s * x - b * y)

    def jacobian(log_tau: float, x: np.ndarray) -> np.ndarray:
        a, ratio, root, y = scales(x)
        b = ratio * (mass @ (y * x))
        n_x = -2.0 * mass * y / s
        b_x = ratio * mass * (y - x) - (mass @ (y * x)) * ratio**2 * n_x / root
        return math.exp(log_tau) * (np.diag(b - a * s) - np.outer(s * x, gamma * n_x / root) - np.outer(y, b_x))

    start = math.log(1e-6)
    y = -np.expm1(-s * math.exp(start))
    result = solve_ivp(
        slope, (start, math.log(times[-1])), 1.0 - y, "LSODA", np.log(times), rtol=1e-9, atol=1e-13, jac=jacobian
    )
    return result.y.T**2 @ mass + atom


@pytest.mark.parametrize("engine", ["package", "scipy"])
@pytest.mark.parametrize("width", [256, 10**6, math.inf])
def test_gradient_flow_over_fourteen_decades(benchmark, width, engine):
    """100 times, gamma 1, right to 1e-8: scipy on finished nodes, the package from the model. The bar: 50 ms."""
    model = MODEL.replace(width=width)
    real = sf.DeterministicEquivalent(TASK, width).measure().merged(1e18, 1e-9)
    solve = {
        "package": lambda: sf.solve_gradient_flow(model, TIMES).loss,
        "scipy": lambda: flow_by_scipy(real.source_eigenvalues, real.source_power, real.atom, 1.0, TIMES),
    }
    benchmark.group = f"gradient flow, width {width:g}"
    loss = benchmark.pedantic(solve[engine], rounds=1 if engine == "scipy" else 20, warmup_rounds=engine == "package")
    np.testing.assert_allclose(loss, solve["package"](), rtol=1e-7)


def lazy_in_numpy(model: sf.Model, measure: sf.SpectralMeasure, n_steps: int) -> np.ndarray:
    """y and V of theory section 7b at gamma = 0, step by step."""
    s, power, x, weights = measure.source_eigenvalues, measure.source_power, measure.eigenvalues, measure.weights
    keep, fresh, noise = (1.0 - model.learning_rate * x) ** 2, model.learning_rate**2 * x, weights * x
    unlearned, variance = np.ones_like(s), np.zeros_like(x)
    loss = np.empty(n_steps + 1)
    for t in range(n_steps + 1):
        loss[t] = power @ unlearned**2 + measure.atom + noise @ variance
        variance = keep * variance + fresh * (loss[t] / model.batch_size)
        unlearned *= 1.0 - model.learning_rate * s
    return loss


@pytest.mark.parametrize("engine", ["package", "numpy"])
def test_lazy_sgd(benchmark, engine):
    """100,000 steps at 200 log-spaced ones."""
    model, n_steps = MODEL.replace(gamma=0.0), 100_000
    measure = spectral_measure(model, None, 1e-12, 1e12).merged(1e4)
    steps = sf.solve_dmft(model, n_steps).steps
    solve = {
        "package": lambda: sf.solve_dmft(model, n_steps).loss,
        "numpy": lambda: lazy_in_numpy(model, measure, n_steps)[steps],
    }
    benchmark.group = "lazy SGD, 100,000 steps"
    loss = benchmark.pedantic(solve[engine], rounds=1 if engine == "numpy" else 20)
    np.testing.assert_allclose(loss, solve["package"](), rtol=1e-9)


@pytest.mark.parametrize(("gamma", "n_steps"), [(0.0, 10**6), (0.0, 10**8), (1.0, 10**8)])
def test_long_runs_of_order_0(benchmark, gamma, n_steps):
    """The bars: lazy 20 ms to 1e6 steps and 100 ms to 1e8, rich 300 ms to 1e8."""
    model = MODEL.replace(gamma=gamma)
    benchmark.group = "SGD in log time, 200 outputs"
    solution = benchmark.pedantic(
        lambda: sf.solve_dmft(model, n_steps, "closure", order=0), rounds=10, warmup_rounds=1
    )
    assert solution.steps.size == 201
    assert solution.steps[-1] == n_steps


@pytest.mark.parametrize("engine", ["package", "numpy"])
def test_population_descent(benchmark, engine):
    """Order 1 at infinite batch, 5,000 steps on the same nodes."""
    model = MODEL.replace(batch_size=math.inf)
    measure = spectral_measure(model, None, 1e-12, 1e12).merged(1e4)
    solve = {
        "package": lambda: sf.solve_dmft(model, 5_000).loss,
        "numpy": lambda: population_reference(measure, 5_000, learning_rate=0.1, gamma=1.0),
    }
    benchmark.group = "rich population descent, 5,000 steps"
    benchmark.extra_info["nodes"] = measure.source_eigenvalues.size
    loss = benchmark.pedantic(solve[engine], rounds=1 if engine == "numpy" else 5)
    np.testing.assert_allclose(loss, solve["package"](), rtol=1e-8)


@pytest.mark.parametrize("engine", ["package", "numpy"])
def test_closure_of_order_2(benchmark, engine):
    """20 steps; NumPy with whole blocks, as the theory states them."""
    measure = spectral_measure(MODEL, None, 1e-12, 1e12).merged(1e2, 1e-8)
    parameters = {"learning_rate": 0.1, "gamma": 1.0, "inverse_batch": 1.0 / 32.0}
    solve = {
        "package": lambda: sf.solve_dmft(MODEL, 20, "closure").loss,
        "numpy": lambda: closure_reference(measure, 20, order=2, **parameters)["loss"],
    }
    benchmark.group = "closure of order 2, 20 steps"
    benchmark.extra_info["nodes"] = measure.source_eigenvalues.size
    loss = benchmark.pedantic(solve[engine], rounds=1 if engine == "numpy" else 5)
    np.testing.assert_allclose(loss, solve["package"](), rtol=1e-6)


@pytest.mark.parametrize(("batch_size", "order"), [(math.inf, 1), (32, 2)])
def test_hundred_thousand_steps(benchmark, batch_size, order):
    """The bars: 20 s and 500 MB for order 1 at infinite batch, 2 minutes for order 2."""
    model = MODEL.replace(batch_size=batch_size)
    benchmark.group = "closures, 100,000 steps"
    solution = benchmark.pedantic(
        lambda: sf.solve_dmft(model, 100_000, "closure", order=order), rounds=3, warmup_rounds=0
    )
    assert solution.quadrature_error <= 1e-12


@pytest.mark.parametrize("width", [256, 10**6])
def test_nodes_of_the_average(benchmark, width):
    """Real nodes of both measures from nothing. The bars: 50 ms for N = 256, 1 s for N = 1e6."""

    def make() -> sf.SpectralMeasure:
        quadrature.power_law_nodes.cache_clear()
        return resolvent.DeterministicEquivalent(TASK, width).measure()

    benchmark.group = "spectral nodes, infinite spectrum"
    measure = benchmark.pedantic(make, rounds=3, warmup_rounds=1)
    benchmark.extra_info["nodes"] = measure.eigenvalues.size
    # tr X = tr Lambda on average
    assert measure.trace == pytest.approx(TASK.quadrature(rtol=1e-13).trace, rel=1e-10)
