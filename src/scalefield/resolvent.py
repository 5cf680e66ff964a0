r"""The deterministic equivalent of a random-feature kernel: its resolvent and spectral measures (theory section 6).

For X = Lambda^{1/2} (A(0)^T A(0)/N) Lambda^{1/2} and u = Lambda^{1/2} w* everything is explicit in kappa:

.. math::
    z(\kappa) = \kappa \Big(1 - \frac{1}{N} \sum_k \frac{\lambda_k}{\kappa+\lambda_k}\Big), \qquad
    \langle u, (X+z)^{-1} u \rangle = \frac{\kappa}{z} \sum_k \frac{u_k^2}{\kappa+\lambda_k} .

The spectrum s = -z > 0 is the image of arcs kappa = x + i y(x) on which Im z = 0, that is

.. math:: A(x, y) = \frac{1}{N} \sum_k \frac{\lambda_k^2}{(x+\lambda_k)^2 + y^2} = 1 .

They stand over the bands phi(x) = A(x, 0) > 1: one around each isolated pole -lambda_k and merged ones, the last
of which goes on to the lower edge of the spectrum.
"""

from __future__ import annotations

import cmath
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scalefield._validate import as_float
from scalefield.contour import ContourMeasure, source_contour, trace_contour
from scalefield.quadrature import _discrete_gauss, _gauss_rule, _geometric_blocks, _power_sum, check_rtol
from scalefield.spectral_measure import SpectralMeasure
from scalefield.spectrum import PowerLawSpectrum, Spectrum, Task

__all__ = ["DeterministicEquivalent", "bottleneck_loss"]

Array = NDArray[np.float64]

_EXACT_MODES = 32
_BLOCK_NODES = 14
_TAIL_NODES = 6
# At infinite width |z| down to 1e-44 is resolved.
_SMALLEST = 1e-44
# Modes beyond this multiple of the width are tail: their eigenvalues are far below kappa_0.
_REACH = 64.0
# Ripples of the spectral density that single modes make, of order exp(-2 pi Im k*), are below rounding beyond it.
_SMOOTH_ABOVE = 6.5
# Dips of phi between neighbouring poles below this value end pieces.
_DIP_BOUND = 4.0
# Gauss-Legendre nodes of a piece of a band.
_PIECE_NODES = 20
# Isolated bands of a power law, at most: about 1.2 alpha sqrt(N) modes may have one. Seconds of work.
_MOST_POLES = 1_000_000
# Nodes of a rule over one isolated band, at most.
_BAND_NODES = 32


