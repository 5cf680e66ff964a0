"""scalefield: solvable models of neural scaling laws with feature learning.

Exact dynamical mean-field theory and stochastic simulation of the model of Bordelon, Atanasov & Pehlevan,
"How Feature Learning Can Improve Neural Scaling Laws" (arXiv:2409.17858).
"""

from importlib.metadata import version as _version

from scalefield import datasets, errors, figures, kernels, networks, plot, scaling
from scalefield.contour import ContourMeasure
from scalefield.dmft import DMFTSolution, solve_dmft
from scalefield.flow import FlowSolution, solve_gradient_flow
from scalefield.model import Model
from scalefield.quadrature import SpectralNodes
from scalefield.resolvent import DeterministicEquivalent, bottleneck_loss
from scalefield.simulation import Simulation, simulate
from scalefield.spectral_measure import SpectralMeasure
from scalefield.spectrum import PowerLawSpectrum, Spectrum

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
    "networks",
    "plot",
    "scaling",
    "simulate",
    "solve_dmft",
    "solve_gradient_flow",
]

__version__ = _version("scalefield")
