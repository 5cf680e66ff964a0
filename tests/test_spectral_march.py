r"""The spectral form against literal runs, dense formulas, and the two-time engine.

Theory (section 6): all that training sees of a task and a projection are the source measure mu and the trace
measure rho of X = Lambda^{1/2} A(0)^T A(0) Lambda^{1/2}/N. With Phi_s = (1 + s P)^{-1} and phi_s = Phi_s 1

    L(t) = mu(phi_s(t)^2) + (1/B) sum_{t'} rho((1 - Phi_s)(t,t')^2) D(t')
    C_2  = mu(s phi_s phi_s^T) + (1/B) rho(s Phi_s diag(D) Phi_s^T)

for a realised A(0), of whose population dynamics this is exact, and on average over A(0).
"""

import itertools
import signal
import time
import warnings
from functools import partial

import numpy as np
import pytest
from scipy.optimize import brentq, minimize_scalar

import scalefield as sf
from scalefield.dmft import spectral
from scalefield.dmft.spectral import solve_spectral
from scalefield.errors import DivergenceError, InsufficientMemoryError, Interrupted, StabilityWarning
from scalefield.spectral_measure import SpectralMeasure

CURVES = ("loss", "population_loss")

solve_two_time = partial(sf.solve_dmft, method="two-time")
TWO_TIME = ("C_0", "C_2", "C_w", "P", "H_w")
ABSENT = ("bias", "feature_variance", "sgd_variance", "C_1", "R_13", "R_22", "K")

SPECTRUM = sf.PowerLawSpectrum(1.5, 0.5, n_modes=40)


def modes(spectrum):
    eigenvalues, coefficients = spectrum.modes(0, spectrum.n_modes)
    return eigenvalues, eigenvalues * coefficients**2


def modes_as_measure(spectrum):
    """X = Lambda at infinite width."""
    eigenvalues, power = modes(spectrum)
    return SpectralMeasure(eigenvalues, power, eigenvalues, np.ones_like(eigenvalues))


def projection(spectrum, width, seed):
    return np.random.default_rng(seed).standard_normal((width, spectrum.n_modes))


def realised_measure(spectrum, features):
    """Eigenvalues and overlaps of X for one A(0), with its null space as the atom."""
    eigenvalues, power = modes(spectrum)
    scaled = features * np.sqrt(eigenvalues) / np.sqrt(len(features))
    values, vectors = np.linalg.eigh(scaled.T @ scaled)
    overlap = (vectors.T @ np.sqrt(power)) ** 2
    learned = values > 1e-12 * values.max()
    return SpectralMeasure(
        values[learned], overlap[learned], values[learned], np.ones(learned.sum()), overlap[~learned].sum()
    )


def averaged_measure(spectrum, width, n_points=3000):
    """The deterministic equivalent (theory section 6), by the midpoint rule in theta on every band of its arcs.

    With kappa = x + i y, X has the eigenvalues s = -z(kappa) where Im z = 0, in the intervals of x on which
    phi(x) = (1/N) sum lambda^2/(x + lambda)^2 > 1; on each x = mid - half cos(theta).
    """
    lam, power = modes(spectrum)

    def excess(x):
        return (lam**2 / (x + lam) ** 2).sum() / width - 1.0

    ascending = np.sort(-lam)
    edges = [brentq(excess, ascending[0] - 10.0 * lam.sum(), ascending[0] * (1.0 + 1e-9), xtol=1e-15)]
    for left, right in itertools.pairwise(ascending):
        margin = 1e-9 * (right - left)
        lowest = minimize_scalar(excess, bounds=(left + margin, right - margin), method="bounded",
                                 options={"xatol": 1e-12}).x
        if excess(lowest) < 0.0:
            edges += [brentq(excess, left + margin, lowest, xtol=1e-15),
                      brentq(excess, lowest, right - margin, xtol=1e-15)]
    edges.append(brentq(excess, ascending[-1] * (1.0 - 1e-9), 10.0 * lam.sum(), xtol=1e-15))
    nodes, source, trace = [], [], []
    theta = np.pi * (np.arange(n_points) + 0.5) / n_points
    for left, right in zip(edges[::2], edges[1::2], strict=True):
        half = 0.5 * (right - left)
        x = 0.5 * (left + right) - half * np.cos(theta)
        low, high = np.zeros_like(x), np.full_like(x, (lam**2).sum() / width)
        for _ in range(200):
            square = 0.5 * (low + high)
            above = (lam**2 / ((x[:, None] + lam) ** 2 + square[:, None])).sum(axis=1) > width
            low, high = np.where(above, square, low), np.where(above, high, square)
        kappa = (x + 1j * np.sqrt(0.5 * (low + high)))[:, None]
        z = (kappa[:, 0] * (1.0 - (lam / (kappa + lam)).sum(axis=1) / width)).real
        slope = 1.0 - (lam**2 / (kappa + lam) ** 2).sum(axis=1) / width
        # Along the arc Im dz = 0: dz = |z'|^2/Re z' dx
        dz = np.abs(slope) ** 2 / slope.real * half * np.sin(theta) * np.pi / n_points
        nodes.append(-z)
        for masses, weight in ((source, power), (trace, 1.0)):
            resolvent = kappa[:, 0] / z * (weight / (kappa + lam)).sum(axis=1)
            masses.append(np.abs(resolvent.imag * dz) / np.pi)
    atom = 0.0
    if width < len(lam):
        kappa_0 = brentq(lambda x: (lam / (lam + x)).sum() - width, 0.0, lam.sum())
        atom = (power * kappa_0 / (kappa_0 + lam)).sum()
    return SpectralMeasure(*map(np.concatenate, (nodes, source, nodes, trace)), atom)


