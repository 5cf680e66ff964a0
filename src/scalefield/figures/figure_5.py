"""Figure 5: networks trained on the circle, tasks and activations of varying difficulty, lazy and rich.

Richness, sizes, learning rates and windows follow the rules below, none of which looks at exponents.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from scalefield._progress import Progress
from scalefield.figures._base import COLOURS, Curve, FigureData, make_panels, math_text, power_law_guide
from scalefield.figures._trainings import train_all
from scalefield.flow import solve_gradient_flow
from scalefield.model import Model
from scalefield.networks import CircleTask, MultilayerTraining, train_multilayer
from scalefield.plot import BAND
from scalefield.scaling import fit_power_law, time_exponent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["compute", "draw"]

Array = NDArray[np.float64]

DEPTH, BATCH_SIZE = 2, 128
RICH, LAZY = 1.0, 0.01
# Panel a: exponents q of the target, for relu. Panel b: powers of relu, for one target.
TASKS = (0.75, 1.0, 1.25, 1.75)
POWERS, FIXED = (1.0, 2.0, 3.0), 1.75
# Panel c: one hard and one easy task, for relu.
COMPARED = (1.0, 1.75)
# For relu, whose initial kernel is 3 on the diagonal; for others in proportion to theirs.
LEARNING_RATE = 0.05
# The hardest tasks become unstable as their kernels grow; powers of relu are from the start, since their gradients
# have long tails.
HARDEST, SLOWER = 0.5, 0.4
CURVED = 0.25
WINDOW = 0.1
KERNEL_POINTS = 64
# Angles of the lazy networks' own kernels.
LINEARISED_POINTS = 512


def compute(
    quick: bool = False, seed: int = 0, progress: Progress | None = None, checkpoints: Path | None = None
) -> FigureData:
    """Train the networks, and what theory says of each.

    Quick: width 256, 8,000 steps, 3 seeds; else width 512, 20,000 steps, 4 seeds.
    """
    width, n_steps, n_seeds = (256, 8_000, 3) if quick else (512, 20_000, 4)
    architectures = list(dict.fromkeys([(q, 1.0) for q in TASKS] + [(FIXED, power) for power in POWERS]))
    runs = [(q, power, RICH) for q, power in architectures] + [(q, 1.0, LAZY) for q in COMPARED]

    def train(
        case: tuple[float, float, float], /, *, checkpoint: Path | None, progress: Progress
    ) -> MultilayerTraining:
        q, power, gamma = case
        task, rich = CircleTask(q), gamma == RICH
        return train_multilayer(
            task,
            depth=DEPTH,
            width=width,
            activation_power=power,
            gamma=gamma,
            learning_rate=learning_rate(task, power),
            batch_size=BATCH_SIZE,
            n_steps=n_steps,
            n_seeds=n_seeds,
            seed=seed,
            kernel_points=KERNEL_POINTS if rich else LINEARISED_POINTS,
            # The lazy kernel is wanted at many angles, and hardly moves.
            kernel_steps=None if rich else np.array([0, n_steps]),
            dtype="float32" if rich else "float64",
            checkpoint=checkpoint,
            progress=progress,
        )

    trained = train_all(runs, train, progress, checkpoints, f"figure-5-width-{width}")
    measured = {case: _Measured(training) for case, training in trained.items()}
    curves: list[Curve] = []
    for q in TASKS:
        curves += _learning_curve("a", f"q = {q:g}", measured[q, 1.0, RICH])
    for power in POWERS:
        curves += _learning_curve("b", f"p = {power:g}", measured[FIXED, power, RICH])
    for q in COMPARED:
        curves += _comparison(measured[q, 1.0, RICH], measured[q, 1.0, LAZY])
    beta = np.linspace(0.02, 1.6, 80)
    curves.append(Curve("d", "rich, chi(beta)", beta, np.array([time_exponent(b, True) for b in beta])))
    curves.append(Curve("d", "lazy, beta", beta, beta))
    for run in measured.values():
        curves += _exponents(run)
    for q in TASKS:
        curves += _features(measured[q, 1.0, RICH])
    return FigureData(
        "5",
        {
            "a": ("step $t$", "test loss"),
            "b": ("step $t$", "test loss"),
            "c": ("step $t$", "test loss"),
            "d": (r"source exponent $\beta$", "exponent in time"),
            "e": ("step $t$", r"kernel's growth $|K_t - K_0|/|K_0|$"),
            "f": ("step $t$", "kernel-task alignment"),
        },
        tuple(curves),
        {
            "seed": seed,
            "quick": quick,
            "network": f"depth {DEPTH}, width {width}, batch size {BATCH_SIZE}, {n_steps} steps, {n_seeds} seeds",
            "learning rate": f"{LEARNING_RATE} for relu, in proportion to 1/K(0) and times {CURVED} for its powers, "
            f"times {SLOWER} where beta < {HARDEST}; rich gamma {RICH:g}, lazy {LAZY:g}",
            "window": f"steps {round(WINDOW * n_steps)} to {n_steps}",
            "targets": f"sum_k k^-q cos(k theta), activations relu^p; panel b has q = {FIXED:g}, all others p = 1",
        },
    )


def learning_rate(task: CircleTask, power: float) -> float:
    """The rule: in proportion to the initial kernel's inverse, and slower where training would be unstable."""
    # E phi'^2 = p^2/(2 p - 1) at every layer
    slope = power**2 / (2.0 * power - 1.0)
    start = sum(slope**layer for layer in range(DEPTH + 1))
    slower = SLOWER if task.source_exponent(power) < HARDEST else 1.0
    if power > 1.0:
        slower *= CURVED
    return LEARNING_RATE * (DEPTH + 1.0) / start * slower


