r"""Compute-optimal frontiers against brute force, closed forms, and the exponents of Table 1.

Theory (section 9). L*(C) = min over N of L(t_C(N), N), cost(N, t_C(N)) = C; N t by default. For L = t^-a + N^-b,

    N* = ( (b/a) C^a )^{1/(a+b)} ,    L* ~ C^{-ab/(a+b)} .

Oracles: this sum; at gamma = 0 the loss atom + mu(e^{-2 s tau}) on the measure of a real width, minimised by SciPy on
that width; whole widths one by one through `solve_dmft`; along the frontier -d log L*/d log C = -d log L/d log t at the
optimal width (envelope theorem).
"""

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

import scalefield as sf
from scalefield import scaling
from scalefield.errors import Interrupted, ScalefieldError
from scalefield.flow import AveragedFlow
from scalefield.scaling import compute_frontier, frontier

HARD = sf.PowerLawSpectrum(1.5, 0.5)
ETA = 0.1


class SumOfPowers:
    """L = t^-a + N^-b."""

    widths_per_decade, error = 10, 0.0

    def __init__(self, a, b):
        self.a, self.b = a, b

    def log_loss(self, width, steps):
        return np.log(steps**-self.a + width**-self.b)


def search(losses, budgets, least=1.0, most=math.inf, cost=None):
    found = frontier._Search(losses, frontier._Allowance(cost), budgets, least, most, None)
    found.scan()
    return [found.optimum(index) for index in range(budgets.size)]


def lazy_loss(spectrum, width, tau):
    measure = sf.DeterministicEquivalent(spectrum, width).measure()
    return measure.atom + measure.source_power @ np.exp(-2.0 * measure.source_eigenvalues * tau)


def lazy_optimum(spectrum, budget, steps_at):
    """Least lazy loss over real widths by SciPy; width and loss."""
    found = minimize_scalar(
        lambda x: math.log(lazy_loss(spectrum, math.exp(x), ETA * steps_at(math.exp(x), budget))),
        bounds=(0.0, math.log(400.0)),
        method="bounded",
        options={"xatol": 1e-9},
    )
    return math.exp(found.x), math.exp(found.fun)


# --------------------------------------------------------------------------------------------------- the search


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.75), (1.25, 1.5), (0.4, 2.0)])
def test_sum_of_power_laws_over_twelve_decades(a, b):
    """Polynomials on the grid of widths: 1e-6 in the width and 1e-8 in the loss for exponents up to 2."""
    budgets = np.geomspace(1e3, 1e15, 37)
    optima = search(SumOfPowers(a, b), budgets)
    expected = (b / a * budgets**a) ** (1.0 / (a + b))
    np.testing.assert_allclose([o.width for o in optima], expected, rtol=1e-6)
    np.testing.assert_allclose([o.steps for o in optima], budgets / expected, rtol=1e-6)
    exact = (budgets / expected) ** -a + expected**-b
    np.testing.assert_allclose(np.exp([o.log_loss for o in optima]), exact, rtol=1e-8)
    assert max(o.interpolation_error for o in optima) < 1e-8
    assert {o.boundary for o in optima} == {""}


def test_ends_of_the_range_are_found_and_named():
    budgets = np.array([2.0, 1e2, 1e6])
    # (b/a) C^a to the power 1/(a + b) is 0.2, 8 and 4e4.
    optima = search(SumOfPowers(1.0, 0.1), budgets, most=50.0)
    assert [o.boundary for o in optima] == ["width", "", "width"]
    np.testing.assert_allclose([optima[0].width, optima[2].width], [1.0, 50.0], rtol=1e-12)
    # Time is worth nothing.
    optima = search(SumOfPowers(1e-9, 1.0), budgets)
    assert {o.boundary for o in optima} == {"steps"}
    np.testing.assert_allclose([o.width for o in optima], budgets, rtol=1e-6)
    # Width is worth nothing.
    optima = search(SumOfPowers(1.0, 1e-9), budgets, least=2.0)
    assert {o.boundary for o in optima} == {"width"}
    np.testing.assert_allclose([o.width for o in optima], 2.0, rtol=1e-12)


def test_divergence_holds_an_optimum_back():
    class Unstable(SumOfPowers):
        def log_loss(self, width, steps):
            return np.where(steps < 1e3, super().log_loss(width, steps), np.inf)

    # Without the limit t* = C/N* is 7e3 at C = 1e7.
    budgets = np.array([1e4, 1e7])
    free = search(SumOfPowers(0.5, 0.75), budgets)
    held = search(Unstable(0.5, 0.75), budgets)
    assert held[0].width == pytest.approx(free[0].width, rel=1e-9)
    assert free[1].steps > 2e3
    assert held[1].steps == pytest.approx(1e3, rel=1e-5)

    class Never(SumOfPowers):
        def log_loss(self, width, steps):
            return np.full(steps.size, np.inf)

    with pytest.raises(ScalefieldError, match="diverges at every width"):
        search(Never(1.0, 1.0), budgets)


