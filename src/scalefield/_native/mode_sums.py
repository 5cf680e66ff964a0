r"""Sums over modes at a complex point, and the roots that the deterministic equivalent needs (theory section 6).

With f_k(kappa) = lambda_k/(kappa + lambda_k) and S_1 = sum_k f_k the kernels need, at kappa = x + i y,

.. math::
    z/\kappa = 1 - S_1/N, \qquad
    A = \frac{1}{N} \sum_k \frac{\lambda_k^2}{|\kappa+\lambda_k|^2}, \qquad
    V = \frac{1}{N} \sum_k \frac{\lambda_k^2}{(\kappa+\lambda_k)^2}, \qquad
    E = -\frac{\partial A}{\partial y^2} = \frac{1}{N} \sum_k \frac{\lambda_k^2}{|\kappa+\lambda_k|^4},

so dz/dkappa = 1 - V, Im z = y (1 - A) and Re V = A - 2 y^2 E. Modes are given by nodes: some of weight 1, then
Gauss sums on blocks of integers k (power laws), then a tail of unlearned modes.

Near the spectrum the pole k* = (-kappa)^(-1/alpha) of f as a function of k comes close to the real axis, where
a Gauss sum fails. On the blocks around it (the window, modes a..b-1) the pole is taken out and summed exactly:
with t = log(k/k*), r = -k*/alpha its residue and psi the digamma function,

.. math::
    \sum_{k=a}^{b-1} f(k) = \mathrm{Gauss}[D(t)] + r\,[\psi(b - k^*) - \psi(a - k^*)], \qquad
    D(t) = \frac{1}{\alpha (e^t - 1)} - \frac{1}{e^{\alpha t} - 1},

and D is smooth at t = 0. Positions are given as kappa = -base + d + i y, base an eigenvalue (or 0), so that
distances to it keep all their digits, and so do imaginary parts however small y is.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from scalefield._native.jit import float64, int64, jit, matrix, vector, void

__all__ = [
    "FAILED",
    "FULL",
    "LEFT",
    "OK",
    "PLAIN",
    "RIGHT",
    "STEEP",
    "TIP",
    "WHOLE",
    "edge_image",
    "evaluate_pieces",
    "find_dips",
    "find_edge",
    "find_tip",
    "solve_arc_points",
    "solve_kappa",
    "walk_band",
    "weighted_sums",
]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

# Status of a kernel.
OK = 0
FULL = 1
FAILED = 2

# Kinds of pieces of a band: which of its ends are band edges; WHOLE is a band between two edges in one rule, TIP a
# piece in y next to the edge at kappa = 0 (N = M). STEEP pieces, on which x hardly changes, are in y as well.
PLAIN = 0
LEFT = 1
RIGHT = 2
WHOLE = 3
TIP = 4
STEEP = 5

_types: Any = numba.types
_complex = _types.complex128
_integers = _types.int64[::1]
# eigenvalues, counts, source, modes, log_modes, starts, offsets, settings
_nodes = (vector, vector, vector, vector, vector, vector, _integers, vector)
_SUMS = ("reassoc",)

# A pole at an angle beyond the smaller of these (radians; the second over alpha) does not disturb the Gauss sums. For
# kappa > 0 it is at pi/alpha: real points have real sums.
_POLE_ANGLE = math.pi / 3.0
_POLE_PHASE = 0.7 * math.pi
# Arcs that fall by more than this per unit of x are walked in y, from y to this multiple of it or less far.
_STEEP_SLOPE = 4.0
_STEEP_FACTOR = 0.3
# B_2n/(2n)!, n = 1..8: 1/(e^w - 1) = 1/w - 1/2 + sum_n B_2n/(2n)! w^(2n-1).
_B1, _B2, _B3, _B4 = 1.0 / 12.0, -1.0 / 720.0, 1.0 / 30240.0, -1.0 / 1209600.0
_B5, _B6, _B7, _B8 = (
    1.0 / 47900160.0,
    -691.0 / 1307674368000.0,
    1.0 / 74724249600.0,
    -3617.0 / 10670622842880000.0,
)


@jit(_types.UniTuple(_complex, 2)(float64, _complex))
def _polygamma(integer: float, fraction: complex) -> tuple[complex, complex]:
    """Digamma and trigamma functions of integer - fraction, to relative precision also near their poles."""
    w = integer - fraction
    reflected = w.real < 0.5
    if reflected:
        w = (1.0 - integer) + fraction
    digamma, trigamma = 0.0j, 0.0j
    while w.real < 10.0 and abs(w.imag) < 10.0:
        inverse = 1.0 / w
        digamma -= inverse
        trigamma += inverse * inverse
        w += 1.0
    inverse = 1.0 / w
    square = inverse * inverse
    # psi(w) = log w - 1/(2w) - sum_n B_2n/(2n w^2n), psi'(w) = 1/w + 1/(2w^2) + sum_n B_2n/w^(2n+1)
    series = -1.0 / 12.0 * square
    series = square * (691.0 / 32760.0 + series)
    series = square * (-1.0 / 132.0 + series)
    series = square * (1.0 / 240.0 + series)
    series = square * (-1.0 / 252.0 + series)
    series = square * (1.0 / 120.0 + series)
    series = square * (-1.0 / 12.0 + series)
    log = complex(0.5 * math.log(w.real * w.real + w.imag * w.imag), math.atan2(w.imag, w.real))
    digamma += log - 0.5 * inverse + series
    series = 7.0 / 6.0 * square
    series = square * (-691.0 / 2730.0 + series)
    series = square * (5.0 / 66.0 + series)
    series = square * (-1.0 / 30.0 + series)
    series = square * (1.0 / 42.0 + series)
    series = square * (-1.0 / 30.0 + series)
    series = square * (1.0 / 6.0 + series)
    trigamma += inverse * (1.0 + 0.5 * inverse + series)
    if reflected:
        # psi(w) = psi(1-w) - pi cot(pi w) and its derivative; integers drop out of cot(pi (integer - fraction)).
        a = math.pi * (fraction.real - round(fraction.real))
        b = math.pi * fraction.imag
        if abs(b) > 300.0:
            digamma += complex(0.0, -math.copysign(math.pi, b))
            trigamma = -trigamma
        else:
            sine = complex(math.sin(a) * math.cosh(b), math.cos(a) * math.sinh(b))
            modulus = math.sin(a) ** 2 + math.sinh(b) ** 2
            cotangent = complex(math.sin(a) * math.cos(a), -math.sinh(b) * math.cosh(b)) / modulus
            inverse_sine = sine.conjugate() / modulus
            digamma += math.pi * cotangent
            trigamma = math.pi * math.pi * inverse_sine * inverse_sine - trigamma
    return digamma, trigamma


@jit(_types.Tuple((_complex, _complex, int64, int64))(float64, float64, float64, float64, vector, vector))
def _pole(
    base: float, mode: float, d: float, y: float, starts: Array, settings: Array
) -> tuple[complex, complex, int, int]:
    """k* - mode, log k*, and the blocks first..last-1 that it disturbs (none: 0, 0)."""
    n_blocks = starts.size - 1
    if n_blocks < 1:
        return 0.0j, 0.0j, 0, 0
    alpha = settings[0]
    largest_angle = min(_POLE_ANGLE, _POLE_PHASE / alpha)
    if mode > 0.0:
        # k*/mode = (1 - (d + i y)/base)^(-1/alpha)
        u, v = -d / base, -y / base
        log = complex(-0.5 * math.log1p(u * (2.0 + u) + v * v), -math.atan2(v, 1.0 + u)) / alpha
        angle = log.imag
        growth = math.exp(log.real)
        half = math.sin(0.5 * angle)
        offset = mode * complex(math.expm1(log.real) * math.cos(angle) - 2.0 * half * half, growth * math.sin(angle))
        modulus = mode * growth
        log += math.log(mode)
    else:
        log = complex(-0.5 * math.log(d * d + y * y), -math.atan2(-y, -d)) / alpha
        angle = log.imag
        if log.real > 300.0 or abs(angle) >= largest_angle:
            return 0.0j, 0.0j, 0, 0
        modulus = math.exp(log.real)
        offset = modulus * complex(math.cos(angle), math.sin(angle))
    if abs(angle) >= largest_angle:
        return 0.0j, 0.0j, 0, 0
    first, last = 0, 0
    while first < n_blocks and starts[first + 1] <= 0.5 * modulus:
        first += 1
    last = first
    while last < n_blocks and starts[last] < 4.0 * modulus:
        last += 1
    return offset, log, first, last


@jit(void(int64, int64, float64, float64, float64, vector, vector, vector), fastmath=_SUMS)
def _add_nodes(
    first: int, last: int, base: float, d: float, y2: float, eigenvalues: Array, counts: Array, sums_out: Array
) -> None:
    """Real sums over nodes; with D = lambda - base + d + i y and weight c:

    c lambda Re(1/D), c lambda/|D|^2, c lambda^2/|D|^2, c lambda^2/|D|^4, c lambda^2 Re(D)/|D|^4.
    """
    s0, s1, s2, s3, s4 = 0.0, 0.0, 0.0, 0.0, 0.0
    x, c = eigenvalues[first:last], counts[first:last]
    for j in range(x.size):
        dx = (x[j] - base) + d
        inverse = 1.0 / (dx * dx + y2)
        term = c[j] * x[j] * inverse
        s0 += term * dx
        s1 += term
        term *= x[j]
        s2 += term
        term *= inverse
        s3 += term
        s4 += term * dx
    sums_out[0] += s0
    sums_out[1] += s1
    sums_out[2] += s2
    sums_out[3] += s3
    sums_out[4] += s4


@jit(_types.UniTuple(float64, 3)(int64, float64, float64, float64, vector, vector, vector), fastmath=_SUMS)
def _add_large(
    last: int, base: float, d: float, y2: float, eigenvalues: Array, counts: Array, sums_out: Array
) -> tuple[float, float, float]:
    """The first `last` nodes by what they lack: sum c, Re sum c kappa/(kappa + lambda), sum c (1 - lambda^2/|D|^2).

    Sums 1, 3 and 4 of `_add_nodes` are added to sums_out.
    """
    total, lack, square_lack = 0.0, 0.0, 0.0
    s1, s3, s4 = 0.0, 0.0, 0.0
    x, c = eigenvalues[:last], counts[:last]
    real = d - base
    for j in range(x.size):
        dx = (x[j] - base) + d
        inverse = 1.0 / (dx * dx + y2)
        term = c[j] * inverse
        total += c[j]
        lack += term * (real * dx + y2)
        # |kappa + lambda|^2 - lambda^2
        square_lack += term * (real * (dx + x[j]) + y2)
        term *= x[j]
        s1 += term
        term *= x[j] * inverse
        s3 += term
        s4 += term * dx
    sums_out[1] += s1
    sums_out[3] += s3
    sums_out[4] += s4
    return total, lack, square_lack


@jit(_types.UniTuple(float64, 2)(int64, int64, float64, float64, float64, vector, vector), fastmath=_SUMS)
def _weighted_nodes(
    first: int, last: int, base: float, d: float, y2: float, eigenvalues: Array, weights: Array
) -> tuple[float, float]:
    """sum w lambda Re(1/D) and sum w lambda/|D|^2 over nodes."""
    s0, s1 = 0.0, 0.0
    x, w = eigenvalues[first:last], weights[first:last]
    for j in range(x.size):
        dx = (x[j] - base) + d
        term = w[j] * x[j] / (dx * dx + y2)
        s0 += term * dx
        s1 += term
    return s0, s1


@jit(float64(int64, int64, float64, float64, float64, vector, vector), fastmath=_SUMS)
def _complement(first: int, last: int, base: float, d: float, y2: float, eigenvalues: Array, counts: Array) -> float:
    """Re sum c kappa/(kappa + lambda) over nodes."""
    total = 0.0
    x, c = eigenvalues[first:last], counts[first:last]
    for j in range(x.size):
        dx = (x[j] - base) + d
        total += c[j] * ((d - base) * dx + y2) / (dx * dx + y2)
    return total


@jit(_types.UniTuple(_complex, 2)(_complex))
def _bernoulli(w: complex) -> tuple[complex, complex]:
    """b(w) = 1/(e^w - 1) - 1/w + 1/2 and b'(w) for |w| < 1/2."""
    v = w * w
    b = _B1 + v * (_B2 + v * (_B3 + v * (_B4 + v * (_B5 + v * (_B6 + v * (_B7 + v * _B8))))))
    slope = 11.0 * _B6 + v * (13.0 * _B7 + v * (15.0 * _B8))
    slope = _B1 + v * (3.0 * _B2 + v * (5.0 * _B3 + v * (7.0 * _B4 + v * (9.0 * _B5 + v * slope))))
    return w * b, slope


