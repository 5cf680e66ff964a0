"""Causal convolutions with many rates at once, panel by panel in logarithmic time.

For each rate s > 0 the deviation d_s of a slow drive g obeys, from one (virtual) step to the next,

    d(u + e) = (1 - s e) d(u) + g(u + e) - g(u) ,      in the limit e -> 0 :   d' = g' - s d .

On a panel g is a polynomial through its values at the Chebyshev points, and d follows from it exactly: with the
difference quotient D = (exp(e d/du) - 1)/e and its inverse J (the sum from the left end), D d = -s d + D g gives

    d = d(0) exp(-nu u) + sum_{k>=0} (-s)^k J^k [g - g(0)]                                       (small s)
    d = sum_{k>=0} (-1)^k D^{k+1} g / s^{k+1} + [d(0) - same at 0] exp(-nu u)                    (large s)

with nu = -log|1 - s e|/e, or s at e = 0. The first is applied from point to point of a panel, where its series
converges fast; the second holds where the panel is long compared to 1/s. Where little has been learned yet, s t < 1,
d is g but for rounding, and r = g - d, which obeys r' = s (g - r), takes its place:

    r = r(0) exp(-s u) + s sum_{k>=0} (-s)^k J^{k+1} g

Rates on the ray z (1 + i), z > 0, are those of a contour; what belongs to them is kept as real and imaginary parts,
since loops over complex numbers hardly run on vectors.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from scalefield._native.jit import (
    boolean,
    float64,
    int64,
    jit,
    matrix,
    three_counts,
    vector,
    void,
)

__all__ = [
    "DEGREE",
    "LARGE",
    "NOTHING",
    "N_POINTS",
    "SHORT",
    "SMALL",
    "SMALLEST",
    "TERMS",
    "all_series",
    "apply_series",
    "chebyshev_points",
    "count_kinds",
    "count_rates",
    "decay_factors",
    "deviation",
    "deviations",
    "interval_series",
    "monomial_matrix",
    "panel_series",
    "ray_decay_factors",
    "ray_deviation",
    "ray_response",
    "ray_surplus",
    "response",
    "response_series",
    "series_matrix",
    "surplus",
    "tail",
    "tail_size",
]

Array = NDArray[np.float64]

# Degree of the polynomials on a panel, and the number of points with both ends.
DEGREE = 12
N_POINTS = DEGREE + 1
MIDDLE = DEGREE // 2
# Terms of the series for small rates: enough for s times the distance of two points up to 3.
TERMS = 28
# Below these products of rate and panel length, fewer terms do.
SMALL, SHORT = 2.0, 12
SMALLEST, SHORTEST = 0.01, 4
# From this product on the series in 1/s holds: its terms fall by the derivatives of g beside it.
LARGE = 30.0
# Decays beyond this exponent are nothing.
NOTHING = 60.0


@cache
def chebyshev_points() -> Array:
    """The panel's points on [-1, 1], ends included."""
    points: Array = -np.cos(np.pi * np.arange(N_POINTS) / DEGREE)
    return points


@cache
def monomial_matrix() -> Array:
    """Matrix from values at the points to coefficients of powers of x on [-1, 1]."""
    # By way of Chebyshev coefficients, whose own matrix is exact integers: constants keep all their digits.
    angles = np.pi * np.arange(N_POINTS)[::-1] / DEGREE
    ends = np.ones(N_POINTS)
    ends[[0, -1]] = 0.5
    to_chebyshev = 2.0 / DEGREE * np.cos(np.outer(np.arange(N_POINTS), angles)) * ends * ends[:, None]
    powers = np.zeros((N_POINTS, N_POINTS))
    for n in range(N_POINTS):
        coefficients = np.polynomial.chebyshev.cheb2poly(np.eye(N_POINTS)[n])
        powers[: coefficients.size, n] = coefficients
    matrix: Array = np.ascontiguousarray(powers @ to_chebyshev)
    return matrix


