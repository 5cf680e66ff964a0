r"""Gradient flow on a fixed data set, averaged over projections and samples or realised (theory section 7d).

Residuals on the P samples evolve with K = Psi M_0 Psi^T/P by the balance law of section 7, mu' the spectral measure of
K at the initial residuals. In the variables d = g (1 - y) training is linear, d' = g' - s d. A fresh sample's deviation
d~ is that of a training sample with the response R = 1 - df/P undone (`data_equivalent`): it obeys the same equation
with the drive g~, R g~ = g, and

.. math::
    L_{train} = \mu'((1 - y)^2) , \qquad L + \sigma^2 = \mu'(e^2) , \qquad e = \tilde d/g .
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalefield._flow_panels import components_at, march_panels, replay
from scalefield.data_equivalent import DataContour, DataEquivalent
from scalefield.model import Model
from scalefield.realised_data import realise

__all__ = ["offline_curves", "solve_average", "solve_realised"]

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]

# Accuracy of the ray's rule over the one asked for: it serves the filter, and squares of what the filter does.
_DATA_TOLERANCE = 1e-3
# Train losses below this fraction of the first are judged beside it: they fall exponentially, without bound.
_TRAIN_FLOOR = 1e-4
# Times at which two rays are compared.
_CHECK_TIMES = 40


def solve_average(model: Model, times: Array, horizon: float, rtol: float) -> dict[str, Any]:
    """Fields of the average over projections and data sets, but for the curves; horizon is the last effective time."""
    end = float(times[-1])
    horizon = 10.0 ** math.ceil(math.log10(horizon))
    equivalent = DataEquivalent(model.spectrum, model.width, model.n_samples, horizon)
    # The trapezoid rule's error e^{-2 pi d/h}, d = pi/4, as in `contour`
    step = 0.5 * math.pi**2 / -math.log(max(1e-13, _DATA_TOLERANCE * rtol))
    contours = equivalent.contour(horizon, [step, step / 1.5])
    contour, power = contours[0], model.label_noise**2
    panels = march_panels(
        model.gamma,
        contour.eigenvalues,
        contour.source + power * contour.noise,
        contour.ray,
        contour.ray_source + power * contour.ray_noise,
        end,
        rtol,
    )
    positive = times[times > 0.0]
    check = np.geomspace(positive[0], end, _CHECK_TIMES if positive.size > 1 else 1) if positive.size else times
    floor = max(_TRAIN_FLOOR, 1e-12 / rtol) * (model.spectrum.total_target_power + power)

    def fields_of(rule: DataContour) -> dict[str, Any]:
        return {
            "source_eigenvalues": rule.eigenvalues,
            "source_power": rule.source,
            "contour_eigenvalues": rule.ray,
            "contour_weights": rule.ray_source,
            "atom": rule.source_atom,
            "first_moment": math.nan,
            "trace_square": math.nan,
            "noise_power": rule.noise,
            "contour_noise": rule.ray_noise,
            "noise_atom": rule.noise_atom,
            "fresh_coefficients": _fresh_drive(panels, rule),
            **panels,
        }

    fields, finer = (fields_of(rule) for rule in contours)
    error = _deviation(_losses(model, finer, check), _losses(model, fields, check), floor)
    return {"quadrature_error": error, **fields}


def solve_realised(model: Model, times: Array, seed: int, rtol: float) -> dict[str, Any]:
    """Fields of one realised projection and data set, but for the curves."""
    none = np.zeros(0, dtype=np.complex128)
    data = realise(model.spectrum, model.width, int(model.n_samples), model.label_noise, seed)
    return {
        "quadrature_error": 0.0,
        "source_eigenvalues": data.eigenvalues,
        "source_power": data.residual_power,
        "contour_eigenvalues": none,
        "contour_weights": none,
        "atom": data.residual_atom,
        "first_moment": math.nan,
        "trace_square": math.nan,
        "test_atom": data.rest,
        "response": data.response,
        "response_target": data.target,
        **march_panels(model.gamma, data.eigenvalues, data.residual_power, none, none, float(times[-1]), rtol),
    }


def _fresh_drive(panels: dict[str, Any], contour: DataContour) -> Array:
    r"""Coefficients of the drive of fresh samples on the panels of g.

    R g~ = g, and with 1/R = 1 + c_0/omega + int dnu(x)/(omega + x) this is

        g~ = g + c_0 int g du + int dnu(x) r_x/x ,    r_x' = x (g - r_x)
    """
    from scalefield._native.causal_panels import chebyshev_points, monomial_matrix

    start, length, coefficients = (panels[f"panel_{name}"] for name in ("start", "length", "coefficients"))
    n_panels, points = length.size, chebyshev_points()
    if n_panels == 0:
        return np.zeros_like(coefficients)
    # c_0 as a mass so near s = 0 that r/s is the integral of g
    slowest = 1e-14 / (float(start[-1]) + float(length[-1]))
    used = contour.filter != 0.0
    s = np.append(contour.eigenvalues[used], slowest)
    weight = np.append(contour.filter[used], contour.filter_atom) / s
    panel = np.repeat(np.arange(n_panels), points.size)
    found = components_at(start, length, coefficients, panel, np.tile(points, n_panels), s, contour.ray)
    gain = found.learned @ weight
    gain += (found.ray_learned @ (contour.ray_filter / contour.ray)).imag
    drive = (found.drive * (1.0 + gain)).reshape(n_panels, points.size)
    # Relative to the start, so that constants keep all their digits.
    fresh: Array = (drive - drive[:, :1]) @ monomial_matrix().T
    fresh[:, 0] += drive[:, 0]
    return fresh


def _losses(model: Model, fields: Mapping[str, Any], times: Array) -> tuple[Array, Array, Array, Array]:
    r"""Test loss, train loss, du-slope of the test loss and <u, Lambda^{1/2} v_0>, averaged over the data.

    As the mean of e over all eigenvalues of K is 1, label noise adds sigma^2 times their mean of (e - 1)^2 to the test
    loss: nothing cancels.
    """
    s, z = fields["source_eigenvalues"], fields["contour_eigenvalues"]
    seen, fresh = replay(fields, times, s, z), replay(fields, times, s, z, fields["fresh_coefficients"])
    target = (fields["source_power"], fields["contour_weights"], fields["atom"])
    noise = (fields["noise_power"], fields["contour_noise"], fields["noise_atom"])
    power = model.label_noise**2

    def integral(measure: Any, real: Array, ray: ComplexArray, at_zero: Array | float) -> Array:
        mass, weight, atom = measure
        value: Array = real @ mass + (ray @ weight).imag + atom * at_zero
        return value

    train = integral(target, seen.unlearned**2, seen.ray_unlearned**2, 1.0)
    scale = fresh.drive / seen.drive
    # e, and de/du = g~'/g - s e - e g'/g
    real, ray = scale[:, None] * fresh.unlearned, scale[:, None] * fresh.ray_unlearned
    pull, drift = (fresh.slope / seen.drive)[:, None], (seen.slope / seen.drive)[:, None]
    real_slope, ray_slope = pull - (s + drift) * real, pull - (z + drift) * ray
    scale_slope = pull[:, 0] - drift[:, 0] * scale
    test = integral(target, real**2, ray**2, scale**2)
    slope = integral(target, 2.0 * real * real_slope, 2.0 * ray * ray_slope, 2.0 * scale * scale_slope)
    if power > 0.0:
        train += power * integral(noise, seen.unlearned**2, seen.ray_unlearned**2, 1.0)
        test += power * integral(noise, (real - 1.0) ** 2, (ray - 1.0) ** 2, (scale - 1.0) ** 2)
        slope += power * integral(
            noise,
            2.0 * (real - 1.0) * real_slope,
            2.0 * (ray - 1.0) * ray_slope,
            2.0 * (scale - 1.0) * scale_slope,
        )
    return test, train, slope, integral(target, real, ray, scale)


def _deviation(finer: tuple[Array, ...], coarser: tuple[Array, ...], floor: float) -> float:
    """Largest relative deviation of test and train loss, of the latter beside `floor`: it falls without bound."""
    deviations = []
    for fine, coarse, beside in zip(finer[:2], coarser[:2], (0.0, floor), strict=True):
        change = np.abs(coarse - fine)
        deviations.append(float((change[change > 0.0] / (np.abs(fine) + beside)[change > 0.0]).max(initial=0.0)))
    return max(deviations)


def offline_curves(model: Model, fields: Mapping[str, Any], times: Array) -> dict[str, Any]:
    """What an offline solution with these fields records at some times."""
    s, z = fields["source_eigenvalues"], fields["contour_eigenvalues"]
    response, target = fields["response"], fields["response_target"]
    if response is None:
        test, train, slope, remaining = _losses(model, fields, times)
        found = replay(fields, times, s[:0], z[:0])
        # |Lambda^{1/2} (w* - v_0)|^2
        learned = model.spectrum.total_target_power - 2.0 * remaining + test
    else:
        found = replay(fields, times, s, z)
        error = target - found.learned @ response.T
        test = (error**2).sum(axis=1) + fields["test_atom"]
        train = found.unlearned**2 @ fields["source_power"] + fields["atom"]
        # y' = s (1 - y) - y g'/g
        change = s * found.unlearned - (found.slope / found.drive)[:, None] * found.learned
        slope = -2.0 * (error * (change @ response.T)).sum(axis=1)
        learned = ((found.learned @ response.T) ** 2).sum(axis=1)
    a = found.drive**-2.0
    with np.errstate(divide="ignore", invalid="ignore"):
        exponent = np.where(times == 0.0, 0.0, -times * a * slope / test)
    return {
        "loss": test,
        # Rounding may leave what has vanished below 0.
        "train_loss": np.maximum(train, 0.0),
        "kernel_scale": a,
        "spike": model.gamma / a * learned,
        "alignment": np.full(times.size, math.nan),
        "local_exponent": exponent,
        "effective_time": found.u,
    }
