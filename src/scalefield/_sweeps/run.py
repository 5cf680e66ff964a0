"""Sweeps: points handed to an executor, outcomes kept as they arrive."""

from __future__ import annotations

import json
import logging
import os
import pickle
import warnings
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from scalefield._progress import Progress
from scalefield._sweeps.calls import Call, Outcome, evaluate
from scalefield._sweeps.grid import Grid
from scalefield._sweeps.identity import identify
from scalefield._sweeps.journal import DATASET, Journal
from scalefield._sweeps.labelled import assemble, require, write_netcdf
from scalefield.errors import CheckpointWarning, Interrupted, SweepError

if TYPE_CHECKING:
    import xarray

__all__ = ["dataset_of", "run"]

logger = logging.getLogger(__name__)

# Points handed out at a time: enough for any cluster, few enough for the memory of an executor.
_HANDED_OUT = 4096


def run(
    call: Call,
    grid: Grid,
    executor: Any = None,
    *,
    store: str | os.PathLike[str] | None = None,
    version: str | None = None,
    retry_failed: bool = False,
    progress: Progress | bool | None = None,
) -> xarray.Dataset:
    """Evaluate a call on a grid; see `scalefield.sweeps.sweep`."""
    require("xarray")
    if store is not None:
        if not isinstance(store, (str, os.PathLike)):
            raise TypeError(f"store must be a path, got {store!r} of type {type(store).__name__}")
        # Found out now, not when there are results to lose.
        require("h5netcdf", "h5py")
    executor = _as_executor(executor, call)
    identity = identify(call, grid, version)
    journal = None if store is None else Journal(store, identity)
    try:
        outcomes = {} if journal is None else journal.outcomes
        if retry_failed:
            outcomes = {point: outcome for point, outcome in outcomes.items() if outcome.record is not None}
        outcomes = {point: outcome for point, outcome in outcomes.items() if 0 <= point < grid.size}
        todo = [point for point in grid.points() if point not in outcomes]
        logger.info("sweep of %d points, %d of them finished before", grid.size, len(outcomes))
        problem: BaseException | None = None
        try:
            with _reporting(progress) as report:
                _compute(call, grid, executor, todo, outcomes, journal, report)
        except (KeyboardInterrupt, SweepError) as error:
            problem = error
        dataset = dataset_of(identity, outcomes)
        if journal is not None:
            _write(dataset, journal.folder / DATASET)
    finally:
        if journal is not None:
            journal.close()
    n_failed = sum(outcome.record is None for outcome in outcomes.values())
    if n_failed:
        logger.warning("%d of %d points failed; the variable failure tells why", n_failed, grid.size)
    if problem is not None:
        where = f" and kept in {os.fspath(store)}" if store is not None else ""
        message = f"with {len(outcomes)} of {grid.size} points done{where}"
        if isinstance(problem, SweepError):
            raise SweepError(f"{problem}, {message}", dataset) from problem.__cause__
        raise Interrupted(f"interrupted {message}", dataset) from problem
    return dataset


def dataset_of(identity: dict[str, Any], outcomes: dict[int, Outcome]) -> xarray.Dataset:
    """The data set of a stored or finished sweep."""
    import numpy as np

    axes = {name: np.asarray(axis["labels"]) for name, axis in identity["grid"].items()}
    attributes = {
        "scalefield_version": identity["scalefield"],
        "function": identity["function"],
        "settings": json.dumps(identity["settings"]),
    }
    for name in ("seed", "version"):
        if identity[name] is not None:
            attributes[name] = identity[name]
    return assemble(axes, outcomes, attributes)


def _as_executor(executor: Any, call: Call) -> Any:
    if executor is None:
        return None
    if not isinstance(executor, Executor) and not callable(getattr(executor, "submit", None)):
        raise TypeError(
            "executor must be None or a concurrent.futures.Executor (of a dask client: client.get_executor()), got "
            f"{executor!r} of type {type(executor).__name__}"
        )
    if not isinstance(executor, Executor) and callable(getattr(executor, "get_executor", None)):
        # A dask client; its own futures are not those of concurrent.futures.
        executor = executor.get_executor(pure=False)
    # By name: importing process pools takes as long as scalefield's own modules.
    kinds = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(executor).__mro__}
    if "concurrent.futures.process.ProcessPoolExecutor" in kinds or any(kind.startswith("mpi4py.") for kind in kinds):
        try:
            pickle.dumps(call)
        except Exception as error:
            raise TypeError(
                "function_or_engine and settings must be such that other processes can be sent them, functions defined "
                f"at the top of a module: {error}"
            ) from error
    return executor


