"""Plain NumPy references for the mean-field theory, each by its own route.

`march_reference`: the row-by-row march of theory section 3 with every H_k stored, one node at a time in the
sums, matrix-vector products only. `dense_reference`: full matrices and dense inverses, iterated until
causality has carried the truth through all rows (T sweeps), no marching order at all. `dense_offline_reference` and
`march_offline_reference` are the same for theory section 4: the first as it stands there, for some 20 steps; the second
with commuting responses.
"""

from __future__ import annotations

import numpy as np


def march_reference(eigenvalues, target_power, weights, n_steps, *, learning_rate, gamma=0.0, width=np.inf,
                    batch_size=np.inf, label_noise=0.0):
    """Return a dict of the curves and two-time arrays; nodes (Q,), any weights."""
    lam, p, m = (np.asarray(a, dtype=float) for a in (eigenvalues, target_power, weights))
    T, Q, eta = n_steps + 1, lam.size, learning_rate
    H_w, C_w, P, K, R_13, Z, C_0, C_1, C_2 = (np.zeros((T, T)) for _ in range(9))
    R_22 = np.eye(T)
    H = np.zeros((Q, T, T))
    h1 = np.zeros((Q, T))
    bias, feature, sgd, D = (np.zeros(T) for _ in range(4))
    for t in range(T):
        if t > 0:
            H_w[t] = H_w[t - 1] + eta**2 * gamma * (C_2[t - 1, : t - 1] @ H_w[: t - 1])
            H_w[t, t - 1] += eta
            C_w[t, : t + 1] = H_w[: t + 1, :t] @ (C_2[:t, :t] @ H_w[t, :t])
            C_w[: t + 1, t] = C_w[t, : t + 1]
            P[t, :t] = H_w[t, :t] + eta * gamma * C_w[t, :t]
            K[t, :t] = P[t, :t] @ R_22[:t, :t]
            H[:, t, :t] = -lam[:, None] * (K[t, :t] @ H[:, :t, :t])
        H[:, t, t] = 1.0
        h1[:, t] = H[:, t].sum(axis=1)
        R_13[t] = -(m * lam) @ H[:, t]
        R_22[t, :t] = (R_13[t] @ K)[:t] / width
        Z[t, : t + 1] = K[: t + 1] @ (C_1 @ K[t]) / width
        Z[: t + 1, t] = Z[t, : t + 1]
        V = H[:, t, : t + 1] @ Z[: t + 1]
        bias[t] = (m * p) @ h1[:, t] ** 2
        feature[t] = (m * lam) @ (V[:, : t + 1] * H[:, t, : t + 1]).sum(axis=1)
        sgd[t] = m @ (H[:, t, :t] ** 2 @ D[:t]) / batch_size
        D[t] = bias[t] + feature[t] + sgd[t] + label_noise**2
        # (H_k U_k)(s) for s <= t, all nodes at once
        past, h = H[:, : t + 1, : t + 1], H[:, t, : t + 1]
        U = lam[:, None] * V[:, : t + 1] + h * D[: t + 1] / batch_size
        signal = np.outer(h1[:, t], np.ones(t + 1)) * h1[:, : t + 1]
        C_1[t, : t + 1] = (m * lam * p) @ signal + (m * lam) @ np.matmul(past, U[:, :, None])[:, :, 0]
        C_1[: t + 1, t] = C_1[t, : t + 1]
        # C_0 needs H_k Z H_k^T and (1 - H_k) D (1 - H_k)^T apart
        W = -h.copy()
        W[:, t] += 1.0
        W *= D[: t + 1] / batch_size
        both = np.matmul(past, np.stack([lam[:, None] * V[:, : t + 1], W], axis=2))
        C_0[t, : t + 1] = (m * p) @ signal + m @ (both[:, :, 0] + W - both[:, :, 1])
        C_0[: t + 1, t] = C_0[t, : t + 1]
        C_2[t, : t + 1] = R_22[: t + 1] @ (C_1 @ R_22[t])
        C_2[: t + 1, t] = C_2[t, : t + 1]
    return {"loss": bias + feature + sgd, "bias": bias, "feature_variance": feature, "sgd_variance": sgd,
            "C_0": C_0, "C_1": C_1, "C_2": C_2, "C_w": C_w,
            "R_13": R_13, "R_22": R_22, "K": K, "P": P, "H_w": H_w}


