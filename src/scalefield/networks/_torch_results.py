"""Result of networks trained with PyTorch: numbers only, so that it is read without PyTorch."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalefield._files import read_archive, write_archive
from scalefield.errors import ScalefieldError
from scalefield.networks.features import kernel_alignment, kernel_distance

__all__ = ["DeepNetworkRuns"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class DeepNetworkRuns:
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

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if isinstance(value, np.ndarray):
                value.setflags(write=False)

    @property
    def n_runs(self) -> int:
        """Number of runs."""
        return int(self.loss.shape[0])

    @property
    def times(self) -> Array:
        """tau = learning rate x step, shape (T,)."""
        return np.asarray(self.learning_rate * self.steps)

    @property
    def mean(self) -> Array:
        """Test loss averaged over runs, shape (T,)."""
        average: Array = self.loss.mean(axis=0)
        return average

    @property
    def standard_error(self) -> Array:
        """Standard error of `mean`, from the sample variance over runs; nan for a single run."""
        if self.n_runs < 2:
            return np.full(self.steps.size, np.nan)
        error: Array = self.loss.std(axis=0, ddof=1) / math.sqrt(self.n_runs)
        return error

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

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to a compressed .npz file, whole or not at all.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        from scalefield import __version__

        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        others = {name: value for name, value in values.items() if name not in arrays}
        others["settings"] = dict(self.settings)
        write_archive(path, {"class": type(self).__name__, "version": __version__, **others}, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DeepNetworkRuns:
        """Read back what `save` wrote, unchanged.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ScalefieldError
            If the file is not an archive of this class.
        """
        settings, arrays = read_archive(path)
        kind = settings.pop("class", None)
        if kind != cls.__name__:
            raise ScalefieldError(f"{os.fspath(path)}: holds {kind or 'something else'}, not a {cls.__name__}")
        try:
            settings.pop("version")
            values: dict[str, Any] = {**settings, **arrays}
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise ScalefieldError(f"{os.fspath(path)}: written by another version ({error})") from error

    def __repr__(self) -> str:
        return (
            f"DeepNetworkRuns({self.architecture}, width {self.width}, gamma {self.gamma:g}, learning rate "
            f"{self.learning_rate:g}, batch size {self.batch_size}; seed {self.seed}, {self.n_runs} run(s), "
            f"{int(self.steps[-1])} steps, {self.objective} {self.mean[0]:.6g} -> {self.mean[-1]:.6g})"
        )