@jit(_types.Tuple((_complex, float64, _complex, float64))(float64, float64, float64, float64, *_nodes, vector))
def _sums(
    base: float,
    mode: float,
    d: float,
    y: float,
    eigenvalues: Array,
    counts: Array,
    source: Array,
    modes: Array,
    log_modes: Array,
    starts: Array,
    offsets: Integers,
    settings: Array,
    sums_out: Array,
) -> tuple[complex, float, complex, float]:
    """z/kappa, A - 1, dz/dkappa and E at kappa = -base + d + i y; sums_out is workspace, shape (5,).

    settings: alpha, alpha beta + 1, 1/N, 1 - M/N, smallest eigenvalue (0 unless every mode has a node of its
    own or in a block), N.
    """
    alpha, inverse_width = settings[0], settings[2]
    y2 = y * y
    for j in range(5):
        sums_out[j] = 0.0
    if starts.size == 1 and settings[4] > 0.0:
        # Every mode has its own node. Those far above |kappa| count as 1 in S_1 and A, but for little; where there are
        # N of them (a gap in the spectrum), 1 - S_1/N and A - 1 are that little, and would be lost beside 1.
        bound = 2.0 * math.hypot(d - base, y)
        n_large, n_above = 0, eigenvalues.size
        while n_large < n_above:
            middle = (n_large + n_above) // 2
            if eigenvalues[middle] > bound:
                n_large = middle + 1
            else:
                n_above = middle
        total, lack, square_lack = _add_large(n_large, base, d, y2, eigenvalues, counts, sums_out)
        _add_nodes(n_large, eigenvalues.size, base, d, y2, eigenvalues, counts, sums_out)
        missing = settings[5] - total
        excess = inverse_width * ((sums_out[2] - square_lack) - missing)
        e = inverse_width * sums_out[3]
        return (
            complex(inverse_width * ((lack - sums_out[0]) + missing), inverse_width * y * sums_out[1]),
            excess,
            complex(2.0 * y2 * e - excess, 2.0 * inverse_width * y * sums_out[4]),
            e,
        )
    offset, log_pole, first, last = _pole(base, mode, d, y, starts, settings)
    if first == last:
        _add_nodes(0, eigenvalues.size, base, d, y2, eigenvalues, counts, sums_out)
    else:
        _add_nodes(0, offsets[first], base, d, y2, eigenvalues, counts, sums_out)
        _add_nodes(offsets[last], eigenvalues.size, base, d, y2, eigenvalues, counts, sums_out)
    s1 = complex(sums_out[0], -y * sums_out[1])
    a, e = sums_out[2], sums_out[3]
    v = complex(a - 2.0 * y2 * e, -2.0 * y * sums_out[4])
    kappa = complex(d - base, y)
    window = 0.0
    if first < last:
        pole = mode + offset
        rest, slope = 0.0j, 0.0j
        for j in range(offsets[first], offsets[last]):
            t = log_modes[j] - log_pole
            w = alpha * t
            if max(abs(t.real), abs(w.real)) < 0.35 and max(abs(t.imag), abs(w.imag)) < 0.35:
                b_t, slope_t = _bernoulli(t)
                b_w, slope_w = _bernoulli(w)
                # D(t) = 1/2 - 1/(2 alpha) - b(alpha t) + b(t)/alpha
                rest += counts[j] * (0.5 - 0.5 / alpha - b_w + b_t / alpha)
                slope += counts[j] * (slope_t / alpha - alpha * slope_w)
            else:
                dx = (eigenvalues[j] - base) + d
                scale = eigenvalues[j] / (dx * dx + y2)
                f = complex(scale * dx, -scale * y)
                dk = complex(modes[j] - mode - offset.real, -offset.imag)
                g = pole * dk.conjugate() / (dk.real * dk.real + dk.imag * dk.imag)
                rest += counts[j] * (f + g / alpha)
                slope += counts[j] * (alpha * f * (f - 1.0) - g * (1.0 + g) / alpha)
        psi_last, psi1_last = _polygamma(starts[last] - mode, offset)
        psi_first, psi1_first = _polygamma(starts[first] - mode, offset)
        part = -pole / alpha * (psi_last - psi_first)
        # kappa d/dkappa of the window; kappa dk*/dkappa = -k*/alpha
        change = slope / alpha - part / alpha - (pole / alpha) ** 2 * (psi1_last - psi1_first)
        part += rest
        v_part = part + change
        s1 += part
        window = part.real
        v += v_part
        if y == 0.0:
            a += v_part.real
        else:
            a_part = kappa.real * (part.imag / y) + part.real
            a += a_part
            e += (a_part - v_part.real) / (2.0 * y2)
    if 0.5 * settings[4] > abs(kappa):
        # 1 - S_1/N = (1 - M/N) + (1/N) sum_k kappa/(kappa + lambda_k), without cancellation for small kappa.
        if first == last:
            total = _complement(0, eigenvalues.size, base, d, y2, eigenvalues, counts)
        else:
            total = _complement(0, offsets[first], base, d, y2, eigenvalues, counts)
            total += _complement(offsets[last], eigenvalues.size, base, d, y2, eigenvalues, counts)
            total += starts[last] - starts[first] - window
        ratio = complex(settings[3] + inverse_width * total, -inverse_width * s1.imag)
    else:
        ratio = 1.0 - inverse_width * s1
    return ratio, inverse_width * a - 1.0, 1.0 - inverse_width * v, inverse_width * e


