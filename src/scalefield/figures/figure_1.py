"""Figure 1 and Table 1: phases of tasks, and exponents in time and compute, predicted and measured.

Measured exponents are those of gradient flow (infinite batch), at every width and time exact: in time at infinite
width, and in compute along the frontier of the best width.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from scalefield._progress import Progress
from scalefield.figures._base import COLOURS, Curve, FigureData, make_panels
from scalefield.flow import solve_gradient_flow
from scalefield.model import Model
from scalefield.scaling import (
    ComputeOptimum,
    compute_optimal,
    fit_power_law,
    phase_diagram,
    task_difficulty,
    time_exponent,
)
from scalefield.spectrum import PowerLawSpectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["compute", "draw"]

Array = NDArray[np.float64]

ALPHA_RANGE, BETA_RANGE = (1.0, 4.0), (0.0, 2.5)
GAMMA = 1.0
TAU = 1e10
MARKERS = ("o", "s", "D")
# Frontiers are fitted over their last 1.5 decades of compute.
PER_DECADE, FITTED = 4, 7
# Differences below this are not worth a note.
NOTED = 0.003


def compute(quick: bool = False, seed: int = 0, progress: Progress | None = None) -> FigureData:
    """Borders of the phases, and exponents on a coarse grid of tasks.

    Nothing is drawn at random; `seed` plays no part.
    """
    alphas = (1.5, 3.0) if quick else (1.5, 2.0, 3.0)
    betas = (0.25, 0.5, 0.75, 1.25) if quick else (0.25, 0.5, 0.75, 1.2, 1.4, 2.0)
    # Frontiers of narrow models are fitted where compute is small: the exponents are somewhat less those of the limit.
    widths = np.unique(np.round(np.geomspace(4, 3e3, 9) if quick else np.geomspace(4, 1e5, 16)))
    curves = []
    alpha = np.linspace(*ALPHA_RANGE, 61)
    for panel in "ab":
        curves.append(Curve(panel, "beta = 1", alpha, np.ones_like(alpha), kind="guide"))
        curves.append(Curve(panel, "beta = 2 - 1/alpha", alpha, 2.0 - 1.0 / alpha, kind="guide"))
    beta = np.linspace(0.02, BETA_RANGE[1], 125)
    for rich in (False, True):
        name = "rich" if rich else "lazy"
        curves.append(Curve("c", name, beta, np.array([time_exponent(b, rich) for b in beta])))
        for a in alphas:
            diagram = phase_diagram([a], beta, rich)
            curves.append(Curve("d", f"{name}, alpha = {a:g}", beta, diagram.loss_exponent[0], parameters={"alpha": a}))
            diagram = phase_diagram([a], beta, rich, sgd_noise=False)
            label = f"{name}, alpha = {a:g}, infinite batch"
            curves.append(Curve("d", label, beta, diagram.loss_exponent[0], parameters={"alpha": a}))

    tasks = [(a, b, gamma) for gamma in (0.0, GAMMA) for a in alphas for b in betas]
    for index, task in enumerate(tasks):
        curves += _measure(*task, widths)
        if progress is not None:
            progress(index + 1, len(tasks))
    return FigureData(
        "1",
        {
            "a": (r"capacity $\alpha$", r"source $\beta$"),
            "b": (r"capacity $\alpha$", r"source $\beta$"),
            "c": (r"source $\beta$", r"exponent in time $\chi$"),
            "d": (r"source $\beta$", "exponent in compute"),
        },
        tuple(curves),
        {
            "seed": seed,
            "quick": quick,
            "panels a, b": "lazy and rich; exponents of the loss in compute C = N t",
            "measured": f"gradient flow (infinite batch), gamma 0 and {GAMMA:g}, time exponents at tau = {TAU:g}, "
            f"widths {widths[0]:.0f} to {widths[-1]:.0f}",
        },
    )


def _measure(alpha: float, beta: float, gamma: float, widths: Array) -> list[Curve]:
    """Exponents of one task: in time (panel c), in compute (panel d, and a or b outside the super-easy phase)."""
    rich = gamma > 0.0
    model = Model(PowerLawSpectrum(alpha, beta), gamma=gamma)
    parameters = {"alpha": alpha, "beta": beta, "gamma": gamma}
    where = f"{'rich' if rich else 'lazy'}, alpha = {alpha:g}, beta = {beta:g}"

    chi = time_exponent(beta, rich)
    local = float(solve_gradient_flow(model, [TAU]).local_exponent[0])
    note = "finite time: the deviation falls like tau^-(1-beta)/(1+beta)"
    curves = [
        Curve(
            "c",
            where,
            np.array([beta]),
            np.array([local]),
            kind="measurement",
            parameters=parameters,
            predicted_exponent=chi,
            measured_exponent=local,
            note=note if abs(local - chi) > NOTED else "",
        )
    ]
    budgets, loss = _frontier(model, widths)
    if budgets.size < FITTED:
        return curves
    fit = fit_power_law(budgets[-FITTED:], loss[-FITTED:], window=None)
    optimum = compute_optimal(alpha, beta, rich, sgd_noise=False)
    settings: dict[str, Any] = {
        "kind": "measurement",
        "parameters": parameters,
        "predicted_exponent": optimum.loss_exponent,
        "measured_exponent": fit.exponent,
        "exponent_error": fit.standard_error,
        "window": fit.window,
        "note": _note(fit.exponent, fit.standard_error, optimum),
    }
    label = where
    if task_difficulty(alpha, beta) == "super-easy":
        label += ", infinite batch"
    else:
        panel = "b" if rich else "a"
        curves.append(Curve(panel, label, np.array([alpha]), np.array([beta]), **settings))
    curves.append(
        Curve("d", label, np.array([beta]), np.array([fit.exponent]), np.array([fit.standard_error]), **settings)
    )
    return curves


def _note(measured: float, error: float, optimum: ComputeOptimum) -> str:
    if abs(measured - optimum.loss_exponent) <= max(NOTED, 2.0 * error):
        return ""
    if optimum.difficulty == "hard":
        return "finite compute: gradient flow and bottleneck have corrections of low powers, lowest near beta = 1"
    return "finite compute: the third term, which is smaller by a low power of C, still matters"


def _frontier(model: Model, widths: Array) -> tuple[Array, Array]:
    """Least loss over the width at budgets C = N t where it lies well inside `widths`.

    log L is a spline in log N at each budget.
    """
    budgets = 10.0 ** (np.arange(3 * PER_DECADE, 13 * PER_DECADE + 1) / PER_DECADE)
    log_loss = np.array(
        [np.log(solve_gradient_flow(model.replace(width=width), budgets / width).loss) for width in widths]
    )
    log_width = np.log(widths)
    kept, least = [], []
    for budget, column in zip(budgets, log_loss.T, strict=True):
        spline = CubicSpline(log_width, column)
        slope = spline.derivative()
        places = [x for x in slope.roots(extrapolate=False) if slope(x, 1) > 0.0]
        # Splines are less accurate in their first and last intervals.
        places = [x for x in places if log_width[1] < x < log_width[-2]]
        if places:
            kept.append(budget)
            least.append(math.exp(min(float(spline(x)) for x in places)))
    return np.array(kept), np.array(least)


def draw(data: FigureData) -> Figure:
    """Phases over (alpha, beta) coloured by the exponent in compute, and sections through them."""
    from matplotlib.colors import Normalize

    figure, axes = make_panels(data, size=(4.6, 3.7))
    norm = Normalize(0.0, 1.0)
    for panel, rich in (("a", False), ("b", True)):
        _draw_phases(axes[panel], data.panel(panel), rich, norm)
    shading = axes["b"].collections[0]
    figure.colorbar(shading, ax=[axes["a"], axes["b"]], label=r"$e$ of $L \sim C^{-e}$", shrink=0.9)

    ax = axes["c"]
    for curve in data.panel("c"):
        if curve.kind == "theory":
            ax.plot(curve.x, curve.y, "--", color="black", linewidth=1.4, label="_theory")
    _draw_points(ax, data.panel("c"))
    ax.set_xlim(0.0, 2.1)
    ax.set_ylim(0.0, 2.1)
    ax.plot([], [], "--", color="black", linewidth=1.4, label="theory")
    ax.legend(frameon=False, fontsize="small", loc="upper left")

    ax = axes["d"]
    for curve in data.panel("d"):
        if curve.kind == "theory":
            without_noise = "infinite batch" in curve.label
            style, width = (":", 1.1) if without_noise else ("--", 1.4)
            ax.plot(curve.x, curve.y, style, color="black", linewidth=width)
    _draw_points(ax, data.panel("d"))
    ax.plot([], [], "--", color="black", linewidth=1.4, label="theory")
    ax.plot([], [], ":", color="black", linewidth=1.1, label="theory, infinite batch")
    ax.set_xlim(0.0, 2.5)
    ax.set_ylim(0.0, 1.0)
    ax.legend(frameon=False, fontsize="small", loc="lower right")
    return figure


def _draw_phases(ax: Axes, curves: tuple[Curve, ...], rich: bool, norm: Any) -> None:
    alpha = np.linspace(ALPHA_RANGE[0] + 1e-3, ALPHA_RANGE[1], 61)
    beta = np.linspace(BETA_RANGE[0] + 1e-3, BETA_RANGE[1], 51)
    exponent = phase_diagram(alpha, beta, rich).loss_exponent
    ax.grid(False)
    ax.pcolormesh(alpha, beta, exponent.T, cmap="viridis", norm=norm, shading="gouraud", rasterized=True)
    for curve in curves:
        if curve.kind == "guide":
            ax.plot(curve.x, curve.y, color="white", linewidth=1.4)
        else:
            ax.scatter(
                curve.x, curve.y, s=70, c=np.array([curve.measured_exponent], dtype=np.float64), cmap="viridis",
                norm=norm, edgecolors="white", linewidths=1.2, zorder=3,
            )  # fmt: skip
    ax.set_xlim(*ALPHA_RANGE)
    ax.set_ylim(*BETA_RANGE)
    chi = r"2\beta/(1+\beta)" if rich else r"\beta"
    names = (
        (2.5, 0.62, "hard\n" + rf"$t^{{-{chi}}},\ N^{{-\alpha\beta}}$"),
        (2.5, 1.27, "easy\n" + r"$t^{-\beta},\ t^{-1+1/\alpha}/N$"),
        (2.5, 2.2, "super-easy\n" + r"$t^{-1+1/\alpha}/N,\ (\eta/B)\,t^{-2+1/\alpha}$"),
    )
    for x, y, text in names:
        # Yellow shades are light.
        ax.text(x, y, text, color="white" if y < 1.0 else "black", ha="center", va="center", fontsize="small")
    ax.set_title(f"({'b' if rich else 'a'}) {'rich' if rich else 'lazy'}", loc="left", fontsize="medium")


def _draw_points(ax: Axes, curves: tuple[Curve, ...]) -> None:
    points = [curve for curve in curves if curve.kind == "measurement"]
    alphas = sorted({curve.parameters["alpha"] for curve in points})
    for rich, colour in zip((False, True), COLOURS, strict=False):
        for alpha, marker in zip(alphas, MARKERS, strict=False):
            here = [c for c in points if c.parameters["alpha"] == alpha and (c.parameters["gamma"] > 0.0) == rich]
            if here:
                label = rf"{'rich' if rich else 'lazy'}, $\alpha$ = {alpha:g}"
                x, y = (np.concatenate([getattr(curve, name) for curve in here]) for name in ("x", "y"))
                ax.plot(x, y, marker, color=colour, markersize=4.5, markerfacecolor="none", label=label)
