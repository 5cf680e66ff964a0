"""Spectra of Gram matrices against eigenvectors, linear solves and exact sums.

Theory. With K/n = U diag(lambda) U^T and lambda_k w*_k^2 = sum_c (U^T y_c)_k^2/n, for every z > 0

    sum_k lambda_k w*_k^2/(lambda_k + z) = tr y^T (K/n + z)^{-1} y/n

and sums over modes of lambda^j lambda w*^2 are tr y^T (K/n)^j y/n: neither needs eigenvectors.
"""

import warnings

import numpy as np
import pytest
from scipy.linalg import solve

import scalefield as sf
from scalefield.errors import KernelWarning, ScalefieldError
from scalefield.kernels import KernelSpectrum


def gram(n=120, n_features=300, alpha=1.5, seed=0):
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((n, n_features)) * np.arange(1, n_features + 1) ** (-0.5 * alpha)
    return features @ features.T, features @ rng.standard_normal(n_features)


def centred(kernel, y):
    n = len(kernel)
    centre = np.eye(n) - 1.0 / n
    return centre @ kernel @ centre / n, y - y.mean(axis=0)


@pytest.fixture(scope="module")
def digits():
    images, labels = sf.datasets.digits()
    kernel = sf.kernels.InfiniteWidthKernel("relu", depth=2).gram(sf.datasets.preprocess(images))
    return kernel, sf.datasets.class_targets(labels, "parity")


def test_shipped_digits_are_those_of_scikit_learn_and_give_the_shipped_spectrum(digits):
    from sklearn.datasets import load_digits

    images, labels = sf.datasets.digits()
    expected = load_digits()
    np.testing.assert_array_equal(images, expected.images)
    np.testing.assert_array_equal(labels, expected.target)
    measured, shipped = sf.Spectrum.from_kernel(*digits, normalize=True), sf.datasets.digits_spectrum()
    assert (measured.n_modes, measured.n_samples, measured.n_null) == (1796, 1797, 1)
    # Gram matrices agree to a few eps, so eigenvalues (Weyl) and, but for near-degenerate ones, powers do.
    np.testing.assert_allclose(measured.eigenvalues, shipped.eigenvalues, rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        np.cumsum(measured.target_power), np.cumsum(shipped.target_power), rtol=0, atol=1e-8
    )
    assert measured.scale == pytest.approx(0.1603956343, rel=1e-9)
    assert measured.null_power < 1e-12


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("n_outputs", [0, 3])
@pytest.mark.parametrize("n", [2, 3, 120])
def test_modes_against_eigenvectors_and_a_linear_solve(n, n_outputs, center):
    kernel, y = gram(n)
    if n_outputs:
        y = np.random.default_rng(1).standard_normal((n, n_outputs)) + y[:, None]
    spectrum = sf.Spectrum.from_kernel(kernel, y, center=center)
    matrix, target = centred(kernel, y) if center else (kernel / n, y)
    values, vectors = np.linalg.eigh(matrix)
    projections = np.sum((vectors.T @ target.reshape(n, -1)) ** 2, axis=1) / n
    start = int(center)  # the constant is null
    assert spectrum.n_modes == n - start
    np.testing.assert_allclose(spectrum.eigenvalues, values[start:][::-1], rtol=0, atol=1e-13 * values[-1])
    np.testing.assert_allclose(spectrum.target_power, projections[start:][::-1], rtol=0, atol=1e-11 * projections.sum())
    assert (spectrum.target_coefficients >= 0.0).all()
    assert spectrum.n_outputs == max(n_outputs, 1)
    for z in (1.0, 0.01):
        rows = target.reshape(n, -1)
        expected = np.sum(rows * solve(matrix + z * np.eye(n), rows, assume_a="pos")) / n
        np.testing.assert_allclose(np.sum(spectrum.target_power / (spectrum.eigenvalues + z)), expected, rtol=1e-11)
    np.testing.assert_allclose(spectrum.total_target_power, np.sum(target**2) / n, rtol=1e-12)


