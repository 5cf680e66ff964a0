r"""Gradient flow in closed form against other integrators, the model itself, and the properties the theory has.

Theory (section 7). Each component s of X = Lambda^{1/2} (A(0)^T A(0)/N) Lambda^{1/2} has a learned fraction with

    dy_s/dtau = a s (1 - y_s) + b y_s ,   a = 1 + gamma q ,   q (1 + gamma q) = n = mu(y^2/s) ,
    b = gamma q mu(y (1 - y))/n ,         L = mu((1 - y)^2) + atom .

Oracles: this equation as it stands, by scipy's integrators, on explicit nodes; the model's own w and G with a drawn
A(0), in continuous time and by gradient descent; the two-time equations extrapolated to learning rate 0; closed forms
at gamma = 0; real nodes of the deterministic equivalent in place of the contour.
"""

import threading
import warnings
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from threadpoolctl import threadpool_limits

import scalefield as sf
from scalefield import flow
from scalefield._native import literal_steps, rng
from scalefield.errors import ScalefieldError
from strategies import models

CURVES = ("loss", "kernel_scale", "spike", "alignment", "local_exponent", "effective_time")

TASKS = {
    "power law": sf.PowerLawSpectrum(1.5, 0.5, n_modes=20),
    "easy": sf.PowerLawSpectrum(1.3, 1.4, n_modes=12),
    "ties and zeros": sf.Spectrum([1.0, 1.0, 0.3, 0.3, 0.3, 0.05, 0.0], [0.5, -0.2, 1.0, 0.0, 2.0, 3.0, 4.0]),
    "one mode": sf.Spectrum([0.7], [1.3]),
    "wide": sf.Spectrum([30.0, 1.0, 1e-3], [0.1, 1.0, 20.0]),
}

projections = pytest.mark.skipif(
    not hasattr(sf.SpectralMeasure, "from_projection"), reason="needs SpectralMeasure.from_projection"
)


def positive_modes(spectrum):
    """Eigenvalues and powers of all modes with positive eigenvalue, and the power of those with none."""
    lam, coefficients = spectrum.modes(0, spectrum.n_modes)
    power = lam * coefficients**2
    return lam[lam > 0.0], power[lam > 0.0]


def flow_reference(s, mass, times, *, gamma, atom=0.0, probes=()):
    """The equation of section 7 for x = 1 - y on nodes (s, mass); y of the probes, which have no mass."""
    s = np.concatenate([s, probes])
    mass = np.concatenate([mass, np.zeros(len(probes))])

    def scales(y):
        n = mass @ (y * y / s)
        ratio = 2.0 / (1.0 + np.sqrt(1.0 + 4.0 * gamma * n))
        return 1.0 + gamma * n * ratio, gamma * ratio * (mass @ (y * (1.0 - y)))

    def slope(_, x):
        a, b = scales(1.0 - x)
        return -a * s * x - b * (1.0 - x)

    def jacobian(_, x):
        y = 1.0 - x
        n = mass @ (y * y / s)
        root = np.sqrt(1.0 + 4.0 * gamma * n)
        ratio, inner = 2.0 / (1.0 + root), mass @ (y * x)
        a, b = scales(y)
        n_x = -2.0 * mass * y / s
        a_x = gamma * n_x / root
        b_x = gamma * (ratio * mass * (y - x) - inner * ratio**2 * gamma * n_x / root)
        return np.diag(b - a * s) - np.outer(s * x, a_x) - np.outer(y, b_x)

    # Many small systems of equations, which threads of BLAS make slower, on a busy machine a hundred times.
    with threadpool_limits(1, "blas"):
        result = solve_ivp(
            slope, (0.0, times[-1]), np.ones(s.size), "Radau", times, rtol=1e-11, atol=1e-15, jac=jacobian
        )
    assert result.success
    x = result.y.T
    a, _ = np.array([scales(1.0 - row) for row in x]).T
    y = 1.0 - x
    spike = gamma / a * (y * y @ mass)
    # K = a X + (gamma/a) (y u)(y u)^T, in the components where X is diagonal
    task = a * (mass @ s) + gamma / a * (y @ mass) ** 2
    norm = np.sqrt(a**2 * (s[: s.size - len(probes)] ** 2).sum() + 2.0 * gamma * (y * y @ (mass * s)) + spike**2)
    return {
        "loss": x * x @ mass + atom,
        "kernel_scale": a,
        "spike": spike,
        "alignment": task / (norm * (mass.sum() + atom)),
        "probes": y[:, s.size - len(probes) :],
    }


# ------------------------------------------------------------------------------------- the equation itself


