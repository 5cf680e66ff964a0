r"""Exponents of scaling laws against their own definitions.

`compute_optimal` finds the optimum of straight lines; the oracles take other routes: the table of the paper in closed
form, a linear programme, and sums of power laws minimised over the width at compute 10^200.
"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize_scalar

import scalefield as sf
from scalefield import scaling

ALPHAS = (1.05, 1.5, 2.0, 5.0)
BETAS = (0.1, 0.5, 0.95, 1.04, 1.25, 1.6, 3.0)
# All three phases, none on a border.
TASKS = [(alpha, beta) for alpha in ALPHAS for beta in BETAS]
alphas = st.floats(1.01, 10.0)
betas = st.floats(0.01, 5.0)


def table_1(alpha, beta, rich):
    """Loss and width exponents, and the two terms, as the paper's Table 1 and text give them."""
    if beta < 1.0:
        loss = 2.0 * alpha * beta / (alpha * (1.0 + beta) + 2.0) if rich else alpha * beta / (alpha + 1.0)
        width = 1.0 / (1.0 + 0.5 * alpha * (1.0 + beta)) if rich else 1.0 / (1.0 + alpha)
        return loss, width, ("gradient flow", "model bottleneck")
    if beta < 2.0 - 1.0 / alpha:
        power = beta - 1.0 + 1.0 / alpha  # N = t^power
        return alpha * beta / (alpha * beta + 1.0), power / (1.0 + power), ("gradient flow", "width transient")
    return 1.0 - 0.5 / alpha, 0.5, ("width transient", "SGD transient")


# -------------------------------------------------------------------------------------------------- difficulty


@pytest.mark.parametrize(("alpha", "beta"), TASKS)
def test_difficulty_is_that_of_the_norm_and_of_the_sgd_transient(alpha, beta):
    """Hard: the partial sums of w*^2 grow without end. Super-easy: SGD's transient is slower than gradient flow."""
    # sum over k from K to infinity of k^(alpha (1-beta) - 1), by its integral: infinite unless the power is below -1
    norm_is_finite = alpha * (1.0 - beta) - 1.0 < -1.0
    terms = {term.name: term for term in scaling.loss_terms(alpha, beta, rich=False)}
    sgd_is_slower = terms["SGD transient"].time_exponent < terms["gradient flow"].time_exponent
    expected = "super-easy" if sgd_is_slower else "easy" if norm_is_finite else "hard"
    assert scaling.task_difficulty(alpha, beta) == expected


@pytest.mark.parametrize(("beta", "side"), [(1.0, "hard"), (1.5, "easy")])
def test_borders_belong_to_the_harder_side(beta, side):
    assert scaling.task_difficulty(2.0, beta) == side
    assert scaling.task_difficulty(2.0, np.nextafter(beta, 3.0)) != side


@pytest.mark.parametrize(("alpha", "beta"), TASKS)
def test_phases_of_paquette_et_al(alpha, beta):
    """Their Ia, II and III in their own exponents (arXiv:2405.15074), alpha' = alpha/2 > 1/2, with their laws."""
    a, b = 0.5 * alpha, 0.5 * (alpha * (beta - 1.0) + 1.0)
    optimum = scaling.compute_optimal(alpha, beta, rich=False)
    if b < 0.5:
        expected = "hard", (2.0 * a + 2.0 * b - 1.0) / (2.0 * a + 1.0), 1.0 / (2.0 * a + 1.0)
    elif b < a:
        expected = "easy", 1.0 - 1.0 / (2.0 * (a + b)), b / (a + b)
    else:
        expected = "super-easy", 1.0 - 1.0 / (4.0 * a), 0.5
    assert optimum.difficulty == expected[0]
    assert (optimum.loss_exponent, optimum.width_exponent) == pytest.approx(expected[1:], rel=1e-12)


# ------------------------------------------------------------------------------------------------------- time


def test_time_exponent():
    assert scaling.time_exponent(0.5, rich=False) == 0.5
    assert scaling.time_exponent(0.5, rich=True) == pytest.approx(2.0 / 3.0, rel=1e-15)
    assert scaling.time_exponent(1.0, rich=True) == 1.0
    assert scaling.time_exponent(1.7, rich=True) == 1.7


