r"""Scaling laws as exponents: phases of task difficulty and compute-optimal training (theory section 9).

Every exponent here is a statement about power laws at large time, width and compute; the engines
(`solve_gradient_flow`, `bottleneck_loss`, `solve_dmft`) give the losses themselves, and `docs/theory/scaling.md`
compares the two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scalefield._validate import as_count, as_flag, as_float, as_vector

__all__ = [
    "ComputeOptimum",
    "LossTerm",
    "PhaseDiagram",
    "bootstrap_exponents",
    "compute_optimal",
    "crossover_time",
    "loss_terms",
    "phase_diagram",
    "task_difficulty",
    "time_exponent",
]

Array = NDArray[np.float64]
Difficulty = Literal["hard", "easy", "super-easy"]

# Exponents that meet on a border of phases are equal to a few roundings.
_TIE = 1e-12


@dataclass(frozen=True)
class LossTerm:
    r"""One power law of the loss, L ~ t^-a N^-b (eta/B)^c.

    Attributes
    ----------
    name : str
        "gradient flow", "model bottleneck", "width transient" or "SGD transient".
    time_exponent : float
        a, the power of 1/t; negative where the term grows.
    width_exponent : float
        b, the power of 1/N.
    noise_exponent : float
        c, the power of learning rate / batch size.
    is_crossover : bool
        True if the term holds only until the width is felt, t^r < N^alpha (`loss_terms`): it is the first sign of the
        model bottleneck, meets it there, and is no law of its own beyond.
    """

    name: str
    time_exponent: float
    width_exponent: float
    noise_exponent: float
    is_crossover: bool = False

    def value(self, time: ArrayLike, width: ArrayLike, noise: ArrayLike = 1.0) -> Array:
        """t^-a N^-b (eta/B)^c, with a prefactor of 1.

        Parameters
        ----------
        time, width, noise : float or array_like
            tau, N and eta/B, positive; shapes are broadcast.

        Returns
        -------
        ndarray
        """
        t, n, e = (np.asarray(v, dtype=np.float64) for v in (time, width, noise))
        product: Array = t**-self.time_exponent * n**-self.width_exponent * e**self.noise_exponent
        return product


@dataclass(frozen=True)
class ComputeOptimum:
    """How the best loss, width and time scale with compute C = N t.

    Attributes
    ----------
    difficulty : str
        "hard", "easy" or "super-easy".
    loss_exponent : float
        e of L ~ C^-e.
    width_exponent : float
        Power of C of the optimal width, N ~ C^width_exponent.
    time_exponent : float
        Power of C of the optimal time, t ~ C^time_exponent; the two add up to 1.
    dominant_terms : tuple of str
        Names of the terms that are balanced at the optimum (Table 1): two, more on a border of phases.
    """

    difficulty: Difficulty
    loss_exponent: float
    width_exponent: float
    time_exponent: float
    dominant_terms: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class PhaseDiagram:
    """Phases and exponents on a grid of tasks.

    Attributes
    ----------
    alphas : ndarray, shape (A,)
        Capacity exponents.
    betas : ndarray, shape (B,)
        Source exponents.
    rich : bool
        Whether features are learned.
    difficulty : ndarray of str, shape (A, B)
        `task_difficulty` of each task.
    chi : ndarray, shape (A, B)
        `time_exponent`: L ~ t^-chi at infinite width and batch.
    loss_exponent, width_exponent, time_exponent : ndarray, shape (A, B)
        `compute_optimal`: powers of C = N t of 1/L, N and t.
    """

    alphas: Array
    betas: Array
    rich: bool
    difficulty: NDArray[np.str_]
    chi: Array
    loss_exponent: Array
    width_exponent: Array
    time_exponent: Array

    def __post_init__(self) -> None:
        for array in vars(self).values():
            if isinstance(array, np.ndarray):
                array.setflags(write=False)


def task_difficulty(alpha: float, beta: float) -> Difficulty:
    """Phase of a power-law task: hard, easy or super-easy.

    Hard for beta <= 1, where the target's RKHS norm sum_k w*_k^2 = sum_k k^(alpha (1-beta) - 1) is infinite; easy for
    1 < beta <= 2 - 1/alpha; super-easy beyond, where the noise of SGD outlasts gradient flow.

    Parameters
    ----------
    alpha : float
        Capacity exponent, eigenvalues k^-alpha, greater than 1.
    beta : float
        Source exponent, target power k^-(alpha beta + 1), positive.

    Returns
    -------
    str
        "hard", "easy" or "super-easy".

    Raises
    ------
    TypeError, ValueError
        For arguments that are not numbers or out of range.

    Notes
    -----
    On a border the exponents of both sides agree, and losses carry a logarithm. beta = 1 is called hard because the
    norm diverges there (like log k), though features gain no exponent; beta = 2 - 1/alpha is called easy because the
    two transients then fall alike.

    In the lazy limit these are the phases Ia, II and III of Paquette et al., the ones that trace-class kernels reach:
    their alpha is alpha/2, their beta (alpha (beta - 1) + 1)/2.

    References
    ----------
    Bordelon, Atanasov & Pehlevan, arXiv:2409.17858, Eq. 7, Figure 1. Paquette et al., arXiv:2405.15074.

    Examples
    --------
    >>> from scalefield import scaling
    >>> [scaling.task_difficulty(2.0, beta) for beta in (0.5, 1.0, 1.25, 1.5, 2.0)]
    ['hard', 'hard', 'easy', 'easy', 'super-easy']
    """
    alpha, beta = _exponents(alpha, beta)
    if beta <= 1.0:
        return "hard"
    return "easy" if beta <= 2.0 - 1.0 / alpha else "super-easy"


def time_exponent(beta: float, rich: bool) -> float:
    r"""Exponent chi of the loss in time, at infinite width and batch: L ~ t^-chi.

    .. math:: \chi(\beta) = \beta \max(1, 2/(1+\beta)) \text{ if rich, } \beta \text{ if lazy}

    Parameters
    ----------
    beta : float
        Source exponent, positive.
    rich : bool
        Whether features are learned (gamma > 0); any gamma > 0 has the same exponent, from `crossover_time` on.

    Returns
    -------
    float

    Raises
    ------
    TypeError, ValueError
        For arguments of the wrong type or out of range.

    References
    ----------
    Bordelon, Atanasov & Pehlevan, arXiv:2409.17858, Eq. 10, 69.

    Examples
    --------
    >>> from scalefield import scaling
    >>> scaling.time_exponent(0.25, rich=False), scaling.time_exponent(0.25, rich=True)
    (0.25, 0.4)
    """
    beta = as_float("beta", beta, minimum=0.0, exclusive=True)
    return beta * _acceleration(beta, as_flag("rich", rich))


def bootstrap_exponents(beta: float, levels: int) -> Array:
    r"""Approximations of chi(beta), each from the kernel that the one before predicts.

    .. math:: \chi_0 = \beta, \qquad \chi_{n+1} = \beta \max(1, 2 - \chi_n)

    Parameters
    ----------
    beta : float
        Source exponent, positive.
    levels : int
        Number of steps, at least 0.

    Returns
    -------
    ndarray, shape (levels + 1,)
        chi_0 ... chi_levels. For beta < 1 the error changes sign and shrinks by beta at each level; for beta >= 1 all
        are beta.

    Raises
    ------
    TypeError, ValueError
        For arguments of the wrong type or out of range.

    References
    ----------
    Bordelon, Atanasov & Pehlevan, arXiv:2409.17858, Eq. 62, Figure 11.

    Examples
    --------
    >>> from scalefield import scaling
    >>> scaling.bootstrap_exponents(0.5, 3)
    array([0.5   , 0.75  , 0.625 , 0.6875])
    """
    beta = as_float("beta", beta, minimum=0.0, exclusive=True)
    chi = np.empty(as_count("levels", levels, minimum=0) + 1)
    chi[0] = beta
    for n in range(chi.size - 1):
        chi[n + 1] = beta * max(1.0, 2.0 - chi[n])
    return chi


def loss_terms(alpha: float, beta: float, rich: bool, *, printed: bool = False) -> tuple[LossTerm, ...]:
    r"""Power laws whose sum is the loss, up to prefactors.

    With r = max(1, 2/(1+beta)) if rich, r = 1 if lazy,

    .. math::
        L \sim t^{-\beta r} + N^{-\alpha \min(1, \beta)} + \frac{1}{N} t^{-(\min(1, \beta) - 1/\alpha) r}
        + \frac{\eta}{B} t^{-(2 - 1/\alpha) r}

    Parameters
    ----------
    alpha : float
        Capacity exponent, greater than 1.
    beta : float
        Source exponent, positive.
    rich : bool
        Whether features are learned.
    printed : bool
        The exponents as the paper prints them: bottleneck alpha min(2, beta), width transient (1 - 1/alpha) r at any
        beta. Default False: what exact losses show.

    Returns
    -------
    tuple of LossTerm
        Gradient flow, model bottleneck, width transient, SGD transient.

    Raises
    ------
    TypeError, ValueError
        For arguments of the wrong type or out of range.

    Notes
    -----
    The printed bottleneck leaves out the variance over initial features; the exact one, sum_k u_k^2 kappa/(kappa +
    lambda_k), falls like N^{-alpha min(1, beta)} (a logarithm more at beta = 1). For beta < 1 the first correction in
    1/N is t^{(1/alpha - beta) r}/N: relative to gradient flow it is t^{r/alpha}/N, which reaches 1 just where gradient
    flow meets the bottleneck. It is marked `is_crossover`: a part of that crossover, which adds nothing to the
    compute-optimal balance. For beta < 1/alpha it grows until then. Each term's exponents agree at beta = 1.

    References
    ----------
    Bordelon, Atanasov & Pehlevan, arXiv:2409.17858, Eq. 8, 9, 12, 79, 83, 86; theory section 9.

    Examples
    --------
    >>> from scalefield import scaling
    >>> for term in scaling.loss_terms(2.0, 1.25, rich=True):
    ...     print(f"{term.name}: t^-{term.time_exponent:g} N^-{term.width_exponent:g}")
    gradient flow: t^-1.25 N^-0
    model bottleneck: t^-0 N^-2
    width transient: t^-0.5 N^-1
    SGD transient: t^-1.5 N^-0
    """
    alpha, beta = _exponents(alpha, beta)
    r = _acceleration(beta, as_flag("rich", rich))
    as_printed = as_flag("printed", printed)
    bottleneck = alpha * min(2.0 if as_printed else 1.0, beta)
    mode_power = 1.0 if as_printed else min(1.0, beta)
    return (
        LossTerm("gradient flow", beta * r, 0.0, 0.0),
        LossTerm("model bottleneck", 0.0, bottleneck, 0.0),
        LossTerm("width transient", (mode_power - 1.0 / alpha) * r, 1.0, 0.0, not as_printed and beta < 1.0),
        LossTerm("SGD transient", (2.0 - 1.0 / alpha) * r, 0.0, 1.0),
    )


def crossover_time(gamma: float, beta: float) -> float:
    r"""Time tau at which a rich model leaves the lazy learning curve, gamma^{-1/(1-beta)}, up to a factor.

    Parameters
    ----------
    gamma : float
        Richness, at least 0.
    beta : float
        Source exponent, positive.

    Returns
    -------
    float
        tau = learning rate x step; infinite where no other power law follows: gamma = 0 or beta >= 1.

    Raises
    ------
    TypeError, ValueError
        For arguments of the wrong type or out of range.

    Notes
    -----
    From there on L ~ gamma^{-beta/(1+beta)} tau^{-2 beta/(1+beta)}, which meets the lazy tau^-beta at this time. The
    paper prints the prefactor gamma^-beta in Eq. 71, with which the two do not meet; curves of all gamma collapse with
    the one given here (`docs/theory/spectral-engine.md`).

    References
    ----------
    Bordelon, Atanasov & Pehlevan, arXiv:2409.17858, Eq. 70, 71.

    Examples
    --------
    >>> from scalefield import scaling
    >>> scaling.crossover_time(0.01, 0.5), scaling.crossover_time(0.01, 1.5)
    (10000.0, inf)
    """
    gamma = as_float("gamma", gamma, minimum=0.0)
    beta = as_float("beta", beta, minimum=0.0, exclusive=True)
    if gamma == 0.0 or beta >= 1.0:
        return math.inf
    try:
        return float(gamma ** (-1.0 / (1.0 - beta)))
    except OverflowError:  # beta close to 1
        return math.inf


def compute_optimal(
    alpha: float, beta: float, rich: bool, *, sgd_noise: bool = True, printed: bool = False
) -> ComputeOptimum:
    r"""Exponents of the best loss at compute C = N t, and of the width and time that reach it.

    With N = C^x and t = C^{1-x}, term i of `loss_terms` is C^{-e_i(x)} with e_i(x) = b_i x + a_i (1 - x). The sum
    follows its slowest term, so that L ~ C^{-e} with

    .. math:: e = \max_{0 \le x \le 1} \min_i e_i(x)

    Parameters
    ----------
    alpha : float
        Capacity exponent, greater than 1.
    beta : float
        Source exponent, positive.
    rich : bool
        Whether features are learned.
    sgd_noise : bool
        Whether batches are finite (default). Without, super-easy tasks follow the law of easy ones.
    printed : bool
        Use the terms as the paper prints them; the optimum is the same.

    Returns
    -------
    ComputeOptimum

    Raises
    ------
    TypeError, ValueError
        For arguments of the wrong type or out of range.

    Notes
    -----
    Table 1 of the paper, in closed form:

    ============  =====================================================  ===============================
    difficulty    loss_exponent                                          width_exponent
    ============  =====================================================  ===============================
    hard, lazy    alpha beta/(alpha + 1)                                 1/(1 + alpha)
    hard, rich    2 alpha beta/(alpha (1 + beta) + 2)                    1/(1 + alpha (1 + beta)/2)
    easy          alpha beta/(alpha beta + 1)                            (alpha (beta-1) + 1)/(alpha beta + 1)
    super-easy    1 - 1/(2 alpha)                                        1/2
    ============  =====================================================  ===============================

    Exact losses approach these laws slowly near the borders of phases, where a third term is close.

    References
    ----------
    Bordelon, Atanasov & Pehlevan, arXiv:2409.17858, section 4, Table 1; Paquette et al., arXiv:2405.15074.

    Examples
    --------
    >>> from scalefield import scaling
    >>> optimum = scaling.compute_optimal(1.5, 0.5, rich=True)
    >>> round(optimum.loss_exponent, 4), round(optimum.width_exponent, 4), optimum.dominant_terms
    (0.3529, 0.4706, ('gradient flow', 'model bottleneck'))
    """
    terms = [
        term
        for term in loss_terms(alpha, beta, rich, printed=printed)
        # A crossover meets the two terms between which it leads at their balance, and is smaller or ends elsewhere.
        if not term.is_crossover and (term.noise_exponent == 0.0 or as_flag("sgd_noise", sgd_noise))
    ]
    a = np.array([term.time_exponent for term in terms])
    b = np.array([term.width_exponent for term in terms])
    # The minimum of lines is concave: its maximum is at an end or where two lines meet.
    i, j = np.triu_indices(a.size, 1)
    slope = (b - a)[i] - (b - a)[j]
    meeting = (a[j] - a[i])[slope != 0.0] / slope[slope != 0.0]
    x = np.concatenate(([0.0, 1.0], meeting[(meeting > 0.0) & (meeting < 1.0)]))
    exponents = x[:, None] * b + (1.0 - x[:, None]) * a
    best = int(np.argmax(exponents.min(axis=1)))
    loss_exponent = float(exponents[best].min())
    balanced = exponents[best] <= loss_exponent * (1.0 + _TIE)
    return ComputeOptimum(
        task_difficulty(alpha, beta),
        loss_exponent,
        float(x[best]),
        float(1.0 - x[best]),
        tuple(term.name for term, dominates in zip(terms, balanced, strict=True) if dominates),
    )


def phase_diagram(alphas: ArrayLike, betas: ArrayLike, rich: bool, *, sgd_noise: bool = True) -> PhaseDiagram:
    """Phases, exponents in time and compute-optimal exponents on a grid of tasks.

    Parameters
    ----------
    alphas : array_like, shape (A,)
        Capacity exponents, greater than 1.
    betas : array_like, shape (B,)
        Source exponents, positive.
    rich : bool
        Whether features are learned.
    sgd_noise : bool
        Whether batches are finite (default).

    Returns
    -------
    PhaseDiagram

    Raises
    ------
    TypeError, ValueError
        For arguments of the wrong type or out of range.

    Notes
    -----
    About 0.1 ms a task.

    References
    ----------
    Bordelon, Atanasov & Pehlevan, arXiv:2409.17858, Figure 1.

    Examples
    --------
    >>> from scalefield import scaling
    >>> diagram = scaling.phase_diagram([1.5, 3.0], [0.5, 1.5], rich=True)
    >>> diagram.difficulty
    array([['hard', 'super-easy'],
           ['hard', 'easy']], dtype='<U10')
    >>> diagram.loss_exponent.round(3)
    array([[0.353, 0.667],
           [0.462, 0.818]])
    """
    alphas, betas = as_vector("alphas", alphas), as_vector("betas", betas)
    rich = as_flag("rich", rich)
    shape = (alphas.size, betas.size)
    difficulty = np.empty(shape, dtype="<U10")
    chi, loss, width, time = (np.empty(shape) for _ in range(4))
    for i, alpha in enumerate(alphas):
        for j, beta in enumerate(betas):
            optimum = compute_optimal(alpha, beta, rich, sgd_noise=sgd_noise)
            difficulty[i, j] = optimum.difficulty
            chi[i, j] = time_exponent(beta, rich)
            loss[i, j] = optimum.loss_exponent
            width[i, j] = optimum.width_exponent
            time[i, j] = optimum.time_exponent
    return PhaseDiagram(alphas, betas, rich, difficulty, chi, loss, width, time)


def _exponents(alpha: float, beta: float) -> tuple[float, float]:
    """Exponents of a trace-class power law."""
    return (
        as_float("alpha", alpha, minimum=1.0, exclusive=True),
        as_float("beta", beta, minimum=0.0, exclusive=True),
    )


def _acceleration(beta: float, rich: bool) -> float:
    """r: effective time grows like t^r."""
    return max(1.0, 2.0 / (1.0 + beta)) if rich else 1.0