@jit(_complex(_complex))
def _expm1(w: complex) -> complex:
    half = math.sin(0.5 * w.imag)
    return complex(math.expm1(w.real) * math.cos(w.imag) - 2.0 * half * half, math.exp(w.real) * math.sin(w.imag))


@jit(_types.UniTuple(float64, 2)(float64, float64, float64, float64, float64, vector, *_nodes))
def _weighted_sum(
    base: float,
    mode: float,
    d: float,
    y: float,
    exponent: float,
    weights: Array,
    eigenvalues: Array,
    counts: Array,
    source: Array,
    modes: Array,
    log_modes: Array,
    starts: Array,
    offsets: Integers,
    settings: Array,
) -> tuple[float, float]:
    """Re F and -(Im F)/y of F = sum_k k^-exponent f_k, given the nodes' `weights` for it (k^-exponent in blocks)."""
    alpha = settings[0]
    y2 = y * y
    offset, log_pole, first, last = _pole(base, mode, d, y, starts, settings)
    if first == last:
        return _weighted_nodes(0, eigenvalues.size, base, d, y2, eigenvalues, weights)
    total0, total1 = _weighted_nodes(0, offsets[first], base, d, y2, eigenvalues, weights)
    more0, more1 = _weighted_nodes(offsets[last], eigenvalues.size, base, d, y2, eigenvalues, weights)
    pole = mode + offset
    rest = 0.0j
    for j in range(offsets[first], offsets[last]):
        t = log_modes[j] - log_pole
        w = alpha * t
        power = -exponent * t
        if max(abs(t.real), abs(w.real)) < 0.35 and max(abs(t.imag), abs(w.imag)) < 0.35:
            smooth = 0.5 - 0.5 / alpha - _bernoulli(w)[0] + _bernoulli(t)[0] / alpha
            quotient = complex(-exponent, 0.0) if t == 0.0j else _expm1(power) / _expm1(t)
            # k^-q f(k) less its pole, over k*^-q: e^(-q t) D(t) - (e^(-q t) - 1)/(alpha (e^t - 1))
            rest += counts[j] * ((1.0 + _expm1(power)) * smooth - quotient / alpha)
        else:
            dx = (eigenvalues[j] - base) + d
            scale = eigenvalues[j] / (dx * dx + y2)
            dk = complex(modes[j] - mode - offset.real, -offset.imag)
            g = pole * dk.conjugate() / (dk.real * dk.real + dk.imag * dk.imag)
            rest += counts[j] * ((1.0 + _expm1(power)) * complex(scale * dx, -scale * y) + g / alpha)
    difference = _polygamma(starts[last] - mode, offset)[0] - _polygamma(starts[first] - mode, offset)[0]
    rest -= pole / alpha * difference
    power = -exponent * log_pole
    rest *= math.exp(power.real) * complex(math.cos(power.imag), math.sin(power.imag))
    slope = -rest.imag / y if y != 0.0 else 0.0
    return total0 + more0 + rest.real, total1 + more1 + slope


