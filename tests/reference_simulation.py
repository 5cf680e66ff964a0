"""Plain NumPy versions of the random streams and of the model's training step.

They follow the definitions (Philox in 64-bit integers, Box-Muller with the C library's functions, Eq. 4 with
A(t) itself), share no code with the package, and are also what the benchmarks compare with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

PROJECTION, FEATURES, LABEL_NOISE, REDUCED, REST = range(5)


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


def words(key: tuple[int, int], n: int, c1: Any, c2: int, c3: int) -> NDArray[np.uint64]:
    """Words 0..n-1 along the first counter word, for each entry of c1: shape (..., n)."""
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    k0, k1 = key
    c0, c1 = np.broadcast_arrays(np.arange(-(-n // 4), dtype=np.uint64), np.asarray(c1, dtype=np.uint64)[..., None])
    c2, c3 = np.full_like(c0, c2), np.full_like(c0, c3)
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (p1 >> shift) ^ c1 ^ np.uint64(k0), p1 & low, (p0 >> shift) ^ c3 ^ np.uint64(k1), p0 & low
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1).reshape(*c0.shape[:-1], -1)[..., :n]


def normals(key: tuple[int, int], n: int, c1: Any, c2: int, c3: int) -> Array:
    """Deviates 0..n-1 along the first counter word, for each entry of c1: shape (..., n)."""
    uniform = (words(key, 4 * -(-n // 4), c1, c2, c3) + 0.5) / 2.0**32
    radius = np.sqrt(-2.0 * np.log(uniform[..., 0::2]))
    angle = 2.0 * np.pi * uniform[..., 1::2]
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return pairs.reshape(*uniform.shape)[..., :n]


def initial_projection(seed: int, run: int, width: int, n_modes: int) -> Array:
    """A(0), shape (N, M); its entries are in single precision."""
    deviates = normals(stream_key(seed, PROJECTION), width, np.arange(n_modes), run, 0).T
    return deviates.astype(np.float32).astype(np.float64)


# Laws of white features, made from a word each; Gaussian ones take two.
LAWS: dict[str, Callable[[NDArray[np.uint64]], Array]] = {
    "rademacher": lambda word: np.where(word < 2**31, 1.0, -1.0),
    "uniform": lambda word: np.sqrt(3.0) * (2.0 * (word + 0.5) / 2.0**32 - 1.0),
}


def batches(
    seed: int, run: int, batch_size: int, eigenvalues: Array, label_noise: float, law: str | Callable = "gaussian"
) -> Callable[[int], tuple[Array, Array]]:
    """Return a function of the step that gives psi, shape (B, M), and sigma eps, shape (B,)."""
    key = stream_key(seed, FEATURES)

    def draw(step: int) -> tuple[Array, Array]:
        address = eigenvalues.size, np.arange(batch_size), step, run
        if law == "gaussian":
            xi = normals(key, *address)
        elif callable(law):
            xi = law((words(key, *address) + 0.5) / 2.0**32)
        else:
            xi = LAWS[law](words(key, *address))
        eps = normals(stream_key(seed, LABEL_NOISE), batch_size, 0, step, run)
        return np.sqrt(eigenvalues) * xi, label_noise * eps

    return draw


@dataclass(frozen=True)
class State:
    """A run at some step: errors v0, readout w, projection A(t), which the next step changes in place, and the loss."""

    v0: Array
    w: Array
    a: Array
    loss: float


def states(
    eigenvalues: Array,
    target: Array,
    projection: Array,
    learning_rate: float,
    gamma: float,
    draw: Callable[[int], tuple[Array, Array]] | None,
    n_steps: int,
) -> Iterator[State]:
    """Eq. 4 as it stands, A(t) explicit; yields the state after 0, 1, ..., n_steps steps."""
    width = projection.shape[0]
    a, w = projection.copy(), np.zeros(width)
    for t in range(n_steps + 1):
        v0 = target - a.T @ w / width
        yield State(v0, w, a, float(np.sum(eigenvalues * v0**2)))
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


def train(*arguments: Any) -> Iterator[float]:
    """The losses of `states`."""
    return (state.loss for state in states(*arguments))


def losses(model: Any, seed: int, run: int, n_steps: int) -> Array:
    """Return the loss curve of one run of `model` (finite width), with the package's streams."""
    eigenvalues, target = model.spectrum.modes(0, model.spectrum.n_modes)
    draw = None
    if np.isfinite(model.batch_size):
        draw = batches(seed, run, model.batch_size, eigenvalues, model.label_noise)
    projection = initial_projection(seed, run, model.width, eigenvalues.size)
    return np.array(list(train(eigenvalues, target, projection, model.learning_rate, model.gamma, draw, n_steps)))


