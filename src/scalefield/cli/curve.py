"""`scalefield curve`: one learning curve, theory beside simulation."""

from __future__ import annotations

import errno
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from scalefield import datasets
from scalefield._files import atomic_write, write_archive
from scalefield._progress import Progress
from scalefield.dmft import DMFTSolution, solve_dmft
from scalefield.errors import Interrupted
from scalefield.model import Model
from scalefield.simulation import Simulation, simulate
from scalefield.spectrum import PowerLawSpectrum, Spectrum, Task

if TYPE_CHECKING:
    from rich.console import Console

    _FloatType = click.ParamType[float]
else:
    # Not generic at run time in every supported version.
    _FloatType = click.ParamType

__all__ = ["curve"]

_DEFAULT_MODES = 4096


class _SizeOrInfinity(_FloatType):
    """A positive integer, or inf."""

    name = "integer|inf"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Return an int, or math.inf."""
        if isinstance(value, (int, float)):
            return value
        if value.strip().lower() in ("inf", "infinity"):
            return math.inf
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is neither an integer nor inf", param, ctx)


@click.command()
@click.argument("source", required=False, metavar="[digits|FILE]")
@click.option("--alpha", type=float, help="Capacity exponent of a power-law task.")
@click.option("--beta", type=float, help="Source exponent of a power-law task.")
@click.option(
    "--modes",
    type=_SizeOrInfinity(),
    help=f"Modes of the power law, or inf (theory only).  [default: {_DEFAULT_MODES}]",
)
@click.option("--width", type=_SizeOrInfinity(), default=64, show_default=True, help="Features N, or inf.")
@click.option("--gamma", type=float, default=1.0, show_default=True, help="Richness; 0 is lazy.")
@click.option("--learning-rate", type=float, default=0.1, show_default=True, help="Learning rate.")
@click.option(
    "--batch-size", type=_SizeOrInfinity(), default=32, show_default=True, help="Samples a step, or inf."
)
@click.option("--label-noise", type=float, default=0.0, show_default=True, help="Its standard deviation.")
@click.option("--steps", type=int, default=500, show_default=True, help="Training steps.")
@click.option("--runs", type=int, default=16, show_default=True, help="Simulated runs; 0 for theory alone.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the simulation.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("scalefield-curve"),
    show_default=True,
    help="Folder for curve.csv, curve.npz and curve.png; made if absent.",
)
def curve(
    source: str | None,
    alpha: float | None,
    beta: float | None,
    modes: float | None,
    width: float,
    gamma: float,
    learning_rate: float,
    batch_size: float,
    label_noise: float,
    steps: int,
    runs: int,
    seed: int,
    out: Path,
) -> int:
    r"""Predict a learning curve by theory and run the simulation beside it.

    The task is the spectrum measured on the bundled handwritten digits (digits), a spectrum in a .csv or
    .npz FILE (columns eigenvalue, target_coefficient), or a power law (--alpha and --beta).

    \b
    Examples:
      scalefield curve digits
      scalefield curve my_kernel.csv --width 256 --gamma 0 --out lazy
      scalefield curve --alpha 1.5 --beta 0.5 --width inf --runs 0
    """
    from rich.console import Console

    spectrum = _task(source, alpha, beta, modes)
    model = Model(
        spectrum,
        width=width,
        gamma=gamma,
        learning_rate=learning_rate,
        batch_size=batch_size,
        label_noise=label_noise,
    )
    if runs < 0:
        raise ValueError(f"runs must be an integer of at least 0, got {runs}")
    if steps < 1:
        raise ValueError(f"steps must be an integer of at least 1, got {steps}")
    if runs and spectrum.n_modes is None:
        raise ValueError("runs must be 0 for a spectrum of infinitely many modes: give --runs 0 or --modes M")
    out.mkdir(parents=True, exist_ok=True)
    # Found out now, not when there are results to lose.
    if not os.access(out, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "cannot write into this folder", str(out))

    console, errors = Console(), Console(stderr=True)
    theory: DMFTSolution | None
    simulation: Simulation | None = None
    interrupted = False
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with _progress_bars(errors) as bar:
            try:
                theory = solve_dmft(model, steps, "two-time", progress=bar("theory", steps))
            except Interrupted as stop:
                theory, interrupted = stop.partial, True
            if runs and not interrupted:
                try:
                    simulation = simulate(
                        model, steps, runs, seed, progress=bar(f"simulation, {runs} runs", steps * runs)
                    )
                except Interrupted as stop:
                    simulation, interrupted = stop.partial, True
    for message in dict.fromkeys(str(item.message) for item in caught):
        errors.print(f"scalefield: warning: {message}", soft_wrap=True, highlight=False, markup=False)
    if theory is None:
        raise KeyboardInterrupt

    _write_csv(out / "curve.csv", theory, simulation)
    _write_npz(out / "curve.npz", theory, simulation)
    _write_png(out / "curve.png", theory, simulation)
    _print_table(console, source or "power law", theory, simulation)
    console.print(
        f"wrote {out / 'curve.csv'}, {out / 'curve.npz'} and {out / 'curve.png'}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
    if interrupted:
        finished = f"{theory.n_steps} of {steps} steps of theory"
        if runs:
            finished += f" and {simulation.n_runs if simulation else 0} of {runs} runs"
        errors.print(
            f"scalefield: interrupted after {finished}; what was finished is written", soft_wrap=True, highlight=False
        )
        return 130
    return 0


def _task(source: str | None, alpha: float | None, beta: float | None, modes: float | None) -> Task:
    power_law = [f"--{n}" for n, v in (("alpha", alpha), ("beta", beta), ("modes", modes)) if v is not None]
    if source is not None:
        if power_law:
            raise ValueError(f"give either {source} or a power law ({', '.join(power_law)}), not both")
        return datasets.digits_spectrum() if source == "digits" else Spectrum.load(source)
    if alpha is None or beta is None:
        raise ValueError("name a task: digits, a spectrum FILE, or a power law with --alpha and --beta")
    if modes == math.inf:
        return PowerLawSpectrum(alpha, beta)
    return PowerLawSpectrum(alpha, beta, _DEFAULT_MODES if modes is None else int(modes))


@contextmanager
def _progress_bars(console: Console) -> Iterator[Any]:
    """A factory of progress callbacks, each with a bar of its own on `console`."""
    from rich import progress

    columns = (
        progress.TextColumn("{task.description:<22}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=console, transient=False, disable=not console.is_terminal) as bars:

        def bar(description: str, total: int) -> Progress:
            task = bars.add_task(description, total=total)

            def report(done: int, total: int) -> None:
                bars.update(task, completed=done, total=total)

            return report

        yield bar


def _columns(theory: DMFTSolution, simulation: Simulation | None) -> dict[str, Any]:
    """The curve as columns of equal length; the simulation's are absent if there was none."""
    columns: dict[str, Any] = {
        "step": theory.steps,
        "theory_loss": theory.loss,
        "theory_bias": theory.bias,
        "theory_feature_variance": theory.feature_variance,
        "theory_sgd_variance": theory.sgd_variance,
    }
    if simulation is not None:
        columns["simulation_mean"] = simulation.mean
        columns["simulation_standard_error"] = simulation.standard_error
        columns["z_score"] = _z_scores(theory, simulation)
    return columns