@jit(void(vector, vector, float64, vector, *_nodes, vector, vector))
def weighted_sums(
    x: Array,
    y: Array,
    exponent: float,
    weights: Array,
    eigenvalues: Array,
    counts: Array,
    source: Array,
    modes: Array,
    log_modes: Array,
    starts: Array,
    offsets: Integers,
    settings: Array,
    real_out: Array,
    imag_out: Array,
) -> None:
    """F of `_weighted_sum` at the points x + i y."""
    for i in range(x.size):
        real, imag = _weighted_sum(
            0.0, 0.0, x[i], y[i], exponent, weights,
            eigenvalues, counts, source, modes, log_modes, starts, offsets, settings,
        )  # fmt: skip
        real_out[i] = real
        imag_out[i] = -y[i] * imag


@jit(_types.UniTuple(float64, 2)(float64, float64, float64, *_nodes, vector))
def edge_image(
    base: float,
    mode: float,
    d: float,
    eigenvalues: Array,
    counts: Array,
    source: Array,
    modes: Array,
    log_modes: Array,
    starts: Array,
    offsets: Integers,
    settings: Array,
    sums_out: Array,
) -> tuple[float, float]:
    """s = -z at a band edge kappa = d - base, and |ds/dx| along the arc there."""
    if d == base:
        return 0.0, math.inf
    ratio, _excess, _slope, _e = _sums(
        base, mode, d, 0.0,
        eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out,
    )  # fmt: skip
    s = (base - d) * ratio.real
    # |z'|^2/Re z' = (Im z')^2/(2 y^2 E) with Im z' of order y; E has few digits where y is much smaller.
    y = 1e-4 * abs(d)
    _ratio, _excess, slope, e = _sums(
        base, mode, d, y,
        eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out,
    )  # fmt: skip
    return s, (slope.imag / y) ** 2 / (2.0 * e)


@jit(_types.Tuple((_complex, int64))(_complex, _complex, float64, int64, *_nodes, vector))
def _newton(
    z: complex,
    kappa: complex,
    lowest: float,
    n_iterations: int,
    eigenvalues: Array,
    counts: Array,
    source: Array,
    modes: Array,
    log_modes: Array,
    starts: Array,
    offsets: Integers,
    settings: Array,
    sums_out: Array,
) -> tuple[complex, int]:
    """Root of z(kappa) = z in Im kappa > 0 (Im z > 0), or in kappa > lowest (z > 0)."""
    real = z.imag == 0.0
    for _ in range(n_iterations):
        ratio, _excess, slope, _e = _sums(
            0.0, 0.0, kappa.real, kappa.imag,
            eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out,
        )  # fmt: skip
        step = (z - kappa * ratio) / slope
        if not abs(step) < 1e300:
            return kappa, FAILED
        size = abs(step) / abs(kappa)
        damped = False
        if size > 0.6:
            step *= 0.6 / size
            damped = True
        if real:
            step = complex(step.real, 0.0)
            if kappa.real + step.real <= lowest:
                # z below rounding of z(kappa): kappa_0 to all digits.
                if size < 1e-12:
                    return complex(lowest, 0.0), OK
                step = complex(0.5 * (lowest - kappa.real), 0.0)
                damped = True
        elif kappa.imag + step.imag <= 0.2 * kappa.imag:
            step = complex(step.real, -0.8 * kappa.imag)
            damped = True
        kappa += step
        # Newton's next step would be of the order of the square of this one.
        if not damped and size < 1e-10 and (real or abs(step.imag) < 1e-9 * kappa.imag):
            return kappa, OK
    return kappa, FAILED


