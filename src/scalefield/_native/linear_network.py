"""Training steps of two-layer linear networks: one pass over the hidden weights a step (theory section 10).

Weights are stored as rows of A, the readout beside them. Rows beyond the network's, which fill the last four, are zero
and stay so.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from scalefield._native.jit import byte_vector, float64, int64, jit, matrix, status_and_step, uint64, vector, void
from scalefield._native.rng import fill_normals
from scalefield._native.weight_steps import DIVERGED, OK, STOPPED, add_rows, add_scaled, dot, dot_rows

__all__ = ["DIVERGED", "OK", "STOPPED", "advance"]

Array = NDArray[np.float64]

_ZERO, _ONE = np.uint64(0), np.uint64(1)


@jit(void(int64, vector, vector, vector, matrix, vector))
def move_rows(k: int, s: Array, gain: Array, v: Array, weights_out: Array, sum_out: Array) -> None:
    """sum_out += sum_j s_j row_j, then row_j <- row_j + gain_j v, for rows k..k+3: each is loaded once for both."""
    s0, s1, s2, s3 = s[k], s[k + 1], s[k + 2], s[k + 3]
    g0, g1, g2, g3 = gain[k], gain[k + 1], gain[k + 2], gain[k + 3]
    x0, x1, x2, x3 = weights_out[k], weights_out[k + 1], weights_out[k + 2], weights_out[k + 3]
    for i in range(v.size):
        a0, a1, a2, a3 = x0[i], x1[i], x2[i], x3[i]
        step = v[i]
        sum_out[i] += (s0 * a0 + s1 * a1) + (s2 * a2 + s3 * a3)
        x0[i] = a0 + g0 * step
        x1[i] = a1 + g1 * step
        x2[i] = a2 + g2 * step
        x3[i] = a3 + g3 * step


@jit(
    void(
        *[int64] * 3,  # t, run, batch_size
        *[uint64] * 4,  # keys
        *[float64] * 2,  # label_noise, inverse_batch_size
        *[vector] * 2,  # u, root_eigenvalues
        *[vector] * 2,  # errors, noise
        matrix,  # features
        vector,  # v
    )
)
def sample_literally(
    t: int,
    run: int,
    batch_size: int,
    key0: np.uint64,
    key1: np.uint64,
    noise_key0: np.uint64,
    noise_key1: np.uint64,
    label_noise: float,
    inverse_batch_size: float,
    u: Array,
    root_eigenvalues: Array,
    errors_out: Array,
    noise_out: Array,
    features_out: Array,
    v_out: Array,
) -> None:
    """v = (1/B) sum_b x_b e_b, e_b = x_b . (w* - beta) + sigma eps_b, with u = Lambda^{1/2} (w* - beta)."""
    if label_noise > 0.0:
        fill_normals(noise_key0, noise_key1, _ZERO, np.uint64(t), np.uint64(run), _ZERO, noise_out)
    for k in range(v_out.size):
        v_out[k] = 0.0
    b = 0
    while b < batch_size:
        n_rows = min(4, batch_size - b)
        for j in range(n_rows):
            fill_normals(key0, key1, np.uint64(b + j), np.uint64(t), np.uint64(run), _ZERO, features_out[j])
        if n_rows == 4:
            dot_rows(0, features_out, u, errors_out)
        else:
            for j in range(n_rows):
                errors_out[j] = dot(features_out[j], u)
        if label_noise > 0.0:
            for j in range(n_rows):
                errors_out[j] += label_noise * noise_out[b + j]
        if n_rows == 4:
            add_rows(0, 0, v_out.size, 0, features_out, errors_out, v_out)
        else:
            for j in range(n_rows):
                add_scaled(errors_out[j], features_out[j], v_out)
        b += n_rows
    for k in range(v_out.size):
        v_out[k] *= root_eigenvalues[k] * inverse_batch_size


@jit(
    void(
        *[int64] * 3,  # t, run, batch_size
        *[uint64] * 4,  # keys
        *[float64] * 3,  # label_noise, inverse_batch_size, loss
        *[vector] * 2,  # u, root_eigenvalues
        *[vector] * 2,  # errors, noise
        vector,  # v
    )
)
def sample_gradient(
    t: int,
    run: int,
    batch_size: int,
    key0: np.uint64,
    key1: np.uint64,
    noise_key0: np.uint64,
    noise_key1: np.uint64,
    label_noise: float,
    inverse_batch_size: float,
    loss: float,
    u: Array,
    root_eigenvalues: Array,
    errors_out: Array,
    noise_out: Array,
    v_out: Array,
) -> None:
    """The gradient of a batch by its law, from B + M normals instead of B M.

    White samples xi_b have xi_b . u = |u| z_b and are normal and independent of z across u. So with
    e = |u| z + sigma eps and standard normal z, g,

        Lambda^{-1/2} v = (1/B) sum_b xi_b e_b = (z . e/B) u/|u| + (|e|/B) (g - u (u . g)/|u|^2) .
    """
    fill_normals(key0, key1, _ONE, np.uint64(t), np.uint64(run), _ZERO, errors_out)
    if label_noise > 0.0:
        fill_normals(noise_key0, noise_key1, _ZERO, np.uint64(t), np.uint64(run), _ZERO, noise_out)
    norm = math.sqrt(loss)
    along, square = 0.0, 0.0
    for b in range(batch_size):
        z = errors_out[b]
        e = norm * z
        if label_noise > 0.0:
            e += label_noise * noise_out[b]
        along += z * e
        square += e * e
    across = math.sqrt(square) * inverse_batch_size
    fill_normals(key0, key1, _ZERO, np.uint64(t), np.uint64(run), _ZERO, v_out)
    # Nothing is left to learn: any direction is as good.
    factor = 0.0
    if loss > 0.0:
        factor = along * inverse_batch_size / norm - across * dot(u, v_out) / loss
    for k in range(v_out.size):
        v_out[k] = root_eigenvalues[k] * (factor * u[k] + across * v_out[k])


@jit(
    status_and_step(
        *[int64] * 5,  # t_first .. literal
        *[uint64] * 4,  # keys
        *[float64] * 6,  # learning_rate .. threshold
        int64,  # batch_size
        *[vector] * 2,  # target, root_eigenvalues
        matrix,  # weights
        *[vector] * 2,  # readout, learned
        *[vector] * 2,  # s, gain
        *[vector] * 3,  # u, v, sums
        *[vector] * 2,  # errors, noise
        matrix,  # features
        byte_vector,  # stop
        vector,  # loss
    )
)
def advance(
    t_first: int,
    t_last: int,
    n_steps: int,
    run: int,
    literal: int,
    key0: np.uint64,
    key1: np.uint64,
    noise_key0: np.uint64,
    noise_key1: np.uint64,
    learning_rate: float,
    gamma: float,
    label_noise: float,
    inverse_batch_size: float,
    inverse_width: float,
    threshold: float,
    batch_size: int,
    target: Array,
    root_eigenvalues: Array,
    weights_out: Array,
    readout_out: Array,
    learned_out: Array,
    s_out: Array,
    gain_out: Array,
    u_out: Array,
    v_out: Array,
    sums_out: Array,
    errors_out: Array,
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
    literal : int
        Whether samples are drawn (1) or only the gradient of their batch (0).
    key0, key1, noise_key0, noise_key1 : uint64
        Keys of the stream FEATURES or GRADIENT, and of LABEL_NOISE.
    learning_rate, gamma, label_noise, inverse_batch_size, inverse_width : float
        eta, gamma0, sigma, 1/B, 1/N.
    threshold : float
        A loss above it (or nan) is a divergence.
    batch_size : int
        B; 0 for the population gradient.
    target, root_eigenvalues : array, shape (M,)
        w*_k and sqrt(lambda_k).
    weights_out : array, shape (n, M)
        State: A, n a multiple of 4; shape (0, 0) where A^T A/N = 1 and nothing moves it (gamma = 0).
    readout_out : array, shape (n,)
        State: w; shape (1,), w = 1, for (0, 0) weights.
    learned_out : array, shape (M,)
        State: beta.
    s_out, gain_out : array, shape (n,)
        Workspace.
    u_out, v_out, sums_out : array, shape (M,)
        Workspace.
    errors_out, noise_out : array, shape (B,), at least 4
        Workspace.
    features_out : array, shape (4, M)
        Workspace.
    stop : array of uint8, shape (1,)
        Set from another thread to end the call before its next step.
    loss_out : array
        loss_out[t - t_first] is the loss after t steps.

    Returns
    -------
    status, step : int
        OK and t_last; DIVERGED and the step whose loss is beyond the threshold; STOPPED and a step.
    """
    n_modes, n = target.size, weights_out.shape[0]
    for t in range(t_first, t_last):
        if stop[0] != 0:
            return STOPPED, t
        loss = 0.0
        for k in range(n_modes):
            # u = Lambda^{1/2} (w* - beta) ; L = |u|^2
            error = root_eigenvalues[k] * (target[k] - learned_out[k])
            u_out[k] = error
            loss += error * error
        loss_out[t - t_first] = loss
        if not loss <= threshold:
            return DIVERGED, t
        if t >= n_steps:
            break
        if batch_size == 0:
            for k in range(n_modes):
                v_out[k] = root_eigenvalues[k] * u_out[k]
        elif literal != 0:
            sample_literally(
                t, run, batch_size, key0, key1, noise_key0, noise_key1, label_noise, inverse_batch_size, u_out,
                root_eigenvalues, errors_out, noise_out, features_out, v_out,
            )  # fmt: skip
        else:
            sample_gradient(
                t, run, batch_size, key0, key1, noise_key0, noise_key1, label_noise, inverse_batch_size, loss, u_out,
                root_eigenvalues, errors_out, noise_out, v_out,
            )  # fmt: skip
        if n == 0:
            # A^T A/N = 1 and |w|^2/N = 1: beta <- beta + 2 eta v
            for k in range(n_modes):
                learned_out[k] += 2.0 * learning_rate * v_out[k]
            continue
        for i in range(0, n, 4):
            # s = A v
            dot_rows(i, weights_out, v_out, s_out)
        q, c = 0.0, 0.0
        for i in range(n):
            old = readout_out[i]
            q += old * old
            c += old * s_out[i]
            # w <- w + eta gamma s ; A <- A + eta gamma w_old v^T
            gain_out[i] = learning_rate * gamma * old
            readout_out[i] = old + learning_rate * gamma * s_out[i]
        for k in range(n_modes):
            sums_out[k] = 0.0
        if gamma > 0.0:
            for i in range(0, n, 4):
                move_rows(i, s_out, gain_out, v_out, weights_out, sums_out)
        else:
            for i in range(0, n, 4):
                add_rows(i, 0, n_modes, i, weights_out, s_out, sums_out)
        # beta <- beta + eta [ A^T A v/N + (|w|^2/N + eta gamma w.A v/N) v ]
        share = (q + learning_rate * gamma * c) * inverse_width
        for k in range(n_modes):
            learned_out[k] += learning_rate * (inverse_width * sums_out[k] + share * v_out[k])
    return OK, t_last
