r"""Layers of infinitely wide networks with powers of ReLU, on blocks of pairs.

Vectors are unit vectors; with theta their angle, a pair is held as

    s = sin^2(theta/2) up to theta = pi/2, beyond it s = -cos^2(theta/2),

so that angles near 0 and near pi keep their digits, which 1 - cos(theta) loses. With w = sin^2(theta/2), z = 1 - w,
kappa_q(cos theta) = E phi(u) phi(v) for phi = c_q relu^q and unit variances, kappa_q' = q^2/(2q-1) kappa_{q-1}, a
layer is

    w   <- p p' (1 - kappa_q)/2 + |(p, b) - (p', b')|^2/4 ,      p^2 + b^2 = 1: shares of weights and bias
    rho <- 1 - 2 w ,   ntk <- rho + p p' kappa_q' ntk .
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from scalefield._native.jit import float64, int64, jit, matrix, vector, void

__all__ = ["arc_cosine_layer", "pair_angles", "power_layer"]

Array = NDArray[np.float64]

# Pairs closer to parallel or antiparallel than this have their distance summed: the rounding of a scalar product, some
# 1e-16, moves an angle theta by 1e-16/theta.
NEAR = 1e-3
# Keeps the sign of s for exactly opposite vectors.
TINY = 1e-300
INVERSE_PI = 1.0 / math.pi


@jit(float64(float64), fastmath=("contract",), inline=True)
def _arcsine_ratio(m: float) -> float:
    """arcsin(sqrt(m))/sqrt(m), 0 <= m <= 1/2: the polynomial of degree 19 through Chebyshev points, right to 4e-18."""
    y = 1.1264192878807509
    y = y * m - 4.438816692066939
    y = y * m + 8.32498352944691
    y = y * m - 9.669659398550623
    y = y * m + 7.768165374555008
    y = y * m - 4.535791802822955
    y = y * m + 2.0016041109291547
    y = y * m - 0.6641236302549411
    y = y * m + 0.1809574620911065
    y = y * m - 0.026316324552338826
    y = y * m + 0.015091795028583365
    y = y * m + 0.01092934906491237
    y = y * m + 0.01401917204006966
    y = y * m + 0.017349310327158196
    y = y * m + 0.022372313172485805
    y = y * m + 0.030381939881673394
    y = y * m + 0.044642857225197834
    y = y * m + 0.07499999999921603
    y = y * m + 0.16666666666666963
    return y * m + 1.0


@jit(void(matrix, matrix, matrix, matrix), fastmath=("contract", "reassoc"))
def pair_angles(rows: Array, columns: Array, s: Array, ntk_out: Array) -> None:
    """From unit rows, unit columns and their scalar products in s: s as above, and the products in ntk_out."""
    for i in range(s.shape[0]):
        for j in range(s.shape[1]):
            rho = s[i, j]
            ntk_out[i, j] = rho
            s[i, j] = 0.5 * (1.0 - rho) if rho >= 0.0 else -0.5 * (1.0 + rho)
        for j in range(s.shape[1]):
            if abs(s[i, j]) < 0.5 * NEAR:
                sign = 1.0 if ntk_out[i, j] > 0.0 else -1.0
                total = 0.0
                for k in range(rows.shape[1]):
                    difference = rows[i, k] - sign * columns[j, k]
                    total += difference * difference
                # |x - y|^2 = 4 sin^2(theta/2)
                s[i, j] = sign * max(0.25 * total, TINY)
                ntk_out[i, j] = sign * (1.0 - 0.5 * total)


@jit(float64(float64, float64, float64, float64, float64), fastmath=("contract",), inline=True)
def _next_angle(weight: float, unlike: float, p: float, q: float, cap: float) -> float:
    return min(0.5 * weight * unlike + 0.25 * (p * p + q * q), cap)


@jit(void(int64, *[vector] * 4, *[matrix] * 2), fastmath=("contract", "nsz"))
def arc_cosine_layer(power: int, p: Array, b: Array, p2: Array, b2: Array, s: Array, ntk: Array) -> None:
    """One layer of relu^power, power = 1, 2 or 3, in place; (p, b) of the rows, (p2, b2) of the columns."""
    for i in range(s.shape[0]):
        for j in range(s.shape[1]):
            value = s[i, j]
            m = abs(value)
            root = math.sqrt(m)
            small = root * _arcsine_ratio(m)
            # theta/2
            half = small if value >= 0.0 else 0.5 * math.pi - small
            cosine = 1.0 - 2.0 * m if value >= 0.0 else 2.0 * m - 1.0
            sine = 2.0 * root * math.sqrt(1.0 - m)
            t = 2.0 * m if value >= 0.0 else 2.0 - 2.0 * m
            theta = 2.0 * half
            weight = p[i] * p2[j]
            # unlike = 1 - kappa_q, written so that it falls as theta^2 without cancellation of 1
            if power == 1:
                unlike = t + (theta * cosine - sine) * INVERSE_PI
                slope = 1.0 - theta * INVERSE_PI
            elif power == 2:
                even = (1.0 + 2.0 * cosine * cosine) / 3.0
                unlike = 2.0 * sine * sine / 3.0 - (sine * cosine - theta * even) * INVERSE_PI
                slope = (4.0 / 3.0) * (1.0 - t - (theta * cosine - sine) * INVERSE_PI)
            else:
                even = (1.0 + 2.0 * cosine * cosine) / 3.0
                odd = cosine * (3.0 + 2.0 * cosine * cosine) / 5.0
                unlike = t * (9.0 - 6.0 * t + 2.0 * t * t) / 5.0
                unlike -= (sine * (15.0 - 11.0 * sine * sine) / 15.0 - theta * odd) * INVERSE_PI
                slope = (9.0 / 5.0) * (even + (sine * cosine - theta * even) * INVERSE_PI)
            w = _next_angle(weight, unlike, p[i] - p2[j], b[i] - b2[j], 0.5)
            ntk[i, j] = 1.0 - 2.0 * w + weight * slope * ntk[i, j]
            s[i, j] = w


@jit(float64(vector, float64), fastmath=("contract",))
def _polynomial(coefficients: Array, x: float) -> float:
    total: float = 0.0
    for n in range(coefficients.shape[0] - 1, -1, -1):
        total = total * x + coefficients[n]
    return total


@jit(float64(float64, *[vector] * 4, float64))
def _unlike(order: float, regular: Array, singular: Array, logarithm: Array, opposite: Array, s: float) -> float:
    """1 - kappa from its series (`relu_power_series`): in w up to theta = pi/2, in z beyond."""
    m = abs(s)
    power: float = m**order
    if s < 0.0:
        return 1.0 - power * _polynomial(opposite, m)
    if s == 0.0:
        return 0.0
    inner = _polynomial(singular, m)
    if logarithm.shape[0] > 0:
        inner += math.log(m) * _polynomial(logarithm, m)
    return -m * _polynomial(regular, m) - power * inner


@jit(void(float64, float64, *[vector] * 12, *[matrix] * 2))
def power_layer(
    order: float,
    slope: float,
    regular: Array,
    singular: Array,
    logarithm: Array,
    opposite: Array,
    regular1: Array,
    singular1: Array,
    logarithm1: Array,
    opposite1: Array,
    p: Array,
    b: Array,
    p2: Array,
    b2: Array,
    s: Array,
    ntk: Array,
) -> None:
    """One layer of relu^q, q = order - 1/2 any number, in place.

    The series are those of kappa_q and kappa_{q-1}, slope = q^2/(2q-1); a slope of 0 leaves out the derivative.
    """
    for i in range(s.shape[0]):
        for j in range(s.shape[1]):
            value = s[i, j]
            weight = p[i] * p2[j]
            unlike = _unlike(order, regular, singular, logarithm, opposite, value)
            w = _next_angle(weight, unlike, p[i] - p2[j], b[i] - b2[j], 0.5)
            carried = 0.0
            if slope > 0.0:
                other = _unlike(order - 1.0, regular1, singular1, logarithm1, opposite1, value)
                carried = weight * slope * (1.0 - other) * ntk[i, j]
            ntk[i, j] = 1.0 - 2.0 * w + carried
            s[i, j] = w
