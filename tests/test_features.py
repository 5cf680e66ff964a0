"""Distance, alignment and power of kernels: definitions written out, and what they must not depend on."""

import math

import numpy as np
import pytest

from scalefield import networks

RNG = np.random.default_rng(0)
POINTS = 9


def gram(rank, scale=1.0):
    features = RNG.normal(size=(POINTS, rank))
    return scale * features @ features.T


FIRST, SECOND, TARGETS = gram(4), gram(12, 30.0), RNG.normal(size=(POINTS, 3))


def frobenius(a, b):
    return sum(float(a[i, j] * b[i, j]) for i in range(POINTS) for j in range(POINTS))


def test_definitions():
    cosine = frobenius(FIRST, SECOND) / math.sqrt(frobenius(FIRST, FIRST) * frobenius(SECOND, SECOND))
    assert networks.kernel_distance(FIRST, SECOND) == pytest.approx(1.0 - cosine, rel=1e-12)
    y = TARGETS[:, 0]
    outer = np.array([[a * b for b in y] for a in y])
    cosine = frobenius(SECOND, outer) / math.sqrt(frobenius(SECOND, SECOND) * frobenius(outer, outer))
    assert networks.kernel_alignment(SECOND, y) == pytest.approx(cosine, rel=1e-12)
    assert networks.kernel_alignment(SECOND, y[:, None]) == networks.kernel_alignment(SECOND, y)
    outer = sum(np.outer(column, column) for column in TARGETS.T)
    cosine = frobenius(SECOND, outer) / math.sqrt(frobenius(SECOND, SECOND) * frobenius(outer, outer))
    assert networks.kernel_alignment(SECOND, TARGETS) == pytest.approx(cosine, rel=1e-12)


def test_centred_kernels():
    """Means of rows and columns out of both sides, as centred kernel alignment does."""
    centre = np.eye(POINTS) - 1.0 / POINTS
    first, second = centre @ FIRST @ centre, centre @ SECOND @ centre
    expected = networks.kernel_distance(first, second)
    assert networks.kernel_distance(FIRST, SECOND, centred=True) == pytest.approx(expected, rel=1e-12)
    y = TARGETS[:, 0]
    expected = networks.kernel_alignment(second, centre @ y)
    assert networks.kernel_alignment(SECOND, y, centred=True) == pytest.approx(expected, rel=1e-12)
    # A constant added to the outputs or to the kernel is not seen.
    shifted = networks.kernel_alignment(SECOND + 7.0, y + 5.0, centred=True)
    assert shifted == pytest.approx(expected, rel=1e-12)


def test_power_in_the_eigenbasis():
    found = networks.cumulative_power(SECOND, TARGETS)
    eigenvalues, vectors = np.linalg.eigh(SECOND)
    powers = [sum((vectors[:, k] @ y) ** 2 for y in TARGETS.T) for k in range(POINTS)[::-1]]
    np.testing.assert_allclose(found.eigenvalues, eigenvalues[::-1] / POINTS, rtol=1e-10)
    np.testing.assert_allclose(found.power, powers / np.sum(TARGETS**2), rtol=1e-8)
    np.testing.assert_allclose(found.cumulative, [sum(found.power[: k + 1]) for k in range(POINTS)], rtol=1e-12)
    assert found.cumulative[-1] == pytest.approx(1.0, rel=1e-12)
    with pytest.raises(ValueError, match="read-only"):
        found.power[0] = 1.0


def test_source_and_capacity_of_a_power_law():
    """1 - C(k) ~ k^{-alpha beta} at lambda_k = k^-alpha, power k^{-(alpha beta + 1)}; the sum's rest is an integral."""
    alpha, beta, k = 1.5, 0.5, np.arange(1.0, 401.0)
    found = networks.cumulative_power(np.diag(k**-alpha), k ** (-0.5 * (alpha * beta + 1.0)))
    tail = 1.0 - found.cumulative
    # The rest of an infinite sum, beyond 400 modes.
    total = np.sum(k ** -(alpha * beta + 1.0))
    tail += 400.5 ** -(alpha * beta) / (alpha * beta) / total
    slope = np.diff(np.log(tail[[20, 200]])) / math.log(201.5 / 21.5)
    assert slope[0] == pytest.approx(-alpha * beta, abs=1e-3)


