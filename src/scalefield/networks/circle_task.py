"""Targets on the circle with power-law Fourier series."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft

from scalefield._validate import as_count, as_float
from scalefield.kernels import InfiniteWidthKernel, circle_eigenvalues
from scalefield.spectrum import Spectrum

__all__ = ["CircleTask", "native_kernels"]

Array = NDArray[np.float64]


def native_kernels() -> ModuleType:
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
    array([11.336906, -0.761562])
    """

    exponent: float
    n_modes: int = 2**14 - 1
    mean_square: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "exponent", as_float("exponent", self.exponent, minimum=0.5, exclusive=True))
        object.__setattr__(self, "n_modes", as_count("n_modes", self.n_modes))
        object.__setattr__(self, "mean_square", as_float("mean_square", self.mean_square, minimum=0.0, exclusive=True))

    @cached_property
    def coefficients(self) -> Array:
        """c k^-q for k = 1..K, shape (K,)."""
        raw: Array = np.arange(1, self.n_modes + 1, dtype=np.float64) ** -self.exponent
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
        array([1.    , 0.0664])
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
        native_kernels().evaluate_series(flat, self.spread_coefficients, values)
        return values.reshape(angles.shape)

    @cached_property
    def spread_coefficients(self) -> Array:
        """Values on a grid that, spread by psi, make the target (`circle_steps`)."""
        kernels = native_kernels()
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

    def on_grid(self, n_points: int) -> tuple[Array, float]:
        """Frequencies below n/2 at n equally spaced angles, and the power of the rest."""
        kept = min(self.n_modes, (n_points - 1) // 2)
        series = np.zeros(n_points // 2 + 1)
        series[1 : kept + 1] = 0.5 * n_points * self.coefficients[:kept]
        rest = self.coefficients[kept:]
        return fft.irfft(series, n_points), 0.5 * float(rest @ rest)

    def describe(self) -> dict[str, Any]:
        """The arguments that make this task."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