@jit(int64(vector, vector, float64, float64, *_nodes, vector, vector, vector))
def solve_kappa(
    z_real: Array,
    z_imag: Array,
    kappa_0: float,
    shift: float,
    eigenvalues: Array,
    counts: Array,
    source: Array,
    modes: Array,
    log_modes: Array,
    starts: Array,
    offsets: Integers,
    settings: Array,
    sums_out: Array,
    kappa_real_out: Array,
    kappa_imag_out: Array,
) -> int:
    """kappa(z) for Im z >= 0 (Re z > 0 where Im z = 0), best along rays in order of |z|.

    A point is predicted from the one before by d(log kappa)/d(log z) and found by Newton's method: a root with
    Im kappa > 0 is the only one. Where that fails, the root at |z| is continued in the angle.

    Parameters
    ----------
    z_real, z_imag : array, shape (n,)
        The points.
    kappa_0, shift : float
        kappa(0) and tr X / N, so that kappa <= z + shift for z > 0.
    kappa_real_out, kappa_imag_out : array, shape (n,)
        The roots.

    Returns
    -------
    status : int
        OK or FAILED.
    """
    z_old, kappa_old, slope_old = 0.0j, 0.0j, 0.0j
    known = False
    for i in range(z_real.size):
        z = complex(z_real[i], z_imag[i])
        size = abs(z)
        angle = math.atan2(z.imag, z.real)
        status = FAILED
        kappa = 0.0j
        if known:
            change = complex(math.log(size / abs(z_old)), angle - math.atan2(z_old.imag, z_old.real))
            if abs(change) < 4.0 and (z.imag == 0.0) == (z_old.imag == 0.0):
                guess = slope_old * change
                guess = complex(max(-3.0, min(3.0, guess.real)), guess.imag)
                kappa = kappa_old * (1.0 + _expm1(guess))
                if z.imag > 0.0 and kappa.imag <= 0.0:
                    kappa = complex(kappa.real, z.imag)
                if z.imag == 0.0:
                    kappa = complex(max(kappa.real, kappa_0 * (1.0 + 1e-15)), 0.0)
                kappa, status = _newton(
                    z, kappa, kappa_0, 12,
                    eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out,
                )  # fmt: skip
        if status != OK:
            # On the positive axis from the right: z(kappa) is convex.
            kappa, status = _newton(
                complex(size, 0.0), complex(size + shift, 0.0), kappa_0, 400,
                eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out,
            )  # fmt: skip
            if status != OK:
                return FAILED
            if angle > 0.0:
                done, advance = 0.0, min(angle, 0.5)
                while done < angle:
                    advance = min(advance, angle - done)
                    new = done + advance
                    if angle - new < 1e-12:
                        new = angle
                    z_done = size * complex(math.cos(done), math.sin(done))
                    z_new = z if new == angle else size * complex(math.cos(new), math.sin(new))
                    _ratio, _excess, slope, _e = _sums(
                        0.0, 0.0, kappa.real, kappa.imag,
                        eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out,
                    )  # fmt: skip
                    # d log(kappa)/d log(z) = z/(kappa z'); at angle 0 along the axis' tangent
                    guess = kappa * (1.0 + _expm1(z_done / (kappa * slope) * complex(0.0, new - done)))
                    if guess.imag <= 0.0:
                        guess = complex(guess.real, z_new.imag)
                    root, status = _newton(
                        z_new, guess, kappa_0, 12,
                        eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out,
                    )  # fmt: skip
                    if status == OK:
                        kappa, done = root, new
                        advance *= 1.5
                    else:
                        advance *= 0.5
                        if advance < 1e-7:
                            return FAILED
        kappa_real_out[i], kappa_imag_out[i] = kappa.real, kappa.imag
        # Only the prediction of the next point needs the slope.
        if i + 1 < z_real.size:
            _ratio, _excess, slope, _e = _sums(
                0.0, 0.0, kappa.real, kappa.imag,
                eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out,
            )  # fmt: skip
            z_old, kappa_old, slope_old = z, kappa, z / (kappa * slope)
            known = True
    return OK


@jit(_types.UniTuple(float64, 2)(float64, float64, float64, *_nodes, vector))
def _phi(
    base: float,
    mode: float,
    d: float,
    eigenvalues: Array,
    counts: Array,
    source: Array,
    modes: Array,
    log_modes: Array,
    starts: Array,
    offsets: Integers,
    settings: Array,
    sums_out: Array,
) -> tuple[float, float]:
    """phi - 1, phi = A at y = 0, and its derivative by a step into the complex plane."""
    step = 1e-9 * abs(d)
    _ratio, _excess, slope, _e = _sums(
        base, mode, d, step,
        eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out,
    )  # fmt: skip
    return -slope.real, -slope.imag / step


@jit(float64(float64, float64))
def _between(low: float, high: float) -> float:
    """A point between two of one sign, also where they are decades apart, as next to a gap of the spectrum."""
    small, large = (low, high) if abs(low) < abs(high) else (high, low)
    if abs(large) <= 4.0 * abs(small):
        return 0.5 * (low + high)
    return large * math.sqrt(small / large) if small != 0.0 else 0.01 * large


@jit(float64(float64, float64, float64, float64, *_nodes, vector))
def find_edge(
    base: float,
    mode: float,
    near: float,
    far: float,
    eigenvalues: Array,
    counts: Array,
    source: Array,
    modes: Array,
    log_modes: Array,
    starts: Array,
    offsets: Integers,
    settings: Array,
    sums_out: Array,
) -> float:
    """Band edge: the d between `near` (phi > 1) and `far` (phi < 1), both on one side of the pole, with phi = 1.

    By Newton's method on phi^(-1/2), which is linear in d around a lone pole, kept inside the bracket.
    """
    # The radius of a lone pole's band, if that is in the bracket.
    d = 0.5 * (near + far)
    low, high = near, far
    for i in range(200):
        excess, slope = _phi(
            base, mode, d, eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out
        )
        if excess > 0.0:
            low = d
        else:
            high = d
        # h = phi^(-1/2) - 1, h' = -phi'/(2 phi^(3/2)); 1 - sqrt(phi) = -(phi - 1)/(1 + sqrt(phi))
        phi = 1.0 + excess
        step = -2.0 * phi * excess / ((1.0 + math.sqrt(phi)) * slope) if slope != 0.0 else 0.0
        new = d + step
        if step != 0.0 and abs(step) <= 1e-9 * abs(d):
            return new
        if not (min(low, high) < new < max(low, high)) or i % 16 == 15:
            new = _between(low, high)
        if abs(high - low) <= 4e-16 * abs(d):
            return new
        d = new
    return d


