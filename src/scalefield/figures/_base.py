"""What all figures share: curves with their exponents, the .csv, and one style of drawing."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

# One palette for all pictures of the package.
from scalefield.plot import BAND, COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "Curve", "FigureData", "draw_curves", "draw_guide", "make_panels", "math_text", "power_law_guide"]

Array = NDArray[np.float64]
Kind = Literal["theory", "simulation", "guide", "measurement"]

_KINDS = ("theory", "simulation", "guide", "measurement")
_COLUMNS_BEFORE = ("panel", "label", "kind")
_COLUMNS_AFTER = (
    "x",
    "y",
    "standard_error",
    "predicted_exponent",
    "measured_exponent",
    "exponent_error",
    "window_start",
    "window_stop",
    "note",
)
_GREY = "0.45"


@dataclass(frozen=True, eq=False)
class Curve:
    """One line, or set of points, of one panel.

    Attributes
    ----------
    panel : str
        "a", "b", ...
    label : str
        What the legend says, in plain words: those of the .csv. Names of Greek letters and N = inf are drawn as symbols
        (`math_text`).
    x, y : ndarray of float64, shape (T,)
        Points.
    standard_error : ndarray, shape (T,), or None
        Of y, for simulations and trained networks.
    kind : {"theory", "simulation", "guide", "measurement"}
        "simulation" for runs of the model and trained networks, "guide" for a slope to compare with, "measurement" for
        points measured on other curves, such as exponents.
    parameters : dict of str to float
        Values that tell this curve from others: gamma, width, ...
    predicted_exponent, measured_exponent : float or None
        Of the law that the label or the axes name; for a loss e in y ~ x^-e.
    exponent_error : float or None
        Standard error of measured_exponent.
    window : (float, float) or None
        Where it was measured, in x.
    note : str
        Why the two differ, where they do beyond the error.
    """

    panel: str
    label: str
    x: Any
    y: Any
    standard_error: Any = None
    kind: Kind = "theory"
    parameters: Mapping[str, float] = field(default_factory=dict)
    predicted_exponent: float | None = None
    measured_exponent: float | None = None
    exponent_error: float | None = None
    window: tuple[float, float] | None = None
    note: str = ""

    def __post_init__(self) -> None:
        for name in ("x", "y", "standard_error"):
            value = getattr(self, name)
            if value is not None:
                array = np.array(value, dtype=np.float64, ndmin=1)
                array.setflags(write=False)
                object.__setattr__(self, name, array)
        shapes = {array.shape for array in (self.x, self.y, self.standard_error) if array is not None}
        if len(shapes) != 1 or self.x.ndim != 1:
            raise ValueError(f"x, y and standard_error must be vectors of one length, got shapes {sorted(shapes)}")
        if self.kind not in _KINDS:
            raise ValueError(f"kind must be one of {', '.join(_KINDS)}, got {self.kind!r}")
        taken = set(self.parameters) & {*_COLUMNS_BEFORE, *_COLUMNS_AFTER}
        if taken:
            raise ValueError(f"parameters must not be named like columns of the .csv, got {', '.join(sorted(taken))}")


@dataclass(frozen=True, eq=False)
class FigureData:
    """The numbers of a figure.

    Attributes
    ----------
    name : str
        Number of the figure in the paper.
    axes : dict of str to (str, str)
        Labels of x and y, by panel.
    curves : tuple of Curve
        In the order in which they are drawn.
    settings : dict
        What the numbers depend on: seed, quick, parameters common to all curves.
    """

    name: str
    axes: Mapping[str, tuple[str, str]]
    curves: tuple[Curve, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = {curve.panel for curve in self.curves} - set(self.axes)
        if unknown:
            raise ValueError(f"axes must name the panels of all curves, {', '.join(sorted(unknown))} not found")

    def panel(self, name: str) -> tuple[Curve, ...]:
        """Curves of one panel."""
        return tuple(curve for curve in self.curves if curve.panel == name)

    def exponents(self) -> tuple[Curve, ...]:
        """Curves that have a measured exponent."""
        return tuple(curve for curve in self.curves if curve.measured_exponent is not None)

    def csv(self) -> str:
        """All points in long format, after the settings as ``# key: value`` lines; numbers with all their digits."""
        from scalefield import __version__

        names = list(dict.fromkeys(name for curve in self.curves for name in curve.parameters))
        text = io.StringIO()
        for key, value in {"figure": self.name, "version": __version__, **self.settings}.items():
            text.write(f"# {key}: {' '.join(str(value).split())}\n")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*_COLUMNS_BEFORE, *names, *_COLUMNS_AFTER])
        for curve in self.curves:
            before = [curve.panel, curve.label, curve.kind, *(_cell(curve.parameters.get(name)) for name in names)]
            start, stop = curve.window or (None, None)
            exponents = (curve.predicted_exponent, curve.measured_exponent, curve.exponent_error, start, stop)
            after = [*map(_cell, exponents), curve.note]
            errors = [None] * curve.x.size if curve.standard_error is None else curve.standard_error.tolist()
            for x, y, error in zip(curve.x.tolist(), curve.y.tolist(), errors, strict=True):
                writer.writerow([*before, _cell(x), _cell(y), _cell(error), *after])
        return text.getvalue()


def _cell(value: Any) -> str:
    """A number with all its digits; nothing for None."""
    if value is None:
        return ""
    return repr(value.item() if isinstance(value, np.generic) else value)


