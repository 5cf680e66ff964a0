r"""The two-time engine against references, closed forms and the properties the theory has.

Theory (section 3): all two-time functions are causal and follow row by row. At gamma = 0 they reduce to
L(t) = mu((1 - eta s)^{2t}) + (eta^2/B) sum_{t'<t} rho(s^2 (1 - eta s)^{2(t-1-t')}) D(t') with the spectral
measures mu, rho of the random-feature kernel, whose resolvent solves m = 1/(1 + (1/N) sum_k lambda_k/(z +
lambda_k m)) (section 6). At infinite width and batch L(t) = sum_k lambda_k w*_k^2 (1 - eta lambda_k)^{2t}.
"""

import signal
import threading
import time
import warnings
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import scalefield as sf
from reference_dmft import dense_reference, march_reference
from scalefield.dmft import two_time
from scalefield.errors import (
    DivergenceError,
    InsufficientMemoryError,
    Interrupted,
    ScalefieldError,
    StabilityWarning,
)

TWO_TIME = ("C_0", "C_1", "C_2", "C_w", "R_13", "R_22", "K", "P", "H_w")
CURVES = ("loss", "bias", "feature_variance", "sgd_variance")

solve_two_time = partial(sf.solve_dmft, method="two-time")

SETTINGS = [
    {"width": 24, "gamma": 1.0, "batch_size": 16, "label_noise": 0.3},
    {"width": 24, "gamma": 0.0, "batch_size": 16},
    {"width": 8, "gamma": 4.0, "batch_size": 4},
    {"width": 24, "gamma": 1.0},
    {"gamma": 2.0, "batch_size": 8},
    {"gamma": 2.0},
    {"batch_size": 8, "label_noise": 1.0},
    {},
]


def reference(function, spectrum, n_steps, learning_rate, **parameters):
    """Run a reference on every mode of `spectrum`, one node each."""
    lam, coefficients = spectrum.modes(0, spectrum.n_modes)
    nodes = (lam, lam * coefficients**2, np.ones_like(lam))
    return function(*nodes, n_steps, learning_rate=learning_rate, **parameters)


def assert_close(solution, expected, rtol):
    """Every curve and array within rtol of the expected one, relative to its largest entry."""
    for name, array in expected.items():
        scale = max(np.abs(array).max(), 1e-300)
        error = np.abs(getattr(solution, name) - array).max() / scale
        assert error <= rtol, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("parameters", SETTINGS, ids=str)
def test_march_agrees_with_the_plain_march(parameters):
    """All arrays over several blocks of 32 rows.

    1e-12: rounding of sums of some hundred terms, grown over 150 steps; measured 1e-14.
    """
    spectrum = sf.PowerLawSpectrum(1.5, 0.5, n_modes=40)
    solution = solve_two_time(sf.Model(spectrum, learning_rate=0.2, **parameters), 150)
    expected = reference(march_reference, spectrum, 150, 0.2, **parameters)
    assert_close(solution, expected, 1e-12)


def test_march_agrees_with_the_plain_march_across_all_lanes():
    """300 rows: every one of the 8 lanes of 32-row panels has work, and one has two panels."""
    spectrum = sf.Spectrum([1.0, 0.3, 0.1, 0.03], [0.5, 1.0, 2.0, 4.0])
    parameters = {"width": 12, "gamma": 1.5, "batch_size": 8, "label_noise": 0.2}
    solution = solve_two_time(sf.Model(spectrum, learning_rate=0.1, **parameters), 300)
    assert_close(solution, reference(march_reference, spectrum, 300, 0.1, **parameters), 1e-12)


@pytest.mark.parametrize("parameters", SETTINGS, ids=str)
def test_march_agrees_with_dense_inverses(parameters):
    """Full matrices and dense inverses know nothing of the marching order. 1e-11: the sweeps amplify rounding."""
    spectrum = sf.PowerLawSpectrum(1.5, 0.5, n_modes=12)
    solution = solve_two_time(sf.Model(spectrum, learning_rate=0.1, **parameters), 14)
    assert_close(solution, reference(dense_reference, spectrum, 14, 0.1, **parameters), 1e-11)


