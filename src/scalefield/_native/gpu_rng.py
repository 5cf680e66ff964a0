r"""The normal deviates of `rng` on a CUDA device.

Philox4x32-10 in 32-bit registers gives the words of `rng.philox`, bit for bit. In float64 the transform of words into
deviates is the source of `rng.normal_pair` compiled for the device: the same deviates but for the rounding of fused
multiplications. In float32 it is the same Box-Muller transform with shorter polynomials,

.. math::
    u = 2^{-32}(x + \tfrac12), \qquad (n_0, n_1) = \sqrt{-2 \log u_0}\, (\cos 2\pi u_1, \sin 2\pi u_1),

whose deviates are those of float64 to 1e-6 at most: neither the words nor 1 - u are rounded before the logarithm
and the angle is reduced in integers. No function of a library is called, so that nothing spills to local memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any

import numpy as np

from scalefield._native import rng
from scalefield._native.gpu import clz, device

__all__ = ["normals", "philox"]

uint32 = np.uint32
uint64 = np.uint64
int32 = np.int32
float32 = np.float32

_MULTIPLIER_0 = uint64(0xD2511F53)
_MULTIPLIER_1 = uint64(0xCD9E8D57)
_WEYL_0 = uint64(0x9E3779B9)
_WEYL_1 = uint64(0xBB67AE85)
_LOW = uint64(0xFFFFFFFF)
_32 = uint64(32)


@device
def philox(key0: Any, key1: Any, c0: Any, c1: Any, c2: Any, c3: Any) -> Any:
    """Return the four words of a Philox4x32-10 block; everything uint32."""
    for _ in range(10):
        # (hi0, lo0) = M0 c0 ; (hi1, lo1) = M1 c2 ; c <- (hi1 ^ c1 ^ key0, lo1, hi0 ^ c3 ^ key1, lo0)
        # Every result is cut to 32 bits by name: Numba computes with 64 otherwise.
        product0 = uint64(c0) * _MULTIPLIER_0
        product1 = uint64(c2) * _MULTIPLIER_1
        c0 = uint32(uint32(product1 >> _32) ^ uint32(c1 ^ key0))
        c1 = uint32(product1 & _LOW)
        c2 = uint32(uint32(product0 >> _32) ^ uint32(c3 ^ key1))
        c3 = uint32(product0 & _LOW)
        key0 = uint32((uint64(key0) + _WEYL_0) & _LOW)
        key1 = uint32((uint64(key1) + _WEYL_1) & _LOW)
    return c0, c1, c2, c3


def _for_device(function: Any, **callees: Any) -> Any:
    """Compile the source of a CPU kernel for the device, with the device's versions of what it calls."""
    source = function.py_func
    return device(FunctionType(source.__code__, {**source.__globals__, **callees}, source.__name__))


_as_double = _for_device(rng._as_double)
_normal_pair = _for_device(
    rng.normal_pair,
    _as_double=_as_double,
    _log=_for_device(rng._log, _as_double=_as_double),
    _cos_sin=_for_device(rng._cos_sin, _as_double=_as_double),
)


@device
def _pair_float64(word0: Any, word1: Any) -> Any:
    return _normal_pair(uint64(word0), uint64(word1))


_ONE = uint32(1)
_31 = uint32(31)
_TOP = uint32(0xFFFFFFFF)
_UNIT = float32(2.0**-32)
_HALF = float32(0.5)
_F0 = float32(0.0)
_F1 = float32(1.0)
_F2 = float32(2.0)
_LOG_2 = float32(math.log(2.0))
_ROOT_HALF_BELOW_1 = float32(1.0 - math.sqrt(0.5))
# log(1 + x) = x - x^2/2 + x^3 P(x) on [sqrt(1/2) - 1, sqrt(2) - 1]; the coefficients of Cephes' logf, error 1e-8.
_L0, _L1, _L2, _L3, _L4, _L5, _L6, _L7, _L8 = (
    float32(c)
    for c in (
        3.3333331174e-1,
        -2.4999993993e-1,
        2.0000714765e-1,
        -1.6668057665e-1,
        1.4249322787e-1,
        -1.2420140846e-1,
        1.1676998740e-1,
        -1.1514610310e-1,
        7.0376836292e-2,
    )
)


