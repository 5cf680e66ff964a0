"""The front door of the mean-field theory: one call, several engines."""

from __future__ import annotations

import math
import warnings
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scalefield._measures import spectral_measure
from scalefield._progress import Progress
from scalefield._steps import as_steps, log_spaced_steps
from scalefield._threads import single_threaded_blas
from scalefield._validate import as_count, as_seed
from scalefield.dmft.hierarchy import solve_closure
from scalefield.dmft.offline import solve_offline
from scalefield.dmft.solution import DMFTSolution
from scalefield.dmft.spectral import solve_spectral
from scalefield.dmft.two_time import require_two_time_memory, solve_two_time
from scalefield.errors import StabilityWarning
from scalefield.model import Model
from scalefield.quadrature import SpectralNodes, check_rtol

__all__ = ["METHODS", "solve_dmft"]

METHODS = ("auto", "two-time", "spectral", "closure")

# Closures record every step up to here, beyond log-spaced ones.
_ALL_STEPS = 10_000


def solve_dmft(
    model: Model,
    n_steps: int,
    method: str = "auto",
    order: int = 2,
    steps: ArrayLike | None = None,
    *,
    projection: str | int = "average",
    nodes: SpectralNodes | None = None,
    rtol: float = 1e-12,
    progress: Progress | None = None,
) -> DMFTSolution:
    r"""Solve the mean-field theory of online SGD, step by step.

    **two-time** (theory section 3): with H_k = (1 + lambda_k K)^{-1} for each mode, D = L + sigma^2 and
    Z = K C_1 K^T/N, the closed equations

    .. math::
        R_{13} &= -\sum_k \lambda_k H_k, \qquad R_{22} = (1 - R_{13} P/N)^{-1}, \qquad K = P R_{22} \\
        C_1 &= \sum_k \lambda_k^2 H_k [w_k^{*2} 1 1^T + Z] H_k^T
               + \tfrac{\lambda_k}{B} H_k\, \mathrm{diag}(D)\, H_k^T \\
        C_2 &= R_{22} C_1 R_{22}^T, \qquad C_w = H_w C_2 H_w^T, \qquad
        P = H_w + \eta\gamma\,\mathrm{tril}(C_w, -1) \\
        L(t) &= \sum_k \lambda_k (H_k [w_k^{*2} 1 1^T + Z] H_k^T)(t,t)
               + \tfrac{1}{B} ((1-H_k)\,\mathrm{diag}(D)\,(1-H_k)^T)(t,t)

    are causal: row t of every matrix follows from the rows before it. Nothing is iterated or damped, and the result
    is exact for discrete steps up to rounding and the quadrature over modes.

    **spectral** (section 6): the same theory on the eigenvalues s of the random features, with
    Phi_s = (1 + s P)^{-1}; equally exact and faster at finite width, without the responses of single modes.

    **closure** (sections 7b, 7c): memoryless recursions on the same eigenvalues. Order 0 keeps the balance law
    G^T G = 1 + (gamma/(1 + gamma q)) p p^T/N of gradient flow: exact for gamma = 0. Order 1 keeps its defect
    between means: exact at infinite batch size. Order 2 also that between means and noise; what it drops is of second
    order in the SGD noise.

    Parameters
    ----------
    model : Model
        Task and training; any width, gamma, batch size and label noise, including infinite ones.
    n_steps : int
        Number of SGD steps, at least 1. To 1e8 and beyond for closures of order 0 and all lazy models.
    method : {"auto", "two-time", "spectral", "closure"}
        The engine; "auto" (default) takes the cheapest exact one: "closure" where it is exact (gamma = 0, or infinite
        batch size), else "spectral" at finite and "two-time" at infinite width. Only "two-time" gives bias,
        variances and responses; closures give no two-time functions.
    order : {0, 1, 2}
        Of the closure (default 2); ignored by the other engines, and by "auto".
    steps : array_like of int, shape (T,), optional
        Where to record, increasing, from 0 to n_steps. Default: every step, but 200 log-spaced ones for closures
        beyond 10,000 steps. Two-time arrays keep these rows and columns.
    projection : "average" or int
        Average over the initial features A(0) (default), or the seed of one realised A(0), that of run 0 of
        ``simulate(model, ..., seed)``; for "spectral" and "closure".
    nodes : SpectralNodes, optional
        Nodes to use in place of ``model.spectrum.quadrature``, for "two-time" (which "auto" takes then).
    rtol : float
        Accuracy of the sums over modes or eigenvalues relative to their total mass (closures: to each decaying sum),
        1e-13 to 0.1 (default 1e-12). What training cannot tell apart within n_steps is merged to this accuracy.
    progress : callable, optional
        Called as ``progress(steps_done, n_steps)`` a few times a second.

    Returns
    -------
    DMFTSolution
        Learning curve, and what else the engine gives; `.method` and `.order` name it.

    Warns
    -----
    StabilityWarning
        If the learning rate is beyond ``model.stability_bound``, or if the kernel grew past it during training.

    Raises
    ------
    TypeError, ValueError
        For arguments of the wrong type or range.
    InsufficientMemoryError
        If the arrays do not fit into the available memory; nothing was allocated.
    DivergenceError
        If the loss leaves the finite range; `.step` is that step, `.partial` the solution before it.
    Interrupted
        On Ctrl-C, within a second; `.partial` is the solution so far.

    Notes
    -----
    With Q nodes and T = n_steps + 1: two-time (4/3) Q T^3 floating-point operations and 80 T^2 bytes, spectral
    (2/3) Q T^3 and 40 T^2, on all cores (SCALEFIELD_NUM_THREADS limits them; results do not depend on their
    number); closures O(Q), O(Q^2) and O(Q^2 + Q r^2) a step for orders 0, 1, 2 with r of the order of 10, and
    O(Q log T) in all for order 0 beyond 65,536 steps (4,096 at gamma = 0), which is taken in log time. Q is 20-110
    for power laws. Bordelon, Atanasov & Pehlevan, arXiv:2409.17858, Eqs. 26-31; theory sections 3, 6, 7b, 7c.

    Examples
    --------
    >>> import scalefield as sf
    >>> model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5), width=64, gamma=1.0, batch_size=32)
    >>> solution = sf.solve_dmft(model, 100)
    >>> solution.method, bool(solution.loss[100] < 0.5 * solution.loss[0])
    ('spectral', True)
    >>> lazy = sf.solve_dmft(model.replace(gamma=0.0), 10**8)
    >>> lazy.method, lazy.steps.size
    ('closure', 201)
    """
    if not isinstance(model, Model):
        raise TypeError(f"model must be a Model, got {model!r} of type {type(model).__name__}")
    n_steps = as_count("n_steps", n_steps)
    if not isinstance(method, str):
        raise TypeError(f"method must be a string, got {method!r} of type {type(method).__name__}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}, got {method!r}")
    order = as_count("order", order, minimum=0)
    if order > 2:
        raise ValueError(f"order must be 0, 1 or 2, got {order}")
    rtol = check_rtol(rtol)
    if nodes is not None and not isinstance(nodes, SpectralNodes):
        raise TypeError(f"nodes must be SpectralNodes, got {nodes!r} of type {type(nodes).__name__}")
    seed = _as_projection(projection)
    method, order = _engine(model, method, order, nodes, seed)
    recorded = _as_steps(steps, n_steps, method)
    if method != "closure":
        # A lower bound before any work: the two-time arrays alone.
        require_two_time_memory(model, n_steps, method)
    model.warn_if_unstable()
    # One BLAS thread from the start: a BLAS pool woken by a small product spins for a while after it, on the cores
    # that the march needs.
    with single_threaded_blas():
        if method == "closure":
            return solve_closure(model, n_steps, recorded, seed, order, rtol, progress)
        if method == "spectral":
            measure = spectral_measure(model, seed, rtol, 1e12)
            solution = solve_spectral(model, n_steps, measure, rtol, progress)
        else:
            solve = solve_offline if model.is_offline else solve_two_time
            solution = solve(model, n_steps, nodes, rtol, progress)
    _warn_if_unstable_late(solution)
    return solution if recorded.size == n_steps + 1 else _at_steps(solution, recorded)


