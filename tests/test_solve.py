r"""solve_dmft as a whole: which engine runs, where it records, what it says of its error, and what it refuses.

Theory (section 7b at gamma = 0): L(t) = mu((1-eta s)^{2t}) + atom + rho(s V), V+ = (1-eta s)^2 V + eta^2 s D, which
order 0 of the closure steps through; from a few thousand steps on it advances in logarithmic time, exactly for
gamma = 0 and with relative errors of the order of 1/t otherwise.
"""

import warnings
from functools import partial

import mpmath
import numpy as np
import pytest

import scalefield as sf
from scalefield._measures import spectral_measure
from scalefield.dmft import hierarchy
from scalefield.dmft.closure import Closure, ClosureRecords
from scalefield.errors import DivergenceError, Interrupted, ScalefieldError, StabilityWarning

TASK = sf.PowerLawSpectrum(1.5, 0.5)
MODEL = sf.Model(TASK, width=64, gamma=1.0, batch_size=32)
ENGINES = [
    # gamma, width, batch, what "auto" takes
    (0.0, 64, 32, ("closure", 0)),
    (0.0, np.inf, np.inf, ("closure", 0)),
    (1.0, 64, np.inf, ("closure", 1)),
    (1.0, np.inf, np.inf, ("closure", 1)),
    (1.0, 64, 32, ("spectral", None)),
    (1.0, np.inf, 32, ("two-time", None)),
]


@pytest.mark.parametrize(("gamma", "width", "batch_size", "engine"), ENGINES)
def test_auto_takes_an_exact_engine(gamma, width, batch_size, engine):
    model = MODEL.replace(gamma=gamma, width=width, batch_size=batch_size, label_noise=0.1)
    solution = sf.solve_dmft(model, 120)
    assert (solution.method, solution.order) == engine
    assert solution.closure_error in (None, 0.0)
    assert solution.exact_error is None
    two_time = sf.solve_dmft(model, 120, "two-time")
    # Nodes of the two engines are accurate to 1e-12 of the initial loss each, a hundred times what is left.
    np.testing.assert_allclose(solution.loss, two_time.loss, rtol=1e-10)
    np.testing.assert_allclose(solution.kernel_scale, two_time.kernel_scale, rtol=1e-10)
    np.testing.assert_array_equal(solution.steps, np.arange(121))


@pytest.mark.parametrize("learning_rate", [0.05, 0.3, 0.6])
@pytest.mark.parametrize(("width", "batch_size"), [(8, 4), (64, 32), (256, np.inf)])
@pytest.mark.parametrize("gamma", [0.0, 1.0, 5.0])
def test_engines_agree(width, batch_size, gamma, learning_rate):
    """Exact engines to 1e-8 on the infinite spectrum; learning rates relative to the bound of the grown kernel."""
    bound = MODEL.replace(gamma=0.0, width=width, batch_size=batch_size).stability_bound
    # a = 1 + gamma q with q <= sqrt(n/gamma), n = sum of w*^2 learned, of order 10 here
    model = MODEL.replace(
        width=width,
        batch_size=batch_size,
        gamma=gamma,
        learning_rate=learning_rate * bound / (1.0 + np.sqrt(10.0 * gamma)),
    )
    two_time = sf.solve_dmft(model, 100, "two-time").loss
    np.testing.assert_allclose(sf.solve_dmft(model, 100, "spectral").loss, two_time, rtol=1e-8)
    if gamma == 0.0 or batch_size == np.inf:
        np.testing.assert_allclose(sf.solve_dmft(model, 100, "closure", 1).loss, two_time, rtol=1e-8)


def test_closures_say_how_far_off_they_are():
    two_time = sf.solve_dmft(MODEL, 1000, "two-time")
    for order, bound in ((0, 3e-2), (1, 1e-3), (2, 1e-5)):
        solution = sf.solve_dmft(MODEL, 1000, "closure", order)
        error = np.abs(solution.loss / two_time.loss - 1.0).max()
        assert error < bound
        # Errors are largest in the first steps, where they are measured against the exact engine.
        np.testing.assert_allclose(solution.exact_error, error, rtol=0.2)
        assert 0.5 * error < solution.closure_error
        assert (solution.method, solution.order) == ("closure", order)
        assert solution.C_w is None
        assert solution.K is None
        assert solution.bias is None