@dataclass(frozen=True)
class DeterministicEquivalent:
    r"""Resolvent and spectral measures of random features, averaged over the projection A(0).

    .. math:: X = \Lambda^{1/2} \tfrac{1}{N} A(0)^T A(0) \Lambda^{1/2}, \qquad u = \Lambda^{1/2} w^*

    Exact to leading order in 1/N; the first two moments of both measures are exact.

    Parameters
    ----------
    spectrum : PowerLawSpectrum or Spectrum
        The task.
    width : float or inf
        N >= 1, the number of features; need not be whole.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If the width is below 1.

    Examples
    --------
    >>> import scalefield as sf
    >>> from scalefield.resolvent import DeterministicEquivalent
    >>> equivalent = DeterministicEquivalent(sf.Spectrum([1.0, 1.0], [1.0, 0.0]), width=1)
    >>> float(round(equivalent.atom, 12))
    0.5
    """

    spectrum: Task
    width: float

    def __post_init__(self) -> None:
        if not isinstance(self.spectrum, (PowerLawSpectrum, Spectrum)):
            raise TypeError(
                "spectrum must be a PowerLawSpectrum or a Spectrum, "
                f"got {self.spectrum!r} of type {type(self.spectrum).__name__}"
            )
        object.__setattr__(self, "width", as_float("width", self.width, minimum=1.0, allow_inf=True))

    # ------------------------------------------------------------------------------------------ scalars

    @cached_property
    def n_modes(self) -> float:
        """M, the number of modes with a positive eigenvalue; inf for infinitely many."""
        if isinstance(self.spectrum, Spectrum):
            return float(np.count_nonzero(self.spectrum.eigenvalues > 0.0))
        return math.inf if self.spectrum.n_modes is None else float(self.spectrum.n_modes)

    @cached_property
    def kappa_0(self) -> float:
        """kappa at z = 0: sum_k lambda_k/(kappa_0 + lambda_k) = N, or 0 if N >= M."""
        if self.width >= self.n_modes:
            return 0.0
        return _solve_kappa_0(self._nodes, self.width)

    @cached_property
    def atom(self) -> float:
        """sum_k u_k^2 kappa_0/(kappa_0 + lambda_k), the power in the null space of X: the width bottleneck."""
        nodes = self._nodes
        return float(nodes.source @ (self.kappa_0 / (self.kappa_0 + nodes.eigenvalues)))

    @cached_property
    def edges(self) -> Array:
        """Bands of the spectrum of X, shape (n_bands, 2): lower and upper edge, from the largest band down.

        At infinite width the spectrum is a set of points: shape (0, 2).
        """
        return np.empty((0, 2)) if self.width == math.inf else self._bands.edges.copy()

    @property
    def support(self) -> tuple[float, float]:
        """Smallest and largest s > 0 of the spectrum (of the nodes at infinite width)."""
        if self.width == math.inf:
            return float(self._nodes.eigenvalues.min()), float(self._nodes.eigenvalues.max())
        return float(self._bands.edges[-1, 0]), float(self._bands.edges[0, 1])

    # --------------------------------------------------------------------------------------- resolvents

    def kappa(self, z: ArrayLike) -> Any:
        r"""Solve kappa (1 - (1/N) sum_k lambda_k/(kappa + lambda_k)) = z off the spectrum.

        Parameters
        ----------
        z : array_like, any shape
            Complex or positive points; 0 and the negative real axis are excluded.

        Returns
        -------
        ndarray or scalar
            kappa(z) of the same shape, real for real z; Im kappa has the sign of Im z.

        Raises
        ------
        TypeError
            If z is not numeric.
        ValueError
            If a point is zero, negative, or not finite.

        Notes
        -----
        Points are worked off ray by ray from large |z| to small, each predicted from the one before; some
        20 microseconds a point on a ray of an infinite spectrum. Right to some units of the last place for
        |z| between 1e-40 and 1e40.
        """
        points, real = _as_points(z)
        if self.width == math.inf:
            result = points.copy()
        else:
            result = self._solve_kappa(points)
        return _like(result, real)

    def m(self, z: ArrayLike) -> Any:
        """m(z) = z/kappa(z), the factor by which finite width shrinks eigenvalues; arguments as `kappa`."""
        points, real = _as_points(z)
        return _like(points / np.asarray(self.kappa(points), dtype=complex), real)

    def source_resolvent(self, z: ArrayLike) -> Any:
        """<u, (X+z)^{-1} u> = (kappa/z) sum_k u_k^2/(kappa + lambda_k); arguments as `kappa`."""
        points, real = _as_points(z)
        kappa = np.asarray(self.kappa(points), dtype=complex)
        nodes = self._nodes
        # u^2/(kappa + lambda) = (u^2/lambda) f, k^-(q - alpha) f for a power law
        exponent = nodes.settings[1] - nodes.settings[0]
        return _like(kappa / points * self._sum(kappa, exponent, nodes.source / nodes.eigenvalues), real)

    def trace_resolvent(self, z: ArrayLike) -> Any:
        """Sum of 1/(s + z) over the min(N, M) non-zero eigenvalues s of X; arguments as `kappa`.

        N/kappa for N <= M. Infinite (a ValueError) if both N and M are.
        """
        points, real = _as_points(z)
        kappa = np.asarray(self.kappa(points), dtype=complex)
        if self.width <= self.n_modes:
            if self.width == math.inf:
                raise ValueError("trace_resolvent is infinite at infinite width with infinitely many modes")
            return _like(self.width / kappa, real)
        nodes = self._nodes
        return _like(kappa / points * self._sum(kappa, -nodes.settings[0], nodes.counts / nodes.eigenvalues), real)

    # ----------------------------------------------------------------------------------------- measures

    def density(self, s: ArrayLike) -> tuple[Any, Any]:
        """Densities of the source and the trace measure at real s > 0, 0 in gaps.

        Raises
        ------
        ValueError
            At infinite width, where there are none, and for s that are not positive and finite.
        """
        if self.width == math.inf:
            raise ValueError("density needs a finite width: at infinite width the spectrum is a set of points")
        values = np.asarray(s)
        if values.dtype.kind not in "iuf":
            raise TypeError(f"s must be real numbers, got dtype {values.dtype}")
        values = values.astype(np.float64)
        if not (np.isfinite(values) & (values > 0.0)).all():
            raise ValueError("s must be finite and greater than 0")
        from scalefield._native import spectral_bands

        nodes, bands = self._nodes, self._bands
        flat = values.ravel()
        result = np.zeros((flat.size, 2))
        # Bands by increasing s; between two nodes lies the x of a value.
        band = np.searchsorted(bands.edges[::-1, 0], flat, side="right") - 1
        band = len(bands.edges) - 1 - band
        inside = (band < len(bands.edges)) & (flat < bands.edges[np.minimum(band, len(bands.edges) - 1), 1])
        inside &= flat > bands.edges[np.minimum(band, len(bands.edges) - 1), 0]
        grid_s = np.concatenate([bands.edges[:, 1], bands.edges[:, 0], bands.s])
        grid_x = np.concatenate([bands.edges_x[:, 0], bands.edges_x[:, 1], bands.x])
        order = np.argsort(grid_s, kind="stable")
        grid_s, grid_x = grid_s[order], grid_x[order]
        at = np.searchsorted(grid_s, flat[inside], side="right")
        found = np.empty((at.size, 2))
        spectral_bands.solve_arc_points(
            np.ascontiguousarray(flat[inside]),
            np.ascontiguousarray(grid_x[np.minimum(at, grid_x.size - 1)]),
            np.ascontiguousarray(grid_x[at - 1]),
            *nodes.arrays,
            np.empty(5),
            found,
        )
        result[inside] = found
        source, trace = result[:, 0].reshape(values.shape), result[:, 1].reshape(values.shape)
        return source[()], trace[()]

    def measure(self, rtol: float = 1e-12) -> SpectralMeasure:
        """Nodes with positive masses for both measures, fine-grained.

        Parameters
        ----------
        rtol : float
            Error of sums of smooth functions relative to their total, 1e-13 to 0.1. The nodes are right to
            rounding (about 1e-13) whatever it is; the value is stored.

        Notes
        -----
        Isolated bands have a few nodes each, merged ones 16 on each stretch as long as the density is
        analytic: about 30 sqrt(N) alpha nodes for a power law. Cached: the second call costs nothing.

        Raises
        ------
        ValueError
            If rtol is out of range, or a power law of finite width beyond about 1e11 has too many bands.
        """
        rtol = check_rtol(rtol)
        cache = self.__dict__.setdefault("_measures", {})
        if rtol not in cache:
            cache[rtol] = self._measure(rtol)
        measure: SpectralMeasure = cache[rtol]
        return measure

    def source_contour(self, horizon: float, rtol: float = 1e-10) -> ContourMeasure:
        r"""Source measure with nodes on a ray, as many at any width: for functions that decay, as in gradient flow.

        .. math:: \langle u, f(X) u \rangle = \mu_0 f(0) + \sum_k u_k^2 f(\lambda_k)
            + \frac{1}{\pi} \mathrm{Im} \int_0^{\infty e^{i\pi/4}} f(s)\, \Delta R(-s)\, ds

        with Delta R the resolvent less that of infinite width, of the modes above 0.01 kappa_0 and a mass at kappa_0
        for the others.

        Parameters
        ----------
        horizon : float
            Largest tau >= 1 of functions like e^{-s tau}.
        rtol : float
            Relative accuracy of their integrals, 1e-13 to 0.1.

        Returns
        -------
        ContourMeasure

        Raises
        ------
        TypeError, ValueError
            For arguments of the wrong type or range; if N >= M, where there is no atom for errors to be relative to.

        Notes
        -----
        Some 300 nodes on the ray for 12 decades at 1e-10, a few milliseconds. Theory section 6.

        Examples
        --------
        >>> import numpy as np
        >>> import scalefield as sf
        >>> equivalent = sf.DeterministicEquivalent(sf.PowerLawSpectrum(1.5, 0.5), 100)
        >>> contour, nodes = equivalent.source_contour(1e6), equivalent.measure()
        >>> loss = nodes.atom + nodes.source_power @ np.exp(-2e3 * nodes.source_eigenvalues)
        >>> bool(abs(contour.integrate(lambda s: np.exp(-2e3 * s)) - loss) < 1e-9 * loss)
        True
        """
        return source_contour(self, *self._contour_arguments(horizon, rtol))

    def trace_contour(self, horizon: float, rtol: float = 1e-10) -> ContourMeasure:
        """Trace measure with nodes on a ray; arguments and errors as `source_contour`, but errors beside N kappa_0.

        Examples
        --------
        >>> import numpy as np
        >>> import scalefield as sf
        >>> equivalent = sf.DeterministicEquivalent(sf.PowerLawSpectrum(1.5, 0.5), 100)
        >>> contour, nodes = equivalent.trace_contour(1e6), equivalent.measure()
        >>> trace = (nodes.weights * nodes.eigenvalues) @ np.exp(-30.0 * nodes.eigenvalues)
        >>> bool(abs(contour.integrate(lambda s: s * np.exp(-30.0 * s)) - trace) < 1e-9 * trace)
        True
        """
        return trace_contour(self, *self._contour_arguments(horizon, rtol))

    # ------------------------------------------------------------------------------------------ private

    def _contour_arguments(self, horizon: float, rtol: float) -> tuple[float, float]:
        if self.width >= self.n_modes:
            raise ValueError(
                f"width must be below the number of modes {self.n_modes:g} for a contour, got {self.width:g}; "
                "`measure` has real nodes"
            )
        return as_float("horizon", horizon, minimum=1.0), check_rtol(rtol)

    def _measure(self, rtol: float) -> SpectralMeasure:
        if self.width == math.inf:
            nodes = self._nodes
            with_power, with_count = nodes.source > 0.0, nodes.counts > 0.0
            return SpectralMeasure(
                nodes.eigenvalues[with_power] if with_power.any() else nodes.eigenvalues[:1],
                nodes.source[with_power] if with_power.any() else np.zeros(1),
                nodes.eigenvalues[with_count],
                nodes.counts[with_count],
                atom=0.0,
                error=rtol,
            )
        bands = self._bands
        return SpectralMeasure(bands.s, bands.source, bands.s, bands.trace, atom=self.atom, error=rtol)

    @cached_property
    def _nodes(self) -> _Nodes:
        if isinstance(self.spectrum, PowerLawSpectrum):
            return _power_law_nodes(self.spectrum, self.width)
        assert isinstance(self.spectrum, Spectrum)
        return _explicit_nodes(self.spectrum, self.width)

    @cached_property
    def _bands(self) -> _Bands:
        return _find_bands(self)

    def _solve_kappa(self, points: NDArray[np.complex128]) -> NDArray[np.complex128]:
        from scalefield._native import mode_sums

        flat = points.ravel()
        upper = np.where(flat.imag < 0.0, flat.conj(), flat)
        # Rays (angles equal to rounding), each from large |z| to small.
        order = np.lexsort((-np.abs(upper), np.round(np.angle(upper), 9)))
        real, imag = np.empty(flat.size), np.empty(flat.size)
        nodes = self._nodes
        status = mode_sums.solve_kappa(
            np.ascontiguousarray(upper.real[order]),
            np.ascontiguousarray(upper.imag[order]),
            self.kappa_0,
            nodes.trace / self.width,
            *nodes.arrays,
            np.empty(5),
            real,
            imag,
        )
        if status != mode_sums.OK:
            raise ArithmeticError(f"kappa(z) did not converge at width {self.width:g}")
        result = np.empty(flat.size, dtype=complex)
        result.real[order] = real
        result.imag[order] = imag
        result.imag[flat.imag < 0.0] *= -1.0
        return result.reshape(points.shape)

    def _sum(self, kappa: NDArray[np.complex128], exponent: float, weights: Array) -> NDArray[np.complex128]:
        """sum_k k^-exponent f_k(kappa), the nodes' weights given."""
        from scalefield._native import mode_sums

        flat = kappa.ravel()
        real, imag = np.empty(flat.size), np.empty(flat.size)
        mode_sums.weighted_sums(
            np.ascontiguousarray(flat.real),
            np.ascontiguousarray(np.abs(flat.imag)),
            exponent,
            weights,
            *self._nodes.arrays,
            real,
            imag,
        )
        result: NDArray[np.complex128] = (real + 1j * np.where(flat.imag < 0.0, -imag, imag)).reshape(kappa.shape)
        return result


