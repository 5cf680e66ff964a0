"""Spectra of kernels against SciPy's eigh, and what a Gram matrix costs beside them.

Groups compare the package with ``scipy.linalg.eigh`` (driver evd, overwriting) and the projections of the target.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import eigh

import scalefield as sf


def images(n, dimension=256):
    """Inputs of norm sqrt(D) in a few directions more than others."""
    rng = np.random.default_rng(0)
    return sf.datasets.preprocess(rng.standard_normal((n, dimension)) * np.arange(1, dimension + 1) ** -0.5)


def with_scipy(kernel, y):
    n = len(y)
    means = kernel.mean(axis=0)
    matrix = (kernel - means - means[:, None] + means.mean()) / n
    values, vectors = eigh(matrix.T, driver="evd", overwrite_a=True, check_finite=False)
    return values[::-1], ((vectors.T @ (y - y.mean())) ** 2 / n)[::-1]


@pytest.mark.parametrize("engine", ["package", "scipy"])
def test_spectrum_of_eight_hundred(benchmark, engine):
    compare(benchmark, 800, engine)


@pytest.mark.parametrize("engine", ["package", "scipy"])
def test_spectrum_of_four_thousand(benchmark, engine):
    """The bar: as fast as one eigh."""
    compare(benchmark, 4000, engine)


def compare(benchmark, n, engine):
    kernel = sf.kernels.InfiniteWidthKernel("relu", depth=2).gram(images(n))
    y = np.sign(images(n)[:, 0])
    benchmark.group = f"spectrum of a kernel, n = {n}"
    solve = {"package": sf.Spectrum.from_kernel, "scipy": with_scipy}[engine]
    result = benchmark.pedantic(solve, (kernel, y), rounds=2 if n == 4000 else 5, warmup_rounds=int(n < 4000))
    if engine == "package" and n < 4000:
        values, power = with_scipy(kernel, y)
        np.testing.assert_allclose(result.eigenvalues, values[: result.n_modes], rtol=0, atol=1e-12 * values[0])
        np.testing.assert_allclose(np.cumsum(result.target_power)[[9, 99]], np.cumsum(power)[[9, 99]], rtol=1e-6)


def test_gram_matrix_of_four_thousand(benchmark):
    """It has to cost less than the spectrum."""
    x = images(4000)
    benchmark.group = "spectrum of a kernel, n = 4000"
    benchmark.pedantic(sf.kernels.InfiniteWidthKernel("relu", depth=2).gram, (x,), rounds=2)


@pytest.mark.parametrize("n_modes", [50])
def test_leading_modes(benchmark, n_modes):
    """By Lanczos, n = 800, with the tail."""
    kernel = sf.kernels.InfiniteWidthKernel("relu", depth=2).gram(images(800))
    y = np.sign(images(800)[:, 0])
    benchmark.group = f"{n_modes} leading modes, n = 800"
    spectrum = benchmark.pedantic(sf.Spectrum.from_kernel, (kernel, y), {"n_modes": n_modes}, rounds=3)
    assert spectrum.n_modes == 799


def test_exponents(benchmark):
    spectrum = sf.datasets.digits_spectrum()
    benchmark.group = "fit of alpha and beta, digits"
    fit = benchmark.pedantic(sf.kernels.fit_source_capacity, (spectrum,), {"n_samples": 1797}, rounds=5)
    assert fit.is_power_law
