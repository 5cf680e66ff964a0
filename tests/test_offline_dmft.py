r"""Offline training by the two-time engine: references, closed forms and the properties the theory has.

Theory (section 4): P samples are reused at every step. In the lazy limit at infinite width, with the covariance
Sigma = Psi^T Psi/P of the samples, v_0(t) = (1 - eta Sigma)^t w*, less what label noise has been learned. For M equal
modes of eigenvalue 1 and a target of power 1 all is an integral over Marchenko & Pastur's law of the eigenvalues of
Sigma, of which M - P vanish if P < M:

    L(t)     = (1/M) sum_j (1 - eta s_j)^{2t} + (sigma^2/P) sum_j (1 - (1 - eta s_j)^t)^2/s_j
    train(t) = (1/M) sum_j s_j (1 - eta s_j)^{2t} + sigma^2 [ (1 - r/P) + (1/P) sum_j (1 - eta s_j)^{2t} ]

with sums over the r = min(M, P) non-zero ones in the terms of sigma^2.
"""

import warnings
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import scalefield as sf
from reference_dmft import dense_offline_reference, march_offline_reference
from scalefield.errors import DivergenceError, Interrupted, ScalefieldError, StabilityWarning
from test_dmft import reference, small_models

TWO_TIME = ("C_0", "C_r", "C_g", "C_2", "C_w", "R_0", "R_r", "R_13", "R_22", "K", "P", "H_w")
CURVES = ("loss", "train_loss")

SETTINGS = [
    {"width": 9, "gamma": 1.0, "n_samples": 7, "label_noise": 0.4},
    {"width": 20, "gamma": 2.0, "n_samples": 50},
    {"gamma": 0.5, "n_samples": 5, "label_noise": 1.0},
    {"n_samples": 12, "label_noise": 0.5},
    {"width": 6, "n_samples": 30},
]


def assert_close(solution, expected, rtol):
    for name in (*CURVES, *TWO_TIME):
        scale = np.abs(expected[name]).max()
        error = np.abs(getattr(solution, name) - expected[name]).max() / scale if scale > 0.0 else 0.0
        assert error <= rtol, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("parameters", SETTINGS)
def test_agrees_with_the_equations_as_they_stand(parameters):
    """Dense matrices of theory section 4, which know nothing of commuting responses; rounding of 30 inverses."""
    spectrum = sf.PowerLawSpectrum(1.3, 0.6, n_modes=11)
    expected = reference(dense_offline_reference, spectrum, 14, 0.2, **parameters)
    assert_close(sf.solve_dmft(sf.Model(spectrum, learning_rate=0.2, **parameters), 14), expected, 1e-11)


@pytest.mark.parametrize("n_steps", [15, 16, 70])
@pytest.mark.parametrize("parameters", SETTINGS)
def test_agrees_with_the_plain_march(parameters, n_steps):
    """Steps around the edges of blocks; 33 modes fill no whole number of groups. Rounding over 70 rows."""
    spectrum = sf.PowerLawSpectrum(1.3, 0.6, n_modes=33)
    expected = reference(march_offline_reference, spectrum, n_steps, 0.2, **parameters)
    assert_close(sf.solve_dmft(sf.Model(spectrum, learning_rate=0.2, **parameters), n_steps), expected, 1e-11)


def marchenko_pastur(n_modes, n_samples, n_nodes=4000):
    """Nodes and weights of the non-zero eigenvalues of Sigma, weights adding up to min(M, P)."""
    ratio = n_modes / n_samples
    low, high = (1.0 - np.sqrt(ratio)) ** 2, (1.0 + np.sqrt(ratio)) ** 2
    # s = (low + high)/2 - (high - low)/2 cos(x): the density of M Sigma eigenvalues, M sqrt(..)/(2 pi ratio s)
    x = (np.arange(n_nodes) + 0.5) * np.pi / n_nodes
    s = 0.5 * (low + high) - 0.5 * (high - low) * np.cos(x)
    weights = n_modes * (0.5 * (high - low) * np.sin(x)) ** 2 / (2.0 * np.pi * ratio * s) * np.pi / n_nodes
    return s, weights


