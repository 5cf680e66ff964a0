r"""Training steps in the eigenbasis of the features' covariance, one run a call (theory section 8).

Gaussian data enter only through (A(0) psi, y), jointly Gaussian of dimension N + 1. With S = A(0) Lambda A(0)^T =
U diag(e) U^T, c = e^{-1/2} U^T A(0) Lambda w*, rest^2 = |u|^2 - |c|^2 and everything turned by U^T, a step is

.. math::
    \theta = G^T w / N, \qquad d = c - \sqrt{e}\, \theta, \qquad L = |d|^2 + \mathrm{rest}^2

    e_b = z_b \cdot d + \mathrm{rest}\, \xi_b + \sigma \epsilon_b, \qquad
    v_2 = \sqrt{e}\, \tfrac{1}{B} \sum_b z_b e_b \quad (B = \infty: v_2 = \sqrt{e}\, d)

    w \leftarrow w + \eta G v_2, \qquad G \leftarrow G + \frac{\eta\gamma}{N} w_{old} v_2^T

with z_b, xi_b, eps_b standard normal: the law of the literal run, at a cost that does not depend on the number of
modes.

On P fixed samples (offline) their features phi_mu = U^T A(0) psi_mu and labels y_mu = w* . psi_mu + sigma eps_mu take
the place of the random z_b: e_mu = y_mu - phi_mu . theta, v_2 = (1/B) sum_mu phi_mu e_mu over all samples or a batch
of them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scalefield._native.jit import (
    byte_vector,
    float64,
    int64,
    int_matrix,
    jit,
    precisions,
    status_and_step,
    uint64,
    void,
)
from scalefield._native.rng import fill_normals
from scalefield._native.weight_steps import DIVERGED, OK, STOPPED, add_rows, add_scaled, dot, update_rows

__all__ = ["advance", "advance_on_samples"]

Array = NDArray[np.float64]

_ZERO = np.uint64(0)


@jit([float64(float64, *[vector] * 4) for vector, _ in precisions], inline=True)
def _find_loss(rest: float, root: Array, c: Array, theta: Array, d_out: Array) -> float:
    """d = c - sqrt(e) theta; returns the loss |d|^2 + rest^2."""
    for i in range(d_out.size):
        d_out[i] = c[i] - root[i] * theta[i]
    return float(rest * rest + dot(d_out, d_out))


@jit(
    [void(*[vector] * 2, *[float64] * 3, matrix, *[vector] * 2, byte_vector) for vector, matrix in precisions],
    inline=True,
)
def _move(
    v2: Array,
    w_out: Array,
    learning_rate: float,
    gain: float,
    inverse_width: float,
    mixing_out: Array,
    theta_out: Array,
    scratch_out: Array,
    stop: NDArray[np.uint8],
) -> None:
    """The step along v2: w, G and theta = G^T w/N; all in disorder if stop is set."""
    update_rows(0, w_out.size, v2, w_out, learning_rate, gain, mixing_out, scratch_out, stop)
    for i in range(theta_out.size):
        theta_out[i] = inverse_width * scratch_out[i]


@jit(
    [
        status_and_step(
            *[int64] * 4,  # t_first .. run
            *[uint64] * 6,  # keys
            *[float64] * 5,  # learning_rate .. inverse_width
            int64,  # batch_size
            float64,  # threshold
            float64,  # rest
            *[vector] * 3,  # root, c, w
            matrix,  # mixing
            *[vector] * 4,  # theta, d, v2, scratch
            *[vector] * 2,  # residual, noise
            matrix,  # z
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
    feature_key0: np.uint64,
    feature_key1: np.uint64,
    rest_key0: np.uint64,
    rest_key1: np.uint64,
    noise_key0: np.uint64,
    noise_key1: np.uint64,
    learning_rate: float,
    gamma: float,
    label_noise: float,
    inverse_batch_size: float,
    inverse_width: float,
    batch_size: int,
    threshold: float,
    rest: float,
    root: Array,
    c: Array,
    w_out: Array,
    mixing_out: Array,
    theta_out: Array,
    d_out: Array,
    v2_out: Array,
    scratch_out: Array,
    residual_out: Array,
    noise_out: Array,
    z_out: Array,
    stop: NDArray[np.uint8],
    loss_out: Array,
) -> tuple[int, int]:
    """Record the loss and take a step, for t = t_first..t_last-1; at t = n_steps only record.

    Parameters
    ----------
    t_first, t_last, n_steps, run : int
        Steps to do, steps in all, and the number of the run.
    feature_key0, feature_key1, rest_key0, rest_key1, noise_key0, noise_key1 : uint64
        Keys of the streams REDUCED, REST and LABEL_NOISE.
    learning_rate, gamma, label_noise, inverse_batch_size, inverse_width : float
        eta, gamma, sigma, 1/B, 1/N.
    batch_size : int
        B; 0 for the population gradient.
    threshold : float
        A loss above it (or nan) is a divergence.
    rest : float
        Root of the target's power outside the features' span.
    root, c : array, shape (n,)
        sqrt(e), decreasing, and the target's part along each eigenvector.
    w_out, theta_out : array, shape (n,)
        State: w and theta = G^T w/N.
    mixing_out : array, shape (n, n)
        State: G; shape (0, 0) if gamma = 0.
    d_out, v2_out, scratch_out : array, shape (n,)
        Workspace.
    residual_out, noise_out : array, shape (B,)
        Workspace.
    z_out : array, shape (4, n)
        Workspace: four samples, fewer if B is.
    stop : array of uint8, shape (1,)
        Set from another thread to end the call soon, with the state in disorder.
    loss_out : array
        loss_out[t - t_first] is the loss after t steps.

    Returns
    -------
    status, step : int
        OK and t_last; DIVERGED and the step whose loss is beyond the threshold; STOPPED and a step.
    """
    n = root.size
    word_run = np.uint64(run)
    gain = learning_rate * gamma * inverse_width
    for t in range(t_first, t_last):
        if stop[0] != 0:
            return STOPPED, t
        word_step = np.uint64(t)
        loss = _find_loss(rest, root, c, theta_out, d_out)
        loss_out[t - t_first] = loss
        if not loss <= threshold:
            return DIVERGED, t
        if t >= n_steps:
            break
        if batch_size == 0:
            for i in range(n):
                v2_out[i] = root[i] * d_out[i]
        else:
            fill_normals(rest_key0, rest_key1, _ZERO, word_step, word_run, _ZERO, residual_out)
            for b in range(batch_size):
                residual_out[b] *= rest
            if label_noise > 0.0:
                fill_normals(noise_key0, noise_key1, _ZERO, word_step, word_run, _ZERO, noise_out)
                add_scaled(label_noise, noise_out, residual_out)
            for i in range(n):
                v2_out[i] = 0.0
            # An error depends on its own sample alone: four samples at a time serve both products and are forgotten.
            b = 0
            while b < batch_size:
                if stop[0] != 0:
                    return STOPPED, t
                n_rows = min(4, batch_size - b)
                for j in range(n_rows):
                    row = z_out[j]
                    fill_normals(feature_key0, feature_key1, np.uint64(b + j), word_step, word_run, _ZERO, row)
                    # e_b = z_b . d + rest xi_b + sigma eps_b
                    residual_out[b + j] += dot(row, d_out)
                if n_rows == 4:
                    add_rows(0, 0, n, b, z_out, residual_out, v2_out)
                else:
                    for j in range(n_rows):
                        add_scaled(residual_out[b + j], z_out[j], v2_out)
                b += n_rows
            for i in range(n):
                # v2 = sqrt(e) sum_b z_b e_b/B
                v2_out[i] *= root[i] * inverse_batch_size
        _move(v2_out, w_out, learning_rate, gain, inverse_width, mixing_out, theta_out, scratch_out, stop)
        if stop[0] != 0:
            return STOPPED, t
    return OK, t_last


@jit(
    [
        status_and_step(
            *[int64] * 3,  # t_first .. n_steps
            *[float64] * 6,  # learning_rate .. rest
            *[vector] * 2,  # root, c
            matrix,  # samples
            vector,  # labels
            int_matrix,  # batches
            vector,  # w
            matrix,  # mixing
            *[vector] * 4,  # theta, d, v2, scratch
            byte_vector,  # stop
            float64[::1],  # loss
        )
        for vector, matrix in precisions
    ]
)
def advance_on_samples(
    t_first: int,
    t_last: int,
    n_steps: int,
    learning_rate: float,
    gamma: float,
    inverse_batch_size: float,
    inverse_width: float,
    threshold: float,
    rest: float,
    root: Array,
    c: Array,
    samples: Array,
    labels: Array,
    batches: NDArray[np.int64],
    w_out: Array,
    mixing_out: Array,
    theta_out: Array,
    d_out: Array,
    v2_out: Array,
    scratch_out: Array,
    stop: NDArray[np.uint8],
    loss_out: Array,
) -> tuple[int, int]:
    """`advance` on fixed samples: rows of `samples`, shape (P, n), and their labels, shape (P,).

    batches[t - t_first] are the samples of step t; with no column it is all of them.
    """
    n = root.size
    size = batches.shape[1] if batches.shape[1] > 0 else samples.shape[0]
    gain = learning_rate * gamma * inverse_width
    for t in range(t_first, t_last):
        loss = _find_loss(rest, root, c, theta_out, d_out)
        loss_out[t - t_first] = loss
        if not loss <= threshold:
            return DIVERGED, t
        if t >= n_steps:
            break
        for i in range(n):
            v2_out[i] = 0.0
        for b in range(size):
            if stop[0] != 0:
                return STOPPED, t
            row = samples[batches[t - t_first, b]] if batches.shape[1] > 0 else samples[b]
            label = labels[batches[t - t_first, b]] if batches.shape[1] > 0 else labels[b]
            # v2 = (1/B) sum_mu phi_mu (y_mu - phi_mu . theta)
            add_scaled(inverse_batch_size * (label - dot(row, theta_out)), row, v2_out)
        _move(v2_out, w_out, learning_rate, gain, inverse_width, mixing_out, theta_out, scratch_out, stop)
        if stop[0] != 0:
            return STOPPED, t
    return OK, t_last