def math_text(label: str) -> str:
    r"""A plain label with Greek letters and infinity as symbols: gamma = 1 becomes $\gamma$ = 1."""
    if "$" in label:
        return label
    return re.sub(r"\b(alpha|beta|gamma|chi|eta|tau|sigma)\b", r"$\\\1$", label).replace("= inf", r"= $\infty$")


def power_law_guide(
    panel: str, x: tuple[float, float], at: tuple[float, float], slope: float, label: str = ""
) -> Curve:
    """A guide y ~ x^slope over the range `x` through the point `at`; its label is the slope unless given."""
    ends = np.array(x, dtype=np.float64)
    return Curve(panel, label or f"{slope:.3g}", ends, at[1] * (ends / at[0]) ** slope, kind="guide")


def make_panels(data: FigureData, n_columns: int = 2, size: tuple[float, float] = (4.2, 3.4)) -> tuple[Figure, Any]:
    """An empty figure with its panels, labelled: the figure and a dict of axes by panel.

    Axes are linear; ``ax.set_xscale("log")`` makes them logarithmic.
    """
    from matplotlib.figure import Figure

    n_columns = min(n_columns, len(data.axes))
    n_rows = math.ceil(len(data.axes) / n_columns)
    figure = Figure(figsize=(size[0] * n_columns, size[1] * n_rows), layout="constrained")
    panels = {}
    for index, (name, (x_label, y_label)) in enumerate(data.axes.items()):
        ax = figure.add_subplot(n_rows, n_columns, index + 1)
        ax.set_xlabel(x_label)
        ax.set_ylabel(y_label)
        if len(data.axes) > 1:
            ax.set_title(f"({name})", loc="left", fontsize="medium")
        ax.grid(True, which="major", linewidth=0.4, alpha=0.5)
        panels[name] = ax
    return figure, panels


def draw_curves(ax: Axes, curves: Sequence[Curve], *, legend: bool = True, log: bool = True) -> None:
    """Draw curves of one panel in the style of all figures.

    Simulations are coloured lines with a band of two standard errors, theory is dashed: black where a simulation of the
    same parameters is drawn, or where there is but one theory, else in a colour of its own. Measurements are points
    with bars of two standard errors, guides thin and grey with their slope written beside them.

    Parameters
    ----------
    ax : Axes
        Where to draw.
    curves : sequence of Curve
        Of one panel.
    legend : bool
        Whether to draw a legend.
    log : bool
        Whether both axes are logarithmic.
    """
    if log:
        ax.set_xscale("log")
        ax.set_yscale("log")
    coloured = [curve for curve in curves if curve.kind in ("simulation", "measurement")]
    simulated = [dict(curve.parameters) for curve in coloured]
    theories = [curve for curve in curves if curve.kind == "theory"]
    alone = [curve for curve in theories if dict(curve.parameters) not in simulated]
    if len(alone) > 1 or coloured:
        # Their colours must not be those of what stands beside them.
        coloured += alone
    colours = {id(curve): COLOURS[index % len(COLOURS)] for index, curve in enumerate(coloured)}
    drawn: set[str] = set()

    def label(text: str) -> str:
        shown = f"_{text}" if text in drawn else text
        drawn.add(text)
        return shown

    for curve in curves:
        colour = colours.get(id(curve), "black")
        if curve.kind == "theory":
            # Curves that explain a simulation share one entry of the legend.
            name = curve.label if curve in alone else "theory"
            ax.plot(curve.x, curve.y, "--", color=colour, linewidth=1.4, zorder=3, label=label(math_text(name)))
        elif curve.kind == "simulation":
            _draw_band(ax, curve, log=log, color=colour)
            ax.plot(curve.x, curve.y, color=colour, linewidth=1.6, zorder=2, label=label(math_text(curve.label)))
        elif curve.kind == "measurement":
            error = None if curve.standard_error is None else BAND * curve.standard_error
            ax.errorbar(
                curve.x, curve.y, error, fmt="o", color=colour, markersize=4.5, capsize=2, zorder=4,
                label=label(math_text(curve.label)),
            )  # fmt: skip
        else:
            draw_guide(ax, curve)
    if legend:
        ax.legend(frameon=False, fontsize="small")


def _draw_band(ax: Axes, curve: Curve, *, log: bool, color: str) -> None:
    if curve.standard_error is None or not np.isfinite(curve.standard_error).any():
        return
    margin = BAND * np.nan_to_num(curve.standard_error)
    lower = curve.y - margin
    if log:
        # A band reaching zero or below would leave a logarithmic axis.
        lower = np.maximum(lower, 1e-3 * curve.y)
    ax.fill_between(curve.x, lower, curve.y + margin, color=color, alpha=0.3, linewidth=0, zorder=1)


def draw_guide(ax: Axes, curve: Curve, *, offset: tuple[float, float] = (0.0, 4.0)) -> None:
    """Draw a guide thin and grey, its label beside the middle, `offset` points from it."""
    ax.plot(curve.x, curve.y, color=_GREY, linewidth=0.9, zorder=1.5, label="_guide")
    scales = [(ax.get_xscale(), curve.x), (ax.get_yscale(), curve.y)]
    x, y = (math.exp(np.log(v).mean()) if scale == "log" else float(np.mean(v)) for scale, v in scales)
    ax.annotate(
        math_text(curve.label), (x, y), xytext=offset, textcoords="offset points", color=_GREY, fontsize="small",
        ha="left", va="bottom",
    )  # fmt: skip
