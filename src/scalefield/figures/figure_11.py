"""Figure 11: levels of the bootstrap converge to the exponent chi(beta) of feature learning [62]."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scalefield._progress import Progress
from scalefield.figures._base import COLOURS, Curve, FigureData, make_panels, math_text
from scalefield.flow import solve_gradient_flow
from scalefield.model import Model
from scalefield.scaling import bootstrap_exponents, time_exponent
from scalefield.spectrum import PowerLawSpectrum

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["compute", "draw"]

ALPHA, GAMMA = 1.5, 10.0
LEVELS = (0, 1, 2, 3, 8)
SHOWN = (0.25, 0.5, 0.75)


def compute(quick: bool = False, seed: int = 0, progress: Progress | None = None) -> FigureData:
    """Levels of the bootstrap over beta, their limit, and exponents of gradient flow.

    Nothing is drawn at random; `seed` plays no part.
    """
    betas = np.linspace(0.02, 1.6, 80)
    table = np.array([bootstrap_exponents(beta, max(LEVELS)) for beta in betas])
    curves = [Curve("a", f"level {level}", betas, table[:, level], parameters={"level": level}) for level in LEVELS]
    limit = np.array([time_exponent(beta, True) for beta in betas])
    curves.append(Curve("a", "limit chi(beta)", betas, limit))

    tau = 1e10 if quick else 1e14
    measured_at = np.arange(0.1, 1.55, 0.2 if quick else 0.1)
    for index, beta in enumerate(measured_at):
        model = Model(PowerLawSpectrum(ALPHA, beta), gamma=GAMMA)
        # Local exponents over a decade tell how far they still move.
        exponents = solve_gradient_flow(model, [0.1 * tau, tau]).local_exponent
        predicted = time_exponent(beta, True)
        curves.append(
            Curve(
                "a",
                f"gradient flow, beta = {beta:.1f}",
                [beta],
                [exponents[1]],
                kind="measurement",
                parameters={"alpha": ALPHA, "beta": beta, "gamma": GAMMA},
                predicted_exponent=predicted,
                measured_exponent=float(exponents[1]),
                note=_note(float(beta)) if abs(exponents[1] - predicted) > 1e-3 else "",
            )
        )
        if progress is not None:
            progress(index + 1, measured_at.size)

    levels = np.arange(max(LEVELS) + 1)
    for beta in SHOWN:
        chi = bootstrap_exponents(beta, int(levels[-1]))
        error = np.abs(chi - time_exponent(beta, True))
        # |chi_n - chi| = beta^n |chi_0 - chi|
        rate = float((error[-1] / error[0]) ** (1.0 / levels[-1]))
        curves.append(
            Curve(
                "b",
                f"beta = {beta:g}",
                levels,
                error,
                parameters={"beta": beta},
                predicted_exponent=beta,
                measured_exponent=rate,
            )
        )
    return FigureData(
        "11",
        {
            "a": (r"source exponent $\beta$", r"exponent in time $\chi$"),
            "b": ("level $n$", r"$|\chi_n - \chi|$"),
        },
        tuple(curves),
        {"seed": seed, "quick": quick, "tau": tau, "panel b": "exponents are factors of the error at each level"},
    )


def _note(beta: float) -> str:
    if abs(beta - 1.0) < 1e-9:
        return "at beta = 1 the kernel grows like a power of log tau, so that the exponent is approached like 1/log tau"
    power = (1.0 - beta) / (1.0 + beta) if beta < 1.0 else beta - 1.0
    return f"finite time: near beta = 1 the deviation falls slowly, like tau^-{power:.2f}"


def draw(data: FigureData) -> Figure:
    """Exponents over beta, and the error of each level."""
    figure, axes = make_panels(data)
    ax = axes["a"]
    levels = [curve for curve in data.panel("a") if "level" in curve.parameters]
    for curve, colour in zip(levels, COLOURS, strict=False):
        ax.plot(curve.x, curve.y, color=colour, linewidth=1.2, label=math_text(curve.label))
    for curve in data.panel("a"):
        if curve.kind == "theory" and curve not in levels:
            ax.plot(curve.x, curve.y, "--", color="black", linewidth=1.6, label=math_text(curve.label))
    points = [curve for curve in data.panel("a") if curve.kind == "measurement"]
    x, y = (np.concatenate([getattr(curve, name) for curve in points]) for name in ("x", "y"))
    label = rf"gradient flow, $\tau = 10^{{{np.log10(data.settings['tau']):.0f}}}$"
    ax.plot(x, y, "o", color="black", markersize=4.0, markerfacecolor="white", label=label, zorder=4)
    ax.set_xlim(0.0, 1.6)
    ax.set_ylim(0.0, 1.6)
    ax.legend(frameon=False, fontsize="small", loc="lower right", labelspacing=0.25)

    ax = axes["b"]
    for curve, colour in zip(data.panel("b"), COLOURS, strict=False):
        ax.plot(curve.x, curve.y, "o-", color=colour, markersize=4.0, linewidth=1.2, label=math_text(curve.label))
    ax.set_yscale("log")
    ax.legend(frameon=False, fontsize="small")
    return figure