def dense_reference(eigenvalues, target_power, weights, n_steps, *, learning_rate, gamma=0.0, width=np.inf,
                    batch_size=np.inf, label_noise=0.0):
    """Theory section 3 as it stands, from full matrices; T sweeps make every row exact."""
    lam, p, m = (np.asarray(a, dtype=float) for a in (eigenvalues, target_power, weights))
    T, eta = n_steps + 1, learning_rate
    one, eye, shift = np.ones(T), np.eye(T), np.eye(T, k=-1)
    C_1, C_2, D = (np.zeros((T, T)), np.zeros((T, T)), np.zeros(T))
    K = np.zeros((T, T))
    for _ in range(2 * T):
        # H_w(t+1) = H_w(t) + eta e_t + eta^2 gamma sum_{s<t} C_2(t,s) H_w(s)
        # <=> (1 - S - eta^2 gamma S tril(C_2, -1)) H_w = eta S, with S the shift by one step
        H_w = np.linalg.solve(eye - shift - eta**2 * gamma * shift @ np.tril(C_2, -1), eta * shift)
        C_w = H_w @ C_2 @ H_w.T
        P = H_w + eta * gamma * np.tril(C_w, -1)
        H = [np.linalg.inv(eye + value * K) for value in lam]
        R_13 = -sum(w * value * h for w, value, h in zip(m, lam, H, strict=True))
        R_22 = np.linalg.inv(eye - R_13 @ P / width)
        K = P @ R_22
        Z = K @ C_1 @ K.T / width
        C_0, C_1_new = np.zeros((T, T)), np.zeros((T, T))
        for w, value, power, h in zip(m, lam, p, H, strict=True):
            signal = h @ (power * np.outer(one, one) + value * Z) @ h.T
            C_0 += w * (signal + (eye - h) @ np.diag(D) @ (eye - h).T / batch_size)
            C_1_new += w * value * (signal + h @ np.diag(D) @ h.T / batch_size)
        C_1 = C_1_new
        D = np.diag(C_0) + label_noise**2
        C_2 = R_22 @ C_1 @ R_22.T
    return {"loss": np.diag(C_0).copy(), "C_0": C_0, "C_1": C_1, "C_2": C_2, "C_w": C_w, "R_13": R_13,
            "R_22": R_22, "K": K, "P": P, "H_w": H_w}


def dense_offline_reference(eigenvalues, target_power, weights, n_steps, *, learning_rate, n_samples, gamma=0.0,
                            width=np.inf, label_noise=0.0):
    """Theory section 4 as it stands, from full matrices; sweeps make every row exact."""
    lam, p, m = (np.asarray(a, dtype=float) for a in (eigenvalues, target_power, weights))
    T, eta = n_steps + 1, learning_rate
    ones, eye, shift = np.ones((T, T)), np.eye(T), np.eye(T, k=-1)
    C_0, C_r, C_g, C_2, K, R_r = (np.zeros((T, T)) for _ in range(6))
    for _ in range(4 * T):
        H_w = np.linalg.solve(eye - shift - eta**2 * gamma * shift @ np.tril(C_2, -1), eta * shift)
        C_w = H_w @ C_2 @ H_w.T
        P = H_w + eta * gamma * np.tril(C_w, -1)
        H = [np.linalg.inv(eye + value * K @ R_r) for value in lam]
        R_0 = -sum(w * value * h @ K for w, value, h in zip(m, lam, H, strict=True))
        R_r = np.linalg.inv(eye - R_0 / n_samples)
        R_13 = -sum(w * value * R_r @ h for w, value, h in zip(m, lam, H, strict=True))
        R_22 = np.linalg.inv(eye - R_13 @ P / width)
        K = P @ R_22
        features, data = K @ C_g @ K.T / width, K @ C_r @ K.T / n_samples
        C_0, C_g_new = np.zeros((T, T)), np.zeros((T, T))
        for w, value, power, h in zip(m, lam, p, H, strict=True):
            target = power / value * ones if value > 0.0 else 0.0 * ones
            C_0 += w * value * h @ (target + features + value * data) @ h.T
            E = value * R_r @ h
            C_g_new += w * E @ (target + features) @ E.T
            C_g_new += w * value / n_samples * (eye - E @ K) @ C_r @ (eye - E @ K).T
        C_r = R_r @ (C_0 + label_noise**2 * ones) @ R_r.T
        C_g = C_g_new
        C_2 = R_22 @ C_g @ R_22.T
    return {"loss": np.diag(C_0).copy(), "train_loss": np.diag(C_r).copy(), "C_0": C_0, "C_r": C_r, "C_g": C_g,
            "C_2": C_2, "C_w": C_w, "R_0": R_0, "R_r": R_r, "R_13": R_13, "R_22": R_22, "K": K, "P": P, "H_w": H_w}