@pytest.mark.parametrize(("n_modes", "n_samples"), [(40, 90), (90, 40)])
def test_lazy_training_at_infinite_width_is_kernel_regression_stopped_early(n_modes, n_samples):
    """Equal modes against Marchenko & Pastur's law, both to 1e-9 over 200 steps."""
    eta, sigma, n_steps = 0.15, 0.6, 200
    s, weights = marchenko_pastur(n_modes, n_samples)
    assert weights.sum() == pytest.approx(min(n_modes, n_samples), rel=1e-10)
    left = (1.0 - eta * s) ** np.arange(n_steps + 1)[:, None]
    never = max(0.0, 1.0 - n_samples / n_modes)
    signal = left**2 @ weights / n_modes + never
    noise = sigma**2 * (((1.0 - left) ** 2 / s) @ weights) / n_samples
    train = left**2 @ (weights * s) / n_modes
    train += sigma**2 * (1.0 - min(n_modes, n_samples) / n_samples + left**2 @ weights / n_samples)
    spectrum = sf.Spectrum(np.ones(n_modes), np.full(n_modes, n_modes**-0.5))
    model = sf.Model(spectrum, learning_rate=eta, n_samples=n_samples, label_noise=sigma)
    solution = sf.solve_dmft(model, n_steps)
    np.testing.assert_allclose(solution.loss, signal + noise, rtol=1e-9)
    # Without a floor the train loss falls below what rounding leaves of its terms.
    np.testing.assert_allclose(solution.train_loss, train, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(solution.noise_variance, noise, rtol=1e-9, atol=1e-12)
    # The mean of (1 - eta Sigma)^t is (1/M) sum_j (1 - eta s_j)^t times the identity.
    np.testing.assert_allclose(solution.bias, (left @ weights / n_modes + never) ** 2, rtol=1e-9)


def test_infinitely_many_samples_are_online():
    """1/P of 1e-15 adds about as much; n_samples = inf is the online model itself."""
    model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5), width=32, gamma=1.0)
    online = sf.solve_dmft(model, 120, "two-time")
    offline = sf.solve_dmft(model.replace(n_samples=10**15), 120)
    assert model.replace(n_samples=np.inf) == model
    for name in ("loss", "bias", "feature_variance", "C_0", "C_2", "C_w", "P", "K", "R_22", "R_13", "H_w"):
        expected = getattr(online, name)
        assert np.abs(getattr(offline, name) - expected).max() <= 1e-12 * np.abs(expected).max(), name
    np.testing.assert_allclose(offline.train_loss, offline.loss, rtol=1e-12)
    assert online.train_loss is None
    assert online.generalization_gap is None


def test_ends_at_the_data_bottleneck():
    """Lazy, infinite width: 300 steps of a flat task reach ridgeless regression: (1 - eta s_min)^600 is 1e-30."""
    spectrum = sf.Spectrum(np.ones(60), np.full(60, 60**-0.5))
    solution = sf.solve_dmft(sf.Model(spectrum, learning_rate=0.2, n_samples=20), 300)
    assert solution.loss[-1] == pytest.approx(sf.bottleneck_loss(spectrum, n_samples=20), rel=1e-9)
    assert solution.train_loss[-1] < 1e-9


@settings(max_examples=20)
@given(model=small_models(), n_samples=st.sampled_from([3, 20, 500]))
def test_structure(model, n_samples):
    """Causality, symmetry, positive semidefiniteness, the split of the loss, and the start of training."""
    model = model.replace(batch_size=np.inf, n_samples=n_samples)
    solution = sf.solve_dmft(model, 30)
    for name in ("K", "P", "H_w"):
        assert not np.triu(getattr(solution, name)).any(), name
    for name in ("R_0", "R_r", "R_13", "R_22"):
        assert not np.triu(getattr(solution, name), 1).any(), name
    for name in ("C_0", "C_r", "C_g", "C_2", "C_w"):
        matrix = getattr(solution, name)
        np.testing.assert_allclose(matrix, matrix.T, rtol=0, atol=1e-13 * max(np.abs(matrix).max(), 1e-300))
        assert np.linalg.eigvalsh(matrix)[0] >= -1e-12 * np.trace(matrix), name
    parts = solution.bias + solution.feature_variance + solution.data_variance + solution.noise_variance
    scale = solution.loss.max() + model.label_noise**2
    np.testing.assert_allclose(parts, solution.loss, rtol=1e-12, atol=1e-14 * scale)
    for name in ("bias", "feature_variance", "data_variance", "noise_variance"):
        assert (getattr(solution, name) >= -1e-13 * scale).all(), name
    if model.label_noise == 0.0:
        assert not solution.noise_variance.any()
    # Before training test and train error are alike.
    assert solution.generalization_gap[0] == pytest.approx(0.0, abs=1e-13 * scale)
    np.testing.assert_allclose(np.diag(solution.C_0), solution.loss, rtol=1e-14)
    np.testing.assert_allclose(np.diag(solution.C_r), solution.train_loss, rtol=1e-14)


def test_more_samples_help_and_noise_harms():
    """Monotone in P and sigma at each step; the train loss lies below the test loss once training has begun."""
    model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5), width=64, gamma=1.0)
    losses = [sf.solve_dmft(model.replace(n_samples=n), 150) for n in (20, 60, 200, 10**6)]
    for fewer, more in pairwise(losses):
        assert (fewer.loss[1:] > more.loss[1:]).all()
        assert (fewer.train_loss[5:] < fewer.loss[5:]).all()
        assert (fewer.generalization_gap[1:] > 0.0).all()
    noisy = [sf.solve_dmft(model.replace(n_samples=60, label_noise=s), 150) for s in (0.0, 0.2, 0.5)]
    for less, more in pairwise(noisy):
        assert (more.loss[1:] > less.loss[1:]).all()