@jit(void(vector, float64, float64, float64, boolean, vector))
def interval_series(
    coefficients: Array, left: float, right: float, step: float, is_rate: bool, series_out: Array
) -> None:
    """b_k = (J/length)^k [g - g(left)] at `right`, k < TERMS, for g = sum_n coefficients_n x^n.

    If `is_rate`, the coefficients are those of D g, in units of the panel's length. `step` is e in units of x.
    J F = Phi - Phi(left) with Phi = (1/d - e/2 + e^2 d/12 - e^4 d^3/720) F (Euler-Maclaurin; exact where d^5 F = 0
    or e = 0).
    """
    n_coefficients = coefficients.shape[0]
    length = right - left
    f = np.zeros(n_coefficients + TERMS + 1)
    new = np.zeros(n_coefficients + TERMS + 1)
    # Taylor shift to the right end: g(right - length w) = sum_n f_n w^n
    for n in range(n_coefficients):
        f[n] = coefficients[n]
    for n in range(n_coefficients - 1):
        for m in range(n_coefficients - 2, n - 1, -1):
            f[m] += right * f[m + 1]
    scale = 1.0
    for n in range(n_coefficients):
        f[n] *= scale
        scale *= -length
    size = n_coefficients
    e = step / length
    if is_rate:
        # J D g = g - g(left) comes first, from the interval's length in units of the panel's.
        for n in range(size):
            f[n] *= 0.5 * length
    else:
        # Minus g(left), at w = 1.
        value = 0.0
        for n in range(size):
            value += f[n]
        f[0] -= value
        series_out[0] = f[0]
    for term in range(TERMS if is_rate else TERMS - 1):
        # d/dx = -(1/length) d/dw
        new[0] = 0.0
        for n in range(size):
            new[n + 1] = -f[n] / (n + 1)
        if e > 0.0:
            for n in range(size):
                new[n] -= 0.5 * e * f[n]
            for n in range(1, size):
                new[n - 1] -= e * e / 12.0 * n * f[n]
            for n in range(3, size):
                new[n - 3] += e**4 / 720.0 * n * (n - 1) * (n - 2) * f[n]
        size += 1
        value = 0.0
        for n in range(size):
            value += new[n]
        new[0] -= value
        for n in range(size):
            f[n] = new[n]
        series_out[term if is_rate else term + 1] = f[0]


@jit(void(vector, float64, float64, boolean, vector))
def panel_series(coefficients: Array, position: float, step: float, is_rate: bool, series_out: Array) -> None:
    """b_k = (2 D)^{k+1} g at `position` on [-1, 1], k < DEGREE: derivatives in units of the panel's length 2.

    If `is_rate`, the coefficients are those of 2 D g.
    """
    n_coefficients = coefficients.shape[0]
    f = np.zeros(n_coefficients)
    for n in range(n_coefficients):
        f[n] = coefficients[n]
    for n in range(n_coefficients - 1):
        for m in range(n_coefficients - 2, n - 1, -1):
            f[m] += position * f[m + 1]
    # f_n = (2^n d^n g)(position), derivatives in units of the panel
    factorial = 1.0
    for n in range(n_coefficients):
        if n > 0:
            factorial *= 2.0 * n
        f[n] *= factorial
    e = 0.5 * step
    if is_rate:
        series_out[0] = f[0]
    for k in range(1 if is_rate else 0, DEGREE):
        # D = d + e d^2/2 + e^2 d^3/6 + ...
        for n in range(n_coefficients):
            total = 0.0
            power = 1.0
            for m in range(1, n_coefficients - n):
                power *= (e if m > 1 else 1.0) / m
                total += power * f[n + m]
            f[n] = total
        series_out[k] = f[0]


@jit(void(vector, float64, boolean, vector, matrix, matrix))
def all_series(
    coefficients: Array, step: float, is_rate: bool, points: Array, small_out: Array, large_out: Array
) -> None:
    """The series of every point: from the point before it, and at the point."""
    for i in range(N_POINTS):
        panel_series(coefficients, points[i], step, is_rate, large_out[i])
        if i > 0:
            interval_series(coefficients, points[i - 1], points[i], step, is_rate, small_out[i])


@jit(int64(vector, float64, float64))
def count_rates(s: Array, length: float, bound: float) -> int:
    """Number of rates s (decreasing) with s length > bound."""
    count = 0
    while count < s.shape[0] and s[count] * length > bound:
        count += 1
    return count


@jit(three_counts(vector, float64))
def count_kinds(s: Array, length: float) -> tuple[int, int, int]:
    """Numbers of rates s (decreasing in size): large ones, those with middle ones, those with small ones."""
    return count_rates(s, length, LARGE), count_rates(s, length, SMALL), count_rates(s, length, SMALLEST)


