"""Gradient flow of the balanced model, by panels in effective time (theory section 7).

With the effective time u, du = a dtau, and g = a^{-1/2}, every spectral component is driven by one slow function,

    r_s' = s (g - r_s) ,    y_s = r_s/g ,    a = 1 + gamma q ,    q = mu(r_s^2/s) ,

and the deviation d_s = g - r_s obeys d' = g' - s d: `causal_panels` solves either for a polynomial g, and g at the
points of a panel is found by fixed-point iteration. Components of which much is learned by the start of a panel,
s u > 1, are kept as d, the others as r: each is a sum of terms that do not cancel, so that y and 1 - y have all their
digits, and errors of one panel die out with the components they fall on.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scalefield._native.causal_panels import (
    DEGREE,
    N_POINTS,
    NOTHING,
    SHORT,
    SMALLEST,
    TERMS,
    apply_series,
    count_kinds,
    count_rates,
    decay_factors,
    deviation,
    interval_series,
    panel_series,
    ray_decay_factors,
    ray_deviation,
    ray_response,
    ray_surplus,
    response,
    response_series,
    surplus,
    tail,
    tail_size,
)
from scalefield._native.jit import (
    complex_matrix,
    complex_vector,
    float64,
    int64,
    int_vector,
    jit,
    matrix,
    status_and_step,
    three_counts,
    vector,
    void,
)

__all__ = ["evaluate", "locate", "march_flow"]

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]

# Largest length of a panel relative to its start.
GROWTH = 1.0
ITERATIONS = 60
# What rounding errors can do to g at most.
ROUNDING = 1e-9
# Components of which s u is above it when a panel starts count as learned; panels are no longer than u.
LEARNED = 1.0
# Of 1 - y where the loss is: below it the end of training is followed relative to what is left, and below the other one
# without the drive, which is nothing then.
LATE, NEGLIGIBLE = 1e-2, 1e-140
# Places from which a panel's first guess is extrapolated, and the ratio of their u.
HISTORY, SPACING = 8, 2.0


@jit(int64(vector, float64, float64))
def _count_learned(s: Array, u: float, length: float) -> int:
    """Number of rates kept as deviations on the panel that starts at u."""
    return count_rates(s, u if u > 0.0 else length, LEARNED)


@jit(void(float64, int64, int64, vector))
def _turn(g: float, first: int, last: int, x_out: Array) -> None:
    """d = g - r for components first..last-1, which have been learned."""
    for q in range(first, last):
        x_out[q] = g - x_out[q]


@jit(float64(int64, int64, *[vector] * 3, float64, *[vector] * 3), fastmath=("reassoc", "contract", "nsz"))
def _readout(
    n_learned: int,
    n_ray_learned: int,
    power: Array,
    power_real: Array,
    power_imag: Array,
    g: float,
    x: Array,
    ray_real: Array,
    ray_imag: Array,
) -> float:
    """n = mu(y^2/s), y = 1 - d/g or r/g, with power = mu/s on the spectrum and on the ray."""
    total = 0.0
    for q in range(n_learned):
        r = g - x[q]
        total += power[q] * r * r
    for q in range(n_learned, power.shape[0]):
        total += power[q] * x[q] * x[q]
    for q in range(n_ray_learned):
        # Im (power (a + i b)^2)
        a, b = g - ray_real[q], -ray_imag[q]
        total += power_real[q] * (2.0 * a * b) + power_imag[q] * (a * a - b * b)
    for q in range(n_ray_learned, power_real.shape[0]):
        a, b = ray_real[q], ray_imag[q]
        total += power_real[q] * (2.0 * a * b) + power_imag[q] * (a * a - b * b)
    return total / (g * g)


@jit(float64(int64, vector, float64, float64, vector))
def _what_is_left(n_learned: int, mass: Array, atom: float, g: float, x: Array) -> float:
    """Root mean square of 1 - y over the loss: [mu((1 - y)^4)/mu((1 - y)^2)]^{1/2}, the atom's y being 0; no rays."""
    largest = 1.0 if atom > 0.0 else 0.0
    for q in range(mass.shape[0]):
        if mass[q] != 0.0:
            largest = max(largest, abs(x[q] / g if q < n_learned else 1.0 - x[q] / g))
    if largest == 0.0:
        return 0.0
    square, fourth = 0.0, 0.0
    if atom > 0.0:
        square, fourth = atom / largest**2, atom / largest**4
    for q in range(mass.shape[0]):
        relative = (x[q] / g if q < n_learned else 1.0 - x[q] / g) / largest
        square += mass[q] * relative**2
        fourth += mass[q] * relative**4
    if not (square > 0.0 and fourth > 0.0):
        return 1.0
    left: float = largest * np.sqrt(fourth / square)
    return left


