"""Kernels of networks, infinitely wide or finite; their spectra on data and on the circle, and what they predict."""

from scalefield.kernels.circle import CircleEigenvalues, circle_eigenvalues, circle_spectrum
from scalefield.kernels.empirical import empirical_ntk
from scalefield.kernels.from_kernel import KernelSpectrum
from scalefield.kernels.infinite_width import InfiniteWidthKernel
from scalefield.kernels.prediction import KernelPrediction, predict
from scalefield.kernels.source_capacity import SourceCapacityFit, fit_source_capacity

__all__ = [
    "CircleEigenvalues",
    "InfiniteWidthKernel",
    "KernelPrediction",
    "KernelSpectrum",
    "SourceCapacityFit",
    "circle_eigenvalues",
    "circle_spectrum",
    "empirical_ntk",
    "fit_source_capacity",
    "predict",
]
