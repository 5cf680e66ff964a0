"""Kernels of networks: infinitely wide ones on data and on the circle, and those of finite networks."""

from scalefield.kernels.from_kernel import KernelSpectrum
from scalefield.kernels.prediction import KernelPrediction, predict
from scalefield.kernels.source_capacity import SourceCapacityFit, fit_source_capacity

__all__ = [
    "KernelPrediction",
    "KernelSpectrum",
    "SourceCapacityFit",
    "fit_source_capacity",
    "predict",
]