@jit(float64(int64, vector, float64, float64, vector, float64, vector, float64))
def _gain(
    n_learned: int, power: Array, gamma: float, g: float, x: Array, g_start: float, x_start: Array, n_start: float
) -> float:
    """g - g_start as the readout says, from differences throughout: right relative to its own size.

    With n = mu(y^2/s) and R = (1 + 4 gamma n)^{1/2}, g^2 = 2/(1 + R),

        n - n' = mu((y - y')(y + y')/s) ,  R - R' = 4 gamma (n - n')/(R + R') ,
        g - g' = -2 (R - R')/[(1 + R)(1 + R')(g + g')] .
    """
    change = 0.0
    for q in range(power.shape[0]):
        here, before = x[q] / g, x_start[q] / g_start
        if q < n_learned:
            change += power[q] * (before - here) * (2.0 - here - before)
        else:
            change += power[q] * (here - before) * (here + before)
    root_start, root = np.sqrt(1.0 + 4.0 * gamma * n_start), np.sqrt(1.0 + 4.0 * gamma * (n_start + change))
    above = 4.0 * gamma * change / (root + root_start)
    g_new = np.sqrt(2.0 / (1.0 + root))
    rise: float = -2.0 * above / ((1.0 + root) * (1.0 + root_start) * (g_new + g_start))
    return rise


@jit(void(vector, int64, three_counts, vector, *[matrix] * 5))
def _components(
    z: Array,
    n_learned: int,
    n: tuple[int, int, int],
    points: Array,
    small: Array,
    large: Array,
    direct: Array,
    decay: Array,
    x_out: Array,
) -> None:
    """Fill x_out[1:] from x_out[0] on a panel: d of learned components, of kinds n, and r of the others."""
    learned, rest = slice(0, n_learned), slice(n_learned, z.shape[0])
    above = np.empty(n_learned)
    surplus(z[learned], n[0], large[0], x_out[0, learned], above)
    n_small = count_rates(z[rest], 1.0, SMALLEST)
    for i in range(1, N_POINTS):
        gap, before, here, factors = 0.5 * (points[i] - points[i - 1]), x_out[i - 1], x_out[i], decay[i]
        deviation(z[learned], n, gap, small[i], large[i], above, before[learned], factors[learned], here[learned])
        response(z[rest], n_small, gap, direct[i], before[rest], factors[rest], here[rest])


