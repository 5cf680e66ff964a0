"""Spectral measures of random features on a contour: as many nodes at any width (theory section 6)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scalefield.quadrature import SpectralNodes, condense

if TYPE_CHECKING:
    from scalefield.resolvent import DeterministicEquivalent

__all__ = ["ContourMeasure", "source_contour", "trace_contour"]

# Steps of the ray and merged nodes are finer than the error allowed: prefactors reach 7.
_MARGIN = 0.1
# A ray is compared with one of so many times its first number of nodes, and gives way to it if they differ by more than
# the error allowed and there is a next one to measure that by.
_REFINEMENTS = (1.5, 2.25)

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]


@dataclass(frozen=True, eq=False)
class ContourMeasure:
    r"""One spectral measure as nodes on the real axis, which are those of infinite width, and a ray for the difference.

    .. math:: \int f\, d\mu = \mu_0 f(0) + \sum_i \mu_i f(s_i) + \mathrm{Im} \sum_j W_j f(z_j)

    for functions f that are analytic for |arg z| <= pi/4 and decay there. The number of nodes does not grow with
    the width. Made by `DeterministicEquivalent.source_contour` and `DeterministicEquivalent.trace_contour`.

    Attributes
    ----------
    eigenvalues, masses : ndarray of float64, shape (Q,)
        s_i > 0, decreasing, and mu_i; the mass at kappa_0 may be negative.
    ray, ray_weights : ndarray of complex128, shape (R,)
        z_j with arg z_j = pi/4, |z_j| decreasing, and W_j.
    atom : float
        mu_0; 0 for the trace measure, which counts non-zero eigenvalues.
    error : float
        Largest relative error of integrals of e^{-2 s tau} (trace measure: s e^{-2 s tau}, beside N kappa_0) over all
        tau up to the horizon: measured from n to 1.5 n nodes of the ray, and where real nodes were merged.
    """

    eigenvalues: Array
    masses: Array
    ray: ComplexArray
    ray_weights: ComplexArray
    atom: float
    error: float

    def integrate(self, function: Callable[[Any], Any]) -> float:
        """Integral of a function over the measure.

        Parameters
        ----------
        function : callable
            f, for arrays of real and of complex numbers; analytic for |arg z| <= pi/4, decaying there.

        Returns
        -------
        float
        """
        real = float(self.masses @ np.asarray(function(self.eigenvalues)))
        real += float((np.asarray(function(self.ray)) @ self.ray_weights).imag)
        return real + self.atom * float(np.real(function(np.zeros(1))[0])) if self.atom else real

    def __repr__(self) -> str:
        return (
            f"ContourMeasure({self.eigenvalues.size} real nodes, {self.ray.size} on the ray, atom {self.atom:.3g}, "
            f"error {self.error:.1g})"
        )


def source_contour(equivalent: DeterministicEquivalent, horizon: float, rtol: float) -> ContourMeasure:
    """`DeterministicEquivalent.source_contour`, arguments checked."""
    rtol *= _MARGIN
    nodes = _mode_nodes(equivalent, horizon, rtol)
    power = nodes.weights * nodes.target_power
    kept = (power > 0.0) & (nodes.eigenvalues > 0.01 * equivalent.kappa_0)
    s, mass, error = _merged(nodes.eigenvalues[kept], power[kept], horizon, rtol, equivalent.atom)
    surplus = float(power[~kept].sum()) - equivalent.atom

    def difference(z: ComplexArray, kappa: ComplexArray) -> ComplexArray:
        return _source_difference(equivalent, nodes, kept, surplus, z, kappa)

    def decayed(tau: Array, x: Any) -> Any:
        return np.exp(-2.0 * np.multiply.outer(tau, x))

    return _assembled(equivalent, nodes, horizon, rtol, s, mass, surplus, difference, decayed, equivalent.atom, error)


def trace_contour(equivalent: DeterministicEquivalent, horizon: float, rtol: float) -> ContourMeasure:
    """`DeterministicEquivalent.trace_contour`, arguments checked."""
    rtol *= _MARGIN
    nodes = _mode_nodes(equivalent, horizon, rtol)
    lam, counts = nodes.eigenvalues, nodes.weights
    kept = (counts > 0.0) & (lam > 0.01 * equivalent.kappa_0)
    s, mass, error = _merged(lam[kept], (counts * lam)[kept], horizon, rtol, 0.0)
    surplus = equivalent.width - float(counts[kept].sum())

    def difference(z: ComplexArray, kappa: ComplexArray) -> ComplexArray:
        # N/kappa - sum 1/(z + lambda) - surplus/(z + kappa_0), each less its own multiple of 1/z
        value = ((lam / (z[:, None] + lam))[:, kept] @ counts[kept] - (lam / (kappa[:, None] + lam)) @ counts) / z
        value += surplus * equivalent.kappa_0 / (z * (z + equivalent.kappa_0))
        # Where z is small there is nothing to cancel.
        near = np.abs(z) < equivalent.kappa_0
        value[near] = equivalent.width / kappa[near] - (1.0 / (z[near, None] + lam[kept])) @ counts[kept]
        value[near] -= surplus / (z[near] + equivalent.kappa_0)
        return value

    def decayed(tau: Array, x: Any) -> Any:
        return x * np.exp(-2.0 * np.multiply.outer(tau, x))

    return _assembled(equivalent, nodes, horizon, rtol, s, mass / s, surplus, difference, decayed, 0.0, error)


def _mode_nodes(equivalent: DeterministicEquivalent, horizon: float, rtol: float) -> SpectralNodes:
    """Nodes of the modes, resolved below kappa_0, where learning ends."""
    return equivalent.spectrum.quadrature(rtol=max(1e-13, 0.1 * rtol), horizon=max(horizon, 1e3 / equivalent.kappa_0))


def _merged(x: Array, mass: Array, horizon: float, rtol: float, atom: float) -> tuple[Array, Array, float]:
    # Many modes alike and few features: kappa_0 is far above all modes.
    return condense(x, mass, horizon, rtol, atom) if x.size else (x, mass, 0.0)


def _assembled(
    equivalent: DeterministicEquivalent,
    nodes: SpectralNodes,
    horizon: float,
    rtol: float,
    s: Array,
    mass: Array,
    surplus: float,
    difference: Callable[[ComplexArray, ComplexArray], ComplexArray],
    decayed: Callable[[Array, Any], Any],
    atom: float,
    error: float,
) -> ContourMeasure:
    """Real nodes s with what they leave out put at kappa_0, and the ray that carries the difference."""
    s, mass = np.append(s, equivalent.kappa_0), np.append(mass, surplus)
    order = np.argsort(-s, kind="stable")
    s, mass = s[order], mass[order]
    # The trapezoid rule's error e^{-2 pi d/h}, where d = pi/4 is the ray's angle to the spectrum and to growing
    # e^{-s tau}.
    step = 0.5 * math.pi**2 / math.log(1.0 / rtol)
    largest = float(s[0])
    # Weights fall like s below kappa_0 z'(kappa_0), which is far below kappa_0 in a gap of the spectrum:
    # z'(kappa_0) = (kappa_0/N) sum_k lambda_k/(kappa_0 + lambda_k)^2
    lam, kappa_0 = nodes.eigenvalues, equivalent.kappa_0
    slope = float(nodes.weights @ (lam / (kappa_0 + lam) * (kappa_0 / (kappa_0 + lam)))) / equivalent.width
    smallest = math.log(kappa_0) + math.log(slope)
    # The rule's errors are waves in log tau of period `step`: pairs of times a quarter apart cannot miss both phases.
    tau = np.geomspace(0.01 / largest, horizon, 30)
    tau = np.concatenate([tau, tau * math.exp(-0.25 * step)])
    floor = atom if atom else equivalent.width * kappa_0
    real = floor + decayed(tau, s) @ mass
    ray, deviation = _ray(equivalent, largest, smallest, horizon, step, difference), math.inf
    # Prefactors are larger where the spectrum ends at a sharp edge far above kappa_0.
    for refinement in _REFINEMENTS:
        finer = _ray(equivalent, largest, smallest, horizon, step / refinement, difference)
        sums = [(decayed(tau, z) @ weights).imag for z, weights in (ray, finer)]
        deviation = float(np.abs((sums[0] - sums[1]) / (real + sums[1])).max())
        if deviation <= rtol / _MARGIN or refinement == _REFINEMENTS[-1]:
            break
        ray = finer
    return ContourMeasure(s, mass, *ray, atom, max(error, deviation))


def _ray(
    equivalent: DeterministicEquivalent,
    largest: float,
    smallest: float,
    horizon: float,
    step: float,
    difference: Callable[[ComplexArray, ComplexArray], ComplexArray],
) -> tuple[ComplexArray, ComplexArray]:
    """Trapezoid rule in log s on the ray arg s = pi/4.

    int f dmu = (1/pi) Im int f(s) R(-s) ds along the ray, with R(z) = int dmu(s')/(s' + z). Scales of s: the largest
    one and the logarithm of the smallest.
    """
    # Down to where the weights have fallen far below the atom, and where nothing is learned at any time.
    first = min(smallest - 26.0, -math.log(horizon) - 14.0)
    last = math.log(largest) + 16.0
    x = np.linspace(last, first, math.ceil((last - first) / step) + 1)
    h = x[0] - x[1]
    s = np.exp(x + 0.25j * math.pi)
    # R(-s) through its complex conjugate, which lies in the upper half-plane.
    z = np.exp(x + 0.75j * math.pi)
    weights = h / math.pi * s * difference(z, equivalent.kappa(z)).conj()
    # At both ends the terms fall by e^{-h} from one to the next: geometric sums.
    weights[[0, -1]] /= -math.expm1(-h)
    return s, weights


def _source_difference(
    equivalent: DeterministicEquivalent,
    nodes: SpectralNodes,
    kept: NDArray[np.bool_],
    surplus: float,
    z: ComplexArray,
    kappa: ComplexArray,
) -> ComplexArray:
    """Resolvent of the source measure at finite width, less those of its atom, of the kept modes and of the surplus."""
    lam, power = nodes.eigenvalues, nodes.weights * nodes.target_power
    result = np.empty_like(z)
    far = np.abs(z) >= equivalent.kappa_0
    zf, kf = z[far, None], kappa[far, None]
    # kappa - z = kappa (1/N) sum lambda/(kappa + lambda)
    shift = kappa[far] / equivalent.width * ((lam / (kf + lam)) @ nodes.weights)
    # With modes:    kappa/(z (kappa + lambda)) - 1/(z + lambda) = lambda (kappa - z)/(z (kappa + lambda) (z + lambda))
    result[far] = shift / z[far] * ((1.0 / ((kf + lam[kept]) * (zf + lam[kept]))) @ (lam * power)[kept])
    result[far] += kappa[far] / z[far] * ((1.0 / (kf + lam[~kept])) @ power[~kept])
    result[far] -= equivalent.atom / z[far]
    # Where z is small the atom's pole cancels beforehand: with F = lambda/((kappa + lambda) (kappa_0 + lambda))
    # (kappa - kappa_0)/z = N/(kappa sum F), and the rest of the resolvent is (kappa - kappa_0)/z sum u^2 F.
    near = ~far
    zn, kn = z[near, None], kappa[near, None]
    factor = (1.0 / (kn + lam)) * (lam / (equivalent.kappa_0 + lam))
    result[near] = equivalent.width * (factor @ power) / (kappa[near] * (factor @ nodes.weights))
    result[near] -= (1.0 / (zn + lam[kept])) @ power[kept]
    return result - surplus / (z + equivalent.kappa_0)
