r"""Spectral measures of one realised projection, and measures with fewer nodes.

Theory. X = Lambda^{1/2} (A^T A/N) Lambda^{1/2} for the A(0) of run 0 of a simulation. Oracles:

* dense singular values of Lambda^{1/2} A^T/sqrt(N), with A(0) filled by the simulation's own kernel;
* moments: tr X = sum_k lambda_k |a_k|^2/N, <u, X u> = |A Lambda w*|^2/N, |u|^2 = mass and atom together;
* the exact loss of a run of population gradient descent, mu((1 - eta s)^{2t}) + atom, from `simulate`.
"""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import scalefield as sf
from scalefield import spectral_measure
from scalefield._native import literal_steps, rng
from scalefield.errors import InsufficientMemoryError
from scalefield.spectral_measure import SpectralMeasure
from strategies import explicit_spectra


def initial_projection(n_modes, width, seed):
    """A(0)^T of run 0, shape (M, N)."""
    projection = np.empty((n_modes, width), np.float32)
    key = rng.stream_key(seed, rng.PROJECTION)
    literal_steps.fill_projection(*key, 0, 0, np.zeros(1, np.uint8), projection)
    return projection.astype(np.float64)


def dense_measure(spectrum, width, seed):
    """Eigenvalues, source weights, |u|^2, tr X, <u, X u> from whole matrices."""
    eigenvalues, coefficients = spectrum.modes(0, spectrum.n_modes)
    projection = initial_projection(spectrum.n_modes, width, seed)
    features = np.sqrt(eigenvalues)[:, None] * projection / math.sqrt(width)
    u = np.sqrt(eigenvalues) * coefficients
    left, singular, _ = np.linalg.svd(features, full_matrices=False)
    rank = min(width, np.count_nonzero(eigenvalues))
    moments = u @ u, np.sum(features**2), np.sum((features.T @ u) ** 2)
    return singular[:rank] ** 2, (left.T @ u)[:rank] ** 2, moments


def check_against_dense(spectrum, width, seed=3):
    measure = SpectralMeasure.from_projection(spectrum, width, seed)
    s, weights, (power, trace, first) = dense_measure(spectrum, width, seed)
    np.testing.assert_allclose(measure.eigenvalues, s, rtol=1e-12, atol=0)
    np.testing.assert_array_equal(measure.source_eigenvalues, measure.eigenvalues)
    np.testing.assert_array_equal(measure.weights, 1.0)
    np.testing.assert_allclose(measure.source_power, weights, rtol=1e-9, atol=1e-14 * power)
    assert measure.total_power == pytest.approx(power, rel=1e-13, abs=0)
    assert measure.trace == pytest.approx(trace, rel=1e-13, abs=0)
    assert measure.source_power @ measure.source_eigenvalues == pytest.approx(first, rel=1e-12, abs=0)
    assert measure.error == 0.0
    return measure


@pytest.mark.parametrize(
    ("n_modes", "width"),
    [(1, 1), (1, 5), (50, 1), (65, 64), (64, 64), (64, 65), (100, 64), (300, 64), (1000, 64), (64, 127), (64, 300)],
)
@pytest.mark.parametrize(("alpha", "beta"), [(0.7, 0.6), (1.5, 0.5), (1.5, 2.0), (3.0, 0.3)])
def test_power_laws_against_dense_matrices(n_modes, width, alpha, beta):
    measure = check_against_dense(sf.PowerLawSpectrum(alpha, beta, n_modes), width)
    assert (measure.atom == 0.0) == (width >= n_modes)


@pytest.mark.parametrize(("n_modes", "width"), [(200, 30), (30, 40), (30, 30), (30, 200)])
def test_steep_spectra_keep_the_digits_of_small_eigenvalues(n_modes, width):
    """lambda down to 1e-12 and below: a matrix A Lambda A^T would have lost every digit of the smallest s."""
    check_against_dense(sf.PowerLawSpectrum(8.0, 1.0, n_modes), width)


