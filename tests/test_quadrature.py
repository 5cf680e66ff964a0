r"""Quadrature over modes against explicit sums and closed forms, and the merging of nodes.

Theory. With lambda_k = k^-alpha and p_k = lambda_k w*_k^2 = k^-(alpha beta + 1), training needs sums such as
sum_k lambda_k f(lambda_k tau) (mode measure) and sum_k p_k f(lambda_k tau) (source measure). Oracles:

* finite spectra: the sum itself, mode by mode;
* powers: sum_k k^-s = zeta(s), and zeta(s, M + 1) for what lies beyond M;
* infinite spectra: the first modes one by one and the Euler-Maclaurin formula for the others,
  sum_{k>=K} g(k) = int_K^oo g dk + g(K)/2 - g'(K)/12 + O(g'''(K)/720). With x = k^-alpha the integrals are
  (1/alpha) int_0^X x^{c-1} f(x tau) dx: incomplete gamma functions for f = e^{-z} and hypergeometric ones for
  the rational f; c = 1 - 1/alpha for the mode measure, c = beta for the source measure.
"""

import math
import signal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import gamma, gammainc, hyp2f1, zeta

import scalefield as sf
from scalefield.quadrature import SpectralNodes, _discrete_gauss, _power_sum, condense, exact_nodes, merge
from strategies import explicit_spectra, power_laws

FUNCTIONS = {
    "exponential": lambda z: np.exp(-z),
    "resolvent": lambda z: 1.0 / (1.0 + z),
    "resolvent derivative": lambda z: z / (1.0 + z) ** 2,
    "gradient flow": lambda z: 2.0 * z * np.exp(-2.0 * z),
    "changing sign": lambda z: (1.0 - z) * np.exp(-z),
    "product": lambda z: np.exp(-0.3 * z) / (1.0 + z) ** 2,
}

POWER_LAWS = [(1.05, 0.3), (1.05, 5.0), (1.2, 1.0), (1.5, 0.5), (1.5, 2.5), (2.0, 0.05), (3.0, 1.5)]
POWER_LAWS += [(5.0, 0.4), (5.0, 5.0)]


def quadrature_sums(nodes, function, tau):
    """Sums with mass lambda and with mass p."""
    values = function(nodes.eigenvalues * tau)
    masses = nodes.weights * nodes.eigenvalues, nodes.weights * nodes.target_power
    return [float(np.sum(mass * values)) for mass in masses]


def check_sums(nodes, eigenvalues, power, taus, rtol):
    """Compare all functions in both measures with the sums over all modes.

    The promise is rtol times the sum of absolute values. What has decayed by 1e-16 is not asked for: there
    e^{-lambda tau} with lambda tau > 36 magnifies the rounding of every node, and nothing can depend on it.
    """
    for tau in taus:
        for name, function in FUNCTIONS.items():
            values = function(eigenvalues * tau)
            result = quadrature_sums(nodes, function, tau)
            for which, mass in enumerate((eigenvalues, power)):
                expected, scale, total = np.sum(mass * values), np.sum(mass * np.abs(values)), np.sum(mass)
                assert abs(result[which] - expected) <= rtol * scale + 1e-16 * total, (name, tau, which)


@pytest.mark.parametrize(("alpha", "beta"), POWER_LAWS)
def test_a_million_modes_against_the_explicit_sum(alpha, beta):
    n_modes = 10**6
    spectrum = sf.PowerLawSpectrum(alpha, beta, n_modes)
    nodes = spectrum.quadrature()
    eigenvalues, coefficients = spectrum.modes(0, n_modes)
    # Decades up to the horizon. Explicit sums of 1e6 terms are right to 1e-15 (pairwise summation).
    taus = (1e-3, 0.7, 30.0, 1e3, 1e5, 3e7, 1e10, 1e12)
    check_sums(nodes, eigenvalues, eigenvalues * coefficients**2, taus, 1e-10)


@pytest.mark.parametrize("rtol", [1e-4, 1e-7, 1e-13])
def test_other_tolerances_are_kept(rtol):
    n_modes = 10**5
    spectrum = sf.PowerLawSpectrum(1.5, 0.5, n_modes)
    nodes = spectrum.quadrature(rtol=rtol)
    eigenvalues, coefficients = spectrum.modes(0, n_modes)
    # Rounding of the nodes enters lambda tau, up to 36 before everything has decayed: 3e-13 more.
    taus = np.geomspace(1e-2, 1e9, 12)
    check_sums(nodes, eigenvalues, eigenvalues * coefficients**2, taus, rtol + 3e-13)
    assert len(nodes) < len(spectrum.quadrature(rtol=1e-13)) or rtol == 1e-13


@pytest.mark.parametrize("horizon", [1.0, 1e3, 1e7])
@pytest.mark.parametrize(("alpha", "beta"), [(1.05, 0.3), (1.5, 0.5), (3.0, 1.5)])
def test_a_shorter_horizon_costs_less_and_is_kept(alpha, beta, horizon):
    n_modes = 10**5
    spectrum = sf.PowerLawSpectrum(alpha, beta, n_modes)
    nodes = spectrum.quadrature(horizon=horizon)
    assert nodes.horizon == horizon
    infinite = sf.PowerLawSpectrum(alpha, beta)
    assert len(infinite.quadrature(horizon=horizon)) < len(infinite.quadrature())
    eigenvalues, coefficients = spectrum.modes(0, n_modes)
    check_sums(nodes, eigenvalues, eigenvalues * coefficients**2, (0.01 * horizon, 0.3 * horizon, horizon), 1e-10)