@jit(void(vector, int64, vector, matrix))
def decay_factors(nu: Array, n_large: int, points: Array, decay_out: Array) -> None:
    """exp(-nu (c_i - c_0)) for the first n_large rates, exp(-nu (c_i - c_{i-1})) for the others; c in [0, 1]."""
    for i in range(1, MIDDLE + 1):
        # The points are symmetric: so are their distances.
        gap, row = 0.5 * (points[i] - points[i - 1]), decay_out[i]
        for q in range(nu.shape[0]):
            exponent = nu[q] * gap
            row[q] = np.exp(-exponent) if exponent < NOTHING else 0.0
        decay_out[N_POINTS - i] = row
    for i in range(2, N_POINTS):
        for q in range(n_large):
            decay_out[i, q] *= decay_out[i - 1, q]


@jit(void(vector, int64, vector, matrix, matrix))
def ray_decay_factors(nu: Array, n_large: int, points: Array, real_out: Array, imag_out: Array) -> None:
    """`decay_factors` of the rates nu (1 + i)."""
    for i in range(1, MIDDLE + 1):
        gap, real, imag = 0.5 * (points[i] - points[i - 1]), real_out[i], imag_out[i]
        n_exact = 0
        while n_exact < nu.shape[0] and nu[n_exact] * gap > 0.01:
            x = nu[n_exact] * gap
            size = np.exp(-x) if x < NOTHING else 0.0
            real[n_exact], imag[n_exact] = size * np.cos(x), -size * np.sin(x)
            n_exact += 1
        for q in range(n_exact, nu.shape[0]):
            # exp(-x (1 + i)) to x^6, with (1 + i)^2 = 2i
            x = nu[q] * gap
            real[q] = 1.0 - x * (1.0 - x * x * (1.0 / 3.0 - x * (1.0 / 6.0 - x / 30.0)))
            imag[q] = -x * (1.0 - x * (1.0 - x * (1.0 / 3.0 - x * x * (1.0 / 30.0 - x / 90.0))))
        real_out[N_POINTS - i] = real
        imag_out[N_POINTS - i] = imag
    for i in range(2, N_POINTS):
        for q in range(n_large):
            a, b = real_out[i, q], imag_out[i, q]
            real_out[i, q] = a * real_out[i - 1, q] - b * imag_out[i - 1, q]
            imag_out[i, q] = a * imag_out[i - 1, q] + b * real_out[i - 1, q]


@jit(float64(vector))
def tail_size(values: Array) -> float:
    """Size of the two highest Chebyshev coefficients of values at the points."""
    last, second = 0.0, 0.0
    for i in range(N_POINTS):
        weight = (0.5 if i == 0 or i == DEGREE else 1.0) / DEGREE
        last += weight * (1.0 if (DEGREE - i) % 2 == 0 else -1.0) * values[i]
        second += 2.0 * weight * np.cos((DEGREE - 1) * np.pi * (DEGREE - i) / DEGREE) * values[i]
    size: float = max(abs(last), 0.2 * abs(second))
    return size


@jit(float64(vector))
def tail(values: Array) -> float:
    """`tail_size` relative to the last value."""
    size: float = tail_size(values) / abs(values[DEGREE])
    return size


@jit(void(vector, vector, vector), inline=True)
def _add_terms(terms: Array, x: Array, value: Array) -> None:
    """value = terms_0 - x (terms_1 - ... (terms_n - x value)): four terms a pass, in loops that run on vectors."""
    for k in range(terms.shape[0] - 4, -1, -4):
        first, second, third, fourth = terms[k], terms[k + 1], terms[k + 2], terms[k + 3]
        for q in range(value.shape[0]):
            y = x[q]
            value[q] = first - y * (second - y * (third - y * (fourth - y * value[q])))


@jit(void(vector, vector, vector, vector), inline=True)
def _add_ray_terms(terms: Array, x: Array, real: Array, imag: Array) -> None:
    """`_add_terms` at x (1 + i)."""
    for k in range(terms.shape[0] - 4, -1, -4):
        first, second, third, fourth = terms[k], terms[k + 1], terms[k + 2], terms[k + 3]
        for q in range(real.shape[0]):
            y = x[q]
            # One term: c - y (1 + i)(a + i b) = c - y (a - b) - i y (a + b)
            a, b = fourth - y * (real[q] - imag[q]), -y * (real[q] + imag[q])
            a, b = third - y * (a - b), -y * (a + b)
            a, b = second - y * (a - b), -y * (a + b)
            real[q], imag[q] = first - y * (a - b), -y * (a + b)