@pytest.mark.parametrize("gamma", [0.0, 0.5, 10.0])
@pytest.mark.parametrize("task", TASKS)
def test_infinite_width_agrees_with_a_general_integrator(task, gamma):
    """1e-8, the flow's own rtol; the integrator is asked for 1e-11."""
    s, mass = positive_modes(TASKS[task])
    times = np.concatenate([[0.0], np.geomspace(1e-2, 30.0 / s.min() if task == "wide" else 100.0, 25)])
    probes = np.array([1e-4, 0.02, 0.5, 3.0])
    expected = flow_reference(s, mass, times, gamma=gamma, probes=np.maximum(probes, 1e-12))
    # What the integrator's absolute error of 1e-15 does not reach.
    clear = expected["loss"] > 1e-9
    solution = sf.solve_gradient_flow(sf.Model(TASKS[task], gamma=gamma), times)
    for name in ("loss", "kernel_scale", "spike", "alignment"):
        found = getattr(solution, name)[clear]
        np.testing.assert_allclose(found, expected[name][clear], rtol=3e-8, atol=1e-20, err_msg=name)
    np.testing.assert_allclose(solution.learned_fraction(probes), expected["probes"], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("gamma", [0.1, 4.0, 1e3])
@pytest.mark.parametrize("task", ["power law", "easy", "one mode"])
def test_the_end_of_finite_spectra_keeps_its_digits(task, gamma):
    """Losses to 1e-55 of the first, where they fall exponentially, at the flow's own rtol.

    With u as the time, a = 1 + gamma mu(r^2/s), g = a^{-1/2} and d = g - r, the equations r' = s d and
    d' = -gamma a^{-3/2} mu(r d) - s d have d on the right of either: an integrator without an absolute error keeps all
    digits of d, however small. A single mode pulls g and itself faster than its rate s: what the flow gets from the
    panels of g then falls with s alone, from 1e-9 of the loss where it began. That is the absolute 1e-25.
    """
    s, mass = positive_modes(TASKS[task])
    n = s.size

    def slope(_, x):
        r, d = x[:n], x[n : 2 * n]
        a = 1.0 + gamma * (mass @ (r * r / s))
        return np.concatenate([s * d, -gamma * a**-1.5 * (mass @ (r * d)) - s * d, [1.0 / a]])

    u = np.geomspace(1.0, 68.0, 12) / s.min()
    start = np.concatenate([np.zeros(n), np.ones(n), [0.0]])
    result = solve_ivp(slope, (0.0, u[-1]), start, "DOP853", u, rtol=1e-12, atol=1e-50)
    assert result.success
    deviation = result.y[n : 2 * n] / (result.y[:n] + result.y[n : 2 * n])
    solution = sf.solve_gradient_flow(sf.Model(TASKS[task], gamma=gamma), result.y[2 * n])
    assert solution.loss[-1] < 1e-55 * solution.loss[0]
    atol = 1e-25 * mass.sum() if n == 1 else 0.0
    np.testing.assert_allclose(solution.loss, mass @ deviation**2, rtol=1e-8, atol=atol)


@pytest.mark.parametrize("n_modes", [60, 400, 10**5])
def test_nodes_of_finite_power_laws_end_with_an_absolute_error(n_modes):
    """What the docstring says of losses below 1e-17 of the first; lazily, against the sum over modes."""
    spectrum = sf.PowerLawSpectrum(2.0, 0.5, n_modes=n_modes)
    s, mass = positive_modes(spectrum)
    times = np.array([1.0, 3.0, 8.0, 16.0, 24.0, 33.0, 60.0]) / s.min()
    solution = sf.solve_gradient_flow(sf.Model(spectrum, gamma=0.0), times)
    expected = np.exp(-2.0 * np.outer(times, s)) @ mass
    assert expected[-1] < 1e-50
    np.testing.assert_allclose(solution.loss, expected, rtol=1e-8, atol=1e-25 * mass.sum())


def test_nothing_is_left_in_the_end():
    """No floor of rounding, and no error where exponentials vanish."""
    spectrum = sf.PowerLawSpectrum(2.0, 0.5, n_modes=40)
    for gamma in (0.0, 1e-3, 1.0):
        flow = sf.solve_gradient_flow(sf.Model(spectrum, gamma=gamma), [1e4, 1e7, 1e12])
        assert flow.loss[0] > 0.0
        np.testing.assert_array_equal(flow.loss[1:], 0.0)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 10.0])
@pytest.mark.parametrize("width", [1, 4, 15])
def test_finite_width_agrees_with_a_general_integrator_on_real_nodes(width, gamma):
    """The flow takes a contour below the number of modes, real nodes above."""
    spectrum = sf.PowerLawSpectrum(1.5, 0.5, n_modes=12)
    measure = sf.DeterministicEquivalent(spectrum, width).measure()
    times = np.geomspace(1e-2, 30.0, 12)
    expected = flow_reference(
        measure.source_eigenvalues, measure.source_power, times, gamma=gamma, atom=measure.atom
    )
    solution = sf.solve_gradient_flow(sf.Model(spectrum, width=width, gamma=gamma), times)
    for name in ("loss", "kernel_scale", "spike"):
        # The spike, of second order in time at first, is accurate relative to its size later.
        atol = 1e-8 if name == "spike" else 0.0
        np.testing.assert_allclose(getattr(solution, name), expected[name], rtol=1e-8, atol=atol, err_msg=name)


