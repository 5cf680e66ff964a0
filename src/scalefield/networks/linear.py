"""Linear networks trained on both layers: SGD at any width, gradient flow in closed form (theory section 10)."""

from __future__ import annotations

import math
import os
import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scalefield._checkpoint import CheckpointFile, seed_or_stored
from scalefield._progress import Progress
from scalefield._steps import log_spaced_steps, recorded_steps
from scalefield._validate import as_counter, as_flag, as_float, as_seed, as_vector
from scalefield.errors import AccuracyWarning, StabilityWarning
from scalefield.flow import solve_gradient_flow
from scalefield.model import Model
from scalefield.networks.linear_results import LinearNetworkFlow, LinearNetworkRuns
from scalefield.networks.linear_training import STATISTICS, Plan, Training
from scalefield.spectrum import PowerLawSpectrum, Task

__all__ = ["solve_linear_network_flow", "train_linear_network"]

Array = NDArray[np.float64]

_METHODS = ("auto", "literal", "reduced")


def solve_linear_network_flow(
    spectrum: Task, gamma: float, times: ArrayLike, *, rtol: float = 1e-8
) -> LinearNetworkFlow:
    r"""Solve gradient flow of an infinitely wide linear network exactly, over any number of decades.

    With beta = (A^T w - A(0)^T w(0))/(N gamma0), the learned coefficients, the conserved difference A A^T - w w^T
    leaves a pure boost of the Lorentz group O(M, 1),

    .. math::
        \frac{|w|^2}{N} = q = \sqrt{1 + \gamma_0^2 |\beta|^2}, \qquad
        \frac{A^T A}{N} = I + (q - 1) \frac{\beta\beta^T}{|\beta|^2}, \qquad
        \dot\beta = \Big[(1 + q) I + \frac{\gamma_0^2}{1+q} \beta\beta^T\Big] \Lambda (w^* - \beta) .

    This is gradient flow of the projected model at infinite width with gamma = gamma0^2/4, at twice the time; it is
    solved as that (`solve_gradient_flow`).

    Parameters
    ----------
    spectrum : PowerLawSpectrum or Spectrum
        The task; also infinite.
    gamma : float
        Richness gamma0 >= 0; 0 is the lazy limit, linear regression at rate 2.
    times : array_like, shape (T,)
        tau = learning rate x step of `train_linear_network`, increasing, at least 0.
    rtol : float
        Relative accuracy of the loss, 1e-10 to 0.01 (default 1e-8), as that of `solve_gradient_flow`.

    Returns
    -------
    LinearNetworkFlow

    Raises
    ------
    TypeError, ValueError
        For arguments of the wrong type or range, times that are not increasing.

    Warns
    -----
    AccuracyWarning
        If the nodes are not as accurate as asked.

    Notes
    -----
    10-50 ms for 12 decades, O(Q T) memory for Q nodes of the spectrum.

    References
    ----------
    Bordelon, Atanasov & Pehlevan, arXiv:2409.17858, Appendix G; docs/theory/linear-networks.md.

    Examples
    --------
    Hard tasks reach t^{-2 beta/(1+beta)} while the readout grows like t^{(1-beta)/(1+beta)}:

    >>> import numpy as np
    >>> import scalefield as sf
    >>> flow = sf.networks.solve_linear_network_flow(sf.PowerLawSpectrum(2.0, 0.5), 1.0, [1e9, 1e12])
    >>> bool(abs(flow.local_exponent[1] - 2 / 3) < 1e-3)
    True
    >>> growth = np.diff(np.log(flow.readout_norm)) / np.diff(np.log(flow.times))
    >>> bool(abs(growth[0] - 1 / 3) < 1e-3)
    True
    """
    _check_spectrum(spectrum)
    gamma = as_float("gamma", gamma, minimum=0.0)
    times = as_vector("times", times, minimum=0.0)
    flow = solve_gradient_flow(Model(spectrum, gamma=0.25 * gamma**2), 2.0 * times, rtol=rtol)
    scale = 2.0 * flow.kernel_scale
    # K = a Lambda + g h h^T in the basis of white features, h = Lambda^{1/2} beta, g = gamma0^2/a
    nodes = spectrum.quadrature(rtol=max(1e-3 * rtol, 1e-13), horizon=max(10.0, float(flow.effective_time[-1])))
    s, power = nodes.eigenvalues, nodes.weights * nodes.target_power
    learned = flow.learned_fraction(s)
    squares, crossed = learned**2 @ power, learned**2 @ (power * s)
    return LinearNetworkFlow(
        spectrum=spectrum,
        gamma=gamma,
        times=times,
        loss=flow.loss,
        readout_norm=scale - 1.0,
        kernel_scale=scale,
        effective_time=flow.effective_time,
        kernel_distance=_distance(scale, gamma**2 / scale, flow.trace_square, squares, crossed),
        alignment=flow.alignment,
        local_exponent=flow.local_exponent,
    )


