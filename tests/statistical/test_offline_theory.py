r"""Offline mean-field theory as the mean of simulated runs, test and train loss.

The theory is exact as N, P and the effective number of modes grow; at finite sizes the simulated losses lie above it by
terms of relative order 1/N + 1/P. Each case allows a stated bias beside 4.5 standard errors: a two-sided normal z-test
at 4.5 has the probability 7e-6, with 10 comparisons a case and 4 cases 3e-4 in all. Seeds are fixed.
"""

import numpy as np
import pytest

import scalefield as sf

STEPS = [1, 5, 20, 60, 150]
Z = 4.5

CASES = [
    # N, P, gamma, sigma, and the bias allowed, c (1/N + 1/P) with c = 1.
    (100, 80, 1.0, 0.4, 0.023),
    (60, 150, 0.0, 0.3, 0.024),
    (200, 100, 2.0, 0.0, 0.015),
    (150, 40, 1.0, 0.8, 0.032),
]


@pytest.mark.parametrize(("width", "n_samples", "gamma", "label_noise", "bias"), CASES)
def test_test_and_train_loss(width, n_samples, gamma, label_noise, bias):
    """400 runs a case, full batches, 300 modes."""
    model = sf.Model(
        sf.PowerLawSpectrum(1.3, 0.7, n_modes=300),
        width=width,
        gamma=gamma,
        n_samples=n_samples,
        label_noise=label_noise,
    )
    theory = sf.solve_dmft(model, 150)
    runs = sf.simulate(model, 150, n_runs=400, seed=2, record=STEPS)
    for mean, error, expected in (
        (runs.mean, runs.standard_error, theory.loss[STEPS]),
        (runs.train_mean, runs.train_standard_error, theory.train_loss[STEPS]),
    ):
        assert (np.abs(mean - expected) < Z * error + bias * expected).all(), (mean - expected) / error


def test_overfitting_is_predicted_at_the_right_step():
    """Test loss rises while train loss falls: the minimum of the mean over 400 runs lies where the theory has it.

    sigma = 0.8, P = 40. The curve of the mean is flat near its minimum: steps at which the theory lies within 2% of its
    minimum are as good, more than the error of differences between neighbouring steps of one set of runs.
    """
    model = sf.Model(sf.PowerLawSpectrum(1.3, 0.7, n_modes=300), width=150, gamma=1.0, n_samples=40, label_noise=0.8)
    theory = sf.solve_dmft(model, 300)
    runs = sf.simulate(model, 300, n_runs=400, seed=3, record="all")
    best = int(np.argmin(theory.loss))
    assert 3 < best < 100
    assert theory.loss[300] > 1.3 * theory.loss[best]
    assert (np.diff(theory.train_loss) < 0.0).all()
    near = np.flatnonzero(theory.loss < 1.02 * theory.loss[best])
    assert near[0] <= np.argmin(runs.mean) <= near[-1]
    assert runs.mean[300] > 1.3 * runs.mean.min()
    assert (np.diff(runs.train_mean) < 0.0).all()
