"""Which steps of a run are recorded."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["as_steps", "few_steps", "log_spaced_steps", "recorded_steps"]

# Log-spaced steps beside step 0.
LOG_STEPS = 200


def log_spaced_steps(n_steps: int) -> NDArray[np.int64]:
    """0 and 200 log-spaced steps to n_steps; all where there are no more."""
    if n_steps <= LOG_STEPS:
        return np.arange(n_steps + 1)
    # Rounding merges the first ones; the rest is filled up with later ones.
    count, spaced = 0, np.zeros(0, dtype=np.int64)
    while spaced.size < LOG_STEPS:
        count += LOG_STEPS - spaced.size
        spaced = np.unique(np.rint(np.geomspace(1.0, n_steps, count)).astype(np.int64))
    return np.append(0, spaced)


def few_steps(n_steps: int, count: int) -> NDArray[np.int64]:
    """0 and up to `count` log-spaced steps to n_steps, fewer where rounding merges them."""
    return np.append(0, np.unique(np.rint(np.geomspace(1.0, n_steps, count)).astype(np.int64)))


def recorded_steps(record: str | ArrayLike, n_steps: int, spaced: NDArray[np.int64]) -> NDArray[np.int64]:
    """The argument `record` of public functions: "log" for `spaced`, "all", or increasing steps."""
    if not isinstance(record, str):
        return as_steps("record", record, n_steps)
    if record == "log":
        return spaced
    if record == "all":
        return np.arange(n_steps + 1)
    raise ValueError(f"record must be 'log', 'all' or increasing steps, got {record!r}")


def as_steps(name: str, steps: ArrayLike, n_steps: int) -> NDArray[np.int64]:
    """Return increasing whole numbers from 0..n_steps as int64."""
    try:
        raw = np.asarray(steps)
        whole = raw.dtype.kind in "iu" or (raw.dtype.kind == "f" and bool((raw == np.rint(raw)).all()))
    except ValueError as error:
        raise TypeError(f"{name} must be an array of integers, got {type(steps).__name__}") from error
    if raw.dtype.kind not in "iuf":
        raise TypeError(f"{name} must be an array of integers, got dtype {raw.dtype}")
    if raw.ndim != 1 or raw.size == 0 or not whole:
        raise ValueError(f"{name} must be a one-dimensional array of whole numbers, got {steps!r}")
    if (np.diff(raw) <= 0).any() or raw[0] < 0 or raw[-1] > n_steps:
        raise ValueError(f"{name} must increase from at least 0 to at most n_steps = {n_steps}, got {steps!r}")
    return raw.astype(np.int64)