def test_normalize_sets_the_unit_and_keeps_the_target():
    kernel, y = gram()
    plain, unit = (sf.Spectrum.from_kernel(kernel, y, normalize=value) for value in (False, True))
    assert (plain.scale, unit.eigenvalues[0]) == (1.0, 1.0)
    np.testing.assert_allclose(unit.eigenvalues * unit.scale, plain.eigenvalues, rtol=1e-14)
    np.testing.assert_allclose(unit.target_power, plain.target_power, rtol=1e-13)


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("n_outputs", [0, 2])
def test_lanczos_finds_the_top_and_keeps_what_the_rest_adds_up_to(center, n_outputs):
    kernel, y = gram(400, 600)
    if n_outputs:
        y = np.stack([y, np.random.default_rng(2).standard_normal(400)], axis=1)
    whole = sf.Spectrum.from_kernel(kernel, y, center=center)
    part = sf.Spectrum.from_kernel(kernel, y, center=center, n_modes=30)
    assert (part.n_modes, part.n_resolved, whole.n_resolved) == (whole.n_modes, 30, whole.n_modes)
    np.testing.assert_allclose(part.eigenvalues[:30], whole.eigenvalues[:30], rtol=1e-11)
    np.testing.assert_allclose(part.target_power[:30], whole.target_power[:30], rtol=0, atol=1e-9)
    np.testing.assert_allclose(part.eigenvalues.sum(), whole.eigenvalues.sum(), rtol=1e-12)
    np.testing.assert_allclose(part.total_target_power, whole.total_target_power, rtol=1e-12)
    np.testing.assert_allclose(part.tail_trace, whole.eigenvalues[30:].sum(), rtol=1e-10)
    np.testing.assert_allclose(part.tail_power, whole.target_power[30:].sum(), rtol=1e-9)
    # Gauss rules: all moments of the target's measure up to a high order
    for j in range(1, 12):
        moments = [np.sum(s.target_power[30:] * s.eigenvalues[30:] ** j) for s in (part, whole)]
        np.testing.assert_allclose(*moments, rtol=1e-9)
    squares = [np.sum(s.eigenvalues[30:] ** 2) for s in (part, whole)]
    np.testing.assert_allclose(part.tail_bias, squares[0] / squares[1] - 1.0, rtol=0, atol=1e-9)


def test_resolved_time_says_how_far_the_lazy_loss_is_right():
    kernel, y = gram(300, 2000, alpha=1.1)
    whole, part = sf.Spectrum.from_kernel(kernel, y), sf.Spectrum.from_kernel(kernel, y, n_modes=5)

    def losses(times):
        return [np.exp(-2.0 * np.outer(times, s.eigenvalues)) @ s.target_power for s in (part, whole)]

    before = losses(np.geomspace(1e-3, 1.0, 30) * min(part.resolved_time, 1e9))
    np.testing.assert_allclose(*before, rtol=0.01)
    # It is no empty promise: with a rule of few nodes it comes before the loss is wrong.
    from scalefield.kernels import from_kernel

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(from_kernel, "_TAIL_STEPS", 3)
        few = sf.Spectrum.from_kernel(kernel, y, n_modes=5)
    assert few.resolved_time < 0.01 * part.resolved_time
    times = np.geomspace(1.0, 1e3, 40) * few.resolved_time
    lower, exact = (np.exp(-2.0 * np.outer(times, s.eigenvalues)) @ s.target_power for s in (few, whole))
    assert np.abs(lower / exact - 1.0)[0] < 0.01 < np.abs(lower / exact - 1.0).max()