def stepped(model: sf.Model, n_steps: int, steps: np.ndarray) -> ClosureRecords:
    """The same nodes stepped through one by one."""
    measure = spectral_measure(model, None, 1e-13, 1e12)
    horizon = hierarchy.effective_time(model, n_steps, measure.source_eigenvalues, measure.source_power)
    closure = Closure(
        measure.merged(horizon, 1e-12),
        order=0,
        learning_rate=model.learning_rate,
        gamma=model.gamma,
        inverse_batch=model.inverse_batch_size,
        noise_power=model.label_noise**2,
    )
    return closure.run_to(n_steps, steps)


@pytest.mark.parametrize("width", [4, 256, 10**5, np.inf])
@pytest.mark.parametrize(
    ("batch_size", "label_noise", "learning_rate"), [(32, 0.0, 0.1), (1, 0.0, 0.02), (4, 0.5, 0.3)]
)
def test_lazy_sgd_in_logarithmic_time_is_exact(width, batch_size, label_noise, learning_rate):
    model = sf.Model(
        TASK, width=width, batch_size=batch_size, label_noise=label_noise, learning_rate=learning_rate
    )
    steps = np.unique(np.geomspace(1, 200_000, 60).astype(int))
    expected = stepped(model, 200_000, steps)
    solution = sf.solve_dmft(model, 200_000, steps=steps)
    np.testing.assert_array_equal(solution.steps, steps)
    # The panels' polynomials are good to 1e-10 each.
    np.testing.assert_allclose(solution.loss, expected.loss, rtol=1e-9)


@pytest.mark.parametrize(
    ("width", "gamma", "batch_size", "label_noise"),
    [(256, 1.0, 32, 0.0), (10**5, 5.0, 4, 0.1), (16, 0.1, np.inf, 0.0)],
)
def test_order_zero_in_logarithmic_time(width, gamma, batch_size, label_noise):
    """Relative errors of 1/65,536 at the switch times changes of order one: 1e-5, far below the closure's own."""
    model = MODEL.replace(width=width, gamma=gamma, batch_size=batch_size, label_noise=label_noise)
    steps = np.unique(np.geomspace(1, 300_000, 50).astype(int))
    expected = stepped(model, 300_000, steps)
    solution = sf.solve_dmft(model, 300_000, "closure", 0, steps)
    np.testing.assert_allclose(solution.loss, expected.loss, rtol=1e-5)
    np.testing.assert_allclose(solution.kernel_scale, expected.kernel_scale, rtol=1e-5)


@pytest.fixture
def balanced_runs(monkeypatch):
    """Of the runs of order 0 in log time: what they were of, and how often they evaluated their equations."""
    from scalefield._native import closure_drift, closure_steps

    runs, march = [], closure_drift.march_balanced

    def recorded(run, *arguments):
        status, count, evaluations = march(run, *arguments)
        runs.append((closure_steps.ClosureRun(*run), evaluations))
        return status, count, evaluations

    monkeypatch.setattr(closure_drift, "march_balanced", recorded)
    return runs


@pytest.mark.parametrize(("width", "batch_size"), [(1, 1), (1, 32), (3, 1), (64, 1), (3, np.inf)])
def test_steps_grow_with_time_at_rest(balanced_runs, width, batch_size):
    """Each is half of t, 24 steps to 1e9 and 28 from there to 1e14, and a few towards the end; none is rejected."""
    model = MODEL.replace(width=width, batch_size=batch_size, learning_rate=0.02)
    for n_steps in (10**9, 10**14):
        sf.solve_dmft(model, n_steps, "closure", 0, [n_steps])
    early, late = (evaluations for _, evaluations in balanced_runs)
    # One whole step and two half ones, each of nine derivatives, a first and a last evaluation. The first steps are
    # not yet at rest and take more of them.
    assert late - early <= 32 * 3 * 11
    assert early <= 40 * 3 * 11


