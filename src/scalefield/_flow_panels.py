"""Panels of a gradient flow: marched with a source measure, evaluated at any times (theory section 7)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalefield.errors import ScalefieldError

__all__ = ["Components", "components_at", "march_panels", "replay"]

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]

_MAX_PANELS = 4000
# Interpolation error of g on a panel over the error allowed of the loss, measured on runs to 1e12.
_PANEL_TOLERANCE = 0.003
# Below it, rounding errors would decide.
_PANEL_FLOOR = 3e-12


def march_panels(
    gamma: float,
    s: Array,
    mass: Array,
    ray: ComplexArray,
    ray_weight: ComplexArray,
    end: float,
    rtol: float,
    atom: float = 0.0,
) -> dict[str, Any]:
    """Panels of g until tau = end for a source measure on real nodes and a ray, beside an atom at 0."""
    from scalefield._native.causal_panels import N_POINTS, chebyshev_points, monomial_matrix, series_matrix
    from scalefield._native.gradient_flow import march_flow

    starts, lengths, times = (np.zeros(_MAX_PANELS) for _ in range(3))
    coefficients = np.zeros((_MAX_PANELS, N_POINTS))
    # The kernel's scale grows with gamma q = gamma tau^2 mu(s) at first.
    growth = math.sqrt(gamma * abs(float(mass @ s)))
    status, n_panels = march_flow(
        s,
        mass,
        ray,
        ray_weight,
        atom,
        gamma,
        end,
        0.1 / max(float(s[0]), growth),
        max(_PANEL_TOLERANCE * rtol, _PANEL_FLOOR),
        chebyshev_points(),
        monomial_matrix(),
        series_matrix(),
        starts,
        lengths,
        times,
        coefficients,
    )
    if status != 0:
        reached = float(times[n_panels - 1]) if n_panels else 0.0
        raise ScalefieldError(
            f"gradient flow did not reach tau = {end:g} within rtol {rtol:g}: it stopped at {reached:g}"
        )
    return {
        "panel_start": starts[:n_panels],
        "panel_length": lengths[:n_panels],
        "panel_times": times[:n_panels],
        "panel_coefficients": coefficients[:n_panels],
    }


@dataclass(frozen=True)
class Components:
    """Effective time, a drive and its slope in u, then y and 1 - y of rates: shape (times,) or (times, rates)."""

    u: Array
    drive: Array
    slope: Array
    learned: Array
    unlearned: Array
    ray_learned: ComplexArray
    ray_unlearned: ComplexArray


def replay(
    panels: Mapping[str, Any], times: Array, s: Array, ray: ComplexArray, coefficients: Array | None = None
) -> Components:
    """Components at some times, of g or of another drive on its panels; y and 1 - y are relative to that drive."""
    from scalefield._native.gradient_flow import locate

    start, length, tau = (np.array(panels[f"panel_{name}"]) for name in ("start", "length", "times"))
    own = np.array(panels["panel_coefficients"])
    panel, position = np.zeros(times.size, dtype=np.int64), np.zeros(times.size)
    if length.size:
        locate(tau, length, own, np.array(times), panel, position)
    return components_at(start, length, own if coefficients is None else coefficients, panel, position, s, ray)


def components_at(
    start: Array,
    length: Array,
    coefficients: Array,
    panel: NDArray[np.int64],
    position: Array,
    s: Array,
    ray: ComplexArray,
) -> Components:
    """Components at positions in [-1, 1] on panels."""
    from scalefield._native.causal_panels import chebyshev_points, series_matrix
    from scalefield._native.gradient_flow import evaluate

    n = panel.size
    learned, unlearned = np.zeros((n, s.size)), np.ones((n, s.size))
    ray_learned, ray_unlearned = (np.full((n, ray.size), value, dtype=np.complex128) for value in (0.0, 1.0))
    if length.size == 0:
        return Components(np.zeros(n), np.ones(n), np.zeros(n), learned, unlearned, ray_learned, ray_unlearned)
    powers = position[:, None] ** np.arange(coefficients.shape[1])
    order = np.arange(1, coefficients.shape[1])
    chosen = coefficients[panel]
    drive = (chosen * powers).sum(axis=1)
    slope = (chosen[:, 1:] * order * powers[:, :-1]).sum(axis=1) * 2.0 / length[panel]
    u = start[panel] + 0.5 * (position + 1.0) * length[panel]
    # Copies, since kernels take writable arrays only.
    evaluate(
        np.array(s),
        np.array(ray),
        np.array(start),
        np.array(length),
        np.array(coefficients),
        chebyshev_points(),
        series_matrix(),
        panel,
        position,
        drive,
        learned,
        unlearned,
        ray_learned,
        ray_unlearned,
    )
    return Components(u, drive, slope, learned, unlearned, ray_learned, ray_unlearned)
