"""Figure 8: a kernel on real images - eigenvalues, tail sums of the target, and its cumulative alignment.

The paper diagonalises the kernel of a residual network on CIFAR-5M. Here infinitely wide ReLU networks of several
depths stand on the handwritten digits that come with the package, or on CIFAR-5M where the environment variable
SCALEFIELD_CIFAR5M names the folder of its parts.
"""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scalefield import datasets
from scalefield._progress import Progress
from scalefield.errors import KernelWarning
from scalefield.figures._base import COLOURS, Curve, FigureData, make_panels
from scalefield.kernels import InfiniteWidthKernel, fit_source_capacity
from scalefield.spectrum import Spectrum

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["compute", "draw"]

Array = NDArray[np.float64]

FOLDER = "SCALEFIELD_CIFAR5M"
_DEPTHS = (1, 2, 4)
_SAMPLES = 4000
_QUICK_SAMPLES = 600
_POINTS = 200


def compute(
    quick: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
    *,
    folder: str | os.PathLike[str] | None = None,
) -> FigureData:
    """Spectra of infinitely wide ReLU networks of 1, 2 and 4 hidden layers; targets are the ten classes, one-hot.

    Parameters
    ----------
    quick : bool
        600 images; else all 1,797 digits, or 4,000 images of CIFAR-5M.
    seed : int
        Of the images drawn.
    progress : callable, optional
        Counts kernels.
    folder : path, optional
        Parts of CIFAR-5M; by default what SCALEFIELD_CIFAR5M names, and the digits if it names nothing.

    Returns
    -------
    FigureData
        Exponents: alpha in panel a, alpha beta in panel b, with half of their 95% intervals over 1.96 as errors.
    """
    source = folder if folder is not None else os.environ.get(FOLDER)
    images, labels, name = _images(source, quick, seed)
    x, target = datasets.preprocess(images), datasets.class_targets(labels, "one-hot", 10)
    curves: list[Curve] = []
    for done, depth in enumerate(_DEPTHS):
        spectrum = Spectrum.from_kernel(InfiniteWidthKernel("relu", depth=depth).gram(x), target, normalize=True)
        curves += _curves(spectrum, depth)
        if progress is not None:
            progress(done + 1, len(_DEPTHS))
    axes = {
        "a": ("mode k", "eigenvalue"),
        "b": ("mode k", "target power beyond mode k"),
        "c": ("mode k", "cumulative alignment C(k)"),
    }
    settings = {"quick": quick, "seed": seed, "data": name, "n_samples": len(x), "kernel": "NTK, infinite width, relu"}
    return FigureData("8", axes, tuple(curves), settings)


def _images(source: Any, quick: bool, seed: int) -> tuple[NDArray[Any], NDArray[np.int64], str]:
    if source:
        stream = datasets.load_cifar5m(source)
        images, labels = stream.sample(min(_QUICK_SAMPLES if quick else _SAMPLES, len(stream)), seed)
        return images, labels, "CIFAR-5M"
    every, labels = datasets.digits()
    if quick:
        chosen = np.sort(np.random.default_rng(seed).choice(len(labels), _QUICK_SAMPLES, replace=False))
        every, labels = every[chosen], labels[chosen]
    return every, labels, "handwritten digits"


def _curves(spectrum: Spectrum, depth: int) -> list[Curve]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", KernelWarning)
        fit = fit_source_capacity(spectrum)
    note = "; ".join(str(item.message) for item in caught)
    if not note:
        before = f"alpha {fit.alpha_uncorrected:.3f}, beta {fit.beta_uncorrected:.3f}"
        note = f"corrected for {fit.n_samples} samples; without, {before}"
    power = np.cumsum(spectrum.target_power)
    total = float(power[-1])
    k = np.unique(np.geomspace(1, spectrum.n_modes - 1, _POINTS).astype(int))
    window = np.arange(max(fit.window[0], 1), fit.window[1] + 1)
    after = np.append(np.cumsum(fit.target_power(window[1:].astype(float))[::-1])[::-1], 0.0)
    label, parameters = f"depth {depth}", {"depth": float(depth)}
    span = (float(window[0]), float(window[-1]))

    def measured(panel: str, y: Array, exponent: float | None, interval: tuple[float, float]) -> Curve:
        error = None if exponent is None else (interval[1] - interval[0]) / (2.0 * 1.96)
        return Curve(
            panel, label, k, y, kind="measurement", parameters=parameters, measured_exponent=exponent,
            exponent_error=error, window=None if exponent is None else span, note="" if exponent is None else note,
        )  # fmt: skip

    return [
        measured("a", spectrum.eigenvalues[k - 1], fit.alpha, fit.alpha_interval),
        Curve("a", "fit", window, fit.eigenvalues(window.astype(float)), parameters=parameters),
        measured("b", total - power[k - 1], fit.alpha_beta, fit.alpha_beta_interval),
        Curve("b", "fit", window, total - power[window[-1] - 1] + after, parameters=parameters),
        measured("c", power[k - 1] / total, None, (0.0, 0.0)),
    ]


def draw(data: FigureData) -> Figure:
    """Spectra as coloured lines, fits dashed over their windows; C(k) on a linear axis, as it rises to 1."""
    figure, panels = make_panels(data, n_columns=3, size=(3.9, 3.4))
    depths = sorted({curve.parameters["depth"] for curve in data.curves})
    for name, ax in panels.items():
        # Fits last, in the legend too.
        for curve in sorted(data.panel(name), key=lambda curve: curve.kind == "theory"):
            if curve.kind == "measurement":
                colour = COLOURS[depths.index(curve.parameters["depth"]) % len(COLOURS)]
                exponent = curve.measured_exponent
                symbol = {"a": r"\alpha", "b": r"\alpha\beta"}.get(name)
                label = curve.label if exponent is None else rf"{curve.label}: ${symbol} = {exponent:.2f}$"
                ax.plot(curve.x, curve.y, color=colour, linewidth=1.6, label=label)
            else:
                fits = [line for line in ax.get_lines() if line.get_label() == "fit"]
                label = "_fit" if fits else "fit"
                ax.plot(curve.x, curve.y, "--", color="black", linewidth=1.4, zorder=3, label=label)
        ax.set_xscale("log")
        ax.set_xlim(left=1.0)
        if name == "c":
            ax.set_ylim(0.0, 1.03)
        else:
            ax.set_yscale("log")
            # The last modes hold next to nothing and would take most of the axis.
            lowest = min(float(curve.y[curve.x <= 0.9 * curve.x[-1]][-1]) for curve in data.panel(name))
            ax.set_ylim(bottom=0.3 * lowest)
        ax.legend(frameon=False, fontsize="small", loc="lower right" if name == "c" else "lower left")
    return figure
