r"""Fits of power laws on curves of known truth, and their errors by other routes.

Oracles: `numpy.polyfit` and `scipy.optimize.curve_fit`, bootstraps that draw, windows by plain loops, exact data. The
coverage of the intervals is measured here on a few hundred curves each; the docstrings give that of 4,000.
"""

import math

import numpy as np
import pytest
from scipy.optimize import curve_fit, minimize
from scipy.stats import binom

import scalefield as sf
from scalefield import scaling
from scalefield.errors import AccuracyWarning
from scalefield.scaling._curve_statistics import _block_correction, block_error, longest_window

X = np.geomspace(1.0, 1e3, 40)


def correlated(rng, n, rho):
    """First-order autoregressive noise of variance 1, correlation rho^lag."""
    noise = rng.standard_normal(n)
    for i in range(1, n):
        noise[i] = rho * noise[i - 1] + math.sqrt(1.0 - rho * rho) * noise[i]
    return noise


def covers(fit, truth):
    low, high = fit.confidence_interval
    return low <= truth <= high


def assert_rate(hits, rate):
    """The number of hits is that of a coin of this rate; false alarms 1e-6."""
    low, high = binom.ppf([5e-7, 1.0 - 5e-7], len(hits), rate)
    assert low <= sum(hits) <= high, f"{sum(hits)} of {len(hits)}, expected {rate:.0%}"


# -------------------------------------------------------------------------------------------------- one power


@pytest.mark.parametrize("exponent", [0.5, 2.3, -1.5])
def test_exact_power_law(exponent):
    fit = scaling.fit_power_law(X, 3.0 * X**-exponent)
    assert fit.exponent == pytest.approx(exponent, abs=1e-12)
    assert fit.prefactor == pytest.approx(3.0, rel=1e-12)
    assert fit.standard_error < 1e-12
    assert abs(fit.drift) < 1e-11
    assert fit.window == (X[0], X[-1])
    assert fit.n_points == X.size
    np.testing.assert_allclose(fit.prediction([[2.0, 2e6]]), [[3.0 * 2.0**-exponent, 3.0 * 2e6**-exponent]], rtol=1e-10)


def test_given_errors_are_those_of_curve_fit():
    rng = np.random.default_rng(0)
    y = 2.0 * X**-0.7
    error = y * rng.uniform(0.01, 0.2, X.size)
    y = y + error * rng.standard_normal(X.size)
    fit = scaling.fit_power_law(X, y, standard_error=error, window=None)
    best, covariance = curve_fit(
        lambda z, a, e: a - e * z, np.log(X), np.log(y), sigma=error / y, absolute_sigma=True
    )
    np.testing.assert_allclose((math.log(fit.prefactor), fit.exponent), best, rtol=1e-6)
    np.testing.assert_allclose(fit.covariance, covariance, rtol=1e-5)
    margin = 1.959963984540054 * math.sqrt(covariance[1, 1])
    np.testing.assert_allclose(fit.confidence_interval, (best[1] - margin, best[1] + margin), rtol=1e-5)
    residual = (np.log(y) - best[0] + best[1] * np.log(X)) / (error / y)
    assert fit.reduced_chi_square == pytest.approx(residual @ residual / 38.0, rel=1e-6)
    assert fit.block_length == 0


def test_blocks_of_one_point_are_ordinary_least_squares():
    """Residuals without correlation: the classical covariance, with n - 2 degrees of freedom in the variance."""
    # Seed: with a lag-1 correlation below 0, which counts as none.
    rng = np.random.default_rng(3)
    y = X**-0.5 * np.exp(0.05 * rng.standard_normal(X.size))
    fit = scaling.fit_power_law(X, y, window=None)
    (slope, height), covariance = np.polyfit(np.log(X), np.log(y), 1, cov="unscaled")
    left = np.log(y) - height - slope * np.log(X)
    assert fit.block_length == 1
    assert fit.exponent == pytest.approx(-slope, rel=1e-12)
    assert fit.standard_error == pytest.approx(math.sqrt(covariance[0, 0] * (left @ left) / (X.size - 2)), rel=1e-10)


