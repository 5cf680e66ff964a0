r"""The deterministic equivalent against closed forms, plain sums and random matrices.

Theory. X = Lambda^{1/2} (A^T A/N) Lambda^{1/2} has, averaged over A in the deterministic equivalent, the source measure
mu (with its atom at 0) and the trace measure rho. Oracles:

* masses: mu + atom = sum u^2, rho = min(N, M);
* moments: rho(s) = sum lambda, rho(s^2) = sum lambda^2 + (sum lambda)^2/N, mu(s) = sum u^2 lambda,
  mu(s^2) = sum u^2 lambda^2 + (sum u^2 lambda)(sum lambda)/N; powers of infinite power laws are zeta functions;
* equal eigenvalues: the Marchenko-Pastur law;
* the fixed point m = 1/(1 + (1/N) sum lambda/(z + lambda m)) iterated with plain sums over all modes;
* the equation for kappa in 100 digits;
* realised matrices.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import zeta

import scalefield as sf
from reference_resolvent import cubed_uniform, modes_of, precise_learning_curve, precise_resolvents
from scalefield.resolvent import DeterministicEquivalent, bottleneck_loss
from strategies import tasks

WIDTHS = [1, 2.5, 4, 64, 256, 4096, 1e6]
LAWS = [(1.2, 0.3), (1.5, 1.0), (2.0, 2.0), (3.0, 0.3)]


def power_sums(spectrum):
    """Functions p -> sum lambda^p and p -> sum u^2 lambda^p."""
    if spectrum.n_modes is None:
        alpha, exponent = spectrum.alpha, spectrum.alpha * spectrum.beta + 1.0
        return lambda p: zeta(alpha * p), lambda p: zeta(exponent + alpha * p)
    eigenvalues, power = modes_of(spectrum)
    return lambda p: np.sum(eigenvalues**p), lambda p: np.sum(power * eigenvalues**p)


def check_moments(spectrum, width, rtol=1e-11):
    equivalent = DeterministicEquivalent(spectrum, width)
    measure = equivalent.measure()
    s, rho = measure.eigenvalues, measure.weights
    t, mu = measure.source_eigenvalues, measure.source_power
    trace, source = power_sums(spectrum)
    assert (rho >= 0.0).all()
    assert (mu >= 0.0).all()
    assert (s > 0.0).all()
    n_modes = math.inf if spectrum.n_modes is None else len(modes_of(spectrum)[0])
    close = {"rel": rtol, "abs": 1e-290}
    assert measure.total_power == pytest.approx(source(0), **close)
    assert rho.sum() == pytest.approx(min(width, n_modes), **close)
    assert rho @ s == pytest.approx(trace(1), **close)
    assert mu @ t == pytest.approx(source(1), **close)
    assert rho @ s**2 == pytest.approx(trace(2) + trace(1) ** 2 / width, **close)
    assert mu @ t**2 == pytest.approx(source(2) + source(1) * trace(1) / width, **close)
    return equivalent


def check_resolvents(equivalent, rtol=1e-10):
    """The nodes' Stieltjes transforms on the positive axis and on rays, over many decades of z."""
    measure = equivalent.measure()
    radius = np.geomspace(1e-9, 1e3, 13)
    for z in np.concatenate([radius, radius * np.exp(0.25j * np.pi), radius * np.exp(-0.6j * np.pi)]):
        source = np.sum(measure.source_power / (measure.source_eigenvalues + z)) + measure.atom / z
        trace = np.sum(measure.weights / (measure.eigenvalues + z))
        assert abs(source / equivalent.source_resolvent(z) - 1.0) <= rtol, z
        assert abs(trace / equivalent.trace_resolvent(z) - 1.0) <= rtol, z


# ------------------------------------------------------------------------------------------------ the measures


@pytest.mark.parametrize(("alpha", "beta"), LAWS)
@pytest.mark.parametrize("width", WIDTHS)
def test_infinite_power_laws(alpha, beta, width):
    equivalent = check_moments(sf.PowerLawSpectrum(alpha, beta), width)
    if width <= 4096:
        check_resolvents(equivalent)


@pytest.mark.parametrize("n_modes", [1, 2, 10, 40, 200, 5000])
@pytest.mark.parametrize("width", [1, 2.5, 10, 39.9, 40, 41, 200, 4096, 1e5])
@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.7), (1.2, 0.3), (3.0, 2.0)])
def test_finite_power_laws(alpha, beta, n_modes, width):
    equivalent = check_moments(sf.PowerLawSpectrum(alpha, beta, n_modes), width)
    if n_modes <= 200 and width <= 4096:
        check_resolvents(equivalent)


