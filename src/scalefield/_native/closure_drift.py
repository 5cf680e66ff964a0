"""The balanced closure of SGD, order 0, in logarithmic time (theory section 7b).

After many steps what a step changes is small of order 1/t, and the steps (1 - y, V, q)+ - (1 - y, V, q) = F integrate
as the differential equation d/dt = F: slow components follow it to relative order 1/t, fast ones rest in the same
equilibrium. It is stiff, so it is solved by the three-stage Radau IIA method (order 5). Components are linear given
a, b and D, so that these nine numbers are a step's only unknowns: for each component with rate lambda

    W_i = W(0) + h sum_j A_ij (source_j - lambda_j W_j) ,    i, j = 1..3 .
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scalefield._native.jit import float64, int64, jit, matrix, status_and_step, vector, void

__all__ = ["DIVERGED", "OK", "UNRESOLVED", "march_balanced"]

Array = NDArray[np.float64]

OK, DIVERGED, UNRESOLVED = 0, 1, 2

_ROOT = np.sqrt(6.0)
# The method's matrix and nodes (Hairer & Wanner, Solving Ordinary Differential Equations II, IV.5).
_A: Array = np.array(
    [
        [(88.0 - 7.0 * _ROOT) / 360.0, (296.0 - 169.0 * _ROOT) / 1800.0, (-2.0 + 3.0 * _ROOT) / 225.0],
        [(296.0 + 169.0 * _ROOT) / 1800.0, (88.0 + 7.0 * _ROOT) / 360.0, (-2.0 - 3.0 * _ROOT) / 225.0],
        [(16.0 - _ROOT) / 36.0, (16.0 + _ROOT) / 36.0, 1.0 / 9.0],
    ]
)
_C: Array = np.array([(4.0 - _ROOT) / 10.0, (4.0 + _ROOT) / 10.0, 1.0])

# Largest step relative to t, and of numerical derivatives relative to the unknowns.
GROWTH = 0.5
DIFFERENCE = 1e-6
NEWTON = 12
# Numbers of a stage: a, b, D.
UNKNOWNS = 9


@jit(void(vector, vector, float64, float64, vector), inline=True)
def _stages(rate: Array, source: Array, start: float, h: float, stage_out: Array) -> None:
    """Solve W_i + h sum_j A_ij rate_j W_j = start + h sum_j A_ij source_j for the three stages."""
    r0, r1, r2 = h * rate[0], h * rate[1], h * rate[2]
    m00, m01, m02 = 1.0 + _A[0, 0] * r0, _A[0, 1] * r1, _A[0, 2] * r2
    m10, m11, m12 = _A[1, 0] * r0, 1.0 + _A[1, 1] * r1, _A[1, 2] * r2
    m20, m21, m22 = _A[2, 0] * r0, _A[2, 1] * r1, 1.0 + _A[2, 2] * r2
    b0 = start + h * (_A[0, 0] * source[0] + _A[0, 1] * source[1] + _A[0, 2] * source[2])
    b1 = start + h * (_A[1, 0] * source[0] + _A[1, 1] * source[1] + _A[1, 2] * source[2])
    b2 = start + h * (_A[2, 0] * source[0] + _A[2, 1] * source[1] + _A[2, 2] * source[2])
    c00, c01, c02 = m11 * m22 - m12 * m21, m12 * m20 - m10 * m22, m10 * m21 - m11 * m20
    inverse = 1.0 / (m00 * c00 + m01 * c01 + m02 * c02)
    stage_out[0] = inverse * (b0 * c00 + b1 * (m02 * m21 - m01 * m22) + b2 * (m01 * m12 - m02 * m11))
    stage_out[1] = inverse * (b0 * c01 + b1 * (m00 * m22 - m02 * m20) + b2 * (m02 * m10 - m00 * m12))
    stage_out[2] = inverse * (b0 * c02 + b1 * (m01 * m20 - m00 * m21) + b2 * (m00 * m11 - m01 * m10))


@jit(
    void(
        *[vector] * 4,  # s .. weights
        *[float64] * 6,  # learning_rate .. trace
        *[vector] * 2,  # unlearned, variance
        *[float64] * 3,  # q, time, h
        vector,  # unknowns
        *[vector] * 5,  # residual_out .. end_out
    )
)
def _residual(
    s: Array,
    power: Array,
    x: Array,
    weights: Array,
    learning_rate: float,
    gamma: float,
    inverse_batch: float,
    noise_power: float,
    atom: float,
    trace: float,
    unlearned: Array,
    variance: Array,
    q: float,
    time: float,
    h: float,
    unknowns: Array,
    residual_out: Array,
    loss_out: Array,
    unlearned_out: Array,
    variance_out: Array,
    end_out: Array,
) -> None:
    """What a, b and D of the stages should be less what they are; the state at the step's end is the last stage's."""
    rate, source, stage = np.zeros(3), np.zeros(3), np.zeros(3)
    square, product, weighted = np.zeros(3), np.zeros(3), np.zeros(3)
    noise, second = np.zeros(3), np.zeros(3)
    for k in range(s.shape[0]):
        for j in range(3):
            b = learning_rate * unknowns[3 * j + 1]
            # (1-y)+ - (1-y) = -(eta a s - eta b) (1-y) - eta b
            rate[j] = learning_rate * unknowns[3 * j] * s[k] - b
            source[j] = -b
        _stages(rate, source, unlearned[k], h, stage)
        unlearned_out[k] = stage[2]
        for j in range(3):
            w = stage[j]
            square[j] += power[k] * w * w
            product[j] += power[k] * w * (1.0 - w)
            weighted[j] += power[k] * s[k] * w * w
    for k in range(x.shape[0]):
        for j in range(3):
            step = learning_rate * unknowns[3 * j] * x[k]
            kept = 1.0 + learning_rate * unknowns[3 * j + 1] - step
            # V+ - V = ((1 + eta b - eta a x)^2 - 1) V + eta^2 a^2 x D
            rate[j] = 1.0 - kept * kept
            source[j] = step * step / x[k] * unknowns[3 * j + 2]
        _stages(rate, source, variance[k], h, stage)
        variance_out[k] = stage[2]
        for j in range(3):
            noise[j] += weights[k] * x[k] * stage[j]
            second[j] += weights[k] * x[k] * x[k] * stage[j]
    growth, effective = np.zeros(3), np.zeros(3)
    for j in range(3):
        # q+ - q = 2 eta c + eta^2 [ mu(s (1-y)^2) + rho(x^2 V) + rho(x) D + gamma c^2/(1 + gamma q) ]
        c = product[j] - noise[j]
        spread = weighted[j] + second[j] + trace * unknowns[3 * j + 2] + unknowns[3 * j + 1] * c
        growth[j] = learning_rate * (2.0 * c + learning_rate * spread)
    for i in range(3):
        q_i = q + h * (_A[i, 0] * growth[0] + _A[i, 1] * growth[1] + _A[i, 2] * growth[2])
        effective[i] = learning_rate * (1.0 + gamma * q_i)
        c = product[i] - noise[i]
        loss = square[i] + atom + noise[i]
        residual_out[3 * i] = 1.0 + gamma * q_i + learning_rate * gamma * c - unknowns[3 * i]
        residual_out[3 * i + 1] = gamma * c / (1.0 + gamma * q_i) - unknowns[3 * i + 1]
        residual_out[3 * i + 2] = inverse_batch * (loss + noise_power) - unknowns[3 * i + 2]
        loss_out[i] = loss
        end_out[0] = q_i
    end_out[1] = time + h * (_A[2, 0] * effective[0] + _A[2, 1] * effective[1] + _A[2, 2] * effective[2])
    end_out[2] = loss_out[2]


@jit(
    int64(
        *[vector] * 4,
        *[float64] * 6,
        *[vector] * 2,
        *[float64] * 3,
        vector,  # unknowns
        *[vector] * 3,  # unlearned_out, variance_out, end_out
    )
)
def _step(
    s: Array,
    power: Array,
    x: Array,
    weights: Array,
    learning_rate: float,
    gamma: float,
    inverse_batch: float,
    noise_power: float,
    atom: float,
    trace: float,
    unlearned: Array,
    variance: Array,
    q: float,
    time: float,
    h: float,
    unknowns: Array,
    unlearned_out: Array,
    variance_out: Array,
    end_out: Array,
) -> int:
    """One step of length h by Newton's method from `unknowns`, which become the solution; 0 if it converged."""
    residual, moved, trial = np.zeros(UNKNOWNS), np.zeros(UNKNOWNS), np.zeros(UNKNOWNS)
    scale = np.zeros(UNKNOWNS)
    loss = np.zeros(3)
    jacobian = np.zeros((UNKNOWNS, UNKNOWNS))
    inverse = np.zeros((UNKNOWNS, UNKNOWNS))
    last = np.inf
    for iteration in range(NEWTON):
        _residual(s, power, x, weights, learning_rate, gamma, inverse_batch, noise_power, atom, trace, unlearned,
                  variance, q, time, h, unknowns, residual, loss, unlearned_out, variance_out, end_out)  # fmt: skip
        for i in range(3):
            # b counts by eta b h, which says how much components grow over the step
            scale[3 * i], scale[3 * i + 1] = 1.0 + abs(unknowns[3 * i]), min(1.0, 1.0 / (learning_rate * h))
            scale[3 * i + 2] = inverse_batch * (abs(loss[i]) + noise_power) + 1e-300
        size = np.max(np.abs(residual / scale))
        if not np.isfinite(size):
            return 1
        if size < 1e-12 or (iteration > 3 and size < 1e-10 and size > 0.3 * last):
            return 0
        if iteration == 0 or size > 0.05 * last:
            for n in range(UNKNOWNS):
                trial[:] = unknowns
                trial[n] += DIFFERENCE * scale[n]
                _residual(s, power, x, weights, learning_rate, gamma, inverse_batch, noise_power, atom, trace,
                          unlearned, variance, q, time, h, trial, moved, loss, unlearned_out, variance_out,
                          end_out)  # fmt: skip
                jacobian[:, n] = (moved - residual) / (DIFFERENCE * scale[n])
            if not np.isfinite(jacobian).all():
                return 1
            inverse[:, :] = np.linalg.pinv(jacobian)
        unknowns -= np.dot(inverse, residual)
        last = size
    return 1


