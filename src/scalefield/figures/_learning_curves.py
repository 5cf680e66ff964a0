"""Learning curves of figures 2 to 4: runs, their theory, and exponents measured on either."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scalefield._progress import Progress
from scalefield._steps import log_spaced_steps
from scalefield.dmft import solve_dmft
from scalefield.figures._base import Curve
from scalefield.model import Model
from scalefield.scaling import fit_power_law
from scalefield.simulation import simulate
from scalefield.spectrum import PowerLawSpectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Tasks", "compare", "inside", "order_legend", "truncated", "with_exponent"]

Array = NDArray[np.float64]

# Differences below this are not worth a note.
NOTED = 0.003


class Tasks:
    """Reports units of work to `progress` as they are done."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total, self._progress, self._done = total, progress, 0

    def done(self) -> None:
        """One more."""
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)


def compare(
    panel: str, label: str, models: Sequence[Model], n_steps: int, n_runs: int, seed: int, tasks: Tasks
) -> list[Curve]:  # fmt: skip
    """Runs of models beside their mean-field theory: two curves a model.

    Theory is the closure of order 1 for population gradients, where it is exact, else of order 2.
    """
    steps = log_spaced_steps(n_steps)[1:]
    curves = []
    for model in models:
        assert isinstance(model.spectrum, PowerLawSpectrum)
        parameters = {"beta": model.spectrum.beta, "gamma": model.gamma, "width": float(model.width)}
        parameters["batch_size"] = float(model.batch_size)
        run = simulate(model, n_steps, n_runs, seed, "reduced", record=steps)
        order = 1 if np.isinf(model.batch_size) else 2
        theory = solve_dmft(model, n_steps, "closure", order, steps)
        settings: dict[str, Any] = {"panel": panel, "label": label.format(model=model), "parameters": parameters}
        curves.append(Curve(x=steps, y=run.mean, standard_error=run.standard_error, kind="simulation", **settings))
        curves.append(Curve(x=steps, y=theory.loss, **settings))
        tasks.done()
    return curves


def inside(curve: Curve, window: tuple[float, float]) -> tuple[Array, Array]:
    """Points of a curve in a window."""
    kept = (curve.x >= window[0] * (1.0 - 1e-9)) & (curve.x <= window[1] * (1.0 + 1e-9))
    return curve.x[kept], curve.y[kept]


def with_exponent(curve: Curve, predicted: float, window: tuple[float, float], why: str) -> Curve:
    """The curve with its exponent in the window; `why` is noted where that is not the one predicted.

    The error is the fit's standard error or, where larger, how far the local exponent still drifts in the window.
    """
    fit = fit_power_law(*inside(curve, window), window=None)
    error = max(fit.standard_error, abs(fit.drift))
    differs = abs(fit.exponent - predicted) > NOTED
    return replace(
        curve,
        predicted_exponent=predicted,
        measured_exponent=fit.exponent,
        exponent_error=error,
        window=fit.window,
        note=why if differs else "",
    )


def truncated(alpha: float, beta: float) -> PowerLawSpectrum:
    """A power law of so many modes that those missing are far below what the widths drawn can learn."""
    return PowerLawSpectrum(alpha, beta, n_modes=2**14)


def order_legend(ax: Axes) -> None:
    """A legend at the lower left, with theory after all runs."""
    handles, labels = ax.get_legend_handles_labels()
    pairs = sorted(zip(labels, handles, strict=True), key=lambda pair: not pair[0].startswith(("N =", "B =")))
    names, lines = [label for label, _ in pairs], [handle for _, handle in pairs]
    ax.legend(lines, names, frameon=False, fontsize="small", loc="lower left")
