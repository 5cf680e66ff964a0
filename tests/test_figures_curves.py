"""Figures 2 to 4 in quick mode: runs against theory, exponents against the laws, pictures that can be drawn.

Runs are means of 8 with fixed seeds. The theory is that of the mean over A(0) to leading order in 1/N; at N = 64 the
mean of the runs was within 6% of it. The bound, 12% and five standard errors, is passed by chance once in 1e6 points
for normal deviations; losses of batches of one are skewed, and are not compared.
"""

import numpy as np
import pytest

from scalefield import scaling
from scalefield.figures import _learning_curves, figure_2, figure_3, figure_4


def exponents(data, panel):
    return [curve for curve in data.panel(panel) if curve.measured_exponent is not None]


def check(data, draws):
    """What every figure must hold."""
    for curve in data.exponents():
        differs = abs(curve.measured_exponent - curve.predicted_exponent) > _learning_curves.NOTED
        assert bool(curve.note) >= differs, curve.label
    for curve in data.curves:
        assert np.isfinite(curve.y).all()
        assert (curve.y > 0.0).all()
    figure = draws(data)
    assert len(figure.axes) == len(data.axes)
    for panel, ax in zip(data.axes, figure.axes, strict=True):
        assert ax.get_xscale() == ax.get_yscale() == "log"
        assert ax.get_title(loc="left").startswith(f"({panel})")
        drawn = [line for line in ax.lines if len(line.get_xdata())]
        assert len(drawn) >= 3


def theory_and_runs(data, width):
    curves = [curve for curve in data.curves if curve.parameters.get("width") == width]
    for run in curves:
        if run.kind == "simulation" and run.parameters["batch_size"] != 1.0:
            beside = [c for c in curves if c.panel == run.panel and c.parameters == run.parameters and c is not run]
            assert [curve.kind for curve in beside if curve.kind == "theory"] == ["theory"]
            yield run, beside[0]


def test_figure_2(monkeypatch):
    monkeypatch.setattr(figure_2, "GAMMAS", (0.0, 0.1, 10.0))
    calls = []
    data = figure_2.compute(quick=True, progress=lambda *args: calls.append(args))
    assert calls[-1] == (10, 10)
    check(data, figure_2.draw)
    # At tau = 1e6 rich curves are this close to their laws.
    for panel, beta in (("a", figure_2.EASY), ("b", figure_2.HARD)):
        found = exponents(data, panel)
        assert [curve.parameters["gamma"] for curve in found] == [0.0, 0.1, 10.0]
        for curve in found:
            assert curve.predicted_exponent == scaling.time_exponent(beta, curve.parameters["gamma"] > 0.0)
            assert curve.measured_exponent == pytest.approx(curve.predicted_exponent, abs=0.015)
        assert found[0].measured_exponent == pytest.approx(beta, abs=1e-4)
    pairs = list(theory_and_runs(data, 64.0))
    assert len(pairs) == 2
    for run, theory in pairs:
        assert (np.abs(run.y - theory.y) < 0.12 * theory.y + 5.0 * run.standard_error).all()
    # The bottleneck follows min(1, beta), not the printed min(2, beta).
    for panel, exponent in (("c", 1.5 * 0.5), ("d", 1.5)):
        (guide, *_) = [curve for curve in exponents(data, panel) if curve.kind == "guide"]
        assert guide.measured_exponent == pytest.approx(exponent, abs=2e-3)
        assert ("prints" in guide.note) == (panel == "d")


def test_figure_3(monkeypatch):
    monkeypatch.setattr(figure_3, "QUICK_BATCHES", (1, np.inf))
    data = figure_3.compute(quick=True)
    check(data, figure_3.draw)
    parts = {curve.label.partition(",")[0]: curve for curve in exponents(data, "b")}
    for name, exponent in (("gradient flow", 2.5), ("SGD transient", 1.5), ("width transient", 0.5)):
        assert parts[name].predicted_exponent == exponent
        assert parts[name].measured_exponent == pytest.approx(exponent, abs=2e-3)
    best = exponents(data, "c")[0]
    assert best.predicted_exponent == 0.75
    # Gradient flow is still seen at C = 1e7.
    assert best.measured_exponent == pytest.approx(0.75, abs=0.03)
    pairs = list(theory_and_runs(data, 64.0))
    assert len(pairs) == 2
    for run, theory in pairs:
        assert (np.abs(run.y - theory.y) < 0.12 * theory.y + 5.0 * run.standard_error).all()


def test_figure_4(monkeypatch):
    monkeypatch.setattr(figure_4, "PANELS", (figure_4.PANELS[1], figure_4.PANELS[2]))
    data = figure_4.compute(quick=True)
    for panel, beta, gamma in figure_4.PANELS:
        optimum = scaling.compute_optimal(figure_4.ALPHA, beta, gamma > 0.0, sgd_noise=False)
        loss, width, time = exponents(data, panel)
        for curve, name in ((loss, "loss"), (width, "width"), (time, "time")):
            assert curve.predicted_exponent == getattr(optimum, f"{name}_exponent")
            assert curve.measured_exponent == pytest.approx(curve.predicted_exponent, abs=0.02)
        # No width beats the envelope, and each touches it.
        widths = [c for c in data.panel(panel) if c.kind == "theory" and c.parameters.get("width", 0.0) > 30.0]
        for curve in widths:
            inside = curve.x <= loss.x[-1]
            envelope = np.exp(np.interp(np.log(curve.x[inside]), np.log(loss.x), np.log(loss.y)))
            ratio = curve.y[inside] / envelope
            # The envelope is interpolated linearly between half decades.
            assert ratio.min() > 0.99
            assert ratio.min() < 1.03
    check(data, figure_4.draw)