@jit(
    status_and_step(
        *[vector] * 4,  # s .. weights
        *[float64] * 7,  # learning_rate .. tolerance
        *[vector] * 3,  # unlearned, variance, scalars
        vector,  # record_times
        matrix,  # records_out
    )
)
def march_balanced(
    s: Array,
    power: Array,
    x: Array,
    weights: Array,
    learning_rate: float,
    gamma: float,
    inverse_batch: float,
    noise_power: float,
    atom: float,
    threshold: float,
    tolerance: float,
    unlearned: Array,
    variance: Array,
    scalars: Array,
    record_times: Array,
    records_out: Array,
) -> tuple[int, int]:
    """Continue from step scalars[0] with q = scalars[1] and effective time scalars[2]; returns (status, n_records).

    s, power: source nodes; x, weights: trace nodes; unlearned is 1 - y, variance is V. Rows of records_out: loss, q,
    effective time at record_times (increasing, beyond the start), where steps end.
    """
    trace = (weights * x).sum()
    t, q, time = scalars[0], scalars[1], scalars[2]
    w, v = unlearned.copy(), variance.copy()
    whole_w, whole_v = np.empty_like(w), np.empty_like(v)
    half_w, half_v, end_w, end_v = np.empty_like(w), np.empty_like(v), np.empty_like(w), np.empty_like(v)
    whole, half, end = np.zeros(3), np.zeros(3), np.zeros(3)
    c = (power * w * (1.0 - w)).sum() - (weights * x * v).sum()
    loss = (power * w * w).sum() + atom + (weights * x * v).sum()
    unknowns, trial = np.zeros(UNKNOWNS), np.zeros(UNKNOWNS)
    for j in range(3):
        unknowns[3 * j] = 1.0 + gamma * q + learning_rate * gamma * c
        unknowns[3 * j + 1] = gamma * c / (1.0 + gamma * q)
        unknowns[3 * j + 2] = inverse_batch * (loss + noise_power)
    h, record = 0.02 * t, 0
    while record < record_times.shape[0]:
        remaining = record_times[record] - t
        full = h < remaining
        step = h if full else remaining
        if step > 0.6 * remaining and full:
            step = 0.5 * remaining
        # One step, and two of half the length.
        trial[:] = unknowns
        failed = _step(s, power, x, weights, learning_rate, gamma, inverse_batch, noise_power, atom, trace, w, v, q,
                       time, step, trial, whole_w, whole_v, whole)  # fmt: skip
        if failed == 0:
            failed = _step(s, power, x, weights, learning_rate, gamma, inverse_batch, noise_power, atom, trace, w, v,
                           q, time, 0.5 * step, trial, half_w, half_v, half)  # fmt: skip
        if failed == 0:
            failed = _step(s, power, x, weights, learning_rate, gamma, inverse_batch, noise_power, atom, trace,
                           half_w, half_v, half[0], half[1], 0.5 * step, trial, end_w, end_v, end)  # fmt: skip
        error = np.inf
        if failed == 0:
            # The method is of order 5: two half steps leave 1/32 of what one step does.
            error = max(abs(end[2] - whole[2]) / end[2], abs(end[0] - whole[0]) / (abs(end[0]) + 1e-300)) / 31.0
        if not error <= tolerance:
            h = step * (max(0.2, 0.9 * (tolerance / error) ** (1.0 / 6.0)) if np.isfinite(error) else 0.25)
            if h < 1e-6 * t:
                return UNRESOLVED, record
            continue
        w[:], v[:] = end_w, end_v
        q, time, loss = end[0], end[1], end[2]
        unknowns[:] = trial
        t = t + step if full else record_times[record]
        if not loss <= threshold:
            return DIVERGED, record
        if not full:
            records_out[0, record], records_out[1, record], records_out[2, record] = loss, q, time
            record += 1
        growth = min(3.0, 0.9 * (tolerance / max(error, 1e-300)) ** (1.0 / 6.0))
        h = min(max(h, step) if not full and growth > 1.0 else step, GROWTH * t) * (
            growth if full else max(growth, 1.0)
        )
        h = min(h, GROWTH * t)
    return OK, record