@given(betas)
def test_time_exponent_is_the_fixed_point_of_the_bootstrap(beta):
    """chi = beta max(1, 2 - chi), which needs no formula: found by bisection, since the right side falls with chi."""
    low, high = 0.0, 2.0 * beta
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if beta * max(1.0, 2.0 - middle) > middle else (low, middle)
    assert scaling.time_exponent(beta, rich=True) == pytest.approx(low, rel=1e-12)


@given(betas, st.integers(0, 40))
def test_bootstrap_levels(beta, levels):
    """By hand, and: errors alternate and shrink by beta at every level."""
    chi = scaling.bootstrap_exponents(beta, levels)
    assert chi.shape == (levels + 1,)
    assert chi[0] == beta
    for n in range(levels):
        assert chi[n + 1] == beta * (2.0 - chi[n] if chi[n] < 1.0 else 1.0)
    if beta < 1.0:
        error = chi - scaling.time_exponent(beta, rich=True)
        np.testing.assert_allclose(error, error[0] * (-beta) ** np.arange(levels + 1.0), atol=1e-14)
    else:
        np.testing.assert_array_equal(chi, beta)


@pytest.mark.parametrize(("gamma", "beta"), [(1e-2, 0.25), (1e-3, 0.5), (10.0, 0.75)])
def test_crossover_time_is_where_the_power_laws_meet(gamma, beta):
    """tau^-beta = gamma^{-beta/(1+beta)} tau^{-2 beta/(1+beta)}."""
    tau = scaling.crossover_time(gamma, beta)
    rich = gamma ** (-beta / (1.0 + beta)) * tau ** -scaling.time_exponent(beta, rich=True)
    assert rich == pytest.approx(tau**-beta, rel=1e-12)


@pytest.mark.parametrize(("gamma", "beta"), [(0.0, 0.5), (1.0, 1.0), (0.1, 2.0), (1e-9, 0.999)])
def test_no_crossover(gamma, beta):
    assert scaling.crossover_time(gamma, beta) == math.inf


def test_measured_curves_cross_over_there():
    """Local exponent of gradient flow: lazy a thousand times earlier, rich a thousand times later, within 0.03."""
    beta, gamma = 0.5, 1e-4
    tau = scaling.crossover_time(gamma, beta)
    flow = sf.solve_gradient_flow(sf.Model(sf.PowerLawSpectrum(2.0, beta), gamma=gamma), [tau / 1e3, tau * 1e4])
    expected = [scaling.time_exponent(beta, rich) for rich in (False, True)]
    np.testing.assert_allclose(flow.local_exponent, expected, atol=0.03)


# ------------------------------------------------------------------------------------------------------ terms


@given(alphas, betas, st.booleans(), st.booleans())
def test_terms_agree_with_the_printed_sum(alpha, beta, rich, printed):
    r = max(1.0, 2.0 / (1.0 + beta)) if rich else 1.0
    flow, bottleneck, width, sgd = scaling.loss_terms(alpha, beta, rich, printed=printed)
    assert (flow.time_exponent, flow.width_exponent, flow.noise_exponent) == (beta * r, 0.0, 0.0)
    assert flow.time_exponent == scaling.time_exponent(beta, rich)
    assert bottleneck.width_exponent == alpha * min(2.0 if printed else 1.0, beta)
    assert width.width_exponent == 1.0
    assert width.time_exponent == ((1.0 if printed else min(1.0, beta)) - 1.0 / alpha) * r
    assert (sgd.time_exponent, sgd.noise_exponent) == ((2.0 - 1.0 / alpha) * r, 1.0)
    assert width.is_crossover == (beta < 1.0 and not printed)


def test_value_of_a_term():
    term = scaling.LossTerm("SGD transient", 1.5, 0.5, 2.0)
    np.testing.assert_allclose(term.value([1.0, 4.0], [[1.0], [9.0]], 3.0), [[9.0, 9.0 / 8.0], [3.0, 3.0 / 8.0]])


@pytest.mark.parametrize("rich", [False, True])
@pytest.mark.parametrize(("alpha", "beta"), [(1.5, 0.25), (2.0, 0.5), (3.0, 0.9)])
def test_hard_width_transient_meets_flow_and_bottleneck_at_once(alpha, beta, rich):
    """Where t^{-beta r} = N^{-alpha beta} the transient t^{-(beta - 1/alpha) r}/N has the same value."""
    flow, bottleneck, width, _ = scaling.loss_terms(alpha, beta, rich)
    n = 1e6
    t = n ** (bottleneck.width_exponent / flow.time_exponent)
    np.testing.assert_allclose(
        [term.value(t, n) for term in (bottleneck, width)], flow.value(t, n), rtol=1e-10
    )