@jit(void(vector, int64, three_counts, vector, *[matrix] * 7))
def _ray_components(
    z: Array,
    n_learned: int,
    n: tuple[int, int, int],
    points: Array,
    small: Array,
    large: Array,
    direct: Array,
    decay_real: Array,
    decay_imag: Array,
    real_out: Array,
    imag_out: Array,
) -> None:
    """`_components` for the rates z (1 + i)."""
    learned, rest = slice(0, n_learned), slice(n_learned, z.shape[0])
    above_real, above_imag = np.empty(n_learned), np.empty(n_learned)
    ray_surplus(z[learned], n[0], large[0], real_out[0, learned], imag_out[0, learned], above_real, above_imag)
    n_small = count_rates(z[rest], 1.0, SMALLEST)
    for i in range(1, N_POINTS):
        gap = 0.5 * (points[i] - points[i - 1])
        ray_deviation(
            z[learned], n, gap, small[i], large[i], above_real, above_imag,
            real_out[i - 1, learned], imag_out[i - 1, learned], decay_real[i, learned], decay_imag[i, learned],
            real_out[i, learned], imag_out[i, learned],
        )  # fmt: skip
        ray_response(
            z[rest], n_small, gap, direct[i], real_out[i - 1, rest], imag_out[i - 1, rest],
            decay_real[i, rest], decay_imag[i, rest], real_out[i, rest], imag_out[i, rest],
        )  # fmt: skip


@jit(float64(vector, float64))
def _polynomial(coefficients: Array, x: float) -> float:
    value = 0.0
    for n in range(N_POINTS - 1, -1, -1):
        value = value * x + coefficients[n]
    return value


@jit(void(float64, float64, int64, vector, vector, matrix, vector, vector))
def _extrapolate(
    u: float,
    length: float,
    n_panels: int,
    start: Array,
    lengths: Array,
    coefficients: Array,
    points: Array,
    g: Array,
) -> None:
    """First guess of g[1:] on the panel from u, g[0] being known: log g continued as a polynomial in log u."""
    # log g at u, u/SPACING, u/SPACING^2, ..., back to the first panel
    differences = np.zeros(HISTORY)
    n_known, panel, at = 0, n_panels - 1, u
    while n_known < HISTORY and panel >= 0 and at > 0.5 * lengths[0]:
        while start[panel] > at:
            panel -= 1
        x = 2.0 * (at - start[panel]) / lengths[panel] - 1.0
        differences[n_known] = np.log(_polynomial(coefficients[panel], x))
        n_known += 1
        at /= SPACING
    for k in range(1, n_known):
        for j in range(n_known - 1, k - 1, -1):
            differences[j] = differences[j - 1] - differences[j]
    for i in range(1, N_POINTS):
        # Newton's formula: sum_k (p + k - 1 over k) of the k-th differences, p spacings on
        p = np.log(1.0 + 0.5 * (points[i] + 1.0) * length / u) / np.log(SPACING) if n_known > 0 else 0.0
        binomial, exponent = 1.0, 0.0
        for k in range(1, n_known):
            binomial *= (p + k - 1) / k
            exponent += binomial * differences[k]
        g[i] = g[0] * np.exp(exponent)


