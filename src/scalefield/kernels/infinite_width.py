"""Kernels of infinitely wide fully connected networks (theory section 11)."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scalefield._memory import require_memory
from scalefield._progress import Progress
from scalefield._threads import share, single_threaded_blas, thread_count
from scalefield._validate import as_count, as_float
from scalefield.errors import AccuracyWarning, ScalefieldError
from scalefield.kernels.activations import (
    NAMED_ACTIVATIONS,
    DualTable,
    numerical_derivative,
    relu_moment,
    relu_power_series,
    second_moment,
    tabulate,
)

__all__ = ["InfiniteWidthKernel"]

Array = NDArray[np.float64]

# Pairs per tile: two float64 tiles stay in the cache of one core, and products of tiles run at the speed of BLAS.
TILE_ROWS, TILE_COLUMNS = 128, 256

_CLOSED = ("relu", "erf", "linear")


class _Points(NamedTuple):
    """Unit vectors of inputs with the bias as one more coordinate, and the variances of their signals."""

    units: Array
    variances: Array

    def take(self, rows: slice) -> _Points:
        return _Points(self.units[rows], self.variances[:, rows])


@dataclass(frozen=True)
class InfiniteWidthKernel:
    r"""Neural tangent or Gaussian-process kernel of an infinitely wide multilayer perceptron.

    The network has L hidden layers of width N and one output,

    .. math::
        h^0 = \frac{\sigma_w}{\sqrt D} W^0 x + \sigma_b b^0, \quad
        h^{l} = \frac{\sigma_w}{\sqrt N} W^{l} \phi(h^{l-1}) + \sigma_b b^{l}, \quad f = h^L,

    with standard normal weights and biases, all of them trained. As N grows,

    .. math::
        \Sigma^0 = \sigma_w^2\, x \cdot x'/D + \sigma_b^2, \quad
        \Sigma^{l+1} = \sigma_w^2\, E\,\phi(u)\phi(v) + \sigma_b^2, \quad (u, v) \sim N(0, \Sigma^l),

    .. math::
        \Theta^0 = \Sigma^0, \quad
        \Theta^{l+1} = \Sigma^{l+1} + \sigma_w^2\, E\,\phi'(u)\phi'(v)\, \Theta^l .

    The kernel is :math:`\Theta^L` (NTK) or :math:`\Sigma^L` (NNGP). In the mean-field parameterisation the output is
    :math:`f = h^L/(\gamma \sqrt N)` and gradients are multiplied by :math:`\gamma^2 N`: the kernel at initialisation is
    the same :math:`\Theta^L`, for any richness gamma. In the standard parameterisation (weights of variance
    :math:`\sigma_w^2/N`, one learning rate) it is not.

    Parameters
    ----------
    activation : str or callable
        "relu" (raised to `power`), "erf" and "linear" in closed form; "elu", "gelu", "silu", "sin", "softplus",
        "tanh" and any callable by quadrature. A callable maps a float64 array to one of its shape and is smooth except
        for a kink at 0, where it is continuous if kind is "ntk".
    power : float
        q of relu^q; any number above 1/2, or above -1/2 for the NNGP kernel. 1, 2, 3 are the arc-cosine kernels.
    depth : int
        Number L of hidden layers.
    weight_variance, bias_variance : float
        :math:`\sigma_w^2 > 0` and :math:`\sigma_b^2 \ge 0`.
    kind : {"ntk", "nngp"}
        Which kernel.
    normalize : bool
        Whether phi is divided by :math:`(E \phi(z)^2)^{1/2}`, z standard normal: relu^q is then multiplied by c_q,
        c_q^2 = 2, 2/3, 2/15 for q = 1, 2, 3, and signals keep the variance 1 that inputs of norm :math:`\sqrt D` have.
    derivative : callable, optional
        Derivative of a callable activation; by differences if None. Only the NTK needs it.

    Raises
    ------
    TypeError, ValueError
        For arguments of the wrong type, unknown names, a power without "relu", or values out of range.

    Notes
    -----
    Inputs of norm :math:`\sqrt D` have variance 1. Entries are right to a few units of 1e-16 of the diagonal, times
    depth, for the closed forms, also for nearly equal inputs, whose angle is found from their difference. Quadrature
    (Hermite series of smooth activations, polar coordinates for the rest, then Chebyshev polynomials in the angle and
    both variances) reaches about 1e-13 and takes a second or so before the first entry; with a kink at 0 and more than
    one hidden layer, angles below 1e-7 count as up to 1e-8.

    References
    ----------
    Jacot, Gabriel & Hongler, arXiv:1806.07572. Lee et al., arXiv:1711.00165. Cho & Saul, Kernel Methods for Deep
    Learning, NeurIPS 2009 (relu^q). Williams, Computing with infinite networks, NeurIPS 1996 (erf). Bordelon, Atanasov
    & Pehlevan, arXiv:2409.17858, Sec. 5.1 and App. A.1.

    Examples
    --------
    >>> import numpy as np
    >>> import scalefield as sf
    >>> kernel = sf.kernels.InfiniteWidthKernel("relu", depth=2)
    >>> x = np.sqrt(2) * np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    >>> kernel.gram(x).round(4)
    array([[3.    , 0.6857, 0.3183],
           [0.6857, 3.    , 0.6857],
           [0.3183, 0.6857, 3.    ]])
    """

    activation: str | Callable[[Array], Array] = "relu"
    power: float = 1.0
    depth: int = 1
    weight_variance: float = 1.0
    bias_variance: float = 0.0
    kind: Literal["ntk", "nngp"] = "ntk"
    normalize: bool = True
    derivative: Callable[[Array], Array] | None = None

    def __post_init__(self) -> None:
        names = sorted({*_CLOSED, *NAMED_ACTIVATIONS})
        if isinstance(self.activation, str):
            if self.activation not in names:
                raise ValueError(f"activation must be a callable or one of {', '.join(names)}, got {self.activation!r}")
            if self.derivative is not None:
                raise ValueError(f"derivative goes with a callable activation, got one with {self.activation!r}")
        elif not callable(self.activation):
            raise TypeError(
                f"activation must be a name or a callable, got {self.activation!r} "
                f"of type {type(self.activation).__name__}"
            )
        if self.derivative is not None and not callable(self.derivative):
            raise TypeError(f"derivative must be a callable or None, got {self.derivative!r}")
        if self.kind not in ("ntk", "nngp"):
            raise ValueError(f"kind must be 'ntk' or 'nngp', got {self.kind!r}")
        if not isinstance(self.normalize, (bool, np.bool_)):
            raise TypeError(f"normalize must be True or False, got {self.normalize!r}")
        lowest = 0.5 if self.kind == "ntk" else -0.5
        power = as_float("power", self.power)
        if self.activation == "relu" and power <= lowest:
            raise ValueError(f"power must be greater than {lowest:g} for a finite {self.kind} kernel, got {power!r}")
        if self.activation != "relu" and power != 1.0:
            raise ValueError(f"power goes with activation 'relu', got {power!r} with {self.activation!r}")
        object.__setattr__(self, "power", power)
        object.__setattr__(self, "depth", as_count("depth", self.depth))
        variance = as_float("weight_variance", self.weight_variance, minimum=0.0, exclusive=True)
        object.__setattr__(self, "weight_variance", variance)
        object.__setattr__(self, "bias_variance", as_float("bias_variance", self.bias_variance, minimum=0.0))

    # ------------------------------------------------------------------------------------------------ on data

    def __call__(self, x: ArrayLike, y: ArrayLike | None = None) -> Array:
        """The Gram matrix: `gram(x, y)`."""
        return self.gram(x, y)

    def gram(
        self,
        x: ArrayLike,
        y: ArrayLike | None = None,
        *,
        out: Array | None = None,
        progress: Progress | None = None,
    ) -> Array:
        r"""Kernel between all rows of x and of y.

        Parameters
        ----------
        x : array_like, shape (n, D) or (n, ...)
            Inputs; further axes (images) are flattened. Any real dtype.
        y : array_like, shape (m, D) or (m, ...), optional
            Other inputs; x itself if None, and then the matrix is exactly symmetric.
        out : ndarray, shape (n, m), float64, optional
            Where to write, such as a memory-mapped array; a new array if None.
        progress : callable, optional
            Called with the rows finished and their total.

        Returns
        -------
        ndarray, shape (n, m), float64

        Raises
        ------
        TypeError, ValueError
            For inputs that are not finite real numbers, shapes that differ, or an unfit `out`.
        InsufficientMemoryError
            If the matrix does not fit into memory.
        ScalefieldError
            If the kernel overflows.

        Notes
        -----
        O(n m (D + depth)) operations in tiles of 128 x 256, shared among threads with BLAS at one thread each; the
        result does not depend on their number. Memory: the result, float64 copies of the inputs, and 1 MiB a thread.

        Examples
        --------
        >>> import numpy as np
        >>> import scalefield as sf
        >>> x = np.random.default_rng(0).standard_normal((5, 8))
        >>> gram = sf.kernels.InfiniteWidthKernel("erf", kind="nngp").gram(x)
        >>> gram.shape, bool((gram == gram.T).all())
        ((5, 5), True)
        """
        rows = self._points(_as_inputs("x", x))
        columns = rows if y is None else self._points(_as_inputs("y", y))
        if columns.units.shape[1] != rows.units.shape[1]:
            widths = rows.units.shape[1] - 1, columns.units.shape[1] - 1
            raise ValueError(f"x and y must have the same number of features, got {widths[0]} and {widths[1]}")
        shape = rows.units.shape[0], columns.units.shape[0]
        if out is None:
            require_memory(8 * shape[0] * shape[1], f"a kernel matrix of {shape[0]} x {shape[1]}")
            out = np.empty(shape)
        elif (
            not isinstance(out, np.ndarray) or out.shape != shape or out.dtype != np.float64 or not out.flags.writeable
        ):
            found = (out.shape, out.dtype) if isinstance(out, np.ndarray) else type(out).__name__
            raise ValueError(f"out must be a writable float64 array of shape {shape}, got {found}")
        result = out
        advance = self._propagator([rows.variances, columns.variances])
        symmetric = y is None
        if symmetric:
            diagonal = self._diagonal(rows.variances)

        def fill(start: int, index: int) -> None:
            first = (start if symmetric else 0) + index * TILE_COLUMNS
            here = slice(start, min(start + TILE_ROWS, shape[0]))
            there = slice(first, min(first + TILE_COLUMNS, shape[1]))
            left, right = rows.take(here), columns.take(there)
            tile = self._tile(left, right, advance)
            result[here, there] = tile
            if symmetric:
                # The tile and its mirror image; where it crosses the diagonal the upper triangle counts.
                if here.stop > there.start:
                    block = result[here.start : here.stop, here.start : here.stop]
                    upper = np.triu_indices(block.shape[0], 1)
                    block[upper[1], upper[0]] = block[upper]
                    np.fill_diagonal(block, diagonal[here])
                beyond = slice(max(there.start, here.stop), there.stop)
                if beyond.start < beyond.stop:
                    result[beyond, here] = result[here, beyond].T

        with single_threaded_blas():
            for start in range(0, shape[0], TILE_ROWS):
                firsts = range(start if symmetric else 0, shape[1], TILE_COLUMNS)
                share(partial(fill, start), len(firsts), thread_count())
                if progress is not None:
                    progress(min(start + TILE_ROWS, shape[0]), shape[0])
        if not math.isfinite(float(result.sum())) and not np.isfinite(result).all():
            raise ScalefieldError("the kernel overflows: scale the inputs down, or take fewer layers or a lower power")
        return result

    def diagonal(self, x: ArrayLike) -> Array:
        """K(x, x) for each row of x, shape (n,); exactly the diagonal of `gram(x)`.

        Examples
        --------
        >>> import scalefield as sf
        >>> sf.kernels.InfiniteWidthKernel(depth=3).diagonal([[1.0, -1.0], [2.0, 2.0]])
        array([ 4., 16.])
        """
        return self._diagonal(self._points(_as_inputs("x", x)).variances)

    def profile(self, cosine: ArrayLike, input_variance: float = 1.0) -> Array:
        r"""Kernel between inputs of equal norm against the cosine of their angle.

        Parameters
        ----------
        cosine : array_like
            Cosines, -1 to 1, of any shape.
        input_variance : float
            :math:`|x|^2/D > 0` of both inputs.

        Returns
        -------
        ndarray
            In the shape of `cosine`.

        Examples
        --------
        >>> import scalefield as sf
        >>> sf.kernels.InfiniteWidthKernel("relu", kind="nngp").profile([1.0, 0.0, -1.0]).round(6)
        array([1.     , 0.31831, 0.     ])
        """
        values = _as_numbers("cosine", cosine)
        if (np.abs(values) > 1.0).any():
            raise ValueError(f"cosine must lie between -1 and 1, got {float(values[np.abs(values) > 1.0].flat[0])!r}")
        return self._profile(0.5 * (1.0 - values), 0.5 * (1.0 + values), input_variance)

    def angular_profile(self, angle: ArrayLike, input_variance: float = 1.0) -> Array:
        """Kernel between inputs of equal norm against their angle (radians, any real): `profile` to full accuracy.

        Examples
        --------
        >>> import scalefield as sf
        >>> sf.kernels.InfiniteWidthKernel().angular_profile([0.0, 1e-9]) - 2.0
        array([ 0.00000000e+00, -3.18309823e-10])
        """
        angle = _as_numbers("angle", angle)
        return self._profile(np.sin(0.5 * angle) ** 2, np.cos(0.5 * angle) ** 2, input_variance)

    def signal_variances(self, input_variance: float = 1.0) -> Array:
        r"""Variances :math:`\Sigma^l(x, x)` of the pre-activations for inputs of :math:`|x|^2/D`, shape (depth + 1,).

        Examples
        --------
        >>> import scalefield as sf
        >>> sf.kernels.InfiniteWidthKernel("relu", depth=2, weight_variance=1.5).signal_variances()
        array([1.5  , 2.25 , 3.375])
        """
        value = as_float("input_variance", input_variance, minimum=0.0, exclusive=True)
        return self._variances(np.array([self.weight_variance * value + self.bias_variance]))[:, 0]

    # ----------------------------------------------------------------------------------------------- one layer

    @property
    def is_quadrature(self) -> bool:
        """Whether the activation is integrated numerically."""
        return self.activation not in _CLOSED

    @property
    def is_odd(self) -> bool:
        """Whether the activation is known to be odd."""
        name = self.activation
        return name in ("erf", "linear") or (
            isinstance(name, str) and name in NAMED_ACTIVATIONS and NAMED_ACTIVATIONS[name][2]
        )

    def _functions(self) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
        """The activation and its derivative, not normalised."""
        if isinstance(self.activation, str):
            return NAMED_ACTIVATIONS[self.activation][:2]
        return self.activation, self.derivative or _differences(self.activation)

    def _gain(self) -> float:
        """sigma_w^2, times the square of the factor that normalises the activation."""
        if not self.normalize or self.activation == "linear":
            return self.weight_variance * (relu_moment(self.power) if self.activation == "relu" else 1.0)
        if self.activation == "relu":
            # kappa_q is normalised already
            return self.weight_variance
        if self.activation == "erf":
            return self.weight_variance / (2.0 / math.pi * math.asin(2.0 / 3.0))
        moment = float(second_moment(self._functions()[0], np.ones(1))[0])
        if moment <= 0.0:
            raise ScalefieldError("activation is zero for standard normal arguments: it cannot be normalised")
        return self.weight_variance / moment

    def _variances(self, first: Array) -> Array:
        """Sigma^l(x, x), l = 0..L, shape (depth + 1, n)."""
        variances = np.empty((self.depth + 1, first.size))
        variances[0] = first
        gain = self._gain()
        for layer in range(self.depth):
            variances[layer + 1] = gain * self._moment(variances[layer]) + self.bias_variance
        if not np.isfinite(variances).all():
            raise ScalefieldError(
                "signals overflow: scale the inputs down (norm sqrt(D) is variance 1), or take fewer layers or a lower "
                "power"
            )
        return variances

    def _moment(self, variance: Array) -> Array:
        """E phi(u)^2, of kappa_q for relu."""
        if self.activation == "relu":
            with np.errstate(over="ignore"):
                return variance**self.power
        if self.activation == "linear":
            return variance
        if self.activation == "erf":
            return np.asarray(2.0 / math.pi * np.arcsin(2.0 * variance / (1.0 + 2.0 * variance)))
        return np.concatenate(
            [second_moment(self._functions()[0], part) for part in np.array_split(variance, variance.size // 4096 + 1)]
        )

    def _slope_moment(self, variance: Array) -> Array:
        """E phi'(u)^2."""
        if self.activation == "relu":
            q = self.power
            with np.errstate(divide="ignore"):
                return np.asarray(q * q / (2.0 * q - 1.0) * variance ** (q - 1.0))
        if self.activation == "linear":
            return np.ones_like(variance)
        if self.activation == "erf":
            return np.asarray(4.0 / math.pi / np.sqrt(1.0 + 4.0 * variance))
        return np.concatenate(
            [second_moment(self._functions()[1], part) for part in np.array_split(variance, variance.size // 4096 + 1)]
        )

    def _diagonal(self, variances: Array) -> Array:
        if self.kind == "nngp":
            return np.array(variances[-1])
        gain, ntk = self._gain(), variances[0]
        for before, after in itertools.pairwise(variances):
            slope = np.where(ntk > 0.0, self._slope_moment(before), 0.0)
            ntk = after + gain * slope * np.where(ntk > 0.0, ntk, 0.0)
        return np.array(ntk)

    # ------------------------------------------------------------------------------------------------- blocks

    def _points(self, x: Array) -> _Points:
        """Inputs as unit vectors: weights and bias give Sigma^0 = |(sigma_w x/sqrt(D), sigma_b)|^2."""
        extended = np.empty((x.shape[0], x.shape[1] + 1))
        np.multiply(x, math.sqrt(self.weight_variance / x.shape[1]), out=extended[:, :-1])
        extended[:, -1] = math.sqrt(self.bias_variance)
        norms = np.linalg.norm(extended, axis=1)
        if self.is_quadrature and (norms == 0.0).any():
            row = int(np.argmin(norms))
            raise ValueError(f"x must have no zero input without a bias where activations are tabulated, got row {row}")
        np.divide(extended, norms[:, None], out=extended, where=norms[:, None] > 0.0)
        return _Points(extended, self._variances(norms**2))

    def _tile(self, rows: _Points, columns: _Points, advance: Callable[..., Array]) -> Array:
        from scalefield._native.arc_cosine import pair_angles

        s = rows.units @ columns.units.T
        ntk = np.empty_like(s)
        pair_angles(rows.units, columns.units, s, ntk)
        return advance(s, ntk, rows.variances, columns.variances)

    def _profile(self, w: Array, z: Array, input_variance: float) -> Array:
        """Kernel from w = sin^2(angle/2) and z = cos^2(angle/2) of the inputs."""
        value = as_float("input_variance", input_variance, minimum=0.0, exclusive=True)
        first = self.weight_variance * value + self.bias_variance
        weight, bias = self.weight_variance * value / first, self.bias_variance / first
        shape = w.shape
        w, z = weight * w.reshape(1, -1), weight * z.reshape(1, -1) + bias
        s = np.where(w <= z, w, -np.maximum(z, 1e-300))
        variances = self._variances(np.array([first]))
        columns = np.repeat(variances, w.size, axis=1)
        advance = self._propagator([variances])
        with single_threaded_blas():
            kernel = advance(np.ascontiguousarray(s), 1.0 - 2.0 * w, variances, columns).reshape(shape)
        equal = (w == 0.0).reshape(shape)
        return np.where(equal, self._diagonal(variances)[0], kernel)

    def _propagator(self, variances: list[Array]) -> Callable[..., Array]:
        """The function (s, rho, variances of rows, of columns) -> kernel of a block; s and rho are overwritten."""
        if self.activation == "relu":
            return self._relu_block()
        if self.is_quadrature:
            return self._tabulated_block(variances)
        return self._analytic_block

    def _relu_block(self) -> Callable[..., Array]:
        from scalefield._native.arc_cosine import arc_cosine_layer, power_layer

        gain, q = self._gain(), self.power
        integer = q in (1.0, 2.0, 3.0)
        if not integer:
            series = relu_power_series(q)
            slope = q * q / (2.0 * q - 1.0) if self.kind == "ntk" else 0.0
            lower = relu_power_series(q - 1.0) if self.kind == "ntk" else series

        def shares(variances: Array) -> tuple[Array, Array]:
            """p and b of each layer: the parts of weights and bias in its signal's standard deviation."""
            root = np.sqrt(variances[1:])
            with np.errstate(divide="ignore", invalid="ignore"):
                p = math.sqrt(gain) * variances[:-1] ** (0.5 * q) / root
                b = math.sqrt(self.bias_variance) / root
            return np.where(root > 0.0, p, 0.0), np.where(root > 0.0, b, 0.0)

        def advance(s: Array, ntk: Array, left: Array, right: Array) -> Array:
            p, b = shares(left)
            p2, b2 = shares(right)
            for layer in range(self.depth):
                signals = p[layer], b[layer], p2[layer], b2[layer]
                if integer:
                    arc_cosine_layer(int(q), *signals, s, ntk)
                else:
                    power_layer(series.order, slope, *series[1:], *lower[1:], *signals, s, ntk)
            if self.kind == "nngp":
                np.multiply(s, -2.0, out=ntk)
                ntk += 1.0
            ntk *= np.sqrt(left[-1])[:, None]
            ntk *= np.sqrt(right[-1])
            return ntk

        return advance

    def _analytic_block(self, s: Array, rho: Array, left: Array, right: Array) -> Array:
        gain = self._gain()
        covariance = rho * np.sqrt(left[0])[:, None] * np.sqrt(right[0])
        ntk = covariance.copy()
        for layer in range(self.depth):
            if self.activation == "linear":
                covariance = gain * covariance
                slope: Any = gain
            else:
                scale = (1.0 + 2.0 * left[layer])[:, None] * (1.0 + 2.0 * right[layer])
                # E erf'(u) erf'(v) = (4/pi) ((1 + 2a)(1 + 2b) - 4c^2)^(-1/2)
                slope = gain * 4.0 / math.pi / np.sqrt(scale - 4.0 * covariance**2)
                covariance = gain * 2.0 / math.pi * np.arcsin(2.0 * covariance / np.sqrt(scale))
            covariance += self.bias_variance
            ntk = covariance + slope * ntk
        return np.asarray(ntk if self.kind == "ntk" else covariance)

    def _tabulated_block(self, variances: list[Array]) -> Callable[..., Array]:
        gain = self._gain()
        ranges = [
            (min(float(v[layer].min()) for v in variances), max(float(v[layer].max()) for v in variances))
            for layer in range(self.depth)
        ]
        function, derivative = self._functions()
        tables = [_table(function, *ends) for ends in ranges]
        slopes = [_table(derivative, *ends) for ends in ranges] if self.kind == "ntk" else []

        def advance(s: Array, rho: Array, left: Array, right: Array) -> Array:
            small = 2.0 * np.arcsin(np.sqrt(np.abs(s)))
            angle = np.where(s >= 0.0, small, math.pi - small)
            covariance = rho * np.sqrt(left[0])[:, None] * np.sqrt(right[0])
            ntk = covariance.copy()
            for layer in range(self.depth):
                table = tables[layer]
                rows, columns = table.basis(left[layer]), table.basis(right[layer])
                covariance = gain * table(rows, columns, angle) + self.bias_variance
                if slopes:
                    rows, columns = slopes[layer].basis(left[layer]), slopes[layer].basis(right[layer])
                    ntk = covariance + gain * slopes[layer](rows, columns, angle) * ntk
                scale = np.sqrt(left[layer + 1])[:, None] * np.sqrt(right[layer + 1])
                angle = np.arccos(np.clip(covariance / scale, -1.0, 1.0))
            return np.asarray(ntk if self.kind == "ntk" else covariance)

        return advance


_differences = lru_cache(maxsize=16)(numerical_derivative)


@lru_cache(maxsize=64)
def _table(function: Callable[[Array], Array], low: float, high: float) -> DualTable:
    table = tabulate(function, low, high)
    if table.error > 1e-9 * float(np.abs(table.coefficients[0, 0]).sum()):
        warnings.warn(
            f"the activation's averages are right to {table.error:.1e} only: it is not smooth on either side of 0, or "
            f"the inputs' norms differ too much",
            AccuracyWarning,
            stacklevel=2,
        )
    return table


def _as_inputs(name: str, value: ArrayLike) -> Array:
    """Inputs as a float64 array of shape (n, D)."""
    array = _as_numbers(name, value)
    if array.ndim < 2 or 0 in array.shape:
        raise ValueError(
            f"{name} must have the shape (samples, features), with at least one of each, got {array.shape}"
        )
    return array.reshape(array.shape[0], -1)


def _as_numbers(name: str, value: ArrayLike) -> Array:
    try:
        raw = np.asarray(value)
    except ValueError as error:
        raise TypeError(f"{name} must be an array of real numbers, got {type(value).__name__}") from error
    if raw.dtype.kind not in "iufb":
        raise TypeError(f"{name} must be an array of real numbers, got dtype {raw.dtype}")
    array = raw.astype(np.float64)
    if not np.isfinite(array).all():
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(f"{name} must be finite, got {float(array[index])!r} at index {index}")
    return array
