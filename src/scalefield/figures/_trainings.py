"""Figures of several trainings: one progress for all, and checkpoints to go on from."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, TypeVar

from scalefield._progress import Progress

__all__ = ["train_all"]

Case = TypeVar("Case")
CaseIn = TypeVar("CaseIn", contravariant=True)
Runs = TypeVar("Runs")
RunsOut = TypeVar("RunsOut", covariant=True)

# Units of progress of one training: they differ in steps.
_UNITS = 1000


class Train(Protocol[CaseIn, RunsOut]):
    """Trains one case."""

    def __call__(self, case: CaseIn, /, *, checkpoint: Path | None, progress: Progress) -> RunsOut: ...


def train_all(
    cases: Iterable[Case],
    train: Train[Case, Runs],
    progress: Progress | None,
    checkpoints: Path | None,
    name: str,
) -> dict[Case, Runs]:
    """Train all cases, one after the other.

    Parameters
    ----------
    cases : iterable
        What is trained, different from each other.
    train : callable
        Called as ``train(case, checkpoint=path or None, progress=...)``.
    progress : callable or None
        For all of them.
    checkpoints : Path or None
        Folder for their checkpoints, NAME-1.checkpoint, ...
    name : str
        NAME: trainings of other sizes have another.

    Returns
    -------
    dict
        What `train` returned, by case, in their order.
    """
    every = list(cases)
    trained: dict[Case, Runs] = {}
    for index, case in enumerate(every):

        def report(done: int, total: int, first: int = index * _UNITS) -> None:
            if progress is not None:
                progress(first + _UNITS * done // total, _UNITS * len(every))

        path = None if checkpoints is None else checkpoints / f"{name}-{index + 1}.checkpoint"
        trained[case] = train(case, checkpoint=path, progress=report)
    return trained
