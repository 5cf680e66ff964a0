"""One A(0) for theory and simulation, also where far modes enter by the law of their sum; and the memory it takes.

Lazy population descent is linear: run 0 of a seed has the loss L(t) = mu((1 - eta s)^{2t}) + mu_0 with the source
measure of its own projection. Both sides are computed from S = A(0) Lambda A(0)^T in different ways (eigenvectors of S,
and QR decompositions of A(0) Lambda^{1/2}): rounding, some 1e-13 of the loss; 1e-11 is asked for.
"""

from __future__ import annotations

import math
import tracemalloc
from functools import partial

import numpy as np
import pytest

import scalefield as sf
from scalefield import _ensemble as ensemble
from scalefield import _projection
from scalefield.simulation.plan import Plan
from scalefield.simulation.reduced import Reduced

STEPS = [0, 1, 10, 100, 1000]


@pytest.mark.parametrize(("n_modes", "alpha"), [(None, 1.5), (None, 1.1), (10**8, 1.2), (10**8, 0.8), (2**20 + 1, 1.2)])
def test_theory_of_a_projection_predicts_its_run(n_modes, alpha):
    """Far modes carry 3e-4 (alpha = 1.5) to nine tenths (alpha = 0.8) of the trace here."""
    spectrum = sf.PowerLawSpectrum(alpha, 0.5, n_modes)
    model = sf.Model(spectrum, width=12, gamma=0.0, batch_size=math.inf)
    model = model.replace(learning_rate=0.3 * model.stability_bound)
    run = sf.simulate(model, 1000, n_runs=2, seed=8, record=STEPS)
    assert run.method == "reduced"
    measure = sf.SpectralMeasure.from_projection(spectrum, 12, 8)
    decay = (1.0 - model.learning_rate * measure.source_eigenvalues) ** (2 * run.steps[:, None])
    expected = measure.atom + decay @ measure.source_power
    np.testing.assert_allclose(run.loss[0], expected, rtol=1e-11)
    # Another run has another projection.
    assert (np.abs(run.loss[1, 1:] / expected[1:] - 1.0) > 1e-6).all()


@pytest.mark.parametrize(("kept", "width"), [(256, 12), (256, 100), (40, 30), (8, 20)])
def test_measure_with_far_modes_against_dense_matrices(monkeypatch, kept, width):
    """Few modes one by one (fewer than features, too), against eigenvectors of the dense S and the source weights."""
    monkeypatch.setattr(_projection, "MOST_MODES", kept)
    monkeypatch.setattr(_projection, "HEAD", kept)
    spectrum = sf.PowerLawSpectrum(1.3, 0.6, n_modes=10**6)
    eigenvalues, target = spectrum.modes(0, kept)
    a = _projection.projection_rows(5, 0, 0, kept, width).T
    covariance, b = (a * eigenvalues) @ a.T, a @ (eigenvalues * target)
    assert _projection.add_far_modes(spectrum, 5, 0, covariance, b) > 0.0
    e, vectors = np.linalg.eigh(covariance)
    weights = (vectors.T @ b)[::-1] ** 2 / e[::-1]
    measure = sf.SpectralMeasure.from_projection(spectrum, width, 5)
    # Condition numbers of S up to 1e4: some 1e-12 of the small ones.
    np.testing.assert_allclose(measure.eigenvalues, e[::-1] / width, rtol=1e-10)
    np.testing.assert_allclose(measure.source_power, weights, rtol=1e-8, atol=1e-13)
    assert measure.total_power == pytest.approx(spectrum.total_target_power, rel=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_gradient_flow_of_an_infinite_spectrum_predicts_its_run(gamma):
    """Steps of eta = 1/40 and 1/80 with the same projection: errors of first order, halved with the step.

    They are 5e-3 of the loss at first and 3e-4 at the end here; second-order terms are eta s_1, some 3%, of them. So
    the flow of another projection, or a tail amiss by 1e-4 of the loss, would show.
    """
    model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5), width=24, gamma=gamma, batch_size=math.inf)
    times = np.array([0.5, 2.0, 8.0])
    flow = sf.solve_gradient_flow(model, times, projection=3).loss
    coarse, fine = (
        sf.simulate(model.replace(learning_rate=eta), round(8.0 / eta), seed=3, record=np.rint(times / eta)).loss[0]
        for eta in (1.0 / 40.0, 1.0 / 80.0)
    )
    first = coarse - flow
    assert (np.abs(first) > 1e-4 * flow).all()
    np.testing.assert_allclose(first, 2.0 * (fine - flow), rtol=0.1)


def test_errors_of_the_last_modes_that_are_drawn():
    """Of infinitely many, and of as many as are all drawn; those beyond are refused (tests/test_reduced.py)."""
    model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5), width=4, batch_size=4)
    last = _projection.HEAD - 1
    assert sf.simulate(model, 2, seed=0, modes=[0, last]).mode_errors.shape == (1, 3, 2)
    small = model.replace(spectrum=sf.PowerLawSpectrum(1.5, 0.5, last + 2))
    assert sf.simulate(small, 2, seed=0, method="reduced", modes=[last + 1]).mode_errors.shape == (1, 3, 1)


def test_memory_of_reduced_runs_does_not_grow_with_the_batch():
    """But for two numbers a sample, its error and its noise."""
    sizes = {}
    for batch_size in (4, 4_000_000):
        model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5, 3000), width=100, batch_size=batch_size)
        engine = Reduced(
            Plan(model, 1, 1, 0, "reduced", np.arange(2), np.dtype(np.float64)), np.zeros(1, dtype=np.uint8)
        )
        sizes[batch_size] = engine.bytes_per_worker
    assert sizes[4_000_000] - sizes[4] == 8 * 2 * (4_000_000 - 4)


OBSERVED = [{}, {"modes": [0]}, {"statistics": "alignment"}, {"statistics": ("spike", "weight_norm"), "modes": [3, 5]}]


@pytest.mark.parametrize("options", OBSERVED, ids=["loss", "modes", "alignment", "spike and modes"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("method", ["literal", "reduced"])
def test_memory_taken_is_what_was_asked_for(monkeypatch, method, dtype, options):
    """The peak of what is allocated, against what is required of the machine before; 1 MiB for everything small.

    A(0) of 9,000 x 400 is 27 MiB in double precision: a copy of it, or a 400 x 400 matrix more (1.2 MiB), would show.
    """
    required: list[int] = []
    monkeypatch.setattr(ensemble, "require_memory", lambda needed, what: required.append(needed))
    monkeypatch.setenv("SCALEFIELD_NUM_THREADS", "2")
    model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5, 9000), width=400, gamma=1.0, batch_size=8)
    call = partial(sf.simulate, model, 3, seed=0, method=method, dtype=dtype, **options)
    # Kernels are loaded and nodes kept by a first call.
    call()
    tracemalloc.start()
    try:
        call()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < required[-1] + 2**20, (peak / 2**20, required[-1] / 2**20)
    assert peak > 0.5 * required[-1]
