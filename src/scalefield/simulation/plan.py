"""What is to be simulated, checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalefield.model import Model

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """What is to be simulated; checked.

    Parameters
    ----------
    model : Model
        With a finite number of modes for the literal method.
    n_steps, n_runs, seed : int
        Training steps, independent runs and the seed of all random streams.
    method : str
        "literal" or "reduced".
    record_steps : ndarray of int64
        Steps whose loss is kept, increasing, from 0..n_steps.
    dtype : dtype
        float64 or float32.
    features : str or callable
        "gaussian", "rademacher", "uniform" or a function.
    """

    model: Model
    n_steps: int
    n_runs: int
    seed: int
    method: str
    record_steps: NDArray[np.int64]
    dtype: np.dtype[Any]
    features: str | Callable[..., Any]