def _compute(
    call: Call,
    grid: Grid,
    executor: Any,
    todo: list[int],
    outcomes: dict[int, Outcome],
    journal: Journal | None,
    report: Progress | None,
) -> None:
    """Fill in the outcomes of some points."""

    def keep(outcome: Outcome) -> None:
        if outcome.failure:
            logger.info("point %s failed: %s", grid.labels(outcome.point), outcome.failure)
        if journal is not None:
            journal.append(outcome)
        outcomes[outcome.point] = outcome
        if report is not None:
            report(len(outcomes), grid.size)

    if report is not None:
        report(len(outcomes), grid.size)
    work = partial(evaluate, call)
    tasks = ((point, grid.values(point), grid.labels(point)) for point in todo)
    if executor is None:
        for task in tasks:
            keep(work(task))
        return
    if call.n_threads is None:
        # The executor's workers are the parallel ones.
        work = partial(evaluate, replace(call, n_threads=1))
    arrived: SimpleQueue[Future[Outcome]] = SimpleQueue()
    running: dict[Future[Outcome], int] = {}

    def hand_out() -> bool:
        task = next(tasks, None)
        if task is None:
            return False
        try:
            future = executor.submit(work, task)
        except (BrokenExecutor, RuntimeError) as error:
            raise SweepError(f"the executor takes no more points ({error})") from error
        running[future] = task[0]
        future.add_done_callback(arrived.put)
        return True

    outcome: Outcome | None = None
    try:
        while True:
            # What arrives is kept before more is handed out.
            while len(running) < _HANDED_OUT and arrived.empty() and hand_out():
                pass
            if not running:
                return
            future = arrived.get()
            outcome = _outcome(future, running[future])
            # A cluster computes again what a lost worker held and someone still has a future of.
            del running[future], future
            keep(outcome)
    except BaseException:
        for future in running:
            future.cancel()
        if outcome is not None and outcome.point not in outcomes:
            keep(outcome)
        for future in running:
            if future.done() and not future.cancelled() and future.exception() is None:
                keep(future.result())
        raise


def _outcome(future: Future[Outcome], point: int) -> Outcome:
    """What came of a point; functions' exceptions are caught where they run, others are the executor's."""
    try:
        return future.result()
    except KeyboardInterrupt:
        raise
    except BrokenExecutor as error:
        raise SweepError(f"the executor broke ({error})") from error
    except CancelledError as error:
        raise SweepError("the executor was shut down, or cancelled a point") from error
    except Exception as error:
        # Such as a point whose workers die again and again.
        return Outcome(point, None, f"{type(error).__name__}: {' '.join(str(error).split())}", repr(error))


def _write(dataset: xarray.Dataset, path: Path) -> None:
    """Write the data set; without room for it the journal still has everything."""
    try:
        write_netcdf(dataset, path)
    except OSError as error:
        logger.warning("%s not written: %s", path, error)
        warnings.warn(f"{path} not written: {error}", CheckpointWarning, stacklevel=4)


@contextmanager
def _reporting(progress: Progress | bool | None) -> Iterator[Progress | None]:
    """The function to report to: the caller's, that of a bar with the time left, or none."""
    if progress is None or progress is False:
        yield None
    elif progress is True:
        from rich import progress as rich_progress
        from rich.console import Console

        columns = (
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(),
            rich_progress.MofNCompleteColumn(),
            rich_progress.TimeElapsedColumn(),
            rich_progress.TimeRemainingColumn(),
        )
        with rich_progress.Progress(*columns, console=Console(stderr=True)) as bars:
            tasks: list[rich_progress.TaskID] = []

            def report(done: int, total: int, /) -> None:
                if not tasks:
                    # What was finished before says nothing about the speed.
                    tasks.append(bars.add_task("sweep", total=total, completed=done))
                bars.update(tasks[0], completed=done)

            yield report
    else:
        yield progress
