"""Learning curves of many models at once, with labelled results."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from scalefield._progress import Progress
from scalefield._sweeps.calls import as_call
from scalefield._sweeps.grid import as_grid
from scalefield._sweeps.run import run
from scalefield._validate import as_count
from scalefield.dmft import solve_dmft
from scalefield.flow import solve_gradient_flow

if TYPE_CHECKING:
    from concurrent.futures import Executor

    import xarray

__all__ = ["learning_curves"]


def learning_curves(
    model_grid: Mapping[str, Any],
    times: ArrayLike | None = None,
    *,
    n_steps: int | None = None,
    executor: Executor | None = None,
    store: str | os.PathLike[str] | None = None,
    variables: str | tuple[str, ...] | list[str] = "loss",
    retry_failed: bool = False,
    progress: Progress | bool | None = None,
    **settings: Any,
) -> xarray.Dataset:
    r"""Solve learning curves on a grid of models: gradient flow at given times, or SGD step by step.

    Parameters
    ----------
    model_grid : mapping
        Fields of `Model` (width, gamma, batch_size, ...) and of its spectrum (alpha, beta, n_modes, where inf stands
        for infinitely many), each with one value, or with several: those are the axes. Spectra and other objects vary
        as a mapping from labels to objects; under the name `model` a `Model` may be given, which the others change.
    times : array_like, shape (T,), optional
        tau = learning rate x step, increasing: the curves are those of `solve_gradient_flow`.
    n_steps : int, optional
        Number of SGD steps: the curves are those of `solve_dmft`. Either this or `times`.
    executor : concurrent.futures.Executor, optional
        What runs the models; as in `sweep`, as are `store`, `retry_failed` and `progress`.
    store : path, optional
        Folder in which curves are kept as they arrive, and from which the same call goes on.
    variables : str or sequence of str
        Curves to keep (default: the test loss), such as "local_exponent" or "train_loss".
    retry_failed : bool
        Whether to solve models again that failed before, according to the store (default: no).
    progress : callable or bool, optional
        Called as ``progress(models_done, n_models)``; True for a bar with the time left.
    **settings
        Further arguments of the engine: rtol, projection, for SGD also method, order and steps.

    Returns
    -------
    xarray.Dataset
        The curves over the axes of the grid and "time" (tau) or "step"; `status` and `failure` of each model.

    Raises
    ------
    TypeError, ValueError
        For arguments of the wrong type or value; of models that cannot be solved the failure is recorded.
    BackendUnavailableError
        If the packages of the extra [sweep] are not installed.
    ScalefieldError, SweepError, Interrupted
        As `sweep` raises them.

    Notes
    -----
    A curve of gradient flow over 12 decades takes 10 to 40 ms, see `solve_gradient_flow` and `solve_dmft`.

    References
    ----------
    Bordelon, Atanasov & Pehlevan, arXiv:2409.17858, Figs. 2-4.

    Examples
    --------
    >>> import numpy as np
    >>> import scalefield as sf
    >>> grid = {"alpha": 1.5, "beta": 0.5, "width": [100, 1000, np.inf], "gamma": [0.0, 1.0]}
    >>> curves = sf.scaling.learning_curves(grid, np.geomspace(1.0, 1e6, 7))
    >>> dict(curves.loss.sizes)
    {'width': 3, 'gamma': 2, 'time': 7}

    Features have helped where the width is not the bottleneck:

    >>> gain = curves.loss.sel(gamma=0.0, time=1e6) / curves.loss.sel(gamma=1.0, time=1e6)
    >>> gain.round(1).values
    array([ 1. ,  1. , 10.4])
    """
    if (times is None) == (n_steps is None):
        raise ValueError(f"either times or n_steps must be given, got times {times!r} and n_steps {n_steps!r}")
    if not isinstance(model_grid, Mapping):
        raise TypeError(
            f"model_grid must be a mapping from names to values, got {model_grid!r} of type {type(model_grid).__name__}"
        )
    axes = {name: values for name, values in model_grid.items() if _varies(values)}
    fixed = {name: value for name, value in model_grid.items() if name not in axes}
    if not axes:
        raise ValueError("model_grid must have a field with several values, got none")
    twice = sorted(model_grid.keys() & settings.keys())
    if twice:
        raise ValueError(f"model_grid and the engine's settings must have different names, got {', '.join(twice)}")
    engine: Any
    if times is not None:
        engine, settings = solve_gradient_flow, settings | {"times": times}
    else:
        engine, settings = solve_dmft, settings | {"n_steps": as_count("n_steps", n_steps)}
    kept = (variables,) if isinstance(variables, str) else tuple(variables)
    grid = as_grid("model_grid", axes)
    call = as_call(engine, grid, fixed | settings, variables=kept, seed=None, n_threads=None)
    return run(call, grid, executor, store=store, retry_failed=retry_failed, progress=progress)


def _varies(values: Any) -> bool:
    """Whether a field has several values: all but numbers, text, and single objects."""
    if hasattr(values, "ndim"):
        return bool(values.ndim > 0)
    return isinstance(values, (Mapping, Sequence)) and not isinstance(values, (str, bytes))