def test_results_do_not_depend_on_threads(monkeypatch):
    model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5), width=32, gamma=1.0, n_samples=64, label_noise=0.3)
    solutions = []
    for threads in ("1", "3"):
        monkeypatch.setenv("SCALEFIELD_NUM_THREADS", threads)
        solutions.append(sf.solve_dmft(model, 100))
    for name in (*CURVES, *TWO_TIME, "noise_variance"):
        np.testing.assert_array_equal(getattr(solutions[0], name), getattr(solutions[1], name), err_msg=name)


def test_merged_nodes_act_like_all_of_them(monkeypatch):
    """A million modes merged for 150 steps against their quadrature nodes, not merged; 1e-11 of the start."""
    from scalefield.dmft import two_time

    model = sf.Model(sf.PowerLawSpectrum(1.3, 0.6, 10**6), width=40, gamma=1.0, n_samples=80, label_noise=0.2)
    solution = sf.solve_dmft(model, 150)
    monkeypatch.setattr(two_time, "merge", lambda x, mass, *_: (x, mass, 0.0))
    unmerged = sf.solve_dmft(model, 150, nodes=model.spectrum.quadrature(rtol=1e-12))
    assert unmerged.n_nodes > 3 * solution.n_nodes
    for name in ("loss", "train_loss", "C_r", "R_r", "R_13", "noise_variance"):
        expected = getattr(unmerged, name)
        assert np.abs(getattr(solution, name) - expected).max() <= 1e-11 * np.abs(expected).max(), name


def test_recorded_steps_saving_and_loading(tmp_path):
    model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5), width=16, gamma=1.0, n_samples=24, label_noise=0.3)
    whole = sf.solve_dmft(model, 60)
    some = sf.solve_dmft(model, 60, steps=[0, 7, 60])
    np.testing.assert_array_equal(some.train_loss, whole.train_loss[[0, 7, 60]])
    np.testing.assert_array_equal(some.C_r, whole.C_r[np.ix_([0, 7, 60], [0, 7, 60])])
    path = tmp_path / "offline.npz"
    some.save(path)
    again = sf.DMFTSolution.load(path)
    assert again.model == model
    np.testing.assert_array_equal(again.R_r, some.R_r)


def test_unstable_runs_return_what_was_finite():
    """Learning rates beyond 2/s_max of the samples' kernel; label noise is not split off in partial results."""
    model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5), width=16, n_samples=10, label_noise=0.5)
    model = model.replace(learning_rate=1.5 * model.stability_bound)
    with pytest.warns(StabilityWarning), pytest.raises(DivergenceError) as caught:
        sf.solve_dmft(model, 2000)
    partial = caught.value.partial
    assert partial.loss.size == caught.value.step
    assert np.isfinite(partial.train_loss).all()
    assert partial.noise_variance is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        below = sf.solve_dmft(model.replace(learning_rate=0.99 * model.stability_bound), 400)
    assert below.train_loss[-1] < below.train_loss[0]


def test_interrupted_before_the_noise_is_split_off():
    """Ctrl-C in the second march keeps the learning curve."""
    model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5), width=16, n_samples=10, label_noise=0.5)

    def progress(done, total):
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        sf.solve_dmft(model, 700, progress=progress)
    np.testing.assert_array_equal(caught.value.partial.loss, sf.solve_dmft(model, 700).loss)
    assert caught.value.partial.noise_variance is None


def test_progress_counts_both_marches():
    model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5), width=16, n_samples=10, label_noise=0.5)
    calls = []
    sf.solve_dmft(model, 400, progress=lambda done, total: calls.append((done, total)))
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert {total for _, total in calls} == {400}
    assert calls[-1][0] <= 400


def test_what_has_no_theory_is_refused():
    model = sf.Model(sf.PowerLawSpectrum(1.5, 0.5), width=16, n_samples=10)
    with pytest.raises(NotImplementedError, match="batch_size inf, got 4"):
        sf.solve_dmft(model.replace(batch_size=4), 10)
    for method in ("spectral", "closure"):
        with pytest.raises(ValueError, match=f"finite n_samples, got '{method}'"):
            sf.solve_dmft(model, 10, method)
    with pytest.raises(ValueError, match="projection must be 'average'"):
        sf.solve_dmft(model, 10, projection=1)
    with pytest.raises(ScalefieldError, match="memory"):
        sf.solve_dmft(model, 10**6)
