"""Contours against real nodes, and against moments that are known.

int f dmu over real nodes of the deterministic equivalent is another route to the same measure: there kappa is solved on
the spectrum, here off it.
"""

import numpy as np
import pytest

import scalefield as sf
from reference_resolvent import cubed_uniform, precise_learning_curve

WIDTHS = [1, 16, 256.5, 10_000]


def functions(tau):
    """Decaying ones, analytic in the right half-plane; the second changes sign."""
    return [
        lambda s: np.exp(-s * tau),
        lambda s: (1.0 - s * tau) * np.exp(-2.0 * s * tau),
        lambda s: (1.0 + s * tau) ** -4,
    ]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("alpha", "beta"), [(1.2, 0.25), (1.5, 1.25), (3.0, 2.0)])
def test_source_contour_agrees_with_real_nodes(width, alpha, beta):
    equivalent = sf.DeterministicEquivalent(sf.PowerLawSpectrum(alpha, beta), width)
    contour, nodes = equivalent.source_contour(1e9), equivalent.measure()
    assert contour.error < 1e-10
    for tau in np.geomspace(1e-3, 1e8, 12):
        for function in functions(tau):
            values = function(nodes.source_eigenvalues)
            expected = nodes.source_power @ values + nodes.atom
            scale = nodes.source_power @ np.abs(values) + nodes.atom
            # Asked for 1e-10 of integrals of e^{-2 s tau}: that the others are as smooth is not said.
            assert contour.integrate(function) == pytest.approx(expected, rel=0, abs=1e-9 * scale)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("alpha", [1.2, 3.0])
def test_trace_contour_agrees_with_real_nodes(width, alpha):
    """Errors stand beside N kappa_0, of the order of the sum over the lower half of the eigenvalues."""
    equivalent = sf.DeterministicEquivalent(sf.PowerLawSpectrum(alpha, 1.0), width)
    contour, nodes = equivalent.trace_contour(1e9), equivalent.measure()
    assert contour.atom == 0.0
    assert contour.error < 1e-10
    for tau in np.geomspace(1e-3, 1e8, 12):
        for decay in functions(tau):
            values = nodes.eigenvalues * decay(nodes.eigenvalues)
            scale = nodes.weights @ np.abs(values) + width * equivalent.kappa_0
            result = contour.integrate(lambda s, decay=decay: s * decay(s))
            assert result == pytest.approx(nodes.weights @ values, rel=0, abs=1e-9 * scale)


def test_few_nodes_at_any_width():
    """The ray covers the decades from the smallest scale to the largest mode: its size grows like a logarithm."""
    task = sf.PowerLawSpectrum(1.5, 0.5)
    sizes = [sf.DeterministicEquivalent(task, width).source_contour(1e6).ray.size for width in (1e2, 1e5, 1e8)]
    assert sizes[2] - sizes[1] < 1.3 * (sizes[1] - sizes[0]) + 10
    assert sizes[2] < 500
    nodes = sf.DeterministicEquivalent(task, 1e2).source_contour(1e6)
    assert repr(nodes).startswith("ContourMeasure(")
    assert nodes.atom == pytest.approx(sf.bottleneck_loss(task, width=100), rel=1e-12)


def test_explicit_spectra_with_ties_and_zeros():
    lam = np.array([1.0, 1.0, 0.5, 0.5, 0.5, 0.1, 0.0, 0.0])
    equivalent = sf.DeterministicEquivalent(sf.Spectrum(lam, np.ones(8)), 4)
    contour, nodes = equivalent.source_contour(1e4), equivalent.measure()
    for tau in (0.1, 3.0, 100.0):
        expected = nodes.source_power @ np.exp(-tau * nodes.source_eigenvalues) + nodes.atom
        assert contour.integrate(lambda s, tau=tau: np.exp(-tau * s)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("last", "width"), [(None, 30), (None, 60.5), (1e-12, 60), (1e-30, 24), (1e-30, 60)])
def test_gaps_of_the_spectrum(last, width):
    """In a gap kappa_0 and z'(kappa_0) are both small, and the resolvent changes down to their product, 1e-37 here.

    Learning curves against Talbot's contour in 100 digits, which 64 points take to 1e-38 of the total.
    """
    equivalent = sf.DeterministicEquivalent(cubed_uniform(0, last), width)
    tau = np.geomspace(0.1, 1e14, 12)
    expected = precise_learning_curve(equivalent, tau, 64)
    for rtol in (1e-8, 1e-11, 1e-12):
        contour = equivalent.source_contour(1e14, rtol)
        assert contour.error < rtol
        loss = [contour.integrate(lambda s, time=time: np.exp(-2.0 * time * s)) for time in tau]
        np.testing.assert_allclose(loss, expected, rtol=rtol, atol=0.0)


def test_bad_input():
    equivalent = sf.DeterministicEquivalent(sf.PowerLawSpectrum(1.5, 0.5), 16)
    with pytest.raises(ValueError, match="horizon must be a finite number at least 1"):
        equivalent.source_contour(0.5)
    with pytest.raises(ValueError, match="rtol"):
        equivalent.trace_contour(10.0, rtol=0.5)
    wide = sf.DeterministicEquivalent(sf.PowerLawSpectrum(1.5, 0.5, n_modes=16), 16)
    with pytest.raises(ValueError, match="below the number of modes 16 for a contour, got 16"):
        wide.source_contour(10.0)
    unlimited = sf.DeterministicEquivalent(sf.PowerLawSpectrum(1.5, 0.5), np.inf)
    with pytest.raises(ValueError, match="below the number of modes inf for a contour, got inf"):
        unlimited.trace_contour(10.0)