@jit(
    status_and_step(
        vector,
        vector,
        complex_vector,
        complex_vector,
        float64,
        float64,
        float64,
        float64,
        float64,
        vector,
        matrix,
        matrix,
        vector,
        vector,
        vector,
        matrix,
    )
)
def march_flow(
    s: Array,
    mass: Array,
    ray_s: ComplexArray,
    ray_weight: ComplexArray,
    atom: float,
    gamma: float,
    end: float,
    first_length: float,
    tolerance: float,
    points: Array,
    to_monomials: Array,
    series: Array,
    start_out: Array,
    length_out: Array,
    tau_out: Array,
    coefficients_out: Array,
) -> tuple[int, int]:
    """Panels from u = 0 until tau = end; returns (status, number of panels), status 1 if that cannot be done.

    Rates s decreasing, rays by decreasing |s|; atom: power that is never learned. Entry j of the outputs: start and
    length of panel j in u, tau at its start, and the coefficients of g in powers of x in [-1, 1].
    """
    n_rates, n_rays = s.shape[0], ray_s.shape[0]
    g = np.ones(N_POINTS)
    coefficients = np.zeros(N_POINTS)
    small = np.zeros((N_POINTS, TERMS))
    large = np.zeros((N_POINTS, DEGREE))
    direct = np.zeros((N_POINTS, SHORT))
    x = np.empty((N_POINTS, n_rates))
    ray_real, ray_imag = np.empty((N_POINTS, n_rays)), np.empty((N_POINTS, n_rays))
    decay = np.empty((N_POINTS, n_rates))
    ray_decay_real, ray_decay_imag = np.empty((N_POINTS, n_rays)), np.empty((N_POINTS, n_rays))
    z, ray_z = np.empty(n_rates), np.empty(n_rays)
    ray_size = np.abs(ray_s)
    power, ray_power = mass / s, ray_weight / ray_s
    power_real, power_imag = ray_power.real.copy(), ray_power.imag.copy()
    n_learned, n_ray_learned = 0, 0
    u, tau, length = 0.0, 0.0, first_length
    panel = 0
    last_error = np.inf
    residual, last_residual = np.zeros(N_POINTS), np.zeros(N_POINTS)
    relaxation = 1.0
    # g - g(start), which is what drives components.
    rise = np.zeros(N_POINTS)
    while tau < end:
        if panel == start_out.shape[0]:
            return 1, panel
        # a tau that is nearly reached needs no whole panel
        remaining = 1.02 * (end - tau) / (g[0] * g[0]) * (1.0 if u == 0.0 else (1.0 + (end - tau) / (u * g[0] * g[0])))
        length = min(length, max(remaining, 1e-3 * length))
        if u == 0.0:
            # r = 0, d = g = 1
            n_learned, n_ray_learned = _count_learned(s, u, length), _count_learned(ray_size, u, length)
            x[0], ray_real[0], ray_imag[0] = 0.0, 0.0, 0.0
            x[0, :n_learned], ray_real[0, :n_ray_learned] = 1.0, 1.0
        # All that can be learned is learned but for little: that, and g, end exponentially. Their digits are those of
        # differences of g, and the accuracy asked for is relative to what is left.
        is_late, is_driven, left = False, gamma > 0.0, 1.0
        if n_rays == 0 and gamma > 0.0 and u > 0.0:
            left = _what_is_left(n_learned, mass, atom, g[0], x[0])
            is_late, is_driven = left < LATE, left > NEGLIGIBLE
        for k in range(n_rates):
            z[k] = s[k] * length
        for k in range(n_rays):
            ray_z[k] = ray_s[k].real * length
        kinds = count_kinds(s[:n_learned], length)
        ray_kinds = count_kinds(ray_size[:n_ray_learned], length)
        decay_factors(z, kinds[0], points, decay)
        ray_decay_factors(ray_z, ray_kinds[0], points, ray_decay_real, ray_decay_imag)
        if is_late:
            g[1:] = g[0]
            n_start = _readout(
                n_learned, n_ray_learned, power, power_real, power_imag, g[0], x[0], ray_real[0], ray_imag[0]
            )
        else:
            _extrapolate(u, length, panel, start_out, length_out, coefficients_out, points, g)
            n_start = 0.0
        for i in range(1, N_POINTS):
            rise[i] = g[i] - g[0]
        for iteration in range(ITERATIONS):
            for n in range(N_POINTS):
                # Relative to the start, so that constants keep all their digits.
                coefficients[n] = g[0] if n == 0 else 0.0
                for i in range(1, N_POINTS):
                    coefficients[n] += to_monomials[n, i] * rise[i]
            apply_series(coefficients, series, small, large, direct)
            _components(z, n_learned, kinds, points, small, large, direct, decay, x)
            _ray_components(
                ray_z, n_ray_learned, ray_kinds, points, small, large, direct, ray_decay_real, ray_decay_imag,
                ray_real, ray_imag,
            )  # fmt: skip
            change = 0.0
            if is_late and is_driven:
                # At the panel's end, where it is least.
                left = _what_is_left(n_learned, mass, atom, g[DEGREE], x[DEGREE])
                for i in range(1, N_POINTS):
                    new = _gain(n_learned, power, gamma, g[i], x[i], g[0], x[0], n_start)
                    residual[i] = new - rise[i]
                    change = max(change, abs(residual[i]) / (g[0] * max(left, NEGLIGIBLE)))
            elif is_driven:
                for i in range(1, N_POINTS):
                    n_i = _readout(
                        n_learned, n_ray_learned, power, power_real, power_imag, g[i], x[i], ray_real[i], ray_imag[i]
                    )
                    # q (1 + gamma q) = n,  g = a^{-1/2}
                    new = np.sqrt(2.0 / (1.0 + np.sqrt(1.0 + 4.0 * gamma * n_i)))
                    residual[i] = new - g[i]
                    change = max(change, abs(residual[i] / g[i]))
            if change < 0.1 * tolerance or not change < 1e3:
                break
            # Aitken's relaxation: the factor that would have removed most of the last residual.
            if iteration > 0:
                above, below = 0.0, 0.0
                for i in range(1, N_POINTS):
                    difference = residual[i] - last_residual[i]
                    above += last_residual[i] * difference
                    below += difference * difference
                relaxation = min(max(-relaxation * above / below, 0.2), 3.0) if below > 0.0 else 1.0
            else:
                relaxation = 1.0
            for i in range(1, N_POINTS):
                g[i] += relaxation * residual[i]
                rise[i] = rise[i] + relaxation * residual[i] if is_late else g[i] - g[0]
                last_residual[i] = residual[i]
        # What the polynomial leaves out.
        error = tail_size(rise) / (g[0] * max(left, NEGLIGIBLE)) if is_late else tail(g)
        converged = change < max(tolerance, ROUNDING)
        # A polynomial of this degree improves fast with shorter panels: what does not is rounding.
        rounding = error < ROUNDING and error > 0.5 * last_error
        if not (converged and (error <= tolerance or rounding)):
            if length < 1e-6 * u or length < 1e-9 * first_length:
                return 1, panel
            last_error = error if converged else np.inf
            length *= max(0.3, min(0.8, 0.9 * (tolerance / error) ** (1.0 / DEGREE))) if converged else 0.5
            continue
        last_error = np.inf
        start_out[panel], length_out[panel], tau_out[panel] = u, length, tau
        coefficients_out[panel] = coefficients
        panel += 1
        # dtau = g^2 du
        total = 0.0
        for n in range(N_POINTS):
            for m in range(n, N_POINTS):
                if (n + m) % 2 == 0:
                    total += (1.0 if n == m else 2.0) * coefficients[n] * coefficients[m] / (n + m + 1)
        tau += total * length
        u += length
        g[0] = g[DEGREE]
        x[0], ray_real[0], ray_imag[0] = x[DEGREE], ray_real[DEGREE], ray_imag[DEGREE]
        last, n_learned = n_learned, _count_learned(s, u, length)
        _turn(g[0], last, n_learned, x[0])
        last, n_ray_learned = n_ray_learned, _count_learned(ray_size, u, length)
        _turn(g[0], last, n_ray_learned, ray_real[0])
        _turn(0.0, last, n_ray_learned, ray_imag[0])
        factor = 3.0 if error == 0.0 else min(3.0, 0.9 * (tolerance / error) ** (1.0 / DEGREE))
        length = min(length * max(factor, 0.3), GROWTH * u)
    return 0, panel


