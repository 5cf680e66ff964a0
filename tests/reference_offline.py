"""Plain NumPy versions of offline training: the data set, descent on it, and two routes to its average.

They follow the definitions and theory sections 4 and 7d as printed, and share no code with the package.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from reference_simulation import initial_projection, normals, stream_key

Array = NDArray[np.float64]

DATA, DATA_NOISE = 6, 7


def data_set(seed: int, n_samples: int, eigenvalues: Array) -> tuple[Array, Array]:
    """Psi, shape (P, M), and the label noise of the samples in units of sigma, of run 0."""
    xi = normals(stream_key(seed, DATA), eigenvalues.size, np.arange(n_samples), 0, 0)
    return xi * np.sqrt(eigenvalues), normals(stream_key(seed, DATA_NOISE), n_samples, 0, 0, 0)


def descend(model, n_steps: int, tau: float, every: int, seed: int) -> dict[str, Array]:
    """Full-batch gradient descent of Eq. 4 on a drawn A(0) and data set, recorded every so many steps."""
    eta = tau / n_steps
    lam, target = model.spectrum.modes(0, model.spectrum.n_modes)
    psi, noise = data_set(seed, int(model.n_samples), lam)
    noise = model.label_noise * noise
    infinite = math.isinf(model.width)
    # At infinite width (gamma = 0) the features are all modes, A = sqrt(N) times an orthogonal matrix.
    n = lam.size if infinite else int(model.width)
    initial = math.sqrt(n) * np.eye(n) if infinite else initial_projection(seed, 0, n, lam.size)
    a, w = initial.copy(), np.zeros(n)
    curves: dict[str, list[float]] = {name: [] for name in ("loss", "train_loss", "kernel_scale", "spike")}
    for step in range(n_steps + 1):
        v0 = target - a.T @ w / n
        residual = psi @ v0 + noise
        if step % every == 0:
            scale = 1.0 + model.gamma * (w @ w) / n
            learned = target - v0
            curves["loss"].append(lam @ v0**2)
            curves["train_loss"].append(residual @ residual / residual.size)
            curves["kernel_scale"].append(scale)
            curves["spike"].append(model.gamma / scale * (lam @ learned**2))
        v1 = psi.T @ residual / residual.size
        step_w = eta * a @ v1
        if model.gamma:
            a += eta * model.gamma * np.outer(w, initial.T @ (initial @ v1) / n)
        w = w + step_w
    return {name: np.array(values) for name, values in curves.items()}


def two_time_losses(model, n_steps: int, tau: float) -> tuple[Array, Array]:
    """Diagonals of C_0 and C_r: theory section 4, row by row."""
    eta, steps = tau / n_steps, n_steps + 1
    lam, target = model.spectrum.modes(0, model.spectrum.n_modes)
    square = target**2
    inverse_n, inverse_p, gamma = model.inverse_width, model.inverse_n_samples, model.gamma
    h_w, memory, k, k_r, r_0, r_r, r_13, r_22 = (np.zeros((steps, steps)) for _ in range(8))
    c_0, c_r, c_g, c_2, z, y = (np.zeros((steps, steps)) for _ in range(6))
    h = np.zeros((lam.size, steps, steps))
    e, rest, total = np.zeros_like(h), np.zeros_like(h), np.zeros((steps, steps))

    def set_row(matrix: Array, t: int, row: Array) -> None:
        """Row t of a symmetric matrix, up to its diagonal."""
        matrix[t, : t + 1] = row
        matrix[: t + 1, t] = row

    for t in range(steps):
        past, now = slice(0, t), slice(0, t + 1)
        if t > 0:
            h_w[t] = h_w[t - 1] + eta**2 * gamma * c_2[t - 1, : t - 1] @ h_w[: t - 1]
            h_w[t, t - 1] += eta
        memory[t] = h_w[t]
        memory[t, past] += eta * gamma * h_w[t] @ c_2 @ h_w[past].T
        k[t] = memory[t] @ r_22
        k_r[t] = k[t] @ r_r
        h[:, t] = -lam[:, None] * np.einsum("s,ksr->kr", k_r[t, past], h[:, past])
        h[:, t, t] += 1.0
        total[t] = lam @ h[:, t]
        r_0[t] = -total[t] @ k
        r_r[t] = inverse_p * r_0[t, past] @ r_r[past]
        r_r[t, t] = 1.0
        r_13[t] = -r_r[t] @ total
        r_22[t] = inverse_n * (r_13[t] @ memory)[past] @ r_22[past]
        r_22[t, t] = 1.0
        # z = K C_g K^T/N and y = K C_r K^T/P
        set_row(z, t, inverse_n * (k[t] @ c_g @ k[now].T))
        set_row(y, t, inverse_p * (k[t] @ c_r @ k[now].T))
        ones = h[:, now].sum(axis=2)
        row = (lam * square * ones[:, t]) @ ones
        row += np.einsum("kr,ksr->s", lam[:, None] * (h[:, t] @ z) + lam[:, None] ** 2 * (h[:, t] @ y), h[:, now])
        set_row(c_0, t, row)
        set_row(c_r, t, r_r[t, now] @ (c_0[now, now] + model.label_noise**2) @ r_r[now, now].T)
        e[:, t] = lam[:, None] * (r_r[t] @ h)
        rest[:, t] = -e[:, t] @ k
        rest[:, t, t] += 1.0
        ones = e[:, now].sum(axis=2)
        row = (square * ones[:, t]) @ ones + np.einsum("kr,ksr->s", e[:, t] @ z, e[:, now])
        row += inverse_p * np.einsum("kr,ksr->s", lam[:, None] * (rest[:, t] @ c_r), rest[:, now])
        set_row(c_g, t, row)
        set_row(c_2, t, r_22[t, now] @ c_g[now, now] @ r_22[now, now].T)
    return np.diagonal(c_0).copy(), np.diagonal(c_r).copy()


def lazy_losses(model, times: Array, n_points: int = 400) -> tuple[Array, Array]:
    """Test and train loss at gamma = 0: double contour integrals of the linear pair of section 7d, as printed.

    v_0 = (1/2 pi i) int e^{omega tau} (omega + Z)^{-1} w* d omega around -spectrum and 0, on an ellipse.
    """
    lam, target = model.spectrum.modes(0, model.spectrum.n_modes)
    inverse_n, inverse_p, noise = model.inverse_width, model.inverse_n_samples, model.label_noise**2
    # Beyond the largest eigenvalue of M_0 Sigma: lambda_1 (1 + ...)^2 (1 + ...)^2
    reach = 1.0
    for inverse in (inverse_n, inverse_p):
        reach *= (1.0 + math.sqrt(inverse * lam.sum() / lam[0])) ** 2
    reach *= 1.5 * lam[0]
    angle = 2.0 * math.pi * (np.arange(n_points) + 0.5) / n_points
    half = 0.5 * reach + 0.4
    omega = -0.5 * reach + half * np.cos(angle) + 0.25j * reach * np.sin(angle)
    weight = (-half * np.sin(angle) + 0.25j * reach * np.cos(angle)) / (1j * n_points)
    kappa = np.empty_like(omega)
    for i in range(n_points):
        # kappa = omega + ... far out, continued to the contour
        value = 1e4 * (omega[i] + 0.5 * reach) - 0.5 * reach
        for scale in np.geomspace(1e4, 1.0, 60):
            point = scale * (omega[i] + 0.5 * reach) - 0.5 * reach
            for _ in range(30):
                df, slope = (lam / (lam + value)).sum(), (lam / (lam + value) ** 2).sum()
                r, q = 1.0 - inverse_p * df, 1.0 - inverse_n * df
                step = (value * r * q - point) / (r * q + value * slope * (inverse_p * q + inverse_n * r))
                value -= step
                if abs(step) < 1e-14 * abs(value):
                    break
        kappa[i] = value
    learned = kappa[:, None] / (kappa[:, None] + lam)
    df = (1.0 - learned).sum(axis=1)
    r = 1.0 - inverse_p * df
    k = 1.0 / (kappa * r)
    pairs = np.multiply.outer
    a_1, a_2, a_3, a_4 = (
        (learned * mass) @ learned.T for mass in (lam * target**2, lam, lam**2, lam**2 * target**2)
    )
    oo, kk, rr = pairs(omega, omega), pairs(k, k), pairs(r, r)
    # C_0 - a C_g - b C_0 = first + b sigma^2/oo,   -c C_0 + (1 - d) C_g = second + c sigma^2/oo
    a, b = inverse_n * a_2 * kk, inverse_p * a_3 * kk * rr
    c, d = inverse_p * a_2 * rr, inverse_n * a_3 * kk * rr
    first, second = a_1 / oo + b * noise / oo, rr * a_4 / oo + c * noise / oo
    c_0 = (first * (1.0 - d) + a * second) / ((1.0 - b) * (1.0 - d) - a * c)
    c_r = rr * (c_0 + noise / oo)
    decay = np.exp(pairs(times, omega)) * weight
    return tuple(np.einsum("ti,ij,tj->t", decay, matrix, decay).real for matrix in (c_0, c_r))