@jit(_types.UniTuple(int64, 2)(vector, vector, float64, float64, int64, *_nodes, vector, _integers, matrix))
def find_dips(
    poles: Array,
    multiplicity: Array,
    bound: float,
    stop_bound: float,
    numbered: int,
    eigenvalues: Array,
    counts: Array,
    source: Array,
    modes: Array,
    log_modes: Array,
    starts: Array,
    offsets: Integers,
    settings: Array,
    sums_out: Array,
    index_out: Integers,
    dips_out: Array,
) -> tuple[int, int]:
    """Minima of phi between neighbouring poles -lambda that are below `bound`.

    Parameters
    ----------
    poles, multiplicity : array, shape (n,)
        Different eigenvalues, decreasing, and how often each occurs.
    bound : float
        Minima above it are left out; quickly, where a few poles alone exceed it.
    stop_bound : float
        The search ends at the first minimum above it.
    numbered : int
        1 where pole i is mode i + 1 of a power law.
    index_out : array of int, shape (n,)
        Pole left of each dip.
    dips_out : array, shape (n, 4)
        phi - 1 at the dip, its distance from the right pole (negative), and where phi < 1 the edges as distances from
        the left (positive) and right pole (negative).

    Returns
    -------
    status, n_dips : int
    """
    n_dips = 0
    inverse_width = settings[2]
    n_poles = poles.size
    for i in range(n_poles - 1):
        left, right = poles[i], poles[i + 1]
        distance = left - right
        a = multiplicity[i] * left * left * inverse_width
        b = multiplicity[i + 1] * right * right * inverse_width
        # min over x of a/x^2 + b/(distance - x)^2 = (a^(1/3) + b^(1/3))^3/distance^2
        root_a, root_b = a ** (1.0 / 3.0), b ** (1.0 / 3.0)
        if (root_a + root_b) ** 3 > bound * distance * distance and numbered == 0:
            continue
        # Distances d from the right pole, the smaller eigenvalue: next to a gap of the spectrum they are beyond the
        # digits of those from the left one.
        low, high = 0.0, distance
        d = distance * (root_b / (root_a + root_b))
        if numbered == 0:
            # The neighbours within eight poles, by Newton's method on the convex sum; its minimum is at most phi's.
            low_w, high_w = low, high
            for _ in range(6):
                value, slope, curvature = 0.0, 0.0, 0.0
                for j in range(max(0, i - 8), min(n_poles, i + 10)):
                    inverse = 1.0 / ((poles[j] - right) - d)
                    term = multiplicity[j] * poles[j] * poles[j] * inverse_width * inverse * inverse
                    value += term
                    slope += 2.0 * term * inverse
                    curvature += 6.0 * term * inverse * inverse
                if slope < 0.0:
                    low_w = d
                else:
                    high_w = d
                new = d - slope / curvature
                if not low_w < new < high_w:
                    new = 0.5 * (low_w + high_w)
                if abs(new - d) < 1e-3 * distance:
                    break
                d = new
            # A convex function is above its tangent: never above the true minimum.
            least = value - max(slope * (d - low_w), -slope * (high_w - d), 0.0)
            if least > bound:
                continue
        mode, next_mode = (i + 1.0, i + 2.0) if numbered else (0.0, 0.0)
        # Regula falsi (Illinois) for dphi/dd times the cube of both distances (over their sum's), whose ends are known.
        g_low, g_high = -2.0 * b, 2.0 * a
        excess = 0.0
        for iteration in range(60):
            excess, slope = _phi(
                right, next_mode, -d, eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out
            )
            g = -slope * (d * (1.0 - d / distance)) ** 3
            if g < 0.0:
                if iteration > 0:
                    g_high *= 0.5
                low, g_low = d, g
            else:
                if iteration > 0:
                    g_low *= 0.5
                high, g_high = d, g
            new = (low * g_high - high * g_low) / (g_high - g_low)
            if not low < new < high or iteration % 8 == 7:
                new = _between(low, high)
            if abs(new - d) < 1e-8 * min(d, distance - d):
                break
            d = new
        if 1.0 + excess > stop_bound:
            break
        if 1.0 + excess > bound:
            continue
        dips_out[n_dips, 0] = excess
        dips_out[n_dips, 1] = -d
        if excess < 0.0:
            dips_out[n_dips, 2] = find_edge(
                left, mode, 0.0, distance - d,
                eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out,
            )  # fmt: skip
            dips_out[n_dips, 3] = find_edge(
                right, next_mode, 0.0, -d,
                eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out,
            )  # fmt: skip
        index_out[n_dips] = i
        n_dips += 1
    return OK, n_dips


@jit(float64(float64, float64, float64, float64, *_nodes, vector))
def _arc(
    base: float,
    mode: float,
    d: float,
    guess: float,
    eigenvalues: Array,
    counts: Array,
    source: Array,
    modes: Array,
    log_modes: Array,
    starts: Array,
    offsets: Integers,
    settings: Array,
    sums_out: Array,
) -> float:
    """y > 0 with A(x, y) = 1 at x = d - base, by Newton's method on 1/A in y^2; `guess` is a first y^2 > 0."""
    low, high = 0.0, math.inf
    square = guess
    for _ in range(100):
        _ratio, excess, _slope, e = _sums(
            base, mode, d, math.sqrt(square),
            eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out,
        )  # fmt: skip
        if excess > 0.0:
            low = square
        else:
            high = square
        # 1/A is nearly linear in y^2: y^2 + A (A - 1)/E
        new = square + (1.0 + excess) * excess / e if e > 0.0 else -1.0
        # Newton's next step would be of the order of the square of this one. (Before the bracket, whose end may be
        # the root to rounding.)
        if abs(new - square) <= 1e-8 * square:
            return math.sqrt(new)
        if not low < new < high:
            new = 0.5 * (low + high) if high < math.inf else 4.0 * square
            if low == 0.0:
                new = 0.05 * square
        if new > 100.0 * square:
            new = 100.0 * square
        if new < 1e-300:
            return math.sqrt(new)
        if high < math.inf and high - low <= 1e-15 * high:
            return math.sqrt(new)
        square = new
    return math.sqrt(square)


@jit(float64(float64, float64, float64))
def _clearance(x: float, y: float, alpha: float) -> float:
    """Im k*, the distance of the pole from the modes; 0 for x >= 0."""
    if x >= 0.0:
        return 0.0
    height: float = math.hypot(x, y) ** (-1.0 / alpha) * math.sin(math.atan2(y, -x) / alpha)
    return height


@jit(float64(float64, float64, *_nodes, vector))
def find_tip(
    y: float,
    guess: float,
    eigenvalues: Array,
    counts: Array,
    source: Array,
    modes: Array,
    log_modes: Array,
    starts: Array,
    offsets: Integers,
    settings: Array,
    sums_out: Array,
) -> float:
    """x with A(x, y) = 1 near `guess` where the arc is steep, as near kappa = 0 at N = M (x of order y^2)."""
    x = guess
    for _ in range(20):
        _ratio, excess, slope, _e = _sums(
            0.0, 0.0, x, y,
            eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out,
        )  # fmt: skip
        # dA/dx = -Im z'/y
        step = y * excess / slope.imag
        x += step
        if abs(step) <= 1e-8 * abs(x) or abs(x) < 1e-9 * y:
            break
    return x


