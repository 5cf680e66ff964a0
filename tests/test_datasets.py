"""The shipped digits spectrum against its script, and the script's kernel against independent routes.

Theory. For jointly normal u, v of variance 1 and covariance rho, the arc-cosine functions are
kappa_1 = 2 E relu(u) relu(v) and kappa_0 = 2 P(u > 0, v > 0); they are the layer maps of the infinite-width
NTK. With K / n = U diag(lambda) U^T and lambda_k w*_k^2 = (U^T y)_k^2 / n, for every z > 0

    sum_k lambda_k w*_k^2 / (lambda_k + z) = y^T (K/n + z)^{-1} y / n,

which needs no eigenvectors and does not see how near-degenerate ones are chosen.
"""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.linalg import solve

import scalefield as sf

SCRIPT = Path(__file__).resolve().parents[1] / "tools" / "measure_digits_spectrum.py"

# Entries of the Gram matrix are right to about eps / sqrt(1 - rho), below 1e-14 as the nearest pair of images
# has 1 - rho = 9e-3, and LAPACK's backward error is a small multiple of eps times the largest eigenvalue, 1:
# libraries differ by 1e-15 to 1e-13.
EIGENVALUE_ERROR = 1e-12


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("measure_digits_spectrum", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses looks up the annotations
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[spec.name]


@pytest.fixture(scope="module")
def images_and_target(script):
    return script.digits_images_and_target()


@pytest.fixture(scope="module")
def kernel(script, images_and_target):
    return script.relu_ntk(images_and_target[0])


@pytest.fixture(scope="module")
def measurement(script, kernel, images_and_target):
    return script.measure(kernel, images_and_target[1])


@pytest.fixture(scope="module")
def centred_gram(kernel, measurement):
    n = len(kernel)
    centre = np.eye(n) - 1.0 / n
    return centre @ kernel @ centre / (n * measurement.scale)


@pytest.fixture(scope="module")
def spectrum():
    return sf.datasets.digits_spectrum()


def test_shipped_modes_are_what_the_script_computes(spectrum, measurement):
    assert spectrum.n_modes == measurement.eigenvalues.size
    # Weyl: an eigenvalue moves by no more than the matrix does.
    np.testing.assert_allclose(spectrum.eigenvalues, measurement.eigenvalues, rtol=0, atol=EIGENVALUE_ERROR)
    # Davis-Kahan: the span of the first k eigenvectors turns by at most error / (lambda_k - lambda_{k+1}),
    # so its share of the target's power (1 in all) by twice that. The span of all modes does not turn.
    gaps = -np.diff(measurement.eigenvalues)
    bound = np.append(2 * EIGENVALUE_ERROR / gaps, 0.0) + 1e-13
    difference = np.cumsum(spectrum.target_power) - np.cumsum(measurement.target_power)
    assert (np.abs(difference) <= bound).all()


@pytest.mark.parametrize("z", [1.0, 0.1, 0.01, 1e-3])
def test_source_resolvent_equals_a_linear_solve(spectrum, centred_gram, images_and_target, z):
    target = images_and_target[1]
    n = target.size
    expected = target @ solve(centred_gram + z * np.eye(n), target, assume_a="pos") / n
    result = np.sum(spectrum.target_power / (spectrum.eigenvalues + z))
    # First order in the matrix error: |d(K + z)^{-1}| <= error / z^2, against values of about 1 / z.
    np.testing.assert_allclose(result, expected, rtol=EIGENVALUE_ERROR / z + 1e-12, atol=0)


def test_totals(spectrum, measurement, kernel, centred_gram, images_and_target):
    # Sums of up to 1,797^2 terms of one sign: rounding stays far below 1e-12.
    power, variance = spectrum.target_power.sum(), images_and_target[1].var()
    np.testing.assert_allclose(power, variance, rtol=1e-12, atol=0)
    trace = np.trace(centred_gram)
    np.testing.assert_allclose(spectrum.eigenvalues.sum(), trace, rtol=1e-12, atol=0)
    np.testing.assert_allclose(trace * measurement.scale, 3.0 - kernel.mean(), rtol=1e-12, atol=0)
    np.testing.assert_allclose(np.sum(spectrum.eigenvalues**2), np.sum(centred_gram**2), rtol=1e-12, atol=0)


def test_spectrum_is_sorted_positive_and_of_unit_scale(spectrum):
    assert isinstance(spectrum, sf.Spectrum)
    assert spectrum.eigenvalues[0] == 1.0
    assert (np.diff(spectrum.eigenvalues) <= 0.0).all()
    assert (spectrum.eigenvalues > 0.0).all()
    assert (spectrum.target_coefficients >= 0.0).all()


def test_only_the_constant_mode_is_dropped(measurement):
    assert measurement.n_dropped == 1
    assert measurement.dropped_trace < 1e-12
    # The target is centred, so its overlap with the constant is rounding, squared.
    assert measurement.dropped_power < 1e-24
    # Nothing lies near the threshold of 4e-13 that another LAPACK library could move across it.
    assert measurement.eigenvalues[-1] > 1e-4


def test_every_null_mode_of_a_singular_kernel_is_dropped(script):
    rng = np.random.default_rng(1)
    features = rng.standard_normal((40, 3))
    features -= features.mean(axis=0)
    target = rng.standard_normal(40)
    target -= target.mean()
    measured = script.measure(features @ features.T, target)
    assert measured.eigenvalues.size == 3
    assert measured.n_dropped == 37
    # The kept modes hold the least-squares fit, the dropped ones its residual.
    residual = np.linalg.lstsq(features, target)[1][0] / 40
    np.testing.assert_allclose(measured.dropped_power, residual, rtol=1e-12, atol=0)
    np.testing.assert_allclose(measured.target_power.sum(), target.var() - residual, rtol=1e-12, atol=0)


def test_a_constant_added_to_the_kernel_changes_nothing(script):
    rng = np.random.default_rng(2)
    features = rng.standard_normal((30, 50))
    target = rng.standard_normal(30)
    target -= target.mean()
    kernel = features @ features.T
    plain, shifted = script.measure(kernel, target), script.measure(kernel + 7.0, target)
    np.testing.assert_allclose(shifted.eigenvalues, plain.eigenvalues, rtol=1e-12, atol=0)
    np.testing.assert_allclose(shifted.target_power, plain.target_power, rtol=0, atol=1e-12)


def test_file_loads_back_exactly_and_says_where_it_comes_from(script, measurement, tmp_path):
    path = tmp_path / "modes.csv"
    script.write_csv(path, measurement, n_images=1797)
    loaded = sf.Spectrum.load(path)
    np.testing.assert_array_equal(loaded.eigenvalues, measurement.eigenvalues)
    np.testing.assert_array_equal(loaded.target_coefficients, measurement.target_coefficients)

    shipped = script.OUT.read_text(encoding="utf-8").splitlines()
    comments = [line for line in shipped if line.startswith("#")]
    header = shipped.index("eigenvalue,target_coefficient")
    assert header == len(comments)  # comments first, then the header
    written = path.read_text(encoding="utf-8").splitlines()
    # All but the line with the dropped power, which is a rounding error.
    same = [line for line in range(header) if "carrying" not in comments[line]]
    assert len(same) == header - 1
    assert [comments[line] for line in same] == [written[line] for line in same]
    text = "\n".join(comments)
    for word in ("load_digits", "1797 images", "NTK", "2 hidden layers", "centred", "Dropped", SCRIPT.name):
        assert word in text


def _pair_expectations(rho):
    """2 E relu(u) relu(v) and 2 P(u > 0, v > 0) by quadrature over the wedge where both are positive."""
    # u = s, v = rho s + c t with s, t standard normal: v > 0 for t > -rho s / c. Both integrands are analytic
    # on the wedge, and exp(-12^2 / 2) = 5e-32 cuts it off.
    nodes, weights = np.polynomial.legendre.leggauss(200)
    cut, c = 12.0, np.sqrt(1.0 - rho**2)
    s, s_weights = 0.5 * cut * (nodes + 1.0), 0.5 * cut * weights
    lower = np.clip(-rho * s / c, -cut, cut)[:, None]
    t = lower + 0.5 * (cut - lower) * (nodes + 1.0)
    density = np.exp(-0.5 * (s[:, None] ** 2 + t**2)) / (2.0 * np.pi)
    measure = density * s_weights[:, None] * weights * 0.5 * (cut - lower)
    return 2.0 * np.sum(measure * s[:, None] * (rho * s[:, None] + c * t)), 2.0 * np.sum(measure)


@pytest.mark.parametrize("pair", [(0, 1), (0, 10), (3, 8), (100, 1500), (7, 700)])
@pytest.mark.parametrize("n_hidden_layers", [1, 2, 3])
def test_kernel_against_quadrature(script, images_and_target, pair, n_hidden_layers):
    images = images_and_target[0][list(pair)]
    rho = images[0] @ images[1] / images.shape[1]
    ntk = rho
    for _ in range(n_hidden_layers):
        rho, kappa_0 = _pair_expectations(rho)
        ntk = rho + kappa_0 * ntk
    kernel = script.relu_ntk(images, n_hidden_layers)
    np.testing.assert_allclose(kernel[0, 1], ntk, rtol=0, atol=1e-12)  # the quadrature's accuracy
    np.testing.assert_allclose(np.diag(kernel), n_hidden_layers + 1.0, rtol=1e-15, atol=0)


def test_kernel_against_gradients_of_wide_networks(script, images_and_target):
    """The recursion itself: mean over 24 networks of width 512 of N df/dW . df'/dW, all three layers."""
    images = images_and_target[0][[0, 1, 2, 10, 20]]
    dimension, width, n_networks = images.shape[1], 512, 24
    rng = np.random.default_rng(20240917)
    kernels = []
    for _ in range(n_networks):
        w0 = rng.standard_normal((width, dimension))
        w1 = rng.standard_normal((width, width))
        readout = rng.standard_normal(width)
        h1 = images @ w0.T / np.sqrt(dimension)
        a1 = np.sqrt(2.0) * np.maximum(h1, 0.0)
        h2 = a1 @ w1.T / np.sqrt(width)
        a2 = np.sqrt(2.0) * np.maximum(h2, 0.0)
        # Back-propagation of f = readout . a2 / width.
        d2 = readout / width * np.sqrt(2.0) * (h2 > 0.0)
        d1 = d2 @ w1 / np.sqrt(width) * np.sqrt(2.0) * (h1 > 0.0)
        gradients = [
            np.hstack([a2[i] / width, np.outer(d2[i], a1[i]).ravel() / np.sqrt(width),
                       np.outer(d1[i], images[i]).ravel() / np.sqrt(dimension)])
            for i in range(len(images))
        ]  # fmt: skip
        kernels.append(width * np.array(gradients) @ np.array(gradients).T)
    mean, error = np.mean(kernels, axis=0), np.std(kernels, axis=0, ddof=1) / np.sqrt(n_networks)
    # Finite width biases entries by O(1 / 512), below half of the standard error O(1 / sqrt(24 x 512)).
    # |t| > 6 with 23 degrees of freedom has probability 4e-6; 15 different entries: false alarms 6e-5.
    assert (np.abs(mean - script.relu_ntk(images)) < 6.0 * error).all()
    # The test can fail: one layer more or less is far outside.
    assert (np.abs(mean - script.relu_ntk(images, 1)) > 6.0 * error).all()


def test_kernel_is_symmetric_and_positive(kernel):
    np.testing.assert_array_equal(kernel, kernel.T)
    # Positive definite for distinct directions: the factorisation raises if it is not.
    np.linalg.cholesky(kernel)


def test_images_are_centred_directions_and_the_target_is_centred(images_and_target):
    images, target = images_and_target
    assert images.shape == (1797, 64)
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 8.0, rtol=1e-14, atol=0)
    assert abs(target.mean()) < 1e-15
    assert np.unique(target).size == 2
    np.testing.assert_allclose(np.ptp(target), 2.0, rtol=1e-15, atol=0)