@pytest.mark.parametrize("n_modes", [1, 7, 5000])
def test_closed_form_at_infinite_width_and_batch(n_modes):
    """L(t) = sum_k lambda_k w*_k^2 (1 - eta lambda_k)^{2t}. 1e-12: the solver's quadrature."""
    spectrum = sf.PowerLawSpectrum(1.3, 0.7, n_modes=n_modes)
    lam, w = spectrum.modes(0, n_modes)
    t = np.arange(201)
    expected = ((1.0 - 0.3 * lam[:, None]) ** (2 * t) * (lam * w**2)[:, None]).sum(axis=0)
    solution = solve_two_time(sf.Model(spectrum, learning_rate=0.3), 200)
    np.testing.assert_allclose(solution.loss, expected, rtol=0, atol=1e-12 * expected[0])
    np.testing.assert_allclose(solution.loss, solution.bias, rtol=1e-15)
    assert not solution.feature_variance.any()
    assert not solution.sgd_variance.any()


def lazy_measures(spectrum, width, functions):
    """mu(f) and rho(f) for polynomials f, from the resolvents on a circle around the spectrum (section 6).

    m(z) comes from Newton's method on its own equation, continued along the circle, not from the explicit
    parametrisation that the package uses.
    """
    lam, w = spectrum.modes(0, spectrum.n_modes)
    power = lam * w**2
    edge = lam.max() * (1.0 + np.sqrt(spectrum.n_modes / width)) ** 2
    angles = 2.0 * np.pi * (np.arange(600) + 0.5) / 600
    zeta = 0.5 * edge + 0.55 * edge * np.exp(1j * angles)
    mu, rho = np.zeros(len(functions), complex), np.zeros(len(functions), complex)
    m = 1.0 + 0.0j
    for value, direction in zip(zeta, 0.55 * edge * np.exp(1j * angles), strict=True):
        z = -value
        for _ in range(100):
            # F(m) = m (1 + (1/N) sum lambda/(z + lambda m)) - 1
            q = lam / (z + lam * m)
            residual = m * (1.0 + q.sum() / width) - 1.0
            slope = 1.0 + q.sum() / width - m * (q**2).sum() / width
            step = residual / slope
            m -= step
            if abs(step) < 1e-15:
                break
        # (1/2 pi i) contour integral of f(zeta) <(zeta - X)^-1>, and (X + z)^-1 = -(zeta - X)^-1
        source = -(power / (z + lam * m)).sum()
        trace = -(1.0 / (z + lam * m)).sum()
        f = np.array([function(value) for function in functions])
        mu += f * source * direction / 600
        rho += f * trace * direction / 600
    return mu.real, rho.real


