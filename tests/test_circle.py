r"""Kernels on the circle: eigenvalues, null modes, and the tasks made of them.

Theory. lambda_k = (1/pi) int_0^pi K(theta) cos(k theta) dtheta. For one hidden layer without biases the coefficients of
kappa_q follow from those of kappa_1 by d kappa_q/d theta = -sin(theta) q^2/(2q-1) kappa_{q-1}, so that

    kappa_1: (4/pi^2)/(k^2 - 1)^2, k even;   kappa_2: (64/(3 pi^2))/(k (k^2 - 4))^2, k odd;
    kappa_3: (230.4/pi^2)/((k^2 - 1)(k^2 - 9))^2, k even;   and 0 for k > q of the other parity,

and the NTK kappa_q + cos(theta) q^2/(2q-1) kappa_{q-1} has means of neighbours of the latter. With L layers K falls as
K(0) - c |theta|, c = L (L + 1)/(2 pi) for relu, and an odd term at pi adds (-1)^k: integrating by parts once,
lambda_k k^2 -> (c + (-1)^k c')/pi.
"""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest

import scalefield as sf
from scalefield.errors import ScalefieldError
from scalefield.figures import figure_7
from scalefield.kernels import CircleEigenvalues, InfiniteWidthKernel, circle_eigenvalues, circle_spectrum

K_MAX = 100_000


def closed_nngp(q, k):
    """Fourier coefficients of kappa_q at frequencies above q, both parities."""
    k = np.asarray(k, dtype=np.float64)
    k = np.where(k % 2 == q % 2, np.inf, k)
    if q == 1:
        return 4.0 / math.pi**2 / (k**2 - 1.0) ** 2
    if q == 2:
        return 64.0 / (3.0 * math.pi**2) / (k * (k**2 - 4.0)) ** 2
    return 230.4 / math.pi**2 / ((k**2 - 1.0) * (k**2 - 9.0)) ** 2


def closed_ntk(q, k):
    if q == 1:
        # kappa_0 = 1 - theta/pi is not smooth enough for the recursion: 2/(pi k)^2 at odd k
        lower = [np.where(n % 2 == 1, 2.0 / (math.pi * n) ** 2, 0.0) for n in (k - 1.0, k + 1.0)]
    else:
        lower = [closed_nngp(q - 1, n) for n in (k - 1, k + 1)]
    return closed_nngp(q, k) + q * q / (2.0 * q - 1.0) * 0.5 * (lower[0] + lower[1])


@pytest.mark.parametrize("q", [1, 2, 3])
@pytest.mark.parametrize("kind", ["ntk", "nngp"])
def test_one_layer_in_closed_form_at_every_frequency(q, kind):
    """To k = 1e5, where relu^3 has 1e-28 (NTK) and 1e-38 (NNGP)."""
    modes = circle_eigenvalues(InfiniteWidthKernel("relu", q, kind=kind), K_MAX)
    k = np.arange(q + 2, K_MAX + 1)
    expected = (closed_ntk if kind == "ntk" else closed_nngp)(q, k)
    assert (modes.is_null[q + 2 :] == (expected == 0.0)).all()
    found = modes.eigenvalues[q + 2 :]
    assert (np.abs(found - expected) <= modes.errors[q + 2 :] + 1e-15 * expected).all()
    # 1e-12 at k of about ten, where the contour costs most, and rounding beyond
    shown = ~modes.is_null
    assert (modes.errors[shown] <= 5e-12 * modes.eigenvalues[shown]).all()
    np.testing.assert_allclose(found[100:], expected[100:], rtol=1.5e-14, atol=0)


