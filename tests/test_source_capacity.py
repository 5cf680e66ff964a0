"""Exponents of spectra: exact power laws, sampled Gram matrices with known truth, the circle, and no power laws.

Theory. A Gram matrix of n Gaussian samples of features with variance k^-alpha has eigenvalues and target powers that
are shifted by k/n times known coefficients, to first order, even on average (`fit_source_capacity`). The check below
averages sampled matrices and compares with these coefficients.
"""

import warnings

import numpy as np
import pytest
from scipy.special import zeta

import scalefield as sf
from scalefield.errors import KernelWarning, ScalefieldError
from scalefield.kernels import SourceCapacityFit, fit_source_capacity
from scalefield.kernels.source_capacity import _eigenvalue_shift, _power_shift


def sampled(alpha, beta, n, n_modes, seed):
    """A Gram matrix and target of infinitely many modes: those beyond n_modes act as a multiple of 1, and as noise."""
    rng = np.random.default_rng(seed)
    k = np.arange(1, n_modes + 1.0)
    features = rng.standard_normal((n, n_modes)) * k ** (-0.5 * alpha)
    coefficients = k ** (0.5 * (alpha - alpha * beta - 1.0)) * rng.choice([-1.0, 1.0], n_modes)
    far = np.sqrt(zeta(alpha * beta + 1.0, n_modes + 1.0)) * rng.standard_normal(n)
    return features @ features.T + zeta(alpha, n_modes + 1.0) * np.eye(n), features @ coefficients + far


@pytest.mark.parametrize("method", ["tail-sum", "increments"])
@pytest.mark.parametrize("n_modes", [40, 1000, 10**6, None])
@pytest.mark.parametrize(("alpha", "beta"), [(1.2, 0.3), (1.5, 0.5), (2.0, 1.4), (4.0, 1.0)])
def test_exact_power_laws_are_recovered(alpha, beta, n_modes, method):
    fit = fit_source_capacity(sf.PowerLawSpectrum(alpha, beta, n_modes), method=method)
    # The sums are those of the law itself; the total power has 13 digits, of which the tail keeps those above 1e-9.
    np.testing.assert_allclose([fit.alpha, fit.beta], [alpha, beta], rtol=1e-6)
    np.testing.assert_allclose([fit.eigenvalue_prefactor, fit.power_prefactor], 1.0, rtol=1e-4)
    assert fit.is_power_law
    assert abs(fit.beta_drift) < 1e-5
    assert fit.beta_interval[1] - fit.beta_interval[0] < 1e-5


def test_windows_and_explicit_spectra():
    task = sf.PowerLawSpectrum(1.5, 0.5, 2000)
    explicit = sf.Spectrum(*task.modes(0, 2000))
    fit = fit_source_capacity(explicit, (30, 500))
    assert fit.window == (30, 500)
    np.testing.assert_allclose([fit.alpha, fit.beta], [1.5, 0.5], rtol=1e-9)
    # Straight lines through tail sums are bent by the end of the spectrum; increments are not.
    assert fit.beta_straight > 0.55
    np.testing.assert_allclose(fit.alpha_straight, 1.5, rtol=1e-9)


def test_power_that_is_never_learned_is_left_out():
    eigenvalues, coefficients = sf.PowerLawSpectrum(1.5, 0.8, 3000).modes(0, 3000)
    rest = 0.2
    spectrum = sf.Spectrum(np.append(eigenvalues, 1e-30), np.append(coefficients, np.sqrt(rest / 1e-30)))
    np.testing.assert_allclose(fit_source_capacity(spectrum).beta, 0.8, rtol=1e-6)
    # Noise on the labels has power in every mode: increments within the window see less of it than the tail.
    noisy = sf.Spectrum(eigenvalues, np.sqrt(coefficients**2 + 1e-5 / eigenvalues))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KernelWarning)  # noise is no power law
        fits = [fit_source_capacity(noisy, (5, 50), method=method).beta for method in ("tail-sum", "increments")]
    assert abs(fits[1] - 0.8) < 0.5 * abs(fits[0] - 0.8)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize(("power", "target_exponent"), [(1, 1.0), (1, 1.75), (2, 1.5), (3, 2.0)])
