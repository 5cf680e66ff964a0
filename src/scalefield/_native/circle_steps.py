r"""Training of a multilayer perceptron on the circle, one run a call (theory section 11).

With z = (cos theta, sin theta), L hidden layers of width N and phi(h) = c relu(h)^q,

.. math::
    h^1 = W^0 z, \quad h^{l+1} = W^l \phi(h^l)/\sqrt{N}, \quad F = w \cdot \phi(h^L)/(\gamma N), \quad f = F - F_0

and steps of learning_rate gamma^2 N along -grad of (1/2B) sum_b e_b^2, e_b = y_b - f_b. With

.. math::
    \delta^L_{ib} = w_i \phi'(h^L_{ib})\, e_b, \qquad
    \delta^l_{jb} = \tfrac{1}{\sqrt N} \phi'(h^l_{jb}) \sum_i W^l_{ij} \delta^{l+1}_{ib}

they are

.. math::
    w_i \mathrel{+}= \tfrac{\eta\gamma}{B} \sum_b e_b\, \phi(h^L_{ib}), \qquad
    W^l_{ij} \mathrel{+}= \tfrac{\eta\gamma}{B \sqrt N} \sum_b \delta^{l+1}_{ib}\, \phi(h^l_{jb}), \qquad
    W^0_{i} \mathrel{+}= \tfrac{\eta\gamma}{B} \sum_b \delta^1_{ib}\, z_b .

Arrays have a row for each unit and a column for each sample, so that rows of a product's left factor, and with them
parts of its result, are contiguous. The product of two matrices is BLAS's, which callers hold to one thread.

The target is a sum over thousands of cosines, evaluated at any angle by a non-uniform Fourier transform of type 2:
values of another function on a grid, twice as fine as the highest frequency asks for, each spread by

.. math:: \psi(x) = \exp\big(s (\sqrt{1 - x^2} - 1)\big), \quad |x| \le 1

over `SPREAD` points (Barnett, Magland & af Klinteberg, arXiv:1808.06736).
"""

from __future__ import annotations

import math

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
    vector,
    void,
)
from scalefield._native.rng import PROBABILITY, fill_features

__all__ = [
    "DIVERGED",
    "OK",
    "SHAPE",
    "SPREAD",
    "STOPPED",
    "advance",
    "evaluate_network",
    "evaluate_series",
    "forward",
]

Array = NDArray[np.float64]

OK, DIVERGED, STOPPED = 0, 1, 2

# Grid points that a value is spread over, and the shape s of psi, for an error of 1e-13 or less.
SPREAD = 14
SHAPE = 2.3 * SPREAD

_ZERO = np.uint64(0)
# Rows of a weight matrix whose gradient is held at a time, in the cache.
_ROWS = 64
_TWO_PI = 2.0 * math.pi
# Zero has a logarithm then.
_TINY = 1e-300


@jit(float64(float64, vector), inline=True)
def _series(theta: float, values: Array) -> float:
    """sum_j g_j psi(theta - theta_j) over the points near theta in [0, 2 pi]."""
    n = values.size
    place = theta * (n / _TWO_PI)
    first = math.ceil(place - 0.5 * SPREAD)
    total = 0.0
    for m in range(SPREAD):
        x = (place - (first + m)) * (2.0 / SPREAD)
        j = (first + m + n) % n
        # Rounding may leave 1 - x^2 a little below 0.
        total += values[j] * math.exp(SHAPE * (math.sqrt(max(0.0, 1.0 - x * x)) - 1.0))
    return total


@jit(void(vector, vector, vector))
def evaluate_series(theta: Array, values: Array, series_out: Array) -> None:
    """Series whose spread coefficients are `values`, at angles in [0, 2 pi]."""
    for b in range(theta.size):
        series_out[b] = _series(theta[b], values)


@jit(float64(float64, vector), inline=True)
def _interpolate(theta: float, table: Array) -> float:
    """Between equally spaced values of a function of period 2 pi; they begin at 0."""
    n = table.size
    place = theta * (n / _TWO_PI)
    j = int(place)
    part = place - j
    j %= n
    following = j + 1 if j + 1 < n else 0
    return float(table[j] + part * (table[following] - table[j]))