class _Measured:
    """A trained network, its exponent over the window, and what theory says of it."""

    def __init__(self, training: MultilayerTraining) -> None:
        self.training = training
        self.rich = training.gamma == RICH
        last = float(training.steps[-1])
        self.window = (WINDOW * last, last)
        self.fit = training.measured_exponent(self.window)
        self.predicted = training.predicted_exponent(self.rich)
        self.steps = training.steps[1:].astype(np.float64)
        # Gradient flow on the infinitely wide network's spectrum: the lazy network itself; for a rich one the linear
        # model, whose gamma is the square of a mean-field one (theory section 10).
        spectrum = training.task.spectrum(training.activation_power, training.depth)
        model = Model(spectrum, gamma=training.gamma**2 if self.rich else 0.0)
        self.flow = solve_gradient_flow(model, training.learning_rate * self.steps).loss
        self.flow_exponent = self._exponent(self.flow)
        # Gradient descent with the network's own initial kernel.
        self.own = None if self.rich else training.linearised_loss().mean(axis=0)[1:]
        self.parameters = {
            "q": training.task.exponent,
            "p": training.activation_power,
            "beta": training.source_exponent,
            "gamma": training.gamma,
            "learning_rate": training.learning_rate,
        }

    def _exponent(self, loss: Array) -> float:
        inside = (self.steps >= self.window[0]) & (self.steps <= self.window[1])
        return fit_power_law(self.steps[inside], loss[inside], window=None).exponent

    @property
    def note(self) -> str:
        """Why the exponent is not the predicted one."""
        notes = []
        if abs(self.fit.exponent - self.predicted) > 2.0 * self.fit.standard_error:
            kind = f"the linear model with gamma = {self.training.gamma**2:g}" if self.rich else "infinite width"
            notes.append(f"finite time: gradient flow of {kind} has {self.flow_exponent:.3f} over the same steps")
            if self.own is not None:
                notes.append(f"finite width: the network's own initial kernel gives {self._exponent(self.own):.3f}")
        spikes = self.training.spikes()
        if spikes:
            runs = len({spike.run for spike in spikes})
            first = min(spike.start for spike in spikes)
            notes.append(f"loss spikes in {runs} of {self.training.n_seeds} runs, the first at step {first}")
        return "; ".join(notes)

    def curve(self, panel: str, label: str, *, listed: bool = True) -> Curve:
        """The mean loss; with its exponents if listed."""
        curve = Curve(
            panel,
            label,
            self.steps,
            self.training.mean[1:],
            self.training.standard_error[1:],
            kind="simulation",
            parameters=self.parameters,
        )
        if not listed:
            return curve
        return replace(
            curve,
            predicted_exponent=self.predicted,
            measured_exponent=self.fit.exponent,
            exponent_error=self.fit.standard_error,
            window=self.fit.window,
            note=self.note,
        )


def _learning_curve(panel: str, name: str, run: _Measured) -> list[Curve]:
    """Mean loss, and its predicted power law through the middle of the window."""
    curve = run.curve(panel, f"{name}, beta = {run.training.source_exponent:.3g}")
    start, stop = run.window
    middle = float(np.sqrt(start * stop))
    at = float(np.exp(np.interp(np.log(middle), np.log(curve.x), np.log(curve.y))))
    guide = power_law_guide(
        panel, (start / 2.0, stop * 2.0), (middle, at), -run.predicted, f"{name}, t^-{run.predicted:.2f}"
    )
    return [curve, guide]


def _comparison(rich: _Measured, lazy: _Measured) -> list[Curve]:
    """Panel c: one task, rich, lazy, and what the lazy one should do."""
    name = f"beta = {lazy.training.source_exponent:g}"
    assert lazy.own is not None
    return [
        # Its exponents stand in panel a.
        rich.curve("c", f"{name}, rich", listed=False),
        lazy.curve("c", f"{name}, lazy"),
        Curve("c", f"{name}, lazy, infinite width", lazy.steps, lazy.flow, parameters=lazy.parameters),
        Curve("c", f"{name}, lazy, own kernel", lazy.steps, lazy.own, parameters=lazy.parameters),
    ]


