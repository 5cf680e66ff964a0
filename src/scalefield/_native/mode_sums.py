r"""Sums over modes at a complex point, and kappa(z), the root that resolvents need (theory section 6).

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

from scalefield._native.jit import float64, float64_pair, int64, int_vector, jit, vector, void

__all__ = ["FAILED", "OK", "node_types", "solve_kappa", "sums_at", "weighted_sum_at", "weighted_sums"]

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

# Status of a kernel.
OK = 0
FAILED = 2

_types: Any = numba.types
_complex = _types.complex128
# eigenvalues, counts, source, modes, log_modes, starts, offsets, settings
node_types = (vector, vector, vector, vector, vector, vector, int_vector, vector)
_SUMS = ("reassoc",)

# A pole at an angle beyond the smaller of these (radians; the second over alpha) does not disturb the Gauss sums. For
# kappa > 0 it is at pi/alpha: real points have real sums.
_POLE_ANGLE = math.pi / 3.0
_POLE_PHASE = 0.7 * math.pi
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


@jit(float64_pair(int64, int64, float64, float64, float64, vector, vector), fastmath=_SUMS)
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


@jit(_types.Tuple((_complex, float64, _complex, float64))(float64, float64, float64, float64, *node_types, vector))
def sums_at(
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


@jit(float64_pair(float64, float64, float64, float64, float64, vector, *node_types))
def weighted_sum_at(
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


@jit(void(vector, vector, float64, vector, *node_types, vector, vector))
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
    """F of `weighted_sum_at` at the points x + i y."""
    for i in range(x.size):
        real, imag = weighted_sum_at(
            0.0, 0.0, x[i], y[i], exponent, weights,
            eigenvalues, counts, source, modes, log_modes, starts, offsets, settings,
        )  # fmt: skip
        real_out[i] = real
        imag_out[i] = -y[i] * imag


@jit(_types.Tuple((_complex, int64))(_complex, _complex, float64, int64, *node_types, vector))
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
        ratio, _excess, slope, _e = sums_at(
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


@jit(int64(vector, vector, float64, float64, *node_types, vector, vector, vector))
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
                    _ratio, _excess, slope, _e = sums_at(
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
            _ratio, _excess, slope, _e = sums_at(
                0.0, 0.0, kappa.real, kappa.imag,
                eigenvalues, counts, source, modes, log_modes, starts, offsets, settings, sums_out,
            )  # fmt: skip
            z_old, kappa_old, slope_old = z, kappa, z / (kappa * slope)
            known = True
    return OK
