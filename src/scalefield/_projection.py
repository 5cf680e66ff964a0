"""The initial features A(0) of a run as a function of its seed: what training and theory of the same run share.

Rows are made as they are needed. Power laws with more than MOST_MODES modes are taken mode by mode up to the HEAD-th;
the modes beyond enter by the law of their sum.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from scalefield.quadrature import _power_sum
from scalefield.spectrum import PowerLawSpectrum, Task

__all__ = ["ENTRY_BYTES", "HEAD", "MOST_MODES", "add_far_modes", "far_target_power", "modes_kept", "projection_rows"]

Array = NDArray[np.float64]

# Entries are in single precision, whatever training is in (see `_native.rng`).
ENTRY_BYTES = 4
# Spectra up to this size are taken mode by mode; of larger ones the first HEAD modes.
MOST_MODES = 2**20
HEAD = 2**18
# Word of the counter that stands for the target in the stream TAIL.
_TARGET_WORD = 2**32 - 1


def modes_kept(spectrum: Task) -> int:
    """Modes that are taken one by one; all of explicit spectra."""
    if spectrum.n_modes is None or (spectrum.n_modes > MOST_MODES and isinstance(spectrum, PowerLawSpectrum)):
        return HEAD
    return spectrum.n_modes


def projection_rows(seed: int, run: int, first: int, last: int, n_features: int, first_feature: int = 0) -> Array:
    """A(0)^T for modes first..last-1 and n_features features from first_feature, a multiple of 4, on."""
    from scalefield._native import literal_steps, rng

    entries = np.empty((last - first, n_features), dtype=np.float32)
    literal_steps.fill_projection_block(*rng.stream_key(seed, rng.PROJECTION), run, first, first_feature, entries)
    return entries.astype(np.float64)


def add_far_modes(spectrum: Task, seed: int, run: int, covariance_out: Array, b_out: Array) -> float:
    r"""Add the modes beyond `modes_kept` to S = A(0) Lambda A(0)^T and b = A(0) Lambda w*, by the law of their sum.

    S gains sum_k lambda_k on its diagonal and a symmetric Gaussian matrix of variance sum_k lambda_k^2 (twice that on
    the diagonal), b a Gaussian vector of variance sum_k lambda_k^2 w*_k^2: the exact first and second moments. Returns
    2 sqrt(N sum_k lambda_k^2), the norm of the random matrix at large N; 0 if there are no such modes.
    """
    from scalefield._native import rng

    kept, last = modes_kept(spectrum), _last(spectrum)
    if last <= kept:
        return 0.0
    assert isinstance(spectrum, PowerLawSpectrum)
    # sum of lambda, of lambda^2, and of lambda (lambda w*^2) beyond
    exponents = (spectrum.alpha, 2.0 * spectrum.alpha, spectrum.alpha * (1.0 + spectrum.beta) + 1.0)
    mean, variance, target_variance = (_power_sum(exponent, kept + 1.0, last) for exponent in exponents)
    width = b_out.size
    key = rng.stream_key(seed, rng.TAIL)
    zero, row = np.uint64(0), np.empty(width)
    for j in range(width):
        rng.fill_normals(*key, np.uint64(j), np.uint64(run), zero, zero, row)
        column = math.sqrt(variance) * row[: j + 1]
        covariance_out[:j, j] += column[:j]
        covariance_out[j, :j] += column[:j]
        covariance_out[j, j] += mean + math.sqrt(2.0) * column[j]
    rng.fill_normals(*key, np.uint64(_TARGET_WORD), np.uint64(run), zero, zero, row)
    b_out += math.sqrt(target_variance) * row
    return 2.0 * math.sqrt(width * variance)


def far_target_power(spectrum: Task) -> float:
    """sum_k lambda_k w*_k^2 over the modes beyond `modes_kept`."""
    kept, last = modes_kept(spectrum), _last(spectrum)
    if last <= kept:
        return 0.0
    assert isinstance(spectrum, PowerLawSpectrum)
    return _power_sum(spectrum.alpha * spectrum.beta + 1.0, kept + 1.0, last)


def _last(spectrum: Task) -> float:
    return math.inf if spectrum.n_modes is None else float(spectrum.n_modes)
