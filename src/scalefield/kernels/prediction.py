"""What a kernel predicts: lazy and rich learning curves, their exponents, and compute-optimal training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scalefield._validate import as_float, as_vector
from scalefield.flow import FlowSolution, solve_gradient_flow
from scalefield.kernels.source_capacity import SourceCapacityFit, fit_source_capacity
from scalefield.model import Model
from scalefield.scaling import ComputeOptimum, compute_optimal, crossover_time, time_exponent
from scalefield.spectrum import Spectrum

__all__ = ["KernelPrediction", "predict"]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class KernelPrediction:
    """Learning curves and exponents that follow from a kernel's spectrum: what `predict` returns.

    Attributes
    ----------
    spectrum : Spectrum
        What was measured.
    fit : SourceCapacityFit
        alpha and beta, with intervals and window.
    lazy, rich : FlowSolution
        Gradient flow at gamma = 0 and at the gamma asked for, both remembering their models.
    lazy_exponent, rich_exponent : float
        beta and chi(beta): L ~ tau^-exponent of infinitely wide networks on fresh samples.
    lazy_exponent_interval, rich_exponent_interval : tuple of float
        The exponents at the ends of beta's interval.
    lazy_optimum, rich_optimum : ComputeOptimum or None
        Exponents of the best loss, width and time at compute C = N t; None for alpha <= 1, where the theory's sums
        diverge.
    crossover_time : float
        tau at which the rich power law begins, gamma^{-1/(1-beta)}, for hard tasks; inf for others, whose exponent does
        not change, and nan for beta <= 0.
    resolved_time : float
        tau up to which modes of the window carry the loss: 1/(2 lambda at its end). Beyond it curves follow modes that
        are shifted by the number of samples or were not measured, and end exponentially as every finite list of modes
        does.
    lazy_frontier, rich_frontier : Frontier or None
        Best width and time for each budget, if budgets were given.
    """

    spectrum: Spectrum
    fit: SourceCapacityFit
    lazy: FlowSolution
    rich: FlowSolution
    lazy_exponent: float
    rich_exponent: float
    lazy_exponent_interval: tuple[float, float]
    rich_exponent_interval: tuple[float, float]
    lazy_optimum: ComputeOptimum | None
    rich_optimum: ComputeOptimum | None
    crossover_time: float
    resolved_time: float
    lazy_frontier: Any = None
    rich_frontier: Any = None

    def __repr__(self) -> str:
        return (
            f"KernelPrediction(alpha {self.fit.alpha:.4g}, beta {self.fit.beta:.4g}: L ~ tau^-{self.lazy_exponent:.3g} "
            f"lazy, tau^-{self.rich_exponent:.3g} rich; gamma {self.rich.model.gamma:g}, width "
            f"{self.rich.model.width:g}, tau to {self.rich.times[-1]:.3g})"
        )


def predict(
    kernel: Spectrum | ArrayLike,
    y: ArrayLike | None = None,
    *,
    gamma: float = 1.0,
    width: float = math.inf,
    n_samples: float = math.inf,
    label_noise: float = 0.0,
    times: ArrayLike | None = None,
    window: tuple[int, int] | None = None,
    method: str = "tail-sum",
    budgets: ArrayLike | None = None,
    learning_rate: float = 0.1,
    batch_size: float = math.inf,
    center: bool = True,
    normalize: bool = False,
    n_modes: int | None = None,
) -> KernelPrediction:
    r"""Predict lazy and rich learning curves, scaling exponents and compute-optimal training from a kernel.

    The spectrum is measured (`Spectrum.from_kernel`), alpha and beta are fitted (`fit_source_capacity`), gradient flow
    is solved at gamma = 0 and at the gamma given, and exponents follow from theory:

    .. math:: L \sim \tau^{-\beta} \text{ (lazy)}, \qquad L \sim \tau^{-\beta \max(1, 2/(1+\beta))} \text{ (rich)}

    Parameters
    ----------
    kernel : array_like, shape (n, n), or Spectrum
        Gram matrix, or a spectrum measured before.
    y : array_like, shape (n,) or (n, outputs)
        Target; only with a matrix.
    gamma : float
        Richness of the rich curve, positive (default 1).
    width : int or inf
        N of both curves (default inf).
    n_samples : int or inf
        Size of a data set that training reuses (default inf, fresh samples). It is not that of the kernel: a kernel
        measured on many samples predicts training on few.
    label_noise : float
        Standard deviation of the noise on the labels of such a data set.
    times : array_like, optional
        tau = learning rate x step, increasing; by default 100 from 0.1/lambda_1 to ten times `resolved_time`.
    window, method
        Of `fit_source_capacity`.
    budgets : array_like, optional
        Compute C = N t for which the best width and time are found, at this learning_rate and batch_size, by
        `scaling.compute_frontier`.
    learning_rate, batch_size : float
        Of the frontiers, and of the models remembered.
    center, normalize, n_modes
        Of `Spectrum.from_kernel`.

    Returns
    -------
    KernelPrediction

    Warns
    -----
    KernelWarning
        See `Spectrum.from_kernel` and `fit_source_capacity`.

    Raises
    ------
    TypeError, ValueError
        For arguments of the wrong type or range, a matrix without y, or a spectrum with it.

    Notes
    -----
    The model's random features are Gaussian and its own features evolve within their span: of a real network this
    is a hypothesis, which held on hard tasks and failed on CIFAR-5M after long training (paper, Sec. 5.2). How far the
    lazy curve is from kernel gradient descent on real data is measured in ``docs/howto/your-own-kernel.md``.

    References
    ----------
    Bordelon, Atanasov & Pehlevan, arXiv:2409.17858, Eqs. 8-12, Sec. 5, Table 1.

    Examples
    --------
    >>> import scalefield as sf
    >>> prediction = sf.kernels.predict(sf.PowerLawSpectrum(1.5, 0.5, n_modes=1000), gamma=1.0)
    >>> round(prediction.lazy_exponent, 3), round(prediction.rich_exponent, 3)
    (0.5, 0.667)
    """
    from scalefield.spectrum import Task

    if isinstance(kernel, Task):
        if y is not None:
            raise ValueError("y goes with a matrix, got one with a spectrum, which holds its target")
        spectrum: Any = kernel
    else:
        if y is None:
            raise ValueError("y must be given with a matrix, got None")
        spectrum = Spectrum.from_kernel(kernel, y, center=center, normalize=normalize, n_modes=n_modes)
    richness = as_float("gamma", gamma, minimum=0.0, exclusive=True)
    settings = {
        "width": width,
        "n_samples": n_samples,
        "label_noise": label_noise,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
    }
    rich_model = Model(spectrum, gamma=richness, **settings)
    fit = fit_source_capacity(spectrum, window, method=method)
    last = float(spectrum.modes(fit.window[1] - 1, fit.window[1])[0][0])
    first = float(spectrum.modes(0, 1)[0][0])
    resolved_time = 0.5 / last
    if times is None:
        grid = np.geomspace(0.1 / first, 10.0 * resolved_time, 100)
    else:
        grid = as_vector("times", times, minimum=0.0)
    # Gradient flow has no batches.
    flows = [
        solve_gradient_flow(rich_model.replace(gamma=value, batch_size=math.inf), grid) for value in (0.0, richness)
    ]
    frontiers: list[Any] = [None, None]
    if budgets is not None:
        from scalefield.scaling import compute_frontier

        frontiers = [
            compute_frontier(spectrum, value, learning_rate, batch_size, budgets, label_noise=label_noise)
            for value in (0.0, richness)
        ]
    low, high = (max(value, 0.0) for value in fit.beta_interval)
    exponents, intervals, optima = [], [], []
    for rich in (False, True):
        # A target whose power does not decay is not learned by a power law.
        exponents.append(time_exponent(fit.beta, rich) if fit.beta > 0.0 else math.nan)
        intervals.append((_exponent_at(low, rich), _exponent_at(high, rich)))
        possible = fit.alpha > 1.0 and fit.beta > 0.0
        noisy = not math.isinf(batch_size)
        optima.append(compute_optimal(fit.alpha, fit.beta, rich, sgd_noise=noisy) if possible else None)
    return KernelPrediction(
        spectrum=spectrum,
        fit=fit,
        lazy=flows[0],
        rich=flows[1],
        lazy_exponent=exponents[0],
        rich_exponent=exponents[1],
        lazy_exponent_interval=intervals[0],
        rich_exponent_interval=intervals[1],
        lazy_optimum=optima[0],
        rich_optimum=optima[1],
        crossover_time=_crossover(richness, fit.beta),
        resolved_time=resolved_time,
        lazy_frontier=frontiers[0],
        rich_frontier=frontiers[1],
    )


def _exponent_at(beta: float, rich: bool) -> float:
    return time_exponent(beta, rich) if beta > 0.0 else 0.0


def _crossover(gamma: float, beta: float) -> float:
    if not beta > 0.0:
        return math.nan
    return crossover_time(gamma, beta) if beta < 1.0 else math.inf
