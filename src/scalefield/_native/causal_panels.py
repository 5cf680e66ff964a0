"""Causal convolutions with many rates at once, panel by panel in logarithmic time.

For each rate s > 0 the deviation d_s of a slow drive g obeys, from one (virtual) step to the next,

    d(u + e) = (1 - s e) d(u) + g(u + e) - g(u) ,      in the limit e -> 0 :   d' = g' - s d .

On a panel g is a polynomial through its values at the Chebyshev points, and d follows from it exactly: with the
difference quotient D = (exp(e d/du) - 1)/e and its inverse J (the sum from the left end), D d = -s d + D g gives

    d = d(0) exp(-nu u) + sum_{k>=0} (-s)^k J^k [g - g(0)]                                       (small s)
    d = sum_{k>=0} (-1)^k D^{k+1} g / s^{k+1} + [d(0) - same at 0] exp(-nu u)                    (large s)

with nu = -log|1 - s e|/e, or s at e = 0. The first is applied from point to point of a panel, where its series
converges fast; the second holds where the panel is long compared to 1/s.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from scalefield._native.jit import (
    boolean,
    complex_matrix,
    complex_vector,
    float64,
    int64,
    jit,
    matrix,
    vector,
    void,
)

__all__ = [
    "DEGREE",
    "LARGE",
    "NOTHING",
    "N_POINTS",
    "SMALL",
    "TERMS",
    "all_series",
    "chebyshev_points",
    "count_rates",
    "decay_factors",
    "deviations",
    "interval_series",
    "monomial_matrix",
    "panel_series",
    "tail",
]

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]

# Degree of the polynomials on a panel, and the number of points with both ends.
DEGREE = 12
N_POINTS = DEGREE + 1
# Terms of the series for small rates: enough for s times the distance of two points up to 3.
TERMS = 28
# Below this product of rate and panel length, SHORT terms do.
SMALL = 2.0
SHORT = 11
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


# Real rates, and the complex ones of a contour.
@jit(
    [
        void(vector, int64, vector, matrix, matrix),
        void(complex_vector, int64, vector, complex_matrix, complex_matrix),
    ]
)
def decay_factors(
    nu: Array | ComplexArray,
    n_large: int,
    points: Array,
    from_start_out: Array | ComplexArray,
    between_out: Array | ComplexArray,
) -> None:
    """exp(-nu (c_i - 0)) for the first n_large rates, exp(-nu (c_i - c_{i-1})) for the others; c in [0, 1]."""
    for i in range(1, N_POINTS):
        c = 0.5 * (points[i] - points[0])
        gap = 0.5 * (points[i] - points[i - 1])
        for q in range(n_large):
            exponent = nu[q] * c
            from_start_out[i, q] = np.exp(-exponent) if exponent.real < NOTHING else 0.0
        for q in range(n_large, nu.shape[0]):
            x = nu[q] * gap
            if abs(x) > 0.02:
                between_out[i, q] = np.exp(-x)
            else:
                between_out[i, q] = 1.0 - x * (1.0 - x * (0.5 - x * (1.0 / 6.0 - x * (1.0 / 24.0 - x / 120.0))))


@jit(float64(vector))
def tail(values: Array) -> float:
    """Size of the two highest Chebyshev coefficients of values at the points, relative to the last value."""
    last, second = 0.0, 0.0
    for i in range(N_POINTS):
        weight = (0.5 if i == 0 or i == DEGREE else 1.0) / DEGREE
        last += weight * (1.0 if (DEGREE - i) % 2 == 0 else -1.0) * values[i]
        second += 2.0 * weight * np.cos((DEGREE - 1) * np.pi * (DEGREE - i) / DEGREE) * values[i]
    size: float = max(abs(last), 0.2 * abs(second)) / abs(values[DEGREE])
    return size


@jit(
    [
        void(vector, int64, int64, vector, matrix, matrix, matrix, matrix, matrix),
        void(complex_vector, int64, int64, vector, matrix, matrix, complex_matrix, complex_matrix, complex_matrix),
    ]
)
def deviations(
    z: Array | ComplexArray,
    n_large: int,
    n_middle: int,
    points: Array,
    small_series: Array,
    large_series: Array,
    from_start: Array | ComplexArray,
    between: Array | ComplexArray,
    d_out: Array | ComplexArray,
) -> None:
    """Fill d_out[1:, q] from d_out[0, q] for rates z (times the panel's length, decreasing).

    Loops over rates are the inner ones, so that they run on vectors.
    """
    size = z.shape[0]
    inverse = np.empty_like(z)
    surplus = np.zeros_like(z)
    for q in range(n_large):
        inverse[q] = 1.0 / z[q]
    for k in range(DEGREE - 1, -1, -1):
        for q in range(n_large):
            surplus[q] = (large_series[0, k] - surplus[q]) * inverse[q]
    for q in range(n_large):
        surplus[q] = d_out[0, q] - surplus[q]
    for i in range(1, N_POINTS):
        row = d_out[i]
        for q in range(size):
            row[q] = 0.0
        for k in range(DEGREE - 1, -1, -1):
            for q in range(n_large):
                row[q] = (large_series[i, k] - row[q]) * inverse[q]
        for q in range(n_large):
            row[q] += surplus[q] * from_start[i, q]
        gap = 0.5 * (points[i] - points[i - 1])
        # Slices, counted from 0: an index that might be negative keeps a loop from running on vectors.
        middle, small = row[n_large:n_middle], row[n_large:]
        middle_z, small_z = z[n_large:n_middle], z[n_large:]
        for k in range(TERMS - 1, SHORT - 1, -1):
            term = small_series[i, k]
            for q in range(middle.shape[0]):
                middle[q] = term - gap * middle_z[q] * middle[q]
        for k in range(SHORT - 1, -1, -1):
            term = small_series[i, k]
            for q in range(small.shape[0]):
                small[q] = term - gap * small_z[q] * small[q]
        before, decay = d_out[i - 1, n_large:], between[i, n_large:]
        for q in range(small.shape[0]):
            small[q] += before[q] * decay[q]