def _distance(a: Array, g: Array, trace_square: float, squares: Array, crossed: Array) -> Array:
    """1 - cosine between a Lambda + g h h^T and Lambda, with squares = |h|^2 and crossed = h . Lambda h.

    |K|^2 |Lambda|^2 - <K, Lambda>^2 = g^2 (|h|^4 |Lambda|^2 - (h . Lambda h)^2): nothing cancels where g is small.
    """
    inner = a * trace_square + g * crossed
    norms = np.sqrt((a * a * trace_square + 2.0 * a * g * crossed + (g * squares) ** 2) * trace_square)
    distance: Array = g * g * (squares**2 * trace_square - crossed**2) / (norms * (norms + inner))
    return distance


def train_linear_network(
    spectrum: Task,
    width: float,
    gamma: float,
    learning_rate: float,
    batch_size: float,
    n_steps: int,
    n_runs: int = 1,
    seed: int | None = None,
    method: str = "auto",
    record: str | ArrayLike = "log",
    *,
    statistics: str | tuple[str, ...] | list[str] = (),
    label_noise: float = 0.0,
    centred: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: float = 60.0,
    progress: Progress | None = None,
) -> LinearNetworkRuns:
    r"""Train a two-layer linear network by online SGD on both layers.

    .. math::
        f(x) = \beta \cdot x, \qquad \beta = \frac{1}{\gamma_0 N}\left[A^T w - A(0)^T w(0)\right], \qquad
        y = w^* \cdot x + \sigma\epsilon, \qquad x \sim N(0, \Lambda)

    A (N x M) and w (N) are standard normal at first. Gradient steps on the mean of (y - f)^2/2 over a fresh batch, of
    length eta gamma0^2 N for both, are

    .. math::
        w \leftarrow w + \eta\gamma_0 A v, \qquad A \leftarrow A + \eta\gamma_0\, w v^T, \qquad
        v = \frac{1}{B} \sum_{b=1}^{B} x_b (y_b - f(x_b)),

    with the old w in the second. The kernel is A^T A/N + |w|^2/N, 2 I at first at large width whatever gamma0: with
    this length of steps all gamma0 begin with the same dynamics, linear regression at rate 2 eta, and gamma0 -> 0 stays
    there (gamma = 0 is taken as this limit, exactly).

    **literal**: A, w and samples as they stand.

    **reduced**, of the same law at a fraction of the cost. The dynamics depend on [A, w] only through its Gram matrix,
    so at N > M + 1 it is replaced by its (M + 1) x (M + 1) triangular factor, of the same A(0) and w(0): at infinite
    width the identity, of order N^{1/2}. And a batch of Gaussian samples enters through v alone, which is made from
    B + M deviates instead of B M. Runs at B = inf are the literal ones to rounding, others have other batches.

    Parameters
    ----------
    spectrum : PowerLawSpectrum or Spectrum
        The task, with finitely many modes M. There is no width bottleneck, but the end of the spectrum is one: what is
        left out beyond mode M is about (lambda_M u)^beta of the loss, u = integral of (1 + |w|^2/N) dtau.
    width : int or inf
        N.
    gamma : float
        Richness gamma0 >= 0.
    learning_rate : float
        eta > 0.
    batch_size : int or inf
        B; inf is population gradient descent.
    n_steps : int
        Training steps, at least 1.
    n_runs : int
        Independent runs, at least 1 (default).
    seed : int, optional
        In [0, 2^63). Run r of a seed has the same numbers whatever `n_runs` and the number of threads; A(0) is that of
        ``simulate`` with the same seed. None draws a seed, which the result tells, or takes that of the checkpoint.
    method : {"auto", "literal", "reduced"}
        "auto" (default) is "reduced"; infinite width needs it.
    record : {"log", "all"} or array_like of int
        Recorded steps: "log" (default) 0 and 200 log-spaced ones; or increasing steps from 0 to n_steps.
    statistics : sequence of str
        Recorded beside the loss, at the same steps: "readout_norm", "singular_values", "readout_overlap",
        "learned_overlap", "imbalance", "kernel_distance", "alignment"; see `LinearNetworkRuns`.
    label_noise : float
        sigma >= 0 (default 0).
    centred : bool
        Whether f(0) is subtracted (default). If not, beta begins at A(0)^T w(0)/(gamma0 N), of variance 1/(gamma0^2 N)
        a mode.
    checkpoint : path, optional
        A file to write the state to now and then, and to go on from if it is there: the same call, after whatever
        ended it, continues to the last bit on the same machine. More runs may be asked for than it holds.
    checkpoint_every : float
        Seconds between two writings (default 60).
    progress : callable, optional
        Called about ten times a second as ``progress(done, total)``, in steps summed over runs.

    Returns
    -------
    LinearNetworkRuns
        `steps`, `loss` of shape (n_runs, T), `mean`, `standard_error`, and what else was asked for.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described; for an infinite spectrum.
    InsufficientMemoryError
        If a single run does not fit into the available memory.
    DivergenceError
        If the loss of a run is not finite or exceeds 1e12 (initial loss + label_noise^2); `partial` holds what was
        recorded of all runs before it.
    Interrupted
        On Ctrl-C; `partial` holds the runs finished by then, in order; or the one that came furthest, as far as it
        came; or is None.
    ScalefieldError
        If the checkpoint is damaged or belongs to another call.

    Warns
    -----
    CheckpointWarning
        If a checkpoint could not be written later on; training goes on.
    StabilityWarning
        If learning_rate is beyond the bound of the lazy, infinitely wide network.
    AccuracyWarning
        If the last mode of a power law is learned before training ends, lambda_M u > 1 (lazily M < (2 eta
        t)^{1/alpha}): slopes of the loss are then those of the cut-off.

    Notes
    -----
    With n = min(N, M + 1) rows: 8 n M operations a step and B + M deviates (literal: n = N and B M deviates with 4 B M
    operations); once a run 2 N M^2 operations where N > M + 1. Memory a thread 8 n M bytes. Statistics cost n^2 M
    operations at a recorded step, singular values n^3. Runs are spread over threads.

    References
    ----------
    Bordelon, Atanasov & Pehlevan, arXiv:2409.17858, Appendix G, Eqs. 87-88. Parameterisation and reductions:
    docs/theory/linear-networks.md.

    Examples
    --------
    >>> import scalefield as sf
    >>> task = sf.PowerLawSpectrum(2.0, 0.5, n_modes=200)
    >>> runs = sf.networks.train_linear_network(task, 64, 1.0, 0.1, 32, 200, 2, seed=0, statistics=["readout_norm"])
    >>> runs.loss.shape, runs.method
    ((2, 201), 'reduced')
    >>> bool(runs.mean[-1] < 0.5 * runs.mean[0]), bool(runs.readout_norm[0, -1] > 1.2 * runs.readout_norm[0, 0])
    (True, True)
    """
    file = CheckpointFile.checked(checkpoint, checkpoint_every)
    seed = seed_or_stored(seed, file)
    plan = _plan(
        spectrum, width, gamma, learning_rate, batch_size, n_steps, n_runs, seed, method, record, statistics,
        label_noise, centred,
    )  # fmt: skip
    _warn(plan)
    training = Training(plan, file)
    advice = (
        f"learning_rate {plan.setting.learning_rate:g}, bound of the lazy, infinitely wide network "
        f"{_stability_bound(plan):.6g}"
    )
    return training.ensemble.run(training.n_threads, progress, training.result, advice, unfinished=True)


