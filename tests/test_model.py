r"""Models: parameters that are refused, and the stability bound by other routes.

Theory of the bound. In the lazy limit each component s of X = Lambda^{1/2} A(0)^T A(0) Lambda^{1/2}/N holds a loss V_s
whose mean obeys V_s(t+1) = (1 - eta s)^2 V_s(t) + (eta^2/B) s^2 sum_s' V_s'(t). Population gradient descent is stable
for eta s_max < 2. With noise, stationarity with sum V = 1 means (1/B) sum_s eta s/(2 - eta s) = 1, the lowest root of
which is the bound if it lies below 2/s_max (it always does: the sum has a pole there). At infinite width s = lambda_k.
"""

import dataclasses
import json
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import eigvalsh

import scalefield as sf
from scalefield.errors import StabilityWarning
from strategies import models, tasks

TASK = sf.PowerLawSpectrum(1.5, 0.5, 100)


# ---------------------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"width": 0}, ValueError, "width must be an integer of at least 1, got 0"),
        ({"width": -8}, ValueError, "width must be an integer of at least 1, got -8"),
        ({"width": 2.5}, ValueError, "width must be an integer of at least 1, got 2.5"),
        ({"width": math.nan}, ValueError, "width must be an integer of at least 1, got nan"),
        ({"width": -math.inf}, ValueError, "width must be an integer of at least 1, got -inf"),
        ({"width": True}, TypeError, "width must be an integer, got True of type bool"),
        ({"width": "64"}, TypeError, "width must be an integer, got '64' of type str"),
        ({"width": "inf"}, TypeError, "width must be an integer, got 'inf' of type str"),
        ({"width": None}, TypeError, "width must be an integer, got None of type NoneType"),
        ({"batch_size": 0}, ValueError, "batch_size must be an integer of at least 1, got 0"),
        ({"batch_size": -1}, ValueError, "batch_size must be an integer of at least 1, got -1"),
        ({"n_samples": 0}, ValueError, "n_samples must be an integer of at least 1, got 0"),
        ({"n_samples": 0.5}, ValueError, "n_samples must be an integer of at least 1, got 0.5"),
        ({"n_samples": "all"}, TypeError, "n_samples must be an integer, got 'all' of type str"),
        ({"batch_size": 0.5}, ValueError, "batch_size must be an integer of at least 1, got 0.5"),
        ({"batch_size": math.nan}, ValueError, "batch_size must be an integer of at least 1, got nan"),
        ({"batch_size": [32]}, TypeError, "batch_size must be an integer, got [32] of type list"),
        ({"gamma": -0.1}, ValueError, "gamma must be a finite number at least 0, got -0.1"),
        ({"gamma": math.inf}, ValueError, "gamma must be a finite number at least 0, got inf"),
        ({"gamma": math.nan}, ValueError, "gamma must be a finite number at least 0, got nan"),
        ({"gamma": "rich"}, TypeError, "gamma must be a real number, got 'rich' of type str"),
        ({"gamma": False}, TypeError, "gamma must be a real number, got False of type bool"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate must be a finite number greater than 0, got 0.0"),
        ({"learning_rate": -0.1}, ValueError, "learning_rate must be a finite number greater than 0, got -0.1"),
        ({"learning_rate": math.inf}, ValueError, "learning_rate must be a finite number greater than 0, got inf"),
        ({"learning_rate": math.nan}, ValueError, "learning_rate must be a finite number greater than 0, got nan"),
        ({"learning_rate": 0.1 + 0j}, TypeError, "learning_rate must be a real number, got (0.1+0j) of type complex"),
        ({"label_noise": -1.0}, ValueError, "label_noise must be a finite number at least 0, got -1.0"),
        ({"label_noise": math.inf}, ValueError, "label_noise must be a finite number at least 0, got inf"),
        ({"label_noise": math.nan}, ValueError, "label_noise must be a finite number at least 0, got nan"),
        ({"label_noise": None}, TypeError, "label_noise must be a real number, got None of type NoneType"),
        ({"spectrum": [1.0, 0.5]}, TypeError, "spectrum must be a PowerLawSpectrum or a Spectrum, got [1.0, 0.5] of "
         "type list"),
        ({"spectrum": None}, TypeError, "spectrum must be a PowerLawSpectrum or a Spectrum, got None of type NoneType"),
        ({"spectrum": sf.Spectrum}, TypeError, "spectrum must be a PowerLawSpectrum or a Spectrum, got "
         "<class 'scalefield.spectrum.Spectrum'> of type ABCMeta"),
    ],
)  # fmt: skip
def test_model_refuses(arguments, error, message):
    with pytest.raises(error) as caught:
        sf.Model(**({"spectrum": TASK} | arguments))
    assert str(caught.value) == message
    # A copy with the same change is refused alike.
    with pytest.raises(error) as caught:
        sf.Model(TASK).replace(**arguments)
    assert str(caught.value) == message


