"""Kernels of infinitely wide networks on data, and empirical ones.

Theory. For u, v normal of variances a, b and correlation rho = cos(theta), relu^q normalised to E phi(z)^2 = 1 has

    E phi(u) phi(v) = (a b)^(q/2) kappa_q(rho) ,  kappa_q = I_q(theta)/I_q(0) ,
    I_q(theta) = int_0^(pi - theta) (cos t + cos theta)^q dt ,

the angular part of the average in polar coordinates; and E phi'(u) phi'(v) = (a b)^((q-1)/2) q^2/(2q-1) kappa_{q-1}.
Layers compose as Sigma+ = sigma_w^2 E phi phi + sigma_b^2, Theta+ = Sigma+ + sigma_w^2 E phi' phi' Theta. The tests do
this in 50 digits, and average smooth activations by Gauss-Hermite rules in two dimensions.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import sys
from pathlib import Path

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from scalefield.errors import AccuracyWarning, InsufficientMemoryError, ScalefieldError
from scalefield.kernels import InfiniteWidthKernel, empirical_ntk
from scalefield.kernels.activations import NAMED_ACTIVATIONS, numerical_derivative

SCRIPT = Path(__file__).resolve().parents[1] / "tools" / "measure_digits_spectrum.py"
ANGLES = (0.0, 1e-9, 1e-5, 0.02, 0.7, math.pi / 2, 2.5, 3.13, math.pi - 1e-7)


def kappa(q, cosine, angle=None):
    """The definition above, in the working precision."""
    theta = mpmath.acos(cosine) if angle is None else angle
    # |.|, since at the end of the interval it may round to below 0
    value = mpmath.quad(lambda t: abs(mpmath.cos(t) + mpmath.cos(theta)) ** q, [0, mpmath.pi - theta])
    return value / mpmath.quad(lambda t: abs(mpmath.cos(t) + 1) ** q, [0, mpmath.pi])


def exact_kernels(q, angle, depth, bias):
    """NTK and NNGP for inputs of variance 1."""
    angle, bias, q = mpmath.mpf(angle), mpmath.mpf(bias), mpmath.mpf(q)
    variance, sigma = 1 + bias, mpmath.cos(angle) + bias
    theta = sigma
    for layer in range(depth):
        cosine = sigma / variance
        between = angle if layer == 0 and bias == 0 else mpmath.acos(min(cosine, mpmath.mpf(1)))
        slope = variance ** (q - 1) * q**2 / (2 * q - 1) * kappa(q - 1, cosine, between)
        sigma = variance**q * kappa(q, cosine, between) + bias
        theta = sigma + slope * theta
        variance = variance**q + bias
    return theta, sigma


# ------------------------------------------------------------------------------------------------- relu^q


@pytest.mark.parametrize(
    ("q", "depth", "bias"),
    [
        *[(1, 1, 0), (1, 3, 0), (1, 2, 0.25), (2, 1, 0), (2, 2, 0.25), (3, 2, 0), (3, 2, 0.25)],
        *[(1.5, 2, 0), (1.2, 2, 0.25)],
    ],
)
def test_powers_of_relu_against_fifty_digits(q, depth, bias):
    """Relative to the diagonal: a few roundings a layer, also for angles of 1e-9 and near pi."""
    angles = ANGLES if q in (1, 2, 3) else (0.0, 1e-5, 0.7, 2.5)
    with mpmath.workdps(50):
        exact = np.array([[float(v) for v in exact_kernels(q, angle, depth, bias)] for angle in angles])
    for column, kind in enumerate(("ntk", "nngp")):
        kernel = InfiniteWidthKernel("relu", q, depth, bias_variance=bias, kind=kind)
        error = np.abs(kernel.angular_profile(angles) - exact[:, column]) / exact[0, column]
        assert error.max() < 1e-15 * (1 + depth)


def test_differences_near_the_diagonal_keep_their_digits():
    """K(0) - K(theta) = theta/pi (1 + 2 + ... + L) for relu, where 1 - cos(theta) is 5e-19 and not representable."""
    for depth in (1, 2, 4):
        kernel = InfiniteWidthKernel(depth=depth)
        fall = kernel.angular_profile(0.0) - kernel.angular_profile(1e-9)
        # Rounding of K(0) = L + 1, and theta^2 terms
        assert abs(fall - 1e-9 / math.pi * depth * (depth + 1) / 2) < 4e-16 * (depth + 1)


def relu_in_numpy(x, y, depth, weight, bias):
    """The recursion as textbooks have it, loses digits near the diagonal."""
    sigma, a, b = (weight * p / x.shape[1] + bias for p in (x @ y.T, (x**2).sum(1), (y**2).sum(1)))
    theta = sigma
    for _ in range(depth):
        scale = np.sqrt(np.outer(a, b))
        rho = np.clip(sigma / scale, -1.0, 1.0)
        angle = np.arccos(rho)
        sigma = weight * scale * (np.sin(angle) + (math.pi - angle) * rho) / math.pi + bias
        theta = sigma + weight * (math.pi - angle) / math.pi * theta
        a, b = weight * a + bias, weight * b + bias
    return theta, sigma


@pytest.mark.parametrize(("n", "m", "dimension"), [(1, 1, 1), (5, 3, 2), (300, 130, 7), (129, 257, 20)])
@pytest.mark.parametrize("bias", [0.0, 0.3])
def test_data_of_any_norm_and_size(n, m, dimension, bias):
    rng = np.random.default_rng(n)
    x = rng.standard_normal((n, dimension)) * rng.uniform(0.1, 5.0, (n, 1))
    y = rng.standard_normal((m, dimension))
    for kind, expected in zip(("ntk", "nngp"), relu_in_numpy(x, y, 3, 1.7, bias), strict=True):
        kernel = InfiniteWidthKernel(depth=3, weight_variance=1.7, bias_variance=bias, kind=kind)
        # arccos in the reference: 1e-16/theta, the smallest angle being about 1e-4, and 1e-8 for parallel inputs
        tolerance = 1e-11 if dimension > 1 else 1e-7
        np.testing.assert_allclose(kernel.gram(x, y), expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("activation", ["relu", "erf", "linear", "gelu"])
def test_gram_is_symmetric_and_its_parts_agree(activation, monkeypatch):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((300, 5))
    kernel = InfiniteWidthKernel(activation, depth=2, bias_variance=0.1)
    gram = kernel(x)
    np.testing.assert_array_equal(gram, gram.T)
    np.testing.assert_array_equal(np.diag(gram), kernel.diagonal(x))
    if activation != "linear":
        np.linalg.cholesky(gram)  # raises unless positive definite
    # Tiles differ, and so do roundings; equal inputs get the angle 0 in both. Tables depend on the range of norms.
    tolerance = 1e-11 if activation == "gelu" else 1e-13
    np.testing.assert_allclose(kernel(x, x[100:170]), gram[:, 100:170], rtol=0, atol=tolerance * gram.max())
    monkeypatch.setenv("SCALEFIELD_NUM_THREADS", "1")
    one = kernel(x)
    monkeypatch.setenv("SCALEFIELD_NUM_THREADS", "5")
    np.testing.assert_array_equal(kernel(x), one)
    np.testing.assert_array_equal(gram, one)


def test_nearly_equal_and_nearly_opposite_inputs():
    """Angles of 1e-7 to 1e-11 between high-dimensional inputs: found from their difference, to 1e-16 of the kernel."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal(50)
    across = rng.standard_normal(50)
    across -= (across @ x) / (x @ x) * x
    across *= np.linalg.norm(x) / np.linalg.norm(across)
    tangent = np.array([1e-7, 1e-9, 1e-11])
    near = x + tangent[:, None] * across
    kernel = InfiniteWidthKernel("relu", depth=2)
    variance = x @ x / 50
    # |x + t a|^2 = (1 + t^2) |x|^2. The coordinates themselves round to 1e-16.
    expected = variance * np.sqrt(1.0 + tangent**2) * kernel.angular_profile(np.arctan(tangent))
    np.testing.assert_allclose(kernel(x[None], near)[0], expected, rtol=2e-15, atol=0)
    single = InfiniteWidthKernel("relu")
    opposite = single(x[None], -near)[0]
    # K(pi - d) = (-1 + ...)(d/pi) + O(d^3)
    np.testing.assert_allclose(opposite, -variance * tangent / math.pi, rtol=1e-4, atol=1e-16 * variance)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.floats(0.2, 3.0))