# -------------------------------------------------------------------------------------------------- gradient flow


def test_flow_of_real_width_is_that_of_whole_ones_and_lies_between():
    times = np.geomspace(0.1, 1e4, 20)
    for gamma, width in itertools.product((0.0, 1.0), (12, 2000)):
        whole = sf.solve_gradient_flow(sf.Model(HARD, width=width, gamma=gamma), times).loss
        np.testing.assert_allclose(AveragedFlow(HARD, width, gamma, times[-1], 1e-8).loss(times), whole, rtol=1e-12)
        beside = [
            AveragedFlow(HARD, width + shift, gamma, times[-1], 1e-8).loss(times[-1:])[0] for shift in (-0.5, 0.5)
        ]
        assert beside[0] > whole[-1] > beside[1]
        # Smooth: the mean of both sides is right to second order in the shift.
        assert abs(np.mean(beside) / whole[-1] - 1.0) < 0.5 / width**2


@pytest.mark.parametrize("cost", [None, lambda width, steps: width**1.5 * steps + 20.0 * width])
def test_lazy_frontier_is_the_minimum_over_real_widths(cost):
    """Plain NumPy on the measures, SciPy's minimiser; the loss right to 1e-8, its flat minimum to 1e-3."""

    def steps_at(width, budget):
        return budget / width if cost is None else (budget - 20.0 * width) / width**1.5

    budgets = np.array([1e3, 1e4, 3e4])
    found = compute_frontier(HARD, 0.0, ETA, np.inf, budgets, cost)
    for index, budget in enumerate(budgets):
        width, loss = lazy_optimum(HARD, budget, steps_at)
        assert found.widths[index] == pytest.approx(width, rel=1e-3)
        assert found.losses[index] == pytest.approx(loss, rel=1e-8)
        assert found.steps[index] == pytest.approx(steps_at(found.widths[index], budget), rel=1e-9)
    assert found.interpolation_error < 1e-4
    assert (found.predicted is None) == (cost is not None)


CASES = {
    "hard, lazy": (1.5, 0.5, 0.0),
    "hard, rich": (2.0, 0.5, 1.0),
    "easy, lazy": (2.0, 1.25, 0.0),
}


@pytest.mark.parametrize("case", CASES)
def test_exponents_along_the_frontier_are_those_of_table_1(case):
    """Budgets 1e8 to 1e12: what is left of the corrections is 2e-3 in these tasks."""
    alpha, beta, gamma = CASES[case]
    found = compute_frontier(
        sf.PowerLawSpectrum(alpha, beta), gamma, ETA, np.inf, np.geomspace(1e8, 1e12, 5), width_range=(100.0, np.inf),
        window=(1e8, 1e12),
    )  # fmt: skip
    optimum = scaling.compute_optimal(alpha, beta, gamma > 0.0, sgd_noise=False)
    assert (found.window_start, found.window_stop) == (found.budgets[0], found.budgets[-1])
    for fit in found.exponents:
        assert fit.predicted == getattr(optimum, f"{fit.name}_exponent")
        assert fit.fitted == pytest.approx(fit.predicted, abs=5e-3 if fit.name == "loss" else 1.2e-2)
        assert 0.0 < fit.error < 1e-2
    assert found.width_exponent + found.time_exponent == pytest.approx(1.0, abs=1e-9)
    # Envelope theorem: the width may be held fixed. Differences over a decade of C are right to 2e-3.
    task = sf.PowerLawSpectrum(alpha, beta)
    tau, change = found.times[2], 1.0 + 1e-3
    loss = AveragedFlow(task, found.widths[2], gamma, change * tau, 1e-10).loss(np.array([tau, change * tau]))
    assert found.local_loss_exponent[2] == pytest.approx(-math.log(loss[1] / loss[0]) / math.log(change), abs=2e-3)


# ------------------------------------------------------------------------------------------------------------ SGD


def test_lazy_sgd_frontier_is_the_best_of_whole_widths():
    """Whole widths and steps through `solve_dmft`, exact at gamma = 0."""
    budget = 4e4
    found = compute_frontier(HARD, 0.0, ETA, 4, [1e4, budget])
    widths = np.arange(90, 170, 8)
    losses = [
        sf.solve_dmft(sf.Model(HARD, width=int(n), batch_size=4, learning_rate=ETA), int(budget / n)).loss[-1]
        for n in widths
    ]
    best = int(np.argmin(losses))
    assert 0 < best < widths.size - 1
    assert abs(found.widths[1] - widths[best]) <= 8
    # Steps are rounded down there, and widths are 6% apart.
    assert losses[best] * (1.0 - 1e-3) < found.losses[1] < losses[best] * (1.0 + 1e-5)