def _exponents(run: _Measured) -> list[Curve]:
    """Panel d: the exponent measured, which stands in the other panels, and that of gradient flow in the window."""
    training = run.training
    beta = np.array([training.source_exponent])
    kind = "rich" if run.rich else "lazy"
    name = f"{kind}, q = {training.task.exponent:g}, p = {training.activation_power:g}"
    exponent, error = np.array([run.fit.exponent]), np.array([run.fit.standard_error])
    return [
        Curve("d", f"networks, {name}", beta, exponent, error, kind="measurement", parameters=run.parameters),
        Curve(
            "d",
            f"gradient flow, {name}",
            beta,
            np.array([run.flow_exponent]),
            kind="measurement",
            parameters=run.parameters,
            predicted_exponent=run.predicted,
            measured_exponent=run.flow_exponent,
            window=run.fit.window,
            note="no network: infinite width, infinite batches, same steps",
        ),
    ]


def _features(run: _Measured) -> list[Curve]:
    """Panels e and f: how far the kernel has grown, and how well it is aligned with the task."""
    training = run.training
    assert training.kernel_steps is not None
    label = f"q = {training.task.exponent:g}, beta = {training.source_exponent:.3g}"
    curves = []
    for panel, values in (("e", training.kernel_change), ("f", training.kernel_alignment)):
        error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
        # The first is at step 0.
        steps, mean, error = training.kernel_steps[1:], values.mean(axis=0)[1:], error[1:]
        curves.append(Curve(panel, label, steps, mean, error, kind="simulation", parameters=run.parameters))
    return curves


def draw(data: FigureData) -> Figure:
    """Losses of tasks and activations, lazy against rich, exponents, and features."""
    figure, axes = make_panels(data, n_columns=3, size=(4.3, 3.5))
    for name in "abc":
        _draw_losses(axes[name], data.panel(name))
    _draw_exponents(axes["d"], data.panel("d"))
    for name in "ef":
        axes[name].set_xscale("log")
        _draw_simulations(axes[name], data.panel(name))
    axes["e"].set_yscale("log")
    axes["e"].legend(frameon=False, fontsize="small", loc="upper left")
    return figure


def _draw_simulations(ax: Axes, curves: tuple[Curve, ...]) -> None:
    simulated = [curve for curve in curves if curve.kind == "simulation"]
    for curve, colour in zip(simulated, COLOURS, strict=False):
        if curve.standard_error is not None:
            margin = BAND * np.nan_to_num(curve.standard_error)
            # A band that reaches zero would leave a logarithmic axis.
            lower = np.maximum(curve.y - margin, 1e-2 * curve.y)
            ax.fill_between(curve.x, lower, curve.y + margin, color=colour, alpha=0.3, linewidth=0)
        ax.plot(curve.x, curve.y, color=colour, linewidth=1.6, label=math_text(curve.label))


def _draw_losses(ax: Axes, curves: tuple[Curve, ...]) -> None:
    ax.set_xscale("log")
    ax.set_yscale("log")
    _draw_simulations(ax, curves)
    named = set()
    for curve in curves:
        if curve.kind == "guide":
            style, name, width = "--", r"predicted $t^{-\chi(\beta)}$", 1.2
        elif curve.kind == "theory" and "own kernel" in curve.label:
            style, name, width = ":", "lazy, own kernel", 1.6
        elif curve.kind == "theory":
            style, name, width = "--", "lazy, infinite width", 1.2
        else:
            continue
        label = f"{'_' * (name in named)}{name}"
        ax.plot(curve.x, curve.y, style, color="black", linewidth=width, zorder=3, label=label)
        named.add(name)
    ax.legend(frameon=False, fontsize="small", loc="lower left")


def _draw_exponents(ax: Axes, curves: tuple[Curve, ...]) -> None:
    styles = {"rich": (COLOURS[0], "--"), "lazy": (COLOURS[1], ":")}
    named = set()
    for curve in curves:
        kind = "rich" if "rich" in curve.label else "lazy"
        colour, line = styles[kind]
        if curve.kind == "theory":
            ax.plot(curve.x, curve.y, line, color="black", linewidth=1.3, label=math_text(curve.label))
            continue
        source = curve.label.split(",")[0]
        name = f"{source}, {kind}"
        label = f"{'_' * (name in named)}{name}"
        named.add(name)
        if source == "networks":
            error = BAND * np.nan_to_num(curve.standard_error)
            ax.errorbar(curve.x, curve.y, error, fmt="o", color=colour, markersize=4.5, capsize=2, label=label)
        else:
            ax.plot(curve.x, curve.y, "s", color=colour, markersize=5.5, markerfacecolor="none", label=label)
            if curve.parameters["p"] > 1.0:
                # Which of the points are not relu's; beside the lines.
                # Below the lazy network's point, which lies beside that of the hardest.
                below = -22.0 if curve.x[0] < HARDEST else -3.0
                ax.annotate(
                    f"p = {curve.parameters['p']:g}", (curve.x[0], curve.y[0]), xytext=(7.0, below),
                    textcoords="offset points", fontsize="small",
                )  # fmt: skip
    ax.set_xlim(0.0, 1.5)
    ax.set_ylim(0.0, 1.6)
    ax.legend(frameon=False, fontsize="small", loc="upper left")
