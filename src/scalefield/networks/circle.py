r"""Multilayer perceptrons on the circle, lazy to rich (Sec. 5.1, App. A.1; theory section 11)."""

from __future__ import annotations

import logging
import math
import os
import threading
import warnings
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft, ndimage
from scipy.special import gamma as gamma_function

from scalefield._files import read_archive, write_archive
from scalefield._memory import require_memory
from scalefield._progress import Progress
from scalefield._steps import as_steps
from scalefield._threads import single_threaded_blas, thread_count
from scalefield._validate import as_count, as_float, as_seed
from scalefield.errors import CheckpointWarning, DivergenceError, Interrupted, ScalefieldError
from scalefield.kernels import InfiniteWidthKernel, circle_eigenvalues
from scalefield.networks.features import kernel_alignment, kernel_distance
from scalefield.scaling import PowerLawFit, fit_power_law, time_exponent
from scalefield.spectrum import Spectrum

__all__ = ["CircleTask", "LossSpike", "MultilayerTraining", "train_multilayer"]

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]

# Steps and runs are words of the random generator's counter.
_COUNTER_LIMIT = 2**32
_DTYPES = ("float64", "float32")
# Log-spaced steps whose loss, and whose kernel, is recorded beside step 0.
_LOG_STEPS = 60
_KERNEL_STEPS = 12
# Equally spaced angles at which F_0 is held, for interpolation; where gamma N is smaller than this, its error of about
# 1e-4/(gamma N) is too large and F_0 is computed at every sample.
_TABLE, _TABULATED = 2**14, 100.0
# Samples of one product where networks are evaluated on a grid.
_COLUMNS = 256
# A batch's loss above this many times the target's power is a divergence.
_THRESHOLD = 1e12
# Steps of one call of the kernel at most: how often a finished part is noted.
_CHUNK_STEPS = 1000
_POLL_SECONDS = 0.1
# Windows in which spikes are looked for: steps at least, and samples.
_SPIKE_STEPS, _SPIKE_SAMPLES = 129, 4096
# Raised when the meaning of a checkpoint's arrays changes.
_FORMAT = 1


def _kernels() -> ModuleType:
    """The compiled kernels: importing them compiles them."""
    from scalefield._native import circle_steps

    return circle_steps


