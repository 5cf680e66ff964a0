"""The spectral measure that a step engine works on: modes, deterministic equivalent, or one realised projection."""

from __future__ import annotations

import math
from functools import lru_cache

from scalefield.model import Model
from scalefield.quadrature import condense
from scalefield.resolvent import DeterministicEquivalent
from scalefield.spectral_measure import SpectralMeasure
from scalefield.spectrum import Task

__all__ = ["condensed", "spectral_measure"]


def spectral_measure(model: Model, seed: int | None, rtol: float, horizon: float) -> SpectralMeasure:
    """Measures of the model's random features, averaged (seed None) or of one A(0); the modes at infinite width."""
    if math.isinf(model.width):
        nodes = model.spectrum.quadrature(rtol=rtol, horizon=max(1.0, horizon))
        power = nodes.weights * nodes.target_power
        return SpectralMeasure(nodes.eigenvalues, power, nodes.eigenvalues, nodes.weights, error=nodes.error)
    if seed is not None:
        return SpectralMeasure.from_projection(model.spectrum, model.width, seed)
    return _averaged(model.spectrum, model.width)


# Nodes of a width are kept from call to call: sweeps over learning rates, batches and gamma share them.
@lru_cache(maxsize=16)
def _averaged(spectrum: Task, width: float) -> SpectralMeasure:
    return DeterministicEquivalent(spectrum, width).measure()


def condensed(measure: SpectralMeasure, horizon: float, rtol: float) -> SpectralMeasure:
    """Fewer nodes that act alike up to the effective time `horizon`, with errors relative to each decaying sum."""
    present = (measure.source_power > 0.0) & (measure.source_eigenvalues > 0.0)
    source, power, source_error = measure.eigenvalues[:1], measure.source_power[:1] * 0.0, 0.0
    if present.any():
        source, power, source_error = condense(
            measure.source_eigenvalues[present], measure.source_power[present], horizon, rtol, measure.atom
        )
    # Noise adds to a loss that does not fall below the atom: its share of the power is where the trace's digits end.
    floor = measure.trace * measure.atom / measure.total_power if measure.total_power > 0.0 else 0.0
    x, mass, error = condense(measure.eigenvalues, measure.weights * measure.eigenvalues, horizon, rtol, floor)
    return SpectralMeasure(source, power, x, mass / x, measure.atom, max(measure.error, source_error, error))
