"""Sweeps: a function or an engine evaluated on a grid, by any executor, with results that survive a kill."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from scalefield._progress import Progress
from scalefield._sweeps.calls import as_call
from scalefield._sweeps.grid import as_grid
from scalefield._sweeps.journal import read_store, stored_identity
from scalefield._sweeps.labelled import require
from scalefield._sweeps.run import dataset_of, run
from scalefield._validate import as_count, as_seed
from scalefield.dmft import solve_dmft
from scalefield.flow import solve_gradient_flow
from scalefield.simulation import simulate

if TYPE_CHECKING:
    from concurrent.futures import Executor

    import xarray

__all__ = ["ENGINES", "load_sweep", "sweep"]

ENGINES: dict[str, Callable[..., Any]] = {"dmft": solve_dmft, "flow": solve_gradient_flow, "simulate": simulate}


def sweep(
    function_or_engine: Callable[..., Any] | str,
    grid: Mapping[str, Any],
    executor: Executor | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    store: str | os.PathLike[str] | None = None,
    seed: int | None = None,
    variables: str | tuple[str, ...] | list[str] | None = None,
    version: str | None = None,
    retry_failed: bool = False,
    n_threads: int | None = None,
    progress: Progress | bool | None = None,
) -> xarray.Dataset:
    """Evaluate a function or an engine at all points of a grid, with labelled results.

    Points are independent of one another and may be computed anywhere: results do not depend on the executor, nor on
    the number or the fate of its workers. A point that raises is recorded with its error, and the others go on.

    Parameters
    ----------
    function_or_engine : callable, or {"flow", "dmft", "simulate"}
        Called at each point with the grid's names as keyword arguments. Returns a number, an array, a mapping from
        names to arrays or to pairs ``(dims, array)`` as in xarray, an xarray object, or a solution of an engine, whose
        curves become variables along "time" (tau) or "step". An engine is named, or given: "flow" is
        `solve_gradient_flow`, "dmft" `solve_dmft`, "simulate" `simulate`. For engines, and for all functions with an
        argument `model`, names may be fields of `Model` (width, gamma, ...) and of its spectrum (alpha, beta, n_modes,
        where inf stands for infinitely many): they make the model.
    grid : mapping
        Names and their values: ``{"beta": [0.5, 1.0], "width": [64, numpy.inf]}``; points are the product. Values are
        numbers, strings or booleans; other objects, such as spectra, come as a mapping from labels to objects:
        ``{"spectrum": {"digits": sf.datasets.digits_spectrum(), ...}}``.
    executor : concurrent.futures.Executor, optional
        What runs the points: threads (compiled kernels release the GIL), processes, a dask cluster
        (``client.get_executor()``, or the client), an MPI pool (``mpi4py.futures``). None (default): one point after
        the other, in this process. It is left open.
    settings : mapping, optional
        Arguments that are the same at all points, such as ``{"times": times, "width": 256}``, or a `model` of which the
        grid varies some fields.
    store : path, optional
        Folder in which results are kept as they arrive, made if absent: the same call goes on from there, whatever
        ended the one before, and computes only what is missing. When the sweep ends, `results.nc` in it is the data
        set, which any netCDF reader opens; see `load_sweep` for a sweep under way or killed.
    seed : int, optional
        In [0, 2^63). If given, each point gets an argument `seed` of its own, a hash of this one and the point's names
        and values: neither the order of points nor the rest of the grid changes it. "simulate" without a seed draws
        one (or takes that of the store), which the data set tells. For common random numbers at all points give
        ``settings={"seed": ...}`` instead.
    variables : str or sequence of str, optional
        What to keep, such as ``["loss"]``. Default: everything a function returns; of solutions the curves (two-time
        arrays and averages over runs when named).
    version : str, optional
        A label of your own for what a function depends on. Its text, its defaults and what it captured are compared
        with those of the store anyhow; functions that it calls, and data that it reads, are not seen.
    retry_failed : bool
        Whether to try points again that failed before, according to the store (default: no).
    n_threads : int, optional
        Threads that engines may use at a point; default 1 where there is an executor, else all.
    progress : callable or bool, optional
        Called as ``progress(points_done, n_points)`` after each point; True for a bar with the time left, on standard
        error.

    Returns
    -------
    xarray.Dataset
        Dimensions and coordinates of the grid and of the results; the variables, nan where there are none; `status`
        ("finished", "failed" or "pending") and `failure` (the error). Attributes tell version, function, settings
        and seed. A coordinate that differs from point to point in other ways than in length becomes a variable, along
        "time_index" for example.

    Raises
    ------
    TypeError, ValueError
        For arguments of the wrong type or value, names that the function does not take among them.
    BackendUnavailableError
        If the packages of the extra [sweep] are not installed.
    ScalefieldError
        If the store belongs to another grid, function, setting or version (the message tells which), or is in use.
    SweepError
        If the executor breaks, as a process pool does when one of its processes is killed; `.partial` is the data set
        so far. (A dask cluster goes on, and tries the points of a lost worker again.)
    Interrupted
        On Ctrl-C, at once; `.partial` is the data set so far.

    Warns
    -----
    CheckpointWarning
        If a result could not be written to the store; the sweep goes on.

    Notes
    -----
    Besides the function a point costs some 0.1 ms (threads, processes) to 2 ms (dask) and, with a store, a record
    in an append-only journal with checksums. A record is the operating system's when the next point is handled, so that
    kills lose only points under way; loss of power may cost the last second. netCDF because it is one file, replaced
    in one piece, that everything reads; a zarr store is a folder of many that change one by one.

    Examples
    --------
    The rich exponents of the paper, 2 beta/(1 + beta) for hard tasks and beta for easy ones:

    >>> import scalefield as sf
    >>> settings = {"alpha": 1.5, "times": [1e9, 1e10]}
    >>> flows = sf.sweep("flow", {"gamma": [0.0, 1.0], "beta": [0.5, 1.5]}, settings=settings)
    >>> flows.loss.dims, flows.attrs["function"]
    (('gamma', 'beta', 'time'), 'scalefield.flow.solve_gradient_flow')
    >>> flows.local_exponent.sel(gamma=1.0, time=1e10).round(2).values
    array([0.67, 1.5 ])

    Functions of one's own, by threads:

    >>> from concurrent.futures import ThreadPoolExecutor
    >>> def bottleneck(beta, width):
    ...     return sf.bottleneck_loss(sf.PowerLawSpectrum(1.5, beta), width=width)
    >>> with ThreadPoolExecutor() as threads:
    ...     losses = sf.sweep(bottleneck, {"beta": [0.5, 1.0], "width": [100, 1000]}, threads)
    >>> losses.value.shape, set(losses.status.values.ravel().tolist())
    ((2, 2), {'finished'})
    """
    function = _as_function(function_or_engine)
    points = as_grid("grid", grid)
    fixed = _as_settings(settings)
    if seed is not None:
        seed = as_seed("seed", seed)
    elif function is simulate and "seed" not in points.names and "seed" not in fixed:
        seed = _seed_of_store(store)
    call = as_call(
        function,
        points,
        fixed,
        variables=_as_variables(variables),
        seed=seed,
        n_threads=None if n_threads is None else as_count("n_threads", n_threads),
    )
    if version is not None and not isinstance(version, str):
        raise TypeError(f"version must be a string, got {version!r} of type {type(version).__name__}")
    return run(
        call, points, executor, store=store, version=version, retry_failed=bool(retry_failed), progress=progress
    )


def load_sweep(store: str | os.PathLike[str]) -> xarray.Dataset:
    """Return what a sweep has stored so far: also of one that was killed, or that goes on elsewhere.

    Parameters
    ----------
    store : path
        The folder that was given to `sweep`.

    Returns
    -------
    xarray.Dataset
        As `sweep` returns it; points that are missing have the status "pending".

    Raises
    ------
    FileNotFoundError
        If there is no sweep in the folder.
    ScalefieldError
        If what is there cannot be read.
    BackendUnavailableError
        If xarray is not installed.

    Examples
    --------
    >>> import scalefield as sf
    >>> def square(x):
    ...     return x**2
    >>> _ = sf.sweep(square, {"x": [1, 2, 3]}, store="squares")
    >>> sf.load_sweep("squares").value.values
    array([1, 4, 9])
    """
    require("xarray")
    if not isinstance(store, (str, os.PathLike)):
        raise TypeError(f"store must be a path, got {store!r} of type {type(store).__name__}")
    return dataset_of(*read_store(store))


def _as_function(value: Any) -> Callable[..., Any]:
    if isinstance(value, str):
        if value not in ENGINES:
            raise ValueError(
                f"function_or_engine must be a function or one of {', '.join(map(repr, ENGINES))}, got {value!r}"
            )
        return ENGINES[value]
    if not callable(value):
        raise TypeError(
            f"function_or_engine must be a function or the name of an engine, got {value!r} of type "
            f"{type(value).__name__}"
        )
    function: Callable[..., Any] = value
    return function


def _as_settings(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise TypeError(
            f"settings must be a mapping from names to values, got {value!r} of type {type(value).__name__}"
        )
    return dict(value)


def _as_variables(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, (tuple, list)) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"variables must be a sequence of strings, got {value!r} of type {type(value).__name__}")
    if not names:
        raise ValueError("variables must have at least one name, got none")
    return tuple(names)


def _seed_of_store(store: Any) -> int:
    """The seed of a sweep that was begun, or a new one."""
    identity = stored_identity(store) if isinstance(store, (str, os.PathLike)) else None
    seed = None if identity is None else identity.get("seed")
    return seed if isinstance(seed, int) else as_seed("seed", None)
