"""Figure 7: eigenvalues of neural tangent kernels on the circle fall as k^-2q for activations relu^q."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from scalefield._progress import Progress
from scalefield.figures._base import COLOURS, Curve, FigureData, draw_guide, make_panels, power_law_guide
from scalefield.kernels import InfiniteWidthKernel, circle_eigenvalues

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["compute", "draw"]

POWERS = (1, 2, 3)
DEPTHS = (1, 2, 3, 5)
PANELS = "abc"


def compute(quick: bool = False, seed: int = 0, progress: Progress | None = None) -> FigureData:
    """Eigenvalues of the infinite-width NTK without biases, and their local exponents, for q = 1, 2, 3 and four depths.

    Nothing is drawn at random; `seed` plays no part.
    """
    k_max = 10_000 if quick else 100_000
    window = (k_max // 100, k_max)
    curves, local = [], []
    for panel, q in zip(PANELS, POWERS, strict=True):
        alpha = 2.0 * q
        for index, depth in enumerate(DEPTHS):
            modes = circle_eigenvalues(InfiniteWidthKernel("relu", power=q, depth=depth), k_max)
            measured, error = modes.measured_exponent(*window)
            # One parity, that of the modes that all depths have: the other has a level of its own.
            k = np.unique(np.rint(np.geomspace(2, k_max - 1, 60)).astype(np.int64))
            k = np.unique(k - (k + q + 1) % 2)
            k = k[k > 0]
            parameters = {"power": q, "depth": depth, "width": math.inf}
            layers = f"{depth} hidden layer{'s' if depth > 1 else ''}"
            curves.append(
                Curve(
                    panel,
                    layers,
                    k,
                    modes.eigenvalues[k],
                    parameters=parameters,
                    predicted_exponent=alpha,
                    measured_exponent=measured,
                    exponent_error=error,
                    window=(float(window[0]), float(window[1])),
                    note="" if abs(measured - alpha) < 5.0 * error else _NOTE,
                )
            )
            # Between neighbours of one parity
            middle = np.unique(np.rint(np.geomspace(4, k_max - 4, 50)).astype(np.int64))
            middle = np.unique(middle - (middle + q + 1) % 2)
            middle = middle[middle > 2]
            ratio = np.log(modes.eigenvalues[middle - 2] / modes.eigenvalues[middle + 2])
            slope = ratio / np.log((middle + 2) / (middle - 2))
            local.append(Curve("d", f"relu^{q}, {layers}", middle, slope, parameters=parameters))
            if progress is not None:
                progress(len(local), len(POWERS) * len(DEPTHS))
            if index == 0:
                ends = (30.0, k_max / 3.0)
                start = float(np.interp(math.log(ends[0]), np.log(k), np.log(modes.eigenvalues[k])))
                guide = power_law_guide(panel, ends, (ends[0], 0.03 * math.exp(start)), -alpha)
        curves.append(guide)
    return FigureData(
        "7",
        {
            **{
                panel: ("frequency $k$", rf"NTK eigenvalue $\lambda_k$, $q_\phi = {q}$")
                for panel, q in zip(PANELS, POWERS, strict=True)
            },
            "d": ("frequency $k$", r"local exponent $-d \log \lambda_k / d \log k$"),
        },
        (*curves, *local),
        {"seed": seed, "quick": quick, "k_max": k_max, "kernel": "infinite-width NTK, no biases, input variance 1"},
    )


_NOTE = "finite k: lambda_k k^alpha = c (1 + O(k^-2)), the more so the deeper and the larger q"


def draw(data: FigureData) -> Figure:
    """Eigenvalues over frequency for each power, and local exponents."""
    figure, axes = make_panels(data)
    for panel in PANELS:
        ax = axes[panel]
        ax.set_xscale("log")
        ax.set_yscale("log")
        curves = [curve for curve in data.panel(panel) if curve.kind == "theory"]
        for curve, colour in zip(curves, COLOURS, strict=False):
            label = f"{curve.label}: {curve.measured_exponent:.3f}"
            ax.plot(curve.x, curve.y, ".-", color=colour, markersize=3.5, linewidth=1.0, label=label)
        for guide in data.panel(panel):
            if guide.kind == "guide":
                draw_guide(ax, guide, offset=(-14.0, -14.0))
        predicted = curves[0].predicted_exponent
        ax.legend(frameon=False, fontsize="small", title=f"exponent (predicted {predicted:g})", title_fontsize="small")
    ax = axes["d"]
    ax.set_xscale("log")
    for curve in data.panel("d"):
        depth = DEPTHS.index(int(curve.parameters["depth"]))
        ax.plot(curve.x, curve.y, color=COLOURS[depth], linewidth=1.2, label=_once(curve))
    for q in POWERS:
        ax.axhline(2.0 * q, color="black", linestyle="--", linewidth=1.0, zorder=0)
        ax.annotate(
            rf"$2 q_\phi = {2 * q}$", (1.0, 2.0 * q), xycoords=("axes fraction", "data"), xytext=(-4, 3),
            textcoords="offset points", ha="right", va="bottom", fontsize="small",
        )  # fmt: skip
    # Beyond, they have converged.
    ax.set_xlim(3.0, 3e3)
    ax.set_ylim(0.0, 12.0)
    ax.legend(frameon=False, fontsize="small", loc="upper right")
    return figure


def _once(curve: Curve) -> str:
    """The layers, for the curves of the first power only."""
    layers = curve.label.partition(", ")[2]
    return layers if curve.parameters["power"] == POWERS[0] else f"_{layers}"