def bottleneck_loss(
    spectrum: Task, *, width: float | None = None, n_samples: float | None = None, label_noise: float = 0.0
) -> float:
    r"""Test loss after infinite training, limited by the width, by the number of samples, or by both.

    With kappa from sum_k lambda_k/(lambda_k + kappa) = min(N, P), u_k^2 = lambda_k w*_k^2, f_k =
    lambda_k/(lambda_k + kappa) and F = sum_k f_k^2,

    .. math::
        N < P: \quad \frac{P \sum_k u_k^2 (1 - f_k) + N \sigma^2}{P - N} , \qquad
        P < N: \quad \frac{P \sum_k u_k^2 (1 - f_k)^2 + F \sigma^2}{P - F}
            + \frac{P}{N - P} \Big( \sum_k u_k^2 (1 - f_k) + \sigma^2 \Big) .

    At N = P both diverge (double descent). If all M modes can be learned, M at most N and P, M sigma^2/(P - M) is left.

    Training is gradient flow from w(0) = 0, of any richness: the balance law of theory section 7 lets every component
    with s > 0 be learned in the end, and where that leads, interpolation or least squares in the features A(0) psi,
    does not depend on the order in which they are. Of gradient descent it is exact in the lazy limit.

    For power laws the width alone leaves N^{-alpha min(1, beta)}, the samples alone P^{-alpha min(2, beta)}; the width
    exponent that the paper prints, min(2, beta), leaves out the variance.

    Parameters
    ----------
    spectrum : PowerLawSpectrum or Spectrum
        The task.
    width : float, optional
        N >= 1, need not be whole; inf if not given.
    n_samples : float, optional
        P >= 1, likewise. One of the two must be given.
    label_noise : float
        Standard deviation sigma >= 0 of the noise on the samples' labels (default 0); it does not count as loss itself.

    Returns
    -------
    float
        Inf at N = P below the number of modes, and with label noise at P = M.

    Raises
    ------
    TypeError, ValueError
        For arguments of the wrong type or range; if neither width nor n_samples is given.

    Notes
    -----
    Milliseconds for power laws of any length, O(M) for explicit spectra. Averaged over A(0) and data, to leading order
    in 1/N and 1/P. Theory sections 7d and 9; Bordelon, Atanasov & Pehlevan, arXiv:2409.17858, Eqs. 12, 79.

    Examples
    --------
    >>> import scalefield as sf
    >>> task = sf.PowerLawSpectrum(1.5, 0.5)
    >>> ratio = sf.bottleneck_loss(task, width=1e8) / sf.bottleneck_loss(task, width=1e6)
    >>> bool(abs(ratio / 100 ** -(1.5 * 0.5) - 1) < 0.01)
    True
    >>> narrow, critical, wide = (sf.bottleneck_loss(task, width=n, n_samples=100) for n in (50, 99, 200))
    >>> narrow < critical > wide
    True
    """
    if width is None and n_samples is None:
        raise ValueError("give width, n_samples or both, got neither")
    size, samples = (
        math.inf if value is None else as_float(name, value, minimum=1.0, allow_inf=True)
        for name, value in (("width", width), ("n_samples", n_samples))
    )
    noise = as_float("label_noise", label_noise, minimum=0.0) ** 2
    smaller = min(size, samples)
    equivalent = DeterministicEquivalent(spectrum, smaller)
    n_modes = equivalent.n_modes
    if smaller >= n_modes:
        if noise == 0.0 or samples == math.inf:
            return 0.0
        return noise * n_modes / (samples - n_modes) if samples > n_modes else math.inf
    nodes, kappa = equivalent._nodes, equivalent.kappa_0
    if size == samples:
        return math.inf if noise + float(nodes.source.sum()) > 0.0 else 0.0
    if samples == math.inf:
        return equivalent.atom
    if size < samples:
        return (equivalent.atom + noise * (size / samples)) / (1.0 - size / samples)
    left = kappa / (kappa + nodes.eigenvalues)
    learned = nodes.eigenvalues / (kappa + nodes.eigenvalues)
    # P - F = sum learned left
    room = float(nodes.counts @ (learned * left))
    loss = float(nodes.source @ left**2) * samples / room
    # F = sum learned^2 itself, since P - room has no digits where little is learned of any mode
    loss += noise * (float(nodes.counts @ learned**2) / room)
    return loss + (equivalent.atom + noise) * (1.0 / (size / samples - 1.0))


