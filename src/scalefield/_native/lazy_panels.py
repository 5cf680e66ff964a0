"""Lazy SGD in logarithmic time, exact (theory sections 6 and 7b at gamma = 0).

    L(t) = atom + mu((1 - eta s)^{2t}) + rho(x V) ,    V+ = (1 - eta x)^2 V + eta^2 x D(t) ,    D = (L + sigma^2)/B

The means are known at all times, and V follows from D by `causal_panels` with steps of length 1. D changes slowly
after the first steps: on panels that grow with t it is a polynomial through its values at the points, found by
fixed-point iteration. Nothing else is approximated.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scalefield._native.causal_panels import (
    DEGREE,
    LARGE,
    N_POINTS,
    SMALL,
    SMALLEST,
    TERMS,
    all_series,
    decay_factors,
    deviations,
    tail,
)
from scalefield._native.jit import float64, jit, matrix, status_and_step, vector

__all__ = ["DIVERGED", "OK", "UNRESOLVED", "march_lazy"]

Array = NDArray[np.float64]

# Largest length of a panel relative to its start.
GROWTH = 0.7
# Fewest steps a panel holds: below, the sums over steps are not smooth enough.
FEWEST = 100.0
ITERATIONS = 60
OK, DIVERGED, UNRESOLVED = 0, 1, 2


@jit(float64(vector, vector, vector, float64), fastmath=("reassoc", "contract", "nsz"))
def _mean_loss(power: Array, rate: Array, unlearned: Array, steps: float) -> float:
    """mu((1 - y)^2), with the deviation `unlearned` some steps before; rate = -log|1 - eta s|."""
    total = 0.0
    for k in range(power.shape[0]):
        w = unlearned[k] * np.exp(-rate[k] * steps)
        total += power[k] * w * w
    return total


@jit(
    status_and_step(
        *[vector] * 4,  # s .. weights
        *[float64] * 6,  # learning_rate .. tolerance
        vector,  # points
        matrix,  # to_monomials
        *[vector] * 2,  # unlearned, variance
        float64,  # start
        *[vector] * 2,  # record_times, loss_out
    )
)
def march_lazy(
    s: Array,
    power: Array,
    x: Array,
    weights: Array,
    learning_rate: float,
    inverse_batch: float,
    noise_power: float,
    atom: float,
    threshold: float,
    tolerance: float,
    points: Array,
    to_monomials: Array,
    unlearned: Array,
    variance: Array,
    start: float,
    record_times: Array,
    loss_out: Array,
) -> tuple[int, int]:
    """Continue from step `start` (1 - y = unlearned, V = variance); returns (status, number of records).

    s, power: source nodes; x, weights: trace nodes, decreasing. The loss at record_times (increasing, beyond start)
    goes to loss_out.
    """
    n_trace = x.shape[0]
    mean_rate = np.empty(s.shape[0])
    for k in range(s.shape[0]):
        mean_rate[k] = -np.log(max(abs(1.0 - learning_rate * s[k]), 1e-300))
    kappa, nu, gain = np.empty(n_trace), np.empty(n_trace), np.empty(n_trace)
    v = np.zeros((N_POINTS, n_trace))
    for k in range(n_trace):
        factor = (1.0 - learning_rate * x[k]) ** 2
        kappa[k], nu[k] = 1.0 - factor, -np.log(max(factor, 1e-300))
        # v = V/(eta^2 x), v+ = (1 - kappa) v + D
        gain[k] = weights[k] * (learning_rate * x[k]) ** 2
        v[0, k] = variance[k] / (learning_rate**2 * x[k])
    z, exponent = np.empty(n_trace), np.empty(n_trace)
    decay = np.empty((N_POINTS, n_trace))
    small, large = np.zeros((N_POINTS, TERMS)), np.zeros((N_POINTS, DEGREE))
    mean, loss, noise = np.zeros(N_POINTS), np.zeros(N_POINTS), np.zeros(N_POINTS)
    values, coefficients = np.zeros(N_POINTS), np.zeros(N_POINTS)
    t, length, slope, record = start, 0.3 * start, 0.0, 0
    end = record_times[record_times.shape[0] - 1]
    mean[0] = _mean_loss(power, mean_rate, unlearned, 0.0)
    loss[0] = atom + mean[0] + (gain * v[0]).sum()
    while record < record_times.shape[0]:
        length = max(min(length, 1.02 * (end - t)), FEWEST)
        n_large, n_middle, n_small = 0, 0, 0
        for k in range(n_trace):
            z[k], exponent[k] = kappa[k] * length, nu[k] * length
            # eta x beyond 1 makes the rate fall again with x, but a panel is long for all of these
            if n_large == k and (z[k] > LARGE or learning_rate * x[k] > 1.0):
                n_large = k + 1
            if z[k] > SMALL:
                n_middle = k + 1
            if z[k] > SMALLEST:
                n_small = k + 1
        n_middle = max(n_middle, n_large)
        kinds = (n_large, n_middle, max(n_small, n_middle))
        decay_factors(exponent, n_large, points, decay)
        # Loss from the noise of the last steps, per unit of D: its part of the fixed point is solved at once.
        feedback = 0.0
        for k in range(n_large):
            feedback += inverse_batch * gain[k] / kappa[k]
        noise[0] = inverse_batch * (loss[0] + noise_power)
        for i in range(1, N_POINTS):
            steps = 0.5 * (points[i] + 1.0) * length
            mean[i] = _mean_loss(power, mean_rate, unlearned, t - start + steps)
            noise[i] = noise[0] * (1.0 + steps / t) ** slope
        change = np.inf
        for _ in range(ITERATIONS):
            for i in range(N_POINTS):
                values[i] = noise[i] * length
            coefficients[:] = np.dot(to_monomials, values)
            all_series(coefficients, 2.0 / length, True, points, small, large)
            deviations(z, kinds, points, small, large, decay, v)
            change = 0.0
            for i in range(1, N_POINTS):
                loss[i] = atom + mean[i] + (gain * v[i]).sum()
                residual = inverse_batch * (loss[i] + noise_power) - noise[i]
                if noise[i] > 0.0:
                    change = max(change, abs(residual / noise[i]))
                noise[i] += residual / max(1.0 - feedback, 0.02)
            if change < 0.1 * tolerance or not change < 1e6:
                break
        error = tail(loss)
        if not error < tolerance or not change < tolerance:
            if length <= FEWEST or not change < 1e6:
                return UNRESOLVED, record
            length *= 0.5
            continue
        for i in range(N_POINTS):
            if not loss[i] <= threshold:
                return DIVERGED, record
        coefficients[:] = np.dot(to_monomials, loss)
        while record < record_times.shape[0] and record_times[record] <= t + length:
            position = 2.0 * (record_times[record] - t) / length - 1.0
            value = 0.0
            for n in range(N_POINTS - 1, -1, -1):
                value = value * position + coefficients[n]
            loss_out[record] = value
            record += 1
        v[0] = v[DEGREE]
        loss[0] = loss[DEGREE]
        slope = np.log(loss[DEGREE] / loss[DEGREE - 1]) / np.log1p(
            0.5 * (points[DEGREE] - points[DEGREE - 1]) * length / t
        )
        t += length
        growth = min(2.0, 0.9 * (tolerance / error) ** (1.0 / DEGREE)) if error > 0.0 else 2.0
        length = min(length * growth, GROWTH * t)
    return OK, record
