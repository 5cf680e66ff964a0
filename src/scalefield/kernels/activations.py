r"""Gaussian averages of activations: what a layer of infinite width does to a kernel.

For jointly normal u, v of variances a, b and correlation rho the *dual* of an activation phi and of its derivative are

.. math:: E\,\phi(u)\phi(v), \qquad E\,\phi'(u)\phi'(v).

Powers of ReLU, erf and the identity have closed forms. Other functions have Hermite series where they are smooth, and
are integrated in polar coordinates where they are not: a kink at 0 lies on fixed rays, and Gauss rules on the arcs
between these converge as for smooth functions. Either is tabulated in Chebyshev polynomials.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from scalefield.errors import ScalefieldError

__all__ = ["NAMED_ACTIVATIONS", "DualTable", "PowerSeries", "relu_power_series", "second_moment"]

Array = NDArray[np.float64]

# exp(-10^2/2) = 2e-22 is nothing.
LARGEST = 10.0
# Hermite series that are longer are not used.
HERMITE_TERMS = 300
Function = Callable[[Array], Array]

# --------------------------------------------------------------------------------------------- powers of ReLU


class PowerSeries(NamedTuple):
    r"""Series of kappa_q, normalised to kappa_q(1) = 1.

    With w = sin^2(theta/2), z = cos^2(theta/2) and m = q + 1/2,

    .. math::
        \kappa_q = 1 + w\, r(w) + w^m [s(w) + \log(w)\, l(w)] = z^m o(z) .
    """

    order: float
    regular: Array
    singular: Array
    logarithm: Array
    opposite: Array


@cache
def relu_power_series(power: float, n_terms: int = 60) -> PowerSeries:
    r"""Series of the dual of relu^q about parallel and antiparallel inputs, for any q > -1/2.

    .. math::
        \kappa_q = N z^m F(z), \quad F(x) = {}_2F_1(\tfrac12, \tfrac12; m + 1; x), \quad
        N = \frac{\Gamma(m + 1/2)^2}{\Gamma(m+1)\Gamma(m)}, \quad m = q + \tfrac12

    .. math::
        \kappa_q = {}_2F_1(\tfrac12 - m, \tfrac12 - m; 1 - m; w) - \frac{N}{\sin \pi m} w^m F(w)

    (a logarithm in the second form where m is an integer). For integer q the first term is a polynomial of degree q:
    the arc-cosine kernels.

    Parameters
    ----------
    power : float
        q > -1/2.
    n_terms : int
        Length of each series; the terms fall like x^n, so 60 serve x <= 1/2 in double precision.

    Notes
    -----
    From the polar form :math:`\kappa_q \propto \int_0^{\pi - \theta} (\cos t + \cos\theta)^q dt`, which is the
    Mehler-Dirichlet integral of a Legendre function.

    References
    ----------
    Cho & Saul, Kernel Methods for Deep Learning, NeurIPS 2009; NIST DLMF 14.12.1, 15.8.4, 15.8.10.
    """
    m = power + 0.5
    n = np.arange(n_terms, dtype=np.float64)
    norm = math.exp(2.0 * math.lgamma(m + 0.5) - math.lgamma(m + 1.0) - math.lgamma(m))
    # F(x), coefficient by coefficient
    hypergeometric = _ratio_series((n + 0.5) ** 2 / ((n + m + 1.0) * (n + 1.0)))
    opposite = norm * hypergeometric
    if m != round(m):
        regular = _ratio_series((n + 0.5 - m) ** 2 / ((n + 1.0 - m) * (n + 1.0)))
        singular = -norm / math.sin(math.pi * m) * hypergeometric
        if 2.0 * power == round(2.0 * power):
            singular = -norm * (-1.0) ** round(power) * hypergeometric
        return PowerSeries(m, regular[1:], singular, np.empty(0), opposite)
    order = round(m)
    # (1 - w)^m, exactly
    factor = special.comb(order, np.arange(order + 1)) * (-1.0) ** np.arange(order + 1)
    head = _ratio_series(
        (n[:order] + 0.5) ** 2 / (np.where(n[:order] < order - 1, n[:order] + 1.0 - m, 1.0) * (n[:order] + 1.0))
    )
    regular = np.zeros(n_terms)
    product = np.convolve(factor, head[:order])
    regular[: product.size] = product
    terms = _ratio_series((n + 0.5 + m) ** 2 / ((n + 1.0 + m) * (n + 1.0)))
    digamma = special.digamma
    brackets = 2.0 * digamma(0.5 + n + m) - digamma(n + 1.0) - digamma(n + m + 1.0)
    scale = -((-1.0) ** order) * norm / math.pi
    singular = scale * np.convolve(factor, terms * brackets)[:n_terms]
    return PowerSeries(m, regular[1:], singular, scale * hypergeometric, opposite)


def _ratio_series(ratios: Array) -> Array:
    """1, r_0, r_0 r_1, ..., as many as there are ratios."""
    return np.concatenate([[1.0], np.cumprod(ratios[:-1])])


def relu_moment(power: float) -> float:
    """E relu(z)^(2 power) for a standard normal z: 1/2, 3/2, 15/2 for powers 1, 2, 3."""
    return float(2.0 ** (power - 1.0)) * math.gamma(power + 0.5) / math.sqrt(math.pi)


# ------------------------------------------------------------------------------------------ other activations


def _sigmoid(h: Array) -> Array:
    return np.asarray(special.expit(h))


def _gelu(h: Array) -> Array:
    return np.asarray(h * special.ndtr(h))


def _gelu_slope(h: Array) -> Array:
    return np.asarray(special.ndtr(h) + h * np.exp(-0.5 * h * h) / math.sqrt(2.0 * math.pi))


def _silu(h: Array) -> Array:
    return h * _sigmoid(h)


def _silu_slope(h: Array) -> Array:
    y = _sigmoid(h)
    return y + h * y * (1.0 - y)


def _tanh_slope(h: Array) -> Array:
    return 1.0 / np.cosh(np.clip(h, -350.0, 350.0)) ** 2


def _softplus(h: Array) -> Array:
    return np.logaddexp(0.0, h)


def _elu(h: Array) -> Array:
    return np.where(h > 0.0, h, np.expm1(np.minimum(h, 0.0)))


def _elu_slope(h: Array) -> Array:
    return np.where(h > 0.0, 1.0, np.exp(np.minimum(h, 0.0)))


def _sine(h: Array) -> Array:
    return np.asarray(np.sin(h))


def _cosine(h: Array) -> Array:
    return np.asarray(np.cos(h))


def _tanh(h: Array) -> Array:
    return np.asarray(np.tanh(h))


# name -> (function, derivative, whether odd), integrated numerically
NAMED_ACTIVATIONS: dict[str, tuple[Function, Function, bool]] = {
    "elu": (_elu, _elu_slope, False),
    "gelu": (_gelu, _gelu_slope, False),
    "silu": (_silu, _silu_slope, False),
    "sin": (_sine, _cosine, True),
    "softplus": (_softplus, _sigmoid, False),
    "tanh": (_tanh, _tanh_slope, True),
}


def numerical_derivative(function: Function) -> Function:
    """Derivative by differences of order 8 that never reach across a kink at 0; right to about 1e-12."""
    step = 2.0**-6
    central = np.array([1.0 / 280.0, -4.0 / 105.0, 0.2, -0.8, 0.0, 0.8, -0.2, 4.0 / 105.0, -1.0 / 280.0])
    offsets = np.arange(9.0)
    # weights with sum_j w_j j^n = 1 for n = 1, else 0: exact for polynomials of degree 8
    forward = np.linalg.solve(offsets[None, :] ** np.arange(9.0)[:, None], np.eye(9)[1])

    def derivative(h: Array) -> Array:
        total = np.zeros_like(h)
        for j in (0, 1, 2, 3, 5, 6, 7, 8):
            total += central[j] * function(h + (j - 4.0) * step)
        near = np.abs(h) < 4.0 * step
        if near.any():
            close = h[near]
            side = np.where(close >= 0.0, 1.0, -1.0)
            total[near] = sum(side * forward[j] * function(close + side * offsets[j] * step) for j in range(9))
        return total / step

    return derivative


def evaluate(function: Function, h: Array) -> Array:
    """The activation at h, checked."""
    value = np.asarray(function(h))
    if value.shape != h.shape or value.dtype.kind not in "fiu":
        raise ValueError(
            "activation must return real numbers in the shape of its argument, "
            f"got shape {value.shape} and dtype {value.dtype} for {h.shape}"
        )
    if not np.isfinite(value).all():
        raise ValueError(
            f"activation must be finite, got {value[~np.isfinite(value)][0]} at {h[~np.isfinite(value)][0]}"
        )
    return value.astype(np.float64)


@cache
def _half_line(n_panels: int) -> tuple[Array, Array]:
    """Nodes and weights for the standard normal density on 0 < z < 13: panels that shrink towards 0."""
    x, weight = np.polynomial.legendre.leggauss(24)
    ends = np.concatenate([[0.0], 2.0 ** np.arange(-n_panels, 0.0), np.arange(1.0, 13.5)])
    length = np.diff(ends)
    z = (ends[:-1, None] + 0.5 * length[:, None] * (x + 1.0)).ravel()
    mass = (0.5 * length[:, None] * weight).ravel() * np.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
    return z, mass


def second_moment(function: Function, variance: Array) -> Array:
    """E phi(u)^2 for each variance, by Gauss rules on either side of 0."""
    z, mass = _half_line(8)
    h = np.sqrt(variance)[:, None] * z
    squares: Array = (evaluate(function, h) ** 2 + evaluate(function, -h) ** 2) @ mass
    return squares


def polar_dual(function: Function, first: Array, second: Array, angle: Array, n_radial: int, n_arc: int) -> Array:
    r"""E phi(u) phi(v) for all variances `first` x `second` and angles arccos(rho), shape (first, second, angle).

    .. math::
        \frac{1}{2\pi} \int_0^\infty r e^{-r^2/2} dr \int d\psi\,
        \phi(\sqrt a\, r \cos\psi)\, \phi(\sqrt b\, r \cos(\psi - \theta))

    Gauss-Legendre over r in (0, 10) and over the four arcs between the rays where u or v changes sign.
    """
    x, weight = np.polynomial.legendre.leggauss(n_radial)
    r = 0.5 * LARGEST * (x + 1.0)
    mass = 0.5 * LARGEST * weight * r * np.exp(-0.5 * r * r) / (2.0 * math.pi)
    x, weight = np.polynomial.legendre.leggauss(n_arc)
    value = np.empty((first.size, second.size, angle.size))
    same = first is second
    for k, theta in enumerate(angle):
        starts = np.array([-0.5 * math.pi, theta - 0.5 * math.pi, 0.5 * math.pi, theta + 0.5 * math.pi])
        lengths = np.array([theta, math.pi - theta, theta, math.pi - theta])
        psi = starts[:, None] + 0.5 * lengths[:, None] * (x + 1.0)
        weights = np.multiply.outer(mass, 0.5 * lengths[:, None] * weight)
        left = evaluate(function, np.sqrt(first)[:, None, None, None] * np.multiply.outer(r, np.cos(psi)))
        if same:
            # psi -> theta - psi exchanges the first and third arc and reverses all of them
            right = left[:, :, [2, 1, 0, 3], ::-1]
        else:
            right = evaluate(function, np.sqrt(second)[:, None, None, None] * np.multiply.outer(r, np.cos(psi - theta)))
        value[:, :, k] = (left * weights).reshape(first.size, -1) @ right.reshape(second.size, -1).T
    return value


@dataclass(frozen=True)
class DualTable:
    """Chebyshev expansion of E phi(u) phi(v) in the angle and the logarithms of both variances, over a range of those.

    Attributes
    ----------
    low, high : float
        Range of the variances.
    coefficients : ndarray, shape (variances, variances, angles)
    error : float
        Largest coefficient at the end of the expansion plus the change when the quadrature was refined.
    """

    low: float
    high: float
    coefficients: Array
    error: float

    def basis(self, variance: Array) -> Array:
        """Chebyshev polynomials of the variances, shape (n, variances)."""
        if self.coefficients.shape[0] == 1:
            return np.ones((variance.size, 1))
        x = 2.0 * np.log(variance / self.low) / math.log(self.high / self.low) - 1.0
        return np.asarray(
            np.polynomial.chebyshev.chebvander(np.clip(x, -1.0, 1.0), self.coefficients.shape[0] - 1), dtype=np.float64
        )

    def __call__(self, rows: Array, columns: Array, angle: Array) -> Array:
        """Values for a block, from `basis` of its rows and columns and the angles between them."""
        x = 2.0 * angle / math.pi - 1.0
        # Clenshaw's recurrence, the coefficients being products of low rank
        after = np.zeros_like(angle)
        last = np.zeros_like(angle)
        for k in range(self.coefficients.shape[2] - 1, 0, -1):
            last, after = rows @ self.coefficients[:, :, k] @ columns.T + 2.0 * x * last - after, last
        value: Array = rows @ self.coefficients[:, :, 0] @ columns.T + x * last - after
        return value


def tabulate(function: Function, low: float, high: float, tolerance: float = 1e-13) -> DualTable:
    """Expand the dual of `function` for variances in [low, high], with as many terms and nodes as it takes."""
    if high <= low * (1.0 + 1e-12):
        high = low
    try:
        dual, quadrature_error = _hermite_dual(function, low, high), 1e-15
    except _NotSmooth:
        n_radial, n_arc, quadrature_error = _quadrature_orders(function, low, high)
        dual = partial(polar_dual, function, n_radial=n_radial, n_arc=n_arc)
    for n_angle in (20, 28, 40, 56, 80):
        probe = np.unique([low, math.sqrt(low * high), high])
        tail = _chebyshev(dual(probe, probe, _points(n_angle, 0.0, math.pi)), 2)
        angle_error = np.abs(tail[:, :, -3:]).max() / np.abs(tail).max()
        if angle_error < max(tolerance, quadrature_error):
            break
    variance_error, n_variance = 0.0, 1
    if high > low:
        for n_variance in (5, 8, 12, 18, 27, 40):
            points = np.exp(_points(n_variance, math.log(low), math.log(high)))
            tail = _chebyshev(_chebyshev(dual(points, points, np.array([0.0, 1.0, math.pi])), 0), 1)
            variance_error = max(np.abs(tail[-2:]).max(), np.abs(tail[:, -2:]).max()) / np.abs(tail).max()
            if variance_error < max(tolerance, quadrature_error):
                break
    points = np.exp(_points(n_variance, math.log(low), math.log(high))) if n_variance > 1 else np.array([low])
    values = dual(points, points, _points(n_angle, 0.0, math.pi))
    coefficients = _chebyshev(values, 2)
    if n_variance > 1:
        coefficients = _chebyshev(_chebyshev(coefficients, 0), 1)
    scale = float(np.abs(values).max())
    error = (float(angle_error) + float(variance_error) + quadrature_error) * scale
    return DualTable(low, high, np.ascontiguousarray(coefficients), error)


class _NotSmooth(Exception):
    """The Hermite series is too long."""


def _hermite_dual(function: Function, low: float, high: float) -> Callable[[Array, Array, Array], Array]:
    r"""E phi(u) phi(v) = sum_n c_n(a) c_n(b) rho^n from the Hermite coefficients c_n(a) = E phi(sqrt(a) z) h_n(z).

    For functions analytic near the real axis c_n falls like exp(-y sqrt(n/a)), y the distance of their singularities.
    """
    probe = _hermite_coefficients(function, np.unique([low, high]))
    power = probe**2
    # What is left beyond the last term, whose even or odd neighbour may be 0
    if (power[:, -8:].sum(axis=1) * HERMITE_TERMS > 1e-16 * power.sum(axis=1)).any():
        raise _NotSmooth

    def dual(first: Array, second: Array, angle: Array) -> Array:
        left = _hermite_coefficients(function, first)
        right = left if second is first else _hermite_coefficients(function, second)
        powers = np.cos(angle)[:, None] ** np.arange(HERMITE_TERMS)
        return np.stack([(left * row) @ right.T for row in powers], axis=2)

    return dual


def _hermite_coefficients(function: Function, variance: Array) -> Array:
    """c_n, shape (variances, HERMITE_TERMS), by Gauss rules on either side of 0."""
    z, mass = _half_line(8)
    h = np.sqrt(variance)[:, None] * z
    both = evaluate(function, h), evaluate(function, -h)
    # Times the root of the density the polynomials are bounded.
    root = np.sqrt(mass)
    parts = [(both[0] + both[1]) * root, (both[0] - both[1]) * root]
    before, polynomial = np.zeros_like(z), root
    coefficients = np.empty((variance.size, HERMITE_TERMS))
    for n in range(HERMITE_TERMS):
        coefficients[:, n] = parts[n % 2] @ polynomial
        # sqrt(n + 1) h_{n+1} = z h_n - sqrt(n) h_{n-1}
        before, polynomial = polynomial, (z * polynomial - math.sqrt(n) * before) / math.sqrt(n + 1)
    return coefficients


def _quadrature_orders(function: Function, low: float, high: float) -> tuple[int, int, float]:
    """Radial nodes, nodes per arc, and the relative error they leave."""
    probe, angle = np.unique([low, high]), np.array([0.03, 0.8, 2.0])
    n_radial, n_arc = 32, 12
    previous = polar_dual(function, probe, probe, angle, n_radial, n_arc)
    while True:
        n_radial, n_arc = 2 * n_radial, 2 * n_arc
        refined = polar_dual(function, probe, probe, angle, n_radial, n_arc)
        scale = float(np.abs(refined).max())
        if scale == 0.0:
            raise ScalefieldError("activation is zero wherever the network's signals are: the kernel would vanish")
        change = float(np.abs(refined - previous).max()) / scale
        # Gauss rules square their error when they are doubled; where they do not (a kink elsewhere), the change is it.
        if change < 1e-8:
            return n_radial, n_arc, max(change**1.5, 1e-15)
        if n_radial >= 128:
            return n_radial, n_arc, change
        previous = refined


def _points(n: int, low: float, high: float) -> Array:
    x = -np.cos(math.pi * (np.arange(n) + 0.5) / n)
    return np.asarray(0.5 * (low + high) + 0.5 * (high - low) * x)


def _chebyshev(values: Any, axis: int) -> Any:
    """Coefficients of the polynomial through values at `_points`."""
    n = values.shape[axis]
    x = -np.cos(math.pi * (np.arange(n) + 0.5) / n)
    transform = np.polynomial.chebyshev.chebvander(x, n - 1).T * (2.0 / n)
    transform[0] *= 0.5
    return np.moveaxis(np.tensordot(transform, values, (1, axis)), 0, axis)
