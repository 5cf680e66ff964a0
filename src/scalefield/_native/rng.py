r"""Standard normal deviates as a function of a counter.

Every random number is addressed, not drawn in sequence: it depends on a key (the seed and the purpose) and a
counter (which number), so it is the same for any number of threads, any block size, any order of evaluation
and any device, and a computation can be continued from anywhere. The generator is Philox4x32-10, the
transform Box-Muller:

.. math::
    u = 2^{-32}(x + \tfrac12), \qquad
    (n_0, n_1) = \sqrt{-2 \log u_0}\, (\cos 2\pi u_1, \sin 2\pi u_1)

One block of four 32-bit words gives four deviates, the *lanes* 0..3; words (0, 1) give lanes 0 and 1, words
(2, 3) lanes 2 and 3. Deviates reach at most sqrt(2 log 2^33) = 6.76 in absolute value, and a radius takes 2^32
values, so the tail is granular beyond about 6.5 (probability 1e-10).

This assignment is kept for ever; a seed means the same numbers in every version. The key is
``SeedSequence(entropy=seed, spawn_key=(stream,)).generate_state(2, uint32)`` and the counter (c0, c1, c2, c3) is

=============  =====  ======================================  ==================
stream         value  counter                                 lane
=============  =====  ======================================  ==================
`PROJECTION`   0      (i // 4, k, run, 0) for A(0)[i, k]      i % 4
`FEATURES`     1      (k // 4, b, step, run) for mode k of    k % 4
                      sample b
`LABEL_NOISE`  2      (b // 4, 0, step, run) for sample b     b % 4
`REDUCED`      3      (i // 4, b, step, run) for component i  i % 4
                      of sample b in the eigenbasis of the
                      features: eigenvalues decreasing, signs
                      such that the target's parts c are >= 0
`REST`         4      (b // 4, 0, step, run), the part of     b % 4
                      sample b outside the features' span
`TAIL`         5      (i // 4, j, run, 0), entry i <= j < N   i % 4
                      of the far modes' covariance, and
                      j = 2^32 - 1: their target
`DATA`         6      (k // 4, mu, run, 0) for mode k of      k % 4
                      sample mu of a data set
`DATA_NOISE`   7      (mu // 4, run, 0, 0), its label noise   mu % 4
`BATCHES`      8      (b // 4, 0, step, run), which sample b  b % 4
                      of a batch is; (mu // 4, 1, epoch,
                      run), the key by which an epoch is
                      sorted
`READOUT`      9      (i // 4, 0, run, 0) for w(0)_i of a     i % 4
                      trained network
`GRADIENT`     10     (k // 4, 0, step, run) for mode k of a  k % 4
                      linear network's batch gradient across
                      its error; (b // 4, 1, step, run),      b % 4
                      sample b along the error
`ANGLES`       12     (b // 4, 0, step, run) for the angle    b % 4
                      of sample b, a word
`NETWORK`      13     (j // 4, i, run, l), the weight of      j % 4
                      unit i of layer l for the unit j
                      below; the readout is unit 0 of the
                      last layer
=============  =====  ======================================  ==================

Other features than Gaussian ones take one word each, word k % 4 of the same block: their sign is the word's highest
bit, or they are sqrt(12) (2^{-32} (x + 1/2) - 1/2); functions are given 2^{-32} (x + 1/2).

Entries of A(0) are these deviates rounded to single precision, in every precision of training: by at most 6e-8 of
their size, which no statistic sees, and A(0) takes half the memory and the time to read it.

So more features, modes, samples, steps or runs never change the earlier ones.

Arithmetic is plain IEEE double precision without contraction or other relaxations, with polynomials in place
of the C library's functions: the bits are the same in a vectorised loop, in its remainder and on every
machine. Words travel in the low halves of 64-bit integers, which match the double-precision lanes of vector
units and their 32 x 32 -> 64 bit multiplication, so that LLVM vectorises the whole of `fill_normals`.

References
----------
Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC11, doi:10.1145/2063384.2063405.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from scalefield._native.jit import float64, float64_pair, four_words, int64, jit, precisions, uint64, void

__all__ = [
    "ANGLES",
    "BATCHES",
    "DATA",
    "DATA_NOISE",
    "FEATURES",
    "GAUSSIAN",
    "GRADIENT",
    "LABEL_NOISE",
    "NETWORK",
    "PROBABILITY",
    "PROJECTION",
    "RADEMACHER",
    "READOUT",
    "REDUCED",
    "REST",
    "TAIL",
    "UNIFORM",
    "fill_features",
    "fill_normals",
    "normal_pair",
    "philox",
    "stream_key",
]

PROJECTION = 0
FEATURES = 1
LABEL_NOISE = 2
REDUCED = 3
REST = 4
TAIL = 5
DATA = 6
DATA_NOISE = 7
BATCHES = 8
READOUT = 9
GRADIENT = 10
ANGLES = 12
NETWORK = 13

# Kinds of features.
GAUSSIAN = 0
RADEMACHER = 1
UNIFORM = 2
# Uniform on (0, 1), for functions.
PROBABILITY = 3

# Every operand is a uint64: Numba turns a mixture with signed integers into floats.
_MULTIPLIER_0 = np.uint64(0xD2511F53)
_MULTIPLIER_1 = np.uint64(0xCD9E8D57)
_WEYL_0 = np.uint64(0x9E3779B9)
_WEYL_1 = np.uint64(0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)

# x | _TWO_52_BITS are the bits of the double 2^52 + x, for x < 2^52.
_TWO_52_BITS = np.uint64(0x4330000000000000)
_TWO_52 = 4503599627370496.0
_EXPONENT_SHIFT = np.uint64(52)
_ONE_BITS = np.uint64(0x3FF0000000000000)
# Bits of 1 less those of sqrt(1/2): adding them carries into the exponent from sqrt(1/2) on.
_ROOT_HALF_TO_ONE = np.uint64(0x3FF0000000000000 - 0x3FE6A09E667F3BCD)
_LOG_2 = 0.6931471805599453

_EIGHTH_TURN = np.uint64(1 << 29)
_QUARTER_SHIFT = np.uint64(30)
_QUARTER_MASK = np.uint64((1 << 30) - 1)
_RADIANS = 2.0 * math.pi * 2.0**-32
_U1 = np.uint64(1)
_U2 = np.uint64(2)
_SIGN_SHIFT = np.uint64(62)


@lru_cache(1024)
def stream_key(seed: int, stream: int) -> tuple[np.uint64, np.uint64]:
    """Return the two 32-bit key words of a stream, for a seed in [0, 2^63)."""
    state = np.random.SeedSequence(entropy=seed, spawn_key=(stream,)).generate_state(2, np.uint32)
    return np.uint64(state[0]), np.uint64(state[1])


@jit(four_words(*[uint64] * 6), inline=True)
def philox(
    key0: np.uint64, key1: np.uint64, c0: np.uint64, c1: np.uint64, c2: np.uint64, c3: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    """Return the four words of a Philox4x32-10 block; all arguments below 2^32."""
    for _ in range(10):
        # (hi0, lo0) = M0 c0 ; (hi1, lo1) = M1 c2 ; c <- (hi1 ^ c1 ^ key0, lo1, hi0 ^ c3 ^ key1, lo0)
        product0 = c0 * _MULTIPLIER_0
        product1 = c2 * _MULTIPLIER_1
        c0 = (product1 >> _32) ^ c1 ^ key0
        c1 = product1 & _LOW
        c2 = (product0 >> _32) ^ c3 ^ key1
        c3 = product0 & _LOW
        key0 = (key0 + _WEYL_0) & _LOW
        key1 = (key1 + _WEYL_1) & _LOW
    return c0, c1, c2, c3


@jit(float64(uint64), inline=True)
def _as_double(integer: np.uint64) -> float:
    """Return an integer below 2^52 as a double (vector units before AVX-512 have no such conversion)."""
    return float(np.uint64(integer | _TWO_52_BITS).view(np.float64) - _TWO_52)


@jit(float64(float64), inline=True)
def _log(u: float) -> float:
    """Return log u of a normal positive double to about 1 unit in the last place."""
    # u = 2^e m with sqrt(1/2) <= m < sqrt(2)
    bits = np.float64(u).view(np.uint64)
    biased = np.uint64(bits + _ROOT_HALF_TO_ONE) >> _EXPONENT_SHIFT
    m = np.uint64(bits + _ONE_BITS - (biased << _EXPONENT_SHIFT)).view(np.float64)
    e = _as_double(biased) - 1023.0
    # log m = 2 artanh s = 2 s + s^3 L(s^2), s = (m - 1)/(m + 1); L interpolates at Chebyshev nodes, error 3e-16.
    # Polynomials are evaluated in pairs of terms: the chain of dependent operations limits the speed.
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    z2 = z * z
    series = ((0.666666666666667 + z * 0.39999999999899505) + z2 * (0.28571428625975487 + z * 0.2222221113479508)) + (
        z2 * z2
    ) * ((0.18182889125261723 + z * 0.15331721600556042) + z2 * 0.14616449685043406)
    return float(e * _LOG_2 + (2.0 * s + s * z * series))


@jit(float64_pair(uint64), inline=True)
def _cos_sin(word: np.uint64) -> tuple[float, float]:
    """Return cosine and sine of (word + 1/2) 2^-32 turns, to about 1e-16."""
    # angle = quarter turns + a with |a| <= pi/4
    shifted = (word + _EIGHTH_TURN) & _LOW
    quarter = shifted >> _QUARTER_SHIFT
    a = (_as_double(shifted & _QUARTER_MASK) - 536870911.5) * _RADIANS
    # sin a = a + a z S(z) ; cos a = 1 - z/2 + z^2 C(z) ; S, C interpolate at Chebyshev nodes, errors 3e-17, 2e-18
    z = a * a
    z2 = z * z
    z4 = z2 * z2
    sine = a + a * z * (
        ((-0.16666666666666666 + z * 0.008333333333330948) + z2 * (-0.00019841269836758574 + z * 2.755731610255244e-06))
        + z4 * (-2.5051131845003624e-08 + z * 1.5918129294866608e-10)
    )
    cosine = (1.0 - 0.5 * z) + z2 * (
        (0.041666666666666664 - z * 0.0013888888888887398)
        + z2 * (2.480158729876569e-05 - z * 2.7557317271729793e-07)
        + z4 * (2.08761462684032e-09 + z * -1.1382632425521717e-11)
    )
    # Quarter turns 1 and 3 exchange the two; 1 and 2 negate the cosine, 2 and 3 the sine.
    odd = (quarter & _U1) == _U1
    c = sine if odd else cosine
    s = cosine if odd else sine
    c_sign = ((quarter + _U1) & _U2) << _SIGN_SHIFT
    s_sign = (quarter & _U2) << _SIGN_SHIFT
    return (
        np.uint64(np.float64(c).view(np.uint64) ^ c_sign).view(np.float64),
        np.uint64(np.float64(s).view(np.uint64) ^ s_sign).view(np.float64),
    )


@jit(float64_pair(uint64, uint64), inline=True)
def normal_pair(word0: np.uint64, word1: np.uint64) -> tuple[float, float]:
    """Return two independent standard normal deviates from two words (Box-Muller)."""
    # r = sqrt(-2 log u0)
    radius = math.sqrt(-2.0 * _log((_as_double(word0) + 0.5) * 2.0**-32))
    cosine, sine = _cos_sin(word1)
    return radius * cosine, radius * sine


@jit([void(*[uint64] * 6, vector) for vector, _ in precisions])
def fill_normals(
    key0: np.uint64,
    key1: np.uint64,
    c1: np.uint64,
    c2: np.uint64,
    c3: np.uint64,
    first: np.uint64,
    out: NDArray[np.float64],
) -> None:
    """Fill `out` with the deviates of blocks c0 = first, first + 1, ... (the last one perhaps in part).

    All integers are below 2^32. Some 3 ns a deviate on one core. In single precision they are the same, rounded.
    """
    n_blocks = out.size // 4
    for i in range(n_blocks):
        x0, x1, x2, x3 = philox(key0, key1, (first + np.uint64(i)) & _LOW, c1, c2, c3)
        a, b = normal_pair(x0, x1)
        c, d = normal_pair(x2, x3)
        out[4 * i] = a
        out[4 * i + 1] = b
        out[4 * i + 2] = c
        out[4 * i + 3] = d
    rest = out.size - 4 * n_blocks
    if rest > 0:
        x0, x1, x2, x3 = philox(key0, key1, (first + np.uint64(n_blocks)) & _LOW, c1, c2, c3)
        a, b = normal_pair(x0, x1)
        c, d = normal_pair(x2, x3)
        out[4 * n_blocks] = a
        if rest > 1:
            out[4 * n_blocks + 1] = b
        if rest > 2:
            out[4 * n_blocks + 2] = c


@jit(float64(int64, uint64), inline=True)
def _feature(kind: int, word: np.uint64) -> float:
    if kind == RADEMACHER:
        return 1.0 if word >> np.uint64(31) == np.uint64(0) else -1.0
    probability = (_as_double(word) + 0.5) * 2.0**-32
    return probability if kind == PROBABILITY else math.sqrt(12.0) * (probability - 0.5)


@jit([void(int64, *[uint64] * 6, vector) for vector, _ in precisions])
def fill_features(
    kind: int,
    key0: np.uint64,
    key1: np.uint64,
    c1: np.uint64,
    c2: np.uint64,
    c3: np.uint64,
    first: np.uint64,
    out: NDArray[np.float64],
) -> None:
    """`fill_normals` for features of mean 0 and variance 1 of another kind, one word each."""
    if kind == GAUSSIAN:
        fill_normals(key0, key1, c1, c2, c3, first, out)
        return
    size = out.size
    for i in range((size + 3) // 4):
        x0, x1, x2, x3 = philox(key0, key1, (first + np.uint64(i)) & _LOW, c1, c2, c3)
        out[4 * i] = _feature(kind, x0)
        if 4 * i + 1 < size:
            out[4 * i + 1] = _feature(kind, x1)
        if 4 * i + 2 < size:
            out[4 * i + 2] = _feature(kind, x2)
        if 4 * i + 3 < size:
            out[4 * i + 3] = _feature(kind, x3)