@pytest.mark.parametrize("width", [1, 3, 7, 8, 9, 12, 40])
def test_ties_and_zeros(width):
    spectrum = sf.Spectrum([1, 0, 1, 0.5, 0.5, 0, 1e-3, 1e-3, 1e-6, 0], [1, 2, 3, -4, 5, 6, 0, 8, 9, 1])
    measure = check_against_dense(spectrum, width)
    # Seven modes carry power.
    assert measure.eigenvalues.size == min(width, 7)
    assert (measure.atom == 0.0) == (width >= 7)


@settings(max_examples=60)
@given(spectrum=explicit_spectra(max_modes=12), width=st.integers(1, 20), seed=st.integers(0, 2**63 - 1))
def test_any_task(spectrum, width, seed):
    measure = SpectralMeasure.from_projection(spectrum, width, seed)
    positive = int(np.count_nonzero(spectrum.eigenvalues))
    _, _, (power, trace, _) = dense_measure(spectrum, width, seed)
    assert measure.eigenvalues.size == min(width, positive)
    assert (measure.eigenvalues > 0.0).all()
    assert measure.total_power == pytest.approx(power, rel=1e-12, abs=1e-300)
    assert measure.trace == pytest.approx(trace, rel=1e-12, abs=0)
    assert width < positive or measure.atom <= 1e-300


def test_a_small_atom_has_digits():
    """min_c sum_k lambda_k (w*_k - a_k . c)^2 by Gaussian elimination of rational numbers, exact."""
    spectrum = sf.PowerLawSpectrum(8.0, 1.0, 40)
    measure = SpectralMeasure.from_projection(spectrum, 6, seed=1)
    eigenvalues, coefficients = spectrum.modes(0, 40)
    features = initial_projection(40, 6, 1)
    rows = [[*map(Fraction, features[k].tolist()), Fraction(float(coefficients[k]))] for k in range(40)]
    weight = [Fraction(float(value)) for value in eigenvalues]
    gram = [[sum(c * r[i] * r[j] for c, r in zip(weight, rows, strict=True)) for j in range(7)] for i in range(7)]
    for i in range(6):
        for j in range(i + 1, 7):
            factor = gram[j][i] / gram[i][i]
            gram[j] = [b - factor * a for a, b in zip(gram[i], gram[j], strict=True)]
    assert float(gram[6][6]) < 1e-5 * measure.total_power
    assert measure.atom == pytest.approx(float(gram[6][6]), rel=1e-12, abs=0)


@pytest.mark.parametrize(("n_modes", "width"), [(40, 10), (10, 10), (10, 16), (200, 4), (10, 64)])
def test_it_is_the_projection_of_the_simulation(n_modes, width):
    """Population gradient descent of a lazy run: mu((1 - eta s)^{2t}) + atom, digit by digit."""
    spectrum = sf.PowerLawSpectrum(1.5, 0.5, n_modes)
    model = sf.Model(spectrum, width=width, learning_rate=0.2)
    simulation = sf.simulate(model, n_steps=50, seed=11)
    measure = SpectralMeasure.from_projection(spectrum, width, 11)
    decay = (1.0 - 0.2 * measure.source_eigenvalues) ** (2 * simulation.steps[:, None])
    np.testing.assert_allclose(simulation.loss[0], decay @ measure.source_power + measure.atom, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("n_modes", "width"), [(5000, 20), (90, 20), (20, 1000), (20, 30)])
