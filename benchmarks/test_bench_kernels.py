"""Kernels of infinitely wide networks: Gram matrices against plain NumPy, and the bar of one eigh of the same size.

Every group compares what a user would write from the arc-cosine formulas with the call.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import linalg

from scalefield.kernels import InfiniteWidthKernel, circle_eigenvalues, empirical_ntk

DIMENSION = 784
SIZES = [pytest.param(400, id="four-hundred"), pytest.param(4000, id="four-thousand")]


def inputs(n: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, DIMENSION))


def relu_in_numpy(x: np.ndarray, depth: int) -> np.ndarray:
    """Whole matrices, as the formulas stand."""
    sigma = x @ x.T / x.shape[1]
    theta = sigma
    for _ in range(depth):
        variance = np.diag(sigma)
        scale = np.sqrt(np.outer(variance, variance))
        rho = np.clip(sigma / scale, -1.0, 1.0)
        angle = np.arccos(rho)
        sigma = scale * (np.sin(angle) + (math.pi - angle) * rho) / math.pi
        theta = sigma + (math.pi - angle) / math.pi * theta
    return theta


@pytest.mark.parametrize("engine", ["package", "numpy", "eigh"])
@pytest.mark.parametrize("n", SIZES)
def test_gram(benchmark, n, engine):
    """ReLU NTK, two hidden layers. The bar: less than one eigh of the same matrix."""
    x = inputs(n)
    kernel = InfiniteWidthKernel("relu", depth=2)
    gram = kernel(x)
    call = {
        "package": lambda: kernel(x),
        "numpy": lambda: relu_in_numpy(x, 2),
        "eigh": lambda: linalg.eigh(gram),
    }[engine]
    benchmark.group = f"Gram matrix, n = {n}, {DIMENSION} features"
    result = benchmark.pedantic(call, rounds=1 if engine == "eigh" else 3, warmup_rounds=engine != "eigh")
    if engine == "numpy":
        # arccos loses half the digits on the diagonal
        np.testing.assert_allclose(result, gram, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    "kernel",
    [
        pytest.param(InfiniteWidthKernel("relu", power, depth=2, bias_variance=0.1), id=f"relu^{power}")
        for power in (2, 3, 1.5)
    ]
    + [
        pytest.param(InfiniteWidthKernel(name, depth=2, bias_variance=0.1), id=name)
        for name in ("erf", "gelu", "tanh")
    ],
)
@pytest.mark.parametrize("n", SIZES)
def test_other_activations(benchmark, n, kernel):
    """Two hidden layers with biases; gelu and tanh with the making of their tables in the first round."""
    x = inputs(n)
    benchmark.group = f"Gram matrix, other activations, n = {n}"
    gram = benchmark.pedantic(lambda: kernel(x), rounds=2)
    assert gram.shape == (n, n)


@pytest.mark.parametrize("power", [1, 3])
def test_circle(benchmark, power):
    """Eigenvalues to k = 1e5, right to 1e-12 at each."""
    benchmark.group = "circle, k to 1e5"
    kernel = InfiniteWidthKernel("relu", power, depth=2)
    modes = benchmark.pedantic(lambda: circle_eigenvalues(kernel), rounds=5, warmup_rounds=1)
    assert (modes.errors < 1e-11 * modes.eigenvalues).all()


@pytest.mark.parametrize("engine", ["package", "numpy"])
def test_empirical(benchmark, engine):
    """500 gradients of 2e4 parameters in float32; NumPy's product is in float32, too."""
    gradients = np.random.default_rng(1).standard_normal((500, 20_000)).astype(np.float32)
    benchmark.group = "empirical NTK, n = 500, 20,000 parameters"
    call = {"package": lambda: empirical_ntk(gradients), "numpy": lambda: gradients @ gradients.T}[engine]
    benchmark.pedantic(call, rounds=3, warmup_rounds=1)