def dense_reference(measure, n_steps, *, learning_rate, gamma, batch_size=np.inf, label_noise=0.0):
    """The formulas as they stand, from dense inverses; T sweeps make every row exact by causality."""
    T, eta = n_steps + 1, learning_rate
    eye, shift, one = np.eye(T), np.eye(T, k=-1), np.ones(T)
    C_2, D = np.zeros((T, T)), np.zeros(T)
    for _ in range(2 * T):
        H_w = np.linalg.solve(eye - shift - eta**2 * gamma * shift @ np.tril(C_2, -1), eta * shift)
        C_w = H_w @ C_2 @ H_w.T
        P = H_w + eta * gamma * np.tril(C_w, -1)
        C_2, C_0 = np.zeros((T, T)), np.full((T, T), measure.atom)
        for s, power in zip(measure.source_eigenvalues, measure.source_power, strict=True):
            phi = np.linalg.solve(eye + s * P, one)
            C_2 += s * power * np.outer(phi, phi)
            C_0 += power * np.outer(phi, phi)
        population = np.diag(C_0).copy()
        for s, weight in zip(measure.eigenvalues, measure.weights, strict=True):
            Phi = np.linalg.inv(eye + s * P)
            C_2 += weight * s * Phi @ np.diag(D) @ Phi.T / batch_size
            C_0 += weight * (eye - Phi) @ np.diag(D) @ (eye - Phi).T / batch_size
        D = np.diag(C_0) + label_noise**2
    return {"loss": np.diag(C_0), "population_loss": population,
            "C_0": C_0, "C_2": C_2, "C_w": C_w, "P": P, "H_w": H_w}


def literal_gradient_descent(spectrum, features, n_steps, *, learning_rate, gamma):
    """Theory section 1 with v_1 = Lambda v_0 in plain NumPy: loss and two-time functions of one run."""
    lam, coefficients = spectrum.modes(0, spectrum.n_modes)
    N = len(features)
    w, A = np.zeros(N), features.copy()
    readouts, errors, forces = [], [], []
    for _ in range(n_steps + 1):
        v0 = coefficients - A.T @ w / N
        v1 = lam * v0
        readouts.append(w)
        errors.append(v0)
        forces.append(features @ v1)
        w, A = w + learning_rate * A @ v1, A + learning_rate * gamma * np.outer(w, features.T @ (features @ v1)) / N
    w, v0, v2 = (np.array(rows) for rows in (readouts, errors, forces))
    C_0 = (v0 * lam) @ v0.T
    return {"loss": np.diag(C_0), "C_0": C_0, "C_2": v2 @ v2.T / N, "C_w": w @ w.T / N}


def solve(measure, n_steps, *, progress=None, rtol=1e-12, spectrum=SPECTRUM, **parameters):
    return solve_spectral(sf.Model(spectrum, **parameters), n_steps, measure, rtol, progress)