@dataclass(frozen=True, eq=False)
class _Nodes:
    """Nodes of sums over modes, as the kernels take them (`mode_sums`), and the poles that may have own bands."""

    eigenvalues: Array
    counts: Array
    source: Array
    modes: Array
    log_modes: Array
    starts: Array
    offsets: NDArray[np.int64]
    settings: Array
    poles: Array
    multiplicity: Array
    last_pole: float

    @property
    def arrays(self) -> tuple[Array, Array, Array, Array, Array, Array, NDArray[np.int64], Array]:
        return (
            self.eigenvalues,
            self.counts,
            self.source,
            self.modes,
            self.log_modes,
            self.starts,
            self.offsets,
            self.settings,
        )

    @property
    def is_power_law(self) -> bool:
        return self.modes.size > 0

    @property
    def trace(self) -> float:
        return float(self.counts @ self.eigenvalues)


@dataclass(frozen=True, eq=False)
class _Bands:
    """Edges in s (lower, upper) and in x (of the upper and lower s), and nodes of all bands."""

    edges: Array
    edges_x: Array
    s: Array
    trace: Array
    source: Array
    x: Array


def _power_law_nodes(spectrum: PowerLawSpectrum, width: float) -> _Nodes:
    alpha, beta = spectrum.alpha, spectrum.beta
    last = math.inf if spectrum.n_modes is None else float(spectrum.n_modes)
    exponent = alpha * beta + 1.0
    ratio = min(2.0, 4.0 ** (1.0 / alpha))
    reach = last
    if width == math.inf:
        reach = min(last, _SMALLEST ** (-1.0 / alpha)) if last == math.inf else last
    elif _REACH * width < last:
        reach = _REACH * width
    k = [np.arange(1.0, min(_EXACT_MODES, last) + 1.0)]
    c = [np.ones(k[0].size)]
    starts, offsets = [_EXACT_MODES + 1.0], [k[0].size]
    end = max(last + 1.0, math.nextafter(last, math.inf))
    while starts[-1] <= min(reach, last):
        start = starts[-1]
        stop = min(max(start + 1.0, math.floor(start * ratio)), end)
        block_k, block_c = _discrete_gauss(start, stop - start, _BLOCK_NODES)
        k.append(block_k)
        c.append(block_c)
        starts.append(stop)
        offsets.append(offsets[-1] + block_k.size)
    modes = np.concatenate(k)
    counts = np.concatenate(c)
    tiny = np.finfo(float).tiny
    eigenvalues = np.maximum(modes**-alpha, tiny)
    source = counts * modes**-exponent
    covered = starts[-1] > last or last <= _EXACT_MODES
    if not covered:
        x, mass, x_source, source_mass = _tail(alpha, exponent, starts[-1], last, ratio)
        eigenvalues = np.concatenate([eigenvalues, x, x_source])
        counts = np.concatenate([counts, mass / x, np.zeros(x_source.size)])
        source = np.concatenate([source, np.zeros(x.size), source_mass])
    complement = covered and last < math.inf and width < math.inf
    settings = np.array(
        [
            alpha,
            exponent,
            1.0 / width,
            1.0 - last / width if complement else 0.0,
            last**-alpha if complement else 0.0,
            width,
        ]
    )
    n_poles = 2.0
    if width < math.inf:
        n_poles = min(last, math.ceil(1.2 * max(alpha, 1.0) * math.sqrt(width)) + 40.0)
    # kappa needs none of them; `_find_bands` refuses where there are too many.
    poles = np.arange(1.0, min(n_poles, _MOST_POLES) + 1.0) ** -alpha
    return _Nodes(
        eigenvalues,
        counts,
        source,
        modes,
        np.log(modes),
        np.array(starts),
        np.array(offsets, dtype=np.int64),
        settings,
        poles,
        np.ones(poles.size),
        last**-alpha,
    )