@jit(void(vector, vector, matrix, vector, int_vector, vector))
def locate(
    tau_start: Array, length: Array, coefficients: Array, tau: Array, panel_out: NDArray[np.int64], position_out: Array
) -> None:
    """Panel and position x in [-1, 1] of each tau: the integral of g^2 from the panel's start (dtau = g^2 du)."""
    n_panels = tau_start.shape[0]
    integral = np.zeros(2 * N_POINTS)
    panel = 0
    for j in range(tau.shape[0]):
        while panel + 1 < n_panels and tau_start[panel + 1] <= tau[j]:
            panel += 1
        integral[:] = 0.0
        for n in range(N_POINTS):
            for m in range(N_POINTS):
                integral[n + m + 1] += coefficients[panel, n] * coefficients[panel, m] / (n + m + 1)
        for n in range(1, 2 * N_POINTS):
            integral[0] -= integral[n] * (-1.0 if n % 2 == 1 else 1.0)
        target = 2.0 * (tau[j] - tau_start[panel]) / length[panel]
        # The integrand is positive and smooth: Newton from the middle.
        x = 0.0
        for _ in range(60):
            value, slope = 0.0, 0.0
            for n in range(2 * N_POINTS - 1, -1, -1):
                slope = slope * x + value
                value = value * x + integral[n]
            step = (target - value) / slope
            x = min(max(x + step, -1.0), 1.0)
            if abs(step) < 1e-15:
                break
        panel_out[j], position_out[j] = panel, x