def test_circle(depth, power, target_exponent):
    """alpha = 2 q_phi and beta = (2 q - 1)/(2 q_phi), within 2%; paper Eq. 14."""
    kernel = sf.kernels.InfiniteWidthKernel("relu", power=power, depth=depth)
    spectrum = sf.kernels.circle_spectrum(kernel, target_exponent)
    fit = fit_source_capacity(spectrum)
    np.testing.assert_allclose(fit.alpha, 2 * power, rtol=0.02)
    np.testing.assert_allclose(fit.beta, (2 * target_exponent - 1) / (2 * power), rtol=0.02)
    assert fit.is_power_law


@pytest.mark.parametrize(("alpha", "beta"), [(1.5, 0.5), (2.0, 0.3)])
def test_shift_by_the_number_of_samples(alpha, beta):
    """24 matrices of n = 200: means over modes 5..20 (k/n to 0.1) against the first-order coefficients."""
    n, n_modes, n_draws = 200, 1000, 24
    k = np.arange(1, n_modes + 1.0)
    eigenvalues, powers = np.empty((n_draws, n)), np.empty((n_draws, n))
    for seed in range(n_draws):
        rng = np.random.default_rng(seed)
        features = rng.standard_normal((n, n_modes)) * k ** (-0.5 * alpha)
        values, vectors = np.linalg.eigh((features @ features.T + zeta(alpha, n_modes + 1) * np.eye(n)) / n)
        eigenvalues[seed] = values[::-1]
        # Averaged over the signs of the target's coefficients, and over what is far
        own = (vectors.T @ features) ** 2 @ k ** (alpha - alpha * beta - 1.0)
        powers[seed] = (own[::-1] + zeta(alpha * beta + 1, n_modes + 1)) / n
    window = slice(4, 20)
    kept = k[:n][window]
    for measured, exponent, shift in (
        (eigenvalues, alpha, _eigenvalue_shift(alpha)),
        (powers, alpha * beta + 1.0, _power_shift(alpha, alpha * beta)),
    ):
        # Weighted by k/n, the slope of the relative shift
        slopes = ((measured[:, window] * kept**exponent - 1.0) @ (kept / n)) / np.sum((kept / n) ** 2)
        error = slopes.std(ddof=1) / np.sqrt(n_draws)
        # Second order is (k/n)^2, 10% of the first, of coefficients up to 1.2. False alarms of 4 errors: 1e-4 each.
        assert abs(slopes.mean() - shift) < 4.0 * error + 0.15
        assert error < 0.25


def test_sampled_kernels_and_coverage():
    """20 matrices of n = 300, window 4 to 30: means and coverage of 95% intervals.

    Bias after the correction, from 60 draws at n = 600: alpha +0.2%, beta 0 and +0.8%. At least 14 of 20 intervals hold
    the truth but with probability 3e-6 at a coverage of 95%, and 2e-3 at 88%.
    """
    alpha, beta, n_draws = 1.5, 0.5, 20
    fits = []
    for seed in range(n_draws):
        spectrum = sf.Spectrum.from_kernel(*sampled(alpha, beta, 300, 900, seed), center=False)
        fits.append(fit_source_capacity(spectrum, (4, 30)))
    alphas, betas = np.array([fit.alpha for fit in fits]), np.array([fit.beta for fit in fits])
    for values, truth, bias in ((alphas, alpha, 0.01), (betas, beta, 0.02)):
        error = values.std(ddof=1) / np.sqrt(n_draws)
        assert abs(values.mean() - truth) < 4.0 * error + bias
        assert 4.0 * error < 0.2 * truth
    # The correction is needed: without it alpha is off by ten standard errors of the mean.
    plain = np.array([fit.alpha_uncorrected for fit in fits])
    assert plain.mean() < alpha - 6.0 * plain.std(ddof=1) / np.sqrt(n_draws)
    assert sum(fit.alpha_interval[0] <= alpha <= fit.alpha_interval[1] for fit in fits) >= 14
    assert sum(fit.beta_interval[0] <= beta <= fit.beta_interval[1] for fit in fits) >= 14
    # ... and they are not so wide that they always would
    assert np.median([fit.alpha_interval[1] - fit.alpha_interval[0] for fit in fits]) < 0.2
    assert np.median([fit.beta_interval[1] - fit.beta_interval[0] for fit in fits]) < 0.5


