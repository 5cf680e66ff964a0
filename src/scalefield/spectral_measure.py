"""Spectral measures of a random-feature kernel: all that training sees of a task and a projection (theory section 6).

With X = Lambda^{1/2} (A(0)^T A(0)/N) Lambda^{1/2} and u = Lambda^{1/2} w*, learning curves are functionals of two
positive measures on the eigenvalues s of X: the source measure mu (weights (e_s . u)^2) and the trace measure rho
(weights 1, non-zero eigenvalues only).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, qr, solve_triangular, svd

from scalefield._memory import require_memory
from scalefield._projection import add_far_modes, far_target_power, modes_kept, projection_rows
from scalefield._threads import single_threaded_blas
from scalefield._validate import as_count, as_float, as_seed, as_vector
from scalefield.quadrature import check_rtol, condense
from scalefield.spectrum import Task

__all__ = ["SpectralMeasure", "streamed_triangle"]

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
        for name in ("atom", "error"):
            object.__setattr__(self, name, as_float(name, getattr(self, name), minimum=0.0))

    @classmethod
    def from_projection(cls, spectrum: Task, width: float, seed: int) -> SpectralMeasure:
        r"""Measures of one realised A(0): that of run 0 of ``simulate(model, ..., seed=seed)``.

        .. math::
            X v_i = s_i v_i, \qquad \mu_i = (v_i \cdot u)^2, \qquad \rho_i = 1 \quad (s_i > 0)

        Parameters
        ----------
        spectrum : PowerLawSpectrum or Spectrum
            The task; of finitely many modes M if the width is infinite.
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
            For arguments of the wrong type or range; for an infinite spectrum at infinite width.
        InsufficientMemoryError
            If N x N arrays do not fit.

        Notes
        -----
        O(N^2 M + N^3) in time, or O(M^2 N) if M < N, by BLAS and LAPACK: about a second for N = 512 and M = 1e5.
        O(N^2) in memory: blocks of A(0) are made as they are needed. Small eigenvalues, and the atom, have digits of
        their own (QR decompositions, no squares of what is large): relative errors of 1e-12 and less. Theory section 6.
        Of power laws with more than 2^20 modes the far ones enter by the law of their sum, as in reduced runs.

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
        if infinite:
            if spectrum.n_modes is None:
                raise ValueError("n_modes must be finite to list the modes one by one, got an infinite spectrum")
            eigenvalues, coefficients = spectrum.modes(0, spectrum.n_modes)
            kept = eigenvalues > 0.0
            eigenvalues = eigenvalues[kept]
            return cls(eigenvalues, eigenvalues * coefficients[kept] ** 2, eigenvalues, np.ones(eigenvalues.size))
        return _realised(spectrum, int(width), seed)

    def merged(self, horizon: float, rtol: float = 1e-12) -> SpectralMeasure:
        r"""Fewer nodes that act alike: sums of decays e^{-s tau} up to tau = horizon keep a relative accuracy.

        .. math:: \mu_0 + \sum_i \mu_i e^{-s_i \tau}, \qquad \sum_j \rho_j s'_j e^{-s'_j \tau}

        So do steps of gradient descent, (1 - r s)^t with r up to 1.9 over the largest s.

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

        Raises
        ------
        TypeError, ValueError
            If horizon or rtol is not a number in its range.

        Notes
        -----
        O(Q log(horizon)) in time, milliseconds to tens of them; O(Q) in memory. Theory section 5.

        Examples
        --------
        >>> import scalefield as sf
        >>> measure = sf.DeterministicEquivalent(sf.PowerLawSpectrum(1.5, 0.5), 1000).measure()
        >>> merged = measure.merged(horizon=1e6, rtol=1e-8)
        >>> measure.weights.size > 5 * merged.weights.size, bool(merged.error <= 1e-8)
        (True, True)
        """
        horizon = as_float("horizon", horizon, minimum=1.0)
        rtol = check_rtol(rtol)
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