def test_mapped_and_single_precision_matrices(tmp_path):
    kernel, y = gram(200)
    exact = sf.Spectrum.from_kernel(kernel, y)
    np.save(tmp_path / "K.npy", kernel)
    mapped = np.load(tmp_path / "K.npy", mmap_mode="r")
    np.testing.assert_array_equal(sf.Spectrum.from_kernel(mapped, y).eigenvalues, exact.eigenvalues)
    np.testing.assert_allclose(
        sf.Spectrum.from_kernel(mapped, y, n_modes=10).eigenvalues[:10], exact.eigenvalues[:10], rtol=1e-11
    )
    single = sf.Spectrum.from_kernel(kernel.astype(np.float32), y)
    # Weyl: the matrix moves by at most n eps of its largest entry.
    error = 200 * np.finfo(np.float32).eps * np.abs(kernel).max() / 200
    np.testing.assert_allclose(single.eigenvalues, exact.eigenvalues[: single.n_modes], rtol=0, atol=error)


def test_rank_below_n_keeps_what_cannot_be_learned():
    rng = np.random.default_rng(3)
    features = rng.standard_normal((80, 5))
    y = features @ np.ones(5) + 0.5 * rng.standard_normal(80)
    with pytest.warns(KernelWarning, match=r"rank 5 of 80: .* of the target's power is outside its range"):
        spectrum = sf.Spectrum.from_kernel(features @ features.T, y)
    design = features - features.mean(axis=0)
    residual = np.linalg.lstsq(design, y - y.mean())[1][0] / 80
    assert (spectrum.n_modes, spectrum.n_resolved, spectrum.n_null) == (6, 5, 75)
    np.testing.assert_allclose(spectrum.null_power, residual, rtol=1e-10)
    np.testing.assert_allclose(spectrum.total_target_power, y.var(), rtol=1e-12)
    # Gradient flow ends at the least-squares residual.
    for gamma in (0.0, 1.0):
        flow = sf.solve_gradient_flow(sf.Model(spectrum, gamma=gamma), [1e8])
        np.testing.assert_allclose(flow.loss, residual, rtol=1e-7)


@pytest.mark.parametrize("n_modes", [None, 20])
def test_asymmetry_is_measured_and_averaged(n_modes):
    kernel, y = gram()
    noise = 1e-4 * np.abs(kernel).max() * np.random.default_rng(4).uniform(-1, 1, kernel.shape)
    with pytest.warns(KernelWarning, match=r"not symmetric: entries differ .* by up to .*\(K \+ K\^T\)/2 is used"):
        spectrum = sf.Spectrum.from_kernel(kernel + np.triu(noise), y, n_modes=n_modes)
    assert 5e-5 < spectrum.asymmetry < 1.1e-4
    mean = kernel + 0.5 * (np.triu(noise) + np.triu(noise).T)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KernelWarning)  # noise makes the smallest eigenvalues negative
        expected = sf.Spectrum.from_kernel(mean, y)
    np.testing.assert_allclose(spectrum.eigenvalues[:20], expected.eigenvalues[:20], rtol=1e-10)
    with pytest.raises(ValueError, match="K must be symmetric"):
        sf.Spectrum.from_kernel(kernel + 300 * np.triu(noise), y)


def test_rounding_is_no_asymmetry():
    kernel, y = gram()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sf.Spectrum.from_kernel(kernel + 1e-14 * np.triu(kernel), y)


def test_indefinite_kernels_are_told_and_cut():
    rng = np.random.default_rng(5)
    vectors = np.linalg.qr(rng.standard_normal((60, 60)))[0]
    values = np.arange(1, 61.0) ** -1.5
    values[-3:] = -1e-3
    kernel, y = 60 * (vectors * values) @ vectors.T, vectors @ np.ones(60)
    with pytest.warns(KernelWarning) as caught:
        spectrum = sf.Spectrum.from_kernel(kernel, y, center=False)
    messages = [str(item.message) for item in caught]
    assert any("indefinite: eigenvalues of K/n down to -0.001" in message for message in messages)
    assert (spectrum.n_resolved, spectrum.n_null) == (57, 3)
    np.testing.assert_allclose(spectrum.negative_share, 3e-3 / np.abs(values).sum(), rtol=1e-9)
    np.testing.assert_allclose(spectrum.null_power, 3 / 60, rtol=1e-9)
    with pytest.raises(ValueError, match="K must be positive semidefinite"):
        sf.Spectrum.from_kernel(kernel - 60 * 0.05 * np.eye(60), y, center=False)
    with pytest.raises(ValueError, match="K must have a positive eigenvalue"):
        sf.Spectrum.from_kernel(np.ones((5, 5)) * 0.0, np.arange(5.0))
    with pytest.raises(ValueError, match="whose sum exceeds the trace"):
        sf.Spectrum.from_kernel(kernel - 60 * 0.02 * np.eye(60), y, center=False, n_modes=10)


