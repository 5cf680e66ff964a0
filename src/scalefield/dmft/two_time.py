"""The two-time engine: online SGD by time-marching (theory section 3).

The march itself, from two discrete measures to rows of two-time arrays, also serves the spectral form (section 6).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalefield._memory import require_memory
from scalefield._progress import Progress
from scalefield._threads import thread_count
from scalefield.dmft.solution import DMFTSolution
from scalefield.errors import DivergenceError, Interrupted
from scalefield.model import Model
from scalefield.quadrature import SpectralNodes, merge

__all__ = [
    "MarchMeasures",
    "effective_time",
    "initial_effective_time",
    "largest_row_sum",
    "march_rows",
    "mode_measures",
    "repeat_to_horizon",
    "require_two_time_memory",
    "solve_two_time",
]

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]

# Of the estimated effective time over what gradient flow predicts. Measured values stay below 0.9 of the latter.
_MARGIN = 1.2

# Marches with ever more nodes before a run is taken to be unstable.
_ATTEMPTS = 3

_CURVES = ("loss", "bias", "feature_variance", "sgd_variance")
_CORRELATIONS = ("C_0", "C_1", "C_2", "C_w")
# At infinite width the march fills one array under both names.
_ONE_AT_INFINITE_WIDTH = {"K": "P", "C_1": "C_2"}


def solve_two_time(
    model: Model, n_steps: int, nodes: SpectralNodes | None, rtol: float, progress: Progress | None
) -> DMFTSolution:
    """March on merged modes (theory section 3), fully recorded; arguments as for `solve_dmft`, already validated."""

    def march(horizon: float) -> DMFTSolution:
        measures = mode_measures(model, nodes, horizon, rtol)
        build = _build_solution(model, measures)
        return march_rows(model, n_steps, measures, model.inverse_width, build, progress, with_modes=True)

    return repeat_to_horizon(initial_effective_time(model, n_steps, nodes), march, _reached_time)


def repeat_to_horizon(
    horizon: float, march: Callable[[float], DMFTSolution], reached_time: Callable[[DMFTSolution], float]
) -> DMFTSolution:
    """March on nodes for `horizon`, again if the effective time came out beyond what they resolve."""
    for attempt in range(_ATTEMPTS):
        solution = march(horizon)
        reached = reached_time(solution)
        if solution.quadrature_error == 0.0 or reached <= horizon:
            return solution
        logger.info("effective time %.3g beyond the estimate %.3g", reached, horizon)
        horizon = 2.0 * reached
        if attempt < _ATTEMPTS - 1:
            del solution
    # Only an unstable run, which no number of nodes makes definite, outgrows every estimate.
    return replace(solution, quadrature_error=math.inf)


@dataclass(frozen=True)
class MarchMeasures:
    """The two discrete measures that a march needs, merged to what training can resolve.

    The modes (mass weight x eigenvalue) cost O(T^2) a node and row, the sources (mass power) only O(T): each
    measure has nodes of its own.
    """

    eigenvalue: Array
    weight: Array
    source_eigenvalue: Array
    source_power: Array
    error: float

    @classmethod
    def merged(
        cls, x: Array, mass: Array, source_x: Array, source_power: Array, error: float, horizon: float, rtol: float
    ) -> MarchMeasures:
        """Merge both measures for functions of x tau up to `horizon`; `error` is what their nodes already have."""
        eigenvalue, mass, mode_error = merge(x, mass, horizon, rtol)
        present = source_power > 0.0
        if present.any():
            source_x, source_power, source_error = merge(source_x[present], source_power[present], horizon, rtol)
        else:
            source_x, source_power, source_error = x[:1], np.zeros(1), 0.0
        return cls(eigenvalue, mass / eigenvalue, source_x, source_power, max(error, mode_error, source_error))


def mode_measures(model: Model, nodes: SpectralNodes | None, horizon: float, rtol: float) -> MarchMeasures:
    """Modes (mass lambda_k) and sources (mass lambda_k w*_k^2)."""
    if nodes is None:
        nodes = model.spectrum.quadrature(rtol=rtol, horizon=max(1.0, horizon))
    x = nodes.eigenvalues
    return MarchMeasures.merged(x, nodes.weights * x, x, nodes.weights * nodes.target_power, nodes.error, horizon, rtol)


def initial_effective_time(model: Model, n_steps: int, nodes: SpectralNodes | None) -> float:
    """`effective_time` from the modes."""
    if not model.is_rich:
        return effective_time(model, n_steps, np.empty(0), np.empty(0))
    if nodes is None:
        nodes = model.spectrum.quadrature()
    return effective_time(model, n_steps, nodes.eigenvalues, nodes.weights * nodes.target_power)


def effective_time(model: Model, n_steps: int, eigenvalues: Array, power: Array) -> float:
    """Upper estimate of tau = sum_t eta a(t), the time that enters as e^{-s tau}, from the source measure.

    From gradient flow (theory section 7): a = 1 + gamma q, q = (sqrt(1 + 4 gamma n) - 1)/(2 gamma),
    n = sum_s (mu_s/s) (1 - e^{-s tau})^2 (at infinite width mu_s/s = w*_k^2), with a margin for what SGD noise
    may add. The march measures the true value and is repeated if it lies beyond.
    """
    tau = model.learning_rate * n_steps
    if not model.is_rich:
        return _MARGIN * tau
    learned = eigenvalues > 0.0
    eigenvalues, power = eigenvalues[learned], power[learned]
    horizon = tau
    for _ in range(50):
        # (mu/s) (1 - e^{-z})^2 = tau mu (1 - e^{-z})^2/z with z = s tau: no overflow for small s
        z = eigenvalues * horizon
        n = horizon * float(power @ (np.expm1(-z) ** 2 / z))
        longer = tau * 0.5 * (1.0 + math.sqrt(1.0 + 4.0 * model.gamma * n))
        if longer <= 1.01 * horizon:
            break
        horizon = longer
    return _MARGIN * horizon


def _reached_time(solution: DMFTSolution) -> float:
    """The effective time that the memory kernel attained: its largest row sum."""
    assert solution.K is not None
    return largest_row_sum(solution.K)


def largest_row_sum(kernel: Array) -> float:
    """Return max_t sum_s |kernel(t, s)|."""
    # Row by row: no second array of the kernel's size.
    return max(float(np.abs(row).sum()) for row in kernel)


def _array_names(inverse_width: float, inverse_n_samples: float, *, with_modes: bool) -> list[str]:
    """Names of the T x T arrays that a march fills, one name for arrays that coincide."""
    names = ["H_w", "C_w", "P", "C_0", "C_2"]
    if with_modes:
        names.append("R_13")
    if inverse_width > 0.0 or inverse_n_samples > 0.0:
        names += ["K", "C_1", "R_22"]
    if inverse_width > 0.0:
        names.append("Z")
    if inverse_n_samples > 0.0:
        names += ["D", "S"]
    return names


def require_two_time_memory(model: Model, n_steps: int, method: str) -> None:
    """Raise `InsufficientMemoryError` if not even the arrays of the result fit."""
    two_time = method == "two-time"
    inverse_width = model.inverse_width if two_time else 0.0
    _require_memory(n_steps + 1, 0, _array_names(inverse_width, model.inverse_n_samples, with_modes=two_time))


def _require_memory(n_rows: int, n_modes: int, names: list[str]) -> None:
    from scalefield._native.two_time_march import BLOCK

    # The identity that R_22 is at infinite width is written after the march, offline 7 arrays of the result.
    arrays = len(names) + ("R_13" in names and "R_22" not in names) + (7 if "D" in names else 0)
    needed = 8 * n_rows * (arrays * (n_rows + BLOCK + 8) + 3 * n_modes)
    require_memory(needed, f"the two-time arrays of {n_rows - 1} steps")


def march_rows(
    model: Model,
    n_steps: int,
    measures: MarchMeasures,
    inverse_width: float,
    build: Callable[[dict[str, Array], int], DMFTSolution],
    progress: Progress | None,
    *,
    with_modes: bool,
    memory: Array | None = None,
    noise_power: float | None = None,
) -> DMFTSolution:
    """March `n_steps` steps on a team of threads and build the solution.

    Parameters
    ----------
    model, n_steps, progress
        As for `solve_dmft`.
    measures : MarchMeasures
        Nodes of the modes and the sources.
    inverse_width : float
        1/N as it enters the march; 0 for the spectral form, whose measures know the width.
    build : callable
        ``build(arrays, n_rows)`` makes a solution of the first n_rows rows, with correlations complete.
    with_modes : bool
        Whether R_13 is wanted.
    memory : ndarray, shape (n_steps + 1, n_steps + 1), optional
        The memory kernel P, if it is known; H_w and C_w are not made then.
    noise_power : float, optional
        Variance of the label noise in place of the model's.

    Raises
    ------
    InsufficientMemoryError, DivergenceError, Interrupted
        As for `solve_dmft`.
    """
    from scalefield._native.two_time_march import BLOCK, LANES, MODE_GROUP, TwoTimeMarch

    n_rows, n_sources = n_steps + 1, measures.source_eigenvalue.size
    # Modes of weight 0 and eigenvalue 0 fill the last group.
    filling = -measures.eigenvalue.size % MODE_GROUP
    n_modes = measures.eigenvalue.size + filling
    n_groups = n_modes // MODE_GROUP
    n_workers = min(thread_count(), n_groups)
    names = _array_names(inverse_width, model.inverse_n_samples, with_modes=with_modes)
    _require_memory(n_rows, n_modes, names)
    padded = -(-n_rows // BLOCK) * BLOCK
    # Rows begin at cache lines, an odd number of them apart: neighbours do not compete for the same cache sets.
    ld = padded + 8
    arrays: dict[str, Array] = {name: np.zeros(n_rows) for name in _CURVES}
    arrays |= {name: _aligned_zeros(n_rows, ld) for name in names}
    workspace: dict[str, Array] = {
        **{name: _aligned_zeros(n_modes, padded) for name in ("h", "u")},
        "scratch": _aligned_zeros(n_workers, BLOCK * n_modes),
        **{name: _aligned_zeros(n_groups, padded) for name in ("group_sum", "group_weighted_sum")},
        "group_loss": np.zeros((n_groups, 2)),
        "source_h": np.zeros((n_rows, n_sources)),
        **{name: np.zeros(padded) for name in ("row", "second_row", "mode_sum", "dots", "second_dots")},
        **{name: np.zeros((LANES, padded)) for name in ("sums", "second_sums")},
        "source_row": np.zeros(n_sources),
        "noise": np.zeros(n_rows),
    }
    if model.is_offline:
        workspace["g"] = _aligned_zeros(n_modes, padded)
    if "Z" in arrays:
        workspace["Z"] = arrays.pop("Z")
    arrays |= {name: arrays[same] for name, same in _ONE_AT_INFINITE_WIDTH.items() if name not in arrays}
    if memory is not None:
        arrays["P"][:, :n_rows] = memory
    march = TwoTimeMarch(
        arrays,
        workspace,
        eigenvalue=np.pad(measures.eigenvalue, (0, filling)),
        mode_weight=np.pad(measures.weight, (0, filling)),
        source_eigenvalue=measures.source_eigenvalue,
        source_power=measures.source_power,
        learning_rate=model.learning_rate,
        gamma=model.gamma,
        inverse_width=inverse_width,
        inverse_batch=model.inverse_batch_size,
        inverse_n_samples=model.inverse_n_samples,
        noise_power=model.label_noise**2 if noise_power is None else noise_power,
        largest_loss=model.largest_loss,
        memory_given=memory is not None,
        n_workers=n_workers,
    )

    def finish(n_finished: int) -> DMFTSolution | None:
        return build(_finished_rows(arrays, n_finished), n_finished) if n_finished > 0 else None

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


def _finished_rows(arrays: dict[str, Array], n_rows: int) -> dict[str, Array]:
    """The first `n_rows` rows of all arrays; correlations are completed to symmetric matrices."""
    whole = n_rows == len(arrays["loss"])
    kept: dict[str, Array] = {}
    for name, array in arrays.items():
        same = _ONE_AT_INFINITE_WIDTH.get(name)
        if same is not None and array is arrays[same]:
            kept[name] = kept[same]
            continue
        part = array[:n_rows] if name in _CURVES else array[:n_rows, :n_rows]
        # A view of all rows wastes nothing; one of a few would keep the whole array alive.
        kept[name] = part if whole else part.copy()
        if name in _CORRELATIONS:
            _mirror(kept[name])
    return kept


def _mirror(matrix: Array) -> None:
    """Copy the lower triangle to the upper one."""
    n_rows = len(matrix)
    for start in range(0, n_rows, 256):
        stop = min(start + 256, n_rows)
        matrix[start:stop, stop:] = matrix[stop:, start:stop].T
        block = matrix[start:stop, start:stop]
        block[...] = np.tril(block) + np.tril(block, -1).T


def _build_solution(model: Model, measures: MarchMeasures) -> Callable[[dict[str, Array], int], DMFTSolution]:
    def build(arrays: dict[str, Any], n_rows: int) -> DMFTSolution:
        # R_22 = 1 at infinite width
        if "R_22" not in arrays:
            arrays["R_22"] = np.eye(n_rows)
        # Z contains C_1 with its batch noise, so feature_variance is free of it only where one of the two is absent.
        separate = model.inverse_width == 0.0 or model.inverse_batch_size == 0.0
        return DMFTSolution(
            model=model,
            steps=np.arange(n_rows),
            population_loss=arrays["bias"] + arrays["feature_variance"] if separate else None,
            **arrays,
            method="two-time",
            n_nodes=measures.eigenvalue.size,
            quadrature_error=measures.error,
            kernel_scale=1.0 + model.gamma * np.diag(arrays["C_w"]),
        )

    return build
