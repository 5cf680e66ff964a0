"""Figures of the paper, regenerated: each a picture and a .csv with its curves and their exponents.

`scalefield figure NAME --out DIR` is the same from a shell. Every figure has a module of its own with two functions,
``compute(quick, seed, progress)``, which returns the numbers as `FigureData`, and ``draw(data)``, which makes a
matplotlib figure of them.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

from scalefield._files import atomic_write
from scalefield._progress import Progress
from scalefield._validate import as_flag, as_seed
from scalefield.figures._base import Curve, FigureData

__all__ = ["FIGURES", "TRAINED", "Curve", "FigureData", "write"]

# Imported when asked for.
FIGURES = MappingProxyType(
    {
        "1": "scalefield.figures.figure_1",
        "2": "scalefield.figures.figure_2",
        "3": "scalefield.figures.figure_3",
        "4": "scalefield.figures.figure_4",
        "5": "scalefield.figures.figure_5",
        "6": "scalefield.figures.figure_6",
        "7": "scalefield.figures.figure_7",
        "8": "scalefield.figures.figure_8",
        "9": "scalefield.figures.figure_9",
        "11": "scalefield.figures.figure_11",
        "12": "scalefield.figures.figure_12",
        "13": "scalefield.figures.figure_13",
    }
)
# Those of trained networks, which keep checkpoints.
TRAINED = frozenset({"5", "6", "9", "12", "13"})


def write(
    name: str,
    out: str | os.PathLike[str],
    quick: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
    *,
    checkpoints: str | os.PathLike[str] | None = None,
) -> FigureData:
    """Compute a figure of the paper and write figure-NAME.png and figure-NAME.csv.

    Parameters
    ----------
    name : str
        Number of the figure in the paper, a key of `FIGURES`.
    out : path
        Folder, made if absent. Each file is written whole or not at all.
    quick : bool
        Fewer runs, sizes and decades: the same picture in seconds instead of minutes.
    seed : int
        Seed of what is simulated; the same seed gives the same .csv.
    progress : callable, optional
        Called as ``progress(done, total)``.
    checkpoints : path, optional
        Folder, made if absent, for checkpoints of the figures whose networks are trained for minutes: `TRAINED`. The
        same call goes on from them, and draws again without training once they are finished. Others keep nothing.

    Returns
    -------
    FigureData
        What is drawn and written.

    Raises
    ------
    ValueError
        For a name that is not a figure, or a seed out of range.
    ScalefieldError
        If a checkpoint is damaged or belongs to another call, of another seed.
    OSError
        If the files cannot be written.

    Notes
    -----
    The .csv begins with the settings as ``# key: value`` lines. Then every row is a point of a curve: panel, label,
    kind, the curve's parameters (a column each, empty where it has none of that name), x, y, standard_error,
    predicted_exponent, measured_exponent, exponent_error, window_start and window_stop (where it was measured, in x),
    note. ``pandas.read_csv(path, comment="#")`` reads it.

    Examples
    --------
    >>> import scalefield as sf
    >>> data = sf.figures.write("11", "figures", quick=True)
    >>> sorted(data.axes)
    ['a', 'b']
    """
    if name not in FIGURES:
        raise ValueError(f"name must be one of {', '.join(FIGURES)}, got {name!r}")
    folder = Path(out)
    quick, seed = as_flag("quick", quick), as_seed("seed", seed)
    module: Any = import_module(FIGURES[name])
    folder.mkdir(parents=True, exist_ok=True)
    kept: dict[str, Path] = {}
    if checkpoints is not None and name in TRAINED:
        kept["checkpoints"] = Path(checkpoints)
        kept["checkpoints"].mkdir(parents=True, exist_ok=True)
    data: FigureData = module.compute(quick, seed, progress, **kept)
    # Drawn before anything is written: both files are there, or neither.
    picture = module.draw(data)
    with atomic_write(folder / f"figure-{name}.csv") as stream:
        stream.write(data.csv().encode())
    with atomic_write(folder / f"figure-{name}.png") as stream:
        picture.savefig(stream, format="png", dpi=200)
    return data