@jit(void(vector, int64, vector, vector, vector))
def surplus(z: Array, n_large: int, series: Array, start: Array, surplus_out: Array) -> None:
    """What d at the panel's start has over its series in 1/z there, for the first n_large rates."""
    inverse, value = 1.0 / z[:n_large], np.zeros(n_large)
    _add_terms(series, inverse, value)
    for q in range(n_large):
        surplus_out[q] = start[q] - inverse[q] * value[q]


@jit(void(vector, int64, *[vector] * 5))
def ray_surplus(
    z: Array, n_large: int, series: Array, start_real: Array, start_imag: Array, real_out: Array, imag_out: Array
) -> None:
    """`surplus` of the rates z (1 + i)."""
    # 1/(z (1 + i)) = x (1 - i) with x = 1/(2 z): the series is that at x (1 + i), conjugated
    x, real, imag = 0.5 / z[:n_large], np.zeros(n_large), np.zeros(n_large)
    _add_ray_terms(series, x, real, imag)
    for q in range(n_large):
        real_out[q] = start_real[q] - x[q] * (real[q] - imag[q])
        imag_out[q] = start_imag[q] + x[q] * (real[q] + imag[q])


@jit(void(vector, three_counts, float64, *[vector] * 6))
def deviation(
    z: Array,
    n: tuple[int, int, int],
    gap: float,
    small_series: Array,
    large_series: Array,
    surplus_here: Array,
    before: Array,
    decay: Array,
    d_out: Array,
) -> None:
    """d at one point for rates z (times the panel's length), of the kinds n (`count_kinds`).

    Large ones from their series in 1/z and the surplus at the panel's start, the others from d `before`, at a distance
    gap in [0, 1] with gap z < 3.
    """
    n_large, n_middle, n_small = n
    x = np.empty_like(z)
    for q in range(n_large):
        x[q] = 1.0 / z[q]
    for q in range(n_large, z.shape[0]):
        x[q] = gap * z[q]
    d_out[:] = 0.0
    _add_terms(large_series, x[:n_large], d_out[:n_large])
    for q in range(n_large):
        d_out[q] = x[q] * d_out[q] + surplus_here[q] * decay[q]
    _add_terms(small_series[SHORT:], x[n_large:n_middle], d_out[n_large:n_middle])
    _add_terms(small_series[SHORTEST:SHORT], x[n_large:n_small], d_out[n_large:n_small])
    _add_terms(small_series[:SHORTEST], x[n_large:], d_out[n_large:])
    for q in range(n_large, z.shape[0]):
        d_out[q] += before[q] * decay[q]


@jit(void(vector, three_counts, float64, *[vector] * 10))
def ray_deviation(
    z: Array,
    n: tuple[int, int, int],
    gap: float,
    small_series: Array,
    large_series: Array,
    surplus_real: Array,
    surplus_imag: Array,
    before_real: Array,
    before_imag: Array,
    decay_real: Array,
    decay_imag: Array,
    real_out: Array,
    imag_out: Array,
) -> None:
    """`deviation` for the rates z (1 + i)."""
    n_large, n_middle, n_small = n
    x = np.empty_like(z)
    for q in range(n_large):
        x[q] = 0.5 / z[q]
    for q in range(n_large, z.shape[0]):
        x[q] = gap * z[q]
    real_out[:] = 0.0
    imag_out[:] = 0.0
    _add_ray_terms(large_series, x[:n_large], real_out[:n_large], imag_out[:n_large])
    for q in range(n_large):
        a, b = real_out[q], imag_out[q]
        real_out[q] = x[q] * (a - b) + surplus_real[q] * decay_real[q] - surplus_imag[q] * decay_imag[q]
        imag_out[q] = -x[q] * (a + b) + surplus_real[q] * decay_imag[q] + surplus_imag[q] * decay_real[q]
    middle, small = slice(n_large, n_middle), slice(n_large, n_small)
    _add_ray_terms(small_series[SHORT:], x[middle], real_out[middle], imag_out[middle])
    _add_ray_terms(small_series[SHORTEST:SHORT], x[small], real_out[small], imag_out[small])
    _add_ray_terms(small_series[:SHORTEST], x[n_large:], real_out[n_large:], imag_out[n_large:])
    for q in range(n_large, z.shape[0]):
        real_out[q] += before_real[q] * decay_real[q] - before_imag[q] * decay_imag[q]
        imag_out[q] += before_real[q] * decay_imag[q] + before_imag[q] * decay_real[q]