@jit(
    [
        void(vector, vector, matrix, matrix.dtype[:, :, ::1], float64, float64, *[matrix.dtype[:, :, ::1]] * 2)
        for vector, matrix in precisions
    ]
)
def forward(
    cosine: Array, sine: Array, first: Array, hidden: Array, power: float, constant: float, phi_out: Array,
    slope_out: Array,
) -> None:  # fmt: skip
    """Activities phi(h^l) and slopes phi'(h^l) of all layers, shape (L, N, B), for the samples z_b."""
    depth, n, size = phi_out.shape
    # Products of 1 keep the precision of the arrays.
    one = constant * np.ones(1, dtype=phi_out.dtype)
    c = one[0]
    # c q relu^(q-1)
    cq = (power * one)[0] if power != 1.0 else c
    zero = c - c
    scale = (np.ones(1, dtype=phi_out.dtype) / math.sqrt(n))[0]
    exponent = power - 1.0
    for layer in range(depth):
        phi, slope = phi_out[layer], slope_out[layer]
        if layer > 0:
            np.dot(hidden[layer - 1], phi_out[layer - 1], slope)
        for i in range(n):
            if layer == 0:
                a, b = first[i, 0], first[i, 1]
                for j in range(size):
                    slope[i, j] = a * cosine[j] + b * sine[j]
            else:
                for j in range(size):
                    slope[i, j] *= scale
            if power == 1.0:
                for j in range(size):
                    h = slope[i, j]
                    positive = h > zero
                    phi[i, j] = c * h if positive else zero
                    slope[i, j] = c if positive else zero
            elif power == 2.0:
                for j in range(size):
                    h = max(slope[i, j], zero)
                    phi[i, j] = c * h * h
                    slope[i, j] = cq * h
            elif power == 3.0:
                for j in range(size):
                    h = max(slope[i, j], zero)
                    square = h * h
                    phi[i, j] = c * square * h
                    slope[i, j] = cq * square
            else:
                for j in range(size):
                    h = float(slope[i, j])
                    if h > 0.0:
                        raised = h**exponent
                        phi[i, j] = constant * raised * h
                        slope[i, j] = constant * power * raised
                    else:
                        phi[i, j] = zero
                        slope[i, j] = zero


@jit(
    [
        int64(
            float64[::1],  # theta
            *[float64] * 3,  # gamma, power, constant
            matrix,  # first
            matrix.dtype[:, :, ::1],  # hidden
            vector,  # readout
            *[vector] * 2,  # cosine, sine
            *[matrix.dtype[:, :, ::1]] * 2,  # phi, slope
            vector,  # output
            byte_vector,  # stop
            float64[::1],  # values
        )
        for vector, matrix in precisions
    ]
)
def evaluate_network(
    theta: Array, gamma: float, power: float, constant: float, first: Array, hidden: Array, readout: Array,
    cosine_out: Array, sine_out: Array, phi_out: Array, slope_out: Array, output_out: Array, stop: NDArray[np.uint8],
    values_out: Array,
) -> int:  # fmt: skip
    """F = w . phi/(gamma N) at angles, as many at a time as the workspace has columns; OK or STOPPED."""
    depth, n, size = phi_out.shape
    for start in range(0, theta.size, size):
        if stop[0] != 0:
            return STOPPED
        count = min(size, theta.size - start)
        for b in range(size):
            # The last block is filled up with its last angle.
            angle = theta[start + min(b, count - 1)]
            cosine_out[b] = math.cos(angle)
            sine_out[b] = math.sin(angle)
        forward(cosine_out, sine_out, first, hidden, power, constant, phi_out, slope_out)
        np.dot(readout, phi_out[depth - 1], output_out)
        for b in range(count):
            values_out[start + b] = output_out[b] / (gamma * n)
    return OK


