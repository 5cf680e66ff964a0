"""Gradient flow in closed form: learning curves over any number of decades of time (theory section 7)."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scalefield._flow_panels import march_panels, replay
from scalefield._measures import spectral_measure
from scalefield._result import Result
from scalefield._threads import single_threaded_blas
from scalefield._validate import as_float, as_seed, as_vector
from scalefield.contour import source_contour
from scalefield.errors import AccuracyWarning
from scalefield.model import Model
from scalefield.offline_flow import offline_curves, solve_average, solve_realised
from scalefield.quadrature import condense
from scalefield.resolvent import DeterministicEquivalent
from scalefield.spectral_measure import SpectralMeasure
from scalefield.spectrum import Task

__all__ = ["AveragedFlow", "FlowSolution", "solve_gradient_flow"]

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]

# Nodes are finer than the error allowed.
_NODE_TOLERANCE = 0.01
# Contours hold what they are asked for.
_CONTOUR_TOLERANCE = 0.1
# Nodes on the spectrum itself are faster up to about this width (twice at N = 256); their number grows with it.
_CONTOUR_ABOVE = 1024.0


@dataclass(frozen=True, eq=False, repr=False)
class FlowSolution(Result):
    r"""Gradient flow of a model, recorded at some times; `at` evaluates it at any other.

    Attributes
    ----------
    model : Model
        What was solved; its learning rate plays no part, nor, online, do its batch size and label noise.
    times : ndarray of float64, shape (T,)
        tau = learning rate x step.
    loss : ndarray, shape (T,)
        L(tau), the test loss.
    kernel_scale : ndarray, shape (T,)
        a = 1 + gamma q, the factor by which the whole kernel has grown; q = |w|^2/N.
    spike : ndarray, shape (T,)
        (gamma/a) mu(y^2), the strength of the kernel's rank-one part: in the basis where the features are white,
        the kernel is a X + (gamma/a) (y u)(y u)^T with y = y(X) the learned fractions. Offline the learned function
        takes the place of y u, with its mean square over fresh samples.
    alignment : ndarray, shape (T,)
        Cosine between kernel and task, <u, K u>/(|K|_F |u|^2) with that kernel K; nan if there is no target, and
        offline, where |K|_F needs the mean of |A(0) Lambda beta|^2, beta the learned function, which section 7d leaves
        open.
    local_exponent : ndarray, shape (T,)
        -d log L/d log tau; 0 at tau = 0, nan where the loss is 0.
    effective_time : ndarray, shape (T,)
        u = integral of a dtau, the time that components of the spectrum see.
    projection : str or int
        "average" over initial features, or the seed of the one realised.
    rtol : float
        Relative accuracy asked of the loss.
    quadrature_error : float
        Relative change of lazy losses over all times from n to 1.5 n nodes; offline, of the test loss and of the train
        loss beside 1e-4 of the first, from n to 1.5 n nodes of the ray.
    n_nodes : int
        Nodes of the source measure, those of a contour included.
    source_eigenvalues, source_power : ndarray, shape (Q,)
        Real nodes and masses of the source measure.
    contour_eigenvalues, contour_weights : ndarray of complex128, shape (R,)
        Nodes s_j on a ray and weights W_j: a function f adds sum_j Im W_j f(s_j).
    atom : float
        Power that is never learned; offline of the samples' residuals, averaged only the target's part of it.
    first_moment, trace_square : float
        <u, X u> and tr X^2, for the alignment.
    panel_start, panel_length, panel_times, panel_coefficients : ndarray
        g = a^{-1/2} as polynomials on panels in u: what `at` and `learned_fraction` evaluate.
    train_loss : ndarray, shape (T,), or None
        Offline (n_samples finite): mean square of the residuals on the samples, with their label noise. None online.
    test_atom : float
        Offline and realised: power outside the span of the features.
    noise_power, contour_noise : ndarray, or None
        Offline and averaged: masses of the spectral measure of K, per sample, at the nodes; `source_power` and
        `contour_weights` are those of the target's part of the source measure.
    noise_atom : float
        The share of eigenvalues 0.
    fresh_coefficients : ndarray, or None
        Offline and averaged: the drive of fresh samples, g~, on the same panels.
    response, response_target : ndarray, or None
        Offline and realised: B and h of |h - B y|^2 + test_atom, the test loss.

    References
    ----------
    Bordelon, Atanasov & Pehlevan, arXiv:2409.17858, Eqs. 43-52, App. H; closed form: theory section 7.
    """

    times: Array
    loss: Array
    kernel_scale: Array
    spike: Array
    alignment: Array
    local_exponent: Array
    effective_time: Array
    projection: str | int
    rtol: float
    quadrature_error: float
    n_nodes: int
    source_eigenvalues: Array
    source_power: Array
    contour_eigenvalues: ComplexArray
    contour_weights: ComplexArray
    atom: float
    first_moment: float
    trace_square: float
    panel_start: Array
    panel_length: Array
    panel_times: Array
    panel_coefficients: Array
    train_loss: Array | None = None
    test_atom: float = 0.0
    noise_power: Array | None = None
    contour_noise: ComplexArray | None = None
    noise_atom: float = 0.0
    fresh_coefficients: Array | None = None
    response: Array | None = None
    response_target: Array | None = None

    @property
    def generalization_gap(self) -> Array | None:
        """Test loss on labels as noisy as those of the samples, less the train loss; None online."""
        if self.train_loss is None:
            return None
        gap: Array = self.loss + self.model.label_noise**2 - self.train_loss
        return gap

    def __repr__(self) -> str:
        projection = "average" if self.projection == "average" else f"projection {self.projection}"
        return (
            f"FlowSolution(width {self.model.width:g}, gamma {self.model.gamma:g}, {projection}; "
            f"tau {self.times[0]:.3g} to {self.times[-1]:.3g}, loss {self.loss[0]:.6g} -> {self.loss[-1]:.6g}; "
            f"{self.n_nodes} nodes, quadrature error {self.quadrature_error:.0e})"
        )

    def at(self, times: ArrayLike) -> FlowSolution:
        """Evaluate the solution at other times, up to the last one solved for.

        Parameters
        ----------
        times : array_like, shape (T,)
            Increasing, from 0 to the last time of the solution.

        Returns
        -------
        FlowSolution
            The same solution recorded at these times; nothing is integrated again.

        Raises
        ------
        ValueError
            If times are not increasing, negative, or beyond the last one.
        """
        times = _as_times(times)
        last = float(self.times[-1])
        if times[-1] > last * (1.0 + 1e-14):
            raise ValueError(f"times must not exceed {last!r}, the last time solved for, got {float(times[-1])!r}")
        with single_threaded_blas():
            return replace(self, times=times, **_record(self, np.minimum(times, last)))

    def learned_fraction(self, s: ArrayLike) -> Array:
        """y_s(tau), the fraction of the target learned along spectral components of eigenvalue s.

        At infinite width these are the modes, s = lambda_k.

        Parameters
        ----------
        s : float or array_like
            Eigenvalues s >= 0.

        Returns
        -------
        ndarray, shape (T,) + shape of s
        """
        values = np.asarray(s)
        flat = as_vector("s", np.atleast_1d(values).ravel(), minimum=0.0)
        order = np.argsort(-flat, kind="stable")
        y = np.empty((self.times.size, flat.size))
        y[:, order] = replay(vars(self), self.times, flat[order], np.zeros(0, dtype=np.complex128)).learned
        return y.reshape(self.times.shape + values.shape)


def solve_gradient_flow(
    model: Model, times: ArrayLike, projection: str | int = "average", *, rtol: float = 1e-8
) -> FlowSolution:
    r"""Solve gradient flow exactly, at any width and richness and over any number of decades.

    Each spectral component s of X = Lambda^{1/2} (A(0)^T A(0)/N) Lambda^{1/2} has a learned fraction y_s(tau),

    .. math::
        \dot y_s = a s (1 - y_s) + \frac{\dot a}{2a} y_s, \qquad a = 1 + \gamma q, \qquad
        q (1 + \gamma q) = \mu(y^2/s), \qquad L(\tau) = \mu((1-y)^2) + \mu_0

    with mu the source measure and mu_0 its atom at 0. In the effective time u, du = a dtau, and with
    g = a^{-1/2}, the deviations d_s = g (1 - y_s) obey d' = g' - s d: all components are driven by one slow function,
    found by collocation on panels that grow with u. The components' exponentials are exact at every step size.

    Offline (n_samples finite) mu is the spectral measure of the residuals on the samples and gives the train loss.
    Fresh samples obey the same equations with another drive: the response of the residuals to one another is undone,
    at all times. Label noise is a part of the samples' residuals and over-fitted in the end.

    Parameters
    ----------
    model : Model
        Spectrum, width and gamma, offline also n_samples and label_noise; the learning rate plays no part, nor,
        online, do batch size and label noise.
    times : array_like, shape (T,)
        tau = learning rate x step, increasing, at least 0.
    projection : "average" or int
        Average over the initial features A(0) (default: the deterministic equivalent), or the seed of one realised
        A(0), that of run 0 of ``simulate(model, ..., seed)``; offline also over the samples, or of those of run 0.
    rtol : float
        Relative accuracy of the loss, 1e-10 to 0.01 (default 1e-8). Losses below 1e-17 of the first one, at the
        exponential end of finite spectra, have it beside an absolute 1e-25 of that. Train losses, which fall
        exponentially where all samples can be fitted, have it beside 1e-4 of the first one, or an absolute 1e-12 of
        that.

    Returns
    -------
    FlowSolution

    Warns
    -----
    AccuracyWarning
        If the nodes are not as accurate as asked; the message says what was reached.

    Raises
    ------
    TypeError, ValueError
        For arguments of the wrong type or range, times that are not increasing; for a realised projection of an
        infinite spectrum.
    NotImplementedError
        For a finite batch_size where n_samples is finite.
    InsufficientMemoryError
        If the matrices of a realised projection do not fit.
    ScalefieldError
        If the integration does not reach the last time.

    Notes
    -----
    O(Q log(tau)) in time for Q nodes, of the order of 10-50 ms for 12 decades; memory O(Q). Width inf uses the modes;
    the average at finite width nodes on the spectrum up to N = 1024, beyond it the modes and a contour for the
    difference, so that the cost does not depend on N. A realised projection costs O(N^2 M + N^3). Theory section 7.

    Offline 100 times over 14 decades take 0.1 to 0.3 s at any N and P, a realised data set O(N P M + N^2 M). Theory
    section 7d; averages are exact to leading order in 1/N and 1/P.

    Examples
    --------
    >>> import numpy as np
    >>> import scalefield as sf
    >>> model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5), gamma=1.0)
    >>> flow = sf.solve_gradient_flow(model, np.geomspace(1e-2, 1e12, 100))
    >>> bool(abs(flow.at([1e10]).local_exponent[0] - 2 * 0.5 / 1.5) < 2e-3)
    True

    Label noise of 100 samples is over-fitted: the train loss falls to 0 while the test loss turns.

    >>> noisy = sf.solve_gradient_flow(model.replace(n_samples=100, label_noise=1.0), np.geomspace(0.1, 1e6, 50))
    >>> bool(noisy.train_loss[-1] < 1e-6), bool(noisy.loss.min() < 0.5 * noisy.loss[-1])
    (True, True)
    """
    if not isinstance(model, Model):
        raise TypeError(f"model must be a Model, got {model!r} of type {type(model).__name__}")
    times = _as_times(times)
    rtol = as_float("rtol", rtol, minimum=1e-10)
    if rtol > 0.01:
        raise ValueError(f"rtol must be at most 0.01, got {rtol!r}")
    if isinstance(projection, str):
        if projection != "average":
            raise ValueError(f"projection must be 'average' or a seed, got {projection!r}")
        seed = None
    elif projection is None:
        raise TypeError("projection must be 'average' or a seed, got None")
    else:
        seed = as_seed("projection", projection)
    # Products are small: threads would cost more than they give.
    with single_threaded_blas():
        horizon = max(1.0, _effective_time(model, float(times[-1])))
        if not model.is_offline:
            fields = _solve_online(model, times, seed, horizon, rtol)
        elif not math.isinf(model.batch_size):
            raise NotImplementedError(
                "gradient flow on a fixed data set takes all samples at once: batch_size must be inf where n_samples "
                f"is finite, got {model.batch_size:g}"
            )
        elif seed is None:
            fields = solve_average(model, times, horizon, rtol)
        else:
            fields = solve_realised(model, times, seed, rtol)
    if fields["quadrature_error"] > rtol:
        warnings.warn(
            f"rtol {rtol:g} is beyond reach of the spectral nodes here: about {fields['quadrature_error']:.1g} was "
            "reached",
            AccuracyWarning,
            stacklevel=2,
        )
    curves = ("loss", "kernel_scale", "spike", "alignment", "local_exponent", "effective_time")
    fields |= dict.fromkeys(curves, np.zeros(times.size))
    solution = FlowSolution(
        model=model,
        times=times,
        projection="average" if seed is None else seed,
        rtol=rtol,
        n_nodes=fields["source_eigenvalues"].size + fields["contour_eigenvalues"].size,
        **fields,
    )
    with single_threaded_blas():
        return replace(solution, **_record(solution, times))


class AveragedFlow:
    """Loss of online gradient flow averaged over A(0), at a width that need not be whole.

    Whole widths of models are what can be trained; the deterministic equivalent knows the width as 1/N alone, and
    what is optimal over it is found between whole ones.

    Parameters
    ----------
    spectrum : PowerLawSpectrum or Spectrum
        The task.
    width : float
        N >= 1, finite.
    gamma : float
        Richness.
    end : float
        Largest tau that will be asked for.
    rtol : float
        Relative accuracy of the loss.

    Attributes
    ----------
    error : float
        Relative error of the nodes.
    """

    def __init__(self, spectrum: Task, width: float, gamma: float, end: float, rtol: float) -> None:
        # The kernel grows less than at infinite width.
        horizon = max(1.0, _effective_time(Model(spectrum, gamma=gamma), end))
        # As for whole widths, so that the two agree bit by bit.
        horizon = 10.0 ** math.ceil(math.log10(horizon))
        equivalent = DeterministicEquivalent(spectrum, width)
        if _takes_contour(spectrum, width):
            measure = _contour_measure(equivalent, horizon, max(1e-12, _CONTOUR_TOLERANCE * rtol))
        else:
            measure = _real_measure(equivalent.measure(), horizon, max(1e-13, _NODE_TOLERANCE * rtol))
        self.error = measure.error
        self._measure = measure
        self._panels = march_panels(
            gamma, measure.s, measure.mass, measure.contour_s, measure.contour_weight, end, rtol, measure.atom
        )

    def loss(self, times: Array) -> Array:
        """Test loss at increasing times tau."""
        measure = self._measure
        found = replay(self._panels, times, measure.s, measure.contour_s)
        loss: Array = found.unlearned**2 @ measure.mass + measure.atom
        if measure.contour_s.size:
            loss += (found.ray_unlearned**2 @ measure.contour_weight).imag
        return loss


def _as_times(times: ArrayLike) -> Array:
    times = as_vector("times", times, minimum=0.0)
    if (np.diff(times) <= 0.0).any():
        index = int(np.argmax(np.diff(times) <= 0.0)) + 1
        raise ValueError(
            f"times must be increasing, got {float(times[index])!r} after {float(times[index - 1])!r} at index {index}"
        )
    return times


def _effective_time(model: Model, tau: float) -> float:
    """Upper estimate of u = integral of a dtau: that of lazy learning of all of the target at infinite width."""
    if not model.is_rich or tau == 0.0:
        return tau
    u = tau
    for _ in range(60):
        # Nodes that resolve the modes learned by then.
        nodes = model.spectrum.quadrature(rtol=1e-6, horizon=10.0 ** math.ceil(math.log10(max(1.0, u))))
        power = nodes.weights * nodes.target_power
        # w*^2 (1 - e^{-z})^2 = u lambda w*^2 (1 - e^{-z})^2/z with z = lambda u: no overflow for small lambda
        z = nodes.eigenvalues * u
        # label noise of fixed samples is learned too: y^2/s <= u
        n = u * (float(power @ (np.expm1(-z) ** 2 / z)) + (model.label_noise**2 if model.is_offline else 0.0))
        longer = tau * 0.5 * (1.0 + math.sqrt(1.0 + 4.0 * model.gamma * n))
        if longer <= 1.01 * u:
            break
        u = longer
    return 1.2 * u


@dataclass(frozen=True)
class _FlowMeasure:
    """The source measure: real nodes, an atom at 0, and a contour for what they leave out."""

    s: Array
    mass: Array
    atom: float
    contour_s: ComplexArray
    contour_weight: ComplexArray
    first_moment: float
    trace_square: float
    error: float


def _measure(model: Model, seed: int | None, horizon: float, rtol: float) -> _FlowMeasure:
    node_rtol = max(1e-13, _NODE_TOLERANCE * rtol)
    # Nodes are kept from call to call: for powers of ten of the horizon.
    horizon = 10.0 ** math.ceil(math.log10(horizon))
    on_contour = seed is None and _takes_contour(model.spectrum, model.width)
    if math.isinf(model.width) or not on_contour:
        return _real_measure(spectral_measure(model, seed, max(1e-13, 0.1 * node_rtol), horizon), horizon, node_rtol)
    equivalent = DeterministicEquivalent(model.spectrum, model.width)
    return _contour_measure(equivalent, horizon, max(1e-12, _CONTOUR_TOLERANCE * rtol))


def _takes_contour(spectrum: Task, width: float) -> bool:
    """Whether the average over A(0) of this width has fewer nodes on a contour."""
    n_modes = math.inf if spectrum.n_modes is None else spectrum.n_modes
    # Without an atom the loss falls without bound, and only nodes on the spectrum itself keep its digits.
    return _CONTOUR_ABOVE < width < n_modes and spectrum.total_target_power > 0.0


def _real_measure(measure: SpectralMeasure, horizon: float, rtol: float) -> _FlowMeasure:
    trace_square = float(measure.weights @ measure.eigenvalues**2)
    # Copies, since kernels take writable arrays only.
    s, mass, error = np.array(measure.source_eigenvalues), np.array(measure.source_power), 0.0
    present = (mass > 0.0) & (s > 0.0)
    first_moment = float(mass @ s)
    if present.any():
        s, mass, error = condense(s[present], mass[present], horizon, rtol, measure.atom)
    none = np.zeros(0, dtype=np.complex128)
    return _FlowMeasure(s, mass, measure.atom, none, none, first_moment, trace_square, max(measure.error, error))


def _contour_measure(equivalent: DeterministicEquivalent, horizon: float, rtol: float) -> _FlowMeasure:
    contour = source_contour(equivalent, horizon, rtol)
    nodes = equivalent.spectrum.quadrature(rtol=1e-13, horizon=horizon)
    # <u, X u> = sum u^2 lambda and tr X^2 = sum lambda^2 + (sum lambda)^2/N on average, to leading order in 1/N
    first_moment = float((nodes.weights * nodes.target_power) @ nodes.eigenvalues)
    trace_square = float(nodes.weights @ nodes.eigenvalues**2) + nodes.trace**2 / equivalent.width
    return _FlowMeasure(
        contour.eigenvalues,
        contour.masses,
        contour.atom,
        contour.ray,
        contour.ray_weights,
        first_moment,
        trace_square,
        contour.error,
    )


def _solve_online(model: Model, times: Array, seed: int | None, horizon: float, rtol: float) -> dict[str, Any]:
    """Fields of an online solution, but for the curves."""
    end = float(times[-1])
    measure = _measure(model, seed, horizon, rtol)
    return {
        "quadrature_error": measure.error,
        "source_eigenvalues": measure.s,
        "source_power": measure.mass,
        "contour_eigenvalues": measure.contour_s,
        "contour_weights": measure.contour_weight,
        "atom": measure.atom,
        "first_moment": measure.first_moment,
        "trace_square": measure.trace_square,
        **march_panels(
            model.gamma, measure.s, measure.mass, measure.contour_s, measure.contour_weight, end, rtol, measure.atom
        ),
    }


def _record(solution: FlowSolution, times: Array) -> dict[str, Any]:
    """What a solution records at some times."""
    if solution.model.is_offline:
        return offline_curves(solution.model, vars(solution), times)
    gamma = solution.model.gamma
    s, z = solution.source_eigenvalues, solution.contour_eigenvalues
    found = replay(vars(solution), times, s, z)
    u, g, slope = found.u, found.drive, found.slope
    learned, unlearned, ray_unlearned = found.learned, found.unlearned, found.ray_unlearned

    def mu(function: Any) -> Array:
        """Integral over the source measure without its atom, of a function of (s, 1 - y_s) that decays with s."""
        value: Array = function(s, unlearned) @ solution.source_power
        return value + contour(function)

    def contour(function: Any) -> Array | float:
        return (function(z, ray_unlearned) @ solution.contour_weights).imag if z.size else 0.0

    a = g**-2.0
    loss = mu(lambda _, w: w * w) + solution.atom
    # dL/dtau = a dL/du with (1-y)' = g'/g - s (1-y) - (1-y) g'/g
    drift = (slope / g)[:, None]
    loss_slope = a * mu(lambda s, w: 2.0 * w * (drift * (1.0 - w) - s * w))
    # Moments of y: on the contour, whose own mass is zero, of what is left of them as s grows; nothing there is learned
    # before its upper end is.
    seen = u * np.abs(z[0]) > 30.0 if z.size else np.zeros(times.size, dtype=np.bool_)
    weighted_power = s * solution.source_power
    power, mean = float(solution.source_power.sum()) + solution.atom, solution.first_moment
    y_mean = learned @ solution.source_power - seen * contour(lambda _, w: w)
    y_square = learned**2 @ solution.source_power - seen * contour(lambda _, w: w * (2.0 - w))
    y_weighted = learned**2 @ weighted_power
    y_weighted += seen * (mean - float(weighted_power.sum()) - contour(lambda s, w: s * w * (2.0 - w)))
    spike = gamma / a * y_square
    with np.errstate(divide="ignore", invalid="ignore"):
        norm = np.sqrt(a**2 * solution.trace_square + 2.0 * gamma * y_weighted + spike**2)
        alignment = (a * mean + gamma / a * y_mean**2) / (norm * power)
        exponent = np.where(times == 0.0, 0.0, -times * loss_slope / loss)
    return {
        "loss": loss,
        "kernel_scale": a,
        "spike": spike,
        "alignment": alignment,
        "local_exponent": exponent,
        "effective_time": u,
    }
