"""Offline training: full-batch gradient descent on P samples, by the two-time march (theory section 4)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.linalg.blas import dtrmm

from scalefield._progress import Progress
from scalefield.dmft.solution import DMFTSolution
from scalefield.dmft.two_time import (
    MarchMeasures,
    initial_effective_time,
    largest_row_sum,
    march_rows,
    mode_measures,
    repeat_to_horizon,
)
from scalefield.errors import Interrupted
from scalefield.model import Model
from scalefield.quadrature import SpectralNodes

__all__ = ["solve_offline"]

Array = NDArray[np.float64]


def solve_offline(
    model: Model, n_steps: int, nodes: SpectralNodes | None, rtol: float, progress: Progress | None
) -> DMFTSolution:
    r"""March on merged modes with the data averaged as well; arguments as for `solve_dmft`, already validated.

    Responses are power series in P and commute, so that with S = sum_k (H_k - 1) and H_k = (1 + lambda_k K R_r)^{-1}

    .. math::
        R_r = 1 + S/P, \qquad R_{22} = 1 + S/N, \qquad 1 - E_k K = H_k, \qquad C_g = R_r C_1 R_r^T

    and section 4 is section 3 with K R_r for K, R_22 R_r for R_22 and the matrix (C_0 + sigma^2)/P for diag(D)/B: the
    same march solves it.

    Label noise enters linearly once the memory kernel P is known. Its part of the loss is found by a second march, of a
    task without target and noise of unit variance, with that P.
    """
    reached = [0.0]
    measures: list[MarchMeasures] = []

    def share(part: int) -> Progress | None:
        if progress is None or model.label_noise == 0.0:
            return progress
        return lambda done, total: progress((part * total + done) // 2, total)

    def march(horizon: float) -> DMFTSolution:
        measures[:] = [mode_measures(model, nodes, horizon, rtol)]

        def build(arrays: dict[str, Any], n_rows: int) -> DMFTSolution:
            reached[0] = largest_row_sum(arrays["K"])
            return _build_solution(model, measures[0], arrays, n_rows)

        return march_rows(model, n_steps, measures[0], model.inverse_width, build, share(0), with_modes=True)

    solution = repeat_to_horizon(initial_effective_time(model, n_steps, nodes), march, lambda _: reached[0])
    if model.label_noise == 0.0:
        return replace(solution, noise_variance=np.zeros(n_steps + 1))
    try:
        features, data = _noise_variances(model, n_steps, solution, measures[0], share(1))
    except Interrupted as interrupt:
        raise Interrupted("interrupted before the part of the label noise was found", solution) from interrupt
    assert solution.feature_variance is not None
    assert solution.data_variance is not None
    return replace(
        solution,
        feature_variance=solution.feature_variance - features,
        data_variance=solution.data_variance - data,
        noise_variance=features + data,
    )


def _noise_variances(
    model: Model, n_steps: int, solution: DMFTSolution, measures: MarchMeasures, progress: Progress | None
) -> tuple[Array, Array]:
    """Parts of the feature and data variance that label noise makes, with the memory kernel given."""
    silent = replace(measures, source_power=np.zeros_like(measures.source_power))
    parts: list[Array] = []

    def build(arrays: dict[str, Any], n_rows: int) -> DMFTSolution:
        parts[:] = [model.label_noise**2 * arrays[name] for name in ("feature_variance", "sgd_variance")]
        return solution

    march_rows(
        model,
        n_steps,
        silent,
        model.inverse_width,
        build,
        progress,
        with_modes=True,
        memory=solution.P,
        noise_power=1.0,
    )
    return parts[0], parts[1]


def _build_solution(model: Model, measures: MarchMeasures, arrays: dict[str, Any], n_rows: int) -> DMFTSolution:
    """Undo the march's changes of variables; see `solve_offline`."""
    identity = np.eye(n_rows)
    S = arrays.pop("S")
    R_r = identity + S * model.inverse_n_samples
    R_22 = identity + S * model.inverse_width
    C_r = _congruence(R_r, arrays.pop("D"))
    C_g = _congruence(R_r, arrays.pop("C_1"))
    # R_0 = P (1 - R_r^-1) = S R_r^-1, and the two commute
    R_0 = solve_triangular(R_r, S, lower=True, unit_diagonal=True, check_finite=False)
    return DMFTSolution(
        model=model,
        steps=np.arange(n_rows),
        method="two-time",
        n_nodes=measures.eigenvalue.size,
        quadrature_error=measures.error,
        kernel_scale=1.0 + model.gamma * np.diag(arrays["C_w"]),
        train_loss=np.diag(C_r).copy(),
        data_variance=arrays["sgd_variance"],
        C_r=C_r,
        C_g=C_g,
        R_0=R_0,
        R_r=R_r,
        R_13=_lower_product(R_r, arrays["R_13"]),
        R_22=R_22,
        K=_lower_product(arrays["P"], R_22) if model.inverse_width > 0.0 else arrays["P"],
        **{name: arrays[name] for name in ("loss", "bias", "feature_variance", "C_0", "C_2", "C_w", "P", "H_w")},
    )


def _congruence(lower: Array, symmetric: Array) -> Array:
    """L C L^T for a lower triangular L and a symmetric C."""
    return _lower_product(lower, _lower_product(lower, symmetric).T).T


def _lower_product(lower: Array, matrix: Array) -> Array:
    """L X for a lower triangular L, rows and columns of C order."""
    # X^T L^T in Fortran's order, where L^T is upper triangular
    product: Array = dtrmm(1.0, lower.T, matrix.T, side=1, lower=0).T
    return product
