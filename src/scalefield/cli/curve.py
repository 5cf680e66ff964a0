"""`scalefield curve`: one learning curve, theory beside simulation."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from scalefield import datasets
from scalefield._files import atomic_write, write_archive
from scalefield.cli._console import SizeOrInfinity, make_folder, progress_bars, tell_warnings
from scalefield.dmft import DMFTSolution, solve_dmft
from scalefield.errors import Interrupted
from scalefield.model import Model
from scalefield.simulation import Simulation, simulate
from scalefield.spectrum import PowerLawSpectrum, Spectrum, Task

if TYPE_CHECKING:
    from rich.console import Console


__all__ = ["curve"]

_DEFAULT_MODES = 4096


@click.command()
@click.argument("source", required=False, metavar="[digits|FILE]")
@click.option("--alpha", type=float, help="Capacity exponent of a power-law task.")
@click.option("--beta", type=float, help="Source exponent of a power-law task.")
@click.option(
    "--modes",
    type=SizeOrInfinity(),
    help=f"Modes of the power law, or inf (theory only).  [default: {_DEFAULT_MODES}]",
)
@click.option("--width", type=SizeOrInfinity(), default=64, show_default=True, help="Features N, or inf.")
@click.option("--gamma", type=float, default=1.0, show_default=True, help="Richness; 0 is lazy.")
@click.option("--learning-rate", type=float, default=0.1, show_default=True, help="Learning rate.")
@click.option(
    "--batch-size",
    type=SizeOrInfinity(),
    help="Samples a step, or inf.  [default: 32; with --samples inf: all of them]",
)
@click.option(
    "--samples",
    type=SizeOrInfinity(),
    default=math.inf,
    help="Size of a data set that every step reuses: train and test loss.  [default: inf, fresh samples]",
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
    batch_size: float | None,
    samples: float,
    label_noise: float,
    steps: int,
    runs: int,
    seed: int,
    out: Path,
) -> int:
    """Predict a learning curve by theory and run the simulation beside it.

    The task is the spectrum measured on the bundled handwritten digits (digits), a spectrum in a .csv or
    .npz FILE (columns eigenvalue, target_coefficient), or a power law (--alpha and --beta).

    \b
    Examples:
      scalefield curve digits
      scalefield curve my_kernel.csv --width 256 --gamma 0 --out lazy
      scalefield curve --alpha 1.5 --beta 0.5 --width inf --runs 0
      scalefield curve digits --samples 200 --label-noise 0.3
    """  # noqa: D301
    from rich.console import Console

    spectrum = _task(source, alpha, beta, modes)
    model = Model(
        spectrum,
        width=width,
        gamma=gamma,
        learning_rate=learning_rate,
        batch_size=batch_size if batch_size is not None else 32 if math.isinf(samples) else math.inf,
        label_noise=label_noise,
        n_samples=samples,
    )
    if runs < 0:
        raise ValueError(f"runs must be an integer of at least 0, got {runs}")
    if steps < 1:
        raise ValueError(f"steps must be an integer of at least 1, got {steps}")
    if runs and spectrum.n_modes is None and (math.isinf(width) or model.is_offline):
        where = "at infinite width" if math.isinf(width) else "with a data set"
        raise ValueError(f"runs must be 0 for infinitely many modes {where}: give --runs 0 or --modes M")
    make_folder(out)

    console, errors = Console(), Console(stderr=True)
    theory: DMFTSolution | None
    simulation: Simulation | None = None
    interrupted = False
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with progress_bars(errors) as bar:
            try:
                theory = solve_dmft(model, steps, "two-time", progress=bar("theory", steps))
            except Interrupted as stop:
                theory, interrupted = stop.partial, True
            if runs and not interrupted:
                try:
                    simulation = simulate(
                        model, steps, runs, seed, record="all", progress=bar(f"simulation, {runs} runs", steps * runs)
                    )
                except Interrupted as stop:
                    simulation, interrupted = stop.partial, True
    tell_warnings(errors, caught)
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


def _columns(theory: DMFTSolution, simulation: Simulation | None) -> dict[str, Any]:
    """The curve as columns of equal length; the simulation's are absent if there was none."""
    columns: dict[str, Any] = {
        "step": theory.steps,
        "theory_loss": theory.loss,
        "theory_bias": theory.bias,
        "theory_feature_variance": theory.feature_variance,
        "theory_sgd_variance": theory.sgd_variance,
        "theory_data_variance": theory.data_variance,
        "theory_noise_variance": theory.noise_variance,
        "theory_train_loss": theory.train_loss,
    }
    if simulation is not None:
        columns["simulation_mean"] = simulation.mean
        columns["simulation_standard_error"] = simulation.standard_error
        columns["z_score"] = _z_scores(theory.loss, simulation.mean, simulation.standard_error)
        if theory.train_loss is not None:
            mean, error = simulation.train_mean, simulation.train_standard_error
            columns["simulation_train_mean"] = mean
            columns["simulation_train_standard_error"] = error
            columns["train_z_score"] = _z_scores(theory.train_loss, mean, error)
    return {name: column for name, column in columns.items() if column is not None}


def _z_scores(expected: Any, mean: Any, error: Any) -> Any:
    """(simulation mean - theory)/standard error; nan where there is no spread, as at step 0."""
    z = np.full(error.shape, np.nan)
    spread = error > 1e-12 * mean
    z[spread] = (mean - expected)[spread] / error[spread]
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
        if simulation.train_loss is not None:
            arrays["simulation_train_loss"] = simulation.train_loss
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
    from rich import box
    from rich.table import Table

    console.print(f"{task}: {theory.model.summary()}", soft_wrap=True, highlight=False, markup=False)
    table = Table()
    names = ("theory", "simulation", "std. error", "z-score")
    curves = [(names, 6, theory.loss, simulation and (simulation.mean, simulation.standard_error))]
    if theory.train_loss is not None:
        # Two curves side by side, in 80 columns.
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
        runs = simulation and (simulation.train_mean, simulation.train_standard_error)
        curves = [
            (("test", "runs", "s.e.", "z"), 5, *curves[0][2:]),
            (("train", "runs", "s.e.", "z"), 5, theory.train_loss, runs),
        ]
    table.add_column("step", justify="right", no_wrap=True)
    for names, _, _, runs in curves:
        for column in names if runs else names[:1]:
            table.add_column(column, justify="right", no_wrap=True)
    last = theory.n_steps
    shown = sorted({0, last, *np.unique(np.geomspace(1, last, 13).round().astype(int)).tolist()})
    for t in shown:
        row = [str(t)]
        for _, digits, expected, runs in curves:
            row.append(f"{expected[t]:.{digits}g}")
            if runs:
                mean, error = runs
                z = _z_scores(expected, mean, error)[t]
                row += [
                    f"{mean[t]:.{digits}g}",
                    # No spread is rounding errors.
                    f"{error[t]:.2g}" if error[t] > 1e-12 * mean[t] else "-",
                    "-" if math.isnan(z) else f"{z:+.2f}",
                ]
        table.add_row(*row)
    console.print(table)
