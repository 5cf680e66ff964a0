"""Pictures of learning curves; matplotlib is imported on first use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scalefield.dmft.solution import DMFTSolution
from scalefield.flow import FlowSolution
from scalefield.model import Model
from scalefield.simulation.result import Simulation
from scalefield.spectrum import Spectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from scalefield.kernels.source_capacity import SourceCapacityFit
    from scalefield.networks import DeepNetworkRuns, LinearNetworkFlow, LinearNetworkRuns, MultilayerTraining

__all__ = ["loss_curves", "spectrum_fit", "training_curves"]

# Okabe-Ito colours: distinct in print and for colour-blind readers; black is the theory's.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_SYMBOLS = {
    "width": "N",
    "gamma": r"\gamma",
    "learning_rate": r"\eta",
    "batch_size": "B",
    "label_noise": r"\sigma",
}
# Of trained networks, by attribute, or attribute of the task; None for words.
_NETWORK_SYMBOLS = {
    "architecture": None,
    "objective": None,
    "gamma": r"\gamma",
    "width": "N",
    "depth": "L",
    "activation_power": "p",
    "exponent": "q",
    "alpha": r"\alpha",
    "beta": r"\beta",
    "learning_rate": r"\eta",
    "batch_size": "B",
    "label_noise": r"\sigma",
}
# Half-width of the band in standard errors: about 95% of the means lie this close to their expectation.
BAND = 2.0
_TAU = r"$\tau$ = learning rate $\times$ step"


def loss_curves(*solutions: DMFTSolution | FlowSolution | Simulation, ax: Axes | None = None) -> Axes:
    """Draw test loss against step on log-log axes: theory dashed black, simulations with an error band.

    Parameters
    ----------
    *solutions : DMFTSolution, FlowSolution or Simulation
        At least one. Simulations are drawn as the mean over runs with a band of two standard errors, a
        colour per model; theory curves as dashed lines, black, but in the model's colour where several
        models are drawn and this one has no simulation. Step 0 has no place on a logarithmic axis and is
        left out. Gradient flow alone is drawn against tau = learning rate x step, beside others dotted at
        step tau/(learning rate). Train losses of offline training are drawn as well: theory dash-dotted, simulations
        thinner.
    ax : matplotlib Axes, optional
        Where to draw; a new figure if None.

    Returns
    -------
    matplotlib.axes.Axes
        With axis labels and a legend; parameters that differ between the solutions are in the labels.

    Raises
    ------
    TypeError
        If an argument is neither a DMFTSolution, a FlowSolution nor a Simulation.
    ValueError
        If there is none.

    Examples
    --------
    >>> import matplotlib; matplotlib.use("Agg")
    >>> import scalefield as sf
    >>> model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5, n_modes=200), width=32, batch_size=16)
    >>> ax = sf.plot.loss_curves(sf.simulate(model, 50, n_runs=4, seed=0), sf.solve_dmft(model, 50))
    >>> ax.get_xscale(), ax.get_ylabel()
    ('log', 'test loss')
    """
    if not solutions:
        raise ValueError("solutions must name at least one solution, got none")
    for solution in solutions:
        if not isinstance(solution, (DMFTSolution, FlowSolution, Simulation)):
            raise TypeError(
                "solutions must be DMFTSolution, FlowSolution or Simulation objects, "
                f"got {solution!r} of type {type(solution).__name__}"
            )
    ax = _new_axes() if ax is None else ax
    models: list[Model] = []
    for solution in solutions:
        if solution.model not in models:
            models.append(solution.model)
    simulated = [solution.model for solution in solutions if isinstance(solution, Simulation)]

    flow_alone = all(isinstance(solution, FlowSolution) for solution in solutions)
    theories = []
    for solution in solutions:
        colour = COLOURS[models.index(solution.model) % len(COLOURS)]
        parameters = _differing_parameters(solution.model, models)
        if isinstance(solution, Simulation):
            _draw_simulation(ax, solution, colour, parameters)
            continue
        is_flow = isinstance(solution, FlowSolution)
        name, style = ("gradient flow", "--" if flow_alone else ":") if is_flow else ("theory", "--")
        if solution.model in simulated or len(models) == 1:
            theories.append((solution, style, "black", name))
        else:
            # No simulation beside it whose label would say which curve this is.
            theories.append((solution, style, colour, f"{name}, {parameters}"))
    drawn = set()
    for solution, style, colour, label in theories:
        x, loss = _curve(solution, flow_alone)
        ax.plot(x, loss, style, color=colour, linewidth=1.4, zorder=3, label=f"_{label}" if label in drawn else label)
        drawn.add(label)
        train = getattr(solution, "train_loss", None)
        if train is not None:
            label = f"{label}, train"
            kept = solution.loss.size - x.size
            ax.plot(x, train[kept:], "-.", color=colour, linewidth=1.0, label=f"_{label}" if label in drawn else label)
            drawn.add(label)
    ends = [_curve(solution, flow_alone)[0] for solution in solutions]
    # A single point spans no axis.
    left, right = min(x[0] for x in ends) if flow_alone else 1.0, max(x[-1] for x in ends)
    limits = (left, right) if right > left else None
    with_train = any(getattr(solution, "train_loss", None) is not None for solution in solutions)
    _finish(ax, _TAU if flow_alone else "step", "loss" if with_train else "test loss", limits)
    return ax


def training_curves(
    *results: LinearNetworkRuns | MultilayerTraining | DeepNetworkRuns | LinearNetworkFlow | FlowSolution,
    ax: Axes | None = None,
) -> Axes:
    r"""Draw test losses of trained networks against tau = learning rate x step, beside gradient flow.

    Parameters
    ----------
    *results : LinearNetworkRuns, MultilayerTraining, DeepNetworkRuns, LinearNetworkFlow or FlowSolution
        At least one. Trainings are drawn as the mean over runs with a band of two standard errors, a colour each;
        gradient flow dashed, in the colour of the training of linear networks that it is the limit of, else black.
        Step 0 has no place on a logarithmic axis and is left out.
    ax : matplotlib Axes, optional
        Where to draw; a new figure if None.

    Returns
    -------
    matplotlib.axes.Axes
        With axis labels and a legend, whose labels have what differs between results of a kind.

    Raises
    ------
    TypeError
        If an argument is none of these.
    ValueError
        If there is none.

    Examples
    --------
    >>> import matplotlib; matplotlib.use("Agg")
    >>> import scalefield as sf
    >>> task = sf.networks.CircleTask(1.0, n_modes=255)
    >>> trained = [
    ...     sf.networks.train_multilayer(task, width=32, gamma=gamma, n_steps=50, n_seeds=2, seed=0)
    ...     for gamma in (0.1, 1.0)
    ... ]
    >>> lazy = sf.solve_gradient_flow(sf.Model(task.spectrum()), trained[0].times)
    >>> ax = sf.plot.training_curves(*trained, lazy)
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['$\\gamma = 0.1$ (2 runs, $\\pm$ 2 s.e.)', '$\\gamma = 1$ (2 runs, $\\pm$ 2 s.e.)', 'gradient flow']
    """
    from scalefield.networks import DeepNetworkRuns, LinearNetworkFlow, LinearNetworkRuns, MultilayerTraining

    if not results:
        raise ValueError("results must name at least one result, got none")
    trained = (LinearNetworkRuns, MultilayerTraining, DeepNetworkRuns)
    for result in results:
        if not isinstance(result, (*trained, LinearNetworkFlow, FlowSolution)):
            raise TypeError(
                "results must be LinearNetworkRuns, MultilayerTraining, DeepNetworkRuns, LinearNetworkFlow or "
                f"FlowSolution objects, got {result!r} of type {type(result).__name__}"
            )
    ax = _new_axes() if ax is None else ax
    trainings = [result for result in results if isinstance(result, trained)]
    settings = [_network_parameters(training) for training in trainings]
    for index, (training, own) in enumerate(zip(trainings, settings, strict=True)):
        runs = f"{training.n_runs} runs, $\\pm$ {BAND:g} s.e." if training.n_runs > 1 else ""
        label = _differing(own, settings) or "training"
        kept = training.steps > 0
        _draw_band(
            ax, (training.learning_rate * training.steps)[kept], training.mean[kept], training.standard_error[kept],
            color=COLOURS[index % len(COLOURS)], linewidth=1.6, label=f"{label} ({runs})" if runs else label,
        )  # fmt: skip
    for kind in (LinearNetworkFlow, FlowSolution):
        flows = [result for result in results if isinstance(result, kind)]
        settings = [_network_parameters(flow) for flow in flows]
        for flow, own in zip(flows, settings, strict=True):
            limits = [
                index
                for index, training in enumerate(trainings)
                if isinstance(flow, LinearNetworkFlow)
                and isinstance(training, LinearNetworkRuns)
                # The spectrum of one may go on where the other's ends.
                and _same(own, _network_parameters(training), ("gamma", "alpha", "beta"))
            ]
            colour = COLOURS[limits[0] % len(COLOURS)] if limits else "black"
            label = _differing(own, settings)
            kept = flow.times > 0.0
            ax.plot(
                flow.times[kept], flow.loss[kept], "--", color=colour, linewidth=1.4, zorder=3,
                label="gradient flow" + (f", {label}" if label else ""),
            )  # fmt: skip
    _finish(ax, _TAU, "test loss")
    return ax


def spectrum_fit(
    spectrum: Spectrum, fit: SourceCapacityFit | None = None, axes: tuple[Axes, Axes] | None = None
) -> tuple[Axes, Axes]:
    """Draw eigenvalues and the target's tail sums against the mode, with the fitted power laws over their window.

    Parameters
    ----------
    spectrum : Spectrum
        Measured, or any other list of modes.
    fit : SourceCapacityFit, optional
        What `kernels.fit_source_capacity` returned; no lines if None.
    axes : pair of matplotlib Axes, optional
        Where to draw; a new figure if None.

    Returns
    -------
    pair of matplotlib.axes.Axes
        Of eigenvalues and of tail sums. Fits are dashed black within the window, dotted beyond it; legends tell the
        exponents with their intervals.

    Raises
    ------
    TypeError
        If spectrum is not a Spectrum.

    Examples
    --------
    >>> import matplotlib; matplotlib.use("Agg")
    >>> import scalefield as sf
    >>> spectrum = sf.datasets.digits_spectrum()
    >>> axes = sf.plot.spectrum_fit(spectrum, sf.kernels.fit_source_capacity(spectrum))
    >>> axes[0].get_ylabel()
    'eigenvalue'
    """
    if not isinstance(spectrum, Spectrum):
        raise TypeError(f"spectrum must be a Spectrum, got {spectrum!r} of type {type(spectrum).__name__}")
    if axes is None:
        import matplotlib.pyplot as plt

        axes = tuple(plt.subplots(1, 2, figsize=(8.4, 3.6), layout="constrained")[1])
    left, right = axes
    # A mode that stands for what is never learned is none of the kernel's.
    shown = spectrum.eigenvalues > 2e-30 * spectrum.eigenvalues[0]
    eigenvalues, power = spectrum.eigenvalues[shown], spectrum.target_power[shown]
    k = np.arange(1, eigenvalues.size + 1)
    left.plot(k, eigenvalues, color=COLOURS[0], linewidth=1.6, label="measured")
    # sum over l > k
    tail = spectrum.total_target_power - np.cumsum(power)
    # The last modes hold next to nothing and would take most of the axis.
    visible = tail >= max(0.3 * tail[int(0.95 * (k.size - 1))], 1e-12 * spectrum.total_target_power)
    right.plot(k[visible], tail[visible], color=COLOURS[1], linewidth=1.6, label="measured")
    if fit is not None:
        first, last = fit.window
        inside = np.arange(max(first, 1), last + 1)
        (low, high), (least, most) = fit.alpha_interval, fit.alpha_beta_interval
        label = rf"$k^{{-\alpha}}$, $\alpha = {fit.alpha:.3g}$ [{low:.3g}, {high:.3g}]"
        left.plot(inside, fit.eigenvalues(inside.astype(float)), "--", color="black", linewidth=1.4, label=label)
        further = np.arange(max(first, 1) if fit.n_samples else last, min(10 * last, int(k[-1])) + 1).astype(float)
        label = f"without the shift of {fit.n_samples} samples" if fit.n_samples else "_continued"
        law = fit.eigenvalue_prefactor * further**-fit.alpha
        left.plot(further, law, ":", color="black", linewidth=1.1, label=label)
        # The tail sum at the window's end is measured; the fit tells how it is reached.
        within = np.arange(max(first, 1) + 1, last + 1)
        after = np.append(np.cumsum(fit.target_power(within.astype(float))[::-1])[::-1], 0.0)
        label = rf"$k^{{-\alpha\beta}}$, $\alpha\beta = {fit.alpha_beta:.3g}$ [{least:.3g}, {most:.3g}]"
        right.plot(inside, tail[last - 1] + after, "--", color="black", linewidth=1.4, label=label)
    for ax, name in ((left, "eigenvalue"), (right, "target power beyond mode $k$")):
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlim(1, max(float(k[-1]), 2.0))
        ax.set_xlabel("mode $k$")
        ax.set_ylabel(name)
        ax.grid(True, which="major", linewidth=0.4, alpha=0.5)
        if fit is not None:
            ax.axvspan(max(fit.window[0], 1), fit.window[1], color="0.9", zorder=0, linewidth=0, label="window")
        ax.legend(frameon=False, fontsize="small", loc="lower left")
        _label_decades(ax)
    return left, right


def _new_axes() -> Axes:
    import matplotlib.pyplot as plt

    ax: Axes = plt.subplots(figsize=(5.2, 3.9), layout="constrained")[1]
    return ax


def _finish(ax: Axes, x_label: str, y_label: str, x_limits: tuple[float, float] | None = None) -> None:
    """Logarithmic axes with labels, grid and legend."""
    ax.set_xscale("log")
    ax.set_yscale("log")
    if x_limits is not None:
        ax.set_xlim(*x_limits)
    _label_decades(ax)
    ax.set_xlabel(x_label)
    ax.set_ylabel(y_label)
    ax.grid(True, which="major", linewidth=0.4, alpha=0.5)
    ax.legend(frameon=False)


def _curve(solution: Any, flow_alone: bool) -> tuple[Any, Any]:
    """Abscissae above 0 and losses there."""
    if isinstance(solution, FlowSolution):
        times, loss = solution.times, solution.loss
        kept = times > 0.0
        return (times if flow_alone else times / solution.model.learning_rate)[kept], loss[kept]
    if isinstance(solution, Simulation):
        return solution.steps[1:], solution.mean[1:]
    return solution.steps[1:], solution.loss[1:]


def _draw_simulation(ax: Axes, simulation: Simulation, colour: str, parameters: str) -> None:
    steps, mean = _curve(simulation, flow_alone=False)
    label = "simulation" + (f", {parameters}" if parameters else "")
    runs = f" ({simulation.n_runs} runs, $\\pm$ {BAND:g} s.e.)" if simulation.n_runs > 1 else ""
    _draw_band(ax, steps, mean, simulation.standard_error[1:], color=colour, linewidth=1.6, label=label + runs)
    if simulation.train_loss is not None:
        mean, error = simulation.train_mean[1:], simulation.train_standard_error[1:]
        _draw_band(ax, steps, mean, error, color=colour, linewidth=0.8, label=f"{label}, train")


def _draw_band(ax: Axes, steps: Any, mean: Any, error: Any, **style: Any) -> None:
    if np.isfinite(error).all():
        margin = BAND * error
        # A band reaching zero or below would leave a logarithmic axis.
        lower = np.maximum(mean - margin, 1e-3 * mean)
        ax.fill_between(steps, lower, mean + margin, color=style["color"], alpha=0.3, linewidth=0)
    ax.plot(steps, mean, **style)


def _differing_parameters(model: Model, models: Sequence[Model]) -> str:
    """Name the parameters in which `models` differ, with this model's values."""
    every = [{name: getattr(other, name) for name in _SYMBOLS} for other in models]
    return _differing({name: getattr(model, name) for name in _SYMBOLS}, every)


