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
    statistics : tuple of str
        What is recorded beside the loss: "weight_norm", "kernel_scale", "spike", "alignment".
    modes : ndarray of int64
        Modes whose errors are recorded, counted from 0.
    replacement : bool
        Whether batches from a data set are drawn with replacement.
    """

    model: Model
    n_steps: int
    n_runs: int
    seed: int
    method: str
    record_steps: NDArray[np.int64]
    dtype: np.dtype[Any]
    features: str | Callable[..., Any] = "gaussian"
    statistics: tuple[str, ...] = ()
    modes: NDArray[np.int64] | None = None
    replacement: bool = False

    @property
    def records_state(self) -> bool:
        """Whether anything but the loss is recorded."""
        return bool(self.statistics) or self.modes is not None or self.model.is_offline

    def describe(self) -> dict[str, Any]:
        """What a checkpoint must agree with: all but the number of runs."""
        return {
            "model": self.model.describe(),
            "n_steps": self.n_steps,
            "seed": self.seed,
            "method": self.method,
            "record": self.record_steps,
            "dtype": self.dtype.name,
            "features": self.features if isinstance(self.features, str) else _name(self.features),
            "statistics": list(self.statistics),
            "modes": np.zeros(0, dtype=np.int64) if self.modes is None else self.modes,
            "replacement": self.replacement,
        }


def _name(function: Any) -> str:
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', repr(function))}"
