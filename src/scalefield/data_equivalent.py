r"""The deterministic equivalent of training on a fixed data set: projection and samples averaged (theory section 7d).

The residuals on P samples evolve with K = Psi M_0 Psi^T/P (P x P), M_0 = A(0)^T A(0)/N. With
df(kappa) = sum_k lambda_k/(kappa + lambda_k), R = 1 - df/P and Q = 1 - df/N everything is explicit in kappa,

.. math::
    \omega = \kappa R Q, \qquad
    \tfrac{1}{P} \langle r_0, (\omega + K)^{-1} r_0 \rangle
        = \frac{1}{Q} \Big( \sum_k \frac{u_k^2}{\kappa + \lambda_k} + \frac{\sigma^2}{\kappa} \Big), \qquad
    \tfrac{1}{P} \mathrm{tr} (\omega + K)^{-1} = \frac{R}{\omega} ,

r_0 the initial residuals, u_k^2 = lambda_k w*_k^2. The linear pair of section 7d has the solution

.. math::
    C_0 + \frac{\sigma^2}{\omega\omega'} = \frac{C_r}{R R'} , \qquad
    C_r = \tfrac{1}{P} \langle r_0, (\omega + K)^{-1} (\omega' + K)^{-1} r_0 \rangle
        = -\frac{\rho(\omega) - \rho(\omega')}{\omega - \omega'} ,

rho the source resolvent: a fresh sample's residual is that of a training sample with the response 1/R undone
(generalised cross-validation, at every time). 1/R is 1 + c_0/omega + the resolvent of a positive measure, here called
the filter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from scalefield.quadrature import _VANISHING, SpectralNodes, _gauss_rule, power_law_nodes
from scalefield.resolvent import DeterministicEquivalent
from scalefield.spectrum import PowerLawSpectrum, Task

__all__ = ["DataContour", "DataEquivalent"]

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]

# Nodes of sums over modes have to serve for complex kappa, up to an angle 3 pi/4: finer than for real ones.
_NODE_RTOL = 1e-18
# Real nodes at the lower edge of the spectrum, with which the resolvent's derivatives at omega = 0 agree.
_MATCHED = 4
# Points of the circle, in units of that edge, on which these derivatives are taken.
_CIRCLE, _RADIUS = 32, 0.25
# E-folds below the edge where, that done, the ray may end.
_BELOW_EDGE = 10.0
# Modes of an explicit spectrum beyond which octaves of them are merged, and the nodes of an octave.
_MOST_MODES, _OCTAVE_NODES = 1000, 10
# Entries of matrices (points x modes) held at a time.
_BLOCK_ENTRIES = 4_000_000


@dataclass(frozen=True, eq=False)
class DataContour:
    """Source, trace and filter measure on real nodes and a ray arg s = pi/4, as in `ContourMeasure`.

    Attributes
    ----------
    eigenvalues : ndarray of float64, shape (Q,)
        Real nodes s > 0, decreasing.
    ray : ndarray of complex128, shape (R,)
        Nodes on the ray, |s| decreasing.
    source, noise, filter : ndarray of float64, shape (Q,)
        Masses of the target's part of the source measure, of the trace measure (per sample; the source measure of
        unit label noise), and of the filter.
    ray_source, ray_noise, ray_filter : ndarray of complex128, shape (R,)
        Weights W: a function f adds Im sum W f.
    source_atom, noise_atom, filter_atom : float
        Masses at s = 0; that of the filter is c_0.
    edge : float
        Lower edge of the spectrum, 0 if it has none.
    """

    eigenvalues: Array
    ray: ComplexArray
    source: Array
    noise: Array
    filter: Array
    ray_source: ComplexArray
    ray_noise: ComplexArray
    ray_filter: ComplexArray
    source_atom: float
    noise_atom: float
    filter_atom: float
    edge: float


class _Point(NamedTuple):
    """What resolvents are made of at points omega: kappa, delta = kappa - kappa_0, df, T, R, Q."""

    kappa: ComplexArray
    delta: ComplexArray
    df: ComplexArray
    slope: ComplexArray
    samples: ComplexArray
    features: ComplexArray


class DataEquivalent:
    """Resolvents of K averaged over A(0) and the data, for any width and number of samples, infinite ones included.

    Parameters
    ----------
    spectrum : Task
        The task.
    width, n_samples : float
        N and P, at least 1; n_samples finite.
    horizon : float
        Largest effective time of functions like e^{-s u}.

    Notes
    -----
    With n = min(N, P, M), df(kappa_0) = n (kappa_0 = 0 if n = M) and delta = kappa - kappa_0, df = n - delta T,
    T = sum_k lambda_k/((kappa + lambda_k)(kappa_0 + lambda_k)): no digits are lost where R or Q vanish.
    """

    def __init__(self, spectrum: Task, width: float, n_samples: float, horizon: float) -> None:
        self.width, self.n_samples = width, n_samples
        self.inverse_width, self.inverse_n_samples = 1.0 / width, 1.0 / n_samples
        smallest = DeterministicEquivalent(spectrum, min(width, n_samples))
        self.n_modes = smallest.n_modes
        self.rank = min(width, n_samples, self.n_modes)
        self.kappa_0 = smallest.kappa_0
        scale = self.kappa_0
        if scale == 0.0:
            scale = float(spectrum.modes(int(self.n_modes) - 1, int(self.n_modes))[0][0])
        self.smallest_scale = scale
        nodes = _mode_nodes(spectrum, max(horizon, 1e3 / scale))
        self.eigenvalues = np.array(nodes.eigenvalues)
        self.counts = np.array(nodes.weights)
        self.power = nodes.weights * nodes.target_power
        # R and Q at kappa_0, exactly 0 for the smallest of all.
        self.samples_0 = (n_samples - self.rank) / n_samples
        self.features_0 = 1.0 if math.isinf(width) else (width - self.rank) / width

    # ------------------------------------------------------------------------------------------ the spectrum

    def edge(self) -> float:
        """Lower edge of the spectrum of K above 0: the largest -omega between kappa_0 and the next zero of R or Q."""
        factors = [self.width, self.n_samples]
        if min(self.samples_0, self.features_0) == 0.0:
            others = [size for size in factors if size > self.rank]
            if not others or self.n_modes == self.rank:
                # Two of N, P and M are the smallest: the density of eigenvalues goes on to 0 like s^{-1/2} or so.
                return 0.0
            floor = 0.0
            if others[0] < self.n_modes:
                floor = _kappa_0(self.eigenvalues, self.counts, others[0], self.kappa_0)
        else:
            # kappa_0 = 0, and kappa < 0 down to where min(N, P) modes are learned.
            lam = self.eigenvalues[self.counts > 0.0]
            low, high = -float(lam.min()), 0.0
            for _ in range(200):
                middle = 0.5 * (low + high)
                if float(self.counts[self.counts > 0.0] @ (lam / (lam + middle))) > min(factors):
                    low = middle
                else:
                    high = middle
            floor = high
        reach = self.kappa_0 - floor

        def omega(t: float) -> float:
            point = self._point(np.array([-reach * t], dtype=complex))
            return float((point.kappa * point.samples * point.features).real[0])

        found = minimize_scalar(omega, bounds=(0.0, 1.0), method="bounded", options={"xatol": 1e-3})
        return max(0.0, -float(found.fun))

    def solve(self, omega: ComplexArray, start: complex | None = None) -> ComplexArray:
        """delta(omega) for points in a sequence of small steps, the first far out or near omega(kappa_0 + start).

        Newton's method in log delta, predicted from the point before.
        """
        result = np.empty_like(omega)
        log_delta = np.log(complex(omega[0]) if start is None else start)
        slope: complex = 1.0
        lam, weight = self.eigenvalues, self.counts * self.eigenvalues
        weight_0 = weight / (self.kappa_0 + lam)
        previous = np.log(complex(omega[0]))
        for i, value in enumerate(omega):
            target = np.log(complex(value))
            # The nearest branch of the logarithm: circles about 0 go on.
            target += 2j * math.pi * round((previous - target).imag / (2.0 * math.pi))
            log_delta += slope * (target - previous)
            change = math.inf
            for _ in range(60):
                delta = complex(np.exp(log_delta))
                inverse = 1.0 / ((self.kappa_0 + delta) + lam)
                first = complex(weight_0 @ inverse)
                second = complex(weight @ (inverse * inverse))
                kappa = self.kappa_0 + delta
                samples = self.samples_0 + self.inverse_n_samples * delta * first
                features = self.features_0 + self.inverse_width * delta * first
                omega_here = kappa * samples * features
                derivative = samples * features
                derivative += kappa * second * (features * self.inverse_n_samples + samples * self.inverse_width)
                slope = omega_here / (delta * derivative)
                error = complex(np.log(omega_here / complex(value)))
                step = -slope * error
                if abs(step) > 0.7:
                    step *= 0.7 / abs(step)
                log_delta += step
                if abs(step) < 1e-14 or (abs(step) < 1e-9 and abs(step) >= change):
                    break
                change = abs(step)
            else:
                raise ArithmeticError(
                    f"kappa(omega) did not converge at width {self.width:g} and n_samples {self.n_samples:g}"
                )
            result[i] = np.exp(log_delta)
            previous = target
        return result

    def _point(self, delta: ComplexArray) -> _Point:
        lam = self.eigenvalues
        kappa = self.kappa_0 + delta
        slope, df = np.empty_like(kappa), np.empty_like(kappa)
        # T and df as sums of their own: df is far below n where kappa is large.
        weight = self.counts * lam
        for part in self._blocks(delta.size):
            inverse = 1.0 / (kappa[part, None] + lam)
            slope[part] = inverse @ (weight / (self.kappa_0 + lam))
            df[part] = inverse @ weight
        return _Point(
            kappa,
            delta,
            df,
            slope,
            self.samples_0 + self.inverse_n_samples * delta * slope,
            self.features_0 + self.inverse_width * delta * slope,
        )

    def _blocks(self, n_points: int) -> list[slice]:
        size = max(1, _BLOCK_ENTRIES // max(1, self.eigenvalues.size))
        return [slice(first, first + size) for first in range(0, n_points, size)]

    # ---------------------------------------------------------------------------------------------- resolvents

    @property
    def source_atom(self) -> float:
        """Target's power in the null space of K: R kappa_0 sum u^2/(kappa_0 + lambda)."""
        if self.features_0 > 0.0 or self.kappa_0 == 0.0:
            return 0.0
        return self.samples_0 * float(self.power @ (self.kappa_0 / (self.kappa_0 + self.eigenvalues)))

    @property
    def filter_atom(self) -> float:
        """c_0, the limit of omega/R at omega = 0."""
        return self.kappa_0 * self.features_0 if self.samples_0 == 0.0 else 0.0

    def kept(self, edge: float) -> NDArray[np.bool_]:
        """Modes that stand for themselves as real nodes: those that learning sees before its end, above the edge."""
        return (self.power > 0.0) & (self.eigenvalues > max(0.01 * self.kappa_0, edge))

    def differences(
        self, omega: ComplexArray, delta: ComplexArray, kept: NDArray[np.bool_]
    ) -> NDArray[np.complex128]:
        """Resolvents without atoms, shape (3, points): source less the kept modes, trace, filter."""
        lam, power = self.eigenvalues, self.power
        point = self._point(delta)
        kappa, slope, samples, features = point.kappa, point.slope, point.samples, point.features
        # The limit of delta/omega, where one of the factors vanishes with delta
        ratio = delta / omega
        if self.samples_0 == 0.0 and self.features_0 > 0.0:
            ratio = self.n_samples / (kappa * features * slope)
        elif self.features_0 == 0.0 and self.samples_0 > 0.0:
            ratio = self.width / (kappa * samples * slope)
        result = np.empty((3, omega.size), dtype=complex)
        near = np.abs(omega) < self.kappa_0
        far = ~near
        source = np.empty_like(omega)
        for part in self._blocks(omega.size):
            z, k, q, r = omega[part, None], kappa[part, None], features[part], samples[part]
            inverse = 1.0 / (k + lam)
            modes = 1.0 / (z + lam[kept])
            # 1/(Q (kappa + lambda)) - 1/(omega + lambda)
            #     = df (lambda/N - kappa Q/P)/(Q (kappa + lambda) (omega + lambda))
            both = inverse[:, kept] * modes
            paired = self.inverse_width * (both @ (lam * power)[kept])
            paired -= self.inverse_n_samples * kappa[part] * q * (both @ power[kept])
            source[part] = point.df[part] / q * paired + (inverse[:, ~kept] @ power[~kept]) / q
            if self.source_atom > 0.0:
                # With S = sum u^2 lambda/((kappa + lambda)(kappa_0 + lambda)) the rest of the pole at Q = 0 is
                # (delta/omega) (R S + T sum u^2 kappa_0/(kappa_0 + lambda)/P)
                rest = r * (inverse @ (power * lam / (self.kappa_0 + lam)))
                rest += slope[part] * self.inverse_n_samples * float(power @ (self.kappa_0 / (self.kappa_0 + lam)))
                source[part] = np.where(
                    near[part],
                    ratio[part] * rest - modes @ power[kept],
                    source[part] - self.source_atom / omega[part],
                )
        result[0] = source
        # (R - R_0)/omega = (delta/omega) T/P
        result[1] = ratio * slope * self.inverse_n_samples
        # 1/R - 1 - c_0/omega
        result[2] = point.df * self.inverse_n_samples / samples
        if self.samples_0 == 0.0:
            result[2, far] -= self.filter_atom / omega[far]
            if self.features_0 > 0.0:
                gain = (self.features_0 + self.inverse_width * kappa * slope) * self.n_samples
                result[2, near] = (gain / (kappa * features * slope))[near] - 1.0
        return result

    # ------------------------------------------------------------------------------------------------- contour

    def contour(self, horizon: float, steps: list[float]) -> list[DataContour]:
        """Nodes and weights, for rays of several steps in log s."""
        edge = self.edge()
        kept = self.kept(edge)
        totals = np.array(
            [
                float(self.power[~kept].sum()) - self.source_atom,
                self.rank * self.inverse_n_samples,
                float(self.counts @ self.eigenvalues) * self.inverse_n_samples - self.filter_atom,
            ]
        )
        upper = max(float(self.eigenvalues.max()), self.kappa_0)
        if edge > 0.0:
            last = math.log(edge) - _BELOW_EDGE
        else:
            last = min(math.log(self.smallest_scale) - 26.0, -math.log(horizon) - 22.0)
        first = math.log(upper) + 16.0
        spread = totals[2] / upper
        first = max(first, math.log(upper * max(1.0, spread)) + 16.0)
        solved = []
        for step in steps:
            x = np.linspace(first, last, math.ceil((first - last) / step) + 1)
            omega = np.exp(x + 0.75j * math.pi)
            delta = self.solve(omega)
            solved.append((x, omega, delta))
        nodes, masses = self._extra_nodes(edge, upper, totals, kept, solved[0])
        s = np.concatenate([self.eigenvalues[kept], nodes])
        order = np.argsort(-s, kind="stable")
        source, noise, filtered = (np.concatenate([np.zeros(int(kept.sum())), mass]) for mass in masses)
        source[: int(kept.sum())] = self.power[kept]
        contours = []
        for x, omega, delta in solved:
            resolvents = self.differences(omega, delta, kept) - masses @ (1.0 / (omega + nodes[:, None]))
            ray = np.exp(x + 0.25j * math.pi)
            # int f dmu = (1/pi) Im int f(s) R(-s) ds along the ray, R(-s) through its complex conjugate
            weights = (x[0] - x[1]) / math.pi * ray * resolvents.conj()
            # At both ends the terms fall by one factor from each to the next: geometric sums.
            for end, inner in ((0, 1), (-1, -2)):
                with np.errstate(divide="ignore", invalid="ignore"):
                    fall = np.abs(weights[:, end] / weights[:, inner])
                fall = np.where(fall < 0.99, fall, 0.0)
                weights[:, end] /= 1.0 - fall
            contours.append(
                DataContour(
                    eigenvalues=s[order],
                    ray=ray,
                    source=source[order],
                    noise=noise[order],
                    filter=filtered[order],
                    ray_source=weights[0].copy(),
                    ray_noise=weights[1].copy(),
                    ray_filter=weights[2].copy(),
                    source_atom=self.source_atom,
                    noise_atom=self.samples_0,
                    filter_atom=self.filter_atom,
                    edge=edge,
                )
            )
        return contours

    def _extra_nodes(
        self,
        edge: float,
        upper: float,
        totals: Array,
        kept: NDArray[np.bool_],
        solved: tuple[Array, ComplexArray, ComplexArray],
    ) -> tuple[Array, Array]:
        """Nodes beside the modes, and their masses (3, nodes): total mass, and derivatives at omega = 0, as they are.

        What is left of the total is put where most of it is: near kappa_0, of the filter at the top.
        """
        rest = np.array([upper, self.smallest_scale])
        if edge == 0.0:
            masses = np.zeros((3, 2))
            masses[:2, 1], masses[2, 0] = totals[:2], totals[2]
            return rest, masses
        rest = np.maximum(rest, edge * 2.0**_MATCHED)
        nodes = np.concatenate([rest, edge * 2.0 ** np.arange(_MATCHED)])
        # Taylor coefficients in omega/edge from a circle on which the resolvents are analytic.
        x, _, delta = solved
        at = int(np.argmin(np.abs(x - math.log(_RADIUS * edge))))
        angles = 0.75 * math.pi + 2.0 * math.pi * np.arange(_CIRCLE) / _CIRCLE
        radius = math.exp(x[at])
        circle = radius * np.exp(1j * angles)
        values = self.differences(circle, self.solve(circle, complex(delta[at])), kept)
        orders = np.arange(_MATCHED)
        waves = np.exp(-1j * np.multiply.outer(orders, angles)) / _CIRCLE
        taylor = (waves @ values.T).real / (radius / edge) ** orders[:, None]
        # Rows: the mass of sum m/(omega + c), and its coefficients
        matrix = np.empty((_MATCHED + 1, nodes.size))
        matrix[0] = 1.0
        matrix[1:] = (-edge / nodes) ** orders[:, None] / nodes
        right = np.concatenate([totals[None, :], taylor])
        scale = np.abs(matrix).max(axis=1)
        masses = np.zeros((3, nodes.size))
        for i, unused in enumerate((0, 0, 1)):
            used = np.arange(nodes.size) != unused
            masses[i, used] = np.linalg.solve(matrix[:, used] / scale[:, None], right[:, i] / scale)
        return nodes, masses