def assert_close(solution, expected, rtol):
    """Every curve and array within rtol of the expected one, relative to its largest entry."""
    for name, array in expected.items():
        error = np.abs(getattr(solution, name) - array).max() / max(np.abs(array).max(), 1e-300)
        assert error <= rtol, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("gamma", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("width", [12, 60])
def test_population_gradient_descent_of_one_projection(width, gamma):
    """A realised A(0): exact at every step, not only on average; 1e-10: the merged nodes, and 200 steps of rounding."""
    features = projection(SPECTRUM, width, seed=width)
    solution = solve(realised_measure(SPECTRUM, features), 200, width=width, gamma=gamma, learning_rate=0.05)
    expected = literal_gradient_descent(SPECTRUM, features, 200, learning_rate=0.05, gamma=gamma)
    assert_close(solution, expected, 1e-10)
    np.testing.assert_array_equal(solution.loss, solution.population_loss)


@pytest.mark.parametrize(
    "parameters",
    [
        {"gamma": 1.0, "batch_size": 16, "label_noise": 0.3},
        {"gamma": 0.0, "batch_size": 8},
        {"gamma": 4.0, "batch_size": 4},
        {"gamma": 2.0},
        {"gamma": 0.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("width", [6, 40])
def test_march_agrees_with_dense_inverses(width, parameters):
    """Over three blocks of times; 1e-11: the sweeps of the reference amplify rounding."""
    spectrum = sf.PowerLawSpectrum(1.5, 0.5, n_modes=10)
    measure = realised_measure(spectrum, projection(spectrum, width, seed=1))
    solution = solve(measure, 37, spectrum=spectrum, width=width, learning_rate=0.1, **parameters)
    assert_close(solution, dense_reference(measure, 37, learning_rate=0.1, **parameters), 1e-11)


@pytest.mark.parametrize("gamma", [0.0, 1.0])
@pytest.mark.parametrize("batch_size", [8, np.inf])
def test_infinite_width_is_the_two_time_form(gamma, batch_size):
    """X = Lambda; 300 rows: all panels and lanes of the march."""
    model = sf.Model(SPECTRUM, gamma=gamma, learning_rate=0.2, batch_size=batch_size, label_noise=0.1)
    two_time = solve_two_time(model, 300)
    solution = solve_spectral(model, 300, modes_as_measure(SPECTRUM), 1e-12, None)
    assert_close(solution, {name: getattr(two_time, name) for name in CURVES + TWO_TIME}, 1e-12)


@pytest.mark.parametrize("width", [8, 64, 256])
def test_test_measure_has_the_moments_of_the_features(width):
    """Masses of the deterministic equivalent: rank, trace, and power; 1e-9: midpoint rule near the band edges."""
    lam, power = modes(SPECTRUM)
    measure = averaged_measure(SPECTRUM, width)
    assert measure.weights.sum() == pytest.approx(min(width, 40), rel=1e-9)
    assert measure.trace == pytest.approx(lam.sum(), rel=1e-9)
    assert measure.total_power == pytest.approx(power.sum(), rel=1e-9)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("batch_size", [4, 32, np.inf])
@pytest.mark.parametrize("width", [8, 64, 256])
def test_averaged_measure_gives_the_two_time_form(width, batch_size, gamma):
    """Finite width without R_22, Z and all modes, at learning rates up to 0.8 of the stability bound.

    1e-8: the two forms see the same theory through different nodes.
    """
    model = sf.Model(SPECTRUM, width=width, gamma=gamma, batch_size=batch_size, label_noise=0.1)
    # The kernel grows to at most 1 + gamma q with q of n = |w*|^2 (section 7).
    growth = 0.5 * (1.0 + np.sqrt(1.0 + 4.0 * gamma * (SPECTRUM.modes(0, 40)[1] ** 2).sum()))
    model = model.replace(learning_rate=0.8 * model.stability_bound / growth)
    two_time = solve_two_time(model, 120)
    solution = solve_spectral(model, 120, averaged_measure(SPECTRUM, width), 1e-12, None)
    assert_close(solution, {name: getattr(two_time, name) for name in ("loss", *TWO_TIME)}, 1e-8)
    # The noise of batches is in feature_variance as well where there is some: only without it the parts agree.
    if batch_size == np.inf:
        assert_close(solution, {"population_loss": two_time.population_loss}, 1e-8)
    else:
        assert two_time.population_loss is None
        assert (solution.population_loss < two_time.bias + two_time.feature_variance)[1:].all()


def test_merged_nodes_act_like_all_of_them(monkeypatch):
    """Sixty nodes a band of the averaged spectrum, merged to some fifty in all; 1e-11 of the largest entries."""
    measure = averaged_measure(SPECTRUM, 64, n_points=60)
    parameters = {"width": 64, "gamma": 1.0, "batch_size": 16}
    solution = solve(measure, 80, **parameters)
    monkeypatch.setattr("scalefield.dmft.two_time.merge", lambda x, mass, *_: (x, mass, 0.0))
    unmerged = solve(measure, 80, **parameters)
    assert unmerged.n_nodes > 3 * solution.n_nodes
    assert solution.quadrature_error < 1e-11
    assert_close(solution, {name: getattr(unmerged, name) for name in CURVES + TWO_TIME}, 1e-11)


def test_horizon_is_extended_when_the_kernel_outgrows_the_estimate(monkeypatch):
    measure = averaged_measure(SPECTRUM, 64, n_points=200)
    expected = solve(measure, 100, width=64, gamma=1.0, batch_size=16)
    monkeypatch.setattr(spectral, "effective_time", lambda *_: 1.0)
    np.testing.assert_allclose(solve(measure, 100, width=64, gamma=1.0, batch_size=16).loss, expected.loss, rtol=1e-11)


def test_atom_is_the_loss_that_remains():
    measure = SpectralMeasure([1.0, 0.5], [0.3, 0.2], [1.0, 0.5], [1.0, 1.0], atom=0.125)
    solution = solve(measure, 400, learning_rate=0.3)
    assert solution.loss[0] == pytest.approx(0.625, rel=1e-14)
    assert solution.loss[-1] == pytest.approx(0.125, rel=1e-12)


def test_what_belongs_to_single_modes_is_absent(tmp_path):
    solution = solve(modes_as_measure(SPECTRUM), 20, gamma=1.0, batch_size=8)
    assert solution.method == "spectral"
    assert "spectral" in repr(solution)
    for name in ABSENT:
        assert getattr(solution, name) is None
    np.testing.assert_array_equal(np.diag(solution.loss_correlation), solution.loss)
    assert (solution.loss[1:] > solution.population_loss[1:]).all()
    solution.save(tmp_path / "solution.npz")
    loaded = sf.DMFTSolution.load(tmp_path / "solution.npz")
    for name in (*CURVES, *TWO_TIME, *ABSENT, "steps", "method", "n_nodes", "quadrature_error", "model"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(solution, name))


@pytest.mark.parametrize("parameters", [{"width": 16}, {"batch_size": 8}], ids=str)
def test_population_loss_of_the_two_time_form(parameters):
    solution = solve_two_time(sf.Model(SPECTRUM, gamma=1.0, **parameters), 30)
    np.testing.assert_array_equal(solution.population_loss, solution.bias + solution.feature_variance)


def test_two_time_arrays_that_coincide_at_infinite_width():
    solution = solve_two_time(sf.Model(SPECTRUM, gamma=1.0, batch_size=8), 30)
    assert solution.K is solution.P
    assert solution.C_1 is solution.C_2
    np.testing.assert_array_equal(solution.R_22, np.eye(31))


@pytest.mark.parametrize("batch_size", [16, np.inf])
def test_results_do_not_depend_on_the_number_of_threads(monkeypatch, batch_size):
    """Bit for bit, with trace nodes dealt to one, two, three and five threads."""
    measure = realised_measure(SPECTRUM, projection(SPECTRUM, 30, seed=3))
    solutions = []
    for threads in ("1", "2", "3", "5"):
        monkeypatch.setenv("SCALEFIELD_NUM_THREADS", threads)
        solutions.append(solve(measure, 300, width=30, gamma=1.0, batch_size=batch_size))
    for name in CURVES + TWO_TIME:
        for other in solutions[1:]:
            np.testing.assert_array_equal(getattr(solutions[0], name), getattr(other, name))


def test_progress_ends_at_the_last_step():
    calls = []
    solve(modes_as_measure(SPECTRUM), 30, progress=lambda *args: calls.append(args))
    assert calls[-1] == (30, 30)


def test_interruption_keeps_what_was_computed():
    measure = realised_measure(SPECTRUM, projection(SPECTRUM, 30, seed=3))
    parameters = {"width": 30, "gamma": 1.0, "batch_size": 16}
    raised = []

    def progress(done, total):
        if done >= 100 and not raised:
            raised.append(time.perf_counter())
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match="of 6000 steps") as stop:
        solve(measure, 6000, progress=progress, **parameters)
    assert time.perf_counter() - raised[0] < 1.0
    partial = stop.value.partial
    assert 100 <= partial.n_steps < 6000
    assert partial.C_2.shape == (partial.n_steps + 1,) * 2
    np.testing.assert_allclose(partial.loss[:101], solve(measure, 100, **parameters).loss, rtol=1e-11)


def test_divergence_names_the_step_and_keeps_the_rest():
    measure = realised_measure(SPECTRUM, projection(SPECTRUM, 20, seed=3))
    parameters = {"width": 20, "learning_rate": 3.0, "batch_size": 8}
    with pytest.raises(DivergenceError) as caught:
        solve(measure, 500, **parameters)
    step, partial = caught.value.step, caught.value.partial
    assert partial.n_steps == step - 1
    assert np.isfinite(partial.loss).all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StabilityWarning)
        np.testing.assert_allclose(partial.loss, solve(measure, step - 1, **parameters).loss, rtol=1e-10)


def test_memory_is_estimated_before_anything_is_allocated():
    with pytest.raises(InsufficientMemoryError, match=r"10000000 steps needs about .* of memory"):
        solve(modes_as_measure(SPECTRUM), 10**7)
