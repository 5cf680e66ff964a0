"""The result of `solve_dmft`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scalefield._result import Result

__all__ = ["DMFTSolution"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class DMFTSolution(Result):
    r"""Learning curve and two-time functions of the mean-field theory.

    T = n_steps + 1 is the number of recorded times. Rows of two-time arrays are the later time, columns the
    earlier, so causal arrays are lower triangular.

    Attributes
    ----------
    model : Model
        What was solved.
    steps : ndarray of int64, shape (T,)
        0, 1, ..., n_steps.
    loss : ndarray of float64, shape (T,)
        L(t), the test loss after t steps, without label noise: bias + feature_variance + sgd_variance.
    bias : ndarray, shape (T,)
        sum_k lambda_k w*_k^2 (H_k 1)(t)^2, the loss of the infinite ensemble over A(0) and batches.
    feature_variance : ndarray, shape (T,)
        sum_k lambda_k (H_k Z H_k^T)(t,t), due to the random initial features; 0 at infinite width.
    sgd_variance : ndarray, shape (T,)
        (1/B) sum_k ((1-H_k) diag(D) (1-H_k)^T)(t,t), due to finite batches; 0 for the population gradient.
    C_0, C_1, C_2, C_w : ndarray, shape (T, T)
        Correlations, symmetric: of the error v_0 weighted by lambda (C_0, with L on its diagonal; also
        `loss_correlation`), of v_1, of v_2, of the readout w.
    R_13, R_22 : ndarray, shape (T, T)
        Responses, lower triangular: of the modes, -sum_k lambda_k H_k, and of the features,
        (1 - R_13 P/N)^-1.
    K, P, H_w : ndarray, shape (T, T)
        Memory kernels, strictly lower triangular: K = P R_22, P = H_w + eta gamma tril(C_w, -1), and the
        filter w = H_w v_2.
    method : str
        The engine that made the solution.
    n_nodes : int
        Nodes that stood for the modes in the two-time sums.
    quadrature_error : float
        Estimated error of sums over modes relative to their total mass; inf for an unstable run that outgrew
        every estimate of its effective time.

    References
    ----------
    Bordelon, Atanasov & Pehlevan, arXiv:2409.17858, Eqs. 26-31.
    """

    steps: NDArray[np.int64]
    loss: Array
    bias: Array
    feature_variance: Array
    sgd_variance: Array
    C_0: Array
    C_1: Array
    C_2: Array
    C_w: Array
    R_13: Array
    R_22: Array
    K: Array
    P: Array
    H_w: Array
    method: str
    n_nodes: int
    quadrature_error: float

    def __repr__(self) -> str:
        return (
            f"DMFTSolution({self.model.summary()}; {self.n_steps} steps, loss {self.loss[0]:.6g} -> "
            f"{self.loss[-1]:.6g}; {self.method}, {self.n_nodes} nodes, "
            f"quadrature error {self.quadrature_error:.0e})"
        )

    @property
    def n_steps(self) -> int:
        """Number of steps; the curve has one entry more."""
        return len(self.steps) - 1

    @property
    def loss_correlation(self) -> Array:
        """C_0(t,s) = sum_k lambda_k <v_0k(t) v_0k(s)>, shape (T, T); its diagonal is the loss."""
        return self.C_0

    @property
    def unstable_from(self) -> int | None:
        """First step at which eta a(t) s_max >= 2, with the kernel scale a = 1 + gamma C_w(t,t); None if never.

        There gradient descent on the grown kernel is unstable: learned components regrow from whatever is
        left of them, at infinite width and batch from rounding errors.
        """
        scale = 1.0 + self.model.gamma * np.diag(self.C_w)
        beyond = self.model.learning_rate * scale * self.model.largest_eigenvalue >= 2.0
        return int(np.argmax(beyond)) if beyond.any() else None
