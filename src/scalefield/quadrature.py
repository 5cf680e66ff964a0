"""Sums over modes as a few hundred nodes (theory section 5).

Every sum over the modes of a spectrum has the form ``sum_k f(lambda_k, lambda_k w*_k^2)`` with
``f(lambda, p) = lambda h(lambda) + p g(lambda)`` and g, h smooth on the scale of lambda itself. Three tools
follow from that:

* `power_law_nodes`: power laws of any length, also infinite, as exact leading modes, discrete Gauss sums on
  geometric blocks of integers, and a Gauss rule in lambda for the tail;
* `exact_nodes`: an explicit list of modes, summed as it stands;
* `merge`: fewer nodes for one positive measure, when the resolution needed is known (the solver's step).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal
from scipy.special import zeta

from scalefield._validate import as_float, as_vector

__all__ = ["SpectralNodes", "condense", "exact_nodes", "merge", "power_law_nodes"]

Array = NDArray[np.float64]

_EXACT_MODES = 32
# Of a tail, eigenvalues below this fraction of the first are 0 to rounding and act as one.
_NEGLIGIBLE = 1e-18
# Weight of a node that stands for no mode: none for all practical purposes, beside a first mode of weight 1.
_VANISHING = 1e-40
# Steps near the stability bound, 2: learning rate times largest x.
_STEEPEST = 1.9
# Sums that have decayed to this fraction of their total are nothing.
_VANISHED = 1e-60
# Fractions of the largest x beyond which steps differ from exponentials by more than their speed.
_STEEP_ABOVE = 1e-3
# Nodes whose terms are held at a time.
_CHUNK = 16384
# Sizes of the rules tried for a group that is merged.
_FEWEST = 4
_RULE_SIZES = (*range(_FEWEST, 40), 48, 64, 96, 128)


@dataclass(frozen=True, eq=False)
class SpectralNodes:
    r"""Nodes and weights that stand for all modes of a spectrum.

    .. math:: \sum_k f(\lambda_k, \lambda_k w_k^{*2}) \approx \sum_q c_q f(\lambda_q, p_q)

    for f(lambda, p) = lambda h(lambda) + p g(lambda) with g, h smooth in log(lambda).

    Attributes
    ----------
    eigenvalues : ndarray of float64, shape (Q,)
        Node eigenvalues lambda_q, decreasing if made by a `quadrature` method.
    target_power : ndarray of float64, shape (Q,)
        p_q, the value of lambda w*^2 at the node (in the unlearned tail of a power law, modes and target have
        nodes of their own: zero power at the ones, vanishing weight at the others).
    weights : ndarray of float64, shape (Q,)
        c_q > 0, the number of modes the node stands for (not an integer in general).
    error : float
        Error of the sums relative to sum |f|, as requested; 0 when every mode is its own node.
    horizon : float
        Largest tau for which functions of lambda * tau are resolved to `error`.
    """

    eigenvalues: Array
    target_power: Array
    weights: Array
    error: float = 0.0
    horizon: float = math.inf

    def __post_init__(self) -> None:
        eigenvalues = as_vector("eigenvalues", self.eigenvalues, minimum=0.0)
        target_power = as_vector("target_power", self.target_power, minimum=0.0)
        weights = as_vector("weights", self.weights, minimum=0.0)
        if not eigenvalues.shape == target_power.shape == weights.shape:
            raise ValueError(
                "eigenvalues, target_power and weights must have one shape, got "
                f"{eigenvalues.shape}, {target_power.shape} and {weights.shape}"
            )
        for name, array in (("eigenvalues", eigenvalues), ("target_power", target_power), ("weights", weights)):
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    def __len__(self) -> int:
        return len(self.eigenvalues)

    def __repr__(self) -> str:
        return (
            f"SpectralNodes({len(self)} nodes, eigenvalues {self.eigenvalues.min():.3g} to "
            f"{self.eigenvalues.max():.3g}, error {self.error:.1g}, horizon {self.horizon:.3g})"
        )

    @property
    def trace(self) -> float:
        """sum_k lambda_k."""
        return float(self.weights @ self.eigenvalues)

    @property
    def total_target_power(self) -> float:
        """sum_k lambda_k w*_k^2, the loss before training."""
        return float(self.weights @ self.target_power)


def exact_nodes(eigenvalues: Array, target_power: Array) -> SpectralNodes:
    """Return one node of weight 1 per mode; modes with lambda = 0 contribute nothing and are left out."""
    positive = eigenvalues > 0.0
    return SpectralNodes(eigenvalues[positive], target_power[positive], np.ones(int(positive.sum())))


@lru_cache(maxsize=64)
def power_law_nodes(
    alpha: float, beta: float, n_modes: int | None, rtol: float, horizon: float
) -> SpectralNodes:
    r"""Return nodes for lambda_k = k^-alpha, lambda_k w*_k^2 = k^-(alpha beta + 1).

    Modes 1..32 are kept. Beyond, the integers are cut into geometric blocks with a discrete Gauss sum each,
    down to lambda = 1/horizon; what lies below is unlearned within the horizon, so functions of
    lambda * tau are nearly polynomials there and one Gauss rule in lambda serves the whole tail.

    Parameters
    ----------
    alpha, beta : float
        Capacity and source exponents.
    n_modes : int or None
        Number of modes; None for infinitely many.
    rtol : float
        Accuracy of the sums, relative to the sum of absolute values.
    horizon : float
        Largest tau to be resolved (dimensionless: learning rate x steps x kernel scale).

    Notes
    -----
    Cost O(log(horizon) log(1/rtol)); 100-400 nodes at the defaults. Theory section 5.
    """
    digits = -math.log10(rtol)
    # A block over which lambda changes by at most a factor 4 converges like 6^(-2n) for e^(-lambda tau).
    ratio = min(2.0, 4.0 ** (1.0 / alpha))
    n_block = math.ceil(0.7 * digits + 2.5)
    n_tail = math.ceil(0.5 * digits + 3.0)
    last = math.inf if n_modes is None else float(n_modes)
    learned = min(max(float(_EXACT_MODES), math.ceil(horizon ** (1.0 / alpha))), last)

    k = np.arange(1.0, min(_EXACT_MODES, last) + 1.0)
    block_k, block_c, start = _geometric_blocks(_EXACT_MODES + 1.0, last, learned, ratio, n_block)
    k, c = np.concatenate([k, block_k]), np.concatenate([np.ones_like(k), block_c])
    eigenvalues, power = _eigenvalues(k, alpha), k ** -(alpha * beta + 1.0)
    if start <= last:
        tail = _power_law_tail(alpha, beta, start, last, ratio, n_block, n_tail)
        eigenvalues = np.concatenate([eigenvalues, tail[0]])
        power = np.concatenate([power, tail[1]])
        c = np.concatenate([c, tail[2]])
        order = np.argsort(-eigenvalues, kind="stable")
        eigenvalues, power, c = eigenvalues[order], power[order], c[order]
    return SpectralNodes(eigenvalues, power, c, error=rtol, horizon=horizon)


def merge(x: Array, mass: Array, horizon: float, rtol: float) -> tuple[Array, Array, float]:
    r"""Replace a positive measure on x > 0 by one with fewer nodes that acts alike up to `horizon`.

    .. math:: \sum_q m_q f(x_q \tau) \approx \sum_j m'_j f(x'_j \tau), \qquad 0 \le \tau \le horizon

    for smooth f. The range of x is cut at 8/horizon, 16/horizon, ...; each group of more than n nodes is
    replaced by its n-point Gauss rule, with the smallest n whose error over a family of test functions
    is below rtol times the total mass: e^{-x tau} and x tau e^{-x tau} at log-spaced tau, and steps near the
    stability bound, (1 - r x)^t with r = 1.9/max x. Groups of few nodes, such as leading modes, are kept as they are.

    Parameters
    ----------
    x, mass : ndarray, shape (Q,)
        Nodes and masses, both positive.
    horizon : float
        Largest tau.
    rtol : float
        Error relative to the total mass.

    Returns
    -------
    x, mass : ndarray
        The merged measure, x decreasing, masses positive.
    error : float
        Largest measured error over the test functions relative to the total mass; 0 if nothing was merged.
    """
    x, mass = _distinct(x, mass)
    total = float(mass.sum())
    present = mass > 1e-20 * total
    x, mass = x[present], mass[present]
    # From times at which no node has moved to twice the horizon, for products of two functions.
    first = min(1e-3 * horizon, 0.1 / x[0])
    tau = np.geomspace(first, 2.0 * horizon, math.ceil(15.0 * math.log10(2.0 * horizon / first)))
    rate = _STEEPEST / x[0]
    steps = _step_counts(2.0 * horizon / rate, 15)
    kept_x: list[Array] = []
    kept_mass: list[Array] = []
    # Errors of the groups add up in the worst case, function by function.
    error = np.zeros(2 * tau.size + steps.size)
    group = np.maximum(np.floor(np.log2(np.maximum(x * horizon, 1e-300) / 8.0)), -1.0)
    groups = np.split(np.arange(x.size), np.flatnonzero(np.diff(group)) + 1)
    # Errors of all groups together stay below rtol.
    allowed = rtol * total * min(0.1, 1.0 / len(groups))

    def sums(x: Array, mass: Array, steep: bool) -> Array:
        decays = _test_sums(x, mass, tau).ravel()
        return np.concatenate([decays, _step_sums(x, mass, rate, steps)[0]]) if steep else decays

    for members in groups:
        group_x, group_mass = x[members], mass[members]
        if members.size > _FEWEST:
            # Where r x is small, steps decay like exponentials.
            steep = bool(group_x[0] > _STEEP_ABOVE * x[0])
            exact = sums(group_x, group_mass, steep)
            for n in _RULE_SIZES:
                if n >= members.size:
                    break
                new_x, new_mass = _gauss_rule(group_x, group_mass, n)
                deviation = np.abs(sums(new_x, new_mass, steep) - exact)
                if deviation.max() <= allowed:
                    group_x, group_mass = new_x, new_mass
                    error[: deviation.size] += deviation
                    break
        kept_x.append(group_x)
        kept_mass.append(group_mass)
    return np.concatenate(kept_x), np.concatenate(kept_mass), float(error.max()) / total


def condense(
    x: Array, mass: Array, horizon: float, rtol: float, atom: float = 0.0
) -> tuple[Array, Array, float]:
    r"""Replace a positive measure on x > 0 by one with fewer nodes, accurate relative to each sum itself.

    .. math:: \sum_q m_q f(x_q \tau) \approx \sum_j m'_j f(x'_j \tau), \qquad 0 \le \tau \le horizon

    for decaying f that are smooth in log x, such as e^{-x tau}: sums that have decayed by many decades keep their
    digits, where those of `merge` keep them relative to the total mass. Groups of 3.2 e-folds in x are replaced by
    their Gauss rules in log x, what lies below 0.1/horizon by one in x. Rules grow, and groups that do not gain are
    kept, until errors of e^{-x tau}, 1/(1 + x tau)^2 and of steps (1 - r x)^t are as asked, with r up to 1.9/max x,
    near the stability bound.

    Parameters
    ----------
    x, mass : ndarray, shape (Q,)
        Nodes and masses, both positive.
    horizon : float
        Largest tau.
    rtol : float
        Error of sum m f relative to atom + sum m |f| + 1e-60 of the total. Beside it stands rounding: the relative
        error 1e-16 of a node's x changes e^{-x tau} by x tau times as much.
    atom : float
        A further mass at x = 0, to which errors are relative as well.

    Returns
    -------
    x, mass : ndarray
        The new measure, x decreasing, masses positive.
    error : float
        Largest measured error over the test functions at log-spaced tau and t; 0 if nothing was changed.

    Notes
    -----
    Cost O(Q log(horizon)): some milliseconds for 400 nodes.
    """
    x, mass = _distinct(x, mass)
    # e^{-x tau} is analytic for |arg x| < pi/2: on a group of half-width w in log x the rule converges like rho^{-2n}
    # with rho = pi/(2 w) + sqrt(1 + (pi/(2 w))^2).
    half_width = 1.6
    rho = math.pi / (2.0 * half_width) + math.hypot(1.0, math.pi / (2.0 * half_width))
    n_group = math.ceil(-math.log(rtol) / (2.0 * math.log(rho))) + 1
    n_rest = math.ceil(-0.25 * math.log10(rtol)) + 2
    unlearned = x * horizon < 0.1
    group = np.floor((math.log(x[0]) - np.log(np.maximum(x, 1e-300))) / (2.0 * half_width))
    group[unlearned] = -1.0
    groups = np.split(np.arange(x.size), np.flatnonzero(np.diff(group, prepend=group[0])))
    if all(members.size <= (n_rest if unlearned[members[0]] else n_group) for members in groups):
        return x, mass, 0.0

    # Up to twice the horizon, for products of two functions, or to where nothing is left.
    first, decayed = min(1e-2 * horizon, 0.1 / x[0]), -math.log(_VANISHED)
    last = max(min(2.0 * horizon, decayed / max(x[-1], 1e-300)), 2.0 * first)
    tau = np.concatenate(
        [
            np.geomspace(first, last, math.ceil(4.0 * math.log10(last / first))),
            # Where all has been learned sums fall by many decades in one of time.
            np.geomspace(max(first, 0.05 * last), last, 20),
        ]
    )
    rates = (0.5 * _STEEPEST / x[0], _STEEPEST / x[0])
    steps = []
    for rate in rates:
        slowest = min(-math.log(abs(1.0 - rate * x[0])), -math.log1p(-rate * x[-1]) if rate * x[-1] < 0.5 else 0.5)
        steps.append(_step_counts(min(2.0 * horizon / rate, decayed / max(slowest, 1e-300)), 4))

    def sums(x: Array, mass: Array, steep: bool) -> Array:
        """Sums of all test functions, of their absolute values, and their rounding errors."""
        parts = [_decays(x, mass, tau)]
        if steep:
            parts += [_step_sums(x, mass, rate, t) for rate, t in zip(rates, steps, strict=True)]
        return np.concatenate(parts, axis=1)

    value, scale, rounding = sums(x, mass, True)
    scale += atom + _VANISHED * (float(mass.sum()) + atom)
    allowed = 0.5 * (rtol * scale + rounding)
    kept_x: list[Array] = []
    kept_mass: list[Array] = []
    for members in groups:
        group_x, group_mass = x[members], mass[members]
        rest = bool(unlearned[members[0]])
        n = n_rest if rest else n_group
        # Where r x is small, steps decay like exponentials.
        steep = bool(group_x[0] > _STEEP_ABOVE * x[0])
        exact = None
        # Rules of nearly as many nodes would save little.
        while n <= min(0.75 * members.size, _RULE_SIZES[-1]):
            if rest:
                new_x, new_mass = _gauss_rule(group_x, group_mass, n)
            else:
                shift = 2.0 * half_width - 0.5 * (math.log(group_x[0]) + math.log(group_x[-1]))
                log_x, new_mass = _gauss_rule(np.log(group_x) + shift, group_mass, n)
                new_x = np.exp(log_x - shift)
            exact = sums(group_x, group_mass, steep)[0] if exact is None else exact
            deviation = np.abs(sums(new_x, new_mass, steep)[0] - exact)
            if (deviation <= allowed[: deviation.size]).all():
                group_x, group_mass = new_x, new_mass
                break
            n = math.ceil(1.3 * n)
        kept_x.append(group_x)
        kept_mass.append(group_mass)
    new_x, new_mass = np.concatenate(kept_x), np.concatenate(kept_mass)
    error = np.abs(sums(new_x, new_mass, True)[0] - value) / scale
    return new_x, new_mass, float(error.max())


def _distinct(x: Array, mass: Array) -> tuple[Array, Array]:
    """Decreasing x, equal ones as one."""
    order = np.argsort(-x, kind="stable")
    x, mass = x[order], mass[order]
    first = np.flatnonzero(np.diff(x, prepend=np.inf))
    return x[first], np.add.reduceat(mass, first)


def _step_counts(last: float, per_decade: int) -> Array:
    """0, 1, ..., then log-spaced whole numbers up to `last`, odd and even."""
    last = max(1.0, last)
    counts = np.geomspace(1.0, last, math.ceil(per_decade * math.log10(last)) + 1)
    counts = np.floor(np.concatenate([[0.0], counts, np.geomspace(max(1.0, 0.05 * last), last, 4 * per_decade)]))
    return np.unique(np.concatenate([counts, counts + 1.0]))


def _decays(x: Array, mass: Array, tau: Array) -> Array:
    """Sums of e^(-x tau) and 1/(1 + x tau)^2, twice (value, sum of absolute values), and rounding, (3, 2 len(tau))."""
    decays, first_moment = _test_sums(x, mass, tau)
    rational = np.zeros(tau.size)
    for start in range(0, x.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        rational += (1.0 + np.multiply.outer(tau, x[part])) ** -2.0 @ mass[part]
    value = np.concatenate([decays, rational])
    return np.stack([value, value, 1e-15 * np.concatenate([first_moment, rational])])


def _step_sums(x: Array, mass: Array, rate: float, steps: Array) -> Array:
    """sum_q m_q (1 - rate x_q)^t, sum_q m_q |1 - rate x_q|^t, and the rounding error, (3, len(steps))."""
    factor = 1.0 - rate * x
    # Through log1p: rounding of 1 - rate x would cost 1e-16 t. At a zero the logarithm is held, e^{-1e4} = 0.
    with np.errstate(divide="ignore"):
        logarithm = np.where(factor > 0.5, np.log1p(np.maximum(-rate * x, -0.5)), np.log(np.abs(factor)))
    logarithm = np.maximum(logarithm, -1e4)
    # x d/dx (1 - r x)^t = t slope (1 - r x)^t
    slope = rate * x / np.maximum(np.abs(factor), 1e-3)
    negative = factor < 0.0
    size, below, moment = (np.zeros(steps.size) for _ in range(3))
    for start in range(0, x.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        terms = np.exp(np.multiply.outer(steps, logarithm[part]))
        size += terms @ mass[part]
        below += terms @ (mass[part] * negative[part])
        moment += terms @ (mass[part] * slope[part])
    value = np.where(steps % 2.0 == 1.0, size - 2.0 * below, size)
    return np.stack([value, size, 1e-15 * steps * moment])


def _test_sums(x: Array, mass: Array, tau: Array) -> Array:
    """sum_q m_q e^(-x_q tau) and sum_q m_q x_q tau e^(-x_q tau), shape (2, len(tau))."""
    sums = np.zeros((2, tau.size))
    for start in range(0, x.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        argument = np.multiply.outer(tau, x[part])
        decay = np.exp(-argument)
        sums[0] += decay @ mass[part]
        sums[1] += (argument * decay) @ mass[part]
    return sums


def _discrete_gauss(start: float, length: float, n: int) -> tuple[Array, Array]:
    """n-point Gauss rule for sum_{k=start}^{start+length-1} f(k), exact for degree 2n-1.

    The orthogonal polynomials on equally spaced points are the discrete Chebyshev (Gram) polynomials, with
    recurrence coefficient b_j = j^2 (length^2 - j^2) / (4 (4 j^2 - 1)) and centre (length - 1)/2; for a
    long block they turn into Legendre polynomials.
    """
    # Integers of Python beyond 2^63 would turn arrays into slow arrays of objects.
    start, length = float(start), float(length)
    if length <= n:
        return start + np.arange(length), np.ones(int(length))
    # Beyond 1e8 the rule equals Gauss-Legendre to rounding: (j/length)^2 < 1e-13.
    nodes, weights = _unit_gauss(length if length < 1e8 else math.inf, n)
    return start + 0.5 * (length - 1.0) + length * nodes, length * weights


@lru_cache(maxsize=1024)
def _unit_gauss(length: float, n: int) -> tuple[Array, Array]:
    """Nodes in (-1/2, 1/2) and weights of sum 1 of the rule of `_discrete_gauss`."""
    j = np.arange(1.0, n)
    off = 0.5 * j * np.sqrt((1.0 - (j / length) ** 2) / (4.0 * j * j - 1.0))
    nodes, vectors = eigh_tridiagonal(np.zeros(n), off)
    return nodes, vectors[0] ** 2


def _geometric_blocks(
    start: float, last: float, reach: float, ratio: float, n: int
) -> tuple[Array, Array, float]:
    """Discrete Gauss sums on blocks [start, ratio start), ... until `reach` is covered, none beyond mode `last`.

    Returns nodes k, weights, and the first mode that is not covered.
    """
    # From 2^53 on last + 1 is not a double; the next one closes the last block as well.
    end = max(last + 1.0, math.nextafter(last, math.inf))
    k_parts, c_parts = [np.empty(0)], [np.empty(0)]
    while start <= min(reach, last):
        stop = min(max(start + 1.0, float(math.floor(start * ratio))), end)
        k, c = _discrete_gauss(start, stop - start, n)
        k_parts.append(k)
        c_parts.append(c)
        start = stop
    return np.concatenate(k_parts), np.concatenate(c_parts), start


def _eigenvalues(k: Array, alpha: float) -> Array:
    """k^-alpha, held above underflow: no eigenvalue of a power law is zero."""
    eigenvalues: Array = np.maximum(k**-alpha, np.finfo(float).tiny)
    return eigenvalues


def _power_law_tail(
    alpha: float, beta: float, start: float, last: float, ratio: float, n_block: int, n_tail: int
) -> tuple[Array, Array, Array]:
    """Gauss rules in lambda for the modes start..last: (eigenvalues, target_power, weights)."""
    k, c, rest = _geometric_blocks(start, last, start * _NEGLIGIBLE ** (-1.0 / alpha), ratio, n_block)
    x, power = _eigenvalues(k, alpha), k ** -(alpha * beta + 1.0)
    if rest > last and x.size <= 2 * n_tail:
        return x, power, c
    mode_mass, source_mass = c * x, c * power
    if rest <= last:
        # Beyond, lambda is 0 to rounding: two closed sums, put at the next lambda.
        x = np.append(x, _eigenvalues(np.array([rest]), alpha))
        mode_mass = np.append(mode_mass, _power_sum(alpha, rest, last))
        source_mass = np.append(source_mass, _power_sum(alpha * beta + 1.0, rest, last))
    nodes, mode_weight = _gauss_rule(x, mode_mass, n_tail)
    if not source_mass.any():
        return nodes, np.zeros_like(nodes), mode_weight / nodes
    # A Gauss rule of its own for the source measure, whose nodes must not count as modes: their weight vanishes
    # beside the others', their target power is accordingly large.
    source_nodes, source_weight = _gauss_rule(x, source_mass, n_tail)
    weight = np.full(source_nodes.size, _VANISHING)
    return (
        np.concatenate([nodes, source_nodes]),
        np.concatenate([np.zeros_like(nodes), source_weight / weight]),
        np.concatenate([mode_weight / nodes, weight]),
    )


def _power_sum(exponent: float, first: float, last: float) -> float:
    """sum_{k=first}^{last} k^-exponent for a first mode beyond some tens; last may be inf if exponent > 1."""
    if first < 1e8 and exponent > 1.0:
        beyond = 0.0 if last == math.inf else zeta(exponent, last + 1.0)
        return max(float(zeta(exponent, first) - beyond), 0.0)
    # The integral from first - 1/2 to last + 1/2, whose error is exponent (exponent + 1)/(24 first^2) relative.
    slope = exponent - 1.0
    octaves = math.log((last + 0.5) / (first - 0.5))
    integral = octaves if slope == 0.0 else -math.expm1(-slope * octaves) / slope
    return float((first - 0.5) ** -slope) * integral


def _lanczos(x: Array, mass: Array, n: int) -> tuple[Array, Array]:
    """Recurrence coefficients (diagonal, off-diagonal) of the polynomials orthonormal under a discrete measure.

    Lanczos with full reorthogonalisation, which keeps the rule exact to rounding. x is scaled to [0, 1]. Fewer
    than n coefficients come back where fewer than n points carry mass: they describe the measure exactly.
    """
    basis = np.empty((n, x.size))
    diagonal, off = np.empty(n), np.empty(n - 1)
    vector = np.sqrt(mass)
    vector /= np.linalg.norm(vector)
    for j in range(n):
        basis[j] = vector
        vector = x * vector
        diagonal[j] = basis[j] @ vector
        for _ in range(2):
            vector -= (basis[: j + 1] @ vector) @ basis[: j + 1]
        if j < n - 1:
            off[j] = np.linalg.norm(vector)
            if off[j] < 1e-14:
                return diagonal[: j + 1], off[:j]
            vector = vector / off[j]
    return diagonal, off


def _gauss_rule(x: Array, mass: Array, n: int) -> tuple[Array, Array]:
    """n-point Gauss rule of a discrete positive measure, by decreasing node."""
    scale = x.max()
    diagonal, off = _lanczos(x / scale, mass, n)
    nodes, vectors = eigh_tridiagonal(diagonal, off)
    return (scale * nodes)[::-1], (mass.sum() * vectors[0] ** 2)[::-1]


def check_rtol(rtol: float) -> float:
    """Validate the accuracy asked of sums over modes."""
    rtol = as_float("rtol", rtol, minimum=1e-13)
    if rtol > 0.1:
        raise ValueError(f"rtol must be at most 0.1, got {rtol!r}")
    return rtol


def check_quadrature_arguments(rtol: float, horizon: float) -> tuple[float, float]:
    """Validate the two settings that every `quadrature` method takes."""
    return check_rtol(rtol), as_float("horizon", horizon, minimum=1.0)