def test_learned_fractions_have_the_shape_of_their_argument():
    solution = sf.solve_gradient_flow(sf.Model(TASKS["power law"], gamma=1.0), [0.0, 1.0, 2.0])
    s = np.array([[0.1, 2.0, 0.5], [1.0, 0.0, 0.3]])
    fractions = solution.learned_fraction(s)
    assert fractions.shape == (3, 2, 3)
    assert solution.learned_fraction(0.5).shape == (3,)
    np.testing.assert_array_equal(fractions[:, 0, 2], solution.learned_fraction(0.5))
    np.testing.assert_allclose(fractions[0], 0.0, atol=1e-12)
    np.testing.assert_array_equal(fractions[:, 1, 1], 0.0)


@pytest.mark.parametrize("gamma", [0.0, 10.0])
def test_modes_sum_up_to_the_loss(gamma):
    """At infinite width the modes are the components."""
    spectrum = sf.PowerLawSpectrum(1.5, 0.75, n_modes=400)
    s, mass = positive_modes(spectrum)
    solution = sf.solve_gradient_flow(sf.Model(spectrum, gamma=gamma), np.geomspace(0.1, 1e3, 9))
    np.testing.assert_allclose((1.0 - solution.learned_fraction(s)) ** 2 @ mass, solution.loss, rtol=1e-8)


# ------------------------------------------------------------------------------------------ the model itself


def drawn_projection(seed, n_modes, width):
    """A(0) of run 0, shape (N, M)."""
    rows = np.empty((n_modes, width), np.float32)
    literal_steps.fill_projection(*rng.stream_key(seed, rng.PROJECTION), 0, 0, np.zeros(1, np.uint8), rows)
    return rows.T.astype(np.float64)


@projections
@pytest.mark.parametrize("gamma", [0.0, 1.0, 20.0])
@pytest.mark.parametrize(("width", "n_modes"), [(8, 20), (12, 7)])
def test_a_drawn_projection_is_the_literal_flow(width, n_modes, gamma):
    """Section 1 in continuous time: dw = G v2, dG = (gamma/N) w v2^T, v2 = A(0) Lambda v0. Loss to 1e-7."""
    spectrum, seed = sf.PowerLawSpectrum(1.5, 0.5, n_modes=n_modes), 3
    lam, target = spectrum.modes(0, n_modes)
    projection = drawn_projection(seed, n_modes, width)
    times = np.concatenate([[0.0], np.geomspace(0.03, 100.0, 12)])

    def parts(state):
        return state[:width], state[width:].reshape(width, width)

    def slope(_, state):
        w, g = parts(state)
        v2 = projection @ (lam * (target - projection.T @ (g.T @ w) / width))
        return np.concatenate([g @ v2, (gamma / width * np.outer(w, v2)).ravel()])

    start = np.concatenate([np.zeros(width), np.eye(width).ravel()])
    states = solve_ivp(slope, (0.0, 100.0), start, "DOP853", times, rtol=1e-12, atol=1e-13).y.T
    solution = sf.solve_gradient_flow(sf.Model(spectrum, width=width, gamma=gamma), times, projection=seed)
    u, root = np.sqrt(lam) * target, np.sqrt(lam)
    x = root[:, None] * (projection.T @ projection / width) * root
    for i, state in enumerate(states):
        w, g = parts(state)
        error = root * (target - projection.T @ (g.T @ w) / width)
        np.testing.assert_allclose(solution.loss[i], error @ error, rtol=1e-7, atol=1e-12)
        a = 1.0 + gamma * (w @ w) / width
        np.testing.assert_allclose(solution.kernel_scale[i], a, rtol=1e-8)
        # dv0/dtau = -K Lambda v0 with the network's own tangent kernel
        moved = g @ projection
        kernel = root[:, None] * (moved.T @ moved / width + (a - 1.0) * projection.T @ projection / width) * root
        rank_one = np.linalg.eigvalsh(kernel - a * x)
        np.testing.assert_allclose(solution.spike[i], rank_one[-1], rtol=1e-7, atol=1e-10)
        np.testing.assert_allclose(rank_one[:-1], 0.0, atol=1e-9 * a)
        cosine = u @ kernel @ u / (np.linalg.norm(kernel) * (u @ u))
        np.testing.assert_allclose(solution.alignment[i], cosine, rtol=1e-8)


