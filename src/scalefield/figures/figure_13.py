"""Figure 13: in linear networks a rank-one spike of the first layer and |w|^2 grow, for ever if the task is hard.

Below, how far the kernel moves (Definition A of Appendix H) and how it aligns with the task (Definition B).
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from scalefield._progress import Progress
from scalefield.figures._base import COLOURS, Curve, FigureData, draw_guide, make_panels, math_text
from scalefield.figures._trainings import train_all
from scalefield.figures.figure_12 import (
    ALPHA,
    BATCH_SIZE,
    EASY,
    GAMMAS,
    HARD,
    LEARNING_RATE,
    RICHEST,
    WIDTH,
    train,
)
from scalefield.networks import LinearNetworkRuns, solve_linear_network_flow
from scalefield.plot import BAND
from scalefield.scaling import fit_power_law
from scalefield.spectrum import PowerLawSpectrum

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["compute", "draw"]

Array = NDArray[np.float64]

STATISTICS = ("readout_norm", "singular_values", "kernel_distance", "alignment")
LATE_STEP = 1e7
_RECORDS = 26
# Differences below this are not worth a note.
_NOTED = 0.001
# Quantities of a panel: the runs' attribute, and what the legend says.
_READOUT, _SPIKE = ("readout_norm", "|w|^2/N"), ("spike", "spike of A^T A/N")


def compute(
    quick: bool = False, seed: int = 0, progress: Progress | None = None, checkpoints: Path | None = None
) -> FigureData:
    """|w|^2/N, the spike, distance and alignment of kernels over training."""
    tasks = [(beta, gamma) for beta in (HARD, EASY) for gamma in GAMMAS]
    curves: list[Curve] = []
    last = 1.0
    name = f"figure-13{'-quick' if quick else ''}"
    one = partial(train, quick=quick, seed=seed, statistics=STATISTICS, n_records=_RECORDS)
    for (beta, gamma), runs in train_all(tasks, one, progress, checkpoints, name).items():
        last = max(last, float(runs.n_steps))
        curves += _growth(runs, beta, gamma)
        curves += _features(runs, beta, gamma)
    power = growth_exponent(HARD)
    flow = solve_linear_network_flow(PowerLawSpectrum(ALPHA, HARD), RICHEST, [LEARNING_RATE * 10.0 * last])
    curves.append(
        Curve(
            "a",
            rf"$t^{{(1-\beta)/(1+\beta)}}$, {power:.3g}",
            [last, 100.0 * last],
            2.0 * float(flow.readout_norm[0]) * np.array([0.1, 10.0]) ** power,
            kind="guide",
        )
    )
    return FigureData(
        "13",
        {
            **dict.fromkeys("ab", ("step", r"$|w|^2/N$, spike of $A^T A/N$")),
            "c": ("step", "kernel distance from initial"),
            "d": ("step", "alignment of kernel and task"),
        },
        tuple(curves),
        {
            "seed": seed,
            "quick": quick,
            "alpha": ALPHA,
            "width": WIDTH,
            "learning_rate": LEARNING_RATE,
            "batch_size": BATCH_SIZE,
            "n_runs": runs.n_runs,
            "n_modes": runs.spectrum.n_modes,
            "modes beyond n_modes": "noise on the labels",
            "theory": "gradient flow, infinite width and spectrum",
            "exponents": "of |w|^2/N and the spike, negative where they grow",
        },
    )


def growth_exponent(beta: float) -> float:
    """Of |w|^2/N and the spike at late times, q ~ t^g with g = (1 - beta)/(1 + beta), 0 from beta = 1 on."""
    return max(0.0, (1.0 - beta) / (1.0 + beta))


def _spread(samples: Array) -> tuple[Array, Array]:
    return samples.mean(axis=0), samples.std(axis=0, ddof=1) / math.sqrt(len(samples))


def _growth(runs: LinearNetworkRuns, beta: float, gamma: float) -> list[Curve]:
    """Readout and spike of runs, fitted over the last decade, and of flow."""
    panel = "a" if beta < 1.0 else "b"
    parameters = {"beta": beta, "gamma": gamma}
    task = PowerLawSpectrum(ALPHA, beta)
    inside = runs.steps >= 0.1 * runs.n_steps
    steps = runs.steps[inside].astype(np.float64)
    flow = solve_linear_network_flow(task, gamma, LEARNING_RATE * steps)
    predicted = 0.0 - growth_exponent(beta) if gamma > 0.0 else 0.0
    curves = []
    for name, label in (_READOUT, _SPIKE):
        samples = getattr(runs, name)
        fit = fit_power_law(steps, samples[:, inside], window=None)
        smooth = fit_power_law(steps, flow.readout_norm, window=None).exponent
        note = ""
        noticed = max(_NOTED, BAND * fit.standard_error)
        if abs(fit.exponent - predicted) > noticed:
            note = f"finite time: gradient flow has {smooth:.3f} in this window"
            if abs(fit.exponent - smooth) > noticed:
                note += "; the rest is noise of SGD, which unbalances the layers, and 1/N"
                if name == "spike":
                    note += ": a small spike is lost in the other eigenvalues, up to (1 + (M/N)^{1/2})^2"
        mean, error = _spread(samples)
        curves.append(
            Curve(
                panel,
                f"{label}, gamma = {gamma:g}",
                runs.steps,
                mean,
                error,
                "simulation",
                parameters,
                predicted,
                fit.exponent,
                fit.standard_error,
                (float(steps[0]), float(steps[-1])),
                note,
            )
        )
    late = np.geomspace(1.0, LATE_STEP, 120)
    flow = solve_linear_network_flow(task, gamma, LEARNING_RATE * late)
    ends = np.log(flow.readout_norm[[-2, -1]])
    curves.append(
        Curve(
            panel,
            "theory",
            late,
            flow.readout_norm,
            parameters=parameters,
            predicted_exponent=predicted,
            measured_exponent=float(-np.diff(ends)[0] / math.log(late[-1] / late[-2])),
            window=(late[-2], late[-1]),
            note="local exponent at the last step",
        )
    )
    return curves


def _features(runs: LinearNetworkRuns, beta: float, gamma: float) -> list[Curve]:
    """Panels c and d."""
    curves = []
    late = np.geomspace(1.0, LATE_STEP, 120)
    flow = solve_linear_network_flow(PowerLawSpectrum(ALPHA, beta), gamma, LEARNING_RATE * late)
    parameters = {"beta": beta, "gamma": gamma}
    for panel, name in (("c", "kernel_distance"), ("d", "alignment")):
        if panel == "c" and gamma == 0.0:
            # It is zero.
            continue
        mean, error = _spread(getattr(runs, name))
        label = f"beta = {beta:g}, gamma = {gamma:g}"
        curves.append(Curve(panel, label, runs.steps, mean, error, "simulation", parameters))
        curves.append(Curve(panel, "theory", late, getattr(flow, name), parameters=parameters))
    return curves


def draw(data: FigureData) -> Figure:
    """Growth on the two tasks above; kernels below, the easy task dotted."""
    from matplotlib.lines import Line2D

    figure, axes = make_panels(data, size=(4.6, 3.6))
    colours = dict(zip(GAMMAS, COLOURS, strict=False))
    for curve in data.curves:
        ax = axes[curve.panel]
        if curve.kind == "guide":
            ax.set_xscale("log")
            ax.set_yscale("log")
            draw_guide(ax, curve, offset=(-98.0, 4.0))
            continue
        colour = colours[curve.parameters["gamma"]]
        easy = curve.parameters["beta"] == EASY and curve.panel in "cd"
        if curve.kind == "theory":
            ax.plot(curve.x, curve.y, ":" if easy else "--", color="black", linewidth=1.1, zorder=3)
        elif curve.label.startswith(_SPIKE[1]):
            ax.plot(curve.x[::2], curve.y[::2], "o", color=colour, markersize=3.6, markerfacecolor="white", zorder=4)
        else:
            margin = BAND * curve.standard_error
            # A band reaching zero or below would leave a logarithmic axis.
            lower = np.maximum(curve.y - margin, 1e-3 * curve.y)
            ax.fill_between(curve.x, lower, curve.y + margin, color=colour, alpha=0.3, linewidth=0)
            ax.plot(curve.x, curve.y, color=colour, linewidth=1.6, zorder=2, alpha=0.6 if easy else 1.0)
    for ax in axes.values():
        ax.set_xscale("log")
        ax.set_xlim(1.0, LATE_STEP)
    axes["a"].set_yscale("log")
    axes["b"].set_yscale("log")
    axes["b"].set_ylim(axes["a"].get_ylim())
    axes["c"].set_yscale("log")
    axes["c"].set_ylim(1e-6, 0.3)
    for panel, beta in (("a", HARD), ("b", EASY)):
        task = "hard" if beta < 1.0 else "easy"
        axes[panel].set_title(rf"({panel}) {task}, $\beta$ = {beta:g}", loc="left", fontsize="medium")
    lines = [
        Line2D([], [], color=colours[gamma], linewidth=1.6, label=math_text(f"gamma = {gamma:g}"))
        for gamma in GAMMAS[::-1]
    ]
    theory = Line2D([], [], color="black", linestyle="--", linewidth=1.1, label="theory")
    spike = Line2D(
        [], [], color="0.3", marker="o", linestyle="", markersize=3.6, markerfacecolor="white",
        label="spike of $A^T A/N$",
    )  # fmt: skip
    readout = Line2D([], [], color="0.3", linewidth=1.6, label="$|w|^2/N$")
    axes["a"].legend(handles=[*lines, theory], frameon=False, fontsize="small", loc="upper left", labelspacing=0.25)
    axes["b"].legend(handles=[readout, spike], frameon=False, fontsize="small", loc="upper left")
    tasks = [
        Line2D([], [], color="black", linestyle="--", linewidth=1.1, label=rf"theory, $\beta$ = {HARD:g}"),
        Line2D([], [], color="black", linestyle=":", linewidth=1.1, label=rf"theory, $\beta$ = {EASY:g}"),
    ]
    axes["c"].legend(handles=tasks, frameon=False, fontsize="small", loc="upper left")
    return figure
