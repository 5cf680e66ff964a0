"""What all commands share: sizes, folders for results, progress bars, warnings."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scalefield._progress import Progress

if TYPE_CHECKING:
    import warnings

    from rich.console import Console

    _FloatType = click.ParamType[float]
else:
    # Not generic at run time in every supported version.
    _FloatType = click.ParamType

__all__ = ["SizeOrInfinity", "make_folder", "progress_bars", "tell_warnings"]


class SizeOrInfinity(_FloatType):
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


def make_folder(path: Path) -> None:
    """Make the folder for results if it is absent; that nothing can be written there is found out now."""
    path.mkdir(parents=True, exist_ok=True)
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "cannot write into this folder", str(path))


def tell_warnings(console: Console, caught: Iterable[warnings.WarningMessage]) -> None:
    """Each warning once, on a line of its own."""
    for message in dict.fromkeys(str(item.message) for item in caught):
        console.print(f"scalefield: warning: {message}", soft_wrap=True, highlight=False, markup=False)


@contextmanager
def progress_bars(console: Console) -> Iterator[Any]:
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