@pytest.mark.parametrize("width", [1, 4, 64, 256, 1024, 1796, 4096])
def test_a_measured_spectrum(width):
    check_resolvents(check_moments(sf.datasets.digits_spectrum(), width), rtol=1e-9)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 7, 8, 9, 30, 1000])
def test_ties_and_zeros(width):
    spectrum = sf.Spectrum([1, 1, 1, 0.5, 0.5, 0, 0, 1e-3, 1e-3, 1e-6], [1, 2, 3, 4, 5, 6, 7, 8, 9, 1])
    check_resolvents(check_moments(spectrum, width))


@settings(max_examples=60)
@given(spectrum=tasks(max_modes=12), width=st.floats(1.0, 1e3))
def test_moments_of_any_task(spectrum, width):
    """Also where N is near M, the spectrum then reaching nearly to 0: fewer digits are asked for."""
    eigenvalues = spectrum.quadrature().eigenvalues
    if eigenvalues.min() > 0.0:
        check_moments(spectrum, width, rtol=1e-7)


@st.composite
def wide_tasks(draw):
    """Explicit spectra over 40 decades: gaps, ties, modes at rounding level, zeros; and widths on both sides of M."""
    decade = st.floats(-40.0, 0.0)
    shape = draw(st.sampled_from(["free", "gap", "rank deficient"]))
    if shape == "free":
        exponents = draw(st.lists(decade, min_size=1, max_size=16))
        exponents += draw(st.lists(st.sampled_from(exponents), max_size=4))
    else:
        exponents = draw(st.lists(st.floats(-3.0, 0.0), min_size=1, max_size=12))
        gap = draw(decade) if shape == "gap" else -17.0
        exponents += [gap + x for x in draw(st.lists(st.floats(-1.0, 0.0), min_size=1, max_size=12))]
    eigenvalues = [10.0**x for x in exponents] + [0.0] * draw(st.integers(0, 2))
    # u^2 alike at all eigenvalues, or w* alike
    coefficients = np.ones(len(eigenvalues))
    if draw(st.booleans()):
        coefficients = np.maximum(eigenvalues, 1e-60) ** -0.5
    n_modes = len(exponents)
    width = draw(
        st.integers(1, 2 * n_modes + 1)
        | st.floats(1.0, 2.0 * n_modes + 1.0)
        | st.builds(lambda n, x: max(1.0, n + x), st.integers(1, n_modes), st.sampled_from([-1e-4, 1e-4, 1e-9]))
    )
    return sf.Spectrum(eigenvalues, coefficients), width


@settings(max_examples=80)
@given(wide_tasks())
def test_spectra_over_forty_decades(task):
    """All masses, first moments and resolvents keep their digits wherever the modes lie, at z of every scale."""
    spectrum, width = task
    equivalent = check_moments(spectrum, width, rtol=1e-10)
    measure = equivalent.measure()
    lam, _ = modes_of(spectrum)
    radius = np.geomspace(1e-3 * lam[-1], 10.0 * lam[0], 4)
    points = [*radius.tolist(), *(radius[1::2] * np.exp(0.6j * np.pi)).tolist()]
    for z, (source, trace) in zip(points, precise_resolvents(equivalent, points), strict=True):
        found = np.sum(measure.source_power / (measure.source_eigenvalues + z)) + measure.atom / z
        assert abs(found / complex(source) - 1.0) <= 1e-10, z
        assert abs(np.sum(measure.weights / (measure.eigenvalues + z)) / complex(trace) - 1.0) <= 1e-10, z


@pytest.mark.parametrize("last", [None, 1e-8, 1e-30])
def test_breaks_between_bands_of_pieces(last):
    """A spectrum of 61 drawn modes, the last one as it is or far below, at widths up to and beyond M."""
    for width in range(1, 81):
        check_moments(cubed_uniform(0, last), width, rtol=1e-11)


