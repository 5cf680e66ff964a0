"""Projected gradient descent is gradient descent on a two-layer network (Appendix B of the paper).

The model's A(t) follows the gradient projected on the span of A(0) (Eq. 4). With A(t) = G(t) A(0), it is the network

    f = (1/N) w^T G phi ,   phi = A(0) psi ,

on N fixed random features phi, both of whose layers follow the plain gradient of the mean of (y - f)^2/2, w with steps
of length eta N and G with eta gamma: gamma sets the ratio of the two learning rates. Gradients here are those of the
loss itself, a function of all N + N^2 weights, by complex steps: exact to rounding for a polynomial, and nothing is
known of their formula.
"""

import math

import numpy as np
import pytest

import scalefield as sf
from reference_simulation import batches, initial_projection, normals, states, stream_key

TASK = sf.PowerLawSpectrum(1.5, 0.5, n_modes=11)
WIDTH, N_STEPS, SEED = 5, 30, 4


def loss_of_batch(weights, features, labels):
    """Mean of (y - f)^2/2; analytic in the weights."""
    w, g = weights[:WIDTH], weights[WIDTH:].reshape(WIDTH, WIDTH)
    outputs = features @ (g.T @ w) / WIDTH
    return np.mean((labels - outputs) ** 2) / 2.0


def complex_step_gradient(function, weights):
    gradient = np.empty(weights.size)
    for index in range(weights.size):
        moved = weights.astype(complex)
        moved[index] += 1e-30j
        gradient[index] = function(moved).imag / 1e-30
    return gradient


def descend(samples, projection, gamma, learning_rate):
    """Plain gradient descent of w and G from w = 0, G = 1; yields (w, G) before each step."""
    weights = np.concatenate([np.zeros(WIDTH), np.eye(WIDTH).ravel()])
    rates = np.concatenate([np.full(WIDTH, learning_rate * WIDTH), np.full(WIDTH**2, learning_rate * gamma)])
    for step in range(N_STEPS + 1):
        yield weights[:WIDTH], weights[WIDTH:].reshape(WIDTH, WIDTH)
        psi, labels = samples(step)
        features = psi @ projection.T
        weights = weights - rates * complex_step_gradient(
            lambda moved, x=features, y=labels: loss_of_batch(moved, x, y), weights
        )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 3.0])
@pytest.mark.parametrize(("batch_size", "noise"), [(1, 0.0), (7, 0.3)])
def test_gradient_descent_after_the_projection(gamma, batch_size, noise):
    """A(t), w and the loss of Eq. 4 step by step, and the losses of `simulate`."""
    model = sf.Model(TASK, WIDTH, gamma, 0.05, batch_size, noise)
    eigenvalues, target = TASK.modes(0, 11)
    projection = initial_projection(SEED, 0, WIDTH, 11)
    draw = batches(SEED, 0, batch_size, eigenvalues, noise)

    def samples(step):
        psi, extra = draw(step)
        return psi, psi @ target + extra

    projected = states(eigenvalues, target, projection, 0.05, gamma, draw, N_STEPS)
    simulated = sf.simulate(model, N_STEPS, seed=SEED, method="literal", record="all").loss[0]
    # Rounding errors of some thirty steps.
    close = {"rtol": 1e-11, "atol": 1e-13}
    moved = 0.0
    for step, ((w, g), state) in enumerate(zip(descend(samples, projection, gamma, 0.05), projected, strict=True)):
        np.testing.assert_allclose(w, state.w, **close)
        np.testing.assert_allclose(g @ projection, state.a, **close)
        learned = projection.T @ (g.T @ w) / WIDTH
        loss = eigenvalues @ (target - learned) ** 2
        assert loss == pytest.approx(state.loss, rel=1e-11)
        assert loss == pytest.approx(simulated[step], rel=1e-11)
        moved = np.abs(g - np.eye(WIDTH)).max()
    # Features do move, or there would be nothing to compare.
    assert moved == 0.0 if gamma == 0.0 else moved > 0.03


def test_gradient_descent_on_a_data_set():
    """The same offline: all of P = 9 samples at each step."""
    model = sf.Model(TASK, WIDTH, 2.0, 0.05, math.inf, 0.2, n_samples=9)
    eigenvalues, target = TASK.modes(0, 11)
    projection = initial_projection(SEED, 0, WIDTH, 11)
    # Streams of data sets and their label noise.
    psi = np.sqrt(eigenvalues) * normals(stream_key(SEED, 6), 11, np.arange(9), 0, 0)
    labels = psi @ target + 0.2 * normals(stream_key(SEED, 7), 9, 0, 0, 0)
    run = sf.simulate(model, N_STEPS, seed=SEED, method="literal", record="all")
    for step, (w, g) in enumerate(descend(lambda _: (psi, labels), projection, 2.0, 0.05)):
        learned = projection.T @ (g.T @ w) / WIDTH
        assert eigenvalues @ (target - learned) ** 2 == pytest.approx(run.loss[0, step], rel=1e-11)
        weights = np.concatenate([w, g.ravel()])
        train_loss = 2.0 * loss_of_batch(weights, psi @ projection.T, labels)
        assert train_loss == pytest.approx(run.train_loss[0, step], rel=1e-10)


def test_without_the_projection_it_is_another_descent():
    """Plain gradient descent of A itself leaves the span of A(0): the projection is what makes the two agree."""
    eigenvalues, target = TASK.modes(0, 11)
    projection = initial_projection(SEED, 0, WIDTH, 11)
    a, w = projection.copy(), np.zeros(WIDTH)
    for _ in range(N_STEPS):
        v = eigenvalues * (target - a.T @ w / WIDTH)
        w, a = w + 0.05 * a @ v, a + 0.05 * 3.0 * np.outer(w, v)
    projected = list(states(eigenvalues, target, projection, 0.05, 3.0, None, N_STEPS))[-1]
    inside = np.linalg.pinv(projection) @ projection
    np.testing.assert_allclose(projected.a @ inside, projected.a, rtol=1e-11, atol=1e-13)
    assert np.abs(a @ inside - a).max() > 0.05
    assert abs(eigenvalues @ (target - a.T @ w / WIDTH) ** 2 / projected.loss - 1.0) > 0.05
