"""Gradient flow in closed form: learning curves over any number of decades of time (theory section 7)."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scalefield._measures import spectral_measure
from scalefield._result import Result
from scalefield._validate import as_float, as_seed, as_vector
from scalefield.contour import source_contour
from scalefield.data_equivalent import DataContour, DataEquivalent
from scalefield.errors import AccuracyWarning, ScalefieldError
from scalefield.model import Model
from scalefield.quadrature import condense
from scalefield.realised_data import realise
from scalefield.resolvent import DeterministicEquivalent
from scalefield.spectral_measure import SpectralMeasure

__all__ = ["FlowSolution", "solve_gradient_flow"]

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]

_MAX_PANELS = 4000
# Interpolation error of g on a panel over the error allowed of the loss, measured on runs to 1e12.
_PANEL_TOLERANCE = 0.003
# Below it, rounding errors would decide.
_PANEL_FLOOR = 3e-12
# Nodes are finer than the error allowed.
_NODE_TOLERANCE = 0.01
# Contours hold what they are asked for.
_CONTOUR_TOLERANCE = 0.1
# Offline, of the ray's rule: it serves the filter and squares of what it does, too.
_DATA_TOLERANCE = 1e-3
# Train losses below this fraction of the first are judged beside it: they fall exponentially, without bound.
_TRAIN_FLOOR = 1e-4
# Times at which two rays are compared.
_CHECK_TIMES = 40
# Nodes on the spectrum itself are faster up to about this width (twice at N = 256); their number grows with it.
_CONTOUR_ABOVE = 1024.0


@dataclass(frozen=True, eq=False, repr=False)
class FlowSolution(Result):
    r"""Gradient flow of a model, recorded at some times; `at` evaluates it at any other.

    Attributes
    ----------
    model : Model
        What was solved; its learning rate, batch size and label noise play no part.
    times : ndarray of float64, shape (T,)
        tau = learning rate x step.
    loss : ndarray, shape (T,)
        L(tau), the test loss.
    kernel_scale : ndarray, shape (T,)
        a = 1 + gamma q, the factor by which the whole kernel has grown; q = |w|^2/N.
    spike : ndarray, shape (T,)
        (gamma/a) mu(y^2), the strength of the kernel's rank-one part: in the basis where the features are white,
        the kernel is a X + (gamma/a) (y u)(y u)^T with y = y(X) the learned fractions.
    alignment : ndarray, shape (T,)
        Cosine between kernel and task, <u, K u>/(|K|_F |u|^2) with that kernel K; nan if there is no target.
    local_exponent : ndarray, shape (T,)
        -d log L/d log tau; 0 at tau = 0, nan where the loss is 0.
    effective_time : ndarray, shape (T,)
        u = integral of a dtau, the time that components of the spectrum see.
    projection : str or int
        "average" over initial features, or the seed of the one realised.
    rtol : float
        Relative accuracy asked of the loss.
    quadrature_error : float
        Relative change of lazy losses over all times from n to 1.5 n nodes.
    n_nodes : int
        Nodes of the source measure, those of a contour included.
    source_eigenvalues, source_power : ndarray, shape (Q,)
        Real nodes and masses of the source measure.
    contour_eigenvalues, contour_weights : ndarray of complex128, shape (R,)
        Nodes s_j on a ray and weights W_j: a function f adds sum_j Im W_j f(s_j).
    atom : float
        Power that is never learned.
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
        """Test less train loss, both with the label noise of their samples: loss + sigma^2 - train_loss; None online."""
        if self.train_loss is None:
            return None
        return self.loss + self.model.label_noise**2 - self.train_loss

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
        y[:, order] = _replay(vars(self), self.times, flat[order], np.zeros(0, dtype=np.complex128)).learned
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

    Parameters
    ----------
    model : Model
        Spectrum, width and gamma; learning rate, batch size and label noise play no part.
    times : array_like, shape (T,)
        tau = learning rate x step, increasing, at least 0.
    projection : "average" or int
        Average over the initial features A(0) (default: the deterministic equivalent), or the seed of one realised
        A(0), that of run 0 of ``simulate(model, ..., seed)``.
    rtol : float
        Relative accuracy of the loss, 1e-10 to 0.01 (default 1e-8).

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
        For arguments of the wrong type or range, times that are not increasing.
    ScalefieldError
        If the integration does not reach the last time.

    Notes
    -----
    O(Q log(tau)) in time for Q nodes, of the order of 10-50 ms for 12 decades; memory O(Q). Width inf uses the modes;
    the average at finite width nodes on the spectrum up to N = 1024, beyond it the modes and a contour for the
    difference, so that the cost does not depend on N. A realised projection costs O(N^2 M + N^3). Theory section 7.

    Examples
    --------
    >>> import numpy as np
    >>> import scalefield as sf
    >>> model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5), gamma=1.0)
    >>> flow = sf.solve_gradient_flow(model, np.geomspace(1e-2, 1e12, 100))
    >>> bool(abs(flow.at([1e10]).local_exponent[0] - 2 * 0.5 / 1.5) < 2e-3)
    True
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
    if model.is_offline:
        if not math.isinf(model.batch_size):
            raise NotImplementedError(
                "gradient flow on a fixed data set takes all samples at once: batch_size must be inf where n_samples is "
                f"finite, got {model.batch_size:g}"
            )
        fields = _offline_average(model, times, rtol) if seed is None else _offline_realised(model, times, seed, rtol)
    else:
        fields = _online(model, times, seed, rtol)
    if fields["quadrature_error"] > rtol:
        warnings.warn(
            f"rtol {rtol:g} is beyond reach of the spectral nodes here: about {fields['quadrature_error']:.1g} was "
            "reached",
            AccuracyWarning,
            stacklevel=2,
        )
    curves = ("loss", "kernel_scale", "spike", "alignment", "local_exponent", "effective_time")
    solution = FlowSolution(
        model=model,
        times=times,
        **dict.fromkeys(curves, np.zeros(times.size)),
        projection="average" if seed is None else seed,
        rtol=rtol,
        n_nodes=fields["source_eigenvalues"].size + fields["contour_eigenvalues"].size,
        **fields,
    )
    return replace(solution, **_record(solution, times))


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
    n_modes = math.inf if model.spectrum.n_modes is None else model.spectrum.n_modes
    # Without an atom the loss falls without bound, and only nodes on the spectrum itself keep its digits.
    on_contour = _CONTOUR_ABOVE < model.width < n_modes and seed is None and model.spectrum.total_target_power > 0.0
    if math.isinf(model.width) or not on_contour:
        return _real_measure(spectral_measure(model, seed, max(1e-13, 0.1 * node_rtol), horizon), horizon, node_rtol)
    equivalent = DeterministicEquivalent(model.spectrum, model.width)
    return _contour_measure(equivalent, horizon, max(1e-12, _CONTOUR_TOLERANCE * rtol))