def extrapolated(losses):
    """Richardson's table for learning rates h, h/2, h/4, ..."""
    for order in range(1, len(losses)):
        losses = [(2.0**order * b - a) / (2.0**order - 1.0) for a, b in pairwise(losses)]
    return losses[0]


@projections
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_a_drawn_projection_is_that_of_simulated_run_0(gamma):
    """Gradient descent of run 0, extrapolated to learning rate 0."""
    model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5, n_modes=30), width=10, gamma=gamma)
    losses = []
    for halvings in range(4):
        steps = 100 * 2**halvings
        simulation = sf.simulate(model.replace(learning_rate=4.0 / steps), steps, n_runs=2, seed=11)
        losses.append(simulation.loss[0, :: steps // 10])
    times = np.linspace(0.0, 4.0, 11)
    solution = sf.solve_gradient_flow(model, times, projection=11)
    np.testing.assert_allclose(solution.loss, extrapolated(losses), rtol=2e-6)
    assert solution.projection == 11
    assert "projection 11" in repr(solution)
    other = sf.solve_gradient_flow(model, times, projection=12)
    assert abs(other.loss[-1] / solution.loss[-1] - 1.0) > 1e-3


@pytest.mark.parametrize(("width", "gamma"), [(8, 0.0), (8, 2.0), (64, 1.0), (np.inf, 2.0), (40, 5.0)])
def test_average_is_the_limit_of_small_learning_rates_of_the_mean_field_theory(width, gamma):
    """Two-time equations at infinite batch; what three learning rates leave is of third order."""
    model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5, n_modes=30), width=width, gamma=gamma)
    losses = []
    for steps in (50, 100, 200, 400):
        two_time = sf.solve_dmft(model.replace(learning_rate=4.0 / steps), steps, "two-time")
        losses.append(two_time.loss[:: steps // 10])
    solution = sf.solve_gradient_flow(model, np.linspace(0.0, 4.0, 11))
    np.testing.assert_allclose(solution.loss, extrapolated(losses), rtol=2e-6)


# ---------------------------------------------------------------------------------------- nodes and accuracy


@pytest.mark.parametrize("gamma", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("width", [2, 16, 256, 10_000])
def test_contour_agrees_with_real_nodes(width, gamma, monkeypatch):
    """The same measure as nodes on its own spectrum; both to 1e-8 of the loss at least."""
    times = np.geomspace(1e-2, 1e12, 57)
    for alpha, beta in ((1.2, 0.25), (1.5, 1.25), (3.0, 2.0)):
        model = sf.Model(sf.PowerLawSpectrum(alpha, beta), width=width, gamma=gamma)
        solutions = []
        for largest_width in (1.0, 1e5):
            monkeypatch.setattr(flow, "_CONTOUR_ABOVE", largest_width)
            solutions.append(sf.solve_gradient_flow(model, times))
        contour, real = solutions
        assert contour.contour_eigenvalues.size > 0
        assert real.contour_eigenvalues.size == 0
        for name in ("loss", "kernel_scale", "alignment", "effective_time"):
            np.testing.assert_allclose(getattr(contour, name), getattr(real, name), rtol=1e-8, err_msg=name)
        np.testing.assert_allclose(contour.spike, real.spike, rtol=1e-8, atol=1e-8 * real.spike[-1])


@pytest.mark.parametrize(("n_modes", "width"), [(1000, 1), (1000, 9), (300, 2)])
def test_many_equal_modes_and_few_features(n_modes, width, monkeypatch):
    """kappa_0 = M/N - 1 is far above all modes, and the only real node of the contour. The loss ends at 1 - N/M."""
    monkeypatch.setattr(flow, "_CONTOUR_ABOVE", 0.0)
    spectrum = sf.Spectrum(np.ones(n_modes), np.full(n_modes, n_modes**-0.5))
    times = [1e-4, 1e-2, 1e3]
    solution = sf.solve_gradient_flow(sf.Model(spectrum, width=width), times)
    measure = sf.DeterministicEquivalent(spectrum, width).measure()
    lazy = measure.atom + np.exp(-2.0 * np.outer(times, measure.source_eigenvalues)) @ measure.source_power
    np.testing.assert_allclose(solution.loss, lazy, rtol=1e-9)
    assert solution.loss[-1] == pytest.approx(1.0 - width / n_modes, rel=1e-10)


@pytest.mark.parametrize("width", [np.inf, 4, 256, 1e6, 1e10])
@pytest.mark.parametrize("alpha", [1.2, 3.0])
def test_losses_are_as_accurate_as_asked_over_twelve_decades(alpha, width):
    """Default rtol 1e-8 against 1e-10, without any warning."""
    times = np.geomspace(1e-2, 1e10, 49)
    for beta in (0.25, 0.75, 1.25, 2.0):
        for gamma in (0.0, 1.0, 100.0):
            model = sf.Model(sf.PowerLawSpectrum(alpha, beta), width=width, gamma=gamma)
            solution = sf.solve_gradient_flow(model, times)
            finer = sf.solve_gradient_flow(model, times, rtol=1e-10)
            np.testing.assert_allclose(solution.loss, finer.loss, rtol=1e-8, err_msg=f"{beta} {gamma}")
            assert solution.quadrature_error <= 1e-8


@pytest.mark.parametrize("rtol", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize(("width", "gamma"), [(np.inf, 10.0), (64, 1.0), (64, 0.0)])
def test_coarser_tolerances_are_met(width, gamma, rtol):
    model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5), width=width, gamma=gamma)
    times = np.geomspace(1e-2, 1e10, 61)
    fine = sf.solve_gradient_flow(model, times)
    coarse = sf.solve_gradient_flow(model, times, rtol=rtol)
    np.testing.assert_allclose(coarse.loss, fine.loss, rtol=rtol)
    assert coarse.n_nodes < fine.n_nodes


@pytest.mark.parametrize("n_modes", [1, 7, 3000])
def test_lazy_closed_form_at_infinite_width(n_modes):
    """L = sum lambda w*^2 exp(-2 lambda tau), K = X. Nodes are a hundred times finer than rtol."""
    spectrum = sf.PowerLawSpectrum(1.4, 0.6, n_modes=n_modes)
    lam, power = positive_modes(spectrum)
    times = np.geomspace(1e-3, 200.0 if n_modes < 3000 else 1e4, 40)
    expected = np.exp(-2.0 * np.multiply.outer(times, lam)) @ power
    solution = sf.solve_gradient_flow(sf.Model(spectrum), times)
    # What is unlearned by less than e^{-60} counts as learned.
    seen = expected > 1e-50
    np.testing.assert_allclose(solution.loss[seen], expected[seen], rtol=1e-10)
    np.testing.assert_allclose(solution.loss[~seen], 0.0, atol=1e-50)
    np.testing.assert_array_equal(solution.kernel_scale, 1.0)
    np.testing.assert_array_equal(solution.spike, 0.0)
    np.testing.assert_allclose(solution.effective_time, times, rtol=1e-13)
    slope = np.exp(-2.0 * np.multiply.outer(times, lam)) @ (2.0 * lam * power)
    np.testing.assert_allclose(solution.local_exponent[seen], (times * slope / expected)[seen], rtol=1e-10)
    alignment = power @ lam / (np.sqrt((lam**2).sum()) * power.sum())
    np.testing.assert_allclose(solution.alignment, alignment, rtol=1e-10)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 1e3])
