"""Spectral measures of a random-feature kernel: all that training sees of a task and a projection (theory section 6).

With X = Lambda^{1/2} (A(0)^T A(0)/N) Lambda^{1/2} and u = Lambda^{1/2} w*, learning curves are functionals of two
positive measures on the eigenvalues s of X: the source measure mu (weights (e_s . u)^2) and the trace measure rho
(weights 1, non-zero eigenvalues only).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scalefield._validate import as_float, as_vector

__all__ = ["SpectralMeasure"]

Array = NDArray[np.float64]


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
