"""The two-time solver against the plain NumPy march of the tests, and quadrature against summing modes.

Groups whose name says "same nodes" compare kernels: both engines march the same Q nodes, BLAS as each finds it
(NumPy's on all cores, the package's on one a thread). The group "whole call" compares what a user would write
(the march over the quadrature nodes of theory section 5) with the call. Numbers in brackets are the ratios.
"""

from __future__ import annotations

import numpy as np
import pytest

import scalefield as sf
from reference_dmft import march_offline_reference, march_reference
from scalefield.dmft import two_time
from scalefield.dmft.spectral import solve_spectral
from scalefield.resolvent import DeterministicEquivalent

MODEL = sf.Model(sf.PowerLawSpectrum(1.5, 0.5), width=256, gamma=1.0, learning_rate=0.1, batch_size=32)
PARAMETERS = {"width": 256, "gamma": 1.0, "learning_rate": 0.1, "batch_size": 32}


def nodes_of_the_march(n_steps: int) -> sf.SpectralNodes:
    """The nodes to which the solver merges the infinite spectrum, with the power law's target on them."""
    measures = two_time.mode_measures(MODEL, None, two_time.initial_effective_time(MODEL, n_steps, None), 1e-12)
    target_power = measures.eigenvalue ** (MODEL.spectrum.beta + 1.0 / MODEL.spectrum.alpha)
    return sf.SpectralNodes(measures.eigenvalue, target_power, measures.weight)


def march_in_numpy(nodes: sf.SpectralNodes, n_steps: int) -> np.ndarray:
    return march_reference(nodes.eigenvalues, nodes.target_power, nodes.weights, n_steps, **PARAMETERS)["loss"]


@pytest.mark.parametrize("engine", ["package", "numpy"])
@pytest.mark.parametrize("n_steps", [100, 200, 500, 1000])
def test_march_on_the_same_nodes(benchmark, n_steps, engine):
    nodes = nodes_of_the_march(n_steps)
    solve = {
        "package": lambda: sf.solve_dmft(MODEL, n_steps, nodes=nodes).loss,
        "numpy": lambda: march_in_numpy(nodes, n_steps),
    }
    # Agreement first: the first 50 steps are the same whatever follows.
    short = sf.solve_dmft(MODEL, 50, nodes=nodes).loss
    np.testing.assert_allclose(short, march_in_numpy(nodes, 50), rtol=1e-10)
    benchmark.group = f"march, {n_steps} steps, same nodes"
    benchmark.extra_info["nodes"] = len(nodes)
    slow = engine == "numpy" and n_steps >= 500
    loss = benchmark.pedantic(solve[engine], rounds=1 if slow else 5, warmup_rounds=0 if slow else 1)
    np.testing.assert_allclose(loss[:51], short, rtol=1e-9)


@pytest.mark.parametrize("engine", ["package", "numpy"])
@pytest.mark.parametrize("n_steps", [200, 500])
def test_whole_call(benchmark, n_steps, engine):
    """The infinite spectrum, from the model to the learning curve."""
    nodes = MODEL.spectrum.quadrature(rtol=1e-10, horizon=1e4)
    solve = {
        "package": lambda: sf.solve_dmft(MODEL, n_steps, "two-time").loss,
        "numpy": lambda: march_in_numpy(nodes, n_steps),
    }
    benchmark.group = f"whole call, {n_steps} steps of the infinite spectrum"
    benchmark.extra_info["nodes in numpy"] = len(nodes)
    slow = engine == "numpy" and n_steps >= 500
    loss = benchmark.pedantic(solve[engine], rounds=1 if slow else 5, warmup_rounds=0 if slow else 1)
    np.testing.assert_allclose(loss, solve["package"](), rtol=1e-8)


@pytest.mark.parametrize("n_modes", [None, 10**6], ids=["infinite", "1e6 modes"])
def test_thousand_steps(benchmark, n_modes):
    """The bar: 1,000 steps in 10 s."""
    model = MODEL.replace(spectrum=sf.PowerLawSpectrum(1.5, 0.5, n_modes))
    benchmark.group = "1,000 steps, whole call"
    solution = benchmark.pedantic(lambda: sf.solve_dmft(model, 1000, "two-time"), rounds=3, warmup_rounds=1)
    assert solution.quadrature_error < 1e-11