@pytest.mark.parametrize(("last", "width"), [(None, 30), (1e-30, 24), (1e-30, 60)])
def test_learning_curves_of_wide_spectra(last, width):
    """Lazy gradient flow, L = mu(e^{-2 s tau}), against Talbot's contour with resolvents of 100 digits."""
    spectrum = cubed_uniform(0, last)
    equivalent = sf.DeterministicEquivalent(spectrum, width)
    tau = np.geomspace(0.1, 1e14, 5)
    loss = sf.solve_gradient_flow(sf.Model(spectrum, width=width), tau).loss
    # The flow itself is right to 1e-10.
    for expected, value in zip(precise_learning_curve(equivalent, tau), loss, strict=True):
        assert value == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("n_modes", "width"), [(3, 12.0), (12, 3.0), (5, 5.0)])
def test_equal_eigenvalues_are_marchenko_pastur(n_modes, width):
    spectrum = sf.Spectrum(np.full(n_modes, 2.0), np.ones(n_modes))
    equivalent = DeterministicEquivalent(spectrum, width)
    ratio = n_modes / width
    low, high = 2.0 * (1.0 - math.sqrt(ratio)) ** 2, 2.0 * (1.0 + math.sqrt(ratio)) ** 2
    np.testing.assert_allclose(equivalent.support, (low, high), rtol=1e-12, atol=1e-14)
    s = np.linspace(low, high, 41)[1:-1]
    expected = n_modes * np.sqrt((high - s) * (s - low)) / (2.0 * np.pi * 2.0 * ratio * s)
    source, trace = equivalent.density(s)
    np.testing.assert_allclose(trace, expected, rtol=1e-9, atol=0)
    # u is equally long along every eigenvector: 2 each.
    np.testing.assert_allclose(source, 2.0 * expected, rtol=1e-9, atol=0)
    assert equivalent.atom == pytest.approx(max(0.0, 2.0 * (n_modes - width)), rel=1e-13)
    source, trace = equivalent.density([[0.5 * low + 1e-300, 2.0 * high]])
    assert trace[0, 1] == source[0, 1] == 0.0
    assert low < 1e-13 or trace[0, 0] == 0.0


@pytest.mark.parametrize("width", [4, 256])
def test_density_and_edges_of_a_power_law(width):
    """The density is minus the imaginary part of the resolvent just off the spectrum, and 0 in gaps."""
    equivalent = DeterministicEquivalent(sf.PowerLawSpectrum(3.0, 0.5), width)
    edges = equivalent.edges
    assert len(edges) > 1
    assert (edges[:, 0] < edges[:, 1]).all()
    assert (edges[1:, 1] < edges[:-1, 0]).all()
    assert equivalent.density(0.5 * (edges[1:, 1] + edges[:-1, 0]))[1].max() == 0.0
    s = edges[:, 0] + np.array([[0.2], [0.7]]) * (edges[:, 1] - edges[:, 0])
    source, trace = equivalent.density(s)
    # Richardson extrapolation in the distance from the axis.
    values = []
    for h in (1e-4, 5e-5):
        z = -s + 1j * h * (edges[:, 1] - edges[:, 0])
        values.append([-equivalent.source_resolvent(z).imag / np.pi, -equivalent.trace_resolvent(z).imag / np.pi])
    expected = 2.0 * np.array(values[1]) - np.array(values[0])
    np.testing.assert_allclose(source, expected[0], rtol=1e-5, atol=0)
    np.testing.assert_allclose(trace, expected[1], rtol=1e-5, atol=0)
    assert sf.Model(equivalent.spectrum, width=width).largest_eigenvalue == pytest.approx(edges[0, 1], rel=1e-9)


@pytest.mark.parametrize("width", [4, 256])
def test_decayed_sums_keep_their_digits(width):
    """mu(e^{-s tau}) over many decades against a hyperbola around the negative axis (Talbot's contour)."""
    equivalent = DeterministicEquivalent(sf.PowerLawSpectrum(1.5, 1.0), width)
    measure = equivalent.measure()
    angle = (np.arange(1, 24, 2) * np.pi) / 24
    for tau in np.geomspace(0.1, 1e5, 7):
        cotangent = angle / np.tan(0.6407 * angle)
        contour = 24 / tau * (0.5017 * cotangent - 0.6122 + 0.2645j * angle)
        slope = (
            24
            / tau
            * (0.5017 * (1.0 / np.tan(0.6407 * angle) - 0.6407 * angle / np.sin(0.6407 * angle) ** 2) + 0.2645j)
        )
        values = np.exp(contour * tau) * equivalent.source_resolvent(contour) * slope
        expected = 2.0 * np.imag(np.sum(values)) / 24
        result = np.sum(measure.source_power * np.exp(-tau * measure.source_eigenvalues)) + measure.atom
        # 24 points are right to about 1e-12 of the total, 1e-10 beside the smallest sums here.
        assert result == pytest.approx(expected, rel=1e-9), tau