@jit(
    [
        status_and_step(
            *[int64] * 3,  # t_first, t_last, run
            *[uint64] * 2,  # key
            *[float64] * 5,  # learning_rate .. threshold
            *[float64[::1]] * 2,  # series, initial
            matrix,  # first_initial
            matrix.dtype[:, :, ::1],  # hidden_initial
            vector,  # readout_initial
            matrix,  # first
            matrix.dtype[:, :, ::1],  # hidden
            vector,  # readout
            *[float64[::1]] * 2,  # theta, target
            *[vector] * 3,  # cosine, sine, residual
            *[matrix.dtype[:, :, ::1]] * 2,  # phi, slope
            *[matrix] * 2,  # delta, product
            byte_vector,  # stop
            *[float64[::1]] * 2,  # loss, typical
        )
        for vector, matrix in precisions
    ]
)
def advance(
    t_first: int,
    t_last: int,
    run: int,
    key0: np.uint64,
    key1: np.uint64,
    learning_rate: float,
    gamma: float,
    power: float,
    constant: float,
    threshold: float,
    series: Array,
    initial: Array,
    first_initial: Array,
    hidden_initial: Array,
    readout_initial: Array,
    first_out: Array,
    hidden_out: Array,
    readout_out: Array,
    theta_out: Array,
    target_out: Array,
    cosine_out: Array,
    sine_out: Array,
    residual_out: Array,
    phi_out: Array,
    slope_out: Array,
    delta_out: Array,
    product_out: Array,
    stop: NDArray[np.uint8],
    loss_out: Array,
    typical_out: Array,
) -> tuple[int, int]:
    """Take steps t = t_first..t_last-1.

    Parameters
    ----------
    t_first, t_last, run : int
        Steps to do, and the number of the run.
    key0, key1 : uint64
        Key of the stream of angles.
    learning_rate, gamma, power, constant : float
        eta, gamma, q and c.
    threshold : float
        A batch's loss above it (or nan) is a divergence.
    series, initial : array of float64
        Spread coefficients of the target, and F_0 at equally spaced angles, or nothing.
    first_initial, hidden_initial, readout_initial : array, shapes (N, 2), (L - 1, N, N), (N,)
        Weights from which F_0 is computed where `initial` is empty; else they are not used and may be.
    first_out, hidden_out, readout_out : array, shapes (N, 2), (L - 1, N, N), (N,)
        State: W^0, W^l, w.
    theta_out, target_out, cosine_out, sine_out, residual_out : array, shape (B,)
        Workspace.
    phi_out, slope_out : array, shape (L, N, B)
        Workspace.
    delta_out : array, shape (N, B)
        Workspace.
    product_out : array, shape (at most 64, N)
        Workspace: rows of a gradient.
    stop : array of uint8, shape (1,)
        Set from another thread to end the call soon, between two steps.
    loss_out : array of float64
        loss_out[t - t_first] is the mean of e_b^2 over the batch of step t, before the step.
    typical_out : array of float64
        The same for exp of the mean of log e_b^2.

    Returns
    -------
    status, step : int
        OK and t_last; DIVERGED and the step whose loss is beyond the threshold; STOPPED and a step.
    """
    depth, n, size = phi_out.shape
    # A scalar of the arrays' precision.
    unit = np.ones(1, dtype=phi_out.dtype)
    gain = (unit * (learning_rate * gamma / size))[0]
    scale = (unit / math.sqrt(n))[0]
    for t in range(t_first, t_last):
        if stop[0] != 0:
            return STOPPED, t
        fill_features(PROBABILITY, key0, key1, _ZERO, np.uint64(t), np.uint64(run), _ZERO, theta_out)
        for b in range(size):
            theta_out[b] *= _TWO_PI
            cosine_out[b] = math.cos(theta_out[b])
            sine_out[b] = math.sin(theta_out[b])
        last = phi_out[depth - 1]
        # y + F_0
        if initial.size > 0:
            for b in range(size):
                target_out[b] = _series(theta_out[b], series) + _interpolate(theta_out[b], initial)
        else:
            forward(cosine_out, sine_out, first_initial, hidden_initial, power, constant, phi_out, slope_out)
            np.dot(readout_initial, last, residual_out)
            for b in range(size):
                target_out[b] = _series(theta_out[b], series) + residual_out[b] / (gamma * n)
        forward(cosine_out, sine_out, first_out, hidden_out, power, constant, phi_out, slope_out)
        np.dot(readout_out, last, residual_out)
        loss, logarithm = 0.0, 0.0
        for b in range(size):
            # e = y - (F - F_0)
            residual = target_out[b] - residual_out[b] / (gamma * n)
            residual_out[b] = residual
            loss += residual * residual
            logarithm += math.log(residual * residual + _TINY)
        loss /= size
        loss_out[t - t_first] = loss
        typical_out[t - t_first] = math.exp(logarithm / size)
        if not loss <= threshold:
            return DIVERGED, t
        # delta^L = w phi' e ; w += (eta gamma/B) sum_b e phi
        slope = slope_out[depth - 1]
        for i in range(n):
            w = readout_out[i]
            for b in range(size):
                slope[i, b] *= w * residual_out[b]
        moved = delta_out.ravel()
        np.dot(last, residual_out, moved[:n])
        for i in range(n):
            readout_out[i] += gain * moved[i]
        delta = slope
        for layer in range(depth - 1, 0, -1):
            weights, below = hidden_out[layer - 1], slope_out[layer - 1]
            # delta^{l-1} = phi' W^T delta/sqrt(N), with the W before the step
            np.dot(weights.T, delta, delta_out)
            # W += (eta gamma/(B sqrt(N))) delta phi^T
            for row in range(0, n, _ROWS):
                stop_row = min(row + _ROWS, n)
                part = product_out[: stop_row - row]
                np.dot(delta[row:stop_row], phi_out[layer - 1].T, part)
                for i in range(row, stop_row):
                    for j in range(n):
                        weights[i, j] += gain * scale * part[i - row, j]
            for i in range(n):
                for b in range(size):
                    below[i, b] *= scale * delta_out[i, b]
            delta = below
        # W^0 += (eta gamma/B) sum_b delta^1 z
        for side in range(2):
            np.dot(delta, cosine_out if side == 0 else sine_out, moved[:n])
            for i in range(n):
                first_out[i, side] += gain * moved[i]
    return OK, t_last
