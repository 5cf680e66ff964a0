"""Figure 4: compute-optimal scaling, the loss over compute C = N t for many widths and its envelope.

Runs on the population gradient stand beside gradient flow; the envelope of all widths, and its exponents, come from
`compute_frontier`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from scalefield._progress import Progress
from scalefield._steps import log_spaced_steps
from scalefield.figures._base import Curve, FigureData, draw_guide, make_panels, power_law_guide
from scalefield.figures._learning_curves import NOTED, Tasks, truncated
from scalefield.flow import solve_gradient_flow
from scalefield.model import Model
from scalefield.scaling import compute_frontier
from scalefield.simulation import simulate
from scalefield.spectrum import PowerLawSpectrum

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["compute", "draw"]

ALPHA, EASY, HARD = 1.5, 1.25, 0.5
RICH = 1.0
LEARNING_RATE = 0.1
PANELS = (("a", HARD, 0.0), ("b", HARD, RICH), ("c", EASY, 0.0), ("d", EASY, RICH))


def compute(quick: bool = False, seed: int = 0, progress: Progress | None = None) -> FigureData:
    """Hard (a: lazy, b: rich) and easy tasks (c: lazy, d: rich)."""
    last = 8 if quick else 12
    budgets = 10.0 ** np.arange(1.5, last + 0.01, 0.5 if quick else 0.25)
    widths = tuple(4**k for k in range(1, 7 if quick else 10))
    simulated = (16, 64) if quick else (16, 64, 256)
    n_steps, n_runs = (1000, 4) if quick else (10_000, 16)
    tasks = Tasks(4 * (len(widths) + len(simulated) + 1), progress)
    curves: list[Curve] = []
    for panel, beta, gamma in PANELS:
        for width in simulated:
            curves.append(_runs(panel, beta, gamma, width, n_steps, n_runs, seed))
            tasks.done()
        for width in widths:
            times = np.geomspace(10.0, 10.0**last / width, 80) if 10.0 ** (last - 1) > width else None
            if times is not None:
                model = Model(PowerLawSpectrum(ALPHA, beta), width=width, gamma=gamma)
                loss = solve_gradient_flow(model, LEARNING_RATE * times).loss
                curves.append(
                    Curve(
                        panel,
                        f"N = {width}",
                        width * times,
                        loss,
                        parameters={"beta": beta, "gamma": gamma, "width": float(width)},
                    )
                )
            tasks.done()
        curves += _envelope(panel, beta, gamma, budgets)
        tasks.done()
    return FigureData(
        "4",
        {panel: ("compute $C = N t$", "test loss") for panel, *_ in PANELS},
        tuple(curves),
        {
            "seed": seed,
            "quick": quick,
            "alpha": ALPHA,
            "beta": f"{HARD:g} in panels a and b, {EASY:g} in c and d",
            "gamma": f"0 in panels a and c, {RICH:g} in b and d",
            "learning rate": LEARNING_RATE,
            "runs": f"{n_runs} of {n_steps} steps at widths {', '.join(map(str, simulated))}, infinite batch",
            "exponents": "of the loss, width and time along the frontier; errors are the drift within the window",
        },
    )


def _runs(panel: str, beta: float, gamma: float, width: int, n_steps: int, n_runs: int, seed: int) -> Curve:
    model = Model(truncated(ALPHA, beta), width=width, gamma=gamma, learning_rate=LEARNING_RATE)
    steps = log_spaced_steps(n_steps)[1:]
    run = simulate(model, n_steps, n_runs, seed, "reduced", record=steps)
    return Curve(
        panel,
        f"simulation, N = {width}",
        width * steps,
        run.mean,
        run.standard_error,
        "simulation",
        {"beta": beta, "gamma": gamma, "width": float(width)},
    )


def _envelope(panel: str, beta: float, gamma: float, budgets: np.ndarray) -> list[Curve]:
    """The frontier with the exponents of its loss, of the width and of the time, and a guide."""
    frontier = compute_frontier(PowerLawSpectrum(ALPHA, beta), gamma, LEARNING_RATE, math.inf, budgets)
    parameters = {"beta": beta, "gamma": gamma}
    curves = []
    values = {"loss": frontier.losses, "width": frontier.widths, "time": frontier.steps}
    labels = {"loss": "best width", "width": "best width, N over C", "time": "best width, t over C"}
    for fit in frontier.exponents:
        predicted = fit.predicted
        assert predicted is not None
        differs = abs(fit.fitted - predicted) > NOTED
        curves.append(
            Curve(
                panel,
                labels[fit.name],
                budgets,
                values[fit.name],
                parameters=parameters,
                predicted_exponent=predicted,
                measured_exponent=fit.fitted,
                exponent_error=fit.error,
                window=(frontier.window_start, frontier.window_stop),
                note="finite compute: the corrections to the two leading terms are low powers of C" if differs else "",
            )
        )
    predicted = frontier.exponents[0].predicted
    assert predicted is not None
    start, stop = budgets[budgets.size // 2], budgets[-1]
    at = (start, 0.45 * float(frontier.losses[budgets.size // 2]))
    curves.append(power_law_guide(panel, (start, stop), at, -predicted))
    return curves


def draw(data: FigureData) -> Figure:
    """Widths in a scale of colours, simulations over them, and the frontier in dashed black."""
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm

    figure, axes = make_panels(data)
    titles = {"a": "hard, lazy", "b": "hard, rich", "c": "easy, lazy", "d": "easy, rich"}
    widths = sorted({curve.parameters["width"] for curve in data.curves if "width" in curve.parameters})
    norm, colours = LogNorm(widths[0], widths[-1]), colormaps["viridis_r"].resampled(256)
    for panel, ax in axes.items():
        ax.set_xscale("log")
        ax.set_yscale("log")
        for curve in data.panel(panel):
            if curve.kind == "guide":
                draw_guide(ax, curve, offset=(-26.0, -14.0))
            elif "width" in curve.parameters:
                colour = colours(0.1 + 0.9 * norm(curve.parameters["width"]))
                if curve.kind == "simulation":
                    margin = 2.0 * np.nan_to_num(curve.standard_error)
                    lower = np.maximum(curve.y - margin, 1e-3 * curve.y)
                    ax.fill_between(curve.x, lower, curve.y + margin, color=colour, alpha=0.35, linewidth=0)
                    ax.plot(curve.x, curve.y, color=colour, linewidth=2.6, alpha=0.75)
                else:
                    ax.plot(curve.x, curve.y, color=colour, linewidth=0.9)
            elif curve.label == "best width":
                ax.plot(curve.x, curve.y, "--", color="black", linewidth=1.6, zorder=3)
        ax.set_title(f"({panel})  {titles[panel]}", loc="left", fontsize="medium")
    middle = colours(0.55)
    first, second = list(axes.values())[:2]
    handles = [
        *first.plot([], [], color=middle, linewidth=2.6, alpha=0.75, label="simulation"),
        *first.plot([], [], color=middle, linewidth=0.9, label="theory"),
        *first.plot([], [], "--", color="black", linewidth=1.6, label="best width"),
    ]
    first.legend(handles=handles, frameon=False, fontsize="small", loc="lower left")
    names = [f"$N = {widths[0]:.0f}$", f"$N = {widths[-1]:.0f}$"]
    ends = [
        second.plot([], [], color=colours(0.1 + 0.9 * norm(width)), linewidth=2.0, label=name)[0]
        for name, width in zip(names, (widths[0], widths[-1]), strict=True)
    ]
    second.legend(handles=ends, frameon=False, fontsize="small", loc="lower left")
    return figure
