r"""The closure hierarchy against plain references, against the exact equations, and in the cases where it is exact.

Theory (sections 7b and 7c): with p = G^T w and E = G^T G - 1 - kappa p p^T, kappa = gamma/(1 + gamma q), a step of rich
SGD is p <- p + eta (a v + kappa c p + E v), per spectral component of the initial kernel. Order 0 drops E, order 1
keeps it between means, order 2 also between means and noise. All are exact at gamma = 0, orders 1 and 2 at infinite
batch. The truth at finite batch is section 6: Phi_s = (1 + s P)^{-1} with P of the two-time correlations, on the
same nodes of any pair of positive measures.
"""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_closure import (
    closure_reference,
    dense_spectral_reference,
    lazy_reference,
    population_reference,
)
from scalefield.dmft.closure import Closure, source_basis
from scalefield.spectral_measure import SpectralMeasure

NO_STEPS = np.zeros(0, dtype=np.int64)


def kernel_measure(n_modes=60, width=24, seed=0):
    """Measures of a drawn random-feature kernel of a power law, alpha = 1.5, beta = 0.5: width source nodes."""
    k = np.arange(1.0, n_modes + 1.0)
    root = k**-0.75
    features = np.random.default_rng(seed).standard_normal((width, n_modes)) * root
    values, vectors = np.linalg.eigh(features.T @ features / width)
    power = (vectors.T @ k**-0.875) ** 2
    learned = values > 1e-12 * values[-1]
    s = values[learned]
    return SpectralMeasure(s, power[learned], s, np.ones(s.size), power[~learned].sum())


def smooth_measure(n_source=21, n_trace=13):
    """Different nodes for the two measures, over five decades, numbers that no block length divides."""
    s, x = np.geomspace(1.2, 1e-5, n_source), np.geomspace(1.1, 3e-5, n_trace)
    return SpectralMeasure(s, 0.5 * s**0.4, x, 0.6 * x**-0.3, 0.02)


MEASURES = {"kernel": kernel_measure(), "smooth": smooth_measure(), "one node": smooth_measure(1, 1)}


def run(measure, n_steps, *, order, **parameters):
    """All steps of a run with the whole basis."""
    return Closure(measure, order=order, **parameters).run_to(n_steps, np.arange(n_steps + 1))


def relative_error(values, expected):
    return float(np.abs(values / expected - 1.0).max())


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize(
    "parameters",
    [
        {"learning_rate": 0.2, "gamma": 1.0, "inverse_batch": 1.0 / 16.0, "noise_power": 0.09},
        {"learning_rate": 0.1, "gamma": 5.0, "inverse_batch": 0.25},
        {"learning_rate": 0.3, "gamma": 0.0, "inverse_batch": 0.1, "noise_power": 0.5},
        {"learning_rate": 0.2, "gamma": 2.0},
    ],
    ids=str,
)
def test_kernels_do_what_the_theory_states(name, order, parameters):
    measure, n_steps = MEASURES[name], 40
    expected = closure_reference(measure, n_steps, order=order, **parameters)
    records = run(measure, n_steps, order=order, **parameters)
    # Both are sums of fewer than 100 terms in double precision.
    assert relative_error(records.loss, expected["loss"]) < 1e-12
    assert np.abs(records.growth - expected["q"]).max() <= 1e-12 * expected["q"].max()
    scale = 1.0 + parameters["gamma"] * records.growth
    np.testing.assert_array_equal(records.kernel_scale, scale)
    time = parameters["learning_rate"] * np.concatenate([[0.0], np.cumsum(scale)[:-1]])
    np.testing.assert_allclose(records.effective_time, time, rtol=1e-13, atol=0.0)
    assert records.diverged_at is None


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("inverse_batch", [0.0, 0.1])
def test_lazy_models_follow_their_closed_law(order, inverse_batch):
    parameters = {"learning_rate": 0.3, "inverse_batch": inverse_batch, "noise_power": 0.2}
    expected = lazy_reference(MEASURES["smooth"], 300, **parameters)
    assert relative_error(run(MEASURES["smooth"], 300, order=order, gamma=0.0, **parameters).loss, expected) < 1e-12


