"""Errors of fits to curves: noise correlated along them, independent runs; and windows of constant slope."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

__all__ = ["FitError", "block_error", "known_error", "longest_window", "run_error", "t_quantile"]

Array = NDArray[np.float64]

# Dense correlations of so many points; longer curves take the limit of infinitely many.
_DENSE_POINTS = 1500
# Windows of at most this many first points and as many last points are looked at.
_WINDOW_ENDS = 120
# Each third of a window has a slope of its own.
_POINTS_A_THIRD = 3


class FitError(NamedTuple):
    """Covariance of fitted parameters, the degrees of freedom of its estimate, and the block length (0: none)."""

    covariance: Array
    degrees_of_freedom: float
    block_length: int


def t_quantile(confidence_level: float, degrees_of_freedom: float) -> float:
    """Half-width of a two-sided interval in standard errors."""
    return float(stats.t.ppf(0.5 * (1.0 + confidence_level), degrees_of_freedom))


def known_error(jacobian: Array) -> FitError:
    """Residuals in units of their known, independent standard errors: (J^T J)^-1."""
    inverse = np.linalg.pinv(jacobian)
    return FitError(inverse @ inverse.T, math.inf, 0)


def run_error(jacobian: Array, deviations: Array) -> FitError:
    """Independent runs of any correlation along the curve: resampling of runs, in its limit of infinitely many.

    `deviations`, shape (R, n), are those of the runs from their mean, in units of the residuals. The mean's fit moves
    by the mean of R independent vectors pinv(J) d_r, with their sample covariance.
    """
    moves = deviations @ np.linalg.pinv(jacobian).T
    n_runs = moves.shape[0]
    covariance = moves.T @ moves / (n_runs * (n_runs - 1.0))
    return FitError(covariance, n_runs - 1.0, 0)


def block_error(jacobian: Array, residuals: Array, block_length: int | None) -> FitError:
    """Noise correlated along the curve, estimated from the residuals: moving blocks.

    Resampled residuals are blocks of consecutive ones put end to end, each with equal chance to begin anywhere. The
    parameters move by pinv(J) times these; their covariance over infinitely many resamples is a sum over blocks of
    covariances over where they begin, so nothing has to be drawn.

    Blocks cut correlations off, and residuals lack what the fit has taken; both make errors too small. The factor that
    would make them right for first-order autoregressive noise of the same lag-1 correlation is applied.
    """
    n, p = jacobian.shape
    inverse = np.asarray(np.linalg.pinv(jacobian), dtype=np.float64)
    square = float(residuals @ residuals)
    # Lag-1 correlation; residuals of a fit to white noise have one of about -2/n.
    rho = float(residuals[1:] @ residuals[:-1]) / square if square > 0.0 else 0.0
    rho = min(0.97, max(0.0, (n * rho + 2.0) / max(n - 4.0, 1.0)))
    if block_length is None:
        # Andrews' length for first-order autoregression (Econometrica 59, 817 (1991), Eq. 6.2, 6.4).
        best = 1.1447 * (4.0 * rho**2 / (1.0 - rho**2) ** 2 * n) ** (1.0 / 3.0)
        block_length = int(min(max(1, math.ceil(best)), max(1, n // 3)))
    windows = np.lib.stride_tricks.sliding_window_view(residuals, block_length)
    covariance = np.zeros((p, p))
    for start in range(0, n, block_length):
        segment = inverse[:, start : start + block_length]
        moves = windows[:, : segment.shape[1]] @ segment.T
        moves -= moves.mean(axis=0)
        covariance += moves.T @ moves / moves.shape[0]
    factor = _block_correction(jacobian, inverse, rho, block_length)
    covariance *= np.sqrt(np.outer(factor, factor))
    # Degrees of freedom of a Bartlett window of this length, less those of the fit.
    return FitError(covariance, max(1.0, 1.5 * n / block_length - p), block_length)


def _block_correction(jacobian: Array, inverse: Array, rho: float, length: int) -> Array:
    """True variance of each parameter over what blocks of residuals give on average; noise of correlation rho^lag."""
    n, p = jacobian.shape
    lags = np.arange(length)
    if n > _DENSE_POINTS:
        seen = 1.0 + 2.0 * float(((1.0 - lags / length) * rho**lags)[1:].sum())
        return np.full(p, max(1.0, (1.0 + rho) / (1.0 - rho) / seen) * n / (n - p))
    distance = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    noise = rho**distance
    true = np.einsum("pi,ij,pj->p", inverse, noise, inverse, optimize=True)
    # Correlation of the residuals (1 - J P) noise (1 - J P)^T, averaged over places.
    left = noise - jacobian @ (inverse @ noise)
    residual = left - (left @ inverse.T) @ jacobian.T
    mean = np.array([np.trace(residual, offset=lag) / (n - lag) for lag in lags])
    block = np.arange(n) // length
    seen_noise = np.where(np.equal.outer(block, block), mean[np.minimum(distance, length - 1)], 0.0)
    seen_variance = np.einsum("pi,ij,pj->p", inverse, seen_noise, inverse, optimize=True)
    usable = seen_variance > 0.0
    factor: Array = np.where(usable, true / np.where(usable, seen_variance, 1.0), 1.0)
    return np.maximum(factor, 1.0)


def longest_window(
    log_x: Array, log_y: Array, error: Array | None, max_drift: float, min_length: float
) -> tuple[int, int, bool]:
    """Longest range of points over which the slope of log y stays the same; the later of two of equal length.

    Of each window the slopes of its three parts (thirds in points) are compared: it is accepted where the largest less
    the smallest is at most `max_drift` plus three of its standard errors. Standard errors come from `error`, those of
    log y, or else from second differences, which do not see the slope.

    Returns the first point, the last plus one, and whether any window was accepted; else the one that drifts least.
    """
    n = log_x.size
    if n < 3 * _POINTS_A_THIRD:
        return 0, n, True
    if error is None:
        error = np.full(n, _noise(log_x, log_y))
    stride = max(1, math.ceil(n / _WINDOW_ENDS))
    starts = np.arange(0, n, stride)
    stops = n - starts[::-1]
    start, stop = (array.ravel() for array in np.meshgrid(starts, stops, indexing="ij"))
    enough = stop - start >= 3 * _POINTS_A_THIRD
    start, stop = start[enough], stop[enough]
    length = log_x[stop - 1] - log_x[start]
    enough = length >= min(min_length, (log_x[-1] - log_x[0])) * (1.0 - 1e-9)
    start, stop, length = start[enough], stop[enough], length[enough]
    cuts = [start, start + (stop - start) // 3, start + 2 * (stop - start) // 3, stop]
    # Moments by differences of running sums, about the middle of the curve; unweighted, as the windows are compared.
    x, y = log_x - log_x.mean(), log_y - log_y.mean()
    running = [np.concatenate(([0.0], np.cumsum(column))) for column in (np.ones(n), x, y, x * x, x * y, error**2)]
    slopes, variances = [], []
    for first, last in pairwise(cuts):
        count, sx, sy, sxx, sxy, noise = (total[last] - total[first] for total in running)
        spread = sxx - sx * sx / count
        slopes.append((sxy - sx * sy / count) / spread)
        variances.append(noise / count / spread)
    drift = np.ptp(slopes, axis=0)
    allowed = max_drift + 3.0 * np.sqrt(2.0 * np.max(variances, axis=0))
    accepted = drift <= allowed
    if accepted.any():
        # Lengths equal to rounding are equal.
        longest = length[accepted].max() * (1.0 - 1e-9)
        candidates = np.flatnonzero(accepted & (length >= longest))
        best = int(candidates[np.argmax(start[candidates])])
    else:
        best = int(np.argmin(drift))
    return int(start[best]), int(stop[best]), bool(accepted.any())


def _noise(log_x: Array, log_y: Array) -> float:
    """Standard deviation of noise from the distance of each point to the line through its neighbours."""
    weight = (log_x[2:] - log_x[1:-1]) / (log_x[2:] - log_x[:-2])
    away = weight * log_y[:-2] + (1.0 - weight) * log_y[2:] - log_y[1:-1]
    return math.sqrt(float(np.mean(away**2 / (1.0 + weight**2 + (1.0 - weight) ** 2))))
