"""Plain NumPy versions of linear networks' training, from the definitions; also what the benchmarks compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reference_simulation import LABEL_NOISE, batches, initial_projection, normals, stream_key

Array = NDArray[np.float64]

READOUT, GRADIENT = 9, 10


@dataclass(frozen=True)
class NetworkState:
    """A, w and the learned coefficients beta at some step."""

    a: Array
    w: Array
    beta: Array
    loss: float


def initial_weights(seed: int, run: int, width: int, n_modes: int) -> tuple[Array, Array]:
    """A(0) and w(0) of the package's streams."""
    return initial_projection(seed, run, width, n_modes), normals(stream_key(seed, READOUT), width, 0, run, 0)


def batch_gradients(
    seed: int, run: int, batch_size: int, eigenvalues: Array, label_noise: float
) -> Callable[[int, Array], Array]:
    """v of a step, given w* - beta, from samples."""
    draw = batches(seed, run, batch_size, eigenvalues, label_noise)

    def gradient(step: int, error: Array) -> Array:
        x, noise = draw(step)
        return x.T @ (x @ error + noise) / batch_size

    return gradient


def reduced_gradients(
    seed: int, run: int, batch_size: int, eigenvalues: Array, label_noise: float
) -> Callable[[int, Array], Array]:
    """The same by its law: white samples are z u/|u| + xi P with the projector P across u."""
    key = stream_key(seed, GRADIENT)

    def gradient(step: int, error: Array) -> Array:
        u = np.sqrt(eigenvalues) * error
        direction = u / np.linalg.norm(u)
        g, z = normals(key, u.size, 0, step, run), normals(key, batch_size, 1, step, run)
        e = np.linalg.norm(u) * z + label_noise * normals(stream_key(seed, LABEL_NOISE), batch_size, 0, step, run)
        across = np.eye(u.size) - np.outer(direction, direction)
        return np.sqrt(eigenvalues) * ((z @ e) * direction + np.linalg.norm(e) * (across @ g)) / batch_size

    return gradient


def train(
    eigenvalues: Array,
    target: Array,
    weights: tuple[Array, Array],
    gamma: float,
    learning_rate: float,
    gradient: Callable[[int, Array], Array] | None,
    n_steps: int,
    centred: bool = True,
) -> Iterator[NetworkState]:
    """SGD on f = (1/(N gamma)) w^T A x with steps of length eta gamma^2 N; yields the states of 0..n_steps."""
    (a, w), width = weights, weights[1].size
    scale = 1.0 / (gamma * width)
    offset = scale * a.T @ w if centred else np.zeros(target.size)
    for t in range(n_steps + 1):
        beta = scale * a.T @ w - offset
        error = target - beta
        yield NetworkState(a, w, beta, float(eigenvalues @ error**2))
        if t == n_steps:
            return
        v = eigenvalues * error if gradient is None else gradient(t, error)
        # Minus the gradient of the mean of (y - f)^2/2 is A v/(N gamma) in w and w v^T/(N gamma) in A.
        rate = learning_rate * gamma**2 * width
        w, a = w + rate * scale * (a @ v), a + rate * scale * np.outer(w, v)


def closed_descent(
    eigenvalues: Array, target: Array, gamma: float, learning_rate: float, n_steps: int
) -> Iterator[tuple[Array, float, Array, float]]:
    """Population descent at infinite width on m = A^T w/N, q = |w|^2/N, S = A^T A/N; yields them and the loss."""
    m, q, s = np.zeros(target.size), 1.0, np.eye(target.size)
    rate = learning_rate * gamma
    for t in range(n_steps + 1):
        v = eigenvalues * (target - m / gamma)
        yield m, q, s, float(eigenvalues @ (target - m / gamma) ** 2)
        if t == n_steps:
            return
        m, q, s = (
            m + rate * (s @ v + q * v) + rate**2 * (m @ v) * v,
            q + 2.0 * rate * (m @ v) + rate**2 * (v @ s @ v),
            s + rate * (np.outer(m, v) + np.outer(v, m)) + rate**2 * q * np.outer(v, v),
        )