def test_infinite_width():
    spectrum = sf.PowerLawSpectrum(1.5, 0.5)
    equivalent = check_moments_at_infinite_width(spectrum)
    with pytest.raises(ValueError, match="infinite"):
        equivalent.trace_resolvent(1.0)
    digits = sf.datasets.digits_spectrum()
    equivalent = check_moments_at_infinite_width(digits)
    np.testing.assert_allclose(equivalent.trace_resolvent(0.3), np.sum(1.0 / (digits.eigenvalues + 0.3)), rtol=1e-13)
    assert equivalent.edges.shape == (0, 2)
    with pytest.raises(ValueError, match="density"):
        equivalent.density(1.0)


def check_moments_at_infinite_width(spectrum):
    equivalent = DeterministicEquivalent(spectrum, math.inf)
    measure = equivalent.measure()
    trace, source = power_sums(spectrum)
    assert measure.atom == 0.0
    assert measure.total_power == pytest.approx(source(0), rel=1e-12)
    assert measure.trace == pytest.approx(trace(1), rel=1e-12)
    assert measure.source_power @ measure.source_eigenvalues == pytest.approx(source(1), rel=1e-12)
    return equivalent


def test_measures_are_cached():
    equivalent = DeterministicEquivalent(sf.PowerLawSpectrum(1.5, 0.5), 16)
    assert equivalent.measure() is equivalent.measure()


# ---------------------------------------------------------------------------------------------- kappa and atom


@pytest.mark.parametrize("width", [1, 2.5, 64, 1500, 3000, 1e4])
def test_kappa_against_the_fixed_point(width):
    spectrum = sf.PowerLawSpectrum(1.5, 0.5, 2000)
    eigenvalues, power = modes_of(spectrum)
    equivalent = DeterministicEquivalent(spectrum, width)
    for z in (2.0, 0.1, 0.3 + 0.4j, -0.2 - 0.3j, 0.05j):
        m = 1.0
        for _ in range(3000):
            # Damped, since the map alternates.
            m = 0.5 * m + 0.5 / (1.0 + np.sum(eigenvalues / (z + eigenvalues * m)) / width)
        assert abs(equivalent.m(z) / m - 1.0) <= 1e-12
        assert abs(equivalent.kappa(z) * m / z - 1.0) <= 1e-12
        assert abs(equivalent.source_resolvent(z) / np.sum(power / (z + eigenvalues * m)) - 1.0) <= 1e-12
        expected = np.sum(1.0 / (z + eigenvalues * m)) - max(2000 - width, 0.0) / z
        assert abs(equivalent.trace_resolvent(z) / expected - 1.0) <= 1e-9


@pytest.mark.parametrize("alpha", [1.05, 1.5, 3.0])
@pytest.mark.parametrize("width", [1, 256, 1e6, 1e16])
@pytest.mark.parametrize("angle", [0.0, 0.25, 0.9, -0.6])
def test_kappa_over_eighty_decades(alpha, width, angle):
    """Points of a ray at once and one by one; the limits at both ends."""
    equivalent = DeterministicEquivalent(sf.PowerLawSpectrum(alpha, 0.5), width)
    z = np.geomspace(1e-40, 1e40, 200) * (np.exp(1j * np.pi * angle) if angle else 1.0)
    kappa = equivalent.kappa(z)
    assert (np.sign(kappa.imag) == np.sign(z.imag)).all()
    np.testing.assert_allclose(kappa[-1], z[-1], rtol=1e-13)
    if equivalent.kappa_0 > 1e-25:
        np.testing.assert_allclose(kappa[0], equivalent.kappa_0, rtol=1e-13)
    # The same to rounding, amplified at 0.9 pi where z'(kappa) is small.
    np.testing.assert_allclose([equivalent.kappa(point) for point in z[::23]], kappa[::23], rtol=1e-12)
    assert equivalent.kappa(z.reshape(4, 50)).shape == (4, 50)
    if angle in (0.0, 0.25):
        eigenvalues = np.arange(1.0, 2e4) ** -alpha
        for i in np.flatnonzero(np.abs(kappa) > 3.0)[::40]:
            # Modes beyond in the order of their first two powers.
            total = np.sum(eigenvalues / (kappa[i] + eigenvalues))
            total += zeta(alpha, 2e4) / kappa[i] - zeta(2.0 * alpha, 2e4) / kappa[i] ** 2
            assert abs(kappa[i] * (1.0 - total / width) - z[i]) <= 1e-11 * abs(kappa[i])