def _as_projection(projection: str | int) -> int | None:
    if isinstance(projection, str):
        if projection != "average":
            raise ValueError(f"projection must be 'average' or a seed, got {projection!r}")
        return None
    if projection is None:
        raise TypeError("projection must be 'average' or a seed, got None")
    return as_seed("projection", projection)


def _engine(
    model: Model, method: str, order: int, nodes: SpectralNodes | None, seed: int | None
) -> tuple[str, int]:
    """The engine that runs, and the order of a closure."""
    if model.is_offline:
        if method not in ("auto", "two-time"):
            raise ValueError(f"method must be 'two-time' or 'auto' for a finite n_samples, got {method!r}")
        if not math.isinf(model.batch_size):
            raise NotImplementedError(
                "no closed theory of batches drawn from a finite data set is known: a finite n_samples needs "
                f"batch_size inf, got {model.batch_size:g}; `simulate` has no such limit"
            )
        method = "two-time"
    if nodes is not None and method not in ("auto", "two-time"):
        raise ValueError(f"nodes go with method 'two-time', got method {method!r}")
    if seed is not None and (method == "two-time" or nodes is not None):
        raise ValueError("projection must be 'average' for method 'two-time', which knows no realised features")
    if method == "auto":
        if nodes is not None:
            return "two-time", order
        if not model.is_rich:
            return "closure", 0
        if math.isinf(model.batch_size):
            return "closure", 1
        return ("two-time" if math.isinf(model.width) else "spectral"), order
    return method, order


def _as_steps(steps: ArrayLike | None, n_steps: int, method: str) -> NDArray[np.int64]:
    """Steps to record."""
    if steps is not None:
        return as_steps("steps", steps, n_steps)
    if method != "closure" or n_steps <= _ALL_STEPS:
        return np.arange(n_steps + 1)
    return log_spaced_steps(n_steps)


def _at_steps(solution: DMFTSolution, steps: NDArray[np.int64]) -> DMFTSolution:
    """The rows and columns of the recorded steps."""
    changes: dict[str, Any] = {}
    size = solution.steps.size
    for field in fields(solution):
        value = getattr(solution, field.name)
        if isinstance(value, np.ndarray) and value.shape[:1] == (size,):
            changes[field.name] = value[np.ix_(steps, steps)] if value.ndim == 2 else value[steps]
    return replace(solution, **changes)


def _warn_if_unstable_late(solution: DMFTSolution) -> None:
    """Warn if feature learning carried a run that began stable past the stability bound."""
    step = solution.unstable_from
    if step is not None and step > 0:
        warnings.warn(
            f"the kernel has grown past the stability bound at step {step}: from there on, what was already learned "
            "can grow again from errors as small as rounding",
            StabilityWarning,
            stacklevel=3,
        )