def test_defaults():
    model = sf.Model(TASK)
    assert (model.width, model.gamma, model.batch_size, model.label_noise) == (math.inf, 0.0, math.inf, 0.0)
    assert model.learning_rate == 0.1
    assert not model.is_rich
    assert model.replace(gamma=5e-324).is_rich
    assert (model.n_samples, model.inverse_n_samples, model.is_offline) == (math.inf, 0.0, False)
    assert (model.replace(n_samples=40.0).inverse_n_samples, model.replace(n_samples=40).is_offline) == (1 / 40, True)


@pytest.mark.parametrize("infinity", [math.inf, np.inf, float("inf"), np.float32("inf"), np.float64("inf")])
def test_infinite_sizes(infinity):
    model = sf.Model(TASK, width=infinity, batch_size=infinity)
    assert model == sf.Model(TASK)
    assert type(model.width) is float
    assert (model.inverse_width, model.inverse_batch_size) == (0.0, 0.0)


@pytest.mark.parametrize("size", [64, 64.0, np.int32(64), np.float32(64.0), np.uint8(64)])
def test_integral_sizes(size):
    model = sf.Model(TASK, width=size, batch_size=size)
    assert model == sf.Model(TASK, width=64, batch_size=64)
    assert type(model.width) is int
    assert type(model.batch_size) is int
    assert (model.inverse_width, model.inverse_batch_size) == (1 / 64, 1 / 64)


def test_settings_become_plain_numbers():
    model = sf.Model(TASK, gamma=1, learning_rate=np.float32(0.5), label_noise=np.int64(2))
    assert [type(value) for value in (model.gamma, model.learning_rate, model.label_noise)] == [float] * 3