@pytest.mark.parametrize(("alpha", "beta", "width"), [(1.5, 0.5, 64), (3.0, 2.0, 1e6), (2.0, 3.0, 1e16)])
def test_the_atom(alpha, beta, width):
    """Sums by Euler-Maclaurin in log k from mode 1000 on; the atom is as small as 1e-32 here."""
    equivalent = DeterministicEquivalent(sf.PowerLawSpectrum(alpha, beta), width)
    first = 1000.0
    k = np.arange(1.0, first)
    x, weight = np.polynomial.legendre.leggauss(24)
    knots = np.arange(0.0, math.log(width) + 90.0 / min(alpha - 1.0, alpha * beta), 0.5)

    def total(f):
        log_k = math.log(first) + (knots[:, None] + 0.25 * (1.0 + x)).ravel()
        grid = np.exp(log_k)
        integral = np.sum(np.tile(0.25 * weight, knots.size) * grid * f(grid))
        h = 1e-3 * first
        slope = (f(first + h) - f(first - h)) / (2.0 * h)
        return np.sum(f(k)) + integral + 0.5 * f(first) - slope / 12.0

    kappa = equivalent.kappa_0
    assert total(lambda k: 1.0 / (1.0 + kappa * k**alpha)) == pytest.approx(width, rel=1e-11)
    atom = total(lambda k: k ** -(alpha * beta + 1.0) * kappa / (kappa + k**-alpha))
    assert equivalent.atom == pytest.approx(atom, rel=1e-10)


# ---------------------------------------------------------------------------------------------- random matrices


def test_realised_spectra():
    """200 matrices; traces of functions fluctuate at order 1, and deviate in the mean at order 1/N."""
    rng = np.random.default_rng(3)
    spectrum = sf.PowerLawSpectrum(1.2, 0.5, 60)
    eigenvalues, power = modes_of(spectrum)
    width, n_runs = 40, 200
    z = np.array([0.03, 0.3, 3.0])
    source, trace = np.empty((n_runs, 3)), np.empty((n_runs, 3))
    for run in range(n_runs):
        features = rng.standard_normal((width, 60)) * np.sqrt(eigenvalues)
        s, vectors = np.linalg.eigh(features.T @ features / width)
        s = np.maximum(s, 0.0)
        source[run] = (1.0 / (s + z[:, None])) @ (vectors.T @ np.sqrt(power)) ** 2
        trace[run] = (1.0 / (s[-width:] + z[:, None])).sum(axis=1)
    equivalent = DeterministicEquivalent(spectrum, width)
    for samples, expected in ((source, equivalent.source_resolvent(z)), (trace, equivalent.trace_resolvent(z))):
        error = samples.std(axis=0) / math.sqrt(n_runs)
        # Four standard errors and a finite-size bias of 2/N relative.
        assert (np.abs(samples.mean(axis=0) - expected) <= 4.0 * error + 2.0 / width * expected).all()


# -------------------------------------------------------------------------------------------------- bottlenecks


def brute_force_bottlenecks(eigenvalues, power, size):
    """Both losses from plain sums over the modes, kappa by bisection of its logarithm."""
    low, high = -300.0, math.log(eigenvalues.sum() / size) + 1e-9
    for _ in range(200):
        middle = 0.5 * (low + high)
        learned = eigenvalues / (eigenvalues + math.exp(middle))
        if math.fsum(learned) > size:
            low = middle
        else:
            high = middle
    kappa = math.exp(0.5 * (low + high))
    left, learned = kappa / (kappa + eigenvalues), eigenvalues / (kappa + eigenvalues)
    return math.fsum(power * left), math.fsum(power * left**2) / (math.fsum(learned * left) / size)


