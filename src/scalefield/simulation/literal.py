"""The model itself, simulated: an N x M projection, fresh batches, one learning curve a run."""

from __future__ import annotations

import logging
import math
import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scalefield._memory import available_memory, format_bytes, require_memory
from scalefield._progress import Progress
from scalefield._threads import thread_count
from scalefield._validate import as_count, as_seed
from scalefield.errors import DivergenceError, Interrupted
from scalefield.model import Model
from scalefield.simulation.result import Simulation

__all__ = ["simulate"]

Array = NDArray[np.float64]

logger = logging.getLogger(__name__)

# Batches up to this size are kept between the two passes over them; larger ones only if A(0) is larger still.
_KEPT_BATCH_BYTES = 2**26
# Elementary operations in one call of a kernel, some tens of milliseconds: how often progress is noted.
_CHUNK_WORK = 5e7
# Seconds between looks at the workers; Ctrl-C acts within this time and the kernels' reaction to `stop`.
_POLL_SECONDS = 0.1
# Runs, steps and samples are words of the random generator's counter; modes and features too, in fours.
_COUNTER_LIMIT = 2**32


def simulate(
    model: Model, n_steps: int, n_runs: int = 1, seed: int | None = None, *, progress: Progress | None = None
) -> Simulation:
    r"""Train independent realisations of a model with Gaussian features and record their test loss.

    Each run draws A(0) with standard normal entries and iterates, from w = 0 and G = 1,

    .. math::
        v_0 = w^* - \tfrac{1}{N} A(0)^T G^T w, \qquad
        v_1 = \tfrac{1}{B} \sum_{b=1}^{B} \psi_b (\psi_b \cdot v_0 + \sigma \epsilon_b), \qquad v_2 = A(0) v_1

        w \leftarrow w + \eta G v_2, \qquad G \leftarrow G + \frac{\eta\gamma}{N} w v_2^T,
        \qquad L = \sum_k \lambda_k v_{0k}^2

    with a fresh batch psi_bk ~ N(0, lambda_k), eps_b ~ N(0, 1) each step; the w that moves G is the one before
    the step. At B = inf, v_1 = Lambda v_0. This is Eq. 4 of the reference with A(t) = G(t) A(0). At infinite
    width A(0)^T A(0)/N is the identity and the same iteration runs in the space of modes.

    Parameters
    ----------
    model : Model
        With a finite number of modes M.
    n_steps : int
        Training steps, at least 1.
    n_runs : int
        Independent runs, at least 1 (default).
    seed : int, optional
        In [0, 2^63). Run r of a seed has the same numbers, bit for bit, whatever `n_runs`, the number of
        threads and how many steps follow. None draws a seed, which the result tells.
    progress : callable, optional
        Called from this thread about ten times a second as ``progress(done, total)``, in steps summed over
        runs.

    Returns
    -------
    Simulation
        `steps`, `loss` of shape (n_runs, n_steps + 1), `mean`, `standard_error`.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described; an infinite spectrum needs `n_modes`.
    InsufficientMemoryError
        If a single run does not fit into the available memory.
    DivergenceError
        If the loss of a run is not finite or exceeds 1e12 (initial loss + label_noise^2). `step` is the
        earliest such step of all runs; `partial` holds all runs up to the step before.
    Interrupted
        On Ctrl-C; `partial` holds the runs finished by then, in order, or is None.

    Warns
    -----
    StabilityWarning
        If the learning rate is beyond `Model.stability_bound`.

    Notes
    -----
    Runs are spread over threads (one run a thread; SCALEFIELD_NUM_THREADS or all cores), fewer if memory asks.
    A step costs 4 M N operations, for finite batches B M normal deviates and 4 B M operations, and for
    gamma > 0 6 N^2 more. Memory a thread: 8 M N bytes for A(0), 8 N^2 for G if gamma > 0, and the batch, 8 B M
    bytes, up to 64 MiB or the size of A(0); larger batches are drawn twice instead. At infinite width there is
    no A(0), and M takes the place of N.

    References
    ----------
    Bordelon, Atanasov & Pehlevan, "How Feature Learning Can Improve Neural Scaling Laws", arXiv:2409.17858,
    Eqs. 2-5 and Appendix B.

    Examples
    --------
    >>> import scalefield as sf
    >>> model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5, n_modes=100), width=32, gamma=1.0, batch_size=16)
    >>> simulation = sf.simulate(model, n_steps=50, n_runs=4, seed=0)
    >>> simulation.loss.shape
    (4, 51)
    >>> bool(simulation.mean[50] < simulation.mean[0])
    True
    """
    if not isinstance(model, Model):
        raise TypeError(f"model must be a Model, got {model!r} of type {type(model).__name__}")
    n_steps = _as_counter("n_steps", n_steps)
    n_runs = _as_counter("n_runs", n_runs)
    seed = as_seed("seed", seed)
    n_modes = model.spectrum.n_modes
    if n_modes is None:
        raise ValueError(
            "model.spectrum must have finitely many modes to be simulated, got infinitely many; "
            "give n_modes to PowerLawSpectrum"
        )
    if math.isfinite(model.batch_size):
        _as_counter("model.batch_size", model.batch_size)
    model.warn_if_unstable()

    sizes = _Sizes.of(model, n_modes)
    n_threads = min(thread_count(), n_runs)
    curve_bytes = 8 * (n_runs + 1) * (n_steps + 1)
    require_memory(
        curve_bytes + sizes.shared_bytes + sizes.bytes_per_thread,
        f"simulating {n_runs} run(s) of {n_steps} steps with {n_modes} modes and width {model.width}",
    )
    available = available_memory()
    if available is not None:
        room = available - curve_bytes - sizes.shared_bytes
        n_threads = max(1, min(n_threads, room // sizes.bytes_per_thread))
    logger.info(
        "simulating %d run(s) of %d steps on %d thread(s), about %s of memory each",
        n_runs,
        n_steps,
        n_threads,
        format_bytes(sizes.bytes_per_thread),
    )

    ensemble = _Ensemble(model, n_steps, n_runs, seed, sizes)
    try:
        ensemble.execute(n_threads, progress)
    except KeyboardInterrupt as interrupt:
        finished = ensemble.finished
        count = int(finished.sum())
        partial = ensemble.simulation(ensemble.loss[finished]) if count else None
        raise Interrupted(f"interrupted with {count} of {n_runs} runs finished", partial) from interrupt
    if ensemble.divergences:
        step, run = min((step, run) for run, step in ensemble.divergences.items())
        partial = ensemble.simulation(np.ascontiguousarray(ensemble.loss[:, :step])) if step > 0 else None
        raise DivergenceError(
            f"the loss of run {run} diverged at step {step} ({ensemble.loss[run, step]:.3g}); learning_rate "
            f"{model.learning_rate:g}, stability bound of the lazy dynamics {model.stability_bound:.6g}",
            step,
            partial,
        )
    return ensemble.simulation(ensemble.loss)


def _as_counter(name: str, value: float) -> int:
    count = as_count(name, value)
    if count >= _COUNTER_LIMIT:
        raise ValueError(f"{name} must be below 2**32, got {value!r}")
    return count


@dataclass(frozen=True)
class _Sizes:
    """Shapes of a run's arrays. n is the dimension of the readout: N, or M at infinite width."""

    n_modes: int
    n: int
    projection: tuple[int, int]
    mixing: tuple[int, int]
    batch: int
    features: tuple[int, int]

    @classmethod
    def of(cls, model: Model, n_modes: int) -> _Sizes:
        from scalefield._native.literal_steps import MODE_BLOCK

        infinite_width = math.isinf(model.width)
        n = n_modes if infinite_width else int(model.width)
        projection = (0, 0) if infinite_width else (n_modes, n)
        batch = 0 if math.isinf(model.batch_size) else int(model.batch_size)
        keep = batch * n_modes * 8 <= max(_KEPT_BATCH_BYTES, projection[0] * projection[1] * 8)
        return cls(
            n_modes=n_modes,
            n=n,
            projection=projection,
            mixing=(n, n) if model.is_rich else (0, 0),
            batch=batch,
            features=(batch, n_modes) if keep else (4, MODE_BLOCK),
        )

    @property
    def bytes_per_thread(self) -> int:
        matrices = (self.projection, self.mixing, self.features)
        vectors = 2 * self.n_modes + 4 * self.n + 2 * self.batch
        return 8 * (sum(rows * columns for rows, columns in matrices) + vectors)

    @property
    def shared_bytes(self) -> int:
        return 8 * 4 * self.n_modes

    @property
    def work_per_step(self) -> float:
        """Elementary operations; a normal deviate counts as some ten."""
        rows, columns = self.projection
        return 4.0 * rows * columns + 15.0 * self.batch * self.n_modes + 6.0 * self.mixing[0] ** 2 + self.n_modes


class _Workspace:
    """One thread's arrays, used for one run after the other."""

    def __init__(self, sizes: _Sizes) -> None:
        self.projection = np.empty(sizes.projection)
        self.mixing = np.empty(sizes.mixing)
        self.features = np.empty(sizes.features)
        self.w, self.theta, self.v2, self.scratch = (np.empty(sizes.n) for _ in range(4))
        self.u, self.v1 = np.empty(sizes.n_modes), np.empty(sizes.n_modes)
        self.residual, self.noise = np.empty(sizes.batch), np.empty(sizes.batch)

    def reset(self) -> None:
        """Set the state before training: w = 0, G = 1."""
        self.w.fill(0.0)
        self.theta.fill(0.0)
        self.mixing.fill(0.0)
        np.fill_diagonal(self.mixing, 1.0)


class _Ensemble:
    """Runs shared out among threads; every thread takes the next run until none is left."""

    def __init__(self, model: Model, n_steps: int, n_runs: int, seed: int, sizes: _Sizes) -> None:
        self.model = model
        self.n_steps = n_steps
        self.n_runs = n_runs
        self.seed = seed
        self.sizes = sizes
        eigenvalues, self.target = model.spectrum.modes(0, sizes.n_modes)
        self.target = np.array(self.target, dtype=np.float64)
        self.root_eigenvalues = np.sqrt(eigenvalues)
        self.threshold = model.largest_loss
        self.chunk = max(1, int(_CHUNK_WORK / sizes.work_per_step))
        self.loss = np.full((n_runs, n_steps + 1), np.nan)
        self.finished = np.zeros(n_runs, dtype=bool)
        self.divergences: dict[int, int] = {}
        self.stop = np.zeros(1, dtype=np.uint8)
        self._steps_done = np.zeros(n_runs, dtype=np.int64)
        # Runs need not go beyond the earliest divergence found so far.
        self._last_step = n_steps
        self._next_run = 0
        self._lock = threading.Lock()

    def simulation(self, loss: Array) -> Simulation:
        return Simulation(self.model, seed=self.seed, steps=np.arange(loss.shape[1]), loss=loss)

    def execute(self, n_threads: int, progress: Progress | None) -> None:
        total = self.n_runs * self.n_steps
        if progress is not None:
            progress(0, total)
        with ThreadPoolExecutor(n_threads, thread_name_prefix="scalefield") as pool:
            try:
                pending = {pool.submit(self._work) for _ in range(n_threads)}
                while pending:
                    finished, pending = wait(pending, _POLL_SECONDS, return_when=FIRST_EXCEPTION)
                    for future in finished:
                        future.result()
                    if progress is not None:
                        progress(int(self._steps_done.sum()), total)
            except BaseException:
                # Leaving the pool waits for its threads, which see the flag within a block of modes.
                self.stop[0] = 1
                raise

    def _work(self) -> None:
        workspace = _Workspace(self.sizes)
        while not self.stop[0]:
            with self._lock:
                run = self._next_run
                self._next_run += 1
            if run >= self.n_runs:
                return
            self._simulate(run, workspace)

    def _simulate(self, run: int, space: _Workspace) -> None:
        from scalefield._native import literal_steps, rng

        key = rng.stream_key(self.seed, rng.PROJECTION)
        if literal_steps.fill_projection(*key, run, 0, self.stop, space.projection) == literal_steps.OK:
            self.train(run, space)

    def train(self, run: int, space: _Workspace) -> None:
        """Train one run from the start, with `space.projection` filled."""
        from scalefield._native import literal_steps, rng

        model, sizes = self.model, self.sizes
        feature_key = rng.stream_key(self.seed, rng.FEATURES)
        noise_key = rng.stream_key(self.seed, rng.LABEL_NOISE)
        space.reset()
        t = 0
        while t <= self._last_step:
            t_end = min(t + self.chunk, self._last_step + 1)
            status, step = literal_steps.advance(
                t,
                t_end,
                self.n_steps,
                run,
                *feature_key,
                *noise_key,
                model.learning_rate,
                model.gamma,
                model.label_noise,
                model.inverse_batch_size,
                1.0 if math.isinf(model.width) else model.inverse_width,
                sizes.batch,
                self.threshold,
                self.target,
                self.root_eigenvalues,
                space.projection,
                space.w,
                space.mixing,
                space.theta,
                space.u,
                space.v1,
                space.v2,
                space.scratch,
                space.residual,
                space.noise,
                space.features,
                self.stop,
                self.loss[run],
            )
            if status == literal_steps.STOPPED:
                return
            if status == literal_steps.DIVERGED:
                with self._lock:
                    self.divergences[run] = step
                    self._last_step = min(self._last_step, step)
                return
            t = t_end
            self._steps_done[run] = min(t, self.n_steps)
        self.finished[run] = t > self.n_steps