def _real_measure(measure: SpectralMeasure, horizon: float, rtol: float) -> _FlowMeasure:
    trace_square = float(measure.weights @ measure.eigenvalues**2)
    # Copies, since kernels take writable arrays only.
    s, mass, error = np.array(measure.source_eigenvalues), np.array(measure.source_power), 0.0
    present = (mass > 0.0) & (s > 0.0)
    first_moment = float(mass @ s)
    if present.any():
        s, mass, error = condense(s[present], mass[present], horizon, rtol, measure.atom)
    none = np.zeros(0, dtype=np.complex128)
    return _FlowMeasure(
        s, mass, measure.atom, none, none, first_moment, trace_square, max(measure.error, error)
    )


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


def _online(model: Model, times: Array, seed: int | None, rtol: float) -> dict[str, Any]:
    """Fields of an online solution, but for the curves."""
    end = float(times[-1])
    measure = _measure(model, seed, max(1.0, _effective_time(model, end)), rtol)
    return {
        "quadrature_error": measure.error,
        "source_eigenvalues": measure.s,
        "source_power": measure.mass,
        "contour_eigenvalues": measure.contour_s,
        "contour_weights": measure.contour_weight,
        "atom": measure.atom,
        "first_moment": measure.first_moment,
        "trace_square": measure.trace_square,
        **_march(model.gamma, measure.s, measure.mass, measure.contour_s, measure.contour_weight, end, rtol),
    }


def _offline_realised(model: Model, times: Array, seed: int, rtol: float) -> dict[str, Any]:
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
        **_march(model.gamma, data.eigenvalues, data.residual_power, none, none, float(times[-1]), rtol),
    }