@pytest.mark.parametrize("width", [4, np.inf])
def test_local_exponent_is_the_slope_of_the_curve(width, gamma):
    """Differences of fourth order with steps of 0.02 in log tau."""
    solution = sf.solve_gradient_flow(sf.Model(sf.PowerLawSpectrum(1.5, 0.5), width=width, gamma=gamma), [1e9])
    times, h = np.geomspace(1e-2, 1e8, 41), 0.02
    logs = [np.log(solution.at(times * np.exp(j * h)).loss) for j in (-2, -1, 1, 2)]
    slope = (logs[0] - 8.0 * logs[1] + 8.0 * logs[2] - logs[3]) / (12.0 * h)
    np.testing.assert_allclose(solution.at(times).local_exponent, -slope, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("gamma", [1e6, 1e12])
@pytest.mark.parametrize("width", [16, np.inf])
def test_very_rich_models(width, gamma):
    """At gamma -> inf the loss depends on gamma tau^2 alone: q = sqrt(n/gamma)."""
    times = np.geomspace(1e-2, 1e6, 33)
    spectrum = sf.PowerLawSpectrum(1.5, 0.5)
    solution = sf.solve_gradient_flow(sf.Model(spectrum, width=width, gamma=gamma), times)
    finer = sf.solve_gradient_flow(sf.Model(spectrum, width=width, gamma=gamma), times, rtol=1e-10)
    np.testing.assert_allclose(solution.loss, finer.loss, rtol=1e-8)
    doubled = sf.solve_gradient_flow(sf.Model(spectrum, width=width, gamma=4.0 * gamma), 0.5 * times)
    # a n is of order 1/sqrt(gamma n); at the first time gamma n = gamma tau^2 is 100 at least
    np.testing.assert_allclose(doubled.loss[8:], solution.loss[8:], rtol=100.0 / np.sqrt(gamma))


def test_very_rich_models_keep_their_digits_to_the_end():
    """tau = 1e12 at gamma = 1e12: u is 1e24, a 1e12. For beta < 1 the rich power law is gamma^{-beta/(1+beta)}
    tau^{-2 beta/(1+beta)}, with corrections of the order of u^{-beta} from the upper end of the spectrum.
    """
    spectrum, times = sf.PowerLawSpectrum(1.5, 0.5), [1e6, 1e9, 1e12]
    loss = sf.solve_gradient_flow(sf.Model(spectrum, gamma=1e12), times).loss
    finer = sf.solve_gradient_flow(sf.Model(spectrum, gamma=1e12), times, rtol=1e-10).loss
    np.testing.assert_allclose(loss, finer, rtol=1e-9)
    np.testing.assert_allclose(loss / loss[0], [1.0, 1e-2, 1e-4], rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 1e6])
