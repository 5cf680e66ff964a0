"""What runs record of their weights beside the loss."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalefield.model import Model
from scalefield.simulation.plan import Plan

__all__ = ["STATISTICS", "KernelStatistics", "observation_bytes"]

Array = NDArray[np.float64]

STATISTICS = ("weight_norm", "kernel_scale", "spike", "alignment")


class KernelStatistics:
    r"""Readout and kernel of a run, in any orthonormal basis of the features.

    The neural tangent kernel in the basis where features are white is
    K = Lambda^{1/2} A(0)^T (G^T G + gamma q 1) A(0) Lambda^{1/2}/N, q = |w|^2/N. With the covariance
    S = A(0) Lambda A(0)^T and b = A(0) Lambda w*

    .. math::
        \langle u, K u\rangle = \tfrac{1}{N} b^T (G^T G + \gamma q) b, \qquad
        |K|_F^2 = \tfrac{1}{N^2} \mathrm{tr}\, [(G^T G + \gamma q) S]^2

    Parameters
    ----------
    model : Model
        Width, gamma and target.
    covariance : ndarray, shape (n, n) or (n,)
        S, or its diagonal.
    b : ndarray, shape (n,)
        Covariance of features and target.
    """

    def __init__(self, model: Model, covariance: Array, b: Array) -> None:
        self.gamma, self.covariance, self.b = model.gamma, covariance, b
        # At infinite width A(0)^T A(0)/N is the identity.
        self.inverse_width = 1.0 if math.isinf(model.width) else model.inverse_width
        self.power = model.spectrum.total_target_power

    def observe(self, names: tuple[str, ...], w: Array, mixing: Array, learned_power: float) -> dict[str, Any]:
        """Values of the statistics named, given w, G (shape (0, 0) if lazy) and sum_k lambda_k v_3k^2."""
        q = self.inverse_width * float(w @ w)
        scale = 1.0 + self.gamma * q
        found: dict[str, Any] = {"weight_norm": q, "kernel_scale": scale}
        # (gamma/a) mu(y^2), with the learned part y u of the target
        found["spike"] = self.gamma / scale * learned_power
        if "alignment" in names:
            found["alignment"] = self._alignment(q, np.asarray(mixing, dtype=np.float64))
        return {name: found[name] for name in names}

    def _alignment(self, q: float, mixing: Array) -> float:
        diagonal = self.covariance.ndim == 1
        if mixing.shape[0] == 0:
            # Lazy: G = 1
            norm = math.sqrt(float((self.covariance**2).sum()))
            signal = float(self.b @ self.b)
        else:
            turned = mixing @ self.b
            signal = float(turned @ turned) + self.gamma * q * float(self.b @ self.b)
            kernel = mixing.T @ mixing
            kernel[np.diag_indices_from(kernel)] += self.gamma * q
            # tr (C S C S) with C = G^T G + gamma q
            product = kernel * self.covariance if diagonal else kernel @ self.covariance
            norm = math.sqrt(float((product * product.T).sum()))
        return signal / (norm * self.power) if self.power > 0.0 and norm > 0.0 else math.nan


def observation_bytes(plan: Plan, n: int, block: int) -> int:
    """Memory that recording a state of n features takes, given the entries of A(0) that are converted at a time."""
    if not plan.records_state:
        return 0
    # The block, and its covariance; then G in double precision, G^T G and two products.
    squares = 5 * n * n if "alignment" in plan.statistics and (block or plan.model.is_rich) else 0
    return 8 * (2 * block + squares)