def test_super_easy_exponents_need_the_noise_of_sgd():
    """Phase III of Paquette et al., 1 - 1/(2 alpha): at C = 1e8 gradient flow still adds 1% to the exponent."""
    task = sf.PowerLawSpectrum(2.0, 2.5)
    settings = {"budgets": np.geomspace(1e7, 1e8, 3), "window": (1e7, 1e8), "width_range": (400.0, np.inf)}
    noisy = compute_frontier(task, 0.0, ETA, 1, **settings)
    assert noisy.predicted.loss_exponent == 0.75
    assert noisy.loss_exponent == pytest.approx(0.75, abs=0.015)
    assert noisy.width_exponent == pytest.approx(0.5, abs=0.03)
    # Without, the law is that of easy tasks: alpha beta/(alpha beta + 1) = 0.833.
    settings["width_range"] = (4000.0, np.inf)
    quiet = compute_frontier(task, 0.0, ETA, np.inf, **settings)
    assert quiet.predicted.loss_exponent == pytest.approx(5.0 / 6.0, rel=1e-12)
    assert quiet.loss_exponent == pytest.approx(5.0 / 6.0, abs=0.01)


def test_rich_training_that_becomes_unstable_is_not_followed():
    """At gamma = 10 the kernel grows past 2/(learning rate s_max) within some ten steps."""
    found = compute_frontier(sf.PowerLawSpectrum(1.5, 0.25), 10.0, 0.2, 1000, [300.0], width_range=(4.0, 100.0))
    assert found.boundary[0] == "stability"
    assert found.steps[0] < 20.0
    assert math.isnan(found.loss_exponent)


def test_runs_at_rest_keep_their_loss():
    """Narrow widths have learned all they can long before the budget is spent; their curves end there."""
    losses = frontier._ClosureLosses(sf.Model(HARD, gamma=1.0, learning_rate=ETA, batch_size=8))
    values = losses.log_loss(2.5, np.array([1e3, 1e5, 1e12]))
    assert values[0] > values[1] == values[2]
    assert math.exp(values[2]) > sf.bottleneck_loss(HARD, width=2.5)


# ------------------------------------------------------------------------------------------------------ the result


def test_save_load_and_repr(tmp_path):
    found = compute_frontier(HARD, 0.0, ETA, np.inf, [1e3, 2e3, 4e3], lambda n, t: n * t, window=(1e3, 4e3))
    found.save(tmp_path / "frontier.npz")
    loaded = scaling.Frontier.load(tmp_path / "frontier.npz")
    for name, value in vars(found).items():
        np.testing.assert_array_equal(getattr(loaded, name), value)
    assert "exponents loss 0.2" in repr(found)
    assert "<lambda>" in found.cost_name
    np.testing.assert_allclose(found.times, ETA * found.steps, rtol=1e-15)
    assert not found.widths.flags.writeable


def test_progress_and_interruption():
    budgets = [1e2, 2e2, 4e2]
    calls = []
    whole = compute_frontier(HARD, 0.0, ETA, np.inf, budgets, progress=lambda *args: calls.append(args))
    assert calls[-1] == (6, 6)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)

    def interrupt_at(count):
        def progress(done, total):
            if done == count:
                raise KeyboardInterrupt

        return progress

    with pytest.raises(Interrupted, match="after 0 of 3 budgets") as caught:
        compute_frontier(HARD, 0.0, ETA, np.inf, budgets, progress=interrupt_at(1))
    assert caught.value.partial is None
    with pytest.raises(Interrupted, match="after 1 of 3 budgets") as caught:
        compute_frontier(HARD, 0.0, ETA, np.inf, budgets, progress=interrupt_at(5))
    assert caught.value.partial.widths.tolist() == whole.widths[:1].tolist()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"budgets": [2.0, 1.0]}, ValueError, "budgets must be positive and increasing"),
        ({"budgets": [0.0, 1.0]}, ValueError, "budgets must be positive and increasing"),
        ({"budgets": [0.5, 10.0]}, ValueError, "budgets must pay for a step at width 1"),
        ({"spectrum": [1.0]}, TypeError, "spectrum must be"),
        ({"gamma": -1.0}, ValueError, "gamma must be"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate must be"),
        ({"batch_size": 1.5}, ValueError, "batch_size must be"),
        ({"cost": 3.0}, TypeError, "cost must be callable"),
        ({"cost": lambda n, t: -1.0}, ValueError, "cost must return a positive"),
        ({"cost": lambda n, t: "much"}, ValueError, "cost must return a positive"),
        ({"cost": lambda n, t: n}, ValueError, "cost must grow with the steps"),
        ({"width_range": 3.0}, TypeError, "width_range must be a pair"),
        ({"width_range": (0.5, 3.0)}, ValueError, r"width_range\[0\] must be"),
        ({"width_range": (5.0, 3.0)}, ValueError, r"width_range\[1\] must be"),
        ({"window": (5.0, 3.0)}, ValueError, r"window\[1\] must be"),
        ({"rtol": 0.1}, ValueError, "rtol must be at most 0.01"),
    ],
)
def test_wrong_arguments_are_refused(changes, error, message):
    arguments = {"spectrum": HARD, "gamma": 0.0, "learning_rate": ETA, "batch_size": np.inf, "budgets": [10.0, 20.0]}
    with pytest.raises(error, match=message):
        compute_frontier(**(arguments | changes))