def test_small_fractions_have_digits_of_their_own(gamma):
    """y_s = s int a g du/g + O((s u)^2): proportional to s where s u < 1e-12."""
    solution = sf.solve_gradient_flow(sf.Model(sf.PowerLawSpectrum(1.5, 0.5), gamma=gamma), [1e-2, 1.0, 1e6])
    s = 1e-12 / solution.effective_time[-1]
    y = solution.learned_fraction([s, 1e-3 * s, 0.0])
    np.testing.assert_allclose(y[:, 0], 1e3 * y[:, 1], rtol=1e-11)
    np.testing.assert_array_equal(y[:, 2], 0.0)
    assert (y[:, 1] > 0.0).all()


@pytest.mark.parametrize("width", [16, np.inf])
def test_lazy_limit_is_continuous(width):
    """Deviations of order gamma n, with n up to about 1000 here, and linear in gamma."""
    model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5), width=width)
    times = np.geomspace(1e-2, 1e6, 25)
    lazy = sf.solve_gradient_flow(model, times).loss
    np.testing.assert_allclose(sf.solve_gradient_flow(model.replace(gamma=1e-12), times).loss, lazy, rtol=1e-8)


def test_widths_beyond_the_number_of_modes():
    """No atom: the loss goes on falling, and infinite width is the limit."""
    spectrum, times = TASKS["power law"], np.geomspace(0.1, 30.0, 9)
    infinite = sf.solve_gradient_flow(sf.Model(spectrum, gamma=1.0), times).loss
    deviation = []
    for width in (20, 21, 1e3, 1e5, 1e7):
        solution = sf.solve_gradient_flow(sf.Model(spectrum, width=width, gamma=1.0), times)
        assert solution.atom == 0.0
        assert (np.diff(solution.loss) < 0.0).all()
        deviation.append(np.abs(solution.loss / infinite - 1.0).max())
    # 1/N
    np.testing.assert_allclose(np.array(deviation[2:-1]) / deviation[3:], 100.0, rtol=0.05)


# -------------------------------------------------------------------------------------- records and requests


@pytest.mark.parametrize("gamma", [0.0, 5.0])
@pytest.mark.parametrize("width", [16, np.inf])
def test_at_equals_a_solution_at_these_times(width, gamma):
    model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5), width=width, gamma=gamma)
    solution = sf.solve_gradient_flow(model, np.geomspace(1e-2, 1e8, 50))
    others = np.concatenate([[0.0], np.geomspace(3e-4, 1e8, 37)])
    dense, direct = solution.at(others), sf.solve_gradient_flow(model, others)
    np.testing.assert_array_equal(dense.times, others)
    for name in CURVES:
        np.testing.assert_array_equal(getattr(dense, name), getattr(direct, name), err_msg=name)
    # A solution that ends earlier has other nodes and panels.
    early = sf.solve_gradient_flow(model, others[others < 1e5])
    for name in ("loss", "kernel_scale", "spike", "alignment"):
        dense_values = getattr(dense, name)[others < 1e5]
        np.testing.assert_allclose(dense_values, getattr(early, name), rtol=1e-8, atol=1e-10, err_msg=name)
    np.testing.assert_array_equal(solution.at(solution.times).loss, solution.loss)


def test_one_time_and_time_0():
    model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5), width=8, gamma=2.0)
    start = sf.solve_gradient_flow(model, [0.0])
    assert start.loss == pytest.approx([model.spectrum.total_target_power], rel=1e-9)
    np.testing.assert_array_equal(start.kernel_scale, [1.0])
    np.testing.assert_allclose(start.spike, [0.0], atol=1e-10)
    np.testing.assert_array_equal(start.local_exponent, [0.0])
    np.testing.assert_array_equal(start.effective_time, [0.0])
    np.testing.assert_array_equal(start.learned_fraction([0.0, 1.0]), [[0.0, 0.0]])
    assert start.at([0.0]).loss[0] == start.loss[0]
    single = sf.solve_gradient_flow(model, [7.0])
    several = sf.solve_gradient_flow(model, [0.0, 1.0, 7.0])
    assert several.loss[0] == pytest.approx(start.loss[0], rel=1e-10)
    assert single.loss[0] == pytest.approx(several.loss[-1], rel=1e-8)
    # The curve leaves tau = 0 without a jump.
    tiny = sf.solve_gradient_flow(model, [1e-12])
    np.testing.assert_allclose(tiny.loss, start.loss, rtol=1e-9)