def exact_profile(q, angle, depth, bias, kind):
    """K(theta) in the working precision, from the hypergeometric form of the arc-cosine functions."""

    def kappa(power, cosine):
        m = power + mpmath.mpf(1) / 2
        norm = mpmath.gamma(power + 1) ** 2 / mpmath.gamma(m + 1) / mpmath.gamma(m)
        z = (1 + cosine) / 2
        return norm * z**m * mpmath.hyp2f1(0.5, 0.5, m + 1, z)

    q, bias = mpmath.mpf(q), mpmath.mpf(bias)
    variance, sigma = 1 + bias, mpmath.cos(angle) + bias
    theta = sigma
    for _ in range(depth):
        cosine = sigma / variance
        sigma = variance**q * kappa(q, cosine) + bias
        theta = sigma + variance ** (q - 1) * q**2 / (2 * q - 1) * kappa(q - 1, cosine) * theta
        variance = variance**q + bias
    return theta if kind == "ntk" else sigma


@pytest.mark.parametrize(
    ("q", "depth", "bias", "kind"),
    [
        *[(1, 2, 0, "ntk"), (2, 2, 0.1, "ntk"), (3, 3, 0, "ntk"), (3, 1, 0.01, "nngp")],
        *[(1.25, 2, 0, "ntk"), (1.5, 1, 0.1, "nngp")],
    ],
)
def test_eigenvalues_against_quadrature_in_forty_digits(q, depth, bias, kind):
    """Relative errors below the estimates, and these below 1e-11, from k = 0 to 61.

    With a small bias and one layer every other eigenvalue is small, and its error relative to that larger.
    """
    rule = mpmath.calculus.quadrature.TanhSinh(mpmath.mp)
    with mpmath.workdps(40):
        level, precision = 6, 140
        nodes = rule.transform_nodes(
            [node for degree in range(1, level + 1) for node in rule.calc_nodes(degree, precision)], 0, mpmath.pi
        )
        terms = [(x, w * exact_profile(q, x, depth, bias, kind) / mpmath.pi / 2**level) for x, w in nodes]
        k = np.array([0, 1, 2, 3, 4, 7, 8, 13, 24, 40, 61])
        exact = [mpmath.fsum(term * mpmath.cos(int(n) * x) for x, term in terms) for n in k]
        modes = circle_eigenvalues(InfiniteWidthKernel("relu", q, depth, bias_variance=bias, kind=kind), 100)
        found = [mpmath.mpf(float(modes.eigenvalues[n])) for n in k]
        errors = np.array([float(abs(value - other)) for value, other in zip(found, exact, strict=True)])
    assert (errors <= modes.errors[k]).all()
    assert (modes.errors <= (1e-11 if depth > 1 else 4e-11) * modes.eigenvalues).all()


def test_two_layers_at_the_largest_frequencies():
    """lambda_k k^2 = (3 + (-1)^k/2)/pi^2 + O(1/k^2), relu NTK of two layers: slopes 3/pi at 0 and 1/(2 pi) at pi."""
    modes = circle_eigenvalues(InfiniteWidthKernel("relu", depth=2), K_MAX)
    k = np.arange(50_000, K_MAX + 1)
    scaled = modes.eigenvalues[k] * k.astype(float) ** 2 * math.pi**2
    np.testing.assert_allclose(scaled, np.where(k % 2 == 0, 3.5, 2.5), rtol=1e-8, atol=0)


@pytest.mark.parametrize(("q", "depth", "bias"), [(1, 2, 0.0), (2, 1, 0.2), (1.5, 3, 0.0), (0.75, 1, 0.0)])
def test_gram_matrices_on_the_circle(q, depth, bias):
    """The Gram matrix of n equidistant points is circulant: its eigenvalues/n are sums over k, k + n, k - n, ..."""
    n = 51
    angle = 2.0 * math.pi * np.arange(n) / n
    kernel = InfiniteWidthKernel("relu", q, depth, bias_variance=bias)
    gram = kernel(math.sqrt(2.0) * np.stack([np.cos(angle), np.sin(angle)], axis=1))
    modes = circle_eigenvalues(kernel, K_MAX)
    both = np.concatenate([modes.eigenvalues[:0:-1], modes.eigenvalues])
    frequency = np.arange(-K_MAX, K_MAX + 1)
    folded = np.bincount(frequency % n, both, minlength=n)
    # What lies beyond k_max is shared by all residues alike, to n/k_max; n is odd, or they would see one parity each.
    folded += modes.tail / n
    atol = 1e-14 * gram[0, 0] + 2e-3 * modes.tail / n
    np.testing.assert_allclose(np.linalg.eigvalsh(gram) / n, np.sort(folded), rtol=0, atol=atol)


