r"""One realised projection and data set, as far as offline training sees them (theory section 7d).

With F = A(0) Psi^T/sqrt(N P) (N x P) = U diag(sqrt(s)) V^T the residuals r = Psi v_0 + sigma eps evolve with
K = F^T F, and

.. math::
    \tfrac{1}{P} |r|^2 = \sum_i c_i^2 (1-y_i)^2 + |r_\perp|^2/P , \qquad c = V^T r_0/\sqrt{P} , \qquad
    L = |h - B y|^2 + L_\perp , \qquad
    B = \Lambda^{1/2} \tfrac{1}{\sqrt{N}} A(0)^T U \mathrm{diag}(c/\sqrt{s}) ,

in a basis of the columns of B and u = Lambda^{1/2} w*, where h is u and L_perp what lies outside. At infinite width
Psi^T takes the place of A(0)/sqrt(N) and F = Psi^T/sqrt(P).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import svd

from scalefield._memory import require_memory
from scalefield._projection import projection_rows
from scalefield._threads import single_threaded_blas
from scalefield.spectral_measure import streamed_triangle
from scalefield.spectrum import Task

__all__ = ["RealisedData", "realise"]

Array = NDArray[np.float64]

# Entries of A(0) and of Psi that are held at a time.
_BLOCK_ENTRIES = 4_000_000
# Singular values of F are known to some units of the last place of the largest one.
_ROUNDING = 4.0 * np.finfo(float).eps


@dataclass(frozen=True, eq=False)
class RealisedData:
    """Eigenvalues of K and what the losses are made of.

    Attributes
    ----------
    eigenvalues : ndarray, shape (r,)
        s > 0, decreasing.
    residual_power : ndarray, shape (r,)
        c^2, the power of the initial residuals per sample.
    residual_atom : float
        Their power per sample outside the range of K: the train loss that no training removes.
    response : ndarray, shape (D, r)
        B.
    target : ndarray, shape (D,)
        h.
    rest : float
        L_perp.
    """

    eigenvalues: Array
    residual_power: Array
    residual_atom: float
    response: Array
    target: Array
    rest: float


def realise(spectrum: Task, width: float, n_samples: int, label_noise: float, seed: int) -> RealisedData:
    """A(0) of the stream PROJECTION, the samples of DATA and their label noise of DATA_NOISE, run 0.

    O(N P M + N^2 M) in time and O(N^2 + N P) in memory (N = P at infinite width): blocks of both matrices are made as
    they are needed. All of them are held only where M is at most the width, or at infinite width at most P.
    """
    if spectrum.n_modes is None:
        raise ValueError("n_modes must be finite: a realised data set needs a finite number of modes")
    eigenvalues, coefficients = spectrum.modes(0, spectrum.n_modes)
    m = int(np.count_nonzero(eigenvalues > 0.0))
    root, coefficients = np.sqrt(eigenvalues[:m]), coefficients[:m]
    columns = n_samples if math.isinf(width) else int(width)
    held = 2 * min(m, columns) * (columns + 1)
    if not math.isinf(width):
        held += columns * n_samples
    require_memory(
        8 * (6 * held + 3 * _BLOCK_ENTRIES + 6 * m + 2 * n_samples),
        f"a data set of {n_samples} samples with {m} modes at width {width:g}",
    )
    with single_threaded_blas():
        if math.isinf(width):
            return _all_modes(root, coefficients, n_samples, label_noise, seed)
        return _features(root, coefficients, columns, n_samples, label_noise, seed)


def _features(root: Array, coefficients: Array, n: int, p: int, label_noise: float, seed: int) -> RealisedData:
    m = root.size
    power = root * coefficients
    overlap, residual = np.zeros((n, p)), _label_noise(p, label_noise, seed)
    block = _block_size(m, n + p)
    for first in range(0, m, block):
        last = min(first + block, m)
        samples = _samples(first, last, p, seed)
        residual += samples @ power[first:last]
        overlap += (projection_rows(seed, 0, first, last, n) * root[first:last, None]).T @ samples.T
    overlap /= math.sqrt(n) * math.sqrt(p)

    def rows(first: int, last: int) -> Array:
        """Rows of [Lambda^{1/2} A(0)^T/sqrt(N), u]."""
        result = np.empty((last - first, n + 1))
        result[:, :n] = projection_rows(seed, 0, first, last, n) * (root[first:last, None] / math.sqrt(n))
        result[:, n] = power[first:last]
        return result

    table = rows(0, m) if m <= n else streamed_triangle(rows, m, n + 1, block)
    left, root_s, right = svd(overlap, full_matrices=False, check_finite=False)
    kept = _significant(root_s, min(n, p, m))
    left, root_s, right = left[:, :kept], root_s[:kept], right[:kept]
    weights, atom = _split(residual / math.sqrt(p), right)
    response, target, rest = (table[:, :n] @ left) * (weights / root_s), table[:, n], 0.0
    if m > n:
        response, target, rest = response[:n], target[:n], float(target[n] ** 2)
    return RealisedData(root_s**2, weights**2, atom, response, np.array(target), rest)


def _all_modes(root: Array, coefficients: Array, p: int, label_noise: float, seed: int) -> RealisedData:
    """N = inf."""
    m = root.size
    power = root * coefficients
    residual = _label_noise(p, label_noise, seed)
    block = _block_size(m, p)
    for first in range(0, m, block):
        last = min(first + block, m)
        residual += _samples(first, last, p, seed) @ power[first:last]

    def rows(exponent: int) -> Any:
        """Rows of [Lambda^{exponent/2} Xi^T/sqrt(P), u]."""

        def make(first: int, last: int) -> Array:
            result = np.empty((last - first, p + 1))
            scale = root[first:last, None] ** exponent / math.sqrt(p)
            result[:, :p] = _samples(first, last, p, seed).T * scale
            result[:, p] = power[first:last]
            return result

        return make

    if m <= p:
        left, root_s, right = svd(rows(1)(0, m)[:, :p], full_matrices=False, check_finite=False)
        kept = _significant(root_s, m)
        left, root_s, right = left[:, :kept], root_s[:kept], right[:kept]
        weights, atom = _split(residual / math.sqrt(p), right)
        return RealisedData(
            root_s**2, weights**2, atom, root[:, None] * left * (weights / root_s), power, 0.0
        )
    triangle = streamed_triangle(rows(1), m, p + 1, block)[:p, :p]
    _, root_s, right = svd(triangle, check_finite=False)
    kept = _significant(root_s, p)
    root_s, right = root_s[:kept], right[:kept]
    weights, atom = _split(residual / math.sqrt(p), right)
    table = streamed_triangle(rows(2), m, p + 1, block)
    # B = Lambda^{1/2} Psi^T/sqrt(P) V diag(c/s)
    response = (table[:p, :p] @ right.T) * (weights / root_s**2)
    return RealisedData(
        root_s**2, weights**2, atom, response, np.array(table[:p, p]), float(table[p, p] ** 2)
    )


def _split(residual: Array, right: Array) -> tuple[Array, float]:
    """Coefficients c in the rows of `right`, and the power outside of them."""
    weights = right @ residual
    if right.shape[0] == residual.size:
        return weights, 0.0
    outside = residual - weights @ right
    return weights, float(outside @ outside)


def _significant(root_s: Array, rank: int) -> int:
    """Number of singular values that are more than rounding."""
    return int(np.count_nonzero(root_s[:rank] > _ROUNDING * root_s[0]))


def _block_size(m: int, n_rows: int) -> int:
    # Deviates come in fours.
    return max(4, min(_BLOCK_ENTRIES // n_rows, m + 3) // 4 * 4)


def _samples(first: int, last: int, p: int, seed: int) -> Array:
    """Xi, modes first..last-1 of all samples, shape (P, last - first); psi = sqrt(lambda) xi."""
    from scalefield._native import data_set, rng

    # Blocks may begin anywhere in a four.
    skipped = first % 4
    deviates = np.empty((p, last - first + skipped))
    data_set.fill_samples(rng.GAUSSIAN, *rng.stream_key(seed, rng.DATA), 0, first - skipped, deviates)
    return deviates[:, skipped:]


def _label_noise(p: int, label_noise: float, seed: int) -> Array:
    from scalefield._native import data_set, rng

    noise = np.zeros(p)
    if label_noise > 0.0:
        data_set.fill_sample_noise(*rng.stream_key(seed, rng.DATA_NOISE), 0, noise)
        noise *= label_noise
    return noise
