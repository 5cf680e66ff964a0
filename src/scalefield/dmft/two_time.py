"""The two-time engine: online SGD by time-marching (theory section 3)."""

from __future__ import annotations

import logging
import math
import warnings
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalefield._memory import require_memory
from scalefield._progress import Progress
from scalefield._threads import single_threaded_blas, thread_count
from scalefield._validate import as_count
from scalefield.dmft.solution import DMFTSolution
from scalefield.errors import DivergenceError, Interrupted, StabilityWarning
from scalefield.model import Model
from scalefield.quadrature import SpectralNodes, check_rtol, merge

__all__ = ["solve_dmft"]

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]

# Of the estimated effective time over what gradient flow predicts. Measured values stay below 0.9 of the latter.
_MARGIN = 1.2

# Marches with ever more nodes before a run is taken to be unstable.
_ATTEMPTS = 3

_CURVES = ("loss", "bias", "feature_variance", "sgd_variance")
_CORRELATIONS = ("C_0", "C_1", "C_2", "C_w")
_CAUSAL = ("R_13", "R_22", "K", "P", "H_w")


def solve_dmft(
    model: Model,
    n_steps: int,
    *,
    nodes: SpectralNodes | None = None,
    rtol: float = 1e-12,
    progress: Progress | None = None,
) -> DMFTSolution:
    r"""Solve the mean-field theory of online SGD exactly, step by step.

    With H_k = (1 + lambda_k K)^{-1} for each mode, D = L + sigma^2 and Z = K C_1 K^T/N, the closed equations

    .. math::
        R_{13} &= -\sum_k \lambda_k H_k, \qquad R_{22} = (1 - R_{13} P/N)^{-1}, \qquad K = P R_{22} \\
        C_1 &= \sum_k \lambda_k^2 H_k [w_k^{*2} 1 1^T + Z] H_k^T
               + \tfrac{\lambda_k}{B} H_k\, \mathrm{diag}(D)\, H_k^T \\
        C_2 &= R_{22} C_1 R_{22}^T, \qquad C_w = H_w C_2 H_w^T, \qquad
        P = H_w + \eta\gamma\,\mathrm{tril}(C_w, -1) \\
        L(t) &= \sum_k \lambda_k (H_k [w_k^{*2} 1 1^T + Z] H_k^T)(t,t)
               + \tfrac{1}{B} ((1-H_k)\,\mathrm{diag}(D)\,(1-H_k)^T)(t,t)

    are causal: row t of every matrix follows from the rows before it. Nothing is iterated or damped, and
    the result is exact for discrete steps up to rounding and the quadrature over modes.

    Parameters
    ----------
    model : Model
        Task and training; any width, gamma, batch size and label noise, including infinite ones.
    n_steps : int
        Number of SGD steps, at least 1.
    nodes : SpectralNodes, optional
        Nodes to use in place of ``model.spectrum.quadrature``.
    rtol : float
        Accuracy of the sums over modes relative to their total mass, 1e-13 to 0.1 (default 1e-12).
        Modes that training cannot tell apart within n_steps are merged to this accuracy.
    progress : callable, optional
        Called as ``progress(steps_done, n_steps)`` a few times a second.

    Returns
    -------
    DMFTSolution
        Learning curve, its three parts, and the two-time arrays.

    Warns
    -----
    StabilityWarning
        If the learning rate is beyond ``model.stability_bound``, or if the kernel grew past it during
        training (`DMFTSolution.unstable_from`).

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
    (4/3) Q T^3 floating-point operations in matrix products for Q nodes and T = n_steps + 1, on all cores
    (SCALEFIELD_NUM_THREADS limits them; results do not depend on their number), and 80 T^2 bytes. Q is
    20-60 for power laws. Bordelon, Atanasov & Pehlevan, arXiv:2409.17858, Eqs. 26-31; theory section 3.

    Examples
    --------
    >>> import scalefield as sf
    >>> model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5), width=64, gamma=1.0, batch_size=32)
    >>> solution = sf.solve_dmft(model, 100)
    >>> bool(solution.loss[100] < 0.5 * solution.loss[0])
    True
    """
    if not isinstance(model, Model):
        raise TypeError(f"model must be a Model, got {model!r} of type {type(model).__name__}")
    n_steps = as_count("n_steps", n_steps)
    rtol = check_rtol(rtol)
    if nodes is not None and not isinstance(nodes, SpectralNodes):
        raise TypeError(f"nodes must be SpectralNodes, got {nodes!r} of type {type(nodes).__name__}")
    # A lower bound before any work: the two-time arrays alone.
    _require_two_time_memory(n_steps + 1, 0)
    model.warn_if_unstable()
    # One BLAS thread from the start: a BLAS pool woken by a small product spins for a while after it, on the cores
    # that the march needs.
    with single_threaded_blas():
        solution = _solve(model, n_steps, nodes, rtol, progress)
    _warn_if_unstable_late(solution)
    return solution


