"""Kernels of networks: infinitely wide ones on data and on the circle, and those of finite networks."""

from scalefield.kernels.circle import CircleEigenvalues, circle_eigenvalues, circle_spectrum
from scalefield.kernels.empirical import empirical_ntk
from scalefield.kernels.infinite_width import InfiniteWidthKernel

__all__ = ["CircleEigenvalues", "InfiniteWidthKernel", "circle_eigenvalues", "circle_spectrum", "empirical_ntk"]