@jit(_types.UniTuple(int64, 2)(*[float64] * 7, vector, float64, float64, int64, *_nodes, vector, matrix, _integers))
def walk_band(
    left: float,
    right: float,
    left_space: float,
    right_space: float,
    left_height: float,
    right_height: float,
    right_level: float,
    breaks: Array,
    first_length: float,
    smooth_above: float,
    n_pieces: int,
    eigenvalues: Array,
    counts: Array,
    source: Array,
    modes: Array,
    log_modes: Array,
    starts: Array,
    offsets: Integers,
    settings: Array,
    sums_out: Array,
    pieces_out: Array,
    kinds_out: Integers,
) -> tuple[int, int]:
    """Cut a band left < x < right into pieces not longer than y(x), the distance of its singularities.

    Parameters
    ----------
    left, right : float
        Edges.
    left_space, right_space : float
        Distance of the next singularity beyond each edge.
    left_height, right_height : float
        Largest y on the pieces at the edges: poles at a distance r of an edge make y^2 = -r^2 singular.
    right_level : float
        The last piece begins at an s not above this, so that functions of s are smooth on it.
    breaks : array
        Points (dips) where pieces must end, increasing.
    first_length : float
        Length of the first piece to try.
    smooth_above : float
        Where x < 0 and the pole k* is farther than this from the real axis, the modes act as a continuum and
        pieces may be as long as |x|/3.
    n_pieces : int
        Pieces that are there already.
    pieces_out : array, shape (capacity, 5)
        Appended: base, mode, first and last d, a first guess of y^2 in the middle; for STEEP 0, 0, lower and upper y
        and x at the upper one.
    kinds_out : array, shape (capacity,)
        Appended: PLAIN, LEFT, RIGHT or STEEP.

    Returns
    -------
    status, n_pieces : int
        Status FULL if the capacity does not suffice.
    """
    alpha = settings[0]
    x = left
    y = 0.0
    length = min(first_length, 3.0 * left_space)
    i_break = 0
    square = first_length * first_length
    while True:
        if n_pieces == kinds_out.size:
            return FULL, n_pieces
        while i_break < breaks.size and breaks[i_break] <= x:
            i_break += 1
        rest = right - x
        if y > 0.0:
            last = min(y, 3.0 * right_space) >= 1.2 * rest and y <= right_height
            last = last and (i_break >= breaks.size or breaks[i_break] >= right)
            slope = 0.0j
            if starts.size == 1 or (last and right_level < math.inf):
                ratio, _excess, slope, _e = _sums(
                    0.0, 0.0, x, y,
                    eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out,
                )  # fmt: skip
                last = last and y * ratio.imag - x * ratio.real <= right_level
            if not last and starts.size == 1 and abs(x) < 2.0 * y and slope.imag > _STEEP_SLOPE * slope.real:
                # Above a gap of the spectrum y falls like sqrt(-x), many decades of it where x has no digits left.
                # x(y) is singular where the arc turns flat: the slope may not fall much on a piece.
                first = slope
                factor = _STEEP_FACTOR
                found = False
                x_new, y_new = 0.0, 0.0
                for _ in range(5):
                    y_new = factor * y
                    x_new = find_tip(
                        y_new, x,
                        eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out,
                    )  # fmt: skip
                    _ratio, excess, slope, _e = _sums(
                        0.0, 0.0, x_new, y_new,
                        eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out,
                    )  # fmt: skip
                    found = x <= x_new < right and slope.imag > _STEEP_SLOPE * slope.real
                    found = found and slope.imag * first.real > 0.4 * first.imag * slope.real
                    found = found and abs(excess) <= 1e-6 * slope.imag
                    if found:
                        break
                    factor = math.sqrt(factor)
                if found:
                    pieces_out[n_pieces, 0] = 0.0
                    pieces_out[n_pieces, 1] = 0.0
                    pieces_out[n_pieces, 2] = y_new
                    pieces_out[n_pieces, 3] = y
                    pieces_out[n_pieces, 4] = x
                    kinds_out[n_pieces] = STEEP
                    n_pieces += 1
                    x, y = x_new, y_new
                    square = y * y
                    continue
            if last:
                pieces_out[n_pieces, 0] = 0.0
                pieces_out[n_pieces, 1] = 0.0
                if starts.size == 1 and rest < 0.05 * y and right_height < math.inf:
                    pieces_out[n_pieces, 2] = 0.0
                    pieces_out[n_pieces, 3] = y
                    pieces_out[n_pieces, 4] = x
                    kinds_out[n_pieces] = STEEP
                else:
                    pieces_out[n_pieces, 2] = x
                    pieces_out[n_pieces, 3] = right
                    pieces_out[n_pieces, 4] = y * y
                    kinds_out[n_pieces] = RIGHT
                return OK, n_pieces + 1
            length = 0.8 * y
            if starts.size > 1 and _clearance(x, y, alpha) > smooth_above:
                length = max(length, -x / 3.0)
        length = min(length, 0.5 * rest)
        end = x + length
        if i_break < breaks.size and x + 1.4 * length > breaks[i_break]:
            # Up to the break, or half of the way.
            if end >= breaks[i_break]:
                # To the break itself: x + (break - x) may be below it by rounding, and the rest of no length.
                end = breaks[i_break]
                length = end - x
            else:
                length = 0.5 * (breaks[i_break] - x)
                end = x + length
        y_new = 0.0
        for _ in range(200):
            y_new = _arc(
                0.0, 0.0, end, square,
                eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out,
            )  # fmt: skip
            smooth = (
                starts.size > 1
                and y > 0.0
                and _clearance(x, y, alpha) > smooth_above
                and _clearance(end, y_new, alpha) > smooth_above
            )
            if y > 0.0:
                # kappa = 0, where s = 0, is as singular as a pole.
                found = y_new >= 0.8 * length or smooth
                found = found and math.hypot(end, y_new) >= 0.4 * math.hypot(x, y)
            else:
                found = 0.95 * length <= y_new <= left_height
            if found:
                break
            length *= 0.5
            end = x + length
            if length <= 1e-15 * abs(x):
                break
            square = max(y_new * y_new, 1e-4 * length * length)
        pieces_out[n_pieces, 0] = 0.0
        pieces_out[n_pieces, 1] = 0.0
        pieces_out[n_pieces, 2] = x
        pieces_out[n_pieces, 3] = end
        pieces_out[n_pieces, 4] = y_new * y_new
        kinds_out[n_pieces] = LEFT if y == 0.0 else PLAIN
        n_pieces += 1
        if length <= 1e-15 * abs(x):
            return FAILED, n_pieces
        x = end
        y = y_new
        square = y * y


