"""Two-layer linear networks trained on both layers: SGD at any width, gradient flow in closed form (theory section 10).
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import time
import warnings
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scalefield._files import read_archive, write_archive
from scalefield._memory import available_memory, format_bytes, require_memory
from scalefield._progress import Progress
from scalefield._steps import as_steps, log_spaced_steps
from scalefield._threads import single_threaded_blas, thread_count
from scalefield._validate import as_count, as_flag, as_float, as_seed, as_vector
from scalefield.errors import AccuracyWarning, DivergenceError, Interrupted, ScalefieldError, StabilityWarning
from scalefield.flow import solve_gradient_flow
from scalefield.model import Model
from scalefield.spectrum import PowerLawSpectrum, Task

__all__ = ["LinearNetworkFlow", "LinearNetworkRuns", "solve_linear_network_flow", "train_linear_network"]

Array = NDArray[np.float64]

logger = logging.getLogger(__name__)

_METHODS = ("auto", "literal", "reduced")
_STATISTICS = (
    "readout_norm",
    "singular_values",
    "readout_overlap",
    "learned_overlap",
    "imbalance",
    "kernel_distance",
    "alignment",
)
# Largest singular values that are kept.
_N_SINGULAR_VALUES = 8
_COUNTER_LIMIT = 2**32
# Rows of A(0) made and triangularised at a time.
_ROWS = 2048
# Elementary operations and steps in one call of the kernel; see `simulation.ensemble`.
_CHUNK_WORK, _CHUNK_STEPS = 5e7, 65_536
_POLL_SECONDS = 0.1


class _Archived:
    """Frozen results with exact save and load: arrays as arrays, the spectrum by its description, the rest as JSON."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                value.setflags(write=False)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to a compressed .npz file, whole or not at all.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        from scalefield import __version__

        settings: dict[str, Any] = {"class": type(self).__name__, "version": __version__}
        arrays = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                arrays[field.name] = value
            else:
                settings[field.name] = value.describe() if isinstance(value, Task) else value
        write_archive(path, settings, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read back what `save` wrote, unchanged.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ScalefieldError
            If the file is not an archive of this class.
        """
        settings, arrays = read_archive(path)
        kind = settings.pop("class", None)
        if kind != cls.__name__:
            raise ScalefieldError(f"{os.fspath(path)}: holds {kind or 'something else'}, not a {cls.__name__}")
        try:
            settings.pop("version")
            spectrum = Task.from_description(settings.pop("spectrum"))
            return cls(spectrum=spectrum, **settings, **arrays)  # type: ignore[call-arg]
        except (KeyError, TypeError, ValueError) as error:
            raise ScalefieldError(f"{os.fspath(path)}: written by another version ({error})") from error


@dataclass(frozen=True, eq=False, repr=False)
class LinearNetworkRuns(_Archived):
    r"""Independent training runs of a linear network; made by `train_linear_network`.

    Attributes
    ----------
    spectrum : PowerLawSpectrum or Spectrum
        The task.
    width, gamma, learning_rate, batch_size, label_noise, seed
        As given.
    centred : bool
        Whether f(0) was subtracted.
    method : str
        "literal" or "reduced".
    steps : ndarray of int64, shape (T,)
        The recorded steps.
    loss : ndarray, shape (n_runs, T)
        Test loss sum_k lambda_k (w*_k - beta_k)^2, without label noise.
    readout_norm : ndarray, shape (n_runs, T), or None
        |w|^2/N, about 1 before training.
    singular_values : ndarray, shape (n_runs, T, K), or None
        The largest K = min(8, N, M) singular values of A/sqrt(N), decreasing; the square of the first is `spike`.
    readout_overlap : ndarray, shape (n_runs, T), or None
        Squared cosine between w and the left singular vector of the largest singular value of A.
    learned_overlap : ndarray, shape (n_runs, T), or None
        Squared cosine between beta and its right one; nan where beta = 0.
    imbalance : ndarray, shape (n_runs, T), or None
        Frobenius norm of [A A^T - w w^T - A(0) A(0)^T + w(0) w(0)^T]/N, which gradient flow keeps at 0.
    kernel_distance : ndarray, shape (n_runs, T), or None
        1 - cosine of the kernels before and during training (`features.kernel_distance`), as operators on functions;
        to rounding, about 1e-15.
    alignment : ndarray, shape (n_runs, T), or None
        Cosine between kernel and task (`features.kernel_alignment`), over the population.

    References
    ----------
    Bordelon, Atanasov & Pehlevan, arXiv:2409.17858, Appendix G, Eqs. 87-88.
    """

    spectrum: Task
    width: float
    gamma: float
    learning_rate: float
    batch_size: float
    label_noise: float
    centred: bool
    seed: int
    method: str
    steps: NDArray[np.int64]
    loss: Array
    readout_norm: Array | None = None
    singular_values: Array | None = None
    readout_overlap: Array | None = None
    learned_overlap: Array | None = None
    imbalance: Array | None = None
    kernel_distance: Array | None = None
    alignment: Array | None = None

    @property
    def n_runs(self) -> int:
        """Number of runs."""
        return int(self.loss.shape[0])

    @property
    def n_steps(self) -> int:
        """The last recorded step."""
        return int(self.steps[-1])

    @property
    def spike(self) -> Array | None:
        """Largest eigenvalue of A^T A/N, shape (n_runs, T); None where singular values were not recorded."""
        if self.singular_values is None:
            return None
        spike: Array = self.singular_values[:, :, 0] ** 2
        return spike

    @property
    def mean(self) -> Array:
        """Loss averaged over runs, shape (T,)."""
        average: Array = self.loss.mean(axis=0)
        return average

    @property
    def standard_error(self) -> Array:
        """Standard error of `mean`, from the sample variance over runs; nan for a single run."""
        if self.n_runs < 2:
            return np.full(self.steps.size, np.nan)
        error: Array = self.loss.std(axis=0, ddof=1) / math.sqrt(self.n_runs)
        return error

    def __repr__(self) -> str:
        return (
            f"LinearNetworkRuns(width {self.width:g}, gamma {self.gamma:g}, learning rate {self.learning_rate:g}, "
            f"batch size {self.batch_size:g}; seed {self.seed}, {self.n_runs} run(s), {self.n_steps} steps, "
            f"loss {self.mean[0]:.6g} -> {self.mean[-1]:.6g})"
        )


@dataclass(frozen=True, eq=False, repr=False)
class LinearNetworkFlow(_Archived):
    r"""Gradient flow of an infinitely wide linear network; made by `solve_linear_network_flow`.

    Attributes
    ----------
    spectrum : PowerLawSpectrum or Spectrum
        The task.
    gamma : float
        Richness gamma0.
    times : ndarray, shape (T,)
        tau = learning rate x step.
    loss : ndarray, shape (T,)
        L(tau).
    readout_norm : ndarray, shape (T,)
        |w|^2/N = sqrt(1 + gamma0^2 |beta|^2), which is also the one eigenvalue of A^T A/N that is not 1: the spike.
    kernel_scale : ndarray, shape (T,)
        a = 1 + |w|^2/N; 2 before training.
    effective_time : ndarray, shape (T,)
        u = integral of a dtau: modes with lambda_k u > 1 are learned.
    kernel_distance : ndarray, shape (T,)
        1 - cosine between the kernels at times 0 and tau.
    alignment : ndarray, shape (T,)
        Cosine between kernel and task.
    local_exponent : ndarray, shape (T,)
        -d log L/d log tau.

    References
    ----------
    Bordelon, Atanasov & Pehlevan, arXiv:2409.17858, Appendix G; closed form: docs/theory/linear-networks.md.
    """

    spectrum: Task
    gamma: float
    times: Array
    loss: Array
    readout_norm: Array
    kernel_scale: Array
    effective_time: Array
    kernel_distance: Array
    alignment: Array
    local_exponent: Array

    @property
    def spike(self) -> Array:
        """Largest eigenvalue of A^T A/N: equal to `readout_norm`; all others are 1."""
        return self.readout_norm

    def __repr__(self) -> str:
        return (
            f"LinearNetworkFlow(gamma {self.gamma:g}; tau {self.times[0]:.3g} to {self.times[-1]:.3g}, "
            f"loss {self.loss[0]:.6g} -> {self.loss[-1]:.6g})"
        )


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
        Relative accuracy of the loss, 1e-10 to 0.01 (default 1e-8).

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
        ``simulate`` with the same seed. None draws a seed, which the result tells.
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
        On Ctrl-C; `partial` holds the runs finished by then, in order, or is None.

    Warns
    -----
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
    plan = _plan(
        spectrum, width, gamma, learning_rate, batch_size, n_steps, n_runs, seed, method, record, statistics,
        label_noise, centred,
    )  # fmt: skip
    _warn(plan)
    training = _Training(plan)
    try:
        with single_threaded_blas():
            training.execute(progress)
    except KeyboardInterrupt as interrupt:
        count = int(training.finished.sum())
        partial = training.result(training.finished, plan.steps.size) if count else None
        raise Interrupted(f"interrupted with {count} of {plan.n_runs} runs finished", partial) from interrupt
    everything = np.ones(plan.n_runs, dtype=bool)
    if training.divergences:
        step, run = min((step, run) for run, step in training.divergences.items())
        n_before = int(np.searchsorted(plan.steps, step))
        raise DivergenceError(
            f"the loss of run {run} diverged at step {step}; learning_rate {plan.setting.learning_rate:g}, bound of "
            f"the lazy, infinitely wide network {_stability_bound(plan):.6g}",
            step,
            training.result(everything, n_before) if n_before else None,
        )
    return training.result(everything, plan.steps.size)


@dataclass(frozen=True)
class _Plan:
    """What is to be trained, checked. Spectrum, width, ... are held by a `Model`, whose dynamics play no part."""

    setting: Model
    n_modes: int
    n_steps: int
    n_runs: int
    seed: int
    literal: bool
    steps: NDArray[np.int64]
    statistics: tuple[str, ...]
    centred: bool

    @property
    def is_reduced(self) -> bool:
        """Whether [A, w] is replaced by its triangular factor."""
        return not self.literal and self.setting.width > self.n_modes + 1

    @property
    def is_regression(self) -> bool:
        """Whether the kernel is 2 I for ever, and nothing is asked about it."""
        return math.isinf(self.setting.width) and not self.setting.is_rich and not self.statistics

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of A, or of what replaces it."""
        if self.is_regression:
            return 0, 0
        return (self.n_modes + 1 if self.is_reduced else int(self.setting.width)), self.n_modes

    @property
    def n_singular_values(self) -> int:
        return int(min(_N_SINGULAR_VALUES, self.setting.width, self.n_modes))

    def widths(self) -> dict[str, int]:
        """Numbers recorded at a step, by statistic."""
        return {name: self.n_singular_values if name == "singular_values" else 1 for name in self.statistics}


def _check_spectrum(spectrum: Any) -> None:
    if not isinstance(spectrum, Task):
        raise TypeError(
            f"spectrum must be a PowerLawSpectrum or a Spectrum, got {spectrum!r} of type {type(spectrum).__name__}"
        )


def _as_counter(name: str, value: Any) -> int:
    """A count that is a word of the generator's counter."""
    count = as_count(name, value)
    if count >= _COUNTER_LIMIT:
        raise ValueError(f"{name} must be below 2**32, got {value!r}")
    return count


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
) -> _Plan:
    """Check everything once."""
    setting = Model(spectrum, width, gamma, learning_rate, batch_size, label_noise)
    if math.isfinite(setting.batch_size):
        _as_counter("batch_size", setting.batch_size)
    if spectrum.n_modes is None:
        raise ValueError(
            "spectrum must have finitely many modes to be trained on, got infinitely many; give n_modes to "
            "PowerLawSpectrum"
        )
    n_steps, n_runs, seed = _as_counter("n_steps", n_steps), _as_counter("n_runs", n_runs), as_seed("seed", seed)
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
        if name not in _STATISTICS:
            raise ValueError(f"statistics must be among {', '.join(_STATISTICS)}, got {name!r}")
    if not isinstance(record, str):
        steps = as_steps("record", record, n_steps)
    elif record == "all":
        steps = np.arange(n_steps + 1)
    elif record == "log":
        steps = log_spaced_steps(n_steps)
    else:
        raise ValueError(f"record must be 'log', 'all' or increasing steps, got {record!r}")
    centred = as_flag("centred", centred)
    if not centred and not setting.is_rich:
        raise ValueError("centred must be True at gamma = 0, where f(0) is infinite, got False")
    return _Plan(
        setting, spectrum.n_modes, n_steps, n_runs, seed, method == "literal", steps, tuple(dict.fromkeys(names)),
        centred,
    )  # fmt: skip


