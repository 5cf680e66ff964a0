"""Source and capacity exponents of a spectrum, from the increments of its tail sums (paper Sec. 5.2, App. A)."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import stdtrit, zeta

from scalefield._result import Archived
from scalefield._validate import as_count, as_float
from scalefield.errors import KernelWarning
from scalefield.spectrum import Spectrum, Task

__all__ = ["SourceCapacityFit", "fit_source_capacity"]

Array = NDArray[np.float64]

# Increments between which a window is divided, at most: few enough that the lowest hold more than one mode.
_BINS = 16
_FEWEST_BINS = 5
# Default window: below n/10, where n samples bend the spectrum by some 10%, and above the first modes.
_SAMPLES_PER_MODE = 10
_FIRST = 10
_DECADE, _DECADES = 10, 100
# Drift over the window that no power law shows, relative to the exponent, and in standard errors.
_DRIFT = 0.15
_DRIFT_ERRORS = 3.0
_MODES = 10_000
# Modes of eigenvalues below this fraction of the largest only hold what a kernel cannot represent.
_UNLEARNABLE = 2e-30
# First-order shifts beyond this are no small corrections: exponents are far outside what data show.
_LARGEST_SHIFT = 5.0


@dataclass(frozen=True)
class SourceCapacityFit(Archived):
    r"""Capacity alpha and source beta of a spectrum over a window of modes.

    .. math:: \lambda_k \sim c\, k^{-\alpha}, \qquad \sum_{l>k} \lambda_l w_l^{*2} \sim k^{-\alpha\beta}

    Attributes
    ----------
    alpha, beta, alpha_beta : float
        Exponents, corrected for n_samples to first order in k/n if it is known.
    alpha_interval, beta_interval, alpha_beta_interval : tuple of float
        Confidence intervals from the scatter of the increments about the fit. They do not cover a spectrum that
        bends: compare the drift.
    confidence : float
        Their level.
    window : tuple of int
        (first, last): modes first < k <= last, counted from 1.
    n_samples : int or None
        n of the correction; None for none.
    method : str
        "tail-sum" or "increments".
    alpha_drift, beta_drift, alpha_beta_drift : float
        Exponent of the upper half of the window (in log k) less that of the lower half.
    lower, upper : tuple of float
        (alpha, beta) of the two halves.
    alpha_uncorrected, beta_uncorrected : float
        Without the correction.
    alpha_straight, beta_straight : float
        Slopes of straight lines through log lambda_k and the log of the tail sums, as the paper draws them. Tail sums
        of a spectrum that ends, or of a target with a part that is not learned, are no power laws: these are biased.
    eigenvalue_prefactor, power_prefactor : float
        lambda_k = eigenvalue_prefactor k^-alpha and lambda_k w*_k^2 = power_prefactor k^-(alpha beta + 1).
    is_power_law : bool
        Whether neither exponent drifts by more than 15% and three standard errors, and both are positive.
    """

    alpha: float
    beta: float
    alpha_beta: float
    alpha_interval: tuple[float, float]
    beta_interval: tuple[float, float]
    alpha_beta_interval: tuple[float, float]
    confidence: float
    window: tuple[int, int]
    n_samples: int | None
    method: str
    alpha_drift: float
    beta_drift: float
    alpha_beta_drift: float
    lower: tuple[float, float]
    upper: tuple[float, float]
    alpha_uncorrected: float
    beta_uncorrected: float
    alpha_straight: float
    beta_straight: float
    eigenvalue_prefactor: float
    power_prefactor: float
    is_power_law: bool

    def __repr__(self) -> str:
        return (
            f"SourceCapacityFit(alpha {self.alpha:.4g} [{self.alpha_interval[0]:.4g}, {self.alpha_interval[1]:.4g}], "
            f"beta {self.beta:.4g} [{self.beta_interval[0]:.4g}, {self.beta_interval[1]:.4g}]; "
            f"modes {self.window[0]} to {self.window[1]}, drift {self.alpha_drift:+.2g} and {self.beta_drift:+.2g})"
        )

    def eigenvalues(self, k: NDArray[Any]) -> Array:
        """Fitted eigenvalues at k (counted from 1), as n samples show them: with the shift of order k/n."""
        shift = 0.0 if self.n_samples is None else _eigenvalue_shift(self.alpha) / self.n_samples
        return np.asarray(self.eigenvalue_prefactor * k**-self.alpha * (1.0 + shift * k))

    def target_power(self, k: NDArray[Any]) -> Array:
        """Fitted lambda_k w*_k^2 at k, likewise."""
        shift = 0.0 if self.n_samples is None else _power_shift(self.alpha, self.alpha_beta) / self.n_samples
        return np.asarray(self.power_prefactor * k ** -(self.alpha_beta + 1.0) * (1.0 + shift * k))

    @classmethod
    def _restored(cls, settings: dict[str, Any]) -> dict[str, Any]:
        return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}


def fit_source_capacity(
    spectrum: Task,
    window: tuple[int, int] | None = None,
    *,
    method: str = "tail-sum",
    n_samples: int | str | None = "auto",
    confidence: float = 0.95,
) -> SourceCapacityFit:
    r"""Fit capacity alpha and source beta to a spectrum, by the increments of its tail sums.

    With tail sums of eigenvalues and of the target's power,

    .. math::
        S(k) = \sum_{l>k} \lambda_l \sim k^{-(\alpha-1)}, \qquad
        T(k) = \sum_{l>k} \lambda_l w_l^{*2} \sim k^{-\alpha\beta},

    increments S(k_i) - S(k_{i+1}) and T(k_i) - T(k_{i+1}) between log-spaced k of the window, which are independent of
    each other, are fitted with sums of the power laws over the same modes, and T beyond the window with that of all
    modes there are. Eigenvalues are fitted by least squares of logarithms; the power, which scatters from mode to mode
    like a chi-squared variable, by the likelihood of that. Where the power beyond the window follows no power law
    (label noise, a target that the kernel represents in part), ``method="increments"`` leaves it out.

    Measured on n samples, both are shifted by the order of k/n, even on average. For Gaussian features (theory
    sections 6 and 7d, to first order) mode k of a power law appears as

    .. math::
        \hat\lambda_k = \lambda_k \Big(1 - \frac{k}{n} \frac{\pi}{\alpha} \cot\frac{\pi}{\alpha}\Big), \qquad
        \hat p_k = p_k \Big(1 + \frac{k}{n} \frac{\pi}{\alpha} \Big[(1-\beta) \cot \pi\beta
            - \big(1-\tfrac{1}{\alpha}\big) \cot\frac{\pi}{\alpha}\Big]\Big) \quad (\beta < 2),

    which the fit takes into account.

    Parameters
    ----------
    spectrum : Spectrum or PowerLawSpectrum
        Best one of `Spectrum.from_kernel`, which knows its n_samples.
    window : tuple of int, optional
        (first, last): fit modes first < k <= last, counted from 1 by decreasing eigenvalue. By default last = n/10, of
        n_samples or else of the number of modes, but no mode that is not resolved. With n_samples first = last/100 or
        10, whichever is larger (less in small spectra); without, first = last/10.
    method : {"tail-sum", "increments"}
        Whether the target's power beyond the window counts (default), but for what no training learns
        (`null_power`). Without it the scatter within the window alone decides, and intervals are a few times as wide.
    n_samples : int, "auto" or None
        n of the correction: that of the spectrum by default, and none if it has none. None: no correction.
    confidence : float
        Level of the intervals, in (0, 1).

    Returns
    -------
    SourceCapacityFit

    Warns
    -----
    KernelWarning
        If no power law holds in the window: an exponent drifts by more than 15% of itself and three standard errors
        from its lower to its upper half, or is not positive.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        For a window outside of the spectrum or with fewer than 8 modes, modes without eigenvalue or power there, or a
        confidence out of range.

    Notes
    -----
    O(last) in time and memory, milliseconds. Intervals have Student's t with as many degrees of freedom as increments
    less two; coverage was measured (``tests/test_source_capacity.py``).

    References
    ----------
    Bordelon, Atanasov & Pehlevan, arXiv:2409.17858, Eqs. 6 and 14, Sec. 5.2, App. A.

    Examples
    --------
    >>> import scalefield as sf
    >>> fit = sf.kernels.fit_source_capacity(sf.PowerLawSpectrum(alpha=1.5, beta=0.5, n_modes=1000))
    >>> round(fit.alpha, 9), round(fit.beta, 9)
    (1.5, 0.5)
    """
    if not isinstance(spectrum, Task):
        raise TypeError(f"spectrum must be a Spectrum or a PowerLawSpectrum, got {type(spectrum).__name__}")
    level = as_float("confidence", confidence, minimum=0.0, exclusive=True)
    if level >= 1.0:
        raise ValueError(f"confidence must be below 1, got {confidence!r}")
    if method not in ("tail-sum", "increments"):
        raise ValueError(f"method must be 'tail-sum' or 'increments', got {method!r}")
    samples = _samples(spectrum, n_samples)
    first, last = _window(spectrum, window)
    eigenvalues, coefficients = spectrum.modes(0, last)
    power = eigenvalues * coefficients**2
    if not eigenvalues[-1] > 0.0:
        raise ValueError(f"window must end before eigenvalues vanish, got {last} with eigenvalue 0")
    if not power[first:].any():
        raise ValueError(f"window must hold target power, got none in modes {first} to {last}")

    beyond = None
    if method == "tail-sum":
        null_power, n_modes = 0.0, spectrum.n_modes
        if isinstance(spectrum, Spectrum):
            learnable = spectrum.eigenvalues > _UNLEARNABLE * spectrum.eigenvalues[0]
            null_power, n_modes = float(spectrum.target_power[~learnable].sum()), int(learnable.sum())
        rest = spectrum.total_target_power - null_power - float(power.sum())
        # n samples hold the power of all modes of the distribution, however many there are.
        end = math.inf if samples is not None or n_modes is None else n_modes
        beyond = (rest, end) if end > last and rest > 1e-9 * float(power.sum()) else None

    def fit_between(first: int, last: int, samples: int | None) -> _Fit:
        further = float(power[last:].sum())
        return _fit(
            eigenvalues, power, first, last, samples, None if beyond is None else (beyond[0] + further, beyond[1])
        )

    fit = fit_between(first, last, samples)
    plain = fit if samples is None else fit_between(first, last, None)
    middle = round(math.sqrt(max(first, 1) * last))
    lower, upper = fit_between(first, middle, samples), fit_between(middle, last, samples)
    drifts = [
        _Drift(getattr(upper, name).value - getattr(lower, name).value,
               math.hypot(getattr(upper, name).error, getattr(lower, name).error), getattr(fit, name).value)
        for name in ("alpha", "alpha_beta")
    ]  # fmt: skip
    is_power_law = fit.alpha.value > 0.0 and fit.alpha_beta.value > 0.0 and not any(drift.matters for drift in drifts)
    beta = fit.beta
    # d(s/alpha) = (ds - beta dalpha)/alpha, of independent scatters
    error = math.hypot(fit.alpha_beta.error, beta * fit.alpha.error) / abs(fit.alpha.value or math.nan)
    quantile = float(stdtrit(fit.n_bins - 2, 0.5 + 0.5 * level))

    def interval(value: float, error: float) -> tuple[float, float]:
        return value - quantile * error, value + quantile * error

    halves = [(part.alpha.value, part.beta) for part in (lower, upper)]
    straight = _straight_lines(spectrum, eigenvalues, power, first, last)
    if not is_power_law:
        warnings.warn(
            f"no power law holds over modes {first} to {last}: from the lower to the upper half alpha goes from "
            f"{halves[0][0]:.3g} to {halves[1][0]:.3g} and alpha beta from {lower.alpha_beta.value:.3g} to "
            f"{upper.alpha_beta.value:.3g}; exponents are those of this window only",
            KernelWarning,
            stacklevel=2,
        )
    return SourceCapacityFit(
        alpha=fit.alpha.value,
        beta=beta,
        alpha_beta=fit.alpha_beta.value,
        alpha_interval=interval(fit.alpha.value, fit.alpha.error),
        beta_interval=interval(beta, error),
        alpha_beta_interval=interval(fit.alpha_beta.value, fit.alpha_beta.error),
        confidence=level,
        window=(first, last),
        n_samples=samples,
        method=method,
        alpha_drift=drifts[0].value,
        beta_drift=halves[1][1] - halves[0][1],
        alpha_beta_drift=drifts[1].value,
        lower=halves[0],
        upper=halves[1],
        alpha_uncorrected=plain.alpha.value,
        beta_uncorrected=plain.beta,
        alpha_straight=straight[0],
        beta_straight=straight[1],
        eigenvalue_prefactor=fit.alpha.prefactor,
        power_prefactor=fit.alpha_beta.prefactor,
        is_power_law=is_power_law,
    )


def _samples(spectrum: Task, n_samples: int | str | None) -> int | None:
    if isinstance(n_samples, str):
        if n_samples != "auto":
            raise ValueError(f"n_samples must be an integer, 'auto' or None, got {n_samples!r}")
        return getattr(spectrum, "n_samples", None) or None
    return None if n_samples is None else as_count("n_samples", n_samples, minimum=2)


def _window(spectrum: Task, window: tuple[int, int] | None) -> tuple[int, int]:
    n_modes = spectrum.n_modes
    if isinstance(spectrum, Spectrum):
        n_modes = int(np.count_nonzero(spectrum.eigenvalues > _UNLEARNABLE * spectrum.eigenvalues[0]))
        n_modes = min(n_modes, getattr(spectrum, "n_resolved", 0) or n_modes)
    if window is None:
        size = getattr(spectrum, "n_samples", None) or n_modes or _MODES
        last = min(max(size // _SAMPLES_PER_MODE, 16), n_modes or _MODES)
        # A decade where there is one: the last one of exact spectra, which nothing bends, else from the tenth mode.
        exact = getattr(spectrum, "n_samples", None) is None
        first = max(last // _DECADE, 1) if exact else max(last // _DECADES, min(_FIRST, last // _DECADE), 1)
    else:
        try:
            first, last = window
        except (TypeError, ValueError):
            raise TypeError(f"window must be two integers (first, last), got {window!r}") from None
        first, last = as_count("window[0]", first, minimum=0), as_count("window[1]", last)
    if n_modes is not None and last > n_modes:
        raise ValueError(f"window must end at mode {n_modes}, the last one resolved, or before, got {last}")
    if last - first < 8 or last < 2 * first:
        raise ValueError(f"window must span at least 8 modes and a factor of 2, got {first} to {last}")
    return first, last


@dataclass(frozen=True)
class _Exponent:
    value: float
    error: float
    prefactor: float


@dataclass(frozen=True)
class _Fit:
    alpha: _Exponent
    alpha_beta: _Exponent
    n_bins: int

    @property
    def beta(self) -> float:
        # Equal eigenvalues have no beta.
        return self.alpha_beta.value / self.alpha.value if self.alpha.value != 0.0 else math.nan


@dataclass(frozen=True)
class _Drift:
    value: float
    error: float
    exponent: float

    @property
    def matters(self) -> bool:
        return abs(self.value) > max(_DRIFT * abs(self.exponent), _DRIFT_ERRORS * self.error)


def _fit(
    eigenvalues: Array,
    power: Array,
    first: int,
    last: int,
    n_samples: int | None,
    beyond: tuple[float, float] | None,
) -> _Fit:
    """Both exponents from the increments between log-spaced k; the shifts of order k/n by iteration."""
    edges = np.unique(np.round(np.geomspace(max(first, 1), last, _BINS + 1)).astype(np.int64))
    edges[0] = first
    if edges.size < _FEWEST_BINS + 1:
        edges = np.unique(np.linspace(first, last, _FEWEST_BINS + 1).astype(np.int64))
    k = np.arange(first + 1, last + 1, dtype=np.float64)
    starts, counts = edges[:-1] - first, np.diff(edges)
    values, powers = eigenvalues[first:last], power[first:last]
    shift, power_shift = np.ones_like(k), np.ones_like(k)
    alpha = _least_squares(values, k, shift, starts)
    alpha_beta = _likelihood(powers, k, power_shift, starts, counts, beyond, 0.0)
    if n_samples is not None:
        # Corrections of some 10% with slowly varying coefficients: each round gains a digit or two.
        for _ in range(8):
            shift = 1.0 + _eigenvalue_shift(alpha.value) / n_samples * k
            power_shift = 1.0 + _power_shift(alpha.value, alpha_beta.value) / n_samples * k
            loss = _power_shift_beyond(alpha.value, alpha_beta.value) / n_samples
            shift, power_shift = np.maximum(shift, 0.1), np.maximum(power_shift, 0.1)
            alpha = _least_squares(values, k, shift, starts)
            alpha_beta = _likelihood(powers, k, power_shift, starts, counts, beyond, loss)
    return _Fit(alpha, alpha_beta, counts.size)


def _sums(exponent: float, k: Array, shift: Array, starts: NDArray[np.int64]) -> tuple[Array, Array]:
    """Sums of k^-exponent shift over each bin, relative to k_1^-exponent, and means of log(k/k_1) under them."""
    log_k = np.log(k / k[0])
    terms = np.exp(-exponent * log_k) * shift
    sums = np.add.reduceat(terms, starts)
    return sums, np.add.reduceat(terms * log_k, starts) / sums


def _least_squares(values: Array, k: Array, shift: Array, starts: NDArray[np.int64]) -> _Exponent:
    """Exponent a of increments c sum_l l^-a: least squares of their logarithms, by Gauss-Newton."""
    observed = np.log(np.add.reduceat(values, starts))
    exponent = 1.0
    for _ in range(50):
        sums, log_k = _sums(exponent, k, shift, starts)
        residuals = observed - np.log(sums)
        residuals = residuals - residuals.mean()
        slopes = log_k - log_k.mean()
        spread = float(slopes @ slopes)
        step = -float(slopes @ residuals) / spread
        exponent += step
        if abs(step) < 1e-13 * (1.0 + abs(exponent)):
            break
    sums, log_k = _sums(exponent, k, shift, starts)
    level = float(np.mean(observed - np.log(sums)))
    residuals = observed - np.log(sums) - level
    error = math.sqrt(float(residuals @ residuals) / (residuals.size - 2) / spread)
    return _Exponent(exponent, error, math.exp(level) * float(k[0]) ** exponent)


def _likelihood(
    powers: Array,
    k: Array,
    shift: Array,
    starts: NDArray[np.int64],
    counts: NDArray[np.int64],
    beyond: tuple[float, float] | None,
    loss: float,
) -> _Exponent:
    """Exponent s of increments c sum_l l^-(s+1): the quasi-likelihood of chi-squared scatter, sum n (log m + B/m).

    Its score, sum_i n_i x_i (1 - B_i/m_i), has mean 0 whatever the scatter's law; the error is that of a sandwich.
    The power beyond the window, (power, last mode there is), counts as much as all increments, at most as its modes.
    """
    observed = np.add.reduceat(powers, starts)
    weights = counts.astype(np.float64)
    if beyond is not None:
        n_beyond = min(float(counts.sum()), beyond[1] - float(k[-1]))
        observed, weights = np.append(observed, beyond[0]), np.append(weights, n_beyond)

    def ratios(exponent: float) -> tuple[Array, Array, float]:
        sums, log_k = _sums(exponent + 1.0, k, shift, starts)
        if beyond is not None:
            step = 1e-4
            rest, above, below = (
                _sum_beyond(exponent + change, k, beyond[1], loss) for change in (0.0, step, -step)
            )
            sums = np.append(sums, rest)
            log_k = np.append(log_k, (below - above) / (2.0 * step * rest))
        level = float(weights @ (observed / sums)) / float(weights.sum())
        return observed / (level * sums), log_k, level

    def score(exponent: float) -> float:
        ratio, log_k, _ = ratios(exponent)
        return float(weights @ ((ratio - 1.0) * log_k))

    low, high = -4.0, 4.0
    if beyond is not None and beyond[1] == math.inf:
        low = 1e-3
    while score(high) < 0.0 and high < 500.0:
        high *= 2.0
    while score(low) > 0.0 and -500.0 < low < 0.0:
        low *= 2.0
    if score(low) > 0.0:
        # No decay that would end in a finite sum.
        exponent = low
    else:
        exponent = float(brentq(score, low, high, xtol=1e-13, rtol=1e-13))
    ratio, log_k, level = ratios(exponent)
    slopes = log_k - float(weights @ log_k) / float(weights.sum())
    scatter = weights * (ratio - 1.0) * slopes
    n_bins = weights.size
    error = math.sqrt(n_bins / (n_bins - 2) * float(scatter @ scatter)) / float(weights @ slopes**2)
    return _Exponent(exponent, error, level * float(k[0]) ** (exponent + 1.0))


def _sum_beyond(exponent: float, k: Array, end: float, loss: float) -> float:
    """Sum of (l/k_1)^-(s+1) over modes after the window up to `end`, with their shift."""
    last = float(k[-1])
    if exponent > 0.0:
        total = float(zeta(exponent + 1.0, last + 1.0))
        if end < math.inf:
            total -= float(zeta(exponent + 1.0, end + 1.0))
    elif exponent == 0.0:
        total = math.log((end + 0.5) / (last + 0.5))
    else:
        total = (math.pow(last + 0.5, -exponent) - math.pow(end + 0.5, -exponent)) / exponent
    # (B/n) sum_{l>k} l^-s, continued to s < 1, where it is minus what the modes before have gained
    total += loss * math.pow(last + 0.5, 1.0 - exponent)
    # The correction stays a correction.
    floor = 0.1 * math.pow(last + 1.0, -exponent) / max(exponent, 1.0)
    return max(total, floor) * math.pow(float(k[0]), exponent + 1.0)


def _eigenvalue_shift(alpha: float) -> float:
    """Relative shift of eigenvalue k, in units of k/n: -(pi/alpha) cot(pi/alpha)."""
    if alpha <= 1.0:
        # The sum over all modes beyond k, which the shift is made of, belongs to an infinite trace.
        return 0.0
    return min(_LARGEST_SHIFT, max(-_LARGEST_SHIFT, -math.pi / alpha / math.tan(math.pi / alpha)))


def _power_shift(alpha: float, alpha_beta: float) -> float:
    """Relative shift of the power on mode k, in units of k/n."""
    beta = alpha_beta / alpha
    if alpha <= 1.0 or not 0.0 < beta < 2.0:
        return 0.0
    # (1 - beta) cot(pi beta) is -1/pi at beta = 1.
    own = -1.0 / math.pi if abs(beta - 1.0) < 1e-6 else (1.0 - beta) / math.tan(math.pi * beta)
    shift = math.pi / alpha * (own - (1.0 - 1.0 / alpha) / math.tan(math.pi / alpha))
    return min(_LARGEST_SHIFT, max(-_LARGEST_SHIFT, shift))


def _power_shift_beyond(alpha: float, alpha_beta: float) -> float:
    """What sum_{l>k} of that shift is, over k^{1-s}/n: B/(s-1). B is 0 at s = 1, where power only changes places."""
    room = alpha_beta - 1.0
    if abs(room) < 1e-4:
        return 0.5 * (_power_shift_beyond(alpha, 1.001) + _power_shift_beyond(alpha, 0.999))
    return _power_shift(alpha, alpha_beta) / room


def _straight_lines(spectrum: Task, eigenvalues: Array, power: Array, first: int, last: int) -> tuple[float, float]:
    """Least squares through log lambda_k and log T(k) at log-spaced k."""
    k = np.unique(np.geomspace(max(first, 1), last - 1, 60).astype(np.int64))
    beyond = spectrum.total_target_power - float(power.sum())
    tail = np.append(np.cumsum(power[::-1])[::-1], 0.0) + max(beyond, 0.0)
    tail = np.maximum(tail, np.finfo(np.float64).tiny)
    alpha = -float(np.polyfit(np.log(k), np.log(eigenvalues[k - 1]), 1)[0])
    alpha_beta = -float(np.polyfit(np.log(k), np.log(tail[k]), 1)[0])
    return alpha, alpha_beta / alpha if alpha != 0.0 else math.nan
