"""Spectral measures of a random-feature kernel: all that training sees of a task and a projection (theory section 6).

With X = Lambda^{1/2} (A(0)^T A(0)/N) Lambda^{1/2} and u = Lambda^{1/2} w*, learning curves are functionals of two
positive measures on the eigenvalues s of X: the source measure mu (weights (e_s . u)^2) and the trace measure rho
(weights 1, non-zero eigenvalues only).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scalefield._memory import require_memory
from scalefield._validate import as_count, as_float, as_seed, as_vector
from scalefield.quadrature import condense
from scalefield.spectrum import Task

__all__ = ["SpectralMeasure"]

Array = NDArray[np.float64]

# Entries of A(0) that are held at a time.
_BLOCK_ENTRIES = 4_000_000


@dataclass(frozen=True, eq=False)
class SpectralMeasure:
    r"""Source measure mu and trace measure rho of X = Lambda^{1/2} (A(0)^T A(0)/N) Lambda^{1/2}, as real nodes.

    .. math::
        \langle u, f(X) u \rangle = \mu_0 f(0) + \sum_i \mu_i f(s_i), \qquad
        \mathrm{tr}\, f(X) = \sum_j \rho_j f(s'_j) \quad (f(0) = 0)

    Attributes
    ----------
    source_eigenvalues : ndarray of float64, shape (Q_source,)
        Nodes s_i > 0 of the source measure, decreasing.
    source_power : ndarray of float64, shape (Q_source,)
        Its masses mu_i >= 0; with the atom they sum to sum_k lambda_k w*_k^2, the loss before training.
    eigenvalues : ndarray of float64, shape (Q,)
        Nodes s'_j > 0 of the trace measure, decreasing.
    weights : ndarray of float64, shape (Q,)
        The numbers rho_j >= 0 of eigenvalues they stand for (not integers in general).
    atom : float
        mu_0 >= 0, the power in the null space of X: the loss that no training removes.
    error : float
        Error of sums relative to their total, 0 where every eigenvalue is its own node.

    Raises
    ------
    TypeError
        If an argument is not an array of real numbers (not a number).
    ValueError
        For negative, infinite or NaN entries, shapes that differ, or empty arrays.

    Notes
    -----
    Theory section 6. `DeterministicEquivalent.measure` gives the average over A(0), `from_projection` one A(0).

    Examples
    --------
    >>> import scalefield as sf
    >>> task = sf.PowerLawSpectrum(1.5, 0.5, n_modes=100)
    >>> measure = sf.SpectralMeasure.from_projection(task, width=8, seed=0)
    >>> measure.eigenvalues.size, bool(abs(measure.total_power - task.total_target_power) < 1e-12)
    (8, True)
    """

    source_eigenvalues: Array
    source_power: Array
    eigenvalues: Array
    weights: Array
    atom: float = 0.0
    error: float = 0.0

    def __post_init__(self) -> None:
        for nodes, masses in (("source_eigenvalues", "source_power"), ("eigenvalues", "weights")):
            x = as_vector(nodes, getattr(self, nodes), minimum=0.0)
            mass = as_vector(masses, getattr(self, masses), minimum=0.0)
            if x.shape != mass.shape:
                raise ValueError(f"{nodes} and {masses} must have one shape, got {x.shape} and {mass.shape}")
            order = np.argsort(-x, kind="stable")
            for name, array in ((nodes, x[order]), (masses, mass[order])):
                array.setflags(write=False)
                object.__setattr__(self, name, array)
        object.__setattr__(self, "atom", as_float("atom", self.atom, minimum=0.0))

    @classmethod
    def from_projection(cls, spectrum: Task, width: float, seed: int) -> SpectralMeasure:
        r"""Measures of one realised A(0): that of run 0 of ``simulate(model, ..., seed=seed)``.

        With S = A(0) Lambda A(0)^T/N = V diag(s) V^T and c = A(0) Lambda w*, the weights are
        (V^T c)_i^2/(N s_i) in the source measure and 1 in the trace measure.

        Parameters
        ----------
        spectrum : PowerLawSpectrum or Spectrum
            The task, of finitely many modes M unless the width is infinite.
        width : int or inf
            N; at inf the eigenvalues are those of the modes.
        seed : int
            In [0, 2^63).

        Returns
        -------
        SpectralMeasure
            min(N, M) nodes of each measure, fewer where eigenvalues vanish.

        Raises
        ------
        TypeError, ValueError
            For arguments of the wrong type or range; for an infinite spectrum at finite width.
        InsufficientMemoryError
            If N x N arrays do not fit.

        Notes
        -----
        O(N^2 M + N^3) in time, or O(M^2 N) if M < N, by BLAS and LAPACK; O(N^2) in memory: blocks of modes of A(0)
        are made as they are needed. Eigenvalues are accurate to 1e-16 of the largest. Theory section 6.

        Examples
        --------
        >>> import scalefield as sf
        >>> task = sf.Spectrum([1.0, 0.5, 0.25], [1.0, 1.0, 1.0])
        >>> bool(sf.SpectralMeasure.from_projection(task, width=2, seed=1).atom > 0.0)
        True
        """
        if not isinstance(spectrum, Task):
            raise TypeError(f"spectrum must be a PowerLawSpectrum or a Spectrum, got {type(spectrum).__name__}")
        seed = as_seed("seed", seed)
        infinite = isinstance(width, (float, np.floating)) and math.isinf(width) and width > 0
        if not infinite:
            width = as_count("width", width)
        if spectrum.n_modes is None:
            if infinite:
                raise ValueError("n_modes must be finite to list the modes one by one, got an infinite spectrum")
            raise ValueError("n_modes of the spectrum must be finite for a realised projection, got an infinite spectrum")
        if infinite:
            eigenvalues, coefficients = spectrum.modes(0, spectrum.n_modes)
            kept = eigenvalues > 0.0
            eigenvalues = eigenvalues[kept]
            return cls(eigenvalues, eigenvalues * coefficients[kept] ** 2, eigenvalues, np.ones(eigenvalues.size))
        return _realised(spectrum, spectrum.n_modes, int(width), seed)

    def merged(self, horizon: float, rtol: float = 1e-12) -> SpectralMeasure:
        """Fewer nodes that act alike: sums of decays e^{-s tau} up to tau = horizon keep a relative accuracy.

        Parameters
        ----------
        horizon : float
            Largest effective time tau, at least 1.
        rtol : float
            Relative error of each sum, with the atom (in the trace measure: its share of the trace).

        Returns
        -------
        SpectralMeasure
            Its error is the largest one measured, or that of the nodes themselves.
        """
        horizon = as_float("horizon", horizon, minimum=1.0)
        rtol = as_float("rtol", rtol, minimum=1e-13)
        present = (self.source_power > 0.0) & (self.source_eigenvalues > 0.0)
        source, power, source_error = self.source_eigenvalues[:1], np.zeros(1), 0.0
        if present.any():
            source, power, source_error = condense(
                self.source_eigenvalues[present], self.source_power[present], horizon, rtol, self.atom
            )
        # Noise adds to a loss that does not fall below the atom: its share of the power is where digits end.
        floor = self.trace * self.atom / self.total_power if self.total_power > 0.0 else 0.0
        counted = (self.weights > 0.0) & (self.eigenvalues > 0.0)
        x, mass, error = condense(
            self.eigenvalues[counted], (self.weights * self.eigenvalues)[counted], horizon, rtol, floor
        )
        return SpectralMeasure(source, power, x, mass / x, self.atom, max(self.error, source_error, error))

    def __repr__(self) -> str:
        return (
            f"SpectralMeasure({self.source_eigenvalues.size} source nodes, {self.eigenvalues.size} trace nodes, "
            f"largest eigenvalue {self.eigenvalues[0]:.6g}, atom {self.atom:.3g}, error {self.error:.1g})"
        )

    @property
    def total_power(self) -> float:
        """Mass of the source measure with its atom, the loss before training."""
        return float(self.source_power.sum()) + self.atom

    @property
    def trace(self) -> float:
        """tr X = sum_j rho_j s_j."""
        return float(self.weights @ self.eigenvalues)


def _realised(spectrum: Task, n_modes: int, n: int, seed: int) -> SpectralMeasure:
    from scalefield._native import literal_steps, rng

    # Whichever of S (N x N) and X (M x M) is smaller has no zero eigenvalues to tell from small ones.
    small = n_modes <= n
    size = min(n, n_modes)
    block = n_modes if small else max(1, min(n_modes, _BLOCK_ENTRIES // n))
    require_memory(8 * (3 * size * size + 2 * block * n), f"the spectral measure of a projection of width {n}")
    key = rng.stream_key(seed, rng.PROJECTION)
    stop = np.zeros(1, dtype=np.uint8)
    rows = np.empty((block, n))
    matrix, overlap, total = np.zeros((size, size)), np.zeros(n), 0.0
    for first in range(0, n_modes, block):
        last = min(first + block, n_modes)
        eigenvalues, coefficients = spectrum.modes(first, last)
        part = rows[: last - first]
        literal_steps.fill_projection(*key, 0, first, stop, part)
        # c = A(0) Lambda w*, S = A(0) Lambda A(0)^T/N
        overlap += (eigenvalues * coefficients) @ part
        total += float(eigenvalues @ coefficients**2)
        part *= np.sqrt(eigenvalues / n)[:, None]
        matrix += part @ part.T if small else part.T @ part
    s, vectors = np.linalg.eigh(matrix)
    kept = s > size * np.finfo(float).eps * s[-1]
    if small:
        root_power = np.sqrt(eigenvalues) * coefficients
        power = (root_power @ vectors) ** 2
        # What is not kept belongs to modes without power, or to rounding.
        return SpectralMeasure(s[kept], power[kept], s[kept], np.ones(int(kept.sum())))
    power = (overlap @ vectors[:, kept]) ** 2 / (n * s[kept])
    return SpectralMeasure(s[kept], power, s[kept], np.ones(power.size), max(total - float(power.sum()), 0.0))
