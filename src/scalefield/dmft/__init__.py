"""Exact dynamical mean-field theory: learning curves with their two-time response and correlation."""

from scalefield.dmft.solution import DMFTSolution
from scalefield.dmft.solve import solve_dmft

__all__ = ["DMFTSolution", "solve_dmft"]