@dataclass(frozen=True)
class DenseReduction:
    """Section 8 with whole matrices: S = U diag(e) U^T with e decreasing, c, and the part of the target beyond."""

    e: Array
    vectors: Array
    c: Array
    rest: float

    @classmethod
    def of(cls, eigenvalues: Array, target: Array, projection: Array) -> DenseReduction:
        n = min(projection.shape)
        features, u = projection * np.sqrt(eigenvalues), np.sqrt(eigenvalues) * target
        e, vectors = np.linalg.eigh(features @ features.T)
        e, vectors = e[::-1][:n], vectors[:, ::-1][:, :n]
        # Eigenvectors have signs such that c >= 0, without a target such that their first component is.
        deciding = vectors.T @ (features @ u) if np.any(u) else vectors[0]
        vectors = vectors * np.where(deciding < 0.0, -1.0, 1.0)
        # Directions without variance: rounding errors.
        e = np.where(e > 1e-14 * e[0], e, 0.0)
        c = np.where(e > 0.0, vectors.T @ (features @ u) / np.sqrt(np.where(e > 0.0, e, 1.0)), 0.0)
        # What no linear function of the features predicts.
        rest = np.linalg.norm(u - features.T @ np.linalg.lstsq(features.T, u, rcond=1e-13)[0])
        return cls(e, vectors, c, float(rest))


def reduced_states(
    model: Any, seed: int, run: int, projection: Array, reduction: DenseReduction, n_steps: int
) -> Iterator[State]:
    """Section 8 with the package's streams, in the basis of the features themselves.

    A sample is its N features A(0) psi = U sqrt(e) z and its label z . c + rest xi + sigma eps.
    """
    eigenvalues, target = model.spectrum.modes(0, model.spectrum.n_modes)
    width, batch = model.width, model.batch_size
    w, g = np.zeros(width), np.eye(width)
    for t in range(n_steps + 1):
        a = g @ projection
        v0 = target - a.T @ w / width
        yield State(v0, w, a, float(np.sum(eigenvalues * v0**2)))
        if batch == np.inf:
            v2 = projection @ (eigenvalues * v0)
        else:
            z = normals(stream_key(seed, REDUCED), reduction.e.size, np.arange(batch), t, run)
            xi = normals(stream_key(seed, REST), batch, 0, t, run)
            eps = normals(stream_key(seed, LABEL_NOISE), batch, 0, t, run)
            features = (z * np.sqrt(reduction.e)) @ reduction.vectors.T
            labels = z @ reduction.c + reduction.rest * xi + model.label_noise * eps
            v2 = features.T @ (labels - features @ (g.T @ w) / width) / batch
        w, g = (
            w + model.learning_rate * (g @ v2),
            g + model.learning_rate * model.gamma / width * np.outer(w, v2),
        )


def reduced_losses(
    model: Any, seed: int, run: int, projection: Array, reduction: DenseReduction, n_steps: int
) -> Array:
    """The losses of `reduced_states`."""
    return np.array([state.loss for state in reduced_states(model, seed, run, projection, reduction, n_steps)])


def weight_statistics(model: Any, projection: Array, state: State) -> dict[str, float]:
    """Statistics of a state from its definition: the tangent kernel as an M x M matrix, features white."""
    eigenvalues, target = model.spectrum.modes(0, model.spectrum.n_modes)
    root, width = np.sqrt(eigenvalues), projection.shape[0]
    u, q = root * target, state.w @ state.w / width
    kernel = root[:, None] * (state.a.T @ state.a + model.gamma * q * projection.T @ projection) / width * root
    learned = root * (target - state.v0)
    return {
        "weight_norm": q,
        "kernel_scale": 1.0 + model.gamma * q,
        "spike": model.gamma / (1.0 + model.gamma * q) * (learned @ learned),
        "alignment": u @ kernel @ u / (np.linalg.norm(kernel) * (u @ u)),
    }
