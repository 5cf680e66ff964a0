"""Statistics of the normal deviates.

Under the null hypothesis each statistic below is, to the stated order, normal with the stated standard error
(or has the stated exact law), so a bound of z standard errors has false-alarm rate erfc(z/sqrt 2): 6e-5 at 4,
6e-7 at 5. The seeds are fixed, so a test that passes keeps passing; the rates say how surprising a failure would
be when a generator is changed.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from scalefield._native import rng


def fill(n: int, *, stream=rng.FEATURES, seed=20240917, c1=0, c2=0, c3=0, first=0) -> np.ndarray:
    out = np.empty(n)
    values = (np.uint64(value) for value in (c1, c2, c3, first))
    rng.fill_normals(*rng.stream_key(seed, stream), *values, out)
    return out


def test_moments():
    """Mean, variance, skewness, kurtosis.

    Samples: 1.28e8 in 128 rows. Standard errors of the means of x, x^2, x^3, x^4: sqrt(Var x^p / n) with
    Var x^p = 1, 2, 15, 96; the smallest deviation that 4.5 of them show is 3.9e-3 for x^4. Bias: the
    granular tail beyond 6.5 changes E x^4 by less than 1e-6. False-alarm rate 4 x 7e-6.
    """
    rows, n = 128, 10**6
    sums = np.zeros(4)
    for c1 in range(rows):
        x = fill(n, c1=c1)
        square = x * x
        sums += x.sum(), square.sum(), square @ x, square @ square
    z = (sums / (rows * n) - [0.0, 1.0, 0.0, 3.0]) / np.sqrt(np.array([1.0, 2.0, 15.0, 96.0]) / (rows * n))
    assert np.all(np.abs(z) < 4.5), z


def test_distribution_function():
    """Kolmogorov-Smirnov.

    Samples: 2e6 for each lane and for all. Exact law, no bias at this size (the 2^-32 lattice of the uniforms
    moves the distribution function by 1e-10, the bound is 1e-3). False-alarm rate 5 x 1e-5.
    """
    x = fill(8_000_000, c2=5)
    for part in (x[::4], x[1::4], x[2::4], x[3::4], x[:2_000_000]):
        assert stats.kstest(part, "norm").pvalue > 1e-5


def test_tail():
    """Counts beyond 3, 4 and 5 standard deviations against the Poisson law.

    Samples: 2e7; expected counts 5.4e4, 1267, 11.5. Two-sided p above 1e-5 each: false-alarm rate 3e-5. No bias.
    """
    x = np.abs(fill(20_000_000, c2=6))
    for bound in (3.0, 4.0, 5.0):
        count, expected = int((x > bound).sum()), x.size * 2.0 * stats.norm.sf(bound)
        p = 2.0 * min(stats.poisson.cdf(count, expected), stats.poisson.sf(count - 1, expected))
        assert p > 1e-5, (bound, count, expected)


def neighbours():
    """Pairs of sequences that differ in one word of the address."""
    base = {"c1": 3, "c2": 17, "c3": 2}
    yield "sample", base, {**base, "c1": 4}
    yield "step", base, {**base, "c2": 18}
    yield "run", base, {**base, "c3": 3}
    yield "exchanged step and run", base, {**base, "c2": 2, "c3": 17}
    yield "stream", base, {**base, "stream": rng.LABEL_NOISE}
    yield "projection", base, {**base, "stream": rng.PROJECTION}
    for name in ("REDUCED", "REST", "TAIL", "DATA", "DATA_NOISE"):
        yield f"features and {name}", base, {**base, "stream": getattr(rng, name)}
    # What a reduced step draws together: features, the part beyond them and label noise, of one run and step.
    yield "reduced and rest", {**base, "stream": rng.REDUCED}, {**base, "c1": 0, "stream": rng.REST}
    yield "reduced and noise", {**base, "stream": rng.REDUCED}, {**base, "c1": 0, "stream": rng.LABEL_NOISE}
    at = {"c1": 0, "c2": 17, "c3": 2}
    yield "rest and noise", {**at, "stream": rng.REST}, {**at, "stream": rng.LABEL_NOISE}
    yield "rest of two runs", {**at, "stream": rng.REST}, {**at, "c3": 3, "stream": rng.REST}
    yield "rest of two steps", {**at, "stream": rng.REST}, {**at, "c2": 18, "stream": rng.REST}
    yield "reduced of two runs", {**base, "stream": rng.REDUCED}, {**base, "c3": 3, "stream": rng.REDUCED}
    yield "reduced of two samples", {**base, "stream": rng.REDUCED}, {**base, "c1": 4, "stream": rng.REDUCED}
    yield "seed", base, {**base, "seed": 20240918}
    yield "later blocks", base, {**base, "first": 10**6}
    yield "next block", base, {**base, "first": 1}


@pytest.mark.parametrize(("a", "b"), [pytest.param(a, b, id=name) for name, a, b in neighbours()])
def test_no_correlation_between_neighbours(a, b):
    """Correlation of x and y, x^2 and y^2, x^2 and y, and of x with the other lanes of y.

    Samples: 4e6. The mean of x y has standard error 1/sqrt(n), of (x^2-1)(y^2-1) 2/sqrt(n), of (x^2-1) y
    sqrt(2/n): exact, no bias. 6 statistics, bound 4.5 standard errors: false-alarm rate 4e-5 a case.
    """
    n = 4_000_000
    x, y = fill(n, **a), fill(n, **b)
    u, v = x * x - 1.0, y * y - 1.0
    z = [np.vdot(x, y), np.vdot(u, v) / 2.0, np.vdot(u, y) / np.sqrt(2.0)]
    z += [np.vdot(x[: n - lag], y[lag:]) for lag in (1, 2, 3)]
    assert np.all(np.abs(z) / np.sqrt(n) < 4.5), z


def test_no_correlation_within_a_block():
    """Products of two lanes, of their squares, and of all four.

    Samples: 2e6 blocks, 13 statistics of known variance (1, 4, 1), no bias. Bound 5 standard errors: false-alarm
    rate 8e-6.
    """
    x = fill(8_000_000, c2=9).reshape(-1, 4)
    square = x * x - 1.0
    roots = np.sqrt(len(x))
    off = np.triu_indices(4, 1)
    assert np.all(np.abs((x.T @ x)[off]) / roots < 5.0)
    assert np.all(np.abs((square.T @ square)[off]) / (2.0 * roots) < 5.0)
    assert abs(np.prod(x, axis=1).sum()) / roots < 5.0


def test_many_short_rows():
    """Sums over rows of 64 deviates, one a counter (b, step), as training uses them.

    Samples: 32 x 1000 rows. The sums over 8 are standard normal exactly; Kolmogorov-Smirnov p above 1e-5 is the
    false-alarm rate, and the sum of squares has standard error sqrt(2 x 64 x 32000), bound 4.5 (7e-6). No bias.
    """
    rows = np.array([fill(64, c1=b, c2=step) for step in range(1000) for b in range(32)])
    assert stats.kstest(rows.sum(axis=1) / 8.0, "norm").pvalue > 1e-5
    assert abs((rows**2).sum() - rows.size) < 4.5 * np.sqrt(2.0 * rows.size)


@pytest.mark.parametrize("stream", [rng.REDUCED, rng.REST, rng.LABEL_NOISE, rng.TAIL], ids=str)
def test_every_stream_has_the_moments_and_the_law(stream):
    """Mean, variance, third and fourth moment, and Kolmogorov-Smirnov, as above for the stream of features.

    Samples: 4e6, the first 1e6 of them for the law. 4.5 standard errors and p above 1e-5: false alarms 4e-5 a stream.
    No bias.
    """
    x = fill(4_000_000, stream=stream, c2=4, c3=1)
    means = [(x**power).mean() for power in (1, 2, 3, 4)]
    z = (np.array(means) - [0.0, 1.0, 0.0, 3.0]) / np.sqrt(np.array([1.0, 2.0, 15.0, 96.0]) / x.size)
    assert np.all(np.abs(z) < 4.5), z
    assert stats.kstest(x[:1_000_000], "norm").pvalue > 1e-5


def test_batches_of_many_runs_and_steps_are_uncorrelated():
    """One batch each of 8 runs and 8 steps, three streams: all 192 x 191/2 pairs of rows.

    Samples: 192 rows of 20,000. Products of rows have standard error sqrt(20,000) exactly and no bias; 18,336 pairs at
    6 standard errors are false alarms of 4e-5, and their mean square, 1 with standard error sqrt(2/18,336), is within
    4.5 of it (7e-6).
    """
    n = 20_000
    rows = np.array(
        [
            fill(n, stream=stream, c1=0, c2=step, c3=run)
            for stream in (rng.REDUCED, rng.REST, rng.LABEL_NOISE)
            for run in range(8)
            for step in range(8)
        ]
    )
    products = (rows @ rows.T)[np.triu_indices(len(rows), 1)] / np.sqrt(n)
    assert np.abs(products).max() < 6.0
    assert abs((products**2).mean() - 1.0) < 4.5 * np.sqrt(2.0 / products.size)
