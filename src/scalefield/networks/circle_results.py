"""Learning curves of multilayer perceptrons on the circle."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scalefield._result import Archived, Averaged
from scalefield._validate import as_float
from scalefield.errors import ScalefieldError
from scalefield.networks.circle_task import CircleTask
from scalefield.networks.features import kernel_alignment, kernel_distance
from scalefield.scaling import PowerLawFit, fit_power_law, time_exponent

__all__ = ["LossSpike", "MultilayerTraining"]

Array = NDArray[np.float64]

# Windows in which spikes are looked for: steps at least, and samples.
_SPIKE_STEPS, _SPIKE_SAMPLES = 129, 4096


class LossSpike(NamedTuple):
    """A stretch of steps in which the loss of a run was far above what it had been.

    Attributes
    ----------
    run : int
        Row of the result.
    start, stop : int
        First step, and last one plus one.
    ratio : float
        Highest running median of the typical loss there over the lowest before.
    """

    run: int
    start: int
    stop: int
    ratio: float


@dataclass(frozen=True, eq=False, repr=False)
class MultilayerTraining(Averaged, Archived):
    r"""Learning curves of multilayer perceptrons on the circle; made by `train_multilayer`.

    Parameters
    ----------
    task : CircleTask
        The target.
    depth, width : int
        Hidden layers L, and units in each N.
    activation_power : float
        q of relu^q.
    gamma, learning_rate : float
        Richness, and eta: tau = eta x step.
    batch_size : int
        Fresh samples a step.
    seed : int
        The seed; with the rest it determines every number of every run.
    n_test : int
        Angles of the test grid.
    dtype : str
        Precision of the weights.
    steps : ndarray of int64, shape (T,)
        Recorded steps.
    loss : ndarray, shape (n_seeds, T)
        ``loss[r, i]`` is run r's test loss, the mean of (y - f)^2 over the circle, after steps[i] steps.
    batch_loss : ndarray of float32, shape (n_seeds, n_steps)
        Mean of (y - f)^2 over the batch of each step, before the step.
    typical_batch_loss : ndarray of float32, shape (n_seeds, n_steps)
        Geometric mean of the same, of which the few samples near a peak of the target are no large part.
    kernel_steps : ndarray of int64, shape (S,), or None
        Steps whose kernel was recorded.
    kernels : ndarray, shape (n_seeds, S, n, n), or None
        Empirical neural tangent kernels gamma^2 N sum_p df(theta_i)/dp df(theta_j)/dp at n equally spaced angles.
    """

    task: CircleTask
    depth: int
    width: int
    activation_power: float
    gamma: float
    learning_rate: float
    batch_size: int
    seed: int
    n_test: int
    dtype: str
    steps: NDArray[np.int64]
    loss: Array
    batch_loss: NDArray[np.float32]
    typical_batch_loss: NDArray[np.float32]
    kernel_steps: NDArray[np.int64] | None = None
    kernels: Array | None = None

    @property
    def n_seeds(self) -> int:
        """Number of runs."""
        return int(self.loss.shape[0])

    @property
    def times(self) -> Array:
        """tau = learning_rate x step of the recorded steps, shape (T,)."""
        tau: Array = self.learning_rate * self.steps.astype(np.float64)
        return tau

    @property
    def source_exponent(self) -> float:
        """Beta of the task for this network."""
        return self.task.source_exponent(self.activation_power)

    def predicted_exponent(self, rich: bool = True) -> float:
        """chi(beta) of feature learning [10], or beta of the lazy limit."""
        return time_exponent(self.source_exponent, rich)

    def measured_exponent(self, window: tuple[float, float] | None = None) -> PowerLawFit:
        """Power law of the loss in steps.

        Parameters
        ----------
        window : (float, float), optional
            First and last step; by default the last decade, from n_steps/10 to n_steps.

        Returns
        -------
        PowerLawFit
            Its error is that over runs, or from blocks of residuals for a single one.

        Raises
        ------
        ValueError
            If there are fewer than three recorded steps in the window.
        """
        start, stop = window or (self.steps[-1] / 10.0, self.steps[-1])
        inside = (self.steps >= start) & (self.steps <= stop) & (self.steps > 0)
        if int(inside.sum()) < 3:
            raise ValueError(f"window must hold at least three recorded steps, got {window!r}")
        curves = self.loss[:, inside]
        return fit_power_law(self.steps[inside], curves if self.n_seeds > 1 else curves[0], window=None)

    def spikes(self, factor: float = 2.0) -> tuple[LossSpike, ...]:
        """Where training became unstable for a while.

        Parameters
        ----------
        factor : float
            How far, above 1, the loss must exceed its lowest value so far.

        Returns
        -------
        tuple of LossSpike
            By run and step; stretches that overlap or touch count as one.

        Raises
        ------
        TypeError, ValueError
            If the factor is not a finite number above 1.

        Notes
        -----
        The loss is the running median of `typical_batch_loss` over 129 steps, or as many as have 4,096 samples. A
        single step may well have a loss several times another's: samples near a peak of the target kick the whole
        network. Spikes are stretches of half a window or more in which it stays high.
        """
        # Not needed by the rest of the package.
        from scipy import ndimage

        factor = as_float("factor", factor, minimum=1.0, exclusive=True)
        window = max(_SPIKE_STEPS, math.ceil(_SPIKE_SAMPLES / self.batch_size))
        found: list[LossSpike] = []
        for run, losses in enumerate(self.typical_batch_loss):
            if losses.size < window:
                continue
            # Whole windows only.
            median = ndimage.median_filter(losses, window)[window // 2 : losses.size - (window - 1) // 2]
            ratio = median / np.minimum.accumulate(median)
            above = np.flatnonzero(ratio > factor)
            for group in np.split(above, np.flatnonzero(np.diff(above) > window) + 1):
                if group.size:
                    start, stop = group[0] + window // 2, group[-1] + window // 2 + 1
                    found.append(LossSpike(run, int(start), int(stop), float(ratio[group].max())))
        return tuple(found)

    @property
    def kernel_distance(self) -> Array:
        """1 - cosine between K(t) and K(0), shape (n_seeds, S): definition A of feature learning (App. H).

        As the function of this name; `kernel_change` also sees the kernel grow.

        Raises
        ------
        ScalefieldError
            If no kernels, or none at step 0, were recorded.
        """
        initial = self._initial_kernels()
        pairs = zip(initial, self._recorded_kernels(), strict=True)
        return np.array([[kernel_distance(first, kernel) for kernel in run] for first, run in pairs])

    @property
    def kernel_change(self) -> Array:
        """|K(t) - K(0)|/|K(0)| in the Frobenius norm, shape (n_seeds, S): definition A, with the kernel's growth.

        Raises
        ------
        ScalefieldError
            If no kernels, or none at step 0, were recorded.
        """
        first = self._initial_kernels()[:, None]
        assert self.kernels is not None
        distance: Array = np.linalg.norm(self.kernels - first, axis=(2, 3)) / np.linalg.norm(first, axis=(2, 3))
        return distance

    @property
    def kernel_alignment(self) -> Array:
        """y.K y/(|K| |y|^2) on the kernel's angles, shape (n_seeds, S): definition B (App. H).

        The target's frequencies below half the number of angles make y.

        Raises
        ------
        ScalefieldError
            If no kernels were recorded.
        """
        kernels = self._recorded_kernels()
        y, _ = self.task.on_grid(kernels.shape[-1])
        return np.array([[kernel_alignment(kernel, y) for kernel in run] for run in kernels])

    def linearised_loss(self) -> Array:
        r"""What gradient descent on the network linearised at its start would give, shape (n_seeds, T).

        .. math:: L(t) = \sum_i (1 - \eta \lambda_i)^{2t}\, \langle u_i, y \rangle^2 + \text{power of other frequencies}

        with eigenvalues and eigenfunctions of the run's own empirical kernel at step 0, on its n angles; infinite
        batches. A lazy network of finite width follows this, not the kernel of infinite width.

        Raises
        ------
        ScalefieldError
            If no kernels, or none at step 0, were recorded.
        """
        kernels = self._initial_kernels()
        n = kernels.shape[-1]
        y, rest = self.task.on_grid(n)
        losses = np.empty((self.n_seeds, self.steps.size))
        for run, kernel in enumerate(kernels):
            values, vectors = np.linalg.eigh(kernel / n)
            power = (vectors.T @ y) ** 2 / n
            decay = np.abs(1.0 - self.learning_rate * values) ** (2.0 * self.steps[:, None])
            losses[run] = decay @ power + rest
        return losses

    def _recorded_kernels(self) -> Array:
        if self.kernels is None:
            raise ScalefieldError("no kernels were recorded; give kernel_points to train_multilayer")
        return self.kernels

    def _initial_kernels(self) -> Array:
        kernels = self._recorded_kernels()
        assert self.kernel_steps is not None
        if self.kernel_steps[0] != 0:
            raise ScalefieldError(f"the kernel at step 0 was not recorded; the first is at {self.kernel_steps[0]}")
        return kernels[:, 0]

    @classmethod
    def _restored(cls, settings: dict[str, Any]) -> dict[str, Any]:
        return {**settings, "task": CircleTask(**settings["task"])}

    def __repr__(self) -> str:
        final = f"{self.mean[-1]:.4g}"
        if self.n_seeds > 1:
            final += f" ± {self.standard_error[-1]:.2g}"
        return (
            f"MultilayerTraining(q = {self.task.exponent:g}, depth {self.depth}, width {self.width}, "
            f"relu^{self.activation_power:g}, gamma = {self.gamma:g}; {self.n_seeds} run(s), {self.steps[-1]} steps, "
            f"loss {self.mean[0]:.4g} -> {final})"
        )