def test_alignment_at_the_start_is_that_of_the_lazy_kernel():
    """tr X^2 = sum lambda^2 + (sum lambda)^2/N on average, <u, X u> = sum u^2 lambda."""
    spectrum = sf.PowerLawSpectrum(1.5, 0.5, n_modes=300)
    lam, power = positive_modes(spectrum)
    for width in (5, 200, 1000, np.inf):
        expected = power @ lam / (power.sum() * np.sqrt((lam**2).sum() + lam.sum() ** 2 / width))
        solution = sf.solve_gradient_flow(sf.Model(spectrum, width=width, gamma=1.0), [0.0])
        np.testing.assert_allclose(solution.alignment, [expected], rtol=1e-9)


@pytest.mark.parametrize("width", [1, 2, 3, 50, np.inf])
@pytest.mark.parametrize("gamma", [0.0, 3.0])
def test_without_target_nothing_is_learned(width, gamma):
    spectrum = sf.Spectrum([1.0, 0.5, 0.0], [0.0, 0.0, 2.0])
    solution = sf.solve_gradient_flow(sf.Model(spectrum, width=width, gamma=gamma), [0.0, 1.0, 100.0])
    np.testing.assert_array_equal(solution.loss, 0.0)
    np.testing.assert_array_equal(solution.kernel_scale, 1.0)
    np.testing.assert_array_equal(solution.spike, 0.0)
    assert np.isnan(solution.alignment).all()
    assert solution.local_exponent[0] == 0.0
    assert np.isnan(solution.local_exponent[1:]).all()


@settings(max_examples=40)
@given(model=models(), last=st.floats(-2.0, 8.0))
def test_curves_fall_and_kernels_grow(model, last):
    """Any spectrum, with ties and zeros, and any width; times up to 10^last in units of the largest eigenvalue."""
    times = np.concatenate([[0.0], np.geomspace(1e-3, 10.0 ** (last + 1.0), 30)]) / model.largest_eigenvalue
    solution = sf.solve_gradient_flow(model, times)
    power = model.spectrum.total_target_power
    np.testing.assert_allclose(solution.loss[0], power, rtol=1e-9, atol=1e-300)
    assert (solution.loss >= -1e-12 * power).all()
    # What rounding leaves of 1 - y, squared, is the end of an exponential decay.
    assert (np.diff(solution.loss) <= 1e-9 * solution.loss[:-1] + 1e-18 * power).all()
    assert (np.diff(solution.kernel_scale) >= -1e-9 * solution.kernel_scale[1:]).all()
    assert (np.diff(solution.effective_time) > 0.0).all()
    assert (solution.spike >= -1e-9 * power * model.gamma).all()
    if power > 0.0:
        assert (np.abs(solution.alignment) <= 1.0 + 1e-9).all()
        assert (solution.loss >= solution.atom * (1.0 - 1e-9)).all()


def test_save_and_load_return_the_same_solution(tmp_path):
    model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5), width=32, gamma=1.0)
    solution = sf.solve_gradient_flow(model, np.geomspace(0.1, 1e6, 20), rtol=1e-7)
    solution.save(tmp_path / "flow.npz")
    loaded = sf.FlowSolution.load(tmp_path / "flow.npz")
    assert loaded.model == model
    assert (loaded.projection, loaded.rtol, loaded.n_nodes) == ("average", 1e-7, solution.n_nodes)
    assert repr(loaded) == repr(solution)
    for name in (*CURVES, "times", "source_power", "contour_weights", "panel_coefficients"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(solution, name))
        assert getattr(loaded, name).dtype == getattr(solution, name).dtype
    others = np.geomspace(1.0, 1e5, 7)
    np.testing.assert_array_equal(loaded.at(others).loss, solution.at(others).loss)
    np.testing.assert_array_equal(loaded.learned_fraction(0.1), solution.learned_fraction(0.1))
    with pytest.raises(ScalefieldError, match="FlowSolution"):
        sf.DMFTSolution.load(tmp_path / "flow.npz")
    with pytest.raises(ValueError, match="read-only"):
        solution.loss[0] = 0.0