@pytest.mark.parametrize(("width", "batch_size"), [(20, np.inf), (20, 8), (60, 4), (5, 16)])
def test_lazy_dynamics_against_the_resolvent_contour(width, batch_size):
    """Lazy SGD and gradient descent at finite width, 24 steps; 1e-10: trapezoid rule with 600 points."""
    spectrum, eta, n_steps = sf.PowerLawSpectrum(1.5, 0.75, n_modes=30), 0.1, 24
    bias = [lambda s, t=t: (1.0 - eta * s) ** (2 * t) for t in range(n_steps + 1)]
    noise = [lambda s, t=t: s**2 * (1.0 - eta * s) ** (2 * t) for t in range(n_steps)]
    mu, _ = lazy_measures(spectrum, width, bias)
    _, rho = lazy_measures(spectrum, width, noise)
    expected = np.zeros(n_steps + 1)
    for t in range(n_steps + 1):
        expected[t] = mu[t] + eta**2 / batch_size * (rho[:t][::-1] @ expected[:t])
    solution = solve_two_time(sf.Model(spectrum, width=width, learning_rate=eta, batch_size=batch_size), n_steps)
    np.testing.assert_allclose(solution.loss, expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("alpha", "beta", "parameters"),
    [
        (1.1, 0.3, {"width": 64, "gamma": 2.0, "batch_size": 8}),
        (1.5, 0.5, {"width": 256, "gamma": 1.0, "batch_size": 32}),
        (3.0, 1.25, {"gamma": 1.0, "batch_size": 4}),
        (2.0, 2.0, {"width": 16}),
    ],
)
def test_merged_nodes_act_like_all_of_them(alpha, beta, parameters, monkeypatch):
    """A million modes merged for 200 steps against some 200 quadrature nodes with no merging; 1e-11 of the start."""
    model = sf.Model(sf.PowerLawSpectrum(alpha, beta, n_modes=10**6), learning_rate=0.1, **parameters)
    solution = solve_two_time(model, 200)
    monkeypatch.setattr(two_time, "merge", lambda x, mass, *_: (x, mass, 0.0))
    unmerged = solve_two_time(model, 200, nodes=model.spectrum.quadrature(rtol=1e-12))
    assert unmerged.n_nodes > 3 * solution.n_nodes
    for name in ("loss", "C_1", "R_13", "K"):
        expected = getattr(unmerged, name)
        assert np.abs(getattr(solution, name) - expected).max() <= 1e-11 * np.abs(expected).max(), name


def test_horizon_is_extended_when_the_kernel_outgrows_the_estimate(monkeypatch):
    """With a far too short first estimate the march is repeated and ends at the same curve."""
    model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5), width=64, gamma=1.0, batch_size=16)
    expected = solve_two_time(model, 100)
    monkeypatch.setattr(two_time, "initial_effective_time", lambda *_: 1.0)
    np.testing.assert_allclose(solve_two_time(model, 100).loss, expected.loss, rtol=1e-11)


def test_infinite_spectrum_is_the_limit_of_many_modes():
    """alpha = 3: modes beyond 1e7 carry 1e-14 of the trace and of the target."""
    losses = [
        solve_two_time(sf.Model(sf.PowerLawSpectrum(3.0, 0.8, n), width=32, gamma=1.0, batch_size=8), 100).loss
        for n in (None, 10**7)
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-11)


def test_quadrature_error_admits_a_horizon_that_was_never_reached(monkeypatch):
    """After three marches that outgrew their nodes the solution says that its sums are not resolved."""
    model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5), width=64, gamma=1.0, batch_size=16)
    assert solve_two_time(model, 60).quadrature_error < 1e-11
    marches = []

    def always_further(solution):
        marches.append(solution)
        return 1e3 ** len(marches)

    monkeypatch.setattr(two_time, "_reached_time", always_further)
    assert solve_two_time(model, 60).quadrature_error == np.inf
    assert len(marches) == 3


@pytest.mark.parametrize("alpha", [6.0, 60.0])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_steep_spectra(alpha, gamma):
    """Eigenvalues down to underflow: only the first modes matter. 1e-12: the sums' accuracy."""
    few, many = (
        solve_two_time(sf.Model(sf.PowerLawSpectrum(alpha, 1.0, n), width=16, gamma=gamma, batch_size=8), 60)
        for n in (40 if alpha > 50 else 4000, None)
    )
    np.testing.assert_allclose(few.loss, many.loss, rtol=1e-12)


@st.composite
def small_models(draw):
    n = draw(st.integers(1, 6))
    eigenvalues = draw(st.lists(st.floats(0.01, 1.0), min_size=n, max_size=n))
    coefficients = draw(st.lists(st.floats(-1.5, 1.5), min_size=n, max_size=n))
    # Stable throughout: eta (1 + gamma q) s_max < 2 with q < |w*|^2 and s_max < lambda_1 (1 + sqrt(n/N))^2.
    return sf.Model(
        sf.Spectrum(eigenvalues, coefficients),
        width=draw(st.sampled_from([4, 50, np.inf])),
        gamma=draw(st.sampled_from([0.0, 0.5, 2.0])),
        learning_rate=draw(st.floats(0.01, 0.04)),
        batch_size=draw(st.sampled_from([8, 100, np.inf])),
        label_noise=draw(st.sampled_from([0.0, 0.4])),
    )


