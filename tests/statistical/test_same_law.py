r"""Reduced and literal runs have one law of the loss.

Run r of a seed has the same A(0) by both methods, and other batches. The reduction is exact for Gaussian features at
every width, batch size, learning rate and step: no bias at all, and every statistic below has the stated law up to the
finite number of runs.

* Means: the differences L_literal - L_reduced of runs with one A(0) have mean 0, those of log L too; 4.5 standard
  errors, false alarms 7e-6. The pairs take out the variance of A(0), most of all.
* Variances: the same for (log L - pooled mean)^2, where log L is nearly normal.
* Quantiles: Kolmogorov-Smirnov, exact for any law, of the literal runs of the first half and the reduced ones of the
  second, which are independent; p above 1e-5.

Means of a thousand are normal enough for 4.5 standard errors: losses at stable learning rates have kurtoses below 30.
4 steps and 4 statistics a case, 10 cases: false alarms 1.3e-3 in all. Seeds are fixed.

At population gradient the two are compared run by run instead (tests/test_reduced.py).
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

import scalefield as sf
from scalefield import _projection

STEPS = [1, 4, 16, 60]
N_RUNS = 1000
Z = 4.5


def both(model: sf.Model, n_runs: int = N_RUNS, **reduced_changes) -> tuple[np.ndarray, np.ndarray]:
    """Losses at STEPS by the two methods, each of shape (n_runs, T)."""
    literal = sf.simulate(model, 60, n_runs=n_runs, seed=1, method="literal", record=STEPS)
    reduced = sf.simulate(model.replace(**reduced_changes), 60, n_runs=n_runs, seed=1, method="reduced", record=STEPS)
    assert (literal.method, reduced.method) == ("literal", "reduced")
    return literal.loss, reduced.loss


def deviations(literal: np.ndarray, reduced: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Standard errors by which means and variances differ, and the p-values of Kolmogorov-Smirnov."""

    def paired(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        difference = one - other
        return difference.mean(axis=0) / (difference.std(axis=0, ddof=1) / math.sqrt(len(difference)))

    logs = np.log(literal), np.log(reduced)
    middle = (logs[0].mean(axis=0) + logs[1].mean(axis=0)) / 2.0
    half = len(literal) // 2
    p = [stats.ks_2samp(literal[:half, i], reduced[half:, i]).pvalue for i in range(len(STEPS))]
    means = np.array([paired(literal, reduced), paired(*logs)])
    return means, paired((logs[0] - middle) ** 2, (logs[1] - middle) ** 2), np.array(p)


def assert_same_law(literal: np.ndarray, reduced: np.ndarray) -> None:
    means, variances, p = deviations(literal, reduced)
    assert np.abs(means).max() < Z, means
    assert np.abs(variances).max() < Z, variances
    assert p.min() > 1e-5, p


@pytest.mark.parametrize(
    ("width", "gamma", "batch_size", "label_noise", "learning_rate"),
    [
        (16, 0.0, 1, 0.0, 0.05),
        (16, 1.0, 1, 0.0, 0.05),
        (16, 0.0, 4, 0.5, 0.2),
        (16, 2.0, 4, 0.5, 0.05),
        (16, 1.0, 33, 0.0, 0.3),
        (3, 3.0, 2, 0.0, 0.05),
        (90, 1.0, 4, 0.2, 0.1),
        (1, 1.0, 2, 0.1, 0.05),
    ],
)
def test_reduced_and_literal(width, gamma, batch_size, label_noise, learning_rate):
    """1,000 runs each; 90 features are more than the 80 modes."""
    model = sf.Model(
        sf.PowerLawSpectrum(1.5, 0.5, n_modes=80),
        width=width,
        gamma=gamma,
        batch_size=batch_size,
        label_noise=label_noise,
        learning_rate=learning_rate,
    )
    assert_same_law(*both(model))


@pytest.mark.parametrize(
    "changes",
    [{"batch_size": 6}, {"label_noise": 0.7}, {"learning_rate": 0.12}, {"width": 20}, {"gamma": 1.5}],
    ids=str,
)
def test_differences_show(changes):
    """The comparison finds batches of 6 in place of 4, and changes of 20 to 50% in the other parameters."""
    model = sf.Model(
        sf.PowerLawSpectrum(1.5, 0.5, n_modes=80), width=16, gamma=1.0, batch_size=4, label_noise=0.5, learning_rate=0.1
    )
    means, variances, p = deviations(*both(model, **changes))
    assert max(np.abs(means).max(), np.abs(variances).max()) > Z or p.min() < 1e-5, (means, variances, p)


@pytest.mark.parametrize(("batch_size", "gamma"), [(2, 0.0), (4, 2.0)])
def test_far_modes_by_their_law(monkeypatch, batch_size, gamma):
    """4,096 modes one by one in literal runs, the last 3,968 of them by the law of their sum in reduced ones.

    500 runs each. Bias: third cumulants of the sum, of relative size 128^{-1/2} of a random part that is itself at most
    a tenth of the smallest eigenvalue: nothing that 500 runs can see.
    """
    monkeypatch.setattr(_projection, "MOST_MODES", 128)
    monkeypatch.setattr(_projection, "HEAD", 128)
    model = sf.Model(
        sf.PowerLawSpectrum(1.5, 0.5, n_modes=4096), width=6, gamma=gamma, batch_size=batch_size, learning_rate=0.05
    )
    assert 0.0 < sf.simulate(model, 1, n_runs=500, seed=1, method="reduced").tail < 0.1
    assert_same_law(*both(model, n_runs=500))