@pytest.mark.parametrize("width", [16, np.inf])
def test_results_are_repeatable_and_independent_of_threads(width, monkeypatch):
    model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5), width=width, gamma=5.0)
    times = np.geomspace(1e-2, 1e8, 3000)
    expected = sf.solve_gradient_flow(model, times)
    for threads in (1, 2):
        monkeypatch.setenv("SCALEFIELD_NUM_THREADS", str(threads))
        with threadpool_limits(threads):
            again = sf.solve_gradient_flow(model, times)
        for name in CURVES:
            np.testing.assert_array_equal(getattr(again, name), getattr(expected, name), err_msg=name)
    results = [None] * 4

    def solve(index):
        results[index] = sf.solve_gradient_flow(model, times).loss

    workers = [threading.Thread(target=solve, args=(index,)) for index in range(len(results))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for result in results:
        np.testing.assert_array_equal(result, expected.loss)


def test_learning_rate_batch_and_label_noise_play_no_part():
    model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5), width=16, gamma=1.0)
    other = model.replace(learning_rate=0.7, batch_size=3, label_noise=2.0)
    times = [0.1, 1.0, 10.0]
    np.testing.assert_array_equal(sf.solve_gradient_flow(other, times).loss, sf.solve_gradient_flow(model, times).loss)


MODEL = sf.Model(sf.PowerLawSpectrum(1.5, 0.5), gamma=1.0)


@pytest.mark.parametrize(
    ("times", "error", "message"),
    [
        ([1.0, 2.0, 2.0], ValueError, "times must be increasing, got 2.0 after 2.0 at index 2"),
        ([3.0, 1.0], ValueError, "times must be increasing, got 1.0 after 3.0 at index 1"),
        ([-1.0, 1.0], ValueError, "times must be finite and at least 0, got -1.0 at index 0"),
        ([1.0, np.nan], ValueError, "times must be finite .* got nan at index 1"),
        ([1.0, np.inf], ValueError, "times must be finite .* got inf at index 1"),
        ([], ValueError, "times must have at least one entry"),
        ([[1.0]], ValueError, "times must have one dimension"),
        (1.0, ValueError, "times must have one dimension"),
        (["soon"], TypeError, "times must be an array of real numbers"),
        ([1.0 + 1.0j], TypeError, "times must be an array of real numbers"),
        (None, TypeError, "times must be an array of real numbers"),
    ],
)
def test_times_are_checked(times, error, message):
    with pytest.raises(error, match=message):
        sf.solve_gradient_flow(MODEL, times)
    with pytest.raises(error, match=message):
        sf.solve_gradient_flow(MODEL, [10.0]).at(times)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"projection": "mean"}, ValueError, "projection must be 'average' or a seed, got 'mean'"),
        ({"projection": -1}, ValueError, "projection must be an integer of at least 0"),
        ({"projection": 0.5}, ValueError, "projection must be an integer"),
        ({"projection": 2**63}, ValueError, "projection must be an integer below"),
        ({"projection": True}, TypeError, "projection must be an integer"),
        ({"projection": [1]}, TypeError, "projection must be an integer"),
        ({"projection": None}, TypeError, "projection"),
        ({"rtol": 1e-11}, ValueError, "rtol must be .* at least 1e-10"),
        ({"rtol": 0.02}, ValueError, "rtol must be at most 0.01"),
        ({"rtol": np.nan}, ValueError, "rtol must be"),
        ({"rtol": "small"}, TypeError, "rtol must be a real number"),
    ],
)
def test_settings_are_checked(settings, error, message):
    with pytest.raises(error, match=message):
        sf.solve_gradient_flow(MODEL.replace(spectrum=TASKS["easy"], width=4), [1.0], **settings)


def test_other_arguments_are_checked():
    with pytest.raises(TypeError, match="model must be a Model"):
        sf.solve_gradient_flow(MODEL.spectrum, [1.0])
    solution = sf.solve_gradient_flow(MODEL, [1.0, 10.0])
    with pytest.raises(ValueError, match=r"times must not exceed 10\.0, .* got 11\.0"):
        solution.at([1.0, 11.0])
    with pytest.raises(ValueError, match="s must be finite and at least 0"):
        solution.learned_fraction([-1.0])
    with pytest.raises(TypeError, match="s must be an array of real numbers"):
        solution.learned_fraction(1j)


@projections
def test_projections_at_infinite_width_are_alike():
    spectrum = sf.PowerLawSpectrum(1.5, 0.5)
    model = sf.Model(spectrum, gamma=1.0)
    np.testing.assert_array_equal(
        sf.solve_gradient_flow(model, [1.0, 10.0], projection=0).loss, sf.solve_gradient_flow(model, [1.0, 10.0]).loss
    )



def test_nodes_that_are_not_accurate_enough_are_told(monkeypatch):
    """An estimate that claims an error of 1e-3 of itself."""
    condense = flow.condense

    def worse(*arguments):
        x, mass, _ = condense(*arguments)
        return x, mass, 1e-3

    monkeypatch.setattr(flow, "condense", worse)
    with pytest.warns(sf.errors.AccuracyWarning, match=r"rtol 1e-08 is beyond reach .* about 0\.001 was reached"):
        solution = sf.solve_gradient_flow(MODEL, [1.0])
    assert solution.quadrature_error == 1e-3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sf.solve_gradient_flow(MODEL, [1.0], rtol=1e-3)