@pytest.mark.parametrize(
    ("width", "gamma", "batch_size", "learning_rate"),
    [(1, 1.0, 1, 0.02), (1, 0.01, 16, 0.05), (2, 1.0, 4, 0.05), (3, 5.0, 1, 0.005), (8, 1.0, 16, 0.05)],
)
def test_log_time_ends_where_a_step_changes_nothing(balanced_runs, width, gamma, batch_size, learning_rate):
    """At rest 1 - y = -b/(a s - b) and V = eta^2 a^2 s D/(1 - (1 + eta b - eta a s)^2), with b < 0: three equations."""
    model = MODEL.replace(width=width, gamma=gamma, batch_size=batch_size, learning_rate=learning_rate)
    solution = sf.solve_dmft(model, 10**14, "closure", 0, [10**14])
    run, _ = balanced_runs[0]
    q = (solution.kernel_scale[0] - 1.0) / gamma
    noise = solution.loss[0] / batch_size
    with mpmath.workdps(40):
        arrays = (run.eigenvalues, run.power, run.noise_eigenvalues, run.noise_weights, run.noise_gain)
        s, power, x, weights, gain = ([mpmath.mpf(float(value)) for value in array] for array in arrays)
        eta, atom = mpmath.mpf(learning_rate), mpmath.mpf(run.atom)

        def state(q, b, noise):
            a = (1 + gamma * q) * (1 + eta * b)
            w = [-b / (a * node - b) for node in s]
            variance = [eta**2 * a**2 * node * noise / (1 - (1 + eta * b - eta * a * node) ** 2) for node in x]
            means, noises = list(zip(power, s, w, strict=True)), list(zip(weights, gain, variance, strict=True))
            from_noise = mpmath.fsum(r * v for r, _, v in noises)
            c = mpmath.fsum(p * u * (1 - u) for p, _, u in means) - from_noise
            loss = mpmath.fsum(p * u**2 for p, _, u in means) + atom + from_noise
            spread = mpmath.fsum(p * node * u**2 for p, node, u in means)
            spread += mpmath.fsum(g * v + r * noise for r, g, v in noises)
            return c, loss, spread + b * c

        def change(q, b, noise):
            c, loss, spread = state(q, b, noise)
            return [2 * c + eta * spread, gamma * c / (1 + gamma * q) - b, loss / batch_size - noise]

        # c is nearly what fresh noise makes up for
        b = -0.5 * gamma * eta * noise * mpmath.fsum(weights) / (1 + gamma * q)
        rest = mpmath.findroot(change, (q, b, noise))
        loss = state(*rest)[1]
        # Rounding errors of sums of 39 terms; the kernel scale 1 + gamma q holds q to 1e-16/gamma.
        assert abs(solution.loss[0] - loss) < 1e-14 * loss
        assert abs(q - rest[0]) < 1e-15 / gamma + 1e-12 * rest[0]


@pytest.mark.parametrize("width", [1000, np.inf])
def test_order_zero_of_population_descent_in_logarithmic_time(width):
    """Gradient flow up to the learning rate, whose part of the loss fades: 1.7e-7 of it at 1e8 steps."""
    steps = np.array([10**6, 10**8, 10**10, 10**12])
    model = MODEL.replace(width=width, batch_size=np.inf, learning_rate=1e-3)
    flow = sf.solve_gradient_flow(model, 1e-3 * steps)
    solution = sf.solve_dmft(model, 10**12, "closure", 0, steps)
    np.testing.assert_allclose(solution.loss, flow.loss, rtol=2e-6)
    np.testing.assert_allclose(solution.kernel_scale, flow.kernel_scale, rtol=2e-6)


def test_lazy_curve_to_a_hundred_million_steps():
    """At infinite width and batch L(t) = sum p (1 - eta lambda)^{2t}, here for 1,000 modes summed one by one."""
    task = sf.PowerLawSpectrum(1.5, 0.5, n_modes=1000)
    solution = sf.solve_dmft(sf.Model(task, learning_rate=0.3), 10**8)
    eigenvalues, coefficients = task.modes(0, 1000)
    decay = np.exp(2.0 * np.multiply.outer(solution.steps, np.log1p(-0.3 * eigenvalues)))
    expected = decay @ (eigenvalues * coefficients**2)
    # Later on the last few modes decide alone, which nodes take together.
    visible = expected > 1e-17
    np.testing.assert_allclose(solution.loss[visible], expected[visible], rtol=1e-9)
    assert (solution.steps[0], solution.n_steps, solution.steps.size) == (0, 10**8, 201)