def _check_spectrum(spectrum: Any) -> None:
    if not isinstance(spectrum, Task):
        raise TypeError(
            f"spectrum must be a PowerLawSpectrum or a Spectrum, got {spectrum!r} of type {type(spectrum).__name__}"
        )


def _plan(
    spectrum: Task,
    width: float,
    gamma: float,
    learning_rate: float,
    batch_size: float,
    n_steps: int,
    n_runs: int,
    seed: int | None,
    method: str,
    record: str | ArrayLike,
    statistics: str | tuple[str, ...] | list[str],
    label_noise: float,
    centred: bool,
) -> Plan:
    """Check everything once."""
    setting = Model(spectrum, width, gamma, learning_rate, batch_size, label_noise)
    if math.isfinite(setting.batch_size):
        as_counter("batch_size", setting.batch_size)
    if spectrum.n_modes is None:
        raise ValueError(
            "spectrum must have finitely many modes to be trained on, got infinitely many; give n_modes to "
            "PowerLawSpectrum"
        )
    n_steps, n_runs, seed = as_counter("n_steps", n_steps), as_counter("n_runs", n_runs), as_seed("seed", seed)
    if not isinstance(method, str) or method not in _METHODS:
        raise ValueError(f"method must be one of {', '.join(_METHODS)}, got {method!r}")
    if method == "literal" and math.isinf(setting.width):
        raise ValueError("width must be finite for the literal method, got inf")
    if not isinstance(statistics, (str, tuple, list)):
        raise TypeError(
            f"statistics must be a sequence of strings, got {statistics!r} of type {type(statistics).__name__}"
        )
    names = (statistics,) if isinstance(statistics, str) else tuple(statistics)
    for name in names:
        if name not in STATISTICS:
            raise ValueError(f"statistics must be among {', '.join(STATISTICS)}, got {name!r}")
    steps = recorded_steps(record, n_steps, log_spaced_steps(n_steps))
    centred = as_flag("centred", centred)
    if not centred and not setting.is_rich:
        raise ValueError("centred must be True at gamma = 0, where f(0) is infinite, got False")
    return Plan(
        setting, spectrum.n_modes, n_steps, n_runs, seed, method == "literal", steps, tuple(dict.fromkeys(names)),
        centred,
    )  # fmt: skip


def _stability_bound(plan: Plan) -> float:
    """Of the learning rate: that of linear regression at rate 2 eta."""
    regression = Model(plan.setting.spectrum, batch_size=plan.setting.batch_size)
    return 0.5 * regression.stability_bound


def _warn(plan: Plan) -> None:
    setting = plan.setting
    bound = _stability_bound(plan)
    if setting.learning_rate > bound:
        warnings.warn(
            f"learning_rate {setting.learning_rate:g} is beyond {bound:.6g}, the stability bound of the lazy, "
            "infinitely wide network",
            StabilityWarning,
            stacklevel=3,
        )
        return
    spectrum = setting.spectrum
    if isinstance(spectrum, PowerLawSpectrum):
        tau = setting.learning_rate * plan.n_steps
        u = float(solve_linear_network_flow(spectrum, setting.gamma, [tau], rtol=1e-4).effective_time[0])
        needed = u ** (1.0 / spectrum.alpha)
        if plan.n_modes < needed:
            warnings.warn(
                f"the spectrum ends at mode {plan.n_modes}, but about {needed:.0f} are learned by step {plan.n_steps}: "
                "slopes of the loss will be those of its end; take more modes",
                AccuracyWarning,
                stacklevel=3,
            )