@settings(max_examples=25)
@given(model=small_models(), shorter=st.integers(1, 40), longer=st.integers(41, 80))
def test_first_steps_of_a_longer_run_are_the_shorter_run(model, shorter, longer):
    """Later steps never alter earlier rows; few modes, so nothing is merged and equality is to rounding."""
    short, long = solve_two_time(model, shorter), solve_two_time(model, longer)
    for name in CURVES:
        np.testing.assert_allclose(getattr(long, name)[: shorter + 1], getattr(short, name), rtol=1e-12, atol=1e-14)
    for name in TWO_TIME:
        part = getattr(long, name)[: shorter + 1, : shorter + 1]
        np.testing.assert_allclose(part, getattr(short, name), rtol=1e-11, atol=1e-13)


@settings(max_examples=25)
@given(model=small_models())
def test_structure_of_the_two_time_functions(model):
    """Causality, symmetry, positive semidefiniteness, the split of the loss, monotone bias of a convex problem."""
    n_steps = 40
    solution = solve_two_time(model, n_steps)
    for name in ("K", "P", "H_w"):
        assert not np.triu(getattr(solution, name)).any(), name
    for name in ("R_13", "R_22"):
        assert not np.triu(getattr(solution, name), 1).any(), name
    np.testing.assert_array_equal(np.diag(solution.R_22), np.ones(n_steps + 1))
    np.testing.assert_allclose(np.diag(solution.R_13), -model.spectrum.eigenvalues.sum(), rtol=1e-12)
    for name in ("C_0", "C_1", "C_2", "C_w"):
        matrix = getattr(solution, name)
        np.testing.assert_array_equal(matrix, matrix.T)
        # Rounding of a sum of squares: a few epsilon times the trace.
        assert np.linalg.eigvalsh(matrix).min() >= -1e-12 * max(np.trace(matrix), 1e-300), name
    np.testing.assert_array_equal(np.diag(solution.C_0), solution.loss)
    parts = solution.bias + solution.feature_variance + solution.sgd_variance
    np.testing.assert_allclose(parts, solution.loss, rtol=1e-14)
    for name in CURVES:
        assert (getattr(solution, name) >= 0.0).all()
    assert solution.loss[0] == pytest.approx(model.spectrum.total_target_power, rel=1e-13, abs=1e-300)


@settings(max_examples=15)
@given(model=small_models(), seed=st.integers(0, 2**32 - 1))
def test_mode_order_does_not_matter(model, seed):
    order = np.random.default_rng(seed).permutation(model.spectrum.n_modes)
    spectrum = sf.Spectrum(model.spectrum.eigenvalues[order], model.spectrum.target_coefficients[order])
    loss = solve_two_time(model.replace(spectrum=spectrum), 30).loss
    np.testing.assert_array_equal(loss, solve_two_time(model, 30).loss)


@settings(max_examples=15)
@given(model=small_models(), copies=st.integers(2, 5))
def test_splitting_a_mode_into_weights_does_not_matter(model, copies):
    """c modes of one eigenvalue that share a target power equal one node of weight c."""
    spectrum = model.spectrum
    repeated = sf.Spectrum(
        np.repeat(spectrum.eigenvalues, copies), np.repeat(spectrum.target_coefficients, copies)
    )
    nodes = sf.SpectralNodes(
        spectrum.eigenvalues, spectrum.target_power, np.full(spectrum.n_modes, float(copies))
    )
    with warnings.catch_warnings():
        # More modes may carry a run past the stability bound; both runs do the same.
        warnings.simplefilter("ignore", StabilityWarning)
        split = solve_two_time(model.replace(spectrum=repeated), 30).loss
        whole = solve_two_time(model, 30, nodes=nodes).loss
    np.testing.assert_allclose(split, whole, rtol=1e-10, atol=1e-13)