def _tail(alpha: float, exponent: float, start: float, last: float, ratio: float) -> tuple[Array, Array, Array, Array]:
    """Gauss rules in lambda, (nodes, masses), of the modes start..last: with mass lambda and with mass u^2.

    Their eigenvalues are far below kappa_0, so few nodes serve, and all below 1e-16 of the first act as one.
    """
    k, c, rest = _geometric_blocks(start, min(last, start * 1e16 ** (1.0 / alpha)), math.inf, ratio, _BLOCK_NODES)
    x = k**-alpha
    masses = [c * x, c * k**-exponent]
    if rest <= last:
        x = np.append(x, rest**-alpha)
        masses[0] = np.append(masses[0], _power_sum(alpha, rest, last))
        masses[1] = np.append(masses[1], _power_sum(exponent, rest, last))
    return (*_gauss_rule(x, masses[0], _TAIL_NODES), *_gauss_rule(x, masses[1], _TAIL_NODES))


def _explicit_nodes(spectrum: Spectrum, width: float) -> _Nodes:
    positive = spectrum.eigenvalues > 0.0
    values, power = spectrum.eigenvalues[positive], spectrum.target_power[positive]
    first = np.flatnonzero(np.diff(values, prepend=np.inf))
    eigenvalues = values[first]
    multiplicity = np.diff(np.append(first, values.size)).astype(np.float64)
    source = np.add.reduceat(power, first)
    settings = np.array([1.0, 0.0, 1.0 / width, 1.0 - values.size / width, eigenvalues[-1], width])
    empty = np.empty(0)
    return _Nodes(
        eigenvalues,
        multiplicity,
        source,
        empty,
        empty,
        np.zeros(1),
        np.zeros(1, dtype=np.int64),
        settings,
        eigenvalues,
        multiplicity,
        float(eigenvalues[-1]),
    )


