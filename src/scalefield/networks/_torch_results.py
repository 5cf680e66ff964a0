"""Result of networks trained with PyTorch: numbers only, so that it is read without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalefield._result import Archived, Averaged
from scalefield.networks.features import kernel_alignment, kernel_distance

__all__ = ["DeepNetworkRuns"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class DeepNetworkRuns(Averaged, Archived):
    r"""Independent training runs of a deep network; made by `train_vision_network` and `train_language_model`.

    Attributes
    ----------
    architecture : str
        "cnn", "residual" or "transformer".
    width : int
        N: channels and hidden units, or the dimension of the residual stream.
    gamma : float
        Richness.
    learning_rate : float
        eta; step t is at time tau = eta t. Parameters move by eta gamma^2 N times the gradient.
    batch_size : int
        Fresh images, or sequences, a step.
    objective : str
        "mse", whose losses are the mean of the squared error summed over outputs, or "cross-entropy", in nats.
    seed : int
        Of weights, data and test set.
    settings : dict
        Everything else that the numbers depend on: data, architecture, number format, device, version of PyTorch.
    steps : ndarray of int64, shape (T,)
        The recorded steps.
    loss : ndarray, shape (n_runs, T)
        Test loss, on data that training never sees.
    stream_loss : ndarray, shape (n_runs, T)
        The same on a fixed sample from what training draws from. Where it is lower than `loss`, training has gone
        through its source so often that it is no longer online.
    probe_steps : ndarray of int64, shape (K,)
        Steps at which the kernel was recorded; none unless asked for.
    probe_kernels : ndarray, shape (n_runs, K, P, P)
        Neural tangent kernels on P test inputs, averaged over outputs, in units in which f moves by
        -eta K (f - y) a step.
    probe_targets : ndarray, shape (P, outputs)
        Targets there.

    References
    ----------
    Bordelon, Atanasov & Pehlevan, arXiv:2409.17858, Sec. 5.2, App. A.2, A.3 and H.
    """

    architecture: str
    width: int
    gamma: float
    learning_rate: float
    batch_size: int
    objective: str
    seed: int
    steps: NDArray[np.int64]
    loss: Array
    stream_loss: Array
    probe_steps: NDArray[np.int64]
    probe_kernels: Array
    probe_targets: Array
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def times(self) -> Array:
        """tau = learning rate x step, shape (T,)."""
        return np.asarray(self.learning_rate * self.steps)

    def kernel_distance(self, *, centred: bool = False) -> Array:
        """1 - cosine between the kernels at step 0 and at `probe_steps`, shape (n_runs, K) (Definition A).

        See `networks.kernel_distance`.
        """
        return np.array(
            [[kernel_distance(run[0], kernel, centred=centred) for kernel in run] for run in self.probe_kernels]
        ).reshape(self.n_runs, self.probe_steps.size)

    def kernel_alignment(self, *, centred: bool = False) -> Array:
        """Cosine between kernel and task at `probe_steps`, shape (n_runs, K) (Definition B).

        See `networks.kernel_alignment`.
        """
        return np.array(
            [
                [kernel_alignment(kernel, self.probe_targets, centred=centred) for kernel in run]
                for run in self.probe_kernels
            ]
        ).reshape(self.n_runs, self.probe_steps.size)

    def __repr__(self) -> str:
        return (
            f"DeepNetworkRuns({self.architecture}, width {self.width}, gamma {self.gamma:g}, learning rate "
            f"{self.learning_rate:g}, batch size {self.batch_size}; seed {self.seed}, {self.n_runs} run(s), "
            f"{int(self.steps[-1])} steps, {self.objective} {self.mean[0]:.6g} -> {self.mean[-1]:.6g})"
        )