def test_limits_of_width_and_batch():
    """Large width and batch approach infinite ones as 1/N and 1/B."""
    model = sf.Model(sf.PowerLawSpectrum(2.0, 0.8, 50), gamma=1.0, learning_rate=0.2)
    limit = solve_two_time(model, 50).loss[-1]
    for name in ("width", "batch_size"):
        near, far = (solve_two_time(model.replace(**{name: size}), 50).loss[-1] - limit for size in (10**6, 10**7))
        assert abs(far) < 1e-4 * limit
        assert near / far == pytest.approx(10.0, rel=1e-2)


def test_lazy_limit_of_gamma():
    model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5, 50), width=30, batch_size=8, learning_rate=0.2)
    np.testing.assert_allclose(
        solve_two_time(model.replace(gamma=1e-9), 50).loss, solve_two_time(model, 50).loss, rtol=1e-6
    )


def test_results_do_not_depend_on_the_number_of_threads(monkeypatch):
    """Bit for bit: chunks, panels and the order of sums are fixed by the sizes alone."""
    model = sf.Model(sf.PowerLawSpectrum(1.2, 0.5), width=64, gamma=1.0, batch_size=16)
    solutions = []
    for threads in ("1", "2", "3"):
        monkeypatch.setenv("SCALEFIELD_NUM_THREADS", threads)
        solutions.append(solve_two_time(model, 300))
    for name in CURVES + TWO_TIME:
        for other in solutions[1:]:
            np.testing.assert_array_equal(getattr(solutions[0], name), getattr(other, name))


def test_concurrent_calls_do_not_disturb_each_other():
    model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5, 100), width=32, gamma=1.0, batch_size=16)
    expected = solve_two_time(model, 100).loss
    losses = [None] * 4

    def solve(index):
        losses[index] = solve_two_time(model, 100).loss

    threads = [threading.Thread(target=solve, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for loss in losses:
        np.testing.assert_array_equal(loss, expected)


def test_save_and_load_return_the_same_solution(tmp_path):
    model = sf.Model(sf.datasets.digits_spectrum(), width=16, gamma=1.0, batch_size=np.inf)
    solution = solve_two_time(model, 20)
    solution.save(tmp_path / "solution.npz")
    loaded = sf.DMFTSolution.load(tmp_path / "solution.npz")
    assert loaded.model == model
    assert (loaded.method, loaded.n_nodes) == (solution.method, solution.n_nodes)
    assert loaded.quadrature_error == solution.quadrature_error
    for name in (*CURVES, *TWO_TIME, "steps"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(solution, name))
        assert getattr(loaded, name).dtype == getattr(solution, name).dtype
    with pytest.raises(ScalefieldError, match="holds DMFTSolution, not a Simulation"):
        sf.Simulation.load(tmp_path / "solution.npz")


def test_solution_is_frozen_and_readable():
    solution = solve_two_time(sf.Model(sf.PowerLawSpectrum(2.0, 0.5, 10), width=8), 5)
    with pytest.raises(AttributeError):
        solution.loss = None
    with pytest.raises(ValueError, match="read-only"):
        solution.loss[0] = 0.0
    assert "width 8" in repr(solution)
    assert "5 steps" in repr(solution)
    np.testing.assert_array_equal(solution.steps, np.arange(6))
    assert solution.loss_correlation is solution.C_0


def test_progress_ends_at_the_last_step():
    calls = []
    solve_two_time(sf.Model(sf.PowerLawSpectrum(2.0, 0.5, 10)), 30, progress=lambda *args: calls.append(args))
    assert calls[-1] == (30, 30)
    assert calls == sorted(calls)


def test_interruption_keeps_what_was_computed():
    """An interrupt in the main thread stops the team within a second and returns exact rows."""
    model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5), width=64, gamma=1.0, batch_size=16)
    raised = []

    def progress(done, total):
        if done >= 100 and not raised:
            raised.append(time.perf_counter())
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match="of 6000 steps") as stop:
        solve_two_time(model, 6000, progress=progress)
    assert time.perf_counter() - raised[0] < 1.0
    partial = stop.value.partial
    assert 100 <= partial.n_steps < 6000
    assert partial.C_1.shape == (partial.n_steps + 1,) * 2
    # The longer horizon has other nodes: equal to the quadrature's accuracy.
    np.testing.assert_allclose(partial.loss[:101], solve_two_time(model, 100).loss, rtol=1e-11)
    assert isinstance(stop.value, KeyboardInterrupt)