def test_rotations_and_factors_change_nothing():
    rotation = np.linalg.qr(RNG.normal(size=(POINTS, POINTS)))[0]
    turned = [rotation @ kernel @ rotation.T for kernel in (FIRST, SECOND)]
    distance, alignment = networks.kernel_distance(FIRST, SECOND), networks.kernel_alignment(SECOND, TARGETS)
    assert networks.kernel_distance(3.0 * turned[0], 0.1 * turned[1]) == pytest.approx(distance, rel=1e-10)
    assert networks.kernel_distance(SECOND, FIRST) == distance
    assert networks.kernel_alignment(9.0 * turned[1], 2.0 * rotation @ TARGETS) == pytest.approx(alignment, rel=1e-10)
    power = networks.cumulative_power(SECOND, TARGETS).power
    turned_power = networks.cumulative_power(2.0 * turned[1], rotation @ TARGETS).power
    np.testing.assert_allclose(turned_power, power, rtol=1e-8)


def test_small_distances_keep_their_digits():
    """K + d E with E orthogonal to K: the distance is d^2 |E|^2/(2 |K|^2) up to its square."""
    change = gram(5)
    change -= frobenius(change, FIRST) / frobenius(FIRST, FIRST) * FIRST
    exact = 1e-14 * frobenius(change, change) / (2.0 * frobenius(FIRST, FIRST))
    assert networks.kernel_distance(FIRST, FIRST + 1e-7 * change) == pytest.approx(exact, rel=1e-6)
    assert networks.kernel_distance(FIRST, FIRST) == 0.0


def test_learning_adds_a_spike_along_the_task():
    """Both definitions see K + y y^T; a spike across the task moves the kernel and does not align it."""
    y = TARGETS[:, 0]
    across = TARGETS[:, 1] - (TARGETS[:, 1] @ y) / (y @ y) * y
    before = networks.kernel_alignment(FIRST, y)
    for direction, aligned in ((y, True), (across, False)):
        moved = FIRST + np.outer(direction, direction)
        assert networks.kernel_distance(FIRST, moved) > 1e-3
        assert (networks.kernel_alignment(moved, y) > before) == aligned


EYE = np.eye(3)


@pytest.mark.parametrize(
    ("function", "arguments", "error", "message"),
    [
        ("kernel_distance", (np.ones((2, 3)), EYE), ValueError, r"initial must be a square matrix, got shape \(2, 3\)"),
        ("kernel_distance", (EYE, np.eye(2)), ValueError, "initial and kernel must have the same shape"),
        ("kernel_distance", (EYE, 0.0 * EYE), ValueError, "kernel must not vanish"),
        ("kernel_distance", (EYE, math.nan * EYE), ValueError, "kernel must be finite, got"),
        ("kernel_distance", (EYE, np.tri(3)), ValueError, "kernel must be symmetric, got entries that differ by 1"),
        ("kernel_distance", (EYE, "K"), TypeError, "kernel must be an array of real numbers"),
        ("kernel_distance", (EYE, [[1.0], [1.0, 2.0]]), TypeError, "kernel must be an array of real numbers"),
        ("kernel_alignment", (EYE, np.ones(2)), ValueError, r"target must have shape \(3,\) or \(3, C\)"),
        ("kernel_alignment", (EYE, np.zeros(3)), ValueError, "target must not vanish"),
        ("kernel_alignment", (EYE, np.ones((3, 1, 1))), ValueError, "target must have shape"),
        ("cumulative_power", (np.zeros((0, 0)), np.zeros(0)), ValueError, "kernel must be a square matrix"),
        ("cumulative_power", (EYE, np.zeros(3)), ValueError, "target must not vanish"),
        ("cumulative_power", (EYE, 1j * np.ones(3)), TypeError, "target must be an array of real numbers"),
    ],
)
def test_bad_arguments(function, arguments, error, message):
    with pytest.raises(error, match=message):
        getattr(networks, function)(*arguments)


def test_centred_is_a_flag():
    with pytest.raises(TypeError, match="centred must be True or False, got 1"):
        networks.kernel_distance(EYE, EYE, centred=1)