def _z_scores(theory: DMFTSolution, simulation: Simulation) -> Any:
    """(simulation mean - theory)/standard error; nan where there is no spread, as at step 0."""
    error = simulation.standard_error
    z = np.full(error.shape, np.nan)
    spread = error > 1e-12 * simulation.mean
    z[spread] = (simulation.mean - theory.loss)[spread] / error[spread]
    return z


def _write_csv(path: Path, theory: DMFTSolution, simulation: Simulation | None) -> None:
    columns = _columns(theory, simulation)
    lines = [f"# scalefield curve: {theory.model.summary()}"]
    if simulation is not None:
        lines.append(f"# simulation: {simulation.n_runs} runs, seed {simulation.seed}")
    lines.append(",".join(columns))
    lines += [",".join(repr(v) for v in row) for row in zip(*(c.tolist() for c in columns.values()), strict=True)]
    with atomic_write(path) as stream:
        stream.write(("\n".join(lines) + "\n").encode())


def _write_npz(path: Path, theory: DMFTSolution, simulation: Simulation | None) -> None:
    from scalefield import __version__

    arrays = _columns(theory, simulation)
    settings: dict[str, Any] = {"version": __version__, "model": theory.model.describe()}
    if simulation is not None:
        arrays["simulation_loss"] = simulation.loss
        settings["seed"] = simulation.seed
    write_archive(path, settings, arrays)


def _write_png(path: Path, theory: DMFTSolution, simulation: Simulation | None) -> None:
    from matplotlib.figure import Figure

    from scalefield.plot import loss_curves

    figure = Figure(figsize=(5.2, 3.9), layout="constrained")
    loss_curves(*([simulation] if simulation else []), theory, ax=figure.add_subplot())
    with atomic_write(path) as stream:
        figure.savefig(stream, format="png", dpi=200)


def _print_table(console: Console, task: str, theory: DMFTSolution, simulation: Simulation | None) -> None:
    from rich.table import Table

    console.print(f"{task}: {theory.model.summary()}", soft_wrap=True, highlight=False, markup=False)
    table = Table()
    table.add_column("step", justify="right")
    table.add_column("theory", justify="right")
    z = None
    if simulation is not None:
        for name in ("simulation", "std. error", "z-score"):
            table.add_column(name, justify="right")
        z = _z_scores(theory, simulation)
    last = theory.n_steps
    shown = sorted({0, last, *np.unique(np.geomspace(1, last, 13).round().astype(int)).tolist()})
    for t in shown:
        row = [str(t), f"{theory.loss[t]:.6g}"]
        if simulation is not None and z is not None:
            error = simulation.standard_error[t]
            row += [
                f"{simulation.mean[t]:.6g}",
                "-" if math.isnan(error) else f"{error:.2g}",
                "-" if math.isnan(z[t]) else f"{z[t]:+.2f}",
            ]
        table.add_row(*row)
    console.print(table)