@dataclass(frozen=True)
class CircleTask:
    r"""A target on the circle with a power-law Fourier series.

    .. math::
        y(\theta) = c \sum_{k=1}^{K} k^{-q} \cos k\theta, \qquad \langle y^2 \rangle = \tfrac12 \sum_k (c k^{-q})^2

    with theta uniform. For a kernel with eigenvalues ~ k^-alpha its source exponent is beta = (2 q - 1)/alpha, and
    alpha is twice the power of relu [14].

    Parameters
    ----------
    exponent : float
        q > 1/2.
    n_modes : int
        K, the highest frequency (default 2^14 - 1).
    mean_square : float
        Mean of y^2 over the circle, which fixes c (default 1).

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is out of its range.

    References
    ----------
    Bordelon, Atanasov & Pehlevan, arXiv:2409.17858, Sec. 5.1, Eqs. 13-14.

    Examples
    --------
    >>> import scalefield as sf
    >>> task = sf.networks.CircleTask(1.0)
    >>> task.source_exponent(), task.source_exponent(activation_power=2)
    (0.5, 0.25)
    >>> task([0.0, 3.0]).round(6)
    array([11.340938, -0.763942])
    """

    exponent: float
    n_modes: int = 2**14 - 1
    mean_square: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "exponent", as_float("exponent", self.exponent, minimum=0.5, exclusive=True))
        object.__setattr__(self, "n_modes", as_count("n_modes", self.n_modes))
        object.__setattr__(
            self, "mean_square", as_float("mean_square", self.mean_square, minimum=0.0, exclusive=True)
        )

    @cached_property
    def coefficients(self) -> Array:
        """c k^-q for k = 1..K, shape (K,)."""
        raw = np.arange(1, self.n_modes + 1) ** -self.exponent
        raw *= math.sqrt(2.0 * self.mean_square / float(raw @ raw))
        raw.setflags(write=False)
        return raw

    def source_exponent(self, activation_power: float = 1.0) -> float:
        """Beta = (2 q - 1)/(2 p) for networks of relu^p."""
        power = as_float("activation_power", activation_power, minimum=0.5, exclusive=True)
        return (2.0 * self.exponent - 1.0) / (2.0 * power)

    def spectrum(self, activation_power: float = 1.0, depth: int = 2) -> Spectrum:
        """The task in the eigenfunctions of the infinitely wide network's kernel, up to frequency K.

        Eigenvalues are those of the kernel itself, so that tau = learning_rate x step of `train_multilayer`: with
        ``Model(task.spectrum())`` `solve_gradient_flow` gives the learning curve of the infinitely wide, lazy network.

        Raises
        ------
        TypeError, ValueError
            For arguments of the wrong type or range.

        Examples
        --------
        >>> import scalefield as sf
        >>> task = sf.networks.CircleTask(1.0)
        >>> lazy = sf.solve_gradient_flow(sf.Model(task.spectrum()), [0.0, 100.0])
        >>> lazy.loss.round(4)
        array([1.    , 0.0676])
        """
        kernel = InfiniteWidthKernel("relu", power=activation_power, depth=depth)
        modes = circle_eigenvalues(kernel, self.n_modes)
        return modes.spectrum(self.exponent, mean_square=self.mean_square)

    def __call__(self, theta: ArrayLike) -> Array:
        """Values of the target at any angles, of their shape, right to 1e-11 (its largest value is y(0)).

        Raises
        ------
        TypeError, ValueError
            If the angles are not finite real numbers.
        """
        angles = np.asarray(theta)
        if angles.dtype.kind not in "iuf":
            raise TypeError(f"theta must be an array of real numbers, got dtype {angles.dtype}")
        if not np.isfinite(angles).all():
            raise ValueError("theta must be finite, got an angle that is not")
        flat = np.ascontiguousarray(np.mod(angles.astype(np.float64), 2.0 * math.pi).ravel())
        values = np.empty(flat.size)
        _kernels().evaluate_series(flat, self._spread, values)
        return values.reshape(angles.shape)

    @cached_property
    def _spread(self) -> Array:
        """Values on a grid that, spread by psi, make the target (`circle_steps`)."""
        kernels = _kernels()
        # psi is narrow enough for a grid twice as fine as the highest frequency asks for.
        size = fft.next_fast_len(4 * (self.n_modes + 1), real=True)
        size = max(size, 4 * kernels.SPREAD)
        half = 0.5 * kernels.SPREAD * 2.0 * math.pi / size
        node, weight = np.polynomial.legendre.leggauss(96)
        node, weight = 0.5 * (node + 1.0), 0.5 * weight
        psi = np.exp(kernels.SHAPE * (np.sqrt(1.0 - node**2) - 1.0)) * weight
        k = np.arange(1, self.n_modes + 1)
        # sum_j cos(k theta_j) psi(theta - theta_j) = (size/2 pi) psi^(k) cos(k theta), but for aliases
        transform = np.zeros(self.n_modes)
        for x, value in zip(half * node, psi, strict=True):
            transform += value * np.cos(k * x)
        transform *= 2.0 * half * size / (2.0 * math.pi)
        series = np.zeros(size // 2 + 1)
        series[1 : self.n_modes + 1] = 0.5 * size * self.coefficients / transform
        grid: Array = fft.irfft(series, size)
        return grid

    def _on_grid(self, n_points: int) -> tuple[Array, float]:
        """Frequencies below n/2 at n equally spaced angles, and the power of the rest."""
        kept = min(self.n_modes, (n_points - 1) // 2)
        series = np.zeros(n_points // 2 + 1)
        series[1 : kept + 1] = 0.5 * n_points * self.coefficients[:kept]
        rest = self.coefficients[kept:]
        return fft.irfft(series, n_points), 0.5 * float(rest @ rest)


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
class MultilayerTraining:
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

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                value.setflags(write=False)

    @property
    def n_seeds(self) -> int:
        """Number of runs."""
        return int(self.loss.shape[0])

    @property
    def times(self) -> Array:
        """tau = learning_rate x step of the recorded steps, shape (T,)."""
        return self.learning_rate * self.steps

    @property
    def mean(self) -> Array:
        """Loss averaged over runs, shape (T,)."""
        average: Array = self.loss.mean(axis=0)
        return average

    @property
    def standard_error(self) -> Array:
        """Standard error of `mean`, from the sample variance over runs; nan for a single run."""
        if self.n_seeds < 2:
            return np.full(self.steps.size, np.nan)
        error: Array = self.loss.std(axis=0, ddof=1) / math.sqrt(self.n_seeds)
        return error

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
        y, _ = self.task._on_grid(kernels.shape[-1])
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
        y, rest = self.task._on_grid(n)
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

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to a compressed .npz file, whole or not at all.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        from scalefield import __version__

        settings: dict[str, Any] = {"class": type(self).__name__, "version": __version__, "task": _describe(self.task)}
        arrays = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                arrays[field.name] = value
            elif field.name != "task":
                settings[field.name] = value
        write_archive(path, settings, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
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
            return cls(task=CircleTask(**settings.pop("task")), **settings, **arrays)
        except (KeyError, TypeError, ValueError) as error:
            raise ScalefieldError(f"{os.fspath(path)}: written by another version ({error})") from error

    def __repr__(self) -> str:
        final = f"{self.mean[-1]:.4g}"
        if self.n_seeds > 1:
            final += f" ± {self.standard_error[-1]:.2g}"
        return (
            f"MultilayerTraining(q = {self.task.exponent:g}, depth {self.depth}, width {self.width}, "
            f"relu^{self.activation_power:g}, gamma = {self.gamma:g}; {self.n_seeds} run(s), {self.steps[-1]} steps, "
            f"loss {self.mean[0]:.4g} -> {final})"
        )


def _describe(task: CircleTask) -> dict[str, Any]:
    return {field.name: getattr(task, field.name) for field in fields(task)}


@dataclass(frozen=True)
class _Plan:
    """A call of `train_multilayer`, checked."""

    task: CircleTask
    depth: int
    width: int
    activation_power: float
    gamma: float
    learning_rate: float
    batch_size: int
    n_steps: int
    n_seeds: int
    seed: int
    n_test: int
    dtype: str
    kernel_points: int
    steps: NDArray[np.int64]
    kernel_steps: NDArray[np.int64]

    @property
    def constant(self) -> float:
        """c with c^2 E relu(z)^{2q} = 1, E relu^{2q} = 2^{q-1} Gamma(q + 1/2)/sqrt(pi)."""
        q = self.activation_power
        return float((2.0 ** (q - 1.0) * gamma_function(q + 0.5) / math.sqrt(math.pi)) ** -0.5)

    @property
    def is_tabulated(self) -> bool:
        """Whether F_0 is interpolated."""
        return self.gamma * self.width >= _TABULATED

    @property
    def bytes_per_run(self) -> int:
        size = 4 if self.dtype == "float32" else 8
        columns = self.batch_size + _COLUMNS
        weights = (1 if self.is_tabulated else 2) * (self.depth - 1) * self.width**2
        kernel = 6 * 8 * self.kernel_points * (self.width + self.kernel_points) * self.depth
        return size * (weights + (2 * self.depth + 1) * self.width * columns) + 8 * (_TABLE + self.n_test) + kernel

    @property
    def shared_bytes(self) -> int:
        kernels = self.kernel_steps.size * self.kernel_points**2
        return self.n_seeds * (8 * self.n_steps + 8 * (self.steps.size + kernels)) + 64 * self.task.n_modes

    def describe(self) -> dict[str, Any]:
        """What a checkpoint must agree with."""
        described: dict[str, Any] = {"task": _describe(self.task)}
        for field in fields(self):
            if field.name != "task":
                value = getattr(self, field.name)
                described[field.name] = value.tolist() if isinstance(value, np.ndarray) else value
        return described


class _Worker:
    """One thread's network and workspace, used for one run after the other."""

    def __init__(self, plan: _Plan, target: Array, rest: float, stop: NDArray[np.uint8]) -> None:
        from scalefield._native import rng

        self.plan, self.target, self.rest, self.stop = plan, target, rest, stop
        self.native, self.rng = _kernels(), rng
        self.angles_key = rng.stream_key(plan.seed, rng.ANGLES)
        depth, n, size, dtype = plan.depth, plan.width, plan.batch_size, np.dtype(plan.dtype)
        self.first = np.empty((n, 2), dtype)
        self.hidden = np.empty((depth - 1, n, n), dtype)
        self.readout = np.empty(n, dtype)
        self.initial = np.zeros(_TABLE if plan.is_tabulated else 0)
        self.first_initial = np.empty((0, 2), dtype)
        self.hidden_initial = np.empty((0, 0, 0), dtype)
        self.readout_initial = np.empty(0, dtype)
        self.initial_test = np.zeros(plan.n_test)
        self.batch = (
            *(np.empty(size) for _ in range(2)),
            *(np.empty(size, dtype) for _ in range(3)),
            *(np.empty((depth, n, size), dtype) for _ in range(2)),
            # Also for products of matrices and vectors, of n entries.
            np.empty((n, max(size, 1)), dtype),
            np.empty((min(n, 64), n), dtype),
        )
        self.grid = (
            *(np.empty(_COLUMNS, dtype) for _ in range(2)),
            *(np.empty((depth, n, _COLUMNS), dtype) for _ in range(2)),
            np.empty(_COLUMNS, dtype),
        )
        self.test_angles = 2.0 * math.pi / plan.n_test * np.arange(plan.n_test)

    def start(self, run: int) -> bool:
        """Draw the weights and make F_0; False if stopped."""
        rng = self.rng
        key = rng.stream_key(self.plan.seed, rng.NETWORK)
        word, zero = np.uint64(run), np.uint64(0)
        layers = [self.first, *self.hidden, self.readout[None, :]]
        for layer, weights in enumerate(layers):
            for unit, row in enumerate(weights):
                rng.fill_normals(*key, np.uint64(unit), word, np.uint64(layer), zero, row)
        if not self.evaluate(self.test_angles, self.initial_test):
            return False
        if self.plan.is_tabulated:
            return self.evaluate(2.0 * math.pi / _TABLE * np.arange(_TABLE), self.initial)
        weights = self.first, self.hidden, self.readout
        self.first_initial, self.hidden_initial, self.readout_initial = (array.copy() for array in weights)
        return True

    def evaluate(self, theta: Array, values_out: Array) -> bool:
        """F, without F_0; False if stopped."""
        plan = self.plan
        status = self.native.evaluate_network(
            theta, plan.gamma, plan.activation_power, plan.constant, self.first, self.hidden, self.readout, *self.grid,
            self.stop, values_out,
        )  # fmt: skip
        return bool(status == self.native.OK)

    def test_loss(self) -> float | None:
        """Mean of (y - f)^2 over the circle; None if stopped."""
        values = np.empty(self.plan.n_test)
        if not self.evaluate(self.test_angles, values):
            return None
        error = self.target - (values - self.initial_test)
        return float(error @ error) / error.size + self.rest

    def kernel(self) -> Array:
        r"""gamma^2 N sum_p df df at the plan's angles.

        Each layer adds the product of two matrices of scalar products: of activities below, and of
        d(gamma N f)/dh above.
        """
        plan = self.plan
        n, width = plan.kernel_points, plan.width
        theta = 2.0 * math.pi / n * np.arange(n)
        shape = (plan.depth, width, n)
        phi, slope = np.empty(shape), np.empty(shape)
        hidden, readout = self.hidden.astype(np.float64), self.readout.astype(np.float64)
        self.native.forward(
            np.cos(theta), np.sin(theta), self.first.astype(np.float64), hidden, plan.activation_power, plan.constant,
            phi, slope,
        )  # fmt: skip
        kernel: Array = phi[-1].T @ phi[-1] / width
        delta = readout[:, None] * slope[-1]
        for layer in range(plan.depth - 1, 0, -1):
            kernel += (delta.T @ delta) * (phi[layer - 1].T @ phi[layer - 1]) / width**2
            delta = slope[layer - 1] * (hidden[layer - 1].T @ delta) / math.sqrt(width)
        kernel += (delta.T @ delta) * np.cos(theta[:, None] - theta) / width
        # Products of BLAS need not be exactly symmetric.
        return np.asarray(0.5 * (kernel + kernel.T))

    def advance(self, run: int, t_first: int, t_last: int, loss_out: Array, typical_out: Array) -> tuple[int, int]:
        """Take steps t_first..t_last-1: status and step."""
        plan = self.plan
        status, step = self.native.advance(
            t_first, t_last, run, *self.angles_key, plan.learning_rate, plan.gamma, plan.activation_power,
            plan.constant, _THRESHOLD * plan.task.mean_square, plan.task._spread, self.initial, self.first_initial,
            self.hidden_initial, self.readout_initial, self.first, self.hidden, self.readout, *self.batch, self.stop, loss_out, typical_out,
        )  # fmt: skip
        return int(status), int(step)


class _Checkpoint:
    """A file with the finished runs; refused if it belongs to another call."""

    def __init__(self, path: str | os.PathLike[str], plan: _Plan) -> None:
        from scalefield import __version__

        self.path = Path(path)
        self.settings: dict[str, Any] = {
            "class": "MultilayerCheckpoint",
            "format": _FORMAT,
            "version": __version__,
            **plan.describe(),
        }

    def restore(self, arrays_out: dict[str, NDArray[Any]]) -> None:
        for left in self.path.parent.glob(f".{self.path.name}.*.part"):
            with suppress(OSError):
                left.unlink()
        if not self.path.exists():
            # A folder that cannot be written to is told before any work.
            self._write(arrays_out)
            return
        settings, arrays = read_archive(self.path)
        for name, value in self.settings.items():
            if settings.get(name) != value:
                raise ScalefieldError(
                    f"{self.path}: checkpoint of another training, with {name} {settings.get(name)!r:.80} instead of "
                    f"{value!r:.80}; give another path, or remove the file to start anew"
                )
        try:
            for name, array in arrays_out.items():
                array[...] = arrays[name]
        except (KeyError, ValueError) as error:
            raise ScalefieldError(f"{self.path}: not a checkpoint of this version of scalefield ({error})") from error

    def write(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Replace the file; if that fails the old one stays and training goes on."""
        try:
            self._write(arrays)
        except OSError as error:
            logger.warning("checkpoint %s not written: %s", self.path, error)
            warnings.warn(f"checkpoint {self.path} not written: {error}", CheckpointWarning, stacklevel=2)

    def _write(self, arrays: dict[str, NDArray[Any]]) -> None:
        write_archive(self.path, self.settings, arrays, compressed=False)


class _Runs:
    """Runs shared out among threads; every thread takes the next run until none is left."""

    def __init__(self, plan: _Plan, checkpoint: _Checkpoint | None) -> None:
        self.plan, self.checkpoint = plan, checkpoint
        self.stop = np.zeros(1, dtype=np.uint8)
        n = plan.kernel_points
        self.arrays: dict[str, NDArray[Any]] = {
            "loss": np.full((plan.n_seeds, plan.steps.size), np.nan),
            "batch_loss": np.full((plan.n_seeds, plan.n_steps), np.nan, dtype=np.float32),
            "typical_batch_loss": np.full((plan.n_seeds, plan.n_steps), np.nan, dtype=np.float32),
            "kernels": np.full((plan.n_seeds, plan.kernel_steps.size, n, n), np.nan),
            "finished": np.zeros(plan.n_seeds, dtype=bool),
        }
        if checkpoint is not None:
            checkpoint.restore(self.arrays)
        self.finished = self.arrays["finished"]
        # Run: step, and the loss there.
        self.divergences: dict[int, tuple[int, float]] = {}
        self._last_step = plan.n_steps
        self._steps_done = np.where(self.finished, plan.n_steps, 0)
        self._waiting = [run for run in range(plan.n_seeds) if not self.finished[run]][::-1]
        self._lock = threading.Lock()
        self._target, self._rest = plan.task._on_grid(plan.n_test)
        # Made here, not by several threads.
        _ = plan.task._spread
        halts = np.concatenate((plan.steps, plan.kernel_steps, np.arange(0, plan.n_steps, _CHUNK_STEPS)))
        self._halts = np.unique(np.append(halts, plan.n_steps))

    def execute(self, n_threads: int, progress: Progress | None) -> None:
        total = self.plan.n_seeds * self.plan.n_steps
        written = int(self.finished.sum())
        if progress is not None:
            progress(int(self._steps_done.sum()), total)
        with ThreadPoolExecutor(n_threads, thread_name_prefix="scalefield") as pool:
            try:
                pending = {pool.submit(self._work) for _ in range(n_threads)}
                while pending:
                    done, pending = wait(pending, _POLL_SECONDS, return_when=FIRST_EXCEPTION)
                    for future in done:
                        future.result()
                    if progress is not None:
                        progress(int(self._steps_done.sum()), total)
                    if int(self.finished.sum()) > written:
                        written = int(self.finished.sum())
                        self._write()
            except BaseException:
                # Leaving the pool waits for its threads, which see the flag within a step.
                self.stop[0] = 1
                raise
            finally:
                pool.shutdown()
                if int(self.finished.sum()) > written:
                    self._write()

    def _write(self) -> None:
        if self.checkpoint is not None:
            with self._lock:
                finished = self.finished.copy()
            arrays = {name: array.copy() for name, array in self.arrays.items()}
            # Other runs go on meanwhile, and begin anew.
            arrays["finished"] = finished
            self.checkpoint.write(arrays)

    def _work(self) -> None:
        worker = _Worker(self.plan, self._target, self._rest, self.stop)
        while not self.stop[0]:
            with self._lock:
                if not self._waiting:
                    return
                run = self._waiting.pop()
            if worker.start(run):
                self._train(run, worker)

    def _train(self, run: int, worker: _Worker) -> None:
        plan, native = self.plan, worker.native
        buffer, typical = np.empty(_CHUNK_STEPS), np.empty(_CHUNK_STEPS)
        t = 0
        while t <= self._last_step:
            place = int(np.searchsorted(plan.steps, t))
            if place < plan.steps.size and plan.steps[place] == t:
                loss = worker.test_loss()
                if loss is None:
                    return
                self.arrays["loss"][run, place] = loss
            place = int(np.searchsorted(plan.kernel_steps, t))
            if place < plan.kernel_steps.size and plan.kernel_steps[place] == t:
                self.arrays["kernels"][run, place] = worker.kernel()
            if t == plan.n_steps:
                break
            t_end = int(self._halts[np.searchsorted(self._halts, t, side="right")])
            status, step = worker.advance(run, t, t_end, buffer, typical)
            if status == native.STOPPED:
                return
            self.arrays["batch_loss"][run, t:step] = buffer[: step - t]
            self.arrays["typical_batch_loss"][run, t:step] = typical[: step - t]
            if status == native.DIVERGED:
                with self._lock:
                    self.divergences[run] = (step, float(buffer[step - t]))
                    self._last_step = min(self._last_step, step)
                return
            t = t_end
            self._steps_done[run] = t
        with self._lock:
            self.finished[run] = t == plan.n_steps

    def result(self, runs: NDArray[np.bool_], n_steps: int) -> MultilayerTraining | None:
        """Some runs, up to a step; None if nothing was recorded."""
        plan = self.plan
        kept = plan.steps <= n_steps
        if not kept.any() or not runs.any():
            return None
        kernels: Array | None = None
        kernel_steps: NDArray[np.int64] | None = None
        if plan.kernel_points:
            kernel_steps = plan.kernel_steps[plan.kernel_steps <= n_steps]
            kernels = self.arrays["kernels"][runs, : kernel_steps.size]
        return MultilayerTraining(
            plan.task,
            plan.depth,
            plan.width,
            plan.activation_power,
            plan.gamma,
            plan.learning_rate,
            plan.batch_size,
            plan.seed,
            plan.n_test,
            plan.dtype,
            plan.steps[kept],
            np.ascontiguousarray(self.arrays["loss"][runs][:, kept]),
            *(np.ascontiguousarray(self.arrays[name][runs, :n_steps]) for name in ("batch_loss", "typical_batch_loss")),
            kernel_steps,
            kernels,
        )


def train_multilayer(
    task: CircleTask,
    depth: int = 2,
    width: int = 512,
    activation_power: float = 1.0,
    gamma: float = 1.0,
    learning_rate: float = 0.05,
    batch_size: int = 128,
    n_steps: int = 10_000,
    n_seeds: int = 1,
    seed: int | None = None,
    record: str | ArrayLike = "log",
    *,
    kernel_points: int | None = None,
    kernel_steps: ArrayLike | None = None,
    n_test: int = 4096,
    dtype: str = "float64",
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> MultilayerTraining:
    r"""Train multilayer perceptrons on a task on the circle by online SGD.

    With z = (cos theta, sin theta), L hidden layers of width N, phi(h) = c relu(h)^q, c^2 = 2, 2/3, 2/15 for q = 1, 2,
    3, and standard normal initial weights,

    .. math::
        h^1 = W^0 z, \quad h^{l+1} = \tfrac{1}{\sqrt N} W^l \phi(h^l), \quad
        F = \tfrac{1}{\gamma N} w \cdot \phi(h^L), \quad f = F - F_0 ,

    and each step takes B fresh angles, uniform on the circle, and moves all weights by

    .. math:: \eta \gamma^2 N \, \tfrac{1}{B} \sum_b (y_b - f_b)\, \nabla F(\theta_b) .

    This is the mean-field (muP) parameterisation. The first steps are the same for every gamma, up to O(gamma): those
    of a kernel that tends to ``InfiniteWidthKernel("relu", power=q, depth=L)`` as N grows. Weights then move by
    O(gamma), so that gamma -> 0 is lazy. At fixed gamma and large N, features move by an amount that does not depend
    on N.

    Parameters
    ----------
    task : CircleTask
        The target.
    depth, width : int
        Hidden layers L >= 1, and units in each, N >= 2. With one layer half of the frequencies cannot be learned
        lazily (their eigenvalues are 0 by parity).
    activation_power : float
        q of relu^q, at least 1.
    gamma : float
        Richness > 0.
    learning_rate : float
        eta > 0; tau = eta x step is the time of gradient flow. Stable, at first, below 2 over the kernel's largest
        eigenvalue (3 for relu and two layers: 2/1.38), and less as the kernel grows.
    batch_size : int
        B, fresh samples a step.
    n_steps, n_seeds : int
        Steps, and independent runs (initial weights and samples).
    seed : int, optional
        In [0, 2^63). Run r of a seed has the same numbers whatever `n_seeds` and the number of threads. None draws a
        seed, which the result tells.
    record : {"log", "all"} or array_like of int
        Steps whose test loss is kept: 0 and 60 log-spaced ones (default), all, or increasing steps from 0 to n_steps.
    kernel_points : int, optional
        Equally spaced angles at which the empirical neural tangent kernel is recorded; none if None.
    kernel_steps : array_like of int, optional
        Steps whose kernel is recorded; by default 0 and about 12 log-spaced ones.
    n_test : int
        Equally spaced angles on which the test loss is taken.
    dtype : {"float64", "float32"}
        Of weights and activities; targets, outputs' centres and losses are in double precision. Single precision is
        twice as fast and rounds weights by 6e-8 a step: enough for gamma of 0.1 or more, where steps are far larger.
    checkpoint : path, optional
        A file that finished runs are written to, and taken from if it is there and belongs to the same call.
    progress : callable, optional
        Called from this thread about ten times a second as ``progress(done, total)``, in steps summed over runs.

    Returns
    -------
    MultilayerTraining

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described.
    InsufficientMemoryError
        If a single run does not fit into the available memory.
    DivergenceError
        If a batch's loss is not finite or exceeds 1e12 mean_square; `step` is the earliest such step of all runs,
        `partial` holds what all runs have recorded up to it, or is None.
    Interrupted
        On Ctrl-C; `partial` holds the runs finished by then, in order, or is None.
    ScalefieldError
        If the checkpoint is damaged or belongs to another call.

    Warns
    -----
    CheckpointWarning
        If a checkpoint could not be written; training goes on.

    Notes
    -----
    6 (L - 1) N^2 B operations a step, by BLAS, one run a thread; and 2 (L - 1) N^2 n_test for each recorded step.
    Memory a thread: (L - 1) N^2 weights and (2 L + 1) N (B + 256) activities. Kernels: n^2 numbers each.

    The target is evaluated to 1e-11 by a non-uniform Fourier transform, at 14 points an angle whatever the number of
    modes. F_0 is interpolated between 2^14 angles where gamma N >= 100, to a few 1e-6, and computed at every sample
    elsewhere, at a third of a step's cost; on the test grid it is exact. The test loss takes the target's frequencies below
    n_test/2 on the grid and adds the power of the others, which no network has learned: right to 1e-4 as long as
    frequencies near n_test/2 are not learned, eta t lambda_k << 1.

    Results do not depend on the number of threads. On another machine, whose BLAS sums in another order, they differ
    by rounding, which training amplifies.

    References
    ----------
    Bordelon, Atanasov & Pehlevan, arXiv:2409.17858, Sec. 5.1 and App. A.1.

    Examples
    --------
    >>> import scalefield as sf
    >>> task = sf.networks.CircleTask(1.0, n_modes=255)
    >>> training = sf.networks.train_multilayer(task, width=32, n_steps=50, batch_size=16, n_seeds=2, seed=0)
    >>> training.loss.shape, bool(training.mean[-1] < 0.5 * training.mean[0])
    ((2, 40), True)
    """
    if checkpoint is not None:
        if not isinstance(checkpoint, (str, os.PathLike)):
            raise TypeError(f"checkpoint must be a path, got {checkpoint!r} of type {type(checkpoint).__name__}")
        if seed is None and os.path.exists(checkpoint):
            # The same call goes on with the seed that was drawn first.
            seed = read_archive(checkpoint)[0].get("seed")
    plan = _plan(
        task, depth, width, activation_power, gamma, learning_rate, batch_size, n_steps, n_seeds, seed, record,
        kernel_points, kernel_steps, n_test, dtype,
    )  # fmt: skip
    n_threads = min(thread_count(), plan.n_seeds)
    require_memory(
        plan.shared_bytes + n_threads * plan.bytes_per_run,
        f"training {n_threads} network(s) of width {plan.width} at a time for {plan.n_steps} steps",
    )
    runs = _Runs(plan, None if checkpoint is None else _Checkpoint(checkpoint, plan))
    try:
        with single_threaded_blas():
            runs.execute(n_threads, progress)
    except KeyboardInterrupt as interrupt:
        count = int(runs.finished.sum())
        partial = runs.result(runs.finished, plan.n_steps)
        raise Interrupted(f"interrupted with {count} of {plan.n_seeds} runs finished", partial) from interrupt
    everything = np.ones(plan.n_seeds, dtype=bool)
    if runs.divergences:
        step, run = min((step, run) for run, (step, _) in runs.divergences.items())
        raise DivergenceError(
            f"the loss of run {run} diverged at step {step} ({runs.divergences[run][1]:.3g}); learning_rate "
            f"{plan.learning_rate:g}, gamma {plan.gamma:g}: a smaller learning rate may be stable",
            step,
            runs.result(everything, step),
        )
    result = runs.result(everything, plan.n_steps)
    assert result is not None
    return result


def _plan(
    task: CircleTask,
    depth: int,
    width: int,
    activation_power: float,
    gamma: float,
    learning_rate: float,
    batch_size: int,
    n_steps: int,
    n_seeds: int,
    seed: int | None,
    record: str | ArrayLike,
    kernel_points: int | None,
    kernel_steps: ArrayLike | None,
    n_test: int,
    dtype: str,
) -> _Plan:
    """Check everything once."""
    if not isinstance(task, CircleTask):
        raise TypeError(f"task must be a CircleTask, got {task!r} of type {type(task).__name__}")
    depth, width = as_count("depth", depth), as_count("width", width, minimum=2)
    n_steps, n_seeds = as_count("n_steps", n_steps), as_count("n_seeds", n_seeds)
    for name, value in (("n_steps", n_steps), ("n_seeds", n_seeds)):
        if value >= _COUNTER_LIMIT:
            raise ValueError(f"{name} must be below 2**32, got {value}")
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    if isinstance(record, str):
        if record not in ("log", "all"):
            raise ValueError(f"record must be 'log', 'all' or an array of steps, got {record!r}")
        steps = np.arange(n_steps + 1) if record == "all" else _log_steps(n_steps, _LOG_STEPS)
    else:
        steps = as_steps("record", record, n_steps)
    observed = np.zeros(0, dtype=np.int64)
    if kernel_points is not None:
        kernel_points = as_count("kernel_points", kernel_points, minimum=3)
        observed = _log_steps(n_steps, _KERNEL_STEPS)
        if kernel_steps is not None:
            observed = as_steps("kernel_steps", kernel_steps, n_steps)
    elif kernel_steps is not None:
        raise ValueError("kernel_steps goes with kernel_points, got no kernel_points")
    return _Plan(
        task,
        depth,
        width,
        as_float("activation_power", activation_power, minimum=1.0),
        as_float("gamma", gamma, minimum=0.0, exclusive=True),
        as_float("learning_rate", learning_rate, minimum=0.0, exclusive=True),
        as_count("batch_size", batch_size),
        n_steps,
        n_seeds,
        as_seed("seed", seed),
        as_count("n_test", n_test, minimum=4),
        dtype,
        kernel_points or 0,
        steps,
        observed,
    )


def _log_steps(n_steps: int, count: int) -> NDArray[np.int64]:
    """0 and up to `count` log-spaced steps to n_steps, fewer where rounding merges them."""
    return np.append(0, np.unique(np.rint(np.geomspace(1.0, n_steps, count)).astype(np.int64)))