def _solve(
    model: Model, n_steps: int, nodes: SpectralNodes | None, rtol: float, progress: Progress | None
) -> DMFTSolution:
    """March on merged nodes, again if the effective time came out beyond what they resolve."""
    horizon = _effective_time(model, n_steps, nodes)
    for attempt in range(_ATTEMPTS):
        measures = _Measures(model, nodes, horizon, rtol)
        solution = _march(model, n_steps, measures, progress)
        reached = _reached_time(solution)
        if measures.error == 0.0 or reached <= horizon:
            return solution
        logger.info("effective time %.3g beyond the estimate %.3g", reached, horizon)
        horizon = 2.0 * reached
        if attempt < _ATTEMPTS - 1:
            del solution
    # Only an unstable run, which no number of nodes makes definite, outgrows every estimate.
    return replace(solution, quadrature_error=math.inf)


class _Measures:
    """The two discrete measures that the march needs, merged to what training can resolve.

    The mode measure (mass lambda_k) costs O(T^2) a node and row, the source measure (mass lambda_k w*_k^2)
    only O(T): each has nodes of its own.
    """

    def __init__(self, model: Model, nodes: SpectralNodes | None, horizon: float, rtol: float) -> None:
        if nodes is None:
            nodes = model.spectrum.quadrature(rtol=rtol, horizon=max(1.0, horizon))
        x, power = nodes.eigenvalues, nodes.weights * nodes.target_power
        self.eigenvalue, mass, mode_error = merge(x, nodes.weights * x, horizon, rtol)
        self.mode_weight = mass / self.eigenvalue
        if (power > 0.0).any():
            self.source_eigenvalue, self.source_power, source_error = merge(
                x[power > 0.0], power[power > 0.0], horizon, rtol
            )
        else:
            self.source_eigenvalue, self.source_power, source_error = x[:1], np.zeros(1), 0.0
        self.error = max(nodes.error, mode_error, source_error)


def _effective_time(model: Model, n_steps: int, nodes: SpectralNodes | None) -> float:
    """Upper estimate of tau = sum_t eta a(t), the time that enters as e^{-lambda tau}.

    From gradient flow at infinite width (theory section 7): a = 1 + gamma q, q = (sqrt(1 + 4 gamma n) - 1)/
    (2 gamma), n = sum_k w*_k^2 (1 - e^{-lambda_k tau})^2, with a margin for what SGD noise may add.
    The march measures the true value and is repeated if it lies beyond.
    """
    tau = model.learning_rate * n_steps
    if not model.is_rich:
        return _MARGIN * tau
    if nodes is None:
        nodes = model.spectrum.quadrature()
    power = nodes.weights * nodes.target_power
    horizon = tau
    for _ in range(50):
        # w*^2 (1 - e^{-z})^2 = tau lambda w*^2 (1 - e^{-z})^2/z with z = lambda tau: no overflow for small lambda
        z = nodes.eigenvalues * horizon
        n = horizon * float(power @ (np.expm1(-z) ** 2 / z))
        longer = tau * 0.5 * (1.0 + math.sqrt(1.0 + 4.0 * model.gamma * n))
        if longer <= 1.01 * horizon:
            break
        horizon = longer
    return _MARGIN * horizon


def _reached_time(solution: DMFTSolution) -> float:
    """The effective time that the memory kernel attained: its largest row sum."""
    return float(np.linalg.norm(solution.K, np.inf))


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


def _require_two_time_memory(n_rows: int, n_modes: int) -> None:
    from scalefield._native.two_time_march import BLOCK

    arrays = len(_CORRELATIONS) + len(_CAUSAL) + 1
    needed = 8 * n_rows * (arrays * (n_rows + BLOCK + 8) + n_modes * (3 + 2 * BLOCK))
    require_memory(needed, f"the two-time arrays of {n_rows - 1} steps")


