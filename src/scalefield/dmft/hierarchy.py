"""Runs of the closure hierarchy: long learning curves without memory of the past (theory sections 7b, 7c)."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scalefield._measures import spectral_measure
from scalefield._progress import Progress
from scalefield.dmft.closure import Closure, source_basis
from scalefield.dmft.solution import DMFTSolution
from scalefield.dmft.spectral import solve_spectral
from scalefield.dmft.two_time import effective_time
from scalefield.errors import DivergenceError, Interrupted, ScalefieldError, StabilityWarning
from scalefield.model import Model
from scalefield.spectral_measure import SpectralMeasure

__all__ = ["ClosureCurve", "run_closure", "solve_closure"]

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]
Steps = NDArray[np.int64]

# Order 0 is advanced step by step up to here, then in log time: for lazy SGD exact from where the curve is smooth,
# for gamma > 0 with errors of the order of the inverse step.
_STEPS_LAZY = 4096
_STEPS_RICH = 65536
# Accuracy of the curve in log time.
_LAZY_RTOL = 1e-10
_RICH_RTOL = 1e-9
# Steps of the comparisons with other engines.
_EXACT_STEPS = 150
_NEXT_ORDER_STEPS = 1000
# Rounds with ever more nodes before a run is taken to be unstable.
_ATTEMPTS = 3
# Seconds between signs of life.
_CHUNK_SECONDS = 0.05


@dataclass(frozen=True)
class ClosureCurve:
    """What a run recorded; fewer steps than asked if it diverged or was interrupted."""

    steps: Steps
    loss: Array
    kernel_scale: Array
    reached_time: float
    diverged_at: int | None
    interrupted: bool
    unstable_from: int | None


def solve_closure(
    model: Model,
    n_steps: int,
    steps: Steps,
    seed: int | None,
    order: int,
    rtol: float,
    progress: Progress | None,
) -> DMFTSolution:
    """Run the closure of the given order; arguments as for `solve_dmft`, already validated."""
    exact = not model.is_rich or (order >= 1 and math.isinf(model.batch_size))
    # Modes first, to estimate the effective time.
    measure = spectral_measure(model, seed, 1e-13, 1e12)

    def measure_to(horizon: float) -> SpectralMeasure:
        return spectral_measure(model, seed, max(rtol, 1e-13), horizon) if math.isinf(model.width) else measure

    curve, nodes = run_closure(model, measure, n_steps, steps, order, rtol, progress, measure_to)

    def finished(closure_error: float, exact_error: float | None) -> DMFTSolution:
        return DMFTSolution(
            model=model,
            steps=curve.steps,
            loss=curve.loss,
            kernel_scale=curve.kernel_scale,
            method="closure",
            order=order,
            closure_error=closure_error,
            exact_error=exact_error,
            n_nodes=max(nodes.eigenvalues.size, nodes.source_eigenvalues.size),
            quadrature_error=nodes.error,
        )

    if curve.interrupted:
        partial = finished(math.nan, None) if curve.steps.size else None
        raise Interrupted(f"interrupted on the way to step {n_steps}", partial)
    if curve.diverged_at is not None:
        raise DivergenceError(
            f"the loss left the finite range at step {curve.diverged_at} (learning_rate {model.learning_rate:g}, "
            f"stability bound of the lazy dynamics {model.stability_bound:.4g})",
            curve.diverged_at,
            finished(math.nan, None) if curve.steps.size else None,
        )
    if curve.unstable_from is not None:
        warnings.warn(
            f"the kernel has grown past the stability bound at step {curve.unstable_from}: from there on, what was "
            "already learned can grow again from errors as small as rounding",
            StabilityWarning,
            stacklevel=4,
        )
    if exact:
        return finished(0.0, None)
    closure_error = _other_order(model, nodes, n_steps, steps, order, curve)
    return finished(closure_error, _exact_error(model, measure, nodes, n_steps, order))


def run_closure(
    model: Model,
    measure: SpectralMeasure,
    n_steps: int,
    steps: Steps,
    order: int,
    rtol: float,
    progress: Progress | None,
    measure_to: Callable[[float], SpectralMeasure] | None = None,
) -> tuple[ClosureCurve, SpectralMeasure]:
    """Run the closure on a spectral measure: what it recorded, and the nodes it ran on.

    Of the task and the width only the finite range of the loss is used: the measure says the rest, and may be that of a
    width between whole ones. `measure_to` makes it again, for another effective time.
    """
    horizon = effective_time(model, n_steps, measure.source_eigenvalues, measure.source_power)
    for attempt in range(_ATTEMPTS):
        if measure_to is not None:
            measure = measure_to(horizon)
        nodes = measure.merged(max(horizon, 1.0), rtol)
        curve = _run(model, nodes, n_steps, steps, order, progress)
        if nodes.error == 0.0 or curve.reached_time <= horizon or attempt == _ATTEMPTS - 1:
            break
        logger.info("effective time %.3g beyond the estimate %.3g", curve.reached_time, horizon)
        horizon = 2.0 * curve.reached_time
    return curve, nodes


def _closure(model: Model, nodes: SpectralMeasure, order: int, n_steps: int) -> Closure:
    settings = {
        "learning_rate": model.learning_rate,
        "gamma": model.gamma,
        "inverse_batch": model.inverse_batch_size,
        "noise_power": model.label_noise**2,
        "largest_loss": model.largest_loss,
    }
    basis = None
    if order == 2 and model.is_rich and model.inverse_batch_size > 0.0:
        basis = source_basis(nodes, n_steps, **settings)
    return Closure(nodes, order=order, basis=basis, **settings)


def _run(
    model: Model, nodes: SpectralMeasure, n_steps: int, steps: Steps, order: int, progress: Progress | None
) -> ClosureCurve:
    """Step by step, then, for order 0, in log time."""
    lazy = not model.is_rich
    if lazy and model.inverse_batch_size == 0.0:
        return _lazy_descent(model, nodes, n_steps, steps)
    closure = _closure(model, nodes, order, n_steps)
    switch = n_steps
    if lazy or order == 0:
        switch = min(n_steps, _STEPS_LAZY if lazy else _STEPS_RICH)
    curve = _step_by_step(closure, model, switch, steps[steps <= switch], n_steps, progress)
    late = steps[steps > switch]
    if curve.interrupted or curve.diverged_at is not None or not late.size:
        return curve
    status, loss, kernel_scale, reached = _in_log_time(closure, model, nodes, late)
    if status == "diverged":
        found = loss.size
        return _joined(curve, late[:found], loss, kernel_scale[:found], reached, int(late[found]))
    if status == "unresolved":
        # Nothing slow about this curve, such as an exponential decay of finitely many modes.
        logger.info("the curve is not slow enough for log time at step %d: every step is taken", switch)
        if n_steps > 50_000_000:
            raise ScalefieldError(
                f"the learning curve could not be resolved in logarithmic time beyond step {switch}, and {n_steps} "
                "single steps are too many; ask for fewer"
            )
        rest = _step_by_step(closure, model, n_steps, late, n_steps, progress)
        return _joined(
            curve, rest.steps, rest.loss, rest.kernel_scale, rest.reached_time, rest.diverged_at, rest.interrupted
        )
    if progress is not None:
        progress(n_steps, n_steps)
    return _joined(curve, late, loss, kernel_scale, reached, None)


def _joined(
    curve: ClosureCurve,
    steps: Steps,
    loss: Array,
    kernel_scale: Array,
    reached: float,
    diverged_at: int | None,
    interrupted: bool = False,
) -> ClosureCurve:
    return ClosureCurve(
        np.concatenate([curve.steps, steps]),
        np.concatenate([curve.loss, loss]),
        np.concatenate([curve.kernel_scale, kernel_scale]),
        reached,
        diverged_at,
        interrupted,
        curve.unstable_from,
    )


def _lazy_descent(model: Model, nodes: SpectralMeasure, n_steps: int, steps: Steps) -> ClosureCurve:
    """L(t) = atom + mu((1 - eta s)^{2t}), directly at every recorded step."""
    factor = np.abs(1.0 - model.learning_rate * nodes.source_eigenvalues)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        rate = 2.0 * np.log(factor)
        loss = np.array([nodes.atom + nodes.source_power @ np.exp(np.where(t > 0, t * rate, 0.0)) for t in steps])
    beyond = ~(loss <= model.largest_loss)
    diverged_at = int(steps[np.argmax(beyond)]) if beyond.any() else None
    kept = slice(None) if diverged_at is None else slice(int(np.argmax(beyond)))
    time_reached = model.learning_rate * n_steps
    return ClosureCurve(steps[kept], loss[kept], np.ones(steps.size)[kept], time_reached, diverged_at, False, None)


def _step_by_step(
    closure: Closure, model: Model, last: int, steps: Steps, n_steps: int, progress: Progress | None
) -> ClosureCurve:
    """Advance to step `last` in chunks, so that Ctrl-C is heard and progress shown."""
    parts = []
    reached, unstable_from, interrupted = 0.0, None, False
    chunk, done = 1000, 0
    try:
        while closure.step < last:
            target = min(last, closure.step + chunk)
            begin = time.perf_counter()
            upto = int(np.searchsorted(steps, target, side="right"))
            # The end of each chunk is recorded as well, for the effective time.
            wanted = steps[done:upto]
            asked = wanted if wanted.size and wanted[-1] == target else np.append(wanted, target)
            records = closure.run_to(target, asked)
            kept = records.steps.size if asked is wanted else min(records.steps.size, wanted.size)
            parts.append((records.steps[:kept], records.loss[:kept], records.kernel_scale[:kept]))
            done = upto
            if records.effective_time.size:
                reached = float(records.effective_time[-1])
            if closure.diverged:
                break
            if unstable_from is None and model.is_rich and closure.sharpness >= 2.0:
                unstable_from = closure.step
            seconds = time.perf_counter() - begin
            chunk = max(100, int(chunk * min(10.0, _CHUNK_SECONDS / max(seconds, 1e-6))))
            if progress is not None:
                progress(closure.step, n_steps)
    except KeyboardInterrupt:
        interrupted = True
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)] if parts else [np.empty(0)] * 3
    return ClosureCurve(
        columns[0].astype(np.int64),
        columns[1],
        columns[2],
        reached,
        closure.step if closure.diverged else None,
        interrupted,
        unstable_from,
    )


def _in_log_time(
    closure: Closure, model: Model, nodes: SpectralMeasure, late: Steps
) -> tuple[str, Array, Array, float]:
    """Continue order 0 beyond the steps taken: (status, loss, kernel scale, effective time)."""
    unlearned, variance, growth, reached = closure.balanced_state
    start, times = float(closure.step), late.astype(np.float64)
    if not model.is_rich:
        from scalefield._native.causal_panels import chebyshev_points, monomial_matrix
        from scalefield._native.lazy_panels import DIVERGED, OK, march_lazy

        s, power, x, weights = (
            np.array(a) for a in (nodes.source_eigenvalues, nodes.source_power, nodes.eigenvalues, nodes.weights)
        )
        loss = np.zeros(late.size)
        status, count = march_lazy(
            s,
            power,
            x,
            weights,
            model.learning_rate,
            model.inverse_batch_size,
            model.label_noise**2,
            nodes.atom,
            model.largest_loss,
            _LAZY_RTOL,
            chebyshev_points(),
            monomial_matrix(),
            unlearned[: s.size],
            variance[: x.size],
            start,
            times,
            loss,
        )
        kernel_scale = np.ones(late.size)
        reached = model.learning_rate * float(late[-1])
    else:
        from scalefield._native.closure_drift import DIVERGED, OK, march_balanced

        records = np.zeros((3, late.size))
        status, count, _ = march_balanced(
            closure.run[:], _RICH_RTOL, unlearned, variance, np.array([start, growth, reached]), times, records
        )
        loss, kernel_scale = records[0], 1.0 + model.gamma * records[1]
        if status == OK:
            reached = float(records[2, -1])
    if status == OK:
        return "finished", loss, kernel_scale, reached
    return ("diverged" if status == DIVERGED else "unresolved"), loss[:count], kernel_scale, reached


def _other_order(
    model: Model, nodes: SpectralMeasure, n_steps: int, steps: Steps, order: int, curve: ClosureCurve
) -> float:
    """Largest relative difference to the order below (order 0: above) over the first steps, as far as recorded."""
    last = min(n_steps, _NEXT_ORDER_STEPS)
    compared = steps[steps <= last]
    if not compared.size:
        return math.nan
    other = _closure(model, nodes, 1 if order == 0 else order - 1, last).run_to(last, compared)
    if other.diverged_at is not None:
        return math.inf
    return float(np.abs(other.loss / curve.loss[: compared.size] - 1.0).max())


def _exact_error(
    model: Model, measure: SpectralMeasure, nodes: SpectralMeasure, n_steps: int, order: int
) -> float | None:
    """Largest relative error against the exact march over the first steps."""
    last = min(n_steps, _EXACT_STEPS)
    try:
        exact = solve_spectral(model, last, measure, 1e-10, None)
    except DivergenceError:
        return None
    found = _closure(model, nodes, order, last).run_to(last, exact.steps)
    if found.diverged_at is not None:
        return None
    return float(np.abs(found.loss / exact.loss - 1.0).max())