@pytest.mark.parametrize("gamma", [0.0, 1.0])
@pytest.mark.parametrize(("alpha", "beta"), [(2.0, 0.5), (2.0, 1.25)])
def test_terms_are_those_of_exact_losses(alpha, beta, gamma):
    """Bottleneck over N = 1e4 to 1e8 and flow at tau = 1e10, within 3e-3: tests/test_paper_checks.py measures all."""
    spectrum = sf.PowerLawSpectrum(alpha, beta)
    flow, bottleneck, *_ = scaling.loss_terms(alpha, beta, gamma > 0.0)
    losses = [sf.bottleneck_loss(spectrum, width=n) for n in (1e4, 1e8)]
    assert math.log10(losses[0] / losses[1]) / 4.0 == pytest.approx(bottleneck.width_exponent, abs=3e-3)
    local = sf.solve_gradient_flow(sf.Model(spectrum, gamma=gamma), [1e10]).local_exponent[0]
    assert local == pytest.approx(flow.time_exponent, abs=3e-3)


# ------------------------------------------------------------------------------------------------ compute-optimal


@pytest.mark.parametrize("printed", [False, True])
@pytest.mark.parametrize("rich", [False, True])
@pytest.mark.parametrize(("alpha", "beta"), TASKS)
def test_optimum_is_that_of_table_1(alpha, beta, rich, printed):
    optimum = scaling.compute_optimal(alpha, beta, rich, printed=printed)
    loss, width, terms = table_1(alpha, beta, rich)
    assert optimum.loss_exponent == pytest.approx(loss, rel=1e-12)
    assert optimum.width_exponent == pytest.approx(width, rel=1e-12)
    assert optimum.width_exponent + optimum.time_exponent == pytest.approx(1.0, rel=1e-15)
    assert optimum.difficulty == scaling.task_difficulty(alpha, beta)
    assert optimum.dominant_terms == terms


def lines(alpha, beta, rich, sgd_noise=True, printed=False):
    """Exponents (a, b) of the terms that count."""
    found = scaling.loss_terms(alpha, beta, rich, printed=printed)
    kept = [term for term in found if not term.is_crossover and (sgd_noise or term.noise_exponent == 0.0)]
    return np.array([(term.time_exponent, term.width_exponent) for term in kept])


@pytest.mark.parametrize("sgd_noise", [False, True])
@pytest.mark.parametrize("rich", [False, True])
@pytest.mark.parametrize(("alpha", "beta"), TASKS)
def test_optimum_is_that_of_a_linear_programme(alpha, beta, rich, sgd_noise):
    """Maximise e subject to e <= b_i x + a_i (1 - x) and 0 <= x <= 1."""
    a, b = lines(alpha, beta, rich, sgd_noise).T
    result = linprog(
        [0.0, -1.0], A_ub=np.column_stack((a - b, np.ones(a.size))), b_ub=a, bounds=[(0.0, 1.0), (None, None)]
    )
    optimum = scaling.compute_optimal(alpha, beta, rich, sgd_noise=sgd_noise)
    assert optimum.loss_exponent == pytest.approx(-result.fun, rel=1e-9)
    assert optimum.width_exponent == pytest.approx(result.x[0], rel=1e-8)


def log_loss(log_n, log_c, terms):
    a, b = terms.T
    return np.logaddexp.reduce(-b * log_n - a * (log_c - log_n))


@pytest.mark.parametrize("rich", [False, True])
@pytest.mark.parametrize(("alpha", "beta"), [(1.5, 0.25), (2.0, 0.75), (3.0, 1.25), (1.5, 2.0), (5.0, 1.5)])
def test_optimum_of_the_sum_itself(alpha, beta, rich):
    """The sum minimised over N at C = 1e200 and 1e300: slopes are the exponents, constants drop out.

    Other terms are smaller by powers of C, at least C^0.01 at these tasks: 1e-3 is allowed.
    """
    terms = lines(alpha, beta, rich)
    found = []
    for log_c in np.log(10.0) * np.array([200.0, 300.0]):
        result = minimize_scalar(log_loss, bounds=(0.0, log_c), args=(log_c, terms), method="bounded",
                                 options={"xatol": 1e-9})  # fmt: skip
        found.append((log_c, -result.fun, result.x))
    log_c, loss, width = np.diff(found, axis=0)[0]
    optimum = scaling.compute_optimal(alpha, beta, rich)
    assert loss / log_c == pytest.approx(optimum.loss_exponent, abs=1e-3)
    assert width / log_c == pytest.approx(optimum.width_exponent, abs=1e-3)


