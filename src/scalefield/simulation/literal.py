"""The model itself: an N x M projection and fresh batches of M features."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalefield._projection import ENTRY_BYTES
from scalefield._threads import thread_count
from scalefield.model import Model
from scalefield.simulation.plan import Plan
from scalefield.simulation.reduction import BLOCK
from scalefield.simulation.samples import KINDS, made_features
from scalefield.simulation.statistics import KernelStatistics, observation_bytes

__all__ = ["Literal", "LiteralWorker", "Source"]

Array = NDArray[np.float64]

# Elementary operations of a step from which its passes are shared among threads: some 0.3 ms.
_SHARED_WORK = 2e6
# Calls of the kernel are shared from this many times as much on: starting threads takes some 0.1 ms, on a busy machine
# 1 ms, and runs that record every step make a call of each.
_SHARED_CALL = 10.0
# Batches up to this size are kept between the two passes over them; larger ones only if A(0) is larger still.
_KEPT_BATCH_BYTES = 2**26
# Data sets up to this size are held; of larger ones only those that batches are drawn from, or no larger than A(0).
_KEPT_SAMPLE_BYTES = 2**30


@dataclass(frozen=True)
class Source:
    """Where the features and the label noise of some steps come from.

    Attributes
    ----------
    stream, kind : int
        Stream that features are drawn from, and their law, as in `rng`.
    given : ndarray, shape (P, M)
        Features that are not to be drawn; shape (0, 0) if all are.
    batches : ndarray of int64, shape (number of steps, B)
        Rows of `given` that make the batch of each step; no columns if all do.
    noise : ndarray, shape (P,)
        Label noise of a fixed data set; empty for fresh batches.
    """

    stream: int
    kind: int
    given: NDArray[Any]
    batches: NDArray[np.int64]
    noise: NDArray[Any]


@dataclass(frozen=True)
class _Sizes:
    """Shapes of a run's arrays. n is the dimension of the readout: N, or M at infinite width."""

    n_modes: int
    n: int
    projection: tuple[int, int]
    mixing: tuple[int, int]
    batch: int
    features: tuple[int, int]
    samples: tuple[int, int]
    sums: tuple[int, int]
    partial: tuple[int, int]
    itemsize: int

    # Features that a function makes are given whole.
    @classmethod
    def of(cls, model: Model, n_modes: int, *, given: bool = False, itemsize: int = 8) -> _Sizes:
        from scalefield._native.literal_steps import LANES, MODE_BLOCK

        infinite_width = math.isinf(model.width)
        n = n_modes if infinite_width else int(model.width)
        projection = (0, 0) if infinite_width else (n_modes, n)
        batch = 0 if math.isinf(model.batch_size) else int(model.batch_size)
        samples = (0, 0)
        if model.is_offline:
            n_samples = int(model.n_samples)
            held = max(_KEPT_SAMPLE_BYTES, math.prod(projection) * ENTRY_BYTES)
            if batch > 0 or given or n_samples * n_modes * itemsize <= held:
                samples = (n_samples, n_modes)
            batch = batch or n_samples
        projection_bytes = math.prod(projection) * ENTRY_BYTES
        keep = given or batch * n_modes * itemsize <= max(_KEPT_BATCH_BYTES, projection_bytes)
        features = (batch, n_modes) if keep else (4 * LANES, MODE_BLOCK)
        if samples[0]:
            # Samples are used where they are.
            features = (0, 0)
        return cls(
            n_modes=n_modes,
            n=n,
            projection=projection,
            mixing=(n, n) if model.is_rich else (0, 0),
            batch=batch,
            features=features,
            samples=samples,
            sums=(LANES, n),
            partial=(-(-n_modes // MODE_BLOCK), 1 + batch),
            itemsize=itemsize,
        )

    @property
    def bytes_per_worker(self) -> int:
        matrices = (self.mixing, self.features, self.samples, self.sums)
        vectors = 2 * self.n_modes + 3 * self.n + 2 * self.batch
        own = self.itemsize * (sum(map(math.prod, matrices)) + vectors)
        return own + ENTRY_BYTES * math.prod(self.projection) + 8 * math.prod(self.partial)

    @property
    def shared_bytes(self) -> int:
        return 8 * 4 * self.n_modes

    @property
    def work_per_step(self) -> float:
        """Elementary operations; a normal deviate counts as some ten."""
        rows, columns = self.projection
        return 4.0 * rows * columns + 15.0 * self.batch * self.n_modes + 6.0 * self.mixing[0] ** 2 + self.n_modes


class Literal:
    """What the runs of a plan share."""

    def __init__(self, plan: Plan, stop: NDArray[np.uint8]) -> None:
        from scalefield._native.literal_steps import LANES

        model = plan.model
        assert model.spectrum.n_modes is not None
        self.plan, self.stop = plan, stop
        given, itemsize = callable(plan.features), plan.dtype.itemsize
        self.sizes = _Sizes.of(model, model.spectrum.n_modes, given=given, itemsize=itemsize)
        self.threshold = model.largest_loss
        # At infinite width A(0)^T A(0)/N is the identity.
        self.inverse_width = 1.0 if math.isinf(model.width) else model.inverse_width
        # Threads that too few runs leave idle share the passes of a step, where these are long enough.
        self.threads_per_run = max(1, min(LANES, thread_count() // plan.n_runs))
        if self.work_per_step < _SHARED_WORK:
            self.threads_per_run = 1

    def allocate(self) -> None:
        """Make the shared arrays."""
        eigenvalues, target = self.plan.model.spectrum.modes(0, self.sizes.n_modes)
        dtype = self.plan.dtype
        self.eigenvalues, self.target = eigenvalues, np.array(target, dtype=dtype)
        self.root_eigenvalues = np.sqrt(eigenvalues).astype(dtype)

    @property
    def bytes_per_worker(self) -> int:
        """Memory of one thread's workspace, and of recording its state."""
        n_modes, n = self.sizes.projection
        return self.sizes.bytes_per_worker + observation_bytes(self.plan, self.sizes.n, min(BLOCK, n_modes) * n)

    @property
    def shared_bytes(self) -> int:
        """Memory of what all threads share."""
        return self.sizes.shared_bytes

    @property
    def work_per_step(self) -> float:
        """Elementary operations of a step."""
        return self.sizes.work_per_step

    def worker(self) -> LiteralWorker:
        """Allocate one thread's workspace."""
        return LiteralWorker(self)


class LiteralWorker:
    """One thread's arrays, used for one run after the other."""

    def __init__(self, shared: Literal) -> None:
        self.shared, sizes = shared, shared.sizes
        dtype = shared.plan.dtype
        self.projection = np.empty(sizes.projection, dtype=np.float32)
        self.mixing = np.empty(sizes.mixing, dtype=dtype)
        self.features = np.empty(sizes.features, dtype=dtype)
        self.sums, self.partial = np.zeros(sizes.sums, dtype=dtype), np.zeros(sizes.partial)
        self.w, self.theta, self.v2 = (np.empty(sizes.n, dtype=dtype) for _ in range(3))
        self.u, self.v1 = (np.empty(sizes.n_modes, dtype=dtype) for _ in range(2))
        self.residual, self.noise = (np.empty(sizes.batch, dtype=dtype) for _ in range(2))
        self._kernel: KernelStatistics | None = None

    @property
    def state(self) -> Mapping[str, NDArray[Any]]:
        """The arrays from which a run goes on."""
        return {"w": self.w, "theta": self.theta, "mixing": self.mixing}

    def start(self, run: int) -> bool:
        """Draw A(0) and set the state before training: w = 0, G = 1."""
        from scalefield._native import literal_steps, rng

        self.w.fill(0.0)
        self.theta.fill(0.0)
        self.mixing.fill(0.0)
        np.fill_diagonal(self.mixing, 1.0)
        self._kernel = None
        key = rng.stream_key(self.shared.plan.seed, rng.PROJECTION)
        return bool(
            literal_steps.fill_projection(*key, run, 0, self.shared.stop, self.projection) == literal_steps.OK
        )

    def advance(self, run: int, t_first: int, t_last: int, loss_out: Array) -> tuple[int, int]:
        """Record the loss and take steps; features that a function makes are made for one step at a time."""
        from scalefield._native import rng

        plan, all_rows = self.shared.plan, np.zeros((t_last - t_first, 0), dtype=np.int64)
        nothing, fresh = np.zeros((0, 0), dtype=plan.dtype), np.zeros(0, dtype=plan.dtype)
        if isinstance(plan.features, str):
            source = Source(rng.FEATURES, KINDS[plan.features], nothing, all_rows, fresh)
            return self._advance(run, source, t_first, t_last, plan.n_steps, loss_out)
        source = Source(rng.FEATURES, rng.PROBABILITY, self.features, all_rows, fresh)
        status, step = 0, t_first
        for t in range(t_first, t_last):
            self._make(plan.features, run, t)
            status, step = self._advance(run, source, t, t + 1, plan.n_steps, loss_out[t - t_first :])
            if status != 0:
                break
        return status, step

    def _make(self, function: Any, run: int, t: int) -> None:
        """Fill the features of step t."""
        from scalefield._native import rng

        key = rng.stream_key(self.shared.plan.seed, rng.FEATURES)
        uniform = np.empty(self.features.shape)
        for b in range(uniform.shape[0]):
            rng.fill_features(
                rng.PROBABILITY, *key, np.uint64(b), np.uint64(t), np.uint64(run), np.uint64(0), uniform[b]
            )
        self.features[...] = made_features(function, uniform)

    def _advance(
        self,
        run: int,
        source: Source,
        t_first: int,
        t_last: int,
        n_steps: int,
        loss_out: Array,
        *,
        errors_known: bool = False,
    ) -> tuple[int, int]:
        """`literal_steps.advance`, by as many threads as a run has if that is worth it."""
        from scalefield._native import literal_steps, rng
        from scalefield._native.team import BARRIER_SIZE

        shared, plan = self.shared, self.shared.plan
        model, batch = plan.model, shared.sizes.batch
        is_long = (t_last - t_first) * shared.work_per_step >= _SHARED_CALL * _SHARED_WORK
        n_threads = shared.threads_per_run if is_long else 1
        barrier = np.zeros(BARRIER_SIZE, dtype=np.int64)

        def steps(thread: int) -> tuple[int, int]:
            status, step = literal_steps.advance(
                thread,
                n_threads,
                barrier,
                t_first,
                t_last,
                n_steps,
                int(errors_known),
                run,
                source.kind,
                *rng.stream_key(plan.seed, source.stream),
                *rng.stream_key(plan.seed, rng.LABEL_NOISE),
                model.learning_rate,
                model.gamma,
                model.label_noise,
                1.0 / batch if batch else 0.0,
                shared.inverse_width,
                batch,
                shared.threshold,
                source.given,
                source.batches,
                source.noise,
                shared.target,
                shared.root_eigenvalues,
                self.projection,
                self.w,
                self.mixing,
                self.theta,
                self.u,
                self.v1,
                self.v2,
                self.residual,
                self.noise,
                self.features,
                self.sums,
                self.partial,
                shared.stop,
                loss_out,
            )
            return status, step

        if n_threads == 1:
            return steps(0)
        with ThreadPoolExecutor(n_threads - 1, thread_name_prefix="scalefield") as pool:
            try:
                others = [pool.submit(steps, thread) for thread in range(1, n_threads)]
            except RuntimeError:
                # A thread that could not be started: the others would wait for it.
                shared.stop[0] = 1
                raise
            found = [steps(0), *(other.result() for other in others)]
        return max(found)

    def observe(self) -> dict[str, Any]:
        """What the plan wants recorded of the state beside the loss."""
        shared, plan = self.shared, self.shared.plan
        infinite = math.isinf(plan.model.width)
        found: dict[str, Any] = {}
        learned = np.zeros(0)
        if plan.modes is not None or "spike" in plan.statistics:
            learned = self._learned()
        if plan.modes is not None:
            found["mode_errors"] = shared.target[plan.modes] - learned[plan.modes]
        if plan.statistics:
            if self._kernel is None:
                self._kernel = self._statistics(infinite, "alignment" in plan.statistics)
            learned_power = float(shared.eigenvalues @ learned**2) if learned.size else math.nan
            found |= self._kernel.observe(plan.statistics, self.w.astype(np.float64), self.mixing, learned_power)
        return found

    def _learned(self) -> Array:
        """v3 = A(0)^T theta; in blocks, since A(0), in single precision, must not be copied whole."""
        theta = self.theta.astype(np.float64)
        if self.projection.shape[0] == 0:
            return theta
        return np.concatenate([rows @ theta for rows in self._blocks()])

    def _blocks(self) -> Iterator[NDArray[np.float32]]:
        """A(0)^T, some modes at a time."""
        for first in range(0, self.projection.shape[0], BLOCK):
            yield self.projection[first : first + BLOCK]

    def _statistics(self, infinite: bool, with_covariance: bool) -> KernelStatistics:
        shared, model = self.shared, self.shared.plan.model
        if not with_covariance:
            return KernelStatistics(model, np.zeros(0), np.zeros(0))
        if infinite:
            return KernelStatistics(model, shared.eigenvalues, shared.eigenvalues * shared.target)
        # S = A(0) Lambda A(0)^T and b = A(0) Lambda w*
        n, root = shared.sizes.n, np.sqrt(shared.eigenvalues)
        covariance, b = np.zeros((n, n)), np.zeros(n)
        for place, block in enumerate(self._blocks()):
            inside = slice(place * BLOCK, place * BLOCK + len(block))
            features = root[inside, None] * block
            covariance += features.T @ features
            b += (root[inside] * shared.target[inside]) @ features
        return KernelStatistics(model, covariance, b)