def test_runs_are_a_bootstrap_over_runs():
    """Drawn bootstrap of 4,000 resamples: covariance to 6 standard errors of a variance, sqrt(2/4000) each.

    The drawn one has R in place of R - 1, and takes the logarithm of each mean: 10 runs of 5% noise change it by 1e-3.
    """
    rng = np.random.default_rng(1)
    runs = X**-0.5 * (1.0 + 0.05 * np.array([correlated(rng, X.size, 0.9) for _ in range(10)]))
    fit = scaling.fit_power_law(X, runs, window=None)
    picks = rng.integers(0, 10, (4000, 10))
    slopes = np.polyfit(np.log(X), np.log(runs[picks].mean(axis=1)).T, 1)[0]
    assert fit.standard_error == pytest.approx(slopes.std() * math.sqrt(10.0 / 9.0), rel=6.0 / math.sqrt(8000.0))
    assert fit.exponent == pytest.approx(-np.polyfit(np.log(X), np.log(runs.mean(axis=0)), 1)[0], rel=1e-12)


@pytest.mark.parametrize("length", [3, 7])
def test_blocks_are_a_bootstrap_of_blocks(length):
    """Drawn moving blocks, 20,000 resamples: covariance to 6 standard errors, 6 sqrt(2/20000) = 6%."""
    rng = np.random.default_rng(2)
    jacobian = np.column_stack((np.ones(X.size), -np.log(X)))
    noise = correlated(rng, X.size, 0.6)
    inverse = np.linalg.pinv(jacobian)
    residuals = noise - jacobian @ (inverse @ noise)
    rho = (residuals[1:] @ residuals[:-1]) / (residuals @ residuals)
    rho = (X.size * rho + 2.0) / (X.size - 4.0)
    starts = rng.integers(0, X.size - length + 1, (20000, -(-X.size // length)))
    drawn = residuals[(starts[:, :, None] + np.arange(length)).reshape(20000, -1)[:, : X.size]]
    expected = np.var(drawn @ inverse.T, axis=0) * _block_correction(jacobian, inverse, rho, length)
    found = block_error(jacobian, residuals, length)
    np.testing.assert_allclose(np.diag(found.covariance), expected, rtol=0.06)
    assert found.block_length == length


@pytest.mark.parametrize(("rho", "length"), [(0.0, 1), (0.5, 6), (0.8, 10)])
def test_block_correction_is_the_missing_part(rho, length):
    """True variance over the mean of blocks' variances, over 600 curves; 6 standard errors of both."""
    rng = np.random.default_rng(4)
    jacobian = np.column_stack((np.ones(X.size), np.log(X)))
    inverse = np.linalg.pinv(jacobian)
    hat = jacobian @ inverse
    moves, blocks = [], []
    for _ in range(600):
        noise = correlated(rng, X.size, rho)
        residuals = noise - hat @ noise
        windows = np.lib.stride_tricks.sliding_window_view(residuals, length)
        variance = 0.0
        for start in range(0, X.size, length):
            segment = inverse[1, start : start + length]
            # About 0, which residuals have on average wherever blocks begin.
            variance += ((windows[:, : segment.size] @ segment) ** 2).mean()
        moves.append(float(inverse[1] @ noise))
        blocks.append(variance)
    ratio = np.square(moves).mean() / np.mean(blocks)
    error = ratio * math.sqrt((2.0 + (np.std(blocks) / np.mean(blocks)) ** 2) / 600.0)
    assert _block_correction(jacobian, inverse, rho, length)[1] == pytest.approx(ratio, abs=6.0 * error)


def test_long_curves_take_the_limit_of_the_correction():
    """Just above 1,500 points the limit is close to the dense one just below: 3%."""
    factors = []
    for n in (1500, 1501):
        jacobian = np.column_stack((np.ones(n), np.linspace(0.0, 1.0, n)))
        factors.append(_block_correction(jacobian, np.linalg.pinv(jacobian), 0.6, 20))
    np.testing.assert_allclose(factors[0], factors[1], rtol=0.03)


# --------------------------------------------------------------------------------------------------- coverage


@pytest.mark.parametrize(("n", "rho", "rate"), [(20, 0.0, 0.965), (50, 0.5, 0.935), (50, 0.8, 0.908)])
def test_coverage_of_blocks(n, rho, rate):
    """200 curves of 5% noise; the rates measured on 4,000."""
    rng = np.random.default_rng(5)
    x = np.geomspace(1.0, 1e3, n)
    curves = [x**-0.5 * np.exp(0.05 * correlated(rng, n, rho)) for _ in range(200)]
    assert_rate([covers(scaling.fit_power_law(x, y, window=None), 0.5) for y in curves], rate)


def test_coverage_of_runs():
    """200 times 6 runs, whose noise of 20% is one long fluctuation: the interval is exact but for the logarithm."""
    rng = np.random.default_rng(6)
    hits = []
    for _ in range(200):
        noise = rng.standard_normal((6, 2)) @ np.stack((np.ones(X.size), np.linspace(-1.0, 1.0, X.size)))
        hits.append(covers(scaling.fit_power_law(X, X**-0.5 * (1.0 + 0.1 * noise), window=None), 0.5))
    assert_rate(hits, 0.95)


def test_coverage_of_given_errors_and_of_automatic_windows():
    rng = np.random.default_rng(7)
    known, automatic = [], []
    for _ in range(150):
        y = X**-0.5 * (1.0 + 0.05 * rng.standard_normal(X.size))
        known.append(covers(scaling.fit_power_law(X, y, standard_error=0.05 * X**-0.5, window=None), 0.5))
        automatic.append(covers(scaling.fit_power_law(X, y), 0.5))
    assert_rate(known, 0.95)
    assert_rate(automatic, 0.955)


def test_other_confidence_levels():
    y = X**-0.5 * np.exp(0.05 * np.random.default_rng(8).standard_normal(X.size))
    widths = [np.ptp(scaling.fit_power_law(X, y, confidence_level=c).confidence_interval) for c in (0.5, 0.95, 0.999)]
    assert widths[0] < widths[1] < widths[2]


# ---------------------------------------------------------------------------------------------------- windows


def plain_window(log_x, log_y, error, max_drift, min_length):
    """The rule of the docstring, window by window."""
    best = None
    for start in range(log_x.size):
        for stop in range(start + 9, log_x.size + 1):
            length = log_x[stop - 1] - log_x[start]
            if length < min_length - 1e-9:
                continue
            n = stop - start
            slopes, variances = [], []
            for first, last in ((0, n // 3), (n // 3, 2 * n // 3), (2 * n // 3, n)):
                x, y = log_x[start + first : start + last], log_y[start + first : start + last]
                slopes.append(np.polyfit(x, y, 1)[0])
                variances.append(np.mean(error[start + first : start + last] ** 2) / ((x - x.mean()) ** 2).sum())
            drift = max(slopes) - min(slopes)
            later = best is None or length > best[0] + 1e-9 or (abs(length - best[0]) <= 1e-9 and start > best[1])
            if drift <= max_drift + 3.0 * math.sqrt(2.0 * max(variances)) and later:
                best = (length, start, stop)
    return best[1:]


@pytest.mark.parametrize("noise", [1e-4, 0.01])
def test_window_is_the_longest_by_the_rule(noise):
    """Three powers in a row, and noise."""
    x = np.geomspace(1.0, 1e6, 30)
    y = x**-1.0 + 0.05 * x**-0.4 + 1e-4
    log_y = np.log(y) + noise * np.random.default_rng(9).standard_normal(x.size)
    error = np.full(x.size, noise)
    found = longest_window(np.log(x), log_y, error, 0.1, math.log(10.0))
    assert found[2]
    assert found[:2] == plain_window(np.log(x), log_y, error, 0.1, math.log(10.0))


def test_window_leaves_the_transient_and_the_floor_out():
    """y = (x^-0.5 + 4/x^2) + 1e-5: within 0.01 of 0.5 from x = 30 to 7e6, and only there."""
    x = np.geomspace(1.0, 1e12, 121)
    fit = scaling.fit_power_law(x, x**-0.5 + 4.0 * x**-2.0 + 1e-5)
    assert fit.exponent == pytest.approx(0.5, abs=0.01)
    assert 5.0 < fit.window[0] < 200.0
    assert 3e6 < fit.window[1] < 3e8
    assert abs(fit.drift) < 0.04
    given = scaling.fit_power_law(x, x**-0.5 + 4.0 * x**-2.0 + 1e-5, window=(1e3, 1e6))
    assert given.window == (x[30], x[60])
    assert given.n_points == 31


def test_no_window_is_told():
    x = np.geomspace(1.0, 1e4, 40)
    with pytest.warns(AccuracyWarning, match=r"no window of 1 decades has an exponent constant to 0\.02"):
        fit = scaling.fit_power_law(x, np.exp(-0.1 * np.log(x) ** 2))
    # -d log y/d log x = 0.2 log x: the same drift everywhere
    assert fit.drift == pytest.approx(0.2 * math.log(fit.window[1] / fit.window[0]), rel=1e-6)


def test_few_points_are_all_taken():
    x = np.geomspace(1.0, 1e4, 8)
    assert scaling.fit_power_law(x, 1.0 / (1.0 + x)).n_points == 8


def test_flow_has_its_exponent():
    """Rich gradient flow: 2 beta/(1+beta), its window in the late part; what is left is drift."""
    flow = sf.solve_gradient_flow(sf.Model(sf.PowerLawSpectrum(1.5, 0.5), gamma=1.0), np.geomspace(1.0, 1e12, 100))
    fit = scaling.fit_power_law(flow.times, flow.loss)
    assert fit.exponent == pytest.approx(2.0 / 3.0, abs=0.01)
    assert fit.window[1] == pytest.approx(1e12)
    assert 0.0 < fit.drift < 0.03


# --------------------------------------------------------------------------------------------- local exponents


def test_local_exponents_of_a_parabola():
    z = np.log(X)
    y = np.exp(1.0 - 0.5 * z - 0.03 * z**2)
    for bandwidth in (None, 0.1, 1.0):
        np.testing.assert_allclose(scaling.local_exponents(X, y, bandwidth=bandwidth), 0.5 + 0.06 * z, atol=1e-10)


def test_local_exponents_of_gradient_flow():
    """Differences, 20 points a decade, against the engine's derivative: second order, 1.1e-3 at the first modes."""
    flow = sf.solve_gradient_flow(sf.Model(sf.PowerLawSpectrum(1.5, 0.5), gamma=0.1), np.geomspace(1.0, 1e6, 121))
    found = scaling.local_exponents(flow.times, flow.loss)
    np.testing.assert_allclose(found[1:-1], flow.local_exponent[1:-1], atol=1.5e-3)


def test_bandwidth_smooths():
    y = X**-0.5 * np.exp(0.01 * np.random.default_rng(10).standard_normal(X.size))
    rough, smooth = (scaling.local_exponents(X, y, bandwidth=b).std() for b in (None, 0.8))
    assert smooth < 0.3 * rough


# ------------------------------------------------------------------------------------------------ broken powers


def broken(x, early, late, crossover, width):
    return 2.0 * x**-early * (1.0 + (x / crossover) ** (1.0 / width)) ** (-(late - early) * width)


@pytest.mark.parametrize(
    ("early", "late", "crossover", "width"), [(0.5, 0.7, 1e4, 1.5), (0.5, 2.0 / 3.0, 1e5, 0.3), (1.2, 0.2, 30.0, 1.0)]
)
def test_exact_broken_power_law(early, late, crossover, width):
    x = np.geomspace(1.0, 1e8, 60)
    fit = scaling.fit_broken_power_law(x, broken(x, early, late, crossover, width))
    found = (fit.early_exponent, fit.exponent, fit.crossover, fit.crossover_width, fit.prefactor)
    np.testing.assert_allclose(found, (early, late, crossover, width, 2.0), rtol=1e-5)
    np.testing.assert_allclose(fit.prediction(x), broken(x, early, late, crossover, width), rtol=1e-8)
    assert fit.late_prefactor == pytest.approx(2.0 * crossover ** (late - early), rel=1e-4)
    assert fit.prediction(crossover) == pytest.approx(broken(crossover, early, late, crossover, width), rel=1e-6)


def test_broken_errors_are_those_of_curve_fit():
    rng = np.random.default_rng(11)
    x = np.geomspace(1.0, 1e8, 50)
    y = broken(x, 0.5, 0.7, 1e4, 1.5) * np.exp(0.01 * rng.standard_normal(x.size))
    fit = scaling.fit_broken_power_law(x, y, standard_error=0.01 * y)

    def log_model(z, a, early, late, place, log_width):
        width = np.exp(log_width)
        return a - early * z - (late - early) * width * np.logaddexp(0.0, (z - place) / width)

    start = [0.7, 0.5, 0.7, 9.0, 0.4]
    best, covariance = curve_fit(log_model, np.log(x), np.log(y), start, np.full(x.size, 0.01), absolute_sigma=True)
    found = [math.log(fit.prefactor), fit.early_exponent, fit.exponent, math.log(fit.crossover)]
    np.testing.assert_allclose(found, best[:4], rtol=1e-4)
    np.testing.assert_allclose(fit.covariance, covariance, rtol=1e-2, atol=1e-3 * covariance[4, 4])


def test_coverage_of_broken_power_laws():
    """40 curves of 2% noise, independent: late and early exponents; the docstring has 1,000."""
    rng = np.random.default_rng(12)
    x = np.geomspace(1.0, 1e8, 60)
    y = broken(x, 0.5, 0.7, 1e4, 1.5)
    fits = [scaling.fit_broken_power_law(x, y * np.exp(0.02 * rng.standard_normal(60))) for _ in range(40)]
    assert_rate([covers(fit, 0.7) for fit in fits], 0.95)
    assert_rate([fit.early_confidence_interval[0] <= 0.5 <= fit.early_confidence_interval[1] for fit in fits], 0.95)


def test_crossover_from_lazy_to_rich():
    """Gradient flow at beta = 0.5: exponents beta and 2 beta/(1+beta) to 0.01, and x_c ~ gamma^{-1/(1-beta)} to 2%."""
    found = []
    for gamma in (1e-3, 1e-4):
        model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5), gamma=gamma)
        tau = scaling.crossover_time(gamma, 0.5) * np.geomspace(1e-5, 1e6, 60)
        fit = scaling.fit_broken_power_law(tau[tau > 30.0], sf.solve_gradient_flow(model, tau[tau > 30.0]).loss)
        assert fit.exponent == pytest.approx(2.0 / 3.0, abs=0.01)
        assert fit.early_exponent == pytest.approx(0.5, abs=0.01)
        found.append(fit.crossover)
    assert math.log10(found[1] / found[0]) == pytest.approx(2.0, rel=0.02)


# ---------------------------------------------------------------------------------------------------- saturating

WIDTH, TIME = (v.ravel() for v in np.meshgrid([16.0, 32.0, 64.0, 128.0, 256.0, 512.0], np.geomspace(10.0, 1e4, 8)))
TRUTH = {
    "irreducible_loss": 0.1,
    "width_prefactor": 2.0,
    "width_exponent": 0.8,
    "time_prefactor": 3.0,
    "time_exponent": 0.5,
}
LOSS = 0.1 + 2.0 * WIDTH**-0.8 + 3.0 * TIME**-0.5


def test_exact_chinchilla():
    fit = scaling.fit_chinchilla(WIDTH, TIME, LOSS)
    for name, value in TRUTH.items():
        assert getattr(fit, name) == pytest.approx(value, rel=1e-7)
    np.testing.assert_allclose(fit.prediction(WIDTH, TIME), LOSS, rtol=1e-9)
    assert fit.window == ((16.0, 512.0), (10.0, pytest.approx(1e4)))


def test_units_do_not_matter():
    """Width, time and loss in other units: the same exponents, prefactors and errors converted."""
    rng = np.random.default_rng(13)
    loss = LOSS * np.exp(0.02 * rng.standard_normal(LOSS.size))
    plain = scaling.fit_chinchilla(WIDTH, TIME, loss)
    other = scaling.fit_chinchilla(1e6 * WIDTH, 1e-3 * TIME, 50.0 * loss)
    for name in ("width_exponent", "time_exponent"):
        assert getattr(other, name) == pytest.approx(getattr(plain, name), rel=1e-5)
        assert other.standard_errors[name] == pytest.approx(plain.standard_errors[name], rel=1e-3)
    assert other.irreducible_loss == pytest.approx(50.0 * plain.irreducible_loss, rel=1e-5)
    assert other.standard_errors["irreducible_loss"] == pytest.approx(
        50.0 * plain.standard_errors["irreducible_loss"], rel=1e-3
    )
    assert other.width_prefactor == pytest.approx(50.0 * 1e6**plain.width_exponent * plain.width_prefactor, rel=1e-4)


def test_chinchilla_is_the_least_of_hubers_objective():
    """Nelder-Mead from the truth, and from the fit, finds nothing below it."""
    rng = np.random.default_rng(14)
    noise = 0.02 * rng.standard_normal(LOSS.size)
    noise[::9] += 0.3
    loss = LOSS * np.exp(noise)
    fit = scaling.fit_chinchilla(WIDTH, TIME, loss)

    def objective(p):
        left = np.abs(np.log(loss) - np.log(p[0] ** 2 + np.exp(p[1]) * WIDTH ** -p[2] + np.exp(p[3]) * TIME ** -p[4]))
        threshold = 1.345 * fit.scale
        return np.where(left <= threshold, 0.5 * left**2, threshold * (left - 0.5 * threshold)).sum()

    def start(values):
        return [math.sqrt(values[0]), math.log(values[1]), values[2], math.log(values[3]), values[4]]

    found = [getattr(fit, name) for name in TRUTH]
    least = objective(start(found))
    for values in (list(TRUTH.values()), found):
        result = minimize(objective, start(values), method="Nelder-Mead", options={"maxiter": 4000, "fatol": 1e-14})
        assert least <= result.fun * (1.0 + 1e-5)
    left = np.log(loss) - np.log(fit.prediction(WIDTH, TIME))
    assert fit.scale == pytest.approx(1.4826 * np.median(np.abs(left)), rel=5e-3)
    assert fit.n_outliers >= 6


def test_outliers_hardly_matter():
    """One point in nine off by 35%: exponents stay within 3 of their standard errors of those without."""
    rng = np.random.default_rng(15)
    clean = LOSS * np.exp(0.01 * rng.standard_normal(LOSS.size))
    spoilt = clean.copy()
    spoilt[::9] *= 1.35
    a, b = (scaling.fit_chinchilla(WIDTH, TIME, loss) for loss in (clean, spoilt))
    for name in ("width_exponent", "time_exponent"):
        assert abs(getattr(a, name) - getattr(b, name)) < 3.0 * b.standard_errors[name]
        assert abs(getattr(b, name) - TRUTH[name]) < 4.0 * b.standard_errors[name]


@pytest.mark.parametrize("floor", [None, 0.0])
def test_no_irreducible_loss(floor):
    loss = LOSS - 0.1
    fit = scaling.fit_chinchilla(WIDTH, TIME, loss, irreducible_loss=floor)
    assert fit.irreducible_loss == pytest.approx(0.0, abs=1e-9)
    assert fit.width_exponent == pytest.approx(0.8, rel=1e-6)
    assert math.isnan(fit.standard_errors["irreducible_loss"]) or floor is None


def test_known_irreducible_loss_makes_errors_smaller():
    rng = np.random.default_rng(16)
    loss = LOSS * np.exp(0.02 * rng.standard_normal(LOSS.size))
    free, known = (scaling.fit_chinchilla(WIDTH, TIME, loss, irreducible_loss=floor) for floor in (None, 0.1))
    assert known.irreducible_loss == 0.1
    assert math.isnan(known.standard_errors["irreducible_loss"])
    for name in ("width_exponent", "time_exponent"):
        assert known.standard_errors[name] < free.standard_errors[name]


def test_compute_optimal_exponent_of_a_fit():
    """Slope of the least prediction over widths at given compute, and its error by varying the parameters."""
    rng = np.random.default_rng(17)
    loss = (LOSS - 0.1) * np.exp(0.02 * rng.standard_normal(LOSS.size))
    fit = scaling.fit_chinchilla(WIDTH, TIME, loss, irreducible_loss=0.0)
    width = np.geomspace(1.0, 1e20, 20001)
    best = [fit.prediction(width, compute / width).min() for compute in (1e15, 1e25)]
    assert fit.exponent == pytest.approx(math.log10(best[0] / best[1]) / 10.0, rel=1e-4)
    draws = rng.multivariate_normal((fit.width_exponent, fit.time_exponent), fit.covariance[2::2, 2::2], 20000)
    assert fit.standard_error == pytest.approx((draws[:, 0] * draws[:, 1] / draws.sum(axis=1)).std(), rel=0.05)
    low, high = fit.confidence_interval
    assert low < fit.exponent < high


@pytest.mark.parametrize("known", [False, True])
def test_coverage_of_chinchilla(known):
    """30 grids of 2% noise each: both exponents; the docstring has 1,000."""
    rng = np.random.default_rng(18)
    hits = {"width_exponent": [], "time_exponent": []}
    for _ in range(30):
        loss = LOSS * np.exp(0.02 * rng.standard_normal(LOSS.size))
        fit = scaling.fit_chinchilla(WIDTH, TIME, loss, standard_error=0.02 * loss if known else None)
        for name, hit in hits.items():
            low, high = fit.confidence_intervals[name]
            hit.append(low <= TRUTH[name] <= high)
    for hit in hits.values():
        assert_rate(hit, 0.95)


# ------------------------------------------------------------------------------------------------------- input


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: scaling.fit_power_law([1, 2, 2], [1, 1, 1]), ValueError, r"x must be increasing, got 2.0 after 2.0"),
        (lambda: scaling.fit_power_law([1, 2, 3], [1, 0, 1]), ValueError, "y must be positive, got 0.0 at index 1"),
        (lambda: scaling.fit_power_law([1, 2, 3], [1, 1]), ValueError, "y must have one entry a point of x, 3, got 2"),
        (lambda: scaling.fit_power_law([1, 2], [1, 1]), ValueError, "x must have at least 3 points, got 2"),
        (lambda: scaling.fit_power_law(X, [X]), ValueError, "y must have at least 2 runs"),
        (lambda: scaling.fit_power_law(X, [X, -2 * X]), ValueError, "mean of y over runs must be positive"),
        (lambda: scaling.fit_power_law(X, X, standard_error=[1.0]), ValueError, "standard_error must have one entry"),
        (lambda: scaling.fit_power_law(X, X, standard_error=0 * X), ValueError, "standard_error must be positive"),
        (lambda: scaling.fit_power_law(X, [X, X], standard_error=X), ValueError, "standard_error must be None where"),
        (lambda: scaling.fit_power_law(X, X, window="late"), ValueError, "window must be 'auto', a pair"),
        (lambda: scaling.fit_power_law(X, X, window=(5.0, 2.0)), ValueError, "window must be a pair"),
        (lambda: scaling.fit_power_law(X, X, window=(5.0, 5.1)), ValueError, "window must hold at least 3 points"),
        (lambda: scaling.fit_power_law(X, X, confidence_level=1.0), ValueError, "confidence_level must be less than 1"),
        (lambda: scaling.fit_power_law(X, X, block_length=41), ValueError, "block_length must be at most the 40"),
        (lambda: scaling.local_exponents(X, X, bandwidth=0.0), ValueError, "bandwidth must be a finite number greater"),
        (lambda: scaling.fit_broken_power_law(X[:7], X[:7]), ValueError, "x must have at least 8 points, got 7"),
        (lambda: scaling.fit_chinchilla(WIDTH, TIME[1:], LOSS), ValueError, "must have the same length, got 48, 47"),
        (lambda: scaling.fit_chinchilla(X[:7], X[:7], X[:7]), ValueError, "loss must have at least 8 points, got 7"),
        (lambda: scaling.fit_chinchilla(0 * X + 1, X, X), ValueError, "width must have at least 3 different values"),
        (
            lambda: scaling.fit_chinchilla(WIDTH, TIME, LOSS, irreducible_loss=9.0),
            ValueError,
            "irreducible_loss must be less than every loss, got 9.0",
        ),
        (lambda: scaling.fit_power_law(X, "curve"), TypeError, "y must be an array of real numbers"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