@pytest.mark.parametrize("size", [1, 2.5, 17, 150, 1200, 1999, 1999.9])
@pytest.mark.parametrize(("alpha", "beta"), [(0.6, 0.3), (1.2, 1.0), (1.5, 2.5), (4.0, 0.5), (3.0, 3.0)])
def test_bottlenecks_of_finite_power_laws(alpha, beta, size):
    spectrum = sf.PowerLawSpectrum(alpha, beta, 2000)
    width, samples = brute_force_bottlenecks(*modes_of(spectrum), size)
    # Losses down to 1e-30 here; near M kappa itself is a small difference.
    assert bottleneck_loss(spectrum, width=size) == pytest.approx(width, rel=1e-11, abs=0)
    assert bottleneck_loss(spectrum, n_samples=size) == pytest.approx(samples, rel=1e-11, abs=0)


@pytest.mark.parametrize("size", [1, 2, 4, 4.5, 6])
def test_bottlenecks_with_ties_and_zeros(size):
    spectrum = sf.Spectrum([1, 1, 0.5, 0, 0.5, 1e-3, 1e-3, 0, 1e-6], [1, 2, 3, 4, 5, 6, 7, 8, 9])
    width, samples = brute_force_bottlenecks(*modes_of(spectrum), size)
    assert bottleneck_loss(spectrum, width=size) == pytest.approx(width, rel=1e-12, abs=0)
    assert bottleneck_loss(spectrum, n_samples=size) == pytest.approx(samples, rel=1e-12, abs=0)


def test_bottlenecks_of_a_measured_spectrum():
    spectrum = sf.datasets.digits_spectrum()
    for size in (1, 100, 1500):
        width, samples = brute_force_bottlenecks(*modes_of(spectrum), size)
        assert bottleneck_loss(spectrum, width=size) == pytest.approx(width, rel=1e-12, abs=0)
        assert bottleneck_loss(spectrum, n_samples=size) == pytest.approx(samples, rel=1e-12, abs=0)


@pytest.mark.parametrize("alpha", [1.2, 2.0, 3.0])
@pytest.mark.parametrize("beta", [0.3, 0.7, 1.4, 1.6, 3.0])
def test_exponents_of_bottlenecks(alpha, beta):
    """N^{-alpha min(1, beta)} and P^{-alpha min(2, beta)}, at sizes where corrections have died out."""
    spectrum = sf.PowerLawSpectrum(alpha, beta)
    for name, limit in (("width", 1.0), ("n_samples", 2.0)):
        sizes = np.array([1e14, 1e15])
        losses = [bottleneck_loss(spectrum, **{name: size}) for size in sizes]
        slope = math.log(losses[1] / losses[0]) / math.log(sizes[1] / sizes[0])
        # The next term is smaller by the size to the power alpha |limit - beta|, at least 0.36 here.
        assert slope == pytest.approx(-alpha * min(limit, beta), abs=2e-4 if alpha * abs(limit - beta) < 0.7 else 1e-6)


@pytest.mark.parametrize("spectrum", [sf.PowerLawSpectrum(1.5, 0.5), sf.PowerLawSpectrum(2.0, 3.0, 300)])
def test_bottlenecks_fall_with_size(spectrum):
    sizes = np.geomspace(1.0, 290.0, 60)
    for name in ("width", "n_samples"):
        losses = np.array([bottleneck_loss(spectrum, **{name: size}) for size in sizes])
        assert (losses > 0.0).all()
        if name == "width":
            # Ridgeless regression may get worse with data (double descent); a wider network does not.
            assert (np.diff(losses) < 0.0).all()
            assert losses[0] < spectrum.total_target_power


def test_no_bottleneck_from_the_number_of_modes_on():
    spectrum = sf.Spectrum([1.0, 0.5, 0.0], [1.0, 1.0, 1.0])
    for name in ("width", "n_samples"):
        assert bottleneck_loss(spectrum, **{name: 1.9}) > 0.0
        for size in (2, 2.5, 1e9, math.inf):
            assert bottleneck_loss(spectrum, **{name: size}) == 0.0
        assert bottleneck_loss(sf.PowerLawSpectrum(1.5, 0.5), **{name: math.inf}) == 0.0


def test_realised_width_bottlenecks():
    """Atoms of 300 realised projections: their mean within four standard errors and a bias of order 1/N."""
    spectrum = sf.PowerLawSpectrum(1.4, 0.7, 120)
    for width in (10, 40):
        atoms = np.array([sf.SpectralMeasure.from_projection(spectrum, width, seed).atom for seed in range(300)])
        expected = bottleneck_loss(spectrum, width=width)
        error = atoms.std(ddof=1) / math.sqrt(atoms.size)
        assert abs(atoms.mean() - expected) <= 4.0 * error + 0.5 / width * expected


