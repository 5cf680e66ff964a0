"""Offline gradient flow against the double contour integral in plain NumPy, and the bars it has to meet.

The reference solves the linear pair of theory section 7d at each pair of contour points, for modes listed one by one;
it serves gamma = 0 and two decades of time. Numbers in brackets are the ratios; groups of one entry only time a call.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

import scalefield as sf
from reference_offline import lazy_losses

TASK = sf.PowerLawSpectrum(1.5, 0.5)
TIMES = np.geomspace(1e-2, 1e12, 100)


@pytest.mark.parametrize(
    ("width", "n_samples"), [(math.inf, 10**6), (100, 40), (256, 1000), (10**6, 10**6), (10**8, 10**4)]
)
def test_average_over_fourteen_decades(benchmark, width, n_samples):
    """100 times, gamma 1, label noise 0.5, test loss to 1e-8. The bar: 500 ms."""
    model = sf.Model(TASK, width=width, n_samples=n_samples, gamma=1.0, label_noise=0.5)
    benchmark.group = f"offline flow, width {width:g}, {n_samples:g} samples"
    solution = benchmark.pedantic(sf.solve_gradient_flow, (model, TIMES), rounds=10, warmup_rounds=1)
    assert solution.quadrature_error <= 1e-8


@pytest.mark.parametrize("engine", ["package", "numpy"])
def test_lazy_average_of_few_modes(benchmark, engine):
    """60 modes, N = 40, P = 30, ten times up to 30."""
    model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5, n_modes=60), width=40, n_samples=30, label_noise=0.3)
    times = np.geomspace(0.1, 30.0, 10)
    solve = {
        "package": lambda: sf.solve_gradient_flow(model, times).loss,
        "numpy": lambda: lazy_losses(model, times, 800)[0],
    }
    benchmark.group = "lazy offline flow, 60 modes"
    loss = benchmark.pedantic(solve[engine], rounds=3, warmup_rounds=1)
    np.testing.assert_allclose(loss, solve["package"](), rtol=1e-6)


@pytest.mark.parametrize(("width", "n_samples", "n_modes"), [(256, 512, 10_000), (512, 256, 100_000)])
def test_realised_data_set(benchmark, width, n_samples, n_modes):
    """One A(0) and data set with all their modes, 100 times."""
    model = sf.Model(
        sf.PowerLawSpectrum(1.5, 0.5, n_modes=n_modes), width=width, n_samples=n_samples, gamma=1.0, label_noise=0.5
    )
    benchmark.group = f"realised offline flow, width {width}, {n_samples} samples, {n_modes} modes"
    solution = benchmark.pedantic(sf.solve_gradient_flow, (model, TIMES, 0), rounds=1, warmup_rounds=0)
    assert solution.train_loss[-1] < solution.train_loss[0]


@pytest.mark.parametrize("width", [100, 10_000])
def test_bottleneck_of_width_and_samples(benchmark, width):
    """Both sizes finite, an infinite spectrum."""
    benchmark.group = f"bottleneck, width {width}, 1000 samples"
    loss = benchmark(sf.bottleneck_loss, TASK, width=width, n_samples=1000, label_noise=0.5)
    assert loss > 0.0