@pytest.mark.parametrize("form", ["spectral", "two-time"])
@pytest.mark.parametrize("n_steps", [500, 1000, 2000])
def test_spectral_form(benchmark, n_steps, form):
    """One theory in two forms; the spectral one from the finished measure. The bar: 2,000 steps in 20 s."""
    measure = DeterministicEquivalent(MODEL.spectrum, MODEL.width).measure()
    solve = {
        "spectral": lambda steps: solve_spectral(MODEL, steps, measure, 1e-12, None),
        "two-time": lambda steps: sf.solve_dmft(MODEL, steps, "two-time"),
    }
    np.testing.assert_allclose(solve["spectral"](100).loss, solve["two-time"](100).loss, rtol=1e-10)
    benchmark.group = f"forms of the theory, {n_steps} steps"
    solution = benchmark.pedantic(lambda: solve[form](n_steps), rounds=3 if n_steps <= 1000 else 1)
    benchmark.extra_info["nodes"] = solution.n_nodes
    assert solution.quadrature_error < 1e-11


def test_four_thousand_steps(benchmark):
    """The bar: 3 minutes."""
    measure = DeterministicEquivalent(MODEL.spectrum, MODEL.width).measure()
    benchmark.group = "4,000 steps, spectral form"
    benchmark.pedantic(lambda: solve_spectral(MODEL, 4000, measure, 1e-12, None), rounds=1)


@pytest.mark.parametrize("engine", ["quadrature", "all modes"])
def test_sum_over_a_million_modes(benchmark, engine):
    spectrum = sf.PowerLawSpectrum(1.5, 0.5, n_modes=10**6)

    def with_nodes() -> float:
        nodes = spectrum.quadrature()
        return float((nodes.weights * nodes.target_power) @ np.exp(-100.0 * nodes.eigenvalues))

    def with_all_modes() -> float:
        eigenvalues, w = spectrum.modes(0, spectrum.n_modes)
        return float((eigenvalues * w**2) @ np.exp(-100.0 * eigenvalues))

    assert abs(with_nodes() - with_all_modes()) < 1e-10 * with_all_modes()
    benchmark.group = "sum over a million modes"
    # Nodes are kept from call to call: this is the cost of every sum after the first.
    benchmark({"quadrature": with_nodes, "all modes": with_all_modes}[engine])


def test_making_nodes(benchmark):
    from scalefield.quadrature import power_law_nodes

    benchmark.group = "nodes of an infinite spectrum, first call"

    def make() -> int:
        power_law_nodes.cache_clear()
        return len(MODEL.spectrum.quadrature())

    assert benchmark(make) > 60


@pytest.mark.parametrize("label_noise", [0.0, 0.5])
def test_offline_thousand_steps(benchmark, label_noise):
    """Full batches of 1,000 samples, infinite spectrum. The bar: 20 s and 4 GiB."""
    model = MODEL.replace(batch_size=np.inf, n_samples=1000, label_noise=label_noise)
    benchmark.group = "offline, 1,000 steps, whole call"
    solution = benchmark.pedantic(lambda: sf.solve_dmft(model, 1000), rounds=3)
    benchmark.extra_info["nodes"] = solution.n_nodes
    assert solution.quadrature_error < 1e-11


@pytest.mark.parametrize("engine", ["package", "numpy"])
def test_offline_march_on_the_same_nodes(benchmark, engine):
    """200 steps; NumPy with commuting responses, as the package."""
    model = MODEL.replace(batch_size=np.inf, n_samples=1000)
    nodes = nodes_of_the_march(200)
    parameters = {"width": 256, "gamma": 1.0, "learning_rate": 0.1, "n_samples": 1000}
    solve = {
        "package": lambda: sf.solve_dmft(model, 200, nodes=nodes).loss,
        "numpy": lambda: march_offline_reference(
            nodes.eigenvalues, nodes.target_power, nodes.weights, 200, **parameters
        )["loss"],
    }
    benchmark.group = "offline march, 200 steps, same nodes"
    benchmark.extra_info["nodes"] = len(nodes)
    loss = benchmark.pedantic(solve[engine], rounds=1 if engine == "numpy" else 5)
    np.testing.assert_allclose(loss, solve["package"](), rtol=1e-9)