def _solve_kappa_0(nodes: _Nodes, width: float) -> float:
    r"""Root of S_1(kappa) = N in log kappa by Newton's method, kept inside a bracket that it narrows.

    As P = Q with both positive, for n modes above kappa: S_1 - N = P - Q,

    .. math::
        P = \sum_{\lambda_k \le \kappa} \frac{\lambda_k}{\kappa+\lambda_k} + (n - N)_+ , \qquad
        Q = \sum_{\lambda_k > \kappa} \frac{\kappa}{\kappa+\lambda_k} + (N - n)_+ .

    In a gap of the spectrum with N modes above it both are far below rounding of S_1.
    """
    x, c = nodes.eigenvalues, nodes.counts
    # kappa_0 < tr Lambda / N since kappa S_1 < tr Lambda.
    log_kappa = math.log(nodes.trace / width)
    low, high = -math.inf, log_kappa
    for _ in range(400):
        kappa = math.exp(log_kappa)
        large = x > kappa
        learned, rest = x / (kappa + x), kappa / (kappa + x)
        surplus = float(c[large].sum()) - width
        gain = float(c[~large] @ learned[~large]) + max(surplus, 0.0)
        loss = float(c[large] @ rest[large]) + max(-surplus, 0.0)
        change = c * learned * rest
        slope = float(change[~large].sum()) / gain + float(change[large].sum()) / loss
        gap = math.log(gain / loss)
        if gap > 0.0:
            low = max(low, log_kappa)
        else:
            high = min(high, log_kappa)
        # Both sums are flat far from the root.
        new = log_kappa + max(-5.0, min(5.0, gap / slope))
        if abs(new - log_kappa) < 1e-9:
            return math.exp(new)
        if not low < new < high:
            new = 0.5 * (low + high) if low > -math.inf else log_kappa - 2.0
        log_kappa = new
    return math.exp(log_kappa)


