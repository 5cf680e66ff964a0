"""Plain NumPy references for the closure hierarchy and for what it approximates, each as the theory states it.

`closure_reference`: theory section 7c with whole blocks, every update as written there. `dense_spectral_reference`:
the exact two-time equations of section 6 on any pair of measures. `population_reference`: the literal model on the
quadrature of its own spectrum, exact at infinite batch (end of section 6). `lazy_reference`: the closed law of
gamma = 0. All take a measure, that is any object with the attributes of `SpectralMeasure`.
"""

from __future__ import annotations

import numpy as np


def closure_reference(measure, n_steps, *, order, learning_rate, gamma, inverse_batch=0.0, noise_power=0.0,
                      dtype=np.float64):
    """Return a dict of loss and q at steps 0..n_steps."""
    s, mu, x, rho = (np.asarray(a, dtype=dtype) for a in (
        measure.source_eigenvalues, measure.source_power, measure.eigenvalues, measure.weights))
    eta, gamma, inverse_batch, noise_power, atom = (
        dtype(value) for value in (learning_rate, gamma, inverse_batch, noise_power, measure.atom))
    k, n_source, n_trace = mu * s, s.size, x.size
    p, q = np.zeros(n_source, dtype), dtype(0.0)
    e = np.zeros((n_source, n_source), dtype)
    # Covariance of (p_hat, E_1 .. E_Q) at each trace node.
    n_fields = 1 + n_source if order == 2 else 1
    covariance = np.zeros((n_trace, n_fields, n_fields), dtype)
    loss, growth = np.zeros(n_steps + 1, dtype), np.zeros(n_steps + 1, dtype)
    for t in range(n_steps + 1):
        v = 1.0 - s * p
        variance = covariance[:, 0, 0]
        loss[t] = mu @ v**2 + atom + rho @ (x * variance)
        growth[t] = q
        D = (loss[t] + noise_power) * inverse_batch
        c = k @ (p * v) - rho @ (x * variance)
        vv = k @ v**2 + rho @ (x**2 * variance + x * D)
        kappa = gamma / (1.0 + gamma * q)
        a = 1.0 + gamma * q + eta * gamma * c
        # (E v)_bar and <v, E v>
        Ev = e @ (k * v) if order >= 1 else np.zeros(n_source, dtype)
        vEv = (k * v) @ Ev
        if order == 2:
            shift = -np.einsum("j,js->s", rho * x, covariance[:, 0, 1:])
            Ev = Ev + shift
            vEv = (k * v) @ Ev + (k * v) @ shift
        q_new = q + 2.0 * eta * c + eta**2 * (vv + kappa * c**2 + vEv)
        kappa_new = gamma / (1.0 + gamma * q_new)
        p_new = p + eta * (a * v + kappa * c * p + Ev)
        if order >= 1:
            e = (e + kappa * np.outer(p, p) + eta * gamma * (np.outer(p, v) + np.outer(v, p))
                 + eta**2 * gamma**2 * q * np.outer(v, v) - kappa_new * np.outer(p_new, p_new))
        for j in range(n_trace):
            # Rows of the linear map of (p_hat, E_1 .. E_Q), and what each field takes of the fresh noise n.
            one = np.eye(n_fields, dtype=dtype)
            p_hat, fields = one[0], one[1:]
            v_hat, v_fresh = -x[j] * p_hat, dtype(1.0)
            Ev_hat = (k * v) @ fields if order == 2 else 0.0
            p_hat_new = p_hat + eta * (a * v_hat + kappa * c * p_hat + Ev_hat)
            p_fresh_new = eta * a * v_fresh
            rows, fresh = [p_hat_new], [p_fresh_new]
            if order == 2:
                rows.extend(fields + kappa * np.outer(p, p_hat)
                            + eta * gamma * (np.outer(p, v_hat) + np.outer(v, p_hat))
                            + eta**2 * gamma**2 * q * np.outer(v, v_hat) - kappa_new * np.outer(p_new, p_hat_new))
                fresh.extend(eta * gamma * p * v_fresh + eta**2 * gamma**2 * q * v * v_fresh
                             - kappa_new * p_new * p_fresh_new)
            linear, fresh = np.array(rows), np.array(fresh)
            covariance[j] = linear @ covariance[j] @ linear.T + x[j] * D * np.outer(fresh, fresh)
        p, q = p_new, q_new
    return {"loss": loss, "q": growth}


