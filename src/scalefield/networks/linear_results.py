"""Results of linear networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalefield._result import Archived, Averaged
from scalefield.spectrum import Task

__all__ = ["LinearNetworkFlow", "LinearNetworkRuns"]

Array = NDArray[np.float64]


class _OfTask(Archived):
    """A result with a task."""

    @classmethod
    def _restored(cls, settings: dict[str, Any]) -> dict[str, Any]:
        return {**settings, "spectrum": Task.from_description(settings["spectrum"])}


@dataclass(frozen=True, eq=False, repr=False)
class LinearNetworkRuns(Averaged, _OfTask):
    r"""Independent training runs of a linear network; made by `train_linear_network`.

    Attributes
    ----------
    spectrum : PowerLawSpectrum or Spectrum
        The task.
    width, gamma, learning_rate, batch_size, label_noise, seed
        As given.
    centred : bool
        Whether f(0) was subtracted.
    method : str
        "literal" or "reduced".
    steps : ndarray of int64, shape (T,)
        The recorded steps.
    loss : ndarray, shape (n_runs, T)
        Test loss sum_k lambda_k (w*_k - beta_k)^2, without label noise.
    readout_norm : ndarray, shape (n_runs, T), or None
        |w|^2/N, about 1 before training.
    singular_values : ndarray, shape (n_runs, T, K), or None
        The largest K = min(8, N, M) singular values of A/sqrt(N), decreasing; the square of the first is `spike`.
    readout_overlap : ndarray, shape (n_runs, T), or None
        Squared cosine between w and the left singular vector of the largest singular value of A.
    learned_overlap : ndarray, shape (n_runs, T), or None
        Squared cosine between beta and its right one; nan where beta = 0.
    imbalance : ndarray, shape (n_runs, T), or None
        Frobenius norm of [A A^T - w w^T - A(0) A(0)^T + w(0) w(0)^T]/N, which gradient flow keeps at 0.
    kernel_distance : ndarray, shape (n_runs, T), or None
        1 - cosine of the kernels before and during training (`features.kernel_distance`), as operators on functions;
        to rounding, about 1e-15.
    alignment : ndarray, shape (n_runs, T), or None
        Cosine between kernel and task (`features.kernel_alignment`), over the population.

    References
    ----------
    Bordelon, Atanasov & Pehlevan, arXiv:2409.17858, Appendix G, Eqs. 87-88.
    """

    spectrum: Task
    width: float
    gamma: float
    learning_rate: float
    batch_size: float
    label_noise: float
    centred: bool
    seed: int
    method: str
    steps: NDArray[np.int64]
    loss: Array
    readout_norm: Array | None = None
    singular_values: Array | None = None
    readout_overlap: Array | None = None
    learned_overlap: Array | None = None
    imbalance: Array | None = None
    kernel_distance: Array | None = None
    alignment: Array | None = None

    @property
    def n_steps(self) -> int:
        """The last recorded step."""
        return int(self.steps[-1])

    @property
    def spike(self) -> Array | None:
        """Largest eigenvalue of A^T A/N, shape (n_runs, T); None where singular values were not recorded."""
        if self.singular_values is None:
            return None
        spike: Array = self.singular_values[:, :, 0] ** 2
        return spike

    def __repr__(self) -> str:
        return (
            f"LinearNetworkRuns(width {self.width:g}, gamma {self.gamma:g}, learning rate {self.learning_rate:g}, "
            f"batch size {self.batch_size:g}; seed {self.seed}, {self.n_runs} run(s), {self.n_steps} steps, "
            f"loss {self.mean[0]:.6g} -> {self.mean[-1]:.6g})"
        )


@dataclass(frozen=True, eq=False, repr=False)
class LinearNetworkFlow(_OfTask):
    r"""Gradient flow of an infinitely wide linear network; made by `solve_linear_network_flow`.

    Attributes
    ----------
    spectrum : PowerLawSpectrum or Spectrum
        The task.
    gamma : float
        Richness gamma0.
    times : ndarray, shape (T,)
        tau = learning rate x step.
    loss : ndarray, shape (T,)
        L(tau).
    readout_norm : ndarray, shape (T,)
        |w|^2/N = sqrt(1 + gamma0^2 |beta|^2), which is also the one eigenvalue of A^T A/N that is not 1: the spike.
    kernel_scale : ndarray, shape (T,)
        a = 1 + |w|^2/N; 2 before training.
    effective_time : ndarray, shape (T,)
        u = integral of a dtau: modes with lambda_k u > 1 are learned.
    kernel_distance : ndarray, shape (T,)
        1 - cosine between the kernels at times 0 and tau.
    alignment : ndarray, shape (T,)
        Cosine between kernel and task.
    local_exponent : ndarray, shape (T,)
        -d log L/d log tau.

    References
    ----------
    Bordelon, Atanasov & Pehlevan, arXiv:2409.17858, Appendix G; closed form: docs/theory/linear-networks.md.
    """

    spectrum: Task
    gamma: float
    times: Array
    loss: Array
    readout_norm: Array
    kernel_scale: Array
    effective_time: Array
    kernel_distance: Array
    alignment: Array
    local_exponent: Array

    @property
    def spike(self) -> Array:
        """Largest eigenvalue of A^T A/N: equal to `readout_norm`; all others are 1."""
        return self.readout_norm

    def __repr__(self) -> str:
        return (
            f"LinearNetworkFlow(gamma {self.gamma:g}; tau {self.times[0]:.3g} to {self.times[-1]:.3g}, "
            f"loss {self.loss[0]:.6g} -> {self.loss[-1]:.6g})"
        )