def march_offline_reference(eigenvalues, target_power, weights, n_steps, *, learning_rate, n_samples, gamma=0.0,
                            width=np.inf, label_noise=0.0):
    """Section 4 row by row with R_22 = 1 + S/N and R_r = 1 + S/P, S = sum_k (H_k - 1); every H_k stored."""
    lam, p, m = (np.asarray(a, dtype=float) for a in (eigenvalues, target_power, weights))
    T, Q, eta = n_steps + 1, lam.size, learning_rate
    H_w, C_w, P, X, S, sum_H, Z, D, C_0, C_1, C_2 = (np.zeros((T, T)) for _ in range(11))
    R = np.eye(T)
    H, h1 = np.zeros((Q, T, T)), np.zeros((Q, T))
    for t in range(T):
        now = slice(0, t + 1)
        if t > 0:
            H_w[t] = H_w[t - 1] + eta**2 * gamma * (C_2[t - 1, : t - 1] @ H_w[: t - 1])
            H_w[t, t - 1] += eta
            C_w[t, now] = H_w[now, :t] @ (C_2[:t, :t] @ H_w[t, :t])
            C_w[now, t] = C_w[t, now]
            P[t, :t] = H_w[t, :t] + eta * gamma * C_w[t, :t]
            # X = P R_22 R_r
            X[t, :t] = P[t, :t] @ R[:t, :t]
            H[:, t, :t] = -lam[:, None] * (X[t, :t] @ H[:, :t, :t])
        H[:, t, t] = 1.0
        h1[:, t] = H[:, t].sum(axis=1)
        S[t, :t] = m @ H[:, t, :t]
        sum_H[t, now] = (m * lam) @ H[:, t, now]
        R[t, :t] = (1.0 / width + 1.0 / n_samples) * S[t, :t] + (S[t] @ S)[:t] / (width * n_samples)
        Z[t, now] = X[now] @ (C_1 @ X[t]) / width
        Z[now, t] = Z[t, now]
        u, g = H[:, t, now] @ Z[now, now], H[:, t, :t] @ D[:t, :t]
        loss = (m * p) @ h1[:, t] ** 2 + (m * lam) @ (u * H[:, t, now]).sum(axis=1)
        loss += m @ (g * H[:, t, :t]).sum(axis=1) / n_samples
        y = lam[:, None] * u
        y[:, :t] += g / n_samples
        x = np.matmul(H[:, now, now], y[:, :, None])[:, :, 0]
        C_0[t, now] = (m * p * h1[:, t]) @ h1[:, now] + m @ x
        C_0[t, :t] -= m @ g / n_samples
        C_0[t, t] = loss
        C_0[now, t] = C_0[t, now]
        D[t, now] = D[now, t] = C_0[t, now] + label_noise**2
        C_1[t, now] = (m * lam * p * h1[:, t]) @ h1[:, now] + (m * lam) @ x + sum_H[now, now] @ D[t, now] / n_samples
        C_1[t, t] += D[t, :t] @ sum_H[t, :t] / n_samples
        C_1[now, t] = C_1[t, now]
        C_2[t, now] = R[now] @ (C_1 @ R[t])
        C_2[now, t] = C_2[t, now]
    R_22, R_r = np.eye(T) + S / width, np.eye(T) + S / n_samples
    C_r = R_r @ D @ R_r.T
    return {"loss": np.diag(C_0).copy(), "train_loss": np.diag(C_r).copy(), "C_0": C_0, "C_r": C_r,
            "C_g": R_r @ C_1 @ R_r.T, "C_2": C_2, "C_w": C_w, "R_0": n_samples * (np.eye(T) - np.linalg.inv(R_r)),
            "R_r": R_r, "R_13": -R_r @ sum_H, "R_22": R_22, "K": P @ R_22, "P": P, "H_w": H_w}
