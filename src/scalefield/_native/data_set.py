"""Samples of a fixed data set, from the streams DATA and DATA_NOISE (`rng`)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scalefield._native.jit import int64, jit, precisions, uint64, vector, void
from scalefield._native.rng import fill_features, fill_normals

__all__ = ["fill_sample_noise", "fill_samples"]

Array = NDArray[np.float64]

_ZERO = np.uint64(0)


@jit([void(int64, uint64, uint64, int64, int64, matrix) for _, matrix in precisions])
def fill_samples(
    kind: int, key0: np.uint64, key1: np.uint64, run: int, first_mode: int, samples_out: Array
) -> None:
    """Fill samples_out[mu, k] = xi[mu, first_mode + k], psi = sqrt(lambda) xi, of a kind of `rng`.

    first_mode is a multiple of 4.
    """
    first = np.uint64(first_mode // 4)
    for mu in range(samples_out.shape[0]):
        fill_features(kind, key0, key1, np.uint64(mu), np.uint64(run), _ZERO, first, samples_out[mu])


@jit(void(uint64, uint64, int64, vector))
def fill_sample_noise(key0: np.uint64, key1: np.uint64, run: int, noise_out: Array) -> None:
    """Fill noise_out[mu], the label noise of sample mu in units of sigma."""
    fill_normals(key0, key1, np.uint64(run), _ZERO, _ZERO, _ZERO, noise_out)