def test_blocks_do_not_matter(n_modes, width, monkeypatch):
    spectrum = sf.PowerLawSpectrum(1.5, 0.5, n_modes)
    whole = SpectralMeasure.from_projection(spectrum, width, 5)
    again = SpectralMeasure.from_projection(spectrum, width, 5)
    np.testing.assert_array_equal(whole.eigenvalues, again.eigenvalues)
    np.testing.assert_array_equal(whole.source_power, again.source_power)
    assert whole.atom == again.atom
    monkeypatch.setattr(spectral_measure, "_BLOCK_ENTRIES", 20 * 33)
    blocks = SpectralMeasure.from_projection(spectrum, width, 5)
    np.testing.assert_allclose(blocks.eigenvalues, whole.eigenvalues, rtol=1e-13, atol=0)
    np.testing.assert_allclose(blocks.source_power, whole.source_power, rtol=1e-9, atol=1e-14)
    assert blocks.atom == pytest.approx(whole.atom, rel=1e-12, abs=0)
    other = SpectralMeasure.from_projection(spectrum, width, 6)
    assert (other.eigenvalues != whole.eigenvalues).all()


def test_infinite_width_lists_the_modes():
    spectrum = sf.Spectrum([0.5, 0.0, 1.0, 0.5], [1.0, 2.0, 3.0, 4.0])
    measure = SpectralMeasure.from_projection(spectrum, math.inf, 0)
    np.testing.assert_array_equal(measure.eigenvalues, [1.0, 0.5, 0.5])
    assert measure.atom == 0.0
    assert measure.total_power == spectrum.total_target_power


def test_a_task_without_a_target():
    measure = SpectralMeasure.from_projection(sf.Spectrum([1.0, 0.5, 0.1], [0.0, 0.0, 0.0]), 2, 0)
    assert measure.total_power == 0.0
    assert measure.eigenvalues.size == 2
    assert measure.merged(10.0).total_power == 0.0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3.0, 4, 0), TypeError, "spectrum must be"),
        ((sf.PowerLawSpectrum(1.5, 0.5), math.inf, 0), ValueError, "n_modes must be finite"),
        ((sf.PowerLawSpectrum(1.5, 0.5, 9), 2.5, 0), ValueError, "^width must be an integer"),
        ((sf.PowerLawSpectrum(1.5, 0.5, 9), 0, 0), ValueError, "^width must be an integer of at least 1"),
        ((sf.PowerLawSpectrum(1.5, 0.5, 9), "4", 0), TypeError, "^width must be an integer"),
        ((sf.PowerLawSpectrum(1.5, 0.5, 9), math.nan, 0), ValueError, "^width must be an integer"),
        ((sf.PowerLawSpectrum(1.5, 0.5, 9), 4, -1), ValueError, "^seed must be"),
        ((sf.PowerLawSpectrum(1.5, 0.5, 9), 4, 2**63), ValueError, "^seed must be"),
        ((sf.PowerLawSpectrum(1.5, 0.5, 9), 4, 1.5), ValueError, "^seed must be"),
    ],
)
def test_refused_projections(arguments, error, message):
    with pytest.raises(error, match=message):
        SpectralMeasure.from_projection(*arguments)


def test_too_large_a_projection():
    with pytest.raises(InsufficientMemoryError, match="width 10000000"):
        SpectralMeasure.from_projection(sf.PowerLawSpectrum(1.5, 0.5, 10**8), 10**7, 0)


# ------------------------------------------------------------------------------------------------ the class itself


@pytest.mark.parametrize("argument", ["source_eigenvalues", "source_power", "eigenvalues", "weights"])
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([1.0, -1.0], ValueError, r"^{} must be finite and at least 0, got -1\.0 at index 1$"),
        ([math.nan, 1.0], ValueError, r"^{} must be finite and at least 0, got nan at index 0$"),
        ([1.0, math.inf], ValueError, r"^{} must be finite and at least 0, got inf at index 1$"),
        ([[1.0, 1.0]], ValueError, r"^{} must have one dimension"),
        ([], ValueError, r"^{} must have at least one entry"),
        (["a", "b"], TypeError, r"^{} must be an array of real numbers"),
        ([1.0], ValueError, r"must have one shape, got"),
    ],
)
def test_refused_measures(argument, value, error, message):
    names = ("source_eigenvalues", "source_power", "eigenvalues", "weights")
    arguments = {name: [1.0, 1.0] for name in names} | {argument: value}
    with pytest.raises(error, match=message.format(argument)):
        SpectralMeasure(**arguments)