@pytest.mark.parametrize("q", [1, 2, 3])
def test_null_modes_are_those_of_a_fourier_transform(q):
    """One layer: odd k >= 3, even k >= 4, odd k >= 5 for q = 1, 2, 3; none with a bias or a second layer."""
    first = {1: 3, 2: 4, 3: 5}[q]
    for kind in ("ntk", "nngp"):
        kernel = InfiniteWidthKernel("relu", q, kind=kind)
        modes = circle_eigenvalues(kernel, 40)
        np.testing.assert_array_equal(modes.frequencies[modes.is_null], np.arange(first, 41, 2))
        assert (modes.eigenvalues[modes.is_null] == 0.0).all()
        values = np.fft.rfft(kernel.angular_profile(2.0 * math.pi * np.arange(4096) / 4096)).real / 4096
        # Rounding, against 1e-9 and more of the modes that are there (aliases of a parity are of that parity)
        assert np.abs(values[:41][modes.is_null]).max() < 1e-15
        assert values[:41][~modes.is_null].min() > 1e-12
        for other in ({"bias_variance": 0.1}, {"depth": 2}):
            assert not circle_eigenvalues(InfiniteWidthKernel("relu", q, kind=kind, **other), 40).is_null.any()
    # Other powers are of no parity.
    assert not circle_eigenvalues(InfiniteWidthKernel("relu", q + 0.5), 40).is_null.any()


def test_odd_and_linear_activations():
    for name in ("erf", "tanh", "sin"):
        modes = circle_eigenvalues(InfiniteWidthKernel(name, depth=2), 30)
        assert (modes.is_null == (modes.frequencies % 2 == 0)).all()
        assert not circle_eigenvalues(InfiniteWidthKernel(name, depth=2, bias_variance=0.1), 30).is_null.any()
    modes = circle_eigenvalues(InfiniteWidthKernel("linear", depth=2), 10)
    np.testing.assert_array_equal(modes.frequencies[~modes.is_null], [1])
    # Theta = 3 cos(theta)
    assert modes.eigenvalues[1] == pytest.approx(1.5, rel=1e-14)
    modes = circle_eigenvalues(InfiniteWidthKernel("linear", depth=2, bias_variance=0.25), 10)
    np.testing.assert_array_equal(modes.frequencies[~modes.is_null], [0, 1])


def test_transforms_agree_with_the_contour_within_their_errors():
    for kernel in (InfiniteWidthKernel("relu", 1, 2), InfiniteWidthKernel("relu", 1.5, 2, bias_variance=0.1)):
        contour = circle_eigenvalues(kernel, 2000)
        transform = circle_eigenvalues(kernel.angular_profile, 2000)
        assert (contour.method, transform.method) == ("contour", "fft")
        difference = np.abs(contour.eigenvalues - transform.eigenvalues)
        assert (difference <= transform.errors + contour.errors).all()
        # The estimate is of the size of the error where aliasing dominates.
        if kernel.power == 1:
            assert np.median(difference / transform.errors) > 0.01


def test_smooth_activations_have_a_floor_that_is_told():
    modes = circle_eigenvalues(InfiniteWidthKernel("erf", depth=1, bias_variance=0.1), 200)
    resolved = modes.is_resolved
    assert resolved[:10].all()
    assert not resolved[150:].any()
    assert np.abs(modes.eigenvalues[150:]).max() <= modes.errors[150:].min()
    with pytest.raises(ValueError, match="four resolved"):
        modes.measured_exponent(100, 200)
    # And they are not in the task.
    assert modes.spectrum(1.0).n_modes == 2 * int(resolved[1:].sum())


