"""The spectral measure that a step engine works on: modes, deterministic equivalent, or one realised projection."""

from __future__ import annotations

import math
from functools import lru_cache

from scalefield.model import Model
from scalefield.resolvent import DeterministicEquivalent
from scalefield.spectral_measure import SpectralMeasure
from scalefield.spectrum import Task

__all__ = ["spectral_measure"]


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
