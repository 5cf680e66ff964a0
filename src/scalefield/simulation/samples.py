"""A fixed data set of a run (offline training), and the batches drawn from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalefield._projection import projection_rows
from scalefield._threads import share
from scalefield.simulation.plan import Plan
from scalefield.simulation.reduction import BLOCK, LANES

__all__ = ["KINDS", "batches_of", "fill_samples", "made_features", "project_samples", "sample_noise"]

Array = NDArray[np.float64]

# Laws of features, and their numbers in `_native.rng`.
KINDS = {"gaussian": 0, "rademacher": 1, "uniform": 2}


def made_features(function: Callable[[Any], Any], uniform: Array) -> Array:
    """Features that a function makes of uniform deviates, checked."""
    made = np.asarray(function(uniform))
    if made.shape != uniform.shape or made.dtype.kind not in "fiu":
        raise ValueError(
            f"features must return real numbers of shape {uniform.shape}, got shape {made.shape} and dtype {made.dtype}"
        )
    return made


def fill_samples(plan: Plan, run: int, first: int, samples_out: NDArray[Any]) -> None:
    """xi[mu, k] = psi[mu, k]/sqrt(lambda_k) of a run's data set for modes from `first` on; first is a multiple of 4."""
    from scalefield._native import data_set, rng

    kind = KINDS[plan.features] if isinstance(plan.features, str) else rng.PROBABILITY
    data_set.fill_samples(kind, *rng.stream_key(plan.seed, rng.DATA), run, first, samples_out)
    if not isinstance(plan.features, str):
        samples_out[...] = made_features(plan.features, samples_out)


def sample_noise(plan: Plan, run: int) -> Array:
    """sigma eps_mu, the label noise of a run's data set."""
    from scalefield._native import data_set, rng

    noise = np.zeros(int(plan.model.n_samples))
    if plan.model.label_noise > 0.0:
        data_set.fill_sample_noise(*rng.stream_key(plan.seed, rng.DATA_NOISE), run, noise)
    return plan.model.label_noise * noise


def project_samples(
    plan: Plan, run: int, vectors: Array, n_threads: int, stop: NDArray[np.uint8]
) -> tuple[Array, Array] | None:
    r"""Features and labels of a run's data set; None if stopped.

    .. math:: \phi_\mu = U^T A(0) \psi_\mu, \qquad y_\mu = w^* \cdot \psi_\mu + \sigma \epsilon_\mu

    Streamed over modes: O(M N P) operations, O(N P) memory.
    """
    spectrum, n_samples, width = plan.model.spectrum, int(plan.model.n_samples), vectors.shape[0]
    assert spectrum.n_modes is not None
    eigenvalues, target = spectrum.modes(0, spectrum.n_modes)
    root = np.sqrt(eigenvalues)
    firsts = range(0, spectrum.n_modes, BLOCK)
    sums = [(np.zeros((n_samples, width)), np.zeros(n_samples)) for _ in range(min(LANES, len(firsts)))]

    def add(lane: int) -> None:
        for first in firsts[lane :: len(sums)]:
            if stop[0]:
                return
            last = min(first + BLOCK, root.size)
            samples = np.empty((n_samples, last - first))
            fill_samples(plan, run, first, samples)
            samples *= root[first:last]
            sums[lane][0][...] += samples @ projection_rows(plan.seed, run, first, last, width)
            sums[lane][1][...] += samples @ target[first:last]

    share(add, len(sums), n_threads)
    if stop[0]:
        return None
    features = sum((part for part, _ in sums[1:]), sums[0][0])
    labels = sum((part for _, part in sums[1:]), sums[0][1])
    return features @ vectors, labels + sample_noise(plan, run)


def batches_of(plan: Plan, run: int, t_first: int, t_last: int) -> NDArray[np.int64]:
    """Samples of the batches of steps t_first..t_last-1, shape (steps, B); no column if a batch is the whole data set.

    Without replacement every epoch of floor(P/B) steps is a new random order of the samples, cut into batches.
    """
    from scalefield._native import rng

    n_samples, n_batches = int(plan.model.n_samples), t_last - t_first
    if math.isinf(plan.model.batch_size):
        return np.zeros((n_batches, 0), dtype=np.int64)
    size = int(plan.model.batch_size)
    key = rng.stream_key(plan.seed, rng.BATCHES)
    zero, word_run = np.uint64(0), np.uint64(run)
    batches = np.empty((n_batches, size), dtype=np.int64)
    if plan.replacement:
        uniform = np.empty(size)
        for i in range(n_batches):
            rng.fill_features(rng.PROBABILITY, *key, zero, np.uint64(t_first + i), word_run, zero, uniform)
            batches[i] = n_samples * uniform
        return batches
    per_epoch = n_samples // size
    uniform, order, drawn = np.empty(n_samples), np.zeros(0, dtype=np.int64), -1
    for i in range(n_batches):
        epoch, place = divmod(t_first + i, per_epoch)
        if epoch != drawn:
            rng.fill_features(rng.PROBABILITY, *key, np.uint64(1), np.uint64(epoch), word_run, zero, uniform)
            order, drawn = np.argsort(uniform, kind="stable"), epoch
        batches[i] = order[place * size : (place + 1) * size]
    return batches
