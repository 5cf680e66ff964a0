"""Plain NumPy versions of the random streams and of the model's training step.

They follow the definitions (Philox in 64-bit integers, Box-Muller with the C library's functions, Eq. 4 with
A(t) itself), share no code with the package, and are also what the benchmarks compare with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

PROJECTION, FEATURES, LABEL_NOISE = 0, 1, 2


def philox_scalar(key: tuple[int, int], counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 as published, in Python integers."""
    low = 0xFFFFFFFF
    (k0, k1), (c0, c1, c2, c3) = key, counter
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & low, (p0 >> 32) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    return c0, c1, c2, c3


def stream_key(seed: int, stream: int) -> tuple[int, int]:
    state = np.random.SeedSequence(entropy=seed, spawn_key=(stream,)).generate_state(2, np.uint32)
    return int(state[0]), int(state[1])


def normals(key: tuple[int, int], n: int, c1: Any, c2: int, c3: int) -> Array:
    """Deviates 0..n-1 along the first counter word, for each entry of c1: shape (..., n)."""
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    k0, k1 = key
    c0, c1 = np.broadcast_arrays(
        np.arange(-(-n // 4), dtype=np.uint64), np.asarray(c1, dtype=np.uint64)[..., None]
    )
    c2, c3 = np.full_like(c0, c2), np.full_like(c0, c3)
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (p1 >> shift) ^ c1 ^ np.uint64(k0), p1 & low, (p0 >> shift) ^ c3 ^ np.uint64(k1), p0 & low
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    out = np.empty((*c0.shape, 4))
    for lane, (radial, angular) in ((0, (c0, c1)), (2, (c2, c3))):
        radius = np.sqrt(-2.0 * np.log((radial + 0.5) / 2.0**32))
        angle = 2.0 * np.pi * ((angular + 0.5) / 2.0**32)
        out[..., lane], out[..., lane + 1] = radius * np.cos(angle), radius * np.sin(angle)
    return out.reshape(*c0.shape[:-1], -1)[..., :n]


def initial_projection(seed: int, run: int, width: int, n_modes: int) -> Array:
    """A(0), shape (N, M)."""
    return normals(stream_key(seed, PROJECTION), width, np.arange(n_modes), run, 0).T


def batches(
    seed: int, run: int, batch_size: int, eigenvalues: Array, label_noise: float
) -> Callable[[int], tuple[Array, Array]]:
    """Return a function of the step that gives psi, shape (B, M), and sigma eps, shape (B,)."""

    def draw(step: int) -> tuple[Array, Array]:
        xi = normals(stream_key(seed, FEATURES), eigenvalues.size, np.arange(batch_size), step, run)
        eps = normals(stream_key(seed, LABEL_NOISE), batch_size, 0, step, run)
        return np.sqrt(eigenvalues) * xi, label_noise * eps

    return draw


def train(
    eigenvalues: Array,
    target: Array,
    projection: Array,
    learning_rate: float,
    gamma: float,
    draw: Callable[[int], tuple[Array, Array]] | None,
    n_steps: int,
) -> Iterator[float]:
    """Eq. 4 as it stands, A(t) explicit; yields the loss after 0, 1, ..., n_steps steps."""
    width = projection.shape[0]
    a, w = projection.copy(), np.zeros(width)
    for t in range(n_steps + 1):
        v0 = target - a.T @ w / width
        yield float(np.sum(eigenvalues * v0**2))
        if t == n_steps:
            return
        if draw is None:
            v1 = eigenvalues * v0
        else:
            psi, noise = draw(t)
            v1 = psi.T @ (psi @ v0 + noise) / noise.size
        step = learning_rate * (a @ v1)
        if gamma > 0.0:
            a += np.outer(learning_rate * gamma * w, projection.T @ (projection @ v1) / width)
        w = w + step


def losses(model: Any, seed: int, run: int, n_steps: int) -> Array:
    """Return the loss curve of one run of `model` (finite width), with the package's streams."""
    eigenvalues, target = model.spectrum.modes(0, model.spectrum.n_modes)
    draw = None
    if np.isfinite(model.batch_size):
        draw = batches(seed, run, model.batch_size, eigenvalues, model.label_noise)
    projection = initial_projection(seed, run, model.width, eigenvalues.size)
    return np.array(
        list(train(eigenvalues, target, projection, model.learning_rate, model.gamma, draw, n_steps))
    )