def _stability_bound(plan: _Plan) -> float:
    """Of the learning rate: that of linear regression at rate 2 eta."""
    regression = Model(plan.setting.spectrum, batch_size=plan.setting.batch_size)
    return 0.5 * regression.stability_bound


def _warn(plan: _Plan) -> None:
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


class _Training:
    """Runs shared out among threads; every thread takes the next run until none is left."""

    def __init__(self, plan: _Plan) -> None:
        self.plan = plan
        setting = plan.setting
        rows, n_modes = plan.shape
        batch = 0 if math.isinf(setting.batch_size) else int(setting.batch_size)
        observed = 2 * rows * n_modes + 4 * rows**2 if plan.statistics else 0
        made = 2 * (_ROWS + n_modes + 1) * (n_modes + 1) if plan.is_reduced else rows * n_modes
        bytes_per_worker = 8 * (rows * n_modes + max(observed, made) + 12 * plan.n_modes + 2 * batch)
        curves = 8 * plan.n_runs * plan.steps.size * (1 + sum(plan.widths().values()))
        require_memory(
            curves + bytes_per_worker,
            f"training {plan.n_runs} linear network(s) of width {setting.width:g} with {plan.n_modes} modes",
        )
        available = available_memory()
        self.n_threads = min(thread_count(), plan.n_runs)
        if available is not None:
            self.n_threads = max(1, min(self.n_threads, (available - curves) // bytes_per_worker))
        logger.info(
            "training %d linear network(s) for %d steps on %d thread(s), about %s of memory each",
            plan.n_runs,
            plan.n_steps,
            self.n_threads,
            format_bytes(bytes_per_worker),
        )
        samples = batch * plan.n_modes if plan.literal else batch + plan.n_modes
        work = 8.0 * rows * n_modes + 15.0 * samples + 8.0 * plan.n_modes
        self.chunk = int(min(max(1.0, _CHUNK_WORK / work), _CHUNK_STEPS))
        self.eigenvalues, self.target = setting.spectrum.modes(0, plan.n_modes)
        self.target = np.ascontiguousarray(self.target).copy()
        self.root = np.sqrt(self.eigenvalues)
        self.batch = batch
        shape = (plan.n_runs, plan.steps.size)
        self.loss = np.full(shape, np.nan)
        self.records = {name: np.full((*shape, size), np.nan) for name, size in plan.widths().items()}
        self.finished = np.zeros(plan.n_runs, dtype=bool)
        self.divergences: dict[int, int] = {}
        self._steps_done = np.zeros(plan.n_runs, dtype=np.int64)
        self.stop = np.zeros(1, dtype=np.uint8)

    def execute(self, progress: Progress | None) -> None:
        """Train all runs; on an error or Ctrl-C the workers are stopped first."""
        total = self.plan.n_runs * self.plan.n_steps
        if progress is not None:
            progress(0, total)
        with ThreadPoolExecutor(self.n_threads, thread_name_prefix="scalefield") as pool:
            try:
                pending = {pool.submit(self._train, run) for run in range(self.plan.n_runs)}
                last = time.monotonic()
                while pending:
                    finished, pending = wait(pending, _POLL_SECONDS, return_when=FIRST_EXCEPTION)
                    for future in finished:
                        future.result()
                    if progress is not None and (not pending or time.monotonic() - last >= _POLL_SECONDS):
                        last = time.monotonic()
                        progress(int(self._steps_done.sum()), total)
            except BaseException:
                # Leaving the pool waits for its threads, which see the flag soon.
                self.stop[0] = 1
                pool.shutdown(cancel_futures=True)
                raise

    def _train(self, run: int) -> None:
        from scalefield._native import linear_network, rng

        plan, setting = self.plan, self.plan.setting
        if self.stop[0]:
            return
        weights, readout, learned = self._start(run)
        observer = _Observer(self, weights, readout) if plan.statistics else None
        keys = (
            *rng.stream_key(plan.seed, rng.FEATURES if plan.literal else rng.GRADIENT),
            *rng.stream_key(plan.seed, rng.LABEL_NOISE),
        )
        s, gain = (np.empty(readout.size) for _ in range(2))
        u, v, sums = (np.empty(plan.n_modes) for _ in range(3))
        # Blocks of four samples are taken together.
        errors, noise = np.empty(max(4, self.batch) if plan.literal else self.batch), np.empty(self.batch)
        features = np.empty((4, plan.n_modes) if plan.literal else (0, 0))
        inverse_width = 1.0 if math.isinf(setting.width) else setting.inverse_width
        buffer = np.empty(self.chunk)
        t = 0
        while t <= plan.n_steps:
            t_end = min(t + self.chunk, plan.n_steps + 1)
            if observer is not None:
                t_end = self._observe(run, t, t_end, observer, weights, readout, learned)
            status, step = linear_network.advance(
                t, t_end, plan.n_steps, run, int(plan.literal), *keys, setting.learning_rate, setting.gamma,
                setting.label_noise, setting.inverse_batch_size, inverse_width, setting.largest_loss, self.batch,
                self.target, self.root, weights, readout, learned, s, gain, u, v, sums, errors, noise, features,
                self.stop, buffer,
            )  # fmt: skip
            if status == linear_network.STOPPED:
                return
            last = step if status == linear_network.DIVERGED else t_end
            inside = slice(int(np.searchsorted(plan.steps, t)), int(np.searchsorted(plan.steps, last)))
            self.loss[run, inside] = buffer[plan.steps[inside] - t]
            if status == linear_network.DIVERGED:
                self.divergences[run] = step
                return
            t = t_end
            self._steps_done[run] = min(t, plan.n_steps)
        self.finished[run] = True

    def _start(self, run: int) -> tuple[Array, Array, Array]:
        """A and w, or their triangular factor, in a multiple of four rows; and beta."""
        plan = self.plan
        n_modes, width = plan.n_modes, plan.setting.width
        if plan.is_regression:
            return np.zeros((0, 0)), np.ones(1), np.zeros(n_modes)
        rows = plan.shape[0]
        # The last rows stay zero.
        weights, readout = np.zeros((-(-rows // 4) * 4, n_modes)), np.zeros(-(-rows // 4) * 4)
        if math.isinf(width):
            np.fill_diagonal(weights, 1.0)
            readout[n_modes] = 1.0
        elif plan.is_reduced:
            factor = np.zeros((0, n_modes + 1))
            for first in range(0, int(width), _ROWS):
                block = np.empty((min(_ROWS, int(width) - first), n_modes + 1))
                self._draw(run, first, block[:, :-1], block[:, -1])
                factor = np.linalg.qr(np.concatenate([factor, block]), mode="r")
            weights[:rows], readout[:rows] = factor[:, :-1], factor[:, -1]
        else:
            self._draw(run, 0, weights[:rows], readout[:rows])
        learned = np.zeros(n_modes)
        if not plan.centred:
            scale = 1.0 if math.isinf(width) else width
            learned = weights.T @ readout / (scale * plan.setting.gamma)
        return weights, readout, learned

    def _draw(self, run: int, first: int, weights_out: Array, readout_out: Array) -> None:
        """Rows `first`... of A(0) and w(0)."""
        from scalefield._native import literal_steps, rng

        transposed = np.empty(weights_out.shape[::-1])
        literal_steps.fill_projection_block(*rng.stream_key(self.plan.seed, rng.PROJECTION), run, 0, first, transposed)
        weights_out[...] = transposed.T
        readout = np.empty(readout_out.size)
        key = rng.stream_key(self.plan.seed, rng.READOUT)
        rng.fill_normals(*key, np.uint64(0), np.uint64(run), np.uint64(0), np.uint64(first // 4), readout)
        readout_out[...] = readout

    def _observe(
        self, run: int, t: int, t_end: int, observer: _Observer, weights: Array, readout: Array, learned: Array
    ) -> int:
        """Record the state if step t wants it; returns where to stop for the next step that does."""
        steps = self.plan.steps
        place = int(np.searchsorted(steps, t))
        if place < steps.size and steps[place] == t:
            for name, value in observer.observe(weights, readout, learned).items():
                self.records[name][run, place] = value
            place += 1
        return min(t_end, int(steps[place])) if place < steps.size else t_end

    def result(self, runs: NDArray[np.bool_], n_records: int) -> LinearNetworkRuns:
        """The result of some runs, up to some record."""
        setting = self.plan.setting
        records: dict[str, Any] = {}
        for name, array in self.records.items():
            kept = array[runs, :n_records]
            records[name] = np.ascontiguousarray(kept if name == "singular_values" else kept[:, :, 0])
        return LinearNetworkRuns(
            spectrum=setting.spectrum,
            width=setting.width,
            gamma=setting.gamma,
            learning_rate=setting.learning_rate,
            batch_size=setting.batch_size,
            label_noise=setting.label_noise,
            centred=self.plan.centred,
            seed=self.plan.seed,
            method="literal" if self.plan.literal else "reduced",
            steps=self.plan.steps[:n_records].copy(),
            loss=np.ascontiguousarray(self.loss[runs, :n_records]),
            **records,
        )


class _Observer:
    """Statistics of a run's state, some relative to its first one.

    All depend on A and w through products that an orthogonal matrix on their rows leaves alone, so the triangular factor
    gives those of the network.
    """

    def __init__(self, training: _Training, weights: Array, readout: Array) -> None:
        plan = training.plan
        self.names, self.n_singular_values = plan.statistics, plan.n_singular_values
        self.scale = 1.0 if math.isinf(plan.setting.width) else plan.setting.inverse_width
        self.eigenvalues = training.eigenvalues
        self.task = training.root * training.target
        self.first = (weights.copy(), readout.copy()) if "kernel_distance" in self.names else None
        self.balance = self._balance(weights, readout) if "imbalance" in self.names else np.zeros(0)
        self.first_kernel = self._kernel(weights, readout) if self.first is not None else (0.0, 0.0, np.zeros(0))

    def observe(self, weights: Array, readout: Array, learned: Array) -> dict[str, Any]:
        found: dict[str, Any] = {}
        norm = self.scale * float(readout @ readout)
        if "readout_norm" in self.names:
            found["readout_norm"] = norm
        if {"singular_values", "readout_overlap", "learned_overlap"} & set(self.names):
            gram = self.scale * (weights @ weights.T)
            # Whole: LAPACK finds fewer than asked of many equal ones, which A^T A = N has at infinite width.
            values, vectors = np.linalg.eigh(gram)
            found["singular_values"] = np.sqrt(np.maximum(values[::-1][: self.n_singular_values], 0.0))
            left = vectors[:, -1]
            found["readout_overlap"] = self.scale * float(left @ readout) ** 2 / norm
            right, square = left @ weights, float(learned @ learned)
            overlap = float(right @ learned) ** 2 / float(right @ right)
            found["learned_overlap"] = overlap / square if square > 0.0 else math.nan
        if "imbalance" in self.names:
            found["imbalance"] = float(np.linalg.norm(self._balance(weights, readout) - self.balance))
        if {"kernel_distance", "alignment"} & set(self.names):
            found |= self._kernel_statistics(weights, readout)
        return {name: found[name] for name in self.names}

    def _balance(self, weights: Array, readout: Array) -> Array:
        balance: Array = self.scale * (weights @ weights.T - np.outer(readout, readout))
        return balance

    def _kernel(self, weights: Array, readout: Array) -> tuple[float, float, Array]:
        """q, |K|^2 and the diagonal of A^T A/N, of K = Lambda^{1/2} (A^T A/N + q) Lambda^{1/2}."""
        q = self.scale * float(readout @ readout)
        diagonal: Array = self.scale * np.einsum("ij,ij->j", weights, weights)
        square = self._inner(weights, weights)
        power = self.eigenvalues**2
        return q, square + 2.0 * q * float(power @ diagonal) + q * q * float(power.sum()), diagonal

    def _inner(self, weights: Array, others: Array) -> float:
        """Frobenius product of the two A^T A/N between Lambda^{1/2}: |A Lambda A'^T|^2/N^2."""
        product = (weights * self.eigenvalues) @ others.T
        return self.scale**2 * float(np.vdot(product, product))

    def _kernel_statistics(self, weights: Array, readout: Array) -> dict[str, float]:
        q, square, diagonal = self._kernel(weights, readout)
        found = {}
        if self.first is not None:
            first_weights, _ = self.first
            first_q, first_square, first_diagonal = self.first_kernel
            power = self.eigenvalues**2
            inner = self._inner(weights, first_weights) + float(power @ (first_q * diagonal + q * first_diagonal))
            inner += q * first_q * float(power.sum())
            found["kernel_distance"] = max(0.0, 1.0 - inner / math.sqrt(square * first_square))
        along = weights @ (np.sqrt(self.eigenvalues) * self.task)
        total = float(self.task @ self.task)
        image = self.scale * float(along @ along) + q * float(self.eigenvalues @ self.task**2)
        found["alignment"] = image / (math.sqrt(square) * total) if total > 0.0 else math.nan
        return found
