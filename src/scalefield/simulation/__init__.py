"""The stochastic model itself, simulated."""

from scalefield.simulation.dispatch import simulate
from scalefield.simulation.result import Simulation

__all__ = ["Simulation", "simulate"]
