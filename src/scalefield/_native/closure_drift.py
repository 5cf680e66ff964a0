"""The balanced closure of SGD, order 0, in logarithmic time (theory section 7b).

After many steps what a step changes is small of order 1/t, and the steps (1 - y, V, q)+ - (1 - y, V, q) = F integrate
as the differential equation d/dt = F: slow components follow it to relative order 1/t, fast ones rest in the same
equilibrium. It is stiff, so it is solved by the three-stage Radau IIA method (order 5). Components are linear given
q, b and D, with a = (1 + gamma q) (1 + eta b), so that these nine numbers are a step's only unknowns: for each
component with rate lambda

    W_i = W(0) + h sum_j A_ij (source_j - lambda_j W_j) ,    i, j = 1..3 .

At rest steps grow with t, and in q = q(0) + h sum_j A_ij F_j rounding errors of F grow with them. Newton's method does
not mind, since its Jacobian grows alike: so q is one of the unknowns and read off there, and the equations count as
solved when Newton's corrections are small, not what is left of the equations.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scalefield._native.closure_steps import Run, closure_run
from scalefield._native.jit import float64, int64, jit, matrix, three_counts, vector, void

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
# Newton's method: most iterations, and corrections, relative to the unknowns, small enough to end it; the second if
# rounding keeps them from getting smaller.
NEWTON = 12
SOLVED = 1e-12
NEARLY_SOLVED = 1e-10
# Numbers of the stages: q, b, D of each.
UNKNOWNS = 9
_TINY = 1e-300


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


@jit(int64(matrix, vector))
def _solve(matrix_out: Array, vector_out: Array) -> int:
    """Solve matrix x = vector by elimination, x in place of the vector, the matrix spent; 1 if it is singular.

    Rows are scaled to their largest entry before pivots are chosen.
    """
    n = vector_out.shape[0]
    for i in range(n):
        largest = np.max(np.abs(matrix_out[i]))
        if not 0.0 < largest < np.inf:
            return 1
        matrix_out[i] /= largest
        vector_out[i] /= largest
    for k in range(n):
        pivot = k
        for i in range(k + 1, n):
            if abs(matrix_out[i, k]) > abs(matrix_out[pivot, k]):
                pivot = i
        if matrix_out[pivot, k] == 0.0:
            return 1
        for m in range(k, n):
            matrix_out[k, m], matrix_out[pivot, m] = matrix_out[pivot, m], matrix_out[k, m]
        vector_out[k], vector_out[pivot] = vector_out[pivot], vector_out[k]
        for i in range(k + 1, n):
            factor = matrix_out[i, k] / matrix_out[k, k]
            for m in range(k + 1, n):
                matrix_out[i, m] -= factor * matrix_out[k, m]
            vector_out[i] -= factor * vector_out[k]
    for k in range(n - 1, -1, -1):
        for m in range(k + 1, n):
            vector_out[k] -= matrix_out[k, m] * vector_out[m]
        vector_out[k] /= matrix_out[k, k]
    return 0


@jit(void(closure_run, *[vector] * 2, *[float64] * 3, *[vector] * 6))
def _residual(
    run: Run,
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
    """What q, b and D of the stages should be less what they are; the state at the step's end is the last stage's."""
    (learning_rate, gamma, inverse_batch, noise_power, atom, _threshold,
     eigenvalues, power, gain, noise_eigenvalues, noise_weights, noise_gain) = run  # fmt: skip
    rate, source, stage = np.zeros(3), np.zeros(3), np.zeros(3)
    square, product, weighted = np.zeros(3), np.zeros(3), np.zeros(3)
    noise, second = np.zeros(3), np.zeros(3)
    scale, reach, pull = np.zeros(3), np.zeros(3), np.zeros(3)
    growth, effective, trace = np.zeros(3), np.zeros(3), 0.0
    for j in range(3):
        # eta b ; eta a = eta (1 + gamma q) (1 + eta b)
        scale[j] = 1.0 + gamma * unknowns[3 * j]
        pull[j] = learning_rate * unknowns[3 * j + 1]
        effective[j] = learning_rate * scale[j]
        reach[j] = effective[j] * (1.0 + pull[j])
    for k in range(eigenvalues.shape[0]):
        for j in range(3):
            # (1-y)+ - (1-y) = -(eta a s - eta b) (1-y) - eta b
            rate[j] = reach[j] * eigenvalues[k] - pull[j]
            source[j] = -pull[j]
        _stages(rate, source, unlearned[k], h, stage)
        unlearned_out[k] = stage[2]
        for j in range(3):
            w = stage[j]
            square[j] += power[k] * w * w
            product[j] += power[k] * w * (1.0 - w)
            weighted[j] += gain[k] * w * w
    for k in range(noise_eigenvalues.shape[0]):
        trace += noise_weights[k]
        for j in range(3):
            # V+ - V = ((1 - l)^2 - 1) V + eta^2 a^2 x D ,  l = eta a x - eta b
            lost = reach[j] * noise_eigenvalues[k] - pull[j]
            rate[j] = lost * (2.0 - lost)
            source[j] = reach[j] * reach[j] * noise_eigenvalues[k] * unknowns[3 * j + 2]
        _stages(rate, source, variance[k], h, stage)
        variance_out[k] = stage[2]
        for j in range(3):
            noise[j] += noise_weights[k] * stage[j]
            second[j] += noise_gain[k] * stage[j]
    for j in range(3):
        # q+ - q = 2 eta c + eta^2 [ mu(s (1-y)^2) + rho(x^2 V) + rho(x) D + gamma c^2/(1 + gamma q) ]
        c = product[j] - noise[j]
        spread = weighted[j] + second[j] + trace * unknowns[3 * j + 2] + unknowns[3 * j + 1] * c
        growth[j] = learning_rate * (2.0 * c + learning_rate * spread)
    for i in range(3):
        change = h * (_A[i, 0] * growth[0] + _A[i, 1] * growth[1] + _A[i, 2] * growth[2])
        c = product[i] - noise[i]
        loss_out[i] = square[i] + atom + noise[i]
        residual_out[3 * i] = (q - unknowns[3 * i]) + change
        residual_out[3 * i + 1] = gamma * c / scale[i] - unknowns[3 * i + 1]
        residual_out[3 * i + 2] = inverse_batch * (loss_out[i] + noise_power) - unknowns[3 * i + 2]
    end_out[0] = unknowns[6]
    end_out[1] = time + h * (_A[2, 0] * effective[0] + _A[2, 1] * effective[1] + _A[2, 2] * effective[2])
    end_out[2] = loss_out[2]


@jit(int64(closure_run, *[vector] * 2, *[float64] * 3, *[vector] * 4))
def _step(
    run: Run,
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
    """One step of length h by Newton's method from `unknowns`, which become the solution.

    Returns the number of evaluations of the residual, negative if it did not converge.
    """
    learning_rate, _gamma, inverse_batch, noise_power = run[:4]
    residual, moved, trial = np.zeros(UNKNOWNS), np.zeros(UNKNOWNS), np.zeros(UNKNOWNS)
    scale, correction, loss = np.zeros(UNKNOWNS), np.zeros(UNKNOWNS), np.zeros(3)
    # Derivatives by the unknowns over their scales.
    jacobian = np.zeros((UNKNOWNS, UNKNOWNS))
    size, last, evaluations = np.inf, np.inf, 0
    for iteration in range(NEWTON):
        _residual(run, unlearned, variance, q, time, h, unknowns, residual, loss, unlearned_out, variance_out, end_out)
        evaluations += 1
        if not np.isfinite(residual).all():
            return -evaluations
        if size < SOLVED or (iteration > 3 and size < NEARLY_SOLVED and size > 0.3 * last):
            return evaluations
        if iteration == 0 or size > 0.05 * last:
            for i in range(3):
                scale[3 * i] = abs(unknowns[3 * i]) + _TINY
                # b counts by eta b h as well, which says how much components grow over the step
                scale[3 * i + 1] = abs(unknowns[3 * i + 1]) + min(1.0, 1.0 / (learning_rate * h))
                # without noise the derivatives by D vanish next to those of D itself, which stays 0
                scale[3 * i + 2] = inverse_batch * (abs(loss[i]) + noise_power) + _TINY
            for n in range(UNKNOWNS):
                trial[:] = unknowns
                trial[n] += DIFFERENCE * scale[n]
                _residual(
                    run, unlearned, variance, q, time, h, trial, moved, loss, unlearned_out, variance_out, end_out
                )
                jacobian[:, n] = (moved - residual) / DIFFERENCE
            evaluations += UNKNOWNS
        correction[:] = residual
        if _solve(jacobian.copy(), correction) != 0:
            return -evaluations
        unknowns -= scale * correction
        last, size = size, np.max(np.abs(correction))
    return -evaluations


@jit(
    three_counts(
        closure_run,
        float64,  # tolerance
        *[vector] * 3,  # unlearned, variance, scalars
        vector,  # record_times
        matrix,  # records_out
    )
)
def march_balanced(
    run: Run,
    tolerance: float,
    unlearned: Array,
    variance: Array,
    scalars: Array,
    record_times: Array,
    records_out: Array,
) -> tuple[int, int, int]:
    """Continue from step scalars[0] with q = scalars[1] and effective time scalars[2].

    Returns (status, number of records, evaluations of the residual, each O(number of nodes)). unlearned is 1 - y,
    variance is V. Rows of records_out: loss, q, effective time at record_times (increasing, beyond the start), where
    steps end.
    """
    _learning_rate, gamma, inverse_batch, noise_power, atom, threshold, _eigenvalues, power = run[:8]
    noise_weights = run[10]
    t, q, time = scalars[0], scalars[1], scalars[2]
    w, v = unlearned.copy(), variance.copy()
    whole_w, whole_v = np.empty_like(w), np.empty_like(v)
    half_w, half_v, end_w, end_v = np.empty_like(w), np.empty_like(v), np.empty_like(w), np.empty_like(v)
    whole, half, end = np.zeros(3), np.zeros(3), np.zeros(3)
    noise = (noise_weights * v).sum()
    loss = (power * w * w).sum() + atom + noise
    unknowns, trial = np.zeros(UNKNOWNS), np.zeros(UNKNOWNS)
    for j in range(3):
        unknowns[3 * j] = q
        unknowns[3 * j + 1] = gamma * ((power * w * (1.0 - w)).sum() - noise) / (1.0 + gamma * q)
        unknowns[3 * j + 2] = inverse_batch * (loss + noise_power)
    h, record, evaluations = 0.02 * t, 0, 0
    while record < record_times.shape[0]:
        remaining = record_times[record] - t
        full = h < remaining
        step = h if full else remaining
        if step > 0.6 * remaining and full:
            step = 0.5 * remaining
        # One step, and two of half the length.
        trial[:] = unknowns
        error = np.inf
        cost = _step(run, w, v, q, time, step, trial, whole_w, whole_v, whole)
        evaluations += abs(cost)
        if cost > 0:
            cost = _step(run, w, v, q, time, 0.5 * step, trial, half_w, half_v, half)
            evaluations += abs(cost)
        if cost > 0:
            cost = _step(run, half_w, half_v, half[0], half[1], 0.5 * step, trial, end_w, end_v, end)
            evaluations += abs(cost)
        if cost > 0:
            # The method is of order 5: two half steps leave 1/32 of what one step does.
            error = max(abs(end[2] - whole[2]) / end[2], abs(end[0] - whole[0]) / (abs(end[0]) + _TINY)) / 31.0
        if not error <= tolerance:
            h = step * (max(0.2, 0.9 * (tolerance / error) ** (1.0 / 6.0)) if np.isfinite(error) else 0.25)
            if h < 1e-6 * t:
                return UNRESOLVED, record, evaluations
            continue
        w[:], v[:] = end_w, end_v
        q, time, loss = end[0], end[1], end[2]
        unknowns[:] = trial
        t = t + step if full else record_times[record]
        if not loss <= threshold:
            return DIVERGED, record, evaluations
        if not full:
            records_out[0, record], records_out[1, record], records_out[2, record] = loss, q, time
            record += 1
        growth = min(3.0, 0.9 * (tolerance / max(error, _TINY)) ** (1.0 / 6.0))
        h = min(max(h, step) if not full and growth > 1.0 else step, GROWTH * t) * (
            growth if full else max(growth, 1.0)
        )
        h = min(h, GROWTH * t)
    return OK, record, evaluations
