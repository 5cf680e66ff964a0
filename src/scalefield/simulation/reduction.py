"""The part of a projection that Gaussian data see: S = A(0) Lambda A(0)^T and A(0) Lambda w*, streamed over modes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from scalefield._projection import ENTRY_BYTES, add_far_modes, modes_kept, projection_rows
from scalefield._threads import share
from scalefield.spectrum import Task

__all__ = ["BLOCK", "LANES", "Reduction", "reduce_projection", "reduction_bytes"]

Array = NDArray[np.float64]

# Modes in a block of A(0), and sums to which blocks are dealt in turn: results do not depend on the threads.
BLOCK = 2048
LANES = 2


@dataclass(frozen=True, eq=False)
class Reduction:
    """What a run of Gaussian data needs of its A(0), on the n = min(N, M) eigenvectors of S = A(0) Lambda A(0)^T.

    Attributes
    ----------
    eigenvalues : ndarray, shape (n,)
        e, decreasing.
    c : ndarray, shape (n,)
        e^{-1/2} U^T A(0) Lambda w*; the signs of the eigenvectors are such that c >= 0.
    rest : float
        sqrt(|u|^2 - |c|^2).
    modes : ndarray, shape (K, n)
        U^T A(0)_k of the modes asked for.
    vectors : ndarray, shape (N, n)
        U.
    tail : float
        Where far modes were drawn by their law: the norm 2 sqrt(N sum lambda^2) of their random part over the smallest
        eigenvalue; 0 if there were none. The law is exact but for cumulants of third order, of relative size K^{-1/2}
        for K modes kept.
    """

    eigenvalues: Array
    c: Array
    rest: float
    modes: Array
    vectors: Array
    tail: float


def reduction_bytes(width: int, n_modes: int, n_threads: int) -> int:
    """Memory that a reduction takes."""
    # A block's entries in both precisions, and their products with the eigenvalues.
    blocks = min(n_threads, LANES) * width * min(BLOCK, n_modes)
    return 8 * (width * width * (LANES + 3) + blocks * 2 + 4 * n_modes) + ENTRY_BYTES * blocks


def reduce_projection(
    spectrum: Task, width: int, seed: int, run: int, n_threads: int, modes: NDArray[np.int64], stop: NDArray[np.uint8]
) -> Reduction | None:
    r"""Diagonalise S of one run; None if stopped.

    .. math:: S = \sum_k \lambda_k a_k a_k^T, \qquad b = \sum_k \lambda_k w^*_k a_k

    with the columns a_k of A(0) from the stream PROJECTION, block by block. Modes beyond the 2^18-th of power laws with
    more than 2^20 enter by their law: S gains sum_k lambda_k on its diagonal and a symmetric Gaussian matrix of
    variance sum_k lambda_k^2 (twice that on the diagonal), b a Gaussian vector of variance sum_k lambda_k^2 w*_k^2.

    O(N^2 M/2 + N^3) operations, O(N^2) memory.
    """
    kept = modes_kept(spectrum)
    eigenvalues, target = spectrum.modes(0, kept)
    root = np.sqrt(eigenvalues)
    firsts = range(0, kept, BLOCK)
    covariance, b = np.zeros((width, width)), np.zeros(width)
    sums = [(np.zeros((width, width)), np.zeros(width)) for _ in range(min(LANES, len(firsts)))]

    def add(lane: int) -> None:
        for first in firsts[lane :: len(sums)]:
            if stop[0]:
                return
            last = min(first + BLOCK, kept)
            rows = projection_rows(seed, run, first, last, width)
            rows *= root[first:last, None]
            sums[lane][0][...] += rows.T @ rows
            sums[lane][1][...] += (root[first:last] * target[first:last]) @ rows

    share(add, len(sums), n_threads)
    if stop[0]:
        return None
    for part, part_b in sums:
        covariance += part
        b += part_b
    sums.clear()
    fluctuation = add_far_modes(spectrum, seed, run, covariance, b)
    n = width if spectrum.n_modes is None else min(width, spectrum.n_modes)
    # Transposed, the symmetric matrix is in LAPACK's order and not copied.
    e, vectors = eigh(covariance.T, overwrite_a=True, check_finite=False)
    e, vectors = np.maximum(e[::-1][:n], 0.0), vectors[:, ::-1][:, :n]
    turned = vectors.T @ b
    # Rounding must not decide the signs of eigenvectors: c >= 0, and U_0i >= 0 where the target has no part.
    deciding = np.where(np.abs(turned) > 1e-13 * np.linalg.norm(b), turned, vectors[0])
    signs = np.where(deciding < 0.0, -1.0, 1.0)
    vectors *= signs
    turned *= signs
    present = e > 1e-14 * e[0]
    c = np.zeros(n)
    c[present] = turned[present] / np.sqrt(e[present])
    # No rest if the features span all modes that have variance.
    spanned = kept == spectrum.n_modes and np.count_nonzero(present) >= np.count_nonzero(eigenvalues)
    rest = 0.0 if spanned else math.sqrt(max(0.0, spectrum.total_target_power - float(c @ c)))
    chosen = np.zeros((modes.size, width))
    for i, k in enumerate(modes):
        chosen[i] = projection_rows(seed, run, int(k), int(k) + 1, width)
    tail = 0.0
    if fluctuation > 0.0:
        tail = fluctuation / float(e[-1]) if e[-1] > 0.0 else math.inf
    return Reduction(np.where(present, e, 0.0), c, rest, chosen @ vectors, vectors, tail)