def dense_spectral_reference(measure, n_steps, *, learning_rate, gamma, inverse_batch=0.0, noise_power=0.0):
    """The loss at steps 0..n_steps from the T x T matrices of theory section 6, row by row."""
    s, mu, x, rho = measure.source_eigenvalues, measure.source_power, measure.eigenvalues, measure.weights
    T, eta = n_steps + 1, learning_rate
    P, H_w, C_w, C_2 = (np.zeros((T, T)) for _ in range(4))
    Phi, phi = np.zeros((x.size, T, T)), np.zeros((s.size, T))
    loss, D = np.zeros(T), np.zeros(T)
    for t in range(T):
        if t > 0:
            H_w[t] = H_w[t - 1] + eta**2 * gamma * (C_2[t - 1, : t - 1] @ H_w[: t - 1])
            H_w[t, t - 1] += eta
            C_w[t, : t + 1] = H_w[: t + 1, :t] @ (C_2[:t, :t] @ H_w[t, :t])
            P[t, :t] = H_w[t, :t] + eta * gamma * C_w[t, :t]
            # Phi_s = (1 + s P)^{-1}
            Phi[:, t, :t] = -x[:, None] * np.matmul(P[t, :t], Phi[:, :t, :t])
        Phi[:, t, t] = 1.0
        phi[:, t] = 1.0 - s * (phi[:, :t] @ P[t, :t])
        loss[t] = mu @ phi[:, t] ** 2 + measure.atom + inverse_batch * (rho @ (Phi[:, t, :t] ** 2 @ D[:t]))
        D[t] = loss[t] + noise_power
        noise = np.matmul(Phi[:, : t + 1, : t + 1], (Phi[:, t, : t + 1] * D[: t + 1])[:, :, None])[:, :, 0]
        C_2[t, : t + 1] = (mu * s * phi[:, t]) @ phi[:, : t + 1] + inverse_batch * ((rho * x) @ noise)
        C_2[: t + 1, t] = C_2[t, : t + 1]
    return loss


def population_reference(measure, n_steps, *, learning_rate, gamma):
    """The loss at steps 0..n_steps at infinite batch: w and G of theory section 6, per spectral component."""
    z, mu, eta = measure.source_eigenvalues, measure.source_power, learning_rate
    k = mu * z
    w, g = np.zeros(z.size), np.zeros((z.size, z.size))
    loss = np.zeros(n_steps + 1)
    for t in range(n_steps + 1):
        p = w + g.T @ (k * w)
        phi = 1.0 - z * p
        loss[t] = mu @ phi**2 + measure.atom
        w, g = w + eta * (phi + g @ (k * phi)), g + eta * gamma * np.outer(w, phi)
    return loss


def lazy_reference(measure, n_steps, *, learning_rate, inverse_batch=0.0, noise_power=0.0):
    """L(t) = mu((1-eta s)^{2t}) + atom + (eta^2/B) sum_{t'<t} rho(s^2 (1-eta s)^{2(t-1-t')}) D(t')."""
    s, mu, x, rho = measure.source_eigenvalues, measure.source_power, measure.eigenvalues, measure.weights
    steps = np.arange(n_steps)
    response = learning_rate**2 * inverse_batch * (rho * x**2) @ (1.0 - learning_rate * x[:, None]) ** (2 * steps)
    loss = np.zeros(n_steps + 1)
    for t in range(n_steps + 1):
        loss[t] = mu @ (1.0 - learning_rate * s) ** (2 * t) + measure.atom
        loss[t] += (loss[:t] + noise_power) @ response[:t][::-1]
    return loss