@pytest.mark.parametrize("argument", ["atom", "error"])
@pytest.mark.parametrize(
    ("value", "error"), [(-1e-9, ValueError), (math.nan, ValueError), (math.inf, ValueError), ("0", TypeError)]
)
def test_refused_atoms_and_errors(argument, value, error):
    with pytest.raises(error, match=f"^{argument} must be a"):
        SpectralMeasure([1.0], [1.0], [1.0], [1.0], **{argument: value})


def test_nodes_are_sorted_and_read_only():
    measure = SpectralMeasure([0.5, 1.0], [2.0, 1.0], [0.1, 3.0, 2.0], [1.0, 2.0, 3.0], atom=0.25)
    np.testing.assert_array_equal(measure.source_eigenvalues, [1.0, 0.5])
    np.testing.assert_array_equal(measure.source_power, [1.0, 2.0])
    np.testing.assert_array_equal(measure.weights, [2.0, 3.0, 1.0])
    assert measure.total_power == 3.25
    assert measure.trace == pytest.approx(12.1)
    assert repr(measure) == (
        "SpectralMeasure(2 source nodes, 3 trace nodes, largest eigenvalue 3, atom 0.25, error 0)"
    )
    with pytest.raises(ValueError, match="read-only"):
        measure.weights[0] = 1.0


# ---------------------------------------------------------------------------------------------------------- merged


@pytest.mark.parametrize("rtol", [1e-6, 1e-10])
@pytest.mark.parametrize("horizon", [10.0, 1e5])
@pytest.mark.parametrize("width", [16, 1000])
def test_merged_measures_act_alike(width, horizon, rtol):
    measure = sf.DeterministicEquivalent(sf.PowerLawSpectrum(1.2, 0.7), width).measure()
    merged = measure.merged(horizon, rtol)
    assert merged.weights.size < 0.5 * measure.weights.size
    assert merged.error <= rtol
    assert merged.atom == measure.atom
    assert merged.total_power == pytest.approx(measure.total_power, rel=1e-12)
    assert merged.trace == pytest.approx(measure.trace, rel=1e-12)
    rates = np.array([0.3, 1.0, 1.9]) / measure.source_eigenvalues[0]
    for rate in rates:
        steps = np.unique(np.floor(np.geomspace(1.0, max(2.0, 0.5 * horizon / rate), 40)))
        losses, floors, noise = [], [], []
        for nodes in (measure, merged):
            decay = np.abs(1.0 - rate * nodes.source_eigenvalues) ** (2.0 * steps[:, None])
            losses.append(decay @ nodes.source_power + nodes.atom)
            s = nodes.eigenvalues
            decay = np.abs(1.0 - rate * s) ** (2.0 * steps[:, None])
            floors.append(decay @ (nodes.weights * s) + nodes.atom)
            # Falls faster than the sums that errors are relative to.
            noise.append(decay @ (nodes.weights * s**2))
        np.testing.assert_allclose(losses[1], losses[0], rtol=2.0 * rtol, atol=0)
        np.testing.assert_allclose(floors[1], floors[0], rtol=2.0 * rtol, atol=0)
        assert (np.abs(noise[1] - noise[0]) <= 2.0 * rtol * s[0] * floors[0]).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0.5,), ValueError, "^horizon must be"),
        (("1",), TypeError, "^horizon must be"),
        ((10.0, 0.0), ValueError, "^rtol must be"),
        ((10.0, 0.5), ValueError, "^rtol must be"),
    ],
)
def test_refused_mergers(arguments, error, message):
    with pytest.raises(error, match=message):
        SpectralMeasure([1.0], [1.0], [1.0], [1.0]).merged(*arguments)