# ----------------------------------------------------------------------------------------------- infinite


@pytest.mark.parametrize(("alpha", "beta"), POWER_LAWS)
def test_infinite_power_sums_are_zeta_functions(alpha, beta):
    nodes = sf.PowerLawSpectrum(alpha, beta).quadrature()
    # scipy's zeta is right to a few 1e-15 relative; the rest is the promise of 1e-10, kept far better here.
    assert nodes.trace == pytest.approx(zeta(alpha), rel=1e-13, abs=0)
    assert nodes.total_target_power == pytest.approx(zeta(alpha * beta + 1.0), rel=1e-13, abs=0)
    for power in (2, 3, 4):
        result = np.sum(nodes.weights * nodes.eigenvalues**power)
        assert result == pytest.approx(zeta(power * alpha), rel=1e-12, abs=0)
        result = np.sum(nodes.weights * nodes.target_power * nodes.eigenvalues ** (power - 1))
        assert result == pytest.approx(zeta(alpha * beta + 1.0 + (power - 1) * alpha), rel=1e-12, abs=0)


@pytest.mark.parametrize("n_modes", [32, 33, 100, 12345, 10**6, 10**9, 10**12, 10**15])
@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.7), (1.05, 0.3), (1.5, 0.5), (3.0, 2.0)])
def test_finite_power_sums_are_differences_of_zeta_functions(alpha, beta, n_modes):
    nodes = sf.PowerLawSpectrum(alpha, beta, n_modes).quadrature()
    source = zeta(alpha * beta + 1.0) - zeta(alpha * beta + 1.0, n_modes + 1.0)
    assert nodes.total_target_power == pytest.approx(source, rel=1e-12, abs=0)
    if alpha > 1.0:
        assert nodes.trace == pytest.approx(zeta(alpha) - zeta(alpha, n_modes + 1.0), rel=1e-12, abs=0)
    else:
        # Euler-Maclaurin from K = 1000: the next term, g'''(K)/720, is below 1e-12 of the sum.
        start = min(1000, n_modes)
        k, last = np.arange(1.0, start), float(n_modes)
        integral = (last ** (1.0 - alpha) - start ** (1.0 - alpha)) / (1.0 - alpha)
        ends = 0.5 * (start**-alpha + last**-alpha)
        slopes = alpha * (start ** (-alpha - 1.0) - last ** (-alpha - 1.0)) / 12.0
        total = np.sum(k**-alpha) + integral + ends + slopes
        assert nodes.trace == pytest.approx(total, rel=1e-12, abs=0)


class _TooLong(Exception):
    pass