def test_homogeneity(power, depth, factor):
    """relu^q without biases: K(c x, c x') = c^(2 q^L) K(x, x') for both kernels."""
    x = np.random.default_rng(1).standard_normal((6, 4))
    for kind in ("ntk", "nngp"):
        kernel = InfiniteWidthKernel("relu", power, depth, kind=kind)
        gram = kernel(x)
        # Small entries are right relative to their diagonals.
        size = np.sqrt(np.outer(np.diag(gram), np.diag(gram)))
        scaled = kernel(factor * x) / factor ** (2 * power**depth)
        np.testing.assert_allclose(scaled / size, gram / size, rtol=0, atol=1e-13)


def test_zero_inputs():
    x = np.array([[0.0, 0.0], [1.0, 1.0]])
    for power in (1, 2, 0.75):
        gram = InfiniteWidthKernel("relu", power, 2)(x)
        np.testing.assert_array_equal(gram[0], 0.0)
        assert gram[1, 1] > 0.0
    with_bias = InfiniteWidthKernel("relu", depth=1, bias_variance=0.5)(x)
    # Sigma^0 = 1/2, Sigma^1 = Sigma^0 + 1/2, Theta^1 = Sigma^1 + Sigma^0
    assert with_bias[0, 0] == pytest.approx(1.5, rel=1e-15)


