"""Frontiers against brute force: a dense grid of whole widths through the public call, as a user would write it."""

from __future__ import annotations

import math

import numpy as np
import pytest

import scalefield as sf

TASK = sf.PowerLawSpectrum(1.5, 0.5)
BUDGETS = np.geomspace(1e2, 1e14, 41)


def frontier_by_grid(gamma: float, budgets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Best of 12 whole widths a decade, each a curve at all budgets it can meet."""
    widths = np.unique(np.geomspace(1, 1e8, 97).round())
    losses = np.full((widths.size, budgets.size), np.inf)
    for row, width in enumerate(widths):
        met = budgets >= width
        if met.any():
            flow = sf.solve_gradient_flow(sf.Model(TASK, width=width, gamma=gamma), 0.1 * budgets[met] / width)
            losses[row, met] = flow.loss
    best = losses.argmin(axis=0)
    return widths[best], losses.min(axis=0)


@pytest.mark.parametrize("by", ["package", "grid"])
@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_frontier_of_gradient_flow_over_twelve_decades(benchmark, gamma, by):
    """41 budgets; the bar: 5 s. The grid's losses are up to 1e-3 above the minimum."""
    if by == "package":
        found = benchmark.pedantic(
            sf.scaling.compute_frontier, (TASK, gamma, 0.1, math.inf, BUDGETS), rounds=1, warmup_rounds=1
        )
        assert found.interpolation_error < 1e-5
        assert benchmark.disabled or benchmark.stats.stats.min < 5.0
    else:
        _, losses = benchmark.pedantic(frontier_by_grid, (gamma, BUDGETS), rounds=1, warmup_rounds=0)
        exact = sf.scaling.compute_frontier(TASK, gamma, 0.1, math.inf, BUDGETS).losses
        assert (losses[4:] > exact[4:] * (1.0 - 1e-6)).all()
        assert (losses[4:] < exact[4:] * 1.005).all()


def test_frontier_of_lazy_sgd(benchmark):
    """Super-easy with batches of one, 17 budgets to 1e10, widths to 5e5."""
    task = sf.PowerLawSpectrum(2.0, 2.5)
    budgets = np.geomspace(1e2, 1e10, 17)
    found = benchmark.pedantic(sf.scaling.compute_frontier, (task, 0.0, 0.1, 1, budgets), rounds=1, warmup_rounds=0)
    assert abs(found.loss_exponent - 0.75) < 0.01


@pytest.mark.parametrize("name", ["2", "3", "4"])
def test_figure_in_quick_mode(benchmark, name, tmp_path):
    """All five figures of theory together have two minutes on two cores."""
    benchmark.pedantic(sf.figures.write, (name, tmp_path), {"quick": True}, rounds=1, warmup_rounds=0)