@pytest.mark.parametrize("gamma", [0.5, 4.0])
@pytest.mark.parametrize("order", [1, 2])
def test_exact_at_infinite_batch(gamma, order):
    measure = MEASURES["kernel"]
    # Stable to the end: the kernel's scale reaches 10 at gamma = 4.
    expected = population_reference(measure, 500, learning_rate=0.1, gamma=gamma)
    assert relative_error(run(measure, 500, order=order, learning_rate=0.1, gamma=gamma).loss, expected) < 1e-11
    # The same from the two-time equations, whose sums over time have other rounding errors.
    dense = dense_spectral_reference(measure, 60, learning_rate=0.1, gamma=gamma)
    np.testing.assert_allclose(dense, expected[:61], rtol=1e-11, atol=0.0)


# Bounds of theory section 7c with a margin, for the measures of one drawn kernel (its table is for their average).
@pytest.mark.parametrize(
    ("learning_rate", "batch_size", "gamma", "bounds"),
    [
        (0.20, 16, 1.0, (4e-2, 3e-3, 8e-5)),
        (0.05, 16, 1.0, (1e-2, 2e-4, 2e-6)),
        (0.10, 4, 5.0, (4e-2, 8e-3, 4e-4)),
        (0.05, 4, 5.0, (2e-2, 2e-3, 6e-5)),
    ],
)
def test_each_order_is_closer_to_the_exact_equations(learning_rate, batch_size, gamma, bounds):
    measure = MEASURES["kernel"]
    parameters = {"learning_rate": learning_rate, "gamma": gamma, "inverse_batch": 1.0 / batch_size}
    exact = dense_spectral_reference(measure, 100, **parameters)
    errors = [relative_error(run(measure, 100, order=order, **parameters).loss, exact) for order in (0, 1, 2)]
    assert all(error < bound for error, bound in zip(errors, bounds, strict=True)), errors
    assert errors[0] > 3.0 * errors[1] > 9.0 * errors[2]


def test_order_2_errs_at_second_order_in_the_noise():
    """What order 2 drops is quadratic in 1/B, what order 1 drops linear."""
    measure, parameters = MEASURES["kernel"], {"learning_rate": 0.1, "gamma": 2.0}
    errors = []
    for batch_size in (64, 256):
        noise = {"inverse_batch": 1.0 / batch_size, "noise_power": 0.1}
        exact = dense_spectral_reference(measure, 60, **parameters, **noise)
        errors.append([relative_error(run(measure, 60, order=n, **parameters, **noise).loss, exact) for n in (1, 2)])
    fall = np.array(errors[0]) / errors[1]
    assert 3.0 < fall[0] < 5.0
    assert 12.0 < fall[1] < 20.0


@pytest.mark.parametrize("name", ["kernel", "smooth"])
@pytest.mark.parametrize("learning_rate", [0.05, 0.25])
def test_few_functions_of_the_mean_index_suffice(name, learning_rate):
    measure, n_steps = MEASURES[name], 1000
    parameters = {"learning_rate": learning_rate, "gamma": 2.0, "inverse_batch": 1.0 / 8.0}
    whole = run(measure, n_steps, order=2, **parameters).loss
    ranks, errors = [], []
    for rtol in (1e-2, 1e-4, 1e-6, 1e-8):
        basis = source_basis(measure, n_steps, rtol=rtol, **parameters)
        weights = measure.source_eigenvalues * measure.source_power
        np.testing.assert_allclose((basis * weights) @ basis.T, np.eye(len(basis)), rtol=0.0, atol=1e-10)
        ranks.append(len(basis))
        errors.append(relative_error(run(measure, n_steps, order=2, basis=basis, **parameters).loss, whole))
    assert all(error <= rtol for error, rtol in zip(errors, (1e-2, 1e-4, 1e-6, 1e-8), strict=True)), errors
    assert ranks == sorted(ranks)
    assert ranks[2] <= 16
    assert ranks[-1] < measure.source_eigenvalues.size