@pytest.mark.parametrize(
    ("kernel", "y", "options", "error", "message"),
    [
        (np.ones((3, 2)), np.arange(3.0), {}, ValueError, r"K must be a square matrix, got shape \(3, 2\)"),
        (np.ones(3), np.arange(3.0), {}, ValueError, "K must be a square matrix"),
        (np.ones((1, 1)), [1.0], {}, ValueError, "K must have at least 2 rows, got 1"),
        (np.eye(3), np.arange(4.0), {}, ValueError, "y must have a row for each of the 3 rows of K, got 4"),
        (np.eye(3), np.ones((3, 1, 1)), {}, ValueError, "y must have shape"),
        (np.diag([1, np.nan, 1]), np.arange(3.0), {}, ValueError, "K must be finite, got nan at row 1, column 1"),
        (np.eye(3), [0.0, np.inf, 1.0], {}, ValueError, "y must be finite, got inf at row 1"),
        (np.eye(3), np.full(3, 0.1), {}, ValueError, "y must vary over the samples, got a target that is constant"),
        (np.eye(3), np.zeros(3), {"center": False}, ValueError, "0 everywhere"),
        (np.eye(3) * 1j, np.arange(3.0), {}, TypeError, "K must be a matrix of real numbers"),
        (np.eye(3), ["a", "b", "c"], {}, TypeError, "y must be an array of real numbers"),
        (np.eye(3), np.arange(3.0), {"center": 1}, TypeError, "center must be True or False"),
        (np.eye(3), np.arange(3.0), {"n_modes": 0}, ValueError, "n_modes must be an integer of at least 1"),
    ],
)
def test_bad_input_is_named(kernel, y, options, error, message):
    with pytest.raises(error, match=message):
        sf.Spectrum.from_kernel(kernel, y, **options)


def test_a_constant_target_is_learned_without_centring():
    spectrum = sf.Spectrum.from_kernel(np.eye(4) + 1.0, np.ones(4), center=False)
    np.testing.assert_allclose(spectrum.total_target_power, 1.0, rtol=1e-14)


def test_too_large_a_matrix_is_refused_before_anything_is_allocated(monkeypatch):
    monkeypatch.setattr("scalefield._memory.available_memory", lambda: 1000)
    with pytest.raises(sf.errors.InsufficientMemoryError, match="the spectrum of a 120 x 120 kernel"):
        sf.Spectrum.from_kernel(*gram())


def test_files_keep_modes_and_facts(tmp_path):
    spectrum = sf.Spectrum.from_kernel(*gram(), n_modes=20)
    for name in ("modes.npz", "modes.csv"):
        spectrum.save(tmp_path / name)
        assert sf.Spectrum.load(tmp_path / name) == spectrum
    again = KernelSpectrum.load(tmp_path / "modes.npz")
    assert again == spectrum
    assert again._facts() == spectrum._facts()
    assert "n_samples: 120" in (tmp_path / "modes.csv").read_text()
    sf.Spectrum([1.0], [1.0]).save(tmp_path / "plain.npz")
    with pytest.raises(ScalefieldError):
        KernelSpectrum.load(tmp_path / "plain.npz")
    # A model takes it as any other spectrum, and results remember it as modes.
    model = sf.Model(spectrum, gamma=1.0)
    sf.solve_gradient_flow(model, [1.0]).save(tmp_path / "flow.npz")
    assert sf.FlowSolution.load(tmp_path / "flow.npz").model.spectrum == spectrum
