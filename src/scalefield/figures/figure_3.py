"""Figure 3: the noise of SGD, loss over steps for several batch sizes and, super-easy, over compute.

Runs stand beside their mean-field theory. On hard tasks noise adds to the loss without a law of its own; on super-easy
ones gradient flow, t^-beta, gives way to the noise, (eta/B) t^-(2-1/alpha), and that to the 1/N transient, so that the
best loss at compute C is C^-(1-1/(2 alpha)).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from scalefield._progress import Progress
from scalefield._steps import log_spaced_steps
from scalefield.dmft import solve_dmft
from scalefield.figures._base import Curve, FigureData, draw_curves, draw_guide, make_panels, power_law_guide
from scalefield.figures._learning_curves import NOTED, Tasks, compare, order_legend, truncated, with_exponent
from scalefield.flow import solve_gradient_flow
from scalefield.model import Model
from scalefield.scaling import compute_frontier, loss_terms, time_exponent
from scalefield.spectrum import PowerLawSpectrum

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["compute", "draw"]

HARD, SUPER_EASY = (1.5, 0.5), (2.0, 2.5)
GAMMA, LEARNING_RATE = 1.0, 0.1
BATCHES, QUICK_BATCHES = (1, 8, 64, math.inf), (1, 8, math.inf)
# Where the exponents of single terms are measured, in steps.
FAR = (1e4, 1e6)


def compute(quick: bool = False, seed: int = 0, progress: Progress | None = None) -> FigureData:
    """Loss over steps (a: hard, b: super-easy), and over compute with batches of one (c: super-easy, lazy)."""
    width = 64 if quick else 256
    n_steps, n_runs = (1000, 8) if quick else (10_000, 32)
    batches = QUICK_BATCHES if quick else BATCHES
    widths = tuple(4**k for k in range(1, 6 if quick else 9))
    last = 7 if quick else 10
    tasks = Tasks(2 * len(batches) + len(widths) + 2, progress)
    curves: list[Curve] = []
    for panel, (alpha, beta) in (("a", HARD), ("b", SUPER_EASY)):
        models = [
            Model(truncated(alpha, beta), width=width, gamma=GAMMA, learning_rate=LEARNING_RATE, batch_size=batch)
            for batch in batches
        ]
        curves += compare(panel, "B = {model.batch_size}", models, n_steps, n_runs, seed, tasks)
    curves = [_hard(curve) if curve.panel == "a" and curve.kind == "theory" else curve for curve in curves]
    curves += _guides(curves, n_steps)
    tasks.done()
    curves += _compute(widths, last, tasks)
    tasks.done()
    loss = "test loss"
    return FigureData(
        "3",
        {"a": ("step $t$", loss), "b": ("step $t$", loss), "c": ("compute $C = N t$", loss)},
        tuple(curves),
        {
            "seed": seed,
            "quick": quick,
            "learning rate": LEARNING_RATE,
            "panel a": f"alpha = {HARD[0]:g}, beta = {HARD[1]:g}, gamma {GAMMA:g}, width {width}, {n_runs} runs",
            "panel b": f"alpha = {SUPER_EASY[0]:g}, beta = {SUPER_EASY[1]:g}, the same",
            "panel c": "the task of panel b, gamma 0, batch size 1; exponents along the frontier",
            "guides of panel b": f"measured at gamma 0 from step {FAR[0]:g} to {FAR[1]:g}: gradient flow at infinite "
            "width; what batches of 8 add there; what a width of 1e6 adds to gradient flow",
        },
    )


def _hard(curve: Curve) -> Curve:
    why = "finite width and time: the model bottleneck bends the curve"
    if math.isfinite(curve.parameters["batch_size"]):
        why += "; at a constant learning rate the noise of batches holds back the growth of the kernel"
    return with_exponent(curve, time_exponent(HARD[1], True), (3.0 / LEARNING_RATE, 30.0 / LEARNING_RATE), why)


def _guides(curves: list[Curve], n_steps: int) -> list[Curve]:
    """Slopes beside the curves; those of panel b with the exponents of single terms, measured far out."""
    theories = {(curve.panel, curve.parameters["batch_size"]): curve for curve in curves if curve.kind == "theory"}

    def at(panel: str, batch: float, step: float, factor: float) -> tuple[float, float]:
        curve = theories[panel, batch]
        return step, factor * math.exp(float(np.interp(math.log(step), np.log(curve.x), np.log(curve.y))))

    chi = time_exponent(HARD[1], True)
    guides = [power_law_guide("a", (30.0, 0.3 * n_steps), at("a", math.inf, 30.0, 0.55), -chi)]
    alpha, beta = SUPER_EASY
    task = PowerLawSpectrum(alpha, beta)
    steps = np.unique(np.geomspace(*FAR, 21).round()).astype(np.int64)
    lazy = Model(task, learning_rate=LEARNING_RATE)
    flow = solve_gradient_flow(lazy, LEARNING_RATE * steps).loss
    population = solve_dmft(lazy, int(steps[-1]), steps=steps).loss
    noisy = solve_dmft(lazy.replace(batch_size=8), int(steps[-1]), steps=steps).loss
    wide = solve_gradient_flow(lazy.replace(width=10**6), LEARNING_RATE * steps).loss
    terms = {term.name: term.time_exponent for term in loss_terms(alpha, beta, False)}
    last = float(n_steps)
    parts = (
        ("gradient flow", flow, (5.0, 60.0), at("b", math.inf, 15.0, 0.35)),
        ("SGD transient", noisy - population, (20.0, 120.0), at("b", 1, 40.0, 2.5)),
        ("width transient", wide - flow, (0.1 * last, last), at("b", math.inf, 0.3 * last, 0.5)),
    )
    for name, loss, ends, point in parts:
        guide = power_law_guide("b", ends, point, -terms[name], f"{name}, {-terms[name]:.3g}")
        fitted = with_exponent(Curve("b", name, steps, loss), terms[name], FAR, "finite time")
        guides.append(
            replace(
                guide,
                predicted_exponent=terms[name],
                measured_exponent=fitted.measured_exponent,
                exponent_error=fitted.exponent_error,
                window=fitted.window,
                note=fitted.note,
            )
        )
    return guides


def _compute(widths: tuple[int, ...], last: int, tasks: Tasks) -> list[Curve]:
    alpha, beta = SUPER_EASY
    task = PowerLawSpectrum(alpha, beta)
    curves = []
    for width in widths:
        model = Model(task, width=width, learning_rate=LEARNING_RATE, batch_size=1)
        n_steps = int(10.0**last / width)
        steps = log_spaced_steps(n_steps)[1:]
        loss = solve_dmft(model, n_steps, steps=steps).loss
        parameters = {"beta": beta, "gamma": 0.0, "width": float(width), "batch_size": 1.0}
        curves.append(Curve("c", f"N = {width}", width * steps, loss, parameters=parameters))
        tasks.done()
    budgets = 10.0 ** np.arange(2, last + 0.01, 0.5)
    frontier = compute_frontier(task, 0.0, LEARNING_RATE, 1, budgets)
    values = {"loss": frontier.losses, "width": frontier.widths, "time": frontier.steps}
    labels = {"loss": "best width", "width": "best width, N over C", "time": "best width, t over C"}
    for fit in frontier.exponents:
        assert fit.predicted is not None
        differs = abs(fit.fitted - fit.predicted) > NOTED
        curves.append(
            Curve(
                "c",
                labels[fit.name],
                budgets,
                values[fit.name],
                parameters={"beta": beta, "gamma": 0.0, "batch_size": 1.0},
                predicted_exponent=fit.predicted,
                measured_exponent=fit.fitted,
                exponent_error=fit.error,
                window=(frontier.window_start, frontier.window_stop),
                note="finite compute: gradient flow is still a part of the loss" if differs else "",
            )
        )
    middle = budgets.size // 2
    predicted = 1.0 - 0.5 / alpha
    at = (float(budgets[middle]), 0.3 * float(frontier.losses[middle]))
    curves.append(power_law_guide("c", (float(budgets[middle]), float(budgets[-1])), at, -predicted))
    return curves


def draw(data: FigureData) -> Figure:
    """Batch sizes over steps; widths over compute with the best of them."""
    from matplotlib import colormaps

    figure, axes = make_panels(data, n_columns=3, size=(4.0, 3.5))
    titles = {"a": "hard", "b": "super-easy", "c": "super-easy, lazy, $B = 1$"}
    for panel in "ab":
        ax = axes[panel]
        draw_curves(ax, [curve for curve in data.panel(panel) if curve.kind != "guide"], legend=False)
        for guide in data.panel(panel):
            if guide.kind == "guide":
                below = not guide.label.startswith("SGD")
                short = replace(guide, label=guide.label.rpartition(", ")[2])
                draw_guide(ax, short, offset=(-24.0, -14.0) if below else (3.0, 2.0))
        order_legend(ax)
    ax = axes["c"]
    ax.set_xscale("log")
    ax.set_yscale("log")
    widths = [curve for curve in data.panel("c") if "width" in curve.parameters]
    for index, curve in enumerate(widths):
        colour = colormaps["viridis_r"](0.1 + 0.9 * index / max(len(widths) - 1, 1))
        name = f"N = {curve.parameters['width']:.0f}" if index in (0, len(widths) - 1) else "_width"
        ax.plot(curve.x, curve.y, color=colour, linewidth=1.1, label=name)
    for curve in data.panel("c"):
        if curve.label == "best width":
            ax.plot(curve.x, curve.y, "--", color="black", linewidth=1.6, zorder=3, label="best width")
        elif curve.kind == "guide":
            draw_guide(ax, curve, offset=(-26.0, -14.0))
    ax.legend(frameon=False, fontsize="small", loc="lower left")
    for panel, ax in axes.items():
        ax.set_title(f"({panel})  {titles[panel]}", loc="left", fontsize="medium")
    return figure