@jit(int64(matrix, _integers, _integers, vector, vector, int64, int64, *_nodes, vector, matrix))
def evaluate_pieces(
    pieces: Array,
    kinds: Integers,
    node_counts: Integers,
    gauss_nodes: Array,
    gauss_weights: Array,
    first_piece: int,
    last_piece: int,
    eigenvalues: Array,
    counts: Array,
    source: Array,
    modes: Array,
    log_modes: Array,
    starts: Array,
    offsets: Integers,
    settings: Array,
    sums_out: Array,
    nodes_out: Array,
) -> int:
    r"""Nodes of the two spectral measures on pieces first_piece..last_piece-1.

    .. math::
        s = -\mathrm{Re}\, z, \qquad \left|\frac{ds}{dx}\right| = \frac{|z'|^2}{\mathrm{Re}\, z'}, \qquad
        \rho = \frac{N y}{\pi |\kappa|^2} ds, \qquad
        \mu = \frac{y}{\pi s} \sum_k \frac{u_k^2 \lambda_k}{|\kappa+\lambda_k|^2} ds

    Parameters
    ----------
    pieces, kinds : array
        As `walk_band` makes them; WHOLE pieces are bands from edge to edge.
    node_counts : array of int, shape (n_pieces + 1,)
        Cumulated numbers of nodes.
    gauss_nodes, gauss_weights : array
        Gauss-Legendre rule on (0, 1).
    nodes_out : array, shape (n_nodes, 5)
        s, rho, mu, x, y; s = 0 marks a node without mass.
    """
    inverse_width = settings[2]
    for piece in range(first_piece, last_piece):
        base, mode = pieces[piece, 0], pieces[piece, 1]
        start, end, square = pieces[piece, 2], pieces[piece, 3], pieces[piece, 4]
        kind = kinds[piece]
        n = node_counts[piece + 1] - node_counts[piece]
        shape = 1.0
        for i in range(n):
            if kind == WHOLE:
                angle = math.pi * (i + 0.5) / n
                half = 0.5 * (end - start)
                # start + half (1 - cos)
                d = start + 2.0 * half * math.sin(0.5 * angle) ** 2
                weight = math.pi / n * half * math.sin(angle)
                square = shape * (half * math.sin(angle)) ** 2
            elif kind == LEFT:
                u = gauss_nodes[i]
                d = start + (end - start) * u * u
                weight = 2.0 * u * gauss_weights[i] * (end - start)
                if i == 0:
                    square *= u * u
            elif kind == RIGHT:
                u = gauss_nodes[n - 1 - i]
                d = end - (end - start) * u * u
                weight = 2.0 * u * gauss_weights[i] * (end - start)
            else:
                d = start + (end - start) * gauss_nodes[i]
                weight = gauss_weights[i] * (end - start)
            if kind == STEEP:
                # From the upper end, where x is known, down.
                y = start + (end - start) * gauss_nodes[n - 1 - i]
                weight = gauss_weights[n - 1 - i] * (end - start)
                square = find_tip(
                    y, square,
                    eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out,
                )  # fmt: skip
                d = square
            elif kind == TIP:
                y = start + (end - start) * gauss_nodes[i]
                # square holds the limit of x/y^2, for which x has no digits of its own where y is small.
                d = square * y * y
                if y > 1e-4 * settings[4]:
                    d = find_tip(
                        y, d,
                        eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out,
                    )  # fmt: skip
            else:
                y = _arc(
                    base, mode, d, square,
                    eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out,
                )  # fmt: skip
            ratio, _excess, z_slope, e = _sums(
                base, mode, d, y,
                eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out,
            )  # fmt: skip
            power = _weighted_sum(
                base, mode, d, y, settings[1], source,
                eigenvalues, counts, source, modes, log_modes, starts, offsets, settings,
            )[1]  # fmt: skip
            if kind == WHOLE:
                shape = y * y / (half * math.sin(angle)) ** 2
            if kind not in (TIP, STEEP):
                square = y * y
            x = d - base
            s = -(x * ratio.real - y * ratio.imag)
            # Re z' = 1 - Re V = 2 y^2 E at A = 1
            slope = 2.0 * y * y * e
            # |ds/dx| = |z'|^2/Re z' and |ds/dy| = |z'|^2/|Im z'| along the arc
            stretch = slope * slope + z_slope.imag * z_slope.imag
            stretch /= abs(z_slope.imag) if kind in (TIP, STEEP) else slope
            row = nodes_out[node_counts[piece] + i]
            if not (s > 0.0 and y > 0.0 and stretch < math.inf):
                row[0] = 0.0
                row[1] = 0.0
                row[2] = 0.0
            else:
                row[0] = s
                row[1] = y * stretch * weight / (math.pi * inverse_width * (x * x + y * y))
                row[2] = y * power * stretch * weight / (math.pi * s)
            row[3] = x
            row[4] = y
    return OK


@jit(int64(vector, vector, vector, *_nodes, vector, matrix))
def solve_arc_points(
    s: Array,
    x_low: Array,
    x_high: Array,
    eigenvalues: Array,
    counts: Array,
    source: Array,
    modes: Array,
    log_modes: Array,
    starts: Array,
    offsets: Integers,
    settings: Array,
    sums_out: Array,
    densities_out: Array,
) -> int:
    """Densities (source, trace) at eigenvalues s, each with an interval of x inside one band that holds it."""
    inverse_width = settings[2]
    for i in range(s.size):
        low, high = x_low[i], x_high[i]
        x = 0.5 * (low + high)
        square = (0.5 * (high - low)) ** 2
        y = 0.0
        ratio, z_slope, e = 0.0j, 0.0j, 0.0
        for _ in range(100):
            y = _arc(
                0.0, 0.0, x, square,
                eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out,
            )  # fmt: skip
            ratio, _excess, z_slope, e = _sums(
                0.0, 0.0, x, y,
                eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out,
            )  # fmt: skip
            here = -(x * ratio.real - y * ratio.imag)
            slope = 2.0 * y * y * e
            stretch = (slope * slope + z_slope.imag * z_slope.imag) / slope
            # s decreases along the arc.
            if here > s[i]:
                low = x
            else:
                high = x
            new = x + (here - s[i]) / stretch
            square = y * y
            if abs(new - x) <= 1e-15 * abs(x) or high - low <= 4e-16 * abs(x):
                break
            if not low < new < high:
                new = 0.5 * (low + high)
            x = new
        power = _weighted_sum(
            0.0, 0.0, x, y, settings[1], source,
            eigenvalues, counts, source, modes, log_modes, starts, offsets, settings,
        )[1]  # fmt: skip
        densities_out[i, 0] = y * power / (math.pi * s[i])
        densities_out[i, 1] = y / (math.pi * inverse_width * (x * x + y * y))
    return OK