@jit(
    void(
        vector,  # s
        complex_vector,  # ray_s
        *[vector] * 2,  # start, length
        matrix,  # coefficients
        vector,  # points
        matrix,  # series
        int_vector,  # panel_of
        *[vector] * 2,  # position, g_at
        *[matrix] * 2,  # learned_out, unlearned_out
        *[complex_matrix] * 2,  # ray_learned_out, ray_unlearned_out
    )
)
def evaluate(
    s: Array,
    ray_s: ComplexArray,
    start: Array,
    length: Array,
    coefficients: Array,
    points: Array,
    series: Array,
    panel_of: NDArray[np.int64],
    position: Array,
    g_at: Array,
    learned_out: Array,
    unlearned_out: Array,
    ray_learned_out: ComplexArray,
    ray_unlearned_out: ComplexArray,
) -> None:
    """y and 1 - y for each rate (by decreasing size) at positions on panels, these in their order.

    Shape (times, rates); g_at is g at the positions.
    """
    n_rates, n_rays = s.shape[0], ray_s.shape[0]
    small, large = np.zeros((N_POINTS, TERMS)), np.zeros((N_POINTS, DEGREE))
    direct = np.zeros((N_POINTS, SHORT))
    small_here, large_here, direct_here = np.zeros(TERMS), np.zeros(DEGREE), np.zeros(SHORT)
    differences = np.zeros(N_POINTS)
    x, decay = np.zeros((N_POINTS, n_rates)), np.empty((N_POINTS, n_rates))
    real, imag = np.zeros((N_POINTS, n_rays)), np.zeros((N_POINTS, n_rays))
    decay_real, decay_imag = np.empty((N_POINTS, n_rays)), np.empty((N_POINTS, n_rays))
    above, above_real, above_imag = np.empty(n_rates), np.empty(n_rays), np.empty(n_rays)
    # At a position between two points.
    x_here, real_here, imag_here = np.empty(n_rates), np.empty(n_rays), np.empty(n_rays)
    decay_here, decay_real_here, decay_imag_here = np.empty(n_rates), np.empty(n_rays), np.empty(n_rays)
    ray_size, ray_part = np.abs(ray_s), ray_s.real.copy()
    g, j, n_learned, n_ray_learned = 1.0, 0, 0, 0
    for panel in range(length.shape[0]):
        if j == position.shape[0]:
            break
        last, n_learned = n_learned, _count_learned(s, start[panel], length[panel])
        _turn(g, last, n_learned, x[0])
        last, n_ray_learned = n_ray_learned, _count_learned(ray_size, start[panel], length[panel])
        _turn(g, last, n_ray_learned, real[0])
        _turn(0.0, last, n_ray_learned, imag[0])
        learned, rest = slice(0, n_learned), slice(n_learned, n_rates)
        ray_learned, ray_rest = slice(0, n_ray_learned), slice(n_ray_learned, n_rays)

        z, ray_z = s * length[panel], ray_part * length[panel]
        kinds = count_kinds(s[learned], length[panel])
        ray_kinds = count_kinds(ray_size[ray_learned], length[panel])
        n_small, n_ray_small = count_rates(z[rest], 1.0, SMALLEST), count_rates(ray_z[ray_rest], 1.0, SMALLEST)
        apply_series(coefficients[panel], series, small, large, direct)
        decay_factors(z, kinds[0], points, decay)
        _components(z, n_learned, kinds, points, small, large, direct, decay, x)
        ray_decay_factors(ray_z, ray_kinds[0], points, decay_real, decay_imag)
        _ray_components(
            ray_z, n_ray_learned, ray_kinds, points, small, large, direct, decay_real, decay_imag, real, imag
        )
        surplus(z[learned], kinds[0], large[0], x[0, learned], above)
        ray_surplus(
            ray_z[ray_learned], ray_kinds[0], large[0], real[0, ray_learned], imag[0, ray_learned],
            above_real, above_imag,
        )  # fmt: skip
        while j < position.shape[0] and panel_of[j] == panel:
            at = position[j]
            i = 1
            while i < DEGREE and points[i] < at:
                i += 1
            left = points[i - 1]
            from_start, gap = 0.5 * (at - points[0]), 0.5 * (at - left)
            # Of differences alone: a constant would take their digits.
            differences[1:] = coefficients[panel, 1:]
            panel_series(differences, at, 0.0, False, large_here)
            small_here[:] = 0.0
            if gap > 0.0:
                interval_series(differences, left, at, 0.0, False, small_here)
            response_series(small_here, _polynomial(coefficients[panel], left), direct_here)
            for q in range(n_rates):
                exponent = z[q] * (from_start if q < kinds[0] else gap)
                decay_here[q] = np.exp(-exponent) if exponent < NOTHING else 0.0
            for q in range(n_rays):
                exponent = ray_z[q] * (from_start if q < ray_kinds[0] else gap)
                size = np.exp(-exponent) if exponent < NOTHING else 0.0
                decay_real_here[q], decay_imag_here[q] = size * np.cos(exponent), -size * np.sin(exponent)
            deviation(
                z[learned], kinds, gap, small_here, large_here, above, x[i - 1, learned], decay_here[learned],
                x_here[learned],
            )  # fmt: skip
            response(z[rest], n_small, gap, direct_here, x[i - 1, rest], decay_here[rest], x_here[rest])
            ray_deviation(
                ray_z[ray_learned], ray_kinds, gap, small_here, large_here, above_real, above_imag,
                real[i - 1, ray_learned], imag[i - 1, ray_learned],
                decay_real_here[ray_learned], decay_imag_here[ray_learned],
                real_here[ray_learned], imag_here[ray_learned],
            )  # fmt: skip
            ray_response(
                ray_z[ray_rest], n_ray_small, gap, direct_here, real[i - 1, ray_rest], imag[i - 1, ray_rest],
                decay_real_here[ray_rest], decay_imag_here[ray_rest], real_here[ray_rest], imag_here[ray_rest],
            )  # fmt: skip
            inverse = 1.0 / g_at[j]
            for q in range(n_rates):
                here = x_here[q] * inverse
                learned_out[j, q], unlearned_out[j, q] = (1.0 - here, here) if q < n_learned else (here, 1.0 - here)
            for q in range(n_rays):
                a, b = real_here[q] * inverse, imag_here[q] * inverse
                found, other = complex(a, b), complex(1.0 - a, -b)
                ray_learned_out[j, q], ray_unlearned_out[j, q] = (other, found) if q < n_ray_learned else (found, other)
            j += 1
        x[0], real[0], imag[0] = x[DEGREE], real[DEGREE], imag[DEGREE]
        g = _polynomial(coefficients[panel], 1.0)
