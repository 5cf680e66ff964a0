"""The front door of the simulation: one call, several methods and devices."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scalefield._checkpoint import Checkpoint, CheckpointFile, seed_or_stored
from scalefield._ensemble import Engine, Ensemble, Recorder, affordable_threads, chunk_steps
from scalefield._progress import Progress
from scalefield._projection import modes_kept
from scalefield._steps import log_spaced_steps, recorded_steps
from scalefield._threads import single_threaded_blas, thread_count
from scalefield._validate import as_counter, as_flag, as_seed
from scalefield.errors import DivergenceError, Interrupted
from scalefield.model import Model
from scalefield.simulation.literal import Literal
from scalefield.simulation.offline import LiteralOffline, ReducedOffline
from scalefield.simulation.plan import Plan
from scalefield.simulation.reduced import Reduced
from scalefield.simulation.reduction import Reduction, reduce_projection
from scalefield.simulation.result import Simulation
from scalefield.simulation.samples import KINDS
from scalefield.simulation.statistics import STATISTICS

__all__ = ["simulate"]

# Modes are words of the random generator's counter.
_COUNTER_LIMIT = 2**32
# Up to this number of steps all are recorded by record="log".
_ALL_STEPS = 1000
_METHODS = ("literal", "reduced")
# By method, and whether a data set is reused.
_ENGINES: dict[tuple[str, bool], Callable[[Plan, NDArray[np.uint8]], Any]] = {
    ("literal", False): Literal,
    ("literal", True): LiteralOffline,
    ("reduced", False): Reduced,
    ("reduced", True): ReducedOffline,
}
_DEVICES = ("cpu", "cuda")
_DTYPES = ("float64", "float32")


def simulate(
    model: Model,
    n_steps: int,
    n_runs: int = 1,
    seed: int | None = None,
    method: str = "auto",
    device: str = "cpu",
    record: str | ArrayLike = "log",
    dtype: str = "float64",
    *,
    features: str | Callable[[Any], Any] = "gaussian",
    statistics: str | tuple[str, ...] | list[str] = (),
    modes: ArrayLike | None = None,
    replacement: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: float = 60.0,
    progress: Progress | None = None,
) -> Simulation:
    r"""Train independent realisations of a model and record their test loss.

    Each run draws A(0) with standard normal entries and iterates, from w = 0 and G = 1,

    .. math::
        v_0 = w^* - \tfrac{1}{N} A(0)^T G^T w, \qquad
        v_1 = \tfrac{1}{B} \sum_{b=1}^{B} \psi_b (\psi_b \cdot v_0 + \sigma \epsilon_b), \qquad v_2 = A(0) v_1

        w \leftarrow w + \eta G v_2, \qquad G \leftarrow G + \frac{\eta\gamma}{N} w v_2^T,
        \qquad L = \sum_k \lambda_k v_{0k}^2

    with a fresh batch psi_b of variances lambda_k, eps_b ~ N(0, 1) each step; the w that moves G is the one before
    the step. At B = inf, v_1 = Lambda v_0. This is Eq. 4 of the reference with A(t) = G(t) A(0). At infinite
    width A(0)^T A(0)/N is the identity and the same iteration runs in the space of modes.

    **literal**: features are drawn as M-vectors, of any law.

    Offline, at finite n_samples, each run draws P samples and their label noise once. All of them make the gradient at
    batch size inf, else batches drawn from them; the train loss is recorded as well.

    **reduced** (theory section 8): Gaussian batches enter only through A(0) psi and the target, which are jointly
    Gaussian; in the eigenbasis of A(0) Lambda A(0)^T a step costs the same whatever M. Its runs have the law of
    literal ones, and the same A(0), but other batches. Spectra of any size, also infinite. Offline the samples enter
    through A(0) psi and their labels alone, whatever their law: the run is the literal one, to rounding.

    Parameters
    ----------
    model : Model
        The literal method needs a finite number of modes M.
    n_steps : int
        Training steps, at least 1.
    n_runs : int
        Independent runs, at least 1 (default).
    seed : int, optional
        In [0, 2^63). Run r of a seed has the same numbers, bit for bit, whatever `n_runs`, the number of
        threads and how many steps follow. None draws a seed, which the result tells; if there is a checkpoint, its
        seed is taken.
    method : {"auto", "literal", "reduced"}
        "auto" (default) takes the cheaper one of those that apply, by a count of operations that does not depend on
        the machine; the result tells which.
    device : {"cpu", "cuda"}
        Where to run. A device that is absent is an error; nothing else takes its place. "cuda" (extra [cuda]) takes
        Gaussian features, fresh batches and finite widths, and records the loss alone; with the same random numbers as
        the processor, so that losses of one seed agree to rounding. Its speed has not been measured.
    record : {"log", "all"} or array_like of int
        Steps whose loss is kept: "log" (default) all up to 1,000, and 0 and 200 log-spaced ones of longer runs; or
        increasing steps from 0 to n_steps.
    dtype : {"float64", "float32"}
        Of the weights and features; losses are summed in double precision. The random numbers are the same, rounded.
    features : {"gaussian", "rademacher", "uniform"} or callable
        Law of psi_k/sqrt(lambda_k), of mean 0 and variance 1: standard normal, random signs, uniform, or
        ``features(u)`` applied to an array of uniform deviates u in (0, 1), shape (B, M). Others than Gaussian ones
        need the literal method, and a finite batch size.
    statistics : sequence of str
        Recorded beside the loss, at the same steps: "weight_norm" |w|^2/N, "kernel_scale" 1 + gamma |w|^2/N, "spike",
        the strength (gamma/a) sum_k lambda_k (w*_k - v_0k)^2 of the kernel's rank-one part, "alignment", the cosine
        of kernel and task; as in `FlowSolution`.
    modes : array_like of int, optional
        Modes k (from 0) whose errors v_0k are recorded, as `mode_errors`; of power laws with more than 2^20 modes those
        below 2^18 (reduced method).
    replacement : bool
        Offline, how batches are drawn from the data set: independently, or (default) from a new random order of the
        samples in every epoch of floor(P/B) steps.
    checkpoint : path, optional
        A file to write the state to now and then, and to go on from if it is there: the same call, after whatever
        ended it, continues bit for bit. More runs may be asked for than it holds.
    checkpoint_every : float
        Seconds between two writings (default 60).
    progress : callable, optional
        Called from this thread about ten times a second as ``progress(done, total)``, in steps summed over
        runs.

    Returns
    -------
    Simulation
        `steps`, `loss` of shape (n_runs, T), `mean`, `standard_error`, and what else was asked for.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described, or methods and models do not go together.
    BackendUnavailableError
        If the device is absent.
    InsufficientMemoryError
        If a single run does not fit into the available memory.
    DivergenceError
        If the loss of a run is not finite or exceeds 1e12 (initial loss + label_noise^2). `step` is the
        earliest such step of all runs; `partial` holds what was recorded of all runs before it.
    Interrupted
        On Ctrl-C; `partial` holds the runs finished by then, in order, or is None.
    ScalefieldError
        If the checkpoint is damaged or belongs to another call.

    Warns
    -----
    StabilityWarning
        If the learning rate is beyond `Model.stability_bound`.
    CheckpointWarning
        If a checkpoint could not be written; the simulation goes on.

    Notes
    -----
    Runs are spread over threads (one run a thread; SCALEFIELD_NUM_THREADS or all cores), fewer if memory asks.

    literal: a step costs 4 M N operations, for finite batches B M deviates and 4 B M operations, and for gamma > 0
    6 N^2 more. Memory a thread: 8 M N bytes for A(0), 8 N^2 for G if gamma > 0, and the batch, 8 B M bytes, up to
    64 MiB or the size of A(0); larger batches are drawn twice instead. At infinite width there is no A(0), and M
    takes the place of N.

    reduced: N^2 M/2 operations once a run (A(0) is made block by block and never held), then B N deviates, 4 B N
    operations and for gamma > 0 6 N^2 a step; some 6 N x N arrays a thread. Of power laws with more than 2^20 modes the
    first 2^18 are taken so, the others by the law of their sum; `tail` on the result bounds what that leaves out.
    Offline M N P operations more, then 4 N P a full-batch step (4 N B with batches).

    References
    ----------
    Bordelon, Atanasov & Pehlevan, "How Feature Learning Can Improve Neural Scaling Laws", arXiv:2409.17858,
    Eqs. 2-5 and Appendix B.

    Examples
    --------
    >>> import scalefield as sf
    >>> model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5, n_modes=100), width=32, gamma=1.0, batch_size=16)
    >>> simulation = sf.simulate(model, n_steps=50, n_runs=4, seed=0, statistics=["kernel_scale"])
    >>> simulation.loss.shape, simulation.kernel_scale.shape, simulation.method
    ((4, 51), (4, 51), 'reduced')
    >>> bool(simulation.mean[50] < simulation.mean[0])
    True
    """
    file = CheckpointFile.checked(checkpoint, checkpoint_every)
    seed = seed_or_stored(seed, file)
    plan = _plan(model, n_steps, n_runs, seed, method, device, record, dtype, features, statistics, modes, replacement)
    model.warn_if_unstable()
    if device == "cuda":
        if file is not None:
            raise ValueError("checkpoint must be None on device 'cuda', which writes none")
        return _simulate_on_cuda(plan, progress)

    stop = np.zeros(1, dtype=np.uint8)
    engine = _ENGINES[plan.method, model.is_offline](plan, stop)
    n_columns = plan.record_steps.size * (1 + len(plan.statistics) + (0 if plan.modes is None else plan.modes.size))
    size = "infinitely many" if model.spectrum.n_modes is None else model.spectrum.n_modes
    n_threads = affordable_threads(
        plan.n_runs,
        8 * (plan.n_runs + 1) * n_columns + engine.shared_bytes,
        engine.bytes_per_worker,
        f"simulating {plan.n_runs} run(s) of {plan.n_steps} steps with {size} modes and width {model.width}",
    )
    engine.allocate()
    store = None if file is None else Checkpoint(file, "simulation", plan.describe())
    ensemble = _ensemble(plan, engine, stop, store)

    def result(runs: NDArray[np.bool_], before: int) -> Simulation | None:
        n_records = int(np.searchsorted(plan.record_steps, before))
        return _simulation(plan, ensemble, runs, n_records) if n_records else None

    return ensemble.run(n_threads, progress, result, _advice(plan))


def _ensemble(plan: Plan, engine: Any, stop: NDArray[np.uint8], checkpoint: Checkpoint | None) -> Ensemble:
    """The runs, and arrays for what is recorded of them."""
    shape = (plan.n_runs, plan.record_steps.size)
    # "tail": what engines say of the modes that they do not take one by one.
    arrays = {"loss": np.full(shape, np.nan), "tail": np.zeros(plan.n_runs)}
    arrays |= {name: np.full(shape, np.nan) for name in plan.statistics}
    if plan.model.is_offline:
        arrays["train_loss"] = np.full(shape, np.nan)
    if plan.modes is not None:
        arrays["mode_errors"] = np.full((*shape, plan.modes.size), np.nan)
    chunk = chunk_steps(engine.work_per_step)
    observed = plan.record_steps if plan.records_state else plan.record_steps[:0]

    def worker() -> _Run:
        return _Run(engine.worker(), plan.record_steps, arrays, chunk)

    return Ensemble(plan.n_steps, arrays, worker, chunk, observed, stop, checkpoint)


class _Run(Recorder):
    """Records the tail as well."""

    def __init__(self, engine: Engine, steps: NDArray[np.int64], arrays: dict[str, NDArray[Any]], chunk: int) -> None:
        super().__init__(engine, steps, arrays, chunk)
        self._tails = arrays["tail"]

    def start(self, run: int) -> bool:
        if not super().start(run):
            return False
        self._tails[run] = getattr(self.engine, "tail", 0.0)
        return True


def _simulate_on_cuda(plan: Plan, progress: Progress | None) -> Simulation:
    from scalefield.simulation.cuda import CudaRuns, require_cuda, simulate_on_cuda

    if plan.model.is_offline:
        raise ValueError(f"n_samples must be inf on device 'cuda', got {plan.model.n_samples}")
    if plan.records_state:
        raise ValueError("statistics and modes must be left out on device 'cuda', which records the loss alone")
    require_cuda()
    stop = np.zeros(1, dtype=np.uint8)
    reductions: list[Reduction] = []
    if plan.method == "reduced":
        width, nothing = int(plan.model.width), np.zeros(0, dtype=np.int64)
        with single_threaded_blas():
            for run in range(plan.n_runs):
                made = reduce_projection(plan.model.spectrum, width, plan.seed, run, thread_count(), nothing, stop)
                assert made is not None
                reductions.append(replace(made, vectors=np.zeros((0, 0))))

    def result(runs: CudaRuns, kept: NDArray[np.bool_], n_records: int) -> Simulation:
        return Simulation(
            plan.model,
            seed=plan.seed,
            steps=plan.record_steps[:n_records].copy(),
            loss=np.ascontiguousarray(runs.losses[kept, :n_records]),
            method=plan.method,
            dtype=plan.dtype.name,
            device="cuda",
            tail=max((reduction.tail for reduction in reductions), default=0.0),
        )

    n_records = plan.record_steps.size
    try:
        runs = simulate_on_cuda(plan, reductions, progress, stop)
    except Interrupted as interrupt:
        finished = interrupt.partial.finished
        interrupt.partial = result(interrupt.partial, finished, n_records) if finished.any() else None
        raise
    everything = np.ones(plan.n_runs, dtype=bool)
    if runs.divergences:
        step, run = min((step, run) for run, step in runs.divergences.items())
        n_before = int(np.searchsorted(plan.record_steps, step))
        raise DivergenceError(
            f"the loss of run {run} diverged at step {step}; {_advice(plan)}",
            step,
            result(runs, everything, n_before) if n_before else None,
        )
    return result(runs, everything, n_records)


def _advice(plan: Plan) -> str:
    model = plan.model
    return (
        f"learning_rate {model.learning_rate:g}, stability bound of the lazy dynamics {model.stability_bound:.6g}"
    )


def _simulation(plan: Plan, ensemble: Ensemble, runs: NDArray[np.bool_], n_records: int) -> Simulation:
    """The result of some runs, up to some record."""
    records: dict[str, Any] = {
        name: np.ascontiguousarray(array[runs, :n_records])
        for name, array in ensemble.arrays.items()
        if name not in ("finished", "tail")
    }
    return Simulation(
        plan.model,
        seed=plan.seed,
        steps=plan.record_steps[:n_records].copy(),
        method=plan.method,
        dtype=plan.dtype.name,
        features=plan.features if isinstance(plan.features, str) else "callable",
        modes=plan.modes,
        tail=float(ensemble.arrays["tail"][runs].max()),
        **records,
    )


def _plan(
    model: Model,
    n_steps: int,
    n_runs: int,
    seed: int | None,
    method: str,
    device: str,
    record: str | ArrayLike,
    dtype: str,
    features: str | Callable[[Any], Any],
    statistics: str | tuple[str, ...] | list[str],
    modes: ArrayLike | None,
    replacement: bool,
) -> Plan:
    """Check everything once."""
    if not isinstance(model, Model):
        raise TypeError(f"model must be a Model, got {model!r} of type {type(model).__name__}")
    n_steps, n_runs = as_counter("n_steps", n_steps), as_counter("n_runs", n_runs)
    spaced = np.arange(n_steps + 1) if n_steps <= _ALL_STEPS else log_spaced_steps(n_steps)
    seed = as_seed("seed", seed)
    _check_choice("method", method, ("auto", *_METHODS))
    _check_choice("device", device, _DEVICES)
    _check_choice("dtype", dtype, _DTYPES)
    if not callable(features):
        if not isinstance(features, str):
            raise TypeError(
                f"features must be a string or a function, got {features!r} of type {type(features).__name__}"
            )
        _check_choice("features", features, tuple(KINDS))
    if not isinstance(statistics, (str, tuple, list)):
        raise TypeError(
            f"statistics must be a sequence of strings, got {statistics!r} of type {type(statistics).__name__}"
        )
    names = (statistics,) if isinstance(statistics, str) else tuple(statistics)
    for name in names:
        _check_choice("statistics", name, STATISTICS)
    if math.isfinite(model.batch_size):
        as_counter("model.batch_size", model.batch_size)
    n_modes = model.spectrum.n_modes
    replacement = as_flag("replacement", replacement)
    if model.is_offline:
        as_counter("model.n_samples", model.n_samples)
        if math.isfinite(model.batch_size) and model.batch_size > model.n_samples and not replacement:
            raise ValueError(
                f"batch_size must be at most n_samples = {model.n_samples} without replacement, got {model.batch_size}"
            )
    elif replacement:
        raise ValueError("replacement is for batches from a data set, of a finite n_samples; got n_samples inf")
    if method == "auto":
        reducible = features == "gaussian" or model.is_offline
        method = "reduced" if reducible and _reduced_is_cheaper(model, n_steps) else "literal"
    if method == "literal" and n_modes is None:
        raise ValueError(
            "model.spectrum must have finitely many modes for the literal method, got infinitely many; "
            "give n_modes to PowerLawSpectrum"
        )
    chosen = _as_modes(modes, n_modes)
    if method == "reduced":
        kept = modes_kept(model.spectrum)
        if chosen is not None and kept != n_modes and chosen.max() >= kept:
            raise ValueError(f"modes must be below 2**18 for a spectrum whose far modes are not drawn, got {modes!r}")
        if model.is_offline and kept != n_modes:
            raise ValueError(
                "model.spectrum must have at most 2**20 modes for a data set, which is made mode by mode, got "
                f"{'infinitely many' if n_modes is None else n_modes}; give n_modes to PowerLawSpectrum"
            )
        if features != "gaussian" and not model.is_offline:
            raise ValueError(f"features must be 'gaussian' for the reduced method, got {features!r}")
        if math.isinf(model.width):
            raise ValueError("width must be finite for the reduced method, got inf")
    if features != "gaussian" and math.isinf(model.batch_size) and not model.is_offline:
        raise ValueError(f"batch_size must be finite for features other than 'gaussian', got inf with {features!r}")
    return Plan(
        model=model,
        n_steps=n_steps,
        n_runs=n_runs,
        seed=seed,
        method=method,
        record_steps=recorded_steps(record, n_steps, spaced),
        dtype=np.dtype(dtype),
        features=features,
        statistics=names,
        modes=chosen,
        replacement=replacement,
    )


def _reduced_is_cheaper(model: Model, n_steps: int) -> bool:
    """Compare operations of one run; products of matrices count a fifth, deviates ten times as much."""
    if math.isinf(model.width):
        return False
    if model.spectrum.n_modes is None:
        return True
    n, n_modes = float(model.width), float(model.spectrum.n_modes)
    batch = 0.0 if math.isinf(model.batch_size) else float(model.batch_size)
    if model.is_offline:
        # Samples are projected once; each costs 4 operations a feature or mode and step.
        n_samples = float(model.n_samples)
        size = n_samples if math.isinf(model.batch_size) else batch
        reduced = 0.2 * n * n_modes * (n + 2.0 * n_samples) + n_steps * 4.0 * size * n
        return reduced < n_steps * 4.0 * n_modes * (n + size)
    mixing = 6.0 * n * n if model.is_rich else 0.0
    small = min(n, n_modes)
    kept = float(modes_kept(model.spectrum))
    reduced = 0.2 * n * n * kept + 4.0 * n**3 + 10.0 * n * kept + n_steps * (mixing + 15.0 * batch * small)
    literal = 10.0 * n * n_modes + n_steps * (4.0 * n * n_modes + 15.0 * batch * n_modes + mixing)
    return reduced < literal


def _as_modes(modes: ArrayLike | None, n_modes: int | None) -> NDArray[np.int64] | None:
    if modes is None:
        return None
    try:
        array = np.asarray(modes)
    except ValueError as error:
        raise TypeError(f"modes must be an array of integers, got {type(modes).__name__}") from error
    if array.dtype.kind not in "iu":
        raise TypeError(f"modes must be an array of integers, got dtype {array.dtype}")
    last = _COUNTER_LIMIT if n_modes is None else n_modes
    if array.ndim != 1 or array.size == 0 or (array < 0).any() or (array >= last).any():
        raise ValueError(f"modes must be a one-dimensional array of integers from 0 to {last - 1}, got {modes!r}")
    return array.astype(np.int64)


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {value!r} of type {type(value).__name__}")
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")