def _offline_average(model: Model, times: Array, rtol: float) -> dict[str, Any]:
    """Fields of the average over projections and data sets, but for the curves."""
    end = float(times[-1])
    horizon = 10.0 ** math.ceil(math.log10(max(1.0, _effective_time(model, end))))
    equivalent = DataEquivalent(model.spectrum, model.width, model.n_samples, horizon)
    # The trapezoid rule's error e^{-2 pi d/h}, d = pi/4, as in `contour`
    step = 0.5 * math.pi**2 / -math.log(max(1e-13, _DATA_TOLERANCE * rtol))
    contours = equivalent.contour(horizon, [step, step / 1.5])
    contour, power = contours[0], model.label_noise**2
    panels = _march(
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
    losses = []
    for rule in reversed(contours):
        fields = {
            "quadrature_error": 0.0,
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
        losses.append(_offline_losses(model, fields, check))
    floor = max(_TRAIN_FLOOR, 1e-12 / rtol) * (model.spectrum.total_target_power + power)
    fields["quadrature_error"] = _deviation(*losses, floor)
    return fields


def _march(
    gamma: float, s: Array, mass: Array, ray: ComplexArray, ray_weight: ComplexArray, end: float, rtol: float
) -> dict[str, Any]:
    """Panels of g until tau = end for a source measure on real nodes and a ray."""
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
class _Components:
    """Effective time, a drive and its slope in u, then y and 1 - y of rates: shape (times,) or (times, rates)."""

    u: Array
    drive: Array
    slope: Array
    learned: Array
    unlearned: Array
    ray_learned: ComplexArray
    ray_unlearned: ComplexArray


def _replay(
    panels: Any, times: Array, s: Array, ray: ComplexArray, coefficients: Array | None = None
) -> _Components:
    """Components at some times, of g or of another drive on its panels; y and 1 - y are relative to that drive."""
    from scalefield._native.gradient_flow import locate

    start, length, tau = (np.array(panels[f"panel_{name}"]) for name in ("start", "length", "times"))
    own = np.array(panels["panel_coefficients"])
    panel, position = np.zeros(times.size, dtype=np.int64), np.zeros(times.size)
    if length.size:
        locate(tau, length, own, np.array(times), panel, position)
    return _components(start, length, own if coefficients is None else coefficients, panel, position, s, ray)


def _components(
    start: Array,
    length: Array,
    coefficients: Array,
    panel: NDArray[np.int64],
    position: Array,
    s: Array,
    ray: ComplexArray,
) -> _Components:
    """Components at positions in [-1, 1] on panels."""
    from scalefield._native.causal_panels import chebyshev_points, series_matrix
    from scalefield._native.gradient_flow import evaluate

    n = panel.size
    learned, unlearned = np.zeros((n, s.size)), np.ones((n, s.size))
    ray_learned, ray_unlearned = (np.full((n, ray.size), value, dtype=np.complex128) for value in (0.0, 1.0))
    if length.size == 0:
        return _Components(np.zeros(n), np.ones(n), np.zeros(n), learned, unlearned, ray_learned, ray_unlearned)
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
    return _Components(u, drive, slope, learned, unlearned, ray_learned, ray_unlearned)


def _fresh_drive(panels: dict[str, Any], contour: DataContour) -> Array:
    r"""Coefficients of the drive of fresh samples on the panels of g.

    A fresh sample's deviation is that of a training sample with the response R undone, so it is driven by g~ with
    R g~ = g. With 1/R = 1 + c_0/omega + int dnu(x)/(omega + x) this is

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
    found = _components(start, length, coefficients, panel, np.tile(points, n_panels), s, contour.ray)
    gain = found.learned @ weight
    gain += (found.ray_learned @ (contour.ray_filter / contour.ray)).imag
    drive = (found.drive * (1.0 + gain)).reshape(n_panels, points.size)
    fresh = (drive - drive[:, :1]) @ monomial_matrix().T
    fresh[:, 0] += drive[:, 0]
    return fresh


def _offline_losses(model: Model, fields: Any, times: Array) -> tuple[Array, Array, Array, Array]:
    r"""Test loss, train loss, du-slope of the test loss and <u, Lambda^{1/2} v_0>, averaged over the data.

    With e_s = d~_s/g, d~ driven by g~, the mean squared residual of fresh samples is mu'(e^2). As the mean of e over all
    eigenvalues of K is 1, label noise adds sigma^2 times their mean of (e - 1)^2 to the test loss.
    """
    s, z = fields["source_eigenvalues"], fields["contour_eigenvalues"]
    seen, fresh = _replay(fields, times, s, z), _replay(fields, times, s, z, fields["fresh_coefficients"])
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


def _record_offline(solution: FlowSolution, times: Array) -> dict[str, Any]:
    """What an offline solution records at some times."""
    gamma = solution.model.gamma
    fields = vars(solution)
    s, z = solution.source_eigenvalues, solution.contour_eigenvalues
    if solution.response is None:
        power = solution.model.spectrum.total_target_power
        test, train, slope, remaining = _offline_losses(solution.model, fields, times)
        found = _replay(fields, times, s[:0], z[:0])
        learned = power - 2.0 * remaining + test
    else:
        found = _replay(fields, times, s, z)
        error = solution.response_target - found.learned @ solution.response.T
        test = (error**2).sum(axis=1) + solution.test_atom
        train = found.unlearned**2 @ solution.source_power + solution.atom
        # y' = s (1 - y) - y g'/g
        change = s * found.unlearned - (found.slope / found.drive)[:, None] * found.learned
        slope = -2.0 * (error * (change @ solution.response.T)).sum(axis=1)
        learned = ((found.learned @ solution.response.T) ** 2).sum(axis=1)
    a = found.drive**-2.0
    with np.errstate(divide="ignore", invalid="ignore"):
        exponent = np.where(times == 0.0, 0.0, -times * a * slope / test)
    return {
        "loss": test,
        # Rounding may leave what has vanished below 0.
        "train_loss": np.maximum(train, 0.0),
        "kernel_scale": a,
        "spike": gamma / a * learned,
        "alignment": np.full(times.size, math.nan),
        "local_exponent": exponent,
        "effective_time": found.u,
    }


def _record(solution: FlowSolution, times: Array) -> dict[str, Any]:
    """What a solution records at some times."""
    if solution.model.is_offline:
        return _record_offline(solution, times)
    gamma = solution.model.gamma
    s, z = solution.source_eigenvalues, solution.contour_eigenvalues
    found = _replay(vars(solution), times, s, z)
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