def _network_parameters(result: Any) -> dict[str, Any]:
    """What a training, or gradient flow, may differ in from another."""
    found: dict[str, Any] = {}
    owner = getattr(result, "model", result)
    for source in (owner, getattr(owner, "task", None), getattr(owner, "spectrum", None)):
        found |= {name: getattr(source, name) for name in _NETWORK_SYMBOLS if hasattr(source, name)}
    return found


def _same(own: Mapping[str, Any], other: Mapping[str, Any], names: Sequence[str]) -> bool:
    return all(own.get(name) == other.get(name) for name in names)


def _differing(own: Mapping[str, Any], every: Sequence[Mapping[str, Any]]) -> str:
    """The parameters that are not the same in all, with one's own values."""
    parts = []
    for name, value in own.items():
        if any(other.get(name) != value for other in every):
            symbol = _SYMBOLS.get(name) or _NETWORK_SYMBOLS[name]
            shown = value if isinstance(value, str) else r"\infty" if value == np.inf else f"{value:g}"
            parts.append(rf"${symbol} = {shown}$" if symbol else shown)
    return ", ".join(parts)


def _label_decades(ax: Any) -> None:
    """Label values within decades where little more than one decade is in sight, so that the scale can be read."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    low, high = ax.get_ylim()
    if high < 50.0 * low:
        within = range(2, 10) if high < 5.0 * low else (2, 5)
        plain = FuncFormatter(lambda value, _: f"{value:g}")
        ax.yaxis.set_minor_locator(LogLocator(subs=[float(digit) for digit in within]))
        ax.yaxis.set_minor_formatter(plain)
        ax.yaxis.set_major_formatter(plain)
        ax.set_ylim(low, high)