def _find_bands(equivalent: DeterministicEquivalent) -> _Bands:
    """Edges, pieces and nodes of all bands of a finite width."""
    from scalefield._native import spectral_bands

    nodes, width, n_modes = equivalent._nodes, equivalent.width, equivalent.n_modes
    arrays, sums = nodes.arrays, np.empty(5)
    poles = nodes.poles
    numbered = nodes.is_power_law
    if numbered and poles.size == _MOST_POLES < n_modes:
        raise ValueError(f"width {width:g} is too large to resolve every band of the spectrum: about 1e11 at most")
    index = np.empty(poles.size, dtype=np.int64)
    dips = np.empty((poles.size, 4))
    _, n_dips = spectral_bands.find_dips(
        poles,
        nodes.multiplicity,
        _DIP_BOUND,
        _DIP_BOUND if numbered else math.inf,
        int(numbered),
        *arrays,
        sums,
        index,
        dips,
    )
    index, dips = index[:n_dips], dips[:n_dips]

    def edge(pole: float, mode: float, near: float, far: float) -> float:
        return float(spectral_bands.find_edge(pole, mode, near, far, *arrays, sums))

    def mode_of(i: int) -> float:
        return i + 1.0 if numbered else 0.0

    # Left and right ends as (pole, mode, d). Left of all poles phi <= (1/N) (sum lambda^2)/d^2.
    first = float(np.sqrt(nodes.counts @ nodes.eigenvalues**2 / width))
    ends_left = [(poles[0], mode_of(0), edge(poles[0], mode_of(0), 0.0, -2.0 * first))]
    ends_right = []
    gap = dips[:, 0] < 0.0
    for i, dip in zip(index[gap], dips[gap], strict=True):
        ends_right.append((poles[i], mode_of(i), dip[2]))
        ends_left.append((poles[i + 1], mode_of(i + 1), dip[3]))
    last_mode = n_modes if numbered else 0.0
    if width > n_modes:
        ends_right.append((nodes.last_pole, last_mode, edge(nodes.last_pole, last_mode, 0.0, nodes.last_pole)))
    elif width == n_modes:
        ends_right.append((0.0, 0.0, 0.0))
    else:
        ends_right.append((0.0, 0.0, edge(0.0, 0.0, 0.0, equivalent.kappa_0)))
    n_bands = len(ends_left)
    left_x = np.array([d - base for base, _, d in ends_left])
    # Right edges far below their pole are found again from kappa = 0, for all digits of small ones.
    dips_x = np.append(dips[gap, 1] - poles[index[gap] + 1], 0.0)
    images = [
        (0.0, 0.0, edge(0.0, 0.0, -0.5 * base, dip)) if d > 0.5 * base > 0.0 else (base, mode, d)
        for (base, mode, d), dip in zip(ends_right, dips_x, strict=True)
    ]
    right_x = np.array([d - base for base, _, d in images])
    upper = [spectral_bands.edge_image(base, mode, d, *arrays, sums)[0] for base, mode, d in ends_left]
    lower = [spectral_bands.edge_image(base, mode, d, *arrays, sums) for base, mode, d in images]
    edges = np.array([[max(end[0], 0.0) for end in lower], upper]).T
    # For N very near M rounding of A hides what is closer to s = 0 than some 1e-14 of this, unless all modes are nodes.
    hidden = nodes.last_pole if nodes.starts.size > 1 else 0.0
    # Distances to the next singularity beyond each edge: the next band, or s = 0 for the last one.
    space = np.append(left_x[1:] - right_x[:-1], lower[-1][0] / lower[-1][1] if lower[-1][0] > 0.0 else math.inf)
    space[-1] = max(space[-1], 1e-14 * hidden)
    space_left = np.append(math.inf, space[:-1])

    breaks = dips[~gap, 1] - poles[index[~gap] + 1]
    pieces = np.empty((4 * n_bands + 64 + min(int(8.0 * math.sqrt(width)), 8 * poles.size), 5))
    kinds = np.empty(len(pieces), dtype=np.int64)
    counts: list[int] = []
    n_pieces = 0
    # At N = M the spectrum reaches s = 0 with a density like s^{-1/2}: its end is described by y, which is of order
    # sqrt(s), in octaves down to where no mass is left.
    tip = 0.1 * nodes.last_pole if width == n_modes else 0.0
    edges_right = right_x.copy()
    tip_x = math.nan
    if tip > 0.0:
        tip_x = right_x[-1] = float(spectral_bands.find_tip(tip, 0.0, *arrays, sums))
        space[-1] = -right_x[-1]
    for band in range(n_bands):
        (base, mode, d_left), right = ends_left[band], ends_right[band]
        half = 0.5 * (right_x[band] - left_x[band])
        if right[0] == base:
            half = 0.5 * (right[2] - d_left)
            nearest = min(space[band], space_left[band])
            pole = int(mode) - 1 if numbered else int(np.searchsorted(-poles, -base))
            rate = _convergence_rate(nodes, width, pole, d_left, right[2])
            rate = min(rate, math.acosh(1.0 + nearest / half) if nearest < math.inf else rate)
            n = math.ceil(min(18.0 / rate, 1e6)) + 4 if rate > 0.0 else _BAND_NODES + 1
            if n <= _BAND_NODES:
                if n_pieces == len(kinds):
                    pieces, kinds = _enlarged(pieces, kinds)
                pieces[n_pieces] = base, mode, d_left, right[2], half * half
                kinds[n_pieces] = spectral_bands.WHOLE
                n_pieces += 1
                counts.append(n)
                continue
        # Poles on the right edge's left, and kappa = 0.
        right_height = 2.0 * min(abs(right_x[band]), right[2] if right[0] > 0.0 else right_x[band] + nodes.last_pole)
        right_height = math.inf if right_x[band] == tip_x else max(right_height, 1e-7 * hidden)
        right_level = math.inf if right_x[band] == tip_x else max(4.0 * edges[band, 0], 1e-14 * hidden)
        inside = breaks[(breaks > left_x[band]) & (breaks < right_x[band])]
        while True:
            status, n_after = spectral_bands.walk_band(
                left_x[band],
                right_x[band],
                space_left[band],
                space[band],
                -2.0 * d_left,
                right_height,
                right_level,
                np.ascontiguousarray(inside),
                min(-d_left, half),
                _SMOOTH_ABOVE,
                n_pieces,
                *arrays,
                sums,
                pieces,
                kinds,
            )
            if status != spectral_bands.FULL:
                break
            pieces, kinds = _enlarged(pieces, kinds)
        if status != spectral_bands.OK:
            raise ArithmeticError(f"the spectrum at width {width:g} has a band that cannot be resolved")
        counts.extend([_PIECE_NODES] * (n_after - n_pieces))
        n_pieces = n_after
    pieces, kinds = pieces[:n_pieces], kinds[:n_pieces]
    if tip > 0.0:
        octaves = tip * 2.0 ** -np.arange(61.0)
        octaves[-1] = 0.0
        tips = np.zeros((60, 5))
        near = 1e-3 * tip
        tips[:, 4] = spectral_bands.find_tip(near, 0.0, *arrays, sums) / near**2
        tips[:, 2], tips[:, 3] = octaves[1:], octaves[:-1]
        pieces, kinds = np.concatenate([pieces, tips]), np.append(kinds, np.full(60, spectral_bands.TIP))
        counts.extend([_PIECE_NODES] * 60)
        n_pieces += 60
    cumulated = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    gauss_x, gauss_w = np.polynomial.legendre.leggauss(_PIECE_NODES)
    rows = np.empty((int(cumulated[-1]), 5))
    spectral_bands.evaluate_pieces(
        pieces, kinds, cumulated, 0.5 + 0.5 * gauss_x, 0.5 * gauss_w, 0, n_pieces, *arrays, sums, rows
    )
    rows = rows[rows[:, 0] > 0.0]
    return _Bands(
        edges,
        np.stack([left_x, edges_right], axis=1),
        *(np.ascontiguousarray(rows[:, j]) for j in (0, 1, 2, 3)),
    )