@pytest.mark.parametrize("rich", [False, True])
@given(alphas, st.floats(0.01, 0.99))
def test_the_transient_of_hard_tasks_does_not_move_the_optimum(rich, alpha, beta):
    """While t^r < N^alpha, where it holds, it is smaller than flow or bottleneck: min e_i(x) is unchanged."""
    flow, bottleneck, width, _ = scaling.loss_terms(alpha, beta, rich)
    x = np.linspace(0.0, 1.0, 1001)
    exponents = [term.width_exponent * x + term.time_exponent * (1.0 - x) for term in (flow, bottleneck, width)]
    r = flow.time_exponent / beta
    holds = (1.0 - x) * r <= alpha * x
    assert holds.any()
    assert not holds.all()
    without = np.minimum(exponents[0], exponents[1])
    assert (exponents[2][holds] >= without[holds] - 1e-12).all()


def test_borders_name_the_terms_of_both_sides():
    assert scaling.compute_optimal(2.0, 1.0, rich=True).dominant_terms == (
        "gradient flow",
        "model bottleneck",
        "width transient",
    )
    assert scaling.compute_optimal(2.0, 1.5, rich=False).dominant_terms == (
        "gradient flow",
        "width transient",
        "SGD transient",
    )


def test_without_sgd_noise_super_easy_tasks_are_as_easy_ones():
    optimum = scaling.compute_optimal(1.5, 2.0, rich=True, sgd_noise=False)
    assert optimum.loss_exponent == pytest.approx(3.0 / 4.0, rel=1e-12)
    assert optimum.dominant_terms == ("gradient flow", "width transient")


@given(alphas, betas)
def test_features_never_make_it_worse(alpha, beta):
    lazy, rich = (scaling.compute_optimal(alpha, beta, flag).loss_exponent for flag in (False, True))
    assert rich >= lazy * (1.0 - 1e-12)
    # not by more than a factor of 2, and only if hard
    assert rich <= 2.0 * lazy
    if beta > 1.0:
        assert rich == lazy


# ------------------------------------------------------------------------------------------------------- diagram


@pytest.mark.parametrize("rich", [False, True])
def test_phase_diagram_is_its_tasks(rich):
    diagram = scaling.phase_diagram(ALPHAS, BETAS, rich)
    for i, alpha in enumerate(ALPHAS):
        for j, beta in enumerate(BETAS):
            optimum = scaling.compute_optimal(alpha, beta, rich)
            assert diagram.difficulty[i, j] == optimum.difficulty
            assert diagram.chi[i, j] == scaling.time_exponent(beta, rich)
            assert diagram.loss_exponent[i, j] == optimum.loss_exponent
            assert diagram.width_exponent[i, j] == optimum.width_exponent
            assert diagram.time_exponent[i, j] == optimum.time_exponent
    with pytest.raises(ValueError, match="read-only"):
        diagram.chi[0, 0] = 1.0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: scaling.task_difficulty(1.0, 0.5), ValueError, "alpha must be a finite number greater than 1, got 1"),
        (lambda: scaling.loss_terms(2.0, 0.0, True), ValueError, "beta must be a finite number greater than 0, got 0"),
        (lambda: scaling.time_exponent(0.5, 1), TypeError, "rich must be True or False, got 1 of type int"),
        (lambda: scaling.bootstrap_exponents(0.5, -1), ValueError, "levels must be an integer of at least 0, got -1"),
        (lambda: scaling.crossover_time(-1.0, 0.5), ValueError, "gamma must be a finite number at least 0, got -1"),
        (lambda: scaling.compute_optimal(2.0, "0.5", True), TypeError, "beta must be a real number"),
        (lambda: scaling.compute_optimal(2.0, 0.5, True, sgd_noise=None), TypeError, "sgd_noise must be True or False"),
        (lambda: scaling.phase_diagram([2.0, 0.5], [1.0], True), ValueError, "alpha must be a finite number greater"),
        (lambda: scaling.phase_diagram(2.0, [1.0], True), ValueError, "alphas must have one dimension"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