@jit(void(vector, three_counts, vector, *[matrix] * 4))
def deviations(
    z: Array,
    n: tuple[int, int, int],
    points: Array,
    small_series: Array,
    large_series: Array,
    decay: Array,
    d_out: Array,
) -> None:
    """d at all points for rates z (times the panel's length, decreasing), from d_out[0]: `deviation` step by step."""
    above = np.empty_like(z)
    surplus(z, n[0], large_series[0], d_out[0], above)
    for i in range(1, N_POINTS):
        gap = 0.5 * (points[i] - points[i - 1])
        deviation(z, n, gap, small_series[i], large_series[i], above, d_out[i - 1], decay[i], d_out[i])


@jit(void(vector, float64, vector))
def response_series(small_series: Array, start: float, series_out: Array) -> None:
    """c_k = (J/length)^{k+1} g, k < SHORT, from those of g - g(left) and start = g(left)."""
    factorial = 1.0
    for k in range(SHORT):
        factorial *= k + 1.0
        series_out[k] = small_series[k + 1] + start / factorial


@jit(void(vector, int64, float64, *[vector] * 4))
def response(
    z: Array, n_small: int, gap: float, series: Array, before: Array, decay: Array, r_out: Array
) -> None:
    """r = g - d at one point for rates z < 1, n_small of them not tiny, from r `before`: no difference is taken."""
    x = np.empty_like(z)
    for q in range(z.shape[0]):
        x[q] = gap * z[q]
    r_out[:] = 0.0
    _add_terms(series[SHORTEST:], x[:n_small], r_out[:n_small])
    _add_terms(series[:SHORTEST], x, r_out)
    for q in range(z.shape[0]):
        # r = r(left) exp(-x) + x sum_k (-x)^k c_k
        r_out[q] = x[q] * r_out[q] + before[q] * decay[q]


@jit(void(vector, int64, float64, *[vector] * 7))
def ray_response(
    z: Array,
    n_small: int,
    gap: float,
    series: Array,
    before_real: Array,
    before_imag: Array,
    decay_real: Array,
    decay_imag: Array,
    real_out: Array,
    imag_out: Array,
) -> None:
    """`response` for the rates z (1 + i)."""
    x = np.empty_like(z)
    for q in range(z.shape[0]):
        x[q] = gap * z[q]
    real_out[:] = 0.0
    imag_out[:] = 0.0
    _add_ray_terms(series[SHORTEST:], x[:n_small], real_out[:n_small], imag_out[:n_small])
    _add_ray_terms(series[:SHORTEST], x, real_out, imag_out)
    for q in range(z.shape[0]):
        a, b = real_out[q], imag_out[q]
        real_out[q] = x[q] * (a - b) + before_real[q] * decay_real[q] - before_imag[q] * decay_imag[q]
        imag_out[q] = x[q] * (a + b) + before_real[q] * decay_imag[q] + before_imag[q] * decay_real[q]


@cache
def series_matrix() -> Array:
    """The series of all points in continuous time as a matrix, a row a power of x in g.

    Shape (N_POINTS, N_POINTS x (TERMS + DEGREE + SHORT)): those of `all_series`, then those of `response_series`.
    """
    points = chebyshev_points()
    matrix = np.empty((N_POINTS, N_POINTS * (TERMS + DEGREE + SHORT)))
    for n, unit in enumerate(np.eye(N_POINTS)):
        small, large, direct = np.zeros((N_POINTS, TERMS)), np.zeros((N_POINTS, DEGREE)), np.zeros((N_POINTS, SHORT))
        all_series(unit, 0.0, False, points, small, large)
        for i in range(1, N_POINTS):
            response_series(small[i], points[i - 1] ** n, direct[i])
        matrix[n] = np.concatenate([small, large, direct], axis=None)
    return matrix


@jit(void(vector, matrix, *[matrix] * 3))
def apply_series(coefficients: Array, series: Array, small_out: Array, large_out: Array, direct_out: Array) -> None:
    """`all_series` and `response_series` of continuous time, by their matrix."""
    first = 0
    for out in (small_out.reshape(-1), large_out.reshape(-1), direct_out.reshape(-1)):
        out[:] = 0.0
        for n in range(N_POINTS):
            coefficient, row = coefficients[n], series[n, first : first + out.shape[0]]
            for k in range(out.shape[0]):
                out[k] += coefficient * row[k]
        first += out.shape[0]