@pytest.mark.parametrize(("q", "depth", "bias"), [(1, 1, 0.0), (2, 3, 0.0), (0.8, 2, 0.1), (3, 5, 0.1)])
def test_trace(q, depth, bias):
    """Sum over cosines and sines is K(0); the rest of a power law is what its last terms say."""
    modes = circle_eigenvalues(InfiniteWidthKernel("relu", q, depth, bias_variance=bias), K_MAX)
    assert modes.trace == InfiniteWidthKernel("relu", q, depth, bias_variance=bias).angular_profile(0.0)
    assert (modes.eigenvalues[~modes.is_null] > 0.0).all()
    mean = modes.eigenvalues[-200:].mean()
    tail = 2.0 * mean * K_MAX / (2.0 * q - 1.0)
    # One part in K_MAX for the end of the sum, rounding of the trace, and slow corrections k^-(2q - 1) for q = 0.8
    assert abs(modes.tail - tail) < (0.05 if q < 1 else 3e-3) * tail + 3e-14 * modes.trace


@pytest.mark.parametrize(("q", "depth"), [(1, 1), (1, 2), (2, 2), (3, 2), (1.5, 3)])
@pytest.mark.parametrize("target", [0.75, 1.0, 1.75])
def test_capacity_and_source_exponents(q, depth, target):
    """Alpha = 2 q and beta = (2 r - 1)/(2 q) within 2%, measured on modes in the order of a Spectrum."""
    modes = circle_eigenvalues(InfiniteWidthKernel("relu", q, depth), 20_000)
    assert modes.capacity_exponent == 2 * q
    beta = modes.source_exponent(target)
    assert beta == pytest.approx((2 * target - 1) / (2 * q))
    alpha, error = modes.measured_exponent(200, 20_000)
    assert abs(alpha - 2 * q) < 0.001 * alpha
    assert error < 1e-3
    spectrum = modes.spectrum(target, include_sine=False)
    # Tail sums fall as k^-(alpha beta) in the number of modes; the tail beyond k_max is k_max^-(2r-1) of it.
    tails = np.cumsum(spectrum.target_power[::-1])[::-1]
    if target > 0.75:
        window = np.unique(np.geomspace(20, 300, 40).astype(int))
        slope = np.polyfit(np.log(window), np.log(tails[window]), 1)[0]
        assert -slope / alpha == pytest.approx(beta, rel=0.02)


def test_tasks_of_the_circle():
    modes = circle_eigenvalues(InfiniteWidthKernel("relu", 1, 2), 500)
    spectrum = modes.spectrum(1.0)
    assert spectrum.n_modes == 1000
    assert spectrum.total_target_power == pytest.approx(1.0, rel=1e-13)
    assert spectrum.eigenvalues.sum() == pytest.approx(modes.trace - modes.tail - modes.eigenvalues[0], rel=1e-13)
    assert (spectrum.target_coefficients == 0.0).sum() == 500
    # y = sum_k cos(k theta)/k on a grid: its mean square and its coefficient in sqrt(2) cos(3 theta)
    plain = modes.spectrum(1.0, mean_square=None, include_sine=False, include_constant=True)
    theta = 2.0 * math.pi * np.arange(2048) / 2048
    y = (np.cos(np.outer(theta, np.arange(1, 501))) / np.arange(1, 501)).sum(axis=1)
    assert plain.total_target_power == pytest.approx((y**2).mean(), rel=1e-12)
    third = np.flatnonzero(plain.eigenvalues == modes.eigenvalues[3])[0]
    assert plain.target_power[third] == pytest.approx((y * math.sqrt(2.0) * np.cos(3 * theta)).mean() ** 2, rel=1e-12)
    assert plain.n_modes == 501
    assert circle_spectrum(InfiniteWidthKernel("relu", 1, 2), 1.0, 500) == spectrum
    wider = circle_spectrum(InfiniteWidthKernel("relu", 1, 2), 1.0, 500, input_variance=2.0)
    assert wider.eigenvalues[0] == pytest.approx(2.0 * spectrum.eigenvalues[0], rel=1e-12)