def _convergence_rate(nodes: _Nodes, width: float, pole: int, d_left: float, d_right: float) -> float:
    r"""Rate r at which the rule x = middle - half cos(theta) on a lone pole's band converges, like exp(-2 r n).

    y(x) is singular where A(x, y^2) = 1 has a double root in y^2. Of two poles with a_i = lambda_i^2/N at distance
    D the complex x of that is at D/2 + (a_1 - a_2)/(2 D) \pm i sqrt(a_1 a_2)/D from the first.
    """
    middle, half = 0.5 * (d_left + d_right), 0.5 * (d_right - d_left)
    rate = math.inf
    for other in (pole - 1, pole + 1):
        if not 0 <= other < nodes.poles.size:
            continue
        distance = float(nodes.poles[pole] - nodes.poles[other])
        a = nodes.multiplicity[pole] * nodes.poles[pole] ** 2 / width
        b = nodes.multiplicity[other] * nodes.poles[other] ** 2 / width
        singular = 0.5 * (distance + (a - b) / distance) + 1j * math.sqrt(a * b) / distance
        rate = min(rate, abs(cmath.acosh((singular - middle) / half).real))
    return rate


def _enlarged(pieces: Array, kinds: NDArray[np.int64]) -> tuple[Array, NDArray[np.int64]]:
    return np.concatenate([pieces, np.empty_like(pieces)]), np.concatenate([kinds, np.empty_like(kinds)])


def _as_points(z: ArrayLike) -> tuple[NDArray[np.complex128], bool]:
    """Z as complex array, and whether it was real; rejects 0, the negative axis and what is not finite."""
    values = np.asarray(z)
    if values.dtype.kind not in "iufc":
        raise TypeError(f"z must be real or complex numbers, got dtype {values.dtype}")
    points = values.astype(np.complex128)
    if not np.isfinite(points).all():
        raise ValueError("z must be finite")
    if ((points.imag == 0.0) & (points.real <= 0.0)).any():
        raise ValueError("z must be off the negative real axis and not 0: the spectrum of -X lies there")
    return points, values.dtype.kind != "c"


def _like(result: NDArray[Any], real: bool) -> Any:
    """The result, real if the argument was, a scalar if it was one."""
    return result.real[()] if real else result[()]