@device
def _log_float32(word: Any) -> Any:
    """Return log((word + 1/2) 2^-32) in float32."""
    # (word + 1/2) 2^-32 = 2^-e m with 1/2 <= m < 1 ; 1 - m from integers, so that it keeps its digits near m = 1
    e = uint32(clz(word))
    shifted = word if e == 0 else uint32(uint64(uint32((uint64(word) << uint64(1)) | uint64(1))) << uint64(e - _ONE))
    below_1 = (float32(uint32(_TOP - shifted)) + _HALF) * _UNIT
    # move to sqrt(1/2) <= 1 + x < sqrt(2)
    low = below_1 > _ROOT_HALF_BELOW_1
    x = _F1 - _F2 * below_1 if low else -below_1
    exponent = float32(e) + (_F1 if low else _F0)
    p = _L8
    p = p * x + _L7
    p = p * x + _L6
    p = p * x + _L5
    p = p * x + _L4
    p = p * x + _L3
    p = p * x + _L2
    p = p * x + _L1
    p = p * x + _L0
    z = x * x
    return (x - _HALF * z + x * z * p) - exponent * _LOG_2


_EIGHTH_TURN = uint64(1 << 29)
_QUARTER_SHIFT = uint32(30)
_QUARTER_MASK = uint32((1 << 30) - 1)
_CENTRE = int32(1 << 29)
_RADIANS = float32(2.0 * math.pi * 2.0**-32)
# sin a = a + a z S(z), cos a = 1 - z/2 + z^2 C(z) on |a| <= pi/4; the coefficients of Cephes' sinf, errors 1e-8.
_S0, _S1, _S2 = (float32(c) for c in (-1.6666654611e-1, 8.3321608736e-3, -1.9515295891e-4))
_C0, _C1, _C2 = (float32(c) for c in (4.166664568298827e-2, -1.388731625493765e-3, 2.443315711809948e-5))


@device
def _cos_sin_float32(word: Any) -> Any:
    """Return cosine and sine of (word + 1/2) 2^-32 turns in float32."""
    # angle = quarter turns + a with |a| <= pi/4
    shifted = uint32((uint64(word) + _EIGHTH_TURN) & _LOW)
    quarter = uint32(shifted >> _QUARTER_SHIFT)
    a = (float32(int32(int32(shifted & _QUARTER_MASK) - _CENTRE)) + _HALF) * _RADIANS
    z = a * a
    sine = a + a * z * (_S0 + z * (_S1 + z * _S2))
    cosine = (_F1 - _HALF * z) + z * z * (_C0 + z * (_C1 + z * _C2))
    # Quarter turns 1 and 3 exchange the two; 1 and 2 negate the cosine, 2 and 3 the sine.
    odd = quarter == 1 or quarter == 3
    c = sine if odd else cosine
    s = cosine if odd else sine
    return (-c if quarter == 1 or quarter == 2 else c), (-s if quarter >= 2 else s)


@device
def _pair_float32(word0: Any, word1: Any) -> Any:
    # r = sqrt(-2 log u0)
    radius = float32(math.sqrt(-_F2 * _log_float32(word0)))
    cosine, sine = _cos_sin_float32(word1)
    return radius * cosine, radius * sine


@cache
def normals(dtype: str) -> Callable[..., Any]:
    """Return the device function (key0, key1, c0, c1, c2, c3) -> the four deviates of a counter, in `dtype`."""
    pair = {"float64": _pair_float64, "float32": _pair_float32}[dtype]

    def four(key0: Any, key1: Any, c0: Any, c1: Any, c2: Any, c3: Any) -> Any:
        x0, x1, x2, x3 = philox(key0, key1, c0, c1, c2, c3)
        a, b = pair(x0, x1)
        c, d = pair(x2, x3)
        return a, b, c, d

    return device(four)