def test_noise_floor_of_finitely_many_modes():
    """A loss that decays exponentially to the floor of the label noise: steps are taken where log time has no use."""
    model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5, n_modes=5), batch_size=8, label_noise=0.3, learning_rate=0.2)
    steps = np.array([0, 10, 5000, 100_000])
    np.testing.assert_allclose(
        sf.solve_dmft(model, 100_000, steps=steps).loss, stepped(model, 100_000, steps).loss, rtol=1e-9
    )


# ----------------------------------------------------------------------------------------------------- recording


def test_recorded_steps():
    steps = np.array([0, 3, 10, 50])
    for method in ("two-time", "spectral", "closure"):
        whole, some = (sf.solve_dmft(MODEL, 50, method, steps=chosen) for chosen in (None, steps))
        np.testing.assert_array_equal(whole.steps, np.arange(51))
        np.testing.assert_array_equal(some.steps, steps)
        np.testing.assert_array_equal(some.loss, whole.loss[steps])
        np.testing.assert_array_equal(some.kernel_scale, whole.kernel_scale[steps])
        assert some.n_steps == 50
        if method != "closure":
            np.testing.assert_array_equal(some.C_w, whole.C_w[np.ix_(steps, steps)])
            np.testing.assert_array_equal(some.P, whole.P[np.ix_(steps, steps)])
    assert sf.solve_dmft(MODEL, 10_000, "closure", 0).steps.size == 10_001
    long = sf.solve_dmft(MODEL, 10_001, "closure", 0)
    assert (long.steps.size, long.steps[-1]) == (201, 10_001)
    assert (np.diff(long.steps) > 0).all()


def test_save_and_load(tmp_path):
    for method in ("spectral", "closure"):
        solution = sf.solve_dmft(MODEL, 30, method)
        solution.save(tmp_path / "solution.npz")
        loaded = sf.DMFTSolution.load(tmp_path / "solution.npz")
        np.testing.assert_array_equal(loaded.loss, solution.loss)
        assert (loaded.method, loaded.order, loaded.exact_error) == (method, solution.order, solution.exact_error)
        assert repr(loaded) == repr(solution)


def test_progress_reaches_the_end():
    for method, gamma, n_steps in (("closure", 1.0, 3000), ("auto", 0.0, 10**6), ("spectral", 1.0, 200)):
        calls = []
        model = MODEL.replace(gamma=gamma)
        sf.solve_dmft(model, n_steps, method, progress=lambda *args, calls=calls: calls.append(args))
        assert calls[-1] == (n_steps, n_steps)
        assert calls == sorted(calls)


# ------------------------------------------------------------------------------------------------- one projection


def test_realised_projection():
    """One A(0): exact engines agree, small steps follow its gradient flow, and no other seed's."""
    task = sf.PowerLawSpectrum(1.5, 0.5, n_modes=50)
    model = sf.Model(task, width=12, gamma=1.0, learning_rate=1e-3)
    closure, spectral = (sf.solve_dmft(model, 2000, method, 1, projection=3) for method in ("closure", "spectral"))
    np.testing.assert_allclose(closure.loss, spectral.loss, rtol=1e-10)
    flow = sf.solve_gradient_flow(model, closure.steps[1:] * 1e-3, projection=3)
    # Euler steps: errors of half a step's change, about 1e-3 of what the loss changes
    np.testing.assert_allclose(closure.loss[1:], flow.loss, rtol=3e-3)
    other = sf.solve_dmft(model, 2000, projection=4).loss
    assert np.abs(other / closure.loss - 1.0).max() > 0.02