def test_models_are_frozen_hashable_and_compare_by_value():
    model = sf.Model(TASK, width=8, gamma=1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.width = 16
    twin = sf.Model(sf.PowerLawSpectrum(1.5, 0.5, 100), width=8.0, gamma=1)
    assert twin == model
    assert hash(twin) == hash(model)
    # Computed values are no part of the comparison.
    assert twin.stability_bound > 0.0
    assert twin == model
    assert hash(twin) == hash(model)
    assert model != model.replace(width=9)
    explicit = sf.Model(sf.Spectrum([1.0], [1.0]))
    assert len({explicit, sf.Model(sf.Spectrum([1.0], [1.0])), sf.Model(sf.Spectrum([1.0], [2.0]))}) == 2


def test_replace_changes_nothing_else():
    model = sf.Model(TASK, width=8, gamma=1.0, learning_rate=0.2, batch_size=4, label_noise=0.5)
    bound = model.stability_bound
    changed = model.replace(width=800, learning_rate=0.3)
    assert model.describe() | {"width": 800, "learning_rate": 0.3} == changed.describe()
    assert changed.stability_bound > bound  # not the old model's
    assert model.stability_bound == bound
    with pytest.raises(TypeError, match="widht"):
        model.replace(widht=3)


@settings(deadline=None)
@given(models(spectra=tasks()))
def test_describe_round_trip(model):
    description = model.describe()
    again = sf.Model.from_description(json.loads(json.dumps(description)))
    assert again == model
    assert again.describe() == description
    assert type(again.width) is type(model.width)
    assert type(again.batch_size) is type(model.batch_size)


def test_summary_names_every_parameter():
    model = sf.Model(TASK, width=64, gamma=0.5, learning_rate=0.25, batch_size=32, label_noise=0.125)
    assert model.summary() == "width 64, gamma 0.5, learning rate 0.25, batch 32, label noise 0.125"
    assert sf.Model(TASK).summary() == "width inf, gamma 0, learning rate 0.1, batch inf"
    offline = sf.Model(TASK, n_samples=50, label_noise=0.5)
    assert offline.summary() == "width inf, gamma 0, learning rate 0.1, batch inf, 50 samples, label noise 0.5"


def test_largest_loss_scales_with_the_task():
    assert sf.Model(sf.Spectrum([1.0, 0.5], [2.0, 2.0]), label_noise=2.0).largest_loss == pytest.approx(1e13, rel=1e-12)
    # A target of zero still has a threshold.
    assert sf.Model(sf.Spectrum([1.0], [0.0])).largest_loss == 1e12


# ------------------------------------------------------------------------------------------ stability bound


def noise_feedback(eta, eigenvalues, batch_size):
    """(1/B) sum_s eta s/(2 - eta s): loss that the noise of a unit loss makes in all later steps."""
    return np.sum(eta * eigenvalues / (2.0 - eta * eigenvalues)) / batch_size


def bisect_bound(eigenvalues, batch_size):
    low, high = 0.0, 2.0 / eigenvalues.max()
    for _ in range(60):
        middle = 0.5 * (low + high)
        if noise_feedback(middle, eigenvalues, batch_size) < 1.0:
            low = middle
        else:
            high = middle
    return low


@settings(deadline=None)
@given(tasks())
def test_infinite_width_and_batch(task):
    model = sf.Model(task)
    # lambda_1 itself: no rounding but that of the division.
    assert model.stability_bound == pytest.approx(2.0 / task.modes(0, 1)[0][0], rel=1e-15, abs=0)
    assert model.largest_eigenvalue == task.modes(0, 1)[0][0]


@settings(deadline=None, max_examples=60)
@given(tasks(max_modes=300, infinite=False), st.integers(1, 10**6))
def test_infinite_width_and_finite_batch(task, batch_size):
    eigenvalues = task.modes(0, task.n_modes)[0]
    bound = sf.Model(task, batch_size=batch_size).stability_bound
    # Modes 33 and later come from a quadrature right to 1e-10; the root is found to 1e-13.
    assert bound == pytest.approx(bisect_bound(eigenvalues, batch_size), rel=2e-10, abs=0)
    assert bound < 2.0 / eigenvalues[0]


def test_infinite_spectrum_with_finite_batch():
    # Eigenvalues beyond mode K = 1e5 add 1/(2 B) sum_{k>K} eta lambda_k < 1e-5 to the feedback.
    eigenvalues = np.arange(1.0, 1e5 + 1.0) ** -2.0
    for batch_size in (1, 10, 1000):
        bound = sf.Model(sf.PowerLawSpectrum(2.0, 0.5), batch_size=batch_size).stability_bound
        assert bound == pytest.approx(bisect_bound(eigenvalues, batch_size), rel=1e-5, abs=0)


@pytest.mark.parametrize("batch_size", [math.inf, 1, 3, 40, 500])
@pytest.mark.parametrize("width", [math.inf, 1, 5, 60, 1000])
@pytest.mark.parametrize(("n_modes", "eigenvalue"), [(1, 1.0), (20, 0.25), (300, 7.0)])
def test_equal_eigenvalues_have_a_closed_form(n_modes, eigenvalue, width, batch_size):
    """Marchenko-Pastur: s_max = lambda (1 + sqrt(M/N))^2, and D = B at kappa = lambda (1 + M/B)."""
    model = sf.Model(sf.Spectrum([eigenvalue] * n_modes, [1.0] * n_modes), width=width, batch_size=batch_size)
    kappa = max(1.0 + math.sqrt(n_modes / width), 1.0 + n_modes / batch_size)
    feedback = 0.0 if kappa == 1.0 else n_modes / (kappa - 1.0) / width
    # At the minimum of kappa (1 + D/N) an error of 1e-13 in log(kappa - 1) does not matter; at D = B it is 1e-13.
    expected = 2.0 / (eigenvalue * kappa * (1.0 + feedback))
    assert model.stability_bound == pytest.approx(expected, rel=1e-12, abs=0)
    edge = eigenvalue * (1.0 + math.sqrt(n_modes / width)) ** 2
    assert model.largest_eigenvalue == pytest.approx(edge, rel=1e-12, abs=0)


# Two levels with many modes each, so that no mode stands alone: the largest eigenvalue of a sample then fluctuates by
# N^{-2/3} (Tracy-Widom), 1% here. (A single mode's fluctuates by N^{-1/2}, and the edge holds only on average.)
N = 800
TWO_LEVELS = np.repeat([1.0, 0.4], [400, 1600])


@pytest.fixture(scope="module")
def sampled_eigenvalues():
    features = np.random.default_rng(3).standard_normal((N, TWO_LEVELS.size)) * np.sqrt(TWO_LEVELS)
    return np.linalg.eigvalsh(features @ features.T / N)


def test_finite_width_against_a_sampled_matrix(sampled_eigenvalues):
    model = sf.Model(sf.Spectrum(TWO_LEVELS, np.ones(TWO_LEVELS.size)), width=N)
    # Tracy-Widom: mean -1.2 and deviation 1.3 in units of about s_max N^{-2/3} = 1.2%; 5% is three deviations. The
    # value is 3.6 times smaller than at infinite width, so a wrong formula cannot hide in 5%.
    assert model.largest_eigenvalue == pytest.approx(sampled_eigenvalues.max(), rel=0.05, abs=0)
    assert model.stability_bound == pytest.approx(2.0 / sampled_eigenvalues.max(), rel=0.05, abs=0)
    assert model.stability_bound < 0.35 * sf.Model(model.spectrum).stability_bound


def recursion_radius(eta, eigenvalues, batch_size):
    """Spectral radius of V_s <- (1 - eta s)^2 V_s + (eta^2/B) s^2 sum V, made symmetric by V_s = s U_s."""
    step = np.diag((1.0 - eta * eigenvalues) ** 2) + eta**2 / batch_size * np.outer(eigenvalues, eigenvalues)
    return np.abs(np.linalg.eigvalsh(step)).max()


@pytest.mark.parametrize("batch_size", [1, 30, 400, 3000])
def test_finite_width_and_batch_against_the_mean_square_recursion(sampled_eigenvalues, batch_size):
    model = sf.Model(sf.Spectrum(TWO_LEVELS, np.ones(TWO_LEVELS.size)), width=N, batch_size=batch_size)
    bound = model.stability_bound
    # Sums over a sample's eigenvalues fluctuate by 1/N = 0.1%, and more only close to the edge (large batches).
    margin = 0.01 if batch_size < 1000 else 0.05
    assert recursion_radius((1.0 - margin) * bound, sampled_eigenvalues, batch_size) < 1.0
    assert recursion_radius((1.0 + margin) * bound, sampled_eigenvalues, batch_size) > 1.0


@pytest.mark.parametrize(("width", "batch_size"), [(20, 1), (150, 1), (150, 3)])
def test_the_average_over_matrices_of_a_power_law(width, batch_size):
    """rho averaged over samples: where noise sets the bound, the mean-field feedback at it is 1."""
    spectrum = sf.PowerLawSpectrum(1.5, 0.5, 200)
    bound = sf.Model(spectrum, width=width, batch_size=batch_size).stability_bound
    rng = np.random.default_rng(5)
    scale = np.sqrt(spectrum.modes(0, 200)[0])
    feedback = []
    for _ in range(20 if width > 100 else 200):
        features = rng.standard_normal((width, 200)) * scale
        eigenvalues = np.linalg.eigvalsh(features @ features.T / width)
        assert bound * eigenvalues.max() < 2.0  # else the average would not exist
        feedback.append(noise_feedback(bound, eigenvalues, batch_size))
    error = np.std(feedback, ddof=1) / math.sqrt(len(feedback))
    # Five standard errors (false alarms 6e-7 each) and the bias of the deterministic equivalent, O(1/N).
    assert abs(np.mean(feedback) - 1.0) < 5.0 * error + 3.0 / width


@settings(deadline=None, max_examples=60)
@given(models(rich=False))
def test_noise_and_finite_width_only_lower_the_bound(model):
    bound = model.stability_bound
    # One rounding of 1e-13 in the root.
    assert 0.0 < bound <= sf.Model(model.spectrum).stability_bound * (1.0 + 1e-12)
    assert bound * model.largest_eigenvalue <= 2.0 * (1.0 + 1e-12)
    if math.isfinite(model.width):
        assert bound <= model.replace(width=2 * model.width).stability_bound * (1.0 + 1e-12)
    if math.isfinite(model.batch_size):
        assert bound <= model.replace(batch_size=2 * model.batch_size).stability_bound * (1.0 + 1e-12)
    # Neither the learning rate nor richness nor label noise enters the lazy bound.
    assert bound == model.replace(learning_rate=1e3, gamma=2.0, label_noise=1.0).stability_bound


def test_huge_sizes_are_as_good_as_infinite():
    # Corrections of 1/sqrt(N) and 1/B.
    bound = sf.Model(TASK, width=10**18, batch_size=10**18).stability_bound
    assert bound == pytest.approx(sf.Model(TASK).stability_bound, rel=1e-8, abs=0)


def test_the_bound_is_where_lazy_training_turns():
    """The exact solver itself: bounded below the bound, growing above it."""
    model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5, 50), width=100, batch_size=3)
    bound = model.stability_bound
    below = sf.solve_dmft(model.replace(learning_rate=0.9 * bound), 200).loss
    above_model = model.replace(learning_rate=1.1 * bound)
    with pytest.warns(StabilityWarning):
        above = sf.solve_dmft(above_model, 100).loss
    # The noise feeds back 1.1 of itself above the bound: measured growth 4.6 in ten steps; below, decay.
    assert below[200] < 0.1 * below[0]
    assert above[100] > 1e4 * above[0]
    assert above[100] > 3.0 * above[90]