def test_null_modes_are_left_out_of_tasks(caplog):
    modes = circle_eigenvalues(InfiniteWidthKernel("relu"), 100)
    with caplog.at_level("INFO"):
        spectrum = modes.spectrum(1.0)
    # k = 1 and 50 even ones, cosine and sine
    assert spectrum.n_modes == 2 * 51
    assert "49 null and 0 unresolved" in caplog.text
    assert spectrum.total_target_power == pytest.approx(1.0, rel=1e-13)


def test_a_solver_takes_them():
    """Lazy gradient flow at infinite width on the circle's modes is sum_k p_k exp(-2 lambda_k tau)."""
    spectrum = circle_spectrum(InfiniteWidthKernel("relu", 1, 2), 1.0, 300)
    times = np.geomspace(0.1, 1e4, 7)
    flow = sf.solve_gradient_flow(sf.Model(spectrum), times)
    expected = np.exp(-2.0 * np.outer(times, spectrum.eigenvalues)) @ spectrum.target_power
    np.testing.assert_allclose(flow.loss, expected, rtol=1e-8, atol=0)


def test_files(tmp_path):
    modes = circle_eigenvalues(InfiniteWidthKernel("relu", 2), 50)
    modes.save(tmp_path / "modes.npz")
    loaded = CircleEigenvalues.load(tmp_path / "modes.npz")
    for name in ("frequencies", "eigenvalues", "errors", "is_null"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(modes, name))
        assert not getattr(loaded, name).flags.writeable
    assert (loaded.trace, loaded.method, loaded.description) == (modes.trace, modes.method, modes.description)
    assert repr(loaded) == repr(modes)
    assert loaded.measured_exponent(5, 50) == modes.measured_exponent(5, 50)
    sf.Spectrum([1.0], [1.0]).save(tmp_path / "other.npz")
    with pytest.raises(ScalefieldError):
        CircleEigenvalues.load(tmp_path / "other.npz")


def test_what_is_refused():
    kernel = InfiniteWidthKernel()
    modes = circle_eigenvalues(kernel, 10)
    for call, error, match in (
        (lambda: circle_eigenvalues(kernel, 0), ValueError, "k_max"),
        (lambda: circle_eigenvalues(kernel, 10, input_variance=0.0), ValueError, "input_variance"),
        (lambda: circle_eigenvalues(kernel, 10, points=20), ValueError, "points"),
        (lambda: circle_eigenvalues("relu", 10), TypeError, "kernel must be"),
        (lambda: circle_eigenvalues(lambda t: np.nan * t, 10), ValueError, "finite values"),
        (lambda: modes.spectrum(0.5), ValueError, "target_exponent"),
        (lambda: modes.spectrum(1.0, mean_square=0.0), ValueError, "mean_square"),
        (lambda: modes.measured_exponent(8, 10), ValueError, "four resolved"),
        (lambda: circle_eigenvalues(lambda t: 1.0 + 0.0 * t, 10).spectrum(1.0), ScalefieldError, "nothing can be"),
    ):
        with pytest.raises(error, match=match):
            call()
    assert circle_eigenvalues(np.cos, 10).capacity_exponent is None


def test_figure_7():
    """Exponents of every power and depth within 0.1% of 2 q, eigenvalues those of the call, panels for all."""
    data = figure_7.compute(quick=True)
    assert [curve.parameters["power"] for curve in data.exponents()] == [1] * 4 + [2] * 4 + [3] * 4
    for curve in data.exponents():
        assert curve.predicted_exponent == 2 * curve.parameters["power"]
        assert curve.measured_exponent == pytest.approx(curve.predicted_exponent, rel=1e-3)
    curve = data.exponents()[5]
    modes = circle_eigenvalues(InfiniteWidthKernel("relu", 2, 2), 100)
    shown = curve.x <= 100
    np.testing.assert_allclose(curve.y[shown], modes.eigenvalues[curve.x[shown].astype(int)], rtol=1e-12, atol=0)
    assert len(figure_7.draw(data).axes) == 4
