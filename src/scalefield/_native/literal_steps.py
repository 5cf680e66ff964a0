r"""Training steps of the model itself, one run a call.

With the moved projection A(t) = G(t) A(0) kept as G in R^{N x N} (theory section 1), a step is

.. math::
    \theta = G^T w / N, \qquad v_{0k} = w^*_k - A(0)_k \cdot \theta, \qquad L = \sum_k \lambda_k v_{0k}^2

    e_b = \psi_b \cdot v_0 + \sigma \epsilon_b, \qquad v_1 = \tfrac{1}{B} \sum_b \psi_b e_b
    \quad (B = \infty: v_{1k} = \lambda_k v_{0k}), \qquad v_2 = \sum_k A(0)_k v_{1k}

    w \leftarrow w + \eta G v_2, \qquad G \leftarrow G + \frac{\eta\gamma}{N} w_{old} v_2^T

At infinite width A(0)^T A(0)/N is the identity, w = A(0) p and G A(0) = A(0) Gamma with p in R^M and Gamma in
R^{M x M}; the same steps then hold for (p, Gamma) with A(0) replaced by the identity and 1/N by 1. Lazy models
(gamma = 0) have G = I and skip it.

Conventions: k counts modes, i features, b samples. The projection is stored one row a mode, `projection[k, i]`
= A(0)[i, k]. xi_bk = psi_bk / sqrt(lambda_k) are the standard normal features. Sums over modes and samples are
taken in a fixed order (blocks of MODE_BLOCK modes, groups of four samples), so results do not depend on how
many steps a call does, nor on whether the features are kept between the two passes over a batch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scalefield._native.jit import (
    byte_vector,
    float64,
    int64,
    jit,
    precisions,
    status_and_step,
    uint64,
    void,
)
from scalefield._native.rng import fill_features, fill_normals
from scalefield._native.weight_steps import DIVERGED, OK, STOPPED, add_rows, add_scaled, dot, dot_rows, update

__all__ = ["DIVERGED", "MODE_BLOCK", "OK", "STOPPED", "advance", "fill_projection", "fill_projection_block"]

Array = NDArray[np.float64]

# Modes treated together: their errors, features and gradients stay in the first-level cache. A multiple of 4,
# the deviates in a block of the generator.
MODE_BLOCK = 1024

_ZERO = np.uint64(0)


@jit([void(int64, int64, matrix, vector, vector) for vector, matrix in precisions])
def _project(first: int, last: int, projection: Array, theta: Array, v3_out: Array) -> None:
    """v3_k = A(0)_k . theta for modes first..last-1."""
    k = first
    while k + 4 <= last:
        dot_rows(k, projection, theta, v3_out)
        k += 4
    while k < last:
        v3_out[k] = dot(projection[k], theta)
        k += 1


@jit([void(int64, int64, matrix, vector, vector) for vector, matrix in precisions])
def _add_projected(first: int, last: int, projection: Array, v1: Array, v2_out: Array) -> None:
    """v2 += sum_k A(0)_k v1_k over modes first..last-1."""
    k = first
    while k + 4 <= last:
        add_rows(k, 0, v2_out.size, k, projection, v1, v2_out)
        k += 4
    while k < last:
        add_scaled(v1[k], projection[k], v2_out)
        k += 1


@jit([float64(int64, int64, matrix, vector, vector, vector, vector) for vector, matrix in precisions])
def _whitened_errors(
    first: int, last: int, projection: Array, theta: Array, target: Array, root_eigenvalues: Array, u_out: Array
) -> float:
    """u_k = sqrt(lambda_k) v0_k for modes first..last-1; returns their part of the loss, sum_k u_k^2."""
    if projection.shape[0] == 0:
        for k in range(first, last):
            u_out[k] = theta[k]
    else:
        _project(first, last, projection, theta, u_out)
    loss = 0.0
    for k in range(first, last):
        # v0_k = w*_k - A(0)_k . theta
        u_out[k] = root_eigenvalues[k] * (target[k] - u_out[k])
        loss += u_out[k] * u_out[k]
    return loss


@jit(
    [
        status_and_step(
            *[int64] * 5,  # t_first .. kind
            *[uint64] * 4,  # keys
            *[float64] * 4,  # learning_rate .. label_noise
            float64,  # inverse_width
            int64,  # batch_size
            float64,  # threshold
            vector,  # target
            vector,  # root_eigenvalues
            matrix,  # projection
            vector,  # w
            matrix,  # mixing
            vector,  # theta
            vector,  # u
            vector,  # v1
            vector,  # v2
            vector,  # scratch
            vector,  # residual
            vector,  # noise
            matrix,  # features
            byte_vector,  # stop
            float64[::1],  # loss
        )
        for vector, matrix in precisions
    ]
)
def advance(
    t_first: int,
    t_last: int,
    n_steps: int,
    run: int,
    kind: int,
    feature_key0: np.uint64,
    feature_key1: np.uint64,
    noise_key0: np.uint64,
    noise_key1: np.uint64,
    learning_rate: float,
    gamma: float,
    label_noise: float,
    inverse_batch_size: float,
    inverse_width: float,
    batch_size: int,
    threshold: float,
    target: Array,
    root_eigenvalues: Array,
    projection: Array,
    w_out: Array,
    mixing_out: Array,
    theta_out: Array,
    u_out: Array,
    v1_out: Array,
    v2_out: Array,
    scratch_out: Array,
    residual_out: Array,
    noise_out: Array,
    features_out: Array,
    stop: NDArray[np.uint8],
    loss_out: Array,
) -> tuple[int, int]:
    """Record the loss and take a step, for t = t_first..t_last-1; at t = n_steps only record.

    Parameters
    ----------
    t_first, t_last, n_steps, run : int
        Steps to do, steps in all, and the number of the run.
    kind : int
        Of the features, as in `rng`.
    feature_key0, feature_key1, noise_key0, noise_key1 : uint64
        Keys of the streams FEATURES and LABEL_NOISE.
    learning_rate, gamma, label_noise, inverse_batch_size : float
        eta, gamma, sigma, 1/B.
    inverse_width : float
        1/N; 1 at infinite width.
    batch_size : int
        B; 0 for the population gradient.
    threshold : float
        A loss above it (or nan) is a divergence.
    target, root_eigenvalues : array, shape (M,)
        w*_k and sqrt(lambda_k).
    projection : array, shape (M, N)
        A(0)^T; shape (0, 0) at infinite width.
    w_out : array, shape (n,)
        State: w, n = N; at infinite width p, n = M.
    mixing_out : array, shape (n, n)
        State: G; shape (0, 0) if gamma = 0.
    theta_out : array, shape (n,)
        State: theta = G^T w / N.
    u_out, v1_out : array, shape (M,)
        Workspace.
    v2_out, scratch_out : array, shape (n,)
        Workspace.
    residual_out, noise_out : array, shape (B,)
        Workspace: e_b, eps_b.
    features_out : array, shape (B, M) or (4, MODE_BLOCK)
        Workspace: with the first shape the batch is kept between its two passes, else made twice.
    stop : array of uint8, shape (1,)
        Set from another thread to end the call soon, with the state in disorder.
    loss_out : array
        loss_out[t - t_first] is the loss after t steps.

    Returns
    -------
    status, step : int
        OK and t_last; DIVERGED and the step whose loss is beyond the threshold; STOPPED and a step.
    """
    n_modes = target.size
    n_blocks = (n_modes + MODE_BLOCK - 1) // MODE_BLOCK
    infinite_width = projection.shape[0] == 0
    keep = features_out.shape[1] == n_modes and features_out.shape[0] == batch_size
    # Rows of A(0) that the second-level cache holds easily (128 KiB), in fours.
    group = max(4, 16384 // max(1, projection.shape[1]) // 4 * 4)
    word_run = np.uint64(run)
    for t in range(t_first, t_last):
        word_step = np.uint64(t)
        training = t < n_steps
        loss = 0.0
        for b in range(batch_size):
            residual_out[b] = 0.0
        for i in range(v2_out.size):
            v2_out[i] = 0.0

        # First pass over A(0): errors, loss and xi . u; for the population gradient also v2.
        for block in range(n_blocks):
            if stop[0] != 0:
                return STOPPED, t
            first = block * MODE_BLOCK
            last = min(first + MODE_BLOCK, n_modes)
            if batch_size == 0:
                # A few modes at a time, so that a row of A(0) serves both products while it is in the cache.
                k = first
                while k < last:
                    end = min(k + group, last)
                    loss += _whitened_errors(k, end, projection, theta_out, target, root_eigenvalues, u_out)
                    for j in range(k, end):
                        # v1 = lambda v0
                        v1_out[j] = root_eigenvalues[j] * u_out[j]
                    if training and not infinite_width:
                        _add_projected(k, end, projection, v1_out, v2_out)
                    k = end
                continue
            loss += _whitened_errors(first, last, projection, theta_out, target, root_eigenvalues, u_out)
            if not training:
                continue
            for b in range(batch_size):
                if stop[0] != 0:
                    return STOPPED, t
                row = features_out[b, first:last] if keep else features_out[b % 4, : last - first]
                fill_features(
                    kind,
                    feature_key0,
                    feature_key1,
                    np.uint64(b),
                    word_step,
                    word_run,
                    np.uint64(first // 4),
                    row,
                )
                # psi_b . v0 = sum_k xi_bk u_k
                residual_out[b] += dot(row, u_out[first:last])

        loss_out[t - t_first] = loss
        if not loss <= threshold:
            return DIVERGED, t
        if not training:
            break

        # Second pass, from the last block back, since the end of A(0) is what the cache still holds:
        # v1 = (1/B) sum_b psi_b e_b and v2.
        if batch_size > 0:
            if label_noise > 0.0:
                fill_normals(noise_key0, noise_key1, _ZERO, word_step, word_run, _ZERO, noise_out)
                for b in range(batch_size):
                    residual_out[b] += label_noise * noise_out[b]
            for block in range(n_blocks - 1, -1, -1):
                first = block * MODE_BLOCK
                last = min(first + MODE_BLOCK, n_modes)
                v1 = v1_out[first:last]
                for k in range(last - first):
                    v1[k] = 0.0
                b = 0
                while b < batch_size:
                    if stop[0] != 0:
                        return STOPPED, t
                    n_rows = min(4, batch_size - b)
                    if not keep:
                        for j in range(n_rows):
                            fill_features(
                                kind,
                                feature_key0,
                                feature_key1,
                                np.uint64(b + j),
                                word_step,
                                word_run,
                                np.uint64(first // 4),
                                features_out[j, : last - first],
                            )
                    top = b if keep else 0
                    left = first if keep else 0
                    right = left + last - first
                    if n_rows == 4:
                        add_rows(top, left, right, b, features_out, residual_out, v1)
                    else:
                        for j in range(n_rows):
                            add_scaled(residual_out[b + j], features_out[top + j, left:right], v1)
                    b += n_rows
                for k in range(first, last):
                    v1_out[k] *= root_eigenvalues[k] * inverse_batch_size
                if not infinite_width:
                    _add_projected(first, last, projection, v1_out, v2_out)
        if infinite_width:
            for k in range(n_modes):
                v2_out[k] = v1_out[k]

        gain = learning_rate * gamma * inverse_width
        update(v2_out, w_out, learning_rate, gain, theta_out, mixing_out, scratch_out, stop)
        if stop[0] != 0:
            return STOPPED, t
        for i in range(theta_out.size):
            theta_out[i] *= inverse_width
    return OK, t_last


@jit([int64(uint64, uint64, int64, int64, byte_vector, matrix) for _, matrix in precisions])
def fill_projection(
    key0: np.uint64, key1: np.uint64, run: int, first: int, stop: NDArray[np.uint8], projection_out: Array
) -> int:
    """Fill projection_out[k, i] = A(0)[i, first + k] of a run from the stream PROJECTION; return OK or STOPPED."""
    for k in range(projection_out.shape[0]):
        if stop[0] != 0:
            return STOPPED
        fill_normals(key0, key1, np.uint64(first + k), np.uint64(run), _ZERO, _ZERO, projection_out[k])
    return OK


@jit([void(uint64, uint64, int64, int64, int64, matrix) for vector, matrix in precisions])
def fill_projection_block(
    key0: np.uint64, key1: np.uint64, run: int, first_mode: int, first_feature: int, projection_out: Array
) -> None:
    """Fill projection_out[k, i] = A(0)[first_feature + i, first_mode + k]; first_feature is a multiple of 4."""
    for k in range(projection_out.shape[0]):
        fill_normals(
            key0,
            key1,
            np.uint64(first_mode + k),
            np.uint64(run),
            _ZERO,
            np.uint64(first_feature // 4),
            projection_out[k],
        )