def test_sharpness_is_the_largest_eigenvalue_of_the_kernel():
    """At step 0 that of the lazy kernel; later that of A(t), from the propagator of small changes of pbar."""
    measure, learning_rate, gamma = MEASURES["smooth"], 0.2, 2.0
    s, k = measure.source_eigenvalues, measure.source_eigenvalues * measure.source_power
    for order in (0, 1, 2):
        start = Closure(measure, order=order, learning_rate=learning_rate, gamma=gamma)
        assert start.sharpness == pytest.approx(learning_rate * s[0], rel=1e-14)
    w, g = np.zeros(s.size), np.zeros((s.size, s.size))
    for _ in range(30):
        p = w + g.T @ (k * w)
        phi = 1.0 - s * p
        w, g = w + learning_rate * (phi + g @ (k * phi)), g + learning_rate * gamma * np.outer(w, phi)
    closure = Closure(measure, order=1, learning_rate=learning_rate, gamma=gamma)
    closure.run_to(30, NO_STEPS)
    # G^T G + gamma q + eta gamma c on means, with G = 1 + g k
    p = w + g.T @ (k * w)
    moved = np.eye(s.size) + g * k
    kernel = (np.eye(s.size) + g.T * k) @ moved
    scalars = gamma * (k @ w**2) + learning_rate * gamma * (k @ (p * (1.0 - s * p)))
    kernel += scalars * np.eye(s.size)
    expected = learning_rate * np.linalg.eigvals(kernel * s).real.max()
    assert closure.sharpness == pytest.approx(expected, rel=1e-10)


def test_what_was_learned_grows_again_past_sharpness_2():
    measure = MEASURES["kernel"]
    closure = Closure(measure, order=1, learning_rate=0.2, gamma=4.0)
    loss, sharpness = [], []
    for step in range(0, 1201, 20):
        loss.append(closure.run_to(step, np.array([step])).loss[0])
        sharpness.append(closure.sharpness)
    unstable = int(np.argmax(np.array(sharpness) > 2.0))
    assert sharpness[unstable] > 2.0
    falling = np.diff(loss[1:]) < 0.0
    assert falling[: unstable - 1].all()
    assert not falling.all()


def test_an_empty_basis_is_order_1():
    parameters = {"learning_rate": 0.2, "gamma": 1.0, "inverse_batch": 0.1}
    nothing = np.zeros((0, MEASURES["smooth"].source_eigenvalues.size))
    order_1 = run(MEASURES["smooth"], 50, order=1, **parameters)
    np.testing.assert_array_equal(run(MEASURES["smooth"], 50, order=2, basis=nothing, **parameters).loss, order_1.loss)


@pytest.mark.parametrize("order", [0, 1, 2])
@settings(max_examples=20)
@given(cuts=st.lists(st.integers(0, 60), max_size=6), steps=st.sets(st.integers(0, 60), max_size=8))
def test_chunks_and_recorded_steps_change_nothing(order, cuts, steps):
    measure, parameters = MEASURES["smooth"], {"learning_rate": 0.2, "gamma": 1.0, "inverse_batch": 0.1}
    whole = run(measure, 60, order=order, **parameters)
    closure = Closure(measure, order=order, **parameters)
    wanted = np.array(sorted(steps), dtype=np.int64)
    for end in [*sorted(cuts), 60]:
        first = closure.step
        records = closure.run_to(end, wanted[(wanted >= first) & (wanted <= end)])
        assert closure.step == end
        for name in ("loss", "growth", "kernel_scale", "effective_time"):
            np.testing.assert_array_equal(getattr(records, name), getattr(whole, name)[records.steps])
    p, v = closure.means
    np.testing.assert_allclose(1.0 - measure.source_eigenvalues * p, v, rtol=0.0, atol=1e-14)


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("largest_loss", [1e6, np.inf])
def test_divergence_is_a_status(order, largest_loss):
    closure = Closure(
        MEASURES["smooth"],
        order=order,
        learning_rate=1.9,
        gamma=1.0,
        inverse_batch=0.1,
        largest_loss=largest_loss,
    )
    records = closure.run_to(2000, np.arange(2001))
    step = records.diverged_at
    assert step is not None
    assert 0 < step < 2000
    assert closure.diverged
    assert closure.step == step
    np.testing.assert_array_equal(records.steps, np.arange(step))
    assert (records.loss <= largest_loss).all()
    # The state has stopped there.
    again = closure.run_to(3000, np.array([step]))
    assert again.diverged_at == step
    assert again.steps.size == 0