def test_windows_of_the_digits_agree_once_corrected():
    eigenvalues = sf.datasets.digits_spectrum()
    windows = [(10, 100), (20, 200), (50, 450)]
    corrected = [fit_source_capacity(eigenvalues, window, n_samples=1797).alpha for window in windows]
    plain = [fit_source_capacity(eigenvalues, window).alpha for window in windows]
    assert np.ptp(corrected) < 0.07 < np.ptp(plain)


@pytest.mark.parametrize(
    "eigenvalues", [np.exp(-np.arange(300) / 10.0), np.linspace(1.0, 0.5, 300), np.r_[np.ones(20), np.full(280, 1e-3)]]
)
def test_no_power_law_is_told(eigenvalues):
    with pytest.warns(KernelWarning, match="no power law holds over modes 5 to 60"):
        fit = fit_source_capacity(sf.Spectrum(eigenvalues, np.arange(1, 301.0) ** -1), (5, 60))
    assert not fit.is_power_law


def test_target_whose_power_grows_is_told():
    eigenvalues = np.arange(1, 301.0) ** -1.5
    with pytest.warns(KernelWarning):
        fit = fit_source_capacity(sf.Spectrum(eigenvalues, np.sqrt(np.arange(1, 301.0) / eigenvalues)))
    assert fit.beta < 0.0


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("digits",), {}, TypeError, "spectrum must be a Spectrum"),
        ((sf.PowerLawSpectrum(1.5, 0.5, 50), (10, 60)), {}, ValueError, "window must end at mode 50"),
        ((sf.PowerLawSpectrum(1.5, 0.5, 50), (10, 15)), {}, ValueError, "at least 8 modes and a factor of 2"),
        ((sf.PowerLawSpectrum(1.5, 0.5, 50), 10), {}, TypeError, "window must be two integers"),
        ((sf.PowerLawSpectrum(1.5, 0.5, 50),), {"method": "plain"}, ValueError, "method must be 'tail-sum'"),
        ((sf.PowerLawSpectrum(1.5, 0.5, 50),), {"confidence": 1.0}, ValueError, "confidence must be below 1"),
        ((sf.PowerLawSpectrum(1.5, 0.5, 50),), {"n_samples": "all"}, ValueError, "n_samples must be an integer"),
        ((sf.Spectrum(np.arange(50, 0, -1.0), np.zeros(50)),), {}, ValueError, "window must hold target power"),
    ],
)
def test_bad_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        fit_source_capacity(*arguments, **options)


def test_fit_is_saved_and_drawn(tmp_path):
    spectrum = sf.datasets.digits_spectrum()
    fit = fit_source_capacity(spectrum, n_samples=1797)
    fit.save(tmp_path / "fit.npz")
    assert SourceCapacityFit.load(tmp_path / "fit.npz") == fit
    sf.solve_gradient_flow(sf.Model(spectrum), [1.0]).save(tmp_path / "other.npz")
    with pytest.raises(ScalefieldError):
        SourceCapacityFit.load(tmp_path / "other.npz")
    left, right = sf.plot.spectrum_fit(spectrum, fit)
    dashed = [next(line for line in ax.get_lines() if line.get_linestyle() == "--") for ax in (left, right)]
    k = np.arange(17, 180)
    np.testing.assert_array_equal(dashed[0].get_xdata(), k)
    # Lines lie on the data: eigenvalues within 10%, tail sums within 25%.
    np.testing.assert_allclose(dashed[0].get_ydata(), spectrum.eigenvalues[k - 1], rtol=0.1)
    tail = spectrum.total_target_power - np.cumsum(spectrum.target_power)
    np.testing.assert_allclose(dashed[1].get_ydata(), tail[k - 1], rtol=0.25)
    with pytest.raises(TypeError, match="spectrum must be a Spectrum"):
        sf.plot.spectrum_fit(sf.PowerLawSpectrum(1.5, 0.5))
