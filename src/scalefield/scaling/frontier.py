r"""Compute-optimal training from the engines: the best width and time at every compute budget (theory section 9).

At a width N one learning curve gives the loss at all times. The frontier is the lower envelope of these curves over
widths,

.. math:: L^*(C) = \min_N L(t_C(N), N), \qquad \mathrm{cost}(N, t_C(N)) = C ,

with N continuous: theories know the width as 1/N alone. Curves are computed on a grid of widths; at each budget the
loss is a smooth function of log N, and the root of its derivative lies between two widths of the grid.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.polynomial import Polynomial
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq, minimize_scalar

from scalefield._progress import Progress
from scalefield._result import Result
from scalefield._threads import single_threaded_blas
from scalefield._validate import as_float, as_vector
from scalefield.dmft.hierarchy import ClosureCurve, run_closure
from scalefield.errors import Interrupted, ScalefieldError
from scalefield.flow import AveragedFlow
from scalefield.model import Model
from scalefield.resolvent import DeterministicEquivalent
from scalefield.scaling.exponents import ComputeOptimum, compute_optimal
from scalefield.scaling.fitting import fit_power_law
from scalefield.spectral_measure import SpectralMeasure
from scalefield.spectrum import PowerLawSpectrum, Task

__all__ = ["Frontier", "FrontierExponent", "compute_frontier"]

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]
Cost = Callable[[float, float], float]

# Widths of the grid. Polynomials through the eleven around the best one follow the loss to 1e-7 or better.
_WIDTHS_PER_DECADE = 10
# Of SGD, whose closures are right to 1e-3 at best where features move.
_CLOSURE_WIDTHS_PER_DECADE = 5
_HALF_WINDOW = 5
# Decades of widths without a lower loss after which a budget's search ends.
_BEYOND = 0.5
# Accuracy of log N where the minimum is searched with curves of its own.
_DIRECT_TOLERANCE = 1e-7
# Steps of a closure that are recorded a decade, and all of the first ones: cubic splines in log t are right to 1e-7.
_STEPS_PER_DECADE = 48
_FIRST_STEPS = 40
_CLOSURE_RTOL = 1e-10
# Budgets, spread evenly, whose interpolated loss is compared with a curve at the optimal width.
_COMPARED = 5
# Steps after which a rich run is looked at before it goes on; closures take so many one by one.
_TRIAL_STEPS = 65536
# Lifetimes of the slowest component after which a run has come to rest.
_LIFETIMES = 60.0
# Of unstable runs, in place of an infinite loss for the minimiser.
_UNSTABLE = 1e3
# Steps beyond which a cost is taken not to grow with them.
_MOST_STEPS = 1e60
# Exponents are fitted over the last third of the decades of the budgets.
_WINDOW = 1.0 / 3.0
_FEWEST_FITTED = 3


@dataclass(frozen=True)
class FrontierExponent:
    """One power law of a frontier, fitted and predicted.

    Attributes
    ----------
    name : str
        "loss", "width" or "time".
    fitted : float
        e of L ~ C^-e, N ~ C^e or t ~ C^e.
    error : float
        How far the exponent still drifts within the window.
    predicted : float or None
        From `compute_optimal`.
    """

    name: str
    fitted: float
    error: float
    predicted: float | None


@dataclass(frozen=True, eq=False, repr=False)
class Frontier(Result):
    r"""Best width and time at every compute budget; made by `compute_frontier`.

    Attributes
    ----------
    model : Model
        The task and the training; its width plays no part.
    budgets : ndarray of float64, shape (K,)
        C, increasing.
    widths : ndarray, shape (K,)
        N*(C), the best width; not whole.
    steps : ndarray, shape (K,)
        t*(C), the steps that the budget pays for at that width; not whole.
    losses : ndarray, shape (K,)
        L(t*, N*), interpolated over the width, or computed at this width where that would be less accurate.
    local_loss_exponent, local_width_exponent, local_time_exponent : ndarray, shape (K,)
        -d log L*/d log C, d log N*/d log C and d log t*/d log C, from neighbouring budgets; nan for a single one.
    boundary : ndarray of str, shape (K,)
        "" where the optimum is a minimum over the width; else what holds it back: "width", an end of `width_range`;
        "steps", the budget pays for a single one there; "stability", training diverges beyond.
    loss_exponent, width_exponent, time_exponent : float
        Powers of C fitted (`fit_power_law`) to 1/L*, N* and t* in the window; nan with fewer than three inner optima
        there.
    loss_exponent_error, width_exponent_error, time_exponent_error : float
        Drift of the exponent over the window (or the fit's standard error, if larger). Curves of theory have no noise:
        what keeps a fit from its asymptote is that the exponent still changes. If its distance from there halves within
        the window, the asymptote is this close.
    window_start, window_stop : float
        First and last budget fitted.
    interpolation_error : float
        Largest relative difference of interpolated losses from curves at the optimal width, at five budgets at least.
    quadrature_error : float
        Relative error of the losses due to the nodes of the spectrum, the largest one of all widths.
    cost_name : str
        What the budgets count.
    width_least, width_most : float
        The range of widths.

    References
    ----------
    Bordelon, Atanasov & Pehlevan, arXiv:2409.17858, Table 1, Figure 4; theory section 9.
    """

    budgets: Array
    widths: Array
    steps: Array
    losses: Array
    local_loss_exponent: Array
    local_width_exponent: Array
    local_time_exponent: Array
    boundary: NDArray[np.str_]
    loss_exponent: float
    loss_exponent_error: float
    width_exponent: float
    width_exponent_error: float
    time_exponent: float
    time_exponent_error: float
    window_start: float
    window_stop: float
    interpolation_error: float
    quadrature_error: float
    cost_name: str
    width_least: float
    width_most: float

    @property
    def times(self) -> Array:
        """tau*(C) = learning rate x steps, shape (K,)."""
        tau: Array = self.model.learning_rate * self.steps
        return tau

    @property
    def predicted(self) -> ComputeOptimum | None:
        """`compute_optimal` for this task and training; None where it does not apply.

        It applies to power laws with alpha > 1, at cost N t; with label noise in finite batches the loss does not fall
        like a power.
        """
        task = self.model.spectrum
        noisy = self.model.label_noise > 0.0 and not math.isinf(self.model.batch_size)
        if not isinstance(task, PowerLawSpectrum) or task.alpha <= 1.0 or self.cost_name != _DEFAULT_COST or noisy:
            return None
        return compute_optimal(
            task.alpha, task.beta, self.model.is_rich, sgd_noise=not math.isinf(self.model.batch_size)
        )

    @property
    def exponents(self) -> tuple[FrontierExponent, FrontierExponent, FrontierExponent]:
        """Exponents of loss, width and time, fitted and predicted."""
        predicted = self.predicted
        loss, width, time = (
            FrontierExponent(
                name,
                getattr(self, f"{name}_exponent"),
                getattr(self, f"{name}_exponent_error"),
                None if predicted is None else getattr(predicted, f"{name}_exponent"),
            )
            for name in ("loss", "width", "time")
        )
        return loss, width, time

    def __repr__(self) -> str:
        model = self.model
        fits = ", ".join(
            f"{fit.name} {fit.fitted:.4f} ± {fit.error:.1g}"
            + ("" if fit.predicted is None else f" (predicted {fit.predicted:.4f})")
            for fit in self.exponents
        )
        return (
            f"Frontier(gamma {model.gamma:g}, learning rate {model.learning_rate:g}, batch {model.batch_size:g}; "
            f"{self.budgets.size} budgets {self.budgets[0]:.3g} to {self.budgets[-1]:.3g}, width "
            f"{self.widths[0]:.4g} to {self.widths[-1]:.4g}; exponents {fits})"
        )


_DEFAULT_COST = "width x steps"


def compute_frontier(
    spectrum: Task,
    gamma: float,
    learning_rate: float,
    batch_size: float,
    budgets: ArrayLike,
    cost: Cost | None = None,
    *,
    label_noise: float = 0.0,
    width_range: tuple[float, float] = (1.0, math.inf),
    window: tuple[float, float] | None = None,
    rtol: float = 1e-8,
    progress: Progress | None = None,
) -> Frontier:
    r"""Compute-optimal training: at every compute budget the width and the time of the lowest loss.

    .. math:: L^*(C) = \min_{N, t} \{ L(t, N) : \mathrm{cost}(N, t) = C \}, \qquad \mathrm{cost}(N, t) = N t
        \text{ by default}

    Widths are continuous; round them for models. Losses are those of gradient flow at tau = learning_rate t if
    batch_size is inf, else of SGD by the closure of order 0, exact for gamma = 0.

    Parameters
    ----------
    spectrum : PowerLawSpectrum or Spectrum
        The task.
    gamma : float
        Richness, at least 0.
    learning_rate : float
        eta > 0. Of gradient flow it is the unit of time alone, of SGD also the size of the noise.
    batch_size : int or inf
        B, samples a step.
    budgets : array_like, shape (K,)
        Compute C, positive and increasing, in units of `cost`. Twelve decades and more.
    cost : callable, optional
        ``cost(width, steps)``, both floats, steps at least 1: what a run costs, increasing in both. Default: their
        product.
    label_noise : float
        Standard deviation of the noise on labels (default 0); of gradient flow it plays no part.
    width_range : (float, float)
        Least and largest width, default 1 and inf.
    window : (float, float), optional
        Budgets between which exponents are fitted. Default: the last third of the decades.
    rtol : float
        Relative accuracy of the losses of gradient flow, 1e-10 to 0.01 (default 1e-8).
    progress : callable, optional
        Called as ``progress(done, total)`` with two units of work for each budget: its optimum is enclosed, and found.

    Returns
    -------
    Frontier

    Raises
    ------
    TypeError, ValueError
        For arguments of the wrong type or range; for a cost that does not return positive numbers or does not grow with
        the steps; if the smallest budget does not pay for one step at the least width.
    ScalefieldError
        If training diverges at every width that a budget allows.
    Interrupted
        On Ctrl-C; `.partial` is the frontier of the budgets done, None if there are none.

    Notes
    -----
    One learning curve for each of ten widths a decade (five for SGD) up to half a decade beyond the last optimum, and
    for some of the budgets: of gradient flow 10-50 ms each, seconds for 40 budgets over twelve decades; of SGD 0.1 s,
    at N = 1e6 a second. Memory O(K) times the number of widths.

    The first minimum over the width is found, and any other that is not hidden behind half a decade of rising losses.
    With SGD and gamma > 0 the kernel's scale grows, for beta < 1 without bound, and training at a constant learning
    rate becomes unstable in the end, at learning_rate a s_max = 2: from there on a loss counts as infinite.

    References
    ----------
    Bordelon, Atanasov & Pehlevan, arXiv:2409.17858, section 4, Table 1, Figure 4; Paquette et al., arXiv:2405.15074;
    theory sections 6, 7, 7b, 9.

    Examples
    --------
    >>> import numpy as np
    >>> import scalefield as sf
    >>> frontier = sf.scaling.compute_frontier(
    ...     sf.PowerLawSpectrum(1.5, 0.5), gamma=0.0, learning_rate=0.1, batch_size=np.inf,
    ...     budgets=np.geomspace(1e6, 1e12, 7))
    >>> loss, width, time = frontier.exponents
    >>> bool(abs(loss.fitted - loss.predicted) < loss.error < 0.001)
    True
    """
    model = Model(
        spectrum, gamma=gamma, learning_rate=learning_rate, batch_size=batch_size, label_noise=label_noise
    )
    amounts = as_vector("budgets", budgets, minimum=0.0)
    if amounts[0] == 0.0 or (np.diff(amounts) <= 0.0).any():
        raise ValueError(f"budgets must be positive and increasing, got {budgets!r}")
    rtol = as_float("rtol", rtol, minimum=1e-10)
    if rtol > 0.01:
        raise ValueError(f"rtol must be at most 0.01, got {rtol!r}")
    least, most = _as_range("width_range", width_range, 1.0)
    if window is not None:
        window = _as_range("window", window, 0.0)
    if cost is not None and not callable(cost):
        raise TypeError(f"cost must be callable, got {cost!r} of type {type(cost).__name__}")
    losses: _Losses = _FlowLosses(model, rtol) if math.isinf(model.batch_size) else _ClosureLosses(model)
    search = _Search(losses, _Allowance(cost), amounts, least, most, progress)
    if math.isnan(search.allowance.steps(least, float(amounts[0]))):
        raise ValueError(
            f"budgets must pay for a step at width {least:g}, the least, got {float(amounts[0])!r} at a cost of "
            f"{search.allowance.of(least, 1.0):g}"
        )
    name = _DEFAULT_COST if cost is None else getattr(cost, "__qualname__", type(cost).__name__)

    def result(found: list[_Optimum]) -> Frontier:
        return _frontier(model, amounts[: len(found)], found, window, losses.error, name, least, most)

    optima: list[_Optimum] = []
    try:
        # Products of a few hundred numbers: threads would cost more than they gain.
        with single_threaded_blas():
            search.scan()
            for index in range(amounts.size):
                optima.append(search.optimum(index))
    except KeyboardInterrupt:
        partial = result(optima) if optima else None
        raise Interrupted(f"interrupted after {len(optima)} of {amounts.size} budgets", partial) from None
    return result(optima)


def _as_range(name: str, value: tuple[float, float], minimum: float) -> tuple[float, float]:
    try:
        low, high = value
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a pair of numbers, got {value!r}") from None
    low = as_float(f"{name}[0]", low, minimum=minimum)
    high = as_float(f"{name}[1]", high, minimum=low, allow_inf=True)
    return low, high


class _Losses(Protocol):
    """Learning curves at real widths."""

    error: float
    widths_per_decade: int

    def log_loss(self, width: float, steps: Array) -> Array:
        """Log of the loss after increasing numbers of steps; inf where training has diverged."""


class _FlowLosses:
    """Gradient flow."""

    widths_per_decade = _WIDTHS_PER_DECADE

    def __init__(self, model: Model, rtol: float) -> None:
        self.error = 0.0
        self._model, self._rtol = model, rtol

    def log_loss(self, width: float, steps: Array) -> Array:
        times = self._model.learning_rate * steps
        flow = AveragedFlow(self._model.spectrum, width, self._model.gamma, float(times[-1]), self._rtol)
        self.error = max(self.error, flow.error)
        return _log(flow.loss(times))


class _ClosureLosses:
    """SGD by the closure of order 0; between whole steps by splines in log t."""

    widths_per_decade = _CLOSURE_WIDTHS_PER_DECADE

    def __init__(self, model: Model) -> None:
        self.error = 0.0
        self._model = model

    def log_loss(self, width: float, steps: Array) -> Array:
        # Not with the package, whose import it would slow down.
        from scipy.interpolate import CubicSpline

        model = self._model
        measure = DeterministicEquivalent(model.spectrum, width).measure()
        # Beyond, everything that the features allow is learned and the noise in equilibrium: the loss stays.
        rest = _LIFETIMES / (model.learning_rate * measure.eigenvalues[-1])
        steps = np.minimum(steps, max(rest, _FIRST_STEPS))
        result = np.full(steps.size, np.inf)
        last = max(_FIRST_STEPS, math.ceil(steps[-1]))
        if model.is_rich and last > _TRIAL_STEPS:
            # Closures that have become unstable are not slow, and no matter for log time.
            curve, kept = self._run(measure, _TRIAL_STEPS)
            if kept == curve.steps.size and curve.diverged_at is None:
                curve, kept = self._run(measure, last)
        else:
            curve, kept = self._run(measure, last)
        if kept < 2:
            return result
        at, log_loss = curve.steps[:kept], _log(curve.loss[:kept])
        inside = steps <= at[-1]
        result[inside] = CubicSpline(np.log(at), log_loss)(np.log(steps[inside]))
        return result

    def _run(self, measure: SpectralMeasure, last: int) -> tuple[ClosureCurve, int]:
        """The curve up to a step, and how many of its records are of stable training."""
        model = self._model
        count = math.ceil(_STEPS_PER_DECADE * math.log10(last)) + 1
        spaced = np.rint(np.geomspace(1.0, last, count)).astype(np.int64)
        recorded = np.union1d(np.arange(1, _FIRST_STEPS + 1), spaced)
        curve, nodes = run_closure(model, measure, last, recorded, 0, _CLOSURE_RTOL, None)
        if curve.interrupted:
            raise KeyboardInterrupt
        self.error = max(self.error, nodes.error)
        stable = model.learning_rate * curve.kernel_scale * measure.eigenvalues[0] < 2.0
        return curve, stable.size if stable.all() else int(np.argmin(stable))


def _log(loss: Array) -> Array:
    """Log of a loss; of rounding errors around 0 where everything is learned, that of the smallest number."""
    logarithm: Array = np.log(np.maximum(loss, np.finfo(np.float64).tiny))
    return logarithm


class _Allowance:
    """Steps that a budget pays for."""

    def __init__(self, cost: Cost | None) -> None:
        self._cost = cost

    def of(self, width: float, steps: float) -> float:
        """What a run costs."""
        if self._cost is None:
            return width * steps
        value = self._cost(width, steps)
        try:
            number = as_float("cost", value, minimum=0.0, exclusive=True)
        except (TypeError, ValueError):
            raise ValueError(
                f"cost must return a positive, finite number, got {value!r} at width {width:g} and {steps:g} steps"
            ) from None
        return number

    def steps(self, width: float, budget: float) -> float:
        """Steps at that cost; nan if it does not pay for one."""
        if self._cost is None:
            steps = budget / width
            return steps if steps >= 1.0 else math.nan
        if self.of(width, 1.0) > budget:
            return math.nan
        low, high = 1.0, 10.0
        while self.of(width, high) < budget:
            low, high = high, 10.0 * high
            if high > _MOST_STEPS:
                raise ValueError(f"cost must grow with the steps without bound, it stays below {budget:g} at {width:g}")

        def excess(log_steps: float) -> float:
            return math.log(self.of(width, math.exp(log_steps)) / budget)

        low, high = math.log(low), math.log(high)
        # Rounding of exp and log may leave the ends on the wrong side by some units of the last place.
        if excess(low) >= 0.0:
            return math.exp(low)
        if excess(high) <= 0.0:
            return math.exp(high)
        return math.exp(brentq(excess, low, high, xtol=1e-14, rtol=1e-14))


@dataclass(frozen=True)
class _Optimum:
    width: float
    steps: float
    log_loss: float
    boundary: str
    # Difference of log losses; 0 if there was no interpolation.
    interpolation_error: float


class _Search:
    """Curves on a grid of widths, and the minimum over the width at each budget."""

    def __init__(
        self,
        losses: _Losses,
        allowance: _Allowance,
        budgets: Array,
        least: float,
        most: float,
        progress: Progress | None,
    ) -> None:
        self.losses = losses
        self.allowance = allowance
        self._budgets = budgets
        self._least, self._most = math.log(least), math.log(most)
        self._progress = progress
        self._spacing = math.log(10.0) / losses.widths_per_decade
        self._log_widths: list[float] = []
        self._columns: list[Array] = []
        self._best = np.zeros(budgets.size, dtype=np.int64)
        compared = np.linspace(0, budgets.size - 1, min(_COMPARED, budgets.size)).round()
        self._compared = set(compared.astype(int).tolist())

    def scan(self) -> None:
        """Widths from the least on, until every budget's optimum lies behind."""
        n = self._budgets.size
        done = np.zeros(n, dtype=np.bool_)
        lowest = np.full(n, np.inf)
        index = 0
        while not done.all():
            x = min(self._least + index * self._spacing, self._most)
            # The end of the range is not left for the next point if that is where the last one all but is.
            if self._most - x < 0.3 * self._spacing:
                x = self._most
            width = math.exp(x)
            steps = np.array(
                [
                    math.nan if finished else self.allowance.steps(width, float(budget))
                    for finished, budget in zip(done, self._budgets, strict=True)
                ]
            )
            # A wider model costs more.
            done |= np.isnan(steps)
            column = np.full(n, np.inf)
            if not done.all():
                column[~done] = self._log_loss(width, steps[~done])
                better = column < lowest
                self._best[better], lowest[better] = index, column[better]
                self._log_widths.append(x)
                self._columns.append(column)
                # Where all widths so far diverged, wider ones may not.
                beyond = (index - self._best) / self.losses.widths_per_decade >= _BEYOND
                done |= np.isfinite(lowest) & beyond
            if x == self._most:
                done[:] = True
            if self._progress is not None:
                self._progress(int(done.sum()), 2 * n)
            index += 1
        if np.isinf(lowest).any():
            budget = float(self._budgets[np.isinf(lowest)][0])
            raise ScalefieldError(
                f"training diverges at every width that the budget {budget:g} allows: lower the learning rate"
            )
        logger.info("%d widths from %.3g to %.3g", len(self._log_widths), *np.exp([self._log_widths[0], x]))

    def optimum(self, index: int) -> _Optimum:
        """The minimum at one budget; for some of them with a curve at that width."""
        budget = float(self._budgets[index])
        column = np.array([values[index] for values in self._columns])
        x = np.array(self._log_widths)
        best = int(self._best[index])
        inside = np.isfinite(column)
        first, last = best, best
        while first > 0 and best - first < _HALF_WINDOW and inside[first - 1]:
            first -= 1
        while last + 1 < x.size and last - best < _HALF_WINDOW and inside[last + 1]:
            last += 1
        enclosed = (best < last or x[best] == self._most) and (best > first or best == 0)
        if enclosed and last - first >= _HALF_WINDOW:
            found, expected = _polynomial_minimum(x[first : last + 1], column[first : last + 1], best - first)
        else:
            # An end of what can be reached lies between two widths of the grid.
            low = x[max(best - 1, 0)]
            high = x[best + 1] if best < last else self._end(budget, x[best])
            found, expected = self._direct_minimum(budget, float(low), float(high)), None
        width = math.exp(found)
        steps = self._steps(width, budget)
        # Near the ends of the widths polynomials are one-sided, and less accurate.
        central = min(best - first, last - best) == _HALF_WINDOW
        if expected is not None and central and index not in self._compared:
            log_loss, expected = expected, None
        else:
            log_loss = float(self._log_loss(width, np.array([steps]))[0])
        if not np.isfinite(log_loss):
            # On the edge of stability: what was found on the grid.
            found, expected = float(x[best]), None
            width = math.exp(found)
            steps, log_loss = self._steps(width, budget), float(column[best])
        if self._progress is not None:
            self._progress(self._budgets.size + index + 1, 2 * self._budgets.size)
        return _Optimum(
            width,
            steps,
            log_loss,
            self._boundary(found, budget),
            0.0 if expected is None else abs(math.expm1(expected - log_loss)),
        )

    def _log_loss(self, width: float, steps: Array) -> Array:
        # Costs may give two budgets the same number of steps, to rounding.
        unique, inverse = np.unique(steps, return_inverse=True)
        return self.losses.log_loss(width, unique)[inverse]

    def _steps(self, width: float, budget: float) -> float:
        steps = self.allowance.steps(width, budget)
        # At the end of the range the budget pays for one step, to rounding.
        return 1.0 if math.isnan(steps) else steps

    def _end(self, budget: float, x: float) -> float:
        """Log of the largest width, up to the next one of the grid, at which the budget pays for a step."""
        high = min(x + self._spacing, self._most)
        if self.allowance.of(math.exp(high), 1.0) <= budget:
            return high
        if self.allowance.of(math.exp(x), 1.0) >= budget:
            return x
        return float(brentq(lambda v: math.log(self.allowance.of(math.exp(v), 1.0) / budget), x, high, xtol=1e-13))

    def _direct_minimum(self, budget: float, low: float, high: float) -> float:
        """Minimum with a curve at every width that is tried."""

        def value(x: float) -> float:
            width = math.exp(x)
            log_loss = float(self._log_loss(width, np.array([self._steps(width, budget)]))[0])
            return log_loss if math.isfinite(log_loss) else _UNSTABLE

        if high - low <= _DIRECT_TOLERANCE:
            return high
        found = minimize_scalar(value, bounds=(low, high), method="bounded", options={"xatol": _DIRECT_TOLERANCE})
        # The method never tries the ends themselves.
        return min((value(x), x) for x in (float(found.x), low, high))[1]

    def _boundary(self, x: float, budget: float) -> str:
        """What holds an optimum back."""
        near = 3.0 * _DIRECT_TOLERANCE
        if x - self._least <= near or self._most - x <= near:
            return "width"
        if self.allowance.of(math.exp(x + near), 1.0) > budget:
            return "steps"
        for beside in (x - 1e-4, x + 1e-4):
            width = math.exp(beside)
            steps = self.allowance.steps(width, budget)
            if not math.isnan(steps) and isinstance(self.losses, _ClosureLosses) and self._unstable(width, steps):
                return "stability"
        return ""

    def _unstable(self, width: float, steps: float) -> bool:
        return bool(np.isinf(self._log_loss(width, np.array([steps]))[0]))


def _polynomial_minimum(x: Array, y: Array, best: int) -> tuple[float, float]:
    """Minimum between the neighbours of the best point, by the polynomial through all: its place and log loss."""
    scale = x[-1] - x[0]
    # The loss, a sum of powers of N, is an entire function of log N; its logarithm is not.
    domain = [x[best] - 0.5 * scale, x[best] + 0.5 * scale]
    polynomial = Polynomial.fit(x, np.exp(y - y[best]), x.size - 1, domain=domain)
    low, high = x[max(best - 1, 0)], x[min(best + 1, x.size - 1)]
    roots = polynomial.deriv().roots()
    inner = roots.real[(np.abs(roots.imag) < 1e-12 * scale) & (roots.real > low) & (roots.real < high)]
    places = np.concatenate([[low, high], inner])
    values = polynomial(places)
    place = int(np.argmin(values))
    return float(places[place]), float(y[best] + math.log(values[place]))


def _frontier(
    model: Model,
    budgets: Array,
    optima: list[_Optimum],
    window: tuple[float, float] | None,
    quadrature_error: float,
    cost_name: str,
    least: float,
    most: float,
) -> Frontier:
    widths = np.array([optimum.width for optimum in optima])
    steps = np.array([optimum.steps for optimum in optima])
    log_loss = np.array([optimum.log_loss for optimum in optima])
    boundary = np.array([optimum.boundary for optimum in optima])
    log_budgets = np.log(budgets)
    curves = {"loss": -log_loss, "width": np.log(widths), "time": np.log(steps)}
    if window is None:
        start, stop = budgets[-1] * (budgets[0] / budgets[-1]) ** _WINDOW, budgets[-1]
    else:
        start, stop = window
    # Rounding must not leave out a budget that is an end of the window.
    fitted = (budgets >= start * (1.0 - 1e-9)) & (budgets <= stop * (1.0 + 1e-9)) & (boundary == "")
    fields: dict[str, Any] = {}
    for name, y in curves.items():
        slope = np.full(y.size, np.nan)
        if y.size > 1:
            slope = np.gradient(y, log_budgets, edge_order=min(2, y.size - 1))
        fields[f"local_{name}_exponent"] = slope
        exponent, error = math.nan, math.nan
        if int(fitted.sum()) >= _FEWEST_FITTED:
            # Its exponents are those of decay.
            fit = fit_power_law(budgets[fitted], np.exp(-y[fitted]), window=None)
            exponent, error = fit.exponent, max(abs(fit.drift), fit.standard_error)
        fields[f"{name}_exponent"], fields[f"{name}_exponent_error"] = exponent, error
    inside = budgets[fitted] if fitted.any() else np.array([math.nan])
    return Frontier(
        model=model,
        budgets=budgets,
        widths=widths,
        steps=steps,
        losses=np.exp(log_loss),
        boundary=boundary,
        window_start=float(inside[0]),
        window_stop=float(inside[-1]),
        interpolation_error=max(optimum.interpolation_error for optimum in optima),
        quadrature_error=float(quadrature_error),
        cost_name=cost_name,
        width_least=least,
        width_most=most,
        **fields,
    )
