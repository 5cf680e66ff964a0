"""The spectral form: online SGD on the eigenvalues of the random features (theory section 6)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalefield._progress import Progress
from scalefield.dmft.solution import DMFTSolution
from scalefield.dmft.two_time import MarchMeasures, effective_time, largest_row_sum, march_rows, repeat_to_horizon
from scalefield.model import Model
from scalefield.spectral_measure import SpectralMeasure

__all__ = ["solve_spectral"]

Array = NDArray[np.float64]


def solve_spectral(
    model: Model, n_steps: int, measure: SpectralMeasure, rtol: float, progress: Progress | None
) -> DMFTSolution:
    r"""Solve the mean-field theory of online SGD on the spectral measures of the random features.

    With Phi_s = (1 + s P)^{-1} and phi_s = Phi_s 1 for eigenvalues s of X = Lambda^{1/2} A(0)^T A(0) Lambda^{1/2}/N,
    the source measure mu and the trace measure rho,

    .. math::
        L(t) &= \mu(\phi_s(t)^2) + \tfrac{1}{B} \rho((1-\Phi_s)\, \mathrm{diag}(D)\, (1-\Phi_s)^T)(t,t) \\
        C_2 &= \mu(s\, \phi_s \phi_s^T) + \tfrac{1}{B} \rho(s\, \Phi_s\, \mathrm{diag}(D)\, \Phi_s^T)

    and H_w, C_w and P from C_2 as in the two-time form. These are its equations at infinite width (R_22 = 1,
    Z = 0, K = P, C_1 = C_2), with eigenvalues in the place of modes, so it is the same march that solves them.

    Parameters
    ----------
    model : Model
        The training. Of the task and the width only the stability bound and the finite range of the loss are
        used: `measure` says the rest.
    n_steps : int
        Number of SGD steps, at least 1.
    measure : SpectralMeasure
        Source and trace measure, of one realised A(0) or averaged.
    rtol : float
        Accuracy of sums over either measure relative to its total mass; eigenvalues that training cannot tell
        apart within n_steps are merged to this accuracy.
    progress : callable or None
        Called as ``progress(steps_done, n_steps)`` a few times a second.

    Returns
    -------
    DMFTSolution
        Without bias, feature_variance, sgd_variance, C_1, R_13, R_22 and K, which belong to single modes; with
        population_loss.

    Raises
    ------
    InsufficientMemoryError
        If the arrays do not fit into the available memory; nothing was allocated.
    DivergenceError
        If the loss leaves the finite range; `.step` is that step, `.partial` the solution before it.
    Interrupted
        On Ctrl-C, within a second; `.partial` is the solution so far.

    Notes
    -----
    (2/3) Q T^3 floating-point operations in matrix products for Q trace nodes and T = n_steps + 1 (none at
    infinite batch size), four passes over the lower triangle of a T x T matrix a row, and 40 T^2 bytes.
    """

    def march(horizon: float) -> DMFTSolution:
        measures = _measures(measure, horizon, rtol)

        def build(arrays: dict[str, Any], n_rows: int) -> DMFTSolution:
            return DMFTSolution(
                model=model,
                steps=np.arange(n_rows),
                population_loss=arrays["bias"],
                **{name: arrays[name] for name in ("loss", "C_0", "C_2", "C_w", "P", "H_w")},
                method="spectral",
                n_nodes=measures.eigenvalue.size,
                quadrature_error=measures.error,
                kernel_scale=1.0 + model.gamma * np.diag(arrays["C_w"]),
            )

        return march_rows(model, n_steps, measures, 0.0, build, progress, with_modes=False)

    estimate = effective_time(model, n_steps, measure.source_eigenvalues, measure.source_power)

    def reached_time(solution: DMFTSolution) -> float:
        assert solution.P is not None
        return largest_row_sum(solution.P)

    return repeat_to_horizon(estimate, march, reached_time)


def _measures(measure: SpectralMeasure, horizon: float, rtol: float) -> MarchMeasures:
    """Trace measure (mass rho_s s) and source measure; its atom is a source that no training moves."""
    x = measure.eigenvalues
    merged = MarchMeasures.merged(
        x, measure.weights * x, measure.source_eigenvalues, measure.source_power, measure.error, horizon, rtol
    )
    return MarchMeasures(
        merged.eigenvalue,
        merged.weight,
        np.append(merged.source_eigenvalue, 0.0),
        np.append(merged.source_power, measure.atom),
        merged.error,
    )
