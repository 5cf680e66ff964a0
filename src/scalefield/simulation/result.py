"""The result of a simulation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scalefield._result import Result

__all__ = ["Simulation"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class Simulation(Result):
    """Learning curves of independent runs of a model; made by `simulate`.

    Parameters
    ----------
    model : Model
        What was simulated.
    seed : int
        The seed; with the model it determines every number of every run.
    steps : ndarray of int64, shape (n_steps + 1,)
        Steps done, 0..n_steps.
    loss : ndarray, shape (n_runs, n_steps + 1)
        ``loss[r, t]`` is the test loss of run r after t steps, without label noise.
    """

    seed: int
    steps: NDArray[np.int64]
    loss: Array

    @property
    def n_runs(self) -> int:
        """Number of runs."""
        return int(self.loss.shape[0])

    @property
    def n_steps(self) -> int:
        """Number of training steps."""
        return int(self.steps[-1])

    @property
    def mean(self) -> Array:
        """Loss averaged over runs, shape (n_steps + 1,)."""
        average: Array = self.loss.mean(axis=0)
        return average

    @property
    def standard_error(self) -> Array:
        """Standard error of `mean`, from the sample variance over runs; nan for a single run."""
        if self.n_runs < 2:
            return np.full(self.steps.size, np.nan)
        error: Array = self.loss.std(axis=0, ddof=1) / np.sqrt(self.n_runs)
        return error

    def __repr__(self) -> str:
        final = f"{self.mean[-1]:.6g}"
        if self.n_runs > 1:
            final += f" ± {self.standard_error[-1]:.2g}"
        return (
            f"Simulation({self.model.summary()}; seed {self.seed}, {self.n_runs} run(s), {self.n_steps} steps, "
            f"loss {self.mean[0]:.6g} -> {final})"
        )