@pytest.fixture
def two_seconds():
    """Turn an endless loop into a failure (where the system has alarms); the answer takes milliseconds."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def ring(_signal, _frame):
        raise _TooLong("no answer after two seconds")

    old = signal.signal(signal.SIGALRM, ring)
    signal.alarm(2)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)


@pytest.mark.usefixtures("two_seconds")
@pytest.mark.parametrize("n_modes", [2**53 - 1, 2**53, 2**53 + 2, 10**16, 10**18, 10**30, 10**50])
@pytest.mark.parametrize(("alpha", "beta"), [(0.75, 0.7), (1.5, 0.5)])
def test_mode_numbers_beyond_the_integers_of_a_double(alpha, beta, n_modes):
    """From 2^53 on n_modes + 1 is not a double; modes up to 1e16 and beyond are as good as others."""
    nodes = sf.PowerLawSpectrum(alpha, beta, n_modes).quadrature()
    source = zeta(alpha * beta + 1.0) - zeta(alpha * beta + 1.0, float(n_modes))
    assert nodes.total_target_power == pytest.approx(source, rel=1e-10, abs=0)
    # sum_k k^-alpha = zeta(alpha) - M^{1-alpha}/(alpha - 1) up to half of the last term, below 1e-11.
    first = zeta(alpha) if alpha > 1.0 else ZETA_THREE_QUARTERS
    assert nodes.trace == pytest.approx(first - float(n_modes) ** (1.0 - alpha) / (alpha - 1.0), rel=1e-10, abs=0)


# zeta(3/4), which scipy's zeta does not give below 1 (A. Erdelyi's tables; checked by Euler-Maclaurin below).
ZETA_THREE_QUARTERS = -3.4412853869452228


def test_zeta_three_quarters():
    k = 1e4
    head = math.fsum(np.arange(1.0, k) ** -0.75)
    # Next term of the series: g'''(K)/720 < 1e-17.
    value = head - k**0.25 / 0.25 + 0.5 * k**-0.75 + 0.75 * k**-1.75 / 12.0
    assert value == pytest.approx(ZETA_THREE_QUARTERS, rel=1e-12, abs=0)


def _tail_integrals(alpha, c, tau, last):
    """(1/alpha) int_0^X x^(c-1) f(x tau) dx with X = last^-alpha for three of FUNCTIONS."""
    x = last**-alpha
    return {
        # X^c Gamma(c, X tau)/(X tau)^c; gammainc is the regularised lower function.
        "exponential": gamma(c) * gammainc(c, x * tau) * tau**-c / alpha,
        "resolvent": x**c / c * hyp2f1(1.0, c, c + 1.0, -x * tau) / alpha,
        "resolvent derivative": tau * x ** (c + 1.0) / (c + 1.0) * hyp2f1(2.0, c + 1.0, c + 2.0, -x * tau) / alpha,
    }


SOME_POWER_LAWS = [(1.05, 0.3), (1.05, 2.2), (1.5, 0.5), (2.0, 0.05), (3.0, 1.55), (5.0, 0.4)]


@pytest.mark.parametrize("tau", [1e-2, 1.0, 1e2, 1e4, 1e6, 1e8, 1e10, 1e12])
@pytest.mark.parametrize(("alpha", "beta"), SOME_POWER_LAWS)
def test_infinite_sums_of_decaying_functions(alpha, beta, tau):
    nodes = sf.PowerLawSpectrum(alpha, beta).quadrature()
    start = 100_000
    k = np.arange(1.0, start + 2.0)
    for which, (exponent, c) in enumerate([(alpha, 1.0 - 1.0 / alpha), (alpha * beta + 1.0, beta)]):
        integrals = _tail_integrals(alpha, c, tau, float(start))
        for name, integral in integrals.items():
            g = k**-exponent * FUNCTIONS[name](k**-alpha * tau)
            # g[-2] is g(K); its slope by a central difference, wrong by O(1/K^2) of a correction of O(1/K^2).
            expected = np.sum(g[:-2]) + integral + 0.5 * g[-2] - (g[-1] - g[-3]) / 24.0
            result = quadrature_sums(nodes, FUNCTIONS[name], tau)[which]
            # 1e-10 is the promise; hyp2f1 and gammainc are good to 1e-12 here.
            # (What has decayed below 1e-16, see check_sums, is not asked for.)
            assert result == pytest.approx(expected, rel=1.01e-10, abs=1e-16), (name, which)


@pytest.mark.parametrize("alpha", [5.5, 8.0, 20.0, 100.0, 1000.0])
@pytest.mark.parametrize("beta", [0.05, 1.0, 3.0])
def test_steep_power_laws(alpha, beta):
    """Eigenvalues of late modes underflow; the sums are those of the first few modes all the same."""
    nodes = sf.PowerLawSpectrum(alpha, beta).quadrature()
    assert nodes.trace == pytest.approx(zeta(alpha), rel=1e-12, abs=0)
    assert nodes.total_target_power == pytest.approx(zeta(alpha * beta + 1.0), rel=1e-12, abs=0)
    assert (nodes.eigenvalues > 0.0).all()
    assert sf.PowerLawSpectrum(alpha, beta, 10**6).quadrature().trace == pytest.approx(zeta(alpha), rel=1e-12, abs=0)


# -------------------------------------------------------------------------------------------------- nodes


@settings(deadline=None, max_examples=60)
@given(power_laws(max_modes=32, infinite=False))
def test_up_to_32_modes_are_their_own_nodes(spectrum):
    nodes = spectrum.quadrature()
    eigenvalues, coefficients = spectrum.modes(0, spectrum.n_modes)
    np.testing.assert_array_equal(nodes.eigenvalues, eigenvalues)
    np.testing.assert_array_equal(nodes.weights, 1.0)
    # Squares of roots of powers: rounding only.
    np.testing.assert_allclose(nodes.target_power, eigenvalues * coefficients**2, rtol=1e-13, atol=0)


@settings(deadline=None, max_examples=60)
@given(st.floats(0.3, 5.0), st.floats(0.05, 4.0), st.integers(33, 100), st.floats(-3.0, 12.0))
def test_33_to_100_modes(alpha, beta, n_modes, log_tau):
    spectrum = sf.PowerLawSpectrum(alpha, beta, n_modes)
    nodes = spectrum.quadrature()
    assert len(nodes) <= n_modes
    eigenvalues, coefficients = spectrum.modes(0, n_modes)
    check_sums(nodes, eigenvalues, eigenvalues * coefficients**2, [10.0**log_tau], 1e-10)


@settings(deadline=None, max_examples=100)
@given(alpha=st.floats(1.05, 5.0), beta=st.floats(0.05, 5.0), n_modes=st.none() | st.integers(10**4, 10**15))
def test_nodes_are_as_documented(alpha, beta, n_modes):
    nodes = sf.PowerLawSpectrum(alpha, beta, n_modes).quadrature()
    assert (nodes.eigenvalues > 0.0).all()
    assert (nodes.weights > 0.0).all()
    assert (nodes.target_power >= 0.0).all()
    assert (np.diff(nodes.eigenvalues) <= 0.0).all()
    assert 60 <= len(nodes) <= 450
    assert (nodes.error, nodes.horizon) == (1e-10, 1e12)


@settings(deadline=None, max_examples=60)
@given(explicit_spectra())
def test_explicit_spectra_are_summed_as_they_are(spectrum):
    nodes = spectrum.quadrature()
    positive = spectrum.eigenvalues > 0.0
    np.testing.assert_array_equal(nodes.eigenvalues, spectrum.eigenvalues[positive])
    np.testing.assert_array_equal(nodes.target_power, spectrum.target_power[positive])
    np.testing.assert_array_equal(nodes.weights, 1.0)
    assert (nodes.error, nodes.horizon) == (0.0, math.inf)


@pytest.mark.parametrize("spectrum", [sf.PowerLawSpectrum(1.5, 0.5), sf.Spectrum([1.0], [1.0])])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rtol": 0.0}, ValueError, r"rtol must be a finite number at least 1e-13, got 0\.0"),
        ({"rtol": -1e-6}, ValueError, r"rtol must be a finite number at least 1e-13, got -1e-06"),
        ({"rtol": math.nan}, ValueError, r"rtol must be a finite number at least 1e-13, got nan"),
        ({"rtol": 0.11}, ValueError, r"rtol must be at most 0\.1, got 0\.11"),
        ({"rtol": "1e-6"}, TypeError, r"rtol must be a real number, got '1e-6' of type str"),
        ({"horizon": 0.5}, ValueError, r"horizon must be a finite number at least 1, got 0\.5"),
        ({"horizon": math.inf}, ValueError, r"horizon must be a finite number at least 1, got inf"),
        ({"horizon": None}, TypeError, r"horizon must be a real number, got None of type NoneType"),
    ],
)
def test_quadrature_refuses(spectrum, arguments, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        spectrum.quadrature(**arguments)


def test_spectral_nodes_totals_and_representation():
    nodes = SpectralNodes([1.0, 0.5], [2.0, 1.0], [1.0, 3.0], error=1e-10, horizon=100.0)
    assert len(nodes) == 2
    assert nodes.trace == 2.5
    assert nodes.total_target_power == 5.0
    assert repr(nodes) == "SpectralNodes(2 nodes, eigenvalues 0.5 to 1, error 1e-10, horizon 100)"
    for array in (nodes.eigenvalues, nodes.target_power, nodes.weights):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1.0
    assert len(exact_nodes(np.array([1.0, 0.0]), np.array([1.0, 1.0]))) == 1


@pytest.mark.parametrize("argument", ["eigenvalues", "target_power", "weights"])
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([1.0, -1.0], ValueError, r"^{} must be finite and at least 0, got .*-1\.0.* at index 1$"),
        ([math.nan, 1.0], ValueError, r"^{} must be finite and at least 0, got .*nan.* at index 0$"),
        ([1.0, math.inf], ValueError, r"^{} must be finite and at least 0, got .*inf.* at index 1$"),
        ([[1.0, 1.0]], ValueError, r"^{} must have one dimension, got shape \(1, 2\)$"),
        ([], ValueError, r"^{} must have at least one entry, got none$"),
        (["a", "b"], TypeError, r"^{} must be an array of real numbers, got dtype <U1$"),
        ([1.0], ValueError, r"^eigenvalues, target_power and weights must have one shape, got .*\(1,\)"),
    ],
)
def test_spectral_nodes_refuse(argument, value, error, message):
    arguments = {name: [1.0, 1.0] for name in ("eigenvalues", "target_power", "weights")} | {argument: value}
    with pytest.raises(error, match=message.format(argument)):
        SpectralNodes(**arguments)


# ---------------------------------------------------------------------------------------- discrete Gauss sums


@pytest.mark.parametrize("start", [33.0, 1e6])
@pytest.mark.parametrize("n", [1, 2, 5, 10, 12])
@pytest.mark.parametrize("length", [1, 4, 11, 12, 13, 40, 1000])
def test_discrete_gauss_is_exact_up_to_degree_2n_minus_1(start, length, n):
    nodes, weights = _discrete_gauss(start, float(length), n)
    assert len(nodes) == min(n, length)
    assert (weights > 0.0).all()
    assert nodes.min() >= start - 1e-9
    assert nodes.max() <= start + length - 1 + 1e-9
    half = max(0.5 * (length - 1), 0.5)
    u = (nodes - start - 0.5 * (length - 1)) / half
    k = [Fraction(2 * j - (length - 1), max(length - 1, 1)) for j in range(length)]
    for degree in range(2 * n):
        expected = float(sum(value**degree for value in k))
        scale = float(sum(abs(value) ** degree for value in k))
        # Rounding of nodes near 1e6 moves u by 1e-10/half, times the degree.
        tolerance = 1e-13 + 2.0 * degree * np.spacing(start + length) / half
        assert abs(np.sum(weights * u**degree) - expected) <= tolerance * scale, degree
    if n < length:
        # ... and no further: with an even monomial of degree 2n the rule is too small.
        expected = float(sum(value ** (2 * n) for value in k))
        assert np.sum(weights * u ** (2 * n)) < expected * (1.0 - 1e-9)


def test_discrete_gauss_turns_into_gauss_legendre():
    nodes, weights = _discrete_gauss(1e12, 1e12, 10)
    x, w = np.polynomial.legendre.leggauss(10)
    # The next correction is (n/length)^2 = 1e-22; nodes are rounded at 2e12. The block's centre is at 1.5e12 - 1/2.
    u = (nodes - (1.5e12 - 0.5)) / 0.5e12
    np.testing.assert_allclose(u, x, rtol=0, atol=2e-15 + 2 * np.spacing(2e12) / 0.5e12)
    np.testing.assert_allclose(weights / 1e12, 0.5 * w, rtol=1e-13, atol=0)


# -------------------------------------------------------------------------------------------------- merging


def power_law_measure(alpha, beta, which, rtol=1e-12, horizon=1e6):
    nodes = sf.PowerLawSpectrum(alpha, beta).quadrature(rtol=rtol, horizon=horizon)
    power = nodes.weights * (nodes.eigenvalues if which == "mode" else nodes.target_power)
    return nodes.eigenvalues[power > 0.0], power[power > 0.0]


def cases():
    """Measures of every kind: dense, gapped, with ties, with tiny masses, over few and many decades."""
    rng = np.random.default_rng(7)
    return {
        "power law": power_law_measure(1.5, 0.5, "mode"),
        "sources": power_law_measure(1.5, 0.5, "source"),
        "slow power law": power_law_measure(1.05, 2.2, "source"),
        "dense octave": (rng.uniform(0.5, 1.0, 1000), rng.uniform(0.0, 1.0, 1000) + 1e-3),
        "many decades": (10.0 ** rng.uniform(-9.0, 0.0, 3000), 10.0 ** rng.uniform(-12.0, 0.0, 3000)),
        "digits": (sf.datasets.digits_spectrum().eigenvalues,) * 2,
        "ties": (np.repeat([1.0, 0.9, 0.3, 1e-3, 1e-5], [1, 40, 30, 20, 50]), np.full(141, 0.1)),
    }


CASES = cases()


def _sum(x, mass, function, tau):
    return float(np.sum(mass * function(x * tau)))


@pytest.mark.parametrize("rtol", [1e-5, 1e-8, 1e-12])
@pytest.mark.parametrize("horizon", [10.0, 300.0, 1e5])
@pytest.mark.parametrize("case", CASES)
def test_merged_sums_keep_the_stated_error(case, horizon, rtol):
    """Fresh functions and times, none of them those that `merge` itself tries."""
    x, mass = CASES[case]
    merged_x, merged_mass, error = merge(x, mass, horizon, rtol)
    total = np.sum(mass)
    assert error <= rtol
    rng = np.random.default_rng(11)
    # From where the largest x begins to decay up to the horizon.
    tau = np.exp(rng.uniform(np.log(0.01 / x.max()), np.log(horizon), 200))
    # (1 - eta x)^t with eta x_max <= 1 and eta t <= horizon: steps of gradient descent, and their weights.
    # (Through log1p: rounding 1 - eta x first would cost 1e-16 t.)
    rates = rng.uniform(0.02, 0.99, 200) / x.max()
    steps = np.floor(tau / rates)
    decays = [lambda z, eta=eta, t=t: np.exp(t * np.log1p(-eta * z)) for eta, t in zip(rates, steps, strict=True)]
    responses = [
        lambda z, eta=eta, t=t: eta * t * z * np.exp(max(t - 1.0, 0.0) * np.log1p(-eta * z))
        for eta, t in zip(rates, steps, strict=True)
    ]
    families = {
        "e^-z": [(lambda z: np.exp(-z), time) for time in tau],
        "z e^-z": [(lambda z: z * np.exp(-z), time) for time in tau],
        "1 - e^-z": [(lambda z: -np.expm1(-z), time) for time in tau],
        "z^2 e^-2z": [(lambda z: z * z * np.exp(-2.0 * z), time) for time in 0.5 * tau],
        "(1 - eta x)^t": [(decay, 1.0) for decay in decays],
        "eta t x (1 - eta x)^(t-1)": [(response, 1.0) for response in responses],
    }
    for name, members in families.items():
        worst = max(abs(_sum(x, mass, f, t) - _sum(merged_x, merged_mass, f, t)) for f, t in members) / total
        # The stated error is a maximum over two families at 15 times a decade; others deviate alike, not equally:
        # a factor 5. Sums of thousands of terms round at 1e-14.
        assert worst <= 5.0 * error + 1e-14, name


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("horizon", [10.0, 1e5])
def test_merging_keeps_mass_and_moments(case, horizon):
    x, mass = CASES[case]
    merged_x, merged_mass, _ = merge(x, mass, horizon, 1e-8)
    assert len(merged_x) == len(merged_mass) <= len(x)
    assert (merged_mass > 0.0).all()
    assert (np.diff(merged_x) <= 0.0).all()
    # Nodes lie between the smallest and largest of their group, up to rounding of its largest.
    assert x.min() - 1e-14 * x.max() <= merged_x.min()
    assert merged_x.max() <= x.max() * (1.0 + 1e-14)
    # At least four nodes a group: exact up to degree 7. Rounding of up to 3000 terms.
    for degree in range(8):
        assert np.sum(merged_mass * merged_x**degree) == pytest.approx(np.sum(mass * x**degree), rel=1e-12, abs=0)


def test_merging_merges():
    """The point of it: far fewer nodes. Numbers measured once; half as many again would be a regression."""
    x, mass = CASES["dense octave"]
    assert len(merge(x, mass, 10.0, 1e-8)[0]) <= 15
    x, mass = CASES["digits"]
    assert len(merge(x, mass, 300.0, 1e-8)[0]) <= 80


@pytest.mark.parametrize("horizon", [1.0, 1e3, 1e9])
def test_few_nodes_are_kept_as_they_are(horizon):
    x, mass = np.array([0.3, 1.0, 0.7, 1e-6]), np.array([1.0, 2.0, 3.0, 4.0])
    merged_x, merged_mass, error = merge(x, mass, horizon, 1e-8)
    np.testing.assert_array_equal(merged_x, [1.0, 0.7, 0.3, 1e-6])
    np.testing.assert_array_equal(merged_mass, [2.0, 3.0, 1.0, 4.0])
    assert error == 0.0


def _same_measure(first, second, horizon, rtol):
    """Compare through sums, as nodes that two routes find may differ where nothing depends on them."""
    tau = np.append(np.geomspace(1e-3, horizon, 30), 0.0)
    for function in (lambda z: np.exp(-z), lambda z: z * np.exp(-z)):
        difference = max(abs(_sum(*first, function, t) - _sum(*second, function, t)) for t in tau)
        assert difference <= rtol * np.sum(first[1])


@settings(deadline=None, max_examples=60)
@given(
    logs=st.lists(st.floats(-6.0, 0.0), min_size=1, max_size=40),
    seed=st.integers(0, 2**32 - 1),
    log_horizon=st.floats(0.0, 6.0),
)
def test_the_order_of_nodes_does_not_matter(logs, seed, log_horizon):
    x, horizon = 10.0 ** np.array(logs), 10.0**log_horizon
    rng = np.random.default_rng(seed)
    mass = rng.uniform(0.01, 1.0, x.size)
    order = rng.permutation(x.size)
    first, second = merge(x, mass, horizon, 1e-8), merge(x[order], mass[order], horizon, 1e-8)
    assert len(first[0]) == len(second[0])
    # Exact where all x differ: both are sorted first. Ties stay in the order given, and round differently.
    if np.unique(x).size == x.size:
        np.testing.assert_array_equal(first[0], second[0])
        np.testing.assert_array_equal(first[1], second[1])
    _same_measure(first[:2], second[:2], horizon, 1e-13)


@settings(deadline=None, max_examples=60)
@given(
    logs=st.lists(st.floats(-6.0, 0.0), min_size=1, max_size=40),
    copies=st.integers(2, 12),
    seed=st.integers(0, 2**32 - 1),
    log_horizon=st.floats(0.0, 6.0),
)
def test_splitting_nodes_does_not_matter(logs, copies, seed, log_horizon):
    x, horizon = 10.0 ** np.array(logs), 10.0**log_horizon
    rng = np.random.default_rng(seed)
    mass = rng.uniform(0.01, 1.0, x.size)
    split = rng.integers(1, copies + 1, x.size)
    whole = merge(x, mass, horizon, 1e-8)
    parts = merge(np.repeat(x, split), np.repeat(mass / split, split), horizon, 1e-8)
    assert (parts[1] > 0.0).all()
    assert np.isfinite(parts[0]).all()
    # Either may have merged, each within 1e-8 of the total mass.
    _same_measure(whole[:2], parts[:2], horizon, 2e-8)
    assert parts[2] <= 1e-8


@pytest.mark.parametrize("n_distinct", [1, 2, 3, 4, 6])
def test_equal_nodes_become_one(n_distinct):
    """Fewer different eigenvalues than nodes of a rule: the measure itself is the rule."""
    x = np.repeat(np.linspace(0.6, 1.0, n_distinct), 50)
    merged_x, merged_mass, error = merge(x, np.ones(x.size), 10.0, 1e-8)
    assert np.sum(merged_mass) == pytest.approx(50.0 * n_distinct, rel=1e-13, abs=0)
    assert error <= 1e-8
    assert len(merged_x) <= max(4, n_distinct)
    tau = np.array([0.1, 1.0, 10.0])
    expected = 50.0 * np.exp(-np.outer(tau, np.linspace(0.6, 1.0, n_distinct))).sum(axis=1)
    np.testing.assert_allclose(np.exp(-np.outer(tau, merged_x)) @ merged_mass, expected, rtol=1e-7, atol=0)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_merging_scales(data):
    """Nodes times c and horizon over c is the same problem; so are masses times a constant."""
    x, mass = CASES["dense octave"]
    c = 2.0 ** data.draw(st.integers(-20, 20))
    first = merge(x, mass, 100.0, 1e-8)
    second = merge(c * x, 4.0 * mass, 100.0 / c, 1e-8)
    # Powers of two change no rounding but that of the times tried, which choose no other rule here.
    np.testing.assert_array_equal(c * first[0], second[0])
    np.testing.assert_array_equal(4.0 * first[1], second[1])


def _step_sum(x, mass, rate, steps):
    """sum_q m_q (1 - rate x_q)^t and sum_q m_q |1 - rate x_q|^t for each t."""
    factor = 1.0 - rate * x
    size = np.abs(factor)
    # Through log1p where x is small: rounding 1 - rate x first would cost 1e-16 t.
    logarithm = np.where(rate * x < 0.5, np.log1p(-np.minimum(rate * x, 0.5)), np.log(np.maximum(size, 1e-300)))
    decay = np.exp(np.multiply.outer(steps, logarithm))
    sign = np.where((steps % 2.0 == 1.0)[:, None], np.sign(factor), 1.0)
    return (decay * sign) @ mass, decay @ mass


def _whole_numbers(last, count):
    return np.unique(np.floor(np.concatenate([np.arange(min(last, 60.0)), np.geomspace(1.0, max(last, 1.0), count)])))


@pytest.mark.parametrize("rtol", [1e-6, 1e-9, 1e-12])
@pytest.mark.parametrize("horizon", [10.0, 1e3, 1e5])
@pytest.mark.parametrize("case", CASES)
def test_merged_steps_near_the_stability_bound(case, horizon, rtol):
    """(1 - r x)^t with r max x up to 1.9: the largest x alternate in sign and decay slowly."""
    x, mass = CASES[case]
    merged_x, merged_mass, error = merge(x, mass, horizon, rtol)
    for edge in (0.7, 1.3, 1.6, 1.9):
        rate = edge / x.max()
        steps = _whole_numbers(horizon / rate, 50)
        deviation = _step_sum(merged_x, merged_mass, rate, steps)[0] - _step_sum(x, mass, rate, steps)[0]
        worst = np.abs(deviation).max() / mass.sum()
        assert worst <= 5.0 * error + 2e-14, edge
        assert worst <= rtol + 2e-14, edge


# ------------------------------------------------------------------------------------------------ condensing


def condensed_cases():
    """Those of merging, power laws of a long horizon, and averages over projections with and without an atom."""
    result = {name: (*measure, 0.0) for name, measure in CASES.items()}
    result["long power law"] = (*power_law_measure(1.5, 0.5, "source", horizon=1e12), 0.0)
    result["long modes"] = (*power_law_measure(1.2, 1.0, "mode", horizon=1e12), 0.0)
    for name, width, n_modes in (("narrow", 8, None), ("wide", 200, None), ("all learned", 200, 100)):
        measure = sf.DeterministicEquivalent(sf.PowerLawSpectrum(1.5, 0.5, n_modes), width).measure()
        result[name] = measure.source_eigenvalues, measure.source_power, measure.atom
    return result


CONDENSED = condensed_cases()
# How sums decay matters down to here, condense says.
VANISHED = 1e-60


@pytest.mark.parametrize("rtol", [1e-5, 1e-8, 1e-11])
@pytest.mark.parametrize("horizon", [10.0, 1e4, 1e9])
@pytest.mark.parametrize("case", CONDENSED)
def test_condensed_sums_are_right_relative_to_themselves(case, horizon, rtol):
    x, mass, atom = CONDENSED[case]
    new_x, new_mass, error = condense(x, mass, horizon, rtol, atom)
    assert error <= rtol
    assert len(new_x) == len(new_mass) <= len(x)
    assert (new_mass > 0.0).all()
    assert (np.diff(new_x) < 0.0).all()
    assert new_mass.sum() == pytest.approx(mass.sum(), rel=1e-12, abs=0)
    vanished = VANISHED * (mass.sum() + atom)
    tau = np.geomspace(1e-3 / x.max(), horizon, 97)
    # Functions of x tau and whether the atom takes part; derivatives tell how rounding of nodes enters.
    families = {
        "e^-z": (lambda z: np.exp(-z), lambda z: z * np.exp(-z), True),
        "1/(1+z)^2": (lambda z: 1.0 / (1.0 + z) ** 2, lambda z: z / (1.0 + z) ** 3, True),
        "(1-e^-z)^2/z": (lambda z: np.expm1(-z) ** 2 / z, lambda z: z / (1.0 + z) ** 2, False),
    }
    for name, (function, slope, with_atom) in families.items():
        exact, sums = function(np.outer(tau, x)) @ mass, function(np.outer(tau, new_x)) @ new_mass
        scale = exact + (atom if with_atom else 0.0) + vanished
        rounding = 5e-15 * (slope(np.outer(tau, x)) @ mass)
        deviation = (np.maximum(np.abs(sums - exact) - rounding, 0.0) / scale).max()
        assert deviation <= 10.0 * error + 1e-14, name
        assert deviation <= rtol + 1e-14, name
    for edge in (0.5, 1.0, 1.4, 1.9):
        rate = edge / x.max()
        steps = _whole_numbers(horizon / rate, 60)
        exact, scale = _step_sum(x, mass, rate, steps)
        sums, _ = _step_sum(new_x, new_mass, rate, steps)
        slopes = np.minimum(rate * x / np.maximum(np.abs(1.0 - rate * x), 1e-3), 1e3)
        rounding = 5e-15 * steps * _step_sum(x, mass * slopes, rate, steps)[1]
        deviation = (np.maximum(np.abs(sums - exact) - rounding, 0.0) / (scale + atom + vanished)).max()
        assert deviation <= 10.0 * error + 1e-14, edge
        assert deviation <= 2.0 * rtol + 1e-14, edge


def test_condensing_condenses():
    """Numbers measured once; half as many again would be a regression."""
    x, mass, _ = CONDENSED["long power law"]
    assert len(condense(x, mass, 1e12, 1e-8)[0]) <= 150
    x, mass, atom = CONDENSED["wide"]
    assert len(condense(x, mass, 1e9, 1e-8, atom)[0]) <= 75


def test_an_atom_spares_nodes():
    """What has decayed far below the atom needs no digits of its own."""
    x, mass, _ = CONDENSED["dense octave"]
    alone = condense(x, mass, 1e4, 1e-8)
    beside = condense(x, mass, 1e4, 1e-8, atom=0.1 * mass.sum())
    assert len(beside[0]) < 0.5 * len(alone[0])
    assert beside[2] <= 1e-8


@pytest.mark.parametrize("horizon", [1.0, 1e3, 1e9])
def test_condensing_keeps_few_nodes(horizon):
    x, mass = np.array([0.3, 1.0, 0.7, 1e-6]), np.array([1.0, 2.0, 3.0, 4.0])
    new_x, new_mass, error = condense(x, mass, horizon, 1e-8)
    np.testing.assert_array_equal(new_x, [1.0, 0.7, 0.3, 1e-6])
    np.testing.assert_array_equal(new_mass, [2.0, 3.0, 1.0, 4.0])
    assert error == 0.0


@settings(deadline=None, max_examples=60)
@given(
    logs=st.lists(st.floats(-6.0, 0.0), min_size=1, max_size=60),
    copies=st.integers(1, 12),
    seed=st.integers(0, 2**32 - 1),
    log_horizon=st.floats(0.0, 6.0),
)
def test_condensing_any_measure_in_any_order(logs, copies, seed, log_horizon):
    rng = np.random.default_rng(seed)
    x, horizon = 10.0 ** np.array(logs), 10.0**log_horizon
    mass = rng.uniform(0.01, 1.0, x.size)
    split = np.repeat(np.arange(x.size), rng.integers(1, copies + 1, x.size))
    split = rng.permutation(split)
    count = np.bincount(split, minlength=x.size)
    new_x, new_mass, error = condense(x[split], (mass / count)[split], horizon, 1e-8)
    assert error <= 1e-8
    assert (new_mass > 0.0).all()
    tau = np.geomspace(1e-3, horizon, 40)
    exact = np.exp(-np.outer(tau, x)) @ mass
    difference = np.abs(np.exp(-np.outer(tau, new_x)) @ new_mass - exact)
    assert (difference <= 1e-8 * (exact + VANISHED * mass.sum()) + 1e-13 * exact).all()


# ------------------------------------------------------------------------------------------------------- tails


@pytest.mark.parametrize("exponent", [1.01, 1.5, 3.0])
@pytest.mark.parametrize("first", [100.0, 0.99e8, 1.01e8, 1e20])
@pytest.mark.parametrize("factor", [1.5, 1e3, math.inf])
def test_power_sums(exponent, first, factor):
    """Euler-Maclaurin up to the third derivative, which is 1e-12 of the sum and less from mode 100 on."""
    first, last = math.floor(first), math.floor(factor * first) if factor < math.inf else math.inf
    n = exponent - 1.0
    ratio = 0.0 if last == math.inf else (last / first) ** -n
    expected = first**-n * (1.0 - ratio) / n + 0.5 * (first**-exponent + last**-exponent)
    expected += exponent / 12.0 * (first ** -(exponent + 1.0) - last ** -(exponent + 1.0))
    expected -= exponent * (exponent + 1.0) * (exponent + 2.0) / 720.0 * (
        first ** -(exponent + 3.0) - last ** -(exponent + 3.0)
    )
    assert _power_sum(exponent, float(first), float(last)) == pytest.approx(expected, rel=1e-11, abs=0)


@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_power_sums_that_diverge_are_finite_up_to_a_last_mode(exponent):
    expected = math.log(1e3) if exponent == 1.0 else 2.0 * (math.sqrt(1e23) - math.sqrt(1e20))
    assert _power_sum(exponent, 1e20, 1e23) == pytest.approx(expected, rel=1e-13, abs=0)


@pytest.mark.parametrize("horizon", [1e3, 1e12, 1e20, 1e30])
@pytest.mark.parametrize("alpha", [1.05, 1.5, 3.0])
def test_nodes_of_any_horizon_are_made_of_doubles(alpha, horizon):
    """Mode numbers beyond 2^63 must not turn into Python's integers, whose arrays are slow."""
    k, weights = _discrete_gauss(10**25, 10**25, 10)
    assert k.dtype == weights.dtype == np.float64
    nodes = sf.PowerLawSpectrum(alpha, 0.5).quadrature(horizon=horizon)
    assert nodes.trace == pytest.approx(zeta(alpha), rel=1e-13, abs=0)
    assert nodes.total_target_power == pytest.approx(zeta(0.5 * alpha + 1.0), rel=1e-13, abs=0)
