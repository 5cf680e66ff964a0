"""Figure 12: linear networks, lazy to rich, on a hard and an easy task [87, 88]; their exponents over tasks.

Runs are SGD on both layers of a wide network, theory is gradient flow of the infinitely wide one, which goes on where
the runs end. Both see the infinite spectrum: modes beyond those that are trained are far from being learned, so that
they are noise on the labels, and their power is a part of the loss.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from scalefield._progress import Progress
from scalefield.figures._base import (
    COLOURS,
    Curve,
    FigureData,
    draw_curves,
    draw_guide,
    make_panels,
    power_law_guide,
)
from scalefield.figures._trainings import train_all
from scalefield.networks import LinearNetworkRuns, solve_linear_network_flow, train_linear_network
from scalefield.plot import BAND
from scalefield.scaling import fit_power_law, time_exponent
from scalefield.spectrum import PowerLawSpectrum

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["compute", "draw", "train"]

Array = NDArray[np.float64]

# Of a slower capacity, many more modes would have to be trained.
ALPHA = 3.0
HARD, EASY = 0.5, 1.25
GAMMAS = (0.0, 0.2, 0.6, 2.0)
LEARNING_RATE, BATCH_SIZE, WIDTH = 0.02, 32, 16_384
RICHEST = GAMMAS[-1]
# Runs end where the kernel has grown so much that learning rate x (1 + |w|^2/N) is this; from 2 on they are unstable.
LARGEST_STEP = 0.5
# Where theory ends in panels a and b, and where its limit is read in panel c.
LATE_STEP, LIMIT = 1e7, 1e12


def train(
    case: tuple[float, float],
    /,
    *,
    quick: bool,
    seed: int,
    checkpoint: Path | None,
    progress: Progress,
    statistics: tuple[str, ...] = (),
    n_records: int = 60,
) -> LinearNetworkRuns:
    """Runs of figures 12 and 13 for a beta and a gamma.

    Their `label_noise` is the root of the power beyond the modes trained.
    """
    beta, gamma = case
    n_steps, n_modes, n_runs = (3000, 128, 4) if quick else (30_000, 256, 6)
    steps = np.geomspace(10.0, n_steps, 200)
    flow = solve_linear_network_flow(PowerLawSpectrum(ALPHA, beta), gamma, LEARNING_RATE * steps)
    n_steps = round(steps[LEARNING_RATE * flow.kernel_scale <= LARGEST_STEP][-1])
    record = np.unique(np.rint(np.geomspace(1.0, n_steps, n_records)).astype(np.int64))
    task = PowerLawSpectrum(ALPHA, beta, n_modes=n_modes)
    beyond = PowerLawSpectrum(ALPHA, beta).total_target_power - task.total_target_power
    return train_linear_network(
        task,
        WIDTH,
        gamma,
        LEARNING_RATE,
        BATCH_SIZE,
        n_steps,
        n_runs,
        seed,
        record=record,
        statistics=statistics,
        label_noise=math.sqrt(beyond),
        checkpoint=checkpoint,
        progress=progress,
    )


def compute(
    quick: bool = False, seed: int = 0, progress: Progress | None = None, checkpoints: Path | None = None
) -> FigureData:
    """Loss curves of runs and flow, exponents over tasks, and local exponents of flow."""
    more = (0.25, 0.75) if quick else (0.25, 0.375, 0.75, 0.875)
    tasks = [(beta, gamma) for beta in (HARD, EASY) for gamma in GAMMAS]
    tasks += [(beta, gamma) for beta in more for gamma in (0.0, RICHEST)]
    curves, points = [], []
    last = 0.0
    name = f"figure-12{'-quick' if quick else ''}"
    trained = train_all(tasks, partial(train, quick=quick, seed=seed), progress, checkpoints, name)
    for (beta, gamma), runs in trained.items():
        window = (0.1 * runs.n_steps, float(runs.n_steps))
        runs_curve, point = _measure(runs, beta, gamma, window)
        last = max(last, window[1])
        if beta in (HARD, EASY):
            curves += [runs_curve, _theory(beta, gamma)]
        if gamma in (0.0, RICHEST):
            points.append(point)
    for panel, beta in (("a", HARD), ("b", EASY)):
        curves += _guides(panel, beta, last)
    curves += points + _exponents() + _local_exponents()
    return FigureData(
        "12",
        {
            "a": ("step", "test loss"),
            "b": ("step", "test loss"),
            "c": (r"source exponent $\beta$", "exponent in time"),
            "d": (r"$\tau$ = learning rate $\times$ step", "local exponent"),
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
            "modes beyond n_modes": "noise on the labels, and their power a part of the loss",
            "theory": "gradient flow, infinite width and spectrum",
            "last step": f"where learning rate x (1 + |w|^2/N) reaches {LARGEST_STEP:g}, if it does",
        },
    )


def _panel(beta: float) -> str:
    return "a" if beta == HARD else "b"


def _flow_exponent(beta: float, gamma: float, steps: Array) -> float:
    """Of gradient flow, fitted at the steps of a run."""
    flow = solve_linear_network_flow(PowerLawSpectrum(ALPHA, beta), gamma, LEARNING_RATE * steps)
    return fit_power_law(steps, flow.loss, window=None).exponent


def _measure(runs: LinearNetworkRuns, beta: float, gamma: float, window: tuple[float, float]) -> tuple[Curve, Curve]:
    """The curve of the mean loss, and a point of panel c."""
    predicted = time_exponent(beta, gamma > 0.0)
    inside = (runs.steps >= window[0]) & (runs.steps <= window[1])
    loss = runs.loss + runs.label_noise**2
    fit = fit_power_law(runs.steps[inside], loss[:, inside], window=None)
    flow = _flow_exponent(beta, gamma, runs.steps[inside].astype(np.float64))
    note = ""
    if abs(fit.exponent - predicted) > BAND * fit.standard_error:
        note = f"finite time: gradient flow has {flow:.3f} in this window"
        if abs(fit.exponent - flow) > BAND * fit.standard_error:
            note += "; the rest is noise of SGD, a finite learning rate and 1/N"
    parameters = {"beta": beta, "gamma": gamma}
    curve = Curve(
        _panel(beta),
        f"gamma = {gamma:g}",
        runs.steps,
        loss.mean(axis=0),
        runs.standard_error,
        "simulation",
        parameters,
        predicted,
        fit.exponent,
        fit.standard_error,
        window,
        note,
    )
    regime = "rich" if gamma > 0.0 else "lazy"
    point = Curve(
        "c",
        f"{regime}, last decade of steps",
        [beta],
        [fit.exponent],
        [fit.standard_error],
        "measurement",
        parameters,
        predicted,
        fit.exponent,
        fit.standard_error,
        window,
        note,
    )
    return curve, point


def _theory(beta: float, gamma: float) -> Curve:
    steps = np.geomspace(1.0, LATE_STEP, 140)
    flow = solve_linear_network_flow(PowerLawSpectrum(ALPHA, beta), gamma, LEARNING_RATE * steps)
    return Curve(
        _panel(beta),
        "theory",
        steps,
        flow.loss,
        parameters={"beta": beta, "gamma": gamma},
        predicted_exponent=time_exponent(beta, gamma > 0.0),
        measured_exponent=float(flow.local_exponent[-1]),
        window=(LATE_STEP, LATE_STEP),
        note="local exponent at the last step",
    )


def _guides(panel: str, beta: float, last: float) -> list[Curve]:
    """Slopes beside the laziest and the richest theory, beyond the runs."""
    guides = []
    for gamma, factor in ((0.0, 2.0), (RICHEST, 0.4)):
        if beta > 1.0 and gamma > 0.0:
            # The same slope.
            continue
        flow = solve_linear_network_flow(PowerLawSpectrum(ALPHA, beta), gamma, [LEARNING_RATE * 10.0 * last])
        at = 10.0 * last, factor * float(flow.loss[0])
        guides.append(
            power_law_guide(panel, (last, 100.0 * last), at, -time_exponent(beta, gamma > 0.0), _slope(beta, gamma))
        )
    return guides


def _slope(beta: float, gamma: float) -> str:
    if gamma > 0.0 and beta < 1.0:
        return rf"$t^{{-2\beta/(1+\beta)}}$, {time_exponent(beta, True):.3g}"
    return rf"$t^{{-\beta}}$, {beta:g}"


def _exponents() -> list[Curve]:
    """Predictions of panel c, and flow at late times."""
    betas = np.linspace(0.1, 1.5, 57)
    curves = []
    for rich in (False, True):
        gamma = RICHEST if rich else 0.0
        name = "rich" if rich else "lazy"
        # Easy tasks have one prediction.
        shown = betas[betas <= 1.0] if rich else betas
        curves.append(Curve("c", f"{name}, predicted", shown, [time_exponent(beta, rich) for beta in shown]))
        for beta in np.arange(0.2, 1.45, 0.2):
            flow = solve_linear_network_flow(PowerLawSpectrum(ALPHA, float(beta)), gamma, [LIMIT])
            measured = float(flow.local_exponent[0])
            expected = time_exponent(float(beta), rich)
            power = (1.0 - beta) / (1.0 + beta) if beta < 1.0 else beta - 1.0
            near = f"finite time: the deviation falls like tau^-{power:.2f}"
            if abs(beta - 1.0) < 1e-9:
                near = "at beta = 1 the exponent is approached like 1/log tau"
            curves.append(
                Curve(
                    "c",
                    f"{name}, flow at late times",
                    [beta],
                    [measured],
                    kind="measurement",
                    parameters={"beta": float(beta), "gamma": gamma},
                    predicted_exponent=expected,
                    measured_exponent=measured,
                    window=(LIMIT / LEARNING_RATE, LIMIT / LEARNING_RATE),
                    note=near if abs(measured - expected) > 1e-3 else "",
                )
            )
    return curves


def _local_exponents() -> list[Curve]:
    """How late the rich exponent is reached, panel d."""
    tau = np.geomspace(1.0, 1e10, 200)
    curves = []
    for gamma in GAMMAS:
        flow = solve_linear_network_flow(PowerLawSpectrum(ALPHA, HARD), gamma, tau)
        curves.append(Curve("d", f"gamma = {gamma:g}", tau, flow.local_exponent, parameters={"gamma": gamma}))
    ends = np.array([tau[0], tau[-1]])
    for rich, name in ((False, r"$\beta$"), (True, r"$2\beta/(1+\beta)$")):
        exponent = time_exponent(HARD, rich)
        curves.append(Curve("d", name, ends, np.full(2, exponent), kind="guide"))
    return curves


def draw(data: FigureData) -> Figure:
    """Losses of the two tasks above, exponents below."""
    figure, axes = make_panels(data, size=(4.6, 3.6))
    for panel, beta in (("a", HARD), ("b", EASY)):
        ax = axes[panel]
        draw_curves(ax, [curve for curve in data.panel(panel) if curve.kind != "guide"], legend=False)
        for curve in data.panel(panel):
            if curve.kind == "guide":
                # Away from the curves, which the label of the lower guide would cross.
                draw_guide(ax, curve, offset=(-84.0, -12.0) if "1+" in curve.label else (4.0, 4.0))
        ax.set_xlim(1.0, LATE_STEP)
        task = "hard" if beta < 1.0 else "easy"
        ax.set_title(rf"({panel}) {task}, $\beta$ = {beta:g}", loc="left", fontsize="medium")
    handles, labels = axes["a"].get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda index: labels[index] == "theory")
    axes["a"].legend(
        [handles[index] for index in order], [labels[index] for index in order], frameon=False, fontsize="small",
        loc="lower left",
    )  # fmt: skip

    ax = axes["c"]
    for curve in data.panel("c"):
        if curve.kind == "theory":
            ax.plot(curve.x, curve.y, "--", color="black", linewidth=1.3, label="_predicted")
    for rich, colour in zip((False, True), COLOURS, strict=False):
        for late in (False, True):
            shown = [
                curve
                for curve in data.panel("c")
                if curve.kind == "measurement"
                and (curve.parameters["gamma"] > 0.0) == rich
                and ("flow" in curve.label) == late
            ]
            x, y = (np.concatenate([getattr(curve, name) for curve in shown]) for name in ("x", "y"))
            if late:
                ax.plot(x, y, "o", color=colour, markersize=6.5, markerfacecolor="none", label=shown[0].label)
            else:
                error = BAND * np.concatenate([curve.standard_error for curve in shown])
                ax.errorbar(x, y, error, fmt="o", color=colour, markersize=4.0, capsize=2, label=shown[0].label)
    ax.plot([], [], "--", color="black", linewidth=1.3, label="predicted")
    ax.set_xlim(0.1, 1.5)
    ax.set_ylim(0.0, 1.6)
    ax.legend(frameon=False, fontsize="small", loc="upper left", labelspacing=0.3)

    ax = axes["d"]
    draw_curves(ax, data.panel("d"), legend=False)
    ax.set_yscale("linear")
    ax.set_xlim(1.0, 1e10)
    ax.set_ylim(0.3, math.ceil(10.0 * time_exponent(HARD, True) + 1.0) / 10.0)
    ax.set_title(rf"(d) flow, $\beta$ = {HARD:g}", loc="left", fontsize="medium")
    ax.legend(frameon=False, fontsize="small", loc="lower right")
    return figure