def _mode_nodes(spectrum: Task, horizon: float) -> SpectralNodes:
    if isinstance(spectrum, PowerLawSpectrum):
        return power_law_nodes(spectrum.alpha, spectrum.beta, spectrum.n_modes, _NODE_RTOL, horizon)
    nodes = spectrum.quadrature(horizon=horizon)
    return nodes if len(nodes) <= _MOST_MODES else _merged_octaves(nodes)


def _merged_octaves(nodes: SpectralNodes) -> SpectralNodes:
    """Gauss rules in log lambda for the modes of each octave, one for their number and one for their power.

    A pole at an angle of pi/4 to the octave, half-width w = 0.35, leaves rho^{-2 n} with rho = pi/(4 w) +
    sqrt(1 + (pi/(4 w))^2) = 4.7: 1e-13 at n = 10.
    """
    lam = nodes.eigenvalues
    octave = np.floor(np.log2(lam.max() / lam))
    parts: list[tuple[Array, Array, Array]] = []
    for members in np.split(np.arange(lam.size), np.flatnonzero(np.diff(octave)) + 1):
        x, counts = lam[members], nodes.weights[members]
        power = counts * nodes.target_power[members]
        # Sums over modes are sums of lambda/(kappa + lambda): nothing counts but lambda times their number.
        for mass, is_power in ((counts * x, False), (power, True)):
            present = mass > 0.0
            if not present.any():
                continue
            log_x, rule = np.log(x[present]), mass[present]
            if np.unique(log_x).size > _OCTAVE_NODES:
                shift = 1.0 - 0.5 * (log_x.max() + log_x.min())
                log_x, rule = _gauss_rule(log_x + shift, rule, _OCTAVE_NODES)
                log_x = log_x - shift
            node = np.exp(log_x)
            none = np.zeros(node.size)
            parts.append((node, none, rule) if is_power else (node, rule / node, none))
    x, counts, power = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(-x, kind="stable")
    x, counts, power = x[order], counts[order], power[order]
    # A node of weight 0 cannot have power: as in tails of power laws, its weight vanishes for all practical purposes.
    weights = np.where(counts > 0.0, counts, _VANISHING)
    return SpectralNodes(x, power / weights, weights, error=1e-13)


def _kappa_0(eigenvalues: Array, counts: Array, size: float, above: float) -> float:
    """Root of df(kappa) = size below `above`, by bisection in log kappa: enough for a bracket."""
    low, high = math.log(above) - 200.0, math.log(above)
    for _ in range(100):
        middle = 0.5 * (low + high)
        if float(counts @ (eigenvalues / (math.exp(middle) + eigenvalues))) > size:
            low = middle
        else:
            high = middle
    return math.exp(high)
