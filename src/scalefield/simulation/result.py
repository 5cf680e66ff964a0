"""The result of a simulation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scalefield._result import Averaged, Result, standard_error

__all__ = ["Simulation"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class Simulation(Averaged, Result):
    """Learning curves of independent runs of a model; made by `simulate`.

    Parameters
    ----------
    model : Model
        What was simulated.
    seed : int
        The seed; with the model it determines every number of every run.
    steps : ndarray of int64, shape (T,)
        The recorded steps.
    loss : ndarray, shape (n_runs, T)
        ``loss[r, i]`` is the test loss of run r after steps[i] steps, without label noise.
    method : str
        "literal" or "reduced".
    dtype : str
        Precision of weights and features.
    features : str
        Their law.
    device : str
        Where it ran.
    train_loss : ndarray, shape (n_runs, T), or None
        Offline: mean of the squared residuals over the samples, label noise included.
    weight_norm, kernel_scale, spike, alignment : ndarray, shape (n_runs, T), or None
        The statistics asked for; see `simulate`.
    modes : ndarray of int64, shape (K,), or None
        Modes whose errors were recorded.
    mode_errors : ndarray, shape (n_runs, T, K), or None
        v_0k of these modes.
    tail : float
        Where far modes entered by the law of their sum: the norm of their random part over the smallest eigenvalue of
        A(0) Lambda A(0)^T, the largest of all runs. Their law leaves out cumulants from the third on, of the relative
        size 1/512 (K^{-1/2} for K = 2^18 modes kept). 0 if all modes were taken one by one.
    """

    seed: int
    steps: NDArray[np.int64]
    loss: Array
    method: str = "literal"
    dtype: str = "float64"
    features: str = "gaussian"
    device: str = "cpu"
    train_loss: Array | None = None
    weight_norm: Array | None = None
    kernel_scale: Array | None = None
    spike: Array | None = None
    alignment: Array | None = None
    modes: NDArray[np.int64] | None = None
    mode_errors: Array | None = None
    tail: float = 0.0

    @property
    def n_steps(self) -> int:
        """The last recorded step."""
        return int(self.steps[-1])

    @property
    def train_mean(self) -> Array:
        """Train loss averaged over runs, shape (T,); nan online."""
        if self.train_loss is None:
            return np.full(self.steps.size, np.nan)
        average: Array = self.train_loss.mean(axis=0)
        return average

    @property
    def train_standard_error(self) -> Array:
        """Standard error of `train_mean`; nan for a single run, and online."""
        return np.full(self.steps.size, np.nan) if self.train_loss is None else standard_error(self.train_loss)

    @property
    def generalization_gap(self) -> Array | None:
        """Test loss on labels as noisy as those of the samples, less the train loss, shape (n_runs, T); None online."""
        if self.train_loss is None:
            return None
        gap: Array = self.loss + self.model.label_noise**2 - self.train_loss
        return gap

    def __repr__(self) -> str:
        final = f"{self.mean[-1]:.6g}"
        if self.n_runs > 1:
            final += f" ± {self.standard_error[-1]:.2g}"
        return (
            f"Simulation({self.model.summary()}; seed {self.seed}, {self.n_runs} run(s), {self.n_steps} steps, "
            f"loss {self.mean[0]:.6g} -> {final})"
        )
