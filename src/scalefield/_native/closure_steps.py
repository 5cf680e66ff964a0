r"""Steps of the closure hierarchy of SGD on a spectral measure (theory sections 7b and 7c).

A vector over features is a mean coefficient on the source nodes s_i (masses mu_i, k_i = mu_i s_i) and a noise part
on the trace nodes s'_j (weights rho_j), x = (xbar, xhat), <x, y> = k.(xbar ybar) + rho.Cov(xhat, yhat). With
p = G^T w, v = (1 - s pbar, -s' phat + n) with fresh noise n of variance s' D, D = (L + sigma^2)/B, and the defect of
the balance law E = G^T G - 1 - kappa p p^T, a step is

.. math::
    a = 1 + \gamma q + \eta\gamma c, \qquad \kappa = \frac{\gamma}{1 + \gamma q}, \qquad
    c = \langle p, v \rangle, \qquad z = E v, \qquad S = \langle v, v \rangle + \langle v, z \rangle

    p^+ = p + \eta (a v + \kappa c p + z), \qquad q^+ = q + 2 \eta c + \eta^2 (S + \kappa c^2)

    E^+ = E - \eta^2\gamma v v^T + \eta^2\kappa\kappa^+ S r r^T
          - \eta\kappa^+ (p^+ z^T + z p^{+T}) + \eta^2\kappa^+ z z^T, \qquad r = p + \eta (1 + \gamma q) v.

The last line equals E + kappa p p^T + eta gamma (p v^T + v p^T) + eta^2 gamma^2 q v v^T - kappa^+ p^+ p^{+T}, with
the terms of order eta cancelled on paper: nothing large is subtracted, so rounding errors do not accumulate.

Order 0 sets E = 0. Order 1 keeps E between means, e_ii'; order 2 also between means and noise, E_i(s'_j), for which
the covariance of phat and E_i suffices, since both are linear in the noise. As functions of the mean index, the E_i
are kept in a basis of r functions U_l, orthonormal under k: E_i = sum_l U_l(s_i) F_l.

Both 1 - s pbar and pbar are carried, each accurate to rounding where it is the smaller: the loss keeps its digits
when everything is learned.

Conventions: i counts source nodes, j trace nodes, l functions of the basis. Lengths are multiples of LANES, with
nodes of mass 0 at the end, so that vectorised loops have no remainder.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scalefield._native.jit import float64, int64, int_vector, jit, matrix, status_and_step, tuple_of, vector, void

__all__ = [
    "CURVES",
    "DIVERGED",
    "FIELD_WORK",
    "GROWTH",
    "LANES",
    "LOSS",
    "OK",
    "PV",
    "SCALARS",
    "SOURCE_WORK",
    "VV",
    "ClosureRun",
    "Run",
    "advance_balanced",
    "advance_defect",
    "closure_run",
]

Array = NDArray[np.float64]

# Status of a kernel.
OK = 0
DIVERGED = 1

# Numbers of nodes are multiples of it.
LANES = 8

# What is recorded of a step, one row each.
CURVES = ("loss", "growth", "effective_time")

# Numbers of the state: q, sum_t eta (1 + gamma q), L, <p,v>, <v,v> without its part from fresh noise, <v,Ev>.
GROWTH, TIME, LOSS, PV, VV, VEV = range(6)
SCALARS = 6

# Rows of workspace of `advance_defect`: vectors over source nodes, and over the basis.
SOURCE_WORK = 5
FIELD_WORK = 8

# Sums may be reordered, at the cost of rounding errors that depend on the machine's vector width: a sum cannot be
# vectorised otherwise (measured with AVX-512: steps of order 0 three times slower).
_SUMS = ("reassoc",)


class ClosureRun(NamedTuple):
    """What a run of the closure is of; kernels take `run[:]`, a plain tuple of type `closure_run`.

    Attributes
    ----------
    learning_rate, gamma, inverse_batch, noise_power : float
        eta, gamma, 1/B, sigma^2.
    atom : float
        Mass of the source measure at 0.
    threshold : float
        A loss above it (or nan) is a divergence.
    eigenvalues, power, gain : array, shape (Q_source,)
        s_i, mu_i and k_i = mu_i s_i.
    noise_eigenvalues, noise_weights, noise_gain : array, shape (Q,)
        s'_j, rho_j s'_j and rho_j s'_j^2.
    """

    learning_rate: float
    gamma: float
    inverse_batch: float
    noise_power: float
    atom: float
    threshold: float
    eigenvalues: Array
    power: Array
    gain: Array
    noise_eigenvalues: Array
    noise_weights: Array
    noise_gain: Array


# Fields of ClosureRun in order.
Run = tuple[float, float, float, float, float, float, Array, Array, Array, Array, Array, Array]
closure_run = tuple_of(*[float64] * 6, *[vector] * 6)


@jit(float64(vector), fastmath=_SUMS, inline=True)
def _sum(x: Array) -> float:
    total = 0.0
    for j in range(x.size):
        total += x[j]
    return total


@jit(void(int64, vector, matrix))
def _record(record: int, scalars: Array, records_out: Array) -> None:
    """Keep CURVES of the present step; called where they are asked for only, since steps of order 0 take 70 ns."""
    records_out[0, record] = scalars[LOSS]
    records_out[1, record] = scalars[GROWTH]
    records_out[2, record] = scalars[TIME]


@jit(
    status_and_step(
        *[int64] * 2,  # t_first, t_last
        closure_run,
        *[vector] * 4,  # learned .. scalars
        matrix,  # records
        int_vector,  # record_steps
    ),
    fastmath=_SUMS,
)
def advance_balanced(
    t_first: int,
    t_last: int,
    run: Run,
    learned_out: Array,
    unlearned_out: Array,
    variance_out: Array,
    scalars_out: Array,
    records_out: Array,
    record_steps: NDArray[np.int64],
) -> tuple[int, int]:
    """Take the steps t_first..t_last-1 of order 0, with E = 0 (theory section 7b).

    Parameters
    ----------
    t_first, t_last : int
        Step of the state at the beginning and at the end.
    run : tuple
        Nodes and settings, a `ClosureRun`.
    learned_out, unlearned_out : array, shape (Q_source,)
        State: y_i = s_i pbar_i and 1 - y_i.
    variance_out : array, shape (Q,)
        State: V_j, the variance of phat.
    scalars_out : array, shape (SCALARS,)
        State: q, effective time, and sums.
    records_out : array, shape (len(CURVES), n_records)
        Loss, q and effective time at the steps record_steps, before what these steps change.
    record_steps : array of int64, shape (n_records,)
        Increasing steps in t_first..t_last.

    Returns
    -------
    status, step : int
        OK and t_last; DIVERGED and the step whose loss is beyond the threshold.

    Notes
    -----
    The state at t_last is recorded if asked for, and again by a next call that asks for it.
    """
    (learning_rate, gamma, inverse_batch, noise_power, atom, threshold,
     eigenvalues, power, gain, noise_eigenvalues, noise_weights, noise_gain) = run  # fmt: skip
    trace, record = _sum(noise_weights), 0
    for t in range(t_first, t_last + 1):
        q, loss, pv, vv = scalars_out[GROWTH], scalars_out[LOSS], scalars_out[PV], scalars_out[VV]
        if record < record_steps.size and record_steps[record] == t:
            _record(record, scalars_out, records_out)
            record += 1
        if not loss <= threshold:
            return DIVERGED, t
        if t == t_last:
            break
        # D = (L + sigma^2)/B ; a = 1 + gamma q + eta gamma c ; b = kappa c
        noise = inverse_batch * (loss + noise_power)
        scale = 1.0 + gamma * q
        growth = learning_rate * (gamma * pv / scale)
        rate = learning_rate * (scale + learning_rate * gamma * pv)
        fresh = rate * rate * noise

        loss, pv, vv = atom, 0.0, 0.0
        for i in range(eigenvalues.size):
            # y <- y + eta (b y + a s (1-y))
            change = growth * learned_out[i] + rate * eigenvalues[i] * unlearned_out[i]
            learned = learned_out[i] + change
            unlearned = 1.0 - learned if learned < 0.5 else unlearned_out[i] - change
            learned_out[i] = learned
            unlearned_out[i] = unlearned
            # mu((1-y)^2), mu(y (1-y)), mu(s (1-y)^2)
            part = power[i] * unlearned
            loss += part * unlearned
            pv += part * learned
            vv += gain[i] * unlearned * unlearned
        # rho(s V) and rho(s^2 V)
        first, second = 0.0, 0.0
        for j in range(noise_eigenvalues.size):
            # V <- (1 + eta b - eta a s)^2 V + eta^2 a^2 s D
            factor = 1.0 + growth - rate * noise_eigenvalues[j]
            variance = factor * factor * variance_out[j] + fresh * noise_eigenvalues[j]
            variance_out[j] = variance
            first += noise_weights[j] * variance
            second += noise_gain[j] * variance

        # q <- q + 2 eta c + eta^2 (<v,v> + kappa c^2)
        old_pv = scalars_out[PV]
        square = scalars_out[VV] + trace * noise
        scalars_out[GROWTH] = q + learning_rate * (2.0 * old_pv + learning_rate * square + growth * old_pv)
        scalars_out[TIME] += learning_rate * scale
        scalars_out[LOSS] = loss + first
        scalars_out[PV] = pv - first
        scalars_out[VV] = vv + second
    return OK, t_last


@jit(float64(vector, vector), fastmath=_SUMS)
def _dot(x: Array, y: Array) -> float:
    total = 0.0
    for i in range(x.size):
        total += x[i] * y[i]
    return total


@jit(void(*[float64] * 3, matrix, *[vector] * 6), fastmath=_SUMS)
def _update_defect(
    on_vv: float,
    on_rr: float,
    on_pz: float,
    defect_out: Array,
    v: Array,
    r: Array,
    z: Array,
    p: Array,
    dual: Array,
    product_out: Array,
) -> None:
    """E <- E + on_vv v v^T + on_rr r r^T + on_pz (p z^T + z p^T) between means, and product = E dual, in one pass."""
    for i in range(v.size):
        row = defect_out[i]
        of_v, of_r, of_z, of_p = on_vv * v[i], on_rr * r[i], on_pz * p[i], on_pz * z[i]
        total = 0.0
        for m in range(v.size):
            entry = row[m] + (of_v * v[m] + of_r * r[m]) + (of_z * z[m] + of_p * p[m])
            row[m] = entry
            total += entry * dual[m]
        product_out[i] = total


@jit(void(float64, *[vector] * 4), fastmath=_SUMS)
def _add_two_scaled(scale: float, x: Array, y: Array, x_sum_out: Array, y_sum_out: Array) -> None:
    for j in range(x.size):
        x_sum_out[j] += scale * x[j]
        y_sum_out[j] += scale * y[j]


# In the loops below only one array is written at a time: with more of them, more pairs of arrays could overlap than
# the compiler is willing to check for, and it does not vectorise.


@jit(float64(*[float64] * 7, *[vector] * 10), fastmath=_SUMS)
def _update_cross(
    on_phat: float,
    on_vhat: float,
    on_zhat: float,
    growth: float,
    rate: float,
    learning_rate: float,
    noise: float,
    noise_eigenvalues: Array,
    noise_weights: Array,
    variance: Array,
    zhat_phat: Array,
    zhat_variance: Array,
    drive: Array,
    cross_out: Array,
    b_out: Array,
    b_vhat_out: Array,
    d_out: Array,
) -> float:
    """Covariance of phat with one function at all trace nodes; returns its part of the shift x."""
    n_nodes = noise_eigenvalues.size
    for j in range(n_nodes):
        alpha = on_phat - noise_eigenvalues[j] * on_vhat
        b_out[j] = cross_out[j] + zhat_phat[j] * on_zhat + 0.5 * variance[j] * alpha
    for j in range(n_nodes):
        b_vhat_out[j] = noise_eigenvalues[j] * (0.5 * noise * on_vhat - b_out[j])
    for j in range(n_nodes):
        d_out[j] = drive[j] + 0.5 * zhat_variance[j] * on_zhat
    shift = 0.0
    for j in range(n_nodes):
        s = noise_eigenvalues[j]
        alpha = on_phat - s * on_vhat
        # Cov(phat+, F+) = (1 + eta kappa c - eta a s) Cov(phat, F+) + eta Cov(zhat, F+) + eta a s D nu
        cross = (
            (1.0 + growth - rate * s) * (cross_out[j] + zhat_phat[j] * on_zhat + variance[j] * alpha)
            + learning_rate * (drive[j] + zhat_phat[j] * alpha + zhat_variance[j] * on_zhat)
            + rate * noise * s * on_vhat
        )
        cross_out[j] = cross
        # x = -rho(s' Cov(F, phat))
        shift -= noise_weights[j] * cross
    return shift


@jit(void(matrix, matrix, matrix, matrix, vector, vector, vector, vector, matrix), fastmath=_SUMS)
def _update_covariance(
    covariance_out: Array,
    b: Array,
    b_vhat: Array,
    d: Array,
    on_phat: Array,
    on_vhat: Array,
    on_zhat: Array,
    dual: Array,
    product_out: Array,
) -> None:
    """C <- C + (on_phat b^T + on_vhat b_vhat^T + on_zhat d^T + transposed) at all trace nodes, product = C dual."""
    n_nodes = covariance_out.shape[1]
    product_out[:] = 0.0
    row = 0
    for l in range(dual.size):
        phat_l, vhat_l, zhat_l, dual_l = on_phat[l], on_vhat[l], on_zhat[l], dual[l]
        # The lower triangle: entries m < l stand for two.
        for m in range(l + 1):
            phat_m, vhat_m, zhat_m, dual_m = on_phat[m], on_vhat[m], on_zhat[m], dual[m]
            # Indices in place of row views, whose reference counts cost more than the loop.
            for j in range(n_nodes):
                covariance_out[row, j] += (
                    (phat_l * b[m, j] + phat_m * b[l, j])
                    + (vhat_l * b_vhat[m, j] + vhat_m * b_vhat[l, j])
                    + (zhat_l * d[m, j] + zhat_m * d[l, j])
                )
            for j in range(n_nodes):
                product_out[l, j] += dual_m * covariance_out[row, j]
            if m < l:
                for j in range(n_nodes):
                    product_out[m, j] += dual_l * covariance_out[row, j]
            row += 1


@jit(
    status_and_step(
        *[int64] * 2,  # t_first, t_last
        closure_run,
        *[matrix] * 2,  # basis, dual_basis
        *[vector] * 3,  # p, v, z
        matrix,  # defect
        vector,  # variance
        *[matrix] * 3,  # cross .. covariance
        vector,  # scalars
        *[matrix] * 3,  # work, field_work, noise_work
        matrix,  # records
        int_vector,  # record_steps
    ),
    fastmath=_SUMS,
)
def advance_defect(
    t_first: int,
    t_last: int,
    run: Run,
    basis: Array,
    dual_basis: Array,
    p_out: Array,
    v_out: Array,
    z_out: Array,
    defect_out: Array,
    variance_out: Array,
    cross_out: Array,
    drive_out: Array,
    covariance_out: Array,
    scalars_out: Array,
    work_out: Array,
    field_work_out: Array,
    noise_work_out: Array,
    records_out: Array,
    record_steps: NDArray[np.int64],
) -> tuple[int, int]:
    """Take the steps t_first..t_last-1 of order 1 (an empty basis) or order 2 (theory section 7c).

    Parameters
    ----------
    t_first, t_last : int
        Step of the state at the beginning and at the end.
    run : tuple
        Nodes and settings, a `ClosureRun`.
    basis, dual_basis : array, shape (r, Q_source)
        U_l(s_i), with sum_i k_i U_l U_m = delta_lm, and k_i U_l(s_i).
    p_out, v_out, z_out : array, shape (Q_source,)
        State: pbar, 1 - s pbar, (E v)bar.
    defect_out : array, shape (Q_source, Q_source)
        State: E between means.
    variance_out : array, shape (Q,)
        State: V_j, the variance of phat.
    cross_out : array, shape (r, Q)
        State: h, the covariance of phat with F_l.
    drive_out : array, shape (r, Q)
        State: g, that of zhat = sum_l w_l F_l, w = dual_basis . vbar, with F_l.
    covariance_out : array, shape (r (r + 1)/2, Q)
        State: C, that of F_l with F_m; row l (l + 1)/2 + m for m <= l.
    scalars_out : array, shape (SCALARS,)
        State: q, effective time, and sums.
    work_out : array, shape (SOURCE_WORK, Q_source)
        Workspace.
    field_work_out : array, shape (FIELD_WORK, r)
        Workspace.
    noise_work_out : array, shape (2 + 3 r, Q)
        Workspace.
    records_out : array, shape (len(CURVES), n_records)
        Loss, q and effective time at the steps record_steps.
    record_steps : array of int64, shape (n_records,)
        Increasing steps in t_first..t_last.

    Returns
    -------
    status, step : int
        OK and t_last; DIVERGED and the step whose loss is beyond the threshold.

    Notes
    -----
    O(Q_source^2 + Q r^2) a step: each block of E is read and written once.
    """
    n_fields = basis.shape[0]
    old_v, r, middle_p, dual, product = work_out[0], work_out[1], work_out[2], work_out[3], work_out[4]
    w, field_p, field_z = field_work_out[0], field_work_out[1], field_work_out[2]
    on_phat, on_vhat, on_zhat = field_work_out[3], field_work_out[4], field_work_out[5]
    new_w, shift = field_work_out[6], field_work_out[7]
    zhat_phat, zhat_variance = noise_work_out[0], noise_work_out[1]
    b, b_vhat, d = (
        noise_work_out[2 : 2 + n_fields],
        noise_work_out[2 + n_fields : 2 + 2 * n_fields],
        noise_work_out[2 + 2 * n_fields : 2 + 3 * n_fields],
    )
    (learning_rate, gamma, inverse_batch, noise_power, atom, threshold,
     eigenvalues, power, gain, noise_eigenvalues, noise_weights, noise_gain) = run  # fmt: skip
    trace, record = _sum(noise_weights), 0
    for t in range(t_first, t_last + 1):
        q, loss, pv, vv = scalars_out[GROWTH], scalars_out[LOSS], scalars_out[PV], scalars_out[VV]
        if record < record_steps.size and record_steps[record] == t:
            _record(record, scalars_out, records_out)
            record += 1
        if not loss <= threshold:
            return DIVERGED, t
        if t == t_last:
            break
        # D = (L + sigma^2)/B ; a = 1 + gamma q + eta gamma c
        noise = inverse_batch * (loss + noise_power)
        scale = 1.0 + gamma * q
        kappa = gamma / scale
        growth = learning_rate * kappa * pv
        rate = learning_rate * (scale + learning_rate * gamma * pv)
        # S = <v,v> + <v,Ev> ; q+ = q + 2 eta c + eta^2 (S + kappa c^2)
        square = vv + trace * noise + scalars_out[VEV]
        new_q = q + learning_rate * (2.0 * pv + learning_rate * square + growth * pv)
        # kappa+ ; coefficients of v v^T, r r^T and p+ z^T in E+ - E
        new_kappa = gamma / (1.0 + gamma * new_q)
        on_vv = -learning_rate * learning_rate * gamma
        on_rr = learning_rate * learning_rate * kappa * new_kappa * square
        on_pz = -learning_rate * new_kappa
        reach = learning_rate * scale

        for l in range(n_fields):
            w[l] = _dot(dual_basis[l], v_out)
            field_p[l] = _dot(dual_basis[l], p_out)
            field_z[l] = _dot(dual_basis[l], z_out)
        for l in range(n_fields):
            # E_i+ = E_i + (eta^2 kappa kappa+ S r_i - eta kappa+ (1 + eta kappa c) z_i) phat
            #            + (-eta^2 gamma v_i + eta^2 kappa kappa+ S eta (1 + gamma q) r_i - eta^2 kappa+ a z_i) vhat
            #            - eta kappa+ p+_i zhat
            field_r = field_p[l] + reach * w[l]
            on_phat[l] = on_rr * field_r + on_pz * (1.0 + growth) * field_z[l]
            on_vhat[l] = on_vv * w[l] + on_rr * reach * field_r + on_pz * rate * field_z[l]
            on_zhat[l] = on_pz * (field_p[l] + rate * w[l] + growth * field_p[l] + learning_rate * field_z[l])

        loss, pv, vv = atom, 0.0, 0.0
        for i in range(eigenvalues.size):
            # p <- p + eta (a v + kappa c p + z)
            change = rate * v_out[i] + growth * p_out[i] + learning_rate * z_out[i]
            new_p = p_out[i] + change
            learned = eigenvalues[i] * new_p
            new_v = 1.0 - learned if learned < 0.5 else v_out[i] - eigenvalues[i] * change
            # r = p + eta (1 + gamma q) v ; p+ z^T + z p+^T - eta z z^T = (p+ - eta z/2) z^T + z (p+ - eta z/2)^T
            r[i] = p_out[i] + reach * v_out[i]
            middle_p[i] = new_p - 0.5 * learning_rate * z_out[i]
            old_v[i] = v_out[i]
            p_out[i] = new_p
            v_out[i] = new_v
            dual[i] = gain[i] * new_v
            loss += power[i] * new_v * new_v
            pv += gain[i] * new_p * new_v
            vv += gain[i] * new_v * new_v
        _update_defect(on_vv, on_rr, on_pz, defect_out, old_v, r, z_out, middle_p, dual, product)

        for l in range(n_fields):
            new_w[l] = _dot(basis[l], dual)
        # Var(zhat) and Cov(phat, zhat), zhat = w . F
        for j in range(noise_eigenvalues.size):
            zhat_variance[j] = 0.0
            zhat_phat[j] = 0.0
        for l in range(n_fields):
            _add_two_scaled(w[l], drive_out[l], cross_out[l], zhat_variance, zhat_phat)
        for l in range(n_fields):
            # F+ = F + alpha phat + zeta zhat + nu n, alpha = on_phat - s on_vhat, zeta = on_zhat, nu = on_vhat, so that
            # C+ = C + alpha b^T + zeta d^T + (s D/2) nu nu^T + transposed, b = h + V alpha/2 + Cov(phat, zhat) zeta,
            # d = g + Var(zhat) zeta/2 ; h+ = Cov(phat+, F+)
            shift[l] = _update_cross(
                on_phat[l],
                on_vhat[l],
                on_zhat[l],
                growth,
                rate,
                learning_rate,
                noise,
                noise_eigenvalues,
                noise_weights,
                variance_out,
                zhat_phat,
                zhat_variance,
                drive_out[l],
                cross_out[l],
                b[l],
                b_vhat[l],
                d[l],
            )
        _update_covariance(covariance_out, b, b_vhat, d, on_phat, on_vhat, on_zhat, new_w, drive_out)
        # rho(s V) and rho(s^2 V)
        first, second = 0.0, 0.0
        for j in range(noise_eigenvalues.size):
            # phat+ = (1 + eta kappa c - eta a s) phat + eta zhat + eta a n
            factor = 1.0 + growth - rate * noise_eigenvalues[j]
            variance = (
                factor * factor * variance_out[j]
                + learning_rate * (2.0 * factor * zhat_phat[j] + learning_rate * zhat_variance[j])
                + rate * rate * noise * noise_eigenvalues[j]
            )
            variance_out[j] = variance
            first += noise_weights[j] * variance
            second += noise_gain[j] * variance

        # (Ev)bar = e (k vbar) + x ; <v,Ev> = (k vbar) . (e (k vbar) + 2 x)
        vev = 0.0
        for i in range(eigenvalues.size):
            z_out[i] = product[i]
        for l in range(n_fields):
            for i in range(eigenvalues.size):
                z_out[i] += basis[l, i] * shift[l]
        for i in range(eigenvalues.size):
            vev += dual[i] * (2.0 * z_out[i] - product[i])
        scalars_out[GROWTH] = new_q
        scalars_out[TIME] += reach
        scalars_out[LOSS] = loss + first
        scalars_out[PV] = pv - first
        scalars_out[VV] = vv + second
        scalars_out[VEV] = vev
    return OK, t_last