def test_realised_data_bottlenecks():
    """Ridgeless regression on P Gaussian samples, 300 times: their mean within four standard errors and O(1/P)."""
    rng = np.random.default_rng(8)
    spectrum = sf.PowerLawSpectrum(1.4, 0.7, 120)
    eigenvalues, coefficients = spectrum.modes(0, 120)
    for samples in (10, 40):
        losses = np.empty(300)
        for run in range(losses.size):
            data = rng.standard_normal((samples, 120)) * np.sqrt(eigenvalues)
            # Least norm in the space of unscaled features.
            fit = np.linalg.lstsq(data, data @ coefficients, rcond=None)[0]
            losses[run] = np.sum(eigenvalues * (coefficients - fit) ** 2)
        expected = bottleneck_loss(spectrum, n_samples=samples)
        error = losses.std(ddof=1) / math.sqrt(losses.size)
        assert abs(losses.mean() - expected) <= 4.0 * error + 2.0 / samples * expected


def test_bottlenecks_of_one_size_are_those_of_both():
    """The other size at inf, left out, or so large that it does not count."""
    spectrum = sf.PowerLawSpectrum(1.4, 0.7)
    for size in (1, 7.5, 400):
        width = bottleneck_loss(spectrum, width=size)
        assert bottleneck_loss(spectrum, width=size, n_samples=math.inf, label_noise=2.0) == width
        assert bottleneck_loss(spectrum, width=size, n_samples=1e18) == pytest.approx(width, rel=1e-12)
        for noise in (0.0, 0.5):
            data = bottleneck_loss(spectrum, n_samples=size, label_noise=noise)
            assert bottleneck_loss(spectrum, width=math.inf, n_samples=size, label_noise=noise) == data
            wide = bottleneck_loss(spectrum, width=1e18, n_samples=size, label_noise=noise)
            assert wide == pytest.approx(data, rel=1e-12)


@pytest.mark.parametrize(("width", "samples"), [(10, 30), (30, 10), (10, 40), (40, 10), (60, 20), (20, 60), (150, 20)])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_realised_bottlenecks_of_width_and_samples(width, samples, noise):
    """Least squares or interpolation in drawn features, 300 times: within four standard errors and the bias.

    14 means at four standard errors: a false alarm in 1,100 runs. Over 3,000 draws the means lay above the theory by
    0.48 to 0.77 over min(N, P) of it, with errors of 0.07 to 0.14.
    """
    generator = np.random.default_rng(8)
    spectrum = sf.PowerLawSpectrum(1.4, 0.7, 120)
    eigenvalues, coefficients = spectrum.modes(0, 120)
    losses = np.empty(300)
    for run in range(losses.size):
        data = generator.standard_normal((samples, 120)) * np.sqrt(eigenvalues)
        projection = generator.standard_normal((width, 120)) / math.sqrt(width)
        labels = data @ coefficients + noise * generator.standard_normal(samples)
        fit = projection.T @ np.linalg.lstsq(data @ projection.T, labels, rcond=None)[0]
        losses[run] = np.sum(eigenvalues * (coefficients - fit) ** 2)
    expected = bottleneck_loss(spectrum, width=width, n_samples=samples, label_noise=noise)
    error = losses.std(ddof=1) / math.sqrt(losses.size)
    assert abs(losses.mean() - expected) <= 4.0 * error + 0.8 / min(width, samples) * expected


