"""Gradient flow of the balanced model, by panels in effective time (theory section 7).

With the effective time u, du = a dtau, and g = a^{-1/2}, every spectral component is driven by one slow function,

    r_s' = s (g - r_s) ,    y_s = r_s/g ,    a = 1 + gamma q ,    q = mu(r_s^2/s) ,

so the deviation d_s = g - r_s obeys d' = g' - s d: `causal_panels` solves it for a polynomial g, and g at the points
of a panel is found by fixed-point iteration.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalefield._native.causal_panels import (
    DEGREE,
    LARGE,
    N_POINTS,
    NOTHING,
    SMALL,
    TERMS,
    all_series,
    count_rates,
    decay_factors,
    deviations,
    interval_series,
    panel_series,
    tail,
)
from scalefield._native.jit import (
    complex_matrix,
    complex_vector,
    float64,
    int_vector,
    jit,
    matrix,
    status_and_step,
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
# Rates below this over u are those of nothing learned yet.
UNLEARNED = 0.03
# Terms of the series in s u below it: (s u)^MOMENTS/MOMENTS! is left out.
MOMENTS = 6


@jit(float64(vector, complex_vector, float64, vector, complex_vector), fastmath=("reassoc", "contract", "nsz"))
def _readout(power: Array, ray_power: ComplexArray, g: float, d: Array, ray_d: ComplexArray) -> float:
    """n = mu(y^2/s), y = 1 - d/g, with power = mu/s; as far as power reaches."""
    total = 0.0
    inverse = 1.0 / g
    for k in range(power.shape[0]):
        y = 1.0 - d[k] * inverse
        total += power[k] * y * y
    for k in range(ray_power.shape[0]):
        z = 1.0 - ray_d[k] * inverse
        total += (ray_power[k] * z * z).imag
    return total


@jit(void(vector, float64, vector, matrix))
def _moments(coefficients: Array, length: float, start: Array, moments_out: Array) -> None:
    """M_k = int_0^u (u - u')^k/k! g(u') du' at the points, from those at the panel's start."""
    points = moments_out.shape[0]
    polynomial = np.zeros(N_POINTS + MOMENTS)
    for n in range(N_POINTS):
        polynomial[n] = coefficients[n]
    scale = 1.0
    for k in range(MOMENTS):
        # Integrated once more from x = -1, in units of the panel's length 2.
        for n in range(N_POINTS + k, 0, -1):
            polynomial[n] = 0.5 * polynomial[n - 1] / n
        polynomial[0] = 0.0
        for n in range(1, N_POINTS + k + 1):
            polynomial[0] -= polynomial[n] * (-1.0 if n % 2 == 1 else 1.0)
        scale *= length
        for i in range(points):
            x = -np.cos(np.pi * i / DEGREE)
            value = 0.0
            for n in range(N_POINTS + k, -1, -1):
                value = value * x + polynomial[n]
            # M_k(u + h) = sum_j h^j/j! M_{k-j}(u) + what the panel adds
            total, factor, h = scale * value, 1.0, 0.5 * (x + 1.0) * length
            for j in range(k + 1):
                total += factor * start[k - j]
                factor *= h / (j + 1)
            moments_out[i, k] = total


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
        vector,
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
    gamma: float,
    end: float,
    first_length: float,
    tolerance: float,
    points: Array,
    to_monomials: Array,
    start_out: Array,
    length_out: Array,
    tau_out: Array,
    coefficients_out: Array,
) -> tuple[int, int]:
    """Panels from u = 0 until tau = end; returns (status, number of panels), status 1 if that cannot be done.

    Rates s decreasing, rays by decreasing |s|. Entry j of the outputs: start and length of panel j in u, tau at its
    start, and the coefficients of g in powers of x in [-1, 1].
    """
    n_rates, n_rays = s.shape[0], ray_s.shape[0]
    g = np.ones(N_POINTS)
    coefficients = np.zeros(N_POINTS)
    small = np.zeros((N_POINTS, TERMS))
    large = np.zeros((N_POINTS, DEGREE))
    d = np.empty((N_POINTS, n_rates))
    ray_d = np.empty((N_POINTS, n_rays), dtype=np.complex128)
    from_start, between = np.empty((N_POINTS, n_rates)), np.empty((N_POINTS, n_rates))
    ray_from_start = np.empty((N_POINTS, n_rays), dtype=np.complex128)
    ray_between = np.empty((N_POINTS, n_rays), dtype=np.complex128)
    z, ray_z = np.empty(n_rates), np.empty(n_rays, dtype=np.complex128)
    ray_size = np.abs(ray_s)
    power, ray_power = mass / s, ray_weight / ray_s
    d[0] = 1.0
    ray_d[0] = 1.0
    u, tau, length, slope, curvature = 0.0, 0.0, first_length, 0.0, 0.0
    panel = 0
    tiny, start_moments, moments = np.zeros(MOMENTS), np.zeros(MOMENTS), np.zeros((N_POINTS, MOMENTS))
    last_error = np.inf
    residual, last_residual = np.zeros(N_POINTS), np.zeros(N_POINTS)
    relaxation = 1.0
    while tau < end:
        if panel == start_out.shape[0]:
            return 1, panel
        # a tau that is nearly reached needs no whole panel
        remaining = 1.02 * (end - tau) / (g[0] * g[0]) * (1.0 if u == 0.0 else (1.0 + (end - tau) / (u * g[0] * g[0])))
        length = min(length, max(remaining, 1e-3 * length))
        for k in range(n_rates):
            z[k] = s[k] * length
        for k in range(n_rays):
            ray_z[k] = ray_s[k] * length
        n_large, n_middle = count_rates(s, length, LARGE), count_rates(s, length, SMALL)
        ray_large, ray_middle = count_rates(ray_size, length, LARGE), count_rates(ray_size, length, SMALL)
        decay_factors(z, n_large, points, from_start, between)
        decay_factors(ray_z, ray_large, points, ray_from_start, ray_between)
        # For small rates y = 1 - d/g has no digits: y g = s sum_k (-s)^k M_k, to (s u)^MOMENTS.
        n_live = count_rates(s, u + length, UNLEARNED)
        tiny[:] = 0.0
        for k in range(n_live, n_rates):
            product = mass[k]
            for j in range(MOMENTS):
                product *= s[k]
                tiny[j] += product
        ray_live = count_rates(ray_size, u + length, UNLEARNED)
        for k in range(ray_live, n_rays):
            ray_product = ray_weight[k]
            for j in range(MOMENTS):
                ray_product *= ray_s[k]
                tiny[j] += ray_product.imag
        # First guess: the last panel continued, log g by its slope and curvature in log u.
        for i in range(1, N_POINTS):
            x = np.log(1.0 + 0.5 * (points[i] + 1.0) * length / u) if u > 0.0 else 0.0
            g[i] = g[0] * np.exp(x * (slope + 0.5 * x * curvature))
        for iteration in range(ITERATIONS):
            for n in range(N_POINTS):
                # Relative to the start, so that constants keep all their digits.
                coefficients[n] = g[0] if n == 0 else 0.0
                for i in range(1, N_POINTS):
                    coefficients[n] += to_monomials[n, i] * (g[i] - g[0])
            all_series(coefficients, 0.0, False, points, small, large)
            deviations(z, n_large, n_middle, points, small, large, from_start, between, d)
            deviations(ray_z, ray_large, ray_middle, points, small, large, ray_from_start, ray_between, ray_d)
            change = 0.0
            if gamma > 0.0:
                _moments(coefficients, length, start_moments, moments)
                for i in range(1, N_POINTS):
                    n_i = 0.0
                    for j in range(MOMENTS):
                        for k in range(j + 1):
                            sign = 1.0 if j % 2 == 0 else -1.0
                            n_i += sign * tiny[j] * moments[i, k] * moments[i, j - k]
                    n_i /= g[i] * g[i]
                    n_i += _readout(power[:n_live], ray_power[:ray_live], g[i], d[i], ray_d[i])
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
                last_residual[i] = residual[i]
        # What the polynomial leaves out.
        error = tail(g)
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
        _moments(coefficients, length, start_moments, moments)
        start_moments[:] = moments[DEGREE]
        if gamma > 0.0:
            rise, bend = 0.0, 0.0
            for n in range(1, N_POINTS):
                rise += n * coefficients[n]
                bend += n * (n - 1) * coefficients[n]
            ratio = 2.0 * u / length
            slope = ratio * rise / g[DEGREE]
            curvature = ratio * ratio * bend / g[DEGREE] - slope * slope + slope
        g[0] = g[DEGREE]
        d[0] = d[DEGREE]
        ray_d[0] = ray_d[DEGREE]
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


_panels = (vector, vector, matrix, vector, int_vector, vector)


@jit([void(vector, *_panels, matrix), void(complex_vector, *_panels, complex_matrix)])
def evaluate(
    rates: Array | ComplexArray,
    sizes: Array,
    length: Array,
    coefficients: Array,
    points: Array,
    panel_of: NDArray[np.int64],
    position: Array,
    d_out: Array | ComplexArray,
) -> None:
    """d_s for each rate (by decreasing size) at positions on panels, these in their order; shape (times, rates)."""
    n_rates = rates.shape[0]
    small = np.zeros((N_POINTS, TERMS))
    large = np.zeros((N_POINTS, DEGREE))
    small_here, large_here = np.zeros(TERMS), np.zeros(DEGREE)
    d: Any = np.empty((N_POINTS, n_rates), dtype=rates.dtype)
    from_start, between = np.empty_like(d), np.empty_like(d)
    d[0] = 1.0
    j = 0
    for panel in range(length.shape[0]):
        if j == position.shape[0]:
            break
        z = rates * length[panel]
        n_large, n_middle = count_rates(sizes, length[panel], LARGE), count_rates(sizes, length[panel], SMALL)
        decay_factors(z, n_large, points, from_start, between)
        all_series(coefficients[panel], 0.0, False, points, small, large)
        deviations(z, n_large, n_middle, points, small, large, from_start, between, d)
        while j < position.shape[0] and panel_of[j] == panel:
            x = position[j]
            i = 1
            while i < DEGREE and points[i] < x:
                i += 1
            c, gap = 0.5 * (x - points[0]), 0.5 * (x - points[i - 1])
            panel_series(coefficients[panel], x, 0.0, False, large_here)
            if gap > 0.0:
                interval_series(coefficients[panel], points[i - 1], x, 0.0, False, small_here)
            for q in range(n_rates):
                value = 0.0 * z[q]
                if q < n_large:
                    start = value
                    for k in range(DEGREE - 1, -1, -1):
                        start = (large[0, k] - start) / z[q]
                        value = (large_here[k] - value) / z[q]
                    exponent = z[q] * c
                    if exponent.real < NOTHING:
                        value += (d[0, q] - start) * np.exp(-exponent)
                elif gap > 0.0:
                    for k in range(TERMS - 1, -1, -1):
                        value = small_here[k] - gap * z[q] * value
                    value += d[i - 1, q] * np.exp(-gap * z[q])
                else:
                    value = d[i - 1, q]
                d_out[j, q] = value
            j += 1
        d[0] = d[DEGREE]