# ----------------------------------------------------------------------------------------------------- what fails


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_divergence(gamma):
    model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5, 20), width=8, gamma=gamma, batch_size=4, learning_rate=1.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StabilityWarning)
        with pytest.raises(DivergenceError) as caught:
            sf.solve_dmft(model, 100_000, "closure")
    assert caught.value.step > 0
    partial = caught.value.partial
    assert (partial.steps < caught.value.step).all()
    assert np.isfinite(partial.loss).all()


def test_lazy_descent_beyond_the_bound_diverges():
    model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5, 20), learning_rate=2.1)
    with pytest.warns(StabilityWarning), pytest.raises(DivergenceError):
        sf.solve_dmft(model, 10_000)


def test_interruption_keeps_what_was_done():
    def stop(done, _):
        if done > 2000:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        sf.solve_dmft(MODEL, 10_000_000, "closure", 1, np.arange(0, 10_000_001, 100), progress=stop)
    partial = caught.value.partial
    assert partial.steps.size > 20
    np.testing.assert_allclose(
        partial.loss[:20], sf.solve_dmft(MODEL, 2000, "closure", 1).loss[:2000:100], rtol=1e-9
    )


def test_late_instability_is_reported():
    """Feature learning carries the kernel past 2/eta: theory section 6 saw it at eta 0.25-0.3, gamma 4."""
    model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5, 200), width=64, gamma=4.0, learning_rate=0.3)
    with pytest.warns(StabilityWarning, match="grown past the stability bound at step"):
        sf.solve_dmft(model, 2000)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "fast"}, ValueError, "method must be one of 'auto', 'two-time', 'spectral', 'closure', got 'fast'"),
        ({"method": 2}, TypeError, "method must be a string"),
        ({"order": 3}, ValueError, "order must be 0, 1 or 2, got 3"),
        ({"order": -1}, ValueError, "order must be"),
        ({"order": 1.5}, ValueError, "order must be"),
        ({"steps": [0, 5, 5]}, ValueError, "steps must increase"),
        ({"steps": [-1, 5]}, ValueError, "steps must increase"),
        ({"steps": [0, 101]}, ValueError, "n_steps = 100"),
        ({"steps": []}, ValueError, "steps must be a one-dimensional array"),
        ({"steps": [0.5]}, ValueError, "whole numbers"),
        ({"steps": [np.nan]}, ValueError, "steps must be"),
        ({"steps": "log"}, TypeError, "steps must be an array of integers"),
        ({"projection": "typical"}, ValueError, "projection must be 'average' or a seed"),
        ({"projection": -1}, ValueError, "projection must be"),
        ({"projection": 0, "method": "two-time"}, ValueError, "projection must be 'average' for method 'two-time'"),
        ({"nodes": TASK.quadrature(), "method": "closure"}, ValueError, "nodes go with method 'two-time'"),
        ({"rtol": 1.0}, ValueError, "rtol must be at most 0.1"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        sf.solve_dmft(MODEL, 100, **arguments)


def test_infinite_spectra_have_realised_projections():
    """That of run 0, whose loss lazy population descent gives without any averaging; the average is another curve."""
    model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5), width=8)
    steps = [0, 10, 100]
    realised, average = (sf.solve_dmft(model, 100, steps=steps, projection=p).loss for p in (0, "average"))
    run = sf.simulate(model, 100, seed=0, record=steps).loss[0]
    # Nodes merged to an error of 1e-12 of the sums.
    np.testing.assert_allclose(realised, run, rtol=1e-10)
    assert (np.abs(average / run - 1.0)[1:] > 1e-3).all()


def test_too_many_single_steps_are_refused(monkeypatch):
    monkeypatch.setattr(hierarchy, "_in_log_time", lambda *_: ("unresolved", np.empty(0), np.empty(0), 0.0))
    with pytest.raises(ScalefieldError, match="ask for fewer"):
        sf.solve_dmft(MODEL.replace(gamma=0.0), 10**9)


def test_same_answer_every_time(monkeypatch):
    solve = partial(sf.solve_dmft, MODEL, 3000, "closure")
    first = solve().loss
    monkeypatch.setenv("SCALEFIELD_NUM_THREADS", "1")
    np.testing.assert_array_equal(solve().loss, first)