def test_a_basis_ends_where_a_run_diverges():
    basis = source_basis(MEASURES["smooth"], 1000, learning_rate=1.9, gamma=1.0, inverse_batch=0.1)
    assert len(basis) > 0
    assert np.isfinite(basis).all()


@pytest.mark.parametrize("order", [0, 1])
def test_losses_keep_their_digits_when_everything_is_learned(order):
    s = np.array([1.0, 0.6, 0.3, 0.1])
    measure = SpectralMeasure(s, np.array([0.5, 0.2, 0.1, 0.05]), s, np.ones(4))
    lazy = run(measure, 2000, order=0, learning_rate=0.3, gamma=0.0).loss
    exact = lazy_reference(measure, 2000, learning_rate=0.3)
    assert exact[-1] < 1e-50
    # Rounding errors of 2000 factors, squared.
    assert relative_error(lazy, exact) < 1e-12
    # A reference in extended precision holds digits enough for 12 decades.
    parameters = {"learning_rate": 0.3, "gamma": 1.5, "inverse_batch": 1.0 / 64.0}
    expected = closure_reference(measure, 200, order=order, dtype=np.longdouble, **parameters)["loss"]
    assert expected[-1] < 1e-13
    precise = np.finfo(np.longdouble).eps < 1e-18
    bound = 1e-11 if precise else 1e-6
    assert relative_error(run(measure, 200, order=order, **parameters).loss, expected) < bound


@pytest.mark.parametrize("order", [1, 2])
def test_rounding_errors_do_not_accumulate(order):
    s = np.geomspace(1.0, 1e-4, 4)
    measure = SpectralMeasure(s, 0.3 * s**0.4, s, np.array([1.0, 1.0, 2.0, 8.0]), 0.1)
    parameters = {"learning_rate": 0.3, "gamma": 1.5, "inverse_batch": 1.0 / 64.0}
    expected = closure_reference(measure, 4000, order=order, dtype=np.longdouble, **parameters)["loss"]
    assert relative_error(run(measure, 4000, order=order, **parameters).loss, expected) < 1e-14


def test_runs_in_many_threads_are_equal():
    measure, parameters = MEASURES["kernel"], {"learning_rate": 0.2, "gamma": 1.0, "inverse_batch": 0.1}
    expected = run(measure, 300, order=2, **parameters).loss
    results = [None] * 8

    def work(index):
        results[index] = run(measure, 300, order=2, **parameters).loss

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(results))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        np.testing.assert_array_equal(result, expected)


def test_nodes_without_mass_change_nothing():
    """Such as those of two measures put on the nodes of both."""
    measure, parameters = MEASURES["smooth"], {"learning_rate": 0.2, "gamma": 1.0, "inverse_batch": 0.1}
    joint = SpectralMeasure(
        np.concatenate([measure.source_eigenvalues, measure.eigenvalues]),
        np.concatenate([measure.source_power, np.zeros_like(measure.weights)]),
        np.concatenate([measure.eigenvalues, measure.source_eigenvalues]),
        np.concatenate([measure.weights, np.zeros_like(measure.source_power)]),
        measure.atom,
    )
    for order in (0, 1, 2):
        expected = run(measure, 50, order=order, **parameters).loss
        assert relative_error(run(joint, 50, order=order, **parameters).loss, expected) < 1e-13
    basis = source_basis(joint, 50, **parameters)
    expected = run(measure, 50, order=2, **parameters).loss
    assert relative_error(run(joint, 50, order=2, basis=basis, **parameters).loss, expected) < 1e-6