def _march(model: Model, n_steps: int, measures: _Measures, progress: Progress | None) -> DMFTSolution:
    from scalefield._native.two_time_march import BLOCK, LANES, MODE_GROUP, TwoTimeMarch, chunk_count

    n_rows, n_nodes, n_sources = n_steps + 1, measures.eigenvalue.size, measures.source_eigenvalue.size
    # Modes of weight 0 and eigenvalue 0 fill the last group.
    filling = -n_nodes % MODE_GROUP
    n_modes = n_nodes + filling
    _require_two_time_memory(n_rows, n_modes)
    n_blocks, n_chunks = -(-n_rows // BLOCK), chunk_count(n_modes)
    padded = n_blocks * BLOCK
    # Rows begin at cache lines, an odd number of them apart: neighbours do not compete for the same cache sets.
    ld = padded + 8
    arrays: dict[str, Array] = {name: np.zeros(n_rows) for name in _CURVES}
    arrays |= {name: _aligned_zeros(n_rows, ld) for name in _CORRELATIONS + _CAUSAL}
    workspace: dict[str, Array] = {
        "Z": _aligned_zeros(n_rows, ld),
        **{name: _aligned_zeros(n_modes, ld) for name in ("h", "u", "x")},
        "source_h": np.zeros((n_rows, n_sources)),
        "diagonal": _aligned_zeros(n_modes, n_blocks, BLOCK, BLOCK),
        "diagonal_transposed": _aligned_zeros(n_modes, n_blocks, BLOCK, BLOCK),
        "chunk_sum": np.zeros((2 * n_chunks, padded)),
        "chunk_loss": np.zeros((n_chunks, 2)),
        "chunk_scratch": np.zeros((n_chunks, BLOCK * (n_modes // n_chunks + MODE_GROUP))),
        **{name: np.zeros(padded) for name in ("row", "second_row", "mode_sum", "dots", "second_dots")},
        **{name: np.zeros((LANES, padded)) for name in ("sums", "second_sums")},
        "source_row": np.zeros(n_sources),
        "noise": np.zeros(n_rows),
    }
    n_workers = min(thread_count(), n_chunks)
    march = TwoTimeMarch(
        arrays,
        workspace,
        eigenvalue=np.pad(measures.eigenvalue, (0, filling)),
        mode_weight=np.pad(measures.mode_weight, (0, filling)),
        source_eigenvalue=measures.source_eigenvalue,
        source_power=measures.source_power,
        learning_rate=model.learning_rate,
        gamma=model.gamma,
        inverse_width=model.inverse_width,
        inverse_batch=model.inverse_batch_size,
        noise_power=model.label_noise**2,
        largest_loss=model.largest_loss,
        n_workers=n_workers,
    )

    def finish(n_finished: int) -> DMFTSolution | None:
        if n_finished == 0:
            return None
        return _solution(model, arrays, n_finished, n_nodes, measures.error)

    try:
        _run_team(march, n_workers, n_steps, progress)
    except KeyboardInterrupt:
        done = march.rows
        raise Interrupted(f"interrupted after {max(done - 1, 0)} of {n_steps} steps", finish(done)) from None
    if march.diverged:
        step = march.rows
        raise DivergenceError(
            f"the loss left the finite range at step {step} (learning_rate {model.learning_rate:g}, "
            f"stability bound of the lazy dynamics {model.stability_bound:.4g})",
            step,
            finish(step),
        )
    solution = finish(n_rows)
    assert solution is not None
    return solution


def _aligned_zeros(*shape: int) -> Array:
    """Zeros that begin at a cache line (64 bytes)."""
    size = math.prod(shape)
    buffer = np.zeros(size + 8)
    start = -buffer.ctypes.data % 64 // 8
    return buffer[start : start + size].reshape(shape)


def _run_team(march: Any, n_workers: int, n_steps: int, progress: Progress | None) -> None:
    """Run the march on a team of threads; the main thread only waits, so that Ctrl-C is heard."""
    futures: list[Future[None]] = []
    with ThreadPoolExecutor(n_workers, thread_name_prefix="scalefield") as pool:
        try:
            for worker in range(n_workers):
                futures.append(pool.submit(march.march, worker))
            pending = set(futures)
            while pending:
                _, pending = wait(pending, timeout=0.1, return_when=FIRST_EXCEPTION)
                if progress is not None:
                    progress(max(march.rows - 1, 0), n_steps)
        except BaseException:
            if len(futures) < n_workers:
                march.abandon()
            march.stop()
            raise
    for future in futures:
        future.result()


def _solution(
    model: Model, arrays: dict[str, Array], n_rows: int, n_nodes: int, error: float
) -> DMFTSolution:
    """The first `n_rows` rows as a solution; correlations are completed to symmetric matrices."""
    whole = n_rows == len(arrays["loss"])
    kept: dict[str, Array] = {}
    for name, array in arrays.items():
        part = array[:n_rows] if name in _CURVES else array[:n_rows, :n_rows]
        # A view of all rows wastes nothing; one of a few would keep the whole array alive.
        kept[name] = part if whole else part.copy()
    for name in _CORRELATIONS:
        matrix = kept[name]
        for start in range(0, n_rows, 256):
            stop = min(start + 256, n_rows)
            matrix[start:stop, stop:] = matrix[stop:, start:stop].T
            block = matrix[start:stop, start:stop]
            block[...] = np.tril(block) + np.tril(block, -1).T
    return DMFTSolution(
        model=model,
        steps=np.arange(n_rows),
        **kept,
        method="two-time",
        n_nodes=n_nodes,
        quadrature_error=error,
    )