def test_bottlenecks_where_all_modes_can_be_learned():
    """What label noise leaves of least squares in M directions, M sigma^2/(P - M)."""
    spectrum = sf.Spectrum([1.0, 0.5, 0.2, 0.0], [1.0, 1.0, 1.0, 1.0])
    assert bottleneck_loss(spectrum, width=3, n_samples=5) == 0.0
    assert bottleneck_loss(spectrum, n_samples=3) == 0.0
    assert bottleneck_loss(spectrum, width=4, n_samples=5, label_noise=0.5) == pytest.approx(3 * 0.25 / 2, rel=1e-14)
    assert bottleneck_loss(spectrum, width=3, n_samples=5, label_noise=0.5) == pytest.approx(3 * 0.25 / 2, rel=1e-14)
    assert bottleneck_loss(spectrum, n_samples=3, label_noise=0.5) == math.inf
    assert bottleneck_loss(spectrum, width=3, n_samples=math.inf, label_noise=0.5) == 0.0


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_double_descent(noise):
    """In the width the loss peaks at N = P, with a pole on both sides, and falls beyond it to that of N = inf."""
    spectrum, samples = sf.PowerLawSpectrum(1.5, 0.75), 1000
    assert bottleneck_loss(spectrum, width=samples, n_samples=samples, label_noise=noise) == math.inf
    below = [bottleneck_loss(spectrum, width=n, n_samples=samples, label_noise=noise) for n in (500, 700, 900, 999)]
    above = [bottleneck_loss(spectrum, width=n, n_samples=samples, label_noise=noise) for n in (1001, 1100, 2000, 1e5)]
    assert (np.diff(below) > 0.0).all()
    assert (np.diff(above) < 0.0).all()
    residue = samples * (bottleneck_loss(spectrum, width=samples) + noise**2)
    for width in (samples - 1e-3, samples + 1e-3):
        loss = bottleneck_loss(spectrum, width=width, n_samples=samples, label_noise=noise)
        assert loss * 1e-3 == pytest.approx(residue, rel=1e-4)
    # Two sizes apart by a factor leave the law of the smaller one.
    for small, large in ((1e4, 1e6), (1e6, 1e8)):
        ratio = bottleneck_loss(spectrum, width=large, n_samples=small) / bottleneck_loss(spectrum, n_samples=small)
        assert ratio == pytest.approx(1.0, abs=0.05)


def test_no_target_leaves_noise_only():
    nothing = sf.Spectrum(np.arange(1.0, 40.0) ** -1.5, np.zeros(39))
    assert bottleneck_loss(nothing, width=10, n_samples=10) == 0.0
    assert bottleneck_loss(nothing, width=10, n_samples=30) == 0.0
    assert bottleneck_loss(nothing, width=10, n_samples=30, label_noise=2.0) == pytest.approx(4.0 * 10 / 20, rel=1e-14)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "^give width, n_samples or both, got neither$"),
        ({"width": 4, "label_noise": -1.0}, ValueError, "^label_noise must be a finite number at least 0, got -1.0$"),
        ({"width": 4, "label_noise": "1"}, TypeError, "^label_noise must be a real number"),
        ({"width": 0.5}, ValueError, "^width must be a number at least 1, got 0.5$"),
        ({"n_samples": 0}, ValueError, "^n_samples must be a number at least 1, got 0$"),
        ({"n_samples": math.nan}, ValueError, "^n_samples must be"),
        ({"width": "4"}, TypeError, "^width must be a real number"),
    ],
)
def test_refused_bottlenecks(arguments, error, message):
    with pytest.raises(error, match=message):
        bottleneck_loss(sf.PowerLawSpectrum(1.5, 0.5), **arguments)
    with pytest.raises(TypeError, match=r"^spectrum must be"):
        bottleneck_loss(3.0, width=4)


# ------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3.0, 4), TypeError, r"^spectrum must be"),
        ((sf.PowerLawSpectrum(1.5, 0.5), "4"), TypeError, r"^width must be a real number"),
        ((sf.PowerLawSpectrum(1.5, 0.5), 0.5), ValueError, r"^width must be .*at least 1, got 0.5"),
        ((sf.PowerLawSpectrum(1.5, 0.5), math.nan), ValueError, r"^width must be"),
    ],
)
def test_refused_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        DeterministicEquivalent(*arguments)


@pytest.mark.parametrize("method", ["kappa", "m", "source_resolvent", "trace_resolvent"])
@pytest.mark.parametrize(
    ("z", "error"), [(0.0, ValueError), (-1.0, ValueError), (math.nan, ValueError), ("1", TypeError), (None, TypeError)]
)
def test_refused_points(method, z, error):
    with pytest.raises(error, match=r"^z must be"):
        getattr(DeterministicEquivalent(sf.PowerLawSpectrum(1.5, 0.5), 4), method)(z)


@pytest.mark.parametrize(
    ("s", "error"), [(0.0, ValueError), (-1.0, ValueError), (math.inf, ValueError), ("a", TypeError)]
)
def test_refused_densities(s, error):
    with pytest.raises(error, match=r"^s must be"):
        DeterministicEquivalent(sf.PowerLawSpectrum(1.5, 0.5), 4).density(s)


def test_refused_accuracy():
    with pytest.raises(ValueError, match=r"^rtol must be"):
        DeterministicEquivalent(sf.PowerLawSpectrum(1.5, 0.5), 4).measure(rtol=1.0)
