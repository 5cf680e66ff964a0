"""scalefield: solvable models of neural scaling laws with feature learning.

Exact dynamical mean-field theory and stochastic simulation of the model of Bordelon, Atanasov & Pehlevan,
"How Feature Learning Can Improve Neural Scaling Laws" (arXiv:2409.17858).
"""

import importlib as _importlib
from importlib.metadata import version as _version
from types import ModuleType as _ModuleType
from typing import TYPE_CHECKING as _TYPE_CHECKING

from scalefield import datasets, errors
from scalefield.contour import ContourMeasure
from scalefield.dmft import DMFTSolution, solve_dmft
from scalefield.flow import FlowSolution, solve_gradient_flow
from scalefield.model import Model
from scalefield.quadrature import SpectralNodes
from scalefield.resolvent import DeterministicEquivalent, bottleneck_loss
from scalefield.simulation import Simulation, simulate
from scalefield.spectral_measure import SpectralMeasure
from scalefield.spectrum import PowerLawSpectrum, Spectrum
from scalefield.sweeps import load_sweep, sweep

__all__ = [
    "ContourMeasure",
    "DMFTSolution",
    "DeterministicEquivalent",
    "FlowSolution",
    "Model",
    "PowerLawSpectrum",
    "Simulation",
    "SpectralMeasure",
    "SpectralNodes",
    "Spectrum",
    "bottleneck_loss",
    "datasets",
    "errors",
    "figures",
    "kernels",
    "load_sweep",
    "networks",
    "plot",
    "scaling",
    "simulate",
    "solve_dmft",
    "solve_gradient_flow",
    "sweep",
]

__version__ = _version("scalefield")

if _TYPE_CHECKING:
    from scalefield import figures, kernels, networks, plot, scaling

# Rooms that are opened on first use, so that the import stays light.
_LAZY = frozenset({"figures", "kernels", "networks", "plot", "scaling"})


def __getattr__(name: str) -> _ModuleType:
    if name in _LAZY:
        return _importlib.import_module(f"scalefield.{name}")
    raise AttributeError(f"module 'scalefield' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
