"""`scalefield figure`: figures of the paper, regenerated."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import click

from scalefield import figures
from scalefield.cli._console import make_folder, progress_bars, tell_warnings
from scalefield.errors import BackendUnavailableError

if TYPE_CHECKING:
    from rich.console import Console

    from scalefield.figures import FigureData

__all__ = ["figure"]


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("scalefield-figures"),
    show_default=True,
    help="Folder for figure-NAME.png and figure-NAME.csv; made if absent.",
)
@click.option("--quick", is_flag=True, help="Fewer runs, sizes and decades: seconds instead of minutes.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the simulations.")
@click.option(
    "--checkpoints",
    type=click.Path(path_type=Path),
    help="Folder where figures of trained networks (5, 6, 9, 12, 13) keep their state: after an interruption the same "
    "command goes on.",
)
def figure(names: tuple[str, ...], out: Path, quick: bool, seed: int, checkpoints: Path | None) -> int:
    """Regenerate figures of the paper (arXiv:2409.17858): a picture and a .csv each.

    NAME is the number of a figure, or all. The .csv has every point drawn, with the exponents predicted and measured;
    these are printed too.

    \b
    Examples:
      scalefield figure 11
      scalefield figure 1 2 --quick --out figures
      scalefield figure 5 --checkpoints figure-5
      scalefield figure all
    """  # noqa: D301
    from rich.console import Console

    unknown = [name for name in names if name not in figures.FIGURES and name != "all"]
    if unknown:
        raise ValueError(f"name must be one of {', '.join(figures.FIGURES)} or all, got {unknown[0]!r}")
    if seed < 0:
        raise ValueError(f"seed must be an integer of at least 0, got {seed}")
    wanted = list(figures.FIGURES) if "all" in names else list(dict.fromkeys(names))
    make_folder(out)
    if checkpoints is not None:
        make_folder(checkpoints)

    console, errors = Console(), Console(stderr=True)
    finished: list[str] = []
    for name in wanted:
        start = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                with progress_bars(errors) as bar:
                    data = figures.write(
                        name, out, quick, seed, bar(f"figure {name}", 1), checkpoints=checkpoints
                    )  # fmt: skip
            except KeyboardInterrupt:
                told = f"; written before: {', '.join(finished)}" if finished else ""
                if checkpoints is not None and name in figures.TRAINED:
                    told += f"; the same command goes on from {checkpoints}"
                errors.print(f"scalefield: interrupted in figure {name}{told}", soft_wrap=True, highlight=False)
                return 130
            except BackendUnavailableError as error:
                if "all" not in names:
                    raise
                # What an optional package is missing for must not keep the others from being made.
                errors.print(f"scalefield: warning: figure {name} left out: {error}", soft_wrap=True, markup=False)
                continue
        tell_warnings(errors, caught)
        finished.append(name)
        _print_table(console, data)
        console.print(
            f"wrote {out / f'figure-{name}.png'} and {out / f'figure-{name}.csv'}, {time.perf_counter() - start:.1f} s",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
    return 0


def _print_table(console: Console, data: FigureData) -> None:
    """Exponents predicted and measured, and why they differ."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    # What several panels show is listed once.
    listed = {(c.label, c.predicted_exponent, c.measured_exponent): c for c in reversed(data.exponents())}
    curves = list(reversed(listed.values()))
    if not curves:
        return
    title = f"figure {data.name}"
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, title=title, title_justify="left")
    table.add_column("panel")
    table.add_column("curve", overflow="fold")
    for column in ("predicted", "measured", "s.e."):
        table.add_column(column, justify="right", no_wrap=True)
    notes: dict[str, int] = {}
    for curve in curves:
        mark = f" [{notes.setdefault(curve.note, len(notes) + 1)}]" if curve.note else ""
        table.add_row(
            curve.panel,
            escape(curve.label + mark),
            "-" if curve.predicted_exponent is None else f"{curve.predicted_exponent:.4f}",
            f"{curve.measured_exponent:.4f}",
            "-" if curve.exponent_error is None else f"{curve.exponent_error:.1g}",
        )
    console.print(table)
    for note, number in notes.items():
        console.print(f"[{number}] {note}", highlight=False, markup=False)