# -------------------------------------------------------------------------------------------------- warning


def test_a_warning_beyond_the_bound_names_both():
    model = sf.Model(TASK, learning_rate=2.5)
    with pytest.warns(StabilityWarning, match=r"^learning_rate 2\.5 is beyond the stability bound 2 ") as caught:
        model.warn_if_unstable()
    assert len(caught) == 1


@pytest.mark.parametrize("rate", [1e-9, 1.0, 2.0])
def test_no_warning_up_to_the_bound(rate):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sf.Model(TASK, learning_rate=rate).warn_if_unstable()


def test_solvers_warn_where_they_are_called():
    with pytest.warns(StabilityWarning) as caught:
        sf.solve_dmft(sf.Model(TASK, learning_rate=2.1), 3)
    assert [warning.filename for warning in caught] == [__file__]


def test_largest_eigenvalue_offline():
    """Equal modes have closed forms: with one side finite, Marchenko & Pastur's edge; with both, numpy's eigenvalues.

    The largest eigenvalue of 800 lies 1.7% below the edge on average (2.4% of 400, 1.1% of 1,600: a part that falls
    like their number to the -2/3). A mean of 10 draws has a standard error of 0.4% of it; the seed is fixed, and the
    bounds are 4 of these away.
    """
    spectrum = sf.Spectrum(np.ones(1600), np.ones(1600))
    edge = (1.0 + math.sqrt(1600 / 400)) ** 2
    assert sf.Model(spectrum, n_samples=400).largest_eigenvalue == pytest.approx(edge, rel=1e-9)
    assert sf.Model(spectrum, width=400).largest_eigenvalue == pytest.approx(edge, rel=1e-9)
    model = sf.Model(spectrum, width=1200, n_samples=800)
    generator = np.random.default_rng(0)
    tops = []
    for _ in range(10):
        features = generator.standard_normal((800, 1600)) @ generator.standard_normal((1600, 1200))
        tops.append(eigvalsh(features @ features.T / (800 * 1200), subset_by_index=[799, 799])[0])
    assert 0.001 < 1.0 - np.mean(tops) / model.largest_eigenvalue < 0.033
    # The two sides are alike, and one that is large hardly counts.
    turned = model.replace(width=800, n_samples=1200)
    assert turned.largest_eigenvalue == pytest.approx(model.largest_eigenvalue, rel=1e-9)
    wide = sf.Model(spectrum, width=10**12, n_samples=400)
    assert wide.largest_eigenvalue == pytest.approx(edge, rel=1e-8)
    assert model.stability_bound == pytest.approx(2.0 / model.largest_eigenvalue, rel=1e-12)
