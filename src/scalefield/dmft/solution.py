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

    T is the number of recorded steps, n_steps + 1 if all are. Rows of two-time arrays are the later time, columns the
    earlier, so causal arrays are lower triangular. What an engine does not give is None.

    Attributes
    ----------
    model : Model
        What was solved.
    steps : ndarray of int64, shape (T,)
        The recorded steps, by default 0, 1, ..., n_steps.
    loss : ndarray of float64, shape (T,)
        L(t), the test loss after t steps, without label noise.
    method : str
        The engine that made the solution: "two-time", "spectral" or "closure".
    n_nodes : int
        Nodes that stood for the modes, or for the eigenvalues of the random features.
    quadrature_error : float
        Estimated error of sums over modes or eigenvalues relative to their total mass (closures: to each decaying
        sum); inf for an unstable run that outgrew every estimate of its effective time.
    kernel_scale : ndarray, shape (T,)
        1 + gamma q with q = |w|^2/N = C_w(t,t), the factor by which the kernel has grown. From a closure of order 0
        with SGD noise it may drift by tens of per cent over long runs.
    order : int or None
        Of a closure.
    closure_error : float or None
        Of a closure, 0 where it is exact: largest relative difference of its loss to the order below (order 0: above)
        over the first 1,000 steps. It bounds the error generously, since each order is a factor 10-100 better.
    exact_error : float or None
        Of a closure that is not exact: largest relative error of the loss against the exact spectral form over the
        first 150 steps, where errors are largest.
    C_0, C_2, C_w : ndarray, shape (T, T), or None
        Correlations, symmetric: of the error v_0 weighted by lambda (C_0, with L on its diagonal; also
        `loss_correlation`), of v_2, of the readout w.
    P, H_w : ndarray, shape (T, T), or None
        Memory kernels, strictly lower triangular: P = H_w + eta gamma tril(C_w, -1), and the filter w = H_w v_2.
    population_loss : ndarray, shape (T,), or None
        mu(phi_s(t)^2) with the spectral measure mu and its atom at 0 (theory section 6): the loss without the noise
        of the batches, which adds loss - population_loss. None from the two-time form where width and batch size
        are both finite: there feature_variance contains batch noise that the features spread.
    bias : ndarray, shape (T,), or None
        sum_k lambda_k w*_k^2 (H_k 1)(t)^2, the loss of the infinite ensemble over A(0) and batches. This and
        all that follows belongs to the modes one by one: None from the spectral form, which knows only the
        eigenvalues of the random features. The loss is bias + feature_variance + sgd_variance.
    feature_variance : ndarray, shape (T,), or None
        sum_k lambda_k (H_k Z H_k^T)(t,t), due to the random initial features; 0 at infinite width.
    train_loss : ndarray, shape (T,), or None
        Offline: C_r(t,t), the mean of the squared residuals over the P samples, label noise included; None online.
    data_variance : ndarray, shape (T,), or None
        Offline: due to the samples drawn, without their label noise.
    noise_variance : ndarray, shape (T,), or None
        Offline: due to label noise, and proportional to its variance at a given memory kernel. The loss is bias +
        feature_variance + data_variance + noise_variance. None in partial results, whose other variances contain it.
    sgd_variance : ndarray, shape (T,), or None
        (1/B) sum_k ((1-H_k) diag(D) (1-H_k)^T)(t,t), due to finite batches; 0 for the population gradient.
    C_1 : ndarray, shape (T, T), or None
        Correlation of v_1, symmetric; the array C_2 at infinite width.
    R_13, R_22 : ndarray, shape (T, T), or None
        Responses, lower triangular: of the modes, -sum_k lambda_k H_k, and of the features,
        (1 - R_13 P/N)^-1.
    K : ndarray, shape (T, T), or None
        Memory kernel of the modes, strictly lower triangular: K = P R_22; the array P at infinite width.
    C_r, C_g : ndarray, shape (T, T), or None
        Offline: correlations of the residuals r = Psi v_0 + noise (their mean product over samples), and of the
        gradient g = Psi^T r/P (summed over modes), which takes the place of v_1. Symmetric.
    R_0, R_r : ndarray, shape (T, T), or None
        Offline: responses, lower triangular: of the error, -sum_k lambda_k H_k K, and of the residuals,
        (1 - R_0/P)^-1; with H_k = (1 + lambda_k K R_r)^-1, and R_13 = -sum_k lambda_k R_r H_k.

    References
    ----------
    Bordelon, Atanasov & Pehlevan, arXiv:2409.17858, Eqs. 26-31; offline Eqs. 32-41.
    """

    steps: NDArray[np.int64]
    loss: Array
    method: str
    n_nodes: int
    quadrature_error: float
    kernel_scale: Array
    order: int | None = None
    closure_error: float | None = None
    exact_error: float | None = None
    C_0: Array | None = None
    C_2: Array | None = None
    C_w: Array | None = None
    P: Array | None = None
    H_w: Array | None = None
    population_loss: Array | None = None
    bias: Array | None = None
    feature_variance: Array | None = None
    sgd_variance: Array | None = None
    C_1: Array | None = None
    R_13: Array | None = None
    R_22: Array | None = None
    K: Array | None = None
    train_loss: Array | None = None
    data_variance: Array | None = None
    noise_variance: Array | None = None
    C_r: Array | None = None
    C_g: Array | None = None
    R_0: Array | None = None
    R_r: Array | None = None

    def __repr__(self) -> str:
        engine = self.method if self.order is None else f"{self.method} of order {self.order}"
        return (
            f"DMFTSolution({self.model.summary()}; {self.n_steps} steps, loss {self.loss[0]:.6g} -> "
            f"{self.loss[-1]:.6g}; {engine}, {self.n_nodes} nodes, "
            f"quadrature error {self.quadrature_error:.0e})"
        )

    @property
    def n_steps(self) -> int:
        """The last recorded step."""
        return int(self.steps[-1])

    @property
    def loss_correlation(self) -> Array | None:
        """C_0(t,s) = sum_k lambda_k <v_0k(t) v_0k(s)>, shape (T, T); its diagonal is the loss."""
        return self.C_0

    @property
    def generalization_gap(self) -> Array | None:
        """Test loss on labels as noisy as those of the samples, less the train loss: loss + sigma^2 - train_loss."""
        if self.train_loss is None:
            return None
        gap: Array = self.loss + self.model.label_noise**2 - self.train_loss
        return gap

    @property
    def unstable_from(self) -> int | None:
        """First recorded step at which eta a(t) s_max >= 2, with the kernel scale a; None if never.

        There gradient descent on the grown kernel is unstable: learned components regrow from whatever is
        left of them, at infinite width and batch from rounding errors.
        """
        beyond = self.model.learning_rate * self.kernel_scale * self.model.largest_eigenvalue >= 2.0
        return int(self.steps[np.argmax(beyond)]) if beyond.any() else None
