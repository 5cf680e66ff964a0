"""Figure 2: learning curves of easy and hard tasks, at infinite width for several gamma and at finite widths.

At infinite width the curves are gradient flow. At finite widths runs on the population gradient, which differ by their
initial features alone, stand beside their mean-field theory.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from scalefield._progress import Progress
from scalefield.figures._base import COLOURS, Curve, FigureData, draw_curves, draw_guide, make_panels, power_law_guide
from scalefield.figures._learning_curves import NOTED, Tasks, compare, order_legend, truncated, with_exponent
from scalefield.flow import solve_gradient_flow
from scalefield.model import Model
from scalefield.resolvent import bottleneck_loss
from scalefield.scaling import loss_terms, time_exponent
from scalefield.spectrum import PowerLawSpectrum

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["compute", "draw"]

ALPHA, EASY, HARD = 1.5, 1.25, 0.5
GAMMAS = (0.0, 0.01, 0.1, 1.0, 10.0)
GAMMA, LEARNING_RATE = 1.0, 0.1
# Exponents in time are fitted over the last two decades.
FITTED = 100.0


def compute(quick: bool = False, seed: int = 0, progress: Progress | None = None) -> FigureData:
    """Gradient flow at infinite width (a: easy, b: hard), runs and theory at finite widths (c: hard, d: easy)."""
    last_time = 1e6 if quick else 1e10
    widths = (16, 64) if quick else (16, 64, 256)
    n_steps, n_runs = (1000, 8) if quick else (10_000, 32)
    tasks = Tasks(2 * len(GAMMAS) + 2 * len(widths), progress)
    curves: list[Curve] = []
    for panel, beta in (("a", EASY), ("b", HARD)):
        curves += _infinite_width(panel, beta, last_time, tasks)
    for panel, beta in (("c", HARD), ("d", EASY)):
        curves += _finite_widths(panel, beta, widths, n_steps, n_runs, seed, tasks)
    loss = "test loss"
    return FigureData(
        "2",
        {
            "a": (r"time $\tau$", loss),
            "b": (r"time $\tau$", loss),
            "c": ("step $t$", loss),
            "d": ("step $t$", loss),
        },
        tuple(curves),
        {
            "seed": seed,
            "quick": quick,
            "alpha": ALPHA,
            "panels a, b": f"gradient flow at infinite width, beta = {EASY:g} and {HARD:g}",
            "panels c, d": f"beta = {HARD:g} and {EASY:g}, gamma {GAMMA:g}, learning rate {LEARNING_RATE:g}, infinite "
            f"batch, {n_runs} runs",
        },
    )


def _infinite_width(panel: str, beta: float, last_time: float, tasks: Tasks) -> list[Curve]:
    times = np.geomspace(1.0, last_time, 121)
    curves = []
    for gamma in GAMMAS:
        flow = solve_gradient_flow(Model(PowerLawSpectrum(ALPHA, beta), gamma=gamma), times)
        curve = Curve(panel, f"gamma = {gamma:g}", times, flow.loss, parameters={"beta": beta, "gamma": gamma})
        why = (
            "finite time: the crossover from lazy to rich ends long after tau = gamma^-1/(1-beta)"
            if beta < 1.0
            else "finite time: features still move"
        )
        predicted = time_exponent(beta, gamma > 0.0)
        curves.append(with_exponent(curve, predicted, (last_time / FITTED, last_time), why))
        tasks.done()
    ends = (1e-3 * last_time, 0.5 * last_time)
    lazy, rich = curves[0], curves[-1]
    for rule, factor in ((lazy, 2.0), (rich, 0.5)) if beta < 1.0 else ((lazy, 2.0),):
        slope = -time_exponent(beta, rule is rich)
        at = (ends[0], factor * float(np.exp(np.interp(math.log(ends[0]), np.log(rule.x), np.log(rule.y)))))
        curves.append(power_law_guide(panel, ends, at, slope))
    return curves


def _finite_widths(
    panel: str, beta: float, widths: tuple[int, ...], n_steps: int, n_runs: int, seed: int, tasks: Tasks
) -> list[Curve]:
    models = [Model(truncated(ALPHA, beta), width=width, gamma=GAMMA, learning_rate=LEARNING_RATE) for width in widths]
    curves = compare(panel, "N = {model.width}", models, n_steps, n_runs, seed, tasks)
    chi = time_exponent(beta, True)
    why = (
        "finite width and time: the model bottleneck bends the curve, earlier the narrower it is; to leading order the "
        "1/N transient of a hard task is the start of that bend and no law of its own"
        if beta < 1.0
        else "finite width and time: the 1/N transient, t^-(1-1/alpha)/N, falls more slowly than gradient flow"
    )
    # One decade of tau, after the first modes and before the narrowest widths bend.
    window = (3.0 / LEARNING_RATE, 30.0 / LEARNING_RATE)
    result = [with_exponent(curve, chi, window, why) if curve.kind == "theory" else curve for curve in curves]
    # What infinite training leaves, drawn at the right; its exponent in the width is that of very wide models.
    predicted = next(term.width_exponent for term in loss_terms(ALPHA, beta, True) if term.name == "model bottleneck")
    wide = PowerLawSpectrum(ALPHA, beta)
    measured = -math.log10(bottleneck_loss(wide, width=1e8) / bottleneck_loss(wide, width=1e6)) / 2.0
    printed = next(
        term.width_exponent for term in loss_terms(ALPHA, beta, True, printed=True) if term.name == "model bottleneck"
    )
    for model in models:
        left = bottleneck_loss(model.spectrum, width=model.width)
        result.append(
            Curve(
                panel,
                f"bottleneck, N = {model.width}",
                np.array([0.2 * n_steps, 1.0 * n_steps]),
                np.array([left, left]),
                kind="guide",
                parameters={"width": float(model.width), "gamma": GAMMA, "beta": beta},
                predicted_exponent=predicted,
                measured_exponent=measured,
                note=""
                if abs(printed - measured) < 10.0 * NOTED
                else "exponent in the width, from N = 1e6 to 1e8; the paper prints alpha min(2, beta) = "
                f"{printed:.3g}, which leaves out the variance over initial features",
            )
        )
    start = window[0]
    theory = next(curve for curve in reversed(result) if curve.kind == "theory")
    at = (start, 0.6 * float(np.exp(np.interp(math.log(start), np.log(theory.x), np.log(theory.y)))))
    result.append(power_law_guide(panel, (start, window[1]), at, -chi))
    return result


def draw(data: FigureData) -> Figure:
    """Two rows: infinite width, finite widths."""
    figure, axes = make_panels(data)
    titles = {"a": r"easy, N = $\infty$", "b": r"hard, N = $\infty$", "c": "hard", "d": "easy"}
    for panel, ax in axes.items():
        curves = [curve for curve in data.panel(panel) if not curve.label.startswith("bottleneck")]
        if panel in "ab":
            ax.set_xscale("log")
            ax.set_yscale("log")
            gammas = [curve for curve in curves if curve.kind == "theory"]
            for curve, colour in zip(gammas, COLOURS, strict=False):
                ax.plot(curve.x, curve.y, color=colour, linewidth=1.4, label=curve.label.replace("gamma", r"$\gamma$"))
            _draw_slopes(ax, [curve for curve in curves if curve.kind == "guide"])
            ax.legend(frameon=False, fontsize="small", loc="lower left")
        else:
            draw_curves(ax, [curve for curve in curves if curve.kind != "guide"], legend=False)
            _draw_slopes(ax, [curve for curve in curves if curve.kind == "guide"])
            bottlenecks = [curve for curve in data.panel(panel) if curve.label.startswith("bottleneck")]
            for index, curve in enumerate(bottlenecks):
                label = r"$t \to \infty$" if index == 0 else "_bottleneck"
                ax.plot(curve.x, curve.y, ":", color="0.3", linewidth=1.6, label=label, zorder=4)
            order_legend(ax)
        ax.set_title(f"({panel})  {titles[panel]}", loc="left", fontsize="medium")
    return figure


def _draw_slopes(ax: object, guides: list[Curve]) -> None:
    """Guides above their curve are labelled above, those below it below."""
    for index, guide in enumerate(guides):
        below = index > 0 or guide.panel in "cd"
        draw_guide(ax, guide, offset=(-22.0, -14.0) if below else (4.0, 3.0))  # type: ignore[arg-type]
