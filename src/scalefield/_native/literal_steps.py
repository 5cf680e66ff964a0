r"""Training steps of the model itself, one run a call.

With the moved projection A(t) = G(t) A(0) kept as G in R^{N x N} (theory section 1), a step is

.. math::
    \theta = G^T w / N, \qquad v_{0k} = w^*_k - A(0)_k \cdot \theta, \qquad L = \sum_k \lambda_k v_{0k}^2

    e_b = \psi_b \cdot v_0 + \sigma \epsilon_b, \qquad v_1 = \tfrac{1}{B} \sum_b \psi_b e_b
    \quad (B = \infty: v_{1k} = \lambda_k v_{0k}), \qquad v_2 = \sum_k A(0)_k v_{1k}

    w \leftarrow w + \eta G v_2, \qquad G \leftarrow G + \frac{\eta\gamma}{N} w_{old} v_2^T

At infinite width A(0)^T A(0)/N is the identity, w = A(0) p and G A(0) = A(0) Gamma with p in R^M and Gamma in
R^{M x M}; the same steps then hold for (p, Gamma) with A(0) replaced by the identity and 1/N by 1. Lazy models
(gamma = 0) have G = I and skip it. Offline psi_b and eps_b are those of P fixed samples, or of a batch of them.

Conventions: k counts modes, i features, b samples. The projection is stored one row a mode, `projection[k, i]`
= A(0)[i, k]. xi_bk = psi_bk / sqrt(lambda_k) are the standard normal features.

A step is cut into passes over A(0) and G, and these into LANES parts that threads may share: `_first_pass`,
`_gather_first`, `_second_pass`, `_gather_sums` (v2), `_weights_pass`, `_gather_sums` (theta). Sums over modes and
samples are taken in a fixed order (blocks of MODE_BLOCK modes, groups of four samples, lanes), so results depend on
neither threads nor whether the features are kept between the two passes over a batch. `advance` does steps of one run;
every thread of its team calls it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scalefield._native.jit import (
    byte_vector,
    float64,
    int64,
    int_matrix,
    int_vector,
    jit,
    matrix32,
    precisions,
    status_and_step,
    uint64,
    void,
)
from scalefield._native.rng import fill_features, fill_normals
from scalefield._native.team import wait_for_team
from scalefield._native.weight_steps import (
    DIVERGED,
    OK,
    STOPPED,
    add_chosen_rows,
    add_rows,
    add_scaled,
    dot,
    dot_rows,
    update_rows,
)

__all__ = [
    "DIVERGED",
    "LANES",
    "MODE_BLOCK",
    "OK",
    "STOPPED",
    "advance",
    "fill_projection",
    "fill_projection_block",
]

Array = NDArray[np.float64]
# A(0) is in single precision, whatever training is in.
Single = NDArray[np.float32]

# Modes treated together: their errors, features and gradients stay in the first-level cache. A multiple of 4,
# the deviates in a block of the generator.
MODE_BLOCK = 1024
# Parts of a pass.
LANES = 8

_ZERO = np.uint64(0)
# Losses and parts of sums are in double precision whatever the weights are.
vector_64, matrix_64 = precisions[0]


@jit([void(int64, int64, matrix32, vector, vector) for vector, _ in precisions])
def _project(first: int, last: int, projection: Single, theta: Array, v3_out: Array) -> None:
    """v3_k = A(0)_k . theta for modes first..last-1."""
    k = first
    while k + 4 <= last:
        dot_rows(k, projection, theta, v3_out)
        k += 4
    while k < last:
        v3_out[k] = dot(projection[k], theta)
        k += 1


@jit([void(int64, int64, matrix32, vector, vector) for vector, _ in precisions])
def _add_projected(first: int, last: int, projection: Single, v1: Array, v2_out: Array) -> None:
    """v2 += sum_k A(0)_k v1_k over modes first..last-1."""
    k = first
    while k + 4 <= last:
        add_rows(k, 0, v2_out.size, k, projection, v1, v2_out)
        k += 4
    while k < last:
        add_scaled(v1[k], projection[k], v2_out)
        k += 1


@jit([float64(int64, int64, matrix32, vector, vector, vector, vector) for vector, _ in precisions])
def _whitened_errors(
    first: int, last: int, projection: Single, theta: Array, target: Array, root_eigenvalues: Array, u_out: Array
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


@jit(int64(int64, int_vector), inline=True)
def _row_of(b: int, chosen: NDArray[np.int64]) -> int:
    """Where sample b of a batch is among the given ones: they are all in it if none are chosen."""
    return int(chosen[b]) if chosen.size > 0 else b


@jit(
    [
        int64(
            *[int64] * 4,  # lane .. batch_size
            *[uint64] * 4,  # keys, words
            matrix,  # given
            int_vector,  # chosen
            *[vector] * 2,  # target, root_eigenvalues
            matrix32,  # projection
            *[vector] * 3,  # theta, u, v1
            *[matrix] * 2,  # features, v2_sums
            matrix_64,  # partial
            byte_vector,  # stop
        )
        for vector, matrix in precisions
    ]
)
def _first_pass(
    lane: int,
    kind: int,
    loss_only: int,
    batch_size: int,
    key0: np.uint64,
    key1: np.uint64,
    word0: np.uint64,
    word1: np.uint64,
    given: Array,
    chosen: NDArray[np.int64],
    target: Array,
    root_eigenvalues: Array,
    projection: Single,
    theta: Array,
    u_out: Array,
    v1_out: Array,
    features_out: Array,
    v2_sums_out: Array,
    partial_out: Array,
    stop: NDArray[np.uint8],
) -> int:
    """One lane's modes: errors, and for each block its part of the loss and of xi . u; returns OK or STOPPED.

    partial_out[block] holds the loss, then the residuals. For the population gradient, v1 = lambda v0 and
    v2_sums_out[lane] = sum_k A(0)_k v1_k as well. Features that are not given have the counter words (k // 4, b,
    word0, word1).
    """
    n_modes = target.size
    n_blocks = (n_modes + MODE_BLOCK - 1) // MODE_BLOCK
    is_given = given.shape[0] > 0
    keep = features_out.shape[1] == n_modes and features_out.shape[0] == batch_size
    # Rows of A(0) that the second-level cache holds easily (128 KiB), in fours.
    group = max(4, 16384 // max(1, projection.shape[1]) // 4 * 4)
    v2_sum = v2_sums_out[lane]
    if batch_size == 0:
        for i in range(v2_sum.size):
            v2_sum[i] = 0.0
    for block in range(lane * n_blocks // LANES, (lane + 1) * n_blocks // LANES):
        if stop[0] != 0:
            return STOPPED
        first = block * MODE_BLOCK
        last = min(first + MODE_BLOCK, n_modes)
        partial = partial_out[block]
        partial[0] = 0.0
        if batch_size == 0:
            # A few modes at a time, so that a row of A(0) serves both products while it is in the cache.
            k = first
            while k < last:
                end = min(k + group, last)
                partial[0] += _whitened_errors(k, end, projection, theta, target, root_eigenvalues, u_out)
                for j in range(k, end):
                    # v1 = lambda v0
                    v1_out[j] = root_eigenvalues[j] * u_out[j]
                if loss_only == 0 and projection.shape[0] > 0:
                    _add_projected(k, end, projection, v1_out, v2_sum)
                k = end
            continue
        partial[0] = _whitened_errors(first, last, projection, theta, target, root_eigenvalues, u_out)
        if loss_only != 0:
            continue
        for b in range(batch_size):
            if stop[0] != 0:
                return STOPPED
            # psi_b . v0 = sum_k xi_bk u_k
            if is_given:
                partial[1 + b] = dot(given[_row_of(b, chosen), first:last], u_out[first:last])
                continue
            row = features_out[b, first:last] if keep else features_out[4 * lane + b % 4, : last - first]
            fill_features(kind, key0, key1, np.uint64(b), word0, word1, np.uint64(first // 4), row)
            partial[1 + b] = dot(row, u_out[first:last])
    return OK


@jit([void(*[int64] * 4, matrix, int_vector, *[vector] * 2) for vector, matrix in precisions])
def _add_given(
    b: int, n_rows: int, first: int, last: int, given: Array, chosen: NDArray[np.int64], residual: Array, v1_out: Array
) -> None:
    """v1 += sum_j xi_j e_j over samples j = b..b+n_rows-1, at most four, for modes first..last-1."""
    if n_rows == 4:
        i0, i1, i2, i3 = _row_of(b, chosen), _row_of(b + 1, chosen), _row_of(b + 2, chosen), _row_of(b + 3, chosen)
        add_chosen_rows(i0, i1, i2, i3, first, last, b, given, residual, v1_out)
        return
    for j in range(b, b + n_rows):
        add_scaled(residual[j], given[_row_of(j, chosen), first:last], v1_out)


@jit(
    [
        float64(*[int64] * 2, *[uint64] * 2, float64, int_vector, vector, matrix_64, *[vector] * 2)
        for vector, _ in precisions
    ]
)
def _gather_first(
    t: int,
    run: int,
    key0: np.uint64,
    key1: np.uint64,
    label_noise: float,
    chosen: NDArray[np.int64],
    given_noise: Array,
    partial: Array,
    residual_out: Array,
    noise_out: Array,
) -> float:
    """Add up the blocks: returns the loss, and leaves e_b = psi_b . v0 + sigma eps_b in residual_out."""
    n_blocks = partial.shape[0]
    loss = 0.0
    for block in range(n_blocks):
        loss += partial[block, 0]
    for b in range(residual_out.size):
        total = 0.0
        for block in range(n_blocks):
            total += partial[block, 1 + b]
        residual_out[b] = total
    if given_noise.size > 0:
        for b in range(residual_out.size):
            residual_out[b] += given_noise[_row_of(b, chosen)]
    elif label_noise > 0.0:
        fill_normals(key0, key1, _ZERO, np.uint64(t), np.uint64(run), _ZERO, noise_out)
        add_scaled(label_noise, noise_out, residual_out)
    return loss


@jit(
    [
        int64(
            *[int64] * 2,  # lane, kind
            *[uint64] * 4,  # keys, words
            float64,  # inverse_batch_size
            matrix,  # given
            int_vector,  # chosen
            vector,  # root_eigenvalues
            matrix32,  # projection
            *[vector] * 2,  # residual, v1
            *[matrix] * 2,  # features, v2_sums
            byte_vector,  # stop
        )
        for vector, matrix in precisions
    ]
)
def _second_pass(
    lane: int,
    kind: int,
    key0: np.uint64,
    key1: np.uint64,
    word0: np.uint64,
    word1: np.uint64,
    inverse_batch_size: float,
    given: Array,
    chosen: NDArray[np.int64],
    root_eigenvalues: Array,
    projection: Single,
    residual: Array,
    v1_out: Array,
    features_out: Array,
    v2_sums_out: Array,
    stop: NDArray[np.uint8],
) -> int:
    """One lane's modes: v1 = (1/B) sum_b psi_b e_b and their part of v2; returns OK or STOPPED.

    From the last block back, since the end of the lane's modes is what the cache still holds.
    """
    n_modes, batch_size = root_eigenvalues.size, residual.size
    n_blocks = (n_modes + MODE_BLOCK - 1) // MODE_BLOCK
    is_given = given.shape[0] > 0
    keep = features_out.shape[1] == n_modes and features_out.shape[0] == batch_size
    v2_sum = v2_sums_out[lane]
    for i in range(v2_sum.size):
        v2_sum[i] = 0.0
    for block in range((lane + 1) * n_blocks // LANES - 1, lane * n_blocks // LANES - 1, -1):
        first = block * MODE_BLOCK
        last = min(first + MODE_BLOCK, n_modes)
        v1 = v1_out[first:last]
        for k in range(last - first):
            v1[k] = 0.0
        b = 0
        while b < batch_size:
            if stop[0] != 0:
                return STOPPED
            n_rows = min(4, batch_size - b)
            if is_given:
                _add_given(b, n_rows, first, last, given, chosen, residual, v1)
                b += n_rows
                continue
            if not keep:
                for j in range(n_rows):
                    fill_features(
                        kind,
                        key0,
                        key1,
                        np.uint64(b + j),
                        word0,
                        word1,
                        np.uint64(first // 4),
                        features_out[4 * lane + j, : last - first],
                    )
            top = b if keep else 4 * lane
            left = first if keep else 0
            right = left + last - first
            if n_rows == 4:
                add_rows(top, left, right, b, features_out, residual, v1)
            else:
                for j in range(n_rows):
                    add_scaled(residual[b + j], features_out[top + j, left:right], v1)
            b += n_rows
        for k in range(first, last):
            v1_out[k] *= root_eigenvalues[k] * inverse_batch_size
        if projection.shape[0] > 0:
            _add_projected(first, last, projection, v1_out, v2_sum)
    return OK


@jit([void(float64, matrix, vector) for vector, matrix in precisions])
def _gather_sums(factor: float, sums: Array, out: Array) -> None:
    """out = factor times the sum of the lanes, always in one order."""
    for i in range(out.size):
        out[i] = 0.0
    for lane in range(LANES):
        row = sums[lane]
        for i in range(out.size):
            out[i] += row[i]
    for i in range(out.size):
        out[i] *= factor


@jit([void(int64, vector, vector, float64, float64, matrix, matrix, byte_vector) for vector, matrix in precisions])
def _weights_pass(
    lane: int,
    v2: Array,
    w_out: Array,
    learning_rate: float,
    gain: float,
    mixing_out: Array,
    theta_sums_out: Array,
    stop: NDArray[np.uint8],
) -> None:
    """One lane's rows of w and G, and their part of N theta."""
    n = w_out.size
    sums = theta_sums_out[lane]
    if mixing_out.shape[0] == 0:
        for i in range(n):
            sums[i] = 0.0
    update_rows(lane * n // LANES, (lane + 1) * n // LANES, v2, w_out, learning_rate, gain, mixing_out, sums, stop)


@jit(int64(uint64, uint64, int64, int64, byte_vector, matrix32))
def fill_projection(
    key0: np.uint64, key1: np.uint64, run: int, first: int, stop: NDArray[np.uint8], projection_out: Single
) -> int:
    """Fill projection_out[k, i] = A(0)[i, first + k] of a run from the stream PROJECTION; return OK or STOPPED."""
    for k in range(projection_out.shape[0]):
        if stop[0] != 0:
            return STOPPED
        fill_normals(key0, key1, np.uint64(first + k), np.uint64(run), _ZERO, _ZERO, projection_out[k])
    return OK


@jit(void(uint64, uint64, int64, int64, int64, matrix32))
def fill_projection_block(
    key0: np.uint64, key1: np.uint64, run: int, first_mode: int, first_feature: int, projection_out: Single
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


@jit(
    [
        status_and_step(
            *[int64] * 2,  # thread, n_threads
            int_vector,  # barrier
            *[int64] * 6,  # t_first .. kind
            *[uint64] * 4,  # keys
            *[float64] * 4,  # learning_rate .. inverse_batch_size
            float64,  # inverse_width
            int64,  # batch_size
            float64,  # threshold
            matrix,  # given
            int_matrix,  # batches
            vector,  # given_noise
            *[vector] * 2,  # target, root_eigenvalues
            matrix32,  # projection
            vector,  # w
            matrix,  # mixing
            *[vector] * 6,  # theta, u, v1, v2, residual, noise
            *[matrix] * 2,  # features, sums
            matrix_64,  # partial
            byte_vector,  # stop
            vector_64,  # loss
        )
        for vector, matrix in precisions
    ]
)
def advance(
    thread: int,
    n_threads: int,
    barrier: NDArray[np.int64],
    t_first: int,
    t_last: int,
    n_steps: int,
    errors_known: int,
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
    given: Array,
    batches: NDArray[np.int64],
    given_noise: Array,
    target: Array,
    root_eigenvalues: Array,
    projection: Single,
    w_out: Array,
    mixing_out: Array,
    theta_out: Array,
    u_out: Array,
    v1_out: Array,
    v2_out: Array,
    residual_out: Array,
    noise_out: Array,
    features_out: Array,
    sums_out: Array,
    partial_out: Array,
    stop: NDArray[np.uint8],
    loss_out: Array,
) -> tuple[int, int]:
    """Record the loss and take a step, for t = t_first..t_last-1; at t = n_steps only record.

    With fixed samples a call that ends at t = n_steps leaves e_b of that step as well.

    Parameters
    ----------
    thread, n_threads : int
        Which of the threads that do these steps together this is; all others' arguments are the same.
    barrier : array of int64, shape (BARRIER_SIZE,)
        Zeros.
    t_first, t_last, n_steps : int
        Steps to do, and steps in all.
    errors_known : int
        1 if a call with fixed samples ended with n_steps at the same state and batch, and left its workspace.
    run : int
        Number of the run.
    kind : int
        Of the features, as in `rng`, if they are not given.
    feature_key0, feature_key1, noise_key0, noise_key1 : uint64
        Keys of the streams FEATURES, or DATA for fixed samples, and LABEL_NOISE.
    learning_rate, gamma, label_noise, inverse_batch_size : float
        eta, gamma, sigma, 1/B.
    inverse_width : float
        1/N; 1 at infinite width.
    batch_size : int
        B; 0 for the population gradient.
    threshold : float
        A loss above it (or nan) is a divergence.
    given : array, shape (P, M)
        Features xi: the samples, or those of a single step's batch; shape (0, 0) if they are to be drawn.
    batches : array of int64, shape (t_last - t_first, B)
        Rows of `given` that make the batch of each step; no columns if all do.
    given_noise : array, shape (P,)
        sigma eps of fixed samples; empty for fresh ones.
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
    v2_out : array, shape (n,)
        Workspace.
    residual_out, noise_out : array, shape (B,)
        Workspace: e_b, eps_b.
    features_out : array, shape (B, M) or (4 LANES, MODE_BLOCK)
        Workspace for features that are drawn: with the first shape kept between their two passes, else drawn twice.
    sums_out : array, shape (LANES, n)
        Workspace.
    partial_out : array of float64, shape (number of blocks, 1 + B)
        Workspace.
    stop : array of uint8, shape (1,)
        Set from elsewhere to end the call soon, with the state in disorder.
    loss_out : array
        loss_out[t - t_first] is the loss after t steps.

    Returns
    -------
    status, step : int
        OK and t_last; DIVERGED and the step whose loss is beyond the threshold; STOPPED and a step.
    """
    gain = learning_rate * gamma * inverse_width
    lanes = range(thread * LANES // n_threads, (thread + 1) * LANES // n_threads)
    is_fixed = given_noise.size > 0
    for t in range(t_first, t_last):
        # Where stream DATA has a sample, FEATURES has one of each step.
        word0, word1 = (np.uint64(run), _ZERO) if is_fixed else (np.uint64(t), np.uint64(run))
        chosen = batches[t - t_first]
        loss_only = 1 if t >= n_steps and not is_fixed else 0
        if errors_known == 0 or t > t_first:
            for lane in lanes:
                status = _first_pass(
                    lane, kind, loss_only, batch_size, feature_key0, feature_key1, word0, word1, given, chosen, target,
                    root_eigenvalues, projection, theta_out, u_out, v1_out, features_out, sums_out, partial_out, stop,
                )  # fmt: skip
                if status != OK:
                    return STOPPED, t
        if wait_for_team(n_threads, barrier, stop) != 0:
            return STOPPED, t
        if thread == 0:
            loss_out[t - t_first] = _gather_first(
                t, run, noise_key0, noise_key1, label_noise, chosen, given_noise, partial_out, residual_out, noise_out
            )
        if wait_for_team(n_threads, barrier, stop) != 0:
            return STOPPED, t
        if not loss_out[t - t_first] <= threshold:
            return DIVERGED, t
        if t >= n_steps:
            break
        if batch_size > 0:
            for lane in lanes:
                status = _second_pass(
                    lane, kind, feature_key0, feature_key1, word0, word1, inverse_batch_size, given, chosen,
                    root_eigenvalues, projection, residual_out, v1_out, features_out, sums_out, stop,
                )  # fmt: skip
                if status != OK:
                    return STOPPED, t
            if wait_for_team(n_threads, barrier, stop) != 0:
                return STOPPED, t
        if thread == 0:
            if projection.shape[0] == 0:
                for k in range(v2_out.size):
                    v2_out[k] = v1_out[k]
            else:
                _gather_sums(1.0, sums_out, v2_out)
        if wait_for_team(n_threads, barrier, stop) != 0:
            return STOPPED, t
        for lane in lanes:
            _weights_pass(lane, v2_out, w_out, learning_rate, gain, mixing_out, sums_out, stop)
        if stop[0] != 0 or wait_for_team(n_threads, barrier, stop) != 0:
            return STOPPED, t
        if thread == 0:
            _gather_sums(inverse_width, sums_out, theta_out)
        if wait_for_team(n_threads, barrier, stop) != 0:
            return STOPPED, t
    return OK, t_last
