"""Figure 9: a transformer on next characters, from lazy to rich.

The paper trains a deep transformer on words; here a small one learns the characters of Python's own sources, or of the
text file that the environment variable SCALEFIELD_TEXT names. It needs PyTorch.

Theory is of the squared error, and no kernel's spectrum predicts the cross-entropy, which ends at the entropy of the
text and not at 0. What is compared is what the paper compares: whether the exponent beta of the lazy curve becomes
chi(beta) = 2 beta/(1 + beta), nearly twice it, in the rich one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scalefield._progress import Progress
from scalefield.figures._base import FigureData, draw_curves, make_panels, power_law_guide
from scalefield.figures._trainings import train_all
from scalefield.figures.figure_6 import label_values, loss_curve
from scalefield.networks import DeepNetworkRuns, train_language_model
from scalefield.scaling import time_exponent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["compute", "draw"]

TEXT = "SCALEFIELD_TEXT"
_GAMMAS = (0.1, 0.3, 1.0)
# About 2/(lambda_1 h), the kernel's largest eigenvalue 4 and the curvature h of the cross-entropy at most 1/4.
_LEARNING_RATE = 2.0
_BATCH_SIZE = 16
_FULL = {"width": 64, "context": 32, "n_steps": 1500, "n_runs": 2, "n_test": 256}
_QUICK = {"width": 32, "context": 16, "n_steps": 200, "n_runs": 2, "n_test": 128}


def compute(
    quick: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
    *,
    corpus: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    checkpoints: Path | None = None,
) -> FigureData:
    """Train transformers of three richnesses on the same streams.

    Parameters
    ----------
    quick : bool
        2 runs of 200 steps at width 32, instead of 2 runs of 1,500 steps at width 64.
    seed : int
        Of weights and data.
    progress : callable, optional
        Counts steps of all runs.
    corpus : path, optional
        A text; by default what SCALEFIELD_TEXT names, and Python's sources if it names nothing.
    device : {"cpu", "cuda"}
        Passed to PyTorch.
    checkpoints : Path, optional
        Folder for checkpoints of the trainings.

    Returns
    -------
    FigureData
        Exponents of the test loss over the last decade; predicted for the largest gamma is chi of the exponent measured
        at the smallest.
    """
    size = _QUICK if quick else _FULL
    source = corpus if corpus is not None else os.environ.get(TEXT) or None

    def train(gamma: float, /, *, checkpoint: Path | None, progress: Progress) -> DeepNetworkRuns:
        return train_language_model(
            size["width"], gamma, _LEARNING_RATE, _BATCH_SIZE, size["n_steps"], size["n_runs"], seed,
            context=size["context"], corpus=source, n_test=size["n_test"], dtype="float32", device=device,
            checkpoint=checkpoint, progress=progress,
        )  # fmt: skip

    every = list(train_all(_GAMMAS, train, progress, checkpoints, f"figure-9-width-{size['width']}").values())
    lazy = loss_curve(every[0], None, "").measured_exponent
    rich = time_exponent(lazy, True) if lazy is not None and lazy > 0.0 else None
    why = " from the lazy one, which assumes a loss that ends at 0"
    curves = [loss_curve(runs, rich if runs is every[-1] else None, why) for runs in every]
    if rich is not None:
        start, stop = curves[-1].window or (1.0, 1.0)
        at = (start, float(np.interp(np.log(start), np.log(curves[-1].x), curves[-1].y)))
        curves.append(power_law_guide("a", (start, stop), at, -rich, f"rich exponent from the lazy one: -{rich:.2f}"))
    settings = {
        "quick": quick,
        "seed": seed,
        "architecture": "transformer",
        **every[0].settings,
        "width": size["width"],
        "learning_rate": _LEARNING_RATE,
        "batch_size": _BATCH_SIZE,
        "n_runs": size["n_runs"],
        "objective": every[0].objective,
    }
    return FigureData("9", {"a": ("step", "test loss, nats per character")}, tuple(curves), settings)


def draw(data: FigureData) -> Figure:
    """Losses with a band of two standard errors, and a guide of the slope to compare with."""
    figure, panels = make_panels(data, size=(4.8, 3.8))
    ax = panels["a"]
    draw_curves(ax, [curve for curve in data.curves if curve.kind != "guide"], legend=False)
    for curve in data.curves:
        if curve.kind == "guide":
            ax.plot(curve.x, curve.y, "-.", color="0.35", linewidth=1.2, zorder=4, label=curve.label)
    label_values(ax)
    ax.legend(frameon=False, fontsize="small", loc="lower left")
    return figure