def test_divergence_names_the_step_and_keeps_the_rest():
    model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5, 30), width=20, learning_rate=3.0, batch_size=8)
    with pytest.warns(StabilityWarning, match="stability bound"), pytest.raises(DivergenceError) as caught:
        solve_two_time(model, 500)
    step, partial = caught.value.step, caught.value.partial
    assert f"step {step}" in str(caught.value)
    assert partial.n_steps == step - 1
    assert np.isfinite(partial.loss).all()
    with pytest.warns(StabilityWarning):
        np.testing.assert_allclose(partial.loss, solve_two_time(model, step - 1).loss, rtol=1e-10)


@pytest.mark.parametrize(("factor", "diverges"), [(0.97, False), (1.03, True)])
@pytest.mark.parametrize(("width", "batch_size"), [(np.inf, 2), (40, np.inf), (40, 4)])
def test_stability_bound_of_lazy_dynamics(width, batch_size, factor, diverges):
    """On either side of the bound the late loss shrinks or grows."""
    model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5, 20), width=width, batch_size=batch_size)
    model = model.replace(learning_rate=factor * model.stability_bound)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StabilityWarning)
        try:
            loss = solve_two_time(model, 600).loss
        except DivergenceError as error:
            loss = error.partial.loss
    assert (loss[-1] > loss[len(loss) // 2]) == diverges


def test_late_instability_is_reported():
    """The kernel's growth carries a run that began stable past eta a s_max = 2 (theory section 6)."""
    model = sf.Model(sf.PowerLawSpectrum(1.1, 0.3, 1000), gamma=5.0, learning_rate=0.1)
    with pytest.warns(StabilityWarning, match="grown past the stability bound at step"):
        solution = solve_two_time(model, 250)
    step = solution.unstable_from
    scale = 1.0 + 5.0 * np.diag(solution.C_w)
    assert 0.1 * scale[step - 1] < 2.0 <= 0.1 * scale[step]
    assert solve_two_time(model, step - 1).unstable_from is None


def test_memory_is_estimated_before_anything_is_allocated():
    model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5))
    with pytest.raises(InsufficientMemoryError, match=r"10000000 steps needs about .* of memory"):
        solve_two_time(model, 10**7)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": 3}, TypeError, "model must be a Model, got 3 of type int"),
        ({"n_steps": 0}, ValueError, "n_steps must be an integer of at least 1, got 0"),
        ({"n_steps": 2.5}, ValueError, "n_steps must be an integer of at least 1, got 2.5"),
        ({"n_steps": "many"}, TypeError, "n_steps must be an integer, got 'many' of type str"),
        ({"n_steps": True}, TypeError, "n_steps must be an integer, got True"),
        ({"rtol": 0.0}, ValueError, "rtol must be a finite number at least 1e-13, got 0.0"),
        ({"rtol": 0.5}, ValueError, "rtol must be at most 0.1, got 0.5"),
        ({"nodes": [1.0]}, TypeError, r"nodes must be SpectralNodes, got \[1.0\] of type list"),
    ],
)
def test_bad_input(arguments, error, message):
    valid = {"model": sf.Model(sf.PowerLawSpectrum(2.0, 0.5, 5)), "n_steps": 3}
    with pytest.raises(error, match=message):
        solve_two_time(**(valid | arguments))


def test_task_without_target_stays_at_zero_loss():
    solution = solve_two_time(sf.Model(sf.Spectrum([1.0, 0.5], [0.0, 0.0]), width=8, batch_size=4, gamma=1.0), 20)
    assert not solution.loss.any()