def test_normalisation():
    """c_q^2 = 2, 2/3, 2/15, by the moments of the normal distribution; other activations keep variance 1 as well."""
    for power, moment in ((1, 0.5), (2, 1.5), (3, 7.5)):
        raw = InfiniteWidthKernel("relu", power, normalize=False, kind="nngp")
        assert raw.profile(1.0) == pytest.approx(moment, rel=1e-14)
    for activation in ("relu", "erf", "linear", "tanh", "gelu"):
        variances = InfiniteWidthKernel(activation, depth=4).signal_variances()
        np.testing.assert_allclose(variances, 1.0, rtol=1e-13, atol=0)
    raw = InfiniteWidthKernel("erf", normalize=False, kind="nngp", weight_variance=1.5)
    assert raw.profile(1.0) == pytest.approx(1.5 * 2.0 / math.pi * math.asin(0.75), rel=1e-14)


def test_digits_kernel_is_that_of_the_bundled_spectrum():
    spec = importlib.util.spec_from_file_location("measure_digits_spectrum", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = script
    try:
        spec.loader.exec_module(script)
        images = script.digits_images_and_target()[0][:400]
        expected = script.relu_ntk(images)
    finally:
        del sys.modules[spec.name]
    np.testing.assert_allclose(InfiniteWidthKernel(depth=2)(images), expected, rtol=0, atol=1e-13)


# ---------------------------------------------------------------------------------------- other activations


def hermite_kernels(function, slope, x, y, depth, weight, bias, scale):
    """Both kernels by a product rule of 120 x 120 Gauss-Hermite nodes: exact for smooth activations."""
    nodes, mass = np.polynomial.hermite_e.hermegauss(120)
    mass = np.outer(mass, mass) / (2.0 * math.pi)
    d = x.size
    a, b, c = (weight * p / d + bias for p in (x @ x, y @ y, x @ y))
    theta = c
    for _ in range(depth):
        u = math.sqrt(a) * nodes[:, None]
        v = c / math.sqrt(a) * nodes[:, None] + math.sqrt(max(b - c * c / a, 0.0)) * nodes
        raw = math.sqrt(b) * nodes
        slopes = weight * scale * (mass * slope(u) * slope(v)).sum()
        c = weight * scale * (mass * function(u) * function(v)).sum() + bias
        a, b = (weight * scale * (mass.sum(1) * function(s) ** 2).sum() + bias for s in (math.sqrt(a) * nodes, raw))
        theta = c + slopes * theta
    return theta, c


def erf_slope(h):
    return 2.0 / math.sqrt(math.pi) * np.exp(-h * h)


# (accuracy of the Gauss-Hermite rule at variances up to 1.5: poles of tanh and silu at distances of pi/2 and pi)
@pytest.mark.parametrize(
    ("name", "accuracy"), [("erf", 1e-12), ("gelu", 1e-10), ("sin", 1e-12), ("tanh", 1e-6), ("silu", 1e-10)]
)
def test_smooth_activations_against_gauss_hermite(name, accuracy):
    function, slope = (special.erf, erf_slope) if name == "erf" else NAMED_ACTIVATIONS[name][:2]
    rng = np.random.default_rng(8)
    # Variances below 1.5, where all have Hermite series
    x, y = 0.7 * rng.standard_normal((2, 4, 6))
    nodes, mass = np.polynomial.hermite_e.hermegauss(120)
    scale = math.sqrt(2.0 * math.pi) / (mass @ function(nodes) ** 2)
    for kind in (0, 1):
        kernel = InfiniteWidthKernel(name, depth=2, bias_variance=0.2, kind=("ntk", "nngp")[kind])
        expected = [[hermite_kernels(function, slope, p, q, 2, 1.0, 0.2, scale)[kind] for q in y] for p in x]
        np.testing.assert_allclose(kernel(x, y), expected, rtol=0, atol=accuracy * np.abs(expected).max())


@pytest.mark.parametrize("depth", [1, 2])
def test_callables_give_the_closed_forms(depth):
    """Quadrature, with kinks at 0 and with derivatives by differences, against closed forms on data of unlike norms."""
    x = np.random.default_rng(0).standard_normal((20, 5))
    for name, power, function in (
        ("relu", 1, lambda h: np.maximum(h, 0.0)),
        ("relu", 2, lambda h: np.maximum(h, 0.0) ** 2),
        ("erf", 1, special.erf),
    ):
        closed = InfiniteWidthKernel(name, power, depth, bias_variance=0.1)(x)
        # Differences are right to 1e-12 (`numerical_derivative`)
        made = InfiniteWidthKernel(function, depth=depth, bias_variance=0.1)(x)
        np.testing.assert_allclose(made, closed, rtol=0, atol=1e-11 * closed.max())
    given_slope = InfiniteWidthKernel(special.erf, depth=depth, bias_variance=0.1, derivative=erf_slope)(x)
    np.testing.assert_allclose(given_slope, closed, rtol=0, atol=1e-12 * closed.max())


@pytest.mark.parametrize("name", sorted(NAMED_ACTIVATIONS))
def test_derivatives_of_named_activations(name):
    function, slope, odd = NAMED_ACTIVATIONS[name]
    h = np.concatenate([np.linspace(-9.0, 9.0, 999), [-1e-3, 1e-3, 400.0, -400.0]])
    np.testing.assert_allclose(slope(h), numerical_derivative(function)(h), rtol=0, atol=1e-10)
    if odd:
        np.testing.assert_allclose(function(-h), -function(h), rtol=1e-15, atol=0)


def test_linear_networks():
    x = np.random.default_rng(2).standard_normal((6, 3))
    sigma = 0.8 * x @ x.T / 3.0 + 0.1
    theta = sigma
    for _ in range(3):
        sigma = 0.8 * sigma + 0.1
        theta = sigma + 0.8 * theta
    np.testing.assert_allclose(InfiniteWidthKernel("linear", 1, 3, 0.8, 0.1)(x), theta, rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(InfiniteWidthKernel("linear", 1, 3, 0.8, 0.1, "nngp")(x), sigma, rtol=1e-14, atol=1e-15)


def test_a_kink_elsewhere_is_reported():
    kernel = InfiniteWidthKernel(lambda h: np.clip(h, -1.0, 1.0), kind="nngp")
    with pytest.warns(AccuracyWarning, match="right to"):
        kernel.profile([0.5])


# ------------------------------------------------------------------------------------------------ the boundary


def test_what_is_refused():
    for settings_, match in (
        ({"activation": "rleu"}, "activation must be a callable or one of"),
        ({"kind": "nntk"}, "kind must be"),
        ({"power": 0.5}, "power must be greater than 0.5"),
        ({"activation": "erf", "power": 2}, "power goes with"),
        ({"depth": 0}, "depth must be"),
        ({"weight_variance": 0.0}, "weight_variance"),
        ({"bias_variance": -0.1}, "bias_variance"),
        ({"derivative": np.cos}, "derivative goes with a callable"),
    ):
        with pytest.raises(ValueError, match=match):
            InfiniteWidthKernel(**settings_)
    for settings_ in ({"activation": 3}, {"normalize": 1}, {"activation": np.sin, "derivative": 2}):
        with pytest.raises(TypeError):
            InfiniteWidthKernel(**settings_)
    kernel = InfiniteWidthKernel()
    with pytest.raises(ValueError, match=r"x must be finite, got nan at index \(1, 0\)"):
        kernel([[1.0, 2.0], [np.nan, 1.0]])
    with pytest.raises(TypeError, match="x must be an array of real numbers"):
        kernel([["a"]])
    with pytest.raises(ValueError, match="x must have the shape"):
        kernel([1.0, 2.0])
    with pytest.raises(ValueError, match="same number of features, got 2 and 3"):
        kernel(np.ones((2, 2)), np.ones((2, 3)))
    with pytest.raises(ValueError, match="out must be"):
        kernel.gram(np.ones((2, 2)), out=np.empty((2, 3)))
    with pytest.raises(ValueError, match="cosine must lie"):
        kernel.profile([0.5, 1.5])
    with pytest.raises(ScalefieldError, match="overflow"):
        InfiniteWidthKernel("relu", 3, 6)(np.full((2, 2), 1e3))
    with pytest.raises(ValueError, match="zero input"):
        InfiniteWidthKernel("tanh")(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="activation must return real numbers in the shape"):
        InfiniteWidthKernel(lambda h: h.sum(), normalize=False)(np.ones((2, 2)))


def test_images_files_and_progress(tmp_path):
    rng = np.random.default_rng(4)
    images = rng.integers(0, 255, (150, 4, 4, 3), dtype=np.uint8)
    kernel = InfiniteWidthKernel(bias_variance=0.1)
    gram = kernel(images)
    np.testing.assert_array_equal(gram, kernel(images.reshape(150, -1).astype(float)))
    calls = []
    out = np.lib.format.open_memmap(tmp_path / "gram.npy", "w+", np.float64, (150, 150))
    assert kernel.gram(images, out=out, progress=lambda done, total: calls.append((done, total))) is out
    np.testing.assert_array_equal(out, gram)
    assert calls == [(128, 150), (150, 150)]


def test_too_large_a_matrix_is_refused_before_it_is_made(monkeypatch):
    monkeypatch.setattr("scalefield._memory.available_memory", lambda: 10**5)
    with pytest.raises(InsufficientMemoryError, match="kernel matrix of 200 x 200"):
        InfiniteWidthKernel()(np.ones((200, 2)))


def test_kernels_are_values():
    kernel = InfiniteWidthKernel("relu", 2)
    assert kernel == InfiniteWidthKernel("relu", 2.0, 1)
    assert dataclasses.replace(kernel, kind="nngp") != kernel
    with pytest.raises(dataclasses.FrozenInstanceError):
        kernel.depth = 3


# -------------------------------------------------------------------------------------------- empirical kernels


def network_gradients(x, width, rng, phi, slope, bias):
    """Gradients of a network with two hidden layers in the NTK parameterisation, by the chain rule."""
    d = x.shape[1]
    w0, w1, w2 = rng.standard_normal((width, d)), rng.standard_normal((width, width)), rng.standard_normal(width)
    b0, b1 = rng.standard_normal((2, width))
    root, s = math.sqrt(width), math.sqrt(bias)
    h0 = x @ w0.T / math.sqrt(d) + s * b0
    h1 = phi(h0) @ w1.T / root + s * b1
    e1 = w2 / root * slope(h1)
    e0 = e1 @ w1 / root * slope(h0)
    parts = [phi(h1) / root, np.full((len(x), 1), s), s * e1, s * e0]
    parts += [np.einsum("ni,nj->nij", e1, phi(h0) / root).reshape(len(x), -1)]
    parts += [np.einsum("ni,nj->nij", e0, x / math.sqrt(d)).reshape(len(x), -1)]
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize(("activation", "power"), [("relu", 1), ("relu", 2), ("erf", 1)])
def test_wide_networks_have_the_infinite_width_kernel(activation, power):
    """Mean over 24 networks of width 256 against infinite width.

    Fluctuations of an entry are O(1/sqrt(256)) of it, its bias O(1/256): a third of the standard error of 24 networks.
    |t| > 6.5 with 23 degrees of freedom has probability 1.3e-6; 15 entries, 3 cases: false alarms below 1e-4, with
    the bias below 5e-4.
    """
    rng = np.random.default_rng(11)
    x = rng.standard_normal((5, 4))
    if activation == "relu":
        scale = math.sqrt({1: 2.0, 2: 2.0 / 3.0}[power])
        phi = lambda h: scale * np.maximum(h, 0.0) ** power  # noqa: E731
        slope = lambda h: scale * power * np.maximum(h, 0.0) ** (power - 1) * (h > 0.0)  # noqa: E731
    else:
        scale = 1.0 / math.sqrt(2.0 / math.pi * math.asin(2.0 / 3.0))
        phi = lambda h: scale * special.erf(h)  # noqa: E731
        slope = lambda h: scale * erf_slope(h)  # noqa: E731
    kernels = [empirical_ntk(network_gradients(x, 256, rng, phi, slope, 0.3)) for _ in range(24)]
    mean, error = np.mean(kernels, axis=0), np.std(kernels, axis=0, ddof=1) / math.sqrt(24)
    expected = InfiniteWidthKernel(activation, power, 2, bias_variance=0.3)(x)
    assert (np.abs(mean - expected) < 6.5 * error).all()
    # The test can fail: without the bias, or for another depth, it would.
    for other in ({"bias_variance": 0.0, "depth": 2}, {"bias_variance": 0.3, "depth": 1}):
        wrong = InfiniteWidthKernel(activation, power, **other)(x)
        assert (np.abs(mean - wrong) > 6.5 * error).any()


@pytest.mark.parametrize("n_outputs", [None, 3])
def test_blocks_callables_and_dtypes(n_outputs, monkeypatch):
    rng = np.random.default_rng(6)
    shape = (270, 40) if n_outputs is None else (270, 3, 40)
    gradients, other = rng.standard_normal(shape), rng.standard_normal((7, *shape[1:]))
    full = "nap,mbp->nmab" if n_outputs else "np,mp->nm"
    expected, cross = (2.5 * np.einsum(full, gradients, g) for g in (gradients, other))
    # Sums of 40 products of order 1
    close = {"rtol": 0, "atol": 1e-12}
    kernel = empirical_ntk(gradients, scale=2.5)
    np.testing.assert_allclose(kernel, expected, **close)
    np.testing.assert_array_equal(kernel, kernel.swapaxes(0, 1).swapaxes(-1, -2) if n_outputs else kernel.T)
    np.testing.assert_allclose(empirical_ntk(gradients, other, scale=2.5), cross, **close)
    average = empirical_ntk(gradients, outputs="average", scale=2.5)
    np.testing.assert_allclose(average, np.einsum("nmaa->nm", expected) / 3 if n_outputs else expected, **close)
    np.testing.assert_array_equal(average, average.T)

    calls, blocks = [], []

    def made(start, stop):
        blocks.append((start, stop))
        return gradients[start:stop]

    small = empirical_ntk(
        made, n_samples=270, scale=2.5, memory=16 * 40 * (n_outputs or 1) * 100, progress=lambda *a: calls.append(a)
    )
    np.testing.assert_allclose(small, expected, **close)
    np.testing.assert_array_equal(small, small.swapaxes(0, 1).swapaxes(-1, -2) if n_outputs else small.T)
    # A first look at one sample, then blocks of 100
    assert blocks[:4] == [(0, 1), (0, 100), (100, 200), (200, 270)]
    assert calls[-1] == (270 * 271 // 2, 270 * 271 // 2)
    monkeypatch.setenv("SCALEFIELD_NUM_THREADS", "1")
    np.testing.assert_array_equal(empirical_ntk(gradients, scale=2.5), kernel)
    single = gradients.astype(np.float32)
    np.testing.assert_array_equal(empirical_ntk(single), empirical_ntk(single.astype(np.float64)))


def test_gradients_that_are_refused():
    gradients = np.ones((4, 3))
    bad = gradients.copy()
    bad[2, 1] = np.inf
    for arguments, error, match in (
        ({"gradients": bad}, ValueError, "sample 2"),
        ({"gradients": np.ones(3)}, ValueError, "gradients must have the shape"),
        ({"gradients": gradients * 1j}, TypeError, "real numbers"),
        ({"gradients": gradients, "n_samples": 4}, ValueError, "n_samples goes with a callable"),
        ({"gradients": lambda a, b: gradients[a:b]}, ValueError, "n_samples must be given"),
        ({"gradients": lambda a, b: gradients[:2], "n_samples": 4}, ValueError, r"gradients\(0, 1\) must have the"),
        ({"gradients": gradients, "other": np.ones((2, 5))}, ValueError, "agree in outputs and parameters"),
        ({"gradients": gradients, "n_other": 3}, ValueError, "n_other goes with other"),
        ({"gradients": gradients, "outputs": "mean"}, ValueError, "outputs must be"),
        ({"gradients": gradients, "scale": 0.0}, ValueError, "scale"),
    ):
        with pytest.raises(error, match=match):
            empirical_ntk(**arguments)