def _realised(spectrum: Task, n: int, seed: int) -> SpectralMeasure:
    n_modes = modes_kept(spectrum)
    whole = n_modes == spectrum.n_modes
    small = min(n, n_modes) if whole else n
    block = max(1, min(_BLOCK_ENTRIES // small, max(n, n_modes)))
    require_memory(
        8 * (12 * small * (small + 1) + 2 * block * (small + 1) + 6 * n_modes),
        f"the spectral measure of a projection of width {n} with {n_modes} modes",
    )
    eigenvalues, coefficients = spectrum.modes(0, n_modes)
    # Modes of eigenvalue 0 are the last ones: the others keep their places in A(0).
    m = int(np.count_nonzero(eigenvalues > 0.0))
    root = np.sqrt(eigenvalues[:m])
    power = root * coefficients[:m]
    # On a busy machine threads that wait for one another cost several times what they gain on an idle one.
    with single_threaded_blas():
        if m <= n and whole:
            return _from_all_modes(root, coefficients[:m], power, n, seed, block)
        far = None if whole else _far_squares(spectrum, n, seed)
        return _from_features(root, power, n, seed, block, far)


def _from_features(root: Array, power: Array, n: int, seed: int, block: int, far: Array | None) -> SpectralMeasure:
    """N < M. With F = Lambda^{1/2} A(0)^T/sqrt(N) (M x N), X = F F^T and [F, u] = Q [[R, g], [0, r]].

    From R = U diag(sqrt(s)) V^T the source weights are (U^T g)^2, and r^2 is the atom: no difference of large numbers.
    `far` is what modes beyond those of `root` add to [F, u]^T [F, u].
    """
    m = root.size
    scale = root / np.sqrt(n)
    triangle = streamed_triangle(lambda first, last: _rows(first, last, n, seed, scale, power), m, n + 1, block, far)
    left, root_s, _ = svd(triangle[:n, :n], check_finite=False)
    weights = (triangle[:n, n] @ left) ** 2
    s = root_s**2
    kept = s > 0.0
    atom = float(triangle[n, n] ** 2) + float(weights[~kept].sum())
    return SpectralMeasure(s[kept], weights[kept], s[kept], np.ones(int(kept.sum())), atom)


def streamed_triangle(
    rows: Callable[[int, int], Array], m: int, n_columns: int, block: int, far: Array | None = None
) -> Array:
    """R of the QR decomposition of m rows, of falling size, that are made as they are needed: rows(first, last).

    `far` is the square R^T R of further ones.
    """
    # The leading modes keep their digits in a QR decomposition of rows of falling size. What follows them is at most of
    # the order of the smallest s, and may be squared.
    head = min(m, 2 * n_columns - 2) if m > 4 * (n_columns - 1) else m
    triangle = np.empty((0, n_columns))
    for first in range(0, head, block):
        last = min(first + block, head)
        triangle = _triangle(np.concatenate([triangle, rows(first, last)]))
    if head < m or far is not None:
        squares = np.zeros((n_columns, n_columns)) if far is None else far
        for first in range(head, m, block):
            part = rows(first, min(first + block, m))
            squares += part.T @ part
        size = np.sqrt(np.diagonal(squares))
        size = np.where(size > 0.0, size, 1.0)
        values, vectors = np.linalg.eigh(squares / np.multiply.outer(size, size))
        triangle = _triangle(np.concatenate([triangle, (np.sqrt(np.maximum(values, 0.0)) * vectors).T * size]))
    return triangle


def _far_squares(spectrum: Task, n: int, seed: int) -> Array:
    """[F, u]^T [F, u] of the far modes: [[S, b], [b^T, |u|^2]] with S/N and b/sqrt(N), theirs alone."""
    squares = np.zeros((n + 1, n + 1))
    covariance, b = np.zeros((n, n)), np.zeros(n)
    add_far_modes(spectrum, seed, 0, covariance, b)
    squares[:n, :n] = covariance / n
    squares[:n, n] = squares[n, :n] = b / math.sqrt(n)
    squares[n, n] = far_target_power(spectrum)
    return squares


def _from_all_modes(root: Array, coefficients: Array, power: Array, n: int, seed: int, block: int) -> SpectralMeasure:
    """M <= N. With A(0) = Q R, X = B^T B for B = R Lambda^{1/2}/sqrt(N) = U diag(sqrt(s)) V^T."""
    m = root.size
    if n <= 2 * m:
        triangle = _triangle(_columns(0, n, m, seed))
    else:
        # A(0)^T A(0) is well conditioned, and may be formed.
        squares = np.zeros((m, m))
        # Deviates come in fours.
        block = max(4, block // 4 * 4)
        for first in range(0, n, block):
            part = _columns(first, min(first + block, n), m, seed)
            squares += part.T @ part
        triangle = cholesky(squares, overwrite_a=True, check_finite=False)
    left, root_s, right = svd(triangle * (root / np.sqrt(n)), check_finite=False)
    # V^T u = diag(sqrt(s)) U^T sqrt(N) R^{-T} w*: the one form keeps digits of large weights, the other of small ones.
    target = np.sqrt(n) * solve_triangular(triangle, coefficients, trans="T", check_finite=False)
    weights = right @ power
    indirect = root_s * float(np.linalg.norm(target)) < float(np.linalg.norm(power))
    weights[indirect] = (root_s * (target @ left))[indirect]
    s = root_s**2
    kept = s > 0.0
    atom = float((weights[~kept] ** 2).sum())
    return SpectralMeasure(s[kept], weights[kept] ** 2, s[kept], np.ones(int(kept.sum())), atom)


def _rows(first: int, last: int, n: int, seed: int, scale: Array, power: Array) -> Array:
    """Rows first..last-1 of [scale A(0)^T, u], shape (last - first, N + 1)."""
    rows = np.empty((last - first, n + 1))
    np.multiply(projection_rows(seed, 0, first, last, n), scale[first:last, None], out=rows[:, :n])
    rows[:, n] = power[first:last]
    return rows


def _columns(first: int, last: int, m: int, seed: int) -> Array:
    """Features first..last-1 of the first M modes of A(0), shape (last - first, M)."""
    return projection_rows(seed, 0, 0, m, last - first, first).T


def _triangle(rows: Array) -> Array:
    """R of the QR decomposition, square."""
    result: Array = qr(rows, overwrite_a=True, mode="r", check_finite=False)[0][: rows.shape[1]]
    return result
