r"""Kernels on the circle: their eigenvalues are Fourier coefficients (theory section 11).

For x = sqrt(2) (cos theta, sin theta), theta uniform, a kernel K(theta - theta') has the eigenfunctions 1 and
sqrt(2) cos(k theta), sqrt(2) sin(k theta), and the eigenvalues

.. math:: \lambda_k = \frac{1}{\pi} \int_0^\pi K(\theta) \cos(k \theta) \, d\theta .

A double-precision FFT of K resolves them down to 1e-17 of K(0), but those of relu^q fall as k^{-2q}, to 1e-30 at
k = 1e5 and q = 3. They come from the odd powers of theta and pi - theta in K, and a contour separates these from the
smooth rest: from 0 up to iY, across to pi + iY and down to pi,

.. math::
    \pi \lambda_k = -\int_0^Y \mathrm{Im} K(iy) e^{-ky} dy + (-1)^k \int_0^Y \mathrm{Im} K(\pi + iy) e^{-ky} dy
    + e^{-kY}\, \mathrm{Re} \int_0^\pi K(x + iY) e^{ikx} dx .

On the vertical lines the imaginary part is that of w^m and z^m in `activations.relu_power_series` alone, of known
relative accuracy however small; the rounding of the last term is e^{-kY} of K, less than lambda_k at all k.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft, special

from scalefield._result import Archived
from scalefield._validate import as_count, as_float
from scalefield.errors import ScalefieldError
from scalefield.kernels.activations import PowerSeries, relu_power_series
from scalefield.kernels.infinite_width import InfiniteWidthKernel
from scalefield.spectrum import Spectrum

__all__ = ["CircleEigenvalues", "circle_eigenvalues", "circle_spectrum"]

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]
Complex = NDArray[np.complex128]
Profile = Callable[[Array], Array]

EPSILON = 2.0**-52
# Heights of the contour that are tried, until two in a row agree.
HEIGHTS = (1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.125, 0.09, 0.0625)
AGREEMENT = 1e-13
# e^-64 = 2e-28 is nothing, even beside eigenvalues of k^-8 at k = 64 and more.
LAST = 64.0
# Points of the interpolation within an octave of frequencies.
OCTAVE_POINTS = 18
# Series on the contour are used up to |w| = 0.86 and need that many terms; beyond, the height is too large.
TERMS, LARGEST = 240, 0.86


@dataclass(frozen=True, eq=False)
class CircleEigenvalues(Archived):
    r"""Eigenvalues of a kernel on the circle, frequency by frequency.

    Attributes
    ----------
    frequencies : ndarray, shape (k_max + 1,), int64
        k = 0, 1, ..., k_max.
    eigenvalues : ndarray, shape (k_max + 1,)
        lambda_k under the uniform measure, so that K(0) = sum_k multiplicity_k lambda_k.
    errors : ndarray, shape (k_max + 1,)
        Estimated absolute errors.
    is_null : ndarray of bool, shape (k_max + 1,)
        Modes that the network cannot represent, by parity: lambda_k is exactly 0 there.
    trace : float
        K(0), with the modes beyond k_max.
    method : str
        "contour" or "fft".
    description : dict
        The kernel's parameters.
    """

    frequencies: NDArray[np.int64]
    eigenvalues: Array
    errors: Array
    is_null: NDArray[np.bool_]
    trace: float
    method: str
    description: dict[str, Any]

    def __repr__(self) -> str:
        return (
            f"CircleEigenvalues(k to {self.frequencies[-1]}, {self.method}, eigenvalues {self.eigenvalues[0]:.4g} to "
            f"{self.eigenvalues[~self.is_null][-1]:.3g}, {int(self.is_null.sum())} null frequencies)"
        )

    @property
    def multiplicities(self) -> NDArray[np.int64]:
        """1 for the constant, 2 (cosine and sine) for every other frequency."""
        return np.where(self.frequencies == 0, 1, 2)

    @property
    def is_resolved(self) -> NDArray[np.bool_]:
        """Frequencies whose eigenvalue is at least ten times its error, or is exactly 0."""
        return np.asarray(self.is_null | (self.eigenvalues >= 10.0 * self.errors))

    @property
    def tail(self) -> float:
        """Trace left beyond k_max."""
        return self.trace - float(self.multiplicities @ self.eigenvalues)

    @property
    def capacity_exponent(self) -> float | None:
        """Alpha that theory predicts: 2 q for the NTK of relu^q, 2 q + 2 for its NNGP kernel; None for others.

        It holds for any depth, as k grows.
        """
        if self.description.get("activation") != "relu":
            return None
        q = float(self.description["power"])
        return 2.0 * q if self.description["kind"] == "ntk" else 2.0 * q + 2.0

    def source_exponent(self, target_exponent: float) -> float | None:
        """Beta that theory predicts for the target sum_k k^-q cos(k theta): (2 q - 1)/alpha; None without an alpha."""
        q = as_float("target_exponent", target_exponent, minimum=0.5, exclusive=True)
        alpha = self.capacity_exponent
        return None if alpha is None else (2.0 * q - 1.0) / alpha

    def measured_exponent(self, start: int, stop: int) -> tuple[float, float]:
        """Exponent of lambda_k ~ k^-alpha over start <= k <= stop, and its standard error.

        By least squares in log k and log lambda, with a level of their own for even and for odd frequencies, which
        differ; null and unresolved ones are left out.

        Raises
        ------
        ValueError
            If fewer than four frequencies are left.

        Examples
        --------
        >>> import scalefield as sf
        >>> modes = sf.kernels.circle_eigenvalues(sf.kernels.InfiniteWidthKernel("relu", power=2, depth=2), 1000)
        >>> alpha, error = modes.measured_exponent(100, 1000)
        >>> round(alpha, 3)
        4.001
        """
        start, stop = as_count("start", start), as_count("stop", stop)
        k = self.frequencies
        kept = (k >= start) & (k <= stop) & ~self.is_null & self.is_resolved & (self.eigenvalues > 0.0)
        if int(kept.sum()) < 4:
            raise ValueError(f"start and stop must enclose four resolved frequencies, got {start} and {stop}")
        x, y = np.log(k[kept]), np.log(self.eigenvalues[kept])
        odd = (k[kept] % 2).astype(np.float64)
        columns = [x, 1.0 - odd, odd] if 0.0 < odd.mean() < 1.0 else [x, np.ones_like(x)]
        design = np.stack(columns, axis=1)
        coefficients = np.linalg.lstsq(design, y)[0]
        residual = y - design @ coefficients
        spread = float(residual @ residual) / max(1, x.size - design.shape[1])
        variance = spread * np.linalg.inv(design.T @ design)[0, 0]
        return -float(coefficients[0]), math.sqrt(float(variance))

    def spectrum(
        self,
        target_exponent: float,
        *,
        mean_square: float | None = 1.0,
        include_sine: bool = True,
        include_constant: bool = False,
    ) -> Spectrum:
        r"""The task of learning a target with a power-law Fourier series.

        .. math:: y(\theta) = c \sum_k k^{-q} \cos(k \theta), \quad k = 1, \ldots, k_{max}

        In the orthonormal eigenfunctions :math:`\sqrt2 \cos k\theta` its coefficient is :math:`c\, k^{-q}/\sqrt2`, so
        that :math:`\lambda_k w_k^{*2} = c^2 k^{-2q}/2`. Sine modes carry no target, but count in sums over the kernel.

        Parameters
        ----------
        target_exponent : float
            q > 1/2.
        mean_square : float, optional
            Mean of y^2, which fixes c; None for c = 1.
        include_sine : bool
            Whether the sine modes are listed.
        include_constant : bool
            Whether the constant is; the theory's features have mean 0, and no target lies on it.

        Returns
        -------
        Spectrum
            Eigenvalues as they are here: tau is in units of the kernel.

        Raises
        ------
        ValueError
            For a target exponent of 1/2 or less.
        ScalefieldError
            If no mode is left.

        Notes
        -----
        Null modes cannot be learned at all, and unresolved ones have no known eigenvalue: neither is in the spectrum
        nor in the target, whose mean square is that of the rest. Both are logged.

        Examples
        --------
        >>> import scalefield as sf
        >>> modes = sf.kernels.circle_eigenvalues(sf.kernels.InfiniteWidthKernel("relu", depth=2), 1000)
        >>> modes.spectrum(1.0)
        Spectrum(2000 modes, eigenvalues 2.54e-07 to 0.588, trace 1.917, target power 1)
        """
        q = as_float("target_exponent", target_exponent, minimum=0.5, exclusive=True)
        if mean_square is not None:
            mean_square = as_float("mean_square", mean_square, minimum=0.0, exclusive=True)
        k = self.frequencies
        usable = ~self.is_null & self.is_resolved & (self.eigenvalues > 0.0)
        kept = usable & (k > 0)
        if not kept.any():
            raise ScalefieldError("the kernel has no resolved mode but the constant: nothing can be learned")
        if not kept[1:].all():
            null, unresolved = int(self.is_null[1:].sum()), int((~self.is_null & ~kept)[1:].sum())
            logger.info("%d null and %d unresolved frequencies are left out of the spectrum", null, unresolved)
        power = 0.5 * k[kept] ** (-2.0 * q)
        if mean_square is not None:
            power *= mean_square / power.sum()
        values = [self.eigenvalues[kept]]
        coefficients = [np.sqrt(power / values[0])]
        if include_sine:
            values.append(values[0])
            coefficients.append(np.zeros_like(values[0]))
        if include_constant and usable[0]:
            values.append(self.eigenvalues[:1])
            coefficients.append(np.zeros(1))
        return Spectrum(np.concatenate(values), np.concatenate(coefficients))


def circle_eigenvalues(
    kernel: InfiniteWidthKernel | Profile,
    k_max: int = 100_000,
    *,
    input_variance: float = 1.0,
    points: int | None = None,
) -> CircleEigenvalues:
    r"""Eigenvalues of a kernel for inputs distributed uniformly on a circle.

    Parameters
    ----------
    kernel : InfiniteWidthKernel or callable
        A callable maps angles in [0, pi] (float64 array) to K(theta), an even function of period 2 pi.
    k_max : int
        Largest frequency.
    input_variance : float
        |x|^2/D of the inputs, D = 2: 1 is a circle of radius sqrt(2).
    points : int, optional
        Points on the circle for the FFT, at least 4 k_max; a power of two of at least 8 k_max and 2^14 if None. Not
        used with the contour.

    Returns
    -------
    CircleEigenvalues

    Raises
    ------
    TypeError, ValueError
        For unfit arguments or a profile that is not finite.

    Notes
    -----
    relu^q, any q, depth and bias: by contour, at a relative error of 1e-12 or better at all k (`errors` tells; where
    a small bias leaves eigenvalues that are nearly null, it is relative to their neighbours), in O(k_max) operations,
    0.2 s for k to 1e5. Everything else by FFT: an absolute error of about 1e-17 K(0) in closed forms, 1e-13 for
    tabulated activations, plus aliasing where K is not smooth, estimated from half the points.

    One hidden layer without a bias has null modes: relu^q, q integer, is a polynomial of degree q and parity (-1)^q
    plus a function of the other parity, so lambda_k = 0 for all k > q of q's parity. Odd activations without biases
    have none but odd modes, and the linear network none but k = 1.

    References
    ----------
    Bordelon, Atanasov & Pehlevan, arXiv:2409.17858, Eqs. 13-14 and App. A.1. Basri et al., The convergence rate of
    neural networks for learned functions of different frequencies, arXiv:1906.00425 (parity).

    Examples
    --------
    >>> import scalefield as sf
    >>> modes = sf.kernels.circle_eigenvalues(sf.kernels.InfiniteWidthKernel("relu"), 6)
    >>> modes.eigenvalues.round(6)
    array([0.607927, 0.5     , 0.157611, 0.      , 0.017112, 0.      ,
           0.006451])
    >>> modes.frequencies[modes.is_null]
    array([3, 5])
    """
    k_max = as_count("k_max", k_max)
    variance = as_float("input_variance", input_variance, minimum=0.0, exclusive=True)
    if points is not None:
        points = as_count("points", points, minimum=4 * k_max)
    is_null = np.zeros(k_max + 1, dtype=np.bool_)
    if isinstance(kernel, InfiniteWidthKernel):
        activation = kernel.activation if isinstance(kernel.activation, str) else repr(kernel.activation)
        description: dict[str, Any] = {
            "activation": activation,
            "power": kernel.power,
            "depth": kernel.depth,
            "weight_variance": kernel.weight_variance,
            "bias_variance": kernel.bias_variance,
            "kind": kernel.kind,
            "normalize": bool(kernel.normalize),
            "input_variance": variance,
        }
        is_null = _null_modes(kernel, k_max)
        trace = float(kernel.angular_profile(0.0, variance))
        if kernel.activation == "relu":
            values, errors = _contour_eigenvalues(kernel, variance, k_max, is_null)
            method = "contour"
        else:
            accuracy = 1e-13 if kernel.is_quadrature else 0.0
            values, errors = _fft_eigenvalues(
                lambda angle: kernel.angular_profile(angle, variance), k_max, points, accuracy
            )
            method = "fft"
    elif callable(kernel):
        description = {"activation": repr(kernel)}
        values, errors = _fft_eigenvalues(kernel, k_max, points, 0.0)
        trace, method = float(kernel(np.zeros(1))[0]), "fft"
    else:
        raise TypeError(f"kernel must be an InfiniteWidthKernel or a callable, got {kernel!r}")
    values, errors = np.where(is_null, 0.0, values), np.where(is_null, 0.0, errors)
    return CircleEigenvalues(np.arange(k_max + 1), values, errors, is_null, trace, method, description)


def circle_spectrum(
    kernel: InfiniteWidthKernel | Profile, target_exponent: float, k_max: int = 10_000, **options: Any
) -> Spectrum:
    r"""The task of learning sum_k k^{-q} cos(k theta) on the circle with a network's kernel.

    Short for ``circle_eigenvalues(kernel, k_max).spectrum(target_exponent, **options)``, which see.

    Parameters
    ----------
    kernel : InfiniteWidthKernel or callable
    target_exponent : float
        q > 1/2.
    k_max : int
        Largest frequency.
    **options
        input_variance and points of `circle_eigenvalues`; mean_square, include_sine and include_constant of
        `CircleEigenvalues.spectrum`.

    Returns
    -------
    Spectrum
        For relu^p of capacity alpha = 2 p and source beta = (2 q - 1)/(2 p), paper Eq. 14.

    Examples
    --------
    >>> import scalefield as sf
    >>> sf.kernels.circle_spectrum(sf.kernels.InfiniteWidthKernel("relu", depth=2), 1.0, 100)
    Spectrum(200 modes, eigenvalues 2.59e-05 to 0.588, trace 1.911, target power 1)
    """
    own = {name: options.pop(name) for name in ("input_variance", "points") if name in options}
    return circle_eigenvalues(kernel, k_max, **own).spectrum(target_exponent, **options)


def _null_modes(kernel: InfiniteWidthKernel, k_max: int) -> NDArray[np.bool_]:
    k = np.arange(k_max + 1)
    if kernel.activation == "linear":
        return np.asarray((k > 1) | ((k == 0) & (kernel.bias_variance == 0.0)))
    null = np.zeros(k.size, dtype=np.bool_)
    if kernel.bias_variance > 0.0:
        return null
    if kernel.is_odd:
        return np.asarray(k % 2 == 0)
    q = kernel.power
    if kernel.activation == "relu" and kernel.depth == 1 and q == round(q):
        # relu^q = (h^q + |h| h^(q-1))/2, the second of the other parity
        return np.asarray((k > q) & (k % 2 == q % 2))
    return null


# -------------------------------------------------------------------------------------------------------- FFT


def _fft_eigenvalues(profile: Profile, k_max: int, points: int | None, accuracy: float) -> tuple[Array, Array]:
    """Trapezoidal rule on all of the circle, exact for harmonics below half the points."""
    half = (points + 1) // 2 if points is not None else max(2**13, 2 ** math.ceil(math.log2(4 * k_max)))
    half += half % 2
    values = np.asarray(profile(math.pi * np.arange(half + 1) / half), dtype=np.float64)
    if values.shape != (half + 1,) or not np.isfinite(values).all():
        raise ValueError(f"kernel must return finite values in the shape of its argument, got shape {values.shape}")
    fine = fft.dct(values, type=1) / (2 * half)
    coarse = fft.dct(values[::2], type=1) / half
    scale = float(np.abs(values).max())
    # Aliases of a coefficient falling as k^-p fall as points^-p, p >= 2: what is left is a third of the change at most.
    # Twice that, and no less than the rounding of the values (of their sum: a random one) and their own error.
    aliasing = np.abs(fine[: coarse.size] - coarse)
    errors = np.full(k_max + 1, EPSILON * scale * 4.0 / math.sqrt(half) + accuracy * scale)
    shared = min(k_max + 1, coarse.size)
    errors[:shared] += aliasing[:shared]
    return fine[: k_max + 1], errors


# ---------------------------------------------------------------------------------------------------- contour


class _Relu(NamedTuple):
    """A kernel of relu^q with what its layers need on a circle of one radius."""

    depth: int
    is_ntk: bool
    slope: float
    scale: float
    # w = share sin^2(theta/2) in the first layer
    share: float
    # p^2 of each layer
    weights: tuple[float, ...]
    series: PowerSeries
    lower: PowerSeries
    # Exponents of Im K about 0 and about the first singular height above pi.
    origin_power: float
    opposite_power: float
    # Height above pi where the first layer's inputs would be opposite.
    opposite_height: float


def _relu(kernel: InfiniteWidthKernel, input_variance: float) -> _Relu:
    q, is_ntk = kernel.power, kernel.kind == "ntk"
    variances = kernel.signal_variances(input_variance)
    share = kernel.weight_variance * input_variance / variances[0]
    gain = (variances[1:] - kernel.bias_variance) / variances[1:]
    excess = kernel.bias_variance / (kernel.weight_variance * input_variance)
    order = q - 0.5 if is_ntk else q + 0.5
    return _Relu(
        depth=kernel.depth,
        is_ntk=is_ntk,
        slope=q * q / (2.0 * q - 1.0) if is_ntk else 0.0,
        scale=float(variances[-1]),
        share=float(share),
        weights=tuple(float(value) for value in gain),
        series=relu_power_series(q, TERMS),
        lower=relu_power_series(q - 1.0, TERMS) if is_ntk else relu_power_series(q, TERMS),
        origin_power=2.0 * order,
        opposite_power=order if excess > 0.0 else 2.0 * order,
        opposite_height=2.0 * math.asinh(math.sqrt(excess)),
    )


class _TooHigh(Exception):
    """The contour leaves the region where the series serve."""


def _unlike(series: PowerSeries, w: Complex, z: Complex) -> Complex:
    """1 - kappa at complex w = 1 - z, from the nearer of both ends."""
    result = np.empty_like(w)
    near = np.abs(w) <= np.abs(z)
    for side, x in ((near, w[near]), (~near, z[~near])):
        if x.size == 0:
            continue
        largest = float(np.abs(x).max())
        if largest > LARGEST:
            raise _TooHigh
        n = TERMS if largest > 0.5 else 60
        powers = np.exp(series.order * np.log(x))
        if side is near:
            inner = _horner(series.singular[:n], x)
            if series.logarithm.size:
                inner += np.log(x) * _horner(series.logarithm[:n], x)
            result[side] = -x * _horner(series.regular[:n], x) - powers * inner
        else:
            result[side] = 1.0 - powers * _horner(series.opposite[:n], x)
    return result


def _horner(coefficients: Array, x: Complex) -> Complex:
    total = np.zeros_like(x)
    for value in coefficients[::-1]:
        total *= x
        total += value
    return total


def _continued(relu: _Relu, w: Complex, z: Complex) -> Complex:
    """K at complex angles, from w and z = 1 - w of the first layer."""
    ntk = 1.0 - 2.0 * w
    for weight in relu.weights:
        unlike = _unlike(relu.series, w, z)
        if relu.is_ntk:
            carried = weight * relu.slope * (1.0 - _unlike(relu.lower, w, z)) * ntk
        w = 0.5 * weight * unlike
        z = 1.0 - w
        ntk = 1.0 - 2.0 * w + carried if relu.is_ntk else 1.0 - 2.0 * w
    return relu.scale * ntk


def _origin(relu: _Relu, y: Array) -> Array:
    """Im K(iy), the sum of its odd powers."""
    # sin^2(iy/2) = -sinh^2(y/2); its logarithm is continued from real angles, with the argument +pi
    sinh = relu.share * np.sinh(0.5 * y) ** 2
    return np.asarray(_continued(relu, _complex(-sinh, 0.0), _complex(1.0 + sinh, 0.0)).imag)


def _opposite(relu: _Relu, u: Array) -> Array:
    """Im K(pi + i(y* + u)), y* the height below which K is real there."""
    # z = -share sinh(u/2) sinh(u/2 + y*) vanishes at y*, with the argument -pi beyond
    product = relu.share * np.sinh(0.5 * u) * np.sinh(0.5 * u + relu.opposite_height)
    return np.asarray(_continued(relu, _complex(1.0 + product, 0.0), _complex(-product, -0.0)).imag)


def _complex(real: Array, imaginary: float) -> Complex:
    # real + 1j * imaginary would lose the sign of a zero
    value = np.empty(real.shape, dtype=np.complex128)
    value.real, value.imag = real, imaginary
    return value


def _contour_eigenvalues(
    kernel: InfiniteWidthKernel, input_variance: float, k_max: int, is_null: NDArray[np.bool_]
) -> tuple[Array, Array]:
    relu = _relu(kernel, input_variance)
    previous: tuple[Array, Array] | None = None
    best: tuple[float, float, Array, Array] | None = None
    for height in HEIGHTS:
        # Where e^(-kY) is rounding, nothing depends on Y.
        low = min(k_max, math.ceil(LAST / height))
        try:
            values, errors = _by_contour(relu, height, 0, low)
        except _TooHigh:
            continue
        if previous is not None:
            n = min(values.size, previous[0].size)
            shown = ~is_null[:n]
            change = np.abs(values[:n] - previous[0][:n])[shown]
            total = errors.copy()
            total[:n][shown] += change
            kept = ~is_null[: total.size]
            worst = float((total[kept] / np.abs(values[kept])).max())
            if best is None or worst < best[0]:
                best = worst, height, values, total
            if (change <= np.maximum(AGREEMENT * np.abs(values[:n][shown]), 4.0 * errors[:n][shown])).all():
                break
        previous = values, errors
    if best is None:
        raise ScalefieldError(
            "the kernel's eigenvalues could not be found: its singularities lie too close to the circle"
        )
    _, height, head, head_errors = best
    if k_max < head.size:
        return head, head_errors
    rest, rest_errors = _by_contour(relu, height, head.size, k_max)
    return np.concatenate([head, rest]), np.concatenate([head_errors, rest_errors])


def _by_contour(relu: _Relu, height: float, first: int, last: int) -> tuple[Array, Array]:
    """Eigenvalues first..last and the rounding errors of their terms."""
    values, errors = np.zeros(last + 1 - first), np.zeros(last + 1 - first)
    start = first
    while start <= last:
        # One set of nodes serves the frequencies of an octave.
        stop = min(last, 2 * max(start, 4) - 1)
        here = slice(start - first, stop - first + 1)
        k = np.arange(start, stop + 1, dtype=np.float64)
        sign = np.where(k % 2 == 0, 1.0, -1.0) / math.pi
        shift, rate = relu.opposite_height, float(max(start, 4))
        reach = LAST / max(1.0, float(start))
        u, weights = _line_nodes(height, _finest(relu, relu.origin_power) / rate, reach, relu.origin_power)
        part, size = _laplace(k, u, weights * _origin(relu, u), relu.origin_power)
        values[here], total = -part / math.pi, size / math.pi
        if shift < height:
            if shift > 0.0:
                finest = min(_finest(relu, relu.opposite_power) / rate, shift / 8.0)
                u, weights = _line_nodes(height - shift, finest, reach, relu.opposite_power)
            part, size = _laplace(k, u, weights * _opposite(relu, u), relu.opposite_power)
            damping = np.exp(-k * shift)
            values[here] += sign * damping * part
            total += damping * size / math.pi
        # Sums over nodes and the interpolation: measured up to 8e-15 for one layer
        errors[here] = 40.0 * relu.depth * EPSILON * total
        if start * height < LAST:
            x, weights = _across(max(stop, 16))
            w: Complex = np.asarray(relu.share * np.sin(0.5 * _complex(x, height)) ** 2, dtype=np.complex128)
            top = _continued(relu, w, 1.0 - w)
            damping = np.exp(-k * height) / math.pi
            values[here] += damping * (np.exp(1j * np.multiply.outer(k, x)) @ (weights * top)).real
            errors[here] += 4.0 * relu.depth * EPSILON * damping * float(weights @ np.abs(top))
        start = stop + 1
    return values, errors


def _laplace(k: Array, u: Array, terms: Array, power: float) -> tuple[Array, Array]:
    """sum_j terms_j e^(-k u_j) at each k of an octave, and the same of absolute terms."""
    columns = np.stack([terms, np.abs(terms)], axis=1)
    if k.size <= 2 * OCTAVE_POINTS:
        sums = np.exp(-np.multiply.outer(k, u)) @ columns
        return sums[:, 0], sums[:, 1]
    # Times k^(power + 1) it changes little over an octave: a polynomial in log k through Chebyshev points.
    low, high = math.log(k[0]), math.log(k[-1])
    nodes = np.cos(math.pi * (np.arange(OCTAVE_POINTS) + 0.5) / OCTAVE_POINTS)
    at = np.exp(0.5 * (low + high) + 0.5 * (high - low) * nodes)
    scaled = (np.exp(-np.multiply.outer(at, u)) @ columns) * at[:, None] ** (power + 1.0)
    transform = np.polynomial.chebyshev.chebvander(nodes, OCTAVE_POINTS - 1).T * (2.0 / OCTAVE_POINTS)
    transform[0] *= 0.5
    logs = np.log(k)
    curve = np.polynomial.chebyshev.chebval((2.0 * logs - low - high) / (high - low), transform @ scaled)
    sums = curve * k ** -(power + 1.0)
    return sums[0], sums[1]


def _finest(relu: _Relu, power: float) -> float:
    """Length of the panel next to a singularity u^power, times the frequency.

    Deeper layers multiply it by u^power and its powers. These are smooth for integer q (they are real where odd), and
    else met by the rule to 1e-5 only: the panel then holds less than 1e-11 of their integral.
    """
    if relu.depth == 1 or relu.series.order - 0.5 == round(relu.series.order - 0.5):
        return 0.25
    return float(0.25 * 10.0 ** (-11.0 / (2.0 * power + 1.0)))


def _line_nodes(length: float, finest: float, reach: float, power: float) -> tuple[Array, Array]:
    """Nodes for functions u^power x (smooth) on 0 < u < length, decayed beyond `reach`, of scales down to `finest`."""
    finest = min(finest, length)
    x, weight = _jacobi(power)
    u = [0.5 * finest * (x + 1.0)]
    # The rule holds for u^power p(u), p a polynomial: the weights of the function itself.
    weights = [0.5 * finest * weight / (x + 1.0) ** power]
    x, weight = _legendre()
    left = finest
    while left < min(length, reach) * (1.0 - 1e-12):
        right = min(2.0 * left, length)
        u.append(0.5 * (left + right) + 0.5 * (right - left) * x)
        weights.append(0.5 * (right - left) * weight)
        left = right
    return np.concatenate(u), np.concatenate(weights)


@cache
def _jacobi(power: float) -> tuple[Array, Array]:
    x, weight = special.roots_jacobi(20, 0.0, power)
    return np.asarray(x), np.asarray(weight)


@cache
def _legendre() -> tuple[Array, Array]:
    return np.polynomial.legendre.leggauss(18)


def _across(k: int) -> tuple[Array, Array]:
    """Gauss-Legendre panels on (0, pi), fine enough for cos(k x), and graded towards both ends."""
    x, weight = np.polynomial.legendre.leggauss(20)
    graded = 0.5 * math.pi * 2.0 ** np.arange(-6, 1.0)
    ends = np.unique(
        np.concatenate([[0.0], graded, math.pi - graded, [math.pi], np.linspace(0.0, math.pi, 2 + k // 8)])
    )
    length = np.diff(ends)
    return (ends[:-1, None] + 0.5 * length[:, None] * (x + 1.0)).ravel(), (0.5 * length[:, None] * weight).ravel()
